//! The commands' contract (spec/cli.md): names, arguments, output, exit codes. Every test runs the binary.

mod bad_input;
mod output;
mod verify;

use std::ffi::OsString;
use std::path::Path;

use pollux_tests::binary::{Outcome, pollux};
use pollux_tests::seed::Files;

/// Done, equal, no mismatch.
const DONE: i32 = 0;
/// A difference, a mismatch, a failed check.
const DIFFERENCE: i32 = 1;
/// Bad input or arguments; nothing was changed.
const BAD_INPUT: i32 = 2;
/// It could not be decided.
const UNDECIDED: i32 = 3;
/// The machine lacks something.
const ENVIRONMENT: i32 = 4;

/// Runs a command with the common arguments for these files behind its own.
fn with_files<const N: usize>(files: &Files, arguments: [&str; N]) -> Outcome {
    let mut arguments: Vec<OsString> = arguments.map(OsString::from).to_vec();
    let mut file = |option: &str, path: &Path| arguments.extend([option.into(), path.into()]);
    file("--objects", &files.objects);
    for config in &files.config {
        file("--config", config);
    }
    pollux(arguments)
}

/// The command refused its input: exit code 2, nothing on stdout, and one line on stderr with all of `words`.
#[track_caller]
fn assert_refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, BAD_INPUT, "{outcome:?}");
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    let [line] = outcome.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("one line was expected: {}", outcome.stderr)
    };
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}
