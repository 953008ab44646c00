"""LangChain: ChatOpenAI on both of OpenAI's APIs, and ChatAnthropic."""

import anthropic
import openai
import pytest
from demo import (
    ANSWER,
    BLIND,
    BLIND_ANSWER,
    CHAT,
    CLAUDE,
    QUESTION,
    ROOM,
    UNKNOWN,
    Color,
    Weather,
    chat_parts,
)
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

# The package keeps its connections for later models, and with them the loop they were opened in.
pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMON = {"api_key": "unused", "max_retries": 0}
KINDS = ["chat", "responses", "anthropic"]
PICTURE = HumanMessage(chat_parts())


def model_of(kind, server, **more):
    if kind == "anthropic":
        name, base_url = CLAUDE, server.removesuffix("/v1")
        return ChatAnthropic(**COMMON | {"model": name, "base_url": base_url, "max_tokens": ROOM} | more)
    responses = kind == "responses"
    asked = {"model": CHAT, "base_url": server, "temperature": 0, "max_tokens": ROOM}
    return ChatOpenAI(**COMMON | asked | {"use_responses_api": responses} | more)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind, demo_server):
    return model_of(kind, demo_server)


def text(message):
    return message.text.strip()


def test_chat(model):
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage(BLIND)])
    assert text(answer) == BLIND_ANSWER
    assert answer.usage_metadata["output_tokens"] > 2
    assert answer.usage_metadata["input_tokens"] > 10


def test_picture(model):
    assert text(model.invoke([PICTURE])) == ANSWER


def test_stream(model):
    chunks = list(model.stream([HumanMessage(BLIND)]))
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert text(whole) == BLIND_ANSWER


async def test_many_at_once(model):
    answers = await model.abatch([[PICTURE], [HumanMessage(BLIND)]] * 4)
    assert [text(answer) for answer in answers] == [ANSWER, BLIND_ANSWER] * 4


def test_streams_tell_their_usage(demo_server):
    model = model_of("chat", demo_server, stream_usage=True)
    used = [chunk.usage_metadata for chunk in model.stream(BLIND) if chunk.usage_metadata]
    assert [usage["output_tokens"] > 2 for usage in used] == [True]


@pytest.mark.parametrize("streamed", [False, True])
def test_functions_and_their_results(model, streamed):
    bound = model.bind_tools([Weather], tool_choice="any")
    # Of weather the model knows nothing, and says so from then on.
    question = HumanMessage("Look at this picture.")
    if streamed:
        chunks = list(bound.stream([question]))
        answer = chunks[0]
        for chunk in chunks[1:]:
            answer += chunk
        assert len(answer.tool_call_chunks) == 1
    else:
        answer = bound.invoke([question])
    [call] = answer.tool_calls
    assert call["name"] == "Weather"
    assert call["args"]["city"] in ("rome", "oslo")
    # A result may have pictures: here all that there is to see.
    result = ToolMessage([{"type": "text", "text": "sunny"}, *chat_parts()[:1]], tool_call_id=call["id"])
    said = AIMessage(answer.content, tool_calls=answer.tool_calls)
    again = model.bind_tools([Weather]).invoke([question, said, result, HumanMessage(QUESTION)])
    assert text(again) == ANSWER


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_parsed_answers(model, method):
    answer = model.with_structured_output(Color, method=method).invoke([PICTURE])
    assert answer == Color(color=ANSWER)


def test_completions(demo_server):
    model = OpenAI(**COMMON, base_url=demo_server, model=CHAT, temperature=0, max_tokens=8)
    assert model.invoke(f"USER: {BLIND} ASSISTANT:").strip() == BLIND_ANSWER


def test_an_unknown_model(kind, demo_server):
    model = model_of(kind, demo_server, model=UNKNOWN)
    expected = anthropic.NotFoundError if kind == "anthropic" else openai.NotFoundError
    for ask in (model.invoke, lambda messages: list(model.stream(messages))):
        with pytest.raises(expected, match=f"The model `{UNKNOWN}` does not exist"):
            ask([HumanMessage(BLIND)])


def test_a_prompt_that_is_too_long(demo_server):
    with pytest.raises(openai.BadRequestError) as caught:
        model_of("chat", demo_server).invoke("star " * 3000)
    assert caught.value.code == "context_length_exceeded"
