//! Through the tunnel to another subnet's node: W10, under the example's configuration.

use std::net::Ipv4Addr;

use etherparse::{IpNumber, Ipv4Header};
use pollux_dataplane::stats::Reason;

use super::{MARKED, SYN, SYN_ACK, WEB, Walk};
use crate::frame::Frame;
use crate::seed::{Cluster, FAR_NODE, NODE, POD_7, SERVICE, link, port};

/// The backend behind 172.16.2.77.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 151, 32, 5);
/// slave1's end of the tunnel, as pods see it.
const TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 151, 51, 0);
/// slave2, which is no peer by itself.
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 88);

fn cluster() -> Cluster {
    Cluster::seed()
        .edit_objects("  - addresses:\n    - 10.151.49.8\n", "  - addresses:\n    - 10.151.32.5\n")
        .with_neighbour(FAR_NODE, link::FAR_NODE)
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

/// To the other node, through the tunnel.
fn to_far(inner: Frame) -> Vec<u8> {
    tunnelled(&inner.link(link::ENS3, link::FAR_NODE), NODE, FAR_NODE)
}

/// A frame from the other node, through the tunnel.
fn from_far(inner: Frame) -> Vec<u8> {
    tunnelled(&inner.link(link::FAR_NODE, link::ENS3), FAR_NODE, NODE)
}

pub(super) fn walks() -> Vec<Walk> {
    vec![pod_to_service(), marked(), peers_by_routes(), peers_by_list()]
}

fn pod_to_service() -> Walk {
    let syn = Frame::tcp((POD_7, 40000), (SERVICE, WEB), SYN);
    let answer = Frame::tcp((BEHIND, WEB), (POD_7, 40000), SYN_ACK).ttl(63);
    let seen = answer.clone().from(SERVICE, WEB).ttl(62).link(link::CALI, link::POD_7);
    Walk::new("w10_pod_to_service_with_a_backend_behind_the_tunnel", cluster())
        .to("10.151.32.5:80")
        .step(
            port::POD_7,
            &syn.clone().link(link::POD_7, link::CALI),
            port::ENS3,
            to_far(syn.to(BEHIND, WEB).ttl(63)),
        )
        .step(port::ENS3, from_far(answer), port::POD_7, &seen)
        .connections([0])
}

/// Note 2: this is where the seed's summary is right.
fn marked() -> Walk {
    let syn = Frame::tcp((NODE, 56060), (SERVICE, WEB), SYN);
    let answer = Frame::tcp((BEHIND, WEB), (TUNNEL, 56060), SYN_ACK).ttl(63);
    let seen = answer.clone().from(SERVICE, WEB).to(NODE, 56060).link(link::HOST_SIDE, link::HOST);
    Walk::new("w10_nat_04_what_is_marked_takes_the_tunnels_address", cluster())
        .to("10.151.32.5:80")
        .step(
            port::HOST,
            &syn.clone().link(link::HOST, link::HOST_SIDE),
            port::ENS3,
            to_far(syn.from(TUNNEL, 56060).to(BEHIND, WEB)),
        )
        .step(port::ENS3, from_far(answer), port::HOST, &seen)
        .connections([MARKED])
}

/// A connection from behind the tunnel, and what the pod gets of it.
fn syn_from_behind() -> Frame {
    Frame::tcp((BEHIND, 40000), (POD_7, WEB), SYN)
}

fn arrived() -> Frame {
    syn_from_behind().ttl(63).link(link::CALI, link::POD_7)
}

fn from_stranger() -> Vec<u8> {
    tunnelled(&syn_from_behind().link(link::SLAVE2, link::ENS3), STRANGER, NODE)
}

fn peers_by_routes() -> Walk {
    Walk::new("w10_the_routes_gateway_is_a_peer", cluster())
        .step(port::ENS3, from_far(syn_from_behind()), port::POD_7, &arrived())
        .dropped(port::ENS3, from_stranger(), Reason::TunnelPeer)
        .connections([0])
}

fn peers_by_list() -> Walk {
    let listed = cluster().edit_node("{local: 172.16.1.50}", "{local: 172.16.1.50, peers: [172.16.1.88]}");
    Walk::new("w10_a_list_of_peers_takes_its_place", listed)
        .step(port::ENS3, from_stranger(), port::POD_7, &arrived())
        .dropped(port::ENS3, from_far(syn_from_behind()), Reason::TunnelPeer)
        .connections([0])
}
