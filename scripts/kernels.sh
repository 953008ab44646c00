#!/usr/bin/env bash
# Compiles every CUDA kernel for the GPUs that are supported and writes what each needs to kernels/registers.tsv.
# Needs no GPU; scripts/cuda-toolkit.sh gets the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(scripts/cuda-toolkit.sh)
eval "$environment"

ARCHITECTURES=(80 86 89 90)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for source in kernels/*.cu; do
    for architecture in "${ARCHITECTURES[@]}"; do
        # In rows: kernel, architecture, registers, static shared memory, bytes that are spilled.
        "$CUDA_HOME/bin/nvcc" -std=c++17 "-arch=sm_$architecture" -cubin -Xptxas -v -o "$work/cubin" "$source" 2>&1 |
            tee "$work/log" |
            awk -v architecture="$architecture" '
                /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
                /bytes spill stores/ { spilled = $5 + $9 }
                /Used [0-9]+ registers/ {
                    shared = 0
                    for (i = 2; i <= NF; i++) {
                        if ($i == "registers,") registers = $(i - 1)
                        if ($i ~ /^smem/) shared = $(i - 2)
                    }
                    printf "%s\t%s\t%s\t%s\t%s\n", kernel, architecture, registers, shared, spilled
                }' >>"$work/rows" || {
            cat "$work/log" >&2
            exit 1
        }
    done
done

{
    printf '# Written by scripts/kernels.sh with CUDA %s, from sources whose SHA-256 is %s\n' \
        "$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')" \
        "$(cat kernels/device.cuh kernels/*.cu | sha256sum | cut -d' ' -f1)"
    printf 'kernel\tsm\tregisters\tshared\tspilled\n'
    LC_ALL=C sort "$work/rows"
} >kernels/registers.tsv
printf 'kernels/registers.tsv: %s kernels\n' "$(cut -f1 "$work/rows" | sort -u | wc -l)"
