//! Translation of packets: what a connection's entry says is written into each of its packets.

pub mod rewrite;

pub use rewrite::{Rewrite, decrement_ttl};
