//! `pollux verify`: compiled tables against iptables' rules, for all packets.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::ArgAction;
use serde::Serialize;

use super::{Common, Exit, Failure, warn};
use crate::verify::report::{Counterexample, Sample, Way};
use crate::verify::subject::{self, Answer, RuleFiles, Verified};

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  pollux verify tests/cases tests/corpus
  iptables-save > rules.txt
  pollux verify --objects objects.yaml --config proxy-config.yaml --iptables-save rules.txt
  pollux verify --against before.txt after.txt --local-address 192.168.1.10")]
pub(super) struct Args {
    /// Folders, searched for `case.json` or `objects.yaml` with rules beside them.
    #[arg(value_name = "PATH", conflicts_with_all = ["iptables_save", "ip6tables_save", "against"])]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
    /// The node's rules, as iptables-save prints them.
    #[arg(long, value_name = "FILE")]
    iptables_save: Option<PathBuf>,
    /// The node's rules, as ip6tables-save prints them.
    #[arg(long, value_name = "FILE")]
    ip6tables_save: Option<PathBuf>,
    /// The contents of the ipsets that rules name, as `ipset save` prints them.
    #[arg(long, value_name = "FILE")]
    ipset: Option<PathBuf>,
    /// Compare two files of rules with each other.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["iptables_save", "ip6tables_save"])]
    against: Vec<PathBuf>,
    /// Another address of the node, beside those of its Node object.
    #[arg(long, value_name = "ADDRESS")]
    local_address: Vec<IpAddr>,
    /// Print one JSON object.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    rule_sets: Vec<JsonSet<'a>>,
    equal: usize,
    different: usize,
    undecided: usize,
}

#[derive(Serialize)]
struct JsonSet<'a> {
    answer: &'static str,
    #[serde(flatten)]
    verified: &'a Verified,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut found = Vec::new();
    if let [left, right] = args.against.as_slice() {
        let sets = args.ipset.as_deref();
        found.push(subject::verify_against(left, right, sets, &args.local_address)?);
    } else if args.iptables_save.is_some() || args.ip6tables_save.is_some() {
        if args.common.objects.is_empty() {
            return Err(Failure::bad_input("--objects: no file or directory is given"));
        }
        let files = RuleFiles {
            v4: args.iptables_save.clone(),
            v6: args.ip6tables_save.clone(),
            sets: args.ipset.clone(),
        };
        let sources = args.common.sources();
        let (verified, warnings) = subject::verify_sources("node", &sources, &files, &args.local_address)?;
        warn(&warnings);
        found.extend(verified);
    } else {
        found.extend(folders(args)?);
    }
    let answers: Vec<Answer> = found.iter().map(|verified| verified.report.answer()).collect();
    let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count();
    let (equal, different) = (count(Answer::Equal), count(Answer::Different));
    let undecided = count(Answer::Undecided);
    let mut out = std::io::stdout().lock();
    if args.json {
        let set = |(verified, answer)| JsonSet { answer: word(answer), verified };
        let rule_sets = found.iter().zip(answers.iter().copied()).map(set).collect();
        serde_json::to_writer(&mut out, &Json { rule_sets, equal, different, undecided })
            .map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        let sides = if args.against.is_empty() { ["rules", "tables"] } else { ["A", "B"] };
        for (verified, answer) in found.iter().zip(&answers) {
            print(&mut out, verified, *answer, sides)?;
        }
        let sets = found.len();
        writeln!(out, "{sets} rule sets, {equal} equal, {different} different, {undecided} undecided")?;
    }
    Ok(match (different, undecided) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::Undecided,
        _ => Exit::Difference,
    })
}

fn folders(args: &Args) -> Result<Vec<Verified>, Failure> {
    if args.paths.is_empty() {
        return Err(Failure::bad_input("nothing to verify: give folders, --iptables-save or --against"));
    }
    let folders = subject::find(&args.paths)?;
    if folders.is_empty() {
        let paths: Vec<_> = args.paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::bad_input(format!("{}: no case.json or objects.yaml found", paths.join(", "))));
    }
    let mut found = Vec::new();
    for folder in folders {
        let (verified, warnings) = subject::verify_folder(&folder, &args.local_address)?;
        warn(&warnings);
        found.extend(verified);
    }
    Ok(found)
}

fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Equal => "equal",
        Answer::Different => "different",
        Answer::Undecided => "undecided",
    }
}

fn print(
    out: &mut impl Write,
    verified: &Verified,
    answer: Answer,
    [first, second]: [&str; 2],
) -> std::io::Result<()> {
    let Verified { name, family, report } = verified;
    match answer {
        Answer::Equal => {
            writeln!(out, "{name} {family}: equal: {} pieces cover all packets", report.pieces)?;
        }
        Answer::Different => {
            writeln!(out, "{name} {family}: different: {} causes", report.counterexamples.len())?;
        }
        Answer::Undecided => writeln!(out, "{name} {family}: undecided: {}", report.undecided[0])?,
    }
    for assumed in &report.assumed {
        writeln!(out, "  assumed: {assumed}")?;
    }
    let rest = if answer == Answer::Undecided { 1 } else { 0 };
    for undecided in &report.undecided[rest.min(report.undecided.len())..] {
        writeln!(out, "  undecided: {undecided}")?;
    }
    for (number, counterexample) in report.counterexamples.iter().enumerate() {
        let Counterexample { packet, left, right, more, .. } = counterexample;
        writeln!(out, "  {}. {}", number + 1, in_words(packet))?;
        side(out, first, left)?;
        side(out, second, right)?;
        if *more > 0 {
            writeln!(out, "     and {more} more pieces for the same cause")?;
        }
    }
    Ok(())
}

fn side(out: &mut impl Write, name: &str, ways: &[Way]) -> std::io::Result<()> {
    for way in ways {
        match way.probability {
            1.0 => writeln!(out, "     {name}: {}", way.outcome)?,
            probability => writeln!(out, "     {name}: {} with probability {probability:.10}", way.outcome)?,
        }
        for step in &way.steps {
            writeln!(out, "       {step}")?;
        }
    }
    Ok(())
}

/// `TCP 8.8.8.8:40000 > 10.0.0.1:80 in eth0, new`
fn in_words(packet: &Sample) -> String {
    use pollux_dataplane::packet::Protocol;
    use std::net::SocketAddr;
    let protocol = Protocol(packet.protocol);
    let addresses = match protocol.has_ports() {
        true => format!(
            "{} > {}",
            SocketAddr::new(packet.source, packet.source_port),
            SocketAddr::new(packet.destination, packet.destination_port)
        ),
        false => format!("{} > {}", packet.source, packet.destination),
    };
    let input = packet.input.as_deref().map_or("from the host".into(), |name| format!("in {name}"));
    let mut words = format!("{protocol} {addresses} {input}, {}", packet.state);
    if packet.dnat {
        words.push_str(", destination translated");
    }
    for (list, age) in &packet.noted {
        words.push_str(&format!(", client noted in {list} {age} s ago"));
    }
    words
}
