//! Which XDP program an interface has, asked by rtnetlink, and how to detach one that hangs on no link.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Flags of an attachment (linux/if_link.h).
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;

/// An attached program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attached {
    /// Its number in the kernel.
    pub(super) program: u32,
    /// How it is attached, as a flag.
    flags: u32,
}

/// The program at an interface of the thread's network namespace.
pub(super) fn at(interface: i32) -> io::Result<Option<Attached>> {
    let message = RouteNetlinkMessage::GetLink(link(interface));
    let answer = ask(message, 0)?;
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else { return Ok(None) };
    let xdp = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    let xdp = xdp.unwrap_or_default();
    let flags = if xdp.iter().any(|part| matches!(part, LinkXdp::Attached(XdpAttached::SocketBuffer))) {
        GENERIC
    } else {
        NATIVE
    };
    Ok(xdp.iter().find_map(|part| match part {
        LinkXdp::ProgId(program) if *program != 0 => Some(Attached { program: *program, flags }),
        _ => None,
    }))
}

/// Detaches a program. The kernel refuses it for one that hangs on a link.
pub(super) fn detach(interface: i32, attached: Attached) -> io::Result<()> {
    let mut link = link(interface);
    link.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(attached.flags)]));
    ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}

fn link(interface: i32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = interface.cast_unsigned();
    link
}

/// Sends a request and returns its one answer; nothing when that is an acknowledgement.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(inner) => Ok(Some(inner)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}
