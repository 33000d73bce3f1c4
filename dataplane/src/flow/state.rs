//! The state that both directions of a connection share: one word, and the function that moves it.
//!
//! `step` is pure: status, direction and what the packet says go in; the next status and the timeout to
//! renew come out. The table applies it with one compare-and-swap, so two workers that see a FIN and a RST at
//! once agree on an order (CT-12). TCP follows `tcp` and `segment`, SCTP its chunks
//! (`sctp`); UDP becomes a stream when both sides have used it for two seconds.

use super::key::{Direction, FlowKey};
use super::sctp::{self, SctpPacket, SctpState};
use super::segment::{self, Memory, TcpSegment};
use super::sysctl::Sysctls;
use super::tcp::{self, Segment, TcpState};
use super::timeout::{Timeout, Timeouts};
use super::window::Windows;
use crate::packet::Packet;
use crate::packet::family::{Family, Protocol};
use crate::packet::parse::Headers;

/// UDP used by both sides for at least so long is a stream (CT-05), milliseconds.
pub(super) const STREAM_AFTER: u32 = 2_000;

/// The protocol's view of a connection; it selects the timeout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// TCP.
    Tcp(TcpState),
    /// UDP, not a stream (yet).
    Udp,
    /// UDP that both sides have used for at least two seconds.
    UdpStream,
    /// An ICMP query.
    Icmp,
    /// An ICMPv6 query.
    Icmpv6,
    /// SCTP.
    Sctp(SctpState),
    /// Any other protocol.
    Generic,
}

impl State {
    /// All states, with the timeout and the name of each, in the order of their codes.
    pub const TABLE: [(State, Timeout, &'static str); 22] = [
        (State::Tcp(TcpState::SynSent), Timeout::TcpSynSent, "SYN_SENT"),
        (State::Tcp(TcpState::SynRecv), Timeout::TcpSynRecv, "SYN_RECV"),
        (State::Tcp(TcpState::Established), Timeout::TcpEstablished, "ESTABLISHED"),
        (State::Tcp(TcpState::FinWait), Timeout::TcpFinWait, "FIN_WAIT"),
        (State::Tcp(TcpState::CloseWait), Timeout::TcpCloseWait, "CLOSE_WAIT"),
        (State::Tcp(TcpState::LastAck), Timeout::TcpLastAck, "LAST_ACK"),
        (State::Tcp(TcpState::TimeWait), Timeout::TcpTimeWait, "TIME_WAIT"),
        (State::Tcp(TcpState::Close), Timeout::TcpClose, "CLOSE"),
        (State::Tcp(TcpState::SynSent2), Timeout::TcpSynSent, "SYN_SENT2"),
        (State::Udp, Timeout::Udp, "UDP"),
        (State::UdpStream, Timeout::UdpStream, "UDP_STREAM"),
        (State::Icmp, Timeout::Icmp, "ICMP"),
        (State::Icmpv6, Timeout::Icmpv6, "ICMPV6"),
        (State::Sctp(SctpState::Closed), Timeout::SctpClosed, "CLOSED"),
        (State::Sctp(SctpState::CookieWait), Timeout::SctpCookieWait, "COOKIE_WAIT"),
        (State::Sctp(SctpState::CookieEchoed), Timeout::SctpCookieEchoed, "COOKIE_ECHOED"),
        (State::Sctp(SctpState::Established), Timeout::SctpEstablished, "ESTABLISHED"),
        (State::Sctp(SctpState::ShutdownSent), Timeout::SctpShutdownSent, "SHUTDOWN_SENT"),
        (State::Sctp(SctpState::ShutdownRecd), Timeout::SctpShutdownRecd, "SHUTDOWN_RECD"),
        (State::Sctp(SctpState::ShutdownAckSent), Timeout::SctpShutdownAckSent, "SHUTDOWN_ACK_SENT"),
        (State::Sctp(SctpState::HeartbeatSent), Timeout::SctpHeartbeatSent, "HEARTBEAT_SENT"),
        (State::Generic, Timeout::Generic, "GENERIC"),
    ];

    /// The timeout of the state.
    #[inline]
    pub fn timeout(self) -> Timeout {
        State::TABLE[usize::from(self.code())].1
    }

    /// The state's name, as conntrack(8) prints it where it prints one.
    pub fn name(self) -> &'static str {
        State::TABLE[usize::from(self.code())].2
    }

    /// All states, in the order of their codes.
    pub fn all() -> impl Iterator<Item = State> {
        State::TABLE.iter().map(|row| row.0)
    }

    #[inline]
    fn code(self) -> u8 {
        match self {
            State::Tcp(state) => state as u8,
            State::Udp => 9,
            State::UdpStream => 10,
            State::Icmp => 11,
            State::Icmpv6 => 12,
            State::Sctp(state) => 13 + state as u8,
            State::Generic => 21,
        }
    }

    #[inline]
    fn from_code(code: u8) -> State {
        State::TABLE.get(usize::from(code)).map_or(State::Generic, |row| row.0)
    }
}

/// What a packet says to its connection, beyond being there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event<'a> {
    /// A TCP segment.
    Tcp(TcpSegment<'a>),
    /// An SCTP packet.
    Sctp(SctpPacket<'a>),
    /// A packet of any other protocol.
    Other,
}

impl<'a> Event<'a> {
    /// What a parsed packet says. Later fragments say nothing.
    #[inline]
    pub fn of<A: Family>(packet: &'a Packet, headers: &Headers<A>) -> Event<'a> {
        let (start, end) = (usize::from(headers.l4), headers.end as usize);
        let transport = || {
            let frame = packet.head();
            frame.get(start..end.min(frame.len())).unwrap_or_default()
        };
        let read = match headers.protocol {
            Protocol::TCP => {
                let len = (end - start) as u32 + u32::from(headers.following);
                TcpSegment::read(transport(), len).map(Event::Tcp)
            }
            Protocol::SCTP => SctpPacket::read(transport()).map(Event::Sctp),
            _ => None,
        };
        read.unwrap_or(Event::Other)
    }

    /// Whether such a packet changes nothing in a connection that is in use in both directions.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Event::Other => true,
            Event::Tcp(segment) => segment.kind == Segment::Ack,
            Event::Sctp(_) => false,
        }
    }
}

/// A packet that belongs to no connection and cannot begin one (CT-02).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalid;

/// The state that the first packet of a connection makes.
///
/// # Errors
/// [`Invalid`] for a TCP segment other than SYN or ACK alone (CT-06; with `tcp_loose` off, other than SYN), for
/// SCTP chunks that begin nothing, and for an ICMP message that is not a query's request.
pub fn first_packet<A: Family>(
    key: &FlowKey<A>,
    event: &Event<'_>,
    sysctls: &Sysctls,
) -> Result<State, Invalid> {
    match key.protocol {
        Protocol::TCP => match event {
            Event::Tcp(segment) => match tcp::first(segment.kind) {
                Some(TcpState::Established) if !sysctls.tcp_loose => Err(Invalid),
                first => first.map(State::Tcp).ok_or(Invalid),
            },
            _ => Err(Invalid),
        },
        Protocol::UDP => Ok(State::Udp),
        Protocol::SCTP => match event {
            Event::Sctp(packet) => sctp::begin(packet).map(|(status, _)| status.state()).ok_or(Invalid),
            _ => Err(Invalid),
        },
        protocol if protocol == A::ICMP => match key.is_icmp_request() {
            true if A::VERSION == 4 => Ok(State::Icmp),
            true => Ok(State::Icmpv6),
            false => Err(Invalid),
        },
        _ => Ok(State::Generic),
    }
}

/// The status of a connection after its first packet, and what is remembered of that.
pub(super) fn begin(state: State, event: &Event<'_>, windows: Option<&mut Windows>) -> (Status, Memory) {
    let status = Status::new(state);
    let mut memory = Memory::default();
    match (state, event) {
        (State::Tcp(_), Event::Tcp(segment)) => {
            let status = segment::begin(status, segment, &mut memory, windows);
            (status, memory)
        }
        (State::Sctp(_), Event::Sctp(packet)) => sctp::begin(packet).unwrap_or((status, memory)),
        _ => (status, memory),
    }
}

/// The timeout that the first packet starts.
pub(super) fn first_timeout(
    status: Status,
    memory: &Memory,
    (sysctls, timeouts): (&Sysctls, &Timeouts),
) -> Timeout {
    match status.state() {
        State::Tcp(state) => {
            let waits = segment::is_unacknowledged(status, memory);
            segment::timeout(status, state, waits, sysctls, timeouts)
        }
        state => state.timeout(),
    }
}

/// The shared state as stored: the state's code and what was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Status(pub(super) u32);

impl Status {
    const CODE: u32 = 0xff;
    /// A packet came back.
    const SEEN_REPLY: u32 = 1 << 8;
    /// Worth keeping when the table is full (CT-09).
    const ASSURED: u32 = 1 << 9;
    /// The deadline is an early one: see [`Status::is_provisional`].
    const PROVISIONAL: u32 = 1 << 10;

    // TCP.
    /// A side sent a FIN while the connection was open.
    const CLOSED: u32 = 1 << 11;
    /// The last segment's kind, plus one; 0 when there was none. Segments of settled connections are not noted.
    const LAST: u32 = 12;
    /// Its direction.
    const LAST_BACK: u32 = 1 << 15;
    /// An acknowledgement was seen in the original direction; in the reply direction.
    const ACKED: [u32; 2] = [1 << 16, 1 << 17];
    /// Likewise: a sequence number.
    const TRACKED: [u32; 2] = [1 << 18, 1 << 19];
    /// Both sides sent a SYN.
    const OPENED_BY_BOTH: u32 = 1 << 20;
    /// A SYN was let through in LAST_ACK.
    const CHALLENGE: u32 = 1 << 21;
    /// The last acknowledgement offered no window.
    const WINDOW_CLOSED: u32 = 1 << 22;
    /// How often the last segment was repeated.
    const RETRANSMISSIONS: u32 = 24;

    // SCTP.
    /// An INIT was seen in the original direction; in the reply direction.
    const INIT: [u32; 2] = [1 << 16, 1 << 17];
    /// A heartbeat had a wrong tag, in the direction of `LAST_BACK`.
    const HEARTBEAT_FAILED: u32 = 1 << 18;

    pub(super) fn new(state: State) -> Status {
        Status(u32::from(state.code()))
    }

    /// Of an SCTP connection that does not begin yet.
    pub(super) fn of_sctp() -> Status {
        Status::new(State::Sctp(SctpState::Closed))
    }

    pub(super) fn state(self) -> State {
        State::from_code((self.0 & Self::CODE) as u8)
    }

    fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    pub(super) fn seen_reply(self) -> bool {
        self.has(Self::SEEN_REPLY)
    }

    pub(super) fn assured(self) -> bool {
        self.has(Self::ASSURED)
    }

    /// What a packet of the direction adds: a packet came back, or nothing.
    pub(super) fn seen_in(direction: Direction) -> u32 {
        match direction {
            Direction::Original => 0,
            Direction::Reply => Self::SEEN_REPLY,
        }
    }

    /// Whether plain packets of either direction change nothing but the last use.
    pub(super) fn is_settled(self) -> bool {
        self.seen_reply()
            && match self.state() {
                State::Tcp(TcpState::Established) => {
                    self.assured() && !self.has(Self::WINDOW_CLOSED) && self.retransmissions() == 0
                }
                State::Tcp(_) | State::Sctp(_) => false,
                State::Udp | State::UdpStream | State::Icmp | State::Icmpv6 | State::Generic => true,
            }
    }

    /// The deadline of a settled TCP connection is set as if data waited for its acknowledgement: whether any
    /// does is asked when it comes, since the packets in between are not looked at so closely. If none does, it
    /// moves to where the connection's own timeout ends.
    pub(super) fn is_provisional(self) -> bool {
        self.has(Self::PROVISIONAL)
    }

    pub(super) fn provisional(self, early: bool) -> Status {
        self.put(Self::PROVISIONAL, early)
    }

    /// Whether `next` is another state to who looks at connections from outside.
    pub(super) fn differs_for_people(self, next: Status) -> bool {
        (self.0 ^ next.0) & (Self::CODE | Self::SEEN_REPLY | Self::ASSURED) != 0
    }

    pub(super) fn is_closed(self) -> bool {
        self.has(Self::CLOSED)
    }

    pub(super) fn closed(self) -> Status {
        self.set(Self::CLOSED)
    }

    pub(super) fn assure(self) -> Status {
        self.set(Self::ASSURED)
    }

    /// Kind and direction of the last segment that was noted.
    pub(super) fn last(self) -> Option<(Segment, Direction)> {
        let kind = match self.0 >> Self::LAST & 7 {
            1 => Segment::Syn,
            2 => Segment::SynAck,
            3 => Segment::Fin,
            4 => Segment::Ack,
            5 => Segment::Rst,
            6 => Segment::Nothing,
            _ => return None,
        };
        let back = self.has(Self::LAST_BACK);
        Some((kind, if back { Direction::Reply } else { Direction::Original }))
    }

    pub(super) fn with_last(self, kind: Segment, direction: Direction) -> Status {
        let kept = Status(self.0 & !(7 << Self::LAST) | (kind as u32 + 1) << Self::LAST);
        kept.put(Self::LAST_BACK, direction == Direction::Reply)
    }

    pub(super) fn is_acked(self, direction: Direction) -> bool {
        self.has(Self::ACKED[direction as usize])
    }

    pub(super) fn acked(self, direction: Direction) -> Status {
        self.set(Self::ACKED[direction as usize])
    }

    pub(super) fn with_acks(self, acked: [bool; 2]) -> Status {
        self.put(Self::ACKED[0], acked[0]).put(Self::ACKED[1], acked[1])
    }

    pub(super) fn is_tracked(self, direction: Direction) -> bool {
        self.has(Self::TRACKED[direction as usize])
    }

    pub(super) fn tracked(self, direction: Direction) -> Status {
        self.set(Self::TRACKED[direction as usize])
    }

    /// The two ends have begun anew.
    pub(super) fn forget_numbers(self) -> Status {
        let numbers = Self::ACKED[0] | Self::ACKED[1] | Self::TRACKED[0] | Self::TRACKED[1];
        self.clear(numbers | Self::CLOSED | Self::CHALLENGE)
    }

    pub(super) fn is_opened_by_both(self) -> bool {
        self.has(Self::OPENED_BY_BOTH)
    }

    pub(super) fn opened_by_both(self) -> Status {
        self.set(Self::OPENED_BY_BOTH)
    }

    pub(super) fn expects_challenge(self) -> bool {
        self.has(Self::CHALLENGE)
    }

    pub(super) fn challenged(self) -> Status {
        self.clear(Self::CHALLENGE)
    }

    pub(super) fn after_ignored_syn(self, challenge: bool) -> Status {
        self.clear(Self::OPENED_BY_BOTH).put(Self::CHALLENGE, challenge)
    }

    pub(super) fn is_window_closed(self) -> bool {
        self.has(Self::WINDOW_CLOSED)
    }

    pub(super) fn window_closed(self, closed: bool) -> Status {
        self.put(Self::WINDOW_CLOSED, closed)
    }

    pub(super) fn retransmissions(self) -> u8 {
        (self.0 >> Self::RETRANSMISSIONS) as u8
    }

    pub(super) fn with_retransmissions(self, count: u8) -> Status {
        let mask = u32::from(u8::MAX) << Self::RETRANSMISSIONS;
        Status(self.0 & !mask | u32::from(count) << Self::RETRANSMISSIONS)
    }

    pub(super) fn init(self) -> [bool; 2] {
        Self::INIT.map(|bit| self.has(bit))
    }

    pub(super) fn with_init(self, init: [bool; 2]) -> Status {
        self.put(Self::INIT[0], init[0]).put(Self::INIT[1], init[1])
    }

    pub(super) fn failed_heartbeat(self) -> Option<Direction> {
        let direction = if self.has(Self::LAST_BACK) { Direction::Reply } else { Direction::Original };
        self.has(Self::HEARTBEAT_FAILED).then_some(direction)
    }

    pub(super) fn heartbeat_failed(self, direction: Option<Direction>) -> Status {
        self.put(Self::HEARTBEAT_FAILED, direction.is_some())
            .put(Self::LAST_BACK, direction == Some(Direction::Reply))
    }

    /// Neither state nor time changes.
    pub(super) fn ignored(self) -> Effect {
        Effect::Forward(self, None)
    }

    fn put(self, bits: u32, on: bool) -> Status {
        if on { self.set(bits) } else { self.clear(bits) }
    }

    pub(super) fn with(self, state: State) -> Status {
        Status(self.0 & !Self::CODE | u32::from(state.code()))
    }

    pub(super) fn set(self, bits: u32) -> Status {
        Status(self.0 | bits)
    }

    fn clear(self, bits: u32) -> Status {
        Status(self.0 & !bits)
    }
}

/// What a packet does to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    /// Forward. The timeout, if one is given, begins anew.
    Forward(Status, Option<Timeout>),
    /// Forward; it was the last packet, the connection is to be removed.
    Last,
    /// The connection is over and this packet opens a new one: remove it, look up again.
    Reopen,
    /// Neither forward nor translate.
    Invalid,
    /// Likewise, but it is remembered; and the connection lives no longer than the timeout, if one is given.
    Doubt(Status, Option<Timeout>),
}

/// Moves a connection by one packet. `age` is the time since its first packet, in milliseconds. `memory` and
/// `windows` are changed with it, to be kept when the effect is carried out.
pub(super) fn step(
    status: Status,
    direction: Direction,
    event: &Event<'_>,
    age: u32,
    memory: &mut Memory,
    windows: Option<&mut Windows>,
    (sysctls, timeouts): (&Sysctls, &Timeouts),
) -> Effect {
    // A packet back is seen after it was judged: the first answer still runs on the timeout of a connection
    // without one, as in the kernel.
    let seen = Status::seen_in(direction);
    match (status.state(), event) {
        (State::Tcp(state), Event::Tcp(tcp)) => {
            segment::step(status, state, direction, tcp, memory, windows, sysctls, timeouts)
        }
        (State::Sctp(state), Event::Sctp(packet)) => sctp::step(status, state, direction, packet, memory),
        (State::Tcp(_) | State::Sctp(_), _) => Effect::Invalid,
        (State::Udp, _) if status.seen_reply() && age >= STREAM_AFTER => Effect::Forward(
            status.with(State::UdpStream).set(Status::ASSURED | seen),
            Some(Timeout::UdpStream),
        ),
        (state, _) => Effect::Forward(status.set(seen), Some(state.timeout())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_states_are_one_to_one() {
        for (code, (state, ..)) in State::TABLE.iter().enumerate() {
            assert_eq!(usize::from(state.code()), code);
            assert_eq!(State::from_code(code as u8), *state);
        }
    }
}
