//! The first packet of a connection, one by one: the walk of services.md section 4. Destination (WK-01),
//! route (WK-06), hygiene (FW-01, FW-02), filter (WK-07), source (WK-09), and the entries of both
//! directions, or none (CT-04). From then on the connection's packets go through `established.rs`.

use std::sync::Arc;

use rand::RngExt;

use super::established::Way;
use super::host::Wire;
use super::observe::{ChosenBy, Event, FilterSkip, MasqueradeCause, Observer, RouteSeen};
use super::{Output, Pass};
use crate::flow::{self, FlowKey, InsertError, NewConnection, NextHopRef, State};
use crate::nat::ports::PortSearch;
use crate::packet::icmp::ErrorKind;
use crate::packet::parse::Headers;
use crate::packet::transport::verify_transport_checksum;
use crate::packet::{Address, Family, Packet, PortId, Protocol};
use crate::route::{Route, RouteKind};
use crate::service::{
    Affinity, Backend, BackendSet, Destination, FilterStage, FilterVerdict, FrontendId, Locality, Mark,
    MarkReason, Origin, Request, Walk,
};
use crate::stats::Reason;
use crate::tables::{LoopbackGuard, MasqueradePorts};

/// Why a packet goes no further, and what its source is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) answer: Option<ErrorKind>,
    /// Who the error is from.
    pub(super) from: ErrorFrom,
}

/// Whose address an ICMP error has as its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ErrorFrom {
    /// The node's, or the one that the client of a known connection knows.
    Node,
    /// The packet's destination as it came in: the packet was translated before it was refused, and the kernel
    /// translates the error back.
    Destination,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal { reason, answer: None, from: ErrorFrom::Node }
    }
}

impl Refusal {
    /// NB-02.
    pub(super) const NEIGHBOUR: Refusal = Refusal {
        reason: Reason::NeighbourFailed,
        answer: Some(ErrorKind::HostUnreachable),
        from: ErrorFrom::Node,
    };

    pub(super) fn answered(reason: Reason, answer: ErrorKind) -> Refusal {
        Refusal { reason, answer: Some(answer), from: ErrorFrom::Node }
    }
}

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    /// A packet whose key is in no table.
    #[cold]
    pub(super) fn new_connection(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin) {
        self.observer.see(Event::FlowMiss);
        let key = super::key(headers);
        let decided = self.decide(&packet, headers, &key, origin);
        match decided {
            // Another packet's entry if that was first (CT-12): either way, forward by what is stored.
            Ok(()) => match self.state.flows.lookup(&key) {
                Some(hit) => {
                    self.state.flows.count(hit.entry, headers.packet_len());
                    self.forward_hit(packet, headers, origin, &hit);
                }
                None => self.drop(packet, Reason::FlowTableFull),
            },
            Err(Refusal { reason: reason @ (Reason::Invalid | Reason::TransportChecksum), .. }) => {
                self.invalid(packet, headers, origin, reason);
            }
            Err(refusal) => self.refuse(packet, headers, refusal),
        }
    }

    /// Everything that is decided once for a connection, and its entries. What a port's packet meets is in
    /// the kernel's order: `ip_forward` looks at TTL and MTU before the filter does.
    fn decide(
        &mut self,
        packet: &Packet,
        headers: &Headers<A>,
        key: &FlowKey<A>,
        origin: Origin,
    ) -> Result<(), Refusal> {
        match origin {
            Origin::Host => self.may_leave(headers, self.locality(headers.destination))?,
            Origin::Port | Origin::PodPort => self.martian(headers)?,
        }
        let event = flow::Event::of(packet, headers);
        // The kernel's tracker finds no transport in an IPv6 packet that ends with its extension headers.
        if A::VERSION == 6 && headers.protocol == Protocol::NO_NEXT_HEADER {
            return Err(Reason::Invalid.into());
        }
        let state = flow::first_packet(key, &event, self.state.flows.sysctls())
            .map_err(|flow::Invalid| Reason::Invalid)?;
        if !verify_transport_checksum(packet, headers) {
            return Err(Reason::TransportChecksum.into());
        }

        let mut request = self.request(headers, origin);
        let Destination { choice, mut mark } =
            self.tables.services.destination(&request, &mut Watch(&mut *self.observer));
        if let Some((frontend, set)) = choice {
            let (place, chosen_by) = match self.tables.services.frontend(frontend).affinity {
                None => (self.choose(set.len), ChosenBy::Chance),
                Some(affinity) => self.choose_sticky(frontend, set, affinity, headers.source),
            };
            let backend = self.tables.services.backends(set)[place as usize];
            let (address, port) = (backend.address, backend.port);
            let address_seen = address.into();
            self.observer.see(Event::Chose { frontend, set, place, address: address_seen, port, chosen_by });
            if address == headers.source {
                mark = Mark::Set;
                self.observer.see(Event::Hairpin);
            }
            request.destination = address;
            request.destination_port = port;
            request.destination_is_local = self.locality(address);
        } else {
            self.observer.see(Event::NoFrontend);
        }

        if origin == Origin::Host {
            self.may_leave(headers, request.destination_is_local)?;
        }
        let routed =
            FlowKey { destination: request.destination, destination_port: request.destination_port, ..*key };
        let way = self.route_new(&routed, origin)?;
        let next_hop = self.next_hop(way);
        self.forwardable(packet, headers, origin, way).map_err(|refusal| match choice {
            Some(_) => Refusal { from: ErrorFrom::Destination, ..refusal },
            None => refusal,
        })?;
        self.filter(&request, way, mark, choice.is_some())?;

        let out = next_hop.map(|(port, _)| port);
        let cause = self.masquerade_cause(&request, way, out, mark);
        let mut outgoing = routed;
        let mode = match cause {
            Some(_) => {
                let interfaces = &self.tables.routing.interfaces;
                let neighbour = next_hop.map_or(request.destination, |(_, address)| address);
                let source = interfaces.masquerade_source(out, neighbour, request.destination);
                outgoing.source = source.ok_or(Reason::SnatExhausted)?;
                self.masquerade.ports
            }
            // NAT-03: even an untouched source changes its port when its reply could not be told apart.
            None => MasqueradePorts::Keep,
        };
        // FW-03: nothing of loopback goes out of a port, nor may its answers come in there.
        if let (Way::Port(_), true) = (way, outgoing.source.is_loopback()) {
            return Err(Reason::MartianSource.into());
        }
        if let (Way::Port(adjacency), Origin::Host) = (way, origin) {
            self.fits(packet, headers, origin, self.state.neighbours.mtu(adjacency))?;
        }
        let connection = Connection { original: *key, way, mark, state, event };
        let source_port = self.insert(&connection, outgoing, PortSearch::of(mode, key))?;
        if let Some(rule) = cause {
            self.observer.see(Event::Masqueraded { rule, source: outgoing.source.into(), source_port });
        }
        Ok(())
    }

    /// FW-03: addresses that no packet from a port may have. On IPv4 that includes the node's own as source, as
    /// the kernel with `accept_local` off has it; on IPv6 it lets them pass, and the unspecified source to
    /// the node itself as well.
    pub(super) fn martian(&self, headers: &Headers<A>) -> Result<(), Refusal> {
        let (source, destination) = (headers.source, headers.destination);
        if A::VERSION == 6 && source.is_unspecified() && !destination.is_loopback() {
            return match self.locality(destination) {
                Locality::Local => Ok(()),
                Locality::Remote => Err(Reason::MartianSource.into()),
            };
        }
        martian(headers)?;
        match A::VERSION == 4 && self.locality(source) == Locality::Local {
            true => Err(Reason::MartianSource.into()),
            false => Ok(()),
        }
    }

    /// FW-03: where `localhostNodePorts` is not in force, kube-proxy leaves `route_localnet` off, and the
    /// kernel lets nothing of IPv4's loopback go anywhere else, masqueraded or not.
    fn may_leave(&self, headers: &Headers<A>, destination: Locality) -> Result<(), Refusal> {
        let kept = A::VERSION == 4
            && self.tables.loopback_guard == LoopbackGuard::Off
            && headers.source.is_loopback()
            && destination == Locality::Remote;
        if kept { Err(Reason::MartianSource.into()) } else { Ok(()) }
    }

    pub(super) fn request(&self, headers: &Headers<A>, origin: Origin) -> Request<A> {
        Request {
            source: headers.source,
            destination: headers.destination,
            destination_port: headers.destination_port,
            protocol: headers.protocol,
            origin,
            source_is_local: self.locality(headers.source),
            destination_is_local: self.locality(headers.destination),
        }
    }

    pub(super) fn locality(&self, address: A::Addr) -> Locality {
        if self.tables.routing.interfaces.is_local(address) { Locality::Local } else { Locality::Remote }
    }

    /// EP-06: uniform and independent.
    fn choose(&mut self, backends: u32) -> u32 {
        match self.core.fixed_choice {
            Some(place) if place < backends => place,
            _ => self.core.random.random_range(0..backends),
        }
    }

    /// AF-01, AF-02: the backend that the client was at, else one by chance; either way the client was there
    /// now. As the kernel's rules do, before it is known what becomes of the packet.
    #[cold]
    fn choose_sticky(
        &mut self,
        frontend: FrontendId,
        set: BackendSet,
        affinity: Affinity,
        client: A::Addr,
    ) -> (u32, ChosenBy) {
        let services = &self.tables.services;
        let clients = Arc::clone(&self.state.clients);
        let (known, now) = (clients.client(client, affinity.service_port), self.now);
        let fresh = |backend: &Backend<A>, affinity: Affinity| known.is_fresh(backend, affinity.timeout, now);
        let (place, chosen_by) = match services.sticky(frontend, set, fresh) {
            Some(place) => (place, ChosenBy::Affinity),
            None => (self.choose(set.len), ChosenBy::Chance),
        };
        let backend = services.backends(set)[place as usize];
        // Without room the next connection chooses anew; the table counts it (AF-05).
        let _ = known.remember(backend, affinity.timeout, now);
        (place, chosen_by)
    }

    /// WK-06, RT-02. Of `flow` the destination is the final one, the source not translated yet: both are the same
    /// for all packets of a direction, so each keeps to its way of several (RT-01).
    pub(super) fn route(&mut self, flow: &FlowKey<A>) -> Result<Way, Refusal> {
        let destination = flow.destination;
        let found = self.tables.routing.fib.lookup(destination);
        let hop = found.and_then(|route| match &route.kind {
            RouteKind::Via(hop) => Some(hop),
            RouteKind::Multipath(hops) => Some(hops.choose(self.state.flows.hash(flow).bits())),
            _ => None,
        });
        let result = match found.map(|route| &route.kind) {
            // Every link has a route to these: which one is meant, the table does not say.
            _ if A::VERSION == 6 && (destination.stays_on_link() || destination.is_multicast()) => {
                Ok(Way::Host)
            }
            Some(RouteKind::Via(_) | RouteKind::Multipath(_)) => {
                let Some(hop) = hop else { return Err(Reason::NoRoute.into()) };
                let neighbour = hop.neighbour(destination);
                let adjacency = self.state.neighbours.get_or_create(hop.port, neighbour, self.now);
                adjacency.map(Way::Port).map_err(Refusal::from)
            }
            Some(RouteKind::Local | RouteKind::Broadcast | RouteKind::Multicast | RouteKind::Host) => {
                Ok(Way::Host)
            }
            Some(RouteKind::Blackhole) => Err(Reason::RouteBlackhole.into()),
            // The kernel's IPv6 says the same as where there is no route (`ip6_pkt_discard`).
            Some(RouteKind::Unreachable) if A::VERSION == 6 => {
                Err(Refusal::answered(Reason::RouteUnreachable, ErrorKind::NetUnreachable))
            }
            Some(RouteKind::Unreachable) => {
                Err(Refusal::answered(Reason::RouteUnreachable, ErrorKind::HostUnreachable))
            }
            Some(RouteKind::Prohibit) => {
                Err(Refusal::answered(Reason::RouteProhibit, ErrorKind::AdminProhibited))
            }
            None => Err(Refusal::answered(Reason::NoRoute, ErrorKind::NetUnreachable)),
        };
        let route = match (result, found, hop) {
            (Err(refusal), ..) => RouteSeen::Refused(refusal.reason),
            (Ok(Way::Port(_)), Some(Route { prefix, .. }), Some(hop)) => RouteSeen::Via {
                port: hop.port,
                gateway: hop.gateway.map(Into::into),
                prefix_length: prefix.len(),
            },
            (Ok(_), ..) => RouteSeen::Host,
        };
        self.observer.see(Event::Routed { destination: destination.into(), route });
        result
    }

    /// The route of what makes no use of an entry's. What the host sends to a group is not sent back to it.
    pub(super) fn route_new(&mut self, flow: &FlowKey<A>, origin: Origin) -> Result<Way, Refusal> {
        let destination = flow.destination;
        let way = self.route(flow)?;
        let kind = || self.tables.routing.fib.lookup(destination).map(|route| &route.kind);
        let to_group = || {
            destination.is_multicast() || matches!(kind(), Some(RouteKind::Broadcast | RouteKind::Multicast))
        };
        if origin == Origin::Host && way == Way::Host && to_group() {
            return Err(Reason::NotForPollux.into());
        }
        Ok(way)
    }

    /// Port and address of the neighbour that the way leads to.
    pub(super) fn next_hop(&self, way: Way) -> Option<(PortId, A::Addr)> {
        match way {
            Way::Port(adjacency) => {
                let address = self.state.neighbours.address(adjacency)?;
                Some((self.state.neighbours.port(adjacency), address))
            }
            Way::Host => None,
        }
    }

    /// NO-07: loopback is closed to what comes from outside it, unless a node port translated it there.
    fn guard_loopback(&self, request: &Request<A>, way: Way, translated: bool) -> Result<(), Refusal> {
        let guarded = self.tables.loopback_guard == LoopbackGuard::On
            && (way == Way::Host || request.origin == Origin::Host)
            && request.destination.is_loopback()
            && !request.source.is_loopback()
            && !translated;
        if guarded { Err(Reason::LoopbackGuard.into()) } else { Ok(()) }
    }

    /// WK-07 and WK-08: what the filter says to a packet whose connection has not seen a reply. `request`
    /// has the destination after translation, if it was `translated`.
    pub(super) fn filter(
        &mut self,
        request: &Request<A>,
        way: Way,
        mark: Mark,
        translated: bool,
    ) -> Result<(), Refusal> {
        self.guard_loopback(request, way, translated)?;
        if request.origin == Origin::Host {
            self.filter_at(FilterStage::Output, request)?;
        }
        match way {
            Way::Host => self.filter_at(FilterStage::Input, request),
            Way::Port(_) if request.origin == Origin::Host => Ok(()),
            Way::Port(_) if mark == Mark::Set => {
                // Accepted before the Service tables are asked, but for the firewall of source ranges: that
                // stands even before (NO-04). Who is marked on the way and not translated may meet it.
                let verdict = self.tables.services.firewall(request);
                let skipped = verdict.is_none().then_some(FilterSkip::Marked);
                self.filtered(FilterStage::Forward, verdict, skipped)
            }
            Way::Port(_) => self.filter_at(FilterStage::Forward, request),
        }
    }

    fn filter_at(&mut self, stage: FilterStage, request: &Request<A>) -> Result<(), Refusal> {
        let verdict = self.tables.services.filter(stage, request);
        self.filtered(stage, verdict, None)
    }

    fn filtered(
        &mut self,
        stage: FilterStage,
        verdict: Option<FilterVerdict>,
        skipped: Option<FilterSkip>,
    ) -> Result<(), Refusal> {
        self.observer.see(Event::Filtered { stage, verdict, skipped });
        match verdict {
            None => Ok(()),
            Some(FilterVerdict::NoEndpoints) => {
                Err(Refusal::answered(Reason::NoEndpoints, ErrorKind::PortUnreachable))
            }
            Some(FilterVerdict::NoLocalEndpoints) => Err(Reason::NoLocalEndpoints.into()),
            Some(FilterVerdict::SourceRange) => Err(Reason::SourceRange.into()),
        }
    }

    /// WK-09: which rule masquerades, if one does. What a port sends to the node passes no such stage.
    fn masquerade_cause(
        &self,
        request: &Request<A>,
        way: Way,
        out: Option<PortId>,
        mark: Mark,
    ) -> Option<MasqueradeCause> {
        if way == Way::Host && request.origin != Origin::Host {
            return None;
        }
        if mark == Mark::Set {
            return Some(MasqueradeCause::Mark);
        }
        let rules = &self.tables.masquerade;
        let matching = rules.iter().position(|rule| rule.matches(request.source, request.destination, out));
        matching.map(MasqueradeCause::Rule)
    }

    /// Inserts both directions under the first source port whose reply tuple is free (NAT-03, NAT-05), and
    /// says which it is.
    fn insert(
        &mut self,
        connection: &Connection<'_, A>,
        mut outgoing: FlowKey<A>,
        ports: PortSearch,
    ) -> Result<u16, Refusal> {
        for port in ports.candidates(&mut self.core.random) {
            outgoing.source_port = port;
            let new = NewConnection {
                original: connection.original,
                reply: outgoing.reply(),
                mark: if connection.mark == Mark::Set { self.masquerade.mark } else { 0 },
                state: connection.state,
                original_next_hop: connection.way.reference(self.state.stamps.of::<A>(outgoing.destination)),
                reply_next_hop: NextHopRef::default(),
            };
            match self.state.flows.insert_first(&new, &connection.event, self.now.into()) {
                Ok(_) | Err(InsertError::OriginalExists(_)) => return Ok(port),
                Err(InsertError::ReplyTaken) => {}
                Err(InsertError::Full) => return Err(Reason::FlowTableFull.into()),
            }
        }
        Err(Reason::SnatExhausted.into())
    }

    /// CT-08: from a port to the node untranslated, otherwise nowhere. What the host itself sends is never
    /// forwarded traffic: its stray RST leaves, as the kernel's OUTPUT lets it.
    pub(super) fn invalid(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin, reason: Reason) {
        self.observer.see(Event::Invalid);
        if origin == Origin::Host && reason == Reason::Invalid {
            self.send_as_it_is(packet, headers, origin);
        } else if origin != Origin::Host && self.locality(headers.destination) == Locality::Local {
            self.deliver(packet);
        } else {
            self.drop(packet, reason);
        }
    }
}

/// What is known of a connection before its source port is.
struct Connection<'a, A: Family> {
    original: FlowKey<A>,
    way: Way,
    mark: Mark,
    state: State,
    /// What its first packet says.
    event: flow::Event<'a>,
}

/// FW-03: addresses that no packet from a port may have.
fn martian<A: Family>(headers: &Headers<A>) -> Result<(), Refusal> {
    let (source, destination) = (headers.source, headers.destination);
    let broadcast = |address: A::Addr| A::VERSION == 4 && address.bits() == u128::from(u32::MAX);
    // The kernel takes ::ffff:a.b.c.d for IPv4 everywhere but on the wire (draft-itojun-v6ops-v4mapped-harmful).
    let mapped = A::VERSION == 6 && source.bits() >> 32 == 0xffff;
    if source.is_loopback() || source.is_multicast() || source.is_unspecified() || broadcast(source) || mapped
    {
        return Err(Reason::MartianSource.into());
    }
    if destination.is_loopback() || destination.is_unspecified() {
        return Err(Reason::MartianDestination.into());
    }
    Ok(())
}

/// Passes what the walk meets on to an observer.
struct Watch<'a, T>(&'a mut T);

impl<A: Family, T: Observer> Walk<A> for Watch<'_, T> {
    fn matched(&mut self, frontend: FrontendId) {
        self.0.see(Event::Matched(frontend));
    }
    fn outside_ranges(&mut self, frontend: FrontendId) {
        self.0.see(Event::OutsideRanges(frontend));
    }
    fn marked(&mut self, frontend: FrontendId, reason: MarkReason) {
        self.0.see(Event::Marked(frontend, reason));
    }
    fn short_circuit(&mut self, frontend: FrontendId) {
        self.0.see(Event::ShortCircuit(frontend));
    }
    fn fell_through(&mut self, frontend: FrontendId) {
        self.0.see(Event::FellThrough(frontend));
    }
}
