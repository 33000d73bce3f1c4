//! From the document to a [`NodeConfig`], with every check that needs no look at the machine.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use pollux_dataplane::packet::{LinkAddr, V4, V6};
use pollux_dataplane::port::MAX_FRAME;
use serde_json::Value;

use super::values::{
    address, addresses, capture, cores, faults, filter, interface_name, parse, pattern, prefix, range, sysctl,
};
use super::wire::{
    Wire, WireInterface, WireNeighbour, WireNextHop, WirePort, WireRoute, WireRule, WireSource, WireTunnel,
};
use super::*;
use crate::document::typed;
use crate::problem::Findings;

/// Outer TTL of a tunnel that does not say.
const DEFAULT_TUNNEL_TTL: u8 = 64;

/// The most workers (their numbers are a byte in what they share).
const MOST_WORKERS: u32 = 256;

impl NodeConfig {
    /// Reads the document. None if something was wrong: `findings` has it.
    pub(in crate::config) fn read(value: Value, findings: &mut Findings) -> Option<NodeConfig> {
        findings.enter_object("Node");
        let errors = findings.error_count();
        let wire: Wire = match typed(value) {
            Ok(wire) => wire,
            Err(text) => {
                findings.error(text);
                return None;
            }
        };
        let mut config = NodeConfig {
            service_proxy_name: wire.service_proxy_name,
            workers: range("", "workers", wire.workers, 1..=MOST_WORKERS, findings).map(|n| n as u16),
            cores: cores(&wire.cores, findings),
            connections: range(
                "",
                "flowTable.connections",
                wire.flow_table.connections,
                1..=1 << 30,
                findings,
            ),
            clients: range("", "affinity.clients", wire.affinity.clients, 1..=1 << 28, findings),
            sysctl: sysctl(wire.sysctl, findings),
            dpdk: dpdk::read(wire.dpdk, findings),
            masquerade_ports: wire.masquerade.ports.unwrap_or_default(),
            ..NodeConfig::default()
        };
        if let Some(workers) = config.workers.map(usize::from)
            && !config.cores.is_empty()
            && config.cores.len() != workers
        {
            let cores = config.cores.len();
            findings.error(format!("workers {workers} is not the number of cores, which is {cores}"));
        }
        config.read_ports(wire.ports, wire.interfaces, findings);
        config.routes = match wire.routes {
            WireSource::Kernel => Source::Kernel,
            WireSource::Listed(routes) => Source::Listed(config.read_routes(routes, findings)),
        };
        config.neighbours = match wire.neighbours {
            WireSource::Kernel => Source::Kernel,
            WireSource::Listed(neighbours) => Source::Listed(config.read_neighbours(neighbours, findings)),
        };
        let rules = wire.masquerade.rules.into_iter().enumerate();
        config.masquerade_rules =
            rules.map(|(index, rule)| config.read_rule(index, rule, findings)).collect();
        (findings.error_count() == errors).then_some(config)
    }

    fn read_ports(&mut self, ports: Vec<WirePort>, interfaces: Vec<WireInterface>, findings: &mut Findings) {
        let mut names = HashSet::new();
        let mut indices = HashSet::new();
        let mut known = |part: &str, name: &str, index: Option<u32>, findings: &mut Findings| {
            match PortConfig::is_pattern(name) {
                true => pattern(part, name, findings),
                false => interface_name(part, "name", name, findings),
            }
            if !names.insert(name.to_string()) {
                findings.error_in(part, format!("name {name} is used by two ports or interfaces"));
            }
            if let Some(index) = index
                && !indices.insert(index)
            {
                findings.error_in(part, format!("index {index} is used by two ports or interfaces"));
            }
        };
        for wire in ports {
            let part = format!("port {}", wire.name);
            known(&part, &wire.name, wire.index, findings);
            if let Some(interface) = &wire.interface {
                interface_name(&part, "interface", interface, findings);
            }
            let link_address =
                wire.link_address.and_then(|text| parse::<LinkAddr>(&part, "linkAddress", &text, findings));
            if let Some(address) = link_address.filter(|address| address.is_group()) {
                findings.error_in(&part, format!("linkAddress {address} is a group address"));
            }
            let role = wire.role;
            let tunnel = match (wire.backend, wire.tunnel) {
                (Backend::Ipip, tunnel) => Some(read_tunnel(&part, tunnel.unwrap_or_default(), findings)),
                (_, Some(_)) => {
                    findings.error_in(&part, "has a tunnel and is none: its backend is not ipip");
                    None
                }
                (_, None) => None,
            };
            if tunnel.is_some() {
                let pointless = [
                    ("linkAddress", link_address.is_some()),
                    ("proxyArp", wire.proxy_arp),
                    ("foreign", wire.foreign.is_some()),
                    ("capture", wire.capture.is_some()),
                    ("trace", wire.trace.is_some()),
                    ("a role but uplink", role != Role::Uplink),
                ];
                for (what, _) in pointless.into_iter().filter(|(_, there)| *there) {
                    findings.error_in(&part, format!("is a tunnel and cannot have {what}"));
                }
            }
            let interface = wire.interface.as_ref().unwrap_or(&wire.name);
            let device = match wire.backend {
                Backend::Dpdk => {
                    dpdk::read_device(&part, (&wire.name, interface), wire.device, wire.queues, findings)
                }
                _ => {
                    let pointless = [("device", wire.device.is_some()), ("queues", wire.queues.is_some())];
                    for (what, _) in pointless.into_iter().filter(|(_, there)| *there) {
                        findings.error_in(&part, format!("has {what}, which only backend dpdk has"));
                    }
                    None
                }
            };
            if wire.xdp.is_some() && wire.backend != Backend::AfXdp {
                findings.error_in(&part, "has xdp, and its backend is not af_xdp");
            }
            let is_pattern = PortConfig::is_pattern(&wire.name);
            if is_pattern {
                let pointless = [
                    ("interface", wire.interface.is_some()),
                    ("linkAddress", link_address.is_some()),
                    ("addresses", !wire.addresses.is_empty()),
                    ("index", wire.index.is_some()),
                    ("capture", wire.capture.is_some()),
                    ("trace", wire.trace.is_some()),
                    ("the role host", role == Role::Host),
                ];
                for (what, _) in pointless.into_iter().filter(|(_, there)| *there) {
                    findings.error_in(
                        &part,
                        format!("stands for any number of interfaces and cannot have {what}"),
                    );
                }
                if !wire.backend.is_on_interface() {
                    findings.error_in(&part, "is a pattern of interfaces, which its backend does not have");
                }
            }
            let port = PortConfig {
                role,
                backend: wire.backend,
                interface: wire.interface.unwrap_or_else(|| wire.name.clone()),
                link_address,
                mtu: range(&part, "mtu", wire.mtu, 68..=65_535, findings).map(|mtu| mtu as u16),
                addresses: addresses(&part, wire.addresses, findings),
                proxy_arp: match wire.proxy_arp {
                    true => ProxyArp::On,
                    false => ProxyArp::Off,
                },
                reverse_path: wire.rp_filter,
                linkdown: wire.ignore_routes_with_linkdown.map(|ignore| match ignore {
                    true => Linkdown::Ignored,
                    false => Linkdown::Used,
                }),
                foreign: match (wire.foreign, role) {
                    (Some(foreign), _) => foreign,
                    (None, Role::Uplink) => Foreign::Host,
                    (None, Role::Pod | Role::Host) => Foreign::Drop,
                },
                index: wire.index,
                faults: wire.faults.map(|wire| faults(&part, &wire, findings)),
                capture: wire.capture.map(|wire| capture(&part, wire, findings)),
                trace: wire.trace.map(|wire| PortWatch {
                    filter: filter(&part, "trace.filter", wire.filter, findings),
                    snap_len: MAX_FRAME as u32,
                    view: wire.view,
                }),
                tunnel,
                device,
                xdp: xdp::read(&part, wire.xdp.unwrap_or_default(), findings),
                name: wire.name,
            };
            match is_pattern {
                true => self.patterns.push(port),
                false => self.ports.push(port),
            }
        }
        for wire in interfaces {
            let part = format!("interface {}", wire.name);
            if PortConfig::is_pattern(&wire.name) {
                findings.error_in(&part, "is a pattern, which only ports can be");
            }
            known(&part, &wire.name, wire.index, findings);
            self.interfaces.push(InterfaceConfig {
                addresses: addresses(&part, wire.addresses, findings),
                index: wire.index,
                name: wire.name,
            });
        }
        let with_index = indices.len();
        if with_index != 0 && with_index != self.ports.len() + self.interfaces.len() {
            findings.error("index must be set for every port and interface or for none");
        }
        let hosts: Vec<_> =
            self.ports.iter().filter(|port| port.role == Role::Host).map(|port| port.name.as_str()).collect();
        if let [first, second, ..] = hosts[..] {
            findings.error_in(
                &format!("port {second}"),
                format!("role host is taken by port {first}; there can be one host port"),
            );
        }
    }

    fn read_routes(&self, wire: Vec<WireRoute>, findings: &mut Findings) -> Vec<RouteConfig> {
        let mut routes = Vec::with_capacity(wire.len());
        let mut seen = HashSet::new();
        for wire in wire {
            let part = format!("route {}", wire.to);
            let errors = findings.error_count();
            let route = self.read_route(&part, wire, findings);
            if let Some(route) = route.filter(|_| findings.error_count() == errors) {
                if !seen.insert((route.to, route.metric)) {
                    findings.error_in(
                        &part,
                        format!("is there twice with metric {} (several ways are nextHops)", route.metric),
                    );
                }
                routes.push(route);
            }
        }
        for route in &routes {
            self.check_gateways(route, &routes, findings);
        }
        routes
    }

    fn read_route(&self, part: &str, wire: WireRoute, findings: &mut Findings) -> Option<RouteConfig> {
        let kind = wire.kind.unwrap_or(RouteKind::Unicast);
        let single = WireNextHop {
            via: wire.via,
            dev: wire.dev,
            weight: None,
            onlink: wire.onlink,
            link_down: wire.link_down,
        };
        let hops = match (wire.next_hops.is_empty(), single.via.is_some() || single.dev.is_some()) {
            (true, true) => vec![single],
            (true, false) => Vec::new(),
            (false, false) => wire.next_hops,
            (false, true) => {
                findings.error_in(part, "has nextHops beside via or dev");
                return None;
            }
        };
        let drops = matches!(kind, RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit);
        if drops && !hops.is_empty() {
            findings.error_in(part, "drops its packets, so it has no via, dev or nextHops");
        }
        if kind == RouteKind::Unicast && hops.is_empty() {
            findings.error_in(part, "has no via and no dev");
        }
        let next_hops: Vec<_> =
            hops.into_iter().filter_map(|hop| self.read_next_hop(part, hop, findings)).collect();
        let source = wire.source.and_then(|text| address(part, "source", &text, findings));
        let gateway = next_hops.iter().find_map(|hop| hop.via);
        let to = match wire.to.as_str() {
            "default" => {
                let any = match gateway.or(source) {
                    Some(IpAddr::V6(_)) => IpPrefix::parse("::/0"),
                    _ => IpPrefix::parse("0.0.0.0/0"),
                };
                any.expect("a prefix")
            }
            text => match prefix(text) {
                Some(to) => to,
                None => {
                    findings.error_in(part, format!("to {text:?} is not an address prefix nor default"));
                    return None;
                }
            },
        };
        let gateways = next_hops.iter().filter_map(|hop| hop.via.map(|via| ("via", via)));
        for (field, address) in gateways.chain(source.map(|source| ("source", source))) {
            if address.is_ipv4() != to.address().is_ipv4() {
                findings.error_in(part, format!("{field} {address} is of the other address family"));
            }
        }
        Some(RouteConfig { to, kind, next_hops, source, metric: wire.metric.unwrap_or(0) })
    }

    fn read_next_hop(&self, part: &str, wire: WireNextHop, findings: &mut Findings) -> Option<NextHopConfig> {
        let via = match wire.via {
            Some(text) => Some(address(part, "via", &text, findings)?),
            None => None,
        };
        let dev = match (wire.dev, via) {
            (Some(dev), _) => {
                self.check_device(part, "dev", &dev, findings);
                dev
            }
            (None, Some(via)) => match self.device_towards(via) {
                Some(dev) => dev.to_string(),
                None => {
                    findings.error_in(part, format!("via {via} lies in no subnet of a port: name its dev"));
                    return None;
                }
            },
            (None, None) => {
                findings.error_in(part, "a next hop has no via and no dev");
                return None;
            }
        };
        Some(NextHopConfig {
            via,
            dev,
            weight: range(part, "weight", wire.weight, 1..=256, findings).unwrap_or(1) as u16,
            onlink: match wire.onlink {
                true => OnLink::Yes,
                false => OnLink::No,
            },
            link: match wire.link_down {
                true => LinkState::Down,
                false => LinkState::Up,
            },
        })
    }

    /// A gateway must be on the link of its device: in a subnet of it, or covered by a route without gateway.
    fn check_gateways(&self, route: &RouteConfig, routes: &[RouteConfig], findings: &mut Findings) {
        for hop in &route.next_hops {
            let Some(via) = hop.via.filter(|_| hop.onlink == OnLink::No) else {
                continue;
            };
            let link_local = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
            let connected = self.addresses_of(&hop.dev).iter().any(|address| contains(address.subnet(), via));
            let covered = routes.iter().any(|other| {
                contains(other.to, via)
                    && other.next_hops.iter().any(|other| other.dev == hop.dev && other.via.is_none())
            });
            if !link_local && !connected && !covered {
                findings.error_in(
                    &format!("route {}", route.to),
                    format!("via {via} is not on the link of {} (or say onlink)", hop.dev),
                );
            }
        }
    }

    fn read_neighbours(&self, wire: Vec<WireNeighbour>, findings: &mut Findings) -> Vec<NeighbourConfig> {
        let mut neighbours: Vec<NeighbourConfig> = Vec::with_capacity(wire.len());
        let mut seen = HashSet::new();
        for wire in wire {
            let part = format!("neighbour {}", wire.address);
            self.check_device(&part, "dev", &wire.dev, findings);
            if self.port(&wire.dev).is_some_and(|port| port.tunnel.is_some()) {
                findings.error_in(&part, format!("dev {} is a tunnel, which has no link", wire.dev));
            }
            let address = address(&part, "address", &wire.address, findings);
            let link_address = parse::<LinkAddr>(&part, "linkAddress", &wire.link_address, findings);
            if let (Some(address), Some(link_address)) = (address, link_address) {
                if !seen.insert((wire.dev.clone(), address)) {
                    findings.error_in(&part, format!("is there twice on {}", wire.dev));
                }
                neighbours.push(NeighbourConfig { address, link_address, dev: wire.dev });
            }
        }
        neighbours
    }

    fn read_rule(&self, index: usize, wire: WireRule, findings: &mut Findings) -> MasqueradeRule {
        let name = wire.name.unwrap_or_else(|| (index + 1).to_string());
        let part = format!("masquerade rule {name}");
        let mut prefixes = |field: &str, text: Option<String>| {
            let (negated, text) = negation(text?);
            let Some(prefix) = prefix(&text) else {
                findings.error_in(&part, format!("{field} {text:?} is not an address prefix"));
                return None;
            };
            Some(negated.apply(prefix))
        };
        let source = prefixes("source", wire.source);
        let destination = prefixes("destination", wire.destination);
        if let (
            Some(Match::Is(source) | Match::IsNot(source)),
            Some(Match::Is(destination) | Match::IsNot(destination)),
        ) = (&source, &destination)
            && source.address().is_ipv4() != destination.address().is_ipv4()
        {
            findings.error_in(&part, "source and destination are of different address families");
        }
        let out_port = wire.out_port.map(|text| {
            let (negated, name) = negation(text);
            self.check_device(&part, "outPort", &name, findings);
            negated.apply(name)
        });
        MasqueradeRule { name, source, destination, out_port }
    }

    fn check_device(&self, part: &str, field: &str, name: &str, findings: &mut Findings) {
        let is_known = self.port(name).is_some()
            || self.interfaces.iter().any(|interface| interface.name == name)
            || self.port_by_pattern(name).is_some();
        if !is_known {
            findings.error_in(part, format!("{field} {name} is not a port or interface"));
        }
    }

    fn addresses_of(&self, name: &str) -> &[InterfaceAddress] {
        let interface = self.interfaces.iter().find(|interface| interface.name == name);
        match (self.port(name), interface) {
            (Some(port), _) => &port.addresses,
            (None, Some(interface)) => &interface.addresses,
            (None, None) => &[],
        }
    }

    /// The device whose longest subnet holds `via`.
    fn device_towards(&self, via: IpAddr) -> Option<&str> {
        let subnets = self
            .interfaces_by_age()
            .into_iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |address| (name, address.subnet())));
        subnets
            .filter(|(_, subnet)| contains(*subnet, via))
            .max_by_key(|(_, subnet)| subnet.len())
            .map(|(name, _)| name)
    }
}

fn read_tunnel(part: &str, wire: WireTunnel, findings: &mut Findings) -> TunnelConfig {
    let mut ipv4 = |field: &str, text: String| match text.parse::<Ipv4Addr>() {
        Ok(address) => Some(address),
        Err(_) => {
            findings.error_in(part, format!("tunnel.{field} {text:?} is not an IPv4 address"));
            None
        }
    };
    let local = wire.local.and_then(|text| ipv4("local", text));
    let peers =
        wire.peers.map(|peers| peers.into_iter().filter_map(|text| ipv4("peers", text)).collect::<Vec<_>>());
    TunnelConfig {
        local,
        ttl: match wire.ttl {
            None => Some(DEFAULT_TUNNEL_TTL),
            Some(Value::String(word)) if word == "inherit" => None,
            Some(Value::Number(ttl)) if ttl.as_i64().is_some() => {
                range(part, "tunnel.ttl", ttl.as_i64(), 1..=255, findings).map(|ttl| ttl as u8)
            }
            Some(other) => {
                findings.error_in(part, format!("tunnel.ttl {other} is not a number nor the word inherit"));
                None
            }
        },
        path_mtu_discovery: match wire.path_mtu_discovery.unwrap_or(true) {
            true => PathMtuDiscovery::On,
            false => PathMtuDiscovery::Off,
        },
        peers,
    }
}

/// Whether a condition was negated.
#[derive(Clone, Copy)]
enum Negation {
    Plain,
    Negated,
}

impl Negation {
    fn apply<T>(self, value: T) -> Match<T> {
        match self {
            Negation::Plain => Match::Is(value),
            Negation::Negated => Match::IsNot(value),
        }
    }
}

fn negation(text: String) -> (Negation, String) {
    match text.strip_prefix('!') {
        Some(rest) => (Negation::Negated, rest.trim_start().to_string()),
        None => (Negation::Plain, text),
    }
}

fn contains(prefix: IpPrefix, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => prefix.of::<V4>().is_some_and(|prefix| prefix.contains(address)),
        IpAddr::V6(address) => prefix.of::<V6>().is_some_and(|prefix| prefix.contains(address)),
    }
}
