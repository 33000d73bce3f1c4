//! The command line: one file for each command. Data goes to stdout, everything else to stderr; the exit
//! codes are [`Exit`]'s.

mod capture;
mod check;
mod compile;
mod conntrack;
mod demo;
mod get;
pub mod lab;
mod manual;
mod replay;
mod run;
mod stats;
mod table;
mod trace;
mod verify;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::agent::{Inputs, Sources};
use crate::compile::Compiled;
use crate::node::{Links, NodeView};
use crate::problem::{Problem, Problems};

/// Userspace forwarding of Kubernetes Services: what kube-proxy's iptables rules do, at another speed.
#[derive(Parser, Debug)]
#[command(name = "pollux", version, max_term_width = 100, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Watch real connections go through a ClusterIP, in a cluster of network namespaces.
    Demo(demo::Args),
    /// Run the forwarder on this node.
    Run(run::Args),
    /// Show what a running forwarder works with.
    Get(get::Args),
    /// Show a running forwarder's counters and rates.
    Stats(stats::Args),
    /// Show and delete a running forwarder's connections, as conntrack(8) does the kernel's.
    Conntrack(conntrack::Args),
    /// Show a running forwarder's frames with what was decided about each, or write them to a capture file.
    Capture(capture::Args),
    /// Compile objects and configuration, and show the tables.
    Compile(compile::Args),
    /// Show what becomes of a packet, step by step, in the words of iptables.
    Trace(trace::Args),
    /// Check compiled tables against case files.
    Check(check::Args),
    /// Prove that compiled tables do what iptables' rules do, for all packets; or name packets for which they do not.
    Verify(verify::Args),
    /// Forward the frames of a capture file.
    Replay(replay::Args),
    #[command(flatten)]
    Manual(manual::Command),
}

/// Arguments that name the cluster, the configuration and the node.
#[derive(Args, Clone, Debug, Default)]
pub struct Common {
    /// KubeProxyConfiguration and Pollux's own Node document; may hold several documents.
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Services, EndpointSlices and Nodes: a file or a directory (.yaml .yml .json, also .gz).
    #[arg(long, value_name = "PATH")]
    pub objects: Vec<PathBuf>,
    /// Name of this node; otherwise `hostnameOverride`, otherwise the system's host name.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

impl Common {
    /// Reads objects and configuration, says warnings on stderr.
    pub(crate) fn load(&self) -> Result<Inputs, Failure> {
        if self.objects.is_empty() {
            return Err(Failure::bad_input("--objects: no file or directory is given"));
        }
        let (inputs, warnings) = self.sources().read()?;
        warn(&warnings);
        Ok(inputs)
    }

    /// The files that the arguments name.
    pub(crate) fn sources(&self) -> Sources {
        Sources { config: self.config.clone(), objects: self.objects.clone(), node: self.node.clone() }
    }
}

impl Inputs {
    /// The node of Pollux's own configuration document.
    pub(crate) fn view(&self, links: &Links) -> Result<NodeView, Failure> {
        let node = self.config.node.as_ref().ok_or_else(|| {
            Failure::bad_input(
                "--config: no document of kind Node (pollux.dev/v1alpha1): ports and routes are not known",
            )
        })?;
        let (view, warnings) = NodeView::configured(node, links, &self.config.proxy.detect_local)?;
        warn(&warnings);
        Ok(view)
    }

    /// The compiled tables; conflicts that were decided are said on stderr.
    pub(crate) fn compile(&self, view: &NodeView) -> Compiled {
        let compiled = crate::compile::compile(&self.cluster, &self.config, &self.node, view);
        warn(&compiled.reports);
        compiled
    }
}

/// The exit codes of all commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done, equal, no mismatch.
    Done = 0,
    /// A difference, a mismatch, a failed check.
    Difference = 1,
    /// Bad input or arguments; nothing was changed.
    BadInput = 2,
    /// It could not be decided.
    Undecided = 3,
    /// The environment lacks something: privilege, interface, a tool.
    Environment = 4,
    /// Interrupted, and cleaned up.
    Interrupted = 130,
}

/// A command that ended early: what is said on stderr, and the exit code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// Bad input: one clear line for each problem.
    pub fn bad_input(message: impl Display) -> Failure {
        Failure { exit: Exit::BadInput, message: message.to_string() }
    }

    /// Something that the machine lacks, with what to do.
    pub fn environment(message: impl Display) -> Failure {
        Failure { exit: Exit::Environment, message: message.to_string() }
    }

    /// A check that failed.
    pub fn difference(message: impl Display) -> Failure {
        Failure { exit: Exit::Difference, message: message.to_string() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        Failure::bad_input(problems)
    }
}

impl From<io::Error> for Failure {
    /// An I/O error while printing or talking to the machine.
    fn from(error: io::Error) -> Failure {
        Failure::environment(error)
    }
}

/// Reads a program's arguments, or ends it with what clap has to say.
fn parse<T: Parser>() -> Result<T, ExitCode> {
    restore_sigpipe();
    T::try_parse().map_err(|error| {
        let _ = error.print();
        // `--help` and `--version` are no errors; clap's own code for bad arguments is 2 already.
        ExitCode::from(if error.use_stderr() { Exit::BadInput as u8 } else { Exit::Done as u8 })
    })
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Run(args) => run::run(args),
        Command::Get(args) => get::run(args),
        Command::Stats(args) => stats::run(&args),
        Command::Conntrack(args) => conntrack::run(args),
        Command::Capture(args) => capture::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Manual(command) => manual::run(&command),
    };
    end("pollux", result)
}

/// The exit code of a command; what it failed with is said in the name of `program`.
fn end(program: &str, result: Result<Exit, Failure>) -> ExitCode {
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            for line in failure.message.lines() {
                eprintln!("{program}: {line}");
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Says warnings on stderr.
pub(crate) fn warn(warnings: &[Problem]) {
    for warning in warnings {
        eprintln!("pollux: warning: {warning}");
    }
}

/// `pollux … | head` is to end quietly, as any filter does.
fn restore_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// A daemon outlives its clients: one that goes away in the middle of an answer is an error of its own.
fn ignore_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
}
