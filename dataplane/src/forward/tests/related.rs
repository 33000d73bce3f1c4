//! ICMP errors about connections (NAT-07, CT-02): who is told, from which address, about which packet. Bytes are
//! etherparse's; what translation does to every kind of quote is tested where it is made (`nat/icmp.rs`).

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

use super::*;
use crate::flow::Direction;
use crate::packet::testing::Step;
use crate::tables::{MasqueradeRule, Match};

const POD: &str = "10.151.51.7:40000";
const UNREACHABLE: (u8, u8) = (3, 3);
const TOO_BIG: (u8, u8) = (3, 4);
const EXCEEDED: (u8, u8) = (11, 0);

/// An ICMP error as an IP packet.
fn error(kind: (u8, u8), source: &str, destination: &str, ttl: u8, quoted: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let bytes5to8 = if kind == TOO_BIG { [0, 0, 0x05, 0x14] } else { [0; 4] };
    let icmp = Icmpv4Type::Unknown { type_u8: kind.0, code_u8: kind.1, bytes5to8 };
    let mut packet = Vec::new();
    PacketBuilder::ipv4(address(source), address(destination), ttl)
        .icmpv4(icmp)
        .write_frame(&mut packet, quoted);
    packet
}

/// A packet as IP.
fn ip(kind: Kind, source: &str, destination: &str, ttl: u8) -> Vec<u8> {
    Frame { kind, ttl, ..Frame::default() }.between(source, destination).bytes().split_off(14)
}

impl Node {
    /// An error comes in by `port`.
    fn told(&mut self, port: PortId, error: &[u8]) -> Vec<Out> {
        let Sender { frame, .. } = self.from(port);
        let link = [frame.link_destination.0, frame.link_source.0].concat();
        self.receive(port, &[&link[..], &[8, 0], error].concat())
    }
}

/// An error that is to leave.
fn tells(port: PortId, (source, destination): (LinkAddr, LinkAddr), error: &[u8]) -> Out {
    Out { port, bytes: [&destination.0[..], &source.0, &[8, 0], error].concat() }
}

#[test]
fn nat_07_a_backend_s_error_comes_from_the_service() {
    let mut node = seed();
    let (pod, dns, translated) = ("10.151.51.7:5000", "10.150.0.10:53", "10.151.51.8:5353");
    node.from(CALI_7).udp(pod, dns);
    node.now = node.now + Duration::from_secs(10);
    let came = error(UNREACHABLE, "10.151.51.8", "10.151.51.7", 64, &ip(Kind::Udp, pod, translated, 63));
    let left = error(UNREACHABLE, "10.150.0.10", "10.151.51.7", 63, &ip(Kind::Udp, pod, dns, 63));
    assert_eq!(node.told(CALI_8, &came), [tells(CALI_7, TO_POD_7, &left)]);
    assert!(node.events.contains(&Event::Related { direction: Direction::Reply }));
    // Nothing of the connection changes: it has not been answered, and does not live longer.
    let flow = node.forwarder.flows_v4().list(0, 10, node.now.into()).0.remove(0);
    assert_eq!((flow.seen_reply, flow.assured, flow.remaining), (false, false, Duration::from_secs(20)));
    assert_eq!(node.stats().dropped.total(), 0);
}

#[test]
fn nat_07_errors_from_beyond_reach_the_host_from_the_service_with_their_mtu() {
    let mut node = seed().choosing(ON_SLAVE2);
    let (host, translated) = ("172.16.1.50:56060", "10.151.49.8:80");
    node.from(HOST).syn(host, MYAPP);
    for kind in [EXCEEDED, TOO_BIG] {
        let came = error(kind, "172.16.0.1", "172.16.1.50", 64, &ip(Kind::SYN, host, translated, 1));
        let left = error(kind, "10.150.18.86", "172.16.1.50", 64, &ip(Kind::SYN, host, MYAPP, 1));
        assert_eq!(node.told(ENS3, &came), [tells(HOST, TO_HOST, &left)], "to the node: its TTL stays");
    }
}

#[test]
fn nat_07_a_masqueraded_sender_is_told_by_the_router_itself() {
    let mut docker = cluster();
    docker.family.masquerade = vec![MasqueradeRule {
        name: "docker".into(),
        source: Some(Match::Is("172.17.0.0/16".parse().unwrap())),
        destination: None,
        out: Some(Match::Not(Some(DOCKER0))),
    }];
    docker.masquerade = MasqueradePorts::Random;
    let mut node = docker.start();
    for (kind, container, far) in
        [(Kind::Udp, "172.17.0.5:5000", "8.8.8.8:53"), (Kind::Echo, "172.17.0.5:77", "8.8.8.8:5")]
    {
        let sent = node.from(DOCKER0).of(kind, container, far);
        // Another port, and another identifier, than the container's.
        assert_ne!(sent[0].bytes[34..], ip(kind, container, far, 63)[20..]);
        let came = error(EXCEEDED, "198.51.100.1", "172.16.1.50", 60, &sent[0].bytes[14..]);
        let left = error(EXCEEDED, "198.51.100.1", "172.17.0.5", 59, &ip(kind, container, far, 63));
        assert_eq!(node.told(ENS3, &came), [tells(DOCKER0, (DOCKER_LINK, CONTAINER), &left)]);
    }
}

#[test]
fn nat_07_both_ends_are_translated_back() {
    let mut all = cluster();
    all.policy.internal_mark = crate::service::InternalMark::Always;
    let mut node = all.start().choosing(ON_SLAVE2);
    node.from(CALI_7).syn(POD, MYAPP);
    let (masqueraded, translated) = ("172.16.1.50:40000", "10.151.49.8:80");
    let came = error(TOO_BIG, "172.16.1.88", "172.16.1.50", 64, &ip(Kind::SYN, masqueraded, translated, 63));
    let left = error(TOO_BIG, "10.150.18.86", "10.151.51.7", 63, &ip(Kind::SYN, POD, MYAPP, 63));
    assert_eq!(node.told(ENS3, &came), [tells(CALI_7, TO_POD_7, &left)]);
    // The client complains of an answer: its error goes the way of its packets.
    node.from(ENS3).syn_ack(translated, masqueraded);
    let came = error(UNREACHABLE, "10.151.51.7", "10.150.18.86", 64, &ip(Kind::SYN_ACK, MYAPP, POD, 63));
    let quoted = ip(Kind::SYN_ACK, translated, masqueraded, 63);
    let left = error(UNREACHABLE, "172.16.1.50", "10.151.49.8", 63, &quoted);
    assert_eq!(node.told(CALI_7, &came), [tells(ENS3, TO_SLAVE2, &left)]);
    assert!(node.events.contains(&Event::Related { direction: Direction::Original }));
}

#[test]
fn nat_07_the_host_s_own_errors_are_translated_and_keep_their_ttl() {
    let mut node = seed();
    let (host, dns, translated) = ("172.16.1.50:5000", "10.150.0.10:53", "10.151.51.8:5353");
    node.from(HOST).udp(host, dns);
    node.from(CALI_8).udp(translated, host);
    let came = error(UNREACHABLE, "172.16.1.50", "10.150.0.10", 64, &ip(Kind::Udp, dns, host, 64));
    let left = error(UNREACHABLE, "172.16.1.50", "10.151.51.8", 64, &ip(Kind::Udp, translated, host, 64));
    assert_eq!(node.told(HOST, &came), [tells(CALI_8, TO_POD_8, &left)]);
}

#[test]
fn ct_02_an_error_about_an_untranslated_connection_passes_as_it_is() {
    let mut node = seed();
    let far = "10.151.49.8:443";
    node.from(CALI_7).syn(POD, far);
    // Four bytes of transport are enough to know whose it is.
    for quoted in [20 + 4, 20 + 8, 40] {
        let quote = &ip(Kind::SYN, POD, far, 60)[..quoted];
        for kind in [EXCEEDED, (5, 1)] {
            let came = error(kind, "172.16.1.88", "10.151.51.7", 64, quote);
            let left = error(kind, "172.16.1.88", "10.151.51.7", 63, quote);
            assert_eq!(node.told(ENS3, &came), [tells(CALI_7, TO_POD_7, &left)], "{quoted} {kind:?}");
        }
    }
}

#[test]
fn nat_07_a_redirect_about_a_translated_connection_is_dropped() {
    let mut node = seed().choosing(ON_CALI_8);
    node.from(CALI_7).syn(POD, MYAPP);
    let came = error((5, 1), "10.151.51.8", "10.151.51.7", 64, &ip(Kind::SYN, POD, "10.151.51.8:80", 63));
    assert_eq!(node.told(CALI_8, &came), []);
    assert_eq!(node.dropped(Reason::Redirect), 1);
}

#[test]
fn ct_08_an_error_about_nothing_that_is_known_is_invalid() {
    let mut node = seed().choosing(ON_CALI_8);
    node.from(CALI_7).syn(POD, MYAPP);
    let about = |kind, source, destination| {
        error(UNREACHABLE, "10.151.51.8", "10.151.51.7", 64, &ip(kind, source, destination, 63))
    };
    let strange = [
        // Nobody's; the other direction's; as it was before translation; another protocol's; an error about one.
        about(Kind::SYN, "10.151.51.7:40001", "10.151.51.8:80"),
        about(Kind::SYN, "10.151.51.8:80", POD),
        about(Kind::SYN, POD, MYAPP),
        about(Kind::Udp, POD, "10.151.51.8:80"),
        error(UNREACHABLE, "10.151.51.8", "10.151.51.7", 64, &about(Kind::SYN, POD, "10.151.51.8:80")),
        // To somebody who has not sent it.
        error(UNREACHABLE, "10.151.51.8", "10.151.49.8", 64, &ip(Kind::SYN, POD, "10.151.51.8:80", 63)),
    ];
    for (at, came) in strange.iter().enumerate() {
        assert_eq!(node.told(CALI_8, came), [], "{at}");
        assert_eq!(node.dropped(Reason::Invalid), at as u64 + 1, "{at}");
        assert!(node.events.contains(&Event::Invalid));
    }
    // From a port to the node it is delivered, and what the node says leaves.
    let node_address = "172.16.1.50:9";
    let came = error(EXCEEDED, "172.16.1.88", "172.16.1.50", 64, &ip(Kind::Udp, node_address, MYAPP, 1));
    assert_eq!(node.told(ENS3, &came), [tells(HOST, TO_HOST, &came)]);
    let came = error(
        UNREACHABLE,
        "172.16.1.50",
        "172.16.1.88",
        64,
        &ip(Kind::Udp, "172.16.1.88:9", node_address, 1),
    );
    assert_eq!(node.told(HOST, &came), [tells(ENS3, TO_SLAVE2, &came)]);
    // One whose time is over is no longer known, also before it is cleared away.
    let came = about(Kind::SYN, POD, "10.151.51.8:80");
    assert_eq!(node.told(CALI_8, &came).len(), 1);
    node.now = node.now + Duration::from_secs(121);
    assert_eq!((node.told(CALI_8, &came), node.flows()), (vec![], 1));
}

#[test]
fn nat_07_every_length_of_a_quote_is_translated_or_counted() {
    for (kind, least) in [(Kind::SYN, 4), (Kind::Udp, 4), (Kind::Echo, 8)] {
        let mut docker = cluster();
        docker.family.masquerade = vec![MasqueradeRule {
            name: "all".into(),
            source: None,
            destination: None,
            out: Some(Match::Is(Some(ENS3))),
        }];
        let mut node = docker.start();
        let sent = node.from(CALI_7).of(kind, "10.151.51.7:5000", "8.8.8.8:53");
        let (mut forwarded, mut invalid, mut short) = (0, 0, 0);
        for len in 0..=sent[0].bytes.len() - 14 {
            let came = error(EXCEEDED, "198.51.100.1", "172.16.1.50", 64, &sent[0].bytes[14..][..len]);
            let left = node.told(ENS3, &came);
            match len {
                len if len < 20 + least => invalid += 1,
                len if len < 28 => short += 1,
                _ => forwarded += 1,
            }
            // To the node itself what is invalid is delivered.
            let port = if len < 20 + least { HOST } else { CALI_7 };
            assert_eq!(
                left.first().map(|out| out.port),
                (!(20 + least..28).contains(&len)).then_some(port),
                "{len}"
            );
            if port == CALI_7 && !left.is_empty() {
                icmp_error(&left);
            }
        }
        assert_eq!(node.dropped(Reason::IcmpQuote), short, "{kind:?}");
        assert!(forwarded > 0 && invalid > 0);
        assert_eq!(node.stats().dropped.total(), short);
    }
}

#[test]
fn ct_08_an_error_with_a_wrong_checksum_is_neither_translated_nor_forwarded() {
    let mut node = seed().choosing(ON_CALI_8);
    node.from(CALI_7).syn(POD, MYAPP);
    let mut came =
        error(UNREACHABLE, "10.151.51.8", "10.151.51.7", 64, &ip(Kind::SYN, POD, "10.151.51.8:80", 63));
    *came.last_mut().unwrap() ^= 1;
    assert_eq!(node.told(CALI_8, &came), []);
    assert_eq!(node.dropped(Reason::TransportChecksum), 1);
}

#[test]
fn fw_01_an_error_that_has_travelled_too_far_ends_silently() {
    let mut node = seed().choosing(ON_CALI_8);
    node.from(CALI_7).syn(POD, MYAPP);
    let came = error(UNREACHABLE, "10.151.51.8", "10.151.51.7", 1, &ip(Kind::SYN, POD, "10.151.51.8:80", 63));
    assert_eq!(node.told(CALI_8, &came), []);
    assert_eq!(
        (node.dropped(Reason::TtlExceeded), node.stats().originated),
        (1, 0),
        "no error about an error"
    );
}

#[test]
fn nb_02_an_error_waits_for_its_neighbour_and_is_translated_once() {
    let mut node = seed();
    let (client, dns, translated) = ("172.16.0.9:5000", "10.150.0.10:53", "10.151.51.8:5353");
    node.from(ENS3).udp(client, dns);
    // The client is on the node's own link, and was never asked for its address.
    let masqueraded = "172.16.1.50:5000";
    let came =
        error(UNREACHABLE, "10.151.51.8", "172.16.1.50", 64, &ip(Kind::Udp, masqueraded, translated, 63));
    let asked = node.told(CALI_8, &came);
    assert_eq!((asked.len(), node.stats().held), (1, 1));
    let (address, link) = ("172.16.0.9".parse().unwrap(), LinkAddr([2, 0, 0, 0, 0, 9]));
    let now = node.now;
    node.forwarder.neighbours_v4().learn(ENS3, address, link, Learned::Static, now);
    let left = error(UNREACHABLE, "10.150.0.10", "172.16.0.9", 63, &ip(Kind::Udp, client, dns, 63));
    assert_eq!(node.tick(Duration::from_millis(1)), [tells(ENS3, (NODE_LINK, link), &left)]);
}

#[test]
fn rt_05_an_error_follows_a_route_that_has_changed() {
    let mut node = seed();
    let (pod, dns, translated) = ("10.151.51.7:5000", "10.150.0.10:53", "10.151.51.8:5353");
    node.from(CALI_7).udp(pod, dns);
    let came = error(UNREACHABLE, "10.151.51.8", "10.151.51.7", 64, &ip(Kind::Udp, pod, translated, 63));
    assert_eq!(node.told(CALI_8, &came)[0].port, CALI_7);
    let mut moved = cluster();
    moved.routes.retain(|route| route.prefix != "10.151.51.7/32".parse().unwrap());
    node.set(moved);
    assert_eq!(node.told(CALI_8, &came), []);
    assert_eq!(node.dropped(Reason::RouteBlackhole), 1);
}

mod ipv6 {
    use super::super::ipv6::{A, B, CALI_A, CALI_B, CLIENT, Carries, NODE, STACK, UPLINK, WEB};
    use super::super::ipv6::{arriving, leaving, packet6, settled, v6};
    use super::*;

    /// An ICMPv6 error.
    fn error6(kind: (u8, u8), source: &str, destination: &str, hop_limit: u8, quoted: &[u8]) -> Vec<u8> {
        let bytes5to8 = if kind.0 == 2 { [0, 0, 0x05, 0] } else { [0; 4] };
        let icmp = Icmpv6Type::Unknown { type_u8: kind.0, code_u8: kind.1, bytes5to8 };
        let mut packet = Vec::new();
        PacketBuilder::ipv6(v6(source).octets(), v6(destination).octets(), hop_limit)
            .icmpv6(icmp)
            .write_frame(&mut packet, quoted);
        packet
    }

    #[test]
    fn nat_07_errors_of_every_class_come_from_the_service() {
        let mut node = settled();
        for carries in [Carries::Syn, Carries::Udp, Carries::Sctp] {
            node.receive(CALI_A, &arriving(CALI_A, &packet6(carries, A, WEB, 64)));
            for kind in [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)] {
                let came = error6(kind, "fd00::b", "fd00::a", 64, &packet6(carries, A, B, 63));
                let left = error6(kind, "fd96::10", "fd00::a", 63, &packet6(carries, A, WEB, 63));
                assert_eq!(
                    node.receive(CALI_B, &arriving(CALI_B, &came)),
                    [leaving(CALI_A, &left)],
                    "{kind:?}"
                );
            }
        }
        assert_eq!(node.stats().dropped.total(), 0);
    }

    #[test]
    fn nat_07_a_node_port_s_client_and_backend_hear_of_each_other() {
        let mut node = settled();
        let (to, masqueraded) = (format!("[{NODE}]:30080"), format!("[{NODE}]:40000"));
        node.receive(UPLINK, &arriving(UPLINK, &packet6(Carries::Syn, CLIENT, &to, 64)));
        let came = error6((2, 0), "fd00::b", NODE, 64, &packet6(Carries::Syn, &masqueraded, B, 63));
        let left = error6((2, 0), NODE, "2001:db8:9::9", 63, &packet6(Carries::Syn, CLIENT, &to, 63));
        assert_eq!(node.receive(CALI_B, &arriving(CALI_B, &came)), [leaving(UPLINK, &left)]);
        node.receive(CALI_B, &arriving(CALI_B, &packet6(Carries::SynAck, B, &masqueraded, 64)));
        let quoted = packet6(Carries::SynAck, &to, CLIENT, 60);
        let came = error6((3, 0), "2001:db8:7::7", NODE, 64, &quoted);
        let left = error6((3, 0), NODE, "fd00::b", 63, &packet6(Carries::SynAck, B, &masqueraded, 60));
        assert_eq!(node.receive(UPLINK, &arriving(UPLINK, &came)), [leaving(CALI_B, &left)]);
    }

    #[test]
    fn ct_08_an_error_about_nothing_that_is_known_is_invalid() {
        let mut node = settled();
        let came = error6((1, 4), "fd00::b", "fd00::a", 64, &packet6(Carries::Udp, A, B, 63));
        assert_eq!(node.receive(CALI_B, &arriving(CALI_B, &came)), []);
        assert_eq!(node.dropped(Reason::Invalid), 1);
        let own = format!("[{NODE}]:9");
        let came = error6((1, 4), "fd00::b", NODE, 64, &packet6(Carries::Udp, &own, B, 63));
        assert_eq!(node.receive(CALI_B, &arriving(CALI_B, &came)), [leaving(STACK, &came)]);
    }
}
