//! A packet that came out, in words: every field, so that what the two nodes sent can be compared and read.
//! What is free has lost its number: a port that masquerading chose anew, the identification of a packet that
//! the node itself made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use pollux_dataplane::packet::crc32c::Crc32c;

use super::frame::{Ends, pseudo};
use super::script::flag_letters;
use crate::lab::twins::packet::sum;

/// What a description may not take literally.
#[derive(Clone, Debug, Default)]
pub(super) struct Free {
    /// Ports that the node chose, with what stands for them.
    pub(super) ports: BTreeMap<u16, String>,
    /// Identifications of the packets that were sent.
    pub(super) sent: BTreeSet<u16>,
}

/// An IP header, read.
pub(super) struct Ip<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) ttl: u8,
    traffic_class: u8,
    flow_label: u32,
    pub(super) identification: Option<u32>,
    dont_fragment: bool,
    pub(super) offset: usize,
    pub(super) more: bool,
    sound: bool,
    /// Options or extension headers without fragment header.
    extra: Vec<u8>,
    /// Whether all that the header announces is there.
    complete: bool,
    pub(super) payload: &'a [u8],
}

impl<'a> Ip<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Ip<'a>> {
        match bytes.first()? >> 4 {
            4 => Ip::read_v4(bytes),
            6 => Ip::read_v6(bytes),
            _ => None,
        }
    }

    fn read_v4(bytes: &'a [u8]) -> Option<Ip<'a>> {
        let header = usize::from(bytes[0] & 15) * 4;
        let (fixed, options) = bytes.get(..header)?.split_at_checked(20)?;
        let total = usize::from(word(fixed, 2)?);
        let fragment = word(fixed, 6)?;
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&fixed[at..at + 4]).expect("four"));
        Some(Ip {
            source: address(12),
            destination: address(16),
            protocol: fixed[9],
            ttl: fixed[8],
            traffic_class: fixed[1],
            flow_label: 0,
            identification: Some(word(fixed, 4)?.into()),
            dont_fragment: fragment & 0x4000 != 0,
            offset: usize::from(fragment & 0x1fff) * 8,
            more: fragment & 0x2000 != 0,
            sound: sum(0, &bytes[..header]) == 0xffff,
            extra: options.to_vec(),
            complete: bytes.len() >= total,
            payload: &bytes[header..total.clamp(header, bytes.len())],
        })
    }

    fn read_v6(bytes: &'a [u8]) -> Option<Ip<'a>> {
        let fixed = bytes.get(..40)?;
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).expect("sixteen"));
        let total = 40 + usize::from(word(fixed, 4)?);
        let mut ip = Ip {
            source: address(8),
            destination: address(24),
            protocol: fixed[6],
            ttl: fixed[7],
            traffic_class: fixed[0] << 4 | fixed[1] >> 4,
            flow_label: u32::from(fixed[1] & 15) << 16 | u32::from(word(fixed, 2)?),
            identification: None,
            dont_fragment: false,
            offset: 0,
            more: false,
            sound: true,
            extra: Vec::new(),
            complete: bytes.len() >= total,
            payload: &bytes[40..total.min(bytes.len())],
        };
        while ip.offset == 0 {
            let length = match ip.protocol {
                0 | 43 | 60 => 8 + 8 * usize::from(*ip.payload.get(1)?),
                44 => 8,
                _ => break,
            };
            let (header, rest) = ip.payload.split_at_checked(length)?;
            if ip.protocol == 44 {
                let fragment = word(header, 2)?;
                ip.offset = usize::from(fragment & 0xfff8);
                ip.more = fragment & 1 != 0;
                ip.identification = Some(u32::from(word(header, 4)?) << 16 | u32::from(word(header, 6)?));
            } else {
                ip.extra.push(ip.protocol);
                ip.extra.extend(&header[1..]);
            }
            ip.protocol = header[0];
            ip.payload = rest;
        }
        Some(ip)
    }

    pub(super) fn is_fragment(&self) -> bool {
        self.more || self.offset > 0
    }

    fn is_icmp(&self) -> bool {
        self.protocol == if self.source.is_ipv4() { 1 } else { 58 }
    }

    fn is_error(&self) -> bool {
        let kind = self.payload.first().copied().unwrap_or(0);
        let v4 = self.source.is_ipv4();
        self.is_icmp() && self.offset == 0 && if v4 { matches!(kind, 3..=5 | 11 | 12) } else { kind < 128 }
    }

    /// Addresses and ports of a whole packet or a first fragment; nothing for an ICMP error. An echo's
    /// identifier is both ports.
    pub(super) fn ends(&self) -> Option<Ends> {
        if self.offset > 0 || self.is_error() {
            return None;
        }
        let (source_port, destination_port) = match self.protocol {
            6 | 17 | 132 => (word(self.payload, 0)?, word(self.payload, 2)?),
            _ if self.is_icmp() => (word(self.payload, 4)?, word(self.payload, 4)?),
            _ => (0, 0),
        };
        Some(Ends { source: self.source, source_port, destination: self.destination, destination_port })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn long(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |four| u32::from_be_bytes(four.try_into().expect("four")))
}

/// Whether a packet stands for itself or is quoted in an error, where its end may be missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Itself,
    Quoted,
}

/// A packet, in words.
pub(super) fn describe(bytes: &[u8], free: &Free) -> String {
    described(bytes, free, As::Itself)
}

fn described(bytes: &[u8], free: &Free, role: As) -> String {
    let Some(ip) = Ip::read(bytes) else { return format!("no IP packet: {}", hex(bytes)) };
    let mut text = String::new();
    let made_here = ip.identification.is_none_or(|id| !free.sent.contains(&(id as u16)));
    transport_words(&mut text, &ip, free, role);
    let _ = write!(text, ", ttl {}", ip.ttl);
    if ip.traffic_class != 0 {
        let _ = write!(text, " tos {}", ip.traffic_class);
    }
    if ip.flow_label != 0 && !ip.is_error() {
        let _ = write!(text, " flow label {:x}", ip.flow_label);
    }
    match ip.identification {
        Some(_) if made_here => text.push_str(" id new"),
        Some(id) => {
            let _ = write!(text, " id {id}");
        }
        None => {}
    }
    if ip.dont_fragment {
        text.push_str(" df");
    }
    if ip.is_fragment() {
        let end = ip.offset + ip.payload.len();
        let more = if ip.more { " more" } else { "" };
        let _ = write!(text, " fragment {}-{end}{more}", ip.offset);
    }
    if !ip.extra.is_empty() {
        let _ = write!(text, " with {}", hex(&ip.extra));
    }
    if !ip.sound {
        text.push_str(", wrong header checksum");
    }
    text
}

fn port(number: u16, free: &Free) -> String {
    free.ports.get(&number).cloned().unwrap_or_else(|| number.to_string())
}

fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn transport_words(text: &mut String, ip: &Ip<'_>, free: &Free, role: As) {
    let bytes = ip.payload;
    let (from, to) = (address(ip.source), address(ip.destination));
    if ip.offset > 0 {
        let _ = write!(text, "{from} > {to} protocol {} {}", ip.protocol, data(bytes));
        return;
    }
    let ports = |at: usize| port(word(bytes, at).unwrap_or(0), free);
    let (header, checksum) = match ip.protocol {
        6 if bytes.len() >= 20 => {
            let length = usize::from(bytes[12] >> 4) * 4;
            let _ = write!(
                text,
                "{from}:{} > {to}:{} tcp {} {} {} win {}",
                ports(0),
                ports(2),
                flag_letters(bytes[13]),
                long(bytes, 4),
                long(bytes, 8),
                word(bytes, 14).unwrap_or(0)
            );
            if let Some(options) = bytes.get(20..length).filter(|options| !options.is_empty()) {
                let _ = write!(text, " options {}", hex(options));
            }
            (length.clamp(20, bytes.len()), Some(16))
        }
        17 if bytes.len() >= 8 => {
            let length = word(bytes, 4).unwrap_or(0);
            let _ = write!(text, "{from}:{} > {to}:{} udp length {length}", ports(0), ports(2));
            (8, Some(6))
        }
        132 if bytes.len() >= 12 => {
            let _ = write!(text, "{from}:{} > {to}:{} sctp vtag {}", ports(0), ports(2), long(bytes, 4));
            (12, None)
        }
        _ if ip.is_error() && bytes.len() >= 8 => {
            let (kind, code) = (bytes[0], bytes[1]);
            let about = described(&bytes[8..], free, As::Quoted);
            let _ = write!(
                text,
                "{from} > {to} icmp error {kind}/{code} ({}) about {{{about}; {} bytes}}",
                long(bytes, 4),
                bytes.len() - 8
            );
            (bytes.len(), Some(2))
        }
        _ if ip.is_icmp() && bytes.len() >= 8 => {
            let _ = write!(
                text,
                "{from} > {to} icmp {}/{} id {} seq {}",
                bytes[0],
                bytes[1],
                ports(4),
                word(bytes, 6).unwrap_or(0)
            );
            (8, Some(2))
        }
        6 | 17 | 132 => {
            let _ = write!(text, "{from}:{} > {to}:{} protocol {}", ports(0), ports(2), ip.protocol);
            (4.min(bytes.len()), None)
        }
        number => {
            let _ = write!(text, "{from} > {to} protocol {number}");
            (0, None)
        }
    };
    let _ = write!(text, " {}", data(&bytes[header..]));
    if role == As::Quoted {
        // Of a packet whose end is missing it cannot be computed, but must be what it was.
        if let Some(checksum) = checksum.and_then(|at| word(bytes, at)) {
            let _ = write!(text, " checksum {checksum:04x}");
        }
    } else if ip.complete && !ip.is_fragment() && !checksum_is_right(ip) {
        text.push_str(", wrong checksum");
    }
}

/// Bytes, short.
fn data(bytes: &[u8]) -> String {
    match bytes.len() {
        0 => "+0".to_owned(),
        length @ 1..=24 => format!("+{length} [{}]", hex(bytes)),
        length => {
            let mut crc = Crc32c::new();
            crc.update(bytes);
            format!("+{length} [crc {:08x}]", crc.finish())
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn checksum_is_right(ip: &Ip<'_>) -> bool {
    let bytes = ip.payload;
    let ends = Ends { source: ip.source, source_port: 0, destination: ip.destination, destination_port: 0 };
    match ip.protocol {
        17 if bytes.len() >= 8 && bytes[6..8] == [0, 0] => ip.source.is_ipv4(),
        6 | 17 | 58 => sum(pseudo(ends, ip.protocol, bytes.len()), bytes) == 0xffff,
        1 => sum(0, bytes) == 0xffff,
        132 if bytes.len() >= 12 => {
            let mut crc = Crc32c::new();
            crc.update(&bytes[..8]);
            crc.update(&[0; 4]);
            crc.update(&bytes[12..]);
            crc.finish().to_le_bytes() == bytes[8..12]
        }
        _ => true,
    }
}

/// Puts fragments together, as a receiver would.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// By source, destination, identification, protocol.
    datagrams: BTreeMap<(IpAddr, IpAddr, u32, u8), Parts>,
}

/// Parts by offset, and the whole length when it is known.
type Parts = (BTreeMap<usize, Vec<u8>>, Option<usize>);

impl Reassembly {
    /// Takes a fragment. When its datagram is complete: its payload, and where it was cut.
    pub(super) fn take(&mut self, ip: &Ip<'_>) -> Option<(Vec<u8>, String)> {
        let key = (ip.source, ip.destination, ip.identification.unwrap_or(0), ip.protocol);
        let (parts, whole) = self.datagrams.entry(key).or_default();
        parts.insert(ip.offset, ip.payload.to_vec());
        if !ip.more {
            *whole = Some(ip.offset + ip.payload.len());
        }
        let whole = (*whole)?;
        let mut payload = Vec::with_capacity(whole);
        let mut cuts = Vec::new();
        for (offset, part) in parts.iter() {
            if *offset != payload.len() {
                return None;
            }
            payload.extend(part);
            cuts.push(format!("{offset}-{}", payload.len()));
        }
        if payload.len() != whole {
            return None;
        }
        self.datagrams.remove(&key);
        Some((payload, cuts.join(" ")))
    }
}

/// The packet that the fragments were of: `last`'s header over the whole payload.
pub(super) fn whole(last: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes;
    if last[0] >> 4 == 4 {
        let header = usize::from(last[0] & 15) * 4;
        bytes = last[..header].to_vec();
        bytes[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&[0, 0]);
        bytes[10..12].copy_from_slice(&[0, 0]);
        let checksum = !sum(0, &bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        let protocol = Ip::read(last).map_or(59, |ip| ip.protocol);
        bytes = last[..40].to_vec();
        bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        bytes[6] = protocol;
    }
    bytes.extend(payload);
    bytes
}
