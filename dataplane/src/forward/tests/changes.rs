//! Tables that change under connections (WK-08, UP-02, UP-04, RT-05), and ports and families that go.

use super::*;
use crate::route::{NextHop, RouteKind};

const POD: &str = "10.151.51.7:40000";

#[test]
fn wk_08_a_reject_that_begins_to_apply_hits_unreplied_flows_only() {
    // The Service's address as a plain destination first (UP-04): both flows are untranslated.
    let mut before = cluster();
    before.backends = vec![];
    let (unreplied, replied) = ("10.151.51.7:1111", "10.151.51.7:2222");
    let plain = "10.150.0.98:80";
    let mut node = before.start();
    for client in [unreplied, replied] {
        assert_eq!(
            node.from(CALI_7).udp(client, plain),
            [out(ENS3, TO_GATEWAY, Kind::Udp, client, plain, 63)]
        );
    }
    node.from(ENS3).udp(plain, replied);
    let mut tables = cluster().tables();
    let mut builder = Builder::new(Policy::default());
    let key = key(plain, Protocol::UDP);
    builder.frontend(frontend(key, Path::FallThrough, Some(FilterRule::Reject)));
    tables.v4.as_mut().unwrap().services = builder.build();
    node.forwarder.set_tables(Arc::new(tables));
    let asked = node.from(CALI_7).bytes(Kind::Udp, unreplied, plain);
    let error = icmp_error(&node.receive(CALI_7, &asked));
    assert_eq!((error.kind, error.quoted), ((3, 3), asked[14..].to_vec()));
    let sent = node.from(CALI_7).udp(replied, plain);
    assert_eq!(sent, [out(ENS3, TO_GATEWAY, Kind::Udp, replied, plain, 63)]);
    assert_eq!(node.dropped(Reason::NoEndpoints), 1);
}

#[test]
fn wk_08_an_unreplied_packet_meets_ttl_before_the_filter() {
    let mut node = seed();
    let plain = "10.150.0.98:80";
    node.from(CALI_7).udp(POD, plain);
    let mut tables = cluster().tables();
    let mut builder = Builder::new(Policy::default());
    builder.frontend(frontend(key(plain, Protocol::UDP), Path::FallThrough, Some(FilterRule::Reject)));
    tables.v4.as_mut().unwrap().services = builder.build();
    node.forwarder.set_tables(Arc::new(tables));
    assert_eq!(icmp_error(&node.from(CALI_7).ttl(1).udp(POD, plain)).kind, (11, 0));
}

#[test]
fn up_02_established_connections_keep_their_backend_when_it_is_gone() {
    let mut node = seed().choosing(ON_CALI_8);
    node.from(CALI_7).syn(POD, MYAPP);
    node.from(CALI_8).syn_ack("10.151.51.8:80", POD);
    let mut gone = cluster();
    gone.backends = vec!["10.151.49.8:80"];
    node.set(gone);
    let sent = node.from(CALI_7).ack(POD, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::ACK, POD, "10.151.51.8:80", 63)]);
    let sent = node.from(CALI_7).syn("10.151.51.7:40001", MYAPP);
    assert_eq!(sent, [out(ENS3, TO_SLAVE2, Kind::SYN, "10.151.51.7:40001", "10.151.49.8:80", 63)]);
}

#[test]
fn up_02_without_any_endpoint_left_the_established_go_on_and_the_new_are_rejected() {
    let mut node = seed().choosing(ON_CALI_8);
    node.from(CALI_7).syn(POD, MYAPP);
    node.from(CALI_8).syn_ack("10.151.51.8:80", POD);
    node.set(Cluster { backends: vec![], ..cluster() });
    let sent = node.from(CALI_7).ack(POD, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::ACK, POD, "10.151.51.8:80", 63)]);
    assert_eq!(icmp_error(&node.from(CALI_7).syn("10.151.51.7:40001", MYAPP)).kind, (3, 3));
}

#[test]
fn up_04_what_was_seen_before_its_destination_became_a_frontend_stays_untranslated() {
    let mut node = seed();
    let plain = "10.150.0.98:80";
    let (replied, unreplied) = ("10.151.51.7:1111", "10.151.51.7:2222");
    for client in [replied, unreplied] {
        node.from(CALI_7).udp(client, plain);
    }
    node.from(ENS3).udp(plain, replied);
    let mut tables = cluster().tables();
    let mut builder = Builder::new(Policy::default());
    let set = builder.backends([backend("10.151.51.8:5353")]);
    builder.frontend(frontend(key(plain, Protocol::UDP), Path::Internal(set), None));
    tables.v4.as_mut().unwrap().services = builder.build();
    node.forwarder.set_tables(Arc::new(tables));
    for client in [replied, unreplied] {
        let sent = node.from(CALI_7).udp(client, plain);
        assert_eq!(sent, [out(ENS3, TO_GATEWAY, Kind::Udp, client, plain, 63)]);
    }
    let client = "10.151.51.7:3333";
    let sent = node.from(CALI_7).udp(client, plain);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::Udp, client, "10.151.51.8:5353", 63)]);
}

#[test]
fn rt_05_a_route_change_moves_established_flows_both_ways() {
    let mut node = seed().choosing(ON_SLAVE2);
    let backend = "10.151.49.8:80";
    node.from(CALI_7).syn(POD, MYAPP);
    node.from(ENS3).syn_ack(backend, POD);
    node.from(CALI_7).ack(POD, MYAPP);
    let mut moved = cluster();
    let by_gateway = NextHop::gateway(ENS3, "172.16.0.1".parse().unwrap());
    moved.routes.retain(|route| route.prefix.to_string() != "10.151.49.0/24");
    moved.routes.push(route("10.151.49.0/24", RouteKind::Via(by_gateway)));
    moved.routes.retain(|route| route.prefix.to_string() != "10.151.51.7/32");
    moved.routes.push(route("10.151.51.7/32", RouteKind::Local));
    node.set(moved);
    let sent = node.from(CALI_7).ack(POD, MYAPP);
    assert_eq!(sent, [out(ENS3, TO_GATEWAY, Kind::ACK, POD, backend, 63)]);
    let sent = node.from(ENS3).ack(backend, POD);
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::ACK, MYAPP, POD, 64)]);
    let mut closed = cluster();
    closed.routes.push(route("10.151.49.8/32", RouteKind::Unreachable));
    node.set(closed);
    assert_eq!(icmp_error(&node.from(CALI_7).ack(POD, MYAPP)).kind, (3, 1));
    node.set(cluster());
    let sent = node.from(CALI_7).ack(POD, MYAPP);
    assert_eq!(sent, [out(ENS3, TO_SLAVE2, Kind::ACK, POD, backend, 63)]);
}

#[test]
fn rt_05_a_stamp_never_becomes_the_one_that_stands_for_never() {
    let mut node = seed().choosing(ON_CALI_8);
    node.forwarder.v4.stamps.set_last();
    node.from(CALI_7).syn(POD, MYAPP);
    node.set(cluster());
    assert_eq!(node.forwarder.v4.stamps.of::<V4>("10.151.51.8".parse().unwrap()), 1);
    assert_eq!(node.from(CALI_8).syn_ack("10.151.51.8:80", POD).len(), 1);
}

#[test]
fn a_service_change_alone_keeps_the_routing_of_established_flows() {
    let mut node = seed();
    let stamps = node.forwarder.v4.stamps.clone();
    let old = Arc::clone(node.forwarder.tables());
    let mut tables = cluster().tables();
    tables.ports = Arc::clone(&old.ports);
    tables.v4.as_mut().unwrap().routing = Arc::clone(&old.v4.as_ref().unwrap().routing);
    let back = node.forwarder.set_tables(Arc::new(tables));
    assert!(Arc::ptr_eq(&back, &old), "the old ones come back, to be freed elsewhere");
    assert_eq!(node.forwarder.v4.stamps, stamps);
}

#[test]
fn what_waits_behind_a_port_that_goes_is_counted() {
    let mut node = seed();
    // Nobody has answered for 10.151.51.1 yet.
    let asked = node.from(CALI_7).syn(POD, "10.151.51.1:80");
    assert_eq!(asked[0].port, CALI_1, "ARP");
    assert_eq!(node.stats().held, 1);
    let mut smaller = cluster();
    smaller.ports[CALI_1.index()].name = "another".into();
    node.set(smaller);
    node.tick(Duration::ZERO);
    assert_eq!((node.stats().held, node.dropped(Reason::PortDown)), (0, 1));
    // The ports that stayed still know their neighbours.
    assert_eq!(node.from(CALI_7).syn("10.151.51.7:2", "10.151.51.8:80").len(), 1);
}

#[test]
fn what_waits_for_a_port_that_only_changes_goes_on_waiting() {
    let mut node = seed();
    node.from(CALI_7).syn(POD, "10.151.51.1:80");
    let mut changed = cluster();
    changed.ports[CALI_1.index()].mtu = 1400;
    node.set(changed);
    assert_eq!(node.stats().held, 1);
    let now = node.now;
    let neighbours = node.forwarder.neighbours_v4();
    neighbours.learn(CALI_1, "10.151.51.1".parse().unwrap(), POD_7, Learned::Kernel, now);
    let sent = node.tick(Duration::ZERO);
    assert_eq!(sent, [out(CALI_1, TO_POD_7, Kind::SYN, POD, "10.151.51.1:80", 63)]);
}

#[test]
fn a_family_that_is_switched_off_goes_to_the_host_and_nothing_stays_waiting() {
    let mut node = seed();
    node.from(CALI_7).syn(POD, "10.151.51.1:80");
    let mut off = cluster().tables();
    off.v4 = None;
    node.forwarder.set_tables(Arc::new(off));
    node.tick(Duration::ZERO);
    assert_eq!((node.stats().held, node.dropped(Reason::Unsupported)), (0, 1));
    let sent = node.from(CALI_7).syn(POD, "10.151.51.8:80");
    assert_eq!(sent, [out(HOST, (POD_7, HOST_LINK), Kind::SYN, POD, "10.151.51.8:80", 64)]);
    node.set(cluster());
    assert_eq!(node.from(CALI_7).syn("10.151.51.7:2", "10.151.51.1:80").len(), 1, "ARP again");
}
