//! What to do with a received message of neighbour discovery: learn from it, answer it (NB-01). The IPv6 side of
//! [`resolution`](super::resolution), and as there a decision without effects.
//!
//! The rules are those of RFC 4861, section 7.2, as the kernel reads them, and differ from ARP's: an address is
//! answered for on its own interface only, and nothing is learnt from talk between others. On a port that Pollux
//! shares with the kernel, the kernel sees all of neighbour discovery and answers for the node's addresses;
//! there Pollux learns, and answers by proxy only.
//!
//! Every interface has a link-local address, which is what pods take for their gateway (Calico). Where a port
//! that Pollux owns is given none, it is the one that belongs to the port's link address.

use std::net::{IpAddr, Ipv6Addr};

use super::neighbour::Advertised;
use super::resolution::Responder;
use super::{Fib, Interfaces, Learned, RouteKind};
use crate::packet::ndp::{self, Flags, Kind, Ndp};
use crate::packet::{Address, Family, LinkAddr, PortId, V6};

/// The port that received a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Station {
    /// Its number.
    pub port: PortId,
    /// Its link address.
    pub link: LinkAddr,
    /// Who answers on it.
    pub responder: Responder,
}

/// What to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What the table of neighbours is to be told.
    pub learn: Option<Lesson>,
    /// The advertisement to send, and the link address that the frame goes to.
    pub answer: Option<(Ndp, LinkAddr)>,
}

/// What a message teaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lesson {
    /// Who asked is here: for [`Neighbours::learn`](super::Neighbours::learn).
    Asked(Ipv6Addr, LinkAddr, Learned),
    /// The target's own word: for [`Neighbours::advertised`](super::Neighbours::advertised).
    Advertised(Ipv6Addr, Advertised),
}

const NOTHING: Decision = Decision { learn: None, answer: None };

/// Decides on a message that came from `link_source`, the source of its frame.
pub fn decide(
    message: &Ndp,
    link_source: LinkAddr,
    at: &Station,
    interfaces: &Interfaces<V6>,
    fib: &Fib<V6>,
) -> Decision {
    let Ndp { source, target, link, .. } = *message;
    if target.is_unspecified() || target.is_loopback() || source.is_loopback() || source.is_multicast() {
        return NOTHING;
    }
    if link.is_some_and(|link| link.is_group() || link == LinkAddr::default()) {
        return NOTHING;
    }
    match message.kind {
        // Somebody with an address of the node's own is a liar or a conflict.
        Kind::Advertisement(_) if is_own(target, at, interfaces) => NOTHING,
        Kind::Advertisement(Flags { solicited, overrides, .. }) => Decision {
            learn: Some(Lesson::Advertised(target, Advertised { link, solicited, overrides })),
            answer: None,
        },
        Kind::Solicitation if is_own(source, at, interfaces) => NOTHING,
        Kind::Solicitation => solicited(message, link_source, at, interfaces, fib),
    }
}

fn solicited(
    message: &Ndp,
    link_source: LinkAddr,
    at: &Station,
    interfaces: &Interfaces<V6>,
    fib: &Fib<V6>,
) -> Decision {
    let Ndp { source, target, link, .. } = *message;
    let asked = |how| link.map(|link| Lesson::Asked(source, link, how));
    let own = is_own(target, at, interfaces);
    let (for_own, by_proxy) = match at.responder {
        Responder::Kernel => (false, false),
        Responder::Proxy => (false, true),
        Responder::Own => (true, false),
        Responder::OwnAndProxy => (true, true),
    };
    let is_answered = (own && for_own) || (by_proxy && is_proxied(target, own, at, interfaces, fib));
    if !is_answered {
        // The kernel's to answer. Of questions for others nothing is learnt.
        let learn = if own && !source.is_unspecified() { asked(Learned::Overheard) } else { None };
        return Decision { learn, answer: None };
    }
    // An advertisement that replaces what others know is not the proxy's to send (section 7.2.8).
    let overrides = own;
    let sender = if own { target } else { source_on_link(at.port, at.link, interfaces) };
    let advertisement = |destination, solicited| Ndp {
        kind: Kind::Advertisement(Flags { router: true, solicited, overrides }),
        source: sender,
        destination,
        target,
        link: Some(at.link),
    };
    if source.is_unspecified() {
        // A check for duplicates: an address of the node's own is defended, to everyone.
        let defence = (advertisement(ndp::ALL_NODES, false), ndp::group_link(ndp::ALL_NODES));
        return Decision { learn: None, answer: own.then_some(defence) };
    }
    Decision {
        learn: asked(Learned::Request),
        answer: Some((advertisement(source, true), link.unwrap_or(link_source))),
    }
}

/// Whether `address` is the node's on this link.
fn is_own(address: Ipv6Addr, at: &Station, interfaces: &Interfaces<V6>) -> bool {
    let assigned = interfaces
        .of_port(at.port)
        .is_some_and(|interface| interface.addresses().iter().any(|own| own.address == address));
    let owned = matches!(at.responder, Responder::Own | Responder::OwnAndProxy);
    assigned || (owned && address == source_on_link(at.port, at.link, interfaces))
}

/// Whether the port answers for an address that is not its own: what the node has, or routes to, elsewhere; and
/// the gateway of the port's pods, where the kernel has IPv6 switched off on the interface.
fn is_proxied(target: Ipv6Addr, own: bool, at: &Station, interfaces: &Interfaces<V6>, fib: &Fib<V6>) -> bool {
    if own {
        return false; // the kernel's to answer, on a port that it shares
    }
    if target.stays_on_link() {
        return target == source_on_link(at.port, at.link, interfaces);
    }
    match fib.lookup(target).map(|route| &route.kind) {
        Some(RouteKind::Host | RouteKind::Local) => true,
        Some(kind) => kind.leaves_elsewhere(at.port),
        None => false,
    }
}

/// The address that the node speaks with on a port's link: its link-local address there, or the one that
/// belongs to the link address `link`.
pub fn source_on_link<A: Family>(port: PortId, link: LinkAddr, interfaces: &Interfaces<A>) -> A::Addr {
    interfaces.link_local(port).unwrap_or_else(|| {
        let derived = IpAddr::V6(ndp::link_local(link));
        A::Addr::from_ip(derived).unwrap_or(A::Addr::UNSPECIFIED)
    })
}

#[cfg(test)]
#[path = "discovery_tests.rs"]
mod tests;
