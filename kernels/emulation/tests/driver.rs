//! Every operation as a program asks a GPU for it, on a device that is emulated: what is between an operation and its
//! kernels, such as addresses, uploads, downloads, recordings and the order of all that.
#![cfg(feature = "cuda")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{env, process::Command};

use percept_kernels_emulation::DRIVER;

#[path = "../../tests/cuda.rs"]
mod cuda;

#[test]
fn operations_on_an_emulated_device() {
    // The driver is loaded once in a process, so it has one of its own.
    let mut tests = Command::new(env::current_exe().unwrap());
    tests.args(["cuda::", "--nocapture", "--test-threads", "1"]).env("LD_LIBRARY_PATH", DRIVER);
    let output = tests.output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    assert!(output.status.success() && !err.contains("skipped"), "{out}{err}");
}
