"""Compares a server's answers with the reference's, for checkpoints of the fixtures. Standard library only.

usage: python goldens.py PERCEPT FIXTURES [option of percept serve ...]

Starts PERCEPT with each checkpoint on a free port, asks the conversations of its goldens at temperature 0
one by one and all at once, and compares texts. In f32 they must be equal; in bf16 (--dtype bf16) some may
differ, so that only the share is told. What is answered alone must be answered in company: the same text,
and log-probabilities that are no further apart than TOLERANCE. The exit code is 1 where a text differs in
f32, an answer depends on its company, or a request fails.
"""

import base64
import json
import math
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHAT = [
    "llava",
    "llava_next",
    "phi3_v",
    "internvl2",
    "pixtral",
    "mllama",
    "qwen2_5_vl",
    "qwen2_vl",
    "smolvlm",
]
# Between log-probabilities of one answer, alone and in company. Sums have one order in any company, so
# that numbers should be the same to the bit; what is printed says whether they are.
TOLERANCE = {True: 1e-4, False: 5e-2}


def serve(program, model, options):
    """A server and its base URL."""
    command = [
        program,
        "serve",
        str(model),
        "--port",
        "0",
        "--log",
        "warn",
        "--max-sequences",
        "32",
        *options,
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    if "http://" not in line:
        server.wait(timeout=60)
        sys.exit(f"{' '.join(command)} did not start: {line}")
    return server, line.strip().rsplit(" ", 1)[1]


def ask(url, body):
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        choice = json.load(response)["choices"][0]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return choice["message"]["content"], logprobs


def body(model, case, inputs):
    """The request that a case stands for."""
    pictures = iter(case.get("images", []))
    messages = json.loads(json.dumps(case["messages"]))
    if isinstance(case.get("system"), str):
        messages.insert(0, {"role": "system", "content": case["system"]})
    for message in messages:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            if part["type"] == "image":
                file = base64.b64encode((inputs / next(pictures)).read_bytes()).decode()
                part.update(type="image_url", image_url={"url": f"data:image/png;base64,{file}"})
    tokens = max(len(case["greedy_tokens"]), 1)
    return {
        "model": model,
        "messages": messages,
        "temperature": 0,
        "repetition_penalty": 1,
        "logprobs": True,
        "max_tokens": tokens,
    }


def cases(manifest, checkpoint):
    """Conversations whose treatment is the checkpoint's own; others force another one."""
    own_crops = json.loads((checkpoint / "preprocessor_config.json").read_text()).get("num_crops")
    for case in manifest["cases"]:
        forced = (
            "@" in case["name"]
            or case.get("num_crops", own_crops) != own_crops
            or case.get("rope", {}).get("mode", "auto") != "auto"
            or case.get("preprocess", "").startswith("pad")
        )
        if case.get("greedy_text") and not forced:
            yield case


def check(program, fixtures, name, options):
    """How many texts are equal, how many there are, and how far numbers differ in company."""
    manifest = json.loads((fixtures / "goldens" / name / "manifest.json").read_text())
    wanted = list(cases(manifest, fixtures / name))
    server, url = serve(program, fixtures / name, options)
    try:
        bodies = [body(name, case, fixtures / "inputs") for case in wanted]
        alone = [ask(url, b) for b in bodies]
        with ThreadPoolExecutor(32) as pool:
            together = list(pool.map(lambda b: ask(url, b), bodies * 4))
    finally:
        server.terminate()
        server.wait(timeout=60)
    equal, apart = 0, 0.0
    for at, case in enumerate(wanted):
        expected = case["greedy_text"]
        found = [alone[at], *together[at :: len(wanted)]]
        texts = {text for text, _ in found}
        equal += texts == {expected}
        if texts != {expected}:
            print(f"  {name} {case['name']}: {sorted(texts)!r}, not {expected!r}")
        if len(texts) > 1:
            print(f"  {name} {case['name']}: not the same alone and in company")
            apart = math.inf
            continue
        for _, logprobs in found[1:]:
            pairs = zip(alone[at][1], logprobs, strict=True)
            apart = max([apart, *(abs(one - other) for one, other in pairs)])
    return equal, len(wanted), apart


def main():
    program, fixtures, *options = sys.argv[1:]
    exact = "bf16" not in options
    failed = False
    for name in CHAT:
        equal, total, apart = check(program, Path(fixtures), name, options)
        print(
            f"{name}: {equal} of {total} conversations as the reference, in company {apart:.1e} apart",
            flush=True,
        )
        failed |= exact and (equal < total or total == 0)
        failed |= apart > TOLERANCE[exact]
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
