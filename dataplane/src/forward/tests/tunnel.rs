//! W10 and TN-01: into the tunnel, out of it, and what may not pass. Outer headers are etherparse's.

use etherparse::{IpDscp, IpEcn, IpNumber, Ipv4Header};

use super::*;
use crate::packet::{ChecksumState, Gso, GsoKind, Offload};

/// Behind 172.16.2.77, through tunl0.
const BEHIND: &str = "10.151.32.5:80";
const POD: &str = "10.151.51.7:40000";
const TO_FAR_NODE: (LinkAddr, LinkAddr) = (NODE_LINK, FAR_NODE);

/// A packet as IP.
fn ip(kind: Kind, source: &str, destination: &str, ttl: u8) -> Vec<u8> {
    Frame { kind, ttl, ..Frame::default() }.between(source, destination).bytes().split_off(14)
}

/// The header of what is in the tunnel.
fn outer(source: &str, destination: &str, inner: &[u8]) -> Ipv4Header {
    let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let (source, destination) = (address(source), address(destination));
    let mut header = Ipv4Header::new(inner.len() as u16, 64, IpNumber(4), source, destination).unwrap();
    header.dont_fragment = true;
    header
}

fn tunnelled(mut header: Ipv4Header, inner: &[u8]) -> Vec<u8> {
    header.header_checksum = header.calc_header_checksum();
    let mut packet = Vec::new();
    header.write(&mut packet).unwrap();
    packet.extend(inner);
    packet
}

/// What leaves through the tunnel.
fn through(inner: &[u8]) -> Out {
    let packet = tunnelled(outer("172.16.1.50", "172.16.2.77", inner), inner);
    Out { port: ENS3, bytes: [&TO_FAR_NODE.1.0[..], &TO_FAR_NODE.0.0, &[8, 0], &packet].concat() }
}

/// What came through it.
fn came_through(inner: &[u8]) -> Vec<u8> {
    arriving(&tunnelled(outer("172.16.2.77", "172.16.1.50", inner), inner))
}

fn arriving(packet: &[u8]) -> Vec<u8> {
    [&NODE_LINK.0[..], &FAR_NODE.0, &[8, 0], packet].concat()
}

/// myapp with its one backend behind the tunnel.
fn behind() -> Cluster {
    Cluster { backends: vec![BEHIND], ..cluster() }
}

#[test]
fn w10_a_pod_reaches_a_backend_through_the_tunnel_and_is_answered() {
    let mut node = behind().start();
    let sent = node.from(CALI_7).syn(POD, MYAPP);
    assert_eq!(sent, [through(&ip(Kind::SYN, POD, BEHIND, 63))]);
    let peer = "172.16.2.77".parse().unwrap();
    let source = "172.16.1.50".parse().unwrap();
    assert!(node.events.contains(&Event::Encapsulated { port: TUNL0, source, peer }));
    let sent = node.receive(ENS3, &came_through(&ip(Kind::SYN_ACK, BEHIND, POD, 62)));
    assert_eq!(sent, [out(CALI_7, TO_POD_7, Kind::SYN_ACK, MYAPP, POD, 61)]);
    assert!(node.events.contains(&Event::Decapsulated { port: TUNL0, peer }));
    let sent = node.from(CALI_7).ack(POD, MYAPP);
    assert_eq!(sent, [through(&ip(Kind::ACK, POD, BEHIND, 63))]);
    assert_eq!((node.flows(), node.stats().dropped.total()), (1, 0));
}

#[test]
fn w10_nat_04_a_marked_packet_takes_the_tunnel_s_own_address() {
    let mut node = behind().start();
    let (host, masqueraded) = ("172.16.1.50:56060", "10.151.51.0:56060");
    let sent = node.from(HOST).syn(host, MYAPP);
    assert_eq!(sent, [through(&ip(Kind::SYN, masqueraded, BEHIND, 64))]);
    let sent = node.receive(ENS3, &came_through(&ip(Kind::SYN_ACK, BEHIND, masqueraded, 62)));
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::SYN_ACK, MYAPP, host, 62)]);
}

#[test]
fn w10_a_pod_behind_the_tunnel_reaches_a_pod_here_and_the_node() {
    let mut node = seed();
    let (far, near) = ("10.151.32.5:40000", "10.151.51.8:80");
    let sent = node.receive(ENS3, &came_through(&ip(Kind::SYN, far, near, 63)));
    assert_eq!(sent, [out(CALI_8, TO_POD_8, Kind::SYN, far, near, 62)]);
    let sent = node.from(CALI_8).syn_ack(near, far);
    assert_eq!(sent, [through(&ip(Kind::SYN_ACK, near, far, 63))]);
    let sent = node.receive(ENS3, &came_through(&ip(Kind::Echo, "10.151.32.5:7", "10.151.51.0:1", 63)));
    assert_eq!(sent, [out(HOST, TO_HOST, Kind::Echo, "10.151.32.5:7", "10.151.51.0:1", 63)]);
}

#[test]
fn tn_01_ttl_and_dont_fragment_are_inherited_where_the_tunnel_says_so() {
    let mut inheriting = behind();
    inheriting.tunnel = Tunnel { local: None, ttl: TunnelTtl::Inherit, dont_fragment: TunnelDf::Inherit };
    let mut node = inheriting.start();
    let mut identifications = std::collections::BTreeSet::new();
    for port in 1..=4 {
        let pod = format!("10.151.51.7:{port}");
        let sent = node.from(CALI_7).ttl(9).syn(&pod, MYAPP);
        let (header, inner) = Ipv4Header::from_slice(&sent[0].bytes[14..]).unwrap();
        // No local address is set: the one that the route to the peer gives.
        let mut expected = outer("172.16.1.50", "172.16.2.77", inner);
        (expected.time_to_live, expected.dont_fragment) = (8, false);
        expected.identification = header.identification;
        assert_eq!(sent[0].bytes[14..], tunnelled(expected, &ip(Kind::SYN, &pod, BEHIND, 8)));
        identifications.insert(header.identification);
    }
    assert!(identifications.len() > 1, "what may be fragmented has an identification: {identifications:?}");
    let sent = node.from(CALI_7).dont_fragment().syn("10.151.51.7:5", MYAPP);
    let (header, _) = Ipv4Header::from_slice(&sent[0].bytes[14..]).unwrap();
    assert_eq!((header.dont_fragment, header.identification), (true, 0), "RFC 6864");
}

#[test]
fn tn_01_type_of_service_goes_along_and_congestion_is_marked_as_rfc_6040_says() {
    let with_tos = |mut packet: Vec<u8>, tos: u8| {
        packet[1] = tos;
        let mut frame = [&[0; 14][..], &packet].concat();
        crate::packet::testing::fix_v4_checksum(&mut frame);
        frame.split_off(14)
    };
    let mut node = behind().start();
    for (inner, outside) in [(0xb8, 0xb8), (0xb9, 0xb9), (0xba, 0xba), (0xbb, 0xba)] {
        let frame = node.from(CALI_7).bytes(Kind::SYN, POD, MYAPP);
        let sent = node.receive(CALI_7, &[&frame[..14], &with_tos(frame[14..].to_vec(), inner)].concat());
        let expected = with_tos(ip(Kind::SYN, POD, BEHIND, 63), inner);
        assert_eq!(sent[0].bytes[15], outside);
        assert_eq!(sent[0].bytes[34..], expected);
    }
    // Inner, outer, what comes out.
    for (inner, outside, left) in [
        (0, 0, Some(0)),
        (0, 2, Some(0)),
        (0, 3, None),
        (2, 0, Some(2)),
        (2, 3, Some(3)),
        (1, 3, Some(3)),
        (3, 0, Some(3)),
        (2, 1, Some(2)),
    ] {
        let mut header = outer("172.16.2.77", "172.16.1.50", &[0; 46]);
        (header.dscp, header.ecn) = (IpDscp::try_new(5).unwrap(), IpEcn::try_new(outside).unwrap());
        let packet = with_tos(ip(Kind::SYN_ACK, BEHIND, POD, 62), inner);
        let sent = node.receive(ENS3, &arriving(&tunnelled(header, &packet)));
        let expected = left.map(|left| with_tos(ip(Kind::SYN_ACK, MYAPP, POD, 61), left));
        assert_eq!(sent.first().map(|out| out.bytes[14..].to_vec()), expected, "{inner} in {outside}");
    }
    assert_eq!(node.dropped(Reason::TunnelEcn), 1);
}

#[test]
fn tn_01_only_peers_of_the_tunnel_are_heard() {
    let mut node = seed();
    let inner = ip(Kind::SYN, "10.151.32.5:40000", "10.151.51.8:80", 63);
    let stranger = tunnelled(outer("172.16.1.88", "172.16.1.50", &inner), &inner);
    assert_eq!(node.receive(ENS3, &arriving(&stranger)), []);
    assert_eq!((node.dropped(Reason::TunnelPeer), node.flows()), (1, 0));
    // Another of the node's addresses is not this tunnel's end: the host's stack may have one of its own.
    let elsewhere = tunnelled(outer("172.16.2.77", "172.17.0.1", &inner), &inner);
    let sent = node.receive(ENS3, &arriving(&elsewhere));
    assert_eq!((sent.len(), sent[0].port, &sent[0].bytes[14..]), (1, HOST, &elsewhere[..]));
    // And what is for somebody else passes by.
    let passing = tunnelled(outer("172.16.2.77", "10.151.51.8", &inner), &inner);
    let sent = node.receive(ENS3, &arriving(&passing));
    assert_eq!((sent.len(), sent[0].port), (1, CALI_8));
    assert_eq!(sent[0].bytes[34..], inner);
}

#[test]
fn tn_01_what_is_inside_is_judged_like_anything_received() {
    let mut node = seed();
    let mut receive = |inner: &[u8]| node.receive(ENS3, &came_through(inner));
    assert_eq!(receive(&[]), []);
    assert_eq!(receive(&[0x45; 19]), []);
    let whole = ip(Kind::Udp, "10.151.32.5:5", "10.151.51.8:9", 63);
    for len in 20..whole.len() {
        assert_eq!(receive(&whole[..len]), [], "{len}");
    }
    assert_eq!(receive(&[&[0x65], &whole[1..]].concat()), []);
    assert_eq!(receive(&ip(Kind::Udp, "172.16.1.50:5", "10.151.51.8:9", 63)), []);
    let stats = node.stats();
    let reasons: Vec<_> = stats.dropped.iter().map(|(reason, _)| reason).collect();
    let expected = [Reason::FrameTruncated, Reason::IpVersion, Reason::IpTotalLength, Reason::MartianSource];
    assert_eq!(reasons, expected);
    // A tunnel in the tunnel is not opened: it goes to the host as what it is.
    let nested = tunnelled(outer("172.16.2.77", "172.16.1.50", &whole), &whole);
    let sent = node.receive(ENS3, &came_through(&nested));
    assert_eq!((sent.len(), sent[0].port, &sent[0].bytes[14..]), (1, HOST, &nested[..]));
}

#[test]
fn fw_02_the_tunnel_s_mtu_is_said_and_so_is_a_smaller_one_of_the_way() {
    let mut node = behind().start();
    let fits = node.from(CALI_7).dont_fragment().payload(1440).syn(POD, MYAPP);
    assert_eq!((fits[0].port, fits[0].bytes.len()), (ENS3, 1514));
    let asked = node.from(CALI_7).dont_fragment().payload(1441).bytes(Kind::SYN, POD, MYAPP);
    let error = icmp_error(&node.receive(CALI_7, &asked));
    assert_eq!((error.port, error.kind, error.mtu), (CALI_7, (3, 4), 1480));
    assert_eq!(error.quoted, asked[14..][..548]);
    let mut narrow = behind();
    narrow.ports[ENS3.index()].mtu = 1400;
    let mut node = narrow.start();
    node.from(CALI_7).syn(POD, MYAPP);
    let error = icmp_error(&node.from(CALI_7).dont_fragment().payload(1400).syn(POD, MYAPP));
    assert_eq!((error.kind, error.mtu), ((3, 4), 1380), "minus the tunnel's header");
}

#[test]
fn fw_01_errors_go_through_the_tunnel_too() {
    let mut node = seed();
    let inner = ip(Kind::Udp, "10.151.32.5:5", "10.151.51.8:9", 1);
    let sent = node.receive(ENS3, &came_through(&inner));
    let (header, packet) = Ipv4Header::from_slice(&sent[0].bytes[14..]).unwrap();
    assert_eq!((header.protocol, header.destination), (IpNumber(4), [172, 16, 2, 77]));
    let error = wire::IcmpError::read(TUNL0, &[&[0; 12][..], &[8, 0], packet].concat());
    assert_eq!((error.kind, error.source.to_string()), ((11, 0), "10.151.51.0".into()));
    assert_eq!(error.quoted, inner);
}

#[test]
fn nb_02_what_is_in_the_tunnel_waits_for_the_peer_s_link() {
    let mut far = behind();
    far.routes.retain(|route| route.prefix != "10.151.32.0/24".parse().unwrap());
    let peer: std::net::Ipv4Addr = "172.16.2.78".parse().unwrap();
    let hop = crate::route::NextHop { onlink: true, ..crate::route::NextHop::gateway(TUNL0, peer) };
    far.routes.push(route("10.151.32.0/24", crate::route::RouteKind::Via(hop)));
    let mut node = far.start();
    let asked = node.from(CALI_7).syn(POD, MYAPP);
    assert_eq!((asked.len(), asked[0].port, &asked[0].bytes[12..14]), (1, ENS3, &[8, 6][..]));
    assert_eq!(node.stats().held, 1);
    let now = node.now;
    node.forwarder.neighbours_v4().learn(ENS3, peer, SLAVE2, Learned::Static, now);
    let sent = node.tick(Duration::from_millis(1));
    let inner = ip(Kind::SYN, POD, BEHIND, 63);
    let packet = tunnelled(outer("172.16.1.50", "172.16.2.78", &inner), &inner);
    assert_eq!(sent, [Out { port: ENS3, bytes: [&SLAVE2.0[..], &NODE_LINK.0, &[8, 0], &packet].concat() }]);
}

#[test]
fn tn_01_a_peer_behind_the_tunnel_itself_is_a_loop() {
    let mut looping = behind();
    looping
        .routes
        .retain(|route| route.prefix.len() != 0 && route.prefix != "172.16.0.0/12".parse().unwrap());
    let hop = crate::route::NextHop {
        onlink: true,
        ..crate::route::NextHop::gateway(TUNL0, "172.16.2.77".parse().unwrap())
    };
    looping.routes.push(route("172.16.2.0/24", crate::route::RouteKind::Via(hop)));
    let mut node = looping.start();
    assert_eq!(node.from(CALI_7).syn(POD, MYAPP), []);
    assert_eq!(node.dropped(Reason::TunnelLoop), 1);
}

#[test]
fn pt_04_super_frames_and_partial_checksums_are_finished_before_the_tunnel() {
    let mut node = behind().start();
    let frame = node.from(CALI_7).payload(4_000).bytes(Kind::ACK, POD, MYAPP);
    let mut packet = Packet::copy_of(pool(), CALI_7, &frame).unwrap();
    let checksum = ChecksumState::Partial { start: 34, offset: 16 };
    let gso = Gso { kind: GsoKind::Tcp4, ecn: false, size: 1440, header_len: 54 };
    packet.offload = Offload { checksum, gso: Some(gso) };
    let sent = node.receive_packet(packet);
    assert_eq!(sent.iter().map(|out| out.bytes.len()).collect::<Vec<_>>(), [1514, 1514, 1194]);
    assert_eq!(node.stats().split, 2);
    let mut data = Vec::new();
    for out in &sent {
        let (header, inner) = Ipv4Header::from_slice(&out.bytes[14..]).unwrap();
        assert_eq!((header.destination, header.protocol), ([172, 16, 2, 77], IpNumber(4)));
        let inner = etherparse::SlicedPacket::from_ip(inner).unwrap();
        let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
            (&inner.net, &inner.transport)
        else {
            panic!("not TCP: {inner:?}")
        };
        assert_eq!(ip.header().destination_addr().to_string(), "10.151.32.5");
        let checksum = tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), tcp.payload());
        assert_eq!(Ok(tcp.checksum()), checksum);
        data.extend_from_slice(tcp.payload());
    }
    assert_eq!(data, frame[54..]);
}

#[test]
fn pt_04_a_super_frame_out_of_the_tunnel_keeps_its_marks() {
    let mut node = seed();
    let (far, near) = ("10.151.32.5:40000", "10.151.51.8:80");
    let long = Frame { kind: Kind::ACK, payload: vec![7; 3_000], ttl: 63, ..Frame::default() };
    let inner = long.between(far, near).bytes().split_off(14);
    let mut packet = Packet::copy_of(pool(), ENS3, &came_through(&inner)).unwrap();
    let gso = Gso { kind: GsoKind::Tcp4, ecn: false, size: 1400, header_len: 74 };
    packet.offload = Offload { checksum: ChecksumState::Partial { start: 54, offset: 16 }, gso: Some(gso) };
    let mut burst: Burst = [packet].into_iter().collect();
    node.forwarder.stats_mut().received += 1;
    node.forwarder.forward(&mut burst, node.now, &mut node.sent);
    let (port, packet) = &node.sent.0[0];
    assert_eq!(*port, CALI_8);
    assert_eq!(packet.offload.checksum, ChecksumState::Partial { start: 34, offset: 16 });
    assert_eq!(packet.offload.gso, Some(Gso { header_len: 54, ..gso }));
    node.take_sent();
}

#[test]
fn rt_05_an_established_flow_moves_into_the_tunnel_with_its_route() {
    let mut node = behind().start();
    let mut elsewhere = behind();
    elsewhere.routes.retain(|route| route.prefix != "10.151.32.0/24".parse().unwrap());
    node.set(elsewhere);
    let sent = node.from(CALI_7).syn(POD, MYAPP);
    assert_eq!(sent, [out(ENS3, TO_GATEWAY, Kind::SYN, POD, BEHIND, 63)]);
    node.set(behind());
    assert_eq!(node.from(CALI_7).syn(POD, MYAPP), [through(&ip(Kind::SYN, POD, BEHIND, 63))]);
}

#[test]
fn fw_02_what_may_be_fragmented_enters_the_tunnel_in_fragments() {
    let mut node = behind().start();
    let asked = node.from(CALI_7).payload(2_000).bytes(Kind::Udp, POD, "10.151.32.5:9");
    let sent = node.receive(CALI_7, &asked);
    let mut data = Vec::new();
    for out in &sent {
        assert_eq!(out.port, ENS3);
        let (header, inner) = Ipv4Header::from_slice(&out.bytes[14..]).unwrap();
        let protocol = (header.protocol, header.destination, header.dont_fragment);
        assert_eq!(protocol, (IpNumber(4), [172, 16, 2, 77], true));
        let (header, part) = Ipv4Header::from_slice(inner).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!((header.time_to_live, header.identification), (63, 0x1234));
        assert!(inner.len() <= 1480);
        assert_eq!(usize::from(header.fragment_offset.byte_offset()), data.len());
        data.extend_from_slice(part);
        assert_eq!(header.more_fragments, data.len() < 2_008);
    }
    assert_eq!((sent.len(), node.stats().split), (2, 1));
    assert_eq!(data, asked[34..], "nothing is translated on this way");
}
