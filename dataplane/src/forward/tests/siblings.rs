//! Two forwarders on the same connections, in threads of their own, whose packets meet in one connection. (What
//! workers do with each other's ports is in [`team`](super::team).)

use super::*;
use crate::sync::Meeting;

/// Places of backends behind cali7 and cali8: what each worker would choose.
const CHOICES: [u32; 2] = [1, 2];

const ROUNDS: u16 = 500;

/// Two workers on the seed's node, which masquerades to random ports.
fn siblings() -> [Node; 2] {
    let one = Cluster { masquerade: MasqueradePorts::Random, ..cluster() }.start();
    let mut forwarder = one.forwarder.sibling(8);
    for (port, address, link) in
        [(CALI_7, "10.151.51.7", POD_7), (CALI_8, "10.151.51.8", POD_8), (ENS3, "172.16.1.88", SLAVE2)]
    {
        forwarder.neighbours_v4().learn(port, address.parse().unwrap(), link, Learned::Static, one.now);
    }
    let now = one.now;
    let other = Node { forwarder, now, sent: Sent::default(), events: Vec::new(), transmitted: 0 };
    let [first, second] = CHOICES;
    [one.choosing(first), other.choosing(second)]
}

/// What two workers do at once, round by round.
fn at_once<T: Send>(nodes: &mut [Node; 2], work: impl Fn(&mut Node, usize, u16) -> T + Sync) -> [Vec<T>; 2] {
    let both = Meeting::default();
    let (both, work) = (&both, &work);
    let [one, other] = nodes;
    std::thread::scope(|scope| {
        let threads = [(0, one), (1, other)].map(|(worker, node)| {
            scope.spawn(move || {
                let round = |round| {
                    both.wait();
                    work(node, worker, round)
                };
                (0..ROUNDS).map(round).collect()
            })
        });
        threads.map(|thread| thread.join().unwrap())
    })
}

/// CT-12: a SYN and its retransmission come to two workers at once, which would choose different backends and source
/// ports. There is one connection, and both frames leave under its translation.
#[test]
fn ct_12_a_syn_and_its_retransmission_at_two_workers_leave_under_one_translation() {
    let mut nodes = siblings();
    let client = |round| format!("172.16.1.88:{}", 2_000 + round);
    let [one, other] = at_once(&mut nodes, |node, _, round| node.from(ENS3).syn(&client(round), MYAPP));
    assert_eq!(one, other);
    assert!(one.iter().all(|sent| sent.len() == 1));
    let [first, second] = &nodes;
    let flows = first.forwarder.flows_v4();
    assert!(Arc::ptr_eq(flows, second.forwarder.flows_v4()));
    assert_eq!((flows.len(), flows.counters().inserted), (usize::from(ROUNDS), u64::from(ROUNDS)));
    // Each choice won somewhere, or the workers never met.
    let ports: Vec<PortId> = one.iter().map(|sent| sent[0].port).collect();
    assert!(ports.contains(&CALI_7) && ports.contains(&CALI_8), "one worker was always first");
}
