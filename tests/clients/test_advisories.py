"""What was found in other servers, tried on this one: a test for each row of docs/security.md that no Rust
test has already. Servers are asked as anybody can ask them."""

import base64
import io
import json
import os
import re
import socket
import struct
import subprocess
import threading
import wave
import zlib
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from conftest import FIXTURES, launch

# A hang fails; how fast a busy machine is does not matter.
http = httpx.Client(timeout=300)
PICTURE = (FIXTURES / "inputs/tiny_31x17.png").read_bytes()
FAMILIES = [
    "llava",
    "llava_next",
    "phi3_v",
    "internvl2",
    "pixtral",
    "mllama",
    "qwen2_vl",
    "qwen2_5_vl",
    "smolvlm",
]


class Canary:
    """A server that nobody should reach, or only where it says so: it keeps what it was asked."""

    def __init__(self):
        self.heads = []
        self.redirect = None
        canary = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                canary.heads.append(
                    (self.path, {name.lower(): value for name, value in self.headers.items()})
                )
                canary.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.there = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = request.path.split("?")[0]
        if path == "/picture":
            self.send(request, 200, PICTURE)
        elif path == "/away":
            self.send(request, 302, b"", {"Location": self.redirect, "Set-Cookie": "a=b"})
        elif path == "/endless":
            self.stream(request, b"x" * (1 << 16), None)
        elif path == "/lies":
            self.stream(request, b"x" * (1 << 16), 10 << 30)
        elif path == "/drips":
            self.stream(request, b"x", None, pause=0.5)
        else:
            self.send(request, 404, b"secret of the canary")

    @staticmethod
    def send(request, status, body, headers=None):
        request.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    def stream(self, request, piece, length, pause=0):
        request.send_response(200)
        if length:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        try:
            # Nobody gets so much.
            for _ in range(4000):
                request.wfile.write(piece)
                self.sent = getattr(self, "sent", 0) + len(piece)
                if pause:
                    threading.Event().wait(pause)
        except OSError:
            pass


@pytest.fixture(scope="module")
def canary():
    """Where nobody may go."""
    return Canary()


@pytest.fixture(scope="module")
def allowed():
    """Where the server may go."""
    return Canary()


@contextmanager
def serving(*arguments):
    with launch(*arguments) as (url, process):
        yield SimpleNamespace(url=url, root=url.removesuffix("/v1"), process=process)


SEES = f"llava={FIXTURES / 'llava'}"
HEARS = f"whisper={FIXTURES / 'whisper'}"


@pytest.fixture(scope="module")
def percept():
    """It sees and hears, and fetches nothing."""
    limits = ["--max-context", "1024", "--max-audio-bytes", "2MB", "--max-audio-seconds", "600"]
    with serving(SEES, HEARS, *limits) as server:
        yield server


@pytest.fixture(scope="module")
def fetching():
    """It fetches what is public."""
    with serving(SEES, "--fetch", "public", "--max-context", "1024") as server:
        yield server


@pytest.fixture(scope="module")
def listed(allowed):
    """It fetches from one place, which is on this machine."""
    with serving(SEES, "--fetch", f"{allowed.there},ok.test", "--max-context", "1024") as server:
        yield server


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """It has two tenants."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    names = ["one", "other"]
    add = [os.environ["PERCEPT"], "keys", "add", "--keys", str(file)]
    keys = [
        subprocess.run([*add, name], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    with serving(SEES, "--keys", str(file), "--max-context", "1024") as server:
        server.keys = keys
        yield server


def say(content, **more):
    return {"model": "llava", "messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def ask(server, body, path="/chat/completions", **more):
    return http.post(server.url + path, json=body, **more)


def data_url(file, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def looks(server, file):
    """What comes of a picture."""
    return ask(server, say([image(data_url(file)), {"type": "text", "text": "a"}]))


def refused(answer, code=None, status=400):
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert code is None or error.get("code") == code, answer.text
    return error["message"]


def still_there(server):
    """Whatever came before has harmed nobody."""
    answer = ask(server, say("hello"), headers=getattr(server, "headers", None))
    assert answer.status_code == 200, answer.text


def with_picture_at(url):
    """The same picture behind a URL, in each API that takes one."""
    chat = say([image(url), {"type": "text", "text": "a"}])
    block = {"type": "image", "source": {"type": "url", "url": url}}
    message = say([block, {"type": "text", "text": "a"}])
    part = {"type": "input_image", "image_url": url}
    response = {"model": "llava", "input": [{"role": "user", "content": [part]}], "max_output_tokens": 2}
    return {
        "/chat/completions": chat,
        "/messages": message,
        "/messages/count_tokens": message,
        "/responses": response,
    }


def private(port):
    return [
        f"http://127.0.0.1:{port}/picture",
        f"http://localhost:{port}/picture",
        f"http://LOCALHOST:{port}/picture",
        f"http://percept.local:{port}/picture",
        f"http://[::1]:{port}/picture",
        f"http://0.0.0.0:{port}/picture",
        f"http://0:{port}/picture",
        f"http://127.1:{port}/picture",
        f"http://2130706433:{port}/picture",
        f"http://0x7f000001:{port}/picture",
        f"http://0177.0.0.1:{port}/picture",
        f"http://127.0.0.1.:{port}/picture",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/picture",
        "http://192.168.0.1/picture",
        "http://100.64.0.1/picture",
    ]


def test_s1_addresses_of_the_inside_are_not_fetched(fetching, percept, canary):
    for server in [fetching, percept]:
        for url in private(canary.port):
            answer = ask(server, with_picture_at(url)["/chat/completions"])
            message = refused(answer, "invalid_image_url")
            assert "secret" not in message
    assert canary.heads == []
    still_there(fetching)


def test_s2_redirects_are_checked_like_the_first_address(listed, allowed, canary):
    for target in [
        f"http://{canary.there}/picture",
        f"http://localhost:{allowed.port}/picture",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "//[::1]/picture",
        "gopher://127.0.0.1:1/",
        f"http://{allowed.there}/away",
    ]:
        allowed.redirect = target
        body = with_picture_at(f"http://{allowed.there}/away")["/chat/completions"]
        message = refused(ask(listed, body), "invalid_image_url")
        assert "root:" not in message and "secret" not in message
    assert canary.heads == []
    # What it may, it does.
    allowed.redirect = "/picture"
    assert ask(listed, body).status_code == 200


def confusing(here, there):
    return [
        f"http://{here}\\@{there}/picture",
        f"http://{here}#@{there}/picture",
        f"http://{here}?@{there}/picture",
        f"http://{here}@{there}/picture",
        f"http://a:b@{there}/picture",
        f"http://ok.test\\@{there}/picture",
        f"http://ok.test%2f@{there}/picture",
        f"http://{there}\t/picture",
        f"\thttp://{there}/picture",
        f"ht\ntp://{there}/picture",
        f"http:/{there}/picture",
        f"http:\\\\{there}\\picture",
        f"http://{there.replace('.', '。')}/picture",
        f"http://{there.replace('1', chr(0xFF11))}/picture",
        f"http://ok.test:80@{there}/picture",
        f"http://{there}/picture#{here}",
    ]


def test_s3_no_way_of_writing_a_url_leads_elsewhere(listed, allowed, canary):
    for url in confusing(allowed.there, canary.there):
        answer = ask(listed, with_picture_at(url)["/chat/completions"])
        assert answer.status_code == 400, url
    assert canary.heads == []


def test_s4_every_api_fetches_by_the_same_rules(fetching, listed, allowed, canary):
    allowed.redirect = f"http://{canary.there}/picture"
    urls = [(fetching, url) for url in private(canary.port)[:9]]
    urls += [
        (listed, url) for url in [f"http://{allowed.there}/away", *confusing(allowed.there, canary.there)]
    ]
    for server, url in urls:
        for path, body in with_picture_at(url).items():
            answer = ask(server, body, path)
            assert answer.status_code == 400, (path, url, answer.text)
    document = {"type": "document", "source": {"type": "url", "url": f"http://{canary.there}/picture"}}
    for path in ["/messages", "/messages/count_tokens"]:
        assert ask(fetching, say([document]), path).status_code == 400
    assert canary.heads == []
    # They all do fetch.
    for path, body in with_picture_at(f"http://{allowed.there}/picture").items():
        assert ask(listed, body, path).status_code == 200, path


def test_s5_errors_tell_no_address(fetching, listed, canary):
    for server in [fetching, listed]:
        for url in [f"http://localhost:{canary.port}/picture", "http://no.such.host.invalid/a.png"]:
            message = refused(ask(server, with_picture_at(url)["/chat/completions"]), "invalid_image_url")
            assert not re.search(r"\d+\.\d+\.\d+\.\d+|::", message), message


def test_s6_addresses_inside_addresses_are_seen(fetching, canary):
    for host in [
        "localhost.",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00::1]",
    ]:
        body = with_picture_at(f"http://{host}:{canary.port}/picture")["/chat/completions"]
        refused(ask(fetching, body), "invalid_image_url")
    assert canary.heads == []


def test_s7_no_field_sends_a_request_elsewhere(fetching, canary):
    names = ["api_base", "base_url", "api_key", "endpoint", "proxy", "webhook", "callback_url", "api_version"]
    answer = ask(fetching, say("hello", **{name: f"http://{canary.there}" for name in names}))
    assert answer.status_code == 200
    assert canary.heads == []


def test_s8_no_request_brings_a_model(percept):
    for path in [
        "/v1/models",
        "/v1/models/apply",
        "/models/apply",
        "/api/pull",
        "/api/create",
        "/v1/load_lora_adapter",
    ]:
        for body in [{"name": "a", "url": "file:///etc/passwd"}, {"model": "http://127.0.0.1:1/a"}]:
            answer = http.post(percept.root + path, json=body)
            assert answer.status_code in [404, 405], path
    for model in [
        "file:///etc/passwd",
        "/etc/passwd",
        "../llava",
        "http://127.0.0.1:1/a",
        "llava-hf/llava-1.5-7b-hf",
    ]:
        refused(ask(percept, say("a") | {"model": model}), "model_not_found", 404)


def test_s9_what_is_fetched_is_asked_for_without_credentials(listed, allowed):
    allowed.heads.clear()
    allowed.redirect = "/picture"
    url = f"http://{allowed.there}/away"
    headers = {
        "authorization": "Bearer secret",
        "x-api-key": "secret",
        "cookie": "secret=1",
        "referer": "http://a",
    }
    assert ask(listed, with_picture_at(url)["/chat/completions"], headers=headers).status_code == 200
    assert [path for path, _ in allowed.heads] == ["/away", "/picture"]
    for _, head in allowed.heads:
        assert not {"authorization", "x-api-key", "cookie", "referer"} & head.keys(), head
        assert "secret" not in str(head) and "a=b" not in str(head)


def test_s10_files_of_the_machine_are_nobodys(fetching):
    there = FIXTURES / "inputs/tiny_31x17.png"
    for url in [
        f"file://{there}",
        f"file://localhost{there}",
        f"FILE://{there}",
        str(there),
        f"//{there}",
        f"..{there}",
        "tests/fixtures/inputs/tiny_31x17.png",
        f"http://localhost/../..{there}",
        f"local:{there}",
        f"data:image/png;file,{there}",
    ]:
        for path, body in with_picture_at(url).items():
            assert ask(fetching, body, path).status_code == 400, (path, url)


def test_s11_what_has_no_end_is_given_up(listed, allowed):
    # At once, since dripping takes its time.
    answers = {}

    def look(path):
        answers[path] = ask(listed, with_picture_at(f"http://{allowed.there}{path}")["/chat/completions"])

    threads = [threading.Thread(target=look, args=(path,)) for path in ["/endless", "/lies", "/drips"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers.values():
        refused(answer, "invalid_image_url")
    assert allowed.sent < 100 << 20
    allowed.heads.clear()
    text = f"![a](http://{allowed.there}/picture) <img src='http://{allowed.there}/picture'>"
    for path, body in with_picture_at("").items():
        body = say(text) if "input" not in body else {**body, "input": text}
        assert ask(listed, body, path).status_code == 200
    assert allowed.heads == []


def png(width, height, rows=None):
    """A PNG of RGB; without rows it claims what it has not."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"" if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def plain(width, height, value=128):
    return png(width, height, (b"\0" + bytes([value]) * (3 * width)) * height)


def gif(width, height, frames=1):
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    # A picture of one pixel.
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame * frames + b";"


def peak(server):
    """The most memory that it ever had, in bytes."""
    with open(f"/proc/{server.process}/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def test_s12_pictures_that_grow_are_refused_by_their_heads(percept):
    looks(percept, PICTURE)
    before = peak(percept)
    # Zeros of 400 megabytes, which are 400 kilobytes.
    bomb = png(20_000, 6_700, b"\0" * (60_001 * 6_700))
    for file in [png(50_000, 50_000), png(1, 2**31 - 1), gif(65_535, 65_535), bomb]:
        refused(looks(percept, file))
    for file in [
        b"SIMPLE  =                    T" + b" " * 2850,
        b"II*\0\x08\0\0\0" + b"\0" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'/>",
        b"%PDF-1.7\n",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    ]:
        refused(looks(percept, file), "invalid_image_format")
    # Of many frames, one is looked at.
    assert looks(percept, gif(8, 8, 10_000)).status_code == 200
    assert peak(percept) - before < 64 << 20
    still_there(percept)


@pytest.fixture(scope="module")
def families():
    models = [f"{name}={FIXTURES / name}" for name in FAMILIES]
    with serving(*models, "--max-context", "4096", "--memory", "2GiB") as server:
        yield server


@pytest.mark.parametrize("model", FAMILIES)
def test_s13_the_smallest_pictures_are_pictures(families, model):
    for width, height in [(1, 1), (1, 64), (64, 1), (3, 3), (2, 700)]:
        body = say([image(data_url(plain(width, height))), {"type": "text", "text": "a"}]) | {"model": model}
        answer = ask(families, body)
        # Some say in words what they cannot do.
        assert answer.status_code in [200, 400], f"{width}x{height}: {answer.text}"
        assert answer.status_code == 200 or (width, height) != (3, 3)
    # And the next one is answered as ever.
    assert ask(families, say("a") | {"model": model}).status_code == 200


INSIDE = re.compile(
    r"0x[0-9a-f]{4}|/(root|home|usr|tmp|src|work|build|\.cargo)/|\.rs\b|panicked|RUST_|unwrap"
)


def test_s14_errors_tell_nothing_of_the_inside(percept):
    bodies = [
        say([image(data_url(b"GIF89a"))]),
        say([image(data_url(PICTURE[:60]))]),
        say([image("file:///etc/passwd")]),
        say(
            "a",
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "b"}}},
        ),
        say("a", guided_regex="(a"),
        say("a", guided_grammar="start: b"),
        say("a", temperature="x"),
        say("a" * 100_000),
        {"model": "/etc/passwd", "messages": []},
    ]
    answers = [ask(percept, body) for body in bodies]
    raw = {"content-type": "application/json"}
    answers += [
        http.post(f"{percept.url}/chat/completions", content=text, headers=raw) for text in ["{", "", "[1"]
    ]
    answers += [
        transcribe(percept, file) for file in [b"", b"RIFF", b"fLaC" + b"\xff" * 99, b"OggS" + b"\0" * 99]
    ]
    answers += [
        http.get(percept.root + path) for path in ["/v1/none", "/etc/passwd", "/ui/../../etc/passwd", "/%00"]
    ]
    assert len(answers) > 15
    for answer in answers:
        assert 400 <= answer.status_code < 500, answer.text
        assert not INSIDE.search(answer.text), answer.text


def test_s15_there_are_so_many_pictures(percept):
    refused(ask(percept, say([image(data_url(PICTURE))] * 17)), "array_above_max_length")
    frames = ",".join([base64.b64encode(PICTURE).decode()] * 3000)
    for part in [
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}},
        image(f"data:image/jpeg;base64,{frames}"),
        {"type": "video", "video": [data_url(PICTURE)] * 3000},
    ]:
        refused(ask(percept, say([part])))
    still_there(percept)


def transcribe(server, file, name="a.wav", **fields):
    form = {"model": "whisper", "temperature": "0", **fields}
    return http.post(f"{server.url}/audio/transcriptions", data=form, files={"file": (name, file)})


def sound(seconds=0.1):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", None))
        out.writeframes(b"\x00\x10\x00\xf0" * int(8000 * seconds))
    return file.getvalue()


def crc(data, width, polynomial):
    value, top = 0, 1 << (width - 1)
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value & top else 0)
        value &= (1 << width) - 1
    return value


def flac(rate, channels, blocks, total=0):
    """A FLAC of silence: blocks of 65,535 samples, each in a few bytes; its head says what it is told to."""
    info = struct.pack(">HH", 65_535, 65_535) + bytes(6)
    info += ((rate << 44) | ((channels - 1) << 41) | (15 << 36) | total).to_bytes(8, "big") + bytes(16)
    file = b"fLaC\x80" + len(info).to_bytes(3, "big") + info
    for block in range(blocks):
        # Fixed blocks, their size in 16 bits, the rate as the head has it; the channels; 16 bits.
        head = b"\xff\xf8\x70" + bytes([(channels - 1) << 4 | 0x08]) + chr(block).encode() + b"\xff\xfe"
        head += bytes([crc(head, 8, 0x07)])
        frame = head + b"\0\0\0" * channels
        file += frame + crc(frame, 16, 0x8005).to_bytes(2, "big")
    return file


def test_s16_recordings_that_grow_are_given_up(percept):
    transcribe(percept, sound())
    assert transcribe(percept, flac(8_000, 1, 2)).status_code == 200
    before = peak(percept)
    # Nine hours in 64 kilobytes, of which nothing is said in front.
    bomb = flac(8_000, 1, 4_000)
    assert len(bomb) < 80_000
    for file in [bomb, flac(8_000, 8, 1_200), flac(655_350, 8, 3, total=2**36 - 1)]:
        answer = transcribe(percept, file)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "file", answer.text
        part = {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(file).decode(), "format": "flac"},
        }
        refused(ask(percept, say([part])))

    def endless():
        form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        yield form + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(2000):
            yield bytes(1 << 20)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    try:
        answer = http.post(f"{percept.url}/audio/transcriptions", content=endless(), headers=headers)
        assert answer.status_code == 413
    except httpx.TransportError:
        # It hung up before all was sent, as it may.
        pass
    assert peak(percept) - before < 160 << 20
    assert transcribe(percept, sound()).status_code == 200


NAMES = [
    "a.wav;id",
    "$(id).wav",
    "`id`.wav",
    "-i x.wav",
    "a.wav\nx: y",
    "a\r\n\r\n.wav",
    "| touch owned",
    "a" * 10_000 + ".wav",
    "concat:a|b.wav",
    "pipe:0",
]


def test_s18_a_filename_is_no_command(percept, tmp_path):
    marker = tmp_path / "owned"
    for name in [*NAMES, f"$(touch {marker}).wav", f"a.wav; touch {marker}"]:
        assert transcribe(percept, sound(), name).status_code == 200, name
    assert not marker.exists()


def test_s19_numbers_have_limits_before_anything_is_made_for_them(percept):
    many = 10**9
    before = peak(percept)
    for field, expected in [
        ("n", 400),
        ("top_logprobs", 400),
        ("max_tokens", 200),
        ("max_completion_tokens", 200),
    ]:
        answer = ask(percept, say("a", **{field: many, "stop": ["a", "e", "i", "o"]}))
        assert answer.status_code == expected, (field, answer.text)
    for field in ["n", "best_of", "logprobs"]:
        body = {"model": "llava", "prompt": "a", "max_tokens": 2, field: many}
        refused(ask(percept, body, "/completions"))
    for field in ["best_of", "beam_size"]:
        answer = transcribe(percept, sound(), **{field: str(many)})
        assert answer.status_code == 400, answer.text
    assert peak(percept) - before < 64 << 20


def test_s20_no_number_is_too_strange(percept):
    description = http.get(f"{percept.root}/openapi.json").json()
    schemas = description["components"]["schemas"]
    base = {
        "/chat/completions": ("ChatRequest", say("a")),
        "/completions": ("CompletionRequest", {"model": "llava", "prompt": "a", "max_tokens": 2}),
        "/responses": ("ResponsesRequest", {"model": "llava", "input": "a", "max_output_tokens": 2}),
        "/messages": ("MessagesRequest", say("a")),
    }
    strange = [
        "-1",
        "-9223372036854775808",
        "9223372036854775808",
        "18446744073709551616",
        "1e400",
        "-1e400",
        "NaN",
    ]
    strange += ["1e-400", "-0.0", "Infinity", "0.1e1", "1" * 400, '"1"', "true", "[]", "{}"]
    tried = 0
    for path, (schema, body) in base.items():
        for field, kind in schemas[schema]["properties"].items():
            kinds = kind.get("type", [])
            if not {"integer", "number"} & set([kinds] if isinstance(kinds, str) else kinds):
                continue
            body_of_field = {name: value for name, value in body.items() if name != field}
            for value in strange:
                # json.dumps writes none of these.
                text = json.dumps(body_of_field)[:-1] + f', "{field}": {value}}}'
                headers = {"content-type": "application/json"}
                answer = http.post(percept.url + path, content=text, headers=headers)
                assert answer.status_code in [200, 400], f"{path} {field}={value}: {answer.text}"
                tried += 1
    assert tried > 300, tried
    for value in ["-1", "NaN", "1e400", "9" * 400]:
        for field in ["temperature", "best_of", "beam_size", "seed", "max_new_tokens", "patience"]:
            assert transcribe(percept, sound(), **{field: value}).status_code in [200, 400], (field, value)
    still_there(percept)


def with_schema(schema):
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    return say("a", response_format=form, max_tokens=8)


def test_s21_and_s22_forms_that_do_harm_elsewhere_end(percept):
    deep = {"type": "string"}
    for _ in range(40):
        deep = {"oneOf": [deep, {"type": "integer"}]}
    itself = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    mutual = {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
    }
    tree = {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/a"}}}},
    }
    many = {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(3000)}}
    words = {"enum": [f"{'x' * 20}{at}" for at in range(5000)]}
    schemas = [
        deep,
        itself,
        mutual,
        tree,
        many,
        words,
        {"type": "potato"},
        {"pattern": "(a+)+b", "type": "string"},
    ]
    schemas += [
        {"type": "string", "pattern": "(" * 10_000 + ")" * 10_000},
        {"type": "string", "pattern": "a{1000000}"},
    ]
    schemas += [
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "minLength": 10**9},
        {"$ref": "http://a/b"},
    ]
    schemas += [
        {"type": "array", "minItems": 10**9},
        {"$ref": "file:///etc/passwd"},
        {"type": "integer", "minimum": "a"},
    ]
    for schema in schemas:
        answer = ask(percept, with_schema(schema))
        assert answer.status_code in [200, 400], answer.text
        tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": schema}}}
        for path, tools in [
            ("/messages", [tool]),
            (
                "/chat/completions",
                [{"type": "function", "function": {"name": "f", "parameters": tool["input_schema"]}}],
            ),
        ]:
            answer = ask(percept, say("a", tools=tools, max_tokens=8), path)
            assert answer.status_code in [200, 400], answer.text
        still_there(percept)
    for field, texts in {
        "guided_regex": [
            "(" * 10_000 + ")" * 10_000,
            "(a+)+b",
            "(a|a)*c",
            "((a{100}){100}){100}",
            "\\1",
            "[",
        ],
        "guided_grammar": [
            "start: " + "(" * 10_000 + '"a"' + ")" * 10_000,
            "start: start",
            "start: start start",
            "",
        ],
    }.items():
        for text in texts:
            answer = ask(percept, say("a", **{field: text}, max_tokens=8))
            assert answer.status_code in [200, 400], answer.text
    still_there(percept)


def test_s25_a_request_brings_no_template(percept):
    hostile = "{% for a in range(10000000) %}{% for b in range(10000000) %}x{% endfor %}{% endfor %}"
    usual = ask(percept, say("hello", temperature=0)).json()
    for fields in [
        {"chat_template": hostile},
        {
            "chat_template": "{{ messages }}",
            "chat_template_kwargs": {"chat_template": hostile, "tokenize": True},
        },
        {"chat_template_kwargs": {"messages": [], "raise_exception": 1, "range": 2, "bos_token": "x"}},
    ]:
        answer = ask(percept, say("hello", temperature=0, **fields))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] == usual["usage"]["prompt_tokens"]
        assert answer.json()["choices"] == usual["choices"]
        assert "chat_template" in answer.headers["x-ignored-params"]


@pytest.mark.parametrize(
    "template",
    [
        # S25: without end.
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x"
        + "{% endfor %}" * 3,
        "{% for a in range(1000000000) %}x{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        # S26: out of the template.
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context }}{{ lipsum.__globals__ }}{{ messages.__class__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.environ }}",
        # S26b: into itself.
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% macro f(a) %}{% for b in range(999) %}{{ f(a) }}{% endfor %}{% endmacro %}{{ f(1) }}",
    ],
)
def test_s25_and_s26_a_models_template_can_do_nothing_but_write(template, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(template + "{% for message in messages %}{{ message.content }}{% endfor %}")
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serving(SEES, "--chat-template", str(file), "--max-context", "1024"))
        except AssertionError:
            # Refused when it was read: then nobody is served by it.
            return
        answer = ask(server, say("hello"))
        assert answer.status_code in [200, 400, 500], answer.text
        assert "uid=" not in answer.text and "root:" not in answer.text and "<class" not in answer.text
        assert peak(server) < 1 << 30
        assert http.get(f"{server.root}/live").status_code == 200


def test_s28_a_part_of_a_key_is_none(keyed):
    key = keyed.keys[0]
    headers = {"authorization": f"Bearer {key}"}
    assert http.get(f"{keyed.url}/models", headers=headers).status_code == 200
    wrong = [key[:length] for length in range(len(key))] + [key + "0", key.upper(), f"{key[:-1]}'", key * 2]
    for other in wrong:
        answer = http.get(f"{keyed.url}/models", headers={"x-api-key": other})
        assert answer.status_code == 401, len(other)
        assert key[-8:] not in answer.text


def figures(server):
    lines = http.get(f"{server.root}/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


def test_s32_who_leaves_takes_nothing_along(percept):
    address = ("127.0.0.1", int(percept.root.rsplit(":", 1)[1]))

    def left(count):
        for at in range(count):
            body = json.dumps(say("tell me", stream=at % 2 == 0, max_tokens=500, ignore_eos=True)).encode()
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            head += f"Content-Length: {len(body)}\r\n\r\n"
            with socket.create_connection(address) as connection:
                connection.sendall((head.encode() + body)[: -1 if at % 5 == 0 else None])
                # Some go when it has begun, which only streams tell.
                if at % 6 == 0 and at % 5:
                    connection.recv(64)

    left(20)
    files = len(os.listdir(f"/proc/{percept.process}/fd"))
    left(120)
    waited = threading.Event()
    for _ in range(600):
        found = figures(percept)
        busy = [
            name
            for name, value in found.items()
            if re.match(r"percept_requests_(running|waiting)\{", name) and value
        ]
        # The one that asks.
        if not busy and found["percept_connections"] <= 1:
            break
        waited.wait(0.1)
    assert not busy and found["percept_connections"] <= 1, (busy, found["percept_connections"])
    pages = {name: value for name, value in found.items() if name.startswith("percept_cache_pages_used")}
    assert pages and not any(pages.values()), pages
    assert len(os.listdir(f"/proc/{percept.process}/fd")) <= files + 2
    still_there(percept)


def test_s33_a_picture_is_its_size_and_its_pixels(percept, fetching):
    # The same bytes in rows of another length.
    pixels = [bytes([value % 251]) * 3 for value in range(56 * 28)]

    def rows(width, height):
        lines = [b"".join(pixels[row * width : (row + 1) * width]) for row in range(height)]
        return png(width, height, b"".join(b"\0" + line for line in lines))

    def probabilities(server, file):
        body = say([image(data_url(file)), {"type": "text", "text": "a"}], logprobs=True, temperature=0)
        return [token["logprob"] for token in ask(server, body).json()["choices"][0]["logprobs"]["content"]]

    wide, high = rows(56, 28), rows(28, 56)
    first = [probabilities(percept, wide), probabilities(percept, high)]
    # Elsewhere in the other order, so that neither has the other's.
    second = [probabilities(fetching, high), probabilities(fetching, wide)]
    assert first[0] == pytest.approx(second[1], abs=1e-4) and first[1] == pytest.approx(second[0], abs=1e-4)
    assert first[0] != pytest.approx(first[1], abs=1e-4)


def test_s33_a_tenant_sees_nothing_of_what_another_asked(keyed):
    prompt = "the secret of the first tenant is long enough for several pages of the cache, " * 4

    def cached(key):
        answer = ask(keyed, say(prompt), headers={"authorization": f"Bearer {key}"})
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    one, other = keyed.keys
    assert cached(one) == 0
    assert cached(one) > 0
    assert cached(other) == 0


def test_s34_no_tensors_come_from_outside(percept):
    embeds = base64.b64encode(b"\x80\x02}q\x00." * 9).decode()
    body = {"model": "llava", "prompt_embeds": embeds, "max_tokens": 2}
    refused(ask(percept, body, "/completions"))
    for kind in ["image_embeds", "audio_embeds", "prompt_embeds"]:
        refused(ask(percept, say([{"type": kind, kind: embeds}])))
    answer = ask(percept, say("a", prompt_embeds=embeds))
    assert answer.status_code == 400 or "prompt_embeds" in answer.headers["x-ignored-params"]


def test_s35_names_are_no_paths(percept):
    names = [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "a%00b",
        "....//",
        "%ff",
        "\\..\\a",
    ]
    for name in [*names, "a" * 5000]:
        for method in ["GET", "DELETE"]:
            for path in ["/v1/models/", "/v1/files/", "/v1/batches/", "/v1/responses/", "/ui/", "/"]:
                head = f"{method} {path}{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                status, body = raw(percept, head.encode())
                assert status in [400, 404, 405], (method, path, name, status)
                assert b"root:" not in body


def raw(server, request):
    address = ("127.0.0.1", int(server.root.rsplit(":", 1)[1]))
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head.startswith(b"HTTP/1") else None, body


def test_s36_a_filename_is_no_path(percept, tmp_path):
    body = sound()
    for name in ["../../owned", "/tmp/owned", "..\\owned", str(tmp_path / "owned"), "a\0b", "x" * 4096, ""]:
        form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b\r\n'
        form += (
            f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
            + body
            + b"\r\n--b--\r\n"
        )
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = http.post(f"{percept.url}/audio/transcriptions", content=form, headers=headers)
        assert answer.status_code in [200, 400], answer.text
    assert list(tmp_path.iterdir()) == []
    # What it writes to has not been given a name by anybody.
    files = [
        os.readlink(f"/proc/{percept.process}/fd/{file}")
        for file in os.listdir(f"/proc/{percept.process}/fd")
    ]
    assert not [file for file in files if "owned" in file]


def test_s37_it_listens_once(percept):
    inodes = set()
    for file in os.listdir(f"/proc/{percept.process}/fd"):
        link = os.readlink(f"/proc/{percept.process}/fd/{file}")
        inodes |= set(re.findall(r"socket:\[(\d+)\]", link))
    listening = []
    for table, state in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")]:
        with open(f"/proc/{percept.process}/net/{table}") as lines:
            rows = [line.split() for line in lines][1:]
        listening += [row[1] for row in rows if row[3] == state and row[9] in inodes]
    assert len(listening) == 1, listening
    assert listening[0] == f"0100007F:{int(percept.root.rsplit(':', 1)[1]):04X}"


def test_s38_what_is_compressed_is_not_unpacked(percept):
    before = peak(percept)
    bomb = zlib.compress(bytes(256 << 20), 9)
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"]:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        for path in ["/chat/completions", "/messages", "/audio/transcriptions"]:
            answer = http.post(percept.url + path, content=bomb, headers=headers)
            assert answer.status_code == 415, (path, encoding, answer.text)
    assert peak(percept) - before < 64 << 20


def test_s39_forms_of_other_pages_are_refused(percept):
    text = json.dumps(say("hello"))
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"]:
        for path in ["/chat/completions", "/messages", "/responses", "/completions"]:
            headers = {"content-type": kind, "origin": "https://evil.example"}
            answer = http.post(percept.url + path, content=text, headers=headers)
            assert answer.status_code in [400, 415], (path, kind)
            assert "set-cookie" not in answer.headers and "access-control-allow-origin" not in answer.headers
    for path in ["/", "/docs", "/v1/models"]:
        assert "set-cookie" not in http.get(percept.root + path).headers


def test_s40_there_is_no_http_2(percept):
    address = ("127.0.0.1", int(percept.root.rsplit(":", 1)[1]))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(preface + b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08" * 1000)
        answer = b""
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except ConnectionError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:100]
    upgrade = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
    status, _ = raw(percept, upgrade + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n")
    assert status == 200
    still_there(percept)
