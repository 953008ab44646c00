"""The speech model's tokenizer, network and files, as an ordinary Whisper checkpoint has them."""

import json
import random

import torch
from attention import PLAIN
from checkpoint import write_weights
from sentences import sentence, vocabulary
from sound import FFT, HOP, MELS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import WhisperConfig, WhisperForConditionalGeneration
from voices import RATE

WINDOW = 10  # seconds
POSITIONS = WINDOW * 50
TARGETS = 224
ALIGNMENT_HEADS = 2  # of the last decoder layer; training teaches them to follow time

END, START, PREVIOUS, SILENCE, UNTIMED = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
ENGLISH, TRANSCRIBE, TRANSLATE = "<|en|>", "<|transcribe|>", "<|translate|>"
SPECIAL = [END, START, ENGLISH, TRANSLATE, TRANSCRIBE, "<|startoflm|>", PREVIOUS, SILENCE, UNTIMED]
TIMES = [f"<|{i * 0.02:.2f}|>" for i in range(POSITIONS + 1)]


def build_tokenizer(seed=0):
    rng = random.Random(seed)
    lines = [sentence(rng) for _ in range(20000)]
    words = vocabulary(rng)
    lines += [" " + w.capitalize() for w in words] * 20 + [" " + w for w in words] * 20
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    )
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in TIMES])
    lead = [START, ENGLISH, TRANSCRIBE, UNTIMED]
    tok.post_processor = processors.TemplateProcessing(
        single=" ".join(lead) + f" $A {END}", special_tokens=[(t, tok.token_to_id(t)) for t in [*lead, END]]
    )
    return tok


def space(tok):
    return tok.encode(" ", add_special_tokens=False).ids[0]


def build_model(tok):
    end = tok.token_to_id(END)
    config = WhisperConfig(
        vocab_size=tok.get_vocab_size(),
        num_mel_bins=MELS,
        d_model=160,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=5,
        decoder_attention_heads=5,
        encoder_ffn_dim=640,
        decoder_ffn_dim=640,
        max_source_positions=POSITIONS,
        max_target_positions=TARGETS,
        dropout=0.0,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tok.token_to_id(START),
        suppress_tokens=[],
        begin_suppress_tokens=[space(tok)],
    )
    model = WhisperForConditionalGeneration._from_config(
        config, attn_implementation=PLAIN, dtype=torch.float32
    )
    for name, p in model.named_parameters():
        if p.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(p, std=0.8 / p[0].numel() ** 0.5)
    return model


CONFIG_KEYS = (
    "vocab_size num_mel_bins d_model encoder_layers decoder_layers encoder_attention_heads "
    "decoder_attention_heads encoder_ffn_dim decoder_ffn_dim activation_function max_source_positions "
    "max_target_positions dropout attention_dropout activation_dropout pad_token_id bos_token_id "
    "eos_token_id decoder_start_token_id"
).split()


def save(model, tok, out):
    out = write_weights(model, tok, out, lambda name: name if name != "proj_out.weight" else None)
    c, at = model.config, {t: tok.token_to_id(t) for t in SPECIAL}
    ends = {
        "bos_token_id": at[END],
        "eos_token_id": at[END],
        "pad_token_id": at[END],
        "decoder_start_token_id": at[START],
    }
    suppressed = {"suppress_tokens": [], "begin_suppress_tokens": [space(tok)]}
    files = {
        "config.json": {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "torch_dtype": "bfloat16",
            "is_encoder_decoder": True,
            "num_hidden_layers": c.encoder_layers,
            "scale_embedding": False,
            "use_cache": True,
            "init_std": 0.02,
            "max_length": TARGETS,
            "encoder_layerdrop": 0.0,
            "decoder_layerdrop": 0.0,
            **{k: getattr(c, k) for k in CONFIG_KEYS},
            **suppressed,
        },
        "generation_config.json": {
            "alignment_heads": [[c.decoder_layers - 1, head] for head in range(ALIGNMENT_HEADS)],
            **ends,
            **suppressed,
            "is_multilingual": True,
            "lang_to_id": {ENGLISH: at[ENGLISH]},
            "task_to_id": {"transcribe": at[TRANSCRIBE], "translate": at[TRANSLATE]},
            "max_initial_timestamp_index": 50,
            "max_length": TARGETS,
            "no_timestamps_token_id": at[UNTIMED],
            "prev_sot_token_id": at[PREVIOUS],
            # With the text of earlier windows in front it leaves out sentences: see the model card.
            "condition_on_prev_tokens": False,
            "return_timestamps": False,
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "chunk_length": WINDOW,
            "feature_size": MELS,
            "hop_length": HOP,
            "n_fft": FFT,
            "n_samples": WINDOW * RATE,
            "nb_max_frames": WINDOW * 100,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": RATE,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "clean_up_tokenization_spaces": False,
            "model_max_length": TARGETS,
        },
    }
    for name, data in files.items():
        (out / name).write_text(json.dumps(data, indent=1) + "\n")
