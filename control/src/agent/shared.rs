//! What the agent's threads share: what is in force, the workers' handles, and the one way to change
//! something.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;
use pollux_dataplane::packet::{Address, Family, LinkAddr, PortId, V4, V6};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::guard::{Families, Means};
use pollux_dataplane::route::{Learned, Neighbours};
use pollux_dataplane::worker::Worker;
use tracing::{debug, info, warn};

use super::input::Inputs;
use super::ports::{Attached, Counted, HostRoutes, LivePorts, Status};
use super::routes::Routes;
use super::team::Team;
use super::tracking::FlowTables;
use super::{changes, machine};
use crate::compile::{Compiled, Compiler};
use crate::config::node::{PortConfig, Source};
use crate::config::{Config, NodeConfig};
use crate::kernel::mirror::Mirror;
use crate::kernel::state::{Changes, FamilyState, KernelState, NeighbourKey, NeighbourState};
use crate::node::NodeView;
use crate::problem::{Problem, Problems};
use crate::translate;

/// Neighbours that a worker learns at a time.
const LESSON: usize = 128;

/// What is in force.
#[derive(Debug)]
pub struct State {
    /// The input.
    pub inputs: Inputs,
    /// Its configuration with the ports that there are, each at the place of its number.
    pub config: Arc<Config>,
    /// How each port is, by number.
    pub(super) ports: Vec<Option<Status>>,
    /// The node, with everything that its configuration leaves to the kernel.
    pub view: NodeView,
    /// What was compiled from them.
    pub compiled: Compiled,
    /// How many states there have been, this one included.
    pub number: u64,
    /// Since when it is in force.
    pub since: Timestamp,
}

/// The kernel's tables: followed, or as they were when the ports had been opened.
pub(super) enum Kernel {
    Mirrored(Mirror),
    Read(Box<KernelState>),
}

impl Kernel {
    fn read<T>(&self, look: impl FnOnce(&KernelState) -> T) -> T {
        match self {
            Kernel::Mirrored(mirror) => mirror.read(look),
            Kernel::Read(state) => look(state),
        }
    }
}

pub(super) struct Shared {
    pub(super) team: Team,
    pub(super) flows: FlowTables,
    /// What the ports count.
    pub(super) counted: Arc<Counted>,
    pub(super) pool: &'static Pool,
    pub(super) started: Instant,
    pub(super) kernel: Kernel,
    state: RwLock<Arc<State>>,
    /// Whether IPv6 was forwarded from the start: what the guard keeps from the kernel, and the host port's
    /// side, were made for that.
    forwards_v6: bool,
    /// Asks for the UDP flows that have lost their way to be deleted (UP-03).
    pub(super) sweep: (Sender<()>, Receiver<()>),
    /// UDP flows that were.
    pub(super) swept: AtomicU64,
    /// Held while something is changed, so that changes come one after the other.
    changing: Mutex<Changing>,
}

/// What follows the changes.
struct Changing {
    compiler: Compiler,
    ports: LivePorts,
    /// The tables that follow the kernel's routes, if they do.
    routes: Option<Routes>,
    /// The host's routes to service addresses.
    host: HostRoutes,
    /// Whether they lead to the addresses in force.
    leads: bool,
}

/// What has become of the ports.
#[derive(Default)]
struct Moved {
    /// To be given to the workers when the tables know them.
    opened: Vec<Attached>,
    /// Whether anything may be different.
    any: bool,
}

/// A neighbour to be learnt, or forgotten when there is no link address.
type Lesson = (PortId, IpAddr, Option<(LinkAddr, Learned)>);

impl Shared {
    /// Compiles the first tables.
    pub(super) fn new(
        inputs: Inputs,
        kernel: Kernel,
        team: Team,
        flows: FlowTables,
        ports: LivePorts,
        mut host: HostRoutes,
    ) -> Result<Arc<Shared>, crate::cli::Failure> {
        let began = Instant::now();
        let config = Arc::new(ports.configuration(&inputs.config));
        let (view, routes, warnings) = kernel.read(|state| machine::followed(&config, state))?;
        super::report(&warnings);
        let mut compiler = Compiler::default();
        let changes = translate::Changes::all(&inputs.cluster);
        let compiled = compiler.update(&inputs.cluster, &config, &inputs.node, &view, &changes);
        super::report(&compiled.reports);
        log_in_force(&inputs, began.elapsed());
        host.lead(&compiled.tables).map_err(crate::cli::Failure::environment)?;
        let forwards_v6 = compiled.tables.v6.is_some();
        let state = State {
            inputs,
            config,
            ports: ports.statuses(),
            view,
            compiled,
            number: 1,
            since: Timestamp::now(),
        };
        Ok(Arc::new(Shared {
            team,
            flows,
            counted: Arc::clone(ports.counted()),
            pool: ports.pool(),
            started: began,
            kernel,
            state: RwLock::new(Arc::new(state)),
            forwards_v6,
            sweep: crossbeam_channel::bounded(1),
            swept: AtomicU64::new(0),
            changing: Mutex::new(Changing { compiler, ports, routes, host, leads: true }),
        }))
    }

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other input in force.
    ///
    /// # Errors
    /// Everything that is wrong with it; what was in force stays.
    pub(super) fn apply(&self, inputs: Inputs) -> Result<(), Problems> {
        let mut changing = self.change();
        let old = self.state();
        if inputs == old.inputs {
            debug!("the input says what is in force already");
            return Ok(());
        }
        let fixed = fixed_differences(&old.inputs, &inputs);
        if !fixed.is_empty() {
            return Err(Problems(fixed));
        }
        let (config, view) = if inputs.config == old.inputs.config {
            (Arc::clone(&old.config), old.view.clone())
        } else {
            let config = Arc::new(changing.ports.configuration(&inputs.config));
            let changes = Changes::default();
            let routes = changing.routes.as_mut();
            let (view, warnings) =
                self.kernel.read(|state| machine::changed(&config, state, &changes, routes, &old.view))?;
            super::report(&warnings);
            (config, view)
        };
        let cluster = Arc::clone(&inputs.cluster);
        let changed = translate::Changes::between(&old.inputs.cluster, &cluster);
        self.put_in_force(inputs, config, view, &old, &mut changing, &changed)?;
        changes::log(&changes::between(&old.inputs.cluster, &cluster, &changed));
        Ok(())
    }

    /// Follows the kernel.
    pub(super) fn kernel_changed(&self, changes: &Changes) {
        let mut changing = self.change();
        let old = self.state();
        // Without ports that come and go, the links are only what the routes rest on.
        let moved = match changes.links {
            true => self.follow_links(&mut changing),
            false => Moved::default(),
        };
        let follows_routes = changing.routes.is_some();
        let routing = changes.links
            || follows_routes
                && (changes.v4.addresses
                    || changes.v6.addresses
                    || !changes.v4.routes.is_empty()
                    || !changes.v6.routes.is_empty());
        let mut opened = moved.opened;
        if routing && let Err(problems) = self.follow_routing(changes, moved.any, &old, &mut changing) {
            warn!("the kernel's changes cannot be taken over, the old tables stay: {problems}");
            changing.ports.give_up(&opened, &problems.to_string());
            opened.clear();
        }
        let ports: BTreeSet<PortId> = opened.iter().map(|port| port.id).collect();
        for port in opened {
            if self.team.add_port(port).is_err() {
                return; // whoever runs the agent is told otherwise
            }
        }
        if !ports.is_empty() {
            self.teach_those(|port| ports.contains(&port));
        }
        let state = self.state();
        let node = state.config.node.as_ref();
        if let Some(node) = node.filter(|node| node.neighbours == Source::Kernel) {
            let lessons = self.kernel.read(|kernel| {
                let mut all = lessons(kernel, &kernel.v4, node, changes.v4.neighbours.iter());
                all.extend(lessons(kernel, &kernel.v6, node, changes.v6.neighbours.iter()));
                all
            });
            self.teach(lessons);
        }
    }

    /// Closes the ports whose interface has gone, and opens those whose interface has come.
    fn follow_links(&self, changing: &mut Changing) -> Moved {
        // A copy: opening ports takes longer than the kernel's follower may wait.
        let links = self.kernel.read(|kernel| kernel.links.clone());
        let Ok(closed) = changing.ports.close_gone(&links, &self.team) else { return Moved::default() };
        let had_failed = changing.ports.has_failed();
        let opened = changing.ports.open_missing(&links);
        let any = closed || !opened.is_empty() || had_failed || changing.ports.has_failed();
        Moved { opened, any }
    }

    /// Whether there are ports that could not be opened.
    pub(super) fn has_failed_ports(&self) -> bool {
        self.change().ports.has_failed()
    }

    fn follow_routing(
        &self,
        changes: &Changes,
        ports_moved: bool,
        old: &State,
        changing: &mut Changing,
    ) -> Result<(), Problems> {
        let config = match ports_moved {
            true => Arc::new(changing.ports.configuration(&old.inputs.config)),
            false => Arc::clone(&old.config),
        };
        let routes = changing.routes.as_mut();
        let (view, _) =
            self.kernel.read(|state| machine::changed(&config, state, changes, routes, &old.view))?;
        let same_ports = !ports_moved || changing.ports.statuses() == old.ports;
        if machine::is_same(&view, &old.view) && same_ports {
            return Ok(());
        }
        info!("the kernel's links, addresses or routes changed");
        self.put_in_force(old.inputs.clone(), config, view, old, changing, &translate::Changes::default())
    }

    /// Teaches the workers all neighbours that are known from the configuration or the kernel.
    pub(super) fn teach_all(&self) {
        self.teach_those(|_| true);
    }

    /// Those behind these ports.
    fn teach_those(&self, meant: impl Fn(PortId) -> bool) {
        let state = self.state();
        let mut all: Vec<Lesson> = listed(&state.view).into_iter().map(to_learn).collect();
        if let Some(node) = state.config.node.as_ref().filter(|node| node.neighbours == Source::Kernel) {
            self.kernel.read(|kernel| {
                all.extend(lessons(kernel, &kernel.v4, node, kernel.v4.neighbours.keys()));
                all.extend(lessons(kernel, &kernel.v6, node, kernel.v6.neighbours.keys()));
            });
        }
        all.retain(|(port, ..)| meant(*port));
        self.teach(all);
    }

    /// Keeps the kernel from forwarding at the ports that it shares.
    ///
    /// # Errors
    /// Exit code 4 when it allows no means.
    pub(super) fn guard(&self, families: Families) -> Result<(), crate::cli::Failure> {
        self.change().ports.guard(families)
    }

    /// How it is kept from it; nothing when no port is shared with it.
    pub(super) fn guarded_by(&self) -> Option<Means> {
        self.change().ports.guarded_by()
    }

    /// Lets it forward again.
    pub(super) fn release(&self) {
        self.change().ports.release();
    }

    /// Puts the host's side of the host port back.
    pub(super) fn restore_host(&self) {
        self.change().host.restore();
    }

    /// Whether the interface behind a port has a carrier; as far as is known.
    pub(super) fn has_link(&self, port: &PortConfig) -> bool {
        let is_up =
            |kernel: &KernelState| kernel.link(&port.interface).is_none_or(|link| link.up && link.carrier);
        !port.backend.is_on_interface() || self.kernel.read(is_up)
    }

    fn change(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles what has changed, and gives the workers the result: to each at once as a whole.
    fn put_in_force(
        &self,
        inputs: Inputs,
        config: Arc<Config>,
        view: NodeView,
        old: &State,
        changing: &mut Changing,
        changes: &translate::Changes,
    ) -> Result<(), Problems> {
        let began = Instant::now();
        let Inputs { cluster, node, .. } = &inputs;
        let mut compiled = changing.compiler.update(cluster, &config, node, &view, changes);
        // The kernel would forward it as well.
        if let Some(tables) = Arc::get_mut(&mut compiled.tables).filter(|_| !self.forwards_v6)
            && tables.v6.take().is_some()
            && !old.view.has_v6()
        {
            warn!("the node has got an IPv6 address: IPv6 is forwarded from the next start on");
        }
        if self.team.put_in_force(&compiled.tables).is_err() {
            return Err(Problems(vec![problem("", "a worker has stopped".to_owned())]));
        }
        self.team.collect();
        log_in_force(&inputs, began.elapsed());
        // What was said of the state before is not said again.
        let known: BTreeSet<_> = old.compiled.reports.iter().map(|one| (&one.object, &one.text)).collect();
        let news = compiled.reports.iter().filter(|one| !known.contains(&(&one.object, &one.text)));
        super::report(news);
        let same_addresses =
            compiled.frontends == old.compiled.frontends && machine::same_addresses(&view, &old.view);
        if !same_addresses || !changing.leads {
            let led = changing.host.lead(&compiled.tables);
            changing.leads = led.is_ok();
            if let Err(error) = led {
                // Forwarding is right all the same; the next change tries again.
                warn!("the host's routes to service addresses: {error}");
            }
        }
        let lessons = differences(&listed(&old.view), &listed(&view));
        let sweep = compiled.udp != old.compiled.udp;
        let state = State {
            inputs,
            config,
            ports: changing.ports.statuses(),
            view,
            compiled,
            number: old.number + 1,
            since: Timestamp::now(),
        };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        if sweep {
            // Full: it is asked for already, and has not begun.
            let _ = self.sweep.0.try_send(());
        }
        self.teach(lessons);
        Ok(())
    }

    fn teach(&self, lessons: Vec<Lesson>) {
        for some in lessons.chunks(LESSON) {
            let some = some.to_vec();
            if self.team.tell_all(move |worker| learn(worker, &some)).is_err() {
                return; // a worker has stopped; whoever runs the agent is told otherwise
            }
        }
    }
}

fn log_in_force(inputs: &Inputs, took: Duration) {
    let endpoints: usize = inputs.cluster.slices.values().map(|slice| slice.endpoints.len()).sum();
    info!(
        services = inputs.cluster.services.len(),
        endpoints,
        compile_ms = (took.as_secs_f64() * 1e6).round() / 1e3,
        "tables in force"
    );
}

fn problem(object: &str, text: String) -> Problem {
    Problem { file: None, object: object.to_owned(), text }
}

/// What is decided when the agent starts and cannot follow a changed file.
fn fixed_differences(old: &Inputs, new: &Inputs) -> Vec<Problem> {
    let none = NodeConfig::default();
    let (before, after) = (old.node_config().unwrap_or(&none), new.node_config().unwrap_or(&none));
    let source = |config: &NodeConfig| (config.routes == Source::Kernel, config.neighbours == Source::Kernel);
    let fixed = [
        ("Node", "ports", before.ports == after.ports && before.patterns == after.patterns),
        ("Node", "workers", before.workers == after.workers),
        ("Node", "cores", before.cores == after.cores),
        ("Node", "flowTable.connections", before.connections == after.connections),
        ("Node", "affinity.clients", before.clients == after.clients),
        ("Node", "sysctl", before.sysctl == after.sysctl),
        ("Node", "whether routes or neighbours are the kernel's", source(before) == source(after)),
        ("KubeProxyConfiguration", "conntrack", old.config.proxy.conntrack == new.config.proxy.conntrack),
        ("", "the node's name", old.node == new.node),
    ];
    let changed = fixed.into_iter().filter(|(_, _, same)| !same);
    changed
        .map(|(object, field, _)| problem(object, format!("{field}: takes effect at the next start only")))
        .collect()
}

fn learn(worker: &mut Worker, lessons: &[Lesson]) {
    fn one<A: Family>(neighbours: &mut Neighbours<A>, lesson: &Lesson, now: pollux_dataplane::time::Instant) {
        let (port, address, link) = *lesson;
        let Some(address) = A::Addr::from_ip(address) else { return };
        match link {
            Some((link, how)) => neighbours.learn(port, address, link, how, now),
            None => neighbours.forget(port, address),
        }
    }
    let now = worker.now();
    for lesson in lessons {
        match lesson.1 {
            IpAddr::V4(_) => one::<V4>(worker.forwarder().neighbours_v4(), lesson, now),
            IpAddr::V6(_) => one::<V6>(worker.forwarder().neighbours_v6(), lesson, now),
        }
    }
}

/// The configuration's own neighbours.
fn listed(view: &NodeView) -> BTreeMap<(u16, IpAddr), LinkAddr> {
    view.neighbours.iter().map(|known| ((known.port.0, known.address), known.link)).collect()
}

fn to_learn(((port, address), link): ((u16, IpAddr), LinkAddr)) -> Lesson {
    (PortId(port), address, Some((link, Learned::Static)))
}

fn differences(
    old: &BTreeMap<(u16, IpAddr), LinkAddr>,
    new: &BTreeMap<(u16, IpAddr), LinkAddr>,
) -> Vec<Lesson> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|&(port, at)| (PortId(port), at, None));
    let come = new.iter().filter(|(key, link)| old.get(key) != Some(link));
    gone.chain(come.map(|(&key, &link)| to_learn((key, link)))).collect()
}

/// What the kernel knows about these neighbours, of those behind ports.
fn lessons<'a, A: Family>(
    kernel: &KernelState,
    state: &FamilyState<A>,
    node: &NodeConfig,
    keys: impl Iterator<Item = &'a NeighbourKey<A>>,
) -> Vec<Lesson> {
    keys.filter_map(|key| {
        let port = machine::port_of(node, kernel.link_at(key.link)?)?;
        let known = state.neighbours.get(key);
        let link = match known.map(|known| known.state) {
            // While the kernel is asking, it has forgotten nothing.
            Some(NeighbourState::Incomplete) => return None,
            Some(NeighbourState::Permanent) => Some((known?.link_address?, Learned::Static)),
            Some(NeighbourState::Reachable | NeighbourState::Stale) => {
                Some((known?.link_address?, Learned::Kernel))
            }
            Some(NeighbourState::Failed) | None => None,
        };
        Some((port, key.address.into(), link))
    })
    .collect()
}
