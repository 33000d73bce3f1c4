//! The content of sets, as `ipset save` prints it: what `-m set` asks about.
//!
//! A set matches a packet as the kernel has it: of entries with prefixes that hold the packet the longest
//! decides (`nomatch` makes it say no); fewer sides than the set has dimensions, or the other family, never
//! match. Timeouts are not counted down: what the file holds is in the set.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use pollux_dataplane::packet::{Family, Prefix, Protocol, V4, V6};

use super::Side;
use super::evaluate::View;
use super::parse::Errors;
use super::parse_icmp;
use super::parse_words::{Words, number, port_range, prefix, protocol};
use crate::problem::Problems;

/// The sets of a file, of both families; of those of the other one only the names are kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sets<A: Family> {
    sets: Vec<Set<A>>,
    index: HashMap<String, usize>,
}

/// A set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set<A: Family> {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: SetKind,
    /// Whether it is of the family; a port's bitmap and a list are of both.
    pub in_family: bool,
    /// What it holds, if it is no list.
    pub entries: Vec<Entry<A>>,
    /// Names of the sets it holds, if it is a list.
    pub members: Vec<String>,
    /// `netmask`: the length of what is looked at of addresses in `hash:ip` and `bitmap:ip`.
    pub netmask: u8,
}

/// The types of sets that are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "ipset's own words")]
pub enum SetKind {
    HashIp,
    HashNet,
    HashIpPort,
    HashIpPortIp,
    HashIpPortNet,
    HashNetPort,
    BitmapIp,
    BitmapPort,
    ListSet,
}

/// An entry of a set: what it names must hold all together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry<A: Family> {
    /// The address or prefix of the first dimension.
    pub address: Option<Prefix<A>>,
    /// The ports: of the second dimension, or of the first of `bitmap:port`.
    pub ports: Option<Ports>,
    /// The address or prefix of the third dimension.
    pub other: Option<Prefix<A>>,
    /// Whether it says no.
    pub nomatch: bool,
}

/// Ports of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ports {
    /// The protocol; nothing for TCP and UDP, in `bitmap:port`.
    pub protocol: Option<Protocol>,
    /// The ports; of ICMP, `type * 256 + code`; of a protocol without ports, 0.
    pub ports: RangeInclusive<u16>,
}

impl SetKind {
    const NAMES: [(&'static str, SetKind); 9] = [
        ("hash:ip", SetKind::HashIp),
        ("hash:net", SetKind::HashNet),
        ("hash:ip,port", SetKind::HashIpPort),
        ("hash:ip,port,ip", SetKind::HashIpPortIp),
        ("hash:ip,port,net", SetKind::HashIpPortNet),
        ("hash:net,port", SetKind::HashNetPort),
        ("bitmap:ip", SetKind::BitmapIp),
        ("bitmap:port", SetKind::BitmapPort),
        ("list:set", SetKind::ListSet),
    ];

    /// How many sides a condition must name.
    pub fn dimensions(self) -> usize {
        match self {
            SetKind::HashIp
            | SetKind::HashNet
            | SetKind::BitmapIp
            | SetKind::BitmapPort
            | SetKind::ListSet => 1,
            SetKind::HashIpPort | SetKind::HashNetPort => 2,
            SetKind::HashIpPortIp | SetKind::HashIpPortNet => 3,
        }
    }
}

/// Reads what `ipset save` prints.
///
/// # Errors
/// Everything that is wrong with the text or not known, each with its line.
pub fn parse<A: Family>(file: Option<Arc<Path>>, text: &str) -> Result<Sets<A>, Problems> {
    let mut errors = Errors::new(file);
    let mut sets = Sets::default();
    let mut words = Words::default();
    // Where lists name sets, which may stand behind them.
    let mut named = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if errors.are_enough() {
            break;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(error) = sets.line(number, line, &mut words, &mut named) {
            errors.at(number, error);
        }
    }
    for (line, list, member) in named {
        match sets.get(&member) {
            None => errors.at(line, format!("{list}: set {member} is not in the file")),
            Some(set) if set.kind == SetKind::ListSet => {
                errors.at(line, format!("{list}: {member} is a list itself"));
            }
            Some(_) => {}
        }
    }
    errors.finish(sets)
}

impl<A: Family> Sets<A> {
    /// The set called `name`.
    pub fn get(&self, name: &str) -> Option<&Set<A>> {
        self.index.get(name).map(|at| &self.sets[*at])
    }

    /// All sets, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Set<A>> {
        self.sets.iter()
    }

    /// The sets that the one called `name` is made of: those that a list names, else itself. Their entries
    /// are all constants that its conditions compare with.
    pub fn parts<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Set<A>> {
        let set = self.get(name);
        let members = set.into_iter().flat_map(|set| &set.members);
        let own = set.filter(|set| set.kind != SetKind::ListSet);
        own.into_iter().chain(members.filter_map(|member| self.get(member)))
    }

    /// Whether the set called `name` holds a packet, or nothing if there is no such set.
    pub fn contains(&self, name: &str, sides: &[Side], view: &View<A>) -> Option<bool> {
        self.get(name)?;
        Some(self.parts(name).any(|set| set.contains(sides, view)))
    }

    fn line<'a>(
        &mut self,
        number: u32,
        line: &'a str,
        words: &mut Words<'a>,
        named: &mut Vec<(u32, String, String)>,
    ) -> Result<(), String> {
        words.split(line)?;
        let command = words.value("the line")?;
        let name = words.value(&command)?;
        match &*command {
            "create" => {
                if self.index.contains_key(&*name) {
                    return Err(format!("set {name} is created twice"));
                }
                let set = Set::create(name.into_owned(), words)?;
                self.index.insert(set.name.clone(), self.sets.len());
                self.sets.push(set);
                Ok(())
            }
            "add" => {
                let at = self.index.get(&*name).ok_or_else(|| format!("set {name} was not created"))?;
                let set = &mut self.sets[*at];
                let before = set.members.len();
                set.add(words)?;
                let members = &set.members[before..];
                named.extend(members.iter().map(|member| (number, set.name.clone(), member.clone())));
                Ok(())
            }
            _ => Err(format!("{command:?} is neither create nor add")),
        }
    }
}

impl<A: Family> Set<A> {
    /// Whether the set, if it is no list, holds a packet.
    pub fn contains(&self, sides: &[Side], view: &View<A>) -> bool {
        if !self.in_family || sides.len() < self.kind.dimensions() {
            return false;
        }
        let held = self.entries.iter().filter(|entry| self.holds(entry, sides, view));
        let length = |entry: &&Entry<A>| {
            let length = |prefix: Option<Prefix<A>>| prefix.map_or(0, |prefix| u32::from(prefix.len()));
            length(entry.address) + length(entry.other)
        };
        held.max_by_key(length).is_some_and(|entry| !entry.nomatch)
    }

    fn holds(&self, entry: &Entry<A>, sides: &[Side], view: &View<A>) -> bool {
        let address = |side: Side| match side {
            Side::Source => view.source,
            Side::Destination => view.destination,
        };
        let first = entry.address.is_none_or(|prefix| {
            let looked_at = Prefix::<A>::new(address(sides[0]), self.netmask).address();
            prefix.contains(looked_at)
        });
        let ports = entry.ports.as_ref().is_none_or(|ports| {
            let side = if self.kind == SetKind::BitmapPort { sides[0] } else { sides[1] };
            ports.contain(side, view)
        });
        first && ports && entry.other.is_none_or(|prefix| prefix.contains(address(sides[2])))
    }

    /// `create NAME` was read.
    fn create(name: String, words: &mut Words<'_>) -> Result<Set<A>, String> {
        let kind = words.value("create")?;
        let kind = SetKind::NAMES.iter().find(|(name, _)| *name == kind);
        let kind = kind.ok_or_else(|| format!("set {name}: its type is not supported"))?.1;
        let mut set = Set {
            name,
            kind,
            in_family: matches!(kind, SetKind::BitmapPort | SetKind::ListSet) || A::VERSION == 4,
            entries: Vec::new(),
            members: Vec::new(),
            netmask: A::BITS,
        };
        let mut netmask = None;
        while let Some(word) = words.next() {
            match &*word.text {
                "family" => {
                    set.in_family = match &*words.value("family")? {
                        "inet" => A::VERSION == 4,
                        "inet6" => A::VERSION == 6,
                        other => return Err(format!("family {other:?} is neither inet nor inet6")),
                    }
                }
                "netmask" if matches!(kind, SetKind::HashIp | SetKind::BitmapIp) => {
                    netmask = Some(number(&words.value("netmask")?)?);
                }
                "range" | "hashsize" | "maxelem" | "bucketsize" | "initval" | "timeout" | "size" => {
                    words.value(&word.text)?;
                }
                "counters" | "comment" | "skbinfo" | "forceadd" => {}
                other => return Err(format!("set {}: {other:?} is not known", set.name)),
            }
        }
        if let (Some(length), true) = (netmask, set.in_family) {
            let length = u8::try_from(length).ok().filter(|length| (1..=A::BITS).contains(length));
            set.netmask = length.ok_or_else(|| format!("set {}: its netmask is no length", set.name))?;
        }
        Ok(set)
    }

    /// `add NAME` was read.
    fn add(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let item = words.value("add")?.into_owned();
        let mut nomatch = false;
        while let Some(word) = words.next() {
            match &*word.text {
                "timeout" | "packets" | "bytes" | "comment" | "skbmark" | "skbprio" | "skbqueue" => {
                    words.value(&word.text)?;
                }
                "nomatch" => nomatch = true,
                other => return Err(format!("{item}: {other:?} is not known")),
            }
        }
        if self.kind == SetKind::ListSet {
            self.members.push(item);
            return Ok(());
        }
        // Entries of the other family are read too, so that a mistake in them is said.
        if self.in_family {
            self.entries.push(Entry { nomatch, ..entry(self.kind, &item)? });
        } else if A::VERSION == 4 {
            entry::<V6>(self.kind, &item)?;
        } else {
            entry::<V4>(self.kind, &item)?;
        }
        Ok(())
    }
}

impl Ports {
    fn contain<A: Family>(&self, side: Side, view: &View<A>) -> bool {
        let port = match (view.protocol, side) {
            (protocol, _) if protocol == A::ICMP => u16::from_be_bytes([view.icmp.0, view.icmp.1]),
            // UDP-Lite has ports too.
            (protocol, _) if !protocol.has_ports() && protocol.0 != 136 => 0,
            (_, Side::Source) => view.source_port,
            (_, Side::Destination) => view.destination_port,
        };
        let protocol = match self.protocol {
            Some(protocol) => view.protocol == protocol,
            None => matches!(view.protocol, Protocol::TCP | Protocol::UDP),
        };
        protocol && self.ports.contains(&port)
    }
}

fn entry<A: Family>(kind: SetKind, text: &str) -> Result<Entry<A>, String> {
    let host = |text: &str| {
        prefix::<A>(text).and_then(|prefix| match prefix.len() == A::BITS {
            true => Ok(prefix),
            false => Err(format!("{text:?} is not one address")),
        })
    };
    let net = |text: &str| {
        prefix::<A>(text).and_then(|prefix| match prefix.len() {
            0 => Err(format!("{text:?}: a set holds no prefix of length 0")),
            _ => Ok(prefix),
        })
    };
    let parts: Vec<&str> = text.split(',').collect();
    let (address, ports, other) = match (kind, &parts[..]) {
        (SetKind::HashIp | SetKind::BitmapIp, [address]) => (Some(host(address)?), None, None),
        (SetKind::HashNet, [address]) => (Some(net(address)?), None, None),
        (SetKind::HashIpPort, [address, port]) => (Some(host(address)?), Some(ports::<A>(port)?), None),
        (SetKind::HashNetPort, [address, port]) => (Some(net(address)?), Some(ports::<A>(port)?), None),
        (SetKind::HashIpPortIp, [address, port, other]) => {
            (Some(host(address)?), Some(ports::<A>(port)?), Some(host(other)?))
        }
        (SetKind::HashIpPortNet, [address, port, other]) => {
            (Some(host(address)?), Some(ports::<A>(port)?), Some(net(other)?))
        }
        (SetKind::BitmapPort, [port]) => {
            (None, Some(Ports { protocol: None, ports: port_range(port, '-')? }), None)
        }
        _ => return Err(format!("{text:?} has not as many parts as the set has dimensions")),
    };
    Ok(Entry { address, ports, other, nomatch: false })
}

/// `[protocol:]port`
fn ports<A: Family>(text: &str) -> Result<Ports, String> {
    let Some((name, port)) = text.split_once(':') else {
        return Ok(Ports { protocol: Some(Protocol::TCP), ports: port_range(text, '-')? });
    };
    let protocol = protocol(name)?;
    let ports = match protocol == A::ICMP {
        true => {
            let (kind, codes) = parse_icmp::read::<A>(port)?.ok_or("a set holds no ICMP type `any`")?;
            let number = u16::from_be_bytes([kind, *codes.start()]);
            number..=number
        }
        false => port_range(port, '-')?,
    };
    Ok(Ports { protocol: Some(protocol), ports })
}

#[cfg(test)]
#[path = "ipset_tests.rs"]
mod tests;
