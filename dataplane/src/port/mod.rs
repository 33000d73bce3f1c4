//! Ports: where frames come in and go out. One trait, one file for each backend.
//!
//! A port moves frames and knows nothing of what they mean; what it cannot carry (a partial checksum, a
//! super-frame) is finished in software by the caller, who asks [`Port::capabilities`] first.

pub mod af_packet;
pub mod af_xdp;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod fault;
pub mod finish;
pub mod guard;
pub mod memory;
mod nftables;
pub mod pcap;
mod ring;
mod sys;
pub mod tap;
mod virtio;

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;

use crate::packet::checksum::SCTP_CHECKSUM;
use crate::packet::{Burst, ChecksumState, GsoKind, Offload};
use crate::pool::CHUNK;

/// Bytes of the longest frame that a port receives: the longest IP packet (an IPv6 header and 65535 bytes)
/// behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = 14 + 4 + 40 + 65_535;

/// Chunks of the longest chain that the kernel's ports send: the longest frame in chunks that are half full, behind
/// headers in one of their own. Every port fills its chunks further (AF_XDP up to 1792 bytes, DPDK's drivers 1920).
pub(crate) const MAX_CHAIN: usize = 1 + MAX_FRAME.div_ceil(CHUNK / 2);

/// A port's I/O backend, or a wrapper around one ([`fault`], [`RecorderPort`](crate::capture::RecorderPort)). Called
/// by one worker, once per burst.
pub trait Port: Send + Any {
    /// Appends received frames to `burst`, as many as are ready and fit. Each has the port's number in
    /// [`Packet::port`](crate::packet::Packet::port) and what the device said in
    /// [`offload`](crate::packet::Packet::offload).
    ///
    /// # Errors
    /// When the device is gone or refuses; the worker counts it and polls again later.
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()>;

    /// Sends frames from the front of `burst` and takes out what the device accepted. What is left did
    /// not fit (a full ring); the caller drops and counts it, or tries again.
    ///
    /// # Errors
    /// When the device is gone; nothing was taken from `burst` then.
    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()>;

    /// What the backend can carry.
    fn capabilities(&self) -> Capabilities;

    /// A file descriptor that is readable when frames wait, to sleep on; nothing for a backend that can
    /// only be polled.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Frames that the backend lost before [`receive`](Port::receive) could return them (a full receive
    /// ring, an empty pool, a frame that fits no buffer), since the port was opened.
    fn missed(&mut self) -> u64 {
        0
    }

    /// State of the link, for a backend that knows it.
    fn link(&mut self) -> Option<LinkState> {
        None
    }

    /// Counters that the device keeps itself, by its own names for them; may take a while.
    fn device_counters(&mut self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// State of a port's link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkState {
    /// Whether frames can pass.
    pub up: bool,
    /// Its speed in Mbit/s, when it is known.
    pub megabits: Option<u32>,
}

/// What a backend can carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Frames may leave with a partial transport checksum.
    pub partial_checksum: bool,
    /// Super-frames of TCP may leave unsegmented.
    pub gso: bool,
    /// Those of UDP may.
    pub udp_gso: bool,
}

impl Capabilities {
    /// Whether a frame can leave as it is, with what its sender left to the device. SCTP's partial
    /// checksum never can: the header that says it does not say that it is a CRC, and a device would write
    /// an Internet checksum.
    pub fn carries(&self, offload: &Offload) -> bool {
        let checksum = match offload.checksum {
            ChecksumState::Partial { offset, .. } => self.partial_checksum && offset != SCTP_CHECKSUM,
            ChecksumState::Unknown | ChecksumState::Verified => true,
        };
        let segments = match offload.gso.map(|gso| gso.kind) {
            None => true,
            Some(GsoKind::Tcp4 | GsoKind::Tcp6) => self.gso,
            Some(GsoKind::Udp) => self.udp_gso,
        };
        checksum && segments
    }
}
