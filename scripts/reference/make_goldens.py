"""Compute the expected outputs for the tiny checkpoints.

usage: python make_goldens.py [name ...]     (default: all; run make_models.py first)

Output, below tests/fixtures: inputs/*, goldens/<name>/{manifest.json, tensors.safetensors}.
"""

import re
import sys

import phi3v_ref
import transformers
from PIL import ImageOps
from refcommon import *  # noqa: F403
from transformers import GenerationConfig, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()

TOL = {
    "pixel_f32": 1e-6,
    "features": 5e-5,
    "logits": 5e-4,
    "logits_f16_guide": 0.06,
    "logits_bf16_guide": 0.4,
}
MAX_NEW = 12


# --------------------------------------------------------------------------
# inputs
# --------------------------------------------------------------------------


def pattern(width, height):
    """A picture that any language can rebuild from integers (see README)."""
    x = np.arange(width, dtype=np.int64)[None, :]
    y = np.arange(height, dtype=np.int64)[:, None]
    chans = [(x * (3 + c) + y * (5 - c) + ((x * y) // 32) * (c + 1)) % 256 for c in range(3)]
    return np.stack(chans, axis=-1).astype(np.uint8)


def sound_pattern(n):
    """Integer-only test sound, int16 (see README)."""
    i = np.arange(n, dtype=np.int64)
    seg = i // 8000
    kind = (seg * 7 + 3) % 5
    amp = 6000

    def tri(period):
        phase = i % period
        up = phase * 4 * amp // period - amp
        down = 3 * amp - phase * 4 * amp // period
        return np.where(phase * 2 < period, up, down)

    period = 40 + 13 * (seg % 11)
    state, noise = 12345, np.empty(n, dtype=np.int64)
    for k in range(n):
        state = (state * 1664525 + 1013904223) % 4294967296
        noise[k] = (state // 65536) % 8192 - 4096
    pos = i % 8000
    env = np.minimum(pos, 8000 - pos)
    first, second = tri(period), tri(period // 3)
    base = np.select(
        [kind == 0, kind == 3, kind == 4], [np.zeros_like(i), noise, (first + second) // 2], first
    )
    return (base * env // 4000).astype(np.int16)


PICTURES = {
    "land": ("land_90x60.png", (90, 60, 11)),
    "port": ("port_48x120.png", (48, 120, 12)),
    "square": ("square_56x56.png", (56, 56, 13)),
    "tiny": ("tiny_31x17.png", (31, 17, 14)),
    "wide": ("wide_200x40.png", (200, 40, 15)),
    "big": ("big_180x150.png", (180, 150, 16)),
}


def make_inputs():
    INPUTS.mkdir(exist_ok=True)
    notes = {}
    for key, (name, (w, h, seed)) in PICTURES.items():
        scene(w, h, seed).save(INPUTS / name, optimize=False, compress_level=9)
        notes[name] = {"key": key, "mode": "RGB", "size": [w, h]}
    # decoder behaviour: JPEG, orientation tag, alpha, grey, palette, 16 bit
    photo = scene(160, 120, 21, texture=6)
    photo.save(INPUTS / "photo_160x120.jpg", quality=90, subsampling=2)
    decoded = Image.open(INPUTS / "photo_160x120.jpg").convert("RGB")
    decoded.save(INPUTS / "photo_160x120.decoded.png", compress_level=9)
    notes["photo_160x120.jpg"] = {
        "mode": "JPEG 4:2:0 quality 90",
        "expected": "photo_160x120.decoded.png",
        "note": "another JPEG decoder may differ by a few levels per sample, most with other chroma upsampling",
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(80, 50, 22, texture=0).save(INPUTS / "exif6_80x50.jpg", quality=95, subsampling=0, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(INPUTS / "exif6_80x50.jpg")).convert("RGB")
    turned.save(INPUTS / "exif6_80x50.decoded.png", compress_level=9)
    notes["exif6_80x50.jpg"] = {
        "mode": "JPEG 4:4:4 with orientation 6 (turn 90 degrees clockwise to display)",
        "expected": "exif6_80x50.decoded.png",
        "size": list(turned.size),
    }
    rgba = np.dstack([np.asarray(scene(64, 48, 23)), pattern(64, 48)[..., 0]])
    Image.fromarray(rgba, "RGBA").save(INPUTS / "rgba_64x48.png", compress_level=9)
    base = Image.open(INPUTS / "rgba_64x48.png")
    white = Image.alpha_composite(Image.new("RGBA", base.size, (255, 255, 255, 255)), base).convert("RGB")
    white.save(INPUTS / "rgba_64x48.white.png", compress_level=9)
    base.convert("RGB").save(INPUTS / "rgba_64x48.dropped.png", compress_level=9)
    notes["rgba_64x48.png"] = {
        "mode": "RGBA",
        "expected": "rgba_64x48.white.png",
        "older_behaviour": "rgba_64x48.dropped.png",
    }
    Image.fromarray(pattern(50, 70)[..., 1], "L").save(INPUTS / "gray_50x70.png", compress_level=9)
    notes["gray_50x70.png"] = {"mode": "L", "expected": "the value repeated in three channels"}
    pal = scene(40, 40, 24, texture=0).quantize(16)
    pal.save(INPUTS / "palette_40x40.png", compress_level=9)
    pal.convert("RGB").save(INPUTS / "palette_40x40.decoded.png", compress_level=9)
    notes["palette_40x40.png"] = {"mode": "P, 16 colours", "expected": "palette_40x40.decoded.png"}
    speech = synth_audio(3.0, 31)
    write_wav(INPUTS / "speechlike_3s.wav", speech)
    notes["speechlike_3s.wav"] = {
        "rate": 16000,
        "channels": 1,
        "samples": len(speech),
        "sha256_i16le": sha256(speech),
    }
    long = sound_pattern(45 * 16000)
    notes["(generated) sound_pattern 45 s"] = {
        "rate": 16000,
        "samples": len(long),
        "sha256_i16le": sha256(long),
        "first": long[:8].tolist(),
        "at_4000": long[4000:4008].tolist(),
        "at_100000": long[100000:100008].tolist(),
    }
    notes["(generated) pattern"] = {
        "sha256_640x480": sha256(pattern(640, 480)),
        "first_pixels_640x480": pattern(640, 480)[0, :3].tolist(),
        "pixel_x100_y200": pattern(640, 480)[200, 100].tolist(),
    }
    for name, note in notes.items():
        if (INPUTS / name).exists():
            note["sha256_file"] = sha256((INPUTS / name).read_bytes())
    write_json(INPUTS / "manifest.json", notes)


def picture(key):
    return Image.open(INPUTS / PICTURES[key][0]).convert("RGB")


# --------------------------------------------------------------------------
# common machinery
# --------------------------------------------------------------------------


class Recorder:
    def __init__(self, name):
        self.name = name
        self.path = MODELS / name
        self.tok = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        self.config = json.loads((self.path / "config.json").read_text())
        self.pre = json.loads((self.path / "preprocessor_config.json").read_text())
        self.gen = json.loads((self.path / "generation_config.json").read_text())
        self.tokcfg = json.loads((self.path / "tokenizer_config.json").read_text())
        template = self.tokcfg.get("chat_template")
        if (self.path / "chat_template.json").exists():
            template = json.loads((self.path / "chat_template.json").read_text())["chat_template"]
        self.template = template
        eos = self.gen["eos_token_id"]
        self.eos = eos if isinstance(eos, list) else [eos]
        self.tensors = {}
        self.u8 = {}
        self.manifest = {
            "model": name,
            "tolerance": TOL,
            "reference": {
                "transformers": transformers.__version__,
                "torch": torch.__version__.split("+")[0],
                "dtype": "float32",
                "attention": "eager",
            },
            "cases": [],
        }

    def render(self, messages, add_generation_prompt=True):
        fast = PreTrainedTokenizerFast(
            tokenizer_file=str(self.path / "tokenizer.json"),
            bos_token=self.tokcfg.get("bos_token"),
            eos_token=self.tokcfg.get("eos_token"),
        )
        return fast.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def put(self, case, key, value):
        self.tensors[f"{case}/{key}"] = value

    def put_u8(self, case, key, value, keep=("one_land", "one_tiny")):
        """A uint8 stage: always its sha256 in the manifest, the array itself in a few cases."""
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        self.u8.setdefault(case, {})[key] = {"shape": list(value.shape), "sha256": sha256(value)}
        if case in keep:
            self.put(case, key, value)

    def add(self, case, **fields):
        if case in self.u8:
            fields["uint8_stage"] = self.u8[case]
        self.manifest["cases"].append({"name": case, **fields})

    def finish(self):
        self.manifest["stop_token_ids"] = self.eos
        out = GOLDENS / self.name
        out.mkdir(parents=True, exist_ok=True)
        write_tensors(out / "tensors.safetensors", self.tensors)
        write_json(out / "manifest.json", self.manifest)
        size = sum(f.stat().st_size for f in out.iterdir())
        low = min(
            (c["min_margin"] for c in self.manifest["cases"] if "min_margin" in c), default=float("nan")
        )
        print(
            f"{self.name}: {len(self.manifest['cases'])} cases, {size / 1024:.0f} KiB, smallest margin {low:.4f}"
        )


def write_json(path, obj):  # noqa: F811
    """Like refcommon's, with lists of numbers on one line."""
    text = json.dumps(obj, indent=1, ensure_ascii=False)
    text = re.sub(
        r"\[\s+((?:-?[\d.eE+-]+|null)(?:,\s+(?:-?[\d.eE+-]+|null))*)\s+\]",
        lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]",
        text,
    )
    Path(path).write_text(text + "\n", encoding="utf-8")


def messages_one(key, question):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], [key]


QUESTION = "what is shown in this image?"


def vlm_cases():
    """name, messages, picture keys: the same set for every vision model."""
    text = [{"role": "user", "content": [{"type": "text", "text": "count from one to ten, please."}]}]
    yield "text_only", text, []
    for key in ("land", "port", "square", "tiny", "wide"):
        messages, keys = messages_one(key, QUESTION)
        yield f"one_{key}", messages, keys
    yield (
        "two_images",
        [
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {"type": "image"},
                    {"type": "text", "text": "compare the two images."},
                ],
            }
        ],
        ["land", "port"],
    )
    yield (
        "multi_turn",
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": "the image shows a blue circle."}]},
            {"role": "user", "content": [{"type": "text", "text": "how many objects are there?"}]},
        ],
        ["square"],
    )


def pil_processor(cls, pre, drop=()):
    kwargs = {
        k: v
        for k, v in pre.items()
        if k
        not in (
            "image_processor_type",
            "processor_class",
            "feature_extractor_type",
            "auto_map",
            "aspect_ratio_setting",
            "num_img_tokens",
            "use_image_newline_parameter",
            *drop,
        )
    }
    return cls(**kwargs)


def unnormalize(pixels, mean, std):
    """float pixel values -> the uint8 stage they came from (exact by construction)."""
    x = torch.as_tensor(pixels).double()
    m = torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)
    s = torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
    raw = (x * s + m) * 255.0
    out = raw.round()
    assert float((raw - out).abs().max()) < 1e-2
    assert float(out.min()) >= 0 and float(out.max()) <= 255
    return out.to(torch.uint8)


def hf_greedy(model, inputs, eos, max_new=MAX_NEW):
    cfg = GenerationConfig(
        do_sample=False,
        # what is not said here is taken from the checkpoint
        repetition_penalty=1.0,
        max_new_tokens=max_new,
        eos_token_id=eos,
        pad_token_id=eos[0],
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=True,
    )
    out = model.generate(**inputs, generation_config=cfg)
    start = inputs["input_ids"].shape[1]
    tokens = out.sequences[:, start:]
    rows = torch.stack(out.logits, dim=1)
    return tokens, rows


def margin_of(rows, tokens):
    top = torch.topk(rows[: len(tokens)], 2, dim=-1).values
    return float((top[:, 0] - top[:, 1]).min())


def expand(ids, token, counts):
    """Replace the k-th occurrence of `token` by counts[k] copies."""
    out, spans, k = [], [], 0
    for i in ids:
        if i == token and k < len(counts):
            spans.append([len(out), counts[k]])
            out.extend([token] * counts[k])
            k += 1
        else:
            out.append(i)
    assert k == len(counts), (k, counts)
    return out, spans


def save_case(
    rec, case, *, messages, rendered, ids, images, spans, logits, tokens, rows, extra=None, full=False
):
    margin = margin_of(rows, tokens)
    rec.put(case, "logits_last", logits[-1])
    if full:
        rec.put(case, "logits_all", logits)
        rec.put(case, "greedy_logits", rows)
    rec.add(
        case,
        messages=messages,
        rendered=rendered,
        images=[PICTURES[k][0] for k in images],
        input_ids=list(ids),
        image_spans=spans,
        prompt_len=len(ids),
        greedy_tokens=list(tokens),
        greedy_text=rec.tok.decode(list(tokens), skip_special_tokens=True),
        min_margin=round(margin, 5),
        **(extra or {}),
    )


def check_batch(rec, model, singles, pad_id, names, build):
    """Left-padded batch gives the tokens of the single runs."""
    width = max(len(singles[n]["ids"]) for n in names)
    rows = [[pad_id] * (width - len(singles[n]["ids"])) + singles[n]["ids"] for n in names]
    mask = [[0] * (width - len(singles[n]["ids"])) + [1] * len(singles[n]["ids"]) for n in names]
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
    inputs.update(build(names))
    tokens, logits = hf_greedy(model, inputs, rec.eos)
    diff = 0.0
    for i, n in enumerate(names):
        want = singles[n]["tokens"]
        assert tokens[i, : len(want)].tolist() == want, (n, tokens[i].tolist(), want)
        diff = max(diff, float((logits[i, 0] - singles[n]["rows"][0]).abs().max()))
    rec.manifest["batch"] = {
        "cases": names,
        "note": "the left-padded batch gave the same greedy tokens as each prompt alone",
        "max_abs_logit_difference_to_single": float(f"{diff:.3g}"),
    }


# --------------------------------------------------------------------------
# LLaVA-1.5
# --------------------------------------------------------------------------


def pad_to_square_u8(arr, mean):
    h, w, _ = arr.shape
    side = max(h, w)
    fill = [int(m * 255) for m in mean]
    out = np.empty((side, side, 3), dtype=np.uint8)
    out[:] = fill
    y, x = (side - h) // 2, (side - w) // 2
    out[y : y + h, x : x + w] = arr
    return out


def goldens_llava():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    rec = Recorder("llava")
    proc = pil_processor(CLIPImageProcessorPil, rec.pre)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        rec.path, attn_implementation="eager"
    ).eval()
    image_id = rec.config["image_token_index"]
    per_image = 16
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]

    def crop_pixels(key, padded):
        arr = np.asarray(picture(key))
        src = Image.fromarray(pad_to_square_u8(arr, mean)) if padded else Image.fromarray(arr)
        return proc(src, return_tensors="pt")["pixel_values"]

    def crop_pixels_plain(key, padded):
        """The same, from the primitives of refcommon only."""
        arr = np.asarray(picture(key))
        if padded:
            arr = pad_to_square_u8(arr, mean)
        h, w, _ = arr.shape
        size = rec.pre["size"]["shortest_edge"]
        long = int(size * max(h, w) / min(h, w))
        nh, nw = (size, long) if h <= w else (long, size)
        arr = resize_u8(arr, nw, nh, "bicubic")
        top, left = (nh - size) // 2, (nw - size) // 2
        arr = arr[top : top + size, left : left + size]
        return torch.from_numpy(to_float(arr, mean, std))[None]

    singles = {}

    def run(case, messages, keys, padded=False):
        rendered = rec.render(messages)
        ids, spans = expand(encode(rec.tok, rendered), image_id, [per_image] * len(keys))
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if keys:
            pixels = torch.cat([crop_pixels(k, padded) for k in keys])
            plain = torch.cat([crop_pixels_plain(k, padded) for k in keys])
            assert float((pixels - plain).abs().max()) == 0.0, case
            inputs["pixel_values"] = pixels
            feats = torch.cat(list(model.get_image_features(pixel_values=pixels).pooler_output))
            rec.put_u8(
                case,
                "pixel_u8",
                unnormalize(pixels, mean, std),
                keep=("one_land", "one_tiny", "one_port_pad"),
            )
            if case in ("one_land", "one_land_pad"):
                rec.put(case, "pixel_values", pixels)
            rec.put(case, "image_features", feats)
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        tokens, rows = tokens[0].tolist(), rows[0]
        assert float((logits[-1] - rows[0]).abs().max()) < 1e-4
        singles[case] = {"ids": ids, "tokens": tokens, "rows": rows, "keys": keys}
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=spans,
            logits=logits,
            tokens=tokens,
            rows=rows,
            full=case == "one_land",
            extra={
                "preprocess": "pad to square, then resize" if padded else "resize short edge, centre crop"
            },
        )

    for case, messages, keys in vlm_cases():
        run(case, messages, keys)
    for key in ("land", "port"):
        messages, keys = messages_one(key, QUESTION)
        run(f"one_{key}_pad", messages, keys, padded=True)
    check_batch(
        rec,
        model,
        singles,
        rec.config["pad_token_id"],
        ["text_only", "one_land", "two_images"],
        lambda names: {
            "pixel_values": torch.cat([crop_pixels(k, False) for n in names for k in singles[n]["keys"]])
        },
    )
    # the vision tower step by step, for one picture
    pixels = crop_pixels("land", False)
    out = model.model.vision_tower(pixels, output_hidden_states=True)
    for i, hidden in enumerate(out.hidden_states):
        rec.put("vision_land", f"hidden_{i}", hidden[0])
    rec.add(
        "vision_land",
        note="hidden_0 is the embedding after pre_layrnorm; the model uses hidden_2 (= index -2 of "
        "4 states), rows 1.. (class row dropped); post_layernorm is not applied",
        images=["land_90x60.png"],
    )
    rec.finish()


# --------------------------------------------------------------------------
# LLaVA-NeXT
# --------------------------------------------------------------------------


def best_resolution(h, w, pinpoints):
    best, best_eff, best_waste = None, 0, float("inf")
    for ph, pw in pinpoints:
        scale = min(pw / w, ph / h)
        dw, dh = int(w * scale), int(h * scale)
        eff = min(dw * dh, w * h)
        waste = pw * ph - eff
        if eff > best_eff or (eff == best_eff and waste < best_waste):
            best, best_eff, best_waste = (ph, pw), eff, waste
    return best


def anyres_plan(h, w, pinpoints, base, side):
    """side = patches per base edge. Returns grid, unpadded rows and columns, token count."""
    ph, pw = best_resolution(h, w, pinpoints)
    gh, gw = ph // base, pw // base
    cur_h, cur_w = gh * side, gw * side
    if w / h > cur_w / cur_h:
        new_h = int(round(h * (cur_w / w), 7))
        cut = (cur_h - new_h) // 2
        rows, cols = cur_h - 2 * cut, cur_w
    else:
        new_w = int(round(w * (cur_h / h), 7))
        cut = (cur_w - new_w) // 2
        rows, cols = cur_h, cur_w - 2 * cut
    return {
        "best": [ph, pw],
        "grid": [gh, gw],
        "rows": rows,
        "cols": cols,
        "tokens": side * side + rows * (cols + 1),
    }


def goldens_llava_next():
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    rec = Recorder("llava_next")
    proc = pil_processor(LlavaNextImageProcessorPil, rec.pre)
    model = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        rec.path, attn_implementation="eager"
    ).eval()
    image_id = rec.config["image_token_index"]
    pins = rec.config["image_grid_pinpoints"]
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]

    def crops_plain(key):
        arr = np.asarray(picture(key))
        h, w, _ = arr.shape
        th, tw = best_resolution(h, w, pins)
        if tw / w < th / h:
            nw, nh = tw, min(math.ceil(h * (tw / w)), th)
        else:
            nh, nw = th, min(math.ceil(w * (th / h)), tw)
        small = resize_u8(arr, nw, nh, "bicubic")
        canvas = np.zeros((th, tw, 3), dtype=np.uint8)
        y, x = (th - nh) // 2, (tw - nw) // 2
        canvas[y : y + nh, x : x + nw] = small
        out = [resize_u8(arr, 56, 56, "bicubic")]
        out += [canvas[i : i + 56, j : j + 56] for i in range(0, th, 56) for j in range(0, tw, 56)]
        return np.stack([np.moveaxis(c, -1, 0) for c in out])

    def prepare(keys):
        data = proc([picture(k) for k in keys], return_tensors="pt")
        return data["pixel_values"], data["image_sizes"]

    singles = {}

    def run(case, messages, keys):
        rendered = rec.render(messages)
        extra, plans = {}, []
        for k in keys:
            w, h = picture(k).size
            plans.append(anyres_plan(h, w, pins, 56, 4))
        ids, spans = expand(encode(rec.tok, rendered), image_id, [p["tokens"] for p in plans])
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if keys:
            pixels, sizes = prepare(keys)
            for i, (k, p) in enumerate(zip(keys, plans)):
                n = p["grid"][0] * p["grid"][1] + 1
                u8 = unnormalize(pixels[i, :n], mean, std)
                assert torch.equal(u8, torch.from_numpy(crops_plain(k))), (case, k)
                rec.put_u8(case, f"pixel_u8_{i}", u8)
                p["crops"] = n
            inputs.update(pixel_values=pixels, image_sizes=sizes)
            feats = model.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output
            for i, f in enumerate(feats):
                assert f.shape[0] == plans[i]["tokens"]
                rec.put(case, f"image_features_{i}", f)
            extra = {"image_sizes": sizes.tolist(), "plans": plans}
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        tokens, rows = tokens[0].tolist(), rows[0]
        singles[case] = {"ids": ids, "tokens": tokens, "rows": rows, "keys": keys}
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=spans,
            logits=logits,
            tokens=tokens,
            rows=rows,
            full=case == "one_land",
            extra=extra,
        )

    for case, messages, keys in vlm_cases():
        run(case, messages, keys)
    messages, keys = messages_one("big", QUESTION)
    run("one_big", messages, keys)

    def build(names):
        pixels, sizes = prepare([k for n in names for k in singles[n]["keys"]])
        return {"pixel_values": pixels, "image_sizes": sizes}

    check_batch(rec, model, singles, rec.gen["pad_token_id"], ["text_only", "one_land", "two_images"], build)
    # packing order, small: which feature row stands at which place
    h, w = 60, 90
    plan = anyres_plan(h, w, pins, 56, 4)
    n = plan["grid"][0] * plan["grid"][1] + 1
    index = torch.arange(n * 16, dtype=torch.float32).reshape(n, 16, 1)
    packed, _ = model.model.pack_image_features(
        [index], torch.tensor([[h, w]]), "default", image_newline=torch.tensor([-1.0])
    )
    rec.manifest["packing_order_land"] = {
        "note": "value = crop * 16 + patch for every packed row, -1 = image_newline",
        "rows": [int(v) for v in packed[0].flatten()],
    }
    real = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    rec.manifest["real_size_plans"] = [
        {"width": w, "height": h, **anyres_plan(h, w, real, 336, 24)} for w, h in REAL_SIZES
    ]
    rec.finish()


REAL_SIZES = [
    (336, 336),
    (224, 224),
    (640, 480),
    (480, 640),
    (1024, 768),
    (1920, 1080),
    (1080, 1920),
    (1344, 336),
    (336, 1344),
    (3000, 200),
    (500, 501),
    (672, 672),
    (333, 500),
    (100, 37),
    (4032, 3024),
]


# --------------------------------------------------------------------------
# Phi-3-Vision
# --------------------------------------------------------------------------


def goldens_phi3v():
    from safetensors.torch import load_file

    rec = Recorder("phi3_v")
    rec.eos = [2, rec.tok.token_to_id("<|endoftext|>"), rec.tok.token_to_id("<|end|>")]
    model = phi3v_ref.Phi3VReference(rec.config).load_published(
        load_file(str(rec.path / "model.safetensors"))
    )
    crops = rec.pre["num_crops"]
    base, side = 56, 2
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]

    def flatten(messages):
        """Content parts -> the string content that the published template wants."""
        out, k = [], 0
        for m in messages:
            text = ""
            for part in m["content"]:
                if part["type"] == "image":
                    k += 1
                    text += f"<|image_{k}|>\n"
                else:
                    text += part["text"]
            out.append({"role": m["role"], "content": text})
        return out

    def run(case, messages, keys, num_crops=crops, modes=("auto",), max_new=MAX_NEW, full=False):
        rendered = rec.render(flatten(messages))
        feats, counts, info = [], [], []
        for i, k in enumerate(keys):
            arr = np.asarray(picture(k))
            pixels, plan, canvas = phi3v_ref.preprocess(arr, num_crops, mean, std, base)
            assert (
                float(
                    (
                        torch.from_numpy(bicubic_noantialias_f32(to_float(canvas, mean, std), base, base))
                        - pixels[0]
                    )
                    .abs()
                    .max()
                )
                < 2e-5
            )
            f = model.image_features(pixels, plan["grid"])
            n = phi3v_ref.num_image_tokens(plan["grid"], side)
            assert f.shape[0] == n
            feats.append(f)
            counts.append(n)
            rec.put_u8(case, f"canvas_u8_{i}", np.moveaxis(canvas, -1, 0), keep=("one_land", "one_port"))
            if case in ("one_land", "one_port"):
                rec.put(case, f"global_{i}", pixels[0])
            rec.put(case, f"image_features_{i}", f)
            info.append(
                {
                    **{a: (list(b) if isinstance(b, tuple) else b) for a, b in plan.items()},
                    "tokens": n,
                    "image_size": [canvas.shape[0], canvas.shape[1]],
                }
            )
        ids = phi3v_ref.prompt_ids(rec.tok, rendered, counts)
        spans = []
        for k in range(1, len(keys) + 1):
            spans.append([ids.index(-k), counts[k - 1]])
        embeds = model.embed(ids, feats)
        auto = model.logits(embeds)
        check = model.logits_transformers(embeds)
        assert float((auto - check).abs().max()) < 1e-4, (case, float((auto - check).abs().max()))
        for mode in modes:
            name = case if mode == "auto" else f"{case}@{mode}"
            tokens, rows, margin = model.greedy(ids, feats, max_new, rec.eos, mode)
            logits = auto if mode == "auto" else model.logits(embeds, mode)
            save_case(
                rec,
                name,
                messages=messages,
                rendered=rendered,
                ids=ids,
                images=keys,
                spans=spans,
                logits=logits,
                tokens=tokens,
                rows=rows,
                full=full and mode == "auto",
                extra={
                    "num_crops": num_crops,
                    "plans": info,
                    "rope": {
                        "mode": mode,
                        "long_at_prompt": (mode == "long")
                        or (mode == "auto" and len(ids) > rec.config["original_max_position_embeddings"]),
                    },
                },
            )

    for case, messages, keys in vlm_cases():
        if case == "text_only":
            run(case, messages, keys, modes=("auto", "short", "long"))
        elif case == "one_land":
            run(case, messages, keys, modes=("auto", "short", "long"), full=True)
        else:
            run(case, messages, keys)
    messages, keys = messages_one("big", QUESTION)
    run("one_big_16crops", messages, keys, num_crops=16)
    # generation that runs over the short/long boundary (64 positions)
    long_text = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "the quick brown fox jumps over the lazy dog, then the dog sleeps."}
            ],
        }
    ]
    run("cross_boundary", long_text, [], modes=("auto", "short", "long"), max_new=48)
    # packing order
    feats = torch.arange(2 * 3 * 16, dtype=torch.float32).reshape(6, 16, 1)
    merged = model.merge(feats, 2, 3)
    rec.manifest["merge_order_2x3"] = {
        "note": "sub-image grid 2 rows x 3 columns, 4x4 patches each; value = crop * 16 + patch; [row][col][4]",
        "grid": [[[int(v) for v in cell] for cell in row] for row in merged],
    }
    rec.manifest["real_size_plans"] = [
        {
            "width": w,
            "height": h,
            "num_crops": c,
            **{a: (list(b) if isinstance(b, tuple) else b) for a, b in phi3v_ref.hd_plan(w, h, c).items()},
            "tokens": phi3v_ref.num_image_tokens(phi3v_ref.hd_plan(w, h, c)["grid"]),
        }
        for c in (4, 16)
        for w, h in REAL_SIZES
    ]
    rope = model.config["rope_scaling"]
    ratio = model.config["max_position_embeddings"] / model.config["original_max_position_embeddings"]
    rec.manifest["rope"] = {
        "scale": math.sqrt(1 + math.log(ratio) / math.log(model.config["original_max_position_embeddings"])),
        "short": rope["short_factor"],
        "long": rope["long_factor"],
        "published_scale_131072_over_4096": math.sqrt(1 + math.log(32) / math.log(4096)),
    }
    rec.finish()


# --------------------------------------------------------------------------
# Qwen2.5-VL
# --------------------------------------------------------------------------


def smart_resize(h, w, factor, min_pixels, max_pixels):
    """Python round(): ties to even."""
    hb, wb = round(h / factor) * factor, round(w / factor) * factor
    if hb * wb > max_pixels:
        beta = math.sqrt(h * w / max_pixels)
        hb = max(factor, math.floor(h / beta / factor) * factor)
        wb = max(factor, math.floor(w / beta / factor) * factor)
    elif hb * wb < min_pixels:
        beta = math.sqrt(min_pixels / (h * w))
        hb = math.ceil(h * beta / factor) * factor
        wb = math.ceil(w * beta / factor) * factor
    return hb, wb


def goldens_qwen25vl():
    goldens_qwen_vl("qwen2_5_vl")


def goldens_qwen2vl():
    goldens_qwen_vl("qwen2_vl")


def goldens_qwen_vl(name):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rec = Recorder(name)
    proc = pil_processor(Qwen2VLImageProcessorPil, rec.pre)
    kind = getattr(transformers, rec.config["architectures"][0])
    model = kind.from_pretrained(rec.path, attn_implementation="eager").eval()
    image_id = rec.config["image_token_id"]
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]

    def plain(key):
        arr = np.asarray(picture(key))
        h, w, _ = arr.shape
        nh, nw = smart_resize(h, w, 28, rec.pre["min_pixels"], rec.pre["max_pixels"])
        x = to_float(resize_u8(arr, nw, nh, "bicubic"), mean, std)
        gh, gw = nh // 14, nw // 14
        x = np.stack([x, x])  # temporal patch of two equal frames: [2, 3, H, W]
        x = x.reshape(1, 2, 3, gh // 2, 2, 14, gw // 2, 2, 14)
        x = x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return torch.from_numpy(x.reshape(gh * gw, 3 * 2 * 14 * 14)), [1, gh, gw]

    def run(case, messages, keys):
        rendered = rec.render(messages)
        extra, grids = {}, []
        inputs = {}
        if keys:
            data = proc([picture(k) for k in keys], return_tensors="pt")
            grids = data["image_grid_thw"]
            ref = [plain(k) for k in keys]
            assert torch.equal(data["pixel_values"], torch.cat([r[0] for r in ref])), case
            assert grids.tolist() == [r[1] for r in ref]
        counts = [int(g.prod()) // 4 for g in grids]
        ids, spans = expand(encode(rec.tok, rendered), image_id, counts)
        types = torch.tensor([[1 if i == image_id else 0 for i in ids]])
        inputs.update(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        if keys:
            inputs.update(pixel_values=data["pixel_values"], image_grid_thw=grids, mm_token_type_ids=types)
            feats = model.get_image_features(
                pixel_values=data["pixel_values"], image_grid_thw=grids
            ).pooler_output
            rec.put(case, "image_features", torch.cat(list(feats)))
            pos, delta = model.model.get_rope_index(inputs["input_ids"], types, image_grid_thw=grids)
            rec.put(case, "position_ids", pos[:, 0])
            extra = {"image_grid_thw": grids.tolist(), "rope_delta": int(delta[0, 0])}
            if case in ("one_land", "one_wide"):
                rec.put(case, "pixel_values", data["pixel_values"])
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=spans,
            logits=logits,
            tokens=tokens[0].tolist(),
            rows=rows[0],
            full=case == "one_land",
            extra=extra,
        )

    for case, messages, keys in vlm_cases():
        run(case, messages, keys)
    messages, keys = messages_one("big", QUESTION)
    run("one_big", messages, keys)
    rec.manifest["real_size_plans"] = [
        {
            "width": w,
            "height": h,
            "resized": list(smart_resize(h, w, 28, 56 * 56, 28 * 28 * 1280)),
            "tokens": int(np.prod(smart_resize(h, w, 28, 56 * 56, 28 * 28 * 1280)) // 784),
        }
        for w, h in REAL_SIZES
    ]
    rec.finish()


# --------------------------------------------------------------------------
# InternVL2
# --------------------------------------------------------------------------


def internvl_grid(w, h, min_num, max_num, size):
    ratios = sorted(
        {
            (i, j)
            for n in range(min_num, max_num + 1)
            for i in range(1, n + 1)
            for j in range(1, n + 1)
            if min_num <= i * j <= max_num
        },
        key=lambda r: (r[0] * r[1], r),
    )
    best, diff = (1, 1), float("inf")
    for cols, rows in ratios:
        d = abs(w / h - cols / rows)
        if d < diff:
            best, diff = (cols, rows), d
        elif d == diff and w * h > 0.5 * size * size * cols * rows:
            best = (cols, rows)
    return best


def internvl_tiles(arr, size, min_num, max_num, thumbnail):
    h, w, _ = arr.shape
    cols, rows = internvl_grid(w, h, min_num, max_num, size)
    big = resize_u8(arr, cols * size, rows * size, "bicubic")
    tiles = [
        big[r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(rows) for c in range(cols)
    ]
    if thumbnail and len(tiles) > 1:
        tiles.append(resize_u8(arr, size, size, "bicubic"))
    return tiles, (cols, rows)


def goldens_internvl2():
    import make_models

    rec = Recorder("internvl2")
    # rebuild the transformers-side model with the same seed and compare the file
    llm, vit = rec.config["llm_config"], rec.config["vision_config"]
    vcfg = transformers.InternVLVisionConfig(
        hidden_size=vit["hidden_size"],
        intermediate_size=vit["intermediate_size"],
        num_hidden_layers=vit["num_hidden_layers"],
        num_attention_heads=vit["num_attention_heads"],
        attention_bias=vit["qkv_bias"],
        use_qk_norm=vit["qk_normalization"],
        norm_type=vit["norm_type"],
        layer_norm_eps=vit["layer_norm_eps"],
        image_size=[vit["image_size"]] * 2,
        patch_size=[vit["patch_size"]] * 2,
        hidden_act=vit["hidden_act"],
        use_mean_pooling=True,
    )
    tcfg = transformers.LlamaConfig(
        **{
            k: llm[k]
            for k in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "rms_norm_eps",
                "max_position_embeddings",
                "vocab_size",
            )
        },
        rope_theta=float(llm["rope_theta"]),
    )
    context = rec.tok.token_to_id("<IMG_CONTEXT>")
    cfg = transformers.InternVLConfig(
        vision_config=vcfg, text_config=tcfg, image_token_id=context, downsample_ratio=0.5, image_seq_length=4
    )
    cfg._attn_implementation = "eager"
    model = transformers.InternVLForConditionalGeneration._from_config(cfg, attn_implementation="eager")
    randomize(model, 1306, overrides=make_models.INTERNVL_OVERRIDES)
    blank_rows(model.lm_head.weight, make_models.BASE_VOCAB)
    model.eval()
    from safetensors.torch import load_file

    stored = load_file(str(rec.path / "model.safetensors"))
    for key, value in make_models.internvl2_published(model.state_dict(), 4, 2, 16).items():
        assert torch.equal(stored[key], value), key
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]
    system = "you are a helpful assistant."

    def prompt(messages, tiles):
        """The rule of the published chat(): no line break after <|im_end|>."""
        out, k = f"<|im_start|>system\n{system}<|im_end|>", 0
        for m in messages:
            text = ""
            for part in m["content"]:
                if part["type"] == "image":
                    text += "<img>" + "<IMG_CONTEXT>" * (4 * tiles[k]) + "</img>\n"
                    k += 1
                else:
                    text += part["text"]
            out += f"<|im_start|>{m['role']}\n{text}<|im_end|>"
        return out + "<|im_start|>assistant\n"

    def run(case, messages, keys, thumbnail=True):
        pixels, counts, grids = [], [], []
        for i, k in enumerate(keys):
            tiles, grid = internvl_tiles(
                np.asarray(picture(k)), 56, 1, rec.config["max_dynamic_patch"], thumbnail
            )
            rec.put_u8(
                case, f"pixel_u8_{i}", np.stack([np.moveaxis(t, -1, 0) for t in tiles]), keep=("one_tiny",)
            )
            pixels += [torch.from_numpy(to_float(t, mean, std)) for t in tiles]
            counts.append(len(tiles))
            grids.append(list(grid))
        rendered = prompt(messages, counts)
        ids = encode(rec.tok, rendered)
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if keys:
            inputs["pixel_values"] = torch.stack(pixels)
            feats = model.get_image_features(
                pixel_values=inputs["pixel_values"],
                vision_feature_layer=-1,
                vision_feature_select_strategy="default",
            ).pooler_output
            rec.put(case, "image_features", feats.reshape(-1, feats.shape[-1]))
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        spans, i = [], 0
        while i < len(ids):
            if ids[i] == context:
                j = i
                while j < len(ids) and ids[j] == context:
                    j += 1
                spans.append([i, j - i])
                i = j
            else:
                i += 1
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=spans,
            logits=logits,
            tokens=tokens[0].tolist(),
            rows=rows[0],
            full=case == "one_land",
            extra={"tiles": counts, "grids_cols_rows": grids, "system": system},
        )

    for case, messages, keys in vlm_cases():
        run(case, messages, keys)
    shuffled = torch.arange(16, dtype=torch.float32).reshape(1, 4, 4, 1)
    order = model.model.pixel_shuffle(shuffled, 0.5).reshape(-1, 4)
    rec.manifest["pixel_shuffle_order"] = {
        "note": "4x4 patches -> 4 tokens, source patch of each channel block",
        "tokens": [[int(v) for v in row] for row in order],
    }
    rec.manifest["real_size_plans"] = [
        {
            "width": w,
            "height": h,
            "max_num": n,
            "grid_cols_rows": list(internvl_grid(w, h, 1, n, 448)),
            "tokens": 256
            * (
                np.prod(internvl_grid(w, h, 1, n, 448)).item()
                + (1 if np.prod(internvl_grid(w, h, 1, n, 448)) > 1 else 0)
            ),
        }
        for n in (6, 12)
        for w, h in REAL_SIZES
    ]
    rec.finish()


# --------------------------------------------------------------------------
# Pixtral
# --------------------------------------------------------------------------


def goldens_pixtral():
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    rec = Recorder("pixtral")
    proc = pil_processor(PixtralImageProcessorPil, rec.pre)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        rec.path, attn_implementation="eager"
    ).eval()
    image_id = rec.config["image_token_index"]
    brk, end = rec.tok.token_to_id("[IMG_BREAK]"), rec.tok.token_to_id("[IMG_END]")
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]
    longest = rec.pre["size"]["longest_edge"]

    def plan(key):
        w, h = picture(key).size
        ratio = max(h / longest, w / longest)
        if ratio > 1:
            h, w = int(math.floor(h / ratio)), int(math.floor(w / ratio))
        return ((h - 1) // 16 + 1) * 16, ((w - 1) // 16 + 1) * 16

    def run(case, messages, keys):
        rendered = rec.render(messages)
        sizes = [plan(k) for k in keys]
        ids = []
        spans, k = [], 0
        for i in encode(rec.tok, rendered, special=not rendered.startswith("<s>")):
            if i != image_id:
                ids.append(i)
                continue
            rows, cols = sizes[k][0] // 16, sizes[k][1] // 16
            spans.append([len(ids), rows * (cols + 1)])
            block = ([image_id] * cols + [brk]) * rows
            block[-1] = end
            ids += block
            k += 1
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if keys:
            data = proc([picture(x) for x in keys], return_tensors="pt")
            assert [tuple(int(v) for v in s) for s in data["image_sizes"]] == sizes
            for i, (x, s) in enumerate(zip(keys, sizes)):
                arr = resize_u8(np.asarray(picture(x)), s[1], s[0], "bicubic")
                assert torch.equal(
                    data["pixel_values"][i, :, : s[0], : s[1]], torch.from_numpy(to_float(arr, mean, std))
                )
                rec.put_u8(case, f"pixel_u8_{i}", np.moveaxis(arr, -1, 0))
            inputs["pixel_values"] = data["pixel_values"]
            inputs["image_sizes"] = torch.tensor(sizes)
            feats = model.get_image_features(
                pixel_values=inputs["pixel_values"],
                image_sizes=inputs["image_sizes"],
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
            ).pooler_output
            rec.put(case, "image_features", torch.cat(list(feats)))
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=spans,
            logits=logits,
            tokens=tokens[0].tolist(),
            rows=rows[0],
            full=case == "one_land",
            extra={
                "resized_h_w": [list(s) for s in sizes],
                "note": "image_spans cover [IMG], [IMG_BREAK] and [IMG_END]; features go to [IMG] only",
            },
        )

    for case, messages, keys in vlm_cases():
        run(case, messages, keys)
    rec.finish()


# --------------------------------------------------------------------------
# Llama-3.2-Vision
# --------------------------------------------------------------------------


def goldens_mllama():
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    rec = Recorder("mllama")
    proc = pil_processor(MllamaImageProcessorPil, rec.pre)
    model = transformers.MllamaForConditionalGeneration.from_pretrained(
        rec.path, attn_implementation="eager"
    ).eval()
    # Two places where the installed class departs from the original model:
    # 1. The original collects the INPUT of each listed vision layer; the class
    #    takes the output of the layer with that index, hence the shift by one.
    # 2. The original also zeroes the cross-attention output of text rows that
    #    see no picture; the class zeroes only their MLP output.
    # The goldens follow the original; `logits_last_transformers` is the class as it is.
    listed = rec.config["vision_config"]["intermediate_layers_indices"]
    state = {"original": True, "mask": None}

    def remember(module, args, kwargs):
        state["mask"] = kwargs.get("full_text_row_masked_out_mask")

    def zero_rows(module, args, output):
        if state["original"] and state["mask"] is not None:
            return (output[0] * state["mask"][:, 0], *output[1:])
        return output

    for index in rec.config["text_config"]["cross_attention_layers"]:
        layer = model.model.language_model.layers[index]
        layer.register_forward_pre_hook(remember, with_kwargs=True)
        layer.cross_attn.register_forward_hook(zero_rows)

    def behave(original):
        state["original"] = original
        model.model.vision_model.intermediate_layers_indices = (
            [i - 1 for i in listed] if original else list(listed)
        )

    behave(True)
    image_id = rec.config["image_token_index"]
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]

    def run(case, messages, keys):
        rendered = rec.render(messages)
        ids = encode(rec.tok, rendered, special=False)
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        extra = {}
        if keys:
            data = proc([[picture(k) for k in keys]], return_tensors="pt")
            mask = get_cross_attention_token_mask(ids, image_id)
            dense = convert_sparse_cross_attention_mask_to_dense(
                [mask], data["num_tiles"], rec.pre["max_image_tiles"], len(ids)
            )
            inputs.update(
                pixel_values=data["pixel_values"],
                aspect_ratio_ids=data["aspect_ratio_ids"],
                aspect_ratio_mask=data["aspect_ratio_mask"],
                cross_attention_mask=torch.from_numpy(dense),
            )
            for i in range(len(keys)):
                n = data["num_tiles"][0][i]
                rec.put_u8(
                    case,
                    f"pixel_u8_{i}",
                    unnormalize(data["pixel_values"][0, i, :n], mean, std),
                    keep=("one_land",),
                )
            vision = model.model.vision_model(
                data["pixel_values"], data["aspect_ratio_ids"], data["aspect_ratio_mask"]
            )
            rec.put(case, "vision_output", vision.last_hidden_state[0, :, :, :3])
            rec.put(
                case, "cross_states", model.model.multi_modal_projector(vision.last_hidden_state)[0, :, :, :3]
            )
            extra = {
                "num_tiles": data["num_tiles"][0],
                "aspect_ratio_ids": data["aspect_ratio_ids"][0].tolist(),
                "cross_attention_spans": mask,
                "note": "vision_output and cross_states: first three rows of every tile",
            }
            behave(False)
            rec.put(case, "logits_last_transformers", model(**inputs).logits[0, -1])
            behave(True)
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=[[i, 1] for i, t in enumerate(ids) if t == image_id],
            logits=logits,
            tokens=tokens[0].tolist(),
            rows=rows[0],
            full=case == "one_land",
            extra=extra,
        )

    for case, messages, keys in vlm_cases():
        run(case, messages, keys)
    messages, keys = messages_one("big", QUESTION)
    run("one_big", messages, keys)
    rec.finish()


# --------------------------------------------------------------------------
# SmolVLM (Idefics3)
# --------------------------------------------------------------------------


def goldens_smolvlm():
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    rec = Recorder("smolvlm")
    proc = pil_processor(Idefics3ImageProcessorPil, rec.pre)
    model = transformers.Idefics3ForConditionalGeneration.from_pretrained(
        rec.path, attn_implementation="eager"
    ).eval()
    image_id = rec.config["image_token_id"]
    seq = rec.config["image_seq_len"]
    mean, std = rec.pre["image_mean"], rec.pre["image_std"]
    longest, tile = rec.pre["size"]["longest_edge"], rec.pre["max_image_size"]["longest_edge"]

    def plain(key):
        arr = np.asarray(picture(key))
        h, w, _ = arr.shape
        aspect = w / h
        if w >= h:
            nw, nh = longest, int(longest / aspect)
            nh += nh % 2
        else:
            nh, nw = longest, int(longest * aspect)
            nw += nw % 2
        nh, nw = max(nh, 1), max(nw, 1)
        arr = resize_u8(arr, nw, nh, "lanczos")
        aspect = nw / nh
        if nw >= nh:
            w2 = math.ceil(nw / tile) * tile
            h2 = math.ceil(int(w2 / aspect) / tile) * tile
        else:
            h2 = math.ceil(nh / tile) * tile
            w2 = math.ceil(int(h2 * aspect) / tile) * tile
        arr = resize_u8(arr, w2, h2, "lanczos")
        if h2 > tile or w2 > tile:
            rows, cols = h2 // tile, w2 // tile
            out = [
                arr[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile]
                for r in range(rows)
                for c in range(cols)
            ]
            out.append(resize_u8(arr, tile, tile, "lanczos"))
        else:
            rows = cols = 0
            out = [arr]
        return np.stack([np.moveaxis(t, -1, 0) for t in out]), rows, cols

    def block(rows, cols):
        fake, glob, img = "<fake_token_around_image>", "<global-img>", "<image>" * seq
        if rows == 0 and cols == 0:
            return f"{fake}{glob}{img}{fake}"
        text = ""
        for r in range(rows):
            for c in range(cols):
                text += f"{fake}<row_{r + 1}_col_{c + 1}>{img}"
            text += "\n"
        return text + f"\n{fake}{glob}{img}{fake}"

    def run(case, messages, keys):
        rendered = rec.render(messages)
        made = [plain(k) for k in keys]
        text = rendered
        parts = text.split("<image>")
        assert len(parts) == len(keys) + 1
        text = parts[0] + "".join(block(m[1], m[2]) + p for m, p in zip(made, parts[1:]))
        ids = encode(rec.tok, text, special=False)
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        extra = {"expanded": text}
        if keys:
            data = proc([[picture(k) for k in keys]], return_tensors="pt")
            flat = torch.from_numpy(np.concatenate([m[0] for m in made]))
            got = unnormalize(data["pixel_values"][0], mean, std)
            assert torch.equal(got, flat), (case, int((got != flat).sum()))
            rec.put_u8(case, "pixel_u8", flat, keep=("one_tiny",))
            inputs.update(
                pixel_values=data["pixel_values"], pixel_attention_mask=data["pixel_attention_mask"]
            )
            feats = model.get_image_features(
                pixel_values=data["pixel_values"], pixel_attention_mask=data["pixel_attention_mask"]
            ).pooler_output
            rec.put(case, "image_features", torch.cat([f.reshape(-1, f.shape[-1]) for f in feats]))
            extra["grids_rows_cols"] = [[m[1], m[2]] for m in made]
        logits = model(**inputs).logits[0]
        tokens, rows = hf_greedy(model, inputs, rec.eos)
        spans, i = [], 0
        while i < len(ids):
            j = i
            while j < len(ids) and ids[j] == image_id:
                j += 1
            if j > i:
                spans.append([i, j - i])
            i = max(j, i + 1)
        save_case(
            rec,
            case,
            messages=messages,
            rendered=rendered,
            ids=ids,
            images=keys,
            spans=spans,
            logits=logits,
            tokens=tokens[0].tolist(),
            rows=rows[0],
            full=case == "one_square",
            extra=extra,
        )

    for case, messages, keys in vlm_cases():
        if case == "multi_turn":
            keys = ["tiny"]
        run(case, messages, keys)
    rec.finish()


# --------------------------------------------------------------------------
# preprocessing at the real size (336 px), by hash and samples
# --------------------------------------------------------------------------


def goldens_preprocess():
    out = {
        "note": "uint8 stage of the real-size pipelines on pattern(w, h); sha256 over the raw HWC bytes; samples are "
        "[y, x, r, g, b]",
        "cases": [],
    }

    def sample(arr):
        h, w, _ = arr.shape
        pts = [(0, 0), (h // 2, w // 2), (h - 1, w - 1), (h // 3, w // 4), (h * 3 // 4, w // 5)]
        return [[y, x, *[int(v) for v in arr[y, x]]] for y, x in pts]

    for w, h in [(640, 480), (333, 500), (1024, 256), (97, 61), (336, 336), (1500, 1000)]:
        arr = pattern(w, h)
        for kind, code in (("bilinear", 2), ("bicubic", 3), ("lanczos", 1)):
            for ow, oh in ((336, 336), (w // 2 + 1, h // 3 + 1), (w * 3 // 2, h)):
                got = resize_u8(arr, ow, oh, kind)
                assert np.array_equal(got, np.asarray(Image.fromarray(arr).resize((ow, oh), code)))
                out["cases"].append(
                    {
                        "what": f"resize {kind}",
                        "from": [w, h],
                        "to": [ow, oh],
                        "sha256": sha256(got),
                        "samples": sample(got),
                    }
                )
        size = 336
        long = int(size * max(h, w) / min(h, w))
        nh, nw = (size, long) if h <= w else (long, size)
        crop = resize_u8(arr, nw, nh, "bicubic")[(nh - size) // 2 :, (nw - size) // 2 :][:size, :size]
        out["cases"].append(
            {
                "what": "llava-1.5 resize 336 + centre crop",
                "from": [w, h],
                "to": [336, 336],
                "resized": [nw, nh],
                "sha256": sha256(np.ascontiguousarray(crop)),
                "samples": sample(crop),
            }
        )
        pad = resize_u8(pad_to_square_u8(arr, CLIP_MEAN), 336, 336, "bicubic")
        out["cases"].append(
            {
                "what": "llava-1.5 pad to square + resize 336",
                "from": [w, h],
                "to": [336, 336],
                "sha256": sha256(pad),
                "samples": sample(pad),
            }
        )
        for crops in (4, 16):
            canvas, plan = phi3v_ref.hd_canvas(arr, crops)
            out["cases"].append(
                {
                    "what": f"phi3-v HD canvas, num_crops {crops}",
                    "from": [w, h],
                    "to": [canvas.shape[1], canvas.shape[0]],
                    "grid": list(plan["grid"]),
                    "sha256": sha256(canvas),
                    "samples": sample(canvas),
                }
            )
    # one float stage in full detail: phi3-v global view of a 640x480 pattern
    pixels, plan, _ = phi3v_ref.preprocess(pattern(640, 480), 4, CLIP_MEAN, CLIP_STD)
    pts = [(c, y, x) for c in range(3) for y in (0, 1, 167, 335) for x in (0, 2, 168, 335)]
    out["phi3v_global_640x480"] = {
        "num_crops": 4,
        "samples": [[c, y, x, float(pixels[0, c, y, x])] for c, y, x in pts],
        "mean": float(pixels[0].double().mean()),
        "std": float(pixels[0].double().std()),
        "tolerance": 1e-4,
    }
    (GOLDENS / "preprocess").mkdir(parents=True, exist_ok=True)
    write_json(GOLDENS / "preprocess" / "manifest.json", out)
    print(f"preprocess: {len(out['cases'])} cases")


# --------------------------------------------------------------------------


def goldens_whisper():
    import whisper_goldens

    whisper_goldens.run(Recorder, write_json, sound_pattern)


MAKERS = {
    "preprocess": goldens_preprocess,
    "llava": goldens_llava,
    "llava_next": goldens_llava_next,
    "phi3_v": goldens_phi3v,
    "whisper": goldens_whisper,
    "qwen2_5_vl": goldens_qwen25vl,
    "qwen2_vl": goldens_qwen2vl,
    "internvl2": goldens_internvl2,
    "pixtral": goldens_pixtral,
    "mllama": goldens_mllama,
    "smolvlm": goldens_smolvlm,
}


def main():
    names = sys.argv[1:] or ["inputs", *MAKERS]
    if "inputs" in names or not INPUTS.exists():
        make_inputs()
    for name in names:
        if name != "inputs":
            MAKERS[name]()


if __name__ == "__main__":
    main()
