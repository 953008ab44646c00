"""The official client's embeddings: how it asks where nothing is said, and what it makes of the answers."""

import base64
import json

import openai
import pytest
from conftest import FIXTURES, serve_all

TEXTS = ["a blue circle", "a green square on a white background", "a"]


@pytest.fixture(scope="module")
def url():
    with serve_all(["bert", "clip"]) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def golden(model, text):
    manifest = json.loads((FIXTURES / "goldens" / model / "manifest.json").read_text(encoding="utf-8"))
    return next(case for case in manifest["cases"] if case["text"] == text)


def length(vector):
    return sum(number * number for number in vector) ** 0.5


def test_the_default_is_base64_and_comes_out_as_numbers(client):
    raw = client.embeddings.with_raw_response.create(model="bert", input=TEXTS)
    sent = json.loads(raw.http_request.content)
    assert sent["encoding_format"] == "base64"
    assert isinstance(json.loads(raw.content)["data"][0]["embedding"], str)
    answer = raw.parse()
    assert answer.object == "list"
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert all(len(entry.embedding) == 48 for entry in answer.data)
    assert all(abs(length(entry.embedding) - 1) < 1e-5 for entry in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    plain = client.embeddings.create(model="bert", input=TEXTS, encoding_format="float")
    for one, other in zip(answer.data, plain.data, strict=True):
        assert list(one.embedding) == pytest.approx(other.embedding, abs=0, rel=1e-7)


def test_tokens_are_those_of_the_hosted_models(client):
    # What LangChain's OpenAIEmbeddings sends by default: ids of cl100k_base, of "hello world".
    tokens = client.embeddings.create(model="bert", input=[[15339, 1917]], encoding_format="float")
    text = client.embeddings.create(model="bert", input=["hello world"], encoding_format="float")
    assert tokens.data[0].embedding == text.data[0].embedding
    flat = client.embeddings.create(model="bert", input=[15339, 1917], encoding_format="float")
    assert flat.data[0].embedding == text.data[0].embedding


def test_tokens_are_counted_as_the_reference_counts_them(client):
    text = "How many objects are there in the first image, and in the second?"
    answer = client.embeddings.create(model="bert", input=text)
    assert answer.usage.prompt_tokens == len(golden("bert", text)["input_ids"])


def test_a_picture_is_an_input(client):
    picture = (FIXTURES / "inputs" / "land_90x60.png").read_bytes()
    picture = "data:image/png;base64," + base64.b64encode(picture).decode()
    answer = client.embeddings.create(model="clip", input=["a blue circle", {"image": picture}])
    text, seen = (entry.embedding for entry in answer.data)
    assert len(text) == len(seen) == 40
    assert abs(length(seen) - 1) < 1e-5


def test_errors_are_the_client_s_own(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model="bert", input=["a", ""])
    assert (error.value.code, error.value.param) == ("invalid_value", "input[1]")
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model="bert", input="a", dimensions=7)
    assert error.value.param == "dimensions"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match="an embedding model; it cannot chat"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "a"}])
