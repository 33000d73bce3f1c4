//! The host's side of the host port (PT-02): what the node's own stack must be told so that its packets to
//! service addresses enter Pollux, and takes what Pollux delivers.
//!
//! ```text
//! host's sockets → route SERVICE dev pollux0 proto 112 → TAP → Pollux
//!                ←────────── local delivery ─────────── TAP ←
//! ```
//!
//! The TAP itself is made by the port's backend and goes with the process. What this module changes beside
//! it is written to a state file *before* it is changed, and put back by [`HostPort::restore`], by dropping,
//! and at the next start after `kill -9` ([`restore_leftovers`]). A setting is put back only while it still
//! has the value that Pollux gave it: whoever changed it since has the last word.
//!
//! One lock file for each state file; the lock ends with the process that holds it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use pollux_dataplane::packet::family::{Family, Prefix, V4, V6};
use tracing::warn;

use super::decode::KernelFamily;
use super::netlink::Netlink;
use super::restore::{
    PLACEHOLDER, SavedLink, StateFile, absent_is_fine, find_link, link_request, open_netlink, placeholder,
    read_link,
};
use super::{Error, ROUTE_PROTOCOL};

pub use super::restore::Leftovers;

/// Where state files lie on a node.
pub const STATE_DIRECTORY: &str = "/run/pollux";

/// How the host's side is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPortConfig {
    /// The interface that the kernel has of the host port: the TAP, which exists already.
    pub interface: String,
    /// Its largest IP packet, in bytes.
    pub mtu: u32,
    /// `src` of the routes to IPv4 service addresses: the address that the node speaks with. Nothing: the
    /// kernel chooses for each packet.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// Whether the interface has IPv6 at all.
    pub ipv6: Ipv6,
    /// Directory of the state file and its lock, [`STATE_DIRECTORY`] on a node; made if it is missing.
    pub state_directory: PathBuf,
    /// Name of the instance, and so of the state file: two on one machine need two.
    pub name: String,
}

/// Whether the host takes part in IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipv6 {
    /// It does: the node has an address.
    On,
    /// It does not.
    Off,
}

/// The host's side of the host port, set up. Dropping it puts everything back.
#[derive(Debug)]
pub struct HostPort {
    config: HostPortConfig,
    state: StateFile,
    netlink: Netlink,
    link: u32,
    routes_v4: BTreeSet<Prefix<V4>>,
    routes_v6: BTreeSet<Prefix<V6>>,
    restored: Restored,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Restored {
    NotYet,
    Done,
}

/// How many routes an update changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RouteUpdate {
    /// New routes.
    pub added: usize,
    /// Routes taken away.
    pub removed: usize,
}

impl HostPort {
    /// Sets the host's side up, in the calling thread's network namespace. Leftovers of an instance of the
    /// same name that was killed are put back first. On an error everything is put back.
    ///
    /// The interface is up, without ARP, and accepts every source. Where the machine checks sources on all
    /// interfaces (`net.ipv4.conf.all.rp_filter`) it also has the address 169.254.112.1, of scope host.
    ///
    /// # Errors
    /// [`Error::Busy`] if an instance of the same name runs; [`Error::Invalid`] if there is no such
    /// interface; otherwise what the kernel refused.
    pub fn set_up(config: HostPortConfig) -> Result<Self, Error> {
        let mut state = StateFile::lock(&config.state_directory, &config.name)?;
        state.restore()?;
        let link = find_link(&config.interface)?;
        state.record(|saved| saved.interface.clone_from(&config.interface))?;
        let mut port = HostPort {
            config,
            state,
            netlink: open_netlink()?,
            link,
            routes_v4: BTreeSet::new(),
            routes_v6: BTreeSet::new(),
            restored: Restored::NotYet,
        };
        port.configure()?;
        Ok(port)
    }

    /// Makes the host's packets to exactly these prefixes enter the host port: routes for new ones, none
    /// any more for those that are missing. Several prefixes may hold one another.
    ///
    /// # Errors
    /// If the kernel refuses a route, also because somebody else has one to the same prefix with the same
    /// metric, 0; routes before it in the order of the prefixes have been changed, and the next call takes
    /// up from there.
    pub fn set_service_prefixes(
        &mut self,
        v4: &BTreeSet<Prefix<V4>>,
        v6: &BTreeSet<Prefix<V6>>,
    ) -> Result<RouteUpdate, Error> {
        if self.config.ipv6 == Ipv6::Off && !v6.is_empty() {
            return Err(Error::Invalid(format!(
                "{} has no IPv6 and cannot take routes to IPv6 service addresses",
                self.config.interface
            )));
        }
        let source_v4 = self.config.source_v4;
        let source_v6 = self.config.source_v6;
        let four = update_routes(&mut self.netlink, self.link, source_v4, &mut self.routes_v4, v4)?;
        let six = update_routes(&mut self.netlink, self.link, source_v6, &mut self.routes_v6, v6)?;
        Ok(RouteUpdate { added: four.added + six.added, removed: four.removed + six.removed })
    }

    /// Changes a kernel parameter of the network namespace, to be put back with everything else. `path` is
    /// relative to `/proc/sys`, with slashes. A parameter that has the value already is not touched.
    ///
    /// # Errors
    /// If the state file or the parameter cannot be written.
    pub fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), Error> {
        self.state.set_sysctl(path, value)
    }

    /// The kernel's index of the interface.
    pub fn link(&self) -> u32 {
        self.link
    }

    /// Puts everything back: routes, parameters; then the state file goes.
    ///
    /// # Errors
    /// The first thing that could not be put back; the rest is, and the state file stays.
    pub fn restore(mut self) -> Result<(), Error> {
        self.restored = Restored::Done;
        self.state.restore().map(drop)
    }

    fn configure(&mut self) -> Result<(), Error> {
        let interface = self.config.interface.clone();
        let four = |name: &str| format!("net/ipv4/conf/{interface}/{name}");
        let six = |name: &str| format!("net/ipv6/conf/{interface}/{name}");
        // Whatever Pollux delivers is accepted, also if the way back is another interface. The kernel takes
        // the larger of `all` and the interface's: 0 checks nothing where nobody demands a check, and 2
        // makes the strict check of everybody a loose one for this interface only.
        let all = self.state.netns.sysctl("net/ipv4/conf/all/rp_filter")?;
        if all == "0" {
            self.set_sysctl(&four("rp_filter"), "0")?;
        } else {
            self.set_sysctl(&four("rp_filter"), "2")?;
            // On an interface without any address the loose check is as strict as the strict one.
            self.add_placeholder()?;
        }
        // A packet of the host to a Service that ends at the host itself comes back with one of the host's
        // own addresses as its source.
        self.set_sysctl(&four("accept_local"), "1")?;
        if Path::new("/proc/sys/net/ipv6").exists() {
            if self.config.ipv6 == Ipv6::On {
                self.set_sysctl(&six("disable_ipv6"), "0")?;
                // Neither a link-local address with its announcements nor routers are of any use here.
                self.set_sysctl(&six("addr_gen_mode"), "1")?;
                self.set_sysctl(&six("accept_ra"), "0")?;
            } else {
                self.set_sysctl(&six("disable_ipv6"), "1")?;
            }
        }
        let before = read_link(&mut self.netlink, self.link)?;
        self.state.record(|saved| saved.link = Some(before))?;
        let wanted = SavedLink {
            index: self.link,
            mtu: self.config.mtu,
            up: true,
            // Nobody on the other side has to be asked for a link address: there is only Pollux.
            no_arp: true,
        };
        self.netlink
            .change(&Message::SetLink(link_request(&wanted)), 0)
            .map_err(|error| Error::system(format!("cannot bring {interface} up"), error))
    }

    fn add_placeholder(&mut self) -> Result<(), Error> {
        let link = self.link;
        self.state.record(|saved| saved.placeholder = Some(link))?;
        self.netlink.change(&Message::NewAddress(placeholder(link)), NLM_F_CREATE).map_err(|error| {
            let interface = &self.config.interface;
            Error::system(format!("cannot give {interface} the address {PLACEHOLDER}"), error)
        })
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        if self.restored == Restored::NotYet
            && let Err(error) = self.state.restore()
        {
            warn!(%error, "not everything could be put back; the next start tries again");
        }
    }
}

/// Puts back what a killed instance of this name has left behind, in the calling thread's network namespace.
/// [`HostPort::set_up`] does it too; this is for a start that fails before it gets there.
///
/// # Errors
/// [`Error::Busy`] if the instance is running; otherwise what could not be put back.
pub fn restore_leftovers(state_directory: &Path, name: &str) -> Result<Leftovers, Error> {
    StateFile::lock(state_directory, name)?.restore()
}

/// Makes the kernel's routes on `link` those that are `wanted`; `present` follows each step.
fn update_routes<A: KernelFamily>(
    netlink: &mut Netlink,
    link: u32,
    source: Option<A::Addr>,
    present: &mut BTreeSet<Prefix<A>>,
    wanted: &BTreeSet<Prefix<A>>,
) -> Result<RouteUpdate, Error> {
    let mut update = RouteUpdate::default();
    for prefix in present.difference(wanted).copied().collect::<Vec<_>>() {
        let request = Message::DelRoute(service_route::<A>(prefix, link, source));
        absent_is_fine(netlink.change(&request, 0))
            .map_err(|error| Error::system(format!("cannot remove the route to {prefix}"), error))?;
        present.remove(&prefix);
        update.removed += 1;
    }
    for prefix in wanted.difference(present).copied().collect::<Vec<_>>() {
        let request = Message::NewRoute(service_route::<A>(prefix, link, source));
        // Exclusively: a route that somebody else has to the prefix is not Pollux's to replace.
        netlink
            .change(&request, NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|error| Error::system(format!("cannot add the route to {prefix}"), error))?;
        present.insert(prefix);
        update.added += 1;
    }
    Ok(update)
}

fn service_route<A: KernelFamily>(prefix: Prefix<A>, link: u32, source: Option<A::Addr>) -> RouteMessage {
    let address = |address: A::Addr| RouteAddress::from(Into::<IpAddr>::into(address));
    let mut message = RouteMessage::default();
    message.header.address_family = A::ADDRESS_FAMILY;
    message.header.destination_prefix_length = prefix.len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    // The addresses are on the link: IPv6 knows no scopes.
    message.header.scope = if A::VERSION == V4::VERSION { RouteScope::Link } else { RouteScope::Universe };
    message.attributes.push(RouteAttribute::Destination(address(prefix.address())));
    message.attributes.push(RouteAttribute::Oif(link));
    if let Some(source) = source {
        message.attributes.push(RouteAttribute::PrefSource(address(source)));
    }
    message
}
