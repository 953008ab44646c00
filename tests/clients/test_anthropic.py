"""The unmodified anthropic package, told nothing but a base URL."""

import asyncio
import contextlib
import json

import anthropic
import httpx
import pytest
from conftest import run_fixture
from test_openai import CASES, data_url

# What has become a part of the package between the versions.
MODELS = pytest.mark.skipif(not hasattr(anthropic.Anthropic, "models"), reason="it came with 0.42")
VERSION = tuple(int(part) for part in anthropic.__version__.split(".")[:2])


def block(part, images):
    if part["type"] != "image":
        return part
    data = data_url(next(images)).split(",")[1]
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def request(case, **more):
    """The case with its pictures where clients put them."""
    images = iter(case["images"])
    messages = [
        {"role": message["role"], "content": [block(part, images) for part in message["content"]]}
        for message in case["messages"]
    ]
    # From 1.0 on the package has no argument for it.
    return {"model": "llava", "messages": messages, "max_tokens": 12, "extra_body": {"temperature": 0}} | more


def count(client, case):
    body = request(case)
    del body["max_tokens"], body["extra_body"]
    counter = getattr(client.messages, "count_tokens", None) or client.beta.messages.count_tokens
    return counter(**body).input_tokens


@pytest.fixture
def base_url(server):
    return server.removesuffix("/v1")


@pytest.fixture
def client(base_url):
    return anthropic.Anthropic(base_url=base_url, api_key="unused", max_retries=0)


@pytest.fixture
async def async_client(base_url):
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


def test_the_versions_are_an_old_and_a_new_one():
    assert VERSION == (0, 39) or VERSION >= (2, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_text(client, case):
    message = client.messages.create(**request(case))
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == case["greedy_text"]
    assert (message.type, message.role, message.model) == ("message", "assistant", "llava")
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.input_tokens == case["prompt_len"]
    assert message.usage.output_tokens == len(case["greedy_tokens"])
    assert count(client, case) == case["prompt_len"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_text_by_the_stream_helper(client, case):
    with client.messages.stream(**request(case)) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text == case["greedy_text"]
    assert message.stop_reason == "max_tokens"
    assert message.usage.input_tokens == case["prompt_len"]
    assert message.usage.output_tokens == len(case["greedy_tokens"])


async def test_golden_text_among_31_others(async_client):
    async def one(index):
        case = CASES[index % len(CASES)]
        if index % 2:
            return case, (await async_client.messages.create(**request(case))).content[0].text
        async with async_client.messages.stream(**request(case)) as stream:
            return case, await stream.get_final_text()

    for case, text in await asyncio.gather(*(one(index) for index in range(32))):
        assert text == case["greedy_text"], case["name"]


def test_events_of_a_stream(client):
    events = list(client.messages.create(**request(CASES[0]), stream=True))
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    ends = [event.type for event in events[-3:]]
    assert ends == ["content_block_stop", "message_delta", "message_stop"]
    assert {event.type for event in events[2:-3]} == {"content_block_delta"}
    assert events[0].message.usage.input_tokens == CASES[0]["prompt_len"]
    assert events[-2].delta.stop_reason == "max_tokens"


def test_stop_sequences(client):
    case = next(case for case in CASES if case["greedy_text"].startswith("sql, a"))
    body = request(case, stop_sequences=["nothing", ", a a"])
    message = client.messages.create(**body)
    assert message.content[0].text == "sql"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ", a a")
    with client.messages.stream(**body) as stream:
        message = stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ", a a")


def test_system_and_what_changes_nothing(client):
    raw = client.messages.with_raw_response.create(
        model="claude-sonnet-4-5",
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": "hello"}, {"role": "user", "content": "again"}],
        metadata={"user_id": "me"},
        max_tokens=4,
        extra_body={"temperature": 0, "thinking": {"type": "disabled"}},
    )
    assert raw.headers["request-id"].startswith("req_")
    assert raw.headers["x-ignored-params"] == "metadata, thinking"
    assert raw.parse().model == "llava"


def test_leaving_a_stream_is_harmless(client):
    for _ in range(5):
        with client.messages.stream(**request(CASES[0], max_tokens=2000)) as stream:
            next(iter(stream))
    assert client.messages.create(**request(CASES[0])).content[0].text == CASES[0]["greedy_text"]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": "claude-x"}, anthropic.NotFoundError, "model: "),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens: "),
        ({"messages": []}, anthropic.BadRequestError, "messages: "),
        (
            {"messages": [{"role": "user", "content": "word " * 5000}]},
            anthropic.BadRequestError,
            "prompt is too long: ",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}}],
                    }
                ]
            },
            anthropic.BadRequestError,
            "messages.0.content.0.source.url: ",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdk_s_own(client, change, kind, message, stream):
    body = {"model": "llava", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4} | change
    with pytest.raises(kind) as caught:
        client.messages.create(**body, stream=stream)
    error = caught.value
    assert error.body["type"] == "error"
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    assert error.body["error"]["type"] == kinds[error.status_code]
    assert error.body["error"]["message"].startswith(message)
    assert error.body["request_id"] == error.response.headers["request-id"]


def test_a_base_url_with_v1_is_explained(server):
    client = anthropic.Anthropic(base_url=server, api_key="unused", max_retries=0)
    with pytest.raises(anthropic.NotFoundError, match="base_url must not end in /v1"):
        client.messages.create(**request(CASES[0]))


def test_a_full_queue_is_overloaded():
    busy = {
        "model": "llava",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4000,
        "logit_bias": {"2": -100},
        "stream": True,
    }
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(run_fixture("llava", "--max-sequences", "1", "--max-queue", "1"))
        # Another than the package: its streams cannot be made to last.
        http = stack.enter_context(httpx.Client(timeout=300))
        for _ in range(10):
            response = stack.enter_context(http.stream("POST", f"{server}/chat/completions", json=busy))
            if response.status_code != 200:
                break
        assert response.status_code == 429
        client = anthropic.Anthropic(base_url=server.removesuffix("/v1"), api_key="unused", max_retries=0)
        with pytest.raises(anthropic.InternalServerError) as caught:
            client.messages.create(**request(CASES[0]))
        assert caught.value.status_code == 529
        assert caught.value.body["error"]["type"] == "overloaded_error"
        assert int(caught.value.response.headers["retry-after"]) >= 1


WEATHER = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["rome", "oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def about_weather(**more):
    messages = [{"role": "user", "content": "what is the weather in rome?"}]
    asked = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    return {"model": "llava", "messages": messages, "max_tokens": 300} | asked | more


def test_tools_and_their_results(client):
    body = about_weather(extra_body={"seed": 3})
    message = client.messages.create(**body)
    assert message.stop_reason == "tool_use"
    [call] = message.content
    assert (call.type, call.name) == ("tool_use", "weather")
    assert call.input["city"] in ("rome", "oslo")
    # As every loop over tools does it.
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(**body | {"messages": body["messages"] + turns})
    assert again.usage.input_tokens > message.usage.input_tokens
    with client.messages.stream(**body) as stream:
        [streamed] = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (call.name, call.input)


def test_prefill(client):
    body = {"model": "llava", "max_tokens": 6, "extra_body": {"temperature": 0}}
    user = {"role": "user", "content": "hello"}
    plain = client.messages.create(messages=[user], **body)
    turns = [user, {"role": "assistant", "content": "the answer is"}]
    begun = client.messages.create(messages=turns, **body)
    assert begun.usage.input_tokens > plain.usage.input_tokens
    assert begun.content[0].text != plain.content[0].text


def test_structured_output(client):
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    message = client.messages.create(
        model="llava",
        messages=[{"role": "user", "content": "which colour?"}],
        max_tokens=100,
        extra_body={"output_config": form},
    )
    assert json.loads(message.content[0].text)["colour"] in ("red", "green")


@MODELS
def test_models(client):
    names = ["llava", "gpt-4o", "claude-sonnet-4-5"]
    assert [model.id for model in client.models.list()] == names
    # A page each.
    assert [model.id for model in client.models.list(limit=1)] == names
    model = client.models.retrieve("claude-sonnet-4-5")
    assert (model.type, model.display_name, model.created_at.year > 2000) == (
        "model",
        "claude-sonnet-4-5",
        True,
    )
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-x")


@pytest.mark.parametrize("key", [{"x-api-key": "unused"}, {"authorization": "Bearer unused"}, {}])
@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", None])
def test_headers_of_all_versions(base_url, key, version):
    headers = key | ({"anthropic-version": version} if version else {}) | {"anthropic-beta": "a,b"}
    body = {"model": "llava", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"{base_url}/v1/messages?beta=true", headers=headers, json=body, timeout=300)
    assert answer.status_code == 200
    assert answer.json()["type"] == "message"
    models = httpx.get(f"{base_url}/v1/models", headers=headers, timeout=300).json()
    assert ("has_more" in models) == (version is not None)
