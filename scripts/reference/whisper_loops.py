"""The seek loop of `whisper.transcribe` with a script in the model's place.

Every window gets tokens, a mean log-probability, a probability of no speech and
a compression ratio from a list, so that each branch of the loop is met without
a network. The words of `loops_words.json` come from scripted alignments, which
the package's own rules then clean up.
"""

import random
import sys

import numpy as np
import torch
import whisper
import whisper.decoding as wdec
import whisper.timing as wtiming
import whisper.transcribe  # noqa: F401  (the module, patched below)
import whisper_transcripts
from whisper_transcripts import LADDER, Traced, judge, load, plain, reference, write

wtranscribe = sys.modules["whisper.transcribe"]

NOTES = {
    "input": "frames = mel frames of the recording; options = keyword arguments of whisper.transcribe (those absent "
    "have its defaults; language en); windows[].attempts = what the model answers, call by call",
    "expected": "windows[]: seek, size and prompt (after <|startofprev|>) of every call, temperature and failed of "
    "every attempt, skipped; then segments and text",
    "alignment": "words of all text of the window, before punctuation is merged: text, tokens, start, end (seconds "
    "from the window's start), probability; the expected words are in the segments",
    "numbers": "times and seeks are exact to the last bit of a float64 or to 1e-9",
}
SENTENCES = [
    " hello world, this is a test.",
    " thank you for listening!",
    ' what is shown? "the news" (in detail).',
    " bonjour le monde",
    " l'été 2024 — ok",
    " it's we've I'll - [no] 'so'",
    " count: one, two... three; four",
]
BEGIN = 416  # <|0.00|>


class Stuck(Exception):
    """The loop does not come forward: the reference would go on for ever."""


class Scripted:
    """Answers in place of the model."""

    device = torch.device("cpu")
    is_multilingual = True
    num_languages = 8

    def __init__(self, dims, script):
        self.dims, self.script = dims, script
        self.windows = []

    def window(self, mel, length):
        seek, size = mel.storage_offset(), mel.shape[-1]
        if self.windows and seek <= self.windows[-1]["seek"] and not self.script.back:
            raise Stuck
        if len(self.windows) > 40:
            raise Stuck
        self.windows.append({"seek": seek, "size": size, "prompt": [], "attempts": []})
        return mel[:, :0]

    def decode(self, mel, options):
        window = self.windows[-1]
        window["prompt"] = list(options.prompt)[-223:]
        tokens, mean, silence, ratio = self.script.answer(window["size"])
        window["attempts"].append(
            {
                "temperature": options.temperature,
                "tokens": tokens,
                "avg_logprob": mean,
                "no_speech_prob": silence,
                "compression_ratio": ratio,
            }
        )
        return wdec.DecodingResult(
            audio_features=None,
            language="en",
            tokens=tokens,
            avg_logprob=mean,
            no_speech_prob=silence,
            temperature=options.temperature,
            compression_ratio=ratio,
        )

    def align(self, model, tokenizer, text_tokens, mel, num_frames, **kwargs):
        if not text_tokens:
            return []
        words, tokens = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
        words, tokens = words[:-1], tokens[:-1]
        times = self.script.jumps(len(words), num_frames)
        alignment = [
            wtiming.WordTiming(word, ids, np.float64(start), np.float64(end), self.script.probability())
            for word, ids, start, end in zip(words, tokens, times, times[1:])
        ]
        self.windows[-1]["alignment"] = [
            [w.word, list(w.tokens), float(w.start), float(w.end), w.probability] for w in alignment
        ]
        return alignment


class Written:
    """A script of given answers, which must be used up."""

    def __init__(self, *answers, back=False):
        self.answers, self.back = list(answers), back

    def answer(self, size):
        return self.answers.pop(0)


class Random:
    """A script by chance: mostly what the rules for timestamps allow, sometimes not."""

    back = False

    def __init__(self, seed, unruly, calm=False):
        self.rng, self.unruly, self.calm = random.Random(seed), unruly, calm

    def answer(self, size):
        pick = self.rng.choice
        if self.calm:
            return self.tokens(size), -0.5, 0.01, 1.2
        mean = pick([-0.2, -0.45, -0.7, -0.95, -1.0, -1.05, -1.4, -2.0])
        silence = pick([0.001, 0.2, 0.6, 0.601, 0.95])
        return self.tokens(size), mean, silence, pick([0.6, 1.1, 1.3, 2.0, 2.4, 2.401, 5.0])

    def text(self):
        rng = self.rng
        if rng.random() < 0.1:
            return [220] * rng.randint(1, 2)
        words = whisper_transcripts.TOKENIZER.encode(rng.choice(SENTENCES))
        first = rng.randrange(len(words)) if rng.random() < 0.3 else 0
        return words[first : first + rng.randint(1, 12)]

    def tokens(self, size):
        rng = self.rng
        if self.unruly:
            return [
                BEGIN + rng.randrange(1501) if rng.random() < 0.45 else rng.randrange(400)
                for _ in range(rng.randint(0, 12))
            ]
        last = min(1500, max(60, size // 2 + rng.choice([0, 0, 0, 300])))
        count = rng.choice([0, 1, 1, 2, 2, 3, 4])
        times = sorted(rng.sample(range(1, last + 1), 2 * count + 2))
        if rng.random() < 0.3:
            times[0] = 0
        if rng.random() < 0.5:  # a segment begins where the one before ended
            times[2::2] = times[1:-1:2]
        out = []
        for start, end in zip(times[: 2 * count : 2], times[1 : 2 * count : 2]):
            out += [BEGIN + start, *self.text(), BEGIN + end]
        kind = rng.choice(["closed", "open", "open", "pair", "start", "nothing"])
        if kind == "open":
            out += [BEGIN + times[-2], *self.text()]
        if kind == "start":
            out += [BEGIN + times[-2]]
        if kind == "pair" and out:
            out += [out[-1]]
        return out

    def jumps(self, words, frames):
        rng = self.rng
        steps, rate = [], rng.choice([0.1, 0.3, 0.6])
        for _ in range(words + 1):
            steps.append(rng.choice([0, 1, 3, 8, 12, 20, 40, 150 if rng.random() < rate else 10]))
        places = np.cumsum(steps)
        limit = max(frames // 2 - 1, 0)
        if places[-1] > limit:
            places = places * limit // max(places[-1], 1)
        return [int(place) / 50.0 for place in places]

    def probability(self):
        return self.rng.choice([0.02, 0.14, 0.15, 0.4, 0.9, 0.99])


def run(name, frames, script, **options):
    """What the reference makes of a script; None where it would go on for ever."""
    model = Scripted(MODEL.dims, script)
    wtranscribe.log_mel_spectrogram = lambda audio, bins, padding: torch.zeros(bins, frames + padding // 160)
    wtranscribe.pad_or_trim = model.window
    wtiming.find_alignment = model.align
    given = dict(options)
    if isinstance(given.get("temperature"), list):
        given["temperature"] = tuple(given["temperature"])
    try:
        result = whisper.transcribe(model, None, fp16=False, verbose=None, language="en", **given)
    except Stuck:
        return None
    judge(model.windows, options, None)
    if isinstance(script, Written):
        assert not script.answers, name
    return {
        "name": name,
        "frames": frames,
        "options": options,
        "windows": model.windows,
        "segments": plain(result["segments"]),
        "text": result["text"],
    }


def t(seconds):
    return BEGIN + round(seconds * 50)


def written():
    """One case for every branch, in words."""
    say = whisper_transcripts.TOKENIZER.encode
    hello, thanks, monde = say(" hello world"), say(" thank you"), say(" bonjour le monde")
    good, poor = (-0.3, 0.01, 1.0), (-1.5, 0.01, 1.0)
    one = [t(0), *hello, t(30)]
    pairs = [t(0), *hello, t(4), t(4), *thanks, t(9), t(9), *monde]

    yield "no_frames", 0, Written(), {}
    yield "one_frame", 1, Written((one, *good)), {}
    yield "window_and_a_frame", 3001, Written((one, *good), (one, *good)), {}
    yield "single_end", 4000, Written((one, *good), ([t(1), *thanks, t(8)], *good)), {}
    yield "pairs_drop_the_tail", 2000, Written((pairs, *good), ([t(0), *monde, t(11)], *good)), {}
    yield "pairs_then_single_end", 2500, Written(([*pairs, t(20)], *good)), {}
    yield "pair_at_the_end", 1500, Written((pairs[:-3], *good), ([t(2), *monde], *good)), {}
    yield "gap_between_pairs", 3000, Written(([t(0), *hello, t(4), t(6), *thanks, t(29)], *good)), {}
    yield "open_end", 1000, Written(([t(0), *hello], *good)), {}
    yield "open_end_late", 1000, Written(([t(0.5), *hello], *good)), {}
    yield "no_times", 3500, Written((hello, *good), (thanks, *good)), {"without_timestamps": True}
    yield (
        "text_before_times",
        900,
        Written(([*hello, t(2), t(2), *thanks, t(5)], *good)),
        {"without_timestamps": True},
    )
    yield "nothing", 3500, Written(([], *good), ([], *good)), {}
    yield "only_a_time", 3500, Written(([t(1)], *good), ([t(0)], *good)), {}
    yield "blank", 3500, Written(([t(0), 220, 220, t(5)], *good), ([t(0), *hello, t(5)], *good)), {}
    yield (
        "no_length",
        500,
        Written(([t(3), *hello, t(3), t(3), *thanks, t(3), t(3), *monde, t(5)], *good)),
        {},
    )
    yield "beyond_the_end", 500, Written(([t(1), *hello, t(29)], *good)), {}
    yield "pairs_beyond_the_end", 500, Written(([t(1), *hello, t(29), t(29), *thanks], *good)), {}

    for place, temperature in enumerate(LADDER):
        answers = [([t(0), *hello, t(place + 1)], *poor)] * place + [(one, *good)]
        yield f"good_at_{temperature}", 4000, Written(*answers, (one, *good)), {}
    yield "all_fail_last_is_kept", 3000, Written(*[([t(0), *hello, t(n + 1)], *poor) for n in range(6)]), {}
    yield "fails_by_ratio", 3000, Written((one, -0.3, 0.01, 2.41), (one, *good)), {}
    yield "thresholds_are_strict", 3000, Written((one, -1.0, 0.6, 2.4)), {}
    yield (
        "no_rules",
        3000,
        Written((one, -9.0, 0.99, 9.0)),
        {
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
            "no_speech_threshold": None,
        },
    )
    yield "one_temperature", 3000, Written((one, *poor)), {"temperature": 0.4}
    yield "silence_is_no_failure", 4000, Written((one, -1.5, 0.9, 9.0), (one, *good)), {}
    yield "silence_in_a_later_attempt", 4000, Written((one, *poor), (one, -1.5, 0.61, 1.0), (one, *good)), {}
    yield "sure_of_speech", 3000, Written((one, -0.9, 0.99, 1.0)), {}
    yield "mean_at_the_threshold_is_skipped", 3000, Written((one, -1.0, 0.99, 1.0)), {}
    yield "ratio_fails_despite_no_speech", 3000, Written((one, -0.5, 0.99, 3.0), (one, *good)), {}
    yield "silence_without_mean", 3000, Written((one, -0.1, 0.7, 1.0)), {"logprob_threshold": None}
    yield (
        "silence_without_mean_fails",
        3000,
        Written((one, -0.1, 0.7, 3.0), (one, -0.1, 0.7, 1.0)),
        {"logprob_threshold": None},
    )

    three = [(one, *good)] * 3
    yield "conditioned", 9000, Written(*three), {}
    yield "unconditioned", 9000, Written(*three), {"condition_on_previous_text": False}
    yield "hot_resets_the_prompt", 9000, Written(*[(one, *poor)] * 3, *three), {}
    yield "at_half_it_does_not", 9000, Written((one, *poor), *three), {"temperature": [0.0, 0.5]}
    # skipped windows leave the prompt as it is, however hot they were
    hot = [(one, *poor)] * 4 + [(one, -1.5, 0.9, 1.0)]
    yield "hot_silence_keeps_the_prompt", 9000, Written((one, *good), *hot, (one, *good)), {}
    prompt = {"initial_prompt": "  the weather and the news  "}
    yield "initial_prompt", 9000, Written(*three), prompt
    yield "initial_prompt_once", 9000, Written(*three), {**prompt, "condition_on_previous_text": False}
    yield "carried", 9000, Written(*three), {**prompt, "carry_initial_prompt": True}
    yield (
        "carried_reset",
        9000,
        Written(*three),
        {
            **prompt,
            "carry_initial_prompt": True,
            "condition_on_previous_text": False,
        },
    )
    yield "empty_prompt", 6000, Written(*three[:2]), {"initial_prompt": ""}
    many = [t(0), *(hello * 25), t(30)]
    yield "prompt_overflow", 12000, Written(*[(many, *good)] * 4), prompt
    yield "carried_overflow", 12000, Written(*[(many, *good)] * 4), {**prompt, "carry_initial_prompt": True}
    # room left by the prompt: 2, none (then everything is kept), minus 3 (then the first three are left out)
    for length in (221, 223, 226):
        words = TOKENIZER.encode(" " + "test " * 300)
        text = TOKENIZER.decode(words[:length])
        assert len(TOKENIZER.encode(" " + text.strip())) == length, length
        yield (
            f"carried_{length}",
            9000,
            Written(*three),
            {"initial_prompt": text, "carry_initial_prompt": True},
        )

    short = [t(0), *hello, t(2)]
    yield "clips", 9000, Written(*[(short, *good)] * 3), {"clip_timestamps": [1.0, 5.0, 20.0, 60.0]}
    yield "clips_odd", 5000, Written(*[(short, *good)] * 2), {"clip_timestamps": [1.0, 5.0, 30.0]}
    yield "clips_none", 2000, Written((short, *good)), {"clip_timestamps": []}
    yield "clips_string", 2000, Written((short, *good)), {"clip_timestamps": "2,4.5"}
    yield "clips_empty_string", 2000, Written((short, *good)), {"clip_timestamps": ""}
    yield (
        "clips_round_to_even",
        2000,
        Written(*[(short, *good)] * 2),
        {"clip_timestamps": [0.125, 3.135, 5.005, 7.015]},
    )
    yield (
        "clips_of_no_length",
        2000,
        Written((short, *good)),
        {"clip_timestamps": [3.0, 3.0, 9.0, 4.0, 5.0, 6.0]},
    )
    yield "clip_begins_at_the_end", 2000, Written((short, *good)), {"clip_timestamps": [1.0, 2.0, 20.0]}
    yield "clip_begins_behind_the_end", 2000, Written((short, *good)), {"clip_timestamps": [1.0, 2.0, 25.0]}
    yield "clips_touch", 2000, Written(*[(short, *good)] * 2), {"clip_timestamps": [1.0, 2.0, 2.0, 6.0]}
    yield (
        "clips_overlap",
        2000,
        Written(*[(short, *good)] * 2, back=True),
        {"clip_timestamps": [1.0, 9.0, 2.0, 6.0]},
    )
    # the next clip begins at its own start, though the window before went further
    jump = [t(0), *hello, t(8), t(8), *thanks]
    yield (
        "clip_jumped_over",
        3000,
        Written((jump, *good), (short, *good)),
        {"clip_timestamps": [1.0, 3.0, 5.0, 12.0]},
    )


def random_options(rng):
    """Options of the loop by chance; most are left alone."""
    options = {}
    if rng.random() < 0.4:
        options["temperature"] = rng.choice([0.0, 0.7, [0.0, 0.5], [0.0, 0.6, 1.0], [0.2, 0.8]])
    for name, values in (
        ("compression_ratio_threshold", [None, 1.2, 2.0]),
        ("logprob_threshold", [None, -0.7, -1.4]),
        ("no_speech_threshold", [None, 0.2, 0.9]),
    ):
        if rng.random() < 0.25:
            options[name] = rng.choice(values)
    if rng.random() < 0.3:
        options["condition_on_previous_text"] = False
    if rng.random() < 0.3:
        options["initial_prompt"] = rng.choice(SENTENCES)
        options["carry_initial_prompt"] = rng.random() < 0.5
    return options


def random_clips(rng, frames):
    places = sorted(rng.randrange(frames) for _ in range(rng.choice([1, 2, 3, 4])))
    return [place / 100 for place in places]


def loops():
    for name, frames, script, options in written():
        found = run(name, frames, script, **options)
        assert found is not None, name
        yield found
    endless = 0
    for seed in range(110):
        rng = random.Random(1000 + seed)
        frames = rng.choice([rng.randint(1, 900), rng.randint(900, 4000), rng.randint(4000, 9000)])
        options = random_options(rng)
        if rng.random() < 0.2:
            options["clip_timestamps"] = random_clips(rng, frames)
        unruly = seed % 8 == 7
        if unruly:
            options["without_timestamps"] = True
        found = run(f"random_{seed}", frames, Random(seed, unruly), **options)
        endless += found is None
        if found is not None:
            yield found
    print(f"{endless} random scripts left out: the reference does not come forward")


def words():
    endless = 0
    for seed in range(76):
        rng = random.Random(5000 + seed)
        frames = rng.choice([rng.randint(1, 900), rng.randint(900, 4000), rng.randint(3000, 6500)])
        options = {"word_timestamps": True, "condition_on_previous_text": seed % 8 == 0}
        if seed % 4:
            options["hallucination_silence_threshold"] = rng.choice([0.1, 0.5, 1.0, 2.0, 4.0])
        if rng.random() < 0.1:
            options["clip_timestamps"] = random_clips(rng, frames)
        found = run(f"words_{seed}", frames, Random(seed, False, calm=True), **options)
        endless += found is None
        if found is not None:
            yield found
    print(f"{endless} scripts of words left out: the reference does not come forward")


if __name__ == "__main__":
    MODEL, TOKENIZER = load(Traced)
    whisper_transcripts.TOKENIZER = TOKENIZER
    assert TOKENIZER.timestamp_begin == BEGIN
    write("loops.json", {"reference": reference(), "notes": NOTES, "cases": list(loops())})
    write("loops_words.json", {"reference": reference(), "notes": NOTES, "cases": list(words())})
