//! Routing: where a packet goes once its destination is final, in three steps.
//!
//! ```text
//! destination (after DNAT) → Fib: longest prefix → Route → NextHop → Neighbours: link address → port
//! ```
//!
//! The first packet of a connection walks all three; the connection's entry then keeps the [`AdjacencyId`],
//! and later packets cost one load of the neighbour's record. Which address the node speaks with itself
//! (masquerading, ICMP errors, ARP) is [`source`]'s to say, and follows the kernel's choice.
//!
//! Tables are built by control from a file or from the kernel's, and handed over as snapshots that share what did not
//! change ([`FibEditor`]). Entries keep a stamp of their destination ([`Stamps`]): a changed prefix makes those
//! look again whose destination lies under it, and no others (RT-05).

pub mod discovery;
pub mod fib;
pub mod multipath;
pub mod neighbour;
pub mod own;
pub mod resolution;
pub mod source;
pub mod stamps;

#[cfg(test)]
pub(crate) mod fixture;

use std::sync::Arc;

use crate::packet::{Family, PortId, Prefix};

pub use fib::{Changed, Fib, FibEditor, RouteId};
pub use multipath::Multipath;
pub use neighbour::{
    AdjacencyId, Advertised, Heard, Hold, Learned, Link, NeighbourEvent, Neighbours, News, Said, Solicitation,
};
pub use own::own_routes;
pub use source::{Interface, InterfaceAddress, Interfaces};
pub use stamps::Stamps;

/// One route: what happens to packets for a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route<A: Family> {
    /// The destinations.
    pub prefix: Prefix<A>,
    /// Among routes of one prefix the lowest metric wins (RT-01).
    pub metric: u32,
    /// What happens to the packets.
    pub kind: RouteKind<A>,
    /// `src` of the route: the source of packets that Pollux itself sends this way (RT-04). Not for
    /// masquerading, which has its own rule (NAT-04).
    pub preferred_source: Option<A::Addr>,
    /// The output link has no carrier. The route is chosen all the same (RT-04), unless
    /// [`retain_usable`] took it out.
    pub link_down: bool,
}

impl<A: Family> Route<A> {
    /// A route with metric 0, no preferred source, link up.
    pub fn new(prefix: Prefix<A>, kind: RouteKind<A>) -> Self {
        Route { prefix, metric: 0, kind, preferred_source: None, link_down: false }
    }
}

/// What a route does with a packet (RT-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteKind<A: Family> {
    /// Send it out of a port.
    Via(NextHop<A>),
    /// Send it one of several ways, each flow always the same one (RT-01).
    Multipath(Arc<Multipath<A>>),
    /// Deliver it to the host: an address of the node.
    Local,
    /// Deliver it to the host: a broadcast address.
    Broadcast,
    /// Deliver it to the host: a multicast group.
    Multicast,
    /// Hand it to the host, whose kernel routes it on: the way out is an interface that Pollux does not own.
    Host,
    /// Drop it silently.
    Blackhole,
    /// Drop it with ICMP host unreachable.
    Unreachable,
    /// Drop it with ICMP administratively prohibited.
    Prohibit,
}

impl<A: Family> RouteKind<A> {
    /// Whether the route is one of the kernel's table `local`, which is looked up before all others:
    /// what it covers, no other route can take away.
    pub fn is_of_local_table(&self) -> bool {
        matches!(self, RouteKind::Local | RouteKind::Broadcast | RouteKind::Multicast)
    }

    /// The next hop of a flow with this hash, if the route has any.
    #[inline]
    pub fn next_hop(&self, flow_hash: u32) -> Option<&NextHop<A>> {
        match self {
            RouteKind::Via(hop) => Some(hop),
            RouteKind::Multipath(hops) => Some(hops.choose(flow_hash)),
            _ => None,
        }
    }

    /// Whether the route sends packets out, and none of them by `port`.
    pub fn leaves_elsewhere(&self, port: PortId) -> bool {
        let mut hops = self.next_hops().peekable();
        hops.peek().is_some() && hops.all(|hop| hop.port != port)
    }

    /// All next hops; none for a route that sends nothing out.
    pub fn next_hops(&self) -> impl Iterator<Item = &NextHop<A>> {
        let (one, several) = match self {
            RouteKind::Via(hop) => (Some(hop), None),
            RouteKind::Multipath(hops) => (None, Some(hops.iter().map(|(hop, _)| hop))),
            _ => (None, None),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }
}

/// The next station of a packet: a port, and there a gateway or the destination itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop<A: Family> {
    /// The port that the packet leaves by.
    pub port: PortId,
    /// The gateway; nothing when the destination is on the link.
    pub gateway: Option<A::Addr>,
    /// The gateway is on the link although no connected subnet holds it. It changes nothing in forwarding;
    /// it is what a check of the gateway at loading, and the display, have to know.
    pub onlink: bool,
}

impl<A: Family> NextHop<A> {
    /// Straight out of `port`: every destination is on the link.
    pub fn on_link(port: PortId) -> Self {
        NextHop { port, gateway: None, onlink: false }
    }

    /// By way of `gateway`, reached out of `port`.
    pub fn gateway(port: PortId, gateway: A::Addr) -> Self {
        NextHop { port, gateway: Some(gateway), onlink: false }
    }

    /// The neighbour to which a packet for `destination` goes: the gateway, or the destination itself.
    #[inline]
    pub fn neighbour(&self, destination: A::Addr) -> A::Addr {
        self.gateway.unwrap_or(destination)
    }
}

/// Takes out the routes whose link is down on the ports where `ignore_routes_with_linkdown` is set (RT-04).
pub fn retain_usable<A: Family>(routes: &mut Vec<Route<A>>, ignore_routes_with_linkdown: &[PortId]) {
    routes.retain(|route| match &route.kind {
        RouteKind::Via(hop) => !(route.link_down && ignore_routes_with_linkdown.contains(&hop.port)),
        _ => true,
    });
}
