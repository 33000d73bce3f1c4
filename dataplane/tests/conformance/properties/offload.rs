//! What a sender leaves to the device (PT-04), and frames in many pieces.

use pollux_dataplane::packet::{Burst, Chunk, Packet, PortId};
use pollux_dataplane::pool::{CHUNK, HEADROOM, Pool};

use crate::bench::{Bench, assert_same};
use crate::frame::{Frame, finished, numbered, partial, super_frames, tcp4_super};
use crate::nature::Arrival;

/// The port says what it carries; and a partial checksum leaves as it is, with its mark.
pub(super) fn partial_checksums_leave_as_they_are(bench: &mut Bench) {
    assert_eq!(bench.port.capabilities(), bench.nature.out);
    if bench.nature.out.partial_checksum {
        leave(bench, &partial());
    }
}

/// A partial checksum arrives as it is, with its mark, or as the description says.
pub(super) fn partial_checksums_arrive_as_they_are(bench: &mut Bench) {
    arrive(bench, &partial(), bench.nature.into.checksums);
}

/// A super-frame leaves in one piece, with its mark.
pub(super) fn super_frames_leave_as_they_are(bench: &mut Bench) {
    assert_eq!(bench.port.capabilities(), bench.nature.out);
    if bench.nature.out.gso {
        leave(bench, &super_frames());
    }
}

/// A super-frame arrives in one piece, with its mark, or as the description says.
pub(super) fn super_frames_arrive_as_they_are(bench: &mut Bench) {
    arrive(bench, &super_frames(), bench.nature.into.super_frames);
}

fn leave(bench: &mut Bench, frames: &[Frame]) {
    for frame in frames {
        let frame = std::slice::from_ref(frame);
        bench.transmit(frame);
        assert_same(&bench.arrivals_at_least(1), frame);
    }
    bench.transmit(frames);
    assert_same(&bench.arrivals(frames.len()), frames);
}

fn arrive(bench: &mut Bench, frames: &[Frame], arrival: Arrival) {
    if arrival == Arrival::Missed {
        bench.inject(frames);
        assert_eq!(bench.drain().len(), 0);
        assert_eq!(bench.port.missed(), frames.len() as u64);
        return bench.assert_works();
    }
    // Whether pieces come finished is the kernel's business; what they are when they are is not.
    let is = |frames: Vec<Frame>| match arrival {
        Arrival::Cut => frames.iter().flat_map(finished).collect(),
        _ => frames,
    };
    let becomes = |frame: &Frame| match arrival {
        Arrival::Marked => vec![frame.clone()],
        Arrival::Bare => vec![Frame::plain(frame.bytes.clone())],
        Arrival::Finished | Arrival::Cut | Arrival::Missed => finished(frame),
    };
    let mut all = Vec::new();
    for frame in frames {
        let expected = becomes(frame);
        bench.inject(std::slice::from_ref(frame));
        let packets = bench.receive_at_least(expected.len());
        assert_same(&is(packets.iter().map(Frame::of).collect()), &expected);
        all.extend(expected);
    }
    bench.inject(frames);
    let frames = bench.frames(all.len());
    assert_same(&is(frames), &all);
    assert_eq!(bench.port.missed(), 0);
}

/// How a frame lies in its chunks.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of the first piece.
    head: usize,
    /// Where the later pieces begin in their chunks.
    start: usize,
    /// Bytes of a later piece, at most.
    piece: usize,
}

/// Shapes that ports and the pipeline make, and some that none makes yet.
const SHAPES: [Shape; 5] = [
    // A header of its own, and the frame behind it.
    Shape { head: 14, start: 0, piece: CHUNK },
    Shape { head: 54, start: 3, piece: CHUNK - 3 },
    Shape { head: 64, start: 700, piece: CHUNK / 2 },
    // As AF_XDP fills chunks, and as DPDK's drivers do.
    Shape { head: CHUNK - HEADROOM, start: 256, piece: CHUNK - 256 },
    Shape { head: CHUNK - HEADROOM, start: 128, piece: CHUNK - 128 },
];

/// `frame` in pieces.
fn in_pieces(pool: &'static Pool, frame: &Frame, shape: Shape) -> Packet {
    let chunk = |start: usize, bytes: &[u8]| {
        let mut buffer = pool.allocate().expect("memory");
        buffer.bytes_mut()[start..][..bytes.len()].copy_from_slice(bytes);
        Chunk { index: buffer.into_index(), start: start as u16, len: bytes.len() as u16 }
    };
    let (head, rest) = frame.bytes.split_at(shape.head.min(frame.bytes.len()));
    let rest = rest.chunks(shape.piece).map(|piece| chunk(shape.start, piece));
    let chunks: Vec<Chunk> = std::iter::once(chunk(HEADROOM, head)).chain(rest).collect();
    // SAFETY: all chunks were given away just now, each is here once, and no device has them.
    let mut packet = unsafe { Packet::from_chunks(pool, PortId(0), chunks) }.expect("chunks");
    packet.offload = frame.offload;
    packet
}

/// A frame leaves whole, wherever its chunks begin and however little is in them; a prepended header is part of it.
pub(super) fn chains_of_any_shape_leave_whole(bench: &mut Bench) {
    let mut frames: Vec<Frame> = [100, 600, 1_514].map(|len| numbered(1, len as u32, len)).into();
    if bench.nature.out.gso {
        frames.push(tcp4_super(1, 5, 30_000));
        frames.push(tcp4_super(1, 6, 65_535 - 54));
    }
    for frame in &frames {
        for shape in SHAPES {
            let packet = in_pieces(bench.pool, frame, shape);
            assert_same(&[Frame::of(&packet)], std::slice::from_ref(frame));
            let mut burst = Burst::new();
            burst.push(packet);
            // Made from its tail: the header before it is written into the headroom.
            let mut prepended = Packet::copy_of(bench.pool, PortId(0), &frame.bytes[14..]).expect("memory");
            prepended.prepend(14).expect("headroom")[..14].copy_from_slice(&frame.bytes[..14]);
            prepended.offload = frame.offload;
            burst.push(prepended);
            bench.port.transmit(&mut burst).expect("the port sends");
            assert_eq!(burst.len(), 0, "frames left");
            assert_same(&bench.arrivals_at_least(2), &[frame.clone(), frame.clone()]);
        }
    }
    in_more_pieces_than_any_port_makes(bench, frames.last().expect("there are some"));
    bench.assert_works();
}

/// It leaves whole, or it stays whole.
fn in_more_pieces_than_any_port_makes(bench: &mut Bench, frame: &Frame) {
    let shape = Shape { head: 20, start: 0, piece: 61 };
    let mut burst: Burst = [in_pieces(bench.pool, frame, shape)].into_iter().collect();
    bench.port.transmit(&mut burst).expect("the port sends");
    match burst.pop() {
        Some(packet) => assert_same(&[Frame::of(&packet)], std::slice::from_ref(frame)),
        None => assert_same(&bench.arrivals(1), std::slice::from_ref(frame)),
    }
}
