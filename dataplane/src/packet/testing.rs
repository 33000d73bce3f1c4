//! Frames for tests, made by another implementation (etherparse), so that checksums have a second opinion.

use std::net::IpAddr;

use etherparse::defrag::IpDefragPool;
use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep, SlicedPacket};

use super::crc32c::Crc32c;
use super::parse::{Headers, Parsed, parse};
use super::{Family, Packet, PortId, Protocol, V4, V6};
use crate::pool::Pool;

/// Source and destination address, source and destination port (of ICMP: identifier, sequence number).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

impl Ends {
    pub(crate) fn new(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Ends {
        Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port,
            destination_port,
        }
    }
}

/// A correct frame of TCP (an ACK), UDP, SCTP or an ICMP echo request, TTL 64.
pub(crate) fn frame(ends: Ends, protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (ends.source, ends.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        mixed => panic!("two families: {mixed:?}"),
    };
    let (from, to) = (ends.source_port, ends.destination_port);
    match protocol {
        Protocol::TCP => written(ip.tcp(from, to, 1000, 4096).ack(77), payload),
        Protocol::UDP => written(ip.udp(from, to), payload),
        Protocol::ICMP => written(ip.icmpv4_echo_request(from, to), payload),
        Protocol::ICMPV6 => written(ip.icmpv6_echo_request(from, to), payload),
        other => {
            let mut message = Vec::new();
            message.extend(from.to_be_bytes());
            message.extend(to.to_be_bytes());
            message.extend([0; 8]);
            message.extend(payload);
            if other == Protocol::SCTP {
                let mut crc = Crc32c::new();
                crc.update(&message);
                message[8..12].copy_from_slice(&crc.finish().to_le_bytes());
            }
            let mut frame = Vec::new();
            ip.write(&mut frame, IpNumber(other.0), &message).unwrap();
            frame
        }
    }
}

/// What etherparse's steps have in common.
pub(crate) trait Step {
    fn write_frame(self, frame: &mut Vec<u8>, payload: &[u8]);
}

macro_rules! steps {
    ($($header:ident)*) => {
        $(impl Step for PacketBuilderStep<etherparse::$header> {
            fn write_frame(self, frame: &mut Vec<u8>, payload: &[u8]) {
                self.write(frame, payload).unwrap();
            }
        })*
    };
}

steps!(TcpHeader UdpHeader Icmpv4Header Icmpv6Header);

fn written(step: impl Step, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    step.write_frame(&mut frame, payload);
    frame
}

/// A packet that holds `frame`, and a pool of its own.
pub(crate) fn packet(frame: &[u8]) -> Packet {
    Packet::copy_of(pool(), PortId(7), frame).unwrap()
}

/// A pool for the thread's tests.
pub(crate) fn pool() -> &'static Pool {
    thread_local! {
        static POOL: &'static Pool = Pool::new(256).unwrap();
    }
    POOL.with(|pool| *pool)
}

/// Writes the IPv4 header checksum of `frame` afresh.
pub(crate) fn fix_v4_checksum(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum: u32 =
        frame[14..end].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// The IP datagram of `frame` in fragments with `size` bytes each (a multiple of 8), in order. The header of IPv4
/// is one without options, that of IPv6 gets a fragment header behind it.
pub(crate) fn fragments(frame: &[u8], size: usize, identification: u32) -> Vec<Vec<u8>> {
    let v4 = frame[12..14] == [8, 0];
    let (headers, payload) = frame.split_at(if v4 { 34 } else { 54 });
    let count = payload.len().div_ceil(size);
    let piece = |(number, bytes): (usize, &[u8])| {
        let (offset, more) = ((number * size) as u16, number + 1 < count);
        let mut piece = headers.to_vec();
        if v4 {
            piece[16..18].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
            piece[18..20].copy_from_slice(&(identification as u16).to_be_bytes());
            piece[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
            fix_v4_checksum(&mut piece);
        } else {
            piece[18..20].copy_from_slice(&(8 + bytes.len() as u16).to_be_bytes());
            let next = std::mem::replace(&mut piece[20], 44);
            piece.extend([next, 0]);
            piece.extend((offset | u16::from(more)).to_be_bytes());
            piece.extend(identification.to_be_bytes());
        }
        piece.extend(bytes);
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// What the fragments `frames` carry together, put together by etherparse: the protocol's number and the bytes.
/// Nothing when one is missing.
pub(crate) fn reassembled<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Option<(u8, Vec<u8>)> {
    let mut buffers = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for frame in frames {
        if frame[12..14] == [8, 0] {
            let mut correct = frame.to_vec();
            fix_v4_checksum(&mut correct);
            assert_eq!(correct[24..26], frame[24..26], "the header checksum is wrong");
        }
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        if let Some(datagram) = buffers.process_sliced_packet(&sliced, (), ()).unwrap() {
            assert!(whole.is_none(), "two datagrams");
            whole = Some((datagram.ip_number.0, datagram.payload));
        }
    }
    whole
}

/// A family whose headers can be taken out of what parsing says.
pub(crate) trait Parse: Family {
    fn headers(packet: &mut Packet) -> Headers<Self>;
}

impl Parse for V4 {
    fn headers(packet: &mut Packet) -> Headers<V4> {
        match parse(packet) {
            Ok(Parsed::V4(headers)) => headers,
            other => panic!("not IPv4: {other:?}"),
        }
    }
}

impl Parse for V6 {
    fn headers(packet: &mut Packet) -> Headers<V6> {
        match parse(packet) {
            Ok(Parsed::V6(headers)) => headers,
            other => panic!("not IPv6: {other:?}"),
        }
    }
}
