//! Clients outside the cluster, through a node port: W7, W8, W9.

use super::{Choice, MARKED, SYN, SYN_ACK, WEB, Walk};
use crate::frame::Frame;
use crate::seed::{Cluster, NODE, OUTSIDE, POD_8, POD_REMOTE, link, port};

const NODE_PORT: u16 = 30080;

/// The client's SYN, as ens3 receives it.
fn syn() -> Frame {
    Frame::tcp((OUTSIDE, 50000), (NODE, NODE_PORT), SYN).link(link::OUTSIDE, link::ENS3)
}

/// What the client gets for `answer`: from the node port, by way of ens3.
fn for_the_client(answer: &Frame) -> Frame {
    let translated = answer.clone().from(NODE, NODE_PORT).to(OUTSIDE, 50000);
    translated.link(link::ENS3, link::OUTSIDE).ttl(answer.ttl - 1)
}

pub(super) fn walks() -> Vec<Walk> {
    vec![
        cluster_local_backend(),
        cluster_remote_backend(),
        local("w9_policy_local_keeps_the_clients_source", Choice::Place(1)),
        local("w9_policy_local_offers_the_pod_on_this_node_alone", Choice::Place(0)),
    ]
}

/// Note 2: the seed's summary says that only a pod on another node is reached with the node's source.
fn cluster_local_backend() -> Walk {
    let answer = Frame::tcp((POD_8, WEB), (NODE, 50000), SYN_ACK).link(link::POD_8, link::CALI);
    Walk::new(
        "w7_policy_cluster_marks_even_for_a_backend_on_this_node",
        Cluster::seed().with_node_port("Cluster"),
    )
    .choosing(Choice::Backend("default/web", "10.151.51.8:80"))
    .step(
        port::ENS3,
        &syn(),
        port::POD_8,
        &syn().from(NODE, 50000).to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63),
    )
    .step(port::POD_8, &answer, port::ENS3, &for_the_client(&answer))
    .connections([MARKED])
}

/// Note 2: the source is that of the way out, ens3's; the seed's summary says tunl0's.
fn cluster_remote_backend() -> Walk {
    let answer = Frame::tcp((POD_REMOTE, WEB), (NODE, 50000), SYN_ACK).link(link::SLAVE2, link::ENS3).ttl(63);
    Walk::new(
        "w8_a_backend_on_the_other_node_answers_by_way_of_this_one",
        Cluster::seed().with_node_port("Cluster"),
    )
    .choosing(Choice::Backend("default/web", "10.151.49.8:80"))
    .step(
        port::ENS3,
        &syn(),
        port::ENS3,
        &syn().from(NODE, 50000).to(POD_REMOTE, WEB).link(link::ENS3, link::SLAVE2).ttl(63),
    )
    .step(port::ENS3, &answer, port::ENS3, &for_the_client(&answer))
    .connections([MARKED])
}

fn local(name: &'static str, choice: Choice) -> Walk {
    let answer = Frame::tcp((POD_8, WEB), (OUTSIDE, 50000), SYN_ACK).link(link::POD_8, link::CALI);
    Walk::new(name, Cluster::seed().with_node_port("Local"))
        .choosing(choice)
        .step(port::ENS3, &syn(), port::POD_8, &syn().to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63))
        .step(port::POD_8, &answer, port::ENS3, &for_the_client(&answer))
        .connections([0])
}
