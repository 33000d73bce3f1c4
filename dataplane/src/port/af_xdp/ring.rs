//! The rings that an AF_XDP socket shares with the kernel. Each has one producer and one consumer: we fill the
//! fill and the transmit ring and empty the other two. All unsafe access to the shared pages is here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::port::sys::{self, Mapping};

/// A part of a frame (`struct xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Descriptor {
    /// Where it starts in the pool's region, bytes.
    pub(super) address: u64,
    /// Its length, bytes.
    pub(super) len: u32,
    /// [`CONTINUED`], or 0.
    pub(super) options: u32,
}

/// In [`Descriptor::options`]: another part of the frame follows.
pub(super) const CONTINUED: u32 = 1;

/// The kernel waits for a system call before it looks at the ring again (`XDP_RING_NEED_WAKEUP`).
const NEED_WAKEUP: u32 = 1;

/// Plain numbers, valid whatever their bytes are.
pub(super) trait Entry: Copy {}
impl Entry for u64 {}
impl Entry for Descriptor {}

/// Which of a socket's rings: the option that sizes it, its place in what the kernel says of all places, and where
/// it is mapped.
#[derive(Clone, Copy)]
pub(super) enum Which {
    Fill,
    Completion,
    Receive,
    Transmit,
}

impl Which {
    fn option(self) -> i32 {
        match self {
            Which::Fill => libc::XDP_UMEM_FILL_RING,
            Which::Completion => libc::XDP_UMEM_COMPLETION_RING,
            Which::Receive => libc::XDP_RX_RING,
            Which::Transmit => libc::XDP_TX_RING,
        }
    }

    fn place(self, offsets: &libc::xdp_mmap_offsets) -> (libc::off_t, libc::xdp_ring_offset) {
        match self {
            Which::Fill => (libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t, offsets.fr),
            Which::Completion => (libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t, offsets.cr),
            Which::Receive => (libc::XDP_PGOFF_RX_RING, offsets.rx),
            Which::Transmit => (libc::XDP_PGOFF_TX_RING, offsets.tx),
        }
    }
}

/// The shared pages of one ring.
struct Shared<T> {
    /// Keeps the places below mapped.
    _memory: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
}

// SAFETY: the pages are plain memory of the process, not bound to a thread, and the structure owns them.
unsafe impl<T: Entry> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    /// Gives the socket a ring of `size` entries, a power of two, and maps it.
    fn new(socket: &OwnedFd, which: Which, size: u32) -> io::Result<Shared<T>> {
        debug_assert!(size.is_power_of_two());
        sys::set_option(socket, libc::SOL_XDP, which.option(), &size)?;
        // SAFETY: the structure is plain numbers; all zeros is a valid value.
        let offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        let offsets = sys::get_option(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, offsets)?;
        let (page, ring) = which.place(&offsets);
        let len = ring.desc as usize + size as usize * size_of::<T>();
        let memory = Mapping::at(socket.as_raw_fd(), page, len)?;
        // SAFETY: the kernel says where in the ring's mapping, which is this long, its parts lie.
        let at = |offset: u64| unsafe { memory.start().add(offset as usize) };
        Ok(Shared {
            producer: at(ring.producer).cast(),
            consumer: at(ring.consumer).cast(),
            flags: at(ring.flags).cast(),
            entries: at(ring.desc).cast(),
            size,
            _memory: memory,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: an aligned word of the mapping, which lives as long as the borrow; both sides access it as an atomic.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as in `producer`.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    /// The entry at a position, which counts on from ring to ring.
    fn entry(&self, position: u32) -> NonNull<T> {
        // SAFETY: the remainder is below the number of entries in the mapping.
        unsafe { self.entries.add((position & (self.size - 1)) as usize) }
    }
}

/// A ring that we fill.
pub(super) struct Producer<T> {
    shared: Shared<T>,
    /// Behind the last entry written.
    position: u32,
    /// How far the kernel was when we last looked.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    pub(super) fn new(socket: &OwnedFd, which: Which, size: u32) -> io::Result<Producer<T>> {
        Ok(Producer { shared: Shared::new(socket, which, size)?, position: 0, consumed: 0 })
    }

    /// Entries that can be written now.
    #[inline]
    pub(super) fn room(&mut self) -> u32 {
        self.shared.size - self.pending()
    }

    /// Entries that the kernel has not taken yet.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.shared.consumer().load(Ordering::Acquire);
        self.position.wrapping_sub(self.consumed)
    }

    /// Writes an entry, which the kernel sees once it is [published](Producer::publish).
    ///
    /// # Panics
    /// When there is no [`room`](Producer::room).
    #[inline]
    pub(super) fn push(&mut self, entry: T) {
        assert!(self.position.wrapping_sub(self.consumed) < self.shared.size, "a full ring");
        // SAFETY: the entry lies in the mapping, and is ours: the kernel has consumed it, as the acquire in `pending`
        // has seen, and reads it again only when it is published.
        unsafe { self.shared.entry(self.position).write(entry) };
        self.position = self.position.wrapping_add(1);
    }

    /// Shows the kernel what was written.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.shared.producer().store(self.position, Ordering::Release);
    }

    /// Takes back the last `count` entries if the kernel has taken none of them, which it must not be about to.
    pub(super) fn retract(&mut self, count: u32) -> bool {
        if self.pending() < count {
            return false;
        }
        self.position = self.position.wrapping_sub(count);
        self.publish();
        true
    }

    /// Whether the kernel looks at the ring only when it is called.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }
}

/// A ring that we empty.
pub(super) struct Consumer<T> {
    shared: Shared<T>,
    /// Behind the last entry taken.
    position: u32,
    /// How far the kernel was when we last looked.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    pub(super) fn new(socket: &OwnedFd, which: Which, size: u32) -> io::Result<Consumer<T>> {
        Ok(Consumer { shared: Shared::new(socket, which, size)?, position: 0, produced: 0 })
    }

    /// Takes an entry out. The kernel may use its place once it is [released](Consumer::release).
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.position == self.produced {
            self.produced = self.shared.producer().load(Ordering::Acquire);
            if self.position == self.produced {
                return None;
            }
        }
        // SAFETY: the entry lies in the mapping; the kernel has written it, as the acquire above has seen, and writes
        // it again only when it is released. Any bytes are a valid entry.
        let entry = unsafe { self.shared.entry(self.position).read() };
        self.position = self.position.wrapping_add(1);
        Some(entry)
    }

    /// Gives the places of what was taken out back to the kernel.
    #[inline]
    pub(super) fn release(&mut self) {
        self.shared.consumer().store(self.position, Ordering::Release);
    }
}
