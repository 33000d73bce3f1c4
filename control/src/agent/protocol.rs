//! What is said over the admin socket: lines of JSON, both ways.
//!
//! A client sends one [`Request`] in a line and gets any number of lines [`Line::Item`], then one
//! [`Line::Done`] or [`Line::Error`]; then it may ask again. Both sides read and write these types, so they
//! cannot disagree, and `pollux get -o json` prints the items as they came.

use std::net::IpAddr;

use clap::ValueEnum;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::capture::CaptureRequest;
use super::conntrack::{Action, FlowFilter};

/// Where a running agent listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/pollux/admin.sock";

/// Longest request that is read, bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The items of a table.
    Get {
        /// Which table.
        resource: Resource,
        /// Which of its items.
        #[serde(default)]
        filter: Filter,
    },
    /// All counters: one item, [`StatsItem`].
    Stats,
    /// Connections, as conntrack(8) speaks of them.
    Conntrack {
        /// What is to be done.
        action: Action,
        /// With which of them.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Frames as they pass: [`CaptureItem`](super::capture::CaptureItem)s until enough have come or the client ends it,
    /// which it does by sending nothing more (it shuts its side of the connection).
    Capture(CaptureRequest),
}

/// A line of an answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// One item.
    Item(Value),
    /// There are no more.
    Done {
        /// How many there were.
        items: usize,
    },
    /// The question was not understood, or cannot be answered.
    Error(String),
}

/// What can be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// The Services in force.
    #[value(aliases = ["service", "svc"])]
    Services,
    /// Their endpoints, by service port.
    #[value(aliases = ["endpoint", "ep"])]
    Endpoints,
    /// The connections.
    #[value(aliases = ["flow"])]
    Flows,
    /// The forwarding table.
    #[value(aliases = ["route"])]
    Routes,
    /// The neighbours.
    #[value(aliases = ["neighbour", "neighbors", "neighbor"])]
    Neighbours,
    /// The ports.
    #[value(aliases = ["port"])]
    Ports,
    /// Drops by reason.
    #[value(aliases = ["drop"])]
    Drops,
    /// The configuration.
    Config,
}

/// Which items: all conditions that are set must hold. A condition that has no meaning for the table holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The namespace of Services and endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Names: of Services, ports, drop reasons; destinations of routes; addresses of neighbours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Protocol of a connection: `tcp`, `udp`, ..., or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Address or prefix that a connection's first packet came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Address or prefix that it was sent to, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Its source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Its destination port, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// State of a connection or a neighbour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The port that a route, a neighbour or a connection goes out of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the Kubernetes object")]
pub struct ServiceItem {
    pub namespace: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePortItem>,
    pub internal_traffic_policy: String,
    pub external_traffic_policy: String,
    pub created: Option<Timestamp>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the Kubernetes object")]
pub struct ServicePortItem {
    pub name: String,
    pub protocol: String,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// The endpoints of a service port, as they are in force on this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointsItem {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The service port's name; may be empty.
    pub port_name: String,
    /// Its protocol.
    pub protocol: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// What policy Cluster chooses from, `address:port`.
    pub cluster: Vec<String>,
    /// What policy Local chooses from.
    pub local: Vec<String>,
}

/// A connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FlowItem {
    /// Its number while it lives.
    pub id: u64,
    /// The protocol.
    pub protocol: String,
    /// The protocol's state.
    pub state: String,
    /// Its first packet, as it came in.
    pub original: TupleItem,
    /// The answer to it, as it comes in.
    pub reply: TupleItem,
    /// Its mark.
    pub mark: u32,
    /// Whether an answer was seen.
    pub seen_reply: bool,
    /// Whether it is kept when the table is full.
    pub assured: bool,
    /// Time left without a packet.
    pub remaining_seconds: f64,
    /// The port that its packets leave by; nothing when that is not known any more.
    pub out_port: Option<String>,
    /// The neighbour that they are sent to.
    pub next_hop: Option<IpAddr>,
}

/// Addresses and ports of a packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "self-explanatory")]
pub struct TupleItem {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RouteItem {
    /// The prefix.
    pub destination: String,
    /// What happens to the packets.
    pub kind: String,
    /// The gateway.
    pub via: Option<IpAddr>,
    /// The port that they leave by.
    pub port: Option<String>,
    /// The preferred source.
    pub source: Option<IpAddr>,
    /// The lower, the better.
    pub metric: u32,
    /// Whether the link has no carrier.
    pub link_down: bool,
    /// The ways of a route that has several, among which the flows are shared (RT-01).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_hops: Vec<NextHopItem>,
}

/// One of several ways of a route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NextHopItem {
    /// The gateway.
    pub via: Option<IpAddr>,
    /// The port that the packets leave by.
    pub port: Option<String>,
    /// Its share of the flows, beside those of the others.
    pub weight: u16,
}

/// A neighbour.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NeighbourItem {
    /// Its address.
    pub address: IpAddr,
    /// Its link address, if known.
    pub link_address: Option<String>,
    /// The port that it is behind.
    pub port: String,
    /// What is known of it.
    pub state: String,
    /// Packets that wait for it.
    pub held: usize,
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortItem {
    /// Its name.
    pub name: String,
    /// `uplink`, `pod` or `host`.
    pub role: String,
    /// How its frames are read and written.
    pub backend: String,
    /// The interface behind it.
    pub interface: String,
    /// How it is.
    pub state: PortState,
    /// Its link address.
    pub link_address: String,
    /// Largest IP packet, bytes.
    pub mtu_bytes: u32,
    /// The node's addresses on it.
    pub addresses: Vec<String>,
    /// Its counters.
    #[serde(flatten)]
    pub counters: PortCounters,
}

/// How a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// It is open and has a carrier, as far as its backend knows of one.
    Up,
    /// It is open, and its interface is down or has no carrier.
    Down,
    /// Its interface is not there; it is opened when that comes.
    Absent,
    /// It could not be opened: `error` says why. It is tried again.
    Failed,
}

/// A port's counters since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in `pollux_dataplane::stats::PortStats`")]
pub struct PortCounters {
    pub received: u64,
    pub received_bytes: u64,
    pub transmitted: u64,
    pub transmitted_bytes: u64,
    pub refused: u64,
    pub missed: u64,
    pub errors: u64,
    /// Why it does not work at present.
    pub error: Option<String>,
}

/// A drop reason that was met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropItem {
    /// Its word.
    pub reason: String,
    /// How many packets.
    pub count: u64,
    /// One sentence.
    pub description: String,
}

/// All counters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatsItem {
    /// When they were read.
    pub time: Timestamp,
    /// Since the start.
    pub uptime_seconds: f64,
    /// By worker.
    pub workers: Vec<WorkerItem>,
    /// By port.
    pub ports: Vec<NamedPort>,
    /// By drop reason, those that were met.
    pub drops: Vec<DropItem>,
}

/// A port's name and counters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its counters.
    #[serde(flatten)]
    pub counters: PortCounters,
}

/// One worker's counters since the start. What all workers share (flows, clients of session affinity, buffers) stands
/// with the first, so that sums over the workers are right.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in `pollux_dataplane::stats::Stats` and `flow::Counters`")]
pub struct WorkerItem {
    pub name: String,
    pub received: u64,
    pub originated: u64,
    pub split: u64,
    pub taken: u64,
    pub transmitted: u64,
    pub delivered: u64,
    pub held: u64,
    pub joined: u64,
    pub handed: u64,
    pub dropped: u64,
    pub flows: u64,
    pub flows_capacity: u64,
    pub flows_inserted: u64,
    pub flows_expired: u64,
    pub flows_evicted: u64,
    pub flows_removed: u64,
    pub flows_refused: u64,
    pub affinity_clients: u64,
    pub affinity_capacity: u64,
    pub affinity_refused: u64,
    pub neighbours: u64,
    pub buffers_free: u64,
    pub buffers: u64,
}

impl Filter {
    /// Checks what cannot be checked by its type.
    ///
    /// # Errors
    /// The condition and its value.
    pub fn check(&self) -> Result<(), String> {
        for (field, value) in [("source", &self.source), ("destination", &self.destination)] {
            if let Some(text) = value
                && super::view::address_or_prefix(text).is_none()
            {
                return Err(format!("{field} {text} is not an address or prefix"));
            }
        }
        match &self.protocol {
            Some(text) if text.parse::<u8>().is_err() && !PROTOCOLS.contains(&text.as_str()) => {
                Err(format!("protocol {text} is not one of {} or a number", PROTOCOLS.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// Whether an item of this namespace and name is meant.
    pub(super) fn names_object(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace) && self.names_item(name)
    }

    /// Whether an item of this name is meant.
    pub(super) fn names_item(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// Whether an item that has to do with this port is meant.
    pub(super) fn names_port(&self, port: Option<&str>) -> bool {
        self.port.as_deref().is_none_or(|wanted| port == Some(wanted))
    }

    /// Whether an item in this state is meant.
    pub(super) fn has_state(&self, state: &str) -> bool {
        self.state.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(state))
    }
}

/// Protocols that have a name here.
const PROTOCOLS: [&str; 6] = ["icmp", "ipip", "tcp", "udp", "icmpv6", "sctp"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_they_are_documented() {
        let text = r#"{"get":{"resource":"flows","filter":{"protocol":"tcp","source":"10.151.0.0/16"}}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        let Request::Get { resource, filter } = &request else { panic!("{request:?}") };
        assert_eq!(*resource, Resource::Flows);
        assert_eq!(filter.check(), Ok(()));
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(r#""stats""#).unwrap(), Request::Stats);
    }

    #[test]
    fn a_misspelt_condition_is_an_error_and_not_ignored() {
        let text = r#"{"get":{"resource":"flows","filter":{"sorce":"10.0.0.1"}}}"#;
        assert!(serde_json::from_str::<Request>(text).unwrap_err().to_string().contains("sorce"));
        let filter = Filter { source: Some("10.0.0.300".into()), ..Filter::default() };
        assert_eq!(filter.check(), Err("source 10.0.0.300 is not an address or prefix".into()));
        let filter = Filter { protocol: Some("tpc".into()), ..Filter::default() };
        assert!(filter.check().unwrap_err().starts_with("protocol tpc is not one of icmp"));
    }
}
