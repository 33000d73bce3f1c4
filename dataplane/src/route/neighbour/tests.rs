use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::packet::{V4, V6};

const PORT: PortId = PortId(6);
const LINK: LinkAddr = LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]);
const OTHER: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0xa9, 0x16, 0x9f]);
/// The link address of all ports.
const OWN: LinkAddr = LinkAddr([0xee; 6]);
const POD: Ipv4Addr = Ipv4Addr::new(10, 151, 51, 8);
const SOURCE: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 50);

/// Writes down what the machine gives. Held "packets" are numbers.
#[derive(Default, Debug)]
struct Log {
    solicited: Vec<Solicitation<V4>>,
    released: Vec<(LinkAddr, u32)>,
    failed: Vec<(u32, Reason)>,
}

impl Log {
    fn drain(&mut self, table: &mut Neighbours<V4, u32>) {
        while let Some(event) = table.next_event() {
            match event {
                NeighbourEvent::Solicit(solicitation) => self.solicited.push(solicitation),
                NeighbourEvent::Release(id, held) => {
                    self.released.push((table.resolved(id).unwrap().destination, held));
                }
                NeighbourEvent::Failed(held, reason) => self.failed.push((held, reason)),
            }
        }
    }
}

/// A table, its log, and a clock in milliseconds.
struct Bench {
    table: Neighbours<V4, u32>,
    log: Log,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Bench::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let mut table = Neighbours::new(limits);
        for port in 0..8 {
            table.set_port(PortId(port), OWN, 1480);
        }
        Bench { table, log: Log::default(), now: Instant::from_secs(1000) }
    }

    fn pod(&mut self) -> AdjacencyId {
        self.table.get_or_create(PORT, POD, self.now).unwrap()
    }

    fn hold(&mut self, id: AdjacencyId, held: u32) -> Hold<u32> {
        self.table.hold(id, held, SOURCE, self.now)
    }

    fn learn(&mut self, link: LinkAddr, how: Learned) {
        self.table.learn(PORT, POD, link, how, self.now);
        self.log.drain(&mut self.table);
    }

    fn link(&self, id: AdjacencyId) -> Option<LinkAddr> {
        self.table.resolved(id).map(|link| link.destination)
    }

    fn poll(&mut self) {
        self.table.poll(self.now);
        self.log.drain(&mut self.table);
    }

    /// Advances millisecond by millisecond, polling; returns when (in ms from here) requests were sent.
    fn run(&mut self, millis: u64) -> Vec<u64> {
        let mut sent = Vec::new();
        for passed in 0..=millis {
            let before = self.log.solicited.len();
            self.poll();
            sent.extend(std::iter::repeat_n(passed, self.log.solicited.len() - before));
            if passed < millis {
                self.now = self.now + Duration::from_millis(1);
            }
        }
        sent
    }

    fn state(&mut self) -> State {
        let id = self.pod();
        self.table.get(id).unwrap().state
    }

    /// A reachable pod.
    fn reachable() -> (Self, AdjacencyId) {
        let mut bench = Bench::new();
        let id = bench.pod();
        bench.learn(LINK, Learned::Reply);
        assert_eq!(bench.state(), State::Reachable);
        (bench, id)
    }
}

#[test]
fn a_record_has_half_a_cache_line_and_says_how_to_send() {
    assert_eq!((size_of::<Record>(), align_of::<Record>()), (32, 32));
    let (mut bench, id) = Bench::reachable();
    let link = |source, mtu| Link { port: PORT, source, destination: LINK, mtu };
    assert_eq!(bench.table.resolved(id), Some(link(OWN, 1480)));
    assert_eq!(bench.table.mtu(id), 1480);
    assert_eq!(bench.table.port(id), PORT);
    assert_eq!(bench.table.address(id), Some(POD));
    bench.table.set_port(PORT, OTHER, 9000);
    assert_eq!(bench.table.resolved(id), Some(link(OTHER, 9000)));
    assert_eq!(bench.table.mtu(id), 9000);
}

#[test]
fn nb_01_requests_back_off_and_what_waits_is_released_in_order() {
    let mut bench = Bench::new();
    let id = bench.pod();
    assert_eq!(bench.table.resolved(id), None);
    assert_eq!(bench.hold(id, 1), Hold::Waiting);
    assert_eq!(bench.hold(id, 2), Hold::Waiting);
    assert_eq!(bench.run(999), [0, 300, 700]);
    assert_eq!(
        bench.log.solicited[2],
        Solicitation { port: PORT, target: POD, known: None, waiting: Some(SOURCE) }
    );
    assert_eq!(bench.log.solicited[0].link_destination(), LinkAddr::BROADCAST);
    bench.learn(LINK, Learned::Reply);
    assert_eq!(bench.log.released, [(LINK, 1), (LINK, 2)]);
    assert_eq!(bench.link(id), Some(LINK));
    assert_eq!(bench.hold(id, 3), Hold::Ready(3));
    assert_eq!(bench.table.held(), 0);
    // The old deadline does nothing any more.
    assert!(bench.run(2000).is_empty());
    assert!(bench.log.failed.is_empty());
}

#[test]
fn nb_02_no_answer_fails_at_1_s_exactly_and_is_asked_again_1_s_later() {
    let mut bench = Bench::new();
    let id = bench.pod();
    assert_eq!(bench.hold(id, 1), Hold::Waiting);
    bench.run(600);
    assert_eq!(bench.hold(id, 2), Hold::Waiting);
    bench.run(399);
    assert!(bench.log.failed.is_empty());
    bench.run(1);
    assert_eq!(bench.log.failed, [(1, Reason::NeighbourFailed), (2, Reason::NeighbourFailed)]);
    assert_eq!(bench.state(), State::Failed);
    assert_eq!(bench.hold(id, 3), Hold::Refused(3, Reason::NeighbourFailed));
    assert!(bench.run(999).is_empty());
    assert_eq!(bench.hold(id, 4), Hold::Refused(4, Reason::NeighbourFailed));
    bench.run(1);
    assert_eq!(bench.hold(id, 5), Hold::Waiting);
    assert_eq!(bench.run(500), [0, 300]);
}

#[test]
fn nb_02_queue_overflow_refuses_the_arriving_packet() {
    let mut bench = Bench::new();
    let id = bench.pod();
    for held in 0..64 {
        assert_eq!(bench.hold(id, held), Hold::Waiting);
    }
    assert_eq!(bench.hold(id, 64), Hold::Refused(64, Reason::NeighbourQueue));
    assert_eq!(bench.table.held(), 64);
    bench.learn(LINK, Learned::Reply);
    assert_eq!(bench.log.released.len(), 64);
    assert_eq!(bench.log.released[63], (LINK, 63));
}

#[test]
fn nb_02_all_queues_together_are_bounded() {
    let mut bench = Bench::with(Limits { neighbours: 8, held: 3 });
    let pod = bench.pod();
    let other = bench.table.get_or_create(PORT, "10.151.51.7".parse().unwrap(), bench.now).unwrap();
    assert_eq!(bench.hold(pod, 1), Hold::Waiting);
    assert_eq!(bench.hold(pod, 2), Hold::Waiting);
    assert_eq!(bench.hold(other, 3), Hold::Waiting);
    assert_eq!(bench.hold(other, 4), Hold::Refused(4, Reason::NeighbourQueue));
}

#[test]
fn nb_02_a_late_poll_sends_one_request() {
    let mut bench = Bench::new();
    let id = bench.pod();
    bench.hold(id, 1);
    bench.poll();
    bench.now = bench.now + Duration::from_millis(750);
    bench.poll();
    assert_eq!(bench.log.solicited.len(), 2);
    assert_eq!(bench.run(249), []);
    bench.run(1);
    assert_eq!(bench.log.failed, [(1, Reason::NeighbourFailed)]);
}

#[test]
fn nb_03_reachable_30_s_then_stale_then_probed_when_used() {
    let (mut bench, id) = Bench::reachable();
    bench.run(29_999);
    assert_eq!(bench.state(), State::Reachable);
    bench.run(1);
    assert_eq!(bench.state(), State::Stale);
    // Unused: nothing is asked.
    assert!(bench.run(60_000).is_empty());
    assert_eq!(bench.link(id), Some(LINK));
    let sent = bench.run(500);
    assert_eq!(sent.len(), 1);
    assert!(sent[0] <= 10, "{sent:?}");
    assert_eq!(bench.log.solicited[0].known, Some(LINK));
    assert_eq!(bench.log.solicited[0].link_destination(), LINK);
    assert_eq!(bench.state(), State::Probe);
    // Traffic goes on meanwhile.
    assert_eq!(bench.link(id), Some(LINK));
    bench.learn(LINK, Learned::Reply);
    assert_eq!(bench.state(), State::Reachable);
    assert!(bench.run(29_999).is_empty());
    assert_eq!(bench.state(), State::Reachable);
}

#[test]
fn nb_03_three_unanswered_probes_fail_and_the_next_packet_asks_everyone_at_once() {
    let (mut bench, id) = Bench::reachable();
    bench.run(30_010);
    assert_eq!(bench.state(), State::Stale);
    bench.table.resolved(id);
    bench.run(10);
    assert_eq!(bench.state(), State::Probe);
    assert_eq!(bench.log.solicited.len(), 1);
    bench.now = bench.now + Duration::from_millis(1990);
    bench.poll();
    bench.now = bench.now + Duration::from_millis(1000);
    bench.poll();
    assert_eq!(bench.log.solicited.len(), 3);
    assert_eq!(bench.link(id), Some(LINK));
    bench.run(999);
    assert_eq!(bench.state(), State::Probe);
    bench.run(1);
    assert_eq!(bench.state(), State::Failed);
    assert_eq!(bench.table.resolved(id), None);
    assert_eq!(bench.hold(id, 1), Hold::Waiting);
    bench.poll();
    assert_eq!(bench.log.solicited[3].known, None);
}

#[test]
fn nb_01_gratuitous_updates_known_entries_only() {
    let mut bench = Bench::new();
    bench.learn(LINK, Learned::Gratuitous);
    bench.learn(LINK, Learned::Overheard);
    bench.learn(LINK, Learned::Reply);
    assert!(bench.table.is_empty());

    let (mut bench, id) = Bench::reachable();
    bench.learn(OTHER, Learned::Gratuitous);
    assert_eq!(bench.link(id), Some(OTHER));
    assert_eq!(bench.state(), State::Stale);
}

#[test]
fn nb_01_hearsay_of_what_is_known_confirms_nothing() {
    let (mut bench, _) = Bench::reachable();
    bench.run(29_000);
    bench.learn(LINK, Learned::Gratuitous);
    bench.learn(LINK, Learned::Overheard);
    assert_eq!(bench.state(), State::Reachable);
    bench.run(1_000);
    assert_eq!(bench.state(), State::Stale);
}

#[test]
fn nb_01_the_first_of_several_answers_stays_for_1_s() {
    let (mut bench, id) = Bench::reachable();
    bench.run(999);
    bench.learn(OTHER, Learned::Reply);
    bench.learn(OTHER, Learned::Overheard);
    assert_eq!(bench.link(id), Some(LINK));
    bench.run(1);
    bench.learn(OTHER, Learned::Reply);
    assert_eq!(bench.link(id), Some(OTHER));
    assert_eq!(bench.state(), State::Reachable);
}

#[test]
fn nb_01_gratuitous_answer_releases_what_waits() {
    let mut bench = Bench::new();
    let id = bench.pod();
    bench.hold(id, 7);
    bench.learn(LINK, Learned::Gratuitous);
    assert_eq!(bench.log.released, [(LINK, 7)]);
    assert_eq!(bench.state(), State::Stale);
}

#[test]
fn nb_01_request_to_us_and_kernel_make_a_neighbour_known() {
    for how in [Learned::Request, Learned::Kernel] {
        let mut bench = Bench::new();
        bench.learn(LINK, how);
        let id = bench.pod();
        assert_eq!(bench.state(), State::Stale);
        assert_eq!(bench.link(id), Some(LINK));
        bench.run(10);
        assert_eq!(bench.log.solicited[0].known, Some(LINK));
    }
}

#[test]
fn nb_01_static_is_never_changed_nor_asked() {
    let mut bench = Bench::new();
    bench.learn(LINK, Learned::Static);
    let id = bench.pod();
    for how in [Learned::Reply, Learned::Gratuitous, Learned::Kernel, Learned::Request] {
        bench.learn(OTHER, how);
    }
    bench.table.resolved(id);
    assert!(bench.run(40_000).is_empty());
    assert_eq!(bench.link(id), Some(LINK));
    assert_eq!(bench.state(), State::Permanent);
    bench.learn(OTHER, Learned::Static);
    assert_eq!(bench.link(id), Some(OTHER));
    // Taken out of the configuration: same number, to be asked for.
    bench.table.forget(PORT, POD);
    assert_eq!(bench.table.resolved(id), None);
    assert_eq!(bench.hold(id, 1), Hold::Waiting);
    assert_eq!(bench.run(1), [0]);
}

#[test]
fn nb_01_impossible_link_addresses_are_ignored() {
    let mut bench = Bench::new();
    bench.pod();
    for link in [LinkAddr::BROADCAST, LinkAddr::default(), LinkAddr([1, 0, 0x5e, 0, 0, 1])] {
        bench.learn(link, Learned::Reply);
        assert_eq!(bench.state(), State::Incomplete, "{link}");
    }
}

#[test]
fn nb_01_ipv6_asks_the_solicited_node_group() {
    let solicitation = Solicitation::<V6> {
        port: PORT,
        target: "2001:db8::12:3456".parse().unwrap(),
        known: None,
        waiting: None,
    };
    assert_eq!(solicitation.link_destination().to_string(), "33:33:ff:12:34:56");
}

#[test]
fn a_full_table_gives_way_only_to_the_useless_and_old_numbers_are_recognised() {
    let mut bench = Bench::with(Limits { neighbours: 2, held: 8 });
    let address = |last| Ipv4Addr::new(10, 0, 0, last);
    let create = |bench: &mut Bench, last| bench.table.get_or_create(PORT, address(last), bench.now);
    let used = create(&mut bench, 1).unwrap();
    bench.table.learn(PORT, address(1), LINK, Learned::Reply, bench.now);
    let silent = create(&mut bench, 2).unwrap();
    assert_eq!(bench.hold(silent, 1), Hold::Waiting);
    // One in use and one being asked: no room.
    assert_eq!(create(&mut bench, 3), Err(Reason::NeighbourQueue));
    bench.run(1000);
    // The silent one has failed.
    let third = create(&mut bench, 3).unwrap();
    assert_ne!(third, silent);
    assert!(!bench.table.is_current(silent));
    assert_eq!(bench.table.resolved(silent), None);
    assert_eq!(bench.hold(silent, 9), Hold::Outdated(9));
    assert_eq!(bench.table.get(silent), None);
    assert_eq!(bench.table.get(third).unwrap().address, address(3));
    // Used now: it stays for another minute, while the other may go.
    bench.run(40_000);
    bench.table.resolved(used);
    bench.run(20_000);
    let fourth = create(&mut bench, 4).unwrap();
    assert!(bench.table.is_current(used));
    assert!(!bench.table.is_current(third));
    assert_eq!(create(&mut bench, 5), Err(Reason::NeighbourQueue));
    assert!(bench.table.is_current(fourth));
    assert_eq!(bench.table.len(), 2);
}

#[test]
fn a_removed_port_takes_its_neighbours_and_fails_what_waits() {
    let mut bench = Bench::new();
    let id = bench.pod();
    let elsewhere = bench.table.get_or_create(PortId(0), POD, bench.now).unwrap();
    bench.hold(id, 1);
    bench.hold(elsewhere, 2);
    bench.table.remove_port(PORT);
    assert_eq!(bench.table.held(), 2);
    bench.log.drain(&mut bench.table);
    assert_eq!(bench.log.failed, [(1, Reason::PortDown)]);
    assert!(!bench.table.is_current(id));
    assert!(bench.table.is_current(elsewhere));
    assert_eq!(bench.table.held(), 1);
    assert_eq!(bench.table.get_or_create(PORT, POD, bench.now), Err(Reason::PortDown));
    bench.table.set_port(PORT, OWN, 1480);
    let again = bench.pod();
    assert_ne!(again, id);
    assert_eq!(bench.table.iter().count(), 2);
}

#[test]
fn work_per_poll_is_bounded_and_the_rest_comes_next() {
    let mut bench = Bench::new();
    for last in 0..200 {
        let address = Ipv4Addr::new(10, 0, 0, last);
        let id = bench.table.get_or_create(PORT, address, bench.now).unwrap();
        bench.hold(id, u32::from(last));
    }
    bench.poll();
    assert_eq!(bench.log.solicited.len(), 64);
    bench.poll();
    assert_eq!(bench.log.solicited.len(), 128);
    bench.poll();
    bench.poll();
    bench.poll();
    assert_eq!(bench.log.solicited.len(), 200);
}

#[derive(Clone, Debug)]
enum Step {
    Hold(u8),
    Learn(u8, bool, Learned),
    Forget(u8),
    RemovePort(u8),
    Advance(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop::sample::select(vec![
        Learned::Reply,
        Learned::Request,
        Learned::Gratuitous,
        Learned::Overheard,
        Learned::Static,
        Learned::Kernel,
    ]);
    prop_oneof![
        12 => (0..12u8).prop_map(Step::Hold),
        2 => (0..12u8, any::<bool>(), how).prop_map(|(who, link, how)| Step::Learn(who, link, how)),
        1 => (0..12u8).prop_map(Step::Forget),
        1 => (0..2u8).prop_map(Step::RemovePort),
        4 => prop_oneof![0..5u32, 0..400u32, 0..70_000u32].prop_map(Step::Advance),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens, what was given comes back once or still waits, and nothing waits for longer than
    /// 1 s; every entry that packets wait for has a timer.
    #[test]
    fn nb_02_nothing_held_is_lost(steps in prop::collection::vec(step(), 1..400)) {
        let mut bench = Bench::with(Limits { neighbours: 8, held: 40 });
        let name = |who: u8| (PortId(u16::from(who % 2)), Ipv4Addr::new(10, 0, 0, who));
        let (mut given, mut back) = (0u32, Vec::new());
        let mut since = std::collections::BTreeMap::new();
        for step in steps {
            match step {
                Step::Hold(who) => {
                    let (port, address) = name(who);
                    let number = given;
                    given += 1;
                    match bench.table.get_or_create(port, address, bench.now) {
                        Err(_) => back.push(number),
                        Ok(id) => match bench.hold(id, number) {
                            Hold::Waiting => { since.insert(number, bench.now); }
                            Hold::Ready(held) | Hold::Refused(held, _) => back.push(held),
                            Hold::Outdated(_) => panic!("a number just given is current"),
                        },
                    }
                }
                Step::Learn(who, link, how) => {
                    let (port, address) = name(who);
                    let link = if link { LINK } else { OTHER };
                    bench.table.learn(port, address, link, how, bench.now);
                }
                Step::Forget(who) => {
                    let (port, address) = name(who);
                    bench.table.forget(port, address);
                }
                Step::RemovePort(port) => {
                    bench.table.remove_port(PortId(u16::from(port)));
                    bench.table.set_port(PortId(u16::from(port)), OWN, 1480);
                }
                Step::Advance(millis) => {
                    bench.now = bench.now + Duration::from_millis(u64::from(millis));
                    bench.poll();
                }
            }
            bench.log.drain(&mut bench.table);
            for (_, number) in bench.log.released.drain(..) {
                since.remove(&number);
                back.push(number);
            }
            for (number, _) in bench.log.failed.drain(..) {
                since.remove(&number);
                back.push(number);
            }
            prop_assert_eq!(bench.table.held(), since.len());
            prop_assert!(bench.table.held() <= 40 && bench.table.len() <= 8);
            prop_assert_eq!(bench.table.iter().map(|neighbour| neighbour.held).sum::<usize>(), since.len());
            if let Some(oldest) = since.values().min() {
                prop_assert!(bench.now.saturating_since(*oldest) <= WAIT);
            }
        }
        // Whoever still waits is let go by time alone.
        bench.now = bench.now + WAIT;
        bench.poll();
        back.extend(bench.log.released.drain(..).map(|(_, number)| number));
        back.extend(bench.log.failed.drain(..).map(|(number, _)| number));
        back.sort_unstable();
        prop_assert_eq!(back, (0..given).collect::<Vec<_>>());
        prop_assert_eq!(bench.table.held(), 0);
    }
}

/// A neighbour of IPv6 in this state, and what becomes of it.
fn advertised(
    before: Option<(LinkAddr, State)>,
    said: Advertised,
) -> (Option<LinkAddr>, State, Vec<NeighbourEvent<V6, u32>>) {
    let mut table = Neighbours::<V6, u32>::new(Limits::default());
    table.set_port(PORT, OWN, 1480);
    let now = Instant::from_secs(1000);
    let pod = "fd00::8".parse().unwrap();
    let id = table.get_or_create(PORT, pod, now).unwrap();
    match before {
        None => assert_eq!(table.hold(id, 1, pod, now), Hold::Waiting),
        Some((link, state)) => {
            table.learn(PORT, pod, link, Learned::Kernel, now);
            table.records[id.slot()].set(link, state);
        }
    }
    table.advertised(PORT, pod, said, now);
    let neighbour = table.get(id).unwrap();
    let events = std::iter::from_fn(|| table.next_event()).collect();
    (neighbour.link, neighbour.state, events)
}

/// RFC 4861, section 7.2.5 and appendix C, case by case.
#[test]
fn nb_03_an_advertisement_moves_the_state_as_the_standard_says() {
    use State::*;
    let said = |link: Option<LinkAddr>, flags: &str| Advertised {
        link,
        solicited: flags.contains('S'),
        overrides: flags.contains('O'),
    };
    let (same, new, none) = (Some(LINK), Some(OTHER), None);
    for (before, link, flags, after) in [
        (None, same, "S", (Some(LINK), Reachable)),
        (None, same, "", (Some(LINK), Stale)),
        (None, none, "SO", (None, Incomplete)),
        (Some(Failed), same, "S", (Some(LINK), Reachable)),
        (Some(Stale), same, "S", (Some(LINK), Reachable)),
        (Some(Stale), none, "S", (Some(LINK), Reachable)),
        (Some(Probe), same, "SO", (Some(LINK), Reachable)),
        (Some(Probe), new, "SO", (Some(OTHER), Reachable)),
        (Some(Probe), new, "S", (Some(LINK), Probe)),
        (Some(Reachable), new, "S", (Some(LINK), Stale)),
        (Some(Reachable), new, "", (Some(LINK), Stale)),
        (Some(Reachable), new, "O", (Some(OTHER), Stale)),
        (Some(Reachable), same, "", (Some(LINK), Reachable)),
        (Some(Stale), same, "O", (Some(LINK), Stale)),
        (Some(Permanent), new, "SO", (Some(LINK), Permanent)),
    ] {
        let (now, state, events) = advertised(before.map(|state| (LINK, state)), said(link, flags));
        assert_eq!((now, state), after, "{before:?} {link:?} {flags}");
        assert_eq!(events.len(), usize::from(before.is_none() && state != Incomplete), "what waited");
    }
}

#[test]
fn nb_01_an_advertisement_makes_no_neighbour_known() {
    let mut table = Neighbours::<V6, u32>::new(Limits::default());
    table.set_port(PORT, OWN, 1480);
    let said = Advertised { link: Some(LINK), solicited: false, overrides: true };
    table.advertised(PORT, "fd00::8".parse().unwrap(), said, Instant::from_secs(1000));
    assert!(table.is_empty());
}
