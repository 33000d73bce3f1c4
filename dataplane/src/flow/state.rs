//! The state that both directions of a connection share: one word, and the function that moves it.
//!
//! `step` is pure: status, direction and what the packet says go in; the next status and the timeout to
//! renew come out. The table applies it with one compare-and-swap, so two workers that see a FIN and a RST at
//! once agree on an order (CT-12). TCP follows `tcp`; UDP becomes a stream when both sides have
//! used it for two seconds; SCTP is followed by who speaks, not yet by its chunks.

use super::key::{Direction, FlowKey};
use super::tcp::{self, Segment, TcpState, Transition};
use super::timeout::Timeout;
use crate::packet::family::{Family, Protocol};

/// UDP used by both sides for at least so long is a stream (CT-05), milliseconds.
pub(super) const STREAM_AFTER: u32 = 2_000;

/// An SCTP state of a connection, as the speakers alone show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SctpState {
    /// One side spoke (INIT).
    CookieWait,
    /// The other answered, and the first spoke again (COOKIE ECHO).
    CookieEchoed,
    /// The other answered that too (COOKIE ACK).
    Established,
}

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
    const TABLE: [(State, Timeout, &'static str); 17] = [
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
        (State::Sctp(SctpState::CookieWait), Timeout::SctpCookieWait, "COOKIE_WAIT"),
        (State::Sctp(SctpState::CookieEchoed), Timeout::SctpCookieEchoed, "COOKIE_ECHOED"),
        (State::Sctp(SctpState::Established), Timeout::SctpEstablished, "ESTABLISHED"),
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
            State::Generic => 16,
        }
    }

    #[inline]
    fn from_code(code: u8) -> State {
        State::TABLE.get(usize::from(code)).map_or(State::Generic, |row| row.0)
    }
}

/// What a packet says to its connection, beyond being there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A TCP segment.
    Tcp(Segment),
    /// A packet of any other protocol.
    Other,
}

impl Event {
    /// The event of a packet of `protocol`; `tcp_flags` is the flags byte of the TCP header, and is not
    /// looked at for other protocols.
    #[inline]
    pub fn new(protocol: Protocol, tcp_flags: u8) -> Event {
        if protocol == Protocol::TCP { Event::Tcp(Segment::of(tcp_flags)) } else { Event::Other }
    }

    /// Whether such a packet changes nothing in a connection that is in use in both directions.
    #[inline]
    pub(super) fn is_plain(self) -> bool {
        matches!(self, Event::Other | Event::Tcp(Segment::Ack))
    }
}

/// A packet that belongs to no connection and cannot begin one (CT-02).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalid;

/// The state that the first packet of a connection makes.
///
/// # Errors
/// [`Invalid`] for a TCP segment other than SYN or ACK alone (CT-06), and for an ICMP message that is not a
/// query's request.
pub fn first_packet<A: Family>(key: &FlowKey<A>, event: Event) -> Result<State, Invalid> {
    match key.protocol {
        Protocol::TCP => match event {
            Event::Tcp(segment) => tcp::first(segment).map(State::Tcp).ok_or(Invalid),
            Event::Other => Err(Invalid),
        },
        Protocol::UDP => Ok(State::Udp),
        Protocol::SCTP => Ok(State::Sctp(SctpState::CookieWait)),
        protocol if protocol == A::ICMP => match key.is_icmp_request() {
            true if A::VERSION == 4 => Ok(State::Icmp),
            true => Ok(State::Icmpv6),
            false => Err(Invalid),
        },
        _ => Ok(State::Generic),
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
    /// TCP: a side sent a FIN while the connection was open.
    const CLOSED: u32 = 1 << 10;
    /// TCP: the last segment was a RST in the original direction, or in the reply direction.
    const LAST_RST: [u32; 2] = [1 << 11, 1 << 12];

    pub(super) fn new(state: State) -> Status {
        Status(u32::from(state.code()))
    }

    pub(super) fn state(self) -> State {
        State::from_code((self.0 & Self::CODE) as u8)
    }

    pub(super) fn seen_reply(self) -> bool {
        self.0 & Self::SEEN_REPLY != 0
    }

    pub(super) fn assured(self) -> bool {
        self.0 & Self::ASSURED != 0
    }

    /// Whether plain packets of either direction change nothing but the last use.
    pub(super) fn is_settled(self) -> bool {
        self.seen_reply()
            && match self.state() {
                State::Tcp(TcpState::Established) => self.assured(),
                State::Tcp(_) => false,
                State::Sctp(state) => state == SctpState::Established,
                State::Udp | State::UdpStream | State::Icmp | State::Icmpv6 | State::Generic => true,
            }
    }

    /// The timeout that the first packet starts.
    pub(super) fn first_timeout(self) -> Timeout {
        match self.state() {
            State::Tcp(TcpState::Established) => Timeout::TcpUnack,
            state => state.timeout(),
        }
    }

    /// The timeout that its time runs on now.
    pub(super) fn timeout(self) -> Timeout {
        if self.seen_reply() { self.state().timeout() } else { self.first_timeout() }
    }

    /// Whether `next` is another state to who looks at connections from outside.
    pub(super) fn differs_for_people(self, next: Status) -> bool {
        (self.0 ^ next.0) & (Self::CODE | Self::SEEN_REPLY | Self::ASSURED) != 0
    }

    fn with(self, state: State) -> Status {
        Status(self.0 & !Self::CODE | u32::from(state.code()))
    }

    fn set(self, bits: u32) -> Status {
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
}

/// Moves a connection by one packet. `age` is the time since its first packet, in milliseconds.
pub(super) fn step(status: Status, direction: Direction, event: Event, age: u32) -> Effect {
    // A packet back is seen after it was judged: the first answer still runs on the timeout of a connection
    // without one, as in the kernel.
    let seen = match direction {
        Direction::Original => 0,
        Direction::Reply => Status::SEEN_REPLY,
    };
    match (status.state(), event) {
        (State::Tcp(state), Event::Tcp(segment)) => step_tcp(status, state, direction, segment, seen),
        (State::Tcp(_), Event::Other) => Effect::Invalid,
        (State::Udp, _) if status.seen_reply() && age >= STREAM_AFTER => Effect::Forward(
            status.with(State::UdpStream).set(Status::ASSURED | seen),
            Some(Timeout::UdpStream),
        ),
        (State::Sctp(state), _) => {
            let next = match (state, direction) {
                (SctpState::CookieWait, Direction::Original) if status.seen_reply() => {
                    SctpState::CookieEchoed
                }
                (SctpState::CookieEchoed, Direction::Reply) => SctpState::Established,
                (state, _) => state,
            };
            let assured = match next {
                SctpState::Established => Status::ASSURED,
                SctpState::CookieWait | SctpState::CookieEchoed => 0,
            };
            let next = State::Sctp(next);
            Effect::Forward(status.with(next).set(assured | seen), Some(next.timeout()))
        }
        (state, _) => Effect::Forward(status.set(seen), Some(state.timeout())),
    }
}

fn step_tcp(status: Status, state: TcpState, direction: Direction, segment: Segment, seen: u32) -> Effect {
    let last_rst = Status::LAST_RST[direction as usize];
    let both = Status::LAST_RST[0] | Status::LAST_RST[1];
    let next = match tcp::transition(state, direction, segment) {
        Transition::Invalid => return Effect::Invalid,
        Transition::Ignore => return Effect::Forward(status.clear(both).set(seen), None),
        Transition::To(TcpState::SynSent) if state >= TcpState::TimeWait => {
            if status.0 & (Status::CLOSED | last_rst) != 0 {
                return Effect::Reopen;
            }
            return Effect::Forward(status.clear(both).set(seen), None);
        }
        Transition::To(next) => next,
    };
    let mut moved = status.with(State::Tcp(next)).clear(both);
    if segment == Segment::Rst {
        moved = moved.set(last_rst);
    }
    if next == TcpState::FinWait && state != TcpState::FinWait {
        moved = moved.set(Status::CLOSED);
    }
    let mut timeout = State::Tcp(next).timeout();
    if !status.seen_reply() {
        if segment == Segment::Rst {
            return Effect::Last;
        }
        if segment == Segment::Syn && state == TcpState::SynSent && direction == Direction::Original {
            // Otherwise a client that only repeats its SYN keeps the entry, and its translation, for ever.
            return Effect::Forward(moved, None);
        }
        if next == TcpState::Established {
            timeout = Timeout::TcpUnack;
        }
    } else if next == TcpState::Established && matches!(state, TcpState::SynRecv | TcpState::Established) {
        moved = moved.set(Status::ASSURED);
    }
    Effect::Forward(moved.set(seen), Some(timeout))
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
