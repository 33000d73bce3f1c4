//! The rules that are generated from objects are those that kube-proxy wrote for the same objects: into a real
//! kernel (tests/corpus, both families), and as input of iptables-restore (tests/cases).
//!
//! Order is compared where kube-proxy has one. It visits service ports in no order, so in the chains where all
//! of them write, the rules of one service port are compared in their order, and the service ports as a set.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use pollux_control::cluster::{Cluster, Loaded, read_objects};
use pollux_control::config::proxy::NodePortSelection;
use pollux_control::config::{self, ProxyConfig};
use pollux_control::document::parse_yaml;
use pollux_control::iptables::generate::generate;
use pollux_control::iptables::parse::parse;
use pollux_control::iptables::{ChainId, Rule, Ruleset, Table, TableName, Target, Test};
use pollux_control::translate::Input;
use pollux_control::verify::cases::{self, Case, CaseFamily};
use pollux_dataplane::packet::{Family, V4, V6};

/// Chains where every service port writes.
const SHARED: [&str; 4] =
    ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];

/// Rules of one chain that have an order among them, by the service port in their comments.
type Groups = BTreeMap<String, Vec<String>>;

fn root(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)
}

/// A file, or the one of that name with `.gz` behind it.
fn read(path: &Path) -> String {
    if path.exists() {
        return fs::read_to_string(path).unwrap();
    }
    let mut packed = path.as_os_str().to_os_string();
    packed.push(".gz");
    let mut text = String::new();
    GzDecoder::new(fs::File::open(packed).unwrap()).read_to_string(&mut text).unwrap();
    text
}

/// The rules of a chain in groups; the jumps to the node ports must stand behind everything else.
fn groups<A: Family>(table: &Table<A>, chain: ChainId) -> Groups {
    let Table { chains, .. } = table;
    let found = &chains[chain.0 as usize];
    let mut groups = Groups::new();
    if !SHARED.contains(&found.name.as_str()) {
        let rules = found.rules.iter().map(|rule| table.show(chain, rule).to_string());
        groups.insert(String::new(), rules.collect());
        return groups;
    }
    let mut last = false;
    for rule in &found.rules {
        let comment = rule.comment.as_deref().unwrap();
        let of_node_ports = comment.starts_with("kubernetes service nodeports");
        assert!(of_node_ports || !last, "the jump to the node ports is the last rule");
        last = of_node_ports;
        let text = table.show(chain, rule).to_string();
        // One for each address of the node, in no order.
        let key = if of_node_ports { &text } else { comment.split(' ').next().unwrap() };
        groups.entry(key.to_string()).or_default().push(text);
    }
    groups
}

/// Panics with the first chain that differs.
fn compare<A: Family>(name: &str, expected: &Ruleset<A>, got: &Ruleset<A>) -> usize {
    let tables = |rules: &Ruleset<A>| rules.tables.iter().map(|table| table.name).collect::<Vec<_>>();
    assert_eq!(tables(got), tables(expected), "{name}");
    let mut compared = 0;
    for (expected, got) in expected.tables.iter().zip(&got.tables) {
        // The same chains in the same places, so that the same number means the same chain.
        let chains = |table: &Table<A>| {
            table.chains.iter().map(|chain| (chain.name.clone(), chain.policy)).collect::<Vec<_>>()
        };
        assert_eq!(chains(got), chains(expected), "{name}");
        for at in 0..expected.chains.len() {
            let at = ChainId(at as u32);
            assert_eq!(groups(got, at), groups(expected, at), "{name}");
            compared += expected.chain(at).rules.len();
        }
    }
    compared
}

struct Corpus {
    name: String,
    folder: PathBuf,
    cluster: Cluster,
    proxy: ProxyConfig,
}

/// The addresses that the node of the corpus had.
fn corpus_addresses() -> [IpAddr; 2] {
    ["172.16.1.50".parse().unwrap(), "fd00:172::50".parse().unwrap()]
}

fn corpus() -> Vec<Corpus> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(root("tests/corpus")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let load = |folder: PathBuf| {
        let file = folder.join("objects.yaml");
        let objects = parse_yaml(&read(&file)).unwrap();
        let Loaded { cluster, .. } = read_objects(&file.as_path().into(), objects).unwrap();
        let (config, _) = config::load(&[folder.join("proxy-config.yaml")]).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        Corpus { name, folder, cluster, proxy: config.proxy }
    };
    folders.into_iter().map(load).collect()
}

impl Corpus {
    fn compare<A: Family>(&self, file: &str) -> usize {
        let expected = parse::<A>(None, &read(&self.folder.join(file))).unwrap();
        let got = generate::<A>(&Input {
            cluster: &self.cluster,
            proxy: &self.proxy,
            node_name: self.proxy.hostname_override.as_deref().unwrap(),
            service_proxy_name: None,
            local_addresses: &corpus_addresses(),
        });
        compare(&format!("{} {file}", self.name), &expected, &got)
    }
}

#[test]
fn rules_are_those_that_kube_proxy_wrote_into_a_kernel() {
    let corpus = corpus();
    assert_eq!(corpus.len(), 50);
    let v4: usize = corpus.iter().map(|dump| dump.compare::<V4>("iptables-save.txt")).sum();
    let v6: usize = corpus.iter().map(|dump| dump.compare::<V6>("ip6tables-save.txt")).sum();
    assert_eq!((v4, v6), (13_044, 1122));
}

/// What a unit test of kube-proxy writes, as a kernel would have shown it. Its rules go into a make-believe
/// iptables that can do neither `--random-fully` nor counters, and nothing writes the canary chains, which the
/// table mangle exists for.
fn as_in_a_unit_test<A: Family>(mut rules: Ruleset<A>) -> Ruleset<A> {
    rules.tables.retain(|table| table.name != TableName::Mangle);
    for table in &mut rules.tables {
        let canary = table.find("KUBE-PROXY-CANARY").unwrap();
        assert_eq!(table.chains.remove(canary.0 as usize).rules, []);
        for rule in table.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            if let Target::Jump(to) = &mut rule.target {
                assert_ne!(*to, canary);
                to.0 -= u32::from(to.0 > canary.0);
            }
            if let Target::Masquerade { random, .. } = &mut rule.target {
                *random = Default::default();
            }
            rule.matches.retain(|part| !matches!(part.test, Test::Nfacct(_)));
        }
    }
    rules
}

/// Tables, chains and conditions in one order: iptables-restore takes them in any.
fn in_order<A: Family>(mut rules: Ruleset<A>) -> Ruleset<A> {
    rules.tables.sort_by_key(|table| table.name);
    for table in &mut rules.tables {
        let mut order: Vec<usize> = (0..table.chains.len()).collect();
        order.sort_by_key(|at| (table.chains[*at].policy.is_none(), &table.chains[*at].name));
        let mut chains: Vec<_> = order.iter().map(|at| table.chains[*at].clone()).collect();
        for rule in chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            if let Target::Jump(to) = &mut rule.target {
                let place = order.iter().position(|at| *at == to.0 as usize).unwrap();
                to.0 = place as u32;
            }
            sort_conditions(rule);
        }
        table.chains = chains;
    }
    rules
}

fn sort_conditions<A: Family>(rule: &mut Rule<A>) {
    rule.matches.sort_by_key(|part| match part.test {
        Test::Source(_) => 0,
        Test::Destination(_) => 1,
        Test::InInterface(_) => 2,
        Test::Protocol(_) => 3,
        Test::AddressType { .. } => 4,
        _ => 5,
    });
}

fn compare_case<A: Family>(case: &Case, text: &str) -> usize {
    let expected = parse::<A>(None, text).unwrap();
    let input = Input {
        cluster: &case.cluster,
        proxy: &case.proxy,
        node_name: &case.node_name,
        service_proxy_name: None,
        local_addresses: &case.local_addresses,
    };
    let mut got = generate::<A>(&input);
    // A proxy that is made by hand has not asked whether `nodePortAddresses` lets `localhostNodePorts` be in
    // force (FE-07), and writes the rules that count what comes to 127.0.0.0/8. They do what the rules behind
    // them do, and are never reached: nothing jumps here for those addresses.
    let every_address = NodePortSelection::Prefixes(Vec::new());
    let proxy = ProxyConfig { node_port_addresses: every_address, ..case.proxy.clone() };
    let by_hand = generate::<A>(&Input { proxy: &proxy, ..input });
    let table = got.tables.iter_mut().find(|table| table.name == TableName::Nat).unwrap();
    let chain = table.find("KUBE-NODEPORTS").unwrap();
    let counted = by_hand.table(TableName::Nat).unwrap().chain(chain);
    table.chains[chain.0 as usize].rules.clone_from(&counted.rules);
    compare(&case.name, &in_order(expected), &in_order(as_in_a_unit_test(got)))
}

#[test]
fn rules_are_those_that_kube_proxy_gives_to_iptables_restore() {
    let files = cases::find(&[root("tests/cases")]).unwrap();
    assert_eq!(files.len(), 130);
    let counts = files.iter().map(|file| {
        let case = Case::load(file).unwrap();
        let text = read(&file.with_file_name("iptables-save.txt"));
        match case.family {
            CaseFamily::IPv4 => compare_case::<V4>(&case, &text),
            CaseFamily::IPv6 => compare_case::<V6>(&case, &text),
        }
    });
    assert_eq!(counts.sum::<usize>(), 9802);
}
