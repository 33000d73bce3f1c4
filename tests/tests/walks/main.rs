//! The seed's packet walks (spec/seed-walks.md), W1 to W14: frames in, exact bytes out, on ports in memory,
//! under tables that the control plane compiles from docs/examples and variations of it.
//!
//! An expected frame is the one that went in with the fields that the walk changes, written anew by code that
//! is not Pollux's; etherparse checks its checksums once more. W1 and W2 replay the seed's captures: what
//! leaves has the checksums that tcpdump printed there.
//!
//! Where the seed contradicts itself, kube-proxy and the kernel decide; each such test says so. Those of IPv6 are the same walks on a dual-stack slave1.

mod affinity;
mod host;
mod ipv6;
mod node_ports;
mod pods;
mod refusals;
mod tunnel;

use pollux_tests::frame::{Frame, assert_checksums};
use pollux_tests::node::{Left, Node};

/// Sends a frame that must leave as `expected`, byte by byte.
fn assert_walk(node: &mut Node, port: &str, frame: &Frame, out_port: &str, expected: &Frame) {
    let left = node.send_one(port, &frame.bytes());
    assert_left(&left, out_port, expected);
}

fn assert_left(left: &Left, out_port: &str, expected: &Frame) {
    assert_eq!(left.port, out_port);
    assert_eq!(left.bytes, expected.bytes(), "{expected:#?}");
    assert_checksums(&left.bytes);
}
