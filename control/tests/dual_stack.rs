//! A dual-stack node on real interfaces: every Service is reached over IPv4 and over IPv6, by real sockets of
//! pods, of the node itself and of a client outside, through the agent on AF_PACKET and TAP. The node's kernel
//! forwards both families as well, as on a real node, and is kept from it by the guard.
//!
//! ```text
//!   outside 192.0.2.9, 2001:db8:1::9
//!      │ ens3
//!      │ ens3 192.0.2.50, 2001:db8:1::50
//!     node ── cali-a ── pod-a 10.244.0.10, fd00:10:244::a
//!      └───── cali-b ── pod-b 10.244.0.11, fd00:10:244::b
//! ```
//!
//! Pods are wired as Calico does it: the host side has no address but its own link-local one, which is the pods'
//! IPv6 gateway; the IPv4 gateway is 169.254.1.1, answered for by proxy.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::agent::{Agent, AgentOptions, HostOptions, Running, Sources};
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::Sandbox;
use pollux_control::lab::traffic::{Echo, Service, TcpClient, TcpServer, UdpServer, ping, udp_echo};
use pollux_control::lab::{Device, End, Forwarding, Kind, Network, Node, Plan};
use pollux_dataplane::packet::{LinkAddr, V4, V6};
use pollux_dataplane::route::Neighbours;
use pollux_dataplane::stats::Reason;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Longest wait for what must come.
const SOON: Duration = Duration::from_secs(5);

const NODE: &str = "node";
const OUTSIDE: &str = "outside";
const POD_A: &str = "pod-a";
const POD_B: &str = "pod-b";

/// The link address of every node's side of a pod's cable.
const CALICO: LinkAddr = LinkAddr([0xee; 6]);
/// The link-local address that belongs to it.
const GATEWAY: &str = "fe80::ecee:eeff:feee:eeee";

/// The port of the pods' servers.
const PORT: u16 = 8080;

/// One family's addresses.
struct Family {
    name: &'static str,
    node: IpAddr,
    outside: IpAddr,
    pod_a: IpAddr,
    pod_b: IpAddr,
    /// The Service `web`, whose endpoint is pod-b; `far`, whose endpoint is the machine outside; and `none`.
    web: IpAddr,
    far: IpAddr,
    none: IpAddr,
    /// An address on the uplink that nobody has.
    nobody: IpAddr,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        node: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 50)),
        outside: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)),
        pod_a: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 10)),
        pod_b: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 11)),
        web: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
        far: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11)),
        none: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 12)),
        nobody: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)),
    },
    Family {
        name: "IPv6",
        node: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x50)),
        outside: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9)),
        pod_a: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0xa)),
        pod_b: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0xb)),
        web: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10)),
        far: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x11)),
        none: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x12)),
        nobody: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77)),
    },
];

const STOPPED: &str = "the forwarder has stopped";

const WEB_NODE_PORT: u16 = 30080;
const NONE_NODE_PORT: u16 = 30081;

fn main() -> ExitCode {
    // Before anything starts a thread.
    let _sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the dual-stack tests need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let trials = vec![
        trial("wk_01_pods_reach_services_on_this_node_and_another", Start::Plain, pods_reach_services),
        trial(
            "pt_02_the_host_reaches_services_pods_and_the_outside",
            Start::Plain,
            the_host_reaches_everybody,
        ),
        trial("mq_04_a_client_outside_reaches_node_ports", Start::Plain, a_client_outside_reaches_node_ports),
        trial("mq_03_a_pod_reaches_itself_through_its_service", Start::Plain, a_pod_reaches_itself),
        trial("no_01_a_service_without_endpoints_refuses", Start::Plain, a_service_without_endpoints_refuses),
        trial("ct_01_echo_passes_and_nb_02_silence_is_told", Start::Plain, echo_passes_and_silence_is_told),
        trial("nb_01_the_kernel_s_neighbours_are_followed", Start::KernelNeighbours, neighbours_are_followed),
        trial("pt_05_ipv6_that_comes_later_is_left_to_the_kernel", Start::WithoutIpv6, ipv6_that_comes_later),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What a node is like when its agent starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Pollux finds its neighbours by itself.
    Plain,
    /// It knows those of the kernel.
    KernelNeighbours,
    /// The node has no IPv6 address yet.
    WithoutIpv6,
}

fn trial(name: &'static str, start: Start, test: fn(&mut Site) -> Outcome) -> Trial {
    Trial::test(name, move || {
        let run = || {
            let mut site = Site::new(name, start)?;
            test(&mut site).map_err(|error| format!("{error} ({:?})", site.dropped()))?;
            site.assert_balanced()
        };
        run().map_err(|error: Box<dyn std::error::Error>| Failed::from(error.to_string()))
    })
}

/// A network of its own with an agent on its node, and servers in pod-b and outside.
struct Site {
    agent: Running,
    network: Network,
    tcp: Vec<TcpServer>,
    _udp: Vec<UdpServer>,
    _directory: tempfile::TempDir,
}

/// An address of a device that is usable at once: the lab has no second of it.
fn address(address: IpAddr, length: u8) -> String {
    format!("{address}/{length}{}", if address.is_ipv6() { " nodad" } else { "" })
}

/// A machine that speaks IPv6 and does not wait for its link-local addresses.
fn machine(name: &str) -> Node {
    ["all", "default"].into_iter().fold(Node::new(name), |node, which| {
        node.setting(format!("net/ipv6/conf/{which}/disable_ipv6"), "0")
            .setting(format!("net/ipv6/conf/{which}/accept_dad"), "0")
    })
}

fn plan(start: Start) -> Plan {
    let [v4, v6] = &FAMILIES;
    let uplink = |device: Device, [four, six]: [IpAddr; 2]| {
        device.address(address(four, 24)).address(address(six, 64))
    };
    let pod_port = |name: &str, pod: &str| {
        Device::new(name, Kind::Cable(End::new(pod, "eth0"))).link_address(CALICO).mtu(1450)
    };
    let node = machine(NODE)
        .forwarding(Forwarding::Kernel)
        .setting("net/ipv6/conf/all/forwarding", "1")
        .device(uplink(Device::new("ens3", Kind::Cable(End::new(OUTSIDE, "ens3"))), [v4.node, v6.node]))
        .device(pod_port("cali-a", POD_A))
        .device(pod_port("cali-b", POD_B));
    let to_pods = [(v4.pod_a, "cali-a"), (v6.pod_a, "cali-a"), (v4.pod_b, "cali-b"), (v6.pod_b, "cali-b")];
    let node = to_pods.iter().fold(node, |node, (pod, port)| node.route(format!("{pod} dev {port}")));
    let node = node
        .route(format!("default via {}", v4.outside))
        .route(format!("default via {}", v6.outside))
        .route("unreachable 203.0.113.0/24")
        .route("unreachable 2001:db8:7::/64");
    let outside = machine(OUTSIDE)
        .device(uplink(Device::new("ens3", Kind::FarEnd), [v4.outside, v6.outside]))
        .route(format!("10.244.0.0/24 via {}", v4.node))
        .route(format!("fd00:10:244::/64 via {}", v6.node));
    let pod = |name: &str, four: IpAddr, six: IpAddr| {
        let eth0 = Device::new("eth0", Kind::FarEnd).mtu(1450);
        machine(name)
            .device(eth0.address(address(four, 32)).address(address(six, 128)))
            .route("169.254.1.1 dev eth0 scope link")
            .route("default via 169.254.1.1 dev eth0")
            .route(format!("default via {GATEWAY} dev eth0"))
    };
    let node = if start == Start::WithoutIpv6 { without_ipv6(node) } else { node };
    Plan { nodes: vec![outside, node, pod(POD_A, v4.pod_a, v6.pod_a), pod(POD_B, v4.pod_b, v6.pod_b)] }
}

/// The node as it is before it has an IPv6 address.
fn without_ipv6(mut node: Node) -> Node {
    node.routes.retain(|route| !route.contains(':'));
    for device in &mut node.devices {
        device.addresses.retain(|address| !address.contains(':'));
    }
    node.settings.retain(|(path, _)| !path.ends_with("disable_ipv6"));
    node
}

fn node_document(start: Start) -> Value {
    let neighbours = if start == Start::KernelNeighbours { json!("kernel") } else { json!([]) };
    let port = |name: &str, role: &str, more: &[(&str, Value)]| {
        let mut port = json!({"name": name, "role": role, "backend": "af_packet"});
        for (field, value) in more {
            port[*field] = value.clone();
        }
        port
    };
    json!({
        "apiVersion": "pollux.dev/v1alpha1", "kind": "Node",
        "ports": [
            port("ens3", "uplink", &[]),
            port("cali-a", "pod", &[("proxyArp", json!(true))]),
            port("cali-b", "pod", &[("proxyArp", json!(true))]),
            port("pollux0", "host", &[("backend", json!("tap")), ("mtu", json!(1500))]),
        ],
        "routes": "kernel", "neighbours": neighbours, "flowTable": {"connections": 4096},
    })
}

/// A dual-stack Service of TCP and UDP, and its slices.
fn service(
    name: &str,
    address: fn(&Family) -> IpAddr,
    endpoint: Option<fn(&Family) -> IpAddr>,
    node_port: Option<u16>,
) -> Vec<Value> {
    let addresses: Vec<IpAddr> = FAMILIES.iter().map(address).collect();
    let ports = ["TCP", "UDP"].map(|protocol| {
        let mut port = json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80});
        if let Some(node_port) = node_port {
            port["nodePort"] = json!(node_port);
        }
        port
    });
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": if node_port.is_some() { "NodePort" } else { "ClusterIP" },
            "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
        },
    })];
    items.extend(
        endpoint.iter().flat_map(|endpoint| FAMILIES.iter().map(move |family| (family, endpoint))).map(
            |(family, endpoint)| {
                json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.name,
                    "metadata": {
                        "name": format!("{name}-{}", family.name.to_lowercase()), "namespace": "default",
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "endpoints": [{"addresses": [endpoint(family)], "conditions": {"ready": true}}],
                    "ports": [
                        {"name": "tcp", "protocol": "TCP", "port": PORT},
                        {"name": "udp", "protocol": "UDP", "port": PORT},
                    ],
                })
            },
        ),
    );
    items
}

impl Site {
    fn new(name: &str, start: Start) -> Result<Site, Box<dyn std::error::Error>> {
        let prefix: String = name.split('_').take(3).filter_map(|word| word.get(..2)).collect();
        let network = Network::build(&plan(start), &format!("d-{prefix}-"))?;
        let directory = tempfile::tempdir()?;
        let write = |file: &str, text: String| {
            let path = directory.path().join(file);
            std::fs::write(&path, text).map(|()| path)
        };
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clusterCIDR": "10.244.0.0/16,fd00:10:244::/56",
        });
        let items = [
            service("web", |of| of.web, Some(|of| of.pod_b), Some(WEB_NODE_PORT)),
            service("far", |of| of.far, Some(|of| of.outside), None),
            service("none", |of| of.none, None, Some(NONE_NODE_PORT)),
        ]
        .concat();
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let sources = Sources {
            config: vec![
                write("proxy.json", proxy.to_string())?,
                write("node.json", node_document(start).to_string())?,
            ],
            objects: vec![write("objects.json", objects.to_string())?],
            node: Some(NODE.to_owned()),
        };
        let options = AgentOptions {
            inputs: sources.read()?.0,
            follow: None,
            admin: None,
            host: HostOptions { state_directory: directory.path().join("state"), ..HostOptions::default() },
        };
        let agent = network.node(NODE).run(|| Agent::start(options))??;
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for family in &FAMILIES {
            for (node, address) in [(POD_B, family.pod_b), (OUTSIDE, family.outside)] {
                let at = SocketAddr::new(address, PORT);
                tcp.push(TcpServer::start(network.node(node), at, Service::Echo)?);
                udp.push(UdpServer::start(network.node(node), at)?);
            }
        }
        Ok(Site { agent, network, tcp, _udp: udp, _directory: directory })
    }

    fn node(&self, name: &str) -> &Netns {
        self.network.node(name)
    }

    /// A TCP connection and a UDP exchange.
    fn call(&self, from: &str, to: SocketAddr) -> Outcome {
        let failed = |error: io::Error| format!("{from} to {to}: {error}");
        let mut client = TcpClient::connect(self.node(from), None, to, SOON).map_err(failed)?;
        client.echo(&[7; 100_000], SOON).map_err(failed)?;
        client.close(SOON).map_err(failed)?;
        let echoed = udp_echo(self.node(from), None, to, b"hello", SOON).map_err(failed)?;
        if echoed == Some(to) { Ok(()) } else { Err(format!("{from} to {to}: UDP {echoed:?}").into()) }
    }

    /// The TTL or hop limit of the answer to one of five echo requests. (The kernel may lose the first frames to
    /// an interface that has just come up.)
    fn echo(&self, from: &str, to: IpAddr) -> io::Result<Option<u8>> {
        const EACH: Duration = Duration::from_secs(1);
        for sequence in 1..=5 {
            let answered = match to {
                IpAddr::V4(to) => {
                    let echo = Echo { to, identifier: 7, sequence, data_len: 1200 };
                    ping(self.node(from), echo, EACH)?.map(|reply| reply.ttl)
                }
                IpAddr::V6(to) => ping6(self.node(from), to, sequence, 1200, EACH)?,
            };
            if answered.is_some() {
                return Ok(answered);
            }
        }
        Ok(None)
    }

    /// How a connection fails.
    fn tcp_error(&self, from: &str, to: SocketAddr) -> Option<ErrorKind> {
        TcpClient::connect(self.node(from), None, to, SOON).err().map(|error| error.kind())
    }

    /// How a datagram fails. Of what is not final its sender is not told, unless it asks to be.
    fn udp_error(&self, from: &str, to: SocketAddr) -> Option<ErrorKind> {
        udp_echo(self.node(from), None, to, b"hello", SOON).err().map(|error| error.kind())
    }

    /// The clients that the servers in pod-b have seen, by address.
    fn clients_of_pod_b(&self) -> Vec<IpAddr> {
        let servers = self.tcp.iter().step_by(2);
        servers.flat_map(TcpServer::peers).map(|peer| peer.ip()).collect()
    }

    /// What was dropped, and how often.
    fn dropped(&self) -> Vec<(&'static str, u64)> {
        let stats = self.agent.worker().ask(|worker| worker.stats());
        let dropped = stats.map(|stats| stats.dropped.iter().map(|(reason, n)| (reason.name(), n)).collect());
        dropped.unwrap_or_default()
    }

    /// FW-05, and that nothing was dropped but what a test expects and what was not Pollux's.
    fn assert_balanced(&self) -> Outcome {
        let stats = self.agent.worker().ask(|worker| worker.stats()).map_err(|_| STOPPED)?;
        let (came, went) = stats.balance();
        assert_eq!(came, went, "{stats:?}");
        let unexpected: Vec<_> = stats
            .dropped
            .iter()
            .filter(|(reason, _)| {
                !matches!(
                    reason,
                    Reason::NoEndpoints
                        | Reason::NeighbourFailed
                        | Reason::NotForPollux
                        | Reason::RouteUnreachable
                )
            })
            .collect();
        assert_eq!(unexpected, []);
        Ok(())
    }
}

fn pods_reach_services(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        site.call(POD_A, SocketAddr::new(family.web, 80))?;
        site.call(POD_A, SocketAddr::new(family.far, 80))?;
        // Without a Service.
        site.call(POD_A, SocketAddr::new(family.pod_b, PORT))?;
        site.call(POD_A, SocketAddr::new(family.outside, PORT))?;
    }
    let expected = FAMILIES.iter().flat_map(|family| [family.pod_a; 2]).collect::<Vec<_>>();
    assert_eq!(site.clients_of_pod_b(), expected, "a pod's address stays");
    Ok(())
}

fn the_host_reaches_everybody(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        site.call(NODE, SocketAddr::new(family.web, 80))?;
        site.call(NODE, SocketAddr::new(family.far, 80))?;
        // The kernel's own way there, and its own resolution.
        site.call(NODE, SocketAddr::new(family.pod_b, PORT))?;
        site.call(NODE, SocketAddr::new(family.outside, PORT))?;
        // And from there to the node.
        let server = TcpServer::start(site.node(NODE), SocketAddr::new(family.node, 7000), Service::Echo)?;
        let mut client =
            TcpClient::connect(site.node(OUTSIDE), None, SocketAddr::new(family.node, 7000), SOON)?;
        client.echo(b"hello", SOON)?;
        assert_eq!(server.peers().iter().map(SocketAddr::ip).collect::<Vec<_>>(), [family.outside]);
    }
    Ok(())
}

fn a_client_outside_reaches_node_ports(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        site.call(OUTSIDE, SocketAddr::new(family.node, WEB_NODE_PORT))?;
    }
    let expected: Vec<_> = FAMILIES.iter().map(|family| family.node).collect();
    assert_eq!(site.clients_of_pod_b(), expected, "masqueraded");
    for family in &FAMILIES {
        site.call(POD_A, SocketAddr::new(family.node, WEB_NODE_PORT))?;
    }
    Ok(())
}

fn a_pod_reaches_itself(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        site.call(POD_B, SocketAddr::new(family.web, 80))?;
    }
    let expected: Vec<_> = FAMILIES.iter().map(|family| family.node).collect();
    assert_eq!(site.clients_of_pod_b(), expected, "masqueraded");
    Ok(())
}

fn a_service_without_endpoints_refuses(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        for (from, to) in [
            (POD_A, SocketAddr::new(family.none, 80)),
            (NODE, SocketAddr::new(family.none, 80)),
            (OUTSIDE, SocketAddr::new(family.node, NONE_NODE_PORT)),
        ] {
            let refused = Some(ErrorKind::ConnectionRefused);
            assert_eq!(site.tcp_error(from, to), refused, "{from} to {to}");
            assert_eq!(site.udp_error(from, to), refused, "{from} to {to}");
        }
    }
    Ok(())
}

fn echo_passes_and_silence_is_told(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        // One router on the way and none; each answers with a TTL of 64.
        for (from, to, ttl) in [
            (POD_A, family.pod_b, 63),
            (OUTSIDE, family.pod_b, 63),
            (POD_A, family.outside, 63),
            (POD_A, family.node, 64),
            (NODE, family.pod_b, 64),
            (OUTSIDE, family.node, 64),
        ] {
            assert_eq!(site.echo(from, to)?, Some(ttl), "{from} to {to}");
        }
        // Address unreachable, after the second that the packet waited for its neighbour.
        let nobody = SocketAddr::new(family.nobody, 80);
        assert_eq!(site.tcp_error(POD_A, nobody), Some(ErrorKind::HostUnreachable), "{nobody}");
        // A route says unreachable; for IPv6 the kernel makes "no route" of it, and so does Pollux.
        let (nowhere, unreachable) = match nobody {
            SocketAddr::V4(_) => ("203.0.113.7:80", ErrorKind::HostUnreachable),
            SocketAddr::V6(_) => ("[2001:db8:7::7]:80", ErrorKind::NetworkUnreachable),
        };
        assert_eq!(site.tcp_error(POD_A, nowhere.parse()?), Some(unreachable), "{nowhere}");
    }
    Ok(())
}

fn neighbours_are_followed(site: &mut Site) -> Outcome {
    for family in &FAMILIES {
        // The kernel asks for its neighbours, and Pollux knows them from there, unasked.
        site.call(NODE, SocketAddr::new(family.pod_b, PORT))?;
        let wanted = family.pod_b;
        let end = Instant::now() + SOON;
        loop {
            let known = site.agent.worker().ask(move |worker| match wanted {
                IpAddr::V4(_) => knows::<V4>(worker.forwarder().neighbours_v4(), wanted),
                IpAddr::V6(_) => knows::<V6>(worker.forwarder().neighbours_v6(), wanted),
            });
            if known.map_err(|_| STOPPED)? {
                break;
            }
            assert!(Instant::now() < end, "{wanted} is not known");
            std::thread::sleep(Duration::from_millis(10));
        }
        site.call(POD_A, SocketAddr::new(family.web, 80))?;
    }
    Ok(())
}

fn ipv6_that_comes_later(site: &mut Site) -> Outcome {
    let [_, v6] = &FAMILIES;
    assert!(site.agent.state().compiled.tables.v6.is_none());
    let number = site.agent.state().number;
    site.node(NODE).set_sysctl("net/ipv6/conf/ens3/disable_ipv6", "0")?;
    site.node(NODE).ip(&format!("address add {} dev ens3", address(v6.node, 64)))?;
    let end = Instant::now() + SOON;
    while site.agent.state().number == number {
        assert!(Instant::now() < end, "the address is not noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(site.agent.state().compiled.tables.v6.is_none());
    let at = SocketAddr::new(v6.node, 7000);
    let _server = TcpServer::start(site.node(NODE), at, Service::Echo)?;
    site.node(OUTSIDE).ip(&format!("neighbour flush to {}", v6.node))?;
    let mut client = TcpClient::connect(site.node(OUTSIDE), None, at, SOON)?;
    client.echo(b"hello", SOON)?;
    Ok(())
}

fn knows<A: pollux_dataplane::packet::Family>(neighbours: &Neighbours<A>, address: IpAddr) -> bool {
    neighbours.iter().any(|one| one.address.into() == address && one.link.is_some())
}

/// Sends an ICMPv6 echo request and gives the hop limit of its answer, if one came in time with the same data.
fn ping6(
    netns: &Netns,
    to: Ipv6Addr,
    sequence: u16,
    data_len: usize,
    within: Duration,
) -> io::Result<Option<u8>> {
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    let socket = netns
        .run(|| Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)))
        .map_err(io::Error::other)??;
    socket.set_recv_hoplimit_v6(true)?;
    let data = (0..data_len).map(|place| place as u8);
    // The kernel fills the checksum in.
    let [high, low] = sequence.to_be_bytes();
    let request: Vec<u8> = [ECHO_REQUEST, 0, 0, 0, 0x13, 0x47, high, low].into_iter().chain(data).collect();
    socket.send_to(&request, &SocketAddr::new(IpAddr::V6(to), 0).into())?;
    let end = Instant::now() + within;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        match receive(&socket) {
            Ok((answer, hop_limit)) if answer[0] == ECHO_REPLY && answer[4..] == request[4..] => {
                return Ok(Some(hop_limit));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// A message of a raw ICMPv6 socket, and the hop limit that it came with.
fn receive(socket: &Socket) -> io::Result<(Vec<u8>, u8)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg};
    use std::os::fd::AsRawFd;
    let mut buffer = vec![0; 2048];
    let mut space = nix::cmsg_space!(libc::c_int);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let hop_limit = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(hop_limit) => Some(hop_limit as u8),
        _ => None,
    });
    let len = message.bytes;
    buffer.truncate(len);
    if buffer.len() < 8 {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok((buffer, hop_limit.unwrap_or(0)))
}
