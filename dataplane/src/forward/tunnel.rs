//! IPIP tunnels (TN-01, RFC 2003, RFC 6040). A tunnel is a port with nothing behind it, and its neighbours, the
//! gateways of its routes, are its other ends:
//!
//! ```text
//! translated, TTL decreased ─→ link() ─→ transmit ─→ encapsulate ─→ route to the peer ─→ transmit, out of a real port
//! received, protocol 4, for the node ─→ decapsulate ─→ as if received by the tunnel's port ─→ packet
//! ```
//!
//! Such a neighbour has no link address and counts as unresolved, so the common case ([`super::express`]) never sees
//! one. As with the kernel's device, its address stands where a link address would ([`peer_of`]).
//!
//! The outer packets are no connection. Their fragments are left to the host's stack, which puts them together.

use std::net::Ipv4Addr;

use rand::RngExt;

use super::established::Way;
use super::host::{ORIGINATED, Wire};
use super::observe::{Event, Observer};
use super::{Output, Pass};
use crate::flow::FlowKey;
use crate::packet::checksum::{Delta, Sum};
use crate::packet::ip::{DONT_FRAGMENT, Ipv4, V4_LEN, field, v4_header};
use crate::packet::parse::{Headers, Parsed, parse};
use crate::packet::{
    Address, ChecksumState, Ethernet, Family, LinkAddr, Offload, Packet, Protocol, V4, ethernet,
};
use crate::port::finish;
use crate::route::{AdjacencyId, Link};
use crate::service::{Locality, Origin};
use crate::stats::Reason;
use crate::tables::{Tunnel, TunnelDf, TunnelTtl};

/// What an IPIP packet's header takes of an MTU, in bytes.
const OVERHEAD: u32 = V4_LEN as u32;

/// The bits of ECN in a type of service (RFC 3168).
const ECN: u8 = 0b11;
const ECT_0: u8 = 0b10;
const CONGESTED: u8 = 0b11;

/// How a packet gets to the other end of its tunnel.
struct Outer<A: Family> {
    tunnel: Tunnel,
    source: A::Addr,
    peer: A::Addr,
    adjacency: AdjacencyId,
}

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    /// How to send to a neighbour: by its link address if that is known, or through a tunnel if it is the other end
    /// of one.
    #[inline]
    pub(super) fn link(&self, adjacency: AdjacencyId) -> Option<Link> {
        self.state.neighbours.resolved(adjacency).or_else(|| self.tunnel_link(adjacency))
    }

    #[cold]
    fn tunnel_link(&self, adjacency: AdjacencyId) -> Option<Link> {
        let port = self.state.neighbours.port(adjacency);
        self.ports.tunnel(port).filter(|_| A::VERSION == 4)?;
        let peer = self.state.neighbours.address(adjacency)?;
        // FW-02: what the way to the peer cannot carry, the tunnel cannot.
        let route = self.tables.routing.fib.lookup(peer);
        let hops = route.into_iter().flat_map(|route| route.kind.next_hops());
        let way = hops.filter_map(|hop| self.ports.get(hop.port)).map(|port| port.mtu).min();
        let mtu = self.state.neighbours.mtu(adjacency);
        Some(Link {
            port,
            source: LinkAddr::default(),
            destination: link_of(peer),
            mtu: way.map_or(mtu, |way| mtu.min(way.saturating_sub(OVERHEAD))),
        })
    }

    /// Sends a packet through the tunnel that `link` leads into. It is translated, and fits.
    #[cold]
    pub(super) fn encapsulate(&mut self, packet: Packet, link: &Link) {
        let outer = match self.outer(link) {
            Ok(outer) => outer,
            Err(reason) => return self.drop(packet, reason),
        };
        let (source, peer) = (outer.source.into(), outer.peer.into());
        self.observer.see(Event::Encapsulated { port: link.port, source, peer });
        let mut pieces = 0u64;
        // No device cuts what is in a tunnel, and none finishes its checksum.
        let result = finish::segment(packet, &mut |piece| {
            pieces += 1;
            self.send_through(piece, &outer);
        });
        match result {
            Ok(_) => self.core.stats.split += pieces.saturating_sub(1),
            Err((rest, reason)) => {
                self.core.stats.split += pieces;
                self.drop(rest, reason);
            }
        }
    }

    fn outer(&mut self, link: &Link) -> Result<Outer<A>, Reason> {
        let tunnel = *self.ports.tunnel(link.port).ok_or(Reason::PortDown)?;
        let peer = A::Addr::from_bits(peer_of(link.destination).to_bits().into());
        let local = tunnel.local.map(|local| A::Addr::from_bits(local.to_bits().into()));
        let flow = FlowKey {
            source: local.unwrap_or(A::Addr::UNSPECIFIED),
            destination: peer,
            source_port: 0,
            destination_port: 0,
            protocol: Protocol::IPIP,
        };
        let Way::Port(adjacency) = self.route(&flow).map_err(|refusal| refusal.reason)? else {
            return Err(Reason::TunnelLoop);
        };
        if self.ports.tunnel(self.state.neighbours.port(adjacency)).is_some() {
            return Err(Reason::TunnelLoop);
        }
        let routing = &self.tables.routing;
        let source = local.or_else(|| routing.interfaces.error_source(&routing.fib, peer, peer));
        Ok(Outer { tunnel, source: source.ok_or(Reason::NoRoute)?, peer, adjacency })
    }

    /// Puts the outer header before a whole packet, and sends it to the tunnel's other end.
    fn send_through(&mut self, mut packet: Packet, outer: &Outer<A>) {
        let identification = self.core.random.random();
        let Some(header) = outer_header(&packet, outer, identification) else {
            return self.drop(packet, Reason::TooBig);
        };
        if packet.prepend(V4_LEN).is_none() {
            return self.drop(packet, Reason::PoolEmpty);
        }
        let frame = packet.head_mut();
        let link = link_header(LinkAddr::default());
        frame[..ethernet::LEN].copy_from_slice(&link);
        frame[ethernet::LEN..][..V4_LEN].copy_from_slice(&header);
        packet.offload = Offload::default();
        packet.port = ORIGINATED;
        self.send_own(packet, outer.source, outer.adjacency);
    }
}

impl<O: Output, T: Observer> Pass<'_, V4, O, T> {
    /// A packet of protocol 4. One through a tunnel of the node's goes on as the packet inside; any other is given
    /// back.
    #[cold]
    pub(super) fn decapsulate(&mut self, mut packet: Packet, headers: &Headers<V4>) -> Option<Packet> {
        // A tunnel in a tunnel is not followed: each packet is taken out once.
        let received = self.ports.ingress(packet.port).filter(|ingress| ingress.origin != Origin::Host);
        if received.is_none()
            || self.ports.tunnel(packet.port).is_some()
            || headers.is_fragment()
            || self.locality(headers.destination) == Locality::Remote
        {
            return Some(packet);
        }
        let ends_here = |tunnel: &Tunnel| tunnel.local.is_none_or(|local| local == headers.destination);
        let mut tunnels = self.ports.tunnels().filter(|(_, tunnel)| ends_here(tunnel)).peekable();
        if tunnels.peek().is_none() {
            return Some(packet);
        }
        let Some((port, _)) = tunnels.find(|(port, _)| self.tables.peers.contains(*port, headers.source))
        else {
            self.drop(packet, Reason::TunnelPeer);
            return None;
        };
        self.observer.see(Event::Decapsulated { port, peer: headers.source.into() });
        let outer = usize::from(headers.l4) - ethernet::LEN;
        packet.trim_front(outer);
        let own = self.ports.get(port).map_or(LinkAddr::default(), |port| port.link_address);
        packet.head_mut()[..ethernet::LEN].copy_from_slice(&link_header(own));
        packet.offload = inner_offload(packet.offload, outer);
        packet.port = port;
        let inner = match parse(&mut packet) {
            Ok(Parsed::V4(inner)) => inner,
            other => {
                self.drop(packet, other.err().unwrap_or(Reason::IpVersion));
                return None;
            }
        };
        match (headers.tos & ECN, inner.tos & ECN) {
            (CONGESTED, 0) => self.drop(packet, Reason::TunnelEcn),
            (CONGESTED, _) => {
                mark_congested(&mut packet, &inner);
                self.packet(packet, &Headers { tos: inner.tos | CONGESTED, ..inner }, None);
            }
            _ => self.packet(packet, &inner, None),
        }
        None
    }
}

/// What stands for the link address of a tunnel's other end: its address in the last four bytes.
fn link_of(peer: impl Address) -> LinkAddr {
    LinkAddr::from_bits(peer.bits() as u64 & 0xffff_ffff)
}

/// The address that [`link_of`] made a link address of.
fn peer_of(link: LinkAddr) -> Ipv4Addr {
    Ipv4Addr::from_bits(link.bits() as u32)
}

fn link_header(destination: LinkAddr) -> [u8; ethernet::LEN] {
    let (source, ether_type) = (LinkAddr::default(), V4::ETHER_TYPE);
    Ethernet { destination, source, ether_type, len: ethernet::LEN as u16 }.to_bytes()
}

/// The outer header of an IPv4 packet; nothing when both are too long together. Type of service as RFC 6040 has it:
/// the inner one, but a mark of congestion stays inside.
fn outer_header<A: Family>(packet: &Packet, outer: &Outer<A>, identification: u16) -> Option<[u8; V4_LEN]> {
    let inner = Ipv4::new_checked(packet.head().get(ethernet::LEN..)?)?;
    let len = u16::try_from(packet.len() - ethernet::LEN)
        .ok()
        .filter(|len| len.checked_add(V4_LEN as u16).is_some())?;
    let tos = match inner.tos() & ECN {
        CONGESTED => inner.tos() & !ECN | ECT_0,
        _ => inner.tos(),
    };
    let ttl = match outer.tunnel.ttl {
        TunnelTtl::Fixed(ttl) => ttl,
        TunnelTtl::Inherit => inner.ttl(),
    };
    let address = |address: A::Addr| Ipv4Addr::from_bits(address.bits() as u32);
    let mut header = v4_header(address(outer.source), address(outer.peer), Protocol::IPIP, tos, ttl, len);
    let dont_fragment =
        outer.tunnel.dont_fragment == TunnelDf::Set || inner.fragment_word() & DONT_FRAGMENT != 0;
    // RFC 6864: what cannot be fragmented needs no identification.
    let (identification, word) = if dont_fragment { (0, DONT_FRAGMENT) } else { (identification, 0) };
    header[field::V4_IDENTIFICATION..][..2].copy_from_slice(&identification.to_be_bytes());
    header[field::V4_FRAGMENT..][..2].copy_from_slice(&word.to_be_bytes());
    header[field::V4_CHECKSUM..][..2].fill(0);
    let checksum = Sum::of(&header).complement();
    header[field::V4_CHECKSUM..][..2].copy_from_slice(&checksum.to_be_bytes());
    Some(header)
}

/// What was left to the device of a packet whose first `outer` bytes are gone.
fn inner_offload(offload: Offload, outer: usize) -> Offload {
    let outer = outer as u16;
    let checksum = match offload.checksum {
        ChecksumState::Partial { start, offset } => match start.checked_sub(outer) {
            Some(start) => ChecksumState::Partial { start, offset },
            None => ChecksumState::Unknown,
        },
        // The outer packet has none that it could be about.
        other => other,
    };
    let gso =
        offload.gso.map(|gso| crate::packet::Gso { header_len: gso.header_len.saturating_sub(outer), ..gso });
    Offload { checksum, gso }
}

/// RFC 6040: the mark of congestion that the outer packet got on its way.
fn mark_congested(packet: &mut Packet, inner: &Headers<V4>) {
    let l3 = usize::from(inner.l3);
    let header = &mut packet.head_mut()[l3..][..V4_LEN];
    let word = |header: &[u8]| u16::from_be_bytes([header[0], header[1]]);
    let old = word(header);
    header[field::V4_TOS] |= CONGESTED;
    let delta = Delta::of_word(old, word(header));
    let checksum = u16::from_be_bytes([header[field::V4_CHECKSUM], header[field::V4_CHECKSUM + 1]]);
    header[field::V4_CHECKSUM..][..2].copy_from_slice(&delta.apply(checksum).to_be_bytes());
}
