//! 10,000 established connections carry data while a generator floods the same Service with SYNs from random
//! sources, which fill the connection table (CT-09).

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use pollux_control::lab::capture::Injector;
use pollux_control::lab::traffic::Payload;
use pollux_dataplane::packet::Protocol;
use pollux_dataplane::stats::Reason;
use pollux_dataplane::worker::Worker;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use socket2::{Domain, Socket, Type};

use super::site::{At, EDGE, NODE, Options, Outcome, POD_A, SOON, Site, To, families};

const CONNECTIONS: usize = 10_000;

/// Connections that the table holds: the flood fills the rest in a moment.
const TABLE: u32 = 65_536;

const FLOOD: Duration = Duration::from_secs(60);

/// The time without progress that no connection may have.
const PATIENCE: Duration = Duration::from_secs(5);

/// Exchanges a second, over all connections.
const PACE: u64 = 4000;

/// Bytes of a message, which comes back as it was.
const MESSAGE: usize = 128;

/// Frames that the generator sends between two looks at whether it is to stop.
const ROUND: usize = 1000;

pub(crate) fn flood() -> Outcome {
    // A node's worker has a processor of its own, and the connections must not wait for the generator's.
    let own = this_thread()?;
    priority(own, -10)?;
    let mut site = Site::new("fl-", &Options { connections: TABLE, ..Options::default() })?;
    priority(thread_named("pollux-worker-0")?, -15)?;
    let [v4, _] = &families();
    let service = SocketAddr::new(To::Near.cluster_ip(v4), At::Data.port());
    let at = SocketAddr::new(To::Near.backend(v4), At::Data.target());
    let program = std::env::current_exe()?.display().to_string();
    let server = [SERVER, &at.to_string()];
    site.daemon(To::Near.machine(), &program, &server, (at.port(), 1))?;
    let connections = connect(&site, service)?;
    let before = entries(&site)?;
    if before.len() != CONNECTIONS {
        return Err(format!("{} of {CONNECTIONS} connections are in the table", before.len()).into());
    }
    // Without the flood, for comparison.
    let mut client = Client::new(connections)?;
    let calm = client.carry(Duration::from_secs(5))?;
    println!("calm: {} exchanges/s, the slowest took {:.3} s", calm.rate, calm.slowest.as_secs_f64());

    let (first, first_flows) = counters(&site)?;
    let generator = Generator::start(&site, [service, SocketAddr::new(v4.node, node_port())])?;
    let start = Instant::now();
    let carried = client.carry(FLOOD);
    let (sent, seconds) = (generator.stop(), start.elapsed().as_secs_f64());
    let carried = carried?;
    let (stats, flows) = counters(&site)?;
    let after = entries(&site)?;

    let rate = |count: u64| (count as f64 / seconds).round() as u64;
    println!(
        "flood: {:.0} s of SYNs from random sources by one thread: {}/s sent, {}/s received by Pollux",
        seconds,
        rate(sent),
        rate(stats.received - first.received),
    );
    println!(
        "table of {TABLE}: {} connections at the end; {}/s made, {}/s evicted, {}/s expired, {}/s refused",
        flows.live,
        rate(flows.inserted - first_flows.inserted),
        rate(flows.evicted - first_flows.evicted),
        rate(flows.expired - first_flows.expired),
        rate(flows.refused - first_flows.refused),
    );
    println!(
        "{CONNECTIONS} connections: {} exchanges/s of {MESSAGE} bytes and back, the slowest took {:.3} s, {} stuck, \
         none reset",
        carried.rate,
        carried.slowest.as_secs_f64(),
        carried.stuck,
    );
    let dropped: Vec<String> =
        stats.dropped.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
    println!("dropped: {}", dropped.join(", "));
    for (port, missed) in missed(&site)? {
        println!("frames that found the ring of port {port} full: {missed}");
    }
    let kept = before.intersection(&after).count();
    println!("{kept} of {CONNECTIONS} entries are those of before");
    site.balanced()?;
    if kept != CONNECTIONS {
        return Err(format!("{} connections lost their entries", CONNECTIONS - kept).into());
    }
    if carried.slowest >= PATIENCE {
        return Err(format!("a connection made no progress for {:?}", carried.slowest).into());
    }
    // A flood that does not fill the table proves nothing.
    let turned_over = flows.evicted - first_flows.evicted + stats.dropped.get(Reason::FlowTableFull);
    if turned_over == 0 || flows.live < u64::from(TABLE) * 9 / 10 {
        return Err(format!("the flood did not fill the table: {flows:?}").into());
    }
    Ok(())
}

/// Frames that the kernel dropped because a port's ring was full, by the port's number.
fn missed(site: &Site) -> Outcome<Vec<(usize, u64)>> {
    let asked = site.agent.worker().ask(|worker| {
        worker.port_stats().into_iter().map(|(port, stats, _)| (port.index(), stats.missed)).collect()
    });
    Ok(asked.map_err(|_| "the forwarder has stopped")?)
}

/// The number of the calling thread.
fn this_thread() -> Outcome<u32> {
    let link = std::fs::read_link("/proc/thread-self")?;
    let number = link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    Ok(number.ok_or("/proc/thread-self names no thread")?)
}

/// The number of this process's thread of this name.
fn thread_named(name: &str) -> Outcome<u32> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        let path = thread?.path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            return Ok(number.ok_or("a thread without a number")?);
        }
    }
    Err(format!("there is no thread {name}").into())
}

/// Sets a thread's nice value.
fn priority(thread: u32, nice: i32) -> Outcome {
    let (nice, thread) = (nice.to_string(), thread.to_string());
    let output = Command::new("renice").args(["-n", &nice, "-p", &thread]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("renice: {}", String::from_utf8_lossy(&output.stderr)).into())
}

fn node_port() -> u16 {
    At::Data.node_port(To::Near)
}

/// The table's counters.
#[derive(Debug)]
struct Flows {
    live: u64,
    inserted: u64,
    evicted: u64,
    expired: u64,
    refused: u64,
}

fn counters(site: &Site) -> Outcome<(pollux_dataplane::stats::Stats, Flows)> {
    let flows = |worker: &mut Worker| {
        let table = worker.forwarder().flows_v4();
        let counters = table.counters();
        Flows {
            live: table.len() as u64,
            inserted: counters.inserted,
            evicted: counters.evicted,
            expired: counters.expired,
            refused: counters.refused,
        }
    };
    let asked = site.agent.worker().ask(move |worker| (worker.stats(), flows(worker)));
    Ok(asked.map_err(|_| "the forwarder has stopped")?)
}

/// The entries of the connections from pod-a: their numbers, which a new entry does not have again.
fn entries(site: &Site) -> Outcome<BTreeSet<(u64, u16)>> {
    let [v4, _] = families();
    let pod = v4.pod_a;
    let (table, now) = site
        .agent
        .worker()
        .ask(|worker| {
            let now = worker.now();
            (Arc::clone(worker.forwarder().flows_v4()), now)
        })
        .map_err(|_| "the forwarder has stopped")?;
    let mut found = BTreeSet::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let (flows, next) = table.list(at, 4096, now.into());
        cursor = next;
        let ours = flows.iter().filter(|flow| {
            flow.original.protocol == Protocol::TCP && IpAddr::V4(flow.original.source) == pod && flow.assured
        });
        found.extend(ours.map(|flow| (flow.id, flow.original.source_port)));
    }
    Ok(found)
}

fn connect(site: &Site, to: SocketAddr) -> Outcome<Vec<TcpStream>> {
    let start = Instant::now();
    let open =
        || (0..CONNECTIONS).map(|_| TcpStream::connect_timeout(&to, SOON)).collect::<Result<Vec<_>, _>>();
    let connections = site.node(POD_A).run(open)?.map_err(|error| {
        format!("{CONNECTIONS} connections cannot be made: {error} (each takes a descriptor: see ulimit -n)")
    })?;
    println!("{CONNECTIONS} connections made in {:.2} s", start.elapsed().as_secs_f64());
    Ok(connections)
}

/// The argument that makes a server of this program: a process of its own has descriptors of its own.
pub(crate) const SERVER: &str = "--echo-server";

/// Sends back whatever it gets, all in one thread, until it is killed.
///
/// # Errors
/// When a connection is reset.
pub(crate) fn serve(at: &str) -> std::io::Result<()> {
    let at: SocketAddr = at.parse().map_err(std::io::Error::other)?;
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    echo(&socket.into())
}

fn echo(listener: &TcpListener) -> std::io::Result<()> {
    const LISTENER: u64 = u64::MAX;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = vec![0; 4096];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            if event.data() == LISTENER {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, streams.len() as u64))?;
                        streams.push(Some(stream));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let slot = &mut streams[event.data() as usize];
            let Some(stream) = slot else { continue };
            match stream.read(&mut buffer) {
                Ok(0) => *slot = None,
                // What is on its way fits the socket's buffer many times over.
                Ok(length) => stream.write_all(&buffer[..length])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The clients' side of all connections, in one thread.
struct Client {
    epoll: Epoll,
    connections: Vec<Connection>,
    next: usize,
}

struct Connection {
    stream: TcpStream,
    /// The message on its way, how much of it is back, and since when.
    message: Option<([u8; MESSAGE], usize, Instant)>,
    number: u64,
}

struct Carried {
    /// Exchanges a second.
    rate: u64,
    /// The longest time from a message to its echo.
    slowest: Duration,
    /// Messages that did not come back.
    stuck: u64,
}

impl Client {
    fn new(streams: Vec<TcpStream>) -> Outcome<Client> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::with_capacity(streams.len());
        for (at, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
            connections.push(Connection { stream, message: None, number: 0 });
        }
        Ok(Client { epoll, connections, next: 0 })
    }

    /// Exchanges messages over the connections in turn for this time, then waits for the last ones.
    fn carry(&mut self, time: Duration) -> Outcome<Carried> {
        let start = Instant::now();
        let (mut sent, mut done) = (0u64, 0u64);
        let mut slowest = Duration::ZERO;
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let elapsed = start.elapsed();
            let over = elapsed >= time;
            if over && done == sent {
                return Ok(Carried {
                    rate: (done as f64 / elapsed.as_secs_f64()).round() as u64,
                    slowest,
                    stuck: 0,
                });
            }
            if elapsed > time + 2 * PATIENCE {
                let rate = (done as f64 / elapsed.as_secs_f64()).round() as u64;
                return Ok(Carried { rate, slowest: slowest.max(2 * PATIENCE), stuck: sent - done });
            }
            let due = (elapsed.as_secs_f64() * PACE as f64) as u64;
            // At most once around; what is still on its way is not hurried.
            let mut left = if over { 0 } else { due.saturating_sub(sent).min(256) };
            let mut tried = 0;
            while left > 0 && tried < self.connections.len() {
                let at = self.next;
                self.next = (self.next + 1) % self.connections.len();
                tried += 1;
                if self.connections[at].message.is_none() {
                    self.connections[at].send(at)?;
                    sent += 1;
                    left -= 1;
                }
            }
            let ready = self.epoll.wait(&mut events, EpollTimeout::from(2u8))?;
            for event in &events[..ready] {
                let at = event.data() as usize;
                if let Some(took) = self.connections[at].receive(at)? {
                    slowest = slowest.max(took);
                    done += 1;
                }
            }
        }
    }
}

impl Connection {
    fn send(&mut self, at: usize) -> Outcome {
        self.number += 1;
        let mut message = [0; MESSAGE];
        Payload::new((at as u64) << 32 | self.number).fill(&mut message);
        self.stream.write_all(&message).map_err(|error| format!("connection {at}: {error}"))?;
        self.message = Some((message, 0, Instant::now()));
        Ok(())
    }

    /// How long the exchange took, when it is complete now.
    fn receive(&mut self, at: usize) -> Outcome<Option<Duration>> {
        let mut buffer = [0; MESSAGE];
        let length = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(format!("connection {at} was closed").into()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(format!("connection {at}: {error}").into()),
        };
        let Some((message, back, since)) = &mut self.message else {
            return Err(format!("connection {at}: more came than was sent").into());
        };
        if message.get(*back..*back + length) != Some(&buffer[..length]) {
            return Err(format!("connection {at}: other bytes came than were sent").into());
        }
        *back += length;
        if *back < MESSAGE {
            return Ok(None);
        }
        let took = since.elapsed();
        self.message = None;
        Ok(Some(took))
    }
}

/// Sends SYNs out of the edge's interface towards the node, as fast as one thread can.
struct Generator {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Generator {
    fn start(site: &Site, targets: [SocketAddr; 2]) -> Outcome<Generator> {
        // The answers have somewhere to go, and go no further.
        site.node(EDGE).ip("route add blackhole 100.64.0.0/10")?;
        let mac = site.node(NODE).output(
            Command::new(pollux_control::kernel::sandbox::find_program("ip")?)
                .args(["-oneline", "link", "show", "ens3"]),
        )?;
        let mac = mac.split("link/ether ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let mac: pollux_dataplane::packet::LinkAddr = mac.ok_or("ens3 has no link address")?.parse()?;
        let injector = Injector::open(site.node(EDGE), "node")?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::Builder::new().name("flood".to_owned()).spawn(move || {
            // Not the connections' priority, which it has from the thread that started it.
            let _ = this_thread().and_then(|thread| priority(thread, 0));
            let mut random = SmallRng::seed_from_u64(1);
            let mut frame = Vec::with_capacity(64);
            while !stopping.load(Ordering::Relaxed) {
                let mut accepted = 0;
                for number in 0..ROUND {
                    syn(&mut frame, mac.0, targets[number % targets.len()], &mut random);
                    accepted += u64::from(injector.send(&frame).is_ok());
                }
                counting.fetch_add(accepted, Ordering::Relaxed);
            }
        })?;
        Ok(Generator { stop, sent, thread })
    }

    /// How many were sent.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.sent.load(Ordering::Relaxed)
    }
}

fn syn(frame: &mut Vec<u8>, to: [u8; 6], target: SocketAddr, random: &mut SmallRng) {
    let source = Ipv4Addr::from_bits(0x6440_0000 | random.random::<u32>() >> 10);
    let IpAddr::V4(destination) = target.ip() else { unreachable!("the flood is IPv4") };
    frame.clear();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], to)
        .ipv4(source.octets(), destination.octets(), 64)
        .tcp(random.random_range(1024..=u16::MAX), target.port(), random.random(), 64_240)
        .syn()
        .write(frame, &[])
        .expect("a vector takes every write");
}
