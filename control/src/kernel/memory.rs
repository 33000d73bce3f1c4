//! How much memory a process of this machine may still take: asked before tables are made whose size is
//! configured, so that one that does not fit is one clear line and not the kernel's killer an hour later.

use std::fmt::{self, Display};
use std::fs;

/// The narrowest limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes that are left.
    pub bytes: u64,
    /// What sets the limit.
    pub limit: Limit,
}

/// What limits memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// What the machine has free or can free, and its free huge pages.
    Machine,
    /// The address space of the process (`ulimit -v`).
    AddressSpace,
    /// The data of the process (`ulimit -d`).
    Data,
    /// `memory.max` of the process's control group, or of one above it.
    ControlGroup,
}

impl Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Machine => "the machine",
            Limit::AddressSpace => "the limit of the address space (ulimit -v)",
            Limit::Data => "the limit of data (ulimit -d)",
            Limit::ControlGroup => "the control group (memory.max)",
        })
    }
}

/// The narrowest limit of this process; nothing when none can be read.
pub fn room() -> Option<Room> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (limits, status) = (read("/proc/self/limits"), read("/proc/self/status"));
    let all = [
        machine(&read("/proc/meminfo")).map(|bytes| (bytes, Limit::Machine)),
        resource(&limits, "Max address space", &status, "VmSize:").map(|bytes| (bytes, Limit::AddressSpace)),
        resource(&limits, "Max data size", &status, "VmData:").map(|bytes| (bytes, Limit::Data)),
        control_group(&read("/proc/self/cgroup")).map(|bytes| (bytes, Limit::ControlGroup)),
    ];
    all.into_iter().flatten().min_by_key(|(bytes, _)| *bytes).map(|(bytes, limit)| Room { bytes, limit })
}

/// The number behind a name in a file of `/proc`.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn machine(meminfo: &str) -> Option<u64> {
    let available = number(meminfo, "MemAvailable:")? * 1024;
    let huge = number(meminfo, "HugePages_Free:").zip(number(meminfo, "Hugepagesize:"));
    Some(available + huge.map_or(0, |(pages, kilobytes)| pages * kilobytes * 1024))
}

fn resource(limits: &str, name: &str, status: &str, used: &str) -> Option<u64> {
    let limit = number(limits, name)?; // `unlimited` is no number
    Some(limit.saturating_sub(number(status, used)? * 1024))
}

/// What is left in the groups of the unified hierarchy, this one and those above.
fn control_group(own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |path: String| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut left: Option<u64> = None;
    let mut group = Some(path);
    while let Some(path) = group {
        let file = |name: &str| format!("/sys/fs/cgroup/{path}/{name}");
        if let (Some(max), Some(used)) = (number(file("memory.max")), number(file("memory.current"))) {
            let here = max.saturating_sub(used);
            left = Some(left.map_or(here, |left| left.min(here)));
        }
        group = path.rsplit_once('/').map(|(above, _)| above);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_room_is_what_is_available_and_free_huge_pages() {
        let meminfo = "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   500 kB\nHugePages_Free:    2\n\
                       Hugepagesize:       2048 kB\n";
        assert_eq!(machine(meminfo), Some(500 * 1024 + 2 * 2048 * 1024));
        assert_eq!(machine("MemAvailable: 1 kB\n"), Some(1024));
        assert_eq!(machine(""), None);
    }

    #[test]
    fn a_limit_of_the_process_leaves_what_is_not_used() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max data size             unlimited            unlimited            bytes\n\
                      Max address space         1048576              unlimited            bytes\n";
        let status = "Name:\tpollux\nVmSize:\t     512 kB\nVmData:\t 100 kB\n";
        assert_eq!(resource(limits, "Max address space", status, "VmSize:"), Some(512 * 1024));
        assert_eq!(resource(limits, "Max data size", status, "VmData:"), None);
        assert_eq!(resource(limits, "Max address space", "VmSize: 9999 kB", "VmSize:"), Some(0));
    }

    #[test]
    fn this_process_has_room() {
        let room = room().expect("a machine with /proc");
        assert!(room.bytes > 1 << 20, "{room:?}");
    }
}
