//! What the forwarder decided, step by step, for whoever watches. The pipeline tells every step to an
//! [`Observer`]; forwarding itself passes [`Nobody`], whose empty method leaves no trace in the generated
//! code. `pollux trace` and the demo watch the same code that forwards, so they cannot disagree with it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::packet::{LinkAddr, Packet, PortId, Protocol};
use crate::service::{BackendSet, FilterStage, FilterVerdict, FrontendId, MarkReason, Origin};
use crate::stats::Reason;
use crate::tables::Tables;

/// Receives the steps of packets, in order. Who wants no more than the steps need not listen to the rest.
pub trait Observer {
    /// One step of the packet in hand.
    fn see(&mut self, event: Event);

    /// What follows is decided by these tables.
    #[inline(always)]
    fn begins(&mut self, _tables: &Arc<Tables>) {}

    /// A frame has come in and nothing has been done with it: what follows is about it, until
    /// [`ends`](Observer::ends).
    #[inline(always)]
    fn arrives(&mut self, _packet: &Packet) {}

    /// What follows is about a packet that had waited, for its next hop or for other fragments.
    #[inline(always)]
    fn resumes(&mut self) {}

    /// A frame leaves by the port as it is now: the one in hand, or one that the node makes because of it.
    #[inline(always)]
    fn leaves(&mut self, _port: PortId, _packet: &Packet) {}

    /// All that was to be done with the frame in hand is done.
    #[inline(always)]
    fn ends(&mut self) {}
}

/// Watches nothing.
pub struct Nobody;

impl Observer for Nobody {
    #[inline(always)]
    fn see(&mut self, _: Event) {}
}

impl Observer for Vec<Event> {
    fn see(&mut self, event: Event) {
        self.push(event);
    }
}

/// An observer that a worker keeps.
pub type BoxedObserver = Box<dyn Observer + Send>;

/// Several observers, each of which receives everything.
#[derive(Default)]
pub struct Observers {
    all: Vec<(ObserverId, BoxedObserver)>,
    next: u64,
}

/// Names one of several observers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObserverId(u64);

impl Observers {
    /// Adds one.
    pub fn add(&mut self, observer: BoxedObserver) -> ObserverId {
        let id = ObserverId(self.next);
        self.next += 1;
        self.all.push((id, observer));
        id
    }

    /// Takes one out; nothing when it is gone already.
    pub fn remove(&mut self, id: ObserverId) -> Option<BoxedObserver> {
        let at = self.all.iter().position(|(one, _)| *one == id)?;
        Some(self.all.remove(at).1)
    }

    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn each(&mut self) -> impl Iterator<Item = &mut BoxedObserver> {
        self.all.iter_mut().map(|(_, observer)| observer)
    }
}

impl Observer for Observers {
    fn see(&mut self, event: Event) {
        self.each().for_each(|observer| observer.see(event.clone()));
    }

    fn begins(&mut self, tables: &Arc<Tables>) {
        self.each().for_each(|observer| observer.begins(tables));
    }

    fn arrives(&mut self, packet: &Packet) {
        self.each().for_each(|observer| observer.arrives(packet));
    }

    fn resumes(&mut self) {
        self.each().for_each(|observer| observer.resumes());
    }

    fn leaves(&mut self, port: PortId, packet: &Packet) {
        self.each().for_each(|observer| observer.leaves(port, packet));
    }

    fn ends(&mut self) {
        self.each().for_each(|observer| observer.ends());
    }
}

/// One step of a packet's way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A packet came in.
    Received {
        /// The port.
        port: PortId,
        /// What it means for the walk.
        origin: Origin,
        /// Source, destination, protocol.
        source: IpAddr,
        /// Source port, or ICMP identifier.
        source_port: u16,
        /// Destination before any translation.
        destination: IpAddr,
        /// Destination port, or ICMP type and code.
        destination_port: u16,
        /// The protocol.
        protocol: Protocol,
    },
    /// The packet belongs to a known connection.
    FlowHit {
        /// Whether it goes the way of the connection's first packet.
        direction: crate::flow::Direction,
    },
    /// It is an ICMP error about a packet of a known connection (CT-02).
    Related {
        /// Whether it goes the way of the connection's first packet.
        direction: crate::flow::Direction,
    },
    /// It belongs to no connection that is known.
    FlowMiss,
    /// It can neither belong to one nor begin one.
    Invalid,
    /// It is not tracked (neighbour discovery and the like): routed as it is.
    Untracked,
    /// A frontend matches (WK-01).
    Matched(FrontendId),
    /// The source is outside the frontend's ranges (WK-03).
    OutsideRanges(FrontendId),
    /// Marked for masquerading.
    Marked(FrontendId, MarkReason),
    /// Policy Local, short-circuited to the cluster's endpoints (WK-04).
    ShortCircuit(FrontendId),
    /// The frontend has nothing to choose from.
    FellThrough(FrontendId),
    /// No frontend translates the packet.
    NoFrontend,
    /// A backend was chosen.
    Chose {
        /// By this frontend.
        frontend: FrontendId,
        /// Among these.
        set: BackendSet,
        /// The place of the chosen one among them.
        place: u32,
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// How it was chosen.
        chosen_by: ChosenBy,
    },
    /// The chosen backend is the source itself: marked (MQ-03).
    Hairpin,
    /// A route was found for the destination.
    Routed {
        /// The destination asked for.
        destination: IpAddr,
        /// What the route says.
        route: RouteSeen,
    },
    /// The filter let the packet go on, or not.
    Filtered {
        /// Where.
        stage: FilterStage,
        /// Nothing: accepted.
        verdict: Option<FilterVerdict>,
        /// Why nothing was asked, if so.
        skipped: Option<FilterSkip>,
    },
    /// The source is masqueraded.
    Masqueraded {
        /// By the mark, or by the configuration's rule of this number.
        rule: MasqueradeCause,
        /// The new source address.
        source: IpAddr,
        /// The new source port or identifier.
        source_port: u16,
    },
    /// The packet is a fragment and waits for the first one of its datagram (NAT-08).
    AwaitsFirst,
    /// The packet waits for the link address of its next hop.
    Held {
        /// The way out.
        port: PortId,
        /// Whose link address is asked for.
        neighbour: IpAddr,
    },
    /// The packet enters a tunnel (TN-01); what follows is the way to the tunnel's other end.
    Encapsulated {
        /// The tunnel.
        port: PortId,
        /// Outer source.
        source: IpAddr,
        /// Outer destination.
        peer: IpAddr,
    },
    /// The packet came through a tunnel, and is taken out; what follows is about the one inside.
    Decapsulated {
        /// The tunnel.
        port: PortId,
        /// Outer source.
        peer: IpAddr,
    },
    /// The packet left.
    Sent {
        /// The way out.
        port: PortId,
        /// Link source.
        link_source: LinkAddr,
        /// Link destination.
        link_destination: LinkAddr,
    },
    /// The packet was given to the host.
    Delivered {
        /// The host port.
        port: PortId,
    },
    /// The packet was dropped.
    Dropped(Reason),
    /// Its source is told so by an ICMP error.
    Answered(crate::packet::icmp::ErrorKind),
}

/// How a backend was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChosenBy {
    /// At random (EP-06).
    Chance,
    /// The client was there not long ago (AF-02).
    Affinity,
}

/// A route, as far as a trace shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteSeen {
    /// Out of a port.
    Via {
        /// The way out.
        port: PortId,
        /// The gateway; nothing on link.
        gateway: Option<IpAddr>,
        /// Length of the matching prefix.
        prefix_length: u8,
    },
    /// To the host.
    Host,
    /// Nowhere.
    Refused(Reason),
}

/// Why the filter did not ask the Service tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterSkip {
    /// Marked packets are accepted before (WK-07).
    Marked,
}

/// Which rule masquerades.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MasqueradeCause {
    /// The mark (MQ-08).
    Mark,
    /// A rule of the configuration.
    Rule(usize),
}
