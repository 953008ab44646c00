"""Every family of networks behind one server, asked by the unmodified openai package."""

import json

import openai
import pytest
from conftest import FIXTURES, serve_all
from test_openai import messages

FAMILIES = ["internvl2", "llava_next", "mllama", "phi3_v", "pixtral", "qwen2_5_vl", "qwen2_vl", "smolvlm"]


def cases(family):
    """Cases that a client can make: others force a choice of the network, or have another preprocessor."""
    golden = json.loads((FIXTURES / "goldens" / family / "manifest.json").read_text())
    usual = [case for case in golden["cases"] if "@" not in case["name"] and case.get("input_ids")]
    crops = json.loads((FIXTURES / family / "preprocessor_config.json").read_text()).get("num_crops")
    return [case for case in usual if case.get("num_crops", crops) == crops]


CASES = [(family, case) for family in FAMILIES for case in cases(family)]


@pytest.fixture(scope="module")
def client():
    with serve_all(FAMILIES) as url:
        yield openai.OpenAI(base_url=url, api_key="unused", max_retries=0)


def ask(client, family, case, **more):
    system = [{"role": "system", "content": case["system"]}] if "system" in case else []
    return client.chat.completions.create(
        model=family,
        messages=system + messages(case),
        temperature=0,
        max_tokens=len(case["greedy_tokens"]),
        # Some checkpoints suggest a penalty.
        extra_body={"repetition_penalty": 1.0},
        **more,
    )


def test_all_are_listed(client):
    assert [model.id for model in client.models.list()] == FAMILIES
    assert len(CASES) >= 8 * len(FAMILIES)


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"]
)
def test_golden_text(client, family, case):
    answer = ask(client, family, case)
    assert answer.choices[0].message.content == case["greedy_text"]
    assert answer.usage.prompt_tokens == len(case["input_ids"])
    assert answer.model == family


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"]
)
def test_golden_text_streamed(client, family, case):
    chunks = ask(client, family, case, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == case["greedy_text"]
