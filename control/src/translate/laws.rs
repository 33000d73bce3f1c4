//! UP-01: whatever way led to the objects, the translation is the same as of all of them at once.

use std::time::Duration;

use jiff::Timestamp;
use pollux_dataplane::packet::{Protocol, V4, V6};
use pollux_dataplane::service::{BackendSet, Path};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::cluster::{Deletion, EndpointSlice, IpPrefix, Node, ServicePort, SliceEndpoint, SlicePort};
use crate::config::proxy::NodePortSelection;

/// One step: what becomes of one object.
#[derive(Clone, Debug)]
enum Step {
    Service(Service),
    NoService(usize),
    Slice(EndpointSlice),
    NoSlice(usize),
    Node(Option<Node>),
    NodePortAddresses(Vec<&'static str>),
    LocalAddresses(Vec<&'static str>),
}

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const SLICES: [&str; 5] = ["s", "t", "u", "v", "w"];

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("default", name)
}

fn some_of(addresses: &'static [&'static str]) -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(addresses, 0..=addresses.len())
        .prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn prefixes(texts: &[&str]) -> Vec<IpPrefix> {
    texts.iter().map(|text| IpPrefix::parse(text).unwrap()).collect()
}

fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let node_port = select(&[None, Some(30_080u16), Some(30_081)][..]);
    let all = [("", Protocol::TCP, 80), ("dns", Protocol::UDP, 53), ("admin", Protocol::TCP, 81)];
    let ports = subsequence(all.to_vec(), 0..=3).prop_shuffle();
    (ports, vec(node_port, 3)).prop_map(|(ports, node_ports)| {
        let port = |((name, protocol, port), node_port): (&(&str, Protocol, u16), Option<u16>)| ServicePort {
            name: (*name).to_owned(),
            protocol: *protocol,
            port: *port,
            node_port,
        };
        ports.iter().zip(node_ports).map(port).collect()
    })
}

fn service() -> impl Strategy<Value = Service> {
    use ServiceType::{ClusterIP, ExternalName, LoadBalancer, NodePort};
    let policy = || select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]);
    // Few addresses: Services are to get into each other's way.
    let cluster_ips = prop_oneof![
        Just(vec!["10.96.0.1"]),
        Just(vec!["10.96.0.2", "fd00:96::2"]),
        Just(vec!["fd00:96::3"]),
        Just(vec!["10.96.0.4"]),
        Just(vec![]),
    ];
    let ranges =
        subsequence(&["203.0.113.0/24", "192.168.0.0/24", "2001:db8:1::/48", "0.0.0.0/0"][..], 0..=2);
    let identity = (
        select(&SERVICES[..]),
        option::of(0..3i64),
        prop_oneof![
            3 => Just(ClusterIP), 3 => Just(NodePort), 6 => Just(LoadBalancer), 1 => Just(ExternalName)
        ],
        prop_oneof![9 => Just(None), 1 => Just(Some("edge")), 1 => Just(Some("other"))],
    );
    let addresses = (
        cluster_ips,
        some_of(&["192.0.2.1", "192.0.2.2", "10.96.0.4", "2001:db8::1"]),
        some_of(&["192.0.2.2", "192.0.2.3", "2001:db8::1"]),
        ranges,
    );
    let rest = (
        service_ports(),
        policy(),
        policy(),
        select(&[None, Some(31_000u16)][..]),
        option::of(select(&[10u64, 20][..]).prop_map(Duration::from_secs)),
    );
    (identity, addresses, rest).prop_map(|(identity, addresses, rest)| {
        let (key, created, kind, proxy_name) = identity;
        let (cluster_ips, external_ips, load_balancer_ips, ranges) = addresses;
        let (ports, internal_policy, external_policy, health_check_node_port, affinity) = rest;
        Service {
            key: name(key),
            created: created.map(|second| Timestamp::from_second(second).unwrap()),
            kind,
            proxy_name: proxy_name.map(str::to_owned),
            cluster_ips: cluster_ips.iter().map(|text| text.parse().unwrap()).collect(),
            ports,
            external_ips,
            load_balancer_ips,
            source_ranges: prefixes(&ranges),
            internal_policy,
            external_policy,
            health_check_node_port,
            affinity,
        }
    })
}

fn endpoint(addresses: &'static [&'static str]) -> impl Strategy<Value = SliceEndpoint> {
    let hints = || vec(select(&["z1", "z2"][..]), 0..2);
    let often = || prop_oneof![3 => Just(true), 1 => Just(false)];
    let node = select(&[None, Some("here"), Some("there")][..]);
    (select(addresses), often(), often(), any::<bool>(), node, hints(), option::weighted(0.2, Just("here")))
        .prop_map(|(address, ready, serving, terminating, node, zones, node_hint)| SliceEndpoint {
            address: address.parse().unwrap(),
            ready,
            serving,
            terminating,
            node_name: node.map(str::to_owned),
            zone_hints: zones.iter().map(|zone| (*zone).to_owned()).collect(),
            node_hints: node_hint.into_iter().map(str::to_owned).collect(),
        })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoints = prop_oneof![
        2 => vec(endpoint(&["10.0.0.9", "10.0.0.10", "10.0.0.1", "10.0.0.2"]), 0..5),
        1 => vec(endpoint(&["fd00::1", "fd00::2"]), 0..3),
    ];
    let all = [("", Protocol::TCP, 8080), ("dns", Protocol::UDP, 53), ("admin", Protocol::TCP, 8080)];
    let ports = subsequence(all.to_vec(), 1..=3);
    let owner = option::weighted(0.9, select(&SERVICES[..]));
    (select(&SLICES[..]), owner, prop::bool::weighted(0.1), ports, endpoints).prop_map(
        |(key, owner, headless, ports, endpoints)| EndpointSlice {
            key: name(key),
            service: owner.map(name),
            headless,
            ports: ports
                .iter()
                .map(|(name, protocol, port)| SlicePort {
                    name: (*name).to_owned(),
                    protocol: *protocol,
                    port: *port,
                })
                .collect(),
            endpoints,
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    let address = select(&["192.168.0.2", "203.0.113.2"][..]);
    (option::of(select(&["z1", "z2"][..])), address).prop_map(|(zone, address)| Node {
        name: "here".into(),
        zone: zone.map(str::to_owned),
        internal_ips: vec![address.parse().unwrap()],
        external_ips: Vec::new(),
        pod_cidrs: prefixes(&["10.244.1.0/24"]),
        deletion: Deletion::No,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => service().prop_map(Step::Service),
        2 => (0..SERVICES.len()).prop_map(Step::NoService),
        8 => slice().prop_map(Step::Slice),
        2 => (0..SLICES.len()).prop_map(Step::NoSlice),
        1 => option::of(node()).prop_map(Step::Node),
        1 => subsequence(&["192.168.0.0/16", "fd00::/64", "127.0.0.0/8"][..], 0..=3)
            .prop_map(Step::NodePortAddresses),
        1 => subsequence(&["192.168.0.2", "192.168.1.2", "fd00::2"][..], 0..=3).prop_map(Step::LocalAddresses),
    ]
}

/// The objects and the node, as the steps change them.
#[derive(Default)]
struct World {
    cluster: Cluster,
    proxy: ProxyConfig,
    local_addresses: Vec<IpAddr>,
}

impl World {
    fn take(&mut self, step: Step, changes: &mut Changes) {
        match step {
            Step::Service(service) => {
                changes.services.insert(service.key.clone());
                self.cluster.services.insert(service.key.clone(), service);
            }
            Step::NoService(at) => {
                self.cluster.services.remove(&name(SERVICES[at]));
                changes.services.insert(name(SERVICES[at]));
            }
            Step::Slice(slice) => {
                changes.slices.insert(slice.key.clone());
                self.cluster.slices.insert(slice.key.clone(), slice);
            }
            Step::NoSlice(at) => {
                self.cluster.slices.remove(&name(SLICES[at]));
                changes.slices.insert(name(SLICES[at]));
            }
            Step::Node(Some(node)) => {
                self.cluster.nodes.insert("here".into(), node);
            }
            Step::Node(None) => {
                self.cluster.nodes.remove("here");
            }
            Step::NodePortAddresses(texts) => {
                self.proxy.node_port_addresses = NodePortSelection::Prefixes(prefixes(&texts));
            }
            Step::LocalAddresses(texts) => {
                self.local_addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
            }
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            cluster: &self.cluster,
            proxy: &self.proxy,
            node_name: "here",
            service_proxy_name: Some("edge"),
            local_addresses: &self.local_addresses,
        }
    }
}

/// Everything that a translation says, without the numbers that it says it with.
fn said<A: Family>(translation: &Translation<A>) -> Vec<String> {
    let Translation { services, ports, health_checks, localhost_node_ports, mark, reports, .. } = translation;
    let mut lines = Vec::new();
    let named = |set: BackendSet| -> Vec<_> {
        services.backends(set).iter().map(|backend| endpoint_name(*backend)).collect()
    };
    for (_, frontend) in services.frontends() {
        let path = match frontend.path {
            Path::FallThrough => "none".to_owned(),
            Path::Internal(set) => format!("internal {:?}", named(set)),
            Path::Cluster(set) => format!("cluster {:?}", named(set)),
            Path::Local { cluster, local } => format!("local {:?} {:?}", named(cluster), named(local)),
        };
        let id = &ports[frontend.service_port as usize].id;
        let protocol = id.protocol;
        let (key, kind, sources) = (frontend.key, frontend.kind, &frontend.sources);
        let (filter, affinity) = (frontend.filter, frontend.affinity);
        lines.push(format!("{key:?} {kind:?} {id} {protocol} {sources:?} {path} {filter:?} {affinity:?}"));
    }
    lines.push(format!("{:?}", services.policy()));
    lines.extend(ports.iter().map(|rules| format!("{rules:?}")));
    lines.push(format!("{health_checks:?} {localhost_node_ports:?} {mark:x}"));
    lines.extend(reports.iter().map(ToString::to_string));
    lines
}

/// Everything that decides where UDP flows may stay (UP-03).
fn udp<A: Family>(translation: &Translation<A>) -> String {
    let Translation { services, ports, .. } = translation;
    let frontends = services.frontends().map(|(_, frontend)| frontend);
    let udp = frontends.filter(|frontend| frontend.key.protocol == Protocol::UDP);
    let serving: Vec<_> =
        udp.map(|frontend| (frontend.key, &ports[frontend.service_port as usize].serving)).collect();
    format!("{serving:?} {:?}", services.policy().node_ports)
}

/// One family, followed.
struct Followed<A: Family> {
    translator: Translator<A>,
    /// Which frontends there were after the last update, and its count of their changes.
    frontends: (Vec<FrontendKey<A>>, u64),
    /// Where UDP flows might stay after the last update, and its count of the changes (UP-03).
    udp: (String, u64),
}

impl<A: Family> Followed<A> {
    fn new() -> Self {
        Followed { translator: Translator::default(), frontends: (Vec::new(), 0), udp: (String::new(), 0) }
    }

    fn follow(
        &mut self,
        input: &Input<'_>,
        slices: &SliceIndex,
        services: &std::collections::BTreeSet<NamespacedName>,
    ) -> Result<(), TestCaseError> {
        let followed = self.translator.update(input, slices, services);
        let at_once = translate::<A>(input);
        prop_assert_eq!(said(&followed), said(&at_once));
        let keys: Vec<_> = followed.services.frontends().map(|(_, frontend)| frontend.key).collect();
        if followed.frontends == self.frontends.1 {
            prop_assert_eq!(&keys, &self.frontends.0);
        }
        self.frontends = (keys, followed.frontends);
        let udp = udp(&followed);
        if followed.udp == self.udp.1 {
            prop_assert_eq!(&udp, &self.udp.0);
        }
        self.udp = (udp, followed.udp);
        // Clients are kept at the same endpoints, too.
        prop_assert_eq!(followed.services.departed(&at_once.services), []);
        prop_assert_eq!(at_once.services.departed(&followed.services), []);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn up_01_following_changes_comes_to_the_same_as_translating_all_at_once(
        updates in vec(vec(step(), 1..4), 1..24)
    ) {
        let (mut world, mut index) = (World::default(), SliceIndex::default());
        let (mut v4, mut v6) = (Followed::<V4>::new(), Followed::<V6>::new());
        for steps in updates {
            let (before, mut changes) = (world.cluster.clone(), Changes::default());
            for step in steps {
                world.take(step, &mut changes);
            }
            // What is told by whoever watches holds what can be found out by comparing.
            let found = Changes::between(&before, &world.cluster);
            prop_assert!(changes.services.is_superset(&found.services));
            prop_assert!(changes.slices.is_superset(&found.slices));
            let services = index.update(&world.cluster, &found);
            v4.follow(&world.input(), &index, &services)?;
            v6.follow(&world.input(), &index, &services)?;
        }
        // When everything is gone, nothing is left behind.
        let all = Changes::all(&world.cluster);
        world.cluster = Cluster::default();
        let services = index.update(&world.cluster, &all);
        v4.follow(&world.input(), &index, &services)?;
        prop_assert!(v4.translator.holds_nothing());
        v6.follow(&world.input(), &index, &services)?;
        prop_assert!(v6.translator.holds_nothing());
    }
}
