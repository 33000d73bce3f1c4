//! The walk through the frontends, rule by rule.

use std::net::Ipv4Addr;

use super::*;
use crate::packet::V4;

const VIP: &str = "10.96.0.10";
const NODE: &str = "192.168.0.2";
const PODS: &str = "10.244.0.0/16";

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn backend(text: &str) -> Backend<V4> {
    Backend { address: ip(text), port: 8080 }
}

fn frontend(kind: FrontendKind, address: &str, path: Path, filter: Option<FilterRule>) -> Frontend<V4> {
    let address = match kind {
        FrontendKind::NodePort => FrontendAddress::NodePort,
        _ => FrontendAddress::Address(ip(address)),
    };
    Frontend {
        key: FrontendKey { address, port: 80, protocol: Protocol::TCP },
        kind,
        service_port: 0,
        sources: None,
        path,
        filter,
        affinity: None,
    }
}

/// A packet from `source` to `destination`, port 80.
fn request(source: &str, destination: &str, origin: Origin) -> Request<V4> {
    let locality = |address| {
        if address == NODE || address == "127.0.0.1" { Locality::Local } else { Locality::Remote }
    };
    Request {
        source: ip(source),
        destination: ip(destination),
        destination_port: 80,
        protocol: Protocol::TCP,
        origin,
        source_is_local: locality(source),
        destination_is_local: locality(destination),
    }
}

fn by_source() -> Policy<V4> {
    Policy { detector: Detector::Source(PODS.parse().unwrap()), ..Policy::default() }
}

fn with_detector() -> Builder<V4> {
    Builder::new(by_source())
}

fn answer(services: &Services<V4>, source: &str, destination: &str) -> (Vec<Backend<V4>>, Mark) {
    let Destination { choice, mark } =
        services.destination(&request(source, destination, Origin::Port), &mut Silent);
    (choice.map_or(Vec::new(), |(_, set)| services.backends(set).to_vec()), mark)
}

#[test]
fn fe_05_another_port_or_protocol_matches_nothing() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None));
    let services = builder.build();
    let hit = request("10.244.1.9", VIP, Origin::Port);
    assert!(services.destination(&hit, &mut Silent).choice.is_some());
    for miss in [
        Request { destination_port: 81, ..hit },
        Request { protocol: Protocol::UDP, ..hit },
        Request { protocol: Protocol::ICMP, destination_port: 8 << 8, ..hit },
    ] {
        assert_eq!(services.destination(&miss, &mut Silent), Destination { choice: None, mark: Mark::Clear });
    }
}

#[test]
fn mq_02_a_clusterip_marks_what_is_not_from_a_pod() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None));
    let services = builder.build();
    assert_eq!(answer(&services, "10.244.1.9", VIP), (vec![backend("10.244.1.1")], Mark::Clear));
    assert_eq!(answer(&services, "192.168.0.9", VIP), (vec![backend("10.244.1.1")], Mark::Set));
}

#[test]
fn mq_02_the_interface_detector_never_takes_the_host_for_a_pod() {
    let mut builder = Builder::new(Policy::<V4> { detector: Detector::Interface, ..Policy::default() });
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None));
    let services = builder.build();
    let mark = |origin| services.destination(&request("10.244.1.9", VIP, origin), &mut Silent).mark;
    assert_eq!(mark(Origin::PodPort), Mark::Clear);
    assert_eq!(mark(Origin::Port), Mark::Set);
    assert_eq!(mark(Origin::Host), Mark::Set);
}

#[test]
fn mq_02_without_a_detector_nothing_is_marked_for_its_source() {
    let mut builder = Builder::<V4>::default();
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None));
    assert_eq!(answer(&builder.build(), "192.168.0.9", VIP).1, Mark::Clear);
}

#[test]
fn mq_01_masquerade_all_marks_pods_too() {
    let mut builder = Builder::new(Policy { internal_mark: InternalMark::Always, ..by_source() });
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None));
    assert_eq!(answer(&builder.build(), "10.244.1.9", VIP).1, Mark::Set);
}

#[test]
fn wk_02_an_internal_frontend_without_backends_falls_through_unmarked() {
    let mut builder = with_detector();
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::FallThrough, Some(FilterRule::Drop)));
    assert_eq!(answer(&builder.build(), "192.168.0.9", VIP), (vec![], Mark::Clear));
}

#[test]
fn mq_04_external_traffic_with_policy_cluster_is_marked() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::NodePort, "", Path::Cluster(set), None));
    let services = builder.build();
    assert_eq!(answer(&services, "10.244.1.9", NODE), (vec![backend("10.244.1.1")], Mark::Set));
}

#[test]
fn wk_04_policy_local_is_short_circuited_for_pods_and_for_the_node() {
    let mut builder = with_detector();
    let cluster = builder.backends([backend("10.244.1.1"), backend("10.244.2.1")]);
    let local = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ExternalIp, "1.2.3.4", Path::Local { cluster, local }, None));
    let services = builder.build();
    let both = vec![backend("10.244.1.1"), backend("10.244.2.1")];
    assert_eq!(answer(&services, "10.244.1.9", "1.2.3.4"), (both.clone(), Mark::Clear)); // MQ-05
    assert_eq!(answer(&services, NODE, "1.2.3.4"), (both, Mark::Set)); // MQ-06
    assert_eq!(answer(&services, "8.8.8.8", "1.2.3.4"), (vec![backend("10.244.1.1")], Mark::Clear)); // MQ-07
}

#[test]
fn wk_03_a_source_outside_the_ranges_falls_through_to_a_node_port_and_marks_stay() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    let other = builder.backends([backend("10.244.3.3")]);
    let mut balancer = frontend(FrontendKind::LoadBalancer, NODE, Path::Cluster(set), None);
    balancer.sources = Some(["203.0.113.0/24".parse().unwrap()].into());
    builder.frontend(balancer);
    builder.frontend(frontend(FrontendKind::NodePort, "", Path::Cluster(other), None));
    let services = builder.build();
    assert_eq!(answer(&services, "203.0.113.7", NODE).0, vec![backend("10.244.1.1")]);
    assert_eq!(answer(&services, "8.8.8.8", NODE).0, vec![backend("10.244.3.3")]);

    let mut builder = with_detector();
    let empty = builder.backends([]);
    builder.frontend(frontend(FrontendKind::ExternalIp, NODE, Path::Cluster(empty), None));
    assert_eq!(answer(&builder.build(), "8.8.8.8", NODE), (vec![], Mark::Set)); // WK-01
}

#[test]
fn fe_07_node_ports_answer_on_the_configured_addresses_only() {
    let answers = |node_ports, destination| {
        let mut builder = Builder::new(Policy { node_ports, ..by_source() });
        let set = builder.backends([backend("10.244.1.1")]);
        builder.frontend(frontend(FrontendKind::NodePort, "", Path::Cluster(set), None));
        !answer(&builder.build(), "8.8.8.8", destination).0.is_empty()
    };
    let all = NodePortAddresses::AllLocal;
    assert!(answers(all(Loopback::Excluded), NODE));
    assert!(!answers(all(Loopback::Excluded), "127.0.0.1"));
    assert!(answers(all(Loopback::Included), "127.0.0.1"));
    assert!(!answers(all(Loopback::Included), "192.168.0.3"));
    assert!(answers(NodePortAddresses::Only([ip(NODE)].into()), NODE));
    assert!(!answers(NodePortAddresses::Only([ip("192.168.1.2")].into()), NODE));
}

#[test]
fn wk_07_each_stage_knows_its_frontends() {
    let mut builder = with_detector();
    let reject = Some(FilterRule::Reject);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::FallThrough, reject));
    builder.frontend(frontend(FrontendKind::ExternalIp, "1.2.3.4", Path::FallThrough, reject));
    builder.frontend(frontend(FrontendKind::NodePort, "", Path::FallThrough, Some(FilterRule::Drop)));
    let services = builder.build();
    let filter = |stage, destination| services.filter(stage, &request("8.8.8.8", destination, Origin::Port));
    let rejected = Some(FilterVerdict::NoEndpoints);
    assert_eq!(filter(FilterStage::Forward, VIP), rejected);
    assert_eq!(filter(FilterStage::Output, VIP), rejected);
    assert_eq!(filter(FilterStage::Input, VIP), None);
    assert_eq!(filter(FilterStage::Forward, "1.2.3.4"), rejected);
    assert_eq!(filter(FilterStage::Input, "1.2.3.4"), rejected);
    assert_eq!(filter(FilterStage::Output, "1.2.3.4"), None);
    assert_eq!(filter(FilterStage::Input, NODE), Some(FilterVerdict::NoLocalEndpoints)); // NO-03
    assert_eq!(filter(FilterStage::Forward, "9.9.9.9"), None);
}

#[test]
fn no_04_what_still_has_a_guarded_balancer_address_is_dropped() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    let mut balancer = frontend(FrontendKind::LoadBalancer, "1.2.3.4", Path::Cluster(set), None);
    balancer.sources = Some(["203.0.113.0/24".parse().unwrap()].into());
    builder.frontend(balancer);
    let services = builder.build();
    for stage in [FilterStage::Input, FilterStage::Forward, FilterStage::Output] {
        let verdict = services.filter(stage, &request("8.8.8.8", "1.2.3.4", Origin::Port));
        assert_eq!(verdict, Some(FilterVerdict::SourceRange));
    }
}

#[test]
fn no_05_an_empty_node_port_is_rejected_on_every_local_address() {
    let mut builder = Builder::new(Policy {
        node_ports: NodePortAddresses::Only([ip("192.168.1.2")].into()),
        ..by_source()
    });
    builder.frontend(frontend(FrontendKind::NodePort, "", Path::FallThrough, Some(FilterRule::Reject)));
    let services = builder.build();
    let verdict = services.filter(FilterStage::Input, &request("8.8.8.8", NODE, Origin::Port));
    assert_eq!(verdict, Some(FilterVerdict::NoEndpoints));
}

#[test]
fn wk_07_a_marked_packet_still_meets_the_firewall_and_nothing_else() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    let mut balancer = frontend(FrontendKind::LoadBalancer, "1.2.3.4", Path::Cluster(set), None);
    balancer.sources = Some(["203.0.113.0/24".parse().unwrap()].into());
    builder.frontend(balancer);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::FallThrough, Some(FilterRule::Reject)));
    let services = builder.build();
    let firewall = |destination| services.firewall(&request("8.8.8.8", destination, Origin::Port));
    assert_eq!(firewall("1.2.3.4"), Some(FilterVerdict::SourceRange));
    assert_eq!(firewall(VIP), None);
}

const STICKY: Affinity = Affinity { timeout: std::time::Duration::from_secs(10), service_port: 77 };

/// Tables whose service port 3 has affinity and these backends.
fn sticky(backends: &[&str]) -> Services<V4> {
    let mut builder = with_detector();
    let set = builder.backends(backends.iter().map(|text| backend(text)));
    builder.frontend(Frontend {
        service_port: 3,
        affinity: Some(STICKY),
        ..frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None)
    });
    builder.build()
}

#[test]
fn af_02_the_first_fresh_backend_in_endpoint_order_is_taken() {
    let services = sticky(&["10.0.0.10", "10.0.0.11", "10.0.0.9"]);
    let choice = services.destination(&request("8.8.8.8", VIP, Origin::Port), &mut Silent).choice;
    let (id, set) = choice.unwrap();
    let chosen = |fresh: &[&str]| {
        services.sticky(id, set, |one, affinity| {
            assert_eq!(affinity, STICKY);
            fresh.iter().any(|text| backend(text) == *one)
        })
    };
    assert_eq!(chosen(&[]), None);
    assert_eq!(chosen(&["10.0.0.9"]), Some(2));
    assert_eq!(chosen(&["10.0.0.9", "10.0.0.10"]), Some(0));
    assert_eq!(chosen(&["10.0.0.8"]), None, "not in the set in use");
}

#[test]
fn af_02_a_frontend_without_affinity_asks_nobody() {
    let mut builder = with_detector();
    let set = builder.backends([backend("10.244.1.1")]);
    builder.frontend(frontend(FrontendKind::ClusterIp, VIP, Path::Internal(set), None));
    let services = builder.build();
    let (id, _) = services.frontends().next().unwrap();
    assert_eq!(services.sticky(id, set, |_, _| panic!("asked")), None);
}

#[test]
fn af_02_departed_are_the_endpoints_that_left_whatever_their_numbers() {
    let old = sticky(&["10.0.0.10", "10.0.0.11"]);
    assert_eq!(old.departed(&old.clone()), []);
    assert_eq!(old.departed(&sticky(&["10.0.0.11", "10.0.0.12"])), [(77, backend("10.0.0.10"))]);
    assert_eq!(old.departed(&Services::default()).len(), 2);
    // The same service port under another number, in tables of their own.
    let mut builder = with_detector();
    let set = builder.backends([backend("10.0.0.10")]);
    builder.frontend(Frontend {
        service_port: 500,
        affinity: Some(STICKY),
        ..frontend(FrontendKind::NodePort, "", Path::Cluster(set), None)
    });
    assert_eq!(old.departed(&builder.build()), [(77, backend("10.0.0.11"))]);
}

#[test]
fn up_01_a_snapshot_keeps_all_of_the_old_state_while_the_builder_goes_on() {
    let mut builder = with_detector();
    let number = |n: u32| Ipv4Addr::from(0x0a60_0000 + n);
    let mut sets = Vec::new();
    for n in 0..3000 {
        let set = builder.backends([backend("10.244.1.1"), backend("10.244.1.2")]);
        for kind in [FrontendKind::ClusterIp, FrontendKind::ExternalIp] {
            let key = FrontendKey {
                address: FrontendAddress::Address(number(n)),
                port: if kind == FrontendKind::ClusterIp { 80 } else { 81 },
                protocol: Protocol::TCP,
            };
            let one = frontend(kind, VIP, Path::Internal(set), None);
            builder.frontend(Frontend { key, service_port: n, ..one });
        }
        sets.push(set);
    }
    let old = builder.snapshot();
    let keys: Vec<_> =
        old.frontends().map(|(_, one)| one.clone()).filter(|one| one.service_port == 7).collect();
    builder.remove(7, keys.iter().map(|one| one.key), [sets[7]]);
    let gone = builder.snapshot();
    let set = builder.backends([backend("10.244.9.9")]);
    for one in &keys {
        builder.frontend(Frontend { path: Path::Internal(set), ..one.clone() });
    }
    let new = builder.snapshot();
    let found = |services: &Services<V4>, n: u32, port: u16| {
        let asked = Request {
            destination: number(n),
            destination_port: port,
            ..request("8.8.8.8", VIP, Origin::Port)
        };
        let choice = services.destination(&asked, &mut Silent).choice;
        choice.map_or(0, |(id, set)| {
            assert_eq!(services.frontend(id).service_port, n);
            services.backends(set).len()
        })
    };
    for port in [80, 81] {
        assert_eq!([&old, &gone, &new].map(|services| found(services, 7, port)), [2, 0, 1]);
        for n in (0..3000).filter(|n| *n != 7) {
            assert_eq!([&old, &gone, &new].map(|services| found(services, n, port)), [2, 2, 2]);
        }
    }
    assert_eq!([&old, &gone, &new].map(|services| services.frontends().count()), [6000, 5998, 6000]);
    // The freed block is used again: tables do not grow with the number of changes.
    assert_eq!(set.block, sets[7].block);
}
