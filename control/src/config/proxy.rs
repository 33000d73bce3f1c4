//! `kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration`, the file that kube-proxy reads (HZ-03).
//!
//! Fields with a meaning here keep their names and defaults. A known field without one is reported, and so
//! are the modes nftables and ipvs, whose semantics are the same; an unknown field is an error. Checks are
//! those of kube-proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pollux_dataplane::flow::LONGEST;
use pollux_dataplane::packet::{Family, Prefix};
use serde::Deserialize;
use serde_json::Value;

use super::duration::parse_duration;
use crate::cluster::{IpPrefix, parse_address};
use crate::document::{nullable, typed};
use crate::problem::Findings;

/// Fields that exist and have no meaning here.
const WITHOUT_MEANING: [&str; 14] = [
    "bindAddressHardFail",
    "clientConnection",
    "configSyncPeriod",
    "enableProfiling",
    "featureGates",
    "ipvs",
    "logging",
    "oomScoreAdj",
    "portRange",
    "resourceContainer",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "windowsRunAsService",
    "winkernel",
];

/// What kube-proxy's configuration says to Pollux.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyConfig {
    /// `hostnameOverride`: the node's name.
    pub hostname_override: Option<String>,
    /// `clusterCIDR`: at most one prefix of each family has a meaning, the first (MQ-02).
    pub cluster_cidrs: Vec<IpPrefix>,
    /// How local pod traffic is told.
    pub detect_local: DetectLocal,
    /// Which packets to a clusterIP are marked for masquerade (MQ-01).
    pub masquerade: MasqueradePolicy,
    /// `masqueradeBit`: the bit of the mark, 0 to 31 (MQ-08).
    pub masquerade_bit: u8,
    /// `iptables.localhostNodePorts` (FE-07).
    pub localhost_node_ports: LocalhostNodePorts,
    /// `nodePortAddresses` (FE-07).
    pub node_port_addresses: NodePortSelection,
    /// `bindAddress`, when it is not an unspecified one (FE-07, NO-04).
    pub bind_address: Option<IpAddr>,
    /// `healthzBindAddress`; none is switched off (HZ-01).
    pub healthz_bind_address: Option<SocketAddr>,
    /// `metricsBindAddress`; none is switched off.
    pub metrics_bind_address: Option<SocketAddr>,
    /// `syncPeriod`: bounds how late an update may be (HZ-01).
    pub sync_period: Duration,
    /// `minSyncPeriod`: changes closer together than this are applied as one.
    pub min_sync_period: Duration,
    /// `conntrack`.
    pub conntrack: ConntrackConfig,
}

/// `detectLocalMode` with what it needs (MQ-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DetectLocal {
    /// The source lies in the first cluster CIDR of the family.
    ClusterCidr,
    /// The source lies in the Node's first podCIDR of the family.
    NodeCidr,
    /// The packet came in through this bridge.
    BridgeInterface(String),
    /// The name of the interface that the packet came in through begins so.
    InterfaceNamePrefix(String),
}

/// `masqueradeAll`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MasqueradePolicy {
    /// Packets to a clusterIP are marked when the detector says that they are not local pod traffic.
    NotLocal,
    /// All packets to a clusterIP are marked.
    All,
}

/// `localhostNodePorts`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalhostNodePorts {
    /// Node ports answer on 127.0.0.0/8 as well, where FE-07 lets them.
    Enabled,
    /// They do not.
    Disabled,
}

/// `nodePortAddresses`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortSelection {
    /// The node's addresses inside these prefixes; a family without any means all addresses.
    Prefixes(Vec<IpPrefix>),
    /// `primary`: the Node's own address of each family.
    Primary,
}

/// `conntrack`; a timeout of none leaves the default of CT-05, as `0s` does there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConntrackConfig {
    /// `maxPerCore`: connections for each core; 0 leaves the table's size alone.
    pub max_per_core: u32,
    /// `min`: the least number of connections, whatever `maxPerCore` gives.
    pub min: u32,
    /// `tcpEstablishedTimeout`.
    pub tcp_established: Option<Duration>,
    /// `tcpCloseWaitTimeout`.
    pub tcp_close_wait: Option<Duration>,
    /// `udpTimeout`.
    pub udp: Option<Duration>,
    /// `udpStreamTimeout`.
    pub udp_stream: Option<Duration>,
    /// `tcpBeLiberal`, when it is set (CT-07).
    pub tcp_be_liberal: Option<bool>,
}

impl Default for ProxyConfig {
    /// kube-proxy's defaults.
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        ProxyConfig {
            hostname_override: None,
            cluster_cidrs: Vec::new(),
            detect_local: DetectLocal::ClusterCidr,
            masquerade: MasqueradePolicy::NotLocal,
            masquerade_bit: 14,
            localhost_node_ports: LocalhostNodePorts::Enabled,
            node_port_addresses: NodePortSelection::Prefixes(Vec::new()),
            bind_address: None,
            healthz_bind_address: Some(SocketAddr::new(any, 10256)),
            metrics_bind_address: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10249)),
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::from_secs(1),
            conntrack: ConntrackConfig {
                max_per_core: 32 * 1024,
                min: 128 * 1024,
                tcp_established: Some(Duration::from_secs(24 * 3600)),
                tcp_close_wait: Some(Duration::from_secs(3600)),
                udp: None,
                udp_stream: None,
                tcp_be_liberal: None,
            },
        }
    }
}

impl ProxyConfig {
    /// The first cluster CIDR of the family.
    pub fn cluster_cidr<A: Family>(&self) -> Option<Prefix<A>> {
        self.cluster_cidrs.iter().find_map(|cidr| cidr.of::<A>())
    }

    /// Reads the document; what is wrong goes to `findings`.
    pub(super) fn read(value: Value, findings: &mut Findings) -> ProxyConfig {
        findings.enter_object("KubeProxyConfiguration");
        let mut config = ProxyConfig::default();
        for field in WITHOUT_MEANING {
            if value.get(field).is_some() {
                findings.warn(format!("{field} has no meaning here, ignored"));
            }
        }
        let wire: Wire = match typed(value) {
            Ok(wire) => wire,
            Err(text) => {
                findings.error(text);
                return config;
            }
        };
        config.hostname_override = wire.hostname_override.clone().filter(|name| !name.is_empty());
        config.read_mode(&wire, findings);
        config.read_detector(&wire, findings);
        config.read_addresses(&wire, findings);
        config.read_conntrack(wire.conntrack, findings);
        config
    }

    fn read_mode(&mut self, wire: &Wire, findings: &mut Findings) {
        let mode = wire.mode.as_deref().unwrap_or_default();
        match mode {
            "" | "iptables" => {}
            "nftables" | "ipvs" => findings.warn(format!(
                "mode {mode} has no meaning here (the semantics are those of iptables), ignored"
            )),
            _ => findings.error(format!("mode {mode:?} is not iptables, nftables or ipvs")),
        }
        let iptables = &wire.iptables;
        if let Some(enabled) = iptables.localhost_node_ports {
            self.localhost_node_ports = match enabled {
                true => LocalhostNodePorts::Enabled,
                false => LocalhostNodePorts::Disabled,
            };
        }
        // In mode nftables kube-proxy reads these from that section; in every other mode it has no meaning.
        let (section, masquerade) = match mode {
            "nftables" => ("nftables", &wire.nftables),
            _ => ("iptables", &Some(iptables.masquerade())),
        };
        if section == "iptables" && wire.nftables.is_some() {
            findings.warn("nftables has no meaning in this mode, ignored");
        }
        let Some(masquerade) = masquerade else {
            return;
        };
        if masquerade.masquerade_all == Some(true) {
            self.masquerade = MasqueradePolicy::All;
        }
        match masquerade.masquerade_bit.map(|bit| (bit, u8::try_from(bit))) {
            None => {}
            Some((_, Ok(bit))) if bit < 32 => self.masquerade_bit = bit,
            Some((bit, _)) => findings.error(format!("{section}.masqueradeBit {bit} is not in 0-31")),
        }
        let sync = duration(&format!("{section}.syncPeriod"), &masquerade.sync_period, findings);
        let min = duration(&format!("{section}.minSyncPeriod"), &masquerade.min_sync_period, findings);
        // 0s is what an unset field is printed as: kube-proxy puts its default in for it.
        self.sync_period = sync.filter(|sync| !sync.is_zero()).unwrap_or(self.sync_period);
        self.min_sync_period = min.unwrap_or(self.min_sync_period);
        if self.min_sync_period > self.sync_period {
            findings.error(format!(
                "{section}.minSyncPeriod {:?} is longer than syncPeriod {:?}",
                self.min_sync_period, self.sync_period
            ));
        }
    }

    fn read_detector(&mut self, wire: &Wire, findings: &mut Findings) {
        let texts = wire.cluster_cidr.as_deref().unwrap_or_default();
        for text in texts.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            match IpPrefix::parse(text) {
                Some(cidr) => self.cluster_cidrs.push(cidr),
                None => findings.error(format!("clusterCIDR {text:?} is not an address prefix")),
            }
        }
        let mut needs = |field: &str, value: &Option<String>| {
            let value = value.clone().unwrap_or_default();
            if value.is_empty() {
                findings.error(format!("detectLocal.{field} is missing, detectLocalMode needs it"));
            } else if value.len() > 15 {
                findings.error(format!(
                    "detectLocal.{field} {value:?} is longer than an interface name (15 characters)"
                ));
            }
            value
        };
        let detect = &wire.detect_local;
        self.detect_local = match wire.detect_local_mode.as_deref().unwrap_or_default() {
            "" | "ClusterCIDR" => DetectLocal::ClusterCidr,
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                DetectLocal::BridgeInterface(needs("bridgeInterface", &detect.bridge_interface))
            }
            "InterfaceNamePrefix" => {
                DetectLocal::InterfaceNamePrefix(needs("interfaceNamePrefix", &detect.interface_name_prefix))
            }
            other => {
                findings.error(format!(
                    "detectLocalMode {other:?} is not ClusterCIDR, NodeCIDR, BridgeInterface or \
                     InterfaceNamePrefix"
                ));
                DetectLocal::ClusterCidr
            }
        };
    }

    fn read_addresses(&mut self, wire: &Wire, findings: &mut Findings) {
        let texts = wire.node_port_addresses.as_deref().unwrap_or_default();
        if texts.iter().any(|text| text == "primary") {
            if texts.len() > 1 {
                findings.error("nodePortAddresses: primary stands beside other values; it must be alone");
            }
            self.node_port_addresses = NodePortSelection::Primary;
        } else {
            let mut prefixes = Vec::with_capacity(texts.len());
            for text in texts {
                match IpPrefix::parse(text) {
                    Some(prefix) => prefixes.push(prefix),
                    None => findings
                        .error(format!("nodePortAddresses {text:?} is not an address prefix (nor primary)")),
                }
            }
            self.node_port_addresses = NodePortSelection::Prefixes(prefixes);
        }
        let bind = wire.bind_address.as_deref().filter(|text| !text.is_empty());
        if let Some(text) = bind {
            match parse_address(text) {
                Some(address) => self.bind_address = Some(address).filter(|a| !a.is_unspecified()),
                None => findings.error(format!("bindAddress {text:?} is not an IP address")),
            }
        }
        // Unset, the two follow the family of bindAddress.
        if bind.and_then(parse_address).is_some_and(|address| address.is_ipv6()) {
            let any = "::".parse().expect("an IPv6 address");
            let localhost = "::1".parse().expect("an IPv6 address");
            self.healthz_bind_address = Some(SocketAddr::new(any, 10256));
            self.metrics_bind_address = Some(SocketAddr::new(localhost, 10249));
        }
        if let Some(text) = wire.healthz_bind_address.as_deref().filter(|text| !text.is_empty()) {
            self.healthz_bind_address = socket_address("healthzBindAddress", text, 10256, findings);
        }
        if let Some(text) = wire.metrics_bind_address.as_deref().filter(|text| !text.is_empty()) {
            self.metrics_bind_address = socket_address("metricsBindAddress", text, 10249, findings);
        }
    }

    fn read_conntrack(&mut self, wire: WireConntrack, findings: &mut Findings) {
        let mut count = |field: &str, number: Option<i64>, value: &mut u32| {
            if let Some(number) = number {
                match u32::try_from(number) {
                    Ok(number) => *value = number,
                    Err(_) => findings.error(format!(
                        "conntrack.{field} {number} is not a number of connections (0-4294967295)"
                    )),
                }
            }
        };
        count("maxPerCore", wire.max_per_core, &mut self.conntrack.max_per_core);
        count("min", wire.min, &mut self.conntrack.min);
        let mut timeout = |field: &str, text: Option<String>, value: &mut Option<Duration>| {
            if let Some(time) = duration(&format!("conntrack.{field}"), &text, findings) {
                if time > LONGEST {
                    let (text, longest) = (text.unwrap_or_default(), LONGEST.as_secs());
                    findings.warn(format!(
                        "conntrack.{field} {text} is longer than the longest timeout, {longest} s, which is taken"
                    ));
                }
                *value = Some(time.min(LONGEST)).filter(|time| !time.is_zero());
            }
        };
        let conntrack = &mut self.conntrack;
        timeout("tcpEstablishedTimeout", wire.tcp_established_timeout, &mut conntrack.tcp_established);
        timeout("tcpCloseWaitTimeout", wire.tcp_close_wait_timeout, &mut conntrack.tcp_close_wait);
        timeout("udpTimeout", wire.udp_timeout, &mut conntrack.udp);
        timeout("udpStreamTimeout", wire.udp_stream_timeout, &mut conntrack.udp_stream);
        conntrack.tcp_be_liberal = wire.tcp_be_liberal;
    }
}

fn duration(field: &str, text: &Option<String>, findings: &mut Findings) -> Option<Duration> {
    let text = text.as_deref()?;
    let duration = parse_duration(text);
    if duration.is_none() {
        findings.error(format!("{field} {text:?} is not a duration (30s, 1h0m0s)"));
    }
    duration
}

/// `address:port`, or an address alone.
fn socket_address(field: &str, text: &str, port: u16, findings: &mut Findings) -> Option<SocketAddr> {
    let address =
        text.parse().ok().or_else(|| parse_address(text).map(|address| SocketAddr::new(address, port)));
    if address.is_none() {
        findings.error(format!("{field} {text:?} is not an address and port (0.0.0.0:{port})"));
    }
    address
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    hostname_override: Option<String>,
    mode: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    detect_local_mode: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    detect_local: WireDetectLocal,
    #[serde(default, deserialize_with = "nullable")]
    iptables: WireIptables,
    nftables: Option<WireMasquerade>,
    node_port_addresses: Option<Vec<String>>,
    bind_address: Option<String>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    conntrack: WireConntrack,
    // Without meaning, reported by name (`WITHOUT_MEANING`).
    #[serde(rename = "bindAddressHardFail")]
    _bind_address_hard_fail: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "configSyncPeriod")]
    _config_sync_period: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<Value>,
    #[serde(rename = "featureGates")]
    _feature_gates: Option<Value>,
    #[serde(rename = "ipvs")]
    _ipvs: Option<Value>,
    #[serde(rename = "logging")]
    _logging: Option<Value>,
    #[serde(rename = "oomScoreAdj")]
    _oom_score_adj: Option<Value>,
    #[serde(rename = "portRange")]
    _port_range: Option<Value>,
    #[serde(rename = "resourceContainer")]
    _resource_container: Option<Value>,
    #[serde(rename = "showHiddenMetricsForVersion")]
    _show_hidden_metrics_for_version: Option<Value>,
    #[serde(rename = "udpIdleTimeout")]
    _udp_idle_timeout: Option<Value>,
    #[serde(rename = "windowsRunAsService")]
    _windows_run_as_service: Option<Value>,
    #[serde(rename = "winkernel")]
    _winkernel: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireDetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireIptables {
    masquerade_all: Option<bool>,
    masquerade_bit: Option<i64>,
    localhost_node_ports: Option<bool>,
    sync_period: Option<String>,
    min_sync_period: Option<String>,
}

impl WireIptables {
    fn masquerade(&self) -> WireMasquerade {
        WireMasquerade {
            masquerade_all: self.masquerade_all,
            masquerade_bit: self.masquerade_bit,
            sync_period: self.sync_period.clone(),
            min_sync_period: self.min_sync_period.clone(),
        }
    }
}

/// What the sections iptables and nftables have in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireMasquerade {
    masquerade_all: Option<bool>,
    masquerade_bit: Option<i64>,
    sync_period: Option<String>,
    min_sync_period: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireConntrack {
    max_per_core: Option<i64>,
    min: Option<i64>,
    tcp_established_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: Option<bool>,
    udp_timeout: Option<String>,
    udp_stream_timeout: Option<String>,
}
