//! Are the tables right? Against case files: flows with the verdict that is expected of each ([`cases`],
//! [`check`]). Against iptables' rules: for all packets ([`subject`]).
//!
//! ```text
//! subject: what is compared ─→ prove: cut by destination ─→ piece: cut by questions ─┬─ rules: walk of a file
//!                                                                                    └─ tables: walk of the tables
//!                              outcome: compare ←────────────────────────────────────┘
//!                              confirm, forwarder: packets of the pieces, by who knows no pieces
//!                              report: one packet for each cause
//! ```

pub mod cases;
pub mod check;
mod confirm;
mod forwarder;
mod index;
mod outcome;
mod piece;
mod prove;
pub mod report;
mod rules;
mod space;
pub mod subject;
mod tables;
