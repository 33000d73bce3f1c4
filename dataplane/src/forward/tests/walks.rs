//! The seed's walks (spec/seed-walks.md) and the lives of connections, both directions, byte for byte.
//! W7 to W9 (node ports) are with the whole cluster's files (tests/), W10 is in `tunnel.rs`.

use super::*;
use crate::tables::{MasqueradeRule, Match};

#[test]
fn w1_host_to_service_local_backend_with_the_seed_s_six_segments() {
    let mut node = seed().choosing(ON_CALI_8);
    let (host, translated) = ("172.16.1.50:56060", "10.151.51.8:80");
    let to_pod = |kind| vec![out(CALI_8, TO_POD_8, kind, host, translated, 64)];
    let to_host = |kind| vec![out(HOST, TO_HOST, kind, MYAPP, host, 64)];
    assert_eq!(node.from(HOST).syn(host, MYAPP), to_pod(Kind::SYN));
    assert_eq!(node.from(CALI_8).syn_ack(translated, host), to_host(Kind::SYN_ACK));
    assert_eq!(node.from(HOST).ack(host, MYAPP), to_pod(Kind::ACK));
    assert_eq!(node.from(HOST).fin(host, MYAPP), to_pod(Kind::FIN));
    assert_eq!(node.from(CALI_8).fin(translated, host), to_host(Kind::FIN));
    assert_eq!(node.from(HOST).ack(host, MYAPP), to_pod(Kind::ACK));
    assert_eq!(node.flows(), 1);
    let (flow, _) = node.forwarder.flows_v4().list(0, 10, node.now.into());
    assert_eq!(flow[0].mark, 0x4000, "MQ-08");
    assert_eq!(node.stats().dropped.total(), 0);
}

#[test]
fn w2_host_to_service_remote_backend() {
    let mut node = seed().choosing(ON_SLAVE2);
    let (host, translated) = ("172.16.1.50:56060", "10.151.49.8:80");
    let sent = node.from(HOST).syn(host, MYAPP);
    assert_eq!(sent, [out(ENS3, TO_SLAVE2, Kind::SYN, host, translated, 64)]);
    let sent = node.from(ENS3).ttl(63).syn_ack(translated, host);
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN_ACK, MYAPP, host, 63)]);
}

#[test]
fn w3_icmp_to_the_service_leaves_by_the_default_route_untranslated() {
    let mut node = seed();
    let (host, service) = ("172.16.1.50:4935", "10.150.18.86:19");
    let sent = node.from(HOST).of(Kind::Echo, host, service);
    assert_eq!(sent, [out(ENS3, TO_GATEWAY, Kind::Echo, host, service, 64)]);
    assert!(node.events.contains(&Event::NoFrontend), "FE-05");
}

#[test]
fn w4_pod_to_service_on_the_same_node_keeps_its_source() {
    let mut node = seed().choosing(ON_CALI_8);
    let (pod, translated) = ("10.151.51.7:40000", "10.151.51.8:80");
    let sent = node.from(CALI_7).syn(pod, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN, pod, translated, 63)]);
    let sent = node.from(CALI_8).syn_ack(translated, pod);
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::SYN_ACK, MYAPP, pod, 63)]);
}

#[test]
fn w5_pod_to_service_on_another_node_under_three_configurations() {
    let (pod, translated, node_address) = ("10.151.51.7:40000", "10.151.49.8:80", "172.16.1.50:40000");
    let kept = out(ENS3, TO_SLAVE2, Kind::SYN, pod, translated, 63);
    let masqueraded = out(ENS3, TO_SLAVE2, Kind::SYN, node_address, translated, 63);
    // ClusterCIDR: the source is kept.
    let mut node = seed().choosing(ON_SLAVE2);
    assert_eq!(node.from(CALI_7).syn(pod, MYAPP), [kept]);
    // masqueradeAll: it becomes the node's.
    let mut all = cluster();
    all.policy.internal_mark = crate::service::InternalMark::Always;
    let mut node = all.start().choosing(ON_SLAVE2);
    assert_eq!(node.from(CALI_7).syn(pod, MYAPP), std::slice::from_ref(&masqueraded));
    // A CNI's rule: only when the packet leaves the node.
    let pods = "10.151.0.0/16".parse().unwrap();
    let rule = MasqueradeRule {
        name: "cni".into(),
        source: Some(Match::Is(pods)),
        destination: None,
        out: Some(Match::Is(Some(ENS3))),
    };
    let mut cni = cluster();
    cni.policy.detector = Detector::None;
    cni.family.masquerade = vec![rule];
    let mut node = cni.start().choosing(ON_SLAVE2);
    assert_eq!(node.from(CALI_7).syn(pod, MYAPP), [masqueraded]);
    let sent = node.from(ENS3).ttl(62).syn_ack(translated, node_address);
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::SYN_ACK, MYAPP, pod, 61)]);
    let mut node = node.choosing(ON_CALI_8);
    let sent = node.from(CALI_7).syn("10.151.51.7:40001", MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN, "10.151.51.7:40001", "10.151.51.8:80", 63)]);
}

#[test]
fn w6_hairpin_both_ways() {
    let mut node = seed().choosing(ON_CALI_8);
    let (pod, seen) = ("10.151.51.8:40000", "172.16.1.50:40000");
    let sent = node.from(CALI_8).syn(pod, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN, seen, "10.151.51.8:80", 63)]);
    assert!(node.events.contains(&Event::Hairpin), "MQ-03");
    let sent = node.from(CALI_8).syn_ack("10.151.51.8:80", seen);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN_ACK, MYAPP, pod, 63)]);
    let sent = node.from(CALI_8).ack(pod, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::ACK, seen, "10.151.51.8:80", 63)]);
}

#[test]
fn w11_no_01_no_endpoints_is_port_unreachable_to_whoever_asked() {
    let mut node = seed();
    for (port, client, back, source) in [
        (HOST, "172.16.1.50:1000", (HOST, TO_HOST), "172.16.1.50"),
        (CALI_7, "10.151.51.7:1000", (CALI_7, TO_POD_7), "172.16.1.50"),
    ] {
        for kind in [Kind::SYN, Kind::Udp] {
            let asked = node.from(port).bytes(kind, client, "10.150.0.99:80");
            let error = icmp_error(&node.receive(port, &asked));
            assert_eq!((error.port, error.link), back);
            assert_eq!(error.kind, (3, 3));
            assert_eq!(error.source.to_string(), source);
            assert_eq!(error.destination, *client.parse::<std::net::SocketAddrV4>().unwrap().ip());
            assert_eq!(error.quoted, asked[14..], "as it came in");
        }
    }
    assert_eq!(node.dropped(Reason::NoEndpoints), 4);
    assert_eq!(node.flows(), 0, "CT-04");
}

#[test]
fn w12_pod_to_pod_is_tracked_and_untouched() {
    let mut node = seed();
    let (pod, other) = ("10.151.51.7:40000", "10.151.49.8:443");
    assert_eq!(node.from(CALI_7).syn(pod, other), [out(ENS3, TO_SLAVE2, Kind::SYN, pod, other, 63)]);
    let sent = node.from(ENS3).syn_ack(other, pod);
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::SYN_ACK, other, pod, 63)]);
    assert_eq!(node.flows(), 1);
}

#[test]
fn w13_rt_03_blackhole_is_silent() {
    let mut node = seed();
    assert_eq!(node.from(CALI_7).syn("10.151.51.7:40000", "10.151.51.99:80"), []);
    assert_eq!(node.dropped(Reason::RouteBlackhole), 1);
    assert_eq!(node.flows(), 0, "CT-04");
}

#[test]
fn w14_docker_s_rule_masquerades_what_leaves_by_another_port() {
    let rule = MasqueradeRule {
        name: "docker".into(),
        source: Some(Match::Is("172.17.0.0/16".parse().unwrap())),
        destination: None,
        out: Some(Match::Not(Some(DOCKER0))),
    };
    let mut docker = cluster();
    docker.family.masquerade = vec![rule];
    let mut node = docker.start();
    let sent = node.from(DOCKER0).udp("172.17.0.5:5000", "8.8.8.8:53");
    assert_eq!(sent, [out(ENS3, TO_GATEWAY, Kind::Udp, "172.16.1.50:5000", "8.8.8.8:53", 63)]);
    let sent = node.from(ENS3).udp("8.8.8.8:53", "172.16.1.50:5000");
    let back = out(DOCKER0, (DOCKER_LINK, CONTAINER), Kind::Udp, "8.8.8.8:53", "172.17.0.5:5000", 63);
    assert_eq!(sent, [back]);
    let sent = node.from(DOCKER0).udp("172.17.0.5:5001", "172.17.0.5:53");
    assert_eq!(sent[0].port, DOCKER0);
    assert_eq!(sent[0].bytes[26..30], [172, 17, 0, 5], "not on the way back out of docker0");
}

#[test]
fn udp_both_ways_and_gone_after_its_timeout() {
    let mut node = seed();
    let (pod, dns) = ("10.151.51.7:5000", "10.150.0.10:53");
    let asked = out(CALI_8, TO_POD_8, Kind::Udp, pod, "10.151.51.8:5353", 63);
    assert_eq!(node.from(CALI_7).udp(pod, dns), [asked]);
    let answered = out(CALI_7, TO_POD_7, Kind::Udp, dns, pod, 63);
    assert_eq!(node.from(CALI_8).udp("10.151.51.8:5353", pod), [answered]);
    node.tick(Duration::from_secs(29));
    assert_eq!(node.flows(), 1);
    node.tick(Duration::from_secs(2));
    assert_eq!(node.flows(), 0, "CT-05, CT-10");
}

#[test]
fn icmp_echo_through_the_node_and_back() {
    let mut node = seed();
    let (pod, far) = ("10.151.51.7:77", "10.151.49.8:5");
    let sent = node.from(CALI_7).of(Kind::Echo, pod, far);
    assert_eq!(sent, [out(ENS3, TO_SLAVE2, Kind::Echo, pod, far, 63)]);
    let sent = node.from(ENS3).of(Kind::EchoReply, far, pod);
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::EchoReply, far, pod, 63)]);
    // A reply that nobody asked for.
    assert_eq!(node.from(ENS3).of(Kind::EchoReply, far, "10.151.51.8:78"), []);
    assert_eq!(node.dropped(Reason::Invalid), 1);
}

#[test]
fn ct_06_a_reset_ends_a_connection_and_its_tuple_can_begin_another() {
    let mut node = seed().choosing(ON_CALI_8);
    let (pod, translated) = ("10.151.51.7:40000", "10.151.51.8:80");
    node.from(CALI_7).syn(pod, MYAPP);
    let sent = node.from(CALI_8).rst(translated, pod);
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::RST, MYAPP, pod, 63)]);
    // Repeated, with another backend: a new decision.
    let mut node = node.choosing(ON_SLAVE2);
    node.tick(Duration::from_secs(11));
    let sent = node.from(CALI_7).syn(pod, MYAPP);
    assert_eq!(sent, [out(ENS3, TO_SLAVE2, Kind::SYN, pod, "10.151.49.8:80", 63)]);
}

#[test]
fn ct_06_a_segment_in_the_middle_goes_through_nat_like_a_new_one() {
    let mut node = seed().choosing(ON_CALI_8);
    let (pod, translated) = ("10.151.51.7:40000", "10.151.51.8:80");
    let sent = node.from(CALI_7).ack(pod, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::ACK, pod, translated, 63)]);
    for kind in [Kind::SYN_ACK, Kind::FIN, Kind::RST] {
        assert_eq!(node.from(CALI_7).of(kind, "10.151.51.7:40001", MYAPP), []);
    }
    assert_eq!(node.dropped(Reason::Invalid), 3);
}

#[test]
fn a_burst_holds_a_connection_s_first_and_second_packet() {
    let mut node = seed();
    let (pod, dns) = ("10.151.51.7:5000", "10.150.0.10:53");
    let bytes = node.from(CALI_7).bytes(Kind::Udp, pod, dns);
    let mut burst: Burst = (0..3).map(|_| Packet::copy_of(pool(), CALI_7, &bytes).unwrap()).collect();
    let asked = out(CALI_8, TO_POD_8, Kind::Udp, pod, "10.151.51.8:5353", 63);
    assert_eq!(node.receive_burst(&mut burst), vec![asked; 3]);
    assert_eq!(node.flows(), 1);
}

#[test]
fn wk_09_nat_09_the_host_s_own_traffic_to_its_own_endpoint_is_masqueraded_both_ways() {
    let mut own = cluster();
    own.backends = vec!["172.16.1.50:8080"];
    let mut node = own.start();
    let client = "172.17.0.1:4000";
    // The host speaks to its own endpoint from another of its addresses: masqueraded on the way in (WK-09).
    let sent = node.from(HOST).syn(client, MYAPP);
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN, "172.16.1.50:4000", "172.16.1.50:8080", 64)]);
    let sent = node.from(HOST).syn_ack("172.16.1.50:8080", "172.16.1.50:4000");
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN_ACK, MYAPP, client, 64)]);
    // A pod that reaches it is not: that stage is not on its way.
    let sent = node.from(DOCKER0).syn("172.17.0.5:4000", MYAPP);
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN, "172.17.0.5:4000", "172.16.1.50:8080", 64)]);
}
