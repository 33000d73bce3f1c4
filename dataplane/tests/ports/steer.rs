//! The steering program by itself: `steer.c` and the object beside it are the same program, and it decides as told.

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use crate::sandbox::Rights;
use crate::trial;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/port/af_xdp");

/// The compiler that made `steer.o`; others may choose other instructions.
const COMPILER: &str = "clang version 14.";

pub(crate) fn trials(rights: Rights) -> Vec<Trial> {
    if rights != Rights::Root {
        return Vec::new();
    }
    vec![
        trial!(the_kept_object_is_the_source_compiled),
        trial!(pt_05_the_steering_program_takes_what_a_guard_keeps_from_the_kernel),
    ]
}

pub(crate) fn kept_object() -> Vec<u8> {
    std::fs::read(format!("{FOLDER}/steer.o")).unwrap()
}

/// `steer.c`, compiled now, as `make steer` does.
fn compiled_object() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("steer.o");
    let output = Command::new("clang")
        .args(["-target", "bpf", "-mcpu=v2", "-O2", "-Wall", "-Wextra", "-Werror", "-c", "steer.c", "-o"])
        .arg(&object)
        .current_dir(FOLDER)
        .output()
        .expect("clang is installed (scripts/setup.sh test)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(object).unwrap()
}

fn the_kept_object_is_the_source_compiled() {
    let compiled = compiled_object();
    let version = Command::new("clang").arg("--version").output().unwrap().stdout;
    if String::from_utf8_lossy(&version).contains(COMPILER) {
        assert!(compiled == kept_object(), "steer.o is not steer.c compiled: make steer");
    }
    // By whatever compiler, it decides the same.
    let (mut kept, mut compiled) = (Steering::load(&kept_object()), Steering::load(&compiled));
    for what in 0..16 {
        for program in [&mut kept, &mut compiled] {
            program.set(what);
            program.leave(17, 53);
        }
        for (name, frame) in frames() {
            let (one, other) = (kept.takes(&frame), compiled.takes(&frame));
            assert_eq!(one, other, "{name}, {what}");
        }
    }
}

const TAKE_V4: u32 = 1;
const TAKE_V6: u32 = 2;
const TAKE_ALL: u32 = 4;
const LEAVE_SOME: u32 = 8;

const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A loaded program with its maps, attached nowhere.
struct Steering {
    program: Ebpf,
    names: [&'static str; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Settings {
    what: u32,
    address: [u8; 6],
    padding: [u8; 2],
}

// SAFETY: plain numbers without a gap between them.
unsafe impl aya::Pod for Settings {}

impl Steering {
    fn load(object: &[u8]) -> Steering {
        let mut program = EbpfLoader::new().btf(None).load(object).unwrap();
        let names = ["pollux_steer", "pollux_steer_mb"];
        for name in names {
            let program: &mut Xdp = program.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        Steering { program, names }
    }

    fn set(&mut self, what: u32) {
        let mut settings: Array<_, Settings> = self.program.map_mut("SETTINGS").unwrap().try_into().unwrap();
        settings.set(0, Settings { what, address: ADDRESS, padding: [0; 2] }, 0).unwrap();
    }

    fn leave(&mut self, protocol: u8, port: u16) {
        let mut services: HashMap<_, [u8; 4], u8> =
            self.program.map_mut("LEAVE").unwrap().try_into().unwrap();
        let [high, low] = port.to_be_bytes();
        services.insert([protocol, 0, high, low], 0, 0).unwrap();
    }

    fn lost(&self) -> u64 {
        let lost: PerCpuArray<_, u64> = self.program.map("LOST").unwrap().try_into().unwrap();
        lost.get(&0, 0).unwrap().iter().sum()
    }

    /// Whether the program takes a frame: there is no socket, so it is dropped and counted then. Otherwise it passes.
    fn takes(&self, frame: &[u8]) -> bool {
        let verdicts = self.names.map(|name| {
            let program: &Xdp = self.program.program(name).unwrap().try_into().unwrap();
            let before = self.lost();
            let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
            match (program.test_run(options).unwrap().return_value, self.lost() - before) {
                (1, 1) => true,
                (2, 0) => false,
                other => panic!("verdict and count {other:?}"),
            }
        });
        assert_eq!(verdicts[0], verdicts[1]);
        verdicts[0]
    }
}

/// Frames of every kind that the program knows, by name.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let to = |address| PacketBuilder::ethernet2([2; 6], address);
    let v4 = |address: [u8; 6]| to(address).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let v6 = |destination: [u8; 16]| to(ADDRESS).ipv6([1; 16], destination, 64);
    let global = [0x20; 16];
    let mut link_local = [0; 16];
    link_local[..2].copy_from_slice(&[0xfe, 0xbf]);
    let mut beside = global;
    beside[..2].copy_from_slice(&[0xfe, 0xc0]);
    let mut all = Vec::new();
    let mut add = |name, build: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = Vec::new();
        build(&mut frame);
        all.push((name, frame));
    };
    add("v4 udp", &|out| v4(ADDRESS).udp(1000, 80).write(out, b"payload").unwrap());
    add("v4 udp left", &|out| v4(ADDRESS).udp(1000, 53).write(out, b"payload").unwrap());
    add("v4 tcp", &|out| v4(ADDRESS).tcp(1000, 53, 1, 1).write(out, b"payload").unwrap());
    add("v4 fragment of a left one", &|out| {
        v4(ADDRESS).udp(1000, 53).write(out, b"payload").unwrap();
        out[20] = 0x20;
    });
    add("v4 later fragment", &|out| {
        v4(ADDRESS).udp(1000, 53).write(out, b"payload").unwrap();
        out[21] = 1;
    });
    add("v4 with options", &|out| {
        v4(ADDRESS).udp(1000, 53).write(out, b"payload").unwrap();
        out[14] = 0x46;
    });
    add("v4 without a port", &|out| {
        v4(ADDRESS).udp(1000, 53).write(out, b"payload").unwrap();
        out.truncate(36);
    });
    add("v4 another protocol", &|out| v4(ADDRESS).write(out, 47.into(), b"tunnelled").unwrap());
    add("v4 to another address", &|out| v4([4; 6]).udp(1000, 80).write(out, b"payload").unwrap());
    add("v4 broadcast", &|out| v4([0xff; 6]).udp(1000, 80).write(out, b"payload").unwrap());
    add("v6 udp", &|out| v6(global).udp(1000, 80).write(out, b"payload").unwrap());
    add("v6 udp left", &|out| v6(global).udp(1000, 53).write(out, b"payload").unwrap());
    add("v6 to a link-local address", &|out| v6(link_local).udp(1000, 80).write(out, b"payload").unwrap());
    add("v6 beside link-local", &|out| v6(beside).udp(1000, 80).write(out, b"payload").unwrap());
    for (name, kind) in [
        ("v6 echo", 128),
        ("v6 type 132", 132),
        ("v6 solicitation", 135),
        ("v6 redirect", 137),
        ("v6 type 138", 138),
    ] {
        add(name, &|out| v6(global).write(out, 58.into(), &[kind, 0, 0, 0]).unwrap());
    }
    add("v6 icmp without a type", &|out| v6(global).write(out, 58.into(), &[]).unwrap());
    add("v6 cut in its header", &|out| {
        v6(global).udp(1000, 80).write(out, b"payload").unwrap();
        out.truncate(50);
    });
    add("arp", &|out| {
        out.extend([0xff; 6]);
        out.extend([2, 2, 2, 2, 2, 2, 8, 6]);
        out.resize(60, 0);
    });
    add("tagged", &|out| {
        to(ADDRESS)
            .single_vlan(5.try_into().unwrap())
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(out, b"payload")
            .unwrap();
    });
    add("another ethernet type", &|out| {
        out.extend(ADDRESS);
        out.extend([2, 2, 2, 2, 2, 2, 0x88, 0xb5]);
        out.resize(60, 0);
    });
    all
}

fn pt_05_the_steering_program_takes_what_a_guard_keeps_from_the_kernel() {
    let mut steering = Steering::load(&kept_object());
    let taken = |steering: &Steering| -> Vec<&'static str> {
        frames().into_iter().filter(|(_, frame)| steering.takes(frame)).map(|(name, _)| name).collect()
    };
    // Before it is told anything, also of its own address, it takes nothing.
    assert!(taken(&steering).is_empty());
    let v4 = [
        "v4 udp",
        "v4 udp left",
        "v4 tcp",
        "v4 fragment of a left one",
        "v4 later fragment",
        "v4 with options",
    ];
    let v4 = [v4.as_slice(), &["v4 without a port", "v4 another protocol"]].concat();
    let v6 = ["v6 udp", "v6 udp left", "v6 beside link-local", "v6 echo", "v6 type 132", "v6 type 138"];
    for (what, expected) in [
        (0, vec![]),
        (TAKE_V4, v4.clone()),
        (TAKE_V6, v6.to_vec()),
        (TAKE_V4 | TAKE_V6, [v4.as_slice(), &v6].concat()),
        (TAKE_ALL, frames().into_iter().map(|(name, _)| name).collect()),
    ] {
        steering.set(what);
        assert_eq!(taken(&steering), expected, "{what}");
    }
    steering.leave(17, 53);
    steering.set(TAKE_V4 | TAKE_V6 | LEAVE_SOME);
    let without_left: Vec<_> = [v4.as_slice(), &v6]
        .concat()
        .into_iter()
        .filter(|name| !matches!(*name, "v4 udp left" | "v6 udp left"))
        .collect();
    assert_eq!(taken(&steering), without_left);
}

/// Attaches a program to an interface without a link: it outlives whoever did it.
pub(crate) fn attach_without_link(interface: &str, program: c_int) {
    let mut link = LinkMessage::default();
    link.header.index = nix::net::if_::if_nametoindex(interface).unwrap();
    link.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(program), LinkXdp::Flags(1 << 2)]));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::SetLink(link)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.send(&bytes, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).unwrap();
    assert!(matches!(&answer.payload, NetlinkPayload::Error(error) if error.code.is_none()), "{answer:?}");
}

/// The steering program, as an earlier Pollux may have left it.
pub(crate) fn attach_left_behind(interface: &str) {
    let steering = Steering::load(&kept_object());
    let program: &Xdp = steering.program.program("pollux_steer").unwrap().try_into().unwrap();
    use std::os::fd::AsFd;
    attach_without_link(interface, program.fd().unwrap().as_fd().as_raw_fd());
}

/// A program of two instructions that lets everything pass.
pub(crate) fn somebody_elses_program() -> OwnedFd {
    /// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 6],
        name: [u8; 16],
    }
    const BPF_PROG_LOAD: c_long = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x95]; // r0 = XDP_PASS; exit
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        count: 2,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        log: [0; 6],
        name: *b"their_filter\0\0\0\0",
    };
    // SAFETY: the kernel reads the structure and what it points to, all of which outlive the call; the descriptor that it
    // returns belongs to nobody yet.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>());
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as c_int)
    }
}
