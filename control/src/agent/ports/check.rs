//! What can be known of the ports before something is changed.

use std::collections::HashSet;
use std::fs;

use super::backend;
use crate::cli::Failure;
use crate::config::NodeConfig;
use crate::kernel::state::KernelState;

/// Bits of `CapEff` in `/proc/PID/status` (linux/capability.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Capability {
    name: &'static str,
    bit: u32,
}

pub(super) const NET_ADMIN: Capability = Capability { name: "CAP_NET_ADMIN", bit: 12 };
pub(super) const NET_RAW: Capability = Capability { name: "CAP_NET_RAW", bit: 13 };

/// Checks everything that can be known before something is changed.
///
/// # Errors
/// Exit code 2 for what the configuration says wrong, 4 for what the machine lacks: a line for each.
pub(in crate::agent) fn check(config: &NodeConfig, kernel: &KernelState) -> Result<(), Failure> {
    if config.ports.is_empty() && config.patterns.is_empty() {
        return Err(Failure::bad_input(
            "the configuration has no ports: list them in a document of kind Node of pollux.dev/v1alpha1",
        ));
    }
    let mut wrong: Vec<String> = config.ports.iter().flat_map(|port| backend::wrong(port, kernel)).collect();
    wrong.extend(shared_interfaces(config));
    if !wrong.is_empty() {
        return Err(Failure::bad_input(wrong.join("\n")));
    }
    let mut lacking = missing_privileges(config);
    lacking.extend(config.ports.iter().filter_map(|port| backend::lacking(port, kernel)));
    if lacking.is_empty() { Ok(()) } else { Err(Failure::environment(lacking.join("\n"))) }
}

/// Two ports cannot have one interface.
fn shared_interfaces(config: &NodeConfig) -> Vec<String> {
    let mut interfaces = HashSet::new();
    let ports = config.ports.iter().filter(|port| backend::has_interface(port));
    let twice = ports.filter(|port| !interfaces.insert(&port.interface));
    twice
        .map(|port| format!("port {}: interface {} is another port's already", port.name, port.interface))
        .collect()
}

fn missing_privileges(config: &NodeConfig) -> Vec<String> {
    let mut needed: Vec<Capability> = Vec::new();
    for capability in config.ports.iter().chain(&config.patterns).flat_map(|port| backend::privileges(port)) {
        if !needed.contains(capability) {
            needed.push(*capability);
        }
    }
    let have = effective_capabilities();
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|capability| have & (1 << capability.bit) == 0)
        .map(|capability| capability.name)
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    vec![format!("no permission to open the ports ({} missing): run as root", missing.join(" and "))]
}

/// `CapEff` of the calling thread; none when `/proc` does not say.
fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}
