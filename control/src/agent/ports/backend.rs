//! The backends of ports: what each asks of the configuration and the machine, and how it is opened. A
//! backend is an arm in each function here; one that needs more than a few lines has a file beside this one.

use std::io;

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{self, AfPacketPort};
use pollux_dataplane::port::af_xdp::Steering;
use pollux_dataplane::port::memory::{MemoryHandle, MemoryPort, Rings};
use pollux_dataplane::port::tap::TapPort;
use pollux_dataplane::port::{Capabilities, Port};
use tracing::warn;

use super::af_xdp;
use super::check::{Capability, NET_ADMIN, NET_RAW};
use super::pair::{PairPort, far_end};
use crate::cli::Failure;
use crate::config::NodeConfig;
use crate::config::node::{Backend, PortConfig};
use crate::kernel::sandbox::require_tun;
use crate::kernel::state::KernelState;

/// Longest name of an interface (`IFNAMSIZ` with its zero).
const LONGEST_NAME: usize = 15;

/// The host port's MTU when it is not set, bytes.
pub(super) const DEFAULT_MTU: u32 = 1500;

/// The word of the configuration.
pub(in crate::agent) fn name(backend: Backend) -> &'static str {
    match backend {
        Backend::AfPacket => "af_packet",
        Backend::AfXdp => "af_xdp",
        Backend::Dpdk => "dpdk",
        Backend::Tap => "tap",
        Backend::Pcap => "pcap",
        Backend::Memory => "memory",
        Backend::Ipip => "ipip",
    }
}

/// Whether a port of the backend has an interface of the kernel's to itself.
pub(super) fn has_interface(port: &PortConfig) -> bool {
    match port.backend {
        Backend::AfPacket | Backend::AfXdp | Backend::Tap => true,
        Backend::Dpdk => shared_interface(port).is_some(),
        Backend::Pcap | Backend::Memory | Backend::Ipip => false,
    }
}

/// Whether the kernel sees the frames too, and has to be kept from acting on them (PT-05). The steering program of
/// AF_XDP keeps them by itself.
pub(super) fn is_shared(port: &PortConfig) -> bool {
    match port.backend {
        Backend::AfPacket => true,
        Backend::Dpdk => shared_interface(port).is_some(),
        Backend::AfXdp | Backend::Tap | Backend::Pcap | Backend::Memory | Backend::Ipip => false,
    }
}

/// What a process needs to open it.
pub(super) fn privileges(port: &PortConfig) -> &'static [Capability] {
    match port.backend {
        Backend::AfPacket | Backend::AfXdp => &[NET_ADMIN, NET_RAW],
        Backend::Dpdk if shared_interface(port).is_some() => &[NET_ADMIN, NET_RAW],
        // A card's file in /dev/vfio may belong to anybody.
        Backend::Dpdk => &[],
        Backend::Tap => &[NET_ADMIN],
        Backend::Pcap | Backend::Memory | Backend::Ipip => &[],
    }
}

/// What is wrong with the configuration of a port: a line for each.
pub(super) fn wrong(port: &PortConfig, kernel: &KernelState) -> Vec<String> {
    let PortConfig { name, interface, .. } = port;
    match port.backend {
        Backend::Memory | Backend::Ipip => Vec::new(),
        Backend::Pcap => {
            vec![format!("port {name}: backend pcap has no place on a running node (see `pollux replay`)")]
        }
        Backend::Tap if interface.len() > LONGEST_NAME => {
            vec![format!("port {name}: interface {interface} has more than {LONGEST_NAME} characters")]
        }
        Backend::Tap => Vec::new(),
        Backend::AfPacket | Backend::AfXdp => differs_from_link(port, kernel),
        Backend::Dpdk if cfg!(not(feature = "dpdk")) => vec![format!(
            "port {name}: backend dpdk is not in this pollux: build it with --features dpdk, or use af_packet"
        )],
        Backend::Dpdk if shared_interface(port).is_some() => differs_from_link(port, kernel),
        Backend::Dpdk => Vec::new(),
    }
}

/// The interface of the kernel's that a port of DPDK shares with it, if it does.
fn shared_interface(port: &PortConfig) -> Option<&str> {
    port.device.as_ref()?.shared_interface()
}

/// What the configuration says otherwise than the interface that is there already.
fn differs_from_link(port: &PortConfig, kernel: &KernelState) -> Vec<String> {
    let PortConfig { name, interface, .. } = port;
    let mut wrong = Vec::new();
    let Some(link) = kernel.link(interface) else { return wrong };
    if let (Some(set), Some(own)) = (port.link_address, link.link_address)
        && set != own
    {
        wrong.push(format!("port {name}: linkAddress {set} is not {interface}'s, which is {own}"));
    }
    if let Some(mtu) = port.mtu.filter(|mtu| u32::from(*mtu) > link.mtu) {
        wrong.push(format!("port {name}: mtu {mtu} is more than {interface}'s, which is {}", link.mtu));
    }
    wrong
}

/// What the machine lacks for a port.
pub(super) fn lacking(port: &PortConfig, kernel: &KernelState) -> Option<String> {
    let PortConfig { name, interface, .. } = port;
    match (port.backend, kernel.link(interface)) {
        (Backend::Dpdk, _) if shared_interface(port).is_none() => None,
        (Backend::AfPacket | Backend::AfXdp | Backend::Dpdk, None) => {
            Some(format!("port {name}: interface {interface} does not exist"))
        }
        (Backend::AfPacket | Backend::AfXdp | Backend::Dpdk, Some(link))
            if link.loopback || link.link_address.is_none() =>
        {
            Some(format!("port {name}: interface {interface} is not an Ethernet interface"))
        }
        // A pair that a crash left behind is made anew.
        (Backend::Tap, Some(_)) if kernel.link(&far_end(interface)).is_none() => Some(format!(
            "port {name}: an interface {interface} exists already: stop what holds it, or set another name"
        )),
        _ => None,
    }
}

/// What a port is opened with, beside its own configuration.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    /// The number that the tables know it by.
    pub(super) id: PortId,
    /// The configuration of the whole node.
    #[cfg_attr(
        not(feature = "dpdk"),
        allow(dead_code, reason = "for DPDK, which is set up once for all ports")
    )]
    pub(super) node: &'a NodeConfig,
    /// Where its frames lie.
    pub(super) pool: &'static Pool,
    /// How many workers there are: a device with as many queues gives one to each.
    pub(super) workers: usize,
}

/// An opened port.
pub(super) struct OpenedPort {
    /// Its queues, at least one unless frames for it leave by other ports: one, or one for each worker.
    pub(super) queues: Vec<Box<dyn Port>>,
    /// The other side of a memory port.
    pub(super) memory: Option<MemoryHandle>,
    /// What tells a steering program what to take.
    pub(super) steering: Option<Steering>,
}

impl OpenedPort {
    fn single(port: impl Port + 'static) -> OpenedPort {
        OpenedPort { queues: vec![Box::new(port)], memory: None, steering: None }
    }
}

/// Opens a port that was checked. TAP interfaces are made by it (veth pairs where the machine gives no TAP);
/// they are still down.
///
/// # Errors
/// Exit code 4. What was opened is closed again.
pub(super) fn open(config: &PortConfig, opening: &Opening<'_>) -> Result<OpenedPort, Failure> {
    let Opening { id, pool, .. } = *opening;
    let failed =
        |error: io::Error| Failure::environment(format!("port {}: {}", config.name, explained(&error)));
    Ok(match config.backend {
        Backend::AfPacket => {
            let options = af_packet::Options::default();
            OpenedPort::single(AfPacketPort::open(&config.interface, id, pool, options).map_err(failed)?)
        }
        Backend::AfXdp => af_xdp::open(config, opening).map_err(failed)?,
        Backend::Tap => match require_tun() {
            Ok(()) => OpenedPort::single(TapPort::open(&config.interface, id, pool).map_err(failed)?),
            Err(lacking) => {
                warn!("a veth pair stands for the TAP of port {}: {lacking}", config.name);
                let mtu = config.mtu.map_or(DEFAULT_MTU, u32::from);
                OpenedPort::single(PairPort::open(&config.interface, mtu, id, pool).map_err(failed)?)
            }
        },
        Backend::Memory => {
            let (port, handle) = MemoryPort::new(id, Capabilities::default(), Rings::default());
            OpenedPort { queues: vec![Box::new(port)], memory: Some(handle), steering: None }
        }
        #[cfg(feature = "dpdk")]
        Backend::Dpdk => {
            let queues = super::dpdk::open(config, opening).map_err(failed)?;
            let queues = queues.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
            OpenedPort { queues, memory: None, steering: None }
        }
        #[cfg(not(feature = "dpdk"))]
        Backend::Dpdk => unreachable!("refused by the check"),
        Backend::Ipip => OpenedPort { queues: Vec::new(), memory: None, steering: None },
        Backend::Pcap => unreachable!("refused by the check"),
    })
}

/// An error with what to do about it, where that is known.
pub(super) fn explained(error: &io::Error) -> String {
    let text = error.to_string();
    // The number is lost where the backend has said what it was doing.
    match text.contains("Too many open files") {
        true => format!("{text}: raise the limit of open files (ulimit -n, or LimitNOFILE= of the unit)"),
        false => text,
    }
}
