//! DPDK's devices as ports: PCI cards that their kernel driver has let go, and virtual devices.
//!
//! ```text
//!   Port (port.rs)            one queue: bursts of packets to bursts of mbufs and back, no byte copied
//!     └ Device (device.rs)    an ethdev: probed, asked what it can, configured, started; closed with its last port
//!         ├ Bridge (bridge.rs)  the pool as DPDK's mempool: chunk i is mbuf i, one free list for both
//!         └ Eal (eal.rs)        DPDK itself, started once for the process
//! ```
//!
//! - **Memory.** A driver receives into chunks of the pool and sends from them (`docs/pool.md`). The one exception is
//!   DPDK's `net_af_xdp`, which wants frame and mbuf in one piece of memory: what it receives is copied into the pool.
//! - **Threads.** A queue belongs to one worker, which calls DPDK from an ordinary thread. Whatever opens and closes is
//!   done one at a time, under one lock. A virtual device opens its sockets in the network namespace of the thread that
//!   opens it.
//! - **Offloads** are asked of the device when it is opened; what it can not do is finished in software by the caller
//!   ([`Port::capabilities`](crate::port::Port::capabilities)).
//! - **Sleep.** DPDK polls: there is no descriptor to sleep on.
//!
//! All of `unsafe` here talks to DPDK through `pollux-dpdk-sys`.

mod bridge;
mod checks;
mod device;
pub mod eal;
mod marks;
mod port;
mod rings;

pub use device::{Device, LinkUp, Queues, Settings, open};
pub use eal::Eal;
pub use port::DpdkPort;
pub use rings::{Cable, cable};

/// Bytes that every driver of DPDK leaves free before a received frame: its headroom, fixed when it was built.
const HEADROOM: usize = pollux_dpdk_sys::SHIM_PKTMBUF_HEADROOM as usize;

/// Bytes of a frame that one chunk receives.
const ROOM: usize = crate::pool::CHUNK - HEADROOM;
