"""Shared helpers of the reference generator: paths, determinism, synthetic
inputs, small tokenizers, image primitives and file writing.

Everything here is deterministic: fixed seeds, one thread, float32, no clock.
"""

import hashlib
import json
import math
import os
import wave
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
MODELS = FIXTURES
GOLDENS = FIXTURES / "goldens"
INPUTS = FIXTURES / "inputs"

torch.set_num_threads(1)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


# --------------------------------------------------------------------------
# files
# --------------------------------------------------------------------------


def write_json(path, obj):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path, tensors):
    """Write a safetensors file; every tensor contiguous, float32 or int64 or uint8."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    out = {}
    for key in sorted(tensors):
        value = tensors[key]
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        value = value.detach()
        if value.dtype in (torch.float64, torch.float16, torch.bfloat16):
            value = value.float()
        if value.dtype == torch.int32:
            value = value.long()
        out[key] = value.contiguous().clone()
    save_file(out, str(path))
    path.chmod(0o644)


def sha256(data):
    if isinstance(data, torch.Tensor):
        data = data.contiguous().numpy()
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).tobytes()
    return hashlib.sha256(data).hexdigest()


# --------------------------------------------------------------------------
# random weights
# --------------------------------------------------------------------------


def randomize(module, seed, std=0.12, overrides=None):
    """Fill every parameter from one seeded generator, in name order.

    Norm weights are near one, biases small, everything else normal(0, std).
    The spread is larger than a trained model's initialisation so that greedy
    decoding has clear winners.
    """
    gen = torch.Generator().manual_seed(seed)
    overrides = overrides or {}
    for name, param in sorted(module.named_parameters()):
        lowered = name.lower()
        is_norm = param.dim() == 1 and "weight" in lowered and "norm" in lowered
        is_norm = is_norm or lowered.endswith(("pre_layrnorm.weight", "ln_q.weight", "ln_pre.weight"))
        noise = torch.randn(param.shape, generator=gen)
        if is_norm:
            value = 1.0 + 0.1 * noise
        elif param.dim() == 1:
            value = 0.05 * noise
        else:
            value = std * noise
        for pattern, scale in overrides.items():
            hit = name.endswith(pattern[:-1]) if pattern.endswith("$") else pattern in name
            if hit:
                value = scale * noise
        param.data.copy_(value.to(param.dtype))
    return module


def blank_rows(weight, first):
    """Rows that belong to no tokenizer entry get zero weights (logit 0)."""
    weight.data[first:] = 0.0


# --------------------------------------------------------------------------
# tokenizers
# --------------------------------------------------------------------------

CORPUS = [
    "the quick brown fox jumps over the lazy dog while the small cat sleeps on the red mat",
    "what is shown in this image? describe the picture in detail, please.",
    "the image shows a blue circle, a green square and a yellow triangle on a white background",
    "how many objects are there in the first image and in the second image?",
    "compare the two images and list the differences between them.",
    "a chat between a curious user and an artificial intelligence assistant.",
    "the assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: hello ASSISTANT: hi there, how can I help you today?",
    "read the text in the sign, then write it in capital letters: STOP, EXIT, OPEN.",
    "count from one to ten: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, and then stop at 2024.",
    "colours: red, orange, yellow, green, blue, indigo, violet, black, white and grey",
    "this is a short recording of a person speaking about the weather and the news",
    "hello world, this is a test of the transcription service, thank you for listening",
    "bonjour le monde, ceci est un essai; guten Tag, das ist ein Test; hola, esto es una prueba",
    "function main() { return (a + b) * [c - d] / 2; } // comment #1 & more = fun!",
    "It's we're they've I'll you'd don't can't won't isn't",
    "left right top bottom above below inside outside near far big small",
]


def _llama_bpe(vocab_target):
    """Train BPE merges on whitespace-split, metaspace-marked words."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581[^\u2581]*"), "isolated")
    alphabet = sorted({ch for line in CORPUS for ch in line if ch != " "} | {"\u2581"})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_target, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tok.train_from_iterator(CORPUS, trainer)
    return json.loads(tok.to_str())["model"]


def llama_tokenizer(path, added, vocab_target=600, bos="<s>", eos="</s>", unk="<unk>"):
    """A sentencepiece-style BPE: <unk> <s> </s>, 256 byte tokens, pieces.

    `added` is a list of (content, special, rstrip) appended after the base
    vocabulary. The file has the same blocks as the tokenizer.json of a Llama-2
    family checkpoint: Prepend/Replace normalizer, no pre-tokenizer, byte
    fallback with fused unknowns, a template post-processor that adds BOS.
    """
    model = _llama_bpe(vocab_target - 3 - 256)
    pieces = [p for p, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1])]
    order = [unk, bos, eos] + [f"<0x{i:02X}>" for i in range(256)]
    order += [p for p in pieces if p not in order]
    vocab = {piece: i for i, piece in enumerate(order)}
    assert len(vocab) <= vocab_target, len(vocab)
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (unk, bos, eos)])
    for content, special, rstrip in added:
        token = AddedToken(content, normalized=False, special=special, rstrip=rstrip)
        (tok.add_special_tokens if special else tok.add_tokens)([token])
    tok.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tok.token_to_id(bos))]
    )
    path.mkdir(parents=True, exist_ok=True)
    tok.save(str(path / "tokenizer.json"), pretty=False)
    return Tokenizer.from_file(str(path / "tokenizer.json"))


GPT2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_tokenizer(path, added, vocab_target=600, split=None, bos=None):
    """A byte-level BPE (GPT-2 / Qwen / Llama-3 / Whisper style).

    `split=None` keeps the GPT-2 regex of ByteLevel; otherwise the given regex
    is applied first and ByteLevel's own regex is switched off.
    """
    tok = Tokenizer(models.BPE())
    if split is None:
        pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        pre = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_target,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tok.train_from_iterator(CORPUS, trainer)
    for content, special, rstrip in added:
        token = AddedToken(content, normalized=False, special=special, rstrip=rstrip)
        (tok.add_special_tokens if special else tok.add_tokens)([token])
    if bos is not None:
        tok.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tok.token_to_id(bos))]
        )
    else:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    path.mkdir(parents=True, exist_ok=True)
    tok.save(str(path / "tokenizer.json"), pretty=False)
    return Tokenizer.from_file(str(path / "tokenizer.json"))


def encode(tok, text, special=True):
    return tok.encode(text, add_special_tokens=special).ids


# --------------------------------------------------------------------------
# synthetic pictures
# --------------------------------------------------------------------------


def scene(width, height, seed, texture=18):
    """Gradient + shapes + seeded texture: a picture with edges and smooth areas."""
    rng = np.random.RandomState(seed)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = xx / max(width - 1, 1), yy / max(height - 1, 1)
    base = np.stack(
        [
            40 + 190 * u,
            30 + 150 * v + 50 * np.sin(6.0 * u + seed),
            200 - 120 * u * v + 40 * np.cos(9.0 * v - seed),
        ],
        axis=-1,
    )
    img = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(img)
    for _ in range(5):
        x0, y0 = int(rng.randint(0, width)), int(rng.randint(0, height))
        w, h = int(rng.randint(2, max(3, width // 2))), int(rng.randint(2, max(3, height // 2)))
        colour = tuple(int(c) for c in rng.randint(0, 256, 3))
        kind = int(rng.randint(0, 3))
        box = [x0 - w // 2, y0 - h // 2, x0 + w // 2, y0 + h // 2]
        if kind == 0:
            draw.rectangle(box, fill=colour)
        elif kind == 1:
            draw.ellipse(box, fill=colour)
        else:
            draw.line([x0, y0, width - x0, height - y0], fill=colour, width=max(1, width // 40))
    arr = np.asarray(img).astype(np.int16)
    if texture:
        arr = arr + rng.randint(-texture, texture + 1, arr.shape).astype(np.int16)
    return Image.fromarray(np.clip(arr, 0, 255).astype(np.uint8), "RGB")


# --------------------------------------------------------------------------
# image primitives written out, so that the specification can be checked
# --------------------------------------------------------------------------


def _cubic(x, a):
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return 0.0


def _triangle(x):
    x = abs(x)
    return 1.0 - x if x < 1.0 else 0.0


def _sinc(x):
    return 1.0 if x == 0.0 else math.sin(math.pi * x) / (math.pi * x)


def _lanczos(x):
    return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0


FILTERS = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (lambda x: _cubic(x, -0.5), 2.0),
    "lanczos": (_lanczos, 3.0),
}


def _axis_weights(in_size, out_size, kind):
    fn, radius = FILTERS[kind]
    scale = in_size / out_size
    fscale = max(scale, 1.0)
    support = radius * fscale
    rows = []
    for i in range(out_size):
        center = (i + 0.5) * scale
        lo = max(int(center - support + 0.5), 0)
        hi = min(int(center + support + 0.5), in_size)
        w = [fn((j + lo - center + 0.5) * (1.0 / fscale)) for j in range(hi - lo)]
        total = 0.0
        for value in w:
            total += value
        w = [value / total for value in w] if total != 0.0 else w
        fixed = [int(value * (1 << 22) + (0.5 if value >= 0 else -0.5)) for value in w]
        rows.append((lo, np.array(fixed, dtype=np.int64)))
    return rows


def resize_u8(arr, out_w, out_h, kind):
    """Pillow's 8-bit separable resampling in integer arithmetic (HWC uint8)."""

    def one_axis(src, out_size, axis):
        if src.shape[axis] == out_size:
            return src
        src = np.moveaxis(src, axis, 0).astype(np.int64)
        rows = _axis_weights(src.shape[0], out_size, kind)
        out = np.empty((out_size,) + src.shape[1:], dtype=np.uint8)
        for i, (lo, fixed) in enumerate(rows):
            acc = np.tensordot(fixed, src[lo : lo + len(fixed)], axes=(0, 0)) + (1 << 21)
            out[i] = np.clip(acc >> 22, 0, 255).astype(np.uint8)
        return np.moveaxis(out, 0, axis)

    return np.ascontiguousarray(one_axis(one_axis(arr, out_w, 1), out_h, 0))


def bicubic_noantialias_f32(chw, out_h, out_w, a=-0.75):
    """torch interpolate(mode='bicubic', align_corners=False), no antialiasing."""

    def taps(in_size, out_size):
        scale = np.float32(in_size) / np.float32(out_size)
        idx, wts = [], []
        for i in range(out_size):
            real = float(np.float32(scale * np.float32(i + 0.5)) - np.float32(0.5))
            base = math.floor(real)
            t = real - base
            w = [_cubic(t + 1.0, a), _cubic(t, a), _cubic(1.0 - t, a), _cubic(2.0 - t, a)]
            idx.append([min(max(base - 1 + k, 0), in_size - 1) for k in range(4)])
            wts.append(w)
        return np.array(idx), np.array(wts, dtype=np.float64)

    iy, wy = taps(chw.shape[1], out_h)
    ix, wx = taps(chw.shape[2], out_w)
    src = chw.astype(np.float64)
    rows = np.einsum("cyxk,xk->cyx", src[:, :, ix], wx)
    out = np.einsum("cykx,yk->cyx", rows[:, iy, :], wy)
    return out.astype(np.float32)


def to_float(arr_u8, mean, std):
    """uint8 HWC -> float32 CHW: x * (1/255) in double, cast, (x - mean) / std in single."""
    chw = np.moveaxis(arr_u8, -1, 0)
    x = (chw.astype(np.float64) * (1.0 / 255.0)).astype(np.float32)
    m = np.array(mean, dtype=np.float32)[:, None, None]
    s = np.array(std, dtype=np.float32)[:, None, None]
    return (x - m) / s


# --------------------------------------------------------------------------
# synthetic sound
# --------------------------------------------------------------------------


def synth_audio(seconds, seed, rate=16000):
    """Chirps, vowel-like harmonics, noise bursts and pauses; int16 samples."""
    rng = np.random.RandomState(seed)
    n = int(round(seconds * rate))
    t = np.arange(n, dtype=np.float64) / rate
    out = np.zeros(n)
    start = 0.0
    while start < seconds:
        dur = 0.25 + 0.5 * rng.rand()
        kind = rng.randint(0, 4)
        sel = (t >= start) & (t < min(start + dur, seconds))
        tt = t[sel] - start
        env = np.sin(np.pi * np.clip(tt / dur, 0, 1)) ** 2
        f0 = 90 + 160 * rng.rand()
        if kind == 0:
            sig = sum(np.sin(2 * np.pi * f0 * k * tt) / k for k in range(1, 12))
        elif kind == 1:
            sig = np.sin(2 * np.pi * (300 + 1500 * tt / dur) * tt)
        elif kind == 2:
            sig = rng.randn(tt.size) * 0.5
        else:
            sig = np.zeros(tt.size)
        out[sel] += 0.3 * env * sig
        start += dur + 0.1 * rng.rand()
    return np.clip(np.round(out * 20000), -32768, 32767).astype(np.int16)


def write_wav(path, samples, rate=16000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as fh:
        fh.setnchannels(channels)
        fh.setsampwidth(2)
        fh.setframerate(rate)
        fh.writeframes(samples.astype("<i2").tobytes())


def read_wav(path):
    with wave.open(str(path), "rb") as fh:
        raw = fh.readframes(fh.getnframes())
    return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768.0


# --------------------------------------------------------------------------
# greedy decoding with recorded logits
# --------------------------------------------------------------------------


def greedy(step_fn, first_logits, max_new, eos_ids):
    """Greedy loop. `step_fn(token, index)` returns next-step logits.

    Returns tokens, logits per step (the row each token was chosen from), and
    the smallest gap between the best and second-best logit.
    """
    tokens, rows, margin = [], [], float("inf")
    logits = first_logits
    for i in range(max_new):
        rows.append(logits.clone())
        top = torch.topk(logits, 2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        token = int(top.indices[0])
        tokens.append(token)
        if token in eos_ids or i + 1 == max_new:
            break
        logits = step_fn(token, i)
    return tokens, torch.stack(rows), margin
