//! The far end of a wire: everybody else's side of an interface, frame by frame, with what a sender left to
//! the device (PT-04).
//!
//! Of a veth pair it is a socket on the peer. Of a TAP it is a socket on the TAP itself: what is sent there its
//! reader gets, as what the host's stack sends, and what its reader writes comes in there.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt};
use pollux_dataplane::packet::{ChecksumState, Offload};

use super::sys::{self, Use};
use crate::kernel::netns::Netns;
use crate::lab::open_in;

/// Room for frames until they are read, bytes of kernel memory.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The largest frame: a 64 KiB super-frame behind its link header, with room for tags.
const FRAME_MAX: usize = (64 << 10) + 64;

/// `struct virtio_net_hdr`: flags, kind of super-frame, four numbers in the machine's byte order.
const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;

/// One far end.
#[derive(Debug)]
pub struct FarEnd {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl FarEnd {
    /// Of an interface of a namespace; it listens from now on.
    ///
    /// # Errors
    /// When there is no such interface, or without CAP_NET_RAW in the namespace.
    pub fn open(netns: &Netns, interface: &str) -> io::Result<FarEnd> {
        let socket = open_in(netns, || sys::packet_socket(interface, Use::Offloaded))?;
        // Beyond the system's limit where that is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        Ok(FarEnd { socket, buffer: vec![0; FRAME_MAX] })
    }

    /// Sends a frame, from its link header on. Of what is left to the device, the checksum is passed on.
    ///
    /// # Errors
    /// When the interface is down or its queue is full, or when the frame is longer than its MTU.
    pub fn send(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        let mut header = [0; HEADER];
        if let ChecksumState::Partial { start, offset } = offload.checksum {
            header[0] = NEEDS_CHECKSUM;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        let pieces = [IoSlice::new(&header), IoSlice::new(frame)];
        let sent =
            sendmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &pieces, &[], MsgFlags::empty(), None)?;
        if sent == HEADER + frame.len() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::WriteZero, "the frame was sent in part"))
        }
    }

    /// The next frame that has come, with what its sender left to this end; nothing when none is there.
    ///
    /// # Errors
    /// When the socket fails, and for a super-frame: who sends those is to be asked otherwise.
    pub fn receive(&mut self) -> io::Result<Option<(Vec<u8>, Offload)>> {
        let mut header = [0; HEADER];
        let mut pieces = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut pieces, None, flags) {
            Ok(message) => message,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (length, truncated) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        let invalid = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if truncated || length < HEADER {
            return invalid("a frame longer than 64 KiB");
        }
        if header[1] != 0 {
            return invalid("a super-frame");
        }
        let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let mut offload = Offload::default();
        if header[0] & NEEDS_CHECKSUM != 0 {
            offload.checksum = ChecksumState::Partial { start: number(6), offset: number(8) };
        }
        Ok(Some((self.buffer[..length - HEADER].to_vec(), offload)))
    }
}

impl AsFd for FarEnd {
    /// Readable when a frame has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
