"""Write tiny random-weight checkpoints in the layout of published ones.

usage: python make_models.py [name ...]      (default: all)

Output: tests/fixtures/<name>/{config.json, generation_config.json, tokenizer.json,
tokenizer_config.json, preprocessor_config.json, ..., model.safetensors}.
Weight names are those of the published checkpoints; configuration keys are
the old-style ones that those checkpoints carry (rope_theta, torch_dtype, ...).
"""

import re
import shutil
import sys

import phi3v_ref
import torch
import transformers
from refcommon import *  # noqa: F403
from safetensors.torch import save_file
from transformers import AutoConfig

transformers.logging.set_verbosity_error()

BASE_VOCAB = 480
VOCAB = 512

# a wider output layer: clear winners in greedy decoding
HEAD = {"lm_head.weight$": 0.4}
INTERNVL_OVERRIDES = {"position_embeddings": 0.3, "cls_token": 0.5, "lambda_": 0.7, **HEAD}

CLIP_TINY = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 32,
    "vocab_size": 32000,
}

TEXT_TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "vocab_size": VOCAB,
}


def start(name):
    path = MODELS / name
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def save_weights(path, state, drop=()):
    tensors = {}
    for key, value in state.items():
        if key in drop or key.endswith((".position_ids", ".inv_freq")):
            continue
        tensors[key] = value.detach().float().contiguous().clone()
    target = path / "model.safetensors"
    save_file(dict(sorted(tensors.items())), str(target), metadata={"format": "pt"})
    target.chmod(0o644)
    return sorted(tensors)


def rename(state, rules):
    """Apply (old prefix, new prefix) rules; the first that matches wins."""
    out = {}
    for key, value in state.items():
        for old, new in rules:
            if key.startswith(old):
                key = new + key[len(old) :]
                break
        out[key] = value
    return out


def flatten_clip(state, prefix):
    """Put `vision_model.` back where the installed transformers leaves it out."""
    out = {}
    for key, value in state.items():
        if key.startswith(prefix) and not key.startswith(prefix + "vision_model."):
            key = prefix + "vision_model." + key[len(prefix) :]
        out[key] = value
    return out


def clip_preprocessor(size, kind="CLIPImageProcessor", **extra):
    out = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": kind,
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": size},
    }
    out.update(extra)
    return out


def tokenizer_config(path, cls, bos, eos, unk, pad, tok, template=None, **extra):
    decoder = {}
    for entry in json.loads((path / "tokenizer.json").read_text())["added_tokens"]:
        if re.fullmatch(r"<\|\d+\.\d\d\|>", entry["content"]):
            continue  # the 1501 time marks of Whisper stand in tokenizer.json only
        decoder[str(entry["id"])] = {
            k: entry[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        }
    cfg = {
        "added_tokens_decoder": decoder,
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unk,
        "pad_token": pad,
        "model_max_length": 4096,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": cls,
    }
    if template is not None:
        cfg["chat_template"] = template
    cfg.update(extra)
    write_json(path / "tokenizer_config.json", {k: v for k, v in cfg.items() if v is not None})


# --------------------------------------------------------------------------

# Equivalent in output to the template published with LLaVA-1.5, and it uses
# the same language features (attribute tests in filters, method call on a
# string, the `generation` block tag).
LLAVA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}{{- message['role'].upper() + ': ' -}}{%- endif -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}{{- '<image>\n' -}}{%- endfor -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}"
    "{%- generation -%}{{- part['text'] + ' ' -}}{%- endgeneration -%}{%- endfor -%}"
    "{%- else -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{- part['text'] + ' ' -}}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


def make_llava():
    path = start("llava")
    tok = llama_tokenizer(path, [("<image>", True, False), ("<pad>", True, False)], BASE_VOCAB)
    image_id, pad_id = tok.token_to_id("<image>"), tok.token_to_id("<pad>")
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": image_id,
        "model_type": "llava",
        "pad_token_id": pad_id,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float32",
            **TEXT_TINY,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.36.0.dev0",
        "vision_config": CLIP_TINY,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": VOCAB,
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": pad_id,
            "transformers_version": "4.36.0.dev0",
        },
    )
    write_json(path / "preprocessor_config.json", clip_preprocessor(56))
    write_json(
        path / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    write_json(path / "chat_template.json", {"chat_template": LLAVA_TEMPLATE})
    tokenizer_config(
        path, "LlamaTokenizer", "<s>", "</s>", "<unk>", "<pad>", tok, add_bos_token=True, add_eos_token=False
    )
    cfg = AutoConfig.from_pretrained(path)
    model = transformers.LlavaForConditionalGeneration(cfg)
    randomize(model, 1201, overrides={"position_embedding": 0.3, "class_embedding": 0.5, **HEAD})
    blank_rows(model.lm_head.weight, BASE_VOCAB)
    state = flatten_clip(model.state_dict(), "model.vision_tower.")
    state = rename(
        state,
        [
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ],
    )
    return path, save_weights(path, state)


LLAVA_NEXT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' -}}"
    "{%- elif message['role'] == 'user' -%}{{- '[INST] ' -}}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}{{- '<image>\n' -}}{%- endfor -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{- part['text'] -}}{%- endfor -%}"
    "{{- ' [/INST]' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- ' ' + message['content'][0]['text'] + '</s> ' -}}"
    "{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}"
    "{%- endfor -%}"
)
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def make_llava_next():
    path = start("llava_next")
    tok = llama_tokenizer(path, [("<image>", True, False), ("<pad>", True, False)], BASE_VOCAB)
    image_id, pad_id = tok.token_to_id("<image>"), tok.token_to_id("<pad>")
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": image_id,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "torch_dtype": "float32",
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            **TEXT_TINY,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": CLIP_TINY,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": VOCAB,
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": pad_id,
            "transformers_version": "4.39.0.dev0",
        },
    )
    write_json(
        path / "preprocessor_config.json",
        clip_preprocessor(
            56,
            "LlavaNextImageProcessor",
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=PINPOINTS,
        ),
    )
    write_json(
        path / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    write_json(path / "chat_template.json", {"chat_template": LLAVA_NEXT_TEMPLATE})
    tokenizer_config(
        path, "LlamaTokenizer", "<s>", "</s>", "<unk>", "<pad>", tok, add_bos_token=True, add_eos_token=False
    )
    cfg = AutoConfig.from_pretrained(path)
    model = transformers.LlavaNextForConditionalGeneration(cfg)
    randomize(
        model,
        1202,
        overrides={"position_embedding": 0.3, "class_embedding": 0.5, "image_newline": 0.5, **HEAD},
    )
    blank_rows(model.lm_head.weight, BASE_VOCAB)
    state = flatten_clip(model.state_dict(), "model.vision_tower.")
    state = rename(
        state,
        [
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ],
    )
    return path, save_weights(path, state)


PHI3V_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)


def make_phi3v():
    path = start("phi3_v")
    added = [
        ("<|endoftext|>", True, False),
        ("<|assistant|>", True, True),
        ("<|placeholder1|>", True, True),
        ("<|system|>", True, False),
        ("<|end|>", True, False),
        ("<|user|>", True, False),
        ("<|image|>", True, True),
    ]
    tok = llama_tokenizer(path, added, BASE_VOCAB)
    ids = {t[0]: tok.token_to_id(t[0]) for t in added}
    half = TEXT_TINY["hidden_size"] // TEXT_TINY["num_attention_heads"] // 2
    config = {
        "architectures": ["Phi3VForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "img_processor": {
            "image_dim_out": 32,
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": 4,
            # extension of the tiny checkpoint: absent means ViT-L/14 at 336
            "clip_config": {k: v for k, v in CLIP_TINY.items() if k not in ("model_type", "vocab_size")},
        },
        "intermediate_size": 96,
        "max_position_embeddings": 1024,
        "model_type": "phi3_v",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "original_max_position_embeddings": 64,
        "pad_token_id": ids["<|endoftext|>"],
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": [round(1.0 + 0.9 * i * i, 4) for i in range(half)],
            "short_factor": [round(1.05 + 0.15 * i, 4) for i in range(half)],
            "type": "su",
        },
        "rope_theta": 10000.0,
        "sliding_window": 1024,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.38.1",
        "use_cache": True,
        "vocab_size": VOCAB,
    }
    write_json(path / "config.json", config)
    # like the published files: only the stale id 2; the real stops are
    # <|endoftext|> (the tokenizer's EOS) and <|end|> (end of a turn)
    write_json(
        path / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": ids["<|endoftext|>"],
            "transformers_version": "4.38.1",
        },
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "Phi3VImageProcessor",
            "image_std": CLIP_STD,
            "num_crops": 4,
            "num_img_tokens": 4,
            "processor_class": "Phi3VProcessor",
        },
    )
    tokenizer_config(
        path,
        "LlamaTokenizer",
        "<s>",
        "<|endoftext|>",
        "<unk>",
        "<|endoftext|>",
        tok,
        PHI3V_TEMPLATE,
        add_bos_token=True,
        add_eos_token=False,
    )
    model = phi3v_ref.Phi3VReference(config)
    randomize(
        model,
        1203,
        overrides={"position_embedding": 0.3, "class_embedding": 0.5, "glb_GN": 0.5, "sub_GN": 0.5, **HEAD},
    )
    blank_rows(model.lm.lm_head.weight, BASE_VOCAB)
    return path, save_weights(path, model.published_state())


# --------------------------------------------------------------------------

WHISPER_LANGS = ["en", "zh", "de", "es", "ru", "ko", "fr", "ja"]
WHISPER_BASE = 400
WHISPER_SEED = 1704


def make_whisper():
    path = start("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>"] + [f"<|{code}|>" for code in WHISPER_LANGS]
    special += [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    added = [(t, True, False) for t in special] + [(f"<|{i * 0.02:.2f}|>", False, False) for i in range(1501)]
    tok = byte_level_tokenizer(path, added, WHISPER_BASE)
    base = tok.get_vocab_size(with_added_tokens=False)
    assert base == WHISPER_BASE, base
    ids = {t: tok.token_to_id(t) for t, _, _ in added}
    data = json.loads((path / "tokenizer.json").read_text())
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|startoftranscript|>", "type_id": 0}},
            {"SpecialToken": {"id": "<|notimestamps|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": "<|startoftranscript|>", "type_id": 0}},
            {"SpecialToken": {"id": "<|notimestamps|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 1}},
        ],
        "special_tokens": {
            t: {"id": t, "ids": [ids[t]], "tokens": [t]}
            for t in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
        },
    }
    (path / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    tok = Tokenizer.from_file(str(path / "tokenizer.json"))
    vocab_size = tok.get_vocab_size()
    eot, sot = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    suppress = whisper_non_speech(tok)
    suppress = sorted(
        suppress
        | {
            ids[t]
            for t in (
                "<|startoftranscript|>",
                "<|translate|>",
                "<|transcribe|>",
                "<|startoflm|>",
                "<|startofprev|>",
                "<|nospeech|>",
            )
        }
    )
    begin_suppress = [tok.encode(" ", add_special_tokens=False).ids[0], eot]
    config = {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "architectures": ["WhisperForConditionalGeneration"],
        "attention_dropout": 0.0,
        "begin_suppress_tokens": begin_suppress,
        "bos_token_id": eot,
        "d_model": 48,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 192,
        "decoder_layerdrop": 0.0,
        "decoder_layers": 2,
        "decoder_start_token_id": sot,
        "dropout": 0.0,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 192,
        "encoder_layerdrop": 0.0,
        "encoder_layers": 2,
        "eos_token_id": eot,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "max_length": 448,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "model_type": "whisper",
        "num_hidden_layers": 2,
        "num_mel_bins": 80,
        "pad_token_id": eot,
        "scale_embedding": False,
        "suppress_tokens": suppress,
        "torch_dtype": "float32",
        "transformers_version": "4.27.0.dev0",
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {
            "alignment_heads": [[0, 1], [1, 0], [1, 3]],
            "begin_suppress_tokens": begin_suppress,
            "bos_token_id": eot,
            "decoder_start_token_id": sot,
            "eos_token_id": eot,
            "forced_decoder_ids": [[1, None], [2, ids["<|transcribe|>"]]],
            "is_multilingual": True,
            "lang_to_id": {f"<|{c}|>": ids[f"<|{c}|>"] for c in WHISPER_LANGS},
            "max_initial_timestamp_index": 50,
            "max_length": 448,
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "pad_token_id": eot,
            "prev_sot_token_id": ids["<|startofprev|>"],
            "return_timestamps": False,
            "suppress_tokens": suppress,
            "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
            "transformers_version": "4.31.0.dev0",
        },
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "chunk_length": 30,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": 80,
            "hop_length": 160,
            "n_fft": 400,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "processor_class": "WhisperProcessor",
            "return_attention_mask": False,
            "sampling_rate": 16000,
        },
    )
    tokenizer_config(
        path,
        "WhisperTokenizer",
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        tok,
        add_prefix_space=False,
    )
    cfg = AutoConfig.from_pretrained(path)
    model = transformers.WhisperForConditionalGeneration(cfg)
    sinus = model.model.encoder.embed_positions.weight.detach().clone()
    randomize(
        model,
        WHISPER_SEED,
        std=0.3,
        overrides={
            "decoder.embed_positions": 0.6,
            "decoder.embed_tokens": 0.22,
            "encoder.conv": 0.1,
            "encoder_attn.q_proj.weight": 0.1,
        },
    )
    model.model.encoder.embed_positions.weight.data.copy_(sinus)
    # words before time marks, and clear winners
    model.model.decoder.embed_tokens.weight.data[ids["<|0.00|>"] :] *= 0.7
    model.model.decoder.layer_norm.weight.data *= 3.0
    model.tie_weights()
    return path, save_weights(path, model.state_dict(), drop=("proj_out.weight",))


def whisper_non_speech(tok):
    """Ids of the symbols that the decoder never writes (by the rule of the original)."""
    symbols = list('"#()*+/:;<=>@[\\]^_`{|}~「」『』')
    symbols += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()
    notes = set("♩♪♫♬♭♮♯")

    def enc(text):
        return tok.encode(text, add_special_tokens=False).ids

    result = {enc(" -")[0], enc(" '")[0]}
    for symbol in symbols + sorted(notes):
        for ids in (enc(symbol), enc(" " + symbol)):
            if len(ids) == 1 or symbol in notes:
                result.add(ids[0])
    return result


# --------------------------------------------------------------------------

CHATML_IMAGE_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- IMAGE -}}{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def make_qwen25vl():
    vision = {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    return qwen_vl("qwen2_5_vl", "Qwen2_5_VL", vision, 1115)


def make_qwen2vl():
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    return qwen_vl("qwen2_vl", "Qwen2VL", vision, 1218)


def qwen_vl(name, kind, vision, seed):
    path = start(name)
    added = [
        (t, True, False)
        for t in (
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        )
    ]
    tok = byte_level_tokenizer(path, added, BASE_VOCAB, split=GPT2_SPLIT)
    ids = {t[0]: tok.token_to_id(t[0]) for t in added}
    config = {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "max_window_layers": 2,
        "model_type": name,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": VOCAB,
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": True,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "repetition_penalty": 1.05,
            "temperature": 0.000001,
            "transformers_version": "4.49.0",
        },
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 28224,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": f"{kind}Processor",
        },
    )
    template = CHATML_IMAGE_TEMPLATE.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'")
    template = template.replace(
        "{%- elif part['type'] == 'text' -%}",
        "{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
        "{%- elif part['type'] == 'text' -%}",
    )
    write_json(path / "chat_template.json", {"chat_template": template})
    tokenizer_config(
        path,
        "Qwen2Tokenizer",
        None,
        "<|im_end|>",
        None,
        "<|endoftext|>",
        tok,
        template,
        add_prefix_space=False,
        add_bos_token=False,
    )
    cfg = AutoConfig.from_pretrained(path)
    model = getattr(transformers, config["architectures"][0])(cfg)
    randomize(model, seed, overrides=HEAD)
    blank_rows(model.lm_head.weight, BASE_VOCAB)
    state = rename(model.state_dict(), [("model.language_model.", "model."), ("model.visual.", "visual.")])
    return path, save_weights(path, state)


def make_internvl2():
    """InternVL2 (InternLM2 text) under the names of the original repository."""
    path = start("internvl2")
    added = [
        ("<|im_start|>", True, False),
        ("<|im_end|>", True, False),
        ("<img>", True, False),
        ("</img>", True, False),
        ("<IMG_CONTEXT>", True, False),
    ]
    tok = llama_tokenizer(path, added, BASE_VOCAB)
    ids = {t[0]: tok.token_to_id(t[0]) for t in added}
    llm = {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": VOCAB,
    }
    vit = {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 32,
        "image_size": 56,
        "initializer_factor": 1.0,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "use_flash_attn": True,
    }
    config = {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 56,
        "llm_config": llm,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "torch_dtype": "float32",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vit,
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {"eos_token_id": [ids["<|im_end|>"], 2], "transformers_version": "4.37.2"},
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "crop_size": 56,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
            "resample": 3,
            "size": 56,
        },
    )
    template = (
        "{{- bos_token -}}{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )
    tokenizer_config(path, "InternLM2Tokenizer", "<s>", "</s>", "<unk>", "</s>", tok, template)
    vcfg = transformers.InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        attention_bias=True,
        use_qk_norm=False,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        image_size=[56, 56],
        patch_size=[14, 14],
        hidden_act="gelu",
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
        rope_theta=1000000.0,
    )
    cfg = transformers.InternVLConfig(
        vision_config=vcfg,
        text_config=tcfg,
        image_token_id=ids["<IMG_CONTEXT>"],
        downsample_ratio=0.5,
        image_seq_length=4,
    )
    model = transformers.InternVLForConditionalGeneration(cfg)
    randomize(model, 1306, overrides=INTERNVL_OVERRIDES)
    blank_rows(model.lm_head.weight, BASE_VOCAB)
    return path, save_weights(path, internvl2_published(model.state_dict(), 4, 2, 16))


def internvl2_published(state, heads, kv_heads, head_dim):
    """transformers InternVL + Llama names -> OpenGVLab InternVL2 + InternLM2 names."""
    out = {}
    for key, value in state.items():
        if key.startswith("model.vision_tower."):
            k = key[len("model.vision_tower.") :]
            k = k.replace("embeddings.cls_token", "embeddings.class_embedding")
            k = k.replace("embeddings.patch_embeddings.projection", "embeddings.patch_embedding")
            k = k.replace("embeddings.position_embeddings", "embeddings.position_embedding")
            k = k.replace("encoder.layer.", "encoder.layers.").replace(
                "attention.projection_layer", "attn.proj"
            )
            k = k.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
            k = k.replace("lambda_1", "ls1").replace("lambda_2", "ls2")
            if ".attention.q_proj." in k:
                kk, vv = key.replace("q_proj", "k_proj"), key.replace("q_proj", "v_proj")
                out["vision_model." + k.replace("attention.q_proj", "attn.qkv")] = torch.cat(
                    [value, state[kk], state[vv]], dim=0
                )
                continue
            if ".attention.k_proj." in k or ".attention.v_proj." in k:
                continue
            out["vision_model." + k] = value
        elif key.startswith("model.multi_modal_projector."):
            k = key[len("model.multi_modal_projector.") :]
            k = k.replace("layer_norm", "0").replace("linear_1", "1").replace("linear_2", "3")
            out["mlp1." + k] = value
        elif key == "lm_head.weight":
            out["language_model.output.weight"] = value
        else:
            k = key[len("model.language_model.") :]
            k = k.replace("embed_tokens", "tok_embeddings").replace("input_layernorm", "attention_norm")
            k = k.replace("post_attention_layernorm", "ffn_norm").replace("mlp.gate_proj", "feed_forward.w1")
            k = k.replace("mlp.up_proj", "feed_forward.w3").replace("mlp.down_proj", "feed_forward.w2")
            k = k.replace("self_attn.o_proj", "attention.wo")
            if ".self_attn.q_proj." in k:
                # rows grouped per kv head: [q of the group ..., k, v]
                group = heads // kv_heads
                hidden = value.shape[1]
                q = value.reshape(kv_heads, group, head_dim, hidden)
                kk = state[key.replace("q_proj", "k_proj")].reshape(kv_heads, 1, head_dim, hidden)
                vv = state[key.replace("q_proj", "v_proj")].reshape(kv_heads, 1, head_dim, hidden)
                out["language_model.model." + k.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(
                    [q, kk, vv], dim=1
                ).reshape(-1, hidden)
                continue
            if ".self_attn.k_proj." in k or ".self_attn.v_proj." in k:
                continue
            out["language_model.model." + k] = value
    return out


def make_pixtral():
    path = start("pixtral")
    added = [
        ("<unk>", True, False),
        ("<s>", True, False),
        ("</s>", True, False),
        ("[INST]", True, False),
        ("[/INST]", True, False),
        ("[IMG]", True, False),
        ("<pad>", True, False),
        ("[IMG_BREAK]", True, False),
        ("[IMG_END]", True, False),
    ]
    tok = byte_level_tokenizer(path, added, BASE_VOCAB, split=GPT2_SPLIT, bos="<s>")
    ids = {t[0]: tok.token_to_id(t[0]) for t in added}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 1,
        "image_token_index": ids["[IMG]"],
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": {
            "head_dim": 32,
            "hidden_size": 64,
            "intermediate_size": 96,
            "is_composition": True,
            "max_position_embeddings": 4096,
            "model_type": "mistral",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000000.0,
            "sliding_window": None,
            "vocab_size": VOCAB,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.46.0.dev0",
        "vision_config": {
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 32,
            "image_size": 112,
            "intermediate_size": 64,
            "model_type": "pixtral",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 16,
            "rope_theta": 10000.0,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "transformers_version": "4.46.0.dev0"},
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "PixtralImageProcessor",
            "image_std": CLIP_STD,
            "patch_size": {"height": 16, "width": 16},
            "processor_class": "PixtralProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": 112},
        },
    )
    write_json(
        path / "processor_config.json",
        {
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_token": "[IMG]",
            "patch_size": 16,
            "processor_class": "PixtralProcessor",
        },
    )
    template = (
        "{{- bos_token -}}{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{- '[INST]' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
        "{%- elif part['type'] == 'image' -%}{{- '[IMG]' -}}{%- endif -%}{%- endfor -%}{%- endif -%}{{- '[/INST]' -}}"
        "{%- elif message['content'] is string -%}{{- message['content'] + eos_token -}}"
        "{%- else -%}{{- message['content'][0]['text'] + eos_token -}}{%- endif -%}{%- endfor -%}"
    )
    write_json(path / "chat_template.json", {"chat_template": template})
    tokenizer_config(path, "PreTrainedTokenizerFast", "<s>", "</s>", "<unk>", "<pad>", tok)
    cfg = AutoConfig.from_pretrained(path)
    model = transformers.LlavaForConditionalGeneration(cfg)
    randomize(model, 1407, overrides=HEAD)
    blank_rows(model.lm_head.weight, BASE_VOCAB)
    state = rename(
        model.state_dict(),
        [
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ],
    )
    return path, save_weights(path, state)


def make_mllama():
    path = start("mllama")
    added = [
        (t, True, False)
        for t in (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
        )
    ]
    base = BASE_VOCAB - len(added)
    tok = byte_level_tokenizer(path, added, base, split=GPT2_SPLIT, bos="<|begin_of_text|>")
    while tok.get_vocab_size() < BASE_VOCAB:
        tok.add_special_tokens(
            [AddedToken(f"<|reserved_special_token_{tok.get_vocab_size()}|>", normalized=False)]
        )
    # the picture token is the first id past the text vocabulary
    tok.add_special_tokens([AddedToken("<|image|>", normalized=False, special=True)])
    tok.save(str(path / "tokenizer.json"), pretty=False)
    tok = Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = {t[0]: tok.token_to_id(t[0]) for t in added}
    image_id = tok.token_to_id("<|image|>")
    assert image_id == BASE_VOCAB
    vocab = BASE_VOCAB
    config = {
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": image_id,
        "model_type": "mllama",
        "text_config": {
            "bos_token_id": ids["<|begin_of_text|>"],
            "cross_attention_layers": [1, 3],
            "dropout": 0,
            "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
            "hidden_act": "silu",
            "hidden_size": 64,
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "model_type": "mllama_text_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "pad_token_id": ids["<|finetune_right_pad_id|>"],
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 512,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": vocab,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.45.0.dev0",
        "vision_config": {
            "attention_heads": 2,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": 56,
            "intermediate_layers_indices": [1, 2],
            "intermediate_size": 64,
            "max_num_tiles": 4,
            "model_type": "mllama_vision_model",
            "norm_eps": 1e-05,
            "num_channels": 3,
            "num_global_layers": 2,
            "num_hidden_layers": 3,
            "patch_size": 14,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            "torch_dtype": "float32",
            "vision_output_dim": 96,
        },
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {
            "bos_token_id": ids["<|begin_of_text|>"],
            "do_sample": True,
            "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
            "pad_token_id": ids["<|finetune_right_pad_id|>"],
            "temperature": 0.6,
            "top_p": 0.9,
            "transformers_version": "4.45.0.dev0",
        },
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "MllamaImageProcessor",
            "image_std": CLIP_STD,
            "max_image_tiles": 4,
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 56, "width": 56},
        },
    )
    template = (
        "{{- bos_token -}}{%- for message in messages -%}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}"
        "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{{- '<|eot_id|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
    )
    write_json(path / "chat_template.json", {"chat_template": template})
    tokenizer_config(
        path,
        "PreTrainedTokenizerFast",
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
        "<|finetune_right_pad_id|>",
        tok,
        template,
    )
    cfg = AutoConfig.from_pretrained(path)
    model = transformers.MllamaForConditionalGeneration(cfg)
    randomize(
        model,
        1008,
        overrides={
            "class_embedding": 0.5,
            "gated_positional_embedding": 0.4,
            "tile_positional_embedding": 0.4,
            ".gate$": 0.9,
            "cross_attn_attn_gate": 0.9,
            "cross_attn_mlp_gate": 0.9,
            "gate_attn": 0.9,
            "gate_ffn": 0.9,
            **HEAD,
        },
    )
    state = rename(
        model.state_dict(),
        [
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ],
    )
    return path, save_weights(path, state)


def make_smolvlm():
    """SmolVLM (first generation): the Idefics3 architecture."""
    path = start("smolvlm")
    added = [
        (t, True, False)
        for t in (
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
        )
    ]
    added += [(f"<row_{r}_col_{c}>", True, False) for r in range(1, 4) for c in range(1, 4)]
    tok = byte_level_tokenizer(path, added, BASE_VOCAB)
    ids = {t[0]: tok.token_to_id(t[0]) for t in added}
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_seq_len": 4,
        "image_token_id": ids["<image>"],
        "model_type": "idefics3",
        "scale_factor": 2,
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<|im_end|>"],
            "model_type": "llama",
            "num_key_value_heads": 4,
            "pad_token_id": ids["<|im_end|>"],
            "rope_theta": 273768.0,
            "torch_dtype": "float32",
            "tie_word_embeddings": False,
            **TEXT_TINY,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.46.0",
        "vision_config": {
            "hidden_size": 32,
            "image_size": 56,
            "intermediate_size": 64,
            "model_type": "idefics3",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 14,
            "tie_word_embeddings": False,
        },
        "vocab_size": VOCAB,
    }
    write_json(path / "config.json", config)
    write_json(
        path / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids["<|im_end|>"],
            "transformers_version": "4.46.0",
        },
    )
    write_json(
        path / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Idefics3ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": 56},
            "resample": 1,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": 168},
        },
    )
    write_json(path / "processor_config.json", {"image_seq_len": 4, "processor_class": "Idefics3Processor"})
    template = (
        "<|im_start|>{%- for message in messages -%}{{- message['role'].capitalize() -}}"
        "{%- if message['content'][0]['type'] == 'image' -%}{{- ':' -}}{%- else -%}{{- ': ' -}}{%- endif -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
        "{%- elif part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}{%- endfor -%}"
        "{{- '<end_of_utterance>\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
    )
    write_json(path / "chat_template.json", {"chat_template": template})
    tokenizer_config(
        path,
        "GPT2Tokenizer",
        "<|im_start|>",
        "<end_of_utterance>",
        None,
        "<|im_end|>",
        tok,
        template,
        add_prefix_space=False,
    )
    cfg = AutoConfig.from_pretrained(path)
    model = transformers.Idefics3ForConditionalGeneration(cfg)
    randomize(model, 1009, overrides={"position_embedding": 0.3, **HEAD})
    blank_rows(model.lm_head.weight, BASE_VOCAB)
    return path, save_weights(path, model.state_dict())


MAKERS = {
    "llava": make_llava,
    "llava_next": make_llava_next,
    "phi3_v": make_phi3v,
    "whisper": make_whisper,
    "qwen2_5_vl": make_qwen25vl,
    "qwen2_vl": make_qwen2vl,
    "internvl2": make_internvl2,
    "pixtral": make_pixtral,
    "mllama": make_mllama,
    "smolvlm": make_smolvlm,
}


def main():
    names = sys.argv[1:] or list(MAKERS)
    for name in names:
        path, keys = MAKERS[name]()
        size = sum(f.stat().st_size for f in path.iterdir())
        print(f"{name}: {len(keys)} tensors, {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
