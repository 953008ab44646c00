"""Clients of all manners: what works, what leaves, what is slow and what is wrong."""

import asyncio
import contextlib
import json
import random
import socket

from chaos.connection import Answer, Connection, Cut, Wrong, check_error, form, post, request
from chaos.questions import chat_text, data_url
from chaos.server import BODY_LIMIT, now

NOT_AUDITED = {"/health", "/live", "/metrics"}


class Client:
    """A client that does one thing after the other: the methods that DOES names.

    Each returns a word for what came of it, or raises what the server did wrong."""

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
        if answer.status == (529 if anthropic else 429):
            if int(answer.headers.get("retry-after", 0)) < 1:
                raise Wrong(f"a full queue without Retry-After: {answer.headers}")
            return "queue full"
        if answer.status >= 500 and self.chaos.server.outage(began):
            return "unavailable around a kill"
        raise Wrong(f"{answer.status}, not {allowed}: {answer.body[:300]!r}")

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
        if self.random.random() < 0.5:
            files = [("file", "a.wav", self.chaos.questions.sound)]
            path = self.random.choice(["/v1/audio/transcriptions", "/v1/files"])
            data = form(path, {"model": "whisper", "purpose": "user_data"}, files)
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
            connection.set(socket.SO_RCVBUF, 2048)
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

    async def until_closed(self, connection):
        """Waits until the server closes a connection, or the run is over; says which."""
        closed = asyncio.ensure_future(connection.until_closed())
        over = asyncio.ensure_future(self.chaos.over.wait())
        await asyncio.wait([closed, over], return_when=asyncio.FIRST_COMPLETED)
        outcome = "closed" if closed.done() else "left"
        over.cancel()
        closed.cancel()
        await asyncio.gather(closed, over, return_exceptions=True)
        return outcome

    async def begins_a_head(self):
        """A head that does not end, or nothing at all: the connection is closed after 10 seconds."""
        async with Connection(self.port) as connection:
            if self.random.random() < 0.5:
                await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc")
            return await self.until_closed(connection)

    async def stays_connected(self):
        """A connection that is kept and not used: it is closed after 15 seconds."""
        async with Connection(self.port) as connection:
            data = request("GET", "/live").replace(b"connection: close\r\n", b"", 1)
            await connection.send(data)
            await connection.answer()
            return await self.until_closed(connection)

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
            [whole[: len(whole) // 3], b"", b"GIF89a", questions.huge_picture, bytes(broken)]
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
    "transcription": 3,
    "small_questions": 6,
    "count_tokens": 3,
    "many_on_one_connection": 4,
    "leaves_at_once": 2,
    "leaves_while_sending": 4,
    "leaves_before_the_answer": 4,
    "leaves_in_the_stream": 5,
    "leaves_a_transcription": 1,
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
