//! PT-03: the same frames give the same results, byte for byte after partial checksums are finished and super-frames
//! cut, whatever the backend. A node of two ports of one backend runs a script: connections through a Service in both
//! families, super-frames both ways, fragments, errors, frames that are nothing, a neighbour that is found late.
//! What leaves is compared with what leaves a node of memory ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use etherparse::{
    ArpOperation, ArpPacket, EtherType, IpFragOffset, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use pollux_dataplane::packet::{GsoKind, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::stats::Reason;
use pollux_dataplane::time::Instant;
use pollux_dataplane::worker::Worker;

use crate::backends::Backend;
use crate::bench::{Bench, Lease, eventually};
use crate::frame::{Frame, difference, finished, left_to_device};
use crate::nature::Arrival;
use crate::node::{
    CLIENT_V4, CLIENT_V6, GATEWAY, LATE, NODE_V4, POD, POD_LINK, SERVICE_V4, SERVICE_V6, UPLINK, UPLINK_LINK,
    forwarder,
};

/// What left in a step: by port, and the frames in order.
type Left = [Vec<Frame>; 2];

/// A step's name, and what left.
type Results = Vec<(&'static str, Left)>;

/// A node whose two ports are of one backend.
struct Node {
    worker: Worker,
    /// The uplink's far end, and the pod's.
    far: [Bench; 2],
    now: Instant,
    received: u64,
    transmitted: u64,
    results: Results,
}

impl Node {
    fn new(backend: &Backend, pool: &'static Pool) -> Node {
        // The handle may go: nothing is asked of the worker.
        let (mut worker, _) = Worker::new(forwarder(pool)).expect("an event descriptor");
        let far = [UPLINK, POD].map(|id| {
            let mut bench = (backend.open)(pool, id);
            worker.add_port(id, bench.take_port());
            bench
        });
        Node { worker, far, now: Instant::from_secs(1), received: 0, transmitted: 0, results: Vec::new() }
    }

    /// The far end of `port` sends, the node does all that there is to do, and what leaves is noted.
    fn step(&mut self, name: &'static str, port: PortId, frames: &[Frame]) -> &Left {
        self.now = self.now + Duration::from_millis(10);
        let far = &mut self.far[port.index()];
        for frame in frames {
            let arrival = if frame.offload.gso.is_some() {
                far.nature.into.super_frames
            } else {
                far.nature.into.checksums
            };
            match arrival {
                _ if frame.offload.needs_nothing() => far.inject(std::slice::from_ref(frame)),
                Arrival::Marked | Arrival::Finished | Arrival::Cut => far.inject(std::slice::from_ref(frame)),
                // Nothing would say that it is to be finished.
                Arrival::Bare | Arrival::Missed => far.inject(&finished(frame)),
            }
            self.received += match arrival {
                Arrival::Marked => 1,
                _ => finished(frame).len() as u64,
            };
        }
        let Node { worker, now, received, transmitted, .. } = self;
        let all = eventually(|| {
            worker.poll(*now);
            worker.stats().received >= *received
        });
        assert!(all, "{name}: {} of {received} frames were received", worker.stats().received);
        worker.chores(*now);
        let stats = worker.stats();
        let (came, went) = stats.balance();
        assert_eq!((stats.received, came), (*received, went), "{name}: FW-05: {stats:?}");
        assert_eq!(
            stats.dropped.get(Reason::TransmitFull) + stats.dropped.get(Reason::PortDown),
            0,
            "{name}"
        );
        // Frames that are to arrive somewhere: counted over both far ends, since either may have them.
        let expected = (stats.transmitted - *transmitted) as usize;
        *transmitted = stats.transmitted;
        let far = &mut self.far;
        let mut arrived: [Vec<Frame>; 2] = [Vec::new(), Vec::new()];
        let all = eventually(|| {
            // A port may send later what it has taken.
            worker.poll(*now);
            for (frames, far) in arrived.iter_mut().zip(far.iter_mut()) {
                frames.extend(far.arrivals_now());
            }
            arrived.iter().map(Vec::len).sum::<usize>() >= expected
        });
        assert!(all, "{name}: of {expected} frames sent, {:?} arrived", arrived.each_ref().map(Vec::len));
        let left = arrived.map(|frames| frames.iter().flat_map(finished).collect());
        self.results.push((name, left));
        &self.results.last().expect("one was pushed").1
    }

    /// Takes the node down; every chunk must be back.
    fn end(self) -> (Results, Vec<(Reason, u64)>) {
        let Node { worker, far, results, .. } = self;
        let dropped = worker.stats().dropped.iter().collect();
        drop(worker);
        let mut pool = None;
        for bench in far {
            pool = Some(bench.pool);
            drop(bench);
        }
        let pool = pool.expect("two ends");
        assert_eq!(
            pool.available(),
            pool.capacity(),
            "chunks of the pool that are free, after the node is gone"
        );
        (results, dropped)
    }
}

/// A TCP segment's flags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    Syn,
    SynAck,
    Ack,
    Fin,
}

/// From whom to whom, on the link and beyond.
#[derive(Clone, Copy)]
struct Ends {
    link: [[u8; 6]; 2],
    from: SocketAddr,
    to: SocketAddr,
}

impl Ends {
    /// Of a client outside.
    fn outside(from: SocketAddr, to: SocketAddr) -> Ends {
        Ends { link: [GATEWAY.0, UPLINK_LINK.0], from, to }
    }

    /// Of the answer to `frame`, which the pod has got.
    fn answer_to(frame: &Frame) -> Ends {
        let sliced = SlicedPacket::from_ethernet(&frame.bytes).expect("a packet");
        let [from, to] = match sliced.net {
            Some(NetSlice::Ipv4(v4)) => {
                [v4.header().source_addr().into(), v4.header().destination_addr().into()]
            }
            Some(NetSlice::Ipv6(v6)) => {
                [v6.header().source_addr().into(), v6.header().destination_addr().into()]
            }
            _ => panic!("not IP: {frame:?}"),
        };
        let (from_port, to_port) = match sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            _ => panic!("neither TCP nor UDP: {frame:?}"),
        };
        let link = |at: usize| frame.bytes[at..at + 6].try_into().expect("six bytes");
        Ends {
            link: [link(0), link(6)],
            from: SocketAddr::new(to, to_port),
            to: SocketAddr::new(from, from_port),
        }
    }

    fn ip(self) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let builder = PacketBuilder::ethernet2(self.link[0], self.link[1]);
        match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                builder.ipv4(from.ip().octets(), to.ip().octets(), 61)
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                builder.ipv6(from.ip().octets(), to.ip().octets(), 61)
            }
            _ => panic!("two families"),
        }
    }

    fn l4(self) -> usize {
        if self.from.is_ipv4() { 34 } else { 54 }
    }

    fn tcp(self, flags: Flags, number: u32, payload: &[u8]) -> Frame {
        let mut bytes = Vec::new();
        let segment = self.ip().tcp(self.from.port(), self.to.port(), number, 60_000);
        let segment = match flags {
            Flags::Syn => segment.syn(),
            Flags::SynAck => segment.syn().ack(1),
            Flags::Ack => segment.ack(1),
            Flags::Fin => segment.fin().ack(1),
        };
        segment.write(&mut bytes, payload).expect("a vector takes everything");
        Frame::plain(bytes)
    }

    fn udp(self, payload: &[u8]) -> Frame {
        let mut bytes = Vec::new();
        self.ip()
            .udp(self.from.port(), self.to.port())
            .write(&mut bytes, payload)
            .expect("a vector takes everything");
        Frame::plain(bytes)
    }

    /// The segment with its checksum left to the device, as a socket sends it.
    fn tcp_left(self, flags: Flags, number: u32, payload: &[u8], segment: Option<u16>) -> Frame {
        let kind = if self.from.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        let gso = segment.map(|size| (kind, size));
        left_to_device(self.tcp(flags, number, payload).bytes, self.l4(), 16, 20, gso)
    }

    fn udp_left(self, payload: &[u8], segment: Option<u16>) -> Frame {
        let gso = segment.map(|size| (GsoKind::Udp, size));
        left_to_device(self.udp(payload).bytes, self.l4(), 6, 8, gso)
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 253) as u8).collect()
}

/// A connection through a Service: opened, data both ways in all forms, closed.
fn connection(node: &mut Node, from: SocketAddr, service: SocketAddr) {
    let client = Ends::outside(from, service);
    let left = node.step("SYN", UPLINK, &[client.tcp(Flags::Syn, 0, &[])]);
    let pod = Ends::answer_to(&left[POD.index()][0]);
    node.step("SYN-ACK", POD, &[pod.tcp_left(Flags::SynAck, 0, &[], None)]);
    let small = bytes(100);
    node.step(
        "ACK and data",
        UPLINK,
        &[
            client.tcp(Flags::Ack, 1, &[]),
            client.tcp(Flags::Ack, 1, &small),
            client.tcp_left(Flags::Ack, 101, &small, None),
        ],
    );
    let segment = if from.is_ipv4() { 1_460 } else { 1_440 };
    node.step(
        "a super-frame to the pod",
        UPLINK,
        &[
            client.tcp_left(Flags::Ack, 201, &bytes(20_001), Some(segment)),
            client.tcp(Flags::Ack, 20_202, &small),
        ],
    );
    node.step(
        "the longest super-frame from the pod",
        POD,
        &[
            pod.tcp(Flags::Ack, 1, &small),
            pod.tcp_left(Flags::Ack, 101, &bytes(65_535 - 20 - 40 - 20), Some(segment)),
            pod.tcp_left(Flags::Ack, 101 + 65_455, &bytes(1_300), None),
        ],
    );
    node.step("the end of the pod's data", POD, &[pod.tcp(Flags::Fin, 101 + 65_455 + 1_300, &[])]);
    node.step("the end of the client's", UPLINK, &[client.tcp(Flags::Fin, 20_302, &[])]);
}

fn datagrams(node: &mut Node, from: SocketAddr, service: SocketAddr) {
    let client = Ends::outside(from, service);
    let left = node.step("a datagram", UPLINK, &[client.udp_left(b"a question", None)]);
    let pod = Ends::answer_to(&left[POD.index()][0]);
    node.step("its answer", POD, &[pod.udp(b"an answer"), pod.udp_left(&bytes(1_000), None)]);
    node.step("datagrams in one", UPLINK, &[client.udp_left(&bytes(5_500), Some(1_000))]);
    node.step("and back", POD, &[pod.udp_left(&bytes(12_345), Some(1_200))]);
}

/// Two fragments of a datagram to the Service, the second first.
fn fragments(node: &mut Node) {
    let whole = Ends::outside(SocketAddr::new(CLIENT_V4.into(), 4_444), SERVICE_V4).udp(&bytes(1_392));
    let fragment = |from: usize, to: usize, more: bool| {
        let mut header = etherparse::Ipv4Header::new(
            (to - from) as u16,
            61,
            etherparse::IpNumber::UDP,
            CLIENT_V4.octets(),
            match SERVICE_V4.ip() {
                std::net::IpAddr::V4(address) => address.octets(),
                std::net::IpAddr::V6(_) => unreachable!("the Service's address of IPv4"),
            },
        )
        .expect("a header");
        header.identification = 77;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new((from / 8) as u16).expect("an offset");
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = whole.bytes[..14].to_vec();
        header.write(&mut bytes).expect("a vector takes everything");
        bytes.extend(&whole.bytes[34 + from..34 + to]);
        Frame::plain(bytes)
    };
    node.step("fragments", UPLINK, &[fragment(800, 1_400, false), fragment(0, 800, true)]);
}

fn arp(link: [u8; 6], operation: ArpOperation, from: Ipv4Addr, to: Ipv4Addr) -> Frame {
    let packet = ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &link,
        &from.octets(),
        &[0; 6],
        &to.octets(),
    )
    .expect("a packet of ARP");
    let mut bytes = Vec::new();
    let target = if operation == ArpOperation::REQUEST { [0xff; 6] } else { UPLINK_LINK.0 };
    PacketBuilder::ethernet2(link, target).arp(packet).write(&mut bytes).expect("a vector takes everything");
    Frame::plain(bytes)
}

/// Whatever is not forwarded, and what is said about it.
fn refused(node: &mut Node) {
    let outside =
        |to: &str| Ends::outside(SocketAddr::new(CLIENT_V4.into(), 999), to.parse().expect("an address"));
    let mut late = outside("10.151.51.7:9").udp(b"its time is over");
    late.bytes[22] = 1;
    let sum = etherparse::Ipv4HeaderSlice::from_slice(&late.bytes[14..34]).expect("a header").to_header();
    late.bytes[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    node.step("TTL 1", UPLINK, &[late]);
    node.step("no route", UPLINK, &[outside("192.0.2.1:9").udp(b"nowhere")]);
    node.step(
        "an echo request to the pod",
        UPLINK,
        &[{
            let mut bytes = Vec::new();
            outside("10.151.51.7:9")
                .ip()
                .icmpv4_echo_request(5, 6)
                .write(&mut bytes, &[1; 300])
                .expect("written");
            Frame::plain(bytes)
        }],
    );
    let whole = outside("10.151.51.7:9").udp(b"sound").bytes;
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        Frame::plain(bytes)
    };
    node.step(
        "frames that are nothing",
        UPLINK,
        &[
            broken(&|bytes| bytes.truncate(20)),
            broken(&|bytes| bytes.truncate(36)),
            broken(&|bytes| bytes[24] ^= 0xff),
            broken(&|bytes| bytes[14] = 0x41),
            broken(&|bytes| bytes[16] = 0x7f),
            broken(&|bytes| bytes[12] = 0x88),
            broken(&|bytes| bytes[0] = 0x02),
            Frame::plain(whole.clone()).tagged(),
        ],
    );
}

/// A packet waits until its next hop is known.
fn neighbours(node: &mut Node) {
    let uplink = [GATEWAY.0, LATE.1.0];
    node.step(
        "a question about the node",
        UPLINK,
        &[arp(uplink[0], ArpOperation::REQUEST, Ipv4Addr::new(172, 16, 0, 1), NODE_V4)],
    );
    let pod = Ends {
        link: [POD_LINK.0, crate::node::POD_PORT_LINK.0],
        from: "10.151.51.7:7000".parse().expect("an address"),
        to: SocketAddr::new(LATE.0.into(), 53),
    };
    node.step(
        "nobody knows the neighbour",
        POD,
        &[pod.udp(b"first"), pod.udp_left(&bytes(3_000), Some(1_000))],
    );
    node.step("it answers", UPLINK, &[arp(uplink[1], ArpOperation::REPLY, LATE.0, NODE_V4)]);
    node.step("it is known", POD, &[pod.udp(b"third")]);
}

/// Runs the script on a node of `backend`.
fn run(backend: &Backend) -> (Results, Vec<(Reason, u64)>) {
    let lease = Lease::new();
    let mut node = Node::new(backend, lease.pool());
    let client = |address: std::net::IpAddr, port| SocketAddr::new(address, port);
    connection(&mut node, client(CLIENT_V4.into(), 40_000), SERVICE_V4);
    connection(&mut node, client(CLIENT_V6.into(), 40_000), SERVICE_V6);
    datagrams(&mut node, client(CLIENT_V4.into(), 50_000), SERVICE_V4);
    datagrams(&mut node, client(CLIENT_V6.into(), 50_000), SERVICE_V6);
    fragments(&mut node);
    refused(&mut node);
    neighbours(&mut node);
    node.end()
}

/// PT-03.
pub(crate) fn same_frames_give_the_same_results(backend: &Backend, memory: &Backend) {
    let (expected, dropped) = run(memory);
    // The script is not for nothing.
    let left: usize = expected.iter().flat_map(|(_, left)| left).map(Vec::len).sum();
    assert_eq!(left, 192, "frames left");
    assert!(dropped.len() >= 5, "{dropped:?}");
    let (results, dropped_here) = run(backend);
    for ((name, left), (_, expected)) in results.iter().zip(&expected) {
        for (at, (left, expected)) in left.iter().zip(expected).enumerate() {
            let port = ["uplink", "pod"][at];
            for (number, (is, expected)) in left.iter().zip(expected).enumerate() {
                assert!(is == expected, "{name}, {port}, frame {number} {}", difference(is, expected));
            }
            assert_eq!(left.len(), expected.len(), "{name}, {port}: frames");
        }
    }
    assert_eq!(results.len(), expected.len());
    assert_eq!(dropped_here, dropped);
}
