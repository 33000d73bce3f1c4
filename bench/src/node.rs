//! The node of the benchmarks: the seed's slave1 with its ports, routes and neighbours, and the Service
//! `default/myapp`, 10.150.18.86:80, with one backend on another node and two on this one. Clients are
//! outside, behind the gateway, so that their connections are translated at both ends.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Forwarder, Settings};
use pollux_dataplane::packet::{LinkAddr, PortId, Prefix, Protocol, V4};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::route::{Fib, Interface, Interfaces, Learned, NextHop, Route, RouteKind, own_routes};
use pollux_dataplane::service::{
    Backend, Builder, Detector, Frontend, FrontendAddress, FrontendKey, FrontendKind, Path, Policy,
};
use pollux_dataplane::tables::{
    Detected, FamilyTables, Foreign, PortInfo, Ports, ProxyArp, ReversePath, Role, Routing, Sharing, Tables,
};
use pollux_dataplane::time::Instant;

/// The port of the cluster's network.
pub const ENS3: PortId = PortId(0);
const DOCKER0: PortId = PortId(1);
const TUNL0: PortId = PortId(2);
const CALI_1: PortId = PortId(3);
const CALI_2: PortId = PortId(4);
const CALI_7: PortId = PortId(5);
const CALI_8: PortId = PortId(6);
const HOST: PortId = PortId(7);

/// The link address of [`ENS3`].
pub const ENS3_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0x92, 0x11, 0xca]);
/// The link address of the gateway, behind which the clients are.
pub const GATEWAY_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0xd2, 0x26, 0x34]);
const POD_PORT_LINK: LinkAddr = LinkAddr([0xee; 6]);

/// The node's address: what connections are masqueraded with.
pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 50);
/// The Service.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 150, 18, 86), 80);

/// A backend of the Service and the way to it.
pub struct Place {
    /// Its address and port.
    pub address: SocketAddrV4,
    /// The port that leads there.
    pub port: PortId,
    /// The port's link address.
    pub port_link: LinkAddr,
    /// The link address of the backend, or of the node that it is on.
    pub link: LinkAddr,
}

/// The backends of the Service.
pub const BACKENDS: [Place; 3] = [
    Place {
        address: SocketAddrV4::new(Ipv4Addr::new(10, 151, 49, 8), 80),
        port: ENS3,
        port_link: ENS3_LINK,
        link: LinkAddr([0xfa, 0x16, 0x3e, 0xa9, 0x16, 0x9f]),
    },
    Place {
        address: SocketAddrV4::new(Ipv4Addr::new(10, 151, 51, 7), 80),
        port: CALI_7,
        port_link: POD_PORT_LINK,
        link: LinkAddr([0x5a, 0x11, 0x0c, 0x2b, 0x7d, 0x07]),
    },
    Place {
        address: SocketAddrV4::new(Ipv4Addr::new(10, 151, 51, 8), 80),
        port: CALI_8,
        port_link: POD_PORT_LINK,
        link: LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]),
    },
];

/// A forwarder with the node's tables and room for `connections` in each family.
///
/// # Panics
/// When the machine has no memory for it.
pub fn forwarder(pool: &'static Pool, connections: usize) -> Forwarder {
    let settings = Settings {
        connections,
        clients: 1024,
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
        seed: 0x706f_6c6c_7578,
    };
    let mut forwarder = Forwarder::new(&settings, pool).expect("the flow tables can be mapped");
    forwarder.set_tables(Arc::new(tables()));
    let mut neighbour = |port, address: Ipv4Addr, link| {
        forwarder.neighbours_v4().learn(port, address, link, Learned::Static, Instant::ZERO);
    };
    neighbour(ENS3, Ipv4Addr::new(172, 16, 0, 1), GATEWAY_LINK);
    neighbour(ENS3, Ipv4Addr::new(172, 16, 1, 88), BACKENDS[0].link);
    for local in &BACKENDS[1..] {
        neighbour(local.port, *local.address.ip(), local.link);
    }
    forwarder
}

fn tables() -> Tables {
    let interfaces = interfaces();
    let mut routes = routes();
    routes.extend(own_routes(&interfaces));
    let pods = prefix("10.151.0.0/16");
    let mut services = Builder::new(Policy { detector: Detector::Source(pods), ..Policy::default() });
    let backends = BACKENDS.map(|place| Backend { address: *place.address.ip(), port: place.address.port() });
    let set = services.backends(backends);
    services.frontend(Frontend {
        key: FrontendKey {
            address: FrontendAddress::Address(*SERVICE.ip()),
            port: SERVICE.port(),
            protocol: Protocol::TCP,
        },
        kind: FrontendKind::ClusterIp,
        service_port: 0,
        sources: None,
        path: Path::Internal(set),
        filter: None,
        affinity: None,
    });
    Tables {
        ports: Arc::new(ports()),
        v4: Some(FamilyTables {
            services: services.build(),
            routing: Arc::new(Routing { fib: Fib::build(routes), interfaces: Arc::new(interfaces) }),
            ..FamilyTables::default()
        }),
        ..Tables::default()
    }
}

fn ports() -> Ports {
    let port = |name: &str, role, link_address, mtu| PortInfo {
        name: name.to_owned(),
        role,
        link_address,
        mtu,
        foreign: Foreign::ToHost,
        detected: Detected::Other,
        sharing: Sharing::Owned,
        proxy_arp: ProxyArp::Off,
        reverse_path: ReversePath::Off,
        reverse_path_v6: ReversePath::Off,
    };
    Ports::new(vec![
        port("ens3", Role::Uplink, ENS3_LINK, 1500),
        port("docker0", Role::Pod, LinkAddr([2, 0x42, 0, 0, 0, 1]), 1500),
        port("tunl0", Role::Uplink, LinkAddr([2, 0, 0, 0, 0, 2]), 1480),
        port("cali1", Role::Pod, POD_PORT_LINK, 1480),
        port("cali2", Role::Pod, POD_PORT_LINK, 1480),
        port("cali566211caf94", Role::Pod, POD_PORT_LINK, 1480),
        port("caliee93b0bdd66", Role::Pod, POD_PORT_LINK, 1480),
        port("host", Role::Host, LinkAddr([2, 0, 0, 0, 0, 7]), 1500),
    ])
}

fn interfaces() -> Interfaces<V4> {
    let interface = |name: &str, port, addresses: &[&str]| {
        let mut interface = Interface::new(name, port);
        for address in addresses {
            interface.add(address.parse().expect("an address"));
        }
        interface
    };
    Interfaces::new(vec![
        interface("lo", None, &["127.0.0.1/8"]),
        interface("ens3", Some(ENS3), &["172.16.1.50/12"]),
        interface("docker0", Some(DOCKER0), &["172.17.0.1/16"]),
        interface("tunl0", Some(TUNL0), &["10.151.51.0/32"]),
        interface("cali1", Some(CALI_1), &[]),
        interface("cali2", Some(CALI_2), &[]),
        interface("cali566211caf94", Some(CALI_7), &[]),
        interface("caliee93b0bdd66", Some(CALI_8), &[]),
        interface("host", Some(HOST), &[]),
    ])
}

fn routes() -> Vec<Route<V4>> {
    let via = |text: &str, hop| Route::new(prefix(text), RouteKind::Via(hop));
    let gateway = |text: &str, port, [a, b, c, d]: [u8; 4]| {
        via(text, NextHop::gateway(port, Ipv4Addr::new(a, b, c, d)))
    };
    vec![
        gateway("0.0.0.0/0", ENS3, [172, 16, 0, 1]),
        gateway("10.151.32.0/24", TUNL0, [172, 16, 2, 77]),
        gateway("10.151.49.0/24", ENS3, [172, 16, 1, 88]),
        Route::new(prefix("10.151.51.0/24"), RouteKind::Blackhole),
        via("10.151.51.1", NextHop::on_link(CALI_1)),
        via("10.151.51.2", NextHop::on_link(CALI_2)),
        via("10.151.51.7", NextHop::on_link(CALI_7)),
        via("10.151.51.8", NextHop::on_link(CALI_8)),
        gateway("10.151.161.0/24", ENS3, [172, 16, 1, 221]),
        gateway("10.151.208.0/24", ENS3, [172, 16, 1, 203]),
        gateway("169.254.169.254", ENS3, [172, 16, 0, 1]),
    ]
}

fn prefix(text: &str) -> Prefix<V4> {
    text.parse().expect("a prefix")
}
