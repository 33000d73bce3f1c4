//! The network headers: IPv4 (RFC 791) and IPv6 (RFC 8200), as views over their fixed parts, and as built
//! for packets that Pollux sends itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::{Address, Family, Protocol};

/// Length of the IPv4 header without options, in bytes.
pub const V4_LEN: usize = 20;

/// Length of the IPv6 header without extensions, in bytes.
pub const V6_LEN: usize = 40;

/// Places in the headers, in bytes from the header's start.
pub mod field {
    /// IPv4: differentiated services and ECN.
    pub const V4_TOS: usize = 1;
    /// IPv4: length of header and payload.
    pub const V4_TOTAL_LENGTH: usize = 2;
    /// IPv4: which datagram a fragment belongs to.
    pub const V4_IDENTIFICATION: usize = 4;
    /// IPv4: flags and fragment offset.
    pub const V4_FRAGMENT: usize = 6;
    /// IPv4: time to live.
    pub const V4_TTL: usize = 8;
    /// IPv4: protocol of the payload.
    pub const V4_PROTOCOL: usize = 9;
    /// IPv4: header checksum.
    pub const V4_CHECKSUM: usize = 10;
    /// IPv4: source address; the destination follows.
    pub const V4_ADDRESSES: usize = 12;
    /// IPv6: length of what follows the header.
    pub const V6_PAYLOAD_LENGTH: usize = 4;
    /// IPv6: protocol of what follows.
    pub const V6_NEXT_HEADER: usize = 6;
    /// IPv6: hop limit.
    pub const V6_HOP_LIMIT: usize = 7;
    /// IPv6: source address; the destination follows.
    pub const V6_ADDRESSES: usize = 8;
}

/// Flag "don't fragment" in the IPv4 fragment word.
pub const DONT_FRAGMENT: u16 = 0x4000;

/// Flag "more fragments" in the IPv4 fragment word.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// The fragment offset in the IPv4 fragment word, in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// A view of an IPv4 header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a>(&'a [u8; V4_LEN]);

impl<'a> Ipv4<'a> {
    /// The header at the start of `bytes`; nothing when they are fewer. The content is not checked.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(Ipv4)
    }

    /// 4, if it is IPv4.
    #[inline]
    pub fn version(self) -> u8 {
        self.0[0] >> 4
    }

    /// Length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// Differentiated services and ECN.
    #[inline]
    pub fn tos(self) -> u8 {
        self.0[field::V4_TOS]
    }

    /// Length of the packet in bytes.
    #[inline]
    pub fn total_len(self) -> usize {
        usize::from(self.word(field::V4_TOTAL_LENGTH))
    }

    /// Which datagram a fragment belongs to.
    #[inline]
    pub fn identification(self) -> u16 {
        self.word(field::V4_IDENTIFICATION)
    }

    /// Flags and fragment offset: [`DONT_FRAGMENT`], [`MORE_FRAGMENTS`], [`FRAGMENT_OFFSET`].
    #[inline]
    pub fn fragment_word(self) -> u16 {
        self.word(field::V4_FRAGMENT)
    }

    /// Time to live.
    #[inline]
    pub fn ttl(self) -> u8 {
        self.0[field::V4_TTL]
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(self) -> Protocol {
        Protocol(self.0[field::V4_PROTOCOL])
    }

    /// The sum over the fixed part, checksum included.
    #[inline]
    pub fn sum(self) -> Sum {
        Sum::of(self.0)
    }

    /// Who sent the packet.
    #[inline]
    pub fn source(self) -> Ipv4Addr {
        read_address(&self.0[field::V4_ADDRESSES..])
    }

    /// Whom it is for.
    #[inline]
    pub fn destination(self) -> Ipv4Addr {
        read_address(&self.0[field::V4_ADDRESSES + 4..])
    }

    #[inline]
    fn word(self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }
}

/// A view of an IPv6 header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a>(&'a [u8; V6_LEN]);

impl<'a> Ipv6<'a> {
    /// The header at the start of `bytes`; nothing when they are fewer. The content is not checked.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(Ipv6)
    }

    /// 6, if it is IPv6.
    #[inline]
    pub fn version(self) -> u8 {
        self.0[0] >> 4
    }

    /// Traffic class: differentiated services and ECN.
    #[inline]
    pub fn traffic_class(self) -> u8 {
        self.0[0] << 4 | self.0[1] >> 4
    }

    /// Bytes behind the header.
    #[inline]
    pub fn payload_len(self) -> usize {
        usize::from(u16::from_be_bytes([
            self.0[field::V6_PAYLOAD_LENGTH],
            self.0[field::V6_PAYLOAD_LENGTH + 1],
        ]))
    }

    /// Protocol of what follows the header.
    #[inline]
    pub fn next_header(self) -> Protocol {
        Protocol(self.0[field::V6_NEXT_HEADER])
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(self) -> u8 {
        self.0[field::V6_HOP_LIMIT]
    }

    /// Who sent the packet.
    #[inline]
    pub fn source(self) -> Ipv6Addr {
        read_address(&self.0[field::V6_ADDRESSES..])
    }

    /// Whom it is for.
    #[inline]
    pub fn destination(self) -> Ipv6Addr {
        read_address(&self.0[field::V6_ADDRESSES + 16..])
    }
}

/// An IPv6 fragment header (RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug)]
pub struct FragmentHeader<'a>(&'a [u8; 8]);

impl<'a> FragmentHeader<'a> {
    /// The header at the start of `bytes`; nothing when they are fewer.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(FragmentHeader)
    }

    /// Place of the fragment in the datagram, in bytes.
    pub fn offset(self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]]) & !7
    }

    /// Whether it is not the last fragment.
    pub fn more_fragments(self) -> bool {
        self.0[3] & 1 == 1
    }

    /// Which datagram the fragment belongs to.
    pub fn identification(self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }
}

/// An IPv4 header without options, its checksum filled in, in no need of fragmentation: identification 0,
/// "don't fragment" not set. `payload_len` is in bytes; what exceeds 16 bits is lost.
pub fn v4_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: Protocol,
    tos: u8,
    ttl: u8,
    payload_len: u16,
) -> [u8; V4_LEN] {
    let mut header = [0; V4_LEN];
    header[0] = 0x45;
    header[field::V4_TOS] = tos;
    let total = payload_len.wrapping_add(V4_LEN as u16);
    header[field::V4_TOTAL_LENGTH..][..2].copy_from_slice(&total.to_be_bytes());
    header[field::V4_TTL] = ttl;
    header[field::V4_PROTOCOL] = protocol.0;
    write_addresses::<super::V4>(&mut header, source, destination);
    let checksum = Sum::of(&header).complement();
    header[field::V4_CHECKSUM..][..2].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// An IPv6 header without extensions, flow label 0.
pub fn v6_header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: Protocol,
    traffic_class: u8,
    hop_limit: u8,
    payload_len: u16,
) -> [u8; V6_LEN] {
    let mut header = [0; V6_LEN];
    header[0] = 0x60 | traffic_class >> 4;
    header[1] = traffic_class << 4;
    header[field::V6_PAYLOAD_LENGTH..][..2].copy_from_slice(&payload_len.to_be_bytes());
    header[field::V6_NEXT_HEADER] = next_header.0;
    header[field::V6_HOP_LIMIT] = hop_limit;
    write_addresses::<super::V6>(&mut header, source, destination);
    header
}

/// Writes both addresses into the IP header that `header` begins with. Checksums are the caller's.
///
/// # Panics
/// If `header` is shorter than the family's header.
#[inline]
pub fn write_addresses<A: Family>(header: &mut [u8], source: A::Addr, destination: A::Addr) {
    if A::BITS == 32 {
        let pair = (source.bits() << 32 | destination.bits()) as u64;
        header[field::V4_ADDRESSES..][..8].copy_from_slice(&pair.to_be_bytes());
    } else {
        header[field::V6_ADDRESSES..][..16].copy_from_slice(&source.bits().to_be_bytes());
        header[field::V6_ADDRESSES + 16..][..16].copy_from_slice(&destination.bits().to_be_bytes());
    }
}

/// The address that `bytes` begins with.
#[inline]
fn read_address<A: From<[u8; N]>, const N: usize>(bytes: &[u8]) -> A {
    A::from(*bytes.first_chunk().expect("the header's length is in its type"))
}
