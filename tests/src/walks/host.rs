//! Packets of the node's own stack: W1, W2, W3.

use super::{MARKED, Walk, Written};
use crate::capture::{Connection, LOCAL, REMOTE, Segment, Side};
use crate::frame::{Body, Frame, Link};
use crate::seed::{Cluster, NODE, SERVICE, link, port};

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
fn sides(
    connection: &Connection,
    segment: &Segment,
    way: &Way,
) -> (&'static str, Frame, &'static str, Frame) {
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

/// The connection as it was captured, every frame complete.
fn replay(name: &'static str, connection: &Connection, backend: &'static str, way: &Way) -> Walk {
    let walk = Walk::new(name, Cluster::seed()).to(backend).connections([MARKED]);
    connection.segments.iter().fold(walk, |walk, segment| {
        let (input, sent, output, expected) = sides(connection, segment, way);
        walk.step(input, &sent, output, &expected)
    })
}

/// PT-04: the frames with the partial checksums that the capture really shows.
fn replay_partial(name: &'static str, connection: &Connection, backend: &'static str, way: &Way) -> Walk {
    let walk = Walk::new(name, Cluster::seed()).to(backend).connections([MARKED]);
    connection.segments.iter().fold(walk, |walk, segment| {
        let (input, sent, output, expected) = sides(connection, segment, way);
        match segment.partial {
            Some(_) => walk.step(input, Written::partial(&sent), output, Written::partial(&expected)),
            None => walk.step(input, &sent, output, &expected),
        }
    })
}

pub(super) fn walks() -> Vec<Walk> {
    vec![
        replay("w1_the_captured_connection_to_the_pod_on_this_node", &LOCAL, "10.151.51.8:80", &TO_POD_8),
        // TTL 64 from the host on the wire; the replies' 63 is 63 still when the host sees them, as delivery
        // to the node itself takes none (FW-01).
        replay(
            "w2_the_captured_connection_to_the_pod_on_the_other_node",
            &REMOTE,
            "10.151.49.8:80",
            &TO_SLAVE2,
        ),
        replay_partial("w1_pt_04_with_partial_checksums", &LOCAL, "10.151.51.8:80", &TO_POD_8),
        replay_partial("w2_pt_04_with_partial_checksums", &REMOTE, "10.151.49.8:80", &TO_SLAVE2),
        ping(),
    ]
}

/// The seed's ping: id 4935, seq 19, IP id 19048, DF, 84 bytes, to the gateway's link address; and an answer,
/// had there been one.
fn ping() -> Walk {
    let echo = Frame { id: 19048, ..Frame::echo(NODE, SERVICE, 4935, 19) };
    let expected = echo.clone().link(link::ENS3, link::GATEWAY);
    assert_eq!(expected.bytes().len(), 98, "as tcpdump printed it");
    let mut reply = Frame::echo(SERVICE, NODE, 4935, 19).ttl(61);
    let Body::Icmp { kind, .. } = &mut reply.body else { unreachable!("an echo") };
    *kind = (0, 0);
    Walk::new("w3_icmp_to_the_service_follows_the_default_route", Cluster::seed())
        .step(port::HOST, &echo.link(link::HOST, link::HOST_SIDE), port::ENS3, &expected)
        .step(
            port::ENS3,
            &reply.clone().link(link::GATEWAY, link::ENS3),
            port::HOST,
            &reply.link(link::HOST_SIDE, link::HOST),
        )
        .connections([0])
}
