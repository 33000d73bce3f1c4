//! The host port: the host's side of it (PT-02), and the routes that lead the host's packets into it.

use std::collections::BTreeSet;

use pollux_dataplane::packet::{Family, Prefix, V4, V6};
use pollux_dataplane::service::FrontendAddress;
use pollux_dataplane::tables::{FamilyTables, Tables};
use tracing::{info, warn};

use super::backend::DEFAULT_MTU;
use crate::agent::HostOptions;
use crate::cli::Failure;
use crate::cluster::IpPrefix;
use crate::config::NodeConfig;
use crate::config::node::{Backend, Role};
use crate::kernel;
use crate::kernel::host_port::{self, HostPort, HostPortConfig, Ipv6};
use crate::kernel::netns::Netns;
use crate::kernel::state::{FamilyState, KernelState, LinkAddress, Scope};

/// The host's side of the host port, and the routes that lead to it.
pub(in crate::agent) struct HostRoutes {
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
    pub(in crate::agent) fn set_up(
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
    pub(in crate::agent) fn lead(&mut self, tables: &Tables) -> Result<(), kernel::Error> {
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
    pub(in crate::agent) fn restore(&mut self) {
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
