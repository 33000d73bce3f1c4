//! The few system calls of the lab that no safe crate offers.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What a packet socket is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Frames of both directions are received.
    Capture,
    /// Frames are only sent.
    Inject,
    /// Frames are sent, and those of the other end received.
    Exchange,
    /// As `Exchange`, each frame behind the virtio-net header that says what its sender left to the device.
    Offloaded,
}

/// A raw packet socket on `interface` of the calling thread's network namespace, non-blocking.
pub(super) fn packet_socket(interface: &str, purpose: Use) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // Protocol 0: nothing is received before the socket is bound to its interface.
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an address of plain integers; all zeroes is one of its values.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    address.sll_protocol = match purpose {
        Use::Capture | Use::Exchange | Use::Offloaded => (libc::ETH_P_ALL as u16).to_be(),
        Use::Inject => 0,
    };
    if matches!(purpose, Use::Exchange | Use::Offloaded) {
        switch_on(&socket, libc::PACKET_IGNORE_OUTGOING)?;
    }
    if purpose == Use::Offloaded {
        switch_on(&socket, libc::PACKET_VNET_HDR)?;
    }
    // SAFETY: `address` is a sockaddr_ll that lives across the call, and its true length is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Switches an option of a packet socket on.
fn switch_on(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an integer, which lives across the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Frames that a packet socket had no room for since the last call.
pub(super) fn packet_drops(socket: &OwnedFd) -> io::Result<u32> {
    // SAFETY: two counters, for which all zeroes is a value.
    let statistics: libc::tpacket_stats =
        unsafe { option(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)? };
    Ok(statistics.tp_drops)
}

/// TCP_INFO of a socket.
pub(super) fn tcp_info(socket: &impl AsRawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: counters and small integers, for which all zeroes is a value.
    unsafe { option(socket, libc::IPPROTO_TCP, libc::TCP_INFO) }
}

/// A socket option read as a `T`; what the kernel does not fill stays zero.
///
/// # Safety
/// All zeroes, and whatever the kernel writes for this option, must be values of `T`.
unsafe fn option<T>(socket: &impl AsRawFd, level: i32, name: i32) -> io::Result<T> {
    // SAFETY: the caller's promise.
    let mut value: T = unsafe { zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has `length` bytes to write to and lives across the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A TUN device of this name in the calling thread's network namespace. It exists, with a carrier, until the
/// file is closed; nobody reads it, so what is routed to it waits in its queue and is then dropped.
pub(super) fn tun_device(name: &str, index: Option<u32>) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    if let Some(index) = index {
        // SAFETY: TUNSETIFINDEX reads one integer, which lives across the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFINDEX, &raw const index) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: a name and a union of integers; all zeroes is one of its values.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}
