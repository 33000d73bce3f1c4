//! Through the tunnel to another subnet's node: W10, under the example's configuration.

use std::net::Ipv4Addr;

use etherparse::{IpNumber, Ipv4Header};
use pollux_dataplane::stats::Reason;
use pollux_tests::frame::{Fields, Frame, assert_checksums, flag, inside};
use pollux_tests::node::{Left, Node};
use pollux_tests::seed::{Cluster, FAR_NODE, NODE, POD_7, SERVICE, link, port};

use crate::assert_left;

/// The backend behind 172.16.2.77.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 151, 32, 5);
/// slave1's end of the tunnel, as pods see it.
const TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 151, 51, 0);

fn cluster() -> Cluster {
    Cluster::seed()
        .edit_objects("  - addresses:\n    - 10.151.49.8\n", "  - addresses:\n    - 10.151.32.5\n")
        .with_neighbour(FAR_NODE, link::FAR_NODE)
}

fn node(cluster: &Cluster) -> Node {
    let mut node = cluster.node();
    node.choose("default/myapp", "10.151.32.5:80");
    node
}

/// A frame in the tunnel.
fn tunnelled(inner: &Frame, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let frame = inner.bytes();
    let packet = &frame[14..];
    let len = packet.len() as u16;
    let mut outer =
        Ipv4Header::new(len, 64, IpNumber(4), source.octets(), destination.octets()).expect("short");
    outer.dont_fragment = true;
    outer.header_checksum = outer.calc_header_checksum();
    [&frame[..14], &outer.to_bytes(), packet].concat()
}

fn assert_through(left: &Left, inner: Frame) {
    let expected = inner.link(link::ENS3, link::FAR_NODE);
    assert_eq!(left.port, port::ENS3);
    assert_eq!(left.bytes, tunnelled(&expected, NODE, FAR_NODE), "{expected:#?}");
    assert_checksums(&inside(&left.bytes));
}

/// A frame from the other node, through the tunnel.
fn from_far(inner: Frame) -> Vec<u8> {
    tunnelled(&inner.link(link::FAR_NODE, link::ENS3), FAR_NODE, NODE)
}

#[test]
fn w10_pod_to_service_with_a_backend_behind_the_tunnel() {
    let mut node = node(&cluster());
    let syn = Frame::tcp((POD_7, 40000), (SERVICE, 80), flag::SYN);
    let left = node.send_one(port::POD_7, &syn.clone().link(link::POD_7, link::CALI).bytes());
    assert_through(&left, syn.to(BEHIND, 80).ttl(63));
    let answer = Frame::tcp((BEHIND, 80), (POD_7, 40000), flag::SYN | flag::ACK).ttl(63);
    let left = node.send_one(port::ENS3, &from_far(answer.clone()));
    let seen = answer.from(SERVICE, 80).ttl(62).link(link::CALI, link::POD_7);
    assert_left(&left, port::POD_7, &seen);
    assert_eq!(node.connections(), 1);
}

#[test]
fn w10_nat_04_what_is_marked_takes_the_tunnel_s_address() {
    // Note 2: this is where the seed's summary is right.
    let mut node = node(&cluster());
    let syn = Frame::tcp((NODE, 56060), (SERVICE, 80), flag::SYN);
    let left = node.send_one(port::HOST, &syn.clone().link(link::HOST, link::HOST_SIDE).bytes());
    assert_through(&left, syn.from(TUNNEL, 56060).to(BEHIND, 80));
    assert_eq!(node.marks(), [0x4000]);
    let answer = Frame::tcp((BEHIND, 80), (TUNNEL, 56060), flag::SYN | flag::ACK).ttl(63);
    let left = node.send_one(port::ENS3, &from_far(answer.clone()));
    let seen = answer.from(SERVICE, 80).to(NODE, 56060).link(link::HOST_SIDE, link::HOST);
    assert_left(&left, port::HOST, &seen);
}

#[test]
fn w10_the_route_s_gateway_is_a_peer_and_a_list_takes_its_place() {
    let syn = Frame::tcp((BEHIND, 40000), (POD_7, 80), flag::SYN);
    let mut node = node(&cluster());
    let left = node.send_one(port::ENS3, &from_far(syn.clone()));
    assert_eq!((left.port.as_str(), Fields::of(&left.bytes).source), (port::POD_7, BEHIND));
    let stranger = Ipv4Addr::new(172, 16, 1, 88);
    let strange = tunnelled(&syn.clone().link(link::SLAVE2, link::ENS3), stranger, NODE);
    assert_eq!(node.send(port::ENS3, &strange), []);
    assert_eq!(node.dropped(Reason::TunnelPeer), 1);
    let listed = cluster().edit_node("{local: 172.16.1.50}", "{local: 172.16.1.50, peers: [172.16.1.88]}");
    let mut node = self::node(&listed);
    assert_eq!(node.send_one(port::ENS3, &strange).port, port::POD_7);
    assert_eq!(node.send(port::ENS3, &from_far(syn)), []);
    assert_eq!(node.dropped(Reason::TunnelPeer), 1);
}
