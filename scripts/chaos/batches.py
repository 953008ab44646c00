"""Clients of batches, which follow each to its end over every kill."""

import asyncio
import collections
import json
import random

from chaos.connection import Cut, Wrong, ask, form, post, request
from chaos.questions import chat_text
from chaos.server import now

ENDED = {"completed", "failed", "expired", "cancelled"}


class Batches:
    """A client of batches: makes one after the other and follows each to its end, over every kill."""

    def __init__(self, chaos, number):
        self.chaos, self.number = chaos, number
        self.random = random.Random(f"{chaos.options.seed} batches {number}")

    async def run(self):
        count = 0
        while not self.chaos.over.is_set():
            count += 1
            name = f"b{self.number}-{count}"
            try:
                work = self.messages(name) if self.random.random() < 0.25 else self.batch(name)
                await work
            except Wrong as wrong:
                self.chaos.fail(f"batch {name}: {wrong}")

    async def ask(self, data):
        """Asks until there is an answer that is the server's word; none where an outage came between."""
        chaos = self.chaos
        while True:
            await chaos.server.up.wait()
            began = now()
            try:
                answer = await ask(chaos.server.life.port, data, chaos.options.deadline)
            except Cut as cut:
                if not chaos.server.outage(began):
                    raise Wrong(f"cut though nobody killed the server: {cut}") from None
                return None
            if answer.status == 429 or (answer.status >= 500 and chaos.server.outage(began)):
                await asyncio.sleep(1)
                continue
            return answer

    async def surely(self, data, allowed=(200,)):
        """Asks again over outages: only for what may be asked twice."""
        while True:
            answer = await self.ask(data)
            if answer is None:
                continue
            if answer.status not in allowed:
                raise Wrong(f"{data.split(b' HTTP')[0]!r}: {answer.status} {answer.body[:300]!r}")
            return answer

    def lines(self, name):
        """Lines of a batch: (custom_id, body, whether it is refused)."""
        lines = []
        for index in range(self.random.randrange(3, 24)):
            questions, choice = self.chaos.questions, self.random.random()
            body = questions.picture(self.random) if choice < 0.1 else questions.chat(self.random)
            if choice > 0.95:
                body |= {"model": "gone"}
            elif choice > 0.9:
                body |= {"temperature": 9}
            lines.append((f"{name}-{index}", body, choice > 0.9))
        return lines

    async def upload(self, content):
        data = form("/v1/files", {"purpose": "batch"}, [("file", "lines.jsonl", content)])
        # A file whose answer was lost stays behind; it is found at the end.
        return (await self.surely(data)).json()["id"]

    async def create(self, name, file):
        body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        while True:
            answer = await self.ask(post("/v1/batches", body | {"metadata": {"name": name}}))
            if answer is not None:
                if answer.status != 200:
                    raise Wrong(f"{answer.status} {answer.body[:300]!r}")
                return answer.json()["id"]
            # Was it created before the server was killed?
            listed = (await self.surely(request("GET", "/v1/batches?limit=100"))).json()["data"]
            found = [batch["id"] for batch in listed if (batch["metadata"] or {}).get("name") == name]
            if found:
                return found[0]

    async def batch(self, name):
        lines = self.lines(name)
        bodies = [
            {"custom_id": line, "method": "POST", "url": "/v1/chat/completions", "body": body}
            for line, body, _ in lines
        ]
        file = await self.upload("\n".join(map(json.dumps, bodies)).encode())
        began, path = now(), f"/v1/batches/{await self.create(name, file)}"
        cancelled = self.random.random() < 0.15
        if cancelled:
            await asyncio.sleep(self.random.random() * 10)
            await self.surely(request("POST", f"{path}/cancel", b"{}"), (200, 409))
        batch = await self.until(path, lambda batch: batch["status"] in ENDED)
        if batch["status"] != "completed" and not (cancelled and batch["status"] == "cancelled"):
            raise Wrong(f"it ended as {batch['status']}: {batch}")
        outcomes = collections.defaultdict(list)
        counts = collections.Counter()
        for kind in ("output_file_id", "error_file_id"):
            if batch[kind]:
                content = await self.surely(request("GET", f"/v1/files/{batch[kind]}/content"))
                for line in map(json.loads, content.body.splitlines()):
                    outcomes[line["custom_id"]].append(line)
        self.compare(lines, outcomes, cancelled, counts)
        expected = {"total": len(lines), "completed": counts["completed"], "failed": counts["failed"]}
        found = batch["request_counts"]
        # Where a batch was cancelled, the documents do not say whether what was given up counts as failed.
        if found != expected and not (batch["status"] == "cancelled" and found["total"] == len(lines)):
            raise Wrong(f"it counts {found}, there are {expected}")
        if self.chaos.server.outage(began):
            self.chaos.batches["over a kill"] += 1
        self.chaos.batches[batch["status"]] += 1
        for kept in (file, batch["output_file_id"], batch["error_file_id"]):
            if kept:
                await self.surely(request("DELETE", f"/v1/files/{kept}"), (200, 404))

    def compare(self, lines, outcomes, cancelled, counts):
        """Each line has one outcome, which is the right one."""
        if unknown := outcomes.keys() - {line for line, _, _ in lines}:
            raise Wrong(f"lines that nobody sent: {unknown}")
        for line, body, refused in lines:
            if len(outcomes[line]) != 1:
                raise Wrong(f"line {line} has {len(outcomes[line])} outcomes")
            (outcome,) = outcomes[line]
            response, error = outcome.get("response"), outcome.get("error")
            if cancelled and error and error["code"] == "batch_cancelled":
                self.chaos.lines["cancelled"] += 1
                continue
            status = response and response["status_code"]
            if refused:
                if status not in (400, 404) or not response["body"]["error"]["message"]:
                    raise Wrong(f"line {line} is wrong and was answered {outcome}")
                self.chaos.lines["refused"] += 1
                counts["failed"] += 1
                continue
            if status != 200:
                raise Wrong(f"line {line} was not answered: {outcome}")
            self.chaos.lines["answered"] += 1
            counts["completed"] += 1
            self.chaos.same("chat", body, chat_text(response["body"]))

    async def until(self, path, ended):
        while True:
            batch = (await self.surely(request("GET", path))).json()
            if ended(batch):
                return batch
            if self.chaos.over.is_set() and now() > self.chaos.over_at + self.chaos.options.rest:
                raise Wrong(f"no end within {self.chaos.options.rest} s of rest: {batch}")
            await asyncio.sleep(1)

    async def messages(self, name):
        """The same for clients of the Anthropic API."""
        lines = self.lines(name)
        params = {
            line: {key: body[key] for key in ("model", "messages", "max_tokens")}
            | {"temperature": body["temperature"]}
            for line, body, _ in lines
            if isinstance(body["messages"][0]["content"], str)
        }
        # Its fields have no seed: only what is certain is compared.
        refused = {line for line, _, wrong in lines if wrong}
        version = {"anthropic_version": "2023-06-01"}
        requests = [{"custom_id": line, "params": body} for line, body in params.items()]
        if not requests:
            return
        answer = await self.ask(post("/v1/messages/batches", {"requests": requests}, **version))
        if answer is None:
            # It may be there or not; the end of the run looks after it.
            return
        if answer.status != 200:
            raise Wrong(f"{answer.status} {answer.body[:300]!r}")
        began, path = now(), f"/v1/messages/batches/{answer.json()['id']}"
        await self.until(path, lambda batch: batch["processing_status"] == "ended")
        results = (await self.surely(request("GET", f"{path}/results", **version))).body.splitlines()
        results = [json.loads(line) for line in results]
        if sorted(result["custom_id"] for result in results) != sorted(params):
            raise Wrong(f"not one outcome for each of {len(params)} lines: {results}")
        for result in results:
            line, kind = result["custom_id"], result["result"]["type"]
            if kind != ("errored" if line in refused else "succeeded"):
                raise Wrong(f"line {line}: {result}")
            self.chaos.lines["refused" if line in refused else "answered"] += 1
            if kind == "succeeded" and params[line]["temperature"] == 0:
                text = "".join(part["text"] for part in result["result"]["message"]["content"])
                self.chaos.same("messages", params[line], text)
        if self.chaos.server.outage(began):
            self.chaos.batches["over a kill"] += 1
        self.chaos.batches["messages ended"] += 1
        await self.surely(request("DELETE", path, **version), (200, 404))

    async def clear(self):
        """Deletes what is left of requests whose answers were lost in a kill."""
        version = {"anthropic_version": "2023-06-01"}
        listed = (await self.surely(request("GET", "/v1/messages/batches?limit=100", **version))).json()[
            "data"
        ]
        for batch in listed:
            path = f"/v1/messages/batches/{batch['id']}"
            await self.until(path, lambda batch: batch["processing_status"] == "ended")
            await self.surely(request("DELETE", path, **version))
        while files := (await self.surely(request("GET", "/v1/files?limit=100"))).json()["data"]:
            for file in files:
                await self.surely(request("DELETE", f"/v1/files/{file['id']}"))
