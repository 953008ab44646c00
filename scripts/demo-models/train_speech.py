"""Trains the demo speech model from scratch and saves it as an ordinary Whisper checkpoint.

    python train_speech.py --out percept-demo-whisper --minutes 100

Short cuts (one sentence, at any place in the window) teach quickly; later most batches are full windows:
several sentences, silence, both kinds of padding. Beside the tokens there are two helpers, which fade out:
the phoneme spoken at each encoder position, and where two heads of the last decoder layer look for each word.
The phoneme head is not saved; those two heads are the checkpoint's `alignment_heads`.
"""

import argparse
import random

import numpy as np
import sound
import torch
import torch.nn.functional as F
import whisper_checkpoint as W
from sentences import sentence
from training import Progress, Run, add_arguments, loader
from voices import PHONEMES, RATE, Voices

SHORT, MIDDLE = (2.4, 3.6), 6.0  # seconds of cuts: one sentence, several


class Clips(torch.utils.data.IterableDataset):
    """Endless batches of (features, phoneme classes, tokens, shift), each of about `seconds` of sound."""

    def __init__(self, tok, seconds, seed, progress):
        self.tok, self.seconds, self.seed, self.progress = tok, seconds, seed, progress
        self.at = {t: tok.token_to_id(t) for t in W.SPECIAL}
        self.time0 = tok.token_to_id(W.TIMES[0])
        self.cache = {}

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        self.rng = random.Random(self.seed * 1000 + (info.id if info else 0))
        self.voices = Voices(self.rng)
        self.noises = sound.Noises(self.seed)
        while True:
            yield self.batch()

    def batch(self):
        rng = self.rng
        seconds = choose_seconds(rng, self.progress.done)
        full = seconds == W.WINDOW
        # a row of a full window has more to attend to
        size = max(1, int(self.seconds / seconds / (1.3 if full else 1)))
        shift = 0 if full or rng.random() < 0.5 else rng.randrange(W.POSITIONS - int(seconds * 50) + 1)
        rows = [self.window() if full else self.cut(seconds) for _ in range(size)]
        packed = [self.tokens(said, shift) for _, _, said in rows]
        width = max(len(ids) for ids, _, _ in packed)
        pack = np.zeros((4, size, width), np.int64)
        pack[1] = -100
        for i, (ids, targets, spans) in enumerate(packed):
            pack[0, i, : len(ids)], pack[1, i, : len(ids)] = ids, targets
            pack[2:, i, : len(ids)] = np.array(spans).T
        mels, frames = (
            torch.stack([m for m, _, _ in rows]),
            torch.from_numpy(np.stack([f for _, f, _ in rows])),
        )
        return mels, frames, torch.from_numpy(pack), shift

    def cut(self, seconds):
        """One sentence, or as many as there is room for, or none."""
        rng, cut = self.rng, Cut(seconds)
        if rng.random() < 0.06:
            return sound.log_mel(self.quiet(len(cut.sound))), cut.frames, []
        if seconds == MIDDLE:
            self.fill(cut, seconds)
        while not cut.said:
            utterance = self.voices.draw()
            if utterance.end < seconds - 0.1:
                slack = seconds - 0.06 - utterance.end
                cut.add(
                    utterance,
                    rng.uniform(0, min(0.3, slack) if rng.random() < 0.7 else slack),
                    rng.uniform(0.4, 1),
                )
        return sound.log_mel(sound.spoil(rng, cut.sound, self.noises)), cut.frames, cut.said

    def window(self):
        """A whole window: sentences up to some time, then silence, the zeros of padded features, or noise to
        its end."""
        rng, cut = self.rng, Cut(W.WINDOW)
        last = rng.uniform(0.3, W.WINDOW / 2)
        if rng.random() < 0.12:
            x = self.quiet(len(cut.sound))
        else:
            self.fill(cut, 0 if rng.random() < 0.4 else rng.uniform(3, W.WINDOW * 1.2))
            last = cut.said[-1][3]
            x = sound.spoil(rng, cut.sound, self.noises)
        last += rng.uniform(0.05, 0.6)
        padding = rng.random()
        if padding < 0.6:
            x[int(last * RATE) :] = 0  # the recording ends here
        mel = sound.log_mel(x)
        if padding < 0.3:
            mel[:, int(last * 100) + 1 :] = 0  # openai-whisper pads features, not sound
        return mel, cut.frames, cut.said

    def fill(self, cut, stop):
        """Sentences up to the time `stop`, one at least."""
        rng, room = self.rng, len(cut.sound) / RATE - 0.06
        at, level = rng.uniform(0, 0.5), rng.uniform(0.4, 1)
        while True:
            utterance = self.voices.draw()
            if cut.said and at + utterance.end > min(stop, room):
                return
            if at + utterance.end < room:
                cut.add(utterance, at, level * rng.uniform(0.7, 1))
                at += utterance.end + rng.uniform(0.15, rng.choice([0.5, 1.6]))

    def quiet(self, n):
        rng = self.rng
        chance = rng.random()
        if chance < 0.15:
            return np.zeros(n, np.float32)
        if chance < 0.3:
            return np.random.default_rng(rng.getrandbits(32)).standard_normal(
                n, np.float32
            ) * 10 ** rng.uniform(-5, -3)
        return self.noises.cut(rng, n, self.noises.steady) * np.float32(10 ** (rng.uniform(-60, -12) / 20))

    def tokens(self, said, shift):
        """(ids, targets, spans) for the decoder; a span is where a token is spoken, in positions of the
        cut."""
        rng, at = self.rng, self.at
        ids, targets, spans = [], [], []

        def push(token, target=None, span=(0, 0)):
            ids.append(token)
            targets.append(token if target is None else target)
            spans.append(span)

        def stamp(seconds):
            return self.time0 + round(min(max(seconds, 0), W.WINDOW) * 50)

        timed, offset = rng.random() < 0.6, shift * 0.02
        if rng.random() < 0.3:
            for token in [at[W.PREVIOUS], *self.previous(timed)]:
                push(token, -100)
        push(at[W.START], -100)
        push(at[W.ENGLISH], at[W.ENGLISH] if said else at[W.SILENCE])
        push(at[W.TRANSLATE] if rng.random() < 0.06 else at[W.TRANSCRIBE], -100)
        if not timed:
            push(at[W.UNTIMED], -100)
        for k, (text, starts, begin, end) in enumerate(said):
            if timed:
                first = min(begin + offset, 1.0) if k == 0 else begin + offset
                push(stamp(first), span=(int(begin * 50) - 3, int(begin * 50) + 6))
            for word, span in zip(text.split(), word_spans(text, starts, begin, end), strict=True):
                for token in self.encode(" " + word):
                    push(token, span=span)
            if timed:
                push(stamp(end + offset), span=(int(end * 50) - 6, int(end * 50) + 6))
        if timed and not said:
            push(self.time0)
        # What ends a text may not look anywhere: words are placed by how tokens share a recording.
        last = int(said[-1][3] * 50) if said else None
        push(at[W.END], span=(last - 3, last + 8) if said else (0, 0))
        # a target belongs to the token before it
        return ids[:-1], targets[1:], spans[1:]

    def previous(self, timed):
        """What was said before: with times where there are times, as window after window hands them on."""
        rng, tokens, at = self.rng, [], 0.0
        for _ in range(rng.choice([1, 1, 2, 4, 8, 12])):
            ids = self.encode(" " + sentence(rng))
            if timed:
                end = at + rng.uniform(0.8, 4)
                if end > W.WINDOW:
                    at, end = 0.0, end - at
                ids = [self.time0 + round(at * 50), *ids, self.time0 + round(end * 50)]
                at = end + rng.uniform(0, 1)
                at = 0.0 if at >= W.WINDOW else at
            tokens += ids
        return tokens[-(W.TARGETS // 2 - 1) :]

    def encode(self, text):
        if text not in self.cache:
            self.cache[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.cache[text]


class Cut:
    """A stretch of sound with what is said in it."""

    def __init__(self, seconds):
        self.sound = np.zeros(int(seconds * RATE), np.float32)
        self.frames = np.zeros(int(seconds * 50), np.int64)
        self.said = []  # text, starts of words, begin, end

    def add(self, utterance, at, level):
        first = int(at * RATE)
        part = utterance.sound[: len(self.sound) - first]
        self.sound[first : first + len(part)] += part * np.float32(level)
        ends = [t for t, _ in utterance.phonemes[1:]] + [utterance.end]
        for (start, phoneme), end in zip(utterance.phonemes, ends, strict=True):
            self.frames[int((at + start) * 50) : int((at + min(end, utterance.end)) * 50)] = phoneme
        words = [at + w for w in utterance.words]
        self.said.append((utterance.text, words, at + utterance.begin, at + utterance.end))


def word_spans(text, starts, begin, end):
    words = len(text.split())
    if len(starts) != words:  # some voices join words
        return [(int(begin * 50) - 1, int(end * 50) + 2)] * words
    return [(int(a * 50) - 1, int(b * 50) + 2) for a, b in zip(starts, [*starts[1:], end], strict=True)]


def choose_seconds(rng, done):
    """First what teaches quickly, later what will be asked for."""
    short, middle, full = (1, 0, 0) if done < 0.25 else (0.3, 0.4, 0.3) if done < 0.6 else (0.15, 0.35, 0.5)
    return rng.choices([*SHORT, MIDDLE, W.WINDOW], [short / 2, short / 2, middle, full])[0]


class Net(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.phoneme = torch.nn.Linear(model.config.d_model, 1 + len(PHONEMES))
        model.model.encoder.embed_positions.weight.requires_grad_(False)
        model.model.decoder.layers[-1].encoder_attn.keep_weights = True

    @staticmethod
    def stored_name(name):
        return name.removeprefix("model.")

    def hear(self, mel, shift):
        e = self.model.model.encoder
        x = F.gelu(e.conv2(F.gelu(e.conv1(mel)))).transpose(1, 2)
        x = x + e.embed_positions.weight[shift : shift + x.shape[1]]
        for layer in e.layers:
            x = only(layer(x, None))
        return e.layer_norm(x)

    def forward(self, batch, done):
        mel, frames, pack, shift = batch
        heard = self.hear(mel, int(shift))
        phoneme = F.cross_entropy(self.phoneme(heard).flatten(0, 1), frames.flatten())
        ids, targets, first, after = pack.unbind(0)
        d, n = self.model.model.decoder, ids.shape[1]
        mask = torch.full((n, n), -1e4, device=ids.device).triu(1)[None, None]
        x = d.embed_tokens(ids) + d.embed_positions.weight[:n]
        for layer in d.layers:
            x = only(layer(x, mask, encoder_hidden_states=heard, use_cache=False))
        x = d.layer_norm(x)
        keep = targets != -100
        logits = F.linear(x[keep], d.embed_tokens.weight)
        tokens = F.cross_entropy(logits, targets[keep])
        right = (logits.argmax(-1) == targets[keep]).float().mean()
        guide = self.guide(first, after, heard.shape[1])
        total = tokens + (1 - 0.7 * done) * phoneme + 0.6 * (1 - 0.8 * done) * guide
        return total, {"tokens": tokens, "right": right, "phoneme": phoneme, "guide": guide}

    def guide(self, first, after, positions):
        """How much of the alignment heads' attention lies outside what a token's span is."""
        look = self.model.model.decoder.layers[-1].encoder_attn.weights[:, : W.ALIGNMENT_HEADS]
        where = torch.arange(positions, device=first.device)
        inside = (where >= first[..., None]) & (where < after[..., None])
        mass = (look * inside[:, None]).sum(-1)
        known = (after > 0)[:, None].expand_as(mass)
        return -(mass[known] + 1e-4).log().mean() if known.any() else mass.sum() * 0


def only(output):
    return output[0] if isinstance(output, tuple) else output


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, muon_lr=0.02, adam_lr=2e-3)
    parser.add_argument("--seconds", type=float, default=110, help="sound in a batch")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tok = W.build_tokenizer()
    net = Net(W.build_model(tok))
    progress = Progress(options)
    data = loader(Clips(tok, options.seconds, options.seed, progress), options)
    Run(net, data, progress, options, lambda: W.save(net.model, tok, options.out)).go()


if __name__ == "__main__":
    main()
