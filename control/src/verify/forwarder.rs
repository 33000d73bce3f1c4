//! The last word on the tables: the forwarder itself. Packets of some pieces go through it as frames, on a node that
//! is made up around the tables: a port for each interface, everything that is not local behind the first, and
//! what comes out is what the proof said.

use std::net::IpAddr;
use std::sync::Arc;

use pollux_dataplane::packet::{Address, Family, LinkAddr, PortId, Prefix, Protocol, TcpFlags, V4, V6};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::route::{
    Fib, Interface, InterfaceAddress, Interfaces, NextHop, Route, RouteKind, own_routes,
};
use pollux_dataplane::tables::{
    Detected, Foreign, MasqueradePorts, PortInfo, Ports, ProxyArp, ReversePath, Role, Routing, Sharing,
};

use super::outcome::{Distribution, Outcome, SourceNat};
use super::prove::PodInterface;
use super::report::Sample;
use crate::compile::{Compiled, compile};
use crate::config::Config;
use crate::node::{FamilyView, KnownNeighbour, NodeView};
use crate::trace::packet::PacketSpec;
use crate::trace::{Question, State, Verdict, trace};
use crate::translate::Input;

/// The node that is made up.
pub(super) struct Node {
    compiled: Compiled,
    view: NodeView,
    pool: &'static Pool,
}

/// Where everything lies that is not local: addresses for benchmarks (RFC 2544), and for documentation (RFC 3849).
const GATEWAYS: [&str; 2] = ["198.18.255.254", "2001:db8:ffff::254"];
const GATEWAY_LINK: LinkAddr = LinkAddr([0x02, 0, 0, 0, 1, 0]);

impl Node {
    /// A node with the tables of `input`, and a port for each of `interfaces`.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub(super) fn new(input: &Input<'_>, interfaces: &[String], pods: &PodInterface) -> Result<Self, String> {
        let port = |(number, name, role): (usize, String, Role)| PortInfo {
            detected: if pods.takes(&name) { Detected::Pod } else { Detected::Other },
            name,
            role,
            link_address: LinkAddr([0x02, 0, 0, 0, 0, number as u8]),
            mtu: 1500,
            foreign: Foreign::ToHost,
            sharing: Sharing::Owned,
            proxy_arp: ProxyArp::Off,
            reverse_path: ReversePath::Off,
            reverse_path_v6: ReversePath::Off,
        };
        let named = interfaces.iter().cloned().map(|name| (name, Role::Uplink));
        let all = named.chain([("host".to_string(), Role::Host)]).enumerate();
        let ports =
            Arc::new(Ports::new(all.map(|(number, (name, role))| port((number, name, role))).collect()));
        let neighbour = |gateway: &str| KnownNeighbour {
            port: PortId(0),
            address: gateway.parse().expect("a literal"),
            link: GATEWAY_LINK,
        };
        let view = NodeView {
            ports,
            v4: family_view::<V4>(input, &interfaces[0]),
            v6: family_view::<V6>(input, &interfaces[0]),
            neighbours: GATEWAYS.map(neighbour).to_vec(),
            masquerade_ports: MasqueradePorts::Random,
            listed_peers: Vec::new(),
        };
        let config = Config { proxy: input.proxy.clone(), node: None };
        let compiled = compile(input.cluster, &config, input.node_name, &view);
        let pool = Pool::new(64).map_err(|error| error.to_string())?;
        Ok(Node { compiled, view, pool })
    }

    /// Sends the packet, and compares what comes out with what was found.
    ///
    /// # Errors
    /// Says what came out instead.
    pub(super) fn judge<A: Family>(&self, sample: &Sample, found: &Distribution<A>) -> Result<(), String> {
        let question = Question {
            packet: PacketSpec {
                protocol: Protocol(sample.protocol),
                source: (sample.source, sample.source_port).into(),
                destination: (sample.destination, sample.destination_port).into(),
                flags: TcpFlags::SYN,
                ttl: 64,
            },
            input: sample.input.clone().unwrap_or_else(|| "host".into()),
            state: State::New,
            backend: None,
        };
        let seen = trace(&self.compiled, &self.view, self.pool, &question)
            .map_err(|error| format!("{sample:?}: the forwarder says {error}"))?;
        let mut said: Vec<(Option<(IpAddr, u16)>, bool)> = Vec::new();
        for branch in &found.branches {
            match &branch.outcome {
                Outcome::Passes(passed) => {
                    let to = passed.destination.map(|(address, port)| (address.into(), port));
                    said.push((to, passed.source == SourceNat::Masqueraded));
                }
                Outcome::Drops if seen.verdict == Verdict::Drop => return Ok(()),
                Outcome::Rejects(_) if seen.verdict == Verdict::Reject => return Ok(()),
                _ => {
                    return Err(format!(
                        "{sample:?}: the forwarder says {seen:?}, the proof {}",
                        branch.outcome
                    ));
                }
            }
        }
        let mut got: Vec<(Option<(IpAddr, u16)>, bool)> = Vec::new();
        for backend in &seen.backends {
            let address = backend.address.parse().map_err(|error| format!("{}: {error}", backend.address))?;
            got.push((Some((address, backend.port)), backend.masquerade));
        }
        let passes = matches!(seen.verdict, Verdict::Forward | Verdict::Deliver | Verdict::Hold);
        if got.is_empty() && passes {
            let source = seen.out.as_ref().map(|out| out.source.clone());
            got.push((None, source.is_some_and(|source| source != sample.source.to_string())));
        }
        said.sort_unstable();
        got.sort_unstable();
        if passes && said == got {
            return Ok(());
        }
        Err(format!("{sample:?}: the forwarder says {seen:?}, the proof {said:?}"))
    }
}

/// Whether the tables alone decide about a packet in the forwarder: the first of a connection of a protocol that it
/// tracks, with addresses that no hygiene drops before (FW-03), of a client that has no affinity yet.
pub(super) fn is_plain(sample: &Sample, local: impl Fn(IpAddr) -> bool) -> bool {
    let protocol = Protocol(sample.protocol);
    let odd = |address: IpAddr| match address {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0
                || address.octets()[0] >= 240
        }
        IpAddr::V6(address) => {
            address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local()
        }
    };
    let (source, destination) = (sample.source, sample.destination);
    let source_fits = match sample.input {
        Some(_) => !local(source),
        None => !source.is_loopback() || destination.is_loopback(),
    };
    sample.state == "new"
        && protocol.has_ports()
        && sample.destination_port != 0
        && sample.flags == TcpFlags::SYN.0
        && sample.noted.is_empty()
        && source_fits
        && !odd(source)
        && !odd(destination)
        && !(sample.input.is_some() && destination.is_loopback())
}

fn family_view<A: Family>(input: &Input<'_>, uplink: &str) -> FamilyView<A> {
    let mut lo = Interface::new("lo", None);
    let (loopback, length) = if A::VERSION == 4 { (127 << 24 | 1, 8) } else { (1, 128) };
    lo.add(InterfaceAddress::new(A::Addr::from_bits(loopback), length));
    let mut outside = Interface::new(uplink, Some(PortId(0)));
    for address in input.local_addresses::<A>() {
        let interface = if address.is_loopback() { &mut lo } else { &mut outside };
        interface.add(InterfaceAddress::new(address, A::BITS));
    }
    let interfaces = Interfaces::new(vec![lo, outside]);
    let mut routes = own_routes(&interfaces);
    let gateway = GATEWAYS.iter().find_map(|gateway| A::Addr::from_ip(gateway.parse().ok()?));
    routes.push(Route {
        prefix: Prefix::ALL,
        metric: 0,
        kind: RouteKind::Via(NextHop { port: PortId(0), gateway, onlink: true }),
        preferred_source: None,
        link_down: false,
    });
    FamilyView {
        linkdown_ignored: Vec::new(),
        routing: Arc::new(Routing { fib: Fib::build(routes), interfaces: Arc::new(interfaces) }),
        masquerade: Vec::new(),
    }
}
