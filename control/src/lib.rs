//! The control plane: cluster objects in, data plane tables out.
//!
//! ```text
//! files → document → cluster (Service, EndpointSlice, Node) ─┐
//!                 └→ config  (KubeProxyConfiguration, Node) ──┴→ translate → tables
//! ```
//!
//! Input is checked once, where it enters: [`cluster`] and [`config`] hold only values that make sense,
//! and say everything that is wrong at once ([`problem::Problems`]).

pub mod agent;
pub mod cli;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod demo;
pub mod document;
pub mod iptables;
pub mod kernel;
pub mod lab;
pub mod node;
pub mod problem;
pub mod trace;
pub mod translate;
pub mod verify;
