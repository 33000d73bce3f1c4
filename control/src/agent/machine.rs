//! The node as it is: its configuration, with everything that this leaves to the kernel. Link addresses and
//! MTUs of ports, and with `routes: kernel` the routes, interfaces and addresses (RT-05).

use std::sync::Arc;

use pollux_dataplane::packet::{Family, LinkAddr};
use pollux_dataplane::route::source::{Lifetime, LinkState, Scope};
use pollux_dataplane::route::{
    Changed, Interface, InterfaceAddress, Interfaces, Multipath, NextHop, Route, RouteKind,
};

use super::routes::Routes;
use crate::config::node::Source;
use crate::config::{Config, NodeConfig};
use crate::kernel::settings::LinkSettings;
use crate::kernel::state::{
    self, Changes, FamilyState, Gateway, KernelNextHop, KernelRoute, KernelRouteKind, KernelState, Link,
};
use crate::node::{FamilyView, LinkFacts, Links, NodeView};
use crate::problem::{Problem, Problems};

/// The view of the node, and what is worth saying about it.
///
/// # Errors
/// Routes of the configuration that cannot be forwarded by.
pub(super) fn view(config: &Config, kernel: &KernelState) -> Result<(NodeView, Vec<Problem>), Problems> {
    let (view, _, warnings) = followed(config, kernel)?;
    Ok((view, warnings))
}

/// As [`view`], and the tables to be changed later when the routes are the kernel's.
///
/// # Errors
/// As there.
pub(super) fn followed(
    config: &Config,
    kernel: &KernelState,
) -> Result<(NodeView, Option<Routes>, Vec<Problem>), Problems> {
    let (mut view, node, warnings) = configured(config, kernel)?;
    if node.routes != Source::Kernel {
        return Ok((view, None, warnings));
    }
    let (routes, routing) = Routes::new(&Names::new(&node, &view, kernel), kernel);
    (view.v4.routing, view.v6.routing) = routing;
    Ok((view, Some(routes), warnings))
}

/// The view after the configuration or the kernel has changed: `old` with what is different.
///
/// # Errors
/// As [`view`].
pub(super) fn changed(
    config: &Config,
    kernel: &KernelState,
    changes: &Changes,
    routes: Option<&mut Routes>,
    old: &NodeView,
) -> Result<(NodeView, Vec<Problem>), Problems> {
    let following = routes.is_some();
    // One route of many costs no look at the ports.
    let (mut view, node, warnings) = match config.node.as_ref() {
        Some(node) if following && changes.is_routes_only() => (old.clone(), node.clone(), Vec::new()),
        _ => configured(config, kernel)?,
    };
    if let Some(routes) = routes {
        let names = Names::new(&node, &view, kernel);
        let routing = routes.follow(&names, kernel, changes, (&old.v4.routing, &old.v6.routing));
        (view.v4.routing, view.v6.routing) = routing;
    }
    Ok((share(view, old), warnings))
}

/// The part of the view that comes from the configuration.
fn configured(
    config: &Config,
    kernel: &KernelState,
) -> Result<(NodeView, NodeConfig, Vec<Problem>), Problems> {
    let node = config.node.clone().unwrap_or_default();
    let (view, warnings) = NodeView::configured(&node, &links(&node, kernel), &config.proxy.detect_local)?;
    Ok((view, node, warnings))
}

/// `view` with the parts of `old` that are equal: an established flow looks its next hop up again only
/// after a change that may concern it.
fn share(mut view: NodeView, old: &NodeView) -> NodeView {
    if view.ports.iter().eq(old.ports.iter()) && view.ports.tunnels().eq(old.ports.tunnels()) {
        view.ports = Arc::clone(&old.ports);
    }
    share_routing(&mut view.v4, &old.v4);
    share_routing(&mut view.v6, &old.v6);
    view
}

/// Whether nothing is different between two views of which the newer one came from the older by [`changed`].
pub(super) fn is_same(new: &NodeView, old: &NodeView) -> bool {
    Arc::ptr_eq(&new.ports, &old.ports)
        && Arc::ptr_eq(&new.v4.routing, &old.v4.routing)
        && Arc::ptr_eq(&new.v6.routing, &old.v6.routing)
}

/// Whether the node has the same addresses in both, as in [`is_same`].
pub(super) fn same_addresses(new: &NodeView, old: &NodeView) -> bool {
    Arc::ptr_eq(&new.v4.routing.interfaces, &old.v4.routing.interfaces)
        && Arc::ptr_eq(&new.v6.routing.interfaces, &old.v6.routing.interfaces)
}

fn share_routing<A: Family>(new: &mut FamilyView<A>, old: &FamilyView<A>) {
    let same = || {
        new.routing.fib.routes() == old.routing.fib.routes()
            && new.routing.interfaces.iter().eq(old.routing.interfaces.iter())
    };
    // Where the tables follow the kernel, they are the same object already.
    let known = Arc::ptr_eq(&new.routing.interfaces, &old.routing.interfaces)
        || new.routing.fib.changed_since(&old.routing.fib) != Changed::Everything;
    if !known && same() {
        new.routing = Arc::clone(&old.routing);
    }
}

/// What the node's configuration leaves to the kernel. Where the routes are not the kernel's, neither are its settings.
fn links(node: &NodeConfig, kernel: &KernelState) -> Links {
    let is_port = |name: &str| node.ports.iter().any(|port| port.interface == name);
    let settings = |name: &str| match node.routes == Source::Kernel && is_port(name) {
        true => LinkSettings::of(name),
        false => LinkSettings::default(),
    };
    let ethernet = kernel.links.iter().filter_map(|link| {
        // A tunnel of the kernel's has no link address, and Pollux's in its place needs none.
        let is_tunnel = link.kind.as_deref() == Some("ipip");
        let link_address = link.link_address.or(is_tunnel.then(LinkAddr::default))?;
        let facts = LinkFacts { link_address, mtu: link.mtu, settings: settings(&link.name) };
        Some((link.name.clone(), facts))
    });
    ethernet.collect()
}

/// From the kernel's links to ports.
pub(super) struct Names<'a> {
    node: &'a NodeConfig,
    view: &'a NodeView,
    links: &'a [Link],
}

impl<'a> Names<'a> {
    fn new(node: &'a NodeConfig, view: &'a NodeView, kernel: &'a KernelState) -> Self {
        Names { node, view, links: &kernel.links }
    }

    /// The kernel's interfaces and addresses.
    pub(super) fn interfaces<A: Family>(&self, state: &FamilyState<A>) -> Interfaces<A> {
        Interfaces::new(self.links.iter().map(|link| self.interface(link, state)).collect())
    }

    fn interface<A: Family>(&self, link: &Link, state: &FamilyState<A>) -> Interface<A> {
        let port = self.port_of(link);
        let name = port.and_then(|port| self.view.ports.get(port)).map_or(&link.name, |port| &port.name);
        let mut interface = Interface::new(name, port);
        interface.link = link_state(link);
        for address in state.addresses.iter().filter(|address| address.link == link.index) {
            interface.add(InterfaceAddress {
                address: address.address,
                subnet: address.subnet,
                scope: match address.scope {
                    state::Scope::UNIVERSE => Scope::Global,
                    state::Scope::HOST => Scope::Host,
                    state::Scope::LINK => Scope::Link,
                    _ => Scope::Site,
                },
                secondary: address.secondary,
                lifetime: if address.deprecated { Lifetime::Deprecated } else { Lifetime::Preferred },
            });
        }
        interface
    }

    /// A route of the kernel's, which has those that come by themselves (RT-03) already. Nothing for one whose
    /// link has gone meanwhile.
    pub(super) fn route<A: Family>(&self, route: &KernelRoute<A>) -> Option<Route<A>> {
        let kind = match &route.kind {
            KernelRouteKind::Unicast(hop) if self.is_ignored(hop) => return None,
            KernelRouteKind::Unicast(hop) => self.next_hop(hop)?,
            KernelRouteKind::Multipath(hops) => self.multipath(hops)?,
            KernelRouteKind::Local(_) | KernelRouteKind::Anycast(_) => RouteKind::Local,
            KernelRouteKind::Broadcast(_) => RouteKind::Broadcast,
            KernelRouteKind::Multicast(_) => RouteKind::Multicast,
            KernelRouteKind::Blackhole => RouteKind::Blackhole,
            // After a throw the kernel looks into its last table, where nobody puts anything.
            KernelRouteKind::Unreachable | KernelRouteKind::Throw => RouteKind::Unreachable,
            KernelRouteKind::Prohibit => RouteKind::Prohibit,
            KernelRouteKind::Foreign(_) => RouteKind::Host,
        };
        let hops = route.kind.next_hops();
        let has_carrier = |hop: &KernelNextHop<A>| self.link(hop.link).is_some_and(|link| link.carrier);
        Some(Route {
            prefix: route.prefix,
            metric: route.metric,
            kind,
            preferred_source: route.preferred_source,
            link_down: !hops.is_empty() && !hops.iter().any(has_carrier),
        })
    }

    /// RT-04: the link has no carrier, and routes through it do not count then.
    fn is_ignored<A: Family>(&self, hop: &KernelNextHop<A>) -> bool {
        let ignored = match A::VERSION {
            4 => &self.view.v4.linkdown_ignored,
            _ => &self.view.v6.linkdown_ignored,
        };
        let link = self.link(hop.link).filter(|link| !link.carrier);
        link.and_then(|link| self.port_of(link)).is_some_and(|port| ignored.contains(&port))
    }

    /// The ways of a route that are alive: a link that is down takes its own out, as in the kernel (`dead`). Nothing
    /// without any. When one leads out of an interface that is no port, the kernel chooses.
    fn multipath<A: Family>(&self, hops: &[KernelNextHop<A>]) -> Option<RouteKind<A>> {
        let mut ways = Vec::with_capacity(hops.len());
        let is_up = |hop: &&KernelNextHop<A>| self.link(hop.link).is_some_and(|link| link.up);
        for hop in hops.iter().filter(is_up).filter(|hop| !self.is_ignored(hop)) {
            match self.next_hop(hop)? {
                RouteKind::Via(next) => ways.push((next, hop.weight)),
                other => return Some(other),
            }
        }
        match ways.as_slice() {
            [(only, _)] => Some(RouteKind::Via(*only)),
            _ => Multipath::new(ways).map(|ways| RouteKind::Multipath(Arc::new(ways))),
        }
    }

    fn next_hop<A: Family>(&self, hop: &KernelNextHop<A>) -> Option<RouteKind<A>> {
        let gateway = match hop.gateway {
            Gateway::OnLink => None,
            Gateway::Address(address) => Some(address),
            // A router of the other family (RFC 5549): the kernel's to do.
            Gateway::Other(_) => return Some(RouteKind::Host),
        };
        Some(match self.port_of(self.link(hop.link)?) {
            // IPIP carries IPv4 only; another tunnel's routes are the kernel's.
            Some(port) if A::VERSION == 6 && self.view.ports.tunnel(port).is_some() => RouteKind::Host,
            Some(port) => RouteKind::Via(NextHop { port, gateway, onlink: hop.onlink }),
            None => RouteKind::Host,
        })
    }

    fn link(&self, index: state::LinkIndex) -> Option<&Link> {
        let place = self.links.binary_search_by_key(&index, |link| link.index).ok()?;
        self.links.get(place)
    }

    pub(super) fn port_of(&self, link: &Link) -> Option<pollux_dataplane::packet::PortId> {
        port_of(self.node, link)
    }
}

/// The port that has this link behind it.
pub(super) fn port_of(node: &NodeConfig, link: &Link) -> Option<pollux_dataplane::packet::PortId> {
    let place = node.ports.iter().position(|port| port.interface == link.name)?;
    Some(pollux_dataplane::packet::PortId(place as u16))
}

fn link_state(link: &Link) -> LinkState {
    match (link.up, link.carrier) {
        (false, _) => LinkState::Down,
        (true, false) => LinkState::NoCarrier,
        (true, true) => LinkState::Up,
    }
}
