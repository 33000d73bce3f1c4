//! Short frames, long frames, and all between.

use pollux_dataplane::packet::{Burst, Packet};

use crate::bench::{Bench, PORT, Sent, assert_same};
use crate::frame::{ETHERNET, Frame, numbered};
use crate::nature::{Jumbo, Unfit};

/// The longest complete frame on an Ethernet of 1500 bytes.
const FULL: usize = 1514;

/// An Ethernet with jumbo frames.
const JUMBO_MTU: usize = 9000;

/// Free bytes before a received frame that a tunnel may count on.
const HEADROOM: usize = 128;

/// Whatever is carried arrives byte for byte, each frame under the port's number, marked as complete, and with room
/// for another header.
pub(super) fn frames_of_every_length_pass_both_ways(bench: &mut Bench) {
    let frames: Vec<Frame> = (60..=FULL).map(|len| numbered(1, len as u32, len)).collect();
    for frames in frames.chunks(200) {
        bench.transmit(frames);
        assert_same(&bench.arrivals_at_least(frames.len()), frames);
        bench.inject(frames);
        let mut packets = bench.receive_at_least(frames.len());
        for packet in &mut packets {
            assert_eq!(packet.port, PORT);
            assert!(packet.offload.needs_nothing(), "{:?}", packet.offload);
            assert!(packet.prepend(HEADROOM).is_some(), "{HEADROOM} bytes of headroom");
            packet.trim_front(HEADROOM);
        }
        assert_same(&packets.iter().map(Frame::of).collect::<Vec<_>>(), frames);
    }
    assert_eq!(bench.port.missed(), 0);
}

/// A VLAN tag stays in its frame.
pub(super) fn tagged_frames_keep_their_tag(bench: &mut Bench) {
    let frames = [60, 200, FULL].map(|len| numbered(1, 0, len).tagged());
    bench.transmit(&frames);
    assert_same(&bench.arrivals(3), &frames);
    bench.inject(&frames);
    assert_same(&bench.frames(3), &frames);
}

/// A frame that the device can not send stays with the caller, whoever sent it; the others of its burst leave.
pub(super) fn frames_too_short_or_too_long_to_send_hold_up_no_other(bench: &mut Bench) {
    let nature = bench.nature;
    let long = numbered(1, 0, 10_000).bytes;
    let bytes = |len: usize| Frame::plain(long.iter().copied().cycle().take(len).collect());
    let lengths =
        [0, 60, 1, 13, 60, ETHERNET, 59, FULL, FULL + 1, 60, FULL + 5, 2_000, 9_014, 60, 70_000, 60];
    let frames = lengths.map(bytes);
    let (fit, unfit): (Vec<Frame>, Vec<Frame>) = frames
        .iter()
        .cloned()
        .partition(|frame| frame.bytes.len() >= nature.shortest && nature.longest.carries(frame.bytes.len()));
    let lost = bench.wire.lost();
    // More of them than a burst holds: they must not pile up anywhere.
    for _ in 0..40 {
        let mut burst: Burst = frames.iter().map(|frame| frame.packet(bench.pool)).collect();
        bench.port.transmit(&mut burst).expect("the port sends");
        bench.collect();
        if nature.unfit == Unfit::StayWithCaller {
            assert_same(&burst.iter().map(Frame::of).collect::<Vec<_>>(), &unfit);
        } else {
            assert_eq!(burst.len(), 0);
        }
    }
    let expected: Vec<Frame> = (0..40).flat_map(|_| fit.iter().cloned()).collect();
    assert_same(&bench.arrivals(expected.len()), &expected);
    if nature.unfit == Unfit::LostBehind {
        assert_eq!(bench.wire.lost() - lost, 40 * unfit.len() as u64, "counted as lost");
    }
    bench.assert_works();
}

/// A frame that is shorter than any header comes as it is, if the wire carries it; nothing is made of it.
pub(super) fn runts_are_received_as_they_are(bench: &mut Bench) {
    let whole = numbered(1, 0, 60).bytes;
    let mut expected = Vec::new();
    for len in (0..60).chain([60]) {
        let frame = Frame::plain(whole[..len].to_vec());
        if bench.wire.send(&frame) == Sent::OnItsWay {
            expected.push(frame);
        }
    }
    // A wire that refuses them refuses those without a whole link header.
    assert!(expected.len() >= 60 - ETHERNET, "{} frames sent", expected.len());
    assert_same(&bench.frames(expected.len()), &expected);
    assert_eq!(bench.port.missed(), 0);
}

/// A frame that is longer than the device's MTU was when the port was opened, and longer than a chunk.
pub(super) fn jumbo_frames_are_received(bench: &mut Bench) {
    let possible = bench.wire.set_mtu(JUMBO_MTU);
    assert_eq!(possible, bench.nature.jumbo != Jumbo::DeviceRefuses, "the device takes such an MTU");
    if !possible {
        return bench.assert_works();
    }
    let frames = [60, 1_515, 1_792, 1_793, 2_048, 2_049, 4_000, JUMBO_MTU + ETHERNET, 60]
        .map(|len| numbered(1, len as u32, len));
    bench.inject(&frames);
    match bench.nature.jumbo {
        Jumbo::DeviceRefuses => unreachable!("it has let it"),
        Jumbo::Missed => {
            let received = bench.drain();
            let missed = bench.port.missed();
            assert_eq!(received.len() as u64 + missed, frames.len() as u64, "{missed} missed");
            // Whole, or not at all.
            let whole: Vec<Frame> = frames.iter().filter(|frame| received.contains(frame)).cloned().collect();
            assert_same(&received, &whole);
            assert!(received.iter().filter(|frame| frame.bytes.len() <= FULL).count() == 2);
            assert!(received.iter().all(|frame| frame.bytes.len() < JUMBO_MTU), "counted, {missed} of them");
            return;
        }
        Jumbo::Whole => {
            let packets = bench.receive(frames.len());
            assert_same(&packets.iter().map(Frame::of).collect::<Vec<_>>(), &frames);
            assert_eq!(
                packets.iter().map(Packet::len).sum::<usize>(),
                frames.iter().map(|f| f.bytes.len()).sum()
            );
        }
    }
    assert_eq!(bench.port.missed(), 0);
}
