"""The server's description of its own API, held against the standard and against what the server does."""

import json

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from conftest import FIXTURES
from test_openai import CASES, messages

RECORDING = FIXTURES / "inputs/speechlike_3s.wav"


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(server.removesuffix("/v1") + "/openapi.json").json()


@pytest.fixture(scope="module")
def check(document):
    """Whether something is as the description of a request or an answer says."""

    def check(value, operation, *place, media="application/json"):
        found = document["paths"][operation[1]][operation[0]]
        for name in place:
            found = found[name]
        if "$ref" in found:
            found = document["components"]["responses"][found["$ref"].rsplit("/", 1)[1]]
        schema = {**found["content"][media]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    return check


CHAT = ("post", "/v1/chat/completions")
SPEECH = ("post", "/v1/audio/transcriptions")


def pieces(text):
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_it_is_valid(document):
    assert document["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document)


def test_it_describes_chat(server, check):
    body = {"model": "llava", "messages": messages(CASES[0]), "max_tokens": 3, "temperature": 0}
    check(body, CHAT, "requestBody")
    answer = httpx.post(f"{server}/chat/completions", json=body)
    check(answer.json(), CHAT, "responses", "200")
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    check(body, CHAT, "requestBody")
    chunks = pieces(httpx.post(f"{server}/chat/completions", json=body).text)
    assert len(chunks) > 3
    for chunk in chunks:
        check(chunk, CHAT, "responses", "200", media="text/event-stream")


WRONG = [
    {"temperature": 3},
    {"messages": "hello"},
    {"top_p": "much"},
    {"messages": [{"role": "user", "content": 1}]},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_it_forbids_is_refused(server, check, wrong):
    body = {"model": "llava", "messages": [{"role": "user", "content": "hello"}]}
    check(body, CHAT, "requestBody")
    with pytest.raises(jsonschema.ValidationError):
        check(body | wrong, CHAT, "requestBody")
    answer = httpx.post(f"{server}/chat/completions", json=body | wrong)
    assert answer.status_code == 400
    check(answer.json(), CHAT, "responses", "400")


def test_it_describes_transcripts(speech_server, check):
    def ask(**fields):
        with RECORDING.open("rb") as file:
            fields = {"model": "whisper", **fields}
            answer = httpx.post(f"{speech_server}/audio/transcriptions", data=fields, files={"file": file})
        assert answer.status_code == 200, answer.text
        return answer

    for response_format in ["json", "verbose_json"]:
        fields = {"response_format": response_format, "include": "logprobs"}
        fields = fields if response_format == "json" else {**fields, "include": ""}
        check(ask(**fields).json(), SPEECH, "responses", "200")
        for piece in pieces(ask(**fields, stream="true").text):
            check(piece, SPEECH, "responses", "200", media="text/event-stream")
    for response_format in ["text", "vtt", "tsv"]:
        media = ask(response_format=response_format).headers["content-type"].split(";")[0]
        check("", SPEECH, "responses", "200", media=media)


def test_it_describes_the_rest(server, check):
    models = httpx.get(f"{server}/models").json()
    check(models, ("get", "/v1/models"), "responses", "200")
    check(models["data"][0], ("get", "/v1/models/{model}"), "responses", "200")
    check(httpx.get(f"{server}/models/none").json(), ("get", "/v1/models/{model}"), "responses", "404")
    health = httpx.get(server.removesuffix("/v1") + "/health").json()
    check(health, ("get", "/health"), "responses", "200")
