//! The command `pollux-bench`: measures that are asked for by hand or by a script, one line of JSON each. Benchmarks
//! of the code itself are in `benches/`.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use pollux_bench::conntrack::{self, Report};
use pollux_bench::idle;
use pollux_dataplane::flow::MAX_CONNECTIONS;
use pollux_dataplane::packet::{V4, V6};

/// Measures Pollux.
#[derive(Parser)]
#[command(name = "pollux-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fills, lists, expires and refills a flow table; every count is verified.
    #[command(after_help = "Examples:\n  pollux-bench conntrack --connections 1000000 --json\n  \
                            pollux-bench conntrack --connections 100000 --family 6 --quick\n  \
                            pollux-bench conntrack --connections 1000000 --workers 2")]
    Conntrack(Conntrack),
    /// Watches a worker without traffic, and how long the first packet after idling takes. Needs root.
    #[command(after_help = "Examples:\n  pollux-bench idle\n  pollux-bench idle --quick")]
    Idle(IdleArguments),
}

#[derive(clap::Args)]
struct IdleArguments {
    /// One round instead of ten.
    #[arg(long)]
    quick: bool,
}

#[derive(clap::Args)]
struct Conntrack {
    /// How many connections the table has room for, and gets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS as i64))]
    connections: u32,
    /// The address family.
    #[arg(long, default_value = "4")]
    family: Family,
    /// Threads that make connections at once.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
    /// One run instead of five.
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Family {
    #[value(name = "4")]
    V4,
    #[value(name = "6")]
    V6,
}

/// The environment lacks something.
const LACKING: u8 = 4;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Conntrack(arguments) => conntrack(&arguments),
        Command::Idle(arguments) => idle(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollux-bench: {error}");
            ExitCode::from(LACKING)
        }
    }
}

fn conntrack(arguments: &Conntrack) -> Result<(), String> {
    let runs = if arguments.quick { 1 } else { 5 };
    let (connections, workers) = (arguments.connections as usize, arguments.workers as usize);
    let report = match arguments.family {
        Family::V4 => conntrack::measure::<V4>(connections, workers, runs),
        Family::V6 => conntrack::measure::<V6>(connections, workers, runs),
    }?;
    print(&report, arguments.json);
    Ok(())
}

fn idle(arguments: &IdleArguments) -> Result<(), String> {
    let rounds = if arguments.quick { 1 } else { 10 };
    for report in idle::measure(rounds).map_err(|error| error.to_string())? {
        println!("{}", serde_json::to_value(report).expect("a report is plain data"));
    }
    Ok(())
}

fn print(report: &Report, json: bool) {
    let object = serde_json::to_value(report).expect("a report is plain data");
    if json {
        println!("{object}");
        return;
    }
    for (name, value) in object.as_object().into_iter().flatten() {
        println!("{name:22} {value}");
    }
}
