//! One TCP segment against its connection: the machine of `tcp`, and what sequence numbers have to
//! say about it (CT-05 to CT-07).
//!
//! Of each direction the highest acknowledgement and the end of the last segment are kept ([`Seen`]), in the
//! entry that its packets read anyway. That tells a RST that is plausible from a blind one, data that nobody has
//! acknowledged, and a SYN-ACK that answers a SYN which was ignored. Where windows are tracked too, `window`
//! judges each segment; where they are not, every segment is taken for one within its window.

use super::key::Direction;
use super::state::{Effect, Status};
use super::sysctl::Sysctls;
use super::tcp::{self, Segment, TcpState, Transition};
use super::timeout::{Timeout, Timeouts};
use super::window::{Verdict, Windows};
use crate::packet::transport::{TCP_LEN, Tcp, TcpFlags};

/// What a TCP segment says to its connection. Numbers are in host order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TcpSegment<'a> {
    /// What it means to the state machine.
    pub kind: Segment,
    /// Its sequence number.
    pub sequence: u32,
    /// The field of the acknowledgement number.
    pub acknowledgement: u32,
    /// Whether that number counts: the flag ACK.
    pub acknowledges: bool,
    /// The sequence number behind its data, SYN and FIN.
    pub end: u32,
    /// The window, not scaled.
    pub window: u16,
    /// The bytes of its options.
    pub options: &'a [u8],
}

impl<'a> TcpSegment<'a> {
    /// Reads the header at the start of `bytes`, which hold it whole, of a segment of `len` bytes, header
    /// included. Nothing when they do not.
    #[inline]
    pub fn read(bytes: &'a [u8], len: u32) -> Option<TcpSegment<'a>> {
        let tcp = Tcp::new_checked(bytes)?;
        let options = bytes.get(TCP_LEN..tcp.header_len())?;
        let flags = tcp.flags();
        let counted = u32::from(flags.contains(TcpFlags::SYN)) + u32::from(flags.contains(TcpFlags::FIN));
        let data = len.saturating_sub(tcp.header_len() as u32);
        Some(TcpSegment {
            kind: Segment::of(flags.0),
            sequence: tcp.sequence(),
            acknowledgement: tcp.acknowledgement(),
            acknowledges: flags.contains(TcpFlags::ACK),
            end: tcp.sequence().wrapping_add(data + counted),
            window: tcp.window(),
            options,
        })
    }

    /// Its numbers, as [`FlowTable::follow`](super::FlowTable::follow) takes them.
    #[inline]
    pub(super) fn numbers(&self) -> u64 {
        Seen { end: self.end, ack: self.acknowledgement }.word()
    }

    /// Whether it has the flag SYN.
    pub(super) fn is_syn(&self) -> bool {
        matches!(self.kind, Segment::Syn | Segment::SynAck)
    }
}

/// Whether `a` lies behind `b` in sequence space (RFC 9293, section 3.4).
#[inline(always)]
pub(super) fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// What was seen of one direction. As a word: the end in the upper half, the acknowledgement in the lower, in the
/// order of a TCP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    /// The highest acknowledgement.
    pub(super) ack: u32,
    /// The highest end of a segment.
    pub(super) end: u32,
}

impl Seen {
    #[inline(always)]
    pub(super) fn of(word: u64) -> Seen {
        Seen { end: (word >> 32) as u32, ack: word as u32 }
    }

    #[inline(always)]
    pub(super) fn word(self) -> u64 {
        u64::from(self.end) << 32 | u64::from(self.ack)
    }

    /// After a segment of a connection in use: the higher of both.
    pub(super) fn with(self, segment: Seen) -> Seen {
        Seen {
            end: if after(segment.end, self.end) { segment.end } else { self.end },
            ack: if after(segment.ack, self.ack) { segment.ack } else { self.ack },
        }
    }
}

/// What a connection remembers beside its status, by direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Memory {
    /// Word 7 of the entries. TCP: [`Seen`]. SCTP: the verification tag.
    pub(super) words: [u64; 2],
    /// The scratch of the entries. TCP: of the last segment, its end if it was ignored, else a fingerprint to
    /// know a repeated one by. UDP: the time of the first packet, in the first.
    pub(super) notes: [u32; 2],
}

impl Memory {
    pub(super) fn seen(&self, direction: Direction) -> Seen {
        Seen::of(self.words[direction as usize])
    }

    fn set_seen(&mut self, direction: Direction, seen: Seen) {
        self.words[direction as usize] = seen.word();
    }
}

/// Whether data of either direction waits for its acknowledgement.
pub(super) fn is_unacknowledged(status: Status, memory: &Memory) -> bool {
    [Direction::Original, Direction::Reply].into_iter().any(|direction| {
        let back = direction.reverse();
        status.is_tracked(direction)
            && status.is_acked(back)
            && after(memory.seen(direction).end, memory.seen(back).ack)
    })
}

/// The timeout of a connection in `state` (CT-05): that of the state, or what caps it.
pub(super) fn timeout(
    status: Status,
    state: TcpState,
    unacknowledged: bool,
    sysctls: &Sysctls,
    timeouts: &Timeouts,
) -> Timeout {
    let own = super::State::Tcp(state).timeout();
    let caps = |cap: Timeout| timeouts.millis(own) > timeouts.millis(cap);
    let class = if status.retransmissions() >= sysctls.tcp_max_retrans && caps(Timeout::TcpRetrans) {
        Timeout::TcpRetrans
    } else if status.last().is_some_and(|(kind, _)| kind == Segment::Rst) {
        Timeout::TcpClose
    } else if unacknowledged && caps(Timeout::TcpUnack) {
        Timeout::TcpUnack
    } else if status.is_window_closed() && caps(Timeout::TcpRetrans) {
        Timeout::TcpRetrans
    } else {
        own
    };
    let picked_up = !status.seen_reply() && state == TcpState::Established;
    if picked_up && timeouts.millis(class) > timeouts.millis(Timeout::TcpUnack) {
        return Timeout::TcpUnack;
    }
    class
}

/// What the first segment of a connection leaves behind.
pub(super) fn begin(
    status: Status,
    segment: &TcpSegment<'_>,
    memory: &mut Memory,
    windows: Option<&mut Windows>,
) -> Status {
    let direction = Direction::Original;
    memory.set_seen(direction, Seen { ack: 0, end: segment.end });
    // What window there is, an acknowledgement of what was seen will say.
    let status = status.with_last(segment.kind, direction).tracked(direction).window_closed(true);
    if let Some(windows) = windows {
        windows.begin(segment);
    }
    status
}

/// Moves a connection by one segment. `seen` is what a packet of its direction adds to the status.
#[allow(clippy::too_many_arguments, reason = "a connection is in so many places")]
pub(super) fn step(
    status: Status,
    state: TcpState,
    direction: Direction,
    segment: &TcpSegment<'_>,
    memory: &mut Memory,
    mut windows: Option<&mut Windows>,
    sysctls: &Sysctls,
    timeouts: &Timeouts,
) -> Effect {
    let seen = Status::seen_in(direction);
    let back = direction.reverse();
    let (kind, last) = (segment.kind, status.last());
    let mut moved = status;
    let mut old = state;
    let mut next;
    match tcp::transition(state, direction, kind) {
        Transition::Invalid => return Effect::Invalid,
        Transition::To(TcpState::SynSent)
            if state >= TcpState::TimeWait
                && (status.is_closed() || last == Some((Segment::Rst, direction))) =>
        {
            return Effect::Reopen;
        }
        Transition::To(to) if to != TcpState::SynSent || state < TcpState::TimeWait => next = to,
        Transition::To(_) | Transition::Ignore => {
            let answers = kind == Segment::SynAck
                && last == Some((Segment::Syn, back))
                && segment.acknowledgement == memory.notes[back as usize];
            if !answers {
                return ignore(status, state, direction, segment, memory, windows).set(seen).ignored();
            }
            // Both ends agree on a new connection, begun by a SYN that fitted nothing here.
            (old, next) = (TcpState::SynSent, TcpState::SynRecv);
            moved = moved.forget_numbers().tracked(back);
            memory.set_seen(back, Seen { ack: 0, end: segment.acknowledgement });
            memory.set_seen(direction, Seen::default());
            if let Some(windows) = windows.as_deref_mut() {
                windows.resume(back);
            }
        }
    }
    match next {
        // RFC 5961: the answer to a SYN that was ignored acknowledges no FIN.
        TcpState::TimeWait
            if old == TcpState::LastAck
                && kind == Segment::Ack
                && last == Some((Segment::Syn, back))
                && status.expects_challenge() =>
        {
            return status.challenged().set(seen).ignored();
        }
        TcpState::SynSent2 => moved = moved.opened_by_both(),
        TcpState::SynRecv
            if direction == Direction::Reply && kind == Segment::Ack && status.is_opened_by_both() =>
        {
            next = TcpState::Established;
        }
        _ => {}
    }
    let mut within = false;
    if kind == Segment::Rst && next == TcpState::Close {
        match reset(status, old, direction, segment, memory, windows.as_deref(), sysctls) {
            Reset::Implausible => return Effect::Invalid,
            Reset::Close => {}
            // A challenge may follow. Who guesses must not shorten the connection's life either, as long as it
            // is not known to be within the window.
            Reset::Challenge if windows.is_none() => return Effect::Forward(status.set(seen), None),
            Reset::Challenge => next = old,
        }
        within = windows.as_deref().is_some_and(|windows| windows.is_answer(status, old, segment));
    }
    let verdict = match windows.as_deref_mut() {
        Some(windows) if !within => windows.judge(state, direction, segment),
        _ => Verdict::Accept,
    };
    match verdict {
        Verdict::Accept => {}
        Verdict::Ignore => {
            keep(windows.as_deref(), memory);
            return Effect::Forward(status.set(seen), None);
        }
        Verdict::Invalid => return refuse(status, direction, kind),
    }
    match windows.as_deref() {
        Some(tracked) => {
            keep(Some(tracked), memory);
            moved = moved.with_acks(tracked.acked()).tracked(direction);
            if kind == Segment::Ack {
                moved = moved.with_retransmissions(tracked.retransmissions());
                moved = moved.window_closed(tracked.offers_none());
            }
        }
        None => moved = follow(moved, state, direction, segment, memory),
    }
    moved = moved.with_last(kind, direction).with(super::State::Tcp(next));
    if next == TcpState::FinWait && old != TcpState::FinWait {
        moved = moved.closed();
    }
    if !status.seen_reply() {
        if kind == Segment::Rst {
            return Effect::Last;
        }
        if kind == Segment::Syn && old == TcpState::SynSent {
            // Otherwise a client that only repeats its SYN keeps the entry, and its translation, for ever.
            return Effect::Forward(moved.set(seen), None);
        }
    } else if next == TcpState::Established && matches!(old, TcpState::SynRecv | TcpState::Established) {
        moved = moved.assure();
    }
    let unacknowledged = match windows.as_deref() {
        Some(windows) => windows.is_unacknowledged(),
        None => is_unacknowledged(moved, memory),
    };
    // A reply is seen after it was judged: the first one still runs on the timeout of a connection without.
    let timeout = timeout(moved, next, unacknowledged, sysctls, timeouts);
    Effect::Forward(moved.set(seen), Some(timeout))
}

/// A segment that is let through and changes nothing but the memory of it.
fn ignore(
    status: Status,
    state: TcpState,
    direction: Direction,
    segment: &TcpSegment<'_>,
    memory: &mut Memory,
    windows: Option<&mut Windows>,
) -> Status {
    memory.notes[direction as usize] = segment.end;
    if let Some(windows) = windows {
        windows.note(state, direction, segment);
    }
    let status = status.with_last(segment.kind, direction);
    if segment.kind == Segment::Syn && direction == Direction::Original {
        return status.after_ignored_syn(state == TcpState::LastAck);
    }
    status
}

/// What is to be thought of a RST (CT-07).
enum Reset {
    Close,
    /// Its number is possible, but not the one that the receiver waits for.
    Challenge,
    /// Below what the receiver has acknowledged already.
    Implausible,
}

fn reset(
    status: Status,
    state: TcpState,
    direction: Direction,
    segment: &TcpSegment<'_>,
    memory: &Memory,
    windows: Option<&Windows>,
    sysctls: &Sysctls,
) -> Reset {
    let back = direction.reverse();
    // A connection that is ending may be in use again by its two ends.
    let ending = matches!(
        state,
        TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck | TcpState::TimeWait | TcpState::Close
    );
    if ending || !status.is_acked(back) {
        return Reset::Close;
    }
    // The refusal of a SYN that was let through beside this connection: its sender must hear of it, or it waits until
    // its time is over. But both can be forged by who guesses no number: the connection stays.
    if status.last() == Some((Segment::Syn, back))
        && segment.acknowledges
        && segment.acknowledgement == memory.notes[back as usize]
    {
        return Reset::Challenge;
    }
    let acknowledged = memory.seen(back).ack;
    let established = state == TcpState::Established && status.assured();
    if segment.sequence == 0 && !established {
        // Most likely the answer to a SYN.
        return Reset::Close;
    }
    if after(acknowledged, segment.sequence) && !sysctls.tcp_ignore_invalid_rst {
        return Reset::Implausible;
    }
    if !established || segment.sequence == acknowledged {
        return Reset::Close;
    }
    let continues = match windows {
        Some(windows) => {
            status.last() == Some((Segment::Ack, direction)) && segment.sequence == windows.last_end()
        }
        None => status.is_tracked(direction) && segment.sequence == memory.seen(direction).end,
    };
    if continues { Reset::Close } else { Reset::Challenge }
}

/// A FIN or a RST outside of the window: the two ends may know better than we do. Two of them, from both sides,
/// leave a connection that is assured no more time than unacknowledged data.
fn refuse(status: Status, direction: Direction, kind: Segment) -> Effect {
    if !status.assured() || !matches!(kind, Segment::Fin | Segment::Rst) {
        return Effect::Invalid;
    }
    match status.last() {
        Some((Segment::Fin | Segment::Rst, last)) if last != direction => {
            Effect::Doubt(status, Some(Timeout::TcpUnack))
        }
        _ => Effect::Doubt(status.with_last(kind, direction), None),
    }
}

/// Takes over what the windows' tracking says of each direction.
fn keep(windows: Option<&Windows>, memory: &mut Memory) {
    if let Some(windows) = windows {
        memory.words = windows.seen().map(Seen::word);
    }
}

/// Takes the numbers of a segment whose window is not looked at.
fn follow(
    status: Status,
    state: TcpState,
    direction: Direction,
    segment: &TcpSegment<'_>,
    memory: &mut Memory,
) -> Status {
    let mut status = status;
    let mut own = memory.seen(direction);
    let opening = segment.is_syn() && matches!(state, TcpState::SynSent | TcpState::SynRecv);
    if !status.is_tracked(direction) {
        status = status.tracked(direction);
        own.end = segment.end;
    } else if after(segment.end, own.end) && (segment.kind != Segment::Rst || opening) {
        own.end = segment.end;
    }
    let back = direction.reverse();
    let plausible = status.is_tracked(back) && !after(segment.acknowledgement, memory.seen(back).end);
    if segment.acknowledges
        && plausible
        && (!status.is_acked(direction) || after(segment.acknowledgement, own.ack))
    {
        status = status.acked(direction);
        own.ack = segment.acknowledgement;
    }
    memory.set_seen(direction, own);
    if segment.kind != Segment::Ack || !plausible {
        return status;
    }
    // The same again, and nothing has moved in between in either direction.
    let fingerprint = fingerprint(segment, memory, direction);
    let repeated =
        status.last() == Some((Segment::Ack, direction)) && memory.notes[direction as usize] == fingerprint;
    memory.notes[direction as usize] = fingerprint;
    let count = if repeated { status.retransmissions().saturating_add(1) } else { 0 };
    status.with_retransmissions(count).window_closed(segment.window == 0)
}

/// A number that two segments share when they are the same and nothing has moved in between.
fn fingerprint(segment: &TcpSegment<'_>, memory: &Memory, direction: Direction) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let parts = [
        u64::from(segment.sequence) << 32 | u64::from(segment.acknowledgement),
        u64::from(segment.end) << 16 | u64::from(segment.window),
        memory.words[direction as usize],
        memory.words[direction.reverse() as usize],
    ];
    let mixed = parts.into_iter().fold(ODD, |mixed, part| {
        let mixed = (mixed ^ part).wrapping_mul(ODD);
        mixed ^ mixed >> 29
    });
    (mixed >> 32) as u32
}
