//! The rate of ICMP errors: per destination, as the kernel's `icmp_ratelimit` allows it (1 s; `ratelimit` of
//! ICMPv6: 100 ms): a bucket of six that gains one token in that time (`inet_peer_xrlim_allow`). Destinations share a fixed number of
//! buckets by hash, so the memory is bounded whatever comes in; a collision only makes errors rarer. All workers take
//! from the same buckets: a destination's errors come from whichever meets its packets.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::packet::Family;
use crate::time::Instant;

const BUCKETS: usize = 1024;
const BURST: u64 = 6;

/// The time in which a bucket gains a token, at the longest.
const LONGEST_PACE: Duration = Duration::from_secs(1);

/// The time in which a bucket gains a token. For IPv6 as in the kernels since early 2026; older ones divided IPv4's
/// by up to 16, by the width of the way back.
pub(super) fn pace<A: Family>() -> Duration {
    if A::VERSION == 4 { LONGEST_PACE } else { Duration::from_millis(100) }
}

/// Token buckets for ICMP errors. A clone takes from the same ones.
#[derive(Clone)]
pub(super) struct Limiter {
    /// For each bucket the time at which it would have been empty and began to fill, in nanoseconds.
    empty_since: Arc<[AtomicU64]>,
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
        let empty_since = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Limiter { empty_since, seed, rate: ErrorRate::default() }
    }

    pub(super) fn set_rate(&mut self, rate: ErrorRate) {
        self.rate = rate;
    }

    /// Takes a token of `destination`'s bucket, which gains one every `pace`, if it has one.
    pub(super) fn allow(&self, destination: impl Hash, pace: Duration, now: Instant) -> bool {
        if self.rate == ErrorRate::Unlimited {
            return true;
        }
        let per_token = pace.as_nanos() as u64;
        let mut hasher = DefaultHasher::new();
        (self.seed, destination).hash(&mut hasher);
        let bucket = hasher.finish() as usize % BUCKETS;
        // A bucket is full BURST tokens after it was empty, however long ago that is. Time 0 counts as full.
        let now = now.0 + BURST * LONGEST_PACE.as_nanos() as u64;
        let take = |since| {
            let level = now.saturating_sub(since).min(BURST * per_token);
            (level >= per_token).then(|| now - (level - per_token))
        };
        self.empty_since[bucket].fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{V4, V6};

    #[test]
    fn fw_01_errors_are_limited_to_a_burst_of_six_and_one_a_second() {
        let limiter = Limiter::new([1, 2]);
        let allowed =
            |limiter: &Limiter, now| (0..20).filter(|_| limiter.allow(1u32, pace::<V4>(), now)).count();
        assert_eq!(allowed(&limiter, Instant::ZERO), 6);
        assert_eq!(allowed(&limiter, Instant::from_millis(999)), 0);
        assert_eq!(allowed(&limiter, Instant::from_millis(1_000)), 1);
        assert_eq!(allowed(&limiter, Instant::from_millis(4_500)), 3);
        assert_eq!(allowed(&limiter, Instant::from_secs(3_600)), 6);
    }

    #[test]
    fn fw_01_icmpv6_has_the_same_burst_and_ten_a_second() {
        let limiter = Limiter::new([1, 2]);
        let allowed =
            |limiter: &Limiter, now| (0..20).filter(|_| limiter.allow(1u32, pace::<V6>(), now)).count();
        assert_eq!(allowed(&limiter, Instant::ZERO), 6);
        assert_eq!(allowed(&limiter, Instant::from_millis(400)), 4);
        assert_eq!(allowed(&limiter, Instant::from_secs(3_600)), 6);
    }
}
