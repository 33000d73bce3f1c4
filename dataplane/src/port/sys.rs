//! The few system calls that the kernel's ports share, with Rust's types around them.

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A system call's result, with `errno` as the error.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`check`], for calls that return a length.
pub(super) fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An error that says what was tried, with the kind of `error`.
pub(super) fn context(error: &io::Error, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// A new socket, closed on exec.
pub(super) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers, and a descriptor that it returns belongs to nobody yet.
    unsafe {
        let fd = check(libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets a socket option whose value is an `int`, or a structure of plain numbers.
pub(super) fn set_option<T: Copy>(fd: &impl AsRawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a value that outlives the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Lets a socket receive only what a classic BPF program accepts.
pub(super) fn attach_filter(fd: &impl AsRawFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Reads a socket option into a copy of `value`, which is an `int` or a structure of plain numbers.
pub(super) fn get_option<T: Copy>(
    fd: &impl AsRawFd,
    level: c_int,
    name: c_int,
    mut value: T,
) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the value; any bytes are a valid `T`.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut len)
    })?;
    Ok(value)
}

/// Binds a socket to the address structure `address`.
pub(super) fn bind<T: Copy>(fd: &impl AsRawFd, address: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a value that outlives the call.
    check(unsafe {
        libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), size_of::<T>() as libc::socklen_t)
    })?;
    Ok(())
}

/// The address that a socket is bound to, read into a copy of `address`.
pub(super) fn bound_address<T: Copy>(fd: &impl AsRawFd, mut address: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the value; any bytes are a valid `T`.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), std::ptr::from_mut(&mut address).cast(), &mut len) })?;
    Ok(address)
}

/// The index of the interface `name` in the thread's network namespace.
///
/// # Errors
/// `no such interface: NAME`.
pub(super) fn interface_index(name: &str) -> io::Result<c_int> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no such interface: {name}"));
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(missing());
    }
    let text = CString::new(name).map_err(|_| missing())?;
    // SAFETY: `text` is a string that ends with a zero byte and outlives the call.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index as c_int),
    }
}

/// An empty interface request for `name`.
///
/// # Errors
/// When the name is empty, too long or holds a zero byte.
pub(super) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not an interface name: {name:?} (1 to {} bytes)", libc::IFNAMSIZ - 1),
        ));
    }
    // SAFETY: the structure is plain numbers; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// The interface's MTU in bytes.
pub(super) fn interface_mtu(fd: &impl AsRawFd, name: &str) -> io::Result<usize> {
    let mut request = interface_request(name)?;
    // SAFETY: this request reads the name from the structure and writes the MTU into it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFMTU, &mut request) })?;
    // SAFETY: the request succeeded, so this member of the union was written.
    Ok(usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
}

/// Pages of a file or socket, shared with the kernel; unmapped when dropped.
pub(super) struct Mapping {
    start: std::ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory of the process, not bound to a thread; who accesses it answers for that.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `fd` for reading and writing.
    pub(super) fn new(fd: RawFd, len: usize) -> io::Result<Mapping> {
        Mapping::at(fd, 0, len)
    }

    /// Maps `len` bytes of `fd` from `offset` for reading and writing.
    pub(super) fn at(fd: RawFd, offset: libc::off_t, len: usize) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: std::ptr::NonNull::new(start.cast()).expect("a mapping is not at 0"), len })
    }

    /// The first byte.
    pub(super) fn start(&self) -> std::ptr::NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and its owner goes.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
