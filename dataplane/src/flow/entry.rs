//! The entries: one direction of a connection each, in one cache line (IPv4) or two adjacent ones (IPv6).
//!
//! ```text
//! IPv4  IPv6
//!  0     0    version (32) · mark (32)                             under the version
//!  1-2   1-5  key; the low byte of its last word: flags             under the version
//!  3-4   8-12 rewrite: addresses; ports, two checksum deltas    under the version
//!  5     13   next hop (32) · its generation (32)                   replaced in place by one store
//!  6     6    fresh until (32) · protocol's scratch (32)            written at coarse steps, by its users
//!  7     7    what was seen of the direction (TCP, SCTP)         likewise
//! ```
//!
//! The scratch and word 7 are described at [`Memory`](super::segment::Memory).
//!
//! Words are read and written as relaxed atomics. The version is odd while the entry lives; it is raised
//! before the entry is written or given up, and again when it is ready. A reader acts on a copy whose version
//! was the same before and after. Both entries of a connection are written together, so their versions are
//! equal; the tag of the connection's state word is that version.

use std::io;
use std::marker::PhantomData;

use super::key::FlowKey;
use super::types::{EntryRef, Hit, HitWords};
use crate::memory::{Array, prefetch};
use crate::nat::Rewrite;
use crate::nat::rewrite::Changes;
use crate::packet::checksum::Delta;
use crate::packet::family::{Address, Family};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU64, fence, overwrite64};

/// Words that a line view shows: an entry, and for IPv4 the one behind it.
const VIEW: usize = 16;
/// Flag in the key's last word: the rewrite changes something.
const TRANSLATED: u64 = 1;
/// What of the key's last word is flags.
const FLAGS: u64 = 0xff;

const VERSION: usize = 0;
const KEY: usize = 1;
pub(super) const USE: usize = 6;
pub(super) const SEEN: usize = 7;

/// Where the frames of a flow go: an index of the route table's next hops, and the generation of the routes
/// it was taken from. The flow table only keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NextHopRef {
    /// Which next hop.
    pub index: u32,
    /// The routes' generation when it was chosen.
    pub generation: u32,
}

impl NextHopRef {
    fn word(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    #[inline]
    pub(super) fn from_word(word: u64) -> NextHopRef {
        NextHopRef { index: (word >> 32) as u32, generation: word as u32 }
    }
}

/// What an entry holds for its packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<A: Family> {
    pub(super) key: FlowKey<A>,
    pub(super) rewrite: Rewrite<A>,
    pub(super) next_hop: NextHopRef,
    pub(super) mark: u32,
}

pub(super) struct Entries<A: Family> {
    words: Array<AtomicU64>,
    family: PhantomData<A>,
}

pub(super) type View = [AtomicU64; VIEW];

impl<A: Family> Entries<A> {
    /// Words of an entry.
    pub(super) const WORDS: usize = if A::BITS == 32 { 8 } else { 16 };
    const KEY_WORDS: usize = if A::BITS == 32 { 2 } else { 5 };
    /// The new addresses; the word behind them has ports and deltas.
    const ADDRESSES: usize = if A::BITS == 32 { 3 } else { 8 };
    const PORTS: usize = if A::BITS == 32 { 4 } else { 12 };
    const NEXT_HOP: usize = Self::PORTS + 1;

    /// Room for `entries`, all free.
    pub(super) fn new(entries: usize) -> io::Result<Entries<A>> {
        // The view of the last entry must not end outside.
        let words = entries
            .checked_mul(Self::WORDS)
            .and_then(|words| words.checked_add(VIEW))
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Entries { words: Array::new(words)?, family: PhantomData })
    }

    pub(super) fn populate(&self) {
        self.words.populate();
    }

    /// The words of an entry. For IPv4 only the first eight are its own.
    #[inline]
    pub(super) fn view(&self, index: u32) -> &View {
        let start = index as usize * Self::WORDS;
        self.words[start..start + VIEW].first_chunk().expect("the range is as long as the view")
    }

    /// Brings the entry's lines near.
    #[inline]
    pub(super) fn prefetch(&self, index: u32) {
        let view = self.view(index);
        prefetch(&view[0]);
        if Self::WORDS == 16 {
            prefetch(&view[8]);
        }
    }

    /// The version of an entry now; odd while it lives.
    #[inline]
    pub(super) fn version(&self, index: u32) -> u32 {
        (self.view(index)[VERSION].load(Acquire) >> 32) as u32
    }

    /// The entry's content, if it lives and has this key.
    #[inline(always)]
    pub(super) fn read(&self, index: u32, key: &[u64; 5]) -> Option<Hit<A>> {
        self.copy(index, |word, value| {
            if word + 1 == Self::KEY_WORDS { value & !FLAGS == key[word] } else { value == key[word] }
        })
        .map(|(_, hit)| hit)
    }

    /// The entry's key and content, if it lives.
    pub(super) fn read_any(&self, index: u32) -> Option<(FlowKey<A>, Hit<A>)> {
        let (key, hit) = self.copy(index, |_, _| true)?;
        Some((FlowKey::from_words(key), hit))
    }

    /// Copies a living entry, giving up at the first word of the key that `matches` refuses.
    #[inline(always)]
    fn copy(&self, index: u32, matches: impl Fn(usize, u64) -> bool) -> Option<([u64; 5], Hit<A>)> {
        let view = self.view(index);
        loop {
            let before = view[VERSION].load(Acquire);
            if before >> 32 & 1 == 0 {
                return None;
            }
            let mut key = [0; 5];
            for (word, value) in key.iter_mut().enumerate().take(Self::KEY_WORDS) {
                *value = view[KEY + word].load(Relaxed);
                if !matches(word, *value) {
                    return None;
                }
            }
            let addresses: [u64; 4] = std::array::from_fn(|word| {
                if word < Self::PORTS - Self::ADDRESSES {
                    view[Self::ADDRESSES + word].load(Relaxed)
                } else {
                    0
                }
            });
            let ports = view[Self::PORTS].load(Relaxed);
            let next_hop = view[Self::NEXT_HOP].load(Relaxed);
            let last_use = view[USE].load(Relaxed);
            let seen = view[SEEN].load(Relaxed);
            // Pairs with the fence of `write` and `give_up`: whoever saw a word that they stored sees their
            // version here.
            fence(Acquire);
            if view[VERSION].load(Relaxed) != before {
                continue;
            }
            let hit = Hit {
                entry: EntryRef { index, version: (before >> 32) as u32 },
                mark: before as u32,
                words: HitWords { addresses, ports, next_hop, seen, flags: key[Self::KEY_WORDS - 1] & FLAGS },
                fresh_until: last_use as u32,
                family: PhantomData,
            };
            return Some((key, hit));
        }
    }

    /// The version that [`write`](Self::write) will give a free entry. The caller owns its slot.
    pub(super) fn next_version(&self, index: u32) -> u32 {
        let version = ((self.view(index)[VERSION].load(Relaxed) >> 32) as u32).wrapping_add(1);
        debug_assert!(version & 1 == 1, "the entry was free");
        version
    }

    /// Fills a free entry and makes it live: its new version. The caller owns its slot.
    pub(super) fn write(&self, index: u32, content: &Content<A>, last_use: u64, seen: u64) -> u32 {
        let view = self.view(index);
        let version = self.next_version(index);
        // The version is even already (`give_up` raised it); the words must not be seen before that.
        fence(Release);
        let mut key = content.key.words();
        if !content.rewrite.is_identity() {
            key[Self::KEY_WORDS - 1] |= TRANSLATED;
        }
        for (word, value) in key.iter().enumerate().take(Self::KEY_WORDS) {
            view[KEY + word].store(*value, Relaxed);
        }
        let (addresses, ports) = pack(&content.rewrite);
        for (word, value) in addresses.iter().enumerate().take(Self::PORTS - Self::ADDRESSES) {
            view[Self::ADDRESSES + word].store(*value, Relaxed);
        }
        view[Self::PORTS].store(ports, Relaxed);
        overwrite64(&view[Self::NEXT_HOP], content.next_hop.word(), Relaxed);
        overwrite64(&view[USE], last_use, Relaxed);
        view[SEEN].store(seen, Relaxed);
        view[VERSION].store(u64::from(version) << 32 | u64::from(content.mark), Release);
        version
    }

    /// Ends an entry's life. The caller holds the locks of its connection's buckets and has taken it out of the index.
    pub(super) fn give_up(&self, index: u32) {
        let view = self.view(index);
        let version = ((view[VERSION].load(Relaxed) >> 32) as u32).wrapping_add(1);
        debug_assert!(version & 1 == 0, "the entry lived");
        view[VERSION].store(u64::from(version) << 32, Relaxed);
        // What the table writes next must not be seen before that.
        fence(Release);
    }

    /// Replaces the next hop, if the entry's life is still `version`. The caller holds the lock of its home bucket.
    pub(super) fn set_next_hop(&self, index: u32, version: u32, next_hop: NextHopRef) {
        if self.version(index) == version {
            self.view(index)[Self::NEXT_HOP].store(next_hop.word(), Relaxed);
        }
    }

    /// The link of a free entry to the next free one; kept where the key was.
    pub(super) fn link(&self, index: u32) -> &AtomicU64 {
        &self.view(index)[KEY]
    }
}

fn pack<A: Family>(rewrite: &Rewrite<A>) -> ([u64; 4], u64) {
    let (source, destination) = (rewrite.source.bits(), rewrite.destination.bits());
    let ports = u64::from(rewrite.source_port) << 48
        | u64::from(rewrite.destination_port) << 32
        | u64::from(rewrite.ip_delta.bits()) << 16
        | u64::from(rewrite.transport_delta.bits());
    let addresses = if A::BITS == 32 {
        [(source << 32 | destination) as u64, 0, 0, 0]
    } else {
        [(source >> 64) as u64, source as u64, (destination >> 64) as u64, destination as u64]
    };
    (addresses, ports)
}

impl HitWords {
    /// The rewrite that `pack` packed.
    #[inline(always)]
    pub(super) fn rewrite<A: Family>(&self) -> Rewrite<A> {
        let [a, b, c, d] = self.addresses.map(u128::from);
        let (source, destination) =
            if A::BITS == 32 { (a >> 32, a & 0xffff_ffff) } else { (a << 64 | b, c << 64 | d) };
        Rewrite {
            source: A::Addr::from_bits(source),
            destination: A::Addr::from_bits(destination),
            source_port: (self.ports >> 48) as u16,
            destination_port: (self.ports >> 32) as u16,
            ip_delta: Delta::from_bits((self.ports >> 16) as u16),
            transport_delta: Delta::from_bits(self.ports as u16),
            changes: if self.flags & TRANSLATED == 0 { Changes::Nothing } else { Changes::Something },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::family::{V4, V6};

    #[test]
    fn an_entry_is_one_line_for_ipv4_and_two_for_ipv6() {
        assert_eq!(Entries::<V4>::WORDS * size_of::<AtomicU64>(), 64);
        assert_eq!(Entries::<V6>::WORDS * size_of::<AtomicU64>(), 128);
        const { assert!(Entries::<V4>::NEXT_HOP < USE && Entries::<V6>::NEXT_HOP < 16) };
        const { assert!(KEY + Entries::<V6>::KEY_WORDS <= USE) };
        let entries = Entries::<V4>::new(2).unwrap();
        assert_eq!(entries.view(0).as_ptr().addr() % 64, 0);
        assert_eq!(entries.view(1).as_ptr().addr() % 64, 0);
    }
}
