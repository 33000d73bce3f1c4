//! One service port in one family: its endpoints and what each of its frontends decides (FE-01 to FE-04,
//! WK-02, WK-03, NO-01 to NO-04). Depends on nothing but the Service, its slices and the node.

use std::sync::Arc;
use std::time::Duration;

use pollux_dataplane::packet::{Family, Prefix, Protocol};
use pollux_dataplane::service::{
    Affinity, Backend, BackendSet, Builder, FilterRule, Frontend, FrontendAddress, FrontendKey, FrontendKind,
    Path,
};

use super::Input;
use super::endpoints::{Availability, Endpoint, EndpointSets, Topology, Uses, categorise};
use super::names::ServicePortId;
use crate::cluster::{Service, ServicePort, TrafficPolicy};

/// A service port, ready to be compiled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePortRules<A: Family> {
    /// Whose rules they are.
    pub id: ServicePortId,
    /// Its place among the ports of its Service.
    pub place: usize,
    /// What it may choose from.
    pub endpoints: EndpointSets<A>,
    /// UDP: all its endpoints that serve, sorted, wherever they are and terminating or not: where its flows may
    /// stay (UP-03). Empty for other protocols, whose connections end by themselves (UP-02).
    pub serving: Vec<Backend<A>>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// Its frontends, in the order in which they are tried.
    pub frontends: Vec<(FrontendKey<A>, FrontendKind)>,
    /// The sources that enter a load-balancer IP; none is everybody (NO-04).
    pub sources: Option<Arc<[Prefix<A>]>>,
    /// How long a client stays with its endpoint (AF-01).
    pub affinity: Option<Duration>,
}

impl<A: Family> ServicePortRules<A> {
    /// The rules of the port of `service` at `place`, whose clusterIP in the family is `cluster_ip`.
    pub(super) fn new(
        input: &Input<'_>,
        service: &Service,
        cluster_ip: A::Addr,
        place: usize,
        endpoints: &[Endpoint<'_, A>],
        topology: Topology<'_>,
    ) -> Self {
        let port = &service.ports[place];
        let frontends = frontends(service, cluster_ip, port);
        let externally_accessible = frontends.len() > 1;
        let uses = Uses {
            cluster: service.internal_policy == TrafficPolicy::Cluster || externally_accessible,
            local: service.internal_policy == TrafficPolicy::Local
                || service.external_policy == TrafficPolicy::Local && externally_accessible,
        };
        let mut serving = Vec::new();
        if port.protocol == Protocol::UDP {
            let all = endpoints.iter().filter(|endpoint| endpoint.state.serving);
            serving.extend(all.map(|endpoint| endpoint.backend));
            serving.sort_unstable();
        }
        let endpoints = categorise(endpoints, uses, topology);
        ServicePortRules {
            id: ServicePortId {
                service: service.key.clone(),
                port_name: port.name.clone(),
                protocol: port.protocol,
            },
            place,
            serving,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            sources: match endpoints.availability {
                Availability::Some => sources(input, service),
                Availability::None => None,
            },
            affinity: service.affinity,
            frontends,
            endpoints,
        }
    }

    /// Adds the backends to the tables; frontends are then made with [`ServicePortRules::frontend`].
    pub(super) fn add_backends(&self, builder: &mut Builder<A>) -> Sets {
        let cluster = builder.backends(self.endpoints.cluster.iter().copied());
        let local = match self.endpoints.local == self.endpoints.cluster {
            true => cluster,
            false => builder.backends(self.endpoints.local.iter().copied()),
        };
        Sets { cluster, local }
    }

    /// The number under which its clients are kept, and for how long (AF-01, AF-04).
    pub(super) fn affinity(&self) -> Option<Affinity> {
        self.affinity.map(|timeout| Affinity { timeout, service_port: self.id.number() })
    }

    /// One of the frontends, as the tables have it.
    pub(super) fn frontend(
        &self,
        key: FrontendKey<A>,
        kind: FrontendKind,
        sets: Sets,
        service_port: u32,
        affinity: Option<Affinity>,
    ) -> Frontend<A> {
        Frontend {
            key,
            kind,
            service_port,
            sources: self.sources.clone().filter(|_| kind == FrontendKind::LoadBalancer),
            path: self.path(kind, sets),
            filter: self.filter(kind),
            affinity,
        }
    }

    /// What the nat stage does (WK-02, WK-03).
    fn path(&self, kind: FrontendKind, Sets { cluster, local }: Sets) -> Path {
        if self.endpoints.availability == Availability::None {
            return Path::FallThrough;
        }
        if kind == FrontendKind::ClusterIp {
            let set = match self.internal_policy {
                TrafficPolicy::Cluster => cluster,
                TrafficPolicy::Local => local,
            };
            return match set.is_empty() {
                true => Path::FallThrough,
                false => Path::Internal(set),
            };
        }
        match self.external_policy {
            TrafficPolicy::Cluster => Path::Cluster(cluster),
            TrafficPolicy::Local => Path::Local { cluster, local },
        }
    }

    /// What the filter stage does to what got no endpoint (NO-01 to NO-03).
    fn filter(&self, kind: FrontendKind) -> Option<FilterRule> {
        let policy = match kind {
            FrontendKind::ClusterIp => self.internal_policy,
            _ => self.external_policy,
        };
        match (self.endpoints.availability, policy) {
            (Availability::None, _) => Some(FilterRule::Reject),
            (Availability::Some, TrafficPolicy::Local) if self.endpoints.local.is_empty() => {
                Some(FilterRule::Drop)
            }
            (Availability::Some, _) => None,
        }
    }
}

/// A service port's backends in the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sets {
    cluster: BackendSet,
    local: BackendSet,
}

impl Sets {
    /// Each set once.
    pub(super) fn iter(self) -> impl Iterator<Item = BackendSet> {
        let local = (self.local != self.cluster).then_some(self.local);
        std::iter::once(self.cluster).chain(local)
    }
}

/// FE-01 to FE-04, in the order of FE-06.
fn frontends<A: Family>(
    service: &Service,
    cluster_ip: A::Addr,
    port: &ServicePort,
) -> Vec<(FrontendKey<A>, FrontendKind)> {
    let key = |address, number| FrontendKey { address, port: number, protocol: port.protocol };
    let addressed = |address| key(FrontendAddress::Address(address), port.port);
    let mut frontends = vec![(addressed(cluster_ip), FrontendKind::ClusterIp)];
    let external = service.external_ips::<A>().map(|ip| (addressed(ip), FrontendKind::ExternalIp));
    let balancers = service.load_balancer_ips::<A>().map(|ip| (addressed(ip), FrontendKind::LoadBalancer));
    for frontend in external.chain(balancers) {
        // An address that is listed twice is one frontend.
        if !frontends.contains(&frontend) {
            frontends.push(frontend);
        }
    }
    if let Some(node_port) = port.node_port {
        frontends.push((key(FrontendAddress::NodePort, node_port), FrontendKind::NodePort));
    }
    frontends
}

/// The sources that enter a Service's load-balancer IPs (NO-04): none is everybody.
fn sources<A: Family>(input: &Input<'_>, service: &Service) -> Option<Arc<[Prefix<A>]>> {
    let mut sources: Vec<Prefix<A>> =
        service.source_ranges.iter().filter_map(|range| range.of::<A>()).collect();
    if sources.is_empty() || sources.iter().any(|range| range.len() == 0) {
        return None;
    }
    let node_ip = input.node_ip::<A>();
    if node_ip.is_some_and(|ip| sources.iter().any(|range| range.contains(ip))) {
        // The node reaches its own VIP from the VIP, where that is a local address.
        sources.extend(service.load_balancer_ips::<A>().map(Prefix::host));
    }
    Some(sources.into())
}
