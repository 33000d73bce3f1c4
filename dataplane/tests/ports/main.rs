//! The ports of the kernel, with real interfaces and real sockets in network namespaces of this process.
//!
//! Each test's thread makes a network namespace of its own, so everything vanishes with the threads. Root
//! runs every test, and then all of them once more as an ordinary user would, in a user namespace, where
//! `bpf()` is refused. Run by an ordinary user, what needs root is counted apart.

mod af_packet;
mod af_xdp;
mod guard;
mod idle;
mod sandbox;
mod steer;
mod tap;
mod topology;

use libtest_mimic::{Arguments, Trial};

use sandbox::Rights;

fn main() {
    let arguments = Arguments::from_args();
    if let Some(interface) = std::env::var_os(guard::CHILD) {
        guard::hold_guard(interface.to_str().expect("a name that the test gave"));
    }
    // Before any thread is started: only a process of one thread may enter a user namespace.
    let rights = sandbox::enter();
    let mut trials = af_packet::trials();
    trials.extend(idle::trials());
    let taps = tap::are_allowed(rights);
    trials.extend(tap::trials().into_iter().map(|trial| trial.with_ignored_flag(!taps)));
    trials.extend(guard::trials(rights));
    trials.extend(af_xdp::trials(rights));
    trials.extend(steer::trials(rights));
    trials.push(
        Trial::test("all_of_this_without_root", run_without_root).with_ignored_flag(rights != Rights::Root),
    );
    if rights == Rights::User && std::env::var_os(sandbox::FORCE_USER).is_none() {
        println!("not root: TCX links, AF_XDP and the second run in a user namespace are left out");
    }
    if !taps {
        println!("not root, and /dev/net/tun is closed to this user: the tests of TAP ports are left out");
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Runs this program again in a user namespace.
fn run_without_root() -> Result<(), libtest_mimic::Failed> {
    let output = std::process::Command::new(std::env::current_exe()?)
        .env(sandbox::FORCE_USER, "1")
        .args(["--test-threads", "2"])
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(())
}
