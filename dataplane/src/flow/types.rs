//! What goes into the flow table and what comes out of it: plain values, acted on as copies.

use std::marker::PhantomData;
use std::time::Duration;

use super::accounting::Counts;
use super::entry::NextHopRef;
use super::key::{Direction, FlowKey};
use super::state::{Event, State};
#[cfg(doc)]
use super::table::FlowTable;
use super::timeout::Timeout;
use crate::nat::Rewrite;
use crate::packet::family::Family;
use crate::time::Instant;

/// How long a packet of a settled connection leaves it alone, at most.
pub const SETTLED: Duration = Duration::from_millis(500);

pub(super) const SETTLED_MILLIS: u32 = SETTLED.as_millis() as u32;

/// The table's time: milliseconds, wrapping after 49.7 days. Times are compared across the wrap, which works
/// because none is further away than [`LONGEST`](super::timeout::LONGEST).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tick(pub(super) u32);

impl From<Instant> for Tick {
    fn from(now: Instant) -> Tick {
        Tick(now.as_millis() as u32)
    }
}

impl Tick {
    pub(super) fn plus(self, millis: u32) -> u32 {
        self.0.wrapping_add(millis)
    }

    /// Milliseconds until `time`; 0 or less when it has come.
    pub(super) fn until(self, time: u32) -> i32 {
        time.wrapping_sub(self.0) as i32
    }
}

/// One entry, in one life of its slot: a reference that outlives the entry leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EntryRef {
    pub(super) index: u32,
    pub(super) version: u32,
}

impl EntryRef {
    /// The direction that the entry describes.
    pub fn direction(self) -> Direction {
        if self.index & 1 == 0 { Direction::Original } else { Direction::Reply }
    }

    /// The entry of the other direction.
    pub fn peer(self) -> EntryRef {
        EntryRef { index: self.index ^ 1, version: self.version }
    }

    /// A number for people: the same for both directions while the connection lives.
    pub fn id(self) -> u64 {
        u64::from(self.version) << 32 | u64::from(self.connection())
    }

    pub(super) fn connection(self) -> u32 {
        self.index / 2
    }

    pub(super) fn original(self) -> u32 {
        self.index & !1
    }
}

/// Where a key's entry probably is. Made by [`FlowTable::probe`], used up by [`FlowTable::find`].
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub(super) entry: u32,
}

/// A copy of what an entry holds for its packets.
///
/// It keeps the entry's words and takes them apart when asked: a struct that was written in small pieces and
/// is then moved in large ones stalls the processor for longer than the lookup takes.
#[derive(Clone, Copy, Debug)]
pub struct Hit<A: Family> {
    /// The entry.
    pub entry: EntryRef,
    /// The connection's mark.
    pub mark: u32,
    pub(super) fresh_until: u32,
    pub(super) words: HitWords,
    pub(super) family: PhantomData<A>,
}

/// Words of an entry as they are stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct HitWords {
    pub(super) addresses: [u64; 4],
    pub(super) ports: u64,
    pub(super) next_hop: u64,
    pub(super) seen: u64,
    pub(super) flags: u64,
}

impl<A: Family> Hit<A> {
    /// What its packets say when they leave.
    #[inline]
    pub fn rewrite(&self) -> Rewrite<A> {
        self.words.rewrite()
    }

    /// Where they go.
    #[inline]
    pub fn next_hop(&self) -> NextHopRef {
        NextHopRef::from_word(self.words.next_hop)
    }

    /// The packet's direction.
    #[inline]
    pub fn direction(&self) -> Direction {
        self.entry.direction()
    }

    /// Whether a packet with this event may be forwarded from the copy alone. It is ESTABLISHED then. If
    /// not, [`FlowTable::touch`] decides.
    #[inline]
    pub fn is_settled(&self, event: &Event<'_>, now: Tick) -> bool {
        // 1 to SETTLED_MILLIS ahead of now; an old time cannot come back as a future one by wrapping.
        let ahead = self.fresh_until.wrapping_sub(now.0).wrapping_sub(1) < SETTLED_MILLIS;
        ahead & event.is_plain()
    }
}

/// A connection to be stored. The rewrites follow from the tuples: packets of the original tuple leave as
/// what the reply tuple answers, and the other way round.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection<A: Family> {
    /// The first packet's tuple, as it came in.
    pub original: FlowKey<A>,
    /// The tuple of an answer to it as it left.
    pub reply: FlowKey<A>,
    /// The connection's mark.
    pub mark: u32,
    /// What [`first_packet`](super::first_packet) said.
    pub state: State,
    /// Next hop of the original direction.
    pub original_next_hop: NextHopRef,
    /// Next hop of the reply direction; the default when it is not known yet.
    pub reply_next_hop: NextHopRef,
}

/// Why a connection was not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// The original tuple has an entry already: another worker was first, or the packet was not looked up.
    /// Forward under that entry (CT-12).
    OriginalExists(EntryRef),
    /// The reply tuple belongs to another connection (NAT-03): choose another source port.
    ReplyTaken,
    /// No room, and nothing near that may be evicted (CT-09).
    Full,
}

/// CT-02's class of a packet that belongs to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// No packet of the reply direction was seen yet.
    New,
    /// One was, or this is one.
    Established,
}

/// What is to be done with a packet of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// Forward it by the copy, even if it was the connection's last and the entry is gone now.
    Forward(Class),
    /// Drop it, do not translate it (CT-08).
    Invalid,
    /// It opens a new connection: the old one is removed, look up again (CT-06).
    Reopen,
    /// The connection's time was over, or it is gone: as if there had been no entry.
    Gone,
}

/// What became of connections since the table was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Stored.
    pub inserted: u64,
    /// Removed because their time was over.
    pub expired: u64,
    /// Removed to make room (early drop, CT-09).
    pub evicted: u64,
    /// Removed for another reason: on request, by a RST, reopened.
    pub removed: u64,
    /// Not stored for lack of room.
    pub refused: u64,
}

/// A connection, to be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowInfo<A: Family> {
    /// Its original entry.
    pub entry: EntryRef,
    /// A number for people, as [`EntryRef::id`].
    pub id: u64,
    /// The original tuple.
    pub original: FlowKey<A>,
    /// The reply tuple.
    pub reply: FlowKey<A>,
    /// The protocol's state.
    pub state: State,
    /// Whether a reply was seen.
    pub seen_reply: bool,
    /// Whether it is kept when the table is full.
    pub assured: bool,
    /// Its mark.
    pub mark: u32,
    /// Which timeout its time runs on.
    pub timeout: Timeout,
    /// Time left without a packet.
    pub remaining: Duration,
    /// Next hop of the original direction.
    pub original_next_hop: NextHopRef,
    /// Next hop of the reply direction.
    pub reply_next_hop: NextHopRef,
    /// What went in the original direction and in the reply direction, when accounting is on (CT-11).
    pub accounting: Option<[Counts; 2]>,
}
