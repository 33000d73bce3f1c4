//! The ports of a running node: checked, then opened, guarded, and given back.
//!
//! Order is everything here. All that can be wrong is found before anything is changed; what was changed is
//! undone when a later step fails, and at the end in the reverse order. What a crash leaves behind is the
//! next start's to restore. Everything happens in the network namespace of the calling thread.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;

use pollux_dataplane::packet::{Family, PortId, Prefix, V4, V6};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{self, AfPacketPort};
use pollux_dataplane::port::fault::{FaultHandle, FaultPort};
use pollux_dataplane::port::guard::{Families, Guard};
use pollux_dataplane::port::memory::{MemoryHandle, MemoryPort, Rings};
use pollux_dataplane::port::tap::TapPort;
use pollux_dataplane::port::{Capabilities, Port};
use pollux_dataplane::service::FrontendAddress;
use pollux_dataplane::tables::{FamilyTables, Tables};
use pollux_dataplane::time::Instant;
use tracing::{info, warn};

use super::HostOptions;
use super::pair::{PairPort, far_end};
use crate::cli::Failure;
use crate::cluster::IpPrefix;
use crate::config::NodeConfig;
use crate::config::node::{Backend, PortConfig, Role};
use crate::kernel;
use crate::kernel::host_port::{self, HostPort, HostPortConfig, Ipv6};
use crate::kernel::netns::Netns;
use crate::kernel::sandbox::require_tun;
use crate::kernel::state::{FamilyState, KernelState, LinkAddress, Scope};

/// Longest name of an interface (`IFNAMSIZ` with its zero).
const LONGEST_NAME: usize = 15;

/// The host port's MTU when it is not set, bytes.
const DEFAULT_MTU: u32 = 1500;

/// Bits of `CapEff` in `/proc/PID/status` (linux/capability.h).
const NET_ADMIN: (&str, u32) = ("CAP_NET_ADMIN", 12);
const NET_RAW: (&str, u32) = ("CAP_NET_RAW", 13);

/// The opened ports, each under its number, and what was done for them.
pub(super) struct Opened {
    /// The backends, for the worker.
    pub(super) ports: Vec<(PortId, Box<dyn Port>)>,
    /// The other sides of memory ports, by name.
    pub(super) memory: HashMap<String, MemoryHandle>,
    /// Counters of the bad wires before ports, by name.
    pub(super) faults: HashMap<String, FaultHandle>,
    /// Interfaces that the kernel shares.
    pub(super) shared: Vec<String>,
}

/// Checks everything that can be known before something is changed.
///
/// # Errors
/// Exit code 2 for what the configuration says wrong, 4 for what the machine lacks: a line for each.
pub(super) fn check(config: &NodeConfig, kernel: &KernelState) -> Result<(), Failure> {
    if config.ports.is_empty() {
        return Err(Failure::bad_input(
            "the configuration has no ports: list them in a document of kind Node of pollux.dev/v1alpha1",
        ));
    }
    let wrong: Vec<String> = bad_input(config, kernel);
    if !wrong.is_empty() {
        return Err(Failure::bad_input(wrong.join("\n")));
    }
    let mut lacking = missing_privileges(config);
    lacking.extend(config.ports.iter().filter_map(|port| missing_interface(port, kernel)));
    if lacking.is_empty() { Ok(()) } else { Err(Failure::environment(lacking.join("\n"))) }
}

fn bad_input(config: &NodeConfig, kernel: &KernelState) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut interfaces = HashSet::new();
    for port in &config.ports {
        let PortConfig { name, interface, .. } = port;
        match port.backend {
            Backend::Memory | Backend::Ipip => continue,
            Backend::Pcap => {
                wrong.push(format!(
                    "port {name}: backend pcap has no place on a running node (see `pollux replay`)"
                ));
                continue;
            }
            Backend::Tap if interface.len() > LONGEST_NAME => {
                wrong.push(format!(
                    "port {name}: interface {interface} has more than {LONGEST_NAME} characters"
                ));
            }
            Backend::Tap | Backend::AfPacket => {}
        }
        if !interfaces.insert(interface) {
            wrong.push(format!("port {name}: interface {interface} is another port's already"));
        }
        if port.backend == Backend::AfPacket
            && let Some(link) = kernel.link(interface)
        {
            if let (Some(set), Some(own)) = (port.link_address, link.link_address)
                && set != own
            {
                wrong.push(format!("port {name}: linkAddress {set} is not {interface}'s, which is {own}"));
            }
            if let Some(mtu) = port.mtu.filter(|mtu| u32::from(*mtu) > link.mtu) {
                wrong.push(format!(
                    "port {name}: mtu {mtu} is more than {interface}'s, which is {}",
                    link.mtu
                ));
            }
        }
    }
    wrong
}

fn missing_interface(port: &PortConfig, kernel: &KernelState) -> Option<String> {
    let PortConfig { name, interface, .. } = port;
    match (port.backend, kernel.link(interface)) {
        (Backend::AfPacket, None) => Some(format!("port {name}: interface {interface} does not exist")),
        (Backend::AfPacket, Some(link)) if link.loopback || link.link_address.is_none() => {
            Some(format!("port {name}: interface {interface} is not an Ethernet interface"))
        }
        // A pair that a crash left behind is made anew.
        (Backend::Tap, Some(_)) if kernel.link(&far_end(interface)).is_none() => Some(format!(
            "port {name}: an interface {interface} exists already: stop what holds it, or set another name"
        )),
        _ => None,
    }
}

fn missing_privileges(config: &NodeConfig) -> Vec<String> {
    let uses = |backend| config.ports.iter().any(|port| port.backend == backend);
    let mut needed = Vec::new();
    if uses(Backend::AfPacket) || uses(Backend::Tap) {
        needed.push(NET_ADMIN);
    }
    if uses(Backend::AfPacket) {
        needed.push(NET_RAW);
    }
    let have = effective_capabilities();
    let missing: Vec<&str> =
        needed.into_iter().filter(|(_, bit)| have & (1 << bit) == 0).map(|(name, _)| name).collect();
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

/// Opens the ports, in the order of the configuration, which numbers them. TAP interfaces are made by it
/// (veth pairs where the machine gives no TAP); they are still down. Nothing else on the machine is changed.
///
/// # Errors
/// Exit code 4. What was opened is closed again.
pub(super) fn open(config: &NodeConfig, pool: &'static Pool) -> Result<Opened, Failure> {
    let mut opened =
        Opened { ports: Vec::new(), memory: HashMap::new(), faults: HashMap::new(), shared: Vec::new() };
    let epoch = std::time::Instant::now();
    for (number, config) in config.ports.iter().enumerate() {
        let id = PortId(number as u16);
        let failed = |error| Failure::environment(format!("port {}: {error}", config.name));
        let port: Box<dyn Port> = match config.backend {
            Backend::AfPacket => {
                opened.shared.push(config.interface.clone());
                let options = af_packet::Options::default();
                Box::new(AfPacketPort::open(&config.interface, id, pool, options).map_err(failed)?)
            }
            Backend::Tap => match require_tun() {
                Ok(()) => Box::new(TapPort::open(&config.interface, id, pool).map_err(failed)?),
                Err(lacking) => {
                    warn!("a veth pair stands for the TAP of port {}: {lacking}", config.name);
                    let mtu = config.mtu.map_or(DEFAULT_MTU, u32::from);
                    Box::new(PairPort::open(&config.interface, mtu, id, pool).map_err(failed)?)
                }
            },
            Backend::Memory => {
                let (port, handle) = MemoryPort::new(id, Capabilities::default(), Rings::default());
                opened.memory.insert(config.name.clone(), handle);
                Box::new(port)
            }
            // Packets for it leave by the others.
            Backend::Ipip => continue,
            Backend::Pcap => unreachable!("refused by the check"),
        };
        info!(
            port = config.name,
            interface = config.interface,
            backend = super::view::backend_name(config.backend),
            "port opened"
        );
        let Some(faults) = config.faults else {
            opened.ports.push((id, port));
            continue;
        };
        warn!("port {}: its frames meet faults, as the configuration asks", config.name);
        let clock = move || Instant(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let (port, handle) = FaultPort::new(port, faults, Box::new(clock));
        opened.faults.insert(config.name.clone(), handle);
        opened.ports.push((id, Box::new(port)));
    }
    Ok(opened)
}

/// Keeps the kernel from acting on what comes in at the `shared` interfaces (PT-05), until the guard is
/// dropped. Nothing when there are none.
///
/// # Errors
/// Exit code 4 when the kernel allows no means.
pub(super) fn guard(shared: &[String], families: Families) -> Result<Option<Guard>, Failure> {
    let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
    if shared.is_empty() {
        return Ok(None);
    }
    let guard = Guard::attach(&shared, families).map_err(Failure::environment)?;
    info!(interfaces = shared.join(", "), means = %guard.means(), "kernel kept from forwarding");
    Ok(Some(guard))
}

/// The host's side of the host port, and the routes that lead to it.
pub(super) struct HostRoutes {
    /// Where it is: whoever changes the agent may live elsewhere.
    netns: Netns,
    /// Nothing when no TAP is the host port, and after it was put back.
    port: Option<HostPort>,
    /// Whether the node has an IPv6 address; without, the interface has no IPv6.
    speaks_v6: bool,
    prefixes: Vec<IpPrefix>,
}

impl HostRoutes {
    /// Sets the host's side up, when a TAP is the host port. What an instance of this name left behind when
    /// it was killed is restored in any case.
    ///
    /// # Errors
    /// Exit code 4; everything was put back.
    pub(super) fn set_up(
        config: &NodeConfig,
        kernel: &KernelState,
        options: &HostOptions,
        netns: &Netns,
    ) -> Result<HostRoutes, Failure> {
        let HostOptions { service_prefixes, state_directory, name } = options;
        let tap = config.ports.iter().find(|port| port.role == Role::Host && port.backend == Backend::Tap);
        let Some(tap) = tap else {
            host_port::restore_leftovers(state_directory, name).map_err(Failure::environment)?;
            return Ok(HostRoutes {
                netns: netns.clone(),
                port: None,
                speaks_v6: false,
                prefixes: Vec::new(),
            });
        };
        // Also while there is no address to speak with yet: it may come.
        let has_v6 = kernel.v6.addresses.iter().any(|address| !address.address.is_loopback());
        let ipv6 = if has_v6 { Ipv6::On } else { Ipv6::Off };
        let port = HostPort::set_up(HostPortConfig {
            interface: tap.interface.clone(),
            mtu: tap.mtu.map_or(DEFAULT_MTU, u32::from),
            source_v4: own_address::<V4>(config, kernel, &kernel.v4),
            source_v6: own_address::<V6>(config, kernel, &kernel.v6),
            ipv6,
            state_directory: state_directory.clone(),
            name: name.clone(),
        })
        .map_err(Failure::environment)?;
        Ok(HostRoutes {
            netns: netns.clone(),
            port: Some(port),
            speaks_v6: has_v6,
            prefixes: service_prefixes.clone(),
        })
    }

    /// Leads the host's packets to the addresses of all Services into the host port.
    ///
    /// # Errors
    /// When the kernel refuses a route.
    pub(super) fn lead(&mut self, tables: &Tables) -> Result<(), kernel::Error> {
        let Some(port) = &mut self.port else { return Ok(()) };
        let v4 = service_prefixes(&self.prefixes, tables.v4.as_ref());
        let v6 = service_prefixes(&self.prefixes, tables.v6.as_ref().filter(|_| self.speaks_v6));
        let update = self.netns.run(|| port.set_service_prefixes(&v4, &v6))??;
        if update.added + update.removed > 0 {
            info!(added = update.added, removed = update.removed, "host routes to service addresses");
        }
        Ok(())
    }

    /// Puts everything back.
    pub(super) fn restore(&mut self) {
        let Some(port) = self.port.take() else { return };
        if let Err(error) = self.netns.run(|| port.restore()).flatten() {
            warn!("not everything could be restored, the next start tries again: {error}");
        }
    }
}

impl Drop for HostRoutes {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The prefixes of the family and the service addresses that are in none of them. An address that the node
/// itself has is none of them: the kernel looks at its own addresses first, and such a packet never comes.
fn service_prefixes<A: Family>(given: &[IpPrefix], tables: Option<&FamilyTables<A>>) -> BTreeSet<Prefix<A>> {
    let Some(tables) = tables else { return BTreeSet::new() };
    let given: BTreeSet<Prefix<A>> = given.iter().filter_map(|prefix| prefix.of()).collect();
    let addresses = tables.services.frontends().filter_map(|(_, frontend)| match frontend.key.address {
        FrontendAddress::Address(address) => Some(address),
        FrontendAddress::NodePort => None,
    });
    let alone = addresses.filter(|address| {
        !given.iter().any(|prefix| prefix.contains(*address)) && !tables.routing.interfaces.is_local(*address)
    });
    alone.map(Prefix::host).chain(given.iter().copied()).collect()
}

/// The address that the node speaks with: the first one of its first uplink.
fn own_address<A: Family>(
    config: &NodeConfig,
    kernel: &KernelState,
    state: &FamilyState<A>,
) -> Option<A::Addr> {
    let uplinks =
        config.ports.iter().filter(|port| port.role == Role::Uplink && port.backend != Backend::Ipip);
    let links = uplinks.filter_map(|port| kernel.link(&port.interface));
    let mut addresses = links.flat_map(|link| {
        let usable = |address: &&LinkAddress<A>| {
            address.link == link.index && !address.deprecated && address.scope == Scope::UNIVERSE
        };
        state.addresses.iter().filter(usable).map(|address| address.address)
    });
    addresses.next()
}
