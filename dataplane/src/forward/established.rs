//! Packets of known connections: the fast path. The entry says everything: no Service, no rule and, while
//! routing stands, no route is looked at. What changes a connection's state takes the slow method
//! [`FlowTable::touch`](crate::flow::FlowTable::touch) first. Both kinds end in [`Pass::forward_hit`].

use super::fragments::segments_fit;
use super::host::Wire;
use super::new::Refusal;
use super::observe::{Event, Observer};
use super::{NextHop, Output, Pass};
use crate::flow::{self, Class, Direction, FlowKey, Hit, NextHopRef, Touch};
use crate::nat::{self, Rewrite};
use crate::packet::ethernet;
use crate::packet::fragment;
use crate::packet::icmp::ErrorKind;
use crate::packet::parse::Headers;
use crate::packet::transport::verify_transport_checksum;
use crate::packet::{Address, Family, Packet, Protocol};
use crate::route::{AdjacencyId, Hold, Link};
use crate::service::{Mark, Origin};
use crate::stats::Reason;

/// Where a packet goes once it is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// To this neighbour, which knows its port.
    Port(AdjacencyId),
    /// To the node's own stack.
    Host,
}

impl Way {
    /// What a flow entry keeps of the way, found under its destination's `stamp`.
    pub(super) fn reference(self, stamp: u32) -> NextHopRef {
        let index = match self {
            Way::Port(AdjacencyId(number)) => number,
            Way::Host => u32::MAX,
        };
        NextHopRef { index, generation: stamp }
    }

    /// The way that a flow entry keeps.
    #[inline]
    pub(super) fn of(next_hop: NextHopRef) -> Way {
        if next_hop.index == u32::MAX { Way::Host } else { Way::Port(AdjacencyId(next_hop.index)) }
    }
}

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    /// A packet whose key is in the table.
    #[inline]
    pub(super) fn established(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin, hit: &Hit<A>) {
        if !self.way_stands(hit) && self.has_moved(hit) {
            return self.new_connection(packet, headers, origin);
        }
        let event = flow::Event::of(&packet, headers);
        if !self.state.flows.pass(hit, &event, self.now.into()) {
            // CT-08: a damaged packet must not move a connection. (Where nothing moves, the receiver finds out.)
            if !verify_transport_checksum(&packet, headers) {
                return self.invalid(packet, headers, origin, Reason::TransportChecksum);
            }
            match self.state.flows.touch(hit, &event, self.now.into()) {
                Touch::Forward(Class::Established) => {}
                // WK-08: as long as no reply was seen the filter is asked about every packet.
                Touch::Forward(Class::New) => {
                    if let Err(refusal) = self.filter_unreplied(&packet, headers, origin, hit) {
                        return self.refuse(packet, headers, refusal);
                    }
                }
                Touch::Reopen | Touch::Gone => return self.new_connection(packet, headers, origin),
                Touch::Invalid => return self.invalid(packet, headers, origin, Reason::Invalid),
            }
        }
        self.observer.see(Event::FlowHit { direction: hit.direction() });
        self.state.flows.count(hit.entry, headers.packet_len());
        self.forward_hit(packet, headers, origin, hit);
    }

    /// Sends a packet the way of its entry.
    #[inline]
    pub(super) fn forward_hit(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin, hit: &Hit<A>) {
        let way = match self.way(hit) {
            Ok(way) => way,
            Err(refusal) => return self.refuse(packet, headers, refusal),
        };
        match way {
            Way::Port(adjacency) => match self.state.neighbours.resolved(adjacency) {
                Some(link) => self.send(packet, headers, origin, &hit.rewrite(), &link),
                None => self.send_unresolved(packet, headers, origin, hit, adjacency),
            },
            Way::Host => {
                let mut packet = packet;
                hit.rewrite().apply(&mut packet, headers);
                self.deliver(packet);
            }
        }
    }

    /// Where the entry says that its packets go.
    #[inline]
    pub(super) fn way(&mut self, hit: &Hit<A>) -> Result<Way, Refusal> {
        if self.way_stands(hit) { Ok(Way::of(hit.next_hop())) } else { self.reroute(hit) }
    }

    /// Whether no route has changed under the entry's destination since its next hop was found (RT-05).
    #[inline]
    fn way_stands(&self, hit: &Hit<A>) -> bool {
        hit.next_hop().generation == self.state.stamps.of::<A>(hit.rewrite().destination)
    }

    /// Routes have changed there, or the entry's next hop was never looked for.
    #[cold]
    pub(super) fn reroute(&mut self, hit: &Hit<A>) -> Result<Way, Refusal> {
        let flow = self.routed(hit);
        let way = self.route(&flow)?;
        let stamp = self.state.stamps.of::<A>(flow.destination);
        self.state.flows.set_next_hop(hit.entry, way.reference(stamp));
        Ok(way)
    }

    /// CT-13: whether a masqueraded connection leaves by another interface now than the one whose address it
    /// has. It is over then, and the packet in hand begins a new one. (The kernel drops that packet; the next
    /// one begins.) Asked in the original direction only, as there.
    #[cold]
    fn has_moved(&mut self, hit: &Hit<A>) -> bool {
        let (rewrite, flow) = (hit.rewrite(), self.routed(hit));
        if hit.direction() == Direction::Reply || rewrite.source == flow.source {
            return false;
        }
        // A route that refuses does not move it: the packet is refused, the connection stays.
        let Ok(way) = self.route(&flow) else { return false };
        let next_hop = self.next_hop(way);
        let out = next_hop.map(|(port, _)| port);
        let moved = match self.state.destination_of(hit.next_hop()) {
            NextHop::Host => out.is_some(),
            NextHop::Neighbour(port, _) => out != Some(port),
            // Its port is not known any more, or another worker found it: the address tells.
            NextHop::Unknown => {
                let neighbour = next_hop.map_or(rewrite.destination, |(_, address)| address);
                let interfaces = &self.tables.routing.interfaces;
                interfaces.masquerade_source(out, neighbour, rewrite.destination) != Some(rewrite.source)
            }
        };
        moved && self.state.flows.remove(hit.entry)
    }

    /// A packet of the entry as routing sees it: its destination is translated, its source is not.
    fn routed(&self, hit: &Hit<A>) -> FlowKey<A> {
        let rewrite = hit.rewrite();
        let out = FlowKey {
            source: rewrite.source,
            destination: rewrite.destination,
            source_port: rewrite.source_port,
            destination_port: rewrite.destination_port,
            protocol: Protocol::default(),
        };
        match self.state.flows.get(hit.entry, self.now.into()) {
            Some(flow) => {
                let key = if hit.direction() == Direction::Original { flow.original } else { flow.reply };
                FlowKey { source: key.source, source_port: key.source_port, protocol: key.protocol, ..out }
            }
            None => out, // it has just ended
        }
    }

    /// The stages that a packet of a connection without a reply passes again: those of [`Pass::decide`] but
    /// for both kinds of NAT, in the same order.
    #[cold]
    pub(super) fn filter_unreplied(
        &mut self,
        packet: &Packet,
        headers: &Headers<A>,
        origin: Origin,
        hit: &Hit<A>,
    ) -> Result<(), Refusal> {
        if hit.direction() == Direction::Reply {
            return Ok(());
        }
        let rewrite = hit.rewrite();
        let mut request = self.request(headers, origin);
        let translated = (rewrite.destination, rewrite.destination_port)
            != (request.destination, request.destination_port);
        request.destination = rewrite.destination;
        request.destination_port = rewrite.destination_port;
        request.destination_is_local = self.locality(request.destination);
        let way = self.way(hit)?;
        self.forwardable(packet, headers, origin, way)?;
        // The mark is metadata of the first packet and set anew by no later one: NAT is not walked again.
        self.filter(&request, way, Mark::Clear, translated)?;
        Ok(())
    }

    /// FW-01 and FW-02 for what a port sends out of a port: the kernel looks before it filters. A packet of
    /// the host's own is measured behind the filter, when it leaves.
    pub(super) fn forwardable(
        &self,
        packet: &Packet,
        headers: &Headers<A>,
        origin: Origin,
        way: Way,
    ) -> Result<(), Refusal> {
        match way {
            Way::Port(adjacency) if origin != Origin::Host && self.state.neighbours.is_current(adjacency) => {
                self.fits(packet, headers, origin, self.state.neighbours.mtu(adjacency))
            }
            _ => Ok(()),
        }
    }

    /// The link address of the next hop is not known, or the entry's neighbour no longer is.
    #[cold]
    fn send_unresolved(
        &mut self,
        packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        hit: &Hit<A>,
        adjacency: AdjacencyId,
    ) {
        let way = if self.state.neighbours.is_current(adjacency) {
            Ok(Way::Port(adjacency))
        } else {
            self.reroute(hit) // its place in the table was given to another
        };
        match way {
            Ok(Way::Port(adjacency)) => self.send_or_hold(packet, headers, origin, &hit.rewrite(), adjacency),
            Ok(Way::Host) => {
                let mut packet = packet;
                hit.rewrite().apply(&mut packet, headers);
                self.deliver(packet);
            }
            Err(refusal) => self.refuse(packet, headers, refusal),
        }
    }

    /// Sends to a neighbour, or lets the packet wait for its link address: as it came in, to be forwarded
    /// again from the table when it is known, so nothing is changed twice.
    pub(super) fn send_or_hold(
        &mut self,
        packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        rewrite: &Rewrite<A>,
        adjacency: AdjacencyId,
    ) {
        if let Some(link) = self.link(adjacency) {
            return self.send(packet, headers, origin, rewrite, &link);
        }
        if headers.is_fragment() && !self.is_found_again(headers) {
            return self.hold_fragment(packet, headers, origin, rewrite, adjacency);
        }
        self.hold(packet, headers, origin, rewrite.source, adjacency);
    }

    /// Lets a packet that will leave with this source wait for a link address.
    pub(super) fn hold(
        &mut self,
        packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        source: A::Addr,
        adjacency: AdjacencyId,
    ) {
        if let Err(refusal) = self.fits(&packet, headers, origin, self.state.neighbours.mtu(adjacency)) {
            return self.refuse(packet, headers, refusal);
        }
        match self.wait(packet, source, adjacency) {
            Ok(()) => {}
            Err((packet, Reason::NeighbourFailed)) => self.refuse(packet, headers, Refusal::NEIGHBOUR),
            Err((packet, reason)) => self.drop(packet, reason),
        }
    }

    /// Lets a packet wait as it is, or gives it back with the reason why it may not.
    pub(super) fn wait(
        &mut self,
        packet: Packet,
        source: A::Addr,
        adjacency: AdjacencyId,
    ) -> Result<(), (Packet, Reason)> {
        match self.state.neighbours.hold(adjacency, packet, source, self.now) {
            Hold::Waiting => {
                if let Some(address) = self.state.neighbours.address(adjacency) {
                    let port = self.state.neighbours.port(adjacency);
                    self.observer.see(Event::Held { port, neighbour: address.into() });
                }
                self.poll_neighbours();
                Ok(())
            }
            Hold::Refused(packet, reason) => Err((packet, reason)),
            // The neighbour was looked at just now.
            Hold::Ready(packet) | Hold::Outdated(packet) => Err((packet, Reason::NeighbourQueue)),
        }
    }

    /// FW-01 and FW-02, in the kernel's order: before anything of the packet is changed.
    #[inline(always)]
    pub(super) fn fits(
        &self,
        packet: &Packet,
        headers: &Headers<A>,
        origin: Origin,
        mtu: u32,
    ) -> Result<(), Refusal> {
        if headers.ttl <= 1 && origin != Origin::Host {
            return Err(Refusal::answered(Reason::TtlExceeded, ErrorKind::TimeExceeded));
        }
        // RFC 4291, section 2.5.6, at this place in the kernel's `ip6_forward`.
        if headers.source.stays_on_link() && origin != Origin::Host {
            return Err(Refusal::answered(Reason::BeyondScope, ErrorKind::BeyondScope));
        }
        if headers.packet_len() > mtu { too_long(packet, headers, mtu) } else { Ok(()) }
    }

    /// Translates and sends.
    #[inline]
    pub(super) fn send(
        &mut self,
        mut packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        rewrite: &Rewrite<A>,
        link: &Link,
    ) {
        if let Err(refusal) = self.fits(&packet, headers, origin, link.mtu) {
            return self.refuse(packet, headers, refusal);
        }
        self.translate(&mut packet, headers, origin, rewrite);
        if headers.packet_len() > link.mtu {
            return self.transmit_long(packet, headers, link);
        }
        self.transmit(packet, link);
    }

    /// What forwarding changes in a packet, the link header apart.
    #[inline(always)]
    pub(super) fn translate(
        &mut self,
        packet: &mut Packet,
        headers: &Headers<A>,
        origin: Origin,
        rewrite: &Rewrite<A>,
    ) {
        if origin != Origin::Host {
            nat::decrement_ttl(packet, headers);
        }
        rewrite.apply(packet, headers);
    }

    /// Writes the link header and sends, or lets the packet into its tunnel.
    #[inline]
    pub(super) fn transmit(&mut self, mut packet: Packet, link: &Link) {
        if self.ports.tunnel(link.port).is_some() {
            return self.encapsulate(packet, link);
        }
        self.address(&mut packet, link);
        self.observer.leaves(link.port, &packet);
        self.out.send(link.port, packet);
    }

    /// Writes the link header.
    #[inline(always)]
    pub(super) fn address(&mut self, packet: &mut Packet, link: &Link) {
        ethernet::set_link(packet, link.source, link.destination);
        self.observer.see(Event::Sent {
            port: link.port,
            link_source: link.source,
            link_destination: link.destination,
        });
    }
}

/// A super-frame is judged by its segments, and what may be cut is, when it leaves (FW-02).
#[cold]
fn too_long<A: Family>(packet: &Packet, headers: &Headers<A>, mtu: u32) -> Result<(), Refusal> {
    if segments_fit(packet, headers, mtu) || fragment::can_be_cut(headers, mtu) {
        return Ok(());
    }
    if headers.dont_fragment {
        return Err(Refusal::answered(Reason::TooBig, ErrorKind::PacketTooBig { mtu }));
    }
    Err(Reason::TooBig.into())
}
