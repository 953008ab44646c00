//! Tells a release build which commit it is of, for the figures that it measures.
#![allow(clippy::print_stdout, reason = "how a build script speaks")]

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Figures of other builds mean nothing, and they need not be built again for every commit.
    let is_fuzzed = env::var_os("CARGO_CFG_FUZZING").is_some();
    if is_fuzzed || env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    for path in ["src", "models", "kernels", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    // Written by every commit and every checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    // A tag says less than a commit. Without git, or outside of it, nothing is known.
    if let Some(commit) = git(&["describe", "--always", "--exclude=*", "--abbrev=10", "--dirty"]) {
        println!("cargo::rustc-env=PERCEPT_BUILT_FROM={commit}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
