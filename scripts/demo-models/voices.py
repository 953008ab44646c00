"""espeak-ng's voices, in process through its C library, which says when every word and every phoneme is
spoken."""

import ctypes
import dataclasses

import numpy as np
from sentences import sentence

RATE = 16000

# gmw/en is standard British English: the library knows no voice by the name en-gb.
ACCENTS = ["en-us", "en-us", "gmw/en", "gmw/en", "en-gb-scotland", "en-gb-x-rp", "en-029"]
HELD_ACCENTS = ["en-us", "gmw/en", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
VARIANTS = [
    *"f1 f2 f3 f5 m1 m2 m3 m4 m6 m7 Andy Annie Alicia Denis Diogo Gene Hugo Jacky Lee Mario Michael".split(),
    *"aunty belinda benjamin david ed edward john max pablo paul robert sandro shelby".split(),
    *"travis victor zac".split(),
    "",
]
HELD_VARIANTS = "f4 m5 Andrea rob linda Mike steph adam".split()
PHONEMES = (
    "0 3 3: ; @ @L A: A@ D E I N O: O@ O S T U V VR a aI aU b d dZ e@ eI f g h i i: i@ j k l m n o@ oU p r s "
    "t tS u: v w z"
).split()


def phoneme_class(name):
    """0 is silence; variants of a phoneme are one class."""
    if name.startswith("_"):
        return 0
    while name:
        if name in PHONEMES:
            return 1 + PHONEMES.index(name)
        name = name[:-1]
    return 0


@dataclasses.dataclass
class Utterance:
    """One sentence by one voice. Times in seconds, from the start of `sound` (float32, 16 kHz)."""

    text: str
    sound: np.ndarray
    words: list[float]  # where each word begins
    phonemes: list[tuple[float, int]]  # where each begins, and its class
    begin: float
    end: float


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    class Id(ctypes.Union):
        _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", Id),
    ]


class Espeak:
    SYNCHRONOUS, PHONEME_EVENTS, WORD, PHONEME = 2, 1, 1, 7
    SPEED, PITCH, RANGE = 1, 3, 4

    def __init__(self):
        self.library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, None, self.PHONEME_EVENTS)
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
        )
        self.callback = kind(self._collect)
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, count, events):
        if count > 0:
            self.sound.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        i = 0
        while events[i].type:
            event = events[i]
            if event.type == self.WORD:
                self.words.append(event.audio_position / 1000)
            elif event.type == self.PHONEME:
                name = event.id.string.decode("utf-8", "replace")
                self.phonemes.append((event.audio_position / 1000, phoneme_class(name)))
            i += 1
        return 0

    def say(self, text, voice, speed, pitch, spread):
        """Sound at the library's rate, starts of words, starts and classes of phonemes."""
        self.sound, self.words, self.phonemes = [], [], []
        if self.library.espeak_SetVoiceByName(voice.encode()):  # it would go on with the voice before
            raise ValueError(f"no voice {voice}")
        for key, value in ((self.SPEED, speed), (self.PITCH, pitch), (self.RANGE, spread)):
            self.library.espeak_SetParameter(key, int(value), 0)
        raw = text.lower().encode() + b"\0"
        self.library.espeak_Synth(raw, len(raw), 0, 1, 0, 1, None, None)
        sound = np.concatenate(self.sound) if self.sound else np.zeros(1, np.float32)
        return sound, self.words, self.phonemes


def resample(x, factor):
    """A low pass, then straight lines between samples: good enough for speech."""
    if factor < 1:
        size = -(-len(x) // 2520) * 2520  # of small factors, for the FFT
        spectrum = np.fft.rfft(x, size)
        spectrum[int(len(spectrum) * factor * 0.96) :] = 0
        x = np.fft.irfft(spectrum, size)[: len(x)]
    return np.interp(np.arange(int(len(x) * factor)) / factor, np.arange(len(x)), x).astype(np.float32)


def choose_voice(rng, held=False):
    variant = rng.choice(HELD_VARIANTS if held else VARIANTS)
    accent = rng.choice(HELD_ACCENTS if held else ACCENTS)
    return {
        "voice": f"{accent}+{variant}" if variant else accent,
        "speed": rng.uniform(135, 215),
        "pitch": rng.uniform(30, 70),
        "spread": rng.uniform(25, 70),
        "warp": rng.uniform(0.93, 1.07),
    }


_espeak = None


def speak(text, voice, speed, pitch, spread, warp):
    """`warp` moves pitch and formants together."""
    global _espeak
    _espeak = _espeak or Espeak()
    x, words, phonemes = _espeak.say(text, voice, speed, pitch, spread)
    x = resample(x, RATE / _espeak.rate * warp)
    loud = np.nonzero(np.abs(x) > 0.01)[0]
    begin, end = (loud[0] / RATE, (loud[-1] + 1) / RATE) if len(loud) else (0.0, len(x) / RATE)
    return Utterance(
        text,
        x[: int(end * RATE) + 400],
        [w * warp for w in words],
        [(t * warp, p) for t, p in phonemes],
        begin,
        end,
    )


class Voices:
    """Utterances of training, each used about `uses` times in a row of random draws before a new one takes
    its place."""

    def __init__(self, rng, size=3000, uses=6):
        self.rng, self.size, self.uses, self.kept = rng, size, uses, []

    def draw(self):
        if len(self.kept) < 200 or self.rng.random() < 1 / self.uses:
            new = speak(sentence(self.rng), **choose_voice(self.rng))
            if len(self.kept) < self.size:
                self.kept.append(new)
            else:
                self.kept[self.rng.randrange(self.size)] = new
            return new
        return self.rng.choice(self.kept)
