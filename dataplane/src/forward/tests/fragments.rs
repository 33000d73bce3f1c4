//! Fragments through the forwarder (NAT-08), and packets that are cut (FW-02).

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::packet::testing::{fix_v4_checksum, fragments, reassembled};
use crate::packet::{ChecksumState, Gso, GsoKind};
use crate::service::InternalMark;
use crate::tables::LoopbackGuard;

const POD: &str = "10.151.51.7:40000";
const DNS: &str = "10.150.0.10:53";
const DNS_POD: &str = "10.151.51.8:5353";
const FAR: &str = "10.151.49.8:80";
const HOST_END: &str = "172.16.1.50:50000";
const ID: u32 = 0x1234;

/// A frame that may be cut, `len` bytes of payload.
fn frame(link: (LinkAddr, LinkAddr), kind: Kind, ends: (&str, &str), ttl: u8, len: usize) -> Vec<u8> {
    let payload = (0..len).map(|i| (i % 251) as u8).collect();
    let frame =
        Frame { link_source: link.0, link_destination: link.1, kind, ttl, payload, ..Frame::default() };
    frame.between(ends.0, ends.1).bytes()
}

const FROM_POD_7: (LinkAddr, LinkAddr) = (POD_7, CALI_LINK);
const FROM_POD_8: (LinkAddr, LinkAddr) = (POD_8, CALI_LINK);
const FROM_SLAVE2: (LinkAddr, LinkAddr) = (SLAVE2, NODE_LINK);
const FROM_HOST: (LinkAddr, LinkAddr) = (HOST_LINK, HOST_SIDE);

/// Receives the frames one after another: everything that left.
fn receive_all(node: &mut Node, port: PortId, frames: &[Vec<u8>]) -> Vec<Out> {
    frames.iter().flat_map(|frame| node.receive(port, frame)).collect()
}

fn outs(port: PortId, frames: Vec<Vec<u8>>) -> Vec<Out> {
    frames.into_iter().map(|bytes| Out { port, bytes }).collect()
}

fn dropped(node: &Node) -> Vec<(Reason, u64)> {
    node.stats().dropped.iter().collect()
}

#[test]
fn nat_08_fragments_pass_a_service_and_back() {
    let mut node = seed();
    let asked = fragments(&frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 3000), 1000, ID);
    let expected = fragments(&frame(TO_POD_8, Kind::Udp, (POD, DNS_POD), 63, 3000), 1000, ID);
    assert_eq!(receive_all(&mut node, CALI_7, &asked), outs(CALI_8, expected));
    let answer = fragments(&frame(FROM_POD_8, Kind::Udp, (DNS_POD, POD), 64, 2000), 800, 7);
    let expected = fragments(&frame(TO_POD_7, Kind::Udp, (DNS, POD), 63, 2000), 800, 7);
    assert_eq!(receive_all(&mut node, CALI_8, &answer), outs(CALI_7, expected));
    assert_eq!((dropped(&node), node.flows(), node.stats().held), (vec![], 1, 0));
}

#[test]
fn nat_08_early_fragments_are_held_and_leave_in_order() {
    let mut node = seed();
    let asked = fragments(&frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 4000), 1000, ID);
    for (held, piece) in asked.iter().enumerate().skip(1).rev() {
        assert_eq!(node.receive(CALI_7, piece), []);
        assert_eq!(node.stats().held, (asked.len() - held) as u64);
        assert!(node.events.contains(&Event::AwaitsFirst));
    }
    let sent = node.receive(CALI_7, &asked[0]);
    let expected = fragments(&frame(TO_POD_8, Kind::Udp, (POD, DNS_POD), 63, 4000), 1000, ID);
    assert_eq!(sent, outs(CALI_8, expected));
    assert_eq!((dropped(&node), node.stats().held), (vec![], 0));
}

#[test]
fn nat_08_fragments_of_tcp_and_echo_pass_masquerading_both_ways() {
    let mut all = cluster();
    all.policy.internal_mark = InternalMark::Always;
    let mut node = all.start().choosing(ON_SLAVE2);
    let node_end = "172.16.1.50:40000";
    node.from(CALI_7).syn(POD, MYAPP);
    node.from(ENS3).syn_ack(FAR, node_end);
    for _ in 0..2 {
        let asked = fragments(&frame(FROM_POD_7, Kind::ACK, (POD, MYAPP), 64, 2500), 1000, ID);
        let expected = fragments(&frame(TO_SLAVE2, Kind::ACK, (node_end, FAR), 63, 2500), 1000, ID);
        assert_eq!(receive_all(&mut node, CALI_7, &asked), outs(ENS3, expected));
        let answer = fragments(&frame(FROM_SLAVE2, Kind::ACK, (FAR, node_end), 64, 2500), 1400, ID);
        let expected = fragments(&frame(TO_POD_7, Kind::ACK, (MYAPP, POD), 63, 2500), 1400, ID);
        assert_eq!(receive_all(&mut node, ENS3, &answer), outs(CALI_7, expected));
    }
    // Of an echo the first fragment has the identifier.
    let (pod, far) = ("10.151.51.7:77", "10.151.49.8:1");
    let asked = fragments(&frame(FROM_POD_7, Kind::Echo, (pod, far), 64, 8000), 1400, ID);
    let expected = fragments(&frame(TO_SLAVE2, Kind::Echo, (pod, far), 63, 8000), 1400, ID);
    assert_eq!(receive_all(&mut node, CALI_7, &asked), outs(ENS3, expected));
    let answer = fragments(&frame(FROM_SLAVE2, Kind::EchoReply, (far, pod), 64, 8000), 1400, ID);
    let expected = fragments(&frame(TO_POD_7, Kind::EchoReply, (far, pod), 63, 8000), 1400, ID);
    assert_eq!(receive_all(&mut node, ENS3, &answer), outs(CALI_7, expected));
    assert_eq!((dropped(&node), node.flows()), (vec![], 2));
}

#[test]
fn nat_08_fragments_from_the_host_and_to_it() {
    let mut node = seed();
    let asked = fragments(&frame(FROM_HOST, Kind::Udp, (HOST_END, DNS), 64, 2000), 1000, ID);
    let expected = fragments(&frame(TO_POD_8, Kind::Udp, (HOST_END, DNS_POD), 64, 2000), 1000, ID);
    assert_eq!(receive_all(&mut node, HOST, &asked), outs(CALI_8, expected));
    let answer = fragments(&frame(FROM_POD_8, Kind::Udp, (DNS_POD, HOST_END), 64, 2000), 1000, ID);
    let expected = fragments(&frame(TO_HOST, Kind::Udp, (DNS, HOST_END), 64, 2000), 1000, ID);
    assert_eq!(receive_all(&mut node, CALI_8, &answer), outs(HOST, expected));
    // What is the node's own is delivered as it came, in the order of the walk.
    let ends = (POD, "172.16.1.50:9");
    let asked = fragments(&frame(FROM_POD_7, Kind::Udp, ends, 64, 2000), 1000, ID);
    let expected = fragments(&frame(TO_HOST, Kind::Udp, ends, 64, 2000), 1000, ID);
    assert_eq!(receive_all(&mut node, CALI_7, &asked), outs(HOST, expected));
    // CT-08: so is what belongs to no connection; elsewhere it is dropped.
    let fin = |ends| fragments(&frame(FROM_POD_7, Kind::FIN, ends, 64, 2000), 1000, ID);
    let expected = fragments(&frame(TO_HOST, Kind::FIN, ends, 64, 2000), 1000, ID);
    assert_eq!(receive_all(&mut node, CALI_7, &fin(ends)), outs(HOST, expected));
    assert_eq!(receive_all(&mut node, CALI_7, &fin((POD, FAR))), []);
    assert_eq!(dropped(&node), [(Reason::Fragment, 2), (Reason::Invalid, 1)]);
    // A stray one of the host's own leaves.
    let stray = fragments(&frame(FROM_HOST, Kind::FIN, (HOST_END, FAR), 64, 2000), 1000, ID);
    let expected = fragments(&frame(TO_SLAVE2, Kind::FIN, (HOST_END, FAR), 64, 2000), 1000, ID);
    assert_eq!(receive_all(&mut node, HOST, &stray), outs(ENS3, expected));
}

#[test]
fn nat_08_a_refused_first_fragment_takes_the_others_with_it() {
    let mut node = seed();
    let rejected = (POD, "10.150.0.99:80");
    let pieces = fragments(&frame(FROM_POD_7, Kind::Udp, rejected, 64, 3000), 1000, ID);
    assert_eq!(node.receive(CALI_7, &pieces[2]), []);
    let error = icmp_error(&node.receive(CALI_7, &pieces[0]));
    assert_eq!((error.kind, &error.quoted[..]), ((3, 3), &pieces[0][14..14 + 548]));
    assert_eq!(node.receive(CALI_7, &pieces[1]), [], "nobody is told twice");
    assert_eq!(dropped(&node), [(Reason::Fragment, 2), (Reason::NoEndpoints, 1)]);
}

#[test]
fn wk_08_later_fragments_of_an_unreplied_connection_pass_the_filter() {
    let mut node = seed();
    let ends = ("172.16.1.50:5", "127.0.0.1:10249");
    let pieces = fragments(&frame(FROM_HOST, Kind::Udp, ends, 64, 3000), 1000, ID);
    assert_eq!(receive_all(&mut node, HOST, &pieces[..2]).len(), 2);
    let mut guarded = cluster();
    guarded.family.loopback_guard = LoopbackGuard::On;
    node.set(guarded);
    assert_eq!(node.receive(HOST, &pieces[2]), []);
    assert_eq!(dropped(&node), [(Reason::LoopbackGuard, 1)]);
}

#[test]
fn nat_08_a_connection_that_is_gone_takes_later_fragments_with_it() {
    let mut node = seed();
    let pieces = fragments(&frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 3000), 1000, ID);
    assert_eq!(receive_all(&mut node, CALI_7, &pieces[..2]).len(), 2);
    let (flows, _) = node.forwarder.flows_v4().list(0, usize::MAX, node.now.into());
    node.forwarder.flows_v4().remove(flows[0].entry);
    assert_eq!(node.receive(CALI_7, &pieces[2]), []);
    assert_eq!(dropped(&node), [(Reason::Fragment, 1)]);
}

#[test]
fn nb_02_fragments_wait_for_their_neighbour_and_leave_translated_and_in_order() {
    let mut all = cluster();
    all.policy.internal_mark = InternalMark::Always;
    all.backends = vec!["172.17.0.9:80"];
    let mut node = all.start();
    let ends = (POD, MYAPP);
    let pieces = fragments(&frame(FROM_POD_7, Kind::ACK, ends, 64, 3000), 1000, ID);
    let arrivals = [2, 0, 1, 3].map(|at: usize| pieces[at].clone());
    let asked = receive_all(&mut node, CALI_7, &arrivals);
    assert_eq!((asked.len(), node.stats().held), (1, 4), "one question; four wait");
    let now = node.now;
    let address = "172.17.0.9".parse().unwrap();
    // A neighbour whose link address is learnt at the next packet.
    node.forwarder.neighbours_v4().learn(DOCKER0, address, CONTAINER, Learned::Static, now);
    let sent = node.tick(Duration::from_millis(1));
    let link = (DOCKER_LINK, CONTAINER);
    let expected = frame(link, Kind::ACK, ("172.17.0.1:40000", "172.17.0.9:80"), 63, 3000);
    let expected = fragments(&expected, 1000, ID);
    assert_eq!(sent, outs(DOCKER0, expected));
    assert_eq!((dropped(&node), node.stats().held), (vec![], 0));
    // And when nobody answers, they are dropped; the first one's source is told.
    let gone = fragments(&frame(FROM_POD_7, Kind::Udp, (POD, "172.17.0.10:9"), 64, 3000), 1000, ID);
    receive_all(&mut node, CALI_7, &gone);
    let sent = node.tick(Duration::from_millis(1_001));
    assert_eq!(icmp_error(&sent[sent.len() - 1..]).kind, (3, 1));
    assert_eq!(dropped(&node), [(Reason::NeighbourFailed, 4)]);
}

#[test]
fn nat_08_time_and_configuration_end_the_wait() {
    let mut node = seed();
    let pieces = fragments(&frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 3000), 1000, ID);
    node.receive(CALI_7, &pieces[1]);
    node.tick(Duration::from_millis(29_999));
    assert_eq!(node.stats().held, 1);
    node.tick(Duration::from_millis(1));
    assert_eq!((dropped(&node), node.stats().held), (vec![(Reason::FragmentTimeout, 1)], 0));
    // The timeout is a setting.
    node.forwarder.set_fragment_timeouts(Duration::from_secs(5), Duration::from_secs(6));
    node.receive(CALI_7, &pieces[1]);
    node.tick(Duration::from_secs(5));
    assert_eq!(dropped(&node), [(Reason::FragmentTimeout, 2)]);
    // Its port is gone when the first one comes.
    node.receive(CALI_8, &[&CALI_LINK.0[..], &POD_8.0, &pieces[1][12..]].concat());
    let mut fewer = cluster();
    fewer.ports.truncate(CALI_8.index());
    node.set(fewer);
    assert!(node.receive(CALI_7, &pieces[0]).is_empty());
    assert_eq!(node.dropped(Reason::PortDown), 2, "the first one's way out, the other one's way in");
    // The family is no longer forwarded.
    let mut node = seed();
    node.receive(CALI_7, &pieces[1]);
    node.forwarder.set_tables(Arc::new(Tables { v4: None, ..cluster().tables() }));
    node.tick(Duration::from_millis(1));
    assert_eq!((dropped(&node), node.stats().held), (vec![(Reason::Unsupported, 1)], 0));
}

#[test]
fn nat_08_a_device_s_marks_mean_nothing_on_a_fragment() {
    let mut node = seed();
    let asked = fragments(&frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 2000), 1000, ID);
    let expected = fragments(&frame(TO_POD_8, Kind::Udp, (POD, DNS_POD), 63, 2000), 1000, ID);
    for (asked, expected) in asked.iter().zip(expected) {
        let mut packet = Packet::copy_of(pool(), CALI_7, asked).unwrap();
        packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 6 };
        packet.offload.gso = Some(Gso { kind: GsoKind::Udp, ecn: false, size: 500, header_len: 42 });
        assert_eq!(node.receive_packet(packet), outs(CALI_8, vec![expected]));
    }
}

/// A fragment with its place changed, and perhaps cut.
fn odd(at: u16, more: bool, len: usize, protocol: u8) -> Vec<u8> {
    let mut bytes = frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 3000)[..34 + len].to_vec();
    bytes[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
    bytes[20..22].copy_from_slice(&((at / 8) | (u16::from(more) << 13)).to_be_bytes());
    bytes[23] = protocol;
    if len > 12 {
        bytes[46..48].copy_from_slice(&[0x50, 0x10]); // an ACK without options, where it is TCP
    }
    fix_v4_checksum(&mut bytes);
    bytes
}

/// Its name, its frames, and what is counted of them.
type Attack = (&'static str, Vec<Vec<u8>>, &'static [(Reason, u64)]);

fn as_tcp(mut frame: Vec<u8>) -> Vec<u8> {
    frame[23] = 6;
    fix_v4_checksum(&mut frame);
    frame
}

#[test]
fn nat_08_every_attack_has_a_reason_and_a_counter() {
    let udp = |at, more, len| odd(at, more, len, 17);
    let mut syn_ack = odd(0, true, 24, 6);
    syn_ack[47] = 0x12;
    let cases: [Attack; 14] = [
        // RFC 1858: the first fragment leaves the header, or a part of it, to the next.
        ("tiny TCP", vec![odd(0, true, 16, 6)], &[(Reason::FragmentTiny, 1)]),
        ("tiny UDP", vec![odd(0, true, 0, 17)], &[(Reason::FragmentTiny, 1)]),
        ("tiny SCTP", vec![odd(0, true, 8, 132)], &[(Reason::FragmentTiny, 1)]),
        ("tiny ICMP", vec![odd(0, true, 0, 1)], &[(Reason::FragmentTiny, 1)]),
        // RFC 3128: the second one writes over the flags.
        ("overlap", vec![odd(0, true, 24, 6), odd(8, false, 24, 6)], &[(Reason::FragmentOverlap, 2)]),
        // "Teardrop": the second one lies within the first.
        ("teardrop", vec![udp(0, true, 40), udp(24, false, 8)], &[(Reason::FragmentOverlap, 1)]),
        ("duplicate", vec![udp(0, true, 40), udp(0, true, 40)], &[(Reason::FragmentDuplicate, 1)]),
        // "Ping of death": the end lies beyond what a packet can be.
        ("too long", vec![udp(65_528, false, 1000)], &[(Reason::FragmentLength, 1)]),
        ("odd", vec![udp(80, true, 41)], &[(Reason::FragmentLength, 1)]),
        ("empty", vec![udp(80, false, 0)], &[(Reason::FragmentLength, 1)]),
        (
            "two ends",
            vec![udp(0, true, 40), udp(80, false, 9), udp(160, false, 8), udp(40, true, 40)],
            &[(Reason::FragmentOverlap, 2)],
        ),
        (
            "of no connection",
            vec![syn_ack, udp(24, false, 8)].into_iter().map(as_tcp).collect(),
            &[(Reason::Fragment, 1), (Reason::Invalid, 1)],
        ),
        ("gaps", (0..66).map(|n| udp(40 + n * 16, true, 8)).collect(), &[(Reason::FragmentOverflow, 66)]),
        ("no first", vec![udp(40, true, 40), udp(80, false, 40)], &[(Reason::FragmentTimeout, 2)]),
    ];
    for reason in Reason::ALL.iter().filter(|reason| reason.description().contains("(NAT-08)")) {
        assert!(cases.iter().any(|case| case.2.iter().any(|drop| drop.0 == *reason)), "{reason:?}");
    }
    for (name, frames, expected) in cases {
        let mut node = seed();
        receive_all(&mut node, CALI_7, &frames);
        node.tick(Duration::from_secs(30));
        assert_eq!(dropped(&node), expected, "{name}");
    }
}

#[test]
fn nat_08_a_flood_of_fragments_is_bounded_and_counted() {
    let mut node = seed();
    let flood = |node: &mut Node, from: u16, count: u16, start| {
        for id in from..from + count {
            let mut bytes = odd(start, true, 80, 17);
            bytes[18..20].copy_from_slice(&id.to_be_bytes());
            fix_v4_checksum(&mut bytes);
            node.receive(CALI_7, &bytes);
        }
    };
    // The pool of the tests is smaller than what may wait; ports would get no more frames.
    flood(&mut node, 0, 600, 80);
    assert_eq!((node.stats().held, dropped(&node)), (600, vec![]));
    node.tick(Duration::from_secs(30));
    let mut ticks = 0;
    while node.stats().held > 0 && ticks < 20 {
        node.tick(Duration::from_millis(5));
        ticks += 1;
    }
    assert_eq!(dropped(&node), [(Reason::FragmentTimeout, 600)]);
    // First ones alone take no memory but their entries.
    flood(&mut node, 0, 5000, 0);
    assert_eq!((node.stats().held, node.dropped(Reason::FragmentOverflow)), (0, 0));
}

#[test]
fn fw_02_without_df_a_packet_is_cut_for_its_link() {
    let mut node = seed();
    let whole = frame(FROM_POD_7, Kind::Udp, (POD, FAR), 64, 3000);
    let expected = fragments(&frame(TO_SLAVE2, Kind::Udp, (POD, FAR), 63, 3000), 1480, ID);
    assert_eq!(node.receive(CALI_7, &whole), outs(ENS3, expected.clone()));
    assert_eq!((node.stats().split, dropped(&node)), (2, vec![]));
    // Translated, on the way in as well: a pod's port carries 1,480 bytes.
    let mut node = seed();
    node.receive(CALI_7, &frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 10));
    let sent = node.receive(CALI_8, &frame(FROM_POD_8, Kind::Udp, (DNS_POD, POD), 64, 3000));
    let expected = fragments(&frame(TO_POD_7, Kind::Udp, (DNS, POD), 63, 3000), 1456, ID);
    assert_eq!(sent, outs(CALI_7, expected));
    // The host's own, of the size of its device.
    let sent = node.receive(HOST, &frame(FROM_HOST, Kind::Udp, (HOST_END, DNS), 64, 1472));
    let expected = fragments(&frame(TO_POD_8, Kind::Udp, (HOST_END, DNS_POD), 64, 1472), 1456, ID);
    assert_eq!(sent, outs(CALI_8, expected));
}

#[test]
fn fw_02_fragments_are_cut_again() {
    let mut node = seed();
    let whole = frame(FROM_POD_7, Kind::Udp, (POD, DNS), 64, 6000);
    let sent = receive_all(&mut node, CALI_7, &fragments(&whole, 3000, ID));
    assert!(sent.len() == 7 && sent.iter().all(|out| out.bytes.len() <= 14 + 1480));
    let expected = frame(TO_POD_8, Kind::Udp, (POD, DNS_POD), 63, 6000);
    let together = reassembled(sent.iter().map(|out| &out.bytes[..]));
    assert_eq!(together, Some((17, expected[34..].to_vec())));
    // Not those that say no: the first one's source is told, of the others it is only counted.
    let mut pieces = fragments(&whole, 3000, 7);
    for piece in &mut pieces {
        piece[20] |= 0x40;
        fix_v4_checksum(piece);
    }
    let sent = receive_all(&mut node, CALI_7, &pieces);
    let error = icmp_error(&sent[..1]);
    assert_eq!((error.kind, error.mtu), ((3, 4), 1480));
    assert_eq!(
        sent[1..].iter().map(|out| out.bytes.len()).collect::<Vec<_>>(),
        [14 + 28],
        "the last one fits"
    );
    assert_eq!(dropped(&node), [(Reason::TooBig, 2)]);
}

#[test]
fn fw_02_a_super_frame_whose_segments_do_not_fit_is_segmented_and_cut() {
    let mut node = seed();
    let bytes = frame(FROM_POD_7, Kind::ACK, (POD, FAR), 64, 6000);
    let mut packet = Packet::copy_of(pool(), CALI_7, &bytes).unwrap();
    packet.offload.gso = Some(Gso { kind: GsoKind::Tcp4, ecn: false, size: 2500, header_len: 54 });
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 16 };
    let sent = node.receive_packet(packet);
    // Two segments of 2,500 bytes in two fragments each, one of 1,000.
    let lengths: Vec<_> = sent.iter().map(|out| out.bytes.len() - 14).collect();
    assert_eq!(lengths, [1500, 1060, 1500, 1060, 1040]);
    for (pair, number) in sent[..4].chunks(2).zip(0u32..) {
        let (protocol, segment) = reassembled(pair.iter().map(|out| &out.bytes[..])).unwrap();
        assert_eq!((protocol, segment.len()), (6, 2520));
        assert_eq!(segment[4..8], (1000 + 2500 * number).to_be_bytes());
        assert_eq!(segment[20..], bytes[54 + 2500 * number as usize..][..2500]);
        let tcp = etherparse::TcpSlice::from_slice(&segment).unwrap();
        let ends = [[10, 151, 51, 7], [10, 151, 49, 8]];
        assert_eq!(tcp.calc_checksum_ipv4(ends[0], ends[1]), Ok(tcp.checksum()));
    }
    assert_eq!((node.stats().split, dropped(&node)), (4, vec![]));
}

#[test]
fn fw_02_a_packet_that_waits_for_its_neighbour_is_cut_when_it_leaves() {
    let mut node = seed();
    let ends = (POD, "172.17.0.9:9");
    node.receive(CALI_7, &frame(FROM_POD_7, Kind::Udp, ends, 64, 3000));
    let pieces = fragments(&frame(FROM_POD_7, Kind::Udp, ends, 64, 3000), 2000, 7);
    receive_all(&mut node, CALI_7, &pieces);
    assert_eq!((node.stats().held, node.stats().split), (3, 0));
    let now = node.now;
    let address = "172.17.0.9".parse().unwrap();
    node.forwarder.neighbours_v4().learn(DOCKER0, address, CONTAINER, Learned::Static, now);
    let sent = node.tick(Duration::from_millis(1));
    let expected = frame((DOCKER_LINK, CONTAINER), Kind::Udp, ends, 63, 3000);
    assert_eq!(sent[..3], outs(DOCKER0, fragments(&expected, 1480, ID)));
    let together = reassembled(sent[3..].iter().map(|out| &out.bytes[..]));
    assert_eq!(together, Some((17, expected[34..].to_vec())));
    assert_eq!((node.stats().held, dropped(&node)), (0, vec![]));
}

/// What a random datagram is.
fn kinds() -> impl Strategy<Value = (Kind, &'static str, &'static str)> {
    prop_oneof![
        Just((Kind::Udp, DNS, DNS_POD)),
        Just((Kind::ACK, MYAPP, "10.151.51.8:80")),
        Just((Kind::Echo, "10.151.51.8:1", "10.151.51.8:1")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Cut at random, in random order, with duplicates: what the receiver puts together is the translated
    /// datagram, to the last bit.
    #[test]
    fn nat_08_whatever_the_order_the_receiver_gets_the_translated_datagram(
        (kind, to, translated) in kinds(),
        len in 100usize..8000,
        size in 3usize..180,
        order in vec(any::<prop::sample::Index>(), 1..160),
        masquerade: bool,
        link in prop::option::of(100u32..1480),
    ) {
        let mut all = cluster();
        if masquerade {
            all.policy.internal_mark = InternalMark::Always;
        }
        if let Some(mtu) = link {
            all.ports[CALI_8.index()].mtu = mtu;
        }
        let mut node = all.start().choosing(ON_CALI_8);
        let source = if masquerade && kind != Kind::Echo { "172.16.1.50:40000" } else { POD };
        let pieces = fragments(&frame(FROM_POD_7, kind, (POD, to), 64, len), size * 8, ID);
        prop_assume!(pieces.len() > 1 && pieces.len() <= 120);
        // A random order with some twice; what it lacks comes at the end.
        let mut arrivals: Vec<usize> = order.iter().map(|index| index.index(pieces.len())).collect();
        let missing: Vec<_> = (0..pieces.len()).filter(|at| !arrivals.contains(at)).collect();
        let last = missing.last().copied();
        arrivals.extend(missing);
        let mut sent = Vec::new();
        for at in arrivals {
            sent.extend(node.receive(CALI_7, &pieces[at])); // asserts the balance of FW-05
            if Some(at) == last || reassembled(sent.iter().map(|out: &Out| &out.bytes[..])).is_some() {
                break;
            }
        }
        let expected = frame(TO_POD_8, kind, (source, translated), 63, len);
        let together = reassembled(sent.iter().map(|out| &out.bytes[..]));
        if node.dropped(Reason::FragmentOverflow) == 0 {
            prop_assert_eq!(together, Some((expected[23], expected[34..].to_vec())));
        }
        prop_assert!(sent.iter().all(|out| out.port == CALI_8 && out.bytes[22] == 63));
        node.tick(Duration::from_secs(31));
        prop_assert_eq!(node.stats().held, 0);
        let reasons = [Reason::FragmentDuplicate, Reason::FragmentTimeout, Reason::FragmentOverflow];
        prop_assert!(dropped(&node).iter().all(|drop| reasons.contains(&drop.0)), "{:?}", dropped(&node));
    }
}
