//! Capture files in pcapng (draft-ietf-opsawg-pcapng): what Wireshark, tshark and tcpdump read, with a comment for each
//! frame. One section, little endian, an interface for each port, times in nanoseconds.

use std::io::{self, Write};

use super::{FrameItem, Way};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// Tells the byte order.
const MAGIC: u32 = 0x1a2b_3c4d;

/// LINKTYPE_ETHERNET of the registry at tcpdump.org.
const ETHERNET: u16 = 1;

/// Longest text of an option, bytes: its length has 16 bits, and is padded to 4.
const LONGEST_TEXT: usize = 65_532;

/// Options of several kinds of block, by number.
const COMMENT: u16 = 1;
const USER_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const TIME_RESOLUTION: u16 = 9;
const FRAME_FLAGS: u16 = 2;
const DROPPED: u16 = 5;

/// Writes a capture file.
pub struct PcapngWriter<W: Write> {
    output: W,
    snap_len: u32,
    /// The ports' names, in the order of their interfaces in the file.
    ports: Vec<String>,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a file whose frames have at most `snap_len` bytes each, with interfaces for these ports. `output` should
    /// be buffered.
    ///
    /// # Errors
    /// The output's.
    pub fn new(output: W, snap_len: u32, ports: &[String]) -> io::Result<PcapngWriter<W>> {
        let mut writer = PcapngWriter { output, snap_len, ports: Vec::new() };
        let mut header = Block::new(SECTION_HEADER);
        header.u32(MAGIC).u16(1).u16(0).u32(u32::MAX).u32(u32::MAX); // version, length not known
        header.option(USER_APPLICATION, concat!("pollux ", env!("CARGO_PKG_VERSION")).as_bytes());
        header.write(&mut writer.output)?;
        for port in ports {
            writer.interface(port)?;
        }
        Ok(writer)
    }

    /// Writes a frame; its decision is its comment.
    ///
    /// # Errors
    /// The output's.
    pub fn write(&mut self, frame: &FrameItem) -> io::Result<()> {
        let interface = self.interface(&frame.port)?;
        let nanos = u64::try_from(frame.time.as_nanosecond()).unwrap_or(0);
        let bytes = frame.bytes();
        let mut block = Block::new(ENHANCED_PACKET);
        block.u32(interface).u32((nanos >> 32) as u32).u32(nanos as u32);
        block.u32(bytes.len() as u32).u32(frame.length_bytes as u32).padded(&bytes);
        if let Some(decision) = &frame.decision {
            block.option(COMMENT, clipped(&decision.comment()).as_bytes());
        }
        let flags: u32 = match frame.direction {
            Way::In => 1,
            Way::Out => 2,
        };
        block.option(FRAME_FLAGS, &flags.to_le_bytes());
        block.write(&mut self.output)
    }

    /// Ends the file: `lost` frames are missing in it.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(mut self, lost: u64) -> io::Result<W> {
        if !self.ports.is_empty() {
            let nanos = jiff::Timestamp::now().as_nanosecond() as u64;
            let mut block = Block::new(INTERFACE_STATISTICS);
            block.u32(0).u32((nanos >> 32) as u32).u32(nanos as u32);
            block.option(DROPPED, &lost.to_le_bytes());
            block.write(&mut self.output)?;
        }
        self.output.flush()?;
        Ok(self.output)
    }

    /// Hands on what was written.
    ///
    /// # Errors
    /// The output's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// The number of a port's interface, which is described where it is met first.
    fn interface(&mut self, port: &str) -> io::Result<u32> {
        if let Some(at) = self.ports.iter().position(|known| known == port) {
            return Ok(at as u32);
        }
        let mut block = Block::new(INTERFACE_DESCRIPTION);
        block.u16(ETHERNET).u16(0).u32(self.snap_len);
        block.option(INTERFACE_NAME, clipped(port).as_bytes()).option(TIME_RESOLUTION, &[9]);
        block.write(&mut self.output)?;
        self.ports.push(port.to_owned());
        Ok(self.ports.len() as u32 - 1)
    }
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_TEXT)]
}

/// A block that is being put together.
struct Block {
    kind: u32,
    body: Vec<u8>,
    has_options: bool,
}

impl Block {
    fn new(kind: u32) -> Block {
        Block { kind, body: Vec::new(), has_options: false }
    }

    fn u16(&mut self, number: u16) -> &mut Block {
        self.body.extend(number.to_le_bytes());
        self
    }

    fn u32(&mut self, number: u32) -> &mut Block {
        self.body.extend(number.to_le_bytes());
        self
    }

    fn padded(&mut self, bytes: &[u8]) -> &mut Block {
        self.body.extend(bytes);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    fn option(&mut self, number: u16, value: &[u8]) -> &mut Block {
        self.has_options = true;
        self.u16(number).u16(value.len() as u16).padded(value)
    }

    /// Kind, length, body, length.
    fn write(&mut self, output: &mut impl Write) -> io::Result<()> {
        if self.has_options {
            self.u32(0); // their end
        }
        let len = self.body.len() as u32 + 12;
        output.write_all(&self.kind.to_le_bytes())?;
        output.write_all(&len.to_le_bytes())?;
        output.write_all(&self.body)?;
        output.write_all(&len.to_le_bytes())
    }
}
