//! Addresses and prefixes as the API server has always parsed them: decimal, leading zeros tolerated
//! (OBJ-07). `010.0.0.1` is 10.0.0.1 here and in the rules that kube-proxy writes; Rust's own parser refuses
//! it. An IPv4-mapped IPv6 address is the IPv4 address.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pollux_dataplane::packet::{Address, Family, Prefix};

/// An address of either family.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if let Some(address) = parse_v4(text) {
        return Some(IpAddr::V4(address));
    }
    // The dotted tail of `::ffff:010.0.0.1` may have leading zeros as well.
    let address = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => format!("{head}:{}", parse_v4(tail)?).parse::<Ipv6Addr>(),
        _ => text.parse::<Ipv6Addr>(),
    };
    Some(address.ok()?.to_canonical())
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?, 255)? as u8;
    }
    parts.next().is_none().then(|| octets.into())
}

/// A number of ASCII digits, at most `max`.
fn parse_decimal(text: &str, max: u32) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0u32, |number, byte| {
        let digit = (byte as char).to_digit(10)?;
        Some(number * 10 + digit).filter(|number| *number <= max)
    })
}

/// An address prefix of either family, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

impl IpPrefix {
    /// Reads `address/length`. Host bits are cleared.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let address = parse_address(address)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, parse_decimal(length, bits)? as u8)
    }

    /// The prefix of `length` bits that holds `address`; none if `length` is too long for the family.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(address) if length <= 32 => {
                IpAddr::V4(Prefix::<pollux_dataplane::packet::V4>::new(address, length).address())
            }
            IpAddr::V6(address) if length <= 128 => {
                IpAddr::V6(Prefix::<pollux_dataplane::packet::V6>::new(address, length).address())
            }
            _ => return None,
        };
        Some(IpPrefix { address, length })
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Length in bits.
    #[allow(clippy::len_without_is_empty, reason = "a prefix is never empty")]
    pub fn len(self) -> u8 {
        self.length
    }

    /// The prefix, if it is one of the family.
    pub fn of<A: Family>(self) -> Option<Prefix<A>> {
        A::Addr::from_ip(self.address).map(|address| Prefix::new(address, self.length))
    }
}

impl Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obj_07_leading_zeros_are_decimal() {
        assert_eq!(parse_address("010.001.000.009"), Some("10.1.0.9".parse().unwrap()));
        assert_eq!(parse_address("::ffff:010.0.0.1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(IpPrefix::parse("010.1.2.3/08").unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn obj_07_what_is_no_address_is_refused() {
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.-4",
            "1.2.3.+4",
            "0x1.2.3.4",
            "fe80::1%eth0",
            " 1.2.3.4",
            "1..2.3",
            "4294967297.0.0.1",
        ] {
            assert_eq!(parse_address(text), None, "{text}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8"] {
            assert_eq!(IpPrefix::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_prefix_belongs_to_one_family() {
        use pollux_dataplane::packet::{V4, V6};
        let prefix = IpPrefix::parse("fd00:10::1/64").unwrap();
        assert_eq!(prefix.of::<V4>(), None);
        assert_eq!(prefix.of::<V6>().unwrap().to_string(), "fd00:10::/64");
    }
}
