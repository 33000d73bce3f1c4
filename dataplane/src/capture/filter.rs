//! Which frames are meant: a subset of pcap-filter(7), the language of tcpdump and Wireshark's capture filters.
//!
//! ```text
//! expression   primitives joined by `and` (`&&`), `or` (`||`), `not` (`!`) and parentheses; `not` binds closest,
//!              `and` and `or` bind alike and from the left, as in libpcap
//! address      [ip|ip6|arp] [src|dst|src or dst|src and dst] [host ADDRESS | net PREFIX]
//! port         [tcp|udp|sctp] [src|dst|...] [port N | portrange N-M]
//! protocol     ip, ip6, arp, tcp, udp, sctp, icmp, icmp6, [ip|ip6] proto N, ether proto N
//! link         ether [src|dst|...] [host MAC], ether broadcast, ether multicast
//! frame        inbound, outbound, less BYTES, greater BYTES
//! ```
//!
//! A value without a keyword takes that of the one before (`port 80 or 443`). An address alone is a host; `host` and
//! `net` also look at the addresses in ARP. A fragment that is not the first has no ports. Different from libpcap:
//! IPv6 extension headers are looked through, numbers are not written as names, and nothing behind a VLAN tag is seen.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::Direction;
use crate::packet::{Family, Protocol, V4, V6, ethernet};

/// Longest expression, bytes.
pub const LONGEST: usize = 4096;

/// Parentheses and negations within each other, at most: one bit each while a frame is judged.
const DEEPEST: usize = 32;

/// A filter, read and ready to judge frames. The empty expression means every frame.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// In the order of evaluation: a test pushes its answer, an operator takes its operands off.
    program: Vec<Op>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Test(Test),
    Not,
    And,
    Or,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Test {
    Direction(Direction),
    Shorter(usize),
    Longer(usize),
    EtherType(u16),
    /// An IP protocol, in any family or in one.
    Protocol(Option<Version>, Protocol),
    /// Addresses under a mask; of ARP's too, or of them alone.
    Address(Carrier, Side, Version, u128, u128),
    /// A range of ports, of one protocol or of each that has ports.
    Ports(Option<Protocol>, Side, u16, u16),
    Link(Side, [u8; 6]),
    /// The lowest bit of the link destination.
    Group,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V4,
    V6,
}

/// In which headers an address is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Carrier {
    Any,
    Ip,
    Arp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Source,
    Destination,
    Either,
    Both,
}

impl Side {
    fn holds(self, source: bool, destination: bool) -> bool {
        match self {
            Side::Source => source,
            Side::Destination => destination,
            Side::Either => source || destination,
            Side::Both => source && destination,
        }
    }
}

/// An expression that is not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilterError(String);

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FilterError {}

fn error<T>(text: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError(text.into()))
}

impl Filter {
    /// Whether a frame is meant: `head` is its beginning, with all of its headers, `len` its length in bytes.
    pub fn selects(&self, direction: Direction, head: &[u8], len: usize) -> bool {
        if self.program.is_empty() {
            return true;
        }
        let frame = View::of(direction, head, len);
        let mut answers = 0u64;
        for op in &self.program {
            answers = match op {
                Op::Test(test) => answers << 1 | u64::from(frame.answers(test)),
                Op::Not => answers ^ 1,
                Op::And => (answers >> 1) & (answers | !1),
                Op::Or => (answers >> 1) | (answers & 1),
            };
        }
        answers & 1 == 1
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    /// # Errors
    /// The word that is not understood, and what may stand there.
    fn from_str(text: &str) -> Result<Filter, FilterError> {
        if text.len() > LONGEST {
            return error(format!("a filter has at most {LONGEST} bytes, this one {}", text.len()));
        }
        let mut parser = Parser { words: words(text), at: 0, program: Vec::new(), before: None };
        if parser.words.is_empty() {
            return Ok(Filter::default());
        }
        parser.expression(0)?;
        match parser.peek() {
            None => Ok(Filter { program: parser.program }),
            Some(word) => error(format!("{word}: expected `and` or `or` before it")),
        }
    }
}

/// Words, and the signs that need no space around them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '(' | ')' | '!' => 1,
            '&' | '|' if rest.as_bytes().get(1) == rest.as_bytes().first() => 2,
            _ => rest
                .find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '!' | '&' | '|'))
                .unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at(len.max(first.len_utf8()));
        words.push(word);
        rest = after.trim_start();
    }
    words
}

/// What a value means: the keywords before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Qualifiers<'a> {
    protocol: Option<&'a str>,
    side: Side,
    kind: &'a str,
}

struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
    program: Vec<Op>,
    before: Option<Qualifiers<'a>>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn takes(&mut self, words: &[&str]) -> bool {
        let there = self.peek().is_some_and(|word| words.contains(&word));
        self.at += usize::from(there);
        there
    }

    fn take(&mut self, after: &str) -> Result<&'a str, FilterError> {
        match self.peek() {
            Some(word) => {
                self.at += 1;
                Ok(word)
            }
            None => error(format!("{after}: something is missing behind it")),
        }
    }

    fn expression(&mut self, depth: usize) -> Result<(), FilterError> {
        self.factor(depth)?;
        loop {
            let op = if self.takes(&["and", "&&"]) {
                Op::And
            } else if self.takes(&["or", "||"]) {
                Op::Or
            } else {
                return Ok(());
            };
            self.factor(depth)?;
            self.program.push(op);
        }
    }

    fn factor(&mut self, depth: usize) -> Result<(), FilterError> {
        if depth > DEEPEST {
            return error(format!("more than {DEEPEST} parentheses and negations within each other"));
        }
        if self.takes(&["not", "!"]) {
            self.factor(depth + 1)?;
            self.program.push(Op::Not);
            return Ok(());
        }
        if self.takes(&["("]) {
            self.expression(depth + 1)?;
            if !self.takes(&[")"]) {
                return error("a parenthesis is not closed");
            }
            return Ok(());
        }
        let test = self.primitive()?;
        self.program.push(Op::Test(test));
        Ok(())
    }

    fn primitive(&mut self) -> Result<Test, FilterError> {
        let word = self.take(self.words.last().copied().unwrap_or("filter"))?;
        match word {
            "inbound" => return Ok(Test::Direction(Direction::In)),
            "outbound" => return Ok(Test::Direction(Direction::Out)),
            "less" => return Ok(Test::Shorter(number(word, self.take(word)?, u32::MAX)? as usize)),
            "greater" => return Ok(Test::Longer(number(word, self.take(word)?, u32::MAX)? as usize)),
            "icmp" => return Ok(Test::Protocol(Some(Version::V4), Protocol::ICMP)),
            "icmp6" => return Ok(Test::Protocol(Some(Version::V6), Protocol::ICMPV6)),
            _ => self.at -= 1,
        }
        let protocol = self.peek().filter(|word| PROTOCOLS.contains(word));
        self.at += usize::from(protocol.is_some());
        if protocol == Some("ether") && self.takes(&["broadcast"]) {
            return Ok(Test::Link(Side::Destination, [0xff; 6]));
        }
        if protocol == Some("ether") && self.takes(&["multicast"]) {
            return Ok(Test::Group);
        }
        let side = self.side();
        let kind = self.peek().filter(|word| KINDS.contains(word));
        self.at += usize::from(kind.is_some());
        let qualifiers = match (protocol, side, kind, self.before) {
            (Some(protocol), None, None, _) => return alone(protocol),
            (None, None, None, Some(before)) => before,
            _ => Qualifiers { protocol, side: side.unwrap_or(Side::Either), kind: kind.unwrap_or("host") },
        };
        let value = self.take(kind.unwrap_or(word))?;
        if matches!(value, "and" | "&&" | "or" | "||" | ")" | "(" | "not" | "!") {
            return error(format!("{value}: expected a value before it"));
        }
        self.before = Some(qualifiers);
        qualifiers.test(value)
    }

    fn side(&mut self) -> Option<Side> {
        let side = match self.peek()? {
            "src" => Side::Source,
            "dst" => Side::Destination,
            _ => return None,
        };
        self.at += 1;
        match self.words.get(self.at..self.at + 2) {
            Some(["or", "src" | "dst"]) => {
                self.at += 2;
                Some(Side::Either)
            }
            Some(["and", "src" | "dst"]) => {
                self.at += 2;
                Some(Side::Both)
            }
            _ => Some(side),
        }
    }
}

const PROTOCOLS: [&str; 7] = ["ether", "ip", "ip6", "arp", "tcp", "udp", "sctp"];
const KINDS: [&str; 5] = ["host", "net", "port", "portrange", "proto"];

/// A protocol without anything behind it.
fn alone(protocol: &str) -> Result<Test, FilterError> {
    match protocol {
        "ip" => Ok(Test::EtherType(V4::ETHER_TYPE)),
        "ip6" => Ok(Test::EtherType(V6::ETHER_TYPE)),
        "arp" => Ok(Test::EtherType(ethernet::ARP)),
        "ether" => error("ether: expected host, src, dst, proto, broadcast or multicast behind it"),
        other => Ok(Test::Protocol(None, transport(other).expect("one of the others"))),
    }
}

fn transport(word: &str) -> Option<Protocol> {
    match word {
        "tcp" => Some(Protocol::TCP),
        "udp" => Some(Protocol::UDP),
        "sctp" => Some(Protocol::SCTP),
        _ => None,
    }
}

impl Qualifiers<'_> {
    fn test(self, value: &str) -> Result<Test, FilterError> {
        let Qualifiers { protocol, side, kind } = self;
        let wrong =
            || error(format!("{kind} {value}: has no meaning behind {}", protocol.unwrap_or_default()));
        match (kind, protocol) {
            ("host", Some("ether")) => Ok(Test::Link(side, link(value)?)),
            ("host" | "net", None | Some("ip" | "ip6" | "arp")) => self.address(value),
            ("port", None | Some("tcp" | "udp" | "sctp")) => {
                let port = number("port", value, 65_535)? as u16;
                Ok(Test::Ports(protocol.and_then(transport), side, port, port))
            }
            ("portrange", None | Some("tcp" | "udp" | "sctp")) => {
                let Some((low, high)) = value.split_once('-') else {
                    return error(format!("portrange {value}: is not two ports, as in 8000-8080"));
                };
                let (low, high) = (number("portrange", low, 65_535)?, number("portrange", high, 65_535)?);
                if low > high {
                    return error(format!("portrange {value}: ends before it begins"));
                }
                Ok(Test::Ports(protocol.and_then(transport), side, low as u16, high as u16))
            }
            ("proto", Some("ether")) => Ok(Test::EtherType(number("ether proto", value, 65_535)? as u16)),
            ("proto", None | Some("ip" | "ip6")) => {
                let version = match protocol {
                    Some("ip") => Some(Version::V4),
                    Some("ip6") => Some(Version::V6),
                    _ => None,
                };
                let protocol = match (transport(value), value) {
                    (Some(protocol), _) => protocol,
                    (None, "icmp") => Protocol::ICMP,
                    (None, "icmp6") => Protocol::ICMPV6,
                    (None, value) => Protocol(number("proto", value, 255)? as u8),
                };
                Ok(Test::Protocol(version, protocol))
            }
            _ => wrong(),
        }
    }

    fn address(self, value: &str) -> Result<Test, FilterError> {
        let Qualifiers { protocol, side, kind } = self;
        let (address, length) = match (kind, value.split_once('/')) {
            ("net", Some((address, length))) => (address, Some(number("net", length, 128)?)),
            ("net", None) => return error(format!("net {value}: is not a prefix such as 10.96.0.0/12")),
            _ => (value, None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            return error(format!(
                "{kind} {value}: is not an IP address (nor a keyword of pcap-filter that is known here)"
            ));
        };
        let (version, bits, width) = bits(address);
        let length = length.unwrap_or(width);
        if length > width {
            return error(format!("net {value}: a prefix of its family has at most {width} bits"));
        }
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0) >> (128 - width);
        if bits & !mask != 0 {
            return error(format!("net {value}: has bits behind its prefix"));
        }
        let carrier = match (protocol, version) {
            (Some("arp"), Version::V4) => Carrier::Arp,
            (Some("ip"), Version::V4) | (Some("ip6"), Version::V6) => Carrier::Ip,
            (None, _) => Carrier::Any,
            (Some(protocol), _) => {
                return error(format!("{protocol} {kind} {value}: is an address of the other family"));
            }
        };
        Ok(Test::Address(carrier, side, version, bits, mask))
    }
}

/// Family, bits, and how many there are.
fn bits(address: IpAddr) -> (Version, u128, u32) {
    match address {
        IpAddr::V4(address) => (Version::V4, address.to_bits().into(), 32),
        IpAddr::V6(address) => (Version::V6, address.to_bits(), 128),
    }
}

fn number(what: &str, text: &str, most: u32) -> Result<u32, FilterError> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match number.filter(|number| *number <= most) {
        Some(number) => Ok(number),
        None => error(format!("{what} {text}: is not a number from 0 to {most}")),
    }
}

fn link(text: &str) -> Result<[u8; 6], FilterError> {
    match text.parse::<crate::packet::LinkAddr>() {
        Ok(address) => Ok(address.0),
        Err(_) => error(format!("ether host {text}: is not a link address such as 02:00:00:00:00:01")),
    }
}

/// What a filter looks at.
struct View<'a> {
    direction: Direction,
    len: usize,
    head: &'a [u8],
    ether_type: u16,
    /// Source and destination, of IP or of ARP.
    addresses: Option<(Version, u128, u128)>,
    protocol: Option<Protocol>,
    ports: Option<(u16, u16)>,
}

impl<'a> View<'a> {
    fn of(direction: Direction, head: &'a [u8], len: usize) -> View<'a> {
        let ether_type = short(head, 12).unwrap_or(0);
        let mut view =
            View { direction, len, head, ether_type, addresses: None, protocol: None, ports: None };
        let packet = head.get(ethernet::LEN..).unwrap_or_default();
        // What is cut off has no value, and no test holds of it.
        let _ = match ether_type {
            V4::ETHER_TYPE => view.read_v4(packet),
            V6::ETHER_TYPE => view.read_v6(packet),
            ethernet::ARP => view.read_arp(packet),
            _ => None,
        };
        view
    }

    fn read_v4(&mut self, packet: &[u8]) -> Option<()> {
        let address = |at| Some(u128::from(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?)));
        self.addresses = Some((Version::V4, address(12)?, address(16)?));
        self.protocol = Some(Protocol(packet[9]));
        let is_first = short(packet, 6)? & 0x1fff == 0;
        let header = usize::from(packet[0] & 0x0f) * 4;
        self.ports = ports(packet.get(header..).filter(|_| is_first && header >= 20)?);
        Some(())
    }

    fn read_v6(&mut self, packet: &[u8]) -> Option<()> {
        let address = |at| Some(u128::from_be_bytes(packet.get(at..at + 16)?.try_into().ok()?));
        self.addresses = Some((Version::V6, address(8)?, address(24)?));
        let (mut next, mut at) = (packet[6], 40);
        let mut is_first = true;
        // Each header moves on, so the frame's end ends it.
        loop {
            let len = match next {
                0 | 43 | 60 | 135 => (usize::from(*packet.get(at + 1)?) + 1) * 8,
                44 => {
                    is_first &= short(packet, at + 2)? & 0xfff8 == 0;
                    8
                }
                51 => (usize::from(*packet.get(at + 1)?) + 2) * 4,
                _ => break,
            };
            if !is_first {
                // What it would be in the first fragment.
                self.protocol = Some(Protocol(*packet.get(at)?));
                return None;
            }
            next = *packet.get(at)?;
            at += len;
        }
        self.protocol = Some(Protocol(next));
        self.ports = ports(packet.get(at..)?);
        Some(())
    }

    fn read_arp(&mut self, packet: &[u8]) -> Option<()> {
        // Ethernet and IPv4, which is all there is.
        packet.get(..6).filter(|fixed| fixed[..6] == [0, 1, 8, 0, 6, 4])?;
        let address = |at| Some(u128::from(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?)));
        self.addresses = Some((Version::V4, address(14)?, address(24)?));
        Some(())
    }

    fn answers(&self, test: &Test) -> bool {
        match *test {
            Test::Direction(direction) => direction == self.direction,
            Test::Shorter(bytes) => self.len <= bytes,
            Test::Longer(bytes) => self.len >= bytes,
            Test::EtherType(ether_type) => self.ether_type == ether_type && self.head.len() >= ethernet::LEN,
            Test::Protocol(version, protocol) => {
                let family = match version {
                    Some(Version::V4) => self.ether_type == V4::ETHER_TYPE,
                    Some(Version::V6) => self.ether_type == V6::ETHER_TYPE,
                    None => true,
                };
                family && self.protocol == Some(protocol)
            }
            Test::Address(carrier, side, version, wanted, mask) => {
                let is_arp = self.ether_type == ethernet::ARP;
                let carried = match carrier {
                    Carrier::Any => true,
                    Carrier::Ip => !is_arp,
                    Carrier::Arp => is_arp,
                };
                carried
                    && self.addresses.is_some_and(|(family, source, destination)| {
                        family == version && side.holds(source & mask == wanted, destination & mask == wanted)
                    })
            }
            Test::Ports(protocol, side, low, high) => {
                let has_ports = |is: Protocol| match protocol {
                    Some(protocol) => is == protocol,
                    None => is.has_ports(),
                };
                self.protocol.is_some_and(has_ports)
                    && self.ports.is_some_and(|(source, destination)| {
                        let range = low..=high;
                        side.holds(range.contains(&source), range.contains(&destination))
                    })
            }
            Test::Link(side, address) => self
                .head
                .first_chunk::<12>()
                .is_some_and(|link| side.holds(link[6..] == address, link[..6] == address)),
            Test::Group => self.head.first().is_some_and(|first| first & 1 == 1),
        }
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    Some((short(transport, 0)?, short(transport, 2)?))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
