//! IPv6 the whole way: Services, neighbour discovery, errors, and what stays on its link. A node with an uplink
//! and two pods wired as Calico does it; expected frames are etherparse's.

mod fragments;

use std::net::{Ipv6Addr, SocketAddrV6};

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;
use crate::packet::crc32c::Crc32c;
use crate::packet::ndp::{self, Flags, Ndp};
use crate::packet::testing::Parse;
use crate::packet::{Ethernet, V6};
use crate::route::{Interface, Interfaces, NextHop, RouteKind, own_routes};

pub(super) const UPLINK: PortId = PortId(0);
pub(super) const CALI_A: PortId = PortId(1);
pub(super) const CALI_B: PortId = PortId(2);
pub(super) const STACK: PortId = PortId(3);

const ROUTER: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 0x11]);
const POD_A: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 0xa]);
const POD_B: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 0xb]);

/// The node's address, and a client's outside.
pub(super) const NODE: &str = "2001:db8:1::50";
pub(super) const CLIENT: &str = "[2001:db8:9::9]:40000";
/// The pods'.
pub(super) const A: &str = "[fd00::a]:40000";
pub(super) const B: &str = "[fd00::b]:8080";
/// Every port's link-local address on a pod's link.
const GATEWAY_OF_PODS: &str = "fe80::ecee:eeff:feee:eeee";
pub(super) const WEB: &str = "[fd96::10]:80";

pub(super) fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn route6(prefix: &str, kind: RouteKind<V6>) -> Route<V6> {
    Route::new(prefix.parse().unwrap(), kind)
}

pub(super) fn tables6() -> Tables {
    let cali = |name: &str| PortInfo { proxy_arp: ProxyArp::On, ..port(name, Role::Pod, CALI_LINK, 1400) };
    let ports = vec![
        port("ens3", Role::Uplink, NODE_LINK, 1500),
        cali("cali-a"),
        cali("cali-b"),
        port("pollux0", Role::Host, HOST_LINK, 1500),
    ];
    let mut ens3 = Interface::new("ens3", Some(UPLINK));
    ens3.add(format!("{NODE}/64").parse().unwrap());
    ens3.add("fe80::50/64".parse().unwrap());
    let interfaces = Interfaces::new(vec![
        ens3,
        Interface::new("cali-a", Some(CALI_A)),
        Interface::new("cali-b", Some(CALI_B)),
    ]);
    let mut routes = own_routes(&interfaces);
    routes.extend([
        route6("::/0", RouteKind::Via(NextHop::gateway(UPLINK, v6("fe80::1")))),
        route6("fd00::a", RouteKind::Via(NextHop::on_link(CALI_A))),
        route6("fd00::b", RouteKind::Via(NextHop::on_link(CALI_B))),
        route6("fd00::/64", RouteKind::Blackhole),
        route6("fd01::/64", RouteKind::Unreachable),
        route6("fd02::/64", RouteKind::Prohibit),
        // As the kernel's table has it: one for every link, of which a lookup finds the first.
        route6("fe80::/64", RouteKind::Via(NextHop::on_link(UPLINK))),
    ]);
    Tables {
        ports: Arc::new(Ports::new(ports)),
        v4: None,
        v6: Some(FamilyTables {
            services: services6(),
            routing: Arc::new(Routing { fib: Fib::build(routes), interfaces: Arc::new(interfaces) }),
            ..FamilyTables::default()
        }),
        masquerade: Masquerade { ports: MasqueradePorts::Keep, ..Masquerade::default() },
    }
}

fn services6() -> Services<V6> {
    let mut builder = Builder::new(Policy {
        detector: Detector::Source("fd00::/48".parse().unwrap()),
        ..Policy::default()
    });
    let web = builder.backends([Backend { address: v6("fd00::b"), port: 8080 }]);
    let at = |address: &str, port, protocol| FrontendKey {
        address: FrontendAddress::Address(v6(address)),
        port,
        protocol,
    };
    let of = |key, kind, path, filter| Frontend {
        key,
        kind,
        service_port: 0,
        sources: None,
        path,
        filter,
        affinity: None,
    };
    for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
        let kind = FrontendKind::ClusterIp;
        builder.frontend(of(at("fd96::10", 80, protocol), kind, Path::Internal(web), None));
        let rejected = (Path::FallThrough, Some(FilterRule::Reject));
        builder.frontend(of(at("fd96::99", 80, protocol), kind, rejected.0, rejected.1));
    }
    let node_port = FrontendKey { address: FrontendAddress::NodePort, port: 30080, protocol: Protocol::TCP };
    builder.frontend(of(node_port, FrontendKind::NodePort, Path::Cluster(web), None));
    builder.build()
}

/// The node, knowing nobody.
pub(super) fn node() -> Node {
    let settings = Settings {
        connections: 4096,
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
        seed: 7,
        clients: 16,
    };
    let mut forwarder = Forwarder::new(&settings, pool()).unwrap();
    forwarder.set_tables(Arc::new(tables6()));
    let now = Instant::from_secs(100);
    Node { forwarder, now, sent: Sent::default(), events: Vec::new(), transmitted: 0 }
}

/// The node, knowing its pods and its router.
pub(super) fn settled() -> Node {
    let mut node = node();
    let now = node.now;
    for (port, address, link) in
        [(UPLINK, "fe80::1", ROUTER), (CALI_A, "fd00::a", POD_A), (CALI_B, "fd00::b", POD_B)]
    {
        node.forwarder.neighbours_v6().learn(port, v6(address), link, Learned::Static, now);
    }
    node
}

/// What packets carry here.
#[derive(Clone, Copy)]
pub(super) enum Carries {
    Syn,
    SynAck,
    Udp,
    Sctp,
    Echo,
    EchoReply,
}

/// An IPv6 packet.
pub(super) fn packet6(carries: Carries, source: &str, destination: &str, hop_limit: u8) -> Vec<u8> {
    let [from, to] = [source, destination].map(|end| end.parse::<SocketAddrV6>().unwrap());
    let ip = PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), hop_limit);
    let (payload, mut bytes) = (b"pollux", Vec::new());
    match carries {
        Carries::Syn => ip.tcp(from.port(), to.port(), 1000, 4096).syn().write(&mut bytes, payload),
        Carries::SynAck => {
            ip.tcp(from.port(), to.port(), 5000, 4096).syn().ack(1001).write(&mut bytes, payload)
        }
        Carries::Udp => ip.udp(from.port(), to.port()).write(&mut bytes, payload),
        Carries::Echo => ip.icmpv6_echo_request(from.port(), 1).write(&mut bytes, payload),
        Carries::EchoReply => ip.icmpv6_echo_reply(to.port(), 1).write(&mut bytes, payload),
        Carries::Sctp => {
            let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
            // An INIT chunk.
            let mut message = [&ports[..], &[0; 8], &[1, 0, 0, 20], &[9; 16]].concat();
            let mut crc = Crc32c::new();
            crc.update(&message);
            message[8..12].copy_from_slice(&crc.finish().to_le_bytes());
            ip.write(&mut bytes, IpNumber(132), &message)
        }
    }
    .unwrap();
    bytes
}

fn framed(source: LinkAddr, destination: LinkAddr, ip: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x86, 0xdd], ip].concat()
}

/// A frame of the peer behind a port, to the port.
pub(super) fn arriving(port: PortId, ip: &[u8]) -> Vec<u8> {
    let (peer, own) = match port {
        UPLINK => (ROUTER, NODE_LINK),
        CALI_A => (POD_A, CALI_LINK),
        CALI_B => (POD_B, CALI_LINK),
        _ => (HOST_LINK, HOST_SIDE),
    };
    framed(peer, own, ip)
}

/// A frame of a port to the peer behind it.
pub(super) fn leaving(port: PortId, ip: &[u8]) -> Out {
    let (own, peer) = match port {
        UPLINK => (NODE_LINK, ROUTER),
        CALI_A => (CALI_LINK, POD_A),
        CALI_B => (CALI_LINK, POD_B),
        _ => (HOST_SIDE, HOST_LINK),
    };
    Out { port, bytes: framed(own, peer, ip) }
}

fn ndp_of(out: &Out) -> Ndp {
    let mut packet = crate::packet::testing::packet(&out.bytes);
    let headers = V6::headers(&mut packet);
    Ndp::new_checked(&packet, &headers).unwrap().unwrap_or_else(|| panic!("not NDP: {out:?}"))
}

fn said(message: Ndp, port: PortId, source: LinkAddr, destination: LinkAddr) -> Vec<u8> {
    message.to_packet(pool(), port, source, destination).unwrap().to_vec()
}

/// The answer to a question of the node, from `link`.
fn answered(asked: &Out, link: LinkAddr) -> Vec<u8> {
    let question = ndp_of(asked);
    let answer = Ndp {
        kind: ndp::Kind::Advertisement(Flags { router: false, solicited: true, overrides: true }),
        source: question.target,
        destination: question.source,
        link: Some(link),
        ..question
    };
    said(answer, asked.port, link, question.link.unwrap())
}

/// Type, code, the four bytes behind, source, destination, quoted packet of the one error that left.
fn error6(sent: &[Out], port: PortId) -> ((u8, u8, u32), String, String, Vec<u8>) {
    let [out] = sent else { panic!("not one frame: {sent:?}") };
    assert_eq!(out.port, port);
    let sliced = SlicedPacket::from_ethernet(&out.bytes).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(message))) = (&sliced.net, &sliced.transport)
    else {
        panic!("not ICMPv6: {sliced:?}");
    };
    let header = ip.header();
    assert!(message.is_checksum_valid(header.source(), header.destination()));
    let kind = (message.type_u8(), message.code_u8(), u32::from_be_bytes(message.bytes5to8()));
    (
        kind,
        header.source_addr().to_string(),
        header.destination_addr().to_string(),
        message.payload().to_vec(),
    )
}

#[test]
fn wk_01_every_protocol_passes_a_cluster_ip_and_back() {
    use Carries::*;
    let mut node = settled();
    for (there, back) in [(Syn, SynAck), (Udp, Udp), (Sctp, Sctp)] {
        let sent = node.receive(CALI_A, &arriving(CALI_A, &packet6(there, A, WEB, 64)));
        assert_eq!(sent, [leaving(CALI_B, &packet6(there, A, B, 63))]);
        if matches!(back, Sctp) {
            continue; // an INIT is not answered by one
        }
        let sent = node.receive(CALI_B, &arriving(CALI_B, &packet6(back, B, A, 64)));
        assert_eq!(sent, [leaving(CALI_A, &packet6(back, WEB, A, 63))]);
    }
    assert_eq!(node.stats().dropped.total(), 0);
}

#[test]
fn mq_04_a_node_port_is_masqueraded_and_answered() {
    let mut node = settled();
    let (to, masqueraded) = (format!("[{NODE}]:30080"), format!("[{NODE}]:40000"));
    let sent = node.receive(UPLINK, &arriving(UPLINK, &packet6(Carries::Syn, CLIENT, &to, 64)));
    assert_eq!(sent, [leaving(CALI_B, &packet6(Carries::Syn, &masqueraded, B, 63))]);
    let sent = node.receive(CALI_B, &arriving(CALI_B, &packet6(Carries::SynAck, B, &masqueraded, 64)));
    assert_eq!(sent, [leaving(UPLINK, &packet6(Carries::SynAck, &to, CLIENT, 63))]);
}

#[test]
fn wk_01_the_host_reaches_a_cluster_ip_and_its_hop_limit_stays() {
    let mut node = settled();
    let host = format!("[{NODE}]:50000");
    let sent = node.receive(STACK, &arriving(STACK, &packet6(Carries::Syn, &host, WEB, 64)));
    assert_eq!(sent, [leaving(CALI_B, &packet6(Carries::Syn, &host, B, 64))]);
    let sent = node.receive(CALI_B, &arriving(CALI_B, &packet6(Carries::SynAck, B, &host, 64)));
    assert_eq!(sent, [leaving(STACK, &packet6(Carries::SynAck, WEB, &host, 64))]);
}

#[test]
fn mq_03_a_pod_reaches_itself_through_its_service() {
    let mut node = settled();
    let (b, masqueraded) = ("[fd00::b]:40000", format!("[{NODE}]:40000"));
    let sent = node.receive(CALI_B, &arriving(CALI_B, &packet6(Carries::Udp, b, WEB, 64)));
    assert_eq!(sent, [leaving(CALI_B, &packet6(Carries::Udp, &masqueraded, B, 63))]);
}

#[test]
fn ct_01_echo_passes_between_pods_with_extension_headers_too() {
    let mut node = settled();
    let echo = packet6(Carries::Echo, A, "[fd00::b]:0", 64);
    let sent = node.receive(CALI_A, &arriving(CALI_A, &echo));
    assert_eq!(sent, [leaving(CALI_B, &packet6(Carries::Echo, A, "[fd00::b]:0", 63))]);
    let sent = node.receive(CALI_B, &arriving(CALI_B, &packet6(Carries::EchoReply, "[fd00::b]:0", A, 64)));
    assert_eq!(sent, [leaving(CALI_A, &packet6(Carries::EchoReply, "[fd00::b]:0", A, 63))]);
    // Hop-by-hop options of padding alone, then destination options, in front of UDP to the Service.
    let with_options = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet.splice(40..40, [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
        packet[4..6].copy_from_slice(&30u16.to_be_bytes());
        packet[6] = 0;
        packet
    };
    let sent = node.receive(CALI_A, &arriving(CALI_A, &with_options(&packet6(Carries::Udp, A, WEB, 64))));
    assert_eq!(sent, [leaving(CALI_B, &with_options(&packet6(Carries::Udp, A, B, 63)))]);
}

#[test]
fn nb_02_the_first_packet_waits_for_an_advertisement_and_is_translated_once() {
    let mut node = node();
    let asked = node.receive(CALI_A, &arriving(CALI_A, &packet6(Carries::Syn, A, WEB, 64)));
    let [question] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(question.port, CALI_B);
    assert_eq!(question.bytes[..12], [0x33, 0x33, 0xff, 0, 0, 0xb, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
    assert_eq!(ndp_of(question), Ndp::solicitation(v6(GATEWAY_OF_PODS), v6("fd00::b"), CALI_LINK));
    assert_eq!(node.stats().held, 1);
    let sent = node.receive(CALI_B, &answered(question, POD_B));
    assert_eq!(sent, [leaving(CALI_B, &packet6(Carries::Syn, A, B, 63))]);
    let stats = node.stats();
    assert_eq!((stats.held, stats.originated, stats.delivered, stats.dropped.total()), (0, 1, 1, 0));
}

#[test]
fn nb_02_an_advertisement_that_another_worker_receives_is_told() {
    let mut node = node();
    let mut other = node.sibling();
    let asked = node.receive(CALI_A, &arriving(CALI_A, &packet6(Carries::Syn, A, WEB, 64)));
    assert_eq!(other.receive(CALI_B, &answered(&asked[0], POD_B)), []);
    let [news] = other.sent.1[..] else { panic!("{:?}", other.sent.1) };
    node.forwarder.hear(&news, node.now, &mut node.sent, &mut crate::forward::Nobody);
    assert_eq!(node.take_sent(), [leaving(CALI_B, &packet6(Carries::Syn, A, B, 63))]);
    assert!(node.sent.1.is_empty(), "it is not told again");
}

#[test]
fn nb_02_the_node_asks_from_the_waiting_packet_s_address_if_it_is_the_port_s() {
    let mut node = node();
    let to = "[2001:db8:1::9]:7";
    let host = format!("[{NODE}]:50000");
    let asked = node.receive(STACK, &arriving(STACK, &packet6(Carries::Udp, &host, to, 64)));
    assert_eq!(ndp_of(&asked[0]).source, v6(NODE));
    let mut node = self::node();
    let asked = node.receive(CALI_A, &arriving(CALI_A, &packet6(Carries::Udp, A, to, 64)));
    assert_eq!(ndp_of(&asked[0]).source, v6("fe80::50"), "a pod's is not");
    // A gateway with a link-local address is asked for as any other.
    let asked = node.receive(CALI_A, &arriving(CALI_A, &packet6(Carries::Udp, A, CLIENT, 64)));
    assert_eq!((ndp_of(&asked[0]).target, asked[0].port), (v6("fe80::1"), UPLINK));
}

#[test]
fn nb_02_the_wait_ends_in_address_unreachable() {
    let mut node = settled();
    let lost = packet6(Carries::Udp, A, "[2001:db8:1::9]:7", 64);
    node.receive(CALI_A, &arriving(CALI_A, &lost));
    let mut questions = 0;
    for _ in 0..9 {
        questions += node.tick(Duration::from_millis(100)).len();
    }
    assert_eq!(questions, 2, "at 300 and 700 ms");
    let sent = node.tick(Duration::from_millis(100));
    let (kind, source, destination, quoted) = error6(&sent, CALI_A);
    assert_eq!(kind, (1, 3, 0));
    assert_eq!((source.as_str(), destination.as_str()), (NODE, "fd00::a"));
    assert_eq!(quoted, lost);
    assert_eq!(node.dropped(Reason::NeighbourFailed), 1);
}

#[test]
fn nb_03_a_neighbour_in_use_is_confirmed_by_a_question_to_itself() {
    let mut node = settled();
    let now = node.now;
    let fresh = v6("2001:db8:1::9");
    node.forwarder.neighbours_v6().learn(UPLINK, fresh, SLAVE2, Learned::Kernel, now);
    let udp = packet6(Carries::Udp, A, "[2001:db8:1::9]:7", 64);
    assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &udp)).len(), 1);
    let asked = node.tick(Duration::from_millis(20));
    let [probe] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(probe.bytes[..6], SLAVE2.0);
    assert_eq!(ndp_of(probe), Ndp::probe(v6("fe80::50"), fresh, NODE_LINK));
    assert_eq!(node.receive(UPLINK, &answered(probe, SLAVE2)), []);
    let state = node.forwarder.neighbours_v6().iter().find(|one| one.address == fresh).unwrap().state;
    assert_eq!(state.name(), "REACHABLE");
}

#[test]
fn nb_01_pods_find_their_gateway_and_by_proxy_what_leads_elsewhere() {
    let mut node = settled();
    let ask = |node: &mut Node, target: &str| {
        let question = Ndp::solicitation(v6("fd00::a"), v6(target), POD_A);
        let group = ndp::group_link(question.destination);
        node.receive(CALI_A, &said(question, CALI_A, POD_A, group))
    };
    for (target, overrides) in [(GATEWAY_OF_PODS, true), ("2001:db8:7::7", false)] {
        let sent = ask(&mut node, target);
        let [answer] = &sent[..] else { panic!("{target}: {sent:?}") };
        assert_eq!((answer.port, &answer.bytes[..6]), (CALI_A, &POD_A.0[..]));
        let expected = Ndp {
            kind: ndp::Kind::Advertisement(Flags { router: true, solicited: true, overrides }),
            source: v6(GATEWAY_OF_PODS),
            destination: v6("fd00::a"),
            target: v6(target),
            link: Some(CALI_LINK),
        };
        assert_eq!(ndp_of(answer), expected);
    }
    assert_eq!(ask(&mut node, "fd00::a"), []);
    assert_eq!((node.stats().originated, node.stats().delivered), (2, 3));
}

#[test]
fn nb_01_what_is_not_a_valid_message_or_not_for_pollux_is_counted() {
    let mut node = settled();
    let question = Ndp::solicitation(v6("fd00::a"), v6(GATEWAY_OF_PODS), POD_A);
    let group = ndp::group_link(question.destination);
    let good = said(question, CALI_A, POD_A, group);
    let mut forwarded = good.clone();
    forwarded[21] = 64; // the hop limit is part of no checksum
    assert_eq!(node.receive(CALI_A, &forwarded), []);
    assert_eq!(node.dropped(Reason::NeighbourDiscovery), 1);
    let mut other = good.clone();
    other[..6].copy_from_slice(&POD_B.0);
    assert_eq!(node.receive(CALI_A, &other), []);
    assert_eq!(node.dropped(Reason::OtherHost), 1);
    assert_eq!(node.receive(STACK, &good), []);
    assert_eq!(node.dropped(Reason::NotForPollux), 1);
}

#[test]
fn fw_06_routers_messages_and_groups_go_to_the_host_as_they_are() {
    let mut node = settled();
    let icmp = |icmp_type: u8, destination: &str| {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6(v6("fe80::1").octets(), v6(destination).octets(), 255)
            .icmpv6_raw(icmp_type, 0, [64, 0, 0, 0])
            .write(&mut bytes, &[0; 8])
            .unwrap();
        bytes
    };
    // A router's advertisement to everyone, MLD's query, and an advertisement to the node itself.
    for icmp_type in [134, 130] {
        let frame = framed(ROUTER, LinkAddr([0x33, 0x33, 0, 0, 0, 1]), &icmp(icmp_type, "ff02::1"));
        let sent = node.receive(UPLINK, &frame);
        assert_eq!(sent, [Out { port: STACK, bytes: frame }], "{icmp_type}");
    }
    let advertised = icmp(134, "fe80::50");
    let sent = node.receive(UPLINK, &arriving(UPLINK, &advertised));
    assert_eq!(sent, [Out { port: STACK, bytes: framed(ROUTER, HOST_LINK, &advertised) }]);
}

#[test]
fn fw_06_on_a_shared_port_discovery_and_link_local_packets_are_left_to_the_kernel() {
    let mut node = settled();
    let mut tables = tables6();
    let ports =
        tables.ports.iter().map(|(_, port)| PortInfo { sharing: Sharing::WithKernel, ..port.clone() });
    tables.ports = Arc::new(Ports::new(ports.collect()));
    node.forwarder.set_tables(Arc::new(tables));
    let question = Ndp::solicitation(v6("2001:db8:1::9"), v6(NODE), ROUTER);
    let group = ndp::group_link(question.destination);
    assert_eq!(node.receive(UPLINK, &said(question, UPLINK, ROUTER, group)), []);
    let probe = Ndp::probe(v6("2001:db8:1::9"), v6(NODE), ROUTER);
    assert_eq!(node.receive(UPLINK, &said(probe, UPLINK, ROUTER, NODE_LINK)), []);
    let dhcp = packet6(Carries::Udp, "[fe80::1]:547", "[fe80::50]:546", 64);
    assert_eq!(node.receive(UPLINK, &arriving(UPLINK, &dhcp)), []);
    assert_eq!((node.stats().delivered, node.stats().dropped.total()), (3, 0));
}

#[test]
fn fw_06_link_local_destinations_and_groups_go_to_the_host_and_nowhere_else() {
    let mut node = settled();
    for destination in ["[fe80::50]:7", "[fe80::7]:7", "[ff02::5]:7", "[ff05::2]:7"] {
        let ip = packet6(Carries::Udp, CLIENT, destination, 64);
        let sent = node.receive(UPLINK, &arriving(UPLINK, &ip));
        let [out] = &sent[..] else { panic!("{destination}: {sent:?}") };
        assert_eq!((out.port, &out.bytes[14..]), (STACK, &ip[..]), "{destination}");
        // What the host sends there comes from no route of Pollux's, and would only go back.
        let ip = packet6(Carries::Udp, &format!("[{NODE}]:7"), destination, 64);
        assert_eq!(node.receive(STACK, &arriving(STACK, &ip)), []);
    }
    assert_eq!(node.dropped(Reason::NotForPollux), 4);
}

#[test]
fn fw_03_a_link_local_source_is_not_forwarded_and_is_told_on_its_link() {
    let mut node = settled();
    let now = node.now;
    node.forwarder.neighbours_v6().learn(CALI_A, v6("fe80::a"), POD_A, Learned::Static, now);
    for destination in ["[fd00::b]:7", WEB, CLIENT] {
        let ip = packet6(Carries::Udp, "[fe80::a]:7", destination, 64);
        let sent = node.receive(CALI_A, &arriving(CALI_A, &ip));
        let (kind, source, to, quoted) = error6(&sent, CALI_A);
        assert_eq!(kind, (1, 2, 0), "{destination}");
        assert_eq!((source.as_str(), to.as_str()), (GATEWAY_OF_PODS, "fe80::a"));
        assert_eq!(quoted, ip);
    }
    assert_eq!((node.dropped(Reason::BeyondScope), node.forwarder.flows_v6().len()), (3, 0));
    // To the node itself it is no matter.
    let ip = packet6(Carries::Udp, "[fe80::a]:7", &format!("[{NODE}]:7"), 64);
    assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &ip)), [leaving(STACK, &ip)]);
}

#[test]
fn fw_03_impossible_addresses_are_dropped() {
    let mut node = settled();
    for source in ["[ff02::9]:7", "[::1]:7", "[::]:7", "[::ffff:10.0.0.1]:7"] {
        let ip = packet6(Carries::Udp, source, "[fd00::b]:7", 64);
        assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &ip)), [], "{source}");
    }
    assert_eq!(node.dropped(Reason::MartianSource), 4);
    for destination in ["[::1]:7", "[::]:7"] {
        let ip = packet6(Carries::Udp, A, destination, 64);
        assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &ip)), [], "{destination}");
    }
    assert_eq!(node.dropped(Reason::MartianDestination), 2);
}

#[test]
fn rt_02_every_refusal_has_its_icmpv6_error() {
    let mut node = settled();
    let refused = |node: &mut Node, carries, destination: &str, hop_limit| {
        let ip = packet6(carries, A, destination, hop_limit);
        let sent = node.receive(CALI_A, &arriving(CALI_A, &ip));
        let (kind, source, to, quoted) = error6(&sent, CALI_A);
        assert_eq!((to.as_str(), &quoted), ("fd00::a", &ip));
        (kind, source)
    };
    let from_node = |kind| (kind, NODE.to_owned());
    // NO-01: every protocol; a Service's address is not the node's.
    assert_eq!(refused(&mut node, Carries::Syn, "[fd96::99]:80", 64), from_node((1, 4, 0)));
    assert_eq!(refused(&mut node, Carries::Udp, "[fd96::99]:80", 64), from_node((1, 4, 0)));
    assert_eq!(refused(&mut node, Carries::Udp, "[fd02::1]:80", 64), from_node((1, 1, 0)));
    assert_eq!(refused(&mut node, Carries::Udp, "[fd01::1]:80", 64), from_node((1, 0, 0)));
    assert_eq!(refused(&mut node, Carries::Udp, B, 1), from_node((3, 0, 0)));
    let ip = packet6(Carries::Udp, A, "[fd00::99]:80", 64);
    assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &ip)), [], "a blackhole is silent");
    let no_route = tables_without_default();
    node.forwarder.set_tables(Arc::new(no_route));
    assert_eq!(refused(&mut node, Carries::Udp, CLIENT, 64), from_node((1, 0, 0)));
}

fn tables_without_default() -> Tables {
    let mut tables = tables6();
    let v6 = tables.v6.as_mut().unwrap();
    let all = v6.routing.fib.routes().into_iter();
    let routes = all.filter(|route| route.prefix.len() > 0).cloned().collect();
    v6.routing = Arc::new(Routing { fib: Fib::build(routes), interfaces: v6.routing.interfaces.clone() });
    tables
}

#[test]
fn fw_02_what_is_too_big_is_answered_with_the_mtu_and_never_limited() {
    let mut node = settled();
    let mut ip = Vec::new();
    PacketBuilder::ipv6(v6("2001:db8:9::9").octets(), v6("fd00::a").octets(), 64)
        .udp(9, 9)
        .write(&mut ip, &[7; 1400])
        .unwrap();
    for _ in 0..10 {
        let sent = node.receive(UPLINK, &arriving(UPLINK, &ip));
        let (kind, source, _, quoted) = error6(&sent, UPLINK);
        assert_eq!((kind, source.as_str()), ((2, 0, 1400), NODE));
        assert_eq!(quoted, ip[..1280 - 48]);
    }
    assert_eq!(node.dropped(Reason::TooBig), 10);
}

#[test]
fn fw_01_errors_are_limited_for_each_destination() {
    let mut node = settled();
    let errors = |node: &mut Node, port, from: &str| {
        let ip = packet6(Carries::Udp, from, "[fd96::99]:80", 64);
        (0..40).map(|_| node.receive(port, &arriving(port, &ip)).len()).sum::<usize>()
    };
    assert_eq!((errors(&mut node, CALI_A, A), errors(&mut node, UPLINK, CLIENT)), (6, 6));
    node.tick(Duration::from_millis(300));
    assert_eq!((errors(&mut node, CALI_A, A), errors(&mut node, UPLINK, CLIENT)), (3, 3));
}

#[test]
fn no_01_a_refused_node_port_answers_from_the_address_that_was_asked() {
    let mut node = settled();
    let mut tables = tables6();
    let mut builder = Builder::new(Policy::default());
    let key = FrontendKey { address: FrontendAddress::NodePort, port: 30080, protocol: Protocol::TCP };
    builder.frontend(Frontend {
        key,
        kind: FrontendKind::NodePort,
        service_port: 0,
        sources: None,
        path: Path::FallThrough,
        filter: Some(FilterRule::Reject),
        affinity: None,
    });
    tables.v6.as_mut().unwrap().services = builder.build();
    node.forwarder.set_tables(Arc::new(tables));
    let ip = packet6(Carries::Syn, CLIENT, &format!("[{NODE}]:30080"), 64);
    let sent = node.receive(UPLINK, &arriving(UPLINK, &ip));
    let (kind, source, to, _) = error6(&sent, UPLINK);
    assert_eq!((kind, source.as_str(), to.as_str()), ((1, 4, 0), NODE, "2001:db8:9::9"));
    assert_eq!(Ethernet::new_checked(&sent[0].bytes).unwrap().destination, ROUTER);
}

#[test]
fn ct_08_a_packet_that_carries_nothing_and_unknown_messages_are_invalid() {
    let mut node = settled();
    let mut nothing = Vec::new();
    PacketBuilder::ipv6(v6("fd00::a").octets(), v6("fd00::b").octets(), 64)
        .write(&mut nothing, IpNumber(59), &[])
        .unwrap();
    assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &nothing)), []);
    let message = |icmp_type: u8| {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6(v6("fd00::a").octets(), v6("fd00::b").octets(), 64)
            .icmpv6_raw(icmp_type, 0, [0; 4])
            .write(&mut bytes, &[0; 8])
            .unwrap();
        bytes
    };
    assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &message(150))), []);
    assert_eq!(node.dropped(Reason::Invalid), 2);
    assert_eq!(node.receive(CALI_A, &arriving(CALI_A, &message(131))).len(), 1, "MLD is not tracked");
}
