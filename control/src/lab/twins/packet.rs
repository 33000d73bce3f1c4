//! The packets of a comparison: made with a tag in their payload, by which they are found again wherever
//! they come out, and read into what the two nodes are compared by.
//!
//! Nothing here is the data plane's code but the CRC of SCTP: a checksum that both computed wrongly would
//! otherwise look right.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder};
use pollux_dataplane::packet::Protocol;
use pollux_dataplane::packet::crc32c::Crc32c;

/// What a tag begins with.
const MAGIC: [u8; 4] = *b"PlxT";

/// Bytes of a tag.
const TAG: usize = 12;

/// Which packet of the comparison this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(in crate::lab) struct Tag {
    /// Number of the connection.
    pub(in crate::lab) shot: u32,
    /// Number of the packet in it.
    pub(in crate::lab) packet: u8,
}

/// A tuple, as the flow table has it: for echo messages the source port is the identifier and the
/// destination port type and code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(in crate::lab) struct Tuple {
    pub(in crate::lab) protocol: Protocol,
    pub(in crate::lab) source: IpAddr,
    pub(in crate::lab) source_port: u16,
    pub(in crate::lab) destination: IpAddr,
    pub(in crate::lab) destination_port: u16,
}

/// What a packet is besides its tuple.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::lab) enum Content {
    /// A TCP segment with these flags (as in the header), sequence and acknowledgement numbers.
    Tcp { flags: u8, sequence: u32, acknowledgement: u32 },
    /// A UDP datagram.
    Udp,
    /// A UDP datagram whose sender computed no checksum.
    UdpUnchecked,
    /// An SCTP packet of one chunk of this type, with this verification tag and this initiate tag.
    Sctp { chunk: u8, verification: u32, initiate: u32 },
    /// An echo request.
    Echo,
    /// Its answer.
    EchoReply,
}

/// Whether the transport checksum is to be right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::lab) enum Checksum {
    Right,
    Wrong,
}

/// A packet to be made.
#[derive(Clone, Copy, Debug)]
pub(in crate::lab) struct Datagram {
    pub(in crate::lab) source: IpAddr,
    pub(in crate::lab) source_port: u16,
    pub(in crate::lab) destination: IpAddr,
    pub(in crate::lab) destination_port: u16,
    pub(in crate::lab) content: Content,
    pub(in crate::lab) checksum: Checksum,
    pub(in crate::lab) ttl: u8,
    pub(in crate::lab) tag: Tag,
}

/// SCTP chunks.
pub(in crate::lab) const INIT: u8 = 1;
pub(in crate::lab) const INIT_ACK: u8 = 2;
pub(in crate::lab) const COOKIE_ECHO: u8 = 10;

/// TCP flags.
pub(in crate::lab) const FIN: u8 = 1;
pub(in crate::lab) const SYN: u8 = 2;
pub(in crate::lab) const RST: u8 = 4;
pub(in crate::lab) const PSH: u8 = 8;
pub(in crate::lab) const ACK: u8 = 16;

impl Datagram {
    /// The packet, from its IP header on.
    pub(in crate::lab) fn to_bytes(self) -> Vec<u8> {
        let ip = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), self.ttl),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), self.ttl),
            _ => unreachable!("both addresses of a flow are of its family"),
        };
        let v6 = self.source.is_ipv6();
        let (from, to) = (self.source_port, self.destination_port);
        let tag = self.tag.to_bytes();
        let mut bytes = Vec::with_capacity(128);
        let written = match self.content {
            Content::Tcp { flags, sequence, acknowledgement } => {
                let mut tcp = ip.tcp(from, to, sequence, 0xfaf0);
                if flags & ACK != 0 {
                    tcp = tcp.ack(acknowledgement);
                }
                for (flag, set) in [(FIN, 0), (SYN, 1), (RST, 2), (PSH, 3)] {
                    if flags & flag != 0 {
                        tcp = match set {
                            0 => tcp.fin(),
                            1 => tcp.syn(),
                            2 => tcp.rst(),
                            _ => tcp.psh(),
                        };
                    }
                }
                tcp.write(&mut bytes, &tag)
            }
            Content::Udp | Content::UdpUnchecked => ip.udp(from, to).write(&mut bytes, &tag),
            Content::Sctp { chunk, verification, initiate } => {
                let packet = sctp(from, to, chunk, verification, initiate, &tag);
                ip.write(&mut bytes, IpNumber::SCTP, &packet)
            }
            Content::Echo if v6 => ip.icmpv6_echo_request(from, to).write(&mut bytes, &tag),
            Content::Echo => ip.icmpv4_echo_request(from, to).write(&mut bytes, &tag),
            Content::EchoReply if v6 => ip.icmpv6_echo_reply(from, to).write(&mut bytes, &tag),
            Content::EchoReply => ip.icmpv4_echo_reply(from, to).write(&mut bytes, &tag),
        };
        written.expect("a vector takes everything");
        let transport = if v6 { 40 } else { 20 };
        let field = match self.content {
            Content::Tcp { .. } => transport + 16,
            Content::Udp | Content::UdpUnchecked => transport + 6,
            Content::Sctp { .. } => transport + 8,
            Content::Echo | Content::EchoReply => transport + 2,
        };
        if self.content == Content::UdpUnchecked {
            bytes[field..field + 2].fill(0);
        }
        if self.checksum == Checksum::Wrong {
            bytes[field] ^= 0x55;
        }
        bytes
    }

    /// Its tuple.
    pub(in crate::lab) fn tuple(&self) -> Tuple {
        let echo = |kind: u16| (Protocol::ICMP, kind << 8);
        let (protocol, destination_port) = match (self.content, self.source) {
            (Content::Tcp { .. }, _) => (Protocol::TCP, self.destination_port),
            (Content::Udp | Content::UdpUnchecked, _) => (Protocol::UDP, self.destination_port),
            (Content::Sctp { .. }, _) => (Protocol::SCTP, self.destination_port),
            (Content::Echo, IpAddr::V4(_)) => echo(8),
            (Content::EchoReply, IpAddr::V4(_)) => echo(0),
            (Content::Echo, IpAddr::V6(_)) => (Protocol::ICMPV6, 128 << 8),
            (Content::EchoReply, IpAddr::V6(_)) => (Protocol::ICMPV6, 129 << 8),
        };
        Tuple {
            protocol,
            source: self.source,
            source_port: self.source_port,
            destination: self.destination,
            destination_port,
        }
    }
}

impl Tag {
    fn to_bytes(self) -> [u8; TAG] {
        let mut bytes = [0; TAG];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.shot.to_be_bytes());
        bytes[8] = self.packet;
        bytes
    }

    /// The tag in these bytes.
    fn find(bytes: &[u8]) -> Option<Tag> {
        let at = bytes.windows(TAG).position(|window| window[..4] == MAGIC)?;
        let shot = bytes[at + 4..at + 8].try_into().expect("four bytes");
        Some(Tag { shot: u32::from_be_bytes(shot), packet: bytes[at + 8] })
    }
}

/// A packet of one chunk. INIT and INIT-ACK have the fixed fields that the kernel's tracker reads, and the
/// tag as a parameter that a receiver may skip; others have it as their value.
fn sctp(from: u16, to: u16, chunk: u8, verification: u32, initiate: u32, tag: &[u8; TAG]) -> Vec<u8> {
    let mut value = Vec::with_capacity(40);
    if matches!(chunk, INIT | INIT_ACK) {
        value.extend(initiate.to_be_bytes());
        value.extend(0x0001_0000u32.to_be_bytes()); // receiver window
        value.extend([0, 1, 0, 1]); // streams out and in
        value.extend(1u32.to_be_bytes()); // first sequence number
        value.extend(0xc0fdu16.to_be_bytes());
        value.extend((4 + TAG as u16).to_be_bytes());
    }
    value.extend(tag);
    let mut packet = Vec::with_capacity(64);
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend(verification.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0]);
    packet.extend((4 + value.len() as u16).to_be_bytes());
    packet.extend(value);
    let mut crc = Crc32c::new();
    crc.update(&packet);
    packet[8..12].copy_from_slice(&crc.finish().to_le_bytes());
    packet
}

/// A packet that came out somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::lab) struct Seen {
    pub(in crate::lab) tag: Tag,
    pub(in crate::lab) tuple: Tuple,
    pub(in crate::lab) ttl: u8,
    /// Whether all its checksums are right.
    pub(in crate::lab) sound: bool,
    /// What neither NAT nor forwarding may change, for packets that are no errors.
    pub(in crate::lab) rest: Vec<u8>,
    /// For an ICMP error: what it says.
    pub(in crate::lab) error: Option<IcmpError>,
}

/// An ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(in crate::lab) struct IcmpError {
    pub(in crate::lab) kind: u8,
    pub(in crate::lab) code: u8,
    /// The second word: the MTU of "packet too big".
    pub(in crate::lab) word: u32,
    /// The tuple of the packet that it quotes.
    pub(in crate::lab) quoted: Tuple,
}

impl Seen {
    /// Reads an IP packet; nothing for what has no tag or is none of ours.
    pub(in crate::lab) fn read(bytes: &[u8]) -> Option<Seen> {
        let tag = Tag::find(bytes)?;
        let outer = Outer::read(bytes)?;
        let transport = outer.transport;
        let mut sound = outer.sound;
        let tuple = outer.tuple()?;
        let is_icmp = matches!(tuple.protocol, Protocol::ICMP | Protocol::ICMPV6);
        sound &= checksum_is_right(&outer, tuple.protocol);
        let mut error = None;
        if is_icmp && is_error(tuple.protocol, transport[0]) {
            let inner = Outer::read(transport.get(8..)?)?;
            error = Some(IcmpError {
                kind: transport[0],
                code: transport[1],
                word: u32::from_be_bytes(transport[4..8].try_into().expect("four bytes")),
                quoted: inner.tuple()?,
            });
        }
        let rest = outer.rest(tuple.protocol);
        Some(Seen { tag, tuple, ttl: outer.ttl, sound, rest, error })
    }

    /// The part of a packet that forwarding must leave alone.
    pub(in crate::lab) fn rest_of(bytes: &[u8]) -> Vec<u8> {
        Outer::read(bytes).and_then(|outer| Some(outer.rest(outer.tuple()?.protocol))).unwrap_or_default()
    }
}

fn is_error(protocol: Protocol, kind: u8) -> bool {
    match protocol {
        Protocol::ICMP => matches!(kind, 3 | 5 | 11 | 12),
        _ => kind < 128,
    }
}

/// An IP header and what follows it. Of a quoted packet the end may be missing.
struct Outer<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    ttl: u8,
    sound: bool,
    /// Header fields that stay: type of service, identification, flags.
    kept: Vec<u8>,
    transport: &'a [u8],
}

impl Outer<'_> {
    fn read(bytes: &[u8]) -> Option<Outer<'_>> {
        match bytes.first()? >> 4 {
            4 if bytes.len() >= 20 => {
                let header = usize::from(bytes[0] & 15) * 4;
                let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
                let address =
                    |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four"));
                Some(Outer {
                    source: address(12),
                    destination: address(16),
                    protocol: Protocol(bytes[9]),
                    ttl: bytes[8],
                    sound: sum(0, bytes.get(..header)?) == 0xffff,
                    kept: bytes[1..8].to_vec(),
                    transport: bytes.get(header..total.min(bytes.len()))?,
                })
            }
            6 if bytes.len() >= 40 => {
                let length = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
                let address =
                    |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen"));
                Some(Outer {
                    source: address(8),
                    destination: address(24),
                    protocol: Protocol(bytes[6]),
                    ttl: bytes[7],
                    sound: true,
                    kept: bytes[4..6].to_vec(),
                    transport: bytes.get(40..(40 + length).min(bytes.len()))?,
                })
            }
            _ => None,
        }
    }

    fn tuple(&self) -> Option<Tuple> {
        let at =
            |at: usize| Some(u16::from_be_bytes([*self.transport.get(at)?, *self.transport.get(at + 1)?]));
        let (source_port, destination_port) = match self.protocol {
            Protocol::ICMP | Protocol::ICMPV6 => {
                let kind = at(0)?;
                (if is_error(self.protocol, (kind >> 8) as u8) { 0 } else { at(4)? }, kind)
            }
            _ => (at(0)?, at(2)?),
        };
        Some(Tuple {
            protocol: self.protocol,
            source: self.source,
            source_port,
            destination: self.destination,
            destination_port,
        })
    }

    fn rest(&self, protocol: Protocol) -> Vec<u8> {
        let skipped: &[std::ops::Range<usize>] = match protocol {
            Protocol::TCP => &[0..4, 16..18],
            Protocol::UDP => &[0..4, 6..8],
            Protocol::SCTP => &[0..4, 8..12],
            _ => std::slice::from_ref(&(2..6)),
        };
        let stays = |at: &usize| !skipped.iter().any(|range| range.contains(at));
        let transport = (0..self.transport.len()).filter(stays).map(|at| self.transport[at]);
        self.kept.iter().copied().chain(transport).collect()
    }
}

fn checksum_is_right(packet: &Outer<'_>, protocol: Protocol) -> bool {
    let transport = packet.transport;
    let pseudo = |next: u8| {
        let addresses = match (packet.source, packet.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            _ => Vec::new(),
        };
        let length = transport.len() as u32;
        sum(sum(0, &addresses), &[&length.to_be_bytes()[..], &[0, next]].concat())
    };
    match protocol {
        Protocol::UDP if transport.len() >= 8 && transport[6..8] == [0, 0] => packet.source.is_ipv4(),
        Protocol::TCP | Protocol::UDP | Protocol::ICMPV6 => sum(pseudo(protocol.0), transport) == 0xffff,
        Protocol::ICMP => sum(0, transport) == 0xffff,
        Protocol::SCTP if transport.len() >= 12 => {
            let mut crc = Crc32c::new();
            crc.update(&transport[..8]);
            crc.update(&[0; 4]);
            crc.update(&transport[12..]);
            crc.finish().to_le_bytes() == transport[8..12]
        }
        _ => true,
    }
}

/// The Internet checksum's sum (RFC 1071), begun with `start`.
pub(in crate::lab) fn sum(start: u16, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut total = u32::from(start) + words.sum::<u32>();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(content: Content, v6: bool) -> Datagram {
        let (source, destination) = match v6 {
            false => ("10.0.0.1", "10.0.0.2"),
            true => ("fd00::1", "fd00::2"),
        };
        Datagram {
            source: source.parse().unwrap(),
            source_port: 1000,
            destination: destination.parse().unwrap(),
            destination_port: 80,
            content,
            checksum: Checksum::Right,
            ttl: 64,
            tag: Tag { shot: 7, packet: 2 },
        }
    }

    #[test]
    fn what_is_made_is_read_again() {
        let contents = [
            Content::Tcp { flags: SYN | ACK, sequence: 5, acknowledgement: 6 },
            Content::Udp,
            Content::Sctp { chunk: INIT, verification: 0, initiate: 9 },
            Content::Echo,
            Content::EchoReply,
        ];
        for content in contents {
            for v6 in [false, true] {
                let datagram = datagram(content, v6);
                let bytes = datagram.to_bytes();
                let seen = Seen::read(&bytes).unwrap();
                assert_eq!((seen.tag, seen.tuple), (datagram.tag, datagram.tuple()), "{content:?}");
                assert_eq!((seen.ttl, seen.sound, seen.error), (64, true, None), "{content:?}");
                let wrong = Datagram { checksum: Checksum::Wrong, ..datagram }.to_bytes();
                assert!(!Seen::read(&wrong).unwrap().sound, "{content:?}");
                assert_eq!(Seen::rest_of(&wrong), seen.rest);
            }
        }
    }

    #[test]
    fn an_error_is_read_with_what_it_quotes() {
        let quoted = datagram(Content::Udp, false).to_bytes();
        let mut bytes = Vec::new();
        let icmp =
            etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
        PacketBuilder::ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
            .icmpv4(icmp)
            .write(&mut bytes, &quoted)
            .unwrap();
        let seen = Seen::read(&bytes).unwrap();
        let error = seen.error.unwrap();
        assert_eq!((error.kind, error.code, error.word), (3, 3, 0));
        assert_eq!(error.quoted, datagram(Content::Udp, false).tuple());
        assert_eq!(seen.tag, Tag { shot: 7, packet: 2 });
        assert!(seen.sound);
    }
}
