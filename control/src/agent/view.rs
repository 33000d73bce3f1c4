//! What is in force, as the items of the admin socket. What lies with the workers is asked for in pieces, and
//! named here, on the asking thread.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use jiff::Timestamp;
use pollux_dataplane::flow::{Counters, FlowInfo, FlowKey, NextHopRef};
use pollux_dataplane::forward::{Forwarder, NextHop};
use pollux_dataplane::packet::{Family, LinkAddr, PortId, Prefix, V4, V6};
use pollux_dataplane::route::{Neighbours, RouteKind};
use pollux_dataplane::stats::{Drops, PortStats, Reason, Stats};
use pollux_dataplane::tables::{FamilyTables, Ports};
use serde_json::{Value, json};

use super::ports::{Status, backend_name};
use super::protocol::{
    DropItem, EndpointsItem, Filter, FlowItem, NamedPort, NeighbourItem, NextHopItem, PortCounters, PortItem,
    PortState, RouteItem, ServiceItem, ServicePortItem, StatsItem, TupleItem, WorkerItem,
};
use super::shared::{Shared, State};
use super::team;
use super::tracking::Tracked;
use crate::cluster::{IpPrefix, Service, ServiceType, TrafficPolicy, parse_address};
use crate::config::NodeConfig;
use crate::config::node::{Backend, PortConfig, Role, Source};
use crate::config::proxy::DetectLocal;
use crate::translate::{ServicePortRules, ServicePorts, endpoint_name};

/// The Services.
pub(super) fn services(state: &State, filter: &Filter) -> Vec<ServiceItem> {
    let meant = |service: &&Service| filter.names_object(&service.key.namespace, &service.key.name);
    state.inputs.cluster.services.values().filter(meant).map(service).collect()
}

fn service(service: &Service) -> ServiceItem {
    let policy = |policy| match policy {
        TrafficPolicy::Cluster => "Cluster".to_owned(),
        TrafficPolicy::Local => "Local".to_owned(),
    };
    ServiceItem {
        namespace: service.key.namespace.clone(),
        name: service.key.name.clone(),
        kind: match service.kind {
            ServiceType::ClusterIP => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::ExternalName => "ExternalName",
        }
        .to_owned(),
        cluster_ips: service.cluster_ips.clone(),
        external_ips: service.external_ips.clone(),
        load_balancer_ips: service.load_balancer_ips.clone(),
        ports: service
            .ports
            .iter()
            .map(|port| ServicePortItem {
                name: port.name.clone(),
                protocol: port.protocol.to_string(),
                port: port.port,
                node_port: port.node_port,
            })
            .collect(),
        internal_traffic_policy: policy(service.internal_policy),
        external_traffic_policy: policy(service.external_policy),
        created: service.created,
    }
}

/// The endpoints of all service ports, as compiled.
pub(super) fn endpoints(state: &State, filter: &Filter) -> Vec<EndpointsItem> {
    fn of<'a, A: Family>(
        ports: &'a ServicePorts<A>,
        filter: &'a Filter,
    ) -> impl Iterator<Item = EndpointsItem> + 'a {
        let meant = |rules: &&ServicePortRules<A>| {
            filter.names_object(&rules.id.service.namespace, &rules.id.service.name)
        };
        ports.iter().filter(meant).map(|rules| EndpointsItem {
            namespace: rules.id.service.namespace.clone(),
            name: rules.id.service.name.clone(),
            port_name: rules.id.port_name.clone(),
            protocol: rules.id.protocol.to_string(),
            family: A::NAME.to_owned(),
            cluster: rules.endpoints.cluster.iter().map(|backend| endpoint_name(*backend)).collect(),
            local: rules.endpoints.local.iter().map(|backend| endpoint_name(*backend)).collect(),
        })
    }
    of(&state.compiled.ports_v4, filter).chain(of(&state.compiled.ports_v6, filter)).collect()
}

/// The forwarding table.
pub(super) fn routes(state: &State, filter: &Filter) -> Vec<RouteItem> {
    fn of<A: Family>(tables: &FamilyTables<A>, ports: &Ports, items: &mut Vec<RouteItem>) {
        for route in tables.routing.fib.routes() {
            let (kind, hop) = match &route.kind {
                RouteKind::Via(hop) => ("unicast", Some(hop)),
                RouteKind::Multipath(_) => ("unicast", None),
                RouteKind::Local => ("local", None),
                RouteKind::Broadcast => ("broadcast", None),
                RouteKind::Multicast => ("multicast", None),
                RouteKind::Host => ("host", None),
                RouteKind::Blackhole => ("blackhole", None),
                RouteKind::Unreachable => ("unreachable", None),
                RouteKind::Prohibit => ("prohibit", None),
            };
            items.push(RouteItem {
                destination: prefix_name(route.prefix),
                kind: kind.to_owned(),
                via: hop.and_then(|hop| hop.gateway).map(Into::into),
                port: hop.and_then(|hop| port_name(ports, hop.port)),
                source: route.preferred_source.map(Into::into),
                metric: route.metric,
                link_down: route.link_down,
                next_hops: match &route.kind {
                    RouteKind::Multipath(hops) => hops
                        .iter()
                        .map(|(hop, weight)| NextHopItem {
                            via: hop.gateway.map(Into::into),
                            port: port_name(ports, hop.port),
                            weight,
                        })
                        .collect(),
                    _ => Vec::new(),
                },
            });
        }
    }
    let tables = &state.compiled.tables;
    let mut items = Vec::new();
    if let Some(v4) = &tables.v4 {
        of(v4, &tables.ports, &mut items);
    }
    if let Some(v6) = &tables.v6 {
        of(v6, &tables.ports, &mut items);
    }
    let leaves_by = |item: &RouteItem| {
        let mut several = item.next_hops.iter().map(|hop| hop.port.as_deref()).peekable();
        match several.peek() {
            None => filter.names_port(item.port.as_deref()),
            Some(_) => several.any(|port| filter.names_port(port)),
        }
    };
    items.retain(|item| filter.names_item(&item.destination) && leaves_by(item));
    items
}

/// As `ip route` writes it: `default`, an address alone, or a prefix.
fn prefix_name<A: Family>(prefix: Prefix<A>) -> String {
    match prefix.len() {
        0 => "default".to_owned(),
        length if length == A::BITS => prefix.address().to_string(),
        _ => prefix.to_string(),
    }
}

fn port_name(ports: &Ports, id: PortId) -> Option<String> {
    ports.get(id).map(|port| port.name.clone())
}

/// The neighbours, each as the worker knows it that knows most; nothing when a worker has stopped.
pub(super) fn neighbours(shared: &Shared, state: &State, filter: &Filter) -> Option<Vec<NeighbourItem>> {
    struct Seen {
        place: (PortId, IpAddr),
        link: Option<LinkAddr>,
        state: &'static str,
        held: usize,
    }
    fn of<A: Family>(neighbours: &Neighbours<A>) -> impl Iterator<Item = Seen> {
        neighbours.iter().map(|one| Seen {
            place: (one.port, one.address.into()),
            link: one.link,
            state: one.state.name(),
            held: one.held,
        })
    }
    let asked = shared.team.ask_all(|worker| {
        let forwarder = worker.forwarder();
        let mut seen: Vec<Seen> = of(forwarder.neighbours_v4()).collect();
        seen.extend(of(forwarder.neighbours_v6()));
        seen
    });
    let mut known = BTreeMap::<(PortId, IpAddr), Seen>::new();
    for one in asked.ok()?.into_iter().flatten() {
        match known.entry(one.place) {
            Entry::Vacant(place) => {
                place.insert(one);
            }
            Entry::Occupied(mut first) => {
                let first = first.get_mut();
                if first.link.is_none() && one.link.is_some() {
                    (first.link, first.state) = (one.link, one.state);
                }
                first.held += one.held;
            }
        }
    }
    let ports = &state.compiled.tables.ports;
    let items = known.into_values().filter_map(|one| {
        Some(NeighbourItem {
            address: one.place.1,
            link_address: one.link.map(|link| link.to_string()),
            port: port_name(ports, one.place.0)?,
            state: one.state.to_owned(),
            held: one.held,
        })
    });
    let meant = |item: &NeighbourItem| {
        filter.names_item(&item.address.to_string())
            && filter.names_port(Some(&item.port))
            && filter.has_state(&item.state)
    };
    let mut items: Vec<_> = items.filter(meant).collect();
    items.sort_by(|a, b| (&a.port, a.address).cmp(&(&b.port, b.address)));
    Some(items)
}

/// The ports that there are, with their numbers; those that are only a place in other ports are left out.
fn present(state: &State) -> impl Iterator<Item = (PortId, &PortConfig, &Status)> {
    let configured = state.config.node.iter().flat_map(|node| &node.ports);
    let all = configured.zip(&state.ports).enumerate();
    all.filter_map(|(number, (config, status))| {
        let status = status.as_ref().filter(|_| config.backend != Backend::Ipip)?;
        Some((PortId(number as u16), config, status))
    })
}

/// The ports; nothing when a worker has stopped.
pub(super) fn ports(shared: &Shared, state: &State, filter: &Filter) -> Option<Vec<PortItem>> {
    let counters = shared.counted.read(&shared.team).ok()?;
    let tables = &state.compiled.tables;
    let items = present(state).filter_map(|(id, config, status)| {
        let info = tables.ports.get(id)?;
        let (stats, error) = counters.get(id.index()).cloned().unwrap_or_default();
        let mut counters = port_counters(&stats, error);
        let word = match status {
            Status::Open if shared.has_link(config) => PortState::Up,
            Status::Open => PortState::Down,
            Status::Absent => PortState::Absent,
            Status::Failed(why) => {
                counters.error = Some(why.clone());
                PortState::Failed
            }
        };
        Some(PortItem {
            name: info.name.clone(),
            role: role_name(config.role).to_owned(),
            backend: backend_name(config.backend).to_owned(),
            interface: config.interface.clone(),
            state: word,
            link_address: info.link_address.to_string(),
            mtu_bytes: info.mtu,
            addresses: tables
                .v4
                .iter()
                .flat_map(|tables| addresses(tables, id))
                .chain(tables.v6.iter().flat_map(|tables| addresses(tables, id)))
                .collect(),
            counters,
        })
    });
    Some(items.filter(|item| filter.names_item(&item.name)).collect())
}

fn addresses<A: Family>(tables: &FamilyTables<A>, port: PortId) -> Vec<String> {
    let interface = tables.routing.interfaces.of_port(port);
    let all = interface.map(|interface| interface.addresses()).unwrap_or_default();
    all.iter().map(|one| format!("{}/{}", one.address, one.subnet.len())).collect()
}

fn port_counters(stats: &PortStats, error: Option<String>) -> PortCounters {
    PortCounters {
        received: stats.received,
        received_bytes: stats.received_bytes,
        transmitted: stats.transmitted,
        transmitted_bytes: stats.transmitted_bytes,
        refused: stats.refused,
        missed: stats.missed,
        errors: stats.errors,
        error,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Uplink => "uplink",
        Role::Pod => "pod",
        Role::Host => "host",
    }
}

/// The drop reasons that were met, or that are named; nothing when a worker has stopped.
pub(super) fn drops(shared: &Shared, filter: &Filter) -> Option<Vec<DropItem>> {
    let all = shared.team.ask_all(|worker| worker.stats()).ok()?;
    let dropped = all.iter().fold(Stats::default(), |sum, one| sum.plus(one)).dropped;
    let met = drop_items(&dropped, |reason, count| {
        filter.names_item(reason.name()) && (count > 0 || !filter.names.is_empty())
    });
    Some(met)
}

fn drop_items(dropped: &Drops, meant: impl Fn(Reason, u64) -> bool) -> Vec<DropItem> {
    let all = Reason::ALL.iter().map(|&reason| (reason, dropped.get(reason)));
    all.filter(|&(reason, count)| meant(reason, count))
        .map(|(reason, count)| DropItem {
            reason: reason.name().to_owned(),
            count,
            description: reason.description().to_owned(),
        })
        .collect()
}

/// All counters; nothing when a worker has stopped.
pub(super) fn stats(shared: &Shared) -> Option<StatsItem> {
    let asked = shared.team.ask_all(|worker| {
        let forwarder = worker.forwarder();
        let neighbours = forwarder.neighbours_v4().len() + forwarder.neighbours_v6().len();
        (worker.stats(), neighbours as u64)
    });
    let asked = asked.ok()?;
    let mut workers: Vec<WorkerItem> = asked
        .iter()
        .enumerate()
        .map(|(number, (stats, neighbours))| WorkerItem {
            name: team::name(number),
            received: stats.received,
            originated: stats.originated,
            split: stats.split,
            taken: stats.taken,
            transmitted: stats.transmitted,
            delivered: stats.delivered,
            held: stats.held,
            joined: stats.joined,
            handed: stats.handed,
            dropped: stats.dropped.total(),
            neighbours: *neighbours,
            ..WorkerItem::default()
        })
        .collect();
    let first = workers.first_mut()?;
    *first = with_shared(shared, std::mem::take(first))?;
    let ports = shared.counted.read(&shared.team).ok()?;
    let state = shared.state();
    let named = present(&state).map(|(id, config, _)| {
        let (stats, error) = ports.get(id.index()).cloned().unwrap_or_default();
        NamedPort { name: config.name.clone(), counters: port_counters(&stats, error) }
    });
    let dropped = asked.iter().fold(Stats::default(), |sum, (one, _)| sum.plus(one)).dropped;
    Some(StatsItem {
        time: Timestamp::now(),
        uptime_seconds: shared.started.elapsed().as_secs_f64(),
        workers,
        ports: named.collect(),
        drops: drop_items(&dropped, |_, count| count > 0),
    })
}

/// `first` with what all workers share. Nothing when it has stopped.
fn with_shared(shared: &Shared, first: WorkerItem) -> Option<WorkerItem> {
    let (v4, v6) = (V4::table(&shared.flows), V6::table(&shared.flows));
    let counters = [v4.counters(), v6.counters()];
    let of = |field: fn(&Counters) -> u64| counters.iter().map(field).sum();
    let clients = shared.team.first().ask(|worker| {
        let forwarder = worker.forwarder();
        let (v4, v6) = (forwarder.clients_v4(), forwarder.clients_v6());
        [v4.len() + v6.len(), v4.capacity() + v6.capacity(), (v4.refused() + v6.refused()) as usize]
            .map(|number| number as u64)
    });
    let [affinity_clients, affinity_capacity, affinity_refused] = clients.ok()?;
    Some(WorkerItem {
        flows: (v4.len() + v6.len()) as u64,
        flows_capacity: (v4.capacity() + v6.capacity()) as u64,
        flows_inserted: of(|counters| counters.inserted),
        flows_expired: of(|counters| counters.expired),
        flows_evicted: of(|counters| counters.evicted),
        flows_removed: of(|counters| counters.removed),
        flows_refused: of(|counters| counters.refused),
        affinity_clients,
        affinity_capacity,
        affinity_refused,
        buffers_free: shared.pool.available() as u64,
        buffers: shared.pool.capacity() as u64,
        ..first
    })
}

/// What the configuration has come to.
pub(super) fn config(state: &State) -> Value {
    let proxy = &state.inputs.config.proxy;
    let source = |kernel: Option<bool>| match kernel {
        Some(true) => "kernel",
        _ => "listed",
    };
    let node = state.inputs.node_config();
    json!({
        "node": state.inputs.node,
        "generation": state.number,
        "in_force_since": state.since,
        "cluster_cidrs": proxy.cluster_cidrs.iter().map(IpPrefix::to_string).collect::<Vec<_>>(),
        "detect_local": match &proxy.detect_local {
            DetectLocal::ClusterCidr => "ClusterCIDR".to_owned(),
            DetectLocal::NodeCidr => "NodeCIDR".to_owned(),
            DetectLocal::BridgeInterface(name) => format!("BridgeInterface {name}"),
            DetectLocal::InterfaceNamePrefix(prefix) => format!("InterfaceNamePrefix {prefix}"),
        },
        "masquerade_mark": format!("{:#x}", state.compiled.tables.masquerade.mark),
        "routes": source(node.map(|node| node.routes == Source::Kernel)),
        "neighbours": source(node.map(|node| node.neighbours == Source::Kernel)),
        "workers": node.map_or(1, NodeConfig::worker_count),
        "cores": node.map(|node| node.cores.as_slice()).unwrap_or_default(),
        "ports": present(state).map(|(_, port, _)| port.name.as_str()).collect::<Vec<_>>(),
        "port_patterns": node.iter().flat_map(|node| &node.patterns).map(|port| port.name.as_str()).collect::<Vec<_>>(),
        "services": state.inputs.cluster.services.len(),
        "endpoint_slices": state.inputs.cluster.slices.len(),
    })
}

/// Which family's connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V4,
    V6,
}

/// The connections in `slots` slots of the table from `from` on, and where to go on; nothing when a
/// worker has stopped.
pub(super) fn flows(
    shared: &Shared,
    version: Version,
    from: usize,
    slots: usize,
) -> Option<(Vec<FlowItem>, Option<usize>)> {
    match version {
        Version::V4 => flows_of::<V4>(shared, from, slots),
        Version::V6 => flows_of::<V6>(shared, from, slots),
    }
}

/// A family whose next hops a worker can tell.
trait Routed: Tracked {
    fn next_hop(forwarder: &Forwarder, next_hop: NextHopRef) -> NextHop<Self>;
}

impl Routed for V4 {
    fn next_hop(forwarder: &Forwarder, next_hop: NextHopRef) -> NextHop<V4> {
        forwarder.next_hop_v4(next_hop)
    }
}

impl Routed for V6 {
    fn next_hop(forwarder: &Forwarder, next_hop: NextHopRef) -> NextHop<V6> {
        forwarder.next_hop_v6(next_hop)
    }
}

fn flows_of<A: Routed>(shared: &Shared, from: usize, slots: usize) -> Option<(Vec<FlowItem>, Option<usize>)> {
    let (flows, next) = A::table(&shared.flows).list(from, slots, shared.team.now().into());
    // A next hop is one worker's to tell.
    let hops: Vec<NextHopRef> = flows.iter().map(|flow: &FlowInfo<A>| flow.original_next_hop).collect();
    let told = match hops.as_slice() {
        [] => Vec::new(),
        _ => shared
            .team
            .ask_all(move |worker| {
                let forwarder = worker.forwarder();
                hops.iter().map(|hop| A::next_hop(forwarder, *hop)).collect::<Vec<_>>()
            })
            .ok()?,
    };
    let state = shared.state();
    let ports = &state.compiled.tables.ports;
    let items = flows.iter().enumerate().map(|(at, flow)| {
        let known = told.iter().map(|hops| hops[at]).find(|hop| *hop != NextHop::Unknown);
        flow_item(flow, known.unwrap_or(NextHop::Unknown), ports)
    });
    Some((items.collect(), next))
}

fn flow_item<A: Family>(flow: &FlowInfo<A>, next_hop: NextHop<A>, ports: &Ports) -> FlowItem {
    let tuple = |key: &FlowKey<A>| TupleItem {
        source: key.source.into(),
        source_port: key.source_port,
        destination: key.destination.into(),
        destination_port: key.destination_port,
    };
    let (out_port, next_hop) = match next_hop {
        NextHop::Neighbour(port, address) => (port_name(ports, port), Some(address.into())),
        NextHop::Host => (ports.host().and_then(|port| port_name(ports, port)), None),
        NextHop::Unknown => (None, None),
    };
    FlowItem {
        id: flow.entry.id(),
        protocol: flow.original.protocol.to_string(),
        state: flow.state.name().to_owned(),
        original: tuple(&flow.original),
        reply: tuple(&flow.reply),
        mark: flow.mark,
        seen_reply: flow.seen_reply,
        assured: flow.assured,
        remaining_seconds: flow.remaining.as_secs_f64(),
        out_port,
        next_hop,
    }
}

/// The conditions of a filter on connections, read once.
pub(super) struct Selection<'a> {
    filter: &'a Filter,
    source: Option<IpPrefix>,
    destination: Option<IpPrefix>,
}

impl Selection<'_> {
    /// Of a filter that was checked.
    pub(super) fn new(filter: &Filter) -> Selection<'_> {
        let read = |text: &Option<String>| text.as_deref().and_then(address_or_prefix);
        Selection { filter, source: read(&filter.source), destination: read(&filter.destination) }
    }

    pub(super) fn selects(&self, flow: &FlowItem) -> bool {
        let Filter { protocol, source_port, destination_port, .. } = self.filter;
        let within = |prefix: &Option<IpPrefix>, addresses: &[IpAddr]| {
            prefix.is_none_or(|prefix| addresses.iter().any(|address| contains(prefix, *address)))
        };
        let is_protocol = |wanted: &String| {
            *wanted == flow.protocol
                || wanted.parse().is_ok_and(|number| {
                    pollux_dataplane::packet::Protocol(number).to_string() == flow.protocol
                })
        };
        protocol.as_ref().is_none_or(is_protocol)
            && within(&self.source, &[flow.original.source])
            && within(&self.destination, &[flow.original.destination, flow.reply.source])
            && source_port.is_none_or(|port| port == flow.original.source_port)
            && destination_port
                .is_none_or(|port| port == flow.original.destination_port || port == flow.reply.source_port)
            && self.filter.has_state(&flow.state)
            && self.filter.names_port(flow.out_port.as_deref())
    }
}

/// Reads `address` or `address/length`.
pub(super) fn address_or_prefix(text: &str) -> Option<IpPrefix> {
    IpPrefix::parse(text).or_else(|| {
        let address = parse_address(text)?;
        IpPrefix::new(address, if address.is_ipv4() { 32 } else { 128 })
    })
}

fn contains(prefix: IpPrefix, address: IpAddr) -> bool {
    IpPrefix::new(address, prefix.len()) == Some(prefix)
}
