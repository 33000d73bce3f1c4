//! What Pollux has to do with the kernel beside its ports: mirror routes, neighbours, links and addresses
//! ([`mirror`] into [`state`]), prepare the host's side of the host port ([`host_port`]), and, for the demo
//! and the tests, live in network namespaces of its own ([`sandbox`], [`netns`]).
//!
//! Nothing here sees a packet. Everything speaks rtnetlink on plain sockets of its own (`netlink`), in
//! the network namespace of the calling thread.

use std::io;
use std::path::PathBuf;

mod decode;
pub mod host_port;
pub mod memory;
pub mod mirror;
mod netlink;
pub mod netns;
mod restore;
pub mod routes;
pub mod sandbox;
pub mod settings;
pub mod state;

/// The protocol number of the routes that Pollux makes (`ip route ... proto 112`): a value that no entry of
/// `/etc/iproute2/rt_protos` has. The mirror skips them, or Pollux would follow its own routes in a circle
/// (PT-02); whatever carries it after Pollux has ended is a leftover.
pub const ROUTE_PROTOCOL: u8 = 112;

/// What the kernel or the machine refused. Each message is one line that says what to do where something
/// can be done. `pollux` ends with [`Error::EXIT_CODE`] for all of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or the user lacks something: a privilege, a program, a device.
    #[error("{lacking}: {remedy}")]
    Environment {
        /// What is missing.
        lacking: String,
        /// What to do about it.
        remedy: String,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried, with the object's name.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{command}: {output}")]
    Command {
        /// The command line, or the line of a batch that failed.
        command: String,
        /// What it printed on standard error.
        output: String,
    },
    /// Another process holds the lock of this state file.
    #[error(
        "{} is locked by a running instance: stop it first, or give this one another name",
        .lock.display()
    )]
    Busy {
        /// The lock file.
        lock: PathBuf,
    },
    /// An argument that the kernel could not accept, found before it was asked.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The exit code of a command that ends with this error: the environment lacks something.
    pub const EXIT_CODE: u8 = 4;

    pub(crate) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::System { action: action.into(), source: source.into() }
    }
}
