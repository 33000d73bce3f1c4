//! A node in memory: a worker with a port in memory for each port of the configuration, under the tables
//! that the control plane compiles from a cluster's files. After every step the counters must balance
//! (FW-05) and no buffer may be missing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pollux_control::cluster;
use pollux_control::compile::{Compiled, compile};
use pollux_control::config;
use pollux_control::node::{Links, NodeView};
use pollux_control::trace::teach;
use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Forwarder, Settings};
use pollux_dataplane::packet::{Offload, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Capabilities;
use pollux_dataplane::port::memory::{MemoryHandle, MemoryPort, Rings};
use pollux_dataplane::service::Path;
use pollux_dataplane::stats::{Reason, Stats};
use pollux_dataplane::tables::Role;
use pollux_dataplane::time::Instant;
use pollux_dataplane::worker::Worker;

use crate::seed::{Cluster, Files};
pub use crate::walks::Left;
use crate::walks::{Choice, End, Outcome, PARTIAL, Stage, Step};

/// The time between two steps.
const STEP: Duration = Duration::from_millis(1);

/// A node whose ports are in memory.
pub struct Node {
    worker: Worker,
    ports: BTreeMap<String, (PortId, MemoryHandle)>,
    compiled: Compiled,
    capabilities: Capabilities,
    pool: &'static Pool,
    now: Instant,
    taken: u64,
}

impl Cluster {
    /// The node of this cluster, on ports that carry complete frames only.
    pub fn node(&self) -> Node {
        Node::new(&self.files(), Capabilities::default())
    }
}

impl Node {
    /// slave1 under the given files; its ports can carry what `capabilities` says.
    ///
    /// # Panics
    /// If the files are not right.
    pub fn new(files: &Files, capabilities: Capabilities) -> Node {
        let (compiled, view) = compiled(files);
        let pool = Pool::new(256).expect("memory for a pool");
        let settings = Settings {
            connections: 4096,
            clients: 4096,
            timeouts: Timeouts::default(),
            sysctls: Sysctls::default(),
            seed: 7,
        };
        let mut forwarder = Forwarder::new(&settings, pool).expect("memory for a flow table");
        forwarder.set_tables(compiled.tables.clone());
        let now = Instant::from_secs(1);
        teach(&mut forwarder, &view.neighbours, now);
        // The handle may go: nothing is asked of the worker while it runs.
        let (mut worker, _) = Worker::new(forwarder).expect("an event descriptor");
        let mut ports = BTreeMap::new();
        for (id, port) in compiled.tables.ports.iter() {
            if compiled.tables.ports.tunnel(id).is_some() {
                continue; // nothing is behind a tunnel
            }
            let (memory, handle) = MemoryPort::new(id, capabilities, Rings::default());
            worker.add_port(id, Box::new(memory));
            ports.insert(port.name.clone(), (id, handle));
        }
        Node { worker, ports, compiled, capabilities, pool, now, taken: 0 }
    }

    /// Puts other files in force, compiled all at once. The ports stay as they are.
    ///
    /// # Panics
    /// If the files are not right.
    pub fn change(&mut self, files: &Files) {
        let (compiled, _) = compiled(files);
        self.worker.forwarder().set_tables(compiled.tables.clone());
        self.compiled = compiled;
    }

    /// Makes new connections to a Service port (`default/myapp`, or `default/web:http` with a named port)
    /// choose this backend.
    ///
    /// # Panics
    /// If the Service has no set of several backends with this one.
    pub fn choose(&mut self, service: &str, backend: &str) {
        let place = place_of(&self.compiled, service, backend).unwrap_or_else(|problem| panic!("{problem}"));
        self.worker.forwarder().fix_choice(Some(place));
    }

    /// Makes new connections choose the backend at `place` of every set that is long enough.
    pub fn choose_place(&mut self, place: u32) {
        self.worker.forwarder().fix_choice(Some(place));
    }

    /// Chooses at random again (EP-06).
    pub fn choose_at_random(&mut self) {
        self.worker.forwarder().fix_choice(None);
    }

    /// Puts a frame into a port and returns what leaves, port by port.
    ///
    /// # Panics
    /// If the counters do not balance afterwards (FW-05), or a buffer is missing.
    pub fn send(&mut self, port: &str, frame: &[u8]) -> Vec<Left> {
        self.send_offloaded(port, frame, Offload::default())
    }

    /// As [`send`](Node::send), with what the frame's sender left to the device.
    ///
    /// # Panics
    /// As [`send`](Node::send).
    pub fn send_offloaded(&mut self, port: &str, frame: &[u8], offload: Offload) -> Vec<Left> {
        let (id, handle) = self.ports.get(port).unwrap_or_else(|| panic!("no port {port}"));
        let mut packet = Packet::copy_of(self.pool, *id, frame).expect("a free buffer");
        packet.offload = offload;
        handle.inject(packet);
        self.now = self.now + STEP;
        assert_eq!(self.worker.poll(self.now), 1);
        self.assert_balance("after the poll");
        self.worker.chores(self.now);
        self.assert_balance("after the chores");
        self.take()
    }

    /// Lets time pass, with the chores that are due.
    ///
    /// # Panics
    /// As [`send`](Node::send).
    pub fn wait(&mut self, time: Duration) -> Vec<Left> {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(20)).min(end);
            self.worker.chores(self.now);
            self.assert_balance("after the chores");
        }
        self.take()
    }

    /// Sends a frame that must make exactly one leave.
    ///
    /// # Panics
    /// If none or several leave, or as [`send`](Node::send).
    pub fn send_one(&mut self, port: &str, frame: &[u8]) -> Left {
        let mut left = self.send(port, frame);
        assert_eq!(left.len(), 1, "frames that left: {left:#?}; {:?}", self.stats());
        left.pop().expect("one")
    }

    fn take(&mut self) -> Vec<Left> {
        let mut left = Vec::new();
        for (name, (_, handle)) in &self.ports {
            left.extend(handle.sent().into_iter().map(|packet| Left {
                port: name.clone(),
                bytes: packet.to_vec(),
                offload: packet.offload,
            }));
        }
        self.taken += left.len() as u64;
        let stats = self.stats();
        assert_eq!(stats.transmitted, self.taken, "every frame that was counted has been seen");
        assert_eq!(self.pool.capacity() - self.pool.available(), stats.held as usize, "a buffer is missing");
        left
    }

    fn assert_balance(&self, when: &str) {
        let stats = self.stats();
        let (came, went) = stats.balance();
        assert_eq!(came, went, "FW-05 {when}: {stats:?}");
    }

    /// All counters.
    pub fn stats(&self) -> Stats {
        self.worker.stats()
    }

    /// Drops for a reason.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.stats().dropped.get(reason)
    }

    /// IPv4 connections in the table.
    pub fn connections(&mut self) -> usize {
        self.worker.forwarder().flows_v4().len()
    }

    /// Marks of the IPv4 connections in the table (MQ-08).
    pub fn marks(&mut self) -> Vec<u32> {
        let (flows, _) = self.worker.forwarder().flows_v4().list(0, usize::MAX, self.now.into());
        flows.iter().map(|flow| flow.mark).collect()
    }

    /// The port that leads to the node's own stack.
    pub fn host_port(&self) -> Option<&str> {
        let mut ports = self.compiled.tables.ports.iter();
        ports.find(|(_, port)| port.role == Role::Host).map(|(_, port)| port.name.as_str())
    }

    /// Link address of a port.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn link_of(&self, port: &str) -> [u8; 6] {
        let ports = &self.compiled.tables.ports;
        let port = ports.by_name(port).and_then(|id| ports.get(id)).expect("a port of that name");
        port.link_address.0
    }
}

/// One worker on ports in memory, and a clock of the test's.
impl Stage for Node {
    fn carries_partial(&self, _: &str) -> bool {
        self.capabilities.partial_checksum
    }

    fn choose(&mut self, choice: Choice) -> Result<(), String> {
        match choice {
            Choice::None => {}
            Choice::Backend(service, backend) => Node::choose(self, service, backend),
            Choice::Place(place) => self.choose_place(place),
        }
        Ok(())
    }

    fn pass(&mut self, step: &Step) -> Result<Vec<Left>, String> {
        let left = match &step.frame.partial {
            Some(bytes) => self.send_offloaded(step.port, bytes, PARTIAL),
            None => self.send(step.port, &step.frame.complete),
        };
        if matches!(step.outcome, Outcome::Dropped(_)) && left.is_empty() {
            // Nor does anything come late.
            return Ok(self.wait(Duration::from_secs(2)));
        }
        Ok(left)
    }

    fn end(&mut self) -> Result<End, String> {
        let mut connections = self.marks();
        connections.sort_unstable();
        Ok(End { left: self.take(), stats: self.stats(), connections })
    }
}

/// Where new connections find `backend` in the sets of a Service port (`default/myapp`, or `default/web:http`
/// with a named port): what [`Forwarder::fix_choice`] takes.
///
/// # Errors
/// When it has no set of several backends with this one.
pub fn place_of(compiled: &Compiled, service: &str, backend: &str) -> Result<u32, String> {
    let backend: SocketAddr = backend.parse().map_err(|_| format!("{backend} is not ADDRESS:PORT"))?;
    let tables = compiled.tables.v4.as_ref().ok_or("IPv4 is not forwarded")?;
    let frontends = tables.services.frontends().map(|(_, frontend)| frontend);
    let own = frontends
        .filter(|frontend| compiled.ports_v4[frontend.service_port as usize].id.to_string() == service);
    let place = own.into_iter().find_map(|frontend| {
        let (Path::Internal(set) | Path::Cluster(set) | Path::Local { cluster: set, .. }) = frontend.path
        else {
            return None;
        };
        let backends = tables.services.backends(set);
        backends.iter().position(|one| SocketAddr::from((one.address, one.port)) == backend)
    });
    place.map(|place| place as u32).ok_or_else(|| format!("{service} has no backend {backend}"))
}

/// The tables of slave1 under the given files, and its view of itself.
fn compiled(files: &Files) -> (Compiled, NodeView) {
    let loaded = cluster::load(&[&files.objects].map(Clone::clone)).expect("good objects");
    assert_eq!(loaded.warnings, []);
    let (config, warnings) = config::load(&files.config).expect("good configuration");
    assert_eq!(warnings, []);
    let node = config.node.as_ref().expect("a Node document");
    let (view, warnings) =
        NodeView::configured(node, &Links::new(), &config.proxy.detect_local).expect("good routes");
    assert_eq!(warnings, []);
    let compiled = compile(&loaded.cluster, &config, "slave1", &view);
    assert_eq!(compiled.reports, []);
    (compiled, view)
}
