//! `pollux check`: case files against the compiled tables.

use std::io::Write;
use std::path::PathBuf;

use clap::ArgAction;
use serde::Serialize;

use super::{Exit, Failure};
use crate::verify::cases::{self, Case};
use crate::verify::check::{Mismatch, check};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  pollux check tests/cases/unit tests/cases/random")]
pub(super) struct Args {
    /// Case files, or directories to search for `case.json`.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print one JSON object.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    cases: usize,
    flows: usize,
    mismatches: Vec<Mismatch>,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut report = Report { cases: 0, flows: 0, mismatches: Vec::new() };
    let files = cases::find(&args.paths)?;
    if files.is_empty() {
        let paths: Vec<_> = args.paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::bad_input(format!("{}: no {} found", paths.join(", "), cases::FILE_NAME)));
    }
    for file in files {
        let case = Case::load(&file)?;
        report.cases += 1;
        report.flows += case.flows.len();
        report.mismatches.extend(check(&case));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        for mismatch in &report.mismatches {
            let Mismatch { case, flow, expected, got } = mismatch;
            writeln!(out, "{case}: {flow}: expected {expected}, got {got}")?;
        }
        let (cases, flows, mismatches) = (report.cases, report.flows, report.mismatches.len());
        writeln!(out, "{cases} cases, {flows} flows, {mismatches} mismatches")?;
    }
    Ok(if report.mismatches.is_empty() { Exit::Done } else { Exit::Difference })
}
