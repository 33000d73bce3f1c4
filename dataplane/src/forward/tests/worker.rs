//! The seed's node with a worker and ports in memory around it: counters, failing ports, what a port cannot
//! carry, commands (PT-03, PT-04, UP-01).

use super::*;
use crate::forward::Observer;
use crate::packet::{ChecksumState, Gso, GsoKind};
use crate::port::Capabilities;
use crate::port::memory::{Link, MemoryHandle, MemoryPort, Rings};
use crate::worker::{Command, Handle, Stopped, Worker};

const POD: &str = "10.151.51.7:40000";
const TO: &str = "10.151.51.8:80";

/// A worker with all ports of the seed but docker0 and tunl0.
struct Rig {
    worker: Worker,
    handle: Handle,
    wires: Vec<(PortId, MemoryHandle)>,
    now: Instant,
}

fn rig(capabilities: Capabilities, rings: Rings) -> Rig {
    let node = seed();
    let (mut worker, handle) = Worker::new(node.forwarder).unwrap();
    let wires = [ENS3, CALI_7, CALI_8, HOST]
        .map(|id| {
            let (port, wire) = MemoryPort::new(id, capabilities, rings);
            worker.add_port(id, Box::new(port));
            (id, wire)
        })
        .into();
    Rig { worker, handle, wires, now: node.now }
}

fn plain() -> Rig {
    rig(Capabilities::default(), Rings::default())
}

impl Rig {
    fn wire(&self, port: PortId) -> &MemoryHandle {
        &self.wires.iter().find(|(id, _)| *id == port).unwrap().1
    }

    fn inject(&self, port: PortId, bytes: &[u8]) {
        self.wire(port).inject(Packet::copy_of(pool(), port, bytes).unwrap());
    }

    /// Polls until nothing comes in, then does the chores.
    fn run(&mut self) {
        while self.worker.poll(self.now) > 0 {
            self.balance();
        }
        self.worker.chores(self.now);
        self.balance();
    }

    fn balance(&self) {
        let stats = self.worker.stats();
        let (came, went) = stats.balance();
        assert_eq!(came, went, "FW-05: {stats:?}");
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.worker.stats().dropped.get(reason)
    }
}

fn syn(from: &str, to: &str) -> Vec<u8> {
    let frame =
        Frame { link_source: POD_7, link_destination: CALI_LINK, kind: Kind::SYN, ..Frame::default() };
    frame.between(from, to).bytes()
}

fn forwarded(from: &str, to: &str) -> Vec<u8> {
    out(CALI_8, TO_POD_8, Kind::SYN, from, to, 63).bytes
}

#[test]
fn fw_05_more_than_a_burst_passes_in_order_and_every_counter_agrees() {
    let mut rig = plain();
    let clients: Vec<_> = (0..100).map(|i| format!("10.151.51.7:{}", 2000 + i)).collect();
    for client in &clients {
        rig.inject(CALI_7, &syn(client, TO));
    }
    rig.run();
    let sent: Vec<_> = rig.wire(CALI_8).sent().iter().map(Packet::to_vec).collect();
    assert_eq!(sent, clients.iter().map(|client| forwarded(client, TO)).collect::<Vec<_>>());
    let stats = rig.worker.stats();
    assert_eq!((stats.received, stats.transmitted, stats.dropped.total()), (100, 100, 0));
    let bytes = 100 * syn(POD, TO).len() as u64;
    for (port, stats, error) in rig.worker.port_stats() {
        assert_eq!(error, None);
        match port {
            CALI_7 => assert_eq!((stats.received, stats.received_bytes), (100, bytes)),
            CALI_8 => assert_eq!((stats.transmitted, stats.transmitted_bytes), (100, bytes)),
            _ => assert_eq!((stats.received, stats.transmitted), (0, 0)),
        }
    }
}

#[test]
fn fw_05_a_full_transmit_ring_is_counted() {
    let mut rig = rig(Capabilities::default(), Rings { receive: 64, transmit: 10 });
    for i in 0..40 {
        rig.inject(CALI_7, &syn(&format!("10.151.51.7:{}", 2000 + i), TO));
    }
    rig.run();
    assert_eq!((rig.worker.stats().transmitted, rig.dropped(Reason::TransmitFull)), (10, 30));
}

#[test]
fn a_port_that_fails_is_left_alone_and_comes_back() {
    let mut rig = plain();
    rig.wire(CALI_8).set_link(Link::Down);
    // More than a queue in one burst's time, through the flush in its middle as well.
    for i in 0..3 {
        rig.inject(CALI_7, &syn(&format!("10.151.51.7:{}", 2000 + i), TO));
    }
    rig.run();
    assert_eq!(rig.dropped(Reason::PortDown), 3);
    let errors = |rig: &mut Rig| {
        let stats = rig.worker.port_stats();
        stats
            .into_iter()
            .find(|(id, ..)| *id == CALI_8)
            .map(|(_, stats, error)| (stats.errors, error))
            .unwrap()
    };
    let (failed, error) = errors(&mut rig);
    assert!(error.is_some());
    // Up again, but not yet looked at: nothing is asked of it for a while.
    rig.wire(CALI_8).set_link(Link::Up);
    rig.inject(CALI_7, &syn(POD, TO));
    rig.run();
    assert_eq!((rig.dropped(Reason::PortDown), errors(&mut rig).0), (4, failed));
    rig.now = rig.now + Duration::from_millis(201);
    rig.run();
    rig.inject(CALI_7, &syn(POD, TO));
    rig.run();
    assert_eq!(rig.wire(CALI_8).sent().len(), 1);
    assert_eq!(errors(&mut rig), (failed, None));
}

#[test]
fn a_port_that_the_worker_lacks_is_counted_as_down() {
    let mut rig = plain();
    rig.inject(CALI_7, &syn(POD, "172.17.0.5:80"));
    rig.run();
    assert_eq!(rig.dropped(Reason::PortDown), 1);
}

#[test]
fn pt_04_a_super_frame_to_a_port_without_gso_is_cut_and_the_pieces_are_counted() {
    let mut rig = plain();
    let payload: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
    let frame = Frame {
        link_source: POD_7,
        link_destination: CALI_LINK,
        kind: Kind::ACK,
        payload: payload.clone(),
        ..Frame::default()
    };
    let bytes = frame.between(POD, TO).bytes();
    let mut packet = Packet::copy_of(pool(), CALI_7, &bytes).unwrap();
    packet.offload.gso = Some(Gso { kind: GsoKind::Tcp4, ecn: false, size: 1440, header_len: 54 });
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 16 };
    rig.wire(CALI_7).inject(packet);
    rig.run();
    let sent = rig.wire(CALI_8).sent();
    let pieces = 60_000u64.div_ceil(1440);
    let stats = rig.worker.stats();
    assert_eq!((sent.len() as u64, stats.split, stats.transmitted), (pieces, pieces - 1, pieces));
    let mut joined: Vec<u8> = Vec::new();
    for piece in &sent {
        let piece = piece.to_vec();
        assert!(piece.len() <= 14 + 1480);
        let sliced = etherparse::SlicedPacket::from_ethernet(&piece).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!() };
        let Some(etherparse::TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!() };
        assert_eq!(ip.header().ttl(), 63);
        let header = tcp.to_header();
        assert_eq!(
            header.checksum,
            header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).unwrap()
        );
        assert_eq!(header.sequence_number, 1_000 + joined.len() as u32);
        joined.extend(tcp.payload());
    }
    assert_eq!(joined, payload);
    drop(sent);
    drop(rig);
    assert_eq!(pool().available(), pool().capacity());
}

#[test]
fn pt_04_a_partial_checksum_is_finished_or_carried_as_the_port_can() {
    let carries = Capabilities { partial_checksum: true, ..Capabilities::default() };
    for capabilities in [Capabilities::default(), carries] {
        let mut rig = rig(capabilities, Rings::default());
        let mut packet = Packet::copy_of(pool(), CALI_7, &syn(POD, MYAPP)).unwrap();
        // What a kernel leaves: the sum of the pseudo header.
        let tcp = packet.len() - 34;
        let words = [&packet.head()[26..34], &[0, 6], &(tcp as u16).to_be_bytes()].concat();
        let sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        packet.head_mut()[50..52].copy_from_slice(&sum.to_be_bytes());
        packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 16 };
        rig.worker.forwarder().fix_choice(Some(ON_CALI_8));
        rig.wire(CALI_7).inject(packet);
        rig.run();
        let [sent] = &mut rig.wire(CALI_8).sent()[..] else { panic!("nothing sent") };
        if capabilities.partial_checksum {
            assert!(!sent.offload.needs_nothing());
            crate::port::finish::finish_checksum(sent).unwrap();
        }
        assert_eq!(sent.to_vec(), forwarded(POD, TO));
    }
}

#[test]
fn up_01_tables_come_by_the_ring_and_go_back_by_it_to_be_freed_elsewhere() {
    let mut rig = plain();
    let first = Arc::downgrade(rig.worker.forwarder().tables());
    let second = Arc::new(cluster().tables());
    rig.handle.send(Command::Tables(Arc::clone(&second))).unwrap();
    rig.run();
    assert!(Arc::ptr_eq(rig.worker.forwarder().tables(), &second));
    assert!(first.upgrade().is_some(), "not freed by the worker");
    rig.handle.collect();
    assert!(first.upgrade().is_none());
    // Many, one after the other: all come back.
    let weak: Vec<_> = (0..600)
        .map(|_| {
            let tables = Arc::new(Tables::default());
            let weak = Arc::downgrade(&tables);
            rig.handle.send(Command::Tables(tables)).unwrap();
            rig.run();
            weak
        })
        .collect();
    rig.handle.collect();
    let alive = weak.iter().filter(|tables| tables.upgrade().is_some()).count();
    assert_eq!(alive, 1, "those in force");
}

#[test]
fn a_running_worker_forwards_answers_and_stops() {
    let mut rig = plain();
    let wire = rig.wire(CALI_7).clone();
    let sent = rig.wire(CALI_8).clone();
    let handle = rig.handle.clone();
    let frame = Packet::copy_of(pool(), CALI_7, &syn(POD, TO)).unwrap();
    let worker = std::thread::spawn(move || rig.worker.run());
    // Idle first, then a frame, then a question while it is idle again.
    assert_eq!(handle.ask(|worker| worker.stats().received).unwrap(), 0);
    wire.inject(frame);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let forwarded_frame = loop {
        match sent.take_sent() {
            Some(packet) => break packet,
            None => assert!(std::time::Instant::now() < deadline, "not forwarded"),
        }
    };
    assert_eq!(forwarded_frame.to_vec(), forwarded(POD, TO));
    let (came, went) = handle.ask(|worker| worker.stats().balance()).unwrap();
    assert_eq!(came, went);
    handle.send(Command::Stop).unwrap();
    worker.join().unwrap();
    assert_eq!(handle.send(Command::Stop), Err(Stopped));
}

#[test]
fn nb_02_who_watches_hears_what_the_chores_give_up() {
    #[derive(Clone, Default)]
    struct Ear(Arc<std::sync::Mutex<Vec<Event>>>);
    impl Observer for Ear {
        fn see(&mut self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }
    let mut rig = plain();
    let ear = Ear::default();
    rig.worker.observe(Box::new(ear.clone()));
    rig.inject(CALI_7, &syn(POD, "172.16.5.5:80")); // on ens3's link, and nobody answers
    rig.run();
    assert!(matches!(ear.0.lock().unwrap().last(), Some(Event::Held { port: ENS3, .. })));
    rig.now = rig.now + std::time::Duration::from_secs(2);
    rig.worker.chores(rig.now);
    rig.balance();
    assert_eq!(rig.dropped(Reason::NeighbourFailed), 1);
    assert!(ear.0.lock().unwrap().contains(&Event::Dropped(Reason::NeighbourFailed)));
}
