//! One scenario through both twins, and what differs.
//!
//! A flow is sent several times from different client ports. What becomes of a packet is put into words in
//! which everything free has lost its number: the client's port, a masqueraded one. The *set* of what a
//! flow's packets become must then be the same on both sides, which also says that the same backends are
//! chosen from, since each backend gives words of its own. So must the sets for the answers, for the packets
//! after them, and for the tuples in both connection tables. A flow whose sets differ is sent again, more
//! often: a backend that was missed by chance comes then, a real difference stays.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use pollux_dataplane::packet::Protocol;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::worker::Stopped;

use super::choice::{CONNECTIONS, p_value};
use super::exchange::{Sending, Side, Sightings, Twins, is_udp};
use super::flows::{ClientPorts, Clients, First, FlowSpec, Flows};
use super::forwarder::keeps_ports;
use super::packet::{
    ACK, COOKIE_ECHO, Checksum, Content, Datagram, INIT, INIT_ACK, PSH, SYN, Seen, Tag, Tuple,
};
use super::report::{Deliberate, Difference, Report};
use super::scenario::Scenario;
use super::site::Site;
use super::wire::{Place, Sighting};
use crate::cli::Failure;
use crate::kernel::Error;

/// Backends up to which each one's words are compared. With more, a flow's packets are compared without
/// them; the test of the distribution then compares the set.
const FEW: usize = 8;

/// Services whose distribution is tested in a scenario at most, and tests for each: the backends and the
/// masqueraded ports of either side.
const SERVICES: usize = 2;

/// Tests in a scenario at most.
pub(super) const TESTS: usize = SERVICES * 4;

/// Connections that are in progress at a time.
const ROUND: usize = 256;

/// How often a flow is sent again, and how many more times each time.
const AGAIN: [usize; 3] = [1, 3, 8];

/// Numbers of a connection's packets.
const FIRST: u8 = 1;
const ANSWER: u8 = 2;
const SECOND: u8 = 3;

/// Why a comparison ended early.
#[derive(Debug)]
pub enum Ended {
    /// By a signal.
    Interrupted,
    /// The machine lacks something.
    Lacking(Failure),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Ended {
        Ended::Lacking(Failure::environment(format!("the lab: {error}")))
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Lacking(Failure::environment(error))
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Lacking(failure)
    }
}

impl From<Stopped> for Ended {
    fn from(Stopped: Stopped) -> Ended {
        Ended::Lacking(Failure::environment("Pollux's worker has stopped"))
    }
}

/// Compares both nodes in one scenario. `level`: the probability up to which a fair choice may be called
/// unfair, in each test. `prefix` begins the names of the namespaces, which end with the comparison.
///
/// # Errors
/// When it was interrupted, or the machine lacks something. What was made is removed.
pub fn compare(
    scenario: &Scenario,
    pool: &'static Pool,
    prefix: &str,
    level: f64,
    interrupted: &dyn Fn() -> bool,
) -> Result<Report, Ended> {
    let begun = Instant::now();
    let site = Site::of(scenario);
    let flows = Flows::of(scenario, &site);
    let twins = Twins::start(scenario, &site, pool, prefix)?;
    let mut comparison = Comparison {
        twins,
        site: &site,
        keeps_ports: keeps_ports(&scenario.rules),
        next_shot: 0,
        interrupted,
        differences: Vec::new(),
        deliberate: BTreeMap::new(),
    };
    let retried = comparison.flows(&flows.specs)?;
    let mut choices = 0;
    for choosing in flows.choosing.iter().take(SERVICES) {
        comparison.choice(choosing, level)?;
        choices += 1;
    }
    let Comparison { twins, differences, deliberate, .. } = comparison;
    Ok(Report {
        name: scenario.name.clone(),
        family: scenario.family,
        loader: twins.kernel.loader,
        flows: flows.specs.len(),
        packets: twins.packets,
        choices,
        retried,
        differences,
        deliberate,
        drops: twins.forwarder.drops(),
        took: begun.elapsed(),
    })
}

struct Comparison<'a> {
    twins: Twins,
    site: &'a Site,
    keeps_ports: bool,
    next_shot: u32,
    interrupted: &'a dyn Fn() -> bool,
    differences: Vec<Difference>,
    deliberate: BTreeMap<Deliberate, usize>,
}

/// One connection of a flow.
#[derive(Clone, Copy)]
struct Shot<'a> {
    spec: &'a FlowSpec,
    flow: usize,
    first: Datagram,
}

/// What became of a flow's packets, step by step, in words; one set for each side.
type Words = BTreeMap<Step, [BTreeSet<String>; 2]>;

/// What is compared of a connection, in the order of cause and effect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Step {
    First,
    Affinity,
    Answer,
    Second,
    Connection,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::First => "first packet",
            Step::Affinity => "affinity",
            Step::Answer => "answer",
            Step::Second => "second packet",
            Step::Connection => "connection",
        }
    }
}

impl Comparison<'_> {
    /// Sends all flows, and those whose words differ again. Returns how many were sent again and then agreed.
    fn flows(&mut self, specs: &[FlowSpec]) -> Result<usize, Ended> {
        let mut open: Vec<usize> = (0..specs.len()).collect();
        let mut words: Vec<Words> = Vec::new();
        let mut first_open = 0;
        for more in AGAIN {
            let shots: Vec<Shot<'_>> = open
                .iter()
                .flat_map(|flow| (0..repeats(&specs[*flow]) * more).map(move |_| *flow))
                .map(|flow| (flow, &specs[flow]))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|(flow, spec)| self.shot(flow, spec))
                .collect();
            words = self.observe(&shots, specs.len())?;
            open.retain(|flow| words[*flow].values().any(|sides| differ(&specs[*flow], sides)));
            if more == 1 {
                first_open = open.len();
            }
            if open.is_empty() {
                break;
            }
        }
        for flow in &open {
            // The first step that differs: those after it follow from it.
            let differing = words[*flow].iter().find(|(_, sides)| differ(&specs[*flow], sides));
            let Some((step, [kernel, pollux])) = differing else { continue };
            let difference = Difference {
                flow: specs[*flow].name.clone(),
                step: step.name(),
                kernel: kernel.iter().cloned().collect(),
                pollux: pollux.iter().cloned().collect(),
            };
            match deliberate(&specs[*flow], *step, &words[*flow][step]) {
                Some(cause) => *self.deliberate.entry(cause).or_default() += 1,
                None => self.differences.push(difference),
            }
        }
        Ok(first_open - open.len())
    }

    /// Lets connections happen and puts into words what became of them, by flow.
    fn observe(&mut self, shots: &[Shot<'_>], flows: usize) -> Result<Vec<Words>, Ended> {
        let mut words: Vec<Words> = vec![Words::new(); flows];
        let mut firsts: HashMap<(Side, u32), Sighting> = HashMap::new();
        for round in shots.chunks(ROUND) {
            self.round(round, &mut words, &mut firsts)?;
        }
        let tables = [self.twins.kernel.connections()?, self.twins.forwarder.connections()?];
        for shot in shots {
            for side in Side::BOTH {
                if self.is_left_out(shot, firsts.get(&(side, shot.first.tag.shot))) {
                    continue;
                }
                let entry = tables[side as usize].get(&shot.first.tuple());
                let text = self.entry_words(shot, entry);
                words[shot.flow].entry(Step::Connection).or_default()[side as usize].insert(text);
            }
        }
        for (flow, spec) in shots.iter().map(|shot| (shot.flow, shot.spec)).collect::<BTreeMap<_, _>>() {
            if spec.clients == Clients::One && spec.backends > 1 {
                let reached = |side| {
                    let of_flow = shots.iter().filter(move |shot| shot.flow == flow);
                    let tuples = of_flow.filter_map(|shot| firsts.get(&(side, shot.first.tag.shot)));
                    let backends = tuples
                        .filter(|first| first.seen.error.is_none())
                        .map(|first| (first.seen.tuple.destination, first.seen.tuple.destination_port));
                    backends.collect::<BTreeSet<_>>().len()
                };
                for side in Side::BOTH {
                    let text = match reached(side) {
                        0 => continue,
                        1 => "all connections of the client to one backend",
                        _ => "connections of the client to several backends",
                    };
                    words[flow].entry(Step::Affinity).or_default()[side as usize].insert(text.to_owned());
                }
            }
        }
        Ok(words)
    }

    /// First packets, answers, second packets.
    fn round(
        &mut self,
        shots: &[Shot<'_>],
        words: &mut [Words],
        firsts: &mut HashMap<(Side, u32), Sighting>,
    ) -> Result<(), Ended> {
        if (self.interrupted)() {
            return Err(Ended::Interrupted);
        }
        let udp = shots.iter().filter(|shot| is_udp(shot.first.tuple().protocol));
        let ports: HashSet<u16> = udp
            .flat_map(|shot| {
                let client = self.site.is_local(shot.first.source).then_some(shot.first.source_port);
                client.into_iter().chain([shot.first.destination_port])
            })
            .collect();
        self.twins.absorb(ports.into_iter())?;

        let sendings: Vec<Sending> = shots
            .iter()
            .flat_map(|shot| {
                Side::BOTH.map(|side| Sending { side, place: shot.spec.place, datagram: shot.first })
            })
            .collect();
        let seen = self.twins.exchange(&sendings)?;
        let mut answers = Vec::new();
        let mut seconds = Vec::new();
        for shot in shots {
            for side in Side::BOTH {
                let tag = shot.first.tag;
                let sightings = seen[side as usize].get(&tag).map_or(&[][..], Vec::as_slice);
                if let [first] = sightings {
                    firsts.insert((side, tag.shot), first.clone());
                }
                if self.is_left_out(shot, sightings.first()) {
                    continue;
                }
                self.note(words, shot, side, Step::First, &shot.first, sightings, None);
                let [first] = sightings else { continue };
                let Some((answer, second)) = conversation(shot, first) else { continue };
                answers.push((shot, Sending { side, place: first.place, datagram: answer }));
                seconds.push((shot, Sending { side, place: shot.spec.place, datagram: second }));
            }
        }
        let just = |sendings: &[(&Shot<'_>, Sending)]| {
            sendings.iter().map(|(_, sending)| *sending).collect::<Vec<_>>()
        };
        let seen = self.twins.exchange(&just(&answers))?;
        for (shot, Sending { side, datagram, .. }) in &answers {
            let sightings = seen[*side as usize].get(&datagram.tag).map_or(&[][..], Vec::as_slice);
            self.note(words, shot, *side, Step::Answer, datagram, sightings, None);
        }
        let seen = self.twins.exchange(&just(&seconds))?;
        for (shot, Sending { side, datagram, .. }) in &seconds {
            let sightings = seen[*side as usize].get(&datagram.tag).map_or(&[][..], Vec::as_slice);
            let first = firsts.get(&(*side, shot.first.tag.shot));
            self.note(words, shot, *side, Step::Second, datagram, sightings, first);
        }
        Ok(())
    }

    /// Adds what became of a packet to the words of its flow.
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, used in one place")]
    fn note(
        &self,
        words: &mut [Words],
        shot: &Shot<'_>,
        side: Side,
        step: Step,
        sent: &Datagram,
        sightings: &[Sighting],
        first: Option<&Sighting>,
    ) {
        let mut texts: Vec<String> =
            sightings.iter().map(|sighting| self.packet_words(shot, sent, sighting)).collect();
        if let (Some(first), [now]) = (first, sightings)
            && first.seen.tuple != now.seen.tuple
        {
            texts.push("not as the first packet".to_owned());
        }
        texts.sort();
        let text = if texts.is_empty() { "nothing".to_owned() } else { texts.join(" and ") };
        words[shot.flow].entry(step).or_default()[side as usize].insert(text);
    }

    /// A packet that came out, in words.
    fn packet_words(&self, shot: &Shot<'_>, sent: &Datagram, sighting: &Sighting) -> String {
        let Sighting { place, seen } = sighting;
        let port = self.place_name(*place);
        let unsound = match seen.sound || (sent.checksum == Checksum::Wrong && seen.error.is_none()) {
            true => "",
            false => ", wrong checksum or link address",
        };
        if let Some(error) = &seen.error {
            let quoted = self.tuple_words(shot, sent, &error.quoted, false);
            let mtu = if error.word == 0 { String::new() } else { format!(" ({})", error.word) };
            let Tuple { source, destination, .. } = seen.tuple;
            return format!(
                "ICMP error {}/{}{mtu} {source} > {destination} about {quoted} by {port}{unsound}",
                error.kind, error.code
            );
        }
        let changed = if seen.rest == Seen::rest_of(&sent.to_bytes()) { "" } else { ", changed" };
        let erased = self.erases(shot, &seen.tuple, sent);
        let tuple = self.tuple_words(shot, sent, &seen.tuple, erased);
        if erased {
            return format!("{tuple}{changed}{unsound}");
        }
        format!("{tuple} ttl {} by {port}{changed}{unsound}", seen.ttl)
    }

    /// Whether the backend of a translated packet is left out of the words: there are too many, or each side
    /// keeps to its own.
    fn erases(&self, shot: &Shot<'_>, tuple: &Tuple, sent: &Datagram) -> bool {
        let translated =
            (tuple.destination, tuple.destination_port) != (sent.destination, sent.destination_port);
        let is_echo = matches!(tuple.protocol, Protocol::ICMP | Protocol::ICMPV6);
        sent.tag.packet != ANSWER && translated && !is_echo && is_erased(shot.spec)
    }

    /// Whether a connection is left out, because each side may or may not meet its backend and no other
    /// would do: the client itself, which is masqueraded (MQ-03), and the node, which is not (WK-09).
    fn is_left_out(&self, shot: &Shot<'_>, first: Option<&Sighting>) -> bool {
        let Some(Sighting { seen: Seen { tuple, error: None, .. }, .. }) = first else { return false };
        let translated = (tuple.destination, tuple.destination_port)
            != (shot.first.destination, shot.first.destination_port);
        let special = tuple.destination == shot.first.source || self.site.is_local(tuple.destination);
        is_erased(shot.spec) && translated && special
    }

    fn tuple_words(&self, shot: &Shot<'_>, sent: &Datagram, tuple: &Tuple, erased: bool) -> String {
        let client = shot.first.source_port;
        let address = |address: IpAddr| match shot.spec.clients {
            Clients::Each if address == shot.first.source => "client".to_owned(),
            _ => match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            },
        };
        // A source that is the node's own is masqueraded to itself: only the port says so.
        let forward = sent.tag.packet != ANSWER;
        let masqueraded = forward && (tuple.source != sent.source || tuple.source_port != client);
        let port = |number: u16, is_free: bool| {
            if is_free && !self.keeps_ports {
                class_of(tuple.protocol, number).to_owned()
            } else if number == client {
                "client's".to_owned()
            } else if sent.tag.packet == ANSWER && number == sent.destination_port {
                "as sent".to_owned()
            } else {
                number.to_string()
            }
        };
        let from = format!("{}:{}", address(tuple.source), port(tuple.source_port, masqueraded));
        let to = match (erased, tuple.protocol) {
            (true, _) => "a backend".to_owned(),
            (_, Protocol::ICMP | Protocol::ICMPV6) => address(tuple.destination),
            _ => format!("{}:{}", address(tuple.destination), port(tuple.destination_port, false)),
        };
        format!("{from} > {to}")
    }

    /// A connection table's entry, in words: the reply tuple, seen as the packet that it answers.
    fn entry_words(&self, shot: &Shot<'_>, reply: Option<&Tuple>) -> String {
        let Some(reply) = reply else { return "no entry".to_owned() };
        let is_echo = matches!(reply.protocol, Protocol::ICMP | Protocol::ICMPV6);
        let outgoing = Tuple {
            protocol: reply.protocol,
            source: reply.destination,
            source_port: if is_echo { reply.source_port } else { reply.destination_port },
            destination: reply.source,
            destination_port: if is_echo { 0 } else { reply.source_port },
        };
        let erased = self.erases(shot, &outgoing, &shot.first);
        format!("as {}", self.tuple_words(shot, &shot.first, &outgoing, erased))
    }

    fn place_name(&self, place: Place) -> &str {
        match place {
            Place::Port(number) => &self.site.ports[number],
            Place::Host => "the host",
        }
    }

    /// The next connection of a flow.
    fn shot<'s>(&mut self, flow: usize, spec: &'s FlowSpec) -> Shot<'s> {
        let shot = self.next_shot;
        self.next_shot += 1;
        let source = match spec.clients {
            Clients::One => spec.source,
            Clients::Each => plus(spec.source, shot),
        };
        let source_port = match spec.client_ports {
            ClientPorts::Below512 => 64 + (shot % 440) as u16,
            ClientPorts::Below1024 => 600 + (shot % 420) as u16,
            ClientPorts::High => 33_000 + (shot % 31_000) as u16,
        };
        let (content, checksum) = match spec.first {
            First::Tcp(flags) => {
                let acknowledgement = if flags & ACK == 0 { 0 } else { 7000 };
                (Content::Tcp { flags, sequence: 1000, acknowledgement }, Checksum::Right)
            }
            First::TcpWrong => {
                (Content::Tcp { flags: SYN, sequence: 1000, acknowledgement: 0 }, Checksum::Wrong)
            }
            First::Udp => (Content::Udp, Checksum::Right),
            First::UdpWrong => (Content::Udp, Checksum::Wrong),
            First::UdpUnchecked => (Content::UdpUnchecked, Checksum::Right),
            First::Sctp => (
                Content::Sctp { chunk: INIT, verification: 0, initiate: 0x1000_0000 | shot },
                Checksum::Right,
            ),
            First::Echo => (Content::Echo, Checksum::Right),
        };
        let first = Datagram {
            source,
            source_port,
            destination: spec.destination,
            destination_port: spec.port,
            content,
            checksum,
            ttl: spec.ttl,
            tag: Tag { shot, packet: FIRST },
        };
        Shot { spec, flow, first }
    }

    /// Tests the distribution of a service's backends, and of masqueraded ports, on both sides.
    fn choice(&mut self, choosing: &FlowSpec, level: f64) -> Result<(), Ended> {
        let mut chosen: [BTreeMap<(IpAddr, u16), u64>; 2] = Default::default();
        let mut ports: [Vec<u64>; 2] = [vec![0; PORT_KINDS], vec![0; PORT_KINDS]];
        for _ in 0..CONNECTIONS.div_ceil(ROUND) {
            if (self.interrupted)() {
                return Err(Ended::Interrupted);
            }
            let shots: Vec<Shot<'_>> = (0..ROUND).map(|_| self.shot(0, choosing)).collect();
            let sendings: Vec<Sending> = shots
                .iter()
                .flat_map(|shot| {
                    Side::BOTH.map(|side| Sending { side, place: shot.spec.place, datagram: shot.first })
                })
                .collect();
            let seen: [Sightings; 2] = self.twins.exchange(&sendings)?;
            for shot in &shots {
                for side in Side::BOTH {
                    let sightings = seen[side as usize].get(&shot.first.tag).map_or(&[][..], Vec::as_slice);
                    let [Sighting { seen: Seen { tuple, error: None, .. }, .. }] = sightings else {
                        continue;
                    };
                    let backend = (tuple.destination, tuple.destination_port);
                    *chosen[side as usize].entry(backend).or_default() += 1;
                    if tuple.source != shot.first.source && tuple.source_port >= 1024 {
                        ports[side as usize][usize::from(tuple.source_port - 1024) / PORTS_OF_A_KIND] += 1;
                    }
                }
            }
        }
        let backends: BTreeSet<(IpAddr, u16)> = chosen.iter().flat_map(BTreeMap::keys).copied().collect();
        let counts = chosen.map(|chosen| {
            backends.iter().map(|backend| chosen.get(backend).copied().unwrap_or(0)).collect::<Vec<u64>>()
        });
        let fair = counts.each_ref().map(|counts| p_value(counts, &vec![1.0; counts.len()]));
        // A handful may be lost on a busy machine; more is no accident.
        let total = CONNECTIONS.div_ceil(ROUND) * ROUND;
        let complete = counts.iter().all(|counts| {
            let sum = counts.iter().sum::<u64>() as usize;
            sum == 0 || sum * 100 >= total * 99
        });
        let both = (counts[0].iter().sum::<u64>() == 0) == (counts[1].iter().sum::<u64>() == 0);
        if !complete || !both || fair.iter().any(|p| *p < level) {
            let text = |side: usize| {
                let counts: Vec<String> = backends
                    .iter()
                    .zip(&counts[side])
                    .map(|((address, port), count)| {
                        format!("{}: {count}", std::net::SocketAddr::new(*address, *port))
                    })
                    .collect();
                format!("{} (p = {:.1e} if all alike)", counts.join(", "), fair[side])
            };
            self.differences.push(Difference {
                flow: choosing.name.clone(),
                step: "distribution of backends",
                kernel: vec![text(0)],
                pollux: vec![text(1)],
            });
        }
        if !self.keeps_ports {
            self.masqueraded_ports(choosing, &ports, level);
        }
        Ok(())
    }

    /// Both sides draw a masqueraded port at random. The kernel draws 16 bits and takes the remainder by the
    /// 64,512 ports of the class, so the first 1,024 of them come twice as often; Pollux draws evenly.
    fn masqueraded_ports(&mut self, choosing: &FlowSpec, ports: &[Vec<u64>; 2], level: f64) {
        let even = vec![1.0; PORT_KINDS];
        let mut by_remainder = vec![PORTS_OF_A_KIND as f64; PORT_KINDS];
        by_remainder[0] += 1024.0;
        let fair = [p_value(&ports[0], &by_remainder), p_value(&ports[1], &even)];
        let counted = ports.each_ref().map(|ports| ports.iter().sum::<u64>());
        if fair.iter().any(|p| *p < level) || (counted[0] == 0) != (counted[1] == 0) {
            let text = |side: usize| {
                format!(
                    "{:?} in {PORT_KINDS} equal parts of 1024-65535 (p = {:.1e})",
                    ports[side], fair[side]
                )
            };
            self.differences.push(Difference {
                flow: choosing.name.clone(),
                step: "distribution of masqueraded ports",
                kernel: vec![text(0)],
                pollux: vec![text(1)],
            });
        }
    }
}

/// Parts into which 1024-65535 is cut.
const PORT_KINDS: usize = 16;
const PORTS_OF_A_KIND: usize = 64_512 / PORT_KINDS;

/// Whether backends are left out of a flow's words.
fn is_erased(spec: &FlowSpec) -> bool {
    spec.backends > FEW || spec.sticky
}

/// Whether two sides' words differ. One that has none had nothing to say: all its connections were left out.
fn differ(spec: &FlowSpec, [kernel, pollux]: &[BTreeSet<String>; 2]) -> bool {
    kernel != pollux && !(is_erased(spec) && (kernel.is_empty() || pollux.is_empty()))
}

/// Why Pollux does what the kernel does not, where it is meant to.
fn deliberate(spec: &FlowSpec, step: Step, [kernel, pollux]: &[BTreeSet<String>; 2]) -> Option<Deliberate> {
    let from_loopback = spec.place == Place::Host && spec.source.is_loopback();
    let less = |word: &String| word == "nothing" || kernel.contains(word);
    match (step, spec.destination) {
        (Step::First, _) if from_loopback && pollux.iter().all(less) => {
            let source = if spec.source.is_ipv4() { "127.0.0.1:" } else { "[::1]:" };
            let leaves = |word: &String| word.starts_with(source) && !word.contains("by the host");
            kernel.iter().any(leaves).then_some(Deliberate::LoopbackLeaves)
        }
        (Step::First, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) if spec.place != Place::Host => {
            pollux.iter().all(|word| word == "nothing").then_some(Deliberate::UnspecifiedV6)
        }
        (Step::Answer, IpAddr::V6(_)) if from_loopback => {
            pollux.iter().all(|word| word.contains("by the host")).then_some(Deliberate::LoopbackV6Answered)
        }
        (Step::Connection, _) if spec.place == Place::Host => {
            let none = pollux.iter().all(|word| word == "no entry");
            let untranslated = kernel.iter().all(|word| word.contains(&spec.destination.to_string()));
            (none && untranslated).then_some(Deliberate::RefusedLoop)
        }
        _ => None,
    }
}

/// How often a flow is sent at first.
fn repeats(spec: &FlowSpec) -> usize {
    match spec.backends {
        1 => 2,
        few if few <= FEW && !spec.sticky => 4 * few,
        _ => 8,
    }
}

/// The class of ports that a masqueraded one is taken from (NAT-05).
fn class_of(protocol: Protocol, port: u16) -> &'static str {
    match (protocol, port) {
        (Protocol::ICMP | Protocol::ICMPV6, _) => "(any)",
        (_, 0) => "(0)",
        (_, 1..512) => "(1-511)",
        (_, 512..600) => "(512-599)",
        (_, 600..1024) => "(600-1023)",
        _ => "(1024-65535)",
    }
}

/// The answer to a first packet by who got it, and the client's next packet; nothing where there is no
/// conversation.
fn conversation(shot: &Shot<'_>, first: &Sighting) -> Option<(Datagram, Datagram)> {
    let nobody = shot.first.source.is_unspecified();
    if first.seen.error.is_some() || shot.first.checksum == Checksum::Wrong || nobody {
        return None;
    }
    let number = shot.first.tag.shot;
    let (answer, second) = match shot.first.content {
        Content::Tcp { flags: SYN, .. } => (
            Content::Tcp { flags: SYN | ACK, sequence: 7000, acknowledgement: 1001 },
            Content::Tcp { flags: ACK | PSH, sequence: 1001, acknowledgement: 7001 },
        ),
        Content::Tcp { flags, .. } if flags & (SYN | ACK) == ACK && flags & PSH != 0 => (
            Content::Tcp { flags: ACK, sequence: 7000, acknowledgement: 1012 },
            Content::Tcp { flags: ACK | PSH, sequence: 1012, acknowledgement: 7012 },
        ),
        Content::Tcp { .. } => return None,
        content @ (Content::Udp | Content::UdpUnchecked) => (content, content),
        Content::Sctp { .. } => (
            Content::Sctp {
                chunk: INIT_ACK,
                verification: 0x1000_0000 | number,
                initiate: 0x2000_0000 | number,
            },
            Content::Sctp { chunk: COOKIE_ECHO, verification: 0x2000_0000 | number, initiate: 0 },
        ),
        Content::Echo => (Content::EchoReply, Content::Echo),
        Content::EchoReply => return None,
    };
    let Tuple { source, source_port, destination, destination_port, .. } = first.seen.tuple;
    let is_echo = matches!(answer, Content::EchoReply);
    let answer = Datagram {
        source: destination,
        source_port: if is_echo { source_port } else { destination_port },
        destination: source,
        destination_port: if is_echo { shot.first.destination_port } else { source_port },
        content: answer,
        checksum: Checksum::Right,
        ttl: 64,
        tag: Tag { shot: number, packet: ANSWER },
    };
    let second = Datagram { content: second, tag: Tag { shot: number, packet: SECOND }, ..shot.first };
    Some((answer, second))
}

/// The address `by` places after `address`, within 4096 of it.
fn plus(address: IpAddr, by: u32) -> IpAddr {
    let by = by % 4096;
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + by)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() + u128::from(by))),
    }
}
