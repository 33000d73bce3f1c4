//! What a worker does while no frames come: it spins, then polls less often, then sleeps.
//!
//! ```text
//! frame ─→ spin: poll, poll, poll ─→ pause between polls ─→ sleep on the descriptors of ports, bell and clock
//!            ↑                                                  │
//!            └────────────── a frame ←──────────────────────────┘
//! ```
//!
//! A port without a descriptor can only be polled: with one, the sleep is a doze that grows from a few microseconds.

use std::hint::spin_loop;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::time::Instant;

/// Length of a pause, in the processor's own spin hints: about a microsecond.
const HINTS: u32 = 32;

/// The first doze.
const SHORTEST_DOZE: Duration = Duration::from_micros(20);

/// How a worker idles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Idle {
    /// Polls without a frame, one right after the other.
    pub spins: u32,
    /// Polls after those, about a microsecond apart.
    pub pauses: u32,
    /// Longest sleep on the ports' descriptors. A frame ends it; chores are done this often (expiry, neighbours'
    /// timers).
    pub sleep: Duration,
    /// Longest sleep while a port has no descriptor: so long may the first frame after idling wait. Zero for a
    /// worker that never sleeps with such a port.
    pub doze: Duration,
}

impl Default for Idle {
    /// 128 spins, 16 pauses, 5 ms, 500 µs.
    fn default() -> Self {
        Idle { spins: 128, pauses: 16, sleep: Duration::from_millis(5), doze: Duration::from_micros(500) }
    }
}

/// What to do before the next poll.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rest {
    Spin,
    Pause,
    Sleep,
}

impl Idle {
    /// After so many polls without a frame.
    #[inline]
    pub(super) fn rest(&self, polls: u32) -> Rest {
        if polls < self.spins {
            Rest::Spin
        } else if polls - self.spins < self.pauses {
            Rest::Pause
        } else {
            Rest::Sleep
        }
    }

    /// How long to sleep after so many polls without a frame; `pollable`: all ports have descriptors.
    pub(super) fn length(&self, polls: u32, pollable: bool) -> Duration {
        if pollable {
            return self.sleep;
        }
        let slept = polls.saturating_sub(self.spins).saturating_sub(self.pauses);
        (SHORTEST_DOZE * (1 << slept.min(16))).min(self.doze)
    }
}

/// A pause between two polls, without a system call.
pub(super) fn pause() {
    for _ in 0..HINTS {
        spin_loop();
    }
}

/// Sleeps until one of the descriptors is readable, but no longer than `longest`.
pub(super) fn sleep_on<'a>(
    wake: &'a impl AsFd,
    ports: impl Iterator<Item = BorrowedFd<'a>>,
    longest: Duration,
) {
    let all = std::iter::once(wake.as_fd()).chain(ports);
    let mut descriptors: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // Interrupted or not: the loop looks again.
    let _ = ppoll(&mut descriptors, Some(TimeSpec::from(longest)), None);
}

/// A worker's signs of life, read by others.
#[derive(Default)]
pub(super) struct Pulse {
    /// When it last came round, nanoseconds of its time.
    seen: AtomicU64,
    polls: AtomicU64,
    sleeps: AtomicU64,
}

impl Pulse {
    /// Says that the worker comes round to its ports once more.
    #[inline]
    pub(super) fn beat(&self, now: Instant) {
        self.seen.store(now.0, Relaxed);
        // One writer: no locked addition.
        self.polls.store(self.polls.load(Relaxed) + 1, Relaxed);
    }

    pub(super) fn count_sleep(&self) {
        self.sleeps.store(self.sleeps.load(Relaxed) + 1, Relaxed);
    }

    pub(super) fn polls(&self) -> u64 {
        self.polls.load(Relaxed)
    }

    pub(super) fn seen(&self) -> Instant {
        Instant(self.seen.load(Relaxed))
    }

    pub(super) fn sleeps(&self) -> u64 {
        self.sleeps.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_spins_then_pauses_then_sleeps() {
        let idle = Idle::default();
        let rests = [0, 127, 128, 143, 144, u32::MAX].map(|polls| idle.rest(polls));
        let expected = [Rest::Spin, Rest::Spin, Rest::Pause, Rest::Pause, Rest::Sleep, Rest::Sleep];
        assert_eq!(rests, expected);
    }

    #[test]
    fn dozes_grow_to_their_limit_and_sleeps_on_descriptors_are_long_at_once() {
        let idle = Idle::default();
        let micros = |polls| idle.length(polls, false).as_micros();
        assert_eq!([144, 145, 146, 148, 149, u32::MAX].map(micros), [20, 40, 80, 320, 500, 500]);
        assert_eq!(idle.length(144, true), Duration::from_millis(5));
        let never = Idle { doze: Duration::ZERO, ..idle };
        assert_eq!(never.length(u32::MAX, false), Duration::ZERO);
    }
}
