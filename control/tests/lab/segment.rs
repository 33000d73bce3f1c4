//! TCP segments of a capture as lines of text, read by a parser that is not ours.

use std::fmt::{self, Display};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pollux_control::lab::capture::{Capture, Captured, Direction};

/// A TCP segment in the order and words of tcpdump, with its direction.
pub(crate) struct Segment {
    direction: Direction,
    text: String,
    flags: String,
}

impl Segment {
    /// The segment in a frame, if that is TCP over IPv4.
    pub(crate) fn of(frame: &Captured) -> Option<Segment> {
        let packet = SlicedPacket::from_ethernet(&frame.bytes).ok()?;
        let (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) = (packet.net?, packet.transport?) else {
            return None;
        };
        let ip = ip.header();
        let flags: String = [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.ack(), '.')]
            .into_iter()
            .filter_map(|(set, letter)| set.then_some(letter))
            .collect();
        let way = match frame.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let text = format!(
            "{way} {} > {} {}:{} > {}:{} ttl {} {flags}",
            link_text(&frame.bytes[6..12]),
            link_text(&frame.bytes[..6]),
            ip.source_addr(),
            tcp.source_port(),
            ip.destination_addr(),
            tcp.destination_port(),
            ip.ttl(),
        );
        Some(Segment { direction: frame.direction, text, flags })
    }

    /// Segments up to the one that acknowledges the last of `closings` FINs (two for each time that the
    /// connection passes the interface); an error when they do not come.
    pub(crate) fn of_connection(
        capture: &mut Capture,
        closings: usize,
        within: Duration,
    ) -> Result<Vec<Segment>, Box<dyn std::error::Error>> {
        let mut fins = 0;
        let frames = capture.frames_until(
            |frame| {
                let Some(segment) = Segment::of(frame) else {
                    return false;
                };
                fins += usize::from(segment.flags.contains('F'));
                fins == closings && segment.flags == "."
            },
            within,
        )?;
        assert_eq!(capture.missed()?, 0, "frames were lost");
        let segments: Vec<Segment> = frames.iter().filter_map(Segment::of).collect();
        if fins == closings { Ok(segments) } else { Err(format!("no end: {}", list(&segments)).into()) }
    }
}

impl Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(crate) fn link_text(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(":")
}

fn list(segments: &[Segment]) -> String {
    segments.iter().map(|segment| format!("\n  {segment}")).collect()
}

/// The segments with these flags, as text.
pub(crate) fn with_flags(segments: &[Segment], flags: &str) -> Vec<String> {
    segments.iter().filter(|segment| segment.flags == flags).map(Segment::to_string).collect()
}

/// All segments that go one way have the head of the first: links, addresses, ports, TTL.
pub(crate) fn assert_two_heads(segments: &[Segment]) {
    for direction in [Direction::In, Direction::Out] {
        let mut heads: Vec<&str> = segments
            .iter()
            .filter(|segment| segment.direction == direction)
            .map(|segment| segment.text.trim_end_matches(segment.flags.as_str()))
            .collect();
        heads.dedup();
        assert_eq!(heads.len(), 1, "{}", list(segments));
    }
}
