//! Network namespaces: made, entered by threads and by child processes, configured.
//!
//! A namespace lives as long as a handle, a name, a thread or a process keeps it. Names lie in
//! `/run/netns`, where `ip netns` looks for them. Entering is per thread: [`Netns::run`] does its work on
//! a fresh thread, so the caller never changes its own namespace, and `/proc/sys/net` and sockets are
//! those of the namespace that the *thread* is in. (`/proc/net` is not: it is the main thread's;
//! `/proc/thread-self/net` is right.)

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::Error;
use super::sandbox::find_program;

/// Where iproute2 keeps the names.
const NAMES: &str = "/run/netns";

/// IPv4 settings that a new namespace copies from the machine (`net.core.devconf_inherit_init_net` 0);
/// set to the kernel's own defaults, so that what happens inside is the same on every machine.
const INHERITED: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/arp_ignore", "0"),
    ("net/ipv4/conf/all/arp_announce", "0"),
    ("net/ipv4/conf/all/accept_local", "0"),
    ("net/ipv4/conf/all/route_localnet", "0"),
];

/// A network namespace. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Option<Arc<str>>,
    file: Arc<File>,
}

impl Netns {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// If `/proc` does not show it.
    pub fn current() -> Result<Self, Error> {
        Self::open_path(None, Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a namespace with this name in `/run/netns`, with `lo` up and the kernel's default settings.
    ///
    /// # Errors
    /// If the name cannot be a file's name or is taken, or if the process may not make namespaces.
    pub fn add(name: &str) -> Result<Self, Error> {
        let path = Self::path_of(name)?;
        let action = format!("cannot make the network namespace {name}");
        File::create_new(&path).map_err(|error| Error::system(action.as_str(), error))?;
        let made = on_thread(|| -> Result<(), nix::Error> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })
        .map_err(|error| Error::system(action.as_str(), error))?;
        if let Err(errno) = made {
            // The name stood for nothing; nothing else can be done if it stays.
            let _ = fs::remove_file(&path);
            return Err(Error::system(action, errno));
        }
        let netns = Self::open_path(Some(name), &path)?;
        netns.prepare()?;
        Ok(netns)
    }

    /// The namespace that has this name in `/run/netns`.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_path(Some(name), &Self::path_of(name)?)
    }

    /// Takes the name away. The namespace ends with its last handle, thread and process.
    ///
    /// # Errors
    /// If the namespace has no name, or the name is in use by another mount namespace.
    pub fn delete(self) -> Result<(), Error> {
        let name = self
            .name
            .as_deref()
            .ok_or_else(|| Error::Invalid("a namespace without a name cannot be deleted".to_owned()))?;
        let path = Self::path_of(name)?;
        let failed =
            |error: io::Error| Error::system(format!("cannot delete the network namespace {name}"), error);
        umount2(&path, MntFlags::MNT_DETACH).map_err(|errno| failed(errno.into()))?;
        fs::remove_file(&path).map_err(failed)
    }

    /// The name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// A number that is the namespace's own while it lives (its inode in nsfs).
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn id(&self) -> Result<u64, Error> {
        let metadata = self
            .file
            .metadata()
            .map_err(|error| Error::system("cannot identify the network namespace", error))?;
        Ok(metadata.ino())
    }

    /// Does `work` in the namespace, on a thread of its own, and returns what it returns. A panic of
    /// `work` goes on in the caller.
    ///
    /// # Errors
    /// If no thread can be started or the thread may not enter.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| -> Result<T, nix::Error> {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
        .map_err(|error| Error::system("cannot start a thread", error))?
        .map_err(|errno| self.cannot_enter(errno.into()))
    }

    /// Starts a thread with this name (at most 15 bytes are kept) that lives in the namespace.
    ///
    /// # Errors
    /// If no thread can be started or the thread may not enter.
    pub fn start_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, Error> {
        // A thread starts in the namespace of the thread that starts it.
        self.run(|| thread::Builder::new().name(name.to_owned()).spawn(work))?
            .map_err(|error| Error::system(format!("cannot start the thread {name}"), error))
    }

    /// Starts a process in the namespace. It is killed when the *thread* that started it ends, so that
    /// nothing outlives the sandbox: start it from a thread that stays.
    ///
    /// # Errors
    /// If the program cannot be started or the process may not enter.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, Error> {
        self.command(command).spawn().map_err(|error| {
            Error::system(format!("cannot start {} in {self}", command.get_program().display()), error)
        })
    }

    /// Prepares `command` to run in the namespace, as [`spawn`](Netns::spawn) does.
    pub fn command<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let file = Arc::clone(&self.file);
        let parent = std::process::id();
        let enter = move || -> io::Result<()> {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the signal was set.
            if parent_id() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and does system calls only (setns, prctl,
        // getppid); it takes no lock and allocates nothing, also not for its errors, which are numbers.
        unsafe { command.pre_exec(enter) }
    }

    /// Runs `ip -batch` in the namespace with these lines: `link add a type veth peer b`, ...
    ///
    /// # Errors
    /// [`Error::Command`] with the first line that failed and what `ip` said; the lines before it have
    /// been done.
    pub fn ip(&self, batch: &str) -> Result<(), Error> {
        let mut command = Command::new(find_program("ip")?);
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A broken pipe means that ip has given up; its own message says why.
            let _ = stdin.write_all(batch.as_bytes());
            let _ = stdin.write_all(b"\n");
        }
        let output = child.wait_with_output().map_err(|error| Error::system("cannot wait for ip", error))?;
        if output.status.success() {
            return Ok(());
        }
        Err(batch_error(batch, &String::from_utf8_lossy(&output.stderr)))
    }

    /// Runs a program in the namespace to its end and returns what it printed on standard output.
    ///
    /// # Errors
    /// [`Error::Command`] with its standard error if it fails.
    pub fn output(&self, command: &mut Command) -> Result<String, Error> {
        let shown = format!("{command:?}").replace('"', "");
        let output = self
            .command(command)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Error::system(format!("cannot run {shown} in {self}"), error))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Command {
                command: shown,
                output: if stderr.is_empty() { output.status.to_string() } else { stderr },
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a kernel parameter of the namespace. `path` is relative to `/proc/sys`, with slashes, since
    /// names of interfaces may have dots: `net/ipv4/conf/eth0.5/rp_filter`.
    ///
    /// # Errors
    /// If there is no such parameter or it may not be written.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<(), Error> {
        self.run(|| write_sysctl(path, value))?
    }

    /// Reads a kernel parameter of the namespace.
    ///
    /// # Errors
    /// If there is no such parameter.
    pub fn sysctl(&self, path: &str) -> Result<String, Error> {
        self.run(|| read_sysctl(path))?
    }

    /// Brings a fresh namespace into the state that every machine gives alike.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        self.run(|| INHERITED.iter().try_for_each(|(path, value)| write_sysctl(path, value)))??;
        self.ip("link set lo up")
    }

    fn path_of(name: &str) -> Result<PathBuf, Error> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(Error::Invalid(format!("{name:?} cannot be the name of a network namespace")));
        }
        Ok(Path::new(NAMES).join(name))
    }

    fn open_path(name: Option<&str>, path: &Path) -> Result<Self, Error> {
        let file = File::open(path)
            .map_err(|error| Error::system(format!("cannot open {}", path.display()), error))?;
        Ok(Netns { name: name.map(Arc::from), file: Arc::new(file) })
    }

    fn cannot_enter(&self, error: io::Error) -> Error {
        Error::system(format!("cannot enter {self}"), error)
    }
}

impl std::fmt::Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "network namespace {name}"),
            None => f.write_str("the sandbox's network namespace"),
        }
    }
}

/// Reads a kernel parameter in the calling thread's network namespace.
pub(super) fn read_sysctl(path: &str) -> Result<String, Error> {
    let file = Path::new("/proc/sys").join(path);
    let text = fs::read_to_string(&file)
        .map_err(|error| Error::system(format!("cannot read {}", file.display()), error))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a kernel parameter in the calling thread's network namespace.
pub(super) fn write_sysctl(path: &str, value: &str) -> Result<(), Error> {
    let file = Path::new("/proc/sys").join(path);
    // Not `fs::write`: the file must exist, and a parameter takes its value in one write.
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut open| open.write_all(value.as_bytes()))
        .map_err(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Error::Environment {
                lacking: format!("{} is mounted read-only", file.display()),
                remedy: "in a container, run it with --privileged, which mounts /proc/sys writable"
                    .to_owned(),
            },
            _ => Error::system(format!("cannot write {value} to {}", file.display()), error),
        })
}

/// Does `work` on a fresh thread and waits for it; a panic goes on in the caller.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The error of a batch, with the text of the line that failed. `ip` says `Command failed -:LINE` last.
fn batch_error(batch: &str, stderr: &str) -> Error {
    let failed = stderr
        .lines()
        .find_map(|line| line.trim().strip_prefix("Command failed -:"))
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| batch.lines().nth(number.saturating_sub(1)))
        .unwrap_or("-batch -");
    let message: Vec<&str> =
        stderr.lines().filter(|line| !line.trim_start().starts_with("Command failed")).collect();
    Error::Command { command: format!("ip {}", failed.trim()), output: message.join("; ") }
}
