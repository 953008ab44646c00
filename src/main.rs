//! percept, the program; see [`percept::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    percept::cli::run()
}
