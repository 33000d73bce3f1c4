//! What becomes of packets, in words in which everything free has lost its number, so that the words of both
//! sides can be compared; and which differences are meant to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use pollux_dataplane::packet::Protocol;

use super::flows::{Clients, FlowSpec};
use super::packet::{Checksum, Datagram, Seen, Tuple};
use super::report::Deliberate;
use super::shot::{ANSWER, Shot};
use super::site::Site;
use super::wire::{Place, Sighting};

/// Backends up to which each one's words are compared. With more, a flow's packets are compared without
/// them; the test of the distribution then compares the set.
pub(super) const FEW: usize = 8;

/// What became of a flow's packets, step by step, in words; one set for each side.
pub(super) type Words = BTreeMap<Step, [BTreeSet<String>; 2]>;

/// What is compared of a connection, in the order of cause and effect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    First,
    Affinity,
    Answer,
    Second,
    Connection,
}

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Step::First => "first packet",
            Step::Affinity => "affinity",
            Step::Answer => "answer",
            Step::Second => "second packet",
            Step::Connection => "connection",
        }
    }
}

/// Finds the words.
#[derive(Clone, Copy)]
pub(super) struct Wording<'a> {
    pub(super) site: &'a Site,
    /// Whether masqueraded connections keep their port where they can: then it is not free.
    pub(super) keeps_ports: bool,
}

impl Wording<'_> {
    /// A packet that came out, in words.
    pub(super) fn packet_words(&self, shot: &Shot<'_>, sent: &Datagram, sighting: &Sighting) -> String {
        let Sighting { place, seen } = sighting;
        let port = self.place_name(*place);
        let unsound = match seen.sound || (sent.checksum == Checksum::Wrong && seen.error.is_none()) {
            true => "",
            false => ", wrong checksum or link address",
        };
        if let Some(error) = &seen.error {
            let quoted = self.tuple_words(shot, sent, &error.quoted, false);
            let mtu = if error.word == 0 { String::new() } else { format!(" ({})", error.word) };
            let Tuple { source, destination, .. } = seen.tuple;
            return format!(
                "ICMP error {}/{}{mtu} {source} > {destination} about {quoted} by {port}{unsound}",
                error.kind, error.code
            );
        }
        let changed = if seen.rest == Seen::rest_of(&sent.to_bytes()) { "" } else { ", changed" };
        let erased = self.erases(shot, &seen.tuple, sent);
        let tuple = self.tuple_words(shot, sent, &seen.tuple, erased);
        if erased {
            return format!("{tuple}{changed}{unsound}");
        }
        format!("{tuple} ttl {} by {port}{changed}{unsound}", seen.ttl)
    }

    /// Whether the backend of a translated packet is left out of the words: there are too many, or each side
    /// keeps to its own.
    fn erases(&self, shot: &Shot<'_>, tuple: &Tuple, sent: &Datagram) -> bool {
        let translated =
            (tuple.destination, tuple.destination_port) != (sent.destination, sent.destination_port);
        let is_echo = matches!(tuple.protocol, Protocol::ICMP | Protocol::ICMPV6);
        sent.tag.packet != ANSWER && translated && !is_echo && is_erased(shot.spec)
    }

    /// Whether a connection is left out, because each side may or may not meet its backend and no other
    /// would do: the client itself, which is masqueraded (MQ-03), and the node, which is not (WK-09).
    pub(super) fn is_left_out(&self, shot: &Shot<'_>, first: Option<&Sighting>) -> bool {
        let Some(Sighting { seen: Seen { tuple, error: None, .. }, .. }) = first else { return false };
        let translated = (tuple.destination, tuple.destination_port)
            != (shot.first.destination, shot.first.destination_port);
        let special = tuple.destination == shot.first.source || self.site.is_local(tuple.destination);
        is_erased(shot.spec) && translated && special
    }

    fn tuple_words(&self, shot: &Shot<'_>, sent: &Datagram, tuple: &Tuple, erased: bool) -> String {
        let client = shot.first.source_port;
        let address = |address: IpAddr| match shot.spec.clients {
            Clients::Each if address == shot.first.source => "client".to_owned(),
            _ => match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            },
        };
        // A source that is the node's own is masqueraded to itself: only the port says so.
        let forward = sent.tag.packet != ANSWER;
        let masqueraded = forward && (tuple.source != sent.source || tuple.source_port != client);
        let port = |number: u16| match number == client {
            true => "client's".to_owned(),
            false => number.to_string(),
        };
        let source_port = match masqueraded && !self.keeps_ports {
            true => class_of(tuple.protocol, tuple.source_port).to_owned(),
            false => port(tuple.source_port),
        };
        // An answer that was not translated back: the port may be a masqueraded one.
        let as_sent = !forward && tuple.destination_port == sent.destination_port;
        let destination_port = match as_sent && tuple.destination_port != client {
            true => "as sent".to_owned(),
            false => port(tuple.destination_port),
        };
        let from = format!("{}:{source_port}", address(tuple.source));
        let to = match (erased, tuple.protocol) {
            (true, _) => "a backend".to_owned(),
            (_, Protocol::ICMP | Protocol::ICMPV6) => address(tuple.destination),
            _ => format!("{}:{destination_port}", address(tuple.destination)),
        };
        format!("{from} > {to}")
    }

    /// A connection table's entry, in words: the reply tuple, seen as the packet that it answers.
    pub(super) fn entry_words(&self, shot: &Shot<'_>, reply: Option<&Tuple>) -> String {
        let Some(reply) = reply else { return "no entry".to_owned() };
        let is_echo = matches!(reply.protocol, Protocol::ICMP | Protocol::ICMPV6);
        let outgoing = Tuple {
            protocol: reply.protocol,
            source: reply.destination,
            source_port: if is_echo { reply.source_port } else { reply.destination_port },
            destination: reply.source,
            destination_port: if is_echo { 0 } else { reply.source_port },
        };
        let erased = self.erases(shot, &outgoing, &shot.first);
        format!("as {}", self.tuple_words(shot, &shot.first, &outgoing, erased))
    }

    fn place_name(&self, place: Place) -> &str {
        match place {
            Place::Port(number) => &self.site.ports[number],
            Place::Host => "the host",
        }
    }
}

/// Whether backends are left out of a flow's words.
pub(super) fn is_erased(spec: &FlowSpec) -> bool {
    spec.backends > FEW || spec.sticky
}

/// Whether two sides' words differ. One that has none had nothing to say: all its connections were left out.
pub(super) fn differ(spec: &FlowSpec, [kernel, pollux]: &[BTreeSet<String>; 2]) -> bool {
    kernel != pollux && !(is_erased(spec) && (kernel.is_empty() || pollux.is_empty()))
}

/// Why Pollux does what the kernel does not, where it is meant to.
pub(super) fn deliberate(
    spec: &FlowSpec,
    step: Step,
    [kernel, pollux]: &[BTreeSet<String>; 2],
) -> Option<Deliberate> {
    let from_loopback = spec.place == Place::Host && spec.source.is_loopback();
    let less = |word: &String| word == "nothing" || kernel.contains(word);
    match (step, spec.destination) {
        (Step::First, _) if from_loopback && pollux.iter().all(less) => {
            let source = if spec.source.is_ipv4() { "127.0.0.1:" } else { "[::1]:" };
            let leaves = |word: &String| word.starts_with(source) && !word.contains("by the host");
            kernel.iter().any(leaves).then_some(Deliberate::LoopbackLeaves)
        }
        (Step::First, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) if spec.place != Place::Host => {
            pollux.iter().all(|word| word == "nothing").then_some(Deliberate::UnspecifiedV6)
        }
        (Step::First, _) if is_mapped(spec.source) && spec.place != Place::Host => {
            pollux.iter().all(|word| word == "nothing").then_some(Deliberate::MappedV6)
        }
        (Step::Answer, IpAddr::V6(_)) if from_loopback => {
            pollux.iter().all(|word| word.contains("by the host")).then_some(Deliberate::LoopbackV6Answered)
        }
        (Step::Connection, _) if spec.place == Place::Host => {
            let none = pollux.iter().all(|word| word == "no entry");
            let untranslated = kernel.iter().all(|word| word.contains(&spec.destination.to_string()));
            (none && untranslated).then_some(Deliberate::RefusedLoop)
        }
        _ => None,
    }
}

/// Whether an IPv6 address is one that stands for an IPv4 address: ::ffff:a.b.c.d.
fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// The class of ports that a masqueraded one is taken from (NAT-05).
fn class_of(protocol: Protocol, port: u16) -> &'static str {
    match (protocol, port) {
        (Protocol::ICMP | Protocol::ICMPV6, _) => "(any)",
        (_, 0) => "(0)",
        (_, 1..512) => "(1-511)",
        (_, 512..600) => "(512-599)",
        (_, 600..1024) => "(600-1023)",
        _ => "(1024-65535)",
    }
}
