//! Cluster state into data plane tables: all of services.md but the walk itself (OBJ, FE, EP, NO, MQ, AF).
//!
//! ```text
//! Service + slices ─ gather ─ categorise ─→ ServicePortRules ─ claim (FE-08) ─→ Services
//!                     (endpoints.rs)          (rules.rs)          (here)        (data plane)
//! ```
//!
//! A service port's rules depend on its Service, the Service's slices and the node; only who owns a
//! frontend that two Services claim is decided across them. The result is a pure function of the input: the
//! same objects give the same tables, in the same order.

pub mod endpoints;
pub mod names;
mod node;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use pollux_dataplane::packet::Family;
use pollux_dataplane::service::{Builder, FrontendAddress, FrontendKey, Services};

use crate::cluster::{Cluster, EndpointSlice, NamespacedName, Service, ServiceType, TrafficPolicy};
use crate::config::ProxyConfig;
pub use crate::config::proxy::LocalhostNodePorts;
use crate::problem::Problem;
use endpoints::{Place, Topology, gather};
pub use names::{Chain, ServicePortId, endpoint_name};
pub use rules::ServicePortRules;

/// What is translated, and for which node.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The objects.
    pub cluster: &'a Cluster,
    /// kube-proxy's configuration.
    pub proxy: &'a ProxyConfig,
    /// The node's name.
    pub node_name: &'a str,
    /// The label value that does not exclude a Service (OBJ-02).
    pub service_proxy_name: Option<&'a str>,
    /// The addresses of the node's interfaces, both families; loopback ones need not be listed.
    pub local_addresses: &'a [IpAddr],
}

/// The tables of one family, and what is needed beside them.
#[derive(Debug)]
pub struct Translation<A: Family> {
    /// The tables. A frontend's `service_port` is a place in `ports`.
    pub services: Services<A>,
    /// The service ports, by Service and then in the object's order.
    pub ports: Vec<ServicePortRules<A>>,
    /// The health checks that this node answers (UP-05).
    pub health_checks: Vec<HealthCheck>,
    /// Whether 127.0.0.0/8 is guarded against other nodes (NO-07).
    pub localhost_node_ports: LocalhostNodePorts,
    /// The masquerade mark (MQ-08).
    pub mark: u32,
    /// Conflicts and overlaps that were decided (FE-08, OBJ-05).
    pub reports: Vec<Problem>,
}

/// A `healthCheckNodePort` (UP-05).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The Service.
    pub service: NamespacedName,
    /// The port.
    pub port: u16,
    /// Distinct addresses of its ready endpoints on this node, over all its ports.
    pub local_endpoints: usize,
}

/// Translates the input for one family.
pub fn translate<A: Family>(input: &Input<'_>) -> Translation<A> {
    let slices = slices_by_service(input.cluster);
    let topology =
        Topology { node: input.node_name, zone: input.node().and_then(|node| node.zone.as_deref()) };
    let mut ports = Vec::new();
    let mut owners = Vec::new();
    let mut health_checks = Vec::new();
    let mut reports = Vec::new();
    for service in input.cluster.services.values().filter(|service| input.serves(service)) {
        let Some(cluster_ip) = service.cluster_ip::<A>() else {
            continue; // OBJ-07
        };
        let slices = slices.get(&service.key).map_or(&[][..], Vec::as_slice);
        let mut local_ready = BTreeSet::new();
        for port in &service.ports {
            let mut overlaps = Vec::new();
            let endpoints = gather::<A>(slices, &port.name, port.protocol, topology, &mut overlaps);
            reports.extend(overlaps.iter().map(|overlap| report_overlap(service, overlap)));
            let ready_here = |endpoint: &&endpoints::Endpoint<'_, A>| {
                endpoint.place == Place::Here && endpoint.state.ready
            };
            local_ready.extend(endpoints.iter().filter(ready_here).map(|endpoint| endpoint.backend.address));
            ports.push(ServicePortRules::new(input, service, cluster_ip, port, &endpoints, topology));
            owners.push(service);
        }
        health_checks.extend(health_check(service, local_ready.len()));
    }
    let services = compile(input, &ports, &owners, &mut reports);
    Translation {
        services,
        ports,
        health_checks,
        localhost_node_ports: input.localhost_node_ports::<A>(),
        mark: node::mark(input.proxy),
        reports,
    }
}

impl Input<'_> {
    /// OBJ-02. (A Service without a clusterIP of the family is left out later, OBJ-07.)
    pub(crate) fn serves(&self, service: &Service) -> bool {
        let ours = match &service.proxy_name {
            None => true,
            Some(name) => self.service_proxy_name == Some(name),
        };
        ours && service.kind != ServiceType::ExternalName
    }
}

/// The slices of each Service, in the order of their names (OBJ-02, OBJ-04).
pub(crate) fn slices_by_service(cluster: &Cluster) -> HashMap<&NamespacedName, Vec<&EndpointSlice>> {
    let mut slices: HashMap<_, Vec<_>> = HashMap::with_capacity(cluster.services.len());
    for slice in cluster.slices.values().filter(|slice| !slice.headless) {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice);
        }
    }
    slices
}

/// Gives each frontend to one service port (FE-08) and makes the tables.
fn compile<A: Family>(
    input: &Input<'_>,
    ports: &[ServicePortRules<A>],
    owners: &[&Service],
    reports: &mut Vec<Problem>,
) -> Services<A> {
    let mut builder = Builder::new(input.policy::<A>());
    // The oldest Service first, one that has no time of creation last; then by name. Stable: the ports of a
    // Service stay in their order.
    let mut order: Vec<usize> = (0..ports.len()).collect();
    order.sort_by_key(|at| (owners[*at].created.is_none(), owners[*at].created));
    let mut claims: HashMap<FrontendKey<A>, usize> = HashMap::with_capacity(ports.len());
    for at in order {
        let rules = &ports[at];
        let sets = rules.add_backends(&mut builder);
        for &(key, kind) in &rules.frontends {
            match claims.entry(key) {
                Entry::Occupied(owner) if *owner.get() != at => {
                    reports.push(report_conflict(key, &rules.id, &ports[*owner.get()].id));
                    continue;
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(claim) => {
                    claim.insert(at);
                }
            }
            let service_port = u32::try_from(at).expect("fewer than 2^32 service ports");
            builder.frontend(rules.frontend(key, kind, sets, service_port));
        }
    }
    builder.build()
}

fn health_check(service: &Service, local_endpoints: usize) -> Option<HealthCheck> {
    let wanted = service.kind == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    let port = service.health_check_node_port.filter(|_| wanted)?;
    Some(HealthCheck { service: service.key.clone(), port, local_endpoints })
}

fn report_conflict<A: Family>(key: FrontendKey<A>, loser: &ServicePortId, owner: &ServicePortId) -> Problem {
    let FrontendKey { address, port, protocol } = key;
    let frontend = match address {
        FrontendAddress::Address(address) => format!("address {address} port {port}/{protocol}"),
        FrontendAddress::NodePort => format!("node port {port}/{protocol}"),
    };
    Problem {
        file: None,
        object: format!("services/{loser}"),
        text: format!("{frontend} belongs to services/{owner}, the older one"),
    }
}

fn report_overlap<A: Family>(service: &Service, overlap: &endpoints::Overlap<'_, A>) -> Problem {
    Problem {
        file: None,
        object: format!("services/{}", service.key),
        text: format!(
            "endpoint {} is in endpointslices/{} and in endpointslices/{}: the last is taken",
            endpoint_name(overlap.backend),
            overlap.left.key,
            overlap.taken.key,
        ),
    }
}
