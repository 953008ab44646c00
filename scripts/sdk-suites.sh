#!/usr/bin/env bash
# Runs the tests that the official openai and anthropic packages have of their own for each endpoint, against percept:
# those of the endpoints that percept has. Prints what fails, and why. docs/clients.md says what is expected to.
#
#   scripts/sdk-suites.sh
#
# PERCEPT names a program to test instead of a new build. Not a part of scripts/check.sh: what the suites ask for is
# what OpenAI and Anthropic offer, not what percept promises.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

need_python
requirements=tests/clients/requirements-sdk_suites.txt
environment=$(python_environment sdk-suites "$requirements")
if [ -z "${PERCEPT:-}" ]; then
    need_compilers
    cargo build --locked --bin percept
    PERCEPT="$CARGO_TARGET_DIR/debug/percept"
fi
export PERCEPT

# Where the packages come with their tests: the archives of their sources.
folder="$CACHE/sdk-suites"
mkdir -p "$folder"
for package in openai anthropic; do
    pinned=$(grep "^$package==" "$requirements")
    archive="$folder/$package-${pinned#*==}"
    if [ ! -d "$archive" ]; then
        "$environment/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
            --dest "$folder" "$pinned"
        tar --extract --gzip --directory "$folder" --file "$archive.tar.gz"
    fi
    ln --symbolic --force --no-dereference "$archive" "$folder/$package"
done
exec "$environment/bin/python" -B scripts/sdk_suites.py "$folder"
