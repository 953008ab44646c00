"""What both trainings share: arguments, progress, the loop, its log and its state."""

import json
import multiprocessing
import time
from pathlib import Path

import torch
from optimiser import Average, Optimiser, rate
from safetensors.torch import load_file


def add_arguments(parser, muon_lr, adam_lr):
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--state", type=Path, help="folder of state.pt and log.jsonl (default: beside --out)")
    parser.add_argument("--steps", type=int, help="end after this many steps, which repeats a run")
    parser.add_argument("--minutes", type=float, help="end after this time instead")
    parser.add_argument("--init", type=Path, help="a state.pt or model.safetensors to go on from")
    parser.add_argument(
        "--done", type=float, default=0.0, help="share of the course to start at, with --init"
    )
    parser.add_argument("--muon-lr", type=float, default=muon_lr)
    parser.add_argument("--adam-lr", type=float, default=adam_lr)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


class Progress:
    """How much of the course is done, 0 to 1, as data workers see it too."""

    def __init__(self, options):
        if (options.steps is None) == (options.minutes is None):
            raise SystemExit("give either --steps or --minutes")
        self.options, self.began = options, time.time()
        self.shared = multiprocessing.Value("d", options.done)

    @property
    def done(self):
        return self.shared.value

    def update(self, step):
        o = self.options
        part = step / o.steps if o.steps else (time.time() - self.began) / 60 / o.minutes
        self.shared.value = min(1.0, o.done + (1 - o.done) * part)


def loader(rows, options):
    ahead = 4 if options.workers else None
    return torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=options.workers, prefetch_factor=ahead
    )


def begin_with(net, path):
    """Loads what fits: a tower goes on under another text network, a checkpoint without helpers."""
    own = net.state_dict()
    if path.suffix == ".safetensors":
        stored = load_file(path)
        state = {
            name: stored[net.stored_name(name)].float() for name in own if net.stored_name(name) in stored
        }
    else:
        state = torch.load(path, weights_only=True)
    fitting = {name: w for name, w in state.items() if name in own and own[name].shape == w.shape}
    net.load_state_dict(fitting, strict=False)
    print(f"begins with {len(fitting)} of {len(own)} tensors", flush=True)


class Run:
    """The loop. `net(batch, done)` gives the loss and figures to log; `save` writes the checkpoint."""

    LOG_EVERY, SAVE_EVERY = 50, 240  # steps, seconds

    def __init__(self, net, data, progress, options, save):
        torch.set_num_threads(options.threads)
        self.net, self.data, self.progress, self.options, self.save = net, data, progress, options, save
        self.state = options.state or options.out.with_name(options.out.name + "-state")
        self.state.mkdir(parents=True, exist_ok=True)
        if options.init:
            begin_with(net, options.init)
        net.to(options.device)
        print(f"{sum(p.numel() for p in net.model.parameters()) / 1e6:.2f} M parameters", flush=True)
        self.optimiser = Optimiser(net.named_parameters(), options.muon_lr, options.adam_lr)
        self.average = Average(net)

    def go(self):
        step, saved, waited, figures = 0, time.time(), 0.0, []
        batches = iter(self.data)
        while self.progress.done < 1:
            asked = time.time()
            batch = [self._move(x) for x in next(batches)]
            waited += time.time() - asked
            done = self.progress.done
            loss, shown = self.net(batch, done)
            loss.backward()
            self.optimiser.step(rate(step, done))
            self.average.update()
            step += 1
            self.progress.update(step)
            figures.append({k: v.item() for k, v in shown.items()})
            if step % self.LOG_EVERY == 0 or step == 10:
                self._log(step, figures, waited)
                figures = []
            if time.time() - saved > self.SAVE_EVERY:
                self._save()
                saved = time.time()
        self._save()

    def _move(self, x):
        return x.to(self.options.device, non_blocking=True) if torch.is_tensor(x) else x

    def _log(self, step, figures, waited):
        mean = {k: round(sum(f[k] for f in figures) / len(figures), 4) for k in figures[0]}
        minutes = (time.time() - self.progress.began) / 60
        line = {
            "step": step,
            "done": round(self.progress.done, 3),
            **mean,
            "minutes": round(minutes, 2),
            "cpu_minutes": round(time.process_time() / 60, 2),
            "waited": round(waited / 60, 2),
        }
        with (self.state / "log.jsonl").open("a") as log:
            print(json.dumps(line), file=log)
        print(json.dumps(line), flush=True)

    def _save(self):
        self.average.swap()
        torch.save(self.net.state_dict(), self.state / "new.pt")
        (self.state / "new.pt").replace(self.state / "state.pt")
        self.save()
        self.average.swap()
