//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! A [`Sum`] is computed over bytes; a [`Delta`] is what a change of 16-bit words does to any sum that
//! covers them. Established packets only ever see deltas, which are made once per connection. A field that
//! the sender left partial (see [`ChecksumState::Partial`]) holds a sum, not its complement, and covers the
//! pseudo header only: it changes with the addresses, not with the ports (NAT-02).

use std::ops::{Add, Range};

use super::crc32c::Crc32c;
use super::{Address, ChecksumState, Family, Packet, Protocol};

/// A one's complement sum of 16-bit big-endian words, folded to 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u16);

impl Sum {
    /// The sum over nothing.
    pub const ZERO: Sum = Sum(0);

    /// The sum over `bytes`; a last odd byte counts as the high half of a word.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        // The sum does not depend on the order of bytes in a word (RFC 1071, section 2(B)), so words are
        // added as the machine reads them, four bytes at a time, and swapped once at the end.
        let (words, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let sum = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>()
            + u64::from(u32::from_ne_bytes(last));
        Sum(u16::from_be(fold(sum)))
    }

    /// The sum over the bytes `range` of a frame, which may lie in several chunks. What the frame does not
    /// hold counts as nothing.
    pub fn of_range(packet: &Packet, range: Range<usize>) -> Sum {
        let mut sum = 0u64;
        let mut odd = false;
        for bytes in slices(packet, range) {
            let Sum(part) = Sum::of(bytes);
            // A chunk that begins in the middle of a word has its bytes the other way round.
            sum += u64::from(if odd { part.swap_bytes() } else { part });
            odd ^= bytes.len() % 2 == 1;
        }
        Sum(fold(sum))
    }

    /// The sum over the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1):
    /// addresses, protocol, and `len`, the bytes from the transport header to the packet's end.
    #[inline]
    pub fn of_pseudo_header<A: Family>(
        source: A::Addr,
        destination: A::Addr,
        protocol: Protocol,
        len: u32,
    ) -> Sum {
        Sum(fold(
            address_sum::<A>(source) + address_sum::<A>(destination) + u64::from(protocol.0) + u64::from(len),
        ))
    }

    /// The sum's value: what a partial checksum's field holds.
    #[inline]
    pub fn value(self) -> u16 {
        self.0
    }

    /// The sum's complement: what a complete checksum's field holds.
    #[inline]
    pub fn complement(self) -> u16 {
        !self.0
    }

    /// Whether this is the sum over a range and its correct checksum.
    #[inline]
    pub fn is_correct(self) -> bool {
        self.0 == 0xffff
    }
}

impl Add for Sum {
    type Output = Sum;
    #[inline]
    fn add(self, other: Sum) -> Sum {
        Sum(fold(u64::from(self.0) + u64::from(other.0)))
    }
}

/// What replacing 16-bit words does to a one's complement sum over them. Deltas of several changes add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(
    /// Never 0xffff, the other zero: so "no change" leaves every field as it is.
    u16,
);

impl Delta {
    /// Nothing changes.
    pub const NONE: Delta = Delta(0);

    /// The delta as a number, to be stored.
    #[inline]
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The delta whose [`bits`](Delta::bits) these are.
    #[inline]
    pub(crate) fn from_bits(bits: u16) -> Delta {
        debug_assert_ne!(bits, 0xffff, "no delta has these bits");
        Delta(bits)
    }

    /// A 16-bit word changes (a port, an identifier).
    #[inline]
    pub const fn of_word(old: u16, new: u16) -> Delta {
        Delta::of_sums(old as u64, new as u64)
    }

    /// An address changes.
    #[inline]
    pub fn of_address<A: Family>(old: A::Addr, new: A::Addr) -> Delta {
        Delta::of_sums(address_sum::<A>(old), address_sum::<A>(new))
    }

    /// The bytes under one sum change into those under another.
    #[inline]
    pub const fn between(old: Sum, new: Sum) -> Delta {
        Delta::of_sums(old.0 as u64, new.0 as u64)
    }

    /// The field of a complete checksum after the change (RFC 1624, equation 3).
    #[inline]
    pub fn apply(self, field: u16) -> u16 {
        !self.apply_to_sum(!field)
    }

    /// As [`apply`](Delta::apply), by UDP's rules: 0 means "no checksum" and stays, and a result of 0 is
    /// written as 0xffff (RFC 768). IPv6 tunnels use 0 in the same sense (RFC 6935).
    #[inline]
    pub fn apply_udp(self, field: u16) -> u16 {
        if field == 0 { 0 } else { not_zero(self.apply(field)) }
    }

    /// As [`apply`](Delta::apply), for this change and another one.
    #[inline]
    pub fn apply_with(self, other: Delta, field: u16) -> u16 {
        !fold(u64::from(!field) + u64::from(self.0) + u64::from(other.0))
    }

    /// The field of a partial checksum after the change: a sum that is not complemented.
    #[inline]
    pub fn apply_to_sum(self, field: u16) -> u16 {
        // Two numbers of 16 bits: one carry at most, which adds no other.
        let sum = u32::from(field) + u32::from(self.0);
        (sum + (sum >> 16)) as u16
    }

    const fn of_sums(old: u64, new: u64) -> Delta {
        Delta::normal(fold(!fold(old) as u64 + fold(new) as u64))
    }

    #[inline]
    const fn normal(value: u16) -> Delta {
        Delta(if value == 0xffff { 0 } else { value })
    }
}

impl Add for Delta {
    type Output = Delta;
    #[inline]
    fn add(self, other: Delta) -> Delta {
        Delta::normal(fold(u64::from(self.0) + u64::from(other.0)))
    }
}

/// Finishes a checksum that the sender left partial, so that a port without checksum offload can send the
/// frame; nothing happens when it is complete already.
///
/// A field at offset 8 is SCTP's CRC32c, all others are Internet checksums. No other protocol whose
/// checksum is offloaded has its field there. At offset 6 is UDP's, where a result of 0 is written as 0xffff (RFC 768).
/// To the others both are the same number, and 0 is what bringing a complete checksum along ([`Delta::apply`])
/// gives: so it is the same whether a frame is finished before it is translated or after (PT-03). Linux writes
/// 0xffff for all when it finishes a single frame, and 0 when it cuts a super-frame.
///
/// When the sender named a field outside the frame's first chunk, the frame stays as it is, and its
/// receiver drops it for its wrong checksum.
pub fn finish_partial(packet: &mut Packet) {
    let ChecksumState::Partial { start, offset } = packet.offload.checksum else {
        return;
    };
    packet.offload.checksum = ChecksumState::Unknown;
    let (start, len) = (usize::from(start), packet.len());
    let field = start + usize::from(offset);
    if offset == SCTP_CHECKSUM {
        if field + 4 <= packet.head().len() {
            packet.head_mut()[field..field + 4].fill(0);
            let mut crc = Crc32c::new();
            slices(packet, start..len).for_each(|bytes| crc.update(bytes));
            packet.head_mut()[field..field + 4].copy_from_slice(&crc.finish().to_le_bytes());
        }
    } else if field + 2 <= packet.head().len() {
        let checksum = Sum::of_range(packet, start..len).complement();
        let checksum = if offset == UDP_CHECKSUM { not_zero(checksum) } else { checksum };
        packet.head_mut()[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Offset of the checksum in SCTP's common header.
pub(crate) const SCTP_CHECKSUM: u16 = 8;

/// Offset of the checksum in UDP's header.
const UDP_CHECKSUM: u16 = 6;

/// The bytes `range` of a frame, chunk by chunk; shorter when the frame is.
pub(crate) fn slices(packet: &Packet, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    packet
        .segments()
        .map(move |bytes| {
            let from = range.start.saturating_sub(at).min(bytes.len());
            let to = range.end.saturating_sub(at).clamp(from, bytes.len());
            at += bytes.len();
            &bytes[from..to]
        })
        .filter(|bytes| !bytes.is_empty())
}

/// 0 and 0xffff are one number; 0 is what some protocols cannot send.
#[inline]
fn not_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[inline]
fn address_sum<A: Family>(address: A::Addr) -> u64 {
    let bits = address.bits();
    let low = (bits & 0xffff_ffff) as u64;
    if A::BITS == 32 {
        low
    } else {
        low + ((bits >> 32) & 0xffff_ffff) as u64 + ((bits >> 64) & 0xffff_ffff) as u64 + (bits >> 96) as u64
    }
}

/// Adds the carries back until 16 bits hold the sum.
#[inline]
const fn fold(sum: u64) -> u16 {
    // Added to itself with its halves swapped, a number has in its upper half the sum of both and the carry
    // of that sum.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PortId, V4, V6};
    use crate::pool::Pool;
    use proptest::prelude::*;

    /// As RFC 1071 states it, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        assert_eq!(Sum::of(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]).value(), 0xddf2);
    }

    #[test]
    fn nat_02_the_example_of_rfc_1624_is_zero_not_ffff() {
        assert_eq!(Delta::of_word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn nat_02_udp_without_checksum_stays_without_and_zero_is_sent_as_ffff() {
        let delta = Delta::of_word(0x5555, 0x3285);
        assert_eq!(delta.apply_udp(0), 0);
        assert_eq!(delta.apply_udp(0xdd2f), 0xffff);
    }

    #[test]
    fn no_change_leaves_both_zeros_alone() {
        assert_eq!(Delta::of_word(7, 7), Delta::NONE);
        assert_eq!(Delta::NONE.apply(0), 0);
        assert_eq!(Delta::NONE.apply(0xffff), 0xffff);
        assert_eq!(Delta::NONE.apply_to_sum(0xffff), 0xffff);
    }

    #[test]
    fn pt_03_a_zero_is_finished_as_it_is_brought_along() {
        let pool = Pool::new(1).unwrap();
        // The sum of everything else is 0xffff, so that the checksum is 0.
        let finished = |offset: u16| {
            let mut bytes = [0; 60];
            bytes[50..52].copy_from_slice(&0xfffeu16.to_be_bytes());
            bytes[34 + usize::from(offset)..][..2].copy_from_slice(&1u16.to_be_bytes());
            let mut packet = Packet::copy_of(pool, PortId(0), &bytes).unwrap();
            packet.offload.checksum = ChecksumState::Partial { start: 34, offset };
            finish_partial(&mut packet);
            packet.head()[34 + usize::from(offset)..][..2].to_vec()
        };
        assert_eq!(finished(14), [0, 0]);
        assert_eq!(finished(6), [0xff, 0xff]);
    }

    #[test]
    fn a_partial_field_out_of_the_frame_is_left_alone() {
        let pool = Pool::new(1).unwrap();
        for offset in [6, SCTP_CHECKSUM, u16::MAX] {
            let mut packet = Packet::copy_of(pool, PortId(0), &[1; 60]).unwrap();
            packet.offload.checksum = ChecksumState::Partial { start: 54, offset };
            finish_partial(&mut packet);
            assert_eq!(packet.head(), &[1; 60]);
            assert_eq!(packet.offload.checksum, ChecksumState::Unknown);
        }
    }

    proptest! {
        #[test]
        fn a_sum_is_that_of_its_words(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::of(&bytes).value(), plain(&bytes));
        }

        #[test]
        fn a_range_over_chunks_sums_as_its_bytes(
            first in 1usize..2000, len in 0usize..9000, cut in any::<(u16, u16)>(), seed in any::<u8>()
        ) {
            let pool = Pool::new(1).unwrap();
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + usize::from(seed)) as u8).collect();
            let mut packet = Packet::copy_of(pool, PortId(0), &bytes).unwrap();
            // Takes bytes off the front so that the chunks behind begin at odd places as well.
            let front = first.min(packet.head().len());
            packet.trim_front(front);
            let bytes = &bytes[front..];
            let mut ends = [usize::from(cut.0) % (bytes.len() + 1), usize::from(cut.1) % (bytes.len() + 1)];
            ends.sort();
            prop_assert_eq!(
                Sum::of_range(&packet, ends[0]..ends[1]).value(),
                plain(&bytes[ends[0]..ends[1]])
            );
            prop_assert_eq!(Sum::of_range(&packet, 0..usize::MAX).value(), plain(bytes));
        }

        #[test]
        fn nat_02_deltas_do_what_summing_afresh_does(
            old in any::<([u8; 4], [u8; 16], u16)>(), new in any::<([u8; 4], [u8; 16], u16)>(), other in any::<[u8; 8]>()
        ) {
            let bytes = |(v4, v6, port): ([u8; 4], [u8; 16], u16)| {
                [&other[..], &v4, &v6, &port.to_be_bytes(), &[1]].concat()
            };
            let delta = Delta::of_address::<V4>(old.0.into(), new.0.into())
                + Delta::of_address::<V6>(old.1.into(), new.1.into())
                + Delta::of_word(old.2, new.2);
            let (before, after) = (Sum::of(&bytes(old)), Sum::of(&bytes(new)));
            prop_assert_eq!(delta.apply(before.complement()), after.complement());
            prop_assert_eq!(delta.apply_to_sum(before.value()), after.value());
        }

        #[test]
        fn the_pseudo_header_is_the_sum_of_its_bytes(
            source in any::<[u8; 16]>(), destination in any::<[u8; 16]>(), protocol in any::<u8>(), len in any::<u32>()
        ) {
            let bytes = [&source[..], &destination, &len.to_be_bytes(), &[0, 0, 0, protocol]].concat();
            prop_assert_eq!(
                Sum::of_pseudo_header::<V6>(source.into(), destination.into(), Protocol(protocol), len).value(),
                plain(&bytes)
            );
        }
    }
}
