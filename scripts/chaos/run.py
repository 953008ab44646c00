"""The run: clients, kills, rest, and what must hold then."""

import asyncio
import collections
import contextlib
import json
import os
import random
import subprocess

from chaos.batches import Batches
from chaos.clients import Client
from chaos.connection import Wrong, ask, request
from chaos.questions import Questions
from chaos.server import Failed, Server, now

# Seconds before a kill within which the audit log may lose lines of answered requests.
AUDIT_LAG = 10
MEBIBYTE = 1 << 20


class Chaos:
    """What is shared by all clients: the server, what happened, and what went wrong."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.questions = Questions()
        self.server = Server(options.percept, options.models, folder, not options.no_batches)
        self.random = random.Random(f"{options.seed} kills")
        self.over, self.over_at = asyncio.Event(), 0.0
        self.outcomes = collections.defaultdict(collections.Counter)
        self.batches, self.lines = collections.Counter(), collections.Counter()
        self.failures, self.failed = [], 0
        self.answers, self.compared = {}, 0
        # Of each answer that is written to the audit log, by its id: (seconds, port).
        self.ids = {}
        self.longest, self.kills, self.figures = 0.0, 0, {}

    def fail(self, message):
        self.failed += 1
        if len(self.failures) < 200:
            self.failures.append(f"{now() - self.began:.1f} s: {message}"[:600])

    def same(self, kind, body, answer):
        """Equal requests have equal answers, whoever else is there and whatever happened before."""
        key = kind + json.dumps(body, sort_keys=True)
        first = self.answers.setdefault(key, answer)
        self.compared += first is not answer
        if first != answer:
            raise Wrong(f"two answers to {key[:300]}: {first!r} and {answer!r}")

    def answered(self, port, headers):
        name = headers.get("x-request-id")
        if not name or name in self.ids:
            raise Wrong(f"an answer without an id of its own: {headers}")
        self.ids[name] = now(), port

    def not_audited(self, headers):
        del self.ids[headers["x-request-id"]]

    async def lull_over(self):
        """In 10 of 30 seconds nobody begins anything, so that batches have their turn."""
        while (now() - self.began) % 30 > 20 and not self.over.is_set():
            await asyncio.sleep(0.3)

    async def run(self):
        options = self.options
        self.began = now()
        await self.server.start()
        self.began = now()
        clients = [Client(self, number) for number in range(options.clients)]
        clients += (
            [] if options.no_batches else [Batches(self, number) for number in range(options.batch_clients)]
        )
        tasks = [asyncio.ensure_future(client.run()) for client in clients]
        watching = [asyncio.ensure_future(work) for work in (self.watch(), self.report())]
        try:
            await self.kill_again_and_again()
            self.over_at = now()
            self.over.set()
            await self.finish(tasks, options.deadline + options.rest)
            await self.rest()
        finally:
            for task in (*tasks, *watching):
                task.cancel()
            await asyncio.gather(*tasks, *watching, return_exceptions=True)
        self.check_end()

    async def kill_again_and_again(self):
        """The whole time of the run. The last quarter has no kills, to see memory in a long life."""
        end = self.began + self.options.seconds
        last = self.began + self.options.seconds * 0.75
        while True:
            wait = self.options.kill_every * self.random.uniform(0.5, 1.5)
            if now() + wait > last:
                await self.sleep(end - now())
                return
            await self.sleep(wait)
            await self.server.kill()
            self.kills += 1
            await asyncio.sleep(self.random.random() * 2)
            await self.server.start()

    async def sleep(self, seconds):
        """Sleeps, but not over the end of a server that nobody killed."""
        ended = asyncio.ensure_future(self.server.life.process.wait())
        done, _ = await asyncio.wait([ended], timeout=max(0, seconds))
        ended.cancel()
        if done:
            raise Failed(f"the server ended by itself, with {self.server.life.process.returncode}")

    async def finish(self, tasks, patience):
        """Waits for what clients have begun: each has a deadline, so all end."""
        done, pending = await asyncio.wait(tasks, timeout=patience + 30)
        for task in done:
            if task.exception():
                self.fail(f"a client broke off: {task.exception()!r}")
        if pending:
            self.fail(f"{len(pending)} clients did not end")

    async def watch(self):
        while True:
            await asyncio.sleep(1)
            if self.server.up.is_set():
                life = self.server.life
                with contextlib.suppress(OSError, StopIteration):
                    life.resident.append((now(), life.status("VmRSS:")))

    async def report(self):
        while True:
            await asyncio.sleep(5)
            life, count = self.server.life, collections.Counter()
            for outcomes in self.outcomes.values():
                for outcome, number in outcomes.items():
                    count[outcome.split(" ")[0]] += number
            resident = f"{life.resident[-1][1] / MEBIBYTE:.0f} MiB" if life.resident else "-"
            words = " ".join(f"{name} {number}" for name, number in sorted(count.items()))
            print(
                f"{now() - self.began:5.0f} s: life {len(self.server.lives)}, {resident}, {words}, "
                f"batches {sum(self.batches.values()) - self.batches['over a kill']}, failures {self.failed}",
                flush=True,
            )

    async def gauges(self):
        """Figures of /metrics that are of this moment, and how often engines began anew."""
        answer = await ask(self.server.life.port, request("GET", "/metrics"))
        lines = [line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if line[:1] != "#"]
        figures = {name: float(value) for name, value in lines}
        names = ("percept_requests_running", "percept_requests_waiting", "percept_cache_pages_used")
        busy = {name: value for name, value in figures.items() if name.startswith(names) and value}
        # The one that asks is one.
        if figures["percept_connections"] > 1:
            busy["percept_connections"] = figures["percept_connections"]
        return busy, {name: value for name, value in figures.items() if "restarts_total" in name and value}

    async def rest(self):
        """All clients have gone: everything goes back to where it was."""
        until, busy, restarts = now() + self.options.rest, True, {}
        if not self.options.no_batches:
            try:
                async with asyncio.timeout(self.options.rest):
                    await Batches(self, 0).clear()
            except (Wrong, TimeoutError) as error:
                self.fail(f"files and batches that are left cannot be deleted: {error!r}")
        while busy and now() < until:
            busy, restarts = await self.gauges()
            await asyncio.sleep(0.5)
        if busy:
            self.fail(f"it does not come to rest: {busy}")
        if restarts:
            self.fail(f"an engine failed and began anew: {restarts}")
        # What ends with a connection ends a moment after it.
        await asyncio.sleep(2)
        life, opened = self.server.life, self.server.life.open_files()
        first = self.server.lives[0].descriptors
        self.figures |= {"descriptors": {"at the start": first, "at rest": len(opened)}}
        if len(opened) > first + 4:
            self.fail(f"{first} descriptors were open, now there are {len(opened)}: {opened}")
        self.check_memory(life)
        status = await self.server.stop()
        if status != 0:
            self.fail(f"it ended with {status} when it was asked to stop")

    def check_memory(self, life):
        """Memory of the last life: no slope after its first third, and at rest what it was then."""
        loaded = [(at, size) for at, size in life.resident if at < self.over_at]
        loaded = [(at, size) for at, size in loaded if at > life.ready + (self.over_at - life.ready) / 3]
        if not loaded:
            return
        at_rest = life.status("VmRSS:")
        warm = sorted(size for _, size in loaded[: len(loaded) // 4 + 1])[len(loaded) // 8]
        seconds = loaded[-1][0] - loaded[0][0]
        self.figures["memory of the last life, MiB"] = {
            "seconds under load": round(self.over_at - life.ready),
            "after a third": round(warm / MEBIBYTE, 1),
            "at the end of load": round(loaded[-1][1] / MEBIBYTE, 1),
            "at rest": round(at_rest / MEBIBYTE, 1),
            "peak": round(life.status("VmHWM:") / MEBIBYTE, 1),
            "slope, a minute": round(slope(loaded) * 60 / MEBIBYTE, 2),
        }
        peaks = [max(size for _, size in life.resident) for life in self.server.lives if life.resident]
        self.figures["largest of each life, MiB"] = [round(size / MEBIBYTE, 1) for size in peaks]
        # Shorter ones are about what allocators keep, not about leaks.
        if seconds < 60:
            return
        if slope(loaded) * 60 > self.options.slope * MEBIBYTE:
            self.fail(f"memory grows under load: {self.figures['memory of the last life, MiB']}")
        if at_rest > warm + self.options.growth * MEBIBYTE:
            self.fail(f"memory does not come back: {self.figures['memory of the last life, MiB']}")

    def check_end(self):
        """What is on the disk when the server has ended."""
        if left := os.listdir(self.server.temporary):
            self.fail(f"temporary files are left: {left[:20]}")
        kept = self.server.files / "files"
        if kept.exists() and (left := os.listdir(kept)):
            self.fail(f"{len(left)} files are left that no list has: {left[:5]}")
        log = self.server.log.read_text(errors="replace")
        for line in log.splitlines():
            if "panic" in line.lower():
                self.fail(f"the log: {line}")
        self.figures["errors in the log"] = sum(" ERROR " in line for line in log.splitlines())
        command = [self.options.percept, "audit", "verify", "--audit", str(self.server.audit)]
        verified = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if verified.returncode:
            self.fail(f"the audit log: {verified.stdout}{verified.stderr}")
        self.check_audit()

    def check_audit(self):
        """Each answer is in the audit log once, but for the last moments before a kill."""
        written = collections.Counter()
        for file in sorted(self.server.audit.glob("*.jsonl")):
            with open(file) as lines:
                for line in map(json.loads, lines):
                    if line.get("event") == "request":
                        written[line["id"]] += 1
        self.figures["lines of the audit log"] = written.total()
        if twice := [name for name, count in written.items() if count > 1]:
            self.fail(f"{len(twice)} requests are twice in the audit log: {twice[:3]}")
        last, lost = self.server.life.port, 0
        kills = {life.port: life.ended for life in self.server.lives}
        for name, (at, port) in self.ids.items():
            if name not in written:
                lost += 1
                if port == last or at < kills[port] - AUDIT_LAG:
                    self.fail(f"{name} was answered and is not in the audit log")
        self.figures["answers whose line of the audit log was lost in a kill"] = lost


def slope(points):
    """Least squares: how much y grows with x."""
    middle = sum(x for x, _ in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * y for x, y in points) / spread if spread else 0.0
