//! The kernel's tables in plain types: what the [mirror](super::mirror) holds and what is translated into
//! the data plane's tables. Nothing here talks to the kernel.
//!
//! Invariants: links are in the order of their index, which is the order of their creation; the addresses
//! of a link are in the kernel's order; routes of one prefix are in the order in which the kernel prefers
//! them. Source selection (NAT-04) and the choice of a route (RT-01) depend on these orders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use pollux_dataplane::packet::family::{Family, LinkAddr, Prefix, V4, V6};

use super::routes::RouteTable;

/// A device index of the kernel (`ifindex`), 1 for `lo`.
pub type LinkIndex = u32;

/// Everything of the kernel's that forwarding needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KernelState {
    /// The links, by index.
    pub links: Vec<Link>,
    /// IPv4.
    pub v4: FamilyState<V4>,
    /// IPv6.
    pub v6: FamilyState<V6>,
    /// What the kernel would do and the mirror does not carry, one sentence each, with its name: policy
    /// rules and other tables, routes with a type of service, encapsulating routes.
    pub warnings: BTreeSet<String>,
}

impl KernelState {
    /// The link with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link with this index.
    pub fn link_at(&self, index: LinkIndex) -> Option<&Link> {
        let position = self.links.binary_search_by_key(&index, |link| link.index).ok()?;
        self.links.get(position)
    }
}

/// The tables of one address family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FamilyState<A: Family> {
    /// The node's addresses, by link; those of one link in the kernel's order, primary ones first.
    pub addresses: Vec<LinkAddress<A>>,
    /// The routes of the tables `local`, `main` and `default`.
    pub routes: RouteTable<A>,
    /// The neighbours with a known or searched link address.
    pub neighbours: BTreeMap<NeighbourKey<A>, Neighbour>,
}

impl<A: Family> Default for FamilyState<A> {
    fn default() -> Self {
        FamilyState { addresses: Vec::new(), routes: RouteTable::default(), neighbours: BTreeMap::new() }
    }
}

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number, unique in the namespace while it lives.
    pub index: LinkIndex,
    /// Its name, unique too, but it can change.
    pub name: String,
    /// Its Ethernet address; nothing for a device of another kind (a tunnel).
    pub link_address: Option<LinkAddr>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`); a route through a link without is still chosen (RT-04).
    pub carrier: bool,
    /// Neighbours are not resolved on it (`IFF_NOARP`).
    pub no_arp: bool,
    /// The loopback device.
    pub loopback: bool,
    /// The kind of a virtual device: `veth`, `bridge`, `ipip`, `tun`; nothing for a real one.
    pub kind: Option<String>,
    /// The bridge or bond that it is part of.
    pub master: Option<LinkIndex>,
}

/// An address of the node on one of its links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkAddress<A: Family> {
    /// The link.
    pub link: LinkIndex,
    /// The address itself.
    pub address: A::Addr,
    /// The subnet: of the peer, if the link is a point-to-point one with a peer address.
    pub subnet: Prefix<A>,
    /// How far the address is valid.
    pub scope: Scope,
    /// Not the first address of its subnet (`IFA_F_SECONDARY`): not chosen as a source by itself. IPv6
    /// uses the same bit for temporary addresses.
    pub secondary: bool,
    /// Still answers, but is not to be used as a source for something new (RFC 4862).
    pub deprecated: bool,
}

/// How far an address or a destination reaches; smaller is farther (`RT_SCOPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Scope(pub u8);

impl Scope {
    /// Everywhere.
    pub const UNIVERSE: Scope = Scope(0);
    /// The site (IPv6, historical).
    pub const SITE: Scope = Scope(200);
    /// Directly on the link.
    pub const LINK: Scope = Scope(253);
    /// This node only.
    pub const HOST: Scope = Scope(254);
}

/// Which table a route is in. The order is the order of lookup.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// 255: the node's own addresses and broadcasts.
    Local,
    /// 254: where routes are without further words.
    Main,
    /// 253: looked up when the others know nothing.
    Default,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelRoute<A: Family> {
    /// The destinations.
    pub prefix: Prefix<A>,
    /// The table it is in.
    pub table: Table,
    /// Among routes of one prefix and table the lowest wins.
    pub metric: u32,
    /// What happens to the packets.
    pub kind: KernelRouteKind<A>,
    /// `src`: the source of the node's own packets that go this way.
    pub preferred_source: Option<A::Addr>,
    /// Who made it (`RTPROT_*`): for display.
    pub protocol: u8,
    /// The path MTU that the route itself demands, in bytes.
    pub mtu: Option<u32>,
}

/// What a route does (RT-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KernelRouteKind<A: Family> {
    /// To one next hop.
    Unicast(KernelNextHop<A>),
    /// To one of several, by the flow's hash (RT-01). IPv6: in the order of link and gateway.
    Multipath(Vec<KernelNextHop<A>>),
    /// To the host itself, by way of this link.
    Local(LinkIndex),
    /// To the host, and to everyone on the link.
    Broadcast(LinkIndex),
    /// An IPv6 anycast address of the node: to the host.
    Anycast(LinkIndex),
    /// To a group.
    Multicast(LinkIndex),
    /// Dropped silently.
    Blackhole,
    /// Dropped, ICMP host unreachable.
    Unreachable,
    /// Dropped, ICMP administratively prohibited.
    Prohibit,
    /// As if this table had no route: the lookup goes on in the next one.
    Throw,
    /// Something that only the kernel can do: such packets are its to route.
    Foreign(Foreign),
}

/// Why a route is the kernel's own business.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Foreign {
    /// It encapsulates (`encap mpls`, `encap seg6`, ...).
    Encapsulation,
    /// It leads to a next hop object that the kernel does not spell out (`net.ipv4.nexthop_compat_mode` 0).
    NextHopObject,
    /// Its type is unknown.
    Kind,
}

impl<A: Family> KernelRouteKind<A> {
    /// The next hops; none for a route that sends nothing out.
    pub fn next_hops(&self) -> &[KernelNextHop<A>] {
        match self {
            KernelRouteKind::Unicast(hop) => std::slice::from_ref(hop),
            KernelRouteKind::Multipath(hops) => hops,
            _ => &[],
        }
    }

    /// Unicast or multipath, as the number of hops says; nothing without any. A hop that is alone has no
    /// weight.
    pub(super) fn from_next_hops(hops: Vec<KernelNextHop<A>>) -> Option<Self> {
        match hops.as_slice() {
            [] => None,
            [only] => Some(KernelRouteKind::Unicast(KernelNextHop { weight: 1, ..*only })),
            _ => Some(KernelRouteKind::Multipath(hops)),
        }
    }
}

/// One way out. Whether its link is up or has a carrier is the [`Link`]'s to say: the kernel does not
/// announce it for each route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KernelNextHop<A: Family> {
    /// The link the packet leaves by.
    pub link: LinkIndex,
    /// The next station on it.
    pub gateway: Gateway<A>,
    /// The gateway is on the link although no connected subnet holds it.
    pub onlink: bool,
    /// Its share among its peers, 1 to 256.
    pub weight: u16,
}

/// The next station on a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Gateway<A: Family> {
    /// None: the destination itself is on the link (`scope link`).
    OnLink,
    /// A router of the same family.
    Address(A::Addr),
    /// A router of the other family (`via inet6`, RFC 5549): only its link address is taken from it.
    Other(IpAddr),
}

/// Which neighbour: an address on a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NeighbourKey<A: Family> {
    /// The link.
    pub link: LinkIndex,
    /// The neighbour's address.
    pub address: A::Addr,
}

/// What the kernel knows about a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Its link address, once known.
    pub link_address: Option<LinkAddr>,
    /// How sure the kernel is.
    pub state: NeighbourState,
}

/// The kernel's states (`NUD_*`), by what they mean to someone who only reads them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeighbourState {
    /// Entered by the administrator, or on a link that needs no resolution (`PERMANENT`, `NOARP`).
    Permanent,
    /// Confirmed a short while ago.
    Reachable,
    /// Known, to be confirmed when it is used (`STALE`, `DELAY`, `PROBE`).
    Stale,
    /// Being searched.
    Incomplete,
    /// Searched in vain.
    Failed,
}

/// What changed since the last look: names, not values. A consumer looks the values up in the
/// [`KernelState`]; a name that is not there any more was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Links came, went or changed.
    pub links: bool,
    /// IPv4.
    pub v4: FamilyChanges<V4>,
    /// IPv6.
    pub v6: FamilyChanges<V6>,
}

impl Changes {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// Routes changed, and neither links nor addresses.
    pub fn is_routes_only(&self) -> bool {
        let routes = !self.v4.routes.is_empty() || !self.v6.routes.is_empty();
        routes && !self.links && !self.v4.addresses && !self.v6.addresses
    }
}

/// What changed in one address family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FamilyChanges<A: Family> {
    /// Addresses came or went.
    pub addresses: bool,
    /// Prefixes whose routes changed.
    pub routes: BTreeSet<Prefix<A>>,
    /// Neighbours that changed.
    pub neighbours: BTreeSet<NeighbourKey<A>>,
}

impl<A: Family> Default for FamilyChanges<A> {
    fn default() -> Self {
        FamilyChanges { addresses: false, routes: BTreeSet::new(), neighbours: BTreeSet::new() }
    }
}
