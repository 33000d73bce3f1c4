//! `pollux trace --json` of each walk, field by field against what a worker on ports in memory then does to
//! that packet under the same files. What the worker did is read off its counters and the frames that left,
//! by code of these tests.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use pollux_control::trace::packet::{Echo, PacketSpec};
use pollux_dataplane::packet::LinkAddr;
use pollux_dataplane::port::Capabilities;
use pollux_tests::binary::pollux;
use pollux_tests::frame::{Fields, inside};
use pollux_tests::node::{Left, Node};
use pollux_tests::seed::{Cluster, FAR_NODE, Files, link, port};
use serde_json::{Value, json};

/// What is asked about one packet.
struct Question<'a> {
    files: &'a Files,
    /// A port, or `host`.
    input: &'a str,
    packet: &'a str,
    /// The Service whose choice is fixed, and the backend.
    choice: Option<(&'a str, &'a str)>,
}

impl Question<'_> {
    /// The command's answer.
    fn traced(&self) -> Value {
        let [proxy, node] = &self.files.config;
        let mut arguments: Vec<&str> = vec!["trace", "--json", "--node", "slave1"];
        let files = [("--objects", &self.files.objects), ("--config", proxy), ("--config", node)];
        for (option, file) in &files {
            arguments.extend([*option, file.to_str().expect("UTF-8")]);
        }
        arguments.extend(["--in", self.input, "--packet", self.packet]);
        if let Some((_, backend)) = self.choice {
            arguments.extend(["--backend", backend]);
        }
        let outcome = pollux(&arguments);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{arguments:?}");
        assert_eq!(outcome.stdout.lines().count(), 1, "one object on one line");
        serde_json::from_str(&outcome.stdout).expect("JSON")
    }

    /// A node, and the port and bytes of the packet that is put into it.
    fn node(&self) -> (Node, String, Vec<u8>) {
        let node = Node::new(self.files, Capabilities::default());
        let input = match self.input {
            "host" => node.host_port().expect("a host port").to_string(),
            name => name.to_string(),
        };
        let spec: PacketSpec = self.packet.parse().expect("a packet");
        let link = LinkAddr(node.link_of(&input));
        (node, input, spec.frame(LinkAddr([2, 0, 0, 0, 0, 0xfe]), link, Echo::Request))
    }

    /// What the worker does to the packet, in the words of the contract.
    fn done(&self) -> Value {
        let (mut node, input, frame) = self.node();
        if let Some((service, backend)) = self.choice {
            node.choose(service, backend);
        }
        let left = node.send(&input, &frame);
        let stats = node.stats();
        let reason = stats.dropped.iter().next().map(|(reason, _)| reason.name());
        if let Some(reason) = reason {
            let verdict = if stats.originated == 0 { "drop" } else { "reject" };
            return json!({"verdict": verdict, "reason": reason});
        }
        if stats.held == 1 {
            return json!({"verdict": "hold"});
        }
        let [Left { port, bytes, .. }] = &left[..] else { panic!("one frame should leave: {left:?}") };
        let fields = Fields::of(bytes);
        json!({
            "verdict": if Some(port.as_str()) == node.host_port() { "deliver" } else { "forward" },
            "out_port": port,
            "source": fields.source.to_string(),
            "source_port": fields.source_port,
            "destination": fields.destination.to_string(),
            "destination_port": fields.destination_port,
            "ttl": fields.ttl,
            "link_source": LinkAddr(fields.link_source).to_string(),
            "link_destination": LinkAddr(fields.link_destination).to_string(),
        })
    }

    /// Where the worker sends the packet for each place that it can choose: address, port, and whether the
    /// source is masqueraded.
    fn offered(&self) -> BTreeSet<(Ipv4Addr, u16, bool)> {
        const PLACES: u32 = 8; // more than any set here is long: the rest is chosen at random
        let choices = (0..PLACES).map(|place| {
            let (mut node, input, frame) = self.node();
            node.choose_place(place);
            let (before, left) = (Fields::of(&frame), node.send_one(&input, &frame));
            let after = Fields::of(&inside(&left.bytes));
            // The host's own address may be masqueraded as itself: only the mark tells.
            let marked = node.marks() == [0x4000];
            let moved = (before.source, before.source_port) != (after.source, after.source_port);
            (after.destination, after.destination_port, marked || moved)
        });
        choices.collect()
    }

    /// Asks both and compares. `backends`: how many the packet is offered; with none, nothing is translated.
    fn assert_agreed(&self, backends: usize) {
        let traced = self.traced();
        let done = self.done();
        for field in [
            "verdict",
            "reason",
            "out_port",
            "source",
            "source_port",
            "destination",
            "destination_port",
            "ttl",
            "link_source",
            "link_destination",
        ] {
            assert_eq!(traced.get(field), done.get(field), "{field} of {}: {traced:#}", self.packet);
        }
        let listed = traced["backends"].as_array().expect("a list");
        assert_eq!(listed.len(), backends, "{traced:#}");
        assert!(!traced["steps"].as_array().expect("a list").is_empty());
        if backends == 0 {
            return;
        }
        let set: BTreeSet<_> = listed.iter().map(backend).collect();
        assert_eq!(set, self.offered(), "backends of {}: {traced:#}", self.packet);
        for one in listed {
            assert_eq!(one["probability"], format!("1/{backends}"));
        }
    }
}

fn backend(value: &Value) -> (Ipv4Addr, u16, bool) {
    let address = value["address"].as_str().expect("a string").parse().expect("an address");
    let port = value["port"].as_u64().expect("a number");
    (address, port as u16, value["masquerade"].as_bool().expect("true or false"))
}

const MYAPP: &str = "default/myapp";

#[test]
fn w1_host_to_service_local_backend() {
    let files = &Cluster::on_a_machine().files();
    let packet = "tcp 172.16.1.50:56060 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.51.8:80"));
    Question { files, input: "host", packet, choice }.assert_agreed(3);
}

#[test]
fn w2_host_to_service_remote_backend() {
    let files = &Cluster::on_a_machine().files();
    let packet = "tcp 172.16.1.50:55972 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.49.8:80"));
    Question { files, input: "host", packet, choice }.assert_agreed(3);
}

#[test]
fn w3_icmp_to_the_service() {
    let files = &Cluster::seed().files();
    let packet = "icmp 172.16.1.50 > 10.150.18.86";
    Question { files, input: "host", packet, choice: None }.assert_agreed(0);
}

#[test]
fn w4_pod_to_service_same_node() {
    let files = &Cluster::seed().files();
    let packet = "tcp 10.151.51.7:40000 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.51.8:80"));
    Question { files, input: port::POD_7, packet, choice }.assert_agreed(3);
}

fn w5(cluster: &Cluster) {
    let files = &cluster.files();
    let packet = "tcp 10.151.51.7:40000 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.49.8:80"));
    Question { files, input: port::POD_7, packet, choice }.assert_agreed(3);
}

#[test]
fn w5_pod_to_service_other_node() {
    w5(&Cluster::seed());
}

#[test]
fn w5_with_masquerade_all() {
    w5(&Cluster::seed().with_masquerade_all());
}

#[test]
fn w5_with_a_cni_rule() {
    w5(&Cluster::seed().with_cni_rule());
}

#[test]
fn w6_hairpin() {
    let files = &Cluster::seed().files();
    let packet = "tcp 10.151.51.8:40000 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.51.8:80"));
    Question { files, input: port::POD_8, packet, choice }.assert_agreed(3);
}

fn node_port(policy: &str, backend: &str, backends: usize) {
    let files = &Cluster::seed().with_node_port(policy).files();
    let packet = "tcp 172.16.0.9:50000 > 172.16.1.50:30080";
    let choice = Some(("default/web", backend));
    Question { files, input: port::ENS3, packet, choice }.assert_agreed(backends);
}

#[test]
fn w7_node_port_local_backend() {
    node_port("Cluster", "10.151.51.8:80", 2);
}

#[test]
fn w8_node_port_remote_backend() {
    node_port("Cluster", "10.151.49.8:80", 2);
}

#[test]
fn w9_node_port_policy_local() {
    node_port("Local", "10.151.51.8:80", 1);
}

#[test]
fn w10_a_backend_behind_the_tunnel() {
    let from = "  - addresses:\n    - 10.151.49.8\n";
    let cluster = Cluster::seed().edit_objects(from, "  - addresses:\n    - 10.151.32.5\n");
    let unknown = &cluster.files();
    let files = &cluster.with_neighbour(FAR_NODE, link::FAR_NODE).files();
    let packet = "tcp 10.151.51.7:40000 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.32.5:80"));
    let question = Question { files, input: port::POD_7, packet, choice };
    question.assert_agreed(3);
    let traced = question.traced();
    assert_eq!((&traced["source"], &traced["destination"]), (&json!("172.16.1.50"), &json!("172.16.2.77")));
    let steps = traced["steps"].as_array().expect("a list");
    let tunnel = steps.iter().find(|step| step["table"] == "tunnel").expect("a step into the tunnel");
    assert_eq!(tunnel["effect"], "IPIP 172.16.1.50 > 172.16.2.77: routed again");
    let host = Question { files, input: "host", packet: "tcp 172.16.1.50:4000 > 10.150.18.86:80", choice };
    host.assert_agreed(3);
    // Its link is not known: what is in the tunnel waits.
    assert_eq!(Question { files: unknown, input: port::POD_7, packet, choice }.traced()["verdict"], "hold");
}

#[test]
fn w11_no_endpoints() {
    let files = &Cluster::seed().with_empty_service().files();
    let packet = "tcp 10.151.51.7:40000 > 10.150.18.99:80";
    let question = Question { files, input: port::POD_7, packet, choice: None };
    question.assert_agreed(0);
    assert_eq!(question.traced()["icmp"], "port-unreachable");
}

#[test]
fn w12_pod_to_pod() {
    let files = &Cluster::seed().files();
    for packet in [
        "tcp 10.151.51.7:40000 > 10.151.49.8:80",
        "udp 10.151.51.7:40000 > 10.151.49.8:53 ttl 3",
        "icmp 10.151.51.7 > 10.151.49.8",
    ] {
        Question { files, input: port::POD_7, packet, choice: None }.assert_agreed(0);
    }
}

#[test]
fn w13_blackhole() {
    let files = &Cluster::seed().files();
    let packet = "tcp 10.151.51.7:40000 > 10.151.51.99:80";
    Question { files, input: port::POD_7, packet, choice: None }.assert_agreed(0);
}

#[test]
fn w14_dockers_rule() {
    let files = &Cluster::seed().with_docker().files();
    for packet in ["udp 172.17.0.5:40000 > 8.8.8.8:53", "udp 172.17.0.5:40000 > 172.17.0.6:53"] {
        Question { files, input: port::DOCKER, packet, choice: None }.assert_agreed(0);
    }
}

#[test]
fn refusals_and_packets_that_wait() {
    let files = &Cluster::seed().files();
    for packet in [
        "udp 10.151.51.7:40000 > 10.151.49.8:53 ttl 1", // time exceeded
        "tcp 10.151.51.7:40000 > 10.151.49.8:80 R",     // begins no connection
        "udp 10.151.51.7:40000 > 10.151.161.3:53",      // via 172.16.1.221, whom nobody knows
        "udp 10.151.51.7:40000 > 172.16.1.50:53",       // the node itself
        "udp 127.0.0.1:40000 > 10.151.49.8:53",         // from a port, that is no source
    ] {
        Question { files, input: port::POD_7, packet, choice: None }.assert_agreed(0);
    }
}

#[test]
fn a_connections_later_packets_follow_its_entry() {
    let files = &Cluster::seed().files();
    let [proxy, node] = &files.config;
    let outcome = pollux([
        "trace".as_ref(),
        "--json".as_ref(),
        "--objects".as_ref(),
        files.objects.as_os_str(),
        "--config".as_ref(),
        proxy.as_os_str(),
        "--config".as_ref(),
        node.as_os_str(),
        "--in".as_ref(),
        "host".as_ref(),
        "--packet".as_ref(),
        "tcp 172.16.1.50:56060 > 10.150.18.86:80 .".as_ref(),
        "--state".as_ref(),
        "established".as_ref(),
    ]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    let traced: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let effects: Vec<_> =
        traced["steps"].as_array().expect("a list").iter().map(|step| &step["effect"]).collect();
    assert!(
        effects
            .iter()
            .any(|effect| effect.as_str().is_some_and(|effect| effect.contains("known connection"))),
        "{traced:#}"
    );
    assert_eq!(traced["verdict"], "forward");
    assert_eq!(traced["source"], "172.16.1.50");
}

#[test]
fn af_01_affinity_is_said_in_the_words_of_its_rules_and_offers_all_backends() {
    let affine = "sessionAffinity: ClientIP";
    let files = &Cluster::seed().edit_objects("sessionAffinity: None", affine).files();
    let packet = "tcp 10.151.51.7:40000 > 10.150.18.86:80";
    let choice = Some((MYAPP, "10.151.51.8:80"));
    let question = Question { files, input: port::POD_7, packet, choice };
    question.assert_agreed(3);
    let traced = question.traced();
    let steps = traced["steps"].as_array().expect("a list");
    let rules: Vec<_> = steps.iter().filter_map(|step| step["rule"].as_str()).collect();
    // As iptables-save prints it where kube-proxy wrote it.
    let set = "-p tcp -m recent --set --name KUBE-SEP-Y6Q4QAGGLGL6PUEO --mask 255.255.255.255 --rsource \
               -m tcp -j DNAT --to-destination 10.151.51.8:80";
    assert!(rules.contains(&set), "{traced:#}");
    assert!(
        rules.iter().any(|rule| rule.starts_with("-m recent --rcheck --seconds 10800 --reap")),
        "{traced:#}"
    );
}
