//! Network namespaces that vanish with the threads and sockets in them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};

/// Set for a process that is to do without root's rights.
pub(crate) const FORCE_USER: &str = "POLLUX_TEST_AS_USER";

/// Whose rights the process has outside of its namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rights {
    /// Root's: `bpf()` is allowed.
    Root,
    /// An ordinary user's, who is root in a user namespace only.
    User,
}

/// Leaves the machine's network namespace. To be called while the process has one thread.
pub(crate) fn enter() -> Rights {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if uid.is_root() && std::env::var_os(FORCE_USER).is_none() {
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
        return Rights::Root;
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .expect("this machine allows user namespaces (sysctl user.max_user_namespaces)");
    fs::write("/proc/self/setgroups", "deny").expect("the namespace is ours");
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("the namespace is ours");
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("the namespace is ours");
    Rights::User
}

/// A network namespace.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one, in which nothing speaks IPv6 by itself.
    pub(crate) fn new() -> Namespace {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for which in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
            }
            ip("link set lo up");
            Namespace(File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap()
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs `work` in the namespace. What it opens stays there.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The namespace's name for `ip link set netns`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs `ip` with arguments separated by blanks, in the thread's namespace, and returns what it printed.
pub(crate) fn ip(arguments: &str) -> String {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
