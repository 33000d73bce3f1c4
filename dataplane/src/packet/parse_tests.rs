use super::*;
use crate::packet::testing::{Ends, Parse, fix_v4_checksum, frame, packet, pool};
use crate::packet::transport::{infer_partial, is_partial, verify_transport_checksum};
use crate::packet::{ChecksumState, PortId};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

fn ends4() -> Ends {
    Ends::new("198.51.100.7", 40000, "10.96.0.10", 53)
}

fn ends6() -> Ends {
    Ends::new("2001:db8::7", 40000, "fd00::10", 53)
}

fn v4(frame: &[u8]) -> Headers<V4> {
    V4::headers(&mut packet(frame))
}

fn v6(frame: &[u8]) -> Headers<V6> {
    V6::headers(&mut packet(frame))
}

fn refused(frame: &[u8]) -> Reason {
    parse(&mut packet(frame)).expect_err("the frame is to be refused")
}

/// An IPv4 frame with its header changed and the checksum made right again.
fn changed(protocol: Protocol, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = frame(ends4(), protocol, b"payload");
    change(&mut frame);
    fix_v4_checksum(&mut frame);
    frame
}

/// An IPv4 UDP frame with `options` (a multiple of four bytes).
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut frame = frame(ends4(), Protocol::UDP, b"payload");
    frame.splice(34..34, options.iter().copied());
    frame[14] = 0x45 + (options.len() / 4) as u8;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fix_v4_checksum(&mut frame);
    frame
}

/// An IPv6 UDP frame with extension headers put in: pairs of number and header, whose first byte is set.
fn with_extensions(extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let mut frame = frame(ends6(), Protocol::UDP, b"payload");
    let mut next_at = 20;
    let mut at = 54;
    for (number, bytes) in extensions {
        let next = std::mem::replace(&mut frame[next_at], *number);
        frame.splice(at..at, bytes.iter().copied());
        frame[at] = next;
        next_at = at;
        at += bytes.len();
    }
    let len = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame
}

#[test]
fn a_tcp_packet_is_read() {
    let headers = v4(&frame(ends4(), Protocol::TCP, b"payload"));
    assert_eq!(
        headers,
        Headers {
            source: "198.51.100.7".parse().unwrap(),
            destination: "10.96.0.10".parse().unwrap(),
            source_port: 40000,
            destination_port: 53,
            protocol: Protocol::TCP,
            l3: 14,
            l4: 34,
            end: 61,
            ttl: 64,
            tos: 0,
            tcp_flags: TcpFlags::ACK,
            dont_fragment: true,
            fragment: FragmentKind::Whole,
            icmp: IcmpClass::None,
            following: 0,
        }
    );
    assert_eq!(headers.packet_len(), 47);
}

#[test]
fn a_udp_packet_of_ipv6_is_read() {
    let headers = v6(&frame(ends6(), Protocol::UDP, b"payload"));
    assert_eq!(headers.source.to_string(), "2001:db8::7");
    assert_eq!(headers.destination.to_string(), "fd00::10");
    assert_eq!((headers.source_port, headers.destination_port), (40000, 53));
    assert_eq!((headers.l3, headers.l4, headers.end), (14, 54, 69));
}

#[test]
fn ct_01_an_echo_has_its_identifier_as_port_and_its_type() {
    let echo4 = v4(&frame(ends4(), Protocol::ICMP, b""));
    assert_eq!((echo4.source_port, echo4.destination_port), (40000, 0x0800));
    assert_eq!(echo4.icmp, IcmpClass::Query);
    let echo6 = v6(&frame(ends6(), Protocol::ICMPV6, b""));
    assert_eq!((echo6.source_port, echo6.destination_port), (40000, 0x8000));
    assert_eq!(echo6.icmp, IcmpClass::Query);
    let error = v4(&changed(Protocol::ICMP, |frame| {
        frame[34..36].copy_from_slice(&[3, 4]);
    }));
    assert_eq!((error.source_port, error.destination_port), (0, 0x0304));
    assert_eq!(error.icmp, IcmpClass::Error);
}

#[test]
fn fw_06_what_is_not_ip_is_named_by_its_ether_type() {
    let mut other = frame(ends4(), Protocol::UDP, b"");
    for (ether_type, expected) in [
        ([0x08, 0x06], Parsed::Arp),
        ([0x81, 0x00], Parsed::Other(0x8100)),
        ([0x00, 0x26], Parsed::Other(0x26)),
    ] {
        other[12..14].copy_from_slice(&ether_type);
        assert_eq!(parse(&mut packet(&other)), Ok(expected));
    }
    // The Ethernet type says IPv6, the header says 4.
    other[12..14].copy_from_slice(&[0x86, 0xdd]);
    other.resize(80, 0);
    assert_eq!(refused(&other), Reason::IpVersion);
}

#[test]
fn fw_04_truncated_frames_are_refused_by_the_header_that_is_cut() {
    let tcp = frame(ends4(), Protocol::TCP, b"");
    assert_eq!(refused(&tcp[..13]), Reason::FrameTruncated);
    assert_eq!(refused(&tcp[..33]), Reason::FrameTruncated);
    assert_eq!(refused(&tcp[..53]), Reason::IpTotalLength);
    let tcp = frame(ends6(), Protocol::TCP, b"");
    assert_eq!(refused(&tcp[..53]), Reason::FrameTruncated);
    assert_eq!(refused(&tcp[..73]), Reason::IpTotalLength);
}

#[test]
fn fw_04_bad_ipv4_headers_are_refused() {
    assert_eq!(refused(&changed(Protocol::UDP, |f| f[14] = 0x65)), Reason::IpVersion);
    let mut short = frame(ends4(), Protocol::UDP, b"");
    short[14] = 0x44;
    assert_eq!(refused(&short), Reason::IpHeaderLength);
    short[14] = 0x4f;
    assert_eq!(refused(&short), Reason::IpHeaderLength);
    assert_eq!(refused(&changed(Protocol::UDP, |f| f[17] = 19)), Reason::IpTotalLength);
    assert_eq!(refused(&changed(Protocol::UDP, |f| f[17] += 1)), Reason::IpTotalLength);
    let mut damaged = frame(ends4(), Protocol::UDP, b"");
    damaged[22] ^= 1;
    assert_eq!(refused(&damaged), Reason::IpChecksum);
}

#[test]
fn fw_04_padding_is_trimmed_by_total_length() {
    for whole in [
        frame(ends4(), Protocol::UDP, b"x"),
        frame(ends6(), Protocol::UDP, b"x"),
        frame(ends4(), Protocol::UDP, &[3; 20_000]),
    ] {
        let mut padded = packet(&whole);
        padded.extend(&[0xee; 3000]).unwrap();
        parse(&mut padded).unwrap();
        assert_eq!(padded.to_vec(), whole);
    }
}

#[test]
fn fw_04_truncated_transport_headers_are_refused() {
    for (protocol, enough) in
        [(Protocol::TCP, 20), (Protocol::UDP, 8), (Protocol::SCTP, 12), (Protocol::ICMP, 8)]
    {
        let cut = |len: u8| changed(protocol, |f| f[17] = 20 + len);
        assert_eq!(refused(&cut(enough - 1)), Reason::TransportTruncated, "{protocol}");
        if protocol != Protocol::UDP {
            assert_eq!(v4(&cut(enough)).protocol, protocol);
        }
    }
    // TCP's data offset, and UDP's length.
    let tcp = |offset: u8| changed(Protocol::TCP, |f| f[46] = offset << 4);
    assert_eq!(refused(&tcp(4)), Reason::TransportTruncated);
    assert_eq!(v4(&tcp(6)).l4, 34);
    assert_eq!(refused(&tcp(7)), Reason::TransportTruncated);
    let udp = |len: u8| changed(Protocol::UDP, |f| f[39] = len);
    assert_eq!(refused(&udp(7)), Reason::TransportTruncated);
    assert_eq!(v4(&udp(14)).destination_port, 53);
    assert_eq!(refused(&udp(16)), Reason::TransportTruncated);
}

#[test]
fn fw_04_options_are_read_over_and_source_routing_is_refused() {
    let router_alert = [148, 4, 0, 0];
    let headers = v4(&with_options(&router_alert));
    assert_eq!((headers.l4, headers.destination_port), (38, 53));
    assert_eq!(v4(&with_options(&[1, 1, 7, 3, 4, 0, 131, 9])).destination_port, 53);
    assert_eq!(refused(&with_options(&[1, 131, 3, 4])), Reason::SourceRoute);
    assert_eq!(refused(&with_options(&[137, 3, 4, 0])), Reason::SourceRoute);
    assert_eq!(refused(&with_options(&[7, 1, 0, 0])), Reason::IpHeaderLength);
    assert_eq!(refused(&with_options(&[1, 7, 4, 0])), Reason::IpHeaderLength);
    assert_eq!(refused(&with_options(&[1, 1, 1, 7])), Reason::IpHeaderLength);
    let mut damaged = with_options(&router_alert);
    damaged[37] ^= 1;
    assert_eq!(refused(&damaged), Reason::IpChecksum);
}

#[test]
fn nat_08_only_a_first_fragment_has_ports() {
    let first = v4(&changed(Protocol::UDP, |f| {
        f[20..22].copy_from_slice(&[0x20, 0]);
        // The datagram is longer than its first fragment.
        f[38..40].copy_from_slice(&[9, 0]);
    }));
    assert_eq!(first.fragment, FragmentKind::First);
    assert_eq!((first.source_port, first.destination_port), (40000, 53));
    for word in [[0x20, 1], [0, 1]] {
        let later = v4(&changed(Protocol::UDP, |f| f[20..22].copy_from_slice(&word)));
        assert_eq!(later.fragment, FragmentKind::Later);
        assert_eq!((later.source_port, later.destination_port), (0, 0));
        assert!(!later.dont_fragment);
    }
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let headers = v6(&with_extensions(&[
        (0, &[0; 8]),
        (60, &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (43, &[0, 0, 4, 0, 0, 0, 0, 0]),
        (51, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]));
    assert_eq!(headers.l4, 54 + 8 + 16 + 8 + 12);
    assert_eq!((headers.protocol, headers.destination_port), (Protocol::UDP, 53));
}

#[test]
fn nat_08_ipv6_fragments_are_told_apart() {
    let fragment =
        |offset_and_more: u8| v6(&with_extensions(&[(44, &[0, 0, 0, offset_and_more, 1, 2, 3, 4])]));
    assert_eq!(fragment(1).fragment, FragmentKind::First);
    assert_eq!(fragment(1).source_port, 40000);
    assert_eq!(fragment(8).fragment, FragmentKind::Later);
    assert_eq!(fragment(9).fragment, FragmentKind::Later);
    assert_eq!(fragment(9).protocol, Protocol::UDP);
    assert_eq!((fragment(9).source_port, fragment(9).l4), (0, 62));
    // An atomic fragment (RFC 6946) is a whole packet.
    assert_eq!(fragment(0).fragment, FragmentKind::Whole);
    assert_eq!(fragment(0).source_port, 40000);
}

#[test]
fn fw_04_broken_or_endless_extension_chains_are_refused() {
    let hop: (u8, &[u8]) = (60, &[0; 8]);
    assert_eq!(v6(&with_extensions(&[hop; EXTENSIONS_MAX])).destination_port, 53);
    assert_eq!(refused(&with_extensions(&[hop; EXTENSIONS_MAX + 1])), Reason::Ipv6Extensions);
    assert_eq!(refused(&with_extensions(&[(60, &[0, 200, 0, 0, 0, 0, 0, 0])])), Reason::Ipv6Extensions);
    assert_eq!(refused(&with_extensions(&[(43, &[0, 0, 0, 1, 0, 0, 0, 0])])), Reason::SourceRoute);
    let mut cut = frame(ends6(), Protocol::UDP, b"");
    cut[20] = 0;
    cut[18..20].copy_from_slice(&[0, 7]);
    assert_eq!(refused(&cut), Reason::Ipv6Extensions);
    let first = [0, 0, 0, 1, 0, 0, 0, 1];
    assert_eq!(refused(&with_extensions(&[(44, &first), (44, &first)])), Reason::Ipv6Extensions);
}

#[test]
fn ct_08_segments_with_impossible_flags_are_not_trackable() {
    for flags in 0..=255 {
        let frame = changed(Protocol::TCP, |frame| frame[47] = flags);
        let headers = v4(&frame);
        assert_eq!(headers.tcp_flags, TcpFlags(flags));
        assert_eq!(headers.is_trackable(), TcpFlags(flags).is_possible());
    }
}

#[test]
fn ct_08_a_wrong_transport_checksum_is_found_in_every_protocol() {
    for (ends, protocol) in [
        (ends4(), Protocol::TCP),
        (ends4(), Protocol::UDP),
        (ends4(), Protocol::ICMP),
        (ends4(), Protocol::SCTP),
        (ends6(), Protocol::TCP),
        (ends6(), Protocol::UDP),
        (ends6(), Protocol::ICMPV6),
        (ends6(), Protocol::SCTP),
    ] {
        for payload in [&b"payload"[..], &[0x5a; 20_001]] {
            let mut bytes = frame(ends, protocol, payload);
            assert!(verifies(&bytes, ChecksumState::Unknown), "{protocol}");
            *bytes.last_mut().unwrap() ^= 0x10;
            assert!(!verifies(&bytes, ChecksumState::Unknown), "{protocol}");
            assert!(verifies(&bytes, ChecksumState::Verified), "{protocol}");
            let partial = ChecksumState::Partial { start: 34, offset: 6 };
            assert!(verifies(&bytes, partial), "{protocol}");
        }
    }
}

#[test]
fn ct_08_udp_without_checksum_is_not_wrong() {
    let bytes = changed(Protocol::UDP, |frame| frame[40..42].fill(0));
    assert!(verifies(&bytes, ChecksumState::Unknown));
}

fn verifies(frame: &[u8], state: ChecksumState) -> bool {
    let mut packet = packet(frame);
    packet.offload.checksum = state;
    match parse(&mut packet) {
        Ok(Parsed::V4(headers)) => verify_transport_checksum(&packet, &headers),
        Ok(Parsed::V6(headers)) => verify_transport_checksum(&packet, &headers),
        other => panic!("not IP: {other:?}"),
    }
}

#[test]
fn pt_04_a_field_with_the_pseudo_header_sum_is_partial() {
    for (protocol, at) in [(Protocol::TCP, 50), (Protocol::UDP, 40)] {
        let whole = frame(ends4(), protocol, b"payload");
        let mut left = packet(&whole);
        let headers = V4::headers(&mut left);
        infer_partial(&mut left, &headers);
        assert!(!is_partial(&left, &headers));

        let len = headers.end - u32::from(headers.l4);
        let sum = crate::packet::checksum::Sum::of_pseudo_header::<V4>(
            headers.source,
            headers.destination,
            protocol,
            len,
        );
        left.head_mut()[at..at + 2].copy_from_slice(&sum.value().to_be_bytes());
        infer_partial(&mut left, &headers);
        assert!(is_partial(&left, &headers));
        crate::packet::checksum::finish_partial(&mut left);
        assert_eq!(left.to_vec(), whole);
    }
}

/// Parses `frame` in one chunk and in several, and checks what must hold of any frame.
fn check(frame: &[u8]) -> Result<Parsed, Reason> {
    let mut whole = packet(frame);
    let parsed = parse(&mut whole);
    let (l3, l4, end) = match parsed {
        Ok(Parsed::V4(headers)) => (headers.l3, headers.l4, headers.end),
        Ok(Parsed::V6(headers)) => (headers.l3, headers.l4, headers.end),
        _ => return parsed,
    };
    assert!(l3 < l4 && u32::from(l4) <= end);
    assert_eq!(whole.len(), end as usize);
    assert!(usize::from(l4) <= whole.head().len());
    assert_eq!(whole.to_vec(), frame[..end as usize]);
    // A later pass reads the same.
    assert_eq!(parse(&mut whole), parsed);
    match parsed {
        Ok(Parsed::V4(headers)) => {
            verify_transport_checksum(&whole, &headers);
        }
        Ok(Parsed::V6(headers)) => {
            verify_transport_checksum(&whole, &headers);
        }
        _ => {}
    }
    parsed
}

/// Compares with etherparse what both read of a frame that it takes for good.
fn compare(frame: &[u8], parsed: Result<Parsed, Reason>) {
    let Ok(other) = SlicedPacket::from_ethernet(frame) else {
        return;
    };
    match (parsed, &other.net) {
        (Ok(Parsed::V4(ours)), Some(NetSlice::Ipv4(theirs))) => {
            let ip = theirs.header();
            assert_eq!(ours.source, ip.source_addr());
            assert_eq!(ours.destination, ip.destination_addr());
            assert_eq!(ours.ttl, ip.ttl());
            assert_eq!(ours.dont_fragment, ip.dont_fragment());
            assert_eq!(ours.fragment != FragmentKind::Whole, ip.is_fragmenting_payload());
            assert_eq!(ours.packet_len(), u32::from(ip.total_len()));
            // Etherparse looks behind AH in IPv4 as well.
            if theirs.extensions().is_empty() {
                assert_eq!(ours.protocol.0, theirs.payload_ip_number().0);
                assert_eq!(usize::from(ours.l4), 14 + ip.slice().len());
                compare_ports(&ours, &other);
            }
        }
        (Ok(Parsed::V6(ours)), Some(NetSlice::Ipv6(theirs))) => {
            let ip = theirs.header();
            assert_eq!(ours.source, ip.source_addr());
            assert_eq!(ours.destination, ip.destination_addr());
            assert_eq!(ours.ttl, ip.hop_limit());
            assert_eq!(ours.tos, ip.traffic_class());
            assert_eq!(ours.fragment != FragmentKind::Whole, theirs.is_payload_fragmented());
            if ours.protocol.0 == theirs.payload().ip_number.0 {
                compare_ports(&ours, &other);
            }
        }
        (Ok(Parsed::V4(_) | Parsed::V6(_)), net) => panic!("etherparse sees {net:?}"),
        _ => {}
    }
}

fn compare_ports<A: Family>(ours: &Headers<A>, other: &SlicedPacket<'_>) {
    match &other.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(ours.source_port, tcp.source_port());
            assert_eq!(ours.destination_port, tcp.destination_port());
            assert_eq!(ours.tcp_flags.contains(TcpFlags::SYN), tcp.syn());
            assert_eq!(ours.tcp_flags.contains(TcpFlags::ACK), tcp.ack());
            assert_eq!(ours.tcp_flags.contains(TcpFlags::FIN), tcp.fin());
            assert_eq!(ours.tcp_flags.contains(TcpFlags::RST), tcp.rst());
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!(ours.source_port, udp.source_port());
            assert_eq!(ours.destination_port, udp.destination_port());
        }
        Some(TransportSlice::Icmpv4(icmp)) if A::VERSION == 4 => {
            assert_eq!(ours.destination_port >> 8, u16::from(icmp.type_u8()));
        }
        Some(TransportSlice::Icmpv6(icmp)) if A::VERSION == 6 => {
            assert_eq!(ours.destination_port >> 8, u16::from(icmp.type_u8()));
        }
        // The other family's ICMP is a protocol like any other, without ports.
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => {
            assert_eq!((ours.source_port, ours.destination_port), (0, 0));
        }
        _ => {}
    }
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop::sample::select(vec![
        Protocol::TCP,
        Protocol::UDP,
        Protocol::SCTP,
        Protocol::ICMP,
        Protocol(47),
    ]);
    let extensions =
        prop::collection::vec((prop::sample::select(vec![0u8, 43, 44, 51, 60]), any::<[u8; 3]>()), 0..4);
    let len = prop_oneof![4 => 0usize..60, 1 => 1700usize..9000];
    (protocol, any::<bool>(), extensions, len).prop_map(|(protocol, six, extensions, len)| {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        match (six, protocol) {
            (false, _) => frame(ends4(), protocol, &payload),
            (true, Protocol::UDP) => {
                let headers: Vec<(u8, Vec<u8>)> = extensions
                    .iter()
                    .map(|&(number, [a, b, c])| (number, vec![0, a % 2, b % 4, c % 10, 0, 0, 0, 0]))
                    .collect();
                let headers: Vec<(u8, &[u8])> =
                    headers.iter().map(|(number, bytes)| (*number, &bytes[..])).collect();
                with_extensions(&headers)
            }
            (true, Protocol::ICMP) => frame(ends6(), Protocol::ICMPV6, &payload),
            (true, _) => frame(ends6(), protocol, &payload),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn fw_04_random_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200), ether_type in 0u8..4, version in any::<bool>()
    ) {
        if bytes.len() > 34 {
            match ether_type {
                0 => bytes[12..14].copy_from_slice(&[0x08, 0x00]),
                1 => bytes[12..14].copy_from_slice(&[0x86, 0xdd]),
                2 => bytes[12..14].copy_from_slice(&[0x08, 0x06]),
                _ => {}
            }
            if version {
                bytes[14] = if ether_type == 0 { 0x45 } else { 0x60 };
            }
        }
        let parsed = check(&bytes);
        compare(&bytes, parsed);
    }

    #[test]
    fn fw_04_mutated_frames_never_panic_and_agree_with_etherparse(
        mut bytes in any_frame(),
        mutations in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        fix in prop::bool::weighted(0.8),
    ) {
        let clean = mutations.is_empty() && cut.is_none();
        for (at, value) in mutations {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if fix && bytes[12..14] == [8, 0] && bytes.len() > 14 + usize::from(bytes[14] & 15) * 4 && bytes[14] & 15 > 4 {
            fix_v4_checksum(&mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let parsed = check(&bytes);
        if clean && bytes[12] == 8 {
            prop_assert!(parsed.is_ok(), "{parsed:?}");
        }
        compare(&bytes, parsed);
    }

    #[test]
    fn fw_04_headers_beyond_the_first_chunk_are_refused(bytes in any_frame(), head in 0usize..100) {
        // The first chunk holds `head` bytes, the rest lies in the chunks behind.
        let room = crate::pool::CHUNK - crate::pool::HEADROOM;
        let mut packet = Packet::copy_of(pool(), PortId(0), &vec![0; room - head.min(bytes.len())]).unwrap();
        packet.extend(&bytes).unwrap();
        packet.trim_front(room - head.min(bytes.len()));
        prop_assert_eq!(packet.to_vec(), bytes);
        if let Ok(Parsed::V4(Headers { l4, .. }) | Parsed::V6(Headers { l4, .. })) = parse(&mut packet) {
            prop_assert!(usize::from(l4) <= packet.head().len());
        }
    }
}
