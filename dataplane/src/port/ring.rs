//! The receive ring that an AF_PACKET socket shares with the kernel (`PACKET_RX_RING`, `TPACKET_V2`).
//!
//! A slot belongs to the kernel or to us, as its status word says: the kernel fills a slot, then sets the
//! word; we read the slot, then clear the word. All unsafe access to the shared pages is here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::port::sys::{self, Mapping};
use crate::port::virtio::HEADER_LEN;

/// The slots lie in blocks, which the kernel allocates in one piece each.
const BLOCK: usize = 1 << 20;

/// Slot lengths are multiples of this (`TPACKET_ALIGNMENT`).
pub(super) const SLOT_ALIGN: usize = 16;

/// Bytes of a slot before the frame, at most: the header, an address, the virtio-net header and padding.
pub(super) const SLOT_OVERHEAD: usize = 128;

/// The ring and our place in it.
pub(super) struct Ring {
    memory: Mapping,
    slot_len: usize,
    slots_per_block: usize,
    blocks: usize,
    block: usize,
    slot: usize,
}

/// A frame in a slot. The slot goes back to the kernel when this is dropped.
pub(super) struct Slot<'a> {
    status: &'a AtomicU32,
    /// What the kernel left to the device.
    pub(super) header: [u8; HEADER_LEN],
    /// The frame, or as much of it as the slot holds.
    pub(super) frame: &'a [u8],
    /// Length of the whole frame in bytes.
    pub(super) len: usize,
    /// The VLAN tag that the kernel took out of the frame: protocol and tag, in the order of the wire.
    pub(super) vlan: Option<[u8; 4]>,
    /// The whole frame, too long for the slot, waits in the socket's queue.
    pub(super) queued: bool,
}

impl Ring {
    /// Gives the socket a ring of at least `slots` slots of `slot_len` bytes.
    pub(super) fn new(socket: &OwnedFd, slots: usize, slot_len: usize) -> io::Result<Ring> {
        debug_assert!(slot_len.is_multiple_of(SLOT_ALIGN) && slot_len <= BLOCK);
        let slots_per_block = BLOCK / slot_len;
        let blocks = slots.max(1).div_ceil(slots_per_block);
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: slot_len as u32,
            tp_frame_nr: (blocks * slots_per_block) as u32,
        };
        sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let memory = Mapping::new(socket.as_raw_fd(), blocks * BLOCK)?;
        Ok(Ring { memory, slot_len, slots_per_block, blocks, block: 0, slot: 0 })
    }

    /// How many slots the ring has.
    pub(super) fn slots(&self) -> usize {
        self.blocks * self.slots_per_block
    }

    /// The next frame, if the kernel has filled its slot.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Slot<'_>> {
        let offset = self.block * BLOCK + self.slot * self.slot_len;
        debug_assert!(offset + self.slot_len <= self.memory.len());
        // SAFETY: the slot lies in the mapping, which lives as long as the ring.
        let start = unsafe { self.memory.start().add(offset) };
        // SAFETY: the status is the first word of the slot, aligned to 16 bytes; both sides access it as
        // an atomic.
        let status = unsafe { AtomicU32::from_ptr(start.as_ptr().cast()) };
        let word = status.load(Ordering::Acquire);
        if word & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the slot is ours until the word is cleared, the acquire above makes what the kernel
        // wrote visible, and any bytes are a valid header.
        let head: libc::tpacket2_hdr = unsafe { start.cast().read() };
        // SAFETY: as above; the slice ends where the slot does, and lives as long as the borrow of the
        // ring, during which nobody clears the word but `Slot::drop`.
        let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), self.slot_len) };
        self.slot += 1;
        if self.slot == self.slots_per_block {
            self.slot = 0;
            self.block = (self.block + 1) % self.blocks;
        }
        let mac = usize::from(head.tp_mac);
        let vlan = (word & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let protocol =
                if word & libc::TP_STATUS_VLAN_TPID_VALID != 0 { head.tp_vlan_tpid } else { 0x8100 };
            let [[a, b], [c, d]] = [protocol.to_be_bytes(), head.tp_vlan_tci.to_be_bytes()];
            [a, b, c, d]
        });
        Some(Slot {
            status,
            header: bytes[mac - HEADER_LEN..mac].try_into().expect("the range has this length"),
            frame: &bytes[mac..][..head.tp_snaplen as usize],
            len: head.tp_len as usize,
            vlan,
            queued: word & libc::TP_STATUS_COPY != 0,
        })
    }
}

impl Drop for Slot<'_> {
    #[inline]
    fn drop(&mut self) {
        self.status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}
