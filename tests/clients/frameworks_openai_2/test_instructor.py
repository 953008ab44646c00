"""instructor, in the modes that tell a server the form: in JSON and MD_JSON only the prompt does."""

import anthropic
import instructor
import openai
import pytest
from demo import (
    ANSWER,
    CHAT,
    CLAUDE,
    PICTURE,
    QUESTION,
    ROOM,
    UNKNOWN,
    Color,
    Weather,
    anthropic_blocks,
    chat_parts,
)
from instructor.core import InstructorRetryException

CHAT_MODES = [
    instructor.Mode.TOOLS,
    instructor.Mode.TOOLS_STRICT,
    instructor.Mode.JSON_SCHEMA,
]
ASKED = [{"role": "user", "content": chat_parts()}]


@pytest.fixture
def openai_client(demo_server):
    return openai.OpenAI(base_url=demo_server, api_key="unused", max_retries=0)


def create(client, model=CHAT, messages=ASKED, response_model=Color, **more):
    asked = {"temperature": 0, "max_tokens": ROOM, "max_retries": 0} | more
    return client.chat.completions.create(
        model=model, messages=messages, response_model=response_model, **asked
    )


@pytest.mark.parametrize("mode", CHAT_MODES, ids=lambda mode: mode.name)
def test_parsed_answers(openai_client, mode):
    assert create(instructor.from_openai(openai_client, mode=mode)).color == ANSWER


def test_its_own_pictures(openai_client):
    picture = instructor.Image.from_path(PICTURE)
    messages = [{"role": "user", "content": [picture, QUESTION]}]
    client = instructor.from_openai(openai_client, mode=instructor.Mode.JSON_SCHEMA)
    assert create(client, messages=messages).color == ANSWER


def test_answers_in_parts(openai_client):
    client = instructor.from_openai(openai_client, mode=instructor.Mode.JSON_SCHEMA)
    parts = list(
        client.chat.completions.create_partial(
            model=CHAT,
            messages=ASKED,
            response_model=Color,
            temperature=0,
            max_tokens=ROOM,
            max_retries=0,
        )
    )
    assert len(parts) > 1
    assert parts[-1].color == ANSWER


def test_functions(openai_client):
    client = instructor.from_openai(openai_client, mode=instructor.Mode.TOOLS)
    messages = [{"role": "user", "content": "What is the weather in rome?"}]
    weather, answer = client.chat.completions.create_with_completion(
        model=CHAT, messages=messages, response_model=Weather, temperature=0, max_tokens=ROOM
    )
    assert isinstance(weather, Weather)
    assert answer.choices[0].message.tool_calls[0].function.name == "Weather"


def test_responses(openai_client):
    client = instructor.from_openai(openai_client, mode=instructor.Mode.RESPONSES_TOOLS)
    answer = client.responses.create(
        model=CHAT,
        input=[{"role": "user", "content": [instructor.Image.from_path(PICTURE), QUESTION]}],
        response_model=Color,
        temperature=0,
        max_output_tokens=ROOM,
        max_retries=0,
    )
    assert answer.color == ANSWER


def test_anthropic(demo_server):
    client = anthropic.Anthropic(base_url=demo_server.removesuffix("/v1"), api_key="unused", max_retries=0)
    client = instructor.from_anthropic(client, mode=instructor.Mode.ANTHROPIC_TOOLS)
    answer = client.messages.create(
        model=CLAUDE,
        max_tokens=ROOM,
        messages=[{"role": "user", "content": anthropic_blocks()}],
        response_model=Color,
        max_retries=0,
        extra_body={"temperature": 0},
    )
    assert answer.color == ANSWER


def test_an_unknown_model(openai_client):
    with pytest.raises(InstructorRetryException, match=f"The model `{UNKNOWN}` does not exist"):
        create(instructor.from_openai(openai_client), model=UNKNOWN)
