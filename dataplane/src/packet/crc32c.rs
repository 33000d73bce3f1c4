//! CRC32c, the checksum of SCTP (RFC 9260, appendix A): computed afresh, and updated for a change of ports.
//!
//! A CRC is linear: the difference that changed bytes make depends only on the difference of the bytes and
//! on how many bytes follow. So a port is rewritten without reading the payload, and a checksum that was
//! wrong before is still wrong afterwards.

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// A CRC32c in the making.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Crc32c::new()
    }
}

impl Crc32c {
    /// The CRC of nothing yet.
    pub fn new() -> Crc32c {
        Crc32c(u32::MAX)
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<8>();
        for &[a, b, c, d, e, f, g, h] in blocks {
            let low = self.0 ^ u32::from_le_bytes([a, b, c, d]);
            let [a, b, c, d] = low.to_le_bytes();
            self.0 = TABLES[7][usize::from(a)]
                ^ TABLES[6][usize::from(b)]
                ^ TABLES[5][usize::from(c)]
                ^ TABLES[4][usize::from(d)]
                ^ TABLES[3][usize::from(e)]
                ^ TABLES[2][usize::from(f)]
                ^ TABLES[1][usize::from(g)]
                ^ TABLES[0][usize::from(h)];
        }
        for &byte in rest {
            self.0 = (self.0 >> 8) ^ TABLES[0][usize::from(self.0 as u8 ^ byte)];
        }
    }

    /// The CRC. SCTP's field holds it in little-endian order.
    pub fn finish(self) -> u32 {
        !self.0
    }
}

/// The CRC of a message whose CRC was `crc` after four of its bytes changed from `old` to `new`, with
/// `following` bytes behind them. Takes some hundred cycles, whatever the length.
pub fn replace(crc: u32, old: [u8; 4], new: [u8; 4], following: usize) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // The four bytes themselves move the difference by 32 bits, those behind by 8 each.
    crc ^ multiply(power_of_x(8 * following as u64 + 32), difference)
}

/// Tables for eight bytes at a time: `TABLES[n][b]` is the CRC of byte `b` with `n` zero bytes behind it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = times_x(crc);
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut behind = 1;
    while behind < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[behind - 1][byte];
            tables[behind][byte] = (crc >> 8) ^ tables[0][(crc & 0xff) as usize];
            byte += 1;
        }
        behind += 1;
    }
    tables
}

/// x to the power of 2 to the power of n, modulo the polynomial. Bit 31 is the coefficient of 1.
static SQUARES: [u32; 64] = {
    let mut squares = [1 << 30; 64];
    let mut n = 1;
    while n < 64 {
        squares[n] = multiply(squares[n - 1], squares[n - 1]);
        n += 1;
    }
    squares
};

/// x to the power of `exponent`, modulo the polynomial.
fn power_of_x(mut exponent: u64) -> u32 {
    let mut power = 1 << 31;
    let mut n = 0;
    while exponent != 0 {
        if exponent & 1 == 1 {
            power = multiply(SQUARES[n], power);
        }
        exponent >>= 1;
        n += 1;
    }
    power
}

/// The product of two polynomials modulo the CRC's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = times_x(b);
    }
    product
}

const fn times_x(polynomial: u32) -> u32 {
    (polynomial >> 1) ^ (POLYNOMIAL & (polynomial & 1).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crc(bytes: &[u8]) -> u32 {
        let mut crc = Crc32c::new();
        crc.update(bytes);
        crc.finish()
    }

    #[test]
    fn known_values_of_rfc_3720() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    proptest! {
        #[test]
        fn nat_02_a_replaced_word_gives_the_crc_computed_afresh(
            before in proptest::collection::vec(any::<u8>(), 0..40),
            old in any::<[u8; 4]>(), new in any::<[u8; 4]>(),
            behind in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let message = |word: [u8; 4]| [&before[..], &word, &behind].concat();
            prop_assert_eq!(replace(crc(&message(old)), old, new, behind.len()), crc(&message(new)));
        }
    }
}
