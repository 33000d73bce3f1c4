//! Rules in iptables-save's words: a rule as `-A CHAIN ...`, and all of them as iptables-restore takes them.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;

use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};

use super::parse_match::{ADDRESS_TYPES, STATES, STATUSES, TCP_FLAGS};
use super::parse_target::rejects;
use super::parse_words::PROTOCOLS;
use super::{
    ChainId, ConnMark, Interface, InterfaceSide, Match, Nat, Physdev, Policy, RandomPorts, Recent,
    RecentAction, Rule, Ruleset, Side, States, Table, Target, Test,
};

/// A protocol as iptables has it.
pub(super) fn protocol_name(protocol: Protocol) -> Cow<'static, str> {
    match PROTOCOLS.iter().find(|(_, number)| *number == protocol.0) {
        Some((name, _)) => Cow::Borrowed(name),
        None => Cow::Owned(protocol.0.to_string()),
    }
}

/// A word as iptables-save prints it: in quotes, unless it is made of letters, digits, `_` and `-`.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    Cow::Owned(quoted)
}

impl<A: Family> Display for Ruleset<A> {
    /// As iptables-restore takes it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "*{}", table.name.name())?;
            for chain in &table.chains {
                let policy = match chain.policy {
                    Some(Policy::Accept) => "ACCEPT",
                    Some(Policy::Drop) => "DROP",
                    None => "-",
                };
                writeln!(f, ":{} {policy} [0:0]", chain.name)?;
            }
            for (at, chain) in table.chains.iter().enumerate() {
                for rule in &chain.rules {
                    writeln!(f, "{}", table.show(ChainId(at as u32), rule))?;
                }
            }
            writeln!(f, "COMMIT")?;
        }
        Ok(())
    }
}

impl<A: Family> Table<A> {
    /// A rule of the table in iptables-save's words: `-A CHAIN ...`.
    pub fn show<'a>(&'a self, chain: ChainId, rule: &'a Rule<A>) -> impl Display + 'a {
        Shown { table: self, chain, rule }
    }
}

struct Shown<'a, A: Family> {
    table: &'a Table<A>,
    chain: ChainId,
    rule: &'a Rule<A>,
}

impl<A: Family> Display for Shown<'_, A> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "-A {}", self.table.chain(self.chain).name)?;
        let protocol = self.rule.matches.iter().find_map(|it| match it.test {
            Test::Protocol(protocol) if !it.negated => Some(protocol),
            _ => None,
        });
        let built_in = |it: &&Match<A>| module(&it.test, protocol).is_none();
        for it in self.rule.matches.iter().filter(built_in) {
            condition(f, it, "")?;
        }
        if let Some(comment) = &self.rule.comment {
            write!(f, " -m comment --comment {}", quoted(comment))?;
        }
        let mut before: Option<(&str, Vec<&str>)> = None;
        for it in &self.rule.matches {
            let Some((module, option)) = module(&it.test, protocol) else { continue };
            // Ports and flags of one protocol share a module, each once.
            match &mut before {
                Some((name, options))
                    if *name == module && !option.is_empty() && !options.contains(&option) =>
                {
                    options.push(option);
                }
                _ => {
                    write!(f, " -m {module}")?;
                    before = Some((module, vec![option]));
                }
            }
            condition(f, it, module)?;
        }
        self.target(f)
    }
}

/// The module that a condition is printed with, if it is none of the built-in ones, and the option, if others
/// may follow it.
fn module<A: Family>(test: &Test<A>, protocol: Option<Protocol>) -> Option<(&'static str, &'static str)> {
    let own = match protocol {
        Some(Protocol::TCP) => Some("tcp"),
        Some(Protocol::UDP) => Some("udp"),
        Some(Protocol::SCTP) => Some("sctp"),
        _ => None,
    };
    let ports = |ports: &[RangeInclusive<u16>], option| match (own, ports.len()) {
        (Some(own), 1) => (own, option),
        _ => ("multiport", ""),
    };
    Some(match test {
        Test::Source(_) | Test::Destination(_) | Test::Protocol(_) => return None,
        Test::InInterface(_) | Test::OutInterface(_) => return None,
        Test::SourcePorts(list) => ports(list, "--sport"),
        Test::DestinationPorts(list) => ports(list, "--dport"),
        Test::EitherPorts(_) => ("multiport", ""),
        Test::TcpFlags { .. } => ("tcp", "--tcp-flags"),
        Test::Icmp { .. } => (if A::VERSION == 4 { "icmp" } else { "icmp6" }, ""),
        Test::AddressType { .. } => ("addrtype", ""),
        Test::Mark(_) => ("mark", ""),
        Test::ConnMark(_) => ("connmark", ""),
        Test::State(_) => ("conntrack", "--ctstate"),
        Test::OriginalDestination(_) => ("conntrack", "--ctorigdst"),
        Test::OriginalDestinationPort(_) => ("conntrack", "--ctorigdstport"),
        Test::Random { .. } | Test::Nth { .. } => ("statistic", ""),
        Test::Recent(_) => ("recent", ""),
        Test::Physdev(_) => ("physdev", ""),
        Test::Set { .. } => ("set", ""),
        Test::Nfacct(_) => ("nfacct", ""),
        Test::Limit(_) => ("limit", ""),
    })
}

fn condition<A: Family>(f: &mut Formatter<'_>, it: &Match<A>, module: &str) -> fmt::Result {
    let not = if it.negated { " !" } else { "" };
    match &it.test {
        Test::Source(prefix) => write!(f, "{not} -s {prefix}"),
        Test::Destination(prefix) => write!(f, "{not} -d {prefix}"),
        Test::Protocol(protocol) => write!(f, "{not} -p {}", protocol_name(*protocol)),
        Test::InInterface(interface) => write!(f, "{not} -i {interface}"),
        Test::OutInterface(interface) => write!(f, "{not} -o {interface}"),
        Test::SourcePorts(ports) => write!(f, "{not} {} {}", plural("--sport", module), Ranges(ports)),
        Test::DestinationPorts(ports) => write!(f, "{not} {} {}", plural("--dport", module), Ranges(ports)),
        Test::EitherPorts(ports) => write!(f, "{not} --ports {}", Ranges(ports)),
        Test::TcpFlags { mask, set } => write!(f, "{not} --tcp-flags {} {}", Flags(*mask), Flags(*set)),
        Test::Icmp { kind, codes } => {
            let option = if A::VERSION == 4 { "--icmp-type" } else { "--icmpv6-type" };
            match codes.start() == codes.end() {
                true => write!(f, "{not} {option} {kind}/{}", codes.start()),
                false => write!(f, "{not} {option} {kind}"),
            }
        }
        Test::AddressType { side, kinds, limit } => {
            let option = match side {
                Side::Source => "--src-type",
                Side::Destination => "--dst-type",
            };
            let names = ADDRESS_TYPES.iter().enumerate().filter(|(bit, _)| kinds.0 & (1 << bit) != 0);
            write!(f, "{not} {option} ")?;
            list(f, names.map(|(_, name)| name))?;
            f.write_str(match limit {
                Some(InterfaceSide::In) => " --limit-iface-in",
                Some(InterfaceSide::Out) => " --limit-iface-out",
                None => "",
            })
        }
        Test::Mark(test) | Test::ConnMark(test) => {
            write!(f, "{not} --mark {:#x}", test.value)?;
            if test.mask == u32::MAX { Ok(()) } else { write!(f, "/{:#x}", test.mask) }
        }
        Test::State(states) => write!(f, "{not} --ctstate {states}"),
        Test::OriginalDestination(prefix) => write!(f, "{not} --ctorigdst {prefix}"),
        Test::OriginalDestinationPort(range) => write!(f, "{not} --ctorigdstport {}", Range(range, ':')),
        Test::Random { threshold } => {
            let probability = f64::from(*threshold) / f64::from(1u32 << 31);
            write!(f, " --mode random{not} --probability {probability:.11}")
        }
        Test::Nth { every, packet } => write!(f, " --mode nth{not} --every {every} --packet {packet}"),
        Test::Recent(recent) => show_recent::<A>(f, not, recent),
        Test::Physdev(test) => match test {
            Physdev::IsIn => write!(f, "{not} --physdev-is-in"),
            Physdev::IsOut => write!(f, "{not} --physdev-is-out"),
            Physdev::IsBridged => write!(f, "{not} --physdev-is-bridged"),
            Physdev::In(interface) => write!(f, "{not} --physdev-in {interface}"),
            Physdev::Out(interface) => write!(f, "{not} --physdev-out {interface}"),
        },
        Test::Set { name, sides } => {
            write!(f, "{not} --match-set {} ", quoted(name))?;
            list(f, sides.iter().map(|side| if *side == Side::Source { "src" } else { "dst" }))
        }
        Test::Nfacct(name) => write!(f, " --nfacct-name {}", quoted(name)),
        Test::Limit(options) => write!(f, " {options}"),
    }
}

/// The option of a protocol's module for one port or range, or that of multiport.
fn plural(option: &'static str, module: &str) -> String {
    let several = if module == "multiport" { "s" } else { "" };
    format!("{option}{several}")
}

fn show_recent<A: Family>(f: &mut Formatter<'_>, not: &str, recent: &Recent) -> fmt::Result {
    let action = match recent.action {
        RecentAction::Set => "--set",
        RecentAction::Check => "--rcheck",
        RecentAction::Update => "--update",
        RecentAction::Remove => "--remove",
    };
    write!(f, "{not} {action}")?;
    if let Some(seconds) = recent.seconds {
        write!(f, " --seconds {seconds}")?;
    }
    if recent.reap {
        f.write_str(" --reap")?;
    }
    if let Some(hits) = recent.hitcount {
        write!(f, " --hitcount {hits}")?;
    }
    let all = Prefix::<A>::new(A::Addr::from_bits(u128::MAX), recent.mask);
    let side = if recent.side == Side::Source { "--rsource" } else { "--rdest" };
    write!(f, " --name {} --mask {} {side}", quoted(&recent.name), all.address())
}

impl<A: Family> Shown<'_, A> {
    fn target(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.rule.target {
            Target::None => Ok(()),
            Target::Accept => f.write_str(" -j ACCEPT"),
            Target::Drop => f.write_str(" -j DROP"),
            Target::Return => f.write_str(" -j RETURN"),
            Target::Jump(to) => write!(f, " -j {}", self.table.chain(*to).name),
            Target::Goto(to) => write!(f, " -g {}", self.table.chain(*to).name),
            Target::Reject(with) => {
                let names = rejects::<A>();
                let name = names.iter().find(|(.., it)| it == with).map_or("of the other family", |it| it.0);
                write!(f, " -j REJECT --reject-with {name}")
            }
            Target::Mark { value, mask } => write!(f, " -j MARK --set-xmark {value:#x}/{mask:#x}"),
            Target::ConnMark(action) => match action {
                ConnMark::Set { value, mask } => write!(f, " -j CONNMARK --set-xmark {value:#x}/{mask:#x}"),
                ConnMark::Save { ct_mask, mark_mask } => {
                    write!(f, " -j CONNMARK --save-mark --nfmask {mark_mask:#x} --ctmask {ct_mask:#x}")
                }
                ConnMark::Restore { ct_mask, mark_mask } => {
                    write!(f, " -j CONNMARK --restore-mark --nfmask {mark_mask:#x} --ctmask {ct_mask:#x}")
                }
            },
            Target::Dnat(nat) => {
                f.write_str(" -j DNAT --to-destination ")?;
                translation(f, nat)
            }
            Target::Snat(nat) => {
                f.write_str(" -j SNAT --to-source ")?;
                translation(f, nat)
            }
            Target::Masquerade { ports, random } => {
                f.write_str(" -j MASQUERADE")?;
                if let Some(ports) = ports {
                    write!(f, " --to-ports {}", Range(ports, '-'))?;
                }
                f.write_str(random_option(*random))
            }
            Target::Log(options) if options.is_empty() => f.write_str(" -j LOG"),
            Target::Log(options) => write!(f, " -j LOG {options}"),
        }
    }
}

fn translation<A: Family>(f: &mut Formatter<'_>, nat: &Nat<A>) -> fmt::Result {
    let bracket = A::VERSION == 6 && nat.ports.is_some();
    if let Some((first, last)) = nat.addresses {
        f.write_str(if bracket { "[" } else { "" })?;
        write!(f, "{first}")?;
        if last != first {
            write!(f, "-{last}")?;
        }
        f.write_str(if bracket { "]" } else { "" })?;
    }
    if let Some(ports) = &nat.ports {
        write!(f, ":{}", Range(ports, '-'))?;
    }
    f.write_str(random_option(nat.random))?;
    f.write_str(if nat.persistent { " --persistent" } else { "" })
}

fn random_option(random: RandomPorts) -> &'static str {
    match random {
        RandomPorts::Keep => "",
        RandomPorts::Random => " --random",
        RandomPorts::Fully => " --random-fully",
    }
}

impl Display for Interface {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.prefix { "+" } else { "" })
    }
}

impl Display for States {
    /// As `--ctstate` takes them.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names = STATES.iter().chain(STATUSES).filter(|(_, state)| self.intersects(*state));
        list(f, names.map(|(name, _)| name))
    }
}

/// A range of ports, one port if it is no more.
struct Range<'a>(&'a RangeInclusive<u16>, char);

impl Display for Range<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.start())?;
        if self.0.start() == self.0.end() { Ok(()) } else { write!(f, "{}{}", self.1, self.0.end()) }
    }
}

struct Ranges<'a>(&'a [RangeInclusive<u16>]);

impl Display for Ranges<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        list(f, self.0.iter().map(|range| Range(range, ':')))
    }
}

struct Flags(u8);

impl Display for Flags {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("NONE");
        }
        list(
            f,
            TCP_FLAGS.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0).map(|(_, name)| name),
        )
    }
}

fn list(f: &mut Formatter<'_>, items: impl Iterator<Item = impl Display>) -> fmt::Result {
    for (at, item) in items.enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { "," })?;
    }
    Ok(())
}
