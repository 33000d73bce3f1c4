//! `pollux trace`: the words of [`crate::trace`] as a table or JSON.

use std::io::Write;
use std::net::SocketAddr;

use clap::ArgAction;
use pollux_dataplane::pool::Pool;

use super::{Common, Exit, Failure};
use crate::node::Links;
use crate::trace::packet::PacketSpec;
use crate::trace::{Question, State, Trace, trace};

const EXAMPLES: &str = "\
Examples:
  pollux trace --objects objects.yaml --config node.yaml --config proxy-config.yaml --node slave1 \\
      --in host --packet 'tcp 172.16.1.50:56060 > 10.150.18.86:80'
  pollux trace ... --in cali566211caf94 --packet 'icmp 10.151.51.7 > 10.150.18.86 ttl 1' --json";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    #[arg(long, value_name = "PACKET", help = "The packet: 'PROTO SRC[:PORT] > DST[:PORT] [flags] [ttl N]'")]
    packet: PacketSpec,
    /// Where it comes in: a port, or `host`.
    #[arg(long = "in", value_name = "PORT|host")]
    input: String,
    /// What connection tracking knows of it.
    #[arg(long, value_enum, default_value = "new")]
    state: State,
    /// Follow this backend of a Service with several.
    #[arg(long, value_name = "ADDRESS:PORT")]
    backend: Option<SocketAddr>,
    /// Print one JSON object.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let inputs = args.common.load()?;
    let view = inputs.view(&Links::new())?;
    let compiled = inputs.compile(&view);
    let question =
        Question { packet: args.packet, input: args.input.clone(), state: args.state, backend: args.backend };
    let pool = Pool::new(256)?;
    let answer = trace(&compiled, &view, pool, &question).map_err(Failure::bad_input)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &answer).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &answer)?;
    }
    Ok(Exit::Done)
}

/// The answer for people: one line for each step, then backends and verdict.
pub(crate) fn print(out: &mut impl Write, answer: &Trace) -> std::io::Result<()> {
    for step in &answer.steps {
        let place = format!("{} {}", step.table, step.chain);
        writeln!(out, "{:<32} {}", place.trim(), step.effect)?;
        if !step.rule.is_empty() {
            writeln!(out, "{:<32}   {}", "", step.rule)?;
        }
    }
    for backend in &answer.backends {
        let masquerade = if backend.masquerade { ", masqueraded" } else { "" };
        let endpoint = format!("{}:{}", backend.address, backend.port);
        writeln!(out, "{:<32} {endpoint} with probability {}{masquerade}", "backend", backend.probability)?;
    }
    write!(out, "{:<32} {}", "verdict", answer.verdict.name())?;
    if let Some(reason) = &answer.reason {
        write!(out, ": {reason}")?;
    }
    if let Some(icmp) = &answer.icmp {
        write!(out, " ({icmp})")?;
    }
    writeln!(out)?;
    if let Some(packet) = &answer.out {
        let socket = |address: &str, port: u16| match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        writeln!(
            out,
            "{:<32} {}: {} > {}, ttl {}, {} > {}",
            "out",
            packet.out_port,
            socket(&packet.source, packet.source_port),
            socket(&packet.destination, packet.destination_port),
            packet.ttl,
            packet.link_source,
            packet.link_destination
        )?;
    }
    Ok(())
}
