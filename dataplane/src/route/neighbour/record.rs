//! What the fast path reads of a neighbour: a record of half a cache line, found by the
//! neighbour's number, with all that it takes to send a packet there.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

#[cfg(doc)]
use super::{UNUSED, WAIT};
use crate::packet::{LinkAddr, PortId};

/// A neighbour's stable number: 16 bits of place, 13 bits of generation.
///
/// A place is used again after its neighbour was unused for [`UNUSED`], or never answered (then after at
/// least [`WAIT`], while nothing that lives longer than ten minutes can refer to it). So a generation comes
/// back after 5.7 days, or two hours, at the earliest: later than the last connection that kept the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AdjacencyId(pub u32);

impl AdjacencyId {
    pub(super) fn new(slot: u16, generation: u16) -> Self {
        AdjacencyId(u32::from(slot) | u32::from(generation) << 16)
    }

    #[inline]
    pub(super) fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    #[inline]
    pub(super) fn generation(self) -> u64 {
        u64::from(self.0 >> 16)
    }
}

/// How a frame leaves to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Link {
    /// Out of this port.
    pub port: PortId,
    /// The port's link address.
    pub source: LinkAddr,
    /// The neighbour's link address.
    pub destination: LinkAddr,
    /// Bytes of the largest IP packet that the port sends.
    pub mtu: u32,
}

/// What is known of a neighbour (NB-03).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// Its link address is not known (and is being asked for, when packets wait).
    Incomplete,
    /// It did not answer.
    Failed,
    /// It answered within the last 30 s.
    Reachable,
    /// Its link address is known, and will be confirmed when next used.
    Stale,
    /// It is in use and being asked.
    Probe,
    /// Configured; nothing changes it.
    Permanent,
}

impl State {
    const ALL: [State; 6] =
        [State::Incomplete, State::Failed, State::Reachable, State::Stale, State::Probe, State::Permanent];

    /// The state's word, as `ip neighbour` has it.
    pub fn name(self) -> &'static str {
        ["INCOMPLETE", "FAILED", "REACHABLE", "STALE", "PROBE", "PERMANENT"][self as usize]
    }

    /// Whether packets can be sent: the link address is known.
    pub fn is_usable(self) -> bool {
        self as u64 >= FIRST_USABLE
    }
}

/// What the fast path reads.
#[derive(Default)]
#[repr(align(32))]
pub(super) struct Record {
    /// The neighbour's link address (48 bits), state (3), generation (13): one word, so that no reader sees
    /// the address of one state or neighbour with the state of another.
    word: AtomicU64,
    /// The port's link address (48 bits), the port's number (16).
    port: AtomicU64,
    /// Bytes of the largest IP packet.
    mtu: AtomicU32,
    /// Set by use, cleared by the scan.
    used: AtomicBool,
}

const STATE_SHIFT: u32 = 13;
/// The first of the states in which the link address is known.
const FIRST_USABLE: u64 = State::Reachable as u64;
const GENERATION: u64 = (1 << STATE_SHIFT) - 1;

impl Record {
    /// The way to the neighbour, if its link address is known; notes the use. Nothing for another generation.
    #[inline]
    pub(super) fn use_by(&self, id: AdjacencyId) -> Option<Link> {
        let word = self.word.load(Relaxed);
        if word & GENERATION != id.generation() {
            return None;
        }
        if word >> STATE_SHIFT & 7 < FIRST_USABLE {
            return None;
        }
        // Mostly set already: do not take the line away from other readers.
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        let port = self.port.load(Relaxed);
        Some(Link { port: PortId(port as u16), source: link(port), destination: link(word), mtu: self.mtu() })
    }

    /// Whether the record is the neighbour's that the number was made for.
    #[inline]
    pub(super) fn is_of(&self, id: AdjacencyId) -> bool {
        self.word.load(Relaxed) & GENERATION == id.generation()
    }

    #[inline]
    pub(super) fn mtu(&self) -> u32 {
        self.mtu.load(Relaxed)
    }

    #[inline]
    pub(super) fn port(&self) -> PortId {
        PortId(self.port.load(Relaxed) as u16)
    }

    pub(super) fn set_port(&self, port: PortId, address: LinkAddr, mtu: u32) {
        self.port.store(word(address) | u64::from(port.0), Relaxed);
        self.mtu.store(mtu, Relaxed);
    }

    pub(super) fn read(&self) -> (LinkAddr, State) {
        unpack_state(self.word.load(Relaxed))
    }

    pub(super) fn set(&self, link: LinkAddr, state: State) {
        let generation = self.word.load(Relaxed) & GENERATION;
        let state = (state as u64) << STATE_SHIFT;
        self.word.store(word(link) | state | generation, Relaxed);
    }

    pub(super) fn id(&self, slot: u16) -> AdjacencyId {
        AdjacencyId::new(slot, (self.word.load(Relaxed) & GENERATION) as u16)
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub(super) fn clear_used(&self) {
        self.used.store(false, Relaxed);
    }

    /// Makes the record a new neighbour's: no link address, another generation.
    pub(super) fn renew(&self) {
        let generation = (self.word.load(Relaxed) + 1) & GENERATION;
        self.word.store(generation, Relaxed);
        self.clear_used();
    }
}

/// The link address in the upper 48 bits of a word.
#[inline]
fn link(word: u64) -> LinkAddr {
    let [a, b, c, d, e, f, ..] = word.to_be_bytes();
    LinkAddr([a, b, c, d, e, f])
}

fn word(link: LinkAddr) -> u64 {
    let [a, b, c, d, e, f] = link.0;
    u64::from_be_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline]
fn unpack_state(word: u64) -> (LinkAddr, State) {
    (link(word), State::ALL[(word >> STATE_SHIFT & 7) as usize])
}
