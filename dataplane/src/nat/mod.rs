//! Translation of packets: what a connection's entry says is written into each of its packets, and the
//! source ports that new connections may take.

pub mod fragments;
pub mod icmp;
pub mod ports;
pub mod rewrite;

pub(crate) use rewrite::Ttl;
pub use rewrite::{Rewrite, decrement_ttl};
