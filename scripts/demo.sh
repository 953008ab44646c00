#!/usr/bin/env bash
# Builds percept, serves a model, and asks it about a JPEG over HTTP, as a client would.
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
model=tests/fixtures/llava
picture=tests/fixtures/inputs/photo_160x120.jpg

need_compilers
printf '\n1. Building (%s; the first time takes some minutes)\n' "$profile"
cargo build --locked --profile "$profile" --bin percept
percept="$CARGO_TARGET_DIR/$([ "$profile" = dev ] && echo debug || echo "$profile")/percept"

printf '\n2. Serving %s\n' "$model"
started=$(mktemp)
"$percept" serve "$model" --port 0 --log warn >"$started" &
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

cat <<END

That was the real path: JPEG, vision tower, projector, language model, streamed over HTTP. The words make no sense,
because this checkpoint is a test fixture of 0.6 MB with random weights. With a trained one:

  $percept serve llava-hf/llava-1.5-7b-hf --dtype bf16
END
if [ -n "$keep" ]; then
    printf '\nServing on %s/v1 until Ctrl-C\n' "$url"
    wait "$server"
fi
