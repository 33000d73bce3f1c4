//! What the agent's threads share: what is in force, the worker's handle, and the one way to change
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
use pollux_dataplane::route::{Learned, Neighbours};
use pollux_dataplane::worker::{Command, Handle, Worker};
use tracing::{debug, info, warn};

use super::input::Inputs;
use super::ports::HostRoutes;
use super::routes::Routes;
use super::tracking::FlowTables;
use super::{changes, machine};
use crate::compile::{Compiled, Compiler};
use crate::config::NodeConfig;
use crate::config::node::Source;
use crate::kernel::mirror::Mirror;
use crate::kernel::state::{Changes, FamilyState, KernelState, NeighbourKey, NeighbourState};
use crate::node::NodeView;
use crate::problem::{Problem, Problems};
use crate::translate;

/// Neighbours that the worker learns at a time.
const LESSON: usize = 128;

/// What is in force.
#[derive(Debug)]
pub struct State {
    /// The input.
    pub inputs: Inputs,
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
    pub(super) worker: Handle,
    pub(super) flows: FlowTables,
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
    /// The tables that follow the kernel's routes, if they do.
    routes: Option<Routes>,
    /// The host's routes to service addresses.
    host: HostRoutes,
    /// Whether they lead to the addresses in force.
    leads: bool,
}

/// A neighbour to be learnt, or forgotten when there is no link address.
type Lesson = (PortId, IpAddr, Option<(LinkAddr, Learned)>);

impl Shared {
    /// Compiles the first tables.
    pub(super) fn new(
        inputs: Inputs,
        kernel: Kernel,
        worker: Handle,
        flows: FlowTables,
        pool: &'static Pool,
        mut host: HostRoutes,
    ) -> Result<Arc<Shared>, crate::cli::Failure> {
        let began = Instant::now();
        let (view, routes, warnings) = kernel.read(|state| machine::followed(&inputs.config, state))?;
        super::report(&warnings);
        let mut compiler = Compiler::default();
        let changes = translate::Changes::all(&inputs.cluster);
        let compiled = compiler.update(&inputs.cluster, &inputs.config, &inputs.node, &view, &changes);
        super::report(&compiled.reports);
        log_in_force(&inputs, began.elapsed());
        host.lead(&compiled.tables).map_err(crate::cli::Failure::environment)?;
        let forwards_v6 = compiled.tables.v6.is_some();
        let state = State { inputs, view, compiled, number: 1, since: Timestamp::now() };
        Ok(Arc::new(Shared {
            worker,
            flows,
            pool,
            started: began,
            kernel,
            state: RwLock::new(Arc::new(state)),
            forwards_v6,
            sweep: crossbeam_channel::bounded(1),
            swept: AtomicU64::new(0),
            changing: Mutex::new(Changing { compiler, routes, host, leads: true }),
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
        let view = if inputs.config == old.inputs.config {
            old.view.clone()
        } else {
            let changes = Changes::default();
            let routes = changing.routes.as_mut();
            let (view, warnings) = self
                .kernel
                .read(|state| machine::changed(&inputs.config, state, &changes, routes, &old.view))?;
            super::report(&warnings);
            view
        };
        let cluster = Arc::clone(&inputs.cluster);
        let changed = translate::Changes::between(&old.inputs.cluster, &cluster);
        self.put_in_force(inputs, view, &old, &mut changing, &changed)?;
        changes::log(&changes::between(&old.inputs.cluster, &cluster, &changed));
        Ok(())
    }

    /// Follows the kernel.
    pub(super) fn kernel_changed(&self, changes: &Changes) {
        let mut changing = self.change();
        let old = self.state();
        let routing = changes.links
            || changes.v4.addresses
            || changes.v6.addresses
            || !changes.v4.routes.is_empty()
            || !changes.v6.routes.is_empty();
        if routing && let Err(problems) = self.follow_routing(changes, &old, &mut changing) {
            warn!("the kernel's changes cannot be taken over, the old tables stay: {problems}");
        }
        let node = old.inputs.node_config();
        if let Some(node) = node.filter(|node| node.neighbours == Source::Kernel) {
            let lessons = self.kernel.read(|kernel| {
                let mut all = lessons(kernel, &kernel.v4, node, changes.v4.neighbours.iter());
                all.extend(lessons(kernel, &kernel.v6, node, changes.v6.neighbours.iter()));
                all
            });
            self.teach(lessons);
        }
    }

    fn follow_routing(
        &self,
        changes: &Changes,
        old: &State,
        changing: &mut Changing,
    ) -> Result<(), Problems> {
        let routes = changing.routes.as_mut();
        let (view, _) = self
            .kernel
            .read(|state| machine::changed(&old.inputs.config, state, changes, routes, &old.view))?;
        if machine::is_same(&view, &old.view) {
            return Ok(());
        }
        info!("the kernel's links, addresses or routes changed");
        self.put_in_force(old.inputs.clone(), view, old, changing, &translate::Changes::default())
    }

    /// Teaches the worker all neighbours that are known from the configuration or the kernel.
    pub(super) fn teach_all(&self) {
        let state = self.state();
        let mut all: Vec<Lesson> = listed(&state.view).into_iter().map(to_learn).collect();
        if let Some(node) = state.inputs.node_config().filter(|node| node.neighbours == Source::Kernel) {
            self.kernel.read(|kernel| {
                all.extend(lessons(kernel, &kernel.v4, node, kernel.v4.neighbours.keys()));
                all.extend(lessons(kernel, &kernel.v6, node, kernel.v6.neighbours.keys()));
            });
        }
        self.teach(all);
    }

    /// Puts the host's side of the host port back.
    pub(super) fn restore_host(&self) {
        self.change().host.restore();
    }

    fn change(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles what has changed, and gives the worker the result: at once as a whole.
    fn put_in_force(
        &self,
        inputs: Inputs,
        view: NodeView,
        old: &State,
        changing: &mut Changing,
        changes: &translate::Changes,
    ) -> Result<(), Problems> {
        let began = Instant::now();
        let Inputs { config, cluster, node } = &inputs;
        let mut compiled = changing.compiler.update(cluster, config, node, &view, changes);
        // The kernel would forward it as well.
        if let Some(tables) = Arc::get_mut(&mut compiled.tables).filter(|_| !self.forwards_v6)
            && tables.v6.take().is_some()
            && !old.view.has_v6()
        {
            warn!("the node has got an IPv6 address: IPv6 is forwarded from the next start on");
        }
        if self.worker.send(Command::Tables(Arc::clone(&compiled.tables))).is_err() {
            return Err(Problems(vec![problem("", "the worker has stopped".to_owned())]));
        }
        self.worker.collect();
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
        let state = State { inputs, view, compiled, number: old.number + 1, since: Timestamp::now() };
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
            let taught = self.worker.send(Command::Run(Box::new(move |worker| learn(worker, &some))));
            if taught.is_err() {
                return; // the worker has stopped; whoever runs the agent is told otherwise
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
        ("Node", "ports", before.ports == after.ports),
        ("Node", "workers", before.workers == after.workers),
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
