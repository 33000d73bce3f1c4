//! Real programs through Pollux: their clients and servers in namespaces, over ClusterIPs and node ports, in both
//! families. Zero failed requests, by the programs' own words; and nothing dropped that should not be, by Pollux'
//! counters.
//!
//! These need root: nginx, dnsmasq and traceroute want more of the machine than a user namespace gives.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::kernel::sandbox::{Privilege, Sandbox, find_program};

mod paths;
mod servers;
mod site;
mod transfers;

use site::{Options, Outcome, Site};

/// What the tests run.
const PROGRAMS: [&str; 11] =
    ["ss", "curl", "nginx", "iperf3", "dig", "dnsmasq", "openssl", "ping", "tracepath", "traceroute", "wrk"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Listing must work without any privilege. Otherwise, before anything starts a thread.
    if !arguments.list
        && let Err(error) = prepare()
    {
        eprintln!("the tests of real programs cannot run: {error}");
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    trials.extend(transfers::trials());
    trials.extend(paths::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn prepare() -> Outcome {
    for program in PROGRAMS {
        find_program(program).map_err(|error| format!("{error} (scripts/setup.sh test installs it)"))?;
    }
    match Sandbox::enter()?.privilege() {
        Privilege::Root => Ok(()),
        Privilege::UserNamespace | Privilege::Ordinary => Err("they need root".into()),
    }
}

/// A test with a site of its own.
fn trial(name: &'static str, test: fn(&mut Site) -> Outcome) -> Trial {
    Trial::test(name, move || {
        let run = || {
            let prefix: String = name.split('_').map(|word| &word[..1]).collect();
            let mut site = Site::new(&format!("p-{prefix}-"), &Options::default())?;
            test(&mut site).map_err(|error| format!("{error} ({:?})", site.dropped()))?;
            Ok(())
        };
        run().map_err(|error: Box<dyn std::error::Error>| Failed::from(error.to_string()))
    })
}
