//! Fragments of IP datagrams (RFC 791, RFC 8200 section 4.5): what a fragment says of its datagram, and the
//! cutting of IPv4 packets that are too long for a link (FW-02).

use super::checksum::{finish_partial, slices};
use super::ip::{
    DONT_FRAGMENT, FRAGMENT_OFFSET, FragmentHeader, Ipv4, Ipv6, MORE_FRAGMENTS, V4_LEN, V6_LEN, field,
};
use super::parse::{FragmentKind, Headers, extension_len};
use super::{Family, Packet, Protocol};
use crate::packet::checksum::Sum;
use crate::stats::Reason;

/// Longest IP packet in bytes; of IPv6 the header is not counted.
const PACKET_MAX: u32 = 65_535;

/// Fragments begin at multiples of so many bytes.
const UNIT: u32 = 8;

/// What names a datagram while its fragments are under way (NAT-08).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DatagramId<A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address.
    pub destination: A::Addr,
    /// The sender's number: 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    /// IPv4: the protocol. IPv6: 0, as only the first fragment's next header counts (RFC 8200, section 4.5).
    pub protocol: Protocol,
}

/// One fragment's place in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece<A: Family> {
    /// The datagram.
    pub datagram: DatagramId<A>,
    /// Where the fragment begins, bytes from the start of what was cut.
    pub start: u32,
    /// Where it ends.
    pub end: u32,
    /// Whether it is the datagram's end.
    pub last: bool,
    /// Whether what becomes of the first fragment depends on the datagram's length: SCTP's checksum, which is no
    /// sum, changes with what follows the changed bytes (NAT-02), and a TCP segment's length is a part of what it
    /// says (CT-07).
    pub needs_length: bool,
    /// Bytes of headers before the fragment that count for the datagram's length.
    headers: u32,
}

impl<A: Family> Piece<A> {
    /// Reads the place of a fragment with these headers; nothing when there is no fragment header.
    pub fn of(packet: &Packet, headers: &Headers<A>) -> Option<Piece<A>> {
        if headers.fragment == FragmentKind::Whole {
            return None;
        }
        let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
        let frame = packet.head();
        let (start, last, identification, protocol, from) = if A::VERSION == 4 {
            let ip = Ipv4::new_checked(frame.get(l3..)?)?;
            let word = ip.fragment_word();
            let start = u32::from(word & FRAGMENT_OFFSET) * UNIT;
            let last = word & MORE_FRAGMENTS == 0;
            (start, last, u32::from(ip.identification()), headers.protocol, l4)
        } else {
            let at = fragment_header(frame, l3)?;
            let header = FragmentHeader::new_checked(frame.get(at..)?)?;
            let start = u32::from(header.offset());
            (start, !header.more_fragments(), header.identification(), Protocol(0), at + 8)
        };
        let len = headers.end.checked_sub(from as u32)?;
        // IPv6's own header does not count, and the fragment header is not in the whole datagram.
        let uncounted = if A::VERSION == 4 { l3 } else { l3 + V6_LEN + 8 };
        Some(Piece {
            datagram: DatagramId {
                source: headers.source,
                destination: headers.destination,
                identification,
                protocol,
            },
            start,
            end: start + len,
            last,
            needs_length: headers.fragment == FragmentKind::First
                && matches!(headers.protocol, Protocol::SCTP | Protocol::TCP),
            headers: (from - uncounted) as u32,
        })
    }

    /// Whether a datagram can have such a fragment: not an empty one, none but the last of a length that is no
    /// multiple of 8, none beyond 65,535 bytes.
    pub fn is_possible(&self) -> bool {
        let len = self.end - self.start;
        len > 0 && (self.last || len.is_multiple_of(UNIT)) && self.headers + self.end <= PACKET_MAX
    }

    /// Whether it is the first one.
    pub fn is_first(&self) -> bool {
        self.start == 0
    }
}

/// Where the fragment header of the IPv6 packet at `l3` is.
fn fragment_header(frame: &[u8], l3: usize) -> Option<usize> {
    let mut protocol = Ipv6::new_checked(frame.get(l3..)?)?.next_header();
    let mut at = l3 + V6_LEN;
    while protocol != Protocol::FRAGMENT {
        let header = frame.get(at..)?.first_chunk()?;
        at += extension_len(protocol, header)?;
        protocol = Protocol(header[0]);
    }
    Some(at)
}

/// Whether [`cut`] can make packets of at most `mtu` bytes of one with these headers.
pub fn can_be_cut<A: Family>(headers: &Headers<A>, mtu: u32) -> bool {
    A::VERSION == 4 && !headers.dont_fragment && u32::from(headers.l4 - headers.l3) + UNIT <= mtu
}

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes, gives them to `out` in order, and says how many
/// there were. A packet that fits goes to `out` itself. A partial checksum is finished first.
///
/// What is cut may be a fragment itself: places and "more fragments" are those in its datagram (RFC 791,
/// section 3.2). Options that are not to be copied are in the first fragment only; in the others "no
/// operation" stands in their place, as the kernel leaves it, so that all headers have one length.
///
/// # Errors
/// The packet and why it was refused: it may not be cut ([`Reason::TooBig`]), or no memory was left
/// ([`Reason::PoolEmpty`]), in which case `out` has had the first fragments already.
pub fn cut<A: Family>(
    mut packet: Packet,
    headers: &Headers<A>,
    mtu: u32,
    out: &mut impl FnMut(Packet),
) -> Result<u32, (Packet, Reason)> {
    let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
    if packet.len() - l3 <= mtu as usize {
        out(packet);
        return Ok(1);
    }
    if !can_be_cut(headers, mtu) {
        return Err((packet, Reason::TooBig));
    }
    finish_partial(&mut packet);
    let header_len = (l4 - l3) as u32;
    let room = (mtu - header_len) & !(UNIT - 1);
    let payload = packet.len() as u32 - l4 as u32;
    let word = Ipv4::new_checked(&packet.head()[l3..]).map_or(0, Ipv4::fragment_word);
    let mut at = 0;
    let mut pieces = 0;
    while at < payload {
        // The last one may be as long as the link allows.
        let len = if payload - at <= mtu - header_len { payload - at } else { room };
        let more = at + len < payload || word & MORE_FRAGMENTS != 0;
        let place = (word & FRAGMENT_OFFSET) + (at / UNIT) as u16;
        let flags = word & DONT_FRAGMENT | if more { MORE_FRAGMENTS } else { 0 };
        let range = l4 + at as usize..l4 + (at + len) as usize;
        let Some(mut piece) = copy(&packet, l4, range) else {
            return Err((packet, Reason::PoolEmpty));
        };
        complete_header(&mut piece.head_mut()[l3..l4], len, flags | place, at > 0);
        out(piece);
        at += len;
        pieces += 1;
    }
    Ok(pieces)
}

/// The first `head` bytes of a packet and its bytes `range`. Nothing when the pool is empty.
fn copy(packet: &Packet, head: usize, range: std::ops::Range<usize>) -> Option<Packet> {
    let mut piece = Packet::copy_of(packet.pool(), packet.port, &packet.head()[..head]).ok()?;
    for bytes in slices(packet, range) {
        piece.extend(bytes).ok()?;
    }
    Some(piece)
}

/// Turns a copy of the packet's header into that of one fragment with `len` bytes.
fn complete_header(header: &mut [u8], len: u32, word: u16, later: bool) {
    let total = header.len() as u32 + len;
    header[field::V4_TOTAL_LENGTH..][..2].copy_from_slice(&(total as u16).to_be_bytes());
    header[field::V4_FRAGMENT..][..2].copy_from_slice(&word.to_be_bytes());
    if later {
        blank_options(&mut header[V4_LEN..]);
    }
    header[field::V4_CHECKSUM..][..2].fill(0);
    let checksum = Sum::of(header).complement();
    header[field::V4_CHECKSUM..][..2].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes "no operation" over the options that later fragments do not have: those without the copied flag.
/// Parsing has found their lengths good.
fn blank_options(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(&kind) = options.get(at).filter(|&&kind| kind != END) {
        let len = match (kind, options.get(at + 1)) {
            (NO_OPERATION, _) | (_, None) => 1,
            (_, Some(&len)) => usize::from(len).clamp(1, options.len() - at),
        };
        if kind & COPIED == 0 {
            options[at..at + len].fill(NO_OPERATION);
        }
        at += len;
    }
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
