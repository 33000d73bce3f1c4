//! What clients are remembered, for how long, and how much of it.

use std::net::Ipv4Addr;

use super::*;
use crate::packet::V4;

const WEB: Affinity = Affinity { timeout: Duration::from_secs(10), service_port: 1 };
const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);

fn backend(last: u8) -> Backend<V4> {
    Backend { address: [10, 0, 0, last].into(), port: 80 }
}

fn fresh(clients: &Clients<V4>, affinity: Affinity, last: u8, now: Instant) -> bool {
    clients.client(CLIENT, affinity.service_port).is_fresh(&backend(last), affinity.timeout, now)
}

#[test]
fn af_01_an_entry_is_fresh_up_to_its_timeout_and_that_moment_included() {
    let mut clients = Clients::new(4);
    clients.remember(CLIENT, backend(1), WEB, Instant::from_secs(100)).unwrap();
    assert!(fresh(&clients, WEB, 1, Instant::from_secs(110)));
    assert!(!fresh(&clients, WEB, 1, Instant(110_000_000_001)));
    // A new connection is a new time, and takes no more room.
    clients.remember(CLIENT, backend(1), WEB, Instant::from_secs(110)).unwrap();
    assert!(fresh(&clients, WEB, 1, Instant::from_secs(120)));
    assert_eq!(clients.len(), 1);
}

#[test]
fn af_01_the_key_is_client_service_port_and_endpoint() {
    let mut clients = Clients::new(8);
    let now = Instant::from_secs(100);
    clients.remember(CLIENT, backend(1), WEB, now).unwrap();
    assert!(!fresh(&clients, WEB, 2, now));
    assert!(!fresh(&clients, Affinity { service_port: 2, ..WEB }, 1, now), "AF-03");
    let other = clients.client(Ipv4Addr::new(172, 16, 0, 10), 1);
    assert!(!other.is_fresh(&backend(1), WEB.timeout, now));
    let other_port = Backend { port: 81, ..backend(1) };
    assert!(!clients.client(CLIENT, 1).is_fresh(&other_port, WEB.timeout, now));
    clients.remember(CLIENT, backend(2), WEB, now).unwrap();
    assert!(fresh(&clients, WEB, 1, now) && fresh(&clients, WEB, 2, now), "an entry for each endpoint");
}

#[test]
fn af_02_an_endpoint_that_left_is_forgotten_at_once_even_if_it_comes_back() {
    let mut clients = Clients::new(8);
    let now = Instant::from_secs(100);
    clients.remember(CLIENT, backend(1), WEB, now).unwrap();
    clients.remember(CLIENT, backend(2), WEB, now).unwrap();
    clients.forget([(1, backend(1))]);
    assert!(!fresh(&clients, WEB, 1, now));
    assert!(fresh(&clients, WEB, 2, now), "AF-04");
    // It is back, and so is the client: that is a new entry.
    clients.remember(CLIENT, backend(1), WEB, now).unwrap();
    assert!(fresh(&clients, WEB, 1, now));
    clients.forget([(1, backend(2))]);
    for _ in 0..3 {
        clients.expire(now, 8);
    }
    assert_eq!((clients.len(), clients.departed.len(), clients.departures.len()), (1, 0, 0));
    assert!(fresh(&clients, WEB, 1, now) && !fresh(&clients, WEB, 2, now));
}

#[test]
fn af_02_two_departures_of_one_endpoint_are_both_kept_in_mind_until_all_entries_were_seen() {
    let mut clients = Clients::new(8);
    let now = Instant::from_secs(100);
    for last in 1..=4 {
        clients.remember(CLIENT, backend(last), WEB, now).unwrap();
    }
    clients.expire(now, 2); // in the middle of a round
    clients.forget([(1, backend(1))]);
    clients.expire(now, 2);
    clients.forget([(1, backend(1))]);
    clients.expire(now, 1);
    assert!(!fresh(&clients, WEB, 1, now));
    assert_eq!(clients.len(), 3, "the entry went as it was passed");
    clients.remember(CLIENT, backend(1), WEB, now).unwrap();
    for _ in 0..12 {
        clients.expire(now, 1);
        assert!(fresh(&clients, WEB, 1, now));
    }
    assert!(clients.departed.is_empty());
}

#[test]
fn af_05_what_there_is_no_room_for_is_counted_and_old_entries_make_room() {
    let mut clients = Clients::new(2);
    let now = Instant::from_secs(100);
    clients.remember(CLIENT, backend(1), WEB, now).unwrap();
    clients.remember(CLIENT, backend(2), WEB, now).unwrap();
    assert_eq!(clients.remember(CLIENT, backend(3), WEB, now), Err(Full));
    assert_eq!((clients.len(), clients.capacity(), clients.refused()), (2, 2, 1));
    // Those that are known are refreshed all the same.
    assert_eq!(clients.remember(CLIENT, backend(2), WEB, Instant::from_secs(109)), Ok(()));
    assert_eq!(clients.remember(CLIENT, backend(3), WEB, Instant::from_secs(111)), Ok(()));
    let now = Instant::from_secs(111);
    assert_eq!((1..=3).filter(|last| fresh(&clients, WEB, *last, now)).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(Clients::<V4>::new(0).remember(CLIENT, backend(1), WEB, now), Err(Full));
}

#[test]
fn entries_come_and_go_without_taking_more_memory() {
    let mut clients = Clients::<V4>::new(64);
    let room = clients.entries.capacity();
    for second in 0..2_000u32 {
        let now = Instant::from_secs(u64::from(second));
        for port in 0..3 {
            let affinity = Affinity { service_port: port, ..WEB };
            clients.remember(Ipv4Addr::from(second), backend(second as u8), affinity, now).unwrap();
        }
        clients.expire(now, 16);
    }
    assert_eq!((clients.refused(), clients.entries.capacity()), (0, room));
    // Every entry is in its chain once, and the rest is free.
    let chained: usize = clients.heads.iter().map(|head| links(&clients, *head)).sum();
    assert_eq!(chained, clients.len());
    assert_eq!(links(&clients, clients.free) + clients.len(), clients.entries.len());
    clients.expire(Instant::from_secs(10_000), 64);
    assert!(clients.is_empty());
}

fn links(clients: &Clients<V4>, first: u32) -> usize {
    let next = |place: &u32| Some(clients.entries[*place as usize - 1].next).filter(|next| *next > 0);
    std::iter::successors(Some(first).filter(|first| *first > 0), next).count()
}
