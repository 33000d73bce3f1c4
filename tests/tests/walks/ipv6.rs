//! The walks of IPv6, on slave1 as a dual-stack node: W1, W4, W5, W6, W7, W11 and W13 with their addresses, and
//! the way that link addresses are found. Every frame is etherparse's.

use std::net::SocketAddrV6;
use std::time::Duration;

use etherparse::{Icmpv6Type, PacketBuilder, icmpv6};
use pollux_dataplane::stats::Reason;
use pollux_tests::frame::{Link, flag};
use pollux_tests::node::{Left, Node};
use pollux_tests::seed::{Cluster, link, port};

const NODE: &str = "[2001:db8:1::50]:40000";
const SERVICE: &str = "[fd00:10:150::86]:80";
const NODE_PORT: &str = "[2001:db8:1::50]:30086";
const EMPTY: &str = "[fd00:10:150::99]:80";
const POD_7: &str = "[fd00:10:151:51::7]:40000";
const POD_8: &str = "[fd00:10:151:51::8]:80";
const REMOTE: &str = "[fd00:10:151:49::8]:80";
/// A client outside the cluster, behind slave2's link address as the tests have no other.
const OUTSIDE: &str = "[2001:db8:1::88]:40000";
/// The pods' gateway: the link-local address of their ports.
const GATEWAY: &str = "[fe80::ecee:eeff:feee:eeee]:0";

/// Places of the backends.
const ON_SLAVE2: u32 = 0;
const ON_SLAVE1: u32 = 1;

const SYN_ACK: u8 = flag::SYN | flag::ACK;

fn end(text: &str) -> SocketAddrV6 {
    text.parse().expect("[ADDRESS]:PORT")
}

/// A TCP segment over IPv6, between two links and two ends.
fn tcp(links: (Link, Link), source: &str, destination: &str, flags: u8, hop_limit: u8) -> Vec<u8> {
    let (from, to) = (end(source), end(destination));
    let mut segment = PacketBuilder::ethernet2(links.0, links.1)
        .ipv6(from.ip().octets(), to.ip().octets(), hop_limit)
        .tcp(from.port(), to.port(), 1000, 4096);
    if flags & flag::SYN != 0 {
        segment = segment.syn();
    }
    if flags & flag::ACK != 0 {
        segment = segment.ack(77);
    }
    let mut frame = Vec::new();
    segment.write(&mut frame, b"walk").expect("room in a vector");
    frame
}

/// A message of neighbour discovery with hop limit 255: its type, flags, target, and the link address in its
/// option.
fn discovery(
    links: (Link, Link),
    (source, destination): (&str, &str),
    (icmp_type, flags): (u8, u8),
    target: &str,
    option: (u8, Link),
) -> Vec<u8> {
    let (from, to) = (end(source), end(destination));
    let mut body = end(target).ip().octets().to_vec();
    body.extend([option.0, 1]);
    body.extend(option.1);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(links.0, links.1)
        .ipv6(from.ip().octets(), to.ip().octets(), 255)
        .icmpv6_raw(icmp_type, 0, [flags, 0, 0, 0])
        .write(&mut frame, &body)
        .expect("room in a vector");
    frame
}

fn assert_left(left: &[Left], out_port: &str, expected: &[u8]) {
    let [left] = left else { panic!("not one frame: {left:#?}") };
    assert_eq!((left.port.as_str(), left.bytes.as_slice()), (out_port, expected));
}

/// The node, whose new connections take this backend.
fn node(backend: u32) -> Node {
    let mut node = Cluster::seed().with_ipv6().node();
    node.choose_place(backend);
    node
}

const FROM_POD_7: (Link, Link) = (link::POD_7, link::CALI);
const TO_POD_7: (Link, Link) = (link::CALI, link::POD_7);
const FROM_POD_8: (Link, Link) = (link::POD_8, link::CALI);
const TO_POD_8: (Link, Link) = (link::CALI, link::POD_8);
const FROM_SLAVE2: (Link, Link) = (link::SLAVE2, link::ENS3);
const TO_SLAVE2: (Link, Link) = (link::ENS3, link::SLAVE2);

/// Sends a frame that makes the node ask for `target` on a pod's port, and answers; gives what leaves then.
fn sent_after_discovery(
    node: &mut Node,
    in_port: &str,
    frame: &[u8],
    out_port: &str,
    (target, group, group_link, pod_link): (&str, &str, Link, Link),
) -> Vec<Left> {
    let question = discovery((link::CALI, group_link), (GATEWAY, group), (135, 0), target, (1, link::CALI));
    assert_left(&node.send(in_port, frame), out_port, &question);
    let answer = discovery(
        (pod_link, link::CALI),
        (target, GATEWAY),
        (136, 0x60), // solicited, override
        target,
        (2, pod_link),
    );
    node.send(out_port, &answer)
}

fn find_pod_8(node: &mut Node, in_port: &str, frame: &[u8]) -> Vec<Left> {
    let group = [0x33, 0x33, 0xff, 0, 0, 8];
    let pod = ("[fd00:10:151:51::8]:0", "[ff02::1:ff00:8]:0", group, link::POD_8);
    sent_after_discovery(node, in_port, frame, port::POD_8, pod)
}

fn find_pod_7(node: &mut Node, in_port: &str, frame: &[u8]) -> Vec<Left> {
    let group = [0x33, 0x33, 0xff, 0, 0, 7];
    let pod = ("[fd00:10:151:51::7]:0", "[ff02::1:ff00:7]:0", group, link::POD_7);
    sent_after_discovery(node, in_port, frame, port::POD_7, pod)
}

#[test]
fn w1_the_host_reaches_a_local_backend() {
    let mut node = node(ON_SLAVE1);
    let host = (link::HOST, link::HOST_SIDE);
    let left = find_pod_8(&mut node, port::HOST, &tcp(host, NODE, SERVICE, flag::SYN, 64));
    assert_left(&left, port::POD_8, &tcp(TO_POD_8, NODE, POD_8, flag::SYN, 64));
    let left = node.send(port::POD_8, &tcp(FROM_POD_8, POD_8, NODE, SYN_ACK, 64));
    let to_host = (link::HOST_SIDE, link::HOST);
    assert_left(&left, port::HOST, &tcp(to_host, SERVICE, NODE, SYN_ACK, 64));
}

#[test]
fn w4_a_pod_reaches_a_backend_on_its_node_and_keeps_its_source() {
    let mut node = node(ON_SLAVE1);
    let left = find_pod_8(&mut node, port::POD_7, &tcp(FROM_POD_7, POD_7, SERVICE, flag::SYN, 64));
    assert_left(&left, port::POD_8, &tcp(TO_POD_8, POD_7, POD_8, flag::SYN, 63));
    let answer = tcp(FROM_POD_8, POD_8, POD_7, SYN_ACK, 64);
    let left = find_pod_7(&mut node, port::POD_8, &answer);
    assert_left(&left, port::POD_7, &tcp(TO_POD_7, SERVICE, POD_7, SYN_ACK, 63));
    assert_eq!(node.stats().dropped.total(), 0);
}

#[test]
fn w5_a_pod_reaches_a_backend_on_the_other_node() {
    let mut node = node(ON_SLAVE2);
    let left = node.send(port::POD_7, &tcp(FROM_POD_7, POD_7, SERVICE, flag::SYN, 64));
    assert_left(&left, port::ENS3, &tcp(TO_SLAVE2, POD_7, REMOTE, flag::SYN, 63));
}

#[test]
fn w6_a_pod_reaches_itself_with_the_node_s_source() {
    let mut node = node(ON_SLAVE1);
    let pod = "[fd00:10:151:51::8]:40000";
    let left = find_pod_8(&mut node, port::POD_8, &tcp(FROM_POD_8, pod, SERVICE, flag::SYN, 64));
    // The configuration keeps the port.
    assert_left(&left, port::POD_8, &tcp(TO_POD_8, NODE, POD_8, flag::SYN, 63));
    let left = node.send(port::POD_8, &tcp(FROM_POD_8, POD_8, NODE, SYN_ACK, 64));
    assert_left(&left, port::POD_8, &tcp(TO_POD_8, SERVICE, pod, SYN_ACK, 63));
}

#[test]
fn w7_a_client_outside_reaches_a_node_port_and_is_masqueraded() {
    let mut node = node(ON_SLAVE1);
    let left = find_pod_8(&mut node, port::ENS3, &tcp(FROM_SLAVE2, OUTSIDE, NODE_PORT, flag::SYN, 64));
    assert_left(&left, port::POD_8, &tcp(TO_POD_8, NODE, POD_8, flag::SYN, 63));
    let left = node.send(port::POD_8, &tcp(FROM_POD_8, POD_8, NODE, SYN_ACK, 64));
    assert_left(&left, port::ENS3, &tcp(TO_SLAVE2, NODE_PORT, OUTSIDE, SYN_ACK, 63));
}

#[test]
fn w11_a_service_without_endpoints_is_refused() {
    let mut node = node(ON_SLAVE1);
    let syn = tcp(FROM_SLAVE2, OUTSIDE, EMPTY, flag::SYN, 64);
    let (from, to) = (end(NODE), end(OUTSIDE));
    let mut error = Vec::new();
    PacketBuilder::ethernet2(link::ENS3, link::SLAVE2)
        .ipv6(from.ip().octets(), to.ip().octets(), 64)
        .icmpv6(Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port))
        .write(&mut error, &syn[14..])
        .expect("room in a vector");
    assert_left(&node.send(port::ENS3, &syn), port::ENS3, &error);
    assert_eq!(node.dropped(Reason::NoEndpoints), 1);
}

#[test]
fn w13_a_blackhole_is_silent() {
    let mut node = node(ON_SLAVE1);
    let left = node.send(port::POD_7, &tcp(FROM_POD_7, POD_7, "[fd00:10:151:51::99]:80", flag::SYN, 64));
    assert_eq!(left, []);
    assert_eq!(node.dropped(Reason::RouteBlackhole), 1);
}

#[test]
fn nb_01_a_pod_finds_its_gateway() {
    let mut node = node(ON_SLAVE1);
    let group = [0x33, 0x33, 0xff, 0xee, 0xee, 0xee];
    let question = discovery(
        (link::POD_7, group),
        (POD_7, "[ff02::1:ffee:eeee]:0"),
        (135, 0),
        GATEWAY,
        (1, link::POD_7),
    );
    let answer = discovery(TO_POD_7, (GATEWAY, POD_7), (136, 0xe0), GATEWAY, (2, link::CALI));
    assert_left(&node.send(port::POD_7, &question), port::POD_7, &answer);
    // The pod is known from its question: nobody is asked.
    let syn = tcp(FROM_SLAVE2, OUTSIDE, POD_7, flag::SYN, 64);
    assert_left(&node.send(port::ENS3, &syn), port::POD_7, &tcp(TO_POD_7, OUTSIDE, POD_7, flag::SYN, 63));
}

#[test]
fn nb_02_a_pod_that_does_not_answer_is_unreachable() {
    let mut node = node(ON_SLAVE1);
    let syn = tcp(FROM_SLAVE2, OUTSIDE, POD_8, flag::SYN, 64);
    assert_eq!(node.send(port::ENS3, &syn)[0].port, port::POD_8);
    let left = node.wait(Duration::from_secs(1));
    let error = left.last().expect("an error");
    assert_eq!((error.port.as_str(), &error.bytes[54..56]), (port::ENS3, &[1, 3][..]));
    assert_eq!(error.bytes[62..], syn[14..]);
    assert_eq!(node.dropped(Reason::NeighbourFailed), 1);
}
