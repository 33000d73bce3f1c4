//! What people see of the table: lists, events, counters; removal of what they choose (CT-11).

use super::*;
use crate::packet::family::V4;

fn udp(port: u16) -> NewConnection<V4> {
    through_service(Protocol::UDP, port, None, 0)
}

fn tcp(port: u16) -> NewConnection<V4> {
    through_service(Protocol::TCP, port, None, SYN)
}

#[test]
fn ct_11_events_tell_what_became_of_a_connection() {
    let table = table::<V4>(8);
    let events = table.subscribe(100);
    let next = || events.try_recv().map(|event| (event.kind, event.flow.state, event.flow.assured)).ok();
    let new = tcp(1);
    let entry = table.insert(&new, at(0)).unwrap();
    assert_eq!(next(), Some((EventKind::New, State::Tcp(TcpState::SynSent), false)));
    packet(&table, &new.original, SYN, at(1));
    assert_eq!(next(), None, "a repeated SYN changes nothing");
    packet(&table, &new.reply, SYN_ACK, at(1));
    assert_eq!(next(), Some((EventKind::Update, State::Tcp(TcpState::SynRecv), false)));
    packet(&table, &new.original, ACK, at(1));
    assert_eq!(next(), Some((EventKind::Update, State::Tcp(TcpState::Established), true)));
    packet(&table, &new.reply, ACK, at(1));
    packet(&table, &new.original, ACK, at(2_000));
    assert_eq!(next(), None, "data changes nothing");
    packet(&table, &new.original, FIN_ACK, at(2_000));
    assert_eq!(next(), Some((EventKind::Update, State::Tcp(TcpState::FinWait), true)));
    table.remove(entry);
    assert_eq!(next(), Some((EventKind::Destroy, State::Tcp(TcpState::FinWait), true)));

    table.insert(&udp(2), at(3_000)).unwrap();
    packet(&table, &udp(2).reply, 0, at(3_000));
    table.expire(at(40_000), 100);
    let kinds = [next(), next(), next()].map(|event| event.map(|event| event.0));
    assert_eq!(kinds, [Some(EventKind::New), Some(EventKind::Update), Some(EventKind::Destroy)]);
}

#[test]
fn ct_11_events_that_find_no_room_are_lost_and_counted() {
    let table = table::<V4>(8);
    let (full, free) = (table.subscribe(1), table.subscribe(8));
    for port in 1..=3 {
        table.insert(&udp(port), at(0)).unwrap();
    }
    assert_eq!((full.len(), free.len(), table.events_lost()), (1, 3, 2));
    drop((full, free));
    table.insert(&udp(4), at(0)).unwrap();
    assert_eq!(table.events_lost(), 2, "nobody is there to lose it");
}

#[test]
fn ct_11_packets_and_bytes_are_counted_when_they_are_wanted() {
    let sysctls = Sysctls { acct: true, ..Sysctls::default() };
    let table = FlowTable::<V4>::with_sysctls(1, SEED, Timeouts::default(), sysctls).unwrap();
    let entry = table.insert(&udp(1), at(0)).unwrap();
    table.count(entry, 100);
    table.count(entry, 50);
    table.count(entry.peer(), 1500);
    let counts = table.get(entry, at(0)).unwrap().accounting;
    let of = |packets, bytes| Counts { packets, bytes };
    assert_eq!(counts, Some([of(2, 150), of(1, 1500)]));
    // The next connection in the slot begins anew.
    table.remove(entry);
    let entry = table.insert(&udp(2), at(0)).unwrap();
    assert_eq!(table.get(entry, at(0)).unwrap().accounting, Some([Counts::default(); 2]));

    let silent = super::table::<V4>(1);
    let entry = silent.insert(&udp(1), at(0)).unwrap();
    silent.count(entry, 100);
    assert_eq!(silent.get(entry, at(0)).unwrap().accounting, None);
    assert!(silent.bytes_per_connection() + 32 <= table.bytes_per_connection());
}

#[test]
fn ct_11_what_a_filter_chooses_is_removed_in_portions() {
    let table = table::<V4>(100);
    for port in 1..=50 {
        table.insert(&udp(port), at(0)).unwrap();
    }
    let mut removed = 0;
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let mut seen = 0;
        let (count, next) = table.remove_matching(from, 8, at(0), &mut |flow| {
            seen += 1;
            flow.original.source_port.is_multiple_of(2)
        });
        assert!(seen <= 8 && count <= 4);
        removed += count;
        cursor = next;
    }
    assert_eq!((removed, table.len()), (25, 25));
    assert!(table.lookup(&udp(2).original).is_none() && table.lookup(&udp(3).original).is_some());
}
