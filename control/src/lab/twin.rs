//! The kernel as kube-proxy's twin: the seed's own rules, loaded into a node of the lab.
//!
//! The rules are the ones that kube-proxy 1.20 wrote for the seed's Service, with the two differences that
//! the seed's listings show: MASQUERADE without `--random-fully` (so that ports are kept, NAT-05) and docker's
//! own masquerade rule. A walk that needs a certain backend asks for it; nothing else changes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::seed;
use crate::kernel::Error;
use crate::kernel::netns::Netns;
use crate::kernel::sandbox::find_program;

/// `iptables-save` of kube-proxy 1.20 for the seed's Service.
const SAVED: &str = include_str!("../../../tests/corpus/seed-myapp/iptables-save-1.20.txt");

/// Chain of default/myapp's backends.
const SERVICE_CHAIN: &str = "-A KUBE-SVC-XJWXQFJLXSXKRMSG ";

/// The last rule before which docker's own stands in the seed's POSTROUTING chain.
const POSTROUTING: &str =
    "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING";

/// Which backend the rules choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Each of the three with the same probability, as kube-proxy writes it.
    Random,
    /// Always this one.
    Always(seed::Pod),
}

/// The seed's rules as `iptables-restore` reads them.
///
/// # Panics
/// When the pod is no backend of the seed's Service.
pub fn rules(choice: Choice) -> String {
    let mut text = String::with_capacity(SAVED.len() + 256);
    let first = match choice {
        Choice::Random => None,
        Choice::Always(pod) => Some(format!(
            "{SERVICE_CHAIN}-m comment --comment \"default/myapp\" -m statistic --mode random \
             --probability 1.00000000000 -j {}\n",
            endpoint_chain(pod)
        )),
    };
    let mut first = first.as_deref();
    for line in SAVED.lines() {
        if line.starts_with(SERVICE_CHAIN) {
            text.push_str(first.take().unwrap_or(""));
        }
        text.push_str(line.trim_end_matches(" --random-fully"));
        text.push('\n');
        if line == POSTROUTING {
            text.push_str("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n");
        }
    }
    text
}

/// The chain that translates to this pod.
fn endpoint_chain(pod: seed::Pod) -> &'static str {
    let destination = format!("--to-destination {}:{}", pod.address, seed::MYAPP_PORT);
    SAVED
        .lines()
        .find(|line| line.ends_with(&destination))
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or_else(|| panic!("{} is no backend of the seed's Service", pod.name))
}

/// Replaces the IPv4 rules of a node by `rules`.
///
/// # Errors
/// As [`restore`].
pub fn load(netns: &Netns, rules: &str) -> Result<(), Error> {
    restore(netns, Protocol::IPv4, Mode::Replace, rules).map(|_| ())
}

/// The family of rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// `iptables`.
    IPv4,
    /// `ip6tables`.
    IPv6,
}

/// What becomes of the rules that are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The tables that `rules` names are emptied first.
    Replace,
    /// They stay.
    Add,
}

/// Gives `rules` to a node, and says which implementation of iptables took them: the first that is installed
/// and that the kernel takes rules from. (An ordinary user's nft-backed one refuses a large file: the netlink
/// message is longer than such a user's socket may send.)
///
/// # Errors
/// When none does: what one of them said, or that none is installed.
pub fn restore(netns: &Netns, protocol: Protocol, mode: Mode, rules: &str) -> Result<&'static str, Error> {
    let programs = match protocol {
        Protocol::IPv4 => ["iptables-nft-restore", "iptables-legacy-restore", "iptables-restore"],
        Protocol::IPv6 => ["ip6tables-nft-restore", "ip6tables-legacy-restore", "ip6tables-restore"],
    };
    let mut failure = None;
    for program in programs {
        match restore_with(netns, program, mode, rules) {
            Ok(()) => return Ok(program),
            // What a program says is worth more than that another is not installed.
            Err(error) if failure.is_none() || matches!(error, Error::Command { .. }) => {
                failure = Some(error);
            }
            Err(_) => {}
        }
    }
    Err(failure.expect("a program was tried"))
}

/// Gives the rules to one program.
fn restore_with(netns: &Netns, program: &str, mode: Mode, rules: &str) -> Result<(), Error> {
    let mut command = Command::new(find_program(program)?);
    // The legacy one takes a lock, which another network of this process may hold.
    command.args(["--wait", "5"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if mode == Mode::Add {
        command.arg("--noflush");
    }
    let mut child = netns.spawn(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that it has given up; its own message says why.
        let _ = stdin.write_all(rules.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|source| Error::System { action: format!("cannot wait for {program}"), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("{program} in {netns}"),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_the_seed_s() {
        let text = rules(Choice::Random);
        assert!(!text.contains("random-fully"));
        assert_eq!(text.matches("--probability 0.33333333349 -j KUBE-SEP-OKTYPU7VJGWVVR5V").count(), 1);
        assert_eq!(text.matches("--probability").count(), 2);
        let docker = text.find("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n").unwrap();
        assert!(docker > text.find(POSTROUTING).unwrap());
        assert!(text.ends_with("COMMIT\n# Completed\n"));
    }

    #[test]
    fn a_choice_comes_before_the_random_rules() {
        let text = rules(Choice::Always(seed::POD_51_8));
        let first = text.lines().find(|line| line.starts_with(SERVICE_CHAIN)).unwrap();
        assert!(first.ends_with("--probability 1.00000000000 -j KUBE-SEP-Y6Q4QAGGLGL6PUEO"), "{first}");
        assert_eq!(text.matches(SERVICE_CHAIN).count(), 4);
    }
}
