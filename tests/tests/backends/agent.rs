//! The stage that is a whole agent.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pollux_control::agent::{Agent, AgentOptions, HostOptions, Running, Sources};
use pollux_control::lab::far_end::FarEnd;
use pollux_dataplane::packet::{Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::memory::MemoryHandle;
use pollux_dataplane::stats::Stats;
use pollux_dataplane::worker::{Handle, Worker};
use pollux_tests::node::place_of;
use pollux_tests::seed::{Files, port};
use pollux_tests::walks::{Choice, End, Left, Outcome, PARTIAL, Stage, Step, Walk, play};

use crate::site::{Backend, Partial, Site};

/// Longest wait for what must come.
const SOON: Duration = Duration::from_secs(5);

/// Between two looks at what gives no sign.
const LOOK: Duration = Duration::from_micros(500);

/// An agent, and everybody else's ends of its wires.
pub(super) struct AgentStage {
    wires: BTreeMap<String, Wire>,
    backend: Backend,
    pool: &'static Pool,
    agent: Running,
    _files: Files,
}

/// Everybody else's end.
enum Wire {
    Memory(MemoryHandle),
    Socket(FarEnd),
}

impl AgentStage {
    pub(super) fn start(
        walk: &Walk,
        backend: &Backend,
        workers: usize,
        site: &Site,
    ) -> Result<AgentStage, String> {
        static POOL: OnceLock<&'static Pool> = OnceLock::new();
        let pool = *POOL.get_or_init(|| Agent::pool().expect("memory for packets"));
        let files = walk.cluster.clone().on_backend(workers, |name| backend.port(name)).files();
        let sources = Sources {
            config: files.config.to_vec(),
            objects: vec![files.objects.clone()],
            node: Some("slave1".to_owned()),
        };
        let (inputs, warnings) = sources.read().map_err(|failure| failure.to_string())?;
        if !warnings.is_empty() {
            return Err(format!("{warnings:?}"));
        }
        let host = HostOptions { state_directory: files.directory().join("state"), ..HostOptions::default() };
        let options = AgentOptions { inputs, follow: None, admin: None, host };
        let started = site.slave1().run(|| Agent::start_with(options, || Ok(pool)));
        let agent = started.map_err(|error| error.to_string())?.map_err(|failure| failure.to_string())?;
        let mut wires = BTreeMap::new();
        for port in [port::ENS3, port::POD_7, port::POD_8, port::HOST, port::DOCKER] {
            if agent.state().compiled.tables.ports.by_name(port).is_none() {
                continue; // most walks have no docker0
            }
            let wire = match agent.memory(port) {
                Some(handle) => Wire::Memory(handle.clone()),
                None => {
                    let (netns, interface) = site.far_end(port);
                    let opened = FarEnd::open(netns, &interface);
                    Wire::Socket(opened.map_err(|error| format!("the far end of {port}: {error}"))?)
                }
            };
            wires.insert(port.to_owned(), wire);
        }
        Ok(AgentStage { wires, backend: *backend, pool, agent, _files: files })
    }

    /// Plays a walk, stops the agent, and looks whether every buffer has come back.
    pub(super) fn play(mut self, walk: &Walk) -> Result<(), String> {
        let played = play(walk, &mut self);
        let AgentStage { wires, pool, agent, .. } = self;
        agent.stop();
        drop(wires);
        played?;
        match pool.capacity() - pool.available() {
            0 => Ok(()),
            missing => Err(format!("{missing} buffers are missing")),
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Handle> {
        self.agent.workers().iter()
    }

    /// Asks every worker.
    fn ask<R: Send + 'static>(&self, ask: fn(&mut Worker) -> R) -> Result<Vec<R>, String> {
        let stopped = |_| "a worker has stopped".to_owned();
        self.workers().map(|worker| worker.ask(ask).map_err(stopped)).collect()
    }

    fn stats(&self) -> Result<Stats, String> {
        let all = self.ask(|worker| worker.stats())?;
        Ok(all.iter().fold(Stats::default(), |sum, stats| sum.plus(stats)))
    }

    /// What has come out by now.
    fn take(&mut self) -> Result<Vec<Left>, String> {
        let mut left = Vec::new();
        for (name, wire) in &mut self.wires {
            let mut came = |bytes, offload| left.push(Left { port: name.clone(), bytes, offload });
            match wire {
                Wire::Memory(handle) => {
                    handle.sent().iter().for_each(|packet| came(packet.to_vec(), packet.offload));
                }
                Wire::Socket(end) => {
                    while let Some((bytes, offload)) =
                        end.receive().map_err(|error| format!("the far end of {name}: {error}"))?
                    {
                        came(bytes, offload);
                    }
                }
            }
        }
        Ok(left)
    }

    /// Waits a moment for something to come out.
    fn wait(&self, until: Instant) {
        let ends = self.wires.values().filter_map(|wire| match wire {
            Wire::Memory(_) => None,
            Wire::Socket(end) => Some(PollFd::new(end.as_fd(), PollFlags::POLLIN)),
        });
        let mut ends: Vec<_> = ends.collect();
        if ends.is_empty() {
            return std::thread::sleep(LOOK);
        }
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(20));
        // Interrupted or not: the caller looks again.
        let _ = poll(&mut ends, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
    }
}

impl Stage for AgentStage {
    fn carries_partial(&self, port: &str) -> bool {
        match self.backend.partial {
            Partial::Carried => true,
            Partial::ByTheHostPort => port == port::HOST,
            Partial::Completed => false,
        }
    }

    fn choose(&mut self, choice: Choice) -> Result<(), String> {
        let place = match choice {
            Choice::None => return Ok(()),
            Choice::Backend(service, backend) => place_of(&self.agent.state().compiled, service, backend)?,
            Choice::Place(place) => place,
        };
        for worker in self.workers() {
            let chosen = worker.ask(move |worker| worker.forwarder().fix_choice(Some(place)));
            chosen.map_err(|_| "a worker has stopped")?;
        }
        Ok(())
    }

    fn pass(&mut self, step: &Step) -> Result<Vec<Left>, String> {
        let reason = match step.outcome {
            Outcome::Dropped(reason) => Some(reason),
            Outcome::Leaves(..) | Outcome::Refused(..) => None,
        };
        let before = self.stats()?;
        let (bytes, offload) = match &step.frame.partial {
            Some(bytes) => (bytes, PARTIAL),
            None => (&step.frame.complete, Default::default()),
        };
        match self.wires.get(step.port).ok_or_else(|| format!("no port {}", step.port))? {
            Wire::Memory(handle) => {
                // The port gives it its own number.
                let copied = Packet::copy_of(self.pool, PortId(0), bytes);
                let mut packet = copied.map_err(|_| "no buffer for a packet".to_owned())?;
                packet.offload = offload;
                handle.inject(packet);
            }
            Wire::Socket(end) => {
                end.send(bytes, offload).map_err(|error| format!("into {}: {error}", step.port))?;
            }
        }
        let deadline = Instant::now() + SOON;
        let mut left = Vec::new();
        loop {
            left.extend(self.take()?);
            let done = match reason {
                Some(reason) => self.stats()?.dropped.get(reason) > before.dropped.get(reason),
                None => !left.is_empty(),
            };
            if done {
                return Ok(left);
            }
            if Instant::now() > deadline {
                let stats = self.stats()?;
                return Err(format!("nothing in {SOON:?}; before {before:?}, now {stats:?}"));
            }
            self.wait(deadline);
        }
    }

    fn end(&mut self) -> Result<End, String> {
        // The table is one for all workers.
        let marks = self.agent.worker().ask(|worker| {
            let now = worker.now().into();
            let (flows, _) = worker.forwarder().flows_v4().list(0, usize::MAX, now);
            flows.iter().map(|flow| flow.mark).collect::<Vec<u32>>()
        });
        let mut connections = marks.map_err(|_| "a worker has stopped")?;
        connections.sort_unstable();
        let stats = self.stats()?;
        Ok(End { left: self.take()?, stats, connections })
    }
}
