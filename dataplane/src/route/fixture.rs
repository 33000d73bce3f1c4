//! The seed's node slave1, for tests: its interfaces and routes.

use super::source::{InterfaceKind, LinkState};
use super::*;
use crate::packet::V4;

pub(crate) const ENS3: PortId = PortId(0);
pub(crate) const DOCKER0: PortId = PortId(1);
pub(crate) const TUNL0: PortId = PortId(2);
pub(crate) const CALI_1: PortId = PortId(3);
pub(crate) const CALI_2: PortId = PortId(4);
/// cali566211caf94, 10.151.51.7.
pub(crate) const CALI_7: PortId = PortId(5);
/// caliee93b0bdd66, 10.151.51.8.
pub(crate) const CALI_8: PortId = PortId(6);

/// lo, with `extra` addresses beside 127.0.0.1.
pub(crate) fn loopback(extra: &[&str]) -> Interface<V4> {
    let mut lo = interface("lo", None, &["127.0.0.1/8"]);
    lo.kind = InterfaceKind::Loopback;
    for text in extra {
        lo.add(text.parse().unwrap());
    }
    lo
}

pub(crate) fn interface(name: &str, port: Option<PortId>, addresses: &[&str]) -> Interface<V4> {
    let mut interface = Interface::new(name, port);
    for text in addresses {
        interface.add(text.parse().unwrap());
    }
    interface
}

/// The interfaces, with `extra` addresses on lo.
pub(crate) fn seed_interfaces_with(extra: &[&str]) -> Interfaces<V4> {
    let mut docker = interface("docker0", Some(DOCKER0), &["172.17.0.1/16"]);
    docker.link = LinkState::NoCarrier;
    Interfaces::new(vec![
        loopback(extra),
        interface("ens3", Some(ENS3), &["172.16.1.50/12"]),
        docker,
        interface("tunl0", Some(TUNL0), &["10.151.51.0/32"]),
        interface("cali1", Some(CALI_1), &[]),
        interface("cali2", Some(CALI_2), &[]),
        interface("cali566211caf94", Some(CALI_7), &[]),
        interface("caliee93b0bdd66", Some(CALI_8), &[]),
    ])
}

pub(crate) fn seed_interfaces() -> Interfaces<V4> {
    seed_interfaces_with(&[])
}

pub(crate) fn seed_routes() -> Vec<Route<V4>> {
    let gateway = |prefix: &str, gateway: &str| {
        Route::new(prefix.parse().unwrap(), RouteKind::Via(NextHop::gateway(ENS3, gateway.parse().unwrap())))
    };
    let pod =
        |address: &str, port| Route::new(address.parse().unwrap(), RouteKind::Via(NextHop::on_link(port)));
    let mut routes = vec![
        Route {
            metric: 100,
            preferred_source: Some("172.16.1.50".parse().unwrap()),
            ..gateway("0.0.0.0/0", "172.16.0.1")
        },
        Route::new(
            "10.151.32.0/24".parse().unwrap(),
            RouteKind::Via(NextHop {
                onlink: true,
                ..NextHop::gateway(TUNL0, "172.16.2.77".parse().unwrap())
            }),
        ),
        gateway("10.151.49.0/24", "172.16.1.88"),
        Route::new("10.151.51.0/24".parse().unwrap(), RouteKind::Blackhole),
        pod("10.151.51.1", CALI_1),
        pod("10.151.51.2", CALI_2),
        pod("10.151.51.7", CALI_7),
        pod("10.151.51.8", CALI_8),
        gateway("10.151.161.0/24", "172.16.1.221"),
        gateway("10.151.208.0/24", "172.16.1.203"),
        gateway("169.254.169.254", "172.16.0.1"),
    ];
    routes.extend(own_routes(&seed_interfaces()));
    routes
}

pub(crate) fn seed_fib() -> Fib<V4> {
    Fib::build(seed_routes())
}
