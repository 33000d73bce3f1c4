//! The ports of a running node: checked, then opened, guarded, and given back.
//!
//! Order is everything here. All that can be wrong is found before anything is changed; what was changed is
//! undone when a later step fails, and at the end in the reverse order. What a crash leaves behind is the
//! next start's to restore. Everything happens in the network namespace of the calling thread.

mod backend;
mod check;
mod host;
mod pair;

use std::collections::HashMap;

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::fault::{FaultHandle, FaultPort};
use pollux_dataplane::port::guard::{Families, Guard};
use pollux_dataplane::port::memory::MemoryHandle;
use pollux_dataplane::time::Instant;
use tracing::{info, warn};

pub(super) use self::backend::name as backend_name;
use self::backend::{OpenedPort, Opening};
pub(super) use self::check::check;
pub(super) use self::host::HostRoutes;
use crate::cli::Failure;
use crate::config::NodeConfig;

/// The opened ports, each under its number, and what was done for them.
pub(super) struct Opened {
    /// The backends, for the worker.
    pub(super) ports: Vec<(PortId, Box<dyn Port>)>,
    /// The other sides of memory ports, by name.
    pub(super) memory: HashMap<String, MemoryHandle>,
    /// Counters of the bad wires before ports, by name.
    pub(super) faults: HashMap<String, FaultHandle>,
    /// Interfaces that the kernel shares.
    pub(super) shared: Vec<String>,
}

/// Opens the ports, in the order of the configuration, which numbers them. TAP interfaces are made by it
/// (veth pairs where the machine gives no TAP); they are still down. Nothing else on the machine is changed.
///
/// # Errors
/// Exit code 4. What was opened is closed again.
pub(super) fn open(node: &NodeConfig, pool: &'static Pool) -> Result<Opened, Failure> {
    let mut opened =
        Opened { ports: Vec::new(), memory: HashMap::new(), faults: HashMap::new(), shared: Vec::new() };
    let epoch = std::time::Instant::now();
    for (number, config) in node.ports.iter().enumerate() {
        let id = PortId(number as u16);
        let OpenedPort { queues, memory } = backend::open(config, &Opening { id, node, pool, workers: 1 })?;
        if backend::is_shared(config.backend) {
            opened.shared.push(config.interface.clone());
        }
        opened.memory.extend(memory.map(|handle| (config.name.clone(), handle)));
        if !queues.is_empty() {
            info!(
                port = config.name,
                interface = config.interface,
                backend = backend_name(config.backend),
                "port opened"
            );
        }
        for port in queues {
            let Some(faults) = config.faults else {
                opened.ports.push((id, port));
                continue;
            };
            warn!("port {}: its frames meet faults, as the configuration asks", config.name);
            let clock = move || Instant(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX));
            let (port, handle) = FaultPort::new(port, faults, Box::new(clock));
            opened.faults.insert(config.name.clone(), handle);
            opened.ports.push((id, Box::new(port)));
        }
    }
    Ok(opened)
}

/// Keeps the kernel from acting on what comes in at the `shared` interfaces (PT-05), until the guard is
/// dropped. Nothing when there are none.
///
/// # Errors
/// Exit code 4 when the kernel allows no means.
pub(super) fn guard(shared: &[String], families: Families) -> Result<Option<Guard>, Failure> {
    let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
    if shared.is_empty() {
        return Ok(None);
    }
    let guard = Guard::attach(&shared, families).map_err(Failure::environment)?;
    info!(interfaces = shared.join(", "), means = %guard.means(), "kernel kept from forwarding");
    Ok(Some(guard))
}
