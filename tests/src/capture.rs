//! The TCP connections that the seed captured on slave1: on caliee93b0bdd66 (W1) and on ens3 (W2), with the
//! checksums that tcpdump printed. They come from a kernel's stack, so they are an opinion that no code of
//! this repository has a share in.
//!
//! Where tcpdump says `cksum 0xeb0f (incorrect -> 0xd179)` the sender left the checksum to the device: the
//! first number is the partial one in the field, the second the true one (PT-04).

use std::net::Ipv4Addr;

use crate::frame::{Body, DONT_FRAGMENT, Frame, Tcp, flag};

/// Who sends a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client on slave1's host.
    Client,
    /// The pod.
    Server,
}

/// A captured connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// The client's socket.
    pub client: (Ipv4Addr, u16),
    /// The pod's.
    pub server: (Ipv4Addr, u16),
    /// The segments, in order.
    pub segments: [Segment; 6],
}

/// One captured segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Who sends it.
    pub side: Side,
    flags: u8,
    /// Its TTL where it was captured.
    pub ttl: u8,
    id: u16,
    sequence: u32,
    acknowledgement: u32,
    window: u16,
    mss: u16,
    timestamps: (u32, u32),
    /// The checksum that was in the field, where it was partial.
    pub partial: Option<u16>,
    /// The true checksum.
    pub checksum: u16,
}

impl Connection {
    /// A segment as it was captured, but for the link addresses.
    pub fn frame(&self, segment: &Segment) -> Frame {
        let (source, destination) = match segment.side {
            Side::Client => (self.client, self.server),
            Side::Server => (self.server, self.client),
        };
        let (value, echo) = segment.timestamps;
        let timestamps = [&[8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat();
        let options = if segment.flags & flag::SYN == 0 {
            [&[1, 1][..], &timestamps].concat() // nop, nop, TS
        } else {
            let mss = segment.mss.to_be_bytes();
            // mss, sackOK, TS, nop, wscale 7
            [&[2, 4, mss[0], mss[1], 4, 2][..], &timestamps, &[1, 3, 3, 7]].concat()
        };
        let body = Body::Tcp(Tcp {
            source_port: source.1,
            destination_port: destination.1,
            sequence: segment.sequence,
            acknowledgement: segment.acknowledgement,
            flags: segment.flags,
            window: segment.window,
            options,
            payload: Vec::new(),
        });
        Frame {
            link_source: [0; 6],
            link_destination: [0; 6],
            tos: 0,
            id: segment.id,
            fragment: DONT_FRAGMENT,
            ttl: segment.ttl,
            source: source.0,
            destination: destination.0,
            body,
        }
    }
}

const SYN: u8 = flag::SYN;
const SYN_ACK: u8 = flag::SYN | flag::ACK;
const ACK: u8 = flag::ACK;
const FIN_ACK: u8 = flag::FIN | flag::ACK;
use Side::{Client, Server};

/// W1: host to the pod on the same node, captured on caliee93b0bdd66 at 19:41:32.472480.
#[rustfmt::skip]
pub const LOCAL: Connection = Connection {
    client: (Ipv4Addr::new(172, 16, 1, 50), 56060),
    server: (Ipv4Addr::new(10, 151, 51, 8), 80),
    segments: [
        Segment { side: Client, flags: SYN, ttl: 64, id: 12738, sequence: 3_944_836_934, acknowledgement: 0,
            window: 64240, mss: 1460, timestamps: (4_165_427_895, 0),
            partial: Some(0xeb0f), checksum: 0xd179 },
        Segment { side: Server, flags: SYN_ACK, ttl: 64, id: 0, sequence: 2_940_287_251,
            acknowledgement: 3_944_836_935, window: 64260, mss: 1440, timestamps: (3_616_597_104, 4_165_427_895),
            partial: Some(0xeb0f), checksum: 0x2d12 },
        Segment { side: Client, flags: ACK, ttl: 64, id: 12739, sequence: 3_944_836_935,
            acknowledgement: 2_940_287_252, window: 502, mss: 0, timestamps: (4_165_427_896, 3_616_597_104),
            partial: Some(0xeb07), checksum: 0x54d8 },
        Segment { side: Client, flags: FIN_ACK, ttl: 64, id: 12740, sequence: 3_944_836_935,
            acknowledgement: 2_940_287_252, window: 502, mss: 0, timestamps: (4_165_427_896, 3_616_597_104),
            partial: Some(0xeb07), checksum: 0x54d7 },
        Segment { side: Server, flags: FIN_ACK, ttl: 64, id: 19025, sequence: 2_940_287_252,
            acknowledgement: 3_944_836_936, window: 503, mss: 0, timestamps: (3_616_597_105, 4_165_427_896),
            partial: Some(0xeb07), checksum: 0x54d4 },
        Segment { side: Client, flags: ACK, ttl: 64, id: 12741, sequence: 3_944_836_936,
            acknowledgement: 2_940_287_253, window: 502, mss: 0, timestamps: (4_165_427_896, 3_616_597_105),
            partial: Some(0xeb07), checksum: 0x54d5 },
    ],
};

/// W2: host to the pod on slave2, captured on ens3 at 19:39:12.485915. What came over the wire is complete.
#[rustfmt::skip]
pub const REMOTE: Connection = Connection {
    client: (Ipv4Addr::new(172, 16, 1, 50), 55972),
    server: (Ipv4Addr::new(10, 151, 49, 8), 80),
    segments: [
        Segment { side: Client, flags: SYN, ttl: 64, id: 24420, sequence: 3_418_510_475, acknowledgement: 0,
            window: 64240, mss: 1460, timestamps: (4_165_287_909, 0),
            partial: Some(0xe90f), checksum: 0x30c0 },
        Segment { side: Server, flags: SYN_ACK, ttl: 63, id: 0, sequence: 1_123_531_887,
            acknowledgement: 3_418_510_476, window: 64260, mss: 1440, timestamps: (2_103_428_420, 4_165_287_909),
            partial: None, checksum: 0xeea3 },
        Segment { side: Client, flags: ACK, ttl: 64, id: 24421, sequence: 3_418_510_476,
            acknowledgement: 1_123_531_888, window: 502, mss: 0, timestamps: (4_165_287_910, 2_103_428_420),
            partial: Some(0xe907), checksum: 0x166a },
        Segment { side: Client, flags: FIN_ACK, ttl: 64, id: 24422, sequence: 3_418_510_476,
            acknowledgement: 1_123_531_888, window: 502, mss: 0, timestamps: (4_165_287_910, 2_103_428_420),
            partial: Some(0xe907), checksum: 0x1669 },
        Segment { side: Server, flags: FIN_ACK, ttl: 63, id: 55352, sequence: 1_123_531_888,
            acknowledgement: 3_418_510_477, window: 503, mss: 0, timestamps: (2_103_428_421, 4_165_287_910),
            partial: None, checksum: 0x1666 },
        Segment { side: Client, flags: ACK, ttl: 64, id: 24423, sequence: 3_418_510_477,
            acknowledgement: 1_123_531_889, window: 502, mss: 0, timestamps: (4_165_287_910, 2_103_428_421),
            partial: Some(0xe907), checksum: 0x1667 },
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Checksum, Fields};

    #[test]
    fn pt_04_both_checksums_of_every_captured_segment_are_what_tcpdump_printed() {
        for connection in [LOCAL, REMOTE] {
            for segment in &connection.segments {
                let frame = connection.frame(segment);
                assert_eq!(Fields::of(&frame.bytes()).checksum, segment.checksum, "{segment:?}");
                if let Some(partial) = segment.partial {
                    let bytes = frame.with_checksum(Checksum::Partial);
                    assert_eq!(Fields::of(&bytes).checksum, partial, "{segment:?}");
                }
            }
        }
    }
}
