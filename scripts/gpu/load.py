"""Serves a model of random weights on the GPU and measures it with `percept bench`. Standard library only.

usage: python load.py PERCEPT MODEL RESULTS
"""

import subprocess
import sys

from goldens import serve

LEVELS = ["--concurrency", "1,8,32,64", "--seconds", "20", "--max-tokens", "128", "--ignore-eos"]
LOADS = {
    "text": ["--prompt-tokens", "512"],
    "pictures": ["--pictures", "336x336,1024x768,1920x1080", "--prompt-tokens", "40"],
}


def main():
    program, model, results = sys.argv[1:]
    options = ["--dummy-weights", "--device", "cuda", "--dtype", "bf16", "--max-sequences", "64"]
    server, url = serve(program, model, options)
    try:
        for name, load in LOADS.items():
            output = ["--json", f"{results}/load-{name}.json", "--html", f"{results}/load-{name}.html"]
            subprocess.run([program, "bench", "--url", url, *load, *LEVELS, *output], check=True)
    finally:
        server.terminate()
        server.wait(timeout=60)


if __name__ == "__main__":
    main()
