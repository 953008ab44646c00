"""LlamaIndex: OpenAILike, which is told what a model can do."""

import openai
import pytest
from demo import (
    ANSWER,
    BLIND,
    BLIND_ANSWER,
    CHAT,
    PICTURE,
    QUESTION,
    RECORDING,
    ROOM,
    SENTENCE,
    UNKNOWN,
    Color,
    Weather,
)
from llama_index.core.llms import AudioBlock, ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses

ASKED = ChatMessage(role="user", blocks=[ImageBlock(path=PICTURE), TextBlock(text=QUESTION)])


def model_of(server, kind=OpenAILike, **more):
    asked = {
        "model": CHAT,
        "api_base": server,
        "api_key": "unused",
        "max_retries": 0,
        "temperature": 0,
        "context_window": 1024,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "max_tokens" if kind is OpenAILike else "max_output_tokens": ROOM,
    }
    return kind(**asked | more)


@pytest.fixture(params=[OpenAILike, OpenAILikeResponses], ids=["chat", "responses"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind, demo_server):
    return model_of(demo_server, kind)


def said(answer):
    return answer.message.content.strip()


def test_chat(model):
    system = ChatMessage(role="system", content="Be brief.")
    assert said(model.chat([system, ChatMessage(BLIND)])) == BLIND_ANSWER
    assert model.complete(BLIND).text.strip() == BLIND_ANSWER


def test_picture(model):
    assert said(model.chat([ASKED])) == ANSWER


def test_stream(model):
    answers = list(model.stream_chat([ChatMessage(BLIND)]))
    assert "".join(answer.delta or "" for answer in answers).strip() == BLIND_ANSWER
    assert said(answers[-1]) == BLIND_ANSWER


async def test_async(model):
    assert said(await model.achat([ASKED])) == ANSWER


def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def test_functions_and_their_results(model):
    tool = FunctionTool.from_defaults(weather, fn_schema=Weather)
    answer = model.chat_with_tools([tool], "What is the weather in rome?", tool_required=True)
    [call] = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "weather"
    assert call.tool_kwargs["city"] in ("rome", "oslo")
    result = ChatMessage(
        role="tool", content=str(tool(**call.tool_kwargs)), additional_kwargs={"tool_call_id": call.tool_id}
    )
    assert said(model.chat([ChatMessage("And?"), answer.message, result]))


def test_streamed_calls(model):
    tool = FunctionTool.from_defaults(weather, fn_schema=Weather)
    # On chat completions every answer has all so far, on responses the one that a call came with.
    calls = {}
    for answer in model.stream_chat_with_tools([tool], "What is the weather in rome?", tool_required=True):
        for call in model.get_tool_calls_from_response(answer, error_on_no_tool_call=False):
            calls[call.tool_id] = call
    [call] = calls.values()
    assert (call.tool_name, call.tool_kwargs["city"] in ("rome", "oslo")) == ("weather", True)


def test_parsed_answers(model):
    answer = model.as_structured_llm(Color).chat([ASKED])
    assert answer.raw == Color(color=ANSWER)


def test_bound_answers(demo_server):
    model = model_of(demo_server, should_use_structured_outputs=True)
    answer = model.structured_predict(Color, PromptTemplate(BLIND))
    assert isinstance(answer, Color)


def test_completions(demo_server):
    model = model_of(demo_server, is_chat_model=False, is_function_calling_model=False, max_tokens=8)
    asked = f"USER: {BLIND} ASSISTANT:"
    assert model.complete(asked, formatted=True).text.strip() == BLIND_ANSWER
    pieces = [answer.delta for answer in model.stream_complete(asked, formatted=True)]
    assert "".join(pieces).strip() == BLIND_ANSWER


def test_sound(demo_server):
    """A recording in a conversation, which the server's speech model writes down."""
    recording = AudioBlock(path=RECORDING, format="wav")
    asked = ChatMessage(role="user", blocks=[recording, TextBlock(text=QUESTION)])
    model = model_of(demo_server)
    counted = model.chat([asked]).raw.usage.prompt_tokens
    written = ChatMessage(role="user", content=f"{SENTENCE}\n{QUESTION}")
    assert abs(counted - model.chat([written]).raw.usage.prompt_tokens) < 20


def test_an_unknown_model(kind, demo_server):
    with pytest.raises(openai.NotFoundError, match=f"The model `{UNKNOWN}` does not exist"):
        model_of(demo_server, kind, model=UNKNOWN).chat([ChatMessage(BLIND)])
