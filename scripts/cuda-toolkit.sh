#!/usr/bin/env bash
# Finds a CUDA toolkit, or installs one below the cache folder, and prints the environment that a build needs.
#
#   eval "$(scripts/cuda-toolkit.sh)" && cargo build --release -p percept-kernels --features cuda
#
# A toolkit of the machine is taken as it is: CUDA_HOME, then /usr/local/cuda, then nvcc on PATH. Otherwise the
# compiler and its libraries come from Python packages. Those have no driver and no cuBLAS, which a GPU host has: what
# is missing for linking is replaced by empty functions of the same names, and the program finds the real ones when it
# starts. CUDA_COMPUTE_CAP says what to build for (80, 86, 89, 90); 80 where no GPU answers.
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

# Libraries that the program links and that neither the toolkit nor the machine has, with the functions that cudarc
# declares, all of them empty. A GPU host has the real ones under the same names.
link_stubs() {
    local toolkit=$1 major=$2 stubs=$3
    mkdir -p "$stubs"
    local name soname file
    while read -r name soname; do
        file="$stubs/lib$name.so"
        # A wheel has the versioned name only, and the linker looks for the plain one.
        if [ -e "$toolkit/lib/$soname" ]; then
            ln -sf "$toolkit/lib/$soname" "$file"
            continue
        fi
        [ ! -s "$file" ] || continue
        say "building a stub of $soname"
        symbols "$name" | sort -u | sed 's/.*/void &(void) {}/' >"$stubs/$name.c"
        cc -shared -fPIC "-Wl,-soname,$soname" -o "$file" "$stubs/$name.c"
    done <<END
cuda libcuda.so.1
nvrtc libnvrtc.so.$major
curand libcurand.so.10
cublas libcublas.so.$major
cublasLt libcublasLt.so.$major
cudart libcudart.so.$major
END
}

# What cudarc declares of a library; its folders have other names for two of them.
symbols() {
    local module=$1 cudarc
    case $module in
        cuda) module=driver ;;
        cudart) module=runtime ;;
        cublasLt) module=cublaslt ;;
    esac
    cudarc=$(cargo metadata --locked --format-version 1 --manifest-path kernels/Cargo.toml --features cuda \
        --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" |
        python3 -c 'import json, os, sys
found = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"]
print(os.path.dirname(found[0]["manifest_path"]))')
    grep -oE 'fn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/src/$module/sys/mod.rs" | sed 's/^fn //' | grep -v '^culib$' ||
        fail "no functions of $module were found in the sources of cudarc"
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
    if [ ! -e "$toolkit/lib64/libcublas.so" ]; then
        stubs="$CACHE/cuda-stubs/$version"
        link_stubs "$toolkit" "${version%%.*}" "$stubs"
        printf 'export LIBRARY_PATH=%q"${LIBRARY_PATH:+:$LIBRARY_PATH}"\n' "$stubs"
    fi
}
