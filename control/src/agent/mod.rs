//! The daemon of a node: opens the ports, compiles the tables, runs the workers, and follows what changes.
//!
//! ```text
//! files ──watch──┐                                          ┌─ tables, ports ─→ workers (pollux-worker-N)
//! kernel ─follow─┴→ Shared: ports, view of the node, compile ┤                       │
//! admin socket ───→ view ←────────────── Team::ask_all ──────┴───────────────────────┘
//! ```
//!
//! Invariants: a packet sees the tables of one compilation as a whole (UP-01); input that is wrong changes
//! nothing, and says so; workers are asked for small pieces of work only; when the agent has stopped, the
//! machine is as it was before. Threads that are started here live in the network namespace of the thread
//! that starts the agent, so an agent works in any namespace.

mod admin;
pub mod capture;
mod changes;
mod client;
pub mod conntrack;
mod cores;
mod files;
mod follow;
mod full;
mod input;
mod machine;
mod ports;
pub mod protocol;
mod routes;
mod shared;
mod stale;
mod team;
mod tracking;
mod view;
mod watch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use pollux_dataplane::flow::{FlowTable, Sysctls, Timeout, Timeouts};
use pollux_dataplane::forward::{Forwarder, Settings};
use pollux_dataplane::nat::fragments::Limits;
use pollux_dataplane::packet::{PortId, V4, V6};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::fault::FaultHandle;
use pollux_dataplane::port::guard::{Families, Means};
use pollux_dataplane::port::memory::MemoryHandle;
use pollux_dataplane::service::Clients;
use pollux_dataplane::tables::Tables;
use pollux_dataplane::worker::{Handle, Worker};
use tracing::{error, info, warn};

use crate::cli::Failure;
use crate::cluster::IpPrefix;
use crate::config::node::Source;
use crate::config::{Config, NodeConfig};
use crate::kernel::host_port;
use crate::kernel::memory;
use crate::kernel::mirror::Mirror;
use crate::kernel::netns::Netns;
use crate::problem::{Problem, Problems};
pub use client::{Answer, Client};
pub use input::{Inputs, Sources};
use ports::LivePorts;
pub use shared::State;
use shared::{Kernel, Shared};
use team::Team;
use tracking::Tracked;

/// Buffers of the pool, 2 KiB each: bursts of super-frames, and what waits for neighbours.
const BUFFERS: usize = 16 * 1024;

/// Connections for each processor and in all, when kube-proxy's numbers are switched off (Linux' habit).
const CONNECTIONS: usize = 128 * 1024;

/// Backends of clients that session affinity remembers in each family when nothing else is said (AF-05): at
/// most 20 MiB, and only as much as is used.
const CLIENTS: u32 = 256 * 1024;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The input, read and checked ([`Sources::read`]).
    pub inputs: Inputs,
    /// Files whose changes are to be followed; nothing: none.
    pub follow: Option<Sources>,
    /// Where to listen for `pollux get` and `pollux stats`; nothing: nowhere.
    pub admin: Option<PathBuf>,
    /// The host's side of the host port.
    pub host: HostOptions,
}

/// The host's side of the host port (PT-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostOptions {
    /// Prefixes that the host sends into the host port as a whole. Addresses of Services that are in none of
    /// them are led there one by one, as they come and go.
    pub service_prefixes: Vec<IpPrefix>,
    /// Where it is noted what has to be restored after a crash.
    pub state_directory: PathBuf,
    /// Name of the instance: two on one machine need two.
    pub name: String,
}

impl Default for HostOptions {
    /// No prefixes; as on a node with one instance.
    fn default() -> Self {
        HostOptions {
            service_prefixes: Vec::new(),
            state_directory: host_port::STATE_DIRECTORY.into(),
            name: "pollux".to_owned(),
        }
    }
}

/// Starts agents.
#[derive(Clone, Copy, Debug)]
pub struct Agent;

/// A running agent. Dropping it stops it.
pub struct Running {
    shared: Arc<Shared>,
    admin: Option<admin::Server>,
    watch: Option<watch::Watch>,
    follow: Option<follow::Follower>,
    sweeper: Option<stale::Sweeper>,
    full: Option<full::FullWatch>,
    captures: Option<capture::standing::Standing>,
    workers: Option<Vec<JoinHandle<Worker>>>,
    ended: Receiver<()>,
    named: Handles,
}

/// The other sides of ports, by name.
#[derive(Default)]
struct Handles {
    memory: HashMap<String, MemoryHandle>,
    faults: HashMap<String, FaultHandle>,
}

/// Starts the thread of a worker, on its processor. `ending` is told when it ends, however it does.
fn start(
    number: usize,
    mut worker: Worker,
    core: Option<u16>,
    ending: Sender<()>,
) -> std::io::Result<JoinHandle<Worker>> {
    struct Ending(Sender<()>);
    impl Drop for Ending {
        fn drop(&mut self) {
            let _ = self.0.try_send(()); // nobody listens any more
        }
    }
    std::thread::Builder::new().name(team::name(number)).spawn(move || {
        let _ending = Ending(ending);
        if let Some(core) = core
            && let Err(error) = cores::pin(core)
        {
            warn!("{} cannot be pinned to processor {core}: {error}", team::name(number));
        }
        worker.run();
        worker
    })
}

impl Agent {
    /// Starts an agent in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Exit code 2 for bad input, 4 for what the machine lacks; nothing on the machine was changed then, or
    /// it was undone.
    pub fn start(options: AgentOptions) -> Result<Running, Failure> {
        let receiving = options.inputs.node_config().map_or(0, NodeConfig::buffers_to_receive);
        Agent::start_with(options, move || Pool::new(BUFFERS + receiving))
    }

    /// A pool as an agent has it. It lasts as long as the process.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn pool() -> std::io::Result<&'static Pool> {
        Pool::new(BUFFERS)
    }

    /// As [`start`](Agent::start), with the buffers of `pool`: for a process that starts one agent after another.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        options: AgentOptions,
        pool: impl FnOnce() -> std::io::Result<&'static Pool>,
    ) -> Result<Running, Failure> {
        let AgentOptions { inputs, follow, admin, host } = options;
        let config = inputs.node_config().cloned().unwrap_or_default();
        // Checks.
        cores::check(&config)?;
        let netns = Netns::current().map_err(Failure::environment)?;
        let before = Mirror::dump(&netns).map_err(Failure::environment)?;
        ports::check(&config, &before)?;
        files::check(ports::count(&config, &before), config.worker_count())?;
        machine::view(&inputs.config, &before)?;
        let settings = settings(&inputs.config);
        check_memory(&settings)?;
        let listener = admin.map(admin::Listener::bind).transpose()?;

        // Changes; whatever fails from here on undoes them as it is dropped.
        let pool = pool()?;
        let mut ports = LivePorts::new(&config, &netns, pool);
        let mut opened = ports.open_all(&before.links)?;
        let host = ports::HostRoutes::set_up(&config, &before, &host, &netns)?;
        let kernel = if follows_kernel(&config) {
            Kernel::Mirrored(Mirror::start(&netns).map_err(Failure::environment)?)
        } else {
            Kernel::Read(Box::new(Mirror::dump(&netns).map_err(Failure::environment)?))
        };
        let mut forwarder = Forwarder::new(&settings, pool)?;
        let [v4, v6] = fragment_timeouts(&inputs.config);
        forwarder.set_fragment_timeouts(v4, v6);
        let flows = tracking::FlowTables::of(&forwarder);
        let siblings = (1..config.worker_count()).map(|_| forwarder.sibling(rand::random()));
        let mut forwarders: Vec<Forwarder> = siblings.collect();
        forwarders.insert(0, forwarder);
        let (mut workers, handles): (Vec<Worker>, Vec<Handle>) =
            Worker::team(forwarders)?.into_iter().unzip();
        let mut named = Handles::default();
        for port in &mut opened {
            let name = || config.ports.get(port.id.index()).map(|port| port.name.clone());
            named.memory.extend(name().zip(port.memory.take()));
            named.faults.extend(name().zip(port.faults.take()));
        }
        let shared = Shared::new(inputs, kernel, Team::new(handles), flows, ports, host)?;
        let tables = Arc::clone(&shared.state().compiled.tables);
        // What is not forwarded needs no memory.
        tables.v4.as_ref().inspect(|_| V4::table(&shared.flows).populate());
        tables.v6.as_ref().inspect(|_| V6::table(&shared.flows).populate());
        let families = families(&tables);
        for worker in &mut workers {
            worker.forwarder().set_tables(Arc::clone(&tables));
        }
        for port in opened {
            let id = port.id;
            port.shares(workers.len()).into_iter().zip(&mut workers).for_each(|(share, worker)| {
                share.give(worker, id);
            });
        }
        shared.guard(families)?;
        let (ending, ended) = crossbeam_channel::bounded(workers.len());
        let mut running = Running {
            shared,
            admin: None,
            watch: None,
            follow: None,
            sweeper: None,
            full: None,
            captures: None,
            workers: Some(Vec::new()),
            ended,
            named,
        };
        for (number, worker) in workers.into_iter().enumerate() {
            let core = config.cores.get(number).copied();
            let thread = start(number, worker, core, ending.clone())?;
            running.workers.get_or_insert_default().push(thread);
        }
        let numbered = config.ports.iter().enumerate().map(|(number, port)| (PortId(number as u16), port));
        running.captures = Some(capture::standing::Standing::start(&running.shared, numbered)?);
        running.shared.teach_all();
        running.sweeper = Some(stale::Sweeper::start(&running.shared)?);
        running.full = Some(full::FullWatch::start(&running.shared)?);
        running.follow = follow::Follower::start(&running.shared)?;
        running.watch = follow.map(|sources| watch::Watch::start(sources, &running.shared)).transpose()?;
        running.admin = listener.map(|listener| listener.serve(&running.shared)).transpose()?;
        Ok(running)
    }
}

impl Running {
    /// What is in force.
    pub fn state(&self) -> Arc<State> {
        self.shared.state()
    }

    /// The first worker, to ask: of what all workers share, or the only one there is.
    pub fn worker(&self) -> &Handle {
        self.shared.team.first()
    }

    /// All workers, in the order of their numbers.
    pub fn workers(&self) -> &[Handle] {
        self.shared.team.handles()
    }

    /// Puts other input in force, as when a file has changed.
    ///
    /// # Errors
    /// Everything that is wrong with it, and what cannot be changed while running; what was in force stays.
    pub fn apply(&self, inputs: Inputs) -> Result<(), Problems> {
        self.shared.apply(inputs)
    }

    /// How the kernel is kept from forwarding; nothing when no port is shared with it.
    pub fn guarded_by(&self) -> Option<Means> {
        self.shared.guarded_by()
    }

    /// The other side of a memory port.
    pub fn memory(&self, port: &str) -> Option<&MemoryHandle> {
        self.named.memory.get(port)
    }

    /// The counters of the bad wire before a port; nothing when it has none.
    pub fn faults(&self, port: &str) -> Option<&FaultHandle> {
        self.named.faults.get(port)
    }

    /// Becomes ready when a worker has ended by itself, which none ever should.
    pub fn ended(&self) -> &Receiver<()> {
        &self.ended
    }

    /// Stops, and restores what was changed.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        // Nobody may change or ask for anything any more.
        self.admin = None;
        self.watch = None;
        self.follow = None;
        self.sweeper = None;
        self.full = None;
        self.captures = None;
        let Some(threads) = self.workers.take() else { return };
        self.shared.team.stop();
        let workers: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
        for (number, _) in workers.iter().enumerate().filter(|(_, worker)| worker.is_err()) {
            error!("{} had panicked", team::name(number));
        }
        // From here on the kernel forwards again.
        self.shared.release();
        // Before the TAP goes, with its worker.
        self.shared.restore_host();
        drop(workers);
        info!("stopped");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({})", self.state().inputs.node)
    }
}

/// Also for the sake of interfaces that come and go.
fn follows_kernel(config: &NodeConfig) -> bool {
    let mut ports = config.ports.iter().chain(&config.patterns);
    ports.any(|port| port.backend.is_on_interface())
        || config.routes == Source::Kernel
        || config.neighbours == Source::Kernel
}

/// The families that Pollux forwards, whose frames are to be kept from the kernel.
fn families(tables: &Tables) -> Families {
    match (&tables.v4, &tables.v6) {
        (_, None) => Families::V4,
        (None, Some(_)) => Families::V6,
        (Some(_), Some(_)) => Families::Both,
    }
}

/// Size, timeouts and other settings of the flow table (CT-05 to CT-07, CT-09, CT-11).
fn settings(config: &Config) -> Settings {
    let conntrack = &config.proxy.conntrack;
    let node = config.node.as_ref();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let connections = match (node.and_then(|node| node.connections), conntrack.max_per_core) {
        (Some(connections), _) => connections as usize,
        (None, 0) => CONNECTIONS,
        (None, each) => (each as usize * cores).max(conntrack.min as usize),
    };
    let mut timeouts = Timeouts::default();
    let from_proxy = [
        (Timeout::TcpEstablished, conntrack.tcp_established),
        (Timeout::TcpCloseWait, conntrack.tcp_close_wait),
        (Timeout::Udp, conntrack.udp),
        (Timeout::UdpStream, conntrack.udp_stream),
    ];
    let mut sysctls = Sysctls::default();
    // As in kube-proxy, `false` sets nothing: the default stays.
    sysctls.tcp_be_liberal |= conntrack.tcp_be_liberal == Some(true);
    let from_node = node.into_iter().flat_map(|node| &node.sysctl).filter_map(|(name, &value)| {
        if sysctls.set(name, value) {
            return None;
        }
        Some((Timeout::by_name(name)?, Some(Duration::from_secs(u64::from(value)))))
    });
    for (timeout, value) in from_proxy.into_iter().chain(from_node) {
        if let Some(value) = value.filter(|value| !value.is_zero())
            && let Err(error) = timeouts.set(timeout, value)
        {
            warn!("{error}; the default stays");
        }
    }
    let clients = node.and_then(|node| node.clients).unwrap_or(CLIENTS) as usize;
    Settings { connections, clients, timeouts, sysctls, seed: rand::random() }
}

/// How long fragments wait, of IPv4 and of IPv6 (NAT-08).
fn fragment_timeouts(config: &Config) -> [Duration; 2] {
    let sysctl = |name| {
        let seconds = config.node.as_ref().and_then(|node| node.sysctl.get(name))?;
        Some(Duration::from_secs(u64::from(*seconds)))
    };
    [
        sysctl("ipfrag_time").unwrap_or(Limits::of::<V4>().timeout),
        sysctl("nf_conntrack_frag6_timeout").unwrap_or(Limits::of::<V6>().timeout),
    ]
}

/// Refuses tables that do not fit memory before anything is made.
fn check_memory(settings: &Settings) -> Result<(), Failure> {
    let flows =
        FlowTable::<V4>::bytes_for(settings.connections) + FlowTable::<V6>::bytes_for(settings.connections);
    let clients = Clients::<V4>::bytes_for(settings.clients) + Clients::<V6>::bytes_for(settings.clients);
    let Some(room) = memory::room().filter(|room| flows + clients > room.bytes) else { return Ok(()) };
    let gibibytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Err(Failure::bad_input(format!(
        "tables for {} connections and {} clients of each family take {:.2} GiB, and {} has {:.2} GiB left: \
         set a smaller flowTable.connections (or conntrack.maxPerCore and min) and affinity.clients",
        settings.connections,
        settings.clients,
        gibibytes(flows + clients),
        room.limit,
        gibibytes(room.bytes),
    )))
}

/// Says what is worth saying about the input.
pub fn report<'a>(warnings: impl IntoIterator<Item = &'a Problem>) {
    for warning in warnings {
        warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nat_08_the_time_of_fragments_is_that_of_the_kernel_s_sysctls() {
        let mut config = Config::default();
        assert_eq!(fragment_timeouts(&config), [30, 60].map(Duration::from_secs));
        let sysctl = [("ipfrag_time".to_string(), 5), ("nf_conntrack_frag6_timeout".to_string(), 6)];
        config.node = Some(NodeConfig { sysctl: sysctl.into(), ..NodeConfig::default() });
        assert_eq!(fragment_timeouts(&config), [5, 6].map(Duration::from_secs));
    }
}
