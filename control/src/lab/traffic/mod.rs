//! Real clients and servers in the lab's namespaces, without external programs.
//!
//! A socket belongs to the namespace it was opened in, whatever thread uses it later. So each is opened on a
//! thread in its namespace and used from an ordinary one. Every wait ends: servers when they are dropped,
//! clients at the limit they were given.

mod payload;
mod ping;
mod tcp;
mod udp;

pub use payload::{Digest, Payload};
pub use ping::{Echo, EchoReply, ping};
pub use tcp::{Service, TcpClient, TcpServer, Transfer};
pub use udp::{UdpServer, udp_echo};

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

/// A socket of the calling thread's namespace, bound to `from` if one is given.
fn open(kind: Type, protocol: Protocol, to: SocketAddr, from: Option<SocketAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    if let Some(from) = from {
        // A walk's source port must not wait for the last one's TIME-WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    Ok(socket)
}
