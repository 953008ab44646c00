"""Chaos: many clients, good and bad, on a server that is killed again and again; then what must hold.

    PERCEPT=target/debug/percept python3 scripts/chaos.py --clients 300 --seconds 600 --json summary.json

It starts `percept serve` itself, on a free port of this machine, with folders of its own, and kills (SIGKILL)
and restarts it at random moments. Clients chat, stream, show pictures and play recordings; they leave in the
middle, read and write slowly, and send what is too large or broken. Batches are made all the time, and followed
over every kill. Then it waits for rest and says what does not hold, with exit status 1: docs/reliability.md lists
what must.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import dataclasses
import json
import os
import platform
import random
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests/fixtures"
PICTURES = ["tiny_31x17.png", "land_90x60.png", "square_56x56.png", "photo_160x120.jpg", "rgba_64x48.png"]
BODY_LIMIT = 2_000_000
# What a server is run with beside its models: limits that a run of some minutes reaches.
OPTIONS = (
    "--port 0 --offline --no-ui --max-sequences 16 --max-queue 256 --head-seconds 10 --idle-seconds 15 "
    f"--drain-seconds 30 --max-body {BODY_LIMIT} --max-audio-bytes {BODY_LIMIT} --log info"
).split()
ENDED = {"completed", "failed", "expired", "cancelled"}
# Seconds before a kill within which the audit log may lose lines of answered requests.
AUDIT_LAG = 10
NOT_AUDITED = {"/health", "/live", "/metrics"}
MEBIBYTE = 1 << 20


class Wrong(Exception):
    """The server answered as it must not."""


class Cut(Exception):
    """The connection ended before the answer did, or was not made."""


class Failed(Exception):
    """The run cannot go on."""


now = time.monotonic


# Server


@dataclasses.dataclass
class Life:
    """A process of the server, from its start to its end."""

    process: asyncio.subprocess.Process
    port: int
    began: float
    ready: float = 0.0
    ended: float = float("inf")
    descriptors: int = 0
    # (seconds, bytes)
    resident: list = dataclasses.field(default_factory=list)

    def status(self, name):
        """A figure of /proc/PID/status in bytes."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def open_files(self):
        """What the process has open, by name."""
        folder, names = f"/proc/{self.process.pid}/fd", []
        for entry in os.listdir(folder):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"{folder}/{entry}"))
        return sorted(names)


class Server:
    """The server under test, through its lives."""

    def __init__(self, program, models, folder, batches):
        self.temporary, self.log = folder / "tmp", folder / "log"
        self.audit, self.files = folder / "audit", folder / "files"
        self.temporary.mkdir(parents=True)
        self.program = program
        self.command = [program, "serve", *models, *OPTIONS, "--audit", str(self.audit)]
        if batches:
            self.command += ["--files", str(self.files), "--batch-requests", "4"]
        self.lives = []
        self.up = asyncio.Event()
        # From a kill to the next life's readiness.
        self.outages = []

    @property
    def life(self):
        return self.lives[-1]

    async def start(self, patience=120):
        """Starts a process and waits until it is ready."""
        began = now()
        with open(self.log, "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"TMPDIR": str(self.temporary)},
            )
        try:
            line = await asyncio.wait_for(process.stdout.readline(), patience)
            if b"http://127.0.0.1:" not in line:
                raise Failed(f"the server did not start: {line!r}, see {self.log}")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        port = int(line.split(b"http://127.0.0.1:")[1].split(b"/")[0])
        self.lives.append(Life(process, port, began))
        until = began + patience
        while True:
            with contextlib.suppress(Cut, OSError):
                answer = await ask(self.life.port, request("GET", "/ready"), 30)
                if answer.status == 200:
                    break
            if now() > until or process.returncode is not None:
                raise Failed(f"the server is not ready, see {self.log}")
            await asyncio.sleep(0.1)
        self.life.ready = now()
        self.life.descriptors = len(self.life.open_files())
        if self.outages and self.outages[-1][1] == float("inf"):
            self.outages[-1][1] = now()
        self.up.set()

    async def kill(self):
        self.up.clear()
        self.outages.append([now(), float("inf")])
        self.life.process.kill()
        await self.life.process.wait()
        self.life.ended = now()

    async def stop(self):
        """Ends it as a supervisor does; its exit status."""
        self.life.process.terminate()
        status = await asyncio.wait_for(self.life.process.wait(), 90)
        self.life.ended = now()
        return status

    def outage(self, began):
        """Whether there was a kill, or no server, since then."""
        # Answers of a new life may reach a client a moment after it is ready.
        return any(end + 2 >= began for _, end in self.outages)

    def end_by_force(self):
        if self.lives and self.life.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.life.process.kill()


# HTTP, with every byte in the hand of the client


def request(method, path, body=b"", kind="application/json", **headers):
    """A whole request, as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close"]
    if method == "POST":
        lines += [f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def post(path, body, **headers):
    return request("POST", path, json.dumps(body).encode(), **headers)


def form(path, fields, files, **headers):
    """A multipart request; `files` has (field, name, content)."""
    body = b""
    for name, value in fields.items():
        body += f'--xx\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for field, name, content in files:
        head = f'--xx\r\ncontent-disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return request("POST", path, body + b"--xx--\r\n", "multipart/form-data; boundary=xx", **headers)


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            raise Wrong(f"{self.status} without JSON: {self.body[:200]!r}") from None


class Connection:
    """A connection to the server, closed when left."""

    def __init__(self, port):
        self.port = port

    async def __aenter__(self):
        try:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            raise Cut(f"no connection: {error}") from None
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()

    async def send(self, data):
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError as error:
            raise Cut(f"while sending: {error}") from None

    def reset(self):
        """Leaves without a goodbye: the server gets a reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def read(self, work):
        try:
            return await work
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Cut(f"while reading: {error}") from None

    async def head(self):
        """Status and headers."""
        lines = (await self.read(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1").split("\r\n")
        version, status = lines[0].split(" ")[:2]
        if version != "HTTP/1.1":
            raise Wrong(f"it does not speak HTTP: {lines[0]!r}")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return int(status), headers

    async def pieces(self, headers):
        """The body as it comes."""
        if headers.get("transfer-encoding") == "chunked":
            while True:
                size = int(await self.read(self.reader.readuntil(b"\r\n")), 16)
                piece = (await self.read(self.reader.readexactly(size + 2)))[:-2]
                if not size:
                    return
                yield piece
        else:
            yield await self.read(self.reader.readexactly(int(headers.get("content-length", 0))))

    async def answer(self):
        status, headers = await self.head()
        return Answer(status, headers, b"".join([piece async for piece in self.pieces(headers)]))

    async def until_closed(self):
        """What comes until the server closes."""
        data = b""
        with contextlib.suppress(OSError):
            while piece := await self.reader.read(1 << 16):
                data += piece
        return data


async def ask(port, data, patience=60):
    try:
        async with asyncio.timeout(patience), Connection(port) as connection:
            await connection.send(data)
            return await connection.answer()
    except TimeoutError:
        raise Cut(f"no answer within {patience} s") from None


def check_error(answer, anthropic=False):
    """An error has the shape of the API's errors, and leads to the log."""
    body = answer.json()
    error = body.get("error") if isinstance(body, dict) else None
    well = isinstance(error, dict) and bool(error.get("message")) and isinstance(error.get("type"), str)
    if anthropic:
        well = well and body.get("type") == "error" and bool(body.get("request_id"))
    else:
        well = well and {"param", "code"} <= error.keys()
    if not well or "x-request-id" not in answer.headers:
        raise Wrong(f"{answer.status} in another shape: {answer.body[:300]!r}")


# What is asked


def load(name):
    return (FIXTURES / "inputs" / name).read_bytes()


def data_url(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


class Questions:
    """What well-behaved clients ask: few different things, so that equal ones meet again."""

    def __init__(self):
        self.pictures = [load(name) for name in PICTURES]
        self.sound = load("speechlike_3s.wav")
        self.broken_picture = (FIXTURES / "pictures/bomb.png").read_bytes()

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


def chat_text(answer):
    return answer["choices"][0]["message"]["content"]


# Clients


class Client:
    """A client that does one thing after the other: the methods that DOES names. Each returns a word for what came of
    it, or raises what the server did wrong."""

    def __init__(self, chaos, number):
        self.chaos = chaos
        self.random = random.Random(f"{chaos.options.seed} {number}")
        # Most wait for the server to be there.
        self.patient = number % 5 != 0

    async def run(self):
        chaos, names, weights = self.chaos, list(DOES), list(DOES.values())
        await asyncio.sleep(self.random.random() * 3)
        while not chaos.over.is_set():
            if self.patient:
                await chaos.server.up.wait()
            await chaos.lull_over()
            name = self.random.choices(names, weights)[0]
            await self.once(name)
            await asyncio.sleep(self.random.expovariate(1 / chaos.options.think))

    async def once(self, name):
        chaos, began = self.chaos, now()
        self.port = chaos.server.life.port
        try:
            async with asyncio.timeout(chaos.options.deadline):
                outcome = await getattr(self, name)()
        except TimeoutError:
            outcome = "hang"
            chaos.fail(f"{name}: no end within {chaos.options.deadline} s")
        except Cut as cut:
            outcome = "cut by a kill"
            if not chaos.server.outage(began):
                outcome = "cut"
                chaos.fail(f"{name}: cut though nobody killed the server: {cut}")
            elif chaos.server.lives[-1].port == self.port:
                # Do not ask a server that is not there in a loop.
                await asyncio.sleep(0.5)
        except Wrong as wrong:
            outcome = "wrong"
            chaos.fail(f"{name}: {wrong}")
        chaos.outcomes[name][outcome] += 1
        chaos.longest = max(chaos.longest, now() - began)

    async def left(self, connection):
        """This client leaves, in one of the two ways."""
        if self.random.random() < 0.5:
            connection.reset()
        return "left"

    async def pause(self, seconds):
        """Sleeps, less where the run ends; whether it goes on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.chaos.over.wait(), seconds)
        return not self.chaos.over.is_set()

    def judge(self, answer, began, allowed, anthropic=False):
        """What a status means; anything that is not allowed is wrong."""
        self.chaos.answered(self.port, answer.headers)
        if answer.status in allowed:
            if answer.status >= 400:
                check_error(answer, anthropic)
                return f"refused {answer.status}"
            return "answered"
        check_error(answer, anthropic)
        if answer.status == 429 or (anthropic and answer.status == 529 and not self.loading(answer)):
            if int(answer.headers.get("retry-after", 0)) < 1:
                raise Wrong(f"a full queue without Retry-After: {answer.headers}")
            return "queue full"
        if answer.status >= 500 and self.chaos.server.outage(began):
            return "unavailable around a kill"
        raise Wrong(f"{answer.status}, not {allowed}: {answer.body[:300]!r}")

    @staticmethod
    def loading(answer):
        return b"loading" in answer.body or b"loaded" in answer.body

    async def whole(self, data, allowed=(200,), anthropic=False):
        """Asks and reads all of it; what came of it, and the answer."""
        began = now()
        async with Connection(self.port) as connection:
            await connection.send(data)
            answer = await connection.answer()
        return self.judge(answer, began, allowed, anthropic), answer

    async def streamed(self, data, anthropic=False):
        """Asks and reads events; what came of it, and the events' data."""
        began = now()
        async with Connection(self.port) as connection:
            await connection.send(data)
            status, headers = await connection.head()
            body = b"".join([piece async for piece in connection.pieces(headers)])
        outcome = self.judge(Answer(status, headers, body), began, (200,), anthropic)
        if outcome != "answered":
            return outcome, []
        if headers["content-type"] != "text/event-stream" or not body.endswith(b"\n\n"):
            raise Wrong(f"no whole stream: {headers}, {body[-200:]!r}")
        lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
        events = [line if line == "[DONE]" else json.loads(line) for line in lines]
        for event in events:
            if event != "[DONE]" and (event.get("error") or event.get("type") == "error"):
                if self.chaos.server.outage(began):
                    return "unavailable around a kill", []
                raise Wrong(f"a stream that failed: {event}")
        return outcome, events

    # What works.

    async def chat(self, body=None):
        body = body or self.chaos.questions.chat(self.random)
        outcome, answer = await self.whole(post("/v1/chat/completions", body))
        if outcome == "answered":
            self.chaos.same("chat", body, chat_text(answer.json()))
        return outcome

    async def chat_streamed(self, body=None):
        body = body or self.chaos.questions.chat(self.random)
        more = {"stream": True, "stream_options": {"include_usage": True}}
        outcome, events = await self.streamed(post("/v1/chat/completions", body | more))
        if outcome == "answered":
            if events[-1] != "[DONE]" or "usage" not in events[-2]:
                raise Wrong(f"a stream without its end: {events[-2:]}")
            choices = [choice for event in events[:-1] for choice in event["choices"]]
            if [choice["finish_reason"] for choice in choices].count(None) != len(choices) - 1:
                raise Wrong(f"a stream does not end once: {choices}")
            self.chaos.same("chat", body, "".join(choice["delta"].get("content") or "" for choice in choices))
        return outcome

    async def picture(self):
        body = self.chaos.questions.picture(self.random)
        return await (self.chat if self.random.random() < 0.5 else self.chat_streamed)(body)

    async def messages(self):
        body = self.chaos.questions.chat(self.random)
        body = {name: body[name] for name in ("model", "max_tokens", "messages")} | {"temperature": 0}
        if self.random.random() < 0.5:
            data = post("/v1/messages", body, anthropic_version="2023-06-01")
            outcome, answer = await self.whole(data, anthropic=True)
            text = "".join(part["text"] for part in answer.json()["content"]) if outcome == "answered" else ""
        else:
            data = post("/v1/messages", body | {"stream": True}, anthropic_version="2023-06-01")
            outcome, events = await self.streamed(data, anthropic=True)
            if outcome == "answered" and events[-1]["type"] != "message_stop":
                raise Wrong(f"a stream without its end: {events[-1]}")
            deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
            text = "".join(delta["text"] for delta in deltas)
        if outcome == "answered":
            self.chaos.same("messages", body, text)
        return outcome

    async def responses(self):
        body = self.chaos.questions.chat(self.random)
        body = {
            "model": "llava",
            "temperature": 0,
            "max_output_tokens": max(16, body["max_tokens"]),
            "input": body["messages"][0]["content"],
        }
        if self.random.random() < 0.5:
            outcome, answer = await self.whole(post("/v1/responses", body))
            response = answer.json() if outcome == "answered" else None
        else:
            outcome, events = await self.streamed(post("/v1/responses", body | {"stream": True}))
            events = [event for event in events if event != "[DONE]"]
            if outcome == "answered" and events[-1]["type"] not in {
                "response.completed",
                "response.incomplete",
            }:
                raise Wrong(f"a stream without its end: {events[-1]}")
            response = events[-1]["response"] if outcome == "answered" else None
        if response:
            parts = [part for item in response["output"] for part in item.get("content", [])]
            self.chaos.same("responses", body, "".join(part.get("text", "") for part in parts))
        return outcome

    async def transcription(self):
        recording = self.chaos.questions.recording(self.random)
        fields = {"model": "whisper", "temperature": 0, "max_new_tokens": 6, "temperatures": 0}
        files = [("file", "a.wav", recording)]
        if self.random.random() < 0.5:
            outcome, answer = await self.whole(form("/v1/audio/transcriptions", fields, files))
            text = answer.json()["text"] if outcome == "answered" else None
        else:
            data = form("/v1/audio/transcriptions", fields | {"stream": "true"}, files)
            outcome, events = await self.streamed(data)
            if outcome == "answered" and events[-1] != "[DONE]":
                raise Wrong(f"a stream without its end: {events[-1]}")
            text = events[-2]["text"] if outcome == "answered" else None
        if outcome == "answered":
            self.chaos.same("transcription", {"bytes": len(recording)}, text)
        return outcome

    async def small_questions(self):
        path = self.random.choice(
            ["/v1/models", "/v1/models/llava", "/health", "/metrics", "/v1/usage", "/live"]
        )
        outcome, answer = await self.whole(request("GET", path))
        if outcome == "answered" and path in NOT_AUDITED:
            self.chaos.not_audited(answer.headers)
        return outcome

    async def count_tokens(self):
        body = self.chaos.questions.chat(self.random)
        body = {name: body[name] for name in ("model", "messages")}
        outcome, answer = await self.whole(post("/v1/messages/count_tokens", body), anthropic=True)
        if outcome == "answered":
            self.chaos.same("count_tokens", body, answer.json()["input_tokens"])
        return outcome

    async def many_on_one_connection(self):
        """Right and wrong requests on a connection that is kept."""
        body, began, outcome = self.chaos.questions.chat(self.random), now(), ""
        async with Connection(self.port) as connection:
            for data, status in [
                (request("GET", "/v1/models"), 200),
                (request("POST", "/v1/chat/completions", b"{"), 400),
                (post("/v1/chat/completions", body), 200),
                (request("GET", "/v1/nothing"), 404),
            ]:
                await connection.send(data.replace(b"connection: close\r\n", b"", 1))
                answer = await connection.answer()
                outcome = self.judge(answer, began, (status,))
                if outcome == "answered" and status == 200 and data.startswith(b"POST"):
                    self.chaos.same("chat", body, chat_text(answer.json()))
        return outcome

    # What leaves.

    async def leaves_at_once(self):
        async with Connection(self.port) as connection:
            return await self.left(connection)

    async def leaves_while_sending(self):
        data = post("/v1/chat/completions", self.chaos.questions.picture(self.random))
        if self.random.random() < 0.4:
            files = [("file", "a.wav", self.chaos.questions.sound)]
            data = form("/v1/audio/transcriptions", {"model": "whisper"}, files)
        async with Connection(self.port) as connection:
            await connection.send(data[: self.random.randrange(1, len(data))])
            await self.pause(self.random.random())
            return await self.left(connection)

    async def leaves_before_the_answer(self):
        async with Connection(self.port) as connection:
            await connection.send(post("/v1/chat/completions", self.chaos.questions.long(self.random)))
            await self.pause(self.random.random() * 4)
            return await self.left(connection)

    async def leaves_in_the_stream(self):
        body = self.chaos.questions.long(self.random) | {"stream": True}
        path = self.random.choice(["/v1/chat/completions", "/v1/messages"])
        if path == "/v1/messages":
            del body["ignore_eos"]
        began = now()
        async with Connection(self.port) as connection:
            await connection.send(post(path, body))
            status, headers = await connection.head()
            pieces = connection.pieces(headers)
            if status != 200:
                rest = b"".join([piece async for piece in pieces])
                return self.judge(Answer(status, headers, rest), began, (200,), path == "/v1/messages")
            for _ in range(self.random.randrange(6)):
                if await anext(pieces, None) is None:
                    break
            return await self.left(connection)

    async def leaves_a_transcription(self):
        files = [("file", "a.wav", self.chaos.questions.sound)]
        async with Connection(self.port) as connection:
            await connection.send(form("/v1/audio/transcriptions", {"model": "whisper"}, files))
            await self.pause(self.random.random() * 3)
            return await self.left(connection)

    # What is slow.

    async def reads_slowly(self):
        body = self.chaos.questions.chat(self.random) | {"stream": True}
        async with Connection(self.port) as connection:
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await connection.send(post("/v1/chat/completions", body))
            for _ in range(20):
                # A connection may only end where the answer does.
                if not await connection.read(connection.reader.read(7)) or not await self.pause(1):
                    break
            return await self.left(connection)

    async def sends_slowly(self):
        body = self.chaos.questions.chat(self.random)
        data, began = post("/v1/chat/completions", body), now()
        end = data.index(b"\r\n\r\n") + 4
        async with Connection(self.port) as connection:
            await connection.send(data[:end])
            size = max(1, (len(data) - end) // 8)
            for at in range(end, len(data), size):
                await self.pause(0.5)
                await connection.send(data[at : at + size])
            answer = await connection.answer()
        outcome = self.judge(answer, began, (200,))
        if outcome == "answered":
            self.chaos.same("chat", body, chat_text(answer.json()))
        return outcome

    async def stops_sending(self):
        """Half a body and then silence: 408 after 30 seconds."""
        data, began = post("/v1/chat/completions", self.chaos.questions.chat(self.random)), now()
        async with Connection(self.port) as connection:
            await connection.send(data[:-9])
            answer = asyncio.ensure_future(connection.answer())
            over = asyncio.ensure_future(self.chaos.over.wait())
            try:
                await asyncio.wait([answer, over], return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    return "left"
                return self.judge(answer.result(), began, (408,))
            finally:
                answer.cancel()
                over.cancel()
                await asyncio.gather(answer, over, return_exceptions=True)

    async def begins_a_head(self):
        """A head that does not end, or nothing at all: the connection is closed after 10 seconds."""
        async with Connection(self.port) as connection:
            if self.random.random() < 0.5:
                await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc")
            closed = asyncio.ensure_future(connection.until_closed())
            over = asyncio.ensure_future(self.chaos.over.wait())
            await asyncio.wait([closed, over], return_when=asyncio.FIRST_COMPLETED)
            outcome = "closed" if closed.done() else "left"
            over.cancel()
            closed.cancel()
            await asyncio.gather(closed, over, return_exceptions=True)
            return outcome

    async def stays_connected(self):
        """A connection that is kept and not used: it is closed after 15 seconds."""
        async with Connection(self.port) as connection:
            data = request("GET", "/live").replace(b"connection: close\r\n", b"", 1)
            await connection.send(data)
            await connection.answer()
            closed = asyncio.ensure_future(connection.until_closed())
            over = asyncio.ensure_future(self.chaos.over.wait())
            await asyncio.wait([closed, over], return_when=asyncio.FIRST_COMPLETED)
            outcome = "closed" if closed.done() else "left"
            over.cancel()
            closed.cancel()
            await asyncio.gather(closed, over, return_exceptions=True)
            return outcome

    # What is wrong.

    async def too_large(self):
        size = BODY_LIMIT + self.random.randrange(1, 200_000)
        kind = "application/json"
        path = self.random.choice(["/v1/chat/completions", "/v1/messages", "/v1/audio/transcriptions"])
        if path.endswith("transcriptions"):
            data = form(path, {"model": "whisper"}, [("file", "a.wav", bytes(size))])
        elif self.random.random() < 0.5:
            data = request("POST", path, bytes(size), kind)
        else:
            head = request("POST", path, b"", kind).replace(
                b"content-length: 0", b"transfer-encoding: chunked"
            )
            data = head + f"{size:x}\r\n".encode() + bytes(size) + b"\r\n0\r\n\r\n"
        began = now()
        async with Connection(self.port) as connection:
            sending = asyncio.ensure_future(connection.send(data))
            # It answers before it has all of it, and what else is sent may meet a closed door.
            try:
                answer = await connection.answer()
            except Cut:
                # A reset on a closed connection overtakes the answer: TCP promises no better.
                return "cut while sending too much"
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return self.judge(answer, began, (413,), path == "/v1/messages")

    async def broken_json(self):
        body = json.dumps(self.chaos.questions.chat(self.random)).encode()
        broken = self.random.choice(
            [
                body[:-1],
                body[: len(body) // 2],
                b"",
                b"null",
                b"[" * 5000,
                b"\xff\xfe",
                b'{"model": 1}',
                b"{}{}",
            ]
        )
        path = self.random.choice(
            ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"]
        )
        outcome, _ = await self.whole(request("POST", path, broken), (400,), path == "/v1/messages")
        return outcome

    async def wrong_fields(self):
        wrong = self.random.choice(
            [
                {"temperature": 9},
                {"max_tokens": 0},
                {"messages": []},
                {"messages": [{"role": "king", "content": "x"}]},
                {"n": 1000},
                {"stop": [""]},
                {"top_p": "high"},
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "a", "schema": {"type": 1}},
                    }
                },
            ]
        )
        body = self.chaos.questions.chat(self.random) | wrong
        outcome, _ = await self.whole(post("/v1/chat/completions", body), (400,))
        return outcome

    async def broken_form(self):
        data = form("/v1/audio/transcriptions", {"model": "whisper"}, [("file", "a.wav", b"RIFF")])
        _, body = data.split(b"\r\n\r\n", 1)
        kind = "multipart/form-data; boundary=xx"
        body = self.random.choice(
            [body[: len(body) // 2], b"", b"--xx--\r\n", b"\0" * 100, body.replace(b"xx", b"y")]
        )
        data = request("POST", "/v1/audio/transcriptions", body, kind)
        outcome, _ = await self.whole(data, (400,))
        return outcome

    async def broken_picture(self):
        questions = self.chaos.questions
        whole = self.random.choice(questions.pictures)
        broken = bytearray(whole)
        for _ in range(40):
            broken[self.random.randrange(8, len(broken))] ^= 1 << self.random.randrange(8)
        content = self.random.choice(
            [whole[: len(whole) // 3], b"", b"GIF89a", questions.broken_picture, bytes(broken)]
        )
        body = questions.picture(self.random)
        body["messages"][0]["content"][0]["image_url"]["url"] = data_url(content)
        # A decoder may make something of flipped bits.
        allowed = (200, 400) if content == bytes(broken) else (400,)
        outcome, _ = await self.whole(post("/v1/chat/completions", body), allowed)
        return outcome

    async def broken_sound(self):
        sound = self.chaos.questions.sound
        content = self.random.choice(
            [sound[:20], b"", self.random.randbytes(3000), b"OggS" + bytes(500), b"RIFF\xff"]
        )
        fields = {"model": "whisper", "temperature": 0, "max_new_tokens": 4}
        data = form("/v1/audio/transcriptions", fields, [("file", "a.wav", content)])
        outcome, _ = await self.whole(data, (400,))
        return outcome

    async def wrong_model(self):
        body = self.chaos.questions.chat(self.random) | {
            "model": self.random.choice(["gone", "../../etc/passwd", "x" * 999])
        }
        if self.random.random() < 0.5:
            data = post("/v1/messages", {name: body[name] for name in ("model", "messages", "max_tokens")})
            outcome, _ = await self.whole(data, (404,), anthropic=True)
        else:
            outcome, _ = await self.whole(post("/v1/chat/completions", body), (404,))
        return outcome

    async def wrong_ways(self):
        data, status = self.random.choice(
            [
                (request("GET", "/v1/chat/completions"), 405),
                (request("GET", "/v1/nothing/here"), 404),
                (request("POST", "/v1/chat/completions", b"{}", "text/plain"), 415),
                (request("POST", "/v1/audio/transcriptions", b"{}", "text/plain"), 415),
            ]
        )
        outcome, _ = await self.whole(data, (status,))
        return outcome

    async def huge_heads(self):
        if self.random.random() < 0.5:
            headers = {"x_long": "a" * 70_000}
        else:
            headers = {f"x_{number}": "a" for number in range(150)}
        outcome, _ = await self.whole(request("GET", "/v1/models", **headers), (431,))
        return outcome

    async def no_http(self):
        async with Connection(self.port) as connection:
            await connection.send(
                self.random.choice([self.random.randbytes(300), b"\x16\x03\x01" * 50, b"HELO\r\n\r\n"])
            )
            answer = await connection.until_closed()
        if answer and not answer.startswith(b"HTTP/1.1 4"):
            raise Wrong(f"nonsense is answered {answer[:100]!r}")
        return "closed"


# What clients do, and how often.
DOES = {
    "chat": 10,
    "chat_streamed": 10,
    "picture": 8,
    "messages": 6,
    "responses": 4,
    "transcription": 5,
    "small_questions": 6,
    "count_tokens": 3,
    "many_on_one_connection": 4,
    "leaves_at_once": 2,
    "leaves_while_sending": 4,
    "leaves_before_the_answer": 4,
    "leaves_in_the_stream": 5,
    "leaves_a_transcription": 2,
    "reads_slowly": 3,
    "sends_slowly": 3,
    "stops_sending": 1,
    "begins_a_head": 2,
    "stays_connected": 2,
    "too_large": 3,
    "broken_json": 4,
    "wrong_fields": 3,
    "broken_form": 2,
    "broken_picture": 3,
    "broken_sound": 3,
    "wrong_model": 2,
    "wrong_ways": 2,
    "huge_heads": 2,
    "no_http": 2,
}


# Batches


class Batches:
    """A client of batches: makes one after the other and follows each to its end, over every kill."""

    def __init__(self, chaos, number):
        self.chaos, self.number = chaos, number
        self.random = random.Random(f"{chaos.options.seed} batches {number}")

    async def run(self):
        count = 0
        while not self.chaos.over.is_set():
            count += 1
            name = f"b{self.number}-{count}"
            try:
                work = self.messages(name) if self.random.random() < 0.25 else self.batch(name)
                await work
            except Wrong as wrong:
                self.chaos.fail(f"batch {name}: {wrong}")

    async def ask(self, data):
        """Asks until there is an answer that is the server's word; none where an outage came between."""
        chaos = self.chaos
        while True:
            await chaos.server.up.wait()
            began = now()
            try:
                answer = await ask(chaos.server.life.port, data, chaos.options.deadline)
            except Cut as cut:
                if not chaos.server.outage(began):
                    raise Wrong(f"cut though nobody killed the server: {cut}") from None
                return None
            if answer.status == 429 or (answer.status >= 500 and chaos.server.outage(began)):
                await asyncio.sleep(1)
                continue
            return answer

    async def surely(self, data, allowed=(200,)):
        """Asks again over outages: only for what may be asked twice."""
        while True:
            answer = await self.ask(data)
            if answer is None:
                continue
            if answer.status not in allowed:
                raise Wrong(f"{data.split(b' HTTP')[0]!r}: {answer.status} {answer.body[:300]!r}")
            return answer

    def lines(self, name):
        """Lines of a batch: (custom_id, body, whether it is refused)."""
        lines = []
        for index in range(self.random.randrange(3, 24)):
            questions, choice = self.chaos.questions, self.random.random()
            body = questions.picture(self.random) if choice < 0.1 else questions.chat(self.random)
            if choice > 0.95:
                body |= {"model": "gone"}
            elif choice > 0.9:
                body |= {"temperature": 9}
            lines.append((f"{name}-{index}", body, choice > 0.9))
        return lines

    async def upload(self, content):
        data = form("/v1/files", {"purpose": "batch"}, [("file", "lines.jsonl", content)])
        # A file whose answer was lost stays behind; it is found at the end.
        return (await self.surely(data)).json()["id"]

    async def create(self, name, file):
        body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        while True:
            answer = await self.ask(post("/v1/batches", body | {"metadata": {"name": name}}))
            if answer is not None:
                if answer.status != 200:
                    raise Wrong(f"{answer.status} {answer.body[:300]!r}")
                return answer.json()["id"]
            # Was it created before the server was killed?
            listed = (await self.surely(request("GET", "/v1/batches?limit=100"))).json()["data"]
            found = [batch["id"] for batch in listed if (batch["metadata"] or {}).get("name") == name]
            if found:
                return found[0]

    async def batch(self, name):
        lines = self.lines(name)
        bodies = [
            {"custom_id": line, "method": "POST", "url": "/v1/chat/completions", "body": body}
            for line, body, _ in lines
        ]
        file = await self.upload("\n".join(map(json.dumps, bodies)).encode())
        began, path = now(), f"/v1/batches/{await self.create(name, file)}"
        cancelled = self.random.random() < 0.15
        if cancelled:
            await asyncio.sleep(self.random.random() * 10)
            await self.surely(request("POST", f"{path}/cancel", b"{}"), (200, 409))
        batch = await self.until(path, lambda batch: batch["status"] in ENDED)
        if batch["status"] != "completed" and not (cancelled and batch["status"] == "cancelled"):
            raise Wrong(f"it ended as {batch['status']}: {batch}")
        outcomes = collections.defaultdict(list)
        counts = collections.Counter()
        for kind in ("output_file_id", "error_file_id"):
            if batch[kind]:
                content = await self.surely(request("GET", f"/v1/files/{batch[kind]}/content"))
                for line in map(json.loads, content.body.splitlines()):
                    outcomes[line["custom_id"]].append(line)
        self.compare(lines, outcomes, cancelled, counts)
        expected = {"total": len(lines), "completed": counts["completed"], "failed": counts["failed"]}
        found = batch["request_counts"]
        # Where a batch was cancelled, the documents do not say whether what was given up counts as failed.
        if found != expected and not (batch["status"] == "cancelled" and found["total"] == len(lines)):
            raise Wrong(f"it counts {found}, there are {expected}")
        if self.chaos.server.outage(began):
            self.chaos.batches["over a kill"] += 1
        self.chaos.batches[batch["status"]] += 1
        for kept in (file, batch["output_file_id"], batch["error_file_id"]):
            if kept:
                await self.surely(request("DELETE", f"/v1/files/{kept}"), (200, 404))

    def compare(self, lines, outcomes, cancelled, counts):
        """Each line has one outcome, which is the right one."""
        if unknown := outcomes.keys() - {line for line, _, _ in lines}:
            raise Wrong(f"lines that nobody sent: {unknown}")
        for line, body, refused in lines:
            if len(outcomes[line]) != 1:
                raise Wrong(f"line {line} has {len(outcomes[line])} outcomes")
            (outcome,) = outcomes[line]
            response, error = outcome.get("response"), outcome.get("error")
            if cancelled and error and error["code"] == "batch_cancelled":
                self.chaos.lines["cancelled"] += 1
                continue
            status = response and response["status_code"]
            if refused:
                if status not in (400, 404) or not response["body"]["error"]["message"]:
                    raise Wrong(f"line {line} is wrong and was answered {outcome}")
                self.chaos.lines["refused"] += 1
                counts["failed"] += 1
                continue
            if status != 200:
                raise Wrong(f"line {line} was not answered: {outcome}")
            self.chaos.lines["answered"] += 1
            counts["completed"] += 1
            self.chaos.same("chat", body, chat_text(response["body"]))

    async def until(self, path, ended):
        while True:
            batch = (await self.surely(request("GET", path))).json()
            if ended(batch):
                return batch
            if self.chaos.over.is_set() and now() > self.chaos.over_at + self.chaos.options.rest:
                raise Wrong(f"no end within {self.chaos.options.rest} s of rest: {batch}")
            await asyncio.sleep(1)

    async def messages(self, name):
        """The same for clients of the Anthropic API."""
        lines = self.lines(name)
        params = {
            line: {key: body[key] for key in ("model", "messages", "max_tokens")}
            | {"temperature": body["temperature"]}
            for line, body, _ in lines
            if isinstance(body["messages"][0]["content"], str)
        }
        # Its fields have no seed: only what is certain is compared.
        refused = {line for line, _, wrong in lines if wrong}
        version = {"anthropic_version": "2023-06-01"}
        requests = [{"custom_id": line, "params": body} for line, body in params.items()]
        if not requests:
            return
        answer = await self.ask(post("/v1/messages/batches", {"requests": requests}, **version))
        if answer is None:
            # It may be there or not; the end of the run looks after it.
            return
        if answer.status != 200:
            raise Wrong(f"{answer.status} {answer.body[:300]!r}")
        began, path = now(), f"/v1/messages/batches/{answer.json()['id']}"
        await self.until(path, lambda batch: batch["processing_status"] == "ended")
        results = (await self.surely(request("GET", f"{path}/results", **version))).body.splitlines()
        results = [json.loads(line) for line in results]
        if sorted(result["custom_id"] for result in results) != sorted(params):
            raise Wrong(f"not one outcome for each of {len(params)} lines: {results}")
        for result in results:
            line, kind = result["custom_id"], result["result"]["type"]
            if kind != ("errored" if line in refused else "succeeded"):
                raise Wrong(f"line {line}: {result}")
            self.chaos.lines["refused" if line in refused else "answered"] += 1
            if kind == "succeeded" and params[line]["temperature"] == 0:
                text = "".join(part["text"] for part in result["result"]["message"]["content"])
                self.chaos.same("messages", params[line], text)
        if self.chaos.server.outage(began):
            self.chaos.batches["over a kill"] += 1
        self.chaos.batches["messages ended"] += 1
        await self.surely(request("DELETE", path, **version), (200, 404))

    async def clear(self):
        """Deletes what is left of requests whose answers were lost in a kill."""
        version = {"anthropic_version": "2023-06-01"}
        listed = (await self.surely(request("GET", "/v1/messages/batches?limit=100", **version))).json()[
            "data"
        ]
        for batch in listed:
            path = f"/v1/messages/batches/{batch['id']}"
            await self.until(path, lambda batch: batch["processing_status"] == "ended")
            await self.surely(request("DELETE", path, **version))
        while files := (await self.surely(request("GET", "/v1/files?limit=100"))).json()["data"]:
            for file in files:
                await self.surely(request("DELETE", f"/v1/files/{file['id']}"))


# The run


class Chaos:
    """What is shared by all clients: the server, what happened, and what went wrong."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.questions = Questions()
        self.server = Server(options.percept, options.models, folder, not options.no_batches)
        self.random = random.Random(f"{options.seed} kills")
        self.over, self.over_at = asyncio.Event(), 0.0
        self.outcomes = collections.defaultdict(collections.Counter)
        self.batches, self.lines = collections.Counter(), collections.Counter()
        self.failures, self.failed = [], 0
        self.answers, self.compared = {}, 0
        # Of each answer that is written to the audit log, by its id: (seconds, port).
        self.ids = {}
        self.longest, self.kills, self.figures = 0.0, 0, {}

    def fail(self, message):
        self.failed += 1
        if len(self.failures) < 200:
            self.failures.append(f"{now() - self.began:.1f} s: {message}"[:600])

    def same(self, kind, body, answer):
        """Equal requests have equal answers, whoever else is there and whatever happened before."""
        key = kind + json.dumps(body, sort_keys=True)
        first = self.answers.setdefault(key, answer)
        self.compared += first is not answer
        if first != answer:
            raise Wrong(f"two answers to {key[:300]}: {first!r} and {answer!r}")

    def answered(self, port, headers):
        name = headers.get("x-request-id")
        if not name or name in self.ids:
            raise Wrong(f"an answer without an id of its own: {headers}")
        self.ids[name] = now(), port

    def not_audited(self, headers):
        del self.ids[headers["x-request-id"]]

    async def lull_over(self):
        """In 5 of 25 seconds nobody begins anything, so that batches have their turn."""
        while (now() - self.began) % 25 > 20 and not self.over.is_set():
            await asyncio.sleep(0.3)

    async def run(self):
        options = self.options
        self.began = now()
        await self.server.start()
        self.began = now()
        clients = [Client(self, number) for number in range(options.clients)]
        clients += (
            [] if options.no_batches else [Batches(self, number) for number in range(options.batch_clients)]
        )
        tasks = [asyncio.ensure_future(client.run()) for client in clients]
        watching = [asyncio.ensure_future(work) for work in (self.watch(), self.report())]
        try:
            await self.kill_again_and_again()
            self.over_at = now()
            self.over.set()
            await self.finish(tasks, options.deadline + options.rest)
            await self.rest()
        finally:
            for task in (*tasks, *watching):
                task.cancel()
            await asyncio.gather(*tasks, *watching, return_exceptions=True)
        self.check_end()

    async def kill_again_and_again(self):
        """The whole time of the run. The last quarter has no kills, to see memory in a long life."""
        end = self.began + self.options.seconds
        last = self.began + self.options.seconds * 0.75
        while True:
            wait = self.options.kill_every * self.random.uniform(0.5, 1.5)
            if now() + wait > last:
                await self.sleep(end - now())
                return
            await self.sleep(wait)
            await self.server.kill()
            self.kills += 1
            await asyncio.sleep(self.random.random() * 2)
            await self.server.start()

    async def sleep(self, seconds):
        """Sleeps, but not over the end of a server that nobody killed."""
        ended = asyncio.ensure_future(self.server.life.process.wait())
        done, _ = await asyncio.wait([ended], timeout=max(0, seconds))
        ended.cancel()
        if done:
            raise Failed(f"the server ended by itself, with {self.server.life.process.returncode}")

    async def finish(self, tasks, patience):
        """Waits for what clients have begun: each has a deadline, so all end."""
        done, pending = await asyncio.wait(tasks, timeout=patience + 30)
        for task in done:
            if task.exception():
                self.fail(f"a client broke off: {task.exception()!r}")
        if pending:
            self.fail(f"{len(pending)} clients did not end")

    async def watch(self):
        while True:
            await asyncio.sleep(1)
            if self.server.up.is_set():
                life = self.server.life
                with contextlib.suppress(OSError, StopIteration):
                    life.resident.append((now(), life.status("VmRSS:")))

    async def report(self):
        while True:
            await asyncio.sleep(5)
            life, count = self.server.life, collections.Counter()
            for outcomes in self.outcomes.values():
                for outcome, number in outcomes.items():
                    count[outcome.split(" ")[0]] += number
            resident = f"{life.resident[-1][1] / MEBIBYTE:.0f} MiB" if life.resident else "-"
            words = " ".join(f"{name} {number}" for name, number in sorted(count.items()))
            print(
                f"{now() - self.began:5.0f} s: life {len(self.server.lives)}, {resident}, {words}, "
                f"batches {sum(self.batches.values()) - self.batches['over a kill']}, failures {self.failed}",
                flush=True,
            )

    async def gauges(self):
        """Figures of /metrics that are of this moment, and how often engines began anew."""
        answer = await ask(self.server.life.port, request("GET", "/metrics"))
        lines = [line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if line[:1] != "#"]
        figures = {name: float(value) for name, value in lines}
        names = ("percept_requests_running", "percept_requests_waiting", "percept_cache_pages_used")
        busy = {name: value for name, value in figures.items() if name.startswith(names) and value}
        # The one that asks is one.
        if figures["percept_connections"] > 1:
            busy["percept_connections"] = figures["percept_connections"]
        return busy, {name: value for name, value in figures.items() if "restarts_total" in name and value}

    async def rest(self):
        """All clients have gone: everything goes back to where it was."""
        until, busy, restarts = now() + self.options.rest, True, {}
        if not self.options.no_batches:
            try:
                async with asyncio.timeout(self.options.rest):
                    await Batches(self, 0).clear()
            except (Wrong, TimeoutError) as error:
                self.fail(f"files and batches that are left cannot be deleted: {error!r}")
        while busy and now() < until:
            busy, restarts = await self.gauges()
            await asyncio.sleep(0.5)
        if busy:
            self.fail(f"it does not come to rest: {busy}")
        if restarts:
            self.fail(f"an engine failed and began anew: {restarts}")
        # What ends with a connection ends a moment after it.
        await asyncio.sleep(2)
        life, opened = self.server.life, self.server.life.open_files()
        first = self.server.lives[0].descriptors
        self.figures |= {"descriptors": {"at the start": first, "at rest": len(opened)}}
        if len(opened) > first + 4:
            self.fail(f"{first} descriptors were open, now there are {len(opened)}: {opened}")
        self.check_memory(life)
        status = await self.server.stop()
        if status != 0:
            self.fail(f"it ended with {status} when it was asked to stop")

    def check_memory(self, life):
        """Memory of the last life: no slope under load after its first third, and at rest what it was then."""
        loaded = [(at, size) for at, size in life.resident if at < self.over_at]
        loaded = [(at, size) for at, size in loaded if at > life.ready + (self.over_at - life.ready) / 3]
        if not loaded:
            return
        at_rest = life.status("VmRSS:")
        warm = sorted(size for _, size in loaded[: len(loaded) // 4 + 1])[len(loaded) // 8]
        seconds = loaded[-1][0] - loaded[0][0]
        self.figures["memory of the last life, MiB"] = {
            "seconds under load": round(self.over_at - life.ready),
            "after a third": round(warm / MEBIBYTE, 1),
            "at the end of load": round(loaded[-1][1] / MEBIBYTE, 1),
            "at rest": round(at_rest / MEBIBYTE, 1),
            "peak": round(life.status("VmHWM:") / MEBIBYTE, 1),
            "slope, a minute": round(slope(loaded) * 60 / MEBIBYTE, 2),
        }
        peaks = [max(size for _, size in life.resident) for life in self.server.lives if life.resident]
        self.figures["largest of each life, MiB"] = [round(size / MEBIBYTE, 1) for size in peaks]
        # Shorter ones are about what allocators keep, not about leaks.
        if seconds < 60:
            return
        if slope(loaded) * 60 > self.options.slope * MEBIBYTE:
            self.fail(f"memory grows under load: {self.figures['memory of the last life, MiB']}")
        if at_rest > warm + self.options.growth * MEBIBYTE:
            self.fail(f"memory does not come back: {self.figures['memory of the last life, MiB']}")

    def check_end(self):
        """What is on the disk when the server has ended."""
        if left := os.listdir(self.server.temporary):
            self.fail(f"temporary files are left: {left[:20]}")
        kept = self.server.files / "files"
        if kept.exists() and (left := os.listdir(kept)):
            self.fail(f"{len(left)} files are left that no list has: {left[:5]}")
        log = self.server.log.read_text(errors="replace")
        for line in log.splitlines():
            if "panic" in line.lower():
                self.fail(f"the log: {line}")
        self.figures["errors in the log"] = sum(" ERROR " in line for line in log.splitlines())
        command = [self.options.percept, "audit", "verify", "--audit", str(self.server.audit)]
        verified = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if verified.returncode:
            self.fail(f"the audit log: {verified.stdout}{verified.stderr}")
        self.check_audit()

    def check_audit(self):
        """Each answer is in the audit log once, but for the last moments before a kill."""
        written = collections.Counter()
        for file in sorted(self.server.audit.glob("*.jsonl")):
            with open(file) as lines:
                for line in map(json.loads, lines):
                    if line.get("event") == "request":
                        written[line["id"]] += 1
        self.figures["lines of the audit log"] = written.total()
        if twice := [name for name, count in written.items() if count > 1]:
            self.fail(f"{len(twice)} requests are twice in the audit log: {twice[:3]}")
        last, lost = self.server.life.port, 0
        kills = {life.port: life.ended for life in self.server.lives}
        for name, (at, port) in self.ids.items():
            if name not in written:
                lost += 1
                if port == last or at < kills[port] - AUDIT_LAG:
                    self.fail(f"{name} was answered and is not in the audit log")
        self.figures["answers whose line of the audit log was lost in a kill"] = lost


def slope(points):
    """Least squares: how much y grows with x."""
    middle = sum(x for x, _ in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * y for x, y in points) / spread if spread else 0.0


def summary(chaos, seconds):
    life = [(life.ready - life.began) for life in chaos.server.lives if life.ready]
    return {
        "passed": not chaos.failed,
        "failures": chaos.failed,
        "first failures": chaos.failures,
        "command": shlex.join(sys.argv),
        "percept": subprocess.run(
            [chaos.options.percept, "--version"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "seed": chaos.options.seed,
        "clients": chaos.options.clients,
        "seconds": round(seconds),
        "kills": chaos.kills,
        "seconds to be ready again": [round(each, 1) for each in life],
        "requests": sum(outcomes.total() for outcomes in chaos.outcomes.values()),
        "longest, seconds": round(chaos.longest, 1),
        "outcomes": {
            name: dict(sorted(outcomes.items())) for name, outcomes in sorted(chaos.outcomes.items())
        },
        "batches": dict(chaos.batches),
        "lines of batches": dict(chaos.lines),
        "answers compared with equal requests": chaos.compared,
        **chaos.figures,
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = os.environ.get("PERCEPT", "percept")
    parser.add_argument("--percept", default=default, help="the program [default: $PERCEPT]")
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument(
        "--batch-clients", type=int, default=3, help="of them besides, each with a batch at a time"
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--seed", type=int, default=0, help="what clients do; when the server does it is not fixed"
    )
    parser.add_argument(
        "--kill-every", type=float, default=60, help="seconds, from half to one and a half of it"
    )
    parser.add_argument(
        "--think", type=float, default=2, help="seconds between requests of a client, on average"
    )
    parser.add_argument("--deadline", type=float, default=150, help="seconds after which a request hangs")
    parser.add_argument(
        "--rest", type=float, default=180, help="seconds until everything must have come to rest"
    )
    parser.add_argument("--slope", type=float, default=8, help="MiB a minute that memory may grow under load")
    parser.add_argument("--growth", type=float, default=48, help="MiB that memory may have grown at rest")
    parser.add_argument("--no-batches", action="store_true")
    parser.add_argument(
        "--folder", type=Path, help="for the server's log and folders, kept [default: one that is removed]"
    )
    parser.add_argument("--json", type=Path, help="a file for the summary")
    options = parser.parse_args()
    options.models = [f"{name}={FIXTURES / name}" for name in ("llava", "whisper")]
    return options


async def main(options):
    folder = options.folder or Path(tempfile.mkdtemp(prefix="percept-chaos-"))
    chaos = Chaos(options, folder)
    running = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        # Every wait in it has an end; this is for what nobody thought of.
        async with asyncio.timeout(options.seconds + 2 * options.deadline + 3 * options.rest + 300):
            await chaos.run()
    except (Failed, Cut, OSError, TimeoutError) as error:
        chaos.fail(f"the run broke off: {error!r}")
    finally:
        chaos.server.end_by_force()
    result = summary(chaos, now() - chaos.began)
    print(json.dumps({name: value for name, value in result.items() if name != "first failures"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    for failure in chaos.failures:
        print(f"FAILED {failure}")
    if chaos.failed:
        print(f"{chaos.failed} failures; the server's log and folders are in {folder}")
    elif not options.folder:
        shutil.rmtree(folder)
    return int(bool(chaos.failed))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(arguments())))
