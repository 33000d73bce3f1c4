//! What goes into the neighbours' table and comes out of it.

use std::net::Ipv6Addr;

#[cfg(doc)]
use super::Neighbours;
use super::record::AdjacencyId;
use crate::packet::ndp::{group_link, solicited_node};
use crate::packet::{Address, Family, LinkAddr, Packet, PortId, V4, V6};
use crate::stats::Reason;

/// How a link address was learnt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Learned {
    /// From an answer to this node. Confirms a known neighbour.
    Reply,
    /// From a question that Pollux answers. Makes the neighbour known, to be confirmed when used.
    Request,
    /// From an announcement. For known neighbours only (NB-01).
    Gratuitous,
    /// From a message between others. For known neighbours only.
    Overheard,
    /// From the configuration, or one of the kernel's permanent entries. Never ages.
    Static,
    /// From the kernel's table. Makes the neighbour known, to be confirmed when used: the kernel does not
    /// see the traffic, so it would not notice for Pollux that a neighbour moved.
    Kernel,
}

/// What a neighbour advertisement says of its target (RFC 4861, section 4.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Advertised {
    /// The link address; nothing when the message has none.
    pub link: Option<LinkAddr>,
    /// It answers a question of this node.
    pub solicited: bool,
    /// It replaces a link address that is known.
    pub overrides: bool,
}

/// What one worker heard of a neighbour, and tells the others: the neighbour's answer to one is received by
/// whoever polls its port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Heard<A: Family> {
    /// The port that it was heard on.
    pub port: PortId,
    /// Whom it is about.
    pub address: A::Addr,
    /// What was said.
    pub what: Said,
}

/// See [`Heard`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Said {
    /// For [`Neighbours::learn`].
    Link(LinkAddr, Learned),
    /// For [`Neighbours::advertised`].
    Advertised(Advertised),
}

/// What was heard, of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum News {
    /// In ARP.
    V4(Heard<V4>),
    /// In neighbour discovery.
    V6(Heard<V6>),
}

/// A request for a link address, to be sent as ARP request or neighbour solicitation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Solicitation<A: Family> {
    /// Out of this port.
    pub port: PortId,
    /// Who is asked.
    pub target: A::Addr,
    /// The link address, when an entry is to be confirmed; nothing when everyone is asked.
    pub known: Option<LinkAddr>,
    /// Source of the packet that waits longest; see
    /// [`solicit_source`](crate::route::Interfaces::solicit_source).
    pub waiting: Option<A::Addr>,
}

impl<A: Family> Solicitation<A> {
    /// Where the frame goes: to the neighbour itself, to everyone (ARP), or to the target's solicited-node
    /// group (RFC 4861, RFC 2464).
    pub fn link_destination(&self) -> LinkAddr {
        self.known.unwrap_or_else(|| {
            if A::VERSION == 4 {
                LinkAddr::BROADCAST
            } else {
                group_link(solicited_node(Ipv6Addr::from_bits(self.target.bits())))
            }
        })
    }
}

/// What is to be done about a neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NeighbourEvent<A: Family, H = Packet> {
    /// Send a request. It may be lost: the timers ask again.
    Solicit(Solicitation<A>),
    /// A held packet goes on: [`Neighbours::resolved`] knows the way. They come in the order in which they
    /// were held.
    Release(AdjacencyId, H),
    /// A held packet is to be dropped: under `NeighbourFailed`, and its source gets ICMP host unreachable
    /// (NB-02), or under `PortDown`.
    Failed(H, Reason),
}

/// What became of a packet given to [`Neighbours::hold`].
#[derive(PartialEq, Eq, Debug)]
pub enum Hold<H> {
    /// It waits.
    Waiting,
    /// No need to wait: the link address is known.
    Ready(H),
    /// To be dropped: `NeighbourQueue`, or `NeighbourFailed` (ICMP host unreachable).
    Refused(H, Reason),
    /// The number no longer names a neighbour: look the route up again.
    Outdated(H),
}
