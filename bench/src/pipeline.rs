//! What the pipeline is measured with: connections from outside to a Service, translated at both ends, played
//! through [`Forwarder::forward`] in bursts of 32, and every frame that leaves looked at.
//!
//! What keeps the figures honest:
//! - frames lie in a ring of [`RING`] buffers (8 MiB) in shuffled order, not in one that stays hot;
//! - flows are played in an order that has nothing to do with that of their creation, directions mixed;
//! - a frame's number travels in its payload, and what leaves is taken apart by another implementation
//!   (etherparse): addresses, ports, TTL, link addresses, both checksums.
//!
//! Frames are put back into their first state between runs, which is not measured.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{LinkHeader, NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use pollux_dataplane::flow::Tick;
use pollux_dataplane::forward::{Forwarder, Output};
use pollux_dataplane::packet::{BURST, Burst, LinkAddr, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::time::Instant;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::Work;
use crate::node::{self, BACKENDS, ENS3, ENS3_LINK, GATEWAY_LINK, NODE, Place, SERVICE};

/// Frames in the ring.
pub const RING: usize = 4096;
/// Bytes of a frame: the shortest that Ethernet has, without its checksum.
pub const FRAME: usize = 60;
const PAYLOAD: usize = FRAME - 54;
/// Connections that the flow table has room for.
const CAPACITY: usize = 1 << 16;
const TTL: u8 = 64;
/// What the clock moves on by with each burst.
const BURST_TIME: std::time::Duration = std::time::Duration::from_micros(1);

/// TCP flags of the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flags {
    Syn,
    SynAck,
    Ack,
}

/// A frame as it comes in.
#[derive(Clone)]
struct Frame {
    port: PortId,
    bytes: [u8; FRAME],
}

/// A frame as another implementation reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Decoded {
    link: (LinkAddr, LinkAddr),
    source: SocketAddrV4,
    destination: SocketAddrV4,
    ttl: u8,
    flags: Flags,
    number: u32,
}

/// A connection as its first packet left: what its backend sees.
#[derive(Clone, Copy)]
struct Connection {
    client: SocketAddrV4,
    masqueraded: SocketAddrV4,
    backend: &'static Place,
}

/// The frames that the forwarder sent, in order.
struct Sent(Vec<(PortId, Packet)>);

impl Output for Sent {
    #[inline]
    fn send(&mut self, port: PortId, packet: Packet) {
        self.0.push((port, packet));
    }
}

/// A forwarder, and the bursts that are played through it.
struct Player {
    forwarder: Forwarder,
    bursts: Vec<Burst>,
    sent: Sent,
    now: Instant,
}

impl Player {
    fn new(pool: &'static Pool) -> Player {
        Player {
            forwarder: node::forwarder(pool, CAPACITY),
            bursts: Vec::new(),
            sent: Sent(Vec::with_capacity(RING)),
            now: Instant::from_secs(1),
        }
    }

    /// Loads packets to be played.
    fn load(&mut self, packets: impl IntoIterator<Item = Packet>) {
        self.bursts.clear();
        for packet in packets {
            match self.bursts.last_mut() {
                Some(burst) if !burst.is_full() => burst.push(packet),
                _ => self.bursts.push(Burst::from_iter([packet])),
            }
        }
    }

    /// Plays them.
    fn play(&mut self) {
        for burst in &mut self.bursts {
            self.now = self.now + BURST_TIME;
            self.forwarder.forward(burst, self.now, &mut self.sent);
        }
    }

    /// Plays frames that are not measured, and what was sent.
    fn exchange(&mut self, pool: &'static Pool, frames: &[Frame]) -> Vec<(PortId, Decoded)> {
        let packets = frames.iter().map(|frame| frame.packet(pool));
        self.load(packets.collect::<Vec<_>>());
        self.play();
        self.sent.0.drain(..).map(|(port, packet)| (port, Decoded::of(packet.head()))).collect()
    }
}

/// Packets of established connections, both directions mixed.
pub struct Established {
    player: Player,
    frames: Vec<Frame>,
    /// What each frame leaves as; verified by [`Established::new`].
    expected: Vec<Frame>,
}

impl Established {
    /// Opens `connections`, plays the whole ring once and verifies every frame.
    ///
    /// # Panics
    /// When a frame is lost or leaves with a wrong address, port, TTL, link address or checksum.
    pub fn new(connections: usize) -> Established {
        let pool = Pool::new(2 * RING).expect("16 MiB can be mapped");
        let mut random = StdRng::seed_from_u64(1);
        let mut player = Player::new(pool);
        let connections = open(&mut player, pool, connections);

        // Every (connection, direction) as often as any other, in an order of its own each time.
        let mut order: Vec<usize> = Vec::new();
        while order.len() < RING {
            let mut round: Vec<usize> = (0..connections.len() * 2).collect();
            round.shuffle(&mut random);
            order.extend(round);
        }
        order.truncate(RING);
        let flows = order.iter().map(|&flow| (&connections[flow / 2], flow % 2 == 0));
        let frames: Vec<Frame> = flows
            .clone()
            .enumerate()
            .map(|(number, (connection, there))| connection.frame(there, Flags::Ack, number as u32))
            .collect();

        player.load(ring(pool, &frames, &mut random));
        player.play();
        assert_eq!(player.sent.0.len(), RING, "frames were lost: {:?}", player.forwarder.stats());
        for (number, ((port, packet), (connection, there))) in player.sent.0.iter().zip(flows).enumerate() {
            let wanted = connection.leaving(there, Flags::Ack, number as u32);
            assert_eq!((*port, Decoded::of(packet.head())), wanted, "frame {number}");
        }
        let expected = player.sent.0.iter().map(|(port, packet)| Frame::of(*port, packet.head())).collect();
        let mut work = Established { player, frames, expected };
        work.check();
        work
    }
}

impl Work for Established {
    fn operations(&self) -> u64 {
        RING as u64
    }

    fn run(&mut self) {
        self.player.play();
    }

    fn check(&mut self) -> u64 {
        let sent: Vec<_> = self.player.sent.0.drain(..).collect();
        let right = sent
            .iter()
            .zip(&self.expected)
            .filter(|((port, packet), wanted)| *port == wanted.port && packet.head() == wanted.bytes)
            .count();
        self.player
            .load(sent.into_iter().zip(&self.frames).map(|((_, packet), frame)| frame.restore(packet)));
        right as u64
    }
}

/// First packets: every one opens a connection. The table is empty at the beginning of each run.
pub struct Openings {
    player: Player,
    /// The whole ring; a run plays the next [`Openings::FLOWS`] of it.
    frames: Vec<Frame>,
    waiting: std::collections::VecDeque<Packet>,
    next: usize,
}

impl Openings {
    /// Connections that a run opens.
    pub const FLOWS: usize = 1024;

    /// Opens a connection with every frame of the ring and verifies all of them.
    ///
    /// # Panics
    /// As [`Established::new`].
    pub fn new() -> Openings {
        let pool = Pool::new(2 * RING).expect("16 MiB can be mapped");
        let mut random = StdRng::seed_from_u64(2);
        let player = Player::new(pool);
        let frames: Vec<Frame> = clients(RING, &mut random)
            .into_iter()
            .enumerate()
            .map(|(number, client)| opening(client, number as u32))
            .collect();
        let waiting = ring(pool, &frames, &mut random).into();
        let mut work = Openings { player, frames, waiting, next: 0 };
        work.ready();
        for _ in 0..RING / Openings::FLOWS {
            let first = work.next;
            work.run();
            assert_eq!(work.player.sent.0.len(), Openings::FLOWS, "{:?}", work.player.forwarder.stats());
            for (number, (port, packet)) in (first..).zip(&work.player.sent.0) {
                let came = Decoded::of(&work.frames[number].bytes);
                let connection = Connection::seen(came.source, &Decoded::of(packet.head()));
                let wanted = connection.leaving(true, Flags::Syn, number as u32);
                assert_eq!((*port, Decoded::of(packet.head())), wanted, "frame {number}");
            }
            assert_eq!(work.player.forwarder.flows_v4().len(), Openings::FLOWS);
            work.check();
        }
        work
    }

    fn ready(&mut self) {
        self.player.load(self.waiting.drain(..Openings::FLOWS));
    }
}

impl Default for Openings {
    fn default() -> Self {
        Openings::new()
    }
}

impl Work for Openings {
    fn operations(&self) -> u64 {
        Openings::FLOWS as u64
    }

    fn run(&mut self) {
        self.player.play();
    }

    fn check(&mut self) -> u64 {
        let flows = self.player.forwarder.flows_v4();
        let right = flows.len().min(self.player.sent.0.len());
        let now = Tick::from(self.player.now);
        let (all, rest) = flows.list(0, usize::MAX, now);
        assert!(rest.is_none(), "one listing shows all");
        for flow in all {
            flows.remove(flow.entry);
        }
        for ((_, packet), frame) in self.player.sent.0.drain(..).zip(&self.frames[self.next..]) {
            self.waiting.push_back(frame.restore(packet));
        }
        self.next = (self.next + Openings::FLOWS) % RING;
        self.ready();
        right as u64
    }
}

/// Opens connections: SYN, SYN-ACK, ACK. Both directions have been used then.
fn open(player: &mut Player, pool: &'static Pool, count: usize) -> Vec<Connection> {
    let mut random = StdRng::seed_from_u64(3);
    clients(count, &mut random)
        .into_iter()
        .map(|client| {
            let [(_, syn)] = player.exchange(pool, &[opening(client, 0)])[..] else {
                panic!("the first packet was not sent: {:?}", player.forwarder.stats());
            };
            let connection = Connection::seen(client, &syn);
            for (there, flags) in [(false, Flags::SynAck), (true, Flags::Ack), (false, Flags::Ack)] {
                let sent = player.exchange(pool, &[connection.frame(there, flags, 0)]);
                assert_eq!(sent, [connection.leaving(there, flags, 0)]);
            }
            connection
        })
        .collect()
}

/// Different clients, addresses of the range that RFC 2544 sets aside for benchmarks.
fn clients(count: usize, random: &mut StdRng) -> Vec<SocketAddrV4> {
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 1));
    (0..count as u32)
        .map(|number| SocketAddrV4::new(Ipv4Addr::from(first + number), random.random_range(1024..=u16::MAX)))
        .collect()
}

/// One packet for each frame, in buffers of shuffled order.
fn ring(pool: &'static Pool, frames: &[Frame], random: &mut StdRng) -> Vec<Packet> {
    let mut packets: Vec<Packet> = frames.iter().map(|frame| frame.packet(pool)).collect();
    packets.shuffle(random);
    packets.into_iter().zip(frames).map(|(packet, frame)| frame.restore(packet)).collect()
}

/// The first packet of a client's connection to the Service.
fn opening(client: SocketAddrV4, number: u32) -> Frame {
    Frame::new(ENS3, (GATEWAY_LINK, ENS3_LINK), client, SERVICE, Flags::Syn, number)
}

impl Connection {
    /// The connection whose first packet left as `syn`; whether that is right is not asked here.
    fn seen(client: SocketAddrV4, syn: &Decoded) -> Connection {
        let backend = BACKENDS.iter().find(|place| place.address == syn.destination);
        let backend = backend.unwrap_or_else(|| panic!("{} is no backend", syn.destination));
        Connection { client, masqueraded: SocketAddrV4::new(NODE, syn.source.port()), backend }
    }

    /// A packet of the connection as it comes in: `there` from the client, else from the backend.
    fn frame(&self, there: bool, flags: Flags, number: u32) -> Frame {
        if there {
            Frame::new(ENS3, (GATEWAY_LINK, ENS3_LINK), self.client, SERVICE, flags, number)
        } else {
            let links = (self.backend.link, self.backend.port_link);
            Frame::new(self.backend.port, links, self.backend.address, self.masqueraded, flags, number)
        }
    }

    /// The same packet as it has to leave, and by which port.
    fn leaving(&self, there: bool, flags: Flags, number: u32) -> (PortId, Decoded) {
        let (port, link, source, destination) = if there {
            let links = (self.backend.port_link, self.backend.link);
            (self.backend.port, links, self.masqueraded, self.backend.address)
        } else {
            (ENS3, (ENS3_LINK, GATEWAY_LINK), SERVICE, self.client)
        };
        (port, Decoded { link, source, destination, ttl: TTL - 1, flags, number })
    }
}

impl Frame {
    fn new(
        port: PortId,
        (link_source, link_destination): (LinkAddr, LinkAddr),
        source: SocketAddrV4,
        destination: SocketAddrV4,
        flags: Flags,
        number: u32,
    ) -> Frame {
        let tcp = PacketBuilder::ethernet2(link_source.0, link_destination.0)
            .ipv4(source.ip().octets(), destination.ip().octets(), TTL)
            .tcp(source.port(), destination.port(), if flags == Flags::Ack { 1001 } else { 1000 }, 4096);
        let tcp = match flags {
            Flags::Syn => tcp.syn(),
            Flags::SynAck => tcp.syn().ack(1001),
            Flags::Ack => tcp.ack(1001),
        };
        let mut payload = [0; PAYLOAD];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let mut bytes = Vec::with_capacity(FRAME);
        tcp.write(&mut bytes, &payload).expect("a vector takes every frame");
        Frame::of(port, &bytes)
    }

    fn of(port: PortId, bytes: &[u8]) -> Frame {
        Frame { port, bytes: bytes.try_into().expect("all frames are as long") }
    }

    fn packet(&self, pool: &'static Pool) -> Packet {
        Packet::copy_of(pool, self.port, &self.bytes).expect("the pool is larger than the ring")
    }

    /// Writes the frame over another of the same length.
    fn restore(&self, mut packet: Packet) -> Packet {
        packet.head_mut().copy_from_slice(&self.bytes);
        packet.port = self.port;
        packet
    }
}

impl Decoded {
    fn of(bytes: &[u8]) -> Decoded {
        let headers = PacketHeaders::from_ethernet_slice(bytes).expect("a frame that can be parsed");
        let Some(LinkHeader::Ethernet2(link)) = headers.link else { panic!("no Ethernet header") };
        let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("no IPv4 header") };
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP header") };
        let payload = headers.payload.slice();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "header checksum");
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload).expect("short"), "TCP checksum");
        let [a, b, c, d, ..] = *payload else { panic!("no payload") };
        Decoded {
            link: (LinkAddr(link.source), LinkAddr(link.destination)),
            source: SocketAddrV4::new(ip.source.into(), tcp.source_port),
            destination: SocketAddrV4::new(ip.destination.into(), tcp.destination_port),
            ttl: ip.time_to_live,
            flags: match (tcp.syn, tcp.ack) {
                (true, false) => Flags::Syn,
                (true, true) => Flags::SynAck,
                _ => Flags::Ack,
            },
            number: u32::from_be_bytes([a, b, c, d]),
        }
    }
}

const _: () = assert!(RING.is_multiple_of(Openings::FLOWS) && Openings::FLOWS.is_multiple_of(BURST));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_of_established_packets_is_right_and_a_wrong_one_is_seen() {
        let mut work = Established::new(100);
        for _ in 0..2 {
            work.run();
            assert_eq!(work.check(), work.operations());
        }
        work.expected[7].bytes[20] ^= 1;
        work.run();
        assert_eq!(work.check(), work.operations() - 1);
    }

    #[test]
    fn every_run_of_new_connections_is_right() {
        let mut work = Openings::new();
        for _ in 0..5 {
            work.run();
            assert_eq!(work.check(), work.operations());
        }
    }
}
