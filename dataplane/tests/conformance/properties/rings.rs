//! Full rings, back-pressure, and no memory. FW-05: nothing is lost without a counter.

use std::time::Instant;

use pollux_dataplane::packet::{BURST, Burst, Packet, PortId};

use crate::bench::{Bench, LOOKS, PATIENCE, Sent, Taking, assert_same, pause};
use crate::frame::{Frame, numbered};
use crate::nature::{EmptyPool, FullReceive, FullTransmit};

/// More frames than any ring of these tests holds.
const FLOOD: u32 = 3_000;

/// Checks that `are` are frames of `sent`, in their order, none twice.
fn assert_some_of(are: &[Frame], sent: &[Frame]) {
    let mut rest = sent.iter();
    for frame in are {
        assert!(rest.any(|sent| sent == frame), "{frame:?} was not sent, or not in this order");
    }
}

/// While nobody receives, frames wait, or the newest of them are lost and counted once each. Then all is as before.
pub(super) fn a_full_receive_ring_loses_nothing_uncounted(bench: &mut Bench) {
    let sent: Vec<Frame> = (0..FLOOD).map(|number| numbered(1, number, 100)).collect();
    let lost = bench.wire.lost();
    let on_their_way = sent.iter().take_while(|frame| bench.wire.send(frame) == Sent::OnItsWay).count();
    let received = bench.drain();
    assert_same(&received, &sent[..received.len()]);
    let (missed, lost) = (bench.port.missed(), bench.wire.lost() - lost);
    // The interface may count what the port counts, all of it.
    let twice = missed > 0 && lost == missed;
    let counted = received.len() as u64 + missed + if twice { 0 } else { lost };
    assert_eq!(counted, on_their_way as u64, "{missed} missed, {lost} lost before");
    let seen = match (missed, lost) {
        (0, 0) if on_their_way < sent.len() => FullReceive::SenderWaits,
        (0, 0) => FullReceive::Waits,
        _ if twice => FullReceive::Both,
        (_, 0) => FullReceive::Missed,
        (0, _) => FullReceive::Interface,
        _ => panic!("counted at two places: {missed} by the port, {lost} by the interface"),
    };
    assert_eq!(seen, bench.nature.full_receive);
    bench.assert_works();
    assert_eq!(bench.port.missed(), missed);
}

/// What the device does not take stays with the caller in its order; what it has taken arrives, however long that
/// takes, and all of it once.
pub(super) fn a_full_transmit_ring_leaves_the_rest_to_the_caller(bench: &mut Bench) {
    let sent: Vec<Frame> = (0..FLOOD).map(|number| numbered(1, number, 1_000)).collect();
    bench.set_taking(Taking::No);
    let mut taken = 0;
    let mut refused = 0;
    for frames in sent.chunks(BURST) {
        let mut burst: Burst = frames.iter().map(|frame| frame.packet(bench.pool)).collect();
        bench.port.transmit(&mut burst).expect("a full ring is no error");
        refused = burst.len();
        taken += frames.len() - refused;
        let left: Vec<Frame> = burst.iter().map(Frame::of).collect();
        assert_same(&left, &frames[frames.len() - refused..]);
        if refused > 0 {
            // And again, with as little success.
            bench.port.transmit(&mut burst).expect("a full ring is no error");
            assert_eq!(burst.len(), refused, "frames refused by a ring that is still full");
            break;
        }
        if bench.nature.full_transmit == FullTransmit::Never {
            bench.collect();
        }
    }
    let seen = if refused > 0 { FullTransmit::Refused } else { FullTransmit::Never };
    assert_eq!(seen, bench.nature.full_transmit, "{taken} frames were taken");
    bench.set_taking(Taking::Yes);
    // What was refused is sent now, and more: with it the ring moves on.
    bench.transmit(&sent[taken..]);
    assert_same(&bench.arrivals(sent.len()), &sent);
    bench.assert_works();
}

/// Frames that come while the pool is empty wait, or are lost and counted once each. When there is memory again all is
/// as before.
pub(super) fn an_empty_pool_loses_nothing_uncounted(bench: &mut Bench) {
    const FRAMES: usize = 500;
    let sent: Vec<Frame> = (0..FRAMES as u32).map(|number| numbered(1, number, 100)).collect();
    let mut held: Vec<Packet> = std::iter::from_fn(|| Packet::new(bench.pool, PortId(0)).ok()).collect();
    let lost = bench.wire.lost();
    bench.inject(&sent);
    let mut received = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut quiet = 0;
    while quiet < 4 * LOOKS && Instant::now() < deadline {
        let before = (received.len(), bench.port.missed());
        let mut burst = Burst::new();
        // A port may say that there is no memory.
        let _ = bench.port.receive(&mut burst);
        held.extend(std::iter::from_fn(|| Packet::new(bench.pool, PortId(0)).ok()));
        received.extend(burst.iter().map(Frame::of));
        held.extend(burst);
        if before == (received.len(), bench.port.missed()) {
            quiet += 1;
            pause();
        } else {
            quiet = 0;
        }
    }
    let while_empty = received.len();
    held.clear();
    received.extend(bench.drain());
    assert_some_of(&received, &sent);
    let missed = bench.port.missed();
    let lost = bench.wire.lost() - lost;
    assert_eq!(received.len() as u64 + missed, FRAMES as u64, "{missed} missed");
    assert!(lost == 0 || lost == missed, "{missed} missed, {lost} lost before");
    let seen = match (while_empty, missed) {
        (FRAMES, 0) => EmptyPool::BringTheirOwn,
        (_, 0) => EmptyPool::Waits,
        _ => EmptyPool::Missed,
    };
    assert_eq!(
        seen, bench.nature.empty_pool,
        "{while_empty} received while the pool was empty, {missed} missed"
    );
    bench.assert_works();
    assert_eq!(bench.port.missed(), missed);
}
