//! What is compared after a packet: what left, and the connection tables; and where the two nodes are meant
//! to differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;

use pollux_dataplane::flow::Timeout;
use pollux_dataplane::packet::Protocol;

use super::describe::Free;
use super::script::Sequence;
use crate::lab::twins::packet::Tuple;
use crate::lab::twins::scenario::Family;

/// A connection, as a table has it.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::lab) struct Entry {
    pub(in crate::lab) original: Tuple,
    pub(in crate::lab) reply: Tuple,
    /// For protocols that have states.
    pub(in crate::lab) state: Option<&'static str>,
    pub(in crate::lab) seen_reply: bool,
    pub(in crate::lab) assured: bool,
    /// Seconds until it ends, whole ones in the kernel.
    pub(in crate::lab) remaining: f64,
}

/// How far the time left may differ, in seconds: the kernel tells whole seconds, and Pollux moves the deadline
/// of a connection in steady use twice a second.
const TOLERANCE: f64 = 1.6;

/// By so much Pollux sets the deadline of a connection in steady use further, so that packets that do not move it
/// cannot be too late; seconds.
const SLACK: f64 = 0.5;

/// The timeouts of both nodes, in seconds: so far apart that the time left tells which one runs. The three
/// that the kernel compares with each other keep the order of their defaults.
pub(super) fn timeouts(sequence: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let mut settings: BTreeMap<String, u32> = Timeout::ALL
        .iter()
        .enumerate()
        .map(|(number, timeout)| {
            let seconds = match timeout {
                Timeout::TcpRetrans => 1000,
                Timeout::TcpUnack => 1040,
                Timeout::TcpEstablished => 2000,
                _ => 100 + 20 * number as u32,
            };
            (timeout.name().to_owned(), seconds)
        })
        .collect();
    settings.insert("nf_conntrack_tcp_be_liberal".to_owned(), 1);
    settings.extend(sequence.iter().map(|(name, number)| (name.clone(), *number)));
    settings
}

/// The timeout that an entry runs on.
fn class(remaining: f64, settings: &BTreeMap<String, u32>) -> &str {
    let of_time = settings.iter().filter(|(name, _)| name.contains("timeout"));
    let next = of_time
        .filter(|(_, seconds)| f64::from(**seconds) >= remaining - SLACK)
        .min_by_key(|(_, seconds)| **seconds);
    next.map_or("longer than any", |(name, _)| {
        name.trim_start_matches("nf_conntrack_").trim_start_matches("tcp_timeout_")
    })
}

impl Entry {
    /// In words, without the time.
    pub(super) fn words(&self, settings: &BTreeMap<String, u32>, free: &Free) -> String {
        let mut text = format!("{} reply {}", tuple(&self.original, free), tuple(&self.reply, free));
        if let Some(state) = self.state {
            text.push(' ');
            text.push_str(state);
        }
        text.push_str(if self.seen_reply { " replied" } else { " unreplied" });
        text.push_str(if self.assured { " assured" } else { " unassured" });
        text.push_str(" timeout ");
        text.push_str(class(self.remaining, settings));
        text
    }
}

fn tuple(tuple: &Tuple, free: &Free) -> String {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let port = |number: u16| free.ports.get(&number).cloned().unwrap_or_else(|| number.to_string());
    let Tuple { protocol, source, source_port, destination, destination_port } = *tuple;
    let (from, to) = (address(source), address(destination));
    if matches!(protocol, Protocol::ICMP | Protocol::ICMPV6) {
        let [kind, code] = destination_port.to_be_bytes();
        return format!("{from} > {to} icmp {kind}/{code} id {}", port(source_port));
    }
    format!("{from}:{} > {to}:{} protocol {}", port(source_port), port(destination_port), protocol.0)
}

/// One packet: what became of it on both nodes, the kernel's first.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Its number in the sequence, from 1.
    pub number: usize,
    /// Its line.
    pub line: String,
    /// What left.
    pub left: [Vec<String>; 2],
    /// The connections of the sequence.
    pub table: [Vec<String>; 2],
    /// The time left of each connection.
    pub(super) remaining: [Vec<f64>; 2],
    /// The longest that a packet has taken until now, seconds: by so much later one of the nodes may have had it.
    pub(super) slowest: f64,
    /// What was expected of the kernel and did not come.
    pub unexpected: Vec<String>,
}

/// What two nodes differ in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum What {
    /// What left.
    Left,
    /// The connection table.
    Table,
    /// The time left of a connection, beyond which timeout it runs on.
    Time,
    /// What the sequence says about the kernel.
    Expectation,
}

impl What {
    const NAMES: [(What, &'static str); 4] = [
        (What::Left, "left"),
        (What::Table, "table"),
        (What::Time, "time"),
        (What::Expectation, "expectation"),
    ];
}

impl Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = What::NAMES.iter().find(|(what, _)| what == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl Outcome {
    /// What differs.
    pub fn differences(&self) -> BTreeSet<What> {
        let mut found = BTreeSet::new();
        if self.left[0] != self.left[1] {
            found.insert(What::Left);
        }
        let [kernel, pollux] = &self.remaining;
        if self.table[0] != self.table[1] {
            found.insert(What::Table);
        } else if kernel
            .iter()
            .zip(pollux)
            .any(|(kernel, pollux)| (kernel - pollux).abs() > TOLERANCE + self.slowest)
        {
            found.insert(What::Time);
        }
        if !self.unexpected.is_empty() {
            found.insert(What::Expectation);
        }
        found
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.number, self.line)?;
        let mut both = |what: &str, sides: &[Vec<String>; 2]| {
            let text = |words: &[String]| {
                if words.is_empty() { "nothing".to_owned() } else { words.join("\n            ") }
            };
            if sides[0] == sides[1] {
                return writeln!(f, "  {what}: {}", text(&sides[0]));
            }
            writeln!(f, "! {what}:\n    kernel: {}\n    Pollux: {}", text(&sides[0]), text(&sides[1]))
        };
        both("left", &self.left)?;
        both("table", &self.table)?;
        if self.differences().contains(&What::Time) {
            writeln!(f, "! time left: kernel {:?}, Pollux {:?}", self.remaining[0], self.remaining[1])?;
        }
        if !self.unexpected.is_empty() {
            writeln!(f, "! the kernel's is not: {}", self.unexpected.join(" "))?;
        }
        Ok(())
    }
}

/// What a sequence says about a packet, in the words that it may use: `forwarded` or `dropped`, `answered`
/// (by an ICMP error of the node), `none` or the words of entries.
pub(super) fn facts(left: &[String], table: &[String]) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    let is_error = |text: &String| text.contains(" icmp error ");
    facts.insert(if left.is_empty() { "dropped" } else { "forwarded" }.to_owned());
    if left.iter().any(is_error) {
        facts.insert("answered".to_owned());
    }
    if table.is_empty() {
        facts.insert("none".to_owned());
    }
    facts.insert(format!("entries:{}", table.len()));
    for entry in table {
        facts.extend(entry.split(' ').map(str::to_owned));
    }
    facts
}

/// A difference that is meant to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deliberate {
    /// Why.
    pub reason: String,
    /// Where: sequence, whether in IPv4 and in IPv6, number of the packet, in what.
    pub places: Vec<(String, [bool; 2], usize, What)>,
}

/// Reads the differences that are meant to be:
///
/// ```text
/// difference WHY, on one line
///   SEQUENCE [ipv4|ipv6] NUMBER left|table|time …
/// ```
///
/// # Errors
/// The number of the first line that makes no sense.
pub fn parse_deliberate(text: &str) -> Result<Vec<Deliberate>, String> {
    let mut found: Vec<Deliberate> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let wrong = || format!("line {}: {line:?} is no place of a difference", number + 1);
        if let Some(reason) = line.strip_prefix("difference ") {
            found.push(Deliberate { reason: reason.to_owned(), places: Vec::new() });
            continue;
        }
        let mut words = line.split_whitespace().peekable();
        let name = words.next().ok_or_else(wrong)?;
        let families = match words.peek() {
            Some(&"ipv4") => [true, false],
            Some(&"ipv6") => [false, true],
            _ => [true, true],
        };
        if families != [true, true] {
            words.next();
        }
        let current = found.last_mut().ok_or_else(wrong)?;
        let before = current.places.len();
        let mut step = None;
        for word in words {
            if let Ok(number) = word.parse() {
                step = Some(number);
                continue;
            }
            let what = What::NAMES.iter().find(|(_, name)| *name == word).ok_or_else(wrong)?.0;
            current.places.push((name.to_owned(), families, step.ok_or_else(wrong)?, what));
        }
        if current.places.len() == before {
            return Err(wrong());
        }
    }
    Ok(found)
}

/// Holds what was found in a sequence to what is meant to be: nothing less, nothing more.
///
/// # Errors
/// All that happened, with what is not as it should be.
pub fn judge(
    sequence: &Sequence,
    family: Family,
    outcomes: &[Outcome],
    deliberate: &[Deliberate],
) -> Result<(), String> {
    let meant: BTreeSet<(usize, What)> = deliberate
        .iter()
        .flat_map(|difference| &difference.places)
        .filter(|(name, families, ..)| {
            *name == sequence.name && families[usize::from(family == Family::IPv6)]
        })
        .map(|(_, _, number, what)| (*number, *what))
        .collect();
    let found: BTreeSet<(usize, What)> = outcomes
        .iter()
        .flat_map(|outcome| outcome.differences().into_iter().map(|what| (outcome.number, what)))
        .collect();
    if found == meant {
        return Ok(());
    }
    let list = |places: BTreeSet<&(usize, What)>| {
        places.iter().map(|(number, what)| format!("{number} {what}")).collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    let (more, less) =
        (found.difference(&meant).collect(), meant.difference(&found).collect::<BTreeSet<_>>());
    text.push_str(&format!("{}: not meant to differ: [{}]", sequence.name, list(more)));
    if !less.is_empty() {
        text.push_str(&format!("; meant to differ and does not: [{}]", list(less)));
    }
    text.push('\n');
    for outcome in outcomes {
        text.push_str(&outcome.to_string());
    }
    Err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_05_the_time_left_tells_the_timeout() {
        let settings = timeouts(&BTreeMap::new());
        for timeout in Timeout::ALL {
            let seconds = f64::from(settings[timeout.name()]);
            for remaining in [seconds, seconds - 15.0] {
                assert!(timeout.name().ends_with(class(remaining, &settings)), "{timeout:?}");
            }
        }
        assert_eq!(class(3000.0, &settings), "longer than any");
    }

    fn outcome(number: usize, left: [&str; 2]) -> Outcome {
        Outcome { number, left: left.map(|word| vec![word.to_owned()]), ..Outcome::default() }
    }

    #[test]
    fn what_is_meant_to_differ_must_differ() {
        let [sequence] = super::super::script::parse("sequence s").unwrap().try_into().unwrap();
        let meant = parse_deliberate("difference why\n  s ipv4 2 left\n").unwrap();
        let equal = [outcome(1, ["a", "a"]), outcome(2, ["b", "b"])];
        let other = [outcome(1, ["a", "a"]), outcome(2, ["b", "c"])];
        let judged =
            |family, outcomes: &[Outcome], meant: &[Deliberate]| judge(&sequence, family, outcomes, meant);
        assert_eq!(judged(Family::IPv4, &other, &meant), Ok(()));
        assert_eq!(judged(Family::IPv6, &equal, &meant), Ok(()));
        let text = judged(Family::IPv4, &equal, &meant).unwrap_err();
        assert!(text.contains("meant to differ and does not: [2 left]"), "{text}");
        let text = judged(Family::IPv6, &other, &meant).unwrap_err();
        assert!(text.contains("not meant to differ: [2 left]"), "{text}");
        assert!(text.contains("! left:\n    kernel: b\n    Pollux: c"), "{text}");
    }

    #[test]
    fn the_time_left_is_compared() {
        let mut outcome = outcome(1, ["a", "a"]);
        outcome.remaining = [vec![100.0], vec![101.4]];
        assert_eq!(outcome.differences(), BTreeSet::new());
        outcome.remaining = [vec![100.0], vec![97.9]];
        assert_eq!(outcome.differences(), BTreeSet::from([What::Time]));
    }
}
