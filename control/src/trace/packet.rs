//! The packet that `trace` asks about: `PROTO SRC[:PORT] > DST[:PORT] [flags] [ttl N]`, as text and as a frame.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use etherparse::err::packet::BuildWriteError;
use etherparse::{Ethernet2Header, IpNumber, PacketBuilder};
use pollux_dataplane::packet::{LinkAddr, Protocol, TcpFlags};

/// A packet, by what the decisions look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketSpec {
    /// TCP, UDP, SCTP, ICMP or any other.
    pub protocol: Protocol,
    /// Source; the port of an ICMP query is its identifier, 0 for protocols without ports.
    pub source: SocketAddr,
    /// Destination; an ICMP packet is an echo request.
    pub destination: SocketAddr,
    /// TCP's flags: SYN when nothing is said.
    pub flags: TcpFlags,
    /// TTL or hop limit: 64 when nothing is said.
    pub ttl: u8,
}

impl FromStr for PacketSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<PacketSpec, String> {
        let mut words = text.split_whitespace();
        let mut next = |what: &str| words.next().ok_or_else(|| format!("packet {text:?}: {what} is missing"));
        let protocol = protocol(next("the protocol")?)?;
        let source = endpoint(next("the source")?, protocol)?;
        if next("`>`")? != ">" {
            return Err(format!("packet {text:?}: `>` must stand between source and destination"));
        }
        let destination = endpoint(next("the destination")?, protocol)?;
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(format!("packet {text:?}: source and destination are of different families"));
        }
        let mut spec = PacketSpec { protocol, source, destination, flags: TcpFlags::SYN, ttl: 64 };
        while let Some(word) = words.next() {
            if word == "ttl" {
                let ttl =
                    words.next().ok_or_else(|| format!("packet {text:?}: the TTL's number is missing"))?;
                spec.ttl = ttl.parse().map_err(|_| format!("packet {text:?}: ttl {ttl} is not 0 to 255"))?;
            } else if protocol == Protocol::TCP {
                spec.flags = flags(word)?;
            } else {
                return Err(format!("packet {text:?}: {word} is not understood (flags are TCP's only)"));
            }
        }
        Ok(spec)
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        "icmp" => Protocol::ICMP,
        "icmpv6" | "icmp6" => Protocol::ICMPV6,
        number => Protocol(number.parse().map_err(|_| {
            format!("{text} is not a protocol (tcp, udp, sctp, icmp, icmpv6, or a number to 255)")
        })?),
    })
}

/// `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`.
fn endpoint(text: &str, protocol: Protocol) -> Result<SocketAddr, String> {
    if let Ok(endpoint) = text.parse::<SocketAddr>() {
        return Ok(endpoint);
    }
    let address: IpAddr = text.parse().map_err(|_| format!("{text} is not ADDRESS or ADDRESS:PORT"))?;
    if protocol.has_ports() {
        return Err(format!("{text}: {protocol} needs a port, {}", SocketAddr::new(address, 80)));
    }
    Ok(SocketAddr::new(address, 0))
}

/// `syn,ack`, or tcpdump's letters: `S`, `S.`, `F.`, `R`, `P.`, `.`.
fn flags(text: &str) -> Result<TcpFlags, String> {
    let one = |name: &str| {
        Some(match name {
            "syn" | "S" => TcpFlags::SYN,
            "ack" | "." => TcpFlags::ACK,
            "fin" | "F" => TcpFlags::FIN,
            "rst" | "R" => TcpFlags::RST,
            "psh" | "P" => TcpFlags::PSH,
            "urg" | "U" => TcpFlags::URG,
            _ => return None,
        })
    };
    let lower = text.to_ascii_lowercase();
    let words: Option<Vec<TcpFlags>> = lower.split(',').map(one).collect();
    let letters = || -> Option<Vec<TcpFlags>> {
        text.trim_matches(['[', ']']).chars().map(|letter| one(letter.encode_utf8(&mut [0; 4]))).collect()
    };
    let all = words.or_else(letters).ok_or_else(|| {
        format!("{text} is not a set of TCP flags (syn,ack,fin,rst,psh,urg or S. F. R P. .)")
    })?;
    Ok(all.into_iter().fold(TcpFlags::default(), TcpFlags::with))
}

impl Display for PacketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |endpoint: SocketAddr| match self.protocol.has_ports() {
            true => endpoint.to_string(),
            false => endpoint.ip().to_string(),
        };
        write!(f, "{} {} > {}", self.protocol, show(self.source), show(self.destination))?;
        if self.protocol == Protocol::TCP { write!(f, " {:?}", self.flags) } else { Ok(()) }
    }
}

impl PacketSpec {
    /// The answer to the packet, as it looks on the wire where this one does: TCP with these flags.
    pub fn answer(&self, flags: TcpFlags) -> PacketSpec {
        PacketSpec { source: self.destination, destination: self.source, flags, ttl: 64, ..*self }
    }

    /// The frame. ICMP is an echo request, or the reply when `echo` says so.
    pub fn frame(&self, link_source: LinkAddr, link_destination: LinkAddr, echo: Echo) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(link_source.0, link_destination.0);
        let step = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                link.ipv4(source.octets(), destination.octets(), self.ttl)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                link.ipv6(source.octets(), destination.octets(), self.ttl)
            }
            _ => unreachable!("one family, checked when it was read"),
        };
        let (source, destination) = (self.source.port(), self.destination.port());
        match self.protocol {
            Protocol::TCP => {
                let mut tcp = step.tcp(source, destination, 1, 0xffff);
                let has = |flag| self.flags.contains(flag);
                tcp = if has(TcpFlags::SYN) { tcp.syn() } else { tcp };
                tcp = if has(TcpFlags::FIN) { tcp.fin() } else { tcp };
                tcp = if has(TcpFlags::RST) { tcp.rst() } else { tcp };
                tcp = if has(TcpFlags::PSH) { tcp.psh() } else { tcp };
                tcp = if has(TcpFlags::ACK) { tcp.ack(1) } else { tcp };
                tcp = if has(TcpFlags::URG) { tcp.urg(0) } else { tcp };
                written(|out| tcp.write(out, &[]))
            }
            Protocol::UDP => written(|out| step.udp(source, destination).write(out, b"trace")),
            Protocol::ICMP if echo == Echo::Request => {
                written(|out| step.icmpv4_echo_request(source, 1).write(out, &[0; 56]))
            }
            Protocol::ICMP => written(|out| step.icmpv4_echo_reply(source, 1).write(out, &[0; 56])),
            Protocol::ICMPV6 if echo == Echo::Request => {
                written(|out| step.icmpv6_echo_request(source, 1).write(out, &[0; 56]))
            }
            Protocol::ICMPV6 => written(|out| step.icmpv6_echo_reply(source, 1).write(out, &[0; 56])),
            Protocol::SCTP => written(|out| step.write(out, IpNumber::SCTP, &sctp_init(source, destination))),
            Protocol(number) => written(|out| step.write(out, IpNumber(number), &[0; 8])),
        }
    }
}

/// Which half of an echo an ICMP packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Echo {
    /// It asks.
    Request,
    /// It answers.
    Reply,
}

fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(Ethernet2Header::LEN + 128);
    write(&mut frame).expect("a small packet in memory");
    frame
}

/// The common header and an INIT chunk (RFC 9260), its CRC left to whoever checks: nobody on this path.
fn sctp_init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(32);
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let crc = {
        let mut crc = pollux_dataplane::packet::crc32c::Crc32c::new();
        crc.update(&packet);
        crc.finish()
    };
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_the_contract_says() {
        let syn: PacketSpec = "tcp 172.16.1.50:56060 > 10.150.18.86:80".parse().unwrap();
        assert_eq!((syn.protocol, syn.flags, syn.ttl), (Protocol::TCP, TcpFlags::SYN, 64));
        let fin: PacketSpec = "TCP 1.2.3.4:1 > 5.6.7.8:2 F. ttl 3".parse().unwrap();
        assert_eq!((fin.flags, fin.ttl), (TcpFlags::FIN.with(TcpFlags::ACK), 3));
        let named: PacketSpec = "tcp 1.2.3.4:1 > 5.6.7.8:2 syn,ack".parse().unwrap();
        assert_eq!(named.flags, TcpFlags::SYN.with(TcpFlags::ACK));
        let echo: PacketSpec = "icmp 172.16.1.50 > 10.150.18.86".parse().unwrap();
        assert_eq!(echo.source.port(), 0);
        let six: PacketSpec = "udp [fd00::1]:53 > [fd00::2]:53".parse().unwrap();
        assert!(six.source.is_ipv6());
    }

    #[test]
    fn bad_packets_are_refused_with_the_word_that_is_wrong() {
        let refused = |text: &str| text.parse::<PacketSpec>().unwrap_err();
        assert!(refused("tcp 1.2.3.4 > 5.6.7.8:2").contains("needs a port"));
        assert!(refused("tcp 1.2.3.4:1 5.6.7.8:2").contains('>'));
        assert!(refused("tcp 1.2.3.4:70000 > 5.6.7.8:2").contains("1.2.3.4:70000"));
        assert!(refused("foo 1.2.3.4:1 > 5.6.7.8:2").contains("foo"));
        assert!(refused("udp 1.2.3.4:1 > 5.6.7.8:2 S").contains('S'));
        assert!(refused("tcp 1.2.3.4:1 > [::1]:2").contains("families"));
        assert!(refused("tcp 1.2.3.4:1 > 5.6.7.8:2 X").contains('X'));
        assert!(refused("udp 1.2.3.4:1 > 5.6.7.8:2 ttl 256").contains("256"));
    }
}
