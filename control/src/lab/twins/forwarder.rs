//! The twin in which Pollux forwards: the agent of a node, on the interfaces of its namespace, with routes,
//! addresses and neighbours as the kernel there has them. Its host port leads out of the node, so that what
//! the host sends to itself (PT-02) can be sent as well.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pollux_dataplane::flow::{FlowInfo, FlowKey, State};
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
    Foreign, MasqueradePorts, NodeConfig, PortConfig, ProxyArp, Role, Source, XdpConfig,
};
use crate::kernel::netns::Netns;
use crate::lab::pollux::Wiring;
use crate::lab::sequences::Entry;

/// Connections that the flow table holds: more than a comparison makes.
const CONNECTIONS: u32 = 1 << 16;

/// Frames that wait at each queue of an AF_XDP port: more than a round of connections sends before it waits.
const XDP_RING: u32 = 512;

/// Connections that are asked for at once.
const SLICE: usize = 1024;

/// Pollux's node, forwarding by a scenario's objects.
pub(in crate::lab) struct Forwarder {
    agent: Running,
    family: Family,
}

impl Forwarder {
    /// Starts the agent on a wiring, with settings of connection tracking by the last name of their sysctl.
    ///
    /// # Errors
    /// What the machine lacks.
    pub(in crate::lab) fn start(
        netns: &Netns,
        scenario: &Scenario,
        site: &Site,
        sysctls: &BTreeMap<String, u32>,
        wiring: Wiring,
        pool: &'static Pool,
        name: &str,
    ) -> Result<Forwarder, Failure> {
        let port = |interface: &str, role| port(interface, role, wiring);
        let ports =
            site.ports.iter().enumerate().map(|(number, interface)| {
                port(interface, if number == 0 { Role::Uplink } else { Role::Pod })
            });
        let node = NodeConfig {
            connections: Some(CONNECTIONS),
            sysctl: sysctls.clone(),
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
    pub(in crate::lab) fn connections(&self) -> Result<BTreeMap<Tuple, Tuple>, Stopped> {
        let entries = self.entries()?;
        Ok(entries.into_iter().map(|entry| (entry.original, entry.reply)).collect())
    }

    /// The connections, with all that sequences compare of them.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub(in crate::lab) fn entries(&self) -> Result<Vec<Entry>, Stopped> {
        let mut entries = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = match self.family {
                Family::IPv4 => {
                    let (listed, next) = self.agent.worker().ask(move |worker| {
                        let now = worker.now().into();
                        worker.forwarder().flows_v4().list(from, SLICE, now)
                    })?;
                    entries.extend(listed.iter().map(entry::<V4>));
                    next
                }
                Family::IPv6 => {
                    let (listed, next) = self.agent.worker().ask(move |worker| {
                        let now = worker.now().into();
                        worker.forwarder().flows_v6().list(from, SLICE, now)
                    })?;
                    entries.extend(listed.iter().map(entry::<V6>));
                    next
                }
            };
        }
        Ok(entries)
    }

    /// Returns when everything that the worker has taken in is out.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub(in crate::lab) fn settle(&self) -> Result<(), Stopped> {
        self.agent.worker().ask(|_| ())
    }

    /// Drop counters that are not 0, for people who look for the cause of a difference.
    pub(in crate::lab) fn drops(&self) -> Vec<String> {
        let stats = self.agent.worker().ask(|worker| worker.stats());
        let drops = stats.map(|stats| stats.dropped.iter().collect::<Vec<_>>()).unwrap_or_default();
        drops.into_iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect()
    }
}

/// Whether masqueraded connections keep their source port where they can: the rules do not ask for random
/// ones.
pub(in crate::lab) fn keeps_ports(rules: &str) -> bool {
    let mut masquerading = rules.lines().filter(|line| line.contains("-j MASQUERADE")).peekable();
    masquerading.peek().is_some() && !masquerading.any(|line| line.contains("--random"))
}

fn port(interface: &str, role: Role, wiring: Wiring) -> PortConfig {
    PortConfig {
        name: interface.to_owned(),
        role,
        backend: wiring.backend(),
        device: None,
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
        faults: None,
        capture: None,
        trace: None,
        xdp: XdpConfig { ring: XDP_RING, ..XdpConfig::default() },
        tunnel: None,
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

fn entry<A: pollux_dataplane::packet::Family>(flow: &FlowInfo<A>) -> Entry {
    let (original, reply) = tuples(flow);
    let state = matches!(flow.state, State::Tcp(_) | State::Sctp(_)).then(|| flow.state.name());
    let FlowInfo { seen_reply, assured, remaining, .. } = *flow;
    Entry { original, reply, state, seen_reply, assured, remaining: remaining.as_secs_f64() }
}
