//! `pollux trace`: what becomes of one packet, decided by a forwarder of its own under the tables in
//! question. It is the data plane's code that decides, with an observer that writes along; there is no second
//! model. The packet, if it leaves, is read off the frame that came out.

pub mod packet;
mod words;

use std::net::{IpAddr, SocketAddr};

use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Event, Forwarder, Output, Settings};
use pollux_dataplane::packet::ip::V4_LEN;
use pollux_dataplane::packet::{
    Burst, Family, Headers, LinkAddr, Packet, Parsed, PortId, Protocol, TcpFlags, V4, V6, ethernet, parse,
};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::route::Learned;
use pollux_dataplane::service::FrontendId;
use pollux_dataplane::tables::{FamilyTables, Role};
use pollux_dataplane::time::Instant;
use serde::{Deserialize, Serialize};

use crate::compile::Compiled;
use crate::node::{KnownNeighbour, NodeView};
use crate::translate::ServicePorts;
use packet::{Echo, PacketSpec};
pub use words::Step;
use words::Words;
pub(crate) use words::{dropped, error_name};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The packet.
    pub packet: PacketSpec,
    /// Where it comes in: a port's name, or `host`.
    pub input: String,
    /// What conntrack knows of it.
    pub state: State,
    /// Which of a Service's backends to follow; nothing: all of them are listed, and none is followed
    /// unless there is only one.
    pub backend: Option<SocketAddr>,
}

/// What conntrack knows of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum State {
    /// It is a connection's first.
    #[default]
    New,
    /// Its connection exists and has seen a reply.
    Established,
    /// It belongs to none and can begin none.
    Invalid,
}

/// What becomes of the packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Trace {
    /// `forward`, `deliver`, `reject`, `drop`, `hold`.
    pub verdict: Verdict,
    /// For `drop` and `reject`: the reason's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For `reject`: which ICMP error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// What it may be translated to.
    pub backends: Vec<BackendChoice>,
    /// How it came to that.
    pub steps: Vec<Step>,
    /// The one packet that leaves, if there is one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub out: Option<Out>,
}

/// A verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Out of a port.
    Forward,
    /// To the node itself.
    Deliver,
    /// Dropped, and the source is told.
    Reject,
    /// Dropped.
    Drop,
    /// It waits for its next hop's link address.
    Hold,
}

impl Verdict {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Forward => "forward",
            Verdict::Deliver => "deliver",
            Verdict::Reject => "reject",
            Verdict::Drop => "drop",
            Verdict::Hold => "hold",
        }
    }
}

/// One of the backends that a packet may be translated to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BackendChoice {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// How likely it is: `1/3`.
    pub probability: String,
    /// Whether the source is masqueraded then.
    pub masquerade: bool,
}

/// A packet as it leaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Out {
    /// The port.
    pub out_port: String,
    /// Source address.
    pub source: String,
    /// Source port, or ICMP identifier.
    pub source_port: u16,
    /// Destination address.
    pub destination: String,
    /// Destination port, or ICMP type and code.
    pub destination_port: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Link source.
    pub link_source: String,
    /// Link destination.
    pub link_destination: String,
}

/// Asks the tables what becomes of a packet.
///
/// # Errors
/// One line: what of the question does not fit the tables.
pub fn trace(
    compiled: &Compiled,
    view: &NodeView,
    pool: &'static Pool,
    question: &Question,
) -> Result<Trace, String> {
    let tables = &compiled.tables;
    match (question.packet.source.is_ipv4(), &tables.v4, &tables.v6) {
        (true, Some(family), _) => {
            trace_family::<V4>(compiled, view, pool, question, family, &compiled.ports_v4)
        }
        (false, _, Some(family)) => {
            trace_family::<V6>(compiled, view, pool, question, family, &compiled.ports_v6)
        }
        _ => Err(format!("packet {}: the node forwards nothing of its family", question.packet)),
    }
}

/// What a forwarder under these tables did to a packet, in the words of iptables.
pub fn steps(compiled: &Compiled, events: &[Event]) -> Vec<Step> {
    let tables = &compiled.tables;
    let is_v6 = events.iter().any(|event| matches!(event, Event::Received { source: IpAddr::V6(_), .. }));
    match (is_v6, &tables.v4, &tables.v6) {
        (false, Some(family), _) => Words { tables, family, ports: &compiled.ports_v4 }.steps(events),
        (true, _, Some(family)) => Words { tables, family, ports: &compiled.ports_v6 }.steps(events),
        _ => Vec::new(),
    }
}

/// The service port that a frontend of these tables belongs to.
pub(crate) fn service_of(compiled: &Compiled, is_v4: bool, frontend: FrontendId) -> Option<String> {
    let tables = &compiled.tables;
    if is_v4 {
        let place = tables.v4.as_ref()?.services.frontend(frontend).service_port;
        Some(compiled.ports_v4.get(place as usize)?.id.to_string())
    } else {
        let place = tables.v6.as_ref()?.services.frontend(frontend).service_port;
        Some(compiled.ports_v6.get(place as usize)?.id.to_string())
    }
}

/// What became of a packet, as far as the events tell; nothing when they do not.
pub(crate) fn verdict(events: &[Event]) -> Option<Verdict> {
    let last = events.iter().rev().find_map(|event| match event {
        Event::Sent { .. } => Some(Verdict::Forward),
        Event::Delivered { .. } => Some(Verdict::Deliver),
        Event::Held { .. } | Event::AwaitsFirst => Some(Verdict::Hold),
        Event::Dropped(_) => Some(Verdict::Drop),
        _ => None,
    })?;
    let told = events.iter().any(|event| matches!(event, Event::Answered(_)));
    Some(if told && last == Verdict::Drop { Verdict::Reject } else { last })
}

fn trace_family<A: Family>(
    compiled: &Compiled,
    view: &NodeView,
    pool: &'static Pool,
    question: &Question,
    family: &FamilyTables<A>,
    ports: &ServicePorts<A>,
) -> Result<Trace, String> {
    let words = Words { tables: &compiled.tables, family, ports };
    let bench = Bench { compiled, view, pool, question, input: input_port(compiled, &question.input)? };
    let first = bench.run(None)?;
    let chosen = first.events.iter().find_map(|event| match event {
        Event::Chose { set, .. } => Some(*set),
        _ => None,
    });
    let set = chosen.map_or(&[][..], |set| family.services.backends(set));
    let mut runs = Vec::with_capacity(set.len());
    for place in 0..set.len() {
        runs.push(bench.run(Some(place as u32))?);
    }
    let backends = set.iter().zip(&runs).map(|(backend, run)| BackendChoice {
        address: backend.address.to_string(),
        port: backend.port,
        probability: format!("1/{}", set.len()),
        masquerade: run.events.iter().any(|event| matches!(event, Event::Masqueraded { .. })),
    });
    let backends: Vec<_> = backends.collect();
    let followed = match question.backend {
        Some(wanted) => {
            let is_wanted = |choice: &BackendChoice| {
                choice.address == wanted.ip().to_string() && choice.port == wanted.port()
            };
            Some(backends.iter().position(is_wanted).ok_or_else(|| {
                format!(
                    "backend {wanted}: the packet is offered {} backends, and it is none of them",
                    set.len()
                )
            })?)
        }
        None => (set.len() == 1).then_some(0),
    };
    // Without a choice to follow, the steps are those of the first backend, up to the choice.
    let run = match followed {
        Some(place) => &runs[place],
        None => runs.first().unwrap_or(&first),
    };
    let follow = followed.is_some() || set.is_empty();
    let events = match follow {
        true => &run.events[..],
        false => {
            let end = run.events.iter().position(|event| matches!(event, Event::Chose { .. }));
            &run.events[..end.unwrap_or(run.events.len())]
        }
    };
    Ok(Trace {
        verdict: run.verdict(),
        reason: words::dropped(&run.events).map(|reason| reason.name().to_string()),
        icmp: run.events.iter().find_map(|event| match event {
            Event::Answered(kind) => Some(words::error_name(*kind)),
            _ => None,
        }),
        backends,
        steps: words.steps(events),
        out: if follow { run.out(compiled, pool) } else { None },
    })
}

/// The port called `name`, or the host's for `host`.
fn input_port(compiled: &Compiled, name: &str) -> Result<PortId, String> {
    let ports = &compiled.tables.ports;
    let found = match name {
        "host" => ports.iter().find(|(_, port)| port.role == Role::Host).map(|(id, _)| id),
        name => ports.by_name(name),
    };
    found.ok_or_else(|| {
        let names: Vec<_> = ports.iter().map(|(_, port)| port.name.as_str()).collect();
        format!("--in {name}: no such port (the ports are {})", names.join(", "))
    })
}

/// A forwarder under the tables, and the packet to send through it.
struct Bench<'a> {
    compiled: &'a Compiled,
    view: &'a NodeView,
    pool: &'static Pool,
    question: &'a Question,
    input: PortId,
}

/// What one packet met, and the frames that came out.
struct Run {
    events: Vec<Event>,
    frames: Vec<(PortId, Vec<u8>)>,
}

#[derive(Default)]
struct Frames(Vec<(PortId, Vec<u8>)>);

impl Output for Frames {
    fn send(&mut self, port: PortId, packet: Packet) {
        self.0.push((port, packet.to_vec()));
    }
}

impl Bench<'_> {
    /// Sends the packet through a fresh forwarder, which chooses the backend at `place`.
    fn run(&self, place: Option<u32>) -> Result<Run, String> {
        let settings = Settings {
            connections: 64,
            clients: 64,
            timeouts: Timeouts::default(),
            sysctls: Sysctls::default(),
            seed: 1,
        };
        let mut forwarder = Forwarder::new(&settings, self.pool).map_err(|error| error.to_string())?;
        forwarder.set_tables(self.compiled.tables.clone());
        forwarder.fix_choice(Some(place.unwrap_or(0)));
        teach(&mut forwarder, &self.view.neighbours, Instant::ZERO);
        let spec = self.question.packet;
        match self.question.state {
            State::New => {}
            State::Established => self.establish(&mut forwarder)?,
            State::Invalid if spec.protocol != Protocol::TCP => {
                return Err(format!(
                    "--state invalid: a {} packet is never invalid by its state",
                    spec.protocol
                ));
            }
            State::Invalid => {
                let opens = spec.flags == TcpFlags::SYN || spec.flags == TcpFlags::ACK;
                if opens {
                    return Err(format!(
                        "--state invalid: {spec} can begin a connection; give other flags, e.g. R"
                    ));
                }
            }
        }
        let destination = self.link_of(self.input);
        let frame = spec.frame(NOBODY, destination, Echo::Request);
        self.send(&mut forwarder, self.input, &frame)
    }

    /// Makes the packet's connection, with a reply.
    fn establish(&self, forwarder: &mut Forwarder) -> Result<(), String> {
        let spec = self.question.packet;
        let first = PacketSpec { flags: TcpFlags::SYN, ttl: 64, ..spec };
        let frame = first.frame(NOBODY, self.link_of(self.input), Echo::Request);
        let run = self.send(forwarder, self.input, &frame)?;
        let Some((port, frame)) = run.packet() else {
            return Err(format!("--state established: the first packet of {spec} does not get through"));
        };
        let Some(left) = spec_of(self.pool, port, &frame) else {
            return Err(format!("--state established: {} has no replies", spec.protocol));
        };
        let answer = left.answer(TcpFlags::SYN.with(TcpFlags::ACK));
        // An echo reply has the identifier of the request, wherever it comes from.
        let answer = match spec.protocol {
            Protocol::ICMP | Protocol::ICMPV6 => PacketSpec {
                source: SocketAddr::new(answer.source.ip(), left.source.port()),
                destination: SocketAddr::new(answer.destination.ip(), 0),
                ..answer
            },
            _ => answer,
        };
        let frame = answer.frame(NOBODY, self.link_of(port), Echo::Reply);
        self.send(forwarder, port, &frame)?;
        if spec.protocol == Protocol::TCP {
            let ack = PacketSpec { flags: TcpFlags::ACK, ..first };
            let frame = ack.frame(NOBODY, self.link_of(self.input), Echo::Request);
            self.send(forwarder, self.input, &frame)?;
        }
        Ok(())
    }

    fn send(&self, forwarder: &mut Forwarder, port: PortId, frame: &[u8]) -> Result<Run, String> {
        let packet = Packet::copy_of(self.pool, port, frame).map_err(|_| "no free buffer".to_string())?;
        let mut burst = Burst::new();
        burst.push(packet);
        let (mut frames, mut events) = (Frames::default(), Vec::new());
        forwarder.forward_observed(&mut burst, Instant::from_secs(1), &mut frames, &mut events);
        Ok(Run { events, frames: frames.0 })
    }

    fn link_of(&self, port: PortId) -> LinkAddr {
        self.compiled.tables.ports.get(port).map_or(LinkAddr::default(), |port| port.link_address)
    }
}

/// Link source of the packets that are asked about: nobody looks at it.
const NOBODY: LinkAddr = LinkAddr([0x02, 0, 0, 0, 0, 0xfe]);

/// Teaches a forwarder the neighbours that are known.
pub fn teach(forwarder: &mut Forwarder, neighbours: &[KnownNeighbour], now: Instant) {
    for neighbour in neighbours {
        match neighbour.address {
            IpAddr::V4(address) => {
                let known = forwarder.neighbours_v4();
                known.learn(neighbour.port, address, neighbour.link, Learned::Static, now);
            }
            IpAddr::V6(address) => {
                let known = forwarder.neighbours_v6();
                known.learn(neighbour.port, address, neighbour.link, Learned::Static, now);
            }
        }
    }
}

impl Run {
    fn verdict(&self) -> Verdict {
        verdict(&self.events).unwrap_or(Verdict::Drop)
    }

    /// The first frame that left, and where; of one that left through a tunnel the packet inside.
    fn packet(&self) -> Option<(PortId, Vec<u8>)> {
        let (port, frame) = self.frames.first()?;
        let tunnel = self.events.iter().find_map(|event| match event {
            Event::Encapsulated { port, .. } => Some(*port),
            _ => None,
        });
        match tunnel {
            Some(tunnel) => {
                let (link, rest) = frame.split_at_checked(ethernet::LEN)?;
                Some((tunnel, [link, rest.get(V4_LEN..)?].concat()))
            }
            None => Some((*port, frame.clone())),
        }
    }

    /// The packet itself, when it left; from a tunnel's outer header on, if it went into one.
    fn out(&self, compiled: &Compiled, pool: &'static Pool) -> Option<Out> {
        let left = |event: &Event| matches!(event, Event::Sent { .. } | Event::Delivered { .. });
        if words::dropped(&self.events).is_some() || !self.events.iter().any(left) {
            return None;
        }
        let (port, frame) = self.frames.first()?;
        let link = ethernet::Ethernet::new_checked(frame)?;
        let mut packet = Packet::copy_of(pool, *port, frame).ok()?;
        let out_port = compiled.tables.ports.get(*port)?.name.clone();
        let (link_source, link_destination) = (link.source.to_string(), link.destination.to_string());
        fn out<A: Family>(headers: &Headers<A>, out_port: String, links: (String, String)) -> Out {
            Out {
                out_port,
                source: headers.source.to_string(),
                source_port: headers.source_port,
                destination: headers.destination.to_string(),
                destination_port: headers.destination_port,
                ttl: headers.ttl,
                link_source: links.0,
                link_destination: links.1,
            }
        }
        match parse(&mut packet).ok()? {
            Parsed::V4(headers) => Some(out(&headers, out_port, (link_source, link_destination))),
            Parsed::V6(headers) => Some(out(&headers, out_port, (link_source, link_destination))),
            Parsed::Arp | Parsed::Other(_) => None,
        }
    }
}

/// A frame as a packet to ask about, for protocols that have answers.
fn spec_of(pool: &'static Pool, port: PortId, frame: &[u8]) -> Option<PacketSpec> {
    fn spec<A: Family>(headers: &Headers<A>) -> PacketSpec {
        let (source, destination): (IpAddr, IpAddr) = (headers.source.into(), headers.destination.into());
        PacketSpec {
            protocol: headers.protocol,
            source: SocketAddr::new(source, headers.source_port),
            destination: SocketAddr::new(destination, headers.destination_port),
            flags: headers.tcp_flags,
            ttl: headers.ttl,
        }
    }
    let mut packet = Packet::copy_of(pool, port, frame).ok()?;
    match parse(&mut packet).ok()? {
        Parsed::V4(headers) => Some(spec(&headers)),
        Parsed::V6(headers) => Some(spec(&headers)),
        Parsed::Arp | Parsed::Other(_) => None,
    }
}
