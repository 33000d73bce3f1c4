//! The limit of open files (`RLIMIT_NOFILE`): raised as far as it may be, and checked before anything is opened.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use crate::cli::Failure;

/// Files of an agent without ports: sockets to the kernel, watched files, namespaces, clients of the admin socket
/// and what they hold.
const BASE: u64 = 96;

/// Files of a port: its socket, what guards it, and room for one more.
const PORT: u64 = 3;

/// Files of a queue, which every worker may have of every port.
const QUEUE: u64 = 1;

/// Raises the limit to what the process may have at most, and checks that it is enough for so many ports and workers.
///
/// # Errors
/// Exit code 4, with the limit and what is needed.
pub(super) fn check(ports: usize, workers: usize) -> Result<(), Failure> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Failure::environment)?;
    if let Some(lacking) = lacking(hard, ports, workers) {
        return Err(Failure::environment(lacking));
    }
    // Ports by pattern may come later.
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!("the limit of open files stays at {soft}: {error}");
    }
    Ok(())
}

fn lacking(limit: u64, ports: usize, workers: usize) -> Option<String> {
    let needed = BASE + ports as u64 * (PORT + QUEUE * workers as u64);
    (limit < needed).then(|| {
        format!(
            "the limit of open files is {limit} and {ports} ports need {needed}: raise it (ulimit -Hn, or \
             LimitNOFILE= of the unit)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_said_with_what_is_needed() {
        assert_eq!(lacking(120, 6, 1), None);
        assert_eq!(
            lacking(119, 6, 1).unwrap(),
            "the limit of open files is 119 and 6 ports need 120: raise it (ulimit -Hn, or LimitNOFILE= of the unit)"
        );
        assert_eq!(lacking(126, 6, 2), None);
        assert!(lacking(125, 6, 2).is_some());
    }
}
