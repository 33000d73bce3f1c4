//! Long runs with real traffic, for `make soak`: a flood, bad wires, and long transfers. They print what they measured.
//!
//! They need root, and descriptors for 10,000 connections (`ulimit -n`, which scripts/soak.sh raises).

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::kernel::sandbox::{Privilege, Sandbox};

mod flood;
#[allow(dead_code, reason = "the tests of real programs need more of it")]
#[path = "../programs/site.rs"]
mod site;
#[allow(dead_code, reason = "the tests of the demo need more of it")]
#[path = "../lab/twins.rs"]
mod twins;
mod wires;

use pollux_control::lab::pollux::Wiring;
use site::Outcome;

/// Bytes of a long transfer.
const TEN_GIB: u64 = 10 << 30;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(flood::SERVER) {
        let served = flood::serve(&words.next().unwrap_or_default());
        eprintln!("the server has ended: {served:?}");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // They would take each other's processors.
    arguments.test_threads = Some(1);
    if !arguments.list {
        // Before anything starts a thread.
        match Sandbox::enter().map(|sandbox| sandbox.privilege()) {
            Ok(Privilege::Root) => {}
            Ok(Privilege::UserNamespace | Privilege::Ordinary) => {
                eprintln!("the long runs need root");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("the long runs need a sandbox: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let trials = vec![
        trial("transfers_arrive_over_bad_wires", wires::bad_wires),
        // Shown as ignored where the kernel has no netem: that is not passed.
        trial("transfers_arrive_over_the_kernel_s_bad_wires", wires::netem)
            .with_ignored_flag(!arguments.list && !wires::has_netem()),
        trial("transfers_of_10_gib_arrive_intact_over_af_packet", || {
            twins::transfers("ten-p-", Wiring::AfPacket, TEN_GIB)
        }),
        trial("transfers_of_10_gib_arrive_intact_over_af_xdp", || {
            twins::transfers("ten-x-", Wiring::AfXdp, TEN_GIB)
        }),
        trial("ct_09_a_flood_harms_no_connection", flood::flood),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &'static str, test: fn() -> Outcome) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(error.to_string())))
}
