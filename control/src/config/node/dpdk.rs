//! `dpdk`, how DPDK is started, and the device of a port whose backend is `dpdk`.

use serde::Deserialize;

use super::values::range;
use crate::document::nullable;
use crate::problem::Findings;

/// Descriptors of a queue in each direction, each of which may hold a buffer of the pool.
pub const DPDK_SLOTS: u16 = 1024;

/// `dpdk`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DpdkConfig {
    /// Where its own memory lies.
    pub pages: DpdkPages,
    /// How much of it, MiB, when it is set.
    pub memory: Option<u32>,
    /// More arguments of its own.
    pub arguments: Vec<String>,
}

/// `dpdk.hugepages`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DpdkPages {
    /// In reserved huge pages.
    #[default]
    Huge,
    /// In ordinary pages.
    Ordinary,
}

/// `device` and `queues` of a port with the backend `dpdk`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DpdkDevice {
    /// The device as DPDK writes it, with its arguments.
    pub device: String,
    /// How many queues it must have, when it is set.
    pub queues: Option<u16>,
}

impl DpdkDevice {
    /// The name, without arguments: a PCI address, or a driver's name and a number or word.
    pub fn name(&self) -> &str {
        self.device.split(',').next().unwrap_or_default()
    }

    /// The interface of the kernel's whose frames the kernel sees too: that of DPDK's AF_PACKET and AF_XDP drivers.
    pub fn shared_interface(&self) -> Option<&str> {
        if !self.name().starts_with("net_af_packet") && !self.name().starts_with("net_af_xdp") {
            return None;
        }
        self.device.split(',').skip(1).find_map(|argument| argument.strip_prefix("iface="))
    }

    /// The address, if it is a PCI device.
    pub fn pci_address(&self) -> Option<&str> {
        let name = self.name();
        let is_address = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
        Some(name).filter(|name| name.contains(':') && name.chars().all(is_address))
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireDpdk {
    hugepages: Option<bool>,
    memory: Option<i64>,
    #[serde(default, deserialize_with = "nullable")]
    arguments: Vec<String>,
}

/// The section `dpdk`.
pub(super) fn read(wire: WireDpdk, findings: &mut Findings) -> DpdkConfig {
    DpdkConfig {
        pages: match wire.hugepages {
            Some(false) => DpdkPages::Ordinary,
            Some(true) | None => DpdkPages::Huge,
        },
        memory: range("", "dpdk.memory", wire.memory, 32..=1 << 20, findings),
        arguments: wire.arguments,
    }
}

/// `device` and `queues` of the port `name` on `interface`.
pub(super) fn read_device(
    part: &str,
    (name, interface): (&str, &str),
    device: Option<String>,
    queues: Option<i64>,
    findings: &mut Findings,
) -> Option<DpdkDevice> {
    let queues = range(part, "queues", queues, 1..=1024, findings).map(|queues| queues as u16);
    let device = device.unwrap_or_else(|| format!("net_af_packet_{name},iface={interface}"));
    if device.is_empty() || device.contains(char::is_whitespace) || device.starts_with([',', '-']) {
        let examples = "a PCI address (0000:03:00.0) or a virtual device (net_tap0,iface=x)";
        findings.error_in(part, format!("device {device:?} is not {examples}"));
        return None;
    }
    let device = DpdkDevice { device, queues };
    if let Some(shared) = device.shared_interface().filter(|shared| *shared != interface) {
        let name = device.name();
        let text =
            format!("device {name} is on {shared}, and interface says {interface}: they must be the same");
        findings.error_in(part, text);
    }
    Some(device)
}
