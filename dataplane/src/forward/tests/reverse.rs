//! FW-03: the reverse path filter, through the forwarder.

use super::*;
use crate::route::{NextHop, RouteKind};
use crate::tables::ReversePath;

/// A node whose uplink and whose pod have the filter in this mode. The pod's interface has no address.
fn filtering(mode: ReversePath) -> Node {
    let mut cluster = cluster();
    for port in [ENS3, CALI_7] {
        cluster.ports[port.index()].reverse_path = mode;
    }
    // Without the default route there are sources that no route leads back to.
    cluster.routes.retain(|route| route.prefix.len() > 0);
    cluster.routes.push(route("198.51.100.0/24", RouteKind::Via(NextHop::on_link(DOCKER0))));
    cluster.routes.push(route("203.0.113.0/24", RouteKind::Blackhole));
    cluster.start()
}

/// Whether a packet with this source passes from `port` to a pod.
fn passes(node: &mut Node, port: PortId, source: &str) -> bool {
    let before = node.dropped(Reason::ReversePath);
    let sent = node.from(port).udp(&format!("{source}:5000"), "10.151.51.8:6000");
    let dropped = node.dropped(Reason::ReversePath) - before;
    assert_eq!(sent.len() as u64 + dropped, 1, "{source}");
    dropped == 0
}

#[test]
fn fw_03_off_asks_nothing() {
    let mut node = filtering(ReversePath::Off);
    for source in ["172.16.1.88", "198.51.100.1", "203.0.113.1", "192.0.2.1"] {
        assert!(passes(&mut node, ENS3, source), "{source}");
    }
}

#[test]
fn fw_03_strict_wants_answers_to_leave_by_the_same_port() {
    let mut node = filtering(ReversePath::Strict);
    assert!(passes(&mut node, ENS3, "172.16.1.88"), "on its subnet");
    assert!(passes(&mut node, ENS3, "10.151.49.8"), "by way of a gateway there");
    for source in ["198.51.100.1", "203.0.113.1", "192.0.2.1", "10.151.51.7"] {
        assert!(!passes(&mut node, ENS3, source), "{source}");
    }
    assert!(passes(&mut node, CALI_7, "10.151.51.7"));
    assert!(!passes(&mut node, CALI_7, "10.151.51.2"), "a pod with another's address");
    // Ports without it, and what the host sends, are not asked.
    assert!(passes(&mut node, DOCKER0, "192.0.2.1"));
    assert!(passes(&mut node, HOST, "192.0.2.1"));
}

#[test]
fn fw_03_loose_wants_a_way_back() {
    let mut node = filtering(ReversePath::Loose);
    assert!(passes(&mut node, ENS3, "172.16.1.88"));
    assert!(passes(&mut node, ENS3, "198.51.100.1"), "it leads elsewhere");
    for source in ["203.0.113.1", "192.0.2.1"] {
        assert!(!passes(&mut node, ENS3, source), "{source}");
    }
    // The kernel's `fib_validate_source` takes loose for strict where the interface has no address.
    assert!(passes(&mut node, CALI_7, "10.151.51.7"));
    assert!(!passes(&mut node, CALI_7, "198.51.100.1"));
}

#[test]
fn fw_03_several_ways_back_are_all_right() {
    let mut cluster = cluster();
    cluster.ports[ENS3.index()].reverse_path = ReversePath::Strict;
    let hops = [(NextHop::on_link(DOCKER0), 1), (NextHop::on_link(ENS3), 1)];
    let ways = crate::route::Multipath::new(hops).unwrap();
    cluster.routes.push(route("198.51.100.0/24", RouteKind::Multipath(Arc::new(ways))));
    assert!(passes(&mut cluster.start(), ENS3, "198.51.100.1"));
}

#[test]
fn fw_03_packets_of_known_connections_are_asked_as_well() {
    let mut node = filtering(ReversePath::Strict);
    let (there, back) = (("10.151.49.8:5000", "10.151.51.8:80"), ("10.151.51.8:80", "10.151.49.8:5000"));
    assert_eq!(node.from(ENS3).ack(there.0, there.1).len(), 1);
    assert_eq!(node.from(CALI_8).ack(back.0, back.1).len(), 1);
    for _ in 0..3 {
        // Settled: without the filter it would go the express way.
        assert_eq!(node.from(ENS3).ack(there.0, there.1).len(), 1);
    }
    // The same packet from a pod that has taken the address.
    assert_eq!(node.from(CALI_7).ack(there.0, there.1), []);
    assert_eq!(node.dropped(Reason::ReversePath), 1);
    // A source of the node's own is a martian, filter or not.
    assert_eq!(node.from(ENS3).ack("172.16.1.50:1", there.1), []);
    assert_eq!((node.dropped(Reason::ReversePath), node.dropped(Reason::MartianSource)), (1, 1));
}

/// The same of IPv6, where no setting of the kernel's turns it on: what the port's configuration says alone.
#[test]
fn fw_03_ipv6_has_a_filter_of_its_own() {
    use super::ipv6::{CALI_A, CLIENT, Carries, UPLINK, arriving, packet6, settled, tables6};
    let filtering = |mode| {
        let mut tables = tables6();
        let mut ports: Vec<PortInfo> = tables.ports.iter().map(|(_, port)| port.clone()).collect();
        for port in [UPLINK, CALI_A] {
            ports[port.index()].reverse_path_v6 = mode;
        }
        tables.ports = Arc::new(Ports::new(ports));
        let mut node = settled();
        node.forwarder.set_tables(Arc::new(tables));
        node
    };
    let passes = |node: &mut Node, port, source: &str| {
        let before = node.dropped(Reason::ReversePath);
        let sent = node.receive(port, &arriving(port, &packet6(Carries::Udp, source, "[fd00::b]:6000", 64)));
        let dropped = node.dropped(Reason::ReversePath) - before;
        assert_eq!(sent.len() as u64 + dropped, 1, "{source}");
        dropped == 0
    };
    let mut strict = filtering(ReversePath::Strict);
    assert!(passes(&mut strict, UPLINK, CLIENT));
    assert!(passes(&mut strict, CALI_A, "[fd00::a]:5000"));
    for (port, source) in
        [(UPLINK, "[fd00::a]:5000"), (UPLINK, "[fd00::7]:5000"), (CALI_A, CLIENT), (CALI_A, "[fd00::b]:5000")]
    {
        assert!(!passes(&mut strict, port, source), "{source}");
    }
    let mut loose = filtering(ReversePath::Loose);
    assert!(passes(&mut loose, UPLINK, "[fd00::a]:5000"), "it leads elsewhere");
    assert!(!passes(&mut loose, UPLINK, "[fd00::7]:5000"), "a blackhole is no way back");
    let mut off = filtering(ReversePath::Off);
    assert!(passes(&mut off, CALI_A, CLIENT));
}
