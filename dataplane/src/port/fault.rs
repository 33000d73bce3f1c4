//! A bad wire around any port: loss, duplication, reordering, corruption and delay, for tests and for finding
//! out how a node does on one.
//!
//! ```text
//! worker ←─ receive ←─ line ←─ faults ←─ cut ←─ inner port
//! worker ─→ transmit ─→ faults ─→ line ─→ inner port
//! ```
//!
//! The wire begins behind the worker's counters: a frame that the wire loses on its way in was never received,
//! one that it loses on its way out was transmitted, so the balance of FW-05 holds and the wire has counters of its
//! own ([`Counters`]), for which `entered + duplicated = left + lost + waiting` holds in each direction.
//!
//! Each frame meets its own fate, so super-frames are cut first and checksums completed: what is on the wire is
//! what a wire would carry. Time is a function that the maker gives, chance comes from a seed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::packet::{BURST, Burst, ChecksumState, Packet};
use crate::port::{Capabilities, LinkState, Port, finish};
use crate::time::Instant;

/// Frames that a direction's line holds. A burst of super-frames may add its segments once more.
pub const LINE: usize = 1024;

/// Frames that may overtake a reordered one, at most.
const OVERTAKING: u32 = 4;

/// A reordered frame that nothing follows goes on after this time.
const PATIENCE: Duration = Duration::from_millis(2);

/// Bytes of a frame that are never corrupted: the Ethernet header.
const LINK_HEADER: usize = 14;

/// A probability in parts of 2^32, so that it compares exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Probability(u64);

impl Probability {
    /// The probability of what never happens.
    pub const NEVER: Probability = Probability(0);

    /// From a number between 0 and 1; nothing for another.
    pub fn new(number: f64) -> Option<Probability> {
        let scale = (1u64 << 32) as f64;
        (0.0..=1.0).contains(&number).then(|| Probability((number * scale).round() as u64))
    }

    fn happens(self, random: &mut impl Rng) -> bool {
        // No number is drawn for what never happens: another fault's sequence stays.
        self.0 != 0 && u64::from(random.random::<u32>()) < self.0
    }
}

/// What the wire does to a frame, in each direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// It is lost.
    pub loss: Probability,
    /// It arrives twice.
    pub duplicate: Probability,
    /// Up to four later frames overtake it.
    pub reorder: Probability,
    /// One bit of it is flipped: of IP packets, beyond the Ethernet header. (ARP could not tell.)
    pub corrupt: Probability,
    /// How long each frame takes.
    pub delay: Duration,
    /// What chance begins with.
    pub seed: u64,
}

/// One direction's counters, frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "self-explanatory")]
pub struct Counters {
    pub entered: u64,
    pub left: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// On the wire now.
    pub waiting: u64,
}

/// Reads a bad wire's counters, from any thread.
#[derive(Clone, Debug)]
pub struct FaultHandle(Arc<[Shared; 2]>);

impl FaultHandle {
    /// Of the way in, to the worker. Exact between the worker's bursts.
    pub fn incoming(&self) -> Counters {
        self.0[0].read()
    }

    /// Of the way out.
    pub fn outgoing(&self) -> Counters {
        self.0[1].read()
    }
}

/// Written by the port only.
#[derive(Debug, Default)]
struct Shared {
    entered: AtomicU64,
    left: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
    corrupted: AtomicU64,
    waiting: AtomicU64,
}

impl Shared {
    fn read(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            entered: of(&self.entered),
            left: of(&self.left),
            lost: of(&self.lost),
            duplicated: of(&self.duplicated),
            reordered: of(&self.reordered),
            corrupted: of(&self.corrupted),
            waiting: of(&self.waiting),
        }
    }
}

/// What tells the time.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

/// A port behind a bad wire.
pub struct FaultPort {
    port: Box<dyn Port>,
    clock: Clock,
    incoming: Line,
    outgoing: Line,
}

/// One direction of the wire.
struct Line {
    faults: Faults,
    random: SmallRng,
    frames: VecDeque<Waiting>,
    shared: Arc<[Shared; 2]>,
    direction: usize,
}

struct Waiting {
    packet: Packet,
    /// When it arrives, unless overtaken.
    due: Instant,
    /// How many frames may still overtake it, and until when it waits for them.
    behind: Option<(u32, Instant)>,
}

impl FaultPort {
    /// Puts a wire with these faults before `port`. `clock` tells the time.
    pub fn new(port: Box<dyn Port>, faults: Faults, clock: Clock) -> (FaultPort, FaultHandle) {
        let shared = Arc::new([Shared::default(), Shared::default()]);
        let line = |direction: usize| Line {
            faults,
            // The two directions are not to have the same luck.
            random: SmallRng::seed_from_u64(faults.seed.wrapping_mul(2).wrapping_add(direction as u64)),
            frames: VecDeque::with_capacity(LINE),
            shared: Arc::clone(&shared),
            direction,
        };
        let (incoming, outgoing) = (line(0), line(1));
        (FaultPort { port, clock, incoming, outgoing }, FaultHandle(shared))
    }

    /// Sends what has arrived at the far end. What the inner port has no room for stays on the line. What it
    /// refuses while it takes frames behind it (longer than its MTU, say) it would refuse for ever: that is lost.
    fn drive(&mut self, now: Instant) -> io::Result<()> {
        loop {
            let mut burst = Burst::new();
            self.outgoing.take(&mut burst, now);
            if burst.is_empty() {
                return Ok(());
            }
            let places: ArrayVec<*const u8, BURST> = burst.iter().map(place).collect();
            let result = self.port.transmit(&mut burst);
            let left = burst.iter().map(place).rev();
            let waiting = left.zip(places.iter().rev()).take_while(|(left, place)| left == *place).count();
            let unfit = burst.len() - waiting;
            self.outgoing.lose(burst.drain(..unfit));
            self.outgoing.put_back(burst, now);
            result?;
            if waiting > 0 {
                return Ok(());
            }
        }
    }
}

impl Port for FaultPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        let now = (self.clock)();
        // Whether the far end takes its frames is told when it is given more.
        let _ = self.drive(now);
        let mut result = Ok(());
        if self.incoming.frames.len() < LINE {
            let mut arrived = Burst::new();
            result = self.port.receive(&mut arrived);
            for packet in arrived {
                let line = &mut self.incoming;
                // What cannot be cut is not as its sender says; the forwarder is to see it as it came.
                if let Err((packet, _)) = finish::segment(packet, &mut |piece| line.enter(piece, now)) {
                    self.incoming.enter(packet, now);
                }
            }
        }
        self.incoming.take(burst, now);
        result
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        let now = (self.clock)();
        // A far end that has failed is told of before it is given more.
        self.drive(now)?;
        let room = LINE.saturating_sub(self.outgoing.frames.len()).min(burst.len());
        for packet in burst.drain(..room) {
            self.outgoing.enter(packet, now);
        }
        let _ = self.drive(now); // these were taken; an error is told at the next call
        Ok(())
    }

    /// None: the wire carries complete frames.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// None while frames are on the wire: they arrive without being announced.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        let still = self.incoming.frames.is_empty() && self.outgoing.frames.is_empty();
        if still { self.port.readiness() } else { None }
    }

    fn missed(&mut self) -> u64 {
        self.port.missed()
    }

    fn link(&mut self) -> Option<LinkState> {
        self.port.link()
    }

    fn device_counters(&mut self) -> Vec<(String, u64)> {
        self.port.device_counters()
    }
}

impl Line {
    /// A frame's fate.
    fn enter(&mut self, mut packet: Packet, now: Instant) {
        self.count(|shared| &shared.entered);
        let Faults { loss, duplicate, reorder, corrupt, delay, .. } = self.faults;
        if loss.happens(&mut self.random) {
            self.count(|shared| &shared.lost);
            return;
        }
        let twin = if duplicate.happens(&mut self.random) { copy(&packet) } else { None };
        if corrupt.happens(&mut self.random) && flip(&mut packet, &mut self.random) {
            self.count(|shared| &shared.corrupted);
        }
        let due = now + delay;
        let behind = reorder.happens(&mut self.random).then(|| {
            self.count(|shared| &shared.reordered);
            (self.random.random_range(1..=OVERTAKING), due + PATIENCE)
        });
        self.frames.push_back(Waiting { packet, due, behind });
        if let Some(packet) = twin {
            self.count(|shared| &shared.duplicated);
            self.frames.push_back(Waiting { packet, due, behind: None });
        }
        self.note_waiting();
    }

    /// Moves what has arrived into `burst`, as much as fits.
    fn take(&mut self, burst: &mut Burst, now: Instant) {
        let mut at = 0;
        while !burst.is_full() {
            let Some(frame) = self.frames.get(at).filter(|frame| frame.due <= now) else { break };
            if frame.behind.is_some_and(|(frames, until)| frames > 0 && now < until) {
                at += 1;
                continue;
            }
            let Some(frame) = self.frames.remove(at) else { break };
            for overtaken in self.frames.iter_mut().take(at) {
                if let Some((frames, _)) = &mut overtaken.behind {
                    *frames = frames.saturating_sub(1);
                }
            }
            // Whoever has been overtaken often enough is next.
            at = 0;
            burst.push(frame.packet);
            self.count(|shared| &shared.left);
        }
        self.note_waiting();
    }

    /// Takes frames back that the far end refused.
    fn put_back(&mut self, burst: Burst, now: Instant) {
        let refused = burst.len() as u64;
        for packet in burst.into_iter().rev() {
            self.frames.push_front(Waiting { packet, due: now, behind: None });
        }
        self.shared[self.direction].left.fetch_sub(refused, Ordering::Relaxed);
        self.note_waiting();
    }

    /// Frames that had left, but were of no use to the far end.
    fn lose(&mut self, frames: impl Iterator<Item = Packet>) {
        let lost = frames.count() as u64;
        let counters = &self.shared[self.direction];
        counters.left.fetch_sub(lost, Ordering::Relaxed);
        counters.lost.fetch_add(lost, Ordering::Relaxed);
    }

    fn count(&self, counter: fn(&Shared) -> &AtomicU64) {
        counter(&self.shared[self.direction]).fetch_add(1, Ordering::Relaxed);
    }

    fn note_waiting(&self) {
        self.shared[self.direction].waiting.store(self.frames.len() as u64, Ordering::Relaxed);
    }
}

/// Where a frame begins: no other frame begins there.
fn place(packet: &Packet) -> *const u8 {
    packet.head().as_ptr()
}

/// A second frame with the same bytes; nothing when the pool is empty.
fn copy(packet: &Packet) -> Option<Packet> {
    let mut twin = Packet::new(packet.pool(), packet.port).ok()?;
    packet.segments().try_for_each(|segment| twin.extend(segment)).ok()?;
    twin.offload = packet.offload;
    Some(twin)
}

/// Flips a bit of an IP packet. Not of a frame that is still to be completed: its checksum would be made to fit.
fn flip(packet: &mut Packet, random: &mut impl Rng) -> bool {
    let is_ip = matches!(packet.head().get(12..LINK_HEADER), Some([0x08, 0x00] | [0x86, 0xdd]));
    if !is_ip || packet.len() <= LINK_HEADER || !packet.offload.needs_nothing() {
        return false;
    }
    let mut at = random.random_range(LINK_HEADER..packet.len());
    let bit = 1u8 << random.random_range(0..8);
    // Whoever checked it did so before.
    packet.offload.checksum = ChecksumState::Unknown;
    for segment in packet.segments_mut() {
        match segment.get_mut(at) {
            Some(byte) => {
                *byte ^= bit;
                return true;
            }
            None => at -= segment.len(),
        }
    }
    false
}

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
