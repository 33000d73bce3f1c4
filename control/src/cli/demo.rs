//! `pollux demo`: the walks of [`crate::demo`], for people or as JSON lines.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{ArgAction, ValueEnum};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Exit, Failure};
use crate::demo::{self, Ended, Verdict};
use crate::lab::pollux::Wiring;

const EXAMPLES: &str = "\
Works as root and as an ordinary user (in a user namespace); needs iproute2. Nothing outside the namespaces
it makes is touched, and they end with it.

Examples:
  pollux demo
  pollux demo --json";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// How the forwarder on slave1 receives and sends.
    #[arg(long, value_enum, default_value = "af_packet")]
    backend: Backend,
    /// Print JSON lines: one object for each walk, then one with the counters.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Backend {
    #[value(name = "af_packet")]
    AfPacket,
    #[value(name = "af_xdp")]
    AfXdp,
    #[value(name = "dpdk")]
    Dpdk,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let wiring = match args.backend {
        Backend::AfPacket => Wiring::AfPacket,
        Backend::AfXdp => Wiring::AfXdp,
        Backend::Dpdk => {
            return Err(Failure::environment("--backend dpdk: not built in this version; use af_packet"));
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the process at once: its namespaces go with it.
        let code = Exit::Interrupted as i32;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut out = io::stdout().lock();
    let mut print = |report: &demo::Report| -> io::Result<()> {
        if args.json {
            match report {
                demo::Report::Begun { .. } => {}
                demo::Report::Walk(walk) => writeln!(out, "{}", json!(walk))?,
                demo::Report::Counters(counters) => writeln!(out, "{}", json!(counters))?,
            }
        } else {
            write!(out, "{report}")?;
        }
        out.flush()
    };
    let is_interrupted = || interrupted.load(Ordering::Relaxed);
    match demo::run(wiring, &is_interrupted, &mut print) {
        Ok(Verdict::AsDecided) => Ok(Exit::Done),
        Ok(Verdict::Different) => Err(Failure::difference("what was seen differs from what was decided")),
        Err(Ended::Interrupted) => {
            eprintln!("pollux: interrupted; everything is cleaned up");
            Ok(Exit::Interrupted)
        }
        Err(Ended::Lacking(why)) => Err(Failure::environment(why)),
    }
}
