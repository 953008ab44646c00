"""Trains the demo picture model from scratch and saves it as an ordinary LLaVA checkpoint.

    python train_pictures.py see --out percept-demo-vlm --minutes 35
    python train_pictures.py answer --init percept-demo-vlm-state/state.pt --out percept-demo-vlm --minutes 55

`see` trains the vision tower alone, on labels of its patches: what lies there, in which colour, which of how
many it is. `answer` trains projector and text on questions about what the tower, now fixed, sees; two heads
of one text layer are taught to look at the things that an answer is about. The label heads are not part of
the saved model.
"""

import argparse
import functools
import operator
import random

import llava_checkpoint as L
import numpy as np
import torch
import torch.nn.functional as F
from pictures import LABELS, PATCHES, SHAPES, Masks, Scene
from questions import Asker
from training import Progress, Run, add_arguments, loader

TURNS = 6  # questions about one picture in one row
LOOKING = 1, 2  # the text layer whose first so many heads are guided
ALONE = 0.75  # share of the rows whose turns do not see each other
NO_PICTURE = 0.04  # share of the rows without one


class Pictures(torch.utils.data.IterableDataset):
    """Endless batches of (pictures, labels)."""

    def __init__(self, batch, seed):
        self.batch, self.seed = batch, seed

    def __iter__(self):
        self.begin()
        while True:
            scenes = [Scene(self.rng, self.masks) for _ in range(self.batch)]
            pictures = np.stack([s.draw() for s in scenes])
            labels = np.stack([s.labels() for s in scenes])
            yield torch.from_numpy(pictures), torch.from_numpy(labels)

    def begin(self):
        info = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        self.rng = random.Random(self.seed * 1000 + (info.id if info else 0))
        self.masks = Masks()


class Rows(Pictures):
    """Endless batches of (pictures, tokens, guide).

    tokens: [4, rows, tokens], ids, targets, turns (0 is what all turns see) and positions.
    guide: [rows, tokens, PATCHES], where a token's guided heads are to look; nowhere is all false.
    """

    def __init__(self, tok, batch, seed):
        super().__init__(batch, seed)
        self.tok, self.cache = tok, {}
        self.bos, self.eos, self.image = (tok.token_to_id(t) for t in (L.BOS, L.EOS, L.IMAGE))

    def __iter__(self):
        self.begin()
        self.asker = Asker(self.rng, added=True)
        while True:
            rows = [self.row() for _ in range(self.batch)]
            width = -(-max(len(r[1]) for r in rows) // 8) * 8
            pack = np.zeros((4, self.batch, width), np.int64)
            pack[1], pack[2] = -100, -1
            guide = np.zeros((self.batch, width, PATCHES), bool)
            for i, (_, tokens, looks) in enumerate(rows):
                pack[:, i, : len(tokens)] = np.array(tokens).T
                guide[i, : len(looks)] = looks
            pictures = np.stack([picture for picture, _, _ in rows])
            yield torch.from_numpy(pictures), torch.from_numpy(pack), torch.from_numpy(guide)

    def row(self):
        scene = Scene(self.rng, self.masks)
        if self.rng.random() < NO_PICTURE:
            turns = [self.asker.without_picture() for _ in range(2 * TURNS)]
            return scene.draw(), *self.tokens(turns, np.zeros(PATCHES), shown=False, alone=True)
        turns, alone = self.asker.questions(scene, TURNS), self.rng.random() < ALONE
        return scene.draw(), *self.tokens(turns, scene.owners(), shown=True, alone=alone)

    def tokens(self, turns, owners, shown, alone):
        """[(id, target, turn, position)], [patches to look at], as the chat template puts turns together."""
        lead = [
            self.bos,
            *self.encode("USER:"),
            *(self.encode(" ") + [self.image] * PATCHES if shown else []),
        ]
        tokens = [(t, -100, 0, i) for i, t in enumerate(lead)]
        nowhere = np.zeros(PATCHES, bool)
        looks = [nowhere] * len(lead)
        for i, turn in enumerate(turns):
            first = alone or i == 0
            gap = "\n" if shown and first else " "
            asked = ([] if first else self.encode("USER:")) + self.encode(f"{gap}{turn.text} ASSISTANT:")
            answer = [*self.encode(" " + turn.answer), self.eos]
            ids, targets = asked + answer, [-100] * (len(asked) - 1) + answer + [-100]
            at = len(lead) if alone else len(tokens)
            tokens += [
                (t, target, i + 1 if alone else 0, at + k)
                for k, (t, target) in enumerate(zip(ids, targets, strict=True))
            ]
            named = [nowhere] * (len(asked) - 1)
            for at_token, thing in self.named(turn, len(asked)):
                named[at_token] = owners == thing + 1
            looks += named
            looks += [
                np.isin(owners, np.array(look) + 1) if look else nowhere for look in self.look(turn, answer)
            ]
            looks.append(nowhere)
        return tokens, looks

    def named(self, turn, length):
        """[(token of the question, thing)] for the last token of each name: by it, the thing is found."""
        if not turn.names:
            return []
        behind = self.tok.encode(f" {turn.text} ASSISTANT:", add_special_tokens=False)
        first = length - len(behind.ids)
        found = []
        for name, thing in turn.names:
            end = 1 + turn.text.lower().index(name) + len(name)
            token = next(i for i, (_, to) in enumerate(behind.offsets) if to >= end)
            found.append((first + token, thing))
        return found

    def look(self, turn, answer):
        """For each token of the answer, the things to look at while it is being found; none for the end."""
        if not turn.look or isinstance(turn.look[0], int):
            return [turn.look] * (len(answer) - 1) + [[]]
        if turn.kind == "read":
            return [functools.reduce(operator.iadd, turn.look, [])] * (len(answer) - 1) + [[]]
        # a description names its things one after another, each with its article first
        found, item = [], 0
        for token in answer[:-1]:
            found.append(turn.look[min(item, len(turn.look) - 1)])
            item += self.tok.id_to_token(token) in (",", "\u0120and")
        return [*found, []]

    def encode(self, text):
        if text not in self.cache:
            self.cache[text] = self.tok.encode(text, add_special_tokens=False).ids
        return list(self.cache[text])


class Net(torch.nn.Module):
    def __init__(self, model, phase):
        super().__init__()
        self.model, self.phase = model, phase
        width = model.config.vision_config.hidden_size
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, n) for name, n in LABELS.items()})
        tower = {id(p) for p in [*model.model.vision_tower.parameters(), *self.heads.parameters()]}
        for p in self.parameters():
            p.requires_grad_((id(p) in tower) == (phase == "see"))
        model.model.vision_tower.embeddings.patch_embedding.requires_grad_(False)
        model.model.language_model.layers[LOOKING[0]].self_attn.keep_weights = True

    @staticmethod
    def stored_name(name):
        return L.checkpoint_name(name.removeprefix("model."))

    def forward(self, batch, done):
        if self.phase == "see":
            return self.see(*batch)
        return self.answer(*batch, done)

    def patches(self, pictures):
        """[pictures, PATCHES, width]: the last layer's, without the class token, as LLaVA takes them."""
        pixels = L.normalise(pictures).to(self.heads["kind"].weight.device)
        out = self.model.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
        return out.hidden_states[-1][:, 1:]

    def see(self, pictures, labels):
        seen, total, shown = self.patches(pictures), 0, {}
        for (name, head), label in zip(self.heads.items(), labels.unbind(1), strict=True):
            logits = head(seen).flatten(0, 1)
            label = label.flatten()
            total = total + F.cross_entropy(logits, label, ignore_index=-100)
            right = (logits.argmax(-1) == label).float()
            if name == "kind":
                shown["background"] = right[label == 0].mean()
                shown["shapes"] = right[(label > 0) & (label <= len(SHAPES))].mean()
                shown["characters"] = right[label > len(SHAPES)].mean()
            else:
                shown[name] = right[label > 0].mean()
        return total, {"loss": total, **shown}

    def answer(self, pictures, pack, guide, done):
        inner = self.model.model
        ids, targets, turn, position = pack.unbind(0)
        at = ids == self.model.config.image_token_id
        has = at.any(1)
        with torch.no_grad():
            seen = self.patches(pictures[has.cpu()])
        x = inner.language_model.embed_tokens(ids)
        x = x.masked_scatter(at[..., None], inner.multi_modal_projector(seen))
        hidden = inner.language_model(
            inputs_embeds=x, attention_mask=turn_mask(turn), position_ids=position, use_cache=False
        ).last_hidden_state
        keep = targets != -100
        logits = self.model.lm_head(hidden[keep])
        loss = F.cross_entropy(logits, targets[keep])
        right = (logits.argmax(-1) == targets[keep]).float().mean()
        guided = self.guide(guide, int(at[has][0].long().argmax()))
        return loss + 0.2 * (1 - done) * guided, {"loss": loss, "right": right, "guide": guided}

    def guide(self, guide, first):
        """How much of the guided heads' attention lies outside the things to look at."""
        layer, heads = LOOKING
        weights = self.model.model.language_model.layers[layer].self_attn.weights
        look = weights[:, :heads, :, first : first + PATCHES].permute(0, 2, 1, 3)
        rows = guide.any(-1)
        return -((look[rows] * guide[rows][:, None]).sum(-1) + 1e-4).log().mean()


def turn_mask(turn):
    """A token sees what comes before it in its own turn, and what all turns see: [rows, 1, tokens,
    tokens]."""
    n = turn.shape[1]
    same = (turn[:, :, None] == turn[:, None, :]) | (turn[:, None, :] == 0)
    allowed = same & torch.ones(n, n, dtype=torch.bool, device=turn.device).tril()
    allowed |= torch.eye(n, dtype=torch.bool, device=turn.device)
    return torch.zeros(allowed.shape, device=turn.device).masked_fill_(~allowed, -1e4)[:, None]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("phase", choices=["see", "answer"])
    add_arguments(parser, muon_lr=0.02, adam_lr=2e-3)
    parser.add_argument("--batch", type=int, help="pictures in a batch (96 to see, 16 to answer)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tok = L.build_tokenizer()
    net = Net(L.build_model(tok), options.phase)
    if options.phase == "see":
        rng, masks = random.Random(options.seed), Masks()
        examples = np.stack([Scene(rng, masks).draw() for _ in range(600)])
        L.prepare_tower(net.model, torch.from_numpy(examples))
        rows = Pictures(options.batch or 96, options.seed)
    else:
        rows = Rows(tok, options.batch or 16, options.seed + 50)
    Run(
        net, loader(rows, options), Progress(options), options, lambda: L.save(net.model, tok, options.out)
    ).go()


if __name__ == "__main__":
    main()
