//! What the tests build and send: pairs of interfaces, wires, frames, pings and transfers.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, PacketBuilder};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use pollux_dataplane::packet::{Burst, ChecksumState, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;

use crate::sandbox::{Namespace, ip};

/// A trial that has the name of its function and fails when that panics.
#[macro_export]
macro_rules! trial {
    ($test:ident) => {
        Trial::test(stringify!($test), || {
            $test();
            Ok(())
        })
    };
}

/// Long enough on a busy machine for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Long enough to see that something does not happen.
pub(crate) const SILENCE: Duration = Duration::from_millis(150);

/// Two Ethernet addresses of ours.
pub(crate) const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub(crate) const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// Whether something comes to be true. What ends when a file descriptor is closed ends a moment later here:
/// a program that another test starts holds a copy of it until it begins to run.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn pool() -> &'static Pool {
    Pool::new(4096).unwrap()
}

/// Moves the thread into a new namespace with the pair of interfaces `va` (address `MAC_A`) and `vb`.
pub(crate) fn veth_pair() -> Namespace {
    let namespace = Namespace::new();
    namespace.enter();
    ip("link add va address 02:00:00:00:00:0a type veth peer name vb address 02:00:00:00:00:0b");
    ip("link set va up");
    ip("link set vb up");
    wait_until_up("va");
    wait_until_up("vb");
    namespace
}

/// A pod of the thread's namespace: its interface `eth0` has `address`, the other end is `name` here.
pub(crate) fn pod(name: &str, address: &str) -> Namespace {
    let pod = Namespace::new();
    ip(&format!("link add {name} type veth peer name eth0 netns {}", pod.path()));
    ip(&format!("link set {name} up"));
    pod.run(|| {
        ip(&format!("addr add {address} dev eth0"));
        ip("link set eth0 up");
        wait_until_up("eth0");
    });
    wait_until_up(name);
    pod
}

/// Waits until an interface has its queue: what is sent between the carrier's return and that, the kernel
/// drops without a word.
pub(crate) fn wait_until_up(name: &str) {
    assert!(eventually(|| ip(&format!("link show {name}")).contains("state UP")), "{name} does not come up");
}

/// A UDP datagram from `MAC_A` to `MAC_B`.
pub(crate) fn udp_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
        .udp(4000, 5000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// A TCP segment from `MAC_A` to `MAC_B`, with a header of 20 bytes.
pub(crate) fn tcp_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC_A, MAC_B)
        .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
        .tcp(4000, 5000, 1, 1000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// The frame with an 802.1Q tag.
pub(crate) fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0x60, 0x05], &frame[12..]].concat()
}

/// Sends all of `packets`, again and again while the device has no room.
pub(crate) fn send_all(port: &mut impl Port, packets: impl IntoIterator<Item = Packet>) {
    let deadline = Instant::now() + PATIENCE;
    let mut burst = Burst::new();
    let mut packets = packets.into_iter().peekable();
    while packets.peek().is_some() || !burst.is_empty() {
        assert!(Instant::now() < deadline, "{} frames left", burst.len());
        while let Some(packet) = packets.next_if(|_| !burst.is_full()) {
            burst.push(packet);
        }
        port.transmit(&mut burst).unwrap();
    }
}

pub(crate) fn send_frame(port: &mut impl Port, pool: &'static Pool, frame: &[u8]) {
    send_all(port, [Packet::copy_of(pool, PortId(99), frame).unwrap()]);
}

/// Sleeps until a port has frames, or 10 ms.
pub(crate) fn wait(ports: &[&dyn Port]) {
    let fds = ports.iter().filter_map(|port| port.readiness());
    let mut polled: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::from(10u8)) {
        // DPDK's memif has its own timers' signals.
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => panic!("poll: {error}"),
    }
}

/// A port with a place for frames that came in one burst with a frame that a test waited for.
pub(crate) struct Inbox<P> {
    port: P,
    waiting: VecDeque<Packet>,
}

impl<P: Port> Inbox<P> {
    pub(crate) fn new(port: P) -> Inbox<P> {
        Inbox { port, waiting: VecDeque::new() }
    }

    /// The next frame for which `wanted` holds; those before it are dropped.
    pub(crate) fn next(&mut self, wanted: impl Fn(&Packet) -> bool) -> Packet {
        self.next_within(PATIENCE, wanted).expect("no such frame came")
    }

    /// As [`next`](Inbox::next), if it comes in time.
    pub(crate) fn next_within(&mut self, time: Duration, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
        let deadline = Instant::now() + time;
        loop {
            while let Some(packet) = self.waiting.pop_front() {
                if wanted(&packet) {
                    return Some(packet);
                }
            }
            if Instant::now() > deadline {
                return None;
            }
            wait(&[&self.port]);
            let mut burst = Burst::new();
            self.port.receive(&mut burst).unwrap();
            self.waiting.extend(burst);
        }
    }
}

impl<P> std::ops::Deref for Inbox<P> {
    type Target = P;
    fn deref(&self) -> &P {
        &self.port
    }
}

impl<P> std::ops::DerefMut for Inbox<P> {
    fn deref_mut(&mut self) -> &mut P {
        &mut self.port
    }
}

pub(crate) fn is_udp(packet: &Packet) -> bool {
    packet.head().get(12..14) == Some(&[8, 0]) && packet.head().get(23) == Some(&17)
}

/// What went over a wire.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) frames: u64,
    pub(crate) partial: u64,
    pub(crate) super_frames: u64,
    pub(crate) longest: usize,
}

/// What a wire does with every frame.
pub(crate) type Treat<'a> = &'a dyn Fn(Packet, &mut dyn FnMut(Packet));

pub(crate) const AS_IT_IS: Treat<'static> = &|packet, out| out(packet);

/// Carries frames between two ports until `done`, and says what it saw.
pub(crate) fn wire(a: &mut impl Port, b: &mut impl Port, treat: Treat, done: &AtomicBool) -> Traffic {
    let mut traffic = Traffic::default();
    while !done.load(Ordering::Acquire) {
        wait(&[&*a, &*b]);
        carry(a, b, treat, &mut traffic);
        carry(b, a, treat, &mut traffic);
    }
    traffic
}

fn carry(from: &mut impl Port, to: &mut impl Port, treat: Treat, traffic: &mut Traffic) {
    let mut burst = Burst::new();
    from.receive(&mut burst).unwrap();
    let mut out = Vec::new();
    for packet in burst {
        traffic.frames += 1;
        traffic.super_frames += u64::from(packet.offload.gso.is_some());
        traffic.partial += u64::from(matches!(packet.offload.checksum, ChecksumState::Partial { .. }));
        traffic.longest = traffic.longest.max(packet.len());
        treat(packet, &mut |packet| out.push(packet));
    }
    send_all(to, out);
}

/// Sends `bytes` bytes over TCP from one namespace to `address` in the other, while `wire` carries them, and
/// checks every byte at the other end.
pub(crate) fn transfer(
    from: &Namespace,
    to: &Namespace,
    address: &str,
    bytes: usize,
    wire: impl FnOnce(&AtomicBool) -> Traffic,
) -> Traffic {
    let block: Vec<u8> = (0..251u8).cycle().take(251 * 1024).collect();
    let address: SocketAddr = address.parse().unwrap();
    let done = AtomicBool::new(false);
    let listener = to.run(|| TcpListener::bind(address).unwrap());
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut stream = from.run(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut left = bytes;
            while left > 0 {
                let now = left.min(block.len());
                stream.write_all(&block[..now]).unwrap();
                left -= now;
            }
        });
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut got = 0;
            let mut buffer = vec![0; 1 << 18];
            loop {
                let len = stream.read(&mut buffer).unwrap();
                if len == 0 {
                    break got;
                }
                let start = got % 251;
                let expected = &block.as_slice()[start..];
                for part in buffer[..len].chunks(expected.len().min(251 * 1000)) {
                    let start = got % 251;
                    assert!(part == &block[start..][..part.len()], "bytes at {got} differ");
                    got += part.len();
                }
            }
        });
        let watcher = scope.spawn(|| {
            let results = (sender.join(), receiver.join());
            done.store(true, Ordering::Release);
            assert!(results.0.is_ok(), "sending failed");
            assert_eq!(results.1.expect("receiving failed"), bytes);
        });
        let traffic = wire(&done);
        watcher.join().unwrap();
        traffic
    })
}

/// Whether an ICMP echo request from the thread's namespace is answered.
pub(crate) fn ping(address: &str, patience: Duration) -> bool {
    let socket =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
    let socket = UdpSocket::from(socket);
    let echo = IcmpEchoHeader { id: 0x4242, seq: 1 };
    let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), b"pollux");
    let address: Ipv4Addr = address.parse().unwrap();
    let request = [&header.to_bytes()[..], b"pollux"].concat();
    socket.send_to(&request, (address, 0)).unwrap();
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 2048];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).unwrap();
        // A reply behind its IP header of 20 bytes.
        if let Ok((len, from)) = socket.recv_from(&mut buffer)
            && from.ip() == address
            && len == 20 + request.len()
            && buffer[20] == 0
        {
            return true;
        }
    }
    false
}

/// The error that a port says when it is asked for frames, within [`PATIENCE`].
pub(crate) fn error_of_receive<P: Port>(port: &mut Inbox<P>) -> std::io::Error {
    let mut burst = Burst::new();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Err(error) = port.receive(&mut burst) {
            return error;
        }
    }
    panic!("no error was said");
}
