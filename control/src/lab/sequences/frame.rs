//! The packets of a sequence as bytes. Nothing here is the data plane's code but the CRC of SCTP: what both
//! computed wrongly would otherwise look right.

use std::net::IpAddr;

use pollux_dataplane::packet::crc32c::Crc32c;

use super::script::{Content, Echo, IcmpError, Sending, Transport, UdpChecksum};
use crate::lab::twins::packet::sum;

/// Who sends a packet to whom, as it enters the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
}

impl Ends {
    /// Of an answer.
    pub(super) fn reversed(self) -> Ends {
        Ends {
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

/// A packet, from its IP header on. `quoted` is what an ICMP error is about; `identification` the packet's.
pub(super) fn build(
    sending: &Sending,
    transport: Transport,
    ends: Ends,
    quoted: &[u8],
    identification: u16,
) -> Vec<u8> {
    let v6 = ends.source.is_ipv6();
    let (protocol, payload) = payload(sending, transport, ends, quoted);
    let shape = &sending.shape;
    let length = payload.len();
    let (from, to) = match shape.part {
        None => (0, length),
        Some((from, to)) => (from, to.unwrap_or(length).min(length)),
    };
    let is_fragment = shape.part.is_some();
    let more = is_fragment && (to < length || shape.more);
    let part = &payload[from..to];
    let ttl = shape.ttl.unwrap_or(64);
    let mut packet = Vec::with_capacity(80 + part.len());
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = 20 + shape.options.len();
            packet.extend([0x40 | (header / 4) as u8, shape.tos]);
            packet.extend(((header + part.len()) as u16).to_be_bytes());
            packet.extend(identification.to_be_bytes());
            let flags = u16::from(shape.dont_fragment) << 14 | u16::from(more) << 13;
            packet.extend((flags | (from / 8) as u16).to_be_bytes());
            packet.extend([ttl, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(&shape.options);
            let checksum = !sum(0, &packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut chain = shape.extensions.clone();
            if is_fragment {
                chain.push(44);
            }
            let next = |at: usize| chain.get(at).copied().unwrap_or(protocol);
            packet.extend([0x60 | shape.tos >> 4, shape.tos << 4, 0, 0]);
            packet.extend(((8 * chain.len() + part.len()) as u16).to_be_bytes());
            packet.extend([next(0), ttl]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            for (at, kind) in chain.iter().enumerate() {
                packet.push(next(at + 1));
                match kind {
                    44 => {
                        packet.push(0);
                        packet.extend((from as u16 & 0xfff8 | u16::from(more)).to_be_bytes());
                        packet.extend(u32::from(identification).to_be_bytes());
                    }
                    // All segments of the way are done.
                    43 => packet.extend([0, 253, 0, 0, 0, 0, 0]),
                    _ => packet.extend([0, 1, 4, 0, 0, 0, 0]),
                }
            }
        }
        _ => unreachable!("both ends are of the family"),
    }
    debug_assert!(v6 || packet.len() >= 20);
    packet.extend(part);
    packet
}

/// The protocol and what follows the IP header, unfragmented.
fn payload(sending: &Sending, transport: Transport, ends: Ends, quoted: &[u8]) -> (u8, Vec<u8>) {
    let v6 = ends.source.is_ipv6();
    let shape = &sending.shape;
    let data = (0..shape.data).map(|at| (at * 7 + at / 251) as u8 ^ shape.fill);
    let mut bytes = Vec::with_capacity(64 + shape.data);
    let ports = |bytes: &mut Vec<u8>| {
        bytes.extend(ends.source_port.to_be_bytes());
        bytes.extend(ends.destination_port.to_be_bytes());
    };
    let icmp = if v6 { 58 } else { 1 };
    let (protocol, field) = match (&sending.content, transport) {
        (Content::Tcp { flags, sequence, acknowledgement, window, options }, _) => {
            ports(&mut bytes);
            bytes.extend(sequence.to_be_bytes());
            bytes.extend(acknowledgement.to_be_bytes());
            bytes.extend([((20 + options.len()) / 4 * 16) as u8, *flags]);
            bytes.extend(window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(options);
            bytes.extend(data);
            (6, Some(16))
        }
        (Content::Udp { checksum }, _) => {
            ports(&mut bytes);
            bytes.extend(((8 + shape.data) as u16).to_be_bytes());
            bytes.extend([0; 2]);
            bytes.extend(data);
            (17, (*checksum == UdpChecksum::Computed).then_some(6))
        }
        (Content::Echo(echo), _) => {
            let kind = match (echo, v6) {
                (Echo::Request, false) => 8,
                (Echo::Reply, false) => 0,
                (Echo::Request, true) => 128,
                (Echo::Reply, true) => 129,
            };
            bytes.extend([kind, 0, 0, 0]);
            bytes.extend(ends.source_port.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(data);
            (icmp, Some(2))
        }
        (Content::Error(error), _) => {
            error_bytes(&mut bytes, error, v6, quoted);
            (icmp, Some(2))
        }
        (Content::Sctp { chunks, vtag, itag, flag }, _) => {
            ports(&mut bytes);
            bytes.extend(vtag.to_be_bytes());
            bytes.extend([0; 4]);
            for chunk in chunks {
                append_chunk(&mut bytes, *chunk, *itag, *flag);
            }
            let mut crc = Crc32c::new();
            crc.update(&bytes);
            bytes[8..12].copy_from_slice(&crc.finish().to_le_bytes());
            if shape.bad_sum {
                bytes[8] ^= 0x55;
            }
            (132, None)
        }
        (Content::Other, Transport::Other(number)) => {
            bytes.extend(data);
            (number, None)
        }
        (Content::Other, _) => unreachable!("read only for such a transport"),
    };
    if let Some(field) = field {
        let start = if protocol == 1 { 0 } else { pseudo(ends, protocol, bytes.len()) };
        let checksum = match !sum(start, &bytes) {
            0 if protocol == 17 => 0xffff,
            checksum => checksum,
        };
        bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        if shape.bad_sum {
            bytes[field] ^= 0x55;
        }
    }
    (protocol, bytes)
}

fn error_bytes(bytes: &mut Vec<u8>, error: &IcmpError, v6: bool, quoted: &[u8]) {
    let (kind, code) = error.kind.numbers()[usize::from(v6)];
    bytes.extend([kind, code, 0, 0, 0, 0]);
    bytes.extend(error.mtu.to_be_bytes());
    // As much as the error has room for (RFC 1812, section 4.3.2.3; RFC 4443, section 3).
    let room = if v6 { 1280 - 48 } else { 576 - 28 };
    let length = error.cut.unwrap_or(room).min(quoted.len());
    let at = bytes.len();
    bytes.extend(&quoted[..length]);
    for (offset, value) in &error.pokes {
        if let Some(byte) = bytes.get_mut(at + offset) {
            *byte = *value;
        }
    }
}

/// The pseudo-header's sum.
pub(super) fn pseudo(ends: Ends, protocol: u8, length: usize) -> u16 {
    let addresses = match (ends.source, ends.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => unreachable!("both ends are of the family"),
    };
    sum(sum(0, &addresses), &[&(length as u32).to_be_bytes()[..], &[0, protocol]].concat())
}

/// A chunk with what its type must have (RFC 9260, section 3.3), padded.
fn append_chunk(bytes: &mut Vec<u8>, chunk: u8, itag: u32, flag: u8) {
    let value: Vec<u8> = match chunk {
        // First sequence number of the data, stream, its sequence number, protocol, the data.
        0 => [&1u32.to_be_bytes()[..], &[0, 0, 0, 0], &[0; 4], b"data"].concat(),
        // Initiate tag, window, streams out and in, first sequence number.
        1 | 2 => [&itag.to_be_bytes()[..], &0x0001_0000u32.to_be_bytes(), &[0, 1, 0, 1], &1u32.to_be_bytes()]
            .concat(),
        3 => [&1u32.to_be_bytes()[..], &0x0001_0000u32.to_be_bytes(), &[0; 4]].concat(),
        4 | 5 => vec![0, 1, 0, 8, 1, 2, 3, 4],
        7 => 1u32.to_be_bytes().to_vec(),
        10 => b"a cookie".to_vec(),
        12 => 1u32.to_be_bytes().to_vec(),
        _ => Vec::new(),
    };
    let flags = match chunk {
        0 => 3, // first and last fragment
        6 | 14 => flag,
        _ => 0,
    };
    bytes.extend([chunk, flags]);
    bytes.extend((4 + value.len() as u16).to_be_bytes());
    bytes.extend(&value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::super::script::{Step, parse};
    use super::*;

    fn built(line: &str, v6: bool, quoted: &[u8]) -> Vec<u8> {
        let transport = line.split(' ').next().unwrap();
        let packet = &line[transport.len()..];
        let sequences = parse(&format!("sequence s\n{transport} pod > web\n>{packet}\n")).unwrap();
        let Step::Send(sending) = &sequences[0].steps[0] else { panic!("a packet") };
        let (source, destination) = match v6 {
            false => ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()),
            true => ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()),
        };
        let ends = Ends { source, source_port: 1000, destination, destination_port: 80 };
        build(sending, sequences[0].connections[0].transport, ends, quoted, 77)
    }

    /// Another's parser takes them, with their checksums.
    #[test]
    fn packets_are_what_etherparse_reads() {
        use etherparse::{NetSlice, SlicedPacket, TransportSlice};
        for v6 in [false, true] {
            for line in ["tcp S 1000 ws 7 sack-ok", "tcp PA 1 2 +11", "udp data +9", "icmp echo +5"] {
                let bytes = built(line, v6, &[]);
                let sliced = SlicedPacket::from_ip(&bytes).unwrap();
                let sums = match (sliced.net.unwrap(), sliced.transport.unwrap()) {
                    (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => (
                        tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap(),
                        tcp.checksum(),
                    ),
                    (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => (
                        tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap(),
                        tcp.checksum(),
                    ),
                    (NetSlice::Ipv4(_), TransportSlice::Icmpv4(icmp)) => (
                        icmp.icmp_type().calc_checksum(icmp.payload()),
                        u16::from_be_bytes([bytes[22], bytes[23]]),
                    ),
                    (NetSlice::Ipv6(_), TransportSlice::Icmpv6(icmp)) => (
                        u16::from(!icmp.is_checksum_valid(
                            [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                            [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
                        )),
                        0,
                    ),
                    (_, TransportSlice::Udp(udp)) => {
                        assert_eq!(udp.payload().len(), 9);
                        (0, 0)
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(sums.0, sums.1, "{line}");
            }
        }
    }

    #[test]
    fn fragments_of_a_packet_are_its_parts() {
        let whole = built("udp data +40", false, &[]);
        let first = built("udp data +40 frag 0-24", false, &[]);
        let rest = built("udp data +40 frag 24-end", false, &[]);
        assert_eq!([&first[20..], &rest[20..]].concat(), whole[20..]);
        assert_eq!((first[6], first[7], rest[6], rest[7]), (0x20, 0, 0, 3));
        let rest = built("udp data +40 frag 24-end", true, &[]);
        assert_eq!((rest[6], &rest[40..48]), (44, &[17, 0, 0, 24, 0, 0, 0, 77][..]));
    }

    #[test]
    fn an_error_quotes_what_it_is_about() {
        let about = built("udp data +40", false, &[]);
        let error = built("udp icmp need-frag mtu 1400 cut 28 poke 0 9", false, &about);
        assert_eq!((error.len(), error[9], error[20], error[21]), (20 + 8 + 28, 1, 3, 4));
        assert_eq!(error[26..28], 1400u16.to_be_bytes());
        assert_eq!((error[28], &error[29..]), (9, &about[1..28]));
    }
}
