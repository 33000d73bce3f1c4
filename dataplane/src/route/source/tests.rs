use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::packet::{V4, V6};
use crate::route::fixture::{
    CALI_7, CALI_8, DOCKER0, ENS3, TUNL0, interface, loopback, seed_fib, seed_interfaces,
    seed_interfaces_with,
};
use crate::route::{NextHop, Route};

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn masquerade(interfaces: &Interfaces<V4>, out: PortId, next_hop: &str) -> Option<Ipv4Addr> {
    interfaces.masquerade_source(Some(out), v4(next_hop), v4(next_hop))
}

#[test]
fn nat_04_port_without_address_takes_the_first_global_one() {
    let seed = seed_interfaces();
    assert_eq!(masquerade(&seed, CALI_8, "10.151.51.8"), Some(v4("172.16.1.50")));
}

#[test]
fn nat_04_global_address_on_lo_wins_for_ports_without_address() {
    let seed = seed_interfaces_with(&["192.0.2.7/32"]);
    assert_eq!(masquerade(&seed, CALI_8, "10.151.51.8"), Some(v4("192.0.2.7")));
    assert_eq!(masquerade(&seed, ENS3, "172.16.1.88"), Some(v4("172.16.1.50")));
}

#[test]
fn nat_04_tunnel_takes_its_own_address() {
    assert_eq!(masquerade(&seed_interfaces(), TUNL0, "172.16.2.77"), Some(v4("10.151.51.0")));
}

#[test]
fn nat_04_the_subnet_that_holds_the_next_hop_comes_first_then_the_first_primary() {
    let interfaces = Interfaces::new(vec![
        loopback(&[]),
        interface("eth0", Some(ENS3), &["192.0.2.1/24", "10.0.0.1/24", "10.0.0.2/24", "10.0.1.1/24"]),
    ]);
    assert_eq!(masquerade(&interfaces, ENS3, "10.0.0.9"), Some(v4("10.0.0.1")));
    assert_eq!(masquerade(&interfaces, ENS3, "10.0.1.9"), Some(v4("10.0.1.1")));
    assert_eq!(masquerade(&interfaces, ENS3, "198.51.100.1"), Some(v4("192.0.2.1")));
}

#[test]
fn nat_04_secondary_and_narrow_addresses_are_never_taken() {
    let mut eth0 = interface("eth0", Some(ENS3), &["10.0.0.1/24", "10.0.0.2/24"]);
    assert!(eth0.addresses()[1].secondary);
    eth0.addresses[0].scope = Scope::Link;
    let mut eth1 = interface("eth1", Some(DOCKER0), &["10.0.1.1/24", "10.0.2.1/24"]);
    eth1.addresses[0].scope = Scope::Link;
    let interfaces = Interfaces::new(vec![eth1, eth0, loopback(&[])]);
    // Neither its own link-scope address, nor the secondary, nor another's of scope link.
    assert_eq!(masquerade(&interfaces, ENS3, "10.0.0.9"), Some(v4("10.0.2.1")));
}

#[test]
fn nat_04_no_address_at_all_is_none() {
    let interfaces = Interfaces::new(vec![loopback(&[]), interface("cali", Some(CALI_8), &[])]);
    assert_eq!(masquerade(&interfaces, CALI_8, "10.151.51.8"), None);
    assert_eq!(masquerade(&Interfaces::default(), ENS3, "10.0.0.1"), None);
}

#[test]
fn nat_04_loopback_is_first_wherever_the_list_has_it() {
    let interfaces = Interfaces::new(vec![
        interface("eth0", Some(ENS3), &["10.0.0.1/24"]),
        interface("cali", Some(CALI_8), &[]),
        loopback(&["192.0.2.7/32"]),
    ]);
    assert_eq!(masquerade(&interfaces, CALI_8, "10.1.0.1"), Some(v4("192.0.2.7")));
}

#[test]
fn rt_04_error_source_is_the_route_s_preferred_source() {
    let (seed, fib) = (seed_interfaces(), seed_fib());
    let source = |offender: &str, destination: &str| seed.error_source(&fib, v4(destination), v4(offender));
    // Back over the default route with src; to a refused node port; back to a pod, whose port has no
    // address; back through tunl0 (gateway, so scope global, on its own interface).
    assert_eq!(source("8.8.8.8", "10.151.51.99"), Some(v4("172.16.1.50")));
    assert_eq!(source("8.8.8.8", "172.17.0.1"), Some(v4("172.17.0.1")));
    assert_eq!(source("10.151.51.7", "10.150.0.1"), Some(v4("172.16.1.50")));
    assert_eq!(source("10.151.32.5", "10.150.0.1"), Some(v4("10.151.51.0")));
    assert_eq!(source("172.17.0.1", "10.150.0.1"), Some(v4("172.17.0.1")));
}

#[test]
fn rt_04_error_source_of_an_on_link_route_may_have_scope_link() {
    let mut cali = interface("cali", Some(CALI_7), &["169.254.1.1/32"]);
    cali.addresses[0].scope = Scope::Link;
    let interfaces =
        Interfaces::new(vec![loopback(&[]), cali, interface("eth0", Some(ENS3), &["10.0.0.1/24"])]);
    let pod = Prefix::host(v4("10.1.0.7"));
    let on_link = Route::new(pod, RouteKind::Via(NextHop::on_link(CALI_7)));
    let gateway = Route::new(pod, RouteKind::Via(NextHop::gateway(CALI_7, v4("169.254.1.2"))));
    let source = |route| interfaces.error_source(&Fib::build(vec![route]), v4("8.8.8.8"), v4("10.1.0.7"));
    assert_eq!(source(on_link), Some(v4("169.254.1.1")));
    assert_eq!(source(gateway), Some(v4("10.0.0.1")));
}

#[test]
fn nb_01_arp_sender_is_the_waiting_packet_s_source_if_local() {
    let seed = seed_interfaces();
    let pod = v4("10.151.51.8");
    let source = |waiting: &str| seed.solicit_source(CALI_8, pod, Some(v4(waiting)));
    assert_eq!(source("172.17.0.1"), Some(v4("172.17.0.1")));
    assert_eq!(source("10.151.51.7"), Some(v4("172.16.1.50")));
    assert_eq!(seed.solicit_source(CALI_8, pod, None), Some(v4("172.16.1.50")));
}

#[test]
fn addrtype_local_is_every_address_and_all_of_127() {
    let seed = seed_interfaces();
    assert!(seed.is_local(v4("172.16.1.50")));
    assert!(seed.is_local(v4("10.151.51.0")));
    assert!(seed.is_local(v4("127.200.0.1")));
    assert!(!seed.is_local(v4("172.31.255.255")));
    assert!(!seed.is_local(v4("10.151.51.8")));
    assert!(Interfaces::<V6>::default().is_local(v6("::1")));
}

fn ipv6_node() -> Interfaces<V6> {
    let mut lo = Interface::new("lo", None);
    lo.add("::1/128".parse().unwrap());
    let mut eth0 = Interface::new("eth0", Some(ENS3));
    for text in ["2001:db8:1::1/64", "fd00::1/64", "2001:db8:2::1/64", "fe80::1/64"] {
        eth0.add(text.parse().unwrap());
    }
    let mut cali = Interface::new("cali", Some(CALI_8));
    cali.add("fe80::ecee:eeff:feee:eeee/64".parse().unwrap());
    Interfaces::new(vec![lo, eth0, cali])
}

fn masquerade_v6(node: &Interfaces<V6>, out: PortId, destination: &str) -> Option<Ipv6Addr> {
    node.masquerade_source(Some(out), v6("fe80::99"), v6(destination))
}

#[test]
fn nat_04_ipv6_rules_1_and_8_own_address_then_longest_prefix() {
    let node = ipv6_node();
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8:2::1"), Some(v6("2001:db8:2::1")));
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8:2::9"), Some(v6("2001:db8:2::1")));
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8:1::9"), Some(v6("2001:db8:1::1")));
}

#[test]
fn nat_04_ipv6_rule_2_scope_before_interface() {
    let node = ipv6_node();
    // The pod's port has a link-local address only: too narrow for a global destination.
    assert_eq!(masquerade_v6(&node, CALI_8, "2001:db8:1::9"), Some(v6("2001:db8:1::1")));
    assert_eq!(masquerade_v6(&node, CALI_8, "fe80::9"), Some(v6("fe80::ecee:eeff:feee:eeee")));
}

#[test]
fn nat_04_ipv6_rule_3_deprecated_last_and_tentative_never() {
    let mut node = ipv6_node();
    node.interfaces[1].addresses[0].lifetime = Lifetime::Deprecated;
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8:1::9"), Some(v6("2001:db8:2::1")));
    node.interfaces[1].addresses[2].lifetime = Lifetime::Tentative;
    node.interfaces[1].addresses[1].lifetime = Lifetime::Tentative;
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8:1::9"), Some(v6("2001:db8:1::1")));
}

#[test]
fn nat_04_ipv6_rule_5_output_interface_before_label_and_prefix() {
    let mut node = ipv6_node();
    node.interfaces[2].add("fd00:0:0:1::1/64".parse().unwrap());
    assert_eq!(masquerade_v6(&node, CALI_8, "2001:db8:1::9"), Some(v6("fd00:0:0:1::1")));
}

#[test]
fn nat_04_ipv6_rules_6_and_7_label_then_public() {
    let mut node = ipv6_node();
    assert_eq!(masquerade_v6(&node, ENS3, "fd99::9"), Some(v6("fd00::1")));
    node.interfaces[1].addresses[0].secondary = true;
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8:1::9"), Some(v6("2001:db8:2::1")));
}

#[test]
fn nat_04_ipv6_loopback_is_no_source() {
    let mut lo = Interface::<V6>::new("lo", None);
    lo.add("::1/128".parse().unwrap());
    let node = Interfaces::new(vec![lo]);
    assert_eq!(masquerade_v6(&node, ENS3, "2001:db8::1"), None);
}

#[test]
fn nb_01_ipv6_asks_from_the_interface_s_own_addresses() {
    let node = ipv6_node();
    let source = |out, waiting| node.solicit_source(out, v6("fe80::99"), Some(v6(waiting)));
    assert_eq!(source(ENS3, "2001:db8:2::1"), Some(v6("2001:db8:2::1")));
    assert_eq!(source(CALI_8, "2001:db8:2::1"), Some(v6("fe80::ecee:eeff:feee:eeee")));
    assert_eq!(node.solicit_source(PortId(99), v6("fe80::99"), None), None);
}
