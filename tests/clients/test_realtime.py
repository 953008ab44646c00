"""Speech that is written down while it is said, with openai's own realtime client."""

import base64
import sys
import wave
from pathlib import Path

import openai
import pytest
from conftest import run

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"
SENTENCE = ASSETS / "samples" / "sentence.wav"
PIECE = "conversation.item.input_audio_transcription.delta"
WHOLE = "conversation.item.input_audio_transcription.completed"
# The class of the older API is gone in version 3.
HAS_BETA = hasattr(openai.resources.beta, "realtime") and openai.VERSION < "2"


@pytest.fixture(scope="module")
def demo():
    yield from run(f"whisper={ASSETS / 'percept-demo-whisper'}")


def client(demo):
    """Over http, older versions have to be told not to dial wss."""
    base = f"{demo}/v1" if not demo.endswith("/v1") else demo
    return openai.OpenAI(base_url=base, api_key="none", websocket_base_url=base.replace("http://", "ws://"))


@pytest.fixture(scope="module")
def said(demo):
    with SENTENCE.open("rb") as file:
        return client(demo).audio.transcriptions.create(model="whisper", file=file).text


def sound(silence=0.0):
    """The sentence at 24 kHz, as base64 of a tenth of a second each, and silence behind it."""
    with wave.open(str(SENTENCE)) as file:
        samples = memoryview(file.readframes(file.getnframes())).cast("h")
    count = len(samples) * 3 // 2 - 3
    pcm = bytearray()
    for index in range(count):
        at, part = divmod(index * 2, 3)
        sample = (samples[at] * (3 - part) + samples[at + 1] * part) // 3
        pcm += sample.to_bytes(2, "little", signed=True)
    pcm += bytes(2 * int(silence * 24000))
    return [base64.b64encode(pcm[at : at + 4800]).decode() for at in range(0, len(pcm), 4800)]


def until(connection, kind):
    events = []
    for event in connection:
        assert event.type != "error", event
        events.append(event)
        if event.type == kind:
            return events
    pytest.fail(f"no {kind}")


def check(events, said):
    last = events[-1]
    assert last.transcript == said
    assert last.usage.type == "duration"
    assert last.usage.seconds > 0
    assert "".join(event.delta for event in events if event.type == PIECE) == said
    assert {event.item_id for event in events if event.type in (PIECE, WHOLE)} == {last.item_id}


def test_turns_are_found(demo, said):
    # Older versions want a model.
    more = {"model": "whisper"} if openai.VERSION < "2" else {}
    with client(demo).realtime.connect(extra_query={"intent": "transcription"}, **more) as connection:
        created = connection.recv()
        assert created.type == "session.created"
        assert created.session.type == "transcription"
        transcription = {"model": "whisper", "language": "en"}
        audio = {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": transcription}}
        connection.session.update(session={"type": "transcription", "audio": audio})
        assert connection.recv().type == "session.updated"
        for piece in sound(silence=1.5):
            connection.input_audio_buffer.append(audio=piece)
        events = until(connection, WHOLE)
        check(events, said)
        kinds = [event.type for event in events if event.type != PIECE]
        assert kinds == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            WHOLE,
        ]


def test_the_client_ends_turns(demo, said):
    with client(demo).realtime.connect(model="whisper") as connection:
        connection.recv()
        audio = {"input": {"turn_detection": None}}
        connection.session.update(session={"type": "transcription", "audio": audio})
        assert connection.recv().session.audio.input.turn_detection is None
        connection.input_audio_buffer.commit()
        error = connection.recv()
        assert (error.type, error.error.code) == ("error", "input_audio_buffer_commit_empty")
        for piece in sound():
            connection.input_audio_buffer.append(audio=piece)
        connection.input_audio_buffer.commit()
        check(until(connection, WHOLE), said)
        connection.input_audio_buffer.append(audio=sound()[0])
        connection.input_audio_buffer.clear()
        assert connection.recv().type == "input_audio_buffer.cleared"


@pytest.mark.skipif(not hasattr(openai.resources, "realtime"), reason="it came with 1.107")
def test_a_page_s_secret_opens_a_session(demo, said):
    transcription = {"model": "whisper", "language": "en"}
    audio = {"input": {"transcription": transcription, "turn_detection": None}}
    made = client(demo).realtime.client_secrets.create(
        expires_after={"anchor": "created_at", "seconds": 60},
        session={"type": "transcription", "audio": audio},
    )
    assert made.session.type == "transcription" and made.session.audio.input.transcription.language == "en"
    page = client(demo).with_options(api_key=made.value)
    with page.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        created = connection.recv()
        assert created.session.audio.input.turn_detection is None
        for piece in sound():
            connection.input_audio_buffer.append(audio=piece)
        connection.input_audio_buffer.commit()
        check(until(connection, WHOLE), said)


@pytest.mark.skipif(not HAS_BETA, reason="this version has the newer API only")
def test_the_older_api(demo, said):
    query = {"intent": "transcription"}
    with client(demo).beta.realtime.connect(model="whisper", extra_query=query) as connection:
        assert connection.recv().type == "session.created"
        session = {
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1"},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
        }
        connection.transcription_session.update(session=session)
        updated = connection.recv()
        assert updated.type == "transcription_session.updated"
        assert updated.session.turn_detection.silence_duration_ms == 400
        for piece in sound(silence=1.5):
            connection.input_audio_buffer.append(audio=piece)
        events = until(connection, WHOLE)
        check(events, said)
        assert "conversation.item.created" in [event.type for event in events]


def test_a_wrong_model_is_told_before_the_socket_is_open(demo):
    with pytest.raises(Exception, match="404"), client(demo).realtime.connect(model="nobody"):
        sys.exit("it was opened")
