//! What a reader acts on is one connection's, whole.

use super::*;

/// A reader looks up a key whose connection ends and begins anew, otherwise, in the same slot.
fn lookup<A: Numbered>(name: &str, preemptions: usize) {
    explore(name, preemptions, || {
        let table = table::<A>(1);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let reader = {
            let table = table.clone();
            thread::spawn(move || {
                let original = numbered::<A>(1, 5).original;
                let Some(hit) = table.lookup(&original) else { return };
                let whole = numbered::<A>(1, hit.mark);
                assert_eq!(hit.next_hop(), whole.original_next_hop);
                assert_eq!(hit.rewrite(), original.rewrite_to(&whole.reply.reply()));
            })
        };
        assert!(table.remove(one));
        table.insert(&numbered(1, 9), at(1)).unwrap();
        reader.join().unwrap();
    });
}

#[test]
fn an_ipv4_entry_is_never_torn() {
    lookup::<V4>("an IPv4 entry is never torn", PREEMPTIONS);
}

#[test]
fn an_ipv6_entry_is_never_torn() {
    lookup::<V6>("an IPv6 entry is never torn", 1);
}

/// CT-11: without a lock, and never half of one connection and half of another.
#[test]
fn ct_11_a_listed_connection_is_one() {
    explore("a listed connection is one", 2, || {
        let table = table::<V4>(1);
        let one = table.insert(&numbered(1, 5), at(0)).unwrap();
        let reader = {
            let table = table.clone();
            thread::spawn(move || {
                for flow in table.list(0, 1, at(2)).0 {
                    let (number, port) = (flow.mark, flow.original.source_port);
                    assert!((number, port) == (5, 1) || (number, port) == (9, 2));
                    let whole = numbered::<V4>(port, number);
                    assert_eq!((flow.original, flow.reply), (whole.original, whole.reply));
                    assert_eq!(flow.reply_next_hop, whole.reply_next_hop);
                    // Both began with UDP's 30 s, the second one 1 ms later.
                    let left = 29_998 + u64::from(number == 9);
                    assert_eq!(flow.remaining.as_millis() as u64, left, "the deadline of another life");
                    assert!(!flow.seen_reply);
                }
            })
        };
        assert!(table.remove(one));
        table.insert(&numbered(2, 9), at(1)).unwrap();
        reader.join().unwrap();
    });
}
