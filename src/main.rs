//! percept, the program; see [`percept::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    percept::cli::run()
}
