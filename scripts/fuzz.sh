#!/usr/bin/env bash
# Fuzzes what takes a stranger's bytes: bodies, forms, pictures, recordings, data URLs, templates, streams of events. Ends
# with what was found, if anything was: the input is then in fuzz/artifacts.
#
#   scripts/fuzz.sh                    each for a minute, two at once
#   scripts/fuzz.sh 3600 sound image   these for an hour
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

seconds=${1:-60}
[ $# -eq 0 ] || shift
if [ $# -gt 0 ]; then targets=("$@"); else targets=(body form image sound data_url template sse); fi
need_compilers
need_cargo_command fuzz 0.13.2

# Without a sanitizer, which only unreleased compilers have: percept has next to no unsafe code, and arithmetic and
# assertions are checked.
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/fuzz"
cargo fuzz build --sanitizer none --target-dir "$CARGO_TARGET_DIR"

# What it begins with: fixtures, and fuzz/seeds.
seeds() {
    case $1 in
    image) printf '%s\n' tests/fixtures/pictures tests/fixtures/inputs ;;
    sound) printf '%s\n' tests/fixtures/sound ;;
    esac
    [ ! -d "fuzz/seeds/$1" ] || printf '%s\n' "fuzz/seeds/$1"
}

fuzz() {
    local target=$1 corpus="$CACHE/fuzz/$1" log folders
    mkdir -p "$corpus" "fuzz/artifacts/$target"
    log="$corpus.log"
    mapfile -t folders < <(seeds "$target")
    if cargo fuzz run --sanitizer none --target-dir "$CARGO_TARGET_DIR" "$target" "$corpus" "${folders[@]}" -- \
        "-max_total_time=$seconds" -timeout=20 -rss_limit_mb=3000 -max_len=65536 -print_final_stats=1 -seed=1 >"$log" 2>&1; then
        printf '%-9s %s inputs, %s\n' "$target" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
            "$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)"
    else
        tail -n 40 "$log"
        fail "$target: see above, and fuzz/artifacts/$target"
    fi
}

# Each is a group of processes, so that the first that fails ends the other.
set -m
running=()
end_running() {
    local group
    for group in "${running[@]}"; do
        kill -- "-$group" 2>/dev/null || true
    done
}
trap end_running EXIT
for target in "${targets[@]}"; do
    fuzz "$target" &
    running+=($!)
    if [ ${#running[@]} -eq 2 ]; then
        wait "${running[0]}"
        running=("${running[1]}")
    fi
done
for process in "${running[@]}"; do
    wait "$process"
done
