//! Frames and packets of one twin: everybody else's ends of its cables, and the node's own stack.
//!
//! Of Pollux's node the stack is the far end of the host port. Of the kernel's node it is the kernel's: raw
//! sockets send with a header of our own and see what is delivered, after translation. What that stack would
//! answer by itself (a RST, an echo reply, port unreachable) has no counterpart on the other side and is
//! kept from it: see `kernel.rs`.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, recv, recvmsg, send, setsockopt, sockopt,
};
use pollux_dataplane::packet::{LinkAddr, Protocol};
use socket2::{Domain, Socket, Type};

use super::packet::Seen;
use super::scenario::Family;
use super::site::Site;
use crate::kernel::netns::Netns;
use crate::lab::open_in;
use crate::lab::sys::{Use, packet_socket};

/// Room for frames until they are read, bytes of kernel memory; less where the user may not have so much.
const RECEIVE_BUFFER: usize = 8 << 20;

const ETHERNET: usize = 14;

/// Where a packet enters or leaves a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(in crate::lab) enum Place {
    /// A port, by number: 0 is the uplink.
    Port(usize),
    /// The node itself.
    Host,
}

/// Whether a frame was from and to the link addresses that belong to its cable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::lab) enum Addressed {
    Rightly,
    Wrongly,
}

/// A packet of ours that came out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::lab) struct Sighting {
    pub(in crate::lab) place: Place,
    pub(in crate::lab) seen: Seen,
}

/// One twin's ends.
pub(in crate::lab) struct Wire {
    ends: Vec<End>,
    host: Host,
    buffer: Vec<u8>,
}

/// The far end of a cable.
struct End {
    socket: OwnedFd,
    near: LinkAddr,
    far: LinkAddr,
}

enum Host {
    Port(End),
    Stack(Stack),
}

/// The kernel's own stack.
struct Stack {
    netns: Netns,
    family: Family,
    receivers: Vec<(Protocol, Socket)>,
    senders: HashMap<IpAddr, Socket>,
    absorbers: HashMap<u16, Socket>,
}

impl End {
    fn open(outside: &Netns, interface: &str, near: LinkAddr, far: LinkAddr) -> io::Result<End> {
        let socket = open_in(outside, || packet_socket(interface, Use::Exchange))?;
        widen(&socket)?;
        Ok(End { socket, near, far })
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(ETHERNET + packet.len());
        frame.extend(self.near.0);
        frame.extend(self.far.0);
        frame.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
        frame.extend(packet);
        send(self.socket.as_raw_fd(), &frame, MsgFlags::empty())?;
        Ok(())
    }
}

/// Makes room in a socket, as much as this user may have.
fn widen(socket: &impl AsFd) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(())
}

impl Wire {
    /// The ends of the kernel's node.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub(in crate::lab) fn of_kernel(
        site: &Site,
        family: Family,
        outside: &Netns,
        node: &Netns,
    ) -> io::Result<Wire> {
        Ok(Wire {
            ends: ends(site, outside, "k")?,
            host: Host::Stack(Stack::open(family, node)?),
            buffer: vec![0; 1 << 16],
        })
    }

    /// The ends of Pollux's node.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub(in crate::lab) fn of_pollux(site: &Site, outside: &Netns) -> io::Result<Wire> {
        let host = End::open(outside, "h0", LinkAddr([2, 0, 0, 0, 3, 0]), LinkAddr([2, 0, 0, 0, 4, 0]))?;
        Ok(Wire { ends: ends(site, outside, "p")?, host: Host::Port(host), buffer: vec![0; 1 << 16] })
    }

    /// Lets a packet enter. What the node's own stack refuses to send at once is lost, as on the way.
    ///
    /// # Errors
    /// When the socket fails.
    pub(in crate::lab) fn send(
        &mut self,
        place: Place,
        source: IpAddr,
        destination: IpAddr,
        packet: &[u8],
    ) -> io::Result<()> {
        match (place, &mut self.host) {
            (Place::Port(number), _) => self.ends[number].send(packet),
            (Place::Host, Host::Port(end)) => end.send(packet),
            (Place::Host, Host::Stack(stack)) => stack.send(source, destination, packet),
        }
    }

    /// Has the node's own stack take UDP datagrams for these ports silently, and no others.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub(in crate::lab) fn absorb(&mut self, ports: impl Iterator<Item = u16>) -> io::Result<()> {
        match &mut self.host {
            Host::Port(_) => Ok(()),
            Host::Stack(stack) => stack.absorb(ports),
        }
    }

    /// What has come out, in the order of each end. Answers who asks for link addresses.
    ///
    /// # Errors
    /// When a socket fails.
    pub(in crate::lab) fn receive(&mut self, seen: &mut Vec<Sighting>) -> io::Result<()> {
        self.receive_packets(&mut |place, packet, addressed| {
            if let Some(mut packet) = Seen::read(packet) {
                packet.sound &= addressed == Addressed::Rightly;
                seen.push(Sighting { place, seen: packet });
            }
        })
    }

    /// What has come out, packet by packet, in the order of each end. Answers who asks for link addresses.
    ///
    /// # Errors
    /// When a socket fails.
    pub(in crate::lab) fn receive_packets(
        &mut self,
        each: &mut dyn FnMut(Place, &[u8], Addressed),
    ) -> io::Result<()> {
        let ends = self.ends.iter().enumerate().map(|(number, end)| (Place::Port(number), end));
        let host = match &self.host {
            Host::Port(end) => Some((Place::Host, end)),
            Host::Stack(_) => None,
        };
        for (place, end) in ends.chain(host) {
            loop {
                let length = match recv(end.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => length,
                    Err(nix::Error::EAGAIN) => break,
                    Err(nix::Error::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                let frame = &self.buffer[..length];
                if let Some(answer) = link_answer(frame, end.far) {
                    send(end.socket.as_raw_fd(), &answer, MsgFlags::empty())?;
                } else if let Some(packet) = frame.get(ETHERNET..) {
                    // To somebody else's link address nobody would have received it. The host port's frames
                    // are the agent's own affair.
                    let rightly = place == Place::Host || frame[..12] == [end.far.0, end.near.0].concat()[..];
                    each(place, packet, if rightly { Addressed::Rightly } else { Addressed::Wrongly });
                }
            }
        }
        match &mut self.host {
            Host::Port(_) => Ok(()),
            Host::Stack(stack) => stack.receive(&mut self.buffer, each),
        }
    }

    /// The sockets, to wait for.
    pub(in crate::lab) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let ends = self.ends.iter().map(|end| end.socket.as_fd());
        let host: Vec<BorrowedFd<'_>> = match &self.host {
            Host::Port(end) => vec![end.socket.as_fd()],
            Host::Stack(stack) => stack.receivers.iter().map(|(_, socket)| socket.as_fd()).collect(),
        };
        ends.chain(host)
    }
}

fn ends(site: &Site, outside: &Netns, side: &str) -> io::Result<Vec<End>> {
    let open =
        |number| End::open(outside, &format!("{side}{number}"), Site::link(number), Site::far_link(number));
    (0..site.ports.len()).map(open).collect()
}

impl Stack {
    fn open(family: Family, netns: &Netns) -> io::Result<Stack> {
        let icmp = match family {
            Family::IPv4 => Protocol::ICMP,
            Family::IPv6 => Protocol::ICMPV6,
        };
        let receivers = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, icmp].map(|protocol| {
            let socket = raw(netns, family, protocol.0)?;
            widen(&socket)?;
            if family == Family::IPv6 {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            }
            Ok((protocol, socket))
        });
        Ok(Stack {
            netns: netns.clone(),
            family,
            receivers: receivers.into_iter().collect::<io::Result<_>>()?,
            senders: HashMap::new(),
            absorbers: HashMap::new(),
        })
    }

    /// Sends from a socket that is bound to the source, so that the kernel looks for a route from there.
    fn send(&mut self, source: IpAddr, destination: IpAddr, packet: &[u8]) -> io::Result<()> {
        if !self.senders.contains_key(&source) {
            let socket = raw(&self.netns, self.family, libc::IPPROTO_RAW as u8)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
            self.senders.insert(source, socket);
        }
        match self.senders[&source].send_to(packet, &SocketAddr::new(destination, 0).into()) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(
                    libc::EPERM
                    | libc::EACCES
                    | libc::EINVAL
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH
                    | libc::ECONNREFUSED
                    | libc::EPROTO,
                ) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn absorb(&mut self, ports: impl Iterator<Item = u16>) -> io::Result<()> {
        let domain = domain(self.family);
        let any: IpAddr = match self.family {
            Family::IPv4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::IPv6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let old = std::mem::take(&mut self.absorbers);
        let wanted: Vec<u16> = ports.filter(|port| *port != 0).collect();
        self.absorbers = open_in(&self.netns, || {
            let mut old = old;
            let mut absorbers = HashMap::new();
            for port in wanted {
                if absorbers.contains_key(&port) {
                    continue;
                }
                let socket = match old.remove(&port) {
                    Some(socket) => socket,
                    None => {
                        let socket = Socket::new(domain, Type::DGRAM, None)?;
                        socket.set_recv_buffer_size(1)?;
                        socket.bind(&SocketAddr::new(any, port).into())?;
                        socket
                    }
                };
                absorbers.insert(port, socket);
            }
            Ok(absorbers)
        })?;
        Ok(())
    }

    fn receive(
        &mut self,
        buffer: &mut [u8],
        each: &mut dyn FnMut(Place, &[u8], Addressed),
    ) -> io::Result<()> {
        for (protocol, socket) in &self.receivers {
            loop {
                let packet = match self.family {
                    Family::IPv4 => receive_v4(socket, buffer),
                    Family::IPv6 => receive_v6(socket, *protocol, buffer),
                };
                match packet {
                    Ok(packet) => each(Place::Host, &packet, Addressed::Rightly),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn domain(family: Family) -> Domain {
    match family {
        Family::IPv4 => Domain::IPV4,
        Family::IPv6 => Domain::IPV6,
    }
}

fn raw(netns: &Netns, family: Family, protocol: u8) -> io::Result<Socket> {
    let socket = open_in(netns, || Socket::new(domain(family), Type::RAW, Some(i32::from(protocol).into())))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn receive_v4(socket: &Socket, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
    let length = recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?;
    Ok(buffer[..length].to_vec())
}

/// A raw IPv6 socket gives no header; it is put together again from what the socket says about the packet.
fn receive_v6(socket: &Socket, protocol: Protocol, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, i32);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let source = message.address.map_or(Ipv6Addr::UNSPECIFIED, |address| address.ip());
    let (mut destination, mut hop_limit) = (Ipv6Addr::UNSPECIFIED, 0);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv6PacketInfo(info) => destination = info.ipi6_addr.s6_addr.into(),
            ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = limit as u8,
            _ => {}
        }
    }
    let length = message.bytes;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((length as u16).to_be_bytes());
    packet.extend([protocol.0, hop_limit]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(&buffer[..length]);
    Ok(packet)
}

/// The answer to a question for a link address (ARP, neighbour solicitation): ours, whatever is asked for.
fn link_answer(frame: &[u8], ours: LinkAddr) -> Option<Vec<u8>> {
    let asker = frame.get(6..12)?;
    let head = |kind: [u8; 2]| [asker, &ours.0, &kind].concat();
    match frame.get(12..14)? {
        [8, 6] if frame.len() >= 42 && frame[20..22] == [0, 1] => {
            let mut answer = head([8, 6]);
            answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend(ours.0);
            answer.extend(&frame[38..42]);
            answer.extend(&frame[22..32]);
            Some(answer)
        }
        [0x86, 0xdd] if frame.len() >= 78 && frame[20] == 58 && frame[54] == 135 => {
            let (asking, target) = (&frame[22..38], &frame[62..78]);
            if asking.iter().all(|byte| *byte == 0) {
                return None; // somebody looks whether the address is in use
            }
            let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
            message.extend(target);
            message.extend([2, 1]);
            message.extend(ours.0);
            let mut pseudo = [target, asking].concat();
            pseudo.extend((message.len() as u32).to_be_bytes());
            pseudo.extend([0, 0, 0, 58]);
            let checksum = !super::packet::sum(super::packet::sum(0, &pseudo), &message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
            let mut answer = head([0x86, 0xdd]);
            answer.extend([0x60, 0, 0, 0]);
            answer.extend((message.len() as u16).to_be_bytes());
            answer.extend([58, 255]);
            answer.extend(target);
            answer.extend(asking);
            answer.extend(message);
            Some(answer)
        }
        _ => None,
    }
}
