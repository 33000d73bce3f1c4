//! Clients outside the cluster, through a node port: W7, W8, W9.

use pollux_tests::frame::{Frame, flag};
use pollux_tests::seed::{Cluster, NODE, OUTSIDE, POD_8, POD_REMOTE, link, port};

use crate::assert_walk;

const SYN_ACK: u8 = flag::SYN | flag::ACK;
const NODE_PORT: u16 = 30080;
const WEB: u16 = 80;

/// The client's SYN, as ens3 receives it.
fn syn() -> Frame {
    Frame::tcp((OUTSIDE, 50000), (NODE, NODE_PORT), flag::SYN).link(link::OUTSIDE, link::ENS3)
}

/// What the client gets for `answer`: from the node port, by way of ens3.
fn for_the_client(answer: &Frame) -> Frame {
    let translated = answer.clone().from(NODE, NODE_PORT).to(OUTSIDE, 50000);
    translated.link(link::ENS3, link::OUTSIDE).ttl(answer.ttl - 1)
}

#[test]
fn w7_policy_cluster_marks_even_for_a_backend_on_this_node() {
    // Note 2: the seed's summary says that only a pod on another node is reached with the node's source.
    let mut node = Cluster::seed().with_node_port("Cluster").node();
    node.choose("default/web", "10.151.51.8:80");
    let expected = syn().from(NODE, 50000).to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
    assert_walk(&mut node, port::ENS3, &syn(), port::POD_8, &expected);

    let answer = Frame::tcp((POD_8, WEB), (NODE, 50000), SYN_ACK).link(link::POD_8, link::CALI);
    assert_walk(&mut node, port::POD_8, &answer, port::ENS3, &for_the_client(&answer));
}

#[test]
fn w8_a_backend_on_the_other_node_answers_by_way_of_this_one() {
    // Note 2: the source is that of the way out, ens3's; the seed's summary says tunl0's.
    let mut node = Cluster::seed().with_node_port("Cluster").node();
    node.choose("default/web", "10.151.49.8:80");
    let expected = syn().from(NODE, 50000).to(POD_REMOTE, WEB).link(link::ENS3, link::SLAVE2).ttl(63);
    assert_walk(&mut node, port::ENS3, &syn(), port::ENS3, &expected);

    let answer = Frame::tcp((POD_REMOTE, WEB), (NODE, 50000), SYN_ACK).link(link::SLAVE2, link::ENS3).ttl(63);
    assert_walk(&mut node, port::ENS3, &answer, port::ENS3, &for_the_client(&answer));
}

#[test]
fn w9_policy_local_keeps_the_clients_source() {
    let mut node = Cluster::seed().with_node_port("Local").node();
    // Whatever is chosen: only the pod on this node is offered.
    for place in 0..2 {
        node.choose_place(place);
        let client = 50000 + place as u16;
        let syn = syn().from(OUTSIDE, client);
        let expected = syn.clone().to(POD_8, WEB).link(link::CALI, link::POD_8).ttl(63);
        assert_walk(&mut node, port::ENS3, &syn, port::POD_8, &expected);
    }

    let answer = Frame::tcp((POD_8, WEB), (OUTSIDE, 50000), SYN_ACK).link(link::POD_8, link::CALI);
    assert_walk(&mut node, port::POD_8, &answer, port::ENS3, &for_the_client(&answer));
}
