//! What clients are remembered, for how long, and how much of it.

use std::net::Ipv4Addr;

use super::*;
use crate::packet::V4;
use crate::service::Affinity;
use crate::sync::Meeting;

const WEB: Affinity = Affinity { timeout: Duration::from_secs(10), service_port: 1 };
const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);

fn backend(last: u8) -> Backend<V4> {
    Backend { address: [10, 0, 0, last].into(), port: 80 }
}

fn remember(
    clients: &Clients<V4>,
    address: Ipv4Addr,
    backend: Backend<V4>,
    affinity: Affinity,
    now: Instant,
) -> Result<(), Full> {
    clients.client(address, affinity.service_port).remember(backend, affinity.timeout, now)
}

/// The only part of a small table.
fn part(clients: &Clients<V4>) -> MutexGuard<'_, Part<V4>> {
    assert_eq!(clients.parts.len(), 1);
    lock(&clients.parts[0])
}

fn fresh(clients: &Clients<V4>, affinity: Affinity, last: u8, now: Instant) -> bool {
    clients.client(CLIENT, affinity.service_port).is_fresh(&backend(last), affinity.timeout, now)
}

#[test]
fn af_01_an_entry_is_fresh_up_to_its_timeout_and_that_moment_included() {
    let clients = Clients::new(4);
    remember(&clients, CLIENT, backend(1), WEB, Instant::from_secs(100)).unwrap();
    assert!(fresh(&clients, WEB, 1, Instant::from_secs(110)));
    assert!(!fresh(&clients, WEB, 1, Instant(110_000_000_001)));
    // A new connection is a new time, and takes no more room.
    remember(&clients, CLIENT, backend(1), WEB, Instant::from_secs(110)).unwrap();
    assert!(fresh(&clients, WEB, 1, Instant::from_secs(120)));
    assert_eq!(clients.len(), 1);
}

#[test]
fn af_01_the_key_is_client_service_port_and_endpoint() {
    let clients = Clients::new(8);
    let now = Instant::from_secs(100);
    remember(&clients, CLIENT, backend(1), WEB, now).unwrap();
    assert!(!fresh(&clients, WEB, 2, now));
    assert!(!fresh(&clients, Affinity { service_port: 2, ..WEB }, 1, now), "AF-03");
    let other = clients.client(Ipv4Addr::new(172, 16, 0, 10), 1).is_fresh(&backend(1), WEB.timeout, now);
    assert!(!other);
    let other_port = Backend { port: 81, ..backend(1) };
    assert!(!clients.client(CLIENT, 1).is_fresh(&other_port, WEB.timeout, now));
    remember(&clients, CLIENT, backend(2), WEB, now).unwrap();
    assert!(fresh(&clients, WEB, 1, now) && fresh(&clients, WEB, 2, now), "an entry for each endpoint");
}

#[test]
fn af_02_an_endpoint_that_left_is_forgotten_at_once_even_if_it_comes_back() {
    let clients = Clients::new(8);
    let now = Instant::from_secs(100);
    remember(&clients, CLIENT, backend(1), WEB, now).unwrap();
    remember(&clients, CLIENT, backend(2), WEB, now).unwrap();
    clients.forget([(1, backend(1))]);
    assert!(!fresh(&clients, WEB, 1, now));
    assert!(fresh(&clients, WEB, 2, now), "AF-04");
    // It is back, and so is the client: that is a new entry.
    remember(&clients, CLIENT, backend(1), WEB, now).unwrap();
    assert!(fresh(&clients, WEB, 1, now));
    clients.forget([(1, backend(2))]);
    for _ in 0..3 {
        clients.expire(now, 8);
    }
    let inside = part(&clients);
    assert_eq!((inside.used, inside.departed.len(), inside.departures.len()), (1, 0, 0));
    drop(inside);
    assert!(fresh(&clients, WEB, 1, now) && !fresh(&clients, WEB, 2, now));
}

#[test]
fn af_02_two_departures_of_one_endpoint_are_both_kept_in_mind_until_all_entries_were_seen() {
    let clients = Clients::new(8);
    let now = Instant::from_secs(100);
    for last in 1..=4 {
        remember(&clients, CLIENT, backend(last), WEB, now).unwrap();
    }
    clients.expire(now, 2); // in the middle of a round
    clients.forget([(1, backend(1))]);
    clients.expire(now, 2);
    clients.forget([(1, backend(1))]);
    clients.expire(now, 1);
    assert!(!fresh(&clients, WEB, 1, now));
    assert_eq!(clients.len(), 3, "the entry went as it was passed");
    remember(&clients, CLIENT, backend(1), WEB, now).unwrap();
    for _ in 0..12 {
        clients.expire(now, 1);
        assert!(fresh(&clients, WEB, 1, now));
    }
    assert!(part(&clients).departed.is_empty());
}

#[test]
fn af_05_what_there_is_no_room_for_is_counted_and_old_entries_make_room() {
    let clients = Clients::new(2);
    let now = Instant::from_secs(100);
    remember(&clients, CLIENT, backend(1), WEB, now).unwrap();
    remember(&clients, CLIENT, backend(2), WEB, now).unwrap();
    assert_eq!(remember(&clients, CLIENT, backend(3), WEB, now), Err(Full));
    assert_eq!((clients.len(), clients.capacity(), clients.refused()), (2, 2, 1));
    // Those that are known are refreshed all the same.
    assert_eq!(remember(&clients, CLIENT, backend(2), WEB, Instant::from_secs(109)), Ok(()));
    assert_eq!(remember(&clients, CLIENT, backend(3), WEB, Instant::from_secs(111)), Ok(()));
    let now = Instant::from_secs(111);
    assert_eq!((1..=3).filter(|last| fresh(&clients, WEB, *last, now)).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(remember(&Clients::new(0), CLIENT, backend(1), WEB, now), Err(Full));
}

#[test]
fn entries_come_and_go_without_taking_more_memory() {
    let clients = Clients::<V4>::new(64);
    let room = part(&clients).entries.capacity();
    for second in 0..2_000u32 {
        let now = Instant::from_secs(u64::from(second));
        for port in 0..3 {
            let affinity = Affinity { service_port: port, ..WEB };
            remember(&clients, Ipv4Addr::from(second), backend(second as u8), affinity, now).unwrap();
        }
        clients.expire(now, 16);
    }
    assert_eq!(clients.refused(), 0);
    // Every entry is in its chain once, and the rest is free.
    let inside = part(&clients);
    assert_eq!(inside.entries.capacity(), room);
    let chained: usize = inside.heads.iter().map(|head| links(&inside, *head)).sum();
    assert_eq!(chained, inside.used);
    assert_eq!(links(&inside, inside.free) + inside.used, inside.entries.len());
    drop(inside);
    clients.expire(Instant::from_secs(10_000), 64);
    assert!(clients.is_empty());
}

fn links(part: &Part<V4>, first: u32) -> usize {
    let next = |place: &u32| Some(part.entries[*place as usize - 1].next).filter(|next| *next > 0);
    std::iter::successors(Some(first).filter(|first| *first > 0), next).count()
}

#[test]
fn a_large_table_is_in_parts_that_together_have_all_its_room() {
    let clients = Clients::new(16 * LEAST + 5);
    assert_eq!(clients.parts.len(), PARTS);
    assert_eq!(clients.parts.iter().map(|part| lock(part).capacity).sum::<usize>(), clients.capacity());
    let now = Instant::from_secs(100);
    let addresses: Vec<_> = (0..12 * LEAST as u32).map(Ipv4Addr::from).collect();
    for address in &addresses {
        remember(&clients, *address, backend(1), WEB, now).unwrap();
    }
    assert_eq!(clients.len(), addresses.len());
    let uses: Vec<_> = clients.parts.iter().map(|part| lock(part).used).collect();
    assert!(uses.iter().all(|used| (600..940).contains(used)), "{uses:?}");
    for address in &addresses {
        assert!(clients.client(*address, 1).is_fresh(&backend(1), WEB.timeout, now));
    }
    // Each slice takes the next part, so as many slices as there are parts look at everything.
    clients.forget([(1, backend(1))]);
    for _ in 0..PARTS {
        clients.expire(now, 2 * LEAST);
    }
    assert!(clients.is_empty());
}

/// AF-01: the first connections of a client come to two workers at once, which would choose differently.
#[test]
fn af_01_workers_that_see_a_client_at_once_keep_it_at_one_backend() {
    let clients = Clients::<V4>::new(4 * LEAST);
    let now = Instant::from_secs(100);
    let starts = Meeting::default();
    let choose = |own: u8| {
        let mut chosen = Vec::new();
        for number in 0..1_000u32 {
            starts.wait();
            let client = clients.client(Ipv4Addr::from(number), 1);
            let known = [1, 2].into_iter().find(|last| client.is_fresh(&backend(*last), WEB.timeout, now));
            let place = known.unwrap_or(own);
            client.remember(backend(place), WEB.timeout, now).unwrap();
            chosen.push(place);
            clients.expire(now, 16);
        }
        chosen
    };
    let [one, other] = std::thread::scope(|scope| {
        let workers = [1, 2].map(|own| scope.spawn(move || choose(own)));
        workers.map(|worker| worker.join().unwrap())
    });
    assert_eq!(one, other, "a client is at one backend, whichever worker has its connection");
    assert_eq!(clients.len(), 1_000);
}
