//! Fragments, and packets that become fragments.
//!
//! A fragment goes through the table of those under way ([`crate::nat::fragments`], NAT-08): the first one of
//! a datagram takes the way of any packet, the others that of its connection. What is too long for its link
//! and may be cut is cut here, translated, as the last thing before it leaves (FW-02).

use super::host::{ORIGINATED, Wire};
use super::observe::{Event, Observer};
use super::{Output, Pass};
use crate::flow::{self, Direction, Hit};
use crate::nat::Rewrite;
use crate::nat::fragments::{Arrival, Datagram, Fate, Fragments};
use crate::packet::fragment::{Piece, cut};
use crate::packet::parse::{FragmentKind, Headers, IcmpClass};
use crate::packet::{Family, Offload, Packet, Protocol, ethernet};
use crate::port::finish;
use crate::route::{AdjacencyId, Link};
use crate::service::{Locality, Origin};
use crate::stats::Reason;

/// Datagrams forgotten in a tick at most.
const EXPIRY_SLICE: usize = 64;

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    /// The chores of the family: fragments and neighbours whose time is over.
    pub(super) fn poll(&mut self) {
        let Pass { core, state, observer, now, .. } = self;
        state
            .fragments
            .expire(*now, EXPIRY_SLICE, &mut |packet, reason| core.drop(packet, reason, *observer));
        self.poll_neighbours();
    }

    /// A fragment.
    #[cold]
    pub(super) fn fragment(&mut self, mut packet: Packet, headers: &Headers<A>) {
        // A device computes no checksum over a datagram that it does not have: a mark that says so is wrong.
        packet.offload = Offload::default();
        let Some(piece) = Piece::of(&packet, headers) else {
            return self.drop(packet, Reason::FragmentLength);
        };
        let hash = self.state.flows.hash(&Fragments::key(&piece.datagram));
        let Pass { core, state, observer, now, .. } = self;
        let arrival = state
            .fragments
            .arrive(packet, &piece, hash, *now, &mut |packet, reason| core.drop(packet, reason, *observer));
        match arrival {
            Arrival::Decided(packet, fate) => self.later_fragment(packet, headers, fate),
            Arrival::Ready(datagram) => self.release(datagram),
            Arrival::Waits => self.observer.see(Event::AwaitsFirst),
            Arrival::Lost => {}
        }
    }

    /// Decides what becomes of a datagram, and sends what has come of it, in the order of its bytes.
    fn release(&mut self, datagram: Datagram) {
        let mut fate = None;
        while let Some((mut packet, following)) = self.state.fragments.take(datagram) {
            let parsed = A::parsed(&mut packet).zip(self.ports.ingress(packet.port));
            let Some((headers, ingress)) = parsed else {
                self.drop(packet, Reason::PortDown); // it was parsed before, so its port is gone
                continue;
            };
            match fate {
                Some(fate) => self.later_fragment(packet, &headers, fate),
                None => {
                    let headers = Headers { following, ..headers };
                    let its = self.first_fragment(packet, &headers, ingress.origin);
                    self.state.fragments.decide(datagram, its, self.now);
                    fate = Some(its);
                }
            }
        }
        self.state.fragments.finish(datagram);
    }

    /// The first fragment takes the way of any packet. What the others are to do.
    fn first_fragment(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin) -> Fate {
        // What it quotes may go on in the next one. Nobody cuts errors: they are short for that reason.
        if headers.icmp == IcmpClass::Error {
            self.invalid(packet, headers, origin, Reason::Fragment);
            return if origin == Origin::Host { Fate::Dropped(Reason::Fragment) } else { Fate::Invalid };
        }
        let key = super::key(headers);
        let event = flow::Event::of(&packet, headers);
        let begins = flow::first_packet(&key, &event, self.state.flows.sysctls()).is_ok();
        self.tracked(packet, headers, origin, None);
        if !headers.is_trackable() {
            return Fate::Invalid;
        }
        if self.state.flows.lookup(&key).is_some() {
            return Fate::Flow {
                source_port: key.source_port,
                destination_port: key.destination_port,
                protocol: key.protocol,
            };
        }
        if begins { Fate::Dropped(Reason::Fragment) } else { Fate::Invalid }
    }

    /// A fragment whose datagram's first one has passed.
    fn later_fragment(&mut self, packet: Packet, headers: &Headers<A>, fate: Fate) {
        let Some(ingress) = self.ports.ingress(packet.port) else {
            return self.drop(packet, Reason::PortDown);
        };
        let origin = ingress.origin;
        match fate {
            Fate::Flow { source_port, destination_port, protocol } => {
                // From here on it looks as if it had the first one's transport header.
                let headers = Headers { source_port, destination_port, protocol, ..*headers };
                match self.state.flows.lookup(&super::key(&headers)) {
                    Some(hit) => self.along(packet, &headers, origin, &hit),
                    None => self.drop(packet, Reason::Fragment),
                }
            }
            Fate::Invalid if origin == Origin::Host => self.send_as_it_is(packet, headers, origin),
            // CT-08: to the node itself, and nowhere else.
            Fate::Invalid
                if self.martian(headers).is_ok() && self.locality(headers.destination) == Locality::Local =>
            {
                self.deliver(packet);
            }
            Fate::Invalid => self.drop(packet, Reason::Fragment),
            Fate::Dropped(reason) => self.drop(packet, reason),
        }
    }

    /// A later fragment goes the way of its connection. It moves no state: the datagram is one packet, and its
    /// first fragment has.
    fn along(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin, hit: &Hit<A>) {
        let replied = || self.state.flows.get(hit.entry, self.now.into()).is_some_and(|info| info.seen_reply);
        // WK-08, as for any packet of a connection without a reply.
        if hit.direction() == Direction::Original
            && !replied()
            && let Err(refusal) = self.filter_unreplied(&packet, headers, origin, hit)
        {
            return self.refuse(packet, headers, refusal);
        }
        self.observer.see(Event::FlowHit { direction: hit.direction() });
        self.state.flows.count(hit.entry, headers.packet_len());
        self.forward_hit(packet, headers, origin, hit);
    }

    /// Whether a fragment that waits for its neighbour, as it came in, can be forwarded by the table later: a first
    /// one of a connection, whose checksum needs nothing of the others.
    pub(super) fn is_found_again(&self, headers: &Headers<A>) -> bool {
        headers.fragment == FragmentKind::First
            && (headers.protocol != Protocol::SCTP || headers.following == 0)
            && headers.is_trackable()
            && self.state.flows.lookup(&super::key(headers)).is_some()
    }

    /// Lets a fragment wait for its neighbour. Unlike a whole packet it does so translated: when it is sent, its
    /// datagram may be forgotten.
    #[cold]
    pub(super) fn hold_fragment(
        &mut self,
        mut packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        rewrite: &Rewrite<A>,
        adjacency: AdjacencyId,
    ) {
        if let Err(refusal) = self.fits(&packet, headers, origin, self.state.neighbours.mtu(adjacency)) {
            return self.refuse(packet, headers, refusal);
        }
        self.translate(&mut packet, headers, origin, rewrite);
        packet.port = ORIGINATED;
        if let Err((packet, reason)) = self.wait(packet, rewrite.source, adjacency) {
            self.drop(packet, reason);
        }
    }

    /// Sends a packet that only lacks its link header, and was perhaps not yet cut.
    pub(super) fn transmit_own(&mut self, mut packet: Packet, link: &Link) {
        if packet.len() - ethernet::LEN <= link.mtu as usize {
            return self.transmit(packet, link);
        }
        match A::parsed(&mut packet) {
            Some(headers) => self.transmit_long(packet, &headers, link),
            None => self.drop(packet, Reason::TooBig),
        }
    }

    /// Sends a translated packet that is longer than the link carries: a super-frame whose segments fit as it
    /// is, anything else in fragments (FW-02).
    #[cold]
    pub(super) fn transmit_long(&mut self, packet: Packet, headers: &Headers<A>, link: &Link) {
        if segments_fit(&packet, headers, link.mtu) {
            return self.transmit(packet, link);
        }
        // Frames that came of the one: what left, and what was lost on the way.
        let mut pieces = 0;
        let mut fragment = |packet: Packet| {
            let mut send = |piece: Packet| {
                pieces += 1;
                self.transmit(piece, link);
            };
            if let Err((rest, reason)) = cut(packet, headers, link.mtu, &mut send) {
                pieces += 1;
                self.drop(rest, reason);
            }
        };
        if packet.offload.gso.is_none() {
            fragment(packet);
        } else if let Err((rest, reason)) = finish::segment(packet, &mut fragment) {
            pieces += 1;
            self.drop(rest, reason);
        }
        self.core.stats.split += u64::saturating_sub(pieces, 1);
    }
}

/// Whether a packet is a super-frame whose segments are no longer than `mtu`.
pub(super) fn segments_fit<A: Family>(packet: &Packet, headers: &Headers<A>, mtu: u32) -> bool {
    packet.offload.gso.is_some_and(|gso| {
        (u32::from(gso.size) + u32::from(gso.header_len)).saturating_sub(u32::from(headers.l3)) <= mtu
    })
}
