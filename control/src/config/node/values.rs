//! The values of the document's fields, each checked by itself.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use globset::Glob;
use pollux_dataplane::capture::Filter;
use pollux_dataplane::flow::LONGEST;
use pollux_dataplane::port::MAX_FRAME;
use pollux_dataplane::port::fault::{Faults, Probability};

use super::wire::{WireCapture, WireFaults};
use super::{InterfaceAddress, PortCapture, PortWatch, SYSCTLS, SysctlKind};
use crate::cluster::{IpPrefix, parse_address};
use crate::config::duration::parse_duration;
use crate::problem::Findings;

/// The highest number of a processor (`CPU_SETSIZE`).
const LAST_CORE: u32 = 1023;

/// Longest pattern of names.
const LONGEST_PATTERN: usize = 64;

/// A prefix; an address alone is the prefix that holds it.
pub(super) fn prefix(text: &str) -> Option<IpPrefix> {
    IpPrefix::parse(text).or_else(|| {
        let address = parse_address(text)?;
        IpPrefix::new(address, if address.is_ipv4() { 32 } else { 128 })
    })
}

pub(super) fn address(part: &str, field: &str, text: &str, findings: &mut Findings) -> Option<IpAddr> {
    let address = parse_address(text);
    if address.is_none() {
        findings.error_in(part, format!("{field} {text:?} is not an IP address"));
    }
    address
}

pub(super) fn addresses(part: &str, texts: Vec<String>, findings: &mut Findings) -> Vec<InterfaceAddress> {
    let mut addresses: Vec<InterfaceAddress> = Vec::with_capacity(texts.len());
    for text in texts {
        let address = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
        match (parse_address(address), prefix(&text)) {
            (Some(address), Some(subnet)) => {
                if addresses.iter().any(|other| other.address == address) {
                    findings.error_in(part, format!("addresses has {address} twice"));
                }
                addresses.push(InterfaceAddress { address, length: subnet.len() });
            }
            _ => findings.error_in(
                part,
                format!("addresses {text:?} is not an address with a prefix length (172.16.1.50/12)"),
            ),
        }
    }
    addresses
}

pub(super) fn parse<T: FromStr>(part: &str, field: &str, text: &str, findings: &mut Findings) -> Option<T>
where
    T::Err: Display,
{
    text.parse().map_err(|error| findings.error_in(part, format!("{field} {error}"))).ok()
}

pub(super) fn range(
    part: &str,
    field: &str,
    number: Option<i64>,
    range: std::ops::RangeInclusive<u32>,
    findings: &mut Findings,
) -> Option<u32> {
    let number = number?;
    let in_range = u32::try_from(number).ok().filter(|number| range.contains(number));
    if in_range.is_none() {
        findings.error_in(part, format!("{field} {number} is not in {}-{}", range.start(), range.end()));
    }
    in_range
}

/// Longest `faults.delay`.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

pub(super) fn faults(part: &str, wire: &WireFaults, findings: &mut Findings) -> Faults {
    let mut probability = |field: &str, number: Option<f64>| {
        let number = number.unwrap_or(0.0);
        Probability::new(number).unwrap_or_else(|| {
            findings.error_in(part, format!("faults.{field} {number} is not a probability (0 to 1)"));
            Probability::NEVER
        })
    };
    let (loss, duplicate) = (probability("loss", wire.loss), probability("duplicate", wire.duplicate));
    let (reorder, corrupt) = (probability("reorder", wire.reorder), probability("corrupt", wire.corrupt));
    let delay = wire.delay.as_deref().map_or(Some(Duration::ZERO), parse_duration);
    let delay = delay.filter(|delay| *delay <= LONGEST_DELAY).unwrap_or_else(|| {
        let text = wire.delay.as_deref().unwrap_or_default();
        findings.error_in(part, format!("faults.delay {text:?} is not a duration from 0 to 10s"));
        Duration::ZERO
    });
    Faults { loss, duplicate, reorder, corrupt, delay, seed: wire.seed }
}

pub(super) fn cores(wire: &[i64], findings: &mut Findings) -> Vec<u16> {
    let mut cores = Vec::with_capacity(wire.len());
    for core in wire {
        let Some(core) = range("", "cores", Some(*core), 0..=LAST_CORE, findings) else { continue };
        let core = core as u16;
        if cores.contains(&core) {
            findings.error(format!("cores has {core} twice"));
        }
        cores.push(core);
    }
    cores
}

pub(super) fn pattern(part: &str, name: &str, findings: &mut Findings) {
    let reads = || Glob::new(name).map(drop).map_err(|error| error.kind().to_string());
    let wrong = if name.len() > LONGEST_PATTERN {
        Some(format!("has more than {LONGEST_PATTERN} characters"))
    } else if name.contains(|c: char| c.is_whitespace() || c == '/') {
        Some("has a space or /".to_owned())
    } else {
        reads().err()
    };
    if let Some(why) = wrong {
        findings.error_in(part, format!("name {name:?} is no pattern of interface names: {why}"));
    }
}

/// Least bytes of a frame that are worth to be kept: the Ethernet header.
const SHORTEST_SNAP: u32 = 14;

pub(super) fn capture(part: &str, wire: WireCapture, findings: &mut Findings) -> PortCapture {
    if wire.file.is_empty() {
        findings.error_in(part, "capture.file is empty");
    }
    let lengths = SHORTEST_SNAP..=MAX_FRAME as u32;
    let snap_len = range(part, "capture.snapLength", wire.snap_length, lengths, findings);
    let watch = PortWatch {
        filter: filter(part, "capture.filter", wire.filter, findings),
        snap_len: snap_len.unwrap_or(MAX_FRAME as u32),
        view: wire.view,
    };
    PortCapture { file: wire.file.into(), watch }
}

pub(super) fn filter(part: &str, field: &str, text: Option<String>, findings: &mut Findings) -> Filter {
    let text = text.unwrap_or_default();
    text.parse().unwrap_or_else(|error| {
        findings.error_in(part, format!("{field} {text:?}: {error}"));
        Filter::default()
    })
}

pub(super) fn interface_name(part: &str, field: &str, name: &str, findings: &mut Findings) {
    let fits = (1..=15).contains(&name.len()) && !matches!(name, "." | "..");
    if !fits || name.contains(|c: char| c.is_whitespace() || c == '/' || c == '!') {
        findings.error_in(
            part,
            format!("{field} {name:?} is not an interface name (1 to 15 characters, no space, / or !)"),
        );
    }
}

pub(super) fn sysctl(wire: BTreeMap<String, i64>, findings: &mut Findings) -> BTreeMap<String, u32> {
    let mut settings = BTreeMap::new();
    for (name, number) in wire {
        let Some((_, kind)) = SYSCTLS.iter().find(|(known, _)| *known == name) else {
            findings.error(format!("sysctl.{name} is not known"));
            continue;
        };
        let limits = match kind {
            SysctlKind::Seconds => 1..=LONGEST.as_secs() as u32,
            SysctlKind::Switch => 0..=1,
            SysctlKind::Count => 0..=255,
        };
        if let Some(number) = range("", &format!("sysctl.{name}"), Some(number), limits, findings) {
            settings.insert(name, number);
        }
    }
    settings
}
