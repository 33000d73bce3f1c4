//! What Pollux does with the kernel, in a sandbox: as root, and as an ordinary user in a user namespace.
//!
//! No harness: the process has to enter the sandbox while it has one thread, so `main` does that and then
//! runs the tests.

use libtest_mimic::{Arguments, Trial};
use pollux_control::kernel::sandbox::Sandbox;

mod history;
mod host_port;
mod mirror;
mod sandbox;

fn main() {
    if std::env::var_os(host_port::HOLDER).is_some() {
        host_port::hold();
    }
    if std::env::var_os(sandbox::INNER).is_some() {
        sandbox::live_inside();
    }
    let arguments = Arguments::from_args();
    // Listing must work without any privilege.
    if !arguments.list
        && let Err(error) = Sandbox::enter()
    {
        eprintln!("{error}");
        std::process::exit(i32::from(pollux_control::kernel::Error::EXIT_CODE));
    }
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(sandbox::trials());
    trials.extend(mirror::trials());
    trials.extend(history::trials());
    trials.extend(host_port::trials());
    libtest_mimic::run(&arguments, trials).exit();
}

/// A trial of this function, under its own name.
macro_rules! trial {
    ($function:ident) => {
        libtest_mimic::Trial::test(stringify!($function), || {
            $function();
            Ok(())
        })
    };
}
use trial;
