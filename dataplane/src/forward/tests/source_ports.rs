//! Source ports and identifiers of translated connections (NAT-03, NAT-05).

use super::*;
use std::collections::BTreeSet;
use std::net::SocketAddrV4;

/// The source of the one frame that left.
fn source(sent: &[Out]) -> SocketAddrV4 {
    let [Out { bytes, .. }] = sent else { panic!("not one frame: {sent:?}") };
    let address: [u8; 4] = bytes[26..30].try_into().unwrap();
    let at = if bytes[23] == 1 { 38 } else { 34 };
    SocketAddrV4::new(address.into(), u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

#[test]
fn nat_05_keep_takes_another_port_of_the_class_only_on_a_clash() {
    let mut routed = cluster();
    routed.family.loopback_guard = crate::tables::LoopbackGuard::On;
    let mut node = routed.start().choosing(ON_SLAVE2);
    let mut seen = BTreeSet::new();
    // Three addresses of the node become one on the way out.
    for client in ["172.16.1.50:700", "172.17.0.1:700", "127.0.0.1:700"] {
        let source = source(&node.from(HOST).syn(client, MYAPP));
        assert_eq!(source.ip().to_string(), "172.16.1.50", "{client}");
        assert!(seen.insert(source.port()));
    }
    assert!(seen.contains(&700));
    assert!(seen.iter().all(|port| (600..1024).contains(port)), "{seen:?}");
}

#[test]
fn nat_05_random_ports_are_of_the_class_and_seldom_the_original() {
    let mut random = cluster();
    random.masquerade = MasqueradePorts::Random;
    let mut node = random.start().choosing(ON_SLAVE2);
    let mut kept = 0;
    for (from, class) in
        [(1, 1..512), (511, 1..512), (600, 600..1024), (1023, 600..1024), (40_000, 1024..65_536)]
    {
        for client in 0..8 {
            let client = format!("172.17.0.{}:{from}", 10 + client);
            let port = u32::from(source(&node.from(DOCKER0).syn(&client, MYAPP)).port());
            assert!(class.contains(&port), "{from} became {port}");
            kept += u32::from(port == from);
        }
    }
    assert!(kept < 5, "all ports were kept");
}

#[test]
fn nat_05_random_also_changes_icmp_identifiers_and_the_reply_is_translated_back() {
    let mut random = cluster();
    random.masquerade = MasqueradePorts::Random;
    random.family.masquerade = vec![crate::tables::MasqueradeRule {
        name: "all".into(),
        source: None,
        destination: None,
        out: None,
    }];
    let mut node = random.start();
    let identifiers: BTreeSet<u16> = (0..8)
        .map(|sequence| {
            let client = format!("10.151.51.7:{}", 100 + sequence);
            let source = source(&node.from(CALI_7).of(Kind::Echo, &client, "10.151.49.8:1"));
            let sent = node.from(ENS3).of(Kind::EchoReply, "10.151.49.8:1", &source.to_string());
            assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::EchoReply, "10.151.49.8:1", &client, 63)]);
            source.port()
        })
        .collect();
    assert_eq!(identifiers.len(), 8);
    assert!(identifiers.iter().any(|id| !(100..108).contains(id)));
}

#[test]
fn nat_03_two_clients_whose_answers_would_look_alike_are_told_apart() {
    let mut node = seed().choosing(ON_CALI_8);
    let pod = "10.151.51.7:40000";
    // First straight to the backend, then through the Service: both have the reply 51.8:80 → 51.7:40000.
    node.from(CALI_7).syn(pod, "10.151.51.8:80");
    let second = source(&node.from(CALI_7).syn(pod, MYAPP));
    assert_eq!(second.ip().to_string(), "10.151.51.7", "not masqueraded");
    assert_ne!(second.port(), 40_000);
    assert!(second.port() >= 1024);
    let sent = node.from(CALI_8).syn_ack("10.151.51.8:80", &second.to_string());
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::SYN_ACK, MYAPP, pod, 63)]);
    let sent = node.from(CALI_8).syn_ack("10.151.51.8:80", pod);
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::SYN_ACK, "10.151.51.8:80", pod, 63)]);
}

#[test]
fn nat_05_exhaustion_is_counted_and_never_a_wrong_mapping() {
    let mut crowded = cluster();
    crowded.policy.detector = Detector::None;
    crowded.policy.internal_mark = crate::service::InternalMark::Always;
    let mut node = crowded.start().choosing(ON_SLAVE2);
    let mut ports = BTreeSet::new();
    let mut refused = 0;
    // 600 clients for the 511 ports below 512.
    for client in 0..600 {
        let client = format!("172.17.{}.{}:100", 1 + client / 200, 1 + client % 200);
        let sent = node.from(DOCKER0).syn(&client, MYAPP);
        if sent.is_empty() {
            refused += 1;
        } else {
            assert!(ports.insert(source(&sent).port()), "one port for two connections");
        }
    }
    assert!(refused >= 600 - 511);
    assert_eq!(node.dropped(Reason::SnatExhausted), refused);
    assert!(ports.iter().all(|port| (1..512).contains(port)));
    assert!(ports.len() > 450, "the search gave up at {} of 511", ports.len());
}

#[test]
fn ct_09_a_full_table_refuses_and_counts() {
    let mut small = cluster();
    small.connections = 8;
    let mut node = small.start();
    for port in 0..40 {
        let (client, server) = (format!("10.151.51.7:{}", 5000 + port), "10.151.51.8:5353");
        node.from(CALI_7).udp(&client, server);
        node.from(CALI_8).udp(server, &client);
        // A stream (assured) is never evicted.
        node.now = node.now + Duration::from_secs(3);
        node.from(CALI_7).udp(&client, server);
    }
    assert!(node.dropped(Reason::FlowTableFull) > 0);
    assert_eq!(node.flows(), 8);
}
