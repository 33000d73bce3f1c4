//! A port on the bench: the port, the far end of its wire, and what the properties do with both.

use std::any::Any;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pollux_dataplane::packet::{BURST, Burst, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::{Capabilities, Port};

use crate::frame::{Frame, difference};
use crate::nature::Nature;

/// Long enough on a busy machine for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Looks for what must not happen.
pub(crate) const LOOKS: u32 = 8;

/// The number of the port on the bench.
pub(crate) const PORT: PortId = PortId(5);

/// Chunks of a pool.
const CHUNKS: usize = 4096;

/// Pools that no test uses now. A pool is never freed, so tests hand them on; one that is not whole is left alone.
static POOLS: Mutex<Vec<&'static Pool>> = Mutex::new(Vec::new());

/// A pool that nobody else uses.
pub(crate) struct Lease(&'static Pool);

impl Lease {
    /// Lends a pool with all its chunks.
    pub(crate) fn new() -> Lease {
        let spare = POOLS.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lease(spare.unwrap_or_else(|| Pool::new(CHUNKS).expect("memory for a pool")))
    }

    pub(crate) fn pool(&self) -> &'static Pool {
        self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.available() == self.0.capacity() {
            POOLS.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }
}

/// What became of a frame that the far end was to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// It is on its way; from now on it arrives or is counted as lost.
    OnItsWay,
    /// The wire does not carry such a frame: it stays with the far end.
    Refused,
}

/// Whether the far end takes what the port sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taking {
    /// It does.
    Yes,
    /// It does not: the port's transmit ring fills, if it has one.
    No,
}

/// State of the port's device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    Up,
    Down,
}

/// The far end of a port's wire.
pub(crate) trait Wire: Send {
    /// Sends a frame towards the port.
    fn send(&mut self, frame: &Frame) -> Sent;

    /// The next frame that the port has sent.
    fn receive(&mut self) -> Option<Frame>;

    /// Takes no more, or takes on. A far end in which frames wait until it is asked need not do a thing.
    fn set_taking(&mut self, _taking: Taking) {}

    /// Switches the port's device off or on; returns when it is so.
    fn set_device(&mut self, device: Device);

    /// Makes frames of `bytes` bytes behind their link header possible on the port's device and on the wire; says
    /// whether they let it.
    fn set_mtu(&mut self, _bytes: usize) -> bool {
        true
    }

    /// The pool of the frames that it sends, where they reach the port as they are.
    fn memory(&self) -> Option<&'static Pool> {
        None
    }

    /// Frames that the device between has lost and counted itself, in both directions.
    fn lost(&mut self) -> u64 {
        0
    }
}

/// A port and the far end of its wire. The pool is the port's alone: when both ends are gone it must be whole.
pub(crate) struct Bench {
    pub(crate) nature: &'static Nature,
    pub(crate) pool: &'static Pool,
    pub(crate) port: Box<dyn Port>,
    pub(crate) wire: Box<dyn Wire>,
    /// What they need as long as they live.
    _place: Box<dyn Any>,
    /// What the port has sent and nobody has asked for.
    arrived: Vec<Frame>,
    taking: Taking,
}

impl Bench {
    pub(crate) fn new(
        nature: &'static Nature,
        pool: &'static Pool,
        port: Box<dyn Port>,
        wire: Box<dyn Wire>,
        place: Box<dyn Any>,
    ) -> Bench {
        Bench { nature, pool, port, wire, _place: place, arrived: Vec::new(), taking: Taking::Yes }
    }

    /// Takes the port off the bench: it goes into a worker. The far end stays.
    pub(crate) fn take_port(&mut self) -> Box<dyn Port> {
        std::mem::replace(&mut self.port, Box::new(Gone))
    }

    /// What the port has sent since this was last asked.
    pub(crate) fn arrivals_now(&mut self) -> Vec<Frame> {
        self.collect();
        std::mem::take(&mut self.arrived)
    }

    /// Takes everything down and looks whether memory is missing.
    pub(crate) fn close(self) {
        let Bench { port, wire, pool, .. } = self;
        let lent = wire.memory();
        drop((port, wire));
        assert_eq!(
            pool.available(),
            pool.capacity(),
            "chunks of the pool that are free, after the port is gone"
        );
        if let Some(lent) = lent {
            assert_eq!(lent.available(), lent.capacity(), "chunks of the far end's pool that are free");
        }
    }

    /// The far end takes what the port sends, or not.
    pub(crate) fn set_taking(&mut self, taking: Taking) {
        self.taking = taking;
        self.wire.set_taking(taking);
    }

    /// The far end sends; every frame must be one that the wire carries.
    pub(crate) fn inject(&mut self, frames: &[Frame]) {
        for frame in frames {
            assert_eq!(self.wire.send(frame), Sent::OnItsWay, "{frame:?}");
        }
    }

    /// The port sends all of `frames`, again and again while its ring is full, in bursts of 32.
    pub(crate) fn transmit(&mut self, frames: &[Frame]) {
        let deadline = Instant::now() + PATIENCE;
        for frames in frames.chunks(BURST) {
            let mut burst: Burst = frames.iter().map(|frame| frame.packet(self.pool)).collect();
            while !burst.is_empty() {
                assert!(Instant::now() < deadline, "{} frames are refused for ever", burst.len());
                self.port.transmit(&mut burst).expect("the port sends");
                self.collect();
            }
        }
    }

    /// Takes in what is at the far end, if it takes anything.
    pub(crate) fn collect(&mut self) {
        while self.taking == Taking::Yes
            && let Some(frame) = self.wire.receive()
        {
            self.arrived.push(frame);
        }
    }

    /// What the port has sent since this was last asked, as soon as it is `count` frames.
    pub(crate) fn arrivals_at_least(&mut self, count: usize) -> Vec<Frame> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.collect();
            if self.arrived.len() >= count || Instant::now() > deadline {
                return std::mem::take(&mut self.arrived);
            }
            pause();
        }
    }

    /// As [`arrivals_at_least`](Bench::arrivals_at_least), and then not one more.
    pub(crate) fn arrivals(&mut self, count: usize) -> Vec<Frame> {
        let mut arrived = self.arrivals_at_least(count);
        for _ in 0..LOOKS {
            self.collect();
            pause();
        }
        arrived.append(&mut self.arrived);
        assert_eq!(arrived.len(), count, "frames at the far end");
        arrived
    }

    /// One call of the port, into an empty burst.
    pub(crate) fn poll(&mut self) -> Burst {
        let mut burst = Burst::new();
        self.port.receive(&mut burst).expect("the port receives");
        burst
    }

    /// What the port receives, as soon as it is `count` frames.
    pub(crate) fn receive_at_least(&mut self, count: usize) -> Vec<Packet> {
        let mut received = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while received.len() < count && Instant::now() < deadline {
            let burst = self.poll();
            if burst.is_empty() {
                pause();
            }
            received.extend(burst);
        }
        received
    }

    /// As [`receive_at_least`](Bench::receive_at_least), and then not one more.
    pub(crate) fn receive(&mut self, count: usize) -> Vec<Packet> {
        let mut received = self.receive_at_least(count);
        for _ in 0..LOOKS {
            received.extend(self.poll());
            pause();
        }
        assert_eq!(received.len(), count, "frames received");
        received
    }

    /// As [`receive`](Bench::receive), the frames themselves.
    pub(crate) fn frames(&mut self, count: usize) -> Vec<Frame> {
        self.receive(count).iter().map(Frame::of).collect()
    }

    /// What there is to receive, until nothing has come for a while.
    pub(crate) fn drain(&mut self) -> Vec<Frame> {
        let mut received = Vec::new();
        let mut quiet = 0;
        while quiet < LOOKS {
            let burst = self.poll();
            quiet = if burst.is_empty() { quiet + 1 } else { 0 };
            if burst.is_empty() {
                pause();
            }
            received.extend(burst.iter().map(Frame::of));
        }
        received
    }

    /// Sends one frame each way: the port works.
    pub(crate) fn assert_works(&mut self) {
        let frame = crate::frame::numbered(1, 7, 100);
        self.transmit(std::slice::from_ref(&frame));
        assert_same(&self.arrivals(1), std::slice::from_ref(&frame));
        self.inject(std::slice::from_ref(&frame));
        assert_same(&self.frames(1), &[frame]);
    }
}

/// A moment.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_micros(500));
}

/// Whether something comes to be true.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        pause();
    }
    true
}

/// Compares frame by frame, so that a difference is one line.
#[track_caller]
pub(crate) fn assert_same(are: &[Frame], expected: &[Frame]) {
    for (at, (is, expected)) in are.iter().zip(expected).enumerate() {
        assert!(is == expected, "frame {at} {}", difference(is, expected));
    }
    assert_eq!(are.len(), expected.len(), "frames");
}

/// In place of the port that was taken off the bench.
struct Gone;

impl Port for Gone {
    fn receive(&mut self, _: &mut Burst) -> io::Result<()> {
        unreachable!("nobody polls a port that is gone")
    }

    fn transmit(&mut self, _: &mut Burst) -> io::Result<()> {
        unreachable!("nobody sends by a port that is gone")
    }

    fn capabilities(&self) -> Capabilities {
        unreachable!("nobody asks a port that is gone")
    }
}
