//! What the compiled tables do with packets: the walk of services.md section 4 through the data plane's own
//! [`Services`], for one packet or for all of a piece.
//!
//! The decisions are the tables' ([`Services::destination`], [`Services::filter`]); what is here is the order of
//! the stages (WK-06 to WK-09) and all possible outcomes instead of one choice.

use hashbrown::HashMap;
use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};
use pollux_dataplane::service::{
    Backend, FilterStage, FilterVerdict, FrontendAddress, FrontendId, Mark, MarkReason, NodePortAddresses,
    Question, Services, Walk,
};
use pollux_dataplane::tables::Match;

use super::index::Constants;
use super::outcome::{Branch, Distribution, Outcome, Passed, SourceNat, Step};
use super::piece::{Ask, Entry, Field, Stage};
use crate::iptables::{RejectWith, States};
use crate::translate::{LocalhostNodePorts, ServicePortRules, ServicePorts, Translation};

/// Who sends a packet, and what is known of its connection: for one packet, or for all packets of a piece.
pub(super) trait Sender<A: Family> {
    /// Where it enters.
    fn entry(&self) -> Entry;
    /// Of its connection.
    fn stage(&self) -> Stage;
    /// Whether the source is in a prefix.
    fn within(&self, prefix: &Prefix<A>) -> bool;
    /// Whether the source is an address of the node.
    fn is_local(&self) -> bool;
    /// Whether the detector takes the input interface for a pod's.
    fn by_pod_port(&self) -> bool;
    /// Whether no reply was seen.
    fn is_new(&self) -> bool;
    /// Whether the destination of the connection was translated before this packet.
    fn was_translated(&self) -> bool;
    /// Whether the client has a fresh entry for an endpoint of a service port (AF-02).
    fn is_fresh(&self, list: &str, seconds: u32) -> bool;
    /// Whether it leaves by the interface called so.
    fn leaves_by(&self, interface: &str) -> bool;
}

/// The compiled tables of one family, ready to be walked.
pub(super) struct Tables<'a, A: Family> {
    services: &'a Services<A>,
    ports: &'a ServicePorts<A>,
    guard: LocalhostNodePorts,
    mark: u32,
    /// Masquerade rules beside that of the mark.
    masquerade: Vec<MasqueradeRule<A>>,
    /// The addressed frontends, by address; and the node ports.
    addressed: HashMap<A::Addr, Vec<(Protocol, u16)>>,
    node_ports: Vec<(Protocol, u16)>,
}

/// A masquerade rule, by the name of the interface.
#[derive(Clone, Debug)]
pub(super) struct MasqueradeRule<A: Family> {
    /// Source addresses.
    pub source: Option<Match<Prefix<A>>>,
    /// Destination addresses.
    pub destination: Option<Match<Prefix<A>>>,
    /// The interface it leaves by.
    pub out: Option<Match<String>>,
}

/// Where a packet goes, and who sends it: what the Service tables ask.
struct Packet<'a, A: Family, S> {
    sender: &'a S,
    destination: A::Addr,
    port: u16,
    protocol: Protocol,
    local: bool,
}

impl<A: Family, S: Sender<A>> Question<A> for Packet<'_, A, S> {
    fn destination(&self) -> A::Addr {
        self.destination
    }

    fn destination_port(&self) -> u16 {
        self.port
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn destination_is_local(&self) -> bool {
        self.local
    }

    fn source_within(&self, prefix: &Prefix<A>) -> bool {
        self.sender.within(prefix)
    }

    fn source_is_local(&self) -> bool {
        self.sender.is_local()
    }

    fn from_pod_port(&self) -> bool {
        self.sender.by_pod_port()
    }
}

impl<'a, A: Family> Tables<'a, A> {
    /// Prepares what was translated.
    pub(super) fn new(translation: &'a Translation<A>, masquerade: Vec<MasqueradeRule<A>>) -> Self {
        let mut addressed: HashMap<A::Addr, Vec<(Protocol, u16)>> = HashMap::new();
        let mut node_ports = Vec::new();
        for (_, frontend) in translation.services.frontends() {
            let key = (frontend.key.protocol, frontend.key.port);
            match frontend.key.address {
                FrontendAddress::Address(address) => addressed.entry(address).or_default().push(key),
                FrontendAddress::NodePort => node_ports.push(key),
            }
        }
        Tables {
            services: &translation.services,
            ports: &translation.ports,
            guard: translation.localhost_node_ports,
            mark: translation.mark,
            masquerade,
            addressed,
            node_ports,
        }
    }

    /// The destinations that the tables tell apart, as numbers.
    pub(super) fn destinations(&self, singles: &mut Vec<u128>, spans: &mut Vec<(u128, u128)>) {
        singles.extend(self.addressed.keys().map(|address| address.bits()));
        if let NodePortAddresses::Only(addresses) = &self.services.policy().node_ports {
            singles.extend(addresses.iter().map(|address| address.bits()));
        }
        let prefixes = self.masquerade.iter().filter_map(|rule| match rule.destination.as_ref()? {
            Match::Is(prefix) | Match::Not(prefix) => Some(super::piece::span(prefix)),
        });
        spans.extend(prefixes);
    }

    /// The constants that a packet with this destination can meet.
    pub(super) fn constants(&self, destination: A::Addr, local: bool, found: &mut Constants) {
        for &(protocol, port) in self.addressed.get(&destination).into_iter().flatten() {
            found.port(protocol, port, port);
        }
        if local {
            for &(protocol, port) in &self.node_ports {
                found.port(protocol, port, port);
            }
        }
    }

    /// The interfaces that they tell apart.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = String> {
        self.masquerade.iter().filter_map(|rule| match rule.out.as_ref()? {
            Match::Is(name) | Match::Not(name) => Some(name.clone()),
        })
    }

    /// The bit of the mark (MQ-08).
    pub(super) fn mark(&self) -> u32 {
        self.mark
    }

    /// What becomes of a packet to `destination`. `list_of`: the name of the list that stands for a service
    /// port's endpoint in `sender`'s answers; `explain`: with what it meets.
    pub(super) fn walk<S: Sender<A>>(
        &self,
        sender: &S,
        destination: (A::Addr, u16, Protocol),
        is_local: impl Fn(A::Addr) -> bool,
        list_of: impl Fn(&str, (A::Addr, u16)) -> String,
        explain: bool,
    ) -> Distribution<A> {
        let (address, port, protocol) = destination;
        let packet = Packet { sender, destination: address, port, protocol, local: is_local(address) };
        let mut ends = Distribution::default();
        match sender.stage() {
            Stage::First => {}
            Stage::Later => {
                // WK-08: as long as there is no reply the filter is asked; never again afterwards.
                let refused = match sender.is_new() {
                    true => self.filter(&packet, Mark::Clear, sender.was_translated()),
                    false => None,
                };
                let (outcome, steps) = match refused {
                    Some(refused) => (refused.outcome(), vec![refused.step()]),
                    None => (passes(), Vec::new()),
                };
                ends.add(whole(outcome, steps));
                return ends;
            }
            Stage::Invalid => {
                let (outcome, steps) = self.invalid(&packet);
                ends.add(whole(outcome, steps));
                return ends;
            }
        }
        let mut words = Words { tables: self, steps: Vec::new(), explain };
        let chosen = self.services.destination(&packet, &mut words);
        let mut steps = words.steps;
        let Some((frontend, set)) = chosen.choice else {
            let outcome = self.pass(&packet, None, chosen.mark, Vec::new(), &mut steps);
            ends.add(whole(outcome, steps));
            return ends;
        };
        let backends = self.services.backends(set);
        let affinity = self.services.frontend(frontend).affinity;
        let list = |backend: &Backend<A>| {
            let preferred = self.port_of(frontend).id.endpoint_chain(*backend);
            list_of(&preferred, (backend.address, backend.port))
        };
        let fixed = self.services.sticky(frontend, set, |backend, affinity| {
            sender.is_fresh(&list(backend), affinity.timeout.as_secs() as u32)
        });
        let places = match fixed {
            Some(place) => place as usize..place as usize + 1,
            None => 0..backends.len(),
        };
        let probability = 1.0 / places.len() as f64;
        ends.forks = places.len() as u32;
        for place in places {
            let backend = &backends[place];
            let mark = match sender.within(&Prefix::host(backend.address)) {
                true => Mark::Set, // MQ-03
                false => chosen.mark,
            };
            let translated = Packet {
                destination: backend.address,
                port: backend.port,
                local: is_local(backend.address),
                ..packet
            };
            let noted = affinity.map(|_| list(backend)).into_iter().collect();
            let changed = (backend.address, backend.port) != (address, port);
            let to = changed.then_some((backend.address, backend.port));
            let mut steps = steps.clone();
            if explain {
                let why = if fixed.is_some() { "has the client's entry" } else { "is chosen" };
                let hairpin = if mark != chosen.mark { ", hairpin (MQ-03)" } else { "" };
                let text = format!("backend {}:{} {why}{hairpin}", backend.address, backend.port);
                steps.push(step(text, "backend"));
            }
            let outcome = self.pass(&translated, to, mark, noted, &mut steps);
            ends.add(Branch { outcome, probability, steps });
        }
        ends
    }

    fn port_of(&self, frontend: FrontendId) -> &ServicePortRules<A> {
        &self.ports[self.services.frontend(frontend).service_port as usize]
    }

    /// Behind the nat stage: filter, and source.
    fn pass<S: Sender<A>>(
        &self,
        packet: &Packet<'_, A, S>,
        to: Option<(A::Addr, u16)>,
        mark: Mark,
        noted: Vec<String>,
        steps: &mut Vec<Step>,
    ) -> Outcome<A> {
        if let Some(refused) = self.filter(packet, mark, to.is_some()) {
            steps.push(refused.step());
            return refused.outcome();
        }
        // WK-09: what a port sends to the node passes no such stage, and keeps its mark.
        let to_node = packet.sender.entry() == Entry::Port && packet.local;
        let source = if to_node || mark == Mark::Clear && !self.masquerades(packet) {
            SourceNat::Kept
        } else {
            SourceNat::Masqueraded
        };
        let mark = if to_node && mark == Mark::Set { self.mark } else { 0 };
        Outcome::Passes(Passed { destination: to, source, mark, noted })
    }

    fn masquerades<S: Sender<A>>(&self, packet: &Packet<'_, A, S>) -> bool {
        self.masquerade.iter().any(|rule| {
            let source = rule.source.as_ref().is_none_or(|condition| match condition {
                Match::Is(prefix) => packet.sender.within(prefix),
                Match::Not(prefix) => !packet.sender.within(prefix),
            });
            let destination = rule.destination.as_ref().is_none_or(|condition| match condition {
                Match::Is(prefix) => prefix.contains(packet.destination),
                Match::Not(prefix) => !prefix.contains(packet.destination),
            });
            let leaves_by = |name: &str| match packet.local {
                true => name == "lo",
                false => packet.sender.leaves_by(name),
            };
            source
                && destination
                && rule.out.as_ref().is_none_or(|condition| match condition {
                    Match::Is(name) => leaves_by(name),
                    Match::Not(name) => !leaves_by(name),
                })
        })
    }

    /// The filter stages on the packet's way (WK-07); nothing lets it go on.
    fn filter<S: Sender<A>>(
        &self,
        packet: &Packet<'_, A, S>,
        mark: Mark,
        translated: bool,
    ) -> Option<Refused> {
        let host = packet.sender.entry() == Entry::Host;
        if (packet.local || host) && !translated && self.guards(packet) {
            return Some(Refused::Guard);
        }
        let stages: &[FilterStage] = match (host, packet.local) {
            (true, true) => &[FilterStage::Output, FilterStage::Input],
            (true, false) => &[FilterStage::Output],
            (false, true) => &[FilterStage::Input],
            (false, false) => &[FilterStage::Forward],
        };
        stages.iter().find_map(|stage| {
            let verdict = match (stage, mark) {
                // Accepted behind the firewall, before the other Service rules.
                (FilterStage::Forward, Mark::Set) => self.services.firewall(packet),
                _ => self.services.filter(*stage, packet),
            };
            verdict.map(Refused::Filter)
        })
    }

    /// NO-07, of a packet that was not translated.
    fn guards<S: Sender<A>>(&self, packet: &Packet<'_, A, S>) -> bool {
        self.guard == LocalhostNodePorts::Enabled
            && packet.destination.is_loopback()
            && !packet.sender.within(&loopback())
    }

    /// CT-08: forwarded nowhere; the node itself gets it and may send it.
    fn invalid<S: Sender<A>>(&self, packet: &Packet<'_, A, S>) -> (Outcome<A>, Vec<Step>) {
        let host = packet.sender.entry() == Entry::Host;
        match host || packet.local {
            true if self.guards(packet) => (Outcome::Drops, vec![Refused::Guard.step()]),
            true => (passes(), Vec::new()),
            false => (Outcome::Drops, vec![step("INVALID (CT-08)".into(), "invalid")]),
        }
    }
}

/// Why the filter lets a packet go no further.
#[derive(Clone, Copy)]
enum Refused {
    /// NO-07
    Guard,
    /// What the Service tables say.
    Filter(FilterVerdict),
}

impl Refused {
    fn outcome<A: Family>(self) -> Outcome<A> {
        match self {
            Refused::Filter(FilterVerdict::NoEndpoints) => Outcome::Rejects(RejectWith::PortUnreachable),
            Refused::Filter(FilterVerdict::NoLocalEndpoints | FilterVerdict::SourceRange)
            | Refused::Guard => Outcome::Drops,
        }
    }

    fn step(self) -> Step {
        let text = match self {
            Refused::Guard => "loopback guard (NO-07)",
            Refused::Filter(FilterVerdict::NoEndpoints) => "no endpoints (NO-01)",
            Refused::Filter(FilterVerdict::NoLocalEndpoints) => "no local endpoints (NO-02, NO-03)",
            Refused::Filter(FilterVerdict::SourceRange) => "outside the source ranges (NO-04)",
        };
        step(text.into(), text)
    }
}

fn step(text: String, shape: &str) -> Step {
    Step { text, shape: shape.into(), says: true }
}

/// The family's loopback addresses.
pub(super) fn loopback<A: Family>() -> Prefix<A> {
    match A::VERSION {
        4 => Prefix::new(A::Addr::from_bits(127 << 24), 8),
        _ => Prefix::host(A::Addr::from_bits(1)),
    }
}

fn passes<A: Family>() -> Outcome<A> {
    Outcome::Passes(Passed { destination: None, source: SourceNat::Kept, mark: 0, noted: Vec::new() })
}

fn whole<A: Family>(outcome: Outcome<A>, steps: Vec<Step>) -> Branch<A> {
    Branch { outcome, probability: 1.0, steps }
}

/// What a walk through the frontends meets, in words.
struct Words<'a, 'b, A: Family> {
    tables: &'b Tables<'a, A>,
    steps: Vec<Step>,
    explain: bool,
}

impl<A: Family> Words<'_, '_, A> {
    fn say(&mut self, id: FrontendId, what: &str) {
        if self.explain {
            let frontend = self.tables.services.frontend(id);
            let key = &frontend.key;
            let address = match key.address {
                FrontendAddress::Address(address) => address.to_string(),
                FrontendAddress::NodePort => "node port".into(),
            };
            let port = &self.tables.port_of(id).id;
            let kind = frontend.kind;
            let text = format!("{port} {kind:?} {address} {}/{}: {what}", key.port, key.protocol);
            self.steps.push(step(text, &format!("{kind:?} {what}")));
        }
    }
}

impl<A: Family> Walk<A> for Words<'_, '_, A> {
    fn matched(&mut self, frontend: FrontendId) {
        self.say(frontend, "matches");
    }

    fn outside_ranges(&mut self, frontend: FrontendId) {
        self.say(frontend, "source outside its ranges (WK-03)");
    }

    fn marked(&mut self, frontend: FrontendId, reason: MarkReason) {
        let why = match reason {
            MarkReason::MasqueradeAll => "marked, masqueradeAll (MQ-01)",
            MarkReason::NotFromPod => "marked, not local pod traffic (MQ-02)",
            MarkReason::ExternalCluster => "marked, external policy Cluster (MQ-04)",
            MarkReason::FromNode => "marked, from the node itself (MQ-06)",
        };
        self.say(frontend, why);
    }

    fn short_circuit(&mut self, frontend: FrontendId) {
        self.say(frontend, "short circuit to the cluster's endpoints (WK-04)");
    }

    fn fell_through(&mut self, frontend: FrontendId) {
        self.say(frontend, "nothing to choose from, falls through");
    }
}

/// One packet as a sender.
pub(super) struct One<'a, A: Family> {
    /// Its source address.
    pub source: A::Addr,
    /// Whether that is an address of the node.
    pub is_local: bool,
    /// Where it enters.
    pub entry: Entry,
    /// Of its connection.
    pub stage: Stage,
    /// Whether the detector takes the input interface for a pod's.
    pub by_pod_port: bool,
    /// The interface it leaves by, where it is forwarded.
    pub output: &'a str,
    /// Whether no reply was seen.
    pub is_new: bool,
    /// Whether the destination of its connection was translated before.
    pub was_translated: bool,
    /// Lists in which the client is noted, and how many seconds ago.
    pub noted: &'a [(String, u64)],
}

impl<A: Family> Sender<A> for One<'_, A> {
    fn entry(&self) -> Entry {
        self.entry
    }

    fn stage(&self) -> Stage {
        self.stage
    }

    fn within(&self, prefix: &Prefix<A>) -> bool {
        prefix.contains(self.source)
    }

    fn is_local(&self) -> bool {
        self.is_local
    }

    fn by_pod_port(&self) -> bool {
        self.by_pod_port
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    fn was_translated(&self) -> bool {
        self.was_translated
    }

    fn is_fresh(&self, list: &str, seconds: u32) -> bool {
        self.noted.iter().any(|(name, age)| name == list && *age <= u64::from(seconds))
    }

    fn leaves_by(&self, interface: &str) -> bool {
        self.output == interface
    }
}

/// All packets of a piece as a sender.
pub(super) struct Everyone<'a, 'b, A: Family> {
    /// Who answers.
    pub ask: &'a Ask<'b, A>,
    /// Whether the detector takes an interface for a pod's.
    pub pod_interface: &'a dyn Fn(&str) -> bool,
}

impl<A: Family> Sender<A> for Everyone<'_, '_, A> {
    fn entry(&self) -> Entry {
        self.ask.target.entry
    }

    fn stage(&self) -> Stage {
        self.ask.target.stage
    }

    fn within(&self, prefix: &Prefix<A>) -> bool {
        self.ask.source_within(prefix)
    }

    fn is_local(&self) -> bool {
        self.ask.within(Field::Source, &self.ask.world.local)
    }

    fn by_pod_port(&self) -> bool {
        self.entry() == Entry::Port && self.ask.interface_where(Field::Input, self.pod_interface)
    }

    fn is_new(&self) -> bool {
        self.ask.state(States::NEW)
    }

    fn was_translated(&self) -> bool {
        self.ask.was_dnat()
    }

    fn is_fresh(&self, list: &str, seconds: u32) -> bool {
        self.ask.fresh(list, Some(seconds))
    }

    fn leaves_by(&self, interface: &str) -> bool {
        self.ask.interface_where(Field::Output, |name| name == interface)
    }
}
