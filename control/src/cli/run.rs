//! `pollux run`: the forwarder of a node, until it is told to stop.

use std::path::PathBuf;
use std::thread;

use clap::ValueEnum;
use crossbeam_channel::{Receiver, select};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::{Common, Exit, Failure};
use crate::agent::protocol::DEFAULT_SOCKET;
use crate::agent::{self, Agent, AgentOptions, HostOptions};
use crate::cluster::IpPrefix;

const EXAMPLE: &str = "\
Changed files are put in force at once, without dropping a packet; wrong ones are reported, and what was in
force stays. SIGTERM stops it and restores everything that it changed. How much is logged: POLLUX_LOG=debug.

Example:
  pollux run --objects /etc/pollux/objects --config proxy-config.yaml --config node.yaml";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Where to listen for `pollux get` and `pollux stats`.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    admin: PathBuf,
    /// How the log on stderr is written.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Service addresses that the host sends into the host port as a whole; otherwise one by one, as
    /// Services come and go.
    #[arg(long, value_name = "CIDR", value_parser = service_cidr)]
    service_cidr: Vec<IpPrefix>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object in each line.
    Json,
}

fn service_cidr(text: &str) -> Result<IpPrefix, String> {
    IpPrefix::parse(text).ok_or_else(|| "is not a prefix such as 10.96.0.0/12".to_owned())
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    super::ignore_sigpipe();
    start_log(args.log_format);
    if args.common.objects.is_empty() {
        return Err(Failure::bad_input("--objects: no file or directory is given"));
    }
    // From the first moment: what is interrupted while it starts is to clean up as well.
    let signals = signals()?;
    let sources = args.common.sources();
    let (inputs, warnings) = sources.read()?;
    agent::report(&warnings);
    let running = Agent::start(AgentOptions {
        inputs,
        follow: Some(sources),
        admin: Some(args.admin),
        host: HostOptions { service_prefixes: args.service_cidr, ..HostOptions::default() },
    })?;
    info!(node = running.state().inputs.node, "forwarding");
    let signal = select! {
        recv(signals) -> signal => signal.ok(),
        recv(running.ended()) -> _ => None,
    };
    running.stop();
    match signal {
        Some(SIGTERM) => Ok(Exit::Done),
        Some(_) => Ok(Exit::Interrupted),
        None => Err(Failure::difference("the worker ended by itself: see the log")),
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("POLLUX_LOG")
        .from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Set once in a process; a second time, in a test, the first stays.
    let _ = match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).try_init(),
    };
}

/// SIGTERM and SIGINT, as they come.
fn signals() -> Result<Receiver<i32>, Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (come, coming) = crossbeam_channel::unbounded();
    thread::Builder::new().name("pollux-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if come.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(coming)
}
