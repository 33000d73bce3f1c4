//! Pollux as slave1's forwarder: the seed's example files on real interfaces, in the node's namespace.
//!
//! Ports, guard and the host's side of the host port are those of a node; the files are the ones in
//! `docs/examples`. What the lab adds are a choice of the backend and an ear at the worker.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_dataplane::forward::{Event, Observer, ObserverId};
use pollux_dataplane::packet::{LinkAddr, PortId, Protocol};
use pollux_dataplane::port::guard::Means;
use pollux_dataplane::service::Path;
use pollux_dataplane::stats::{PortStats, Stats};
use pollux_dataplane::worker::{Handle, Stopped, Worker};

use super::seed::Pod;
use crate::agent::{Agent, AgentOptions, HostOptions, Running, Sources, State};
use crate::cli::Failure;
use crate::config::node::Backend;
use crate::kernel::netns::Netns;
use crate::trace::{self, Step};

/// The seed's cluster and node, in the files that the documentation shows.
const FILES: [(&str, &str); 3] = [
    ("objects.yaml", include_str!("../../../docs/examples/objects.yaml")),
    ("proxy-config.yaml", include_str!("../../../docs/examples/proxy-config.yaml")),
    ("node.yaml", include_str!("../../../docs/examples/node.yaml")),
];

/// Directory of the files: in the sandbox's own `/run`.
const DIRECTORY: &str = "/run/pollux/lab";

/// How the forwarder's ports are opened; the host port is a TAP in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wiring {
    /// Packet sockets.
    AfPacket,
    /// AF_XDP sockets. These take what the kernel's own packet sockets on the same interface would see, so
    /// whoever captures does it at the other end of the cable.
    AfXdp,
}

impl Wiring {
    /// The lines of a port's configuration.
    fn lines(self) -> &'static str {
        match self {
            Wiring::AfPacket => "backend: af_packet",
            Wiring::AfXdp => "backend: af_xdp",
        }
    }

    /// What the configuration calls it.
    pub(in crate::lab) fn backend(self) -> Backend {
        match self {
            Wiring::AfPacket => Backend::AfPacket,
            Wiring::AfXdp => Backend::AfXdp,
        }
    }

    /// The node's configuration, as docs/examples has it for packet sockets, wired so.
    fn configuration(self, example: &str) -> String {
        example.replace(Wiring::AfPacket.lines(), self.lines())
    }
}

/// The forwarder of a node, running. Dropping it stops it and puts everything back.
#[derive(Debug)]
pub struct Pollux {
    agent: Running,
    state: Arc<State>,
}

/// A tuple: what an ear listens for. Ports as [`Headers`](pollux_dataplane::packet::Headers) has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source address and port, or ICMP identifier.
    pub source: (Ipv4Addr, u16),
    /// Destination address and port, or ICMP type and code.
    pub destination: (Ipv4Addr, u16),
}

/// The way of one packet through the forwarder, from [`Event::Received`] to its end.
pub type Passage = Vec<Event>;

/// Passages that a worker's observer heard.
#[derive(Clone, Default)]
pub struct Ear(Arc<Mutex<Heard>>, Option<ObserverId>);

#[derive(Default)]
struct Heard {
    passages: Vec<Passage>,
    listening: bool,
}

impl Pollux {
    /// Starts to forward in a namespace that has the seed's slave1. Two in one sandbox need two names.
    ///
    /// # Errors
    /// What the machine lacks.
    pub fn start(netns: &Netns, name: &str, wiring: Wiring) -> Result<Pollux, Failure> {
        let directory = PathBuf::from(DIRECTORY).join(name);
        fs::create_dir_all(&directory)?;
        let paths = FILES.map(|(file, _)| directory.join(file));
        for ((_, text), path) in FILES.iter().zip(&paths) {
            fs::write(path, wiring.configuration(text))?;
        }
        let [objects, configuration @ ..] = paths;
        let sources = Sources { config: configuration.into(), objects: vec![objects], node: None };
        let (inputs, _) = sources.read()?;
        let host =
            HostOptions { service_prefixes: Vec::new(), state_directory: directory, name: name.to_owned() };
        let options = AgentOptions { inputs, follow: None, admin: None, host };
        let agent = netns.run(|| Agent::start(options)).map_err(Failure::environment)??;
        Ok(Pollux { state: agent.state(), agent })
    }

    /// Lets new connections go to this pod, where it is a backend of theirs.
    ///
    /// # Errors
    /// When the worker has stopped.
    ///
    /// # Panics
    /// When the pod is no backend.
    pub fn choose(&self, pod: Pod) -> Result<(), Stopped> {
        let services = &self.state.compiled.tables.v4.as_ref().expect("IPv4 is forwarded").services;
        let place = services
            .frontends()
            .find_map(|(_, frontend)| match frontend.path {
                Path::Internal(set) => {
                    services.backends(set).iter().position(|backend| backend.address == pod.address)
                }
                _ => None,
            })
            .unwrap_or_else(|| panic!("{} is no backend", pod.name));
        for worker in self.agent.workers() {
            worker.ask(move |worker| worker.forwarder().fix_choice(Some(place as u32)))?;
        }
        Ok(())
    }

    /// Listens to the worker until the ear is given back to [`hush`](Pollux::hush).
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn listen(&self) -> Result<Ear, Stopped> {
        let mut ear = Ear::default();
        let observer = Box::new(ear.clone());
        ear.1 = Some(self.agent.worker().ask(move |worker| worker.observe(observer))?);
        Ok(ear)
    }

    /// Ends to listen, and returns the passages that were heard.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn hush(&self, ear: &Ear) -> Result<Vec<Passage>, Stopped> {
        if let Some(id) = ear.1 {
            self.agent.worker().ask(move |worker| worker.hush(id))?;
        }
        Ok(std::mem::take(&mut ear.heard().passages))
    }

    /// The worker, to ask.
    pub fn worker(&self) -> &Handle {
        self.agent.worker()
    }

    /// All counters.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn stats(&self) -> Result<Stats, Stopped> {
        self.agent.worker().ask(|worker| worker.stats())
    }

    /// The counters of each port.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn port_stats(&self) -> Result<Vec<(String, PortStats)>, Stopped> {
        let all = self.agent.worker().ask(Worker::port_stats)?;
        Ok(all.into_iter().map(|(id, stats, _)| (self.port_name(id).to_owned(), stats)).collect())
    }

    /// A passage in the words of iptables.
    pub fn steps(&self, passage: &[Event]) -> Vec<Step> {
        trace::steps(&self.state.compiled, passage)
    }

    /// A port's name.
    pub fn port_name(&self, port: PortId) -> &str {
        self.state.compiled.tables.ports.get(port).map_or("?", |port| port.name.as_str())
    }

    /// A port's link address.
    pub fn link_of(&self, port: PortId) -> LinkAddr {
        self.state.compiled.tables.ports.get(port).map_or_else(LinkAddr::default, |port| port.link_address)
    }

    /// How the kernel is kept from forwarding as well.
    pub fn means(&self) -> Option<Means> {
        self.agent.guarded_by()
    }
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Ear {
    fn see(&mut self, event: Event) {
        let mut heard = self.heard();
        match event {
            // ARP and the like have no beginning that is told, so whatever follows is not a passage.
            Event::Received { .. } => {
                heard.listening = true;
                heard.passages.push(vec![event]);
            }
            event if heard.listening => {
                let ends = matches!(event, Event::Sent { .. } | Event::Delivered { .. } | Event::Dropped(_));
                if let Some(passage) = heard.passages.last_mut() {
                    passage.push(event);
                }
                heard.listening = !ends;
            }
            _ => {}
        }
    }
}

/// The tuple that a passage begins with.
pub fn received(passage: &[Event]) -> Option<Tuple> {
    match passage.first()? {
        Event::Received {
            source: IpAddr::V4(source),
            source_port,
            destination: IpAddr::V4(destination),
            destination_port,
            protocol,
            ..
        } => Some(Tuple {
            protocol: *protocol,
            source: (*source, *source_port),
            destination: (*destination, *destination_port),
        }),
        _ => None,
    }
}
