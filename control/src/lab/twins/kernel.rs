//! The twin whose kernel forwards: the rules, what they need to load, and what keeps its stack quiet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use pollux_dataplane::packet::Protocol;

use super::nfacct;
use super::packet::Tuple;
use super::scenario::{Family, Scenario};
use super::site::set;
use crate::cli::Failure;
use crate::kernel::Error;
use crate::kernel::netns::Netns;
use crate::kernel::sandbox::find_program;
use crate::lab::twin::{self, Mode};

/// What the node's own stack answers to what is delivered to it is no part of forwarding, and Pollux's node
/// has nobody to give the like: a RST never gets as far as the connection tracker. (UDP is absorbed by sockets,
/// echo requests by a setting, and the kernels of this world that speak SCTP send ABORTs.)
const QUIET: &str = "*raw\n-I OUTPUT -p tcp -m tcp --tcp-flags RST RST -j DROP\nCOMMIT\n";

/// Settings of both families: no limit on ICMP errors, no answers to echo requests, timeouts that outlast a
/// comparison. Those that the kernel does not have are passed over.
const SETTINGS: [(&str, &str); 13] = [
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/icmp_echo_ignore_all", "1"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv6/icmp/echo_ignore_all", "1"),
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("net/netfilter/nf_conntrack_udp_timeout", "120"),
    ("net/netfilter/nf_conntrack_icmp_timeout", "120"),
    ("net/netfilter/nf_conntrack_icmpv6_timeout", "120"),
    ("net/netfilter/nf_conntrack_sctp_timeout_closed", "120"),
    ("net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", "120"),
];

/// The kernel's node, forwarding under a scenario's rules.
#[derive(Debug)]
pub(in crate::lab) struct Kernel {
    netns: Netns,
    family: Family,
    /// What loaded the rules.
    pub(in crate::lab) loader: &'static str,
}

impl Kernel {
    /// Loads the rules and lets the kernel forward.
    ///
    /// # Errors
    /// What the kernel, iptables or the machine refuses.
    pub(in crate::lab) fn start(netns: &Netns, scenario: &Scenario) -> Result<Kernel, Failure> {
        // Asked for first: a comparison without it would end half done.
        find_conntrack().map_err(Failure::environment)?;
        prepare(netns, &nfacct::names(&scenario.rules)).map_err(Failure::environment)?;
        let protocol = match scenario.family {
            Family::IPv4 => twin::Protocol::IPv4,
            Family::IPv6 => twin::Protocol::IPv6,
        };
        let loader = twin::restore(netns, protocol, Mode::Replace, &scenario.rules)
            .map_err(|error| refused(scenario, error))?;
        let quiet = twin::restore(netns, protocol, Mode::Add, QUIET).map(|_| ());
        quiet
            .and_then(|()| set(netns, &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]))
            .map_err(Failure::environment)?;
        Ok(Kernel { netns: netns.clone(), family: scenario.family, loader })
    }

    /// The connections: original tuples, each with its reply tuple.
    ///
    /// # Errors
    /// When `conntrack` fails.
    pub(in crate::lab) fn connections(&self) -> Result<BTreeMap<Tuple, Tuple>, Error> {
        let family = match self.family {
            Family::IPv4 => "ipv4",
            Family::IPv6 => "ipv6",
        };
        let mut command = Command::new(find_conntrack()?);
        let listed = self.netns.output(command.args(["-L", "-f", family]))?;
        Ok(listed.lines().filter_map(|line| connection(line, self.family)).collect())
    }
}

/// Settings, and what the rules need to be there.
fn prepare(netns: &Netns, accounting: &[&str]) -> Result<(), Error> {
    for (path, value) in SETTINGS {
        if netns.sysctl(path).is_ok() {
            netns.set_sysctl(path, value)?;
        }
    }
    nfacct::create(netns, accounting)
}

/// Rules that did not load are the user's to correct, unless the kernel lacks what they ask for.
fn refused(scenario: &Scenario, error: Error) -> Failure {
    match &error {
        Error::Command { output, .. } if !output.contains("missing kernel module") => {
            Failure::bad_input(format!("{}: the rules do not load: {output}", scenario.name))
        }
        _ => Failure::environment(error),
    }
}

fn find_conntrack() -> Result<std::path::PathBuf, Error> {
    find_program("conntrack").map_err(|error| match error {
        Error::Environment { lacking, .. } => {
            Error::Environment { lacking, remedy: "install it (apt-get install conntrack)".to_owned() }
        }
        other => other,
    })
}

/// A line of `conntrack -L`.
fn connection(line: &str, family: Family) -> Option<(Tuple, Tuple)> {
    let mut words = line.split_whitespace();
    words.next()?;
    let protocol = Protocol(words.next()?.parse().ok()?);
    let mut tuples = Vec::with_capacity(2);
    let mut tuple = Partial::default();
    for word in words {
        let Some((name, value)) = word.split_once('=') else { continue };
        match name {
            "src" => {
                if tuple.source.is_some() {
                    tuples.push(std::mem::take(&mut tuple));
                }
                tuple.source = value.parse().ok();
            }
            "dst" => tuple.destination = value.parse().ok(),
            "sport" | "id" => tuple.source_port = value.parse().ok()?,
            "dport" => tuple.destination_port = value.parse().ok()?,
            "type" => tuple.destination_port |= value.parse::<u16>().ok()? << 8,
            "code" => tuple.destination_port |= value.parse::<u16>().ok()?,
            _ => {}
        }
    }
    tuples.push(tuple);
    let mut tuples = tuples.into_iter().map(|tuple| tuple.of(protocol));
    let (original, reply) = (tuples.next()??, tuples.next()??);
    ((original.source.is_ipv4()) == (family == Family::IPv4)).then_some((original, reply))
}

#[derive(Default)]
struct Partial {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    source_port: u16,
    destination_port: u16,
}

impl Partial {
    fn of(self, protocol: Protocol) -> Option<Tuple> {
        Some(Tuple {
            protocol,
            source: self.source?,
            source_port: self.source_port,
            destination: self.destination?,
            destination_port: self.destination_port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_11_lines_of_conntrack_are_read() {
        let line = "tcp      6 119 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=1000 dport=80 [UNREPLIED] \
                    src=10.0.0.3 dst=10.0.0.1 sport=8080 dport=1000 mark=0 use=1";
        let (original, reply) = connection(line, Family::IPv4).unwrap();
        assert_eq!(original.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!((original.source_port, original.destination_port), (1000, 80));
        assert_eq!((reply.source_port, reply.destination_port), (8080, 1000));
        assert_eq!(original.protocol, Protocol::TCP);
        let echo = "icmpv6   58 29 src=fd00::1 dst=fd00::2 type=128 code=0 id=7 src=fd00::2 dst=fd00::1 \
                    type=129 code=0 id=7 mark=0 use=1";
        let (original, reply) = connection(echo, Family::IPv6).unwrap();
        assert_eq!((original.source_port, original.destination_port), (7, 128 << 8));
        assert_eq!(reply.destination_port, 129 << 8);
        assert_eq!(connection(echo, Family::IPv4), None);
        assert_eq!(connection("conntrack v1.4.7 (conntrack-tools): 2 flow entries", Family::IPv4), None);
    }
}
