//! The backends on the bench. Each file has the backend's description and opens it beside its far end; what the
//! description says is checked by the properties.

mod af_packet;
mod af_xdp;
mod dpdk;
mod fault;
mod memory;
mod pcap;
mod tap;

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;

use crate::bench::Bench;
use crate::nature::Nature;

/// A backend, and how to get it on the bench.
pub(crate) struct Backend {
    pub(crate) nature: &'static Nature,
    /// Opens a port under a number, and the far end of its wire, in the thread's network namespace or a new one that the thread
    /// enters. Received frames take their memory from the pool, of which nobody else has a chunk.
    pub(crate) open: fn(&'static Pool, PortId) -> Bench,
}

/// All that this build can open.
pub(crate) const BACKENDS: &[Backend] = &[
    memory::BACKEND,
    pcap::BACKEND,
    af_packet::BACKEND,
    tap::BACKEND,
    af_xdp::BACKEND,
    af_xdp::IN_THE_STACK,
    #[cfg(feature = "dpdk")]
    dpdk::ON_RING,
    fault::OVER_MEMORY,
    fault::OVER_AF_PACKET,
];

/// What the others are compared with.
pub(crate) const MEMORY: &Backend = &memory::BACKEND;

/// The descriptions of all backends, also of those that this build can not open, as the page shows them.
pub(crate) const NATURES: &[&Nature] =
    &[&memory::NATURE, &pcap::NATURE, &af_packet::NATURE, &tap::NATURE, &fault::MEMORY, &fault::AF_PACKET];
