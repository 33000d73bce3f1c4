//! The ports as they come and go. Those that have a number by their place in the configuration keep it; a port
//! by pattern gets the next one when its interface is first seen.
//!
//! A port that has gone keeps its entry in the tables, and its number until another one needs it: by then every
//! worker has let go of it, and nothing that was meant for the one can reach the other.

use std::sync::Arc;

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::af_xdp::Steering;
use pollux_dataplane::port::fault::{FaultHandle, FaultPort};
use pollux_dataplane::port::guard::{Families, Guard, Means};
use pollux_dataplane::time::Instant;
use pollux_dataplane::worker::Stopped;
use tracing::{info, warn};

use super::af_xdp;
use super::backend::{self, OpenedPort, Opening};
use super::counted::Counted;
use super::pair::far_end;
use super::share::Attached;
use crate::agent::team::Team;
use crate::cli::Failure;
use crate::config::node::{Backend, NextHopConfig, PortConfig, RouteKind, Source};
use crate::config::{Config, NodeConfig};
use crate::kernel::netns::Netns;
use crate::kernel::state::{Link, LinkIndex};

/// The ports of a running node.
pub(in crate::agent) struct LivePorts {
    netns: Netns,
    pool: &'static Pool,
    workers: usize,
    /// The configuration as it is written, with its patterns.
    node: NodeConfig,
    /// By number.
    slots: Vec<Slot>,
    /// What is kept from the kernel, from the moment that this is known.
    families: Option<Families>,
    /// How many ports have gone so far.
    gone: u64,
    epoch: std::time::Instant,
    counted: Arc<Counted>,
}

struct Slot {
    config: PortConfig,
    origin: Origin,
    state: SlotState,
}

/// Where a port comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It is named.
    Name,
    Pattern,
}

enum SlotState {
    Open(Open),
    /// Its interface is not there. The higher, the later it went.
    Absent(u64),
    /// It could not be opened.
    Failed(String),
}

struct Open {
    /// The interface, for one that may go.
    link: Option<LinkIndex>,
    /// Ends with the interface by itself; else when this is dropped.
    guard: Option<Guard>,
    /// Tells the steering program what to take.
    steering: Option<Steering>,
    first: usize,
    queues: usize,
}

/// How a port is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::agent) enum Status {
    /// Frames come and go.
    Open,
    /// Its interface is not there.
    Absent,
    /// It could not be opened, for this reason; it is tried again.
    Failed(String),
}

impl LivePorts {
    /// The ports of a configuration that was checked; none is open yet.
    pub(in crate::agent) fn new(node: &NodeConfig, netns: &Netns, pool: &'static Pool) -> LivePorts {
        let slot = |config: &PortConfig| Slot {
            config: config.clone(),
            origin: Origin::Name,
            state: SlotState::Absent(0),
        };
        LivePorts {
            netns: netns.clone(),
            pool,
            workers: node.worker_count(),
            node: node.clone(),
            slots: node.ports.iter().map(slot).collect(),
            families: None,
            gone: 0,
            epoch: std::time::Instant::now(),
            counted: Arc::default(),
        }
    }

    /// Where the frames lie.
    pub(in crate::agent) fn pool(&self) -> &'static Pool {
        self.pool
    }

    /// What the ports count.
    pub(in crate::agent) fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    /// Opens the ports for the first time: all that are named, and those by pattern that are there. TAP interfaces are
    /// made by it (veth pairs where the machine gives no TAP); they are still down. Nothing else on the machine is
    /// changed.
    ///
    /// # Errors
    /// Exit code 4. What was opened is closed again.
    pub(in crate::agent) fn open_all(&mut self, links: &[Link]) -> Result<Vec<Attached>, Failure> {
        let mut opened = Vec::new();
        for number in 0..self.slots.len() {
            let link = links.iter().find(|link| link.name == self.slots[number].config.interface);
            opened.push(self.open(number, link)?);
        }
        opened.extend(self.open_missing(links));
        Ok(opened)
    }

    /// Keeps the kernel from acting on what comes in at the interfaces that it shares (PT-05), also those to come, and
    /// lets steering programs take from it what is forwarded.
    ///
    /// # Errors
    /// Exit code 4 when the kernel allows no means.
    pub(in crate::agent) fn guard(&mut self, families: Families) -> Result<(), Failure> {
        self.families = Some(families);
        let mut guarded = Vec::new();
        let mut means = None;
        for slot in &mut self.slots {
            let interface = slot.config.interface.as_str();
            if let SlotState::Open(Open { steering: Some(steering), .. }) = &slot.state {
                af_xdp::steer(&slot.config, steering, Some(families))
                    .map_err(|error| Failure::environment(format!("port {}: {error}", slot.config.name)))?;
            }
            if let SlotState::Open(open) = &mut slot.state
                && backend::is_shared(&slot.config)
            {
                let guard = Guard::attach(&[interface], families).map_err(Failure::environment)?;
                means = Some(guard.means());
                open.guard = Some(guard);
                guarded.push(interface);
            }
        }
        if let Some(means) = means {
            info!(interfaces = guarded.join(", "), %means, "kernel kept from forwarding");
        }
        Ok(())
    }

    /// Lets the kernel act again.
    pub(in crate::agent) fn release(&mut self) {
        self.families = None;
        for slot in &mut self.slots {
            if let SlotState::Open(open) = &mut slot.state {
                open.guard = None;
                if let Some(steering) = &open.steering
                    && let Err(error) = af_xdp::steer(&slot.config, steering, None)
                {
                    warn!("port {}: {error}", slot.config.name); // its end lets the kernel have its frames as well
                }
            }
        }
    }

    /// How the kernel is kept from forwarding; nothing when no port is shared with it.
    pub(in crate::agent) fn guarded_by(&self) -> Option<Means> {
        self.slots.iter().find_map(|slot| match &slot.state {
            SlotState::Open(open) => open.guard.as_ref().map(Guard::means),
            _ => None,
        })
    }

    /// Takes the ports whose interface has gone from the workers, and says whether there was one.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(in crate::agent) fn close_gone(&mut self, links: &[Link], team: &Team) -> Result<bool, Stopped> {
        let mut closed = false;
        for number in 0..self.slots.len() {
            let slot = &self.slots[number];
            let is_there =
                |index| links.iter().any(|link| link.index == index && link.name == slot.config.interface);
            match &slot.state {
                SlotState::Open(Open { link: Some(link), .. }) if !is_there(*link) => {
                    self.close(number, team)?;
                    closed = true;
                }
                // It need not be tried again before there is an interface again.
                SlotState::Failed(_) if !links.iter().any(|link| link.name == slot.config.interface) => {
                    self.set_absent(number);
                    closed = true;
                }
                _ => {}
            }
        }
        Ok(closed)
    }

    /// Opens what is not open and has its interface: named ports that have come back, and ports by pattern. What
    /// fails is said once, and can be tried again.
    pub(in crate::agent) fn open_missing(&mut self, links: &[Link]) -> Vec<Attached> {
        let mut opened = Vec::new();
        for link in links.iter().filter(|link| !link.loopback && link.link_address.is_some()) {
            let named = self.slots.iter().position(|slot| {
                slot.origin == Origin::Name
                    && slot.config.backend.is_on_interface()
                    && slot.config.interface == link.name
            });
            let number = match named {
                Some(number) => number,
                None => {
                    let Some(config) = self.by_pattern(&link.name) else { continue };
                    let Some(number) = self.number_for(config) else {
                        warn!("interface {} is no port: there are {} already", link.name, PortId::MAX);
                        continue;
                    };
                    number
                }
            };
            let before = match &self.slots[number].state {
                SlotState::Open(_) => continue,
                SlotState::Failed(why) => Some(why.clone()),
                SlotState::Absent(_) => None,
            };
            match self.open(number, Some(link)) {
                Ok(port) => opened.push(port),
                Err(failure) => {
                    let why = failure.to_string();
                    if before.as_ref() != Some(&why) {
                        warn!("{why}; it is tried again");
                    }
                    self.slots[number].state = SlotState::Failed(why);
                }
            }
        }
        opened
    }

    /// The port that an interface is by a pattern. One that the agent has made itself is none.
    fn by_pattern(&self, interface: &str) -> Option<PortConfig> {
        let taps = self.slots.iter().filter(|slot| slot.config.backend == Backend::Tap);
        if taps.into_iter().any(|slot| far_end(&slot.config.interface) == interface) {
            return None;
        }
        self.node.port_by_pattern(interface)
    }

    /// A number for a port by pattern: its own one, that of the one that went first, or a new one.
    fn number_for(&mut self, config: PortConfig) -> Option<usize> {
        let patterns = || self.slots.iter().enumerate().filter(|(_, slot)| slot.origin == Origin::Pattern);
        if let Some((own, _)) = patterns().find(|(_, slot)| slot.config.name == config.name) {
            return Some(own);
        }
        let absent = patterns().filter_map(|(number, slot)| match slot.state {
            SlotState::Absent(since) => Some((since, number)),
            _ => None,
        });
        let slot = Slot { config, origin: Origin::Pattern, state: SlotState::Absent(0) };
        if let Some((_, number)) = absent.min() {
            self.slots[number] = slot;
            self.counted.forget(number);
            return Some(number);
        }
        if self.slots.len() == PortId::MAX {
            return None;
        }
        self.slots.push(slot);
        Some(self.slots.len() - 1)
    }

    /// Opens a port. One that the kernel shares is guarded first: until then its frames are the kernel's alone.
    fn open(&mut self, number: usize, link: Option<&Link>) -> Result<Attached, Failure> {
        let config = &self.slots[number].config;
        let id = PortId(number as u16);
        let opening = Opening { id, node: &self.node, pool: self.pool, workers: self.workers };
        let families = self.families.filter(|_| backend::is_shared(config));
        let opened = self.netns.run(|| -> Result<_, Failure> {
            let guard = match families {
                Some(families) => Some(
                    Guard::attach(&[&config.interface], families)
                        .map_err(|error| Failure::environment(format!("port {}: {error}", config.name)))?,
                ),
                None => None,
            };
            let opened = backend::open(config, &opening)?;
            if let Some(steering) = &opened.steering {
                af_xdp::steer(config, steering, self.families)
                    .map_err(|error| Failure::environment(format!("port {}: {error}", config.name)))?;
            }
            Ok((guard, opened))
        });
        let (guard, OpenedPort { queues, memory, steering }) = opened.map_err(Failure::environment)??;
        if queues.len() > self.workers {
            let (name, queues, workers) = (&config.name, queues.len(), self.workers);
            return Err(Failure::environment(format!(
                "port {name} has {queues} queues and there are {workers} workers"
            )));
        }
        if !queues.is_empty() {
            info!(
                port = config.name,
                interface = config.interface,
                backend = backend::name(config.backend),
                queues = queues.len(),
                "port opened"
            );
        }
        let mut faults = None;
        let queues: Vec<_> = queues.into_iter().map(|port| self.wrap(config, port, &mut faults)).collect();
        let link = link.filter(|_| config.backend.is_on_interface()).map(|link| link.index);
        let first = self.least_loaded(queues.len());
        self.slots[number].state =
            SlotState::Open(Open { link, guard, steering, first, queues: queues.len() });
        Ok(Attached { id, queues, first, memory, faults })
    }

    /// What stands between a device and its worker.
    fn wrap(
        &self,
        config: &PortConfig,
        port: Box<dyn Port>,
        handle: &mut Option<FaultHandle>,
    ) -> Box<dyn Port> {
        let Some(faults) = config.faults else { return port };
        warn!("port {}: its frames meet faults, as the configuration asks", config.name);
        let epoch = self.epoch;
        let clock = move || Instant(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let (port, faulty) = FaultPort::new(port, faults, Box::new(clock));
        *handle = Some(faulty);
        Box::new(port)
    }

    /// The worker to begin with: the one that has the fewest of the ports that not all have a queue of.
    fn least_loaded(&self, queues: usize) -> usize {
        if queues == 0 || queues == self.workers {
            return 0;
        }
        let mut load = vec![0; self.workers];
        for slot in &self.slots {
            if let SlotState::Open(open) = &slot.state
                && open.queues < self.workers
            {
                (0..open.queues).for_each(|place| load[(open.first + place) % self.workers] += 1);
            }
        }
        (0..self.workers).min_by_key(|worker| load[*worker]).unwrap_or(0)
    }

    /// Takes a port from all workers. When this returns, nothing that was meant for it is on its way any more.
    fn close(&mut self, number: usize, team: &Team) -> Result<(), Stopped> {
        let id = PortId(number as u16);
        let removed = self.counted.remove_port(id, team)?;
        // Frames that one worker has handed to another before it knew.
        team.ask_all(|worker| worker.serve_all_peers())?;
        drop(removed); // here, not on a worker: closing a device takes its time
        self.set_absent(number);
        let PortConfig { name, interface, .. } = &self.slots[number].config;
        info!(port = name, interface, "port closed: its interface has gone");
        Ok(())
    }

    fn set_absent(&mut self, number: usize) {
        self.gone += 1;
        self.slots[number].state = SlotState::Absent(self.gone);
    }

    /// Says that ports which were opened were not used after all.
    pub(in crate::agent) fn give_up(&mut self, ports: &[Attached], why: &str) {
        for port in ports {
            self.slots[port.id.index()].state = SlotState::Failed(why.to_owned());
        }
    }

    /// Whether a port is to be tried again.
    pub(in crate::agent) fn has_failed(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.state, SlotState::Failed(_)))
    }

    /// How each port is, by number. Nothing for one by pattern whose interface has gone: it is no port any more.
    pub(in crate::agent) fn statuses(&self) -> Vec<Option<Status>> {
        let status = |slot: &Slot| match (&slot.state, slot.origin) {
            (SlotState::Open(_), _) => Some(Status::Open),
            (SlotState::Failed(why), _) => Some(Status::Failed(why.clone())),
            (SlotState::Absent(_), Origin::Name) => Some(Status::Absent),
            (SlotState::Absent(_), Origin::Pattern) => None,
        };
        self.slots.iter().map(status).collect()
    }

    /// The configuration with the ports that there are, each at the place of its number. Routes and neighbours of
    /// ports by pattern are left out while the interface is not there, as the kernel would.
    pub(in crate::agent) fn configuration(&self, config: &Config) -> Config {
        let mut config = config.clone();
        let Some(node) = &mut config.node else { return config };
        node.ports = self.slots.iter().map(|slot| slot.config.clone()).collect();
        if self.node.patterns.is_empty() {
            return config;
        }
        let is_absent = |device: &str| {
            self.node.port_by_pattern(device).is_some()
                && !self
                    .slots
                    .iter()
                    .any(|slot| slot.config.name == device && !matches!(slot.state, SlotState::Absent(_)))
        };
        if let Source::Listed(routes) = &mut node.routes {
            for route in routes.iter_mut() {
                route.next_hops.retain(|hop: &NextHopConfig| !is_absent(&hop.dev));
            }
            routes.retain(|route| route.kind != RouteKind::Unicast || !route.next_hops.is_empty());
        }
        if let Source::Listed(neighbours) = &mut node.neighbours {
            neighbours.retain(|neighbour| !is_absent(&neighbour.dev));
        }
        config
    }
}
