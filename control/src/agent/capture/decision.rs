//! What was decided about a frame: the forwarder's events in one line, and step by step.

use std::net::SocketAddr;

use pollux_dataplane::capture::{Direction, Record};
use pollux_dataplane::flow;
use pollux_dataplane::forward::Event;
use pollux_dataplane::packet::PortId;
use serde::{Deserialize, Serialize};

use crate::compile::Compiled;
use crate::trace::{self, Step, Verdict};

/// What was decided about a frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// All of it in a line.
    pub summary: String,
    /// `forward`, `deliver`, `reject`, `drop`, `hold`; nothing where the frame was for nobody to forward: neighbour
    /// resolution, and what is left to the kernel.
    pub verdict: Option<Verdict>,
    /// For `drop` and `reject`: the reason's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How it came to that, in the words of iptables. Missing when other tables are in force already.
    pub steps: Vec<Step>,
}

impl Decision {
    /// From what a record tells. `compiled` is what the tables of that moment were compiled to, if it is at hand.
    pub(super) fn of(
        record: &Record,
        compiled: Option<&Compiled>,
        name: impl Fn(PortId) -> String,
    ) -> Decision {
        let events = &record.events;
        let verdict = trace::verdict(events);
        let reason = trace::dropped(events).map(|reason| reason.name().to_owned());
        let steps = compiled.map_or_else(Vec::new, |compiled| trace::steps(compiled, events));
        let mut summary = match (record.direction, verdict) {
            (Direction::Out, _) => came_from(events, &name),
            (Direction::In, Some(Verdict::Forward)) => format!("forward{}", out_of(events, &name)),
            (Direction::In, Some(Verdict::Deliver)) => "deliver to the node".to_owned(),
            (Direction::In, Some(Verdict::Hold)) => "hold".to_owned(),
            (Direction::In, Some(verdict @ (Verdict::Drop | Verdict::Reject))) => {
                format!("{} {}", verdict.name(), reason.as_deref().unwrap_or_default()).trim_end().to_owned()
            }
            (Direction::In, None) => "not to be forwarded".to_owned(),
        };
        let details: Vec<String> = events.iter().filter_map(|event| detail(event, compiled)).collect();
        if !details.is_empty() {
            summary = format!("{summary}: {}", details.join(", "));
        }
        Decision { summary, verdict, reason, steps }
    }

    /// The whole of it, a line for each step: the comment of a capture file.
    pub fn comment(&self) -> String {
        let mut lines = vec![self.summary.clone()];
        lines.extend(self.steps.iter().map(|step| {
            let place = format!("{} {}", step.table, step.chain);
            match step.rule.as_str() {
                "" => format!("{}: {}", place.trim(), step.effect),
                rule => format!("{}: {} [{rule}]", place.trim(), step.effect),
            }
        }));
        lines.join("\n")
    }
}

/// Where a frame that leaves comes from.
fn came_from(events: &[Event], name: &impl Fn(PortId) -> String) -> String {
    let leaves = matches!(events.last(), Some(Event::Sent { .. } | Event::Delivered { .. }));
    let answered = events.iter().any(|event| matches!(event, Event::Answered(_)));
    let received = events.iter().find_map(|event| match event {
        Event::Received { port, .. } => Some(*port),
        _ => None,
    });
    match received {
        // A request for a link address, or the answer to one.
        _ if !leaves => "the node's own".to_owned(),
        _ if answered => "the node's own answer".to_owned(),
        Some(port) => format!("from {}", name(port)),
        None => "after it had waited".to_owned(),
    }
}

fn out_of(events: &[Event], name: &impl Fn(PortId) -> String) -> String {
    let port = events.iter().rev().find_map(|event| match event {
        Event::Sent { port, .. } => Some(name(*port)),
        _ => None,
    });
    port.map_or_else(String::new, |port| format!(" out of {port}"))
}

fn detail(event: &Event, compiled: Option<&Compiled>) -> Option<String> {
    let way = |direction: &flow::Direction| match direction {
        flow::Direction::Original => "original",
        flow::Direction::Reply => "reply",
    };
    Some(match event {
        Event::FlowHit { direction } => format!("known connection, {} direction", way(direction)),
        Event::Related { direction } => {
            format!("error about a known connection, {} direction", way(direction))
        }
        Event::FlowMiss => "new".to_owned(),
        Event::Invalid => "invalid".to_owned(),
        Event::Untracked => "untracked".to_owned(),
        Event::Chose { frontend, address, port, .. } => {
            let to = SocketAddr::new(*address, *port);
            match compiled.and_then(|compiled| trace::service_of(compiled, address.is_ipv4(), *frontend)) {
                Some(service) => format!("DNAT to {to} of {service}"),
                None => format!("DNAT to {to}"),
            }
        }
        Event::Masqueraded { source, source_port, .. } => {
            format!("masqueraded as {}", SocketAddr::new(*source, *source_port))
        }
        Event::AwaitsFirst => "waits for the first fragment".to_owned(),
        Event::Held { neighbour, .. } => format!("waits for the link address of {neighbour}"),
        Event::Encapsulated { source, peer, .. } => format!("IPIP {source} > {peer}"),
        Event::Decapsulated { peer, .. } => format!("out of the tunnel of {peer}"),
        Event::Answered(kind) => format!("the source is told {}", trace::error_name(*kind)),
        _ => return None,
    })
}
