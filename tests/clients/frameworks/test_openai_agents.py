"""openai-agents: its loop of functions, on responses, its default, and on chat completions."""

import agents
import openai
import pytest
from demo import ANSWER, BLIND, BLIND_ANSWER, CHAT, DATA_URL, QUESTION, ROOM, UNKNOWN, Color

# Else it sends what it did to OpenAI.
agents.set_tracing_disabled(True)

PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ],
    }
]
KINDS = {
    "responses": agents.OpenAIResponsesModel,
    "chat": agents.OpenAIChatCompletionsModel,
}


@pytest.fixture(params=KINDS)
def agent_of(request, demo_server):
    def agent_of(name=CHAT, settings=None, **more):
        client = openai.AsyncOpenAI(base_url=demo_server, api_key="unused", max_retries=0)
        settings = agents.ModelSettings(temperature=0, max_tokens=ROOM, **settings or {})
        model = KINDS[request.param](name, client)
        return agents.Agent("demo", model=model, model_settings=settings, **more)

    return agent_of


async def test_chat(agent_of):
    result = await agents.Runner.run(agent_of(instructions="Be brief."), BLIND)
    assert result.final_output.strip() == BLIND_ANSWER
    assert result.context_wrapper.usage.output_tokens > 2


async def test_picture(agent_of):
    assert (await agents.Runner.run(agent_of(), PICTURE)).final_output.strip() == ANSWER


async def test_stream(agent_of):
    result = agents.Runner.run_streamed(agent_of(), BLIND)
    events = [event async for event in result.stream_events()]
    deltas = [
        event.data.delta
        for event in events
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert len(deltas) > 1
    assert "".join(deltas) == result.final_output
    assert result.final_output.strip() == BLIND_ANSWER


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_loop_of_functions(agent_of, streamed):
    called = []

    @agents.function_tool
    def look(where: Color) -> str:
        """Looks at something."""
        called.append(where)
        return "it is there"

    agent = agent_of(tools=[look], settings={"tool_choice": "required", "parallel_tool_calls": False})
    if streamed:
        result = agents.Runner.run_streamed(agent, BLIND)
        async for _ in result.stream_events():
            pass
    else:
        result = await agents.Runner.run(agent, BLIND)
    # After a call the choice is the model's again, which then says something.
    assert [type(where) for where in called] == [Color]
    assert result.final_output.strip()
    kinds = [item.type for item in result.new_items]
    assert kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"]


async def test_parsed_answers(agent_of):
    result = await agents.Runner.run(agent_of(output_type=Color), PICTURE)
    assert result.final_output == Color(color=ANSWER)


async def test_a_conversation_goes_on(agent_of):
    first = await agents.Runner.run(agent_of(), BLIND)
    second = await agents.Runner.run(agent_of(), first.to_input_list() + PICTURE)
    assert second.raw_responses[0].usage.input_tokens > first.raw_responses[0].usage.total_tokens


async def test_an_unknown_model(agent_of):
    with pytest.raises(openai.NotFoundError, match=f"The model `{UNKNOWN}` does not exist") as caught:
        await agents.Runner.run(agent_of(UNKNOWN), BLIND)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
