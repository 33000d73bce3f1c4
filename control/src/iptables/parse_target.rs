//! The targets: `-j NAME` and their options.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use pollux_dataplane::packet::{Family, Protocol};

use super::parse_match::WITH_PORTS;
use super::parse_words::{Words, address, mark, number, port_range};
use super::print::quoted;
use super::{ChainId, ConnMark, Nat, RandomPorts, RejectWith, Target};

/// A target as it is being read.
pub(super) enum TargetDraft<'a, A: Family> {
    Plain(Target<A>),
    Jump(Cow<'a, str>),
    Goto(Cow<'a, str>),
    Reject(Option<RejectWith>),
    Mark(Option<(u32, u32)>),
    ConnMark { action: Option<ConnMark>, ct_mask: Option<u32>, mark_mask: Option<u32> },
    Nat { name: &'static str, to: Option<To<A>>, random: RandomPorts, persistent: bool },
    Masquerade { ports: Option<RangeInclusive<u16>>, random: RandomPorts },
    Log { prefix: Option<String>, level: u32, flags: u8 },
}

/// Where NAT translates to.
pub(super) struct To<A: Family> {
    addresses: Option<(A::Addr, A::Addr)>,
    ports: Option<RangeInclusive<u16>>,
}

/// The targets that are no chains.
pub(super) const NAMES: &[&str] =
    &["ACCEPT", "DROP", "RETURN", "QUEUE", "REJECT", "MARK", "CONNMARK", "DNAT", "SNAT", "MASQUERADE", "LOG"];

/// Targets of iptables that are not modelled: an error of their own, for a chain cannot have such a name.
pub(super) const UNKNOWN: &[&str] = &[
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CLUSTERIP",
    "CONNSECMARK",
    "CT",
    "DNPT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "QUEUE",
    "RATEEST",
    "REDIRECT",
    "SECMARK",
    "SET",
    "SNPT",
    "SYNPROXY",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TPROXY",
    "TRACE",
    "TTL",
    "ULOG",
];

/// `--reject-with` of IPv4: the name that is printed, the other one, and what it is.
pub(super) const REJECTS_V4: &[(&str, &str, RejectWith)] = &[
    ("icmp-net-unreachable", "net-unreach", RejectWith::NetUnreachable),
    ("icmp-host-unreachable", "host-unreach", RejectWith::HostUnreachable),
    ("icmp-proto-unreachable", "proto-unreach", RejectWith::ProtocolUnreachable),
    ("icmp-port-unreachable", "port-unreach", RejectWith::PortUnreachable),
    ("icmp-net-prohibited", "net-prohib", RejectWith::NetProhibited),
    ("icmp-host-prohibited", "host-prohib", RejectWith::HostProhibited),
    ("tcp-reset", "tcp-rst", RejectWith::TcpReset),
    ("icmp-admin-prohibited", "admin-prohib", RejectWith::AdminProhibited),
];

/// `--reject-with` of IPv6.
pub(super) const REJECTS_V6: &[(&str, &str, RejectWith)] = &[
    ("icmp6-no-route", "no-route", RejectWith::NoRoute),
    ("icmp6-adm-prohibited", "adm-prohibited", RejectWith::AdminProhibited),
    ("icmp6-addr-unreachable", "addr-unreach", RejectWith::AddressUnreachable),
    ("icmp6-port-unreachable", "port-unreach", RejectWith::PortUnreachable),
    ("tcp-reset", "tcp-reset", RejectWith::TcpReset),
    ("icmp6-policy-fail", "policy-fail", RejectWith::PolicyFail),
    ("icmp6-reject-route", "reject-route", RejectWith::RejectRoute),
];

/// The types of one family.
pub(super) fn rejects<A: Family>() -> &'static [(&'static str, &'static str, RejectWith)] {
    if A::VERSION == 4 { REJECTS_V4 } else { REJECTS_V6 }
}

impl<'a, A: Family> TargetDraft<'a, A> {
    /// The target of `-j`: one that is known, or else a chain.
    pub(super) fn named(name: Cow<'a, str>) -> TargetDraft<'a, A> {
        let nat = |name| TargetDraft::Nat { name, to: None, random: RandomPorts::Keep, persistent: false };
        match &*name {
            "ACCEPT" => TargetDraft::Plain(Target::Accept),
            "DROP" => TargetDraft::Plain(Target::Drop),
            "RETURN" => TargetDraft::Plain(Target::Return),
            "REJECT" => TargetDraft::Reject(None),
            "MARK" => TargetDraft::Mark(None),
            "CONNMARK" => TargetDraft::ConnMark { action: None, ct_mask: None, mark_mask: None },
            "DNAT" => nat("DNAT"),
            "SNAT" => nat("SNAT"),
            "MASQUERADE" => TargetDraft::Masquerade { ports: None, random: RandomPorts::Keep },
            "LOG" => TargetDraft::Log { prefix: None, level: LOG_WARNING, flags: 0 },
            _ => TargetDraft::Jump(name),
        }
    }

    /// Reads an option if it is one of the target's.
    pub(super) fn option(&mut self, option: &str, words: &mut Words<'_>) -> Result<bool, String> {
        match self {
            TargetDraft::Reject(with) if option == "--reject-with" => {
                let value = words.value(option)?;
                let known = |types: &[(&str, &str, RejectWith)]| {
                    types.iter().find(|(name, short, _)| *name == value || *short == value).map(|it| it.2)
                };
                *with =
                    Some(known(rejects::<A>()).ok_or_else(
                        || match known(REJECTS_V4).or(known(REJECTS_V6)) {
                            Some(_) => format!("{option} {value} is of the other family"),
                            None => format!("{option} {value:?} is not known"),
                        },
                    )?);
            }
            TargetDraft::Mark(action) => {
                let Some(set) = mark_option(option, words)? else { return Ok(false) };
                if action.replace(set).is_some() {
                    return Err(format!("{option}: MARK does one thing only"));
                }
            }
            TargetDraft::ConnMark { .. } => return self.conn_mark(option, words),
            TargetDraft::Nat { .. } => return self.nat(option, words),
            TargetDraft::Masquerade { ports, random } => match option {
                "--to-ports" => *ports = Some(port_range(&words.value(option)?, '-')?),
                "--random" if *random == RandomPorts::Keep => *random = RandomPorts::Random,
                "--random" => {}
                "--random-fully" => *random = RandomPorts::Fully,
                _ => return Ok(false),
            },
            TargetDraft::Log { prefix, level, flags } => match option {
                "--log-level" => {
                    let value = words.value(option)?;
                    *level = log_level(&value).ok_or_else(|| format!("{option} {value:?} is not known"))?;
                }
                "--log-prefix" => *prefix = Some(words.value(option)?.into_owned()),
                _ => match LOG_FLAGS.iter().position(|name| *name == option) {
                    Some(bit) => *flags |= 1 << bit,
                    None => return Ok(false),
                },
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn conn_mark(&mut self, option: &str, words: &mut Words<'_>) -> Result<bool, String> {
        let TargetDraft::ConnMark { action, ct_mask, mark_mask } = self else { return Ok(false) };
        let act = match option {
            "--save-mark" => ConnMark::Save { ct_mask: u32::MAX, mark_mask: u32::MAX },
            "--restore-mark" => ConnMark::Restore { ct_mask: u32::MAX, mark_mask: u32::MAX },
            "--nfmask" => {
                *mark_mask = Some(number(&words.value(option)?)?);
                return Ok(true);
            }
            "--ctmask" => {
                *ct_mask = Some(number(&words.value(option)?)?);
                return Ok(true);
            }
            "--mask" => {
                let mask = number(&words.value(option)?)?;
                (*ct_mask, *mark_mask) = (Some(mask), Some(mask));
                return Ok(true);
            }
            _ => match mark_option(option, words)? {
                Some((value, mask)) => ConnMark::Set { value, mask },
                None => return Ok(false),
            },
        };
        match action.replace(act) {
            Some(_) => Err(format!("{option}: CONNMARK does one thing only")),
            None => Ok(true),
        }
    }

    fn nat(&mut self, option: &str, words: &mut Words<'_>) -> Result<bool, String> {
        let TargetDraft::Nat { name, to, random, persistent } = self else { return Ok(false) };
        match (*name, option) {
            ("DNAT", "--to-destination") | ("SNAT", "--to-source") => {
                let value = words.value(option)?;
                let place = translation(&value).map_err(|error| format!("{option} {value}: {error}"))?;
                if to.replace(place).is_some() {
                    return Err(format!("{option} stands twice"));
                }
            }
            (_, "--random") if *random == RandomPorts::Keep => *random = RandomPorts::Random,
            (_, "--random") => {}
            ("SNAT", "--random-fully") => *random = RandomPorts::Fully,
            (_, "--persistent") => *persistent = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The target, once all options are read. `chain` gives the chain of a name.
    pub(super) fn finish(
        self,
        protocol: Option<(bool, Protocol)>,
        mut chain: impl FnMut(&str) -> ChainId,
    ) -> Result<Target<A>, String> {
        let with_ports =
            || protocol.is_some_and(|(negated, protocol)| !negated && WITH_PORTS.contains(&protocol));
        Ok(match self {
            TargetDraft::Plain(target) => target,
            TargetDraft::Jump(name) if UNKNOWN.contains(&&*name) => {
                return Err(format!("-j {name} is not supported"));
            }
            TargetDraft::Goto(name) if NAMES.contains(&&*name) || UNKNOWN.contains(&&*name) => {
                return Err(format!("-g {name}: it is no chain"));
            }
            TargetDraft::Jump(name) => Target::Jump(chain(&name)),
            TargetDraft::Goto(name) => Target::Goto(chain(&name)),
            TargetDraft::Reject(with) => {
                let with = with.unwrap_or(RejectWith::PortUnreachable);
                if with == RejectWith::TcpReset && protocol != Some((false, Protocol::TCP)) {
                    return Err("--reject-with tcp-reset needs -p tcp".into());
                }
                Target::Reject(with)
            }
            TargetDraft::Mark(action) => {
                let (value, mask) = action.ok_or("MARK needs --set-mark or one of its like")?;
                Target::Mark { value, mask }
            }
            TargetDraft::ConnMark { action, ct_mask, mark_mask } => Target::ConnMark(match action {
                None => return Err("CONNMARK needs --set-mark, --save-mark or one of their like".into()),
                Some(set @ ConnMark::Set { .. }) if ct_mask.or(mark_mask).is_none() => set,
                Some(ConnMark::Set { .. }) => {
                    return Err("a mask stands with --save-mark and --restore-mark only".into());
                }
                Some(ConnMark::Save { .. }) => ConnMark::Save {
                    ct_mask: ct_mask.unwrap_or(u32::MAX),
                    mark_mask: mark_mask.unwrap_or(u32::MAX),
                },
                Some(ConnMark::Restore { .. }) => ConnMark::Restore {
                    ct_mask: ct_mask.unwrap_or(u32::MAX),
                    mark_mask: mark_mask.unwrap_or(u32::MAX),
                },
            }),
            TargetDraft::Nat { name, to, random, persistent } => {
                let option = if name == "DNAT" { "--to-destination" } else { "--to-source" };
                let To { addresses, ports } = to.ok_or_else(|| format!("{name} needs {option}"))?;
                if ports.is_some() && !with_ports() {
                    return Err(format!("{option} with a port needs -p tcp, udp or sctp"));
                }
                let nat = Nat { addresses, ports, random, persistent };
                if name == "DNAT" { Target::Dnat(nat) } else { Target::Snat(nat) }
            }
            TargetDraft::Masquerade { ports, random } => {
                if ports.is_some() && !with_ports() {
                    return Err("--to-ports needs -p tcp, udp or sctp".into());
                }
                Target::Masquerade { ports, random }
            }
            TargetDraft::Log { prefix, level, flags } => Target::Log(log_options(prefix, level, flags)),
        })
    }
}

/// The spellings that MARK and CONNMARK share, as value and mask of `--set-xmark`.
fn mark_option(option: &str, words: &mut Words<'_>) -> Result<Option<(u32, u32)>, String> {
    let (value, mask) = match option {
        "--set-xmark" => mark(&words.value(option)?)?,
        "--set-mark" => {
            let (value, mask) = mark(&words.value(option)?)?;
            (value, mask | value)
        }
        "--or-mark" => {
            let bits = number(&words.value(option)?)?;
            (bits, bits)
        }
        "--and-mark" => (0, !number(&words.value(option)?)?),
        "--xor-mark" => (number(&words.value(option)?)?, 0),
        _ => return Ok(None),
    };
    Ok(Some((value, mask)))
}

/// `[addresses][:ports]`, where an address of IPv6 stands in brackets when a port follows.
fn translation<A: Family>(text: &str) -> Result<To<A>, String> {
    let (addresses, ports) = match text.strip_prefix('[') {
        Some(rest) if A::VERSION == 6 => {
            let (inside, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
            match rest.strip_prefix(':') {
                Some(ports) => (inside, Some(ports)),
                None if rest.is_empty() => (inside, None),
                None => return Err(format!("{rest:?} is not a port after a colon")),
            }
        }
        _ => match text.split_once(':') {
            // More than one colon is an address of IPv6.
            Some((addresses, ports)) if !ports.contains(':') => (addresses, Some(ports)),
            _ => (text, None),
        },
    };
    let addresses = match addresses.split_once('-') {
        _ if addresses.is_empty() && ports.is_some() => None,
        Some((first, last)) => {
            let range = (address::<A>(first)?, address::<A>(last)?);
            if range.0 > range.1 {
                return Err("its end lies before its beginning".into());
            }
            Some(range)
        }
        None => {
            let address = address::<A>(addresses)?;
            Some((address, address))
        }
    };
    let ports = ports.map(|ports| port_range(ports, '-')).transpose()?;
    Ok(To { addresses, ports })
}

/// The level that LOG has if none is given.
const LOG_WARNING: u32 = 4;

/// LOG's options that take no value, in the order in which iptables-save prints them.
const LOG_FLAGS: [&str; 5] =
    ["--log-tcp-sequence", "--log-tcp-options", "--log-ip-options", "--log-uid", "--log-macdecode"];

/// syslog's levels, as numbers.
fn log_level(text: &str) -> Option<u32> {
    let names = ["emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"];
    let named = names.iter().position(|name| *name == text).map(|level| level as u32);
    named.or_else(|| number(text).ok()).filter(|level| *level < 8)
}

/// As iptables-save prints them, which leaves out what is not said.
fn log_options(prefix: Option<String>, level: u32, flags: u8) -> String {
    let prefix = prefix.map(|prefix| format!("--log-prefix {}", quoted(&prefix)));
    let level = (level != LOG_WARNING).then(|| format!("--log-level {level}"));
    let flags = LOG_FLAGS.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0);
    let flags = flags.map(|(_, name)| (*name).to_string());
    prefix.into_iter().chain(level).chain(flags).collect::<Vec<_>>().join(" ")
}
