//! What workers of a team give each other: frames for a port that another one polls, and news of neighbours.
//!
//! ```text
//!              frames: one ring for each pair, one writer and one reader
//!   worker 0 ══════════════════════════════════════════════════════════→ worker 1 ─→ its port
//!      └──────→ mailbox of worker 1: news, from everybody ───────────────────┘
//!               bell: wakes it, if it sleeps
//! ```
//!
//! All is bounded. A frame that finds its ring full is dropped and counted by its sender; frames of one flow stay in
//! order, as they take one ring. News that find the mailbox full are lost: they are hints, and whoever waits for
//! a neighbour asks again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence};

use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::packet::{Burst, Packet, PortId};
use crate::route::News;

/// Frames that may wait in one ring: what a worker sends in the time that another is kept from its core.
pub(super) const RING: usize = 1024;

/// News that may wait for a worker.
const MAILBOX: usize = 1024;

/// A frame to be sent.
type Parcel = (PortId, Packet);

/// Wakes a worker that sleeps. Ringing at one that does not costs a fence and a load.
pub(super) struct Bell {
    wake: EventFd,
    asleep: AtomicBool,
}

impl Bell {
    pub(super) fn new() -> io::Result<Bell> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Bell { wake, asleep: AtomicBool::new(false) })
    }

    /// To be called after work was made visible to the worker.
    pub(super) fn ring(&self) {
        // Either the worker, which says that it sleeps before it looks for work a last time, sees the work, or this
        // sees that it sleeps.
        fence(SeqCst);
        if self.asleep.load(Relaxed) && self.asleep.swap(false, Relaxed) {
            // A full counter means that the worker has been woken already.
            let _ = self.wake.write(1);
        }
    }

    /// Sleeps in `sleep`, which is given the descriptor to wake at, unless there is work.
    pub(super) fn sleep(&self, has_work: impl FnOnce() -> bool, sleep: impl FnOnce(&EventFd)) {
        self.asleep.store(true, Relaxed);
        fence(SeqCst);
        if !has_work() {
            sleep(&self.wake);
        }
        if !self.asleep.swap(false, Relaxed) {
            let _ = self.wake.read(); // somebody has rung
        }
    }
}

/// What a worker shares with those that write to it.
struct Mailbox {
    news: ArrayQueue<News>,
    bell: Arc<Bell>,
}

/// One worker's ends of what leads to and from the others.
pub(super) struct Peers {
    own: usize,
    mailboxes: Arc<[Mailbox]>,
    /// At each worker's number; nothing at the own one.
    to: Vec<Option<Producer<Parcel>>>,
    from: Vec<Consumer<Parcel>>,
}

impl Peers {
    /// The ends of each of a team's workers, which are woken by these bells.
    pub(super) fn team(bells: &[Arc<Bell>]) -> Vec<Peers> {
        let mailbox = |bell: &Arc<Bell>| Mailbox {
            news: ArrayQueue::new(if bells.len() > 1 { MAILBOX } else { 1 }),
            bell: Arc::clone(bell),
        };
        let mailboxes: Arc<[Mailbox]> = bells.iter().map(mailbox).collect();
        let nobody = |own| Peers { own, mailboxes: mailboxes.clone(), to: Vec::new(), from: Vec::new() };
        let mut team: Vec<Peers> = (0..bells.len()).map(nobody).collect();
        for sender in 0..team.len() {
            for receiver in 0..team.len() {
                if sender == receiver {
                    team[sender].to.push(None);
                    continue;
                }
                let (producer, consumer) = RingBuffer::new(RING);
                team[sender].to.push(Some(producer));
                team[receiver].from.push(consumer);
            }
        }
        team
    }

    /// The worker's number.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    /// Workers of the team, this one included.
    pub(super) fn workers(&self) -> usize {
        self.to.len()
    }

    /// Tells all the others.
    pub(super) fn tell(&self, news: News) {
        for (number, mailbox) in self.mailboxes.iter().enumerate() {
            if number != self.own && mailbox.news.push(news).is_ok() {
                mailbox.bell.ring();
            }
        }
    }

    /// The next of the others' news.
    #[inline]
    pub(super) fn news(&self) -> Option<News> {
        self.mailboxes[self.own].news.pop()
    }

    /// Gives `owner` frames for its `port`, from the front of `queue`, as many as there is room for. Says whether
    /// the owner is still there.
    pub(super) fn hand(&mut self, owner: usize, port: PortId, queue: &mut Burst) -> bool {
        let Some(Some(ring)) = self.to.get_mut(owner) else { return false };
        if ring.is_abandoned() {
            return false;
        }
        let room = ring.slots().min(queue.len());
        if let Ok(chunk) = ring.write_chunk_uninit(room) {
            chunk.fill_from_iter(queue.drain(..room).map(|packet| (port, packet)));
        }
        if room > 0 {
            self.mailboxes[owner].bell.ring();
        }
        true
    }

    /// Takes up to `most` frames that each of the others has handed over.
    pub(super) fn take(&mut self, most: usize, mut each: impl FnMut(PortId, Packet)) {
        for ring in &mut self.from {
            let waiting = ring.slots().min(most);
            if let Ok(chunk) = ring.read_chunk(waiting) {
                chunk.into_iter().for_each(|(port, packet)| each(port, packet));
            }
        }
    }

    /// Whether anything from the others waits.
    pub(super) fn have_work(&self) -> bool {
        !self.mailboxes[self.own].news.is_empty() || self.from.iter().any(|ring| !ring.is_empty())
    }
}
