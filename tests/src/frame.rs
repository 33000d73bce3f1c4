//! IPv4 frames made from nothing but their fields. No line of Pollux is used: every checksum is summed afresh
//! over the finished bytes, so an expected frame is an opinion of its own. etherparse is the second one
//! ([`assert_checksums`]).

use std::net::Ipv4Addr;

use etherparse::{NetHeaders, PacketHeaders, PayloadSlice, TransportHeader};

/// A link address.
pub type Link = [u8; 6];

/// Length of the link header, bytes.
const ETHERNET: usize = 14;

/// An IPv4 frame by its fields. All packets have "don't fragment" but those that say so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Link source.
    pub link_source: Link,
    /// Link destination.
    pub link_destination: Link,
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// What the packet carries.
    pub body: Body,
}

/// "Don't fragment", in the place of flags and offset.
pub const DONT_FRAGMENT: u16 = 0x4000;

/// What a packet carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// A TCP segment.
    Tcp(Tcp),
    /// A UDP datagram.
    Udp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
        /// The data.
        payload: Vec<u8>,
    },
    /// An ICMP message.
    Icmp {
        /// Type and code.
        kind: (u8, u8),
        /// The four bytes behind the checksum.
        rest: [u8; 4],
        /// What follows.
        payload: Vec<u8>,
    },
}

/// A TCP segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The data.
    pub payload: Vec<u8>,
}

/// TCP's flags.
pub mod flag {
    #![allow(missing_docs, reason = "TCP's own words")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// Which transport checksum a frame is written with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// The true one.
    Complete,
    /// What a sender leaves when the device is to finish it: the sum over the pseudo header (PT-04).
    Partial,
}

impl Frame {
    /// A TCP segment without data or options, TTL 64.
    pub fn tcp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: u8) -> Frame {
        let acknowledgement = if flags & flag::ACK == 0 { 0 } else { 0x0102_0304 };
        Frame::new(
            source.0,
            destination.0,
            Body::Tcp(Tcp {
                source_port: source.1,
                destination_port: destination.1,
                sequence: 0x9abc_def0,
                acknowledgement,
                flags,
                window: 0x7210,
                options: Vec::new(),
                payload: Vec::new(),
            }),
        )
    }

    /// A UDP datagram with data of odd length, TTL 64.
    pub fn udp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Frame {
        Frame::new(
            source.0,
            destination.0,
            Body::Udp {
                source_port: source.1,
                destination_port: destination.1,
                payload: b"pollux!".to_vec(),
            },
        )
    }

    /// An echo request as ping sends it: 56 bytes of data, TTL 64.
    pub fn echo(source: Ipv4Addr, destination: Ipv4Addr, identifier: u16, sequence: u16) -> Frame {
        let ([a, b], [c, d]) = (identifier.to_be_bytes(), sequence.to_be_bytes());
        Frame::new(
            source,
            destination,
            Body::Icmp { kind: (8, 0), rest: [a, b, c, d], payload: (0..56).collect() },
        )
    }

    fn new(source: Ipv4Addr, destination: Ipv4Addr, body: Body) -> Frame {
        Frame {
            link_source: [2, 0, 0, 0, 0, 0xfe],
            link_destination: [0; 6],
            tos: 0,
            id: 0x4a68,
            fragment: DONT_FRAGMENT,
            ttl: 64,
            source,
            destination,
            body,
        }
    }

    /// The frame on another link.
    pub fn link(self, link_source: Link, link_destination: Link) -> Frame {
        Frame { link_source, link_destination, ..self }
    }

    /// The frame with this TTL.
    pub fn ttl(self, ttl: u8) -> Frame {
        Frame { ttl, ..self }
    }

    /// The frame from another source.
    pub fn from(mut self, source: Ipv4Addr, port: u16) -> Frame {
        self.source = source;
        match &mut self.body {
            Body::Tcp(Tcp { source_port, .. }) | Body::Udp { source_port, .. } => *source_port = port,
            Body::Icmp { rest, .. } => rest[..2].copy_from_slice(&port.to_be_bytes()),
        }
        self
    }

    /// The frame to another destination.
    pub fn to(mut self, destination: Ipv4Addr, port: u16) -> Frame {
        self.destination = destination;
        match &mut self.body {
            Body::Tcp(Tcp { destination_port, .. }) | Body::Udp { destination_port, .. } => {
                *destination_port = port;
            }
            Body::Icmp { .. } => {}
        }
        self
    }

    /// The true frame.
    pub fn bytes(&self) -> Vec<u8> {
        self.with_checksum(Checksum::Complete)
    }

    /// The frame, with this transport checksum.
    pub fn with_checksum(&self, checksum: Checksum) -> Vec<u8> {
        let (protocol, field, mut body) = self.body();
        let pseudo = [
            &self.source.octets()[..],
            &self.destination.octets(),
            &[0, protocol],
            &(body.len() as u16).to_be_bytes(),
        ]
        .concat();
        let sum = match (&self.body, checksum) {
            (Body::Icmp { .. }, _) => !sum(&body),
            (_, Checksum::Partial) => sum(&pseudo),
            // A UDP checksum that comes out as 0 is sent as its other zero.
            (Body::Udp { .. }, Checksum::Complete) => match !sum(&[&pseudo[..], &body].concat()) {
                0 => 0xffff,
                sum => sum,
            },
            (Body::Tcp(_), Checksum::Complete) => !sum(&[&pseudo[..], &body].concat()),
        };
        body[field..][..2].copy_from_slice(&sum.to_be_bytes());

        let mut header = vec![0x45, self.tos];
        header.extend((20 + body.len() as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        let sum = !self::sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.link_destination[..], &self.link_source, &[0x08, 0x00], &header, &body].concat()
    }

    /// Protocol, where the checksum field is, and the bytes with 0 in it.
    fn body(&self) -> (u8, usize, Vec<u8>) {
        match &self.body {
            Body::Tcp(tcp) => (6, 16, tcp.bytes()),
            Body::Udp { source_port, destination_port, payload } => {
                let mut bytes = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
                bytes.extend((8 + payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                (17, 6, bytes)
            }
            Body::Icmp { kind, rest, payload } => {
                (1, 2, [&[kind.0, kind.1, 0, 0][..], rest, payload].concat())
            }
        }
    }
}

impl Tcp {
    fn bytes(&self) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4));
        let mut bytes = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        bytes
    }
}

/// The one's complement sum of RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Bytes of a frame that make it recognisable, field by field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    /// Link source.
    pub link_source: Link,
    /// Link destination.
    pub link_destination: Link,
    /// Time to live.
    pub ttl: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Source port, or the identifier of an ICMP query.
    pub source_port: u16,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Destination port, or the type and code of an ICMP message.
    pub destination_port: u16,
    /// The transport checksum as it is written.
    pub checksum: u16,
}

impl Fields {
    /// Reads an IPv4 frame without looking at any length: the caller knows what it is.
    ///
    /// # Panics
    /// If the frame is no IPv4 frame, or shorter than its headers.
    pub fn of(frame: &[u8]) -> Fields {
        assert_eq!(frame[12..15], [8, 0, 0x45], "not an IPv4 frame without options");
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let l4 = ETHERNET + 20;
        let (source_port, destination_port, checksum) = match frame[ETHERNET + 9] {
            1 => (word(l4 + 4), word(l4), word(l4 + 2)),
            4 => (0, 0, 0), // a tunnel's
            17 => (word(l4), word(l4 + 2), word(l4 + 6)),
            _ => (word(l4), word(l4 + 2), word(l4 + 16)),
        };
        Fields {
            link_source: frame[6..12].try_into().expect("six bytes"),
            link_destination: frame[..6].try_into().expect("six bytes"),
            ttl: frame[ETHERNET + 8],
            source: address(ETHERNET + 12),
            source_port,
            destination: address(ETHERNET + 16),
            destination_port,
            checksum,
        }
    }
}

/// The frame without a tunnel's outer header, if it has one (IPIP).
///
/// # Panics
/// If the frame is shorter than its headers.
pub fn inside(frame: &[u8]) -> Vec<u8> {
    match frame[ETHERNET + 9] {
        4 => [&frame[..ETHERNET], &frame[ETHERNET + 20..]].concat(),
        _ => frame.to_vec(),
    }
}

/// Asks etherparse for its opinion about the checksums of an IPv4 frame.
///
/// # Panics
/// If one is wrong, or the frame is not IPv4 with TCP, UDP or ICMP.
pub fn assert_checksums(frame: &[u8]) {
    let headers = PacketHeaders::from_ethernet_slice(frame).expect("etherparse reads the frame");
    let Some(NetHeaders::Ipv4(ip, _)) = &headers.net else { panic!("not IPv4: {headers:?}") };
    assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IPv4 header of {ip:?}");
    let payload = match &headers.payload {
        PayloadSlice::Tcp(bytes) | PayloadSlice::Udp(bytes) | PayloadSlice::Icmpv4(bytes) => bytes,
        other => panic!("no transport: {other:?}"),
    };
    let (written, summed) = match headers.transport.as_ref().expect("a transport header") {
        TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).expect("short")),
        TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv4(ip, payload).expect("short")),
        TransportHeader::Icmpv4(icmp) => (icmp.checksum, icmp.icmp_type.calc_checksum(payload)),
        other => panic!("not over IPv4 here: {other:?}"),
    };
    assert_eq!(written, summed, "transport checksum of {headers:?}");
}
