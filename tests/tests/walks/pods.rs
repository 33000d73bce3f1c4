//! Packets of pods, and of docker0's containers: W4, W5, W6, W12, W14.

use std::net::Ipv4Addr;

use pollux_tests::frame::{Fields, Frame, flag};
use pollux_tests::node::Node;
use pollux_tests::seed::{Cluster, NODE, POD_7, POD_8, POD_REMOTE, SERVICE, link, port};

use crate::assert_walk;

const SYN_ACK: u8 = flag::SYN | flag::ACK;
const WEB: u16 = 80;

/// From pod 10.151.51.7, as it sends it.
fn from_pod_7(frame: Frame) -> Frame {
    frame.link(link::POD_7, link::CALI)
}

/// To pod 10.151.51.7, as it gets it.
fn to_pod_7(frame: Frame) -> Frame {
    frame.link(link::CALI, link::POD_7)
}

fn syn_of_pod_7() -> Frame {
    from_pod_7(Frame::tcp((POD_7, 40000), (SERVICE, WEB), flag::SYN))
}

#[test]
fn w4_pod_to_service_on_the_same_node_keeps_its_source() {
    let mut node = Cluster::seed().node();
    node.choose("default/myapp", "10.151.51.8:80");
    let syn = syn_of_pod_7();
    let expected = syn.clone().to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_7, &syn, port::POD_8, &expected);

    let answer = Frame::tcp((POD_8, WEB), (POD_7, 40000), SYN_ACK).link(link::POD_8, link::CALI);
    let expected = to_pod_7(answer.clone().from(SERVICE, WEB)).ttl(63);
    assert_walk(&mut node, port::POD_8, &answer, port::POD_7, &expected);
}

#[test]
fn w5_with_cluster_cidr_a_pods_source_is_kept_to_the_other_node() {
    let mut node = Cluster::seed().node();
    node.choose("default/myapp", "10.151.49.8:80");
    let syn = syn_of_pod_7();
    let expected = syn.clone().to(POD_REMOTE, WEB).link(link::ENS3, link::SLAVE2).ttl(63);
    assert_walk(&mut node, port::POD_7, &syn, port::ENS3, &expected);

    let answer =
        Frame::tcp((POD_REMOTE, WEB), (POD_7, 40000), SYN_ACK).link(link::SLAVE2, link::ENS3).ttl(63);
    let expected = to_pod_7(answer.clone().from(SERVICE, WEB)).ttl(62);
    assert_walk(&mut node, port::ENS3, &answer, port::POD_7, &expected);
}

/// The way to slave2 with the node's source, and back.
fn assert_masqueraded_to_slave2(node: &mut Node) {
    node.choose("default/myapp", "10.151.49.8:80");
    let syn = syn_of_pod_7();
    let translated = syn.clone().from(NODE, 40000).to(POD_REMOTE, WEB);
    let expected = translated.link(link::ENS3, link::SLAVE2).ttl(63);
    assert_walk(node, port::POD_7, &syn, port::ENS3, &expected);

    let answer = Frame::tcp((POD_REMOTE, WEB), (NODE, 40000), SYN_ACK).link(link::SLAVE2, link::ENS3).ttl(63);
    let expected = to_pod_7(answer.clone().from(SERVICE, WEB).to(POD_7, 40000)).ttl(62);
    assert_walk(node, port::ENS3, &answer, port::POD_7, &expected);
}

#[test]
fn w5_with_masquerade_all_the_source_becomes_the_nodes() {
    assert_masqueraded_to_slave2(&mut Cluster::seed().with_masquerade_all().node());
}

#[test]
fn w5_masquerade_all_translates_calls_inside_the_node_too() {
    // Note 1: why masqueradeAll cannot be what the seed's pictures show.
    let mut node = Cluster::seed().with_masquerade_all().node();
    node.choose("default/myapp", "10.151.51.8:80");
    let syn = syn_of_pod_7();
    let expected = syn.clone().from(NODE, 40000).to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_7, &syn, port::POD_8, &expected);
}

#[test]
fn w5_with_a_cni_rule_the_source_becomes_the_nodes_when_the_packet_leaves_it() {
    // Note 1: the seed's pictures.
    assert_masqueraded_to_slave2(&mut Cluster::seed().with_cni_rule().node());
}

#[test]
fn w5_a_cni_rule_leaves_calls_inside_the_node_alone() {
    let mut node = Cluster::seed().with_cni_rule().node();
    node.choose("default/myapp", "10.151.51.8:80");
    let syn = syn_of_pod_7();
    let expected = syn.clone().to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_7, &syn, port::POD_8, &expected);
}

#[test]
fn w6_a_pod_reaches_itself_through_the_service() {
    let mut node = Cluster::seed().node();
    node.choose("default/myapp", "10.151.51.8:80");
    let syn = Frame::tcp((POD_8, 40000), (SERVICE, WEB), flag::SYN).link(link::POD_8, link::CALI);
    let expected = syn.clone().from(NODE, 40000).to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_8, &syn, port::POD_8, &expected);

    let answer = Frame::tcp((POD_8, WEB), (NODE, 40000), SYN_ACK).link(link::POD_8, link::CALI);
    let expected = answer.clone().from(SERVICE, WEB).to(POD_8, 40000).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_8, &answer, port::POD_8, &expected);

    let ack = Frame::tcp((POD_8, 40000), (SERVICE, WEB), flag::ACK).link(link::POD_8, link::CALI);
    let expected = ack.clone().from(NODE, 40000).to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_8, &ack, port::POD_8, &expected);
    assert_eq!(node.connections(), 1);
}

#[test]
fn w12_pod_to_pod_is_tracked_and_routed_and_not_translated() {
    let mut node = Cluster::seed().node();
    let syn = from_pod_7(Frame::tcp((POD_7, 40000), (POD_REMOTE, WEB), flag::SYN));
    let expected = syn.clone().link(link::ENS3, link::SLAVE2).ttl(63);
    assert_walk(&mut node, port::POD_7, &syn, port::ENS3, &expected);
    assert_eq!(node.connections(), 1);

    let answer =
        Frame::tcp((POD_REMOTE, WEB), (POD_7, 40000), SYN_ACK).link(link::SLAVE2, link::ENS3).ttl(63);
    let expected = to_pod_7(answer.clone()).ttl(62);
    assert_walk(&mut node, port::ENS3, &answer, port::POD_7, &expected);
    assert_eq!(node.connections(), 1);
}

#[test]
fn w12_udp_and_ping_between_pods() {
    let mut node = Cluster::seed().node();
    let datagram = from_pod_7(Frame::udp((POD_7, 5000), (POD_REMOTE, 53)));
    let expected = datagram.clone().link(link::ENS3, link::SLAVE2).ttl(63);
    assert_walk(&mut node, port::POD_7, &datagram, port::ENS3, &expected);

    let echo = from_pod_7(Frame::echo(POD_7, POD_8, 77, 1));
    let expected = echo.clone().link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::POD_7, &echo, port::POD_8, &expected);
    assert_eq!(node.connections(), 2);
}

const CONTAINER_5: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 5);
const CONTAINER_6: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 6);
const FAR: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

#[test]
fn w14_dockers_rule_gives_containers_the_nodes_address() {
    let mut node = Cluster::seed().with_docker().node();
    let query = Frame::udp((CONTAINER_5, 40000), (FAR, 53)).link(link::CONTAINER_5, link::DOCKER);
    let expected = query.clone().from(NODE, 40000).link(link::ENS3, link::GATEWAY).ttl(63);
    assert_walk(&mut node, port::DOCKER, &query, port::ENS3, &expected);

    let answer = Frame::udp((FAR, 53), (NODE, 40000)).link(link::GATEWAY, link::ENS3).ttl(57);
    let expected = answer.clone().to(CONTAINER_5, 40000).link(link::DOCKER, link::CONTAINER_5).ttl(56);
    assert_walk(&mut node, port::ENS3, &answer, port::DOCKER, &expected);
}

#[test]
fn w14_two_containers_with_one_source_port_get_two() {
    // NAT-05, mode keep: the second connection's reply could not be told from the first's.
    let mut node = Cluster::seed().with_docker().node();
    let query = |from, link| Frame::udp((from, 40000), (FAR, 53)).link(link, link::DOCKER).bytes();
    let first = node.send_one(port::DOCKER, &query(CONTAINER_5, link::CONTAINER_5));
    let second = node.send_one(port::DOCKER, &query(CONTAINER_6, link::CONTAINER_6));
    let (first, second) = (Fields::of(&first.bytes), Fields::of(&second.bytes));
    assert_eq!((first.source, first.source_port), (NODE, 40000));
    assert_eq!(second.source, NODE);
    assert_ne!(second.source_port, 40000);
    // Whose answer it is, the port says.
    let answer = Frame::udp((FAR, 53), (NODE, second.source_port)).link(link::GATEWAY, link::ENS3).ttl(57);
    let expected = answer.clone().to(CONTAINER_6, 40000).link(link::DOCKER, link::CONTAINER_6).ttl(56);
    assert_walk(&mut node, port::ENS3, &answer, port::DOCKER, &expected);
}

#[test]
fn w14_what_stays_behind_docker0_and_what_is_no_containers_is_left_alone() {
    let mut node = Cluster::seed().with_docker().node();
    // `! -o docker0`.
    let inside = Frame::udp((CONTAINER_5, 40000), (CONTAINER_6, 53)).link(link::CONTAINER_5, link::DOCKER);
    let expected = inside.clone().link(link::DOCKER, link::CONTAINER_6).ttl(63);
    assert_walk(&mut node, port::DOCKER, &inside, port::DOCKER, &expected);
    // `-s 172.17.0.0/16`.
    let pods = from_pod_7(Frame::udp((POD_7, 40000), (FAR, 53)));
    let expected = pods.clone().link(link::ENS3, link::GATEWAY).ttl(63);
    assert_walk(&mut node, port::POD_7, &pods, port::ENS3, &expected);
}
