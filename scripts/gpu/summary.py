"""Gathers the figures of a run on a GPU. Standard library only.

usage: python summary.py RESULTS

Reads what scripts/gpu.sh has left in RESULTS (host.log, layers-*.json, load-*.json), writes all of it to
RESULTS/GPU-DATE.json and, as a table, to RESULTS/GPU-DATE.md, and prints that. Each figure that has a goal is
beside it: as a share of what the device was measured to do in the same run, where the goal is one.
"""

import json
import re
import sys
import time
from pathlib import Path

# Tokens of the text of a window of 30 s: ordinary speech has some 75 words in that time.
WINDOW_TOKENS = 100
WINDOW_SECONDS = 30


class Layers:
    """A network's stages."""

    def __init__(self, report):
        self.offline = report["offline"]
        self.stages = {stage["name"]: stage for stage in self.offline["stages"]}

    def seconds(self, name):
        return self.stages[name]["median"]

    def limit(self, name):
        return self.stages[name]["limit"]["seconds"]

    def share(self, name):
        return self.limit(name) / self.seconds(name)

    def text_limit(self, tokens):
        """What the products of a prompt take at least."""
        size = {"f32": 4}.get(self.offline["dtype"], 2)
        return 2 * self.offline["text_weight_bytes"] / size * tokens / self.offline["limits"]["flops"]


def window(layers):
    """Seconds that a window takes among 64, and what it would take at the device's limits."""
    encode = next(name for name in layers.stages if name.startswith("encode"))
    decode = "decode 64 sequences"
    return tuple(of(encode) + WINDOW_TOKENS * of(decode) / 64 for of in (layers.seconds, layers.limit))


def goals(reports):
    """What was measured beside what was aimed at: names, figures, goals, and whether they are reached."""

    def layers(name):
        return Layers(reports[f"layers-{name}"])

    def decode(sequences):
        name = f"decode {sequences} sequence{'s' * (sequences > 1)}"
        share = layers("llava-7b").share(name)
        return f"{share:.2f} of the limit", "0.85" if sequences == 1 else "0.75", share

    def resize():
        seconds = layers("llava-7b").seconds("resize and normalise 1920x1080")
        return f"{seconds * 1e3:.2f} ms", "0.30 ms at most", seconds <= 0.3e-3

    def first_token():
        network = layers("llava-7b")
        (level,) = reports["load-first-token"]["served"]["levels"]
        found = level["latency"]["first_token"]["p50"]
        prompt = level["tokens"]["prompt"] / level["requests"]["completed"]
        limit = network.limit("encode 336x336") + network.text_limit(prompt)
        times = found / limit
        return f"{found * 1e3:.1f} ms, {times:.2f} times the limit", "1.50 times at most", times <= 1.5

    def whisper(name, goal, share_goal):
        found, limit = window(layers(name))
        figure = f"{WINDOW_SECONDS / found:.0f} times real time, {limit / found:.2f} of the limit"
        wanted = f"{goal} times" + (f", {share_goal:.2f}" if share_goal else "")
        return figure, wanted, WINDOW_SECONDS / found >= goal and limit / found >= share_goal

    def shared(figure):
        text, wanted, share = figure
        return text, f"{wanted} at least", share >= float(wanted)

    rows = {
        "7B, decode, 1 sequence": lambda: shared(decode(1)),
        "7B, decode, 64 sequences": lambda: shared(decode(64)),
        "7B, first token, 336x336 and 40 tokens": first_token,
        "1920x1080 to features": resize,
        f"Whisper large, 64 windows of {WINDOW_TOKENS} tokens": lambda: whisper("whisper-large", 1300, 0.4),
        f"Whisper turbo, 64 windows of {WINDOW_TOKENS} tokens": lambda: whisper("whisper-turbo", 3800, 0),
    }
    for name, row in rows.items():
        try:
            figure, wanted, reached = row()
        except KeyError as missing:
            figure, wanted, reached = f"not measured: {missing.args[0]} is missing", "", None
        yield {"what": name, "measured": figure, "goal": wanted, "reached": reached}


def spread(of):
    """Half of the times are no longer than the first of these, and all but one in twenty than the second."""
    return f"{of['p50'] * 1e3:.1f}, {of['p95'] * 1e3:.1f} ms" if of else ""


def tables(host, found, reports):
    """All figures, for people."""
    yield f"# {host['gpu']}, {host['date']}"
    yield ""
    yield f"Commit `{host['commit']}`, driver {host['driver']}, {host['memory']}, {host['kernel']}."
    yield ""
    yield "| | measured | goal | |"
    yield "|---|---|---|---|"
    words = {True: "reached", False: "missed", None: ""}
    for goal in found:
        yield f"| {goal['what']} | {goal['measured']} | {goal['goal']} | {words[goal['reached']]} |"
    for name, report in reports.items():
        yield ""
        if "offline" in report:
            offline = report["offline"]
            limits = offline["limits"]
            yield f"## {name}: {offline['dtype']}, {offline['context']} tokens of context"
            yield ""
            yield f"{limits['bytes_per_second'] / 1e9:.0f} GB/s, {limits['flops'] / 1e12:.0f} TFLOP/s."
            yield ""
            yield "| | median | limit | share |"
            yield "|---|---|---|---|"
            for stage in offline["stages"]:
                limit, share = "", ""
                if stage["limit"]:
                    seconds = stage["limit"]["seconds"]
                    limit = f"{seconds * 1e3:.3f} ms ({stage['limit']['by']})"
                    share = f"{seconds / stage['median']:.2f}"
                yield f"| {stage['name']} | {stage['median'] * 1e3:.3f} ms | {limit} | {share} |"
        else:
            yield f"## {name}"
            yield ""
            yield "| | requests/s | tokens/s | first token p50, p95 | between tokens p50, p95 | failed |"
            yield "|---|---|---|---|---|---|"
            for level in report["served"]["levels"]:
                load, latency = level["load"], level["latency"]
                at = load.get("concurrency", load.get("rate"))
                first, between = (spread(latency[of]) for of in ("first_token", "inter_token"))
                throughput = level["throughput"]
                yield (
                    f"| {at} at once | {throughput['requests']:.2f} | {throughput['output_tokens']:.0f} "
                    f"| {first} | {between} | {level['requests']['failed']} |"
                )


def main():
    (results,) = map(Path, sys.argv[1:])
    commit, gpu, kernel = (results / "host.log").read_text().splitlines()[:3]
    name, driver, memory = (part.strip() for part in gpu.split(","))
    host = {
        "gpu": name,
        "driver": driver,
        "memory": memory,
        "kernel": kernel,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    files = sorted([*results.glob("layers-*.json"), *results.glob("load-*.json")])
    reports = {file.stem: json.loads(file.read_text()) for file in files}
    found = list(goals(reports))
    table = "\n".join(tables(host, found, reports)) + "\n"
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + "-" + host["date"]
    whole = {"host": host, "goals": found, "reports": reports}
    (results / f"{stem}.json").write_text(json.dumps(whole, indent=1) + "\n")
    (results / f"{stem}.md").write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()
