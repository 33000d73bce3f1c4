//! The compiled tables: one hash probe for the address frontends of a destination, one for node ports.
//!
//! Frontends stand in small leaves, found by the hash of their key; backends in blocks, found by number. Both
//! are reached through [`Slots`], so a snapshot with one Service changed shares all but a few chunks with the
//! one before it, and whoever holds a snapshot sees all of the old or all of the new state (UP-01).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    Affinity, Backend, BackendSet, Builder, Destination, Detector, FilterRule, FilterStage, FilterVerdict,
    Frontend, FrontendAddress, FrontendKey, FrontendKind, Loopback, Mark, MarkReason, NodePortAddresses,
    Path, Question, Walk,
};
use crate::packet::{Address, Family};
use crate::slots::Slots;

/// Place of a frontend in the tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendId {
    leaf: u32,
    place: u32,
}

/// All frontends and backends of one family, immutable. Made by a [`Builder`]; a copy shares its content.
#[derive(Clone, Debug)]
pub struct Services<A: Family> {
    /// Frontends by the hash of their key. Those that share a key stand side by side, in the order in which
    /// they are tried.
    leaves: Slots<Option<Arc<[Frontend<A>]>>>,
    /// One less than the number of leaves, which is a power of two.
    mask: u32,
    /// How many frontends there are.
    count: usize,
    blocks: Slots<Option<Arc<[Backend<A>]>>>,
    /// By service port: those with affinity.
    sticky: Slots<Option<Arc<Sticky<A>>>>,
    policy: Policy<A>,
}

/// A service port with affinity, and its backends, sorted: what clients may be kept at (AF-03).
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sticky<A: Family> {
    /// [`Affinity::service_port`].
    service_port: u64,
    backends: Vec<Backend<A>>,
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

impl<A: Family> Default for Services<A> {
    fn default() -> Self {
        Builder::default().build()
    }
}

/// How the tables change, for the [`Builder`].
impl<A: Family> Services<A> {
    pub(super) fn empty(policy: Policy<A>) -> Self {
        Services {
            leaves: Slots::default(),
            mask: 0,
            count: 0,
            blocks: Slots::default(),
            sticky: Slots::default(),
            policy,
        }
    }

    pub(super) fn set_policy(&mut self, policy: Policy<A>) {
        self.policy = policy;
    }

    pub(super) fn set_block(&mut self, block: u32, backends: Option<Arc<[Backend<A>]>>) {
        *self.blocks.get_mut(block) = backends;
    }

    /// Adds a frontend behind those with the same key.
    pub(super) fn insert(&mut self, frontend: Frontend<A>) {
        self.count += 1;
        if self.count > MOST_IN_A_LEAF * (self.mask as usize + 1) {
            self.spread();
        }
        self.stick(&frontend);
        self.put(frontend);
    }

    fn put(&mut self, frontend: Frontend<A>) {
        let leaf = self.leaves.get_mut(self.hash(&frontend.key));
        let old = leaf.as_deref().unwrap_or_default();
        let same = old.iter().rposition(|other| other.key == frontend.key);
        let (before, behind) = old.split_at(same.map_or(old.len(), |place| place + 1));
        *leaf = Some(before.iter().cloned().chain([frontend]).chain(behind.iter().cloned()).collect());
    }

    /// Four times as many leaves: done rarely, each time for four times as many frontends.
    fn spread(&mut self) {
        self.mask = (self.mask + 1) * 4 - 1;
        let old = std::mem::take(&mut self.leaves);
        for frontend in old.iter().filter_map(|(_, leaf)| leaf.as_deref()).flatten() {
            self.put(frontend.clone());
        }
    }

    /// Removes the frontends of a service port with this key.
    pub(super) fn remove(&mut self, service_port: u32, key: &FrontendKey<A>) {
        let leaf = self.leaves.get_mut(self.hash(key));
        let old = leaf.as_deref().unwrap_or_default();
        let kept = old.iter().filter(|other| other.key != *key || other.service_port != service_port);
        let kept: Arc<[_]> = kept.cloned().collect();
        self.count -= old.len() - kept.len();
        *leaf = Some(kept).filter(|kept| !kept.is_empty());
    }

    /// Notes where clients of the frontend may be kept.
    fn stick(&mut self, frontend: &Frontend<A>) {
        let Some(Affinity { service_port, .. }) = frontend.affinity else { return };
        let mut backends = Vec::new();
        for set in frontend.path.sets() {
            backends.extend_from_slice(self.backends(set));
        }
        let sticky = self.sticky.get_mut(frontend.service_port);
        backends.extend(sticky.iter().flat_map(|sticky| &sticky.backends));
        backends.sort_unstable();
        backends.dedup();
        *sticky = Some(Arc::new(Sticky { service_port, backends }));
    }

    /// The service port has no affinity any more.
    pub(super) fn unstick(&mut self, service_port: u32) {
        if self.sticky.get(service_port).is_some_and(Option::is_some) {
            *self.sticky.get_mut(service_port) = None;
        }
    }

    #[inline]
    fn hash(&self, key: &FrontendKey<A>) -> u32 {
        hash(key) as u32 & self.mask
    }
}

/// Not keyed: the keys are what the cluster's objects say, no packet chooses them, and the same objects give
/// the same places.
#[inline]
fn hash<A: Family>(key: &FrontendKey<A>) -> u64 {
    fn fold(one: u64, other: u64) -> u64 {
        let product = u128::from(one) * u128::from(other);
        product as u64 ^ (product >> 64) as u64
    }
    let (kind, address) = match key.address {
        FrontendAddress::Address(address) => (1, address.bits()),
        FrontendAddress::NodePort => (2, 0),
    };
    let rest = u64::from(key.port) | u64::from(key.protocol.0) << 16 | kind << 24;
    // The digits of pi.
    let low = fold(address as u64 ^ 0x243f_6a88_85a3_08d3, rest ^ 0x1319_8a2e_0370_7344);
    fold(low ^ (address >> 64) as u64, 0xa409_3822_299f_31d0)
}

/// Frontends for each leaf, on average: more, and there will be more leaves.
const MOST_IN_A_LEAF: usize = 2;

impl<A: Family> Services<A> {
    /// A frontend by its place.
    ///
    /// # Panics
    /// If it is not a place of these tables.
    #[inline]
    pub fn frontend(&self, id: FrontendId) -> &Frontend<A> {
        &self.leaf(id.leaf)[id.place as usize]
    }

    /// All frontends, by key; those that share one in the order in which they are tried.
    pub fn frontends(&self) -> impl Iterator<Item = (FrontendId, &Frontend<A>)> {
        let mut all = Vec::with_capacity(self.count);
        for (leaf, frontends) in self.leaves.iter() {
            let places = frontends.as_deref().unwrap_or_default().iter().zip(0..);
            all.extend(places.map(|(frontend, place)| (FrontendId { leaf, place }, frontend)));
        }
        all.sort_by_key(|(_, frontend)| frontend.key); // stable: the order within a key stays
        all.into_iter()
    }

    /// The backends of a set, in endpoint order.
    ///
    /// # Panics
    /// If it is not a set of these tables.
    #[inline]
    pub fn backends(&self, set: BackendSet) -> &[Backend<A>] {
        if set.is_empty() {
            return &[];
        }
        let block = self.blocks.get(set.block).and_then(Option::as_deref).unwrap_or_default();
        assert!(block.len() == set.len as usize, "a set of other tables");
        block
    }

    /// What holds for all frontends.
    pub fn policy(&self) -> &Policy<A> {
        &self.policy
    }

    /// The backends that service ports with affinity have here and no longer have in `newer`: service port
    /// ([`Affinity::service_port`]) and backend. Their clients are forgotten (AF-02).
    pub fn departed(&self, newer: &Services<A>) -> Vec<(u64, Backend<A>)> {
        struct Backends<'a, A: Family> {
            old: &'a [Backend<A>],
            new: &'a [Backend<A>],
        }
        let nothing = || Backends { old: &[], new: &[] };
        let mut changed: BTreeMap<u64, Backends<'_, A>> = BTreeMap::new();
        for (old, new) in self.sticky.unshared(&newer.sticky) {
            let (old, new) = (old.and_then(Option::as_ref), new.and_then(Option::as_ref));
            if old == new {
                continue;
            }
            if let Some(old) = old {
                changed.entry(old.service_port).or_insert_with(nothing).old = &old.backends;
            }
            if let Some(new) = new {
                changed.entry(new.service_port).or_insert_with(nothing).new = &new.backends;
            }
        }
        let mut departed = Vec::new();
        for (service_port, Backends { old, new }) in changed {
            let gone = old.iter().filter(|backend| new.binary_search(backend).is_err());
            departed.extend(gone.map(|backend| (service_port, *backend)));
        }
        departed
    }

    #[inline]
    fn leaf(&self, leaf: u32) -> &[Frontend<A>] {
        self.leaves.get(leaf).and_then(Option::as_deref).unwrap_or_default()
    }

    /// The nat stage (WK-01 to WK-04): the frontends that match the destination are tried in order (FE-06)
    /// until one has backends to choose from.
    pub fn destination(&self, request: &impl Question<A>, walk: &mut impl Walk<A>) -> Destination {
        let mut mark = Mark::Clear;
        for (id, frontend) in self.frontends_for(request) {
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

    /// The frontends that match a packet's destination, in the order in which they are tried (FE-06): those of
    /// its address, then node ports, if they answer on it (FE-07).
    pub fn frontends_for(
        &self,
        request: &impl Question<A>,
    ) -> impl Iterator<Item = (FrontendId, &Frontend<A>)> {
        let addressed = self.matching(FrontendAddress::Address(request.destination()), request);
        addressed.chain(self.matching_node_ports(request))
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
        let mut addressed = self.matching(FrontendAddress::Address(request.destination()), request);
        let guarded = addressed.any(|(_, frontend)| {
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
        let addressed = || self.matching(FrontendAddress::Address(request.destination()), request);
        let (internal, external) = match stage {
            FilterStage::Input => (false, true),
            FilterStage::Forward => (true, true),
            FilterStage::Output => (true, false),
        };
        let rule = |wanted: fn(FrontendKind) -> bool| {
            addressed()
                .filter(|(_, frontend)| wanted(frontend.kind))
                .find_map(|(_, frontend)| frontend.filter)
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
                    .matching(FrontendAddress::NodePort, request)
                    .find_map(|(_, frontend)| frontend.filter);
            }
        }
        verdict.map(|rule| match rule {
            FilterRule::Reject => FilterVerdict::NoEndpoints,
            FilterRule::Drop => FilterVerdict::NoLocalEndpoints,
        })
    }

    /// The frontends of a key, in the order in which they are tried.
    #[inline]
    fn matching(
        &self,
        address: FrontendAddress<A>,
        request: &impl Question<A>,
    ) -> impl Iterator<Item = (FrontendId, &Frontend<A>)> {
        let key = FrontendKey { address, port: request.destination_port(), protocol: request.protocol() };
        let leaf = self.hash(&key);
        let places = self.leaf(leaf).iter().zip(0..);
        let matching = places.skip_while(move |(frontend, _)| frontend.key != key);
        let matching = matching.take_while(move |(frontend, _)| frontend.key == key);
        matching.map(move |(frontend, place)| (FrontendId { leaf, place }, frontend))
    }

    fn matching_node_ports(
        &self,
        request: &impl Question<A>,
    ) -> impl Iterator<Item = (FrontendId, &Frontend<A>)> {
        let answers = request.destination_is_local()
            && match &self.policy.node_ports {
                NodePortAddresses::AllLocal(Loopback::Included) => true,
                NodePortAddresses::AllLocal(Loopback::Excluded) => !request.destination().is_loopback(),
                NodePortAddresses::Only(addresses) => addresses.binary_search(&request.destination()).is_ok(),
            };
        let matching = answers.then(|| self.matching(FrontendAddress::NodePort, request));
        matching.into_iter().flatten()
    }
}
