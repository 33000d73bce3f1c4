//! Frames as they are on the wire, made and read by etherparse.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header, NetSlice, SlicedPacket, TcpHeader,
    TransportSlice, UdpHeader,
};

use crate::packet::{LinkAddr, PortId};

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// TCP with these flags.
    Tcp { syn: bool, ack: bool, fin: bool, rst: bool },
    /// UDP.
    Udp,
    /// ICMP echo request; the source's port is the identifier, the destination's the sequence number.
    Echo,
    /// The reply to one; the destination's port is the identifier, the source's the sequence number.
    EchoReply,
}

impl Kind {
    const NONE: Kind = Kind::Tcp { syn: false, ack: false, fin: false, rst: false };
    pub(super) const SYN: Kind = Kind::Tcp { syn: true, ack: false, fin: false, rst: false };
    pub(super) const SYN_ACK: Kind = Kind::Tcp { syn: true, ack: true, fin: false, rst: false };
    pub(super) const ACK: Kind = Kind::Tcp { syn: false, ack: true, fin: false, rst: false };
    pub(super) const FIN: Kind = Kind::Tcp { syn: false, ack: true, fin: true, rst: false };
    pub(super) const RST: Kind = Kind::Tcp { syn: false, ack: false, fin: false, rst: true };
}

/// A whole frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) link_source: LinkAddr,
    pub(super) link_destination: LinkAddr,
    pub(super) source: SocketAddrV4,
    pub(super) destination: SocketAddrV4,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
    pub(super) kind: Kind,
    pub(super) payload: Vec<u8>,
}

impl Default for Frame {
    fn default() -> Self {
        let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        Frame {
            link_source: LinkAddr::default(),
            link_destination: LinkAddr::default(),
            source: nobody,
            destination: nobody,
            ttl: 64,
            dont_fragment: false,
            kind: Kind::NONE,
            payload: b"pollux".to_vec(),
        }
    }
}

impl Frame {
    pub(super) fn between(mut self, source: &str, destination: &str) -> Frame {
        self.source = source.parse().unwrap();
        self.destination = destination.parse().unwrap();
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());
        let (protocol, header_len) = match self.kind {
            Kind::Tcp { .. } => (IpNumber::TCP, 20),
            Kind::Udp => (IpNumber::UDP, 8),
            Kind::Echo | Kind::EchoReply => (IpNumber::ICMP, 8),
        };
        let len = (header_len + self.payload.len()) as u16;
        let mut ip = Ipv4Header::new(len, self.ttl, protocol, source, destination).unwrap();
        ip.dont_fragment = self.dont_fragment;
        ip.identification = 0x1234;
        ip.header_checksum = ip.calc_header_checksum();
        let mut frame = [self.link_destination.0, self.link_source.0].concat();
        frame.extend([8, 0]);
        ip.write(&mut frame).unwrap();
        let (from, to) = (self.source.port(), self.destination.port());
        match self.kind {
            Kind::Tcp { syn, ack, fin, rst } => {
                let mut tcp = TcpHeader::new(from, to, 1_000, 4_096);
                (tcp.syn, tcp.ack, tcp.fin, tcp.rst) = (syn, ack, fin, rst);
                tcp.acknowledgment_number = if ack { 77 } else { 0 };
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).unwrap();
                tcp.write(&mut frame).unwrap();
            }
            Kind::Udp => {
                UdpHeader::with_ipv4_checksum(from, to, &ip, &self.payload)
                    .unwrap()
                    .write(&mut frame)
                    .unwrap();
            }
            Kind::Echo => echo(Icmpv4Type::EchoRequest, from, to, &self.payload, &mut frame),
            Kind::EchoReply => echo(Icmpv4Type::EchoReply, to, from, &self.payload, &mut frame),
        }
        frame.extend(&self.payload);
        frame
    }
}

fn echo(kind: fn(IcmpEchoHeader) -> Icmpv4Type, id: u16, seq: u16, payload: &[u8], frame: &mut Vec<u8>) {
    Icmpv4Header::with_checksum(kind(IcmpEchoHeader { id, seq }), payload).write(frame).unwrap();
}

/// An ICMP error that left.
#[derive(Debug)]
pub(super) struct IcmpError {
    pub(super) port: PortId,
    pub(super) link: (LinkAddr, LinkAddr),
    /// Type and code.
    pub(super) kind: (u8, u8),
    /// The last two bytes of its header: an MTU.
    pub(super) mtu: u16,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    /// The packet that it quotes.
    pub(super) quoted: Vec<u8>,
}

impl IcmpError {
    /// Reads one; its checksums must be right.
    pub(super) fn read(port: PortId, bytes: &[u8]) -> IcmpError {
        let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4: {sliced:?}") };
        let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("not ICMP: {sliced:?}") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(icmp.checksum(), icmp.header().icmp_type.calc_checksum(icmp.payload()));
        let [.., high, low] = icmp.bytes5to8();
        IcmpError {
            port,
            link: (LinkAddr(bytes[6..12].try_into().unwrap()), LinkAddr(bytes[..6].try_into().unwrap())),
            kind: (icmp.type_u8(), icmp.code_u8()),
            mtu: u16::from_be_bytes([high, low]),
            source: ip.header().source_addr(),
            destination: ip.header().destination_addr(),
            quoted: icmp.payload().to_vec(),
        }
    }
}
