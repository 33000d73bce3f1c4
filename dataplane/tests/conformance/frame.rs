//! Frames as they are on a wire, and what their sender left to the device.

use std::fmt;

use etherparse::PacketBuilder;
use pollux_dataplane::packet::{ChecksumState, Gso, GsoKind, Offload, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::finish;

use crate::bench::Lease;

pub(crate) const ETHERNET: usize = 14;
pub(crate) const VLAN_TAG: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;

/// Headers of the shortest frame that [`numbered`] makes.
pub(crate) const UDP_HEADERS: usize = ETHERNET + IPV4 + UDP;

const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A frame outside of the pool.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) offload: Offload,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes ", self.bytes.len())?;
        self.bytes.iter().take(64).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "{} {:?}", if self.bytes.len() > 64 { ".." } else { "" }, self.offload)
    }
}

impl Frame {
    /// A complete frame.
    pub(crate) fn plain(bytes: Vec<u8>) -> Frame {
        Frame { bytes, offload: Offload::default() }
    }

    /// What `packet` is. That a device has checked it already is the device's own affair.
    pub(crate) fn of(packet: &Packet) -> Frame {
        let mut offload = packet.offload;
        if offload.checksum == ChecksumState::Verified {
            offload.checksum = ChecksumState::Unknown;
        }
        Frame { bytes: packet.to_vec(), offload }
    }

    /// The frame in memory of `pool`.
    pub(crate) fn packet(&self, pool: &'static Pool) -> Packet {
        let mut packet = Packet::copy_of(pool, PortId(99), &self.bytes).expect("the test has memory left");
        packet.offload = self.offload;
        packet
    }

    /// The frame behind an 802.1Q tag.
    pub(crate) fn tagged(mut self) -> Frame {
        let place = 2 * MAC_A.len();
        self.bytes.splice(place..place, [0x81, 0x00, 0x60, 0x05]);
        if let ChecksumState::Partial { start, .. } = &mut self.offload.checksum {
            *start += VLAN_TAG as u16;
        }
        if let Some(gso) = &mut self.offload.gso {
            gso.header_len += VLAN_TAG as u16;
        }
        self
    }

    /// The number that [`numbered`] gave it, and its flow.
    pub(crate) fn number(&self) -> (u16, u32) {
        let field = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let at = ETHERNET + IPV4;
        let payload = at + if self.bytes[23] == 6 { TCP } else { UDP };
        (field(at), u32::from(field(payload)) << 16 | u32::from(field(payload + 2)))
    }
}

/// Says where two frames differ.
pub(crate) fn difference(is: &Frame, expected: &Frame) -> String {
    let at = is.bytes.iter().zip(&expected.bytes).position(|(is, expected)| is != expected);
    let from = |frame: &Frame, at: usize| {
        frame.bytes[at..].iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let bytes = at.map(|at| format!(" (from byte {at}: {}, not {})", from(is, at), from(expected, at)));
    format!("is        {is:?}\nshould be {expected:?}{}", bytes.unwrap_or_default())
}

/// `len` bytes that tell where they are.
fn pattern(len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(|at| (at % 251) as u8)
}

fn payload(number: u32, len: usize) -> Vec<u8> {
    number.to_be_bytes().into_iter().chain(pattern(len)).take(len).collect()
}

/// A UDP datagram over IPv4, `len` bytes long, of flow `flow`.
pub(crate) fn numbered(flow: u16, number: u32, len: usize) -> Frame {
    let mut bytes = Vec::with_capacity(len);
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
        .udp(flow, 5000)
        .write(&mut bytes, &payload(number, len - UDP_HEADERS))
        .expect("a vector takes everything");
    Frame::plain(bytes)
}

/// A UDP datagram as [`numbered`] makes, at least 60 bytes, of changing lengths.
pub(crate) fn varied(flow: u16, number: u32) -> Frame {
    numbered(flow, number, 60 + (number as usize * 131 + usize::from(flow) * 17) % 1455)
}

/// A TCP super-frame over IPv4 with `payload_len` bytes behind its headers, to be cut into segments of 1460.
pub(crate) fn tcp4_super(flow: u16, number: u32, payload_len: usize) -> Frame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
        .tcp(flow, 5000, number, 1000)
        .ack(1)
        .write(&mut bytes, &payload(number, payload_len))
        .expect("a vector takes everything");
    left_to_device(bytes, ETHERNET + IPV4, 16, TCP, Some((GsoKind::Tcp4, 1460)))
}

fn tcp6_super(payload_len: usize) -> Frame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv6([0xfd; 16], [0xfc; 16], 64)
        .tcp(7, 5000, 1, 1000)
        .ack(1)
        .write(&mut bytes, &payload(0, payload_len))
        .expect("a vector takes everything");
    left_to_device(bytes, ETHERNET + IPV6, 16, TCP, Some((GsoKind::Tcp6, 1440)))
}

fn udp4_partial(payload_len: usize, gso: Option<u16>) -> Frame {
    let frame = numbered(7, 0, UDP_HEADERS + payload_len);
    left_to_device(frame.bytes, ETHERNET + IPV4, 6, UDP, gso.map(|size| (GsoKind::Udp, size)))
}

fn udp6_partial(payload_len: usize, gso: Option<u16>) -> Frame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv6([0xfd; 16], [0xfc; 16], 64)
        .udp(7, 5000)
        .write(&mut bytes, &payload(0, payload_len))
        .expect("a vector takes everything");
    left_to_device(bytes, ETHERNET + IPV6, 6, UDP, gso.map(|size| (GsoKind::Udp, size)))
}

/// The frame with a partial checksum: its field holds the sum over the pseudo header, folded and not
/// complemented, as a kernel leaves it.
pub(crate) fn left_to_device(
    mut bytes: Vec<u8>,
    start: usize,
    offset: usize,
    transport: usize,
    gso: Option<(GsoKind, u16)>,
) -> Frame {
    let addresses = if start == ETHERNET + IPV4 { 26..34 } else { 22..54 };
    let protocol = if offset == 16 { 6u32 } else { 17 };
    let words = bytes[addresses].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum = words.sum::<u32>() + protocol + (bytes.len() - start) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[start + offset..][..2].copy_from_slice(&(sum as u16).to_be_bytes());
    let gso = gso.map(|(kind, size)| Gso { kind, ecn: false, size, header_len: (start + transport) as u16 });
    let checksum = ChecksumState::Partial { start: start as u16, offset: offset as u16 };
    Frame { bytes, offload: Offload { checksum, gso } }
}

/// Frames of ordinary length with partial checksums: TCP and UDP, both families, with and without a tag.
pub(crate) fn partial() -> Vec<Frame> {
    let tcp = [tcp4_super(7, 0, 1_000), tcp6_super(900)].map(|mut frame| {
        frame.offload.gso = None;
        frame
    });
    let untagged = [tcp, [udp4_partial(700, None), udp6_partial(601, None)]].concat();
    let tagged: Vec<Frame> = untagged.iter().cloned().map(Frame::tagged).collect();
    [untagged, tagged].concat()
}

/// Super-frames of every kind, short and long.
pub(crate) fn super_frames() -> Vec<Frame> {
    let mut ecn = tcp4_super(7, 3, 20_000);
    if let Some(gso) = &mut ecn.offload.gso {
        gso.ecn = true;
    }
    vec![
        tcp4_super(7, 1, 3_000),
        tcp4_super(7, 2, 65_535 - IPV4 - TCP - ETHERNET),
        ecn,
        tcp6_super(2_000),
        tcp6_super(60_000),
        udp4_partial(10_500, Some(1_000)),
        udp6_partial(4_001, Some(1_200)),
        tcp4_super(7, 4, 9_000).tagged(),
        tcp6_super(30_000).tagged(),
    ]
}

/// What a device makes of a frame that was left to it: complete frames of one segment each. (That the software which
/// does it here does it right is held elsewhere, against another implementation.)
pub(crate) fn finished(frame: &Frame) -> Vec<Frame> {
    let lease = Lease::new();
    let mut pieces = Vec::new();
    let result = finish::segment(frame.packet(lease.pool()), &mut |piece| pieces.push(Frame::of(&piece)));
    result.expect("a frame that can be cut");
    pieces
}
