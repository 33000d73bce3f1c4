//! Captures of the configuration: a port's `capture` goes into a file, its `trace` into the log, for as long as the
//! agent runs.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pollux_dataplane::capture::{Options, RECORDS};
use pollux_dataplane::packet::PortId;
use tracing::{error, info, warn};

use super::super::shared::Shared;
use super::pcapng::PcapngWriter;
use super::source::Source;
use super::{FrameItem, Teller, whole};
use crate::cli::Failure;
use crate::config::node::{PortConfig, PortWatch};

/// How long it is waited for frames before it is looked again.
const NAP: Duration = Duration::from_millis(10);

/// The captures of the configuration. Dropping it ends them, and their files.
#[derive(Default)]
pub(in crate::agent) struct Standing {
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Where frames go.
enum Sink {
    File(PcapngWriter<BufWriter<File>>),
    Log,
}

impl Standing {
    /// Starts what the ports' configuration asks for.
    ///
    /// # Errors
    /// Exit code 4 when a file cannot be made.
    pub(in crate::agent) fn start<'a>(
        shared: &Arc<Shared>,
        ports: impl IntoIterator<Item = (PortId, &'a PortConfig)>,
    ) -> Result<Standing, Failure> {
        let mut standing = Standing::default();
        for (id, port) in ports {
            if let Some(capture) = &port.capture {
                let sink = Sink::create(&capture.file, &port.name, capture.watch.snap_len)?;
                warn!(
                    "port {}: its frames go to {}, as the configuration asks",
                    port.name,
                    capture.file.display()
                );
                standing.add(shared, id, &port.name, &capture.watch, sink)?;
            }
            if let Some(watch) = &port.trace {
                warn!("port {}: its frames are logged, as the configuration asks", port.name);
                standing.add(shared, id, &port.name, watch, Sink::Log)?;
            }
        }
        Ok(standing)
    }

    fn add(
        &mut self,
        shared: &Arc<Shared>,
        id: PortId,
        port: &str,
        watch: &PortWatch,
        mut sink: Sink,
    ) -> Result<(), Failure> {
        let PortWatch { filter, snap_len, view } = watch.clone();
        let options = Options { filter, snap_len: snap_len as usize, records: RECORDS };
        let mut source = Source::attach(shared, Some(id), view, options)
            .map_err(|_| Failure::environment("the worker has stopped"))?;
        let (shared, stopping, port) = (Arc::clone(shared), Arc::clone(&self.stopping), port.to_owned());
        let thread = std::thread::Builder::new().name("pollux-capture".to_owned()).spawn(move || {
            let mut teller = Teller::new(&shared, view);
            let mut last_look = false;
            let mut result = Ok(());
            while result.is_ok() {
                match source.capture.take() {
                    Some(record) => {
                        result = sink.write(&teller.item(&record));
                        source.capture.give_back(record);
                    }
                    None if last_look => break,
                    None if stopping.load(Ordering::Acquire) => {
                        source.detach();
                        last_look = true; // at what came meanwhile
                    }
                    None => {
                        result = sink.flush();
                        std::thread::sleep(NAP);
                    }
                }
            }
            source.detach();
            let lost = source.capture.counters().lost;
            if let Err(error) = result.and_then(|()| sink.finish(lost)) {
                error!("port {port}: its capture ends: {error}");
            }
            if lost > 0 {
                warn!("port {port}: {lost} frames are missing in its capture: they came too fast");
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("the thread of a capture had panicked");
            }
        }
    }
}

impl Sink {
    fn create(file: &Path, port: &str, snap_len: u32) -> Result<Sink, Failure> {
        let failed = |error: io::Error| {
            Failure::environment(format!("port {port}: capture.file {}: {error}", file.display()))
        };
        let output = BufWriter::new(File::create(file).map_err(failed)?);
        let writer = PcapngWriter::new(output, snap_len.min(whole()), &[port.to_owned()]).map_err(failed)?;
        Ok(Sink::File(writer))
    }

    fn write(&mut self, frame: &FrameItem) -> io::Result<()> {
        match self {
            Sink::File(writer) => writer.write(frame),
            Sink::Log => {
                info!(target: "pollux::trace", time = %frame.time, "{}", frame.line());
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::File(writer) => writer.flush(),
            Sink::Log => Ok(()),
        }
    }

    fn finish(self, lost: u64) -> io::Result<()> {
        match self {
            Sink::File(writer) => writer.finish(lost).map(drop),
            Sink::Log => Ok(()),
        }
    }
}
