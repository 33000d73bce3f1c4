//! The guard: keeps the kernel from acting on what Pollux forwards (PT-05).
//!
//! On a port that the kernel sees as well, it would forward, answer or reject the same packets a second
//! time. A guard drops unicast IP frames addressed to the interface, behind the AF_PACKET taps, which go on
//! seeing them. ARP, multicast, broadcast, VLAN-tagged frames and all other protocols pass to the kernel. So does
//! what IPv6 does with unicast packets where IPv4 has other protocols, and what never leaves its link: neighbour
//! discovery, and packets to link-local addresses (DHCPv6 among them).
//!
//! Whatever becomes of the process, the guard ends with it: it hangs on open file descriptors only. A bare
//! tc filter would outlive a crash and cut off the node.
//!
//! Two means, in this order: a TCX link with a BPF program of two dozen instructions, in front of all others;
//! where `bpf()` is refused (an ordinary user in a user namespace, a kernel before 6.6), an nftables table
//! of family netdev with an ingress chain, owned by a netlink socket.

use std::ffi::{c_int, c_long};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::port::{nftables, sys};

/// Which frames a guard keeps from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Both,
}

impl Families {
    pub(super) fn ether_types(self) -> &'static [u16] {
        match self {
            Families::V4 => &[IPV4],
            Families::V6 => &[IPV6],
            Families::Both => &[IPV4, IPV6],
        }
    }
}

const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;

/// How a guard works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// BPF programs on TCX links, one for each interface.
    TcxLink,
    /// An nftables table that the kernel removes with its owner.
    NftablesTable,
}

impl std::fmt::Display for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Means::TcxLink => "TCX link",
            Means::NftablesTable => "nftables table",
        })
    }
}

/// Keeps frames from the kernel until it is dropped, or the process ends.
#[derive(Debug)]
pub struct Guard {
    means: Means,
    /// Open for as long as the guard lasts; nothing else refers to what they hold.
    _held: Vec<OwnedFd>,
}

impl Guard {
    /// Guards `interfaces` of the thread's network namespace by the first means that the kernel allows.
    ///
    /// # Errors
    /// `no such interface: NAME`; or why neither means is allowed. Nothing is guarded then.
    pub fn attach(interfaces: &[&str], families: Families) -> io::Result<Guard> {
        let indices = indices(interfaces)?;
        let tcx = match attach_links(&indices, families) {
            Ok(guard) => return Ok(guard),
            Err(error) => error,
        };
        attach_table(interfaces, families).map_err(|nftables| {
            io::Error::new(
                nftables.kind(),
                format!(
                    "cannot keep the kernel off {}: {}: {tcx}; {}: {nftables}",
                    interfaces.join(", "),
                    Means::TcxLink,
                    Means::NftablesTable
                ),
            )
        })
    }

    /// As [`attach`](Guard::attach), by `means` and no other.
    ///
    /// # Errors
    /// `no such interface: NAME`; or why the means is not allowed. Nothing is guarded then.
    pub fn attach_by(means: Means, interfaces: &[&str], families: Families) -> io::Result<Guard> {
        let indices = indices(interfaces)?;
        match means {
            Means::TcxLink => attach_links(&indices, families),
            Means::NftablesTable => attach_table(interfaces, families),
        }
        .map_err(|error| {
            sys::context(
                &error,
                format_args!("cannot keep the kernel off {} by {means}", interfaces.join(", ")),
            )
        })
    }

    /// How the guard works.
    pub fn means(&self) -> Means {
        self.means
    }
}

fn indices(interfaces: &[&str]) -> io::Result<Vec<c_int>> {
    interfaces.iter().map(|name| sys::interface_index(name)).collect()
}

fn attach_table(interfaces: &[&str], families: Families) -> io::Result<Guard> {
    Ok(Guard {
        means: Means::NftablesTable,
        _held: vec![nftables::drop_unicast(interfaces, families.ether_types())?],
    })
}

fn attach_links(indices: &[c_int], families: Families) -> io::Result<Guard> {
    let program = load(&instructions(families))?;
    let links = indices.iter().map(|index| create_link(&program, *index)).collect::<io::Result<_>>()?;
    Ok(Guard { means: Means::TcxLink, _held: links })
}

/// A BPF instruction, as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
/// Where the instructions that read a frame expect the program's argument.
const R6: u8 = 6;

/// Offsets in the program's view of a frame (`struct __sk_buff`).
const PACKET_TYPE: i16 = 4;
const PROTOCOL: i16 = 16;
const VLAN_PRESENT: i16 = 20;

/// What the program answers: on to the next program, or drop.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// The link-local prefix in the first two bytes of an address, and its mask.
pub(super) const LINK_LOCAL: (u16, u16) = (0xfe80, 0xffc0);
/// ICMPv6, and its types that are neighbour discovery (RFC 4861).
pub(super) const ICMPV6: u8 = 58;
pub(super) const DISCOVERY: RangeInclusive<u8> = 133..=137;
/// Places in an IPv6 packet, in bytes from its start: next header, destination, and the type of an ICMPv6 message
/// directly behind the header.
pub(super) const NEXT_HEADER: u32 = 6;
pub(super) const DESTINATION: u32 = 24;
pub(super) const ICMPV6_TYPE: u32 = 40;

/// Length of the link header, in bytes.
const LINK_LEN: u32 = 14;

/// The program: drop if the frame is for this interface's address, has no VLAN tag and one of the Ethernet
/// types, unless it is IPv6 that the kernel is to have. A frame that ends before what the program reads of it
/// passes, and is the kernel's to refuse.
fn instructions(families: Families) -> Vec<Instruction> {
    let instruction = |code, destination: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    };
    let set = |register, value| instruction(0xb7, register, 0, 0, value);
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let load = |register, offset| instruction(0x61, register, R1, offset, 0);
    let jump_if_equal = |register, value, over| instruction(0x15, register, 0, over, value);
    let jump_unless_equal = |register, value, over| instruction(0x55, register, 0, over, value);
    let jump_if_above = |register, value, over| instruction(0x25, register, 0, over, value);
    let and = |register, value| instruction(0x57, register, 0, 0, value);
    let subtract = |register, value| instruction(0x17, register, 0, 0, value);
    // Into R0, in the byte order of the machine, as unsigned number; R1 to R5 are lost.
    let read_byte = |at: u32| instruction(0x30, 0, 0, 0, (LINK_LEN + at) as i32);
    let read_half = |at: u32| instruction(0x28, 0, 0, 0, (LINK_LEN + at) as i32);
    let exit = || instruction(0x95, 0, 0, 0, 0);

    let mut program = vec![
        copy(R6, R1),
        set(R0, TCX_NEXT),
        load(R2, PACKET_TYPE),
        jump_if_equal(R2, i32::from(libc::PACKET_HOST), 1),
        exit(),
        load(R2, VLAN_PRESENT),
        jump_if_equal(R2, 0, 1),
        exit(),
        load(R2, PROTOCOL),
    ];
    let ipv6 = [
        read_half(DESTINATION),
        and(R0, i32::from(LINK_LOCAL.1)),
        jump_if_equal(R0, i32::from(LINK_LOCAL.0), 5), // pass
        read_byte(NEXT_HEADER),
        jump_unless_equal(R0, i32::from(ICMPV6), 5), // drop
        read_byte(ICMPV6_TYPE),
        subtract(R0, i32::from(*DISCOVERY.start())),
        jump_if_above(R0, i32::from(DISCOVERY.end() - DISCOVERY.start()), 2), // drop
        set(R0, TCX_NEXT),
        exit(),
    ];
    let drop = [set(R0, TCX_DROP), exit()];
    let is = |ether_type: u16, over| jump_if_equal(R2, i32::from(ether_type.to_be()), over);
    match families {
        Families::V4 => program.extend([is(IPV4, 1), exit()]),
        Families::V6 => program.extend([is(IPV6, 1), exit()]),
        Families::Both => program.extend([is(IPV4, 2 + ipv6.len() as i16), is(IPV6, 1), exit()]),
    }
    if families != Families::V4 {
        program.extend(ipv6);
    }
    program.extend(drop);
    program
}

const BPF_PROG_LOAD: c_int = 5;
const BPF_LINK_CREATE: c_int = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
/// In front of all programs, when no other is named.
const BPF_F_BEFORE: u32 = 1 << 3;

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadProgram {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// The members of `union bpf_attr` for `BPF_LINK_CREATE` of a TCX link.
#[repr(C)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadProgram {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"pollux_guard\0\0\0\0",
        interface: 0,
        expected_attach_type: BPF_TCX_INGRESS,
    };
    bpf(BPF_PROG_LOAD, &attributes)
}

fn create_link(program: &OwnedFd, interface: c_int) -> io::Result<OwnedFd> {
    let attributes = CreateLink {
        program: program.as_raw_fd().cast_unsigned(),
        interface: interface.cast_unsigned(),
        attach_type: BPF_TCX_INGRESS,
        flags: BPF_F_BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, &attributes)
}

/// The `bpf` system call, for commands that return a file descriptor.
fn bpf<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of the attributes, and what they point to, which the
    // callers keep for as long as the call; it writes nothing, for no log is asked for. The descriptor that
    // it returns belongs to nobody yet.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_bpf,
            c_long::from(command),
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        );
        sys::check(fd as c_int)?;
        Ok(OwnedFd::from_raw_fd(fd as c_int))
    }
}
