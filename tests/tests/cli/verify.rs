//! `pollux verify`: its lines, its one JSON object, its exit codes.

use std::fs;
use std::path::PathBuf;

use pollux_tests::binary::pollux;
use pollux_tests::seed::repository;
use serde_json::Value;

use super::{BAD_INPUT, DIFFERENCE, DONE, UNDECIDED, assert_refused};

fn scenario(name: &str) -> PathBuf {
    repository("tests/corpus/seed-myapp").join(name)
}

/// The arguments that compare the objects of the seed with `rules`.
fn with_rules(rules: &str) -> [String; 7] {
    let path = |name| scenario(name).to_str().unwrap().to_string();
    let (objects, config) = (path("objects.yaml"), path("proxy-config.yaml"));
    ["verify", "--objects", &objects, "--config", &config, "--iptables-save", rules].map(String::from)
}

#[test]
fn a_line_for_each_rule_set_and_the_sum_at_the_end() {
    let folders = [repository("tests/corpus/seed-myapp"), repository("tests/cases/unit/clusteripgeneral-1")];
    let outcome = pollux(["verify".into()].into_iter().chain(folders.map(PathBuf::into_os_string)));
    assert_eq!(outcome.code, DONE, "{outcome:?}");
    let lines: Vec<&str> = outcome.stdout.lines().filter(|line| !line.starts_with("  ")).collect();
    let [case, v4, v6, sum] = lines.as_slice() else { panic!("{lines:?}") };
    for (line, name) in [(case, "clusteripgeneral-1 ipv4"), (v4, "seed-myapp ipv4"), (v6, "seed-myapp ipv6")]
    {
        let rest = line.strip_prefix(&format!("{name}: equal: ")).unwrap_or_else(|| panic!("{line}"));
        let pieces = rest.strip_suffix(" pieces cover all packets").unwrap_or_else(|| panic!("{line}"));
        assert!(pieces.parse::<u64>().unwrap() > 0);
    }
    assert_eq!(*sum, "3 rule sets, 3 equal, 0 different, 0 undecided");
    assert!(
        outcome.stdout.contains("  assumed: local addresses: 127.0.0.0 to 127.255.255.255, 172.16.1.50\n")
    );
}

#[test]
fn a_difference_is_a_packet_with_both_outcomes_and_exit_code_1() {
    let outcome = pollux(with_rules(scenario("iptables-save-1.20.txt").to_str().unwrap()));
    assert_eq!(outcome.code, DIFFERENCE, "{outcome:?}");
    assert!(outcome.stdout.starts_with("node ipv4: different: 1 causes\n"), "{}", outcome.stdout);
    for part in ["  1. tcp 8.8.8.8:40000 > 127.0.0.1:", "     rules: pass\n", "loopback guard (NO-07)"] {
        assert!(outcome.stdout.contains(part), "{part:?} is not in {}", outcome.stdout);
    }
    assert!(outcome.stdout.ends_with("1 rule sets, 0 equal, 1 different, 0 undecided\n"));
}

#[test]
fn what_is_not_known_is_exit_code_3_with_the_line() {
    let text = fs::read_to_string(scenario("iptables-save.txt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.txt");
    let limited = "-A FORWARD -m limit --limit 10/sec -j DROP\n-A FORWARD";
    fs::write(&rules, text.replacen("-A FORWARD", limited, 1)).unwrap();
    let outcome = pollux(with_rules(rules.to_str().unwrap()));
    assert_eq!(outcome.code, UNDECIDED, "{outcome:?}");
    let at = text.lines().position(|line| line.starts_with("-A FORWARD")).unwrap() + 1;
    let expected = format!("node ipv4: undecided: line {at}: depends on how many packets came before");
    assert!(outcome.stdout.starts_with(&expected), "{}", outcome.stdout);
}

#[test]
fn one_json_object_has_everything() {
    let folder = repository("tests/corpus/dual-stack");
    let outcome = pollux(["verify", "--json", folder.to_str().unwrap()]);
    assert_eq!(outcome.code, DONE);
    assert_eq!(outcome.stdout.lines().count(), 1);
    let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (&value["equal"], &value["different"], &value["undecided"]),
        (&2.into(), &0.into(), &0.into())
    );
    let [v4, v6] = value["rule_sets"].as_array().unwrap().as_slice() else { panic!("{value}") };
    assert_eq!(
        (&v4["family"], &v6["family"], &v4["answer"]),
        (&"ipv4".into(), &"ipv6".into(), &"equal".into())
    );
    assert_eq!(v4["pieces"], v4["confirmed"]);
    assert!(v4["forwarded"].as_u64().unwrap() > 0, "packets went through the forwarder");
}

#[test]
fn two_files_are_compared_and_one_that_is_broken_is_named() {
    let (new, old) = (scenario("iptables-save.txt"), scenario("iptables-save-1.20.txt"));
    let (new, old) = (new.to_str().unwrap(), old.to_str().unwrap());
    assert_eq!(pollux(["verify", "--against", new, new]).code, DONE);
    assert_eq!(pollux(["verify", "--against", old, new]).code, DIFFERENCE);
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.txt");
    fs::write(&broken, "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j NOWHERE\nCOMMIT\n").unwrap();
    assert_refused(
        &pollux(["verify", "--against", new, broken.to_str().unwrap()]),
        &["broken.txt", "3", "NOWHERE"],
    );
    for arguments in
        [&["verify"][..], &["verify", "--iptables-save", new], &["verify", folder.path().to_str().unwrap()]]
    {
        let outcome = pollux(arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (BAD_INPUT, ""), "{arguments:?}: {outcome:?}");
    }
}
