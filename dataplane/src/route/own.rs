//! The routes that exist by themselves, because interfaces have addresses (RT-03).
//!
//! For tables that come from a file. A table mirrored from the kernel has them already.

use super::source::{InterfaceKind, Interfaces, LinkState};
use super::{NextHop, Route, RouteKind};
use crate::packet::{Address, Family, Prefix};

/// The connected subnets, the node's own addresses, broadcast and multicast, as the kernel makes them.
///
/// - each address is local; on a loopback interface the address's whole subnet is (127.0.0.0/8);
/// - a primary address connects its subnet, unless the interface is down: out of its port, or by way of the
///   host when the interface is none of Pollux's. An IPv4 subnet shorter than /31 has a broadcast address,
///   its last one (the first is an ordinary host since Linux 5.14);
/// - 127.0.0.0/8, 255.255.255.255 and 224.0.0.0/4; ::1 and ff00::/8.
///
/// fe80::/10 goes to the host, the node's own addresses apart: every link has the same prefix, so a table
/// without input ports cannot say which link is meant, and nobody forwards such packets from link to link.
pub fn own_routes<A: Family>(interfaces: &Interfaces<A>) -> Vec<Route<A>> {
    let mut routes = well_known::<A>();
    for interface in interfaces.iter() {
        let connected = match interface.port {
            _ if interface.kind == InterfaceKind::Loopback => RouteKind::Local,
            Some(port) => RouteKind::Via(NextHop::on_link(port)),
            None => RouteKind::Host,
        };
        for address in interface.addresses() {
            let subnet = address.subnet;
            let preferred_source = (A::VERSION == 4).then_some(address.address);
            routes.push(Route {
                preferred_source,
                ..Route::new(Prefix::host(address.address), RouteKind::Local)
            });
            if address.secondary && A::VERSION == 4 || interface.link == LinkState::Down {
                continue;
            }
            if subnet != Prefix::host(address.address) && !is_link_local(subnet) {
                routes.push(Route {
                    preferred_source,
                    link_down: interface.link == LinkState::NoCarrier,
                    ..Route::new(subnet, connected.clone())
                });
            }
            if A::VERSION == 4 && subnet.len() < 31 {
                routes.push(Route {
                    preferred_source,
                    ..Route::new(Prefix::host(subnet.last()), RouteKind::Broadcast)
                });
            }
        }
    }
    routes
}

fn well_known<A: Family>() -> Vec<Route<A>> {
    let of = |first_byte: u128, length, kind| {
        let address = A::Addr::from_bits(first_byte << (A::BITS - 8));
        Route::new(Prefix::new(address, length), kind)
    };
    if A::VERSION == 4 {
        let everyone = A::Addr::from_bits(u128::from(u32::MAX));
        vec![
            of(127, 8, RouteKind::Local),
            of(224, 4, RouteKind::Multicast),
            Route::new(Prefix::host(everyone), RouteKind::Broadcast),
        ]
    } else {
        let link_local = A::Addr::from_bits(0xfe80 << 112);
        vec![
            Route::new(Prefix::host(A::Addr::from_bits(1)), RouteKind::Local),
            of(0xff, 8, RouteKind::Multicast),
            Route::new(Prefix::new(link_local, 10), RouteKind::Host),
        ]
    }
}

fn is_link_local<A: Family>(subnet: Prefix<A>) -> bool {
    A::VERSION == 6 && subnet.address().bits() >> 118 == 0xfe80 >> 6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PortId, V4, V6};
    use crate::route::fixture::{DOCKER0, ENS3, interface, loopback, seed_fib};
    use crate::route::{Fib, Interface};

    fn kind(fib: &Fib<V4>, destination: &str) -> Option<RouteKind<V4>> {
        fib.lookup(destination.parse().unwrap()).map(|route| route.kind.clone())
    }

    #[test]
    fn rt_03_connected_local_broadcast_and_multicast_of_the_seed() {
        let fib = seed_fib();
        let ens3 = RouteKind::Via(NextHop::on_link(ENS3));
        assert_eq!(kind(&fib, "172.16.1.50"), Some(RouteKind::Local));
        assert_eq!(kind(&fib, "172.17.0.1"), Some(RouteKind::Local));
        assert_eq!(kind(&fib, "127.8.9.10"), Some(RouteKind::Local));
        assert_eq!(kind(&fib, "172.31.255.255"), Some(RouteKind::Broadcast));
        assert_eq!(kind(&fib, "172.17.255.255"), Some(RouteKind::Broadcast));
        assert_eq!(kind(&fib, "255.255.255.255"), Some(RouteKind::Broadcast));
        assert_eq!(kind(&fib, "224.0.0.251"), Some(RouteKind::Multicast));
        assert_eq!(kind(&fib, "172.16.0.0"), Some(ens3.clone()));
        assert_eq!(kind(&fib, "172.31.255.254"), Some(ens3));
        assert_eq!(kind(&fib, "172.17.0.2"), Some(RouteKind::Via(NextHop::on_link(DOCKER0))));
        let route = fib.lookup("172.16.9.9".parse().unwrap()).unwrap();
        assert_eq!(route.preferred_source, Some("172.16.1.50".parse().unwrap()));
    }

    #[test]
    fn rt_03_small_subnets_have_no_broadcast_and_host_addresses_no_subnet() {
        let fib = Fib::build(own_routes(&Interfaces::new(vec![
            interface("p0", Some(PortId(0)), &["10.0.0.0/31"]),
            interface("p1", Some(PortId(1)), &["10.0.1.1/32"]),
            interface("p2", Some(PortId(2)), &["10.0.2.1/30"]),
        ])));
        assert_eq!(kind(&fib, "10.0.0.1"), Some(RouteKind::Via(NextHop::on_link(PortId(0)))));
        assert_eq!(kind(&fib, "10.0.1.1"), Some(RouteKind::Local));
        assert_eq!(kind(&fib, "10.0.1.0"), None);
        assert_eq!(kind(&fib, "10.0.2.3"), Some(RouteKind::Broadcast));
    }

    #[test]
    fn rt_03_foreign_interfaces_lead_to_the_host_and_down_ones_nowhere() {
        let mut down = interface("down", Some(PortId(0)), &["10.9.0.1/24"]);
        down.link = LinkState::Down;
        let fib = Fib::build(own_routes(&Interfaces::new(vec![
            loopback(&["10.8.0.1/24"]),
            interface("wlan0", None, &["10.7.0.1/24"]),
            down,
        ])));
        assert_eq!(kind(&fib, "10.7.0.9"), Some(RouteKind::Host));
        assert_eq!(kind(&fib, "10.8.0.9"), Some(RouteKind::Local));
        assert_eq!(kind(&fib, "10.9.0.1"), Some(RouteKind::Local));
        assert_eq!(kind(&fib, "10.9.0.9"), None);
    }

    #[test]
    fn rt_03_ipv6_local_connected_link_local_and_multicast() {
        let mut ens3 = Interface::<V6>::new("ens3", Some(ENS3));
        ens3.add("2001:db8::50/64".parse().unwrap());
        ens3.add("fe80::50/64".parse().unwrap());
        let fib = Fib::build(own_routes(&Interfaces::new(vec![ens3])));
        let kind = |text: &str| fib.lookup(text.parse().unwrap()).map(|route| route.kind.clone());
        assert_eq!(kind("::1"), Some(RouteKind::Local));
        assert_eq!(kind("2001:db8::50"), Some(RouteKind::Local));
        assert_eq!(kind("2001:db8::51"), Some(RouteKind::Via(NextHop::on_link(ENS3))));
        assert_eq!(kind("fe80::50"), Some(RouteKind::Local));
        assert_eq!(kind("fe80::51"), Some(RouteKind::Host));
        assert_eq!(kind("ff02::1"), Some(RouteKind::Multicast));
        assert_eq!(kind("2001:db9::1"), None);
    }
}
