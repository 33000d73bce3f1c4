//! The forwarder as a whole, on the seed's node slave1: frames in, exact bytes out. Expected frames are made
//! by etherparse, with checksums of its own. After every burst and every tick the balance of FW-05 is
//! asserted, so every test here is also a test of it.

mod affinity;
mod changes;
mod express;
mod fragments;
mod hygiene;
mod ipv6;
mod laws;
mod malformed;
mod neighbours;
mod related;
mod reverse;
mod routing;
mod siblings;
mod source_ports;
mod team;
mod tunnel;
mod walks;
mod wire;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use super::{Event, Forwarder, Output, Settings};
use crate::flow::{Sysctls, Timeouts};
use crate::packet::testing::pool;
use crate::packet::{Burst, LinkAddr, Packet, PortId, Prefix, Protocol, V4};
use crate::route::fixture::{
    CALI_1, CALI_2, CALI_7, CALI_8, DOCKER0, ENS3, TUNL0, seed_fib, seed_interfaces, seed_routes,
};
use crate::route::{Fib, Learned, News, Route};
use crate::service::{
    Backend, Builder, Detector, FilterRule, Frontend, FrontendAddress, FrontendKey, FrontendKind, Path,
    Policy, Services,
};
use crate::stats::{Reason, Stats};
use crate::tables::{
    Detected, FamilyTables, Foreign, Masquerade, MasqueradePorts, Peers, PortInfo, Ports, ProxyArp,
    ReversePath, Role, Routing, Sharing, Tables, Tunnel, TunnelDf, TunnelTtl,
};
use crate::time::Instant;
use wire::{Frame, Kind};

/// The node's own stack.
const HOST: PortId = PortId(7);

const NODE_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0x92, 0x11, 0xca]);
const SLAVE2: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0xa9, 0x16, 0x9f]);
const GATEWAY: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0xd2, 0x26, 0x34]);
/// The node behind the tunnel.
const FAR_NODE: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0, 2, 0x77]);
const CALI_LINK: LinkAddr = LinkAddr([0xee; 6]);
const POD_7: LinkAddr = LinkAddr([0x2e, 0, 0, 0, 0, 7]);
const POD_8: LinkAddr = LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]);
const DOCKER_LINK: LinkAddr = LinkAddr([2, 0x42, 0, 0, 0, 1]);
const CONTAINER: LinkAddr = LinkAddr([2, 0x42, 0, 0, 0, 5]);
const HOST_LINK: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 0x99]);
/// Source of what the forwarder gives the host.
const HOST_SIDE: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 1]);

/// Places of the backends of myapp.
const ON_SLAVE2: u32 = 0;
const ON_CALI_8: u32 = 2;

const MYAPP: &str = "10.150.18.86:80";

/// What a test changes of the seed's tables before they are put in force.
struct Cluster {
    ports: Vec<PortInfo>,
    routes: Vec<Route<V4>>,
    backends: Vec<&'static str>,
    policy: Policy<V4>,
    masquerade: MasqueradePorts,
    family: FamilyTables<V4>,
    tunnel: Tunnel,
    connections: usize,
    clients: usize,
}

/// A frame that left.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Out {
    port: PortId,
    bytes: Vec<u8>,
}

/// The forwarder of slave1, the time, and what was sent.
struct Node {
    forwarder: Forwarder,
    now: Instant,
    sent: Sent,
    events: Vec<Event>,
    transmitted: u64,
}

/// What was sent, and what was told to other workers.
#[derive(Default)]
struct Sent(Vec<(PortId, Packet)>, Vec<News>);

impl Output for Sent {
    fn send(&mut self, port: PortId, packet: Packet) {
        self.0.push((port, packet));
    }

    fn tell(&mut self, news: News) {
        self.1.push(news);
    }
}

fn port(name: &str, role: Role, link_address: LinkAddr, mtu: u32) -> PortInfo {
    PortInfo {
        name: name.into(),
        role,
        link_address,
        mtu,
        foreign: Foreign::ToHost,
        detected: Detected::Other,
        sharing: Sharing::Owned,
        proxy_arp: ProxyArp::Off,
        reverse_path: ReversePath::Off,
        reverse_path_v6: ReversePath::Off,
    }
}

/// The seed's node, to be changed before it starts.
fn cluster() -> Cluster {
    let cali = |name: &str| PortInfo { proxy_arp: ProxyArp::On, ..port(name, Role::Pod, CALI_LINK, 1480) };
    Cluster {
        ports: vec![
            port("ens3", Role::Uplink, NODE_LINK, 1500),
            port("docker0", Role::Pod, DOCKER_LINK, 1500),
            port("tunl0", Role::Uplink, LinkAddr([2, 0, 0, 0, 0, 0x77]), 1480),
            cali("cali1"),
            cali("cali2"),
            cali("cali566211caf94"),
            cali("caliee93b0bdd66"),
            port("pollux0", Role::Host, HOST_LINK, 1500),
        ],
        routes: seed_routes(),
        backends: vec!["10.151.49.8:80", "10.151.51.7:80", "10.151.51.8:80"],
        policy: Policy { detector: Detector::Source("10.151.0.0/16".parse().unwrap()), ..Policy::default() },
        masquerade: MasqueradePorts::Keep,
        family: FamilyTables {
            peers: Peers::new([(TUNL0, "172.16.2.77".parse().unwrap())]),
            ..FamilyTables::default()
        },
        tunnel: Tunnel {
            local: Some("172.16.1.50".parse().unwrap()),
            ttl: TunnelTtl::Fixed(64),
            dont_fragment: TunnelDf::Set,
        },
        connections: 4096,
        clients: 4096,
    }
}

/// The seed's node, running.
fn seed() -> Node {
    cluster().start()
}

fn backend(text: &str) -> Backend<V4> {
    let address: std::net::SocketAddrV4 = text.parse().unwrap();
    Backend { address: *address.ip(), port: address.port() }
}

fn key(text: &str, protocol: Protocol) -> FrontendKey<V4> {
    let Backend { address, port } = backend(text);
    FrontendKey { address: FrontendAddress::Address(address), port, protocol }
}

fn frontend(key: FrontendKey<V4>, path: Path, filter: Option<FilterRule>) -> Frontend<V4> {
    Frontend {
        key,
        kind: FrontendKind::ClusterIp,
        service_port: 0,
        sources: None,
        path,
        filter,
        affinity: None,
    }
}

impl Cluster {
    /// myapp, a UDP service, and a Service without endpoints (W11). myapp without backends is one as well.
    fn services(&self) -> Services<V4> {
        let mut builder = Builder::new(self.policy.clone());
        let set = builder.backends(self.backends.iter().map(|text| backend(text)));
        let rejected = self.backends.is_empty().then_some(FilterRule::Reject);
        let path = if self.backends.is_empty() { Path::FallThrough } else { Path::Internal(set) };
        builder.frontend(frontend(key(MYAPP, Protocol::TCP), path, rejected));
        let dns = builder.backends([backend("10.151.51.8:5353")]);
        builder.frontend(frontend(key("10.150.0.10:53", Protocol::UDP), Path::Internal(dns), None));
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let key = key("10.150.0.99:80", protocol);
            builder.frontend(frontend(key, Path::FallThrough, Some(FilterRule::Reject)));
        }
        builder.build()
    }

    fn tables(self) -> Tables {
        Tables {
            ports: Arc::new(Ports::new(self.ports.clone()).with_tunnels([(TUNL0, self.tunnel)])),
            v4: Some(FamilyTables {
                services: self.services(),
                routing: Arc::new(Routing {
                    fib: Fib::build(self.routes),
                    interfaces: Arc::new(seed_interfaces()),
                }),
                ..self.family
            }),
            v6: None,
            masquerade: Masquerade { ports: self.masquerade, ..Masquerade::default() },
        }
    }

    /// The forwarder with these tables, and the neighbours of the seed.
    fn start(self) -> Node {
        let settings = Settings {
            connections: self.connections,
            clients: self.clients,
            timeouts: Timeouts::default(),
            sysctls: Sysctls::default(),
            seed: 7,
        };
        let mut forwarder = Forwarder::new(&settings, pool()).unwrap();
        forwarder.set_tables(Arc::new(self.tables()));
        let now = Instant::from_secs(100);
        for (port, address, link) in [
            (ENS3, "172.16.0.1", GATEWAY),
            (ENS3, "172.16.1.88", SLAVE2),
            (ENS3, "172.16.2.77", FAR_NODE),
            (CALI_7, "10.151.51.7", POD_7),
            (CALI_8, "10.151.51.8", POD_8),
            (DOCKER0, "172.17.0.5", CONTAINER),
        ] {
            let address = address.parse().unwrap();
            forwarder.neighbours_v4().learn(port, address, link, Learned::Static, now);
        }
        Node { forwarder, now, sent: Sent::default(), events: Vec::new(), transmitted: 0 }
    }
}

/// A route of `kind` for `prefix`.
fn route(prefix: &str, kind: crate::route::RouteKind<V4>) -> Route<V4> {
    Route::new(prefix.parse::<Prefix<V4>>().unwrap(), kind)
}

impl Node {
    /// Lets new connections of this test take one backend.
    fn choosing(mut self, place: u32) -> Node {
        self.forwarder.fix_choice(Some(place));
        self
    }

    /// A frame that comes in by `port`, with the link addresses of the peer there.
    fn from(&mut self, port: PortId) -> Sender<'_> {
        let (link_source, link_destination) = match port {
            ENS3 => (SLAVE2, NODE_LINK),
            DOCKER0 => (CONTAINER, DOCKER_LINK),
            CALI_7 => (POD_7, CALI_LINK),
            CALI_8 => (POD_8, CALI_LINK),
            HOST => (HOST_LINK, HOST_SIDE),
            other => panic!("nobody is behind {other:?}"),
        };
        Sender { port, frame: Frame { link_source, link_destination, ..Frame::default() }, node: self }
    }

    /// Forwards one frame.
    fn receive(&mut self, port: PortId, bytes: &[u8]) -> Vec<Out> {
        self.receive_packet(Packet::copy_of(pool(), port, bytes).unwrap())
    }

    fn receive_packet(&mut self, packet: Packet) -> Vec<Out> {
        let mut burst: Burst = [packet].into_iter().collect();
        self.receive_burst(&mut burst)
    }

    fn receive_burst(&mut self, burst: &mut Burst) -> Vec<Out> {
        self.forwarder.stats_mut().received += burst.len() as u64;
        self.events.clear();
        self.forwarder.forward_observed(burst, self.now, &mut self.sent, &mut self.events);
        self.take_sent()
    }

    /// Chores, `after` from now.
    fn tick(&mut self, after: Duration) -> Vec<Out> {
        self.now = self.now + after;
        self.forwarder.tick(self.now, &mut self.sent);
        self.take_sent()
    }

    fn take_sent(&mut self) -> Vec<Out> {
        self.transmitted += self.sent.0.len() as u64;
        let sent = self.sent.0.drain(..).map(|(port, packet)| Out { port, bytes: packet.to_vec() }).collect();
        let stats = self.stats();
        let (came, went) = stats.balance();
        assert_eq!(came, went, "FW-05: {stats:?}");
        sent
    }

    fn stats(&self) -> Stats {
        Stats { transmitted: self.transmitted, ..self.forwarder.stats().clone() }
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.forwarder.stats().dropped.get(reason)
    }

    /// The node at another of its workers.
    fn sibling(&self) -> Node {
        let forwarder = self.forwarder.sibling(9);
        Node { forwarder, now: self.now, sent: Sent::default(), events: Vec::new(), transmitted: 0 }
    }

    fn set(&mut self, cluster: Cluster) {
        self.forwarder.set_tables(Arc::new(cluster.tables()));
    }

    fn flows(&self) -> usize {
        self.forwarder.flows_v4().len()
    }
}

/// A frame about to be sent to the node.
struct Sender<'a> {
    node: &'a mut Node,
    port: PortId,
    frame: Frame,
}

impl Sender<'_> {
    fn ttl(mut self, ttl: u8) -> Self {
        self.frame.ttl = ttl;
        self
    }

    fn dont_fragment(mut self) -> Self {
        self.frame.dont_fragment = true;
        self
    }

    fn payload(mut self, bytes: usize) -> Self {
        self.frame.payload = (0..bytes).map(|i| i as u8).collect();
        self
    }

    fn over_link(mut self, link: LinkAddr) -> Self {
        self.frame.link_destination = link;
        self
    }

    fn of(mut self, kind: Kind, source: &str, destination: &str) -> Vec<Out> {
        self.frame = self.frame.between(source, destination);
        self.frame.kind = kind;
        self.node.receive(self.port, &self.frame.bytes())
    }

    fn syn(self, source: &str, destination: &str) -> Vec<Out> {
        self.of(Kind::SYN, source, destination)
    }

    fn syn_ack(self, source: &str, destination: &str) -> Vec<Out> {
        self.of(Kind::SYN_ACK, source, destination)
    }

    fn ack(self, source: &str, destination: &str) -> Vec<Out> {
        self.of(Kind::ACK, source, destination)
    }

    fn fin(self, source: &str, destination: &str) -> Vec<Out> {
        self.of(Kind::FIN, source, destination)
    }

    fn rst(self, source: &str, destination: &str) -> Vec<Out> {
        self.of(Kind::RST, source, destination)
    }

    fn udp(self, source: &str, destination: &str) -> Vec<Out> {
        self.of(Kind::Udp, source, destination)
    }

    /// The frame itself, not sent.
    fn bytes(mut self, kind: Kind, source: &str, destination: &str) -> Vec<u8> {
        self.frame = self.frame.between(source, destination);
        self.frame.kind = kind;
        self.frame.bytes()
    }
}

/// The frame that is to leave, made from nothing.
fn out(
    port: PortId,
    link: (LinkAddr, LinkAddr),
    kind: Kind,
    source: &str,
    destination: &str,
    ttl: u8,
) -> Out {
    let frame = Frame { link_source: link.0, link_destination: link.1, kind, ttl, ..Frame::default() };
    Out { port, bytes: frame.between(source, destination).bytes() }
}

const TO_POD_8: (LinkAddr, LinkAddr) = (CALI_LINK, POD_8);
const TO_POD_7: (LinkAddr, LinkAddr) = (CALI_LINK, POD_7);
const TO_SLAVE2: (LinkAddr, LinkAddr) = (NODE_LINK, SLAVE2);
const TO_GATEWAY: (LinkAddr, LinkAddr) = (NODE_LINK, GATEWAY);
const TO_HOST: (LinkAddr, LinkAddr) = (HOST_SIDE, HOST_LINK);

/// The one frame that left must be an ICMP error; gives its port, type, code, source and destination, and
/// the packet that it quotes.
fn icmp_error(sent: &[Out]) -> wire::IcmpError {
    let [Out { port, bytes }] = sent else { panic!("not one frame: {sent:?}") };
    wire::IcmpError::read(*port, bytes)
}

#[test]
fn the_lab_has_all_ports_of_the_fixture() {
    let node = seed();
    for id in [ENS3, DOCKER0, TUNL0, CALI_1, CALI_2, CALI_7, CALI_8, HOST] {
        assert!(node.forwarder.tables().ports.get(id).is_some());
    }
    assert!(seed_fib().lookup("10.151.51.8".parse().unwrap()).is_some());
}
