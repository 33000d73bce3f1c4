//! A sandbox of namespaces for the demo, the tests and the lab: network, mounts and, for an ordinary user,
//! a user namespace in which that user is root.
//!
//! Invariants: nothing outside is changed, and nothing is left behind. The names of the network namespaces
//! made inside lie in a tmpfs over `/run` that only this mount namespace has, so the last process that
//! ends takes names, namespaces and links with it, also after `kill -9`.
//!
//! The process enters before it starts any thread, since a thread takes only itself along.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::Error;
use super::netns::Netns;

/// Bits of `CapEff` in `/proc/PID/status` (linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Whose authority a process has over network namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// Root of the machine: the initial user namespace, with the capabilities to administer it.
    Root,
    /// Root inside a user namespace: may do as it likes in the network namespaces that the user namespace
    /// owns, and nothing elsewhere (no bpf(), no device nodes, no limits of the machine).
    UserNamespace,
    /// An ordinary user, who can make a user namespace where the machine allows it.
    Ordinary,
}

impl Privilege {
    /// Of this process.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_this_process() -> Result<Self, Error> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| Error::system(format!("cannot read {path}"), error))
        };
        let capabilities = effective_capabilities(&read("/proc/self/status")?);
        Ok(Self::from_proc(&read("/proc/self/uid_map")?, capabilities))
    }

    fn from_proc(uid_map: &str, capabilities: u64) -> Self {
        let needed = CAP_NET_ADMIN | CAP_SYS_ADMIN;
        if capabilities & needed != needed {
            return Privilege::Ordinary;
        }
        // Only the initial namespace maps every user to itself (user_namespaces(7)).
        if uid_map.split_whitespace().eq(["0", "0", "4294967295"]) {
            Privilege::Root
        } else {
            Privilege::UserNamespace
        }
    }
}

/// The `CapEff` line of `/proc/PID/status`; none if there is no such line.
fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Proof that the process is in a sandbox of its own.
#[derive(Debug)]
pub struct Sandbox {
    privilege: Privilege,
    netns: Netns,
}

impl Sandbox {
    /// Moves the process into new namespaces, for the rest of its life: as root a network and a mount
    /// namespace; as an ordinary user also a user namespace, in which the user is root. The new network
    /// namespace has `lo`, up, and nothing else. `/run` is empty and private.
    ///
    /// # Errors
    /// [`Error::Environment`] if the machine does not let this user make namespaces, if iproute2 is not
    /// installed, or if the process already has a second thread.
    pub fn enter() -> Result<Self, Error> {
        check_single_threaded()?;
        find_program("ip")?;
        let outside = Privilege::of_this_process()?;
        let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        let (user, group) = (geteuid(), getegid());
        if outside == Privilege::Ordinary {
            flags |= CloneFlags::CLONE_NEWUSER;
        }
        let refused = |step: &str, errno: Errno| diagnose(step, errno, outside, read_sysctl);
        unshare(flags).map_err(|errno| refused("making namespaces", errno))?;
        if outside == Privilege::Ordinary {
            // Without privilege a group map may be written only after setgroups() has been given up.
            write_map("/proc/self/setgroups", "deny", outside)?;
            write_map("/proc/self/uid_map", &format!("0 {user} 1"), outside)?;
            write_map("/proc/self/gid_map", &format!("0 {group} 1"), outside)?;
        }
        // Nothing that is mounted from here on may show outside.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .map_err(|errno| refused("making mounts private", errno))?;
        // The whole of /run: an ordinary user could not make /run/netns in the real one, and iptables
        // wants to write its lock there.
        mount(
            Some("tmpfs"),
            "/run",
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755"),
        )
        .map_err(|errno| refused("mounting a tmpfs over /run", errno))?;
        fs::create_dir("/run/netns").map_err(|error| Error::system("cannot make /run/netns", error))?;
        let netns = Netns::current()?;
        netns.prepare()?;
        let privilege = match outside {
            Privilege::Root => Privilege::Root,
            Privilege::UserNamespace | Privilege::Ordinary => Privilege::UserNamespace,
        };
        Ok(Sandbox { privilege, netns })
    }

    /// Whether the process is still root of the machine, or only of its user namespace.
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// The network namespace that the process itself lives in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

/// Checks that TUN and TAP devices can be made.
///
/// # Errors
/// [`Error::Environment`] if `/dev/net/tun` is missing, may not be opened by this user, or has no driver.
pub fn require_tun() -> Result<(), Error> {
    let path = Path::new("/dev/net/tun");
    let lacking = "/dev/net/tun".to_owned();
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Environment {
            lacking: format!("{lacking} does not exist"),
            remedy: "load the driver (modprobe tun); in a container, pass --device /dev/net/tun".to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Error::Environment {
            lacking: format!("{lacking} may not be opened by this user"),
            remedy: "run as root, or let users open it, as udev does (chmod 0666 /dev/net/tun)".to_owned(),
        }),
        Err(error) => Err(Error::Environment {
            lacking: format!("{lacking} cannot be opened ({error})"),
            remedy: "the kernel needs the TUN/TAP driver (CONFIG_TUN; modprobe tun)".to_owned(),
        }),
    }
}

/// The path of a program of the system, looked for in `PATH` and, because an ordinary user's `PATH` often
/// lacks them, in the directories of the administrator.
///
/// # Errors
/// [`Error::Environment`] if it is nowhere.
pub fn find_program(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::Environment {
            lacking: format!("the program `{name}` is not installed"),
            remedy: match name {
                "ip" => "install iproute2 (apt-get install iproute2)".to_owned(),
                name => format!("install {name}"),
            },
        })
}

fn check_single_threaded() -> Result<(), Error> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|error| Error::system("cannot read /proc/self/task", error))?
        .count();
    if threads == 1 {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "a sandbox is entered before threads are started; this process has {threads}"
        )))
    }
}

fn write_map(path: &str, text: &str, outside: Privilege) -> Result<(), Error> {
    fs::write(path, text).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        diagnose(&format!("writing {path}"), errno, outside, read_sysctl)
    })
}

fn read_sysctl(path: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
    Some(text.trim().to_owned())
}

/// Why the kernel refused `step`, and what to do, judged from the settings that forbid namespaces.
fn diagnose(step: &str, errno: Errno, outside: Privilege, sysctl: impl Fn(&str) -> Option<String>) -> Error {
    let environment = |lacking: &str, remedy: &str| Error::Environment {
        lacking: lacking.to_owned(),
        remedy: remedy.to_owned(),
    };
    let is = |path: &str, value: &str| sysctl(path).as_deref() == Some(value);
    if errno == Errno::ENOSPC {
        let kind = if is("user/max_user_namespaces", "0") { "user" } else { "net" };
        return environment(
            &format!("no more {kind} namespaces are allowed here"),
            &format!("raise the limit as root: sysctl -w user.max_{kind}_namespaces=15000"),
        );
    }
    let forbidden = matches!(errno, Errno::EPERM | Errno::EACCES);
    if outside == Privilege::Ordinary && forbidden {
        let without = "without privilege no user namespace can be used here";
        if is("kernel/unprivileged_userns_clone", "0") {
            return environment(
                without,
                "run as root, or allow it: sysctl -w kernel.unprivileged_userns_clone=1",
            );
        }
        if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
            return environment(
                without,
                "run as root, or allow it: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            );
        }
        return environment(
            &format!("{step} is forbidden here ({errno})"),
            "run as root; in a container, give it the capabilities SYS_ADMIN and NET_ADMIN (--privileged)",
        );
    }
    if outside == Privilege::Ordinary && errno == Errno::EINVAL {
        return environment("this kernel has no user namespaces (CONFIG_USER_NS)", "run as root");
    }
    if forbidden {
        return environment(
            &format!("{step} is forbidden here, even as root ({errno})"),
            "in a container, give it the capabilities SYS_ADMIN and NET_ADMIN (--privileged)",
        );
    }
    Error::system(step, errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_user_namespace_is_told_from_root_of_the_machine() {
        let all = effective_capabilities("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n");
        let initial = "         0          0 4294967295\n";
        assert_eq!(Privilege::from_proc(initial, all), Privilege::Root);
        assert_eq!(Privilege::from_proc("0 1000 1\n", all), Privilege::UserNamespace);
        // Rootless containers map a whole range, in several lines.
        assert_eq!(Privilege::from_proc("0 1000 1\n1 100000 65536\n", all), Privilege::UserNamespace);
        // Root of a container without the capability to administer the network.
        assert_eq!(Privilege::from_proc(initial, all & !CAP_NET_ADMIN), Privilege::Ordinary);
        assert_eq!(Privilege::from_proc(initial, 0), Privilege::Ordinary);
        assert_eq!(effective_capabilities("Name:\tx\n"), 0);
    }

    #[test]
    fn a_refusal_names_the_setting_that_causes_it() {
        let message = |errno, outside, set: Option<(&'static str, &'static str)>| {
            diagnose("making namespaces", errno, outside, |path| {
                set.filter(|(name, _)| *name == path).map(|(_, value)| value.to_owned())
            })
            .to_string()
        };
        let ordinary = Privilege::Ordinary;
        let debian = message(Errno::EPERM, ordinary, Some(("kernel/unprivileged_userns_clone", "0")));
        assert!(debian.contains("sysctl -w kernel.unprivileged_userns_clone=1"), "{debian}");
        let ubuntu =
            message(Errno::EACCES, ordinary, Some(("kernel/apparmor_restrict_unprivileged_userns", "1")));
        assert!(ubuntu.contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"), "{ubuntu}");
        let limit = message(Errno::ENOSPC, ordinary, Some(("user/max_user_namespaces", "0")));
        assert!(limit.contains("user.max_user_namespaces"), "{limit}");
        let limit = message(Errno::ENOSPC, Privilege::Root, None);
        assert!(limit.contains("user.max_net_namespaces"), "{limit}");
        let container = message(Errno::EPERM, Privilege::Root, None);
        assert!(container.contains("SYS_ADMIN"), "{container}");
        let old = message(Errno::EINVAL, ordinary, None);
        assert!(old.contains("CONFIG_USER_NS"), "{old}");
    }
}
