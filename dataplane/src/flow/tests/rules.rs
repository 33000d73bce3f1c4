//! One rule of the specification each.

use super::*;
use crate::packet::checksum::Delta;
use crate::packet::family::{V4, V6};
use std::time::Duration;

fn udp(port: u16) -> NewConnection<V4> {
    through_service(Protocol::UDP, port, None, 0)
}

fn tcp(port: u16) -> NewConnection<V4> {
    through_service(Protocol::TCP, port, Some(port), SYN)
}

/// Makes a TCP connection assured, in the millisecond `now`.
fn establish(table: &FlowTable<V4>, connection: &NewConnection<V4>, now: Tick) -> EntryRef {
    let entry = table.insert(connection, now).unwrap();
    assert_eq!(packet(table, &connection.reply, SYN_ACK, now), ESTABLISHED);
    assert_eq!(packet(table, &connection.original, ACK, now), ESTABLISHED);
    entry
}

#[test]
fn ct_01_either_tuple_finds_the_connection_with_its_rewrite() {
    let table = table::<V4>(8);
    let new = through_service(Protocol::TCP, 1000, Some(40_000), SYN);
    let entry = table.insert(&new, at(0)).unwrap();

    let there = table.lookup(&new.original).unwrap();
    assert_eq!((there.entry, there.direction()), (entry, Direction::Original));
    assert!(!there.rewrite().is_identity());
    assert_eq!(there.rewrite().source, address::<V4>(4));
    assert_eq!(there.rewrite().source_port, 40_000);
    assert_eq!(there.rewrite().destination, address::<V4>(3));
    assert_eq!(there.rewrite().destination_port, 8080);
    assert_eq!((there.mark, there.next_hop().index), (0x4000, 7));

    let back = table.lookup(&new.reply).unwrap();
    assert_eq!((back.entry, back.direction()), (entry.peer(), Direction::Reply));
    assert_eq!(back.entry.id(), entry.id());
    assert_eq!(back.rewrite().source, address::<V4>(2));
    assert_eq!(back.rewrite().source_port, 80);
    assert_eq!(back.rewrite().destination, address::<V4>(1));
    assert_eq!(back.rewrite().destination_port, 1000);

    assert!(table.lookup(&new.reply.reply()).is_none());
}

#[test]
fn ct_02_traffic_without_nat_is_tracked_and_says_so() {
    let table = table::<V6>(8);
    let original = key::<V6>(Protocol::UDP, (1, 1), (9, 53));
    let new =
        NewConnection { original, reply: original.reply(), ..through_service(Protocol::UDP, 1, None, 0) };
    table.insert(&new, at(0)).unwrap();
    let hit = table.lookup(&original).unwrap();
    assert!(hit.rewrite().is_identity());
    assert_eq!(hit.rewrite(), original.rewrite_to(&original));
    assert_eq!((hit.rewrite().ip_delta, hit.rewrite().transport_delta), (Delta::NONE, Delta::NONE));
}

#[test]
fn ct_02_new_until_a_reply_was_seen() {
    let table = table::<V4>(8);
    let new = udp(1);
    table.insert(&new, at(0)).unwrap();
    assert_eq!(packet(&table, &new.original, 0, at(1)), NEW);
    assert_eq!(packet(&table, &new.original, 0, at(2)), NEW);
    assert_eq!(packet(&table, &new.reply, 0, at(3)), ESTABLISHED);
    assert_eq!(packet(&table, &new.original, 0, at(4)), ESTABLISHED);
}

#[test]
fn ct_04_and_12_an_insert_stores_both_directions_or_none() {
    let table = table::<V4>(8);
    let first = through_service::<V4>(Protocol::TCP, 1000, Some(5000), SYN);
    let entry = table.insert(&first, at(0)).unwrap();
    assert_eq!(table.insert(&first, at(0)), Err(InsertError::OriginalExists(entry)));
    // Another client's connection that would need the same port of the node.
    let second = through_service::<V4>(Protocol::TCP, 1001, Some(5000), SYN);
    assert!(!table.is_reply_free(&second.reply, at(0)));
    assert_eq!(table.insert(&second, at(0)), Err(InsertError::ReplyTaken));
    assert!(table.lookup(&second.original).is_none());
    let second = through_service::<V4>(Protocol::TCP, 1001, Some(5001), SYN);
    assert!(table.is_reply_free(&second.reply, at(0)));
    table.insert(&second, at(0)).unwrap();
    assert_eq!(table.len(), 2);
    assert!(table.remove(entry.peer()));
    assert!(!table.remove(entry));
    assert!(table.lookup(&first.original).is_none());
    assert!(table.lookup(&first.reply).is_none());
    assert!(table.is_reply_free(&first.reply, at(0)));
    assert_eq!(table.len(), 1);
}

#[test]
fn ct_05_a_connection_ends_in_the_millisecond_of_its_timeout() {
    let table = table::<V4>(8);
    let new = udp(1);
    let entry = table.insert(&new, at(5)).unwrap();
    let info = table.get(entry, at(5)).unwrap();
    assert_eq!(info.remaining, Duration::from_secs(30));
    assert_eq!(packet(&table, &new.original, 0, at(30_004)), NEW);
    assert_eq!(packet(&table, &new.original, 0, at(60_003)), NEW);
    assert!(!table.is_reply_free(&new.reply, at(90_002)));
    assert!(table.is_reply_free(&new.reply, at(90_003)));
    assert_eq!(packet(&table, &new.original, 0, at(90_003)), Touch::Gone);
    assert_eq!(table.len(), 0);
    assert_eq!(table.counters().expired, 1);
}

#[test]
fn ct_05_udp_becomes_a_stream_after_two_seconds_of_both_sides() {
    let table = table::<V4>(8);
    let new = udp(1);
    let entry = table.insert(&new, at(0)).unwrap();
    let state = |now| table.get(entry, now).unwrap();
    assert_eq!(packet(&table, &new.reply, 0, at(100)), ESTABLISHED);
    assert_eq!(packet(&table, &new.original, 0, at(1_900)), ESTABLISHED);
    assert_eq!(packet(&table, &new.original, 0, at(1_999)), ESTABLISHED);
    assert_eq!((state(at(1_999)).state, state(at(1_999)).assured), (State::Udp, false));
    // Also in the settled time of the packets before.
    assert_eq!(packet(&table, &new.original, 0, at(2_000)), ESTABLISHED);
    let info = state(at(2_000));
    assert_eq!((info.state, info.assured), (State::UdpStream, true));
    assert_eq!(info.remaining, Duration::from_secs(120) + SETTLED);
}

#[test]
fn ct_05_one_way_udp_never_becomes_a_stream() {
    let table = table::<V4>(8);
    let new = udp(1);
    let entry = table.insert(&new, at(0)).unwrap();
    for second in 1..10 {
        assert_eq!(packet(&table, &new.original, 0, at(second * 1_000)), NEW);
    }
    let info = table.get(entry, at(9_000)).unwrap();
    assert_eq!((info.state, info.assured), (State::Udp, false));
    assert_eq!(info.remaining, Duration::from_secs(30));
}

#[test]
fn ct_05_icmp_generic_and_sctp_have_their_own_timeouts() {
    let remaining = |new: NewConnection<V4>| {
        let table = table::<V4>(1);
        let entry = table.insert(&new, at(0)).unwrap();
        table.get(entry, at(0)).unwrap().remaining.as_secs()
    };
    let mut echo = key::<V4>(Protocol::ICMP, (1, 77), (2, 8 << 8));
    let icmp = NewConnection {
        original: echo,
        reply: echo.reply(),
        state: first_packet(&echo, &Event::Other, &Sysctls::default()).unwrap(),
        ..udp(1)
    };
    assert_eq!(remaining(icmp), 30);
    echo.destination_port = 0;
    assert_eq!(first_packet(&echo, &Event::Other, &Sysctls::default()), Err(Invalid));
    assert_eq!(
        remaining(through_service(Protocol(47), 0, None, 0)),
        Timeouts::default().get(Timeout::Generic).as_secs()
    );
    assert_eq!(remaining(through_service(Protocol::SCTP, 1, None, 0)), 10);
}

#[test]
fn ct_05_a_settled_connection_lives_its_whole_timeout_after_its_last_packet() {
    let table = table::<V4>(8);
    let new = tcp(1);
    let entry = establish(&table, &new, at(0));
    let timeout = Duration::from_secs(432_000).as_millis() as u64;
    // In the settled time nothing is written, yet this packet counts.
    let hit = table.lookup(&new.original).unwrap();
    assert!(hit.is_settled(&event(Protocol::TCP, ACK), at(499)));
    assert!(!hit.is_settled(&event(Protocol::TCP, ACK), at(500)));
    assert!(!hit.is_settled(&event(Protocol::TCP, FIN_ACK), at(499)));
    assert!(!hit.is_settled(&event(Protocol::TCP, SYN), at(499)));
    assert!(!hit.is_settled(&event(Protocol::TCP, RST), at(499)));
    assert!(table.get(entry, at(timeout + 499)).unwrap().remaining > Duration::ZERO);
    assert_eq!(table.get(entry, at(timeout + 500)).unwrap().remaining, Duration::ZERO);
}

#[test]
fn ct_06_a_change_of_state_ends_the_settled_time_of_both_directions() {
    let table = table::<V4>(8);
    let new = tcp(1);
    establish(&table, &new, at(0));
    assert_eq!(packet(&table, &new.reply, ACK, at(10)), ESTABLISHED);
    assert!(table.lookup(&new.reply).unwrap().is_settled(&event(Protocol::TCP, ACK), at(11)));
    assert_eq!(packet(&table, &new.original, FIN_ACK, at(12)), ESTABLISHED);
    for key in [&new.original, &new.reply] {
        assert!(!table.lookup(key).unwrap().is_settled(&event(Protocol::TCP, ACK), at(12)));
    }
}

#[test]
fn ct_09_a_full_table_evicts_who_has_no_reply_and_never_an_assured_one() {
    let table = table::<V4>(4);
    let assured: Vec<_> = (1..=2).map(tcp).collect();
    for new in &assured {
        establish(&table, new, at(0));
    }
    let replied = udp(3);
    table.insert(&replied, at(0)).unwrap();
    assert_eq!(packet(&table, &replied.reply, 0, at(0)), ESTABLISHED);
    let silent = udp(4);
    table.insert(&silent, at(0)).unwrap();

    table.insert(&tcp(5), at(1)).unwrap();
    assert!(table.lookup(&silent.original).is_none());
    assert!(table.lookup(&silent.reply).is_none());
    assert!(table.lookup(&replied.original).is_some());
    // The new one has a reply now: the replied, unassured ones are what is left.
    assert_eq!(packet(&table, &tcp(5).reply, SYN_ACK, at(1)), ESTABLISHED);
    assert_eq!(packet(&table, &tcp(5).original, ACK, at(1)), ESTABLISHED);
    table.insert(&tcp(6), at(2)).unwrap();
    assert!(table.lookup(&replied.original).is_none());
    establish_existing(&table, &tcp(6), at(2));

    assert_eq!(table.insert(&tcp(7), at(3)), Err(InsertError::Full));
    assert!(table.lookup(&tcp(7).original).is_none());
    for new in assured.iter().chain([&tcp(5), &tcp(6)]) {
        assert_eq!(packet(&table, &new.original, ACK, at(3)), ESTABLISHED);
    }
    let counters = table.counters();
    assert_eq!((counters.evicted, counters.refused), (2, 1));
    assert_eq!(table.len(), 4);
}

fn establish_existing(table: &FlowTable<V4>, new: &NewConnection<V4>, now: Tick) {
    assert_eq!(packet(table, &new.reply, SYN_ACK, now), ESTABLISHED);
    assert_eq!(packet(table, &new.original, ACK, now), ESTABLISHED);
}

#[test]
fn ct_09_an_expired_connection_makes_room_even_if_it_was_assured() {
    let table = table::<V4>(2);
    establish(&table, &tcp(1), at(0));
    establish(&table, &tcp(2), at(0));
    assert_eq!(packet(&table, &tcp(2).original, RST, at(0)), ESTABLISHED);
    assert_eq!(table.insert(&tcp(3), at(9_999)), Err(InsertError::Full));
    table.insert(&tcp(3), at(10_000)).unwrap();
    assert!(table.lookup(&tcp(1).original).is_some());
    let counters = table.counters();
    assert_eq!((counters.expired, counters.evicted, counters.refused), (1, 0, 1));
}

#[test]
fn ct_10_expiry_is_bounded_and_complete_within_a_second() {
    const CONNECTIONS: u16 = 20_000;
    let table = table::<V4>(usize::from(CONNECTIONS));
    for port in 1..=CONNECTIONS {
        table.insert(&udp(port), at(0)).unwrap();
    }
    let budget = table.expire_budget(Duration::from_millis(1));
    assert_eq!(budget, 40);
    assert_eq!(table.expire(at(29_999), usize::MAX), 0);
    let mut most = 0;
    for poll in 0..1_000 {
        most = most.max(table.expire(at(30_000 + poll), budget));
        if poll == 499 {
            assert_eq!(table.len(), 0);
        }
    }
    assert_eq!(most, budget);
    assert_eq!(table.counters().expired, u64::from(CONNECTIONS));
    // The slots are free again, all of them.
    for port in 1..=CONNECTIONS {
        table.insert(&udp(port), at(40_000)).unwrap();
    }
    assert_eq!(table.len(), usize::from(CONNECTIONS));
    assert_eq!(table.counters().evicted, 0);
}

#[test]
fn ct_05_time_may_wrap() {
    const WRAP: u64 = 1 << 32;
    let table = table::<V4>(8);
    let new = tcp(1);
    establish(&table, &new, at(WRAP - 100));
    assert_eq!(packet(&table, &new.reply, ACK, at(WRAP - 1)), ESTABLISHED);
    let hit = table.lookup(&new.reply).unwrap();
    assert!(hit.is_settled(&event(Protocol::TCP, ACK), at(WRAP + 498)));
    assert!(!hit.is_settled(&event(Protocol::TCP, ACK), at(WRAP + 499)));
    assert_eq!(table.expire(at(WRAP + 5), 100), 0);
    let timeout = 432_000_000;
    assert_eq!(table.expire(at(WRAP - 1 + timeout), 100), 0);
    assert_eq!(table.expire(at(WRAP + 499 + timeout), 100), 1);

    // A deadline that falls on the number that stands for "free".
    let new = udp(2);
    table.insert(&new, at(WRAP - 30_000)).unwrap();
    assert_eq!(table.expire(at(WRAP - 1), 100), 0);
    assert_eq!(table.expire(at(WRAP + 1), 100), 1);

    // An old settled time is not the future, however long ago it was.
    let new = tcp(3);
    establish(&table, &new, at(0));
    let hit = table.lookup(&new.original).unwrap();
    for hours in [1, 24, 24 * 25, 24 * 40] {
        assert!(!hit.is_settled(&event(Protocol::TCP, ACK), at(hours * 3_600_000)));
    }
}

#[test]
fn ct_11_listing_goes_through_all_slots_in_pieces() {
    let table = table::<V4>(100);
    for port in 1..=50 {
        table.insert(&udp(port), at(0)).unwrap();
    }
    table.remove(table.lookup(&udp(10).original).unwrap().entry);
    let mut flows = Vec::new();
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let (part, next) = table.list(from, 7, at(1_000));
        assert!(part.len() <= 7);
        flows.extend(part);
        cursor = next;
    }
    assert_eq!(flows.len(), 49);
    let flow = flows.iter().find(|flow| flow.original.source_port == 20).unwrap();
    assert_eq!((flow.original, flow.reply), (udp(20).original, udp(20).reply));
    assert_eq!((flow.mark, flow.state.name()), (0x4000, "UDP"));
    assert_eq!(flow.remaining, Duration::from_secs(29));
    assert!(!flow.seen_reply && !flow.assured);
    assert_eq!(table.get(flow.entry.peer(), at(1_000)).as_ref(), Some(flow));
}

#[test]
fn rt_05_the_next_hop_is_replaced_in_place() {
    let table = table::<V4>(2);
    let entry = table.insert(&udp(1), at(0)).unwrap();
    let next_hop = NextHopRef { index: 99, generation: 3 };
    table.set_next_hop(entry.peer(), next_hop);
    assert_eq!(table.lookup(&udp(1).reply).unwrap().next_hop(), next_hop);
    assert_eq!(table.lookup(&udp(1).original).unwrap().next_hop().index, 7);
    // A reference to a connection that is gone changes nothing of the one in its place.
    table.remove(entry);
    table.insert(&udp(2), at(0)).unwrap();
    table.set_next_hop(entry, next_hop);
    assert_eq!(table.lookup(&udp(2).original).unwrap().next_hop().index, 7);
}

#[test]
fn a_hit_of_a_connection_that_is_gone_changes_nothing() {
    let table = table::<V4>(1);
    let entry = table.insert(&udp(1), at(0)).unwrap();
    let hit = table.lookup(&udp(1).original).unwrap();
    table.remove(entry);
    table.insert(&udp(2), at(0)).unwrap();
    let before = table.list(0, 1, at(0));
    assert_eq!(table.touch(&hit, &Event::Other, at(5_000)), Touch::Gone);
    assert!(table.get(entry, at(0)).is_none());
    assert_eq!(table.list(0, 1, at(0)), before);
}

#[test]
fn a_tuple_that_answers_itself_is_refused() {
    let table = table::<V4>(1);
    let original = key::<V4>(Protocol::UDP, (1, 5), (1, 5));
    let new = NewConnection { original, reply: original.reply(), ..udp(1) };
    assert_eq!(table.insert(&new, at(0)), Err(InsertError::ReplyTaken));
    assert!(table.is_empty());
}

#[test]
fn the_stages_agree_with_the_lookup() {
    let table = table::<V6>(1_000);
    let connection = |port| through_service::<V6>(Protocol::UDP, port, None, 0);
    for port in 0..1_000 {
        table.insert(&connection(port), at(0)).unwrap();
    }
    for port in 0..1_000 {
        for key in [connection(port).original, connection(port).reply] {
            let hash = table.hash(&key);
            table.prefetch(hash);
            let candidate = table.probe(hash).expect("a key in the table has a candidate");
            let hit = table.find(candidate, &key).unwrap();
            assert_eq!(hit.entry, table.lookup(&key).unwrap().entry);
        }
    }
    let absent = connection(5_000).original;
    let found = table.probe(table.hash(&absent)).and_then(|candidate| table.find(candidate, &absent));
    assert!(found.is_none());
}

#[test]
fn a_connection_takes_at_most_256_bytes_or_450() {
    assert!(table::<V4>(1_000_000).bytes_per_connection() <= 256);
    assert!(table::<V6>(1_000_000).bytes_per_connection() <= 450);
}

#[test]
fn a_bad_size_is_said() {
    for size in [0, (1 << 30) + 1] {
        let error = FlowTable::<V4>::new(size, SEED, Timeouts::default()).unwrap_err();
        assert!(error.to_string().contains("is not a table size"), "{error}");
    }
}
