//! A client that comes back (AF-01 to AF-04), under tables that the control plane compiles.

use std::net::Ipv4Addr;
use std::time::Duration;

use pollux_tests::frame::{Fields, Frame, flag};
use pollux_tests::node::Node;
use pollux_tests::seed::{Cluster, NODE, OUTSIDE, link, port};

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 150, 18, 95);
const WEB: (Ipv4Addr, u16) = (CLUSTER_IP, 80);
const ADMIN: (Ipv4Addr, u16) = (CLUSTER_IP, 81);
/// Of [`WEB`], policy Local.
const NODE_PORT: (Ipv4Addr, u16) = (NODE, 30095);

/// The pods of slave2: `SECOND` stands behind `FIRST`, as "10.151.49.9:80" behind "10.151.49.10:80".
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 151, 49, 10);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 151, 49, 9);

/// Service default/sticky with two ports and an affinity of 10 s. Its endpoints are on slave2; the second is
/// said to be on slave1, so that policy Local offers it alone.
fn cluster(endpoints: &str) -> Cluster {
    Cluster::seed().with_neighbour(OUTSIDE, link::OUTSIDE).with_objects(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: sticky, namespace: default}}
spec:
  type: NodePort
  clusterIP: {CLUSTER_IP}
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 10}}}}
  ports:
  - {{name: web, port: 80, protocol: TCP, nodePort: 30095}}
  - {{name: admin, port: 81, protocol: TCP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: sticky-1, namespace: default, labels: {{kubernetes.io/service-name: sticky}}}}
addressType: IPv4
ports: [{{name: web, port: 80, protocol: TCP}}, {{name: admin, port: 81, protocol: TCP}}]
endpoints: [{endpoints}]
"
    ))
}

const BOTH: &str =
    "{addresses: [10.151.49.10], nodeName: slave2}, {addresses: [10.151.49.9], nodeName: slave1}";

/// Opens a connection of the client outside from this port; a free choice falls on `wanted`. Says where it
/// went.
fn open(node: &mut Node, from: u16, to: (Ipv4Addr, u16), wanted: Ipv4Addr) -> Ipv4Addr {
    node.choose_place(if wanted == FIRST { 0 } else { 1 });
    let syn = Frame::tcp((OUTSIDE, from), to, flag::SYN).link(link::OUTSIDE, link::ENS3);
    Fields::of(&node.send_one(port::ENS3, &syn.bytes()).bytes).destination
}

#[test]
fn af_01_new_connections_refresh_and_the_timeout_ends_it() {
    let mut node = cluster(BOTH).node();
    assert_eq!(open(&mut node, 1, WEB, SECOND), SECOND);
    node.wait(Duration::from_secs(9));
    assert_eq!(open(&mut node, 2, WEB, FIRST), SECOND);
    node.wait(Duration::from_secs(9));
    // A packet of a connection is none.
    let again = Frame::tcp((OUTSIDE, 2), WEB, flag::SYN).link(link::OUTSIDE, link::ENS3);
    node.send_one(port::ENS3, &again.bytes());
    node.wait(Duration::from_secs(2));
    assert_eq!(open(&mut node, 3, WEB, FIRST), FIRST);
}

#[test]
fn af_02_of_two_the_first_in_the_order_of_names_is_taken() {
    let mut node = cluster(BOTH).node();
    assert_eq!(open(&mut node, 1, WEB, FIRST), FIRST);
    // Policy Local does not offer that one; so the client has been at both.
    assert_eq!(open(&mut node, 2, NODE_PORT, FIRST), SECOND);
    assert_eq!(open(&mut node, 3, WEB, SECOND), FIRST);
}

#[test]
fn af_03_ports_are_apart_and_both_policies_of_one_share() {
    let mut node = cluster(BOTH).node();
    assert_eq!(open(&mut node, 1, NODE_PORT, FIRST), SECOND);
    assert_eq!(open(&mut node, 2, WEB, FIRST), SECOND);
    assert_eq!(open(&mut node, 3, ADMIN, FIRST), FIRST);
}

#[test]
fn af_04_and_up_02_when_endpoints_change_clients_and_connections_stay_where_they_can() {
    let mut node = cluster(BOTH).node();
    assert_eq!(open(&mut node, 1, WEB, SECOND), SECOND);
    let more = format!("{BOTH}, {{addresses: [10.151.49.1], nodeName: slave2}}");
    node.change(&cluster(&more).files());
    assert_eq!(open(&mut node, 2, WEB, FIRST), SECOND);
    // It goes: its connections go on, its client is forgotten, also when it comes back.
    node.change(&cluster("{addresses: [10.151.49.10], nodeName: slave2}").files());
    let again = Frame::tcp((OUTSIDE, 2), WEB, flag::SYN).link(link::OUTSIDE, link::ENS3);
    assert_eq!(Fields::of(&node.send_one(port::ENS3, &again.bytes()).bytes).destination, SECOND);
    node.change(&cluster(BOTH).files());
    assert_eq!(open(&mut node, 3, WEB, FIRST), FIRST);
}
