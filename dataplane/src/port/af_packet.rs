//! AF_PACKET: the port of an interface that the kernel keeps as well, above all of pods' veths.
//!
//! Every frame carries a virtio-net header both ways, so partial checksums and super-frames of 64 KiB pass
//! as they are (PT-04).
//!
//! Receiving: a shared ring of slots that hold an MTU-sized frame each (`TPACKET_V2`). A longer frame, which
//! is a super-frame, waits whole in the socket's queue (`PACKET_COPY_THRESH`) and is read from there
//! straight into a chain of chunks. So a ring of 1024 slots costs 2 MiB, where slots for super-frames would
//! cost 66 MiB; `TPACKET_V3`, whose frames vary in size, shows a frame only when its block is closed, after
//! a millisecond at best. Where the process may not raise the queue's limit far enough, the slots hold
//! super-frames after all, and there are fewer of them.
//!
//! Sending: `sendmmsg` for a burst, out of the chunks. Measured over veth on Linux 6.18 against
//! `PACKET_TX_RING` with the same header: 1.67 against 1.69 µs for frames of 64 bytes, 1.73 against 1.76 µs
//! for 1514 bytes, 28 against 35 µs for super-frames: the ring needs a copy into its slot, and on a veth the
//! kernel copies the slot once more before it lets go of it. `PACKET_QDISC_BYPASS` gained nothing and is
//! left off, so captures on the interface show what Pollux sends.
//!
//! The kernel's own outgoing frames are not received (`PACKET_IGNORE_OUTGOING`), and a VLAN tag that the
//! kernel took out of a frame is put back. The socket stands before tc and netfilter: a
//! [`Guard`](crate::port::guard::Guard) that keeps frames from the kernel does not keep them from here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;

use crate::packet::{BURST, Burst, Packet, PoolEmpty, PortId};
use crate::pool::{CHUNK, HEADROOM, Pool};
use crate::port::ring::{Ring, SLOT_ALIGN, SLOT_OVERHEAD, Slot};
use crate::port::virtio::{self, HEADER_LEN};
use crate::port::{Capabilities, MAX_CHAIN, MAX_FRAME, Port, guard, sys};

/// Parts of the longest frame that is received: its first chunk holds less, for the headroom.
const MAX_PARTS: usize = 1 + (MAX_FRAME - (CHUNK - HEADROOM)).div_ceil(CHUNK);

/// Of a frame that is received: one for the header, and one because a VLAN tag splits the first chunk.
const MAX_VECTORS: usize = MAX_PARTS + 2;

/// Of a frame that is sent: one for the header.
const MAX_SENT_VECTORS: usize = 1 + MAX_CHAIN;

/// What the socket's queue of super-frames may hold, in bytes of the kernel's accounting: some windows of
/// TCP. The memory is used only while frames wait.
const QUEUE_LIMIT: i32 = 32 << 20;

/// With a lower limit than this, slots hold super-frames.
const QUEUE_LEAST: i32 = 4 << 20;

/// Slots of a ring whose slots hold super-frames.
const LARGE_SLOTS: usize = 240;

/// Empty polls between two looks for an error of the socket.
const ERROR_CHECK_INTERVAL: u32 = 1024;

/// Where the two link addresses end: the place of a VLAN tag.
const ADDRESSES: usize = 12;

const VLAN_TAG: usize = 4;

/// Where super-frames wait to be received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SuperFrames {
    /// In the socket's queue if its limit can be raised far enough, otherwise in the ring.
    #[default]
    Automatic,
    /// In the socket's queue.
    Queue,
    /// In the ring, whose slots are 64 KiB then.
    Ring,
}

/// Which frames are received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Frames {
    /// All that come in.
    #[default]
    All,
    /// Those that are not Pollux's alone: all but what a [guard](crate::port::guard) would keep from the kernel.
    LeftToKernel,
}

/// How to open a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Slots of the receive ring, at least. With super-frames in the ring there are 240.
    pub slots: usize,
    /// Where super-frames wait.
    pub super_frames: SuperFrames,
    /// Which frames are received.
    pub frames: Frames,
}

impl Default for Options {
    /// 1024 slots, super-frames wherever they can be kept best.
    fn default() -> Self {
        Options { slots: 1024, super_frames: SuperFrames::Automatic, frames: Frames::All }
    }
}

/// An interface of the kernel as a port, through an AF_PACKET socket.
pub struct AfPacketPort {
    // Before the socket, whose pages it maps.
    ring: Ring,
    socket: OwnedFd,
    name: String,
    port: PortId,
    pool: &'static Pool,
    super_frames: SuperFrames,
    /// The interface was removed: the socket is of no use any more.
    gone: bool,
    empty_polls: u32,
    /// Frames that the kernel dropped for want of a slot, as far as it was asked.
    kernel_drops: u64,
    /// Frames that were lost here: no buffer, no place in the queue, an unknown kind.
    lost: u64,
}

impl AfPacketPort {
    /// Opens the Ethernet interface `interface` of the thread's network namespace as port number `port`;
    /// received frames take their memory from `pool`. The interface may be down: frames move when it
    /// comes up. Needs `CAP_NET_RAW` in the namespace; changes nothing on the interface.
    ///
    /// # Errors
    /// `no such interface: NAME`; not Ethernet; no permission; no memory for the ring.
    pub fn open(
        interface: &str,
        port: PortId,
        pool: &'static Pool,
        options: Options,
    ) -> io::Result<AfPacketPort> {
        let index = sys::interface_index(interface)?;
        // Protocol 0: nothing is received until `bind` names the interface and the protocol at once, so
        // the ring never holds frames of other interfaces.
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0)
            .map_err(|error| sys::context(&error, format_args!("AF_PACKET socket for {interface}")))?;
        Self::set_up(socket, interface, index, port, pool, options)
            .map_err(|error| sys::context(&error, format_args!("AF_PACKET on {interface}")))
    }

    fn set_up(
        socket: OwnedFd,
        interface: &str,
        index: i32,
        port: PortId,
        pool: &'static Pool,
        options: Options,
    ) -> io::Result<AfPacketPort> {
        for (name, value) in [
            (libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32),
            (libc::PACKET_VNET_HDR, 1),
            (libc::PACKET_IGNORE_OUTGOING, 1),
            (libc::PACKET_COPY_THRESH, 1),
        ] {
            sys::set_option(&socket, libc::SOL_PACKET, name, &value)?;
        }
        if options.frames == Frames::LeftToKernel {
            sys::attach_filter(&socket, &left_to_kernel())?;
        }
        let limit = raise_queue_limit(&socket)?;
        let super_frames = match options.super_frames {
            SuperFrames::Automatic if limit < QUEUE_LEAST => SuperFrames::Ring,
            SuperFrames::Automatic => SuperFrames::Queue,
            chosen => chosen,
        };
        let ring = if super_frames == SuperFrames::Ring {
            let len = (MAX_FRAME + SLOT_OVERHEAD).next_multiple_of(SLOT_ALIGN);
            Ring::new(&socket, LARGE_SLOTS, len)?
        } else {
            let mtu = sys::interface_mtu(&socket, interface)?.min(MAX_FRAME);
            Ring::new(&socket, options.slots, (mtu + SLOT_OVERHEAD).next_multiple_of(CHUNK))?
        };
        // SAFETY: the structure is plain numbers; all zeros is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        sys::bind(&socket, &address)?;
        if sys::bound_address(&socket, address)?.sll_hatype != libc::ARPHRD_ETHER {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an Ethernet interface"));
        }
        Ok(AfPacketPort {
            ring,
            socket,
            name: interface.to_owned(),
            port,
            pool,
            super_frames,
            gone: false,
            empty_polls: 0,
            kernel_drops: 0,
            lost: 0,
        })
    }

    /// Slots of the receive ring.
    pub fn slots(&self) -> usize {
        self.ring.slots()
    }

    /// Where super-frames wait: never [`SuperFrames::Automatic`].
    pub fn super_frames(&self) -> SuperFrames {
        self.super_frames
    }

    fn check_gone(&self) -> io::Result<()> {
        if self.gone {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("interface {} is gone", self.name)));
        }
        Ok(())
    }

    /// Looks for an error that the kernel has noted at the socket: the interface went down or away.
    fn check_error(&mut self) -> io::Result<()> {
        let error = sys::get_option(&self.socket, libc::SOL_SOCKET, libc::SO_ERROR, 0i32)?;
        if error == 0 {
            return Ok(());
        }
        self.note_if_gone();
        self.check_gone()?;
        Err(io::Error::from_raw_os_error(error))
    }

    /// The kernel unbinds a socket from an interface that is removed.
    fn note_if_gone(&mut self) {
        // SAFETY: the structure is plain numbers; all zeros is a valid value.
        let address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        if let Ok(address) = sys::bound_address(&self.socket, address) {
            self.gone = address.sll_ifindex <= 0;
        }
    }
}

impl Port for AfPacketPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.check_gone()?;
        let before = burst.len();
        while !burst.is_full() {
            let Some(slot) = self.ring.next() else { break };
            match packet_of(&slot, &self.socket, self.pool, self.port) {
                Some(packet) => burst.push(packet),
                None => self.lost += 1,
            }
        }
        if burst.len() == before {
            self.empty_polls += 1;
            if self.empty_polls >= ERROR_CHECK_INTERVAL {
                self.empty_polls = 0;
                self.check_error()?;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.check_gone()?;
        let outcome = send(&self.socket, burst);
        match outcome.error {
            Some(error) if outcome.taken == 0 => {
                self.note_if_gone();
                self.check_gone()?;
                Err(error)
            }
            _ => {
                let mut index = 0;
                burst.retain(|_| {
                    let kept = outcome.kept & (1 << index) != 0;
                    index += 1;
                    kept
                });
                Ok(())
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { partial_checksum: true, gso: true, udp_gso: true }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn missed(&mut self) -> u64 {
        let zero = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        // Reading them sets the kernel's counters to 0.
        if let Ok(stats) = sys::get_option(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, zero) {
            self.kernel_drops += u64::from(stats.tp_drops);
        }
        self.kernel_drops + self.lost
    }
}

/// The filter of [`Frames::LeftToKernel`], the counterpart of a guard's program. A frame that ends before what is read
/// of it is the kernel's.
fn left_to_kernel() -> [libc::sock_filter; 21] {
    const ACCEPT: u8 = 19;
    const DROP: u8 = 20;
    const IP: u32 = 14;
    let load = |size: u32, at: u32| move |_| (libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
    let special = |what: i32| load(libc::BPF_W, (libc::SKF_AD_OFF + what).cast_unsigned());
    let half = |at: u32| load(libc::BPF_H, at);
    let byte = |at: u32| load(libc::BPF_B, at);
    let jump = |how: u32, value: u32, yes: u8, no: u8| {
        // The targets are places in the program; jumps count from the next instruction.
        move |at: u8| (libc::BPF_JMP | how | libc::BPF_K, value, yes - at - 1, no - at - 1)
    };
    let len = |_| (libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0, 0);
    let and = |value: u32| move |_| (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, value, 0, 0);
    let end = |len: u32| move |_| (libc::BPF_RET | libc::BPF_K, len, 0, 0);
    let (equal, at_least, above) = (libc::BPF_JEQ, libc::BPF_JGE, libc::BPF_JGT);
    let (prefix, mask) = guard::LINK_LOCAL;
    let program: [&dyn Fn(u8) -> (u32, u32, u8, u8); 21] = [
        &special(libc::SKF_AD_PKTTYPE),
        &jump(equal, libc::PACKET_HOST.into(), 2, ACCEPT),
        &special(libc::SKF_AD_VLAN_TAG_PRESENT),
        &jump(equal, 0, 4, ACCEPT),
        &half(12),
        &jump(equal, 0x0800, DROP, 6),
        &jump(equal, guard::IPV6.into(), 7, ACCEPT),
        &len,
        &jump(at_least, IP + guard::ICMPV6_TYPE, 9, ACCEPT),
        &half(IP + guard::DESTINATION),
        &and(mask.into()),
        &jump(equal, prefix.into(), ACCEPT, 12),
        &byte(IP + guard::NEXT_HEADER),
        &jump(equal, guard::ICMPV6.into(), 14, DROP),
        &len,
        &jump(above, IP + guard::ICMPV6_TYPE, 16, ACCEPT),
        &byte(IP + guard::ICMPV6_TYPE),
        &jump(at_least, (*guard::DISCOVERY.start()).into(), 18, DROP),
        &jump(above, (*guard::DISCOVERY.end()).into(), DROP, ACCEPT),
        &end(u32::MAX),
        &end(0),
    ];
    std::array::from_fn(|at| {
        let (code, k, jt, jf) = program[at](at as u8);
        libc::sock_filter { code: code as u16, jt, jf, k }
    })
}

/// Raises the limit of the socket's queue and says what it became, in bytes of the kernel's accounting.
fn raise_queue_limit(socket: &OwnedFd) -> io::Result<i32> {
    let forced = sys::set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &QUEUE_LIMIT);
    if forced.is_err() {
        // Without CAP_NET_ADMIN on the machine: up to net.core.rmem_max.
        sys::set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &QUEUE_LIMIT)?;
    }
    sys::get_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0i32)
}

/// The frame of a slot, in memory of the pool. Nothing when it is lost.
#[inline]
fn packet_of(slot: &Slot<'_>, socket: &OwnedFd, pool: &'static Pool, port: PortId) -> Option<Packet> {
    let whole = slot.frame.len() == slot.len;
    let inserted = if slot.vlan.is_some() { VLAN_TAG as u16 } else { 0 };
    let mut packet = if whole {
        copy(slot, pool, port).ok()
    } else if slot.queued {
        read_queued(slot, socket, pool, port)
    } else {
        None
    }?;
    packet.offload = virtio::read(&slot.header, packet.head(), inserted).ok()?;
    Some(packet)
}

fn copy(slot: &Slot<'_>, pool: &'static Pool, port: PortId) -> Result<Packet, PoolEmpty> {
    let Some(tag) = slot.vlan else {
        return Packet::copy_of(pool, port, slot.frame);
    };
    let (addresses, rest) = slot.frame.split_at(ADDRESSES.min(slot.frame.len()));
    let mut packet = Packet::copy_of(pool, port, addresses)?;
    packet.extend(&tag)?;
    packet.extend(rest)?;
    Ok(packet)
}

/// Takes the slot's frame from the socket's queue, where it waits in the order of the slots. When it cannot
/// be taken into memory, it is taken out and lost.
fn read_queued(slot: &Slot<'_>, socket: &OwnedFd, pool: &'static Pool, port: PortId) -> Option<Packet> {
    let inserted = slot.vlan.map_or(0, |_| VLAN_TAG);
    let len = slot.len + inserted;
    let packet = (len <= MAX_FRAME)
        .then(|| Packet::new(pool, port).ok())
        .flatten()
        .and_then(|mut packet| packet.grow(len).is_ok().then_some(packet));
    let mut header = [0; HEADER_LEN];
    let mut vectors: ArrayVec<libc::iovec, MAX_VECTORS> = ArrayVec::new();
    vectors.push(vector_mut(&mut header));
    let Some(mut packet) = packet else {
        receive_into(socket, &mut vectors).ok();
        return None;
    };
    let mut parts = packet.segments_mut();
    let head = parts.next().expect("a packet has a first chunk");
    if let Some(tag) = slot.vlan {
        let (addresses, rest) = head.split_at_mut(ADDRESSES);
        let (place, rest) = rest.split_at_mut(VLAN_TAG);
        place.copy_from_slice(&tag);
        vectors.extend([vector_mut(addresses), vector_mut(rest)]);
    } else {
        vectors.push(vector_mut(head));
    }
    vectors.extend(parts.map(vector_mut));
    let read = receive_into(socket, &mut vectors).ok()?;
    (read == HEADER_LEN + slot.len).then_some(packet)
}

fn vector_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Reads one frame of the socket's queue into `vectors`, which must come from exclusive borrows that last.
/// What does not fit is lost.
fn receive_into(socket: &OwnedFd, vectors: &mut [libc::iovec]) -> io::Result<usize> {
    // SAFETY: the structure is plain numbers and pointers; all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    let mut read = || {
        // SAFETY: the vectors point to memory that the caller borrows exclusively and that outlives the
        // call, for as many bytes as they say; the kernel writes no further.
        sys::check_len(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
    };
    // An error noted earlier (the interface was down) comes first, once, and takes no frame.
    read().or_else(|_| read())
}

/// What became of a burst.
struct Outcome {
    /// Frames that the device accepted.
    taken: usize,
    /// Bit set of the frames that it did not.
    kept: u32,
    /// Why it took no more, if not for a full queue.
    error: Option<io::Error>,
}

const _: () = assert!(BURST <= u32::BITS as usize);

fn send(socket: &OwnedFd, burst: &Burst) -> Outcome {
    let mut headers = [[0; HEADER_LEN]; BURST];
    let mut vectors: ArrayVec<libc::iovec, { BURST * MAX_SENT_VECTORS }> = ArrayVec::new();
    let mut counts: ArrayVec<usize, BURST> = ArrayVec::new();
    for (packet, header) in burst.iter().zip(&mut headers) {
        *header = virtio::write(&packet.offload);
        let first = vectors.len();
        let vector =
            |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        vectors.push(vector(header));
        // In more parts than any port makes: the kernel refuses a message of nothing.
        if packet.segments().nth(MAX_CHAIN).is_some() {
            vectors.truncate(first);
        } else {
            vectors.extend(packet.segments().map(vector));
        }
        counts.push(vectors.len() - first);
    }
    let mut messages: ArrayVec<libc::mmsghdr, BURST> = ArrayVec::new();
    let mut rest = vectors.as_mut_slice();
    for count in counts {
        let (own, others) = rest.split_at_mut(count);
        rest = others;
        // SAFETY: the structure is plain numbers and pointers; all zeros is a valid value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = own.as_mut_ptr();
        message.msg_hdr.msg_iovlen = own.len();
        messages.push(message);
    }
    let mut taken = 0;
    let mut kept = 0;
    let mut at = 0;
    let mut error = None;
    let mut repeated = false;
    while at < messages.len() {
        let left = &mut messages[at..];
        // SAFETY: every message points to vectors, headers and chunks that live until this function
        // returns; the kernel only reads them. It writes lengths into `left`.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, libc::MSG_DONTWAIT)
        };
        match sys::check(sent).map_err(|error| (error.raw_os_error(), error)) {
            Ok(sent) => {
                taken += sent as usize;
                at += sent as usize;
            }
            Err((Some(libc::EINTR), _)) => {}
            // The queue of the device, or of its peer, is full.
            Err((Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM), _)) => break,
            // This one frame is refused (longer than the MTU, say); the others are not its hostages.
            Err((Some(libc::EMSGSIZE | libc::EINVAL | libc::EPROTONOSUPPORT), _)) => {
                kept |= 1 << at;
                at += 1;
            }
            // An error noted earlier comes first, once.
            Err((Some(libc::ENETDOWN), _)) if !repeated => repeated = true,
            Err((_, other)) => {
                error = Some(other);
                break;
            }
        }
    }
    for index in at..messages.len() {
        kept |= 1 << index;
    }
    Outcome { taken, kept, error }
}
