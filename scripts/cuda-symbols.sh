#!/usr/bin/env bash
# Writes kernels/late/symbols.txt: the functions of CUDA's libraries that cudarc declares, which the program finds when it
# opens a GPU. Run it after an update of cudarc.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
need_rust
need_python

version=$(sed -n '/^name = "cudarc"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
cudarc=$(cargo metadata --locked --format-version 1 --manifest-path kernels/Cargo.toml --features cuda \
    --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" |
    python3 -c 'import json, os, sys
(found,) = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"]
print(os.path.dirname(found["manifest_path"]))')

{
    printf '# Written by scripts/cuda-symbols.sh from cudarc %s\n' "$version"
    # A library, and the folder of cudarc that declares its functions.
    while read -r library folder; do
        functions=$(grep -oE 'fn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/src/$folder/sys/mod.rs" | sed 's/^fn //' |
            grep -v '^culib$' | LC_ALL=C sort -u) || fail "no functions of $library in the sources of cudarc"
        while read -r function; do
            printf '%s %s\n' "$library" "$function"
        done <<<"$functions"
    done <<END
cuda driver
cublas cublas
cublasLt cublaslt
curand curand
nvrtc nvrtc
END
} >kernels/late/symbols.txt
printf 'kernels/late/symbols.txt: %s functions\n' "$(grep -vc '^#' kernels/late/symbols.txt)"
