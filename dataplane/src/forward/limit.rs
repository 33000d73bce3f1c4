//! The rate of ICMP errors: per destination, as the kernel's `icmp_ratelimit` (1 s) allows it: a bucket of
//! six that gains one token in that time (`inet_peer_xrlim_allow`). Destinations share a fixed number of
//! buckets by hash, so the memory is bounded whatever comes in; a collision only makes errors rarer.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::time::Instant;

const BUCKETS: usize = 1024;
const BURST: u64 = 6;

/// The time in which a bucket gains a token.
pub(super) const PACE: Duration = Duration::from_secs(1);

/// Token buckets for ICMP errors.
pub(super) struct Limiter {
    /// For each bucket the time at which it would have been empty and began to fill.
    empty_since: Box<[Instant]>,
    /// Unknown outside, so that nobody can choose whose errors share a bucket.
    seed: [u64; 2],
    rate: ErrorRate,
}

/// Whether ICMP errors are limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ErrorRate {
    /// A burst of six to each destination, then one a second.
    #[default]
    Limited,
    /// As many as there is cause for: the kernel's `icmp_ratemask` 0. For comparisons.
    Unlimited,
}

impl Limiter {
    pub(super) fn new(seed: [u64; 2]) -> Limiter {
        Limiter { empty_since: vec![Instant::ZERO; BUCKETS].into(), seed, rate: ErrorRate::default() }
    }

    pub(super) fn set_rate(&mut self, rate: ErrorRate) {
        self.rate = rate;
    }

    /// Takes a token of `destination`'s bucket, which gains one every `pace`, if it has one.
    pub(super) fn allow(&mut self, destination: impl Hash, pace: Duration, now: Instant) -> bool {
        if self.rate == ErrorRate::Unlimited {
            return true;
        }
        let per_token = pace.as_nanos() as u64;
        let mut hasher = DefaultHasher::new();
        (self.seed, destination).hash(&mut hasher);
        let bucket = hasher.finish() as usize % BUCKETS;
        let since = &mut self.empty_since[bucket];
        // A bucket is full BURST tokens after it was empty, however long ago that is. Time 0 counts as full.
        let now = now.0 + BURST * PACE.as_nanos() as u64;
        let level = now.saturating_sub(since.0).min(BURST * per_token);
        if level < per_token {
            return false;
        }
        *since = Instant(now - (level - per_token));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fw_01_errors_are_limited_to_a_burst_of_six_and_one_a_second() {
        let mut limiter = Limiter::new([1, 2]);
        let allowed = |limiter: &mut Limiter, now| (0..20).filter(|_| limiter.allow(1u32, PACE, now)).count();
        assert_eq!(allowed(&mut limiter, Instant::ZERO), 6);
        assert_eq!(allowed(&mut limiter, Instant::from_millis(999)), 0);
        assert_eq!(allowed(&mut limiter, Instant::from_millis(1_000)), 1);
        assert_eq!(allowed(&mut limiter, Instant::from_millis(4_500)), 3);
        assert_eq!(allowed(&mut limiter, Instant::from_secs(3_600)), 6);
    }

    #[test]
    fn fw_01_a_quicker_pace_keeps_the_burst() {
        let mut limiter = Limiter::new([1, 2]);
        let pace = Duration::from_millis(250);
        let allowed = |limiter: &mut Limiter, now| (0..20).filter(|_| limiter.allow(1u32, pace, now)).count();
        assert_eq!(allowed(&mut limiter, Instant::ZERO), 6);
        assert_eq!(allowed(&mut limiter, Instant::from_millis(1_000)), 4);
        assert_eq!(allowed(&mut limiter, Instant::from_secs(3_600)), 6);
    }
}
