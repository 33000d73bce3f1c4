//! The kernel as judge: twin nodes with the same addresses, routes and pods. In one the kernel forwards under
//! rules that kube-proxy wrote, in the other Pollux by the objects they were written from. The same frames go
//! into both, and what comes out must be the same.
//!
//! ```text
//! scenario.rs  what is compared ─┬→ site.rs     the node, twice     ┐
//!                                └→ flows.rs    what is sent        ┼→ compare.rs ─→ report.rs
//! kernel.rs, forwarder.rs        the two nodes ─→ exchange.rs       ┘   choice.rs: what is free
//! wire.rs, packet.rs, shot.rs    frames, packets, connections;  words.rs: what became of them
//! ```
//!
//! Compared are, for each flow and packet by packet: where it leaves, addresses, ports, TTL, checksums and
//! everything else that forwarding must leave alone; ICMP errors with what they quote; silence; and the
//! tuples in both connection tables. Free are the backend among those that may be chosen, and a masqueraded
//! port within its class; their distribution is tested.

mod choice;
mod compare;
mod exchange;
mod flows;
pub(super) mod forwarder;
pub(super) mod kernel;
mod nfacct;
pub(super) mod packet;
mod report;
pub(super) mod scenario;
mod shot;
pub(super) mod site;
pub(super) mod wire;
mod words;

pub use choice::{CONNECTIONS, FALSE_ALARM, p_value};
pub use compare::{Ended, compare};
pub use report::{Deliberate, Difference, Report, junit};
pub use scenario::{Dump, Family, Scenario, find, folder_scenarios};

/// The level of each test of a choice, when `scenarios` are compared in a run: Bonferroni's share of
/// [`FALSE_ALARM`], so that the probability of any false alarm in the run is at most that.
pub fn level(scenarios: usize) -> f64 {
    FALSE_ALARM / (scenarios.max(1) * compare::TESTS) as f64
}
