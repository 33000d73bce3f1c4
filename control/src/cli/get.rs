//! `pollux get`: what a running forwarder works with, in kubectl's habits.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgAction, ValueEnum};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::table::Table;
use super::{Exit, Failure};
use crate::agent::Client;
use crate::agent::protocol::{
    DEFAULT_SOCKET, DropItem, EndpointsItem, Filter, FlowItem, NeighbourItem, PortItem, PortState, Request,
    Resource, RouteItem, ServiceItem, TupleItem,
};

/// Connections of which a table's widths are made; a listing can be long.
const ROWS: usize = 1000;

/// Endpoints shown in a cell.
const ENDPOINTS: usize = 3;

const EXAMPLE: &str = "\
Examples:
  pollux get services -n default
  pollux get endpoints myapp -o yaml
  pollux get flows --protocol tcp --destination 10.150.18.86
  pollux get neighbours --port ens3";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    /// What to show.
    #[arg(value_enum)]
    resource: Resource,
    /// Only these: names of Services, ports, drop reasons; destinations of routes; addresses of neighbours.
    names: Vec<String>,
    /// Where `pollux run` listens.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    admin: PathBuf,
    /// How it is printed.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
    /// As `-o json`.
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "output")]
    json: bool,
    /// Services and endpoints of this namespace; otherwise of all.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Flows of this protocol: tcp, udp, sctp, icmp, icmpv6, or its number.
    #[arg(short, long)]
    protocol: Option<String>,
    /// Flows from this address or prefix.
    #[arg(short, long, value_name = "ADDRESS")]
    source: Option<String>,
    /// Flows to this address or prefix, before or after translation.
    #[arg(short, long, value_name = "ADDRESS")]
    destination: Option<String>,
    /// Flows from this port.
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Flows to this port, before or after translation.
    #[arg(long, value_name = "PORT")]
    destination_port: Option<u16>,
    /// Flows or neighbours in this state.
    #[arg(long)]
    state: Option<String>,
    /// Flows, routes and neighbours that leave by this port.
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    let resource = args.resource;
    let format = if args.json { Format::Json } else { args.output };
    let one_namespace = args.namespace.is_some();
    let filter = Filter {
        namespace: args.namespace,
        names: args.names,
        protocol: args.protocol.map(|name| name.to_lowercase()),
        source: args.source,
        destination: args.destination,
        source_port: args.source_port,
        destination_port: args.destination_port,
        state: args.state,
        port: args.port,
    };
    let mut client = Client::connect(&args.admin)?;
    let named = filter.names.clone();
    let items = client.ask(&Request::Get { resource, filter })?;
    let items: Vec<Value> = items.collect::<Result<_, _>>()?;
    let mut out = io::stdout().lock();
    let nothing = items.is_empty();
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &document(resource, items)).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(&document(resource, items)).map_err(io::Error::other)?;
            write!(out, "{text}")?;
        }
        Format::Table if resource == Resource::Config => {
            let text = serde_saphyr::to_string(&document(resource, items)).map_err(io::Error::other)?;
            write!(out, "{text}")?;
        }
        Format::Table if nothing => eprintln!("No {} found.", name_of(resource)),
        Format::Table => {
            for items in items.chunks(ROWS) {
                let table = table(resource, items)?;
                let namespaced = matches!(resource, Resource::Services | Resource::Endpoints);
                write!(out, "{}", if namespaced && one_namespace { table.without(0) } else { table })?;
            }
        }
    }
    out.flush()?;
    // As kubectl does: asking for something by its name and not finding it is no success.
    Ok(if nothing && !named.is_empty() { Exit::Difference } else { Exit::Done })
}

/// One object: the list, or the configuration, of which there is one.
fn document(resource: Resource, mut items: Vec<Value>) -> Value {
    match resource {
        Resource::Config => items.pop().unwrap_or_default(),
        _ => json!({ "items": items }),
    }
}

fn name_of(resource: Resource) -> String {
    resource.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn read<T: DeserializeOwned>(items: &[Value]) -> Result<Vec<T>, Failure> {
    let read = items.iter().map(|item| T::deserialize(item).map_err(io::Error::from));
    Ok(read.collect::<Result<_, _>>()?)
}

fn table(resource: Resource, items: &[Value]) -> Result<Table, Failure> {
    Ok(match resource {
        Resource::Services => services(&read(items)?),
        Resource::Endpoints => endpoints(&read(items)?),
        Resource::Flows => flows(&read(items)?),
        Resource::Routes => routes(&read(items)?),
        Resource::Neighbours => neighbours(&read(items)?),
        Resource::Ports => ports(&read(items)?),
        Resource::Drops => drops(&read(items)?),
        Resource::Config => Table::new(&[]),
    })
}

fn services(items: &[ServiceItem]) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    for item in items {
        let external: Vec<_> = item.external_ips.iter().chain(&item.load_balancer_ips).collect();
        let ports = item.ports.iter().map(|port| {
            let protocol = port.protocol.to_uppercase();
            match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
                None => format!("{}/{protocol}", port.port),
            }
        });
        table.row([
            item.namespace.clone(),
            item.name.clone(),
            item.kind.clone(),
            match item.cluster_ips.first() {
                Some(address) => address.to_string(),
                None => "None".to_owned(),
            },
            joined(external),
            joined(ports),
            item.created.map(age).unwrap_or_default(),
        ]);
    }
    table
}

fn endpoints(items: &[EndpointsItem]) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "PORT", "PROTOCOL", "ENDPOINTS", "LOCAL"]);
    for item in items {
        table.row([
            item.namespace.clone(),
            item.name.clone(),
            item.port_name.clone(),
            item.protocol.to_uppercase(),
            some_of(&item.cluster),
            some_of(&item.local),
        ]);
    }
    table
}

fn flows(items: &[FlowItem]) -> Table {
    let columns = ["PROTOCOL", "STATE", "SOURCE", "DESTINATION", "BACKEND", "SOURCE-NAT", "OUT", "EXPIRES"];
    let mut table = Table::new(&columns);
    for item in items {
        let TupleItem { source, source_port, destination, destination_port } = &item.original;
        let reply = &item.reply;
        let changed = |is: bool, address: &IpAddr, port: u16| match is {
            true => endpoint(address, port),
            false => "-".to_owned(),
        };
        // An answer to an ICMP query has another type in the place of the port.
        let ported = !item.protocol.starts_with("icmp");
        let backend = reply.source != *destination || ported && reply.source_port != *destination_port;
        let masqueraded = reply.destination != *source || ported && reply.destination_port != *source_port;
        table.row([
            item.protocol.clone(),
            item.state.clone(),
            endpoint(source, *source_port),
            endpoint(destination, *destination_port),
            changed(backend, &reply.source, reply.source_port),
            changed(masqueraded, &reply.destination, reply.destination_port),
            item.out_port.clone().unwrap_or_default(),
            format!("{:.0}s", item.remaining_seconds),
        ]);
    }
    table
}

fn routes(items: &[RouteItem]) -> Table {
    let mut table = Table::new(&["DESTINATION", "KIND", "VIA", "PORT", "SOURCE", "METRIC"]);
    for item in items {
        table.row([
            item.destination.clone(),
            format!("{}{}", item.kind, if item.link_down { " (linkdown)" } else { "" }),
            or_dash(item.via),
            item.port.clone().unwrap_or_else(|| "-".to_owned()),
            or_dash(item.source),
            item.metric.to_string(),
        ]);
        // As `ip route` shows them: one way a line, below its route.
        for hop in &item.next_hops {
            table.row([
                String::new(),
                format!("weight {}", hop.weight),
                or_dash(hop.via),
                hop.port.clone().unwrap_or_else(|| "-".to_owned()),
                String::new(),
                String::new(),
            ]);
        }
    }
    table
}

fn neighbours(items: &[NeighbourItem]) -> Table {
    let mut table = Table::new(&["ADDRESS", "LINK-ADDRESS", "PORT", "STATE", "HELD"]);
    for item in items {
        table.row([
            item.address.to_string(),
            item.link_address.clone().unwrap_or_default(),
            item.port.clone(),
            item.state.clone(),
            item.held.to_string(),
        ]);
    }
    table
}

fn ports(items: &[PortItem]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ROLE",
        "BACKEND",
        "LINK-ADDRESS",
        "MTU",
        "ADDRESSES",
        "RECEIVED",
        "TRANSMITTED",
        "STATUS",
    ]);
    for item in items {
        table.row([
            item.name.clone(),
            item.role.clone(),
            item.backend.clone(),
            item.link_address.clone(),
            item.mtu_bytes.to_string(),
            item.addresses.join(","),
            item.counters.received.to_string(),
            item.counters.transmitted.to_string(),
            status(item),
        ]);
    }
    table
}

/// What there is to be said of a port, and `OK` when there is nothing.
fn status(item: &PortItem) -> String {
    match (&item.counters.error, item.state) {
        (Some(error), _) => error.clone(),
        (None, PortState::Up) => "OK".to_owned(),
        (None, PortState::Down) => "no carrier".to_owned(),
        (None, PortState::Absent) => "no such interface".to_owned(),
        (None, PortState::Failed) => "failed".to_owned(),
    }
}

fn drops(items: &[DropItem]) -> Table {
    let mut table = Table::new(&["REASON", "COUNT", "DESCRIPTION"]);
    for item in items {
        table.row([item.reason.clone(), item.count.to_string(), item.description.clone()]);
    }
    table
}

fn joined(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn or_dash(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

fn endpoint(address: &IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(*address, port).to_string()
}

/// The first few, as kubectl shows them.
fn some_of(endpoints: &[String]) -> String {
    let shown = endpoints.iter().take(ENDPOINTS).cloned().collect::<Vec<_>>().join(",");
    match endpoints.len().saturating_sub(ENDPOINTS) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

/// An age as kubectl shows it.
fn age(created: Timestamp) -> String {
    let seconds = Timestamp::now().as_second().saturating_sub(created.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
