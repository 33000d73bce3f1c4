//! The pipeline: one burst, from the frames that a port received to frames in ports' queues.
//!
//! ```text
//! classify  parse, key, hash; prefetch the flow table's bucket          (whole burst)
//!           prefetch the candidate entry                                (whole burst)
//! express.rs  the common case in one piece; everything else:
//! look up ──hit──→ established.rs   state, route, rewrite, link header, out
//!          └─miss→ new.rs           service → route → filter → masquerade → insert, then as a hit
//! ICMP errors → related.rs;  into and out of tunnels → tunnel.rs
//! not IP, or not for Pollux → host.rs (NDP: ndp.rs);  what is refused with an error → host.rs
//! ```
//!
//! The forwarder does no I/O: ports, the clock and the random numbers are the worker's ([`crate::worker`]).
//! It is the only module that sees all the others.

mod established;
mod express;
mod fragments;
mod host;
mod limit;
mod ndp;
mod new;
pub mod observe;
mod orphans;
mod related;
mod reverse;
mod state;
#[cfg(test)]
mod tests;
mod tunnel;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arrayvec::ArrayVec;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::flow::{Candidate, FlowKey, FlowTable, Hash, NextHopRef, Sysctls, Timeouts};
use crate::packet::ethernet;
use crate::packet::parse::{Headers, Parsed, parse};
use crate::packet::plain::Plain;
use crate::packet::{Address, BURST, Burst, Family, Packet, PortId, V4, V6};
use crate::pool::Pool;
use crate::route::{Neighbours, News};
use crate::service::{Clients, Origin};
use crate::stats::{Reason, Stats};
use crate::tables::{FamilyTables, Masquerade, Ports, ReversePath, Tables};
use crate::time::Instant;
use express::Express;
pub use host::HOST_SIDE;
use host::{Wire, pass_on};
pub use limit::ErrorRate;
use limit::Limiter;
pub use observe::{BoxedObserver, Event, Nobody, Observer, ObserverId, Observers};
use state::State;

/// Where the forwarder puts frames that are ready to leave.
pub trait Output {
    /// Queues a frame on a port. What a full port refuses is counted by the implementor.
    fn send(&mut self, port: PortId, packet: Packet);

    /// Tells the other workers what was heard of a neighbour. Nothing is to be done where there are none.
    fn tell(&mut self, news: News) {
        let _ = news;
    }
}

/// What a flow entry's next hop stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop<A: Family> {
    /// This neighbour, behind this port.
    Neighbour(PortId, A::Addr),
    /// The node's own stack.
    Host,
    /// Nothing that this worker knows: never looked for, the neighbour has gone, or another worker found it.
    Unknown,
}

/// How a forwarder is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections that each family's table can hold.
    pub connections: usize,
    /// Backends of clients that session affinity can remember in each family (AF-05).
    pub clients: usize,
    /// Timeouts of CT-05.
    pub timeouts: Timeouts,
    /// What else of the tracker can be set (CT-05 to CT-07, CT-11).
    pub sysctls: Sysctls,
    /// Seed of every random choice: of backends, of ports, of the hash keys.
    pub seed: u64,
}

/// One worker's forwarder.
///
/// Those of several workers are [siblings](Forwarder::sibling). They share the flow tables, the clients of session
/// affinity and the limits of ICMP errors. Each has its own neighbours ([`Neighbours`] says how they learn from each
/// other), fragments, random numbers and counters. A datagram's fragments must come to one worker: devices see to
/// that, since a fragment is assigned by its addresses alone (the later ones have no ports).
pub struct Forwarder {
    tables: Arc<Tables>,
    v4: State<V4>,
    v6: State<V6>,
    core: Core,
    siblings: Arc<Siblings>,
}

/// What siblings have in common beside their tables.
struct Siblings {
    /// How many there were, this one included: the next one's number.
    born: AtomicU32,
    /// When any of them last looked for what has expired: the slices of one walk are shared out by chance.
    ticked: AtomicU64,
}

/// What both families share.
struct Core {
    stats: Stats,
    random: StdRng,
    limiter: Limiter,
    pool: &'static Pool,
    fixed_choice: Option<u32>,
}

/// One packet's class: what stage 1 found.
#[repr(u8)] // a tag of its own: one in a niche takes three instructions to read
enum Class {
    Plain(Express),
    V4(Headers<V4>, Lookup),
    V6(Headers<V6>, Lookup),
    Foreign(Parsed),
    Malformed(Reason),
}

/// How far the search for a packet's entry has come.
#[derive(Clone, Copy)]
struct Lookup {
    hash: Hash,
    /// Nothing until the bucket is read, and when it knows no entry.
    candidate: Option<Candidate>,
}

/// One family's part of the forwarder while it works on a burst.
struct Pass<'a, A: Family, O, T> {
    core: &'a mut Core,
    state: &'a mut State<A>,
    tables: &'a FamilyTables<A>,
    ports: &'a Ports,
    masquerade: Masquerade,
    now: Instant,
    out: &'a mut O,
    observer: &'a mut T,
}

impl Forwarder {
    /// A forwarder without tables: every packet is dropped until [`set_tables`](Forwarder::set_tables).
    ///
    /// # Errors
    /// When the kernel refuses the memory of the flow tables.
    pub fn new(settings: &Settings, pool: &'static Pool) -> io::Result<Forwarder> {
        let mut random = StdRng::seed_from_u64(settings.seed);
        Ok(Forwarder {
            tables: Arc::default(),
            v4: State::new(settings, &mut random)?,
            v6: State::new(settings, &mut random)?,
            core: Core {
                stats: Stats::default(),
                limiter: Limiter::new(random.random()),
                random,
                pool,
                fixed_choice: None,
            },
            siblings: Arc::new(Siblings { born: AtomicU32::new(1), ticked: AtomicU64::new(0) }),
        })
    }

    /// A forwarder for another worker on the same connections, with the tables and settings of this one. `seed` is
    /// that of its random choices.
    ///
    /// # Panics
    /// If the family has 256 members already.
    pub fn sibling(&self, seed: u64) -> Forwarder {
        let number = self.siblings.born.fetch_add(1, Relaxed);
        let number = u8::try_from(number).expect("a flow table has 256 workers at most");
        let mut sibling = Forwarder {
            tables: Arc::default(),
            v4: self.v4.sibling(number),
            v6: self.v6.sibling(number),
            core: Core {
                stats: Stats::default(),
                limiter: self.core.limiter.clone(),
                random: StdRng::seed_from_u64(seed),
                pool: self.core.pool,
                fixed_choice: self.core.fixed_choice,
            },
            siblings: Arc::clone(&self.siblings),
        };
        sibling.set_tables(Arc::clone(&self.tables));
        sibling
    }

    /// Puts new tables in force and returns the old ones, for their owner to free: freeing big tables is
    /// no work for a packet path.
    pub fn set_tables(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        let old = std::mem::replace(&mut self.tables, tables);
        let ports_changed = !Arc::ptr_eq(&old.ports, &self.tables.ports);
        self.v4.routing_changed(ports_changed, old.v4.as_ref(), self.tables.v4.as_ref());
        self.v6.routing_changed(ports_changed, old.v6.as_ref(), self.tables.v6.as_ref());
        self.v4.services_changed(old.v4.as_ref(), self.tables.v4.as_ref());
        self.v6.services_changed(old.v6.as_ref(), self.tables.v6.as_ref());
        if ports_changed {
            self.v4.ports_changed(&old.ports, &self.tables.ports);
            self.v6.ports_changed(&old.ports, &self.tables.ports);
        }
        old
    }

    /// The tables in force.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.core.stats
    }

    /// The counters, for who counts what ports received and accepted.
    pub fn stats_mut(&mut self) -> &mut Stats {
        &mut self.core.stats
    }

    /// Lets new connections choose the backend at this place of the set instead of a random one, where the
    /// set is long enough: so that a trace or a test can follow one choice. Nothing: random again (EP-06). The
    /// choice is not asked for where affinity makes it (AF-02).
    pub fn fix_choice(&mut self, place: Option<u32>) {
        self.core.fixed_choice = place;
    }

    /// Limits ICMP errors, or does not.
    pub fn set_error_rate(&mut self, rate: ErrorRate) {
        self.core.limiter.set_rate(rate);
    }

    /// The connections of IPv4.
    pub fn flows_v4(&self) -> &Arc<FlowTable<V4>> {
        &self.v4.flows
    }

    /// The connections of IPv6.
    pub fn flows_v6(&self) -> &Arc<FlowTable<V6>> {
        &self.v6.flows
    }

    /// How long fragments wait for the first one of their datagram, and are remembered (NAT-08): `ipfrag_time`
    /// and `nf_conntrack_frag6_timeout`.
    pub fn set_fragment_timeouts(&mut self, v4: Duration, v6: Duration) {
        self.v4.fragments.set_timeout(v4);
        self.v6.fragments.set_timeout(v6);
    }

    /// The clients of IPv4 that session affinity remembers.
    pub fn clients_v4(&self) -> &Clients<V4> {
        &self.v4.clients
    }

    /// Those of IPv6.
    pub fn clients_v6(&self) -> &Clients<V6> {
        &self.v6.clients
    }

    /// Where an IPv4 flow entry sends its packets, as far as this worker knows.
    pub fn next_hop_v4(&self, next_hop: NextHopRef) -> NextHop<V4> {
        self.v4.destination_of(next_hop)
    }

    /// Where an IPv6 flow entry sends its packets, as far as this worker knows.
    pub fn next_hop_v6(&self, next_hop: NextHopRef) -> NextHop<V6> {
        self.v6.destination_of(next_hop)
    }

    /// The neighbours of IPv4.
    pub fn neighbours_v4(&mut self) -> &mut Neighbours<V4> {
        &mut self.v4.neighbours
    }

    /// The neighbours of IPv6.
    pub fn neighbours_v6(&mut self) -> &mut Neighbours<V6> {
        &mut self.v6.neighbours
    }

    /// Forwards a burst: every packet is sent to `out`, held for a neighbour, or dropped and counted.
    #[inline]
    pub fn forward(&mut self, burst: &mut Burst, now: Instant, out: &mut impl Output) {
        self.forward_observed(burst, now, out, &mut Nobody);
    }

    /// As [`forward`](Forwarder::forward), telling every step to `observer`.
    pub fn forward_observed<T: Observer>(
        &mut self,
        burst: &mut Burst,
        now: Instant,
        out: &mut impl Output,
        observer: &mut T,
    ) {
        observer.begins(&self.tables);
        let mut classes: ArrayVec<Class, BURST> = ArrayVec::new();
        let forwards_v4 = self.tables.v4.is_some();
        // A reference of the burst's own: that of `self` would be read again for every packet.
        let flows = Arc::clone(&self.v4.flows);
        let flows: &FlowTable<V4> = &flows;
        for packet in burst.iter_mut() {
            // What is plain goes from its reader straight to its place: a value that may be of several kinds is
            // put together field by field, which costs more than parsing.
            if let Some(plain) = Plain::read(packet).filter(|_| forwards_v4) {
                classes.push(Class::Plain(Express::begin(flows, &plain)));
            } else {
                classes.push(self.classify(packet));
            }
        }
        for class in &mut classes {
            match class {
                Class::Plain(plain) => plain.lookup.probe(flows),
                Class::V4(_, lookup) => lookup.probe(&self.v4.flows),
                Class::V6(_, lookup) => lookup.probe(&self.v6.flows),
                Class::Foreign(_) | Class::Malformed(_) => {}
            }
        }
        let mut packets = burst.drain(..);
        for class in &classes {
            let Some(mut packet) = packets.next() else { break };
            observer.arrives(&packet);
            if let Class::Plain(plain) = class
                && let Some(port) = self.express(flows, &mut packet, plain, now, observer)
            {
                observer.leaves(port, &packet);
                out.send(port, packet);
            } else {
                self.in_full(packet, class, now, out, observer);
            }
            observer.ends();
        }
        self.count_held();
    }

    /// What is to be done between bursts: a bounded slice of expiry, neighbours' timers.
    pub fn tick(&mut self, now: Instant, out: &mut impl Output) {
        self.tick_observed(now, out, &mut Nobody);
    }

    /// As [`tick`](Forwarder::tick), telling `observer` every step of packets that had waited.
    pub fn tick_observed(&mut self, now: Instant, out: &mut impl Output, observer: &mut impl Observer) {
        observer.begins(&self.tables);
        observer.resumes();
        let since = now.saturating_since(Instant(self.siblings.ticked.fetch_max(now.0, Relaxed)));
        self.v4.flows.expire_since(now.into(), since);
        self.v6.flows.expire_since(now.into(), since);
        self.v4.end_orphans(self.tables.v4.as_ref(), now);
        self.v6.end_orphans(self.tables.v6.as_ref(), now);
        self.v4.clients.expire(now, AFFINITY_SLICE);
        self.v6.clients.expire(now, AFFINITY_SLICE);
        match self.pass_v4(now, out, observer) {
            Some(mut pass) => pass.poll(),
            None => self.v4.let_go(&self.tables.ports, &mut self.core),
        }
        match self.pass_v6(now, out, observer) {
            Some(mut pass) => pass.poll(),
            None => self.v6.let_go(&self.tables.ports, &mut self.core),
        }
        observer.ends();
        self.count_held();
    }

    /// Takes in what another worker heard of a neighbour.
    pub fn hear(&mut self, news: &News, now: Instant, out: &mut impl Output, observer: &mut impl Observer) {
        match news {
            News::V4(heard) => {
                if let Some(mut pass) = self.pass_v4(now, out, observer) {
                    pass.hear(heard);
                }
            }
            News::V6(heard) => {
                if let Some(mut pass) = self.pass_v6(now, out, observer) {
                    pass.hear(heard);
                }
            }
        }
        self.count_held();
    }

    /// A port's device has come back, under the number and name that the tables know.
    pub fn open_port(&mut self, id: PortId) {
        if let Some(port) = self.tables.ports.get(id) {
            self.v4.neighbours.set_port(id, port.link_address, port.mtu);
            self.v6.neighbours.set_port(id, port.link_address, port.mtu);
        }
    }

    /// A port's device has gone, before the tables know. What waits for neighbours behind it is dropped at the next
    /// [`tick`](Forwarder::tick), under `PortDown`.
    pub fn close_port(&mut self, id: PortId) {
        self.v4.neighbours.remove_port(id);
        self.v6.neighbours.remove_port(id);
    }

    fn count_held(&mut self) {
        let held = |neighbours, fragments| (neighbours + fragments) as u64;
        self.core.stats.held = held(self.v4.neighbours.held(), self.v4.fragments.held())
            + held(self.v6.neighbours.held(), self.v6.fragments.held());
    }

    /// A packet that is not in the common case. Out of line: the registers that this needs are those that the
    /// common case has to itself then.
    #[inline(never)]
    fn in_full<O: Output, T: Observer>(
        &mut self,
        mut packet: Packet,
        class: &Class,
        now: Instant,
        out: &mut O,
        observer: &mut T,
    ) {
        match class {
            Class::Plain(plain) => match parse(&mut packet) {
                Ok(Parsed::V4(headers)) => {
                    let class = Class::V4(headers, plain.lookup);
                    self.in_full(packet, &class, now, out, observer);
                }
                Ok(other) => self.foreign(packet, &other, now, out, observer),
                Err(reason) => self.core.drop(packet, reason, observer),
            },
            Class::V4(headers, lookup) => match self.pass_v4(now, out, observer) {
                Some(mut pass) => pass.packet(packet, headers, lookup.candidate),
                None => self.foreign(packet, &Parsed::V4(*headers), now, out, observer),
            },
            Class::V6(headers, lookup) => match self.pass_v6(now, out, observer) {
                Some(mut pass) => pass.packet(packet, headers, lookup.candidate),
                None => self.foreign(packet, &Parsed::V6(*headers), now, out, observer),
            },
            Class::Foreign(parsed) => self.foreign(packet, parsed, now, out, observer),
            Class::Malformed(reason) => self.core.drop(packet, *reason, observer),
        }
    }

    /// The class of a packet that is not plain.
    #[inline(never)]
    fn classify(&self, packet: &mut Packet) -> Class {
        match parse(packet) {
            Ok(Parsed::V4(headers)) => {
                let hash = self.v4.flows.hash(&key(&headers));
                Class::V4(headers, Lookup::begin(&self.v4.flows, hash))
            }
            Ok(Parsed::V6(headers)) => {
                let hash = self.v6.flows.hash(&key(&headers));
                Class::V6(headers, Lookup::begin(&self.v6.flows, hash))
            }
            Ok(other) => Class::Foreign(other),
            Err(reason) => Class::Malformed(reason),
        }
    }

    #[inline]
    fn pass_v4<'a, O, T>(
        &'a mut self,
        now: Instant,
        out: &'a mut O,
        observer: &'a mut T,
    ) -> Option<Pass<'a, V4, O, T>> {
        Some(Pass {
            core: &mut self.core,
            state: &mut self.v4,
            tables: self.tables.v4.as_ref()?,
            ports: &self.tables.ports,
            masquerade: self.tables.masquerade,
            now,
            out,
            observer,
        })
    }

    #[inline]
    fn pass_v6<'a, O, T>(
        &'a mut self,
        now: Instant,
        out: &'a mut O,
        observer: &'a mut T,
    ) -> Option<Pass<'a, V6, O, T>> {
        Some(Pass {
            core: &mut self.core,
            state: &mut self.v6,
            tables: self.tables.v6.as_ref()?,
            ports: &self.tables.ports,
            masquerade: self.tables.masquerade,
            now,
            out,
            observer,
        })
    }
}

/// Clients of session affinity looked at in a tick. Only memory waits for it: whether an entry is too old is
/// asked where it is used.
const AFFINITY_SLICE: usize = 64;

impl Lookup {
    /// Asks for the bucket.
    #[inline(always)]
    fn begin<A: Family>(flows: &FlowTable<A>, hash: Hash) -> Lookup {
        flows.prefetch(hash);
        Lookup { hash, candidate: None }
    }

    /// Reads the bucket, and asks for the entry.
    #[inline(always)]
    fn probe<A: Family>(&mut self, flows: &FlowTable<A>) {
        self.candidate = flows.probe(self.hash);
    }
}

/// The tuple of a packet.
#[inline]
fn key<A: Family>(headers: &Headers<A>) -> FlowKey<A> {
    FlowKey {
        source: headers.source,
        destination: headers.destination,
        source_port: headers.source_port,
        destination_port: headers.destination_port,
        protocol: headers.protocol,
    }
}

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    #[inline]
    fn see_received(&mut self, packet: &Packet, headers: &Headers<A>, origin: Origin) {
        self.observer.see(Event::Received {
            port: packet.port,
            origin,
            source: headers.source.into(),
            source_port: headers.source_port,
            destination: headers.destination.into(),
            destination_port: headers.destination_port,
            protocol: headers.protocol,
        });
    }

    /// Any packet of the family.
    #[inline(never)]
    fn packet(&mut self, packet: Packet, headers: &Headers<A>, candidate: Option<Candidate>) {
        let Some(packet) = A::take_discovery(self, packet, headers) else { return };
        let Some(ingress) = self.ports.ingress(packet.port) else {
            return self.drop(packet, Reason::PortDown);
        };
        let origin = ingress.origin;
        self.see_received(&packet, headers, origin);
        let addressed = ingress.takes(ethernet::destination(packet.head()).bits());
        // Link-local addresses mean nothing without their link, which only the node's own stack knows.
        if !addressed || headers.destination.stays_on_link() {
            return pass_on(self.core, self.ports, packet, self.out, self.observer);
        }
        let reverse_path = ingress.reverse_path::<A>();
        if reverse_path != ReversePath::Off && !self.comes_the_right_way(headers, packet.port, reverse_path) {
            return self.drop(packet, Reason::ReversePath);
        }
        let Some(packet) = A::take_tunnelled(self, packet, headers) else { return };
        if headers.is_fragment() {
            return self.fragment(packet, headers);
        }
        self.tracked(packet, headers, origin, candidate);
    }

    /// A packet with its transport header, which is tracked if it can be.
    #[inline]
    fn tracked(
        &mut self,
        packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        candidate: Option<Candidate>,
    ) {
        if !headers.is_trackable() {
            return self.untracked(packet, headers, origin);
        }
        let key = key(headers);
        let hit = match candidate {
            Some(candidate) => self.state.flows.find(candidate, &key),
            // A packet before this one in the burst may have made the entry since the bucket was read.
            None => self.state.flows.lookup(&key),
        };
        match hit {
            Some(hit) => self.established(packet, headers, origin, &hit),
            None => self.new_connection(packet, headers, origin),
        }
    }
}
