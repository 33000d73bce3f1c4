//! Frames as an interface of the lab sees them, and frames put onto it.
//!
//! A capture is a packet socket that was opened in the interface's namespace and can be read from any thread.
//! It is listening from [`Capture::start`] on, so whoever starts it before causing traffic misses nothing.
//! Frames are as the kernel holds them: checksums may be partial and TCP frames larger than the MTU (the
//! seed's "incorrect" checksums are the same thing).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr as SocketLink, MsgFlags, recvmsg, send, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;

use super::sys::{self, Use};
use crate::kernel::netns::Netns;
use crate::lab::open_in;

/// Room for captured frames until they are read, bytes of kernel memory.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The largest frame: a 64 KiB super-frame behind its link header, with room for tags.
const FRAME_MAX: usize = (64 << 10) + 64;

/// Which way a frame went, seen from the node that the interface belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// Into the node.
    In,
    /// Out of the node.
    Out,
}

/// A frame that was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Which way it went.
    pub direction: Direction,
    /// When the kernel saw it.
    pub at: SystemTime,
    /// From the link header on.
    pub bytes: Vec<u8>,
}

/// Captures the frames of one interface, both ways.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Capture {
    /// Starts to capture on an interface of a namespace.
    ///
    /// # Errors
    /// When there is no such interface, or without CAP_NET_RAW in the namespace.
    pub fn start(netns: &Netns, interface: &str) -> io::Result<Capture> {
        let socket = open_in(netns, || sys::packet_socket(interface, Use::Capture))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        // Beyond the system's limit where that is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        Ok(Capture { socket, buffer: vec![0; FRAME_MAX] })
    }

    /// The frames from the last call on, up to and with the first for which `last` holds; or all until
    /// `within` has passed. Never waits longer. With no time given, those that have been seen already.
    ///
    /// # Errors
    /// When the socket fails, for example because the interface has gone.
    pub fn frames_until(
        &mut self,
        mut last: impl FnMut(&Captured) -> bool,
        within: Duration,
    ) -> io::Result<Vec<Captured>> {
        let deadline = Instant::now() + within;
        let too_late = SystemTime::now() + within;
        let mut frames = Vec::new();
        loop {
            match self.receive()? {
                Some(frame) => {
                    // A flood must not keep us.
                    let done = last(&frame) || frame.at > too_late;
                    frames.push(frame);
                    if done {
                        return Ok(frames);
                    }
                }
                None if !self.wait(deadline)? => return Ok(frames),
                None => {}
            }
        }
    }

    /// Frames that were lost since the last call because nobody read in time.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn missed(&mut self) -> io::Result<u32> {
        sys::packet_drops(&self.socket)
    }

    /// One frame, if one is there.
    fn receive(&mut self) -> io::Result<Option<Captured>> {
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut pieces = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            match recvmsg::<SocketLink>(self.socket.as_raw_fd(), &mut pieces, Some(&mut control), flags) {
                Ok(message) => message,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        if message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame longer than 64 KiB"));
        }
        let direction = match message.address.map(|address| address.pkttype()) {
            Some(libc::PACKET_OUTGOING) => Direction::Out,
            _ => Direction::In,
        };
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let length = message.bytes;
        let at = stamp.map_or_else(SystemTime::now, |since| SystemTime::UNIX_EPOCH + since);
        Ok(Some(Captured { direction, at, bytes: self.buffer[..length].to_vec() }))
    }

    /// Waits for a frame; false when the deadline passes.
    fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(0) => Ok(false),
            Ok(_) | Err(nix::Error::EINTR) => Ok(Instant::now() < deadline),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends frames, from their link headers on, out of an interface of a namespace.
#[derive(Debug)]
pub struct Injector(OwnedFd);

impl Injector {
    /// For an interface of a namespace.
    ///
    /// # Errors
    /// When there is no such interface, or without CAP_NET_RAW in the namespace.
    pub fn open(netns: &Netns, interface: &str) -> io::Result<Injector> {
        Ok(Injector(open_in(netns, || sys::packet_socket(interface, Use::Inject))?))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the interface is down or its queue is full, or when the frame is longer than its MTU.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty())?;
        if sent == frame.len() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::WriteZero, "the frame was sent in part"))
        }
    }
}

/// Sends one frame, as [`Injector::send`] does.
///
/// # Errors
/// As there and at [`Injector::open`].
pub fn inject(netns: &Netns, interface: &str, frame: &[u8]) -> io::Result<()> {
    Injector::open(netns, interface)?.send(frame)
}
