//! One rule: `-A CHAIN` and what stands behind it.
//!
//! The built-in conditions come first in the result, in iptables-save's order, and those of the modules
//! follow in the order of their `-m`: the order in which the kernel asks, which is what decides whether a
//! `recent --set` behind a condition that fails notes anything.

use pollux_dataplane::packet::{Family, Prefix, Protocol};

use super::parse_match::{Kind, Module};
use super::parse_target::TargetDraft;
use super::parse_words::{Word, Words, interface, number, prefix, protocol};
use super::{Interface, Match, Rule, Test};

/// A rule as it is being read.
pub(super) struct Draft<'a, A: Family> {
    /// The chain it is appended to.
    pub(super) chain: std::borrow::Cow<'a, str>,
    sources: Option<(bool, Vec<Prefix<A>>)>,
    destinations: Option<(bool, Vec<Prefix<A>>)>,
    in_interface: Option<(bool, Interface)>,
    out_interface: Option<(bool, Interface)>,
    /// `-p`, with whether it is negated.
    pub(super) protocol: Option<(bool, Protocol)>,
    modules: Vec<Module<A>>,
    /// The target, and how many modules stood before it.
    target: Option<(TargetDraft<'a, A>, usize)>,
    comment: Option<String>,
}

/// Reads `-A CHAIN ...`, counters already taken off.
pub(super) fn read<'a, A: Family>(words: &mut Words<'a>) -> Result<Draft<'a, A>, String> {
    let command = words.value("the line")?;
    if command != "-A" && command != "--append" {
        return Err(format!("{command:?} is not -A: only rules that are appended are read"));
    }
    let mut draft = Draft {
        chain: words.value("-A")?,
        sources: None,
        destinations: None,
        in_interface: None,
        out_interface: None,
        protocol: None,
        modules: Vec::with_capacity(3),
        target: None,
        comment: None,
    };
    let mut negated = false;
    while let Some(Word { text: option, quoted }) = words.next() {
        if option == "!" && !quoted {
            if negated {
                return Err("two ! in a row".into());
            }
            negated = true;
            continue;
        }
        draft.option(&option, &mut negated, words)?;
        if negated {
            return Err(format!("! cannot stand with {option}"));
        }
    }
    match negated {
        true => Err("! at the end of the rule".into()),
        false => Ok(draft),
    }
}

impl<'a, A: Family> Draft<'a, A> {
    /// Reads an option; `negated` says whether `!` stood before it and is cleared if it was used.
    fn option(&mut self, option: &str, negated: &mut bool, words: &mut Words<'a>) -> Result<(), String> {
        let mut not = |words: &mut Words<'a>| {
            let after = words.take_not();
            match std::mem::take(negated) {
                true if after => Err(format!("two ! with {option}")),
                before => Ok(before || after),
            }
        };
        match option {
            "-s" | "--source" | "--src" => {
                let negated = not(words)?;
                let list =
                    prefixes(&words.value(option)?, negated).map_err(|error| format!("-s: {error}"))?;
                once(&mut self.sources, (negated, list), option)
            }
            "-d" | "--destination" | "--dst" => {
                let negated = not(words)?;
                let list =
                    prefixes(&words.value(option)?, negated).map_err(|error| format!("-d: {error}"))?;
                once(&mut self.destinations, (negated, list), option)
            }
            "-i" | "--in-interface" => {
                let negated = not(words)?;
                if matches!(&*self.chain, "OUTPUT" | "POSTROUTING") {
                    return Err(format!("-i has no meaning in {}", self.chain));
                }
                once(&mut self.in_interface, (negated, interface(&words.value(option)?)?), option)
            }
            "-o" | "--out-interface" => {
                let negated = not(words)?;
                if matches!(&*self.chain, "PREROUTING" | "INPUT") {
                    return Err(format!("-o has no meaning in {}", self.chain));
                }
                once(&mut self.out_interface, (negated, interface(&words.value(option)?)?), option)
            }
            "-p" | "--protocol" | "--proto" => {
                let negated = not(words)?;
                let value = words.value(option)?;
                let protocol = protocol(&value)?;
                if negated && protocol.0 == 0 {
                    return Err(format!("! -p {value} never holds"));
                }
                once(&mut self.protocol, (negated, protocol), option)
            }
            "-c" | "--set-counters" => {
                number(&words.value(option)?)?;
                number(&words.value(option)?)?;
                Ok(())
            }
            "-m" | "--match" => {
                let name = words.value(option)?;
                self.modules.push(Module::new(Kind::named::<A>(&name)?));
                Ok(())
            }
            "-j" | "--jump" | "-g" | "--goto" => {
                if self.target.is_some() {
                    return Err(format!("{option}: the rule has a target already"));
                }
                let name = words.value(option)?;
                let target = match option {
                    "-g" | "--goto" => TargetDraft::Goto(name),
                    _ => TargetDraft::named(name),
                };
                self.target = Some((target, self.modules.len()));
                Ok(())
            }
            "--comment" if self.modules.iter().any(|module| module.kind == Kind::Comment) => {
                let text = words.value(option)?;
                match &mut self.comment {
                    Some(comment) => {
                        comment.push(' ');
                        comment.push_str(&text);
                    }
                    None => self.comment = Some(text.into_owned()),
                }
                Ok(())
            }
            _ => self.extension(option, negated, words),
        }
    }

    /// An option of a module or of the target: of the one that was named last, as iptables has it.
    fn extension(&mut self, option: &str, negated: &mut bool, words: &mut Words<'a>) -> Result<(), String> {
        let place = self.target.as_ref().map(|(_, place)| *place);
        for at in (0..=self.modules.len()).rev() {
            if Some(at) == place
                && let Some((target, _)) = &mut self.target
                && target.option(option, words)?
            {
                return Ok(());
            }
            if at > 0 && self.modules[at - 1].option(option, negated, words)? {
                return Ok(());
            }
        }
        // The module of the protocol need not be named.
        let implied = self.protocol.filter(|(negated, _)| !negated).and_then(|(_, it)| Kind::of_protocol(it));
        if let Some(kind) = implied
            && !self.modules.iter().any(|module| module.kind == kind)
        {
            let mut module = Module::new(kind);
            if module.option(option, negated, words)? {
                self.modules.push(module);
                return Ok(());
            }
        }
        let hint = match option {
            "--sport" | "--dport" | "--source-port" | "--destination-port" | "--tcp-flags" | "--syn" => {
                " without -p tcp, udp or sctp before it"
            }
            _ => "",
        };
        Err(format!("{option}{hint} is not known here"))
    }

    /// The rules that the line stands for: one for each pair of the addresses in its lists. `chain` gives the
    /// chain of a name that is jumped to.
    pub(super) fn finish(
        self,
        line: u32,
        chain: impl FnMut(&str) -> super::ChainId,
    ) -> Result<Vec<Rule<A>>, String> {
        let mut comment = self.comment.map(String::into_boxed_str);
        let mut tail = Vec::new();
        tail.extend(self.in_interface.map(|(negated, it)| Match { negated, test: Test::InInterface(it) }));
        tail.extend(self.out_interface.map(|(negated, it)| Match { negated, test: Test::OutInterface(it) }));
        let protocol = self.protocol.filter(|(_, it)| it.0 != 0);
        tail.extend(protocol.map(|(negated, it)| Match { negated, test: Test::Protocol(it) }));
        for module in self.modules {
            if module.kind == Kind::Comment {
                if comment.is_none() {
                    return Err("-m comment needs --comment".into());
                }
                continue;
            }
            module.finish(protocol, &mut tail)?;
        }
        let target = match self.target {
            Some((target, _)) => target.finish(protocol, chain)?,
            None => super::Target::None,
        };
        let (not_source, sources) = self.sources.unwrap_or_default();
        let (not_destination, destinations) = self.destinations.unwrap_or_default();
        let count = sources.len().max(1) * destinations.len().max(1);
        let mut rules = Vec::with_capacity(count);
        for source in each(&sources) {
            for destination in each(&destinations) {
                let mut matches = Vec::with_capacity(tail.len() + 2);
                matches.extend(source.map(|it| Match { negated: not_source, test: Test::Source(it) }));
                matches.extend(
                    destination.map(|it| Match { negated: not_destination, test: Test::Destination(it) }),
                );
                let last = rules.len() + 1 == count;
                if last {
                    matches.append(&mut tail);
                } else {
                    matches.extend(tail.iter().cloned());
                }
                let comment = if last { comment.take() } else { comment.clone() };
                rules.push(Rule { matches, target: target.clone(), comment, line });
            }
        }
        Ok(rules)
    }
}

/// Each of the list, or nothing once.
fn each<T: Copy>(list: &[T]) -> impl Iterator<Item = Option<T>> {
    list.iter().copied().map(Some).chain(list.is_empty().then_some(None))
}

fn prefixes<A: Family>(text: &str, negated: bool) -> Result<Vec<Prefix<A>>, String> {
    if negated && text.contains(',') {
        return Err(format!("! cannot stand with a list ({text})"));
    }
    text.split(',').map(prefix).collect()
}

fn once<T>(place: &mut Option<T>, value: T, option: &str) -> Result<(), String> {
    match place.replace(value) {
        Some(_) => Err(format!("{option} stands twice")),
        None => Ok(()),
    }
}
