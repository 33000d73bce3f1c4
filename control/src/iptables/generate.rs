//! The rules that kube-proxy 1.36 would write for a cluster on a node: its chains, names, comments and order,
//! as `iptables-save` shows them afterwards.
//!
//! ```text
//! objects ─ gather, categorise (EP) ─→ service ports ─ service_port.rs ─┐
//! configuration, Node ──────────────────────────────── fixed.rs ────────┴─→ filter, nat, mangle
//! ```
//!
//! Which endpoints a service port has is asked of [`crate::translate::endpoints`]; everything else is written
//! from the objects' own fields and not from the compiled tables, so that a mistake in compiling them makes
//! the two differ. What kube-proxy does in no defined order is done in one here: service ports by the age of
//! their Service (FE-08), node addresses by number.

mod fixed;
mod service_port;
mod write;

use pollux_dataplane::packet::{Family, Prefix};

use super::{Interface, Match, Ruleset, Test};
use crate::cluster::{Node, Service, ServicePort, TrafficPolicy};
use crate::config::proxy::DetectLocal;
use crate::translate::endpoints::{Endpoint, Topology, Uses, categorise, gather};
use crate::translate::{Changes, Input, SliceIndex};
use fixed::Tables;
use service_port::{Port, is_external};

/// kube-proxy writes no comments about endpoints when a family has more of them than this, over all service
/// ports and whatever their conditions.
const LARGE_CLUSTER: usize = 1000;

/// The rules of one family.
pub fn generate<A: Family>(input: &Input<'_>) -> Ruleset<A> {
    let mut slices = SliceIndex::default();
    slices.update(input.cluster, &Changes::all(input.cluster));
    let topology =
        Topology { node: input.node_name, zone: input.node().and_then(|node| node.zone.as_deref()) };
    let mut found: Vec<Found<'_, A>> = Vec::new();
    for service in input.cluster.services.values().filter(|service| input.serves(service)) {
        let Some(cluster_ip) = service.cluster_ip::<A>() else {
            continue; // OBJ-07
        };
        let slices = slices.of(&service.key, input.cluster);
        for port in &service.ports {
            let endpoints = gather::<A>(&slices, &port.name, port.protocol, topology, &mut Vec::new());
            found.push(Found { service, port, cluster_ip, endpoints });
        }
    }
    // Stable: by age, then by name, then as the object has its ports.
    found.sort_by_key(|found| (found.service.created.is_none(), found.service.created));
    let endpoints: usize = found.iter().map(|found| found.endpoints.len()).sum();
    let setting = Setting {
        detector: detector(input),
        comments: match endpoints > LARGE_CLUSTER {
            true => EndpointComments::None,
            false => EndpointComments::Written,
        },
        input,
    };
    let mut tables = Tables::new(&setting);
    for Found { service, port, cluster_ip, endpoints } in &found {
        let external = is_external::<A>(service, port);
        // EP-03, from the Service's own words.
        let uses = Uses {
            cluster: service.internal_policy == TrafficPolicy::Cluster || external,
            local: service.internal_policy == TrafficPolicy::Local
                || external && service.external_policy == TrafficPolicy::Local,
        };
        let endpoints = categorise(endpoints, uses, topology);
        Port::new(service, port, *cluster_ip, &endpoints).write(&setting, &mut tables);
    }
    tables.finish(&setting)
}

/// A service port with all its endpoints.
struct Found<'a, A: Family> {
    service: &'a Service,
    port: &'a ServicePort,
    cluster_ip: A::Addr,
    endpoints: Vec<Endpoint<'a, A>>,
}

/// What holds for all service ports.
struct Setting<'a, A: Family> {
    input: &'a Input<'a>,
    /// What local pod traffic is told by (MQ-02), if the family has a detector.
    detector: Option<Test<A>>,
    comments: EndpointComments,
}

/// Whether rules about endpoints have comments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndpointComments {
    Written,
    None,
}

impl<A: Family> Setting<'_, A> {
    /// `localhostNodePorts`, where it can be in force (FE-07): it is kube-proxy's own idea of it that counts,
    /// which asks the configured prefixes and not the node's addresses.
    fn localhost_node_ports(&self) -> bool {
        use crate::config::proxy::LocalhostNodePorts::Enabled;
        A::VERSION == 4
            && self.input.proxy.localhost_node_ports == Enabled
            && fixed::node_port_prefixes::<A>(self.input).is_none_or(|prefixes| {
                let start = Prefix::<A>::new(loopback::<A>(), 8);
                prefixes
                    .iter()
                    .any(|prefix| start.contains(prefix.address()) || prefix.contains(start.address()))
            })
    }
}

fn loopback<A: Family>() -> A::Addr {
    use pollux_dataplane::packet::Address;
    match A::VERSION {
        4 => A::Addr::from_bits(u128::from(std::net::Ipv4Addr::LOCALHOST.to_bits())),
        _ => A::Addr::from_bits(1),
    }
}

/// MQ-02: a family for which the detector has no prefix has no detector.
fn detector<A: Family>(input: &Input<'_>) -> Option<Test<A>> {
    let interface = |name: &str, prefix| {
        let name = name.to_string();
        (!name.is_empty()).then_some(Test::InInterface(Interface { name, prefix }))
    };
    match &input.proxy.detect_local {
        DetectLocal::ClusterCidr => input.proxy.cluster_cidr::<A>().map(Test::Source),
        DetectLocal::NodeCidr => input.node().and_then(Node::pod_cidr::<A>).map(Test::Source),
        DetectLocal::BridgeInterface(bridge) => interface(bridge, false),
        DetectLocal::InterfaceNamePrefix(prefix) => interface(prefix, true),
    }
}

fn plain<A: Family>(test: Test<A>) -> Match<A> {
    Match { negated: false, test }
}

fn not<A: Family>(test: Test<A>) -> Match<A> {
    Match { negated: true, test }
}
