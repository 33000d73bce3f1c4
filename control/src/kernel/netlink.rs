//! Requests to rtnetlink, one at a time, on a socket of the calling thread's network namespace.
//!
//! Below the crate rtnetlink, on the packets and sockets that it is itself made of, because the mirror has
//! to see what its handle hides: that a dump was interrupted by a change, that notifications were lost, and
//! the flags of a notification, which say where among its equals a route stands. And setting up the host's
//! side of a port is a handful of requests before any runtime exists.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel never builds a larger datagram (`NLMSG_GOODSIZE` is at most 32 KiB; one message that needs
/// more, such as a link with very many virtual functions, is announced by truncation, and is then an error).
const DATAGRAM: usize = 64 << 10;

/// How often an interrupted dump is started again. A table that changes all the time may never be dumped in
/// one piece; what the last dump lacks is then in the notifications.
const DUMP_ATTEMPTS: usize = 8;

/// A socket for requests.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace; it stays there, wherever it is used.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Wider dumps than asked for would be filtered here anyway; kernels before 4.20 refuse the option.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Netlink { socket, sequence: 0, datagram: Vec::with_capacity(DATAGRAM) })
    }

    /// Asks for a table and returns its messages. Messages that cannot be read are left out and counted.
    pub(super) fn dump(&mut self, request: &RouteNetlinkMessage) -> io::Result<Dump> {
        let mut dump = Dump::default();
        for _ in 0..DUMP_ATTEMPTS {
            dump = self.dump_once(request)?;
            if !dump.interrupted {
                break;
            }
        }
        Ok(dump)
    }

    fn dump_once(&mut self, request: &RouteNetlinkMessage) -> io::Result<Dump> {
        self.send(request, NLM_F_DUMP)?;
        let mut dump = Dump::default();
        loop {
            let sequence = self.sequence;
            for message in self.receive()? {
                let message = match message {
                    Ok(message) => message,
                    Err(_) => {
                        dump.unreadable += 1;
                        continue;
                    }
                };
                // An answer to an earlier request that was given up.
                if message.header.sequence_number != sequence {
                    continue;
                }
                dump.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => dump.messages.push(inner),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok(dump),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Asks for a change, with these flags beside `NLM_F_ACK`, and waits until the kernel has made it.
    pub(super) fn change(&mut self, request: &RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        loop {
            let sequence = self.sequence;
            for message in self.receive()? {
                let message = message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                if let NetlinkPayload::Error(error) = message.payload {
                    // An error whose code is zero is the acknowledgement.
                    return match error.code {
                        None => Ok(()),
                        Some(_) => Err(error.to_io()),
                    };
                }
            }
        }
    }

    fn send(&mut self, request: &RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request.clone()));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    fn receive(&mut self) -> io::Result<Messages<'_>> {
        receive(&self.socket, &mut self.datagram, 0)
    }
}

/// A dumped table.
#[derive(Default)]
pub(super) struct Dump {
    /// The messages, in the kernel's order.
    pub(super) messages: Vec<RouteNetlinkMessage>,
    /// The table changed while it was dumped, also in the last attempt.
    pub(super) interrupted: bool,
    /// Messages that the library could not read.
    pub(super) unreadable: u64,
}

/// Receives one datagram into `datagram`.
///
/// `ENOBUFS` is the kernel's way to say that notifications were lost.
pub(super) fn receive<'a>(
    socket: &Socket,
    datagram: &'a mut Vec<u8>,
    flags: libc::c_int,
) -> io::Result<Messages<'a>> {
    datagram.clear();
    datagram.reserve(DATAGRAM);
    // With MSG_TRUNC the real length comes back, also of a datagram that did not fit.
    let (length, _) = loop {
        match socket.recv_from(datagram, flags | libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if length > datagram.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a netlink message of {length} bytes, where the kernel promises less"),
        ));
    }
    Ok(Messages { rest: datagram })
}

/// The messages of one datagram.
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

/// Length of a message's header (netlink(7)).
const HEADER: usize = 16;

impl Iterator for Messages<'_> {
    /// The message; or the type of one that the library cannot read, with its complaint.
    type Item = Result<NetlinkMessage<RouteNetlinkMessage>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; HEADER] = self.rest.first_chunk()?;
        let [a, b, c, d, e, f, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        if length < HEADER || length > self.rest.len() {
            self.rest = &[];
            return None;
        }
        let (message, _) = self.rest.split_at(length);
        // Messages are padded to four bytes.
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(
            NetlinkMessage::deserialize(message).map_err(|error| Unreadable {
                message_type: u16::from_ne_bytes([e, f]),
                why: error.to_string(),
            }),
        )
    }
}

/// A message that the library cannot read: a new kind, or an attribute it does not know.
#[derive(Debug, thiserror::Error)]
#[error("a netlink message of type {message_type} cannot be read: {why}")]
pub(super) struct Unreadable {
    /// `RTM_…` (rtnetlink(7)).
    pub(super) message_type: u16,
    why: String,
}
