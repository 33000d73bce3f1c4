//! The rewrite of a packet: new addresses and ports, and checksums brought along (NAT-01, NAT-02).
//!
//! A [`Rewrite`] is made once for each direction of a connection and then applied to every packet of it
//! without a decision: two stores and two additions. It stands between the flow lookup and the next hop.

use crate::packet::checksum::{Delta, Sum};
use crate::packet::parse::{FragmentKind, Headers, IcmpClass};
use crate::packet::plain::View;
use crate::packet::{Family, Packet, Protocol, V4};
use crate::packet::{crc32c, icmp, ip, transport};

/// What becomes of the packets of one direction of a connection. Ports are in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<A: Family> {
    /// The new source address.
    pub source: A::Addr,
    /// The new destination address.
    pub destination: A::Addr,
    /// The new source port, or identifier of an ICMP query.
    pub source_port: u16,
    /// The new destination port; not used for ICMP.
    pub destination_port: u16,
    /// What the change of addresses does to a sum: to the IPv4 header checksum, and to a partial transport
    /// checksum of either family, whose pseudo header holds no ports.
    pub ip_delta: Delta,
    /// What the change does to the protocol's complete checksum: addresses and ports for TCP and UDP,
    /// addresses and identifier for ICMPv6, the identifier for ICMP.
    pub transport_delta: Delta,
    /// Whether anything changes at all. The deltas do not tell: swapped addresses leave every sum alone.
    pub changes: Changes,
}

/// Whether a rewrite does something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changes {
    /// It leaves packets as they are.
    Nothing,
    /// It does.
    Something,
}

/// Addresses and ports of a packet: source, destination, source port, destination port.
pub type Tuple<A> = (<A as Family>::Addr, <A as Family>::Addr, u16, u16);

impl<A: Family> Rewrite<A> {
    /// The rewrite that turns packets with the addresses and ports `from` into such with `to`.
    ///
    /// For ICMP the source port is the identifier and the destination port (type and code) does not count.
    /// For protocols without ports only the addresses count.
    pub fn between(from: Tuple<A>, to: Tuple<A>, protocol: Protocol) -> Rewrite<A> {
        let addresses = Delta::of_address::<A>(from.0, to.0) + Delta::of_address::<A>(from.1, to.1);
        let source_port = Delta::of_word(from.2, to.2);
        let (transport_delta, ports_change) = match protocol {
            Protocol::TCP | Protocol::UDP => {
                (addresses + source_port + Delta::of_word(from.3, to.3), (from.2, from.3) != (to.2, to.3))
            }
            // The CRC covers no addresses, and is no sum.
            Protocol::SCTP => (Delta::NONE, (from.2, from.3) != (to.2, to.3)),
            Protocol::ICMP => (source_port, from.2 != to.2),
            Protocol::ICMPV6 => (addresses + source_port, from.2 != to.2),
            _ => (Delta::NONE, false),
        };
        let changes = if ports_change || (from.0, from.1) != (to.0, to.1) {
            Changes::Something
        } else {
            Changes::Nothing
        };
        Rewrite {
            source: to.0,
            destination: to.1,
            source_port: to.2,
            destination_port: to.3,
            ip_delta: addresses,
            transport_delta,
            changes,
        }
    }

    /// The rewrite that leaves a packet with these headers as it is.
    pub fn identity(headers: &Headers<A>) -> Rewrite<A> {
        let tuple = (headers.source, headers.destination, headers.source_port, headers.destination_port);
        Rewrite::between(tuple, tuple, headers.protocol)
    }

    /// Whether packets stay as they are.
    #[inline]
    pub fn is_identity(&self) -> bool {
        self.changes == Changes::Nothing
    }

    /// Rewrites a packet whose headers are `headers`, as parsed.
    ///
    /// Later fragments have no ports and no checksum: only their addresses change. ICMP errors too; what
    /// they quote is left alone. A first fragment of SCTP must say how much follows
    /// ([`following`](Headers::following)): its CRC covers that too.
    ///
    /// # Panics
    /// If the headers are not those of this packet.
    #[inline(always)]
    pub fn apply(&self, packet: &mut Packet, headers: &Headers<A>) {
        if self.is_identity() {
            return;
        }
        let partial = transport::is_partial(packet, headers);
        let frame = packet.head_mut();
        let l3 = usize::from(headers.l3);
        let l4 = usize::from(headers.l4);
        ip::write_addresses::<A>(&mut frame[l3..], self.source, self.destination);
        if A::VERSION == 4 {
            update(frame, l3 + ip::field::V4_CHECKSUM, |field| self.ip_delta.apply(field));
        }
        if headers.fragment == FragmentKind::Later {
            return;
        }
        match headers.protocol {
            Protocol::TCP => {
                self.write_ports(frame, l4);
                update(frame, l4 + transport::field::TCP_CHECKSUM, |field| {
                    if partial {
                        self.ip_delta.apply_to_sum(field)
                    } else {
                        self.transport_delta.apply(field)
                    }
                });
            }
            Protocol::UDP => {
                self.write_ports(frame, l4);
                update(frame, l4 + transport::field::UDP_CHECKSUM, |field| {
                    if partial {
                        self.ip_delta.apply_to_sum(field)
                    } else {
                        self.transport_delta.apply_udp(field)
                    }
                });
            }
            Protocol::SCTP => self.apply_sctp(packet, headers, partial),
            _ if headers.protocol == A::ICMP => self.apply_icmp(packet, headers, partial),
            _ => {}
        }
    }

    #[inline(always)]
    fn write_ports(&self, frame: &mut [u8], l4: usize) {
        let ports = u32::from(self.source_port) << 16 | u32::from(self.destination_port);
        frame[l4..][..4].copy_from_slice(&ports.to_be_bytes());
    }

    #[cold]
    fn apply_sctp(&self, packet: &mut Packet, headers: &Headers<A>, partial: bool) {
        let l4 = usize::from(headers.l4);
        let frame = packet.head_mut();
        let ports = |frame: &[u8]| -> [u8; 4] { std::array::from_fn(|i| frame[l4 + i]) };
        let old = ports(frame);
        self.write_ports(frame, l4);
        let new = ports(frame);
        if partial || old == new {
            return;
        }
        let field = &mut frame[l4 + transport::field::SCTP_CHECKSUM..][..4];
        let crc = u32::from_le_bytes(std::array::from_fn(|i| field[i]));
        let following = headers.end as usize - l4 - 4 + usize::from(headers.following);
        field.copy_from_slice(&crc32c::replace(crc, old, new, following).to_le_bytes());
    }

    #[inline(never)]
    fn apply_icmp(&self, packet: &mut Packet, headers: &Headers<A>, partial: bool) {
        let l4 = usize::from(headers.l4);
        let checksum = l4 + icmp::field::CHECKSUM;
        let frame = packet.head_mut();
        let delta = if headers.icmp == IcmpClass::Query {
            frame[l4 + icmp::field::IDENTIFIER..][..2].copy_from_slice(&self.source_port.to_be_bytes());
            self.transport_delta
        } else if A::VERSION == 6 {
            self.ip_delta
        } else {
            Delta::NONE
        };
        if partial {
            if A::VERSION == 6 {
                update(frame, checksum, |field| self.ip_delta.apply_to_sum(field));
            }
            return;
        }
        update(frame, checksum, |field| delta.apply(field));
        // ICMP has no pseudo header, so a message can be all zeros (the reply to an echo with identifier
        // and sequence number 0). Its checksum is 0xffff, the one case that no update can tell from 0.
        if A::VERSION == 4 && frame[checksum..][..2] == [0, 0] {
            let sum = Sum::of_range(packet, l4..headers.end as usize);
            if sum == Sum::ZERO && headers.fragment == FragmentKind::Whole {
                packet.head_mut()[checksum..][..2].fill(0xff);
            }
        }
    }
}

/// What becomes of a packet's TTL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ttl {
    /// One less (FW-01).
    Decrement,
    /// As it is: the packet's sender is this node.
    Keep,
}

impl Rewrite<V4> {
    /// [`decrement_ttl`] and [`apply`](Rewrite::apply) in one, for a plain packet whose TTL is not 0. Nothing is
    /// asked about a rewrite that changes nothing: its deltas leave every field as it is.
    #[inline(always)]
    pub(crate) fn apply_plain(&self, view: &mut View<'_>, ttl: Ttl) {
        let aging = match ttl {
            Ttl::Decrement => {
                view.set_ttl(view.ttl().wrapping_sub(1));
                TTL_DECREMENTED
            }
            Ttl::Keep => Delta::NONE,
        };
        view.update_ip_checksum(|field| self.ip_delta.apply_with(aging, field));
        view.set_addresses(self.source, self.destination);
        view.set_ports(self.source_port, self.destination_port);
        let partial = view.is_partial();
        if view.protocol() == Protocol::TCP {
            view.update_tcp_checksum(|field| {
                if partial { self.ip_delta.apply_to_sum(field) } else { self.transport_delta.apply(field) }
            });
        } else {
            view.update_udp_checksum(|field| {
                if partial {
                    self.ip_delta.apply_to_sum(field)
                } else {
                    self.transport_delta.apply_udp(field)
                }
            });
        }
    }
}

/// TTL is the high byte of its word: one less is 0x0100 less, whatever the low byte is.
const TTL_DECREMENTED: Delta = Delta::of_word(0x0100, 0);

/// Decreases TTL or hop limit by one (FW-01); 0 stays 0. Whether the packet may still travel is to be asked
/// of [`Headers::ttl`] before.
///
/// # Panics
/// If the headers are not those of this packet.
#[inline(always)]
pub fn decrement_ttl<A: Family>(packet: &mut Packet, headers: &Headers<A>) {
    let frame = packet.head_mut();
    let l3 = usize::from(headers.l3);
    if A::VERSION == 4 {
        let ttl = frame[l3 + ip::field::V4_TTL];
        if ttl > 0 {
            frame[l3 + ip::field::V4_TTL] = ttl - 1;
            update(frame, l3 + ip::field::V4_CHECKSUM, |field| TTL_DECREMENTED.apply(field));
        }
    } else {
        let hop_limit = &mut frame[l3 + ip::field::V6_HOP_LIMIT];
        *hop_limit = hop_limit.saturating_sub(1);
    }
}

/// Changes the 16-bit field at `at`.
#[inline(always)]
fn update(frame: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    let field: &mut [u8; 2] = frame[at..].first_chunk_mut().expect("a parsed packet holds its checksums");
    *field = change(u16::from_be_bytes(*field)).to_be_bytes();
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
