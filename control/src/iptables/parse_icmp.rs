//! ICMP types by name, as `--icmp-type` and `--icmpv6-type` have them.

use std::ops::RangeInclusive;

use pollux_dataplane::packet::Family;

use super::parse_words::number;

/// A name, its type, and its code if it names one.
type Name = (&'static str, u8, Option<u8>);

const V4: &[Name] = &[
    ("echo-reply", 0, None),
    ("pong", 0, None),
    ("destination-unreachable", 3, None),
    ("network-unreachable", 3, Some(0)),
    ("host-unreachable", 3, Some(1)),
    ("protocol-unreachable", 3, Some(2)),
    ("port-unreachable", 3, Some(3)),
    ("fragmentation-needed", 3, Some(4)),
    ("source-route-failed", 3, Some(5)),
    ("network-unknown", 3, Some(6)),
    ("host-unknown", 3, Some(7)),
    ("network-prohibited", 3, Some(9)),
    ("host-prohibited", 3, Some(10)),
    ("TOS-network-unreachable", 3, Some(11)),
    ("TOS-host-unreachable", 3, Some(12)),
    ("communication-prohibited", 3, Some(13)),
    ("host-precedence-violation", 3, Some(14)),
    ("precedence-cutoff", 3, Some(15)),
    ("source-quench", 4, None),
    ("redirect", 5, None),
    ("network-redirect", 5, Some(0)),
    ("host-redirect", 5, Some(1)),
    ("TOS-network-redirect", 5, Some(2)),
    ("TOS-host-redirect", 5, Some(3)),
    ("echo-request", 8, None),
    ("ping", 8, None),
    ("router-advertisement", 9, None),
    ("router-solicitation", 10, None),
    ("time-exceeded", 11, None),
    ("ttl-exceeded", 11, None),
    ("ttl-zero-during-transit", 11, Some(0)),
    ("ttl-zero-during-reassembly", 11, Some(1)),
    ("parameter-problem", 12, None),
    ("ip-header-bad", 12, Some(0)),
    ("required-option-missing", 12, Some(1)),
    ("timestamp-request", 13, None),
    ("timestamp-reply", 14, None),
    ("address-mask-request", 17, None),
    ("address-mask-reply", 18, None),
];

const V6: &[Name] = &[
    ("destination-unreachable", 1, None),
    ("no-route", 1, Some(0)),
    ("communication-prohibited", 1, Some(1)),
    ("beyond-scope", 1, Some(2)),
    ("address-unreachable", 1, Some(3)),
    ("port-unreachable", 1, Some(4)),
    ("failed-policy", 1, Some(5)),
    ("reject-route", 1, Some(6)),
    ("packet-too-big", 2, None),
    ("time-exceeded", 3, None),
    ("ttl-exceeded", 3, None),
    ("ttl-zero-during-transit", 3, Some(0)),
    ("ttl-zero-during-reassembly", 3, Some(1)),
    ("parameter-problem", 4, None),
    ("bad-header", 4, Some(0)),
    ("unknown-header-type", 4, Some(1)),
    ("unknown-option", 4, Some(2)),
    ("echo-request", 128, None),
    ("ping", 128, None),
    ("echo-reply", 129, None),
    ("pong", 129, None),
    ("mld-listener-query", 130, None),
    ("mld-listener-report", 131, None),
    ("mld-listener-done", 132, None),
    ("mld-listener-reduction", 132, None),
    ("router-solicitation", 133, None),
    ("router-advertisement", 134, None),
    ("neighbour-solicitation", 135, None),
    ("neighbor-solicitation", 135, None),
    ("neighbour-advertisement", 136, None),
    ("neighbor-advertisement", 136, None),
    ("redirect", 137, None),
];

/// A type and its codes, by name or by number; nothing for any type.
pub(super) fn read<A: Family>(text: &str) -> Result<Option<(u8, RangeInclusive<u8>)>, String> {
    let names = if A::VERSION == 4 { V4 } else { V6 };
    if let Some((_, kind, code)) = names.iter().find(|(name, ..)| name.eq_ignore_ascii_case(text)) {
        return Ok(Some((*kind, code.map_or(0..=u8::MAX, |code| code..=code))));
    }
    // The kernel takes 255 of IPv4 for all of them.
    if text == "any" || (A::VERSION == 4 && text == "255") {
        return Ok(None);
    }
    let byte = |text: &str| {
        let number = number(text).ok().and_then(|number| u8::try_from(number).ok());
        number.ok_or_else(|| format!("{text:?} is not an ICMP type of {}", A::NAME))
    };
    match text.split_once('/') {
        Some((kind, _)) if A::VERSION == 4 && number(kind) == Ok(255) => {
            Err(format!("{text:?}: the kernel takes type 255 for any, whatever the code"))
        }
        Some((kind, code)) => byte(code).and_then(|code| Ok(Some((byte(kind)?, code..=code)))),
        None => byte(text).map(|kind| Some((kind, 0..=u8::MAX))),
    }
}
