"""What the demo models are asked by every framework, and the truth about it.

The drawing shows a red circle, a blue square and an orange star. The model never calls a function of its own
accord, and writes white space as long as a grammar lets it, so answers in a form need room.
"""

import base64
from pathlib import Path
from typing import Literal

import pydantic

SAMPLES = Path(__file__).resolve().parents[2] / "assets/demo/samples"
PICTURE = SAMPLES / "shapes.png"
RECORDING = SAMPLES / "sentence.wav"
SENTENCE = "Turn on the kitchen light please."

CHAT, CLAUDE, SPEECH = "gpt-4o", "claude-sonnet-4-6", "whisper-1"
UNKNOWN = "unknown-model"
BASE64 = base64.b64encode(PICTURE.read_bytes()).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"

QUESTION, ANSWER = "What color is the star?", "orange"
# What is said about it without a picture: clients that lose the picture are found out by it.
BLIND, BLIND_ANSWER = "Who wrote this book?", "I only know simple drawings"
ROOM = 600


class Closed(pydantic.BaseModel):
    """Without this a schema allows whatever else a model likes to add."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Color(Closed):
    """What color something has."""

    color: Literal["red", "blue", "orange"]


class Weather(Closed):
    """Tells the weather of a city."""

    city: Literal["rome", "oslo"]


def chat_parts():
    """The question as a message's content in chat completions."""
    return [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": QUESTION}]


def anthropic_blocks():
    """The same for the Anthropic API."""
    source = {"type": "base64", "media_type": "image/png", "data": BASE64}
    return [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
