//! One queue of a device as a port: packets to mbufs and back, chunk by chunk.

use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use pollux_dpdk_sys::{self as dpdk, mbuf, rte_mbuf};

use crate::packet::{BURST, Burst, ChecksumState, Offload, Packet, PortId};
use crate::port::dpdk::bridge::Bridge;
use crate::port::dpdk::device::{Device, Receives};
use crate::port::dpdk::marks::{Marks, Saved};
use crate::port::{Capabilities, LinkState, Port, finish};

/// One queue pair of a DPDK device. The device is closed when the last of its queues is dropped.
pub struct DpdkPort {
    device: Arc<Device>,
    ethdev: u16,
    queue: u16,
    port: PortId,
    bridge: &'static Bridge,
    capabilities: Capabilities,
    /// Chunks of the longest frame that the device sends.
    longest_chain: usize,
    /// Bytes of the longest frame that the device sends, super-frames aside.
    longest_frame: usize,
    /// Frames that came and found no memory.
    lost: u64,
}

/// A frame in the device's hands, to be taken back if the device does not want it.
struct Sent {
    offload: Offload,
    port: PortId,
    saved: Option<Saved>,
}

impl DpdkPort {
    pub(super) fn new(device: &Arc<Device>, queue: u16, port: PortId, bridge: &'static Bridge) -> DpdkPort {
        DpdkPort {
            ethdev: device.ethdev(),
            capabilities: device.capabilities(),
            longest_chain: device.longest_chain(),
            longest_frame: device.longest_frame(),
            device: Arc::clone(device),
            queue,
            port,
            bridge,
            lost: 0,
        }
    }

    /// The device that the queue belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Takes a received frame from DPDK; nothing when there is no memory for it.
    #[inline]
    fn take(&self, first: *mut rte_mbuf) -> Option<Packet> {
        // SAFETY: the driver has just handed the frame over: all its segments are ours alone.
        unsafe {
            let flags = mbuf::ol_flags(first);
            let mut packet = if self.is_ours(first) {
                packet_of(self.bridge, self.port, first)?
            } else {
                self.take_foreign(first)?
            };
            if flags & dpdk::SHIM_F_RX_L4_CKSUM_MASK == dpdk::SHIM_F_RX_L4_CKSUM_GOOD {
                packet.offload.checksum = ChecksumState::Verified;
            }
            Some(packet)
        }
    }

    /// Whether all segments are chunks of this port's pool.
    ///
    /// # Safety
    /// `first` is a frame that is ours alone.
    #[inline]
    unsafe fn is_ours(&self, first: *mut rte_mbuf) -> bool {
        let mempool = self.bridge.mempool();
        // SAFETY: promised by the caller.
        unsafe { mbuf::pool(first) == mempool && (mbuf::nb_segs(first) == 1 || all_of(first, mempool)) }
    }

    /// Takes a frame that lies elsewhere: in another pool (rings carry frames as they are), or in memory of the
    /// driver's own, from where it is copied.
    ///
    /// # Safety
    /// As for [`is_ours`](Self::is_ours).
    #[cold]
    unsafe fn take_foreign(&self, first: *mut rte_mbuf) -> Option<Packet> {
        // SAFETY: promised by the caller; DPDK gets the frame back exactly once.
        unsafe {
            if self.device.receives() == Receives::Chunks {
                let mempool = mbuf::pool(first);
                let other = Bridge::of_mempool(mempool).filter(|_| all_of(first, mempool));
                if let Some(bridge) = other {
                    return packet_of(bridge, self.port, first);
                }
            }
            let mut copy = Packet::new(self.bridge.pool(), self.port);
            let mut at = first;
            while let (Ok(packet), false) = (&mut copy, at.is_null()) {
                let data = mbuf::buf_addr(at).add(usize::from(mbuf::data_off(at)));
                let bytes = std::slice::from_raw_parts(data, usize::from(mbuf::data_len(at)));
                copy = match packet.extend(bytes) {
                    Ok(()) => copy,
                    Err(empty) => Err(empty),
                };
                at = mbuf::next(at);
            }
            dpdk::shim_pktmbuf_free(first);
            copy.ok()
        }
    }

    /// The mbuf of a packet, ready to be sent; the packet itself when the device can not send it.
    #[inline]
    fn hand_over(&self, packet: Packet) -> Result<(*mut rte_mbuf, Sent), Packet> {
        let mut packet = packet;
        let mut marks = Marks::default();
        if !packet.offload.needs_nothing() {
            marks = match Marks::of(&packet) {
                Some(marks) if self.capabilities.carries(&packet.offload) => marks,
                _ if packet.offload.gso.is_some() => return Err(packet),
                // Neither TCP nor UDP, which no device knows, or asked of a device that said it can not.
                _ if finish::finish_checksum(&mut packet).is_ok() => Marks::default(),
                _ => return Err(packet),
            };
        }
        if packet.offload.gso.is_none() && packet.len() > self.longest_frame {
            return Err(packet);
        }
        if !std::ptr::eq(packet.pool(), self.bridge.pool()) || packet.chunks() > self.longest_chain {
            packet = self.in_fewer_chunks(packet)?;
        }
        let saved = marks.prepare(&mut packet);
        let sent = Sent { offload: packet.offload, port: packet.port, saved };
        let length = packet.len() as u32;
        let mut first: *mut rte_mbuf = std::ptr::null_mut();
        let mut last = first;
        let mut segments = 0;
        packet.into_chunks(&mut |chunk| {
            let segment = self.bridge.mbuf(chunk.index);
            // SAFETY: the chunk's mbuf belongs to who owns the chunk, which is given away here.
            unsafe {
                mbuf::set_data_off(segment, chunk.start);
                mbuf::set_data_len(segment, chunk.len);
                if last.is_null() {
                    first = segment;
                } else {
                    mbuf::set_next(last, segment);
                }
            }
            last = segment;
            segments += 1;
        });
        // SAFETY: as above, for the first one.
        unsafe {
            mbuf::set_pkt_len(first, length);
            mbuf::set_nb_segs(first, segments);
            if marks.flags != 0 {
                mbuf::set_ol_flags(first, dpdk::SHIM_F_EXTERNAL | marks.flags);
                mbuf::set_tx_offload(first, marks.lengths);
            }
        }
        Ok((first, sent))
    }

    /// A copy of the frame in the port's pool, in as few chunks as it needs.
    #[cold]
    fn in_fewer_chunks(&self, packet: Packet) -> Result<Packet, Packet> {
        let Ok(mut copy) = Packet::new(self.bridge.pool(), packet.port) else { return Err(packet) };
        if packet.segments().any(|bytes| copy.extend(bytes).is_err()) || copy.chunks() > self.longest_chain {
            return Err(packet);
        }
        copy.offload = packet.offload;
        Ok(copy)
    }

    /// Takes back a frame that the device did not take.
    fn take_back(&self, first: *mut rte_mbuf, sent: &Sent) -> Packet {
        // SAFETY: the device did not take the frame, so it is still ours, made of chunks of this pool.
        let mut packet = unsafe { packet_of(self.bridge, sent.port, first) }.expect("it has a first chunk");
        packet.offload = sent.offload;
        if let Some(saved) = sent.saved {
            saved.restore(&mut packet);
        }
        packet
    }

    /// Lets the driver look at frames with offloads. Which of them it refuses is taken back into `kept`.
    fn prepare(
        &self,
        mbufs: &mut ArrayVec<*mut rte_mbuf, BURST>,
        sent: &mut ArrayVec<Sent, BURST>,
        kept: &mut Burst,
    ) {
        let mut ready = 0;
        while ready < mbufs.len() {
            let rest = &mut mbufs[ready..];
            // SAFETY: the frames are ours and complete; the call changes headers at most.
            let more = unsafe {
                dpdk::shim_eth_tx_prepare(self.ethdev, self.queue, rest.as_mut_ptr(), rest.len() as u16)
            };
            ready += usize::from(more);
            if ready < mbufs.len() {
                kept.push(self.take_back(mbufs.remove(ready), &sent.remove(ready)));
            }
        }
    }
}

/// Whether all segments belong to `mempool`.
///
/// # Safety
/// `first` is a frame that is ours alone.
unsafe fn all_of(first: *mut rte_mbuf, mempool: *mut dpdk::rte_mempool) -> bool {
    let mut at = first;
    while !at.is_null() {
        // SAFETY: promised by the caller.
        unsafe {
            if mbuf::pool(at) != mempool {
                return false;
            }
            at = mbuf::next(at);
        }
    }
    true
}

/// The packet in the chunks of a frame.
///
/// # Safety
/// All segments are mbufs of `bridge`, ours alone.
#[inline]
unsafe fn packet_of(bridge: &'static Bridge, port: PortId, first: *mut rte_mbuf) -> Option<Packet> {
    let mut at = first;
    let chunks = std::iter::from_fn(|| {
        if at.is_null() {
            return None;
        }
        let segment = at;
        // SAFETY: promised by the caller.
        unsafe {
            at = mbuf::next(segment);
            Some(bridge.take(segment))
        }
    });
    // SAFETY: the chunks were DPDK's, which has let them go.
    unsafe { Packet::from_chunks(bridge.pool(), port, chunks) }
}

impl Port for DpdkPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        let mut mbufs = [std::ptr::null_mut(); BURST];
        let room = burst.remaining_capacity() as u16;
        // SAFETY: the device is started and the queue is this port's alone; there is room for as many pointers.
        let count = unsafe { dpdk::shim_eth_rx_burst(self.ethdev, self.queue, mbufs.as_mut_ptr(), room) };
        for &first in &mbufs[..usize::from(count)] {
            match self.take(first) {
                Some(packet) => burst.push(packet),
                None => self.lost += 1,
            }
        }
        Ok(())
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        let mut mbufs: ArrayVec<*mut rte_mbuf, BURST> = ArrayVec::new();
        let mut sent: ArrayVec<Sent, BURST> = ArrayVec::new();
        let mut kept = Burst::new();
        let mut offloaded = false;
        for packet in burst.drain(..) {
            match self.hand_over(packet) {
                Ok((first, how)) => {
                    offloaded |= !how.offload.needs_nothing();
                    mbufs.push(first);
                    sent.push(how);
                }
                Err(packet) => kept.push(packet),
            }
        }
        if offloaded {
            self.prepare(&mut mbufs, &mut sent, &mut kept);
        }
        // SAFETY: the device is started, the queue is this port's alone, and the frames are whole and ours.
        let count = unsafe {
            dpdk::shim_eth_tx_burst(self.ethdev, self.queue, mbufs.as_mut_ptr(), mbufs.len() as u16)
        };
        burst.extend(kept);
        for (&first, how) in mbufs.iter().zip(&sent).skip(usize::from(count)) {
            burst.push(self.take_back(first, how));
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// What the device says it lost (counted once, at its first queue), and what found no memory here.
    fn missed(&mut self) -> u64 {
        self.lost + if self.queue == 0 { self.device.missed() } else { 0 }
    }

    fn link(&mut self) -> Option<LinkState> {
        self.device.link()
    }

    /// DPDK's extended statistics, at the device's first queue.
    fn device_counters(&mut self) -> Vec<(String, u64)> {
        if self.queue == 0 { self.device.counters() } else { Vec::new() }
    }
}
