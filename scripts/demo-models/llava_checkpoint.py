"""The picture model's tokenizer, network and files, as an ordinary LLaVA-1.5 checkpoint has them."""

import json
import math
import random

import numpy as np
import torch
from attention import PLAIN
from checkpoint import write_weights
from pictures import PATCH, PATCHES, SIDE, Masks, Scene
from questions import Asker
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
CONTEXT = 1024
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'assistant' %}{{ 'USER: ' }}{% else %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for c in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] != 'assistant' %}{{ ' ' }}{% else %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(seed=0):
    rng, masks, lines = random.Random(seed), Masks(size=2), []
    asker = Asker(rng)
    while len(lines) < 24000:
        scene = Scene(rng, masks)
        lines += [f"USER: {q.text} ASSISTANT: {q.answer}" for q in asker.questions(scene, 6)]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=["<unk>", BOS, EOS, PAD, IMAGE],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tok.token_to_id(BOS))]
    )
    return tok


def build_model(tok):
    ids = special_ids(tok)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tok.token_to_id(IMAGE),
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=PLAIN, dtype=torch.float32)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(
                p, std=0.02 if "embed" in name and p.ndim == 2 else 0.8 / p[0].numel() ** 0.5
            )
    return model


def prepare_tower(model, pictures):
    """Lets the tower begin with eyes: its patches as whitened principal components, its positions as waves.

    A random projection of pixels and positions as small as usual cost it thousands of pictures. The
    projection stays as it is set here.
    """
    embeddings = model.model.vision_tower.embeddings
    width, grid = embeddings.embed_dim, SIDE // PATCH
    pixels = normalise(pictures)
    patches = (
        pixels.unfold(2, PATCH, PATCH)
        .unfold(3, PATCH, PATCH)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(0, 2)
    )
    power, axes = torch.linalg.eigh(torch.cov(patches.T))
    power, axes = power.flip(0)[:width], axes.flip(1)[:, :width]
    weight = (axes / (power + 0.1).sqrt()).T.reshape(width, 3, PATCH, PATCH)
    rates = math.pi / grid * 2.0 ** torch.linspace(-1, math.log2(grid) - 0.5, width // 4)
    angles = torch.arange(grid)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    waves = torch.cat([line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)], 2).flatten(0, 1)
    with torch.no_grad():
        embeddings.patch_embedding.weight.copy_(weight)
        embeddings.position_embedding.weight[1:].copy_(waves)


def special_ids(tok):
    return {
        "bos_token_id": tok.token_to_id(BOS),
        "eos_token_id": tok.token_to_id(EOS),
        "pad_token_id": tok.token_to_id(PAD),
    }


def normalise(pictures):
    """What CLIPImageProcessor does to pictures of the right size: uint8 [n, side, side, 3] to [n, 3, side,
    side]."""
    return (
        ((pictures.float() / 255 - torch.from_numpy(MEAN)) / torch.from_numpy(STD))
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def checkpoint_name(name):
    """The names of LLaVA-1.5's own checkpoint."""
    name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


TEXT_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "max_position_embeddings rms_norm_eps"
).split()
VISION_KEYS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size "
    "projection_dim hidden_act layer_norm_eps"
).split()


def save(model, tok, out):
    def name_of(name):
        kept = name != "lm_head.weight" and "position_ids" not in name
        return checkpoint_name(name) if kept else None

    out = write_weights(model, tok, out, name_of)
    c, ids = model.config, special_ids(tok)
    side = {"height": SIDE, "width": SIDE}
    files = {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "ignore_index": -100,
            "image_token_index": c.image_token_id,
            "pad_token_id": ids["pad_token_id"],
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "image_seq_length": PATCHES,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": c.text_config.vocab_size,
            "text_config": {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "torch_dtype": "bfloat16",
                "tie_word_embeddings": True,
                "hidden_act": "silu",
                "rope_theta": 10000.0,
                **{k: getattr(c.text_config, k) for k in TEXT_KEYS},
                **ids,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                **{k: getattr(c.vision_config, k) for k in VISION_KEYS},
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": SIDE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [round(float(x), 8) for x in MEAN],
            "image_std": [round(float(x), 8) for x in STD],
        },
        "generation_config.json": {**ids, "do_sample": False, "temperature": 0.0, "max_new_tokens": 64},
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        "chat_template.json": {"chat_template": TEMPLATE},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": "<unk>",
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "extra_special_tokens": {"image_token": IMAGE},
            "chat_template": TEMPLATE,
        },
    }
    for name, data in files.items():
        (out / name).write_text(json.dumps(data, indent=1) + "\n")
