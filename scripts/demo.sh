#!/usr/bin/env bash
# Builds percept, serves a model that sees and one that hears, and sends them a JPEG and a recording over HTTP, as a
# client would.
#
#   scripts/demo.sh           one question, then the end
#   scripts/demo.sh --keep    goes on serving afterwards, on the port it names, until Ctrl-C
#
# PERCEPT_PROFILE=dev builds faster and runs slower.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

case "${1:-}" in
    '') keep= ;;
    --keep) keep=yes ;;
    *) fail "usage: scripts/demo.sh [--keep]" ;;
esac
profile="${PERCEPT_PROFILE:-release}"
unset PERCEPT_PROFILE
models=(tests/fixtures/llava tests/fixtures/whisper)
recording=tests/fixtures/inputs/speechlike_3s.wav
picture=tests/fixtures/inputs/photo_160x120.jpg

need_compilers
printf '\n1. Building (%s; the first time takes some minutes)\n' "$profile"
cargo build --locked --profile "$profile" --bin percept
percept="$CARGO_TARGET_DIR/$([ "$profile" = dev ] && echo debug || echo "$profile")/percept"

printf '\n2. Serving %s\n' "${models[*]}"
started=$(mktemp)
"$percept" serve "${models[@]}" --port 0 --log warn >"$started" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$started"' EXIT
for _ in $(seq 300); do
    grep -q http "$started" && break
    kill -0 "$server" 2>/dev/null || fail 'the server ended; its message stands above'
    sleep 0.1
done
url=$(sed -n 's|.*\(http://[0-9.:]*\)/v1$|\1|p' "$started")
[ -n "$url" ] || fail 'the server did not start within 30 seconds'
printf '   %s/v1 is ready\n' "$url"

printf '\n3. percept chat "What is shown in this image?" --image %s\n\n' "$picture"
"$percept" chat "What is shown in this image?" --image "$picture" --url "$url" --temperature 0 --max-tokens 24

printf '\n4. percept transcribe %s -f srt\n\n' "$recording"
"$percept" transcribe "$recording" -f srt --url "$url"

cat <<END

That was the real path: JPEG, vision tower, projector, language model; WAV, spectrum, encoder, decoder with its rules;
all over HTTP, in one process. The words make no sense, because these checkpoints are test fixtures of 2 MB with random
weights. With trained ones:

  $percept serve llava-hf/llava-1.5-7b-hf openai/whisper-small --dtype bf16
END
if [ -n "$keep" ]; then
    printf '\nServing on %s/v1 until Ctrl-C\n' "$url"
    wait "$server"
fi
