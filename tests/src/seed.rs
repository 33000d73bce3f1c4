//! The seed's cluster as docs/examples describes it, its addresses, and variations of it.
//!
//! A variation is the examples' text with one place changed, written to files: so the same input goes to the
//! worker in a test and to the command that is compared with it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::frame::Link;

/// slave1, the node that forwards.
pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 50);
/// Service default/myapp, port 80.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 150, 18, 86);
/// The pod on cali566211caf94.
pub const POD_7: Ipv4Addr = Ipv4Addr::new(10, 151, 51, 7);
/// The pod on caliee93b0bdd66.
pub const POD_8: Ipv4Addr = Ipv4Addr::new(10, 151, 51, 8);
/// The pod on slave2.
pub const POD_REMOTE: Ipv4Addr = Ipv4Addr::new(10, 151, 49, 8);
/// The node behind slave1's tunnel.
pub const FAR_NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 2, 77);
/// A client outside the cluster, on slave1's link.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);

/// The ports of slave1.
pub mod port {
    #![allow(missing_docs, reason = "named as what they lead to")]
    pub const ENS3: &str = "ens3";
    pub const POD_7: &str = "cali566211caf94";
    pub const POD_8: &str = "caliee93b0bdd66";
    pub const HOST: &str = "pollux0";
    pub const DOCKER: &str = "docker0";
}

/// Link addresses.
pub mod link {
    #![allow(missing_docs, reason = "named as whose they are")]
    use super::Link;
    pub const ENS3: Link = [0xfa, 0x16, 0x3e, 0x92, 0x11, 0xca];
    pub const GATEWAY: Link = [0xfa, 0x16, 0x3e, 0xd2, 0x26, 0x34];
    pub const SLAVE2: Link = [0xfa, 0x16, 0x3e, 0xa9, 0x16, 0x9f];
    pub const FAR_NODE: Link = [0xfa, 0x16, 0x3e, 0x00, 0x02, 0x77];
    pub const OUTSIDE: Link = [0xfa, 0x16, 0x3e, 0x00, 0x00, 0x09];
    /// Both pod ports'.
    pub const CALI: Link = [0xee; 6];
    pub const POD_7: Link = [0xce, 0x5a, 0x9e, 0x2f, 0x70, 0x07];
    pub const POD_8: Link = [0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60];
    /// The host port's, on the node's side: made of its number, as nothing else gives it one.
    pub const HOST: Link = [0x02, 0, 0, 0, 0, 0x03];
    /// Pollux's on the host port.
    pub const HOST_SIDE: Link = [0x02, 0, 0, 0, 0, 0x01];
    pub const DOCKER: Link = [0x02, 0x42, 0xac, 0x11, 0x00, 0x01];
    pub const CONTAINER_5: Link = [0x02, 0x42, 0xac, 0x11, 0x00, 0x05];
    pub const CONTAINER_6: Link = [0x02, 0x42, 0xac, 0x11, 0x00, 0x06];
}

/// Objects and configuration, on their way to files.
#[derive(Clone, Debug)]
pub struct Cluster {
    objects: String,
    proxy: String,
    node: String,
}

/// The files of a cluster. They go when this is dropped.
#[derive(Debug)]
pub struct Files {
    /// For `--objects`.
    pub objects: PathBuf,
    /// For `--config`: kube-proxy's configuration and Pollux's own.
    pub config: [PathBuf; 2],
    directory: TempDir,
}

impl Files {
    /// The directory that holds them, for what a test writes itself.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// A folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster::seed()
    }
}

impl Cluster {
    /// docs/examples as it is, on ports in memory.
    ///
    /// # Panics
    /// If the examples are not there.
    pub fn seed() -> Cluster {
        let read = |name: &str| {
            let path = repository("docs/examples").join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Cluster {
            objects: read("objects.yaml"),
            proxy: read("proxy-config.yaml"),
            node: read("node.yaml")
                .replace("backend: af_packet", "backend: memory")
                .replace("backend: tap", "backend: memory"),
        }
    }

    /// The seed's cluster without any change: its backends are those of a machine.
    ///
    /// # Panics
    /// If the examples are not there.
    pub fn on_a_machine() -> Cluster {
        let mut cluster = Cluster::seed();
        cluster.node = std::fs::read_to_string(repository("docs/examples/node.yaml")).expect("the example");
        cluster
    }

    /// Changes one place of Pollux's own configuration.
    ///
    /// # Panics
    /// If `from` is not there exactly once: the variation would not be what the test thinks.
    pub fn edit_node(mut self, from: &str, to: &str) -> Cluster {
        self.node = edited(&self.node, from, to);
        self
    }

    /// Changes one place of kube-proxy's configuration.
    ///
    /// # Panics
    /// As [`edit_node`](Cluster::edit_node).
    pub fn edit_proxy(mut self, from: &str, to: &str) -> Cluster {
        self.proxy = edited(&self.proxy, from, to);
        self
    }

    /// Changes one place of the objects.
    ///
    /// # Panics
    /// As [`edit_node`](Cluster::edit_node).
    pub fn edit_objects(mut self, from: &str, to: &str) -> Cluster {
        self.objects = edited(&self.objects, from, to);
        self
    }

    /// Adds objects: YAML documents.
    pub fn with_objects(mut self, yaml: &str) -> Cluster {
        self.objects = format!("{}---\n{yaml}", self.objects);
        self
    }

    /// Adds a neighbour of ens3.
    pub fn with_neighbour(self, address: Ipv4Addr, link: Link) -> Cluster {
        let [a, b, c, d, e, f] = link;
        let line = format!(
            "neighbours:\n- {{address: {address}, linkAddress: \
             {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}, dev: ens3}}\n"
        );
        self.edit_node("neighbours:\n", &line)
    }

    /// Service default/web (NodePort 30080) of the given external policy, one pod on slave1 and one on
    /// slave2, and a client outside that slave1 knows.
    pub fn with_node_port(self, external_policy: &str) -> Cluster {
        self.with_neighbour(OUTSIDE, link::OUTSIDE).with_objects(&format!(
            "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: NodePort
  clusterIP: 10.150.18.87
  clusterIPs: [10.150.18.87]
  ipFamilies: [IPv4]
  externalTrafficPolicy: {external_policy}
  ports:
  - {{port: 80, protocol: TCP, targetPort: 80, nodePort: 30080}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: \"\", port: 80, protocol: TCP}}]
endpoints:
- {{addresses: [10.151.49.8], nodeName: slave2, conditions: {{ready: true}}}}
- {{addresses: [10.151.51.8], nodeName: slave1, conditions: {{ready: true}}}}
"
        ))
    }

    /// Service default/none (10.150.18.99:80), which has no endpoint (W11).
    pub fn with_empty_service(self) -> Cluster {
        self.with_objects(
            "apiVersion: v1
kind: Service
metadata: {name: none, namespace: default}
spec:
  type: ClusterIP
  clusterIP: 10.150.18.99
  clusterIPs: [10.150.18.99]
  ipFamilies: [IPv4]
  ports:
  - {port: 80, protocol: TCP, targetPort: 80}
  - {name: dns, port: 53, protocol: UDP, targetPort: 53}
",
        )
    }

    /// docker0 as a port, with two containers (W14).
    pub fn with_docker(self) -> Cluster {
        self.edit_node("- {name: docker0, addresses: [172.17.0.1/16], index: 3}\n", "")
            .edit_node(
                "interfaces:\n",
                "- name: docker0\n  role: pod\n  backend: memory\n  linkAddress: 02:42:ac:11:00:01\n  mtu: 1500\n  \
                 addresses: [172.17.0.1/16]\n  index: 3\ninterfaces:\n",
            )
            .edit_node(", linkDown: true", "")
            .edit_node(
                "neighbours:\n",
                "neighbours:\n\
                 - {address: 172.17.0.5, linkAddress: '02:42:ac:11:00:05', dev: docker0}\n\
                 - {address: 172.17.0.6, linkAddress: '02:42:ac:11:00:06', dev: docker0}\n",
            )
    }

    /// The node as a dual-stack one: an IPv6 address, the same pods and backends with IPv6 addresses, the
    /// Services default/myapp6 (fd00:10:150::86, node port 30086) and default/none6 (fd00:10:150::99). Only
    /// slave2 is a known neighbour; pods are to be found.
    pub fn with_ipv6(self) -> Cluster {
        self.edit_proxy("clusterCIDR: 10.151.0.0/16", "clusterCIDR: 10.151.0.0/16,fd00:10:151::/48")
            .edit_node("addresses: [172.16.1.50/12]", "addresses: [172.16.1.50/12, '2001:db8:1::50/64']")
            .edit_node(
                "routes:\n",
                "routes:\n\
                 - {to: '::/0', via: '2001:db8:1::1', dev: ens3}\n\
                 - {to: 'fd00:10:151:49::/64', via: '2001:db8:1::88', dev: ens3}\n\
                 - {to: 'fd00:10:151:51::/64', kind: blackhole}\n\
                 - {to: 'fd00:10:151:51::7', dev: cali566211caf94}\n\
                 - {to: 'fd00:10:151:51::8', dev: caliee93b0bdd66}\n",
            )
            .edit_node(
                "neighbours:\n",
                "neighbours:\n\
                 - {address: '2001:db8:1::88', linkAddress: 'fa:16:3e:a9:16:9f', dev: ens3}\n",
            )
            .with_objects(
                "apiVersion: v1
kind: Service
metadata: {name: myapp6, namespace: default}
spec:
  type: NodePort
  clusterIP: 'fd00:10:150::86'
  clusterIPs: ['fd00:10:150::86']
  ipFamilies: [IPv6]
  ports: [{port: 80, protocol: TCP, targetPort: 80, nodePort: 30086}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: myapp6-1, namespace: default, labels: {kubernetes.io/service-name: myapp6}}
addressType: IPv6
ports: [{name: \"\", port: 80, protocol: TCP}]
endpoints:
- {addresses: ['fd00:10:151:49::8'], nodeName: slave2, conditions: {ready: true}}
- {addresses: ['fd00:10:151:51::8'], nodeName: slave1, conditions: {ready: true}}
---
apiVersion: v1
kind: Service
metadata: {name: none6, namespace: default}
spec:
  type: ClusterIP
  clusterIP: 'fd00:10:150::99'
  clusterIPs: ['fd00:10:150::99']
  ipFamilies: [IPv6]
  ports: [{port: 80, protocol: TCP, targetPort: 80}]
",
            )
    }

    /// kube-proxy's `masqueradeAll` (W5).
    pub fn with_masquerade_all(self) -> Cluster {
        self.edit_proxy("conntrack:\n", "iptables:\n  masqueradeAll: true\nconntrack:\n")
    }

    /// A CNI's rule that gives pods the node's address when they leave the node (W5, note 1).
    pub fn with_cni_rule(self) -> Cluster {
        self.edit_node("  rules:\n", "  rules:\n  - {name: cni, source: 10.151.0.0/16, outPort: ens3}\n")
    }

    /// For an agent with this many workers, whose ports have the lines that `lines` gives for their names in
    /// place of `backend: memory`. The host port keeps the link address that it has in memory.
    ///
    /// # Panics
    /// If the configuration is not as the examples are.
    pub fn on_backend(self, workers: usize, lines: impl Fn(&str) -> String) -> Cluster {
        let mut cluster = self.edit_node(
            "ports:\n- name: ens3\n",
            &format!("workers: {workers}\nflowTable: {{connections: 4096}}\nports:\n- name: ens3\n"),
        );
        let mut port = "";
        let mut node = String::new();
        for line in cluster.node.lines() {
            if let Some(name) = line.strip_prefix("- name: ") {
                port = name.split(' ').next().unwrap_or(name);
            }
            if line == "  backend: memory" {
                if port == self::port::HOST {
                    node.push_str("  linkAddress: 02:00:00:00:00:03\n");
                }
                for line in lines(port).lines() {
                    node.push_str("  ");
                    node.push_str(line);
                    node.push('\n');
                }
            } else {
                node.push_str(line);
                node.push('\n');
            }
        }
        assert!(!node.contains("backend: memory") || lines(self::port::ENS3) == "backend: memory", "{node}");
        cluster.node = node;
        cluster
    }

    /// Writes the files.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn files(&self) -> Files {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("a file in a temporary directory");
            path
        };
        Files {
            objects: write("objects.yaml", &self.objects),
            config: [write("proxy-config.yaml", &self.proxy), write("node.yaml", &self.node)],
            directory,
        }
    }
}

fn edited(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} is not there once in:\n{text}");
    text.replacen(from, to, 1)
}
