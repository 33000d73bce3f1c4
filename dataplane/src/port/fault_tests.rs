use std::sync::atomic::AtomicU64;

use super::*;
use crate::packet::testing::{Ends, frame};
use crate::packet::{Gso, GsoKind, PortId, Protocol};
use crate::pool::Pool;
use crate::port::memory::{Link, MemoryHandle, MemoryPort, Rings};

/// A port behind a bad wire, the far end, and the hands of its clock.
struct Wire {
    port: FaultPort,
    handle: FaultHandle,
    far: MemoryHandle,
    now: Arc<AtomicU64>,
    pool: &'static Pool,
}

impl Wire {
    fn new(faults: Faults) -> Wire {
        let rings = Rings { receive: 8192, transmit: 8192 };
        let all = Capabilities { partial_checksum: true, gso: true, udp_gso: true };
        let (inner, far) = MemoryPort::new(PortId(0), all, rings);
        let now = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now);
        let clock = Box::new(move || Instant(clock.load(Ordering::Relaxed)));
        let (port, handle) = FaultPort::new(Box::new(inner), faults, clock);
        Wire { port, handle, far, now, pool: Pool::new(8192).unwrap() }
    }

    fn pass(&self, time: Duration) {
        self.now.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// What the worker gets of these frames, until nothing more comes.
    fn receive(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        for frame in frames {
            self.far.inject(Packet::copy_of(self.pool, PortId(0), &frame).unwrap());
        }
        let mut got = Vec::new();
        loop {
            let mut burst = Burst::new();
            let entered = self.handle.incoming().entered;
            self.port.receive(&mut burst).unwrap();
            // A whole burst may be lost.
            if burst.is_empty() && self.handle.incoming().entered == entered {
                return got;
            }
            got.extend(burst.iter().map(Packet::to_vec));
        }
    }

    /// What the far end gets of these frames.
    fn transmit(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        for frame in frames {
            let mut burst: Burst =
                [Packet::copy_of(self.pool, PortId(0), &frame).unwrap()].into_iter().collect();
            self.port.transmit(&mut burst).unwrap();
            assert!(burst.is_empty());
        }
        self.far.sent().iter().map(Packet::to_vec).collect()
    }

    /// The law of the wire's counters in both directions.
    fn assert_balanced(&self) {
        for it in [self.handle.incoming(), self.handle.outgoing()] {
            assert_eq!(it.entered + it.duplicated, it.left + it.lost + it.waiting, "{it:?}");
        }
    }
}

fn of(number: f64) -> Probability {
    Probability::new(number).unwrap()
}

/// UDP datagrams with their numbers.
fn numbered(count: u32) -> impl Iterator<Item = Vec<u8>> {
    let ends = Ends::new("192.0.2.1", 1, "192.0.2.2", 2);
    (0..count).map(move |number| frame(ends, Protocol::UDP, &number.to_be_bytes()))
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame.last_chunk().unwrap())
}

fn numbers(frames: &[Vec<u8>]) -> Vec<u32> {
    frames.iter().map(|frame| number(frame)).collect()
}

#[test]
fn a_wire_without_faults_changes_nothing() {
    let mut wire = Wire::new(Faults::default());
    let frames: Vec<_> = numbered(100).collect();
    assert_eq!(wire.receive(frames.clone()), frames);
    assert_eq!(wire.transmit(frames.clone()), frames);
    let passed = Counters { entered: 100, left: 100, ..Counters::default() };
    assert_eq!((wire.handle.incoming(), wire.handle.outgoing()), (passed, passed));
}

#[test]
fn fw_05_lost_frames_are_the_wire_s_own_count() {
    let mut wire = Wire::new(Faults { loss: of(0.25), seed: 1, ..Faults::default() });
    let got = wire.receive(numbered(4000)).len() as u64;
    let counters = wire.handle.incoming();
    assert_eq!(counters, Counters { entered: 4000, left: got, lost: 4000 - got, ..Counters::default() });
    // Six standard deviations.
    assert!((835..=1165).contains(&counters.lost), "{counters:?}");
    let got = wire.transmit(numbered(4000)).len() as u64;
    assert_eq!(wire.handle.outgoing().lost, 4000 - got);
    wire.assert_balanced();

    let mut all = Wire::new(Faults { loss: of(1.0), ..Faults::default() });
    assert_eq!(all.receive(numbered(100)).len() + all.transmit(numbered(100)).len(), 0);
    assert_eq!((all.handle.incoming().lost, all.handle.outgoing().lost), (100, 100));
    assert_eq!(all.pool.available(), all.pool.capacity());
}

#[test]
fn the_same_seed_has_the_same_luck_and_the_directions_have_not() {
    let faults =
        |seed| Faults { loss: of(0.5), duplicate: of(0.1), reorder: of(0.1), seed, ..Faults::default() };
    let way_in = |seed| numbers(&Wire::new(faults(seed)).receive(numbered(200)));
    let way_out = |seed| numbers(&Wire::new(faults(seed)).transmit(numbered(200)));
    assert_eq!(way_in(7), way_in(7));
    assert_eq!(way_out(7), way_out(7));
    assert_ne!(way_in(7), way_in(8));
    assert_ne!(way_in(7), way_out(7));
}

#[test]
fn a_duplicate_is_a_frame_of_its_own() {
    let mut wire = Wire::new(Faults { duplicate: of(1.0), ..Faults::default() });
    let got = numbers(&wire.receive(numbered(50)));
    assert_eq!(got, (0..50).flat_map(|number| [number; 2]).collect::<Vec<_>>());
    assert_eq!(wire.handle.incoming().duplicated, 50);
    wire.assert_balanced();
}

#[test]
fn a_reordered_frame_is_overtaken_by_at_most_four_and_none_is_lost() {
    let mut wire = Wire::new(Faults { reorder: of(0.2), seed: 3, ..Faults::default() });
    let mut got = numbers(&wire.receive(numbered(1000)));
    // What nothing follows comes when it has waited.
    let last = wire.handle.incoming().waiting;
    assert_eq!(got.len() as u64 + last, 1000);
    wire.pass(PATIENCE);
    got.extend(numbers(&wire.receive([])));
    assert!(wire.handle.incoming().reordered > 100);
    let late = got.iter().enumerate().filter(|&(at, &number)| {
        let overtaken_by = got[..at].iter().filter(|&&other| other > number).count();
        assert!(overtaken_by <= OVERTAKING as usize, "{number} by {overtaken_by}");
        overtaken_by > 0
    });
    assert!(late.count() > 50);
    got.sort_unstable();
    assert_eq!(got, (0..1000).collect::<Vec<_>>());
    wire.assert_balanced();
}

#[test]
fn ct_08_a_corrupted_frame_differs_in_one_bit_and_its_checksum_tells() {
    let mut wire = Wire::new(Faults { corrupt: of(1.0), seed: 5, ..Faults::default() });
    let frames: Vec<_> = numbered(300).collect();
    for (got, sent) in wire.receive(frames.clone()).iter().zip(&frames) {
        let flipped: u32 = got.iter().zip(sent).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(flipped, 1);
        assert_eq!(got[..LINK_HEADER], sent[..LINK_HEADER]);
        let mut packet = Packet::copy_of(wire.pool, PortId(0), got).unwrap();
        let told = match crate::packet::parse(&mut packet) {
            Ok(crate::packet::Parsed::V4(headers)) => {
                !crate::packet::transport::verify_transport_checksum(&packet, &headers)
            }
            _ => true,
        };
        assert!(told, "{got:02x?}");
    }
    assert_eq!(wire.handle.incoming().corrupted, 300);
    // ARP has no checksum.
    let arp = [&[0xff; 12][..], &[0x08, 0x06], &[0; 46]].concat();
    assert_eq!(wire.receive([arp.clone()]), [arp]);
    assert_eq!(wire.handle.incoming().corrupted, 300);
}

#[test]
fn each_frame_takes_the_delay() {
    const DELAY: Duration = Duration::from_millis(5);
    let mut wire = Wire::new(Faults { delay: DELAY, ..Faults::default() });
    assert!(wire.receive(numbered(10)).is_empty());
    assert!(wire.transmit(numbered(10)).is_empty());
    wire.pass(DELAY - Duration::from_nanos(1));
    assert!(wire.receive([]).is_empty());
    assert_eq!((wire.handle.incoming().waiting, wire.handle.outgoing().waiting), (10, 10));
    assert!(wire.port.readiness().is_none(), "what is on the wire comes unannounced");
    wire.pass(Duration::from_nanos(1));
    assert_eq!(numbers(&wire.receive([])), (0..10).collect::<Vec<_>>());
    // The way out is worked off by every look at the way in.
    assert_eq!(wire.far.sent().len(), 10);
    wire.assert_balanced();
}

#[test]
fn pt_04_a_super_frame_is_cut_before_it_meets_its_fate() {
    let mut wire = Wire::new(Faults { loss: of(0.5), seed: 2, ..Faults::default() });
    let ends = Ends::new("192.0.2.1", 1, "192.0.2.2", 2);
    let mut packet =
        Packet::copy_of(wire.pool, PortId(0), &frame(ends, Protocol::TCP, &[1; 40_000])).unwrap();
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 16 };
    packet.offload.gso = Some(Gso { kind: GsoKind::Tcp4, ecn: false, size: 1000, header_len: 54 });
    wire.far.inject(packet);
    let got = wire.receive([]);
    let counters = wire.handle.incoming();
    assert_eq!((counters.entered, counters.left), (40, got.len() as u64));
    assert!((1..40).contains(&got.len()));
    assert!(got.iter().all(|frame| frame.len() == 1054));
    // The worker cuts what it sends.
    assert_eq!(wire.port.capabilities(), Capabilities::default());
}

#[test]
fn pt_03_a_far_end_that_refuses_is_heard_and_memory_is_bounded() {
    let mut wire = Wire::new(Faults::default());
    wire.far.set_link(Link::Down);
    let mut burst: Burst =
        numbered(4).map(|it| Packet::copy_of(wire.pool, PortId(0), &it).unwrap()).collect();
    wire.port.transmit(&mut burst).unwrap();
    assert_eq!((burst.len(), wire.handle.outgoing().waiting), (0, 4), "taken before the failure was known");
    burst = numbered(4).map(|it| Packet::copy_of(wire.pool, PortId(0), &it).unwrap()).collect();
    assert!(wire.port.transmit(&mut burst).is_err());
    assert_eq!(burst.len(), 4, "nothing is taken");
    wire.assert_balanced();
    wire.far.set_link(Link::Up);
    wire.port.transmit(&mut burst).unwrap();
    assert_eq!(
        numbers(&wire.far.sent().iter().map(Packet::to_vec).collect::<Vec<_>>()),
        [0, 1, 2, 3, 0, 1, 2, 3]
    );

    // A delay that fills the line leaves the rest to the sender, and the far end's frames in its ring.
    let mut slow = Wire::new(Faults { delay: Duration::from_secs(1), ..Faults::default() });
    let mut refused = 0;
    for packet in numbered(LINE as u32 + 100).map(|it| Packet::copy_of(slow.pool, PortId(0), &it).unwrap()) {
        let mut burst: Burst = [packet].into_iter().collect();
        slow.port.transmit(&mut burst).unwrap();
        refused += burst.len();
    }
    assert_eq!((refused, slow.handle.outgoing().waiting), (100, LINE as u64));
    for _ in 0..200 {
        assert!(slow.receive(numbered(32)).is_empty());
    }
    assert!(slow.handle.incoming().waiting <= (LINE + crate::packet::BURST) as u64);
    slow.assert_balanced();
}
