//! Connections as conntrack(8) speaks of them: what is asked over the admin socket, and the items of the
//! answers (CT-11). `serve` answers, `pollux conntrack` prints.

mod select;
pub(super) mod serve;

use std::net::IpAddr;

use jiff::Timestamp;
use pollux_dataplane::flow::{Counts, Direction, FlowInfo, FlowKey, State};
use pollux_dataplane::packet::{Family, Protocol};
use serde::{Deserialize, Serialize};

use select::Selector;

/// What is to be done with the connections that a [`FlowFilter`] chooses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// List them: a [`TrackedItem`] for each.
    List,
    /// Count them: one [`CountItem`].
    Count,
    /// Delete them: a [`TrackedItem`] for each that is gone now.
    Delete,
    /// Tell what becomes of them from now on, until the client goes: [`EventItem`]s.
    Events {
        /// What of it; nothing: everything.
        #[serde(default)]
        kinds: Vec<Kind>,
    },
    /// Counters of all connections: one [`CountersItem`] for each worker.
    Stats,
    /// The node addresses and backends between which most source ports are in use (NAT-06): at most `top`
    /// [`SourcePortsItem`]s, the fullest first.
    SourcePorts {
        /// How many.
        top: u32,
    },
}

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It was made.
    New,
    /// Its state changed, a reply was seen, or it became assured.
    #[value(alias = "updates")]
    Update,
    /// It ended.
    Destroy,
}

/// Which connections: all conditions that are set must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// `ipv4` or `ipv6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// The protocol's name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Its first packet, as it came in.
    pub original: TupleFilter,
    /// The answer to it, as it comes in.
    pub reply: TupleFilter,
    /// ICMP type of the first packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Its ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Its ICMP identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// The state of TCP or SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The mark under a mask: `MARK` or `MARK/MASK`, decimal or hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// Whether a reply was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_reply: Option<bool>,
    /// Whether it is kept when the table is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assured: Option<bool>,
    /// Its source is translated: to this address, or to any when it is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_nat: Option<String>,
    /// Its destination is translated: to this address, or to any when it is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_nat: Option<String>,
    /// Its source or its destination is translated.
    pub any_nat: bool,
}

/// Conditions on one tuple. Addresses are addresses or prefixes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "self-explanatory")]
pub struct TupleFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

/// A connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TrackedItem {
    /// Its number while it lives.
    pub id: u64,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The protocol's number.
    pub protocol: u8,
    /// Time left without a packet.
    pub remaining_seconds: f64,
    /// The sysctl of the timeout that this is the rest of.
    pub timeout: String,
    /// The state of TCP or SCTP.
    pub state: Option<String>,
    /// Its first packet, as it came in.
    pub original: TrackedTuple,
    /// The answer to it, as it comes in.
    pub reply: TrackedTuple,
    /// Whether an answer was seen.
    pub seen_reply: bool,
    /// Whether it is kept when the table is full.
    pub assured: bool,
    /// Its mark.
    pub mark: u32,
}

/// One direction of a connection. Ports are there for protocols that have them, the ICMP fields for ICMP, the
/// counters when accounting is on (`nf_conntrack_acct`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "self-explanatory")]
pub struct TrackedTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A number of connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CountItem {
    /// How many.
    pub count: u64,
}

/// What became of a connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "read and printed one by one")]
pub enum EventItem {
    /// This happened.
    Event {
        /// What.
        kind: Kind,
        /// When it was told.
        time: Timestamp,
        /// To which connection, as it was then.
        flow: TrackedItem,
    },
    /// So many events were lost since the last item, to this client or to another: they came faster than they
    /// were taken.
    Lost(u64),
}

/// Counters of connections since the start. What all workers share is counted with the first: the sum over the
/// workers is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CountersItem {
    /// The worker's number.
    pub worker: u32,
    /// Packets that belong to no connection and cannot begin one, or whose transport header is wrong.
    pub invalid: u64,
    /// Connections made.
    pub insert: u64,
    /// Connections that were not made because no source port was free (NAT-05).
    pub insert_failed: u64,
    /// Packets dropped because the table was full (CT-09).
    pub drop: u64,
    /// Connections that made room for another (CT-09).
    pub early_drop: u64,
    /// Packets too malformed to be tracked (FW-04).
    pub error: u64,
    /// Connections whose time was over.
    pub expired: u64,
    /// Connections removed for another reason: deleted, reset, reopened.
    pub removed: u64,
    /// UDP flows deleted because their backend serves no more (UP-03).
    pub swept: u64,
    /// Connections that live.
    pub entries: u64,
    /// Connections that there is room for.
    pub capacity: u64,
    /// Events lost to listeners that were too slow.
    pub events_lost: u64,
}

/// Source ports in use between an address of the node and a backend (NAT-06).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourcePortsItem {
    /// The protocol's number.
    pub protocol: u8,
    /// The address that connections are masqueraded with.
    pub source: IpAddr,
    /// The backend's address.
    pub destination: IpAddr,
    /// Its port.
    pub destination_port: u16,
    /// Connections between the two: source ports that no other can have.
    pub used: u64,
    /// There may be so many more: in a table with very many pairs small ones are not all kept in mind.
    pub uncertain: u64,
}

impl TrackedItem {
    pub(super) fn of<A: Family>(flow: &FlowInfo<A>) -> TrackedItem {
        let counts = |direction: Direction| flow.accounting.map(|counts| counts[direction as usize]);
        TrackedItem {
            id: flow.id,
            family: A::NAME.to_owned(),
            protocol: flow.original.protocol.0,
            remaining_seconds: flow.remaining.as_secs_f64(),
            timeout: flow.timeout.name().to_owned(),
            state: state_name(flow.state).map(str::to_owned),
            original: TrackedTuple::of(&flow.original, counts(Direction::Original)),
            reply: TrackedTuple::of(&flow.reply, counts(Direction::Reply)),
            seen_reply: flow.seen_reply,
            assured: flow.assured,
            mark: flow.mark,
        }
    }
}

impl TrackedTuple {
    fn of<A: Family>(key: &FlowKey<A>, counts: Option<Counts>) -> TrackedTuple {
        let is_icmp = key.protocol == A::ICMP;
        let ports = key.protocol.has_ports();
        let [kind, code] = key.destination_port.to_be_bytes();
        TrackedTuple {
            source: key.source.into(),
            destination: key.destination.into(),
            source_port: ports.then_some(key.source_port),
            destination_port: ports.then_some(key.destination_port),
            icmp_type: is_icmp.then_some(kind),
            icmp_code: is_icmp.then_some(code),
            icmp_id: is_icmp.then_some(key.source_port),
            packets: counts.map(|counts| counts.packets),
            bytes: counts.map(|counts| counts.bytes),
        }
    }
}

/// The name of a state that conntrack(8) shows.
fn state_name(state: State) -> Option<&'static str> {
    match state {
        State::Tcp(_) | State::Sctp(_) => Some(state.name()),
        _ => None,
    }
}

/// The protocols that have a name on conntrack(8)'s command line.
pub const PROTOCOLS: [(&str, Protocol); 5] = [
    ("tcp", Protocol::TCP),
    ("udp", Protocol::UDP),
    ("sctp", Protocol::SCTP),
    ("icmp", Protocol::ICMP),
    ("icmpv6", Protocol::ICMPV6),
];

impl FlowFilter {
    /// Checks what cannot be checked by its type.
    ///
    /// # Errors
    /// The condition and its value.
    pub fn check(&self) -> Result<(), String> {
        Selector::new(self).map(drop)
    }
}
