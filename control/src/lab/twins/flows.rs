//! Which packets are sent: the flows that follow from a scenario's objects and rules.
//!
//! Every frontend that the objects or the rules name, from every kind of source; besides, what is no
//! frontend's: other ports and protocols of their addresses, pods and hosts by their own addresses, the node,
//! addresses and segments that must go nowhere. A case brings its own flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use pollux_dataplane::packet::Protocol;

use super::packet::{ACK, FIN, PSH, RST, SYN};
use super::scenario::{Family, Scenario};
use super::site::{Site, with_last};
use super::wire::Place;
use crate::cluster::{NamespacedName, Service};

/// Frontends that are sent to at most: of more, every n-th.
const FRONTENDS: usize = 24;

/// Kinds of first packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum First {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// UDP.
    Udp,
    /// UDP without a checksum.
    UdpUnchecked,
    /// SCTP's INIT.
    Sctp,
    /// An echo request.
    Echo,
    /// TCP's SYN with a wrong checksum.
    TcpWrong,
    /// UDP with a wrong checksum.
    UdpWrong,
}

impl First {
    fn of(protocol: Protocol) -> First {
        match protocol {
            Protocol::UDP => First::Udp,
            Protocol::SCTP => First::Sctp,
            _ => First::Tcp(SYN),
        }
    }

    /// The protocol that frontends are told apart by; echo requests concern none.
    fn protocol(self) -> Option<Protocol> {
        match self {
            First::Tcp(_) | First::TcpWrong => Some(Protocol::TCP),
            First::Udp | First::UdpUnchecked | First::UdpWrong => Some(Protocol::UDP),
            First::Sctp => Some(Protocol::SCTP),
            First::Echo => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            First::Tcp(SYN) => "tcp",
            First::Tcp(_) => "tcp segment",
            First::Udp => "udp",
            First::UdpUnchecked => "udp without checksum",
            First::Sctp => "sctp",
            First::Echo => "echo",
            First::TcpWrong => "tcp with a wrong checksum",
            First::UdpWrong => "udp with a wrong checksum",
        }
    }
}

/// Which ports clients use: the classes of masqueraded ones (NAT-05).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum ClientPorts {
    Below512,
    Below1024,
    High,
}

/// How many clients there are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Clients {
    /// All connections come from one address.
    One,
    /// Each connection comes from the next address.
    Each,
}

/// Connections that only differ in what is free: the client's port.
#[derive(Clone, Debug)]
pub(super) struct FlowSpec {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) first: First,
    pub(super) ttl: u8,
    pub(super) client_ports: ClientPorts,
    pub(super) clients: Clients,
    /// Whether a client keeps to its backend (AF-01), as far as the objects say.
    pub(super) sticky: bool,
    /// How many backends there may be, as far as the objects say; 1 where there is no choice.
    pub(super) backends: usize,
}

/// A frontend as a client knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Frontend {
    /// Nothing for a node port.
    address: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
}

/// What is known of a frontend besides.
#[derive(Clone, Debug, Default)]
struct Facts {
    endpoints: BTreeSet<IpAddr>,
    ranges: Vec<IpAddr>,
    sticky: bool,
}

/// Everything that is sent in a scenario.
pub(super) struct Flows {
    pub(super) specs: Vec<FlowSpec>,
    /// Services to test the distribution of, those with most endpoints first.
    pub(super) choosing: Vec<FlowSpec>,
}

struct Planner<'a> {
    site: &'a Site,
    v4: bool,
    specs: Vec<FlowSpec>,
}

impl Flows {
    /// The flows of a scenario on its site.
    pub(super) fn of(scenario: &Scenario, site: &Site) -> Flows {
        let v4 = scenario.family == Family::IPv4;
        let mut planner = Planner { site, v4, specs: Vec::new() };
        let frontends = frontends(scenario, v4);
        match &scenario.flows {
            Some(flows) => {
                for flow in flows {
                    planner.flow(flow.from, flow.to, flow.port, First::of(flow.protocol), &flow.name);
                }
            }
            None => planner.all(scenario, &frontends),
        }
        // How often a flow is sent depends on how many backends it may meet, whatever it is sent for.
        for spec in &mut planner.specs {
            let protocol = spec.first.protocol();
            let facts = protocol.and_then(|to| facts_at(&frontends, spec.destination, spec.port, to, site));
            if let Some(facts) = facts {
                (spec.backends, spec.sticky) = (facts.endpoints.len().max(1), facts.sticky);
            }
        }
        let choosing = planner.choosing(&frontends);
        Flows { specs: planner.specs, choosing }
    }
}

impl Planner<'_> {
    /// Adds a flow. Where it enters follows from its source.
    fn flow(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        port: u16,
        first: First,
        note: &str,
    ) -> &mut FlowSpec {
        let place = match self.site.is_local(source) {
            true => Place::Host,
            false => Place::Port(self.site.port_of(source)),
        };
        self.flow_at(place, source, destination, port, first, note)
    }

    fn flow_at(
        &mut self,
        place: Place,
        source: IpAddr,
        destination: IpAddr,
        port: u16,
        first: First,
        note: &str,
    ) -> &mut FlowSpec {
        let entry = match place {
            Place::Host => "host",
            Place::Port(number) => &self.site.ports[number],
        };
        let target = match first {
            First::Echo => destination.to_string(),
            _ => SocketAddr::new(destination, port).to_string(),
        };
        let name = format!("{note}: {} {source} > {target} in {entry}", first.name());
        self.specs.push(FlowSpec {
            name,
            place,
            source,
            destination,
            port,
            first,
            ttl: 64,
            client_ports: ClientPorts::High,
            clients: Clients::One,
            sticky: false,
            backends: 1,
        });
        self.specs.last_mut().expect("just added")
    }

    fn address(&self, v4: &str, v6: &str) -> IpAddr {
        if self.v4 { v4 } else { v6 }.parse().expect("an address")
    }

    fn locals(&self) -> Vec<IpAddr> {
        self.site.locals.iter().copied().filter(|address| address.is_ipv4() == self.v4).collect()
    }

    fn outside(&self) -> IpAddr {
        self.address("198.51.100.77", "2001:db8:77::77")
    }

    fn loopback(&self) -> IpAddr {
        self.address("127.0.0.1", "::1")
    }

    /// Sources that differ in what the rules ask about, each with a word for it.
    fn sources(&self, scenario: &Scenario, facts: &Facts) -> Vec<(IpAddr, &'static str)> {
        let mut sources = vec![(self.site.idle_pods[0], "pod"), (self.outside(), "client")];
        let (mut here, mut elsewhere) = (0, 0);
        for endpoint in &facts.endpoints {
            if self.site.pods.contains_key(endpoint) && here < 2 {
                sources.push((*endpoint, "endpoint here"));
                here += 1;
            } else if !self.site.is_local(*endpoint)
                && !self.site.pods.contains_key(endpoint)
                && elsewhere < 1
            {
                sources.push((*endpoint, "endpoint elsewhere"));
                elsewhere += 1;
            }
        }
        let other_node = scenario.cluster.nodes.values().find(|node| node.name != scenario.node_name);
        let other = other_node
            .and_then(|node| node.internal_ips.iter().copied().find(|address| address.is_ipv4() == self.v4));
        sources.extend(other.map(|address| (address, "other node")));
        sources.extend(facts.ranges.iter().map(|address| (*address, "in range")));
        sources.extend(self.locals().into_iter().take(2).map(|address| (address, "host")));
        sources.push((self.loopback(), "host loopback"));
        sources
    }

    fn all(&mut self, scenario: &Scenario, frontends: &BTreeMap<Frontend, Facts>) {
        let every = frontends.len().div_ceil(FRONTENDS).max(1);
        for (frontend, facts) in frontends.iter().step_by(every) {
            self.frontend(scenario, *frontend, facts);
        }
        self.plain(frontends);
        self.refused();
        if let Some((frontend, _)) = frontends.iter().find(|(frontend, facts)| {
            frontend.address.is_some() && frontend.protocol == Protocol::TCP && !facts.endpoints.is_empty()
        }) {
            self.segments(frontend.address.expect("just asked"), frontend.port);
        }
    }

    /// One frontend, from everywhere; its address on other ports and protocols from some.
    fn frontend(&mut self, scenario: &Scenario, frontend: Frontend, facts: &Facts) {
        let sources = self.sources(scenario, facts);
        let first = First::of(frontend.protocol);
        let other = if frontend.protocol == Protocol::UDP { First::Tcp(SYN) } else { First::Udp };
        let addresses = match frontend.address {
            Some(address) => vec![address],
            None => self.locals().into_iter().take(3).chain([self.loopback()]).collect(),
        };
        for address in addresses {
            let to_loopback = address.is_loopback();
            for (source, word) in &sources {
                // What leads to loopback comes from the host; `refused` has the others.
                if to_loopback && !self.site.is_local(*source) {
                    continue;
                }
                self.flow(*source, address, frontend.port, first, word);
            }
            let few = [sources[0], sources[1], *sources.last().expect("never empty")];
            for (source, word) in
                few.into_iter().filter(|(source, _)| !to_loopback || self.site.is_local(*source))
            {
                self.flow(source, address, frontend.port, other, &format!("{word}, other protocol"));
                self.flow(source, address, frontend.port ^ 1, first, &format!("{word}, other port"));
                self.flow(source, address, 1, First::Echo, word);
            }
        }
        if frontend.address.is_none() {
            // A node port is none on addresses that are not the node's.
            let pod = self.site.idle_pods[0];
            self.flow(self.outside(), pod, frontend.port, first, "client, node port of a pod");
        } else if let Some(address) = frontend.address {
            for ports in [ClientPorts::Below512, ClientPorts::Below1024] {
                let (source, word) = sources[1];
                let spec = self.flow(source, address, frontend.port, first, &format!("{word}, {ports:?}"));
                spec.client_ports = ports;
            }
        }
    }

    /// Traffic that concerns no Service.
    fn plain(&mut self, frontends: &BTreeMap<Frontend, Facts>) {
        let [pod, neighbour] = self.site.idle_pods;
        let (outside, locals) = (self.outside(), self.locals());
        let endpoints: Vec<IpAddr> =
            frontends.values().flat_map(|facts| facts.endpoints.iter().copied()).collect();
        let mut targets = vec![(neighbour, "neighbour"), (outside, "outside")];
        targets.extend(endpoints.iter().take(2).map(|address| (*address, "endpoint")));
        targets.extend(endpoints.iter().rev().take(1).map(|address| (*address, "endpoint")));
        targets.extend(locals.iter().take(2).map(|address| (*address, "node")));
        targets.extend(self.site.empty_address.map(|address| (address, "nobody")));
        let sources = [(pod, "pod"), (outside, "client"), (locals[0], "host")];
        for (source, from) in sources {
            for (target, to) in targets.iter().copied().filter(|(target, _)| *target != source) {
                let note = format!("{from} to {to}");
                for (first, port) in
                    [(First::Udp, 7001), (First::Tcp(SYN), 7001), (First::Sctp, 7001), (First::Echo, 1)]
                {
                    self.flow(source, target, port, first, &note);
                }
                self.flow(source, target, 7002, First::UdpUnchecked, &note);
                for ttl in [1, 2] {
                    let spec = self.flow(source, target, 7003, First::Udp, &format!("{note}, ttl {ttl}"));
                    spec.ttl = ttl;
                }
            }
        }
        self.flow(self.loopback(), locals[0], 7001, First::Udp, "loopback to node");
        self.flow(self.loopback(), self.loopback(), 7001, First::Tcp(SYN), "loopback to loopback");
        self.flow(locals[0], self.loopback(), 7001, First::Udp, "node to loopback");
    }

    /// Addresses that no packet from a port may have, or that it may have after all.
    fn refused(&mut self) {
        let [pod, neighbour] = self.site.idle_pods;
        let (outside, locals) = (self.outside(), self.locals());
        let uplink = Place::Port(0);
        let pod_port = Place::Port(self.site.port_of(pod));
        let sources: &[&str] = match self.v4 {
            true => &["127.0.0.1", "0.0.0.0", "224.0.0.9", "255.255.255.255", "240.0.0.9", "0.1.2.3"],
            false => &["::1", "::", "ff02::9", "ff0e::9", "::ffff:10.9.9.9"],
        };
        let sources = sources.iter().map(|text| text.parse().expect("an address")).chain([locals[0]]);
        for source in sources {
            for (place, target) in [(uplink, pod), (uplink, locals[0]), (pod_port, outside)] {
                self.flow_at(place, source, target, 7001, First::Udp, "strange source");
            }
        }
        let targets: &[&str] = match self.v4 {
            true => &["127.0.0.1", "0.0.0.0", "240.0.0.9"],
            false => &["::1", "::"],
        };
        for target in targets {
            let target = target.parse().expect("an address");
            self.flow_at(uplink, outside, target, 7001, First::Udp, "strange destination");
            self.flow_at(pod_port, neighbour, target, 7001, First::Udp, "strange destination");
        }
    }

    /// TCP segments that open no connection, and transport checksums that are wrong.
    fn segments(&mut self, service: IpAddr, port: u16) {
        let (pod, outside, node) = (self.site.idle_pods[0], self.outside(), self.locals()[0]);
        let kinds = [
            (First::Tcp(ACK | PSH), "ACK"),
            (First::Tcp(SYN | ACK), "SYN-ACK"),
            (First::Tcp(FIN | ACK), "FIN"),
            (First::Tcp(RST), "RST"),
            (First::Tcp(0), "no flag"),
            (First::Tcp(SYN | FIN), "SYN-FIN"),
            (First::TcpWrong, "wrong"),
            (First::UdpWrong, "wrong"),
        ];
        for (first, word) in kinds {
            self.flow(pod, service, port, first, &format!("pod to service, {word}"));
            self.flow(pod, outside, port, first, &format!("pod to outside, {word}"));
            self.flow(outside, node, 7001, first, &format!("client to node, {word}"));
        }
    }

    /// One clusterIP, or another frontend where there is none, of each service that has a choice.
    fn choosing(&self, frontends: &BTreeMap<Frontend, Facts>) -> Vec<FlowSpec> {
        let mut planner = Planner { site: self.site, v4: self.v4, specs: Vec::new() };
        let mut met = BTreeSet::new();
        let mut choosing: Vec<FlowSpec> = Vec::new();
        for (frontend, facts) in frontends {
            let Some(address) = frontend.address else { continue };
            let several = facts.endpoints.len() > 1;
            if !several || !met.insert((facts.endpoints.clone(), frontend.port, frontend.protocol)) {
                continue;
            }
            let first = First::of(frontend.protocol);
            let source = self.address("198.51.77.1", "2001:db8:77:1::1");
            let flow = planner.flow(source, address, frontend.port, first, "choice");
            flow.clients = Clients::Each;
            (flow.backends, flow.sticky) = (facts.endpoints.len(), facts.sticky);
            choosing.push(flow.clone());
        }
        choosing.sort_by_key(|choosing| std::cmp::Reverse(choosing.backends));
        choosing
    }
}

/// The facts of the frontend that a packet is addressed to.
fn facts_at<'a>(
    frontends: &'a BTreeMap<Frontend, Facts>,
    address: IpAddr,
    port: u16,
    protocol: Protocol,
    site: &Site,
) -> Option<&'a Facts> {
    let at = |address| frontends.get(&Frontend { address, port, protocol });
    at(Some(address)).or_else(|| at(None).filter(|_| site.is_local(address)))
}

/// The frontends of objects and rules. (One that the translation forgot would never be asked about if it
/// were asked for them.)
fn frontends(scenario: &Scenario, v4: bool) -> BTreeMap<Frontend, Facts> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == v4;
    let mut frontends: BTreeMap<Frontend, Facts> = BTreeMap::new();
    for service in scenario.cluster.services.values() {
        let addresses =
            service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
        let addresses: Vec<IpAddr> = addresses.filter(of_family).copied().collect();
        for port in &service.ports {
            let facts = Facts {
                endpoints: endpoints(scenario, &service.key, &port.name, v4),
                ranges: ranges(service, v4),
                sticky: service.affinity.is_some(),
            };
            let mut add = |address, number| {
                frontends
                    .entry(Frontend { address, port: number, protocol: port.protocol })
                    .or_insert_with(|| facts.clone());
            };
            addresses.iter().for_each(|address| add(Some(*address), port.port));
            if let Some(number) = port.node_port {
                add(None, number);
            }
        }
    }
    for line in scenario.rules.lines() {
        if let Some(frontend) = frontend_of_rule(line, v4) {
            frontends.entry(frontend).or_default();
        }
    }
    frontends
}

/// The frontend that a rule of a dump matches: `-d 10.150.0.68/32 -p tcp ... --dport 80`.
fn frontend_of_rule(line: &str, v4: bool) -> Option<Frontend> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    if !line.starts_with("-A KUBE-") || words.contains(&"!") {
        return None;
    }
    let port = after("--dport")?.parse().ok()?;
    let protocol = match *after("-p")? {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        _ => return None,
    };
    let address = match after("-d") {
        None => None,
        Some(prefix) => {
            let (address, length) = prefix.split_once('/').unwrap_or((prefix, if v4 { "32" } else { "128" }));
            let address: IpAddr = address.parse().ok()?;
            if length != if v4 { "32" } else { "128" } {
                return None;
            }
            Some(address)
        }
    };
    Some(Frontend { address, port, protocol })
}

fn endpoints(scenario: &Scenario, service: &NamespacedName, port: &str, v4: bool) -> BTreeSet<IpAddr> {
    let slices = scenario.cluster.slices.values();
    let slices = slices.filter(|slice| slice.service.as_ref() == Some(service));
    let named = slices.filter(|slice| slice.ports.iter().any(|candidate| candidate.name == port));
    let endpoints = named.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address);
    endpoints.filter(|address| address.is_ipv4() == v4).collect()
}

/// An address in each source range of the family, and the Service's own.
fn ranges(service: &Service, v4: bool) -> Vec<IpAddr> {
    let ranges = service.source_ranges.iter().filter(|range| range.address().is_ipv4() == v4);
    let mut addresses: Vec<IpAddr> = ranges
        .map(|range| {
            let full = if v4 { 32 } else { 128 };
            if range.len() == full { range.address() } else { with_last(range.address(), 9) }
        })
        .collect();
    if !addresses.is_empty() {
        addresses.extend(service.load_balancer_ips.iter().filter(|address| address.is_ipv4() == v4).take(1));
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_read_from_rules_as_well() {
        let read = |line| frontend_of_rule(line, true);
        let cluster_ip = "-A KUBE-SERVICES -d 10.150.0.68/32 -p tcp -m comment --comment \"default/lbl cluster IP\" \
                          -m tcp --dport 80 -j KUBE-SVC-D2MFFVPL6PYWC25E";
        assert_eq!(
            read(cluster_ip),
            Some(Frontend {
                address: Some("10.150.0.68".parse().unwrap()),
                port: 80,
                protocol: Protocol::TCP
            })
        );
        let node_port =
            "-A KUBE-NODEPORTS -p udp -m comment --comment \"x\" -m udp --dport 30068 -j KUBE-EXT-X";
        assert_eq!(read(node_port), Some(Frontend { address: None, port: 30068, protocol: Protocol::UDP }));
        assert_eq!(read("-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m tcp --dport 30068 -j X"), None);
        assert_eq!(read("-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80"), None);
    }
}
