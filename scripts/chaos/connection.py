"""HTTP with every byte in the hand of the client: whole requests, and connections to be misused."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import struct


class Wrong(Exception):
    """The server answered as it must not."""


class Cut(Exception):
    """The connection ended before the answer did, or was not made."""


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

    def set(self, option, value):
        # A connection that ended by itself has no socket any more.
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, value)

    def reset(self):
        """Leaves without a goodbye: the server gets a reset."""
        self.set(socket.SO_LINGER, struct.pack("ii", 1, 0))
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
