//! TAP: the port on which the node's own network stack takes part (PT-02). What the kernel routes to the
//! interface is received here; what is sent here the kernel receives as if from a wire.
//!
//! The interface is made by opening the port and vanishes with it, also when the process is killed. Every
//! frame carries a virtio-net header both ways, so partial checksums and super-frames pass as they are
//! (PT-04). One system call moves one frame; that is the driver's nature. A frame that fits a chunk is
//! copied once more, from a spare chain of chunks that is ready for the longest frame; a longer one leaves
//! in that chain and a new spare takes its place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use arrayvec::ArrayVec;

use crate::packet::{Burst, Packet, PortId};
use crate::pool::{CHUNK, HEADROOM, Pool};
use crate::port::virtio::{self, HEADER_LEN};
use crate::port::{Capabilities, MAX_CHAIN, MAX_FRAME, Port, sys};

/// The header and the parts of the longest chain.
const MAX_VECTORS: usize = 1 + MAX_CHAIN;

/// Frames up to this length are copied out of the spare.
const COPY_UP_TO: usize = CHUNK - HEADROOM;

/// A TAP interface as a port.
#[derive(Debug)]
pub struct TapPort {
    device: File,
    name: String,
    port: PortId,
    pool: &'static Pool,
    /// Memory for the next frame, [`MAX_FRAME`] bytes.
    spare: Option<Packet>,
    udp_gso: bool,
    lost: u64,
}

impl TapPort {
    /// Makes the TAP interface `name` in the thread's network namespace and opens it as port number `port`;
    /// received frames take their memory from `pool`, of which the port always keeps the chunks of one
    /// frame of [`MAX_FRAME`] bytes. The interface is down and has no address; that is the caller's
    /// to change. Needs `CAP_NET_ADMIN` in the namespace.
    ///
    /// # Errors
    /// No `/dev/net/tun`; no permission; an interface of that name exists; not a name for an interface.
    pub fn open(name: &str, port: PortId, pool: &'static Pool) -> io::Result<TapPort> {
        let mut request = sys::interface_request(name)?;
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| sys::context(&error, format_args!("/dev/net/tun for {name}")))?;
        let failed = |error| sys::context(&error, format_args!("TAP interface {name}"));
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as i16;
        // SAFETY: the request reads the structure, which outlives the call, and writes the name into it.
        sys::check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) })
            .map_err(failed)?;
        let header_len = HEADER_LEN as libc::c_int;
        // SAFETY: the request reads an integer that outlives the call.
        sys::check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header_len) })
            .map_err(failed)?;
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let set_offloads = |offloads: libc::c_uint| {
            // SAFETY: the request takes a number.
            sys::check(unsafe {
                libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
            })
        };
        // Linux before 6.2 knows no super-frames of UDP.
        let udp_gso = set_offloads(offloads | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_ok();
        if !udp_gso {
            set_offloads(offloads).map_err(failed)?;
        }
        Ok(TapPort { device, name: name.to_owned(), port, pool, spare: spare(pool, port), udp_gso, lost: 0 })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel may hand over UDP super-frames, and takes them.
    pub fn carries_udp_super_frames(&self) -> bool {
        self.udp_gso
    }

    /// Reads one frame. `Ok(None)` when it was lost for want of memory.
    fn read(&mut self) -> io::Result<Option<Packet>> {
        if self.spare.is_none() {
            self.spare = spare(self.pool, self.port);
        }
        let mut header = [0; HEADER_LEN];
        let Some(spare) = &mut self.spare else {
            // Taken out of the queue all the same: it must not wait there for seconds.
            read_into(&self.device, &mut [vector_mut(&mut header)])?;
            return Ok(None);
        };
        let mut vectors: ArrayVec<libc::iovec, MAX_VECTORS> = ArrayVec::new();
        vectors.push(vector_mut(&mut header));
        vectors.extend(spare.segments_mut().map(vector_mut));
        let read = read_into(&self.device, &mut vectors)?;
        let len = read.saturating_sub(HEADER_LEN);
        let packet = if len <= COPY_UP_TO {
            Packet::copy_of(self.pool, self.port, &spare.head()[..len]).ok()
        } else {
            self.spare.take().map(|mut packet| {
                packet.truncate(len);
                packet
            })
        };
        Ok(packet.and_then(|mut packet| {
            packet.offload = virtio::read(&header, packet.head(), 0).ok()?;
            Some(packet)
        }))
    }
}

impl Port for TapPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        let before = burst.len();
        while !burst.is_full() {
            match self.read() {
                Ok(Some(packet)) => burst.push(packet),
                Ok(None) => self.lost += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) if burst.len() > before => break,
                Err(error) => return Err(sys::context(&error, &self.name)),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        let mut taken = 0;
        let mut index = 0;
        let mut kept = 0u32;
        let mut failure = None;
        while let Some(packet) = burst.get(index) {
            match write(&self.device, packet) {
                Ok(()) => taken += 1,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => break,
                    // This one frame is refused; the others are not its hostages.
                    Some(libc::EINVAL | libc::EMSGSIZE) => kept |= 1 << index,
                    _ => {
                        failure = Some(error);
                        break;
                    }
                },
            }
            index += 1;
        }
        if let (Some(error), 0) = (failure, taken) {
            return Err(sys::context(&error, &self.name));
        }
        let end = index;
        index = 0;
        burst.retain(|_| {
            let keep = index >= end || kept & (1 << index) != 0;
            index += 1;
            keep
        });
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { partial_checksum: true, gso: true, udp_gso: self.udp_gso }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.device.as_fd())
    }

    /// Frames lost here. What the kernel drops while its queue to the port is full it counts as the
    /// interface's dropped transmissions.
    fn missed(&mut self) -> u64 {
        self.lost
    }
}

fn spare(pool: &'static Pool, port: PortId) -> Option<Packet> {
    let mut packet = Packet::new(pool, port).ok()?;
    packet.grow(MAX_FRAME).ok()?;
    Some(packet)
}

fn vector_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Reads one frame into `vectors`, which must come from exclusive borrows that last.
fn read_into(device: &File, vectors: &mut [libc::iovec]) -> io::Result<usize> {
    // SAFETY: the vectors point to memory that the caller borrows exclusively and that outlives the call,
    // for as many bytes as they say; the kernel writes no further.
    sys::check_len(unsafe { libc::readv(device.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) })
}

fn write(device: &File, packet: &Packet) -> io::Result<()> {
    let header = virtio::write(&packet.offload);
    let mut vectors: ArrayVec<libc::iovec, MAX_VECTORS> = ArrayVec::new();
    let vector =
        |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    vectors.push(vector(&header));
    for part in packet.segments() {
        if vectors.try_push(vector(part)).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
    }
    // SAFETY: the vectors point to the header and to the packet's chunks, which outlive the call; the
    // kernel only reads them.
    sys::check_len(unsafe {
        libc::writev(device.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int)
    })?;
    Ok(())
}
