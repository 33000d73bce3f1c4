//! Readers and writers in real threads: nothing torn is ever read, and whatever several workers do with one
//! connection at once, it has one outcome. What the orders of single steps may do is the model's (`tests/model/`).

use super::*;
use crate::packet::family::{V4, V6};
use crate::sync::Meeting;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant as Clock};

/// A connection all of whose fields follow from one number, on keys that many numbers share.
fn numbered<A: Family>(number: u32) -> NewConnection<A> {
    let slot = number % 32;
    let original = key::<A>(Protocol::UDP, (1, slot as u16), (2, 80));
    let translated = key::<A>(Protocol::UDP, (number, number as u16), (!number >> 8, 8080));
    NewConnection {
        original,
        reply: translated.reply(),
        mark: number,
        state: State::Udp,
        original_next_hop: NextHopRef { index: number, generation: !number },
        reply_next_hop: NextHopRef::default(),
    }
}

fn readers_never_see_a_torn_entry<A: Family>() {
    let table = table::<A>(40);
    let stop = AtomicBool::new(false);
    let hits = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut slot = 0;
                while !stop.load(Relaxed) {
                    slot = (slot + 7) % 32;
                    let original = numbered::<A>(slot).original;
                    let candidate = table.probe(table.hash(&original));
                    let Some(hit) = candidate.and_then(|candidate| table.find(candidate, &original)) else {
                        continue;
                    };
                    let whole = numbered::<A>(hit.mark);
                    assert_eq!(whole.original, original);
                    assert_eq!(hit.next_hop(), whole.original_next_hop);
                    assert_eq!(hit.rewrite(), original.rewrite_to(&whole.reply.reply()));
                    table.touch(&hit, &Event::Other, at(1));
                    for flow in table.list(0, 8, at(1)).0 {
                        assert_eq!(flow.reply, numbered::<A>(flow.mark).reply);
                    }
                    hits.fetch_add(1, Relaxed);
                }
            });
        }
        let end = Clock::now() + Duration::from_millis(400);
        let mut number = 0u32;
        let mut entries = Vec::new();
        while Clock::now() < end {
            number = number.wrapping_add(1);
            entries.extend(table.insert(&numbered(number), at(0)).ok());
            if entries.len() == 32 {
                for entry in entries.drain(..) {
                    assert!(table.remove(entry));
                }
            }
        }
        stop.store(true, Relaxed);
        for entry in entries {
            table.remove(entry);
        }
    });
    assert!(table.is_empty());
    assert!(hits.load(Relaxed) > 0, "the readers met no entry");
}

#[test]
fn readers_never_see_a_torn_ipv4_entry() {
    readers_never_see_a_torn_entry::<V4>();
}

#[test]
fn readers_never_see_a_torn_ipv6_entry() {
    readers_never_see_a_torn_entry::<V6>();
}

#[test]
fn ct_12_one_of_two_workers_wins_an_insertion() {
    let table = table::<V4>(64);
    let won = AtomicU64::new(0);
    let lost = AtomicU64::new(0);
    thread::scope(|scope| {
        for backend in 0..2 {
            let (table, won, lost) = (&table, &won, &lost);
            scope.spawn(move || {
                for port in 0..64 {
                    let original = key::<V4>(Protocol::UDP, (1, port), (2, 80));
                    let new = NewConnection {
                        original,
                        reply: key::<V4>(Protocol::UDP, (1, port), (3 + backend, 80)).reply(),
                        ..through_service(Protocol::UDP, port, None, 0)
                    };
                    match table.insert(&new, at(0)) {
                        Ok(_) => won.fetch_add(1, Relaxed),
                        Err(InsertError::OriginalExists(entry)) => {
                            assert_eq!(table.lookup(&original).unwrap().entry, entry);
                            lost.fetch_add(1, Relaxed)
                        }
                        Err(error) => panic!("{error:?}"),
                    };
                }
            });
        }
    });
    assert_eq!((won.load(Relaxed), lost.load(Relaxed)), (64, 64));
    assert_eq!(table.len(), 64);
}

#[test]
fn ct_12_two_workers_that_see_a_fin_and_a_rst_agree() {
    for _ in 0..200 {
        let table = table::<V4>(1);
        let new = through_service::<V4>(Protocol::TCP, 1, None, SYN);
        let entry = table.insert(&new, at(0)).unwrap();
        packet(&table, &new.reply, SYN_ACK, at(0));
        packet(&table, &new.original, ACK, at(0));
        thread::scope(|scope| {
            scope.spawn(|| packet(&table, &new.original, FIN_ACK, at(1)));
            scope.spawn(|| packet(&table, &new.reply, RST, at(1)));
        });
        // Either order ends in CLOSE, with the timeout of CLOSE.
        let info = table.get(entry, at(1)).unwrap();
        assert_eq!(info.state, State::Tcp(TcpState::Close));
        assert_eq!(info.remaining, Duration::from_secs(10));
    }
}

/// Windows are tracked under a lock of each connection, connections end and begin under the table's: the two are
/// never waited for crosswise, and what a listener hears adds up.
#[test]
fn ct_12_workers_that_use_end_and_begin_a_connection_at_once_come_to_an_end() {
    let sysctls = Sysctls { tcp_be_liberal: false, acct: true, ..Sysctls::default() };
    let table = FlowTable::<V4>::with_sysctls(2, SEED, Timeouts::default(), sysctls).unwrap();
    let events = table.subscribe(1 << 20);
    let new = through_service::<V4>(Protocol::TCP, 1, None, SYN);
    thread::scope(|scope| {
        for worker in 0..3u32 {
            let (table, new) = (&table, &new);
            scope.spawn(move || {
                for round in 0..3_000u32 {
                    let _ = table.insert_first(new, &event(Protocol::TCP, SYN), at(0));
                    let (flags, key) = match (round + worker) % 5 {
                        0 => (SYN_ACK, &new.reply),
                        1 => (ACK, &new.original),
                        2 => (RST, &new.reply),
                        3 => (SYN, &new.original),
                        _ => (FIN_ACK, &new.original),
                    };
                    packet(table, key, flags, at(u64::from(round)));
                    table.expire(at(u64::from(round)), 2);
                }
            });
        }
    });
    let mut alive = 0i64;
    for event in events.try_iter() {
        match event.kind {
            EventKind::New => alive += 1,
            EventKind::Destroy => alive -= 1,
            EventKind::Update => {}
        }
    }
    assert_eq!((alive, table.events_lost()), (table.len() as i64, 0));
    let counters = table.counters();
    let ended = counters.removed + counters.expired + counters.evicted;
    assert_eq!(counters.inserted - ended, table.len() as u64);
}

/// A connection of client `port` through a Service to a backend, masqueraded to a port of its own.
fn masqueraded(protocol: Protocol, port: u16, backend: u32, source_port: u16) -> NewConnection<V4> {
    NewConnection {
        original: key(protocol, (1, port), (2, 80)),
        reply: key(protocol, (backend, 8080), (9, source_port)),
        mark: u32::from(source_port),
        ..through_service(protocol, port, None, if protocol == Protocol::TCP { SYN } else { 0 })
    }
}

/// CT-12: client side and backend side of NATed connections come to different workers, which know of each other by
/// the packets that arrive only. Data goes both ways at once, and so do the FINs.
#[test]
fn ct_12_the_two_directions_of_a_connection_are_at_different_workers() {
    const CONNECTIONS: u16 = 500;
    let table = table::<V4>(CONNECTIONS as usize);
    let both = Meeting::default();
    let forwarded = |key: &FlowKey<V4>, flags: u8, now: u64| {
        let touch = packet(&table, key, flags, at(now));
        assert!(matches!(touch, Touch::Forward(_)), "{key:?} {flags:#x}: {touch:?}");
    };
    let new = |port| masqueraded(Protocol::TCP, port, 3, 40_000 - port);
    thread::scope(|scope| {
        scope.spawn(|| {
            for port in 1..=CONNECTIONS {
                table.insert_first(&new(port), &event(Protocol::TCP, SYN), at(0)).unwrap();
                both.wait();
                both.wait();
                forwarded(&new(port).original, ACK, 1);
                both.wait();
                (0..20).for_each(|packet| forwarded(&new(port).original, ACK, 2 + packet));
                forwarded(&new(port).original, FIN_ACK, 30);
                both.wait();
                forwarded(&new(port).original, ACK, 31);
                both.wait();
            }
        });
        scope.spawn(|| {
            for port in 1..=CONNECTIONS {
                both.wait();
                let hit = table.lookup(&new(port).reply).expect("its first packet has left");
                assert_eq!(hit.rewrite(), new(port).reply.rewrite_to(&new(port).original.reply()));
                forwarded(&new(port).reply, SYN_ACK, 1);
                both.wait();
                both.wait();
                (0..20).for_each(|packet| forwarded(&new(port).reply, ACK, 2 + packet));
                forwarded(&new(port).reply, FIN_ACK, 30);
                both.wait();
                forwarded(&new(port).reply, ACK, 31);
                both.wait();
                let hit = table.lookup(&new(port).reply).unwrap();
                let flow = table.get(hit.entry.peer(), at(31)).unwrap();
                assert_eq!((flow.state, flow.assured), (State::Tcp(TcpState::TimeWait), true));
            }
        });
    });
    assert_eq!((table.len(), table.counters().inserted), (500, 500));
}

/// CT-12, NAT-05: a SYN and its retransmission reach two workers at once, each of which chooses a backend and a source
/// port. One connection, one translation; the loser's choice leaves no trace.
#[test]
fn ct_12_a_syn_and_its_retransmission_at_two_workers_are_one_connection() {
    const ROUNDS: u16 = 1_000;
    let table = table::<V4>(ROUNDS as usize + 2);
    let both = Meeting::default();
    let choice =
        |worker: u32, port| masqueraded(Protocol::TCP, port, 3 + worker, 20_000 + port * 2 + worker as u16);
    let open = |worker: u32| {
        let mut translations = Vec::new();
        for port in 1..=ROUNDS {
            both.wait();
            let new = choice(worker, port);
            let hit = match table.lookup(&new.original) {
                Some(hit) => {
                    assert_eq!(packet(&table, &new.original, SYN, at(1)), Touch::Forward(Class::New));
                    hit
                }
                None => match table.insert_first(&new, &event(Protocol::TCP, SYN), at(1)) {
                    Ok(_) | Err(InsertError::OriginalExists(_)) => table.lookup(&new.original).unwrap(),
                    Err(error) => panic!("{error:?}"),
                },
            };
            translations.push((hit.mark, hit.rewrite()));
        }
        translations
    };
    let open = &open;
    let [one, other] = thread::scope(|scope| {
        let workers = [0, 1].map(|worker| scope.spawn(move || open(worker)));
        workers.map(|worker| worker.join().unwrap())
    });
    assert_eq!(one, other, "both forward under one translation");
    assert_eq!((table.len(), table.counters().inserted), (1_000, 1_000));
    for port in 1..=ROUNDS {
        let replies = [0, 1].map(|worker| table.lookup(&choice(worker, port).reply).is_some());
        assert!(replies[0] != replies[1], "one of the two has the reply tuple");
    }
    table.index.assert_whole();
}

/// A reply reaches a worker while another one is still storing its connection: it finds the whole of it, or nothing
/// and begins one of its own; the tuple belongs to one of them.
#[test]
fn ct_12_a_reply_that_overtakes_its_connection_finds_it_whole_or_not() {
    const ROUNDS: u16 = 2_000;
    let table = table::<V4>(2 * ROUNDS as usize);
    let both = Meeting::default();
    let new = |port| masqueraded(Protocol::UDP, port, 3, port);
    // What a worker does with the reply as a packet of its own.
    let reversed =
        |port| NewConnection { original: new(port).reply, reply: new(port).reply.reply(), ..new(port) };
    let (stored, answered) = thread::scope(|scope| {
        let stores = scope.spawn(|| {
            let store = |port| {
                both.wait();
                match table.insert(&new(port), at(0)) {
                    Ok(_) => true,
                    Err(InsertError::ReplyTaken) => false,
                    Err(error) => panic!("{error:?}"),
                }
            };
            (1..=ROUNDS).map(store).collect::<Vec<_>>()
        });
        let answers = scope.spawn(|| {
            let answer = |port| {
                both.wait();
                let Some(hit) = table.lookup(&new(port).reply) else {
                    return match table.insert(&reversed(port), at(0)) {
                        Ok(_) => false,
                        Err(InsertError::OriginalExists(entry)) => entry.direction() == Direction::Reply,
                        Err(error) => panic!("{error:?}"),
                    };
                };
                assert_eq!(hit.rewrite(), new(port).reply.rewrite_to(&new(port).original.reply()));
                assert_eq!(packet(&table, &new(port).reply, 0, at(0)), Touch::Forward(Class::Established));
                true
            };
            (1..=ROUNDS).map(answer).collect::<Vec<_>>()
        });
        (stores.join().unwrap(), answers.join().unwrap())
    });
    assert_eq!(stored, answered, "who has the tuple is the same for both");
    assert_eq!(table.len(), usize::from(ROUNDS));
    table.index.assert_whole();
}

/// A connection is used in the last moment before its time is over, while another worker looks for what is over; and
/// while it is deleted. Every packet was forwarded or told that it is gone, and the counts say the same.
#[test]
fn ct_12_expiry_and_deletion_against_use() {
    const ROUNDS: u64 = 4_000;
    let table = table::<V4>(4);
    let new = masqueraded(Protocol::UDP, 1, 3, 7);
    let both = Meeting::default();
    let (mut opened, mut ended) = (0, 0);
    thread::scope(|scope| {
        let user = scope.spawn(|| {
            let mut opened = 0;
            for round in 0..ROUNDS {
                both.wait();
                let now = at(round * 29_999);
                for key in [&new.original, &new.reply] {
                    match packet(&table, key, 0, now) {
                        Touch::Forward(_) => {}
                        Touch::Gone if *key == new.original => {
                            opened += u64::from(table.insert(&new, now).is_ok());
                        }
                        Touch::Gone => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            opened
        });
        let ender = scope.spawn(|| {
            let mut ended = 0;
            for round in 0..ROUNDS {
                both.wait();
                // Its 30 s are over now, unless the user was here first.
                ended += table.expire(at(round * 29_999 + 1), 4) as u64;
                if round % 3 == 0 {
                    let hit = table.lookup(&new.reply);
                    ended += u64::from(hit.is_some_and(|hit| table.remove(hit.entry)));
                }
            }
            ended
        });
        (opened, ended) = (user.join().unwrap(), ender.join().unwrap());
    });
    let counters = table.counters();
    assert_eq!(counters.inserted, opened);
    assert!(counters.expired + counters.removed >= ended, "the user may find it over too");
    assert_eq!(counters.inserted - counters.expired - counters.removed, table.len() as u64);
    let found = [new.original, new.reply].map(|key| table.lookup(&key).is_some());
    assert_eq!(found, [table.len() == 1; 2], "both directions or none");
    assert!(ended > 0, "they never met");
    table.index.assert_whole();
}

/// Everything that workers can do, at once, in a table that is full and whose buckets are: what is left is whole.
#[test]
fn ct_12_whatever_workers_do_at_once_the_table_is_whole_afterwards() {
    const CAPACITY: usize = 24;
    let table = table::<V4>(CAPACITY);
    let new = |number: u64| masqueraded(Protocol::TCP, (number % 150) as u16, 3, (number % 110) as u16);
    thread::scope(|scope| {
        for worker in 1..=3u64 {
            let table = &table;
            scope.spawn(move || {
                let mut random = worker.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for round in 0..30_000u64 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let (now, new) = (at(round * 20), new(random >> 8));
                    let hit = table.lookup(&new.original).map(|hit| hit.entry);
                    match random % 16 {
                        0..=5 => _ = table.insert(&new, now),
                        6 => _ = packet(table, &new.reply, SYN_ACK, now),
                        7 => _ = packet(table, &new.original, ACK, now),
                        8 => _ = packet(table, &new.reply, RST, now),
                        9 => _ = packet(table, &new.original, SYN, now),
                        10 => _ = hit.map(|entry| table.remove(entry)),
                        11 => _ = table.is_reply_free(&new.reply, now),
                        12 => _ = table.expire(now, 10),
                        13 => _ = table.remove_matching(3, 1, now, &mut |_| true),
                        14 => {
                            let way = NextHopRef { index: new.mark, generation: 1 };
                            hit.map(|entry| table.set_next_hop(entry, way)).unwrap_or_default();
                        }
                        _ => {
                            for flow in table.list(0, CAPACITY, now).0 {
                                assert_eq!(u32::from(flow.reply.destination_port), flow.mark);
                            }
                        }
                    }
                }
            });
        }
    });
    table.index.assert_whole();
    let counters = table.counters();
    assert!(counters.evicted > 0 && counters.removed > 0 && counters.expired > 0, "{counters:?}");
    let now = at(600_000);
    let flows = table.list(0, CAPACITY, now).0;
    assert_eq!(flows.len(), table.len());
    for flow in &flows {
        let hits = [flow.original, flow.reply].map(|key| table.lookup(&key).expect("either tuple finds it"));
        assert!(hits.iter().all(|hit| hit.entry.id() == flow.id && hit.mark == flow.mark));
    }
    let tuples = (0..150).flat_map(|number| [new(number).original, new(number).reply]);
    let found: std::collections::HashSet<u64> =
        tuples.filter_map(|key| table.lookup(&key)).map(|hit| hit.entry.id()).collect();
    assert_eq!(found.len(), flows.len(), "and nothing else is found");
    // No slot was lost, and none is there twice.
    flows.iter().for_each(|flow| assert!(table.remove(flow.entry)));
    for number in 0..CAPACITY as u16 {
        table.insert(&masqueraded(Protocol::TCP, 1_000 + number, 3, 1_000 + number), now).unwrap();
    }
    assert_eq!((table.len(), table.counters().evicted), (CAPACITY, counters.evicted));
    table.index.assert_whole();
}

/// CT-09: slots that one worker gave up are another's before anything is evicted.
#[test]
fn ct_09_a_table_is_full_only_when_no_worker_has_a_slot() {
    let table = table::<V4>(64);
    let new = |number| masqueraded(Protocol::UDP, number, 3, number);
    thread::scope(|scope| {
        scope.spawn(|| {
            let entries: Vec<_> = (0..64).map(|number| table.insert(&new(number), at(0)).unwrap()).collect();
            entries.iter().for_each(|entry| assert!(table.remove(*entry)));
        });
    });
    (100..164).for_each(|number| assert!(table.insert(&new(number), at(0)).is_ok()));
    assert_eq!((table.len(), table.counters().evicted), (64, 0));
    table.insert(&new(200), at(0)).unwrap();
    assert_eq!((table.len(), table.counters().evicted), (64, 1));
}
