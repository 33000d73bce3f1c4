use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::flow::{FlowTable, Timeouts};
use crate::packet::testing::{Parse, pool};
use crate::packet::{PortId, V4, V6};

/// The table with what it dropped, the hash of a flow table, and the time.
struct Table<A: Family> {
    fragments: Fragments<A>,
    flows: FlowTable<A>,
    lost: Vec<Reason>,
    now: Instant,
}

fn table<A: Family>(limits: Limits) -> Table<A> {
    Table {
        fragments: Fragments::new(limits),
        flows: FlowTable::new(16, [1, 2], Timeouts::default()).unwrap(),
        lost: Vec::new(),
        now: Instant::from_secs(100),
    }
}

fn small() -> Limits {
    Limits { datagrams: 8, fragments: 6, bytes: 8000, timeout: Duration::from_secs(30) }
}

/// A frame of IPv4 with a UDP fragment of `len` bytes at `start`.
fn frame4(id: u16, start: u16, len: u16, more: bool) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + len).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend(((start / 8) | (u16::from(more) << 13)).to_be_bytes());
    frame.extend([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    crate::packet::testing::fix_v4_checksum(&mut frame);
    // A UDP header, if it is the first.
    frame.extend([0x9c, 0x40, 0, 53, 0xff, 0xff, 0, 0]);
    frame.resize(34 + usize::from(len), 7);
    frame
}

fn frame6(id: u32, start: u16, len: u16, more: bool, protocol: u8) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((8 + len).to_be_bytes());
    frame.extend([44, 64]);
    frame.extend([&[0xfd; 15][..], &[1], &[0xfd; 15], &[2]].concat());
    frame.extend([protocol, 0]);
    frame.extend((start | u16::from(more)).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend([0x9c, 0x40, 0, 53, 0xff, 0xff, 0, 0]);
    frame.resize(62 + usize::from(len), 7);
    frame
}

impl<A: Parse> Table<A> {
    fn arrive(&mut self, frame: &[u8]) -> Arrival {
        let mut packet = Packet::copy_of(pool(), PortId(0), frame).unwrap();
        let headers = A::headers(&mut packet);
        let piece = Piece::of(&packet, &headers).unwrap();
        let hash = self.flows.hash(&Fragments::key(&piece.datagram));
        self.fragments.arrive(packet, &piece, hash, self.now, &mut |_, reason| self.lost.push(reason))
    }

    /// The fragments that are taken, after the first of which `fate` is decided, and what follows each.
    fn take_all(&mut self, arrival: Arrival, fate: Fate) -> Vec<(Piece<A>, u16)> {
        let Arrival::Ready(datagram) = arrival else { panic!("{arrival:?}") };
        let mut taken = Vec::new();
        while let Some((mut packet, following)) = self.fragments.take(datagram) {
            let headers = A::headers(&mut packet);
            taken.push((Piece::of(&packet, &headers).unwrap(), following));
            self.fragments.decide(datagram, fate, self.now);
        }
        self.fragments.finish(datagram);
        taken
    }

    /// As [`take_all`](Self::take_all): where they start.
    fn taken(&mut self, arrival: Arrival, fate: Fate) -> Vec<(u32, u16)> {
        let taken = self.take_all(arrival, fate);
        taken.iter().map(|(piece, following)| (piece.start, *following)).collect()
    }

    fn lost(&mut self) -> Vec<Reason> {
        std::mem::take(&mut self.lost)
    }

    fn expire(&mut self) {
        self.fragments.expire(self.now, 64, &mut |_, reason| self.lost.push(reason));
    }

    fn known(&self) -> (usize, usize) {
        (self.fragments.datagrams(), self.fragments.held())
    }
}

const FLOW: Fate = Fate::Flow { source_port: 40000, destination_port: 53, protocol: Protocol::UDP };

#[test]
fn nat_08_later_fragments_have_the_first_one_s_fate_and_the_last_ends_it() {
    let mut table = table::<V4>(Limits::of::<V4>());
    let first = table.arrive(&frame4(1, 0, 800, true));
    assert_eq!(table.taken(first, FLOW), [(0, 0)]);
    assert!(matches!(table.arrive(&frame4(1, 800, 800, true)), Arrival::Decided(_, FLOW)));
    assert_eq!(table.known(), (1, 0));
    assert!(matches!(table.arrive(&frame4(1, 1600, 3, false)), Arrival::Decided(_, FLOW)));
    assert_eq!((table.known(), table.lost()), ((0, 0), vec![]));
    // Another datagram of that number begins anew.
    assert!(matches!(table.arrive(&frame4(1, 800, 800, true)), Arrival::Waits));
}

#[test]
fn nat_08_early_fragments_wait_and_are_taken_in_order() {
    let mut table = table::<V4>(Limits::of::<V4>());
    for start in [1600, 800, 2400] {
        assert!(matches!(table.arrive(&frame4(1, start, 800, start < 2400)), Arrival::Waits));
    }
    assert_eq!(table.known(), (1, 3));
    let first = table.arrive(&frame4(1, 0, 800, true));
    assert_eq!(table.taken(first, FLOW), [(0, 2400), (800, 1600), (1600, 800), (2400, 0)]);
    assert_eq!((table.known(), table.lost()), ((0, 0), vec![]));
}

#[test]
fn nat_08_what_names_a_datagram_differs_between_the_families() {
    let mut table4 = table::<V4>(Limits::of::<V4>());
    let first = table4.arrive(&frame4(1, 0, 800, true));
    table4.taken(first, FLOW);
    let mut other = frame4(1, 800, 800, true);
    other[23] = 1; // ICMP
    crate::packet::testing::fix_v4_checksum(&mut other);
    assert!(matches!(table4.arrive(&other), Arrival::Waits), "the protocol is part of the name");
    for (at, bit) in [(19, 1), (29, 1), (33, 4)] {
        let mut other = frame4(1, 800, 800, true);
        other[at] ^= bit;
        crate::packet::testing::fix_v4_checksum(&mut other);
        assert!(matches!(table4.arrive(&other), Arrival::Waits), "byte {at}");
    }
    let mut table6 = table::<V6>(Limits::of::<V6>());
    let first = table6.arrive(&frame6(0x1_0001, 0, 800, true, 17));
    table6.taken(first, FLOW);
    let later = table6.arrive(&frame6(0x1_0001, 800, 800, true, 60));
    assert!(matches!(later, Arrival::Decided(_, FLOW)), "the first one's next header counts");
    assert!(matches!(table6.arrive(&frame6(0x2_0001, 800, 800, true, 17)), Arrival::Waits), "32 bits");
}

#[test]
fn nat_08_duplicates_are_dropped_and_other_overlaps_condemn_the_datagram() {
    use Reason::{FragmentDuplicate, FragmentOverlap};
    let mut table = table::<V4>(Limits::of::<V4>());
    let first = table.arrive(&frame4(1, 0, 800, true));
    table.taken(first, FLOW);
    // Inside what has come, if not the same: as the kernel takes them.
    for (start, len) in [(0, 800), (80, 80), (792, 8)] {
        assert!(matches!(table.arrive(&frame4(1, start, len, true)), Arrival::Lost));
    }
    assert_eq!(table.lost(), [FragmentDuplicate; 3]);
    assert!(matches!(table.arrive(&frame4(1, 800, 800, true)), Arrival::Decided(_, FLOW)));
    assert!(matches!(table.arrive(&frame4(1, 1592, 80, true)), Arrival::Lost));
    assert_eq!(table.lost(), [FragmentOverlap]);
    let dropped = Fate::Dropped(FragmentOverlap);
    for start in [0, 2400] {
        let arrival = table.arrive(&frame4(1, start, 800, true));
        assert!(matches!(arrival, Arrival::Decided(_, fate) if fate == dropped), "the rest too");
    }
    // What waits is dropped with it: a first fragment that reaches over the second.
    table.arrive(&frame4(2, 800, 80, true));
    table.arrive(&frame4(2, 1600, 80, true));
    assert!(matches!(table.arrive(&frame4(2, 0, 808, true)), Arrival::Lost));
    assert_eq!((table.lost(), table.fragments.held()), (vec![FragmentOverlap; 3], 0));
}

#[test]
fn nat_08_two_ends_are_a_contradiction() {
    let bad: [&[(u16, u16, bool)]; 4] = [
        // Something behind the end; an end before what has come; two ends, one within the datagram.
        &[(800, 80, false), (880, 80, true)],
        &[(800, 80, true), (400, 80, false)],
        &[(800, 80, false), (1600, 80, false)],
        &[(800, 80, false), (400, 80, false)],
    ];
    for (id, pieces) in bad.iter().enumerate() {
        let mut table = table::<V4>(Limits::of::<V4>());
        for (start, len, more) in *pieces {
            table.arrive(&frame4(id as u16, *start, *len, *more));
        }
        assert_eq!(table.lost(), [Reason::FragmentOverlap; 2], "{pieces:?}");
    }
    let mut table = table::<V4>(Limits::of::<V4>());
    table.arrive(&frame4(1, 800, 80, false));
    table.arrive(&frame4(1, 800, 80, false));
    assert_eq!(table.lost(), [Reason::FragmentDuplicate], "the same end twice is none");
}

#[test]
fn nat_08_impossible_fragments_condemn_their_datagram() {
    for (start, len, more) in [(800, 0, false), (800, 12, true), (65_528, 20, false)] {
        let mut table = table::<V4>(Limits::of::<V4>());
        table.arrive(&frame4(1, 80, 80, true));
        assert!(matches!(table.arrive(&frame4(1, start, len, more)), Arrival::Lost));
        assert_eq!(table.lost(), [Reason::FragmentLength; 2], "{start} {len} {more}");
        let dropped = Fate::Dropped(Reason::FragmentLength);
        let first = table.arrive(&frame4(1, 0, 80, true));
        assert!(matches!(first, Arrival::Decided(_, fate) if fate == dropped));
    }
}

#[test]
fn nat_08_sctp_waits_for_its_last_fragment() {
    let mut table = table::<V6>(Limits::of::<V6>());
    let sctp = |start, more| frame6(1, start, 800, more, 132);
    assert!(matches!(table.arrive(&sctp(0, true)), Arrival::Waits));
    assert!(matches!(table.arrive(&sctp(800, true)), Arrival::Waits));
    let last = table.arrive(&sctp(1600, false));
    assert_eq!(table.taken(last, FLOW), [(0, 1600), (800, 800), (1600, 0)]);
    assert_eq!(table.known(), (0, 0));
}

#[test]
fn nat_08_time_ends_what_waits_and_what_is_remembered() {
    for (timeout, v6) in [(30, false), (60, true)] {
        let defaults = if v6 { Limits::of::<V6>() } else { Limits::of::<V4>() };
        assert_eq!(defaults.timeout, Duration::from_secs(timeout));
    }
    let mut table = table::<V4>(Limits::of::<V4>());
    table.arrive(&frame4(1, 800, 800, true));
    let first = table.arrive(&frame4(2, 0, 800, true));
    table.taken(first, FLOW);
    table.now = table.now + Duration::from_millis(29_999);
    table.expire();
    assert_eq!(table.known(), (2, 1));
    table.now = table.now + Duration::from_millis(1);
    table.expire();
    assert_eq!((table.known(), table.lost()), ((0, 0), vec![Reason::FragmentTimeout]));
    // Late chores change nothing: what is too old is not met again.
    table.arrive(&frame4(1, 800, 800, true));
    table.now = table.now + Duration::from_secs(31);
    let first = table.arrive(&frame4(1, 0, 800, true));
    assert_eq!(table.lost(), [Reason::FragmentTimeout]);
    assert_eq!(table.taken(first, FLOW), [(0, 0)]);
}

#[test]
fn nat_08_the_oldest_give_way_when_a_bound_is_reached() {
    let overflow = |count| vec![Reason::FragmentOverflow; count];
    // Fragments.
    let mut table = table::<V4>(small());
    for id in 0..6 {
        table.arrive(&frame4(id, 80, 80, true));
    }
    assert!(matches!(table.arrive(&frame4(6, 80, 80, true)), Arrival::Waits));
    assert_eq!((table.known(), table.lost()), ((6, 6), overflow(1)));
    let first = table.arrive(&frame4(1, 0, 80, true));
    assert_eq!(table.taken(first, FLOW).len(), 2, "the second oldest is there");
    // Bytes.
    let mut table = self::table::<V4>(small());
    for id in 0..5 {
        table.arrive(&frame4(id, 80, 1600, true));
    }
    assert_eq!((table.known(), table.lost()), ((4, 4), overflow(1)));
    assert!(table.fragments.held_bytes() <= 8000);
    // Datagrams.
    let mut table = self::table::<V4>(small());
    for id in 0..9 {
        let first = table.arrive(&frame4(id, 0, 80, true));
        table.taken(first, FLOW);
    }
    assert_eq!(table.known(), (8, 0));
    assert!(matches!(table.arrive(&frame4(0, 80, 80, true)), Arrival::Waits), "the oldest is forgotten");
    // One datagram that wants it all is condemned.
    let mut table = self::table::<V4>(small());
    for part in 1..=7 {
        table.arrive(&frame4(1, part * 80, 80, true));
    }
    assert_eq!((table.known(), table.lost()), ((1, 0), overflow(7)));
}

#[test]
fn nat_08_a_datagram_of_too_many_gaps_or_fragments_is_condemned() {
    let mut table = table::<V4>(Limits::of::<V4>());
    for part in 0..=RUNS as u16 {
        table.arrive(&frame4(1, 8 + part * 16, 8, true));
    }
    assert_eq!(table.lost(), [Reason::FragmentOverflow; RUNS + 1]);
    for part in 0..=QUEUE as u16 {
        table.arrive(&frame4(2, 8 + part * 8, 8, true));
    }
    assert_eq!(table.lost(), [Reason::FragmentOverflow; QUEUE + 1]);
    // A first fragment is never one too many.
    for part in 0..QUEUE as u16 {
        table.arrive(&frame4(3, 8 + part * 8, 8, true));
    }
    let first = table.arrive(&frame4(3, 0, 8, true));
    assert_eq!(table.taken(first, FLOW).len(), QUEUE + 1);
}

#[test]
fn a_datagram_that_gave_way_meanwhile_is_not_taken_for_its_successor() {
    let mut table = table::<V4>(Limits { datagrams: 1, ..small() });
    let Arrival::Ready(datagram) = table.arrive(&frame4(1, 0, 80, true)) else { panic!("it is the first") };
    let Arrival::Ready(other) = table.arrive(&frame4(2, 0, 80, true)) else { panic!("it is the first") };
    assert_eq!(table.lost(), [Reason::FragmentOverflow]);
    assert!(table.fragments.take(datagram).is_none());
    table.fragments.decide(datagram, FLOW, table.now);
    table.fragments.finish(datagram);
    assert_eq!(table.taken(Arrival::Ready(other), FLOW), [(0, 0)]);
}

#[derive(Clone, Debug)]
struct Step {
    id: u16,
    start: u16,
    len: u16,
    more: bool,
    pause: u64,
    fate: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..12u16, 0..12u16, prop_oneof![Just(8u16), Just(16), Just(24), 0..30u16], any::<bool>());
    let step = (step, prop_oneof![6 => Just(0u64), 1 => 0..40u64], any::<bool>()).prop_map(
        |((id, start, len, more), pause, fate)| Step { id, start: start * 8, len, more, pause, fate },
    );
    proptest::collection::vec(step, 1..200)
}

proptest! {
    /// Memory is bounded whatever comes in, nothing is lost from the books, and what is forwarded of a datagram
    /// never overlaps: so no receiver can put together what no filter has seen.
    #[test]
    fn nat_08_whatever_comes_in_is_bounded_in_the_books_and_free_of_overlaps(steps in steps()) {
        let mut table = table::<V4>(small());
        let (mut came, mut went) = (0, 0);
        let mut lives: BTreeMap<u16, Vec<(u16, u16)>> = BTreeMap::new();
        for step in &steps {
            table.now = table.now + Duration::from_secs(step.pause);
            came += 1;
            // A UDP header's worth, where it is the first.
            let len = if step.start == 0 { step.len.max(8) } else { step.len };
            let fate = if step.fate { FLOW } else { Fate::Invalid };
            let more = step.more || step.start == 0; // otherwise it is no fragment
            match table.arrive(&frame4(step.id, step.start, len, more)) {
                Arrival::Decided(_, Fate::Dropped(reason)) => table.lost.push(reason),
                Arrival::Decided(..) => {
                    went += 1;
                    let ranges = lives.entry(step.id).or_default();
                    let range = (step.start, step.start + len);
                    prop_assert!(ranges.iter().all(|other| other.1 <= range.0 || range.1 <= other.0));
                    ranges.push(range);
                }
                ready @ Arrival::Ready(_) => {
                    // A new first fragment: a new datagram.
                    let ranges: Vec<_> = table
                        .take_all(ready, fate)
                        .iter()
                        .map(|(piece, _)| (piece.start as u16, piece.end as u16))
                        .collect();
                    prop_assert!(ranges[0].0 == 0 && ranges.is_sorted_by(|one, next| one.1 <= next.0));
                    went += ranges.len();
                    lives.insert(step.id, ranges);
                }
                Arrival::Waits | Arrival::Lost => {}
            }
            table.expire();
            let (datagrams, held) = table.known();
            prop_assert!(datagrams <= 8 && held <= 6 && table.fragments.held_bytes() <= 8000);
            prop_assert_eq!(came, went + table.lost.len() + held);
        }
        table.now = table.now + Duration::from_secs(31);
        table.expire();
        prop_assert_eq!(table.known(), (0, 0));
        prop_assert_eq!(came, went + table.lost.len());
        prop_assert_eq!(pool().available(), pool().capacity());
    }
}
