//! What is refused, and who is told (FW-01 to FW-06, RT-02, CT-08).

use super::*;
use crate::route::RouteKind;

const POD: &str = "10.151.51.7:40000";
const FAR: &str = "10.151.49.8:80";

#[test]
fn fw_01_time_exceeded_quotes_the_packet_as_it_came_in() {
    let mut node = seed();
    for ttl in [0, 1] {
        let asked = node.from(CALI_7).ttl(ttl).bytes(Kind::SYN, POD, MYAPP);
        let error = icmp_error(&node.receive(CALI_7, &asked));
        assert_eq!((error.port, error.link, error.kind), (CALI_7, TO_POD_7, (11, 0)));
        // The first packet of a connection to a Service is translated before it is refused: the kernel translates the
        // error back.
        assert_eq!(error.source.to_string(), "10.150.18.86");
        assert_eq!(error.quoted, asked[14..]);
    }
    let error = icmp_error(&node.from(CALI_7).ttl(1).syn(POD, FAR));
    assert_eq!(error.source.to_string(), "172.16.1.50");
    assert_eq!((node.dropped(Reason::TtlExceeded), node.flows()), (3, 0));
    let sent = node.from(CALI_7).ttl(2).syn(POD, MYAPP);
    assert_eq!(sent[0].bytes[22], 1);
}

#[test]
fn fw_01_an_error_about_a_translated_flow_comes_from_the_address_its_client_knows() {
    let mut node = seed().choosing(ON_SLAVE2);
    node.from(CALI_7).syn(POD, MYAPP);
    let asked = node.from(CALI_7).ttl(1).bytes(Kind::SYN, POD, MYAPP);
    let error = icmp_error(&node.receive(CALI_7, &asked));
    assert_eq!(error.source.to_string(), "10.150.18.86");
    assert_eq!(error.quoted, asked[14..]);
    // To the backend, whose packets are translated in their source only, the node speaks itself.
    let error = icmp_error(&node.from(ENS3).ttl(1).syn_ack(FAR, POD));
    assert_eq!((error.source.to_string(), error.port), ("172.16.1.50".into(), ENS3));
}

#[test]
fn fw_01_the_host_s_ttl_is_neither_decreased_nor_judged_and_deliveries_keep_theirs() {
    let mut node = seed().choosing(ON_CALI_8);
    let host = "172.16.1.50:56060";
    let sent = node.from(HOST).ttl(1).syn(host, MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN, host, "10.151.51.8:80", 1)]);
    let sent = node.from(CALI_8).ttl(1).syn_ack("10.151.51.8:80", host);
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN_ACK, MYAPP, host, 1)]);
}

#[test]
fn fw_01_errors_are_rate_limited_and_path_mtu_discovery_is_not() {
    let mut node = seed();
    let errors = |node: &mut Node, kind: u8| {
        let mut seen = 0;
        for port in 0..20 {
            let client = format!("10.151.51.7:{}", 2000 + port);
            let sent = match kind {
                11 => node.from(CALI_7).ttl(1).syn(&client, FAR),
                _ => node.from(CALI_7).dont_fragment().payload(1600).syn(&client, FAR),
            };
            seen += sent.len();
        }
        seen
    };
    assert_eq!(errors(&mut node, 11), 6);
    assert_eq!(errors(&mut node, 3), 20);
    assert_eq!(node.stats().originated, 26);
    node.now = node.now + Duration::from_secs(2);
    assert_eq!(errors(&mut node, 11), 2);
}

#[test]
fn fw_02_too_big_with_df_says_the_mtu() {
    let mut node = seed();
    // ens3 takes 1500, a pod's port 1480.
    let fits = node.from(CALI_7).dont_fragment().payload(1460).syn(POD, FAR);
    assert_eq!(fits[0].bytes.len(), 1514);
    let asked = node.from(CALI_7).dont_fragment().payload(1461).bytes(Kind::SYN, "10.151.51.7:2", FAR);
    let error = icmp_error(&node.receive(CALI_7, &asked));
    assert_eq!((error.kind, error.mtu), ((3, 4), 1500));
    assert_eq!(error.quoted, asked[14..][..548], "as much as 576 bytes hold");
    let error = icmp_error(&node.from(ENS3).dont_fragment().payload(1441).syn(FAR, "10.151.51.8:80"));
    assert_eq!((error.kind, error.mtu), ((3, 4), 1480));
    assert_eq!((node.dropped(Reason::TooBig), node.flows()), (2, 1));
    // From the host: its own stack is told.
    let error = icmp_error(&node.from(HOST).dont_fragment().payload(1461).syn("172.16.1.50:9", FAR));
    assert_eq!((error.port, error.kind), (HOST, (3, 4)));
}

#[test]
fn fw_02_super_frames_are_judged_by_their_segments() {
    use crate::packet::{Gso, GsoKind};
    let mut node = seed();
    let super_frame = |node: &mut Node, size, client: &str| {
        let bytes = node.from(CALI_7).dont_fragment().payload(6_000).bytes(Kind::ACK, client, FAR);
        let mut packet = Packet::copy_of(pool(), CALI_7, &bytes).unwrap();
        packet.offload.gso = Some(Gso { kind: GsoKind::Tcp4, ecn: false, size, header_len: 54 });
        packet
    };
    let packet = super_frame(&mut node, 1460, POD);
    let sent = node.receive_packet(packet);
    assert_eq!((sent.len(), sent[0].bytes.len()), (1, 6_054), "whole: cutting is the port's business");
    let packet = super_frame(&mut node, 1461, "10.151.51.7:2");
    assert_eq!(icmp_error(&node.receive_packet(packet)).mtu, 1500);
}

#[test]
fn fw_03_martians_are_counted_and_nobody_is_told() {
    let mut node = seed();
    for source in ["127.0.0.1:1", "224.0.0.5:1", "255.255.255.255:1", "0.0.0.0:1"] {
        for kind in [Kind::SYN, Kind::Udp, Kind::Echo] {
            assert_eq!(node.from(CALI_7).of(kind, source, FAR), [], "{source}");
        }
    }
    assert_eq!(node.dropped(Reason::MartianSource), 12);
    for destination in ["127.0.0.1:80", "0.0.0.0:80"] {
        assert_eq!(node.from(CALI_7).syn(POD, destination), [], "{destination}");
    }
    assert_eq!(node.dropped(Reason::MartianDestination), 2);
    // An ICMP error is no better.
    let error = node.from(CALI_7).ttl(1).udp(POD, FAR);
    let mut bytes = error[0].bytes.clone();
    bytes[..6].copy_from_slice(&NODE_LINK.0);
    bytes[30..34].copy_from_slice(&[127, 0, 0, 1]);
    crate::packet::testing::fix_v4_checksum(&mut bytes);
    assert_eq!(node.receive(ENS3, &bytes), []);
    assert_eq!(node.dropped(Reason::MartianDestination), 3);
    // 240/4 is in use in clusters.
    assert_eq!(node.from(CALI_7).syn("240.0.0.1:5", FAR).len(), 1);
}

#[test]
fn fw_03_the_node_s_own_addresses_come_from_nobody_else() {
    let mut node = seed();
    for kind in [Kind::SYN, Kind::Udp, Kind::Echo] {
        assert_eq!(node.from(CALI_7).of(kind, "172.16.1.50:1", FAR), []);
        assert_eq!(node.from(ENS3).of(kind, "172.16.1.50:1", "10.151.51.7:80"), []);
        assert_eq!(node.from(ENS3).of(kind, "172.17.0.1:1", "172.16.1.50:80"), []);
    }
    assert_eq!((node.dropped(Reason::MartianSource), node.flows()), (9, 0));
    assert_eq!(node.from(HOST).syn("172.16.1.50:1", FAR).len(), 1);
}

#[test]
fn ct_08_impossible_tcp_flags_reach_the_node_and_nobody_else() {
    let mut node = seed();
    let none = Kind::Tcp { syn: false, ack: false, fin: false, rst: false };
    let syn_fin = Kind::Tcp { syn: true, ack: false, fin: true, rst: false };
    for segment in [none, syn_fin, Kind::Tcp { syn: true, ack: true, fin: true, rst: true }] {
        let sent = node.from(ENS3).of(segment, FAR, "172.16.1.50:80");
        assert_eq!(sent, [out(HOST, TO_HOST, segment, FAR, "172.16.1.50:80", 64)]);
        assert_eq!(node.from(CALI_7).of(segment, POD, FAR), []);
        assert_eq!(node.from(CALI_7).of(segment, POD, MYAPP), []);
    }
    assert_eq!((node.dropped(Reason::TcpFlags), node.flows()), (6, 0));
}

#[test]
fn fw_03_loopback_does_not_leave_by_a_port() {
    let mut node = seed();
    assert_eq!(node.from(HOST).syn("127.0.0.1:5", FAR), []);
    assert_eq!((node.dropped(Reason::MartianSource), node.flows()), (1, 0));
    // Masqueraded, as a loopback node port is, it may where loopback is routed at all.
    assert_eq!(node.from(HOST).syn("127.0.0.1:5", MYAPP), []);
    assert_eq!((node.dropped(Reason::MartianSource), node.flows()), (2, 0));
    let mut routed = cluster();
    routed.family.loopback_guard = crate::tables::LoopbackGuard::On;
    let mut node = routed.start().choosing(ON_CALI_8);
    let sent = node.from(HOST).syn("127.0.0.1:5", MYAPP);
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN, "172.16.1.50:5", "10.151.51.8:80", 64)]);
    let sent = node.from(CALI_8).syn_ack("10.151.51.8:80", "172.16.1.50:5");
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN_ACK, MYAPP, "127.0.0.1:5", 64)]);
}

#[test]
fn rt_02_every_route_type_has_its_answer() {
    let mut types = cluster();
    types.routes.retain(|route| route.prefix.len() > 0);
    types.routes.extend([
        route("198.18.1.0/24", RouteKind::Unreachable),
        route("198.18.2.0/24", RouteKind::Prohibit),
        route("198.18.3.0/24", RouteKind::Blackhole),
        route("198.18.4.0/24", RouteKind::Local),
        route("198.18.5.0/24", RouteKind::Host),
        route("198.18.6.255/32", RouteKind::Broadcast),
        route("198.18.7.0/24", RouteKind::Multicast),
    ]);
    let mut node = types.start();
    for (destination, reason, kind) in [
        ("198.18.1.1:80", Reason::RouteUnreachable, Some((3, 1))),
        ("198.18.2.1:80", Reason::RouteProhibit, Some((3, 13))),
        ("198.18.3.1:80", Reason::RouteBlackhole, None),
        ("203.0.113.1:80", Reason::NoRoute, Some((3, 0))),
    ] {
        let sent = node.from(CALI_7).syn(POD, destination);
        match kind {
            Some(kind) => assert_eq!(icmp_error(&sent).kind, kind, "{destination}"),
            None => assert_eq!(sent, []),
        }
        assert_eq!(node.dropped(reason), 1, "{destination}");
    }
    for destination in ["198.18.4.1:80", "198.18.5.1:80", "198.18.6.255:80", "198.18.7.1:80"] {
        let sent = node.from(CALI_7).syn(POD, destination);
        assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN, POD, destination, 64)]);
    }
    for destination in ["198.18.6.255:80", "198.18.7.1:80"] {
        assert_eq!(node.from(HOST).syn("172.16.1.50:1", destination), [], "it would come back to its sender");
    }
    assert_eq!(node.dropped(Reason::NotForPollux), 2);
}

#[test]
fn ct_08_invalid_is_delivered_to_the_node_sent_by_it_and_never_forwarded() {
    let mut node = seed();
    let own = "172.16.1.50:22";
    assert_eq!(node.from(ENS3).rst(FAR, own), [out(HOST, TO_HOST, Kind::RST, FAR, own, 64)]);
    assert_eq!(node.from(ENS3).rst(FAR, "10.151.51.8:80"), []);
    let stray = node.from(HOST).rst(own, FAR);
    assert_eq!(stray, [out(ENS3, TO_SLAVE2, Kind::RST, own, FAR, 64)], "nothing on OUTPUT asks its state");
    assert_eq!(node.dropped(Reason::Invalid), 1);
    let mut broken = node.from(ENS3).bytes(Kind::SYN, FAR, own);
    *broken.last_mut().unwrap() ^= 1;
    let sent = node.receive(ENS3, &broken);
    assert_eq!((sent[0].port, &sent[0].bytes[14..]), (HOST, &broken[14..]));
    let mut broken = node.from(ENS3).bytes(Kind::SYN, FAR, "10.151.51.8:80");
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(node.receive(ENS3, &broken), []);
    assert_eq!((node.dropped(Reason::TransportChecksum), node.flows()), (1, 0));
}

#[test]
fn ct_08_a_damaged_packet_does_not_move_its_connection() {
    const CLIENT: &str = "10.151.51.7:40000";
    const BACKEND: &str = "10.151.51.8:80";
    let mut node = seed();
    assert_eq!(node.from(CALI_7).of(Kind::SYN, CLIENT, BACKEND).len(), 1);
    assert_eq!(node.from(CALI_8).of(Kind::SYN_ACK, BACKEND, CLIENT).len(), 1);
    let state = |node: &Node| node.forwarder.flows_v4().list(0, 1, node.now.into()).0[0].state.name();
    assert_eq!(node.from(CALI_7).of(Kind::ACK, CLIENT, BACKEND).len(), 1);
    assert_eq!(state(&node), "ESTABLISHED");
    let whole = node.from(CALI_7).bytes(Kind::FIN, CLIENT, BACKEND);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(node.receive(CALI_7, &damaged), []);
    assert_eq!((node.dropped(Reason::TransportChecksum), state(&node)), (1, "ESTABLISHED"));
    assert_eq!(node.receive(CALI_7, &whole).len(), 1);
    assert_eq!(state(&node), "FIN_WAIT");
}

/// A frame of another type from the gateway.
fn other(destination: LinkAddr, ether_type: u16) -> Vec<u8> {
    let mut frame = [destination.0, GATEWAY.0].concat();
    frame.extend(ether_type.to_be_bytes());
    frame.extend([0; 46]);
    frame
}

#[test]
fn fw_06_other_frames_by_the_port_s_configuration() {
    let lldp = other(LinkAddr([1, 0x80, 0xc2, 0, 0, 0x0e]), 0x88cc);
    let vlan = other(NODE_LINK, 0x8100);
    let not_ours = other(SLAVE2, 0x88cc);
    let mut node = seed();
    assert_eq!(node.receive(ENS3, &lldp), [Out { port: HOST, bytes: lldp.clone() }], "as it is");
    let mut delivered = vlan.clone();
    delivered[..6].copy_from_slice(&HOST_LINK.0);
    assert_eq!(node.receive(ENS3, &vlan), [Out { port: HOST, bytes: delivered }]);
    assert_eq!(node.receive(ENS3, &not_ours), []);
    assert_eq!(node.dropped(Reason::OtherHost), 1);
    let mut dropping = cluster();
    dropping.ports[ENS3.index()].foreign = Foreign::Drop;
    node.set(dropping);
    assert_eq!(node.receive(ENS3, &lldp), []);
    assert_eq!(node.dropped(Reason::NotForPollux), 1);
    let mut shared = cluster();
    shared.ports[ENS3.index()].sharing = Sharing::WithKernel;
    node.set(shared);
    assert_eq!(node.receive(ENS3, &lldp), []);
    assert_eq!(node.stats().delivered, 1, "the kernel has its own");
    assert_eq!(node.receive(ENS3, &not_ours), []);
    assert_eq!(node.dropped(Reason::OtherHost), 2);
    let mut no_host = cluster();
    no_host.ports.pop();
    node.set(no_host);
    assert_eq!(node.receive(ENS3, &lldp), []);
    assert_eq!(node.dropped(Reason::NoHostPort), 1);
}

#[test]
fn fw_06_groups_go_to_the_host_and_never_back_to_it() {
    let mut node = seed();
    let everyone = LinkAddr::BROADCAST;
    let dhcp = ("172.16.0.1:67", "255.255.255.255:68");
    let sent = node.from(ENS3).over_link(everyone).udp(dhcp.0, dhcp.1);
    assert_eq!(sent, [out(HOST, (SLAVE2, everyone), Kind::Udp, dhcp.0, dhcp.1, 64)]);
    let mdns = LinkAddr([1, 0, 0x5e, 0, 0, 0xfb]);
    assert_eq!(node.from(HOST).over_link(mdns).udp("172.16.1.50:5353", "224.0.0.251:5353"), []);
    assert_eq!(node.from(HOST).udp("172.16.1.50:5353", "224.0.0.251:5353"), []);
    assert_eq!(node.from(HOST).over_link(everyone).udp("172.16.1.50:68", "255.255.255.255:67"), []);
    assert_eq!(node.from(HOST).udp("172.16.1.50:68", "172.31.255.255:67"), []);
    assert_eq!(node.receive(HOST, &other(everyone, 0x88cc)), []);
    assert_eq!((node.dropped(Reason::NotForPollux), node.flows()), (5, 0));
    assert_eq!(node.from(ENS3).over_link(POD_7).syn(FAR, "10.151.51.8:80"), [], "another host's");
    assert_eq!(node.dropped(Reason::OtherHost), 1);
}

#[test]
fn no_07_loopback_is_closed_to_the_host_s_other_addresses_when_guarded() {
    use crate::tables::LoopbackGuard;
    let mut open = seed();
    let (host, loopback) = ("172.16.1.50:5", "127.0.0.1:10249");
    assert_eq!(open.from(HOST).syn(host, loopback).len(), 1);
    let mut guarded = cluster();
    guarded.family.loopback_guard = LoopbackGuard::On;
    open.set(guarded);
    // WK-08: an unreplied one is stopped too, when the guard comes into force.
    assert_eq!(open.from(HOST).syn(host, loopback), []);
    assert_eq!(open.from(HOST).syn("172.16.1.50:6", loopback), []);
    assert_eq!(open.dropped(Reason::LoopbackGuard), 2);
    assert_eq!(open.from(HOST).syn("127.0.0.1:6", loopback).len(), 1);
    assert_eq!(open.from(HOST).rst("127.0.0.1:7", loopback), [], "INVALID");
}
