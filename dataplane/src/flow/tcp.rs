//! The TCP states of a connection, as an observer between the two ends sees them (CT-06).
//!
//! ```text
//!            SYN            SYN-ACK            ACK
//! (nothing) ────→ SYN_SENT ────────→ SYN_RECV ────→ ESTABLISHED ←── ACK alone, picked up
//!                    │ SYN back                         │ FIN
//!                    ↓                                  ↓
//!                SYN_SENT2 ──SYN-ACK──→ SYN_RECV     FIN_WAIT ──FIN back──→ LAST_ACK
//!                                                       │ ACK                  ↑  │ ACK
//!                                                       ↓                      │  ↓
//!                                                   CLOSE_WAIT ─────FIN────────┘ TIME_WAIT
//!   RST in any state: CLOSE.  SYN in TIME_WAIT or CLOSE: a new connection.
//! ```
//!
//! The whole machine is [`TRANSITIONS`], the table of the kernel's tracker, which knows what real programs
//! and real losses do. Sequence numbers are not looked at here.

use super::key::Direction;

/// A TCP state of a connection. The numbers are columns of [`TRANSITIONS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum TcpState {
    /// A SYN was seen.
    SynSent,
    /// A SYN-ACK answered it.
    SynRecv,
    /// The handshake is done, or a segment without one was picked up.
    Established,
    /// One side sent a FIN.
    FinWait,
    /// That FIN was acknowledged; the other side may still send.
    CloseWait,
    /// Both sides sent a FIN.
    LastAck,
    /// The last FIN was acknowledged.
    TimeWait,
    /// A RST ended it.
    Close,
    /// Both sides sent a SYN (simultaneous open).
    SynSent2,
}

/// What a segment means to the state machine. The numbers are rows of [`TRANSITIONS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Segment {
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// FIN.
    Fin,
    /// ACK, with data or without.
    Ack,
    /// RST.
    Rst,
    /// None of these flags.
    Nothing,
}

impl Segment {
    /// Reads the flags byte of a TCP header. RST goes before SYN, SYN before FIN, FIN before ACK.
    #[inline]
    pub const fn of(flags: u8) -> Segment {
        const FIN: u8 = 0x01;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        if flags & RST != 0 {
            Segment::Rst
        } else if flags & SYN != 0 {
            if flags & ACK != 0 { Segment::SynAck } else { Segment::Syn }
        } else if flags & FIN != 0 {
            Segment::Fin
        } else if flags & ACK != 0 {
            Segment::Ack
        } else {
            Segment::Nothing
        }
    }
}

/// What a segment does to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// The state that follows (often the same one); the timeout is renewed.
    To(TcpState),
    /// Forwarded, but nothing changes, not even the timeout: if it is not valid, the receiver will say so.
    Ignore,
    /// Belongs to no connection in this state.
    Invalid,
}

const fn to(state: TcpState) -> Transition {
    Transition::To(state)
}
const SS: Transition = to(TcpState::SynSent);
const SR: Transition = to(TcpState::SynRecv);
const ES: Transition = to(TcpState::Established);
const FW: Transition = to(TcpState::FinWait);
const CW: Transition = to(TcpState::CloseWait);
const LA: Transition = to(TcpState::LastAck);
const TW: Transition = to(TcpState::TimeWait);
const CL: Transition = to(TcpState::Close);
const S2: Transition = to(TcpState::SynSent2);
const IG: Transition = Transition::Ignore;
const IV: Transition = Transition::Invalid;

/// What follows, by direction, [`Segment`] and [`TcpState`].
#[rustfmt::skip]
pub const TRANSITIONS: [[[Transition; 9]; 6]; 2] = [
    // Original direction
    //               SYN_SENT SYN_RECV ESTAB FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSE SYN_SENT2
    [
        /* SYN     */ [SS,      IG,      IG,   IG,      IG,        IG,      SS,       SS,   S2],
        /* SYN-ACK */ [IV,      SR,      IV,   IV,      IV,        IV,      IV,       IV,   SR],
        /* FIN     */ [IV,      FW,      FW,   LA,      LA,        LA,      TW,       CL,   IV],
        /* ACK     */ [IV,      ES,      ES,   CW,      CW,        TW,      TW,       CL,   IV],
        /* RST     */ [CL,      CL,      CL,   CL,      CL,        CL,      CL,       CL,   CL],
        /* nothing */ [IV,      IV,      IV,   IV,      IV,        IV,      IV,       IV,   IV],
    ],
    // Reply direction
    [
        /* SYN     */ [S2,      IV,      IV,   IV,      IV,        IV,      SS,       IV,   S2],
        /* SYN-ACK */ [SR,      IG,      IG,   IG,      IG,        IG,      IG,       IG,   SR],
        /* FIN     */ [IV,      FW,      FW,   LA,      LA,        LA,      TW,       CL,   IV],
        /* ACK     */ [IG,      SR,      ES,   CW,      CW,        TW,      TW,       CL,   IG],
        /* RST     */ [CL,      CL,      CL,   CL,      CL,        CL,      CL,       CL,   CL],
        /* nothing */ [IV,      IV,      IV,   IV,      IV,        IV,      IV,       IV,   IV],
    ],
];

/// What `segment` in `direction` does to a connection in `state`.
#[inline]
pub fn transition(state: TcpState, direction: Direction, segment: Segment) -> Transition {
    TRANSITIONS[direction as usize][segment as usize][state as usize]
}

/// The state that the first segment of a connection makes: SYN opens, ACK alone is picked up (CT-06).
/// Nothing for a segment that cannot begin one.
pub const fn first(segment: Segment) -> Option<TcpState> {
    match segment {
        Segment::Syn => Some(TcpState::SynSent),
        Segment::Ack => Some(TcpState::Established),
        Segment::SynAck | Segment::Fin | Segment::Rst | Segment::Nothing => None,
    }
}
