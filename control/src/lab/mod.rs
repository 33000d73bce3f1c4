//! The lab: clusters in network namespaces, with real sockets and real wires.
//!
//! `pollux demo` shows packets in it, tests measure the forwarder against the kernel in it. A [`Plan`] says
//! as data which nodes there are and how they are cabled; [`Network::build`] makes namespaces of it with
//! iproute2; [`seed`] is the plan of the seed's cluster, [`twin`] makes the kernel its kube-proxy. On a built
//! network, [`capture`] and [`far_end`] see and send frames and [`traffic`] holds real connections.
//!
//! Everything here lives in a sandbox (see [`crate::kernel::sandbox`]): no interface, route or rule of the
//! machine is touched, no frame leaves it, and all of it ends with the process.
//!
//! The wall clock is read here, unlike in the data plane: the other side is a running kernel. So everything
//! that waits is bounded by a duration that the caller gives.

pub mod capture;
pub mod far_end;
pub mod network;
pub mod pollux;
pub mod seed;
pub mod sequences;
mod sys;
pub mod traffic;
pub mod twin;
pub mod twins;

use std::io;

use crate::kernel::netns::Netns;

pub use network::{Device, End, Forwarding, Kind, Network, Node, Plan};

/// Does `work` in a namespace, where it opens a socket, which keeps that namespace for good.
fn open_in<T: Send>(netns: &Netns, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    netns.run(work).map_err(io::Error::other)?
}
