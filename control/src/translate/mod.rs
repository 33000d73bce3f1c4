//! Cluster state into data plane tables: all of services.md but the walk itself (OBJ, FE, EP, NO, MQ, AF).
//!
//! ```text
//! Service + slices ─ gather ─ categorise ─→ ServicePortRules ─ claim (FE-08) ─→ Services
//!                     (endpoints.rs)          (rules.rs)      (translator.rs)   (data plane)
//! ```
//!
//! A service port's rules depend on its Service, the Service's slices and the node; only who owns a
//! frontend that two Services claim is decided across them. So a change is translated by itself: the
//! [`Translator`] keeps what it made, makes the changed Services' rules anew, and changes the tables where
//! these differ (UP-01). There is no other way: [`translate`] is the change from nothing to everything, and the
//! result is a function of the objects alone, whatever way led to them.

pub mod endpoints;
#[cfg(test)]
mod laws;
pub mod names;
mod node;
mod ports;
mod rules;
mod slices;
pub mod stale;
#[cfg(test)]
mod tests;
mod translator;

use std::net::IpAddr;
use std::sync::Arc;

use pollux_dataplane::packet::Family;
use pollux_dataplane::service::{FrontendAddress, FrontendKey, Services};

use crate::cluster::{Cluster, NamespacedName, Service, ServiceType, TrafficPolicy};
use crate::config::ProxyConfig;
pub use crate::config::proxy::LocalhostNodePorts;
use crate::problem::Problem;
pub use names::{Chain, ServicePortId, endpoint_name};
pub use ports::ServicePorts;
pub use rules::ServicePortRules;
pub use slices::{Changes, SliceIndex};
pub use translator::Translator;

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
#[derive(Clone, Debug)]
pub struct Translation<A: Family> {
    /// The tables. A frontend's `service_port` is a place in `ports`.
    pub services: Services<A>,
    /// The service ports.
    pub ports: ServicePorts<A>,
    /// Counts the updates that changed which frontends there are.
    pub frontends: u64,
    /// Counts the updates that changed where UDP flows may stay (UP-03).
    pub udp: u64,
    /// The health checks that this node answers (UP-05), by Service.
    pub health_checks: Arc<[HealthCheck]>,
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
    let mut slices = SliceIndex::default();
    let services = slices.update(input.cluster, &Changes::all(input.cluster));
    Translator::default().update(input, &slices, &services)
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
