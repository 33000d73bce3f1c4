//! `pollux replay`: the frames of a capture file through the forwarder, at the times they were recorded.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ArgAction;
use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Forwarder, Output, Settings};
use pollux_dataplane::packet::{Burst, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::pcap::{PcapReader, PcapWriter};
use pollux_dataplane::stats::Stats;
use pollux_dataplane::tables::Role;
use pollux_dataplane::time::Instant;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::{Common, Exit, Failure};
use crate::node::Links;
use crate::trace::teach;

const EXAMPLE: &str = "\
The frames must be addressed to the port's link address, as they were when they were captured there.

Example:
  pollux replay in.pcap -o out.pcap --in ens3 --objects objects.yaml --config node.yaml --node slave1";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// The frames that come in.
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// Where the frames go that leave, through any port.
    #[arg(short, long, value_name = "OUT.pcap")]
    output: PathBuf,
    /// The port that receives them, or `host`; otherwise the first uplink.
    #[arg(long = "in", value_name = "PORT|host")]
    port: Option<String>,
    /// Print one JSON object.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let inputs = args.common.load()?;
    let view = inputs.view(&Links::new())?;
    let compiled = inputs.compile(&view);
    let ports = &compiled.tables.ports;
    let role = |wanted| ports.iter().find(|(_, port)| port.role == wanted).map(|(id, _)| id);
    let port = match args.port.as_deref() {
        None => role(Role::Uplink).ok_or_else(|| Failure::bad_input("--in: the node has no uplink"))?,
        Some("host") => role(Role::Host).ok_or_else(|| Failure::bad_input("--in host: no host port"))?,
        Some(name) => {
            ports.by_name(name).ok_or_else(|| Failure::bad_input(format!("--in {name}: no such port")))?
        }
    };
    let input = File::open(&args.input).map_err(|error| of_file(&args.input, error))?;
    let mut reader = PcapReader::new(BufReader::new(input)).map_err(|error| of_file(&args.input, error))?;

    let pool = Pool::new(4096)?;
    let settings = Settings {
        connections: 1 << 18,
        clients: 1 << 16,
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
        seed: 1,
    };
    let mut forwarder = Forwarder::new(&settings, pool)?;
    forwarder.set_tables(compiled.tables.clone());
    let interrupted = interruption()?;
    let target = Target::create(&args.output).map_err(|error| of_file(&args.output, error))?;
    let file = target.file().map_err(|error| of_file(&args.output, error))?;
    let writer = PcapWriter::new(BufWriter::new(file)).map_err(|error| of_file(&args.output, error))?;
    let mut out = Capture { writer, now: Instant::ZERO, stats: Stats::default(), error: None };
    let start = reader.next_time().unwrap_or_default();
    teach(&mut forwarder, &view.neighbours, start);
    while let Some((now, packet)) =
        reader.next_frame(pool, port).map_err(|error| of_file(&args.input, error))?
    {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Exit::Interrupted); // the draft goes with `target`
        }
        out.now = now;
        forwarder.tick(now, &mut out);
        out.stats.received += 1;
        let mut burst = Burst::new();
        burst.push(packet);
        forwarder.forward(&mut burst, now, &mut out);
        forwarder.tick(now, &mut out);
        if let Some(error) = out.error.take() {
            return Err(of_file(&args.output, error));
        }
    }
    out.writer.finish().map_err(|error| of_file(&args.output, error))?;
    target.keep().map_err(|error| of_file(&args.output, error))?;
    print(&forwarder.stats().plus(&out.stats), args.json)?;
    Ok(Exit::Done)
}

fn of_file(path: &Path, error: io::Error) -> Failure {
    Failure::bad_input(format!("{}: {error}", path.display()))
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the command where it is.
fn interruption() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, interrupted.clone())?;
        flag::register(signal, interrupted.clone())?;
    }
    Ok(interrupted)
}

/// The output's file. Frames go to another beside it, which takes its name when all is well: a capture that
/// turns out to be broken leaves what was there before, and a capture can be replayed onto itself. What is no
/// regular file (a pipe, `/dev/stdout`) is written as it is.
struct Target<'a> {
    path: &'a Path,
    draft: Option<PathBuf>,
}

impl Target<'_> {
    fn create(path: &Path) -> io::Result<Target<'_>> {
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(Target { path, draft: None });
        }
        let mut name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        Ok(Target { path, draft: Some(path.with_file_name(name)) })
    }

    fn file(&self) -> io::Result<File> {
        match &self.draft {
            Some(draft) => File::create_new(draft),
            None => File::options().write(true).open(self.path),
        }
    }

    fn keep(mut self) -> io::Result<()> {
        match self.draft.take() {
            Some(draft) => fs::rename(&draft, self.path).inspect_err(|_| {
                let _ = fs::remove_file(&draft); // the renaming is what is reported
            }),
            None => Ok(()),
        }
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft {
            let _ = fs::remove_file(draft); // it may never have been made
        }
    }
}

/// Frames that leave, into a capture.
struct Capture {
    writer: PcapWriter<BufWriter<File>>,
    now: Instant,
    stats: Stats,
    error: Option<io::Error>,
}

impl Output for Capture {
    fn send(&mut self, _: PortId, packet: Packet) {
        self.stats.transmitted += 1;
        if let Err(error) = self.writer.write(self.now, &packet) {
            self.error.get_or_insert(error);
        }
    }
}

fn print(stats: &Stats, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let drops = stats.dropped.iter();
    if json {
        let dropped: serde_json::Map<_, _> =
            drops.map(|(reason, count)| (reason.name().to_string(), json!(count))).collect();
        let counters = json!({
            "received": stats.received,
            "originated": stats.originated,
            "transmitted": stats.transmitted,
            "delivered": stats.delivered,
            "held": stats.held,
            "dropped": dropped,
        });
        return writeln!(out, "{counters}");
    }
    for (name, count) in [
        ("received", stats.received),
        ("originated", stats.originated),
        ("transmitted", stats.transmitted),
        ("delivered", stats.delivered),
        ("held", stats.held),
    ] {
        writeln!(out, "{name:<24} {count:>10}")?;
    }
    for (reason, count) in drops {
        writeln!(out, "dropped {:<16} {count:>10}   {}", reason.name(), reason.description())?;
    }
    Ok(())
}
