use super::*;
use crate::packet::checksum::finish_partial;
use crate::packet::testing::{Ends, Parse, fix_v4_checksum, frame, packet};
use crate::packet::transport::verify_transport_checksum;
use crate::packet::{Address, ChecksumState, V4, V6};
use proptest::prelude::*;

fn tuple<A: Family>(ends: Ends) -> Tuple<A> {
    let address = |ip| A::Addr::from_ip(ip).expect("an address of the family");
    (address(ends.source), address(ends.destination), ends.source_port, ends.destination_port)
}

/// Rewrites the frame `from` to `to` and returns the rewrite and its result.
fn rewritten<A: Parse>(frame: &[u8], from: Ends, to: Ends) -> Vec<u8> {
    let mut packet = packet(frame);
    let headers = A::headers(&mut packet);
    Rewrite::<A>::between(tuple::<A>(from), tuple::<A>(to), headers.protocol).apply(&mut packet, &headers);
    packet.to_vec()
}

/// A frame as its sender leaves it to the device: the pseudo-header sum in the checksum field.
fn left_partial<A: Parse>(frame: &[u8]) -> Packet {
    let mut packet = packet(frame);
    let headers = A::headers(&mut packet);
    let (offset, sum) = match headers.protocol {
        Protocol::SCTP => (8, [0; 4].to_vec()),
        protocol => {
            let sum = Sum::of_pseudo_header::<A>(
                headers.source,
                headers.destination,
                protocol,
                headers.end - u32::from(headers.l4),
            );
            let offset = if protocol == Protocol::TCP { 16 } else { 6 };
            (offset, sum.value().to_be_bytes().to_vec())
        }
    };
    let at = usize::from(headers.l4) + offset;
    packet.head_mut()[at..][..sum.len()].copy_from_slice(&sum);
    packet.offload.checksum = ChecksumState::Partial { start: headers.l4, offset: offset as u16 };
    packet
}

/// The laws of a rewrite, for one packet.
fn check<A: Parse>(from: Ends, to: Ends, protocol: Protocol, payload: &[u8]) {
    // Of ICMP only the identifier changes.
    let to = if protocol == A::ICMP { Ends { destination_port: from.destination_port, ..to } } else { to };
    let before = frame(from, protocol, payload);
    let afresh = frame(to, protocol, payload);
    let after = rewritten::<A>(&before, from, to);
    assert_eq!(after, afresh, "a rewritten packet is the one made afresh");
    assert_eq!(rewritten::<A>(&after, to, from), before, "and back");

    // A checksum that was wrong is still wrong, by as much.
    if protocol != A::ICMP || !payload.is_empty() {
        let mut damaged = before.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let mut packet = packet(&rewritten::<A>(&damaged, from, to));
        let headers = A::headers(&mut packet);
        assert!(!verify_transport_checksum(&packet, &headers));
    }

    if protocol != A::ICMP {
        let mut partial = left_partial::<A>(&before);
        let offload = partial.offload;
        let headers = A::headers(&mut partial);
        let rewrite = Rewrite::<A>::between(tuple::<A>(from), tuple::<A>(to), protocol);
        rewrite.apply(&mut partial, &headers);
        assert_eq!(partial.offload, offload, "a partial checksum stays partial");
        assert_eq!(partial.to_vec(), left_partial::<A>(&afresh).to_vec());
        finish_partial(&mut partial);
        assert_eq!(partial.to_vec(), afresh, "a finished one is right");
    }
}

fn any_ends(six: bool) -> impl Strategy<Value = Ends> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>(), any::<u16>()).prop_map(
        move |(from, to, sport, dport)| {
            let address = |bytes: [u8; 16]| -> std::net::IpAddr {
                if six { bytes.into() } else { [bytes[0], bytes[1], bytes[2], bytes[3]].into() }
            };
            Ends {
                source: address(from),
                destination: address(to),
                source_port: sport,
                destination_port: dport,
            }
        },
    )
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..64),
        1 => (any::<u8>(), 1400usize..40_000)
            .prop_map(|(seed, len)| (0..len).map(|i| (i * 7) as u8 ^ seed).collect()),
    ]
}

proptest! {
    #[test]
    fn nat_02_a_rewritten_ipv4_packet_is_the_one_made_afresh(
        from in any_ends(false), to in any_ends(false), payload in any_payload(),
        protocol in prop::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP]),
    ) {
        check::<V4>(from, to, protocol, &payload);
    }

    #[test]
    fn nat_02_a_rewritten_ipv6_packet_is_the_one_made_afresh(
        from in any_ends(true), to in any_ends(true), payload in any_payload(),
        protocol in prop::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMPV6]),
    ) {
        check::<V6>(from, to, protocol, &payload);
    }

    #[test]
    fn fw_01_the_header_checksum_follows_the_ttl(
        ends in any_ends(false), ttl in 1u8..=255, identification in any::<u16>()
    ) {
        let mut bytes = frame(ends, Protocol::UDP, b"payload");
        bytes[18..20].copy_from_slice(&identification.to_be_bytes());
        bytes[22] = ttl;
        fix_v4_checksum(&mut bytes);
        let mut packet = packet(&bytes);
        let headers = V4::headers(&mut packet);
        decrement_ttl(&mut packet, &headers);
        bytes[22] -= 1;
        fix_v4_checksum(&mut bytes);
        prop_assert_eq!(packet.to_vec(), bytes);
    }
}

fn client() -> Ends {
    Ends::new("198.51.100.7", 40000, "10.96.0.10", 53)
}

fn backend() -> Ends {
    Ends::new("10.0.0.1", 1024, "10.244.1.5", 5353)
}

#[test]
fn fw_01_a_hop_limit_is_decreased_and_zero_stays() {
    let bytes = frame(Ends::new("fd00::1", 1, "fd00::2", 2), Protocol::UDP, b"");
    let mut packet = packet(&bytes);
    let headers = V6::headers(&mut packet);
    decrement_ttl(&mut packet, &headers);
    assert_eq!(packet.head()[21], 63);
    packet.head_mut()[21] = 0;
    decrement_ttl(&mut packet, &headers);
    assert_eq!(packet.head()[21], 0);
}

#[test]
fn nat_02_udp_without_checksum_stays_without() {
    let mut bytes = frame(client(), Protocol::UDP, b"question");
    bytes[40..42].fill(0);
    let after = rewritten::<V4>(&bytes, client(), backend());
    let mut expected = frame(backend(), Protocol::UDP, b"question");
    expected[40..42].fill(0);
    assert_eq!(after, expected);
}

#[test]
fn nat_02_a_udp_checksum_that_becomes_zero_is_sent_as_ffff() {
    // The payload's first word is chosen so that the sum after the rewrite is full.
    let probe = frame(backend(), Protocol::UDP, &[0, 0]);
    let payload = [probe[40], probe[41]];
    let expected = frame(backend(), Protocol::UDP, &payload);
    assert_eq!(expected[40..42], [0xff, 0xff]);
    let before = frame(client(), Protocol::UDP, &payload);
    assert_eq!(rewritten::<V4>(&before, client(), backend()), expected);
    assert_eq!(rewritten::<V4>(&expected, backend(), client()), before);
}

#[test]
fn nat_02_a_tcp_checksum_that_becomes_zero_is_sent_as_zero() {
    let probe = frame(backend(), Protocol::TCP, &[0, 0]);
    let payload = [probe[50], probe[51]];
    let expected = frame(backend(), Protocol::TCP, &payload);
    assert_eq!(expected[50..52], [0, 0]);
    let before = frame(client(), Protocol::TCP, &payload);
    assert_eq!(rewritten::<V4>(&before, client(), backend()), expected);
}

#[test]
fn nat_02_an_echo_of_zeros_gets_the_checksum_ffff() {
    let from = Ends::new("10.0.0.1", 77, "10.0.0.2", 0);
    let to = Ends::new("10.0.0.1", 0, "10.0.0.3", 0);
    let reply = |ends| {
        let mut frame = frame(ends, Protocol::ICMP, &[0; 8]);
        frame[34] = 0;
        frame[36..38].fill(0);
        let sum = Sum::of(&frame[34..]).complement();
        frame[36..38].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    assert_eq!(reply(to)[36..38], [0xff, 0xff]);
    assert_eq!(rewritten::<V4>(&reply(from), from, to), reply(to));
    assert_eq!(rewritten::<V4>(&reply(to), to, from), reply(from));
}

#[test]
fn nat_08_a_later_fragment_gets_addresses_only() {
    let mut bytes = frame(client(), Protocol::UDP, b"question");
    bytes[20..22].copy_from_slice(&[0x20, 9]);
    fix_v4_checksum(&mut bytes);
    let after = rewritten::<V4>(&bytes, client(), backend());
    let mut expected = bytes.clone();
    expected[26..30].copy_from_slice(&[10, 0, 0, 1]);
    expected[30..34].copy_from_slice(&[10, 244, 1, 5]);
    fix_v4_checksum(&mut expected);
    assert_eq!(after, expected);
}

#[test]
fn nat_07_of_an_icmp_error_only_the_outer_header_changes() {
    let mut bytes = frame(client(), Protocol::ICMP, &[9; 28]);
    bytes[34] = 3;
    let after = rewritten::<V4>(&bytes, client(), backend());
    assert_eq!(after[34..], bytes[34..]);
    assert_eq!(after[26..34], [10, 0, 0, 1, 10, 244, 1, 5]);
}

#[test]
fn nat_02_the_checksum_of_an_icmpv6_error_follows_its_addresses() {
    let from = Ends::new("fd00::1", 5, "fd00::2", 0);
    let to = Ends::new("2001:db8::1", 9, "fd00:1::2", 0);
    let error = |ends| {
        let mut frame = frame(ends, Protocol::ICMPV6, &[9; 48]);
        frame[54..56].copy_from_slice(&[1, 4]);
        frame[58..60].copy_from_slice(&[0, 0]);
        let mut packet = packet(&frame);
        packet.head_mut()[56..58].fill(0);
        let headers = V6::headers(&mut packet);
        let sum = Sum::of_pseudo_header::<V6>(headers.source, headers.destination, Protocol::ICMPV6, 56)
            + Sum::of_range(&packet, 54..usize::MAX);
        frame[56..58].copy_from_slice(&sum.complement().to_be_bytes());
        frame
    };
    assert_eq!(rewritten::<V6>(&error(from), from, to), error(to));
}

#[test]
fn nat_02_a_tunnelled_partial_checksum_does_not_make_the_outer_one_partial() {
    let mut outer = packet(&frame(client(), Protocol::UDP, &[1; 60]));
    outer.offload.checksum = ChecksumState::Partial { start: 84, offset: 16 };
    let headers = V4::headers(&mut outer);
    Rewrite::<V4>::between(tuple::<V4>(client()), tuple::<V4>(backend()), Protocol::UDP)
        .apply(&mut outer, &headers);
    assert_eq!(outer.to_vec(), frame(backend(), Protocol::UDP, &[1; 60]));
}

#[test]
fn swapped_ends_leave_all_sums_alone_and_are_a_change_still() {
    let there = Ends::new("10.0.0.1", 1000, "10.0.0.2", 2000);
    let back = Ends::new("10.0.0.2", 2000, "10.0.0.1", 1000);
    let swap = Rewrite::<V4>::between(tuple::<V4>(there), tuple::<V4>(back), Protocol::TCP);
    assert_eq!(swap.transport_delta, Delta::NONE);
    assert!(!swap.is_identity());
    assert_eq!(
        rewritten::<V4>(&frame(there, Protocol::TCP, b"x"), there, back),
        frame(back, Protocol::TCP, b"x")
    );
}

#[test]
fn the_identity_leaves_even_a_wrong_checksum_alone() {
    let mut bytes = frame(client(), Protocol::TCP, b"x");
    bytes[50..52].fill(0xff);
    assert_eq!(rewritten::<V4>(&bytes, client(), client()), bytes);
    let same = Rewrite::<V4>::between(tuple::<V4>(client()), tuple::<V4>(client()), Protocol::TCP);
    assert!(same.is_identity());
}

#[test]
fn link_addresses_are_written_and_the_type_stays() {
    let bytes = frame(client(), Protocol::TCP, b"x");
    let mut packet = packet(&bytes);
    let (source, destination) =
        (crate::packet::LinkAddr([1, 2, 3, 4, 5, 6]), crate::packet::LinkAddr([7, 8, 9, 10, 11, 12]));
    crate::packet::set_link(&mut packet, source, destination);
    assert_eq!(packet.head()[..12], [7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6]);
    assert_eq!(packet.head()[12..], bytes[12..]);
}
