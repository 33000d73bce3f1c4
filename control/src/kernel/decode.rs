//! From rtnetlink's messages to the types of [`state`](super::state): the one place that knows both.
//!
//! What cannot be carried over is named in a warning or made [`KernelRouteKind::Foreign`], never guessed.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType,
    RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use pollux_dataplane::packet::family::{Address, Family, LinkAddr, Prefix, V4, V6};

use super::ROUTE_PROTOCOL;
use super::state::{Changes, Foreign};
use super::state::{
    FamilyChanges, FamilyState, Gateway, KernelNextHop, KernelRoute, KernelRouteKind, KernelState, Link,
    LinkAddress, Neighbour, NeighbourKey, NeighbourState, Scope, Table,
};

/// A family as rtnetlink names it, and its part of the state.
pub(super) trait KernelFamily: Family {
    /// `AF_INET` or `AF_INET6`.
    const ADDRESS_FAMILY: AddressFamily;
    /// The family's tables.
    fn state(state: &mut KernelState) -> &mut FamilyState<Self>;
    /// The family's changes.
    fn changes(changes: &mut Changes) -> &mut FamilyChanges<Self>;
}

impl KernelFamily for V4 {
    const ADDRESS_FAMILY: AddressFamily = AddressFamily::Inet;
    fn state(state: &mut KernelState) -> &mut FamilyState<V4> {
        &mut state.v4
    }
    fn changes(changes: &mut Changes) -> &mut FamilyChanges<V4> {
        &mut changes.v4
    }
}

impl KernelFamily for V6 {
    const ADDRESS_FAMILY: AddressFamily = AddressFamily::Inet6;
    fn state(state: &mut KernelState) -> &mut FamilyState<V6> {
        &mut state.v6
    }
    fn changes(changes: &mut Changes) -> &mut FamilyChanges<V6> {
        &mut changes.v6
    }
}

/// A link; nothing if it has no name.
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        link_address: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        no_arp: flags.contains(LinkFlags::Noarp),
        loopback: flags.contains(LinkFlags::Loopback),
        kind: None,
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(bytes) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.link_address = link_address(bytes);
            }
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// An address of this family; nothing for one of the other, nor for one that duplicate detection has not
/// granted yet (the kernel announces it when it has), or has refused.
pub(super) fn address<A: KernelFamily>(message: &AddressMessage) -> Option<LinkAddress<A>> {
    let header = &message.header;
    if header.family != A::ADDRESS_FAMILY || header.prefix_len > A::BITS {
        return None;
    }
    // The header has the lower eight of these flags, the attribute all of them.
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = A::Addr::from_ip(*address),
            AddressAttribute::Address(address) => peer = A::Addr::from_ip(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // Without a peer both are the same, or (IPv6) only the second is there.
    let address = local.or(peer)?;
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        return None;
    }
    Some(LinkAddress {
        link: header.index,
        address,
        subnet: Prefix::new(peer.unwrap_or(address), header.prefix_len),
        scope: Scope(header.scope.into()),
        secondary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

/// A neighbour and what is known of it; no knowledge if the entry counts for nothing. Nothing for proxy
/// entries, for the other family, for a bridge's forwarding table, and for groups and broadcasts, which the
/// kernel enters without a word and whose link addresses follow from the address.
pub(super) fn neighbour<A: KernelFamily>(
    message: &NeighbourMessage,
) -> Option<(NeighbourKey<A>, Option<Neighbour>)> {
    let header = &message.header;
    if header.family != A::ADDRESS_FAMILY || header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    if header.state == Nud::Noarp && header.kind != RouteType::Unicast {
        return None;
    }
    let (mut address, mut known) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = A::Addr::from_ip(IpAddr::V4(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = A::Addr::from_ip(IpAddr::V6(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => known = link_address(bytes),
            _ => {}
        }
    }
    let key = NeighbourKey { link: header.ifindex, address: address? };
    let state = match header.state {
        Nud::Permanent | Nud::Noarp => NeighbourState::Permanent,
        Nud::Reachable => NeighbourState::Reachable,
        Nud::Stale | Nud::Delay | Nud::Probe => NeighbourState::Stale,
        Nud::Incomplete => NeighbourState::Incomplete,
        Nud::Failed => NeighbourState::Failed,
        _ => return Some((key, None)),
    };
    let link_address = match state {
        // A leftover of an earlier answer is no knowledge.
        NeighbourState::Incomplete | NeighbourState::Failed => None,
        _ => known,
    };
    Some((key, Some(Neighbour { link_address, state })))
}

/// What a route's message is to the mirror.
pub(super) enum DecodedRoute<A: Family> {
    /// A route of a table that is looked up.
    Route(KernelRoute<A>),
    /// Not to be mirrored: the other family, another table, a cached copy, Pollux's own.
    Skip,
    /// A route that only some packets see; the text says why it is left out.
    Unsupported(String),
}

/// A route.
pub(super) fn route<A: KernelFamily>(message: &RouteMessage) -> DecodedRoute<A> {
    let header = &message.header;
    let protocol = u8::from(header.protocol);
    if header.address_family != A::ADDRESS_FAMILY
        || header.flags.contains(RouteFlags::Cloned)
        || header.destination_prefix_length > A::BITS
        || protocol == ROUTE_PROTOCOL
    {
        return DecodedRoute::Skip;
    }
    let mut parts = RouteParts::<A>::new(message);
    let Some(table) = parts.table else {
        return DecodedRoute::Skip;
    };
    let prefix = Prefix::new(parts.destination, header.destination_prefix_length);
    if header.tos != 0 || header.source_prefix_length != 0 {
        return DecodedRoute::Unsupported(format!(
            "the route to {prefix} is for a type of service or a source prefix and is not mirrored"
        ));
    }
    let link = parts.hop.link;
    let kind = match header.kind {
        RouteType::Unicast => parts.unicast(),
        RouteType::Local => KernelRouteKind::Local(link),
        RouteType::Broadcast => KernelRouteKind::Broadcast(link),
        RouteType::Anycast => KernelRouteKind::Anycast(link),
        RouteType::Multicast => KernelRouteKind::Multicast(link),
        RouteType::BlackHole => KernelRouteKind::Blackhole,
        RouteType::Unreachable => KernelRouteKind::Unreachable,
        RouteType::Prohibit => KernelRouteKind::Prohibit,
        RouteType::Throw => KernelRouteKind::Throw,
        _ => KernelRouteKind::Foreign(Foreign::Kind),
    };
    DecodedRoute::Route(KernelRoute {
        prefix,
        table,
        metric: parts.metric,
        kind,
        preferred_source: parts.preferred_source,
        protocol,
        mtu: parts.mtu,
    })
}

/// The attributes of a route, before its kind is known.
struct RouteParts<A: Family> {
    destination: A::Addr,
    table: Option<Table>,
    metric: u32,
    preferred_source: Option<A::Addr>,
    mtu: Option<u32>,
    hop: KernelNextHop<A>,
    multipath: Vec<KernelNextHop<A>>,
    foreign: Option<Foreign>,
}

impl<A: KernelFamily> RouteParts<A> {
    fn new(message: &RouteMessage) -> Self {
        let mut table = u32::from(message.header.table);
        let mut parts = RouteParts {
            destination: A::Addr::UNSPECIFIED,
            table: None,
            metric: 0,
            preferred_source: None,
            mtu: None,
            hop: KernelNextHop {
                link: 0,
                gateway: Gateway::OnLink,
                onlink: message.header.flags.contains(RouteFlags::Onlink),
                weight: 1,
            },
            multipath: Vec::new(),
            foreign: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    if let Some(address) = route_address::<A>(address) {
                        parts.destination = address;
                    }
                }
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(metric) => parts.metric = *metric,
                RouteAttribute::PrefSource(address) => parts.preferred_source = route_address::<A>(address),
                RouteAttribute::Oif(link) => parts.hop.link = *link,
                RouteAttribute::Metrics(metrics) => {
                    parts.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::MultiPath(hops) => {
                    for hop in hops {
                        let mut next = KernelNextHop {
                            link: hop.interface_index,
                            gateway: Gateway::OnLink,
                            onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
                            weight: u16::from(hop.hops) + 1,
                        };
                        for attribute in &hop.attributes {
                            parts.foreign = parts.foreign.or(next_hop(attribute, &mut next));
                        }
                        parts.multipath.push(next);
                    }
                }
                attribute => parts.foreign = parts.foreign.or(next_hop(attribute, &mut parts.hop)),
            }
        }
        parts.table = match table {
            255 => Some(Table::Local),
            254 => Some(Table::Main),
            253 => Some(Table::Default),
            _ => None,
        };
        parts
    }

    fn unicast(&mut self) -> KernelRouteKind<A> {
        if let Some(foreign) = self.foreign {
            return KernelRouteKind::Foreign(foreign);
        }
        if !self.multipath.is_empty() {
            let hops = std::mem::take(&mut self.multipath);
            return KernelRouteKind::from_next_hops(hops)
                .unwrap_or(KernelRouteKind::Foreign(Foreign::NextHopObject));
        }
        // Without a link it is a next hop object that the kernel was told not to spell out
        // (net.ipv4.nexthop_compat_mode 0).
        if self.hop.link == 0 {
            return KernelRouteKind::Foreign(Foreign::NextHopObject);
        }
        KernelRouteKind::Unicast(self.hop)
    }
}

/// Reads one attribute of a next hop; the answer is what Pollux cannot do about it.
fn next_hop<A: Family>(attribute: &RouteAttribute, hop: &mut KernelNextHop<A>) -> Option<Foreign> {
    match attribute {
        RouteAttribute::Gateway(address) => {
            if let Some(address) = route_address::<A>(address) {
                hop.gateway = Gateway::Address(address);
            }
        }
        RouteAttribute::Via(RouteVia::Inet(address)) => hop.gateway = Gateway::Other((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => hop.gateway = Gateway::Other((*address).into()),
        RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => return Some(Foreign::Encapsulation),
        _ => {}
    }
    None
}

fn route_address<A: Family>(address: &RouteAddress) -> Option<A::Addr> {
    match address {
        RouteAddress::Inet(ip) => A::Addr::from_ip(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => A::Addr::from_ip(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn link_address(bytes: &[u8]) -> Option<LinkAddr> {
    bytes.try_into().ok().map(LinkAddr)
}

/// A warning about a policy rule, unless it is one of the three that every machine has.
pub(super) fn rule_warning<A: KernelFamily>(message: &RuleMessage) -> Option<String> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut priority = 0;
    let mut selects = header.src_len != 0 || header.dst_len != 0 || header.tos != 0;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            // The kernel puts these into every answer; they select nothing.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::Other(_) => {}
            _ => selects = true,
        }
    }
    let everyones = matches!((priority, table), (0, 255) | (32766, 254) | (32767, 253));
    if everyones && !selects && header.action == RuleAction::ToTable {
        return None;
    }
    let family = A::NAME;
    Some(match header.action {
        RuleAction::ToTable if table != 0 => format!(
            "the {family} policy rule with priority {priority} leads to table {table} and is not mirrored: \
             Pollux forwards by the tables local, main and default"
        ),
        _ => format!(
            "the {family} policy rule with priority {priority} is not mirrored: Pollux forwards by the \
             tables local, main and default"
        ),
    })
}
