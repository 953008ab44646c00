#!/usr/bin/env python3
"""Compares voice detectors on the recordings of make_audio.py, and prints tables.

`compare.py --silero FOLDER` first, which writes Silero's probabilities (its network is taken from the
installed faster-whisper; needs onnxruntime), then the program in scripts/vad/candidates, then `compare.py
FOLDER`.

A frame is 10 ms. Area: under the ROC curve of the probabilities. Precision and recall: of the probabilities
at the threshold. Missed and false: of the spans of speech that percept's rules make of the probabilities,
without what is kept around them; false are seconds per minute without speech.
"""

import argparse
import importlib.util
import json
import pathlib
import time
import wave

import numpy as np

STEP = 160
EVERY = {"rustvani": 512, "earshot": 256, "silero": 512, "webrtc": 320, "rnnoise": 160}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument(
        "--silero", action="store_true", help="write Silero's probabilities and its speed, and stop"
    )
    parser.add_argument("--half", default="report", choices=["tune", "report"])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument(
        "--late", type=int, default=0, help="hold probabilities against what was so many frames ago"
    )
    arguments = parser.parse_args()
    if arguments.silero:
        return silero(arguments.folder)
    tables(arguments)


def tables(arguments):
    manifest = json.loads((arguments.folder / "manifest.json").read_text())
    cases = {name: case for name, case in manifest.items() if case["half"] == arguments.half}
    for detector in EVERY:
        if not (arguments.folder / f"{next(iter(cases))}.{detector}.f32").exists():
            continue
        print(f"\n{detector}\n\n| | area | precision | recall | missed | false |\n|---|---|---|---|---|---|")
        for group, names in groups(cases).items():
            found = [frames(arguments, name, cases[name], detector) for name in names]
            print(row(group, found, arguments.threshold))


def groups(cases):
    """Names of recordings, by what they have in common."""
    found = {}
    for name, case in cases.items():
        if case["source"] == "nothing":
            found.setdefault(f"only {case['noise']}", []).append(name)
            continue
        noise = "no noise" if case["noise"] == "none" else f"{case['noise']} {case['decibels']} dB"
        for group in ("all with speech", case["source"], noise):
            found.setdefault(group, []).append(name)
    return found


def frames(arguments, name, case, detector):
    """For each frame: is it speech, how probable, is it in a span that was found."""
    count = 6000
    labels = fill(case["spans"], count)
    found = fill(json.loads((arguments.folder / f"{name}.{detector}.json").read_text()), count)
    probabilities = np.fromfile(arguments.folder / f"{name}.{detector}.f32", np.float32)
    at = (np.arange(count) * STEP + STEP // 2) // EVERY[detector]
    probabilities = probabilities[np.minimum(at, len(probabilities) - 1)]
    if arguments.late:
        probabilities = np.roll(probabilities, -arguments.late)
    return labels, probabilities, found


def fill(spans, count):
    labels = np.zeros(count, bool)
    for start, end in spans:
        labels[round(start / STEP) : round(end / STEP)] = True
    return labels


def row(name, cases, threshold):
    labels, probabilities, found = (np.concatenate(parts) for parts in zip(*cases, strict=True))
    said = probabilities >= threshold
    false = (found & ~labels).sum() / (~labels).sum() * 60
    if not labels.any():
        return f"| {name} | | | | | {false:.1f} |"
    area = area_under_curve(labels, probabilities)
    precision = (said & labels).sum() / max(1, said.sum())
    recall = (said & labels).sum() / labels.sum()
    missed = (labels & ~found).sum() / labels.sum()
    return f"| {name} | {area:.3f} | {precision:.3f} | {recall:.3f} | {missed:.1%} | {false:.1f} |"


def area_under_curve(labels, probabilities):
    """The chance that a frame of speech is more probable than one without."""
    _, index, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[index]
    positive = labels.sum()
    return (rank[labels].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


def silero(folder):
    import onnxruntime

    package = pathlib.Path(importlib.util.find_spec("faster_whisper").origin).parent
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    network = onnxruntime.InferenceSession(
        str(next((package / "assets").glob("silero_vad*.onnx"))), options, providers=["CPUExecutionProvider"]
    )
    seconds = spent = 0
    for file in sorted(folder.glob("*.wav")):
        with wave.open(str(file)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
        samples = (samples / 32768).astype(np.float32)
        start = time.process_time()
        probabilities = silero_probabilities(network, samples)
        spent += time.process_time() - start
        seconds += len(samples) / 16_000
        probabilities.tofile(file.with_suffix(".silero.f32"))
    print(f"silero: {seconds / spent:.0f} x real time")


def silero_probabilities(network, samples):
    """Windows of 512 samples with the 64 before them, all in one call, as faster-whisper does."""
    samples = np.pad(samples, (64, -len(samples) % 512))
    windows = np.lib.stride_tricks.sliding_window_view(samples, 64 + 512)[::512]
    state = np.zeros((1, 1, 128), np.float32)
    return network.run(None, {"input": np.ascontiguousarray(windows), "h": state, "c": state})[0].astype(
        np.float32
    )


if __name__ == "__main__":
    main()
