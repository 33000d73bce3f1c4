//! One queue of an interface: frames between the socket's rings and the pool.
//!
//! A chunk is in the pool, in a packet, or the kernel's. Which ones are the kernel's is kept here, bit by bit, so
//! that a number which the kernel returns is believed only when it was given, and all of them come back at the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use arrayvec::ArrayVec;

use super::partial;
use super::ring::{CONTINUED, Descriptor};
use super::socket::{Place, Shared, Socket, Way};
use crate::packet::{BURST, Burst, Chunk, Packet, PortId};
use crate::pool::{Buffer, CHUNK, Pool};
use crate::port::MAX_CHAIN;

/// Chunks of the longest frame that the kernel sends by copy (`MAX_SKB_FRAGS` and one).
pub(super) const MAX_CHUNKS: usize = 18;

/// Bytes of a frame that one received chunk holds: the rest is headroom (XDP_PACKET_HEADROOM).
pub(super) const RECEIVE_ROOM: usize = CHUNK - 256;

/// The shortest frame that is sent: an Ethernet header.
const SHORTEST: usize = 14;

/// Calls of the kernel for one burst, at most: each takes up to 32 parts, or drops a frame.
const KICKS: usize = 64;

/// How long the end of a queue waits for frames on their way out.
const DRAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// A socket and the chunks that the kernel has through it.
pub(super) struct Queue {
    /// Nothing once the queue ends.
    socket: Option<Socket>,
    pool: &'static Pool,
    given: Given,
    /// Parts of a frame whose end has not come.
    parts: ArrayVec<Chunk, MAX_CHAIN>,
    /// The frame in hand is too long: its parts go until its end comes.
    skipping: bool,
    /// Chunks given to be sent and not back yet.
    sending: u32,
    /// Received frames that were lost here.
    lost: u64,
    /// Frames that the device dropped as they were sent: its own queue, or its peer's, was full.
    dropped: u64,
    chains: bool,
}

/// Which chunks are the kernel's: a bit for each chunk of the pool.
struct Given(Box<[u64]>);

impl Given {
    fn new(pool: &Pool) -> Given {
        Given(vec![0; pool.capacity().div_ceil(64)].into_boxed_slice())
    }

    #[inline]
    fn give(&mut self, index: u32) {
        debug_assert!(self.0[index as usize / 64] & 1 << (index % 64) == 0, "chunk {index} given twice");
        self.0[index as usize / 64] |= 1 << (index % 64);
    }

    /// Whether the chunk was given, and is taken back by this.
    #[inline]
    fn take(&mut self, index: u32) -> bool {
        let Some(word) = self.0.get_mut(index as usize / 64) else { return false };
        let bit = 1 << (index % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    fn take_any(&mut self) -> Option<u32> {
        let at = self.0.iter().position(|word| *word != 0)?;
        let index = at as u32 * 64 + self.0[at].trailing_zeros();
        self.take(index).then_some(index)
    }
}

impl Queue {
    /// Opens the queue, its fill ring full.
    ///
    /// # Errors
    /// The kernel's, of the last attempt.
    pub(super) fn open(place: Place, pool: &'static Pool, way: Way, ring: u32) -> io::Result<Queue> {
        let mut attempt = 0;
        loop {
            let mut queue = Queue {
                socket: Some(Socket::new(ring)?),
                pool,
                given: Given::new(pool),
                parts: ArrayVec::new(),
                skipping: false,
                sending: 0,
                lost: 0,
                dropped: 0,
                chains: way.chains,
            };
            // Drivers want buffers as soon as they begin.
            queue.refill();
            match queue.socket().bind(place, pool, way, attempt) {
                Ok(()) => return Ok(queue),
                Err((_, Shared::Yes)) => attempt += 1,
                Err((error, Shared::No)) => return Err(error),
            }
        }
    }

    fn socket(&self) -> &Socket {
        self.socket.as_ref().expect("there until the queue ends")
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.as_mut().expect("there until the queue ends")
    }

    /// Appends received frames to `burst`, as many as are there and fit.
    #[inline]
    pub(super) fn receive(&mut self, burst: &mut Burst, port: PortId) {
        let mut taken = 0;
        while !burst.is_full() {
            let Some(part) = self.socket_mut().receive.pop() else { break };
            taken += 1;
            if let Some(packet) = self.take_part(part, port) {
                burst.push(packet);
            }
        }
        if taken > 0 {
            self.socket_mut().receive.release();
        }
    }

    /// A frame, when `part` is its last part.
    #[inline]
    fn take_part(&mut self, part: Descriptor, port: PortId) -> Option<Packet> {
        let index = u32::try_from(part.address / CHUNK as u64).unwrap_or(u32::MAX);
        let (start, len) = ((part.address % CHUNK as u64) as u16, part.len);
        if !self.given.take(index) {
            // Not ours to use: nothing is known about what the kernel does with it.
            self.lost += 1;
            return None;
        }
        let fits = usize::from(start) + len as usize <= CHUNK;
        let last = part.options & CONTINUED == 0;
        if self.skipping || !fits || self.parts.is_full() {
            // SAFETY: given to the kernel, and returned by it just now.
            drop(unsafe { Buffer::from_index(self.pool, index) });
            self.forget_parts();
            self.skipping = !last;
            self.lost += u64::from(last);
            return None;
        }
        let chunk = Chunk { index, start, len: len as u16 };
        if !last {
            self.parts.push(chunk);
            return None;
        }
        // SAFETY: all of them were given to the kernel and returned by it, each once, as `given` has said.
        let mut packet =
            unsafe { Packet::from_chunks(self.pool, port, self.parts.drain(..).chain([chunk])) }?;
        packet.offload.checksum = partial::state(packet.head());
        Some(packet)
    }

    fn forget_parts(&mut self) {
        for chunk in self.parts.drain(..) {
            // SAFETY: given to the kernel, and returned by it; parts hold each once.
            drop(unsafe { Buffer::from_index(self.pool, chunk.index) });
        }
    }

    /// Gives the kernel chunks to receive into, as many as its ring holds and the pool has.
    #[inline]
    pub(super) fn refill(&mut self) {
        let Queue { socket: Some(socket), given, pool, .. } = self else { return };
        let room = socket.fill.room();
        if room == 0 {
            return;
        }
        let mut added = 0;
        while added < room {
            let Some(buffer) = pool.allocate() else { break };
            let index = buffer.into_index();
            given.give(index);
            socket.fill.push(u64::from(index) * CHUNK as u64);
            added += 1;
        }
        if added > 0 {
            socket.fill.publish();
            if socket.fill.needs_wakeup() {
                let _ = socket.wake(); // an interface that is down says so at its next check
            }
        }
    }

    /// Takes chunks back that were sent.
    #[inline]
    pub(super) fn reclaim(&mut self) {
        let Queue { socket: Some(socket), given, pool, sending, lost, .. } = self else { return };
        if *sending == 0 {
            return;
        }
        let mut taken = 0;
        while let Some(address) = socket.completion.pop() {
            let index = u32::try_from(address / CHUNK as u64).unwrap_or(u32::MAX);
            taken += 1;
            if given.take(index) {
                // SAFETY: given to the kernel, and returned by it just now.
                drop(unsafe { Buffer::from_index(pool, index) });
            } else {
                *lost += 1;
            }
        }
        if taken > 0 {
            *sending = sending.saturating_sub(taken);
            socket.completion.release();
        }
    }

    /// Sends frames from the front of `burst` and takes out what the ring accepted. Frames that are too long for the
    /// interface or have too many parts stay without holding up the others.
    ///
    /// # Errors
    /// When the interface is down or gone; nothing was taken then.
    pub(super) fn transmit(&mut self, burst: &mut Burst, mtu: usize) -> io::Result<()> {
        self.reclaim();
        let most = if self.chains { MAX_CHUNKS } else { 1 };
        let socket = self.socket.as_mut().expect("there until the queue ends");
        let mut room = socket.transmit.room();
        let (mut accepted, mut parts) = (0u32, 0);
        for (at, packet) in burst.iter_mut().enumerate() {
            if !(SHORTEST..=longest(packet, mtu)).contains(&packet.len()) || !fit_parts(packet, most) {
                continue;
            }
            let mut left = packet.chunks() as u32;
            if left > room {
                break;
            }
            room -= left;
            parts += left;
            accepted |= 1 << at;
            packet.each_chunk(&mut |chunk| {
                left -= 1;
                socket.transmit.push(Descriptor {
                    address: u64::from(chunk.index) * CHUNK as u64 + u64::from(chunk.start),
                    len: u32::from(chunk.len),
                    options: if left > 0 { CONTINUED } else { 0 },
                });
            });
        }
        socket.transmit.publish();
        // Only a call makes the kernel look at the ring then, so what it has not taken can be taken back.
        let quiet = socket.transmit.needs_wakeup();
        if let Err(error) = kick(socket, &mut self.dropped)
            && quiet
            && socket.transmit.retract(parts)
        {
            return Err(error);
        }
        if accepted == 0 {
            return Ok(());
        }
        let mut kept = Burst::new();
        for (at, packet) in burst.drain(..).enumerate() {
            if accepted & 1 << at == 0 {
                kept.push(packet);
            } else {
                packet.into_chunks(&mut |chunk| self.given.give(chunk.index));
            }
        }
        *burst = kept;
        self.sending += parts;
        Ok(())
    }

    /// Sends what the kernel has left in the ring, and takes back what was sent: between two bursts.
    #[inline]
    pub(super) fn tend(&mut self) {
        if self.sending == 0 {
            return;
        }
        if let Some(socket) = &mut self.socket {
            let _ = kick(socket, &mut self.dropped); // an interface that is down says so at its next check
        }
        self.reclaim();
    }

    /// Says when the interface is down (`ENETDOWN`) or gone (`ENXIO`).
    pub(super) fn check(&self) -> io::Result<()> {
        self.socket().wake()
    }

    /// Frames that were lost before [`receive`](Queue::receive) could return them.
    pub(super) fn missed(&self) -> u64 {
        // An empty fill ring is among the dropped.
        let by_kernel = self.socket().statistics().map_or(0, |all| all.rx_dropped + all.rx_ring_full);
        by_kernel + self.lost
    }

    /// What the kernel counts of the socket, and frames that the device dropped as they were sent.
    pub(super) fn counters(&self) -> [(&'static str, u64); 7] {
        let Ok(all) = self.socket().statistics() else { return [("", 0); 7] };
        [
            ("rx_dropped", all.rx_dropped),
            ("rx_ring_full", all.rx_ring_full),
            ("rx_fill_ring_empty", all.rx_fill_ring_empty_descs),
            ("rx_invalid", all.rx_invalid_descs),
            ("tx_ring_empty", all.tx_ring_empty_descs),
            ("tx_invalid", all.tx_invalid_descs),
            ("tx_dropped", self.dropped),
        ]
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let deadline = std::time::Instant::now() + DRAIN;
        self.tend();
        while self.sending > 0 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
            self.tend();
        }
        // The kernel unbinds a socket that is closed and waits until nobody uses it any more. A frame still on its way
        // out is at most read.
        self.socket = None;
        self.forget_parts();
        while let Some(index) = self.given.take_any() {
            // SAFETY: given to the kernel, which has let go of it.
            drop(unsafe { Buffer::from_index(self.pool, index) });
        }
    }
}

/// Lets the kernel send, for as long as it gets on. A queue of the device that is full is no error: what it does not
/// take stays in the ring. What it drops is added to `dropped`.
#[inline]
fn kick(socket: &mut Socket, dropped: &mut u64) -> io::Result<()> {
    let mut pending = socket.transmit.pending();
    for _ in 0..KICKS {
        if pending == 0 || !socket.transmit.needs_wakeup() {
            break;
        }
        match socket.kick().map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) | Err((Some(libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM), _)) => {}
            // One frame, and the kernel has stopped behind it.
            Err((Some(libc::EBUSY), _)) => *dropped += 1,
            Err((_, error)) => return Err(error),
        }
        let before = std::mem::replace(&mut pending, socket.transmit.pending());
        if before == pending {
            break;
        }
    }
    Ok(())
}

/// The longest frame like this one that an interface of this MTU sends.
#[inline]
fn longest(packet: &Packet, mtu: usize) -> usize {
    let tag = if matches!(packet.head().get(12..14), Some([0x81, 0] | [0x88, 0xa8])) { 4 } else { 0 };
    mtu + 14 + tag
}

/// Makes the frame one of at most `most` parts, none of them empty. Says whether that is possible.
#[inline]
fn fit_parts(packet: &mut Packet, most: usize) -> bool {
    (packet.is_contiguous() && !packet.is_empty()) || fit_chain(packet, most)
}

#[cold]
fn fit_chain(packet: &mut Packet, most: usize) -> bool {
    if packet.chunks() <= most && packet.segments().all(|part| !part.is_empty()) {
        return true;
    }
    let Ok(mut copy) = Packet::new(packet.pool(), packet.port) else { return false };
    if packet.segments().any(|part| copy.extend(part).is_err()) || copy.chunks() > most {
        return false;
    }
    copy.offload = packet.offload;
    *packet = copy;
    true
}

const _: () = assert!(BURST <= u32::BITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_taken_back_once() {
        let pool = Pool::new(1).unwrap();
        let mut given = Given::new(pool);
        for index in [3, 64, 1023] {
            given.give(index);
        }
        assert!(given.take(64));
        assert!(!given.take(64) && !given.take(5) && !given.take(u32::MAX));
        assert_eq!(std::iter::from_fn(|| given.take_any()).collect::<Vec<_>>(), [3, 1023]);
    }

    #[test]
    fn frames_of_too_many_parts_are_put_together_anew() {
        let pool = Pool::new(64).unwrap();
        let parts = |sizes: &[usize]| {
            let mut chunks = Vec::new();
            for (number, size) in sizes.iter().enumerate() {
                Packet::copy_of(pool, PortId(1), &vec![number as u8; *size])
                    .unwrap()
                    .into_chunks(&mut |chunk| chunks.push(chunk));
            }
            // SAFETY: the chunks were given away above, to nobody.
            unsafe { Packet::from_chunks(pool, PortId(1), chunks) }.unwrap()
        };
        let mut short = parts(&[100, 0, 60]);
        let bytes = short.to_vec();
        assert!(fit_parts(&mut short, 1));
        assert!(short.is_contiguous());
        assert_eq!((short.to_vec(), short.port), (bytes, PortId(1)));
        let mut many = parts(&[1_700; 3]);
        assert!(!fit_parts(&mut many, 1) && !fit_parts(&mut many, 2));
        assert!(fit_parts(&mut many, 3));
        assert_eq!(many.len(), 5_100);
        drop((short, many));
        assert_eq!(pool.available(), pool.capacity());
    }
}
