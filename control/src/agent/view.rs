//! What is in force, as the items of the admin socket. What lies with the worker is asked for in pieces, and
//! named here, on the asking thread.

use std::net::IpAddr;

use jiff::Timestamp;
use pollux_dataplane::flow::{Counters, FlowInfo, FlowKey};
use pollux_dataplane::packet::{Family, PortId, Prefix, V4, V6};
use pollux_dataplane::route::{AdjacencyId, Neighbours, RouteKind};
use pollux_dataplane::stats::{Drops, PortStats, Reason};
use pollux_dataplane::tables::{FamilyTables, Ports};
use serde_json::{Value, json};

use super::WORKER;
use super::ports::backend_name;
use super::protocol::{
    DropItem, EndpointsItem, Filter, FlowItem, NamedPort, NeighbourItem, NextHopItem, PortCounters, PortItem,
    RouteItem, ServiceItem, ServicePortItem, StatsItem, TupleItem, WorkerItem,
};
use super::shared::{Shared, State};
use crate::cluster::{IpPrefix, Service, ServiceType, TrafficPolicy, parse_address};
use crate::config::node::{Role, Source};
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

/// The neighbours; nothing when the worker has stopped.
pub(super) fn neighbours(shared: &Shared, state: &State, filter: &Filter) -> Option<Vec<NeighbourItem>> {
    type Seen = (PortId, IpAddr, Option<String>, &'static str, usize);
    fn of<A: Family>(neighbours: &Neighbours<A>) -> Vec<Seen> {
        let seen = neighbours.iter().map(|one| {
            let link = one.link.map(|link| link.to_string());
            (one.port, one.address.into(), link, one.state.name(), one.held)
        });
        seen.collect()
    }
    let v4 = shared.worker.ask(|worker| of(worker.forwarder().neighbours_v4())).ok()?;
    let v6 = shared.worker.ask(|worker| of(worker.forwarder().neighbours_v6())).ok()?;
    let ports = &state.compiled.tables.ports;
    let items = v4.into_iter().chain(v6).filter_map(|(port, address, link_address, state, held)| {
        let port = port_name(ports, port)?;
        Some(NeighbourItem { address, link_address, port, state: state.to_owned(), held })
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

/// The ports; nothing when the worker has stopped.
pub(super) fn ports(shared: &Shared, state: &State, filter: &Filter) -> Option<Vec<PortItem>> {
    let counters = shared.worker.ask(|worker| worker.port_stats()).ok()?;
    let tables = &state.compiled.tables;
    let configured = state.inputs.node_config().map(|node| node.ports.as_slice()).unwrap_or_default();
    let items = counters.into_iter().filter_map(|(id, stats, error)| {
        let (info, config) = (tables.ports.get(id)?, configured.get(id.index())?);
        Some(PortItem {
            name: info.name.clone(),
            role: role_name(config.role).to_owned(),
            backend: backend_name(config.backend).to_owned(),
            interface: config.interface.clone(),
            link_address: info.link_address.to_string(),
            mtu_bytes: info.mtu,
            addresses: tables
                .v4
                .iter()
                .flat_map(|tables| addresses(tables, id))
                .chain(tables.v6.iter().flat_map(|tables| addresses(tables, id)))
                .collect(),
            counters: port_counters(&stats, error),
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

/// The drop reasons that were met, or that are named; nothing when the worker has stopped.
pub(super) fn drops(shared: &Shared, filter: &Filter) -> Option<Vec<DropItem>> {
    let dropped = shared.worker.ask(|worker| worker.stats().dropped).ok()?;
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

/// All counters; nothing when the worker has stopped.
pub(super) fn stats(shared: &Shared) -> Option<StatsItem> {
    let asked = shared.worker.ask(|worker| {
        let (stats, ports) = (worker.stats(), worker.port_stats());
        let forwarder = worker.forwarder();
        let neighbours = forwarder.neighbours_v4().len() + forwarder.neighbours_v6().len();
        let (v4, v6) = (forwarder.flows_v4(), forwarder.flows_v6());
        let flows = (v4.len() + v6.len(), v4.capacity() + v6.capacity());
        let flow_counters = [v4.counters(), v6.counters()];
        let (v4, v6) = (forwarder.clients_v4(), forwarder.clients_v6());
        let clients = (
            (v4.len() + v6.len()) as u64,
            (v4.capacity() + v6.capacity()) as u64,
            v4.refused() + v6.refused(),
        );
        (stats, ports, neighbours, flows, flow_counters, clients)
    });
    let (stats, ports, neighbours, (flows, capacity), [v4, v6], clients) = asked.ok()?;
    let of = |field: fn(&Counters) -> u64| field(&v4) + field(&v6);
    let names = &shared.state().compiled.tables.ports;
    let worker = WorkerItem {
        name: WORKER.to_owned(),
        received: stats.received,
        originated: stats.originated,
        split: stats.split,
        transmitted: stats.transmitted,
        delivered: stats.delivered,
        held: stats.held,
        joined: stats.joined,
        dropped: stats.dropped.total(),
        flows: flows as u64,
        flows_capacity: capacity as u64,
        flows_inserted: of(|counters| counters.inserted),
        flows_expired: of(|counters| counters.expired),
        flows_evicted: of(|counters| counters.evicted),
        flows_removed: of(|counters| counters.removed),
        flows_refused: of(|counters| counters.refused),
        affinity_clients: clients.0,
        affinity_capacity: clients.1,
        affinity_refused: clients.2,
        neighbours: neighbours as u64,
        buffers_free: shared.pool.available() as u64,
        buffers: shared.pool.capacity() as u64,
    };
    Some(StatsItem {
        time: Timestamp::now(),
        uptime_seconds: shared.started.elapsed().as_secs_f64(),
        workers: vec![worker],
        ports: ports
            .into_iter()
            .filter_map(|(id, stats, error)| {
                Some(NamedPort { name: port_name(names, id)?, counters: port_counters(&stats, error) })
            })
            .collect(),
        drops: drop_items(&stats.dropped, |_, count| count > 0),
    })
}

/// What the configuration has come to.
pub(super) fn config(state: &State) -> Value {
    let proxy = &state.inputs.config.proxy;
    let ports = state.inputs.node_config().map(|node| node.ports.as_slice()).unwrap_or_default();
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
        "ports": ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(),
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

/// The connections in `slots` slots of the table from `from` on, and where to go on; nothing when the
/// worker has stopped.
pub(super) fn flows(
    shared: &Shared,
    version: Version,
    from: usize,
    slots: usize,
) -> Option<(Vec<FlowItem>, Option<usize>)> {
    let asked = shared.worker.ask(move |worker| {
        let now = worker.now().into();
        let forwarder = worker.forwarder();
        match version {
            Version::V4 => {
                let (flows, next) = forwarder.flows_v4().list(from, slots, now);
                (Slice::V4(with_next_hops(flows, forwarder.neighbours_v4())), next)
            }
            Version::V6 => {
                let (flows, next) = forwarder.flows_v6().list(from, slots, now);
                (Slice::V6(with_next_hops(flows, forwarder.neighbours_v6())), next)
            }
        }
    });
    let (slice, next) = asked.ok()?;
    let state = shared.state();
    let ports = &state.compiled.tables.ports;
    let items = match slice {
        Slice::V4(flows) => flows.into_iter().map(|flow| flow_item(&flow, ports)).collect(),
        Slice::V6(flows) => flows.into_iter().map(|flow| flow_item(&flow, ports)).collect(),
    };
    Some((items, next))
}

/// A connection, and what its next hop stands for.
struct Seen<A: Family> {
    flow: FlowInfo<A>,
    way: Way<A>,
}

/// Where the packets of the original direction go.
enum Way<A: Family> {
    Neighbour(PortId, A::Addr),
    Host,
    Unknown,
}

enum Slice {
    V4(Vec<Seen<V4>>),
    V6(Vec<Seen<V6>>),
}

fn with_next_hops<A: Family>(flows: Vec<FlowInfo<A>>, neighbours: &Neighbours<A>) -> Vec<Seen<A>> {
    let way = |flow: &FlowInfo<A>| match flow.original_next_hop.index {
        u32::MAX => Way::Host,
        number => match neighbours.get(AdjacencyId(number)) {
            Some(neighbour) => Way::Neighbour(neighbour.port, neighbour.address),
            None => Way::Unknown,
        },
    };
    flows.into_iter().map(|flow| Seen { way: way(&flow), flow }).collect()
}

fn flow_item<A: Family>(seen: &Seen<A>, ports: &Ports) -> FlowItem {
    let tuple = |key: &FlowKey<A>| TupleItem {
        source: key.source.into(),
        source_port: key.source_port,
        destination: key.destination.into(),
        destination_port: key.destination_port,
    };
    let flow = &seen.flow;
    let (out_port, next_hop) = match seen.way {
        Way::Neighbour(port, address) => (port_name(ports, port), Some(address.into())),
        Way::Host => (ports.host().and_then(|port| port_name(ports, port)), None),
        Way::Unknown => (None, None),
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
