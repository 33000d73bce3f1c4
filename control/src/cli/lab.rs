//! The command `pollux-lab`: the comparison with the kernel, for a cluster's own objects and rules.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Exit, Failure, end, parse};
use crate::agent::Agent;
use crate::kernel::sandbox::Sandbox;
use crate::lab::pollux::Wiring;
use crate::lab::twins::{self, Ended, Report};

const EXAMPLES: &str = "\
A scenario is a folder with
  objects.yaml          Services, EndpointSlices and the Node, as `kubectl get -o yaml` prints them
  proxy-config.yaml     kube-proxy's configuration; hostnameOverride names the Node
  iptables-save.txt     what `iptables-save` prints there, ip6tables-save.txt for IPv6, or both
  sysctl.txt            settings of the node that matter (net.ipv4.conf.all.route_localnet = 1); may be absent
or with case.json and iptables-save.txt. Files may be compressed (.gz). Folders are searched for scenarios.

Works as root and as an ordinary user (in a user namespace); needs iproute2, iptables and conntrack. Nothing
outside the namespaces it makes is touched, and they end with it.

Exit code: 0 both did the same, 1 they differ, 2 bad input, 4 the machine lacks something, 130 interrupted.

Examples:
  pollux-lab run tests/corpus/lb-local
  pollux-lab run --junit lab.xml clusters/";

/// Twin nodes with the same addresses, routes and pods: in one the kernel forwards under kube-proxy's rules, in
/// the other Pollux by the objects. The same frames go into both; what leaves is compared.
#[derive(Parser, Debug)]
#[command(name = "pollux-lab", version, max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Compare Pollux with the kernel in scenarios.
    #[command(after_help = EXAMPLES)]
    Run(Args),
}

#[derive(clap::Args, Debug)]
struct Args {
    /// Folders of scenarios.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Write the results as JUnit XML, too.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let Command::Run(args) = cli.command;
    end("pollux-lab", run(&args))
}

fn run(args: &Args) -> Result<Exit, Failure> {
    let (scenarios, warnings) = twins::find(&args.paths)?;
    for warning in warnings {
        eprintln!("pollux-lab: warning: {warning}");
    }
    // Before the sandbox, which has a /run of its own.
    let junit = args.junit.as_ref().map(|path| {
        let opened = File::create(path);
        opened.map_err(|error| Failure::bad_input(format!("--junit {}: {error}", path.display())))
    });
    let junit = junit.transpose()?;
    let _sandbox = Sandbox::enter().map_err(Failure::environment)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the process at once: its namespaces go with it.
        let code = Exit::Interrupted as i32;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let is_interrupted = || interrupted.load(Ordering::Relaxed);
    let pool = Agent::pool()?;
    let level = twins::level(scenarios.len());
    let mut out = io::stdout().lock();
    let width = scenarios.iter().map(|scenario| scenario.name.chars().count()).max().unwrap_or(0).max(8);
    writeln!(out, "{:width$}   FAMILY   FLOWS   PACKETS   CHOICES   SECONDS   RESULT", "SCENARIO")?;
    let mut reports: Vec<Report> = Vec::with_capacity(scenarios.len());
    for scenario in &scenarios {
        let report = match twins::compare(scenario, Wiring::AfPacket, pool, "lab-", level, &is_interrupted) {
            Ok(report) => report,
            Err(Ended::Interrupted) => {
                eprintln!("pollux-lab: interrupted; everything is cleaned up");
                return Ok(Exit::Interrupted);
            }
            Err(Ended::Lacking(failure)) => return Err(failure),
        };
        let family = report.title().rsplit(' ').next().unwrap_or_default().to_owned();
        let result = match report.differences.len() {
            0 => "equal".to_owned(),
            1 => "1 difference".to_owned(),
            more => format!("{more} differences"),
        };
        let Report { name, flows, packets, choices, took, .. } = &report;
        let seconds = took.as_secs_f64();
        writeln!(
            out,
            "{name:width$}   {family:6}   {flows:5}   {packets:7}   {choices:7}   {seconds:7.1}   {result}"
        )?;
        out.flush()?;
        reports.push(report);
    }
    for report in reports.iter().filter(|report| !report.is_equal()) {
        writeln!(
            out,
            "\n{}: {} differ (rules by {}; Pollux dropped: {})",
            report.title(),
            report.differences.len(),
            report.loader,
            report.drops.join(", ")
        )?;
        for difference in &report.differences {
            writeln!(out, "{difference}")?;
        }
    }
    let mut deliberate = BTreeMap::new();
    for (cause, flows) in reports.iter().flat_map(|report| &report.deliberate) {
        *deliberate.entry(*cause).or_insert(0) += flows;
    }
    for (cause, flows) in deliberate {
        writeln!(out, "deliberate: {cause} ({flows} flows)")?;
    }
    let different = reports.iter().filter(|report| !report.is_equal()).count();
    writeln!(out, "{} scenarios, {} equal, {different} different", reports.len(), reports.len() - different)?;
    if let Some(mut file) = junit {
        file.write_all(twins::junit(&reports).as_bytes())?;
    }
    Ok(if different == 0 { Exit::Done } else { Exit::Difference })
}
