//! The match modules: `-m NAME` and their options.

use pollux_dataplane::packet::{Family, Protocol};

use super::parse_icmp;
use super::parse_words::{Words, interface, mark, mask, number, port_list, port_range, prefix};
use super::{
    AddressTypes, InterfaceSide, MarkTest, Match, Physdev, Recent, RecentAction, Side, States, Test,
};

/// The modules that are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Comment,
    Addrtype,
    Mark,
    Connmark,
    Conntrack,
    State,
    Statistic,
    Recent,
    Multiport,
    Physdev,
    Set,
    Nfacct,
    Limit,
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl Kind {
    pub(super) fn named<A: Family>(name: &str) -> Result<Kind, String> {
        Ok(match name {
            "comment" => Kind::Comment,
            "addrtype" => Kind::Addrtype,
            "mark" => Kind::Mark,
            "connmark" => Kind::Connmark,
            "conntrack" => Kind::Conntrack,
            "state" => Kind::State,
            "statistic" => Kind::Statistic,
            "recent" => Kind::Recent,
            "multiport" => Kind::Multiport,
            "physdev" => Kind::Physdev,
            "set" => Kind::Set,
            "nfacct" => Kind::Nfacct,
            "limit" => Kind::Limit,
            "tcp" => Kind::Tcp,
            "udp" => Kind::Udp,
            "sctp" => Kind::Sctp,
            "icmp" if A::VERSION == 4 => Kind::Icmp,
            "icmp6" | "icmpv6" | "ipv6-icmp" if A::VERSION == 6 => Kind::Icmp,
            _ => return Err(format!("-m {name} is not known")),
        })
    }

    /// The module of `-p`, which need not be named with `-m`.
    pub(super) fn of_protocol(protocol: Protocol) -> Option<Kind> {
        match protocol {
            Protocol::TCP => Some(Kind::Tcp),
            Protocol::UDP => Some(Kind::Udp),
            Protocol::SCTP => Some(Kind::Sctp),
            Protocol::ICMP | Protocol::ICMPV6 => Some(Kind::Icmp),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Comment => "comment",
            Kind::Addrtype => "addrtype",
            Kind::Mark => "mark",
            Kind::Connmark => "connmark",
            Kind::Conntrack => "conntrack",
            Kind::State => "state",
            Kind::Statistic => "statistic",
            Kind::Recent => "recent",
            Kind::Multiport => "multiport",
            Kind::Physdev => "physdev",
            Kind::Set => "set",
            Kind::Nfacct => "nfacct",
            Kind::Limit => "limit",
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::Sctp => "sctp",
            Kind::Icmp => "icmp",
        }
    }
}

/// A module that a rule names, with what its options have said so far.
pub(super) struct Module<A: Family> {
    pub(super) kind: Kind,
    matches: Vec<Match<A>>,
    parts: Parts,
}

/// What is said by several options together.
enum Parts {
    None,
    Limit { rate: Option<String>, burst: Option<String> },
    Interface(Option<InterfaceSide>),
    Statistic { negated: bool, mode: Option<Mode>, threshold: Option<u32>, every: Option<u32>, packet: u32 },
    Recent { negated: bool, action: Option<RecentAction>, recent: Box<Recent> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Random,
    Nth,
}

impl<A: Family> Module<A> {
    pub(super) fn new(kind: Kind) -> Module<A> {
        let parts = match kind {
            Kind::Limit => Parts::Limit { rate: None, burst: None },
            Kind::Addrtype => Parts::Interface(None),
            Kind::Statistic => {
                Parts::Statistic { negated: false, mode: None, threshold: None, every: None, packet: 0 }
            }
            Kind::Recent => Parts::Recent {
                negated: false,
                action: None,
                recent: Box::new(Recent {
                    name: "DEFAULT".into(),
                    action: RecentAction::Set,
                    side: Side::Source,
                    mask: A::BITS,
                    seconds: None,
                    hitcount: None,
                    reap: false,
                }),
            },
            _ => Parts::None,
        };
        Module { kind, matches: Vec::new(), parts }
    }

    /// Reads an option if it is one of the module's. `not` is whether `!` stood before it, and is cleared if
    /// the option can be negated.
    pub(super) fn option(
        &mut self,
        option: &str,
        not: &mut bool,
        words: &mut Words<'_>,
    ) -> Result<bool, String> {
        let test = match (self.kind, option) {
            (Kind::Addrtype, "--src-type") => {
                return self.address_type(option, Side::Source, not, words);
            }
            (Kind::Addrtype, "--dst-type") => {
                return self.address_type(option, Side::Destination, not, words);
            }
            (Kind::Addrtype, "--limit-iface-in") => return self.limit_interface(InterfaceSide::In),
            (Kind::Addrtype, "--limit-iface-out") => return self.limit_interface(InterfaceSide::Out),
            (Kind::Statistic, _) => return self.statistic(option, not, words),
            (Kind::Recent, _) => return self.recent(option, not, words),
            (Kind::Limit, "--limit" | "--limit-burst") => return self.limit(option, words),
            (Kind::Mark, "--mark") => Test::Mark(mark_test(option, not, words)?),
            (Kind::Connmark, "--mark") => Test::ConnMark(mark_test(option, not, words)?),
            (Kind::Conntrack, "--ctstate") => {
                let value = negatable(option, not, words)?;
                Test::State(states(&value, &[STATES, STATUSES].concat())?)
            }
            (Kind::State, "--state") => {
                let value = negatable(option, not, words)?;
                Test::State(states(&value, STATES)?)
            }
            (Kind::Conntrack, "--ctorigdst") => {
                Test::OriginalDestination(prefix(&negatable(option, not, words)?)?)
            }
            (Kind::Conntrack, "--ctorigdstport") => {
                Test::OriginalDestinationPort(port_range(&negatable(option, not, words)?, ':')?)
            }
            (Kind::Multiport, "--sports" | "--source-ports") => {
                Test::SourcePorts(port_list(&negatable(option, not, words)?)?)
            }
            (Kind::Multiport, "--dports" | "--destination-ports") => {
                Test::DestinationPorts(port_list(&negatable(option, not, words)?)?)
            }
            (Kind::Multiport, "--ports") => Test::EitherPorts(port_list(&negatable(option, not, words)?)?),
            (Kind::Tcp | Kind::Udp | Kind::Sctp, "--sport" | "--source-port") => {
                Test::SourcePorts([port_range(&negatable(option, not, words)?, ':')?].into())
            }
            (Kind::Tcp | Kind::Udp | Kind::Sctp, "--dport" | "--destination-port") => {
                Test::DestinationPorts([port_range(&negatable(option, not, words)?, ':')?].into())
            }
            (Kind::Tcp, "--syn") => Test::TcpFlags { mask: 0x17, set: 0x02 },
            (Kind::Tcp, "--tcp-flags") => {
                let mask = tcp_flags(&negatable(option, not, words)?)?;
                // The first value took the `!` if there was one.
                let set = tcp_flags(&words.value(option)?)?;
                Test::TcpFlags { mask, set }
            }
            (Kind::Icmp, "--icmp-type" | "--icmpv6-type")
                if (option == "--icmp-type") == (A::VERSION == 4) =>
            {
                let value = negatable(option, not, words)?;
                match parse_icmp::read::<A>(&value)? {
                    Some((kind, codes)) => Test::Icmp { kind, codes },
                    None if std::mem::take(not) => return Err(format!("! {option} any never holds")),
                    None => return Ok(true),
                }
            }
            (Kind::Physdev, _) => match physdev(option, not, words)? {
                Some(test) => Test::Physdev(test),
                None => return Ok(false),
            },
            (Kind::Set, "--match-set" | "--set") => {
                let name = negatable(option, not, words)?.into_owned();
                let sides = sides(&words.value(option)?)?;
                Test::Set { name, sides }
            }
            (Kind::Nfacct, "--nfacct-name") => {
                if *not {
                    return Err(format!("! cannot stand with {option}"));
                }
                Test::Nfacct(words.value(option)?.into_owned())
            }
            _ => return Ok(false),
        };
        let kind = std::mem::discriminant(&test);
        if self.matches.iter().any(|other| std::mem::discriminant(&other.test) == kind)
            && self.kind != Kind::Physdev
        {
            return Err(format!("{option} stands twice"));
        }
        if self.kind == Kind::Multiport && !self.matches.is_empty() {
            return Err(format!("{option}: multiport has one condition only"));
        }
        self.matches.push(Match { negated: std::mem::take(not), test });
        Ok(true)
    }

    fn address_type(
        &mut self,
        option: &str,
        side: Side,
        not: &mut bool,
        words: &mut Words<'_>,
    ) -> Result<bool, String> {
        let kinds = address_types::<A>(&negatable(option, not, words)?)?;
        if self
            .matches
            .iter()
            .any(|it| matches!(it.test, Test::AddressType { side: other, .. } if other == side))
        {
            return Err(format!("{option} stands twice"));
        }
        let test = Test::AddressType { side, kinds, limit: None };
        self.matches.push(Match { negated: std::mem::take(not), test });
        Ok(true)
    }

    fn limit_interface(&mut self, side: InterfaceSide) -> Result<bool, String> {
        match &mut self.parts {
            Parts::Interface(limit @ None) => *limit = Some(side),
            _ => return Err("--limit-iface-in and --limit-iface-out exclude each other".into()),
        }
        Ok(true)
    }

    fn limit(&mut self, option: &str, words: &mut Words<'_>) -> Result<bool, String> {
        let Parts::Limit { rate, burst } = &mut self.parts else { return Ok(false) };
        let value = words.value(option)?;
        let (place, text) = match option {
            "--limit" => {
                let (count, unit) = value.split_once('/').unwrap_or((&value, "second"));
                let units = [("second", "sec"), ("minute", "min"), ("hour", "hour"), ("day", "day")];
                let unit = units.iter().find(|(name, _)| !unit.is_empty() && name.starts_with(unit));
                match (number(count), unit) {
                    (Ok(count @ 1..), Some((_, unit))) => (rate, format!("{count}/{unit}")),
                    _ => return Err(format!("{option} {value:?} is not a rate (such as 5/minute)")),
                }
            }
            _ => (burst, number(&value)?.to_string()),
        };
        match place.replace(text) {
            Some(_) => Err(format!("{option} stands twice")),
            None => Ok(true),
        }
    }

    fn statistic(&mut self, option: &str, not: &mut bool, words: &mut Words<'_>) -> Result<bool, String> {
        let Parts::Statistic { negated, mode, threshold, every, packet } = &mut self.parts else {
            return Ok(false);
        };
        match option {
            "--mode" => {
                let value = words.value(option)?;
                *mode = Some(match &*value {
                    "random" => Mode::Random,
                    "nth" => Mode::Nth,
                    _ => return Err(format!("{option} {value:?} is neither random nor nth")),
                });
            }
            "--probability" => {
                let value = negatable(option, not, words)?;
                *negated = std::mem::take(not);
                let probability: f64 = value.parse().unwrap_or(f64::NAN);
                if !(0.0..=1.0).contains(&probability) {
                    return Err(format!("{option} {value:?} is not a number from 0 to 1"));
                }
                // As libxt_statistic does it: lround(2^31 * p).
                *threshold = Some((f64::from(1u32 << 31) * probability).round() as u32);
            }
            "--every" => {
                let value = negatable(option, not, words)?;
                *negated = std::mem::take(not);
                let number = number(&value)?;
                if number == 0 {
                    return Err(format!("{option} 0: it counts from 1"));
                }
                *every = Some(number);
            }
            "--packet" => *packet = number(&words.value(option)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn recent(&mut self, option: &str, not: &mut bool, words: &mut Words<'_>) -> Result<bool, String> {
        let Parts::Recent { negated, action, recent } = &mut self.parts else { return Ok(false) };
        let act = match option {
            "--set" => Some(RecentAction::Set),
            "--rcheck" => Some(RecentAction::Check),
            "--update" => Some(RecentAction::Update),
            "--remove" => Some(RecentAction::Remove),
            _ => None,
        };
        if let Some(act) = act {
            *negated = std::mem::take(not) | words.take_not();
            return match action.replace(act) {
                Some(_) => Err(format!("{option}: the list is asked for something already")),
                None => Ok(true),
            };
        }
        match option {
            "--name" => recent.name = words.value(option)?.into_owned(),
            "--seconds" => recent.seconds = Some(number(&words.value(option)?)?),
            "--hitcount" => recent.hitcount = Some(number(&words.value(option)?)?),
            "--reap" => recent.reap = true,
            "--rsource" => recent.side = Side::Source,
            "--rdest" => recent.side = Side::Destination,
            "--mask" => recent.mask = mask::<A>(&words.value(option)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The conditions, once all options are read.
    pub(super) fn finish(
        mut self,
        protocol: Option<(bool, Protocol)>,
        to: &mut Vec<Match<A>>,
    ) -> Result<(), String> {
        let name = self.kind.name();
        match std::mem::replace(&mut self.parts, Parts::None) {
            Parts::None => {}
            Parts::Limit { rate, burst } => {
                let rate = rate.as_deref().unwrap_or("3/hour");
                let burst = burst.as_deref().unwrap_or("5");
                let test = Test::Limit(format!("--limit {rate} --limit-burst {burst}"));
                self.matches.push(Match { negated: false, test });
            }
            Parts::Interface(side) => {
                for it in &mut self.matches {
                    if let Test::AddressType { limit, .. } = &mut it.test {
                        *limit = side;
                    }
                }
            }
            Parts::Statistic { negated, mode, threshold, every, packet } => {
                let test = match (mode, threshold, every) {
                    (Some(Mode::Random), Some(threshold), None) if packet == 0 => Test::Random { threshold },
                    (Some(Mode::Nth), None, Some(every)) if packet < every => Test::Nth { every, packet },
                    (Some(Mode::Nth), None, Some(every)) => {
                        return Err(format!("--packet {packet} is not below --every {every}"));
                    }
                    _ => {
                        return Err(
                            "-m statistic needs --mode random --probability, or --mode nth --every".into()
                        );
                    }
                };
                self.matches.push(Match { negated, test });
            }
            Parts::Recent { negated, action, mut recent } => {
                recent.action = action.ok_or("-m recent needs --set, --rcheck, --update or --remove")?;
                let looks = matches!(recent.action, RecentAction::Check | RecentAction::Update);
                if !looks && (recent.seconds.is_some() || recent.hitcount.is_some()) {
                    return Err("--seconds and --hitcount stand with --rcheck or --update only".into());
                }
                if recent.reap && recent.seconds.is_none_or(|seconds| seconds == 0) {
                    return Err("--reap needs --seconds".into());
                }
                self.matches.push(Match { negated, test: Test::Recent(*recent) });
            }
        }
        let own: Option<&[Protocol]> = match self.kind {
            Kind::Tcp => Some(&[Protocol::TCP]),
            Kind::Udp => Some(&[Protocol::UDP]),
            Kind::Sctp => Some(&[Protocol::SCTP]),
            Kind::Icmp if A::VERSION == 4 => Some(&[Protocol::ICMP]),
            Kind::Icmp => Some(&[Protocol::ICMPV6]),
            Kind::Multiport => Some(WITH_PORTS),
            _ => None,
        };
        if let Some(own) = own
            && !protocol.is_some_and(|(negated, protocol)| !negated && own.contains(&protocol))
        {
            let names: Vec<_> = own.iter().map(|it| super::print::protocol_name(*it)).collect();
            return Err(format!("-m {name} needs -p {}", names.join(", ")));
        }
        if self.matches.is_empty() && !matches!(self.kind, Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::Icmp) {
            return Err(format!("-m {name} without an option says nothing"));
        }
        to.append(&mut self.matches);
        Ok(())
    }
}

/// The protocols whose ports `-m multiport`, DNAT and the others of nat know: TCP, UDP, SCTP, DCCP, UDP-Lite.
pub(super) const WITH_PORTS: &[Protocol] =
    &[Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol(33), Protocol(136)];

/// The value of an option that may be negated, in the old position (`--dport ! 80`) too.
fn negatable<'a>(
    option: &str,
    not: &mut bool,
    words: &mut Words<'a>,
) -> Result<std::borrow::Cow<'a, str>, String> {
    if words.take_not() && std::mem::replace(not, true) {
        return Err(format!("two ! with {option}"));
    }
    words.value(option)
}

fn mark_test(option: &str, not: &mut bool, words: &mut Words<'_>) -> Result<MarkTest, String> {
    let (value, mask) =
        mark(&negatable(option, not, words)?).map_err(|error| format!("{option}: {error}"))?;
    Ok(MarkTest { value, mask })
}

/// The states by name.
pub(super) const STATES: &[(&str, States)] = &[
    ("INVALID", States::INVALID),
    ("NEW", States::NEW),
    ("RELATED", States::RELATED),
    ("ESTABLISHED", States::ESTABLISHED),
    ("UNTRACKED", States::UNTRACKED),
];

/// The statuses that `--ctstate` takes for states.
pub(super) const STATUSES: &[(&str, States)] = &[("SNAT", States::SNAT), ("DNAT", States::DNAT)];

fn states(text: &str, known: &[(&str, States)]) -> Result<States, String> {
    let mut all = States::default();
    for word in text.split(',') {
        let state = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
        all = all.with(state.ok_or_else(|| format!("{word:?} is not a state of a connection"))?.1);
    }
    Ok(all)
}

/// The kernel's names of address types, by number.
pub(super) const ADDRESS_TYPES: [&str; 12] = [
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
];

fn address_types<A: Family>(text: &str) -> Result<AddressTypes, String> {
    let mut bits = 0;
    for word in text.split(',') {
        let at = ADDRESS_TYPES.iter().position(|name| name.eq_ignore_ascii_case(word));
        let at = at.ok_or_else(|| format!("{word:?} is not a type of addresses"))?;
        // xt_addrtype knows no others of IPv6.
        if A::VERSION == 6 && !matches!(at, 0 | 1 | 2 | 4 | 5 | 7) {
            return Err(format!("addrtype does not know {word} for IPv6"));
        }
        bits |= 1 << at;
    }
    Ok(AddressTypes(bits))
}

/// TCP's flags by name, lowest bit first.
pub(super) const TCP_FLAGS: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];

fn tcp_flags(text: &str) -> Result<u8, String> {
    let mut flags = 0;
    for word in text.split(',') {
        flags |= match word {
            "ALL" => 0x3f,
            "NONE" => 0,
            _ => match TCP_FLAGS.iter().position(|name| *name == word) {
                Some(bit) => 1 << bit,
                None => return Err(format!("{word:?} is not a TCP flag")),
            },
        };
    }
    Ok(flags)
}

fn physdev(option: &str, not: &mut bool, words: &mut Words<'_>) -> Result<Option<Physdev>, String> {
    Ok(Some(match option {
        "--physdev-is-in" => Physdev::IsIn,
        "--physdev-is-out" => Physdev::IsOut,
        "--physdev-is-bridged" => Physdev::IsBridged,
        "--physdev-in" => Physdev::In(interface(&negatable(option, not, words)?)?),
        "--physdev-out" => Physdev::Out(interface(&negatable(option, not, words)?)?),
        _ => return Ok(None),
    }))
}

fn sides(text: &str) -> Result<Vec<Side>, String> {
    let sides: Result<Vec<_>, String> = text
        .split(',')
        .map(|word| match word {
            "src" => Ok(Side::Source),
            "dst" => Ok(Side::Destination),
            _ => Err(format!("{word:?} is neither src nor dst")),
        })
        .collect();
    sides.and_then(|sides| match sides.len() {
        1..=6 => Ok(sides),
        _ => Err(format!("{text:?}: a set has at most six dimensions")),
    })
}
