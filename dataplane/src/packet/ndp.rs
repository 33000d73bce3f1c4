//! Neighbour discovery over Ethernet (RFC 4861): solicitations and advertisements, read from a packet and made
//! into one.
//!
//! What sections 7.1.1 and 7.1.2 demand of a message is checked as it is read; so is that it is no fragment
//! (RFC 6980). The other messages of neighbour discovery are between routers and the node's own stack, and are
//! not read here.

use std::net::Ipv6Addr;

use super::checksum::Sum;
use super::ethernet::{self, Ethernet};
use super::ip::{V6_LEN, v6_header};
use super::parse::Headers;
use super::transport::verify_transport_checksum;
use super::{Family, LinkAddr, Packet, PoolEmpty, PortId, Protocol, V6, icmp};
use crate::pool::Pool;

/// Hop limit of every message: proof that no router has forwarded it.
pub const HOP_LIMIT: u8 = 255;

/// Length of a message without options, in bytes.
const LEN: usize = 24;

/// Length of the option with an Ethernet address, in bytes; options count in units of eight.
const OPTION_LEN: usize = 8;

/// Place of the target address in a message.
const TARGET: usize = 8;

const ROUTER_SOLICITATION: u8 = 133;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Types of the options that carry a link address: the sender's, the target's.
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;

/// Flags of an advertisement, in its fifth byte.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Who has the target address?
    Solicitation,
    /// The target address is here.
    Advertisement(Flags),
}

/// What an advertisement says beside the link address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// The sender is a router.
    pub router: bool,
    /// It answers a question of the one it is sent to.
    pub solicited: bool,
    /// It replaces what is known.
    pub overrides: bool,
}

/// A neighbour solicitation or advertisement, and the addresses of its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ndp {
    /// Solicitation or advertisement.
    pub kind: Kind,
    /// Who sends it; unspecified when a node asks whether the target address is free (RFC 4862).
    pub source: Ipv6Addr,
    /// Whom it is for: a node, or a group.
    pub destination: Ipv6Addr,
    /// The address that is asked for, or told of.
    pub target: Ipv6Addr,
    /// Of a solicitation the sender's link address, of an advertisement the target's; an option in both.
    pub link: Option<LinkAddr>,
}

/// A message that is to be discarded silently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalid;

/// Whether a packet is a message of neighbour discovery, router discovery and redirects included.
#[inline]
pub fn is_discovery(headers: &Headers<V6>) -> bool {
    headers.protocol == Protocol::ICMPV6
        && !headers.is_fragment()
        && (ROUTER_SOLICITATION..=REDIRECT).contains(&message_type(headers))
}

fn message_type(headers: &Headers<V6>) -> u8 {
    (headers.destination_port >> 8) as u8
}

impl Ndp {
    /// Reads a solicitation or an advertisement; nothing for another message.
    ///
    /// # Errors
    /// When the message is not valid by RFC 4861, sections 7.1.1 and 7.1.2.
    pub fn new_checked(packet: &Packet, headers: &Headers<V6>) -> Result<Option<Ndp>, Invalid> {
        let message_type = message_type(headers);
        if headers.protocol != Protocol::ICMPV6 || !matches!(message_type, SOLICITATION | ADVERTISEMENT) {
            return Ok(None);
        }
        let (l4, end) = (usize::from(headers.l4), headers.end as usize);
        let code = headers.destination_port as u8;
        // Directly behind the IP header: extension headers have no use here, and one is a fragment's.
        let plain = l4 == usize::from(headers.l3) + V6_LEN;
        if headers.ttl != HOP_LIMIT || code != 0 || !plain || !verify_transport_checksum(packet, headers) {
            return Err(Invalid);
        }
        let message = packet.head().get(l4..end).ok_or(Invalid)?;
        let (fixed, options) = message.split_first_chunk::<LEN>().ok_or(Invalid)?;
        let target = Ipv6Addr::from_octets(std::array::from_fn(|i| fixed[TARGET + i]));
        let flags = fixed[4];
        let (kind, wanted) = if message_type == SOLICITATION {
            (Kind::Solicitation, SOURCE_LINK)
        } else {
            let flags = Flags {
                router: flags & ROUTER != 0,
                solicited: flags & SOLICITED != 0,
                overrides: flags & OVERRIDE != 0,
            };
            (Kind::Advertisement(flags), TARGET_LINK)
        };
        let ndp = Ndp {
            kind,
            source: headers.source,
            destination: headers.destination,
            target,
            link: link_option(options, wanted)?,
        };
        if ndp.is_possible() { Ok(Some(ndp)) } else { Err(Invalid) }
    }

    /// Whether the addresses can be together.
    fn is_possible(&self) -> bool {
        let possible = match self.kind {
            Kind::Solicitation if self.source.is_unspecified() => {
                self.link.is_none() && is_solicited_node(self.destination)
            }
            Kind::Solicitation => true,
            Kind::Advertisement(flags) => !(flags.solicited && self.destination.is_multicast()),
        };
        possible && !self.target.is_multicast()
    }

    /// The question who has `target`, to everyone who may.
    pub fn solicitation(source: Ipv6Addr, target: Ipv6Addr, link: LinkAddr) -> Ndp {
        let destination = solicited_node(target);
        Ndp { kind: Kind::Solicitation, source, destination, target, link: Some(link) }
    }

    /// The question whether `target` is still where it was, to itself.
    pub fn probe(source: Ipv6Addr, target: Ipv6Addr, link: LinkAddr) -> Ndp {
        Ndp { destination: target, ..Ndp::solicitation(source, target, link) }
    }

    /// The frame that carries the message between two link addresses, as if received on `port`.
    ///
    /// # Errors
    /// When the pool is empty.
    pub fn to_packet(
        &self,
        pool: &'static Pool,
        port: PortId,
        link_source: LinkAddr,
        link_destination: LinkAddr,
    ) -> Result<Packet, PoolEmpty> {
        let mut message = [0; LEN + OPTION_LEN];
        let len = LEN + if self.link.is_some() { OPTION_LEN } else { 0 };
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let option = match self.kind {
            Kind::Solicitation => {
                message[0] = SOLICITATION;
                SOURCE_LINK
            }
            Kind::Advertisement(Flags { router, solicited, overrides }) => {
                message[0] = ADVERTISEMENT;
                message[4] = flag(router, ROUTER) | flag(solicited, SOLICITED) | flag(overrides, OVERRIDE);
                TARGET_LINK
            }
        };
        message[TARGET..LEN].copy_from_slice(&self.target.octets());
        if let Some(LinkAddr(link)) = self.link {
            message[LEN..LEN + 2].copy_from_slice(&[option, 1]);
            message[LEN + 2..].copy_from_slice(&link);
        }
        let message = &mut message[..len];
        let pseudo_header =
            Sum::of_pseudo_header::<V6>(self.source, self.destination, Protocol::ICMPV6, len as u32);
        let checksum = (Sum::of(message) + pseudo_header).complement();
        message[icmp::field::CHECKSUM..][..2].copy_from_slice(&checksum.to_be_bytes());

        let link = Ethernet {
            destination: link_destination,
            source: link_source,
            ether_type: V6::ETHER_TYPE,
            len: ethernet::LEN as u16,
        };
        let ip = v6_header(self.source, self.destination, Protocol::ICMPV6, 0, HOP_LIMIT, len as u16);
        let mut packet = Packet::copy_of(pool, port, &link.to_bytes())?;
        packet.extend(&ip)?;
        packet.extend(message)?;
        Ok(packet)
    }
}

/// The link address in the first option of type `wanted`. Options of other types are skipped.
fn link_option(mut options: &[u8], wanted: u8) -> Result<Option<LinkAddr>, Invalid> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * OPTION_LEN;
        let (option, rest) = options.split_at_checked(len).filter(|_| len > 0).ok_or(Invalid)?;
        if kind == wanted
            && found.is_none()
            && let [_, _, link @ ..] = option
        {
            found = Some(LinkAddr(*link.first_chunk().ok_or(Invalid)?));
        }
        options = rest;
    }
    // A single byte is no option.
    if options.is_empty() { Ok(found) } else { Err(Invalid) }
}

/// The group of all nodes whose address ends like `address` (RFC 4291, section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(SOLICITED_NODE | address.to_bits() & 0xff_ffff)
}

const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;

fn is_solicited_node(address: Ipv6Addr) -> bool {
    address.to_bits() & !0xff_ffff == SOLICITED_NODE
}

/// The link address of a group (RFC 2464, section 7).
pub fn group_link(group: Ipv6Addr) -> LinkAddr {
    let [.., a, b, c, d] = group.octets();
    LinkAddr([0x33, 0x33, a, b, c, d])
}

/// The link-local address that belongs to a link address: what an interface has unless it was given another
/// (RFC 4291, appendix A).
pub fn link_local(link: LinkAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = link.0;
    let [high, low] = [[a ^ 2, b, c, 0xff], [0xfe, d, e, f]].map(u32::from_be_bytes);
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(high) << 32 | u128::from(low))
}

#[cfg(test)]
#[path = "ndp_tests.rs"]
mod tests;
