//! Which flows have to look their next hop up again after routes have changed (RT-05).
//!
//! Every destination has a stamp: a number in a small array, found by some of the address's bits. An entry of the
//! flow table keeps the stamp under which its next hop was found; a changed prefix renews the stamps of the
//! destinations that it covers. So a packet costs one load and one comparison, a change costs nothing to flows
//! elsewhere, and no list of flows is kept.
//!
//! ```text
//! IPv4   14 bits of the address's first 24: a /24 has one stamp, a /16 256 of 16,384, a /10 all
//! IPv6   6 bits of a hash of the first 32 · bits 44-47 · bits 118-121: a /122 has one, a /48 16, a /32 256
//! ```
//!
//! Destinations that share a stamp with a changed prefix look again without need: one lookup, once.
//!
//! Several workers share a flow table, but each numbers its neighbours itself. So a stamp's upper 8 bits are its
//! worker's number: a next hop that another worker found counts as outdated, and is looked up again. The
//! comparison is the same, and nothing depends on the order in which workers get their tables.

use crate::packet::{Address, Family, Prefix};

/// Bits of a stamp's place.
const BITS: u32 = 14;
/// How many stamps there are.
const STAMPS: usize = 1 << BITS;
/// Bits of a stamp that count; those above are the worker's number.
const COUNT: u32 = 24;
const COUNTED: u32 = (1 << COUNT) - 1;

/// One worker's stamps of a family's destinations. See the module's documentation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamps(Box<[u32; STAMPS]>);

impl Default for Stamps {
    fn default() -> Self {
        Stamps::of_worker(0)
    }
}

impl Stamps {
    /// The stamps of the worker with this number.
    pub fn of_worker(number: u8) -> Stamps {
        let first = u32::from(number) << COUNT | 1;
        let stamps = vec![first; STAMPS].into_boxed_slice();
        Stamps(stamps.try_into().expect("the length is that of the array"))
    }

    /// Whether a stamp, outdated or not, is one of these. (That of "never looked" is nobody's.)
    pub fn are_of(&self, stamp: u32) -> bool {
        stamp != 0 && stamp >> COUNT == self.0[0] >> COUNT
    }

    /// The stamp of a destination: never 0, which stands for "never looked".
    #[inline(always)]
    pub fn of<A: Family>(&self, destination: A::Addr) -> u32 {
        self.0[place::<A>(destination)]
    }

    /// Renews the stamps of all destinations under `prefix`.
    pub fn renew<A: Family>(&mut self, prefix: Prefix<A>) {
        let (first, length) = (prefix.address(), prefix.len());
        if A::BITS == 32 {
            // Bits 8 to 21, counted from the last.
            match length {
                0..=10 => self.renew_all(),
                _ => self.renew_at(place::<A>(first), 1 << 24u8.saturating_sub(length)),
            }
        } else {
            match length {
                // The bits before the 32nd are hashed together.
                0..26 => self.renew_all(),
                26..32 => {
                    for network in 0..1u128 << (32 - length) {
                        let address = A::Addr::from_bits(first.bits() | network << 96);
                        self.renew_at(place::<A>(address), 256);
                    }
                }
                32..44 => self.renew_at(place::<A>(first) & !0xff, 256),
                44..48 => self.renew_at(place::<A>(first) & !0xf, 16 << (48 - length)),
                48..118 => self.renew_at(place::<A>(first) & !0xf, 16),
                _ => self.renew_at(place::<A>(first), 1 << 122u8.saturating_sub(length)),
            }
        }
    }

    /// Renews all stamps.
    pub fn renew_all(&mut self) {
        self.renew_at(0, STAMPS);
    }

    fn renew_at(&mut self, first: usize, count: usize) {
        for place in first..first + count {
            let stamp = &mut self.0[place % STAMPS];
            *stamp = (*stamp & !COUNTED) | (stamp.wrapping_add(1) & COUNTED).max(1);
        }
    }

    /// Sets all stamps to the last of their range.
    #[cfg(test)]
    pub(crate) fn set_last(&mut self) {
        let last = self.0[0] | COUNTED;
        self.0.fill(last);
    }
}

#[inline(always)]
fn place<A: Family>(destination: A::Addr) -> usize {
    let bits = destination.bits();
    if A::BITS == 32 {
        (bits as u32 >> 8) as usize % STAMPS
    } else {
        let network = ((bits >> 96) as u32).wrapping_mul(0x9e37_79b1) >> 26;
        ((network as usize) << 8) | ((bits >> 80) as usize & 0xf) << 4 | (bits >> 6) as usize & 0xf
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{V4, V6};

    fn renewed<A: Family>(prefix: &str) -> usize {
        let mut stamps = Stamps::default();
        stamps.renew::<A>(prefix.parse().unwrap());
        stamps.0.iter().filter(|stamp| **stamp != 1).count()
    }

    #[test]
    fn rt_05_a_prefix_renews_its_share() {
        assert_eq!(renewed::<V4>("10.1.2.3/32"), 1);
        assert_eq!(renewed::<V4>("10.1.2.0/24"), 1);
        assert_eq!(renewed::<V4>("10.1.0.0/20"), 16);
        assert_eq!(renewed::<V4>("10.1.0.0/16"), 256);
        assert_eq!(renewed::<V4>("172.16.0.0/12"), 4096);
        assert_eq!(renewed::<V4>("0.0.0.0/0"), STAMPS);
        assert_eq!(renewed::<V6>("2001:db8::1/128"), 1);
        assert_eq!(renewed::<V6>("2001:db8::/122"), 1);
        assert_eq!(renewed::<V6>("2001:db8::/118"), 16);
        assert_eq!(renewed::<V6>("2001:db8:1::/64"), 16);
        assert_eq!(renewed::<V6>("2001:db8:1::/48"), 16);
        assert_eq!(renewed::<V6>("2001:db8::/46"), 64);
        assert_eq!(renewed::<V6>("2001:db8::/32"), 256);
        assert!((256..=8 * 256).contains(&renewed::<V6>("2001:db8::/29")));
        assert_eq!(renewed::<V6>("::/0"), STAMPS);
    }

    #[test]
    fn rt_05_a_stamp_never_becomes_the_one_that_stands_for_never() {
        let mut stamps = Stamps::default();
        stamps.set_last();
        stamps.renew::<V4>("10.0.0.0/24".parse().unwrap());
        assert_eq!(stamps.of::<V4>("10.0.0.1".parse().unwrap()), 1);
    }

    #[test]
    fn rt_05_no_worker_takes_another_s_stamp_for_its_own() {
        let (mut first, mut last) = (Stamps::default(), Stamps::of_worker(255));
        let destination = "10.0.0.1".parse().unwrap();
        last.set_last();
        last.renew_all();
        first.renew_all();
        let (of_first, of_last) = (first.of::<V4>(destination), last.of::<V4>(destination));
        assert_eq!((of_first, of_last), (2, 0xff00_0001));
        assert!(first.are_of(of_first) && last.are_of(of_last));
        assert!(!first.are_of(of_last) && !last.are_of(of_first));
        assert!(!first.are_of(0) && !last.are_of(0));
    }

    fn covered<A: Family>(address: u128, inside: u128, length: u8) {
        let prefix = Prefix::<A>::new(A::Addr::from_bits(address >> (128 - A::BITS)), length);
        let host = inside.checked_shr(u32::from(length)).unwrap_or(0) >> (128 - A::BITS);
        let destination = A::Addr::from_bits(prefix.address().bits() | host);
        assert!(prefix.contains(destination));
        let mut stamps = Stamps::default();
        let before = stamps.of::<A>(destination);
        stamps.renew(prefix);
        assert_ne!(stamps.of::<A>(destination), before, "{destination} in {prefix}");
    }

    proptest! {
        #[test]
        fn rt_05_whatever_lies_under_a_changed_prefix_looks_again(
            address in any::<u128>(), inside in any::<u128>(), v4 in 0..=32u8, v6 in 0..=128u8
        ) {
            covered::<V4>(address, inside, v4);
            covered::<V6>(address, inside, v6);
        }
    }
}
