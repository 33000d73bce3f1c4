//! SCTP chunk by chunk (CT-05).

use super::*;
use crate::flow::sctp::{Chunk, TRANSITIONS};
use crate::packet::family::V4;

pub(super) const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// The tag that packets to the client, of the reply direction, carry; and that of packets to the server.
const CLIENT: u32 = 0xc11e;
const SERVER: u32 = 0x5e17;

/// A chunk.
pub(super) fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, flags];
    bytes.extend((4 + value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An INIT or INIT ACK that announces `tag`.
pub(super) fn init(kind: u8, tag: u32) -> Vec<u8> {
    let mut value = tag.to_be_bytes().to_vec();
    value.extend([0; 12]);
    chunk(kind, 0, &value)
}

/// A packet with these chunks. The ports and the checksum are of no interest here.
pub(super) fn packet(tag: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(chunks.concat());
    bytes
}

struct Association {
    table: FlowTable<V4>,
    new: NewConnection<V4>,
    entry: EntryRef,
}

fn key() -> FlowKey<V4> {
    super::key(Protocol::SCTP, (1, 1000), (2, 80))
}

fn first(bytes: &[u8]) -> Result<State, Invalid> {
    first_packet(&key(), &Event::Sctp(SctpPacket::read(bytes).unwrap()), &Sysctls::default())
}

impl Association {
    fn begun_by(bytes: &[u8]) -> Association {
        let table = table::<V4>(4);
        let state = first(bytes).unwrap();
        let new = NewConnection { state, ..through_service(Protocol::SCTP, 1000, None, 0) };
        let event = Event::Sctp(SctpPacket::read(bytes).unwrap());
        let entry = table.insert_first(&new, &event, at(0)).unwrap();
        Association { table, new, entry }
    }

    fn begun() -> Association {
        Association::begun_by(&packet(0, &[init(INIT, CLIENT)]))
    }

    fn established() -> Association {
        let a = Association::begun();
        assert_eq!(a.back(CLIENT, &[init(INIT_ACK, SERVER)]), ESTABLISHED);
        assert_eq!(a.there(SERVER, &[chunk(COOKIE_ECHO, 0, &[1; 8])]), ESTABLISHED);
        assert_eq!(a.back(CLIENT, &[chunk(COOKIE_ACK, 0, &[])]), ESTABLISHED);
        assert_eq!(a.is(), ("ESTABLISHED", 210, true));
        a
    }

    fn send(&self, key: &FlowKey<V4>, bytes: &[u8], now: u64) -> Touch {
        send(&self.table, key, &Event::Sctp(SctpPacket::read(bytes).unwrap()), at(now))
    }

    fn there(&self, tag: u32, chunks: &[Vec<u8>]) -> Touch {
        self.send(&self.new.original, &packet(tag, chunks), 0)
    }

    fn back(&self, tag: u32, chunks: &[Vec<u8>]) -> Touch {
        self.send(&self.new.reply, &packet(tag, chunks), 0)
    }

    /// State, seconds left, assured.
    fn is(&self) -> (&'static str, u64, bool) {
        let info = self.table.get(self.entry, at(0)).unwrap();
        assert_eq!(self.table.timeouts().get(info.timeout), info.remaining);
        (info.state.name(), info.remaining.as_secs(), info.assured)
    }
}

#[test]
fn ct_05_sctp_set_up_and_shut_down_chunk_by_chunk() {
    let a = Association::begun();
    assert_eq!(a.is(), ("CLOSED", 10, false));
    assert_eq!(a.back(CLIENT, &[init(INIT_ACK, SERVER)]), ESTABLISHED);
    assert_eq!(a.is(), ("COOKIE_WAIT", 3, false));
    // A cookie may carry data with it.
    assert_eq!(a.there(SERVER, &[chunk(COOKIE_ECHO, 0, &[1]), chunk(DATA, 3, &[0; 16])]), ESTABLISHED);
    assert_eq!(a.is(), ("COOKIE_ECHOED", 3, false));
    assert_eq!(a.back(CLIENT, &[chunk(COOKIE_ACK, 0, &[]), chunk(SACK, 0, &[0; 12])]), ESTABLISHED);
    assert_eq!(a.is(), ("ESTABLISHED", 210, true));
    assert_eq!(a.there(SERVER, &[chunk(DATA, 3, &[0; 100])]), ESTABLISHED);
    assert_eq!(a.there(SERVER, &[chunk(SHUTDOWN, 0, &[0; 4])]), ESTABLISHED);
    assert_eq!(a.is(), ("SHUTDOWN_SENT", 3, true));
    assert_eq!(a.back(CLIENT, &[chunk(SHUTDOWN_ACK, 0, &[])]), ESTABLISHED);
    assert_eq!(a.is(), ("SHUTDOWN_ACK_SENT", 3, true));
    assert_eq!(a.there(SERVER, &[chunk(SHUTDOWN_COMPLETE, 0, &[])]), ESTABLISHED);
    assert_eq!(a.is(), ("CLOSED", 10, true));

    let a = Association::established();
    assert_eq!(a.back(CLIENT, &[chunk(SHUTDOWN, 0, &[0; 4])]), ESTABLISHED);
    assert_eq!(a.is(), ("SHUTDOWN_RECD", 3, true));
}

#[test]
fn ct_05_a_packet_with_the_wrong_tag_ends_no_association() {
    let a = Association::established();
    for kind in [DATA, SHUTDOWN, ABORT, SHUTDOWN_COMPLETE, COOKIE_ECHO] {
        assert_eq!(a.there(SERVER ^ 1, &[chunk(kind, 0, &[0; 12])]), Touch::Invalid, "chunk {kind}");
    }
    assert_eq!(a.there(CLIENT, &[chunk(ABORT, 0, &[])]), Touch::Invalid, "the other side's tag, unmarked");
    assert_eq!(a.is(), ("ESTABLISHED", 210, true));
    // The flag T says that the tag is the sender's own.
    assert_eq!(a.there(CLIENT, &[chunk(ABORT, 1, &[])]), ESTABLISHED);
    assert_eq!(a.is(), ("CLOSED", 10, true));
    let a = Association::established();
    assert_eq!(a.back(CLIENT, &[chunk(ABORT, 0, &[])]), ESTABLISHED);
    assert_eq!(a.is(), ("CLOSED", 10, true));
}

#[test]
fn ct_05_only_some_chunks_begin_an_association() {
    assert_eq!(first(&packet(0, &[init(INIT, CLIENT)])), Ok(State::Sctp(SctpState::Closed)));
    assert_eq!(first(&packet(1, &[init(INIT, CLIENT)])), Err(Invalid), "an INIT has no tag");
    assert_eq!(first(&packet(1, &[chunk(HEARTBEAT, 0, &[0; 8])])), Ok(State::Sctp(SctpState::HeartbeatSent)));
    // RFC 9260, section 8.4, point 5: answered with a SHUTDOWN COMPLETE.
    assert_eq!(
        first(&packet(1, &[chunk(SHUTDOWN_ACK, 0, &[])])),
        Ok(State::Sctp(SctpState::ShutdownAckSent))
    );
    for kind in [DATA, INIT_ACK, SACK, ABORT, SHUTDOWN, 9, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE] {
        assert_eq!(first(&packet(1, &[chunk(kind, 0, &[0; 16])])), Err(Invalid), "chunk {kind}");
    }
}

#[test]
fn ct_05_chunks_that_may_not_stand_together_are_invalid() {
    let together = [
        vec![init(INIT, CLIENT), chunk(DATA, 3, &[0; 12])],
        vec![chunk(DATA, 3, &[0; 12]), init(INIT, CLIENT)],
        vec![init(INIT, CLIENT), init(INIT, CLIENT)],
    ];
    for chunks in together {
        assert_eq!(first(&packet(0, &chunks)), Err(Invalid));
    }
    let a = Association::established();
    let late = [chunk(DATA, 3, &[0; 12]), chunk(COOKIE_ACK, 0, &[])];
    assert_eq!(a.back(CLIENT, &late), Touch::Invalid);
    assert_eq!(a.there(SERVER, &[]), Touch::Invalid, "no chunk at all");
    assert_eq!(a.there(SERVER, &[vec![0, 3, 0, 0]]), Touch::Invalid, "a chunk without length");
    let mut many: Vec<_> = (0..128).map(|_| chunk(SACK, 0, &[])).collect();
    assert_eq!(a.there(SERVER, &many), ESTABLISHED);
    many.push(chunk(SACK, 0, &[]));
    assert_eq!(a.there(SERVER, &many), Touch::Invalid, "the walk is bounded");
}

#[test]
fn ct_05_every_truncated_packet_is_taken_or_invalid() {
    let whole = packet(0, &[init(INIT, CLIENT)]);
    for len in 0..whole.len() {
        let cut = &whole[..len];
        match SctpPacket::read(cut) {
            None => assert!(len < 12),
            Some(packet) => {
                assert_eq!(first_packet(&key(), &Event::Sctp(packet), &Sysctls::default()), Err(Invalid));
            }
        }
    }
}

#[test]
fn ct_05_a_repeated_init_does_not_renew_the_timeout() {
    let a = Association::begun();
    let again = packet(0, &[init(INIT, CLIENT)]);
    assert_eq!(a.send(&a.new.original, &again, 9_000), NEW);
    assert_eq!(a.table.get(a.entry, at(9_000)).unwrap().remaining.as_secs(), 1);
    assert_eq!(a.send(&a.new.original, &again, 10_000), Touch::Gone);
}

#[test]
fn ct_05_heartbeats_open_a_second_path() {
    let a = Association::begun_by(&packet(SERVER, &[chunk(HEARTBEAT, 0, &[0; 8])]));
    assert_eq!(a.is(), ("HEARTBEAT_SENT", 30, false));
    assert_eq!(a.back(CLIENT, &[chunk(HEARTBEAT_ACK, 0, &[0; 8])]), ESTABLISHED);
    assert_eq!(a.is(), ("ESTABLISHED", 210, true));
    assert_eq!(a.there(SERVER, &[chunk(DATA, 3, &[0; 12])]), ESTABLISHED);
    assert_eq!(a.back(CLIENT, &[chunk(DATA, 3, &[0; 12])]), ESTABLISHED);

    // A peer that has restarted: a heartbeat with a new tag passes without renewing anything, and both take the
    // new tags when it is answered.
    assert_eq!(a.there(7, &[chunk(HEARTBEAT, 0, &[0; 8])]), ESTABLISHED);
    assert_eq!(a.there(7, &[chunk(DATA, 3, &[0; 12])]), Touch::Invalid);
    assert_eq!(a.back(8, &[chunk(HEARTBEAT_ACK, 0, &[0; 8])]), ESTABLISHED);
    assert_eq!(a.there(7, &[chunk(HEARTBEAT, 0, &[0; 8])]), ESTABLISHED);
    assert_eq!(a.there(7, &[chunk(DATA, 3, &[0; 12])]), ESTABLISHED);
    assert_eq!(a.back(8, &[chunk(DATA, 3, &[0; 12])]), ESTABLISHED);
}

#[test]
fn ct_05_every_chunk_has_its_row() {
    for (row, (chunk, kind, _)) in Chunk::ALL.iter().enumerate() {
        assert_eq!((*chunk as usize, Chunk::of(*kind)), (row, Some(*chunk)));
    }
    assert_eq!(Chunk::of(DATA), None);
    assert!(TRANSITIONS[1].iter().all(|row| row[0].is_none()), "nothing begins with an answer");
}
