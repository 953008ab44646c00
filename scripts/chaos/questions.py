"""What well-behaved clients ask."""

import base64
import struct
import zlib
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[2] / "tests/fixtures"
PICTURES = ["tiny_31x17.png", "land_90x60.png", "square_56x56.png", "photo_160x120.jpg", "rgba_64x48.png"]


def load(name):
    return (FIXTURES / "inputs" / name).read_bytes()


def data_url(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


class Questions:
    """What well-behaved clients ask: few different things, so that equal ones meet again."""

    def __init__(self):
        self.pictures = [load(name) for name in PICTURES]
        self.sound = load("speechlike_3s.wav")
        self.huge_picture = huge_picture()

    def recording(self, source):
        """Some of the recording: its head says more, as with a recorder that was stopped."""
        return self.sound[: source.choice([len(self.sound), 60_044, 32_044])]

    def chat(self, source):
        """A body for chat whose answer is always the same."""
        number = source.randrange(12)
        body = {"model": "llava", "max_tokens": 2 + number % 5 * 3, "ignore_eos": number % 3 == 0}
        body["messages"] = [{"role": "user", "content": f"what is number {number}? " + "and so on " * number}]
        if number % 4 == 3:
            return body | {"temperature": 1, "seed": number}
        return body | {"temperature": 0}

    def picture(self, source):
        number = source.randrange(len(self.pictures))
        url = {"type": "image_url", "image_url": {"url": data_url(self.pictures[number])}}
        text = {"type": "text", "text": f"what is in picture {number}?"}
        messages = [{"role": "user", "content": [url, text]}]
        return {"model": "llava", "max_tokens": 3 + number, "temperature": 0, "messages": messages}

    def long(self, source):
        """An answer that takes its time, to leave in the middle."""
        messages = [{"role": "user", "content": f"tell me of {source.randrange(1000)}"}]
        return {"model": "llava", "max_tokens": 200, "ignore_eos": True, "messages": messages}


def huge_picture():
    """A PNG whose header promises more than any server has room for."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 15_000, 15_000, 8, 6, 0, 0, 0)
    chunk = struct.pack(">I", len(head) - 4) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes(500)


def chat_text(answer):
    return answer["choices"][0]["message"]["content"]
