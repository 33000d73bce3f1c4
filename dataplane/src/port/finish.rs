//! Software completion: what a port's device cannot do for a frame, done before the frame is sent (PT-04).
//!
//! [`finish_checksum`] completes a partial checksum, [`segment`] cuts a super-frame into frames of one
//! segment each, with complete checksums. The caller asks
//! [`Port::capabilities`](crate::port::Port::capabilities) first. Both rely on the marks in
//! [`Packet::offload`] and check them against the frame: a mark that lies is refused, nothing panics.

use crate::packet::checksum::{self, SCTP_CHECKSUM, Sum};
use crate::packet::{ChecksumState, Gso, GsoKind, Packet};
use crate::pool::{CHUNK, HEADROOM};
use crate::stats::Reason;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;

const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

const TCP: u8 = 6;
const UDP: u8 = 17;

const FLAG_FIN: u8 = 0x01;
const FLAG_PSH: u8 = 0x08;
const FLAG_CWR: u8 = 0x80;

/// Completes a partial checksum and marks the frame as an ordinary one. Other frames are left alone.
///
/// # Errors
/// [`Reason::TransportTruncated`] when the mark points outside of the frame's first chunk.
pub fn finish_checksum(packet: &mut Packet) -> Result<(), Reason> {
    let ChecksumState::Partial { start, offset } = packet.offload.checksum else {
        return Ok(());
    };
    let len = if offset == SCTP_CHECKSUM { 4 } else { 2 };
    if usize::from(start) + usize::from(offset) + len > packet.head().len() {
        return Err(Reason::TransportTruncated);
    }
    checksum::finish_partial(packet);
    Ok(())
}

/// Cuts a super-frame into frames that carry one segment each, gives them to `out` in order and says how
/// many there were. Sequence numbers, IPv4 identification, lengths, flags and all checksums are those that a
/// sender would have written: FIN and PSH are in the last segment only, CWR in the first. A frame that is not a
/// super-frame goes to `out` itself, its checksum completed.
///
/// # Errors
/// The packet and why it was refused: headers that are not those of its mark, or no memory left
/// ([`Reason::PoolEmpty`]), in which case `out` has had the first segments already.
pub fn segment(packet: Packet, out: &mut impl FnMut(Packet)) -> Result<u32, (Packet, Reason)> {
    let Some(gso) = packet.offload.gso else {
        return finish_and_pass(packet, out);
    };
    match Layout::of(&packet, gso) {
        Ok(layout) if packet.len() - layout.payload <= usize::from(gso.size) => {
            let mut packet = packet;
            packet.offload.gso = None;
            finish_and_pass(packet, out)
        }
        Ok(layout) => match cut(&packet, &layout, usize::from(gso.size), out) {
            Ok(segments) => Ok(segments),
            Err(reason) => Err((packet, reason)),
        },
        Err(reason) => Err((packet, reason)),
    }
}

fn finish_and_pass(mut packet: Packet, out: &mut impl FnMut(Packet)) -> Result<u32, (Packet, Reason)> {
    match finish_checksum(&mut packet) {
        Ok(()) => {
            out(packet);
            Ok(1)
        }
        Err(reason) => Err((packet, reason)),
    }
}

/// Where a super-frame's headers are, in bytes from its start.
struct Layout {
    l3: usize,
    l4: usize,
    payload: usize,
    ipv6: bool,
    transport: Transport,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Layout {
    fn of(packet: &Packet, gso: Gso) -> Result<Layout, Reason> {
        let frame = packet.head();
        let mut l3 = ETHERNET;
        let mut ether_type = word(frame, 12).ok_or(Reason::FrameTruncated)?;
        while matches!(ether_type, 0x8100 | 0x88a8) {
            l3 += VLAN_TAG;
            ether_type = word(frame, l3 - 2).ok_or(Reason::FrameTruncated)?;
        }
        let ipv6 = match (ether_type, gso.kind) {
            (0x0800, GsoKind::Tcp4 | GsoKind::Udp) => false,
            (0x86dd, GsoKind::Tcp6 | GsoKind::Udp) => true,
            _ => return Err(Reason::IpVersion),
        };
        let (header, least) = if ipv6 {
            (IPV6_HEADER, IPV6_HEADER)
        } else {
            let length = frame.get(l3).ok_or(Reason::FrameTruncated)? & 0xf;
            (usize::from(length) * 4, IPV4_HEADER)
        };
        // Extension headers lie between; the mark says where they end.
        let l4 = match packet.offload.checksum {
            ChecksumState::Partial { start, .. } => usize::from(start),
            ChecksumState::Unknown | ChecksumState::Verified => l3 + header,
        };
        if header < least || l4 < l3 + header {
            return Err(Reason::IpHeaderLength);
        }
        let (transport, length) = match gso.kind {
            GsoKind::Udp => (Transport::Udp, UDP_HEADER),
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                let offset = frame.get(l4 + 12).ok_or(Reason::TransportTruncated)? >> 4;
                (Transport::Tcp, usize::from(offset) * 4)
            }
        };
        let payload = l4 + length;
        if (transport == Transport::Tcp && length < TCP_HEADER)
            || payload > frame.len().min(CHUNK - HEADROOM)
            || gso.size == 0
        {
            return Err(Reason::TransportTruncated);
        }
        Ok(Layout { l3, l4, payload, ipv6, transport })
    }
}

fn cut(packet: &Packet, layout: &Layout, size: usize, out: &mut impl FnMut(Packet)) -> Result<u32, Reason> {
    let mut parts = packet.segments();
    let mut part = parts.next().and_then(|head| head.get(layout.payload..)).unwrap_or_default();
    let mut left = packet.len() - layout.payload;
    let mut number = 0;
    while left > 0 {
        let mut wanted = size.min(left);
        let mut segment = Packet::copy_of(packet.pool(), packet.port, &packet.head()[..layout.payload])
            .map_err(|_| Reason::PoolEmpty)?;
        left -= wanted;
        let place = Place { number, offset: number * size as u32, last: left == 0 };
        while wanted > 0 {
            if part.is_empty() {
                part = parts.next().ok_or(Reason::TransportTruncated)?;
            }
            let (now, later) = part.split_at(wanted.min(part.len()));
            segment.extend(now).map_err(|_| Reason::PoolEmpty)?;
            wanted -= now.len();
            part = later;
        }
        complete_headers(&mut segment, layout, place);
        out(segment);
        number += 1;
    }
    Ok(number)
}

/// Where a segment stands in its super-frame.
#[derive(Clone, Copy)]
struct Place {
    number: u32,
    /// Of its payload, in bytes.
    offset: u32,
    last: bool,
}

/// Turns a copy of the super-frame's headers into those of one segment.
fn complete_headers(segment: &mut Packet, layout: &Layout, place: Place) {
    let &Layout { l3, l4, .. } = layout;
    let len = segment.len();
    let head = segment.head_mut();
    if layout.ipv6 {
        put(head, l3 + 4, (len - l3 - IPV6_HEADER) as u16);
    } else {
        put(head, l3 + 2, (len - l3) as u16);
        let identification = get(head, l3 + 4).wrapping_add(place.number as u16);
        put(head, l3 + 4, identification);
        put(head, l3 + 10, 0);
        let header = usize::from(head[l3] & 0xf) * 4;
        let checksum = Sum::of(&head[l3..l3 + header]).complement();
        put(head, l3 + 10, checksum);
    }
    let (protocol, offset) = match layout.transport {
        Transport::Tcp => {
            let at = l4 + 4;
            let sequence = u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            head[at..at + 4].copy_from_slice(&sequence.wrapping_add(place.offset).to_be_bytes());
            if !place.last {
                head[l4 + 13] &= !(FLAG_FIN | FLAG_PSH);
            }
            if place.number > 0 {
                head[l4 + 13] &= !FLAG_CWR;
            }
            (TCP, TCP_CHECKSUM)
        }
        Transport::Udp => {
            put(head, l4 + 4, (len - l4) as u16);
            (UDP, UDP_CHECKSUM)
        }
    };
    let addresses = if layout.ipv6 { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 };
    let length = ((len - l4) as u32).to_be_bytes();
    let pseudo = Sum::of(&head[addresses]) + Sum::of(&length) + Sum::of(&[0, protocol]);
    put(head, l4 + offset, pseudo.value());
    segment.offload.checksum = ChecksumState::Partial { start: l4 as u16, offset: offset as u16 };
    finish_checksum(segment).expect("the transport header lies in the first chunk");
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
#[path = "finish_tests.rs"]
mod tests;
