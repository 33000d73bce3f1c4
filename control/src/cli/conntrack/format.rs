//! A connection in a line, as conntrack(8) prints it.

use std::fmt::Write as _;

use pollux_dataplane::packet::Protocol;

use super::{Detail, Kind};
use crate::agent::conntrack::{PROTOCOLS, TrackedItem, TrackedTuple};

/// GRE, whose keys conntrack(8) prints in place of ports.
const GRE: u8 = 47;

/// A line of a listing.
pub(super) fn listed(item: &TrackedItem, details: &[Detail]) -> String {
    line(item, details, None)
}

/// A line of the event log. What an event does not carry in the kernel is left out: the counters before the
/// end, a mark of 0, a time that is over.
pub(super) fn event(kind: Kind, item: &TrackedItem, details: &[Detail]) -> String {
    let kind_name = match kind {
        Kind::New => "[NEW]",
        Kind::Update => "[UPDATE]",
        Kind::Destroy => "[DESTROY]",
    };
    format!("{kind_name:>9} {}", line(item, details, Some(kind)))
}

fn line(item: &TrackedItem, details: &[Detail], event: Option<Kind>) -> String {
    let mut line = String::with_capacity(256);
    if details.contains(&Detail::Extended) {
        let number = if item.family == "ipv6" { libc::AF_INET6 } else { libc::AF_INET };
        let _ = write!(line, "{:<8} {number} ", item.family);
    }
    let known = PROTOCOLS.iter().find(|(_, protocol)| protocol.0 == item.protocol);
    let name = match known {
        Some((name, _)) => name,
        None if item.protocol == GRE => "gre",
        None => "unknown",
    };
    let _ = write!(line, "{name:<8} {} ", item.protocol);
    let seconds = item.remaining_seconds as u64;
    if event != Some(Kind::Destroy) || seconds > 0 {
        let _ = write!(line, "{seconds} ");
    }
    if let Some(state) = &item.state {
        let _ = write!(line, "{state} ");
    }
    let counters = !matches!(event, Some(Kind::New | Kind::Update));
    tuple(&mut line, item.protocol, &item.original, counters);
    if !item.seen_reply {
        line.push_str("[UNREPLIED] ");
    }
    tuple(&mut line, item.protocol, &item.reply, counters);
    if item.assured {
        line.push_str("[ASSURED] ");
    }
    if event.is_none() || item.mark != 0 {
        let _ = write!(line, "mark={} ", item.mark);
    }
    if event.is_none() {
        line.push_str("use=1 ");
    }
    if details.contains(&Detail::Id) {
        let _ = write!(line, "id={} ", item.id);
    }
    line.truncate(line.trim_end().len());
    line
}

fn tuple(line: &mut String, protocol: u8, tuple: &TrackedTuple, counters: bool) {
    let _ = write!(line, "src={} dst={} ", tuple.source, tuple.destination);
    if let (Some(source), Some(destination)) = (tuple.source_port, tuple.destination_port) {
        let _ = write!(line, "sport={source} dport={destination} ");
    }
    if let (Some(kind), Some(code), Some(id)) = (tuple.icmp_type, tuple.icmp_code, tuple.icmp_id) {
        let _ = write!(line, "type={kind} code={code} id={id} ");
    }
    if protocol == GRE {
        line.push_str("srckey=0x0 dstkey=0x0 ");
    }
    if let (true, Some(packets), Some(bytes)) = (counters, tuple.packets, tuple.bytes) {
        let _ = write!(line, "packets={packets} bytes={bytes} ");
    }
}

/// The name of a protocol in a table.
pub(super) fn protocol_name(number: u8) -> String {
    Protocol(number).to_string()
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
