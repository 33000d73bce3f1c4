//! The ports of a running node: checked, then opened, guarded, and given back.
//!
//! Order is everything here. All that can be wrong is found before anything is changed; what was changed is
//! undone when a later step fails, and at the end in the reverse order. What a crash leaves behind is the
//! next start's to restore. At the start everything happens in the network namespace of the calling thread,
//! later in the same one, whoever asks.

mod af_xdp;
mod backend;
mod check;
mod counted;
#[cfg(feature = "dpdk")]
mod dpdk;
mod host;
mod live;
mod pair;
mod share;

use crate::config::NodeConfig;
use crate::kernel::state::KernelState;

pub(super) use self::backend::name as backend_name;
pub(super) use self::check::check;
pub(super) use self::counted::Counted;
pub(super) use self::host::HostRoutes;
pub(super) use self::live::{LivePorts, Status};
pub(super) use self::share::Attached;

/// How many ports there are: named ones, and those by pattern whose interface is there.
pub(super) fn count(config: &NodeConfig, kernel: &KernelState) -> usize {
    let by_pattern = kernel.links.iter().filter(|link| config.port_by_pattern(&link.name).is_some());
    config.ports.len() + by_pattern.count()
}
