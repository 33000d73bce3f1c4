//! ICMP (RFC 792) and ICMPv6 (RFC 4443): what kind of message a type is, and the errors that Pollux sends.

use super::checksum::{Sum, slices};
use super::ethernet::{self, Ethernet};
use super::ip::{V4_LEN, V6_LEN, v4_header, v6_header};
use super::parse::{FragmentKind, Headers, IcmpClass};
use super::{Address, Family, LinkAddr, Packet, Protocol};
use crate::pool::Pool;

/// Length of the part of a message that all types share, in bytes: type, code, checksum, four more.
pub const LEN: usize = 8;

/// Places in a message, in bytes from its start.
pub mod field {
    /// The checksum.
    pub const CHECKSUM: usize = 2;
    /// Of a query: the identifier.
    pub const IDENTIFIER: usize = 4;
}

/// Longest IPv4 packet that carries an error, in bytes (RFC 1812, section 4.3.2.3).
const V4_ERROR_MAX: usize = 576;

/// Longest IPv6 packet that carries an error, in bytes: the least MTU (RFC 4443, section 2.4(c)).
const V6_ERROR_MAX: usize = 1280;

/// TTL and hop limit of errors: Linux's default for what a host sends.
const TTL: u8 = 64;

/// The highest ICMP type that is defined for IPv4 traffic; Linux reads nothing above it.
const V4_TYPE_MAX: u8 = 18;

/// An ICMPv6 redirect (RFC 4861).
const V6_REDIRECT: u8 = 137;

/// An ICMP redirect (RFC 792).
const V4_REDIRECT: u8 = 5;

/// What an ICMP error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// Nobody listens on the port: also how iptables' REJECT answers.
    PortUnreachable,
    /// The destination does not answer.
    HostUnreachable,
    /// There is no route to the destination.
    NetUnreachable,
    /// A filter or a `prohibit` route refuses the packet.
    AdminProhibited,
    /// The source is link-local, the destination on another link (IPv6; for IPv4 it is a host that cannot be
    /// reached, as RFC 7915 translates it).
    BeyondScope,
    /// The packet is longer than the link behind can carry: "fragmentation needed" or "packet too big".
    PacketTooBig {
        /// What it can carry, in bytes. IPv4 has 16 bits for it.
        mtu: u32,
    },
    /// TTL or hop limit reached 0.
    TimeExceeded,
}

impl ErrorKind {
    /// Type, code, and the four bytes behind the checksum.
    fn message<A: Family>(self) -> (u8, u8, u32) {
        if A::VERSION == 4 {
            match self {
                ErrorKind::NetUnreachable => (3, 0, 0),
                ErrorKind::HostUnreachable | ErrorKind::BeyondScope => (3, 1, 0),
                ErrorKind::PortUnreachable => (3, 3, 0),
                ErrorKind::PacketTooBig { mtu } => (3, 4, mtu.min(0xffff)),
                ErrorKind::AdminProhibited => (3, 13, 0),
                ErrorKind::TimeExceeded => (11, 0, 0),
            }
        } else {
            match self {
                ErrorKind::NetUnreachable => (1, 0, 0),
                ErrorKind::AdminProhibited => (1, 1, 0),
                ErrorKind::BeyondScope => (1, 2, 0),
                ErrorKind::HostUnreachable => (1, 3, 0),
                ErrorKind::PortUnreachable => (1, 4, 0),
                ErrorKind::PacketTooBig { mtu } => (2, 0, mtu),
                ErrorKind::TimeExceeded => (3, 0, 0),
            }
        }
    }
}

/// What kind of message an ICMP type of the family is.
#[inline]
pub fn class<A: Family>(kind: u8) -> IcmpClass {
    if A::VERSION == 4 {
        match kind {
            // Echo, timestamp, information, address mask; the even ones and 0 ask or answer alike.
            0 | 8 | 13..=18 => IcmpClass::Query,
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            3 | 4 | 5 | 11 | 12 => IcmpClass::Error,
            _ => IcmpClass::Other,
        }
    } else {
        match kind {
            128 | 129 => IcmpClass::Query,
            // All errors have the high bit clear, those of the future as well (RFC 4443, section 2.1).
            0..=127 => IcmpClass::Error,
            _ => IcmpClass::Other,
        }
    }
}

/// Whether the message is one that the kernel's tracker lets pass without tracking it: of ICMPv6 the groups'
/// and the neighbours' (RFC 2710, 3810, 4861), and questions about a node (RFC 4620), which it would track.
pub fn is_left_alone<A: Family>(headers: &Headers<A>) -> bool {
    let icmp_type = (headers.destination_port >> 8) as u8;
    A::VERSION == 6 && matches!(icmp_type, 130..=136 | 139 | 140 | 143)
}

/// Whether the message names a better way to its receiver. Of ICMPv6 none is an error (RFC 4861).
pub fn is_redirect<A: Family>(headers: &Headers<A>) -> bool {
    A::VERSION == 4
        && headers.icmp == IcmpClass::Error
        && (headers.destination_port >> 8) as u8 == V4_REDIRECT
}

/// The ICMP error of `kind` about the packet `offending`, from `source` to the packet's source. Nothing
/// when no error may be sent about it, or the pool is empty.
///
/// `offending` and `headers` are to be **as the packet came in**: the source must find its own packet
/// quoted, not what translation made of it. The result is a frame whose link addresses are zero, for the
/// egress stage to fill, and whose [`port`](Packet::port) is that of the offending packet.
///
/// None is sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4(e)) about an ICMP error or redirect, about a
/// fragment but the first, to a source that is no single host, and about a packet that was multicast or
/// broadcast, by its IP or its link address (but IPv6's "packet too big", which multicast needs as well). A
/// subnet's broadcast address cannot be told here: routing does.
pub fn icmp_error<A: Family>(
    kind: ErrorKind,
    offending: &Packet,
    headers: &Headers<A>,
    source: A::Addr,
    pool: &'static Pool,
) -> Option<Packet> {
    if !is_answerable(kind, offending, headers) {
        return None;
    }
    let (header_len, longest) = if A::VERSION == 4 { (V4_LEN, V4_ERROR_MAX) } else { (V6_LEN, V6_ERROR_MAX) };
    let l3 = usize::from(headers.l3);
    let end = (headers.end as usize).min(offending.len()).min(l3 + longest - header_len - LEN);
    // The quoted bytes are those of the frame. A checksum that was left partial is quoted as it is, as
    // Linux does: who reads the error looks at addresses and ports.
    let quoted = l3..end;

    let (icmp_type, code, rest) = kind.message::<A>();
    let mut message = [0; LEN];
    message[0] = icmp_type;
    message[1] = code;
    message[4..].copy_from_slice(&rest.to_be_bytes());
    let len = LEN + quoted.len();
    let mut sum = Sum::of(&message) + Sum::of_range(offending, quoted.clone());
    if A::VERSION == 6 {
        sum = sum + Sum::of_pseudo_header::<A>(source, headers.source, Protocol::ICMPV6, len as u32);
    }
    message[field::CHECKSUM..][..2].copy_from_slice(&sum.complement().to_be_bytes());

    let mut packet = Packet::new(pool, offending.port).ok()?;
    let link = Ethernet {
        destination: LinkAddr::default(),
        source: LinkAddr::default(),
        ether_type: A::ETHER_TYPE,
        len: ethernet::LEN as u16,
    };
    packet.extend(&link.to_bytes()).ok()?;
    match (source.into(), headers.source.into()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            // RFC 1812, section 4.3.2.5, as Linux reads it: the packet's own type of service, with
            // precedence "internetwork control". Identification 0 without "don't fragment" is safe as no
            // link of 576 bytes or more fragments it.
            let tos = headers.tos & 0x1e | 0xc0;
            packet.extend(&v4_header(from, to, Protocol::ICMP, tos, TTL, len as u16))
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            packet.extend(&v6_header(from, to, Protocol::ICMPV6, 0, TTL, len as u16))
        }
        _ => return None,
    }
    .ok()?;
    packet.extend(&message).ok()?;
    for bytes in slices(offending, quoted) {
        packet.extend(bytes).ok()?;
    }
    Some(packet)
}

/// Whether an ICMP error may be sent about a packet: see [`icmp_error`].
pub fn is_answerable<A: Family>(kind: ErrorKind, offending: &Packet, headers: &Headers<A>) -> bool {
    let icmp_type = (headers.destination_port >> 8) as u8;
    let about_error = match headers.icmp {
        IcmpClass::None | IcmpClass::Query => false,
        IcmpClass::Error => true,
        IcmpClass::Other if A::VERSION == 4 => icmp_type > V4_TYPE_MAX,
        IcmpClass::Other => icmp_type == V6_REDIRECT,
    };
    let limited_broadcast = |address: A::Addr| A::VERSION == 4 && address.bits() == 0xffff_ffff;
    let to_group = Ethernet::new_checked(offending.head()).is_none_or(|link| link.destination.is_group());
    let to_many = to_group || headers.destination.is_multicast() || limited_broadcast(headers.destination);
    let about_many = A::VERSION == 6 && matches!(kind, ErrorKind::PacketTooBig { .. });
    !about_error
        && (!to_many || about_many)
        && headers.fragment != FragmentKind::Later
        && !headers.source.is_multicast()
        && !headers.source.is_unspecified()
        && !limited_broadcast(headers.source)
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
