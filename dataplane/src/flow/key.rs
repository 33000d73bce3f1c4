//! What names one direction of a connection, and what turns its packets into the other side's words.

use crate::packet::family::{Address, Family, Protocol};

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
            [
                (source >> 64) as u64,
                source as u64,
                (destination >> 64) as u64,
                destination as u64,
                ports,
            ]
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

/// The ready-made rewrite of one direction: what its packets say when they leave (CT-03).
///
/// A delta is the one's complement sum (RFC 1624) of what changes, over 16-bit words in host order: with `C`
/// the old checksum and `+'` the one's complement addition, the new one is `!(!C +' delta)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<A: Family> {
    /// New source address.
    pub source: A::Addr,
    /// New destination address.
    pub destination: A::Addr,
    /// New source port, or ICMP identifier.
    pub source_port: u16,
    /// New destination port; for ICMP type and code, which do not change.
    pub destination_port: u16,
    /// Change of the addresses: of the IPv4 header checksum, and in both families of a pseudo-header's sum
    /// (which is all that a partially filled transport checksum holds).
    pub ip_delta: u16,
    /// Change of a complete transport checksum: TCP, UDP and ICMPv6 addresses and ports, ICMP identifier;
    /// 0 for SCTP, whose CRC32c has no deltas, and for other protocols.
    pub transport_delta: u16,
}

impl<A: Family> Translation<A> {
    /// The rewrite that turns packets of `from` into packets of `to`.
    pub fn between(from: &FlowKey<A>, to: &FlowKey<A>) -> Translation<A> {
        let addresses = add(
            difference(from.source.bits(), to.source.bits()),
            difference(from.destination.bits(), to.destination.bits()),
        );
        let source_port = difference(u128::from(from.source_port), u128::from(to.source_port));
        let ports = add(
            source_port,
            difference(u128::from(from.destination_port), u128::from(to.destination_port)),
        );
        Translation {
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
            ip_delta: addresses,
            transport_delta: match from.protocol {
                Protocol::TCP | Protocol::UDP => add(addresses, ports),
                Protocol::ICMPV6 if A::ICMP == Protocol::ICMPV6 => add(addresses, source_port),
                Protocol::ICMP if A::ICMP == Protocol::ICMP => source_port,
                _ => 0,
            },
        }
    }
}

/// The one's complement sum of `!old` and `new`, word by word.
fn difference(old: u128, new: u128) -> u16 {
    if old == new {
        return 0;
    }
    (0..8).fold(0, |sum, word| {
        let (old, new) = ((old >> (16 * word)) as u16, (new >> (16 * word)) as u16);
        if old == new { sum } else { add(sum, add(!old, new)) }
    })
}

/// One's complement addition.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::family::{V4, V6};
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

    /// The checksum (RFC 1071) of `words`.
    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn halves(address: u128) -> Vec<u16> {
        (0..8).map(|word| (address >> (16 * word)) as u16).collect()
    }

    proptest! {
        #[test]
        fn nat_02_a_delta_turns_the_old_checksum_into_the_new_one(
            a: [u32; 4], ports: [u16; 4], payload in proptest::collection::vec(any::<u16>(), 1..20)
        ) {
            let key = |source, destination, source_port, destination_port| FlowKey::<V4> {
                source: Ipv4Addr::from_bits(source),
                destination: Ipv4Addr::from_bits(destination),
                source_port,
                destination_port,
                protocol: Protocol::TCP,
            };
            let from = key(a[0], a[1], ports[0], ports[1]);
            let to = key(a[2], a[3], ports[2], ports[3]);
            let translation = Translation::between(&from, &to);
            let sum = |key: &FlowKey<V4>| {
                let mut words = payload.clone();
                // A checksum covers at least one word that is not zero (protocol and length).
                words.push(6);
                words.extend(halves(key.source.bits()));
                words.extend(halves(key.destination.bits()));
                words.extend([key.source_port, key.destination_port]);
                checksum(&words)
            };
            prop_assert_eq!(!add(!sum(&from), translation.transport_delta), sum(&to));
            let back = Translation::between(&to, &from);
            prop_assert_eq!(!add(!sum(&to), back.transport_delta), sum(&from));
        }

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
        }
    }
}
