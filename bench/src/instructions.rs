//! The guard over instruction counts: how many instructions a packet costs, counted by callgrind.
//!
//! A time varies with the machine and its load, a count does not: the same binary gives the same number
//! everywhere, so a change of a few per cent shows, in CI too. The expected counts are checked in, one file
//! for each architecture (`bench/instructions.x86_64.txt`); [`main`] compares and fails on a regression.
//!
//! How it counts: the bench binary runs itself under `valgrind --tool=callgrind`, once for each [`Case`].
//! Callgrind collects only inside `pollux_counted` (`--toggle-collect`), so what a case prepares is not
//! counted. A case must do the same work in every run: no clock, no random seeds, no `RandomState`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs, io};

use crate::Work;

/// How far a count may be from the expected one.
const TOLERANCE_PERCENT: f64 = 3.0;

/// Runs before the counted one, so that tables are as in steady operation.
const WARM_UP: u32 = 2;

/// The environment lacks something, with what to do.
const EXIT_ENVIRONMENT: u8 = 4;

/// What is counted.
pub struct Case {
    /// Its name in the file of expected counts: one word.
    pub name: &'static str,
    /// Builds everything that the work needs. Not counted.
    pub prepare: fn() -> Box<dyn Work>,
}

/// Counts `cases`, compares them with the expected counts and prints both. With `--update` as argument,
/// writes them as the expected ones.
///
/// Exit codes: 0 as expected or better, 1 a regression or a wrong result, 4 no valgrind.
pub fn main(cases: &[Case]) -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [measure, name] = &arguments[..]
        && measure == "--measure"
    {
        return run_one(cases, name);
    }
    let counted = match cases.iter().map(count).collect::<Result<Vec<_>, _>>() {
        Ok(counted) => counted,
        Err(failure) => {
            eprintln!("instructions: {failure}");
            return match failure {
                Failure::NoValgrind(_) => ExitCode::from(EXIT_ENVIRONMENT),
                _ => ExitCode::FAILURE,
            };
        }
    };
    let file = expected_file();
    if arguments.iter().any(|argument| argument == "--update") {
        return match fs::write(&file, render(&counted)) {
            Ok(()) => {
                println!("wrote {}", file.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("instructions: {}: {error}", file.display());
                ExitCode::FAILURE
            }
        };
    }
    let expected = match fs::read_to_string(&file) {
        Ok(text) => match parse(&text) {
            Ok(expected) => expected,
            Err(error) => {
                eprintln!("instructions: {}: {error}", file.display());
                return ExitCode::FAILURE;
            }
        },
        // Another architecture has other counts; none are known for it yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            print!("{}", render(&counted));
            println!("nothing to compare with: {} does not exist", file.display());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("instructions: {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let report = compare(&expected, &counted);
    print!("{}", report.text);
    if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A name and its instructions per operation.
type Count = (String, f64);

#[derive(Debug)]
enum Failure {
    NoValgrind(io::Error),
    Valgrind { case: &'static str, said: String },
    Output { case: &'static str, error: io::Error },
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NoValgrind(error) => {
                write!(f, "valgrind can not be started ({error}): scripts/setup.sh test installs it")
            }
            Failure::Valgrind { case, said } => write!(f, "{case} failed under valgrind:\n{said}"),
            Failure::Output { case, error } => write!(f, "{case}: callgrind's output: {error}"),
        }
    }
}

/// The only function in which callgrind collects; found by its name, so it is never inlined.
#[inline(never)]
fn pollux_counted(work: &mut dyn Work) {
    work.run();
}

/// The part that runs under callgrind.
fn run_one(cases: &[Case], name: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else {
        eprintln!("no case {name}");
        return ExitCode::FAILURE;
    };
    let mut work = (case.prepare)();
    for _ in 0..WARM_UP {
        work.run();
        work.check();
    }
    pollux_counted(&mut *work);
    let (right, operations) = (work.check(), work.operations());
    if right != operations {
        eprintln!("{right} of {operations} operations had the right result");
        return ExitCode::FAILURE;
    }
    println!("{operations}");
    ExitCode::SUCCESS
}

fn count(case: &Case) -> Result<Count, Failure> {
    let output_file = env::temp_dir().join(format!("pollux-callgrind-{}-{}", std::process::id(), case.name));
    let result = count_into(case, &output_file);
    let _ = fs::remove_file(&output_file);
    result
}

fn count_into(case: &Case, output_file: &Path) -> Result<Count, Failure> {
    let case_name = case.name;
    let failed = |error| Failure::Output { case: case_name, error };
    let mut out_argument = std::ffi::OsString::from("--callgrind-out-file=");
    out_argument.push(output_file);
    let path = env::var_os("PATH").unwrap_or_default();
    // Nothing of the user's settings may change a count: no VALGRIND_OPTS, no .valgrindrc, no allocator
    // tunables, and the same size of environment everywhere.
    let output = Command::new("valgrind")
        .env_clear()
        .env("PATH", path)
        .current_dir("/")
        .args(["--tool=callgrind", "--quiet", "--toggle-collect=*pollux_counted*"])
        .arg(out_argument)
        .arg(env::current_exe().map_err(failed)?)
        .args(["--measure", case.name])
        .stdin(Stdio::null())
        .output()
        .map_err(Failure::NoValgrind)?;
    let said = || {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        Failure::Valgrind { case: case_name, said }
    };
    if !output.status.success() {
        return Err(said());
    }
    let operations: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| said())?;
    let total = total(&fs::read_to_string(output_file).map_err(failed)?).filter(|&total| total > 0);
    match total {
        Some(total) => Ok((case.name.to_owned(), total as f64 / operations)),
        None => Err(failed(io::Error::other("nothing was counted"))),
    }
}

/// The instructions of a callgrind output: its `totals:` line, for the only event `Ir`.
fn total(callgrind_output: &str) -> Option<u64> {
    callgrind_output.lines().rev().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

fn expected_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("instructions.{}.txt", env::consts::ARCH))
}

fn render(counts: &[Count]) -> String {
    let mut text = String::from(
        "# Instructions per packet (or operation), counted by callgrind. `make test` compares.\n\
         # To accept new counts: cargo bench -p pollux-bench --bench instructions -- --update\n",
    );
    for (name, count) in counts {
        let _ = writeln!(text, "{name:<24} {count:>10.2}");
    }
    text
}

fn parse(text: &str) -> Result<Vec<Count>, String> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let wrong = || format!("line {}: {line:?} is not a name and a positive number", number + 1);
            let mut words = line.split_whitespace();
            let (Some(name), Some(count), None) = (words.next(), words.next(), words.next()) else {
                return Err(wrong());
            };
            match count.parse::<f64>() {
                Ok(count) if count.is_finite() && count > 0.0 => Ok((name.to_owned(), count)),
                _ => Err(wrong()),
            }
        })
        .collect()
}

struct Report {
    text: String,
    failed: bool,
}

/// Regressions fail, and so does a case without an expectation or the other way round: the guard can not be
/// dropped by renaming.
fn compare(expected: &[Count], counted: &[Count]) -> Report {
    let update = "cargo bench -p pollux-bench --bench instructions -- --update";
    let mut text = format!("instructions per operation, tolerance {TOLERANCE_PERCENT} %\n");
    let mut failures = String::new();
    let mut improved = false;
    for (name, count) in counted {
        let Some((_, wanted)) = expected.iter().find(|(other, _)| other == name) else {
            let _ =
                writeln!(failures, "{name}: {count:.2} counted, no count expected; to accept it: {update}");
            continue;
        };
        let percent = (count / wanted - 1.0) * 100.0;
        let _ =
            writeln!(text, "{name:<24} expected {wanted:>10.2}  counted {count:>10.2}  {percent:>+7.2} %");
        if percent > TOLERANCE_PERCENT {
            let _ = writeln!(
                failures,
                "{name}: regression: {count:.2} instructions, expected {wanted:.2} ({percent:+.2} %)"
            );
        }
        improved |= percent < -TOLERANCE_PERCENT;
    }
    for (name, wanted) in expected {
        if !counted.iter().any(|(other, _)| other == name) {
            let _ = writeln!(failures, "{name}: {wanted:.2} expected, but it was not counted");
        }
    }
    if improved {
        let _ = writeln!(text, "better than expected; to keep it from getting worse again: {update}");
    }
    text.push_str(&failures);
    Report { text, failed: !failures.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(&str, f64)]) -> Vec<Count> {
        list.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
    }

    #[test]
    fn three_per_cent_more_pass_and_a_little_beyond_fails_with_both_counts() {
        let expected = counts(&[("established", 200.0)]);
        assert!(!compare(&expected, &counts(&[("established", 205.9)])).failed);
        let report = compare(&expected, &counts(&[("established", 206.1)]));
        assert!(report.failed);
        assert!(report.text.contains("206.10 instructions, expected 200.00 (+3.05 %)"));
    }

    #[test]
    fn an_improvement_passes_and_says_how_to_keep_it() {
        let expected = counts(&[("established", 200.0)]);
        let report = compare(&expected, &counts(&[("established", 150.0)]));
        assert!(!report.failed);
        assert!(report.text.contains("--update"));
        assert!(!compare(&expected, &counts(&[("established", 199.0)])).text.contains("--update"));
    }

    #[test]
    fn a_case_can_not_come_or_go_unnoticed() {
        let both = counts(&[("established", 200.0), ("new", 900.0)]);
        let one = counts(&[("established", 200.0)]);
        assert!(compare(&both, &one).failed);
        assert!(compare(&one, &both).failed);
        assert!(!compare(&both, &both).failed);
    }

    #[test]
    fn the_file_reads_back_as_written_and_nonsense_is_refused_with_its_line() {
        let both = counts(&[("established", 200.25), ("new", 900.5)]);
        assert_eq!(parse(&render(&both)).unwrap(), both);
        for nonsense in ["# fine\nnew", "# fine\nnew 0", "# fine\nnew NaN", "# fine\nnew 1 2"] {
            assert!(parse(nonsense).unwrap_err().starts_with("line 2:"));
        }
    }

    #[test]
    fn the_total_of_callgrinds_output_is_found() {
        assert_eq!(total("events: Ir\nsummary: 7\n\nfn=(1)\n0 7\n\ntotals: 7\n"), Some(7));
        assert_eq!(total("events: Ir\n"), None);
    }
}
