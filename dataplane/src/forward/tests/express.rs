//! The express way is a shorter way to the same place: two nodes in the same state, of which one takes no packet
//! for plain, send the same frames, tell the same events, count the same and know the same connections.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::forward::{Class, Express, Nobody};
use crate::packet::plain::Plain;
use crate::packet::testing::fix_v4_checksum;
use crate::packet::{ChecksumState, Gso, GsoKind, Offload};
use crate::route::{NextHop, RouteKind};

/// One direction of a connection: where its packets come in, and between whom.
#[derive(Clone, Debug)]
struct Flow {
    port: PortId,
    kind: Kind,
    source: String,
    destination: String,
}

/// Opens a connection, and uses it in both directions.
fn open(node: &mut Node, port: PortId, kind: Kind, client: &str, service: &str) -> [Flow; 2] {
    let (first, answer) = if kind == Kind::Udp { (kind, kind) } else { (Kind::SYN, Kind::SYN_ACK) };
    let sent = node.from(port).of(first, client, service);
    let [Out { port: out, bytes }] = &sent[..] else { panic!("not one frame: {sent:?}") };
    let end = |at: usize, port: usize| {
        let address: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
        format!(
            "{}:{}",
            std::net::Ipv4Addr::from(address),
            u16::from_be_bytes([bytes[port], bytes[port + 1]])
        )
    };
    let back = Flow { port: *out, kind, source: end(30, 36), destination: end(26, 34) };
    assert_eq!(node.from(back.port).of(answer, &back.source, &back.destination).len(), 1);
    assert_eq!(node.from(port).of(kind, client, service).len(), 1);
    assert_eq!(node.from(back.port).of(kind, &back.source, &back.destination).len(), 1);
    [Flow { port, kind, source: client.into(), destination: service.into() }, back]
}

/// A node with connections from outside, from a pod and from the host, of TCP and UDP.
fn in_use() -> (Node, Vec<Flow>) {
    let mut node = seed().choosing(ON_CALI_8);
    let mut flows = Vec::new();
    for (port, client) in
        [(ENS3, "172.16.1.88:40000"), (CALI_7, "10.151.51.7:40001"), (HOST, "172.16.1.50:40002")]
    {
        flows.extend(open(&mut node, port, Kind::ACK, client, MYAPP));
        flows.extend(open(&mut node, port, Kind::Udp, client, "10.150.0.10:53"));
    }
    (node, flows)
}

/// Where the packet goes by the express way, if it takes it.
fn express(node: &Node, packet: &mut Packet) -> Option<PortId> {
    let flows = node.forwarder.flows_v4();
    let mut plain = Express::begin(flows, &Plain::read(packet)?);
    plain.lookup.probe(flows);
    let flows = std::sync::Arc::clone(node.forwarder.flows_v4());
    node.forwarder.express(&flows, packet, &plain, node.now, &mut Nobody)
}

#[test]
fn packets_of_connections_in_use_take_the_express_way() {
    let (mut node, flows) = in_use();
    let mut to_ports = 0;
    for Flow { port, kind, source, destination } in flows {
        let mut sender = node.from(port);
        sender.frame.payload = vec![7; 12];
        let bytes = sender.bytes(kind, &source, &destination);
        let mut packet = Packet::copy_of(pool(), port, &bytes).unwrap();
        match express(&node, &mut packet) {
            Some(out) => {
                let sent = node.receive(port, &bytes);
                assert_eq!(sent, [Out { port: out, bytes: packet.to_vec() }]);
                to_ports += 1;
            }
            // What is for the host is not: it is delivered by another function.
            None => assert_eq!(destination, "172.16.1.50:40002"),
        }
    }
    assert!(to_ports >= 9, "{to_ports}");
}

#[test]
fn a_datagram_shorter_than_the_view_is_forwarded_without_its_padding() {
    let (mut node, flows) = in_use();
    let Flow { port, kind, source, destination } =
        flows.iter().find(|flow| flow.kind == Kind::Udp && flow.port == CALI_8).unwrap();
    let mut bytes = node.from(*port).payload(11).bytes(*kind, source, destination);
    assert_eq!(bytes.len(), 53);
    bytes.resize(60, 0xaa);
    let sent = node.receive(*port, &bytes);
    assert_eq!(sent.iter().map(|out| out.bytes.len()).collect::<Vec<_>>(), [53]);
}

#[derive(Clone, Debug)]
struct Step {
    flow: Index,
    tcp_flags: u8,
    ttl: u8,
    payload: usize,
    padding: usize,
    dont_fragment: bool,
    mutation: Option<(Index, u8)>,
    partial: Option<u16>,
    gso: Option<u16>,
    pause: u64,
    /// New tables come before it: the seed's, or such that drop what is for the backend.
    tables: Option<RouteKind<V4>>,
}

fn steps() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![8 => Just(0x10u8), 2 => Just(0x18u8), 1 => any::<u8>()];
    let ttl = prop_oneof![8 => Just(64u8), 1 => 0..3u8];
    // Of the lengths around an MTU: 1480 and 1500, with TCP and UDP.
    let full = prop::sample::select(&[1440usize, 1441, 1452, 1453, 1460, 1461, 1472, 1473][..]);
    let payload = prop_oneof![6 => 0..64usize, 2 => full, 1 => 1_700..4_000usize];
    let kind = prop_oneof![Just(RouteKind::Blackhole), Just(RouteKind::Via(NextHop::on_link(CALI_8)))];
    let partial = prop::option::weighted(0.2, prop_oneof![3 => Just(34u16), 1 => any::<u16>()]);
    (
        any::<Index>(),
        (flags, ttl, any::<bool>()),
        (payload, prop_oneof![4 => Just(0usize), 1 => 1..30usize]),
        prop::option::weighted(0.25, (any::<Index>(), any::<u8>())),
        (partial, prop::option::weighted(0.1, 100..1_500u16)),
        (prop_oneof![8 => Just(0u64), 1 => 0..700u64], prop::option::weighted(0.05, kind)),
    )
        .prop_map(|(flow, flags, (payload, padding), mutation, (partial, gso), (pause, tables))| {
            let (tcp_flags, ttl, dont_fragment) = flags;
            Step {
                flow,
                tcp_flags,
                ttl,
                payload,
                padding,
                dont_fragment,
                mutation,
                partial,
                gso,
                pause,
                tables,
            }
        })
}

impl Step {
    fn packet(&self, node: &mut Node, flows: &[Flow]) -> Packet {
        let Flow { port, kind, source, destination } = self.flow.get(flows);
        let mut sender = node.from(*port).ttl(self.ttl).payload(self.payload);
        sender.frame.dont_fragment = self.dont_fragment;
        let mut bytes = sender.bytes(*kind, source, destination);
        if *kind != Kind::Udp {
            bytes[47] = self.tcp_flags;
        }
        if let Some((at, value)) = &self.mutation {
            let at = at.index(bytes.len().min(60));
            bytes[at] = *value;
            if bytes[14] & 15 == 5 && value % 4 != 0 {
                fix_v4_checksum(&mut bytes);
            }
        }
        bytes.resize(bytes.len() + self.padding, 0xaa);
        let mut packet = Packet::copy_of(pool(), *port, &bytes).unwrap();
        if let Some(start) = self.partial {
            packet.offload.checksum = ChecksumState::Partial { start, offset: 16 };
        }
        packet.offload.gso =
            self.gso.map(|size| Gso { kind: GsoKind::Tcp4, ecn: false, size, header_len: 54 });
        packet
    }
}

/// What a node did with a packet.
type Done = (Vec<(PortId, Vec<u8>, Offload)>, Vec<Event>, Stats);

fn done(node: &mut Node) -> Done {
    let sent = node.sent.0.iter().map(|(port, packet)| (*port, packet.to_vec(), packet.offload)).collect();
    node.take_sent();
    (sent, std::mem::take(&mut node.events), node.stats())
}

fn forward(node: &mut Node, packet: Packet) -> Done {
    node.forwarder.stats_mut().received += 1;
    let mut burst: Burst = [packet].into_iter().collect();
    node.forwarder.forward_observed(&mut burst, node.now, &mut node.sent, &mut node.events);
    done(node)
}

/// As [`forward`], with every packet taken for one that is not plain.
fn forward_in_full(node: &mut Node, mut packet: Packet) -> Done {
    node.forwarder.stats_mut().received += 1;
    let mut class = node.forwarder.classify(&mut packet);
    if let Class::V4(_, lookup) = &mut class {
        lookup.probe(&node.forwarder.v4.flows);
    }
    node.forwarder.in_full(packet, &class, node.now, &mut node.sent, &mut node.events);
    node.forwarder.count_held();
    done(node)
}

proptest! {
    #[test]
    fn fw_05_the_express_way_and_the_full_one_do_the_same(steps in vec(steps(), 1..40)) {
        let (mut short, flows) = in_use();
        let (mut full, _) = in_use();
        short.events.clear();
        full.events.clear();
        for step in &steps {
            if let Some(kind) = &step.tables {
                for node in [&mut short, &mut full] {
                    let mut changed = cluster();
                    changed.routes.push(route("10.151.51.8/32", kind.clone()));
                    node.set(changed);
                }
            }
            let (one, other) = (step.packet(&mut short, &flows), step.packet(&mut full, &flows));
            prop_assert_eq!(forward(&mut short, one), forward_in_full(&mut full, other));
            if step.pause > 0 {
                let pause = Duration::from_millis(step.pause);
                prop_assert_eq!(short.tick(pause), full.tick(pause));
            }
        }
        let known = |node: &Node| node.forwarder.flows_v4().list(0, usize::MAX, node.now.into());
        prop_assert_eq!(known(&short), known(&full));
    }
}
