//! A worker without traffic: what it costs, and how long the first frame after the silence takes.
//!
//! ```text
//!   feeder ══ veth ══ ens3 (AF_PACKET) ─→ worker ─→ cali (AF_PACKET) ══ veth ══ sink
//! ```
//!
//! All in a network namespace that ends with the thread. The feeder sends one UDP datagram, the sink spins until it
//! has it: the time between the two is measured, of which the way through the kernel is the larger part. Each of the
//! three ways to idle is measured so, one after the other in every round:
//!
//! - *sleep*: on the ports' descriptors, as on AF_PACKET and AF_XDP;
//! - *doze*: the same ports with their descriptors hidden, as a device that can only be polled;
//! - *spin*: never asleep. The others' distance from it is what waking costs.

use std::io;
use std::net::Ipv4Addr;
use std::process::Command as Process;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nix::sched::{CloneFlags, unshare};
use pollux_dataplane::packet::{Burst, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options};
use pollux_dataplane::port::{Capabilities, Port};
use pollux_dataplane::worker::{Command, Handle, Idle, Worker};
use serde::Serialize;

use crate::{machine, node};

/// The silence before each datagram.
const SILENCE: Duration = Duration::from_millis(20);
/// How long the worker's processor time is watched without any traffic.
const WATCHED: Duration = Duration::from_secs(1);
/// A datagram that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a worker idles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// On the ports' descriptors.
    Sleep,
    /// On a clock.
    Doze,
    /// Not at all.
    Spin,
}

/// What came out for one way.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which.
    pub idle: Way,
    /// Processor time of the worker without traffic, percent of one processor.
    pub cpu_percent: f64,
    /// How often it went to sleep in a second of that.
    pub sleeps_per_second: f64,
    /// From the feeder's call to the sink's, microseconds: half of the datagrams took no longer.
    pub first_packet_us: f64,
    /// 99 of 100 took no longer.
    pub first_packet_p99_us: f64,
    /// Datagrams sent; all arrived, translated as they should be.
    pub datagrams: usize,
    /// Where.
    pub machine: String,
}

/// Measures all ways in `rounds` rounds, each with 20 datagrams for each way.
///
/// # Errors
/// Without the right to make a network namespace, without iproute2, or when a datagram is lost.
pub fn measure(rounds: usize) -> io::Result<Vec<Report>> {
    // The namespace is the thread's: the process stays where it is.
    let work = thread::spawn(move || {
        let namespace = CloneFlags::CLONE_NEWNET;
        unshare(namespace)
            .map_err(|error| io::Error::other(format!("no network namespace ({error}): run it as root")))?;
        wire()?;
        let mut benches = [Bench::start(Way::Sleep)?, Bench::start(Way::Doze)?, Bench::start(Way::Spin)?];
        // A worker that spins takes a processor from the others: each works in its own turn only.
        for _ in 0..rounds {
            for bench in &mut benches {
                bench.round()?;
            }
        }
        Ok(benches.iter().map(Bench::report).collect())
    });
    work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Two pairs of interfaces, on which the kernel says nothing of its own accord.
fn wire() -> io::Result<()> {
    for line in [
        "link add ens3 type veth peer name feeder",
        "link add cali type veth peer name sink",
        "link set ens3 up",
        "link set feeder up",
        "link set cali up",
        "link set sink up",
    ] {
        let output = Process::new("ip").args(line.split(' ')).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("ip {line}: {}", said.trim())));
        }
    }
    Ok(())
}

/// One way to idle, and what was seen of it.
struct Bench {
    way: Way,
    pool: &'static Pool,
    cpu: Duration,
    watched: Duration,
    sleeps: u64,
    took: Vec<Duration>,
}

impl Bench {
    const DATAGRAMS: usize = 20;

    fn start(way: Way) -> io::Result<Bench> {
        let pool = Pool::new(8192)?;
        let nothing = Duration::ZERO;
        Ok(Bench { way, pool, cpu: nothing, watched: nothing, sleeps: 0, took: Vec::new() })
    }

    fn open(&self, interface: &str, id: PortId) -> io::Result<AfPacketPort> {
        AfPacketPort::open(interface, id, self.pool, Options::default()).map_err(io::Error::other)
    }

    /// A worker for the time of one round.
    fn round(&mut self) -> io::Result<()> {
        let (mut worker, handle) = Worker::new(node::forwarder(self.pool, 1024))?;
        let to = &node::BACKENDS[2];
        for (interface, id) in [("ens3", node::ENS3), ("cali", to.port)] {
            let port = self.open(interface, id)?;
            worker.add_port(id, if self.way == Way::Sleep { Box::new(port) } else { Box::new(Polled(port)) });
        }
        if self.way == Way::Spin {
            worker.set_idle(Idle { doze: Duration::ZERO, ..Idle::default() });
        }
        let (feeder, sink) = (self.open("feeder", PortId(100))?, self.open("sink", PortId(101))?);
        let thread = thread::spawn(move || worker.run());
        let result = self.watch(&handle).and_then(|()| self.feed(feeder, sink));
        let _ = handle.send(Command::Stop);
        let _ = thread.join();
        result
    }

    fn watch(&mut self, handle: &Handle) -> io::Result<()> {
        let time =
            || handle.ask(|_| machine::thread_time()).map_err(|_| io::Error::other("the worker has stopped"));
        thread::sleep(SILENCE);
        let (cpu, sleeps, since) = (time()?, handle.sleeps(), Instant::now());
        thread::sleep(WATCHED);
        self.cpu += time()?.saturating_sub(cpu);
        self.sleeps += handle.sleeps() - sleeps;
        self.watched += since.elapsed();
        Ok(())
    }

    fn feed(&mut self, mut feeder: AfPacketPort, mut sink: AfPacketPort) -> io::Result<()> {
        for number in 0..Bench::DATAGRAMS as u16 {
            thread::sleep(SILENCE);
            let frame = datagram(number);
            let mut burst = Burst::new();
            let packet = Packet::copy_of(self.pool, PortId(100), &frame);
            burst.push(packet.map_err(|_| io::Error::other("the pool is empty"))?);
            let sent = Instant::now();
            feeder.transmit(&mut burst)?;
            self.took.push(await_payload(&mut sink, sent, &number.to_be_bytes())?);
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let mut took = self.took.clone();
        took.sort_unstable();
        let micros = |percent: usize| {
            let place = (took.len() * percent / 100).min(took.len().saturating_sub(1));
            took.get(place).map_or(0.0, |took| round(took.as_secs_f64() * 1e6))
        };
        Report {
            idle: self.way,
            cpu_percent: round(100.0 * self.cpu.as_secs_f64() / self.watched.as_secs_f64()),
            sleeps_per_second: round(self.sleeps as f64 / self.watched.as_secs_f64()),
            first_packet_us: micros(50),
            first_packet_p99_us: micros(99),
            datagrams: took.len(),
            machine: machine::name(),
        }
    }
}

/// Two digits behind the point.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// From a client behind the gateway to the pod.
fn datagram(number: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let pod = node::BACKENDS[2].address.ip().octets();
    PacketBuilder::ethernet2(node::GATEWAY_LINK.0, node::ENS3_LINK.0)
        .ipv4(Ipv4Addr::new(198, 51, 100, 7).octets(), pod, 64)
        .udp(4000, 53)
        .write(&mut frame, &number.to_be_bytes())
        .expect("a vector takes all");
    frame
}

/// Waits for the frame that the pod gets, and says how long after `sent` it came.
fn await_payload(sink: &mut AfPacketPort, sent: Instant, payload: &[u8]) -> io::Result<Duration> {
    let to = node::BACKENDS[2].link.0;
    loop {
        let mut burst = Burst::new();
        sink.receive(&mut burst)?;
        let took = sent.elapsed();
        let is_it = |packet: &Packet| {
            let bytes = packet.head();
            bytes.starts_with(&to) && bytes.get(22) == Some(&63) && bytes.get(42..44) == Some(payload)
        };
        if burst.iter().any(is_it) {
            return Ok(took);
        }
        if took > PATIENCE {
            return Err(io::Error::other("a datagram did not arrive within a second"));
        }
    }
}

/// A port whose descriptor is not shown.
struct Polled(AfPacketPort);

impl Port for Polled {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.0.receive(burst)
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.0.transmit(burst)
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn missed(&mut self) -> u64 {
        self.0.missed()
    }
}
