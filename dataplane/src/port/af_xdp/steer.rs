//! The steering program at an interface: loaded, attached, told what to take, and gone with its owner.
//!
//! It hangs on a link, an open file descriptor: whatever becomes of the process, the kernel gets its frames again. A
//! kernel that has no such links (before 5.9) keeps the program when the process is killed; the next start finds it by
//! its name and replaces it. A program of somebody else is left alone, and is an error that names it.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use aya::maps::{Array, HashMap, Map, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp, XdpMode, loaded_programs};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};

use super::attached::{self, Attached};
use super::device::Device;
use super::{Mode, Service, Steer};
use crate::port::guard::Families;
use crate::port::sys;

/// `steer.c`, compiled.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("steer.o");

/// The programs in it, for frames in one buffer and in several.
const PROGRAMS: [&str; 2] = ["pollux_steer", "pollux_steer_mb"];

/// Bits of [`Settings::what`], as in `steer.c`.
const TAKE_V4: u32 = 1;
const TAKE_V6: u32 = 2;
const TAKE_ALL: u32 = 4;
const LEAVE_SOME: u32 = 8;

/// `struct settings` of `steer.c`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub(super) what: u32,
    pub(super) address: [u8; 6],
    pub(super) padding: [u8; 2],
}

// SAFETY: plain numbers without a gap between them.
unsafe impl Pod for Settings {}

/// The program of one interface.
struct Program {
    /// Owns the link: the program is detached when this is dropped.
    program: Ebpf,
    settings: Settings,
}

/// The program of an interface, shared by its ports.
#[derive(Clone)]
pub(super) struct Steered(Arc<Mutex<Program>>);

/// Tells an interface's steering program what to take, for as long as one of its ports is there.
#[derive(Clone)]
pub struct Steering(Weak<Mutex<Program>>);

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steering")
    }
}

impl Steering {
    /// From now on the program takes this. Nothing happens when the ports are gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, steer: Steer) -> io::Result<()> {
        match self.0.upgrade() {
            Some(program) => Steered(program).set(steer),
            None => Ok(()),
        }
    }
}

/// Whether frames may come in several buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Buffers {
    One,
    Several,
}

impl Steered {
    /// Loads the program for `device`. It is not attached yet, and takes nothing.
    ///
    /// # Errors
    /// No permission for `bpf()`.
    pub(super) fn load(device: &Device, buffers: Buffers, leave: &[Service]) -> io::Result<Steered> {
        let mut program = load(OBJECT, device.queues).map_err(|error| explain_load(&error))?;
        let mut what = 0;
        if !leave.is_empty() {
            let mut services: HashMap<_, [u8; 4], u8> = map(&mut program, "LEAVE")?;
            for Service { protocol, port } in leave {
                let [high, low] = port.to_be_bytes();
                services.insert([*protocol, 0, high, low], 0, 0).map_err(io::Error::other)?;
            }
            what |= LEAVE_SOME;
        }
        let name = PROGRAMS[usize::from(buffers == Buffers::Several)];
        let settings = Settings { what, address: device.address, padding: [0; 2] };
        let steered = Steered(Arc::new(Mutex::new(Program { program, settings })));
        steered.set(Steer::Nothing)?;
        xdp(&mut steered.lock().program, name)?.load().map_err(|error| explain_bpf(&error))?;
        Ok(steered)
    }

    /// Attaches the program to the interface.
    ///
    /// # Errors
    /// A driver without native XDP, an MTU that needs several buffers, too few queues, another program.
    pub(super) fn attach(&self, device: &Device, mode: Mode, buffers: Buffers) -> io::Result<()> {
        let mut owner = self.lock();
        let program = xdp(&mut owner.program, PROGRAMS[usize::from(buffers == Buffers::Several)])?;
        let mut attach = || {
            let mode = match mode {
                Mode::Native => XdpMode::Driver,
                Mode::Generic => XdpMode::Skb,
            };
            program.attach_to_if_index(device.index.cast_unsigned(), mode)
        };
        let Err(error) = attach() else { return Ok(()) };
        if !matches!(errno(&error), Some(libc::EBUSY | libc::EEXIST)) {
            return Err(explain_attach(&error, device, mode));
        }
        let other = attached::at(device.index)?;
        let name = other.and_then(|other| program_name(other.program)).unwrap_or_default();
        if let Some(other) = other.filter(|_| PROGRAMS.contains(&name.as_str()))
            && attached::detach(device.index, other).is_ok()
        {
            return attach().map(drop).map_err(|error| explain_attach(&error, device, mode));
        }
        Err(explain_other(device, other, &name))
    }

    /// Hands the socket the frames of a queue.
    pub(super) fn add(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        let mut owner = self.lock();
        let mut sockets: XskMap<_> = map(&mut owner.program, "SOCKETS")?;
        sockets.set(queue, socket, 0).map_err(io::Error::other)
    }

    /// From now on nobody gets the frames of a queue.
    pub(super) fn remove(&self, queue: u32) {
        let mut owner = self.lock();
        if let Ok(mut sockets) = map::<XskMap<_>>(&mut owner.program, "SOCKETS") {
            let _ = sockets.unset(queue); // the kernel does it, too, when the socket is closed
        }
    }

    pub(super) fn set(&self, steer: Steer) -> io::Result<()> {
        let mut owner = self.lock();
        let what = match steer {
            Steer::Nothing => 0,
            Steer::Unicast(Families::V4) => TAKE_V4,
            Steer::Unicast(Families::V6) => TAKE_V6,
            Steer::Unicast(Families::Both) => TAKE_V4 | TAKE_V6,
            Steer::Everything => TAKE_ALL,
        };
        owner.settings.what = owner.settings.what & LEAVE_SOME | what;
        let settings = owner.settings;
        let mut array: Array<_, Settings> = map(&mut owner.program, "SETTINGS")?;
        array.set(0, settings, 0).map_err(io::Error::other)
    }

    /// From now on the interface has this link address.
    pub(super) fn set_address(&self, address: [u8; 6]) -> io::Result<()> {
        let mut owner = self.lock();
        if owner.settings.address == address {
            return Ok(());
        }
        owner.settings.address = address;
        let settings = owner.settings;
        let mut array: Array<_, Settings> = map(&mut owner.program, "SETTINGS")?;
        array.set(0, settings, 0).map_err(io::Error::other)
    }

    /// Frames that no socket was there for.
    pub(super) fn lost(&self) -> u64 {
        let mut owner = self.lock();
        let Ok(lost) = map::<PerCpuArray<_, u64>>(&mut owner.program, "LOST") else { return 0 };
        lost.get(&0, 0).map_or(0, |values| values.iter().sum())
    }

    pub(super) fn handle(&self) -> Steering {
        Steering(Arc::downgrade(&self.0))
    }

    fn lock(&self) -> MutexGuard<'_, Program> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The programs and maps of `object`, for an interface with so many queues.
pub(super) fn load(object: &[u8], queues: u32) -> Result<Ebpf, EbpfError> {
    // The kernel's own types are of no use here, and reading them takes long.
    EbpfLoader::new().btf(None).map_max_entries("SOCKETS", queues).load(object)
}

pub(super) fn xdp<'a>(program: &'a mut Ebpf, name: &str) -> io::Result<&'a mut Xdp> {
    let program = program.program_mut(name).expect("steer.c has it");
    program.try_into().map_err(io::Error::other)
}

pub(super) fn map<'a, T>(program: &'a mut Ebpf, name: &str) -> io::Result<T>
where
    T: TryFrom<&'a mut Map, Error = aya::maps::MapError>,
{
    T::try_from(program.map_mut(name).expect("steer.c has it")).map_err(io::Error::other)
}

fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

/// The number of the system call's error at the end of a chain of errors.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        at = error.source();
    }
    None
}

fn explain_load(error: &EbpfError) -> io::Error {
    explain_bpf(error)
}

fn explain_bpf(error: &(dyn std::error::Error + 'static)) -> io::Error {
    match errno(error) {
        Some(libc::EPERM | libc::EACCES) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "no permission for bpf(): run as root of the machine (CAP_BPF and CAP_NET_ADMIN; a user namespace's root \
             has neither)",
        ),
        code => sys::context(
            &code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error),
            "steering program",
        ),
    }
}

fn explain_attach(error: &ProgramError, device: &Device, mode: Mode) -> io::Error {
    let Device { name, driver, .. } = device;
    let text = match (errno(error), mode) {
        (Some(libc::EOPNOTSUPP), Mode::Native) => {
            format!("its driver, {driver}, has no native XDP: use mode generic")
        }
        (Some(libc::ERANGE | libc::EMSGSIZE), _) => format!(
            "the MTU of {name}, or of its peer, is over what its driver, {driver}, takes with XDP: lower it (ip link set dev {name} mtu ...)"
        ),
        (Some(libc::ENOSPC), _) => format!(
            "it has too few queues for XDP: its driver, {driver}, wants {} or more (ethtool -L {name} ...), on a veth as \
             many as its peer sends by",
            device.queues + 1
        ),
        (Some(code), _) => format!("steering program: {}", io::Error::from_raw_os_error(code)),
        (None, _) => format!("steering program: {error}"),
    };
    let kind = errno(error).map_or(io::ErrorKind::Other, |code| io::Error::from_raw_os_error(code).kind());
    io::Error::new(kind, text)
}

fn explain_other(device: &Device, other: Option<Attached>, name: &str) -> io::Error {
    let Device { name: interface, .. } = device;
    let text = match other {
        Some(Attached { program, .. }) if PROGRAMS.contains(&name) => format!(
            "another Pollux steers its frames (XDP program {program}, {name}): stop it first"
        ),
        Some(Attached { program, .. }) => format!(
            "an XDP program of somebody else is attached already (number {program}, {}): detach it (ip link set dev \
             {interface} xdp off, or stop what holds it), or use backend af_packet",
            if name.is_empty() { "without a name" } else { name }
        ),
        None => "an XDP program of somebody else is attached already: stop what holds it, or use backend af_packet"
            .to_owned(),
    };
    io::Error::new(io::ErrorKind::ResourceBusy, text)
}
