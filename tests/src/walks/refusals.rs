//! What is refused: W11 with an error, W13 without.

use std::net::Ipv4Addr;

use pollux_dataplane::stats::Reason;

use super::{Outcome, SYN, Step, Walk};
use crate::frame::{Body, Frame};
use crate::seed::{Cluster, NODE, OUTSIDE, POD_7, link, port};

/// A Service without endpoints.
const EMPTY: Ipv4Addr = Ipv4Addr::new(10, 150, 18, 99);

/// ICMP port unreachable from the node about `offending`, quoted as it came in, back the way it came.
fn port_unreachable(offending: &Frame) -> Frame {
    Frame {
        link_source: offending.link_destination,
        link_destination: offending.link_source,
        tos: 0xc0,
        id: 0,
        fragment: 0,
        ttl: 64,
        source: NODE,
        destination: offending.source,
        body: Body::Icmp { kind: (3, 3), rest: [0; 4], payload: offending.bytes()[14..].to_vec() },
    }
}

/// Nothing is kept of a refused packet.
fn refused(name: &'static str, cluster: Cluster, port: &'static str, frame: &Frame) -> Walk {
    let error = (&port_unreachable(frame)).into();
    let mut walk = Walk::new(name, cluster);
    let outcome = Outcome::Refused(Reason::NoEndpoints, port, error);
    walk.steps.push(Step { port, frame: frame.into(), outcome });
    walk
}

pub(super) fn walks() -> Vec<Walk> {
    let pod = Frame::tcp((POD_7, 40000), (EMPTY, 80), SYN).link(link::POD_7, link::CALI);
    let host = Frame::udp((NODE, 40000), (EMPTY, 53)).link(link::HOST, link::HOST_SIDE);
    let client = Frame::tcp((OUTSIDE, 40000), (EMPTY, 80), SYN).link(link::OUTSIDE, link::ENS3);
    let empty = || Cluster::seed().with_empty_service();
    vec![
        refused("w11_a_pod_is_told_that_a_service_has_no_endpoints", empty(), port::POD_7, &pod),
        refused("w11_so_is_the_host", empty(), port::HOST, &host),
        refused(
            "w11_so_is_a_client_outside",
            empty().with_neighbour(OUTSIDE, link::OUTSIDE),
            port::ENS3,
            &client,
        ),
        other_port(),
        blackhole(),
    ]
}

/// FE-05: no frontend, so the packet is routed as any other.
fn other_port() -> Walk {
    let syn = Frame::tcp((POD_7, 40000), (EMPTY, 81), SYN).link(link::POD_7, link::CALI);
    Walk::new(
        "w11_a_port_that_the_service_does_not_have_is_not_refused",
        Cluster::seed().with_empty_service(),
    )
    .step(port::POD_7, &syn, port::ENS3, &syn.clone().link(link::ENS3, link::GATEWAY).ttl(63))
    .connections([0])
}

/// No error either (RT-02).
fn blackhole() -> Walk {
    let nobody = Ipv4Addr::new(10, 151, 51, 99);
    let syn = Frame::tcp((POD_7, 40000), (nobody, 80), SYN).link(link::POD_7, link::CALI);
    Walk::new("w13_the_blackhole_swallows_what_no_pod_has", Cluster::seed()).dropped(
        port::POD_7,
        &syn,
        Reason::RouteBlackhole,
    )
}
