//! Packets of the node's own stack: W1, W2, W3.

use pollux_dataplane::packet::{ChecksumState, Offload};
use pollux_dataplane::port::Capabilities;
use pollux_tests::capture::{Connection, LOCAL, REMOTE, Segment, Side};
use pollux_tests::frame::{Checksum, Fields, Frame, Link, assert_checksums, flag};
use pollux_tests::node::Node;
use pollux_tests::seed::{Cluster, NODE, POD_7, POD_8, POD_REMOTE, SERVICE, link, port};

use crate::{assert_left, assert_walk};

/// The port to a captured connection's pod, Pollux's link address on it, and the next hop's.
struct Way {
    port: &'static str,
    own: Link,
    next: Link,
}

const TO_POD_8: Way = Way { port: port::POD_8, own: link::CALI, next: link::POD_8 };
const TO_SLAVE2: Way = Way { port: port::ENS3, own: link::ENS3, next: link::SLAVE2 };

/// One captured segment: the port it comes in at, as it is there, the port it leaves from, as it is there.
/// On the pod's side it is as captured; on the host's side the pod is the Service.
fn sides<'a>(connection: &Connection, segment: &Segment, way: &'a Way) -> (&'a str, Frame, &'a str, Frame) {
    let captured = connection.frame(segment);
    match segment.side {
        Side::Client => {
            let sent = captured.clone().link(link::HOST, link::HOST_SIDE).to(SERVICE, 80);
            (port::HOST, sent, way.port, captured.link(way.own, way.next))
        }
        Side::Server => {
            let seen = captured.clone().link(link::HOST_SIDE, link::HOST).from(SERVICE, 80);
            (way.port, captured.link(way.next, way.own), port::HOST, seen)
        }
    }
}

/// Every segment leaves as it should, and on the pod's side with the checksum that tcpdump printed.
fn replay(connection: &Connection, backend: &str, way: &Way) {
    let mut node = Cluster::seed().node();
    node.choose("default/myapp", backend);
    for segment in &connection.segments {
        let (input, sent, output, expected) = sides(connection, segment, way);
        let left = node.send_one(input, &sent.bytes());
        assert_left(&left, output, &expected);
        let on_pods_side = if segment.side == Side::Client { &left.bytes } else { &sent.bytes() };
        assert_eq!(Fields::of(on_pods_side).checksum, segment.checksum, "{segment:?}");
    }
    assert_eq!(node.connections(), 1);
    assert_eq!(node.stats().dropped.total(), 0);
}

#[test]
fn w1_the_captured_connection_to_the_pod_on_this_node() {
    replay(&LOCAL, "10.151.51.8:80", &TO_POD_8);
}

#[test]
fn w2_the_captured_connection_to_the_pod_on_the_other_node() {
    // TTL 64 from the host on the wire; the replies' 63 is 63 still when the host sees them, as delivery to
    // the node itself takes none (FW-01).
    replay(&REMOTE, "10.151.49.8:80", &TO_SLAVE2);
}

/// PT-04: the frames with the partial checksums that the capture really shows: on a port that can carry
/// them they leave with the partial checksum that tcpdump printed, on one that cannot with the true one.
fn replay_partial(connection: &Connection, backend: &str, way: &Way, partial_checksum: bool) {
    let capabilities = Capabilities { partial_checksum, ..Capabilities::default() };
    let mut node = Node::new(&Cluster::seed().files(), capabilities);
    node.choose("default/myapp", backend);
    for segment in &connection.segments {
        let (input, sent, output, expected) = sides(connection, segment, way);
        let Some(partial) = segment.partial else {
            assert_left(&node.send_one(input, &sent.bytes()), output, &expected);
            continue;
        };
        let offload =
            Offload { checksum: ChecksumState::Partial { start: 34, offset: 16 }, ..Offload::default() };
        let mut left = node.send_offloaded(input, &sent.with_checksum(Checksum::Partial), offload);
        let left = left.pop().expect("a frame that left");
        assert_eq!(left.port, output);
        if !partial_checksum {
            assert_left(&left, output, &expected);
            continue;
        }
        assert_eq!(left.bytes, expected.with_checksum(Checksum::Partial), "{segment:?}");
        assert_eq!(left.offload, offload);
        if segment.side == Side::Client {
            assert_eq!(Fields::of(&left.bytes).checksum, partial, "{segment:?}");
        }
    }
}

#[test]
fn w1_pt_04_partial_checksums_stay_partial_on_a_port_that_carries_them() {
    replay_partial(&LOCAL, "10.151.51.8:80", &TO_POD_8, true);
}

#[test]
fn w1_pt_04_partial_checksums_are_finished_for_a_port_that_does_not() {
    replay_partial(&LOCAL, "10.151.51.8:80", &TO_POD_8, false);
}

#[test]
fn w2_pt_04_partial_checksums_stay_partial_on_a_port_that_carries_them() {
    replay_partial(&REMOTE, "10.151.49.8:80", &TO_SLAVE2, true);
}

#[test]
fn w2_pt_04_partial_checksums_are_finished_for_a_port_that_does_not() {
    replay_partial(&REMOTE, "10.151.49.8:80", &TO_SLAVE2, false);
}

#[test]
fn w1_each_backend_is_chosen_a_third_of_the_time() {
    let mut node = Cluster::seed().node();
    node.choose_at_random();
    let mut chosen = [0u32; 3];
    const CONNECTIONS: u16 = 3000;
    for number in 0..CONNECTIONS {
        let syn = Frame::tcp((NODE, 20_000 + number), (SERVICE, 80), flag::SYN);
        let left = node.send_one(port::HOST, &syn.bytes());
        assert_checksums(&left.bytes);
        let backend = Fields::of(&left.bytes).destination;
        let place = [POD_REMOTE, POD_7, POD_8].iter().position(|pod| *pod == backend);
        chosen[place.expect("one of the Service's pods")] += 1;
    }
    // Standard deviation of a third of 3000: 26. Five of them.
    assert!(chosen.iter().all(|count| count.abs_diff(1000) < 130), "{chosen:?}");
}

#[test]
fn w3_icmp_to_the_service_follows_the_default_route() {
    // The seed's ping: id 4935, seq 19, IP id 19048, DF, 84 bytes, to the gateway's link address.
    let mut node = Cluster::seed().node();
    let echo = Frame { id: 19048, ..Frame::echo(NODE, SERVICE, 4935, 19) };
    let sent = echo.clone().link(link::HOST, link::HOST_SIDE);
    let expected = echo.link(link::ENS3, link::GATEWAY);
    assert_walk(&mut node, port::HOST, &sent, port::ENS3, &expected);
    assert_eq!(expected.bytes().len(), 98, "as tcpdump printed it");
}

#[test]
fn w3_the_answer_comes_back_to_the_host() {
    let mut node = Cluster::seed().node();
    node.send_one(port::HOST, &Frame::echo(NODE, SERVICE, 4935, 19).bytes());
    let mut reply = Frame::echo(SERVICE, NODE, 4935, 19).ttl(61);
    let pollux_tests::frame::Body::Icmp { kind, .. } = &mut reply.body else { unreachable!("an echo") };
    *kind = (0, 0);
    let sent = reply.clone().link(link::GATEWAY, link::ENS3);
    assert_walk(&mut node, port::ENS3, &sent, port::HOST, &reply.link(link::HOST_SIDE, link::HOST));
    assert_eq!(node.connections(), 1);
}
