"""What openai-whisper makes of word times and subtitles, on random cases.

Writes words.json and subtitles.json into tests/fixtures/speech/. The functions
are the package's own; only the network is replaced, by answers drawn at random:
`transcribe` runs its loop over a recording whose mel frames carry their own
number, so that a window says where it was cut.
"""

import io
import json
import pathlib
import random
import sys

import numpy as np
import torch
import whisper.decoding as wdec
import whisper.timing as wtiming
import whisper.tokenizer as wtok
import whisper.transcribe  # noqa: F401  (the module, patched below)
import whisper.utils as wutils

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/fixtures/speech"
wtranscribe = sys.modules["whisper.transcribe"]
TOKENIZER = {code: wtok.get_tokenizer(True, language=code) for code in ("en", "ja", "de", "zh")}
EN = TOKENIZER["en"]
EOT, BEGIN = EN.eot, EN.timestamp_begin
TEXTS = [
    " Hello, world! This is a test.",
    ' He said: "Ask not (never) what..." and left.',
    " ¿Qué tal? L'été à 3.14 €, déjà — naïve…",
    "こんにちは。世界！元気ですか？",
    " 価格は「百円」です、はい。 OK 👍🏽 mixed 文字 text",
    " don't you're [music] {x} 10,000.50 km/h - yes",
    "សួស្តី ကောင်း ສະບາຍດີ ไทย",
    " . , ! ?? ... \n\n tabs\tand  spaces ",
]


def used(vocabulary, tokens):
    for token in tokens:
        if token not in vocabulary:
            vocabulary[token] = EN.encoding.decode_single_token_bytes(token).hex()


# -- paths, splits, alignments ----------------------------------------------------


def paths(rng):
    cases = []
    for _ in range(80):
        rows, columns = rng.randint(1, 7), rng.randint(1, 9)
        # Few values, so that many sums are equal.
        matrix = [[rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0]) for _ in range(columns)] for _ in range(rows)]
        text, time = wtiming.dtw(-torch.tensor(matrix))
        cases.append([matrix, text.tolist(), time.tolist()])
    return cases


def splits(rng, vocabulary):
    cases = []
    fixed = [8404, 871, 287, 6, 246, 526, 3210, 20378]  # of the package's own tests
    for language, tokens in [("en", fixed), ("ja", fixed)]:
        cases.append((language, tokens))
    while len(cases) < 120:
        tokens = EN.encode(rng.choice(TEXTS) + rng.choice(TEXTS))
        start = rng.randrange(len(tokens))
        tokens = tokens[start : start + rng.randint(1, 18)]
        if rng.random() < 0.5:  # half of a character, in the middle or at the end
            tokens.insert(
                rng.randrange(len(tokens) + 1), rng.choice([171, 172, 94, 226, 157, 8908, 20724, 223])
            )
        cases.append((rng.choice(list(TOKENIZER)), tokens))
    out = []
    for language, tokens in cases:
        tokens = tokens + [EOT]
        try:
            words, pieces = TOKENIZER[language].split_to_word_tokens(tokens)
        except IndexError:  # the package fails where broken characters end the text
            continue
        used(vocabulary, tokens)
        out.append([language, tokens, [[w, len(p)] for w, p in zip(words, pieces)], sum(pieces, [])])
    return out


class Handle:
    def remove(self):
        pass


class Attention:
    """A cross-attention layer of one head that gives the scores it was made with."""

    def __init__(self, scores):
        self.scores, self.hook = scores, None

    def register_forward_hook(self, hook):
        self.hook = hook
        return Handle()


class Aligned:
    """A model whose logits and scores are given."""

    device = "cpu"

    def __init__(self, logits, scores):
        self.logits = logits
        self.dims = type("Dims", (), {"n_text_layer": 1})
        block = type("Block", (), {"cross_attn": Attention(scores)})
        self.decoder = type("Decoder", (), {"blocks": [block]})
        self.alignment_heads = torch.ones(1, 1).to_sparse()

    def __call__(self, mel, tokens):
        attention = self.decoder.blocks[0].cross_attn
        attention.hook(None, None, (None, attention.scores[None]))
        return self.logits[None]


def alignments(rng, vocabulary):
    generator = torch.Generator().manual_seed(3)
    out = []
    for _ in range(24):
        language = rng.choice(["en", "ja"])
        tokenizer = TOKENIZER[language]
        text = EN.encode(rng.choice(TEXTS))
        start = rng.randrange(len(text))
        text = text[start : start + rng.randint(1, 9)]
        columns, sot = rng.randint(2, 20), len(tokenizer.sot_sequence)
        rows = sot + 2 + len(text)
        scores = torch.randn(1, rows, columns, generator=generator) * 3
        logits = torch.randn(rows, 51865, generator=generator)
        for row, token in enumerate(text):
            logits[sot + row, token] += rng.uniform(5, 14)
        seen, dtw = {}, wtiming.dtw

        def spy(x, seen=seen, dtw=dtw):
            x = (x * 64).round() / 64  # short in the file, and some sums are equal
            seen["matrix"] = -x
            return dtw(x)

        wtiming.dtw = spy
        timings = wtiming.find_alignment(
            Aligned(logits, scores), tokenizer, text, torch.zeros(80, 3000), columns * 2
        )
        wtiming.dtw = dtw
        probabilities = logits[sot:, :EOT].softmax(-1)[range(len(text)), text].tolist()
        used(vocabulary, text + [EOT])
        out.append(
            [
                language,
                text,
                seen["matrix"].tolist(),
                probabilities,
                [
                    [t.word, len(t.tokens), float(t.start), float(t.end), float(t.probability)]
                    for t in timings
                ],
            ]
        )
    return out


# -- punctuation -------------------------------------------------------------------


PIECES = ["", " ", ".", " .", ",", "!?", "!！", "\"'", " \"'", "\"'“", ' "', " (", " ([{", " [", "(", " ¿", "¿", " -", "-",
          "。", "、", "）", "”)", ")]}", "...", " hello", " world", "lo", "ok ", "é", " \u3000", "\u3000", " \x1c(", "？", ":："]  # fmt: skip


def punctuation(rng):
    cases = []
    for _ in range(300):
        words = [rng.choice(PIECES) for _ in range(rng.randint(0, 7))]
        timings, token = [], 0
        for word in words:
            count = rng.randint(1, 2)
            timings.append(wtiming.WordTiming(word, list(range(token, token + count)), 0.0, 0.0, 1.0))
            token += count
        counts = [len(t.tokens) for t in timings]
        wtiming.merge_punctuations(timings, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        cases.append([words, counts, [[t.word, t.tokens] for t in timings]])
    return cases


# -- corrections ----------------------------------------------------------------------


def corrections(rng):
    """Few words in short segments, so that every one of the package's corrections is often needed."""
    cases = []
    original = wtiming.find_alignment
    while len(cases) < 140:
        timings, segments, time = [], [], rng.choice([0, 0, 10, 40])
        for _ in range(rng.randint(1, 2)):
            words = rng.randint(1, 3)
            begin = time
            for _ in range(words):
                time += rng.choice([0, 0, 0, 30, 90])
                start, time = time, time + rng.choice([2, 5, 10, 10, 15, 40, 100])
                word = rng.choice([" a", " b", ".", "?", " c"])
                timings.append([word, 1, start / 50, time / 50, 0.5])
            shift = rng.choice([0, 0, 0.2, 0.4, 0.56, 0.7, 1.0, 2.0])
            cut = rng.choice([0, 0, 0.2, 0.45, 0.56, 0.7, 1.0, 2.0])
            start = round(begin / 50 + shift, 2)
            segments.append([start, max(start, round(time / 50 - cut, 2)), words])
        seek, last_speech = rng.choice([(0, 0.0), (0, 0.0), (1234, 12.1), (1234, 9.5)])
        offset = seek / 100
        given = [
            {"seek": seek, "start": offset + a, "end": offset + b, "tokens": [1] * n} for a, b, n in segments
        ]
        before = [[s["start"], s["end"], len(s["tokens"])] for s in given]
        aligned = [
            wtiming.WordTiming(w, [1] * n, np.float64(a), np.float64(b), p) for w, n, a, b, p in timings
        ]
        wtiming.find_alignment = lambda *_, aligned=aligned, **__: aligned
        wtiming.add_word_timestamps(
            segments=given,
            model=None,
            tokenizer=EN,
            mel=None,
            num_frames=3000,
            last_speech_timestamp=last_speech,
        )
        cases.append([seek, last_speech, before, timings, spoken(given)])
    wtiming.find_alignment = original
    return cases


def spoken(segments):
    return [
        [
            float(s["start"]),
            float(s["end"]),
            [[w["word"], float(w["start"]), float(w["end"]), w["probability"]] for w in s["words"]],
        ]
        for s in segments
    ]


# -- the loop ------------------------------------------------------------------------


WORDS = [" hello", " world", ".", ",", " test", "!", " (", "?", " well", "ing", " the", " a", "。", " -"]


class Stuck(Exception):
    pass


class Progress:
    """Stands for tqdm: an update says that a window was kept."""

    windows = None

    def __init__(self, **_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, _):
        self.windows[-1]["kept"] = True


class Loop:
    """A model that answers at random, and everything that `transcribe` makes of it."""

    device = torch.device("cpu")
    is_multilingual, num_languages = True, 99
    dims = type("Dims", (), {"n_mels": 1, "n_audio_ctx": 1500, "n_text_ctx": 448})

    def __init__(self, rng):
        self.rng = rng
        self.content = rng.randint(300, 9000)
        self.threshold = rng.choice([None, 0.5, 1.0, 2.0, 2.0, 4.0])
        self.calm = rng.random() < 0.3
        self.windows = []

    def mel(self, *_, **__):
        return torch.cat([torch.arange(1.0, self.content + 1), torch.zeros(3000)])[None]

    def decode(self, mel, _):
        seek, size = int(mel[0, 0]) - 1, int((mel != 0).sum())
        if self.windows and seek <= self.windows[-1]["seek"]:
            raise Stuck
        tokens = self.answer(size // 2)
        times = [t - BEGIN for t in tokens if t >= BEGIN]
        pairs = [i for i in range(1, len(tokens)) if tokens[i] >= BEGIN and tokens[i - 1] >= BEGIN]
        single = [t >= BEGIN for t in tokens[-2:]] == [False, True]
        following = seek + size if single or not pairs else seek + 2 * (tokens[pairs[-1] - 1] - BEGIN)
        self.windows.append({"seek": seek, "size": size, "single": single, "next": following, "kept": False})
        assert times == sorted(times)
        return wdec.DecodingResult(
            audio_features=None,
            language="en",
            tokens=tokens,
            text="",
            avg_logprob=-0.2,
            no_speech_prob=0.0,
            temperature=0.0,
            compression_ratio=1.0,
        )

    def answer(self, most):
        rng, tokens = self.rng, []
        cuts = sorted(rng.randrange(1, max(2, most)) for _ in range(rng.randint(1, 6)))
        for start, end in zip([0, *cuts], cuts):
            text = EN.encode("".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6))))
            if rng.random() < 0.1:
                text = [220]
            tokens += [BEGIN + start, *text, BEGIN + end]
        match rng.randrange(4):
            case 0:  # the tail is not finished
                return tokens + [BEGIN + cuts[-1], *EN.encode(" and then")]
            case 1:
                return [t for t in tokens if t < BEGIN] or [220]
            case 2:
                return tokens + [BEGIN + cuts[-1]]
        return tokens

    def align(self, _model, tokenizer, text, _mel, frames, **_):
        rng = self.rng
        words, pieces = tokenizer.split_to_word_tokens(text + [EOT])
        if len(pieces) <= 1 or rng.random() < 0.05:
            return []
        strange = 0.05 if self.calm else rng.choice([0.1, 0.6])
        limit, time, out = frames // 2, rng.choice([0, 0, rng.randrange(1 + frames // 2)]), []
        for word, piece in zip(words[:-1], pieces[:-1]):
            odd = rng.random() < strange
            if rng.random() < 0.1:
                time += rng.randrange(250)
            start = min(time, limit)
            end = min(
                start + (rng.choice([0, 1, 2, 3, 60, 120, 180]) if odd else rng.randrange(8, 40)), limit
            )
            probability = round(rng.uniform(0, 0.2) if odd else rng.uniform(0.1, 1), 3)
            out.append(
                wtiming.WordTiming(
                    word, list(piece), np.float64(start / 50), np.float64(end / 50), probability
                )
            )
            time = end
        return out

    def add_words(self, *, segments, last_speech_timestamp, **kwargs):
        window = self.windows[-1]
        assert kwargs["num_frames"] == window["size"]
        window["last_speech"] = float(last_speech_timestamp)
        window["before"] = [[s["start"], s["end"], sum(t < EOT for t in s["tokens"])] for s in segments]

        def align(*args, **options):
            timings = self.align(*args, **options)
            window["timings"] = [
                [t.word, len(t.tokens), float(t.start), float(t.end), t.probability] for t in timings
            ]
            return timings

        original, wtiming.find_alignment = wtiming.find_alignment, align
        wtiming.add_word_timestamps(segments=segments, last_speech_timestamp=last_speech_timestamp, **kwargs)
        wtiming.find_alignment = original
        window["after"] = spoken(segments)

    def run(self):
        wtranscribe.log_mel_spectrogram = self.mel
        wtranscribe.add_word_timestamps = self.add_words
        Progress.windows = self.windows
        wtranscribe.tqdm.tqdm = Progress
        result = wtranscribe.transcribe(
            self,
            None,
            language="en",
            word_timestamps=True,
            fp16=False,
            temperature=0.0,
            verbose=None,
            hallucination_silence_threshold=self.threshold,
        )
        out = []
        for index, w in enumerate(self.windows):
            left = sum(s["seek"] == w["seek"] for s in result["segments"])
            last = index + 1 == len(self.windows)
            after = None if last else self.windows[index + 1]["seek"]
            out.append(
                [
                    w["seek"],
                    w["size"],
                    w["single"],
                    w["next"],
                    w["last_speech"],
                    w["before"],
                    w["timings"],
                    w["after"],
                    w["kept"],
                    left,
                    after,
                ]
            )
        return {"content": self.content, "threshold": self.threshold, "windows": out}


def loops(rng):
    cases = []
    while len(cases) < 26:
        try:
            cases.append(Loop(rng).run())
        except Stuck:  # the package would go round for ever
            continue
    return cases


# -- subtitles -----------------------------------------------------------------------


def without_blank_cues_and_arrows(iterate):
    """The two things that percept does otherwise: the package shows blank words, and arrows where there are words."""

    def iterate_result(*args, **kwargs):
        for start, end, text in iterate(*args, **kwargs):
            if text.replace("<u>", "").replace("</u>", "").strip():
                yield start, end, text.replace("-->", "->").rstrip("\n")

    return iterate_result


def subtitles(rng):
    plain = [" Hello,", " world!", " a", " test", "ing", " of", " very-long-words-indeed", " 文字", " é", " 42%", " -->",
             " tab\tbed", " x", " "]  # fmt: skip
    writer = wutils.SubtitlesWriter
    writer.iterate_result = without_blank_cues_and_arrows(writer.iterate_result)
    cases = []
    for number in range(60):
        with_words = number % 4 != 0
        time = rng.choice([0.0, 0.0, 3590.5, 359999.0])
        segments = []
        for _ in range(rng.randint(0, 4)):
            words = []
            for _ in range(rng.randint(1, 9)):
                time += rng.choice([0, 0, 0, 0.31, 1.005, 3.5])
                start, time = time, time + rng.choice([0.0, 0.1234, 0.2505, 0.4])
                words.append({"word": rng.choice(plain), "start": round(start, 4), "end": round(time, 4)})
            text = "".join(w["word"] for w in words)
            if text.strip() == "":
                text, words = "", []
            segment = {"start": round(time - 3, 4) if time > 3 else 0.0, "end": round(time, 4), "text": text}
            if words:
                segment["start"] = words[0]["start"]
            if with_words:
                segment["words"] = words
            segments.append(segment)
        options = {}
        if with_words:
            options["max_line_width"] = rng.choice([None, None, 8, 20, 42])
            options["max_line_count"] = rng.choice([None, 1, 2])
            options["max_words_per_line"] = rng.choice([None, None, 1, 3])
            options["highlight_words"] = rng.random() < 0.3
        full = [s for s in segments if s["text"].strip()]
        written = []
        for form in ("srt", "vtt", "tsv", "txt"):
            file = io.StringIO()
            wutils.get_writer(form, ".").write_result({"segments": full}, file=file, options=options)
            written.append(file.getvalue())
        listed = [
            [s["start"], s["end"], s["text"], [[w["word"], w["start"], w["end"]] for w in s.get("words", [])]]
            for s in segments
        ]
        keep = [options.get(k) for k in ("max_line_width", "max_line_count", "max_words_per_line")]
        cases.append([listed, keep, options.get("highlight_words", False), *written])
    return cases


def save(name, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(text + "\n", encoding="utf-8")


def main():
    vocabulary = {}
    words = {
        "eot": EOT,
        "paths": paths(random.Random(1)),
        "splits": splits(random.Random(2), vocabulary),
        "alignments": alignments(random.Random(3), vocabulary),
        "punctuation": punctuation(random.Random(4)),
        "corrections": corrections(random.Random(7)),
        "loops": loops(random.Random(5)),
        "pieces": vocabulary,
    }
    save("words.json", words)
    save("subtitles.json", subtitles(random.Random(6)))


if __name__ == "__main__":
    main()
