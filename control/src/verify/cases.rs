//! Case files: a cluster, a node, kube-proxy's configuration, and flows with the verdict that is expected of
//! each. One `case.json` for each case and address family.
//!
//! `expect.verdict` is `dnat`, `reject`, `drop`, `accept` or `none` (no rule applies: routed as it is);
//! `backends` lists every possible one; `masquerade` is true if the packet is marked for at least one of
//! them. A flow whose `from` is a local address comes from the host. Local addresses are `node.localIPs`,
//! 127.0.0.0/8 and ::1.

use std::fmt::{self, Display};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pollux_dataplane::packet::Protocol;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cluster::{Cluster, IpPrefix, Loaded, read_objects};
use crate::config::ProxyConfig;
use crate::config::proxy::{DetectLocal, LocalhostNodePorts, MasqueradePolicy, NodePortSelection};
use crate::document::{nullable, typed};
use crate::problem::{Findings, Problem, Problems};
use crate::translate::Input;

/// The name of a case's file.
pub const FILE_NAME: &str = "case.json";

/// A case, ready to be translated.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The family of its flows.
    pub family: CaseFamily,
    /// The node's name.
    pub node_name: String,
    /// Addresses of the node's interfaces, without loopback.
    pub local_addresses: Vec<IpAddr>,
    /// The configuration.
    pub proxy: ProxyConfig,
    /// The objects, with a Node object made of the case's `node`.
    pub cluster: Cluster,
    /// What is worth saying about the objects.
    pub warnings: Vec<Problem>,
    /// The flows, in the file's order.
    pub flows: Vec<Flow>,
}

/// The address family of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[allow(missing_docs, reason = "the API's own words")]
pub enum CaseFamily {
    IPv4,
    IPv6,
}

/// The first packet of a connection, and what should become of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Its name in the case.
    pub name: String,
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// Destination port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// What should become of it.
    pub expect: Outcome,
}

/// What becomes of a flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Outcome {
    /// The verdict.
    pub verdict: CaseVerdict,
    /// Every possible backend, sorted.
    pub backends: Vec<SocketAddr>,
    /// Whether the packet is marked for masquerade for at least one of them.
    pub masquerade: bool,
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict {
            CaseVerdict::Dnat => "dnat",
            CaseVerdict::Reject => "reject",
            CaseVerdict::Drop => "drop",
            CaseVerdict::Accept => "accept",
            CaseVerdict::None => "none",
        })?;
        if !self.backends.is_empty() {
            let backends: Vec<_> = self.backends.iter().map(ToString::to_string).collect();
            write!(f, " to {}", backends.join(","))?;
        }
        if self.masquerade { f.write_str(", masqueraded") } else { Ok(()) }
    }
}

/// The verdict of a case's flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaseVerdict {
    /// Translated to one of the backends.
    Dnat,
    /// Rejected with an ICMP error.
    Reject,
    /// Dropped.
    Drop,
    /// Accepted by a rule.
    Accept,
    /// No rule applies: routed as it is.
    None,
}

impl Case {
    /// What is translated.
    pub fn input(&self) -> Input<'_> {
        Input {
            cluster: &self.cluster,
            proxy: &self.proxy,
            node_name: &self.node_name,
            service_proxy_name: None,
            local_addresses: &self.local_addresses,
        }
    }

    /// Reads a case.
    ///
    /// # Errors
    /// Everything that is wrong with the file and the objects in it.
    pub fn load(file: &Path) -> Result<Case, Problems> {
        let file: Arc<Path> = file.into();
        let mut findings = Findings::default();
        findings.enter_file(Some(file.clone()));
        let wire = match read(&file) {
            Ok(wire) => wire,
            Err(text) => {
                findings.error(text);
                return Err(findings.finish().expect_err("an error was found"));
            }
        };
        let proxy = proxy(&wire.config, &mut findings);
        let flows = wire.flows.into_iter().filter_map(|flow| flow.read(&mut findings)).collect();
        findings.finish()?;
        let mut objects = wire.objects;
        objects.push(node_object(&wire.node));
        let Loaded { cluster, warnings } = read_objects(&file, objects)?;
        Ok(Case {
            name: wire.name,
            family: wire.config.ip_family,
            node_name: wire.node.name,
            local_addresses: wire.node.local_ips,
            proxy,
            cluster,
            warnings,
            flows,
        })
    }
}

/// The case files among `paths`: a file is one, directories are searched to the bottom, in name order.
///
/// # Errors
/// Directories that cannot be read.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Problems> {
    let mut findings = Findings::default();
    let mut found = Vec::new();
    for path in paths {
        search(path, &mut found, &mut findings);
    }
    findings.finish().map(|_| found)
}

fn search(path: &Path, found: &mut Vec<PathBuf>, findings: &mut Findings) {
    if !path.is_dir() {
        return found.push(path.to_path_buf());
    }
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut entries: Vec<_> = match entries {
        Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
        Err(error) => {
            findings.enter_file(Some(path.into()));
            return findings.error(error.to_string());
        }
    };
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            search(&entry, found, findings);
        } else if entry.file_name().is_some_and(|name| name == FILE_NAME) {
            found.push(entry);
        }
    }
}

fn read(file: &Path) -> Result<Wire, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    typed(serde_json::from_str::<Value>(&text).map_err(|error| error.to_string())?)
}

/// The case's node as an object, so that it is read as any other.
fn node_object(node: &WireNode) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": node.labels},
        "status": {"addresses": [{"type": "InternalIP", "address": node.primary_ip}]},
    })
}

fn proxy(wire: &WireConfig, findings: &mut Findings) -> ProxyConfig {
    let mut prefixes = |field: &str, texts: Vec<&str>| {
        let mut prefixes = Vec::with_capacity(texts.len());
        for text in texts {
            match IpPrefix::parse(text) {
                Some(prefix) => prefixes.push(prefix),
                None => findings.error(format!("config.{field} {text:?} is not an address prefix")),
            }
        }
        prefixes
    };
    let cluster_cidr = wire.cluster_cidr.as_deref().unwrap_or_default();
    let cidrs: Vec<_> = cluster_cidr.split(',').filter(|text| !text.is_empty()).collect();
    let cluster_cidrs = match wire.detect_local_mode {
        // Without a prefix the detector is off (MQ-02).
        DetectLocalMode::None => Vec::new(),
        DetectLocalMode::ClusterCIDR => prefixes("clusterCIDR", cidrs),
    };
    let node_ports = wire.node_port_addresses.iter().map(String::as_str).collect();
    ProxyConfig {
        detect_local: DetectLocal::ClusterCidr,
        cluster_cidrs,
        node_port_addresses: NodePortSelection::Prefixes(prefixes("nodePortAddresses", node_ports)),
        masquerade: match wire.masquerade_all {
            true => MasqueradePolicy::All,
            false => MasqueradePolicy::NotLocal,
        },
        localhost_node_ports: match wire.localhost_node_ports {
            true => LocalhostNodePorts::Enabled,
            false => LocalhostNodePorts::Disabled,
        },
        ..ProxyConfig::default()
    }
}

#[derive(Deserialize)]
struct Wire {
    name: String,
    node: WireNode,
    config: WireConfig,
    objects: Vec<Value>,
    flows: Vec<WireFlow>,
}

#[derive(Deserialize)]
struct WireNode {
    name: String,
    #[serde(rename = "primaryIP")]
    primary_ip: String,
    #[serde(rename = "localIPs")]
    local_ips: Vec<IpAddr>,
    #[serde(default, deserialize_with = "nullable")]
    labels: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireConfig {
    ip_family: CaseFamily,
    detect_local_mode: DetectLocalMode,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    #[serde(default)]
    masquerade_all: bool,
    localhost_node_ports: bool,
    #[serde(default, deserialize_with = "nullable")]
    node_port_addresses: Vec<String>,
}

#[derive(Clone, Copy, Deserialize)]
enum DetectLocalMode {
    None,
    ClusterCIDR,
}

#[derive(Deserialize)]
struct WireFlow {
    name: String,
    from: IpAddr,
    to: IpAddr,
    port: u16,
    protocol: String,
    expect: WireOutcome,
}

impl WireFlow {
    fn read(self, findings: &mut Findings) -> Option<Flow> {
        let protocol = match self.protocol.as_str() {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            other => {
                findings.error(format!("flow {}: protocol {other:?} is not TCP, UDP or SCTP", self.name));
                return None;
            }
        };
        let WireOutcome { verdict, mut backends, masquerade } = self.expect;
        backends.sort_unstable();
        Some(Flow {
            name: self.name,
            from: self.from,
            to: self.to,
            port: self.port,
            protocol,
            expect: Outcome { verdict, backends, masquerade },
        })
    }
}

#[derive(Deserialize)]
struct WireOutcome {
    verdict: CaseVerdict,
    #[serde(default, deserialize_with = "nullable")]
    backends: Vec<SocketAddr>,
    #[serde(default)]
    masquerade: bool,
}
