//! The common case in one piece: a plain packet of a settled connection whose next hop stands and is known. It is
//! changed where it is and moved once. Everything else, and everything in doubt, is left to
//! [`Pass::packet`](super::Pass::packet), which would do the same with such a packet: this asks the same
//! questions of the same tables.
//!
//! A packet is plain only while IPv4 has tables, which do not change within a burst.

use super::established::Way;
use super::observe::{Event, Observer};
use super::{Forwarder, Lookup};
use crate::flow::{self, FlowTable, PackedKey};
use crate::nat::Ttl;
use crate::packet::plain::{Plain, View};
use crate::packet::{Packet, PortId, V4};
use crate::service::Origin;
use crate::time::Instant;

/// What is known of a plain packet before its turn comes.
pub(super) struct Express {
    pub(super) lookup: Lookup,
    key: PackedKey,
    /// Length of the IP packet in bytes.
    packet_len: u16,
    /// As [`Plain::numbers`].
    numbers: u64,
}

impl Express {
    /// Hashes the packet's tuple and asks for its bucket.
    #[inline(always)]
    pub(super) fn begin(flows: &FlowTable<V4>, plain: &Plain) -> Express {
        let key = PackedKey::new(plain.addresses, plain.ports, plain.protocol);
        let lookup = Lookup::begin(flows, flows.hash_packed(key));
        Express { lookup, key, packet_len: plain.packet_len, numbers: plain.numbers }
    }
}

impl Forwarder {
    /// Changes the packet and says where it goes; or nothing, and then nothing has been done.
    #[inline(always)]
    pub(super) fn express<T: Observer>(
        &self,
        flows: &FlowTable<V4>,
        packet: &mut Packet,
        plain: &Express,
        now: Instant,
        observer: &mut T,
    ) -> Option<PortId> {
        let candidate = plain.lookup.candidate?;
        let port = packet.port;
        let ingress = self.tables.ports.ingress(port)?;
        let mut view = View::of(packet)?;
        if !ingress.takes_unasked(view.link_destination()) {
            return None;
        }
        let hit = flows.find_packed(candidate, plain.key)?;
        let stamp = self.v4.stamps.of::<V4>(hit.rewrite().destination);
        if !hit.is_settled(&flow::Event::Other, now.into()) || hit.next_hop().generation != stamp {
            return None;
        }
        let Way::Port(adjacency) = Way::of(hit.next_hop()) else { return None };
        let link = self.v4.neighbours.resolved(adjacency)?;
        let ttl = if ingress.origin == Origin::Host { Ttl::Keep } else { Ttl::Decrement };
        if u32::from(plain.packet_len) > link.mtu || (ttl == Ttl::Decrement && view.ttl() <= 1) {
            return None;
        }
        flows.follow(&hit, plain.numbers);
        let key = plain.key.unpack();
        observer.see(Event::Received {
            port,
            origin: ingress.origin,
            source: key.source.into(),
            source_port: key.source_port,
            destination: key.destination.into(),
            destination_port: key.destination_port,
            protocol: key.protocol,
        });
        observer.see(Event::FlowHit { direction: hit.direction() });
        flows.count(hit.entry, u32::from(plain.packet_len));
        hit.rewrite().apply_plain(&mut view, ttl);
        view.set_link(link.source, link.destination);
        let (link_source, link_destination) = (link.source, link.destination);
        observer.see(Event::Sent { port: link.port, link_source, link_destination });
        Some(link.port)
    }
}
