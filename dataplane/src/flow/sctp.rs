//! The SCTP states of a connection (CT-05), as an observer between the two ends sees them by their chunks
//! (RFC 9260).
//!
//! ```text
//!           INIT          INIT ACK             COOKIE ECHO               COOKIE ACK
//! (nothing) ───→ CLOSED ───────────→ COOKIE_WAIT ───────→ COOKIE_ECHOED ───────────→ ESTABLISHED
//!                                                               SHUTDOWN (there, back) │
//!           SHUTDOWN COMPLETE                      SHUTDOWN ACK                        ↓
//!    CLOSED ←──────────────── SHUTDOWN_ACK_SENT ←───────────── SHUTDOWN_SENT, SHUTDOWN_RECD
//!   ABORT in any state: CLOSED.   HEARTBEAT without a connection: HEARTBEAT_SENT ──HEARTBEAT ACK──→ ESTABLISHED
//! ```
//!
//! The whole machine is [`TRANSITIONS`], the table of the kernel's tracker. Every packet has to have the right
//! verification tag (RFC 9260, section 8.5), which INIT and INIT ACK announce; one that has not is INVALID, so
//! nobody who does not see the packets can end a connection.

use super::key::Direction;
use super::segment::Memory;
use super::state::{Effect, State, Status};
use crate::packet::transport::SCTP_LEN;

/// An SCTP state of a connection. The numbers are columns of [`TRANSITIONS`], behind the first one, which is for
/// packets without a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SctpState {
    /// An INIT was seen; or an ABORT, or the last chunk of a shutdown.
    Closed,
    /// An INIT ACK answered.
    CookieWait,
    /// The cookie was sent back.
    CookieEchoed,
    /// The association is up.
    Established,
    /// The side that began asked to end.
    ShutdownSent,
    /// The other side asked to end.
    ShutdownRecd,
    /// The end was acknowledged.
    ShutdownAckSent,
    /// A heartbeat on a path that was not used before.
    HeartbeatSent,
}

/// A chunk that means something to the state machine. The numbers are rows of [`TRANSITIONS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Chunk {
    /// INIT.
    Init,
    /// INIT ACK.
    InitAck,
    /// ABORT.
    Abort,
    /// SHUTDOWN.
    Shutdown,
    /// SHUTDOWN ACK.
    ShutdownAck,
    /// ERROR.
    Error,
    /// COOKIE ECHO.
    CookieEcho,
    /// COOKIE ACK.
    CookieAck,
    /// SHUTDOWN COMPLETE.
    ShutdownComplete,
    /// HEARTBEAT.
    Heartbeat,
    /// HEARTBEAT ACK.
    HeartbeatAck,
}

impl Chunk {
    /// All of them, in the order of their numbers, with their types (RFC 9260, section 3.2).
    pub const ALL: [(Chunk, u8, &'static str); 11] = [
        (Chunk::Init, 1, "INIT"),
        (Chunk::InitAck, 2, "INIT ACK"),
        (Chunk::Abort, 6, "ABORT"),
        (Chunk::Shutdown, 7, "SHUTDOWN"),
        (Chunk::ShutdownAck, 8, "SHUTDOWN ACK"),
        (Chunk::Error, 9, "ERROR"),
        (Chunk::CookieEcho, 10, "COOKIE ECHO"),
        (Chunk::CookieAck, 11, "COOKIE ACK"),
        (Chunk::ShutdownComplete, 14, "SHUTDOWN COMPLETE"),
        (Chunk::Heartbeat, 4, "HEARTBEAT"),
        (Chunk::HeartbeatAck, 5, "HEARTBEAT ACK"),
    ];

    /// The chunk of this type; nothing for data and all that moves no state.
    pub fn of(kind: u8) -> Option<Chunk> {
        Chunk::ALL.iter().find(|(_, number, _)| *number == kind).map(|row| row.0)
    }
}

const DATA: u8 = 0;

type Next = Option<SctpState>;
const CL: Next = Some(SctpState::Closed);
const CW: Next = Some(SctpState::CookieWait);
const CE: Next = Some(SctpState::CookieEchoed);
const ES: Next = Some(SctpState::Established);
const SS: Next = Some(SctpState::ShutdownSent);
const SR: Next = Some(SctpState::ShutdownRecd);
const SA: Next = Some(SctpState::ShutdownAckSent);
const HS: Next = Some(SctpState::HeartbeatSent);
const IV: Next = None;

/// What follows, by direction, [`Chunk`] and state; nothing where the chunk belongs to no connection in that
/// state. The first column is for a packet without a connection, the others are [`SctpState`]'s.
#[rustfmt::skip]
pub const TRANSITIONS: [[[Option<SctpState>; 9]; 11]; 2] = [
    // Original direction
    //                       (nothing) CLOSED CK_WAIT CK_ECHO ESTAB SHUT_S SHUT_R SHUT_AS HB_SENT
    [
        /* INIT              */ [CL,     CL,    CW,     CE,     ES,   CL,    CL,    SA,     CW],
        /* INIT ACK          */ [CL,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     CL],
        /* ABORT             */ [CL,     CL,    CL,     CL,     CL,   CL,    CL,    CL,     CL],
        /* SHUTDOWN          */ [CL,     CL,    CW,     CE,     SS,   SS,    SR,    SA,     CL],
        /* SHUTDOWN ACK      */ [SA,     CL,    CW,     CE,     ES,   SA,    SA,    SA,     SA],
        /* ERROR             */ [CL,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     CL],
        /* COOKIE ECHO       */ [CL,     CL,    CE,     CE,     ES,   SS,    SR,    SA,     CL],
        /* COOKIE ACK        */ [CL,     CL,    CW,     ES,     ES,   SS,    SR,    SA,     CL],
        /* SHUTDOWN COMPLETE */ [CL,     CL,    CW,     CE,     ES,   SS,    SR,    CL,     CL],
        /* HEARTBEAT         */ [HS,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     HS],
        /* HEARTBEAT ACK     */ [CL,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     HS],
    ],
    // Reply direction
    [
        /* INIT              */ [IV,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     IV],
        /* INIT ACK          */ [IV,     CW,    CW,     CE,     ES,   SS,    SR,    SA,     IV],
        /* ABORT             */ [IV,     CL,    CL,     CL,     CL,   CL,    CL,    CL,     IV],
        /* SHUTDOWN          */ [IV,     CL,    CW,     CE,     SR,   SS,    SR,    SA,     IV],
        /* SHUTDOWN ACK      */ [IV,     CL,    CW,     CE,     ES,   SA,    SA,    SA,     IV],
        /* ERROR             */ [IV,     CL,    CW,     CL,     ES,   SS,    SR,    SA,     IV],
        /* COOKIE ECHO       */ [IV,     CL,    CE,     CE,     ES,   SS,    SR,    SA,     IV],
        /* COOKIE ACK        */ [IV,     CL,    CW,     ES,     ES,   SS,    SR,    SA,     IV],
        /* SHUTDOWN COMPLETE */ [IV,     CL,    CW,     CE,     ES,   SS,    SR,    CL,     IV],
        /* HEARTBEAT         */ [IV,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     HS],
        /* HEARTBEAT ACK     */ [IV,     CL,    CW,     CE,     ES,   SS,    SR,    SA,     ES],
    ],
];

/// What follows on a chunk of type `kind`.
fn transition(state: Option<SctpState>, direction: Direction, kind: u8) -> Option<SctpState> {
    match Chunk::of(kind) {
        // The numbers of the states begin behind the column of those without one.
        Some(chunk) => {
            let column = state.map_or(0, |state| state as usize + 1);
            TRANSITIONS[direction as usize][chunk as usize][column]
        }
        None => state,
    }
}

/// Chunks of a packet that are looked at. Packets of real programs have a handful.
const CHUNKS_MAX: usize = 128;

/// What an SCTP packet says to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SctpPacket<'a> {
    /// Its verification tag.
    pub tag: u32,
    /// Its chunks, as far as they lie in the packet's first piece of memory.
    pub chunks: &'a [u8],
}

impl<'a> SctpPacket<'a> {
    /// Reads the packet that `bytes` begin with; nothing when they are less than its common header.
    pub fn read(bytes: &'a [u8]) -> Option<SctpPacket<'a>> {
        let (header, chunks) = bytes.split_at_checked(SCTP_LEN)?;
        let tag = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        Some(SctpPacket { tag, chunks })
    }

    /// The chunks: type, flags, and what there is of the value.
    fn walk(&self) -> impl Iterator<Item = Piece<'a>> {
        let mut rest = self.chunks;
        std::iter::from_fn(move || {
            let [kind, flags, high, low, ..] = *rest else { return None };
            let len = usize::from(u16::from_be_bytes([high, low]));
            let piece = Piece { kind, flags, len, value: rest.get(4..).unwrap_or_default() };
            rest = rest.get(len.max(1).next_multiple_of(4)..).unwrap_or_default();
            Some(piece)
        })
    }

    /// The types of its chunks, if they may stand together (RFC 9260, section 6.10).
    fn kinds(&self) -> Option<Kinds> {
        let mut kinds = Kinds::default();
        let mut alone = false;
        for (place, piece) in self.walk().enumerate() {
            let chunk = Chunk::of(piece.kind);
            alone |= matches!(chunk, Some(Chunk::Init | Chunk::InitAck | Chunk::ShutdownComplete));
            let first = alone || matches!(chunk, Some(Chunk::CookieEcho | Chunk::CookieAck));
            if (first && place > 0) || piece.len == 0 || place == CHUNKS_MAX {
                return None;
            }
            kinds.add(piece.kind);
        }
        (!kinds.is_empty()).then_some(kinds)
    }
}

#[derive(Clone, Copy)]
struct Piece<'a> {
    kind: u8,
    flags: u8,
    len: usize,
    /// What follows the chunk's header, to the end of the packet.
    value: &'a [u8],
}

impl Piece<'_> {
    /// The tag that an INIT or INIT ACK announces; nothing when its fixed part is cut short.
    fn initiate_tag(&self) -> Option<u32> {
        let value: &[u8; 16] = self.value.first_chunk()?;
        Some(u32::from_be_bytes([value[0], value[1], value[2], value[3]]))
    }

    /// The flag T: the tag is that of the other direction (RFC 9260, section 8.5.1).
    fn reflects(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// A set of chunk types.
#[derive(Clone, Copy, Default)]
struct Kinds([u64; 4]);

impl Kinds {
    fn add(&mut self, kind: u8) {
        self.0[usize::from(kind >> 6)] |= 1 << (kind & 63);
    }
    fn has(&self, kind: u8) -> bool {
        self.0[usize::from(kind >> 6)] >> (kind & 63) & 1 == 1
    }
    fn has_any(&self, chunks: &[Chunk]) -> bool {
        chunks.iter().any(|&chunk| self.has(Chunk::ALL[chunk as usize].1))
    }
    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// Chunks of which the tag is judged one by one, or not at all.
const OWN_RULE: [Chunk; 7] = [
    Chunk::Init,
    Chunk::ShutdownComplete,
    Chunk::CookieEcho,
    Chunk::Abort,
    Chunk::ShutdownAck,
    Chunk::Heartbeat,
    Chunk::HeartbeatAck,
];

/// What the first packet of a connection makes: its status and the tags of both directions. Nothing when it can
/// begin none (RFC 9260, section 8.4).
pub(super) fn begin(packet: &SctpPacket<'_>) -> Option<(Status, Memory)> {
    let kinds = packet.kinds()?;
    if kinds.has_any(&[Chunk::Abort, Chunk::ShutdownComplete, Chunk::CookieAck]) {
        return None;
    }
    let mut memory = Memory::default();
    for piece in packet.walk() {
        transition(None, Direction::Original, piece.kind)?;
        match Chunk::of(piece.kind) {
            Some(Chunk::Init) if packet.tag != 0 => return None,
            Some(Chunk::Init) => memory.words[1] = u64::from(piece.initiate_tag()?),
            Some(Chunk::Heartbeat) => memory.words[0] = u64::from(packet.tag),
            _ => memory.words[1] = u64::from(packet.tag),
        }
    }
    match walk(Status::of_sctp(), None, Direction::Original, packet, &mut memory)? {
        Walked { status, state: Some(state), .. } => Some((status.with(State::Sctp(state)), memory)),
        Walked { state: None, .. } => None,
    }
}

/// Moves a connection by one packet.
pub(super) fn step(
    status: Status,
    state: SctpState,
    direction: Direction,
    packet: &SctpPacket<'_>,
    memory: &mut Memory,
) -> Effect {
    let seen = Status::seen_in(direction);
    let Some(Walked { status, state, renews }) = walk(status, Some(state), direction, packet, memory) else {
        return Effect::Invalid;
    };
    match state {
        Some(state) => {
            let moved = status.with(State::Sctp(state)).set(seen);
            Effect::Forward(moved, renews.then(|| State::Sctp(state).timeout()))
        }
        None => Effect::Invalid,
    }
}

/// Where the chunks of a packet lead.
struct Walked {
    status: Status,
    state: Option<SctpState>,
    /// Whether the time begins anew.
    renews: bool,
}

/// Goes through the chunks: their tags, and the states they lead to. Nothing when one does not fit; what was
/// noted in `memory` up to there is to be forgotten then.
fn walk(
    mut status: Status,
    mut state: Option<SctpState>,
    direction: Direction,
    packet: &SctpPacket<'_>,
    memory: &mut Memory,
) -> Option<Walked> {
    let confirmed = state.is_some();
    let back = direction.reverse();
    let (here, there) = (direction as usize, back as usize);
    let kinds = packet.kinds()?;
    let tag = u64::from(packet.tag);
    if !kinds.has_any(&OWN_RULE) && tag != memory.words[here] {
        return None;
    }
    let mut renews = true;
    for piece in packet.walk() {
        let chunk = Chunk::of(piece.kind);
        match chunk {
            Some(Chunk::Init) if tag != 0 => return None,
            Some(Chunk::Abort | Chunk::ShutdownComplete)
                if tag != memory.words[if piece.reflects() { there } else { here }] =>
            {
                return None;
            }
            Some(Chunk::CookieEcho) if tag != memory.words[here] => return None,
            Some(Chunk::CookieAck) => status = status.with_init([false; 2]),
            Some(Chunk::Heartbeat | Chunk::HeartbeatAck) => {
                // A path may be used anew, by a peer that has restarted: two sides have to say so.
                if memory.words[here] == 0 {
                    memory.words[here] = tag;
                } else if tag == memory.words[here] {
                    status = status.heartbeat_failed(None);
                } else if kinds.has(DATA) || !renews {
                    return None;
                } else if chunk == Some(Chunk::Heartbeat) {
                    status = status.heartbeat_failed(Some(direction));
                    renews = false;
                    continue;
                } else {
                    if status.failed_heartbeat() != Some(back) {
                        return None;
                    }
                    status = status.heartbeat_failed(None);
                    (memory.words[here], memory.words[there]) = (tag, 0);
                }
            }
            _ => {}
        }
        let next = transition(state, direction, piece.kind)?;
        match chunk {
            Some(Chunk::Init) => {
                let announced = piece.initiate_tag()?;
                let mut init = status.init();
                if init[here] && init[there] {
                    init[there] = false;
                }
                init[here] = true;
                status = status.with_init(init);
                memory.words[there] = u64::from(announced);
                // A repeated INIT does not renew the timeout, like a repeated SYN.
                if confirmed && next == SctpState::Closed && state == Some(SctpState::Closed) {
                    renews = false;
                }
            }
            Some(Chunk::InitAck) => {
                let announced = u64::from(piece.initiate_tag()?);
                let [known, init] = [memory.words[there], u64::from(status.init()[there])];
                let collision = status.init() == [true; 2];
                if (init == 0 && known != 0 && known != announced) || (collision && known != announced) {
                    return None;
                }
                memory.words[there] = announced;
            }
            _ => {}
        }
        if next == SctpState::Established && state != Some(next) {
            status = status.assure();
        }
        state = Some(next);
    }
    Some(Walked { status, state, renews })
}
