"""Measures what a person meets first, with the program's own models: size, start, first token, memory.

    scripts/bench/startup.py PERCEPT [--starts 21] [--asks 41]

Every figure is a median, with the smallest and the largest beside it.
"""

import argparse
import base64
import http.client
import json
import pathlib
import signal
import statistics
import struct
import subprocess
import time
import zlib


def ready(percept):
    """A server, its address, and the seconds from its start until it said that it is ready."""
    began = time.perf_counter()
    server = subprocess.Popen(
        [percept, "serve", "--port", "0", "--log", "error"], stdout=subprocess.PIPE, text=True
    )
    address = server.stdout.readline().strip().rsplit("//", 1)[1].split("/")[0]
    while True:
        try:
            connection = http.client.HTTPConnection(address, timeout=5)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return server, address, time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.001)


def end(server):
    server.send_signal(signal.SIGTERM)
    server.wait()


def picture(index):
    """A PNG of 224x224 pixels, a red square on grey, at another place each time."""
    left, top = 20 + 11 * index % 120, 20 + 7 * index % 110
    rows = bytearray()
    for y in range(224):
        rows.append(0)
        for x in range(224):
            inside = left <= x < left + 60 and top <= y < top + 60
            rows += bytes((216, 32, 36) if inside else (236, 234, 230))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 224, 224, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ask(address, png):
    """Seconds until the first piece of a streamed answer, and until its end."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    body = {
        "model": "percept-demo-vlm",
        "stream": True,
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "What is in this picture?"},
                ],
            }
        ],
    }
    connection = http.client.HTTPConnection(address, timeout=60)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    first = None
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        choices = json.loads(line[6:])["choices"]
        if first is None and choices and choices[0]["delta"].get("content"):
            first = time.perf_counter() - began
    return first, time.perf_counter() - began


def resident(server):
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def say(what, seconds):
    low, middle, high = (1000 * pick(seconds) for pick in (min, statistics.median, max))
    print(f"{what}: {middle:.1f} ms ({low:.1f} to {high:.1f}, {len(seconds)} times)")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("percept", type=pathlib.Path)
    parser.add_argument("--starts", type=int, default=21)
    parser.add_argument("--asks", type=int, default=41)
    options = parser.parse_args()
    percept = options.percept.resolve()

    print(f"size: {percept.stat().st_size / 1e6:.1f} MB")
    starts = []
    for _ in range(options.starts):
        server, _, took = ready(percept)
        starts.append(took)
        end(server)
    say("start until ready", starts)
    server, address, _ = ready(percept)
    print(f"resident memory at the start: {resident(server):.0f} MiB")
    first = [ask(address, picture(index)) for index in range(options.asks)]
    say("first token, a new picture", [ask[0] for ask in first])
    say("whole answer, a new picture", [ask[1] for ask in first])
    again = [ask(address, picture(0)) for _ in range(options.asks)]
    say("first token, the same picture again", [ask[0] for ask in again])
    print(f"resident memory after {2 * options.asks} questions: {resident(server):.0f} MiB")
    end(server)


if __name__ == "__main__":
    main()
