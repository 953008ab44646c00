"""Writes the held-out sets: pictures and sound that training never had, with the truth about them.

    python make_heldout.py ../../tests/heldout

Pictures come from other seeds, and half of the questions in phrasings that training never has. Sound comes
from voices and accents, noises and sentences that training never has. Needs ffmpeg for FLAC.
"""

import argparse
import io
import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import sound
from pictures import SIDE, Masks, Scene
from PIL import Image
from questions import Asker
from sentences import sentence
from voices import RATE, choose_voice, speak

SEED = 7_000_000
PICTURES, QUESTIONS, WITHOUT = 120, 4, 24
SINGLE, SEVERAL, NOISY, BABBLE, QUIET = 45, 15, 40, 12, 60
BITS = 10  # of a sample: FLAC takes two thirds of the bytes, and the noise stays below all others


# --- pictures --------------------------------------------------------------------------------


def picture_file(rng, picture):
    """A JPEG as people have them, often larger than what the network sees."""
    image = Image.fromarray(picture)
    side = rng.choice([SIDE, SIDE, 160])
    buffer = io.BytesIO()
    image.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def write_pictures(folder):
    folder.mkdir(parents=True)
    rng, masks, lines = random.Random(SEED), Masks(), []
    askers = [Asker(rng), Asker(rng, held=True)]
    for index in range(PICTURES):
        scene = Scene(rng, masks)
        name = f"{index:03}.jpg"
        (folder / name).write_bytes(picture_file(rng, scene.draw()))
        for asker, new in zip(askers, (False, True), strict=True):
            for question in asker.questions(scene, QUESTIONS // 2):
                lines.append(
                    {
                        "picture": name,
                        "kind": question.kind,
                        "question": question.text,
                        "answer": question.answer,
                        "new_phrasing": new,
                    }
                )
    for _ in range(WITHOUT):
        question = askers[0].without_picture()
        lines.append(
            {
                "picture": None,
                "kind": question.kind,
                "question": question.text,
                "answer": question.answer,
                "new_phrasing": False,
            }
        )
    write_lines(folder / "questions.jsonl", lines)


# --- sound -----------------------------------------------------------------------------------


class Track:
    """Sound that grows, with its text, and its words with the times at which they begin."""

    def __init__(self, rng, lead):
        self.rng, self.parts, self.at, self.texts, self.words = rng, [], 0.0, [], []
        self.pause(lead)

    def pause(self, seconds):
        n = int(seconds * RATE)
        self.parts.append(np.zeros(n, np.float32))
        self.at += n / RATE

    def say(self, text, voice):
        utterance = speak(text, **voice)
        self.texts.append(text)
        words = text.split()
        if len(words) == len(utterance.words):
            self.words += [
                [word, round(self.at + start, 2)] for word, start in zip(words, utterance.words, strict=True)
            ]
        else:  # some voices join words, whose times are then unknown
            self.words += [[word, None] for word in words]
        self.parts.append(utterance.sound)
        self.at += len(utterance.sound) / RATE
        return self

    def sound(self):
        return np.concatenate(self.parts)


def spoken(rng, sentences, longest=9.5):
    """One held-out voice that says held-out sentences."""
    while True:
        track, voice = Track(rng, rng.uniform(0.1, 0.4)), choose_voice(rng, held=True)
        for i in range(sentences):
            if i:
                track.pause(rng.uniform(0.3, 0.8))
            track.say(sentence(rng, held=True), voice)
        track.pause(rng.uniform(0.2, 0.5))
        if track.at < longest:
            return track


def quiet(rng, noises, index):
    n = int(RATE * rng.uniform(1, 2.6))
    if index % 6 == 0:
        return np.zeros(n, np.float32)
    return noises.cut(rng, n, noises.steady) * 10 ** (rng.uniform(-60, -20) / 20)


def write_sound(folder):
    folder.mkdir(parents=True)
    rng, noises, lines = random.Random(SEED + 1), sound.Noises(SEED, held=True), []

    def add(kind, x, track=None):
        name = f"{len(lines):03}.flac"
        write_flac(folder / name, x)
        lines.append(
            {
                "sound": name,
                "kind": kind,
                "text": " ".join(track.texts) if track else "",
                "words": track.words if track else [],
            }
        )

    for _ in range(SINGLE):
        track = spoken(rng, 1)
        add("clean", track.sound(), track)
    for _ in range(SEVERAL):
        track = spoken(rng, rng.randint(2, 4))
        add("clean, several sentences", track.sound(), track)
    for kind, count, bank in (
        ("noise at 10 dB", NOISY, noises.steady),
        ("babble at 10 dB", BABBLE, noises.babble),
    ):
        for _ in range(count):
            track = spoken(rng, 1)
            x = track.sound()
            add(kind, sound.add_noise(x, noises.cut(rng, len(x), bank), 10), track)
    for index in range(QUIET):
        add("silence or noise", quiet(rng, noises, index))
    track = long_recording(rng)
    add("long", track.sound(), track)
    write_lines(folder / "clips.jsonl", lines)


def long_recording(rng, seconds=65):
    """Several voices, one after another, with pauses of any length between sentences."""
    track, voice = Track(rng, 0.8), choose_voice(rng, held=True)
    while track.at < seconds:
        if rng.random() < 0.25:
            voice = choose_voice(rng, held=True)
        track.say(sentence(rng, held=True), voice).pause(rng.uniform(0.4, 1.8))
    return track


def write_flac(path, x):
    """FLAC sees that the low bits of its 16 are unused."""
    unused = 16 - BITS
    x = x * min(1.0, 0.4 / max(1e-6, float(np.abs(x).max())))
    samples = (np.round(x * 2 ** (BITS - 1)) * 2**unused).clip(-32768, 32767).astype("<i2")
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-f",
        "s16le",
        "-ar",
        str(RATE),
        "-ac",
        "1",
        "-i",
        "-",
        "-compression_level",
        "12",
        "-map_metadata",
        "-1",
        "-fflags",
        "+bitexact",
        "-flags:a",
        "+bitexact",
        str(path),
    ]
    subprocess.run(command, input=samples.tobytes(), check=True)


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["pictures", "sound"])
    options = parser.parse_args()
    for name, write in (("pictures", write_pictures), ("sound", write_sound)):
        if options.only in (None, name):
            shutil.rmtree(options.folder / name, ignore_errors=True)
            write(options.folder / name)


if __name__ == "__main__":
    main()
