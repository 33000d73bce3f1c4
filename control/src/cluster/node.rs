//! `v1/Node`, reduced to what a node's own tables depend on (OBJ-01).

use std::net::IpAddr;

use pollux_dataplane::packet::{Address, Family, Prefix};
use serde::Deserialize;
use serde_json::Value;

use super::address::{IpPrefix, parse_address};
use super::meta::Metadata;
use crate::document::{nullable, typed};
use crate::problem::Findings;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`, or `podCIDR` where the list is absent.
    pub pod_cidrs: Vec<IpPrefix>,
    /// Whether the node is on its way out (HZ-01).
    pub deletion: Deletion,
}

/// Whether a node is being deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deletion {
    /// It stays.
    No,
    /// It has a deletion timestamp, or the cluster autoscaler's taint.
    Pending,
}

impl Node {
    /// Reads a Node. None if something was wrong: `findings` has it.
    pub(super) fn read(name: String, value: Value, findings: &mut Findings) -> Option<Node> {
        let wire: Wire = match typed(value) {
            Ok(wire) => wire,
            Err(text) => {
                findings.error(text);
                return None;
            }
        };
        let (mut internal_ips, mut external_ips) = (Vec::new(), Vec::new());
        for address in wire.status.addresses.unwrap_or_default() {
            let list = match address.kind.as_str() {
                "InternalIP" => &mut internal_ips,
                "ExternalIP" => &mut external_ips,
                _ => continue,
            };
            match parse_address(&address.address) {
                Some(address) => list.push(address),
                None => findings
                    .warn(format!("status.addresses {:?} is not an IP address: skipped", address.address)),
            }
        }
        let tainted = wire.spec.taints.unwrap_or_default();
        let leaving = wire.metadata.deletion_timestamp.is_some()
            || tainted.iter().any(|taint| taint.key == AUTOSCALER_TAINT);
        let mut pod_cidrs = Vec::new();
        let texts = wire
            .spec
            .pod_cidrs
            .filter(|list| !list.is_empty())
            .unwrap_or_else(|| wire.spec.pod_cidr.filter(|text| !text.is_empty()).into_iter().collect());
        for text in texts {
            match IpPrefix::parse(&text) {
                Some(cidr) => pod_cidrs.push(cidr),
                None => findings.warn(format!("spec.podCIDRs {text:?} is not an address prefix: skipped")),
            }
        }
        Some(Node {
            zone: wire.metadata.label(ZONE_LABEL).map(str::to_string),
            internal_ips,
            external_ips,
            pod_cidrs,
            deletion: match leaving {
                true => Deletion::Pending,
                false => Deletion::No,
            },
            name,
        })
    }

    /// The node's address of the family: its first InternalIP, else its first ExternalIP (FE-07).
    pub fn address<A: Family>(&self) -> Option<A::Addr> {
        self.internal_ips.iter().chain(&self.external_ips).find_map(|address| A::Addr::from_ip(*address))
    }

    /// The first podCIDR of the family (MQ-02).
    pub fn pod_cidr<A: Family>(&self) -> Option<Prefix<A>> {
        self.pod_cidrs.iter().find_map(|cidr| cidr.of::<A>())
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
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

#[derive(Deserialize, Default)]
struct Status {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}
