//! `pollux conntrack`: the connections of a running forwarder, with the options and in the words of
//! conntrack(8).

mod differences;
mod docs;
mod format;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{ArgAction, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::table::Table;
use super::{Exit, Failure};
use crate::agent::conntrack::{
    Action, CountItem, CountersItem, EventItem, FlowFilter, Kind, SourcePortsItem, TrackedItem, TrackedTuple,
    TupleFilter,
};
use crate::agent::protocol::{DEFAULT_SOCKET, Request};
use crate::agent::{Answer, Client};

/// Connections of which a table's widths are made; a listing can be long.
const ROWS: usize = 1000;

/// How often it is looked whether the command was interrupted while there is no event.
const LOOK: Duration = Duration::from_millis(100);

/// Source ports that one address has towards one backend, of the class that most clients are in (NAT-05).
const PORTS: u64 = 65_535 - 1023;

const EXAMPLE: &str = "\
Examples:
  pollux conntrack list -p tcp --state ESTABLISHED -d 10.150.18.86
  pollux conntrack list -f ipv6 -o extended,id
  pollux conntrack delete -p udp --reply-src 10.151.51.8
  pollux conntrack events -e NEW,DESTROY --timeout 10
  pollux conntrack stats --source-ports";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List connections.
    List {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        admin: Admin,
    },
    /// Count connections.
    Count {
        #[command(flatten)]
        filter: Filter,
        /// Print one JSON object.
        #[arg(long, action = ArgAction::SetTrue)]
        json: bool,
        #[command(flatten)]
        admin: Admin,
    },
    /// Delete connections, and list those that were deleted. Without a condition: all. Exit code 1: there was none.
    Delete {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        admin: Admin,
    },
    /// Tell what becomes of connections, until interrupted.
    Events {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        details: Details,
        /// Only these events.
        #[arg(short, long, value_name = "EVENTS", value_enum, value_delimiter = ',', ignore_case = true)]
        event_mask: Vec<Kind>,
        /// End after so many events.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// End after so many seconds.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<f64>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Print the page docs/conntrack.md from the code.
    #[command(hide = true)]
    Docs,
    /// Show counters, those that conntrack(8) has under its names.
    Stats {
        /// Show instead the addresses and backends between which most source ports are in use; so many.
        #[arg(long, value_name = "TOP", num_args = 0..=1, default_missing_value = "10")]
        source_ports: Option<u32>,
        /// Print one JSON object.
        #[arg(long, action = ArgAction::SetTrue)]
        json: bool,
        #[command(flatten)]
        admin: Admin,
    },
}

#[derive(clap::Args, Debug)]
struct Admin {
    /// Where `pollux run` listens.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    admin: PathBuf,
}

/// Which connections; addresses may be prefixes.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Which connections")]
struct Filter {
    /// ipv4 or ipv6; otherwise both.
    #[arg(short, long, value_name = "FAMILY")]
    family: Option<String>,
    /// tcp, udp, sctp, icmp, icmpv6, or a number.
    #[arg(short, long, value_name = "PROTOCOL")]
    proto: Option<String>,
    /// Source of the first packet.
    #[arg(short = 's', long, visible_alias = "src", value_name = "ADDRESS")]
    orig_src: Option<String>,
    /// Destination of the first packet.
    #[arg(short = 'd', long, visible_alias = "dst", value_name = "ADDRESS")]
    orig_dst: Option<String>,
    /// Source of the answer: the backend.
    #[arg(short = 'r', long, value_name = "ADDRESS")]
    reply_src: Option<String>,
    /// Destination of the answer.
    #[arg(short = 'q', long, value_name = "ADDRESS")]
    reply_dst: Option<String>,
    /// Source port of the first packet.
    #[arg(long, visible_alias = "sport", value_name = "PORT")]
    orig_port_src: Option<u16>,
    /// Destination port of the first packet.
    #[arg(long, visible_alias = "dport", value_name = "PORT")]
    orig_port_dst: Option<u16>,
    /// Source port of the answer.
    #[arg(long, value_name = "PORT")]
    reply_port_src: Option<u16>,
    /// Destination port of the answer.
    #[arg(long, value_name = "PORT")]
    reply_port_dst: Option<u16>,
    /// ICMP type of the first packet.
    #[arg(long, visible_alias = "icmpv6-type", value_name = "TYPE")]
    icmp_type: Option<u8>,
    /// ICMP code of the first packet.
    #[arg(long, visible_alias = "icmpv6-code", value_name = "CODE")]
    icmp_code: Option<u8>,
    /// ICMP identifier.
    #[arg(long, visible_alias = "icmpv6-id", value_name = "ID")]
    icmp_id: Option<u16>,
    /// State of TCP or SCTP.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// The mark, or its bits under a mask.
    #[arg(short, long, value_name = "MARK[/MASK]")]
    mark: Option<String>,
    /// Connections that are all of these.
    #[arg(short = 'u', long, value_enum, value_delimiter = ',', ignore_case = true)]
    status: Vec<Status>,
    /// Connections whose source is translated: to any address, or to this one.
    #[arg(short = 'n', long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "")]
    src_nat: Option<String>,
    /// Connections whose destination is translated: to any address, or to this one.
    #[arg(short = 'g', long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "")]
    dst_nat: Option<String>,
    /// Connections that are translated.
    #[arg(short = 'j', long, action = ArgAction::SetTrue)]
    any_nat: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Status {
    /// Kept when the table is full.
    Assured,
    /// An answer was seen.
    SeenReply,
    /// No answer was seen.
    Unset,
}

/// What is printed beside the usual.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Detail {
    /// The family, too.
    Extended,
    /// The connection's number, too.
    Id,
    /// JSON instead.
    Json,
}

#[derive(clap::Args, Debug)]
struct Details {
    /// What is printed; several with commas.
    #[arg(short, long, value_enum, value_delimiter = ',', value_name = "DETAILS")]
    output: Vec<Detail>,
    /// As `-o json`.
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "output")]
    json: bool,
}

impl Details {
    fn is_json(&self) -> bool {
        self.json || self.output.contains(&Detail::Json)
    }
}

#[derive(clap::Args, Debug)]
struct Output {
    #[command(flatten)]
    details: Details,
    /// Lines as conntrack(8) prints them, or a table for people.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Conntrack)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Conntrack,
    Table,
}

impl From<Filter> for FlowFilter {
    fn from(filter: Filter) -> FlowFilter {
        let has = |status| filter.status.contains(&status);
        FlowFilter {
            family: filter.family,
            protocol: filter.proto,
            original: TupleFilter {
                source: filter.orig_src,
                destination: filter.orig_dst,
                source_port: filter.orig_port_src,
                destination_port: filter.orig_port_dst,
            },
            reply: TupleFilter {
                source: filter.reply_src,
                destination: filter.reply_dst,
                source_port: filter.reply_port_src,
                destination_port: filter.reply_port_dst,
            },
            icmp_type: filter.icmp_type,
            icmp_code: filter.icmp_code,
            icmp_id: filter.icmp_id,
            state: filter.state,
            mark: filter.mark,
            seen_reply: if has(Status::SeenReply) { Some(true) } else { has(Status::Unset).then_some(false) },
            assured: has(Status::Assured).then_some(true),
            source_nat: filter.src_nat,
            destination_nat: filter.dst_nat,
            any_nat: filter.any_nat,
        }
    }
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::List { filter, output, admin } => {
            show(&admin, Action::List, filter, &output)?;
            Ok(Exit::Done)
        }
        Command::Delete { filter, output, admin } => {
            // As conntrack(8) has it: nothing to delete is no success.
            let deleted = show(&admin, Action::Delete, filter, &output)?;
            Ok(if deleted == 0 { Exit::Difference } else { Exit::Done })
        }
        Command::Count { filter, json, admin } => {
            let counts: Vec<CountItem> = ask(&admin, Action::Count, filter.into())?;
            let count = counts.first().map_or(0, |item| item.count);
            if json {
                println!("{}", json!({ "count": count }));
            } else {
                println!("{count}");
            }
            Ok(Exit::Done)
        }
        Command::Docs => {
            io::stdout().lock().write_all(docs::page().as_bytes())?;
            Ok(Exit::Done)
        }
        Command::Events { filter, details, event_mask, count, timeout, admin } => {
            let until = Until { count, deadline: timeout.map(deadline).transpose()? };
            events(&admin, filter, &details, event_mask, until)
        }
        Command::Stats { source_ports: Some(top), json, admin } => {
            let items: Vec<SourcePortsItem> =
                ask(&admin, Action::SourcePorts { top }, FlowFilter::default())?;
            if json {
                println!("{}", json!({ "items": items }));
            } else {
                print!("{}", source_ports(&items));
            }
            Ok(Exit::Done)
        }
        Command::Stats { source_ports: None, json, admin } => {
            let workers: Vec<CountersItem> = ask(&admin, Action::Stats, FlowFilter::default())?;
            if json {
                println!("{}", json!({ "workers": workers }));
            } else {
                workers.iter().for_each(|worker| println!("{}", counters(worker)));
            }
            Ok(Exit::Done)
        }
    }
}

/// The items of an answer.
fn ask<T: DeserializeOwned>(admin: &Admin, action: Action, filter: FlowFilter) -> Result<Vec<T>, Failure> {
    let mut client = Client::connect(&admin.admin)?;
    let answer = client.ask(&Request::Conntrack { action, filter })?;
    answer.map(|item| read(item?)).collect()
}

fn read<T: DeserializeOwned>(item: Value) -> Result<T, Failure> {
    Ok(serde_json::from_value(item).map_err(io::Error::other)?)
}

/// Prints the connections of an answer as they come: how many.
fn show(admin: &Admin, action: Action, filter: Filter, output: &Output) -> Result<u64, Failure> {
    let done = if action == Action::Delete { "deleted" } else { "shown" };
    let mut client = Client::connect(&admin.admin)?;
    let mut answer = client.ask(&Request::Conntrack { action, filter: filter.into() })?;
    let mut out = BufWriter::new(io::stdout().lock());
    let shown = if output.details.is_json() {
        show_json(&mut answer, &mut out)?
    } else if output.format == Format::Table {
        show_table(&mut answer, &mut out)?
    } else {
        let mut shown = 0;
        for item in answer {
            writeln!(out, "{}", format::listed(&read(item?)?, &output.details.output))?;
            shown += 1;
        }
        shown
    };
    out.flush()?;
    eprintln!("pollux: {shown} flow entries have been {done}.");
    Ok(shown)
}

/// One object, written as its items come: a table can be large.
fn show_json(answer: &mut Answer<'_>, out: &mut impl Write) -> Result<u64, Failure> {
    let mut shown = 0;
    write!(out, "{{\"items\":[")?;
    for item in answer {
        let item: Value = item?;
        write!(out, "{}{item}", if shown > 0 { ",\n" } else { "" })?;
        shown += 1;
    }
    writeln!(out, "]}}")?;
    Ok(shown)
}

fn show_table(answer: &mut Answer<'_>, out: &mut impl Write) -> Result<u64, Failure> {
    let mut shown = 0;
    loop {
        let items: Vec<TrackedItem> =
            answer.by_ref().take(ROWS).map(|item| read(item?)).collect::<Result<_, Failure>>()?;
        if items.is_empty() {
            return Ok(shown);
        }
        shown += items.len() as u64;
        write!(out, "{}", table(&items))?;
    }
}

fn table(items: &[TrackedItem]) -> Table {
    let end = |tuple: &TrackedTuple, source: bool| {
        let (address, port) = match source {
            true => (tuple.source, tuple.source_port),
            false => (tuple.destination, tuple.destination_port),
        };
        match port {
            Some(port) => std::net::SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        }
    };
    let mut table = Table::new(&[
        "PROTOCOL",
        "STATE",
        "SECONDS",
        "SOURCE",
        "DESTINATION",
        "BACKEND",
        "ANSWERS-TO",
        "STATUS",
        "MARK",
    ]);
    for item in items {
        table.row([
            format::protocol_name(item.protocol),
            item.state.clone().unwrap_or_else(|| "-".to_owned()),
            (item.remaining_seconds as u64).to_string(),
            end(&item.original, true),
            end(&item.original, false),
            end(&item.reply, true),
            end(&item.reply, false),
            match (item.seen_reply, item.assured) {
                (_, true) => "ASSURED",
                (true, false) => "REPLIED",
                (false, false) => "UNREPLIED",
            }
            .to_owned(),
            format!("{:#x}", item.mark),
        ]);
    }
    table
}

/// When to end.
struct Until {
    count: Option<u64>,
    deadline: Option<Instant>,
}

fn deadline(seconds: f64) -> Result<Instant, Failure> {
    let time = Duration::try_from_secs_f64(seconds).ok().and_then(|time| Instant::now().checked_add(time));
    time.ok_or_else(|| Failure::bad_input(format!("--timeout {seconds}: not a number of seconds")))
}

fn events(
    admin: &Admin,
    filter: Filter,
    details: &Details,
    kinds: Vec<Kind>,
    until: Until,
) -> Result<Exit, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut client = Client::connect(&admin.admin)?;
    let request = Request::Conntrack { action: Action::Events { kinds }, filter: filter.into() };
    let mut answer = client.ask(&request)?;
    let mut out = io::stdout().lock();
    let mut shown = 0;
    let exit = loop {
        if interrupted.load(Ordering::Relaxed) {
            break Exit::Interrupted;
        }
        let left = until.deadline.map(|end| end.saturating_duration_since(Instant::now()));
        if until.count == Some(shown) || left == Some(Duration::ZERO) {
            break Exit::Done;
        }
        if !answer.wait(left.map_or(LOOK, |left| left.min(LOOK)))? {
            continue;
        }
        let Some(item) = answer.next() else {
            // The forwarder is stopping.
            break Exit::Done;
        };
        match read(item?)? {
            EventItem::Lost(events) => eprintln!("pollux: {events} events were lost: they came too fast"),
            EventItem::Event { kind, time, flow } => {
                if details.is_json() {
                    writeln!(out, "{}", json!({ "event": kind, "time": time, "flow": flow }))?;
                } else {
                    writeln!(out, "{}", format::event(kind, &flow, &details.output))?;
                }
                out.flush()?;
                shown += 1;
            }
        }
    };
    eprintln!("pollux: {shown} flow events have been shown.");
    Ok(exit)
}

/// A worker's counters in a line. conntrack(8)'s first, those that have a meaning here; then ours.
fn counters(item: &CountersItem) -> String {
    let CountersItem {
        worker,
        invalid,
        insert,
        insert_failed,
        drop,
        early_drop,
        error,
        expired,
        removed,
        swept,
        entries,
        capacity,
        events_lost,
    } = item;
    format!(
        "cpu={worker:<4}\tinvalid={invalid} insert={insert} insert_failed={insert_failed} drop={drop} \
         early_drop={early_drop} error={error} expired={expired} removed={removed} swept={swept} \
         entries={entries} capacity={capacity} events_lost={events_lost}"
    )
}

fn source_ports(items: &[SourcePortsItem]) -> Table {
    let mut table =
        Table::new(&["PROTOCOL", "SOURCE", "BACKEND", "USED", "UNCERTAIN", "OF", "PERCENT"]).numbers_from(3);
    for item in items {
        table.row([
            format::protocol_name(item.protocol),
            item.source.to_string(),
            std::net::SocketAddr::new(item.destination, item.destination_port).to_string(),
            item.used.to_string(),
            item.uncertain.to_string(),
            PORTS.to_string(),
            format!("{:.1}", item.used as f64 * 100.0 / PORTS as f64),
        ]);
    }
    table
}
