//! The node of PT-03: an uplink, a pod, and a Service in both families whose one backend is the pod. Clients are
//! outside, so their connections are masqueraded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Forwarder, Settings};
use pollux_dataplane::packet::{Family, LinkAddr, PortId, Prefix, Protocol, V4, V6};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::route::{Fib, Interface, Interfaces, Learned, NextHop, Route, RouteKind, own_routes};
use pollux_dataplane::service::{
    Backend, Builder, Detector, Frontend, FrontendAddress, FrontendKey, FrontendKind, Path, Policy,
};
use pollux_dataplane::tables::{
    Detected, FamilyTables, Foreign, PortInfo, Ports, ProxyArp, ReversePath, Role, Routing, Sharing, Tables,
};
use pollux_dataplane::time::Instant;

pub(crate) const UPLINK: PortId = PortId(0);
pub(crate) const POD: PortId = PortId(1);

/// Link addresses: of the node's two ports, of the gateway, of the pod.
pub(crate) const UPLINK_LINK: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const POD_PORT_LINK: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 2]);
pub(crate) const GATEWAY: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 3]);
pub(crate) const POD_LINK: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 4]);

/// A neighbour on the uplink that nobody knows at first.
pub(crate) const LATE: (Ipv4Addr, LinkAddr) = (Ipv4Addr::new(172, 16, 9, 9), LinkAddr([2, 0, 0, 0, 0, 5]));

pub(crate) const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 50);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0, 0, 0, 0, 0, 0, 0x50);
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0, 0, 0, 0, 0, 0, 1);
const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 151, 51, 7);
const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd51, 0, 0, 0, 0, 0, 0, 7);

pub(crate) const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(172, 20, 3, 4);
pub(crate) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 4);
pub(crate) const SERVICE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 150, 18, 86)), 80);
pub(crate) const SERVICE_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x86)), 80);

/// Largest IP packet of both ports.
const MTU: u32 = 1500;

/// The node's forwarder: always the same choices.
pub(crate) fn forwarder(pool: &'static Pool) -> Forwarder {
    let settings = Settings {
        connections: 1024,
        clients: 1024,
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
        seed: 0x706f_6c6c_7578,
    };
    let mut forwarder = Forwarder::new(&settings, pool).expect("the flow tables can be mapped");
    forwarder.set_tables(Arc::new(tables()));
    let now = Instant::ZERO;
    forwarder.neighbours_v4().learn(UPLINK, GATEWAY_V4, GATEWAY, Learned::Static, now);
    forwarder.neighbours_v4().learn(POD, POD_V4, POD_LINK, Learned::Static, now);
    forwarder.neighbours_v6().learn(UPLINK, GATEWAY_V6, GATEWAY, Learned::Static, now);
    forwarder.neighbours_v6().learn(POD, POD_V6, POD_LINK, Learned::Static, now);
    forwarder
}

fn tables() -> Tables {
    let port = |name: &str, role, link_address| PortInfo {
        name: name.to_owned(),
        role,
        link_address,
        mtu: MTU,
        foreign: Foreign::Drop,
        detected: Detected::Other,
        sharing: Sharing::Owned,
        proxy_arp: ProxyArp::Off,
        reverse_path: ReversePath::Off,
        reverse_path_v6: ReversePath::Off,
    };
    let ports = [port("uplink", Role::Uplink, UPLINK_LINK), port("pod", Role::Pod, POD_PORT_LINK)];
    let [IpAddr::V4(service_v4), IpAddr::V6(service_v6)] = [SERVICE_V4.ip(), SERVICE_V6.ip()] else {
        unreachable!("one address of each family");
    };
    Tables {
        ports: Arc::new(Ports::new(ports.into())),
        v4: Some(family::<V4>(
            &format!("{NODE_V4}/16"),
            &["172.20.0.0/16"],
            "10.151.0.0/16",
            GATEWAY_V4,
            POD_V4,
            service_v4,
        )),
        v6: Some(family::<V6>(
            &format!("{NODE_V6}/64"),
            &["fd20::/16"],
            "fd51::/16",
            GATEWAY_V6,
            POD_V6,
            service_v6,
        )),
        ..Tables::default()
    }
}

/// One family's tables: an uplink with the node's address, `outside` behind the gateway, the pod.
fn family<A: Family>(
    node: &str,
    outside: &[&str],
    pods: &str,
    gateway: A::Addr,
    pod: A::Addr,
    service: A::Addr,
) -> FamilyTables<A>
where
    Prefix<A>: std::str::FromStr<Err: std::fmt::Debug>,
{
    let prefix = |text: &str| text.parse::<Prefix<A>>().expect("a prefix");
    let mut uplink = Interface::new("uplink", Some(UPLINK));
    uplink.add(node.parse().expect("an address"));
    let interfaces = Interfaces::new(vec![uplink, Interface::new("pod", Some(POD))]);
    let mut routes: Vec<Route<A>> = outside
        .iter()
        .map(|outside| Route::new(prefix(outside), RouteKind::Via(NextHop::gateway(UPLINK, gateway))))
        .collect();
    routes.push(Route::new(prefix(&pod.to_string()), RouteKind::Via(NextHop::on_link(POD))));
    routes.extend(own_routes(&interfaces));
    let mut services = Builder::new(Policy { detector: Detector::Source(prefix(pods)), ..Policy::default() });
    for (number, protocol) in [Protocol::TCP, Protocol::UDP].into_iter().enumerate() {
        let set = services.backends([Backend { address: pod, port: 8080 }]);
        services.frontend(Frontend {
            key: FrontendKey {
                address: FrontendAddress::Address(service),
                port: SERVICE_V4.port(),
                protocol,
            },
            kind: FrontendKind::ClusterIp,
            service_port: number as u32,
            sources: None,
            path: Path::Internal(set),
            filter: None,
            affinity: None,
        });
    }
    FamilyTables {
        services: services.build(),
        routing: Arc::new(Routing { fib: Fib::build(routes), interfaces: Arc::new(interfaces) }),
        ..FamilyTables::default()
    }
}
