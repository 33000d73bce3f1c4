//! The node's interfaces and addresses, and which of them the node speaks with: when it masquerades
//! (NAT-04), sends an ICMP error, or asks for a neighbour. Used for the first packet of a connection only.
//!
//! The choice is the kernel's. For IPv4: on the output interface the first primary address whose subnet
//! holds the next hop, else its first primary address of sufficient scope; else the first such address of any
//! interface, in the order of their creation, loopback first. For IPv6: RFC 6724 section 5 over the addresses
//! of all interfaces, as the kernel reads it. A route's preferred source plays no part in masquerading.

use std::net::IpAddr;
use std::str::FromStr;

use super::{Fib, RouteKind};
use crate::packet::{Address, Family, PortId, Prefix};

#[cfg(test)]
mod tests;

/// How far an address is valid, widest first (IPv4; rtnetlink's scopes). IPv6 addresses tell it themselves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// Within the site.
    Site,
    /// On its link only. Never taken for packets that leave by another interface.
    Link,
    /// Within the node: 127.0.0.1.
    Host,
}

/// Where an IPv6 address is in its life (RFC 4862). IPv4 addresses are always preferred.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lifetime {
    /// Usable.
    Preferred,
    /// Usable, but others come first (RFC 6724 rule 3).
    Deprecated,
    /// Not checked for duplicates yet: no source address.
    Tentative,
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterfaceAddress<A: Family> {
    /// The node's address.
    pub address: A::Addr,
    /// The subnet that it connects; on a point-to-point link, the peer's.
    pub subnet: Prefix<A>,
    /// How far it is valid.
    pub scope: Scope,
    /// IPv4: another address of the subnet came first. IPv6: a temporary address (RFC 8981); rtnetlink has
    /// one flag for both.
    pub secondary: bool,
    /// Where it is in its life.
    pub lifetime: Lifetime,
}

impl<A: Family> InterfaceAddress<A> {
    /// An address in a subnet of `length` bits: primary, preferred; scope host when it is loopback, link
    /// when it is an IPv6 link-local address, else global (what `ip address add` takes).
    ///
    /// # Panics
    /// If `length` is longer than an address.
    pub fn new(address: A::Addr, length: u8) -> Self {
        InterfaceAddress {
            address,
            subnet: Prefix::new(address, length),
            scope: match address.into() {
                _ if address.is_loopback() => Scope::Host,
                IpAddr::V6(address) if address.is_unicast_link_local() => Scope::Link,
                _ => Scope::Global,
            },
            secondary: false,
            lifetime: Lifetime::Preferred,
        }
    }
}

impl<A: Family> FromStr for InterfaceAddress<A> {
    type Err = String;
    /// Reads `address/length` or an address alone. What it does not say is as in [`InterfaceAddress::new`].
    fn from_str(text: &str) -> Result<Self, String> {
        let subnet: Prefix<A> = text.parse()?;
        let address = text.split('/').next().unwrap_or(text);
        let address = address.parse().map_err(|_| format!("{text} is not an {} address", A::NAME))?;
        Ok(InterfaceAddress::new(address, subnet.len()))
    }
}

/// Whether an interface is the node's loopback.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InterfaceKind {
    /// `lo`: its subnets are local as a whole, and its addresses come first.
    Loopback,
    /// Any other.
    Other,
}

/// State of an interface's link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkState {
    /// Up, with carrier.
    Up,
    /// Up, without carrier: routes stay, marked `linkdown` (RT-04).
    NoCarrier,
    /// Set down: its addresses stay the node's, its subnets are not connected.
    Down,
}

/// An interface of the node, whether Pollux owns it or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface<A: Family> {
    /// Its name.
    pub name: String,
    /// Its port, when Pollux forwards on it.
    pub port: Option<PortId>,
    /// Whether it is the loopback interface.
    pub kind: InterfaceKind,
    /// State of its link.
    pub link: LinkState,
    addresses: Vec<InterfaceAddress<A>>,
}

impl<A: Family> Interface<A> {
    /// An interface without addresses, up; the loopback interface if it is called `lo`.
    pub fn new(name: impl Into<String>, port: Option<PortId>) -> Self {
        let name = name.into();
        Interface {
            kind: if name == "lo" { InterfaceKind::Loopback } else { InterfaceKind::Other },
            name,
            port,
            link: LinkState::Up,
            addresses: Vec::new(),
        }
    }

    /// Adds an address behind those that are there (the kernel dumps them in the order in which it tries
    /// them). As in the kernel, an IPv4 address is secondary when its subnet is an earlier primary's.
    pub fn add(&mut self, mut address: InterfaceAddress<A>) {
        if A::VERSION == 4 {
            address.secondary |=
                self.addresses.iter().any(|earlier| !earlier.secondary && earlier.subnet == address.subnet);
        }
        self.addresses.push(address);
    }

    /// The addresses, in order.
    pub fn addresses(&self) -> &[InterfaceAddress<A>] {
        &self.addresses
    }
}

/// All interfaces of the node. Made anew when an address changes.
#[derive(Clone, Debug)]
pub struct Interfaces<A: Family> {
    interfaces: Vec<Interface<A>>,
    /// Every address of the node, sorted.
    local: Box<[A::Addr]>,
}

impl<A: Family> Default for Interfaces<A> {
    fn default() -> Self {
        Interfaces::new(Vec::new())
    }
}

impl<A: Family> Interfaces<A> {
    /// The node's interfaces, in the order of their creation; loopback is put first.
    pub fn new(mut interfaces: Vec<Interface<A>>) -> Self {
        interfaces.sort_by_key(|interface| interface.kind != InterfaceKind::Loopback);
        let mut local: Vec<_> =
            interfaces.iter().flat_map(Interface::addresses).map(|address| address.address).collect();
        local.sort_unstable();
        local.dedup();
        Interfaces { interfaces, local: local.into() }
    }

    /// The interfaces, loopback first.
    pub fn iter(&self) -> impl Iterator<Item = &Interface<A>> {
        self.interfaces.iter()
    }

    /// The interface of a port.
    pub fn of_port(&self, port: PortId) -> Option<&Interface<A>> {
        self.interfaces.iter().find(|interface| interface.port == Some(port))
    }

    /// Every address of the node, sorted; loopback's 127.0.0.0/8 by its configured address only.
    pub fn local_addresses(&self) -> &[A::Addr] {
        &self.local
    }

    /// Whether `address` is the node's: iptables' `addrtype LOCAL`.
    #[inline]
    pub fn is_local(&self, address: A::Addr) -> bool {
        address.is_loopback() || self.local.binary_search(&address).is_ok()
    }

    /// The source that a masqueraded packet gets (NAT-04) when it leaves by `out` (nothing: by loopback) to
    /// the neighbour `next_hop` with the final `destination`. IPv4 looks at the next hop, IPv6 at the
    /// destination. Nothing when the node has no address to give: the packet is to be dropped.
    pub fn masquerade_source(
        &self,
        out: Option<PortId>,
        next_hop: A::Addr,
        destination: A::Addr,
    ) -> Option<A::Addr> {
        if A::VERSION == 4 {
            self.select_v4(out, Some(next_hop), Scope::Global)
        } else {
            self.select_v6(out, destination)
        }
    }

    /// The source of an ICMP error about a packet to `destination`, sent to its source, `offender`.
    ///
    /// As Linux with `icmp_errors_use_inbound_ifaddr` off: the packet's destination, when it is the node's
    /// (a refused node port); else the preferred source of the route to the offender; else the address that
    /// belongs to that route's next hop, by the rule of [`masquerade_source`](Self::masquerade_source) with
    /// the route's scope. Nothing when no route leads back, or the node has no address to give.
    pub fn error_source(&self, fib: &Fib<A>, destination: A::Addr, offender: A::Addr) -> Option<A::Addr> {
        if self.is_local(destination) {
            return Some(destination);
        }
        let back = fib.lookup(offender)?;
        if back.preferred_source.is_some() {
            return back.preferred_source;
        }
        if back.kind == RouteKind::Local {
            return Some(offender);
        }
        // Of several ways the first: which one the error takes is decided by its own hash.
        let hop = back.kind.next_hop(0);
        let (out, gateway) = (hop.map(|hop| hop.port), hop.and_then(|hop| hop.gateway));
        if A::VERSION == 4 {
            // A route's scope is link without a gateway. The kernel does not ask which subnet holds the
            // offender then: the first address is taken.
            let scope = if gateway.is_some() { Scope::Global } else { Scope::Link };
            self.select_v4(out, gateway, scope)
        } else {
            self.select_v6(out, offender)
        }
    }

    /// The link-local address of a port's interface (IPv6), if it has one that may be spoken with.
    pub fn link_local(&self, port: PortId) -> Option<A::Addr> {
        let usable =
            |own: &&InterfaceAddress<A>| own.lifetime != Lifetime::Tentative && own.address.stays_on_link();
        self.of_port(port)?.addresses().iter().find(usable).map(|own| own.address)
    }

    /// The source of a request for the link address of `target` on `out`; `waiting` is the source of the
    /// packet that waits for it, if any.
    ///
    /// As Linux with `arp_announce` 0: the waiting packet's source when it is the node's, else an address
    /// chosen as for masquerading, of scope link or wider; IPv6 takes the waiting packet's source when it is
    /// this interface's, else the interface's link-local address. Nothing means a request without a sender
    /// (an ARP probe; IPv6 asks from [the port's own](super::discovery::source_on_link) then).
    pub fn solicit_source(&self, out: PortId, target: A::Addr, waiting: Option<A::Addr>) -> Option<A::Addr> {
        if A::VERSION == 4 {
            waiting
                .filter(|&source| self.is_local(source))
                .or_else(|| self.select_v4(Some(out), Some(target), Scope::Link))
        } else {
            let own = || {
                self.of_port(out)
                    .map_or(&[][..], Interface::addresses)
                    .iter()
                    .filter(|own| own.lifetime != Lifetime::Tentative)
                    .map(|own| own.address)
            };
            waiting.filter(|&source| own().any(|address| address == source)).or_else(|| self.link_local(out))
        }
    }

    /// The kernel's `inet_select_addr`. Without `towards` any subnet is as good as another.
    fn select_v4(&self, out: Option<PortId>, towards: Option<A::Addr>, scope: Scope) -> Option<A::Addr> {
        let on_interface = out.and_then(|port| self.of_port(port));
        let mut fitting = on_interface
            .map_or(&[][..], Interface::addresses)
            .iter()
            .filter(|own| !own.secondary && own.scope <= scope);
        if let Some(first) = fitting.next() {
            let holds = |own: &&InterfaceAddress<A>| towards.is_none_or(|to| own.subnet.contains(to));
            let chosen = std::iter::once(first).chain(fitting).find(holds).unwrap_or(first);
            return Some(chosen.address);
        }
        self.interfaces
            .iter()
            .flat_map(Interface::addresses)
            .find(|own| !own.secondary && own.scope != Scope::Link && own.scope <= scope)
            .map(|own| own.address)
    }

    /// RFC 6724 section 5 as the kernel's `ipv6_dev_get_saddr` does it: rules 1, 2, 3, 5, 6, 7 (public
    /// addresses first), 8; among equals the first. Loopback addresses are left out, unless the destination
    /// is one: the kernel would take ::1 where there is nothing else, and the packet would go nowhere.
    fn select_v6(&self, out: Option<PortId>, destination: A::Addr) -> Option<A::Addr> {
        let wanted_scope = ipv6_scope(destination.bits());
        let wanted_label = ipv6_label(destination.bits());
        // Link-local destinations and groups are reached with the interface's own addresses only.
        let own_only = destination.is_multicast() || wanted_scope <= LINK_LOCAL;
        let mut best = None;
        for interface in &self.interfaces {
            let is_out = out.is_none() || interface.port == out;
            if own_only && !is_out {
                continue;
            }
            for own in &interface.addresses {
                let loopback = own.address.is_loopback() && !destination.is_loopback();
                if own.lifetime == Lifetime::Tentative || loopback {
                    continue;
                }
                let bits = own.address.bits();
                let scope = ipv6_scope(bits);
                let score = (
                    own.address == destination,
                    if scope >= wanted_scope { -scope } else { scope - 128 },
                    own.lifetime == Lifetime::Preferred,
                    is_out,
                    ipv6_label(bits) == wanted_label,
                    !own.secondary,
                    (bits ^ destination.bits()).leading_zeros().min(u32::from(own.subnet.len())),
                );
                if best.is_none_or(|(highest, _)| score > highest) {
                    best = Some((score, own.address));
                }
            }
        }
        best.map(|(_, address)| address)
    }
}

/// Link-local scope, in the numbers of IPv6 multicast scopes (RFC 4291, section 2.7).
const LINK_LOCAL: i32 = 2;

/// Scope of an address (RFC 6724, section 3.1): a group's own, link-local (loopback is counted as such),
/// site-local, else global.
fn ipv6_scope(bits: u128) -> i32 {
    match bits {
        _ if bits >> 120 == 0xff => (bits >> 112 & 0xf) as i32,
        _ if bits >> 118 == 0xfe80 >> 6 || bits == 1 => LINK_LOCAL,
        _ if bits >> 118 == 0xfec0 >> 6 => 5,
        _ => 14,
    }
}

/// Label of an address in the kernel's default policy table (RFC 6724, section 2.1, and two more).
fn ipv6_label(bits: u128) -> u8 {
    match bits {
        1 => 0,
        _ if bits >> 32 == 0 => 3,
        _ if bits >> 32 == 0xffff => 4,
        _ if bits >> 112 == 0x2002 => 2,
        _ if bits >> 96 == 0x2001_0000 => 6,
        _ if bits >> 100 == 0x200_1001 => 7,
        _ if bits >> 112 == 0x3ffe => 12,
        _ if bits >> 121 == 0xfc >> 1 => 5,
        _ if bits >> 118 == 0xfec0 >> 6 => 11,
        _ => 1,
    }
}
