//! The command as a user runs it. It is looked for beside the test's own executable, where `cargo test
//! --workspace` puts it; a test of this crate alone builds it when it is missing or older than its sources.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::SystemTime;

use crate::seed::repository;

/// What a command did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

/// Runs `pollux` with these arguments and no input.
///
/// # Panics
/// If the command cannot be built, or is ended by a signal.
pub fn pollux<I>(arguments: I) -> Outcome
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    outcome(command().args(arguments))
}

/// The command, for a test that sets more than its arguments.
///
/// # Panics
/// If it cannot be built.
pub fn command() -> Command {
    let mut command = Command::new(&*BINARY);
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be run, is ended by a signal, or prints what is not UTF-8.
pub fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Outcome {
        code: output.status.code().unwrap_or_else(|| panic!("{command:?} was ended by a signal")),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("the test's own path");
    // target/debug/deps/NAME-HASH
    let profile = test.ancestors().nth(2).expect("a profile's directory");
    let binary = profile.join("pollux");
    if built(&binary).is_none_or(|built| built < newest_source()) {
        build(profile);
    }
    assert!(binary.is_file(), "{} is missing; build it: cargo build -p pollux-control", binary.display());
    binary
});

fn build(profile: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let name = match profile.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--package", "pollux-control", "--bin", "pollux"]);
    command.args(["--profile", name]).arg("--target-dir").arg(profile.parent().expect("target"));
    let built = command.current_dir(repository(".")).status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "{command:?} failed; build it: cargo build -p pollux-control"
    );
}

fn built(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// When the newest of the command's sources was written.
fn newest_source() -> SystemTime {
    fn newest(directory: &Path) -> SystemTime {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let times = entries.map(|entry| {
            let path = entry.path();
            if path.is_dir() { newest(&path) } else { built(&path).unwrap_or(SystemTime::UNIX_EPOCH) }
        });
        times.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }
    newest(&repository("control/src")).max(newest(&repository("dataplane/src")))
}
