//! What names one direction of a connection, and what turns its packets into the other side's words.

use crate::nat::Rewrite;
use crate::packet::family::{Address, Family, Protocol, V4};

/// Which way a packet goes, seen from who sent the first one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Direction {
    /// As the first packet.
    Original = 0,
    /// Back.
    Reply = 1,
}

impl Direction {
    /// The other one.
    pub fn reverse(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// The tuple of a packet on the wire (CT-01). Ports are in host order. For ICMP queries `source_port` is the
/// identifier and `destination_port` is `type << 8 | code`; for protocols without ports both are 0.
///
/// The stored form has room for a 16-bit zone or VRF, 0 today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey<A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address.
    pub destination: A::Addr,
    /// Source port, or ICMP identifier.
    pub source_port: u16,
    /// Destination port, or ICMP type and code.
    pub destination_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl<A: Family> FlowKey<A> {
    /// The tuple of an answer to this packet. Its own inverse. An ICMP answer keeps the identifier and has
    /// the answering type.
    pub fn reply(&self) -> FlowKey<A> {
        let (source_port, destination_port) = if self.protocol == A::ICMP {
            let [kind, code] = self.destination_port.to_be_bytes();
            let kind = icmp_reply::<A>(kind).unwrap_or(kind);
            (self.source_port, u16::from_be_bytes([kind, code]))
        } else {
            (self.destination_port, self.source_port)
        };
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port,
            destination_port,
            protocol: self.protocol,
        }
    }

    /// The ready-made rewrite that turns packets of this tuple into packets of `to` (CT-03).
    pub fn rewrite_to(&self, to: &FlowKey<A>) -> Rewrite<A> {
        let tuple = |key: &FlowKey<A>| (key.source, key.destination, key.source_port, key.destination_port);
        Rewrite::between(tuple(self), tuple(to), self.protocol)
    }

    /// Whether this is an ICMP query that may begin a connection: echo, timestamp, information or address
    /// mask request; for IPv6 echo request and node information query.
    pub fn is_icmp_request(&self) -> bool {
        let kind = self.destination_port.to_be_bytes()[0];
        self.protocol == A::ICMP
            && match A::VERSION {
                4 => matches!(kind, 8 | 13 | 15 | 17),
                _ => matches!(kind, 128 | 139),
            }
    }

    /// The key as stored: 2 words for IPv4, 5 for IPv6 (the rest is 0). The low byte of the last one is free
    /// for flags.
    #[inline]
    pub(super) fn words(&self) -> [u64; 5] {
        let ports = u64::from(self.source_port) << 48
            | u64::from(self.destination_port) << 32
            | u64::from(self.protocol.0) << 24;
        let (source, destination) = (self.source.bits(), self.destination.bits());
        if A::BITS == 32 {
            [(source << 32 | destination) as u64, ports, 0, 0, 0]
        } else {
            [(source >> 64) as u64, source as u64, (destination >> 64) as u64, destination as u64, ports]
        }
    }

    /// The key whose [`words`](Self::words) these are; flags are ignored.
    pub(super) fn from_words(words: [u64; 5]) -> FlowKey<A> {
        let (source, destination, ports) = if A::BITS == 32 {
            (u128::from(words[0] >> 32), u128::from(words[0] as u32), words[1])
        } else {
            (
                u128::from(words[0]) << 64 | u128::from(words[1]),
                u128::from(words[2]) << 64 | u128::from(words[3]),
                words[4],
            )
        };
        FlowKey {
            source: A::Addr::from_bits(source),
            destination: A::Addr::from_bits(destination),
            source_port: (ports >> 48) as u16,
            destination_port: (ports >> 32) as u16,
            protocol: Protocol((ports >> 24) as u8),
        }
    }
}

/// An IPv4 tuple as it is stored. For who reads it from a packet like that: taking addresses apart and putting
/// them together again costs as much as comparing them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackedKey([u64; 2]);

impl PackedKey {
    /// The tuple with these addresses (the source in the upper half), ports (likewise) and protocol.
    #[inline(always)]
    pub fn new(addresses: u64, ports: u32, protocol: Protocol) -> PackedKey {
        PackedKey([addresses, u64::from(ports) << 32 | u64::from(protocol.0) << 24])
    }

    /// The tuple.
    #[inline(always)]
    pub fn unpack(self) -> FlowKey<V4> {
        FlowKey::from_words(self.words())
    }

    /// As [`FlowKey::words`].
    #[inline(always)]
    pub(super) fn words(self) -> [u64; 5] {
        [self.0[0], self.0[1], 0, 0, 0]
    }
}

/// The ICMP type that answers `kind`, and back again.
fn icmp_reply<A: Family>(kind: u8) -> Option<u8> {
    Some(match (A::VERSION, kind) {
        (4, 8) => 0,
        (4, 0) => 8,
        (4, 13) => 14,
        (4, 14) => 13,
        (4, 15) => 16,
        (4, 16) => 15,
        (4, 17) => 18,
        (4, 18) => 17,
        (6, 128) => 129,
        (6, 129) => 128,
        (6, 139) => 140,
        (6, 140) => 139,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::family::V6;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn icmp4(identifier: u16, kind: u8) -> FlowKey<V4> {
        FlowKey {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(10, 0, 0, 2),
            source_port: identifier,
            destination_port: u16::from(kind) << 8,
            protocol: Protocol::ICMP,
        }
    }

    #[test]
    fn ct_01_an_echo_reply_answers_an_echo_with_its_identifier() {
        let reply = icmp4(77, 8).reply();
        assert_eq!(reply.source, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!((reply.source_port, reply.destination_port), (77, 0));
        assert_eq!(icmp4(77, 13).reply().destination_port, 14 << 8);
        assert!(icmp4(77, 8).is_icmp_request());
        assert!(!icmp4(77, 0).is_icmp_request());
        let echo6 = FlowKey::<V6> {
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            source_port: 9,
            destination_port: 128 << 8,
            protocol: Protocol::ICMPV6,
        };
        assert_eq!(echo6.reply().destination_port, 129 << 8);
        assert!(echo6.is_icmp_request());
    }

    proptest! {
        #[test]
        fn ct_01_reply_is_its_own_inverse_and_words_keep_the_key(
            source: u128, destination: u128, source_port: u16, destination_port: u16, protocol: u8
        ) {
            let key = FlowKey::<V6> {
                source: Ipv6Addr::from_bits(source),
                destination: Ipv6Addr::from_bits(destination),
                source_port,
                destination_port,
                protocol: Protocol(protocol),
            };
            prop_assert_eq!(key.reply().reply(), key);
            prop_assert_eq!(FlowKey::from_words(key.words()), key);
            let key = FlowKey::<V4> {
                source: Ipv4Addr::from_bits(source as u32),
                destination: Ipv4Addr::from_bits(destination as u32),
                source_port,
                destination_port,
                protocol: Protocol(protocol),
            };
            prop_assert_eq!(key.reply().reply(), key);
            prop_assert_eq!(FlowKey::from_words(key.words()), key);
            let ports = u32::from(source_port) << 16 | u32::from(destination_port);
            let addresses = u64::from(key.source.to_bits()) << 32 | u64::from(key.destination.to_bits());
            let packed = PackedKey::new(addresses, ports, key.protocol);
            prop_assert_eq!((packed.words(), packed.unpack()), (key.words(), key));
        }
    }
}
