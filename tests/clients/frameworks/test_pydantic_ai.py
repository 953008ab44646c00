"""pydantic-ai: its agents on chat completions, responses and the Anthropic API."""

import pytest
from demo import ANSWER, BLIND, BLIND_ANSWER, CHAT, CLAUDE, PICTURE, QUESTION, ROOM, UNKNOWN, Color, Weather
from pydantic_ai import Agent, BinaryContent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

SETTINGS = {"max_tokens": ROOM}
ASKED = [BinaryContent(PICTURE.read_bytes(), media_type="image/png"), QUESTION]


def model_of(kind, server, name=None):
    if kind == "anthropic":
        provider = AnthropicProvider(base_url=server.removesuffix("/v1"), api_key="unused")
        return AnthropicModel(name or CLAUDE, provider=provider)
    provider = OpenAIProvider(base_url=server, api_key="unused")
    model = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
    return model(name or CHAT, provider=provider)


@pytest.fixture(params=["chat", "responses", "anthropic"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind, demo_server):
    return model_of(kind, demo_server)


async def test_chat(model):
    result = await Agent(model, instructions="Be brief.", model_settings=SETTINGS).run(BLIND)
    assert result.output.strip() == BLIND_ANSWER
    assert result.usage.output_tokens > 2


async def test_picture(model):
    assert (await Agent(model, model_settings=SETTINGS).run(ASKED)).output.strip() == ANSWER


async def test_stream(model):
    async with Agent(model, model_settings=SETTINGS).run_stream(BLIND) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 1
    assert "".join(pieces).strip() == BLIND_ANSWER


async def test_a_conversation_goes_on(model):
    agent = Agent(model, model_settings=SETTINGS)
    first = await agent.run(BLIND)
    second = await agent.run(ASKED, message_history=first.all_messages())
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.output.strip()


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
async def test_parsed_answers(model, form):
    result = await Agent(model, output_type=form(Color), model_settings=SETTINGS, retries=0).run(ASKED)
    assert result.output == Color(color=ANSWER)


async def test_functions(model):
    tool = ToolDefinition(
        name="weather",
        description="Tells the weather of a city.",
        parameters_json_schema=Weather.model_json_schema(),
    )
    answer = await model_request(
        model,
        [ModelRequest(parts=[UserPromptPart("What is the weather in rome?")])],
        model_settings=SETTINGS | {"tool_choice": "required"},
        model_request_parameters=ModelRequestParameters(function_tools=[tool], allow_text_output=True),
    )
    calls = answer.tool_calls
    assert {call.tool_name for call in calls} == {"weather"}
    assert {Weather.model_validate(call.args_as_dict()).city for call in calls} <= {"rome", "oslo"}


async def test_an_unknown_model(kind, demo_server):
    with pytest.raises(ModelHTTPError, match=f"The model `{UNKNOWN}` does not exist") as caught:
        await Agent(model_of(kind, demo_server, UNKNOWN)).run(BLIND)
    assert caught.value.status_code == 404
