//! What the kernel does with one packet under the rules: rule after rule, in the order of its hooks and tables.
//!
//! ```text
//! from a port ─ PREROUTING: raw, (conntrack), mangle, nat ─┬─ local ── INPUT: mangle, filter, security, nat ─→
//!                                                          └─ else ─── FORWARD: mangle, filter, security ─┐
//! from the host ─ OUTPUT: raw, (conntrack), mangle, nat, filter, security ────────────────────────────────┤
//!        ┌─────────────────────── to the node: by way of lo ───────────────────── POSTROUTING: mangle, nat ┴─→
//!        └─→ PREROUTING with -i lo, nat decided already ─→ INPUT
//! ```
//!
//! Nothing is indexed and nothing is remembered between packets, so that this can judge what is clever. What
//! is not in the file (addresses, routes, sets, chance) is asked of a [`World`]. Built-in conditions on `-i`
//! and `-o` see an empty name where there is no interface; a forwarded packet still has its input interface in
//! POSTROUTING, as it has since Linux 5.7.

use pollux_dataplane::packet::{Address, Family, Protocol};

use super::{
    AddressTypes, ChainId, ConnMark, Hook, InterfaceSide, Match, Nat, Physdev, Policy, Ports, RandomPorts,
    Recent, RecentAction, RejectWith, Rule, Ruleset, Side, States, Table, TableName, Target, Test,
};

/// A packet where it enters.
#[derive(Clone, Debug)]
pub struct Packet<'a, A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address; of a packet that is not its connection's first: as it is after translation.
    pub destination: A::Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Source port, if the protocol has ports.
    pub source_port: u16,
    /// Destination port, likewise, and after translation as the address.
    pub destination_port: u16,
    /// TCP's flags, FIN in bit 0.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: (u8, u8),
    /// The interface it comes in by; nothing for a packet of the host.
    pub in_interface: Option<&'a str>,
    /// Its mark.
    pub mark: u32,
    /// Its connection.
    pub connection: Connection<A>,
}

/// What is known of a packet's connection.
#[derive(Clone, Debug)]
pub struct Connection<A: Family> {
    /// The state: exactly one from `INVALID` to `UNTRACKED`.
    pub state: States,
    /// Whether nat has yet to decide: the nat table is asked.
    pub nat: NatState<A>,
    /// Where its first packet went, before translation: `--ctorigdst`.
    pub original_destination: A::Addr,
    /// `--ctorigdstport`
    pub original_destination_port: u16,
    /// The connection's mark.
    pub mark: u32,
}

/// Whether nat has decided about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatState<A: Family> {
    /// This packet is the first: the rules decide.
    First,
    /// An earlier packet's decision stands.
    Decided {
        /// The destination was translated (the status `DNAT`).
        dnat: bool,
        /// The source was (`SNAT`).
        snat: bool,
        /// Destination and port of this packet until it is translated, if it is.
        before: Option<(A::Addr, u16)>,
        /// Source and port of this packet once it is translated, if it is.
        after: Option<(A::Addr, u16)>,
    },
}

impl<A: Family> Connection<A> {
    /// A connection whose first packet goes to `destination`.
    pub fn first(destination: A::Addr, port: u16) -> Connection<A> {
        Connection {
            state: States::NEW,
            nat: NatState::First,
            original_destination: destination,
            original_destination_port: port,
            mark: 0,
        }
    }

    /// A connection in `state` that was not translated, seen in a later packet to `destination`.
    pub fn later(state: States, destination: A::Addr, port: u16) -> Connection<A> {
        let nat = NatState::Decided { dnat: false, snat: false, before: None, after: None };
        Connection { state, nat, ..Connection::first(destination, port) }
    }
}

/// What a condition sees of a packet where it is asked.
#[derive(Clone, Debug)]
pub struct View<A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address.
    pub destination: A::Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: (u8, u8),
    /// Input interface, or an empty name.
    pub in_interface: Name,
    /// Output interface, or an empty name.
    pub out_interface: Name,
    /// The packet's mark.
    pub mark: u32,
}

/// An interface's name, held without a heap: the kernel's have 15 bytes at most.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Name {
    bytes: [u8; 15],
    len: u8,
}

impl Name {
    /// A name.
    ///
    /// # Panics
    /// If it is longer than the kernel's can be.
    pub fn new(name: &str) -> Name {
        let mut bytes = [0; 15];
        bytes.get_mut(..name.len()).expect("an interface name has 15 bytes").copy_from_slice(name.as_bytes());
        Name { bytes, len: name.len() as u8 }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("it was made of text")
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Where a rule stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// Its table.
    pub table: TableName,
    /// Its chain.
    pub chain: ChainId,
    /// Its number in the chain, from 0.
    pub rule: u32,
    /// Its line in the file, 0 if it has none.
    pub line: u32,
}

/// What is outside of the file.
pub trait World<A: Family> {
    /// Whether packets to an address are delivered to the node.
    fn is_local(&self, address: A::Addr) -> bool;

    /// The interface by which packets to an address that is not local leave.
    fn out_interface(&self, destination: A::Addr) -> &str;

    /// The address that MASQUERADE gives packets that leave by an interface to a destination.
    fn masquerade(&self, out_interface: &str, destination: A::Addr) -> A::Addr;

    /// The types of an address, on one interface if it is named. An address that is neither local nor a group
    /// is `UNICAST` if the world does not say more.
    fn address_types(&self, address: A::Addr, interface: Option<&str>) -> AddressTypes {
        let _ = interface;
        let unicast = 1 << 1;
        match self.is_local(address) {
            // IPv6's kernel code asks whether the address is unicast, and local ones are.
            true if A::VERSION == 6 => AddressTypes(AddressTypes::LOCAL.0 | unicast),
            true => AddressTypes::LOCAL,
            false if address.is_multicast() => AddressTypes(1 << 5),
            false if A::VERSION == 6 && address.is_unspecified() => AddressTypes(1),
            false => AddressTypes(unicast),
        }
    }

    /// Whether 31 random bits are below `threshold`.
    fn random(&mut self, place: Place, threshold: u32) -> bool;

    /// Whether this packet is the `packet`th of `every`.
    fn nth(&mut self, place: Place, every: u32, packet: u32) -> bool;

    /// Whether a list holds an address (its bits behind the list's mask are zero), and what is to be done with
    /// it; [`RecentAction::Set`] always holds and is not asked.
    fn recent(&mut self, recent: &Recent, address: A::Addr) -> bool;

    /// Whether a set holds the packet.
    fn in_set(&mut self, name: &str, sides: &[Side], view: &View<A>) -> bool;

    /// Whether a limit is not reached.
    fn limit(&mut self, place: Place) -> bool;

    /// Whether a condition on bridge ports holds.
    fn physdev(&mut self, physdev: &Physdev) -> bool {
        let _ = physdev;
        false
    }

    /// What DNAT and SNAT make of an address and port. Of a range of addresses the kernel takes one by a hash;
    /// here it is the first. A port within the range is kept, else it is the first of it.
    fn translate(&mut self, nat: &Nat<A>, address: A::Addr, port: u16) -> (A::Addr, u16) {
        let address = nat.addresses.map_or(address, |(first, _)| first);
        (address, kept_port(nat.ports.as_ref(), nat.random, port))
    }
}

fn kept_port(range: Option<&std::ops::RangeInclusive<u16>>, random: RandomPorts, port: u16) -> u16 {
    match range {
        Some(range) if random == RandomPorts::Fully || !range.contains(&port) => *range.start(),
        _ => port,
    }
}

/// Is told what happens on a packet's way.
pub trait Watch<A: Family> {
    /// A table's base chain is entered.
    fn enters(&mut self, table: &Table<A>, hook: Hook) {
        let _ = (table, hook);
    }

    /// A rule is asked; `held` says whether all its conditions did.
    fn asked(&mut self, table: &Table<A>, place: Place, rule: &Rule<A>, held: bool) {
        let _ = (table, place, rule, held);
    }

    /// A base chain ended with its policy.
    fn policy(&mut self, table: &Table<A>, hook: Hook, policy: Policy) {
        let _ = (table, hook, policy);
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl<A: Family> Watch<A> for Unwatched {}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome<A: Family> {
    /// The verdict.
    pub verdict: Verdict,
    /// Destination after DNAT.
    pub destination: A::Addr,
    /// Destination port after DNAT.
    pub destination_port: u16,
    /// Whether a rule translated the destination.
    pub dnat: bool,
    /// Whether and how a rule translates the source.
    pub snat: Option<Snat<A>>,
    /// The packet's mark at its end.
    pub mark: u32,
    /// The connection's mark.
    pub connection_mark: u32,
    /// What `recent --set` noted, in order.
    pub noted: Vec<Noted<A>>,
}

/// An address that was noted in a list of `-m recent`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Noted<A: Family> {
    /// The list.
    pub list: String,
    /// The address.
    pub address: A::Addr,
}

/// Where a packet ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It leaves by an interface.
    Forwarded(Name),
    /// It is delivered to the node.
    Delivered,
    /// It is dropped.
    Dropped,
    /// It is dropped, and its source is told.
    Rejected(RejectWith),
}

/// How a source is translated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Snat<A: Family> {
    /// By MASQUERADE.
    Masquerade,
    /// By SNAT.
    To(Nat<A>),
}

/// The kernel's walk of a packet under `rules`.
pub fn evaluate<A: Family, W: World<A>, T: Watch<A>>(
    rules: &Ruleset<A>,
    packet: &Packet<'_, A>,
    world: &mut W,
    watch: &mut T,
) -> Outcome<A> {
    Evaluator::new(rules).evaluate(packet, world, watch)
}

/// Rules with their base chains at hand, for many packets.
#[derive(Debug)]
pub struct Evaluator<'r, A: Family> {
    /// By table and hook.
    bases: [[Option<(&'r Table<A>, ChainId)>; Hook::ALL.len()]; TableName::ALL.len()],
}

impl<'r, A: Family> Evaluator<'r, A> {
    /// Finds the base chains.
    pub fn new(rules: &'r Ruleset<A>) -> Self {
        let base = |name, hook| {
            let table = rules.table(name)?;
            Some((table, table.base(hook)?))
        };
        Evaluator { bases: TableName::ALL.map(|name| Hook::ALL.map(|hook| base(name, hook))) }
    }

    /// The kernel's walk of a packet.
    pub fn evaluate<W: World<A>, T: Watch<A>>(
        &self,
        packet: &Packet<'_, A>,
        world: &mut W,
        watch: &mut T,
    ) -> Outcome<A> {
        let connection = &packet.connection;
        let (dnat, snat, before) = match connection.nat {
            NatState::First => (false, false, None),
            NatState::Decided { dnat, snat, before, .. } => (dnat, snat, before),
        };
        let (destination, destination_port) = before.unwrap_or((packet.destination, packet.destination_port));
        let mut walk = Walk {
            evaluator: self,
            packet,
            world,
            watch,
            view: View {
                source: packet.source,
                destination,
                protocol: packet.protocol,
                source_port: packet.source_port,
                destination_port,
                tcp_flags: packet.tcp_flags,
                icmp: packet.icmp,
                in_interface: Name::default(),
                out_interface: Name::default(),
                mark: packet.mark,
            },
            tracked: Tracked::NotYet,
            statuses: status(dnat, States::DNAT).with(status(snat, States::SNAT)),
            connection_mark: connection.mark,
            dnat: false,
            snat: None,
            noted: Vec::new(),
            callers: Vec::new(),
        };
        let end = match packet.in_interface {
            Some(name) => walk.from_port(Name::new(name)),
            None => walk.from_host(),
        };
        Outcome {
            verdict: end.unwrap_or_else(|end| end),
            destination: walk.view.destination,
            destination_port: walk.view.destination_port,
            dnat: walk.dnat,
            snat: walk.snat,
            mark: walk.view.mark,
            connection_mark: walk.connection_mark,
            noted: walk.noted,
        }
    }
}

fn status(holds: bool, status: States) -> States {
    if holds { status } else { States::default() }
}

/// Whether conntrack has seen the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tracked {
    /// It stands in a raw table, which comes before.
    NotYet,
    Yes,
}

/// A packet on its way.
struct Walk<'w, 'r, A: Family, W, T> {
    evaluator: &'w Evaluator<'r, A>,
    packet: &'w Packet<'w, A>,
    world: &'w mut W,
    watch: &'w mut T,
    view: View<A>,
    tracked: Tracked,
    /// `DNAT` and `SNAT`.
    statuses: States,
    connection_mark: u32,
    dnat: bool,
    snat: Option<Snat<A>>,
    noted: Vec<Noted<A>>,
    /// The chains from which jumps were made, and the rule to go on with. Kept to be used again.
    callers: Vec<(ChainId, u32)>,
}

/// Where a packet ended before its way did.
type Early = Verdict;

impl<A: Family, W: World<A>, T: Watch<A>> Walk<'_, '_, A, W, T> {
    fn from_port(&mut self, name: Name) -> Result<Verdict, Early> {
        self.view.in_interface = name;
        self.table(TableName::Raw, Hook::Prerouting)?;
        self.tracked = Tracked::Yes;
        self.table(TableName::Mangle, Hook::Prerouting)?;
        self.translate_destination(Hook::Prerouting)?;
        if self.world.is_local(self.view.destination) {
            return self.input(self.nat_decides());
        }
        self.view.out_interface = self.route();
        self.table(TableName::Mangle, Hook::Forward)?;
        self.table(TableName::Filter, Hook::Forward)?;
        self.table(TableName::Security, Hook::Forward)?;
        self.postrouting()?;
        Ok(Verdict::Forwarded(self.view.out_interface))
    }

    fn from_host(&mut self) -> Result<Verdict, Early> {
        // What the rules of OUTPUT see is the way to the first destination: the packet is routed again after
        // DNAT, but the hook is told its interface once.
        self.view.out_interface = self.route();
        self.table(TableName::Raw, Hook::Output)?;
        self.tracked = Tracked::Yes;
        self.table(TableName::Mangle, Hook::Output)?;
        self.translate_destination(Hook::Output)?;
        self.table(TableName::Filter, Hook::Output)?;
        self.table(TableName::Security, Hook::Output)?;
        self.view.out_interface = self.route();
        self.postrouting()?;
        let out = self.view.out_interface;
        if !self.world.is_local(self.view.destination) {
            return Ok(Verdict::Forwarded(out));
        }
        // It comes in again by lo, with its connection and its mark; nat has decided.
        if let NatState::Decided { after: Some((source, port)), .. } = self.packet.connection.nat {
            (self.view.source, self.view.source_port) = (source, port);
        }
        (self.view.in_interface, self.view.out_interface) = (out, Name::default());
        self.table(TableName::Raw, Hook::Prerouting)?;
        self.table(TableName::Mangle, Hook::Prerouting)?;
        self.input(false)
    }

    fn input(&mut self, nat_decides: bool) -> Result<Verdict, Early> {
        self.table(TableName::Mangle, Hook::Input)?;
        self.table(TableName::Filter, Hook::Input)?;
        self.table(TableName::Security, Hook::Input)?;
        if nat_decides {
            self.table(TableName::Nat, Hook::Input)?;
        }
        Ok(Verdict::Delivered)
    }

    fn postrouting(&mut self) -> Result<(), Early> {
        self.table(TableName::Mangle, Hook::Postrouting)?;
        if self.nat_decides() {
            self.table(TableName::Nat, Hook::Postrouting)?;
        }
        Ok(())
    }

    fn translate_destination(&mut self, hook: Hook) -> Result<(), Early> {
        if self.nat_decides() {
            return self.table(TableName::Nat, hook);
        }
        let Packet { destination, destination_port, .. } = *self.packet;
        (self.view.destination, self.view.destination_port) = (destination, destination_port);
        Ok(())
    }

    /// Whether the nat tables are asked: of the first packet of a connection only, and of none that belongs to
    /// no connection.
    fn nat_decides(&self) -> bool {
        self.packet.connection.nat == NatState::First && self.has_connection()
    }

    fn has_connection(&self) -> bool {
        self.tracked == Tracked::Yes
            && !self.packet.connection.state.intersects(States::INVALID.with(States::UNTRACKED))
    }

    /// The interface to the destination.
    fn route(&self) -> Name {
        match self.world.is_local(self.view.destination) {
            true => Name::new("lo"),
            false => Name::new(self.world.out_interface(self.view.destination)),
        }
    }

    /// Walks a table's base chain. ACCEPT ends it and nothing else.
    fn table(&mut self, name: TableName, hook: Hook) -> Result<(), Early> {
        let Some((table, base)) = self.evaluator.bases[name as usize][hook as usize] else { return Ok(()) };
        self.watch.enters(table, hook);
        self.callers.clear();
        let (mut chain, mut next) = (base, 0u32);
        loop {
            let Some(rule) = table.chain(chain).rules.get(next as usize) else {
                match self.callers.pop() {
                    Some(caller) => (chain, next) = caller,
                    None => return self.policy(table, base, hook),
                }
                continue;
            };
            let place = Place { table: name, chain, rule: next, line: rule.line };
            next += 1;
            let held = rule.matches.iter().all(|it| self.holds(it, place));
            self.watch.asked(table, place, rule, held);
            if !held {
                continue;
            }
            match &rule.target {
                Target::None | Target::Log(_) => {}
                Target::Accept => return Ok(()),
                Target::Drop => return Err(Verdict::Dropped),
                Target::Reject(with) => return Err(Verdict::Rejected(*with)),
                Target::Return => match self.callers.pop() {
                    Some(caller) => (chain, next) = caller,
                    None => return self.policy(table, base, hook),
                },
                Target::Jump(to) => {
                    self.callers.push((chain, next));
                    (chain, next) = (*to, 0);
                }
                Target::Goto(to) => (chain, next) = (*to, 0),
                Target::Mark { value, mask } => self.view.mark = self.view.mark & !mask ^ value,
                Target::ConnMark(action) => self.conn_mark(*action),
                Target::Dnat(nat) => {
                    self.dnat(nat);
                    return Ok(());
                }
                Target::Snat(nat) => {
                    let View { source, source_port, .. } = self.view;
                    let to = self.world.translate(nat, source, source_port);
                    self.snat(Snat::To(nat.clone()), to);
                    return Ok(());
                }
                Target::Masquerade { ports, random } => {
                    let View { destination, source_port, .. } = self.view;
                    let address = self.world.masquerade(self.view.out_interface.as_str(), destination);
                    self.snat(Snat::Masquerade, (address, kept_port(ports.as_ref(), *random, source_port)));
                    return Ok(());
                }
            }
        }
    }

    fn policy(&mut self, table: &Table<A>, base: ChainId, hook: Hook) -> Result<(), Early> {
        let policy = table.chain(base).policy.unwrap_or(Policy::Accept);
        self.watch.policy(table, hook, policy);
        match policy {
            Policy::Accept => Ok(()),
            Policy::Drop => Err(Verdict::Dropped),
        }
    }

    fn dnat(&mut self, nat: &Nat<A>) {
        let before = (self.view.destination, self.view.destination_port);
        let after = self.world.translate(nat, before.0, before.1);
        (self.view.destination, self.view.destination_port) = after;
        self.dnat = true;
        // The kernel sets the status only if something changes.
        self.statuses = self.statuses.with(status(before != after, States::DNAT));
    }

    fn snat(&mut self, how: Snat<A>, after: (A::Addr, u16)) {
        let before = (self.view.source, self.view.source_port);
        (self.view.source, self.view.source_port) = after;
        self.snat = Some(how);
        self.statuses = self.statuses.with(status(before != after, States::SNAT));
    }

    fn conn_mark(&mut self, action: ConnMark) {
        if !self.has_connection() {
            return;
        }
        let (connection, mark) = (self.connection_mark, self.view.mark);
        match action {
            ConnMark::Set { value, mask } => self.connection_mark = connection & !mask ^ value,
            ConnMark::Save { ct_mask, mark_mask } => {
                self.connection_mark = connection & !ct_mask ^ mark & mark_mask;
            }
            ConnMark::Restore { ct_mask, mark_mask } => {
                self.view.mark = mark & !mark_mask ^ connection & ct_mask;
            }
        }
    }

    fn holds(&mut self, it: &Match<A>, place: Place) -> bool {
        let View { source, destination, source_port, destination_port, .. } = self.view;
        let holds = match &it.test {
            Test::Source(prefix) => prefix.contains(source),
            Test::Destination(prefix) => prefix.contains(destination),
            Test::Protocol(protocol) => self.view.protocol == *protocol,
            Test::InInterface(interface) => interface.holds(self.view.in_interface.as_str()),
            Test::OutInterface(interface) => interface.holds(self.view.out_interface.as_str()),
            Test::SourcePorts(ports) => contain(ports, source_port),
            Test::DestinationPorts(ports) => contain(ports, destination_port),
            Test::EitherPorts(ports) => contain(ports, source_port) || contain(ports, destination_port),
            Test::TcpFlags { mask, set } => self.view.tcp_flags & mask == *set,
            Test::Icmp { kind, codes } => self.view.icmp.0 == *kind && codes.contains(&self.view.icmp.1),
            Test::AddressType { side, kinds, limit } => {
                let address = if *side == Side::Source { source } else { destination };
                let interface = limit.map(|limit| match limit {
                    InterfaceSide::In => self.view.in_interface.as_str(),
                    InterfaceSide::Out => self.view.out_interface.as_str(),
                });
                is_of_type::<A>(*kinds, self.world.address_types(address, interface))
            }
            Test::Mark(test) => self.view.mark & test.mask == test.value,
            // Without a connection these fail, negated or not.
            Test::ConnMark(_) | Test::OriginalDestination(_) | Test::OriginalDestinationPort(_)
                if !self.has_connection() =>
            {
                return false;
            }
            Test::ConnMark(test) => self.connection_mark & test.mask == test.value,
            Test::OriginalDestination(prefix) => prefix.contains(self.packet.connection.original_destination),
            Test::OriginalDestinationPort(ports) => {
                ports.contains(&self.packet.connection.original_destination_port)
            }
            Test::State(states) => states.intersects(self.state()),
            Test::Random { threshold } => self.world.random(place, *threshold),
            Test::Nth { every, packet } => self.world.nth(place, *every, *packet),
            Test::Recent(recent) => self.recent(recent),
            Test::Physdev(physdev) => self.world.physdev(physdev),
            Test::Set { name, sides } => self.world.in_set(name, sides, &self.view),
            Test::Nfacct(_) => true,
            Test::Limit(_) => self.world.limit(place),
        };
        holds != it.negated
    }

    /// What `--ctstate` sees. Before conntrack every packet is INVALID to it.
    fn state(&self) -> States {
        match (self.tracked, self.has_connection()) {
            (Tracked::NotYet, _) => States::INVALID,
            (Tracked::Yes, true) => self.packet.connection.state.with(self.statuses),
            (Tracked::Yes, false) => self.packet.connection.state,
        }
    }

    fn recent(&mut self, recent: &Recent) -> bool {
        let address = match recent.side {
            Side::Source => self.view.source,
            Side::Destination => self.view.destination,
        };
        let address = pollux_dataplane::packet::Prefix::<A>::new(address, recent.mask).address();
        if recent.action != RecentAction::Set {
            return self.world.recent(recent, address);
        }
        self.noted.push(Noted { list: recent.name.clone(), address });
        true
    }
}

fn contain(ports: &Ports, port: u16) -> bool {
    ports.iter().any(|range| range.contains(&port))
}

/// Whether an address of some types is of one that is asked for. For IPv6 the kernel wants those that the
/// address itself shows to hold all together, and of the rest one.
fn is_of_type<A: Family>(asked: AddressTypes, types: AddressTypes) -> bool {
    const UNSPEC: u16 = 1;
    const UNICAST: u16 = 1 << 1;
    const MULTICAST: u16 = 1 << 5;
    const ROUTED: u16 = (1 << 2) | (1 << 4) | (1 << 7);
    if A::VERSION == 4 {
        return asked.0 & types.0 != 0;
    }
    let shown = asked.0 & (UNSPEC | UNICAST | MULTICAST);
    let routed = asked.0 & ROUTED;
    types.0 & shown == shown && (routed == 0 || types.0 & routed != 0)
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
