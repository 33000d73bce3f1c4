//! The thread that follows the kernel: takes what the mirror says has changed, waits a little for more of
//! it, and has it put in force.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::error;

use super::shared::{Kernel, Shared};
use crate::cli::Failure;
use crate::kernel::state::Changes;

/// How long changes are collected: a link that goes down takes its routes along one by one.
const COALESCE: Duration = Duration::from_millis(1);

/// How often ports that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows until it is dropped.
pub(super) struct Follower {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Begins to follow; nothing when the configuration does not want the kernel followed.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Option<Follower>, Failure> {
        if matches!(shared.kernel, Kernel::Read(_)) {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name("pollux-follow".to_owned())
            .spawn(move || runtime.block_on(follow(&shared, stopped)))?;
        Ok(Some(Follower { stop: Some(stop), thread: Some(thread) }))
    }
}

async fn follow(shared: &Shared, mut stopped: oneshot::Receiver<()>) {
    let Kernel::Mirrored(mirror) = &shared.kernel else { return };
    // What has come and gone while the agent started.
    shared.kernel_changed(&Changes { links: true, ..Changes::default() });
    loop {
        let first = tokio::select! {
            changes = mirror.changed() => changes,
            () = tokio::time::sleep(RETRY), if shared.has_failed_ports() => {
                Changes { links: true, ..Changes::default() }
            }
            _ = &mut stopped => return,
        };
        tokio::time::sleep(COALESCE).await;
        let mut changes = mirror.take_changes();
        changes.links |= first.links;
        changes.v4.addresses |= first.v4.addresses;
        changes.v4.routes.extend(first.v4.routes);
        changes.v4.neighbours.extend(first.v4.neighbours);
        changes.v6.addresses |= first.v6.addresses;
        changes.v6.routes.extend(first.v6.routes);
        changes.v6.neighbours.extend(first.v6.neighbours);
        shared.kernel_changed(&changes);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that follows the kernel had panicked");
        }
    }
}
