//! What is not forwarded: frames for the node's own stack, frames that are not IP (ARP), packets that are
//! not tracked, and what the forwarder itself has to say, ICMP errors, ARP and NDP (whose answers are
//! `ndp.rs`'s).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::established::Way;
use super::new::{ErrorFrom, Refusal};
use super::observe::{Event, Observer};
use super::{Core, Forwarder, Output, Pass, limit};
use crate::flow::{Direction, FlowKey};
use crate::nat::Rewrite;
use crate::packet::arp::{self, Arp, Operation};
use crate::packet::ethernet::{self, Ethernet};
use crate::packet::icmp::{self, ErrorKind, icmp_error, is_answerable};
use crate::packet::ndp::{self, Ndp};
use crate::packet::parse::{Headers, IcmpClass, Parsed, parse};
use crate::packet::transport::verify_transport_checksum;
use crate::packet::{Address, Family, LinkAddr, Packet, PortId, Protocol, V4, V6};
use crate::pool::Pool;
use crate::route::discovery::source_on_link;
use crate::route::resolution::{self, Addressed, Message, MessageKind, Responder};
use crate::route::{AdjacencyId, Heard, NeighbourEvent, News, Said, Solicitation};
use crate::service::{Locality, Origin};
use crate::stats::Reason;
use crate::tables::{Foreign, PortInfo, Ports, ProxyArp, Role, Sharing};
use crate::time::Instant;

/// The receive port of packets that only lack their link header: the forwarder's own, which no port received, and
/// fragments that were translated before they had to wait, and those that are in a tunnel already.
pub(super) const ORIGINATED: PortId = PortId(u16::MAX);

/// Link source of frames to the host port: a locally administered address, since nobody answers it (the
/// host's side of the port does no ARP).
pub const HOST_SIDE: LinkAddr = LinkAddr([0x02, 0, 0, 0, 0, 0x01]);

impl Forwarder {
    /// A frame that is not IP, or of a family that is not forwarded (FW-06).
    pub(super) fn foreign<O: Output, T: Observer>(
        &mut self,
        packet: Packet,
        parsed: &Parsed,
        now: Instant,
        out: &mut O,
        observer: &mut T,
    ) {
        if matches!(parsed, Parsed::Arp)
            && let Some(mut pass) = self.pass_v4(now, out, observer)
        {
            return pass.arp(packet);
        }
        pass_on(&mut self.core, &self.tables.ports, packet, out, observer);
    }
}

/// Leaves a frame to the kernel, passes it to the host port, or drops it, as its port says.
pub(super) fn pass_on(
    core: &mut Core,
    ports: &Ports,
    packet: Packet,
    out: &mut impl Output,
    observer: &mut impl Observer,
) {
    let Some(port) = ports.get(packet.port) else {
        return core.drop(packet, Reason::PortDown, observer);
    };
    match (port.role, port.sharing, port.foreign) {
        (Role::Host, _, _) => core.drop(packet, Reason::NotForPollux, observer),
        _ if !is_addressed_to(port, &packet) => core.drop(packet, Reason::OtherHost, observer),
        (_, Sharing::WithKernel, _) => core.leave_to_kernel(packet),
        (_, Sharing::Owned, Foreign::ToHost) => core.deliver_as_it_is(packet, ports, out, observer),
        (_, Sharing::Owned, Foreign::Drop) => core.drop(packet, Reason::NotForPollux, observer),
    }
}

/// Whether a frame's link destination is the port's address, or a group's.
pub(super) fn is_addressed_to(port: &PortInfo, packet: &Packet) -> bool {
    let addressed = ethernet::destination(packet.head());
    addressed == port.link_address || addressed.is_group()
}

/// Who answers for link addresses on a port (NB-01).
pub(super) fn responder(port: &PortInfo) -> Responder {
    match (port.sharing, port.proxy_arp) {
        (Sharing::WithKernel, ProxyArp::Off) => Responder::Kernel,
        (Sharing::WithKernel, ProxyArp::On) => Responder::Proxy,
        (Sharing::Owned, ProxyArp::Off) => Responder::Own,
        (Sharing::Owned, ProxyArp::On) => Responder::OwnAndProxy,
    }
}

impl Core {
    /// Drops a packet under its reason.
    pub(super) fn drop(&mut self, packet: Packet, reason: Reason, observer: &mut impl Observer) {
        self.stats.dropped.count(reason);
        observer.see(Event::Dropped(reason));
        drop(packet);
    }

    /// The kernel has its own copy of the frame and acts on it; ours ends here.
    pub(super) fn leave_to_kernel(&mut self, packet: Packet) {
        self.stats.delivered += 1;
        drop(packet);
    }

    /// To the node's own stack.
    pub(super) fn deliver(
        &mut self,
        mut packet: Packet,
        ports: &Ports,
        out: &mut impl Output,
        observer: &mut impl Observer,
    ) {
        let Some((id, host)) = ports.host().and_then(|id| Some((id, ports.get(id)?))) else {
            return self.drop(packet, Reason::NoHostPort, observer);
        };
        ethernet::set_link(&mut packet, HOST_SIDE, host.link_address);
        observer.see(Event::Delivered { port: id });
        observer.leaves(id, &packet);
        out.send(id, packet);
    }

    /// As [`deliver`](Core::deliver), but the host sees who sent the frame and to which group: that is part
    /// of what such frames say (LLDP, DHCP, router advertisements).
    fn deliver_as_it_is(
        &mut self,
        mut packet: Packet,
        ports: &Ports,
        out: &mut impl Output,
        observer: &mut impl Observer,
    ) {
        let Some((id, host)) = ports.host().and_then(|id| Some((id, ports.get(id)?))) else {
            return self.drop(packet, Reason::NoHostPort, observer);
        };
        // Parsed before: the link header is there.
        if let Some(link) = Ethernet::new_checked(packet.head())
            && !link.destination.is_group()
        {
            ethernet::set_link(&mut packet, link.source, host.link_address);
        }
        observer.see(Event::Delivered { port: id });
        observer.leaves(id, &packet);
        out.send(id, packet);
    }
}

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    pub(super) fn drop(&mut self, packet: Packet, reason: Reason) {
        self.core.drop(packet, reason, self.observer);
    }

    pub(super) fn deliver(&mut self, packet: Packet) {
        self.core.deliver(packet, self.ports, self.out, self.observer);
    }

    /// Packets that make no connection: an ICMP error belongs to another's, or to none; a TCP segment with
    /// impossible flags is invalid.
    #[cold]
    pub(super) fn untracked(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin) {
        if origin != Origin::Host
            && let Err(refusal) = self.martian(headers)
        {
            return self.refuse(packet, headers, refusal);
        }
        if headers.protocol == Protocol::TCP {
            return self.invalid(packet, headers, origin, Reason::TcpFlags); // CT-08
        }
        // CT-08: the tracker knows of no such message. (Of IPv6's it leaves some alone.)
        if headers.icmp == IcmpClass::Other && !icmp::is_left_alone::<A>(headers) {
            return self.invalid(packet, headers, origin, Reason::Invalid);
        }
        if !verify_transport_checksum(&packet, headers) {
            return self.invalid(packet, headers, origin, Reason::TransportChecksum);
        }
        if headers.icmp == IcmpClass::Error {
            return self.related(packet, headers, origin);
        }
        self.observer.see(Event::Untracked);
        self.send_as_it_is(packet, headers, origin);
    }

    /// Routes a packet without translating it.
    pub(super) fn send_as_it_is(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin) {
        match self.route_new(&super::key(headers), origin) {
            Ok(Way::Host) if origin == Origin::Host => self.drop(packet, Reason::NotForPollux),
            Ok(Way::Host) => self.deliver(packet),
            Ok(Way::Port(adjacency)) => {
                self.send_or_hold(packet, headers, origin, &Rewrite::identity(headers), adjacency);
            }
            Err(refusal) => self.refuse(packet, headers, refusal),
        }
    }

    /// Drops a packet under its reason and tells its source, where the reason has an error.
    #[cold]
    pub(super) fn refuse(&mut self, packet: Packet, headers: &Headers<A>, refusal: Refusal) {
        if let Some(kind) = refusal.answer {
            self.answer(&packet, headers, kind, refusal.from);
        }
        self.drop(packet, refusal.reason);
    }

    /// Sends an ICMP error about a packet, which must be as it came in.
    fn answer(&mut self, packet: &Packet, headers: &Headers<A>, kind: ErrorKind, from: ErrorFrom) {
        let to = headers.source;
        if !is_answerable(kind, packet, headers) {
            return;
        }
        let routing = &self.tables.routing;
        // On its link, and nowhere else, a link-local source is found again.
        let link = self.ports.get(packet.port).filter(|port| to.stays_on_link() && port.role != Role::Host);
        let source = match link {
            Some(port) => Some(source_on_link(packet.port, port.link_address, &routing.interfaces)),
            None if from == ErrorFrom::Destination => Some(headers.destination),
            None => self
                .translated_from(headers)
                .or_else(|| routing.interfaces.error_source(&routing.fib, headers.destination, to)),
        };
        let Some(source) = source else { return };
        // As the kernel: path MTU discovery is never slowed down, and not the node's talk with itself.
        let unlimited =
            matches!(kind, ErrorKind::PacketTooBig { .. }) || self.locality(to) == Locality::Local;
        if !unlimited && !self.core.limiter.allow(to, limit::pace::<A>(), self.now) {
            return;
        }
        let Some(mut error) = icmp_error(kind, packet, headers, source, self.core.pool) else { return };
        error.port = ORIGINATED;
        self.core.stats.originated += 1;
        self.observer.see(Event::Answered(kind));
        let way = match link {
            Some(_) => {
                let neighbour = self.state.neighbours.get_or_create(packet.port, to, self.now);
                neighbour.map(Way::Port).map_err(Refusal::from)
            }
            None => self.route(&FlowKey {
                source,
                destination: to,
                source_port: 0,
                destination_port: 0,
                protocol: A::ICMP,
            }),
        };
        match way {
            Ok(Way::Host) => self.deliver(error),
            Ok(Way::Port(adjacency)) => self.send_own(error, source, adjacency),
            Err(refusal) => self.drop(error, refusal.reason),
        }
    }

    /// Sends a packet that lacks its link header alone; it waits as it is for a link address.
    pub(super) fn send_own(&mut self, packet: Packet, source: A::Addr, adjacency: AdjacencyId) {
        match self.link(adjacency) {
            Some(link) => self.transmit(packet, &link),
            None => {
                if let Err((packet, reason)) = self.wait(packet, source, adjacency) {
                    self.drop(packet, reason);
                }
            }
        }
    }

    /// The destination that a connection's client knows, when its packets are translated to another: an
    /// error about one of them has it as source, since the kernel translates such errors back (FW-01).
    fn translated_from(&self, headers: &Headers<A>) -> Option<A::Addr> {
        let hit = self.state.flows.lookup(&super::key(headers)).filter(|_| headers.is_trackable())?;
        let translated = hit.rewrite().destination != headers.destination;
        (hit.direction() == Direction::Original && translated).then_some(headers.destination)
    }

    /// Runs the neighbours' timers that are due and works off what they give.
    pub(super) fn poll_neighbours(&mut self) {
        self.state.neighbours.poll(self.now);
        self.work_off_events();
    }

    /// Takes in what a frame says of a neighbour, and tells the other workers.
    pub(super) fn heard(&mut self, port: PortId, address: A::Addr, what: Said) {
        let heard = Heard { port, address, what };
        self.out.tell(A::news(heard));
        self.hear(&heard);
    }

    /// Takes in what is known of a neighbour and sends what waited for it.
    pub(super) fn hear(&mut self, heard: &Heard<A>) {
        self.state.neighbours.hear(heard, self.now);
        self.work_off_events();
    }

    /// What an event gives rise to (an error about a packet that failed has to wait itself, say) adds to the
    /// queue; it is not worked off one level deeper, so the stack stays flat.
    pub(super) fn work_off_events(&mut self) {
        if std::mem::replace(&mut self.state.working_off, true) {
            return;
        }
        while let Some(event) = self.state.neighbours.next_event() {
            match event {
                NeighbourEvent::Solicit(solicitation) => self.solicit(&solicitation),
                NeighbourEvent::Release(adjacency, packet) if packet.port == ORIGINATED => {
                    self.observer.resumes();
                    match self.state.neighbours.resolved(adjacency) {
                        Some(link) => self.transmit_own(packet, &link),
                        None => self.drop(packet, Reason::NeighbourFailed),
                    }
                }
                NeighbourEvent::Release(_, packet) => {
                    self.observer.resumes();
                    self.again(packet);
                }
                NeighbourEvent::Failed(packet, reason) => {
                    self.observer.resumes();
                    self.failed(packet, reason);
                }
            }
        }
        self.state.working_off = false;
    }

    /// A packet that waited, as it came in, is forwarded from the table. It has moved its connection's state
    /// and passed the filter before it was held: that is not done twice.
    fn again(&mut self, mut packet: Packet) {
        let Some(ingress) = self.ports.ingress(packet.port) else {
            return self.drop(packet, Reason::PortDown);
        };
        // It was parsed before it was held, and nothing has touched it.
        let Some(headers) = A::parsed(&mut packet) else {
            return self.drop(packet, Reason::FrameTruncated);
        };
        let known = self.state.flows.lookup(&super::key(&headers)).filter(|_| headers.is_trackable());
        match known {
            Some(hit) => self.forward_hit(packet, &headers, ingress.origin, &hit),
            None => self.packet(packet, &headers, None),
        }
    }

    /// NB-02: its neighbour did not answer. The source is told, unless that is the forwarder.
    fn failed(&mut self, mut packet: Packet, reason: Reason) {
        let parsed = if packet.port == ORIGINATED { None } else { A::parsed(&mut packet) };
        match parsed {
            Some(headers) if reason == Reason::NeighbourFailed => {
                self.refuse(packet, &headers, Refusal::NEIGHBOUR);
            }
            _ => self.drop(packet, reason),
        }
    }

    /// Asks for a link address.
    fn solicit(&mut self, solicitation: &Solicitation<A>) {
        let Some(port) = self.ports.get(solicitation.port) else { return };
        let (out, target) = (solicitation.port, solicitation.target);
        let sender = self.tables.routing.interfaces.solicit_source(out, target, solicitation.waiting);
        let request = A::solicitation(
            port.link_address,
            sender.unwrap_or(A::Addr::UNSPECIFIED),
            target,
            solicitation.link_destination(),
            self.core.pool,
        );
        if let Some(request) = request {
            self.core.stats.originated += 1;
            self.observer.leaves(out, &request);
            self.out.send(out, request);
        }
    }
}

/// What differs between the families on the wire, beyond what parsing hides.
pub(super) trait Wire: Family {
    /// The headers of a packet of this family.
    fn parsed(packet: &mut Packet) -> Option<Headers<Self>>;
    /// Handles a packet that asks for link addresses or tells them; gives back any other. (ARP is no IP.)
    fn take_discovery<O: Output, T: Observer>(
        pass: &mut Pass<'_, Self, O, T>,
        packet: Packet,
        headers: &Headers<Self>,
    ) -> Option<Packet>;
    /// Takes the packet inside out of one that came through a tunnel, and forwards it; gives back any other.
    fn take_tunnelled<O: Output, T: Observer>(
        pass: &mut Pass<'_, Self, O, T>,
        packet: Packet,
        headers: &Headers<Self>,
    ) -> Option<Packet>;
    /// What was heard, for the other workers.
    fn news(heard: Heard<Self>) -> News;
    /// The request for a link address; nothing when the pool is empty.
    fn solicitation(
        from: LinkAddr,
        sender: Self::Addr,
        target: Self::Addr,
        to: LinkAddr,
        pool: &'static Pool,
    ) -> Option<Packet>;
}

impl Wire for V4 {
    fn parsed(packet: &mut Packet) -> Option<Headers<V4>> {
        match parse(packet) {
            Ok(Parsed::V4(headers)) => Some(headers),
            _ => None,
        }
    }

    #[inline(always)]
    fn take_discovery<O: Output, T: Observer>(
        _: &mut Pass<'_, V4, O, T>,
        packet: Packet,
        _: &Headers<V4>,
    ) -> Option<Packet> {
        Some(packet)
    }

    #[inline(always)]
    fn take_tunnelled<O: Output, T: Observer>(
        pass: &mut Pass<'_, V4, O, T>,
        packet: Packet,
        headers: &Headers<V4>,
    ) -> Option<Packet> {
        if headers.protocol == Protocol::IPIP && pass.ports.have_tunnels() {
            pass.decapsulate(packet, headers)
        } else {
            Some(packet)
        }
    }

    fn news(heard: Heard<V4>) -> News {
        News::V4(heard)
    }

    fn solicitation(
        from: LinkAddr,
        sender: Ipv4Addr,
        target: Ipv4Addr,
        to: LinkAddr,
        pool: &'static Pool,
    ) -> Option<Packet> {
        Arp::request(from, sender, target).to_packet(pool, ORIGINATED, to).ok()
    }
}

impl Wire for V6 {
    fn parsed(packet: &mut Packet) -> Option<Headers<V6>> {
        match parse(packet) {
            Ok(Parsed::V6(headers)) => Some(headers),
            _ => None,
        }
    }

    #[inline(always)]
    fn take_discovery<O: Output, T: Observer>(
        pass: &mut Pass<'_, V6, O, T>,
        packet: Packet,
        headers: &Headers<V6>,
    ) -> Option<Packet> {
        pass.take_discovery(packet, headers)
    }

    #[inline(always)]
    fn take_tunnelled<O: Output, T: Observer>(
        _: &mut Pass<'_, V6, O, T>,
        packet: Packet,
        _: &Headers<V6>,
    ) -> Option<Packet> {
        Some(packet)
    }

    fn news(heard: Heard<V6>) -> News {
        News::V6(heard)
    }

    /// Without a sender, from the port's own link-local address: unlike ARP's, a question from nobody is not
    /// answered to the one who asks (RFC 4861, section 7.2.4).
    fn solicitation(
        from: LinkAddr,
        sender: Ipv6Addr,
        target: Ipv6Addr,
        to: LinkAddr,
        pool: &'static Pool,
    ) -> Option<Packet> {
        let sender = if sender.is_unspecified() { ndp::link_local(from) } else { sender };
        let question = if to.is_group() {
            Ndp::solicitation(sender, target, from)
        } else {
            Ndp::probe(sender, target, from)
        };
        question.to_packet(pool, ORIGINATED, from, to).ok()
    }
}

impl<O: Output, T: Observer> Pass<'_, V4, O, T> {
    /// ARP (NB-01): learn, and answer on ports that Pollux owns. On a shared port the kernel answers for the
    /// node's addresses.
    fn arp(&mut self, packet: Packet) {
        let id = packet.port;
        let Some(port) = self.ports.get(id) else {
            return self.drop(packet, Reason::PortDown);
        };
        if port.role == Role::Host {
            return self.drop(packet, Reason::NotForPollux);
        }
        if packet.head().len() < ethernet::LEN + arp::LEN {
            return self.drop(packet, Reason::FrameTruncated);
        }
        if !is_addressed_to(port, &packet) {
            return self.drop(packet, Reason::OtherHost);
        }
        let Some(arp) = Arp::new_checked(packet.head()) else {
            // Another hardware's or protocol's, or reverse ARP.
            return pass_on(self.core, self.ports, packet, self.out, self.observer);
        };
        let message = Message {
            kind: match arp.operation {
                Operation::Request => MessageKind::Request,
                Operation::Reply => MessageKind::Reply,
            },
            addressed: match ethernet::destination(packet.head()).is_group() {
                false => Addressed::ToPort,
                true => Addressed::ToGroup,
            },
            sender_link: arp.sender_link,
            sender: arp.sender,
            target: arp.target,
        };
        let routing = &self.tables.routing;
        let decision = resolution::decide(&message, id, responder(port), &routing.interfaces, &routing.fib);
        if decision.answer.is_some()
            && let Ok(mut answer) =
                arp.reply(port.link_address).to_packet(self.core.pool, ORIGINATED, arp.sender_link)
        {
            answer.port = ORIGINATED;
            self.core.stats.originated += 1;
            self.observer.leaves(id, &answer);
            self.out.send(id, answer);
        }
        if let Some(how) = decision.learn {
            self.heard(id, arp.sender, Said::Link(arp.sender_link, how));
        }
        // The frame ends here: learnt from, answered, or the kernel's.
        self.core.leave_to_kernel(packet);
    }
}
