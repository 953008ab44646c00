"""The two demo checkpoints behind one server, and how much of the held-out sets they get right: what a change
anywhere between a file and an answer would spoil. How the sets and the figures are made:
scripts/demo-models."""

import asyncio
import contextlib
import sys

import openai
import pytest
from conftest import FIXTURES, run

ROOT = FIXTURES.parents[1]
sys.path.insert(0, str(ROOT / "scripts/demo-models"))
import evaluate  # noqa: E402

pytestmark = pytest.mark.skipif(
    int(openai.__version__.split(".")[0]) < 2, reason="the newest client asks the same of the server"
)

VLM, WHISPER = evaluate.MODELS["pictures"], evaluate.MODELS["sound"]
QUESTIONS, ALL_CLIPS = evaluate.read("pictures"), evaluate.read("sound")
# A third of them: a debug build takes a second for each.
CLIPS = [clip for clip in ALL_CLIPS if clip["kind"] != "long"][::3]
LONG = next(clip for clip in ALL_CLIPS if clip["kind"] == "long")
SOME_QUESTIONS, SOME_CLIPS = QUESTIONS[::21], CLIPS[::4]

# What the model cards say, less a margin for other processors' rounding.
RIGHT = 0.93
WORD_ERRORS = {
    "clean": 0.08,
    "clean, several sentences": 0.1,
    "noise at 10 dB": 0.08,
    "babble at 10 dB": 0.5,
}
EMPTY = 0.95
# One after another, a window begins where the last one seems to have ended; a mistake there loses sentences.
LONG_WORD_ERRORS = {"sequential": 0.35, "parallel": 0.2}


@contextlib.contextmanager
def serve(*more):
    models = [str(ROOT / "assets/demo" / name) for name in (VLM, WHISPER)]
    yield from run(*models, "--max-sequences", "32", *more)


@pytest.fixture(scope="module")
def url():
    with serve() as url:
        yield url


def client(url):
    return openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=600)


async def ask(client, question, **more):
    return await client.chat.completions.create(
        model=VLM, messages=evaluate.messages(question), temperature=0, max_tokens=64, **more
    )


async def answer(client, question):
    return (await ask(client, question)).choices[0].message.content


async def transcribe(client, clip, **more):
    return await client.audio.transcriptions.create(model=WHISPER, file=clip["file"], **more)


async def transcript(client, clip, **more):
    return (await transcribe(client, clip, **more)).text


async def all_at_once(url, function, items, limit=32):
    """The results for all items, of which `limit` are under way at any time."""
    free = asyncio.Semaphore(limit)

    async with client(url) as one:

        async def turn(item):
            async with free:
                return await function(one, item)

        return await asyncio.gather(*map(turn, items))


@pytest.fixture(scope="module")
def answers(url):
    return asyncio.run(all_at_once(url, answer, QUESTIONS))


@pytest.fixture(scope="module")
def transcripts(url):
    return asyncio.run(all_at_once(url, transcript, CLIPS))


def test_the_sets_are_whole():
    assert len(QUESTIONS) > 400 and len(ALL_CLIPS) > 150
    assert {clip["kind"] for clip in CLIPS if clip["text"]} == set(WORD_ERRORS)


def test_questions_about_pictures(answers):
    score = evaluate.score_pictures(QUESTIONS, answers)
    right, asked = score["all"]
    assert right >= RIGHT * asked, score


def test_what_is_said(transcripts):
    errors, _ = evaluate.score_sound(CLIPS, transcripts)
    for kind, (edits, words) in errors.items():
        assert edits <= WORD_ERRORS[kind] * words, errors


def test_silence_is_empty(transcripts):
    _, (empty, clips) = evaluate.score_sound(CLIPS, transcripts)
    assert empty >= EMPTY * clips, (empty, clips)


async def test_what_else_is_asked_changes_no_answer(url, answers, transcripts):
    together = dict(zip(map(id, QUESTIONS + CLIPS), answers + transcripts, strict=True))
    async with client(url) as one:
        for question in SOME_QUESTIONS:
            assert await answer(one, question) == together[id(question)], question
        for clip in SOME_CLIPS:
            assert await transcript(one, clip) == together[id(clip)], clip["sound"]


async def streamed_answer(client, question):
    stream = await ask(client, question, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def streamed_transcript(client, clip):
    stream = await transcribe(client, clip, stream=True)
    return "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])


async def test_pieces_make_the_whole(url, answers, transcripts):
    together = dict(zip(map(id, QUESTIONS + CLIPS), answers + transcripts, strict=True))
    found = await all_at_once(url, streamed_answer, SOME_QUESTIONS)
    assert found == [together[id(question)] for question in SOME_QUESTIONS]
    found = await all_at_once(url, streamed_transcript, SOME_CLIPS)
    assert [text.strip() for text in found] == [together[id(clip)].strip() for clip in SOME_CLIPS]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
async def test_a_long_recording(url, mode):
    async with client(url) as one:
        text = await transcript(one, LONG, extra_body={"mode": mode})
    edits, words = evaluate.word_errors(LONG["text"], text)
    assert edits <= LONG_WORD_ERRORS[mode] * words, text


async def test_half_the_bits_say_the_same():
    with serve("--dtype", "bf16") as url:
        answers = await all_at_once(url, answer, SOME_QUESTIONS)
        transcripts = await all_at_once(url, transcript, SOME_CLIPS)
    right, asked = evaluate.score_pictures(SOME_QUESTIONS, answers)["all"]
    assert right >= (RIGHT - 0.15) * asked  # of so few
    errors, (empty, clips) = evaluate.score_sound(SOME_CLIPS, transcripts)
    edits, words = (sum(counts) for counts in zip(*errors.values(), strict=True))
    assert edits <= 0.3 * words, errors
    assert empty >= (EMPTY - 0.2) * clips, (empty, clips)
