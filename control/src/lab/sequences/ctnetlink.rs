//! The kernel's connection table, asked for over netlink: exact, and without a process for each packet.

use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use pollux_dataplane::packet::Protocol;

use super::judge::Entry;
use crate::kernel::netns::Netns;
use crate::lab::open_in;
use crate::lab::twins::packet::Tuple;
use crate::lab::twins::scenario::Family;

/// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h: the subsystem and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;

/// linux/netlink.h.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// linux/netfilter/nf_conntrack_common.h: `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_DYING`.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const DYING: u32 = 1 << 9;

/// Names of the states, by number.
const TCP: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
const SCTP: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// The table of one namespace.
pub(super) struct Table {
    socket: Socket,
    family: Family,
}

impl Table {
    /// Opens it.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub(super) fn open(netns: &Netns, family: Family) -> io::Result<Table> {
        let socket = open_in(netns, || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        })?;
        Ok(Table { socket, family })
    }

    /// All connections of the family.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn list(&mut self) -> io::Result<Vec<Entry>> {
        // A dump during which the table is resized may lack some.
        for _ in 0..5 {
            if let Some(entries) = self.dump()? {
                return Ok(entries);
            }
        }
        Err(io::Error::other("the kernel's connection table did not stand still"))
    }

    fn dump(&mut self) -> io::Result<Option<Vec<Entry>>> {
        let family = match self.family {
            Family::IPv4 => libc::AF_INET,
            Family::IPv6 => libc::AF_INET6,
        };
        let mut request = Vec::with_capacity(20);
        request.extend(20u32.to_ne_bytes());
        request.extend(GET.to_ne_bytes());
        request.extend((REQUEST | DUMP).to_ne_bytes());
        request.extend([0; 8]); // sequence and port
        request.extend([family as u8, 0, 0, 0]); // family, version, resource
        self.socket.send(&request, 0)?;
        let mut entries = Vec::new();
        let mut whole = true;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = &answer[..];
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes(rest[..4].try_into().expect("four")) as usize;
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                whole &= u16::from_ne_bytes([rest[6], rest[7]]) & INTERRUPTED == 0;
                let message = rest.get(..length).filter(|message| message.len() >= 16);
                let message = message.ok_or_else(|| invalid("a message that is cut"))?;
                match kind {
                    DONE => return Ok(whole.then_some(entries)),
                    ERROR => {
                        let code = message
                            .get(16..20)
                            .map_or(0, |code| i32::from_ne_bytes(code.try_into().expect("four")));
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => {
                        let entry = message.get(20..).and_then(entry);
                        entries.extend(entry.ok_or_else(|| invalid("a connection that makes no sense"))?);
                    }
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Attributes: type without flags, value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn number(bytes: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(bytes, wanted)?.try_into().ok()?))
}

/// A connection; `Some(None)` for one that is about to go.
#[allow(clippy::option_option, reason = "cannot be read, or is to be left out")]
fn entry(bytes: &[u8]) -> Option<Option<Entry>> {
    let status = number(bytes, 3)?;
    if status & DYING != 0 {
        return Some(None);
    }
    let original = tuple(attribute(bytes, 1)?)?;
    let reply = tuple(attribute(bytes, 2)?)?;
    let info = attribute(bytes, 4).unwrap_or(&[]);
    let state = |kind: u16, names: &'static [&'static str]| {
        let number = *attribute(attribute(info, kind)?, 1)?.first()?;
        names.get(usize::from(number)).copied()
    };
    let state = match original.protocol {
        Protocol::TCP => Some(state(1, &TCP)?),
        Protocol::SCTP => Some(state(3, &SCTP)?),
        _ => None,
    };
    Some(Some(Entry {
        original,
        reply,
        state,
        seen_reply: status & SEEN_REPLY != 0,
        assured: status & ASSURED != 0,
        remaining: f64::from(number(bytes, 7)?),
    }))
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (addresses, protocol) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let address = |four: u16, six: u16| {
        let v4 = attribute(addresses, four).and_then(|value| <[u8; 4]>::try_from(value).ok());
        let v6 = attribute(addresses, six).and_then(|value| <[u8; 16]>::try_from(value).ok());
        v4.map(IpAddr::from).or(v6.map(IpAddr::from))
    };
    let short = |wanted: u16| {
        attribute(protocol, wanted).and_then(|value| Some(u16::from_be_bytes(value.try_into().ok()?)))
    };
    let byte = |wanted: u16| attribute(protocol, wanted).and_then(|value| value.first().copied());
    let kind = byte(5).or(byte(8)).map(|kind| u16::from_be_bytes([kind, byte(6).or(byte(9)).unwrap_or(0)]));
    Some(Tuple {
        protocol: Protocol(byte(1)?),
        source: address(1, 3)?,
        source_port: short(2).or(short(4)).or(short(7)).unwrap_or(0),
        destination: address(2, 4)?,
        destination_port: short(3).or(kind).unwrap_or(0),
    })
}
