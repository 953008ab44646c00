"""LiteLLM, which talks to this server in both APIs."""

import json
import os

# Else it asks the internet for prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest
from demo import (
    ANSWER,
    BLIND,
    BLIND_ANSWER,
    CHAT,
    CLAUDE,
    RECORDING,
    ROOM,
    SENTENCE,
    SPEECH,
    UNKNOWN,
    Color,
    Weather,
    chat_parts,
)

PICTURE = [{"role": "user", "content": chat_parts()}]
TEXT = [{"role": "user", "content": BLIND}]


@pytest.fixture(params=["openai", "anthropic"])
def common(request, demo_server):
    """What every call says: the name's beginning tells the API."""
    more = {"api_key": "unused", "max_retries": 0, "max_tokens": ROOM, "temperature": 0}
    if request.param == "anthropic":
        return more | {"model": f"anthropic/{CLAUDE}", "api_base": demo_server.removesuffix("/v1")}
    return more | {"model": f"openai/{CHAT}", "api_base": demo_server}


def test_chat(common):
    answer = litellm.completion(messages=[{"role": "system", "content": "Be brief."}, *TEXT], **common)
    assert answer.choices[0].message.content.strip() == BLIND_ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 2


def test_picture(common):
    answer = litellm.completion(messages=PICTURE, **common)
    assert answer.choices[0].message.content.strip() == ANSWER


def test_stream(common):
    chunks = list(litellm.completion(messages=TEXT, stream=True, **common))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == BLIND_ANSWER
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].finish_reason == "stop"


async def test_async_stream(common):
    stream = await litellm.acompletion(messages=PICTURE, stream=True, **common)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text.strip() == ANSWER


def weather():
    return {
        "type": "function",
        "function": {"name": "weather", "parameters": Weather.model_json_schema()},
    }


@pytest.mark.parametrize("stream", [False, True])
def test_functions_and_their_results(common, stream):
    question = {"role": "user", "content": "What is the weather in rome?"}
    asked = {"messages": [question], "tools": [weather()], "tool_choice": "required", "stream": stream}
    answer = litellm.completion(**common, **asked)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=asked["messages"])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("rome", "oslo")
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call.model_dump(include={"id", "type", "function"})],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = litellm.completion(messages=[question, said, result], tools=[weather()], **common)
    assert again.choices[0].message.content.strip()


def test_parsed_answers(common):
    answer = litellm.completion(messages=PICTURE, response_format=Color, **common)
    assert Color.model_validate_json(answer.choices[0].message.content) == Color(color=ANSWER)


def test_an_unknown_model(common):
    common["model"] = common["model"].split("/")[0] + f"/{UNKNOWN}"
    with pytest.raises(litellm.NotFoundError, match=f"The model `{UNKNOWN}` does not exist"):
        litellm.completion(messages=TEXT, **common)


def test_a_prompt_that_is_too_long(common):
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "star " * 3000}], **common)


def test_responses(demo_server):
    common = {"model": f"openai/{CHAT}", "api_base": demo_server, "api_key": "unused"}
    answer = litellm.responses(input=BLIND, max_output_tokens=ROOM, temperature=0, **common)
    assert answer.output_text.strip() == BLIND_ANSWER


def test_completions(demo_server):
    answer = litellm.text_completion(
        model=f"text-completion-openai/{CHAT}",
        prompt=f"USER: {BLIND} ASSISTANT:",
        api_base=demo_server,
        api_key="unused",
        max_tokens=8,
        temperature=0,
    )
    assert answer.choices[0].text.strip() == BLIND_ANSWER


def test_sound(demo_server):
    common = {"model": f"openai/{SPEECH}", "api_base": demo_server, "api_key": "unused"}
    with RECORDING.open("rb") as file:
        answer = litellm.transcription(file=file, **common)
    assert answer.text.strip() == SENTENCE
    with RECORDING.open("rb") as file:
        answer = litellm.transcription(
            file=file, response_format="verbose_json", timestamp_granularities=["word"], **common
        )
    assert [word["word"] for word in answer.words][:2] == ["Turn", "on"]
