"""Draws and speaks what the demo models meet first (assets/demo/samples): Pillow, espeak-ng and ffmpeg."""

import math
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, SMOOTH = 448, 4
SENTENCE = "Turn on the kitchen light please."
OUT = Path(__file__).resolve().parents[2] / "assets/demo/samples"


def star(x, y, radius):
    def corner(index):
        angle, length = math.radians(36 * index - 90), radius if index % 2 == 0 else radius * 0.42
        return x + length * math.cos(angle), y + length * math.sin(angle)

    return [corner(index) for index in range(10)]


def picture():
    big = Image.new("RGB", (SIDE * SMOOTH, SIDE * SMOOTH), (236, 235, 230))
    draw = ImageDraw.Draw(big)
    unit = SIDE * SMOOTH / 112
    draw.ellipse([v * unit for v in (12, 14, 48, 50)], fill=(215, 30, 35))
    draw.rectangle([v * unit for v in (67, 18, 97, 48)], fill=(30, 60, 215))
    draw.polygon([(x * unit, y * unit) for x, y in star(56, 82, 22)], fill=(245, 130, 15))
    small = big.resize((SIDE, SIDE), Image.Resampling.LANCZOS).quantize(64, dither=Image.Dither.NONE)
    small.save(OUT / "shapes.png", optimize=True)


def sentence():
    command = ["espeak-ng", "-v", "en-us", "-s", "150", "-w", "/dev/stdout", SENTENCE]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    silence = ["-af", "adelay=300,apad=pad_dur=0.3"]
    form = ["-ar", "16000", "-fflags", "+bitexact", "-flags", "+bitexact"]
    command = ["ffmpeg", "-v", "error", "-y", "-i", "-", *silence, *form, str(OUT / "sentence.wav")]
    subprocess.run(command, check=True, input=spoken)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    picture()
    sentence()
    sys.stdout.write("".join(f"{file}: {file.stat().st_size} bytes\n" for file in sorted(OUT.iterdir())))
