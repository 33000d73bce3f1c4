//! The translation, rule by rule: objects in, frontends and backends out.

use std::path::Path as FilePath;

use pollux_dataplane::packet::{V4, V6};
use pollux_dataplane::service::{
    BackendSet, Detector, FilterRule, Frontend, FrontendKind, InternalMark, Loopback, NodePortAddresses, Path,
};

use super::*;
use crate::cluster::read_objects;
use crate::config::proxy::{DetectLocal, MasqueradePolicy, NodePortSelection};
use crate::document::parse_yaml;

const NODE: &str = "{apiVersion: v1, kind: Node, metadata: {name: here, labels: {topology.kubernetes.io/zone: z1}}, \
    spec: {podCIDRs: [10.244.1.0/24]}, status: {addresses: [{type: ExternalIP, address: 203.0.113.9}, \
    {type: InternalIP, address: 192.168.0.2}, {type: InternalIP, address: 'fd00::2'}]}}\n---\n";

/// A Service `default/NAME`; `rest` continues its fields after metadata.
fn service(name: &str, rest: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, {rest}}}\n---\n")
}

/// An IPv4 slice of Service `default/SERVICE` with an unnamed port 8080.
fn slice(name: &str, service: &str, endpoints: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, endpoints: [{endpoints}], \
         ports: [{{port: 8080}}]}}\n---\n"
    )
}

const HERE: &str = "{addresses: [10.244.1.1], nodeName: here}";
const THERE: &str = "{addresses: [10.244.2.1], nodeName: there}";

fn cluster(yaml: &str) -> Cluster {
    let file: std::sync::Arc<FilePath> = FilePath::new("objects.yaml").into();
    read_objects(&file, parse_yaml(yaml).unwrap()).unwrap().cluster
}

fn proxy() -> ProxyConfig {
    ProxyConfig {
        cluster_cidrs: vec![crate::cluster::IpPrefix::parse("10.244.0.0/16").unwrap()],
        ..ProxyConfig::default()
    }
}

fn translate_with<A: Family>(yaml: &str, proxy: &ProxyConfig) -> Translation<A> {
    let cluster = cluster(&format!("{NODE}{yaml}"));
    let local_addresses = ["192.168.0.2", "192.168.1.2", "fd00::2"].map(|ip| ip.parse().unwrap());
    translate::<A>(&Input {
        cluster: &cluster,
        proxy,
        node_name: "here",
        service_proxy_name: Some("edge"),
        local_addresses: &local_addresses,
    })
}

fn v4(yaml: &str) -> Translation<V4> {
    translate_with(yaml, &proxy())
}

/// The only frontend of a kind.
fn only<A: Family>(translation: &Translation<A>, kind: FrontendKind) -> Frontend<A> {
    let found: Vec<_> =
        translation.services.frontends().map(|(_, frontend)| frontend).filter(|f| f.kind == kind).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn names<A: Family>(translation: &Translation<A>, set: BackendSet) -> Vec<String> {
    translation.services.backends(set).iter().map(|backend| endpoint_name(*backend)).collect()
}

fn internal<A: Family>(translation: &Translation<A>) -> Vec<String> {
    match only(translation, FrontendKind::ClusterIp).path {
        Path::Internal(set) => names(translation, set),
        Path::FallThrough => Vec::new(),
        other => panic!("{other:?}"),
    }
}

fn texts(translation: &Translation<V4>) -> Vec<String> {
    translation.reports.iter().map(ToString::to_string).collect()
}

const CLUSTER_IP: &str = "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}";

/// A Service of both policies Local with a load-balancer IP and a node port.
const LOCAL: &str = "spec: {type: LoadBalancer, clusterIP: 10.96.0.1, internalTrafficPolicy: Local, \
    externalTrafficPolicy: Local, healthCheckNodePort: 31000, ports: [{port: 80, nodePort: 30080}]}, \
    status: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}}";

#[test]
fn obj_02_services_of_another_proxy_headless_and_external_names_are_ignored() {
    let yaml = [
        "{apiVersion: v1, kind: Service, metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: x}}, \
         spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n",
        "{apiVersion: v1, kind: Service, metadata: {name: b, labels: {service.kubernetes.io/service-proxy-name: edge}}, \
         spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}\n---\n",
        &service("c", "spec: {clusterIP: None, ports: [{port: 80}]}"),
        &service("d", "spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}"),
    ]
    .concat();
    let ports: Vec<_> = v4(&yaml).ports.iter().map(|rules| rules.id.to_string()).collect();
    assert_eq!(ports, ["default/b"]);
}

#[test]
fn obj_02_a_headless_slice_is_ignored() {
    let slices = slice("s", "a", HERE).replace("labels: {", "labels: {service.kubernetes.io/headless: '', ");
    assert_eq!(internal(&v4(&(service("a", CLUSTER_IP) + &slices))), [""; 0]);
}

#[test]
fn obj_04_ports_match_by_name_and_protocol_and_target_port_is_not_read() {
    let yaml = service(
        "a",
        "spec: {clusterIP: 10.96.0.1, ports: [{name: dns, port: 53, protocol: UDP, targetPort: 1}]}",
    ) + "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: \
         {kubernetes.io/service-name: a}}, addressType: IPv4, endpoints: [{addresses: [10.244.1.1, 10.244.1.9]}], \
         ports: [{name: dns, port: 5353, protocol: UDP}, {name: dns, port: 54}, {name: other, port: 55, protocol: UDP}, \
         {name: dns, protocol: UDP}, {name: dns, port: 0, protocol: UDP}]}";
    assert_eq!(internal(&v4(&yaml)), ["10.244.1.1:5353"]);
}

#[test]
fn obj_04_a_slice_belongs_to_the_service_of_its_own_namespace() {
    let foreign = slice("s", "a", HERE).replace("{name: s,", "{name: s, namespace: other,");
    assert_eq!(internal(&v4(&(service("a", CLUSTER_IP) + &foreign))), [""; 0]);
}

#[test]
fn obj_05_a_copy_that_is_not_terminating_replaces_one_that_is() {
    let terminating =
        "{addresses: [10.244.1.1], conditions: {ready: false, serving: true, terminating: true}}";
    let not_ready = "{addresses: [10.244.1.1], conditions: {ready: false, serving: false}}";
    for (low, high) in [(terminating, not_ready), (not_ready, terminating)] {
        let translation = v4(&(service("a", CLUSTER_IP) + &slice("s1", "a", low) + &slice("s2", "a", high)));
        assert_eq!(internal(&translation), [""; 0], "the terminating copy would be chosen");
        assert_eq!(texts(&translation), [""; 0]);
    }
}

#[test]
fn obj_05_among_equal_copies_the_highest_slice_is_taken_and_reported() {
    let ready = "{addresses: [10.244.1.1]}";
    let not_ready = "{addresses: [10.244.1.1], conditions: {ready: false}}";
    let translation =
        v4(&(service("a", CLUSTER_IP) + &slice("s2", "a", ready) + &slice("s1", "a", not_ready)));
    assert_eq!(internal(&translation), ["10.244.1.1:8080"]);
    assert_eq!(
        texts(&translation),
        ["services/default/a: endpoint 10.244.1.1:8080 is in endpointslices/default/s1 and in \
             endpointslices/default/s2: the last is taken"]
    );
    let swapped = v4(&(service("a", CLUSTER_IP) + &slice("s1", "a", ready) + &slice("s2", "a", not_ready)));
    assert_eq!(internal(&swapped), [""; 0]);
}

#[test]
fn obj_07_a_service_takes_part_only_in_families_of_its_cluster_ips() {
    let yaml = service(
        "a",
        "spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], externalIPs: [192.0.2.1, '2001:db8::1'], \
         ports: [{port: 80, nodePort: 30080}]}",
    );
    assert_eq!(v4(&yaml).services.frontends().count(), 3);
    assert_eq!(translate_with::<V6>(&yaml, &proxy()).services.frontends().count(), 0);

    let dual = yaml.replace("clusterIPs: [10.96.0.1]", "clusterIPs: [10.96.0.1, 'fd00:96::1']");
    let v6 = translate_with::<V6>(&dual, &proxy());
    assert_eq!(v6.services.frontends().count(), 3);
    assert_eq!(
        only(&v6, FrontendKind::ExternalIp).key.address,
        FrontendAddress::Address("2001:db8::1".parse().unwrap())
    );
}

#[test]
fn fe_01_to_fe_04_every_frontend_of_a_port() {
    let yaml = service(
        "a",
        "spec: {type: LoadBalancer, clusterIP: 10.96.0.1, externalIPs: [192.0.2.1, 192.0.2.1], \
         ports: [{port: 80, nodePort: 30080}, {name: udp, port: 53, protocol: UDP, nodePort: 0}]}, \
         status: {loadBalancer: {ingress: [{ip: 1.2.3.4}, {ip: 1.2.3.5, ipMode: Proxy}, {ip: 1.2.3.6, ipMode: VIP}, \
         {hostname: lb.example.com}]}}",
    );
    let translation = v4(&yaml);
    let mut frontends: Vec<_> = translation
        .services
        .frontends()
        .map(|(_, f)| {
            let address = match f.key.address {
                FrontendAddress::Address(address) => address.to_string(),
                FrontendAddress::NodePort => "node".to_string(),
            };
            format!("{:?} {address}:{}/{}", f.kind, f.key.port, f.key.protocol)
        })
        .collect();
    frontends.sort();
    assert_eq!(
        frontends,
        [
            "ClusterIp 10.96.0.1:53/udp",
            "ClusterIp 10.96.0.1:80/tcp",
            "ExternalIp 192.0.2.1:53/udp",
            "ExternalIp 192.0.2.1:80/tcp",
            "LoadBalancer 1.2.3.4:53/udp",
            "LoadBalancer 1.2.3.4:80/tcp",
            "LoadBalancer 1.2.3.6:53/udp",
            "LoadBalancer 1.2.3.6:80/tcp",
            "NodePort node:30080/tcp",
        ]
    );
    assert_eq!(texts(&translation), [""; 0]);
}

#[test]
fn fe_06_an_address_of_one_service_in_two_fields_is_tried_as_external_ip_first() {
    let yaml = service(
        "a",
        "spec: {clusterIP: 10.96.0.1, externalIPs: [1.2.3.4], loadBalancerSourceRanges: [203.0.113.0/24], \
         ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}}",
    ) + &slice("s", "a", HERE);
    let kinds: Vec<_> = v4(&yaml)
        .services
        .frontends()
        .filter(|(_, f)| f.key.address == FrontendAddress::Address("1.2.3.4".parse().unwrap()))
        .map(|(_, f)| (f.kind, f.sources.is_some()))
        .collect();
    assert_eq!(kinds, [(FrontendKind::ExternalIp, false), (FrontendKind::LoadBalancer, true)]);
}

fn node_ports(selection: &[&str], localhost: LocalhostNodePorts) -> NodePortAddresses<V4> {
    let prefixes = selection.iter().map(|text| crate::cluster::IpPrefix::parse(text).unwrap()).collect();
    let proxy = ProxyConfig {
        node_port_addresses: NodePortSelection::Prefixes(prefixes),
        localhost_node_ports: localhost,
        ..proxy()
    };
    translate_with::<V4>("", &proxy).services.policy().node_ports.clone()
}

#[test]
fn fe_07_node_port_addresses() {
    use LocalhostNodePorts::{Disabled, Enabled};
    let only = |texts: &[&str]| {
        NodePortAddresses::<V4>::Only(texts.iter().map(|text| text.parse().unwrap()).collect())
    };
    let all = NodePortAddresses::AllLocal;
    assert_eq!(node_ports(&[], Enabled), all(Loopback::Included));
    assert_eq!(node_ports(&[], Disabled), all(Loopback::Excluded));
    assert_eq!(node_ports(&["0.0.0.0/0", "192.168.0.0/24"], Enabled), all(Loopback::Included));
    assert_eq!(node_ports(&["fd00::/64"], Enabled), all(Loopback::Included), "none of the family");
    assert_eq!(node_ports(&["192.168.0.0/24"], Enabled), only(&["192.168.0.2"]));
    assert_eq!(
        node_ports(&["192.168.0.0/16", "127.0.0.1/32"], Enabled),
        only(&["127.0.0.1", "192.168.0.2", "192.168.1.2"])
    );
    assert_eq!(node_ports(&["192.168.0.0/24", "127.0.0.0/8"], Disabled), only(&["192.168.0.2"]));
    assert_eq!(node_ports(&["10.0.0.0/8"], Enabled), only(&[]));
}

#[test]
fn fe_07_ipv6_loopback_never_answers() {
    let all = translate_with::<V6>("", &proxy());
    assert_eq!(all.services.policy().node_ports, NodePortAddresses::AllLocal(Loopback::Excluded));
    let prefixes = ["fd00::/64", "::1/128"].map(|text| crate::cluster::IpPrefix::parse(text).unwrap());
    let some = ProxyConfig { node_port_addresses: NodePortSelection::Prefixes(prefixes.to_vec()), ..proxy() };
    let some = translate_with::<V6>("", &some);
    let fd00: std::net::Ipv6Addr = "fd00::2".parse().unwrap();
    assert_eq!(some.services.policy().node_ports, NodePortAddresses::Only([fd00].into()));
}

#[test]
fn fe_07_primary_is_the_first_internal_ip_or_the_bind_address() {
    let primary = ProxyConfig { node_port_addresses: NodePortSelection::Primary, ..proxy() };
    let addresses =
        |proxy: &ProxyConfig| translate_with::<V4>("", proxy).services.policy().node_ports.clone();
    let only = |text: &str| NodePortAddresses::<V4>::Only([text.parse().unwrap()].into());
    assert_eq!(addresses(&primary), only("192.168.0.2"));
    let bound = ProxyConfig { bind_address: Some("192.168.1.2".parse().unwrap()), ..primary.clone() };
    assert_eq!(addresses(&bound), only("192.168.1.2"));
    // The other family keeps the Node's address.
    let v6 = translate_with::<V6>("", &bound);
    let fd00: std::net::Ipv6Addr = "fd00::2".parse().unwrap();
    assert_eq!(v6.services.policy().node_ports, NodePortAddresses::Only([fd00].into()));
    // A node that nobody knows falls back to all.
    let cluster = Cluster::default();
    let input = Input {
        cluster: &cluster,
        proxy: &primary,
        node_name: "here",
        service_proxy_name: None,
        local_addresses: &[],
    };
    let unknown = translate::<V4>(&input);
    assert_eq!(unknown.services.policy().node_ports, NodePortAddresses::AllLocal(Loopback::Included));
}

#[test]
fn no_07_the_guard_follows_localhost_node_ports_in_force() {
    let guard = |selection: NodePortSelection| {
        let proxy = ProxyConfig { node_port_addresses: selection, ..proxy() };
        translate_with::<V4>("", &proxy).localhost_node_ports
    };
    let prefixes =
        |text: &str| NodePortSelection::Prefixes(vec![crate::cluster::IpPrefix::parse(text).unwrap()]);
    assert_eq!(guard(NodePortSelection::Prefixes(vec![])), LocalhostNodePorts::Enabled);
    assert_eq!(guard(prefixes("127.0.0.0/8")), LocalhostNodePorts::Enabled);
    assert_eq!(guard(prefixes("192.168.0.0/24")), LocalhostNodePorts::Disabled);
    assert_eq!(guard(NodePortSelection::Primary), LocalhostNodePorts::Disabled);
    assert_eq!(translate_with::<V6>("", &proxy()).localhost_node_ports, LocalhostNodePorts::Disabled);
}

#[test]
fn fe_08_the_oldest_service_owns_a_frontend_and_the_conflict_is_reported() {
    let with = |name: &str, ip: &str, created: &str| {
        service(
            name,
            &format!(
                "spec: {{clusterIP: {ip}, externalIPs: [192.0.2.1], ports: [{{port: 80, nodePort: 30080}}]}}"
            ),
        )
        .replace(&format!("{{name: {name}}}"), &format!("{{name: {name}{created}}}"))
    };
    let yaml = with("a", "10.96.0.1", "")
        + &with("b", "10.96.0.2", ", creationTimestamp: '2026-02-01T00:00:00Z'")
        + &with("c", "10.96.0.3", ", creationTimestamp: '2026-01-01T00:00:00Z'");
    let translation = v4(&yaml);
    for kind in [FrontendKind::ExternalIp, FrontendKind::NodePort] {
        let owner = only(&translation, kind).service_port;
        assert_eq!(translation.ports[owner as usize].id.to_string(), "default/c");
    }
    assert_eq!(
        texts(&translation),
        [
            "services/default/b: address 192.0.2.1 port 80/tcp belongs to services/default/c, the older one",
            "services/default/b: node port 30080/tcp belongs to services/default/c, the older one",
            "services/default/a: address 192.0.2.1 port 80/tcp belongs to services/default/c, the older one",
            "services/default/a: node port 30080/tcp belongs to services/default/c, the older one",
        ]
    );
}

#[test]
fn fe_08_and_up_01_the_next_service_takes_over_when_the_owner_goes() {
    let with = |name: &str, ip: &str| {
        service(name, &format!("spec: {{clusterIP: {ip}, externalIPs: [192.0.2.1], ports: [{{port: 80}}]}}"))
    };
    let both = cluster(&(with("a", "10.96.0.1") + &with("b", "10.96.0.2")));
    let one = cluster(&with("b", "10.96.0.2"));
    let (mut slices, mut translator) = (SliceIndex::default(), Translator::<V4>::default());
    let mut follow = |cluster: &Cluster, changes: Changes| {
        let services = slices.update(cluster, &changes);
        let proxy = proxy();
        let input = Input {
            cluster,
            proxy: &proxy,
            node_name: "here",
            service_proxy_name: None,
            local_addresses: &[],
        };
        translator.update(&input, &slices, &services)
    };
    let owner = |translation: &Translation<V4>| {
        let number = only(translation, FrontendKind::ExternalIp).service_port;
        translation.ports[number as usize].id.to_string()
    };
    let before = follow(&both, Changes::all(&both));
    assert_eq!((owner(&before).as_str(), before.reports.len()), ("default/a", 1));
    let after = follow(&one, Changes::between(&both, &one));
    assert_eq!((owner(&after).as_str(), after.reports.len()), ("default/b", 0));
    assert_eq!(owner(&before), "default/a", "who still has the old tables sees all of the old state");
    assert!(after.frontends > before.frontends);
    let again = follow(&both, Changes::between(&one, &both));
    assert_eq!((owner(&again).as_str(), again.reports), ("default/a", before.reports));
}

#[test]
fn no_01_without_endpoints_every_frontend_rejects() {
    let translation = v4(&service("a", LOCAL));
    for (_, frontend) in translation.services.frontends() {
        assert_eq!((frontend.path, frontend.filter), (Path::FallThrough, Some(FilterRule::Reject)));
    }
    assert_eq!(translation.services.frontends().count(), 3);
}

#[test]
fn no_02_and_no_03_without_local_endpoints_policy_local_drops() {
    let translation = v4(&(service("a", LOCAL) + &slice("s", "a", THERE)));
    let internal = only(&translation, FrontendKind::ClusterIp);
    assert_eq!((internal.path, internal.filter), (Path::FallThrough, Some(FilterRule::Drop)));
    for kind in [FrontendKind::LoadBalancer, FrontendKind::NodePort] {
        let external = only(&translation, kind);
        assert_eq!(external.filter, Some(FilterRule::Drop));
        let Path::Local { cluster, local } = external.path else {
            panic!("{:?}", external.path);
        };
        assert_eq!(names(&translation, cluster), ["10.244.2.1:8080"], "for the short circuits");
        assert!(local.is_empty());
    }
}

#[test]
fn wk_03_policy_local_with_both_sets() {
    let translation = v4(&(service("a", LOCAL) + &slice("s", "a", &format!("{HERE}, {THERE}"))));
    assert_eq!(internal(&translation), ["10.244.1.1:8080"]);
    let external = only(&translation, FrontendKind::NodePort);
    assert_eq!(external.filter, None);
    let Path::Local { cluster, local } = external.path else {
        panic!("{:?}", external.path);
    };
    assert_eq!(names(&translation, cluster), ["10.244.1.1:8080", "10.244.2.1:8080"]);
    assert_eq!(names(&translation, local), ["10.244.1.1:8080"]);
}

#[test]
fn ep_03_an_internal_policy_local_without_external_frontend_uses_no_cluster_endpoints() {
    let local = "spec: {clusterIP: 10.96.0.1, internalTrafficPolicy: Local, externalTrafficPolicy: Local, ports: [{port: 80}]}";
    let translation = v4(&(service("a", local) + &slice("s", "a", &format!("{HERE}, {THERE}"))));
    let sets = &translation.ports[0].endpoints;
    assert_eq!((sets.cluster.len(), sets.local.len()), (0, 1));
}

#[test]
fn no_04_source_ranges_guard_load_balancer_ips_only() {
    let with = |ranges: &str| {
        let yaml = service(
            "a",
            &format!(
                "spec: {{clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], loadBalancerSourceRanges: [{ranges}], \
                 ports: [{{port: 80, nodePort: 30080}}]}}, status: {{loadBalancer: {{ingress: [{{ip: 1.2.3.4}}]}}}}"
            ),
        );
        v4(&(yaml + &slice("s", "a", HERE)))
    };
    let sources = |translation: &Translation<V4>, kind| {
        let sources = only(translation, kind).sources?;
        Some(sources.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let guarded = with("203.0.113.0/24, ' 198.51.100.1/32 ', '2001:db8::/32'");
    assert_eq!(
        sources(&guarded, FrontendKind::LoadBalancer),
        Some(vec!["203.0.113.0/24".to_string(), "198.51.100.1/32".to_string()])
    );
    for kind in [FrontendKind::ClusterIp, FrontendKind::ExternalIp, FrontendKind::NodePort] {
        assert_eq!(sources(&guarded, kind), None);
    }
    let open = with("203.0.113.0/24, 0.0.0.0/0");
    assert_eq!(sources(&open, FrontendKind::LoadBalancer), None);
    let other_family = with("'2001:db8::/32'");
    assert_eq!(sources(&other_family, FrontendKind::LoadBalancer), None);
    let from_node = with("192.168.0.0/24");
    assert_eq!(
        sources(&from_node, FrontendKind::LoadBalancer),
        Some(vec!["192.168.0.0/24".to_string(), "1.2.3.4/32".to_string()])
    );
}

#[test]
fn no_04_needs_endpoints() {
    let yaml = service(
        "a",
        "spec: {clusterIP: 10.96.0.1, loadBalancerSourceRanges: [203.0.113.0/24], ports: [{port: 80}]}, \
         status: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}}",
    );
    let balancer = only(&v4(&yaml), FrontendKind::LoadBalancer);
    assert_eq!((balancer.sources, balancer.filter), (None, Some(FilterRule::Reject)));
}

#[test]
fn mq_01_masquerade_all() {
    let all = ProxyConfig { masquerade: MasqueradePolicy::All, ..proxy() };
    assert_eq!(translate_with::<V4>("", &all).services.policy().internal_mark, InternalMark::Always);
    assert_eq!(v4("").services.policy().internal_mark, InternalMark::ByDetector);
}

#[test]
fn mq_02_a_family_without_a_cidr_has_no_detector() {
    let detector = |detect_local: DetectLocal| {
        let proxy = ProxyConfig { detect_local, ..proxy() };
        (
            translate_with::<V4>("", &proxy).services.policy().detector,
            translate_with::<V6>("", &proxy).services.policy().detector,
        )
    };
    assert_eq!(
        detector(DetectLocal::ClusterCidr),
        (Detector::Source("10.244.0.0/16".parse().unwrap()), Detector::None)
    );
    assert_eq!(
        detector(DetectLocal::NodeCidr),
        (Detector::Source("10.244.1.0/24".parse().unwrap()), Detector::None)
    );
    let prefix = DetectLocal::InterfaceNamePrefix("cali".into());
    assert!(prefix.takes_for_pods("cali566211caf94") && !prefix.takes_for_pods("ens3"));
    assert_eq!(detector(prefix), (Detector::Interface, Detector::Interface));
    let bridge = DetectLocal::BridgeInterface("cni0".into());
    assert!(bridge.takes_for_pods("cni0") && !bridge.takes_for_pods("cni01"));
}

#[test]
fn mq_08_the_mark_is_the_configured_bit() {
    assert_eq!(v4("").mark, 0x4000);
    assert_eq!(translate_with::<V4>("", &ProxyConfig { masquerade_bit: 0, ..proxy() }).mark, 1);
}

#[test]
fn af_01_the_affinity_timeout() {
    let timeout = |fields: &str| {
        let spec = format!("spec: {{clusterIP: 10.96.0.1, {fields} ports: [{{port: 80}}]}}");
        v4(&service("a", &spec)).ports[0].affinity.map(|timeout| timeout.as_secs())
    };
    assert_eq!(timeout(""), None);
    assert_eq!(timeout("sessionAffinity: None,"), None);
    assert_eq!(timeout("sessionAffinity: ClientIP,"), Some(10_800));
    let config = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}},";
    assert_eq!(timeout(config), Some(10));
}

#[test]
fn af_02_endpoints_stand_in_the_order_of_their_names() {
    let endpoints = "{addresses: [10.0.0.9]}, {addresses: [10.0.0.10]}, {addresses: [10.0.0.1]}";
    let translation = v4(&(service("a", CLUSTER_IP) + &slice("s", "a", endpoints)));
    assert_eq!(internal(&translation), ["10.0.0.10:8080", "10.0.0.1:8080", "10.0.0.9:8080"]);
}

#[test]
fn up_05_a_health_check_counts_distinct_addresses_of_ready_local_endpoints() {
    let two_ports = LOCAL.replace("ports: [{port: 80,", "ports: [{name: b, port: 81}, {name: '', port: 80,");
    let not_ready = "{addresses: [10.244.1.3], nodeName: here, conditions: {ready: false}}";
    let slices = slice("s", "a", &format!("{HERE}, {THERE}, {not_ready}"))
        + &slice(
            "t",
            "a",
            "{addresses: [10.244.1.2], nodeName: here}, {addresses: [10.244.1.1], nodeName: here}",
        )
        .replace("[{port: 8080}]", "[{name: b, port: 8081}]");
    let checks = v4(&(service("a", &two_ports) + &slices)).health_checks;
    let key = NamespacedName::new("default", "a");
    assert_eq!(*checks, [HealthCheck { service: key, port: 31_000, local_endpoints: 2 }]);
    let cluster_policy = LOCAL.replace("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster");
    assert_eq!(*v4(&service("a", &cluster_policy)).health_checks, []);
}
