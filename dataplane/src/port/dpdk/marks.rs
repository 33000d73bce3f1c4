//! What DPDK wants to know of a frame whose checksum or segmentation is left to the device: flags, and the lengths of
//! its headers.

use pollux_dpdk_sys as dpdk;

use crate::packet::{ChecksumState, GsoKind, Packet};

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// Flags and lengths, as the fields `ol_flags` and `tx_offload` of an mbuf have them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Marks {
    pub(super) flags: u64,
    pub(super) lengths: u64,
    /// Where the IPv4 header and the TCP header of a super-frame start, for [`Saved`].
    super_frame: Option<(Option<u16>, u16)>,
}

/// What a super-frame's headers said before they were made ready for a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Saved {
    at: [Option<u16>; 2],
    bytes: [[u8; 2]; 2],
}

impl Marks {
    /// The marks of a frame. Nothing when its headers are not what its offload says, or not TCP or UDP: that is then
    /// finished in software.
    pub(super) fn of(packet: &Packet) -> Option<Marks> {
        let ChecksumState::Partial { start, offset } = packet.offload.checksum else {
            return packet.offload.gso.is_none().then(Marks::default);
        };
        let head = packet.head();
        let mut l2 = ETHERNET;
        let mut ether_type = head.get(12..14)?;
        while matches!(ether_type, [0x81, 0x00] | [0x88, 0xa8]) {
            l2 += VLAN_TAG;
            ether_type = head.get(l2 - 2..l2)?;
        }
        let ipv4 = match ether_type {
            [0x08, 0x00] => true,
            [0x86, 0xdd] => false,
            _ => return None,
        };
        let l4 = usize::from(start);
        let l3_len = l4.checked_sub(l2).filter(|&length| length >= 20)? as u64;
        let mut flags = if ipv4 { dpdk::SHIM_F_TX_IPV4 } else { dpdk::SHIM_F_TX_IPV6 };
        let mut lengths = l2 as u64 | l3_len << dpdk::SHIM_TX_L3_LEN_SHIFT;
        let l4_len = match offset {
            TCP_CHECKSUM => u64::from(head.get(l4 + 12)? >> 4) * 4,
            UDP_CHECKSUM => 8,
            _ => return None,
        };
        if (l4_len as usize) < 8 || head.len() < l4 + l4_len as usize {
            return None;
        }
        lengths |= l4_len << dpdk::SHIM_TX_L4_LEN_SHIFT;
        let Some(gso) = packet.offload.gso else {
            flags |=
                if offset == TCP_CHECKSUM { dpdk::SHIM_F_TX_TCP_CKSUM } else { dpdk::SHIM_F_TX_UDP_CKSUM };
            return Some(Marks { flags, lengths, super_frame: None });
        };
        let expected = if ipv4 { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        if gso.kind != expected || offset != TCP_CHECKSUM || l4_len < 20 {
            return None;
        }
        flags |= dpdk::SHIM_F_TX_TCP_SEG | dpdk::SHIM_F_TX_TCP_CKSUM;
        if ipv4 {
            flags |= dpdk::SHIM_F_TX_IP_CKSUM;
        }
        lengths |= u64::from(gso.size) << dpdk::SHIM_TX_TSO_SEGSZ_SHIFT;
        Some(Marks { flags, lengths, super_frame: Some((ipv4.then_some(l2 as u16), start)) })
    }

    /// Makes a super-frame's headers ready: DPDK wants the sum over the pseudo header without the length, which differs
    /// from segment to segment, and no IPv4 checksum. What was there is returned, for a device that takes no more.
    pub(super) fn prepare(&self, packet: &mut Packet) -> Option<Saved> {
        let (ipv4, l4) = self.super_frame?;
        let length = (packet.len() - usize::from(l4)) as u32;
        let head = packet.head_mut();
        let tcp = usize::from(l4 + TCP_CHECKSUM);
        let ip = ipv4.map(|at| usize::from(at) + IPV4_CHECKSUM);
        let mut saved = Saved { at: [Some(tcp as u16), ip.map(|at| at as u16)], bytes: [[0; 2]; 2] };
        saved.bytes[0].copy_from_slice(&head[tcp..tcp + 2]);
        // One's complement: taking away is adding the complement. The length has up to 17 bits.
        let length = (length & 0xffff) + (length >> 16);
        let mut sum = u32::from(u16::from_be_bytes(saved.bytes[0])) + u32::from(!(length as u16));
        sum = (sum & 0xffff) + (sum >> 16);
        head[tcp..tcp + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        if let Some(at) = ip {
            saved.bytes[1].copy_from_slice(&head[at..at + 2]);
            head[at..at + 2].fill(0);
        }
        Some(saved)
    }
}

impl Saved {
    /// Puts back what was there.
    pub(super) fn restore(&self, packet: &mut Packet) {
        let head = packet.head_mut();
        for (at, bytes) in self.at.iter().zip(&self.bytes) {
            if let Some(at) = at.map(usize::from) {
                head[at..at + 2].copy_from_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::Sum;
    use crate::packet::{Gso, PortId};
    use crate::pool::Pool;

    fn tcp4(payload: usize) -> Packet {
        let mut frame = vec![0; ETHERNET + 20 + 20 + payload];
        frame[12] = 8;
        frame[ETHERNET] = 0x45;
        frame[ETHERNET + 10] = 0xab;
        frame[ETHERNET + 12..ETHERNET + 20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let l4 = ETHERNET + 20;
        frame[l4 + 12] = 5 << 4;
        let length = ((20 + payload) as u32).to_be_bytes();
        let sum = Sum::of(&[10, 0, 0, 1, 10, 0, 0, 2]) + Sum::of(&[0, 6]) + Sum::of(&length);
        frame[l4 + 16..l4 + 18].copy_from_slice(&sum.value().to_be_bytes());
        let mut packet = Packet::copy_of(Pool::new(64).unwrap(), PortId(0), &frame).unwrap();
        packet.offload.checksum = ChecksumState::Partial { start: l4 as u16, offset: TCP_CHECKSUM };
        packet
    }

    #[test]
    fn pt_04_a_partial_checksum_names_its_headers() {
        let marks = Marks::of(&tcp4(100)).unwrap();
        assert_eq!(marks.flags, dpdk::SHIM_F_TX_IPV4 | dpdk::SHIM_F_TX_TCP_CKSUM);
        assert_eq!(marks.lengths, 14 | 20 << 7 | 20 << 16);
    }

    #[test]
    fn pt_04_a_super_frame_is_made_ready_and_back() {
        let mut packet = tcp4(70_000 - 54);
        packet.offload.gso = Some(Gso { kind: GsoKind::Tcp4, ecn: false, size: 1448, header_len: 54 });
        let before = packet.to_vec();
        let marks = Marks::of(&packet).unwrap();
        assert_eq!(marks.lengths >> 24, 1448);
        assert_ne!(marks.flags & dpdk::SHIM_F_TX_TCP_SEG, 0);
        let saved = marks.prepare(&mut packet).unwrap();
        let without = Sum::of(&[10, 0, 0, 1, 10, 0, 0, 2]) + Sum::of(&[0, 6]);
        assert_eq!(packet.head()[50..52], without.value().to_be_bytes());
        assert_eq!(packet.head()[24..26], [0, 0]);
        saved.restore(&mut packet);
        assert_eq!(packet.to_vec(), before);
    }

    #[test]
    fn pt_04_marks_that_lie_are_none() {
        let mut packet = tcp4(10);
        packet.offload.gso = Some(Gso { kind: GsoKind::Tcp6, ecn: false, size: 1448, header_len: 54 });
        assert_eq!(Marks::of(&packet), None);
        packet.offload.gso = None;
        packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 2 };
        assert_eq!(Marks::of(&packet), None);
        packet.truncate(40);
        packet.offload.checksum = ChecksumState::Partial { start: 34, offset: TCP_CHECKSUM };
        assert_eq!(Marks::of(&packet), None);
    }
}
