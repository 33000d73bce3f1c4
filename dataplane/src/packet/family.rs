//! Address families. Every table and every stage is generic over one of the two, from the key of a flow
//! to the longest prefix match; nothing converts between them.

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address family: IPv4 or IPv6. A type without values, used as a parameter.
pub trait Family: Copy + Eq + Ord + Hash + Debug + Default + Send + Sync + 'static {
    /// The address type of the family.
    type Addr: Address;
    /// `4` or `6`, as in the first nibble of the header.
    const VERSION: u8;
    /// Length of an address in bits.
    const BITS: u8;
    /// The Ethernet type of the family (IEEE 802 numbers).
    const ETHER_TYPE: u16;
    /// `ipv4` or `ipv6`, for output.
    const NAME: &'static str;
    /// The protocol number of the family's ICMP: 1, or 58.
    const ICMP: Protocol;
}

/// An address of one family.
pub trait Address:
    Copy + Eq + Ord + Hash + Debug + Display + FromStr + Into<IpAddr> + Send + Sync + 'static
{
    /// The all-zeros address.
    const UNSPECIFIED: Self;
    /// The address as a number; the first bit of the address is bit `BITS - 1`.
    fn bits(self) -> u128;
    /// The address whose number is `bits`; higher bits are ignored.
    fn from_bits(bits: u128) -> Self;
    /// The address, if `addr` is one of this family.
    fn from_ip(addr: IpAddr) -> Option<Self>;
    /// Whether the address is loopback: 127.0.0.0/8, or ::1.
    fn is_loopback(self) -> bool;
    /// Whether the address is a multicast group.
    fn is_multicast(self) -> bool;
    /// Whether packets from and to the address stay on its link: fe80::/10 (RFC 4291, section 2.5.6). IPv4's
    /// 169.254.0.0/16 is forwarded like any other, as Linux does.
    fn stays_on_link(self) -> bool;
    /// Whether all bits are zero.
    fn is_unspecified(self) -> bool {
        self.bits() == 0
    }
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V6;

impl Family for V4 {
    type Addr = Ipv4Addr;
    const VERSION: u8 = 4;
    const BITS: u8 = 32;
    const ETHER_TYPE: u16 = 0x0800;
    const NAME: &'static str = "ipv4";
    const ICMP: Protocol = Protocol::ICMP;
}

impl Family for V6 {
    type Addr = Ipv6Addr;
    const VERSION: u8 = 6;
    const BITS: u8 = 128;
    const ETHER_TYPE: u16 = 0x86dd;
    const NAME: &'static str = "ipv6";
    const ICMP: Protocol = Protocol::ICMPV6;
}

impl Address for Ipv4Addr {
    const UNSPECIFIED: Self = Ipv4Addr::UNSPECIFIED;
    fn bits(self) -> u128 {
        u128::from(self.to_bits())
    }
    fn from_bits(bits: u128) -> Self {
        Ipv4Addr::from_bits(bits as u32)
    }
    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }
    }
    fn is_loopback(self) -> bool {
        Ipv4Addr::is_loopback(&self)
    }
    fn is_multicast(self) -> bool {
        Ipv4Addr::is_multicast(&self)
    }
    fn stays_on_link(self) -> bool {
        false
    }
}

impl Address for Ipv6Addr {
    const UNSPECIFIED: Self = Ipv6Addr::UNSPECIFIED;
    fn bits(self) -> u128 {
        self.to_bits()
    }
    fn from_bits(bits: u128) -> Self {
        Ipv6Addr::from_bits(bits)
    }
    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        }
    }
    fn is_loopback(self) -> bool {
        Ipv6Addr::is_loopback(&self)
    }
    fn is_multicast(self) -> bool {
        Ipv6Addr::is_multicast(&self)
    }
    fn stays_on_link(self) -> bool {
        self.is_unicast_link_local()
    }
}

/// An address prefix, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix<A: Family> {
    address: A::Addr,
    length: u8,
}

impl<A: Family> Prefix<A> {
    /// Every address of the family.
    pub const ALL: Self = Prefix { address: A::Addr::UNSPECIFIED, length: 0 };

    /// The prefix of `length` bits that holds `address`; its host bits are cleared.
    ///
    /// # Panics
    /// If `length` is longer than an address of the family.
    pub fn new(address: A::Addr, length: u8) -> Self {
        assert!(length <= A::BITS, "prefix length {length} of an {} address", A::NAME);
        Prefix { address: A::Addr::from_bits(address.bits() & Self::mask(length)), length }
    }

    /// The prefix that holds `address` alone.
    pub fn host(address: A::Addr) -> Self {
        Prefix { address, length: A::BITS }
    }

    /// The first address.
    pub fn address(self) -> A::Addr {
        self.address
    }

    /// Length in bits.
    #[allow(clippy::len_without_is_empty, reason = "a prefix is never empty")]
    pub fn len(self) -> u8 {
        self.length
    }

    /// Whether `address` lies in the prefix.
    pub fn contains(self, address: A::Addr) -> bool {
        address.bits() & Self::mask(self.length) == self.address.bits()
    }

    /// The last address: an IPv4 subnet's broadcast address.
    pub fn last(self) -> A::Addr {
        A::Addr::from_bits(self.address.bits() | (!Self::mask(self.length) & Self::mask(A::BITS)))
    }

    fn mask(length: u8) -> u128 {
        let all = if A::BITS == 128 { u128::MAX } else { (1 << A::BITS) - 1 };
        if length == 0 {
            0
        } else {
            all & !((1u128.checked_shl(u32::from(A::BITS - length)).unwrap_or(0)).wrapping_sub(1))
        }
    }
}

impl<A: Family> Display for Prefix<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl<A: Family> Debug for Prefix<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Display::fmt(self, f)
    }
}

impl<A: Family> FromStr for Prefix<A> {
    type Err = String;
    /// Reads `address/length`, or an address alone (a host prefix). Host bits are cleared.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => {
                (address, length.parse().map_err(|_| format!("{text} is not a prefix"))?)
            }
            None => (text, A::BITS),
        };
        let address = address.parse().map_err(|_| format!("{text} is not an {} prefix", A::NAME))?;
        if length > A::BITS {
            return Err(format!("{text}: an {} prefix has at most {} bits", A::NAME, A::BITS));
        }
        Ok(Prefix::new(address, length))
    }
}

/// An IP protocol number (IANA "protocol-numbers").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// IP in IP (RFC 2003).
    pub const IPIP: Protocol = Protocol(4);
    /// TCP.
    pub const TCP: Protocol = Protocol(6);
    /// UDP.
    pub const UDP: Protocol = Protocol(17);
    /// The fragment header of IPv6 (RFC 8200, section 4.5).
    pub const FRAGMENT: Protocol = Protocol(44);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// What an IPv6 packet says that carries nothing (RFC 8200, section 4.7).
    pub const NO_NEXT_HEADER: Protocol = Protocol(59);
    /// SCTP.
    pub const SCTP: Protocol = Protocol(132);

    /// Whether the protocol has source and destination ports in its first four bytes.
    pub fn has_ports(self) -> bool {
        matches!(self, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Protocol::ICMP => f.write_str("icmp"),
            Protocol::IPIP => f.write_str("ipip"),
            Protocol::TCP => f.write_str("tcp"),
            Protocol::UDP => f.write_str("udp"),
            Protocol::ICMPV6 => f.write_str("icmpv6"),
            Protocol::SCTP => f.write_str("sctp"),
            Protocol(number) => write!(f, "{number}"),
        }
    }
}

impl Debug for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Display::fmt(self, f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LinkAddr(pub [u8; 6]);

impl LinkAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: LinkAddr = LinkAddr([0xff; 6]);

    /// The address as a number of 48 bits.
    #[inline]
    pub(crate) fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address whose [`bits`](LinkAddr::bits) these are.
    #[inline]
    pub(crate) fn from_bits(bits: u64) -> LinkAddr {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        LinkAddr([a, b, c, d, e, f])
    }

    /// Whether the group bit is set: multicast or broadcast.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl Display for LinkAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Debug for LinkAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Display::fmt(self, f)
    }
}

impl FromStr for LinkAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| {
                    format!("{text} is not a link address (six bytes in hex, aa:bb:cc:dd:ee:ff)")
                })?;
        }
        if parts.next().is_some() {
            return Err(format!("{text} is not a link address (more than six bytes)"));
        }
        Ok(LinkAddr(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_clears_host_bits_and_contains_its_last_address() {
        let subnet: Prefix<V4> = "172.16.1.50/12".parse().unwrap();
        assert_eq!(subnet.to_string(), "172.16.0.0/12");
        assert_eq!(subnet.last().to_string(), "172.31.255.255");
        assert!(subnet.contains("172.31.255.255".parse().unwrap()));
        assert!(!subnet.contains("172.32.0.0".parse().unwrap()));
        assert!(Prefix::<V4>::ALL.contains("255.255.255.255".parse().unwrap()));
        assert!(Prefix::<V6>::ALL.contains("ffff::".parse().unwrap()));
        assert_eq!(Prefix::<V6>::host("::1".parse().unwrap()).last().to_string(), "::1");
    }

    #[test]
    fn bad_prefixes_and_link_addresses_are_refused() {
        assert!("10.0.0.0/33".parse::<Prefix<V4>>().is_err());
        assert!("::/1".parse::<Prefix<V4>>().is_err());
        assert!("10.0.0.0/-1".parse::<Prefix<V4>>().is_err());
        assert!("ee:ee:ee:ee:ee".parse::<LinkAddr>().is_err());
        assert!("ee:ee:ee:ee:ee:ee:ee".parse::<LinkAddr>().is_err());
        assert_eq!("fa:16:3e:92:11:ca".parse::<LinkAddr>().unwrap().to_string(), "fa:16:3e:92:11:ca");
    }
}
