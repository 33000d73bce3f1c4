//! The thread that watches the files: waits until they have come to rest, reads them again, and has them put
//! in force. What cannot be read or compiled is reported, and what is in force stays.
//!
//! It is the directories that are watched, not the files: editors and mounted ConfigMaps replace a file by
//! renaming another, and a watch would stay with the file that is gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{error, info, warn};

use super::input::Sources;
use super::shared::Shared;
use crate::cli::Failure;

/// How long the files must have been left alone.
const REST: Duration = Duration::from_millis(100);

/// How long a reading is put off at most, while they are not left alone.
const LONGEST: Duration = Duration::from_secs(1);

/// Events that may wait: what does not fit says nothing that those before it do not.
const EVENTS: usize = 64;

/// Watches until it is dropped.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(sources: Sources, shared: &Arc<Shared>) -> Result<Watch, Failure> {
        let (seen, events) = crossbeam_channel::bounded(EVENTS);
        let cannot = |what: &Path, error: notify::Error| {
            Failure::environment(format!("cannot watch {}: {error}", what.display()))
        };
        let directories: BTreeSet<PathBuf> =
            sources.config.iter().chain(&sources.objects).map(|path| directory_of(path)).collect();
        let mut watcher = notify::recommended_watcher(move |event| notice(&seen, event))
            .map_err(|error| cannot(Path::new("files"), error))?;
        for directory in &directories {
            watcher
                .watch(directory, RecursiveMode::NonRecursive)
                .map_err(|error| cannot(directory, error))?;
        }
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name("pollux-watch".to_owned())
            .spawn(move || run(&sources, &shared, &events))?;
        Ok(Watch { watcher: Some(watcher), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.watcher.take()); // and with it the sender of events, which ends the thread
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that watches the files had panicked");
        }
    }
}

/// The directory in which a change of `path` shows.
fn directory_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_path_buf();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn notice(seen: &Sender<()>, event: notify::Result<notify::Event>) {
    match event {
        Ok(event) if matches!(event.kind, EventKind::Access(_)) => {} // our own reading, above all
        Ok(_) => {
            let _ = seen.try_send(()); // full: enough is waiting to be seen
        }
        Err(error) => {
            warn!("watching the files: {error}; reading them again");
            let _ = seen.try_send(());
        }
    }
}

fn run(sources: &Sources, shared: &Shared, events: &Receiver<()>) {
    while events.recv().is_ok() {
        let last = Instant::now() + LONGEST;
        loop {
            let wait = REST.min(last.saturating_duration_since(Instant::now()));
            match events.recv_timeout(wait) {
                Ok(()) if Instant::now() < last => {}
                Ok(()) | Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        read_again(sources, shared);
    }
}

fn read_again(sources: &Sources, shared: &Shared) {
    let outcome = sources.read().and_then(|(inputs, warnings)| {
        // The same warnings at every change of another object are noise.
        if inputs != shared.state().inputs {
            info!("files changed");
            super::report(&warnings);
        }
        shared.apply(inputs)
    });
    if let Err(problems) = outcome {
        for problem in &problems.0 {
            error!("{problem}");
        }
        error!("the changed files are not put in force: the old tables stay");
    }
}
