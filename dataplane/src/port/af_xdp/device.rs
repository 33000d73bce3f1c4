//! What an interface says of itself: driver, queues, address.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::port::{LinkState, sys};

const ETHTOOL_SETTINGS: u32 = 0x01;
const ETHTOOL_DRIVER: u32 = 0x03;
const ETHTOOL_CHANNELS: u32 = 0x3c;

/// An interface of the thread's network namespace.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) index: i32,
    pub(super) address: [u8; 6],
    pub(super) driver: String,
    /// Queues that frames are received by.
    pub(super) queues: u32,
    socket: OwnedFd,
}

impl Device {
    /// # Errors
    /// `no such interface: NAME`; not an Ethernet interface.
    pub(super) fn find(name: &str) -> io::Result<Device> {
        let index = sys::interface_index(name)?;
        let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let address = link_address(&socket, name)?;
        let driver = driver(&socket, name).unwrap_or_else(|_| "unknown".to_owned());
        // A driver that does not say has one.
        let queues = receive_queues(&socket, name).unwrap_or(1).max(1);
        Ok(Device { name: name.to_owned(), index, address, driver, queues, socket })
    }

    /// The MTU in bytes.
    pub(super) fn mtu(&self) -> io::Result<usize> {
        sys::interface_mtu(&self.socket, &self.name)
    }

    /// The link address, which may have changed.
    pub(super) fn link_address(&self) -> io::Result<[u8; 6]> {
        link_address(&self.socket, &self.name)
    }

    /// Whether frames can pass, and how fast.
    pub(super) fn link(&self) -> io::Result<LinkState> {
        const RUNNING: libc::c_int = libc::IFF_UP | libc::IFF_RUNNING;
        let mut request = sys::interface_request(&self.name)?;
        // SAFETY: this request reads the name from the structure and writes flags into it.
        sys::check(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
        // SAFETY: the request succeeded, so this member of the union was written.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let megabits = speed(&self.socket, &self.name).ok().filter(|speed| *speed != 0 && *speed != u32::MAX);
        Ok(LinkState { up: flags & RUNNING == RUNNING, megabits })
    }
}

/// `struct ethtool_cmd`: the speed's halves, Mbit/s.
fn speed(socket: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut settings = [0u32; 11];
    settings[0] = ETHTOOL_SETTINGS;
    ethtool(socket, name, &mut settings)?;
    let half = |word: u32, at: usize| {
        u32::from(u16::from_ne_bytes([word.to_ne_bytes()[at], word.to_ne_bytes()[at + 1]]))
    };
    Ok(half(settings[3], 0) | half(settings[7], 0) << 16)
}

fn link_address(socket: &OwnedFd, name: &str) -> io::Result<[u8; 6]> {
    let mut request = sys::interface_request(name)?;
    // SAFETY: this request reads the name from the structure and writes an address into it.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) })?;
    // SAFETY: the request succeeded, so this member of the union was written.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an Ethernet interface"));
    }
    Ok(std::array::from_fn(|at| address.sa_data[at].cast_unsigned()))
}

/// `struct ethtool_drvinfo`.
fn driver(socket: &OwnedFd, name: &str) -> io::Result<String> {
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_DRIVER;
    ethtool(socket, name, &mut info)?;
    let bytes: Vec<u8> =
        info[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `struct ethtool_channels`: queues that only receive, and those that do both.
fn receive_queues(socket: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut channels = [0u32; 9];
    channels[0] = ETHTOOL_CHANNELS;
    ethtool(socket, name, &mut channels)?;
    Ok(channels[5] + channels[8])
}

fn ethtool<const N: usize>(socket: &OwnedFd, name: &str, value: &mut [u32; N]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut request = sys::interface_request(name)?;
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the request reads the name, and reads and writes the value behind the pointer, whose length is that of
    // the structure that its first word names; both outlive the call.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) })?;
    Ok(())
}
