//! One connection of a flow: its first packet, the answer, and the packet after it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flows::{ClientPorts, Clients, First, FlowSpec};
use super::packet::{ACK, COOKIE_ECHO, Checksum, Content, Datagram, INIT, INIT_ACK, PSH, SYN, Tag, Tuple};
use super::wire::Sighting;

/// Numbers of a connection's packets.
pub(super) const FIRST: u8 = 1;
pub(super) const ANSWER: u8 = 2;
pub(super) const SECOND: u8 = 3;

/// One connection of a flow.
#[derive(Clone, Copy)]
pub(super) struct Shot<'a> {
    pub(super) spec: &'a FlowSpec,
    pub(super) flow: usize,
    pub(super) first: Datagram,
}

impl<'a> Shot<'a> {
    /// Connection number `shot` of all, one of this flow.
    pub(super) fn new(shot: u32, flow: usize, spec: &'a FlowSpec) -> Shot<'a> {
        let source = match spec.clients {
            Clients::One => spec.source,
            Clients::Each => plus(spec.source, shot),
        };
        let source_port = match spec.client_ports {
            ClientPorts::Below512 => 64 + (shot % 440) as u16,
            ClientPorts::Below1024 => 600 + (shot % 420) as u16,
            ClientPorts::High => 33_000 + (shot % 31_000) as u16,
        };
        let (content, checksum) = match spec.first {
            First::Tcp(flags) => {
                let acknowledgement = if flags & ACK == 0 { 0 } else { 7000 };
                (Content::Tcp { flags, sequence: 1000, acknowledgement }, Checksum::Right)
            }
            First::TcpWrong => {
                (Content::Tcp { flags: SYN, sequence: 1000, acknowledgement: 0 }, Checksum::Wrong)
            }
            First::Udp => (Content::Udp, Checksum::Right),
            First::UdpWrong => (Content::Udp, Checksum::Wrong),
            First::UdpUnchecked => (Content::UdpUnchecked, Checksum::Right),
            First::Sctp => (
                Content::Sctp { chunk: INIT, verification: 0, initiate: 0x1000_0000 | shot },
                Checksum::Right,
            ),
            First::Echo => (Content::Echo, Checksum::Right),
        };
        let first = Datagram {
            source,
            source_port,
            destination: spec.destination,
            destination_port: spec.port,
            content,
            checksum,
            ttl: spec.ttl,
            tag: Tag { shot, packet: FIRST },
        };
        Shot { spec, flow, first }
    }

    /// The answer to a first packet by who got it, and the client's next packet; nothing where there is no
    /// conversation.
    pub(super) fn conversation(&self, first: &Sighting) -> Option<(Datagram, Datagram)> {
        // Nobody, or somebody whom the host answers without Pollux.
        let nobody = match self.first.source {
            IpAddr::V4(source) => source.is_unspecified(),
            IpAddr::V6(source) => source.is_unspecified() || source.is_unicast_link_local(),
        };
        if first.seen.error.is_some() || self.first.checksum == Checksum::Wrong || nobody {
            return None;
        }
        let number = self.first.tag.shot;
        let (answer, second) = match self.first.content {
            Content::Tcp { flags: SYN, .. } => (
                Content::Tcp { flags: SYN | ACK, sequence: 7000, acknowledgement: 1001 },
                Content::Tcp { flags: ACK | PSH, sequence: 1001, acknowledgement: 7001 },
            ),
            Content::Tcp { flags, .. } if flags & (SYN | ACK) == ACK && flags & PSH != 0 => (
                Content::Tcp { flags: ACK, sequence: 7000, acknowledgement: 1012 },
                Content::Tcp { flags: ACK | PSH, sequence: 1012, acknowledgement: 7012 },
            ),
            Content::Tcp { .. } => return None,
            content @ (Content::Udp | Content::UdpUnchecked) => (content, content),
            Content::Sctp { .. } => (
                Content::Sctp {
                    chunk: INIT_ACK,
                    verification: 0x1000_0000 | number,
                    initiate: 0x2000_0000 | number,
                },
                Content::Sctp { chunk: COOKIE_ECHO, verification: 0x2000_0000 | number, initiate: 0 },
            ),
            Content::Echo => (Content::EchoReply, Content::Echo),
            Content::EchoReply => return None,
        };
        let Tuple { source, source_port, destination, destination_port, .. } = first.seen.tuple;
        let is_echo = matches!(answer, Content::EchoReply);
        let answer = Datagram {
            source: destination,
            source_port: if is_echo { source_port } else { destination_port },
            destination: source,
            destination_port: if is_echo { self.first.destination_port } else { source_port },
            content: answer,
            checksum: Checksum::Right,
            ttl: 64,
            tag: Tag { shot: number, packet: ANSWER },
        };
        let second = Datagram { content: second, tag: Tag { shot: number, packet: SECOND }, ..self.first };
        Some((answer, second))
    }
}

/// The address `by` places after `address`, within 4096 of it.
fn plus(address: IpAddr, by: u32) -> IpAddr {
    let by = by % 4096;
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + by)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() + u128::from(by))),
    }
}
