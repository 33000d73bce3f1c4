//! Services, compiled: from the destination of a new connection to the decision what becomes of it.
//!
//! Two questions are asked of the tables, at two places of a packet's way. [`Services::destination`]
//! (the nat stage, WK-01 to WK-04) says among which backends to choose and whether the connection is
//! marked; [`Services::filter`] (WK-07) says, with the destination after translation, whether a packet
//! of a connection without a reply is rejected or dropped. Both are pure functions of the tables and the
//! packet: the choice itself (EP-06) is the caller's, so that a trace can show every backend and a test
//! can fix one; affinity (AF-02) is a question that it asks back. `control` compiles the tables; nothing here changes them.

mod affinity;
mod builder;
mod table;
#[cfg(test)]
mod tests;

pub use affinity::{Client, Clients, Full};
pub use builder::Builder;
pub use table::{FrontendId, InternalMark, Policy, Services};

use std::sync::Arc;
use std::time::Duration;

use crate::packet::{Family, Prefix, Protocol};

/// The address and port that clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FrontendAddress<A: Family> {
    /// One address: FE-01 to FE-03.
    Address(A::Addr),
    /// Every node-port address: FE-04, FE-07.
    NodePort,
}

/// A frontend as a key: where clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FrontendKey<A: Family> {
    /// The address.
    pub address: FrontendAddress<A>,
    /// The port, or node port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// Which field of a Service a frontend comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FrontendKind {
    /// FE-01: the clusterIP. The only internal one.
    ClusterIp,
    /// FE-02: one of `externalIPs`.
    ExternalIp,
    /// FE-03: a load balancer's address.
    LoadBalancer,
    /// FE-04: a node port.
    NodePort,
}

/// One frontend and everything that is decided by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frontend<A: Family> {
    /// Where clients connect to.
    pub key: FrontendKey<A>,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// The service port it belongs to: a number that `control` gives meaning to.
    pub service_port: u32,
    /// WK-03: if present, only sources in one of these enter; others fall through, and what then still
    /// has this destination is dropped (NO-04).
    pub sources: Option<Arc<[Prefix<A>]>>,
    /// What the nat stage does.
    pub path: Path,
    /// What the filter stage does to a packet that still has this destination.
    pub filter: Option<FilterRule>,
    /// Whether a client stays with its backend (AF-01).
    pub affinity: Option<Affinity>,
}

/// A client stays with its backend for a while (AF-01).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Affinity {
    /// How long after the client's last new connection to the backend.
    pub timeout: Duration,
    /// The service port (AF-03), under a number that it has in all tables: what a compilation numbers afresh
    /// would make it forget its clients (AF-04).
    pub service_port: u64,
}

/// What the nat stage does with a packet that a frontend matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// No rule: the packet falls through to the next frontend (WK-02, WK-03).
    FallThrough,
    /// An internal frontend: mark by MQ-01 or MQ-02, then choose.
    Internal(BackendSet),
    /// External, policy Cluster: mark (MQ-04), then choose. An empty set falls through, marked.
    Cluster(BackendSet),
    /// External, policy Local: the short circuits of WK-04 choose from `cluster`, anything else from
    /// `local`; an empty one falls through.
    Local {
        /// For local pod traffic (MQ-05) and for the node itself (MQ-06).
        cluster: BackendSet,
        /// For everybody else (MQ-07).
        local: BackendSet,
    },
}

impl Path {
    /// The sets that it may choose from.
    pub fn sets(self) -> impl Iterator<Item = BackendSet> {
        let sets = match self {
            Path::FallThrough => [BackendSet::default(); 2],
            Path::Internal(set) | Path::Cluster(set) => [set, BackendSet::default()],
            Path::Local { cluster, local } => [cluster, local],
        };
        sets.into_iter().filter(|set| !set.is_empty())
    }
}

/// A set of the table's backends, in endpoint order (AF-02).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BackendSet {
    /// Where they are.
    block: u32,
    /// How many; 0 is the empty set.
    pub len: u32,
}

impl BackendSet {
    /// Whether there is nothing to choose from.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// One endpoint of a service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend<A: Family> {
    /// The endpoint's address.
    pub address: A::Addr,
    /// Its port.
    pub port: u16,
}

/// What the filter stage does when nothing could be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FilterRule {
    /// NO-01: no endpoint at all; ICMP port unreachable.
    Reject,
    /// NO-02, NO-03: endpoints, but none on this node.
    Drop,
}

/// How local pod traffic is told from other traffic (MQ-02).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detector<A: Family> {
    /// Not at all: nothing is marked for its source, and there is no short circuit for pods.
    None,
    /// By the source address: ClusterCIDR, NodeCIDR.
    Source(Prefix<A>),
    /// By the input interface: the port says whether it matches (BridgeInterface, InterfaceNamePrefix).
    Interface,
}

/// Local addresses that answer on node ports (FE-07).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses<A: Family> {
    /// Every local address, loopback ones or not.
    AllLocal(Loopback),
    /// These only, sorted.
    Only(Box<[A::Addr]>),
}

/// Whether loopback addresses are among the node-port addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loopback {
    /// `localhostNodePorts` is in force.
    Included,
    /// It is not, or the family is IPv6.
    Excluded,
}

/// What of a packet the Service tables look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address: before translation for [`Services::destination`], after it for the filter.
    pub destination: A::Addr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Where the packet came from.
    pub origin: Origin,
    /// Whether the source is an address of the node (addrtype LOCAL).
    pub source_is_local: Locality,
    /// Whether the destination is an address of the node (addrtype LOCAL).
    pub destination_is_local: Locality,
}

/// What the nat stage asks about a packet. A [`Request`] answers for one packet; a proof answers for a whole
/// set of them, and asks again where they differ. Where the packets are addressed is one answer for all.
pub trait Question<A: Family> {
    /// Destination address.
    fn destination(&self) -> A::Addr;
    /// Destination port.
    fn destination_port(&self) -> u16;
    /// Protocol.
    fn protocol(&self) -> Protocol;
    /// Whether the destination is an address of the node.
    fn destination_is_local(&self) -> bool;
    /// Whether the source is in `prefix`.
    fn source_within(&self, prefix: &Prefix<A>) -> bool;
    /// Whether the source is an address of the node.
    fn source_is_local(&self) -> bool;
    /// Whether the packet came from a port whose interface the detector takes for a pod's.
    #[allow(clippy::wrong_self_convention, reason = "where a packet came from is no conversion")]
    fn from_pod_port(&self) -> bool;
}

impl<A: Family> Question<A> for Request<A> {
    fn destination(&self) -> A::Addr {
        self.destination
    }

    fn destination_port(&self) -> u16 {
        self.destination_port
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn destination_is_local(&self) -> bool {
        self.destination_is_local == Locality::Local
    }

    fn source_within(&self, prefix: &Prefix<A>) -> bool {
        prefix.contains(self.source)
    }

    fn source_is_local(&self) -> bool {
        self.source_is_local == Locality::Local
    }

    fn from_pod_port(&self) -> bool {
        self.origin == Origin::PodPort
    }
}

/// Whether an address is one of the node's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locality {
    /// One of the node's own.
    Local,
    /// Somebody else's.
    Remote,
}

/// Where a packet enters the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The node's own stack (OUTPUT): no input interface.
    Host,
    /// A port (PREROUTING) whose interface the detector does not take for a pod's.
    Port,
    /// A port whose interface the detector takes for a pod's.
    PodPort,
}

/// The nat stage's answer. Marks set on the way stay even if nothing is chosen (WK-01).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The frontend that offers the backends and what it offers, never empty. Nothing: no DNAT.
    pub choice: Option<(FrontendId, BackendSet)>,
    /// Whether the connection is marked for masquerading, before the hairpin mark of the chosen backend.
    pub mark: Mark,
}

/// The masquerade mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mark {
    /// Not marked.
    #[default]
    Clear,
    /// To be masqueraded.
    Set,
}

/// Where in the filter a packet is asked about (WK-07).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterStage {
    /// From a port, to the node.
    Input,
    /// From a port, out of a port.
    Forward,
    /// From the host.
    Output,
}

/// The filter's answer, when it is not to let the packet go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterVerdict {
    /// NO-01: reject with ICMP port unreachable.
    NoEndpoints,
    /// NO-02 or NO-03: drop.
    NoLocalEndpoints,
    /// NO-04: drop.
    SourceRange,
}

/// Why a mark was set, in the specification's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkReason {
    /// MQ-01: `masqueradeAll`.
    MasqueradeAll,
    /// MQ-02: the source is not local pod traffic.
    NotFromPod,
    /// MQ-04: external traffic, policy Cluster.
    ExternalCluster,
    /// MQ-06: policy Local, from the node itself.
    FromNode,
}

/// What the walk through the frontends met, for a trace. The forwarder's own walks pass [`Silent`].
pub trait Walk<A: Family> {
    /// A frontend matches the destination.
    fn matched(&mut self, frontend: FrontendId);
    /// The source is in none of the frontend's ranges: on to the next (WK-03).
    fn outside_ranges(&mut self, frontend: FrontendId);
    /// The connection is marked.
    fn marked(&mut self, frontend: FrontendId, reason: MarkReason);
    /// Policy Local is short-circuited to the cluster's endpoints (WK-04).
    fn short_circuit(&mut self, frontend: FrontendId);
    /// The frontend has nothing to choose from: on to the next.
    fn fell_through(&mut self, frontend: FrontendId);
}

/// A [`Walk`] that nobody watches.
pub struct Silent;

impl<A: Family> Walk<A> for Silent {
    fn matched(&mut self, _: FrontendId) {}
    fn outside_ranges(&mut self, _: FrontendId) {}
    fn marked(&mut self, _: FrontendId, _: MarkReason) {}
    fn short_circuit(&mut self, _: FrontendId) {}
    fn fell_through(&mut self, _: FrontendId) {}
}
