//! The command `pollux-lab`. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pollux_control::cli::lab::main()
}
