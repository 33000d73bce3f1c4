//! A packet on its way through the tables.

use pollux_dataplane::packet::{Family, Prefix};

use super::{
    Evaluator, Name, NatState, Noted, Outcome, Packet, Place, Snat, Verdict, View, Watch, World, kept_port,
};
use crate::iptables::{
    AddressTypes, ChainId, ConnMark, Hook, InterfaceSide, Match, Nat, Policy, Ports, Recent, RecentAction,
    Side, States, Table, TableName, Target, Test,
};

/// Whether conntrack has seen the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tracked {
    /// It stands in a raw table, which comes before.
    NotYet,
    Yes,
}

/// A packet on its way.
pub(super) struct Walk<'w, 'r, A: Family, W, T> {
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

impl<'w, 'r, A: Family, W: World<A>, T: Watch<A>> Walk<'w, 'r, A, W, T> {
    /// A packet where it enters.
    pub(super) fn new(
        evaluator: &'w Evaluator<'r, A>,
        packet: &'w Packet<'w, A>,
        world: &'w mut W,
        watch: &'w mut T,
    ) -> Self {
        let connection = &packet.connection;
        let (dnat, snat, before) = match connection.nat {
            NatState::First => (false, false, None),
            NatState::Decided { dnat, snat, before, .. } => (dnat, snat, before),
        };
        let (destination, destination_port) = before.unwrap_or((packet.destination, packet.destination_port));
        Walk {
            evaluator,
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
        }
    }

    /// Walks the packet to its end.
    pub(super) fn run(mut self) -> Outcome<A> {
        let end = match self.packet.in_interface {
            Some(name) => self.receive(Name::new(name)),
            None => self.send(),
        };
        Outcome {
            verdict: end.unwrap_or_else(|end| end),
            destination: self.view.destination,
            destination_port: self.view.destination_port,
            dnat: self.dnat,
            snat: self.snat,
            mark: self.view.mark,
            connection_mark: self.connection_mark,
            noted: self.noted,
        }
    }

    fn receive(&mut self, name: Name) -> Result<Verdict, Early> {
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

    fn send(&mut self) -> Result<Verdict, Early> {
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
        let address = Prefix::<A>::new(address, recent.mask).address();
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
pub(super) fn is_of_type<A: Family>(asked: AddressTypes, types: AddressTypes) -> bool {
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

fn status(holds: bool, status: States) -> States {
    if holds { status } else { States::default() }
}
