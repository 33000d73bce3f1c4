//! TCP's windows (CT-07): whether a segment can have been sent, and an acknowledgement can be one, by what was
//! seen of both directions. There only when `nf_conntrack_tcp_be_liberal` is 0; the packets of such a table all
//! take the slow method. After G. van Rooij, "Real stateful TCP packet filtering in IP Filter" (2000), as the
//! kernel's tracker has made it stand real programs (`nf_conntrack_proto_tcp.c`).
//!
//! With `S` the sender of a segment, `R` its receiver:
//!
//! ```text
//! I    sequence   ≤ S.limit                       not beyond the window that R offered
//! II   end        ≥ S.end - R.window              not older than R's window can be
//! III  ack        ≤ R.end                         nothing acknowledged that was not sent
//! IV   ack        ≥ R.end - max(66000, S.window)  not older than what can be on its way
//! ```

use crate::sync::AtomicU64;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

use std::io;

use super::key::Direction;
use super::segment::{Seen, TcpSegment, after};
use super::state::Status;
use super::tcp::{Segment, TcpState};
use crate::memory::Array;

/// What is done with a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It lies within.
    Accept,
    /// Too old, or a little too much: forwarded, and nothing is learned from it.
    Ignore,
    /// It cannot belong here.
    Invalid,
}

/// An acknowledgement may be older than the data sent by so much, at least.
const ACK_WINDOW: u32 = 66_000;
/// The largest shift of a window (RFC 7323, section 2.3).
const SCALE_MAX: u8 = 14;

/// Flags of a side.
mod flag {
    pub(super) const SCALES: u8 = 1;
    pub(super) const SACK: u8 = 2;
    /// Its highest acknowledgement is known.
    pub(super) const ACKED: u8 = 4;
    /// It has sent what nobody has acknowledged.
    pub(super) const UNACKNOWLEDGED: u8 = 8;
    /// Its beginning was not seen: nothing of it is refused.
    pub(super) const LIBERAL: u8 = 16;
}

/// One direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Side {
    /// Highest end of a segment.
    end: u32,
    /// The receiver takes nothing beyond.
    limit: u32,
    /// The largest window that it offered; 0 before its first segment.
    window: u32,
    /// Its highest acknowledgement.
    ack: u32,
    scale: u8,
    flags: u8,
}

/// The segment that was looked at last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct LastSegment {
    direction: u8,
    sequence: u32,
    ack: u32,
    end: u32,
    window: u16,
    scale: u8,
    flags: u8,
    repeated: u8,
}

/// What is known of both directions of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Windows {
    sides: [Side; 2],
    last: LastSegment,
}

impl Side {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Reads what a SYN offers (RFC 7323, RFC 2018).
    fn read_offer(&mut self, options: &[u8]) {
        (self.scale, self.flags) = (0, 0);
        each_option(options, |kind, value| match (kind, value) {
            (option::SACK_PERMITTED, []) => self.flags |= flag::SACK,
            (option::SCALE, [scale]) => {
                self.scale = (*scale).min(SCALE_MAX);
                self.flags |= flag::SCALES;
            }
            _ => {}
        });
    }
}

mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    pub(super) const SCALE: u8 = 3;
    pub(super) const SACK_PERMITTED: u8 = 4;
    pub(super) const SACK: u8 = 5;
}

/// Calls `visit` with kind and value of each option, up to the first that is malformed.
fn each_option(mut options: &[u8], mut visit: impl FnMut(u8, &[u8])) {
    loop {
        match *options {
            [] | [option::END, ..] => return,
            [option::NOTHING, ..] => options = &options[1..],
            [kind, len, ..] => {
                let Some(value) = options.get(2..usize::from(len)) else { return };
                visit(kind, value);
                options = &options[usize::from(len)..];
            }
            [_] => return,
        }
    }
}

/// The highest end of a block that is acknowledged selectively, or `ack`.
fn highest_sack(options: &[u8], ack: u32) -> u32 {
    let mut highest = ack;
    each_option(options, |kind, value| {
        if kind == option::SACK && !value.is_empty() && value.len().is_multiple_of(8) {
            for block in value.chunks_exact(8) {
                let end = u32::from_be_bytes([block[4], block[5], block[6], block[7]]);
                if after(end, highest) {
                    highest = end;
                }
            }
        }
    });
    highest
}

impl Windows {
    /// After the first segment of a connection.
    pub(super) fn begin(&mut self, segment: &TcpSegment<'_>) {
        *self = Windows::default();
        let window = u32::from(segment.window).max(1);
        let own = &mut self.sides[0];
        (own.end, own.window, own.limit) = (segment.end, window, segment.end);
        if segment.is_syn() {
            own.read_offer(segment.options);
        } else {
            own.limit = segment.end.wrapping_add(window);
            self.sides.iter_mut().for_each(|side| side.flags = flag::SACK | flag::LIBERAL);
        }
        // As the kernel, which judges the first one as well.
        self.judge(TcpState::Established, Direction::Original, segment);
    }

    /// Judges a segment of a connection in `state`, and learns from it.
    pub(super) fn judge(
        &mut self,
        state: TcpState,
        direction: Direction,
        segment: &TcpSegment<'_>,
    ) -> Verdict {
        let liberal = self.sides[direction as usize].has(flag::LIBERAL);
        match self.compare(state, direction, segment) {
            Verdict::Ignore | Verdict::Invalid if liberal => Verdict::Accept,
            verdict => verdict,
        }
    }

    fn compare(&mut self, state: TcpState, direction: Direction, segment: &TcpSegment<'_>) -> Verdict {
        let syn = segment.is_syn();
        let [mut own, mut peer] = [self.sides[direction as usize], self.sides[direction.reverse() as usize]];
        let (mut sequence, mut end) = (segment.sequence, segment.end);
        let mut ack = segment.acknowledgement;
        let mut sack = if peer.has(flag::SACK) { highest_sack(segment.options, ack) } else { ack };
        let window = u32::from(segment.window);
        let opening = matches!(state, TcpState::SynSent | TcpState::SynRecv);
        let first = own.window == 0;
        if syn && (first || (opening && after(end, own.end))) {
            (own.end, own.limit, own.window) = (end, end, window.max(1));
            own.read_offer(segment.options);
            if !(own.has(flag::SCALES) && peer.has(flag::SCALES)) {
                (own.scale, peer.scale) = (0, 0);
            }
            // Both sides open: there is nothing to compare with yet.
            if !segment.acknowledges && (first || direction == Direction::Reply) {
                self.put(direction, own, peer);
                return Verdict::Accept;
            }
        } else if first {
            // In the midst of a connection: its first segment says what can be known.
            own.end = end;
            own.window = (window << own.scale).max(1);
            own.limit = end.wrapping_add(own.window);
            if peer.window == 0 {
                (peer.end, peer.limit) = (sack, sack);
            } else if sack == peer.end.wrapping_add(1) {
                peer.end = sack; // the answer to a keepalive
            }
        }
        let broken_reset = segment.kind == Segment::Rst && ack == 0;
        if !segment.acknowledges || broken_reset {
            (ack, sack) = (peer.end, peer.end);
        }
        if segment.kind == Segment::Rst && sequence == 0 && state == TcpState::SynSent {
            (sequence, end) = (own.end, own.end);
        }

        let oldest_end = own.end.wrapping_sub(peer.window).wrapping_sub(1);
        let oldest_ack = peer.end.wrapping_sub(own.window.max(ACK_WINDOW)).wrapping_sub(1);
        let acknowledges_sent = !after(sack, peer.end);
        if after(sequence, own.limit) {
            let over = end.wrapping_sub(own.limit).wrapping_add(1);
            let nearly = peer.window != 0 && after(end, oldest_end) && after(sack, oldest_ack);
            if nearly && over <= peer.window && acknowledges_sent {
                // More than was offered, as some do: what acknowledges it must be understood.
                own.end = end;
                own.flags |= flag::UNACKNOWLEDGED;
                self.put(direction, own, peer);
                return Verdict::Ignore;
            }
            self.put(direction, own, peer);
            return Verdict::Invalid;
        }
        if !acknowledges_sent {
            self.put(direction, own, peer);
            return Verdict::Invalid;
        }
        if (peer.window != 0 && !after(end, oldest_end)) || !after(sack, oldest_ack) {
            self.put(direction, own, peer);
            return Verdict::Ignore;
        }

        let scaled = if syn { window } else { window << own.scale };
        own.window = own.window.max(scaled.wrapping_add(sack.wrapping_sub(ack)));
        if after(end, own.end) {
            own.end = end;
            own.flags |= flag::UNACKNOWLEDGED;
        }
        if segment.acknowledges && (!own.has(flag::ACKED) || after(ack, own.ack)) {
            own.ack = ack;
            own.flags |= flag::ACKED;
        }
        if peer.window != 0 && after(end, own.limit) {
            peer.window = peer.window.wrapping_add(end.wrapping_sub(own.limit));
        }
        let offered = sack.wrapping_add(scaled);
        if after(offered, peer.limit.wrapping_sub(1)) {
            peer.limit = if scaled == 0 { offered.wrapping_add(1) } else { offered };
        }
        if ack == peer.end {
            peer.flags &= !flag::UNACKNOWLEDGED;
        }
        self.put(direction, own, peer);
        if segment.kind == Segment::Ack {
            let same = LastSegment {
                direction: direction as u8,
                sequence,
                ack,
                end,
                window: segment.window,
                ..self.last
            };
            let repeated = if same == self.last { self.last.repeated.saturating_add(1) } else { 0 };
            self.last = LastSegment { repeated, ..same };
        }
        Verdict::Accept
    }

    fn put(&mut self, direction: Direction, own: Side, peer: Side) {
        self.sides[direction as usize] = own;
        self.sides[direction.reverse() as usize] = peer;
    }

    /// A segment was let through unjudged: what it says may be confirmed by its answer.
    pub(super) fn note(&mut self, state: TcpState, direction: Direction, segment: &TcpSegment<'_>) {
        self.last.direction = direction as u8;
        self.last.sequence = segment.sequence;
        self.last.end = segment.end;
        self.last.window = segment.window;
        if segment.kind == Segment::Syn && direction == Direction::Original {
            let mut offer = Side::default();
            offer.read_offer(segment.options);
            (self.last.scale, self.last.flags) = (offer.scale, offer.flags);
        }
        if state == TcpState::SynSent && segment.kind == Segment::Ack && direction == Direction::Reply {
            self.last.ack = segment.acknowledgement;
        }
    }

    /// Its answer came: the connection of `direction` begins with the segment that was noted.
    pub(super) fn resume(&mut self, direction: Direction) {
        let LastSegment { end, window, scale, flags, .. } = self.last;
        let begun = Side { end, limit: end, window: u32::from(window).max(1), ack: 0, scale, flags };
        self.put(direction, begun, Side::default());
    }

    /// Whether a RST answers a segment that was let through unjudged: it is not judged either.
    pub(super) fn is_answer(&self, status: Status, state: TcpState, segment: &TcpSegment<'_>) -> bool {
        let last = status.last();
        let kind = last.map(|(kind, _)| kind);
        let unjudged = (status.seen_reply() && kind == Some(Segment::Syn))
            || (!status.assured() && kind == Some(Segment::Ack));
        (unjudged && segment.acknowledgement == self.last.end)
            || (state == TcpState::SynSent
                && last == Some((Segment::Ack, Direction::Reply))
                && segment.sequence == self.last.ack)
    }

    /// End of the last segment.
    pub(super) fn last_end(&self) -> u32 {
        self.last.end
    }

    /// Whether the last acknowledgement offered no window, or none was seen.
    pub(super) fn offers_none(&self) -> bool {
        self.last.window == 0
    }

    /// How often the last one was repeated.
    pub(super) fn retransmissions(&self) -> u8 {
        self.last.repeated
    }

    /// Whether data of either side waits for its acknowledgement.
    pub(super) fn is_unacknowledged(&self) -> bool {
        self.sides.iter().any(|side| side.has(flag::UNACKNOWLEDGED))
    }

    /// Which sides have acknowledged something.
    pub(super) fn acked(&self) -> [bool; 2] {
        self.sides.map(|side| side.has(flag::ACKED))
    }

    /// What word 7 of the entries keeps.
    pub(super) fn seen(&self) -> [Seen; 2] {
        self.sides.map(|side| Seen { ack: side.ack, end: side.end })
    }

    fn words(&self) -> [u64; 7] {
        let [a, b] = self.sides;
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let last = self.last;
        let bytes =
            [a.scale, a.flags, b.scale, b.flags, last.scale, last.flags, last.repeated, last.direction];
        [
            pair(a.end, a.limit),
            pair(a.window, a.ack),
            pair(b.end, b.limit),
            pair(b.window, b.ack),
            pair(last.sequence, last.ack),
            pair(last.end, u32::from(last.window)),
            u64::from_be_bytes(bytes),
        ]
    }

    fn from_words(words: [u64; 7]) -> Windows {
        let high = |word: u64| (word >> 32) as u32;
        let bytes = words[6].to_be_bytes();
        let side = |first: usize, second: usize, at: usize| Side {
            end: high(words[first]),
            limit: words[first] as u32,
            window: high(words[second]),
            ack: words[second] as u32,
            scale: bytes[at],
            flags: bytes[at + 1],
        };
        Windows {
            sides: [side(0, 1, 0), side(2, 3, 2)],
            last: LastSegment {
                direction: bytes[7],
                sequence: high(words[4]),
                ack: words[4] as u32,
                end: high(words[5]),
                window: words[5] as u16,
                scale: bytes[4],
                flags: bytes[5],
                repeated: bytes[6],
            },
        }
    }
}

/// By connection: a lock, and the words of its [`Windows`]. One line each.
pub(super) struct WindowArray(Array<AtomicU64>);

const WORDS: usize = 8;

impl WindowArray {
    /// Bytes of a connection.
    pub(super) const BYTES: usize = WORDS * 8;

    pub(super) fn new(connections: usize) -> io::Result<WindowArray> {
        let words =
            connections.checked_mul(WORDS).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Array::new(words).map(WindowArray)
    }

    /// Works on the windows of a connection; who comes meanwhile waits for these few instructions.
    pub(super) fn with<T>(&self, connection: u32, work: impl FnOnce(&mut Windows) -> T) -> T {
        let at = connection as usize * WORDS;
        let words = &self.0[at..at + WORDS];
        let mut waits = 0;
        while words[0].compare_exchange_weak(0, 1, Acquire, Relaxed).is_err() {
            crate::sync::relax(&mut waits);
        }
        let mut windows = Windows::from_words(std::array::from_fn(|word| words[word + 1].load(Relaxed)));
        let result = work(&mut windows);
        for (word, value) in words[1..].iter().zip(windows.words()) {
            word.store(value, Relaxed);
        }
        words[0].store(0, Release);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_stored_in_seven_words_and_read_back() {
        let side = |n: u32| Side { end: n, limit: n + 1, window: n + 2, ack: n + 3, scale: 7, flags: 9 };
        let last = LastSegment {
            direction: 1,
            sequence: 1,
            ack: 2,
            end: 3,
            window: 4,
            scale: 5,
            flags: 6,
            repeated: 7,
        };
        let windows = Windows { sides: [side(10), side(20)], last };
        assert_eq!(Windows::from_words(windows.words()), windows);
    }

    #[test]
    fn options_are_read_up_to_the_first_malformed_one() {
        let mut side = Side::default();
        side.read_offer(&[1, 3, 3, 15, 4, 2, 0, 3, 3, 2]);
        assert_eq!((side.scale, side.flags), (14, flag::SCALES | flag::SACK));
        side.read_offer(&[3, 1, 4, 2]);
        assert_eq!((side.scale, side.flags), (0, 0));
        side.read_offer(&[8, 10, 0]);
        assert_eq!((side.scale, side.flags), (0, 0));
        let mut sack = vec![1, 1, 5, 18];
        for block in [(100u32, 200u32), (300, 400)] {
            sack.extend(block.0.to_be_bytes());
            sack.extend(block.1.to_be_bytes());
        }
        assert_eq!(highest_sack(&sack, 50), 400);
        assert_eq!(highest_sack(&sack, 500), 500);
        assert_eq!(highest_sack(&sack[..10], 50), 50);
    }
}
