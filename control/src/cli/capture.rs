//! `pollux capture`: frames of a running forwarder with the decision taken, as lines or in a pcapng file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ArgAction;
use pollux_dataplane::port::MAX_FRAME;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Exit, Failure};
use crate::agent::Client;
use crate::agent::capture::pcapng::PcapngWriter;
use crate::agent::capture::{CaptureItem, CaptureRequest, FrameItem, View};
use crate::agent::protocol::{DEFAULT_SOCKET, Request};

/// How often it is looked whether the command was interrupted while there is no frame.
const LOOK: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
The filter is a subset of pcap-filter(7): host, net, port, portrange, the protocols, ether, inbound, outbound, less,
greater, and, or, not, parentheses. Each frame of a file bears what was decided as its comment. A frame that leaves
is shown as the forwarder gives it to the port; --wire shows what the device gave and took instead, without decisions.

Examples:
  pollux capture any
  pollux capture ens3 -w ens3.pcapng tcp port 80 and net 10.150.0.0/16
  pollux capture cali566211caf94 -c 10 --json 'icmp or arp'
  pollux capture any -w - | wireshark -k -i -";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The port, or `any`.
    #[arg(value_name = "PORT|any")]
    port: String,
    /// Write a pcapng file, or to stdout for `-`; otherwise a line for each frame is printed.
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many frames.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Bytes of each frame that are kept.
    #[arg(short, long, value_name = "BYTES", default_value_t = MAX_FRAME as u32,
          value_parser = clap::value_parser!(u32).range(14..=MAX_FRAME as i64))]
    snap_length: u32,
    /// Capture what the device gave and took instead of what the forwarder sees.
    #[arg(long, action = ArgAction::SetTrue)]
    wire: bool,
    /// Print one JSON object for each frame, in lines.
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "write")]
    json: bool,
    /// Where `pollux run` listens.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    admin: PathBuf,
    /// Which frames.
    #[arg(value_name = "FILTER", trailing_var_arg = true, allow_hyphen_values = true)]
    filter: Vec<String>,
}

/// Where frames go.
enum Sink {
    Pcapng(PcapngWriter<BufWriter<Box<dyn Write>>>),
    Lines(BufWriter<Box<dyn Write>>),
    Json(BufWriter<Box<dyn Write>>),
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let deadline = args.duration.map(deadline).transpose()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut client = Client::connect(&args.admin)?;
    let mut answer = client.ask(&Request::Capture(CaptureRequest {
        port: args.port.clone(),
        filter: args.filter.join(" "),
        snap_length_bytes: args.snap_length,
        count: args.count,
        view: if args.wire { View::Wire } else { View::Forwarder },
    }))?;
    let mut sink = None;
    let mut exit = Exit::Done;
    let mut ends = false;
    loop {
        let is_over = deadline.is_some_and(|end| end <= Instant::now());
        if !ends && (is_over || interrupted.load(Ordering::Relaxed)) {
            if !is_over {
                exit = Exit::Interrupted;
            }
            // What was captured up to here still comes.
            answer.end()?;
            ends = true;
        }
        if !ends && !answer.wait(LOOK)? {
            continue;
        }
        let Some(item) = answer.next() else {
            return Ok(exit);
        };
        match (serde_json::from_value(item?).map_err(io::Error::other)?, &mut sink) {
            // Not before: a request that is refused is to overwrite nothing.
            (CaptureItem::Started { ports }, sink) => *sink = Some(Sink::create(args, &ports)?),
            (CaptureItem::Frame(frame), Some(sink)) => {
                sink.write(&frame)?;
                // Between frames everything is on its way.
                if ends || !answer.wait(Duration::ZERO)? {
                    sink.flush()?;
                }
            }
            (CaptureItem::Ended { captured, lost, why }, _) => {
                if let Some(sink) = sink.take() {
                    sink.finish(lost)?;
                }
                eprintln!("pollux: {captured} frames were captured, {lost} lost: they came too fast");
                if let Some(why) = why {
                    eprintln!("pollux: the capture ends: {why}");
                }
            }
            (CaptureItem::Frame(_), None) => {
                return Err(Failure::environment("a frame came before its capture had started"));
            }
        }
    }
}

fn deadline(seconds: f64) -> Result<Instant, Failure> {
    let time = Duration::try_from_secs_f64(seconds).ok().and_then(|time| Instant::now().checked_add(time));
    time.ok_or_else(|| Failure::bad_input(format!("--duration {seconds}: not a number of seconds")))
}

impl Sink {
    fn create(args: &Args, ports: &[String]) -> Result<Sink, Failure> {
        let stdout = || BufWriter::new(Box::new(io::stdout()) as Box<dyn Write>);
        let output = match &args.write {
            None if args.json => return Ok(Sink::Json(stdout())),
            None => return Ok(Sink::Lines(stdout())),
            Some(file) if file == Path::new("-") => stdout(),
            Some(file) => {
                let created = File::create(file)
                    .map_err(|error| Failure::environment(format!("--write {}: {error}", file.display())))?;
                BufWriter::new(Box::new(created) as Box<dyn Write>)
            }
        };
        let mut writer = PcapngWriter::new(output, args.snap_length, ports)?;
        writer.flush()?;
        Ok(Sink::Pcapng(writer))
    }

    fn write(&mut self, frame: &FrameItem) -> io::Result<()> {
        match self {
            Sink::Pcapng(writer) => writer.write(frame),
            Sink::Lines(output) => writeln!(output, "{} {}", frame.time, frame.line()),
            Sink::Json(output) => {
                serde_json::to_writer(&mut *output, frame).map_err(io::Error::from)?;
                writeln!(output)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Pcapng(writer) => writer.flush(),
            Sink::Lines(output) | Sink::Json(output) => output.flush(),
        }
    }

    fn finish(mut self, lost: u64) -> io::Result<()> {
        self.flush()?;
        match self {
            Sink::Pcapng(writer) => writer.finish(lost).map(drop),
            Sink::Lines(_) | Sink::Json(_) => Ok(()),
        }
    }
}
