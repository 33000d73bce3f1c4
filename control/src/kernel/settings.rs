//! What the kernel is told about single interfaces: sysctls of `net.ipv4.conf` and `net.ipv6.conf`. Read from
//! `/proc`, where a thread sees the values of its own network namespace.

use std::fs;

/// Settings of an interface that forwarding follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkSettings {
    /// `rp_filter`: 0 off, 1 strict, 2 loose. IPv4 alone has it.
    pub rp_filter: u8,
    /// IPv4's `ignore_routes_with_linkdown`.
    pub ignores_linkdown: bool,
    /// IPv6's.
    pub ignores_linkdown_v6: bool,
}

impl LinkSettings {
    /// What is in force for `interface` in the network namespace of the calling thread: the larger of what is set for
    /// it and for all. What cannot be read is 0, as on a kernel that does not have it.
    pub fn of(interface: &str) -> LinkSettings {
        let value = |family: &str, name: &str| {
            let read = |of: &str| {
                let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{of}/{name}")).ok()?;
                text.trim().parse::<u8>().ok()
            };
            read("all").max(read(interface)).unwrap_or(0)
        };
        LinkSettings {
            rp_filter: value("ipv4", "rp_filter"),
            ignores_linkdown: value("ipv4", "ignore_routes_with_linkdown") != 0,
            ignores_linkdown_v6: value("ipv6", "ignore_routes_with_linkdown") != 0,
        }
    }
}
