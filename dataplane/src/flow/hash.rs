//! The hash of a flow's key: keyed, and not linear in its input.
//!
//! A linear hash (CRC32C, Toeplitz) lets an outsider make keys that collide under every seed and flood one
//! bucket. Here keys go through rounds of AES where the processor has them, about ten cycles, else through
//! SipHash-1-3. Which one is decided once, when the table is made. The seed comes from the caller.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m128i;

/// The hash of a key under a table's seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash(pub(super) u64);

impl Hash {
    /// Bits of it to choose one of several by.
    pub fn bits(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The whole of it, for another table under the same seed.
    pub(crate) fn wide(self) -> u64 {
        self.0
    }
}

/// A key for the state to begin with, and two round keys.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Debug)]
pub(super) struct AesKeys([__m128i; 3]);

/// A keyed hash function over words.
#[derive(Clone, Debug)]
pub(super) enum Hasher {
    /// AES rounds: three round keys of 128 bits.
    #[cfg(target_arch = "x86_64")]
    Aes(AesKeys),
    /// SipHash-1-3 under a 128-bit key.
    Sip([u64; 2]),
}

impl Hasher {
    /// The fastest function that this processor has, keyed by `seed`.
    pub(super) fn new(seed: [u64; 2]) -> Hasher {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("aes") {
            // SAFETY: a processor with AES has SSE2.
            return Hasher::Aes(unsafe { aes_keys(seed) });
        }
        Hasher::portable(seed)
    }

    /// The function for processors without AES.
    pub(super) fn portable(seed: [u64; 2]) -> Hasher {
        Hasher::Sip(seed)
    }

    /// Hashes a key of two words (IPv4).
    #[inline]
    pub(super) fn hash2(&self, words: [u64; 2]) -> Hash {
        Hash(match self {
            // SAFETY: this variant is made only after the processor was found to have AES.
            #[cfg(target_arch = "x86_64")]
            Hasher::Aes(keys) => unsafe { aes2(keys, words[0], words[1]) },
            Hasher::Sip(key) => sip2(*key, words[0], words[1]),
        })
    }

    /// Hashes a key of five words (IPv6).
    #[inline]
    pub(super) fn hash5(&self, words: &[u64; 5]) -> Hash {
        Hash(match self {
            // SAFETY: as in `hash2`.
            #[cfg(target_arch = "x86_64")]
            Hasher::Aes(keys) => unsafe { aes5(keys, words) },
            Hasher::Sip(key) => sip(*key, words),
        })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
fn aes_keys(seed: [u64; 2]) -> AesKeys {
    use std::arch::x86_64::_mm_set_epi64x;
    let word = |number: u64| sip(seed, &[number]) as i64;
    AesKeys([0, 2, 4].map(|number| _mm_set_epi64x(word(number + 1), word(number))))
}

/// One block, in registers from call to return: the hash is a good part of a lookup.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "aes,sse2")]
fn aes2(keys: &AesKeys, low: u64, high: u64) -> u64 {
    use std::arch::x86_64::{_mm_aesenc_si128, _mm_cvtsi128_si64};
    let state = absorb(keys, keys.0[0], low, high);
    _mm_cvtsi128_si64(_mm_aesenc_si128(state, keys.0[1])) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "aes,sse2")]
fn aes5(keys: &AesKeys, words: &[u64; 5]) -> u64 {
    use std::arch::x86_64::{_mm_aesenc_si128, _mm_cvtsi128_si64};
    let state = absorb(keys, keys.0[0], words[0], words[1]);
    let state = absorb(keys, state, words[2], words[3]);
    let state = absorb(keys, state, words[4], 0);
    _mm_cvtsi128_si64(_mm_aesenc_si128(state, keys.0[1])) as u64
}

/// Adds a block to the state; after two rounds each byte of it has reached every byte of the state. One more
/// round ends a hash.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "aes,sse2")]
#[inline]
fn absorb(keys: &AesKeys, state: __m128i, low: u64, high: u64) -> __m128i {
    use std::arch::x86_64::{_mm_aesenc_si128, _mm_set_epi64x, _mm_xor_si128};
    let data = _mm_set_epi64x(high as i64, low as i64);
    let state = _mm_aesenc_si128(_mm_xor_si128(state, data), keys.0[1]);
    _mm_aesenc_si128(state, keys.0[2])
}

/// Out of line, and words by value: so that they stay in registers where the other function is used.
#[inline(never)]
fn sip2(key: [u64; 2], first: u64, second: u64) -> u64 {
    sip(key, &[first, second])
}

/// SipHash-1-3 of the words' bytes, little endian.
fn sip(key: [u64; 2], words: &[u64]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        v[3] ^= word;
        sip_round(&mut v);
        v[0] ^= word;
    }
    let end = (words.len() as u64 * 8) << 56;
    v[3] ^= end;
    sip_round(&mut v);
    v[0] ^= end;
    v[2] ^= 0xff;
    sip_round(&mut v);
    sip_round(&mut v);
    sip_round(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::Hasher as _;

    const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

    #[test]
    fn the_portable_hash_is_siphash_1_3() {
        // The standard library's default hasher is SipHash-1-3 under the key 0.
        for words in [&[][..], &[1], &[u64::MAX, 2], &[3, 4, 5, 6, 7]] {
            let mut reference = std::hash::DefaultHasher::new();
            for word in words {
                reference.write(&word.to_le_bytes());
            }
            assert_eq!(sip([0, 0], words), reference.finish());
        }
    }

    /// Flips every input bit of some keys: about half of the output bits change, each output bit about half
    /// of the time.
    fn assert_avalanche<const WORDS: usize>(hash: impl Fn([u64; WORDS]) -> Hash) {
        const KEYS: u64 = 64;
        let mut flips = [0u32; 64];
        let mut trials = 0;
        for key in 0..KEYS {
            let input: [u64; WORDS] = std::array::from_fn(|word| key * 5 + word as u64 * 0x1_0001);
            let before = hash(input).0;
            for bit in 0..WORDS * 64 {
                let mut other = input;
                other[bit / 64] ^= 1 << (bit % 64);
                let changed = before ^ hash(other).0;
                assert!((8..=56).contains(&changed.count_ones()), "bit {bit} changes {changed:064b}");
                for (index, count) in flips.iter_mut().enumerate() {
                    *count += (changed >> index & 1) as u32;
                }
                trials += 1;
            }
        }
        for count in flips {
            let share = f64::from(count) / f64::from(trials);
            assert!((0.46..0.54).contains(&share), "an output bit changes in {share} of the cases");
        }
    }

    #[test]
    fn every_input_bit_reaches_every_output_bit() {
        for hasher in [Hasher::new(SEED), Hasher::portable(SEED)] {
            assert_avalanche(|words| hasher.hash2(words));
            assert_avalanche(|words| hasher.hash5(&words));
        }
    }

    #[test]
    fn the_hash_depends_on_the_seed_and_is_not_linear() {
        for make in [Hasher::new, Hasher::portable] {
            let (one, two) = (make(SEED), make([SEED[0] ^ 1, SEED[1]]));
            let h = |words: [u64; 2]| one.hash2(words).0;
            assert_ne!(one.hash2([1, 2]), two.hash2([1, 2]));
            assert_ne!(one.hash5(&[1, 2, 3, 4, 5]), two.hash5(&[1, 2, 3, 4, 5]));
            // A function that is linear over bits would give 0 here, whatever its seed.
            assert_ne!(h([1, 0]) ^ h([2, 0]) ^ h([3, 0]) ^ h([0, 0]), 0);
        }
    }
}
