//! A connection that stays is found, whatever moves beside it.

use std::sync::OnceLock;

use super::*;

/// The first keys of a series that `wanted` takes.
pub(super) fn keys(
    table: &FlowTable<V4>,
    count: usize,
    key: impl Fn(u16) -> FlowKey<V4>,
    wanted: impl Fn(([u32; 2], u16)) -> bool,
) -> Vec<FlowKey<V4>> {
    let found: Vec<_> = (1..=u16::MAX).map(key).filter(|key| wanted(table.places(key))).take(count).collect();
    assert_eq!(found.len(), count, "the series has too few such keys");
    found
}

pub(super) fn connection(original: FlowKey<V4>, reply: FlowKey<V4>, mark: u32) -> NewConnection<V4> {
    NewConnection { original, reply, mark, ..numbered(1, 1) }
}

/// A full table's home bucket, where the ninth key makes the first one move to its other bucket.
struct Move {
    /// Originals are at home in the bucket that will be full, replies in the ninth's other bucket.
    eight: Vec<NewConnection<V4>>,
    ninth: NewConnection<V4>,
    /// Both its tuples are at home in the bucket that the first one moves to, which the ninth's writer does not have.
    tenth: NewConnection<V4>,
}

impl Move {
    fn new(table: &FlowTable<V4>) -> Move {
        let (home, other, third, last) = (0, 1, 2, 3);
        let client = |port| key(Protocol::UDP, (1, port), (2, 80));
        let backend = |port| key(Protocol::UDP, (3, 8080), (4, port));
        let originals = keys(table, 8, client, |(buckets, _)| buckets[0] == home && buckets[1] != other);
        let replies = keys(table, 8, backend, |(buckets, _)| buckets[0] == other);
        let original = keys(table, 1, client, |(buckets, _)| buckets == [home, other])[0];
        let reply = keys(table, 1, backend, |(buckets, _)| buckets == [third, other])[0];
        let in_last = |(buckets, _): ([u32; 2], u16)| buckets[0] == last;
        let [there, back] = [keys(table, 1, client, in_last)[0], keys(table, 1, backend, in_last)[0]];
        let eight = originals.into_iter().zip(replies).zip(1..);
        Move {
            eight: eight.map(|((original, reply), mark)| connection(original, reply, mark)).collect(),
            ninth: connection(original, reply, 9),
            tenth: connection(there, back, 10),
        }
    }
}

#[test]
fn an_entry_that_moves_is_never_missed() {
    static MOVE: OnceLock<Move> = OnceLock::new();
    explore("an entry that moves is never missed", PREEMPTIONS, || {
        let table = table::<V4>(10);
        let Move { eight, ninth, .. } = MOVE.get_or_init(|| Move::new(&table));
        let entries: Vec<_> = eight.iter().map(|new| table.insert(new, at(0)).unwrap()).collect();
        assert!(table.is_at_home(entries[0], &eight[0].original));
        let reader = {
            let table = table.clone();
            thread::spawn(move || {
                for connection in [&eight[0], &eight[7]] {
                    let hit = table.lookup(&connection.original).expect("it is there all the while");
                    assert_eq!(hit.mark, connection.mark);
                }
            })
        };
        table.insert(ninth, at(0)).unwrap();
        assert!(!table.is_at_home(entries[0], &eight[0].original), "nothing moved");
        reader.join().unwrap();
    });
}

/// The same, while another writer changes the bucket that it moves to.
#[test]
fn an_entry_moves_beside_another_writer_and_neither_is_lost() {
    static MOVE: OnceLock<Move> = OnceLock::new();
    explore("an entry moves beside another writer", 2, || {
        let table = table::<V4>(10);
        let Move { eight, ninth, tenth } = MOVE.get_or_init(|| Move::new(&table));
        eight.iter().for_each(|new| assert!(table.insert(new, at(0)).is_ok()));
        let other = {
            let table = table.clone();
            thread::spawn(move || assert!(table.insert(tenth, at(0)).is_ok()))
        };
        table.insert(ninth, at(0)).unwrap();
        other.join().unwrap();
        for connection in eight.iter().chain([ninth, tenth]) {
            for key in [connection.original, connection.reply] {
                assert_eq!(table.lookup(&key).expect("it was stored").mark, connection.mark);
            }
        }
        assert_eq!(table.len(), 10);
    });
}

/// Both are in one bucket under one signature: the reader may be led to the other one's entry first.
#[test]
fn an_entry_that_stays_is_found_beside_one_that_comes_and_goes() {
    static TWINS: OnceLock<[NewConnection<V4>; 2]> = OnceLock::new();
    explore("an entry that stays is found beside one that comes and goes", PREEMPTIONS, || {
        let table = table::<V4>(2);
        let [goes, stays] = TWINS.get_or_init(|| {
            let client = |port| key(Protocol::UDP, (1, port), (2, 80));
            let other = |port| key(Protocol::UDP, (5, port), (2, 80));
            let first = client(1);
            let signature = table.places(&first).1;
            let twin = (6..200).flat_map(|host| {
                (1..=u16::MAX).map(move |port| key::<V4>(Protocol::UDP, (host, port), (2, 80)))
            });
            let twin = twin.into_iter().find(|key| table.places(key).1 == signature);
            let reply = |port| other(port).reply();
            [connection(first, reply(1), 1), connection(twin.expect("one in 65,536"), reply(2), 2)]
        });
        let one = table.insert(goes, at(0)).unwrap();
        table.insert(stays, at(0)).unwrap();
        let reader = {
            let table = table.clone();
            thread::spawn(move || {
                let candidate = table.probe(table.hash(&stays.original)).expect("its signature is there");
                let hit = table.find(candidate, &stays.original).expect("it is there all the while");
                assert_eq!(hit.mark, stays.mark);
            })
        };
        table.remove(one);
        table.insert(goes, at(1)).unwrap();
        reader.join().unwrap();
    });
}
