//! The link header: Ethernet II (IEEE 802.3), without tags.

use super::{LinkAddr, Packet};

/// Length of the header in bytes.
pub const LEN: usize = 14;

/// Ethernet type of ARP.
pub const ARP: u16 = 0x0806;

/// A frame's link header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    /// Whom the frame is for.
    pub destination: LinkAddr,
    /// Who sent it.
    pub source: LinkAddr,
    /// What it carries; below 0x600, an 802.3 length.
    pub ether_type: u16,
    /// Length of the header in bytes.
    pub len: u16,
}

impl Ethernet {
    /// Reads the header; nothing when the frame is shorter.
    #[inline]
    pub fn new_checked(frame: &[u8]) -> Option<Ethernet> {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *frame.first_chunk::<LEN>()?;
        Some(Ethernet {
            destination: LinkAddr([d0, d1, d2, d3, d4, d5]),
            source: LinkAddr([s0, s1, s2, s3, s4, s5]),
            ether_type: u16::from_be_bytes([t0, t1]),
            len: LEN as u16,
        })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&self.destination.0);
        bytes[6..12].copy_from_slice(&self.source.0);
        bytes[12..].copy_from_slice(&self.ether_type.to_be_bytes());
        bytes
    }
}

/// Whom a frame is for: its first six bytes.
///
/// # Panics
/// If the frame is shorter than its link header, which [`parse`](super::parse()) rules out.
#[inline]
pub fn destination(frame: &[u8]) -> LinkAddr {
    LinkAddr(*frame.first_chunk().expect("a parsed frame has a link header"))
}

/// Writes the link addresses of the next hop's link; the Ethernet type stays.
///
/// # Panics
/// If the frame is shorter than its link header, which [`parse`](super::parse()) rules out.
#[inline]
pub fn set_link(packet: &mut Packet, source: LinkAddr, destination: LinkAddr) {
    let addresses: &mut [u8; 12] =
        packet.head_mut().first_chunk_mut().expect("a parsed frame has a link header");
    addresses[..6].copy_from_slice(&destination.0);
    addresses[6..].copy_from_slice(&source.0);
}
