//! The two nodes, and a sequence through both: each packet into each, what comes out, then both tables.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pollux_dataplane::packet::Protocol;
use pollux_dataplane::pool::Pool;

use super::ctnetlink::Table;
use super::describe::{Free, Ip, Reassembly, describe, whole};
use super::frame::{Ends, build};
use super::judge::{Entry, Outcome, facts, timeouts};
use super::roles::Roles;
use super::script::{ClientPort, Content, Sender, Sending, Sequence, Step, Transport, Way};
use crate::cli::Failure;
use crate::lab::pollux::Wiring;
use crate::lab::twins::forwarder::Forwarder;
use crate::lab::twins::kernel::Kernel;
use crate::lab::twins::packet::Tuple;
use crate::lab::twins::scenario::Scenario;
use crate::lab::twins::site::{Namespaces, Site};
use crate::lab::twins::wire::{Place, Wire};

/// MTU of the ports behind which `pod2` and the endpoint of `web` are.
const SMALL_MTU: usize = 1400;

/// Longest wait for the packet that marks the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nothing must come after it: other ports are served right after.
const QUIET: Duration = Duration::from_millis(2);

/// Source and destination port of packets that mark the end.
const MARK: u16 = 9;

/// Identifications of a sequence.
const IDENTIFICATIONS: u16 = 64;

/// Client ports begin here.
const FIRST_PORT: u16 = 20_000;

/// Both nodes with their settings. They end with it.
pub struct Nodes {
    wires: [Wire; 2],
    table: Table,
    forwarder: Forwarder,
    site: Site,
    roles: Roles,
    settings: BTreeMap<String, u32>,
    marks: u32,
    next_port: u16,
    /// Sequences that were run.
    runs: u16,
    _kernel: Kernel,
    namespaces: Namespaces,
}

/// A connection of the running sequence, on both sides.
struct Leg {
    transport: Transport,
    client: IpAddr,
    client_place: Place,
    client_port: u16,
    target: (IpAddr, u16),
    /// Who is to get it, should nobody have got it yet.
    endpoint: (IpAddr, u16, Place),
    sides: [LegSide; 2],
}

#[derive(Default)]
struct LegSide {
    /// As the server sees it.
    arrived: Option<(Ends, Place)>,
    /// The last packet of each way: as it came out, else as it was sent.
    last: [Vec<u8>; 2],
}

/// What came out of a node.
type Seen = Vec<(Place, Vec<u8>)>;

/// What a running sequence remembers.
struct Run {
    /// Identifications count from here, so that no fragment meets those of another sequence.
    first_identification: u16,
    legs: Vec<Leg>,
    free: [Free; 2],
    reassembly: [Reassembly; 2],
    before: [HashSet<Tuple>; 2],
    /// The longest that a packet has taken, seconds.
    slowest: f64,
}

impl Nodes {
    /// Builds both nodes. `sysctls` are set on both beside what makes timeouts tell which one runs. `prefix`
    /// begins the names of their namespaces.
    ///
    /// # Errors
    /// What the machine lacks, or refuses.
    pub fn start(
        scenario: &Scenario,
        sysctls: &BTreeMap<String, u32>,
        pool: &'static Pool,
        prefix: &str,
    ) -> Result<Nodes, Failure> {
        let site = Site::of(scenario);
        let roles = Roles::of(scenario, &site)?;
        let settings = timeouts(sysctls);
        let namespaces = site.build(&scenario.settings, prefix).map_err(Failure::environment)?;
        let Namespaces { outside, kernel: judge, pollux } = &namespaces;
        for pod in [site.idle_pods[1], roles.web()] {
            let port = &site.ports[site.port_of(pod)];
            for node in [judge, pollux] {
                node.ip(&format!("link set {port} mtu {SMALL_MTU}\n")).map_err(Failure::environment)?;
            }
        }
        let lab = |error: io::Error| Failure::environment(format!("the lab: {error}"));
        let wires = [
            Wire::of_kernel(&site, scenario.family, outside, judge).map_err(lab)?,
            Wire::of_pollux(&site, outside).map_err(lab)?,
        ];
        let kernel = Kernel::start(judge, scenario)?;
        for (name, value) in &settings {
            judge
                .set_sysctl(&format!("net/netfilter/{name}"), &value.to_string())
                .map_err(Failure::environment)?;
        }
        let forwarder = Forwarder::start(
            pollux,
            scenario,
            &site,
            &settings,
            Wiring::AfPacket,
            pool,
            &format!("{prefix}pollux"),
        )?;
        let table = Table::open(judge, scenario.family).map_err(lab)?;
        let mut nodes = Nodes {
            wires,
            table,
            forwarder,
            site,
            roles,
            settings,
            marks: 0,
            next_port: FIRST_PORT,
            runs: 0,
            _kernel: kernel,
            namespaces,
        };
        nodes.warm_up().map_err(lab)?;
        Ok(nodes)
    }

    /// Sends something to everybody, so that no packet of a sequence waits for a link address.
    fn warm_up(&mut self) -> io::Result<()> {
        let outside = self.roles.mark(Place::Port(0), &self.site).0;
        let v4 = outside.is_ipv4();
        let pods: Vec<(IpAddr, usize)> = self.site.pods.iter().map(|(pod, port)| (*pod, *port)).collect();
        for (pod, port) in pods.into_iter().filter(|(pod, _)| pod.is_ipv4() == v4) {
            for (place, source, destination) in [(0, outside, pod), (port, pod, outside)] {
                self.marks += 1;
                let mark = mark(source, destination, self.marks);
                for wire in &mut self.wires {
                    wire.send(Place::Port(place), source, destination, &mark)?;
                }
                self.wait(self.marks)?;
            }
        }
        Ok(())
    }

    /// Gives the kernel's node another setting than Pollux's has: so that a test can see that a difference is found.
    ///
    /// # Errors
    /// When there is no such setting.
    pub fn set_kernel(&self, name: &str, value: u32) -> Result<(), Failure> {
        let path = format!("net/netfilter/{name}");
        self.namespaces.kernel.set_sysctl(&path, &value.to_string()).map_err(Failure::environment)
    }

    /// Lets a sequence happen. The other one is what Pollux's node is sent instead, when it is given: so that a
    /// test can see that a difference is found.
    ///
    /// # Errors
    /// When a socket fails, or what must come through does not.
    pub fn run(&mut self, sequence: &Sequence, instead: Option<&Sequence>) -> Result<Vec<Outcome>, Failure> {
        self.run_steps(sequence, instead.unwrap_or(sequence))
            .map_err(|error| Failure::environment(format!("{}: {error}", sequence.name)))
    }

    fn run_steps(&mut self, sequence: &Sequence, instead: &Sequence) -> io::Result<Vec<Outcome>> {
        self.runs += 1;
        let mut run = Run {
            first_identification: self.runs * IDENTIFICATIONS,
            legs: self.legs(sequence),
            free: Default::default(),
            reassembly: Default::default(),
            slowest: 0.0,
            before: self.tables()?.map(|table| table.iter().map(|entry| entry.original).collect()),
        };
        let mut outcomes = Vec::new();
        for (step, other) in sequence.steps.iter().zip(&instead.steps) {
            match (step, other) {
                (Step::Send(sending), Step::Send(other)) => {
                    let number = outcomes.len() + 1;
                    outcomes.push(self.send(&mut run, number, [sending, other])?);
                }
                (Step::Wait(time), _) | (_, Step::Wait(time)) => std::thread::sleep(*time),
            }
        }
        Ok(outcomes)
    }

    fn legs(&mut self, sequence: &Sequence) -> Vec<Leg> {
        let mut legs: Vec<Leg> = Vec::new();
        for connection in &sequence.connections {
            let client_port = match (connection.port, legs.first()) {
                (ClientPort::Same, Some(first)) => first.client_port,
                _ => {
                    self.next_port += 1;
                    self.next_port
                }
            };
            let port_of = |port: u16| match connection.transport {
                Transport::Icmp => client_port,
                Transport::Other(_) => 0,
                _ => port,
            };
            let (client, _) = self.roles.who(connection.client, connection.transport);
            let (target, endpoint) = self.roles.whom(connection.server, connection.transport);
            legs.push(Leg {
                transport: connection.transport,
                client,
                client_place: Place::Port(self.site.port_of(client)),
                client_port: if matches!(connection.transport, Transport::Other(_)) {
                    0
                } else {
                    client_port
                },
                target: (target.0, port_of(target.1)),
                endpoint: (endpoint.0, port_of(endpoint.1), Place::Port(self.site.port_of(endpoint.0))),
                sides: Default::default(),
            });
        }
        legs
    }

    /// Sends a packet to both nodes and compares.
    fn send(&mut self, run: &mut Run, number: usize, sendings: [&Sending; 2]) -> io::Result<Outcome> {
        let begun = Instant::now();
        let mut places = [Place::Host; 2];
        for side in [0, 1] {
            let sending = sendings[side];
            let identification = run.first_identification + sending.shape.id.unwrap_or(number as u16);
            let leg = &mut run.legs[sending.connection];
            let (place, ends, quoted) = entering(leg, side, sending, &self.roles);
            let packet = build(sending, leg.transport, ends, &quoted, identification);
            run.free[side]
                .sent
                .extend(Ip::read(&packet).and_then(|ip| ip.identification).map(|id| id as u16));
            run.free[side].sent.insert(sending.shape.id.unwrap_or(identification));
            self.wires[side].send(place, ends.source, ends.destination, &packet)?;
            if !matches!(sending.content, Content::Error(_)) {
                leg.sides[side].last[sending.way as usize] = packet;
            }
            places[side] = place;
        }
        let seen = self.collect(places)?;
        let mut outcome = Outcome { number, line: sendings[0].line.clone(), ..Outcome::default() };
        for (side, seen) in seen.into_iter().enumerate() {
            outcome.left[side] = self.note(run, side, sendings[side], seen);
        }
        for (side, table) in self.tables()?.into_iter().enumerate() {
            let ours = table.into_iter().filter(|entry| !run.before[side].contains(&entry.original));
            let mut words: Vec<(String, f64)> =
                ours.map(|entry| (entry.words(&self.settings, &run.free[side]), entry.remaining)).collect();
            words.sort_by(|a, b| a.0.cmp(&b.0));
            (outcome.table[side], outcome.remaining[side]) = words.into_iter().unzip();
        }
        run.slowest = run.slowest.max(begun.elapsed().as_secs_f64());
        outcome.slowest = run.slowest;
        let known = facts(&outcome.left[0], &outcome.table[0]);
        outcome.unexpected =
            sendings[0].expected.iter().filter(|word| !known.contains(*word)).cloned().collect();
        Ok(outcome)
    }

    /// What came out of a side, in words; remembers what later packets follow from.
    fn note(&self, run: &mut Run, side: usize, sending: &Sending, seen: Seen) -> Vec<String> {
        let Run { legs, free, reassembly, .. } = run;
        let leg = &mut legs[sending.connection];
        let mut whole_packets = Vec::new();
        for (place, bytes) in seen {
            let Some(ip) = Ip::read(&bytes) else {
                whole_packets.push((place, bytes, String::new()));
                continue;
            };
            if !ip.is_fragment() {
                whole_packets.push((place, bytes, String::new()));
            } else if let Some((payload, cuts)) = reassembly[side].take(&ip) {
                whole_packets.push((place, whole(&bytes, &payload), format!(", in fragments {cuts}")));
            }
        }
        for (place, bytes, _) in &whole_packets {
            let Some(ends) = Ip::read(bytes).and_then(|ip| ip.ends()) else { continue };
            // What is delivered to the node itself nobody answers.
            if matches!(sending.content, Content::Error(_)) || *place == Place::Host {
                continue;
            }
            leg.sides[side].last[sending.way as usize].clone_from(bytes);
            if sending.way == Way::There {
                leg.sides[side].arrived = Some((ends, *place));
                if ends.source_port != leg.client_port {
                    let class = if ends.source_port >= 1024 { "1024-65535" } else { "below 1024" };
                    free[side].ports.insert(ends.source_port, format!("(chosen, {class})"));
                }
            }
        }
        let mut left: Vec<String> = whole_packets
            .iter()
            .map(|(place, bytes, cuts)| {
                let port = match place {
                    Place::Port(number) => &self.site.ports[*number],
                    Place::Host => "host",
                };
                format!("{port}: {}{cuts}", describe(bytes, &free[side]))
            })
            .collect();
        left.sort();
        left
    }

    /// Waits until what was sent is through, and returns what came out.
    fn collect(&mut self, places: [Place; 2]) -> io::Result<[Seen; 2]> {
        self.marks += 1;
        let number = self.marks;
        for (side, place) in places.into_iter().enumerate() {
            let (source, destination) = self.roles.mark(place, &self.site);
            let mark = mark(source, destination, number);
            self.wires[side].send(place, source, destination, &mark)?;
        }
        self.wait(number)
    }

    /// Waits until a mark has come out of both nodes.
    fn wait(&mut self, number: u32) -> io::Result<[Seen; 2]> {
        let mut seen = [Seen::new(), Seen::new()];
        let mut marked = [false; 2];
        let mut settled = false;
        let begun = Instant::now();
        let mut last = begun;
        loop {
            for (side, wire) in self.wires.iter_mut().enumerate() {
                wire.receive_packets(&mut |place, packet, _| match mark_number(packet) {
                    Some(found) => marked[side] |= found == number,
                    None if is_background(packet) => {}
                    None => seen[side].push((place, packet.to_vec())),
                })?;
                if !marked[side] {
                    last = Instant::now();
                }
            }
            let all = marked == [true; 2];
            if all && !settled {
                // Between two bursts it has sent what it has to send.
                self.forwarder.settle().map_err(|_| io::Error::other("Pollux's worker has stopped"))?;
                settled = true;
                last = Instant::now();
                continue;
            }
            if all && last.elapsed() >= QUIET {
                return Ok(seen);
            }
            if begun.elapsed() > PATIENCE {
                let names = ["the kernel's", "Pollux's"];
                let silent: Vec<_> =
                    names.iter().zip(marked).filter(|(_, marked)| !marked).map(|(name, _)| *name).collect();
                return Err(io::Error::other(format!(
                    "nothing comes out of {} node any more",
                    silent.join(" and ")
                )));
            }
            let mut descriptors: Vec<PollFd<'_>> = self
                .wires
                .iter()
                .flat_map(Wire::descriptors)
                .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
                .collect();
            let wait = if all { QUIET } else { Duration::from_millis(50) };
            match poll(&mut descriptors, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Both tables, without the packets that mark the end.
    fn tables(&mut self) -> io::Result<[Vec<Entry>; 2]> {
        let pollux = self.forwarder.entries().map_err(|_| io::Error::other("Pollux's worker has stopped"))?;
        let is_mark =
            |entry: &Entry| entry.original.source_port == MARK && entry.original.destination_port == MARK;
        Ok([self.table.list()?, pollux].map(|mut table| {
            table.retain(|entry| !is_mark(entry));
            table
        }))
    }
}

/// Where a packet enters a side, from whom to whom, and what it quotes if it is an error.
fn entering(leg: &Leg, side: usize, sending: &Sending, roles: &Roles) -> (Place, Ends, Vec<u8>) {
    let LegSide { arrived, last } = &leg.sides[side];
    let (mut ends, place, quoted) = match sending.way {
        Way::There => {
            let ends = Ends {
                source: leg.client,
                source_port: leg.client_port,
                destination: leg.target.0,
                destination_port: leg.target.1,
            };
            (ends, leg.client_place, &last[Way::Back as usize])
        }
        Way::Back => {
            let (ends, place) = arrived.unwrap_or_else(|| {
                let (destination, destination_port, place) = leg.endpoint;
                let ends =
                    Ends { source: leg.client, source_port: leg.client_port, destination, destination_port };
                (ends, place)
            });
            (ends.reversed(), place, &last[Way::There as usize])
        }
    };
    if let Content::Error(error) = &sending.content
        && error.sender == Sender::Router
    {
        ends.source = roles.router;
    }
    (place, ends, quoted.clone())
}

fn mark(source: IpAddr, destination: IpAddr, number: u32) -> Vec<u8> {
    let ports = [MARK.to_be_bytes(), MARK.to_be_bytes()].concat();
    let mut packet = Vec::with_capacity(64);
    let header = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = !crate::lab::twins::packet::sum(0, &packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            20
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0, 0, 12, 17, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            40
        }
        _ => unreachable!("both are of the family"),
    };
    packet.extend(ports);
    packet.extend([0, 12, 0, 0]);
    packet.extend(number.to_be_bytes());
    let ends = Ends { source, source_port: MARK, destination, destination_port: MARK };
    let start = super::frame::pseudo(ends, 17, 12);
    let checksum = !crate::lab::twins::packet::sum(start, &packet[header..]);
    packet[header + 6..header + 8].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn mark_number(packet: &[u8]) -> Option<u32> {
    let ip = Ip::read(packet)?;
    let is_mark = ip.protocol == Protocol::UDP.0 && ip.payload.len() == 12 && ip.payload[..4] == [0, 9, 0, 9];
    is_mark.then(|| u32::from_be_bytes(ip.payload[8..12].try_into().expect("four")))
}

/// What the nodes' kernels say on their own: to groups, and to neighbours.
fn is_background(packet: &[u8]) -> bool {
    let Some(ip) = Ip::read(packet) else { return false };
    let neighbourly = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    };
    let discovery = ip.protocol == 58 && ip.payload.first().is_some_and(|kind| (133..=136).contains(kind));
    neighbourly(ip.destination) || discovery
}
