#!/usr/bin/env bash
# Runs all benchmarks and writes their figures, with machine and commit, to benches/results.
#
#   scripts/bench.sh            all
#   scripts/bench.sh linear     one of: alignment decode frontend linear mel pictures scheduler sound window
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

need_compilers
need_python
[ $# -gt 0 ] || set -- alignment decode frontend linear mel pictures scheduler sound window
[ -z "$(git status --porcelain)" ] || fail 'commit first: figures belong to a commit'
rm -rf "$CARGO_TARGET_DIR/criterion"
for bench in "$@"; do
    cargo bench --locked --bench "$bench"
done
python3 - "$CARGO_TARGET_DIR/criterion" "$*" <<'END'
import json, pathlib, subprocess, sys

folder, benches = pathlib.Path(sys.argv[1]), sys.argv[2]
commit = subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], text=True).strip()
cpu = pathlib.Path("/proc/cpuinfo").read_text()
said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpu.splitlines())}
cpu_name = said.get("model name") or said.get("CPU part", "unknown")
features = sorted(set(said.get("flags", "").split()) & {"avx2", "fma", "avx512f", "avx512_vnni"})
figures = {}
for file in sorted(folder.rglob("new/estimates.json")):
    name = json.loads((file.parent / "benchmark.json").read_text())["full_id"]
    estimates = json.loads(file.read_text())
    mean = estimates.get("slope") or estimates["mean"]
    interval = mean["confidence_interval"]
    figures[name] = {
        "ns": round(mean["point_estimate"], 1),
        "ns_95": [round(interval["lower_bound"], 1), round(interval["upper_bound"], 1)],
    }
result = {
    "command": f"scripts/bench.sh {benches}",
    "commit": commit,
    "cpu": cpu_name,
    "cpus": cpu.count("processor\t"),
    "features": features,
    "rustc": subprocess.check_output(["rustc", "--version"], text=True).strip(),
    "figures": figures,
}
out = pathlib.Path("benches/results") / f"cpu-{commit}.json"
out.parent.mkdir(exist_ok=True)
out.write_text(json.dumps(result, indent=1) + "\n")
print(f"{len(figures)} figures in {out}")
END
