//! What is not forwarded: frames for the node's own stack, frames that are not IP (ARP), packets that are
//! not tracked, and what the forwarder itself has to say, ICMP errors and ARP.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::established::Way;
use super::new::Refusal;
use super::observe::{Event, Observer};
use super::{Core, Forwarder, Lookup, Output, Pass};
use crate::nat::Rewrite;
use crate::packet::arp::{Arp, Operation};
use crate::packet::ethernet::{self, Ethernet};
use crate::packet::icmp::{ErrorKind, icmp_error};
use crate::packet::parse::{Headers, Parsed, parse};
use crate::packet::{Address, Family, LinkAddr, Packet, PortId, V4, V6};
use crate::pool::Pool;
use crate::route::resolution::{self, Addressed, Message, MessageKind, Responder};
use crate::route::{Hold, Learned, NeighbourEvent, Solicitation};
use crate::service::Origin;
use crate::stats::Reason;
use crate::tables::{Foreign, Ports, ProxyArp, Role, Sharing};
use crate::time::Instant;

/// The receive port of packets that no port received: the forwarder's own.
const ORIGINATED: PortId = PortId(u16::MAX);

/// Link source of frames to the host port: a locally administered address, since nobody answers it (the
/// host's side of the port does no ARP).
const HOST_SIDE: LinkAddr = LinkAddr([0x02, 0, 0, 0, 0, 0x01]);

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
fn pass_on(
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
        (_, Sharing::WithKernel, _) => core.leave_to_kernel(packet),
        (_, Sharing::Owned, Foreign::ToHost) => core.deliver(packet, ports, out, observer),
        (_, Sharing::Owned, Foreign::Drop) => core.drop(packet, Reason::NotForPollux, observer),
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

    /// The frame's link destination is not the port's address.
    pub(super) fn not_addressed_here(&mut self, packet: Packet, addressed: LinkAddr) {
        if addressed.is_group() {
            pass_on(self.core, self.ports, packet, self.out, self.observer);
        } else {
            self.drop(packet, Reason::OtherHost);
        }
    }

    /// Packets that make no connection: ICMP that is no query is routed as it is; a fragment's ports are
    /// not known, so it cannot be translated and is not let through untranslated.
    #[cold]
    pub(super) fn untracked(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin) {
        if headers.is_fragment() {
            return self.drop(packet, Reason::Fragment);
        }
        self.observer.see(Event::Untracked);
        match self.route(headers.destination) {
            Ok(Way::Host) if origin == Origin::Host => self.drop(packet, Reason::NotForPollux),
            Ok(Way::Host) => self.deliver(packet),
            Ok(Way::Port(adjacency)) => {
                let held = self.state.neighbours.hold(adjacency, packet, headers.source, self.now);
                match (held, self.state.neighbours.resolved(adjacency)) {
                    (Hold::Ready(packet), Some(link)) => {
                        self.send(packet, headers, origin, &Rewrite::identity(headers), &link);
                    }
                    (held, _) => self.held(held, Some(headers)),
                }
            }
            Err(refusal) => self.refuse(packet, headers, refusal),
        }
    }

    /// Drops a packet under its reason and tells its source, where the reason has an error.
    #[cold]
    pub(super) fn refuse(&mut self, packet: Packet, headers: &Headers<A>, refusal: Refusal) {
        if let Some(kind) = refusal.answer {
            self.answer(&packet, headers, kind);
        }
        self.drop(packet, refusal.reason);
    }

    /// Sends an ICMP error about a packet, which must be as it came in.
    fn answer(&mut self, packet: &Packet, headers: &Headers<A>, kind: ErrorKind) {
        let to = headers.source;
        let routing = &self.tables.routing;
        let Some(source) = routing.interfaces.error_source(&routing.fib, headers.destination, to) else {
            return;
        };
        let Some(mut error) = icmp_error(kind, packet, headers, source, self.core.pool) else { return };
        if !self.core.limiter.allow(to, self.now) {
            return;
        }
        error.port = ORIGINATED;
        self.core.stats.originated += 1;
        self.observer.see(Event::Answered(kind));
        match self.route(to) {
            Ok(Way::Host) => self.deliver(error),
            Ok(Way::Port(adjacency)) => {
                let held = self.state.neighbours.hold(adjacency, error, source, self.now);
                match (held, self.state.neighbours.resolved(adjacency)) {
                    (Hold::Ready(error), Some(link)) => self.transmit(error, &link),
                    (held, _) => self.held(held, None),
                }
            }
            Err(refusal) => self.drop(error, refusal.reason),
        }
    }

    /// What became of a packet that could not be sent at once. `headers`: whom to tell of a failure.
    pub(super) fn held(&mut self, held: Hold<Packet>, headers: Option<&Headers<A>>) {
        match (held, headers) {
            (Hold::Waiting, _) => self.poll_neighbours(),
            (Hold::Refused(packet, Reason::NeighbourFailed), Some(headers)) => {
                self.refuse(packet, headers, Refusal::NEIGHBOUR);
            }
            (Hold::Refused(packet, reason), _) => self.drop(packet, reason),
            // The neighbour was found a moment ago; only a table full of neighbours can have lost it again.
            (Hold::Ready(packet) | Hold::Outdated(packet), _) => self.drop(packet, Reason::NeighbourQueue),
        }
    }

    /// Runs the neighbours' timers that are due and works off what they give.
    pub(super) fn poll_neighbours(&mut self) {
        self.state.neighbours.poll(self.now);
        self.work_off_events();
    }

    /// Teaches a link address and sends what waited for it.
    pub(super) fn learn(&mut self, port: PortId, address: A::Addr, link: LinkAddr, how: Learned) {
        self.state.neighbours.learn(port, address, link, how, self.now);
        self.work_off_events();
    }

    fn work_off_events(&mut self) {
        while let Some(event) = self.state.neighbours.next_event() {
            match event {
                NeighbourEvent::Solicit(solicitation) => self.solicit(&solicitation),
                NeighbourEvent::Release(adjacency, packet) if packet.port == ORIGINATED => {
                    match self.state.neighbours.resolved(adjacency) {
                        Some(link) => self.transmit(packet, &link),
                        None => self.drop(packet, Reason::NeighbourFailed),
                    }
                }
                NeighbourEvent::Release(_, packet) => self.again(packet),
                NeighbourEvent::Failed(packet, reason) => self.failed(packet, reason),
            }
        }
    }

    /// A packet that waited, as it came in, is forwarded from the table.
    fn again(&mut self, mut packet: Packet) {
        match A::parsed(&mut packet) {
            Some(headers) => {
                let hash = self.state.flows.hash(&super::key(&headers));
                let candidate = self.state.flows.probe(hash);
                self.packet(packet, &headers, Lookup::Probed(candidate));
            }
            // It was parsed before it was held, and nothing has touched it.
            None => self.drop(packet, Reason::FrameTruncated),
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
            self.out.send(out, request);
        }
    }
}

/// What differs between the families on the wire, beyond what parsing hides.
pub(super) trait Wire: Family {
    /// The headers of a packet of this family.
    fn parsed(packet: &mut Packet) -> Option<Headers<Self>>;
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

    /// Neighbour discovery is not spoken yet: IPv6 neighbours are configured, or mirrored from the kernel.
    fn solicitation(_: LinkAddr, _: Ipv6Addr, _: Ipv6Addr, _: LinkAddr, _: &'static Pool) -> Option<Packet> {
        None
    }
}

impl<O: Output, T: Observer> Pass<'_, V4, O, T> {
    /// ARP (NB-01): learn, and answer on ports that Pollux owns. On a shared port the kernel answers.
    fn arp(&mut self, packet: Packet) {
        let id = packet.port;
        let Some(port) = self.ports.get(id) else {
            return self.drop(packet, Reason::PortDown);
        };
        if port.role == Role::Host {
            return self.drop(packet, Reason::NotForPollux);
        }
        let (Some(arp), Some(link)) = (Arp::new_checked(packet.head()), Ethernet::new_checked(packet.head()))
        else {
            return self.drop(packet, Reason::FrameTruncated);
        };
        let message = Message {
            kind: match arp.operation {
                Operation::Request => MessageKind::Request,
                Operation::Reply => MessageKind::Reply,
            },
            addressed: if link.destination == port.link_address {
                Addressed::ToPort
            } else {
                Addressed::ToGroup
            },
            sender_link: arp.sender_link,
            sender: arp.sender,
            target: arp.target,
        };
        let responder = match (port.sharing, port.proxy_arp) {
            (Sharing::WithKernel, _) => Responder::Kernel,
            (Sharing::Owned, ProxyArp::Off) => Responder::Own,
            (Sharing::Owned, ProxyArp::On) => Responder::OwnAndProxy,
        };
        let routing = &self.tables.routing;
        let decision = resolution::decide(&message, id, responder, &routing.interfaces, &routing.fib);
        if decision.answer.is_some()
            && let Ok(mut answer) =
                arp.reply(port.link_address).to_packet(self.core.pool, ORIGINATED, arp.sender_link)
        {
            answer.port = ORIGINATED;
            self.core.stats.originated += 1;
            self.out.send(id, answer);
        }
        if let Some(how) = decision.learn {
            self.learn(id, arp.sender, arp.sender_link, how);
        }
        // The frame ends here: learnt from, answered, or the kernel's.
        self.core.leave_to_kernel(packet);
    }
}
