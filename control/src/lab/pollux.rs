//! Pollux as slave1's forwarder: the seed's example files on real interfaces, in the node's namespace.
//!
//! Ports, guard and the host's side of the host port are those of a node; the files are the ones in
//! `docs/examples`. What the lab adds are a choice of the backend and an ear at the worker.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use pollux_dataplane::flow::Timeouts;
use pollux_dataplane::forward::{Event, Forwarder, Observer, Settings};
use pollux_dataplane::packet::{LinkAddr, PortId, Prefix, Protocol};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{self, AfPacketPort};
use pollux_dataplane::port::guard::{Families, Guard, Means};
use pollux_dataplane::port::tap::TapPort;
use pollux_dataplane::service::{FrontendAddress, Path};
use pollux_dataplane::stats::{PortStats, Stats};
use pollux_dataplane::worker::{Command, Handle, Stopped, Worker};

use super::seed::{Pod, SLAVE1_ADDRESS};
use crate::cluster;
use crate::compile::{Compiled, compile};
use crate::config;
use crate::config::node::Backend;
use crate::kernel::Error;
use crate::kernel::host_port::{HostPort, HostPortConfig};
use crate::kernel::mirror::Mirror;
use crate::kernel::netns::Netns;
use crate::node::{LinkFacts, NodeView};
use crate::trace::{self, Step};

/// The seed's cluster and node, in the files that the documentation shows.
const FILES: [(&str, &str); 3] = [
    ("objects.yaml", include_str!("../../../docs/examples/objects.yaml")),
    ("proxy-config.yaml", include_str!("../../../docs/examples/proxy-config.yaml")),
    ("node.yaml", include_str!("../../../docs/examples/node.yaml")),
];

/// Directory of the files: in the sandbox's own `/run`.
const DIRECTORY: &str = "/run/pollux/lab";

/// Buffers of the pool.
const BUFFERS: usize = 16 * 1024;

/// Places of the flow table.
const CONNECTIONS: usize = 64 * 1024;

/// The forwarder of a node, running. Dropping it stops it and puts everything back.
pub struct Pollux {
    handle: Handle,
    compiled: Compiled,
    means: Means,
    thread: Option<JoinHandle<Worker>>,
    host_port: Option<HostPort>,
    guard: Option<Guard>,
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
pub struct Ear(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    passages: Vec<Passage>,
    listening: bool,
}

impl Pollux {
    /// Starts to forward in a namespace that has the seed's slave1. Two in one sandbox need two names.
    ///
    /// # Errors
    /// What the kernel refuses.
    ///
    /// # Panics
    /// When the example files are not right, which is a mistake of the program.
    pub fn start(netns: &Netns, name: &str) -> Result<Pollux, Error> {
        netns.run(|| start_here(netns, name))?
    }

    /// Lets new connections go to this pod, where it is a backend of theirs.
    ///
    /// # Errors
    /// When the worker has stopped.
    ///
    /// # Panics
    /// When the pod is no backend.
    pub fn choose(&self, pod: Pod) -> Result<(), Stopped> {
        let services = &self.compiled.tables.v4.as_ref().expect("IPv4 is forwarded").services;
        let place = services
            .frontends()
            .find_map(|(_, frontend)| match frontend.path {
                Path::Internal(set) => {
                    services.backends(set).iter().position(|backend| backend.address == pod.address)
                }
                _ => None,
            })
            .unwrap_or_else(|| panic!("{} is no backend", pod.name));
        self.handle.ask(move |worker| worker.forwarder().fix_choice(Some(place as u32)))
    }

    /// Listens to the worker until the ear is given back to [`hush`](Pollux::hush).
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn listen(&self) -> Result<Ear, Stopped> {
        let ear = Ear::default();
        let observer = Box::new(ear.clone());
        self.handle.ask(move |worker| worker.observe(Some(observer)))?;
        Ok(ear)
    }

    /// Ends to listen, and returns the passages that were heard.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn hush(&self, ear: &Ear) -> Result<Vec<Passage>, Stopped> {
        self.handle.ask(|worker| worker.observe(None))?;
        Ok(std::mem::take(&mut ear.heard().passages))
    }

    /// The worker, to ask.
    pub fn worker(&self) -> &Handle {
        &self.handle
    }

    /// All counters.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn stats(&self) -> Result<Stats, Stopped> {
        self.handle.ask(|worker| worker.stats())
    }

    /// The counters of each port.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn port_stats(&self) -> Result<Vec<(String, PortStats)>, Stopped> {
        let all = self.handle.ask(Worker::port_stats)?;
        Ok(all.into_iter().map(|(id, stats, _)| (self.port_name(id).to_owned(), stats)).collect())
    }

    /// A passage in the words of iptables.
    pub fn steps(&self, passage: &[Event]) -> Vec<Step> {
        trace::steps_v4(&self.compiled, passage)
    }

    /// A port's name.
    pub fn port_name(&self, port: PortId) -> &str {
        self.compiled.tables.ports.get(port).map_or("?", |port| port.name.as_str())
    }

    /// A port's link address.
    pub fn link_of(&self, port: PortId) -> LinkAddr {
        self.compiled.tables.ports.get(port).map_or_else(LinkAddr::default, |port| port.link_address)
    }

    /// How the kernel is kept from forwarding as well.
    pub fn means(&self) -> Means {
        self.means
    }
}

fn start_here(netns: &Netns, name: &str) -> Result<Pollux, Error> {
    let directory = PathBuf::from(DIRECTORY).join(name);
    let written = |error| Error::system(format!("cannot write {DIRECTORY}"), error);
    fs::create_dir_all(&directory).map_err(written)?;
    let paths = FILES.map(|(file, _)| directory.join(file));
    for ((_, text), path) in FILES.iter().zip(&paths) {
        fs::write(path, text).map_err(written)?;
    }
    let right = "the examples are right";
    let loaded = cluster::load(&paths[..1]).expect(right);
    let (config, _) = config::load(&paths[1..]).expect(right);
    let node = config.node.as_ref().expect(right);
    let system = |action: &'static str| move |error| Error::system(action, error);

    let pool = Pool::new(BUFFERS).map_err(system("no memory for packets"))?;
    let settings = Settings { connections: CONNECTIONS, timeouts: Timeouts::default(), seed: rand_seed() };
    let forwarder = Forwarder::new(&settings, pool).map_err(system("no memory for flows"))?;
    let (mut worker, handle) = Worker::new(forwarder).map_err(system("no event descriptor"))?;
    let mut shared = Vec::new();
    let mut taps = Vec::new();
    for (number, port) in node.ports.iter().enumerate() {
        let id = PortId(number as u16);
        let opened = |error| Error::system(format!("port {}", port.name), error);
        match port.backend {
            Backend::Tap => {
                worker.add_port(id, Box::new(TapPort::open(&port.interface, id, pool).map_err(opened)?));
                taps.push(port);
            }
            _ => {
                let options = af_packet::Options::default();
                let opened = AfPacketPort::open(&port.interface, id, pool, options).map_err(opened)?;
                worker.add_port(id, Box::new(opened));
                shared.push(port.interface.as_str());
            }
        }
    }
    // The TAP's address is the kernel's choice.
    let links = Mirror::dump(netns)?
        .links
        .into_iter()
        .filter_map(|link| Some((link.name, LinkFacts { link_address: link.link_address?, mtu: link.mtu })));
    let detect = &config.proxy.detect_local;
    let (view, _) = NodeView::configured(node, &links.collect(), detect).expect(right);
    let node_name = config.proxy.hostname_override.clone().expect(right);
    let compiled = compile(&loaded.cluster, &config, &node_name, &view);
    worker.forwarder().set_tables(compiled.tables.clone());
    let now = worker.now();
    trace::teach(worker.forwarder(), &view.neighbours, now);

    let guard = Guard::attach(&shared, Families::V4).map_err(system("cannot keep the kernel off"))?;
    let mut host_port = None;
    for tap in taps {
        let mut port = HostPort::set_up(HostPortConfig {
            interface: tap.interface.clone(),
            mtu: tap.mtu.map_or(1500, u32::from),
            source_v4: Some(SLAVE1_ADDRESS),
            source_v6: None,
            state_directory: directory.clone(),
            name: name.to_owned(),
        })?;
        port.set_service_prefixes(&service_prefixes(&compiled), &BTreeSet::new())?;
        host_port = Some(port);
    }
    let thread = std::thread::Builder::new()
        .name("pollux-worker-0".into())
        .spawn(move || {
            worker.run();
            worker
        })
        .map_err(system("cannot start a thread"))?;
    let means = guard.means();
    Ok(Pollux { handle, compiled, means, thread: Some(thread), host_port, guard: Some(guard) })
}

fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_nanos() as u64)
}

fn service_prefixes(compiled: &Compiled) -> BTreeSet<Prefix<pollux_dataplane::packet::V4>> {
    let tables = compiled.tables.v4.as_ref().expect("IPv4 is forwarded");
    let addresses = tables.services.frontends().filter_map(|(_, frontend)| match frontend.key.address {
        FrontendAddress::Address(address) => Some(Prefix::host(address)),
        FrontendAddress::NodePort => None,
    });
    addresses.collect()
}

impl Drop for Pollux {
    fn drop(&mut self) {
        let _ = self.handle.send(Command::Stop);
        let worker = self.thread.take().map(JoinHandle::join);
        // From here on the kernel acts again.
        self.guard = None;
        self.host_port = None;
        drop(worker);
    }
}

impl Ear {
    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
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
