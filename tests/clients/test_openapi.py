"""The server's description of its own API, held against the standard and against what the server does."""

import json

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from conftest import FIXTURES
from test_openai import CASES, data_url, messages

# Busy machines are slow.
http = httpx.Client(timeout=300)
RECORDING = FIXTURES / "inputs/speechlike_3s.wav"


@pytest.fixture(scope="module")
def document(server):
    return http.get(server.removesuffix("/v1") + "/openapi.json").json()


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
RESPONSES = ("post", "/v1/responses")
MESSAGES = ("post", "/v1/messages")
COUNT = ("post", "/v1/messages/count_tokens")
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
    answer = http.post(f"{server}/chat/completions", json=body)
    check(answer.json(), CHAT, "responses", "200")
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    check(body, CHAT, "requestBody")
    chunks = pieces(http.post(f"{server}/chat/completions", json=body).text)
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
    answer = http.post(f"{server}/chat/completions", json=body | wrong)
    assert answer.status_code == 400
    check(answer.json(), CHAT, "responses", "400")


def events(text):
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert len(found) > 6
    return [json.loads(event) for event in found]


def test_it_describes_responses(server, check):
    case = next(case for case in CASES if case["images"])
    parts = [
        {"type": "input_image", "image_url": data_url(case["images"][0]), "detail": "auto"},
        {"type": "input_text", "text": "a"},
    ]
    body = {"model": "llava", "input": [{"role": "user", "content": parts}], "max_output_tokens": 3}
    check(body, RESPONSES, "requestBody")
    check(body | {"input": "hello"}, RESPONSES, "requestBody")
    check(http.post(f"{server}/responses", json=body).json(), RESPONSES, "responses", "200")
    for event in events(http.post(f"{server}/responses", json=body | {"stream": True}).text):
        check(event, RESPONSES, "responses", "200", media="text/event-stream")
    for wrong in [{"max_output_tokens": 0}, {"input": [{"role": "user", "content": [{"type": "text"}]}]}]:
        with pytest.raises(jsonschema.ValidationError):
            check(body | wrong, RESPONSES, "requestBody")
        answer = http.post(f"{server}/responses", json=body | wrong)
        assert answer.status_code == 400
        check(answer.json(), RESPONSES, "responses", "400")


def test_it_describes_messages(server, check):
    case = next(case for case in CASES if case["images"])
    blocks = [
        {"type": "image", "source": {"type": "base64", "data": data_url(case["images"][0]).split(",")[1]}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}},
        {"type": "search_result", "source": "a", "title": "b", "content": [{"type": "text", "text": "c"}]},
        {"type": "text", "text": "d", "cache_control": {"type": "ephemeral"}},
    ]
    body = {"model": "llava", "messages": [{"role": "user", "content": blocks}]}
    with pytest.raises(jsonschema.ValidationError):
        check(body, MESSAGES, "requestBody")
    check(body, COUNT, "requestBody")
    answer = http.post(f"{server}/messages/count_tokens", json=body)
    assert answer.status_code == 200, answer.text
    check(answer.json(), COUNT, "responses", "200")
    body |= {"max_tokens": 3, "system": "e"}
    check(body, MESSAGES, "requestBody")
    check(http.post(f"{server}/messages", json=body).json(), MESSAGES, "responses", "200")
    answer = http.post(f"{server}/messages", json=body | {"stream": True})
    for event in events(answer.text):
        check(event, MESSAGES, "responses", "200", media="text/event-stream")
    for wrong in [{"max_tokens": 0}, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}]:
        with pytest.raises(jsonschema.ValidationError):
            check(body | wrong, MESSAGES, "requestBody")
        answer = http.post(f"{server}/messages", json=body | wrong)
        assert answer.status_code == 400
        check(answer.json(), MESSAGES, "responses", "400")


def test_it_describes_transcripts(speech_server, check):
    def ask(**fields):
        with RECORDING.open("rb") as file:
            fields = {"model": "whisper", **fields}
            answer = http.post(f"{speech_server}/audio/transcriptions", data=fields, files={"file": file})
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
    models = http.get(f"{server}/models").json()
    check(models, ("get", "/v1/models"), "responses", "200")
    check(models["data"][0], ("get", "/v1/models/{model}"), "responses", "200")
    headers = {"anthropic-version": "2026-10-21"}
    models = http.get(f"{server}/models", headers=headers).json()
    check(models, ("get", "/v1/models"), "responses", "200")
    check(models["data"][0], ("get", "/v1/models/{model}"), "responses", "200")
    check(http.get(f"{server}/models/none").json(), ("get", "/v1/models/{model}"), "responses", "404")
    health = http.get(server.removesuffix("/v1") + "/health").json()
    check(health, ("get", "/health"), "responses", "200")
