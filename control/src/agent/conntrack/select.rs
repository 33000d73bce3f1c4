//! Which connections a filter means.

use std::net::IpAddr;

use pollux_dataplane::flow::{FlowInfo, FlowKey, State};
use pollux_dataplane::packet::{Family, Protocol};

use super::super::view::address_or_prefix;
use super::{FlowFilter, PROTOCOLS, TupleFilter, state_name};
use crate::cluster::{IpPrefix, parse_address};

/// A filter whose texts were read.
pub(super) struct Selector<'a> {
    filter: &'a FlowFilter,
    version: Option<u8>,
    protocol: Option<Protocol>,
    original: [Option<IpPrefix>; 2],
    reply: [Option<IpPrefix>; 2],
    mark: Option<(u32, u32)>,
    source_nat: Option<Option<IpAddr>>,
    destination_nat: Option<Option<IpAddr>>,
}

impl<'a> Selector<'a> {
    /// # Errors
    /// The condition that cannot be read, with its value.
    pub(super) fn new(filter: &'a FlowFilter) -> Result<Selector<'a>, String> {
        let mut families = Families::default();
        let named = match filter.family.as_deref() {
            None => None,
            Some("ipv4") => Some(4),
            Some("ipv6") => Some(6),
            Some(other) => return Err(format!("family {other} is not ipv4 or ipv6")),
        };
        families.see(named)?;
        let original = addresses(&filter.original, ["orig-src", "orig-dst"], &mut families)?;
        let reply = addresses(&filter.reply, ["reply-src", "reply-dst"], &mut families)?;
        let source_nat = nat("src-nat", &filter.source_nat, &mut families)?;
        let destination_nat = nat("dst-nat", &filter.destination_nat, &mut families)?;
        if let Some(state) = &filter.state
            && !is_state(state)
        {
            return Err(format!("state {state} is not one of TCP or SCTP"));
        }
        Ok(Selector {
            filter,
            version: families.version,
            protocol: filter.protocol.as_deref().map(protocol).transpose()?,
            original,
            reply,
            mark: filter.mark.as_deref().map(mark).transpose()?,
            source_nat,
            destination_nat,
        })
    }

    /// Whether connections of the family may be meant.
    pub(super) fn has_family<A: Family>(&self) -> bool {
        self.version.is_none_or(|version| version == A::VERSION)
    }

    /// Whether every connection of the families is meant.
    pub(super) fn selects_all(&self) -> bool {
        FlowFilter { family: None, ..self.filter.clone() } == FlowFilter::default()
    }

    pub(super) fn selects<A: Family>(&self, flow: &FlowInfo<A>) -> bool {
        let filter = self.filter;
        let (original, reply) = (&flow.original, &flow.reply);
        let [kind, code] = original.destination_port.to_be_bytes();
        let is_icmp = original.protocol == A::ICMP;
        let icmp = |wanted: Option<u16>, value: u16| wanted.is_none_or(|wanted| is_icmp && wanted == value);
        // How its packets look as they leave.
        let sent = reply.reply();
        let source = (sent.source, sent.source_port) != (original.source, original.source_port);
        let destination =
            (sent.destination, sent.destination_port) != (original.destination, original.destination_port);
        let translated = |wanted: Option<Option<IpAddr>>, is: bool, to: A::Addr| {
            wanted.is_none_or(|address| is && address.is_none_or(|address| address == to.into()))
        };
        self.has_family::<A>()
            && self.protocol.is_none_or(|protocol| protocol == original.protocol)
            && tuple(original, &filter.original, &self.original)
            && tuple(reply, &filter.reply, &self.reply)
            && icmp(filter.icmp_type.map(u16::from), u16::from(kind))
            && icmp(filter.icmp_code.map(u16::from), u16::from(code))
            && icmp(filter.icmp_id, original.source_port)
            && has_state(flow.state, filter.state.as_deref())
            && self.mark.is_none_or(|(mark, mask)| flow.mark & mask == mark)
            && filter.seen_reply.is_none_or(|seen| seen == flow.seen_reply)
            && filter.assured.is_none_or(|assured| assured == flow.assured)
            && translated(self.source_nat, source, sent.source)
            && translated(self.destination_nat, destination, sent.destination)
            && (!filter.any_nat || source || destination)
    }
}

/// The family that all addresses of a filter have.
#[derive(Default)]
struct Families {
    version: Option<u8>,
}

impl Families {
    fn see(&mut self, version: Option<u8>) -> Result<(), String> {
        match (self.version, version) {
            (Some(one), Some(other)) if one != other => {
                Err("the filter has addresses of both families".to_owned())
            }
            (known, seen) => {
                self.version = known.or(seen);
                Ok(())
            }
        }
    }
}

fn addresses(
    filter: &TupleFilter,
    names: [&str; 2],
    families: &mut Families,
) -> Result<[Option<IpPrefix>; 2], String> {
    let mut read = |name: &str, text: &Option<String>| -> Result<Option<IpPrefix>, String> {
        let Some(text) = text else { return Ok(None) };
        let prefix =
            address_or_prefix(text).ok_or_else(|| format!("{name} {text} is not an address or prefix"))?;
        families.see(Some(if prefix.address().is_ipv4() { 4 } else { 6 }))?;
        Ok(Some(prefix))
    };
    Ok([read(names[0], &filter.source)?, read(names[1], &filter.destination)?])
}

fn nat(
    name: &str,
    wanted: &Option<String>,
    families: &mut Families,
) -> Result<Option<Option<IpAddr>>, String> {
    match wanted.as_deref() {
        None => Ok(None),
        Some("") => Ok(Some(None)),
        Some(text) => {
            let address = parse_address(text).ok_or_else(|| format!("{name} {text} is not an address"))?;
            families.see(Some(if address.is_ipv4() { 4 } else { 6 }))?;
            Ok(Some(Some(address)))
        }
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    let known = named.map(|(_, protocol)| *protocol).or_else(|| text.parse().ok().map(Protocol));
    let names = || PROTOCOLS.map(|(name, _)| name).join(", ");
    known.ok_or_else(|| format!("protocol {text} is not one of {} or a number", names()))
}

fn mark(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let read = match text.split_once('/') {
        Some((mark, mask)) => number(mark).zip(number(mask)),
        None => number(text).map(|mark| (mark, u32::MAX)),
    };
    read.ok_or_else(|| format!("mark {text} is not a mark (12, 0xc, 0x4000/0x4000)"))
}

fn tuple<A: Family>(key: &FlowKey<A>, filter: &TupleFilter, addresses: &[Option<IpPrefix>; 2]) -> bool {
    let within = |prefix: Option<IpPrefix>, address: A::Addr| {
        prefix.is_none_or(|prefix| IpPrefix::new(address.into(), prefix.len()) == Some(prefix))
    };
    let port = |wanted: Option<u16>, port: u16| {
        wanted.is_none_or(|wanted| key.protocol.has_ports() && wanted == port)
    };
    within(addresses[0], key.source)
        && within(addresses[1], key.destination)
        && port(filter.source_port, key.source_port)
        && port(filter.destination_port, key.destination_port)
}

fn has_state(state: State, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| state_name(state).is_some_and(|name| name.eq_ignore_ascii_case(wanted)))
}

/// Whether a state that is shown has this name.
fn is_state(name: &str) -> bool {
    State::all().any(|state| has_state(state, Some(name)))
}
