"""The unmodified openai package, told nothing but a base URL."""

import asyncio
import base64
import json
from typing import Literal

import openai
import pydantic
import pytest
from conftest import FIXTURES

GOLDEN = json.loads((FIXTURES / "goldens/llava/manifest.json").read_text())
CASES = [case for case in GOLDEN["cases"] if case.get("preprocess", "").startswith("resize")]


def data_url(name):
    data = base64.b64encode((FIXTURES / "inputs" / name).read_bytes()).decode()
    return f"data:image/png;base64,{data}"


def messages(case):
    """The case's messages with its pictures where clients put them."""
    images = iter(case["images"])
    out = []
    for message in case["messages"]:
        parts = message["content"]
        if isinstance(parts, list):
            parts = [
                {"type": "image_url", "image_url": {"url": data_url(next(images))}}
                if part["type"] == "image"
                else part
                for part in parts
            ]
        out.append({"role": message["role"], "content": parts})
    return out


def ask(client, case, **more):
    return client.chat.completions.create(
        model="llava", messages=messages(case), temperature=0, max_tokens=12, **more
    )


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server, api_key="unused", max_retries=0)


@pytest.fixture
async def async_client(server):
    async with openai.AsyncOpenAI(base_url=server, api_key="unused", max_retries=0) as client:
        yield client


def test_cases_are_there():
    assert len(CASES) == 8


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_text(client, case):
    answer = ask(client, case)
    assert answer.choices[0].message.content == case["greedy_text"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == case["prompt_len"]
    assert answer.usage.completion_tokens == len(case["greedy_tokens"])
    assert answer.usage.total_tokens == case["prompt_len"] + len(case["greedy_tokens"])
    assert answer.model == "llava"
    assert answer._request_id.startswith("req_")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_text_streamed(client, case):
    chunks = list(ask(client, case, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == case["greedy_text"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(case["greedy_tokens"])
    assert chunks[-2].choices[0].finish_reason == "length"


async def test_golden_text_among_31_others(async_client):
    async def one(index):
        case = CASES[index % len(CASES)]
        if index % 2:
            return case, (await ask(async_client, case)).choices[0].message.content
        stream = await ask(async_client, case, stream=True)
        return case, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    for case, text in await asyncio.gather(*(one(index) for index in range(32))):
        assert text == case["greedy_text"], case["name"]


def test_stream_helper(client):
    # The helper takes an answer that ends for lack of room as an error, so this one ends at a stop text.
    case = next(case for case in CASES if case["greedy_text"].startswith("sql, a"))
    helper = getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream
    with helper(model="llava", messages=messages(case), temperature=0, stop=[", a a a"]) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert (choice.message.content, choice.finish_reason) == ("sql", "stop")


def test_leaving_a_stream_is_harmless(client):
    for _ in range(5):
        stream = client.chat.completions.create(
            model="llava",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=2000,
            logit_bias={"2": -100},
            stream=True,
        )
        next(iter(stream))
        stream.close()
    assert ask(client, CASES[0]).choices[0].message.content == CASES[0]["greedy_text"]


def test_sampling_and_extensions(client):
    def text(**more):
        answer = client.chat.completions.create(
            model="gpt-4o",
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": "hello", "name": "me"},
            ],
            max_completion_tokens=6,
            **more,
        )
        return answer.choices[0].message.content

    assert text(seed=5) == text(seed=5)
    greedy = text(temperature=0)
    assert text(extra_body={"top_k": 1}) == greedy
    assert text(top_p=0) == greedy
    assert (
        text(temperature=0, frequency_penalty=0, presence_penalty=None, stop=None, n=None, user="me")
        == greedy
    )
    assert len(greedy) > 4
    assert text(temperature=0, stop=[greedy[2:]]) == greedy[:2]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["llava", "gpt-4o", "claude-sonnet-4-5"]
    assert client.models.retrieve("gpt-4o").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "integer_below_min_value", "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"n": 9}, openai.BadRequestError, "integer_above_max_value", "n"),
        (
            {"messages": [{"role": "user", "content": "word " * 5000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}],
                    }
                ]
            },
            openai.BadRequestError,
            "invalid_image_url",
            "messages[0].content[0].image_url",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdk_s_own(client, change, kind, code, param, stream):
    request = {"model": "llava", "messages": [{"role": "user", "content": "hello"}], **change}
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**request, stream=stream)
    assert caught.value.code == code
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id.startswith("req_")


def test_headers(client):
    raw = client.chat.completions.with_raw_response.create(
        model="llava",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=2,
        extra_body={"num_ctx": 1},
    )
    assert raw.headers["x-ignored-params"] == "num_ctx"
    assert raw.headers["openai-version"] == "2020-10-01"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().choices[0].finish_reason in ("length", "stop")


def test_base_url_without_v1(server):
    client = openai.OpenAI(base_url=server.removesuffix("/v1"), api_key="unused")
    assert ask(client, CASES[0]).choices[0].message.content == CASES[0]["greedy_text"]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["rome", "oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def about_weather(client, **more):
    asked = {"max_tokens": 300, "temperature": 1, "seed": 3, **more}
    messages = [{"role": "user", "content": "what is the weather in rome?"}]
    return client.chat.completions.create(model="llava", messages=messages, **asked)


def test_functions_and_their_results(client):
    answer = about_weather(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("rome", "oslo")
    # As every loop over calls does it.
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [{"role": "user", "content": "and?"}, choice.message.model_dump(exclude_none=True), result]
    again = client.chat.completions.create(model="llava", messages=messages, tools=[WEATHER], max_tokens=5)
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_streamed_calls(client):
    ids, name, arguments, reason = [], "", "", None
    for chunk in about_weather(
        client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, stream=True
    ):
        delta = chunk.choices[0].delta
        for call in delta.tool_calls or []:
            ids += [call.id] if call.id else []
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (len(ids), name, reason) == (1, "weather", "tool_calls")
    assert json.loads(arguments)["city"] in ("rome", "oslo")


def test_several_answers_and_probabilities(client):
    answer = about_weather(client, n=3, logprobs=True, top_logprobs=2, max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_parsed_answers(client):
    class Answer(pydantic.BaseModel):
        city: Literal["rome", "oslo"]
        warm: bool
        note: Literal["windy"] | None

    if not hasattr(openai, "pydantic_function_tool"):
        pytest.skip("this version of the library parses nothing")
    parse = getattr(client.chat.completions, "parse", None) or client.beta.chat.completions.parse
    messages = [{"role": "user", "content": "what is the weather in rome?"}]
    answer = parse(model="llava", messages=messages, response_format=Answer, max_tokens=200, seed=5)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    tools = {"tools": [openai.pydantic_function_tool(Answer)], "tool_choice": "required"}
    more = {"max_tokens": 200, "seed": 5, "parallel_tool_calls": False}
    answer = parse(model="llava", messages=messages, **tools, **more)
    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Answer)
    with pytest.raises(openai.LengthFinishReasonError):
        parse(model="llava", messages=messages, response_format=Answer, max_tokens=2)
