//! What is to be proven: a folder with objects and rules, files that were named one by one, or two files of
//! rules.
//!
//! A folder is a case (`case.json`, `iptables-save.txt` of its family) or a scenario (`objects.yaml`,
//! `proxy-config.yaml`, `iptables-save.txt` and `ip6tables-save.txt` or one of them); objects and rules may be
//! packed with gzip. Other files in it are not read.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pollux_dataplane::packet::{Address, Family, V4, V6};
use pollux_dataplane::tables::Match;
use serde::Serialize;

use super::cases::{self, Case, CaseFamily};
use super::prove::{PodInterface, Proof, Right};
use super::report::Report;
use super::rules::Rules;
use super::tables::{MasqueradeRule, Tables};
use crate::agent::{Inputs, Sources};
use crate::config::node::{self, NodeConfig};
use crate::config::proxy::DetectLocal;
use crate::document;
use crate::iptables::Ruleset;
use crate::iptables::ipset::{self, Sets};
use crate::iptables::parse::parse;
use crate::problem::{Problem, Problems};
use crate::translate::{Input, Translation, translate};

/// A rule set and what it was compared with.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// Of the folder, or the file.
    pub name: String,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// What came out.
    #[serde(flatten)]
    pub report: Report,
}

/// The answer about a rule set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// For every packet.
    Equal,
    /// Not for the packets that are named.
    Different,
    /// It depends on something that is not known.
    Undecided,
}

impl Report {
    /// The answer. A packet that is treated differently whatever is not known decides.
    pub fn answer(&self) -> Answer {
        match (self.counterexamples.is_empty(), self.undecided.is_empty()) {
            (false, _) => Answer::Different,
            (true, false) => Answer::Undecided,
            (true, true) => Answer::Equal,
        }
    }
}

/// The rules of a node, file by file.
#[derive(Clone, Debug, Default)]
pub struct RuleFiles {
    /// What `iptables-save` printed.
    pub v4: Option<PathBuf>,
    /// What `ip6tables-save` did.
    pub v6: Option<PathBuf>,
    /// What `ipset save` did.
    pub sets: Option<PathBuf>,
}

/// Compares the tables that `input` compiles to with rules.
pub fn against_tables<A: Family>(
    rules: &Ruleset<A>,
    sets: &Sets<A>,
    input: &Input<'_>,
    node: Option<&NodeConfig>,
) -> Report {
    proof(rules, sets, &translate::<A>(input), input, node).run(Some(input))
}

/// Compares tables with rules: those that `input` compiles to, or others for its node and configuration. No
/// packet goes through the forwarder, which compiles its own.
pub fn against_translation<A: Family>(
    rules: &Ruleset<A>,
    sets: &Sets<A>,
    translation: &Translation<A>,
    input: &Input<'_>,
    node: Option<&NodeConfig>,
) -> Report {
    proof(rules, sets, translation, input, node).run(None)
}

fn proof<'a, A: Family>(
    rules: &'a Ruleset<A>,
    sets: &'a Sets<A>,
    translation: &'a Translation<A>,
    input: &Input<'_>,
    node: Option<&NodeConfig>,
) -> Proof<'a, A> {
    let pods = match &input.proxy.detect_local {
        DetectLocal::ClusterCidr | DetectLocal::NodeCidr => PodInterface::None,
        DetectLocal::BridgeInterface(name) => PodInterface::Named(name.clone()),
        DetectLocal::InterfaceNamePrefix(prefix) => PodInterface::Prefix(prefix.clone()),
    };
    let masquerade = node.map_or_else(Vec::new, masquerade_rules);
    let tables = Tables::new(translation, masquerade);
    let local = input.local_addresses::<A>();
    Proof::new(Rules::new(rules, sets), Right::Tables(Box::new(tables)), &local, pods)
}

/// Compares two rule sets.
pub fn against_rules<A: Family>(
    left: &Ruleset<A>,
    right: &Ruleset<A>,
    sets: &Sets<A>,
    local: &[A::Addr],
) -> Report {
    let (left, right) = (Rules::new(left, sets), Rules::new(right, sets));
    Proof::new(left, Right::Rules(Box::new(right)), local, PodInterface::None).run(None)
}

/// The masquerade rules of Pollux's own configuration, by interface.
fn masquerade_rules<A: Family>(config: &NodeConfig) -> Vec<MasqueradeRule<A>> {
    let interface = |name: &String| {
        let port = config.ports.iter().find(|port| port.name == *name);
        port.map_or_else(|| name.clone(), |port| port.interface.clone())
    };
    let rule = |rule: &node::MasqueradeRule| {
        Some(MasqueradeRule {
            source: crate::node::of_family(rule.source.as_ref())?,
            destination: crate::node::of_family(rule.destination.as_ref())?,
            out: rule.out_port.as_ref().map(|out| match out {
                node::Match::Is(name) => Match::Is(interface(name)),
                node::Match::IsNot(name) => Match::Not(interface(name)),
            }),
        })
    };
    config.masquerade_rules.iter().filter_map(rule).collect()
}

/// The folders among `paths`, searched to the bottom, in name order.
///
/// # Errors
/// Directories that cannot be read.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Problems> {
    let mut found = BTreeSet::new();
    for path in paths {
        search(path, &mut found)?;
    }
    Ok(found.into_iter().collect())
}

fn search(path: &Path, found: &mut BTreeSet<PathBuf>) -> Result<(), Problems> {
    let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
    if folder.join(cases::FILE_NAME).is_file() || packed(folder, OBJECTS).is_some() {
        found.insert(folder.to_path_buf());
        return Ok(());
    }
    let entries = std::fs::read_dir(path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    for entry in entries.map_err(|error| problem(path, error.to_string()))? {
        if entry.path().is_dir() {
            search(&entry.path(), found)?;
        }
    }
    Ok(())
}

const OBJECTS: &str = "objects.yaml";
const CONFIG: &str = "proxy-config.yaml";
const RULES: &str = "iptables-save.txt";
const RULES6: &str = "ip6tables-save.txt";

/// A file of the folder, as it is or packed.
fn packed(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(name), folder.join(format!("{name}.gz"))].into_iter().find(|path| path.is_file())
}

fn problem(file: &Path, text: String) -> Problems {
    Problems(vec![Problem { file: Some(file.into()), object: String::new(), text }])
}

/// Compares what is in a folder; and warnings about what was read.
///
/// # Errors
/// Everything that is wrong with its files.
pub fn verify_folder(folder: &Path, local: &[IpAddr]) -> Result<(Vec<Verified>, Vec<Problem>), Problems> {
    let case = folder.join(cases::FILE_NAME);
    if case.is_file() {
        return verify_case(&case, &folder.join(RULES));
    }
    let objects = packed(folder, OBJECTS).ok_or_else(|| problem(folder, format!("holds no {OBJECTS}")))?;
    let config = folder.join(CONFIG);
    let files = RuleFiles { v4: packed(folder, RULES), v6: packed(folder, RULES6), sets: None };
    if files.v4.is_none() && files.v6.is_none() {
        return Err(problem(folder, format!("holds neither {RULES} nor {RULES6}")));
    }
    let sources = Sources { config: vec![config], objects: vec![objects], node: None };
    verify_sources(&name_of(folder), &sources, &files, local)
}

fn verify_case(file: &Path, rules: &Path) -> Result<(Vec<Verified>, Vec<Problem>), Problems> {
    let case = Case::load(file)?;
    let input = case.input();
    let verified = match case.family {
        CaseFamily::IPv4 => verified::<V4>(&case.name, rules, None, &input, None)?,
        CaseFamily::IPv6 => verified::<V6>(&case.name, rules, None, &input, None)?,
    };
    Ok((vec![verified], case.warnings.clone()))
}

/// Compares objects with rules; and warnings about what was read.
///
/// # Errors
/// Everything that is wrong with the files, and a node that is not among the objects.
pub fn verify_sources(
    name: &str,
    sources: &Sources,
    files: &RuleFiles,
    local: &[IpAddr],
) -> Result<(Vec<Verified>, Vec<Problem>), Problems> {
    let (Inputs { config, cluster, node }, warnings) = sources.read()?;
    let Some(object) = cluster.nodes.get(&node) else {
        let known: Vec<_> = cluster.nodes.keys().cloned().collect();
        let text = format!("is not among the objects, whose nodes are: {}", known.join(", "));
        return Err(Problems(vec![Problem { file: None, object: format!("nodes/{node}"), text }]));
    };
    let mut addresses: Vec<IpAddr> = local.to_vec();
    addresses.extend(object.internal_ips.iter().chain(&object.external_ips));
    if let Some(node) = &config.node {
        let interfaces = node.interfaces_by_age();
        addresses.extend(interfaces.iter().flat_map(|(_, own)| own.iter().map(|own| own.address)));
    }
    let input = Input {
        cluster: &cluster,
        proxy: &config.proxy,
        node_name: &node,
        service_proxy_name: config.node.as_ref().and_then(|node| node.service_proxy_name.as_deref()),
        local_addresses: &addresses,
    };
    let mut found = Vec::new();
    let (sets, own) = (files.sets.as_deref(), config.node.as_ref());
    if let Some(file) = &files.v4 {
        found.push(verified::<V4>(name, file, sets, &input, own)?);
    }
    if let Some(file) = &files.v6 {
        found.push(verified::<V6>(name, file, sets, &input, own)?);
    }
    Ok((found, warnings))
}

fn verified<A: Family>(
    name: &str,
    file: &Path,
    sets: Option<&Path>,
    input: &Input<'_>,
    node: Option<&NodeConfig>,
) -> Result<Verified, Problems> {
    let rules = read_rules::<A>(file)?;
    let report = against_tables(&rules, &read_sets(sets)?, input, node);
    Ok(Verified { name: name.into(), family: A::NAME, report })
}

/// Compares two files of rules of one family.
///
/// # Errors
/// Everything that is wrong with them.
pub fn verify_against(
    left: &Path,
    right: &Path,
    sets: Option<&Path>,
    local: &[IpAddr],
) -> Result<Verified, Problems> {
    let name = format!("{} {}", left.display(), right.display());
    let (first, second) = (document::read_text(left)?, document::read_text(right)?);
    if is_v6(&first) || is_v6(&second) {
        compare::<V6>(name, (left, &first), (right, &second), sets, local)
    } else {
        compare::<V4>(name, (left, &first), (right, &second), sets, local)
    }
}

fn compare<A: Family>(
    name: String,
    (left, first): (&Path, &str),
    (right, second): (&Path, &str),
    sets: Option<&Path>,
    local: &[IpAddr],
) -> Result<Verified, Problems> {
    let left = parse::<A>(Some(left.into()), first)?;
    let right = parse::<A>(Some(right.into()), second)?;
    let local: Vec<A::Addr> = local.iter().filter_map(|address| A::Addr::from_ip(*address)).collect();
    Ok(Verified { name, family: A::NAME, report: against_rules(&left, &right, &read_sets(sets)?, &local) })
}

/// Whether rules are IPv6's: they say so at the top, or have such an address, or its ICMP.
fn is_v6(text: &str) -> bool {
    let top = text.lines().next().unwrap_or_default();
    let address = |word: &str| {
        let address = word.split('/').next().unwrap_or_default();
        address.parse::<std::net::Ipv6Addr>().is_ok()
    };
    let v6_word = |word: &str| matches!(word, "icmp6" | "ipv6-icmp" | "icmpv6") || address(word);
    top.contains("ip6tables-save") || text.split_whitespace().any(|word| word.len() > 1 && v6_word(word))
}

/// Reads rules.
///
/// # Errors
/// A file that cannot be read, and each line that is not understood.
pub fn read_rules<A: Family>(file: &Path) -> Result<Ruleset<A>, Problems> {
    let text = document::read_text(file)?;
    parse(Some(Arc::from(file)), &text)
}

fn read_sets<A: Family>(file: Option<&Path>) -> Result<Sets<A>, Problems> {
    match file {
        Some(file) => ipset::parse(Some(file.into()), &document::read_text(file)?),
        None => Ok(Sets::default()),
    }
}

fn name_of(folder: &Path) -> String {
    let canonical = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    canonical.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
