//! Clusters of any size, for whatever grows with the number of Services: the rules, the tables, the proof that
//! both agree. Dual-stack, and with a little of everything: most Services are plain clusterIPs, the others take
//! turns with node ports, load balancers with and without source ranges, external IPs, policies Local, session
//! affinity, hints, terminating endpoints, and none at all. The same numbers give the same cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pollux_control::cluster::{
    Cluster, Deletion, EndpointSlice, IpPrefix, NamespacedName, Node, Service, ServicePort, ServiceType,
    SliceEndpoint, SlicePort, TrafficPolicy,
};
use pollux_control::config::ProxyConfig;
use pollux_control::translate::Input;
use pollux_dataplane::packet::Protocol;

/// The node whose rules are asked for.
const NODE: &str = "node-0";
/// The zones, which the nodes take in turn.
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];
/// The default of `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Pods for which a node has addresses.
const PODS_OF_A_NODE: u32 = 4096;
/// Pods that a node has.
const PODS_ON_A_NODE: usize = 250;

/// A cluster as one of its nodes sees it.
pub struct Synthetic {
    /// The objects.
    pub cluster: Cluster,
    /// kube-proxy's configuration.
    pub proxy: ProxyConfig,
    /// Addresses of the node's interfaces.
    pub local_addresses: Vec<IpAddr>,
}

impl Synthetic {
    /// What is translated, and what the rules are generated from.
    pub fn input(&self) -> Input<'_> {
        Input {
            cluster: &self.cluster,
            proxy: &self.proxy,
            node_name: NODE,
            service_proxy_name: None,
            local_addresses: &self.local_addresses,
        }
    }
}

/// What is particular about a Service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    TwoPorts,
    Affinity,
    InternalLocal,
    Hints,
    Terminating,
    NoEndpoints,
    HostNetwork,
    NodePort,
    NodePortLocal,
    ExternalIp,
    ExternalIpNoEndpoints,
    Balancer,
    BalancerRanges,
    BalancerRangesNode,
    BalancerLocal,
    BalancerLocalNowhere,
}

/// The kind of each of 32 Services in turn.
const KINDS: [Kind; 32] = {
    use Kind::{
        Affinity, Balancer, BalancerLocal, BalancerLocalNowhere, BalancerRanges, BalancerRangesNode,
        ExternalIp, ExternalIpNoEndpoints, Hints, HostNetwork, InternalLocal, NoEndpoints, NodePort,
        NodePortLocal, Plain, Terminating, TwoPorts,
    };
    [
        Plain,
        TwoPorts,
        Plain,
        NodePort,
        Plain,
        Affinity,
        Plain,
        BalancerRanges, //
        Plain,
        NoEndpoints,
        Plain,
        BalancerLocal,
        Plain,
        Plain,
        Plain,
        InternalLocal, //
        Plain,
        ExternalIp,
        Plain,
        NodePortLocal,
        Plain,
        Hints,
        Plain,
        Balancer, //
        HostNetwork,
        Terminating,
        Plain,
        BalancerLocalNowhere,
        Plain,
        ExternalIpNoEndpoints,
        Plain,
        BalancerRangesNode,
    ]
};

/// A cluster of so many Services with so many endpoints each.
///
/// # Panics
/// If it has more than half a million endpoints: they run out of addresses.
pub fn synthetic(services: usize, endpoints: usize) -> Synthetic {
    let nodes = (services * endpoints / PODS_ON_A_NODE).max(3);
    assert!(nodes <= 2048, "{services} Services of {endpoints} endpoints are too many");
    let mut cluster = Cluster::default();
    for number in 0..nodes.min(3) {
        let node = node(number);
        cluster.nodes.insert(node.name.clone(), node);
    }
    let mut maker = Maker { nodes, pods: vec![0; nodes], node_ports: NODE_PORTS };
    for number in 0..services {
        let service = maker.service(number);
        for slice in maker.slices(number, &service, endpoints) {
            cluster.slices.insert(slice.key.clone(), slice);
        }
        cluster.services.insert(service.key.clone(), service);
    }
    let prefix = |text: &str| IpPrefix::parse(text).expect("a prefix");
    Synthetic {
        cluster,
        proxy: ProxyConfig {
            cluster_cidrs: vec![prefix("10.128.0.0/9"), prefix("fd00:128::/32")],
            ..ProxyConfig::default()
        },
        local_addresses: vec![node_v4(0).into(), node_v6(0).into()],
    }
}

fn node_v4(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 10).to_bits() + number as u32)
}

fn node_v6(number: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 10 + number as u16)
}

fn node(number: usize) -> Node {
    let prefix = |address, length| IpPrefix::new(address, length).expect("a length of the family");
    Node {
        name: format!("node-{number}"),
        zone: Some(ZONES[number % ZONES.len()].to_string()),
        internal_ips: vec![node_v4(number).into(), node_v6(number).into()],
        external_ips: Vec::new(),
        pod_cidrs: vec![prefix(pod_v4(number, 0).into(), 20), prefix(pod_v6(number, 0).into(), 64)],
        deletion: Deletion::No,
    }
}

fn pod_v4(node: usize, pod: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + node as u32 * PODS_OF_A_NODE + pod)
}

fn pod_v6(node: usize, pod: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x128, 0, node as u16, 0, 0, 0, pod as u16)
}

struct Maker {
    nodes: usize,
    /// Pods of each node so far.
    pods: Vec<u32>,
    node_ports: std::ops::RangeInclusive<u16>,
}

impl Maker {
    fn service(&mut self, number: usize) -> Service {
        let kind = KINDS[number % KINDS.len()];
        let of = |base: Ipv4Addr| IpAddr::from(Ipv4Addr::from_bits(base.to_bits() + number as u32 + 1));
        let of_v6 = |group: u16| {
            let (high, low) = ((number + 1) >> 16, (number + 1) & 0xffff);
            IpAddr::from(Ipv6Addr::new(0xfd00, group, 0, 0, 0, 0, high as u16, low as u16))
        };
        use Kind::{
            Affinity, Balancer, BalancerLocal, BalancerLocalNowhere, BalancerRanges, BalancerRangesNode,
            ExternalIp, ExternalIpNoEndpoints, InternalLocal, NodePort, NodePortLocal, TwoPorts,
        };
        let balancer = matches!(
            kind,
            Balancer | BalancerRanges | BalancerRangesNode | BalancerLocal | BalancerLocalNowhere
        );
        let external = matches!(kind, ExternalIp | ExternalIpNoEndpoints);
        let node_port =
            if balancer || matches!(kind, NodePort | NodePortLocal) { self.node_ports.next() } else { None };
        let local = matches!(kind, NodePortLocal | BalancerLocal | BalancerLocalNowhere);
        let mut ports =
            vec![ServicePort { name: "http".to_string(), protocol: Protocol::TCP, port: 80, node_port }];
        if kind == TwoPorts {
            ports.push(ServicePort {
                name: "dns".to_string(),
                protocol: Protocol::UDP,
                port: 53,
                node_port: None,
            });
        }
        let ranges: &[&str] = match kind {
            BalancerRanges => &["192.0.2.0/24", "203.0.113.128/25", "2001:db8:1::/48"],
            BalancerRangesNode => &["172.16.0.0/24", "fd00:172::/32"],
            _ => &[],
        };
        Service {
            key: NamespacedName::new(format!("ns-{}", number % 10), format!("svc-{number}")),
            created: None,
            kind: match (balancer, node_port) {
                (true, _) => ServiceType::LoadBalancer,
                (false, Some(_)) => ServiceType::NodePort,
                (false, None) => ServiceType::ClusterIP,
            },
            proxy_name: None,
            cluster_ips: vec![of(Ipv4Addr::new(10, 96, 0, 0)), of_v6(0x96)],
            ports,
            external_ips: match external {
                true => vec![of(Ipv4Addr::new(100, 64, 0, 0)), of_v6(0x64)],
                false => Vec::new(),
            },
            load_balancer_ips: match balancer {
                true => vec![of(Ipv4Addr::new(198, 18, 0, 0)), of_v6(0x198)],
                false => Vec::new(),
            },
            source_ranges: ranges.iter().map(|text| IpPrefix::parse(text).expect("a prefix")).collect(),
            internal_policy: match kind {
                InternalLocal => TrafficPolicy::Local,
                _ => TrafficPolicy::Cluster,
            },
            external_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            health_check_node_port: if balancer && local { self.node_ports.next() } else { None },
            affinity: (kind == Affinity).then_some(Duration::from_secs(10_800)),
        }
    }

    /// The slices of a Service, one for each family.
    fn slices(&mut self, number: usize, service: &Service, endpoints: usize) -> [EndpointSlice; 2] {
        let kind = KINDS[number % KINDS.len()];
        let endpoints = match kind {
            Kind::NoEndpoints | Kind::ExternalIpNoEndpoints => 0,
            _ => endpoints,
        };
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for at in 0..endpoints {
            let node = match kind {
                Kind::BalancerLocalNowhere => 1 + (number + at) % (self.nodes - 1),
                // One of them is here.
                Kind::NodePortLocal | Kind::BalancerLocal | Kind::InternalLocal if at == 0 => 0,
                _ => (number + at) % self.nodes,
            };
            let node = if kind == Kind::HostNetwork && at == 0 { 0 } else { node };
            let (address_v4, address_v6) = match kind == Kind::HostNetwork && at == 0 {
                true => (node_v4(0), node_v6(0)),
                false => {
                    self.pods[node] += 1;
                    assert!(self.pods[node] < PODS_OF_A_NODE, "node-{node} has no address left");
                    (pod_v4(node, self.pods[node]), pod_v6(node, self.pods[node]))
                }
            };
            let leaving = kind == Kind::Terminating && at % 2 == 0;
            let endpoint = |address| SliceEndpoint {
                address,
                ready: !leaving,
                serving: true,
                terminating: leaving,
                node_name: Some(format!("node-{node}")),
                zone_hints: match kind {
                    Kind::Hints => vec![ZONES[at % ZONES.len()].to_string()],
                    _ => Vec::new(),
                },
                node_hints: Vec::new(),
            };
            v4.push(endpoint(address_v4.into()));
            v6.push(endpoint(address_v6.into()));
        }
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|port| SlicePort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port + 8000,
            })
            .collect();
        [("v4", v4), ("v6", v6)].map(|(family, endpoints)| EndpointSlice {
            key: NamespacedName::new(&*service.key.namespace, format!("{}-{family}", service.key.name)),
            service: Some(service.key.clone()),
            headless: false,
            ports: ports.clone(),
            endpoints,
        })
    }
}
