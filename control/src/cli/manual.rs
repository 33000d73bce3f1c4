//! `pollux completions`, `pollux man`: shell completions and manual pages, generated from the commands.

use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use super::{Cli, Exit, Failure};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Print completions for a shell.
    #[command(after_help = "Example:\n  pollux completions bash > /etc/bash_completion.d/pollux")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Write the manual pages into a directory.
    #[command(after_help = "Example:\n  pollux man /usr/local/share/man/man1")]
    Man {
        /// An existing directory.
        directory: PathBuf,
    },
}

pub(super) fn run(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "pollux", &mut std::io::stdout());
        }
        Command::Man { directory } => {
            if !directory.is_dir() {
                return Err(Failure::bad_input(format!("{} is not a directory", directory.display())));
            }
            clap_mangen::generate_to(Cli::command(), directory)?;
        }
    }
    Ok(Exit::Done)
}
