//! The twin in which Pollux forwards: the agent of a node, on the interfaces of its namespace, with routes,
//! addresses and neighbours as the kernel there has them. Its host port leads out of the node, so that what
//! the host sends to itself (PT-02) can be sent as well.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pollux_dataplane::flow::{FlowInfo, FlowKey};
use pollux_dataplane::forward::ErrorRate;
use pollux_dataplane::packet::{V4, V6};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::worker::{Stopped, Worker};

use super::packet::Tuple;
use super::scenario::{Family, Scenario};
use super::site::{HOST_PORT, Site};
use crate::agent::{Agent, AgentOptions, HostOptions, Inputs, Running};
use crate::cli::Failure;
use crate::config::Config;
use crate::config::node::{
    Backend, Foreign, MasqueradePorts, NodeConfig, PortConfig, ProxyArp, Role, Source,
};
use crate::kernel::netns::Netns;

/// Connections that the flow table holds: more than a comparison makes.
const CONNECTIONS: u32 = 1 << 16;

/// Connections that are asked for at once.
const SLICE: usize = 1024;

/// Pollux's node, forwarding by a scenario's objects.
pub(super) struct Forwarder {
    agent: Running,
    family: Family,
}

impl Forwarder {
    /// Starts the agent.
    ///
    /// # Errors
    /// What the machine lacks.
    pub(super) fn start(
        netns: &Netns,
        scenario: &Scenario,
        site: &Site,
        pool: &'static Pool,
        name: &str,
    ) -> Result<Forwarder, Failure> {
        let ports =
            site.ports.iter().enumerate().map(|(number, interface)| {
                port(interface, if number == 0 { Role::Uplink } else { Role::Pod })
            });
        let node = NodeConfig {
            connections: Some(CONNECTIONS),
            sysctl: BTreeMap::from([
                ("nf_conntrack_udp_timeout".to_owned(), 120),
                ("nf_conntrack_icmp_timeout".to_owned(), 120),
                ("nf_conntrack_icmpv6_timeout".to_owned(), 120),
                ("nf_conntrack_sctp_timeout_cookie_wait".to_owned(), 120),
            ]),
            ports: ports.chain([port(HOST_PORT, Role::Host)]).collect(),
            routes: Source::Kernel,
            neighbours: Source::Kernel,
            // As the rules do it.
            masquerade_ports: match keeps_ports(&scenario.rules) {
                true => MasqueradePorts::Keep,
                false => MasqueradePorts::Random,
            },
            ..NodeConfig::default()
        };
        let inputs = Inputs {
            config: Config { proxy: scenario.proxy.clone(), node: Some(node) },
            cluster: scenario.cluster.clone().into(),
            node: scenario.node_name.clone(),
        };
        let host = HostOptions {
            service_prefixes: Vec::new(),
            state_directory: PathBuf::from("/run/pollux/lab"),
            name: name.to_owned(),
        };
        let options = AgentOptions { inputs, follow: None, admin: None, host };
        let agent = netns.run(|| Agent::start_with(options, || Ok(pool))).map_err(Failure::environment)??;
        let unlimited = |worker: &mut Worker| worker.forwarder().set_error_rate(ErrorRate::Unlimited);
        agent.worker().ask(unlimited).map_err(|Stopped| Failure::environment("the worker has stopped"))?;
        Ok(Forwarder { agent, family: scenario.family })
    }

    /// The connections: original tuples, each with its reply tuple.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub(super) fn connections(&self) -> Result<BTreeMap<Tuple, Tuple>, Stopped> {
        let mut connections = BTreeMap::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = match self.family {
                Family::IPv4 => {
                    let (listed, next) = self.agent.worker().ask(move |worker| {
                        let now = worker.now().into();
                        worker.forwarder().flows_v4().list(from, SLICE, now)
                    })?;
                    connections.extend(listed.iter().map(tuples::<V4>));
                    next
                }
                Family::IPv6 => {
                    let (listed, next) = self.agent.worker().ask(move |worker| {
                        let now = worker.now().into();
                        worker.forwarder().flows_v6().list(from, SLICE, now)
                    })?;
                    connections.extend(listed.iter().map(tuples::<V6>));
                    next
                }
            };
        }
        Ok(connections)
    }

    /// Drop counters that are not 0, for people who look for the cause of a difference.
    pub(super) fn drops(&self) -> Vec<String> {
        let stats = self.agent.worker().ask(|worker| worker.stats());
        let drops = stats.map(|stats| stats.dropped.iter().collect::<Vec<_>>()).unwrap_or_default();
        drops.into_iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect()
    }
}

/// Whether masqueraded connections keep their source port where they can: the rules do not ask for random
/// ones.
pub(super) fn keeps_ports(rules: &str) -> bool {
    let mut masquerading = rules.lines().filter(|line| line.contains("-j MASQUERADE")).peekable();
    masquerading.peek().is_some() && !masquerading.any(|line| line.contains("--random"))
}

fn port(interface: &str, role: Role) -> PortConfig {
    PortConfig {
        name: interface.to_owned(),
        role,
        backend: Backend::AfPacket,
        interface: interface.to_owned(),
        link_address: None,
        mtu: None,
        addresses: Vec::new(),
        proxy_arp: ProxyArp::Off,
        // As the kernel of the other twin.
        reverse_path: None,
        linkdown: None,
        foreign: Foreign::Drop,
        index: None,
    }
}

fn tuples<A: pollux_dataplane::packet::Family>(flow: &FlowInfo<A>) -> (Tuple, Tuple) {
    let tuple = |key: &FlowKey<A>| Tuple {
        protocol: key.protocol,
        source: key.source.into(),
        source_port: key.source_port,
        destination: key.destination.into(),
        destination_port: key.destination_port,
    };
    (tuple(&flow.original), tuple(&flow.reply))
}
