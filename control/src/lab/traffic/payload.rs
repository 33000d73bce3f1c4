//! Bytes to send, and a digest that shows whether they arrived: each once, in order, unchanged.

/// An endless sequence of bytes that depends on a seed. No stretch of it repeats in practice, so what is
/// lost, doubled or swapped shows in the digest.
#[derive(Clone, Debug)]
pub struct Payload {
    state: u64,
}

impl Payload {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Payload {
        Payload { state: seed }
    }

    /// Fills `bytes` with what comes next. Lengths that are no multiple of 8 drop the rest of the last word.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            // SplitMix64.
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Count and digest of a byte stream. Both depend on the bytes and their order only, not on how the stream
/// was cut into pieces. It finds accidents, not forgeries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digest {
    bytes: u64,
    hash: u64,
    /// The last `bytes % 8` bytes, not in `hash` yet.
    tail: [u8; 8],
}

impl Default for Digest {
    fn default() -> Digest {
        Digest { bytes: 0, hash: 0x243f_6a88_85a3_08d3, tail: [0; 8] }
    }
}

impl Digest {
    /// Length of [`Digest::to_bytes`].
    pub const LEN: usize = 16;

    /// Goes on with more of the stream.
    pub fn update(&mut self, mut more: &[u8]) {
        let held = (self.bytes % 8) as usize;
        self.bytes += more.len() as u64;
        if held > 0 {
            let taken = more.len().min(8 - held);
            self.tail[held..held + taken].copy_from_slice(&more[..taken]);
            more = &more[taken..];
            if held + taken < 8 {
                return;
            }
            self.hash = mix(self.hash, u64::from_le_bytes(self.tail));
        }
        let (words, tail) = more.as_chunks::<8>();
        for word in words {
            self.hash = mix(self.hash, u64::from_le_bytes(*word));
        }
        self.tail[..tail.len()].copy_from_slice(tail);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Count and digest, as the two ends tell each other.
    pub fn to_bytes(&self) -> [u8; Digest::LEN] {
        let held = (self.bytes % 8) as usize;
        let mut last = [0; 8];
        last[..held].copy_from_slice(&self.tail[..held]);
        let hash = mix(mix(self.hash, u64::from_le_bytes(last)), self.bytes);
        let mut out = [0; Digest::LEN];
        out[..8].copy_from_slice(&self.bytes.to_be_bytes());
        out[8..].copy_from_slice(&hash.to_be_bytes());
        out
    }
}

/// One step: a bijection of the hash for every word, and of the word for every hash.
fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(pieces: &[&[u8]]) -> [u8; Digest::LEN] {
        let mut digest = Digest::default();
        for piece in pieces {
            digest.update(piece);
        }
        digest.to_bytes()
    }

    #[test]
    fn digest_does_not_depend_on_the_cuts() {
        let mut bytes = [0; 61];
        Payload::new(1).fill(&mut bytes);
        let whole = digest(&[&bytes]);
        for cut in 0..bytes.len() {
            for second in cut..bytes.len() {
                let pieces = [&bytes[..cut], &bytes[cut..second], &bytes[second..]];
                assert_eq!(digest(&pieces), whole, "cut at {cut} and {second}");
            }
        }
    }

    #[test]
    fn digest_sees_changed_swapped_doubled_and_lost_bytes() {
        let mut bytes = [0; 64];
        Payload::new(2).fill(&mut bytes);
        let whole = digest(&[&bytes]);
        let mut changed = bytes;
        changed[40] ^= 1;
        assert_ne!(digest(&[&changed]), whole);
        assert_ne!(digest(&[&bytes[..16], &bytes[24..32], &bytes[16..24], &bytes[32..]]), whole);
        assert_ne!(digest(&[&bytes[..16], &bytes[8..16], &bytes[16..]]), whole);
        assert_ne!(digest(&[&bytes[..63]]), whole);
        assert_ne!(digest(&[&[0; 3]]), digest(&[&[0; 4]]), "zeroes of another length");
    }
}
