//! Connection tracking: from a packet's tuple to what is done with it (spec CT, and the storage of NAT).
//!
//! A connection has two tuples, the original one as first seen and the reply one as answers look on the wire
//! (CT-01). Each is one entry of the [`FlowTable`] with a ready-made rewrite, so that an established packet
//! costs its bucket's line and its entry's line:
//!
//! ```text
//! hash → prefetch bucket → probe (signature, prefetch entry) → find (key, copy) ─ settled ─→ rewrite, send
//!                                                                    └ else ─→ touch (state, timeout) ─┘
//! ```
//!
//! The stages are separate calls, so that the forwarder runs several packets through them at once. A packet
//! without an entry is judged by [`first_packet`]; when it leaves, [`FlowTable::insert`] stores both
//! directions or none (CT-04).
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`key`] | tuples, their inverse, the rewrite between two |
//! | [`state`] | the one state word of a connection and how packets move it |
//! | [`tcp`], `segment`, `window` | the TCP state table, as data; one segment; its window |
//! | [`sctp`] | the SCTP state table, as data; one packet's chunks |
//! | [`timeout`] | the timeouts, as data |
//! | `hash`, `index`, `entry` | the memory layout, hidden behind the table |
//! | [`table`], `touch`, `expiry`, `list` | the table: lookups and insertion, states, ends, what people see |
//! | `free` | free slots and counters, by thread |
//! | `events`, `accounting` | who listens, what is counted |
//! | `types` | what goes into the table and comes out |

mod accounting;
mod entry;
mod events;
mod expiry;
mod free;
mod hash;
mod index;
pub mod key;
mod list;
pub mod sctp;
mod segment;
pub mod state;
mod sysctl;
pub mod table;
pub mod tcp;
pub mod timeout;
mod touch;
mod types;
mod window;

#[cfg(test)]
mod tests;

pub use accounting::Counts;
pub use entry::NextHopRef;
pub use events::{EventKind, FlowEvent};
pub use hash::Hash;
pub use key::{Direction, FlowKey, PackedKey};
pub use sctp::{SctpPacket, SctpState};
pub use segment::TcpSegment;
pub use state::{Event, Invalid, State, first_packet};
pub use sysctl::Sysctls;
pub use table::{FlowTable, MAX_CONNECTIONS};
pub use tcp::{Segment, TcpState};
pub use timeout::{LONGEST, Timeout, TimeoutError, Timeouts};
pub use types::{
    Candidate, Class, Counters, EntryRef, FlowInfo, Hit, InsertError, NewConnection, SETTLED, Tick, Touch,
};
