#!/usr/bin/env bash
# Installs what a bare Debian 12 lacks, builds percept, and runs percept demo: two small models that are part of the
# program look at a picture and listen to a recording, over HTTP. The server goes on until Ctrl-C.
#
#   scripts/demo.sh           as it is
#   scripts/demo.sh --once    ends after the answers; other options are those of percept demo
#
# PERCEPT_PROFILE=dev builds faster and runs slower. PERCEPT names a program that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

if [ -z "${PERCEPT:-}" ]; then
    profile="${PERCEPT_PROFILE:-release}"
    need_compilers
    printf 'Building percept (%s): the first time takes some minutes\n' "$profile"
    cargo build --locked --profile "$profile" --bin percept
    PERCEPT="$CARGO_TARGET_DIR/$([ "$profile" = dev ] && echo debug || echo "$profile")/percept"
fi
exec "$PERCEPT" demo "$@"
