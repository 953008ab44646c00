"""Serves a model of random weights on the GPU and measures it with `percept bench`. Standard library only.

usage: python load.py PERCEPT MODEL RESULTS
"""

import subprocess
import sys

from goldens import serve

LEVELS = ["--concurrency", "1,8,32,64", "--seconds", "20", "--max-tokens", "128", "--ignore-eos"]
LOADS = {
    # Alone, as nobody else waits: one picture of the tower's own size.
    "first-token": [
        *["--pictures", "336x336", "--prompt-tokens", "40"],
        *["--concurrency", "1", "--requests", "100", "--max-tokens", "2", "--ignore-eos"],
    ],
    "text": ["--prompt-tokens", "512", *LEVELS],
    "pictures": ["--pictures", "336x336,1024x768,1920x1080", "--prompt-tokens", "40", *LEVELS],
}


def main():
    program, model, results = sys.argv[1:]
    options = ["--dummy-weights", "--device", "cuda", "--dtype", "bf16", "--max-sequences", "64"]
    server, url = serve(program, model, options)
    try:
        for name, load in LOADS.items():
            output = ["--json", f"{results}/load-{name}.json", "--html", f"{results}/load-{name}.html"]
            subprocess.run([program, "bench", "--url", url, *load, *output], check=True)
    finally:
        server.terminate()
        server.wait(timeout=60)


if __name__ == "__main__":
    main()
