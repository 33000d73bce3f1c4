//! Parsing: the border. A received frame is checked once (FW-04), and everything behind this stage trusts
//! the [`Headers`] that came out.
//!
//! Invariants of a parsed packet: `l3 < l4 <= end`, the frame ends at `end`, and the headers lie in the
//! frame's first chunk: of TCP with its options, of ICMP the first 8 bytes. In the common case, IPv4 without
//! options and TCP or UDP, this is straight code with one branch for each check.

use super::ethernet::{self, Ethernet};
use super::ip::{self, FragmentHeader, Ipv4, Ipv6, V4_LEN, V6_LEN};
use super::transport::{SCTP_LEN, TCP_LEN, Tcp, TcpFlags, UDP_LEN};
use super::{Address, Family, Packet, Protocol, V4, V6, icmp};
use crate::stats::Reason;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// An IPv4 packet.
    V4(Headers<V4>),
    /// An IPv6 packet.
    V6(Headers<V6>),
    /// ARP, not looked into: see [`Arp`](super::arp::Arp).
    Arp,
    /// Something else, by its Ethernet type (VLAN tags included).
    Other(u16),
}

/// What the pipeline needs to know of an IP packet. Numbers are in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers<A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address.
    pub destination: A::Addr,
    /// TCP, UDP, SCTP: the source port. An ICMP query: its identifier. Otherwise, and in fragments but the
    /// first, 0.
    pub source_port: u16,
    /// TCP, UDP, SCTP: the destination port. ICMP: type in the high byte, code in the low. Otherwise, and
    /// in fragments but the first, 0.
    pub destination_port: u16,
    /// The transport protocol, behind all extension headers.
    pub protocol: Protocol,
    /// Where the IP header starts, in bytes from the frame's start.
    pub l3: u16,
    /// Where the transport header starts, in bytes from the frame's start.
    pub l4: u16,
    /// Where the packet and the frame end, in bytes from the frame's start.
    pub end: u32,
    /// TTL or hop limit, as received.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// TCP's flags; none for other protocols.
    pub tcp_flags: TcpFlags,
    /// Whether routers may not fragment the packet; true for IPv6.
    pub dont_fragment: bool,
    /// Whether it is a fragment.
    pub fragment: FragmentKind,
    /// Kind of ICMP message.
    pub icmp: IcmpClass,
    /// Of a first fragment: bytes of the datagram that are in later ones, once that is known. Parsing says 0.
    pub following: u16,
}

impl<A: Family> Headers<A> {
    /// Length of the IP packet in bytes, header included: what an MTU limits.
    #[inline]
    pub fn packet_len(&self) -> u32 {
        self.end - u32::from(self.l3)
    }

    /// Whether the packet is one of several pieces.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment != FragmentKind::Whole
    }

    /// Whether the packet can belong to a connection: one with its transport header, no ICMP message but a query
    /// (CT-01), no impossible combination of TCP flags (CT-08).
    #[inline]
    pub fn is_trackable(&self) -> bool {
        self.fragment != FragmentKind::Later
            && matches!(self.icmp, IcmpClass::None | IcmpClass::Query)
            && (self.protocol != Protocol::TCP || self.tcp_flags.is_possible())
    }
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FragmentKind {
    /// It is not.
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// Any other: it has none.
    Later,
}

/// Kind of an ICMP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpClass {
    /// Not ICMP, or a fragment without its header.
    None,
    /// A request or its answer, with an identifier that both share.
    Query,
    /// An error about the packet that it quotes.
    Error,
    /// Anything else: router and neighbour discovery, group membership.
    Other,
}

/// IPv6 extension headers that are walked before the packet is refused. Legitimate packets have one or two.
const EXTENSIONS_MAX: usize = 8;

/// Parses and checks a received frame (FW-04), and cuts off the padding behind the IP packet.
///
/// # Errors
/// Why the packet is to be dropped.
#[inline]
pub fn parse(packet: &mut Packet) -> Result<Parsed, Reason> {
    let link = Ethernet::new_checked(packet.head()).ok_or(Reason::FrameTruncated)?;
    match link.ether_type {
        V4::ETHER_TYPE => parse_v4(packet, ethernet::LEN).map(Parsed::V4),
        V6::ETHER_TYPE => parse_v6(packet, ethernet::LEN).map(Parsed::V6),
        ethernet::ARP => Ok(Parsed::Arp),
        other => Ok(Parsed::Other(other)),
    }
}

/// Parses the IPv4 packet that starts at `l3` bytes into the frame.
///
/// # Errors
/// Why the packet is to be dropped.
#[inline]
pub(crate) fn parse_v4(packet: &mut Packet, l3: usize) -> Result<Headers<V4>, Reason> {
    let frame = packet.head();
    let ip = Ipv4::new_checked(frame.get(l3..).unwrap_or_default()).ok_or(Reason::FrameTruncated)?;
    if ip.version() != V4::VERSION {
        return Err(Reason::IpVersion);
    }
    let header_len = ip.header_len();
    let l4 = l3 + header_len;
    if header_len == V4_LEN {
        if !ip.sum().is_correct() {
            return Err(Reason::IpChecksum);
        }
    } else {
        if header_len < V4_LEN || l4 > frame.len() {
            return Err(Reason::IpHeaderLength);
        }
        check_options(&frame[l3..l4])?;
    }
    let end = l3 + ip.total_len();
    if end < l4 || end > packet.len() {
        return Err(Reason::IpTotalLength);
    }
    let word = ip.fragment_word();
    let fragment = fragment_kind(word & ip::FRAGMENT_OFFSET, word & ip::MORE_FRAGMENTS);
    let protocol = ip.protocol();
    let transport = Transport::read::<V4>(frame, l4, end, protocol, fragment)?;
    let headers = Headers {
        source: ip.source(),
        destination: ip.destination(),
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol,
        l3: l3 as u16,
        l4: l4 as u16,
        end: end as u32,
        ttl: ip.ttl(),
        tos: ip.tos(),
        tcp_flags: transport.tcp_flags,
        dont_fragment: word & ip::DONT_FRAGMENT != 0,
        fragment,
        icmp: transport.icmp,
        following: 0,
    };
    if packet.len() > end {
        packet.truncate(end);
    }
    Ok(headers)
}

/// Parses the IPv6 packet that starts at `l3` bytes into the frame. Kept out of line: its registers and the
/// walk's would burden every IPv4 packet.
#[inline(never)]
fn parse_v6(packet: &mut Packet, l3: usize) -> Result<Headers<V6>, Reason> {
    let frame = packet.head();
    let ip = Ipv6::new_checked(frame.get(l3..).unwrap_or_default()).ok_or(Reason::FrameTruncated)?;
    if ip.version() != V6::VERSION {
        return Err(Reason::IpVersion);
    }
    let end = l3 + V6_LEN + ip.payload_len();
    if end > packet.len() {
        return Err(Reason::IpTotalLength);
    }
    let mut walk = Walk { protocol: ip.next_header(), l4: l3 + V6_LEN, fragment: FragmentKind::Whole };
    if is_extension(walk.protocol) {
        walk.run(&frame[..frame.len().min(end)])?;
    }
    let Walk { protocol, l4, fragment } = walk;
    let transport = Transport::read::<V6>(frame, l4, end, protocol, fragment)?;
    let headers = Headers {
        source: ip.source(),
        destination: ip.destination(),
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol,
        l3: l3 as u16,
        l4: l4 as u16,
        end: end as u32,
        ttl: ip.hop_limit(),
        tos: ip.traffic_class(),
        tcp_flags: transport.tcp_flags,
        dont_fragment: true,
        fragment,
        icmp: transport.icmp,
        following: 0,
    };
    if packet.len() > end {
        packet.truncate(end);
    }
    Ok(headers)
}

#[inline]
fn fragment_kind(offset: u16, more: u16) -> FragmentKind {
    match (offset, more) {
        (0, 0) => FragmentKind::Whole,
        (0, _) => FragmentKind::First,
        _ => FragmentKind::Later,
    }
}

/// Checks an IPv4 header that has options: its checksum, that the options fit, and that none asks for
/// source routing.
#[cold]
fn check_options(header: &[u8]) -> Result<(), Reason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    if !super::checksum::Sum::of(header).is_correct() {
        return Err(Reason::IpChecksum);
    }
    let mut options = header.get(V4_LEN..).unwrap_or_default();
    loop {
        match *options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, ..] => options = &options[1..],
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err(Reason::SourceRoute),
            [_, len, ..] if len >= 2 => {
                options = options.get(usize::from(len)..).ok_or(Reason::IpHeaderLength)?;
            }
            _ => return Err(Reason::IpHeaderLength),
        }
    }
}

const HOP_BY_HOP: Protocol = Protocol(0);
const ROUTING: Protocol = Protocol(43);
const FRAGMENT: Protocol = Protocol::FRAGMENT;
const AUTHENTICATION: Protocol = Protocol(51);
const DESTINATION_OPTIONS: Protocol = Protocol(60);

#[inline]
fn is_extension(protocol: Protocol) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Length in bytes of the IPv6 extension header of that number that begins with `header`; nothing for what is
/// no extension header.
pub(super) fn extension_len(protocol: Protocol, header: &[u8; 8]) -> Option<usize> {
    let len = usize::from(header[1]);
    match protocol {
        FRAGMENT => Some(8),
        AUTHENTICATION => Some((len + 2) * 4),
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => Some((len + 1) * 8),
        _ => None,
    }
}

/// A walk along the IPv6 extension headers (RFC 8200, section 4).
struct Walk {
    protocol: Protocol,
    l4: usize,
    fragment: FragmentKind,
}

impl Walk {
    /// Walks to the first header that is no extension, or to what a later fragment carries.
    #[cold]
    fn run(&mut self, frame: &[u8]) -> Result<(), Reason> {
        for _ in 0..EXTENSIONS_MAX {
            let header: &[u8; 8] =
                frame.get(self.l4..).and_then(|bytes| bytes.first_chunk()).ok_or(Reason::Ipv6Extensions)?;
            let [next, _, _, segments_left, ..] = *header;
            match self.protocol {
                FRAGMENT => {
                    let fragment = FragmentHeader::new_checked(header).ok_or(Reason::Ipv6Extensions)?;
                    // A fragment of a fragment is nothing that a sender makes.
                    if self.fragment != FragmentKind::Whole {
                        return Err(Reason::Ipv6Extensions);
                    }
                    self.fragment = fragment_kind(fragment.offset(), u16::from(fragment.more_fragments()));
                }
                // While segments are left, the header's destination is not whom the packet is for: it can
                // be neither translated nor checked. RFC 5095 forbids the type that anybody can use.
                ROUTING if segments_left > 0 => return Err(Reason::SourceRoute),
                _ => {}
            }
            self.l4 += extension_len(self.protocol, header).ok_or(Reason::Ipv6Extensions)?;
            self.protocol = Protocol(next);
            if self.l4 > frame.len() {
                return Err(Reason::Ipv6Extensions);
            }
            if self.fragment == FragmentKind::Later || !is_extension(self.protocol) {
                return Ok(());
            }
        }
        Err(Reason::Ipv6Extensions)
    }
}

/// The network header of a packet that is quoted in another, as far as it is needed to know the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quoted<A: Family> {
    /// Source address.
    pub(crate) source: A::Addr,
    /// Destination address.
    pub(crate) destination: A::Addr,
    /// The transport protocol, behind all extension headers.
    pub(crate) protocol: Protocol,
    /// Where the transport header starts, in bytes from the network header's start.
    pub(crate) l4: usize,
    /// How long the packet says that it is, network header included. Nothing checks it: most of it is not there.
    pub(crate) len: usize,
    /// Whether it is a fragment.
    pub(crate) fragment: FragmentKind,
}

/// Reads the network header that `bytes` begins with. Unlike a received packet's, its lengths and its checksum
/// are not judged: routers on the way have changed what they quote, and little of it is there. Nothing when it is
/// of another version, or the header itself does not fit.
pub(crate) fn quoted<A: Family>(bytes: &[u8]) -> Option<Quoted<A>> {
    if A::VERSION == 4 {
        let ip = Ipv4::new_checked(bytes)?;
        let l4 = ip.header_len();
        let word = ip.fragment_word();
        (ip.version() == 4 && (V4_LEN..=bytes.len()).contains(&l4)).then(|| Quoted {
            source: A::Addr::from_bits(ip.source().to_bits().into()),
            destination: A::Addr::from_bits(ip.destination().to_bits().into()),
            protocol: ip.protocol(),
            l4,
            len: ip.total_len(),
            fragment: fragment_kind(word & ip::FRAGMENT_OFFSET, word & ip::MORE_FRAGMENTS),
        })
    } else {
        let ip = Ipv6::new_checked(bytes).filter(|ip| ip.version() == 6)?;
        let mut walk = Walk { protocol: ip.next_header(), l4: V6_LEN, fragment: FragmentKind::Whole };
        if is_extension(walk.protocol) {
            walk.run(bytes).ok()?;
        }
        Some(Quoted {
            source: A::Addr::from_bits(ip.source().to_bits()),
            destination: A::Addr::from_bits(ip.destination().to_bits()),
            protocol: walk.protocol,
            l4: walk.l4,
            len: V6_LEN + ip.payload_len(),
            fragment: walk.fragment,
        })
    }
}

/// What the transport header says.
struct Transport {
    source_port: u16,
    destination_port: u16,
    tcp_flags: TcpFlags,
    icmp: IcmpClass,
}

impl Transport {
    /// Nothing to say: no header, or none that is known.
    const NONE: Transport =
        Transport { source_port: 0, destination_port: 0, tcp_flags: TcpFlags(0), icmp: IcmpClass::None };

    /// Reads the header at `l4` of a packet that ends at `end`. `frame` is the first chunk. A first fragment must
    /// have the whole header: what it leaves to the next one, no filter would see.
    #[inline(always)]
    fn read<A: Family>(
        frame: &[u8],
        l4: usize,
        end: usize,
        protocol: Protocol,
        fragment: FragmentKind,
    ) -> Result<Transport, Reason> {
        if fragment == FragmentKind::Later {
            return Ok(Transport::NONE);
        }
        let bytes = frame.get(l4..end.min(frame.len())).unwrap_or_default();
        let truncated = match fragment {
            FragmentKind::First => Reason::FragmentTiny,
            FragmentKind::Whole | FragmentKind::Later => Reason::TransportTruncated,
        };
        let header = match protocol {
            Protocol::TCP => {
                let tcp = Tcp::new_checked(bytes).ok_or(truncated)?;
                let len = tcp.header_len();
                if len < TCP_LEN || len > bytes.len() {
                    return Err(truncated);
                }
                Transport { tcp_flags: tcp.flags(), ..Transport::ports(bytes) }
            }
            Protocol::UDP => {
                let udp: &[u8; UDP_LEN] = bytes.first_chunk().ok_or(truncated)?;
                let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
                // A first fragment holds less than the datagram's length says.
                if len < UDP_LEN || (len > end - l4 && fragment == FragmentKind::Whole) {
                    return Err(truncated);
                }
                Transport::ports(bytes)
            }
            Protocol::SCTP if bytes.len() >= SCTP_LEN => Transport::ports(bytes),
            Protocol::SCTP => return Err(truncated),
            _ if protocol == A::ICMP => {
                let [kind, code, _, _, high, low, ..] =
                    *bytes.first_chunk::<{ icmp::LEN }>().ok_or(truncated)?;
                let class = icmp::class::<A>(kind);
                let identifier = u16::from_be_bytes([high, low]);
                Transport {
                    source_port: if class == IcmpClass::Query { identifier } else { 0 },
                    destination_port: u16::from_be_bytes([kind, code]),
                    tcp_flags: TcpFlags(0),
                    icmp: class,
                }
            }
            _ => Transport::NONE,
        };
        Ok(header)
    }

    #[inline]
    fn ports(bytes: &[u8]) -> Transport {
        let [a, b, c, d] = bytes.first_chunk().copied().unwrap_or_default();
        Transport {
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            ..Transport::NONE
        }
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
