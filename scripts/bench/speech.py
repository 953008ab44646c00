#!/usr/bin/env python3
"""Times faster-whisper, and servers that speak OpenAI's API, on the same recordings with the same weights.

    speech.py model FOLDER
        writes FOLDER/hf and FOLDER/ct2: a Whisper of tiny's shape with random weights
    speech.py time FOLDER
        times faster-whisper on FOLDER/ct2
    speech.py time FOLDER --url http://127.0.0.1:PORT/v1 --field NAME=VALUE...
        the same, and by turns a server that was started with FOLDER/hf; prints ratios

A request is one recording of 30 s as a wav. Every answer has the same length, whoever gives it: the weights
are made so that no control token, no time and no end is ever drawn (but for the first time, which the rules
ask for), and so that words are drawn with a probability near one and do not repeat: no threshold asks for
another temperature. An answer ends at the limit: --tokens for faster-whisper, for a server what it takes by
itself (the reference's 224, the default here) or what a --field says. Beam 1, temperature 0, no voice
detection, float32; faster-whisper without times.

faster-whisper runs in this process with all of the machine's CPUs in two layouts: one worker with all of
them, and a worker on each; the better one counts. Figures are seconds of sound that all clients together
got back per second, the median of --rounds. Letters of an answer tell whether both sides wrote as much.

Needs numpy and safetensors; to convert, torch, transformers and ctranslate2; to time, faster-whisper. The
weights and the sound come from fixed seeds.
"""

import argparse
import concurrent.futures
import io
import json
import os
import pathlib
import secrets
import statistics
import sys
import time
import urllib.error
import urllib.request
import wave

import numpy as np

WIDTH, LAYERS, HEADS, MELS = 384, 4, 6, 80
TEXT_TOKENS = 50257
LANGUAGES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la
mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be
tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
"""
CONTROLS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in LANGUAGES.split()),
    *(f"<|{name}|>" for name in CONTROLS),
]
TIMES = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
IDS = {token: TEXT_TOKENS + index for index, token in enumerate(SPECIAL + TIMES)}
VOCABULARY = TEXT_TOKENS + len(IDS)
SECONDS, RATE = 30, 16_000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model", help="write the checkpoint, in both formats")
    model.add_argument("folder", type=pathlib.Path)
    model.set_defaults(run=make_model)
    timing = commands.add_parser("time", help="time faster-whisper, and a server")
    timing.add_argument("folder", type=pathlib.Path)
    timing.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="how many at once")
    timing.add_argument("--tokens", type=int, default=224, help="length of faster-whisper's answers")
    timing.add_argument("--rounds", type=int, default=3)
    timing.add_argument("--url", help="of a server to time as well, with /v1")
    timing.add_argument("--model", default="whisper-1", help="what the server calls it")
    timing.add_argument(
        "--field", action="append", default=[], metavar="NAME=VALUE", help="form field for the server"
    )
    timing.add_argument(
        "--layout", choices=["threads", "workers"], help="only this one of faster-whisper's (default: both)"
    )
    timing.add_argument("--no-peer", action="store_true", help="only the server")
    timing.set_defaults(run=measure)
    arguments = parser.parse_args()
    arguments.run(arguments)


def make_model(arguments):
    folder = arguments.folder / "hf"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer())
    for name, content in settings().items():
        write_json(folder / name, content)
    from safetensors.numpy import save_file

    save_file(weights(), str(folder / "model.safetensors"), metadata={"format": "pt"})
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(str(folder), copy_files=["tokenizer.json"])
    converter.convert(str(arguments.folder / "ct2"), force=True)
    print(f"{folder} and {arguments.folder / 'ct2'}")


def weights():
    """Tensors under the names of the published files."""
    draw = np.random.default_rng(1704)
    tensors = {}

    def add(name, *shape, spread=0.05):
        tensors[f"model.{name}"] = (spread * draw.standard_normal(shape)).astype(np.float32)

    def norm(name):
        tensors[f"model.{name}.weight"] = np.ones(WIDTH, np.float32)
        tensors[f"model.{name}.bias"] = np.zeros(WIDTH, np.float32)

    def attention(name):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            add(f"{name}.{part}.weight", WIDTH, WIDTH)
            if part != "k_proj":
                add(f"{name}.{part}.bias", WIDTH)

    add("encoder.conv1.weight", WIDTH, MELS, 3)
    add("encoder.conv1.bias", WIDTH)
    add("encoder.conv2.weight", WIDTH, WIDTH, 3)
    add("encoder.conv2.bias", WIDTH)
    tensors["model.encoder.embed_positions.weight"] = sinusoids(1500)
    add("decoder.embed_tokens.weight", VOCABULARY, WIDTH, spread=0.3)
    # An answer depends most on the place in it, so that it does not go in circles.
    add("decoder.embed_positions.weight", 448, WIDTH, spread=2)
    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            name = f"{side}.layers.{layer}"
            attention(f"{name}.self_attn")
            norm(f"{name}.self_attn_layer_norm")
            if side == "decoder":
                attention(f"{name}.encoder_attn")
                norm(f"{name}.encoder_attn_layer_norm")
            add(f"{name}.fc1.weight", 4 * WIDTH, WIDTH)
            add(f"{name}.fc1.bias", 4 * WIDTH)
            add(f"{name}.fc2.weight", WIDTH, 4 * WIDTH)
            add(f"{name}.fc2.bias", WIDTH)
            norm(f"{name}.final_layer_norm")
        norm(f"{side}.layer_norm")
    # Clear winners, and one dimension that is the same at every step and speaks against all that is no text.
    last = "model.decoder.layer_norm"
    tensors[f"{last}.weight"][:] = 4
    tensors[f"{last}.weight"][0] = 0
    tensors[f"{last}.bias"][0] = 40
    embedding = tensors["model.decoder.embed_tokens.weight"]
    embedding[:TEXT_TOKENS, 0] = 0
    embedding[TEXT_TOKENS:, 0] = -10
    return tensors


def sinusoids(length):
    scale = np.exp(-np.log(10_000) / (WIDTH // 2 - 1) * np.arange(WIDTH // 2))
    angle = np.arange(length)[:, None] * scale
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def tokenizer():
    """Byte-level BPE of as many entries: bytes, then pairs and triples of letters and digits."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    pieces = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789\u0120"
    merges = [[a, b] for a in letters for b in letters]
    merges += [[a + b, c] for a in letters for b in letters for c in letters]
    merges = merges[: TEXT_TOKENS - 256]
    pieces += [a + b for a, b in merges]
    added = [
        {
            "id": IDS[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in SPECIAL,
        }
        for token in IDS
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": prompt(),
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


def prompt():
    """What published files put around a text."""
    before = [special("<|startoftranscript|>", 0), special("<|notimestamps|>", 0)]
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    names = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
    return {
        "type": "TemplateProcessing",
        "single": [*before, first, special("<|endoftext|>", 0)],
        "pair": [*before, first, second, special("<|endoftext|>", 1)],
        "special_tokens": {name: {"id": name, "ids": [IDS[name]], "tokens": [name]} for name in names},
    }


def special(token, kind):
    return {"SpecialToken": {"id": token, "type_id": kind}}


def settings():
    """The other files of a checkpoint."""
    end = IDS["<|endoftext|>"]
    quiet = {"suppress_tokens": [], "begin_suppress_tokens": [220, end]}
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    start = {"decoder_start_token_id": IDS["<|startoftranscript|>"]}
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "attention_heads": HEADS,
            "ffn_dim": 4 * WIDTH,
            "layerdrop": 0.0,
            "layers": LAYERS,
        }.items()
    }
    return {
        "config.json": {
            "activation_dropout": 0.0,
            "activation_function": "gelu",
            "architectures": ["WhisperForConditionalGeneration"],
            "attention_dropout": 0.0,
            "d_model": WIDTH,
            "dropout": 0.0,
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "max_length": 448,
            "max_source_positions": 1500,
            "max_target_positions": 448,
            "model_type": "whisper",
            "num_hidden_layers": LAYERS,
            "num_mel_bins": MELS,
            "scale_embedding": False,
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": VOCABULARY,
            **quiet,
            **ends,
            **start,
            **sides,
        },
        "generation_config.json": {
            "alignment_heads": [[2, 2], [3, 0], [3, 2], [3, 3], [3, 4], [3, 5]],
            "is_multilingual": True,
            "lang_to_id": {f"<|{code}|>": IDS[f"<|{code}|>"] for code in LANGUAGES.split()},
            "max_initial_timestamp_index": 50,
            "max_length": 448,
            "no_timestamps_token_id": IDS["<|notimestamps|>"],
            "prev_sot_token_id": IDS["<|startofprev|>"],
            "return_timestamps": False,
            "task_to_id": {task: IDS[f"<|{task}|>"] for task in ("transcribe", "translate")},
            **quiet,
            **ends,
            **start,
        },
        "preprocessor_config.json": {
            "chunk_length": SECONDS,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": MELS,
            "hop_length": 160,
            "n_fft": 400,
            "n_samples": SECONDS * RATE,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "processor_class": "WhisperProcessor",
            "return_attention_mask": False,
            "sampling_rate": RATE,
        },
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 1024,
            "processor_class": "WhisperProcessor",
            "tokenizer_class": "WhisperTokenizer",
        },
    }


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n")


def measure(arguments):
    sound = recording()
    sides = {} if arguments.no_peer else peers(arguments)
    if arguments.url:
        sides["server"] = server(arguments)
    lengths = {name: ask(sound) for name, ask in sides.items()}
    figures = {name: {} for name in sides}
    for clients in arguments.clients:
        rounds = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, ask in sides.items():
                rounds[name].append(rtfx(ask, sound, clients))
                print(f"{clients} clients, {name}: {rounds[name][-1]:.1f}", file=sys.stderr)
        for name, found in rounds.items():
            figures[name][str(clients)] = round(statistics.median(found), 1)
    report = {"cpus": os.cpu_count(), "letters_of_an_answer": lengths, "rtfx": figures}
    if not arguments.no_peer:
        layouts = [figures[name] for name in figures if name != "server"]
        best = {clients: max(layout[clients] for layout in layouts) for clients in layouts[0]}
        report["rtfx"]["faster-whisper"] = best
        if arguments.url:
            report["ratio"] = {
                clients: round(figures["server"][clients] / best[clients], 2) for clients in best
            }
    print(json.dumps(report, indent=1))


def rtfx(ask, sound, clients):
    """Each client asks again as soon as it has its answer, until there are at least eight answers."""
    requests = max(1, 8 // clients)

    def client(_):
        for _ in range(requests):
            ask(sound)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        list(pool.map(client, range(clients)))
    return clients * requests * SECONDS / (time.perf_counter() - start)


def recording():
    """Half a minute of tones and noise that come and go, as a wav."""
    draw = np.random.default_rng(30)
    seconds = np.arange(SECONDS * RATE) / RATE
    sound = 0.2 * np.sin(2 * np.pi * (200 + 80 * np.sin(2 * np.pi * 0.7 * seconds)) * seconds)
    sound = (sound + 0.05 * draw.standard_normal(len(seconds))) * (
        0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * seconds)
    )
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((sound * 32767).astype(np.int16).tobytes())
    return file.getvalue()


def peers(arguments):
    from faster_whisper import WhisperModel

    # CTranslate2 halves the limit that it is given, in which two tokens of the prompt count; checked below.
    limit = None if arguments.tokens == 224 else 2 * arguments.tokens - 2

    def peer(threads, workers):
        model = WhisperModel(
            str(arguments.folder / "ct2"),
            device="cpu",
            compute_type="float32",
            cpu_threads=threads,
            num_workers=workers,
        )

        def ask(sound):
            segments, _ = model.transcribe(
                io.BytesIO(sound),
                language="en",
                beam_size=1,
                temperature=0.0,
                without_timestamps=True,
                condition_on_previous_text=False,
                suppress_tokens=[IDS["<|endoftext|>"]],
                max_new_tokens=limit,
                compression_ratio_threshold=None,
                log_prob_threshold=None,
                no_speech_threshold=None,
                vad_filter=False,
            )
            segments = list(segments)
            tokens = sum(len(segment.tokens) for segment in segments)
            if tokens != arguments.tokens:
                raise SystemExit(f"faster-whisper wrote {tokens} tokens")
            return sum(len(segment.text) for segment in segments)

        return ask

    cpus = os.cpu_count() or 1
    layouts = {f"faster-whisper, {cpus} threads": (cpus, 1), f"faster-whisper, {cpus} workers": (1, cpus)}
    return {name: peer(*layout) for name, layout in layouts.items() if arguments.layout in (None, name[-7:])}


def server(arguments):
    given = {"model": arguments.model, "response_format": "json", "language": "en", "temperature": "0"}
    fields = given | dict(field.split("=", 1) for field in arguments.field)
    boundary = secrets.token_hex(16)
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    form = "".join(f'{part}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
    form += f'{part}"file"; filename="sound.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    url = f"{arguments.url.rstrip('/')}/audio/transcriptions"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Authorization": "Bearer none"}

    def ask(sound):
        body = form.encode() + sound + f"\r\n--{boundary}--\r\n".encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=600) as answer:
                return len(json.load(answer)["text"])
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{error.code}: {error.read().decode(errors='replace')}") from error

    return ask


if __name__ == "__main__":
    main()
