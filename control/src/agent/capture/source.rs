//! A capture put before the ports of a running worker, until it is dropped.

use std::sync::Arc;

use pollux_dataplane::capture::{Capture, Options, RecorderPort, Watcher, wall_clock};
use pollux_dataplane::forward::ObserverId;
use pollux_dataplane::packet::PortId;
use pollux_dataplane::worker::{Handle, Stopped};

use super::super::shared::Shared;
use super::View;

/// A capture that is being filled. Dropping it leaves the worker as it was.
pub(super) struct Source {
    pub(super) capture: Arc<Capture>,
    attached: Vec<(Handle, Attached)>,
}

enum Attached {
    Observer(ObserverId),
    Recorders(Vec<PortId>),
}

impl Source {
    /// Captures frames of one port, or of all.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub(super) fn attach(
        shared: &Shared,
        port: Option<PortId>,
        view: View,
        options: Options,
    ) -> Result<Source, Stopped> {
        let capture = Capture::new(options);
        let mut source = Source { capture: Arc::clone(&capture), attached: Vec::new() };
        let ports: Vec<PortId> = match port {
            Some(port) => vec![port],
            None => shared.state().compiled.tables.ports.iter().map(|(id, _)| id).collect(),
        };
        for worker in shared.team.handles() {
            let (capture, ports) = (Arc::clone(&capture), ports.clone());
            let attached = worker.ask(move |worker| match view {
                View::Forwarder => {
                    let watcher = Watcher::new(capture, port, wall_clock());
                    Attached::Observer(worker.observe(Box::new(watcher)))
                }
                View::Wire => {
                    for &id in &ports {
                        worker.change_port(id, |port| {
                            Box::new(RecorderPort::new(port, id, Arc::clone(&capture), wall_clock()))
                        });
                    }
                    Attached::Recorders(ports)
                }
            })?;
            source.attached.push((worker.clone(), attached));
        }
        Ok(source)
    }

    /// Nothing is added from here on; what waits can still be taken.
    pub(super) fn detach(&mut self) {
        for (worker, attached) in self.attached.drain(..) {
            let capture = Arc::clone(&self.capture);
            // What a stopped worker had is gone with it.
            let _ = worker.ask(move |worker| match attached {
                // Freed on the asking thread.
                Attached::Observer(id) => worker.hush(id),
                Attached::Recorders(ports) => {
                    for id in ports {
                        worker.change_port(id, |port| RecorderPort::remove(port, &capture));
                    }
                    None
                }
            });
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.detach();
    }
}
