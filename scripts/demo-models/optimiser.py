"""Muon for the hidden matrices, AdamW for all else, and the learning rate's course.

Muon (https://kellerjordan.github.io/posts/muon/) moves a matrix along the nearest orthogonal matrix of its
momentum. PyTorch has one, which computes in bfloat16: slow on a processor without instructions for it. This
one keeps float32 and treats all matrices of one shape at once.
"""

import collections

import torch


def orthogonal(m, steps=5):
    """Newton-Schulz's quintic iteration; m: [matrices, rows, columns] with rows <= columns."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m / (m.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    def __init__(self, matrices, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = collections.defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - group["momentum"])
                by_shape[p.shape].append((p, p.grad.lerp(kept, group["momentum"])))
            for pairs in by_shape.values():
                self._move(pairs, group)

    @staticmethod
    def _move(pairs, group):
        stacked = torch.stack([g.flatten(1) for _, g in pairs])
        tall = stacked.shape[1] > stacked.shape[2]
        moves = orthogonal(stacked.mT if tall else stacked)
        moves = moves.mT if tall else moves
        scale = max(1, moves.shape[1] / moves.shape[2]) ** 0.5
        for (p, _), move in zip(pairs, moves, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(move.view_as(p), alpha=-group["lr"] * scale)


class Optimiser:
    """Both, behind one step. `rate` is the share of the full learning rate."""

    def __init__(self, named, muon_lr, adam_lr):
        named = [(n, p) for n, p in named if p.requires_grad]
        hidden = [p for n, p in named if p.ndim > 1 and is_hidden(n)]
        chosen = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts = [(torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0, fused=True), adam_lr)]
        if hidden:
            self.parts.append((Muon(hidden, muon_lr), muon_lr))
        self.everything = hidden + rest

    def step(self, rate):
        torch.nn.utils.clip_grad_norm_(self.everything, 1.0)
        for optimiser, lr in self.parts:
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)


def is_hidden(name):
    """Neither an embedding nor the first or last layer of a network: those are AdamW's."""
    return "layers." in name or "projector" in name or "conv2" in name


def rate(step, done, warm_up=40):
    """Up within `warm_up` steps, then straight down to nothing at done = 1."""
    return min(1.0, (step + 1) / warm_up) * min(1.0, 1.25 * (1 - done))


class Average:
    """A moving average of the weights, which is what gets saved: good at any time, not only at the end."""

    def __init__(self, model, keep=0.995):
        self.live = list(model.state_dict().values())
        self.kept = [w.detach().clone() for w in self.live]
        self.keep, self.seen = keep, 0

    @torch.no_grad()
    def update(self):
        self.seen += 1
        torch._foreach_lerp_(self.kept, self.live, 1 - min(self.keep, self.seen / (self.seen + 9)))

    @torch.no_grad()
    def swap(self):
        """Puts the average in the model's place; once more puts the weights back."""
        for live, kept in zip(self.live, self.kept, strict=True):
            live_copy = live.clone()
            live.copy_(kept)
            kept.copy_(live_copy)
