//! The packet path of Pollux. One packet's life, in the order of the modules:
//!
//! ```text
//! port → packet (parse) → flow ──hit──────────────────→ nat (rewrite) → route (next hop) → port
//!                           └─miss→ service → nat → route → nat (masquerade) → flow (insert)
//! ```
//!
//! [`forward`] is the only module that sees them all; [`worker`] polls ports around it. Nothing here
//! allocates, locks or formats for a packet of an established connection, nothing knows Kubernetes, and
//! time and randomness are arguments.

pub mod capture;
pub mod flow;
pub mod forward;
pub mod memory;
pub mod nat;
pub mod packet;
pub mod pool;
pub mod port;
pub mod route;
pub mod service;
pub mod slots;
pub mod stats;
mod sync;
pub mod tables;
pub mod time;
pub mod worker;
