//! Ports by AF_XDP: opened with nothing taken from the kernel, until it is known what Pollux forwards.

use std::io;

use pollux_dataplane::port::Port;
use pollux_dataplane::port::af_xdp::{AfXdpPort, Options, Steer, Steering};
use pollux_dataplane::port::guard::Families;
use tracing::info;

use super::backend::{OpenedPort, Opening};
use crate::config::node::{PortConfig, XdpConfig, XdpSteer};

/// Opens the port; its queues are dealt out to the workers.
pub(super) fn open(config: &PortConfig, opening: &Opening<'_>) -> io::Result<OpenedPort> {
    let XdpConfig { mode, zero_copy, queues, ring, ref leave, .. } = config.xdp;
    let options = Options {
        mode,
        zero_copy,
        queues,
        ports: u16::try_from(opening.workers).unwrap_or(u16::MAX),
        ring,
        steer: Steer::Nothing,
        leave: leave.clone(),
    };
    let ports = AfXdpPort::open(&config.interface, opening.id, opening.pool, &options)?;
    let first = ports.first();
    info!(
        port = config.name,
        mode = format!("{mode:?}").to_lowercase(),
        zero_copy = first.is_some_and(AfXdpPort::is_zero_copy),
        frames_in_several_buffers = first.is_some_and(AfXdpPort::carries_chains),
        queues = ports.iter().map(|port| port.queues().count()).sum::<usize>(),
        "steering program attached"
    );
    let steering = first.map(AfXdpPort::steering);
    let queues = ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
    Ok(OpenedPort { queues, memory: None, steering })
}

/// From now on what Pollux forwards is taken from the kernel; nothing when it is not known what that is.
pub(super) fn steer(config: &PortConfig, steering: &Steering, families: Option<Families>) -> io::Result<()> {
    steering.set(match (families, config.xdp.steer) {
        (None, _) => Steer::Nothing,
        (Some(families), XdpSteer::Unicast) => Steer::Unicast(families),
        (Some(_), XdpSteer::All) => Steer::Everything,
    })
}
