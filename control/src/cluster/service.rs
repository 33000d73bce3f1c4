//! `v1/Service`, reduced to what a node's packets depend on and checked (OBJ-01 to OBJ-03, OBJ-07).

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use pollux_dataplane::packet::{Address, Family, Protocol};
use serde::Deserialize;
use serde_json::Value;

use super::address::{IpPrefix, parse_address};
use super::meta::{Metadata, NamespacedName, port};
use crate::document::{nullable, typed};
use crate::problem::Findings;

/// The label by which a Service asks for another proxy (OBJ-02).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The default of `sessionAffinityConfig.clientIP.timeoutSeconds` (AF-01).
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: NamespacedName,
    /// When it was made; none in files that have not been at the API server.
    pub created: Option<Timestamp>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// The proxy that the Service asks for by its label, if any (OBJ-02).
    pub proxy_name: Option<String>,
    /// `spec.clusterIPs`, or `clusterIP` where the list is absent. Empty: headless, not proxied (OBJ-02).
    pub cluster_ips: Vec<IpAddr>,
    /// The ports, in the object's order, no two with one name.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is not `Proxy` (FE-03).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpPrefix>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, when it is not 0 (UP-05).
    pub health_check_node_port: Option<u16>,
    /// `sessionAffinity: ClientIP`: the timeout.
    pub affinity: Option<Duration>,
}

/// One port of a Service. Its identity is the Service, the name and the protocol (OBJ-03).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// The name; `""` for a port without one.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port of the clusterIP, external and load-balancer IPs.
    pub port: u16,
    /// The node port, when it is not 0.
    pub node_port: Option<u16>,
}

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[allow(missing_docs, reason = "the API's own words")]
pub enum ServiceType {
    ClusterIP,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// Which endpoints traffic may reach: all of the cluster, or those of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum TrafficPolicy {
    /// Endpoints on any node.
    #[default]
    Cluster,
    /// Endpoints on this node.
    Local,
}

impl Service {
    /// Reads a Service. None if something was wrong: `findings` has it.
    pub(super) fn read(key: NamespacedName, value: Value, findings: &mut Findings) -> Option<Service> {
        let errors = findings.error_count();
        let wire: Wire = match typed(value) {
            Ok(wire) => wire,
            Err(text) => {
                findings.error(text);
                return None;
            }
        };
        let spec = wire.spec;
        let kind = spec.kind.unwrap_or(ServiceType::ClusterIP);
        let affinity = match spec.session_affinity.unwrap_or_default() {
            Affinity::None => None,
            Affinity::ClientIP => Some(affinity_timeout(spec.session_affinity_config, findings)),
        };
        let service = Service {
            created: wire.metadata.created(findings),
            kind,
            proxy_name: wire.metadata.label(PROXY_NAME_LABEL).map(str::to_string),
            cluster_ips: cluster_ips(kind, spec.cluster_ip, spec.cluster_ips, findings),
            ports: ports(spec.ports.unwrap_or_default(), findings),
            external_ips: addresses("spec.externalIPs", spec.external_ips, findings),
            load_balancer_ips: load_balancer_ips(wire.status.load_balancer, findings),
            source_ranges: source_ranges(spec.load_balancer_source_ranges, findings),
            internal_policy: policy(spec.internal_traffic_policy),
            external_policy: policy(spec.external_traffic_policy),
            health_check_node_port: spec
                .health_check_node_port
                .filter(|number| *number != 0)
                .and_then(|number| port("", "spec.healthCheckNodePort", number, findings)),
            affinity,
            key,
        };
        (findings.error_count() == errors).then_some(service)
    }

    /// The clusterIP of the family: the first (OBJ-07).
    pub fn cluster_ip<A: Family>(&self) -> Option<A::Addr> {
        of_family::<A>(&self.cluster_ips).next()
    }

    /// The external IPs of the family.
    pub fn external_ips<A: Family>(&self) -> impl Iterator<Item = A::Addr> {
        of_family::<A>(&self.external_ips)
    }

    /// The load-balancer IPs of the family.
    pub fn load_balancer_ips<A: Family>(&self) -> impl Iterator<Item = A::Addr> {
        of_family::<A>(&self.load_balancer_ips)
    }
}

fn of_family<A: Family>(addresses: &[IpAddr]) -> impl Iterator<Item = A::Addr> {
    addresses.iter().filter_map(|address| A::Addr::from_ip(*address))
}

fn affinity_timeout(config: Option<AffinityConfig>, findings: &mut Findings) -> Duration {
    let seconds = config.and_then(|config| config.client_ip).and_then(|config| config.timeout_seconds);
    match seconds.map(u64::try_from) {
        None => AFFINITY_TIMEOUT,
        Some(Ok(seconds)) if (1..=86_400).contains(&seconds) => Duration::from_secs(seconds),
        Some(_) => {
            let seconds = seconds.unwrap_or_default();
            findings.error(format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds {seconds} is not in 1-86400"
            ));
            AFFINITY_TIMEOUT
        }
    }
}

fn cluster_ips(
    kind: ServiceType,
    cluster_ip: Option<String>,
    cluster_ips: Option<Vec<String>>,
    findings: &mut Findings,
) -> Vec<IpAddr> {
    let first = cluster_ip.unwrap_or_default();
    let list = cluster_ips.unwrap_or_default();
    if kind == ServiceType::ExternalName || first == "None" {
        return Vec::new();
    }
    if first.is_empty() {
        if !list.is_empty() {
            findings.warn("spec.clusterIPs is not empty but spec.clusterIP is: ignored, as kube-proxy does");
        }
        return Vec::new();
    }
    let (field, texts) = match list.is_empty() {
        true => ("spec.clusterIP", vec![first]),
        false => ("spec.clusterIPs", list),
    };
    let mut addresses = Vec::with_capacity(texts.len());
    for text in texts {
        match parse_address(&text) {
            Some(address) => addresses.push(address),
            None => findings.error(format!("{field} {text:?} is not an IP address")),
        }
    }
    addresses
}

fn ports(wire: Vec<WirePort>, findings: &mut Findings) -> Vec<ServicePort> {
    let mut names = HashSet::new();
    let mut ports = Vec::with_capacity(wire.len());
    for wire in wire {
        let name = wire.name.unwrap_or_default();
        let number = wire.port;
        let part = match name.is_empty() {
            true => format!("port {}", number.unwrap_or_default()),
            false => format!("port {name}"),
        };
        if names.contains(&name) {
            findings.error_in(
                &part,
                match name.is_empty() {
                    true => "has no name, nor has another port of the Service".to_string(),
                    false => format!("name {name} is used by two ports of the Service"),
                },
            );
        }
        names.insert(name.clone());
        let Some(number) = number else {
            findings.error_in(&part, "port is missing");
            continue;
        };
        let protocol = protocol(&part, wire.protocol.as_deref(), findings);
        let number = port(&part, "port", number, findings);
        let node_port = wire
            .node_port
            .filter(|number| *number != 0)
            .and_then(|number| port(&part, "nodePort", number, findings));
        if let (Some(protocol), Some(port)) = (protocol, number) {
            ports.push(ServicePort { name, protocol, port, node_port });
        }
    }
    ports
}

/// The protocol of a port; TCP when it says none.
pub(super) fn protocol(part: &str, text: Option<&str>, findings: &mut Findings) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(other) => {
            findings.error_in(part, format!("protocol {other:?} is not TCP, UDP or SCTP"));
            None
        }
    }
}

/// The addresses of a list; a bad one is reported and skipped (OBJ-07).
fn addresses(field: &str, texts: Option<Vec<String>>, findings: &mut Findings) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts.unwrap_or_default() {
        match parse_address(&text) {
            Some(address) => addresses.push(address),
            None => findings.warn(format!("{field} {text:?} is not an IP address: skipped")),
        }
    }
    addresses
}

fn load_balancer_ips(status: Option<LoadBalancerStatus>, findings: &mut Findings) -> Vec<IpAddr> {
    let ingress = status.and_then(|status| status.ingress).unwrap_or_default();
    let texts = ingress
        .into_iter()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.filter(|ip| !ip.is_empty()))
        .collect();
    addresses("status.loadBalancer.ingress ip", Some(texts), findings)
}

fn source_ranges(texts: Option<Vec<String>>, findings: &mut Findings) -> Vec<IpPrefix> {
    let mut ranges = Vec::new();
    for text in texts.unwrap_or_default() {
        // The API server lets spaces around a range pass.
        match IpPrefix::parse(text.trim()) {
            Some(range) => ranges.push(range),
            None => findings
                .warn(format!("spec.loadBalancerSourceRanges {text:?} is not an address prefix: skipped")),
        }
    }
    ranges
}

fn policy(wire: Option<WirePolicy>) -> TrafficPolicy {
    match wire {
        Some(WirePolicy::Local) => TrafficPolicy::Local,
        Some(WirePolicy::Cluster | WirePolicy::Unset) | None => TrafficPolicy::Cluster,
    }
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default, deserialize_with = "nullable")]
    metadata: Metadata,
    #[serde(default, deserialize_with = "nullable")]
    spec: Spec,
    #[serde(default, deserialize_with = "nullable")]
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<ServiceType>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<WirePort>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    internal_traffic_policy: Option<WirePolicy>,
    external_traffic_policy: Option<WirePolicy>,
    health_check_node_port: Option<i64>,
    session_affinity: Option<Affinity>,
    session_affinity_config: Option<AffinityConfig>,
}

#[derive(Deserialize)]
enum WirePolicy {
    Cluster,
    Local,
    /// Objects that went through a program which writes empty fields.
    #[serde(rename = "")]
    Unset,
}

#[derive(Deserialize, Default)]
enum Affinity {
    #[default]
    #[serde(alias = "")]
    None,
    ClientIP,
}

#[derive(Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    timeout_seconds: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    node_port: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Deserialize)]
struct LoadBalancerStatus {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}
