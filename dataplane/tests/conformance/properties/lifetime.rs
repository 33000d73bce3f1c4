//! Devices that go down, workers that sleep, and ports that end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pollux_dataplane::packet::Burst;
use pollux_dataplane::port::Port;

use crate::bench::{Bench, Device, LOOKS, PATIENCE, assert_same, pause};
use crate::frame::{Frame, numbered, varied};
use crate::nature::{Down, Sleep};

/// A device that is down is told of and keeps what waits; when it is up again all is as before. Twice, because a port
/// may remember the first fall.
pub(super) fn a_device_that_is_down_takes_nothing_and_loses_nothing(bench: &mut Bench) {
    for round in 0..2 {
        bench.assert_works();
        bench.wire.set_device(Device::Down);
        let frames: Vec<Frame> = (0..4).map(|number| varied(round, number)).collect();
        let mut burst: Burst = frames.iter().map(|frame| frame.packet(bench.pool)).collect();
        let first = bench.port.transmit(&mut burst);
        if bench.nature.down == Down::ToldLater {
            assert_eq!((first.is_ok(), burst.len()), (true, 0), "{first:?}");
            let mut more: Burst = [numbered(9, 0, 60).packet(bench.pool)].into_iter().collect();
            let error = bench.port.transmit(&mut more).expect_err("the device is down");
            assert_eq!((error.raw_os_error(), more.len()), (Some(libc::ENETDOWN), 1));
        } else {
            let error = first.expect_err("the device is down");
            assert!(!error.to_string().is_empty());
            assert_same(&burst.iter().map(Frame::of).collect::<Vec<_>>(), &frames);
        }
        let told = receiving_fails(bench);
        assert_eq!(told, bench.nature.down != Down::ToldWhenSending, "receiving fails");
        bench.wire.set_device(Device::Up);
        // What the kernel has noted at a socket is said once more at most.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = bench.port.receive(&mut Burst::new()) {
            assert!(Instant::now() < deadline, "still {error}");
        }
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = bench.port.transmit(&mut burst) {
            assert!(Instant::now() < deadline, "still {error}");
        }
        assert_eq!(burst.len(), 0, "frames left");
        assert_same(&bench.arrivals(frames.len()), &frames);
    }
    bench.assert_works();
    assert_eq!(bench.port.missed(), 0);
}

/// Whether receiving fails, within the time in which an idle worker would notice.
fn receiving_fails(bench: &mut Bench) -> bool {
    let deadline = Instant::now() + PATIENCE / 20;
    while Instant::now() < deadline {
        let mut burst = Burst::new();
        if bench.port.receive(&mut burst).is_err() {
            assert_eq!(burst.len(), 0);
            return true;
        }
    }
    false
}

fn is_readable(port: &dyn Port, patience: u16) -> bool {
    let descriptor = port.readiness().expect("a descriptor");
    let mut polled = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::from(patience)).expect("polled") > 0
}

/// The descriptor wakes a sleeping worker when a frame comes, and lets it sleep when it has them all.
pub(super) fn a_descriptor_is_readable_while_frames_wait(bench: &mut Bench) {
    let seen = if bench.port.readiness().is_some() { Sleep::Descriptor } else { Sleep::Polls };
    assert_eq!(seen, bench.nature.sleep);
    if seen == Sleep::Polls {
        return;
    }
    for count in [1, 40] {
        bench.drain();
        assert!(!is_readable(&*bench.port, 5), "readable without a frame");
        let frames: Vec<Frame> = (0..count).map(|number| varied(1, number)).collect();
        bench.inject(&frames);
        assert!(is_readable(&*bench.port, 10_000), "a frame waits");
        let first = bench.poll();
        assert!(!first.is_empty());
        assert_eq!(is_readable(&*bench.port, 0), first.len() < frames.len(), "frames are left");
        bench.frames(frames.len() - first.len());
        assert!(!is_readable(&*bench.port, 5), "readable after the last frame");
    }
}

/// A port that is dropped while frames come, wait and leave: what it gave away is the receiver's still, and nothing is
/// kept (the bench looks).
pub(super) fn a_port_ends_in_the_midst_of_its_work(bench: &mut Bench) {
    const ROUNDS: u32 = 200;
    let frame = numbered(1, 1, 600);
    let out = numbered(2, 2, 700);
    let mut received = Vec::new();
    let over = AtomicBool::new(false);
    let (mut port, pool) = (bench.take_port(), bench.pool);
    let wire = &mut bench.wire;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                wire.send(&frame);
                wire.receive();
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let mut rounds = 0;
        while (rounds < ROUNDS || received.is_empty()) && Instant::now() < deadline {
            let mut burst = Burst::new();
            port.receive(&mut burst).expect("the port receives");
            received.extend(burst);
            received.truncate(100);
            let mut burst: Burst = (0..8).map(|_| out.packet(pool)).collect();
            port.transmit(&mut burst).expect("the port sends");
            rounds += 1;
        }
        drop(port);
        for _ in 0..LOOKS {
            pause();
        }
        over.store(true, Ordering::Release);
        sender.join().expect("the far end goes on");
    });
    assert!(!received.is_empty(), "frames came");
    for packet in received {
        assert_same(&[Frame::of(&packet)], std::slice::from_ref(&frame));
    }
}
