//! Two writers at once: one wins, the other is told, and nothing is lost.

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
