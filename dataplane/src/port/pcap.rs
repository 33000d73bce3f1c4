//! Captures: classic pcap files of Ethernet frames, to replay and to record.
//!
//! The format is a header of 24 bytes and 16 bytes before each frame, in the byte order of the machine that
//! wrote it, with microseconds or nanoseconds as the magic number says. Written are nanoseconds, little
//! endian. Times are since the Unix epoch.
//!
//! A [`PcapPort`] puts a reader and a writer together as one port: frames come from the one capture and
//! what is sent goes to the other. Time is the caller's: it asks for the frames up to a time, and says what
//! time it is when frames are sent.

use std::io::{self, Read, Write};

use crate::packet::{Burst, Packet, PortId};
use crate::pool::Pool;
use crate::port::{Capabilities, MAX_FRAME, Port};
use crate::time::Instant;

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// The first word of the successor of the format, the same in both byte orders.
const PCAPNG: u32 = 0x0a0d_0d0a;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// LINKTYPE_ETHERNET of the registry at tcpdump.org.
const LINK_TYPE_ETHERNET: u32 = 1;

/// Reads the frames of a capture.
pub struct PcapReader<R> {
    input: R,
    swapped: bool,
    nanos_per_fraction: u32,
    /// What comes after the last frame that was taken.
    next: Next,
    bytes: Vec<u8>,
    records: u64,
}

enum Next {
    /// A frame, whose first `len` bytes of `bytes` are read already.
    Frame {
        time: Instant,
        len: usize,
    },
    /// The capture is broken here; said once.
    Broken(io::Error),
    End,
}

impl<R: Read> PcapReader<R> {
    /// Reads the header of a capture.
    ///
    /// # Errors
    /// `not a pcap file`; a link type other than Ethernet; the input's errors.
    pub fn new(mut input: R) -> io::Result<PcapReader<R>> {
        let mut header = [0; FILE_HEADER];
        if fill(&mut input, &mut header)? < FILE_HEADER {
            return Err(invalid("not a pcap file: shorter than its header of 24 bytes"));
        }
        let magic = number(&header, 0, false);
        let (swapped, nanos_per_fraction) = match (magic, magic.swap_bytes()) {
            (MICROSECONDS, _) => (false, 1000),
            (NANOSECONDS, _) => (false, 1),
            (_, MICROSECONDS) => (true, 1000),
            (_, NANOSECONDS) => (true, 1),
            (PCAPNG, _) => {
                return Err(invalid("a pcapng file, not a pcap file: convert it with `editcap -F pcap`"));
            }
            _ => return Err(invalid(format!("not a pcap file: magic number {magic:#010x}"))),
        };
        // The upper bits say whether frames end with a checksum of the link; nobody records those.
        let link_type = number(&header, 20, swapped) & 0x03ff_ffff;
        if link_type != LINK_TYPE_ETHERNET {
            return Err(invalid(format!(
                "link type {link_type} of the capture is not Ethernet ({LINK_TYPE_ETHERNET})"
            )));
        }
        let mut reader = PcapReader {
            input,
            swapped,
            nanos_per_fraction,
            next: Next::End,
            bytes: vec![0; MAX_FRAME],
            records: 0,
        };
        reader.advance();
        Ok(reader)
    }

    /// When the next frame was recorded; nothing at the end of the capture, or where it is broken.
    pub fn next_time(&self) -> Option<Instant> {
        match self.next {
            Next::Frame { time, .. } => Some(time),
            Next::Broken(_) | Next::End => None,
        }
    }

    /// Takes the next frame: when it was recorded, and its bytes as far as the capture has them. Nothing
    /// at the end.
    ///
    /// # Errors
    /// The capture is broken here (once, then it has ended); the input's errors; no free buffer, in which
    /// case the frame stays the next.
    pub fn next_frame(&mut self, pool: &'static Pool, port: PortId) -> io::Result<Option<(Instant, Packet)>> {
        match std::mem::replace(&mut self.next, Next::End) {
            Next::Frame { time, len } => {
                let Ok(packet) = Packet::copy_of(pool, port, &self.bytes[..len]) else {
                    self.next = Next::Frame { time, len };
                    return Err(io::Error::new(
                        io::ErrorKind::OutOfMemory,
                        "no free buffer for a frame of the capture",
                    ));
                };
                self.advance();
                Ok(Some((time, packet)))
            }
            Next::Broken(error) => Err(error),
            Next::End => Ok(None),
        }
    }

    fn advance(&mut self) {
        self.next = self.read_ahead().unwrap_or_else(Next::Broken);
    }

    fn read_ahead(&mut self) -> io::Result<Next> {
        let mut header = [0; RECORD_HEADER];
        let number_of = self.records + 1;
        match fill(&mut self.input, &mut header)? {
            0 => return Ok(Next::End),
            RECORD_HEADER => {}
            _ => {
                return Err(invalid(format!("the capture ends within the header of record {number_of}")));
            }
        }
        let [seconds, fraction, len] = [0, 4, 8].map(|at| number(&header, at, self.swapped));
        let len = len as usize;
        if len > MAX_FRAME {
            return Err(invalid(format!(
                "record {number_of} of the capture claims {len} bytes (at most {MAX_FRAME})"
            )));
        }
        let got = fill(&mut self.input, &mut self.bytes[..len])?;
        if got < len {
            return Err(invalid(format!("the capture ends within record {number_of}: {got} of {len} bytes")));
        }
        self.records = number_of;
        Ok(Next::Frame {
            time: Instant(
                u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * u64::from(self.nanos_per_fraction),
            ),
            len,
        })
    }
}

/// Writes frames into a capture.
pub struct PcapWriter<W: Write> {
    output: W,
}

impl<W: Write> PcapWriter<W> {
    /// Begins a capture. `output` should be buffered.
    ///
    /// # Errors
    /// The output's.
    pub fn new(mut output: W) -> io::Result<PcapWriter<W>> {
        let mut header = [0; FILE_HEADER];
        header[0..4].copy_from_slice(&NANOSECONDS.to_le_bytes());
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        header[16..20].copy_from_slice(&262_144u32.to_le_bytes());
        header[20..24].copy_from_slice(&LINK_TYPE_ETHERNET.to_le_bytes());
        output.write_all(&header)?;
        Ok(PcapWriter { output })
    }

    /// Records a frame, as it is, at `time` (since the Unix epoch).
    ///
    /// # Errors
    /// The output's.
    pub fn write(&mut self, time: Instant, packet: &Packet) -> io::Result<()> {
        let mut header = [0; RECORD_HEADER];
        let len = packet.len() as u32;
        let fields = [(time.0 / 1_000_000_000) as u32, (time.0 % 1_000_000_000) as u32, len, len];
        for (place, field) in header.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *place = field.to_le_bytes();
        }
        self.output.write_all(&header)?;
        packet.segments().try_for_each(|part| self.output.write_all(part))
    }

    /// Ends the capture and returns the output.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

/// A port that replays one capture and records into another.
pub struct PcapPort<R, W: Write> {
    reader: PcapReader<R>,
    writer: PcapWriter<W>,
    port: PortId,
    pool: &'static Pool,
    now: Instant,
}

impl<R: Read, W: Write> PcapPort<R, W> {
    /// A port with number `port`. Its time is that of the reader's first frame.
    pub fn new(
        reader: PcapReader<R>,
        writer: PcapWriter<W>,
        port: PortId,
        pool: &'static Pool,
    ) -> PcapPort<R, W> {
        let now = reader.next_time().unwrap_or_default();
        PcapPort { reader, writer, port, pool, now }
    }

    /// When the next frame was recorded; nothing at the end of the capture.
    pub fn next_time(&self) -> Option<Instant> {
        self.reader.next_time()
    }

    /// Sets the port's time: frames recorded up to it can be received, and what is sent bears it.
    pub fn set_time(&mut self, now: Instant) {
        self.now = now;
    }

    /// Ends both captures and returns the output.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(self) -> io::Result<W> {
        self.writer.finish()
    }
}

impl<R: Read + Send + 'static, W: Write + Send + 'static> Port for PcapPort<R, W> {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        let before = burst.len();
        while !burst.is_full() {
            match self.reader.next {
                Next::Frame { time, .. } if time <= self.now => {}
                // An error is said alone, by the next call.
                Next::Broken(_) if burst.len() == before => {}
                _ => break,
            }
            match self.reader.next_frame(self.pool, self.port) {
                Ok(frame) => burst.extend(frame.map(|(_, packet)| packet)),
                // No free buffer: the frame stays the next.
                Err(_) if burst.len() > before => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        let mut written = 0;
        let mut result = Ok(());
        for packet in burst.iter() {
            result = self.writer.write(self.now, packet);
            if result.is_err() {
                break;
            }
            written += 1;
        }
        burst.drain(..written);
        // Nothing may have been taken when an error is said; it is met again by the next burst.
        if written == 0 { result } else { Ok(()) }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// The 32-bit number at `at`: little endian, or big endian when `swapped`.
fn number(bytes: &[u8], at: usize, swapped: bool) -> u32 {
    let number = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if swapped { number.swap_bytes() } else { number }
}

/// Reads until `bytes` is full or the input ends, and says how much was read.
fn fill(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < bytes.len() {
        match input.read(&mut bytes[at..]) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One frame of 4 bytes at 1.5 s, in the given byte order and unit.
    fn capture(swapped: bool, magic: u32, fraction: u32) -> Vec<u8> {
        let words = [magic, 0, 0, 0, 65_535, 1, 1, fraction, 4, 60];
        let mut bytes: Vec<u8> = words
            .into_iter()
            .flat_map(|word| if swapped { word.to_be_bytes() } else { word.to_le_bytes() })
            .collect();
        bytes.extend([1, 2, 3, 4]);
        bytes
    }

    fn only_frame(bytes: &[u8]) -> (Instant, Vec<u8>) {
        let pool = Pool::new(4).unwrap();
        let mut reader = PcapReader::new(bytes).unwrap();
        let (time, packet) = reader.next_frame(pool, PortId(7)).unwrap().unwrap();
        assert_eq!(packet.port, PortId(7));
        assert!(reader.next_frame(pool, PortId(7)).unwrap().is_none());
        (time, packet.to_vec())
    }

    fn message(bytes: &[u8]) -> String {
        PcapReader::new(bytes).err().unwrap().to_string()
    }

    fn message_of_frame(bytes: &[u8]) -> String {
        let pool = Pool::new(4).unwrap();
        let mut reader = PcapReader::new(bytes).unwrap();
        let error = reader.next_frame(pool, PortId(0)).err().unwrap();
        assert!(reader.next_frame(pool, PortId(0)).unwrap().is_none());
        error.to_string()
    }

    #[test]
    fn pt_03_both_byte_orders_and_both_units_are_read() {
        let expected = (Instant::from_millis(1_500), vec![1, 2, 3, 4]);
        assert_eq!(only_frame(&capture(false, MICROSECONDS, 500_000)), expected);
        assert_eq!(only_frame(&capture(true, MICROSECONDS, 500_000)), expected);
        assert_eq!(only_frame(&capture(false, NANOSECONDS, 500_000_000)), expected);
        assert_eq!(only_frame(&capture(true, NANOSECONDS, 500_000_000)), expected);
    }

    #[test]
    fn pt_03_bad_captures_say_what_is_wrong() {
        let good = capture(false, MICROSECONDS, 0);
        assert_eq!(message(&good[..23]), "not a pcap file: shorter than its header of 24 bytes");
        assert_eq!(message(&capture(false, 0x1234_5678, 0)), "not a pcap file: magic number 0x12345678");
        assert!(message(&capture(false, PCAPNG, 0)).starts_with("a pcapng file"));
        let mut cooked = good.clone();
        cooked[20] = 113;
        assert_eq!(message(&cooked), "link type 113 of the capture is not Ethernet (1)");
        assert_eq!(message_of_frame(&good[..30]), "the capture ends within the header of record 1");
        assert_eq!(message_of_frame(&good[..42]), "the capture ends within record 1: 2 of 4 bytes");
        let mut huge = good;
        huge[34] = 0xff;
        assert!(message_of_frame(&huge).starts_with("record 1 of the capture claims 16711684 bytes"));
    }

    #[test]
    fn pt_03_what_is_recorded_is_replayed_with_its_times() {
        let pool = Pool::new(128).unwrap();
        let frames: Vec<Vec<u8>> = [60, 1514, 65_549]
            .into_iter()
            .map(|len: u32| (0..len).map(|at| (at * 31) as u8).collect())
            .collect();
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for (number, frame) in frames.iter().enumerate() {
            let packet = Packet::copy_of(pool, PortId(0), frame).unwrap();
            writer.write(Instant(1_753_000_000_123_456_789 + number as u64), &packet).unwrap();
        }
        let capture = writer.finish().unwrap();
        let mut reader = PcapReader::new(&capture[..]).unwrap();
        for (number, frame) in frames.iter().enumerate() {
            let (time, packet) = reader.next_frame(pool, PortId(0)).unwrap().unwrap();
            assert_eq!(time, Instant(1_753_000_000_123_456_789 + number as u64));
            assert_eq!(&packet.to_vec(), frame);
        }
        assert!(reader.next_frame(pool, PortId(0)).unwrap().is_none());
    }

    #[test]
    fn pt_03_the_port_replays_up_to_its_time_and_records_at_it() {
        let pool = Pool::new(8).unwrap();
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for second in [5, 6, 6, 9] {
            let packet = Packet::copy_of(pool, PortId(0), &[second as u8; 60]).unwrap();
            writer.write(Instant::from_secs(second), &packet).unwrap();
        }
        let capture = writer.finish().unwrap();
        let reader = PcapReader::new(io::Cursor::new(capture)).unwrap();
        let writer = PcapWriter::new(Vec::new()).unwrap();
        let mut port = PcapPort::new(reader, writer, PortId(3), pool);

        let mut burst = Burst::new();
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), 1);
        assert_eq!(port.next_time(), Some(Instant::from_secs(6)));
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), 1);
        port.set_time(Instant::from_secs(8));
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), 3);
        port.transmit(&mut burst).unwrap();
        assert!(burst.is_empty());

        let recorded = port.finish().unwrap();
        let mut reader = PcapReader::new(&recorded[..]).unwrap();
        for mark in [5, 6, 6] {
            let (time, packet) = reader.next_frame(pool, PortId(0)).unwrap().unwrap();
            assert_eq!((time, packet.head()[0]), (Instant::from_secs(8), mark));
        }
        assert!(reader.next_frame(pool, PortId(0)).unwrap().is_none());
    }

    #[test]
    fn pt_03_the_port_says_a_broken_record_after_the_good_ones() {
        let pool = Pool::new(8).unwrap();
        let mut bytes = capture(false, MICROSECONDS, 0);
        bytes.extend([0; 7]);
        let reader = PcapReader::new(io::Cursor::new(bytes)).unwrap();
        let writer = PcapWriter::new(Vec::new()).unwrap();
        let mut port = PcapPort::new(reader, writer, PortId(0), pool);
        let mut burst = Burst::new();
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), 1);
        let error = port.receive(&mut burst).unwrap_err();
        assert_eq!(error.to_string(), "the capture ends within the header of record 2");
        port.receive(&mut burst).unwrap();
        assert_eq!(burst.len(), 1);
    }
}
