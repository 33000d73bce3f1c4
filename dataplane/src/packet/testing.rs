//! Frames for tests, made by another implementation (etherparse), so that checksums have a second opinion.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};

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
