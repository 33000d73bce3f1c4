//! The kernel as judge: every dump of the corpus, a fixed sample of the cases, and the rules of kube-proxy
//! 1.20, in twin nodes that are sent the same frames. What Pollux does otherwise on purpose is asserted as
//! exactly as what it does alike; and rules that were tampered with show that a difference would be found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::agent::Agent;
use pollux_control::kernel::sandbox::{Privilege, Sandbox};
use pollux_control::lab::pollux::Wiring;
use pollux_control::lab::twins::{
    self, Deliberate, Difference, Dump, Ended, Family, Report, Scenario, compare, folder_scenarios,
};
use pollux_dataplane::pool::Pool;

/// Cases that are compared: of the random ones, which are IPv4's, some that between them have every policy,
/// affinity, source ranges, local load-balancer addresses and host-network endpoints; all of IPv6's.
const CASES: [&str; 20] = [
    "random/random-1000",
    "random/random-1001",
    "random/random-1003",
    "random/random-1006",
    "random/random-1011",
    "random/random-1012",
    "random/random-1014",
    "random/random-1052",
    "random/random-1057",
    "random/random-1068",
    "random/random-1083",
    "random/random-1099",
    "unit/internalexternalmasquerade-no-localtrafficdetector-1",
    "unit/clusteripgeneral-1",
    "unit/nodeports-ipv6-localhost-nodeports-disabled-1",
    "unit/nodeports-ipv6-localhost-nodeports-disabled-3",
    "unit/nodeports-ipv6-localhost-nodeports-disabled-multiple-nodeport-addresses-2",
    "unit/nodeports-ipv6-localhost-nodeports-disabled-multiple-nodeport-addresses-3",
    "unit/nodeports-ipv6-localhost-nodeports-enabled-1",
    "unit/nodeports-ipv6-localhost-nodeports-enabled-3",
];

/// Folders that are compared over AF_XDP as well. The others are shown as ignored: `make soak` compares them.
const ON_XDP: [&str; 8] = [
    "dual-stack",
    "hairpin",
    "lb-local",
    "no-endpoints",
    "nodeport-cluster",
    "seed-myapp",
    "session-affinity",
    "udp",
];

/// Buffers for the rings of a node's AF_XDP ports, and for packets.
const XDP_BUFFERS: usize = 32 * 1024;

/// What is compared in a run of all tests, at most: for the level of a single test of a choice.
const SCENARIOS: usize = 260;

fn main() -> ExitCode {
    // Before anything starts a thread.
    let sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the twins need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    for name in folders() {
        for family in [Family::IPv4, Family::IPv6] {
            let folder = name.clone();
            let title = format!("corpus/{name}/{}", word(family));
            trials
                .push(trial(title, move |prefix| corpus_is_equal(&folder, family, Wiring::AfPacket, prefix)));
            // bpf() needs root.
            if sandbox.privilege() == Privilege::Root {
                let folder = name.clone();
                let title = format!("af_xdp/{name}/{}", word(family));
                let all = trial(title, move |prefix| corpus_is_equal(&folder, family, Wiring::AfXdp, prefix));
                trials.push(all.with_ignored_flag(!ON_XDP.contains(&name.as_str())));
            }
        }
        if existing(&corpus(&name), OLD_RULES) {
            let title = format!("corpus_1_20/{name}");
            trials.push(trial(title, move |prefix| no_06_old_rules_differ_as_known(&name, prefix)));
        }
    }
    for case in CASES {
        trials.push(trial(case.to_owned(), move |prefix| case_is_equal(case, prefix)));
    }
    let tampered: [(&str, Tampered); 6] = [
        ("tampered/translation", a_wrong_port_is_found),
        ("tampered/masquerade", a_missing_mark_is_found),
        ("tampered/probability", a_bent_probability_is_found),
        ("tampered/verdict", a_missing_reject_is_found),
        ("tampered/other_rules", rules_of_another_cluster_are_found),
        ("tampered/ports", masqueraded_ports_that_are_not_random_are_found),
    ];
    trials.extend(tampered.map(|(name, test)| trial(name.to_owned(), test)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A test of rules that were tampered with, given the prefix of its namespaces.
type Tampered = fn(&str) -> Outcome;

fn trial(name: String, test: impl FnOnce(&str) -> Outcome + Send + 'static) -> Trial {
    // Each has namespaces of its own, so that they can run side by side.
    let prefix = format!("{}-", name.replace('/', "-"));
    Trial::test(name, move || test(&prefix).map_err(|error| Failed::from(error.to_string())))
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

fn corpus(name: &str) -> PathBuf {
    tests().join("corpus").join(name)
}

fn folders() -> Vec<String> {
    let entries = std::fs::read_dir(tests().join("corpus")).expect("the corpus is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    assert_eq!(names.len(), 50);
    names
}

fn existing(folder: &Path, name: &str) -> bool {
    folder.join(name).exists() || folder.join(format!("{name}.gz")).exists()
}

fn word(family: Family) -> &'static str {
    match family {
        Family::IPv4 => "ipv4",
        Family::IPv6 => "ipv6",
    }
}

/// A folder's scenario of one family.
fn scenario(name: &str, family: Family) -> Result<Scenario, Box<dyn std::error::Error>> {
    let (scenarios, _) = folder_scenarios(&corpus(name), &Dump::default())?;
    let found = scenarios.into_iter().find(|scenario| scenario.family == family);
    found.ok_or_else(|| format!("{name} has no {} rules", word(family)).into())
}

/// Compares under a level that keeps the whole run's false alarms below one in a million.
fn run(scenario: &Scenario, prefix: &str) -> Result<Report, Box<dyn std::error::Error>> {
    run_on(scenario, Wiring::AfPacket, prefix)
}

fn run_on(scenario: &Scenario, wiring: Wiring, prefix: &str) -> Result<Report, Box<dyn std::error::Error>> {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    static XDP: Mutex<Option<&'static Pool>> = Mutex::new(None);
    let mut one_at_a_time;
    let pool = match wiring {
        Wiring::AfPacket => POOL.get_or_init(|| Agent::pool().expect("memory for packets")),
        // Its rings keep buffers.
        Wiring::AfXdp => {
            one_at_a_time = XDP.lock().unwrap_or_else(PoisonError::into_inner);
            one_at_a_time.get_or_insert_with(|| Pool::new(XDP_BUFFERS).expect("memory for packets"))
        }
    };
    compare(scenario, wiring, pool, prefix, twins::level(SCENARIOS), &|| false).map_err(|ended| match ended {
        Ended::Interrupted => "interrupted".into(),
        Ended::Lacking(failure) => failure.to_string().into(),
    })
}

fn assert_equal(report: &Report) -> Outcome {
    if report.is_equal() {
        return Ok(());
    }
    let all: Vec<String> = report.differences.iter().map(Difference::to_string).collect();
    let drops = report.drops.join(", ");
    Err(format!("{}: {} differ (Pollux dropped: {drops})\n{}", report.title(), all.len(), all.join("\n"))
        .into())
}

fn corpus_is_equal(name: &str, family: Family, wiring: Wiring, prefix: &str) -> Outcome {
    let scenario = scenario(name, family)?;
    let report = run_on(&scenario, wiring, prefix)?;
    assert_equal(&report)?;
    assert!(report.flows >= 90, "{} flows", report.flows);
    let loopback_is_routed =
        scenario.settings.iter().any(|(path, value)| path.ends_with("route_localnet") && value == "1");
    let has_services = scenario.cluster.services.values().any(|service| {
        !service.cluster_ips.is_empty() && service.cluster_ips.iter().any(|address| address.is_ipv6())
    });
    // Kernels differ in whether they take IPv4-mapped sources at all; the others are every kernel's.
    let every_kernel_s = |cause: &Deliberate| *cause != Deliberate::MappedV6;
    let causes: Vec<Deliberate> = report.deliberate.keys().copied().filter(every_kernel_s).collect();
    let expected = match family {
        Family::IPv4 if loopback_is_routed => vec![Deliberate::LoopbackLeaves],
        Family::IPv4 => vec![],
        Family::IPv6 if has_services => {
            vec![Deliberate::LoopbackLeaves, Deliberate::UnspecifiedV6, Deliberate::LoopbackV6Answered]
        }
        Family::IPv6 => vec![Deliberate::UnspecifiedV6],
    };
    assert_eq!(causes, expected);
    Ok(())
}

fn case_is_equal(name: &str, prefix: &str) -> Outcome {
    let (scenarios, _) = folder_scenarios(&tests().join("cases").join(name), &Dump::default())?;
    for scenario in &scenarios {
        let report = run(scenario, prefix)?;
        assert_equal(&report)?;
        assert_eq!(report.flows, scenario.flows.as_ref().map_or(0, Vec::len));
    }
    Ok(())
}

const OLD_RULES: &str = "iptables-save-1.20.txt";

/// Why the rules of 1.20 do otherwise than the tables, which follow 1.36.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Old {
    /// NO-07: 1.20 leaves 127.0.0.0/8 open to other nodes.
    NoGuard,
    /// NO-06: to external IPs the host's own packets only go when the address is the node's.
    ExternalFromHost,
    /// NO-06: ranges and missing local endpoints only mark (KUBE-MARK-DROP is empty without kubelet's rules),
    /// and on INPUT and OUTPUT only.
    MarkedToDrop,
}

fn cause(name: &str, difference: &Difference) -> Option<Old> {
    let Difference { flow, step, kernel, pollux } = difference;
    let dropped = *pollux == ["nothing"];
    match *step {
        "first packet" if dropped && flow.contains(" > 127.0.0.1:7001 in ") => Some(Old::NoGuard),
        "first packet" if name == "external-ips" && flow.starts_with("host") && !dropped => {
            let untouched = kernel
                .iter()
                .all(|words| words.contains(" > 172.16.1.72:80") || words.contains(" > 198.51.100.72:80"));
            untouched.then_some(Old::ExternalFromHost)
        }
        "first packet" if dropped && !kernel.iter().any(|words| words == "nothing") => {
            Some(Old::MarkedToDrop)
        }
        _ => None,
    }
}

fn no_06_old_rules_differ_as_known(name: &str, prefix: &str) -> Outcome {
    let dump = Dump {
        v4: OLD_RULES.into(),
        v6: "ip6tables-save-1.20.txt".into(),
        configuration: "proxy-config-1.20.yaml".into(),
    };
    let (scenarios, _) = folder_scenarios(&corpus(name), &dump)?;
    let [scenario] = scenarios.as_slice() else { return Err("one dump".into()) };
    let mut report = run(scenario, prefix)?;
    let mut causes: BTreeMap<Old, usize> = BTreeMap::new();
    report.differences.retain(|difference| match cause(name, difference) {
        Some(cause) => {
            *causes.entry(cause).or_default() += 1;
            false
        }
        None => true,
    });
    assert_equal(&report)?;
    let (guard, marked) = match name {
        // route_localnet is off there.
        "nodeport-addresses" => (None, None),
        "lb-source-ranges" => (Some(3), Some(8)),
        "nodeport-local-none" => (Some(3), Some(2)),
        _ => (Some(3), None),
    };
    let external = (name == "external-ips").then_some(4);
    let expected = [(Old::NoGuard, guard), (Old::ExternalFromHost, external), (Old::MarkedToDrop, marked)];
    let expected: BTreeMap<Old, usize> =
        expected.into_iter().filter_map(|(cause, count)| Some((cause, count?))).collect();
    assert_eq!(causes, expected);
    Ok(())
}

/// Compares a corpus folder with its rules changed by `tamper`, which must change something.
fn tampered(
    name: &str,
    prefix: &str,
    tamper: impl Fn(&str) -> String,
) -> Result<Report, Box<dyn std::error::Error>> {
    let mut scenario = scenario(name, Family::IPv4)?;
    let rules = tamper(&scenario.rules);
    assert_ne!(rules, scenario.rules);
    scenario.rules = rules;
    run(&scenario, prefix)
}

fn found<'a>(
    report: &'a Report,
    flow: &str,
    step: &str,
) -> Result<&'a Difference, Box<dyn std::error::Error>> {
    let mut differences = report.differences.iter();
    let found = differences.find(|difference| difference.flow.starts_with(flow) && difference.step == step);
    found.ok_or_else(|| format!("{flow}, {step}: not found in {:#?}", report.differences).into())
}

fn a_wrong_port_is_found(prefix: &str) -> Outcome {
    let report = tampered("lb-local", prefix, |rules| {
        rules.replace("--to-destination 10.151.51.7:80", "--to-destination 10.151.51.7:81")
    })?;
    let difference = found(&report, "pod: tcp 10.151.51.200 > 10.150.0.68:80 in cali1", "first packet")?;
    assert!(difference.kernel.iter().any(|words| words.contains("> 10.151.51.7:81 ")), "{difference}");
    assert!(!difference.pollux.iter().any(|words| words.contains("> 10.151.51.7:81 ")), "{difference}");
    // It is a backend of the service's, and no other's.
    assert!(report.differences.iter().all(|difference| !difference.flow.contains("pod to neighbour")));
    Ok(())
}

fn a_missing_mark_is_found(prefix: &str) -> Outcome {
    let report = tampered("nodeport-cluster", prefix, |rules| {
        rules.lines().filter(|line| !line.contains("masquerade traffic for default/")).fold(
            String::new(),
            |mut text, line| {
                text.push_str(line);
                text.push('\n');
                text
            },
        )
    })?;
    let difference = found(&report, "client: tcp 198.51.100.77 > 172.16.1.50:", "first packet")?;
    assert!(
        difference.kernel.iter().all(|words| words.starts_with("198.51.100.77:client's >")),
        "{difference}"
    );
    assert!(
        difference.pollux.iter().all(|words| words.starts_with("172.16.1.50:(1024-65535) >")),
        "{difference}"
    );
    Ok(())
}

fn a_bent_probability_is_found(prefix: &str) -> Outcome {
    let report = tampered("five-endpoints", prefix, |rules| rules.replace("0.20000000019", "0.30000000000"))?;
    let difference = found(&report, "choice: tcp", "distribution of backends")?;
    assert_eq!(report.differences, std::slice::from_ref(difference), "the sets are the same");
    Ok(())
}

fn a_missing_reject_is_found(prefix: &str) -> Outcome {
    let report = tampered("no-endpoints", prefix, |rules| {
        rules.replace("-j REJECT --reject-with icmp-port-unreachable", "-j ACCEPT")
    })?;
    let difference = found(&report, "client: tcp 198.51.100.77 > 10.150.", "first packet")?;
    assert!(difference.kernel.iter().all(|words| words.ends_with("ttl 63 by ens3")), "{difference}");
    assert!(
        difference.pollux.iter().all(|words| words.starts_with("ICMP error 3/3 172.16.1.50 >")),
        "{difference}"
    );
    Ok(())
}

fn rules_of_another_cluster_are_found(prefix: &str) -> Outcome {
    let other = scenario("udp", Family::IPv4)?.rules;
    let report = tampered("target-port", prefix, |_| other.clone())?;
    assert!(report.differences.len() > 4, "{:#?}", report.differences);
    Ok(())
}

fn masqueraded_ports_that_are_not_random_are_found(prefix: &str) -> Outcome {
    // One rule that asks for random ports, so that Pollux does, and one before it that keeps them.
    let report = tampered("seed-myapp", prefix, |rules| {
        let last = "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE";
        rules.replace(&format!("{last} --random-fully"), &format!("{last}\n{last} --random-fully"))
    })?;
    found(&report, "choice: tcp", "distribution of masqueraded ports")?;
    Ok(())
}
