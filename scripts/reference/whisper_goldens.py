"""Expected outputs of the tiny Whisper checkpoint.

The decoding rules, the long-form loop and the word timing come from the
openai-whisper package, run on the weights of the tiny checkpoint (converted
from the transformers names) with a tokenizer built from its tokenizer.json.
transformers' WhisperForConditionalGeneration is run beside it as a check.
"""

import sys

import numpy as np
import tiktoken
import torch
import transformers
import whisper
import whisper.decoding as wdec
import whisper.model as wmodel
import whisper.timing as wtiming
import whisper.tokenizer as wtok
import whisper.transcribe  # noqa: F401  (the module, patched below)
from make_models import WHISPER_LANGS
from refcommon import INPUTS, read_wav, sha256
from safetensors.torch import load_file

WINDOW = 3000
FRAMES = [0, 1, 2, 3, 37, 149, 150, 151, 298, 299, 300, 301, 302, 1500, 2998, 2999]
ENC_ROWS = [0, 1, 2, 74, 75, 148, 149, 150, 151, 152, 700, 1498, 1499]


def byte_table():
    """GPT-2's byte <-> printable character table."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for b in range(256):
        if b in keep:
            table[chr(b)] = b
        else:
            table[chr(256 + extra)] = b
            extra += 1
    return table


def build_encoding(tok_json):
    table = byte_table()
    special = {t["content"]: t["id"] for t in tok_json["added_tokens"]}
    ranks = {
        bytes(table[c] for c in piece): i
        for piece, i in tok_json["model"]["vocab"].items()
        if piece not in special
    }
    return tiktoken.Encoding(
        name="tiny",
        explicit_n_vocab=len(ranks) + len(special),
        pat_str=r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=ranks,
        special_tokens=special,
    )


def convert(state):
    """transformers names -> openai names."""
    out = {}
    for key, value in state.items():
        k = key.replace("model.", "", 1)
        k = k.replace("encoder_attn_layer_norm", "cross_attn_ln").replace("encoder_attn", "cross_attn")
        k = k.replace("self_attn_layer_norm", "attn_ln").replace("self_attn", "attn")
        k = k.replace("final_layer_norm", "mlp_ln").replace("q_proj", "query").replace("k_proj", "key")
        k = (
            k.replace("v_proj", "value")
            .replace("out_proj", "out")
            .replace("fc1", "mlp.0")
            .replace("fc2", "mlp.2")
        )
        k = k.replace("layers.", "blocks.").replace("embed_positions.weight", "positional_embedding")
        k = k.replace("embed_tokens", "token_embedding")
        k = k.replace("encoder.layer_norm", "encoder.ln_post").replace("decoder.layer_norm", "decoder.ln")
        out[k] = value
    return out


class Tiny(wmodel.Whisper):
    @property
    def is_multilingual(self):
        return True

    @property
    def num_languages(self):
        return len(WHISPER_LANGS)


def use_tokenizer(encoding):
    """Makes the package take the tiny checkpoint's tokenizer wherever it asks for one."""

    def get_tokenizer(multilingual, *, num_languages=99, language=None, task=None):
        return wtok.Tokenizer(
            encoding=encoding,
            num_languages=len(WHISPER_LANGS),
            language=language or "en",
            task=task or "transcribe",
        )

    for module in (wdec, sys.modules["whisper.transcribe"], wtok):
        module.get_tokenizer = get_tokenizer
    return get_tokenizer


def load_model(path, cfg, gen, kind=Tiny):
    """The checkpoint's weights in the package's own model."""
    model = kind(
        wmodel.ModelDimensions(
            n_mels=80,
            n_audio_ctx=1500,
            n_audio_state=cfg["d_model"],
            n_audio_head=4,
            n_audio_layer=2,
            n_vocab=cfg["vocab_size"],
            n_text_ctx=448,
            n_text_state=cfg["d_model"],
            n_text_head=4,
            n_text_layer=2,
        )
    )
    missing = model.load_state_dict(convert(load_file(str(path / "model.safetensors"))), strict=False)
    assert not missing.unexpected_keys, missing
    assert set(missing.missing_keys) <= {"decoder.mask"}, missing
    heads = torch.zeros(2, 4, dtype=torch.bool)
    for layer, head in gen["alignment_heads"]:
        heads[layer, head] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model.eval()


class Watch:
    """Smallest gaps met while decoding, so that a reader knows how safe the tokens are."""

    def __init__(self):
        self.top, self.rule = float("inf"), float("inf")
        update, apply = wdec.GreedyDecoder.update, wdec.ApplyTimestampRules.apply

        def update2(this, tokens, logits, sums):
            two = torch.topk(logits[0], 2).values
            self.top = min(self.top, float(two[0] - two[1]))
            return update(this, tokens, logits, sums)

        def apply2(this, logits, tokens):
            before = logits.clone()
            apply(this, logits, tokens)
            begin = this.tokenizer.timestamp_begin
            lp = torch.log_softmax(torch.where(torch.isinf(logits), logits, before)[0].float(), -1)
            gap = lp[begin:].logsumexp(-1) - lp[:begin].max()
            if torch.isfinite(gap):
                self.rule = min(self.rule, abs(float(gap)))

        wdec.GreedyDecoder.update = update2
        wdec.ApplyTimestampRules.apply = apply2

    def take(self):
        out = {
            "min_top_gap": round(self.top, 5),
            "min_timestamp_rule_gap": None if self.rule == float("inf") else round(self.rule, 5),
        }
        self.top = self.rule = float("inf")
        return out


def run(recorder, write_json, sound_pattern):
    import json

    rec = recorder("whisper")
    cfg = rec.config
    encoding = build_encoding(json.loads((rec.path / "tokenizer.json").read_text()))

    wtranscribe = sys.modules["whisper.transcribe"]
    get_tokenizer = use_tokenizer(encoding)
    watch = Watch()
    tokenizer = get_tokenizer(True)
    for text in ("hello world, this is a test", " thank you for listening!", "l'été 2024 — ok"):
        assert encoding.encode(text) == rec.tok.encode(text, add_special_tokens=False).ids, text

    model = load_model(rec.path, cfg, rec.gen)
    hf = transformers.WhisperForConditionalGeneration.from_pretrained(
        rec.path, attn_implementation="eager"
    ).eval()
    rec.manifest["reference"]["openai-whisper"] = whisper.__version__

    # suppression list: the rule of the original gives the list stored in the checkpoint
    want = sorted(
        set(tokenizer.non_speech_tokens)
        | {
            tokenizer.transcribe,
            tokenizer.translate,
            tokenizer.sot,
            tokenizer.sot_prev,
            tokenizer.sot_lm,
            tokenizer.no_speech,
        }
    )
    assert want == rec.gen["suppress_tokens"], (want, rec.gen["suppress_tokens"])
    assert encoding.encode(" ") + [tokenizer.eot] == rec.gen["begin_suppress_tokens"]

    # -- mel -----------------------------------------------------------------
    short = read_wav(INPUTS / "speechlike_3s.wav")
    long = sound_pattern(45 * 16000)
    assert sha256(long)
    long = long.astype(np.float32) / 32768.0
    filters = whisper.audio.mel_filters("cpu", 80)
    rec.put("mel", "filters_80", filters)
    f128 = whisper.audio.mel_filters("cpu", 128)
    rec.put("mel", "filters_128_rows", f128[[0, 1, 40, 90, 126, 127]])
    mel_short = whisper.audio.log_mel_spectrogram(torch.from_numpy(short), 80, padding=480000)
    mel_long = whisper.audio.log_mel_spectrogram(torch.from_numpy(long), 80, padding=480000)
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    hf_short = torch.from_numpy(extractor(short, sampling_rate=16000)["input_features"][0])
    long_frames = [0, 1, 2, 1000, 2999, 3000, 3001, 4000, 4498, 4499, 4500, 4501]
    rec.put("mel", "short_file", mel_short[:, FRAMES])
    rec.put("mel", "short_window_zero_samples", hf_short[:, FRAMES])
    rec.put("mel", "long_file", mel_long[:, long_frames])
    rec.put("mel", "short_bin_means", mel_short[:, :300].mean(dim=1))
    rec.put("mel", "long_bin_means", mel_long[:, :4500].mean(dim=1))
    rec.manifest["mel"] = {
        "frames": FRAMES,
        "long_frames": long_frames,
        "tolerance": 2e-4,
        "short_file": "log-mel of the 3 s file followed by 30 s of zero samples (frames 0..299 are the file)",
        "short_window_zero_samples": "log-mel of the file padded with zero samples to 30 s (transformers' extractor)",
        "long_file": "log-mel of sound_pattern(45 s) followed by 30 s of zero samples; the floor (max - 8) is taken "
        "over the whole file",
        "filters_128_rows": "rows 0, 1, 40, 90, 126, 127 of the 128-bin filters (large-v3)",
        "max_log10_short": float((mel_short.max() * 4 - 4)),
        "max_log10_long": float((mel_long.max() * 4 - 4)),
    }

    # -- encoder ---------------------------------------------------------------
    def window(mel, start, frames):
        """The original's window: `frames` real mel frames, then 0.0 up to 3000."""
        return whisper.audio.pad_or_trim(mel[:, start : start + frames], WINDOW)

    w_file = window(mel_short, 0, 300)
    w_zero = hf_short
    w_lang = whisper.audio.pad_or_trim(mel_short, WINDOW)
    for name, w in (("file", w_file), ("zero_samples", w_zero)):
        got = model.encoder(w[None])[0]
        ref = hf.model.encoder(w[None]).last_hidden_state[0]
        assert float((got - ref).abs().max()) < 2e-4, float((got - ref).abs().max())
        rec.put("encoder", name, got[ENC_ROWS])
    rec.manifest["encoder"] = {
        "rows": ENC_ROWS,
        "tolerance": 5e-4,
        "file": "window of the original: 300 mel frames of the file, then the VALUE 0.0 up to 3000 frames",
        "zero_samples": "window of transformers: zero SAMPLES to 30 s before the mel",
    }

    # -- language --------------------------------------------------------------
    _, probs = model.detect_language(w_lang)
    _, probs_long = model.detect_language(whisper.audio.pad_or_trim(mel_long, WINDOW))
    probs, probs_long = ({c: p[c] for c in WHISPER_LANGS} for p in (probs, probs_long))
    rec.manifest["language"] = {
        "tolerance": 1e-4,
        "short": probs,
        "long": probs_long,
        "note": "mel of the file plus 30 s of zero samples, first 3000 frames; softmax over "
        "the language ids only, one decoder step on <|startoftranscript|>",
    }

    # -- forced decoder --------------------------------------------------------
    text = encoding.encode(" hello world, this is a test.")
    sot = list(tokenizer.sot_sequence)
    forced = sot + [tokenizer.no_timestamps] + text + [tokenizer.eot]
    audio = model.encoder(w_zero[None])
    logits = model.decoder(torch.tensor([forced]), audio)[0]
    ref = hf(input_features=w_zero[None], decoder_input_ids=torch.tensor([forced])).logits[0]
    assert float((logits - ref).abs().max()) < 5e-4, float((logits - ref).abs().max())
    rec.put("forced", "logits", logits[:, : tokenizer.timestamp_begin + 60])
    rec.manifest["forced"] = {
        "window": "zero_samples",
        "tokens": forced,
        "tolerance": 2e-3,
        "note": f"columns 0..{tokenizer.timestamp_begin + 59} of the vocabulary",
    }

    # -- one window --------------------------------------------------------------
    runs = []

    def decode(name, w, wname, **opt):
        options = wdec.DecodingOptions(fp16=False, temperature=0.0, sample_len=24, **opt)
        watch.take()
        r = wdec.DecodingTask(model, options).run(w[None])[0]
        shown = {k: v for k, v in opt.items()}
        runs.append(
            {
                "name": name,
                "window": wname,
                "options": shown,
                "language": r.language,
                "tokens": r.tokens,
                "text": r.text,
                "avg_logprob": r.avg_logprob,
                "no_speech_prob": r.no_speech_prob,
                "compression_ratio": r.compression_ratio,
                **watch.take(),
            }
        )
        return r

    plain = decode("no_timestamps", w_zero, "zero_samples", language="en", without_timestamps=True)
    decode("timestamps", w_zero, "zero_samples", language="en")
    decode("timestamps_file_window", w_file, "file", language="en")
    decode("timestamps_late_start", w_zero, "zero_samples", language="en", max_initial_timestamp=None)
    decode("translate_de", w_zero, "zero_samples", language="de", task="translate")
    decode("language_detected", w_zero, "zero_samples", language=None)
    decode("prompt", w_zero, "zero_samples", language="en", prompt="thank you for listening")
    decode("prefix", w_zero, "zero_samples", language="en", without_timestamps=True, prefix="hello world")
    decode("no_suppression", w_zero, "zero_samples", language="en", suppress_tokens="", suppress_blank=False)
    decode("long_first_window", window(mel_long, 0, 3000), "long 0..2999", language="en")
    rec.manifest["decode"] = {
        "note": "greedy, at most 24 new tokens; defaults: suppress_blank, suppress_tokens from generation_config, "
        "max_initial_timestamp 1.0 s, task transcribe; tokens end before <|endoftext|>",
        "tolerance_logprob": 1e-3,
        "runs": runs,
    }
    # transformers' generation agrees on the plain run
    out = hf.generate(
        input_features=w_zero[None],
        language="en",
        task="transcribe",
        return_timestamps=False,
        max_new_tokens=24,
        do_sample=False,
        num_beams=1,
    )
    got = [t for t in out[0].tolist() if t not in forced[:4]]
    rec.manifest["decode"]["transformers_agrees_on_no_timestamps"] = got[: len(plain.tokens)] == plain.tokens

    # -- the long-form loop --------------------------------------------------------
    loops = []
    for name, opt in (
        ("condition_on_previous", {"condition_on_previous_text": True}),
        ("independent_windows", {"condition_on_previous_text": False}),
    ):
        watch.take()
        result = wtranscribe.transcribe(
            model,
            long,
            temperature=0.0,
            compression_ratio_threshold=None,
            logprob_threshold=None,
            no_speech_threshold=None,
            language="en",
            fp16=False,
            sample_len=24,
            verbose=None,
            **opt,
        )
        loops.append(
            {
                "name": name,
                "text": result["text"],
                "segments": [
                    {
                        k: s[k]
                        for k in ("id", "seek", "start", "end", "tokens", "avg_logprob", "no_speech_prob")
                    }
                    for s in result["segments"]
                ],
                **watch.take(),
            }
        )
    rec.manifest["long_form"] = {
        "audio": "sound_pattern(45 s)",
        "settings": "temperature 0, sample_len 24, language en, all fallback thresholds off",
        "runs": loops,
    }

    # -- word timing ------------------------------------------------------------------
    times = []
    for name, w, frames, toks, lang in (
        ("short", w_zero, 300, text, "en"),
        ("short_no_spaces", w_zero, 300, encoding.encode("bonjour le monde été"), "ja"),
        (
            "long",
            window(mel_long, 0, 3000),
            3000,
            encoding.encode(
                " hello world, this is a test of the transcription service, thank you for listening."
            ),
            "en",
        ),
    ):
        tk = get_tokenizer(True, language=lang)
        seen = {}
        orig_dtw, orig_filter = wtiming.dtw, wtiming.median_filter

        def spy_dtw(x):
            seen["matrix"] = (-x).clone()
            path = orig_dtw(x)
            seen["path"] = path
            return path

        def spy_filter(x, width):
            seen["normalised"] = x.clone()
            return orig_filter(x, width)

        wtiming.dtw, wtiming.median_filter = spy_dtw, spy_filter
        words = wtiming.find_alignment(model, tk, toks, w, frames)
        wtiming.dtw, wtiming.median_filter = orig_dtw, orig_filter
        cols = seen["matrix"].shape[1]
        step = 1 if cols <= 150 else 10
        rec.put("timing", f"{name}_matrix", seen["matrix"][:, ::step])
        if name == "short":
            rec.put("timing", "short_normalised", seen["normalised"])
        times.append(
            {
                "name": name,
                "frames": frames,
                "language": lang,
                "text_tokens": toks,
                "matrix_column_step": step,
                "path_text": seen["path"][0].tolist() if name != "long" else None,
                "path_time": seen["path"][1].tolist() if name != "long" else None,
                "words": [
                    {
                        "word": x.word,
                        "tokens": x.tokens,
                        "start": float(x.start),
                        "end": float(x.end),
                        "probability": float(x.probability),
                    }
                    for x in words
                ],
            }
        )
    rec.manifest["timing"] = {
        "note": "cross-attention of the alignment heads for sot sequence + <|notimestamps|> + text + <|endoftext|>; "
        "softmax over the first frames/2 columns of the raw scores, standardised over the token axis, median "
        "filter 7, mean over heads, rows after the sot sequence without the last; monotonic path on -matrix",
        "alignment_heads": rec.gen["alignment_heads"],
        "tolerance": 1e-3,
        "runs": times,
    }
    # punctuation merging and segment clean-up, on the short sentence
    segments = [{"seek": 0, "start": 0.0, "end": 3.0, "tokens": text}]
    wtiming.add_word_timestamps(
        segments=segments,
        model=model,
        tokenizer=tokenizer,
        mel=w_zero,
        num_frames=300,
        last_speech_timestamp=0.0,
    )
    rec.manifest["timing"]["segment_words"] = segments
    rec.manifest.pop("cases")
    rec.manifest["cases"] = []
    for key in rec.manifest["timing"]["segment_words"][0]["words"]:
        key["probability"] = float(key["probability"])
    rec.finish()
