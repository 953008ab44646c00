"""Compares what a server computes on a GPU with what the same program computes on the CPU.

usage: python host.py PERCEPT FIXTURES [option of percept serve ...]

That is transcripts with the times of their words, and vectors. The options are those of the server on the
GPU. In f32 texts must be equal, and numbers no further apart than TOLERANCE; in bf16 (--dtype bf16) what
differs is only told. The exit code is 1 where that is not so, or a request fails. Standard library only.
"""

import json
import sys
import urllib.request
from pathlib import Path

from goldens import serve

SPEECH = ["whisper"]
VECTORS = ["bert", "xlm_roberta", "clip", "siglip"]
# Seconds of words, and numbers of vectors of length 1.
TOLERANCE = 2e-2
TEXTS = ["a cat", "two red squares and a blue circle on a white page", "12"]


def post(url, body, kind):
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def transcribe(url, model, file):
    """What is said, and when each word is."""
    fields = {
        "model": model,
        "response_format": "verbose_json",
        "timestamp_granularities[]": "word",
        "temperature": "0",
    }
    border = "border-of-a-part"
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'
    body = "".join([*parts, head]).encode() + file.read_bytes() + f"\r\n--{border}--\r\n".encode()
    answer = post(f"{url}/audio/transcriptions", body, f"multipart/form-data; boundary={border}")
    words = answer.get("words") or []
    return answer["text"], [time for word in words for time in (word["start"], word["end"])]


def embed(url, model, _):
    body = json.dumps({"model": model, "input": TEXTS}).encode()
    answer = post(f"{url}/embeddings", body, "application/json")
    return None, [number for one in answer["data"] for number in one["embedding"]]


def check(program, model, ask, file, options):
    """Whether both say the same, and how far their numbers are apart."""
    found = []
    for where in (options, ["--device", "cpu", "--dtype", "f32"]):
        server, url = serve(program, model, where)
        try:
            found.append(ask(url, model.name, file))
        finally:
            server.terminate()
            server.wait(timeout=60)
    (text, numbers), (expected, others) = found
    same = text == expected and len(numbers) == len(others)
    if not same:
        print(f"  {model.name}: {text!r} and {len(numbers)} numbers, not {expected!r} and {len(others)}")
    return same, max((abs(one - other) for one, other in zip(numbers, others, strict=False)), default=0.0)


def main():
    program, fixtures, *options = sys.argv[1:]
    fixtures = Path(fixtures)
    exact = "bf16" not in options
    sound = fixtures / "inputs" / "speechlike_3s.wav"
    failed = False
    for name, ask in [*((name, transcribe) for name in SPEECH), *((name, embed) for name in VECTORS)]:
        same, apart = check(program, fixtures / name, ask, sound, options)
        print(f"{name}: {'as' if same else 'NOT as'} on the CPU, numbers {apart:.1e} apart", flush=True)
        failed |= exact and (not same or apart > TOLERANCE)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
