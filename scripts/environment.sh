# shellcheck shell=bash
# Sourced by the other scripts: where things are built, and how to get what a fresh machine lacks.
# Everything that is built or installed goes below one cache folder, so that a second clone starts warm.

CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/percept"
TOOLS="$CACHE/tools"
# One target folder for all clones, unless the user has chosen one.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$CACHE/target}"
# Where rustup puts cargo, which a shell that is older than rustup does not know yet.
export PATH="$TOOLS/bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
mkdir -p "$TOOLS"

fail() {
    printf 'percept: %s\n' "$1" >&2
    exit 1
}

# Debian packages, installed only where one is missing.
need_packages() {
    command -v dpkg-query >/dev/null || fail "this is no Debian system: install the equivalent of: $*"
    local package
    local missing=()
    for package in "$@"; do
        dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    printf 'percept: installing %s\n' "${missing[*]}"
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
}

# Rust by rustup, as its own page says, where there is none: Debian's is older than what is needed.
need_rust() {
    ! command -v cargo >/dev/null || return 0
    need_packages ca-certificates curl
    printf 'percept: installing Rust for this user, by rustup\n'
    curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs |
        sh -s -- -y --quiet --profile minimal --no-modify-path
}

# Node.js and npm: those on the machine, where they are new enough for the clients under test, else a build of them that comes as a Python package, below the cache folder.
need_node() {
    local major environment
    major=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/' || true)
    if [ "${major:-0}" -ge 22 ] && command -v npm >/dev/null; then
        return
    fi
    need_python
    environment=$(python_environment node scripts/node-requirements.txt)
    export PATH="$environment/bin:$PATH"
}

# The packages of a folder, exactly as its lock file says.
need_node_packages() {
    local folder=$1
    need_node
    if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/.percept-lock"; then
        npm ci --prefix "$folder" --silent
        cp "$folder/package-lock.json" "$folder/node_modules/.percept-lock"
    fi
}

# What a build needs: Rust of the workspace's version, and a C compiler for two of its dependencies.
need_compilers() {
    need_rust
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust $wanted or newer is needed and $found is installed: rustup update stable"
    rebuild_for_this_clone
    if ! command -v cc >/dev/null || ! command -v c++ >/dev/null; then
        need_packages build-essential
    fi
}

# Clones that share a target folder share what is built of dependencies. Of the workspace itself, cargo would take
# another clone's build for this one's: it compares times, not contents, and tests know the folder they were built in.
rebuild_for_this_clone() {
    local marker="$CARGO_TARGET_DIR/percept-clone"
    [ "$(cat "$marker" 2>/dev/null)" != "$PWD" ] || return 0
    mkdir -p "$CARGO_TARGET_DIR"
    local profile
    for profile in dev release; do
        cargo clean --quiet --locked --profile "$profile" -p percept -p percept-models \
            -p percept-kernels -p percept-kernels-emulation
    done
    printf '%s\n' "$PWD" >"$marker"
}

# A cargo command: the one on the machine, else of this version, built once into the cache.
need_cargo_command() {
    local name=$1 version=$2
    cargo "$name" --version >/dev/null 2>&1 && return
    printf 'percept: building cargo-%s %s, once\n' "$name" "$version"
    cargo install --quiet --locked --root "$TOOLS" "cargo-$name" --version "$version"
}

need_python() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3 python3-venv
}

# A Python environment that has exactly what a requirements file says; prints its folder.
python_environment() {
    local name=$1 requirements=$2
    local folder="$CACHE/python/$name"
    if ! cmp -s "$requirements" "$folder/requirements.txt"; then
        rm -rf "$folder"
        python3 -m venv "$folder" || return
        "$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements" || return
        cp "$requirements" "$folder/requirements.txt"
    fi
    printf '%s\n' "$folder"
}
