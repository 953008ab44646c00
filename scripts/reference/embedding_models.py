"""Write tiny random-weight embedding models, and what transformers makes of texts and pictures with them.

usage: python embedding_models.py [name ...]      (default: all)

Output: tests/fixtures/<name>/ in the layout of published checkpoints, and
tests/fixtures/goldens/<name>/{manifest.json, tensors.safetensors}. Pictures come from tests/fixtures/inputs.
What sentence-transformers puts behind a network (pooling, unit length) is written out here: it is a few lines.
"""

import sys
from collections import Counter

import torch
import transformers
from make_models import CLIP_TINY, clip_preprocessor, save_weights, start
from refcommon import *  # noqa: F403
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

transformers.logging.set_verbosity_error()

LONG = " ".join(CORPUS)
TEXTS = {
    "one_letter": "a",
    "one_word": "picture",
    "short": "a blue circle on a white background",
    "question": "How many objects are there in the first image, and in the second?",
    "accents": "Bonjour le monde! \u00c9t\u00e9, na\u00efve, Stra\u00dfe; \u65e5\u672c\u8a9e",
    "same_but_case": "A BLUE CIRCLE ON A WHITE BACKGROUND",
    "spaces": "  the   cat\tsleeps\non the mat ",
    "longer": " ".join(CORPUS[3:5]),
}
PICTURES = ["land_90x60.png", "port_48x120.png", "square_56x56.png", "tiny_31x17.png"]
UNIT = {"text": 5e-6, "image": 5e-6}


def word_piece(path):
    """BERT's: lower case, accents stripped, pieces of words."""
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {
        word
        for line in CORPUS
        for word, _ in tok.pre_tokenizer.pre_tokenize_str(tok.normalizer.normalize_str(line))
    }
    letters = {letter for word in words for letter in word}
    # Every sixth word is read in pieces.
    whole = {word for index, word in enumerate(sorted(words)) if index % 6}
    endings = {"##ing", "##s", "##ed", "##er"} | {"##" + letter for letter in letters}
    order = special + sorted(whole | letters | endings)
    vocabulary = {piece: index for index, piece in enumerate(order)}
    tok.model = models.WordPiece(vocab=vocabulary, unk_token="[UNK]")
    tok.add_special_tokens(special)
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tok.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tok.decoder = decoders.WordPiece()
    # Published files ask to cut and pad; a server does neither.
    tok.enable_truncation(48)
    tok.enable_padding(length=48, pad_id=0, pad_token="[PAD]")
    tok.save(str(path / "tokenizer.json"), pretty=False)
    write_json(
        path / "tokenizer_config.json",
        {"do_lower_case": True, "model_max_length": 48, "tokenizer_class": "BertTokenizer"},
    )
    return tok


def unigram(path, before, behind, pad):
    """Sentencepiece's: XLM-RoBERTa's and SigLIP's."""
    alphabet = sorted({char for line in CORPUS for char in line.lower() if char != " "})
    words = sorted({word for line in CORPUS for word in line.lower().split()})
    pieces = [("\u2581" + word, -float(4 + len(word) % 5)) for word in words]
    pieces += [("\u2581", -6.0)] + [(char, -9.0 - index / 100) for index, char in enumerate(alphabet)]
    special = ["<s>", "<pad>", "</s>", "<unk>"] if before else ["<pad>", "</s>", "<unk>"]
    vocabulary = [(name, 0.0) for name in special] + [piece for piece in pieces if piece[0] not in special]
    tok = Tokenizer(models.Unigram(vocabulary, special.index("<unk>"), False))
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    tok.add_special_tokens(special)
    ends = [(name, tok.token_to_id(name)) for name in before + behind]
    tok.post_processor = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *behind]), pair=None, special_tokens=ends
    )
    tok.save(str(path / "tokenizer.json"), pretty=False)
    write_json(path / "tokenizer_config.json", {"pad_token": pad, "model_max_length": 64})
    return tok


def learn_merges(words, count):
    """The merges of byte pairs that are most frequent in words, the first by name where some are equally so."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in split.values():
            index = 0
            while index + 1 < len(parts):
                if (parts[index], parts[index + 1]) == best:
                    parts[index : index + 2] = ["".join(best)]
                index += 1
    return merges


def clip_bpe(path):
    """CLIP's: bytes, and a mark at the end of words."""
    split = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tok = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words = Counter()
    for line in CORPUS:
        pieces = tok.pre_tokenizer.pre_tokenize_str(tok.normalizer.normalize_str(line))
        words.update(piece for piece, _ in pieces)
    merges = learn_merges(words, 300)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = bytes_ + [byte + "</w>" for byte in bytes_] + [first + second for first, second in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(order))}
    ends = ["<|startoftext|>", "<|endoftext|>"]
    for name in ends:
        vocabulary[name] = len(vocabulary)
    tok.model = models.BPE(vocabulary, merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(name, normalized=name == ends[0], special=True) for name in ends])
    first, last = (tok.token_to_id(name) for name in ends)
    tok.post_processor = processors.RobertaProcessing((ends[1], last), (ends[0], first), False, False)
    tok.save(str(path / "tokenizer.json"), pretty=False)
    write_json(path / "tokenizer_config.json", {"pad_token": ends[1], "model_max_length": 77})
    return tok


def encoded(tok, most):
    """The ids of all texts, and of one that is exactly as long as may be."""
    tok.no_truncation()
    tok.no_padding()
    cases = [{"name": name, "text": text, "input_ids": tok.encode(text).ids} for name, text in TEXTS.items()]
    words = LONG.split()
    text = words[0]
    for word in words[1:]:
        if len(tok.encode(f"{text} {word}").ids) <= most:
            text = f"{text} {word}"
    while len(tok.encode(text).ids) < most:
        text += " a"
    ids = tok.encode(text).ids
    assert len(ids) == most, len(ids)
    cases.append({"name": "longest", "text": text, "input_ids": ids})
    assert all(len(case["input_ids"]) <= most for case in cases)
    return cases


def pools(rows):
    """Of one text: sentence-transformers, models/Pooling.py."""
    count = rows.shape[0]
    weights = torch.arange(1, count + 1).float().unsqueeze(1)
    return {
        "cls": rows[0],
        "max": rows.max(0).values,
        "mean": rows.mean(0),
        "mean_sqrt_len": rows.sum(0) / count**0.5,
        "weightedmean": (rows * weights).sum(0) / weights.sum(),
        "lasttoken": rows[-1],
    }


def sentence_files(path, hidden, most):
    """What sentence-transformers adds to a checkpoint."""
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, place) in enumerate(kinds)
    ]
    write_json(path / "modules.json", modules)
    write_json(path / "sentence_bert_config.json", {"max_seq_length": most, "do_lower_case": False})
    write_json(
        path / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )


def text_goldens(name, model, cases):
    tensors = {}
    for case in cases:
        rows = model(input_ids=torch.tensor([case["input_ids"]])).last_hidden_state[0]
        for pool, vector in pools(rows).items():
            tensors[f"{case['name']}/{pool}"] = vector
        tensors[f"{case['name']}/unit_mean"] = torch.nn.functional.normalize(pools(rows)["mean"], dim=0)
    write_json(GOLDENS / name / "manifest.json", {"tolerance": {"vector": 5e-6}, "cases": cases})
    write_tensors(GOLDENS / name / "tensors.safetensors", tensors)


def make_bert():
    path = start("bert")
    tok = word_piece(path)
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 48,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": tok.get_vocab_size(),
    }
    write_json(path / "config.json", config)
    sentence_files(path, 48, 48)
    model = randomize(BertModel(BertConfig(**config)).eval(), 71)
    keys = save_weights(path, model.state_dict())
    text_goldens("bert", model, encoded(tok, 48))
    return keys


def make_xlm_roberta():
    path = start("xlm_roberta")
    tok = unigram(path, ["<s>"], ["</s>"], "<pad>")
    config = {
        "architectures": ["XLMRobertaModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 66,
        "model_type": "xlm-roberta",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": tok.get_vocab_size(),
    }
    write_json(path / "config.json", config)
    sentence_files(path, 32, 512)
    model = randomize(XLMRobertaModel(XLMRobertaConfig(**config)).eval(), 72)
    keys = save_weights(path, model.state_dict())
    text_goldens("xlm_roberta", model, encoded(tok, 64))
    return keys


def pooled(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def picture_goldens(name, model, processor, cases, padded):
    """Vectors of unit length, and what the network says to each picture with each text, without scale and bias."""
    tensors = {}
    texts, pictures = [], []
    for case in cases:
        vector = pooled(model.get_text_features(input_ids=torch.tensor([padded(case["input_ids"])])))
        texts.append(torch.nn.functional.normalize(vector[0], dim=0))
        tensors[f"{case['name']}/text"] = texts[-1]
    for picture in PICTURES:
        image = Image.open(INPUTS / picture).convert("RGB")
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        pictures.append(
            torch.nn.functional.normalize(pooled(model.get_image_features(pixel_values=pixels))[0], dim=0)
        )
        tensors[f"{picture}/image"] = pictures[-1]
    tensors["scores/cosine"] = torch.stack(pictures) @ torch.stack(texts).T
    whole = model(
        input_ids=torch.tensor([padded(case["input_ids"]) for case in cases if case["name"] == "short"]),
        pixel_values=processor(
            images=[Image.open(INPUTS / picture).convert("RGB") for picture in PICTURES], return_tensors="pt"
        )["pixel_values"],
    )
    logits = whole.logits_per_image
    if hasattr(model, "logit_bias"):
        logits = logits - model.logit_bias
    own = (logits / model.logit_scale.exp())[:, 0]
    expected = tensors["scores/cosine"][:, [case["name"] for case in cases].index("short")]
    assert torch.allclose(own, expected, atol=1e-6), (own, expected)
    write_json(GOLDENS / name / "manifest.json", {"tolerance": UNIT, "cases": cases, "pictures": PICTURES})
    write_tensors(GOLDENS / name / "tensors.safetensors", tensors)


def make_clip():
    path = start("clip")
    tok = clip_bpe(path)
    size = tok.get_vocab_size()
    text = {
        "model_type": "clip_text_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 77,
        "vocab_size": size,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }
    vision = {key: value for key, value in CLIP_TINY.items() if key not in ("projection_dim", "vocab_size")}
    vision["hidden_size"], vision["num_attention_heads"] = 48, 3
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "logit_scale_init_value": 2.6592,
        "projection_dim": 40,
        "text_config": text,
        "vision_config": vision,
    }
    write_json(path / "config.json", config)
    write_json(path / "preprocessor_config.json", clip_preprocessor(56))
    model = randomize(CLIPModel(CLIPConfig(**config)).eval(), 73, overrides={"logit_scale": 1.0})
    state = model.state_dict()
    keys = save_weights(path, published(state))
    processor = CLIPImageProcessorPil(**clip_preprocessor(56))
    picture_goldens("clip", model, processor, encoded(tok, 77), lambda ids: ids)
    return keys


def published(state):
    """The names of published files, where the installed transformers has moved them."""
    out = {}
    for key, value in state.items():
        for tower in ("text_model.", "vision_model."):
            if key.startswith(tower + tower):
                key = key[len(tower) :]
        out[key] = value
    return out


def make_siglip():
    path = start("siglip")
    tok = unigram(path, [], ["</s>"], "</s>")
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {
            "model_type": "siglip_text_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "vocab_size": tok.get_vocab_size(),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "image_size": 56,
            "patch_size": 14,
        },
    }
    write_json(path / "config.json", config)
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 56, "width": 56},
    }
    write_json(path / "preprocessor_config.json", processor)
    model = randomize(SiglipModel(SiglipConfig(**config)).eval(), 74, overrides={"logit_": 1.0})
    keys = save_weights(path, published(model.state_dict()))
    # Texts are filled up to the length with which the network was trained.
    pad = tok.token_to_id("</s>")
    processor = SiglipImageProcessorPil(**processor)
    picture_goldens("siglip", model, processor, encoded(tok, 64), lambda ids: ids + [pad] * (64 - len(ids)))
    return keys


MAKERS = {"bert": make_bert, "xlm_roberta": make_xlm_roberta, "clip": make_clip, "siglip": make_siglip}


def main():
    for name in sys.argv[1:] or list(MAKERS):
        keys = MAKERS[name]()
        size = sum(file.stat().st_size for file in (MODELS / name).rglob("*") if file.is_file())
        print(f"{name}: {len(keys)} tensors, {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
