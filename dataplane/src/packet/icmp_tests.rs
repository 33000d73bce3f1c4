use super::*;
use crate::packet::testing::{Ends, Parse, fix_v4_checksum, frame, packet, pool};
use crate::packet::transport::verify_transport_checksum;
use crate::packet::{V4, V6};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv4, icmpv6};

fn offending4(payload: &[u8]) -> Vec<u8> {
    frame(Ends::new("198.51.100.7", 40000, "10.96.0.10", 53), Protocol::UDP, payload)
}

fn offending6(payload: &[u8]) -> Vec<u8> {
    frame(Ends::new("2001:db8::7", 40000, "fd00::10", 53), Protocol::UDP, payload)
}

fn about<A: Parse>(kind: ErrorKind, frame: &[u8], source: &str) -> Option<Packet> {
    let mut offending = packet(frame);
    let headers = A::headers(&mut offending);
    let source = source.parse().ok().expect("an address of the family");
    icmp_error::<A>(kind, &offending, &headers, source, pool())
}

fn error4(kind: ErrorKind, frame: &[u8]) -> Option<Packet> {
    about::<V4>(kind, frame, "192.0.2.1")
}

fn error6(kind: ErrorKind, frame: &[u8]) -> Option<Packet> {
    about::<V6>(kind, frame, "2001:db8::1")
}

#[test]
fn no_01_port_unreachable_quotes_the_packet() {
    let offending = offending4(b"question");
    let mut error = error4(ErrorKind::PortUnreachable, &offending).unwrap();
    let bytes = error.to_vec();
    let seen = SlicedPacket::from_ethernet(&bytes).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &seen.net else {
        panic!("not IPv4: {seen:?}");
    };
    assert_eq!(ip.header().source_addr().to_string(), "192.0.2.1");
    assert_eq!(ip.header().destination_addr().to_string(), "198.51.100.7");
    assert_eq!(ip.header().ttl(), 64);
    assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
    let Some(TransportSlice::Icmpv4(message)) = &seen.transport else {
        panic!("not ICMP: {seen:?}");
    };
    assert_eq!(message.icmp_type(), Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port));
    assert_eq!(message.payload(), &offending[14..]);
    assert_eq!(message.icmp_type().calc_checksum(message.payload()), message.checksum());
    assert_eq!(bytes[..12], [0; 12]);
    assert_eq!(error.port, crate::packet::PortId(7));
    let headers = V4::headers(&mut error);
    assert!(verify_transport_checksum(&error, &headers));
    assert_eq!(headers.tos, 0xc0);
}

#[test]
fn no_01_port_unreachable_of_ipv6_quotes_the_packet() {
    let offending = offending6(b"question");
    let error = error6(ErrorKind::PortUnreachable, &offending).unwrap();
    let bytes = error.to_vec();
    let seen = SlicedPacket::from_ethernet(&bytes).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &seen.net else {
        panic!("not IPv6: {seen:?}");
    };
    assert_eq!(ip.header().source_addr().to_string(), "2001:db8::1");
    assert_eq!(ip.header().destination_addr().to_string(), "2001:db8::7");
    assert_eq!((ip.header().hop_limit(), ip.header().traffic_class()), (64, 0));
    let Some(TransportSlice::Icmpv6(message)) = &seen.transport else {
        panic!("not ICMPv6: {seen:?}");
    };
    assert_eq!(message.icmp_type(), Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port));
    assert_eq!(message.payload(), &offending[14..]);
    assert!(message.is_checksum_valid(ip.header().source(), ip.header().destination()));
}

#[test]
fn every_kind_has_the_type_and_code_of_its_family() {
    use ErrorKind::*;
    let code4 = |kind| error4(kind, &offending4(b"")).unwrap().head()[34..42].to_vec();
    assert_eq!(code4(NetUnreachable)[..2], [3, 0]);
    assert_eq!(code4(HostUnreachable)[..2], [3, 1]);
    assert_eq!(code4(PortUnreachable)[..2], [3, 3]);
    assert_eq!(code4(AdminProhibited)[..2], [3, 13]);
    assert_eq!(code4(TimeExceeded)[..2], [11, 0]);
    let code6 = |kind| error6(kind, &offending6(b"")).unwrap().head()[54..62].to_vec();
    assert_eq!(code6(NetUnreachable)[..2], [1, 0]);
    assert_eq!(code6(AdminProhibited)[..2], [1, 1]);
    assert_eq!(code6(HostUnreachable)[..2], [1, 3]);
    assert_eq!(code6(PortUnreachable)[..2], [1, 4]);
    assert_eq!(code6(TimeExceeded)[..2], [3, 0]);
}

#[test]
fn fw_02_packet_too_big_says_the_mtu() {
    let error = error4(ErrorKind::PacketTooBig { mtu: 1480 }, &offending4(&[0; 1472])).unwrap();
    let seen = error.to_vec();
    let Some(TransportSlice::Icmpv4(message)) = SlicedPacket::from_ethernet(&seen).unwrap().transport else {
        panic!("not ICMP");
    };
    assert_eq!(
        message.icmp_type(),
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: 1480
        })
    );
    let error = error6(ErrorKind::PacketTooBig { mtu: 70_000 }, &offending6(&[0; 1400])).unwrap();
    let seen = error.to_vec();
    let Some(TransportSlice::Icmpv6(message)) = SlicedPacket::from_ethernet(&seen).unwrap().transport else {
        panic!("not ICMPv6");
    };
    assert_eq!(message.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 70_000 });
}

#[test]
fn a_long_packet_is_quoted_as_far_as_the_standards_allow() {
    for payload in [549, 1472, 30_000] {
        let offending = offending4(&vec![0xa5; payload]);
        let mut error = error4(ErrorKind::HostUnreachable, &offending).unwrap();
        assert_eq!(error.len(), 14 + 576.min(payload + 28 + 28));
        assert_eq!(error.head()[42..], offending[14..][..error.len() - 42]);
        let headers = V4::headers(&mut error);
        assert!(verify_transport_checksum(&error, &headers));

        let offending = offending6(&vec![0xa5; payload]);
        let mut error = error6(ErrorKind::HostUnreachable, &offending).unwrap();
        assert_eq!(error.len(), 14 + 1280.min(payload + 48 + 48));
        assert_eq!(error.to_vec()[62..], offending[14..][..error.len() - 62]);
        let headers = V6::headers(&mut error);
        assert!(verify_transport_checksum(&error, &headers));
    }
}

#[test]
fn a_quote_ends_where_the_packet_ends_not_with_the_padding() {
    let mut offending = offending4(b"x");
    let whole = offending.len();
    offending.resize(60, 0xee);
    let error = error4(ErrorKind::TimeExceeded, &offending).unwrap();
    assert_eq!(error.len(), whole + 28);
}

#[test]
fn type_of_service_keeps_its_bits_and_says_internetwork_control() {
    let mut offending = offending4(b"");
    offending[15] = 0x3f;
    fix_v4_checksum(&mut offending);
    let mut error = error4(ErrorKind::TimeExceeded, &offending).unwrap();
    assert_eq!(V4::headers(&mut error).tos, 0xde);
}

/// An echo request made into ICMP of another type.
fn icmp4_of_type(kind: u8) -> Vec<u8> {
    let ends = Ends::new("198.51.100.7", 9, "192.0.2.9", 1);
    let mut frame = frame(ends, Protocol::ICMP, &[0; 40]);
    frame[34] = kind;
    frame
}

/// As [`icmp4_of_type`], of ICMPv6.
fn icmp6_of_type(kind: u8) -> Vec<u8> {
    let ends = Ends::new("2001:db8::7", 9, "fd00::10", 1);
    let mut frame = frame(ends, Protocol::ICMPV6, &[0; 40]);
    frame[54] = kind;
    frame
}

#[test]
fn no_error_is_sent_about_an_error() {
    for kind in [3, 4, 5, 11, 12, 19, 200] {
        assert!(error4(ErrorKind::TimeExceeded, &icmp4_of_type(kind)).is_none(), "{kind}");
    }
    for kind in [0, 8, 9, 13, 18] {
        assert!(error4(ErrorKind::TimeExceeded, &icmp4_of_type(kind)).is_some(), "{kind}");
    }
    for kind in [1, 2, 3, 4, 127, 137] {
        assert!(error6(ErrorKind::TimeExceeded, &icmp6_of_type(kind)).is_none(), "{kind}");
    }
    for kind in [128, 129, 135] {
        assert!(error6(ErrorKind::TimeExceeded, &icmp6_of_type(kind)).is_some(), "{kind}");
    }
}

#[test]
fn no_error_is_sent_about_a_later_fragment() {
    let mut fragment = offending4(b"payload");
    fragment[20..22].copy_from_slice(&[0x20, 0]);
    fix_v4_checksum(&mut fragment);
    assert!(error4(ErrorKind::TimeExceeded, &fragment).is_some());
    fragment[21] = 4;
    fix_v4_checksum(&mut fragment);
    assert!(error4(ErrorKind::TimeExceeded, &fragment).is_none());
}

#[test]
fn no_error_is_sent_to_or_about_groups_and_nobody() {
    let between4 = |from, to| frame(Ends::new(from, 1, to, 2), Protocol::UDP, b"");
    for (from, to) in [
        ("0.0.0.0", "192.0.2.9"),
        ("224.0.0.5", "192.0.2.9"),
        ("255.255.255.255", "192.0.2.9"),
        ("198.51.100.7", "224.0.0.251"),
        ("198.51.100.7", "255.255.255.255"),
    ] {
        assert!(error4(ErrorKind::PortUnreachable, &between4(from, to)).is_none(), "{from} {to}");
    }
    for (from, to) in [("::", "fd00::10"), ("ff02::1", "fd00::10"), ("fd00::7", "ff02::1")] {
        assert!(error6(ErrorKind::PortUnreachable, &between4(from, to)).is_none(), "{from} {to}");
    }
}

#[test]
fn no_error_is_sent_about_a_link_broadcast() {
    let mut offending = offending4(b"");
    offending[..6].fill(0xff);
    assert!(error4(ErrorKind::PortUnreachable, &offending).is_none());
}
