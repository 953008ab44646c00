"""Makes checkpoints of published shapes without weights, for --dummy-weights. Standard library only.

usage: python shapes.py FIXTURES FOLDER

Sizes are those of the published configurations (docs/models.md). Tokenizers are those of the fixtures:
nobody reads what such a model says.
"""

import json
import shutil
import sys
from pathlib import Path


def copy(fixture, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for file in fixture.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)


def edit(file, change):
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config, indent=1))


CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def llava_7b(config):
    config["text_config"] = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    }
    config["vision_config"] = CLIP_LARGE


def llava_next_34b(config):
    config["text_config"] = {
        "model_type": "llama",
        "hidden_size": 7168,
        "intermediate_size": 20480,
        "num_hidden_layers": 60,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e6,
        "vocab_size": 64064,
    }
    config["vision_config"] = CLIP_LARGE
    config["image_grid_pinpoints"] = PINPOINTS


def phi3_vision(config):
    config.update(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        sliding_window=262144,
        vocab_size=32064,
    )
    # As long as the published lists; which numbers are in them changes no time.
    config["rope_scaling"].update(long_factor=[4.0] * 48, short_factor=[1.1] * 48)
    config["img_processor"].update(image_dim_out=1024, num_img_tokens=144, clip_config=CLIP_LARGE)


def whisper(decoder_layers):
    def change(config):
        config.update(
            d_model=1280,
            encoder_layers=32,
            decoder_layers=decoder_layers,
            num_hidden_layers=32,
            encoder_attention_heads=20,
            decoder_attention_heads=20,
            encoder_ffn_dim=5120,
            decoder_ffn_dim=5120,
            num_mel_bins=128,
            vocab_size=51866,
        )

    return change


def setting(**values):
    return lambda config: config.update(values)


SQUARE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
# Of each: the fixture that it is made of, and what differs in its files.
SHAPES = {
    "llava-7b": ("llava", llava_7b, setting(**SQUARE)),
    "llava-next-34b": ("llava_next", llava_next_34b, setting(**SQUARE, image_grid_pinpoints=PINPOINTS)),
    "phi-3-vision": ("phi3_v", phi3_vision, setting(num_crops=16, num_img_tokens=144)),
    "whisper-large": ("whisper", whisper(32), setting(feature_size=128)),
    "whisper-turbo": ("whisper", whisper(4), setting(feature_size=128)),
}


def main():
    fixtures, folder = map(Path, sys.argv[1:])
    for name, (fixture, config, preprocessor) in SHAPES.items():
        copy(fixtures / fixture, folder / name)
        edit(folder / name / "config.json", config)
        edit(folder / name / "preprocessor_config.json", preprocessor)


if __name__ == "__main__":
    main()
