//! The proof over everything that kube-proxy wrote: the tables compiled from the objects of each case and
//! scenario are equal to its rules for all packets; and what is not equal is found, named or left undecided.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use pollux_control::agent::Sources;
use pollux_control::verify::report::{Counterexample, Report};
use pollux_control::verify::subject::{
    Answer, RuleFiles, Verified, find, verify_against, verify_folder, verify_sources,
};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A file of a scenario, as it is or packed.
fn file(scenario: &str, name: &str) -> Option<PathBuf> {
    let folder = repository("tests/corpus").join(scenario);
    [folder.join(name), folder.join(format!("{name}.gz"))].into_iter().find(|path| path.is_file())
}

fn scenarios() -> Vec<String> {
    let entries = fs::read_dir(repository("tests/corpus")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn verified(folders: &[PathBuf]) -> Vec<Verified> {
    let folders = find(folders).unwrap();
    folders.iter().flat_map(|folder| verify_folder(folder, &[]).unwrap().0).collect()
}

fn assert_equal(set: &Verified) {
    let Verified { name, family, report } = set;
    assert_eq!(report.answer(), Answer::Equal, "{name} {family}: {report:#?}");
    assert!(report.pieces > 0, "{name}");
    // One packet of each piece went through the concrete evaluator and through the tables.
    assert_eq!(report.confirmed, report.pieces, "{name}");
}

#[test]
fn every_case_is_equal_to_its_rules() {
    let sets = verified(&[repository("tests/cases")]);
    assert_eq!(sets.len(), 130);
    sets.iter().for_each(assert_equal);
    assert!(sets.iter().any(|set| set.family == "ipv6"));
}

#[test]
fn every_scenario_is_equal_to_its_rules_in_both_families() {
    let sets = verified(&[repository("tests/corpus")]);
    assert_eq!(sets.len(), 2 * scenarios().len());
    sets.iter().for_each(assert_equal);
}

/// The objects of a scenario against other rules than its own.
fn against(scenario: &str, config: &str, rules: &Path, sets: Option<&Path>) -> Report {
    let sources = Sources {
        config: vec![file(scenario, config).unwrap()],
        objects: vec![file(scenario, "objects.yaml").unwrap()],
        node: None,
    };
    let files = RuleFiles { v4: Some(rules.to_path_buf()), v6: None, sets: sets.map(Path::to_path_buf) };
    let (mut verified, _) = verify_sources(scenario, &sources, &files, &[]).unwrap();
    verified.remove(0).report
}

/// The rules of a scenario, changed.
struct Changed {
    scenario: &'static str,
    folder: tempfile::TempDir,
}

impl Changed {
    fn new(scenario: &'static str, change: impl Fn(&str) -> String) -> Changed {
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(file(scenario, "iptables-save.txt").unwrap()).unwrap();
        let changed = change(&text);
        assert_ne!(text, changed, "nothing was changed");
        fs::write(folder.path().join("rules.txt"), changed).unwrap();
        Changed { scenario, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn report(&self) -> Report {
        against(self.scenario, "proxy-config.yaml", &self.path("rules.txt"), None)
    }
}

/// Why the rules of 1.20 differ from the tables, which follow 1.36 (docs/semantics.md).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Old {
    /// It wrote no loopback guard.
    NoLoopbackGuard,
    /// External IPs were entered only by non-local sources or at local destinations.
    ExternalIps,
    /// It dropped by a mark that the kubelet's rules look at on INPUT and OUTPUT only.
    MarkDrop,
    /// It listed endpoints, and so their affinity, in no defined order.
    EndpointOrder,
}

fn old(counterexample: &Counterexample) -> Old {
    let cause = &counterexample.cause;
    let named = [
        ("(NO-07)", Old::NoLoopbackGuard),
        ("(NO-04)", Old::MarkDrop),
        ("(NO-02, NO-03)", Old::MarkDrop),
        ("ExternalIp", Old::ExternalIps),
    ];
    match named.iter().find(|(word, _)| cause.contains(word)) {
        Some((_, old)) => *old,
        // Both took an endpoint for which the client had a fresh entry, each the first in its own order.
        None if counterexample.packet.noted.len() > 1 => Old::EndpointOrder,
        None => panic!("no known cause: {counterexample:#?}"),
    }
}

#[test]
fn no_06_mq_09_the_rules_of_1_20_differ_for_known_causes() {
    let mut seen = 0;
    for scenario in scenarios() {
        let Some(rules) = file(&scenario, "iptables-save-1.20.txt") else { continue };
        seen += 1;
        let report = against(&scenario, "proxy-config-1.20.yaml", &rules, None);
        assert_eq!(report.undecided, Vec::<String>::new(), "{scenario}");
        let causes: BTreeSet<Old> = report.counterexamples.iter().map(old).collect();
        let expected: &[Old] = match scenario.as_str() {
            // localhostNodePorts is not in force there: no guard is wanted.
            "nodeport-addresses" => &[],
            "external-ips" => &[Old::NoLoopbackGuard, Old::ExternalIps],
            "lb-source-ranges" | "nodeport-local-none" => &[Old::NoLoopbackGuard, Old::MarkDrop],
            "session-affinity" => &[Old::NoLoopbackGuard, Old::EndpointOrder],
            _ => &[Old::NoLoopbackGuard],
        };
        assert_eq!(causes, expected.iter().copied().collect(), "{scenario}: {report:#?}");
    }
    assert_eq!(seen, 25);
}

/// With the kubelet's part of it, what 1.20 marks for dropping is dropped, but not where it is forwarded.
#[test]
fn no_06_the_kubelet_s_drop_stands_on_input_and_output_only() {
    let rules = fs::read_to_string(file("lb-source-ranges", "iptables-save-1.20.txt").unwrap()).unwrap();
    let rules = rules
        .replacen(":KUBE-FORWARD", ":KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD", 1)
        .replacen(
            "-A KUBE-FORWARD",
            "-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
             -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n-A KUBE-FORWARD",
            1,
        )
        .replacen(
            "-A KUBE-MARK-MASQ",
            "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\n-A KUBE-MARK-MASQ",
            1,
        );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.txt");
    fs::write(&path, rules).unwrap();
    let report = against("lb-source-ranges", "proxy-config-1.20.yaml", &path, None);
    let first = report.counterexamples.iter().filter(|found| found.packet.state == "new");
    let dropped: Vec<_> = first.filter(|found| old(found) == Old::MarkDrop).collect();
    assert!(!dropped.is_empty(), "{report:#?}");
    // From the host OUTPUT drops it; from a port nothing does, and it is masqueraded on its way.
    assert!(dropped.iter().all(|found| found.packet.input.is_some()), "{dropped:#?}");
}

#[test]
fn ep_06_a_probability_may_be_off_by_rounding_and_no_more() {
    let changed =
        |to: &'static str| Changed::new("seed-myapp", move |text| text.replace("0.33333333349", to)).report();
    // One unit of 2^-31 is 4.66e-10.
    assert_eq!(changed("0.33333333302").answer(), Answer::Equal);
    let report = changed("0.33334000000");
    assert_eq!(report.answer(), Answer::Different);
    let ways = &report.counterexamples[0].left;
    assert!(ways.iter().all(|way| way.outcome.starts_with("to 10.151.")), "{ways:#?}");
}

#[test]
fn mq_03_a_missing_hairpin_rule_is_found_with_the_pod_as_its_own_client() {
    let report = Changed::new("seed-myapp", |text| {
        let own = |line: &&str| !(line.contains("-A KUBE-SEP-") && line.contains("-s 10.151.51.8/32"));
        text.lines().filter(own).map(|line| format!("{line}\n")).collect()
    })
    .report();
    let found = &report.counterexamples[0];
    assert_eq!(found.packet.source, "10.151.51.8".parse::<IpAddr>().unwrap());
    let differing: Vec<_> = found.right.iter().filter(|way| !way.steps.is_empty()).collect();
    assert!(matches!(differing.as_slice(), [way] if way.outcome.ends_with(", masqueraded")), "{found:#?}");
}

#[test]
fn af_01_the_time_and_the_noting_of_affinity_are_compared() {
    for (from, to) in [("--seconds 600", "--seconds 601"), ("--set --name", "--rcheck --name")] {
        let report = Changed::new("session-affinity", |text| text.replacen(from, to, 1)).report();
        assert_eq!(report.answer(), Answer::Different, "{from} > {to}");
    }
}

#[test]
fn a_drop_in_front_of_everything_is_one_cause() {
    let report = Changed::new("seed-myapp", |text| {
        text.replacen("-A FORWARD", "-A FORWARD -s 10.151.51.7/32 -j DROP\n-A FORWARD", 1)
    })
    .report();
    let causes: Vec<_> = report.counterexamples.iter().map(|found| found.cause.as_str()).collect();
    assert!(causes.iter().all(|cause| cause.starts_with("drop: ")), "{causes:?}");
    let source: IpAddr = "10.151.51.7".parse().unwrap();
    assert!(report.counterexamples.iter().all(|found| found.packet.source == source));
}

/// What depends on something outside of the file is never called equal, and its line is named.
#[test]
fn what_is_not_known_is_undecided_with_its_line() {
    let rules = [
        "-m limit --limit 5/sec -j DROP",
        "-m mark --mark 0x10000/0x10000 -j DROP",
        "-m set --match-set BLOCKED src -j DROP",
        "-m statistic --mode nth --every 2 --packet 0 -j DROP",
        "-m addrtype --dst-type BROADCAST -j DROP",
        "-m connmark --mark 0x1/0x1 -m conntrack --ctstate ESTABLISHED -j DROP",
    ];
    for rule in rules {
        let report = Changed::new("seed-myapp", |text| {
            text.replacen("-A FORWARD", &format!("-A FORWARD {rule}\n-A FORWARD"), 1)
        })
        .report();
        assert_eq!(report.answer(), Answer::Undecided, "{rule}: {report:#?}");
        assert!(report.undecided[0].starts_with("line "), "{rule}: {:?}", report.undecided);
        // The same in a place where it changes nothing: it is seen to change nothing.
        let harmless = Changed::new("seed-myapp", |text| {
            let accept = rule.replace("DROP", "ACCEPT");
            text.replacen("COMMIT", &format!("-A FORWARD {accept}\nCOMMIT"), 2).replacen(
                &format!("-A FORWARD {accept}\nCOMMIT"),
                "COMMIT",
                1,
            )
        })
        .report();
        assert_eq!(harmless.answer(), Answer::Equal, "{rule}: {harmless:#?}");
    }
}

#[test]
fn the_content_of_an_ipset_decides() {
    let rule = "-m set --match-set BLOCKED src -j DROP";
    let changed = Changed::new("seed-myapp", |text| {
        text.replacen("-A FORWARD", &format!("-A FORWARD {rule}\n-A FORWARD"), 1)
    });
    let report = |content: &str| {
        let sets = changed.path("sets.txt");
        fs::write(&sets, format!("create BLOCKED hash:net family inet\n{content}")).unwrap();
        against("seed-myapp", "proxy-config.yaml", &changed.path("rules.txt"), Some(&sets))
    };
    assert_eq!(report("").answer(), Answer::Equal, "an empty set blocks nobody");
    let blocked = report("add BLOCKED 203.0.113.0/24\nadd BLOCKED 203.0.113.7 nomatch\n");
    assert_eq!(blocked.answer(), Answer::Different);
    for found in &blocked.counterexamples {
        assert!(found.packet.source.to_string().starts_with("203.0.113."), "{found:#?}");
        assert_ne!(found.packet.source, "203.0.113.7".parse::<IpAddr>().unwrap());
    }
}

#[test]
fn two_files_of_rules_are_compared_with_each_other() {
    let (new, old) = (
        file("lb-source-ranges", "iptables-save.txt").unwrap(),
        file("lb-source-ranges", "iptables-save-1.20.txt").unwrap(),
    );
    let local = ["172.16.1.50".parse().unwrap()];
    let same = verify_against(&new, &new, None, &local).unwrap();
    assert_eq!((same.report.answer(), same.family), (Answer::Equal, "ipv4"));
    let upgrade = verify_against(&old, &new, None, &local).unwrap();
    assert_eq!(upgrade.report.answer(), Answer::Different);
    let v6 = file("ipv6-only", "ip6tables-save.txt").unwrap();
    assert_eq!(verify_against(&v6, &v6, None, &[]).unwrap().family, "ipv6");
}

#[test]
fn bad_input_is_said_with_object_or_line() {
    let text = fs::read_to_string(file("seed-myapp", "iptables-save.txt").unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.txt");
    let sources = |node: Option<&str>| Sources {
        config: vec![file("seed-myapp", "proxy-config.yaml").unwrap()],
        objects: vec![file("seed-myapp", "objects.yaml").unwrap()],
        node: node.map(String::from),
    };
    let files = RuleFiles { v4: Some(path.clone()), v6: None, sets: None };
    let said = |text: &str, node: Option<&str>| {
        fs::write(&path, text).unwrap();
        verify_sources("node", &sources(node), &files, &[]).unwrap_err().to_string()
    };
    assert!(said(&text, Some("nobody")).contains("nodes/nobody: is not among the objects"));
    let cut = &text[..text.rfind("COMMIT").unwrap()];
    assert!(said(cut, None).contains("rules.txt"), "{}", said(cut, None));
    let missing = text.replacen("-j KUBE-MARK-MASQ", "-j KUBE-NOWHERE", 1);
    assert!(said(&missing, None).contains("KUBE-NOWHERE"), "{}", said(&missing, None));
    let unknown =
        text.replacen("-A FORWARD", "-A FORWARD -m geoip --source-country CN -j DROP\n-A FORWARD", 1);
    assert!(said(&unknown, None).contains("geoip"), "{}", said(&unknown, None));
}
