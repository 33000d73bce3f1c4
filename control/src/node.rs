//! The node as the data plane sees it: its ports, its interfaces and routes, its neighbours. Made from
//! Pollux's own configuration ([`NodeView::configured`]); where that says `kernel`, the mirror fills it in.
//!
//! A view changes when the node does. Services come and go without touching it: what established flows look
//! at stays the same object.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use pollux_dataplane::packet::{Address, Family, LinkAddr, PortId, Prefix, V4, V6};
use pollux_dataplane::route::{
    Fib, Interface, InterfaceAddress, Interfaces, Multipath, NextHop, Route, RouteKind, own_routes,
    retain_usable,
};
use pollux_dataplane::tables::{
    self, Detected, Foreign, MasqueradePorts, MasqueradeRule, Peers, PortInfo, Ports, ProxyArp, ReversePath,
    Role, Routing, Sharing, Tunnel, TunnelDf, TunnelTtl,
};

use crate::cluster::IpPrefix;
use crate::config::node::{self, NodeConfig, RouteConfig, Source};
use crate::config::proxy::DetectLocal;
use crate::kernel::settings::LinkSettings;
use crate::problem::{Findings, Problem, Problems};

/// What the machine knows of an interface and the configuration need not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkFacts {
    /// Its link address.
    pub link_address: LinkAddr,
    /// The largest IP packet that fits, bytes.
    pub mtu: u32,
    /// What the kernel is told about it; the default where that does not count.
    pub settings: LinkSettings,
}

/// Interfaces by name.
pub type Links = BTreeMap<String, LinkFacts>;

/// A neighbour whose link address is configured, or was found by the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownNeighbour {
    /// The port that it is behind.
    pub port: PortId,
    /// Its address.
    pub address: IpAddr,
    /// Its link address.
    pub link: LinkAddr,
}

/// The node's part of the tables.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// The ports, numbered in the order of the configuration.
    pub ports: Arc<Ports>,
    /// IPv4.
    pub v4: FamilyView<V4>,
    /// IPv6.
    pub v6: FamilyView<V6>,
    /// Neighbours that need not be asked for.
    pub neighbours: Vec<KnownNeighbour>,
    /// Where masqueraded connections get their source port.
    pub masquerade_ports: MasqueradePorts,
    /// The other ends of tunnels, where the configuration lists them.
    pub listed_peers: Vec<(PortId, Vec<Ipv4Addr>)>,
}

/// The node's part of one family's tables.
#[derive(Clone, Debug, Default)]
pub struct FamilyView<A: Family> {
    /// Routes and interfaces.
    pub routing: Arc<Routing<A>>,
    /// Masquerade rules beside kube-proxy's mark.
    pub masquerade: Vec<MasqueradeRule<A>>,
    /// Ports out of which no route counts while the link has no carrier (RT-04).
    pub linkdown_ignored: Vec<PortId>,
}

/// What a port has that neither the configuration nor the machine gave a value: a locally administered
/// address made of the port's number, and Ethernet's MTU.
fn unknown_link(number: usize) -> LinkFacts {
    let [high, low] = (number as u16).to_be_bytes();
    LinkFacts {
        link_address: LinkAddr([0x02, 0, 0, 0, high, low]),
        mtu: 1500,
        settings: LinkSettings::default(),
    }
}

impl NodeView {
    /// The view that a configuration gives. `links`: the machine's interfaces, for what it leaves open;
    /// `detect`: which interfaces are pods' (MQ-02).
    ///
    /// # Errors
    /// Routes that cannot be forwarded by.
    pub fn configured(
        config: &NodeConfig,
        links: &Links,
        detect: &DetectLocal,
    ) -> Result<(NodeView, Vec<Problem>), Problems> {
        let mut findings = Findings::default();
        findings.enter_object("Node");
        let ports = Arc::new(configured_ports(config, links, detect));
        let view = NodeView {
            v4: family_view(config, &ports, links, &mut findings),
            v6: family_view(config, &ports, links, &mut findings),
            neighbours: configured_neighbours(config, &ports),
            masquerade_ports: match config.masquerade_ports {
                node::MasqueradePorts::Keep => MasqueradePorts::Keep,
                node::MasqueradePorts::Random => MasqueradePorts::Random,
            },
            listed_peers: listed_peers(config),
            ports,
        };
        findings.finish().map(|warnings| (view, warnings))
    }

    /// From whom tunnels take packets (TN-01): from the peers that are listed, else from the gateways of the routes
    /// that lead into the tunnel. Looks at all routes if there is such a tunnel.
    pub fn peers(&self) -> Peers<V4> {
        let is_listed = |port| self.listed_peers.iter().any(|(listed, _)| *listed == port);
        let by_routes = |port| self.ports.tunnel(port).is_some() && !is_listed(port);
        let listed = self.listed_peers.iter();
        let listed = listed.flat_map(|(port, peers)| peers.iter().map(|peer| (*port, *peer)));
        if !self.ports.tunnels().any(|(port, _)| by_routes(port)) {
            return Peers::new(listed);
        }
        let hops = self.v4.routing.fib.iter().flat_map(|route| route.kind.next_hops());
        let gateways =
            hops.filter(|hop| by_routes(hop.port)).filter_map(|hop| Some((hop.port, hop.gateway?)));
        Peers::new(listed.chain(gateways))
    }

    /// The addresses of all interfaces.
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        let v4 = self.v4.routing.interfaces.local_addresses().iter().map(|address| IpAddr::V4(*address));
        let v6 = self.v6.routing.interfaces.local_addresses().iter().map(|address| IpAddr::V6(*address));
        v4.chain(v6).collect()
    }
}

/// The port table, in the order of the configuration.
pub fn configured_ports(config: &NodeConfig, links: &Links, detect: &DetectLocal) -> Ports {
    let mtu = |port: &node::PortConfig, number| {
        let of_link = || links.get(&port.interface).map(|facts| facts.mtu);
        port.mtu.map(u32::from).or_else(of_link).unwrap_or(unknown_link(number).mtu)
    };
    let uplinks = config.ports.iter().enumerate();
    let uplinks = uplinks.filter(|(_, port)| port.role == node::Role::Uplink && port.tunnel.is_none());
    let in_tunnel = uplinks.map(|(number, port)| mtu(port, number)).min().unwrap_or(unknown_link(0).mtu);
    let in_tunnel = in_tunnel.saturating_sub(IPIP_OVERHEAD);
    let info = |(number, port): (usize, &node::PortConfig)| {
        let facts = links.get(&port.interface).copied().unwrap_or_else(|| unknown_link(number));
        PortInfo {
            name: port.name.clone(),
            role: match port.role {
                node::Role::Uplink => Role::Uplink,
                node::Role::Pod => Role::Pod,
                node::Role::Host => Role::Host,
            },
            link_address: port.link_address.unwrap_or(facts.link_address),
            mtu: match port.tunnel {
                Some(_) if port.mtu.is_none() && !links.contains_key(&port.interface) => in_tunnel,
                _ => mtu(port, number),
            },
            foreign: match port.foreign {
                node::Foreign::Host => Foreign::ToHost,
                node::Foreign::Drop => Foreign::Drop,
            },
            detected: match detect.takes_for_pods(&port.interface) {
                true => Detected::Pod,
                false => Detected::Other,
            },
            sharing: match port.backend {
                node::Backend::AfPacket => Sharing::WithKernel,
                node::Backend::AfXdp if port.xdp.steer == node::XdpSteer::Unicast => Sharing::WithKernel,
                node::Backend::AfXdp => Sharing::Owned,
                node::Backend::Dpdk
                    if port.device.as_ref().is_some_and(|device| device.shared_interface().is_some()) =>
                {
                    Sharing::WithKernel
                }
                node::Backend::Dpdk => Sharing::Owned,
                node::Backend::Tap | node::Backend::Pcap | node::Backend::Memory | node::Backend::Ipip => {
                    Sharing::Owned
                }
            },
            proxy_arp: match port.proxy_arp {
                node::ProxyArp::On => ProxyArp::On,
                node::ProxyArp::Off => ProxyArp::Off,
            },
            reverse_path: port
                .reverse_path
                .map_or_else(|| kernels_own(facts.settings.rp_filter), reverse_path),
            reverse_path_v6: port.reverse_path.map_or(ReversePath::Off, reverse_path),
        }
    };
    let tunnel = |(number, port): (usize, &node::PortConfig)| {
        let tunnel = port.tunnel.as_ref()?;
        let dont_fragment = match tunnel.path_mtu_discovery {
            node::PathMtuDiscovery::On => TunnelDf::Set,
            node::PathMtuDiscovery::Off => TunnelDf::Inherit,
        };
        let ttl = tunnel.ttl.map_or(TunnelTtl::Inherit, TunnelTtl::Fixed);
        Some((PortId(number as u16), Tunnel { local: tunnel.local, ttl, dont_fragment }))
    };
    let ports = config.ports.iter().enumerate();
    Ports::new(ports.clone().map(info).collect()).with_tunnels(ports.filter_map(tunnel))
}

/// What an IPIP packet's header takes of an MTU, bytes.
const IPIP_OVERHEAD: u32 = 20;

fn listed_peers(config: &NodeConfig) -> Vec<(PortId, Vec<Ipv4Addr>)> {
    let ports = config.ports.iter().enumerate();
    let listed = ports.filter_map(|(number, port)| {
        let peers = port.tunnel.as_ref()?.peers.as_ref()?;
        Some((PortId(number as u16), peers.clone()))
    });
    listed.collect()
}

fn reverse_path(configured: node::ReversePath) -> ReversePath {
    match configured {
        node::ReversePath::Off => ReversePath::Off,
        node::ReversePath::Strict => ReversePath::Strict,
        node::ReversePath::Loose => ReversePath::Loose,
    }
}

/// What a value of `rp_filter` means.
fn kernels_own(rp_filter: u8) -> ReversePath {
    match rp_filter {
        0 => ReversePath::Off,
        1 => ReversePath::Strict,
        _ => ReversePath::Loose,
    }
}

/// The ports out of which no route counts while the link has no carrier.
fn linkdown_ignored<A: Family>(config: &NodeConfig, links: &Links) -> Vec<PortId> {
    let ignored = |port: &node::PortConfig| match port.linkdown {
        Some(linkdown) => linkdown == node::Linkdown::Ignored,
        None => links.get(&port.interface).is_some_and(|facts| match A::VERSION {
            4 => facts.settings.ignores_linkdown,
            _ => facts.settings.ignores_linkdown_v6,
        }),
    };
    let ports = config.ports.iter().enumerate().filter(|(_, port)| ignored(port));
    ports.map(|(number, _)| PortId(number as u16)).collect()
}

fn family_view<A: Family>(
    config: &NodeConfig,
    ports: &Ports,
    links: &Links,
    findings: &mut Findings,
) -> FamilyView<A> {
    let interfaces = configured_interfaces::<A>(config, ports);
    let ignored = linkdown_ignored::<A>(config, links);
    let mut routes = own_routes(&interfaces);
    if let Source::Listed(listed) = &config.routes {
        routes.extend(listed.iter().filter_map(|route| configured_route(route, ports, &ignored, findings)));
    }
    retain_usable(&mut routes, &ignored);
    FamilyView {
        routing: Arc::new(Routing { fib: Fib::build(routes), interfaces: Arc::new(interfaces) }),
        masquerade: masquerade_rules(config, ports),
        linkdown_ignored: ignored,
    }
}

/// The interfaces of the configuration, `lo` among them.
fn configured_interfaces<A: Family>(config: &NodeConfig, ports: &Ports) -> Interfaces<A> {
    let mut interfaces = Vec::new();
    for (name, addresses) in config.interfaces_by_age() {
        let mut interface = Interface::new(name, ports.by_name(name));
        for node::InterfaceAddress { address, length } in addresses {
            if let Some(address) = A::Addr::from_ip(*address) {
                interface.add(InterfaceAddress::new(address, *length));
            }
        }
        interfaces.push(interface);
    }
    if !interfaces.iter().any(|interface| interface.name == "lo") {
        let mut lo = Interface::new("lo", None);
        let (loopback, length) = if A::VERSION == 4 { (127 << 24 | 1, 8) } else { (1, 128) };
        lo.add(InterfaceAddress::new(A::Addr::from_bits(loopback), length));
        interfaces.push(lo);
    }
    Interfaces::new(interfaces)
}

fn configured_route<A: Family>(
    route: &RouteConfig,
    ports: &Ports,
    linkdown_ignored: &[PortId],
    findings: &mut Findings,
) -> Option<Route<A>> {
    let prefix: Prefix<A> = route.to.of()?;
    let kind = match route.kind {
        node::RouteKind::Local => RouteKind::Local,
        node::RouteKind::Broadcast => RouteKind::Broadcast,
        node::RouteKind::Multicast => RouteKind::Multicast,
        node::RouteKind::Blackhole => RouteKind::Blackhole,
        node::RouteKind::Unreachable => RouteKind::Unreachable,
        node::RouteKind::Prohibit => RouteKind::Prohibit,
        node::RouteKind::Unicast => match route.next_hops.as_slice() {
            [hop] => match ports.by_name(&hop.dev) {
                Some(port) if A::VERSION == 6 && ports.tunnel(port).is_some() => {
                    let to = format!("route {}", route.to);
                    findings.error_in(&to, format!("{} is an IPIP tunnel and carries IPv4 only", hop.dev));
                    return None;
                }
                Some(port) => RouteKind::Via(NextHop {
                    port,
                    gateway: hop.via.and_then(A::Addr::from_ip),
                    onlink: hop.onlink == node::OnLink::Yes,
                }),
                // An interface that is no port: the host's kernel routes on.
                None => RouteKind::Host,
            },
            hops => several_ways(route.to, hops, ports, linkdown_ignored, findings)?,
        },
    };
    Some(Route {
        prefix,
        metric: route.metric,
        kind,
        preferred_source: route.source.and_then(A::Addr::from_ip),
        link_down: !route.next_hops.is_empty()
            && route.next_hops.iter().all(|hop| hop.link == node::LinkState::Down),
    })
}

/// The ways of a route that has several (RT-01). When one leads out of an interface that is no port, all packets
/// are the host's kernel's to route on.
fn several_ways<A: Family>(
    to: IpPrefix,
    hops: &[node::NextHopConfig],
    ports: &Ports,
    linkdown_ignored: &[PortId],
    findings: &mut Findings,
) -> Option<RouteKind<A>> {
    let mut ways = Vec::with_capacity(hops.len());
    for hop in hops {
        let Some(port) = ports.by_name(&hop.dev) else {
            if hops.iter().any(|hop| ports.by_name(&hop.dev).is_some()) {
                let dev = &hop.dev;
                findings.warn(format!("route {to}: {dev} is no port, so the host routes all its packets"));
            }
            return Some(RouteKind::Host);
        };
        if hop.link == node::LinkState::Down && linkdown_ignored.contains(&port) {
            continue;
        }
        let gateway = hop.via.and_then(A::Addr::from_ip);
        ways.push((NextHop { port, gateway, onlink: hop.onlink == node::OnLink::Yes }, hop.weight));
    }
    Multipath::new(ways).map(|ways| RouteKind::Multipath(Arc::new(ways)))
}

fn configured_neighbours(config: &NodeConfig, ports: &Ports) -> Vec<KnownNeighbour> {
    let Source::Listed(listed) = &config.neighbours else { return Vec::new() };
    let known = |neighbour: &node::NeighbourConfig| {
        Some(KnownNeighbour {
            port: ports.by_name(&neighbour.dev)?,
            address: neighbour.address,
            link: neighbour.link_address,
        })
    };
    listed.iter().filter_map(known).collect()
}

/// The masquerade rules that can match in the family.
pub fn masquerade_rules<A: Family>(config: &NodeConfig, ports: &Ports) -> Vec<MasqueradeRule<A>> {
    let rule = |rule: &node::MasqueradeRule| {
        Some(MasqueradeRule {
            name: rule.name.clone(),
            source: of_family(rule.source.as_ref())?,
            destination: of_family(rule.destination.as_ref())?,
            out: rule.out_port.as_ref().map(|name| match name {
                node::Match::Is(name) => tables::Match::Is(ports.by_name(name)),
                node::Match::IsNot(name) => tables::Match::Not(ports.by_name(name)),
            }),
        })
    };
    config.masquerade_rules.iter().filter_map(rule).collect()
}

/// The condition in the family; nothing when it names a prefix of the other one, so the rule is not this
/// family's.
pub(crate) fn of_family<A: Family>(
    condition: Option<&node::Match<IpPrefix>>,
) -> Option<Option<tables::Match<Prefix<A>>>> {
    match condition {
        None => Some(None),
        Some(node::Match::Is(prefix)) => prefix.of().map(|prefix| Some(tables::Match::Is(prefix))),
        Some(node::Match::IsNot(prefix)) => prefix.of().map(|prefix| Some(tables::Match::Not(prefix))),
    }
}
