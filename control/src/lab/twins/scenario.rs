//! What is compared: a folder with objects, kube-proxy's configuration and rules, or a case with its rules.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use pollux_dataplane::packet::V4;

use crate::cluster::{self, Cluster, Node};
use crate::config::proxy::{LocalhostNodePorts, NodePortSelection};
use crate::config::{self, ProxyConfig};
use crate::problem::{Findings, Problem, Problems};
use crate::verify::cases::{self, Case, CaseFamily, Flow};

/// The family of a scenario's packets.
pub use crate::verify::cases::CaseFamily as Family;

/// Files of a folder, without `.gz`.
const OBJECTS: [&str; 3] = ["objects.yaml", "objects.yml", "objects.json"];
const CONFIGURATION: [&str; 2] = ["proxy-config.yaml", "proxy-config.yml"];
const SYSCTLS: &str = "sysctl.txt";

/// One family of one cluster, with the rules that are to do what its objects say.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The folder's or the case's name.
    pub name: String,
    /// The family that is compared.
    pub family: Family,
    /// The node's name in the objects.
    pub node_name: String,
    /// The node's addresses of both families, without loopback.
    pub local_addresses: Vec<IpAddr>,
    /// kube-proxy's configuration.
    pub proxy: ProxyConfig,
    /// The objects.
    pub cluster: Cluster,
    /// The rules, as `iptables-restore` or `ip6tables-restore` reads them.
    pub rules: String,
    /// Kernel settings that belong to the rules: path below `/proc/sys`, value.
    pub settings: Vec<(String, String)>,
    /// The flows of a case; nothing for a folder, whose flows follow from its objects.
    pub flows: Option<Vec<Flow>>,
}

/// Which files of a folder are the rules and the configuration that they come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dump {
    /// File of the IPv4 rules.
    pub v4: String,
    /// File of the IPv6 rules.
    pub v6: String,
    /// File of the configuration.
    pub configuration: String,
}

impl Default for Dump {
    /// `iptables-save.txt`, `ip6tables-save.txt`, `proxy-config.yaml`.
    fn default() -> Self {
        Dump {
            v4: "iptables-save.txt".into(),
            v6: "ip6tables-save.txt".into(),
            configuration: CONFIGURATION[0].into(),
        }
    }
}

/// Everything below `paths` that can be compared, in the order of the paths and names, and what is worth
/// saying about the input. Each file may be compressed (`.gz`).
///
/// # Errors
/// Files that cannot be read or make no sense; a path below which there is nothing to compare.
pub fn find(paths: &[PathBuf]) -> Result<(Vec<Scenario>, Vec<Problem>), Problems> {
    let mut findings = Findings::default();
    let mut found = Vec::new();
    let mut warnings = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        findings.enter_file(Some(path.as_path().into()));
        let before = found.len();
        let errors = problems.len();
        match folders(path) {
            Err(error) => findings.error(error.to_string()),
            Ok(folders) => {
                for folder in folders {
                    match folder_scenarios(&folder, &Dump::default()) {
                        Ok((scenarios, said)) => {
                            found.extend(scenarios);
                            warnings.extend(said);
                        }
                        Err(Problems(wrong)) => problems.extend(wrong),
                    }
                }
                if found.len() == before && problems.len() == errors {
                    findings.error(
                        "nothing to compare: a scenario is a folder with objects.yaml, proxy-config.yaml and \
                         iptables-save.txt or ip6tables-save.txt, or with case.json and iptables-save.txt",
                    );
                }
            }
        }
    }
    match findings.finish() {
        Err(Problems(more)) => problems.extend(more),
        Ok(more) => warnings.extend(more),
    }
    if problems.is_empty() { Ok((found, warnings)) } else { Err(Problems(problems)) }
}

/// The scenarios of one folder: a case, or one for each family that it has rules for.
///
/// # Errors
/// Everything that is wrong with its files.
pub fn folder_scenarios(folder: &Path, dump: &Dump) -> Result<(Vec<Scenario>, Vec<Problem>), Problems> {
    let case = folder.join(cases::FILE_NAME);
    if case.is_file() {
        let Case { name, family, node_name, local_addresses, proxy, cluster, warnings, flows } =
            Case::load(&case)?;
        let rules = required(folder, &dump.v4)?;
        let localhost = if has_loopback_node_ports(&proxy) { "1" } else { "0" };
        let settings = vec![(ROUTE_LOCALNET.to_owned(), localhost.to_owned())];
        let flows = Some(flows);
        let scenario =
            Scenario { name, family, node_name, local_addresses, proxy, cluster, rules, settings, flows };
        return Ok((vec![scenario], warnings));
    }
    let objects = OBJECTS.iter().find_map(|name| existing(folder, name));
    let objects = objects.ok_or_else(|| lacking(folder, OBJECTS[0]))?;
    let configuration = existing(folder, &dump.configuration).or_else(|| existing(folder, CONFIGURATION[1]));
    let configuration = configuration.ok_or_else(|| lacking(folder, &dump.configuration))?;
    let loaded = cluster::load(&[objects])?;
    let (config, warned) = config::load(&[configuration])?;
    let mut warnings = loaded.warnings;
    warnings.extend(warned.into_iter().filter(|warning| !warning.text.contains("has no meaning here")));
    let cluster = loaded.cluster;
    let node = this_node(folder, &config.proxy, &cluster)?;
    let local_addresses: Vec<IpAddr> = node.internal_ips.iter().chain(&node.external_ips).copied().collect();
    let node_name = node.name.clone();
    let settings = match existing(folder, SYSCTLS) {
        Some(file) => read_settings(&file)?,
        None => Vec::new(),
    };
    let name =
        folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.display().to_string());
    let mut scenarios = Vec::new();
    for (family, file) in [(Family::IPv4, &dump.v4), (Family::IPv6, &dump.v6)] {
        let Some(path) = existing(folder, file) else { continue };
        let of_family = |address: &IpAddr| address.is_ipv4() == (family == CaseFamily::IPv4);
        if !local_addresses.iter().any(of_family) {
            return Err(problem(&path, &format!("the Node {node_name} has no address of this family")));
        }
        scenarios.push(Scenario {
            name: name.clone(),
            family,
            node_name: node_name.clone(),
            local_addresses: local_addresses.clone(),
            proxy: config.proxy.clone(),
            cluster: cluster.clone(),
            rules: read_text(&path)?,
            settings: settings.clone(),
            flows: None,
        });
    }
    match scenarios.is_empty() {
        true => Err(lacking(folder, &dump.v4)),
        false => Ok((scenarios, warnings)),
    }
}

/// The setting without which the kernel lets nothing of 127.0.0.0/8 out of `lo`.
pub(super) const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// Whether kube-proxy routes loopback: `localhostNodePorts` is in force (FE-07). A case has no settings of
/// the kernel, and not all of them have the rule that goes with it.
fn has_loopback_node_ports(proxy: &ProxyConfig) -> bool {
    let enabled = proxy.localhost_node_ports == LocalhostNodePorts::Enabled;
    let NodePortSelection::Prefixes(prefixes) = &proxy.node_port_addresses else { return false };
    let mut prefixes = prefixes.iter().filter_map(|prefix| prefix.of::<V4>()).peekable();
    let first = Ipv4Addr::new(127, 0, 0, 0);
    enabled
        && (prefixes.peek().is_none()
            || prefixes.any(|prefix| prefix.address().is_loopback() || prefix.contains(first)))
}

/// The node that the rules were written for: `hostnameOverride`, or the only one there is.
fn this_node<'a>(folder: &Path, proxy: &ProxyConfig, cluster: &'a Cluster) -> Result<&'a Node, Problems> {
    let mut nodes = cluster.nodes.values();
    let node = match (&proxy.hostname_override, nodes.next(), nodes.next()) {
        (Some(name), _, _) => cluster.nodes.get(name),
        (None, Some(node), None) => Some(node),
        _ => None,
    };
    node.ok_or_else(|| {
        problem(folder, "which Node is meant is not known: name it in hostnameOverride of the configuration")
    })
}

/// The folders below `path` that hold a scenario, in name order; `path` itself may be one.
fn folders(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut below = Vec::new();
    let mut is_scenario = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() {
            below.push(entry);
        } else {
            let name = name.trim_end_matches(".gz");
            is_scenario |= name == cases::FILE_NAME || OBJECTS.contains(&name);
        }
    }
    if is_scenario {
        found.push(path.to_path_buf());
    }
    below.sort();
    for folder in below {
        found.extend(folders(&folder)?);
    }
    Ok(found)
}

fn existing(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(name), folder.join(format!("{name}.gz"))].into_iter().find(|path| path.is_file())
}

fn required(folder: &Path, name: &str) -> Result<String, Problems> {
    read_text(&existing(folder, name).ok_or_else(|| lacking(folder, name))?)
}

fn read_text(path: &Path) -> Result<String, Problems> {
    let wrong = |error: std::io::Error| problem(path, &error.to_string());
    let bytes = fs::read(path).map_err(wrong)?;
    let mut text = String::new();
    match path.extension().is_some_and(|extension| extension == "gz") {
        true => MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).map_err(wrong)?,
        false => (&bytes[..]).read_to_string(&mut text).map_err(wrong)?,
    };
    Ok(text)
}

/// Settings as `sysctl` prints them. `ip_forward` is the lab's own to set.
fn read_settings(path: &Path) -> Result<Vec<(String, String)>, Problems> {
    let mut settings = Vec::new();
    for (number, line) in read_text(path)?.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(problem(path, &format!("line {}: {line:?} is not NAME = VALUE", number + 1)));
        };
        let name = name.trim().replace('.', "/");
        if !name.starts_with("net/") || name.split('/').any(|part| part.is_empty()) {
            return Err(problem(
                path,
                &format!("line {}: {name} is not a setting of the network", number + 1),
            ));
        }
        if name != "net/ipv4/ip_forward" {
            settings.push((name, value.trim().to_owned()));
        }
    }
    Ok(settings)
}

fn lacking(folder: &Path, name: &str) -> Problems {
    problem(folder, &format!("{name} is missing"))
}

fn problem(path: &Path, text: &str) -> Problems {
    Problems(vec![Problem { file: Some(path.into()), object: String::new(), text: text.to_owned() }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name)
    }

    #[test]
    fn a_folder_has_a_scenario_for_each_of_its_dumps() {
        let (scenarios, warnings) = find(&[corpus("dual-stack")]).unwrap();
        assert_eq!(warnings, []);
        let found: Vec<_> =
            scenarios.iter().map(|scenario| (scenario.name.as_str(), scenario.family)).collect();
        assert_eq!(found, [("dual-stack", Family::IPv4), ("dual-stack", Family::IPv6)]);
        assert_eq!(scenarios[0].settings, [(ROUTE_LOCALNET.to_owned(), "1".to_owned())]);
        assert_eq!(scenarios[0].node_name, "slave1");
        assert!(scenarios[1].rules.contains("fd00"));
    }

    #[test]
    fn the_whole_corpus_and_all_cases_are_found() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
        let (scenarios, _) = find(&[tests.join("corpus"), tests.join("cases")]).unwrap();
        assert_eq!(scenarios.len(), 50 * 2 + 130);
        let scale = scenarios.iter().find(|scenario| scenario.name == "scale-1000").unwrap();
        assert!(scale.cluster.services.len() >= 1000 && scale.rules.lines().count() > 6000, "unpacked");
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let said = |folder: &Path| find(&[folder.to_path_buf()]).unwrap_err().to_string();
        assert!(said(folder.path()).contains("nothing to compare"), "{}", said(folder.path()));
        fs::copy(corpus("udp/objects.yaml"), folder.path().join("objects.yaml")).unwrap();
        assert!(said(folder.path()).contains("proxy-config.yaml is missing"), "{}", said(folder.path()));
        fs::copy(corpus("udp/proxy-config.yaml"), folder.path().join("proxy-config.yaml")).unwrap();
        assert!(said(folder.path()).contains("iptables-save.txt is missing"), "{}", said(folder.path()));
        fs::write(folder.path().join("iptables-save.txt"), "").unwrap();
        fs::write(folder.path().join("sysctl.txt"), "kernel.panic = 1\n").unwrap();
        assert!(
            said(folder.path()).contains("line 1: kernel/panic is not a setting"),
            "{}",
            said(folder.path())
        );
        assert!(said(&folder.path().join("absent")).contains("absent"));
    }
}
