//! The compiled tables: one hash probe for the address frontends of a destination, one for node ports.

use hashbrown::HashMap;

use super::{
    Affinity, Backend, BackendSet, Destination, Detector, FilterRule, FilterStage, FilterVerdict, Frontend,
    FrontendAddress, FrontendKey, FrontendKind, Loopback, Mark, MarkReason, NodePortAddresses, Path,
    Question, Walk,
};
use crate::packet::{Address, Family};

/// Place of a frontend in the tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendId(pub u32);

/// All frontends and backends of one family, immutable. Made by a [`Builder`].
#[derive(Debug)]
pub struct Services<A: Family> {
    /// Frontends that share a key stand side by side, in the order in which they are tried.
    frontends: Vec<Frontend<A>>,
    index: HashMap<FrontendKey<A>, (u32, u32)>,
    backends: Vec<Backend<A>>,
    policy: Policy<A>,
}

/// Collects frontends and backends.
#[derive(Debug, Default)]
pub struct Builder<A: Family> {
    frontends: Vec<Frontend<A>>,
    backends: Vec<Backend<A>>,
    policy: Policy<A>,
}

/// What holds for all frontends of a family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy<A: Family> {
    /// How local pod traffic is told from other traffic.
    pub detector: Detector<A>,
    /// MQ-01.
    pub internal_mark: InternalMark,
    /// FE-07.
    pub node_ports: NodePortAddresses<A>,
}

/// When traffic to a clusterIP is marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum InternalMark {
    /// MQ-02: by the detector.
    #[default]
    ByDetector,
    /// MQ-01: always.
    Always,
}

impl<A: Family> Default for Policy<A> {
    fn default() -> Self {
        Policy {
            detector: Detector::None,
            internal_mark: InternalMark::ByDetector,
            node_ports: NodePortAddresses::AllLocal(Loopback::Excluded),
        }
    }
}

impl<A: Family> Builder<A> {
    /// Nothing yet, under `policy`.
    pub fn new(policy: Policy<A>) -> Self {
        Builder { frontends: Vec::new(), backends: Vec::new(), policy }
    }

    /// Adds a set of backends, in endpoint order.
    pub fn backends(&mut self, backends: impl IntoIterator<Item = Backend<A>>) -> BackendSet {
        let start = self.backends.len();
        self.backends.extend(backends);
        BackendSet { start: start as u32, len: (self.backends.len() - start) as u32 }
    }

    /// Adds a frontend. Of those that share a key the one added first is tried first.
    pub fn frontend(&mut self, frontend: Frontend<A>) {
        self.frontends.push(frontend);
    }

    /// The finished tables.
    pub fn build(self) -> Services<A> {
        let Builder { mut frontends, backends, policy } = self;
        frontends.sort_by_key(|frontend| frontend.key); // stable: the order within a key stays
        let mut index = HashMap::with_capacity(frontends.len());
        for (at, frontend) in frontends.iter().enumerate() {
            index.entry(frontend.key).or_insert((at as u32, at as u32)).1 = at as u32 + 1;
        }
        Services { frontends, index, backends, policy }
    }
}

impl<A: Family> Default for Services<A> {
    fn default() -> Self {
        Builder::default().build()
    }
}

impl<A: Family> Services<A> {
    /// A frontend by its place.
    pub fn frontend(&self, id: FrontendId) -> &Frontend<A> {
        &self.frontends[id.0 as usize]
    }

    /// All frontends, by key.
    pub fn frontends(&self) -> impl Iterator<Item = (FrontendId, &Frontend<A>)> {
        self.frontends.iter().enumerate().map(|(at, frontend)| (FrontendId(at as u32), frontend))
    }

    /// The backends of a set, in endpoint order.
    pub fn backends(&self, set: BackendSet) -> &[Backend<A>] {
        &self.backends[set.start as usize..][..set.len as usize]
    }

    /// What holds for all frontends.
    pub fn policy(&self) -> &Policy<A> {
        &self.policy
    }

    /// The nat stage (WK-01 to WK-04): the frontends that match the destination are tried in order (FE-06)
    /// until one has backends to choose from.
    pub fn destination(&self, request: &impl Question<A>, walk: &mut impl Walk<A>) -> Destination {
        let mut mark = Mark::Clear;
        let addressed = self.range(FrontendAddress::Address(request.destination()), request);
        for at in addressed.chain(self.node_port_range(request)) {
            let id = FrontendId(at);
            let frontend = self.frontend(id);
            walk.matched(id);
            if let Some(ranges) = &frontend.sources
                && !ranges.iter().any(|range| request.source_within(range))
            {
                walk.outside_ranges(id);
                continue;
            }
            let set = self.enter(frontend, id, request, &mut mark, walk);
            if !set.is_empty() {
                return Destination { choice: Some((id, set)), mark };
            }
            walk.fell_through(id);
        }
        Destination { choice: None, mark }
    }

    /// One frontend's chain: marks, and the set to choose from.
    fn enter(
        &self,
        frontend: &Frontend<A>,
        id: FrontendId,
        request: &impl Question<A>,
        mark: &mut Mark,
        walk: &mut impl Walk<A>,
    ) -> BackendSet {
        let mut set_mark = |reason| {
            *mark = Mark::Set;
            walk.marked(id, reason);
        };
        match frontend.path {
            Path::FallThrough => BackendSet::default(),
            Path::Internal(set) => {
                if self.policy.internal_mark == InternalMark::Always {
                    set_mark(MarkReason::MasqueradeAll);
                } else if self.is_pod_traffic(request) == Some(false) {
                    set_mark(MarkReason::NotFromPod);
                }
                set
            }
            Path::Cluster(set) => {
                set_mark(MarkReason::ExternalCluster);
                set
            }
            Path::Local { cluster, local } => {
                if self.is_pod_traffic(request) == Some(true) {
                    walk.short_circuit(id);
                    cluster
                } else if request.source_is_local() {
                    set_mark(MarkReason::FromNode);
                    walk.short_circuit(id);
                    cluster
                } else {
                    local
                }
            }
        }
    }

    /// Whether the packet is local pod traffic; nothing without a detector.
    fn is_pod_traffic(&self, request: &impl Question<A>) -> Option<bool> {
        match self.policy.detector {
            Detector::None => None,
            Detector::Source(pods) => Some(request.source_within(&pods)),
            Detector::Interface => Some(request.from_pod_port()),
        }
    }

    /// The choice that affinity makes for a client among the backends of `set`, which `frontend` offers
    /// (AF-02): the first in endpoint order that `fresh` says the client was at within the timeout. Nothing:
    /// it is a free choice (EP-06).
    pub fn sticky(
        &self,
        frontend: FrontendId,
        set: BackendSet,
        mut fresh: impl FnMut(&Backend<A>, Affinity) -> bool,
    ) -> Option<u32> {
        let affinity = self.frontend(frontend).affinity?;
        let place = self.backends(set).iter().position(|backend| fresh(backend, affinity))?;
        Some(place as u32)
    }

    /// The firewall of source ranges (NO-04): it stands before everything else of the filter stage, also
    /// before marked packets are accepted. `request` has the destination after translation.
    pub fn firewall(&self, request: &impl Question<A>) -> Option<FilterVerdict> {
        let mut addressed = self.range(FrontendAddress::Address(request.destination()), request);
        let guarded = addressed.any(|at| {
            let frontend = self.frontend(FrontendId(at));
            // What has passed the nat stage and still has this destination was let in by no range.
            frontend.kind == FrontendKind::LoadBalancer && frontend.sources.is_some()
        });
        guarded.then_some(FilterVerdict::SourceRange)
    }

    /// The filter stage (WK-07), for a packet whose connection has not seen a reply. `request` has the
    /// destination after translation. A marked packet that is forwarded only meets the
    /// [`firewall`](Services::firewall): then it is accepted.
    pub fn filter(&self, stage: FilterStage, request: &impl Question<A>) -> Option<FilterVerdict> {
        if let Some(verdict) = self.firewall(request) {
            return Some(verdict);
        }
        let addressed = || self.range(FrontendAddress::Address(request.destination()), request);
        let (internal, external) = match stage {
            FilterStage::Input => (false, true),
            FilterStage::Forward => (true, true),
            FilterStage::Output => (true, false),
        };
        let rule = |wanted: fn(FrontendKind) -> bool| {
            addressed()
                .map(|at| self.frontend(FrontendId(at)))
                .filter(|frontend| wanted(frontend.kind))
                .find_map(|frontend| frontend.filter)
        };
        let mut verdict = None;
        if internal {
            verdict = rule(|kind| kind == FrontendKind::ClusterIp);
        }
        if external && verdict.is_none() {
            verdict = rule(|kind| kind != FrontendKind::ClusterIp);
            if verdict.is_none() && request.destination_is_local() {
                // NO-05: on every local address, whatever `nodePortAddresses` says.
                verdict = self
                    .range(FrontendAddress::NodePort, request)
                    .find_map(|at| self.frontend(FrontendId(at)).filter);
            }
        }
        verdict.map(|rule| match rule {
            FilterRule::Reject => FilterVerdict::NoEndpoints,
            FilterRule::Drop => FilterVerdict::NoLocalEndpoints,
        })
    }

    fn range(&self, address: FrontendAddress<A>, request: &impl Question<A>) -> std::ops::Range<u32> {
        let key = FrontendKey { address, port: request.destination_port(), protocol: request.protocol() };
        self.index.get(&key).map_or(0..0, |&(start, end)| start..end)
    }

    fn node_port_range(&self, request: &impl Question<A>) -> std::ops::Range<u32> {
        let answers = request.destination_is_local()
            && match &self.policy.node_ports {
                NodePortAddresses::AllLocal(Loopback::Included) => true,
                NodePortAddresses::AllLocal(Loopback::Excluded) => !request.destination().is_loopback(),
                NodePortAddresses::Only(addresses) => addresses.binary_search(&request.destination()).is_ok(),
            };
        if answers { self.range(FrontendAddress::NodePort, request) } else { 0..0 }
    }
}
