//! The transport headers: TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260), and the check of their checksums.

use super::checksum::{Sum, slices};
use super::crc32c::Crc32c;
use super::parse::{FragmentKind, Headers};
use super::{ChecksumState, Family, Packet, Protocol};

/// Places in the headers, in bytes from the header's start. Ports are the first four bytes of all three.
pub mod field {
    /// TCP: the checksum.
    pub const TCP_CHECKSUM: usize = 16;
    /// UDP: length of header and payload.
    pub const UDP_LENGTH: usize = 4;
    /// UDP: the checksum.
    pub const UDP_CHECKSUM: usize = 6;
    /// SCTP: the CRC32c, little-endian.
    pub const SCTP_CHECKSUM: usize = 8;
}

/// Length of the TCP header without options, in bytes.
pub const TCP_LEN: usize = 20;

/// Length of the UDP header in bytes.
pub const UDP_LEN: usize = 8;

/// Length of SCTP's common header in bytes.
pub const SCTP_LEN: usize = 12;

/// The flags of a TCP segment (RFC 9293, section 3.1; ECE and CWR: RFC 3168).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Reset the connection.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Push.
    pub const PSH: TcpFlags = TcpFlags(0x08);
    /// The acknowledgement number counts.
    pub const ACK: TcpFlags = TcpFlags(0x10);
    /// The urgent pointer counts.
    pub const URG: TcpFlags = TcpFlags(0x20);
    /// Congestion was echoed.
    pub const ECE: TcpFlags = TcpFlags(0x40);
    /// The congestion window was reduced.
    pub const CWR: TcpFlags = TcpFlags(0x80);

    /// The combinations that are possible, PSH, ECE and CWR aside (CT-08); Linux tracks the same ones.
    const POSSIBLE: u64 = possible(&[
        TcpFlags::SYN,
        TcpFlags::SYN.with(TcpFlags::URG),
        TcpFlags::SYN.with(TcpFlags::ACK),
        TcpFlags::RST,
        TcpFlags::RST.with(TcpFlags::ACK),
        TcpFlags::FIN.with(TcpFlags::ACK),
        TcpFlags::FIN.with(TcpFlags::ACK).with(TcpFlags::URG),
        TcpFlags::ACK,
        TcpFlags::ACK.with(TcpFlags::URG),
    ]);

    /// Whether all of `flags` are set.
    #[inline]
    pub const fn contains(self, flags: TcpFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether one of `flags` is set.
    #[inline]
    pub const fn intersects(self, flags: TcpFlags) -> bool {
        self.0 & flags.0 != 0
    }

    /// These flags and `flags`.
    #[inline]
    pub const fn with(self, flags: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | flags.0)
    }

    /// Whether a segment can have these flags (CT-08).
    #[inline]
    pub const fn is_possible(self) -> bool {
        TcpFlags::POSSIBLE >> (self.0 & 0x37) & 1 == 1
    }
}

const fn possible(combinations: &[TcpFlags]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < combinations.len() {
        set |= 1 << combinations[i].0;
        i += 1;
    }
    set
}

/// A view of a TCP header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a>(&'a [u8; TCP_LEN]);

impl<'a> Tcp<'a> {
    /// The header at the start of `bytes`; nothing when they are fewer. The content is not checked.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(Tcp)
    }

    /// Sequence number of the first payload byte, or of the SYN.
    #[inline]
    pub fn sequence(self) -> u32 {
        self.long(4)
    }

    /// The next sequence number that the sender expects.
    #[inline]
    pub fn acknowledgement(self) -> u32 {
        self.long(8)
    }

    /// Length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    /// The flags.
    #[inline]
    pub fn flags(self) -> TcpFlags {
        TcpFlags(self.0[13])
    }

    /// The window, not scaled.
    #[inline]
    pub fn window(self) -> u16 {
        u16::from_be_bytes([self.0[14], self.0[15]])
    }

    #[inline]
    fn long(self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// Whether the field of the packet's own transport checksum holds a partial one. A mark for another header
/// (the inner one of a tunnelled packet) does not count: the outer checksum is complete then.
#[inline]
pub fn is_partial<A: Family>(packet: &Packet, headers: &Headers<A>) -> bool {
    matches!(packet.offload.checksum, ChecksumState::Partial { start, .. } if start == headers.l4)
}

/// Whether the transport checksum is right, as far as this can be told here (CT-08).
///
/// Not looked at, and taken for right: what a device has checked or has left partial, super-frames (their
/// segments get checksums of their own), fragments (the checksum covers the whole datagram), UDP without a
/// checksum, and protocols without one that is known here.
pub fn verify_transport_checksum<A: Family>(packet: &Packet, headers: &Headers<A>) -> bool {
    if packet.offload.checksum != ChecksumState::Unknown
        || packet.offload.gso.is_some()
        || headers.fragment != FragmentKind::Whole
    {
        return true;
    }
    let (start, end) = (usize::from(headers.l4), headers.end as usize);
    let pseudo = |len: usize| {
        Sum::of_pseudo_header::<A>(headers.source, headers.destination, headers.protocol, len as u32)
    };
    match headers.protocol {
        Protocol::TCP | Protocol::ICMPV6 => {
            (pseudo(end - start) + Sum::of_range(packet, start..end)).is_correct()
        }
        Protocol::UDP => {
            let header = &packet.head()[start..][..UDP_LEN];
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            header[field::UDP_CHECKSUM..][..2] == [0, 0]
                || (pseudo(len) + Sum::of_range(packet, start..start + len)).is_correct()
        }
        Protocol::ICMP => Sum::of_range(packet, start..end).is_correct(),
        Protocol::SCTP => {
            let at = start + field::SCTP_CHECKSUM;
            let mut crc = Crc32c::new();
            slices(packet, start..at).for_each(|bytes| crc.update(bytes));
            crc.update(&[0; 4]);
            slices(packet, at + 4..end).for_each(|bytes| crc.update(bytes));
            packet.head()[at..][..4] == crc.finish().to_le_bytes()
        }
        _ => true,
    }
}

/// Marks the checksum as partial when the field equals the pseudo-header sum. For backends that get no
/// metadata from the device: over veth, TCP and UDP arrive like that (PT-04). A complete checksum has this
/// value once in 65536 packets; the mark then is wrong but harmless, as finishing it gives the same value
/// that a correct packet had.
pub fn infer_partial<A: Family>(packet: &mut Packet, headers: &Headers<A>) {
    let offset = match headers.protocol {
        Protocol::TCP => field::TCP_CHECKSUM,
        Protocol::UDP => field::UDP_CHECKSUM,
        _ => return,
    };
    if packet.offload.checksum != ChecksumState::Unknown || headers.fragment != FragmentKind::Whole {
        return;
    }
    let start = usize::from(headers.l4);
    let sum = Sum::of_pseudo_header::<A>(
        headers.source,
        headers.destination,
        headers.protocol,
        headers.end - u32::from(headers.l4),
    );
    if packet.head()[start + offset..][..2] == sum.value().to_be_bytes() {
        packet.offload.checksum = ChecksumState::Partial { start: headers.l4, offset: offset as u16 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_08_only_nine_combinations_of_flags_are_possible() {
        let aside = TcpFlags::PSH.with(TcpFlags::ECE).with(TcpFlags::CWR).0;
        let possible: Vec<u8> =
            (0..=255u8).filter(|flags| flags & aside == 0 && TcpFlags(*flags).is_possible()).collect();
        // SYN, RST, ACK, FIN+ACK, SYN+ACK, RST+ACK, SYN+URG, ACK+URG, FIN+ACK+URG.
        assert_eq!(possible, [0x02, 0x04, 0x10, 0x11, 0x12, 0x14, 0x22, 0x30, 0x31]);
        for flags in 0..=255u8 {
            assert_eq!(
                TcpFlags(flags).is_possible(),
                TcpFlags(flags & !aside).is_possible(),
                "PSH, ECE and CWR go with all"
            );
        }
    }
}
