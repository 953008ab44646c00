"""The Responses API of the unmodified openai package."""

import json
from typing import Literal

import openai
import pydantic
import pytest
from test_openai import CASES, data_url


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server, api_key="unused", max_retries=0)


def items(case):
    """The case's turns as items."""
    images = iter(case["images"])

    def part(part, role):
        if part["type"] == "image":
            return {"type": "input_image", "image_url": data_url(next(images)), "detail": "auto"}
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part["text"]}

    return [
        {"role": turn["role"], "content": [part(each, turn["role"]) for each in turn["content"]]}
        for turn in case["messages"]
    ]


def request(case, **more):
    return {"model": "llava", "input": items(case), "temperature": 0, "max_output_tokens": 12} | more


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_text(client, case):
    response = client.responses.create(**request(case))
    assert response.output_text == case["greedy_text"]
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.input_tokens == case["prompt_len"]
    assert response.usage.output_tokens == len(case["greedy_tokens"])
    assert (response.model, response.error) == ("llava", None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_text_streamed(client, case):
    events = list(client.responses.create(**request(case), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == case["greedy_text"]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == case["greedy_text"]


def test_stream_helper(client):
    case = next(case for case in CASES if case["greedy_text"].startswith("sql, a"))
    with client.responses.stream(**request(case), extra_body={"stop": [", a a"]}) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert (response.output_text, response.status) == ("sql", "completed")


def test_an_answer_goes_back_into_the_conversation(client):
    first = client.responses.create(model="gpt-4o", input="hello", max_output_tokens=4, temperature=0)
    again = [{"role": "user", "content": "hello"}, *first.output, {"role": "user", "content": "again"}]
    answer = client.responses.create(
        model="gpt-4o",
        instructions="be brief",
        input=[item if isinstance(item, dict) else item.model_dump() for item in again],
        max_output_tokens=4,
        temperature=0,
        metadata={"a": "b"},
        store=False,
        include=[],
    )
    assert (answer.instructions, answer.metadata) == ("be brief", {"a": "b"})
    assert answer.usage.input_tokens > first.usage.total_tokens


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["rome", "oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def test_functions_and_their_outputs(client):
    question = {"role": "user", "content": "what is the weather in rome?"}
    asked = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    asked |= {"model": "llava", "max_output_tokens": 300, "extra_body": {"seed": 3}}
    answer = client.responses.create(input=[question], **asked)
    [call] = answer.output
    assert (answer.status, call.type, call.name) == ("completed", "function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("rome", "oslo")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    again = client.responses.create(input=[question, call.model_dump(exclude_none=True), output], **asked)
    assert again.usage.input_tokens > answer.usage.input_tokens
    with client.responses.stream(input=[question], **asked) as stream:
        [streamed] = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)


def test_parsed_answers(client):
    class Answer(pydantic.BaseModel):
        city: Literal["rome", "oslo"]
        warm: bool

    answer = client.responses.parse(
        model="llava", input="what is the weather in rome?", text_format=Answer, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Answer)


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"input": []}, openai.BadRequestError, "empty_array", "input"),
        ({"input": "word " * 5000}, openai.BadRequestError, "context_length_exceeded", "input"),
        (
            {"previous_response_id": "resp_1"},
            openai.BadRequestError,
            "previous_response_not_found",
            "previous_response_id",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdk_s_own(client, change, kind, code, param, stream):
    with pytest.raises(kind) as caught:
        client.responses.create(**({"model": "llava", "input": "hello"} | change), stream=stream)
    assert (caught.value.code, caught.value.param) == (code, param)
