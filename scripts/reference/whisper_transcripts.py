"""Whole transcripts of the tiny Whisper checkpoint, by the openai-whisper package.

`whisper.transcribe` runs unchanged but for the draws above temperature 0, which
take their random numbers from a counter-based generator (see `Draws`), so that
another implementation can repeat them. A case whose decisions are close is
replaced by the same case on another stretch of sound: `Gaps` and `safe` say what close is.
"""

import json
import math
import sys

import numpy as np
import torch
import whisper
import whisper.decoding as wdec
import whisper.timing as wtiming
import whisper.transcribe  # noqa: F401  (the module, patched below)
from make_goldens import sound_pattern
from make_models import WHISPER_LANGS
from refcommon import GOLDENS, INPUTS, MODELS, read_wav
from whisper_goldens import Tiny, build_encoding, load_model, use_tokenizer

wtranscribe = sys.modules["whisper.transcribe"]
OUT = GOLDENS / "whisper"
RATE = 16000
LADDER = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

# What another float32 implementation is trusted to keep: differences of logits and of mean
# log-probabilities, and the change of all logits by which a draw would be another one.
LOGIT_GAP = 2e-3
DRAW_GAP = 1e-4
# Noise on the standardised attention that words must survive, and how often it is tried.
WORD_NOISE, WORD_TRIES = 1e-4, 4
SHIFTS = 80

NOTES = {
    "sound": "sound_pattern (README of scripts/reference) from sample `from` on, `samples` of them, those in the "
    "half-open ranges `silent` set to 0; or the samples of `file` under inputs/; divided by 32768",
    "options": "keyword arguments of whisper.transcribe; those absent have its defaults; `seed` is base_seed",
    "draws": "above temperature 0: weights exp((logit - max) / T) in float32 (0 for suppressed ids), summed in "
    "float64 in order of id; the first id whose running sum exceeds u times the total. u = uniform(seed, index) of "
    "Philox4x32-10: key = seed, counter = index, the first two words of the result as one little-endian u64, its "
    "upper 53 bits over 2^53. index = tokens drawn so far in the sequence, from 0. seed = base_seed + 1000003 * "
    "seek + 1009 * attempt + sample, wrapping in 64 bits: seek is the window's first mel frame, attempt the index "
    "of the temperature, sample which of best_of",
    "windows": "what was decoded, in order: seek and size in mel frames; prompt after <|startofprev|>; attempts "
    "with failed = falls back; skipped = taken for silence",
    "gaps": "the closest decisions of the case: top = between the two largest logits, rule = timestamps against "
    "the best text, draw = the change of every logit that could change a draw, beam = between the last candidate "
    "kept and the next, rank = between the two best sequences, threshold = to a threshold of a mean log-probability",
    "tolerance": "tokens, texts, times, seeks and decisions are exact; avg_logprob 2e-3; no_speech_prob and word "
    "probability 1% or 1e-6; language 1e-3; compression_ratio depends on the deflate library by a byte or two",
}


# --------------------------------------------------------------------------
# random numbers
# --------------------------------------------------------------------------


def philox(counter, key):
    counter, key = list(counter), list(key)
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ counter[3] ^ key[1],
            first & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


# Random123, kat_vectors: philox4x32 with 10 rounds.
assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [
    0xD16CFE09,
    0x94FDCCEB,
    0x5001E420,
    0x24126EA1,
]


def uniform(seed, index):
    low, high, *_ = philox(
        [index & 0xFFFFFFFF, index >> 32, 0, 0], [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    )
    return ((high << 32 | low) >> 11) / (1 << 53)


# --------------------------------------------------------------------------
# watching the decoder
# --------------------------------------------------------------------------


class Close(Exception):
    """A decision that another implementation may take the other way."""


class Gaps:
    """The closest decisions so far."""

    def __init__(self):
        self.least = {}

    def note(self, kind, gap):
        gap = float(gap)
        if gap < (DRAW_GAP if kind == "draw" else LOGIT_GAP):
            raise Close(f"{kind} {gap:.2g}")
        if math.isfinite(gap):
            self.least[kind] = min(gap, self.least.get(kind, math.inf))


class Functional:
    """torch.nn.functional for whisper.decoding, remembering the last log_softmax."""

    pad = staticmethod(torch.nn.functional.pad)

    def log_softmax(self, *args, **kwargs):
        self.last = torch.nn.functional.log_softmax(*args, **kwargs)
        return self.last


class Draws:
    """Stands in for torch's Categorical: the inverse of the distribution function at `uniform`."""

    def __init__(self, run):
        self.run = run

    def __call__(self, logits):
        return self

    def sample(self):
        run = self.run
        return torch.tensor([self.one(row, sample) for sample, row in enumerate(run.rows)])

    def one(self, row, sample):
        run = self.run
        row = row.float().numpy()
        weights = np.exp((row - row.max()) / np.float32(run.temperature), dtype=np.float32)
        steps = np.cumsum(weights.astype(np.float64))
        u = uniform(run.seed(sample), run.index)
        drawn = int(np.searchsorted(steps, u * steps[-1], side="right"))
        if not run.ended[sample]:
            for below in {drawn - 1, drawn}:
                step = steps[below] / steps[-1] if below >= 0 else 0.0
                if 0.0 < step < 1.0:
                    slope = 2.0 * step * (1.0 - step) / run.temperature
                    run.gaps.note("draw", abs(u - step) / slope)
        return drawn


class Run:
    """One transcription: what the patched parts of the package know of it and note down."""

    def __init__(self, base_seed=0):
        self.base_seed = base_seed
        self.gaps = Gaps()
        self.windows = []
        self.language_probs = None

    def seed(self, sample):
        seek, attempt = self.windows[-1]["seek"], len(self.windows[-1]["attempts"])
        return (self.base_seed + 1000003 * seek + 1009 * attempt + sample) % (1 << 64)

    def step(self, decoder, tokens, logits):
        decoder.drawn = getattr(decoder, "drawn", -1) + 1
        self.index, self.rows = decoder.drawn, logits.clone()
        self.temperature = getattr(decoder, "temperature", 0.0)
        self.ended = (tokens[:, -1] == decoder.eot).tolist()


RUN = Run()


def watch_decoder():
    """Patches whisper.decoding to draw as described and to note how close its decisions are."""
    functional = wdec.F = Functional()

    class Categorical:
        def __new__(cls, logits):
            return Draws(RUN)

    wdec.Categorical = Categorical
    greedy, apply = wdec.GreedyDecoder.update, wdec.ApplyTimestampRules.apply
    beams, finish = wdec.BeamSearchDecoder.update, wdec.BeamSearchDecoder.finalize
    rank = wdec.MaximumLikelihoodRanker.rank

    def update_greedy(this, tokens, logits, sums):
        RUN.step(this, tokens, logits)
        if this.temperature == 0:
            two = torch.topk(logits[0], 2).values
            RUN.gaps.note("top", two[0] - two[1])
        return greedy(this, tokens, logits, sums)

    def apply_rules(this, logits, tokens):
        apply(this, logits, tokens)
        begin = this.tokenizer.timestamp_begin
        for row, last in zip(functional.last, tokens[:, -1]):
            if last != this.tokenizer.eot:
                RUN.gaps.note("rule", (row[begin:].logsumexp(-1) - row[:begin].max()).abs())

    def update_beams(this, tokens, logits, sums):
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        scores = {}
        for j in range(this.beam_size):
            for logprob, token in zip(*logprobs[j].topk(this.beam_size + 1)):
                scores[(*tokens[j].tolist(), int(token))] = float(sums[j] + logprob)
        order = sorted(scores.items(), key=lambda item: -item[1])
        kept = [place for place, (sequence, _) in enumerate(order) if sequence[-1] != this.eot]
        last = kept[this.beam_size - 1]
        if last + 1 < len(order):
            RUN.gaps.note("beam", order[last][1] - order[last + 1][1])
        ended = [score for sequence, score in order[:last] if sequence[-1] == this.eot]
        room = this.max_candidates - len((this.finished_sequences or [{}])[0])
        if 0 < room < len(ended):
            RUN.gaps.note("beam", ended[room - 1] - ended[room])
        return beams(this, tokens, logits, sums)

    def finalize_beams(this, tokens, sums):
        missing = this.beam_size - len(this.finished_sequences[0])
        scores = sorted(sums[0].tolist(), reverse=True)
        if 0 < missing < len(scores):
            RUN.gaps.note("beam", scores[missing - 1] - scores[missing])
        return finish(this, tokens, sums)

    def rank_all(this, tokens, sums):
        best = {}
        for sequence, total in zip(tokens[0], sums[0]):
            alpha = this.length_penalty
            length = len(sequence) if alpha is None else ((5 + len(sequence)) / 6) ** alpha
            key = tuple(sequence.tolist())
            best[key] = max(total / length, best.get(key, -math.inf))
        if len(best) > 1:
            first, second = sorted(best.values(), reverse=True)[:2]
            RUN.gaps.note("rank", first - second)
        return rank(this, tokens, sums)

    wdec.GreedyDecoder.update = update_greedy
    wdec.ApplyTimestampRules.apply = apply_rules
    wdec.BeamSearchDecoder.update, wdec.BeamSearchDecoder.finalize = update_beams, finalize_beams
    wdec.MaximumLikelihoodRanker.rank = rank_all


class Traced(Tiny):
    """Notes every window and attempt in RUN."""

    def decode(self, mel, options):
        window = RUN.windows[-1]
        prompt = list(options.prompt or [])[-223:]
        assert not window["attempts"] or window["prompt"] == prompt
        window["prompt"] = prompt
        result = wdec.decode(self, mel, options)
        window["attempts"].append(
            {
                "temperature": result.temperature,
                "tokens": result.tokens,
                "avg_logprob": result.avg_logprob,
                "no_speech_prob": result.no_speech_prob,
                "compression_ratio": result.compression_ratio,
            }
        )
        return result

    def detect_language(self, mel, tokenizer=None):
        found, probs = wdec.detect_language(self, mel, tokenizer)
        RUN.windows.clear()  # this window was only listened to
        RUN.language_probs = {code: probs[code] for code in WHISPER_LANGS}
        first, second = sorted(probs.values(), reverse=True)[:2]
        RUN.gaps.note("top", math.log(first / second))
        return found, probs


def watch_windows():
    """Notes where each window lies: it is a view of the recording's spectrum."""
    pad_or_trim = wtranscribe.pad_or_trim

    def note(mel, length):
        if mel.shape[-1] <= 3000:
            RUN.windows.append({"seek": mel.storage_offset(), "size": mel.shape[-1], "attempts": []})
        return pad_or_trim(mel, length)

    wtranscribe.pad_or_trim = note


# --------------------------------------------------------------------------
# one case
# --------------------------------------------------------------------------

SOUND = sound_pattern(120 * RATE)


def make_sound(sound):
    if "file" in sound:
        return read_wav(INPUTS / sound["file"])
    samples = SOUND[sound["from"] :][: sound["samples"]].copy()
    assert len(samples) == sound["samples"]
    for first, last in sound.get("silent", []):
        samples[first:last] = 0
    return samples.astype(np.float32) / 32768.0


def thresholds(options):
    defaults = {"compression_ratio_threshold": 2.4, "logprob_threshold": -1.0, "no_speech_threshold": 0.6}
    return [options.get(name, default) for name, default in defaults.items()]


def note_thresholds(gaps, attempt, options):
    ratio_limit, logprob_limit, silence_limit = thresholds(options)
    ratio, mean, silence = (attempt[key] for key in ("compression_ratio", "avg_logprob", "no_speech_prob"))
    if logprob_limit is not None:
        gaps.note("threshold", abs(mean - logprob_limit))
    if silence_limit is not None:
        gaps.note("threshold", abs(math.log(silence / silence_limit)))
    if ratio_limit is not None and ratio > 0:
        # another deflate may need a byte more or less
        text = len(TOKENIZER.decode(attempt["tokens"]).strip().encode())
        packed = round(text / ratio)
        if len({text / (packed + more) > ratio_limit for more in (-1, 0, 1)}) > 1:
            gaps.note("threshold", 0.0)


def judge(windows, options, gaps):
    """Adds the decisions to the attempts, by the rules of whisper.transcribe; notes how close they are in `gaps`."""
    ratio_limit, logprob_limit, silence_limit = thresholds(options)
    temperatures = options.get("temperature", LADDER)
    temperatures = temperatures if isinstance(temperatures, list) else [temperatures]
    for window in windows:
        for attempt in window["attempts"]:
            ratio, mean, silence = (
                attempt[key] for key in ("compression_ratio", "avg_logprob", "no_speech_prob")
            )
            poor = logprob_limit is not None and mean < logprob_limit
            silent = silence_limit is not None and silence > silence_limit
            failed = (ratio_limit is not None and ratio > ratio_limit) or poor
            attempt["failed"] = failed and not (silent and poor)
            if gaps is not None:
                note_thresholds(gaps, attempt, options)
        last = window["attempts"][-1]
        assert [a["temperature"] for a in window["attempts"]] == temperatures[: len(window["attempts"])]
        assert last["failed"] is False or len(window["attempts"]) == len(temperatures)
        assert all(attempt["failed"] for attempt in window["attempts"][:-1])
        silent = silence_limit is not None and last["no_speech_prob"] > silence_limit
        sure = logprob_limit is not None and last["avg_logprob"] > logprob_limit
        window["skipped"] = silent and not sure


def transcribe(sound, options):
    global RUN
    RUN = Run(options.get("seed", 0))
    given = {key: value for key, value in options.items() if key != "seed"}
    if "temperature" in given and isinstance(given["temperature"], list):
        given["temperature"] = tuple(given["temperature"])
    result = whisper.transcribe(MODEL, make_sound(sound), fp16=False, verbose=None, **given)
    judge(RUN.windows, options, RUN.gaps)
    return result, RUN


def words_of(result):
    return [
        (
            segment["start"],
            segment["end"],
            segment["seek"],
            [(w["word"], w["start"], w["end"]) for w in segment["words"]],
        )
        for segment in result["segments"]
    ]


def words_are_steady(sound, options, result):
    """Whether noise in the attention leaves every time as it is."""
    filtered = wtiming.median_filter
    try:
        for trial in range(WORD_TRIES):
            generator = torch.Generator().manual_seed(trial)

            def noisy(x, width, generator=generator):
                return filtered(x + WORD_NOISE * torch.randn(x.shape, generator=generator), width)

            wtiming.median_filter = noisy
            other, _ = transcribe(sound, options)
            if words_of(other) != words_of(result):
                return False
    finally:
        wtiming.median_filter = filtered
    return True


def plain(value):
    """Numbers as they are stored: six digits of measured ones, times exactly."""
    if isinstance(value, dict):
        rough = {"avg_logprob", "no_speech_prob", "compression_ratio", "probability"}
        return {k: float(f"{float(v):.6g}") if k in rough else plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def safe(sound, options, expect):
    """The transcript, if another implementation in float32 can be asked for the very same one."""
    result, run = transcribe(sound, options)
    if expect is not None and not expect(result, run):
        raise Close("not what the case is for")
    if options.get("word_timestamps") and not words_are_steady(sound, options, result):
        raise Close("words")
    return result, run


def case(name, sound, expect=None, **options):
    """The first stretch of sound, and seed, for which the case is safe and does what it is there for."""
    options = {"sample_len": 24, **options}
    temperature = options.get("temperature", LADDER)
    draws = isinstance(temperature, list) and max(temperature) > 0
    tried = []
    for shift in range(SHIFTS):
        moved = dict(sound)
        if "samples" in sound:
            moved = {"from": shift * 4000, **sound}
        if draws:
            options["seed"] = shift
        try:
            result, run = safe(moved, options, expect)
            break
        except Close as close:
            tried.append(str(close))
    else:
        raise SystemExit(f"{name}: no safe stretch of sound: {tried}")
    print(
        f"{name}: shift {shift}, {len(run.windows)} windows, {len(result['segments'])} segments",
        run.gaps.least,
    )
    out = {"name": name, "sound": moved, "options": options, "language": result["language"]}
    if run.language_probs:
        out["language_probs"] = {k: float(f"{v:.6g}") for k, v in run.language_probs.items()}
    out["text"] = result["text"]
    out["segments"] = plain(result["segments"])
    out["windows"] = plain(run.windows)
    out["gaps"] = {kind: float(f"{gap:.3g}") for kind, gap in sorted(run.gaps.least.items())}
    return out


# --------------------------------------------------------------------------
# the cases
# --------------------------------------------------------------------------


def seconds(duration, silent=None):
    return {"samples": round(duration * RATE), **({"silent": silent} if silent else {})}


# What a case must show, as far as the name promises more than the options.


def falls_back(result, run):
    return len({window["attempts"][-1]["temperature"] for window in run.windows}) > 2


def all_failed(result, run):
    return all(window["attempts"][-1]["failed"] for window in run.windows)


def some_skipped(result, run):
    return len({window["skipped"] for window in run.windows}) == 2


def prompt_is_full(result, run):
    return len(run.windows[-1]["prompt"]) == 223


def some_words(result, run):
    return sum(len(segment["words"]) for segment in result["segments"]) > 3


def cases():
    file = {"file": "speechlike_3s.wav"}
    en = {"language": "en"}
    greedy = {
        "temperature": 0.0,
        "compression_ratio_threshold": None,
        "logprob_threshold": None,
        "no_speech_threshold": None,
    }
    basic = {**en, **greedy}
    strict = {**en, "compression_ratio_threshold": 1.55, "logprob_threshold": -0.8}
    alone = {"condition_on_previous_text": False}
    gaps = [[6 * RATE, 22 * RATE], [40 * RATE, 52 * RATE]]

    # lengths and ends
    yield case("empty", seconds(0), **basic)
    yield case("empty_detected", seconds(0), **greedy)
    yield case("samples_100", {"samples": 100}, **basic)
    yield case("samples_159", {"samples": 159}, **basic)
    yield case("one_frame", {"samples": 160}, **basic)
    yield case("samples_201", {"samples": 201}, **basic)
    yield case("one_second", seconds(1), **basic)
    yield case("file", file, **basic)
    yield case("exactly_30", seconds(30), **basic)
    yield case("just_over_30", seconds(30.01), **basic)
    yield case("long_45", seconds(45), **basic)
    yield case("long_95_silences", seconds(95, gaps), **basic)
    yield case("all_silent", seconds(31, [[0, 31 * RATE]]), **basic)

    # language and task
    yield case("detected", seconds(45), **greedy)
    yield case("detected_file", file, **greedy)
    yield case("german", seconds(33), language="de", **greedy)
    yield case("translate", seconds(33), language="fr", task="translate", **greedy)
    yield case("translate_detected", seconds(20), task="translate", **greedy)

    # prompts
    prompt = {"initial_prompt": "thank you for listening to the news"}
    carried = {**prompt, "carry_initial_prompt": True}
    overlong = {
        "initial_prompt": " ".join(["the weather and the news, a short recording of a person speaking"] * 12)
    }
    yield case("unconditioned", seconds(95), **alone, **basic)
    yield case("initial_prompt", seconds(45), **prompt, **basic)
    yield case("initial_prompt_unconditioned", seconds(45), **prompt, **alone, **basic)
    yield case("carried", seconds(70), **carried, **basic)
    yield case("carried_unconditioned", seconds(70), **carried, **alone, **basic)
    yield case("prompt_overflow", seconds(45), **overlong, **basic)
    yield case("carried_overflow", seconds(45), **overlong, carry_initial_prompt=True, **basic)
    yield case("text_overflow", seconds(95), prompt_is_full, sample_len=80, without_timestamps=True, **basic)
    yield case("prefix", seconds(33), prefix="hello world", **basic)
    yield case("prefix_no_times", seconds(20), prefix=" hello ", without_timestamps=True, **basic)

    # rules for tokens
    yield case("no_times", seconds(45), without_timestamps=True, **basic)
    yield case("late_start", seconds(33), max_initial_timestamp=None, **basic)
    yield case("late_start_zero", seconds(33), max_initial_timestamp=0.0, **basic)
    yield case("early_start", seconds(33), max_initial_timestamp=0.1, **basic)
    yield case("suppress_nothing", seconds(33), suppress_tokens="", suppress_blank=False, **basic)
    yield case("suppress_string", seconds(33), suppress_tokens="166,303,250", **basic)
    yield case("suppress_list", seconds(33), suppress_tokens=[-1, 166, 303], **basic)

    # clips
    yield case("clips_odd", seconds(45), clip_timestamps=[5.0, 9.5, 31.25], **basic)
    yield case("clips_string", seconds(45), clip_timestamps="1.125,33.335", **basic)
    yield case("clips_even", seconds(45), clip_timestamps=[0.5, 2.0, 2.0, 40.0, 44.0, 44.8], **basic)
    yield case("clips_backwards", seconds(20), clip_timestamps=[9.0, 4.0, 12.0, 12.0, 3.0, 7.0], **basic)

    # silence
    quiet = {"no_speech_threshold": 1e-4, "logprob_threshold": -0.5, "compression_ratio_threshold": 1.2}
    unsure = {**basic, "no_speech_threshold": 1.5e-4}
    yield case("silence", seconds(95, gaps), some_skipped, **alone, **{**basic, **quiet})
    yield case("silence_ladder", seconds(95, gaps), some_skipped, **alone, **en, **quiet)
    yield case("silence_no_logprob", seconds(60), some_skipped, **alone, **unsure)

    # falling back
    ladder = [0.0, 0.4, 0.8]
    hopeless = {"compression_ratio_threshold": 0.3, "logprob_threshold": -0.2}
    yield case("ladder", seconds(95), falls_back, **strict)
    yield case("ladder_unconditioned", seconds(95), falls_back, **strict, **alone)
    yield case("ladder_detected", seconds(60), falls_back, **{**strict, "language": None})
    yield case("ladder_carried", seconds(60), falls_back, **carried, **strict)
    yield case("ladder_no_times", seconds(60), without_timestamps=True, **strict)
    yield case("ladder_defaults", seconds(33), **en)
    yield case("all_fail", seconds(45), all_failed, **en, **hopeless)
    yield case("only_warm", seconds(45), **{**basic, "temperature": [0.3]})
    yield case("only_hot", seconds(45), **{**basic, "temperature": [1.0]})
    yield case("two_hot", seconds(60), temperature=[0.5, 0.7], **strict)
    yield case("best_of_3", seconds(45), falls_back, best_of=3, **strict)
    yield case("best_of_2_penalty", seconds(33), best_of=2, length_penalty=0.6, temperature=ladder, **strict)

    # beams
    yield case("beam_2", seconds(20), beam_size=2, **basic)
    yield case("beam_5", seconds(33), beam_size=5, **basic)
    yield case("beam_3_patience", seconds(33), beam_size=3, patience=2.0, **basic)
    yield case("beam_3_impatient", seconds(20), beam_size=3, patience=0.4, **basic)
    yield case("beam_4_penalty", seconds(20), beam_size=4, length_penalty=1.0, **basic)
    yield case("beam_no_penalty", seconds(20), beam_size=3, length_penalty=0.0, **basic)
    yield case("beam_then_best_of", seconds(33), beam_size=3, patience=1.5, best_of=2, **strict)

    # words
    timed = {"word_timestamps": True, **basic}
    skip = "hallucination_silence_threshold"
    yield case("words_file", file, some_words, **timed)
    yield case("words", seconds(45), some_words, **timed)
    yield case("words_japanese", seconds(20), some_words, **{**timed, "language": "ja"})
    yield case("words_unconditioned", seconds(45), some_words, **alone, **timed)
    yield case("words_no_times", seconds(33), some_words, without_timestamps=True, **timed)
    yield case("words_one_frame", {"samples": 160}, **timed)
    yield case("words_three_frames", {"samples": 480}, **timed)
    yield case("words_clips", seconds(45), some_words, clip_timestamps=[3.0, 12.0, 30.0], **timed)
    yield case("words_silences", seconds(60, gaps), some_words, **timed)
    yield case("words_ladder", seconds(33), some_words, word_timestamps=True, temperature=ladder, **strict)
    yield case("words_hallucination", seconds(60, gaps), **timed, **{skip: 2.0})
    yield case("words_hallucination_short", seconds(33), **timed, **{skip: 0.5})


def lines(value, indent=0):
    """JSON with one line for everything that fits on one."""
    flat = json.dumps(value, ensure_ascii=False)
    numbers = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
    if numbers or len(flat) + indent <= 118 or not isinstance(value, (dict, list)):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, list):
        body = [pad + lines(v, indent + 1) for v in value]
        return "[\n" + ",\n".join(body) + "\n" + pad[1:] + "]"
    body = [pad + json.dumps(k) + ": " + lines(v, indent + 1) for k, v in value.items()]
    return "{\n" + ",\n".join(body) + "\n" + pad[1:] + "}"


def write(name, content):
    path = OUT / name
    path.write_text(lines(content) + "\n", encoding="utf-8")
    size = path.stat().st_size
    print(f"{name}: {size / 1000:.0f} kB")
    assert size < 400_000, size


def reference():
    return {
        "openai-whisper": whisper.__version__,
        "torch": torch.__version__.split("+")[0],
        "dtype": "float32",
    }


def load(kind):
    """The package with the tiny checkpoint's tokenizer in it, and the model."""
    path = MODELS / "whisper"
    read = lambda name: json.loads((path / name).read_text())  # noqa: E731
    get_tokenizer = use_tokenizer(build_encoding(read("tokenizer.json")))
    model = load_model(path, read("config.json"), read("generation_config.json"), kind)
    return model, get_tokenizer(True)


if __name__ == "__main__":
    MODEL, TOKENIZER = load(Traced)
    watch_decoder()
    watch_windows()
    write("transcripts.json", {"reference": reference(), "notes": NOTES, "cases": list(cases())})
