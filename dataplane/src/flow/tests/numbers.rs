//! What sequence numbers have to say about a TCP connection (CT-05 to CT-07).

use super::*;
use crate::packet::family::V4;

/// The client's first sequence number, near the wrap; the server's.
const CLIENT: u32 = u32::MAX - 10;
const SERVER: u32 = 5_000;

struct Connection {
    table: FlowTable<V4>,
    new: NewConnection<V4>,
    entry: EntryRef,
    now: std::cell::Cell<u64>,
}

impl Connection {
    fn begin_with(sysctls: Sysctls, timeouts: Timeouts, first: TcpSegment<'_>) -> Connection {
        let table = FlowTable::with_sysctls(4, SEED, timeouts, sysctls).unwrap();
        let state = first_packet(&client_key(), &Event::Tcp(first), &sysctls).unwrap();
        let new = NewConnection { state, ..through_service(Protocol::TCP, 1000, None, SYN) };
        let entry = table.insert_first(&new, &Event::Tcp(first), at(0)).unwrap();
        Connection { table, new, entry, now: 0.into() }
    }

    fn established_with(sysctls: Sysctls, timeouts: Timeouts) -> Connection {
        let c = Connection::begin_with(sysctls, timeouts, segment(SYN, CLIENT, 0, 0));
        assert_eq!(c.back(segment(SYN_ACK, SERVER, CLIENT.wrapping_add(1), 0)), ESTABLISHED);
        assert_eq!(c.there(data(0, 1, 0)), ESTABLISHED);
        assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
        c
    }

    fn established() -> Connection {
        Connection::established_with(Sysctls::default(), Timeouts::default())
    }

    fn there(&self, segment: TcpSegment<'_>) -> Touch {
        send(&self.table, &self.new.original, &Event::Tcp(segment), at(self.now.get()))
    }

    fn back(&self, segment: TcpSegment<'_>) -> Touch {
        send(&self.table, &self.new.reply, &Event::Tcp(segment), at(self.now.get()))
    }

    fn wait(&self, millis: u64) {
        self.now.set(self.now.get() + millis);
    }

    /// State, and the timeout that its time runs on.
    fn is(&self) -> (&'static str, Timeout) {
        let info = self.table.get(self.entry, at(self.now.get())).expect("the connection lives");
        (info.state.name(), info.timeout)
    }

    fn seconds(&self) -> u64 {
        self.table.get(self.entry, at(self.now.get())).unwrap().remaining.as_secs()
    }
}

fn client_key() -> FlowKey<V4> {
    key(Protocol::TCP, (1, 1000), (2, 80))
}

/// A segment from the client: `sent` bytes behind its SYN, acknowledging the server's SYN and `acked - 1` bytes.
fn data(sent: u32, acked: u32, len: u32) -> TcpSegment<'static> {
    segment(ACK, CLIENT.wrapping_add(1 + sent), SERVER.wrapping_add(acked), len)
}

/// A segment from the server, likewise.
fn answer(sent: u32, acked: u32, len: u32) -> TcpSegment<'static> {
    segment(ACK, SERVER.wrapping_add(1 + sent), CLIENT.wrapping_add(acked), len)
}

/// A RST from the server, `sent` bytes behind its SYN.
fn reset(sent: u32) -> TcpSegment<'static> {
    segment(RST, SERVER.wrapping_add(1 + sent), 0, 0)
}

#[test]
fn ct_07_a_rst_closes_when_it_is_what_the_other_side_waits_for() {
    let c = Connection::established();
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.there(data(0, 101, 0)), ESTABLISHED);
    assert_eq!(c.back(reset(100)), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE", Timeout::TcpClose));
}

#[test]
fn ct_07_a_rst_closes_when_it_continues_the_last_segment() {
    let c = Connection::established();
    // 100 bytes that nobody has acknowledged.
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.back(reset(100)), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE", Timeout::TcpClose));
}

#[test]
fn ct_07_a_rst_below_the_acknowledgement_is_invalid() {
    let c = Connection::established();
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.there(data(0, 101, 0)), ESTABLISHED);
    assert_eq!(c.back(reset(99)), Touch::Invalid);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
    let sysctls = Sysctls { tcp_ignore_invalid_rst: true, ..Sysctls::default() };
    let c = Connection::established_with(sysctls, Timeouts::default());
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.there(data(0, 101, 0)), ESTABLISHED);
    assert_eq!(c.back(reset(99)), ESTABLISHED);
    assert_eq!(c.is().0, "ESTABLISHED");
}

#[test]
fn ct_07_any_other_rst_is_forwarded_and_ends_nothing() {
    let c = Connection::established();
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.there(data(0, 101, 0)), ESTABLISHED);
    for guess in [101, 102, 1_000_000, 1 << 30] {
        assert_eq!(c.back(reset(guess)), ESTABLISHED);
        assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
        assert_eq!(c.seconds(), 432_000, "the connection's time stays as it was");
    }
}

#[test]
fn ct_07_the_acknowledgement_is_kept_up_to_date_by_settled_packets_across_the_wrap() {
    let c = Connection::established();
    let state = c.table.states[0].load(std::sync::atomic::Ordering::Relaxed);
    for round in 0..20 {
        assert_eq!(c.there(data(round * 1_000, 1, 1_000)), ESTABLISHED);
        // The first of these moves the state; the others are waved through.
        assert_eq!(c.back(answer(0, 1 + (round + 1) * 1_000, 0)), ESTABLISHED);
    }
    assert_ne!(state, 0);
    let hit = c.table.lookup(&c.new.original).unwrap();
    assert!(hit.is_settled(&Event::Tcp(data(0, 1, 0)), at(1)));
    // The client's RST: below what the server has acknowledged, and exactly that.
    let reset = |sent: u32| segment(RST, CLIENT.wrapping_add(1 + sent), 0, 0);
    assert_eq!(c.there(reset(19_999)), Touch::Invalid);
    assert_eq!(c.there(reset(20_000)), ESTABLISHED);
    assert_eq!(c.is().0, "CLOSE");
}

#[test]
fn ct_07_the_refusal_of_a_syn_that_was_let_through_is_forwarded_and_ends_nothing() {
    let c = Connection::established();
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.there(data(0, 101, 0)), ESTABLISHED);
    let refusal = |of: u32| segment(RST | ACK, 0, of, 0);
    assert_eq!(c.back(refusal(90_001)), Touch::Invalid);
    assert_eq!(c.there(segment(SYN, 90_000, 0, 0)), ESTABLISHED);
    assert_eq!(c.back(refusal(90_001)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
    assert_eq!(c.there(segment(SYN, 90_000, 0, 0)), ESTABLISHED);
    assert_eq!(c.back(refusal(90_002)), Touch::Invalid, "of another");
}

#[test]
fn ct_07_a_rst_below_the_acknowledgement_closes_what_is_ending() {
    let c = Connection::established();
    assert_eq!(c.back(answer(0, 1, 100)), ESTABLISHED);
    assert_eq!(c.there(data(0, 101, 0)), ESTABLISHED);
    assert_eq!(c.there(segment(FIN_ACK, CLIENT.wrapping_add(1), SERVER.wrapping_add(101), 0)), ESTABLISHED);
    assert_eq!(c.back(reset(0)), ESTABLISHED);
    assert_eq!(c.is().0, "CLOSE");
}

#[test]
fn ct_07_before_any_acknowledgement_every_rst_counts() {
    // The server refuses: its RST has the number 0, or acknowledges the SYN.
    let c = Connection::begin_with(Sysctls::default(), Timeouts::default(), segment(SYN, CLIENT, 0, 0));
    assert_eq!(c.back(segment(RST | ACK, 0, CLIENT.wrapping_add(1), 0)), ESTABLISHED);
    assert!(c.table.is_empty());
    // A picked-up connection whose receiver knows nothing of it.
    let c = Connection::begin_with(Sysctls::default(), Timeouts::default(), data(0, 1, 10));
    assert_eq!(c.back(reset(77)), ESTABLISHED);
    assert!(c.table.is_empty());
}

#[test]
fn ct_07_in_other_states_a_rst_above_the_acknowledgement_closes() {
    let c = Connection::established();
    assert_eq!(c.there(segment(FIN_ACK, CLIENT.wrapping_add(1), SERVER + 1, 0)), ESTABLISHED);
    assert_eq!(c.back(reset(50)), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE", Timeout::TcpClose));
    let c = Connection::established();
    assert_eq!(c.there(segment(FIN_ACK, CLIENT.wrapping_add(1), SERVER + 1, 0)), ESTABLISHED);
    assert_eq!(c.back(segment(RST, 0, 0, 0)), ESTABLISHED, "number 0 is an answer to a SYN");
    assert_eq!(c.is().0, "CLOSE");
}

#[test]
fn ct_05_data_that_nobody_acknowledges_shortens_the_connection_s_time() {
    let c = Connection::established();
    assert_eq!(c.there(data(0, 1, 10)), ESTABLISHED);
    assert_eq!((c.is(), c.seconds()), (("ESTABLISHED", Timeout::TcpUnack), 300));
    assert_eq!(c.back(answer(0, 11, 0)), ESTABLISHED);
    assert_eq!((c.is(), c.seconds()), (("ESTABLISHED", Timeout::TcpEstablished), 432_000));

    // It ends when nothing comes any more; the same acknowledged lives on.
    assert_eq!(c.there(data(10, 1, 10)), ESTABLISHED);
    let other = Connection::established();
    assert_eq!(other.there(data(0, 1, 10)), ESTABLISHED);
    assert_eq!(other.back(answer(0, 11, 0)), ESTABLISHED);
    assert_eq!(c.table.expire(at(299_999), 100), 0);
    assert_eq!(c.table.expire(at(300_500), 100), 1);
    for now in [299_999, 300_500, 1_000_000, 431_999_000] {
        assert_eq!(other.table.expire(at(now), 100), 0);
        let left = other.table.get(other.entry, at(now)).unwrap().remaining.as_millis() as u64;
        assert_eq!(left, 432_000_500 - now);
    }
    assert_eq!(other.table.expire(at(432_000_500), 100), 1);
}

#[test]
fn ct_05_a_connection_that_lives_on_is_found_and_used_though_nobody_expired_it() {
    let c = Connection::established();
    c.wait(10_000_000);
    assert!(!c.table.is_reply_free(&c.new.reply, at(c.now.get())));
    assert_eq!(c.table.insert(&c.new, at(c.now.get())), Err(InsertError::OriginalExists(c.entry)));
    assert_eq!(c.there(data(0, 1, 10)), ESTABLISHED);
    assert_eq!((c.is(), c.seconds()), (("ESTABLISHED", Timeout::TcpUnack), 300));
}

#[test]
fn ct_05_retransmissions_shorten_the_connection_s_time() {
    let mut timeouts = Timeouts::default();
    timeouts.set(Timeout::TcpRetrans, std::time::Duration::from_secs(100)).unwrap();
    let c = Connection::established_with(Sysctls::default(), timeouts);
    c.wait(1_000);
    for repeat in 0..4 {
        let class = if repeat < 3 { Timeout::TcpUnack } else { Timeout::TcpRetrans };
        assert_eq!(c.there(data(0, 1, 10)), ESTABLISHED);
        assert_eq!((c.is(), repeat), (("ESTABLISHED", class), repeat));
        c.wait(1_000);
    }
    assert_eq!(c.seconds(), 99);
    // An answer, and all is well again.
    assert_eq!(c.back(answer(0, 11, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));

    // The same segment again and again, but something has moved in between: no retransmission.
    for round in 0..10 {
        assert_eq!(c.there(data(10, 1, 10)), ESTABLISHED);
        assert_eq!(c.back(answer(round, 11, 1)), ESTABLISHED);
        assert_eq!(c.is().1, Timeout::TcpUnack);
        c.wait(1_000);
    }
}

#[test]
fn ct_05_a_closed_window_shortens_the_connection_s_time() {
    let mut timeouts = Timeouts::default();
    timeouts.set(Timeout::TcpRetrans, std::time::Duration::from_secs(100)).unwrap();
    let c = Connection::established_with(Sysctls::default(), timeouts);
    let closed = TcpSegment { window: 0, ..answer(0, 1, 0) };
    assert_eq!(c.back(closed), ESTABLISHED);
    c.wait(500);
    assert_eq!(c.back(closed), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpRetrans));
    assert_eq!(c.back(answer(0, 1, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
}

#[test]
fn ct_06_a_syn_with_another_number_in_syn_sent_is_the_one_that_is_answered() {
    let c = Connection::begin_with(Sysctls::default(), Timeouts::default(), segment(SYN, 100, 0, 0));
    assert_eq!(c.there(segment(SYN, 9_000, 0, 0)), NEW);
    assert_eq!(c.is(), ("SYN_SENT", Timeout::TcpSynSent));
    assert_eq!(c.back(segment(SYN_ACK, SERVER, 9_001, 0)), ESTABLISHED);
    assert_eq!(c.there(segment(ACK, 9_001, SERVER + 1, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
}

#[test]
fn ct_06_a_syn_that_was_ignored_counts_when_it_is_answered() {
    let c = Connection::established();
    // The client has restarted, and uses the same port.
    assert_eq!(c.there(segment(SYN, 70_000, 0, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
    assert_eq!(c.back(segment(SYN_ACK, 90_000, 70_002, 0)), ESTABLISHED, "an answer to something else");
    assert_eq!(c.is().0, "ESTABLISHED");
    assert_eq!(c.there(segment(SYN, 70_000, 0, 0)), ESTABLISHED);
    assert_eq!(c.back(segment(SYN_ACK, 90_000, 70_001, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("SYN_RECV", Timeout::TcpSynRecv));
    assert_eq!(c.there(segment(ACK, 70_001, 90_001, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
    // From here on the new numbers count.
    assert_eq!(c.back(segment(RST, SERVER + 1, 0, 0)), Touch::Invalid);
    assert_eq!(c.back(segment(RST, 90_001, 0, 0)), ESTABLISHED);
    assert_eq!(c.is().0, "CLOSE");
}

#[test]
fn ct_06_a_challenge_ack_in_last_ack_acknowledges_no_fin() {
    let c = Connection::established();
    assert_eq!(c.there(segment(FIN_ACK, CLIENT.wrapping_add(1), SERVER + 1, 0)), ESTABLISHED);
    assert_eq!(c.back(segment(FIN_ACK, SERVER + 1, CLIENT.wrapping_add(1), 0)), ESTABLISHED);
    assert_eq!(c.is().0, "LAST_ACK");
    assert_eq!(c.there(segment(SYN, 70_000, 0, 0)), ESTABLISHED);
    assert_eq!(c.back(answer(1, 2, 0)), ESTABLISHED);
    assert_eq!(c.is().0, "LAST_ACK", "RFC 5961: it answers the SYN");
    assert_eq!(c.there(segment(RST, CLIENT.wrapping_add(2), 0, 0)), ESTABLISHED);
    assert_eq!(c.is().0, "CLOSE");
}

#[test]
fn ct_06_both_sides_may_open() {
    let c = Connection::begin_with(Sysctls::default(), Timeouts::default(), segment(SYN, CLIENT, 0, 0));
    assert_eq!(c.back(segment(SYN, SERVER, 0, 0)), ESTABLISHED);
    assert_eq!(c.is().0, "SYN_SENT2");
    assert_eq!(c.there(segment(SYN_ACK, CLIENT, SERVER + 1, 0)), ESTABLISHED);
    assert_eq!(c.is().0, "SYN_RECV");
    // The other side acknowledges with an ACK alone.
    assert_eq!(c.back(answer(0, 1, 0)), ESTABLISHED);
    assert_eq!(c.is().0, "ESTABLISHED");
}

#[test]
fn ct_06_with_tcp_loose_off_nothing_is_picked_up() {
    let sysctls = Sysctls { tcp_loose: false, ..Sysctls::default() };
    let first = |segment| first_packet(&client_key(), &Event::Tcp(segment), &sysctls);
    assert_eq!(first(data(0, 1, 10)), Err(Invalid));
    assert_eq!(first(segment(SYN, 0, 0, 0)), Ok(State::Tcp(TcpState::SynSent)));
}

#[test]
fn ct_06_a_picked_up_connection_lives_for_300_seconds_until_it_is_answered() {
    let c = Connection::begin_with(Sysctls::default(), Timeouts::default(), data(0, 1, 10));
    assert_eq!(c.seconds(), 300);
    assert_eq!(c.there(data(10, 1, 10)), NEW);
    assert_eq!(c.seconds(), 300);
    assert_eq!(c.back(answer(0, 21, 5)), ESTABLISHED);
    assert_eq!(c.there(data(20, 6, 0)), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
    let info = c.table.get(c.entry, at(0)).unwrap();
    assert!(info.assured);
}

/// `nf_conntrack_tcp_be_liberal` 0.
mod windows {
    use super::*;

    const STRICT: Sysctls = Sysctls {
        tcp_be_liberal: false,
        tcp_loose: true,
        tcp_max_retrans: 3,
        tcp_ignore_invalid_rst: false,
        acct: false,
    };

    /// Both sides offer 1,000 bytes.
    fn small(segment: TcpSegment<'static>) -> TcpSegment<'static> {
        TcpSegment { window: 1_000, ..segment }
    }

    fn strict() -> Connection {
        let c = Connection::begin_with(STRICT, Timeouts::default(), small(segment(SYN, CLIENT, 0, 0)));
        assert_eq!(c.back(small(segment(SYN_ACK, SERVER, CLIENT.wrapping_add(1), 0))), ESTABLISHED);
        assert_eq!(c.there(small(data(0, 1, 0))), ESTABLISHED);
        assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
        c
    }

    #[test]
    fn ct_07_no_tcp_packet_is_settled_where_windows_are_tracked() {
        let c = strict();
        assert_eq!(c.there(small(data(0, 1, 10))), ESTABLISHED);
        let hit = c.table.lookup(&c.new.original).unwrap();
        assert!(!hit.is_settled(&Event::Tcp(data(0, 1, 0)), at(0)));
        assert!(c.table.bytes_per_connection() >= table::<V4>(4).bytes_per_connection() + 64);
    }

    #[test]
    fn ct_07_data_within_the_window_moves_it_on() {
        let c = strict();
        for round in 0..10 {
            assert_eq!(c.there(small(data(round * 1_000, 1, 1_000))), ESTABLISHED);
            assert_eq!(c.is().1, Timeout::TcpUnack);
            assert_eq!(c.back(small(answer(0, 1 + (round + 1) * 1_000, 0))), ESTABLISHED);
            assert_eq!(c.is().1, Timeout::TcpEstablished);
        }
    }

    #[test]
    fn ct_07_a_segment_beyond_the_window_is_invalid_and_liberal_lets_it_pass() {
        let c = strict();
        assert_eq!(c.there(small(data(5_000, 1, 10))), Touch::Invalid);
        assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpEstablished));
        assert_eq!(c.there(small(data(0, 1, 10))), ESTABLISHED);
        assert_eq!(Connection::established().there(data(1 << 29, 1, 10)), ESTABLISHED);
    }

    #[test]
    fn ct_07_what_was_not_sent_cannot_be_acknowledged() {
        let c = strict();
        assert_eq!(c.back(small(answer(0, 500, 0))), Touch::Invalid);
        assert_eq!(c.there(small(data(0, 1, 499))), ESTABLISHED);
        assert_eq!(c.back(small(answer(0, 500, 0))), ESTABLISHED);
    }

    #[test]
    fn ct_07_old_data_and_old_acknowledgements_are_forwarded_and_ignored() {
        let c = strict();
        for round in 0..100 {
            assert_eq!(c.there(small(data(round * 1_000, 1, 1_000))), ESTABLISHED);
            assert_eq!(c.back(small(answer(0, 1 + (round + 1) * 1_000, 0))), ESTABLISHED);
        }
        c.wait(10_000);
        assert_eq!(c.there(small(data(0, 1, 1_000))), ESTABLISHED, "sent again long after its time");
        assert_eq!(c.back(small(answer(0, 1, 0))), ESTABLISHED, "an acknowledgement that was very slow");
        assert_eq!(c.seconds(), 431_990, "neither renews the timeout");
        assert_eq!(c.back(small(answer(0, 100_001, 0))), ESTABLISHED);
        assert_eq!(c.seconds(), 432_000);
    }

    #[test]
    fn ct_07_windows_are_scaled_when_both_sides_offer_it() {
        let scale: &[u8] = &[1, 3, 3, 7];
        let with = |options| {
            let syn = TcpSegment { options, ..small(segment(SYN, CLIENT, 0, 0)) };
            let c = Connection::begin_with(STRICT, Timeouts::default(), syn);
            let back = segment(SYN_ACK, SERVER, CLIENT.wrapping_add(1), 0);
            assert_eq!(c.back(TcpSegment { options: scale, ..small(back) }), ESTABLISHED);
            assert_eq!(c.there(small(data(0, 1, 0))), ESTABLISHED);
            assert_eq!(c.back(small(answer(0, 1, 0))), ESTABLISHED);
            // 1,000 << 7 bytes fit, or 1,000.
            c.there(small(data(0, 1, 100_000)))
        };
        assert_eq!(with(scale), ESTABLISHED);
        assert_eq!(with(&[]), ESTABLISHED, "what begins within is judged by its beginning");
        let beyond = |options| {
            let syn = TcpSegment { options, ..small(segment(SYN, CLIENT, 0, 0)) };
            let c = Connection::begin_with(STRICT, Timeouts::default(), syn);
            let back = segment(SYN_ACK, SERVER, CLIENT.wrapping_add(1), 0);
            c.back(TcpSegment { options: scale, ..small(back) });
            c.there(small(data(0, 1, 0)));
            c.back(small(answer(0, 1, 0)));
            c.there(small(data(50_000, 1, 10)))
        };
        assert_eq!(beyond(scale), ESTABLISHED);
        assert_eq!(beyond(&[]), Touch::Invalid);
    }

    #[test]
    fn ct_07_blocks_acknowledged_selectively_count() {
        let permitted: &[u8] = &[4, 2];
        let syn = TcpSegment { options: permitted, ..small(segment(SYN, CLIENT, 0, 0)) };
        let c = Connection::begin_with(STRICT, Timeouts::default(), syn);
        let back =
            TcpSegment { options: permitted, ..small(segment(SYN_ACK, SERVER, CLIENT.wrapping_add(1), 0)) };
        assert_eq!(c.back(back), ESTABLISHED);
        assert_eq!(c.there(small(data(0, 1, 0))), ESTABLISHED);
        assert_eq!(c.there(small(data(100, 1, 100))), ESTABLISHED);
        let block = |from: u32, to: u32| {
            let mut sack = vec![1, 1, 5, 10];
            sack.extend(CLIENT.wrapping_add(1 + from).to_be_bytes());
            sack.extend(CLIENT.wrapping_add(1 + to).to_be_bytes());
            sack
        };
        let good = block(100, 200);
        assert_eq!(c.back(TcpSegment { options: &good, ..small(answer(0, 1, 0)) }), ESTABLISHED);
        let never_sent = block(300, 400);
        assert_eq!(c.back(TcpSegment { options: &never_sent, ..small(answer(0, 1, 0)) }), Touch::Invalid);
    }

    #[test]
    fn ct_07_a_rst_in_the_window_but_not_exact_is_given_the_time_of_a_challenge() {
        let c = strict();
        assert_eq!(c.back(small(reset(10))), ESTABLISHED);
        assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpClose));
        // The challenge. The RST counts as data that nobody has acknowledged, as in the kernel.
        assert_eq!(c.there(small(data(0, 1, 0))), ESTABLISHED);
        assert_eq!(c.is(), ("ESTABLISHED", Timeout::TcpUnack));
        assert_eq!(c.back(small(reset(5_000))), Touch::Invalid);
        assert_eq!(c.back(small(reset(0))), ESTABLISHED);
        assert_eq!(c.is().0, "CLOSE");
    }

    #[test]
    fn ct_07_two_ends_out_of_the_window_from_both_sides_shorten_the_time() {
        let c = strict();
        assert_eq!(c.back(small(segment(FIN_ACK, SERVER + 9_000, CLIENT, 0))), Touch::Invalid);
        assert_eq!(c.seconds(), 432_000);
        assert_eq!(c.there(small(segment(RST, CLIENT.wrapping_add(9_000), 0, 0))), Touch::Invalid);
        assert_eq!(c.is().0, "ESTABLISHED");
        assert_eq!(c.seconds(), 300);
    }

    #[test]
    fn ct_07_a_picked_up_connection_is_not_judged() {
        let c = Connection::begin_with(STRICT, Timeouts::default(), small(data(0, 1, 10)));
        assert_eq!(c.there(small(data(1 << 20, 1, 10))), NEW);
        assert_eq!(c.back(small(answer(0, 21, 5))), ESTABLISHED);
        assert_eq!(c.there(small(data(20, 6, 0))), ESTABLISHED);
    }

    #[test]
    fn ct_06_a_syn_that_was_ignored_begins_new_windows_when_it_is_answered() {
        let c = strict();
        assert_eq!(c.there(small(segment(SYN, 70_000, 0, 0))), ESTABLISHED);
        assert_eq!(c.back(small(segment(SYN_ACK, 90_000, 70_001, 0))), ESTABLISHED);
        assert_eq!(c.is().0, "SYN_RECV");
        assert_eq!(c.there(small(segment(ACK, 70_001, 90_001, 0))), ESTABLISHED);
        assert_eq!(c.there(small(segment(ACK, 70_001, 90_001, 900))), ESTABLISHED);
        assert_eq!(c.is().0, "ESTABLISHED");
        assert_eq!(c.there(small(data(100_000, 1, 10))), Touch::Invalid, "the old connection's numbers");
    }
}
