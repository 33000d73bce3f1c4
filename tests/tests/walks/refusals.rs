//! What is refused: W11 with an error, W13 without.

use std::net::Ipv4Addr;
use std::time::Duration;

use pollux_dataplane::stats::Reason;
use pollux_tests::frame::{Body, DONT_FRAGMENT, Frame, flag};
use pollux_tests::node::Node;
use pollux_tests::seed::{Cluster, NODE, OUTSIDE, POD_7, link, port};

use crate::assert_left;

/// A Service without endpoints.
const EMPTY: Ipv4Addr = Ipv4Addr::new(10, 150, 18, 99);

/// ICMP port unreachable from the node about `offending`, quoted as it came in.
fn port_unreachable(offending: &Frame) -> Frame {
    Frame {
        link_source: [0; 6],
        link_destination: [0; 6],
        tos: 0xc0,
        id: 0,
        fragment: 0,
        ttl: 64,
        source: NODE,
        destination: offending.source,
        body: Body::Icmp { kind: (3, 3), rest: [0; 4], payload: offending.bytes()[14..].to_vec() },
    }
}

fn assert_refused(node: &mut Node, port: &str, frame: &Frame, error: &Frame) {
    let refused = node.dropped(Reason::NoEndpoints);
    let left = node.send_one(port, &frame.bytes());
    assert_left(&left, port, error);
    assert_eq!(node.dropped(Reason::NoEndpoints), refused + 1);
    assert_eq!(node.connections(), 0, "nothing is kept of a refused packet");
}

#[test]
fn w11_a_pod_is_told_that_a_service_has_no_endpoints() {
    let mut node = Cluster::seed().with_empty_service().node();
    let syn = Frame::tcp((POD_7, 40000), (EMPTY, 80), flag::SYN).link(link::POD_7, link::CALI);
    let error = port_unreachable(&syn).link(link::CALI, link::POD_7);
    assert_refused(&mut node, port::POD_7, &syn, &error);
}

#[test]
fn w11_so_is_the_host() {
    let mut node = Cluster::seed().with_empty_service().node();
    let query = Frame::udp((NODE, 40000), (EMPTY, 53)).link(link::HOST, link::HOST_SIDE);
    let error = port_unreachable(&query).link(link::HOST_SIDE, link::HOST);
    assert_refused(&mut node, port::HOST, &query, &error);
}

#[test]
fn w11_so_is_a_client_outside() {
    let mut node = Cluster::seed().with_empty_service().with_neighbour(OUTSIDE, link::OUTSIDE).node();
    let syn = Frame::tcp((OUTSIDE, 40000), (EMPTY, 80), flag::SYN).link(link::OUTSIDE, link::ENS3);
    let error = port_unreachable(&syn).link(link::ENS3, link::OUTSIDE);
    assert_refused(&mut node, port::ENS3, &syn, &error);
}

#[test]
fn w11_a_port_that_the_service_does_not_have_is_not_refused() {
    // FE-05: no frontend, so the packet is routed as any other.
    let mut node = Cluster::seed().with_empty_service().node();
    let syn = Frame::tcp((POD_7, 40000), (EMPTY, 81), flag::SYN).link(link::POD_7, link::CALI);
    let left = node.send_one(port::POD_7, &syn.bytes());
    assert_left(&left, port::ENS3, &syn.link(link::ENS3, link::GATEWAY).ttl(63));
}

#[test]
fn w13_the_blackhole_swallows_what_no_pod_has() {
    let mut node = Cluster::seed().node();
    let nobody = Ipv4Addr::new(10, 151, 51, 99);
    let syn = Frame::tcp((POD_7, 40000), (nobody, 80), flag::SYN).link(link::POD_7, link::CALI);
    assert_eq!(node.send(port::POD_7, &syn.bytes()), [], "no error either (RT-02)");
    assert_eq!(node.dropped(Reason::RouteBlackhole), 1);
    assert_eq!(node.stats().dropped.total(), 1);
    assert_eq!(node.connections(), 0);
    assert_eq!(node.wait(Duration::from_secs(2)), []);
}

#[test]
fn nat_08_a_fragment_is_not_let_through_untranslated() {
    // NAT-08: its ports are not known, so what it belongs to is not either, until the first one comes.
    let mut node = Cluster::seed().node();
    let whole = Frame::udp((POD_7, 40000), (pollux_tests::seed::SERVICE, 80)).link(link::POD_7, link::CALI);
    let later = Frame { fragment: 0x0010, ..whole };
    assert_ne!(later.fragment & DONT_FRAGMENT, DONT_FRAGMENT);
    assert_eq!(node.send(port::POD_7, &later.bytes()), []);
    assert_eq!(node.stats().held, 1);
    assert_eq!(node.wait(Duration::from_secs(30)), []);
    assert_eq!((node.dropped(Reason::FragmentTimeout), node.stats().held), (1, 0));
}
