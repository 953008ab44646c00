"""Requests made up from the server's description of its API, right ones and wrong ones: whatever comes, the
answer is one that the description has."""

import io
import wave

import httpx
import pytest
from conftest import FIXTURES, run_fixture

# It comes with the newest libraries only.
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, settings  # noqa: E402
from schemathesis.specs.openapi.checks import response_schema_conformance  # noqa: E402

ROLES = ["user", "assistant", "system", "tool"]

CONFIG = {
    # The same requests each time: what fails here fails elsewhere.
    "seed": 1,
    "request-timeout": 300,
    "generation": {"deterministic": True, "max-examples": 10, "no-shrink": True},
    "checks": {
        # Too much is refused by its size, whatever else is wrong.
        "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 408, 413, 415, 429, 431]},
        # What the description allows may still mean nothing together, or ask for what is refused in words.
        "positive_data_acceptance": {"enabled": False},
    },
    "operations": [
        # Pages are for clients of the Anthropic API: without its header their parameters are ignored.
        {
            "include-operation-id": "listModels",
            "checks": {"negative_data_rejection": {"enabled": False}},
        },
    ],
}


def trim(description):
    """Leaves out what is refused in words, so that more requests get further, and limits whose tests are
    elsewhere because what is at the limit takes long to make."""
    if isinstance(description, dict):
        if description.get("maxItems", 0) >= 1000:
            del description["maxItems"]
        properties = description.get("properties", {})
        for name, property in list(properties.items()):
            if isinstance(property, dict) and "efused" in property.get("description", ""):
                del properties[name]
    for part in description.values() if isinstance(description, dict) else description:
        if isinstance(part, (dict, list)):
            trim(part)


@pytest.fixture(scope="module")
def api():
    """A server that sees and hears, and answers briefly."""
    limits = ["--max-context", "256", "--max-audio-bytes", "2MB", "--max-body", "2MB"]
    with run_fixture("llava", f"whisper={FIXTURES / 'whisper'}", *limits) as server:
        server = server.removesuffix("/v1")
        description = httpx.get(server + "/openapi.json").json()
        trim(description)
        config = schemathesis.Config.from_dict({**CONFIG, "base-url": server})
        yield schemathesis.openapi.from_dict(description, config=config)


# Translations have the same description as transcriptions.
schema = schemathesis.pytest.from_fixture("api").exclude(path="/v1/audio/translations")


def tone():
    """A recording of a tenth of a second."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", None))
        out.writeframes(b"\x00\x10\x00\xf0" * 800)
    return file.getvalue()


RECORDING = tone()


def fill_in(body, media_type):
    """What a description does not know, and without which no request gets further than its first field: the
    names of models, which roles there are, that something has to be said, and a recording that is one."""
    if media_type == "multipart/form-data":
        body |= {"model": "whisper", "file": RECORDING}
        # In a form, null is a text like any other.
        for name in [name for name, value in body.items() if value is None]:
            del body[name]
        return
    body["model"] = "llava"
    for name in {"messages", "input", "prompt"} & body.keys():
        said = "a" if name == "prompt" else [{"role": "user", "content": "a"}]
        body[name] = body[name] or said
        for number, turn in enumerate(body[name] if isinstance(body[name], list) else []):
            if isinstance(turn, dict) and isinstance(turn.get("role"), str) and turn["role"] not in ROLES:
                turn["role"] = ROLES[number % 2]


@schema.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case):
    if case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        fill_in(case.body, case.media_type)
    answer = case.call()
    # The description tells what the data of events is, not their names: test_openapi.py looks at those.
    streamed = answer.headers.get("content-type", [""])[0].startswith("text/event-stream")
    case.validate_response(answer, excluded_checks=[response_schema_conformance] if streamed else None)
