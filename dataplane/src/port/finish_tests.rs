//! Segmentation against frames that etherparse builds afresh.

use etherparse::{
    Ethernet2Header, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader,
    TcpOptionElement, UdpHeader,
};

use super::*;
use crate::packet::PortId;
use crate::pool::Pool;

const IDENTIFICATION: u16 = 0xfffe;
const SEQUENCE: u32 = u32::MAX - 5_000;

#[derive(Clone, Copy, PartialEq)]
enum Ip {
    V4,
    V6,
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// A TCP segment in an Ethernet frame, as a sender would write it.
fn tcp(ip: Ip, number: u16, offset: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(80, 40_000, SEQUENCE.wrapping_add(offset), 5_840);
    header
        .set_options(&[TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(1, 2)])
        .unwrap();
    header.acknowledgment_number = 77;
    header.ack = true;
    header.fin = flags & FLAG_FIN != 0;
    header.psh = flags & FLAG_PSH != 0;
    header.cwr = flags & FLAG_CWR != 0;
    let mut frame = Vec::new();
    let (v4, v6) = (v4(IpNumber::TCP, number), v6(IpNumber::TCP));
    let len = header.header_len() + payload.len();
    match ip {
        Ip::V4 => {
            header.checksum = header.calc_checksum_ipv4(&v4, payload).unwrap();
            ethernet(0x0800, &mut frame);
            let mut v4 = v4;
            v4.set_payload_len(len).unwrap();
            v4.header_checksum = v4.calc_header_checksum();
            v4.write(&mut frame).unwrap();
        }
        Ip::V6 => {
            header.checksum = header.calc_checksum_ipv6(&v6, payload).unwrap();
            ethernet(0x86dd, &mut frame);
            let mut v6 = v6;
            v6.payload_length = len as u16;
            v6.write(&mut frame).unwrap();
        }
    }
    header.write(&mut frame).unwrap();
    frame.extend(payload);
    frame
}

fn udp(ip: Ip, number: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let len = UDP_HEADER + payload.len();
    let header = match ip {
        Ip::V4 => {
            let mut v4 = v4(IpNumber::UDP, number);
            v4.set_payload_len(len).unwrap();
            v4.header_checksum = v4.calc_header_checksum();
            ethernet(0x0800, &mut frame);
            v4.write(&mut frame).unwrap();
            UdpHeader::with_ipv4_checksum(53, 40_000, &v4, payload).unwrap()
        }
        Ip::V6 => {
            let mut v6 = v6(IpNumber::UDP);
            v6.payload_length = len as u16;
            ethernet(0x86dd, &mut frame);
            v6.write(&mut frame).unwrap();
            UdpHeader::with_ipv6_checksum(53, 40_000, &v6, payload).unwrap()
        }
    };
    header.write(&mut frame).unwrap();
    frame.extend(payload);
    frame
}

fn ethernet(ether_type: u16, frame: &mut Vec<u8>) {
    Ethernet2Header {
        source: [2, 0, 0, 0, 0, 1],
        destination: [2, 0, 0, 0, 0, 2],
        ether_type: etherparse::EtherType(ether_type),
    }
    .write(frame)
    .unwrap();
}

fn v4(protocol: IpNumber, number: u16) -> Ipv4Header {
    let mut header = Ipv4Header::new(0, 61, protocol, [10, 1, 2, 3], [192, 168, 255, 254]).unwrap();
    header.identification = IDENTIFICATION.wrapping_add(number);
    header
}

fn v6(protocol: IpNumber) -> Ipv6Header {
    Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::try_new(0x12345).unwrap(),
        payload_length: 0,
        next_header: protocol,
        hop_limit: 61,
        source: [0xfd; 16],
        destination: [0xfc; 16],
    }
}

/// The super-frame that `frame` is when its sender left the checksum and the cutting to the device.
fn super_frame(
    pool: &'static Pool,
    mut frame: Vec<u8>,
    kind: GsoKind,
    l4: u16,
    header_len: u16,
    size: u16,
) -> Packet {
    let offset: u16 = if kind == GsoKind::Udp { 6 } else { 16 };
    let field = usize::from(l4 + offset);
    // What a partial checksum holds does not matter to segmentation, which makes its own.
    frame[field..field + 2].fill(0x5a);
    let mut packet = Packet::copy_of(pool, PortId(5), &frame).unwrap();
    packet.offload.checksum = ChecksumState::Partial { start: l4, offset };
    packet.offload.gso = Some(Gso { kind, ecn: false, size, header_len });
    packet
}

fn segments(packet: Packet) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let count = segment(packet, &mut |segment| {
        assert_eq!(segment.offload, crate::packet::Offload::default());
        assert_eq!(segment.port, PortId(5));
        out.push(segment.to_vec());
    })
    .unwrap();
    assert_eq!(count as usize, out.len());
    out
}

fn check_tcp(ip: Ip, kind: GsoKind, l4: u16) {
    let pool = Pool::new(256).unwrap();
    let payload = payload(10_001);
    let all = FLAG_FIN | FLAG_PSH | FLAG_CWR;
    let whole = tcp(ip, 0, 0, all, &payload);
    let got = segments(super_frame(pool, whole, kind, l4, l4 + 32, 1_448));
    let expected: Vec<Vec<u8>> = payload
        .chunks(1_448)
        .enumerate()
        .map(|(number, part)| {
            let flags = match number {
                0 => FLAG_CWR,
                6 => FLAG_FIN | FLAG_PSH,
                _ => 0,
            };
            tcp(ip, number as u16, number as u32 * 1_448, flags, part)
        })
        .collect();
    assert_eq!(expected.len(), 7);
    assert_eq!(got, expected);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn pt_04_a_tcp_super_frame_over_ipv4_is_cut_as_its_sender_would_have() {
    check_tcp(Ip::V4, GsoKind::Tcp4, 34);
}

#[test]
fn pt_04_a_tcp_super_frame_over_ipv6_is_cut_as_its_sender_would_have() {
    check_tcp(Ip::V6, GsoKind::Tcp6, 54);
}

#[test]
fn pt_04_a_udp_super_frame_is_cut_into_datagrams() {
    let pool = Pool::new(256).unwrap();
    let payload = payload(5_000);
    for (ip, l4) in [(Ip::V4, 34), (Ip::V6, 54)] {
        let whole = udp(ip, 0, &payload);
        let got = segments(super_frame(pool, whole, GsoKind::Udp, l4, l4 + 8, 1_201));
        let expected: Vec<Vec<u8>> =
            payload.chunks(1_201).enumerate().map(|(number, part)| udp(ip, number as u16, part)).collect();
        assert_eq!(got, expected);
    }
}

#[test]
fn pt_04_a_super_frame_of_64_kib_and_parts_of_odd_length_are_cut_exactly() {
    let pool = Pool::new(512).unwrap();
    let payload = payload(65_535 - 52);
    let whole = tcp(Ip::V4, 0, 0, 0, &payload);
    let mut packet = super_frame(pool, whole, GsoKind::Tcp4, 34, 66, 1_447);
    // Bytes put in front and taken away again leave the chunks where they are, but an odd tag does not:
    // shift the frame by one byte so that every chunk but the first begins at an odd place of the payload.
    let bytes = packet.to_vec();
    let offload = packet.offload;
    packet = Packet::copy_of(pool, PortId(5), &[&[0], &bytes[..]].concat()).unwrap();
    packet.trim_front(1);
    packet.offload = offload;
    let got = segments(packet);
    let expected: Vec<Vec<u8>> = payload
        .chunks(1_447)
        .enumerate()
        .map(|(number, part)| tcp(Ip::V4, number as u16, number as u32 * 1_447, 0, part))
        .collect();
    assert_eq!(got, expected);
}

#[test]
fn pt_04_a_partial_checksum_over_a_chain_is_finished() {
    let pool = Pool::new(64).unwrap();
    for shift in [0, 1] {
        let expected = tcp(Ip::V6, 0, 0, FLAG_PSH, &payload(9_001));
        let mut frame = expected.clone();
        let len = (frame.len() - 54) as u32;
        let pseudo = (Sum::of(&frame[22..54]) + Sum::of(&[0, TCP]) + Sum::of(&len.to_be_bytes())).value();
        frame[54 + 16..54 + 18].copy_from_slice(&pseudo.to_be_bytes());
        let mut packet = Packet::copy_of(pool, PortId(0), &[&vec![0; shift], &frame[..]].concat()).unwrap();
        packet.trim_front(shift);
        packet.offload.checksum = ChecksumState::Partial { start: 54, offset: 16 };
        finish_checksum(&mut packet).unwrap();
        assert_eq!(packet.offload.checksum, ChecksumState::Unknown);
        assert!(packet.to_vec() == expected);
    }
}

#[test]
fn pt_04_a_udp_checksum_of_zero_is_written_as_ffff() {
    let pool = Pool::new(4).unwrap();
    let build = |payload: [u8; 2]| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    };
    // The payload that is the checksum of the datagram with payload 0 makes the checksum 0.
    let zero = build([0, 0]);
    let frame = build([zero[40], zero[41]]);
    assert_eq!(frame[40..42], [0xff, 0xff], "etherparse writes it so, too");
    let mut partial = frame.clone();
    let pseudo = (Sum::of(&frame[26..34]) + Sum::of(&[0, UDP, 0, 10])).value();
    partial[40..42].copy_from_slice(&pseudo.to_be_bytes());
    let mut packet = Packet::copy_of(pool, PortId(0), &partial).unwrap();
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 6 };
    finish_checksum(&mut packet).unwrap();
    assert_eq!(packet.to_vec(), frame);
}

#[test]
fn pt_04_an_ordinary_frame_passes_whole() {
    let pool = Pool::new(4).unwrap();
    let frame = tcp(Ip::V4, 0, 0, 0, &payload(100));
    let packet = Packet::copy_of(pool, PortId(5), &frame).unwrap();
    assert_eq!(segments(packet), vec![frame.clone()]);
    let short = super_frame(pool, frame, GsoKind::Tcp4, 34, 66, 100);
    assert_eq!(segments(short).len(), 1);
}

#[test]
fn pt_04_marks_that_lie_are_refused() {
    let pool = Pool::new(64).unwrap();
    let frame = tcp(Ip::V4, 0, 0, 0, &payload(3_000));
    let refused = |packet: Packet| {
        segment(packet, &mut |_| panic!("nothing is to come out")).map_err(|(_, reason)| reason).unwrap_err()
    };
    let of = |kind, size| super_frame(pool, frame.clone(), kind, 34, 66, size);
    assert_eq!(refused(of(GsoKind::Tcp6, 1_000)), Reason::IpVersion);
    assert_eq!(refused(of(GsoKind::Tcp4, 0)), Reason::TransportTruncated);
    let mut outside = of(GsoKind::Tcp4, 1_000);
    outside.offload.checksum = ChecksumState::Partial { start: 40_000, offset: 16 };
    assert_eq!(refused(outside), Reason::TransportTruncated);
    // Headers that would not fit the first chunk of a segment.
    let mut long = of(GsoKind::Tcp4, 100);
    assert!(long.prepend(200).is_some());
    let bytes = long.to_vec();
    long.head_mut()[..214].copy_from_slice(&[&bytes[200..214], &bytes[214..414]].concat());
    long.head_mut()[1_900 + 12] = 0x50;
    long.offload.checksum = ChecksumState::Partial { start: 1_900, offset: 16 };
    assert_eq!(refused(long), Reason::TransportTruncated);
    let mut inside = of(GsoKind::Tcp4, 1_000);
    inside.offload.checksum = ChecksumState::Partial { start: 20, offset: 16 };
    assert_eq!(refused(inside), Reason::IpHeaderLength);
    let mut short = of(GsoKind::Tcp4, 1_000);
    short.truncate(13);
    assert_eq!(refused(short), Reason::FrameTruncated);
    let mut field = Packet::copy_of(pool, PortId(0), &frame[..60]).unwrap();
    field.offload.checksum = ChecksumState::Partial { start: 34, offset: 25 };
    assert_eq!(finish_checksum(&mut field), Err(Reason::TransportTruncated));
}

#[test]
fn pt_04_an_empty_pool_gives_the_packet_back() {
    let pool = Pool::new(1).unwrap();
    let frame = tcp(Ip::V4, 0, 0, 0, &payload(10_000));
    let packet = super_frame(pool, frame, GsoKind::Tcp4, 34, 66, 1_000);
    let mut hold: Vec<Packet> = std::iter::from_fn(|| Packet::new(pool, PortId(0)).ok()).collect();
    hold.truncate(hold.len() - 3);
    let mut out = Vec::new();
    let (packet, reason) = segment(packet, &mut |segment| out.push(segment)).unwrap_err();
    assert_eq!((reason, out.len()), (Reason::PoolEmpty, 3));
    assert_eq!(packet.len(), 34 + 32 + 10_000);
    drop((packet, out, hold));
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn pt_04_sctp_checksums_are_crcs_and_no_device_writes_them() {
    let pool = Pool::new(4).unwrap();
    // An SCTP header with an INIT ACK's first bytes; the CRC32c is that of RFC 9260's polynomial.
    let mut frame = vec![0; 34];
    frame.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 0]);
    frame.extend(*b"123456789");
    let mut packet = Packet::copy_of(pool, PortId(0), &frame).unwrap();
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 8 };
    let everything = crate::port::Capabilities { partial_checksum: true, gso: true, udp_gso: true };
    assert!(!everything.carries(&packet.offload));
    finish_checksum(&mut packet).unwrap();
    assert!(everything.carries(&packet.offload));
    assert_eq!(packet.head()[42..46], crc32c(&frame[34..]).to_le_bytes());
    packet.truncate(45);
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 8 };
    assert_eq!(finish_checksum(&mut packet), Err(Reason::TransportTruncated));
}

/// Bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
