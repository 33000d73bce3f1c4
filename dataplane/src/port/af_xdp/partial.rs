//! Partial checksums that nothing marks.
//!
//! On a veth a sender leaves its transport checksum to the device, and XDP carries no word of it. The field then
//! holds the sum over the pseudo header, so a field that equals it is taken for partial (PT-04). A complete checksum
//! of the same value loses nothing by that: finishing it gives the same value again. SCTP's field holds 0 then.

use crate::packet::ChecksumState;
use crate::packet::checksum::{SCTP_CHECKSUM, Sum};

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV6_HEADER: usize = 40;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The state of the transport checksum of `frame`, or of its first chunk, which holds its headers.
#[inline]
pub(super) fn state(frame: &[u8]) -> ChecksumState {
    find(frame).unwrap_or_default()
}

/// Nothing when there is no TCP, UDP or SCTP header directly behind an IP header, or only a fragment.
#[inline]
fn find(frame: &[u8]) -> Option<ChecksumState> {
    let mut at = ETHERNET;
    let mut ether_type = word(frame, 12)?;
    while matches!(ether_type, 0x8100 | 0x88a8) {
        at += VLAN_TAG;
        ether_type = word(frame, at - 2)?;
    }
    let (protocol, start, end, addresses) = match ether_type {
        0x0800 => {
            let header = frame.get(at..at + 20)?;
            if header[0] >> 4 != 4 || word(header, 6)? & 0x3fff != 0 {
                return None;
            }
            let end = at + usize::from(word(header, 2)?);
            (header[9], at + usize::from(header[0] & 0xf) * 4, end, at + 12..at + 20)
        }
        0x86dd => {
            let header = frame.get(at..at + IPV6_HEADER)?;
            let start = at + IPV6_HEADER;
            (header[6], start, start + usize::from(word(header, 4)?), at + 8..at + 40)
        }
        _ => return None,
    };
    let offset = match protocol {
        TCP => 16,
        UDP => 6,
        SCTP => {
            let field = frame.get(start + usize::from(SCTP_CHECKSUM)..)?.get(..4)?;
            let partial = field == [0; 4];
            return partial.then_some(ChecksumState::Partial { start: start as u16, offset: SCTP_CHECKSUM });
        }
        _ => return None,
    };
    let field = word(frame, start + offset)?;
    let len = (end.checked_sub(start)? as u32).to_be_bytes();
    let pseudo = Sum::of(&frame[addresses]) + Sum::of(&len) + Sum::of(&[0, protocol]);
    let partial = field != 0 && field == pseudo.value();
    partial.then_some(ChecksumState::Partial { start: start as u16, offset: offset as u16 })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::packet::{Packet, PortId};
    use crate::pool::Pool;
    use crate::port::finish::finish_checksum;

    fn frames() -> Vec<(Vec<u8>, usize, usize, u8)> {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let v4 = || ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let v6 = || ethernet().ipv6([1; 16], [2; 16], 64);
        let mut all = Vec::new();
        for len in [0, 1, 100, 1_001] {
            let payload = vec![7; len];
            let mut write = |start, offset, protocol, build: &dyn Fn(&mut Vec<u8>)| {
                let mut frame = Vec::new();
                build(&mut frame);
                all.push((frame, start, offset, protocol));
            };
            write(34, 16, TCP, &|out| v4().tcp(1, 2, 3, 4).write(out, &payload).unwrap());
            write(34, 6, UDP, &|out| v4().udp(1, 2).write(out, &payload).unwrap());
            write(54, 16, TCP, &|out| v6().tcp(1, 2, 3, 4).write(out, &payload).unwrap());
            write(54, 6, UDP, &|out| v6().udp(1, 2).write(out, &payload).unwrap());
            let tagged =
                || ethernet().single_vlan(5.try_into().unwrap()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            write(38, 16, TCP, &|out| tagged().tcp(1, 2, 3, 4).write(out, &payload).unwrap());
        }
        all
    }

    #[test]
    fn pt_04_a_field_with_the_pseudo_header_s_sum_is_partial_and_is_finished() {
        let pool = Pool::new(1).unwrap();
        for (complete, start, offset, protocol) in frames() {
            assert_eq!(state(&complete), ChecksumState::Unknown);
            let mut frame = complete.clone();
            let len = (frame.len() - start) as u32;
            let addresses = if matches!(start, 54) { 22..54 } else { start - 8..start };
            let sum = Sum::of(&frame[addresses]) + Sum::of(&len.to_be_bytes()) + Sum::of(&[0, protocol]);
            frame[start + offset..][..2].copy_from_slice(&sum.value().to_be_bytes());
            // What pads a short frame belongs to no packet.
            frame.resize(frame.len().max(60), 0);
            let expected = ChecksumState::Partial { start: start as u16, offset: offset as u16 };
            assert_eq!(state(&frame), expected);
            let mut packet = Packet::copy_of(pool, PortId(0), &frame[..complete.len()]).unwrap();
            packet.offload.checksum = expected;
            finish_checksum(&mut packet).unwrap();
            assert_eq!(packet.to_vec(), complete);
        }
    }

    #[test]
    fn pt_04_other_frames_are_as_any_off_a_wire() {
        let mut fragment = frames().swap_remove(0).0;
        fragment[20] |= 0x20;
        fragment[50..52].fill(0);
        assert_eq!(state(&fragment), ChecksumState::Unknown);
        for (frame, ..) in frames() {
            for len in 0..frame.len().min(60) {
                state(&frame[..len]);
            }
        }
        let mut without = frames().swap_remove(1).0;
        without[40..42].fill(0);
        assert_eq!(state(&without), ChecksumState::Unknown);
    }
}
