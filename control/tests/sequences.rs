//! The kernel as judge of packet sequences (`sequences/*.txt`): each is sent through twin nodes, and after
//! every packet what left and both connection tables must be the same, but for what is meant to differ
//! (`sequences/deliberate.txt`). Changed sequences, rules and settings show that a difference would be found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::agent::Agent;
use pollux_control::kernel::sandbox::Sandbox;
use pollux_control::lab::sequences::{
    Deliberate, Family, Nodes, Sequence, What, judge, parse, parse_deliberate, scenario,
};
use pollux_dataplane::pool::Pool;

/// As many sequences at least must have been compared with the kernel.
const SEQUENCES: usize = 40;

fn main() -> ExitCode {
    // Before anything starts a thread.
    let _sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the sequences need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (sequences, deliberate) = match read() {
        Ok(read) => read,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let deliberate: &'static [Deliberate] = deliberate.leak();
    let benches: Arc<Benches> = Arc::default();
    let mut trials = Vec::new();
    let mut named: Vec<&str> = sequences.iter().map(|sequence| sequence.name.as_str()).collect();
    named.retain(|name| !name.starts_with("tester/"));
    let known = named.len();
    let unknown: Vec<String> = deliberate
        .iter()
        .flat_map(|difference| &difference.places)
        .filter(|(name, ..)| !named.contains(&name.as_str()))
        .map(|(name, ..)| name.clone())
        .collect();
    trials.push(Trial::test("the_lists_are_whole", move || {
        if known < SEQUENCES {
            return Err(Failed::from(format!("{known} sequences")));
        }
        match unknown.as_slice() {
            [] => Ok(()),
            unknown => Err(Failed::from(format!("deliberate.txt names no sequence: {unknown:?}"))),
        }
    }));
    for sequence in sequences {
        for (family, word) in [(Family::IPv4, "ipv4"), (Family::IPv6, "ipv6")] {
            if !sequence.families[usize::from(family == Family::IPv6)] {
                continue;
            }
            let (sequence, benches) = (sequence.clone(), Arc::clone(&benches));
            trials.push(Trial::test(format!("{}/{word}", sequence.name), move || {
                is_equal(&benches, &sequence, family, deliberate).map_err(Failed::from)
            }));
        }
    }
    let tampered: [(&str, fn() -> Result<(), String>); 4] = [
        ("tampered/packet", a_changed_packet_is_found),
        ("tampered/expectation", a_changed_expectation_is_found),
        ("tampered/rules", a_changed_rule_is_found),
        ("tampered/timeout", a_changed_timeout_is_found),
    ];
    trials.extend(tampered.map(|(name, test)| Trial::test(name, move || test().map_err(Failed::from))));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sequences")
}

/// All sequences, and what is meant to differ.
fn read() -> Result<(Vec<Sequence>, Vec<Deliberate>), String> {
    let text = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let entries = fs::read_dir(folder()).map_err(|error| format!("{}: {error}", folder().display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut sequences = Vec::new();
    let mut deliberate = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "txt")) {
        let wrong = |error: String| format!("{}: {error}", path.display());
        if path.file_name().is_some_and(|name| name == "deliberate.txt") {
            deliberate = parse_deliberate(&text(path)?).map_err(wrong)?;
        } else {
            sequences.extend(parse(&text(path)?).map_err(wrong)?);
        }
    }
    Ok((sequences, deliberate))
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| Agent::pool().expect("memory for packets"))
}

/// Nodes by family and settings, made when they are first needed.
#[derive(Default)]
struct Benches(Mutex<BTreeMap<(bool, BTreeMap<String, u32>), Bench>>);

/// Nodes that one sequence after the other goes through.
type Bench = Arc<Mutex<Option<Nodes>>>;

fn is_equal(
    benches: &Benches,
    sequence: &Sequence,
    family: Family,
    deliberate: &[Deliberate],
) -> Result<(), String> {
    let key = (family == Family::IPv6, sequence.settings.clone());
    let (bench, number) = {
        let mut benches = benches.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = benches.len();
        (Arc::clone(benches.entry(key).or_default()), number)
    };
    let mut nodes = bench.lock().unwrap_or_else(PoisonError::into_inner);
    let nodes = match &mut *nodes {
        Some(nodes) => nodes,
        empty => {
            let scenario = scenario(&folder(), family).map_err(|error| error.to_string())?;
            let made = Nodes::start(&scenario, &sequence.settings, pool(), &format!("seq{number}-"));
            empty.insert(made.map_err(|error| error.to_string())?)
        }
    };
    let outcomes = nodes.run(sequence, None).map_err(|error| error.to_string())?;
    if std::env::var_os("SHOW_SEQUENCES").is_some() {
        for outcome in &outcomes {
            eprint!("{outcome}");
        }
    }
    judge(sequence, family, &outcomes, deliberate)
}

/// The sequence that is changed.
const HANDSHAKE: &str = "sequence tester\n  tcp client > node\n  > S 1000 => SYN_SENT unreplied\n  < SA 5000 1001 => SYN_RECV\n  \
                         > A 1001 5001 => ESTABLISHED assured\n  > PA 1001 5001 +10\n";

/// The places where `HANDSHAKE` differs when the kernel's node gets `sequence`, Pollux's `instead`, and the rules
/// are changed by `tamper`.
fn places(
    prefix: &str,
    sequence: &str,
    instead: &str,
    tamper: impl Fn(&str) -> String,
    pollux: &[(&str, u32)],
) -> Result<Vec<(usize, What)>, String> {
    let mut scenario = scenario(&folder(), Family::IPv4).map_err(|error| error.to_string())?;
    scenario.rules = tamper(&scenario.rules);
    let settings = BTreeMap::new();
    let mut nodes = Nodes::start(&scenario, &settings, pool(), prefix).map_err(|error| error.to_string())?;
    for (name, value) in pollux {
        nodes.set_kernel(name, *value).map_err(|error| error.to_string())?;
    }
    let one = |text: &str| parse(text).map(|mut sequences| sequences.remove(0));
    let outcomes = nodes.run(&one(sequence)?, Some(&one(instead)?)).map_err(|error| error.to_string())?;
    let places = |outcomes: &[pollux_control::lab::sequences::Outcome]| {
        outcomes
            .iter()
            .flat_map(|outcome| outcome.differences().into_iter().map(|what| (outcome.number, what)))
            .collect::<Vec<_>>()
    };
    Ok(places(&outcomes))
}

fn found(places: &[(usize, What)], expected: &[(usize, What)]) -> Result<(), String> {
    if places == expected { Ok(()) } else { Err(format!("{places:?}, and not {expected:?}")) }
}

fn a_changed_packet_is_found() -> Result<(), String> {
    let same = |rules: &str| rules.to_owned();
    found(&places("seqt0-", HANDSHAKE, HANDSHAKE, same, &[])?, &[])?;
    // One bit of the sequence number; another flag.
    let other = HANDSHAKE.replace("> S 1000", "> S 1001");
    found(&places("seqt1-", HANDSHAKE, &other, same, &[])?, &[(1, What::Left)])?;
    let other = HANDSHAKE.replace("> PA 1001 5001", "> FA 1001 5001");
    found(&places("seqt2-", HANDSHAKE, &other, same, &[])?, &[(4, What::Left), (4, What::Table)])
}

fn a_changed_expectation_is_found() -> Result<(), String> {
    let other = HANDSHAKE.replace("=> SYN_RECV", "=> SYN_SENT");
    let places = places("seqt3-", &other, HANDSHAKE, |rules| rules.to_owned(), &[])?;
    found(&places, &[(2, What::Expectation)])
}

fn a_changed_rule_is_found() -> Result<(), String> {
    let tamper = |rules: &str| {
        let other = rules.replace("--to-destination 10.151.51.7:8080", "--to-destination 10.151.51.7:8081");
        assert_ne!(other, rules);
        other
    };
    let places = places("seqt4-", HANDSHAKE, HANDSHAKE, tamper, &[])?;
    let both = |number| [(number, What::Left), (number, What::Table)];
    // The answer is translated back to the same.
    let expected = [both(1).to_vec(), vec![(2, What::Table)], both(3).to_vec(), both(4).to_vec()].concat();
    found(&places, &expected)
}

fn a_changed_timeout_is_found() -> Result<(), String> {
    // By less than what tells one timeout from another, and by more.
    let same = |rules: &str| rules.to_owned();
    let syn_recv = "nf_conntrack_tcp_timeout_syn_recv";
    let before = places("seqt5-", HANDSHAKE, HANDSHAKE, same, &[(syn_recv, 115)])?;
    found(&before, &[(2, What::Time)])?;
    let before = places("seqt6-", HANDSHAKE, HANDSHAKE, same, &[(syn_recv, 330)])?;
    found(&before, &[(2, What::Table)])
}
