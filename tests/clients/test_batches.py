"""Files and batches with the real client libraries, on the disk and in a bucket."""

import contextlib
import io
import json
import os
import time

import anthropic
import openai
import pytest
from conftest import FIXTURES, run


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    yield from run(str(FIXTURES / "llava"), "--alias", "gpt-4o", "--files", str(folder))


@pytest.fixture
def client(keeping):
    with openai.OpenAI(base_url=keeping, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(keeping):
    with anthropic.Anthropic(base_url=keeping.removesuffix("/v1"), api_key="none", max_retries=0) as client:
        yield client


def lines(count):
    for index in range(count):
        body = {
            "model": "llava",
            "temperature": 0,
            "max_tokens": 5,
            "messages": [{"role": "user", "content": f"words {index}"}],
        }
        yield {"custom_id": f"l{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(client, requests, name="requests.jsonl"):
    content = "\n".join(map(json.dumps, requests)).encode()
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch")


def finished(client, batch):
    until = time.monotonic() + 120
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < until, batch
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def test_files(client):
    # Without a name, and with one.
    first = client.files.create(file=io.BytesIO(b"\x00\xff"), purpose="user_data")
    second = client.files.create(file=("a.txt", b"text"), purpose="vision")
    assert (first.bytes, first.filename, first.status, first.object) == (2, "upload", "processed", "file")
    assert second.filename == "a.txt"
    assert client.files.retrieve(first.id) == first
    assert client.files.content(first.id).read() == b"\x00\xff"
    ids = [file.id for file in client.files.list(purpose="vision")]
    assert ids == [second.id]
    # Pages follow each other.
    every = [file.id for file in client.files.list(limit=1, order="asc")]
    assert every.index(first.id) < every.index(second.id)
    assert client.files.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(first.id)
    client.files.delete(second.id)


def test_batch(client):
    wrong = {
        "custom_id": "wrong",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gone", "messages": [{"role": "user", "content": "x"}]},
    }
    file = upload(client, [*lines(4), wrong])
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "one"},
    )
    assert (batch.status, batch.metadata) == ("validating", {"job": "one"})
    batch = finished(client, batch)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 4, 1)
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["l0", "l1", "l2", "l3"]
    request = list(lines(3))[2]["body"]
    alone = client.chat.completions.create(**request)
    body = answers[2]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == alone.choices[0].message.content
    (error,) = client.files.content(batch.error_file_id).text.splitlines()
    response = json.loads(error)["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (404, "model_not_found")
    assert next(found.id for found in client.batches.list(limit=1)) == batch.id


def test_batch_of_nonsense(client):
    file = client.files.create(file=("x.jsonl", b"nonsense\n"), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = finished(client, batch)
    assert batch.status == "failed"
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == ("invalid_json_line", 1)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_cancelled_batch(client):
    requests = list(lines(300))
    for request in requests:
        request["body"] |= {"max_tokens": 100, "ignore_eos": True}
    file = upload(client, requests)
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = client.batches.cancel(batch.id)
    assert batch.status in {"cancelling", "cancelled"}
    batch = finished(client, batch)
    assert batch.status == "cancelled" and batch.cancelled_at >= batch.cancelling_at


@pytest.mark.skipif(not hasattr(anthropic.resources.Messages, "batches"), reason="older than that")
def test_message_batch(claude):
    def request(name, **more):
        params = {"model": "llava", "max_tokens": 4, "messages": [{"role": "user", "content": name}]} | more
        return {"custom_id": name, "params": params}

    batch = claude.messages.batches.create(requests=[request("a"), request("b", model="gone")])
    assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 2)
    until = time.monotonic() + 60
    while batch.processing_status != "ended":
        assert time.monotonic() < until, batch
        time.sleep(0.02)
        batch = claude.messages.batches.retrieve(batch.id)
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    results = {result.custom_id: result.result for result in claude.messages.batches.results(batch.id)}
    assert results["a"].type == "succeeded" and results["a"].message.content[0].type == "text"
    assert results["b"].type == "errored" and results["b"].error.error.type == "not_found_error"
    assert next(found.id for found in claude.messages.batches.list(limit=1)) == batch.id
    deleted = claude.messages.batches.delete(batch.id)
    assert deleted.type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(batch.id)


@pytest.mark.skipif(not hasattr(anthropic.resources.Beta, "files"), reason="older than that")
def test_files_of_the_anthropic_api(claude):
    file = claude.beta.files.upload(file=("a.txt", b"text", "text/plain"))
    assert (file.filename, file.mime_type, file.size_bytes) == ("a.txt", "text/plain", 4)
    assert next(found.id for found in claude.beta.files.list(limit=1)) == file.id
    other = claude.beta.files.upload(file=("b.txt", b"more", "text/plain"))
    every = [found.id for found in claude.beta.files.list(limit=1000)]
    assert [found.id for found in claude.beta.files.list(limit=1)] == every and len(every) > 1
    claude.beta.files.delete(other.id)
    assert claude.beta.files.retrieve_metadata(file.id).id == file.id
    assert claude.beta.files.download(file.id).read() == b"text"
    assert claude.beta.files.delete(file.id).id == file.id


def test_transcriptions_of_recordings_that_are_kept(tmp_path):
    arguments = [str(FIXTURES / "whisper"), "--alias", "whisper-1", "--files", str(tmp_path)]
    sound = (FIXTURES / "inputs/speechlike_3s.wav").read_bytes()
    with (
        contextlib.contextmanager(run)(*arguments) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        recording = client.files.create(file=("a.wav", sound), purpose="user_data")
        body = {"model": "whisper-1", "file_id": recording.id, "temperature": 0}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/audio/transcriptions", "body": body}
        text = {"custom_id": "b", **{name: line[name] for name in ("method", "url")}}
        text["body"] = body | {"response_format": "text"}
        batch = client.batches.create(
            input_file_id=upload(client, [line, text]).id,
            endpoint="/v1/audio/transcriptions",
            completion_window="24h",
        )
        batch = finished(client, batch)
        assert batch.request_counts.completed == 2, client.files.content(batch.error_file_id).text
        first, second = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
        alone = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound), temperature=0)
        assert first["response"]["body"]["text"] == alone.text
        assert second["response"]["body"].strip() == alone.text.strip()


def test_a_bucket(tmp_path, monkeypatch):
    server = pytest.importorskip("moto.server")
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }.items():
            monkeypatch.setenv(name, value)
        import boto3

        bucket = boto3.resource("s3").create_bucket(Bucket="kept")
        # What was there before, of others: some of it is called as our files are.
        places, names = ("", "here/", "here/other/"), ("notes", f"file-{32 * '0'}")
        others = {place + name for place in places for name in names}
        for name in others:
            bucket.put_object(Key=name, Body=b"of others")

        def ours():
            keys = {found.key for found in bucket.objects.all()}
            assert others <= keys, "what is of others is gone"
            # Each is called here/STORE/FILE.
            stores = {key.split("/")[1] for key in keys - others}
            assert len(stores) <= 1 and all(key.count("/") == 2 for key in keys - others)
            return {key.split("/")[2] for key in keys - others}

        arguments = [str(FIXTURES / "llava"), "--files", str(tmp_path), "--files-bucket", "s3://kept/here"]
        with (
            contextlib.contextmanager(run)(*arguments) as url,
            openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ):
            # More than one piece of a multipart upload.
            content = os.urandom(20_000_000)
            file = client.files.create(file=("large", content), purpose="user_data")
            assert client.files.content(file.id).read() == content
            assert ours() == {file.id}
            batch = client.batches.create(
                input_file_id=upload(client, lines(3)).id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            batch = finished(client, batch)
            assert batch.request_counts.completed == 3
            assert len(client.files.content(batch.output_file_id).text.splitlines()) == 3
            assert batch.output_file_id in ours()
            client.files.delete(file.id)
            assert file.id not in ours()
        # After a restart all of it is there.
        with (
            contextlib.contextmanager(run)(*arguments) as url,
            openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ):
            assert len(client.files.content(batch.output_file_id).text.splitlines()) == 3
            # A batch begins when the start has looked through the bucket.
            again = client.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert finished(client, again).request_counts.completed == 3
            assert {batch.input_file_id, batch.output_file_id} <= ours()
        # The contents are there, and nowhere else.
        assert not (tmp_path / "files").exists()
    finally:
        store.stop()
