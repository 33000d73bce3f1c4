//! The memory of frames: one pool of 2 KiB chunks for all ports.
//!
//! A frame that an uplink received leaves through a pod's port without being copied between kinds of
//! buffers, so there is one kind. The chunks lie in one mapping that is aligned to 2 MiB (huge pages when
//! the machine has them) and can be given to devices as it is: to DPDK as external memory, to AF_XDP as
//! UMEM (`docs/pool.md` shows the proof). A frame longer than a chunk is a chain of chunks.
//!
//! A pool is never unmapped: devices may write into it until the process ends. It is registered in a static
//! list, so nothing is leaked in the sense of a sanitizer. What is checked is that every chunk comes back:
//! [`Pool::available`] equals [`Pool::capacity`] when no packet lives.

use std::cell::UnsafeCell;
use std::io;
use std::ptr::NonNull;
use std::sync::Mutex;

use crossbeam_queue::ArrayQueue;

use crate::memory::Mapping;

/// Bytes of a chunk: a full Ethernet frame, its headroom, and a power of two (AF_XDP asks for one).
pub const CHUNK: usize = 2048;

/// Bytes that Pollux keeps free before a frame, for headers that are put in front (tunnels). AF_XDP leaves
/// as many; DPDK's drivers leave 128, so 128 is what every port guarantees.
pub const HEADROOM: usize = 256;

/// No further chunk in a chain.
const NONE: u32 = u32::MAX;

/// All pools of the process: they live as long as it does.
static POOLS: Mutex<Vec<&'static Pool>> = Mutex::new(Vec::new());

/// A pool of [`CHUNK`]-byte chunks. See the module's documentation.
pub struct Pool {
    memory: Mapping,
    capacity: usize,
    free: ArrayQueue<u32>,
    /// What a chunk holds while it is a later part of a chain.
    links: Box<[Link]>,
}

struct Link(UnsafeCell<Segment>);

/// The filled part of a chunk and the chunk that follows it in a chain.
#[derive(Clone, Copy)]
struct Segment {
    /// Where it starts in the chunk, bytes: 0 in chains made here; devices have places of their own.
    start: u16,
    len: u16,
    next: u32,
}

impl Segment {
    /// Nothing, at the chunk's start, followed by nothing.
    const EMPTY: Segment = Segment { start: 0, len: 0, next: NONE };

    /// Bytes of the chunk behind the filled part.
    fn room(self) -> usize {
        CHUNK - usize::from(self.start) - usize::from(self.len)
    }
}

const _: () = assert!(size_of::<Segment>() == 8);

// SAFETY: chunks and their links are reached only through a `Buffer`, and each index is either in the free
// queue or owned by exactly one `Buffer` (or by the chain that one owns), so no two threads share a chunk.
unsafe impl Sync for Pool {}
// SAFETY: as above; the memory is not bound to a thread.
unsafe impl Send for Pool {}

impl Pool {
    /// Maps a pool of at least `chunks` chunks, rounded up to whole 2 MiB pages. Huge pages are used when
    /// the machine has free ones, otherwise ordinary pages (transparent huge pages where allowed).
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn new(chunks: usize) -> io::Result<&'static Pool> {
        let memory = Mapping::new(chunks.saturating_mul(CHUNK))?;
        let capacity = memory.len() / CHUNK;
        let free = ArrayQueue::new(capacity);
        for index in 0..capacity as u32 {
            free.push(index).expect("the queue holds every chunk");
        }
        let links = (0..capacity).map(|_| Link(UnsafeCell::new(Segment::EMPTY))).collect();
        let pool: &'static Pool = Box::leak(Box::new(Pool { memory, capacity, free, links }));
        POOLS.lock().expect("no holder of this lock panics").push(pool);
        Ok(pool)
    }

    /// How many chunks the pool has.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many chunks are free now.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Whether the pool lies in huge pages.
    pub fn is_huge(&self) -> bool {
        self.memory.is_huge()
    }

    /// The memory of all chunks, to register with a device: start and length in bytes.
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.memory.start(), self.capacity * CHUNK)
    }

    /// Takes a chunk, or nothing when the pool is empty.
    #[inline]
    pub fn allocate(&'static self) -> Option<Buffer> {
        let index = self.free.pop()?;
        Some(Buffer { pool: self, index })
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} of {} chunks free)", self.available(), self.capacity)
    }
}

/// One owned chunk. Dropping it returns it, and every chunk chained behind it, to its pool.
pub struct Buffer {
    pool: &'static Pool,
    index: u32,
}

impl Buffer {
    /// The pool that the chunk belongs to.
    #[inline]
    pub fn pool(&self) -> &'static Pool {
        self.pool
    }

    /// Number of the chunk in its pool.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Gives the chunk away by its number: to a device that is to write into it, or to send from it. The pool
    /// counts it as in use until it comes back through [`from_index`](Buffer::from_index).
    #[inline]
    pub fn into_index(self) -> u32 {
        std::mem::ManuallyDrop::new(self).index
    }

    /// Takes back a chunk that was given away.
    ///
    /// # Safety
    /// `index` came from [`into_index`](Buffer::into_index) of a buffer of this pool, has not been taken back
    /// since, and whoever had the chunk reads and writes it no more.
    #[inline]
    pub unsafe fn from_index(pool: &'static Pool, index: u32) -> Buffer {
        debug_assert!((index as usize) < pool.capacity, "chunk {index} of {}", pool.capacity);
        Buffer { pool, index }
    }

    /// All bytes of the chunk.
    #[inline]
    pub fn bytes(&self) -> &[u8; CHUNK] {
        // SAFETY: the chunk lies in the pool's mapping, which lives as long as the process, is initialised
        // (the kernel zeroes it) and is owned by this buffer alone.
        unsafe { &*self.pool.memory.start().as_ptr().add(self.index as usize * CHUNK).cast() }
    }

    /// All bytes of the chunk, to write.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; CHUNK] {
        // SAFETY: as in `bytes`; the exclusive borrow of the owner makes this the only reference.
        unsafe { &mut *self.pool.memory.start().as_ptr().add(self.index as usize * CHUNK).cast() }
    }

    fn segment(&self) -> Segment {
        // SAFETY: the link belongs to the owner of the chunk; see `Sync` of `Pool`.
        unsafe { *self.pool.links[self.index as usize].0.get() }
    }

    fn set_segment(&mut self, segment: Segment) {
        // SAFETY: as in `segment`, and the borrow is exclusive.
        unsafe { *self.pool.links[self.index as usize].0.get() = segment };
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        self.pool.free.push(self.index).expect("a chunk is free or owned, never both");
    }
}

/// The chunks of a super-frame behind its first one, in order. The links lie beside the pool's memory, so
/// a chain of any length costs its owner eight bytes.
pub(crate) struct Chain {
    /// [`NONE`] when the chain is empty. A number and not an option: packets are moved, and each byte counts.
    first: u32,
    /// Of no meaning when the chain is empty.
    last: u32,
}

impl Default for Chain {
    #[inline]
    fn default() -> Chain {
        Chain { first: NONE, last: NONE }
    }
}

impl Chain {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// Appends `bytes`, filling the last chunk first. Says how many bytes fitted before the pool ran dry.
    pub(crate) fn extend(&mut self, pool: &'static Pool, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        while !bytes.is_empty() {
            let Some(mut last) = self.last_with_room(pool) else {
                break;
            };
            let segment = last.segment();
            let take = bytes.len().min(segment.room());
            let end = usize::from(segment.start) + usize::from(segment.len);
            last.bytes_mut()[end..][..take].copy_from_slice(&bytes[..take]);
            last.set_segment(Segment { len: segment.len + take as u16, ..segment });
            bytes = &bytes[take..];
        }
        all - bytes.len()
    }

    /// As [`extend`](Chain::extend) with `bytes` bytes of whatever the chunks held before.
    pub(crate) fn grow(&mut self, pool: &'static Pool, bytes: usize) -> usize {
        let mut left = bytes;
        while left > 0 {
            let Some(mut last) = self.last_with_room(pool) else {
                break;
            };
            let segment = last.segment();
            let take = left.min(segment.room());
            last.set_segment(Segment { len: segment.len + take as u16, ..segment });
            left -= take;
        }
        bytes - left
    }

    /// The last chunk if it is not full, otherwise a new one behind it. Nothing when the pool is empty.
    fn last_with_room(&mut self, pool: &'static Pool) -> Option<std::mem::ManuallyDrop<Buffer>> {
        if !self.is_empty() && self.view(pool, self.last).segment().room() > 0 {
            return Some(self.view(pool, self.last));
        }
        pool.allocate().map(|buffer| self.append(pool, buffer))
    }

    /// The filled parts, in order.
    pub(crate) fn segments(&self, pool: &'static Pool) -> impl Iterator<Item = &[u8]> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            if next == NONE {
                return None;
            }
            let segment = self.view(pool, next).segment();
            // SAFETY: the chunk belongs to this chain, which is borrowed for as long as the slice.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    pool.memory.start().as_ptr().add(next as usize * CHUNK + usize::from(segment.start)),
                    usize::from(segment.len),
                )
            };
            next = segment.next;
            Some(bytes)
        })
    }

    /// As [`segments`](Chain::segments), to write.
    pub(crate) fn segments_mut(&mut self, pool: &'static Pool) -> impl Iterator<Item = &mut [u8]> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            if next == NONE {
                return None;
            }
            let segment = self.view(pool, next).segment();
            // SAFETY: the chunk belongs to this chain, which is borrowed exclusively for as long as the
            // slice, and a chain visits each of its chunks once.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(
                    pool.memory.start().as_ptr().add(next as usize * CHUNK + usize::from(segment.start)),
                    usize::from(segment.len),
                )
            };
            next = segment.next;
            Some(bytes)
        })
    }

    /// Keeps the first `len` bytes and returns the other chunks to the pool.
    pub(crate) fn truncate(&mut self, pool: &'static Pool, mut len: usize) {
        let mut at = self.first;
        let mut kept = Chain::default();
        while at != NONE {
            let mut view = self.view(pool, at);
            let segment = view.segment();
            let next = segment.next;
            if len == 0 {
                drop(std::mem::ManuallyDrop::into_inner(view));
            } else {
                let take = len.min(usize::from(segment.len));
                len -= take;
                let next = if len == 0 { NONE } else { next };
                view.set_segment(Segment { len: take as u16, next, ..segment });
                kept = Chain { first: self.first, last: at };
            }
            at = next;
        }
        *self = kept;
    }

    /// Appends a chunk that a device filled. Its filled part must lie in the chunk.
    pub(crate) fn push(&mut self, buffer: Buffer, start: u16, len: u16) {
        debug_assert!(usize::from(start) + usize::from(len) <= CHUNK);
        let mut last = self.append(buffer.pool, buffer);
        last.set_segment(Segment { start, len, next: NONE });
    }

    /// Takes the chunk in front out of the chain, with the start and the length of its filled part.
    pub(crate) fn pop(&mut self, pool: &'static Pool) -> Option<(Buffer, u16, u16)> {
        if self.is_empty() {
            return None;
        }
        let buffer = std::mem::ManuallyDrop::into_inner(self.view(pool, self.first));
        let segment = buffer.segment();
        self.first = segment.next;
        Some((buffer, segment.start, segment.len))
    }

    /// Shows each chunk's number, and the start and the length of its filled part, in order.
    #[inline]
    pub(crate) fn each(&self, pool: &'static Pool, see: &mut impl FnMut(u32, u16, u16)) {
        let mut at = self.first;
        while at != NONE {
            let segment = self.view(pool, at).segment();
            see(at, segment.start, segment.len);
            at = segment.next;
        }
    }

    fn append(&mut self, pool: &'static Pool, mut buffer: Buffer) -> std::mem::ManuallyDrop<Buffer> {
        buffer.set_segment(Segment::EMPTY);
        let index = buffer.index;
        if self.is_empty() {
            self.first = index;
        } else {
            let mut last = self.view(pool, self.last);
            let segment = last.segment();
            last.set_segment(Segment { next: index, ..segment });
        }
        self.last = index;
        std::mem::ManuallyDrop::new(buffer)
    }

    /// A chunk of this chain as a buffer that is not returned when dropped.
    fn view(&self, pool: &'static Pool, index: u32) -> std::mem::ManuallyDrop<Buffer> {
        std::mem::ManuallyDrop::new(Buffer { pool, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HUGE_PAGE;

    #[test]
    fn every_chunk_comes_back() {
        let pool = Pool::new(1).unwrap();
        assert_eq!(pool.capacity(), HUGE_PAGE / CHUNK);
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(all.len(), pool.capacity());
        assert_eq!(pool.available(), 0);
        drop(all);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn chunks_do_not_overlap_and_the_region_is_aligned() {
        let pool = Pool::new(1).unwrap();
        let (start, bytes) = pool.region();
        assert_eq!(start.as_ptr().addr() % HUGE_PAGE, 0);
        assert_eq!(bytes, pool.capacity() * CHUNK);
        let mut all: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        for buffer in &mut all {
            let mark = buffer.index() as u8;
            buffer.bytes_mut().fill(mark);
        }
        assert!(all.iter().all(|buffer| buffer.bytes().iter().all(|&byte| byte == buffer.index() as u8)));
    }

    #[test]
    fn a_chunk_given_away_is_in_use_until_it_comes_back() {
        let pool = Pool::new(1).unwrap();
        let mut buffer = pool.allocate().unwrap();
        buffer.bytes_mut()[2047] = 77;
        let index = buffer.into_index();
        assert_eq!(pool.available(), pool.capacity() - 1);
        // SAFETY: the number is that of the buffer given away above, which nobody else has.
        let buffer = unsafe { Buffer::from_index(pool, index) };
        assert_eq!((buffer.index(), buffer.bytes()[2047]), (index, 77));
        drop(buffer);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn a_chain_continues_behind_what_a_device_placed() {
        let pool = Pool::new(1).unwrap();
        let mut chain = Chain::default();
        let mut first = pool.allocate().unwrap();
        first.bytes_mut()[128..132].copy_from_slice(b"from");
        chain.push(first, 128, 4);
        let rest = vec![9; 2000];
        assert_eq!(chain.extend(pool, &rest), rest.len());
        let lengths: Vec<usize> = chain.segments(pool).map(<[u8]>::len).collect();
        assert_eq!(lengths, [CHUNK - 128, 2004 - (CHUNK - 128)]);
        let bytes: Vec<u8> = chain.segments(pool).flatten().copied().collect();
        assert_eq!(bytes, [b"from", &rest[..]].concat());
        chain.truncate(pool, 3);
        assert_eq!(chain.segments(pool).collect::<Vec<_>>(), [b"fro"]);
        chain.truncate(pool, 0);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn a_chain_keeps_its_bytes_and_is_cut_where_asked() {
        let pool = Pool::new(64).unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
        for cut in [0, 1, 2047, 2048, 2049, 9_999, 10_000] {
            let mut chain = Chain::default();
            for part in bytes.chunks(777) {
                assert_eq!(chain.extend(pool, part), part.len());
            }
            assert_eq!(pool.capacity() - pool.available(), 5);
            chain.truncate(pool, cut);
            assert_eq!(chain.segments(pool).flatten().copied().collect::<Vec<_>>(), &bytes[..cut]);
            assert_eq!(pool.capacity() - pool.available(), cut.div_ceil(CHUNK));
            chain.truncate(pool, 0);
        }
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn a_grown_chain_is_written_part_by_part() {
        let pool = Pool::new(64).unwrap();
        let mut chain = Chain::default();
        assert_eq!(chain.extend(pool, &[7; 100]), 100);
        assert_eq!(chain.grow(pool, 5_000), 5_000);
        let lengths: Vec<usize> = chain
            .segments_mut(pool)
            .enumerate()
            .map(|(number, part)| {
                let from = if number == 0 { 100 } else { 0 };
                part[from..].fill(number as u8);
                part.len()
            })
            .collect();
        assert_eq!(lengths, [2048, 2048, 1004]);
        let bytes: Vec<u8> = chain.segments(pool).flatten().copied().collect();
        assert_eq!(bytes, [vec![7; 100], vec![0; 1948], vec![1; 2048], vec![2; 1004]].concat());
        chain.truncate(pool, 0);
        assert_eq!(chain.grow(pool, pool.capacity() * CHUNK + 1), pool.capacity() * CHUNK);
        chain.truncate(pool, 0);
        assert_eq!(pool.available(), pool.capacity());
    }
}
