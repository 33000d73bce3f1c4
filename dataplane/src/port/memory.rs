//! A port in memory, for tests and benchmarks: a handle puts frames in and takes out what was sent.
//!
//! Frames move by ownership and are never copied. The two rings have fixed capacities, as a device's have,
//! so back-pressure and losses can be provoked: a full receive ring loses the frame and counts it
//! ([`Port::missed`]), a full transmit ring leaves the frame to the sender.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::packet::{Burst, Packet, PortId};
use crate::port::{Capabilities, Port};

/// Capacities of a memory port's rings, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rings {
    /// Frames that wait to be received.
    pub receive: usize,
    /// Frames that were sent and wait to be taken by the handle.
    pub transmit: usize,
}

impl Default for Rings {
    /// 1024 each.
    fn default() -> Self {
        Rings { receive: 1024, transmit: 1024 }
    }
}

/// State of a memory port's link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Frames move.
    Up,
    /// Receiving and sending fail with `ENETDOWN`.
    Down,
}

/// The worker's side of a port in memory.
pub struct MemoryPort {
    shared: Arc<Shared>,
    port: PortId,
    capabilities: Capabilities,
}

/// The other side of a [`MemoryPort`]: what a device's wire would be.
#[derive(Clone)]
pub struct MemoryHandle {
    shared: Arc<Shared>,
}

struct Shared {
    incoming: ArrayQueue<Packet>,
    outgoing: ArrayQueue<Packet>,
    missed: AtomicU64,
    down: AtomicBool,
}

impl MemoryPort {
    /// A port with number `port` and its handle.
    ///
    /// # Panics
    /// If a ring's capacity is 0.
    pub fn new(port: PortId, capabilities: Capabilities, rings: Rings) -> (MemoryPort, MemoryHandle) {
        let shared = Arc::new(Shared {
            incoming: ArrayQueue::new(rings.receive),
            outgoing: ArrayQueue::new(rings.transmit),
            missed: AtomicU64::new(0),
            down: AtomicBool::new(false),
        });
        let handle = MemoryHandle { shared: Arc::clone(&shared) };
        (MemoryPort { shared, port, capabilities }, handle)
    }

    fn check_link(&self) -> io::Result<()> {
        if self.shared.down.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::ENETDOWN));
        }
        Ok(())
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.check_link()?;
        while !burst.is_full() {
            let Some(mut packet) = self.shared.incoming.pop() else {
                break;
            };
            packet.port = self.port;
            burst.push(packet);
        }
        Ok(())
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.check_link()?;
        let room = self.shared.outgoing.capacity() - self.shared.outgoing.len();
        let accepted = room.min(burst.len());
        for packet in burst.drain(..accepted) {
            self.shared.outgoing.push(packet).expect("one port fills the ring, and it had room");
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn missed(&mut self) -> u64 {
        self.shared.missed.load(Ordering::Relaxed)
    }
}

impl MemoryHandle {
    /// Puts a frame into the receive ring. When the ring is full the frame is lost and counted as missed.
    pub fn inject(&self, packet: Packet) {
        if self.shared.incoming.push(packet).is_err() {
            self.shared.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the frames that were sent, oldest first.
    pub fn sent(&self) -> Vec<Packet> {
        std::iter::from_fn(|| self.take_sent()).collect()
    }

    /// Takes the oldest frame that was sent.
    pub fn take_sent(&self) -> Option<Packet> {
        self.shared.outgoing.pop()
    }

    /// Sets the state of the link. Frames in the rings stay there.
    pub fn set_link(&self, link: Link) {
        self.shared.down.store(link == Link::Down, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

    fn packet(pool: &'static Pool, mark: u8) -> Packet {
        Packet::copy_of(pool, PortId(9), &[mark; 60]).unwrap()
    }

    #[test]
    fn pt_03_frames_move_in_order_without_a_copy() {
        let pool = Pool::new(8).unwrap();
        let (mut port, handle) = MemoryPort::new(PortId(4), Capabilities::default(), Rings::default());
        for mark in 0..40 {
            handle.inject(packet(pool, mark));
        }
        let free = pool.available();
        let mut burst = Burst::new();
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), burst.capacity());
        assert!(burst.iter().all(|packet| packet.port == PortId(4)));
        port.transmit(&mut burst).unwrap();
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), 8);
        port.transmit(&mut burst).unwrap();
        assert_eq!(pool.available(), free);
        let sent = handle.sent();
        assert_eq!(sent.len(), 40);
        assert!((0..40).zip(&sent).all(|(mark, packet)| packet.head() == [mark; 60]));
        drop(sent);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn fw_05_a_full_transmit_ring_leaves_the_rest_in_the_burst() {
        let pool = Pool::new(8).unwrap();
        let rings = Rings { receive: 8, transmit: 3 };
        let (mut port, handle) = MemoryPort::new(PortId(0), Capabilities::default(), rings);
        let mut burst: Burst = (0..5).map(|mark| packet(pool, mark)).collect();
        port.transmit(&mut burst).unwrap();
        assert_eq!(burst.iter().map(|packet| packet.head()[0]).collect::<Vec<_>>(), [3, 4]);
        port.transmit(&mut burst).unwrap();
        assert_eq!(burst.len(), 2);
        assert_eq!(handle.take_sent().unwrap().head()[0], 0);
        port.transmit(&mut burst).unwrap();
        assert_eq!(burst.len(), 1);
        assert_eq!(handle.sent().len(), 3);
    }

    #[test]
    fn fw_05_a_full_receive_ring_counts_what_it_loses() {
        let pool = Pool::new(8).unwrap();
        let rings = Rings { receive: 3, transmit: 1 };
        let (mut port, handle) = MemoryPort::new(PortId(0), Capabilities::default(), rings);
        for mark in 0..5 {
            handle.inject(packet(pool, mark));
        }
        assert_eq!(port.missed(), 2);
        let mut burst = Burst::new();
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.iter().map(|packet| packet.head()[0]).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_link_that_is_down_takes_and_gives_nothing() {
        let pool = Pool::new(8).unwrap();
        let (mut port, handle) = MemoryPort::new(PortId(0), Capabilities::default(), Rings::default());
        handle.inject(packet(pool, 1));
        handle.set_link(Link::Down);
        let mut burst: Burst = [packet(pool, 2)].into_iter().collect();
        let error = port.transmit(&mut burst).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
        assert!(port.receive(&mut burst).is_err());
        assert_eq!(burst.len(), 1);
        handle.set_link(Link::Up);
        port.receive(&mut burst).unwrap();
        port.transmit(&mut burst).unwrap();
        assert_eq!(handle.sent().len(), 2);
    }
}
