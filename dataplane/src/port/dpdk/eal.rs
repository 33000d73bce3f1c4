//! DPDK's environment (EAL): started once for the process, never stopped.
//!
//! It starts in a thread of its own: DPDK pins and names the thread that starts it, and its helper threads take over
//! what that thread has. All signals are blocked there, so none is delivered to a thread of DPDK's. What DPDK logs while
//! something is opened becomes part of the error; otherwise it goes to standard error.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use pollux_dpdk_sys as dpdk;

use crate::port::dpdk::{bridge, checks};

/// How the EAL is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where DPDK's own memory lies: headers of mbufs, descriptors, rings. Frames lie in the pool.
    pub pages: Pages,
    /// How much of it, MiB. [`Options::memory_for`] says how much a pool needs.
    pub memory: u32,
    /// Addresses of the PCI devices that will be opened (`0000:03:00.0`); others are left alone, and without any
    /// the PCI bus is not looked at.
    pub pci: Vec<String>,
    /// More arguments, as DPDK's documentation has them.
    pub arguments: Vec<String>,
}

/// Kinds of memory pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pages {
    /// Reserved huge pages: what a card needs.
    #[default]
    Huge,
    /// Ordinary pages: for virtual devices, or a card behind an IOMMU.
    Ordinary,
}

impl Default for Options {
    /// Huge pages, 128 MiB, no PCI device.
    fn default() -> Self {
        Options { pages: Pages::Huge, memory: 128, pci: Vec::new(), arguments: Vec::new() }
    }
}

impl Options {
    /// The MiB that DPDK needs beside a pool of `chunks` chunks: an mbuf for each, and 64 MiB for devices.
    pub fn memory_for(chunks: usize) -> u32 {
        // Object header, mbuf, and the padding that spreads objects over memory channels: docs/pool.md measured it.
        const HEADER: usize = 320;
        u32::try_from((chunks * HEADER).div_ceil(1 << 20)).unwrap_or(u32::MAX).saturating_add(64)
    }

    fn argument_list(&self) -> Vec<String> {
        let cores: Vec<String> = own_cores().iter().map(ToString::to_string).collect();
        let mut list: Vec<String> =
            ["pollux", "--no-telemetry", "--log-level=warning", "-m"].map(str::to_owned).into();
        list.push(self.memory.to_string());
        // One core of DPDK's, which may run on any of this process': workers pin themselves.
        list.extend(["--lcores".to_owned(), format!("0@({})", cores.join(","))]);
        list.extend(match self.pages {
            Pages::Huge => vec!["--in-memory".to_owned()],
            Pages::Ordinary => ["--no-huge", "--no-shconf", "--iova-mode=va"].map(str::to_owned).into(),
        });
        if self.pci.is_empty() {
            list.push("--no-pci".to_owned());
        }
        list.extend(self.pci.iter().flat_map(|device| ["-a".to_owned(), device.clone()]));
        list.extend(self.arguments.iter().cloned());
        list
    }
}

/// DPDK runs in this process.
#[derive(Clone, Copy, Debug)]
pub struct Eal(());

/// What became of the one start that a process has.
enum State {
    Stopped,
    Running(Options),
    Failed(String),
}

static STATE: Mutex<State> = Mutex::new(State::Stopped);

/// Held by whoever opens or closes something.
static CONTROL: Mutex<Shared> = Mutex::new(Shared { log: None, open: Vec::new() });

struct Shared {
    log: Option<File>,
    /// Names of the devices that are open. DPDK does not tell a device that it knows from one that is in use.
    open: Vec<String>,
}

impl Eal {
    /// Starts DPDK, or says that it runs with the same options.
    ///
    /// # Errors
    /// Too few free huge pages; a PCI device that is not there or bound to a kernel driver; whatever DPDK says. It
    /// runs already, with other options. An error of DPDK's own is final: it can be started once in a process.
    pub fn start(options: &Options) -> io::Result<Eal> {
        let mut state = STATE.lock().expect("no holder of this lock panics");
        match &*state {
            State::Running(running) if running == options => return Ok(Eal(())),
            State::Running(running) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("DPDK runs already, with {running:?}; it can be started once in a process"),
                ));
            }
            State::Failed(error) => return Err(io::Error::other(error.clone())),
            State::Stopped => {}
        }
        let sysfs = Path::new("/sys");
        if options.pages == Pages::Huge {
            checks::huge_pages(sysfs, options.memory)?;
        }
        for device in &options.pci {
            checks::pci_device(sysfs, device)?;
        }
        let list = options.argument_list();
        let started = std::thread::scope(|scope| scope.spawn(|| start_here(&list)).join());
        match started.expect("starting DPDK does not panic") {
            Ok(()) => {
                *state = State::Running(options.clone());
                Ok(Eal(()))
            }
            Err(error) => {
                let error = format!("DPDK does not start ({}): {error}", list[1..].join(" "));
                *state = State::Failed(error.clone());
                Err(io::Error::other(error))
            }
        }
    }

    /// The release of DPDK.
    pub fn version(self) -> &'static str {
        // SAFETY: DPDK returns a string that lives as long as the process.
        unsafe { CStr::from_ptr(dpdk::rte_version()) }.to_str().unwrap_or("unknown")
    }
}

/// Starts the EAL in this thread, which must not be used for anything else.
fn start_here(list: &[String]) -> Result<(), String> {
    nix::sys::signal::SigSet::all().thread_block().map_err(|error| error.to_string())?;
    let control = control();
    let strings: Vec<CString> = list
        .iter()
        .map(|text| CString::new(text.as_str()).map_err(|_| format!("{text:?}: a zero byte")))
        .collect::<Result<_, _>>()?;
    // DPDK keeps the pointers and changes their order: they live as long as the process.
    let strings: &'static [CString] = Box::leak(strings.into_boxed_slice());
    let pointers: Vec<*mut std::ffi::c_char> =
        strings.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let pointers: &'static mut [*mut std::ffi::c_char] = Box::leak(pointers.into_boxed_slice());
    // SAFETY: as `main` would pass them, with a null pointer behind the last one.
    let result = unsafe { dpdk::rte_eal_init(strings.len() as i32, pointers.as_mut_ptr()) };
    if result < 0 {
        return Err(control.error(last_error()).to_string());
    }
    bridge::register_handler().map_err(|error| error.to_string())
}

/// The processors that this process may run on.
fn own_cores() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    (0..nix::sched::CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect()
}

/// The error number of this thread's last call of DPDK.
pub(super) fn last_error() -> i32 {
    // SAFETY: reads a variable of the thread.
    unsafe { dpdk::shim_errno() }
}

/// The right to open and close, and what DPDK logs meanwhile.
pub(super) struct Control {
    shared: MutexGuard<'static, Shared>,
}

/// Waits for whoever opens or closes something else.
pub(super) fn control() -> Control {
    let mut shared = CONTROL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if shared.log.is_none() {
        shared.log = memory_file().ok();
    }
    if let Some(file) = &shared.log {
        let _ = file.set_len(0);
        // SAFETY: the descriptor is open, DPDK's side makes a copy of it, and this thread holds the lock.
        let _ = unsafe { dpdk::shim_log_to(file.as_raw_fd()) };
    }
    Control { shared }
}

/// A file that is memory only.
fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a string with its end; a descriptor that is returned belongs to nobody yet.
    let fd = unsafe {
        let fd = libc::memfd_create(c"pollux-dpdk-log".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    Ok(File::from(fd))
}

impl Control {
    /// DPDK's error number as an error, with what it logged.
    pub(super) fn error(&self, number: i32) -> io::Error {
        // DPDK's drivers return -1 for whatever went wrong.
        let error = match number.abs() {
            1 => io::Error::other("it failed"),
            number => io::Error::from_raw_os_error(number),
        };
        let text = self.logged();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            return error;
        }
        io::Error::new(error.kind(), format!("{error} ({})", lines.join("; ")))
    }

    /// What DPDK has logged since the lock was taken.
    pub(super) fn logged(&self) -> String {
        let mut text = String::new();
        if let Some(mut file) = self.shared.log.as_ref() {
            let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
        }
        text
    }

    /// Whether the device is open here.
    pub(super) fn is_open(&self, name: &str) -> bool {
        self.shared.open.iter().any(|open| open == name)
    }

    /// Notes that the device is open.
    pub(super) fn opened(&mut self, name: &str) {
        self.shared.open.push(name.to_owned());
    }

    /// Notes that the device is closed.
    pub(super) fn closed(&mut self, name: &str) {
        self.shared.open.retain(|open| open != name);
    }

    /// The result of a call that returns a negative error number.
    pub(super) fn check(&self, result: i32) -> io::Result<i32> {
        if result < 0 { Err(self.error(result)) } else { Ok(result) }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: sets where DPDK logs to.
        unsafe { dpdk::shim_log_restore() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_what_the_options_say() {
        let options = Options {
            pages: Pages::Ordinary,
            memory: 96,
            pci: Vec::new(),
            arguments: vec!["--vdev=net_null0".to_owned()],
        };
        let list = options.argument_list().join(" ");
        assert!(
            list.contains(" -m 96 ") && list.contains(" --no-huge --no-shconf --iova-mode=va --no-pci "),
            "{list}"
        );
        assert!(list.ends_with(" --vdev=net_null0") && list.contains(" --lcores 0@("), "{list}");
        let card = Options { pci: vec!["0000:03:00.0".to_owned()], ..Options::default() };
        let list = card.argument_list().join(" ");
        assert!(list.contains(" --in-memory -a 0000:03:00.0") && !list.contains("--no-pci"), "{list}");
    }

    #[test]
    fn memory_grows_with_the_pool() {
        assert_eq!(Options::memory_for(0), 64);
        assert_eq!(Options::memory_for(65_536), 64 + 20);
    }
}
