//! The seed's packet walks on a worker alone, on ports in memory, with a clock of the test's, under tables
//! that the control plane compiles from docs/examples and variations of it. The walks of the list
//! (`pollux_tests::walks`) are played by `tests/backends/`; here is what no list of frames can say, what takes
//! time, and the same walks over IPv6 on a dual-stack slave1.

mod affinity;
mod host;
mod ipv6;
mod pods;
mod refusals;

use pollux_tests::frame::{Frame, assert_checksums};
use pollux_tests::node::Node;

/// Sends a frame that must leave as `expected`, byte by byte.
fn assert_walk(node: &mut Node, port: &str, frame: &Frame, out_port: &str, expected: &Frame) {
    let left = node.send_one(port, &frame.bytes());
    assert_eq!(left.port, out_port);
    assert_eq!(left.bytes, expected.bytes(), "{expected:#?}");
    assert_checksums(&left.bytes);
}
