//! AF_XDP sockets: the pool's memory given to the kernel, and a socket bound to a queue of an interface.
//!
//! The memory is registered once, as one UMEM, and every further socket shares it (`XDP_SHARED_UMEM`). Only the
//! first socket says how frames move (by copy or not, one buffer or several), so there is one UMEM for each such
//! way that is in use. All of them are the same memory: a chunk goes from any port to any other as it is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ring::{Consumer, Descriptor, Producer, Which};
use crate::pool::{CHUNK, Pool};
use crate::port::sys;

/// How frames move between the device and the pool's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// The device itself reads and writes the chunks; otherwise the kernel copies.
    pub(super) zero_copy: bool,
    /// Frames may lie in several chunks.
    pub(super) chains: bool,
}

/// A bound socket through which others share its UMEM.
struct Member {
    pool: *const Pool,
    way: Way,
    socket: Weak<OwnedFd>,
}

// SAFETY: the pointer is compared and never followed.
unsafe impl Send for Member {}

static MEMBERS: Mutex<Vec<Member>> = Mutex::new(Vec::new());

/// A socket and its rings.
pub(super) struct Socket {
    pub(super) fill: Producer<u64>,
    pub(super) completion: Consumer<u64>,
    pub(super) receive: Consumer<Descriptor>,
    pub(super) transmit: Producer<Descriptor>,
    // Behind the rings, whose pages keep it open: the kernel lets go of the socket once they are unmapped.
    fd: SharedFd,
}

/// The socket's descriptor, which others borrow while they are opened. Closed when this is dropped, not later.
struct SharedFd(Option<Arc<OwnedFd>>);

impl Drop for SharedFd {
    fn drop(&mut self) {
        // Who shares holds the lock.
        let mut members = MEMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        self.0 = None;
        members.retain(|member| member.socket.strong_count() > 0);
    }
}

/// What a socket is bound to.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Number of the interface.
    pub(super) interface: i32,
    /// Number of its queue.
    pub(super) queue: u32,
}

impl Socket {
    /// A socket with rings of `size` entries each. Nothing is received and sent before it is [bound](Socket::bind).
    pub(super) fn new(size: u32) -> io::Result<Socket> {
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0)?;
        Ok(Socket {
            fill: Producer::new(&fd, Which::Fill, size)?,
            completion: Consumer::new(&fd, Which::Completion, size)?,
            receive: Consumer::new(&fd, Which::Receive, size)?,
            transmit: Producer::new(&fd, Which::Transmit, size)?,
            fd: SharedFd(Some(Arc::new(fd))),
        })
    }

    /// Binds the socket. `attempt` says what it is to share: 0 is the first bound socket of this pool and way, and so
    /// on; when there are no more, the memory is registered anew.
    ///
    /// # Errors
    /// The kernel's, and whether there was a socket to share: then the next attempt, with a new socket, may succeed.
    pub(super) fn bind(
        &self,
        place: Place,
        pool: &'static Pool,
        way: Way,
        attempt: usize,
    ) -> Result<(), (io::Error, Shared)> {
        let mut members = MEMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        let other = members
            .iter()
            .filter(|member| std::ptr::eq(member.pool, pool) && member.way == way)
            .filter_map(|member| member.socket.upgrade())
            .nth(attempt);
        let shared = if other.is_some() { Shared::Yes } else { Shared::No };
        let result = match &other {
            None => self.register(pool).and_then(|()| self.bind_to(place, flags(way), 0)),
            Some(other) => self.bind_to(place, libc::XDP_SHARED_UMEM, other.as_raw_fd()),
        };
        result.map_err(|error| (error, shared))?;
        members.push(Member { pool, way, socket: Arc::downgrade(self.shared_fd()) });
        Ok(())
    }

    fn bind_to(&self, place: Place, flags: u16, shared: i32) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: place.interface.cast_unsigned(),
            sxdp_queue_id: place.queue,
            sxdp_shared_umem_fd: shared.cast_unsigned(),
        };
        sys::bind(&self.as_fd(), &address)
    }

    fn register(&self, pool: &'static Pool) -> io::Result<()> {
        let (start, len) = pool.region();
        let memory = libc::xdp_umem_reg {
            addr: start.as_ptr().expose_provenance() as u64,
            len: len as u64,
            chunk_size: CHUNK as u32,
            // The kernel's own 256 bytes are our headroom.
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        sys::set_option(&self.as_fd(), libc::SOL_XDP, libc::XDP_UMEM_REG, &memory).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::ENOBUFS) => io::Error::new(
                    io::ErrorKind::OutOfMemory,
                    format!(
                        "the limit of locked memory (RLIMIT_MEMLOCK, {} KiB) is below the {} KiB of the packet buffers: \
                         raise it (ulimit -l, LimitMEMLOCK=), or run with CAP_IPC_LOCK",
                        locked_memory_limit() / 1024,
                        len / 1024
                    ),
                ),
                _ => sys::context(&error, "XDP_UMEM_REG"),
            }
        })
    }

    /// Lets the kernel send what is in the transmit ring.
    pub(super) fn kick(&self) -> io::Result<()> {
        // SAFETY: there is no buffer and no address.
        let sent = unsafe {
            libc::sendto(
                self.as_fd().as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        sys::check_len(sent).map(drop)
    }

    /// Lets the kernel look at the fill ring. Says so when the interface is down or gone.
    pub(super) fn wake(&self) -> io::Result<()> {
        // SAFETY: there is no buffer.
        let received =
            unsafe { libc::recv(self.as_fd().as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
        sys::check_len(received).map(drop)
    }

    /// What the kernel counts of the socket.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        // SAFETY: the structure is plain numbers; all zeros is a valid value.
        let zero: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        sys::get_option(&self.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, zero)
    }

    fn shared_fd(&self) -> &Arc<OwnedFd> {
        self.fd.0.as_ref().expect("there until it is dropped")
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared_fd().as_fd()
    }
}

/// Whether a socket was to share another's UMEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shared {
    No,
    Yes,
}

fn flags(way: Way) -> u16 {
    let copy = if way.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    let chains = if way.chains { libc::XDP_USE_SG } else { 0 };
    copy | chains | libc::XDP_USE_NEED_WAKEUP
}

/// `RLIMIT_MEMLOCK` in bytes.
fn locked_memory_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the structure, which outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    limit.rlim_cur
}
