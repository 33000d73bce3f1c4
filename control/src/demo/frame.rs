//! What a frame on the wire says, read by a parser that is not the forwarder's.

use std::net::SocketAddrV4;

use etherparse::{Icmpv4Type, NetSlice, SlicedPacket, TransportSlice};
use pollux_dataplane::packet::{LinkAddr, Protocol};
use serde::Serialize;

use super::text;

/// A frame's head: what decisions show in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Head {
    /// The interface.
    pub port: String,
    /// Link source.
    #[serde(serialize_with = "text")]
    pub link_source: LinkAddr,
    /// Link destination.
    #[serde(serialize_with = "text")]
    pub link_destination: LinkAddr,
    /// Source address and port, or ICMP identifier.
    pub source: SocketAddrV4,
    /// Destination address and port; for an ICMP echo 8 << 8 for requests, 0 for replies.
    pub destination: SocketAddrV4,
    /// TTL.
    pub ttl: u8,
}

/// A frame that was seen on an interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Frame {
    /// Its head.
    #[serde(flatten)]
    pub head: Head,
    /// `tcp` or `icmp`.
    #[serde(serialize_with = "text")]
    pub protocol: Protocol,
    /// TCP's flags in tcpdump's letters, or what ICMP it is.
    pub what: String,
}

impl Frame {
    /// Reads a frame of TCP or ICMP echo over IPv4; nothing for all others.
    pub fn read(port: &str, bytes: &[u8]) -> Option<Frame> {
        let packet = SlicedPacket::from_ethernet(bytes).ok()?;
        let (Some(NetSlice::Ipv4(ip)), Some(transport)) = (packet.net, packet.transport) else {
            return None;
        };
        let (protocol, source_port, destination_port, what) = match transport {
            TransportSlice::Tcp(tcp) => {
                let set = [
                    (tcp.syn(), 'S'),
                    (tcp.fin(), 'F'),
                    (tcp.rst(), 'R'),
                    (tcp.psh(), 'P'),
                    (tcp.ack(), '.'),
                ];
                let letters: String =
                    set.into_iter().filter_map(|(set, letter)| set.then_some(letter)).collect();
                (Protocol::TCP, tcp.source_port(), tcp.destination_port(), format!("[{letters}]"))
            }
            TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => {
                    (Protocol::ICMP, echo.id, 8 << 8, format!("echo request, seq {}", echo.seq))
                }
                Icmpv4Type::EchoReply(echo) => {
                    (Protocol::ICMP, echo.id, 0, format!("echo reply, seq {}", echo.seq))
                }
                _ => return None,
            },
            _ => return None,
        };
        let ip = ip.header();
        let link = |from: usize| LinkAddr(bytes[from..from + 6].try_into().expect("six bytes"));
        Some(Frame {
            head: Head {
                port: port.to_owned(),
                link_source: link(6),
                link_destination: link(0),
                source: SocketAddrV4::new(ip.source_addr(), source_port),
                destination: SocketAddrV4::new(ip.destination_addr(), destination_port),
                ttl: ip.ttl(),
            },
            protocol,
            what,
        })
    }
}
