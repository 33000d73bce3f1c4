//! The demo: the seed's cluster in network namespaces, Pollux as slave1's forwarder, real connections.
//!
//! For each walk a real socket opens a real connection. What the forwarder decided is heard at its worker
//! (the observer of the code that forwards), what it did is captured at the other ends of the node's cables,
//! and the two are compared field by field: addresses and ports, TTL, link addresses, the way out. The frames
//! are read by a parser that is not the forwarder's.

mod frame;
mod report;
mod walks;

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant, SystemTime};

use pollux_dataplane::forward::{Event, HOST_SIDE};
use pollux_dataplane::packet::Protocol;
use pollux_dataplane::service::Origin;
use pollux_dataplane::worker::Stopped;
use serde::Serializer;

use crate::kernel::Error;
use crate::kernel::sandbox::{Privilege, Sandbox};
use crate::lab::capture::{Capture, Direction};
use crate::lab::pollux::{Passage, Pollux, Tuple, Wiring, received};
use crate::lab::seed::{self, MYAPP_PORT, POD_51_7, POD_51_8, SLAVE1};
use crate::lab::traffic::{Echo, Service, TcpClient, TcpServer, ping};
use crate::lab::{Forwarding, Network};
pub use frame::{Frame, Head};
pub use report::{Counters, Leg, Report, WalkReport};
use walks::{Call, WALKS, Walk};

/// Longest wait for an answer that must come.
const SOON: Duration = Duration::from_secs(3);

/// How long a ping that nobody answers waits.
const UNANSWERED: Duration = Duration::from_millis(200);

/// Longest wait for the last frames of a connection.
const SETTLE: Duration = Duration::from_millis(500);

/// The host port's interface.
const HOST_PORT: &str = "pollux0";

/// The interfaces of slave1 that walks pass, beside the host port. They are looked at from the other end of
/// their cables: what a forwarder sees before the kernel does, no socket of slave1's sees.
const PORTS: [&str; 3] = ["ens3", POD_51_7.port, POD_51_8.port];

/// Whether everything was seen on the wire as it was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It was.
    AsDecided,
    /// It was not; the report says what differs.
    Different,
}

/// Why the demo ended early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Somebody asked it to.
    Interrupted,
    /// The machine lacks something: one line with what to do.
    Lacking(String),
}

/// Runs the demo on a wiring; `tell` is given each piece of the report as soon as it is there. Everything that was made
/// is gone when this returns, and at the latest when the process ends.
///
/// # Errors
/// When `interrupted` says so (looked at between walks, each takes a moment), or when the machine lacks
/// something.
pub fn run(
    wiring: Wiring,
    interrupted: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(&Report) -> io::Result<()>,
) -> Result<Verdict, Ended> {
    let begun = Instant::now();
    // What fails after a Ctrl-C fails because of it: `ip` gets it as well.
    let ended = |error: String| if interrupted() { Ended::Interrupted } else { Ended::Lacking(error) };
    let sandbox = Sandbox::enter().map_err(|error| ended(error.to_string()))?;
    // The kernel would forward, as on a real node, if the guard did not keep it from that (PT-05).
    let network =
        Network::build(&seed::plan(Forwarding::Kernel), "").map_err(|error| ended(error.to_string()))?;
    let pollux =
        Pollux::start(network.node(SLAVE1), "demo", wiring).map_err(|error| ended(error.to_string()))?;
    let mut stage = Stage::new(&network, pollux).map_err(|error| ended(error.to_string()))?;
    let begin = Report::Begun {
        user: match sandbox.privilege() {
            Privilege::Root => "root",
            Privilege::UserNamespace | Privilege::Ordinary => "an ordinary user, in a user namespace",
        },
        guard: match (wiring, stage.pollux.means()) {
            (_, Some(means)) => means.to_string(),
            (Wiring::AfXdp, None) => "steering program (XDP)".into(),
            (Wiring::AfPacket, None) => "nothing".into(),
        },
        built_in: begun.elapsed(),
    };
    let tell_all = |tell: &mut dyn FnMut(&Report) -> io::Result<()>, report: &Report| {
        tell(report).map_err(|error| Ended::Lacking(format!("cannot print: {error}")))
    };
    tell_all(tell, &begin)?;
    let mut verdict = Verdict::AsDecided;
    for walk in &WALKS {
        if interrupted() {
            return Err(Ended::Interrupted);
        }
        let report = stage.walk(walk).map_err(|error| ended(error.to_string()))?;
        if !report.is_as_decided() {
            verdict = Verdict::Different;
        }
        tell_all(tell, &Report::Walk(report))?;
    }
    if interrupted() {
        return Err(Ended::Interrupted);
    }
    let counters = stage.counters(begun, verdict).map_err(|_| ended(STOPPED.into()))?;
    if counters.received != counters.accounted {
        verdict = Verdict::Different;
    }
    tell_all(tell, &Report::Counters(counters))?;
    Ok(verdict)
}

const STOPPED: &str = "the forwarder has stopped";

/// The cluster with its servers, its forwarder and an ear at each interface.
struct Stage<'a> {
    network: &'a Network,
    pollux: Pollux,
    servers: Vec<(Ipv4Addr, TcpServer)>,
    captures: Vec<(&'static str, Capture)>,
}

impl<'a> Stage<'a> {
    fn new(network: &'a Network, pollux: Pollux) -> io::Result<Stage<'a>> {
        let mut servers = Vec::new();
        for pod in seed::BACKENDS {
            let at = SocketAddr::new(IpAddr::V4(pod.address), MYAPP_PORT);
            servers.push((pod.address, TcpServer::start(network.node(pod.name), at, Service::Echo)?));
        }
        let mut captures = Vec::new();
        for port in PORTS {
            let (node, interface) = seed::far_end(port);
            captures.push((port, Capture::start(network.node(node), &interface)?));
        }
        captures.push((HOST_PORT, Capture::start(network.node(SLAVE1), HOST_PORT)?));
        Ok(Stage { network, pollux, servers, captures })
    }

    /// Makes the call of a walk and says what was decided and what was seen.
    fn walk(&mut self, walk: &Walk) -> io::Result<WalkReport> {
        self.frames(Duration::ZERO, |_| true)?; // what was there before
        let (chosen, pod) = match walk.call {
            Call::Tcp(pod) => (self.pollux.choose(pod), Some(pod)),
            Call::Ping(_) => (Ok(()), None),
        };
        chosen.map_err(stopped)?;
        let ear = self.pollux.listen().map_err(stopped)?;
        let outcome = self.call(walk);
        let tuple = Tuple {
            protocol: if pod.is_some() { Protocol::TCP } else { Protocol::ICMP },
            source: walk.from,
            destination: (walk.to, walk.destination_port()),
        };
        // A connection is over when the last FIN is acknowledged. Each frame passes twice, so both FINs do,
        // and what came in last has left.
        let frames = self.frames(SETTLE, |frames| {
            let count = |way: Way| frames.iter().filter(|(_, seen, _)| *seen == way).count();
            let fins = frames.iter().filter(|(.., frame)| frame.what.contains('F')).count();
            let last_is_ack = frames.last().is_some_and(|(.., frame)| frame.what == "[.]");
            count(Way::In) == count(Way::Out) && (pod.is_none() || fins >= 4 && last_is_ack)
        })?;
        let passages = self.pollux.hush(&ear).map_err(stopped)?;
        let request = self.leg("request", tuple, &passages, &frames, None);
        let mut problems: Vec<String> = outcome.err().into_iter().collect();
        let mut legs = Vec::new();
        match request {
            None => problems.push("the forwarder has seen no such packet".into()),
            Some(request) => {
                if let Some(pod) = pod {
                    let (source, destination) = (request.decided.source, request.decided.destination);
                    let back = Tuple {
                        protocol: Protocol::TCP,
                        source: (*destination.ip(), destination.port()),
                        destination: (*source.ip(), source.port()),
                    };
                    match self.leg("reply", back, &passages, &frames, Some(tuple)) {
                        Some(reply) => legs.push(reply),
                        None => problems.push("the forwarder has seen no reply".into()),
                    }
                    if *destination.ip() != pod.address {
                        problems.push(format!("the backend should be {}", pod.address));
                    }
                    if !self.accepted(pod.address).contains(&SocketAddr::V4(source)) {
                        problems.push(format!("the server has accepted no connection from {source}"));
                    }
                }
                legs.insert(0, request);
            }
        }
        Ok(WalkReport { name: walk.name, title: walk.title, shows: walk.shows, legs, problems })
    }

    /// The traffic itself. An error says what did not work.
    fn call(&self, walk: &Walk) -> Result<(), String> {
        let node = self.network.node(walk.node);
        let address = |(address, port)| SocketAddr::new(IpAddr::V4(address), port);
        let failed = |error: io::Error| format!("the connection failed: {error}");
        match walk.call {
            Call::Tcp(_) => {
                let to = address((walk.to, walk.destination_port()));
                let mut client =
                    TcpClient::connect(node, Some(address(walk.from)), to, SOON).map_err(failed)?;
                client.echo(b"which backend is this?", SOON).map_err(failed)?;
                client.close(SOON).map_err(failed)
            }
            Call::Ping(sequence) => {
                let echo = Echo { to: walk.to, identifier: walk.from.1, sequence, data_len: 56 };
                match ping(node, echo, UNANSWERED) {
                    Ok(None) => Ok(()),
                    Ok(Some(reply)) => Err(format!("{} has answered the ping", reply.from)),
                    Err(error) => Err(format!("the ping failed: {error}")),
                }
            }
        }
    }

    /// Everything that was seen at the node's interfaces, in the order of time, until it is `complete` or
    /// `within` has passed.
    fn frames(
        &mut self,
        within: Duration,
        complete: impl Fn(&[(SystemTime, Way, Frame)]) -> bool,
    ) -> io::Result<Vec<(Way, Frame)>> {
        const TURN: Duration = Duration::from_millis(2);
        let deadline = Instant::now() + within;
        let mut all = Vec::new();
        loop {
            for (port, capture) in &mut self.captures {
                for seen in capture.frames_until(|_| false, Duration::ZERO)? {
                    if let Some(frame) = Frame::read(port, &seen.bytes) {
                        all.push((seen.at, Way::of(seen.direction), frame));
                    }
                }
            }
            all.sort_by_key(|(at, ..)| *at);
            if complete(&all) || Instant::now() >= deadline {
                return Ok(all.into_iter().map(|(_, way, frame)| (way, frame)).collect());
            }
            std::thread::sleep(TURN);
        }
    }

    /// One direction of a connection: what was decided about the first packet, what was seen of all.
    /// `original`: for replies, the tuple of the connection's first packet.
    fn leg(
        &self,
        name: &'static str,
        tuple: Tuple,
        passages: &[Passage],
        frames: &[(Way, Frame)],
        original: Option<Tuple>,
    ) -> Option<Leg> {
        let passage = passages.iter().find(|passage| received(passage) == Some(tuple))?;
        let incoming = self.port_of(passage.first()?);
        let is = |way: Way, port: &str, source: SocketAddrV4, destination: SocketAddrV4| {
            let port = port.to_owned();
            move |(seen, frame): &&(Way, Frame)| {
                let head = &frame.head;
                (*seen, head.port == port, head.source, head.destination) == (way, true, source, destination)
            }
        };
        let address = |(address, port)| SocketAddrV4::new(address, port);
        let (source, destination) = (address(tuple.source), address(tuple.destination));
        let entered: Vec<&Frame> = frames
            .iter()
            .filter(is(Way::In, &incoming, source, destination))
            .map(|(_, frame)| frame)
            .collect();
        let ttl = entered.first().map_or(0, |frame| frame.head.ttl);
        let decided = self.decided(passage, tuple, original, ttl);
        let left: Vec<&Frame> = frames
            .iter()
            .filter(is(Way::Out, &decided.port, decided.source, decided.destination))
            .map(|(_, frame)| frame)
            .collect();
        // If there is none as decided, whatever left next is what to show.
        let seen = left.first().copied().or_else(|| {
            frames
                .iter()
                .find(|(way, frame)| *way == Way::Out && frame.protocol == tuple.protocol)
                .map(|(_, frame)| frame)
        });
        Some(Leg {
            name,
            steps: self.pollux.steps(passage),
            entered: entered.first().map(|frame| (*frame).clone()),
            seen: seen.cloned(),
            frames_in: entered.len(),
            frames_out: left.len(),
            frames_alike: left.iter().filter(|frame| frame.head == decided).count(),
            decided,
        })
    }

    /// The head that a packet must leave with, from what was decided about it.
    fn decided(&self, passage: &[Event], tuple: Tuple, original: Option<Tuple>, ttl: u8) -> Head {
        let address = |(address, port)| SocketAddrV4::new(address, port);
        let mut head = Head {
            port: String::new(),
            link_source: Default::default(),
            link_destination: Default::default(),
            source: address(tuple.source),
            destination: address(tuple.destination),
            ttl: ttl.saturating_sub(1),
        };
        if let Some(original) = original {
            // A reply undoes what was decided for the connection's first packet.
            head.source = address(original.destination);
            head.destination = address(original.source);
        }
        for event in passage {
            match event {
                Event::Received { origin: Origin::Host, .. } => head.ttl = ttl,
                Event::Chose { address: IpAddr::V4(address), port, .. } => {
                    head.destination = SocketAddrV4::new(*address, *port);
                }
                Event::Masqueraded { source: IpAddr::V4(source), source_port, .. } => {
                    head.source = SocketAddrV4::new(*source, *source_port);
                }
                Event::Sent { port, link_source, link_destination } => {
                    head.port = self.pollux.port_name(*port).to_owned();
                    (head.link_source, head.link_destination) = (*link_source, *link_destination);
                }
                Event::Delivered { port } => {
                    head.port = self.pollux.port_name(*port).to_owned();
                    (head.link_source, head.link_destination) = (HOST_SIDE, self.pollux.link_of(*port));
                    head.ttl = ttl;
                }
                _ => {}
            }
        }
        head
    }

    fn port_of(&self, event: &Event) -> String {
        match event {
            Event::Received { port, .. } => self.pollux.port_name(*port).to_owned(),
            _ => String::new(),
        }
    }

    fn accepted(&self, pod: Ipv4Addr) -> Vec<SocketAddr> {
        self.servers.iter().filter(|(at, _)| *at == pod).flat_map(|(_, server)| server.peers()).collect()
    }

    fn counters(&self, begun: Instant, verdict: Verdict) -> Result<Counters, Stopped> {
        let stats = self.pollux.stats()?;
        let (received, accounted) = stats.balance();
        Ok(Counters {
            ports: self.pollux.port_stats()?.into_iter().map(report::PortCounters::from).collect(),
            forwarded: stats.transmitted,
            left_to_the_host: stats.delivered,
            originated: stats.originated,
            dropped: stats.dropped.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
            received,
            accounted,
            as_decided: verdict == Verdict::AsDecided,
            took_ms: begun.elapsed().as_millis() as u64,
        })
    }
}

/// Which way a frame went, seen from the forwarder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// To it.
    In,
    /// From it.
    Out,
}

impl Way {
    /// Whoever is at the other end sends out what the forwarder receives: the neighbours of its interfaces,
    /// and the kernel of slave1 at the host port.
    fn of(direction: Direction) -> Way {
        match direction {
            Direction::Out => Way::In,
            Direction::In => Way::Out,
        }
    }
}

fn stopped(_: Stopped) -> io::Error {
    io::Error::other(Error::Invalid(STOPPED.into()))
}

/// Serialises by the text for people.
fn text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
