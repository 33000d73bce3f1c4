use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use pollux_dataplane::packet::V4;
use pollux_dataplane::route::{Fib, Interface, InterfaceAddress, Interfaces};
use pollux_dataplane::tables::Routing;

use super::*;
use crate::cluster::{IpPrefix, read_objects};
use crate::config::ProxyConfig;
use crate::config::proxy::NodePortSelection;
use crate::document::parse_yaml;
use crate::translate::{Input, Translation, translate};

const CLIENT: &str = "10.244.9.9";
const CLUSTER_IP: &str = "10.96.0.53";
const NODE: &str = "192.168.0.2";
const SERVES: &str = "";
const TERMINATES: &str = "conditions: {ready: false, serving: true, terminating: true}";
const GONE: &str = "conditions: {ready: false, serving: false, terminating: true}";

/// A cluster with a DNS Service: clusterIP, external IP and node port over UDP, and the same over TCP.
struct Case {
    tables: FamilyTables<V4>,
    ports: ServicePorts<V4>,
}

impl Case {
    /// With these endpoints: address and conditions.
    fn new(endpoints: &[(&str, &str)]) -> Case {
        Case::with(endpoints, &ProxyConfig::default())
    }

    fn with(endpoints: &[(&str, &str)], proxy: &ProxyConfig) -> Case {
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|(address, conditions)| format!("{{addresses: [{address}], nodeName: there, {conditions}}}"))
            .collect();
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: dns}}, spec: {{type: NodePort, \
             clusterIP: {CLUSTER_IP}, externalIPs: [192.0.2.53], internalTrafficPolicy: Local, ports: [\
             {{name: dns, port: 53, protocol: UDP, nodePort: 30053}}, \
             {{name: tcp, port: 53, nodePort: 30053}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: s, \
             labels: {{kubernetes.io/service-name: dns}}}}, endpoints: [{}], ports: [\
             {{name: dns, port: 5353, protocol: UDP}}, {{name: tcp, port: 5353}}]}}",
            endpoints.join(", ")
        );
        let file: Arc<Path> = Path::new("objects.yaml").into();
        let cluster = read_objects(&file, parse_yaml(&yaml).unwrap()).unwrap().cluster;
        let Translation { services, ports, .. } = translate::<V4>(&Input {
            cluster: &cluster,
            proxy,
            node_name: "here",
            service_proxy_name: None,
            local_addresses: &[NODE.parse().unwrap()],
        });
        let mut interface = Interface::new("eth0", None);
        interface.add(InterfaceAddress::new(NODE.parse().unwrap(), 24));
        let interfaces = Interfaces::new(vec![interface]);
        let routing = Arc::new(Routing { fib: Fib::build(Vec::new()), interfaces: Arc::new(interfaces) });
        Case { tables: FamilyTables { services, routing, ..FamilyTables::default() }, ports }
    }

    /// Whether a flow to `to`, whose answers come from `backend`, is deleted.
    fn deletes(&self, protocol: Protocol, to: (&str, u16), backend: (&str, u16)) -> bool {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let original = FlowKey {
            source: address(CLIENT),
            destination: address(to.0),
            source_port: 4000,
            destination_port: to.1,
            protocol,
        };
        let reply = FlowKey {
            source: address(backend.0),
            destination: address(CLIENT),
            source_port: backend.1,
            destination_port: 4000,
            protocol,
        };
        is_stale(&self.tables, &self.ports, &original, &reply)
    }
}

const TO: [(&str, u16); 3] = [(CLUSTER_IP, 53), ("192.0.2.53", 53), (NODE, 30053)];

#[test]
fn up_03_flows_to_what_is_no_endpoint_any_more_are_deleted() {
    let case = Case::new(&[("10.244.2.1", SERVES)]);
    for to in TO {
        assert!(!case.deletes(Protocol::UDP, to, ("10.244.2.1", 5353)), "{to:?}");
        assert!(case.deletes(Protocol::UDP, to, ("10.244.2.2", 5353)), "{to:?}: another address");
        assert!(case.deletes(Protocol::UDP, to, ("10.244.2.1", 5354)), "{to:?}: another port");
    }
}

#[test]
fn up_03_flows_from_before_there_were_endpoints_do_not_stay() {
    let case = Case::new(&[("10.244.2.1", SERVES)]);
    for to in TO {
        assert!(case.deletes(Protocol::UDP, to, to), "{to:?} was not translated");
    }
}

#[test]
fn up_03_without_a_serving_endpoint_nothing_is_deleted() {
    for case in [Case::new(&[]), Case::new(&[("10.244.2.1", GONE)])] {
        for to in TO {
            assert!(!case.deletes(Protocol::UDP, to, ("10.244.2.1", 5353)), "{to:?}");
            assert!(!case.deletes(Protocol::UDP, to, to), "{to:?}");
        }
    }
}

#[test]
fn up_03_terminating_endpoints_that_serve_keep_their_flows() {
    // Not chosen any more (EP-01), and none is on this node, as the internal policy wants: they serve.
    let case = Case::new(&[("10.244.2.1", SERVES), ("10.244.2.2", TERMINATES), ("10.244.2.3", GONE)]);
    for to in TO {
        assert!(!case.deletes(Protocol::UDP, to, ("10.244.2.2", 5353)), "{to:?}");
        assert!(case.deletes(Protocol::UDP, to, ("10.244.2.3", 5353)), "{to:?}");
    }
}

#[test]
fn up_03_tcp_and_what_is_no_frontend_is_left_alone() {
    let case = Case::new(&[("10.244.2.1", SERVES)]);
    for to in TO {
        assert!(!case.deletes(Protocol::TCP, to, ("10.244.2.2", 5353)), "{to:?}");
    }
    for to in [(CLUSTER_IP, 54), ("10.96.0.54", 53), ("8.8.8.8", 53)] {
        assert!(!case.deletes(Protocol::UDP, to, to), "{to:?}");
    }
}

#[test]
fn up_03_a_node_port_is_one_on_the_nodes_own_addresses_only() {
    let case = Case::new(&[("10.244.2.1", SERVES)]);
    assert!(!case.deletes(Protocol::UDP, ("8.8.8.8", 30053), ("8.8.8.8", 30053)));
    assert!(case.deletes(Protocol::UDP, (NODE, 30053), (NODE, 30053)));
    // Where it does not answer, it is none (FE-07).
    let elsewhere = vec![IpPrefix::parse("172.16.0.0/12").unwrap()];
    let node_port_addresses = NodePortSelection::Prefixes(elsewhere);
    let proxy = ProxyConfig { node_port_addresses, ..ProxyConfig::default() };
    let case = Case::with(&[("10.244.2.1", SERVES)], &proxy);
    assert!(!case.deletes(Protocol::UDP, (NODE, 30053), (NODE, 30053)));
}

#[test]
fn up_03_only_serving_udp_endpoints_are_kept_in_mind() {
    let case = Case::new(&[("10.244.2.9", SERVES), ("10.244.2.1", TERMINATES), ("10.244.2.5", GONE)]);
    let serving = |name: &str| {
        let rules = case.ports.iter().find(|rules| rules.id.port_name == name).unwrap();
        rules.serving.iter().map(|backend| backend.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(serving("dns"), ["10.244.2.1", "10.244.2.9"]);
    assert_eq!(serving("tcp"), [""; 0]);
}
