use super::*;
use crate::forward::Observer;
use crate::packet::Burst;
use crate::pool::Pool;
use crate::port::memory::{Link, MemoryHandle, MemoryPort, Rings};
use crate::port::{Capabilities, Port};
use crate::stats::Reason;

const PORT: PortId = PortId(3);
const OTHER: PortId = PortId(4);

fn capture(records: usize) -> Arc<Capture> {
    Capture::new(Options { records, ..Options::default() })
}

fn packet(pool: &'static Pool, mark: u8) -> Packet {
    Packet::copy_of(pool, PORT, &[mark; 60]).unwrap()
}

/// A clock that counts its questions.
fn counting() -> WallClock {
    let asked = AtomicU64::new(0);
    Box::new(move || asked.fetch_add(1, Ordering::Relaxed))
}

fn taken(capture: &Capture) -> Vec<(u64, PortId, Direction, u8, usize)> {
    let mut all = Vec::new();
    while let Some(record) = capture.take() {
        all.push((record.nanos, record.port, record.direction, record.bytes[0], record.events.len()));
        capture.give_back(record);
    }
    all
}

fn recorded(rings: Rings, capture: &Arc<Capture>) -> (Box<dyn Port>, MemoryHandle) {
    let (port, handle) = MemoryPort::new(PORT, Capabilities::default(), rings);
    (Box::new(RecorderPort::new(Box::new(port), PORT, Arc::clone(capture), counting())), handle)
}

#[test]
fn a_recorder_sees_what_the_device_gave_and_took() {
    let pool = Pool::new(16).unwrap();
    let capture = capture(16);
    let (mut port, handle) = recorded(Rings { receive: 8, transmit: 2 }, &capture);
    handle.inject(packet(pool, 1));
    let mut burst = Burst::new();
    burst.push(packet(pool, 9)); // of another port: was there before
    port.receive(&mut burst).unwrap();
    assert_eq!(burst.len(), 2);
    burst.push(packet(pool, 3));
    port.transmit(&mut burst).unwrap();
    assert_eq!(burst.len(), 1, "the ring takes two");
    let seen = [(0, Direction::In, 1), (1, Direction::Out, 9), (2, Direction::Out, 1)];
    assert_eq!(taken(&capture), seen.map(|(nanos, way, mark)| (nanos, PORT, way, mark, 0)));
    assert_eq!(capture.counters(), Counters { captured: 3, lost: 0 });
    // A device that is gone takes nothing.
    handle.set_link(Link::Down);
    assert!(port.transmit(&mut burst).is_err());
    assert_eq!(taken(&capture), []);
}

#[test]
fn recorders_are_taken_away_one_by_one() {
    let pool = Pool::new(16).unwrap();
    let (first, second) = (capture(16), capture(16));
    let (port, handle) = recorded(Rings::default(), &first);
    let mut port: Box<dyn Port> = Box::new(RecorderPort::new(port, PORT, Arc::clone(&second), counting()));
    let receive = |port: &mut Box<dyn Port>| {
        handle.inject(packet(pool, 1));
        port.receive(&mut Burst::new()).unwrap();
        [&first, &second].map(|capture| taken(capture).len())
    };
    assert_eq!(receive(&mut port), [1, 1]);
    // From behind the other.
    port = RecorderPort::remove(port, &first);
    assert_eq!(receive(&mut port), [0, 1]);
    port = RecorderPort::remove(port, &first);
    assert_eq!(receive(&mut port), [0, 1]);
    port = RecorderPort::remove(port, &second);
    assert_eq!(receive(&mut port), [0, 0]);
    assert!((&*port as &dyn std::any::Any).is::<MemoryPort>());
}

#[test]
fn who_reads_too_slowly_loses_frames_that_are_counted_and_the_port_none() {
    let pool = Pool::new(64).unwrap();
    let capture = capture(4);
    let (mut port, handle) = recorded(Rings::default(), &capture);
    for mark in 0..10 {
        handle.inject(packet(pool, mark));
    }
    let mut burst = Burst::new();
    port.receive(&mut burst).unwrap();
    assert_eq!(burst.len(), 10);
    assert_eq!(capture.counters(), Counters { captured: 4, lost: 6 });
    assert_eq!(taken(&capture).iter().map(|record| record.3).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // There is room again.
    handle.inject(packet(pool, 77));
    port.receive(&mut burst).unwrap();
    assert_eq!(taken(&capture).iter().map(|record| record.3).collect::<Vec<_>>(), [77]);
    drop(burst);
    assert_eq!(pool.available(), pool.capacity(), "a capture keeps no buffer of the pool");
}

#[test]
fn the_memory_of_waiting_super_frames_is_bounded() {
    let pool = Pool::new(64).unwrap();
    let capture = capture(2000);
    let long = Packet::copy_of(pool, PORT, &[5; 65_000]).unwrap();
    let clock = counting();
    let mut recorded = 0;
    for _ in 0..2000 {
        if let Some(record) = capture.record(&clock, PORT, Direction::In, &long) {
            capture.commit(record);
            recorded += 1;
        }
    }
    assert_eq!(recorded, (64 << 20) / 65_000);
    assert_eq!(capture.counters().lost, 2000 - recorded);
    let record = capture.take().unwrap();
    assert_eq!((record.len, &record.bytes[..]), (65_000, &[5; 65_000][..]));
    capture.give_back(record);
    assert!(capture.record(&clock, PORT, Direction::In, &long).is_some());
}

#[test]
fn filter_and_snap_length_hold() {
    let pool = Pool::new(16).unwrap();
    let options = Options { filter: "greater 61".parse().unwrap(), snap_len: 14, records: 4 };
    let capture = Capture::new(options);
    let clock = counting();
    assert!(capture.record(&clock, PORT, Direction::In, &packet(pool, 1)).is_none());
    let long = Packet::copy_of(pool, PORT, &[5; 3000]).unwrap();
    let record = capture.record(&clock, PORT, Direction::Out, &long).unwrap();
    assert_eq!((record.len, record.bytes.len()), (3000, 14));
    assert_eq!(capture.counters(), Counters::default());
}

#[test]
fn a_watcher_tells_each_frame_with_its_own_events() {
    let pool = Pool::new(16).unwrap();
    let capture = capture(16);
    let mut watcher = Watcher::new(Arc::clone(&capture), None, counting());
    // One is forwarded after an error about it was sent, the next dropped.
    watcher.arrives(&packet(pool, 1));
    watcher.see(Event::FlowMiss);
    watcher.leaves(OTHER, &packet(pool, 2));
    watcher.see(Event::Dropped(Reason::NoRoute));
    watcher.ends();
    watcher.arrives(&packet(pool, 3));
    watcher.see(Event::Dropped(Reason::NoRoute));
    watcher.ends();
    // What had waited goes on in the middle of what let it.
    watcher.arrives(&packet(pool, 4));
    watcher.resumes();
    watcher.see(Event::FlowMiss);
    watcher.leaves(OTHER, &packet(pool, 5));
    watcher.ends();
    let told = [
        (0, PORT, Direction::In, 1, 2),
        (1, OTHER, Direction::Out, 2, 1),
        (2, PORT, Direction::In, 3, 1),
        (3, PORT, Direction::In, 4, 0),
        (4, OTHER, Direction::Out, 5, 1),
    ];
    assert_eq!(taken(&capture), told);
}

#[test]
fn a_watcher_of_one_port_tells_of_no_other() {
    let pool = Pool::new(16).unwrap();
    let capture = capture(16);
    let mut watcher = Watcher::new(Arc::clone(&capture), Some(OTHER), counting());
    watcher.arrives(&packet(pool, 1));
    watcher.see(Event::FlowMiss);
    watcher.leaves(OTHER, &packet(pool, 2));
    watcher.leaves(PORT, &packet(pool, 3));
    // In hand when it is taken away: lost to nobody.
    drop(watcher);
    assert_eq!(taken(&capture), [(0, OTHER, Direction::Out, 2, 1)]);
}

#[test]
fn a_long_story_is_cut_and_followers_are_let_go() {
    let pool = Pool::new(16).unwrap();
    let capture = capture(300);
    let mut watcher = Watcher::new(Arc::clone(&capture), None, counting());
    watcher.arrives(&packet(pool, 1));
    for _ in 0..100 {
        watcher.see(Event::FlowMiss);
    }
    for _ in 0..150 {
        watcher.leaves(OTHER, &packet(pool, 2));
    }
    watcher.ends();
    let told = taken(&capture);
    assert_eq!(told.len(), 151);
    assert_eq!(told[0], (0, PORT, Direction::In, 1, 64));
    assert!(told[1..].iter().all(|record| record.3 == 2));
}
