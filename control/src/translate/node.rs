//! What holds for all Services of a node in one family: how local pod traffic is told, which addresses
//! answer on node ports, when 127.0.0.0/8 is guarded.

use std::net::IpAddr;

use pollux_dataplane::packet::{Address, Family, Prefix};
use pollux_dataplane::service::{Detector, InternalMark, Loopback, NodePortAddresses, Policy};

use super::Input;
use crate::cluster::Node;
use crate::config::ProxyConfig;
use crate::config::proxy::{DetectLocal, LocalhostNodePorts, MasqueradePolicy, NodePortSelection};

impl DetectLocal {
    /// Whether packets from this interface are local pod traffic, for the detectors that look at interfaces
    /// (MQ-02); the others never say so.
    pub fn takes_for_pods(&self, interface: &str) -> bool {
        match self {
            DetectLocal::BridgeInterface(bridge) => interface == bridge,
            DetectLocal::InterfaceNamePrefix(prefix) => interface.starts_with(prefix.as_str()),
            DetectLocal::ClusterCidr | DetectLocal::NodeCidr => false,
        }
    }
}

impl Input<'_> {
    /// The Node object of this node, if there is one.
    pub fn node(&self) -> Option<&Node> {
        self.cluster.nodes.get(self.node_name)
    }

    /// The node's own address in the family: `bindAddress`, else the Node's (FE-07, NO-04).
    pub fn node_ip<A: Family>(&self) -> Option<A::Addr> {
        let bind = self.proxy.bind_address.and_then(A::Addr::from_ip);
        bind.or_else(|| self.node()?.address::<A>())
    }

    /// The addresses of the node's interfaces in the family; the loopback address is always among them.
    pub fn local_addresses<A: Family>(&self) -> Vec<A::Addr> {
        let loopback = match A::VERSION {
            4 => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            _ => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        };
        let mut addresses: Vec<A::Addr> = self
            .local_addresses
            .iter()
            .chain([&loopback])
            .filter_map(|address| A::Addr::from_ip(*address))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The policy of the family.
    pub(super) fn policy<A: Family>(&self) -> Policy<A> {
        Policy {
            detector: self.detector(),
            internal_mark: match self.proxy.masquerade {
                MasqueradePolicy::All => InternalMark::Always,
                MasqueradePolicy::NotLocal => InternalMark::ByDetector,
            },
            node_ports: self.node_port_addresses(),
        }
    }

    /// MQ-02. A family for which the detector has no CIDR has no detector.
    fn detector<A: Family>(&self) -> Detector<A> {
        let source = |cidr: Option<Prefix<A>>| cidr.map_or(Detector::None, Detector::Source);
        match &self.proxy.detect_local {
            DetectLocal::ClusterCidr => source(self.proxy.cluster_cidr::<A>()),
            DetectLocal::NodeCidr => source(self.node().and_then(Node::pod_cidr::<A>)),
            DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => Detector::Interface,
        }
    }

    /// The prefixes of `nodePortAddresses` in the family; empty means all local addresses (FE-07).
    fn node_port_prefixes<A: Family>(&self) -> Vec<Prefix<A>> {
        match &self.proxy.node_port_addresses {
            NodePortSelection::Prefixes(prefixes) => {
                prefixes.iter().filter_map(|prefix| prefix.of::<A>()).collect()
            }
            NodePortSelection::Primary => self.node_ip::<A>().map(Prefix::host).into_iter().collect(),
        }
    }

    /// FE-07, NO-07: whether `localhostNodePorts` is in force in the family.
    pub(super) fn localhost_node_ports<A: Family>(&self) -> LocalhostNodePorts {
        let prefixes = self.node_port_prefixes::<A>();
        let reaches_loopback =
            |prefix: &Prefix<A>| prefix.address().is_loopback() || prefix_has(*prefix, IPV4_LOOPBACK);
        let in_force = self.proxy.localhost_node_ports == LocalhostNodePorts::Enabled
            && A::VERSION == 4
            && (prefixes.is_empty() || prefixes.iter().any(reaches_loopback));
        match in_force {
            true => LocalhostNodePorts::Enabled,
            false => LocalhostNodePorts::Disabled,
        }
    }

    fn node_port_addresses<A: Family>(&self) -> NodePortAddresses<A> {
        let prefixes = self.node_port_prefixes::<A>();
        let loopback = match self.localhost_node_ports::<A>() {
            LocalhostNodePorts::Enabled => Loopback::Included,
            LocalhostNodePorts::Disabled => Loopback::Excluded,
        };
        if prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.len() == 0) {
            return NodePortAddresses::AllLocal(loopback);
        }
        let answers = |address: &A::Addr| {
            prefixes.iter().any(|prefix| prefix.contains(*address))
                && (loopback == Loopback::Included || !address.is_loopback())
        };
        NodePortAddresses::Only(self.local_addresses::<A>().into_iter().filter(answers).collect())
    }
}

/// The first address of 127.0.0.0/8.
const IPV4_LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 0));

fn prefix_has<A: Family>(prefix: Prefix<A>, address: IpAddr) -> bool {
    A::Addr::from_ip(address).is_some_and(|address| prefix.contains(address))
}

/// The masquerade mark (MQ-08).
pub(super) fn mark(proxy: &ProxyConfig) -> u32 {
    1 << proxy.masquerade_bit
}
