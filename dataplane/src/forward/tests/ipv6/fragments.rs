//! Fragments of IPv6 (NAT-08): with the fragment header, 32 bits of identification, and SCTP's CRC.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::packet::testing::{Ends, fragments, frame, reassembled};

const ID: u32 = 0xdead_beef;

/// A frame of `protocol` with `len` bytes of payload; of SCTP an INIT. `between` are link addresses.
fn whole(
    protocol: Protocol,
    between: (LinkAddr, LinkAddr),
    ends: (&str, &str),
    hop_limit: u8,
    len: usize,
) -> Vec<u8> {
    let [from, to] = [ends.0, ends.1].map(|end| end.parse::<SocketAddrV6>().unwrap());
    let mut payload: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
    if protocol == Protocol::SCTP {
        payload[..4].copy_from_slice(&[1, 0, (len >> 8) as u8, len as u8]);
    }
    let ends = Ends::new(&from.ip().to_string(), from.port(), &to.ip().to_string(), to.port());
    let mut bytes = frame(ends, protocol, &payload);
    bytes[..6].copy_from_slice(&between.1.0);
    bytes[6..12].copy_from_slice(&between.0.0);
    bytes[21] = hop_limit;
    bytes
}

const FROM_A: (LinkAddr, LinkAddr) = (POD_A, CALI_LINK);
const FROM_B: (LinkAddr, LinkAddr) = (POD_B, CALI_LINK);
const TO_A: (LinkAddr, LinkAddr) = (CALI_LINK, POD_A);
const TO_B: (LinkAddr, LinkAddr) = (CALI_LINK, POD_B);

fn receive_all(node: &mut Node, port: PortId, frames: &[Vec<u8>]) -> Vec<Out> {
    frames.iter().flat_map(|frame| node.receive(port, frame)).collect()
}

fn outs(port: PortId, frames: Vec<Vec<u8>>) -> Vec<Out> {
    frames.into_iter().map(|bytes| Out { port, bytes }).collect()
}

#[test]
fn nat_08_fragments_pass_a_service_and_back() {
    for protocol in [Protocol::UDP, Protocol::SCTP] {
        let mut node = settled();
        let asked = fragments(&whole(protocol, FROM_A, (A, WEB), 64, 3000), 1000, ID);
        let expected = fragments(&whole(protocol, TO_B, (A, B), 63, 3000), 1000, ID);
        assert_eq!(receive_all(&mut node, CALI_A, &asked), outs(CALI_B, expected), "{protocol}");
        if protocol == Protocol::UDP {
            let answer = fragments(&whole(protocol, FROM_B, (B, A), 64, 2000), 1000, ID);
            let expected = fragments(&whole(protocol, TO_A, (WEB, A), 63, 2000), 1000, ID);
            assert_eq!(receive_all(&mut node, CALI_B, &answer), outs(CALI_A, expected));
        }
        assert_eq!((node.stats().dropped.total(), node.stats().held), (0, 0));
    }
}

#[test]
fn nat_08_early_fragments_wait_for_a_minute() {
    let mut node = settled();
    let ends = (A, "[fd00::b]:1");
    let echo = Protocol::ICMPV6;
    let mut asked = fragments(&whole(echo, FROM_A, ends, 64, 4000), 1000, ID);
    asked.reverse();
    let expected = fragments(&whole(echo, TO_B, ends, 63, 4000), 1000, ID);
    assert_eq!(receive_all(&mut node, CALI_A, &asked), outs(CALI_B, expected));
    let other = fragments(&whole(echo, FROM_A, ends, 64, 4000), 1000, 7);
    assert_eq!(node.receive(CALI_A, &other[1]), []);
    node.tick(Duration::from_millis(59_999));
    assert_eq!(node.stats().held, 1);
    node.tick(Duration::from_millis(1));
    assert_eq!((node.stats().held, node.dropped(Reason::FragmentTimeout)), (0, 1));
}

#[test]
fn fw_02_routers_do_not_cut_ipv6() {
    let mut node = settled();
    let pieces = fragments(&whole(Protocol::UDP, FROM_A, (A, WEB), 64, 4000), 1440, ID);
    let sent = receive_all(&mut node, CALI_A, &pieces);
    let (kind, ..) = error6(&sent[..1], CALI_A);
    assert_eq!(kind, (2, 0, 1400));
    assert_eq!((sent.len(), node.dropped(Reason::TooBig), node.dropped(Reason::Fragment)), (1, 1, 2));
    assert_eq!((node.stats().split, node.stats().originated), (0, 1));
}

#[test]
fn nat_08_an_atomic_fragment_is_a_whole_packet() {
    let mut node = settled();
    let atomic = |packet: Vec<u8>| fragments(&packet, 2000, ID).remove(0);
    let asked = atomic(whole(Protocol::UDP, FROM_A, (A, WEB), 64, 100));
    let expected = atomic(whole(Protocol::UDP, TO_B, (A, B), 63, 100));
    assert_eq!(node.receive(CALI_A, &asked), outs(CALI_B, vec![expected]));
}

#[test]
fn nat_08_tiny_overlapping_and_impossible_fragments_are_counted() {
    let pieces = fragments(&whole(Protocol::UDP, FROM_A, (A, WEB), 64, 3000), 1000, ID);
    let mut node = settled();
    let mut tiny = pieces[0][..62].to_vec();
    tiny[18..20].copy_from_slice(&[0, 8]);
    assert_eq!(node.receive(CALI_A, &tiny), []);
    assert_eq!(node.dropped(Reason::FragmentTiny), 1);
    let mut overlapping = pieces[1].clone();
    overlapping[57] -= 8;
    assert_eq!(receive_all(&mut node, CALI_A, &[pieces[0].clone(), overlapping, pieces[2].clone()]).len(), 1);
    assert_eq!(node.dropped(Reason::FragmentOverlap), 2);
    let mut odd = fragments(&whole(Protocol::UDP, FROM_A, (A, WEB), 64, 3000), 1000, 8)[1][..1000].to_vec();
    let len = (odd.len() - 54) as u16;
    odd[18..20].copy_from_slice(&len.to_be_bytes());
    assert_eq!(node.receive(CALI_A, &odd), []);
    assert_eq!(node.dropped(Reason::FragmentLength), 1);
}

/// What begins an SCTP association must be read whole: of one that is cut within its INIT (32 bytes with the common
/// header) neither direction's tag could be checked later.
#[test]
fn ct_08_an_init_cut_short_by_fragmentation_begins_nothing() {
    for (size, sent, invalid) in [(24, 0, 1), (32, 4, 0)] {
        let mut node = settled();
        let pieces = fragments(&whole(Protocol::SCTP, FROM_A, (A, WEB), 64, 100), size, ID);
        assert_eq!(receive_all(&mut node, CALI_A, &pieces).len(), sent);
        assert_eq!(node.dropped(Reason::Invalid), invalid);
        assert_eq!(node.dropped(Reason::Fragment), invalid * (pieces.len() as u64 - 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn nat_08_whatever_the_order_the_receiver_gets_the_translated_datagram(
        sctp: bool,
        len in 100usize..4000,
        size in 4usize..160,
        order in vec(any::<prop::sample::Index>(), 1..100),
    ) {
        let protocol = if sctp { Protocol::SCTP } else { Protocol::UDP };
        let mut node = settled();
        let pieces = fragments(&whole(protocol, FROM_A, (A, WEB), 64, len), size * 8, ID);
        prop_assume!(pieces.len() > 1 && pieces.len() <= 60);
        let mut arrivals: Vec<usize> = order.iter().map(|index| index.index(pieces.len())).collect();
        arrivals.extend(0..pieces.len());
        let mut sent: Vec<Out> = Vec::new();
        for at in arrivals {
            sent.extend(node.receive(CALI_A, &pieces[at]));
            if reassembled(sent.iter().map(|out| &out.bytes[..])).is_some() {
                break;
            }
        }
        let expected = whole(protocol, TO_B, (A, B), 63, len);
        let together = reassembled(sent.iter().map(|out| &out.bytes[..]));
        prop_assert_eq!(together, Some((protocol.0, expected[54..].to_vec())));
        prop_assert!(sent.iter().all(|out| out.port == CALI_B && out.bytes[21] == 63));
    }
}
