"""Chaos: many clients, good and bad, on a server that is killed again and again; then what must hold.

    PERCEPT=target/debug/percept python3 scripts/chaos.py --clients 300 --seconds 600 --json summary.json

It starts `percept serve` itself, on a free port of this machine, with folders of its own, and kills (SIGKILL)
and restarts it at random moments. Clients chat, stream, show pictures and play recordings; they leave in the
middle, read and write slowly, and send what is too large or broken. Batches are made all the time, and
followed over every kill. Then it waits for rest and says what does not hold, with exit status 1:
docs/reliability.md lists what must.
"""

import argparse
import asyncio
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos.connection import Cut
from chaos.questions import FIXTURES
from chaos.run import Chaos
from chaos.server import Failed, now


def summary(chaos, seconds):
    life = [(life.ready - life.began) for life in chaos.server.lives if life.ready]
    return {
        "passed": not chaos.failed,
        "failures": chaos.failed,
        "first failures": chaos.failures,
        "command": shlex.join(sys.argv),
        "percept": subprocess.run(
            [chaos.options.percept, "--version"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "seed": chaos.options.seed,
        "clients": chaos.options.clients,
        "seconds": round(seconds),
        "kills": chaos.kills,
        "seconds to be ready again": [round(each, 1) for each in life],
        "requests": sum(outcomes.total() for outcomes in chaos.outcomes.values()),
        "longest, seconds": round(chaos.longest, 1),
        "outcomes": {
            name: dict(sorted(outcomes.items())) for name, outcomes in sorted(chaos.outcomes.items())
        },
        "batches": dict(chaos.batches),
        "lines of batches": dict(chaos.lines),
        "answers compared with equal requests": chaos.compared,
        **chaos.figures,
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = os.environ.get("PERCEPT", "percept")
    parser.add_argument("--percept", default=default, help="the program [default: $PERCEPT]")
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument(
        "--batch-clients", type=int, default=3, help="of them besides, each with a batch at a time"
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--seed", type=int, default=0, help="what clients do; when the server does it is not fixed"
    )
    parser.add_argument(
        "--kill-every", type=float, default=60, help="seconds, from half to one and a half of it"
    )
    parser.add_argument(
        "--think", type=float, default=2, help="seconds between requests of a client, on average"
    )
    parser.add_argument("--deadline", type=float, default=150, help="seconds after which a request hangs")
    parser.add_argument(
        "--rest", type=float, default=180, help="seconds until everything must have come to rest"
    )
    parser.add_argument("--slope", type=float, default=8, help="MiB a minute that memory may grow under load")
    parser.add_argument("--growth", type=float, default=48, help="MiB that memory may have grown at rest")
    parser.add_argument("--no-batches", action="store_true")
    parser.add_argument(
        "--folder", type=Path, help="for the server's log and folders, kept [default: one that is removed]"
    )
    parser.add_argument("--json", type=Path, help="a file for the summary")
    options = parser.parse_args()
    options.models = [f"{name}={FIXTURES / name}" for name in ("llava", "whisper")]
    return options


async def main(options):
    folder = options.folder or Path(tempfile.mkdtemp(prefix="percept-chaos-"))
    chaos = Chaos(options, folder)
    running = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        # Every wait in it has an end; this is for what nobody thought of.
        async with asyncio.timeout(options.seconds + 2 * options.deadline + 3 * options.rest + 300):
            await chaos.run()
    except (Failed, Cut, OSError, TimeoutError) as error:
        chaos.fail(f"the run broke off: {error!r}")
    finally:
        chaos.server.end_by_force()
    result = summary(chaos, now() - chaos.began)
    print(json.dumps({name: value for name, value in result.items() if name != "first failures"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    for failure in chaos.failures:
        print(f"FAILED {failure}")
    if chaos.failed:
        print(f"{chaos.failed} failures; the server's log and folders are in {folder}")
    elif not options.folder:
        shutil.rmtree(folder)
    return int(bool(chaos.failed))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(arguments())))
