//! Packets of pods, and of docker0's containers: W4, W5, W6, W12, W14.

use std::net::Ipv4Addr;

use super::{MARKED, SYN, SYN_ACK, WEB, Walk};
use crate::frame::{Frame, flag};
use crate::seed::{Cluster, NODE, POD_7, POD_8, POD_REMOTE, SERVICE, link, port};

const CONTAINER_5: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 5);
const CONTAINER_6: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 6);
const FAR: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// From pod 10.151.51.7, as it sends it.
fn from_pod_7(frame: Frame) -> Frame {
    frame.link(link::POD_7, link::CALI)
}

/// To pod 10.151.51.7, as it gets it.
fn to_pod_7(frame: Frame) -> Frame {
    frame.link(link::CALI, link::POD_7)
}

fn syn_of_pod_7() -> Frame {
    from_pod_7(Frame::tcp((POD_7, 40000), (SERVICE, WEB), SYN))
}

/// The answer of the pod on slave2, to this socket.
fn answer_of_slave2(to: Ipv4Addr) -> Frame {
    Frame::tcp((POD_REMOTE, WEB), (to, 40000), SYN_ACK).link(link::SLAVE2, link::ENS3).ttl(63)
}

pub(super) fn walks() -> Vec<Walk> {
    vec![
        same_node(),
        other_node(),
        masqueraded_to_slave2(
            "w5_with_masquerade_all_the_source_becomes_the_nodes",
            Cluster::seed().with_masquerade_all(),
        )
        .connections([MARKED]),
        masquerade_all_inside_the_node(),
        // Note 1: the seed's pictures. The rule is another than that of the mark.
        masqueraded_to_slave2(
            "w5_with_a_cni_rule_the_source_becomes_the_nodes_when_the_packet_leaves_it",
            Cluster::seed().with_cni_rule(),
        )
        .connections([0]),
        cni_rule_inside_the_node(),
        hairpin(),
        pod_to_pod(),
        udp_and_ping(),
        docker(),
        docker_s_limits(),
    ]
}

fn same_node() -> Walk {
    let answer = Frame::tcp((POD_8, WEB), (POD_7, 40000), SYN_ACK).link(link::POD_8, link::CALI);
    Walk::new("w4_pod_to_service_on_the_same_node_keeps_its_source", Cluster::seed())
        .to("10.151.51.8:80")
        .step(
            port::POD_7,
            &syn_of_pod_7(),
            port::POD_8,
            &syn_of_pod_7().to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63),
        )
        .step(port::POD_8, &answer, port::POD_7, &to_pod_7(answer.clone().from(SERVICE, WEB)).ttl(63))
        .connections([0])
}

fn other_node() -> Walk {
    let answer = answer_of_slave2(POD_7);
    Walk::new("w5_with_cluster_cidr_a_pods_source_is_kept_to_the_other_node", Cluster::seed())
        .to("10.151.49.8:80")
        .step(
            port::POD_7,
            &syn_of_pod_7(),
            port::ENS3,
            &syn_of_pod_7().to(POD_REMOTE, WEB).link(link::ENS3, link::SLAVE2).ttl(63),
        )
        .step(port::ENS3, &answer, port::POD_7, &to_pod_7(answer.clone().from(SERVICE, WEB)).ttl(62))
        .connections([0])
}

/// The way to slave2 with the node's source, and back.
fn masqueraded_to_slave2(name: &'static str, cluster: Cluster) -> Walk {
    let translated = syn_of_pod_7().from(NODE, 40000).to(POD_REMOTE, WEB);
    let answer = answer_of_slave2(NODE);
    let for_the_pod = to_pod_7(answer.clone().from(SERVICE, WEB).to(POD_7, 40000)).ttl(62);
    Walk::new(name, cluster)
        .to("10.151.49.8:80")
        .step(port::POD_7, &syn_of_pod_7(), port::ENS3, &translated.link(link::ENS3, link::SLAVE2).ttl(63))
        .step(port::ENS3, &answer, port::POD_7, &for_the_pod)
}

/// Note 1: why masqueradeAll cannot be what the seed's pictures show.
fn masquerade_all_inside_the_node() -> Walk {
    let translated = syn_of_pod_7().from(NODE, 40000).to(POD_8, WEB);
    Walk::new("w5_masquerade_all_translates_calls_inside_the_node_too", Cluster::seed().with_masquerade_all())
        .to("10.151.51.8:80")
        .step(port::POD_7, &syn_of_pod_7(), port::POD_8, &translated.link(link::CALI, link::POD_8).ttl(63))
        .connections([MARKED])
}

fn cni_rule_inside_the_node() -> Walk {
    let expected = syn_of_pod_7().to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    Walk::new("w5_a_cni_rule_leaves_calls_inside_the_node_alone", Cluster::seed().with_cni_rule())
        .to("10.151.51.8:80")
        .step(port::POD_7, &syn_of_pod_7(), port::POD_8, &expected)
        .connections([0])
}

fn hairpin() -> Walk {
    let syn = Frame::tcp((POD_8, 40000), (SERVICE, WEB), SYN).link(link::POD_8, link::CALI);
    let answer = Frame::tcp((POD_8, WEB), (NODE, 40000), SYN_ACK).link(link::POD_8, link::CALI);
    let ack = Frame::tcp((POD_8, 40000), (SERVICE, WEB), flag::ACK).link(link::POD_8, link::CALI);
    let out =
        |frame: &Frame| frame.clone().from(NODE, 40000).to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    let back = answer.clone().from(SERVICE, WEB).to(POD_8, 40000).link(link::CALI, link::POD_8).ttl(63);
    Walk::new("w6_a_pod_reaches_itself_through_the_service", Cluster::seed())
        .to("10.151.51.8:80")
        .step(port::POD_8, &syn, port::POD_8, &out(&syn))
        .step(port::POD_8, &answer, port::POD_8, &back)
        .step(port::POD_8, &ack, port::POD_8, &out(&ack))
        .connections([MARKED])
}

fn pod_to_pod() -> Walk {
    let syn = from_pod_7(Frame::tcp((POD_7, 40000), (POD_REMOTE, WEB), SYN));
    let answer = answer_of_slave2(POD_7);
    Walk::new("w12_pod_to_pod_is_tracked_and_routed_and_not_translated", Cluster::seed())
        .step(port::POD_7, &syn, port::ENS3, &syn.clone().link(link::ENS3, link::SLAVE2).ttl(63))
        .step(port::ENS3, &answer, port::POD_7, &to_pod_7(answer.clone()).ttl(62))
        .connections([0])
}

fn udp_and_ping() -> Walk {
    let datagram = from_pod_7(Frame::udp((POD_7, 5000), (POD_REMOTE, 53)));
    let echo = from_pod_7(Frame::echo(POD_7, POD_8, 77, 1));
    Walk::new("w12_udp_and_ping_between_pods", Cluster::seed())
        .step(port::POD_7, &datagram, port::ENS3, &datagram.clone().link(link::ENS3, link::SLAVE2).ttl(63))
        .step(port::POD_7, &echo, port::POD_8, &echo.clone().link(link::CALI, link::POD_8).ttl(63))
        .connections([0, 0])
}

fn docker() -> Walk {
    let query = Frame::udp((CONTAINER_5, 40000), (FAR, 53)).link(link::CONTAINER_5, link::DOCKER);
    let answer = Frame::udp((FAR, 53), (NODE, 40000)).link(link::GATEWAY, link::ENS3).ttl(57);
    Walk::new("w14_dockers_rule_gives_containers_the_nodes_address", Cluster::seed().with_docker())
        .step(
            port::DOCKER,
            &query,
            port::ENS3,
            &query.clone().from(NODE, 40000).link(link::ENS3, link::GATEWAY).ttl(63),
        )
        .step(
            port::ENS3,
            &answer,
            port::DOCKER,
            &answer.clone().to(CONTAINER_5, 40000).link(link::DOCKER, link::CONTAINER_5).ttl(56),
        )
        .connections([0])
}

fn docker_s_limits() -> Walk {
    let inside = Frame::udp((CONTAINER_5, 40000), (CONTAINER_6, 53)).link(link::CONTAINER_5, link::DOCKER);
    let pods = from_pod_7(Frame::udp((POD_7, 40000), (FAR, 53)));
    Walk::new(
        "w14_what_stays_behind_docker0_and_what_is_no_containers_is_left_alone",
        Cluster::seed().with_docker(),
    )
    // `! -o docker0`.
    .step(port::DOCKER, &inside, port::DOCKER, &inside.clone().link(link::DOCKER, link::CONTAINER_6).ttl(63))
    // `-s 172.17.0.0/16`.
    .step(port::POD_7, &pods, port::ENS3, &pods.clone().link(link::ENS3, link::GATEWAY).ttl(63))
    .connections([0, 0])
}
