#!/usr/bin/env bash
# Proves and measures percept on a GPU: built where Rust is, run where the GPU is.
#
#   scripts/gpu.sh build [FOLDER]   builds with CUDA and gathers what a run needs [gpu-run]
#   FOLDER/gpu.sh run [RESULTS [PART...]]
#                                   on the GPU host, which needs CUDA and Python 3 [results]. Parts, all
#                                   of them where none is named: kernels, each beside the host's version; models, each
#                                   beside the reference's answers or the host's; layers, beside the device's limits;
#                                   load, of a server
#
# A run ends by itself, each part in minutes, and parts may be run one by one into the same RESULTS, which has a log of
# each step, the figures as JSON, and all of them in GPU-DATE.json and, beside the goals, as a table in GPU-DATE.md.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

build() {
    cd "$here/.."
    # shellcheck source=scripts/environment.sh
    . scripts/environment.sh
    need_compilers
    local toolkit folder=${1:-gpu-run} tests
    toolkit=$(scripts/cuda-toolkit.sh)
    eval "$toolkit"
    # At once, so that dependencies are built for both.
    tests=$(cargo build --locked --release --workspace --features cuda --bin percept --test cuda \
        --message-format json-render-diagnostics | python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "cuda":
        print(message["executable"])')
    mkdir -p "$folder"
    cp "$CARGO_TARGET_DIR/release/percept" "$folder/percept"
    cp "$tests" "$folder/kernels"
    cp -r scripts/gpu.sh scripts/gpu/*.py tests/fixtures "$folder"
    git rev-parse HEAD >"$folder/commit"
    printf '%s is ready: copy it to the GPU host and run %s/gpu.sh run there\n' "$folder" "$folder"
}

# Runs a step into a log of its own; the last one decides whether all went well.
step() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    if "$@" >"$results/$name.log" 2>&1; then
        tail -n 12 "$results/$name.log"
    else
        failed="$failed $name"
        tail -n 30 "$results/$name.log"
        printf '== %s: FAILED\n' "$name"
    fi
}

kernels() {
    step kernels "$here/kernels" --test-threads 1 --nocapture
    ! grep -q skipped "$results/kernels.log" || failed="$failed kernels"
    if command -v compute-sanitizer >/dev/null; then
        step memcheck compute-sanitizer --error-exitcode 9 "$here/kernels" --test-threads 1
    fi
}

models() {
    step models-f32 python3 "$here/goldens.py" "$here/percept" "$here/fixtures" --device cuda --dtype f32
    step models-bf16 python3 "$here/goldens.py" "$here/percept" "$here/fixtures" --device cuda --dtype bf16
    step host-f32 python3 "$here/host.py" "$here/percept" "$here/fixtures" --device cuda --dtype f32
    step host-bf16 python3 "$here/host.py" "$here/percept" "$here/fixtures" --device cuda --dtype bf16
}

layers() {
    local shape
    for shape in llava-7b llava-next-34b phi-3-vision whisper-large whisper-turbo; do
        step "layers-$shape" "$here/percept" bench --offline "$results/shapes/$shape" --dummy-weights --device cuda \
            --dtype bf16 --memory 0.9 --context 1024 --pictures 336x336,1920x1080 --json "$results/layers-$shape.json"
    done
}

load() {
    step load python3 "$here/load.py" "$here/percept" "$results/shapes/llava-7b" "$results"
}

run() {
    results=${1:-$here/results}
    shift || true
    local part
    for part in "$@"; do
        [[ " kernels models layers load " == *" $part "* ]] || {
            printf 'there is no part %s: kernels models layers load\n' "$part"
            exit 2
        }
    done
    failed=
    mkdir -p "$results"
    {
        cat "$here/commit"
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
        uname -sr
    } | tee "$results/host.log"
    python3 "$here/shapes.py" "$here/fixtures" "$results/shapes"
    [ $# -gt 0 ] || set -- kernels models layers load
    for part in "$@"; do
        "$part"
    done
    step summary python3 "$here/summary.py" "$results"
    [ -z "$failed" ] || {
        printf 'failed:%s\n' "$failed"
        exit 1
    }
    printf 'all steps passed; figures are in %s\n' "$results"
}

case "${1:-}" in
    build | run) "$@" ;;
    *)
        sed -n '2,12s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
