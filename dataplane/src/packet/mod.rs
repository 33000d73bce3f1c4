//! A packet: one owned frame, from the port that received it to the port that sends it.
//!
//! Headers are views over the frame's bytes, checked once by [`parse()`] and addressed by name afterwards.
//! Whatever the pipeline reads or writes lies in the frame's first chunk; the chunks behind it are payload
//! that nothing but a checksum over the whole frame looks at.

pub mod arp;
pub mod checksum;
pub mod crc32c;
pub mod ethernet;
pub mod family;
pub mod fragment;
pub mod icmp;
pub mod ip;
pub mod ndp;
pub mod parse;
pub(crate) mod plain;
pub mod transport;

#[cfg(test)]
pub(crate) mod testing;

use arrayvec::ArrayVec;

use crate::pool::{Buffer, CHUNK, Chain, HEADROOM, Pool};
pub use ethernet::{Ethernet, set_link};
pub use family::{Address, Family, LinkAddr, Prefix, Protocol, V4, V6};
pub use parse::{FragmentKind, Headers, IcmpClass, Parsed, parse};
pub use transport::TcpFlags;

/// Packets handled at a time.
pub const BURST: usize = 32;

/// Up to [`BURST`] packets, on the stack.
pub type Burst = ArrayVec<Packet, BURST>;

/// Number of a port in the tables: an index, below [`PortId::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u16);

impl PortId {
    /// Ports that one forwarder can have.
    pub const MAX: usize = 4096;

    /// The port's place in a table.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What the sender left to the device, as a virtio-net header says it (virtio 1.2, section 5.1.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// State of the transport checksum.
    pub checksum: ChecksumState,
    /// For a super-frame: how to cut it.
    pub gso: Option<Gso>,
}

impl Offload {
    /// Whether the frame is complete as it is.
    #[inline]
    pub fn needs_nothing(&self) -> bool {
        self.gso.is_none() && !matches!(self.checksum, ChecksumState::Partial { .. })
    }
}

/// State of a frame's transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ChecksumState {
    /// As any frame off a wire: complete, not checked yet.
    #[default]
    Unknown,
    /// The device has checked it.
    Verified,
    /// The field holds the sum over the pseudo header only. Who finishes it sums from `start` (an offset
    /// into the frame, bytes) to the end and writes at `start + offset`.
    Partial {
        /// Where the sum starts.
        start: u16,
        /// The field, counted from `start`.
        offset: u16,
    },
}

/// How a super-frame is to be cut into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// Which kind of segments.
    pub kind: GsoKind,
    /// TCP with ECN's CWR bit: set in the first segment only.
    pub ecn: bool,
    /// Payload bytes of each segment.
    pub size: u16,
    /// Bytes of headers, from the start of the frame, that every segment repeats.
    pub header_len: u16,
}

/// Kinds of super-frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams (virtio's `UDP_L4`).
    Udp,
}

/// One owned frame. Dropping it returns its memory.
///
/// 48 bytes: it is moved by value from the burst to the queue of the port that sends it.
pub struct Packet {
    head: Buffer,
    start: u16,
    head_len: u16,
    len: u32,
    rest: Chain,
    /// The port that received the packet.
    pub port: PortId,
    /// What the sender left to the device.
    pub offload: Offload,
}

const _: () = assert!(size_of::<Packet>() == 48 && size_of::<Option<Packet>>() == 48);

/// A chunk of the pool in a device's hands, and the part of it that a frame fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Number of the chunk in its pool.
    pub index: u32,
    /// Where the filled part starts in the chunk, bytes.
    pub start: u16,
    /// Its length, bytes.
    pub len: u16,
}

/// The pool has no free chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolEmpty;

impl Packet {
    /// An empty frame with [`HEADROOM`] free bytes before it.
    ///
    /// # Errors
    /// When the pool is empty.
    #[inline]
    pub fn new(pool: &'static Pool, port: PortId) -> Result<Packet, PoolEmpty> {
        let head = pool.allocate().ok_or(PoolEmpty)?;
        Ok(Packet {
            head,
            start: HEADROOM as u16,
            head_len: 0,
            len: 0,
            rest: Chain::default(),
            port,
            offload: Offload::default(),
        })
    }

    /// A frame that holds a copy of `bytes`, which may be longer than a chunk.
    ///
    /// # Errors
    /// When the pool is empty.
    pub fn copy_of(pool: &'static Pool, port: PortId, bytes: &[u8]) -> Result<Packet, PoolEmpty> {
        let mut packet = Packet::new(pool, port)?;
        packet.extend(bytes)?;
        Ok(packet)
    }

    /// A frame that a device has put into `chunks`, in this order; nothing when there are none.
    ///
    /// # Safety
    /// Each index came from [`Buffer::into_index`] of a buffer of `pool` (or from [`into_chunks`](Packet::into_chunks)),
    /// is here for the first time since, and the device reads and writes the chunk no more.
    ///
    /// # Panics
    /// When the filled part of a chunk does not lie in it.
    #[inline]
    pub unsafe fn from_chunks(
        pool: &'static Pool,
        port: PortId,
        chunks: impl IntoIterator<Item = Chunk>,
    ) -> Option<Packet> {
        let mut chunks = chunks.into_iter().map(|chunk| {
            assert!(usize::from(chunk.start) + usize::from(chunk.len) <= CHUNK, "a part beyond its chunk");
            // SAFETY: promised by the caller.
            (unsafe { Buffer::from_index(pool, chunk.index) }, chunk)
        });
        let (head, first) = chunks.next()?;
        let mut len = u32::from(first.len);
        let mut rest = Chain::default();
        for (buffer, chunk) in chunks {
            len += u32::from(chunk.len);
            rest.push(buffer, chunk.start, chunk.len);
        }
        let offload = Offload::default();
        Some(Packet { head, start: first.start, head_len: first.len, len, rest, port, offload })
    }

    /// Gives the frame's chunks away, in order: to a device that is to send them. The pool counts them as in use until
    /// they come back through [`Buffer::from_index`] or [`from_chunks`](Packet::from_chunks).
    #[inline]
    pub fn into_chunks(self, take: &mut impl FnMut(Chunk)) {
        // Not dropped: the first chunk is given away here, the others below.
        let mut packet = std::mem::ManuallyDrop::new(self);
        let pool = packet.head.pool();
        let mut rest = std::mem::take(&mut packet.rest);
        take(Chunk { index: packet.head.index(), start: packet.start, len: packet.head_len });
        while let Some((buffer, start, len)) = rest.pop(pool) {
            take(Chunk { index: buffer.into_index(), start, len });
        }
    }

    /// Shows the frame's chunks, in order, as [`into_chunks`](Packet::into_chunks) would give them away.
    #[inline]
    pub fn each_chunk(&self, see: &mut impl FnMut(Chunk)) {
        see(Chunk { index: self.head.index(), start: self.start, len: self.head_len });
        self.rest.each(self.head.pool(), &mut |index, start, len| see(Chunk { index, start, len }));
    }

    /// How many chunks the frame fills.
    #[inline]
    pub fn chunks(&self) -> usize {
        if self.is_contiguous() { 1 } else { self.segments().count() }
    }

    /// Length of the frame in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the frame has no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frame's bytes in its first chunk: all of them, but for super-frames.
    #[inline(always)]
    pub fn head(&self) -> &[u8] {
        let start = usize::from(self.start);
        &self.head.bytes()[start..start + usize::from(self.head_len)]
    }

    /// As [`head`](Packet::head), to write.
    #[inline(always)]
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.head_and_offload().0
    }

    /// [`head_mut`](Packet::head_mut), and what the sender left to the device.
    #[inline(always)]
    pub(crate) fn head_and_offload(&mut self) -> (&mut [u8], &Offload) {
        let start = usize::from(self.start);
        (&mut self.head.bytes_mut()[start..start + usize::from(self.head_len)], &self.offload)
    }

    /// The frame's bytes chunk by chunk, in order.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.head()).chain(self.rest.segments(self.head.pool()))
    }

    /// As [`segments`](Packet::segments), to write.
    pub fn segments_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let pool = self.head.pool();
        let head = &mut self.head.bytes_mut()[usize::from(self.start)..][..usize::from(self.head_len)];
        std::iter::once(head).chain(self.rest.segments_mut(pool))
    }

    /// Whether the whole frame lies in one chunk.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.rest.is_empty()
    }

    /// Appends bytes at the end.
    ///
    /// # Errors
    /// When the pool is empty; the frame then holds what fitted.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), PoolEmpty> {
        let mut bytes = bytes;
        if self.rest.is_empty() {
            let end = usize::from(self.start) + usize::from(self.head_len);
            let take = bytes.len().min(CHUNK - end);
            self.head.bytes_mut()[end..][..take].copy_from_slice(&bytes[..take]);
            self.head_len += take as u16;
            self.len += take as u32;
            bytes = &bytes[take..];
        }
        let taken = self.rest.extend(self.head.pool(), bytes);
        self.len += taken as u32;
        if taken == bytes.len() { Ok(()) } else { Err(PoolEmpty) }
    }

    /// Appends `bytes` bytes of whatever the memory held before, for a device to write into through
    /// [`segments_mut`](Packet::segments_mut).
    ///
    /// # Errors
    /// When the pool is empty; the frame then is as long as the pool allowed.
    pub fn grow(&mut self, bytes: usize) -> Result<(), PoolEmpty> {
        let mut left = bytes;
        if self.rest.is_empty() {
            let take = left.min(CHUNK - usize::from(self.start) - usize::from(self.head_len));
            self.head_len += take as u16;
            self.len += take as u32;
            left -= take;
        }
        let grown = self.rest.grow(self.head.pool(), left);
        self.len += grown as u32;
        if grown == left { Ok(()) } else { Err(PoolEmpty) }
    }

    /// Keeps the first `len` bytes; nothing happens when the frame is not longer.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        let head = usize::from(self.head_len);
        if !self.rest.is_empty() {
            self.rest.truncate(self.head.pool(), len.saturating_sub(head));
        }
        self.head_len = head.min(len) as u16;
        self.len = len as u32;
    }

    /// Makes room for `bytes` more bytes before the frame and returns the frame's new first chunk, whose
    /// first `bytes` bytes are to be written. Nothing when the headroom is used up.
    pub fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let start = usize::from(self.start).checked_sub(bytes)?;
        self.start = start as u16;
        self.head_len += bytes as u16;
        self.len += bytes as u32;
        Some(self.head_mut())
    }

    /// Takes `bytes` bytes off the front.
    ///
    /// # Panics
    /// If the first chunk holds fewer.
    pub fn trim_front(&mut self, bytes: usize) {
        assert!(bytes <= usize::from(self.head_len), "{bytes} bytes are more than the first chunk holds");
        self.start += bytes as u16;
        self.head_len -= bytes as u16;
        self.len -= bytes as u32;
    }

    /// The pool that the frame's memory belongs to.
    #[inline]
    pub fn pool(&self) -> &'static Pool {
        self.head.pool()
    }

    /// A copy of the whole frame.
    pub fn to_vec(&self) -> Vec<u8> {
        self.segments().flatten().copied().collect()
    }
}

impl Drop for Packet {
    #[inline]
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            self.rest.truncate(self.head.pool(), 0);
        }
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes from port {}, {:?})", self.len, self.port.0, self.offload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_frame_is_a_chain_and_comes_back_whole() {
        let pool = Pool::new(128).unwrap();
        let bytes: Vec<u8> = (0..65_549u32).map(|i| (i % 251) as u8).collect();
        let mut packet = Packet::copy_of(pool, PortId(3), &bytes).unwrap();
        assert_eq!(packet.len(), bytes.len());
        assert!(!packet.is_contiguous());
        assert_eq!(packet.to_vec(), bytes);
        packet.truncate(5_000);
        assert_eq!(packet.to_vec(), &bytes[..5_000]);
        packet.truncate(60);
        assert!(packet.is_contiguous());
        assert_eq!(packet.head(), &bytes[..60]);
        drop(packet);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn a_grown_frame_is_filled_like_one_that_was_copied() {
        let pool = Pool::new(64).unwrap();
        let bytes: Vec<u8> = (0..9_000u32).map(|i| (i % 253) as u8).collect();
        let mut packet = Packet::copy_of(pool, PortId(1), &bytes[..10]).unwrap();
        packet.grow(bytes.len() - 10).unwrap();
        let mut at = 0;
        for part in packet.segments_mut() {
            let len = part.len();
            part.copy_from_slice(&bytes[at..][..len]);
            at += len;
        }
        assert_eq!(packet.to_vec(), bytes);
        assert!(packet.grow(pool.capacity() * CHUNK).is_err());
        drop(packet);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn a_frame_passes_a_device_chunk_by_chunk() {
        let pool = Pool::new(64).unwrap();
        let bytes: Vec<u8> = (0..9_000u32).map(|i| (i % 253) as u8).collect();
        for len in [1, 1_514, 1_792, 1_793, 9_000] {
            let packet = Packet::copy_of(pool, PortId(1), &bytes[..len]).unwrap();
            let (count, used) = (packet.chunks(), pool.capacity() - pool.available());
            let mut chunks = Vec::new();
            packet.into_chunks(&mut |chunk| chunks.push(chunk));
            assert_eq!((chunks.len(), pool.capacity() - pool.available()), (count, used));
            // SAFETY: the chunks were given away above, to nobody.
            let packet = unsafe { Packet::from_chunks(pool, PortId(2), chunks) }.unwrap();
            assert_eq!((packet.to_vec(), packet.port), (bytes[..len].to_vec(), PortId(2)));
            drop(packet);
            assert_eq!(pool.available(), pool.capacity());
        }
        // SAFETY: there are none.
        assert!(unsafe { Packet::from_chunks(pool, PortId(2), []) }.is_none());
    }

    #[test]
    fn headers_go_in_front_and_off_again() {
        let pool = Pool::new(1).unwrap();
        let mut packet = Packet::copy_of(pool, PortId(0), b"payload").unwrap();
        packet.prepend(20).unwrap()[..20].fill(9);
        assert_eq!(packet.len(), 27);
        packet.trim_front(20);
        assert_eq!(packet.head(), b"payload");
        assert!(packet.prepend(HEADROOM + 1).is_none());
    }

    #[test]
    fn an_empty_pool_is_said_and_nothing_is_lost() {
        let pool = Pool::new(1).unwrap();
        let too_long = vec![0; (pool.capacity() + 1) * CHUNK];
        assert_eq!(Packet::copy_of(pool, PortId(0), &too_long).unwrap_err(), PoolEmpty);
        assert_eq!(pool.available(), pool.capacity());
    }
}
