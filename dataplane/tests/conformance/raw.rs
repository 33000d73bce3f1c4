//! The far end of a port of the kernel: an interface, read and written through a raw socket that knows nothing of
//! the port's own code. Every frame has a virtio-net header (virtio 1.2, section 5.1.6) both ways.

use std::fs;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use pollux_dataplane::packet::{ChecksumState, Gso, GsoKind, Offload};

use crate::bench::{Device, Sent, Taking, Wire, eventually};
use crate::frame::{ETHERNET, Frame, VLAN_TAG};
use crate::sandbox::ip;

const HEADER: usize = 10;
const LONGEST: usize = HEADER + 70_000;

/// Of the sum that a frame's sender leaves to the device.
const NEEDS_CHECKSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;
const GSO_KINDS: [(GsoKind, u8); 3] = [(GsoKind::Tcp4, 1), (GsoKind::Tcp6, 4), (GsoKind::Udp, 5)];

/// Where the tag stands in a frame.
const TAG: usize = 12;

/// An interface of the thread's namespace as the far end.
pub(crate) struct RawWire {
    socket: OwnedFd,
    /// The port's own device.
    device: &'static str,
    /// The interface that the socket is at: the device's peer, or the device itself.
    interface: &'static str,
    buffer: Vec<u8>,
}

impl RawWire {
    /// The far end of `device` at `interface`, both up.
    pub(crate) fn new(device: &'static str, interface: &'static str) -> RawWire {
        let socket = open(interface).expect("a raw socket");
        RawWire { socket, device, interface, buffer: vec![0; LONGEST] }
    }

    fn drops_of(&self, interface: &str) -> u64 {
        let table = fs::read_to_string("/proc/thread-self/net/dev").expect("the namespace's counters");
        let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let fields: Vec<u64> = line
            .unwrap_or_else(|| panic!("{interface} is among the interfaces"))
            .split_whitespace()
            .map(|field| field.parse().expect("a number"))
            .collect();
        // Received: bytes, packets, errors, drops, ...; and from the ninth on the same of sending.
        fields[3] + fields[11]
    }
}

impl Wire for RawWire {
    fn send(&mut self, frame: &Frame) -> Sent {
        let header = encode(&frame.offload);
        let parts = [&header[..], &frame.bytes]
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        loop {
            // SAFETY: the vectors point to the header and the frame, which live; the kernel only reads them.
            let sent = unsafe { libc::writev(self.socket.as_raw_fd(), parts.as_ptr(), 2) };
            if sent >= 0 {
                return Sent::OnItsWay;
            }
            match io::Error::last_os_error().raw_os_error() {
                // The device's queue is full: the kernel has dropped the frame, and the device counts it.
                Some(libc::ENOBUFS) => return Sent::OnItsWay,
                Some(libc::EINTR | libc::EAGAIN) => std::thread::yield_now(),
                Some(libc::EINVAL | libc::EMSGSIZE | libc::ENETDOWN | libc::ENXIO) => return Sent::Refused,
                other => panic!("sending at {}: {other:?}", self.interface),
            }
        }
    }

    fn receive(&mut self) -> Option<Frame> {
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        let mut control = [0u64; 8];
        // SAFETY: plain numbers and pointers; all zeros is a valid value.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let mut read = || {
            // SAFETY: the vector and the control buffer are ours alone and outlive the call.
            let read = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
            usize::try_from(read).ok()
        };
        // An error that the kernel has noted (the interface was down) comes first, once.
        let len = read().or_else(read)?;
        let tag = tag_of(&message);
        let mut bytes = self.buffer[HEADER..len].to_vec();
        bytes.splice(TAG..TAG, tag.into_iter().flatten());
        let inserted = if tag.is_some() { VLAN_TAG } else { 0 };
        let header = self.buffer[..HEADER].try_into().expect("ten bytes");
        Some(Frame { offload: decode(header, &bytes, inserted as u16), bytes })
    }

    fn set_taking(&mut self, taking: Taking) {
        // Frames wait in the device's queue, and the socket that sent them pays for their memory.
        match taking {
            Taking::No => {
                tc(&format!("qdisc replace dev {} root tbf rate 8kbit burst 1600 limit 100mb", self.device));
            }
            Taking::Yes => {
                tc(&format!("qdisc change dev {} root tbf rate 1gbit burst 1mb limit 100mb", self.device));
            }
        }
    }

    fn set_device(&mut self, device: Device) {
        match device {
            Device::Down => {
                ip(&format!("link set {} down", self.device));
            }
            Device::Up => {
                ip(&format!("link set {} up", self.device));
                wait_until_up(self.device);
                wait_until_up(self.interface);
            }
        }
    }

    fn set_mtu(&mut self, bytes: usize) -> bool {
        [self.device, self.interface].iter().all(|interface| {
            let arguments = format!("link set {interface} mtu {bytes}");
            let output = Command::new("ip").args(arguments.split_whitespace()).output();
            output.expect("iproute2 is installed").status.success()
        })
    }

    fn lost(&mut self) -> u64 {
        let peer = if self.interface == self.device { 0 } else { self.drops_of(self.interface) };
        self.drops_of(self.device) + peer
    }
}

/// Waits until an interface has its queue: what is sent between the carrier's return and that, the kernel
/// drops without a word. A TAP interface does not say more than that it is not down.
pub(crate) fn wait_until_up(name: &str) {
    let is_up = || {
        let line = ip(&format!("link show {name}"));
        line.contains("LOWER_UP") && (line.contains("state UP") || line.contains("state UNKNOWN"))
    };
    assert!(eventually(is_up), "{name} does not come up");
}

fn tc(arguments: &str) {
    let output =
        Command::new("tc").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn open(interface: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name ends with a zero and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes numbers.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
        set_option(&socket, libc::SOL_PACKET, option, 1)?;
    }
    // As much as the user may.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)
        .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 64 << 20))?;
    // SAFETY: the structure is plain numbers; all zeros is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address outlives the call and is as long as said.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value outlives the call and is as long as said.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) })?;
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The VLAN tag that the kernel took out of a frame.
fn tag_of(message: &libc::msghdr) -> Option<[u8; VLAN_TAG]> {
    // SAFETY: the kernel has filled the control buffer, which the message points to and which lives.
    let control = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (control.cmsg_level, control.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: a message of this type holds this structure.
    let data = unsafe { libc::CMSG_DATA(control).cast::<libc::tpacket_auxdata>().read_unaligned() };
    let [[a, b], [c, d]] = [data.tp_vlan_tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes()];
    (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some([a, b, c, d])
}

fn encode(offload: &Offload) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    if let ChecksumState::Partial { start, offset } = offload.checksum {
        put(6, start);
        put(8, offset);
        header[0] = NEEDS_CHECKSUM;
    }
    if let Some(gso) = offload.gso {
        header[2..4].copy_from_slice(&gso.header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
        let (_, number) = GSO_KINDS.into_iter().find(|(kind, _)| *kind == gso.kind).expect("all are listed");
        header[1] = number | if gso.ecn { GSO_ECN } else { 0 };
    }
    header
}

/// What a header says. The kernel's own length of the headers may be more than that (it is how much of the
/// frame lies in one piece), so it is read off the frame.
fn decode(header: [u8; HEADER], frame: &[u8], inserted: u16) -> Offload {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    if header[0] & NEEDS_CHECKSUM == 0 {
        assert_eq!(header[1], 0, "a super-frame has a partial checksum");
        return Offload::default();
    }
    let start = field(6) + inserted;
    let gso = GSO_KINDS.into_iter().find(|(_, number)| *number == header[1] & !GSO_ECN).map(|(kind, _)| {
        let transport =
            if kind == GsoKind::Udp { 8 } else { u16::from(frame[usize::from(start) + 12] >> 4) * 4 };
        Gso { kind, ecn: header[1] & GSO_ECN != 0, size: field(4), header_len: start + transport }
    });
    assert_eq!(gso.is_some(), header[1] != 0, "a known kind of super-frame, not {}", header[1]);
    assert!(frame.len() >= ETHERNET, "a whole link header");
    Offload { checksum: ChecksumState::Partial { start, offset: field(8) }, gso }
}
