//! Two writers at once: one wins, the other is told, and nothing is lost. Buckets are locked one by one, and slots
//! are each thread's own: the tables here have one bucket, or four, and two lanes of slots.

use super::index::{connection, keys};
use super::*;

/// CT-12: two workers have the first packet of one connection, and each chose a backend.
#[test]
fn ct_12_one_of_two_insertions_wins_and_the_other_forwards_under_it() {
    explore("one of two insertions wins", PREEMPTIONS, || {
        let table = table::<V4>(2);
        // What a worker forwards under: the mark stands for the decision.
        let insert = |table: &FlowTable<V4>, number| {
            let new = numbered::<V4>(1, number);
            match table.insert(&new, at(0)) {
                Ok(_) => (true, number),
                Err(InsertError::OriginalExists(entry)) => {
                    let hit = table.lookup(&new.original).expect("the winner's entry");
                    assert_eq!(hit.entry, entry);
                    (false, hit.mark)
                }
                Err(error) => panic!("{error:?}"),
            }
        };
        let other = {
            let table = table.clone();
            thread::spawn(move || insert(&table, 5))
        };
        let (won, under) = insert(&table, 9);
        let (other_won, other_under) = other.join().unwrap();
        assert!(won != other_won, "one wins");
        assert_eq!(under, other_under, "both forward under one decision");
        assert_eq!(table.len(), 1);
        for number in [5, 9] {
            assert_eq!(table.lookup(&numbered(1, number).reply).is_some(), number == under);
        }
    });
}

/// NAT-05: the insertion of the reply tuple is the reservation of the port.
#[test]
fn nat_05_one_of_two_workers_gets_a_reply_tuple() {
    explore("one of two workers gets a reply tuple", PREEMPTIONS, || {
        let table = table::<V4>(2);
        let insert = |table: &FlowTable<V4>, port| {
            let new = NewConnection { reply: numbered(1, 5).reply, ..numbered::<V4>(port, 5) };
            match table.insert(&new, at(0)) {
                Ok(_) => true,
                Err(InsertError::ReplyTaken) => {
                    assert!(table.lookup(&new.original).is_none(), "both directions or none");
                    false
                }
                Err(error) => panic!("{error:?}"),
            }
        };
        let other = {
            let table = table.clone();
            thread::spawn(move || insert(&table, 1))
        };
        let won = insert(&table, 2);
        assert!(won != other.join().unwrap(), "one wins");
        assert_eq!(table.len(), 1);
    });
}

/// Slots that one gives up and both take: each connection has one of its own.
#[test]
fn a_slot_is_never_given_twice() {
    explore("a slot is never given twice", PREEMPTIONS, || {
        let table = table::<V4>(2);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || {
                table.insert(&numbered(2, 7), at(1)).unwrap();
            })
        };
        assert!(table.remove(one));
        table.insert(&numbered(3, 9), at(1)).unwrap();
        other.join().unwrap();
        assert_eq!(table.len(), 2);
        for (port, number) in [(2, 7), (3, 9)] {
            let new = numbered::<V4>(port, number);
            for key in [new.original, new.reply] {
                assert_eq!(table.lookup(&key).expect("it was stored").mark, number);
            }
        }
        let mut marks: Vec<u32> = table.list(0, 2, at(1)).0.iter().map(|flow| flow.mark).collect();
        marks.sort_unstable();
        assert_eq!(marks, [7, 9]);
        assert!(table.lookup(&numbered(1, 5).original).is_none());
    });
}

/// A connection is removed once, however many ask for it.
#[test]
fn of_two_removals_one_says_that_it_lived() {
    explore("of two removals one says that it lived", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || table.remove(one))
        };
        let removed = table.remove(one);
        assert!(removed != other.join().unwrap());
        assert_eq!(table.len(), 0);
        assert_eq!(table.counters().removed, 1);
    });
}

/// Expiry and a removal on request: the connection ends once, and is counted once.
#[test]
fn a_connection_ends_once() {
    explore("a connection ends once", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || table.expire(at(30_000), 1))
        };
        let removed = table.remove(one);
        let expired = other.join().unwrap();
        assert!(removed != (expired == 1));
        let counters = table.counters();
        assert_eq!((counters.removed, counters.expired), (u64::from(removed), expired as u64));
        assert_eq!(table.len(), 0);
        assert!(table.lookup(&numbered(1, 5).reply).is_none());
    });
}

/// All keys of a small table are in one bucket, and their signatures in the same words.
#[test]
fn writers_in_one_bucket_lose_nothing() {
    explore("writers in one bucket lose nothing", PREEMPTIONS, || {
        let table = table::<V4>(2);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || table.insert(&numbered(2, 7), at(0)).map(|_| ()).unwrap())
        };
        assert!(table.remove(one));
        other.join().unwrap();
        for key in [numbered::<V4>(2, 7).original, numbered(2, 7).reply] {
            assert_eq!(table.lookup(&key).expect("it was stored").mark, 7);
        }
        for key in [numbered::<V4>(1, 5).original, numbered(1, 5).reply] {
            assert!(table.lookup(&key).is_none());
        }
    });
}

/// Two connections whose tuples are at home crosswise: neither writer waits for the other for ever.
#[test]
fn writers_that_need_each_others_buckets_both_come_to_an_end() {
    static CROSSWISE: std::sync::OnceLock<[NewConnection<V4>; 2]> = std::sync::OnceLock::new();
    explore("writers that need each other's buckets", PREEMPTIONS, || {
        let table = table::<V4>(9);
        let [one, two] = CROSSWISE.get_or_init(|| {
            let client = |port| key::<V4>(Protocol::UDP, (1, port), (2, 80));
            let backend = |port| key::<V4>(Protocol::UDP, (3, 8080), (4, port));
            let at_home = |home| move |places: ([u32; 2], u16)| places.0[0] == home;
            [(0, 1), (1, 0)].map(|(home, other)| {
                let original = keys(&table, 1, client, at_home(home))[0];
                connection(original, keys(&table, 1, backend, at_home(other))[0], home + 1)
            })
        });
        let other = {
            let table = table.clone();
            thread::spawn(move || table.insert(one, at(0)).map(|_| ()).unwrap())
        };
        let entry = table.insert(two, at(0)).unwrap();
        table.remove(entry);
        other.join().unwrap();
        assert_eq!(table.len(), 1);
        assert_eq!(table.lookup(&one.reply).unwrap().mark, one.mark);
        assert!(table.lookup(&two.original).is_none() && table.lookup(&two.reply).is_none());
    });
}

/// CT-09: a connection that makes room was not assured, whatever its packets did meanwhile: the packet that makes it
/// so comes first, and it stays, or finds it gone.
#[test]
fn ct_09_a_connection_that_becomes_assured_is_not_evicted() {
    explore("a connection that becomes assured is not evicted", 2, || {
        let table = table::<V4>(1);
        let new = tcp(1);
        table.insert(&new, at(0)).unwrap();
        packet(&table, &new.reply, SYN_ACK, at(0));
        let other = {
            let table = table.clone();
            thread::spawn(move || packet(&table, &tcp(1).original, ACK, at(1)))
        };
        let inserted = table.insert(&numbered(2, 7), at(1));
        match (inserted, other.join().unwrap()) {
            (Ok(_), Touch::Gone) => assert_eq!((table.len(), table.counters().evicted), (1, 1)),
            (Err(InsertError::Full), Touch::Forward(_)) => {
                assert!(table.list(0, 1, at(1)).0[0].assured);
                assert_eq!((table.len(), table.counters().refused), (1, 1));
            }
            other => panic!("{other:?}"),
        }
    });
}

/// The reply of a connection that is still being stored: it finds the whole of it, or begins one of its own, and
/// then the other one's source port is taken (NAT-05).
#[test]
fn ct_12_a_reply_that_overtakes_its_connection_finds_it_whole_or_not() {
    explore("a reply that overtakes its connection", PREEMPTIONS, || {
        let table = table::<V4>(2);
        let new = numbered::<V4>(1, 5);
        let other = {
            let table = table.clone();
            thread::spawn(move || {
                let new = numbered::<V4>(1, 5);
                let Some(hit) = table.lookup(&new.reply) else {
                    let own = NewConnection { original: new.reply, reply: new.reply.reply(), ..new };
                    return match table.insert(&own, at(0)) {
                        Ok(_) => false,
                        Err(InsertError::OriginalExists(_)) => true,
                        Err(error) => panic!("{error:?}"),
                    };
                };
                assert_eq!(hit.rewrite(), new.reply.rewrite_to(&new.original.reply()));
                assert_eq!(table.touch(&hit, &UDP, at(0)), Touch::Forward(Class::Established));
                true
            })
        };
        let stored = match table.insert(&new, at(0)) {
            Ok(_) => true,
            Err(InsertError::ReplyTaken) => false,
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(stored, other.join().unwrap(), "who has the tuple is the same for both");
        assert_eq!(table.len(), 1);
        assert_eq!(table.lookup(&new.original).is_some(), stored);
    });
}

/// A connection is deleted while a packet uses it: the packet is forwarded as before or told, and nothing is left.
#[test]
fn ct_12_a_deletion_against_use_leaves_nothing() {
    explore("a deletion against use leaves nothing", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || packet(&table, &numbered::<V4>(1, 5).reply, 0, at(1)))
        };
        assert!(table.remove(one));
        assert!(matches!(other.join().unwrap(), Touch::Forward(Class::Established) | Touch::Gone));
        let new = numbered::<V4>(1, 5);
        assert!(table.lookup(&new.original).is_none() && table.lookup(&new.reply).is_none());
        assert!(table.list(0, 1, at(1)).0.is_empty());
        assert_eq!(table.len(), 0);
        // The slot is as good as new.
        let two = table.insert(&new, at(2)).unwrap();
        assert!(!table.get(two, at(2)).unwrap().seen_reply);
    });
}
