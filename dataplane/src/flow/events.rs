//! Who wants to hear what becomes of connections: made, changed, gone.
//!
//! Each listener has a bounded queue. The packet path never waits for one: what a full queue does not take is
//! lost to its listener, and counted. While nobody listens it costs one relaxed load.

// The standard library's also under the model, which has no listeners.
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::types::FlowInfo;
use crate::packet::family::Family;

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventKind {
    /// It was stored.
    New,
    /// Its state changed, a reply was seen, or it became assured.
    Update,
    /// It ended: its time was over, it was evicted, removed, reset or reopened.
    Destroy,
}

/// What happened, and the connection as it was then (at its end: as it was before).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowEvent<A: Family> {
    /// What happened.
    pub kind: EventKind,
    /// To which connection.
    pub flow: FlowInfo<A>,
}

/// The listeners of a table.
pub(super) struct Listeners<A: Family> {
    count: AtomicUsize,
    senders: Mutex<Vec<Sender<FlowEvent<A>>>>,
    lost: AtomicU64,
}

impl<A: Family> Default for Listeners<A> {
    fn default() -> Self {
        Listeners { count: AtomicUsize::new(0), senders: Mutex::default(), lost: AtomicU64::new(0) }
    }
}

impl<A: Family> Listeners<A> {
    /// Whether an event would be heard.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.count.load(Relaxed) != 0
    }

    /// Events that a full queue did not take.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(super) fn subscribe(&self, capacity: usize) -> Receiver<FlowEvent<A>> {
        let (sender, receiver) = bounded(capacity.max(1));
        let mut senders = self.senders();
        senders.push(sender);
        self.count.store(senders.len(), Relaxed);
        receiver
    }

    /// Tells everybody; forgets who has gone.
    #[cold]
    pub(super) fn tell(&self, event: &FlowEvent<A>) {
        let mut senders = self.senders();
        senders.retain(|sender| match sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
        self.count.store(senders.len(), Relaxed);
    }

    fn senders(&self) -> MutexGuard<'_, Vec<Sender<FlowEvent<A>>>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
