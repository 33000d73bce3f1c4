//! `discovery.k8s.io/v1/EndpointSlice`, reduced and checked (OBJ-04 to OBJ-07).

use std::net::IpAddr;

use pollux_dataplane::packet::Protocol;
use serde::Deserialize;
use serde_json::Value;

use super::address::parse_address;
use super::meta::{Metadata, NamespacedName, port};
use super::service::protocol;
use crate::document::{nullable, typed};
use crate::problem::Findings;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: NamespacedName,
    /// The Service that owns it; none is a slice that nobody reads.
    pub service: Option<NamespacedName>,
    /// Whether it is the slice of a headless Service, which is ignored (OBJ-02).
    pub headless: bool,
    /// The ports of all its endpoints, without those whose number is nil or 0 (OBJ-04).
    pub ports: Vec<SlicePort>,
    /// The endpoints, in the object's order, of one family.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The name; `""` for a port without one.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number that the endpoints listen on.
    pub port: u16,
}

/// An endpoint of a slice (OBJ-06).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// The first of its addresses.
    pub address: IpAddr,
    /// Ready; true when it is not said.
    pub ready: bool,
    /// Serving; true when it is not said.
    pub serving: bool,
    /// Terminating; false when it is not said.
    pub terminating: bool,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// `hints.forZones`; empty is no hint.
    pub zone_hints: Vec<String>,
    /// `hints.forNodes`; empty is no hint.
    pub node_hints: Vec<String>,
}

impl EndpointSlice {
    /// Reads a slice. None if something was wrong: `findings` has it.
    pub(super) fn read(key: NamespacedName, value: Value, findings: &mut Findings) -> Option<EndpointSlice> {
        let errors = findings.error_count();
        let wire: Wire = match typed(value) {
            Ok(wire) => wire,
            Err(text) => {
                findings.error(text);
                return None;
            }
        };
        let service =
            wire.metadata.label(SERVICE_LABEL).map(|name| NamespacedName::new(key.namespace.clone(), name));
        let slice = EndpointSlice {
            service,
            headless: wire.metadata.label(HEADLESS_LABEL).is_some(),
            ports: ports(wire.ports.unwrap_or_default(), findings),
            endpoints: endpoints(wire.address_type, wire.endpoints.unwrap_or_default(), findings),
            key,
        };
        (findings.error_count() == errors).then_some(slice)
    }
}

fn ports(wire: Vec<WirePort>, findings: &mut Findings) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(wire.len());
    for wire in wire {
        let name = wire.name.unwrap_or_default();
        let part = match name.is_empty() {
            true => "port".to_string(),
            false => format!("port {name}"),
        };
        let protocol = protocol(&part, wire.protocol.as_deref(), findings);
        let number =
            wire.port.filter(|number| *number != 0).and_then(|number| port(&part, "port", number, findings));
        if let (Some(protocol), Some(port)) = (protocol, number) {
            ports.push(SlicePort { name, protocol, port });
        }
    }
    ports
}

/// The endpoints; one without an address of the slice's family is reported and skipped (OBJ-07).
fn endpoints(
    address_type: AddressType,
    wire: Vec<WireEndpoint>,
    findings: &mut Findings,
) -> Vec<SliceEndpoint> {
    let mut endpoints = Vec::with_capacity(wire.len());
    let fits = |address: &IpAddr| match address_type {
        AddressType::IPv4 => address.is_ipv4(),
        AddressType::IPv6 => address.is_ipv6(),
        AddressType::Fqdn => false,
    };
    if address_type == AddressType::Fqdn {
        return endpoints;
    }
    for (index, wire) in wire.into_iter().enumerate() {
        let text = wire.addresses.unwrap_or_default().into_iter().next();
        let Some(address) = text.as_deref().and_then(parse_address).filter(fits) else {
            findings.warn(format!(
                "endpoints[{index}].addresses[0] {:?} is not an {address_type:?} address: skipped",
                text.unwrap_or_default()
            ));
            continue;
        };
        let conditions = wire.conditions.unwrap_or_default();
        let hints = wire.hints.unwrap_or_default();
        endpoints.push(SliceEndpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node_name: wire.node_name,
            zone_hints: names(hints.for_zones),
            node_hints: names(hints.for_nodes),
        });
    }
    endpoints
}

fn names(hints: Option<Vec<Hint>>) -> Vec<String> {
    hints.unwrap_or_default().into_iter().map(|hint| hint.name).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default, deserialize_with = "nullable")]
    metadata: Metadata,
    address_type: AddressType,
    endpoints: Option<Vec<WireEndpoint>>,
    ports: Option<Vec<WirePort>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
enum AddressType {
    IPv4,
    IPv6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    hints: Option<Hints>,
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<Hint>>,
    for_nodes: Option<Vec<Hint>>,
}

#[derive(Deserialize)]
struct Hint {
    name: String,
}

#[derive(Deserialize)]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}
