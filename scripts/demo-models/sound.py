"""Noises, rooms, channels, and Whisper's log-mel features."""

import random

import numpy as np
import torch
from sentences import sentence
from voices import RATE, choose_voice, speak

HOP, FFT, MELS = 160, 400, 80
SECONDS = 20  # of every noise in the bank


def coloured(g, n, power):
    f = np.fft.rfftfreq(n, 1 / RATE)
    f[0] = f[1]
    return np.fft.irfft((g.normal(size=len(f)) + 1j * g.normal(size=len(f))) * f ** (-power / 2), n)


def hum(g, n, base):
    t = np.arange(n) / RATE
    tones = (np.sin(2 * np.pi * base * k * t + g.uniform(0, 6)) * g.uniform(0.1, 1) / k for k in range(1, 8))
    return sum(tones) + 0.1 * coloured(g, n, 1)


def crackle(g, n):
    x = 1e-3 * g.normal(size=n)
    for at in g.integers(0, n - 2000, 120):
        x[at : at + 800] += (
            g.normal(size=800) * np.exp(-np.arange(800) / g.uniform(40, 300)) * g.uniform(0.2, 1)
        )
    return x


def swell(g, n):
    return coloured(g, n, 1.5) * (1 + 0.8 * np.sin(2 * np.pi * g.uniform(0.3, 6) * np.arange(n) / RATE))


def babble(g, n, rng, held):
    x = np.zeros(n)
    for _ in range(60):
        voice = speak(sentence(rng, held), **choose_voice(rng, held)).sound
        at = g.integers(0, n - len(voice))
        x[at : at + len(voice)] += voice
    return x


class Noises:
    """A bank of noises of unit power: `steady` ones, and `babble` of many voices."""

    def __init__(self, seed, held=False):
        g, rng, n = np.random.default_rng(seed), random.Random(seed), RATE * SECONDS
        steady = [coloured(g, n, power) for power in (0, 0, 0.5, 1, 1, 1.5, 2)]
        steady += [hum(g, n, base) for base in (50, 60, 120, 440)]
        steady += [crackle(g, n) for _ in range(3)] + [swell(g, n) for _ in range(3)]
        self.steady = [unit(x) for x in steady]
        self.babble = [unit(babble(g, n, rng, held)) for _ in range(2)]

    def cut(self, rng, n, bank):
        noise = rng.choice(bank)
        at = rng.randrange(0, len(noise) - n)
        return noise[at : at + n]


def unit(x):
    return (x / (np.sqrt(np.mean(x**2)) + 1e-9)).astype(np.float32)


def power_of_speech(x):
    loud = np.abs(x) > 0.01
    return float(np.mean(x[loud] ** 2)) if loud.any() else 0.0


def add_noise(x, noise, decibels):
    """Noise so far below the loud parts of x."""
    return x + noise * np.sqrt(power_of_speech(x) / 10 ** (decibels / 10)).astype(np.float32)


def room(rng, g, x):
    n = int(RATE * rng.uniform(0.05, 0.3))
    tail = g.normal(size=n) * np.exp(-6.9 * np.arange(n) / n) * rng.uniform(0.05, 0.25)
    tail[0] = 1
    size = 1 << int(np.ceil(np.log2(len(x) + n)))
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(tail, size), size)[: len(x)].astype(np.float32)


def telephone(rng, x):
    spectrum = np.fft.rfft(x)
    spectrum[int(len(spectrum) * rng.uniform(3400, 5000) / 8000) :] *= 0.01
    return np.fft.irfft(spectrum, len(x))


def mu_law(x):
    y = np.clip(x, -1, 1)
    y = np.round(np.sign(y) * np.log1p(255 * np.abs(y)) / np.log(256) * 127) / 127
    return np.sign(y) * np.expm1(np.abs(y) * np.log(256)) / 255


def spoil(rng, x, noises):
    """x as a microphone might have it: in a room, with noise, through a channel, at any level. Often
    clean."""
    g = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.2:
        x = room(rng, g, x)
    chance = rng.random()
    if chance < 0.6:
        bank = noises.babble if chance < 0.08 else noises.steady
        x = add_noise(x, noises.cut(rng, len(x), bank), rng.uniform(4, 35))
    elif chance < 0.8:
        x = x + g.standard_normal(len(x), np.float32) * 10 ** rng.uniform(-5, -3)
    chance = rng.random()
    if chance < 0.1:
        x = telephone(rng, x)
    elif chance < 0.2:
        x = mu_law(x)
    return np.clip(x * 10 ** (rng.uniform(-18, 6) / 20), -1, 1).astype(np.float32)


def mel_filters():
    """Slaney's, as Whisper uses them: [mels, frequencies]."""

    def mel(f):
        return np.where(f < 1000, f * 3 / 200, 15 + np.log(np.maximum(f, 1) / 1000) / (np.log(6.4) / 27))

    def hertz(m):
        return np.where(m < 15, m * 200 / 3, 1000 * np.exp((np.log(6.4) / 27) * (m - 15)))

    edges = hertz(np.linspace(0, mel(np.array(8000.0)), MELS + 2))
    f = np.fft.rfftfreq(FFT, 1 / RATE)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(weights.astype(np.float32))


FILTERS, HANN = mel_filters(), torch.hann_window(FFT)


def log_mel(x):
    """Whisper's features of x, [mels, samples / 160]; the caller pads x to the window."""
    padded = torch.from_numpy(np.pad(x, FFT // 2, mode="reflect"))
    frames = padded.unfold(0, FFT, HOP)[:-1] * HANN
    spectrum = torch.fft.rfft(frames)
    power = spectrum.real**2 + spectrum.imag**2
    mel = (FILTERS @ power.T).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8) + 4) / 4
