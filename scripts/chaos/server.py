"""The server under test: starts, ends by force, and what /proc tells of it."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import time

from chaos.connection import Cut, ask, request

BODY_LIMIT = 2_000_000
# What a server is run with beside its models: limits that a run of some minutes reaches.
OPTIONS = (
    "--port 0 --offline --no-ui --max-sequences 16 --max-queue 256 --max-context 512 "
    "--head-seconds 10 --idle-seconds 15 "
    f"--drain-seconds 30 --max-body {BODY_LIMIT} --max-audio-bytes {BODY_LIMIT} --log info"
).split()
now = time.monotonic


class Failed(Exception):
    """The run cannot go on."""


@dataclasses.dataclass
class Life:
    """A process of the server, from its start to its end."""

    process: asyncio.subprocess.Process
    port: int
    began: float
    ready: float = 0.0
    ended: float = float("inf")
    descriptors: int = 0
    # (seconds, bytes)
    resident: list = dataclasses.field(default_factory=list)

    def status(self, name):
        """A figure of /proc/PID/status in bytes."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def open_files(self):
        """What the process has open, by name."""
        folder, names = f"/proc/{self.process.pid}/fd", []
        for entry in os.listdir(folder):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"{folder}/{entry}"))
        return sorted(names)


class Server:
    """The server under test, through its lives."""

    def __init__(self, program, models, folder, batches):
        self.temporary, self.log = folder / "tmp", folder / "log"
        self.audit, self.files = folder / "audit", folder / "files"
        self.temporary.mkdir(parents=True)
        self.program = program
        self.command = [program, "serve", *models, *OPTIONS, "--audit", str(self.audit)]
        if batches:
            self.command += ["--files", str(self.files), "--batch-requests", "4"]
        self.lives = []
        self.up = asyncio.Event()
        # From a kill to the next life's readiness.
        self.outages = []

    @property
    def life(self):
        return self.lives[-1]

    async def start(self, patience=120):
        """Starts a process and waits until it is ready."""
        began = now()
        with open(self.log, "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"TMPDIR": str(self.temporary)},
            )
        try:
            line = await asyncio.wait_for(process.stdout.readline(), patience)
            if b"http://127.0.0.1:" not in line:
                raise Failed(f"the server did not start: {line!r}, see {self.log}")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        port = int(line.split(b"http://127.0.0.1:")[1].split(b"/")[0])
        self.lives.append(Life(process, port, began))
        until = began + patience
        while True:
            with contextlib.suppress(Cut, OSError):
                answer = await ask(self.life.port, request("GET", "/ready"), 30)
                if answer.status == 200:
                    break
            if now() > until or process.returncode is not None:
                raise Failed(f"the server is not ready, see {self.log}")
            await asyncio.sleep(0.1)
        self.life.ready = now()
        self.life.descriptors = len(self.life.open_files())
        if self.outages and self.outages[-1][1] == float("inf"):
            self.outages[-1][1] = now()
        self.up.set()

    async def kill(self):
        self.up.clear()
        self.outages.append([now(), float("inf")])
        self.life.process.kill()
        await self.life.process.wait()
        self.life.ended = now()

    async def stop(self):
        """Ends it as a supervisor does; its exit status."""
        self.life.process.terminate()
        status = await asyncio.wait_for(self.life.process.wait(), 90)
        self.life.ended = now()
        return status

    def outage(self, began):
        """Whether there was a kill, or no server, since then."""
        # Answers of a new life may reach a client a moment after it is ready.
        return any(end + 2 >= began for _, end in self.outages)

    def end_by_force(self):
        if self.lives and self.life.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.life.process.kill()
