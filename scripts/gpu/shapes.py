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


def llava(config):
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
    config["vision_config"] = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }


def llava_pictures(config):
    config["size"] = {"shortest_edge": 336}
    config["crop_size"] = {"height": 336, "width": 336}


def whisper(config):
    config.update(
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
        num_mel_bins=128,
    )


def main():
    fixtures, folder = map(Path, sys.argv[1:])
    copy(fixtures / "llava", folder / "llava-7b")
    edit(folder / "llava-7b" / "config.json", llava)
    edit(folder / "llava-7b" / "preprocessor_config.json", llava_pictures)
    copy(fixtures / "whisper", folder / "whisper-large")
    edit(folder / "whisper-large" / "config.json", whisper)
    edit(
        folder / "whisper-large" / "preprocessor_config.json", lambda config: config.update(feature_size=128)
    )


if __name__ == "__main__":
    main()
