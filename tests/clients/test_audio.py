"""The unmodified openai package and recordings: every format of an answer, checked by other people's code."""

import asyncio
import io
import json
import struct
import wave

import jsonschema
import openai
import pytest
import srt
import webvtt
from conftest import FIXTURES

SPEECH = FIXTURES / "inputs/speechlike_3s.wav"
DEFINITIONS = json.loads((FIXTURES.parent / "clients/openapi_audio.json").read_text())["$defs"]
# So that the random weights of the fixture do not talk for long.
QUICK = {"extra_body": {"max_new_tokens": 24, "temperatures": "0"}}


def check(value, name):
    """Asserts that a value is what the API's description says under a name."""
    schema = {"$ref": f"#/$defs/{name}", "$defs": DEFINITIONS}
    jsonschema.Draft202012Validator(schema).validate(value)


def quick(**more):
    return {"extra_body": {**QUICK["extra_body"], **more}}


def stereo():
    """The recording on the left, and backwards on the right."""
    with wave.open(str(SPEECH)) as file:
        samples = struct.unpack(f"<{file.getnframes()}h", file.readframes(file.getnframes()))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        both = [sample for pair in zip(samples, reversed(samples), strict=True) for sample in pair]
        file.writeframes(struct.pack(f"<{len(both)}h", *both))
    return out.getvalue()


@pytest.fixture
def client(speech_server):
    return openai.OpenAI(base_url=speech_server, api_key="unused", max_retries=0)


@pytest.fixture
async def async_client(speech_server):
    async with openai.AsyncOpenAI(base_url=speech_server, api_key="unused", max_retries=0) as client:
        yield client


def transcribe(client, file=SPEECH, **more):
    return client.audio.transcriptions.create(file=file, model="whisper-1", **{**QUICK, **more})


def raw(client, file=SPEECH, **more):
    response = client.audio.transcriptions.with_raw_response.create(
        file=file, model="whisper-1", **{**QUICK, **more}
    )
    assert response.headers["x-request-id"].startswith("req_")
    return json.loads(response.text if isinstance(response.text, str) else response.text())


def test_json(client):
    answer = transcribe(client)
    assert answer.text == answer.text.strip()
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 3)
    check(raw(client), "CreateTranscriptionResponseJson")


def test_text_is_a_string(client):
    text = transcribe(client, response_format="text")
    assert text == transcribe(client).text + "\n"


def test_subtitles_can_be_parsed(client):
    segments = transcribe(client, response_format="verbose_json").segments
    spoken = [segment for segment in segments if segment.text.strip()]
    assert spoken, "the fixture says nothing, so this tests nothing"
    cues = list(srt.parse(transcribe(client, response_format="srt")))
    captions = webvtt.from_string(transcribe(client, response_format="vtt")).captions
    assert len(cues) == len(captions) == len(spoken)
    for number, (segment, cue, caption) in enumerate(zip(spoken, cues, captions, strict=True), 1):
        words = segment.text.split()
        assert cue.index == number
        assert cue.content.split() == words
        assert caption.text.split() == words
        assert cue.start.total_seconds() == pytest.approx(segment.start, abs=1e-3)
        assert cue.end.total_seconds() == pytest.approx(segment.end, abs=1e-3)
        assert caption.start_in_seconds == pytest.approx(segment.start, abs=1)


@pytest.mark.parametrize(
    ("asked", "words", "segments"),
    [
        (None, False, True),
        (["segment"], False, True),
        (["word"], True, False),
        (["word", "segment"], True, True),
    ],
)
def test_verbose_json(client, asked, words, segments):
    more = {} if asked is None else {"timestamp_granularities": asked}
    answer = transcribe(client, response_format="verbose_json", language="de", **more)
    assert (answer.language, answer.duration) == ("german", 3.0)
    assert (answer.words is not None, answer.segments is not None) == (words, segments)
    body = raw(client, response_format="verbose_json", language="de", **more)
    check(body, "CreateTranscriptionResponseVerboseJson")
    # The package's types are made from the published description, too.
    type(answer).model_validate(body, strict=True)
    for word in answer.words or []:
        assert word.word == word.word.strip()
        assert 0 <= word.start <= word.end <= answer.duration


def test_logprobs(client):
    answer = raw(client, include=["logprobs"], **quick(languages=["en", "de"]))
    check(answer, "CreateTranscriptionResponseJson")
    assert answer["languages"][0]["code"] in ("en", "de")
    spoken = bytes(byte for token in answer["logprobs"] for byte in token["bytes"])
    assert spoken.decode(errors="replace").strip() != ""
    assert all(token["logprob"] <= 0 for token in answer["logprobs"])


@pytest.mark.parametrize("response_format", ["json", "text"])
def test_stream(client, response_format):
    whole = transcribe(client).text
    events = list(transcribe(client, stream=True, response_format=response_format, include=[]))
    for event in events:
        check(event.to_dict(), "CreateTranscriptionResponseStreamEvent")
    *deltas, done = events
    assert "".join(delta.delta for delta in deltas) == done.text == whole
    assert done.type == "transcript.text.done"


def test_stream_with_segments(client):
    whole = raw(client, response_format="verbose_json")
    *deltas, done = transcribe(client, stream=True, response_format="verbose_json")
    assert done.to_dict()["transcription"] == whole
    assert [delta.to_dict()["segment"] for delta in deltas] == whole["segments"]


def test_leaving_a_stream_is_harmless(client):
    for _ in range(5):
        stream = transcribe(client, stream=True)
        next(iter(stream))
        stream.close()
    assert transcribe(client).text == transcribe(client).text


def test_speakers_by_channel(client):
    file = ("call.wav", stereo())
    answer = raw(client, file=file, response_format="diarized_json", chunking_strategy="auto")
    check(answer, "CreateTranscriptionResponseDiarizedJson")
    assert {segment["speaker"] for segment in answer["segments"]} <= {"A", "B"}
    for event in transcribe(client, file=file, response_format="diarized_json", stream=True):
        check(event.to_dict(), "CreateTranscriptionResponseStreamEvent")
    with pytest.raises(openai.BadRequestError) as caught:
        transcribe(client, response_format="diarized_json")
    assert caught.value.param == "response_format"


def test_translations(client):
    def translate(**more):
        return client.audio.translations.create(file=SPEECH, model="whisper-1", **QUICK, **more)

    text = translate().text
    assert translate(response_format="text") == text + "\n"
    verbose = translate(response_format="verbose_json")
    assert (verbose.text, verbose.language, verbose.duration) == (text, "english", 3.0)
    check(verbose.to_dict(), "CreateTranslationResponseVerboseJson")
    assert webvtt.from_string(translate(response_format="vtt")) is not None
    assert list(srt.parse(translate(response_format="srt"))) is not None


@pytest.mark.parametrize(
    "file",
    [
        SPEECH,
        SPEECH.read_bytes(),
        io.BytesIO(SPEECH.read_bytes()),
        ("voice.mp3", SPEECH.read_bytes(), "audio/mpeg"),
        ("../../etc/passwd\x00.wav;id", SPEECH.read_bytes(), "text/html"),
    ],
    ids=["path", "bytes", "stream", "other name", "evil name"],
)
def test_names_of_files_mean_nothing(client, file):
    assert transcribe(client, file=file).text == transcribe(client).text


def test_options(client):
    def text(**more):
        return transcribe(client, **more).text

    assert text(temperature=0.7, extra_body={"seed": 3, "max_new_tokens": 24}) == text(
        temperature=0.7, extra_body={"seed": 3, "max_new_tokens": 24}
    )
    silences = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 200}
    assert isinstance(text(chunking_strategy=silences), str)
    assert isinstance(text(prompt="", language="english", **quick(beam_size=2, keywords=["Kea"])), str)
    answer = client.audio.transcriptions.with_raw_response.create(
        file=SPEECH, model="whisper-1", **quick(no_such_field=1, user="me")
    )
    assert answer.headers["x-ignored-params"] == "no_such_field, user"


async def test_16_clients_at_once(async_client):
    formats = ["json", "text", "srt", "vtt", "verbose_json", "stream"]

    async def one(kind):
        if kind == "stream":
            stream = await transcribe(async_client, stream=True)
            return "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])
        answer = await transcribe(async_client, response_format=kind)
        return answer if isinstance(answer, str) else answer.to_dict()

    alone = {kind: await one(kind) for kind in formats}
    kinds = [formats[index % len(formats)] for index in range(16)]
    answers = await asyncio.gather(*(one(kind) for kind in kinds))
    assert answers == [alone[kind] for kind in kinds]


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 1.5}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"language": "klingon"}, openai.BadRequestError, "invalid_value", "language"),
        ({"response_format": "xml"}, openai.BadRequestError, "invalid_value", "response_format"),
        (
            {"timestamp_granularities": ["word"]},
            openai.BadRequestError,
            "unsupported_parameter",
            "timestamp_granularities",
        ),
        (
            {"include": ["logprobs"], "response_format": "verbose_json"},
            openai.BadRequestError,
            "unsupported_parameter",
            "include",
        ),
        (
            {"extra_body": {"known_speaker_names": ["Anna"]}},
            openai.BadRequestError,
            "unsupported_parameter",
            "known_speaker_names",
        ),
        ({"file": ("a.wav", b"")}, openai.BadRequestError, "invalid_audio", "file"),
        ({"file": ("a.wav", b"no sound")}, openai.BadRequestError, "invalid_audio_format", "file"),
        ({"file": ("a.wav", bytes(3_000_000))}, openai.APIStatusError, "request_too_large", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdk_s_own(client, change, kind, code, param, stream):
    request = {"model": "whisper-1", "file": SPEECH, **change}
    with pytest.raises(kind) as caught:
        client.audio.transcriptions.create(**request, stream=stream)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id.startswith("req_")
    check({"error": caught.value.body}, "Error")
