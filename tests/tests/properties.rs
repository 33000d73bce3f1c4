//! Laws of the whole way, under tables that the control plane compiles from the seed's cluster, with
//! checksums that other code computes. The stages have their own laws beside their code; the pipeline's,
//! under tables of any kind, are in dataplane/src/forward/tests/laws.rs.

use std::cell::RefCell;
use std::net::Ipv4Addr;

use pollux_tests::frame::{Body, Fields, Frame, Link, assert_checksums, flag};
use pollux_tests::node::Node;
use pollux_tests::seed::{Cluster, NODE, OUTSIDE, POD_7, POD_8, POD_REMOTE, SERVICE, link, port};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Who sends: the port, its address, its link address, and Pollux's on that port.
type Sender = (&'static str, Ipv4Addr, Link, Link);

const SENDERS: [Sender; 3] = [
    (port::HOST, NODE, link::HOST, link::HOST_SIDE),
    (port::POD_7, POD_7, link::POD_7, link::CALI),
    (port::ENS3, OUTSIDE, link::OUTSIDE, link::ENS3),
];

/// Where every one of them may send TCP.
const TCP: [(Ipv4Addr, u16); 5] =
    [(SERVICE, 80), (NODE, 30080), (POD_8, 80), (POD_REMOTE, 443), (Ipv4Addr::new(10, 150, 18, 87), 80)];

/// Where they may send anything.
const ANY: [Ipv4Addr; 2] = [POD_8, POD_REMOTE];

#[derive(Clone, Debug)]
struct Call {
    sender: Sender,
    frame: Frame,
    place: u32,
}

fn calls() -> impl Strategy<Value = Call> {
    let payload = || vec(any::<u8>(), 0..1400);
    let sender = select(&SENDERS[..]);
    let tcp = (select(&TCP[..]), 1024..65_535_u16, payload()).prop_map(|(to, from, data)| {
        let mut frame = Frame::tcp((NODE, from), to, flag::SYN);
        let Body::Tcp(tcp) = &mut frame.body else { unreachable!("TCP") };
        tcp.payload = data;
        frame
    });
    let udp =
        (select(&ANY[..]), 1..65_535_u16, 1..65_535_u16, payload()).prop_map(|(to, from, port, data)| {
            let mut frame = Frame::udp((NODE, from), (to, port));
            let Body::Udp { payload, .. } = &mut frame.body else { unreachable!("UDP") };
            *payload = data;
            frame
        });
    let echo = (select(&ANY[..]), any::<u16>(), any::<u16>())
        .prop_map(|(to, identifier, sequence)| Frame::echo(NODE, to, identifier, sequence));
    (sender, prop_oneof![3 => tcp, 1 => udp, 1 => echo], any::<u16>(), 2..=255_u8, 0..3_u32).prop_map(
        |(sender, mut frame, id, ttl, place)| {
            frame.source = sender.1;
            let frame = Frame { id, ..frame }.ttl(ttl).link(sender.2, sender.3);
            Call { sender, frame, place }
        },
    )
}

/// The answer to a packet whose ends are `fields`, from where it arrived.
fn answer(request: &Frame, fields: &Fields) -> Frame {
    let mut answer = request.clone();
    match &mut answer.body {
        Body::Tcp(tcp) => {
            tcp.flags = flag::SYN | flag::ACK;
            tcp.acknowledgement = tcp.sequence.wrapping_add(1);
            tcp.payload.clear();
        }
        Body::Udp { payload, .. } => payload.push(0x5a),
        Body::Icmp { kind, .. } => *kind = (0, 0),
    }
    let identifier_stays = matches!(answer.body, Body::Icmp { .. });
    let from = if identifier_stays { fields.source_port } else { fields.destination_port };
    answer.ttl(64).from(fields.destination, from).to(fields.source, fields.source_port)
}

fn out_and_back(node: &mut Node, call: &Call) -> Result<(), TestCaseError> {
    let (input, _, sender, own) = call.sender;
    node.choose_place(call.place);
    let sent = call.frame.bytes();
    let left = node.send_one(input, &sent);
    assert_checksums(&left.bytes);
    let there = Fields::of(&left.bytes);
    let decreased = u8::from(input != port::HOST);
    prop_assert_eq!(there.ttl, call.frame.ttl - decreased);
    // Link header, TTL, addresses, ports and checksums aside, nothing is changed.
    let expected = call.frame.clone().from(there.source, there.source_port);
    let expected = expected.to(there.destination, there.destination_port).ttl(there.ttl);
    prop_assert_eq!(&left.bytes, &expected.link(there.link_source, there.link_destination).bytes());

    let back = answer(&call.frame, &there).link([2, 0, 0, 0, 0, 9], node.link_of(&left.port));
    let received = node.send_one(&left.port, &back.bytes());
    prop_assert_eq!(&received.port, input);
    let ttl = if input == port::HOST { 64 } else { 63 };
    let expected = answer(&call.frame, &Fields::of(&sent)).ttl(ttl).link(own, sender);
    prop_assert_eq!(&received.bytes, &expected.bytes());
    assert_checksums(&received.bytes);
    Ok(())
}

#[test]
fn nat_01_out_and_back_is_the_identity_with_true_checksums() {
    // One node for all: connections of earlier cases are in the way, as they are in life.
    let node = RefCell::new(Cluster::seed().with_node_port("Cluster").node());
    let mut runner = TestRunner::new(Config { cases: 2048, failure_persistence: None, ..Config::default() });
    let law = |call| out_and_back(&mut node.borrow_mut(), &call);
    runner.run(&calls(), law).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn fw_04_random_and_mutated_frames_are_counted_and_nothing_panics() {
    let node = RefCell::new(Cluster::seed().with_node_port("Cluster").with_docker().node());
    let mut runner = TestRunner::new(Config { cases: 8192, failure_persistence: None, ..Config::default() });
    let mutated = (calls(), vec((any::<Index>(), any::<u8>()), 0..4), prop::option::of(any::<Index>()));
    let frames = prop_oneof![
        4 => mutated.prop_map(|(call, changes, cut)| {
            let mut bytes = call.frame.bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            (call.sender.0, bytes)
        }),
        1 => (select(&SENDERS[..]), vec(any::<u8>(), 1..200)).prop_map(|(sender, bytes)| (sender.0, bytes)),
    ];
    let law = |(port, bytes): (&str, Vec<u8>)| {
        // The balance of FW-05 and the pool are checked by the node.
        node.borrow_mut().send(port, &bytes);
        Ok(())
    };
    runner.run(&frames, law).unwrap_or_else(|error| panic!("{error}"));
    assert!(node.borrow().stats().dropped.iter().count() > 3, "malformed frames of several kinds");
}
