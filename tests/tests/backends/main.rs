//! W1 to W14 (`pollux_tests::walks`) on every backend. Each walk is played by a worker alone on ports in memory, with
//! a clock of the test's, and by a whole agent: real threads, real ports, in a namespace whose interfaces end
//! in raw sockets of the test's. Every frame that leaves is compared byte for byte, the counters must be exact
//! (FW-05), and when the agent has stopped no buffer may be missing.

mod agent;
mod site;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::kernel::sandbox::Sandbox;
use pollux_dataplane::port::Capabilities;
use pollux_tests::node::Node;
use pollux_tests::walks::{self, Walk, play};

use agent::AgentStage;
use site::{BACKENDS, Site};

fn main() -> ExitCode {
    // Before anything starts a thread.
    let sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the walks need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let site = match Site::build() {
        Ok(site) => site,
        Err(error) => {
            eprintln!("the walks need a network: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    for walk in walks::all() {
        trials.push(trial(format!("worker/{}", walk.name), &walk, on_a_worker));
        if walk.is_partial() {
            trials.push(trial(format!("worker_partial/{}", walk.name), &walk, on_a_worker_that_carries));
        }
    }
    let mut unprivileged = 0;
    for backend in BACKENDS {
        if !backend.is_allowed(sandbox.privilege()) {
            unprivileged += 1;
            continue;
        }
        for workers in 1..=backend.workers {
            for walk in walks::all() {
                let name = format!("{}/{workers}/{}", backend.name, walk.name);
                let site = site.clone();
                trials.push(trial(name, &walk, move |walk| {
                    let stage = AgentStage::start(walk, &backend, workers, &site)?;
                    stage.play(walk)
                }));
            }
        }
    }
    if unprivileged > 0 {
        println!("{unprivileged} backends need root and are left out");
    }
    let mut arguments = Arguments::from_args();
    // One agent at a time: they share the namespaces and the pool.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(
    name: String,
    walk: &Walk,
    test: impl FnOnce(&Walk) -> Result<(), String> + Send + 'static,
) -> Trial {
    let walk = walk.clone();
    Trial::test(name, move || test(&walk).map_err(Failed::from))
}

fn on_a_worker(walk: &Walk) -> Result<(), String> {
    play(walk, &mut walk.cluster.node())
}

/// PT-04: partial checksums stay so on ports that can carry them.
fn on_a_worker_that_carries(walk: &Walk) -> Result<(), String> {
    let capabilities = Capabilities { partial_checksum: true, ..Capabilities::default() };
    play(walk, &mut Node::new(&walk.cluster.files(), capabilities))
}
