//! Both directions of a connection agree on its state, and nothing that comes late reaches the connection that has
//! its slot next.

use std::time::Duration;

use super::*;

/// A connection in ESTABLISHED, used by both sides at `now`.
fn established(table: &FlowTable<V4>, new: &NewConnection<V4>, now: Tick) {
    table.insert(new, now).unwrap();
    packet(table, &new.reply, SYN_ACK, now);
    packet(table, &new.original, ACK, now);
}

/// CT-12: whichever came first, the connection is closed, and has the time that a closed one has.
#[test]
fn ct_12_a_fin_and_a_rst_at_once_agree() {
    explore("a FIN and a RST at once agree", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let new = tcp(1);
        established(&table, &new, at(0));
        let other = {
            let table = table.clone();
            thread::spawn(move || packet(&table, &tcp(1).original, FIN_ACK, at(1)))
        };
        packet(&table, &new.reply, RST, at(1));
        other.join().unwrap();
        let flow = &table.list(0, 1, at(1)).0[0];
        assert_eq!(flow.state, State::Tcp(TcpState::Close));
        assert_eq!(flow.remaining, Duration::from_secs(10));
    });
}

/// A change of state ends the settled time of both directions, whoever else used the connection meanwhile.
#[test]
fn ct_12_after_a_fin_no_direction_is_settled() {
    explore("after a FIN no direction is settled", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let new = tcp(1);
        established(&table, &new, at(0));
        let other = {
            let table = table.clone();
            // A plain segment back, when the settled time is just over.
            thread::spawn(move || packet(&table, &tcp(1).reply, ACK, at(500)))
        };
        packet(&table, &new.original, FIN_ACK, at(500));
        other.join().unwrap();
        let flow = &table.list(0, 1, at(500)).0[0];
        assert!(
            matches!(flow.state, State::Tcp(TcpState::FinWait | TcpState::CloseWait)),
            "{:?}",
            flow.state
        );
        for key in [&new.original, &new.reply] {
            let hit = table.lookup(key).unwrap();
            assert!(!hit.is_settled(&event(Protocol::TCP, ACK), at(501)), "{:?}", hit.direction());
        }
        // CLOSE_WAIT when the segment came last, 60 s; else FIN_WAIT, 120 s.
        let time = if flow.state == State::Tcp(TcpState::CloseWait) { 60 } else { 120 };
        assert_eq!(flow.remaining, Duration::from_secs(time));
    });
}

/// A packet was looked up, then its connection went and another got the slot.
#[test]
fn ct_12_a_late_touch_does_not_reach_the_next_connection() {
    explore("a late touch does not reach the next connection", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let (first, second) = (numbered::<V4>(1, 5), numbered::<V4>(2, 9));
        let one = table.insert(&first, at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || {
                let Some(hit) = table.lookup(&first.reply) else { return };
                let touch = table.touch(&hit, &UDP, at(10));
                assert!(matches!(touch, Touch::Forward(Class::Established) | Touch::Gone), "{touch:?}");
            })
        };
        table.remove(one);
        let two = table.insert(&second, at(20)).unwrap();
        other.join().unwrap();
        let flow = table.get(two, at(20)).unwrap();
        assert!(!flow.seen_reply && flow.state == State::Udp);
        assert_eq!(flow.remaining, Duration::from_secs(30));
        for key in [second.original, second.reply] {
            assert!(!table.lookup(&key).unwrap().is_settled(&UDP, at(21)));
        }
    });
}

/// The way of a packet was found anew, then its connection went and another got the slot, which goes the same
/// old way so far.
#[test]
fn ct_12_a_late_next_hop_does_not_reach_the_next_connection() {
    explore("a late next hop does not reach the next connection", 2, || {
        let table = table::<V4>(1);
        let first = numbered::<V4>(1, 5);
        let way = first.original_next_hop;
        let second = NewConnection { original_next_hop: way, ..numbered(2, 9) };
        let one = table.insert(&first, at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || table.set_next_hop(one, NextHopRef { index: 77, generation: 78 }))
        };
        table.remove(one);
        table.insert(&second, at(1)).unwrap();
        other.join().unwrap();
        assert_eq!(table.lookup(&second.original).unwrap().next_hop(), way);
    });
}

/// A packet in the last moment: either it renews the connection, which then stays, or the connection is over and
/// the packet is told so.
#[test]
fn ct_12_a_connection_that_was_just_used_does_not_expire() {
    explore("a connection that was just used does not expire", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let new = numbered::<V4>(1, 5);
        table.insert(&new, at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || packet(&table, &numbered::<V4>(1, 5).original, 0, at(29_999)))
        };
        let expired = table.expire(at(30_000), 1);
        let touch = other.join().unwrap();
        match touch {
            Touch::Forward(Class::New) => assert_eq!((expired, table.len()), (0, 1)),
            Touch::Gone => assert_eq!((expired, table.len()), (1, 0)),
            other => panic!("{other:?}"),
        }
    });
}

/// The same when the connection's end is noticed by a packet instead of by the scan.
#[test]
fn ct_12_two_workers_agree_whether_a_connection_is_over() {
    explore("two workers agree whether a connection is over", PREEMPTIONS, || {
        let table = table::<V4>(1);
        let new = numbered::<V4>(1, 5);
        table.insert(&new, at(0)).unwrap();
        let other = {
            let table = table.clone();
            thread::spawn(move || packet(&table, &numbered::<V4>(1, 5).original, 0, at(29_999)))
        };
        let late = packet(&table, &new.reply, 0, at(30_000));
        let early = other.join().unwrap();
        match (early, late) {
            // In time, and so the later one met a connection that had been renewed.
            (Touch::Forward(Class::New), Touch::Forward(Class::Established)) => assert_eq!(table.len(), 1),
            // Too late, and the other one found nothing.
            (Touch::Gone, Touch::Gone) => assert_eq!(table.len(), 0),
            other => panic!("{other:?}"),
        }
    });
}
