//! Order, and bursts of all sizes.

use std::collections::BTreeMap;

use pollux_dataplane::packet::{BURST, Burst};

use crate::bench::{Bench, PORT, assert_same};
use crate::frame::{Frame, numbered, tcp4_super, varied};
use crate::nature::Arrival;

const FLOWS: u16 = 8;

/// Frames of several flows in turn, of all lengths; and where they are carried, super-frames between them.
fn of_several_flows(each: u32, gso: bool) -> Vec<Frame> {
    let frame = |flow: u16, number: u32| {
        let long = gso && (number + u32::from(flow)).is_multiple_of(11);
        if long { tcp4_super(flow, number, 20_000) } else { varied(flow, number) }
    };
    (0..each).flat_map(|number| (0..FLOWS).map(move |flow| frame(flow, number))).collect()
}

fn by_flow(frames: &[Frame]) -> BTreeMap<u16, Vec<Frame>> {
    let mut flows: BTreeMap<u16, Vec<Frame>> = BTreeMap::new();
    for frame in frames {
        flows.entry(frame.number().0).or_default().push(frame.clone());
    }
    flows
}

/// Frames of each flow come in the order in which they were sent, in both directions at once, each once.
pub(super) fn order_is_kept_within_a_flow(bench: &mut Bench) {
    let out = of_several_flows(60, bench.nature.out.gso);
    let into = of_several_flows(60, bench.nature.into.super_frames == Arrival::Marked);
    let mut received = Vec::new();
    // Bursts of changing sizes, the two directions in turn.
    let (mut out_left, mut into_left) = (out.as_slice(), into.as_slice());
    let mut size = 1;
    while !(out_left.is_empty() && into_left.is_empty()) {
        let (now, later) = into_left.split_at(size.min(into_left.len()));
        bench.inject(now);
        into_left = later;
        let (now, later) = out_left.split_at(size.min(out_left.len()));
        bench.transmit(now);
        out_left = later;
        received.extend(bench.poll().iter().map(Frame::of));
        size = size * 7 % (BURST + 1);
    }
    let left = into.len() - received.len();
    received.extend(bench.frames(left));
    let arrived = bench.arrivals(out.len());
    for (is, expected) in [(&received, &into), (&arrived, &out)] {
        let (is, expected) = (by_flow(is), by_flow(expected));
        assert_eq!(is.len(), usize::from(FLOWS));
        for (flow, frames) in &expected {
            assert_same(&is[flow], frames);
        }
    }
    assert_eq!(bench.port.missed(), 0);
}

/// A burst of any size leaves whole, and what arrives is appended to whatever the caller's burst holds already.
pub(super) fn bursts_of_1_to_the_maximum(bench: &mut Bench) {
    let mut nothing = Burst::new();
    bench.port.transmit(&mut nothing).expect("a burst of nothing is sent");
    for size in 1..=BURST {
        let frames: Vec<Frame> = (0..size as u32).map(|number| varied(1, number)).collect();
        let mut burst: Burst = frames.iter().map(|frame| frame.packet(bench.pool)).collect();
        bench.port.transmit(&mut burst).expect("the port sends");
        assert_eq!(burst.len(), 0, "frames left of a burst of {size}, with room for all");
        assert_same(&bench.arrivals_at_least(size), &frames);

        // As many as fit behind what is there.
        bench.inject(&frames);
        let there = BURST - size / 2;
        let mine = numbered(9, 0, 60);
        let mut received = Vec::new();
        let mut rounds = 0;
        while received.len() < size {
            let mut burst: Burst = (0..there).map(|_| mine.packet(bench.pool)).collect();
            bench.port.receive(&mut burst).expect("the port receives");
            assert!(burst.len() >= there, "the caller's frames are still there");
            let (kept, new) = burst.split_at(there);
            assert!(
                kept.iter().all(|packet| Frame::of(packet) == mine),
                "the caller's frames are as they were"
            );
            assert!(new.iter().all(|packet| packet.port == PORT), "received frames have the port's number");
            received.extend(new.iter().map(Frame::of));
            // A full burst (of size 1, half of which is none) leaves everything where it is.
            if there == BURST {
                assert!(new.is_empty());
                break;
            }
            rounds += 1;
            assert!(rounds < 100_000, "{} of {size} frames came", received.len());
        }
        if there == BURST {
            received.extend(bench.frames(size));
        }
        assert_same(&received, &frames);
    }
    assert_eq!(bench.port.missed(), 0);
}
