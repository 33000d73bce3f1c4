//! The seed's node with a team of two workers: ens3, cali7 and the host port are the first one's, cali8 and cali1
//! the second one's. Polled by hand, in turns, or by threads of their own.

use std::thread::{JoinHandle, spawn, yield_now};

use super::*;
use crate::packet::arp::Arp;
use crate::pool::Pool;
use crate::port::Capabilities;
use crate::port::memory::{Link, MemoryHandle, MemoryPort, Rings};
use crate::route::Interfaces;
use crate::route::source::LinkState;
use crate::tables::{MasqueradeRule, Match};
use crate::worker::{Alarm, Command, Handle, Idle, Watchdog, Worker};

const POD: &str = "10.151.51.7:40000";
const SERVER: &str = "10.151.51.8:80";
/// Behind cali1; nobody knows its link address.
const UNKNOWN: &str = "10.151.51.1:80";
const LINK: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 0x51]);
/// On ens3's link.
const FAR: &str = "172.16.1.88:53";
/// Who polls which port.
const OWNERS: [(PortId, usize); 5] = [(ENS3, 0), (CALI_7, 0), (HOST, 0), (CALI_8, 1), (CALI_1, 1)];
/// What a test waits at most for something that happens at once.
const PATIENCE: Duration = Duration::from_secs(10);

struct Team {
    workers: Vec<(Worker, Handle)>,
    wires: Vec<(PortId, MemoryHandle)>,
    pool: &'static Pool,
    now: Instant,
}

/// Two workers on the node of `cluster`, whose backends are all behind cali8.
fn team_of(cluster: Cluster) -> Team {
    let first = cluster.start().choosing(ON_CALI_8).forwarder;
    let now = Instant::from_secs(100);
    let mut second = first.sibling(8);
    // In another order than the first one learnt them: the numbers differ.
    for (port, address, link) in [
        (CALI_8, "10.151.51.8", POD_8),
        (CALI_7, "10.151.51.7", POD_7),
        (ENS3, "172.16.1.88", SLAVE2),
        (ENS3, "172.16.0.1", GATEWAY),
    ] {
        second.neighbours_v4().learn(port, address.parse().unwrap(), link, Learned::Static, now);
    }
    let mut workers = Worker::team(vec![first, second]).unwrap();
    let mut wires = Vec::new();
    for (id, owner) in OWNERS {
        let (port, wire) = memory(id);
        workers[owner].0.add_port(id, port);
        workers[1 - owner].0.add_remote_port(id, owner);
        wires.push((id, wire));
    }
    Team { workers, wires, pool: Pool::new(8192).unwrap(), now }
}

fn team() -> Team {
    team_of(cluster())
}

fn memory(id: PortId) -> (Box<MemoryPort>, MemoryHandle) {
    let rings = Rings { receive: 4096, transmit: 4096 };
    let (port, wire) = MemoryPort::new(id, Capabilities::default(), rings);
    (Box::new(port), wire)
}

impl Team {
    fn wire(&self, port: PortId) -> &MemoryHandle {
        &self.wires.iter().find(|(id, _)| *id == port).unwrap().1
    }

    fn inject(&self, port: PortId, bytes: &[u8]) {
        self.wire(port).inject(Packet::copy_of(self.pool, port, bytes).unwrap());
    }

    fn worker(&mut self, number: usize) -> &mut Worker {
        &mut self.workers[number].0
    }

    /// Polls one worker until it has nothing to do, then does its chores.
    fn run_one(&mut self, number: usize) {
        let now = self.now;
        let worker = self.worker(number);
        while worker.poll(now) > 0 {}
        worker.chores(now);
        let stats = worker.stats();
        assert_eq!(stats.balance().0, stats.balance().1, "FW-05, worker {number}: {stats:?}");
    }

    /// Polls all until nothing moves between them.
    fn run(&mut self) {
        for _ in 0..4 {
            self.run_one(0);
            self.run_one(1);
        }
        let stats = self.stats();
        assert_eq!(stats.handed, stats.taken, "on its way between workers: {stats:?}");
    }

    fn stats(&self) -> Stats {
        self.workers.iter().fold(Stats::default(), |sum, (worker, _)| sum.plus(&worker.stats()))
    }

    fn sent(&self, port: PortId) -> Vec<Vec<u8>> {
        self.wire(port).sent().iter().map(Packet::to_vec).collect()
    }

    fn flows(&mut self) -> usize {
        self.worker(0).forwarder().flows_v4().len()
    }

    /// Lets each worker run in a thread.
    fn start(self) -> Running {
        let Team { workers, wires, pool, .. } = self;
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for (mut worker, handle) in workers {
            handles.push(handle);
            threads.push(spawn(move || {
                worker.run();
                worker
            }));
        }
        Running { handles, threads, wires, pool }
    }
}

/// A team whose workers run.
struct Running {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<Worker>>,
    wires: Vec<(PortId, MemoryHandle)>,
    pool: &'static Pool,
}

impl Running {
    fn inject(&self, port: PortId, bytes: &[u8]) {
        let wire = &self.wires.iter().find(|(id, _)| *id == port).unwrap().1;
        wire.inject(Packet::copy_of(self.pool, port, bytes).unwrap());
    }

    /// The next `frames` frames that leave by a port.
    fn take(&self, port: PortId, frames: usize) -> Vec<Vec<u8>> {
        let wire = &self.wires.iter().find(|(id, _)| *id == port).unwrap().1;
        let mut taken = Vec::new();
        let by = std::time::Instant::now() + PATIENCE;
        while taken.len() < frames {
            match wire.take_sent() {
                Some(packet) => taken.push(packet.to_vec()),
                None => {
                    assert!(std::time::Instant::now() < by, "{} of {frames} frames", taken.len());
                    yield_now();
                }
            }
        }
        taken
    }

    /// Stops all, and gives the workers back.
    fn stop(self) -> Vec<Worker> {
        for handle in &self.handles {
            handle.send(Command::Stop).unwrap();
        }
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let by = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < by, "{what}");
        yield_now();
    }
}

fn from_pod_7(kind: Kind, from: &str, to: &str) -> Vec<u8> {
    let frame = Frame { link_source: POD_7, link_destination: CALI_LINK, kind, ..Frame::default() };
    frame.between(from, to).bytes()
}

fn from_pod_8(kind: Kind, from: &str, to: &str) -> Vec<u8> {
    let frame = Frame { link_source: POD_8, link_destination: CALI_LINK, kind, ..Frame::default() };
    frame.between(from, to).bytes()
}

fn to_pod_7(kind: Kind, from: &str, to: &str) -> Vec<u8> {
    out(CALI_7, TO_POD_7, kind, from, to, 63).bytes
}

fn to_pod_8(kind: Kind, from: &str, to: &str) -> Vec<u8> {
    out(CALI_8, TO_POD_8, kind, from, to, 63).bytes
}

fn answer(request: &[u8]) -> Vec<u8> {
    let asked = Arp::new_checked(request).unwrap();
    asked.reply(LINK).to_packet(pool(), CALI_1, asked.sender_link).unwrap().to_vec()
}

#[test]
fn a_connection_through_a_service_has_its_directions_at_two_workers() {
    let mut team = team();
    let both_ways =
        [(Kind::SYN, Kind::SYN_ACK), (Kind::ACK, Kind::ACK), (Kind::FIN, Kind::FIN), (Kind::ACK, Kind::ACK)];
    for (there, back) in both_ways {
        team.inject(CALI_7, &from_pod_7(there, POD, MYAPP));
        team.run();
        assert_eq!(team.sent(CALI_8), [to_pod_8(there, POD, SERVER)]);
        team.inject(CALI_8, &from_pod_8(back, SERVER, POD));
        team.run();
        assert_eq!(team.sent(CALI_7), [to_pod_7(back, MYAPP, POD)]);
    }
    assert_eq!(team.flows(), 1);
    let [there, back] = [0, 1].map(|number| team.worker(number).stats());
    assert_eq!((there.received, there.handed, there.taken, there.transmitted), (4, 4, 4, 4));
    assert_eq!((back.received, back.handed, back.taken, back.transmitted), (4, 4, 4, 4));
    assert_eq!((there.dropped.total(), back.dropped.total()), (0, 0));
}

#[test]
fn many_connections_of_running_workers_lose_and_mix_up_nothing() {
    const CLIENTS: usize = 500;
    let team = team().start();
    let clients: Vec<String> = (0..CLIENTS).map(|i| format!("10.151.51.7:{}", 2_000 + i)).collect();
    let both_ways =
        [(Kind::SYN, Kind::SYN_ACK), (Kind::ACK, Kind::ACK), (Kind::FIN, Kind::FIN), (Kind::ACK, Kind::ACK)];
    for (there, back) in both_ways {
        for client in &clients {
            team.inject(CALI_7, &from_pod_7(there, client, MYAPP));
        }
        // One port, one ring: in the order in which they came.
        let expected: Vec<_> = clients.iter().map(|client| to_pod_8(there, client, SERVER)).collect();
        assert!(team.take(CALI_8, CLIENTS) == expected);
        for client in &clients {
            team.inject(CALI_8, &from_pod_8(back, SERVER, client));
        }
        let expected: Vec<_> = clients.iter().map(|client| to_pod_7(back, MYAPP, client)).collect();
        assert!(team.take(CALI_7, CLIENTS) == expected);
    }
    let pool = team.pool;
    let mut workers = team.stop();
    let sum = workers.iter().fold(Stats::default(), |sum, worker| sum.plus(&worker.stats()));
    let frames = 8 * CLIENTS as u64;
    assert_eq!((sum.received, sum.transmitted, sum.dropped.total()), (frames, frames, 0));
    assert_eq!((sum.handed, sum.taken), (frames, frames));
    assert_eq!(sum.balance().0, sum.balance().1);
    assert_eq!(workers[0].forwarder().flows_v4().len(), CLIENTS);
    drop(workers);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn nb_02_who_asks_by_another_s_port_hears_the_answer() {
    let mut team = team();
    // The first worker's packet waits, and so does one of the second's own.
    team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, UNKNOWN));
    team.inject(CALI_8, &from_pod_8(Kind::SYN, "10.151.51.8:4", UNKNOWN));
    team.run();
    let requests = team.sent(CALI_1);
    assert_eq!(requests.len(), 2, "each asks for itself");
    assert_eq!(team.stats().held, 2);
    team.inject(CALI_1, &answer(&requests[0]));
    team.run();
    let link = (CALI_LINK, LINK);
    let mut sent = team.sent(CALI_1);
    sent.sort();
    let mut expected =
        [POD, "10.151.51.8:4"].map(|client| out(CALI_1, link, Kind::SYN, client, UNKNOWN, 63).bytes);
    expected.sort();
    assert_eq!(sent, expected);
    let stats = team.stats();
    assert_eq!((stats.held, stats.delivered, stats.dropped.total()), (0, 1, 0));
}

#[test]
fn nb_02_running_workers_resolve_a_neighbour_for_each_other() {
    let team = team().start();
    for client in 0..40 {
        team.inject(CALI_7, &from_pod_7(Kind::SYN, &format!("10.151.51.7:{}", 3_000 + client), UNKNOWN));
    }
    let request = team.take(CALI_1, 1).remove(0);
    team.inject(CALI_1, &answer(&request));
    let link = (CALI_LINK, LINK);
    let expected =
        |client| out(CALI_1, link, Kind::SYN, &format!("10.151.51.7:{}", 3_000 + client), UNKNOWN, 63).bytes;
    assert_eq!(team.take(CALI_1, 40), (0..40).map(expected).collect::<Vec<_>>());
    let workers = team.stop();
    assert_eq!(workers[0].stats().dropped.total() + workers[1].stats().dropped.total(), 0);
}

#[test]
fn fw_05_a_full_ring_is_counted_and_what_was_in_it_leaves() {
    let mut team = team();
    let clients = (0..1_500).map(|i| format!("10.151.51.7:{}", 2_000 + i));
    for client in clients {
        team.inject(CALI_7, &from_pod_7(Kind::SYN, &client, SERVER));
    }
    team.run_one(0);
    let stats = team.worker(0).stats();
    assert_eq!((stats.handed, stats.dropped.get(Reason::TransmitFull)), (1_024, 476));
    let refused = |worker: &mut Worker| {
        let of_port = worker.port_stats().into_iter().find(|(id, ..)| *id == CALI_8);
        of_port.map(|(_, stats, _)| (stats.transmitted, stats.refused)).unwrap()
    };
    assert_eq!(refused(team.worker(0)), (0, 476));
    team.run();
    assert_eq!(refused(team.worker(1)), (1_024, 0));
    let first = to_pod_8(Kind::SYN, "10.151.51.7:2000", SERVER);
    let sent = team.sent(CALI_8);
    assert_eq!((sent.len(), &sent[0]), (1_024, &first));
}

#[test]
fn pt_04_what_a_port_cannot_carry_is_finished_by_its_owner() {
    let mut team = team();
    let payload: Vec<u8> = (0..30_000u32).map(|i| i as u8).collect();
    let frame = Frame {
        link_source: POD_7,
        link_destination: CALI_LINK,
        kind: Kind::ACK,
        payload,
        ..Frame::default()
    };
    let bytes = frame.between(POD, SERVER).bytes();
    let mut packet = Packet::copy_of(team.pool, CALI_7, &bytes).unwrap();
    let kind = crate::packet::GsoKind::Tcp4;
    packet.offload.gso = Some(crate::packet::Gso { kind, ecn: false, size: 1440, header_len: 54 });
    packet.offload.checksum = crate::packet::ChecksumState::Partial { start: 34, offset: 16 };
    team.wire(CALI_7).inject(packet);
    team.run();
    assert_eq!(team.sent(CALI_8).len(), 30_000usize.div_ceil(1_440));
    assert_eq!((team.worker(0).stats().split, team.worker(1).stats().split), (0, 20));
}

#[test]
fn rt_05_a_direction_that_changes_its_worker_finds_its_way_again() {
    // A second queue of cali7 at the second worker, which knows the neighbours by other numbers.
    let mut team = team();
    let (port, queue) = memory(CALI_7);
    team.worker(1).add_port(CALI_7, port);
    let lan = "172.16.1.88:80";
    for to in [SERVER, lan] {
        team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, to));
    }
    team.run();
    team.inject(CALI_8, &from_pod_8(Kind::SYN_ACK, SERVER, POD));
    let from_lan = Frame { link_source: SLAVE2, link_destination: NODE_LINK, ..Frame::default() };
    team.inject(ENS3, &Frame { kind: Kind::SYN_ACK, ..from_lan }.between(lan, POD).bytes());
    team.run();
    // Each worker sends by its own queue.
    assert_eq!((team.sent(CALI_7).len(), queue.sent().len()), (1, 1));
    for round in 0..4 {
        for to in [SERVER, lan] {
            let bytes = from_pod_7(Kind::ACK, POD, to);
            let wire = if round % 2 == 0 { &queue } else { team.wire(CALI_7) };
            wire.inject(Packet::copy_of(team.pool, CALI_7, &bytes).unwrap());
        }
        team.run();
    }
    let pod: Vec<_> = [Kind::SYN, Kind::ACK, Kind::ACK, Kind::ACK, Kind::ACK]
        .map(|kind| to_pod_8(kind, POD, SERVER))
        .into();
    assert_eq!(team.sent(CALI_8), pod);
    let lan: Vec<_> = [Kind::SYN, Kind::ACK, Kind::ACK, Kind::ACK, Kind::ACK]
        .map(|kind| out(ENS3, TO_SLAVE2, kind, POD, lan, 63).bytes)
        .into();
    assert_eq!(team.sent(ENS3), lan);
    assert_eq!(team.flows(), 2);
}

#[test]
fn ct_13_a_masqueraded_connection_does_not_end_because_another_worker_meets_it() {
    let masquerading = || {
        let rule = MasqueradeRule {
            name: "outgoing".into(),
            source: None,
            destination: None,
            out: Some(Match::Is(Some(ENS3))),
        };
        let mut cluster = cluster();
        cluster.family.masquerade = vec![rule];
        cluster
    };
    let mut team = team_of(masquerading());
    let (port, queue) = memory(CALI_7);
    team.worker(1).add_port(CALI_7, port);
    team.inject(CALI_7, &from_pod_7(Kind::Udp, POD, FAR));
    team.run();
    let first = team.sent(ENS3);
    queue.inject(Packet::copy_of(team.pool, CALI_7, &from_pod_7(Kind::Udp, POD, FAR)).unwrap());
    team.run();
    let second = team.sent(ENS3);
    assert_eq!(second.len(), 1);
    // The same source, that is the same connection.
    assert_eq!(first[0][26..36], second[0][26..36]);
    assert_eq!(team.flows(), 1);
    // It ends with its interface, whichever worker met it last.
    let mut interfaces: Vec<_> = seed_interfaces().iter().cloned().collect();
    for interface in interfaces.iter_mut().filter(|interface| interface.port == Some(ENS3)) {
        interface.link = LinkState::Down;
    }
    let mut tables = masquerading().tables();
    let family = tables.v4.as_mut().unwrap();
    family.routing = Arc::new(Routing {
        fib: Fib::build(seed_routes()),
        interfaces: Arc::new(Interfaces::new(interfaces)),
    });
    let tables = Arc::new(tables);
    for number in [0, 1] {
        team.worker(number).forwarder().set_tables(Arc::clone(&tables));
    }
    team.run();
    assert_eq!(team.flows(), 0);
}

#[test]
fn fw_01_the_limit_of_errors_is_one_for_all_workers() {
    let mut team = team();
    let (port, queue) = memory(CALI_7);
    team.worker(1).add_port(CALI_7, port);
    for client in 0..10 {
        let mut frame =
            Frame { link_source: POD_7, link_destination: CALI_LINK, kind: Kind::Udp, ..Frame::default() };
        frame.ttl = 1;
        let bytes = frame.between(&format!("10.151.51.7:{}", 500 + client), SERVER).bytes();
        let wire = if client % 2 == 0 { &queue } else { team.wire(CALI_7) };
        wire.inject(Packet::copy_of(team.pool, CALI_7, &bytes).unwrap());
    }
    team.run();
    assert_eq!((team.stats().originated, team.stats().dropped.get(Reason::TtlExceeded)), (6, 10));
}

#[test]
fn a_port_goes_and_comes_back_while_the_others_go_on() {
    let mut team = team();
    team.inject(CALI_7, &from_pod_7(Kind::Udp, POD, SERVER));
    team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, UNKNOWN));
    team.run();
    assert_eq!((team.sent(CALI_8).len(), team.sent(CALI_1).len(), team.stats().held), (1, 1, 1));
    // Frames on their way to a port when it goes, and what waits for a neighbour behind it.
    team.inject(CALI_7, &from_pod_7(Kind::Udp, POD, SERVER));
    team.run_one(0);
    for id in [CALI_8, CALI_1] {
        let removed = team.worker(1).remove_port(id).unwrap();
        assert_eq!((removed.stats.transmitted, removed.stats.refused), (1, 0));
        assert!(team.worker(0).remove_port(id).is_none(), "another's");
    }
    team.run();
    assert_eq!((team.stats().held, team.stats().dropped.get(Reason::PortDown)), (0, 2));
    // It is routed there still; the others go on.
    team.inject(CALI_7, &from_pod_7(Kind::Udp, POD, SERVER));
    team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, "172.16.1.88:80"));
    team.run();
    assert_eq!((team.sent(ENS3).len(), team.stats().dropped.get(Reason::PortDown)), (1, 3));
    let (port, wire) = memory(CALI_8);
    team.worker(1).add_port(CALI_8, port);
    team.worker(0).add_remote_port(CALI_8, 1);
    team.inject(CALI_7, &from_pod_7(Kind::Udp, POD, SERVER));
    team.run();
    // Its neighbours went with it: asked for anew.
    let [request] = &wire.sent()[..] else { panic!("no request") };
    let asked = Arp::new_checked(request.head()).unwrap();
    let reply = asked.reply(POD_8).to_packet(team.pool, CALI_8, asked.sender_link).unwrap();
    wire.inject(reply);
    team.run();
    let sent: Vec<_> = wire.sent().iter().map(Packet::to_vec).collect();
    assert_eq!(sent, [to_pod_8(Kind::Udp, POD, SERVER)]);
    assert_eq!(team.stats().dropped.get(Reason::PortDown), 3);
}

#[test]
fn fw_05_frames_for_a_worker_that_has_gone_are_counted() {
    let mut team = team();
    let (second, _handle) = team.workers.pop().unwrap();
    drop(second);
    team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, SERVER));
    team.run_one(0);
    assert_eq!(team.worker(0).stats().dropped.get(Reason::PortDown), 1);
}

#[test]
#[should_panic = "worker 2 is none of worker 0's peers"]
fn a_port_cannot_belong_to_a_worker_that_is_none() {
    team().worker(0).add_remote_port(CALI_8, 2);
}

#[test]
fn an_idle_worker_sleeps_after_every_poll() {
    let mut team = team();
    team.workers[1].0.set_idle(Idle { spins: 10, pauses: 5, ..Idle::default() });
    let team = team.start();
    let idle = &team.handles[1];
    until("not asleep", || idle.sleeps() > 20);
    // Counted together: between two polls.
    let count = |handle: &Handle| {
        let counts = handle.clone();
        handle.ask(move |_| (counts.polls(), counts.sleeps())).unwrap()
    };
    let before = count(idle);
    until("no longer asleep", || idle.sleeps() > before.1 + 200);
    let after = count(idle);
    assert_eq!(after.0 - before.0, after.1 - before.1, "a poll without a sleep");
    team.stop();
}

#[test]
fn a_sleeping_worker_is_woken_by_frames_news_and_commands() {
    let mut team = team();
    // From its 16th sleep on the second one would sleep for 20 s.
    let long = Idle { spins: 1, pauses: 0, sleep: 2 * PATIENCE, doze: 2 * PATIENCE };
    for number in [0, 1] {
        team.worker(number).set_idle(long);
    }
    let handles: Vec<Handle> = team.workers.iter().map(|(_, handle)| handle.clone()).collect();
    let team = team.start();
    for client in 0..20 {
        // Deep enough in its sleep that nothing but a bell ends it in time.
        until("not asleep", || handles[1].sleeps() > 14);
        let client = format!("10.151.51.7:{}", 4_000 + client);
        team.inject(CALI_7, &from_pod_7(Kind::SYN, &client, SERVER));
        // A port in memory has no descriptor: a command makes the first one look.
        handles[0].ask(|_| ()).unwrap();
        assert_eq!(team.take(CALI_8, 1), [to_pod_8(Kind::SYN, &client, SERVER)]);
    }
    team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, UNKNOWN));
    handles[0].ask(|_| ()).unwrap();
    let request = team.take(CALI_1, 1).remove(0);
    team.inject(CALI_1, &answer(&request));
    handles[1].ask(|_| ()).unwrap();
    let expected = out(CALI_1, (CALI_LINK, LINK), Kind::SYN, POD, UNKNOWN, 63).bytes;
    assert_eq!(team.take(CALI_1, 1), [expected]);
    team.stop();
}

#[test]
fn the_watchdog_sees_a_worker_that_is_stuck_and_that_it_goes_on() {
    let team = team().start();
    let mut dog = Watchdog::new(team.handles.clone(), Duration::from_millis(200));
    until("still silent", || team.handles.iter().all(|handle| handle.polls() > 0));
    dog.look();
    let (release, wait) = crossbeam_channel::bounded::<()>(0);
    let stuck = Command::Run(Box::new(move |_| {
        let _ = wait.recv_timeout(PATIENCE);
    }));
    team.handles[1].send(stuck).unwrap();
    let mut alarms = Vec::new();
    until("not seen", || {
        // (On a busy machine the other one may be silent for a while, too.)
        alarms = dog.look();
        alarms.iter().any(|alarm| matches!(alarm, Alarm::Stuck { worker: 1, .. }))
    });
    assert!(dog.look().iter().all(|alarm| !matches!(alarm, Alarm::Stuck { worker: 1, .. })), "told once");
    release.send(()).unwrap();
    until("not seen to go on", || dog.look().contains(&Alarm::Recovered { worker: 1 }));
    team.stop();
}

#[test]
fn a_link_that_is_down_is_its_owner_s_to_count() {
    let mut team = team();
    team.wire(CALI_8).set_link(Link::Down);
    team.inject(CALI_7, &from_pod_7(Kind::SYN, POD, SERVER));
    team.run();
    let down = |worker: &Worker| worker.stats().dropped.get(Reason::PortDown);
    assert_eq!((down(&team.workers[0].0), down(&team.workers[1].0)), (0, 1));
}
