#!/usr/bin/env python3
"""Makes recordings of which every 10 ms is known to be speech or not, to compare voice detectors with.

Speech comes from espeak-ng (ten voices, eight languages) and from recorded prompts (five speakers, five
languages); noise is white, pink, babble, hum or music at 20 to 0 dB, and alone. Half of the sentences are for
tuning, the other half for reporting. The seed is fixed: two runs write the same bytes.

Needs numpy, and of Debian: espeak-ng ffmpeg asterisk-core-sounds-{en,es,fr,it,ru}-g722
asterisk-moh-opsound-g722
"""

import argparse
import io
import json
import pathlib
import subprocess
import wave
import zlib

import numpy as np

RATE = 16_000
STEP = RATE // 100
SECONDS = 60
HALVES = ("tune", "report")
SIGNAL_TO_NOISE = (20, 10, 5, 0)
SOUNDS = pathlib.Path("/usr/share/asterisk")

SENTENCES = {
    "en-us": [
        "The quick brown fox jumps over the lazy dog near the river bank.",
        "Please leave a message after the tone, and we will call you back.",
        "She sells sea shells by the shore. Seven of them, to be exact.",
        "Yes.",
        "The meeting was moved to Thursday, half past nine in the morning.",
        "Could you tell me, please, where the next station is?",
    ],
    "en-gb": [
        "It was raining when they left the house, so they took an umbrella.",
        "No, I don't think so.",
        "Numbers are hard to hear: four, five, nine, fifteen, fifty.",
        "Somebody has to open the window before it gets too hot in here.",
    ],
    "de": [
        "Der Zug nach Hamburg fährt heute von einem anderen Gleis ab.",
        "Ja, natürlich.",
        "Wir haben gestern lange über das Wetter und die Nachrichten gesprochen.",
        "Können Sie das bitte noch einmal wiederholen?",
    ],
    "fr-fr": [
        "Le musée est fermé le mardi, mais le jardin reste ouvert.",
        "Il faut que je parte maintenant, à demain!",
        "Voulez-vous encore une tasse de café?",
        "La pluie est tombée toute la nuit sur les toits de la ville.",
    ],
    "es": [
        "El mercado abre a las ocho y cierra a las dos de la tarde.",
        "Muchas gracias por la invitación.",
        "Mañana vamos a la playa con los niños y el perro.",
        "Todavía no sé qué voy a cocinar para la cena.",
    ],
    "ru": [
        "Завтра утром мы поедем на дачу к бабушке.",
        "Спасибо, всё хорошо.",
        "Скажите, пожалуйста, сколько стоит этот билет?",
        "Вчера вечером шёл сильный снег, и все дороги были закрыты.",
    ],
    "pt-br": [
        "O ônibus para o centro passa a cada quinze minutos.",
        "Não, obrigado, já comi.",
        "Amanhã cedo vamos visitar os nossos amigos em Santos.",
        "A chuva parou, mas o céu continua cinzento.",
    ],
    "pl": [
        "Pociąg do Krakowa odjeżdża z toru drugiego.",
        "Dzień dobry, proszę chleb i mleko.",
        "Nie wiem jeszcze, kiedy wrócimy do domu.",
        "Wczoraj wieczorem padał deszcz.",
    ],
}
VARIANTS = ("m1", "m3", "m5", "m7", "f1", "f2", "f3", "f5", "klatt2", "klatt4")
PROMPTS = 60
MUSIC = {
    "tune": ("macroform-cold_day", "reno_project-system"),
    "report": ("macroform-robot_dity", "macroform-the_simplicity", "manolo_camp-morning_coffee"),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="where to write; about 190 MB")
    parser.add_argument("--fixture", action="store_true", help="write only the recording of the unit tests")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.fixture:
        return fixture(folder / "two_sentences.wav")
    manifest = {}
    for half in HALVES:
        voices = {"espeak": espeak(half), "recorded": recorded(half)}
        music = [g722(SOUNDS / "moh" / f"{name}.g722") for name in MUSIC[half]]
        for name, case in cases(half, voices, music):
            write(folder / f"{name}.wav", case.pop("samples"))
            manifest[name] = {"half": half, **case}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    hours = len(manifest) * SECONDS / 3600
    print(f"{len(manifest)} recordings, {hours:.1f} hours, in {folder}")


def fixture(path):
    """Three seconds with two short sentences over a faint rush; prints where they are, in seconds."""
    samples = np.zeros(3 * RATE)
    at = RATE // 2
    for sentence in ("Good morning.", "See you tomorrow."):
        speech, spans = labelled(speak(sentence))
        samples[at : at + len(speech)] = speech
        print(f"{(at + spans[0][0]) / RATE:.2f} to {(at + spans[-1][1]) / RATE:.2f}: {sentence}")
        at += len(speech) + RATE // 2
    write(path, 0.1 * samples + 0.0005 * generator("fixture").standard_normal(len(samples)))


def cases(half, voices, music):
    """Every recording of a half: its name, samples, spans of speech (in samples), and what it is."""
    babble = [sound for sounds in voices.values() for sound, _ in sounds]
    for source, sounds in voices.items():
        for noise, decibels in [("none", 60), *((n, d) for n in NOISES for d in SIGNAL_TO_NOISE)]:
            name = f"{half}-{source}-{noise}-{decibels}"
            draw = generator(name)
            speech, spans = talk(draw, sounds)
            level = root_mean_square(np.concatenate([speech[start:end] for start, end in spans]))
            sound = NOISES.get(noise, white)(draw, babble, music)
            samples = speech + sound * level / root_mean_square(sound) * 10 ** (-decibels / 20)
            case = {"source": source, "noise": noise, "decibels": decibels, "spans": spans}
            yield name, {"samples": scale(draw, samples), **case}
    for noise, make in {**NOISES, **ALONE}.items():
        name = f"{half}-nothing-{noise}"
        draw = generator(name)
        sound = make(draw, babble, music)
        sound = scale(draw, sound) if sound.any() else sound
        yield name, {"samples": sound, "source": "nothing", "noise": noise, "decibels": None, "spans": []}


def talk(draw, sounds):
    """A minute of sentences with silence of 0.3 to 4 s between them, and where speech is."""
    samples = np.zeros(SECONDS * RATE)
    spans = []
    at = int(draw.uniform(0.3, 2) * RATE)
    while True:
        sound, parts = sounds[draw.integers(len(sounds))]
        if at + len(sound) > len(samples):
            return samples, spans
        samples[at : at + len(sound)] = sound
        spans += [(at + start, at + end) for start, end in parts]
        at += len(sound) + int(draw.choice([draw.uniform(0.3, 1), draw.uniform(1, 4)]) * RATE)


def scale(draw, samples):
    """At a loudness between a quiet and a loud recording's, in 16 bits."""
    loudness = 10 ** (draw.uniform(-38, -16) / 20)
    return np.clip(samples * loudness / root_mean_square(samples), -1, 1)


def espeak(half):
    sounds = []
    for language, sentences in SENTENCES.items():
        for index, sentence in enumerate(sentences):
            if HALVES[index % 2] != half:
                continue
            draw = generator(f"{language}{index}")
            for _ in range(3):
                voice = f"{language}+{draw.choice(VARIANTS)}"
                speed, pitch = str(draw.integers(120, 230)), str(draw.integers(15, 85))
                sounds.append(labelled(speak("-v", voice, "-s", speed, "-p", pitch, sentence)))
    return sounds


def recorded(half):
    sounds = []
    for folder in sorted((SOUNDS / "sounds").iterdir()):
        files = sorted(folder.glob("*.g722"))
        if folder.is_symlink() or not files:
            continue
        # Tones and breathing are among the prompts.
        files = [file for file in files if "tone" not in file.stem and "silence" not in file.stem]
        files = [file for file in files if file.stat().st_size > RATE // 2]
        files = [file for file in files if HALVES[zlib.crc32(file.stem.encode()) % 2] == half]
        for index in generator(half + folder.name).permutation(len(files))[:PROMPTS]:
            sounds.append(labelled(g722(files[index])))
    if not sounds:
        raise SystemExit(f"no prompts in {SOUNDS / 'sounds'}: install the Debian packages that --help names")
    return sounds


def labelled(samples):
    """A sentence of level 1, without the silence around it, and where in it speech is: by energy."""
    steps = samples[: len(samples) // STEP * STEP].reshape(-1, STEP)
    energy = np.sqrt((steps**2).mean(axis=1))
    loud = energy > np.quantile(energy, 0.95) * 10 ** (-35 / 20)
    spans = []
    for step in np.flatnonzero(loud):
        # A closed mouth inside of a word, or a breath between two, is no silence.
        if spans and step - spans[-1][1] <= 20:
            spans[-1][1] = step + 1
        else:
            spans.append([step, step + 1])
    spans = [(start * STEP, end * STEP) for start, end in spans if end - start >= 5]
    first, last = spans[0][0], spans[-1][1]
    speech = np.concatenate([samples[start:end] for start, end in spans])
    # Between the spans there is silence in fact, so that the label is true.
    clean = np.zeros(last - first)
    for start, end in spans:
        clean[start - first : end - first] = samples[start:end]
    return clean / root_mean_square(speech), [(int(start - first), int(end - first)) for start, end in spans]


def white(draw, _babble, _music):
    return draw.standard_normal(SECONDS * RATE)


def pink(draw, _babble, _music):
    return coloured(draw, -0.5)


def coloured(draw, exponent):
    spectrum = np.fft.rfft(draw.standard_normal(SECONDS * RATE))
    frequency = np.maximum(np.fft.rfftfreq(SECONDS * RATE, 1 / RATE), 20)
    return np.fft.irfft(spectrum * frequency**exponent)


def babble(draw, sounds, _music):
    """Eight people at once."""
    total = np.zeros(SECONDS * RATE)
    for _ in range(8):
        at = 0
        while at < len(total):
            sound = sounds[draw.integers(len(sounds))]
            part = sound[: len(total) - at]
            total[at : at + len(part)] += part
            at += len(sound)
    return total


def hum(draw, _babble, _music):
    """Mains and its harmonics over the rush of a fan."""
    time = np.arange(SECONDS * RATE) / RATE
    base = draw.choice([50, 60])
    tones = sum(np.sin(2 * np.pi * base * k * time + draw.uniform(0, 6)) / k for k in range(1, 12))
    return tones + 0.3 * coloured(draw, -0.8) / 0.02


def music(draw, _babble, tracks):
    track = tracks[draw.integers(len(tracks))]
    start = draw.integers(max(1, len(track) - SECONDS * RATE))
    return np.resize(track[start : start + SECONDS * RATE], SECONDS * RATE)


def silence(_draw, _babble, _music):
    return np.zeros(SECONDS * RATE)


def tones(draw, _babble, _music):
    """Sines, sweeps, two-tone dialling and beeps, half a second to three seconds each, with pauses."""
    total = np.zeros(SECONDS * RATE)
    at = 0
    while at < len(total):
        length = int(draw.uniform(0.5, 3) * RATE)
        time = np.arange(length) / RATE
        low, high = draw.uniform(100, 800), draw.uniform(800, 3000)
        kind = draw.integers(4)
        if kind == 0:
            sound = np.sin(2 * np.pi * low * time)
        elif kind == 1:
            sound = np.sin(2 * np.pi * (low + (high - low) * time / time[-1] / 2) * time)
        elif kind == 2:
            sound = np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time)
        else:
            sound = np.sin(2 * np.pi * high * time) * (time % 0.4 < 0.2)
        part = sound[: len(total) - at]
        total[at : at + len(part)] = part
        at += length + int(draw.uniform(0, 1) * RATE)
    return total


def chords(draw, _babble, _music):
    """Plucked chords with harmonics: what a simple synthesiser plays."""
    total = np.zeros(SECONDS * RATE)
    time = np.arange(RATE * 2) / RATE
    for beat in range(SECONDS * 2 - 4):
        for _ in range(3):
            note = 110 * 2 ** (draw.integers(0, 36) / 12)
            sound = sum(np.sin(2 * np.pi * note * k * time) / k**1.5 for k in range(1, 6) if note * k < 7000)
            total[beat * RATE // 2 :][: len(time)] += sound * np.exp(-time * 3)
    return total


def clicks(draw, _babble, _music):
    """Keys and knocks: short bursts of noise."""
    total = np.zeros(SECONDS * RATE)
    for _ in range(SECONDS * 4):
        length = int(draw.uniform(0.005, 0.05) * RATE)
        at = draw.integers(len(total) - length)
        total[at : at + length] += draw.standard_normal(length) * np.exp(-np.arange(length) / length * 5)
    return total + 1e-3 * draw.standard_normal(len(total))


NOISES = {"white": white, "pink": pink, "babble": babble, "hum": hum, "music": music}
ALONE = {"silence": silence, "tones": tones, "chords": chords, "clicks": clicks}


def generator(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def root_mean_square(samples):
    return np.sqrt(np.mean(samples**2))


def g722(file):
    return ffmpeg(["-f", "g722", "-i", str(file)])


def speak(*arguments):
    """What espeak-ng says. What it writes to a pipe has no length in its header."""
    sound = subprocess.run(["espeak-ng", "--stdout", *arguments], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(sound)) as file:
        rate = file.getframerate()
    return ffmpeg(["-f", "s16le", "-ar", str(rate), "-ac", "1", "-i", "pipe:0"], sound[44:])


def ffmpeg(source, data=None):
    target = ["-f", "s16le", "-ar", str(RATE), "-ac", "1", "-flags", "+bitexact", "pipe:1"]
    command = ["ffmpeg", "-v", "error", *source, *target]
    out = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    return np.frombuffer(out, np.int16) / 32768


def write(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())


if __name__ == "__main__":
    main()
