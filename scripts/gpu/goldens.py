"""Compares a server's answers with the reference's, for checkpoints of the fixtures. Standard library only.

usage: python goldens.py PERCEPT FIXTURES [option of percept serve ...]

Starts PERCEPT with each checkpoint on a free port, asks the conversations of its goldens at temperature 0
one by one and all at once, and compares texts. In f32 they must be equal; in bf16 (--dtype bf16) some may
differ, so that only the share is told. The exit code is 1 where a text differs in f32, or a request fails.
"""

import base64
import json
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
        return json.load(response)["choices"][0]["message"]["content"]


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
    """How many texts are equal, and how many there are."""
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
    equal = 0
    for at, case in enumerate(wanted):
        expected = case["greedy_text"]
        found = [alone[at], *together[at :: len(wanted)]]
        same = all(text == expected for text in found)
        equal += same
        if not same:
            print(f"  {name} {case['name']}: {sorted(set(found))!r}, not {expected!r}")
        if len(set(found)) > 1:
            print(f"  {name} {case['name']}: not the same alone and in company")
    return equal, len(wanted)


def main():
    program, fixtures, *options = sys.argv[1:]
    exact = "bf16" not in options
    failed = False
    for name in CHAT:
        equal, total = check(program, Path(fixtures), name, options)
        print(f"{name}: {equal} of {total} conversations as the reference", flush=True)
        failed |= exact and (equal < total or total == 0)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
