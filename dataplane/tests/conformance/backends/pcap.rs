//! `pcap`: replays a capture and records one. A replay is known before it begins, so what the far end sends while
//! the port is open becomes the next capture, and the next port: the last one was at its end.

use std::collections::VecDeque;
use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use pollux_dataplane::packet::{Burst, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::pcap::{PcapPort, PcapReader, PcapWriter};
use pollux_dataplane::port::{Capabilities, Port};
use pollux_dataplane::time::Instant;

use crate::backends::Backend;
use crate::bench::{Bench, Device, Sent, Wire};
use crate::frame::Frame;
use crate::nature::{
    Arrival, COMPLETE, Down, EmptyPool, FullReceive, FullTransmit, Into, Jumbo, Longest, Nature, Needs,
    Sleep, Unfit,
};

pub(super) const NATURE: Nature = Nature {
    name: "pcap",
    far_end: "the two captures",
    needs: Needs::Nothing,
    out: COMPLETE,
    into: Into { checksums: Arrival::Bare, super_frames: Arrival::Bare },
    shortest: 0,
    longest: Longest::Any,
    unfit: Unfit::StayWithCaller,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::Waits,
    full_transmit: FullTransmit::Never,
    empty_pool: EmptyPool::Waits,
    down: Down::NoDevice,
    sleep: Sleep::Polls,
};

pub(super) const BACKEND: Backend = Backend { nature: &NATURE, open };

/// What a record's header is long, by the format's description at tcpdump.org.
const RECORD_HEADER: usize = 16;

/// Bytes behind a lock: a file that both ends have open.
#[derive(Clone, Default)]
struct File(Arc<Mutex<VecDeque<u8>>>);

impl File {
    fn bytes(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().expect("no test has failed with the file in its hands")
    }
}

/// Bytes of a capture's header.
const CAPTURE_HEADER: usize = 24;

/// What a replay sends, behind what earlier ones have. One capture's header is enough for the far end, which may be
/// reading: this one's never gets there.
struct Behind {
    file: File,
    /// Bytes of the header still to come.
    header: usize,
}

impl Write for Behind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (header, records) = bytes.split_at(bytes.len().min(self.header));
        self.header -= header.len();
        self.file.bytes().extend(records);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A replay after the other.
struct Replays {
    port: PcapPort<Cursor<Vec<u8>>, Behind>,
    /// Records for the next replay, and the record of what was sent.
    next: File,
    sent: File,
    id: PortId,
    pool: &'static Pool,
}

fn replay(
    records: impl IntoIterator<Item = u8>,
    sent: &File,
    id: PortId,
    pool: &'static Pool,
) -> PcapPort<Cursor<Vec<u8>>, Behind> {
    let mut capture = Vec::new();
    // Little endian, nanoseconds, Ethernet.
    for word in [0xa1b2_3c4du32, 0x0004_0002, 0, 0, 262_144, 1] {
        capture.extend(word.to_le_bytes());
    }
    capture.extend(records);
    let reader = PcapReader::new(Cursor::new(capture)).expect("a capture");
    let sent = Behind { file: sent.clone(), header: CAPTURE_HEADER };
    let writer = PcapWriter::new(sent).expect("a writer");
    let mut port = PcapPort::new(reader, writer, id, pool);
    port.set_time(Instant::from_secs(1));
    port
}

impl Port for Replays {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        if self.port.next_time().is_none() {
            let records = std::mem::take(&mut *self.next.bytes());
            if !records.is_empty() {
                self.port = replay(records, &self.sent, self.id, self.pool);
            }
        }
        self.port.receive(burst)
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.port.transmit(burst)
    }

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    fn missed(&mut self) -> u64 {
        self.port.missed()
    }
}

struct Captures {
    next: File,
    sent: File,
}

fn open(pool: &'static Pool, id: PortId) -> Bench {
    let (next, sent) = (File::default(), File::default());
    let port = replay([], &sent, id, pool);
    let wire = Captures { next: next.clone(), sent: sent.clone() };
    let port = Replays { port, next, sent, id, pool };
    Bench::new(&NATURE, pool, Box::new(port), Box::new(wire), Box::new(()))
}

impl Wire for Captures {
    fn send(&mut self, frame: &Frame) -> Sent {
        let len = frame.bytes.len() as u32;
        let mut file = self.next.bytes();
        for word in [0, 1, len, len] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(&frame.bytes);
        Sent::OnItsWay
    }

    fn receive(&mut self) -> Option<Frame> {
        let mut file = self.sent.bytes();
        if file.len() < RECORD_HEADER {
            return None;
        }
        let field = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| file[at + byte])) as usize;
        let (len, whole) = (field(8), field(12));
        assert_eq!(len, whole, "the whole frame is recorded");
        // A record is written in pieces.
        if file.len() < RECORD_HEADER + len {
            return None;
        }
        file.drain(..RECORD_HEADER);
        Some(Frame::plain(file.drain(..len).collect()))
    }

    fn set_device(&mut self, _: Device) {
        unreachable!("there is no device");
    }
}
