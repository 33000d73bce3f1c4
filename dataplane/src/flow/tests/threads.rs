//! Readers and writers in real threads: nothing torn is ever read.

use super::*;
use crate::packet::family::{V4, V6};
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
