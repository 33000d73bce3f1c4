//! Laws: nothing panics and no frame is lost from the books, whatever comes in under whatever tables; what
//! goes out and comes back is the identity.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::packet::testing::fix_v4_checksum;
use crate::packet::{ChecksumState, Gso, GsoKind};
use crate::route::{NextHop, RouteKind};
use crate::service::InternalMark;
use crate::tables::{LoopbackGuard, MasqueradeRule, Match};

/// Addresses that mean something to the seed's node, and some that should not be anywhere.
const ADDRESSES: &[&str] = &[
    "172.16.1.50",
    "172.16.1.88",
    "172.16.0.1",
    "10.151.51.7",
    "10.151.51.8",
    "10.151.51.1",
    "10.151.51.99",
    "10.151.49.8",
    "10.151.32.5",
    "10.150.18.86",
    "10.150.0.10",
    "10.150.0.99",
    "172.17.0.5",
    "172.17.0.1",
    "172.31.255.255",
    "127.0.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "0.0.0.0",
    "8.8.8.8",
    "240.1.2.3",
];

const PORTS: &[u16] = &[0, 1, 53, 80, 5353, 30080, 40000, 65535];

const INPUTS: [PortId; 6] = [ENS3, DOCKER0, CALI_7, CALI_8, HOST, PortId(9)];

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        any::<[bool; 4]>().prop_map(|[syn, ack, fin, rst]| Kind::Tcp { syn, ack, fin, rst }),
        Just(Kind::SYN),
        Just(Kind::ACK),
        Just(Kind::Udp),
        Just(Kind::Echo),
        Just(Kind::EchoReply),
    ]
}

#[derive(Clone, Debug)]
struct Step {
    port: usize,
    frame: Frame,
    to_group: bool,
    mutations: Vec<(prop::sample::Index, u8)>,
    fix: bool,
    cut: Option<prop::sample::Index>,
    gso: Option<u16>,
    partial: bool,
    fragment: Option<(u16, u8)>,
    tick: u64,
    tables: Option<Choice>,
}

/// Random tables.
#[derive(Clone, Debug)]
struct Choice {
    backends: usize,
    random: bool,
    always: bool,
    guard: bool,
    rule: bool,
    shared: [bool; 8],
    drop: bool,
    kind: usize,
    off: bool,
    ports: usize,
}

fn choices() -> impl Strategy<Value = Choice> {
    (0..4usize, any::<[bool; 6]>(), any::<[bool; 8]>(), 0..8usize, 5..9usize).prop_map(
        |(backends, [random, always, guard, rule, drop, off], shared, kind, ports)| Choice {
            backends,
            random,
            always,
            guard,
            rule,
            shared,
            drop,
            kind,
            off: off && kind == 0,
            ports,
        },
    )
}

impl Choice {
    fn tables(&self) -> Tables {
        let mut cluster = cluster();
        cluster.backends.truncate(self.backends);
        if self.random {
            cluster.masquerade = MasqueradePorts::Random;
        }
        if self.always {
            cluster.policy.internal_mark = InternalMark::Always;
        }
        if self.guard {
            cluster.family.loopback_guard = LoopbackGuard::On;
        }
        if self.rule {
            let out = Some(Match::Not(Some(CALI_8)));
            let rule = MasqueradeRule { name: "all".into(), source: None, destination: None, out };
            cluster.family.masquerade.push(rule);
        }
        for (port, shared) in cluster.ports.iter_mut().zip(self.shared) {
            port.sharing = if shared { Sharing::WithKernel } else { Sharing::Owned };
            port.foreign = if self.drop { Foreign::Drop } else { Foreign::ToHost };
        }
        let hop = NextHop::gateway(ENS3, "172.16.9.9".parse().unwrap());
        let kind = [
            RouteKind::Via(hop),
            RouteKind::Local,
            RouteKind::Host,
            RouteKind::Blackhole,
            RouteKind::Unreachable,
            RouteKind::Prohibit,
            RouteKind::Broadcast,
            RouteKind::Multicast,
        ][self.kind]
            .clone();
        cluster.routes.push(route("10.151.49.8/32", kind));
        cluster.ports.truncate(self.ports);
        let off = self.off;
        let mut tables = cluster.tables();
        if off {
            tables.v4 = None;
        }
        tables
    }
}

fn steps() -> impl Strategy<Value = Step> {
    let address = || prop::sample::select(ADDRESSES);
    let port = || prop::sample::select(PORTS);
    let ends = ((address(), port()), (address(), port()));
    let frame = (ends, kinds(), prop_oneof![Just(64u8), Just(1), any::<u8>()], any::<bool>(), 0..1700usize);
    (
        0..INPUTS.len(),
        frame,
        prop::bool::weighted(0.05),
        prop_oneof![3 => Just(Vec::new()), 1 => vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)],
        any::<bool>(),
        prop::option::weighted(0.05, any::<prop::sample::Index>()),
        (
            prop::option::weighted(0.05, any::<u16>()),
            prop::bool::weighted(0.1),
            prop::option::weighted(0.3, (prop_oneof![0..12u16, 0x2000..0x200cu16, any::<u16>()], 0..3u8)),
        ),
        prop_oneof![4 => Just(0u64), 1 => 0..1_500u64, 1 => Just(40_000u64)],
        prop::option::weighted(0.1, choices()),
    )
        .prop_map(
            |(port, frame, to_group, mutations, fix, cut, (gso, partial, fragment), tick, tables)| {
                let (((from, from_port), (to, to_port)), kind, ttl, dont_fragment, payload) = frame;
                let frame = Frame { kind, ttl, dont_fragment, payload: vec![7; payload], ..Frame::default() }
                    .between(&format!("{from}:{from_port}"), &format!("{to}:{to_port}"));
                Step { port, frame, to_group, mutations, fix, cut, gso, partial, fragment, tick, tables }
            },
        )
}

impl Step {
    fn packet(&self, node: &Node) -> Packet {
        let port = INPUTS[self.port];
        let link = node.forwarder.tables().ports.get(port).map_or(LinkAddr([2; 6]), |port| port.link_address);
        let to = if self.to_group { LinkAddr::BROADCAST } else { link };
        let frame = Frame { link_source: SLAVE2, link_destination: to, ..self.frame.clone() };
        let mut bytes = frame.bytes();
        if let Some((word, id)) = self.fragment {
            bytes[19] = id;
            bytes[20..22].copy_from_slice(&word.to_be_bytes());
            fix_v4_checksum(&mut bytes);
        }
        for (at, value) in &self.mutations {
            let at = at.index(bytes.len().min(60));
            bytes[at] = *value;
        }
        if self.fix && bytes[14] & 15 == 5 {
            fix_v4_checksum(&mut bytes);
        }
        if let Some(cut) = &self.cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let mut packet = Packet::copy_of(pool(), port, &bytes).unwrap();
        if self.partial {
            packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 16 };
        }
        packet.offload.gso =
            self.gso.map(|size| Gso { kind: GsoKind::Tcp4, ecn: false, size, header_len: 54 });
        packet
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn fw_05_whatever_comes_in_under_whatever_tables_is_in_the_books(
        steps in vec(steps(), 1..60), connections in 1..40usize
    ) {
        let mut small = cluster();
        small.connections = connections;
        let mut node = small.start();
        for step in &steps {
            if let Some(choice) = &step.tables {
                node.forwarder.set_tables(Arc::new(choice.tables()));
            }
            let packet = step.packet(&node);
            node.receive_packet(packet); // asserts the balance
            if step.tick > 0 {
                node.tick(Duration::from_millis(step.tick));
            }
        }
        // Everybody who waits gives up in the end; what was held for its first fragment may wait for a neighbour.
        node.tick(Duration::from_secs(31));
        for _ in 0..8 {
            node.tick(Duration::from_millis(1_001));
        }
        prop_assert_eq!(node.stats().held, 0);
        drop(node);
        prop_assert_eq!(pool().available(), pool().capacity(), "a frame was leaked");
    }

    #[test]
    fn out_and_back_is_the_identity(
        place in 0..3u32,
        from in prop::sample::select(&[(CALI_7, "10.151.51.7"), (CALI_8, "10.151.51.8"), (HOST, "172.16.1.50"),
            (DOCKER0, "172.17.0.5"), (ENS3, "172.16.1.88")][..]),
        client_port in 1..=u16::MAX,
        random: bool,
        always: bool,
        payload in vec(any::<u8>(), 0..300),
        tcp: bool,
    ) {
        let mut choice = cluster();
        if random { choice.masquerade = MasqueradePorts::Random; }
        if always { choice.policy.internal_mark = InternalMark::Always; }
        let mut node = choice.start().choosing(place);
        let (port, address) = from;
        let client = format!("{address}:{client_port}");
        let (kind, back_kind, service) =
            if tcp { (Kind::SYN, Kind::SYN_ACK, MYAPP) } else { (Kind::Udp, Kind::Udp, "10.150.0.10:53") };
        let mut sender = node.from(port);
        sender.frame.payload = payload.clone();
        let sent = sender.of(kind, &client, service);
        prop_assert_eq!(sent.len(), 1);
        let Out { port: out_port, bytes } = &sent[0];
        let end = |at: usize, port: usize| format!("{}.{}.{}.{}:{}", bytes[at], bytes[at + 1], bytes[at + 2],
            bytes[at + 3], u16::from_be_bytes([bytes[port], bytes[port + 1]]));
        let (source, destination) = (end(26, 34), end(30, 36));
        // What left is right to the last bit.
        let ttl = if port == HOST { 64 } else { 63 };
        let link = (LinkAddr(bytes[6..12].try_into().unwrap()), LinkAddr(bytes[..6].try_into().unwrap()));
        let frame = Frame { link_source: link.0, link_destination: link.1, kind, ttl, payload: payload.clone(),
            ..Frame::default() };
        prop_assert_eq!(&frame.between(&source, &destination).bytes(), bytes);
        // The backend answers what it saw; the client sees the Service answer.
        let mut answer = node.from(*out_port);
        answer.frame.payload = payload.clone();
        let sent = answer.of(back_kind, &destination, &source);
        prop_assert_eq!(sent.len(), 1);
        prop_assert_eq!(sent[0].port, port);
        let link = (LinkAddr(sent[0].bytes[6..12].try_into().unwrap()),
            LinkAddr(sent[0].bytes[..6].try_into().unwrap()));
        let ttl = if port == HOST { 64 } else { 63 };
        let frame = Frame { link_source: link.0, link_destination: link.1, kind: back_kind, ttl, payload,
            ..Frame::default() };
        prop_assert_eq!(&frame.between(service, &client).bytes(), &sent[0].bytes);
    }
}
