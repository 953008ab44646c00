"""Independent reference of the Phi-3-Vision family (model_type `phi3_v`).

transformers has no class for it, so this module composes one: CLIPVisionModel
and Phi3ForCausalLM from transformers, plus the HD image transform, the patch
merge, the separators and the projection written here from the description in
the numerics document. Weight names are those of the published checkpoints.
"""

import math
import re

import numpy as np
import torch
from refcommon import resize_u8
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

CLIP_L_14_336 = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_channels=3,
    image_size=336,
    patch_size=14,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    projection_dim=768,
)


def hd_scale(width, height, num_crops):
    """Number of columns of the landscape-oriented crop grid."""
    ratio = width / height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    return scale - 1


def hd_plan(width, height, num_crops, base=336):
    """Everything the HD transform decides from the picture's size alone."""
    transposed = width < height
    w, h = (height, width) if transposed else (width, height)
    cols = hd_scale(w, h, num_crops)
    new_w = cols * base
    new_h = int(new_w / (w / h))
    target_h = int(math.ceil(new_h / base) * base)
    top = int((target_h - new_h) / 2)
    grid = (target_h // base, cols)
    return {
        "transposed": transposed,
        "resize_to": (new_w, new_h),
        "pad_top": top,
        "pad_bottom": target_h - new_h - top,
        "grid": (grid[1], grid[0]) if transposed else grid,
    }


def num_image_tokens(grid, side=12):
    """side = patches per crop edge after the 2x2 merge (12 for 336/14)."""
    h, w = grid
    return (h * w + 1) * side * side + 1 + (h + 1) * side


def hd_canvas(rgb_u8, num_crops, base=336):
    """Resized and white-padded picture, HWC uint8, sides multiples of `base`."""
    height, width, _ = rgb_u8.shape
    plan = hd_plan(width, height, num_crops, base)
    arr = np.swapaxes(rgb_u8, 0, 1) if plan["transposed"] else rgb_u8
    new_w, new_h = plan["resize_to"]
    arr = resize_u8(np.ascontiguousarray(arr), new_w, new_h, "bilinear")
    arr = np.pad(arr, ((plan["pad_top"], plan["pad_bottom"]), (0, 0), (0, 0)), constant_values=255)
    if plan["transposed"]:
        arr = np.swapaxes(arr, 0, 1)
    return np.ascontiguousarray(arr), plan


def preprocess(rgb_u8, num_crops, mean, std, base=336):
    """-> pixel_values [1 + h*w, 3, base, base] (unpadded), plan, canvas."""
    canvas, plan = hd_canvas(rgb_u8, num_crops, base)
    # the published processor divides by 255 in single precision (ToTensor)
    chw = torch.from_numpy(np.moveaxis(canvas, -1, 0).copy()).float().div(255.0)
    m = torch.tensor(mean).view(3, 1, 1)
    s = torch.tensor(std).view(3, 1, 1)
    full = chw.sub(m).div(s)
    glob = nn.functional.interpolate(full[None], size=(base, base), mode="bicubic")
    h, w = plan["grid"]
    crops = full.reshape(3, h, base, w, base).permute(1, 3, 0, 2, 4).reshape(h * w, 3, base, base)
    return torch.cat([glob, crops]), plan, canvas


class Phi3VReference(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        clip = dict(CLIP_L_14_336)
        clip.update(config["img_processor"].get("clip_config", {}))
        self.clip_cfg = CLIPVisionConfig(**clip)
        self.clip_cfg._attn_implementation = "eager"
        self.layer_idx = config["img_processor"].get("layer_idx", -2)
        dim = config["img_processor"]["image_dim_out"]
        assert dim == self.clip_cfg.hidden_size
        text = {
            k: v
            for k, v in config.items()
            if k
            not in (
                "architectures",
                "auto_map",
                "embd_layer",
                "img_processor",
                "model_type",
                "torch_dtype",
                "transformers_version",
                "rope_scaling",
                "rope_theta",
            )
        }
        scaling = config["rope_scaling"]
        text["rope_parameters"] = {
            "rope_type": "longrope",
            "rope_theta": config["rope_theta"],
            "short_factor": scaling["short_factor"],
            "long_factor": scaling["long_factor"],
            "original_max_position_embeddings": config["original_max_position_embeddings"],
        }
        self.text_cfg = Phi3Config(**text, attn_implementation="eager")
        self.img_processor = CLIPVisionModel(self.clip_cfg)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, dim * 4))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, dim * 4))
        hidden = config["hidden_size"]
        self.img_projection = nn.Sequential(nn.Linear(dim * 4, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.lm = Phi3ForCausalLM(self.text_cfg)
        self.eval()

    # -- names ------------------------------------------------------------
    def published_state(self):
        """State dict under the names of the published checkpoints."""
        out = {}
        for name, value in self.state_dict().items():
            if name.startswith("lm."):
                out[name[3:]] = value
            elif name.startswith("img_processor."):
                rest = name[len("img_processor.") :]
                rest = rest if rest.startswith("vision_model.") else "vision_model." + rest
                out["model.vision_embed_tokens.img_processor." + rest] = value
            else:
                out["model.vision_embed_tokens." + name] = value
        return {k: v for k, v in out.items() if not k.endswith(("position_ids", "inv_freq"))}

    def load_published(self, tensors):
        table = {}
        own = self.state_dict()
        for name in own:
            if name.startswith("lm."):
                table[name] = name[3:]
            elif name.startswith("img_processor."):
                rest = name[len("img_processor.") :]
                rest = rest if rest.startswith("vision_model.") else "vision_model." + rest
                table[name] = "model.vision_embed_tokens.img_processor." + rest
            else:
                table[name] = "model.vision_embed_tokens." + name
        missing = [
            v for k, v in table.items() if v not in tensors and not v.endswith(("position_ids", "inv_freq"))
        ]
        assert not missing, missing
        unexpected = set(tensors) - set(table.values())
        assert not unexpected, unexpected
        self.load_state_dict({k: tensors[v] for k, v in table.items() if v in tensors}, strict=False)
        return self

    # -- vision -----------------------------------------------------------
    def clip_features(self, crops):
        """Patch rows (class token dropped) of hidden state `layer_idx`, [n, L, C]."""
        out = self.img_processor(crops, output_hidden_states=True)
        return out.hidden_states[self.layer_idx][:, 1:]

    def merge(self, feats, h, w):
        """[h*w, L, C] -> [h*s, w*s, 4C] with s = sqrt(L)/2; block order (dy, dx, C)."""
        n, length, c = feats.shape
        side = int(math.isqrt(length))
        s = side // 2
        x = feats.reshape(h, w, s, 2, s, 2, c)
        x = x.permute(0, 2, 1, 4, 3, 5, 6)
        return x.reshape(h * s, w * s, 4 * c)

    def with_newlines(self, grid):
        rows, _, c = grid.shape
        line = self.sub_GN.reshape(1, 1, c).expand(rows, 1, c)
        return torch.cat([grid, line], dim=1).reshape(-1, c)

    def pack(self, crops, grid):
        """[1+h*w, 3, b, b] -> merged features before projection [tokens, 4C]."""
        feats = self.clip_features(crops)
        h, w = grid
        glob = self.with_newlines(self.merge(feats[:1], 1, 1))
        sub = self.with_newlines(self.merge(feats[1 : 1 + h * w], h, w))
        return torch.cat([sub, self.glb_GN.reshape(1, -1), glob], dim=0)

    def image_features(self, crops, grid):
        return self.img_projection(self.pack(crops, grid))

    # -- text -------------------------------------------------------------
    def embed(self, input_ids, feature_list):
        """`input_ids` with -k at the places of picture k (1-based)."""
        ids = torch.tensor(input_ids)
        emb = self.lm.model.embed_tokens(ids.clamp(min=0))
        for k, feats in enumerate(feature_list, start=1):
            places = (ids == -k).nonzero().flatten()
            assert len(places) == len(feats), (k, len(places), len(feats))
            emb[places] = feats
        return emb[None]

    def _set_factor(self, mode, length):
        """mode: 'auto' by total length, or force 'short' / 'long'."""
        rope = self.lm.model.rotary_emb
        orig = self.config["original_max_position_embeddings"]
        use_long = length > orig if mode == "auto" else mode == "long"
        factors = self.config["rope_scaling"]["long_factor" if use_long else "short_factor"]
        dim = self.config["hidden_size"] // self.config["num_attention_heads"]
        ext = torch.tensor(factors, dtype=torch.float32)
        exponent = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        inv = 1.0 / (ext * self.config["rope_theta"] ** exponent)
        ratio = self.config["max_position_embeddings"] / orig
        scale = math.sqrt(1 + math.log(ratio) / math.log(orig)) if ratio > 1 else 1.0
        return inv, scale, rope

    def logits(self, embeds, mode="auto"):
        """Full forward, no cache, rotary tables computed here."""
        length = embeds.shape[1]
        inv, scale, rope = self._set_factor(mode, length)
        original = rope.forward

        def forced(x, position_ids):
            freqs = position_ids[..., None].float() * inv
            emb = torch.cat([freqs, freqs], dim=-1)
            return emb.cos() * scale, emb.sin() * scale

        rope.forward = forced
        try:
            out = self.lm(inputs_embeds=embeds, use_cache=False).logits[0]
        finally:
            rope.forward = original
        return out

    def logits_transformers(self, embeds):
        """The same through transformers' own longrope (cross-check, mode auto)."""
        return self.lm(inputs_embeds=embeds, use_cache=False).logits[0]

    def greedy(self, input_ids, feature_list, max_new, eos_ids, mode="auto"):
        ids = list(input_ids)
        out, rows, margin = [], [], float("inf")
        for _ in range(max_new):
            row = self.logits(self.embed(ids, feature_list), mode)[-1]
            rows.append(row)
            top = torch.topk(row, 2)
            margin = min(margin, float(top.values[0] - top.values[1]))
            token = int(top.indices[0])
            out.append(token)
            ids.append(token)
            if token in eos_ids:
                break
        return out, torch.stack(rows), margin


IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")


def prompt_ids(tok, text, counts):
    """Prompt text with <|image_k|> tags -> ids with -k runs.

    Without pictures the text is encoded once. With pictures it is split at
    the tags and every chunk is encoded on its own with special tokens, so a
    BOS follows every picture.
    """
    if not counts:
        return tok.encode(text).ids
    chunks = IMAGE_TAG.split(text)
    ids = []
    for i, chunk in enumerate(chunks):
        if i % 2 == 0:
            ids.extend(tok.encode(chunk).ids)
        else:
            k = int(chunk)
            ids.extend([-k] * counts[k - 1])
    return ids
