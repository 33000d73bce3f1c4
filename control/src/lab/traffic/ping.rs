//! ICMP echo.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Protocol, Type};

use crate::kernel::netns::Netns;
use crate::lab::open_in;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// An echo request (IPv4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// Where to.
    pub to: Ipv4Addr,
    /// Its identifier.
    pub identifier: u16,
    /// Its sequence number.
    pub sequence: u16,
    /// Bytes of data behind the ICMP header.
    pub data_len: usize,
}

/// The answer to an echo request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EchoReply {
    /// Who answered.
    pub from: Ipv4Addr,
    /// TTL on arrival.
    pub ttl: u8,
    /// Time from request to answer.
    pub after: Duration,
}

/// Sends an echo request from a namespace and waits for its answer: none if there was none in time, or none
/// with the data that was sent.
///
/// # Errors
/// Without CAP_NET_RAW, or when the kernel has no route.
pub fn ping(netns: &Netns, echo: Echo, within: Duration) -> io::Result<Option<EchoReply>> {
    let to = SocketAddr::new(IpAddr::V4(echo.to), 0);
    let mut socket = open_in(netns, || super::open(Type::RAW, Protocol::ICMPV4, to, None))?;
    let mut request = vec![ECHO_REQUEST, 0, 0, 0];
    request.extend(echo.identifier.to_be_bytes());
    request.extend(echo.sequence.to_be_bytes());
    request.extend((0..echo.data_len).map(|place| place as u8));
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());

    let start = Instant::now();
    socket.send_to(&request, &to.into())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = within.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        // A raw socket hands over the IP header too.
        let packet = &buffer[..length];
        let Some((header, icmp)) = split_header(packet) else {
            continue;
        };
        if icmp.len() == request.len() && icmp[0] == ECHO_REPLY && icmp[4..] == request[4..] {
            return Ok(Some(EchoReply {
                from: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
                ttl: header[8],
                after: start.elapsed(),
            }));
        }
    }
}

/// The IPv4 header and what follows it.
fn split_header(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    (length >= 20).then(|| packet.split_at_checked(length)).flatten()
}

/// The internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
