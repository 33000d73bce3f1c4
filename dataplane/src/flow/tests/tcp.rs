//! TCP through the table, segment by segment (CT-05, CT-06).

use super::*;
use crate::packet::family::V4;
use std::time::Duration;

struct Connection {
    table: FlowTable<V4>,
    new: NewConnection<V4>,
    entry: EntryRef,
}

impl Connection {
    fn begin(flags: u8) -> Connection {
        let table = table::<V4>(4);
        let new = through_service(Protocol::TCP, 1000, None, flags);
        let entry = table.insert(&new, at(0)).unwrap();
        Connection { table, new, entry }
    }

    fn established() -> Connection {
        let connection = Connection::begin(SYN);
        assert_eq!(connection.back(SYN_ACK), ESTABLISHED);
        assert_eq!(connection.there(ACK), ESTABLISHED);
        connection
    }

    /// A segment of the original direction, at time 0.
    fn there(&self, flags: u8) -> Touch {
        packet(&self.table, &self.new.original, flags, at(0))
    }

    /// A segment of the reply direction, at time 0.
    fn back(&self, flags: u8) -> Touch {
        packet(&self.table, &self.new.reply, flags, at(0))
    }

    /// State and seconds left at time 0.
    fn is(&self) -> (&'static str, u64) {
        let info = self.table.get(self.entry, at(0)).expect("the connection lives");
        (info.state.name(), info.remaining.as_secs())
    }

    fn assured(&self) -> bool {
        self.table.get(self.entry, at(0)).unwrap().assured
    }

    fn is_gone(&self) -> bool {
        self.table.is_empty()
    }
}

#[test]
fn ct_06_handshake() {
    let c = Connection::begin(SYN);
    assert_eq!(c.is(), ("SYN_SENT", 120));
    assert_eq!(c.back(SYN_ACK), ESTABLISHED);
    assert_eq!(c.is(), ("SYN_RECV", 60));
    assert!(!c.assured());
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", 432_000));
    assert!(c.assured());
}

#[test]
fn ct_06_close_by_both_sides() {
    let c = Connection::established();
    assert_eq!(c.there(FIN_ACK), ESTABLISHED);
    assert_eq!(c.is(), ("FIN_WAIT", 120));
    assert_eq!(c.back(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE_WAIT", 60));
    assert_eq!(c.back(FIN_ACK), ESTABLISHED);
    assert_eq!(c.is(), ("LAST_ACK", 30));
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("TIME_WAIT", 120));
}

#[test]
fn ct_06_half_close_carries_data_on() {
    let c = Connection::established();
    assert_eq!(c.back(FIN_ACK), ESTABLISHED);
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE_WAIT", 60));
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.back(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE_WAIT", 60));
}

#[test]
fn ct_06_simultaneous_open() {
    let c = Connection::begin(SYN);
    assert_eq!(c.back(SYN), ESTABLISHED);
    assert_eq!(c.is(), ("SYN_SENT2", 120));
    assert_eq!(c.there(SYN_ACK), ESTABLISHED);
    assert_eq!(c.is(), ("SYN_RECV", 60));
    assert_eq!(c.back(SYN_ACK), ESTABLISHED);
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", 432_000));
}

#[test]
fn ct_06_a_syn_on_time_wait_opens_a_new_connection() {
    let c = Connection::established();
    for (touch, segment) in [(Connection::there as fn(&_, _) -> _, FIN_ACK), (Connection::back, FIN_ACK)] {
        assert_eq!(touch(&c, segment), ESTABLISHED);
    }
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.is().0, "TIME_WAIT");
    assert_eq!(c.there(SYN), Touch::Reopen);
    assert!(c.is_gone());
    c.table.insert(&c.new, at(0)).unwrap();
}

#[test]
fn ct_06_after_a_rst_only_the_side_that_sent_it_reopens() {
    let c = Connection::established();
    assert_eq!(c.back(RST), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE", 10));
    // The client does not know yet; its SYN is the old connection's business.
    assert_eq!(c.there(SYN), ESTABLISHED);
    assert_eq!(c.is(), ("CLOSE", 10));

    let c = Connection::established();
    assert_eq!(c.there(RST), ESTABLISHED);
    assert_eq!(c.there(SYN), Touch::Reopen);
    assert!(c.is_gone());
}

#[test]
fn ct_06_a_syn_in_last_ack_stays_with_the_old_connection() {
    let c = Connection::established();
    c.there(FIN_ACK);
    c.back(FIN_ACK);
    assert_eq!(c.is(), ("LAST_ACK", 30));
    assert_eq!(c.there(SYN), ESTABLISHED);
    assert_eq!(c.is(), ("LAST_ACK", 30));
}

#[test]
fn ct_06_an_ack_alone_is_picked_up_for_300_seconds() {
    let c = Connection::begin(ACK);
    assert_eq!(c.is(), ("ESTABLISHED", 300));
    assert_eq!(c.there(ACK), NEW);
    assert_eq!(c.is(), ("ESTABLISHED", 300));
    assert_eq!(c.back(ACK), ESTABLISHED);
    assert!(!c.assured());
    assert_eq!(c.there(ACK), ESTABLISHED);
    assert_eq!(c.is(), ("ESTABLISHED", 432_000));
    assert!(c.assured());
}

#[test]
fn ct_06_fin_rst_syn_ack_or_nothing_begins_no_connection() {
    let key = key::<V4>(Protocol::TCP, (1, 1), (2, 2));
    for flags in [FIN_ACK, RST, RST | ACK, SYN_ACK, 0] {
        assert_eq!(
            first_packet(&key, &event(Protocol::TCP, flags), &Sysctls::default()),
            Err(Invalid),
            "{flags:#x}"
        );
    }
}

#[test]
fn ct_06_a_rst_on_a_connection_without_reply_is_forwarded_and_removes_it() {
    let c = Connection::begin(SYN);
    assert_eq!(c.back(RST | ACK), ESTABLISHED);
    assert!(c.is_gone());
    let c = Connection::begin(SYN);
    assert_eq!(c.there(RST), NEW);
    assert!(c.is_gone());
}

#[test]
fn ct_05_a_repeated_syn_does_not_renew_the_timeout() {
    let c = Connection::begin(SYN);
    assert_eq!(packet(&c.table, &c.new.original, SYN, at(100_000)), NEW);
    let info = c.table.get(c.entry, at(100_000)).unwrap();
    assert_eq!(info.remaining, Duration::from_secs(20));
    assert_eq!(packet(&c.table, &c.new.original, SYN, at(120_000)), Touch::Gone);
}

#[test]
fn ct_08_segments_that_fit_no_state_are_invalid_and_change_nothing() {
    let c = Connection::begin(SYN);
    assert_eq!(c.there(ACK), Touch::Invalid);
    assert_eq!(c.back(FIN_ACK), Touch::Invalid);
    assert_eq!(c.is(), ("SYN_SENT", 120));
    assert_eq!(c.there(SYN), NEW);
    let c = Connection::established();
    assert_eq!(c.there(SYN_ACK), Touch::Invalid);
    assert_eq!(c.back(SYN), Touch::Invalid);
    assert_eq!(c.there(0), Touch::Invalid);
    assert_eq!(c.is(), ("ESTABLISHED", 432_000));
}
