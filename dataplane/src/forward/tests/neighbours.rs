//! Packets that wait for a link address, and ARP (NB-01, NB-02).

use super::*;
use crate::packet::arp::{Arp, Operation};
use crate::packet::ethernet::Ethernet;

const POD: &str = "10.151.51.7:40000";
/// Nobody is known there.
const UNKNOWN: &str = "10.151.51.1:80";
const LINK: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 0x51]);

fn arp_of(out: &Out) -> Arp {
    Arp::new_checked(&out.bytes).unwrap_or_else(|| panic!("not ARP: {out:?}"))
}

/// What the neighbour 10.151.51.1 says when asked by the node.
fn answer(asked: &Out) -> Vec<u8> {
    let asked = arp_of(asked);
    asked.reply(LINK).to_packet(pool(), CALI_1, asked.sender_link).unwrap().to_vec()
}

#[test]
fn nb_02_the_first_packet_waits_as_it_came_in_and_is_forwarded_once() {
    let mut node = seed();
    let asked = node.from(CALI_7).syn(POD, UNKNOWN);
    let [request] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(request.port, CALI_1);
    assert_eq!(request.bytes[..6], [0xff; 6]);
    let arp = arp_of(request);
    assert_eq!(
        (arp.operation, arp.sender_link, arp.target.to_string()),
        (Operation::Request, CALI_LINK, "10.151.51.1".into())
    );
    assert_eq!(arp.sender.to_string(), "172.16.1.50", "an address of the node, not the pod's");
    assert_eq!(node.stats().held, 1);
    // More wait without asking again.
    assert_eq!(node.from(CALI_7).syn("10.151.51.7:40001", UNKNOWN), []);
    assert_eq!((node.stats().held, node.stats().originated), (2, 1));
    let sent = node.receive(CALI_1, &answer(request));
    let link = (CALI_LINK, LINK);
    let first = out(CALI_1, link, Kind::SYN, POD, UNKNOWN, 63);
    assert_eq!(sent, [first, out(CALI_1, link, Kind::SYN, "10.151.51.7:40001", UNKNOWN, 63)]);
    let stats = node.stats();
    assert_eq!((stats.held, stats.delivered, stats.dropped.total()), (0, 1, 0));
    assert_eq!(node.flows(), 2);
}

#[test]
fn nb_02_a_translated_packet_that_waited_is_translated_once() {
    let mut waiting = cluster();
    waiting.backends = vec!["10.151.51.1:8080"];
    let mut node = waiting.start();
    let host = "172.16.1.50:5000";
    let asked = node.from(HOST).syn(host, MYAPP);
    let sent = node.receive(CALI_1, &answer(&asked[0]));
    assert_eq!(sent, [out(CALI_1, (CALI_LINK, LINK), Kind::SYN, host, "10.151.51.1:8080", 64)]);
}

#[test]
fn nb_02_queue_overflow_is_counted_and_the_wait_ends_in_host_unreachable() {
    let mut node = seed();
    let bytes: Vec<_> = (0..70u16)
        .map(|i| node.from(CALI_7).bytes(Kind::Udp, &format!("10.151.51.7:{}", 1000 + i), UNKNOWN))
        .collect();
    for bytes in &bytes {
        node.receive(CALI_7, bytes);
    }
    assert_eq!((node.stats().held, node.dropped(Reason::NeighbourQueue)), (64, 6));
    let mut requests = 0;
    for _ in 0..9 {
        requests += node.tick(Duration::from_millis(100)).len();
    }
    assert_eq!(requests, 2, "at 300 and 700 ms");
    let sent = node.tick(Duration::from_millis(100));
    assert_eq!((node.stats().held, node.dropped(Reason::NeighbourFailed)), (0, 64));
    // ICMP's rate allows six of them.
    assert_eq!(sent.len(), 6);
    for (sent, bytes) in sent.iter().zip(&bytes) {
        let error = icmp_error(std::slice::from_ref(sent));
        assert_eq!((error.port, error.link, error.kind), (CALI_7, TO_POD_7, (3, 1)));
        assert_eq!(error.quoted, bytes[14..]);
    }
    // Within the next second nobody is asked again: refused at once.
    assert_eq!(node.from(CALI_7).udp("10.151.51.7:9", UNKNOWN), []);
    assert_eq!(node.dropped(Reason::NeighbourFailed), 65);
    node.tick(Duration::from_millis(1_001));
    let asked = node.from(CALI_7).udp("10.151.51.7:9", UNKNOWN);
    assert_eq!(arp_of(&asked[0]).target.to_string(), "10.151.51.1");
}

#[test]
fn nb_02_the_host_is_told_about_its_own_packets() {
    let mut node = seed();
    node.from(HOST).udp("172.16.1.50:5000", UNKNOWN);
    let sent = node.tick(Duration::from_millis(1_000));
    let error = icmp_error(&sent[sent.len() - 1..]);
    assert_eq!((error.port, error.link, error.kind), (HOST, TO_HOST, (3, 1)));
}

#[test]
fn nb_02_an_error_that_waits_itself_fails_silently_and_a_thousand_do_not_nest() {
    let mut node = seed();
    // Sources whose own neighbours are unknown, behind docker0: each error about them waits in turn.
    for client in 0..64 {
        let client = format!("172.17.9.{client}:7");
        node.from(DOCKER0).udp(&client, UNKNOWN);
    }
    assert_eq!(node.stats().held, 64);
    node.tick(Duration::from_millis(1_000));
    assert_eq!(node.dropped(Reason::NeighbourFailed), 64);
    assert_eq!(node.stats().held, 64, "the errors");
    for _ in 0..4 {
        node.tick(Duration::from_millis(1_000));
    }
    assert_eq!((node.dropped(Reason::NeighbourFailed), node.stats().held), (128, 0));
}

#[test]
fn nb_02_a_held_packet_does_not_move_its_connection_twice() {
    let mut node = seed();
    let client = "10.151.51.7:40000";
    let asked = node.from(CALI_7).syn(client, UNKNOWN);
    // The reset of an unreplied connection removes its entry; a FIN repeated would count as another.
    node.receive(CALI_1, &answer(&asked[0]));
    node.from(ENS3).syn_ack(UNKNOWN, client); // any port will do
    node.from(CALI_7).ack(client, UNKNOWN);
    let now = node.now;
    node.forwarder.neighbours_v4().forget(CALI_1, "10.151.51.1".parse().unwrap());
    let asked = node.from(CALI_7).fin(client, UNKNOWN);
    let state = |node: &Node| node.forwarder.flows_v4().list(0, 1, now.into()).0[0].state;
    let closing = state(&node);
    let sent = node.receive(CALI_1, &answer(&asked[0]));
    assert_eq!(sent, [out(CALI_1, (CALI_LINK, LINK), Kind::FIN, client, UNKNOWN, 63)]);
    assert_eq!(state(&node), closing);
}

#[test]
fn nb_01_arp_is_answered_on_owned_ports_and_by_proxy_where_the_port_says_so() {
    let mut node = seed();
    let ask = |port: PortId, sender: &str, target: &str| {
        let link = if port == CALI_7 { POD_7 } else { SLAVE2 };
        let arp = Arp::request(link, sender.parse().unwrap(), target.parse().unwrap());
        arp.to_packet(pool(), port, LinkAddr::BROADCAST).unwrap()
    };
    for (port, sender, target, link) in
        [(CALI_7, "10.151.51.7", "169.254.1.1", CALI_LINK), (ENS3, "172.16.1.88", "172.16.1.50", NODE_LINK)]
    {
        let sent = node.receive_packet(ask(port, sender, target));
        assert_eq!(sent.len(), 1, "{target}");
        let arp = arp_of(&sent[0]);
        assert_eq!((arp.operation, arp.sender_link), (Operation::Reply, link));
        assert_eq!((arp.sender.to_string(), arp.target.to_string()), (target.into(), sender.into()));
        assert_eq!(sent[0].port, port);
    }
    assert_eq!(node.receive_packet(ask(ENS3, "172.16.1.88", "10.151.51.8")), [], "no proxy on ens3");
    assert_eq!((node.stats().delivered, node.stats().originated), (3, 2));
    // Shared with the kernel: it answers for the node, Pollux by proxy.
    let mut shared = cluster();
    for port in [ENS3, CALI_7] {
        shared.ports[port.index()].sharing = Sharing::WithKernel;
    }
    node.set(shared);
    assert_eq!(node.receive_packet(ask(ENS3, "172.16.1.88", "172.16.1.50")), []);
    assert_eq!(node.receive_packet(ask(CALI_7, "10.151.51.7", "172.16.1.50")), []);
    assert_eq!(node.receive_packet(ask(CALI_7, "10.151.51.7", "169.254.1.1")).len(), 1);
    // Another host's, or broken.
    let mut overheard = ask(ENS3, "172.16.1.88", "172.16.1.50");
    overheard.head_mut()[..6].copy_from_slice(&POD_7.0);
    node.receive_packet(overheard);
    assert_eq!(node.dropped(Reason::OtherHost), 1);
    let short = ask(ENS3, "172.16.1.88", "172.16.1.50").to_vec();
    node.receive(ENS3, &short[..40]);
    assert_eq!(node.dropped(Reason::FrameTruncated), 1);
    assert_eq!(node.receive_packet(ask(HOST, "172.16.1.50", "172.16.1.88")), []);
    assert_eq!(node.dropped(Reason::NotForPollux), 1);
}

#[test]
fn nb_01_arp_of_other_kinds_is_a_foreign_frame() {
    let mut node = seed();
    let mut reverse = Arp::request(SLAVE2, [0; 4].into(), [0; 4].into())
        .to_packet(pool(), ENS3, LinkAddr::BROADCAST)
        .unwrap()
        .to_vec();
    reverse[21] = 3;
    let sent = node.receive(ENS3, &reverse);
    assert_eq!(sent, [Out { port: HOST, bytes: reverse.clone() }]);
    assert_eq!(Ethernet::new_checked(&reverse).unwrap().source, SLAVE2);
}
