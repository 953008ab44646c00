#!/usr/bin/env bash
# Finds a CUDA toolkit, or installs one below the cache folder, and prints the environment that a build needs.
#
#   eval "$(scripts/cuda-toolkit.sh)" && cargo build --release -p percept-kernels --features cuda
#
# A toolkit of the machine is taken as it is: CUDA_HOME, then /usr/local/cuda, then nvcc on PATH. Otherwise the
# compiler comes from Python packages. Those have no driver and no cuBLAS, and neither needs to be there for a build: the
# program finds them when it opens a GPU (kernels/late.rs). CUDA_COMPUTE_CAP says what to build for (80, 86, 89, 90); 80
# where no GPU answers.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

say() {
    printf 'percept: %s\n' "$1" >&2
}

# The folder of a toolkit that the machine has.
installed_toolkit() {
    local folder
    for folder in "${CUDA_HOME:-}" /usr/local/cuda; do
        if [ -n "$folder" ] && [ -x "$folder/bin/nvcc" ]; then
            printf '%s\n' "$folder"
            return
        fi
    done
    [ -z "${CUDA_HOME:-}" ] || fail "CUDA_HOME is $CUDA_HOME, which has no bin/nvcc"
    if command -v nvcc >/dev/null; then
        dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")"
    fi
}

# The toolkit from Python packages, installed once.
packaged_toolkit() {
    need_python >&2
    local environment folder
    environment=$(python_environment cuda scripts/cuda-requirements.txt)
    for folder in "$environment"/lib/python3*/site-packages/nvidia/cu1*; do
        [ -x "$folder/bin/nvcc" ] || continue
        printf '%s\n' "$folder"
        return
    done
    fail "no nvcc in $environment: remove that folder and try again"
}

toolkit=$(installed_toolkit)
if [ -n "$toolkit" ]; then
    say "using the toolkit in $toolkit"
else
    say 'no CUDA toolkit on this machine: using that of scripts/cuda-requirements.txt'
    toolkit=$(packaged_toolkit)
fi
version=$("$toolkit/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')
[ -n "$version" ] || fail "$toolkit/bin/nvcc does not say its version"
say "CUDA $version"

# shellcheck disable=SC2016 # The shell that evaluates the lines expands these.
{
    printf 'export CUDA_HOME=%q\n' "$toolkit"
    printf 'export CUDA_PATH=%q\n' "$toolkit"
    printf 'export PATH=%q:"$PATH"\n' "$toolkit/bin"
    if ! command -v nvidia-smi >/dev/null && [ -z "${CUDA_COMPUTE_CAP:-}" ]; then
        say 'no GPU here: building for compute capability 8.0; set CUDA_COMPUTE_CAP to change that'
        printf 'export CUDA_COMPUTE_CAP=80\n'
    fi
}
