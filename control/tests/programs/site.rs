//! The lab of real programs: a node whose forwarder is Pollux, machines around it, and the programs' servers.
//!
//! ```text
//!   client ─── edge ─── far              a dual-stack cable each, MTU 1500
//!               │ └──── core ─── deep    edge to core: MTU 1300
//!               │
//!              node ── cali-a ── pod-a   MTU 1450
//!                └──── cali-b ── pod-b
//! ```
//!
//! `edge` and `core` are routers of the kernel. The Services `near`, `far` and `deep` have the same ports; their
//! backends are in pod-b, far and deep.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pollux_control::agent::{Agent, AgentOptions, HostOptions, Running, Sources};
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::find_program;
use pollux_control::lab::{Device, End, Forwarding, Kind, Network, Node, Plan};
use pollux_dataplane::packet::LinkAddr;
use pollux_dataplane::stats::{Reason, Stats};
use serde_json::{Value, json};

/// What a test ends with.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Longest wait for what must come.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const NODE: &str = "node";
pub(crate) const CLIENT: &str = "client";
pub(crate) const EDGE: &str = "edge";
pub(crate) const CORE: &str = "core";
pub(crate) const FAR: &str = "far";
pub(crate) const DEEP: &str = "deep";
pub(crate) const POD_A: &str = "pod-a";
pub(crate) const POD_B: &str = "pod-b";

/// MTU of the link between edge and core, bytes.
pub(crate) const NARROW: u32 = 1300;

/// The link address of every node's side of a pod's cable, and the link-local address that belongs to it.
const CALICO: LinkAddr = LinkAddr([0xee; 6]);
const GATEWAY: &str = "fe80::ecee:eeff:feee:eeee";

/// One family's addresses.
pub(crate) struct Addresses {
    pub(crate) name: &'static str,
    /// How long the subnets' prefixes are, and a host's.
    lengths: [u8; 2],
    pub(crate) node: IpAddr,
    pub(crate) client: IpAddr,
    pub(crate) far: IpAddr,
    pub(crate) deep: IpAddr,
    pub(crate) pod_a: IpAddr,
    pub(crate) pod_b: IpAddr,
    /// The edge's addresses towards node, client, far and core.
    pub(crate) edge: [IpAddr; 4],
    /// The core's, towards edge and deep.
    pub(crate) core: [IpAddr; 2],
    /// The Services near, far and deep.
    services: [IpAddr; 3],
}

/// Both families' addresses.
pub(crate) fn families() -> [Addresses; 2] {
    let v4 = |text: &str| IpAddr::V4(text.parse().expect("an IPv4 address"));
    let v6 = |text: &str| IpAddr::V6(text.parse().expect("an IPv6 address"));
    [
        Addresses {
            name: "IPv4",
            lengths: [24, 32],
            node: v4("192.0.2.50"),
            client: v4("10.1.0.9"),
            far: v4("10.2.0.7"),
            deep: v4("10.4.0.7"),
            pod_a: v4("10.244.0.10"),
            pod_b: v4("10.244.0.11"),
            edge: [v4("192.0.2.1"), v4("10.1.0.1"), v4("10.2.0.1"), v4("10.3.0.1")],
            core: [v4("10.3.0.2"), v4("10.4.0.1")],
            services: [v4("10.96.0.10"), v4("10.96.0.11"), v4("10.96.0.12")],
        },
        Addresses {
            name: "IPv6",
            lengths: [64, 128],
            node: v6("2001:db8::50"),
            client: v6("2001:db8:1::9"),
            far: v6("2001:db8:2::7"),
            deep: v6("2001:db8:4::7"),
            pod_a: v6("fd00:10:244::a"),
            pod_b: v6("fd00:10:244::b"),
            edge: [v6("2001:db8::1"), v6("2001:db8:1::1"), v6("2001:db8:2::1"), v6("2001:db8:3::1")],
            core: [v6("2001:db8:3::2"), v6("2001:db8:4::1")],
            services: [v6("fd00:10:96::10"), v6("fd00:10:96::11"), v6("fd00:10:96::12")],
        },
    ]
}

/// A Service of the lab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// Its backend is in pod-b.
    Near,
    /// In far.
    Far,
    /// In deep, behind the narrow link.
    Deep,
}

impl To {
    const ALL: [To; 3] = [To::Near, To::Far, To::Deep];

    fn name(self) -> &'static str {
        ["near", "far", "deep"][self as usize]
    }

    /// The machine of its backend.
    pub(crate) fn machine(self) -> &'static str {
        [POD_B, FAR, DEEP][self as usize]
    }

    pub(crate) fn backend(self, family: &Addresses) -> IpAddr {
        [family.pod_b, family.far, family.deep][self as usize]
    }

    /// The address of its ClusterIP.
    pub(crate) fn cluster_ip(self, family: &Addresses) -> IpAddr {
        family.services[self as usize]
    }
}

/// A port of every Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    Http,
    Https,
    Dns,
    Iperf,
    Tls,
    Data,
    /// No server listens there.
    Closed,
}

impl At {
    const ALL: [At; 7] = [At::Http, At::Https, At::Dns, At::Iperf, At::Tls, At::Data, At::Closed];

    /// The port of the Service.
    pub(crate) fn port(self) -> u16 {
        [80, 443, 53, 5201, 4433, 9000, 9999][self as usize]
    }

    /// The port of the backend.
    pub(crate) fn target(self) -> u16 {
        [8080, 8443, 53, 5201, 4433, 9000, 9999][self as usize]
    }

    pub(crate) fn node_port(self, to: To) -> u16 {
        30_000 + 100 * to as u16 + self as u16
    }
}

/// From where a Service is reached, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    ClusterIp(&'static str, To),
    NodePort(&'static str, To),
}

impl Way {
    /// Every kind of client, by ClusterIP and node port, to backends on this node and elsewhere.
    pub(crate) const ALL: [Way; 8] = [
        Way::ClusterIp(POD_A, To::Near),
        Way::ClusterIp(POD_A, To::Far),
        Way::NodePort(POD_A, To::Near),
        Way::ClusterIp(NODE, To::Near),
        Way::ClusterIp(NODE, To::Far),
        Way::NodePort(CLIENT, To::Near),
        Way::NodePort(CLIENT, To::Far),
        Way::ClusterIp(CLIENT, To::Near),
    ];

    /// The machine of the client.
    pub(crate) fn from(self) -> &'static str {
        match self {
            Way::ClusterIp(from, _) | Way::NodePort(from, _) => from,
        }
    }

    /// Where the client connects to.
    pub(crate) fn at(self, family: &Addresses, at: At) -> SocketAddr {
        match self {
            Way::ClusterIp(_, to) => SocketAddr::new(to.cluster_ip(family), at.port()),
            Way::NodePort(_, to) => SocketAddr::new(family.node, at.node_port(to)),
        }
    }
}

/// The network, the agent on its node, and the daemons in it.
pub(crate) struct Site {
    // First, so that it ends first.
    daemons: Vec<Daemon>,
    pub(crate) agent: Running,
    pub(crate) network: Network,
    directory: tempfile::TempDir,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// What a program printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// What differs from site to site.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Connections that Pollux' flow table holds.
    pub(crate) connections: u32,
    /// `faults` of the ports, by name.
    pub(crate) faults: Vec<(&'static str, Value)>,
}

impl Default for Options {
    fn default() -> Options {
        Options { connections: 65_536, faults: Vec::new() }
    }
}

impl Site {
    /// Builds a network whose namespaces' names begin with `prefix`, starts the agent, and waits until everybody
    /// reaches everybody.
    pub(crate) fn new(prefix: &str, options: &Options) -> Outcome<Site> {
        let network = Network::build(&plan(), prefix)?;
        await_link_local(network.node(NODE))?;
        let directory = tempfile::tempdir()?;
        let write = |file: &str, value: Value| {
            let path = directory.path().join(file);
            fs::write(&path, value.to_string()).map(|()| path)
        };
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clusterCIDR": "10.244.0.0/16,fd00:10:244::/56",
        });
        let items = To::ALL.map(service).concat();
        let sources = Sources {
            config: vec![write("proxy.json", proxy)?, write("node.json", node_document(options))?],
            objects: vec![write(
                "objects.json",
                json!({"apiVersion": "v1", "kind": "List", "items": items}),
            )?],
            node: Some(NODE.to_owned()),
        };
        let agent = AgentOptions {
            inputs: sources.read()?.0,
            follow: None,
            admin: None,
            host: HostOptions { state_directory: directory.path().join("state"), ..HostOptions::default() },
        };
        let agent = network.node(NODE).run(|| Agent::start(agent))??;
        let site = Site { daemons: Vec::new(), agent, network, directory };
        site.warm_up()?;
        Ok(site)
    }

    pub(crate) fn node(&self, name: &str) -> &Netns {
        self.network.node(name)
    }

    /// A path in the site's directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it is not installed or does not end within [`SOON`]; it is killed then.
    pub(crate) fn run(&self, node: &str, program: &str, arguments: &[&str]) -> Outcome<Ran> {
        self.run_with(node, program, arguments, b"")
    }

    /// As [`run`](Site::run), with this standard input.
    pub(crate) fn run_with(
        &self,
        node: &str,
        program: &str,
        arguments: &[&str],
        input: &[u8],
    ) -> Outcome<Ran> {
        // Files, not pipes: nobody has to read while the program runs.
        let file = || tempfile::tempfile_in(self.directory.path());
        let (mut stdin, mut stdout, mut stderr) = (file()?, file()?, file()?);
        stdin.write_all(input)?;
        stdin.rewind()?;
        let mut command = Command::new(find_program(program)?);
        command.args(arguments).stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let mut child = self.node(node).spawn(&mut command)?;
        let end = Instant::now() + SOON;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
                None => {
                    child.kill()?;
                    child.wait()?;
                    return Err(format!("{}: has not ended", shown(node, program, arguments)).into());
                }
            }
        };
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map(|_| bytes)
        };
        let (stdout, stderr) =
            (read(&mut stdout)?, String::from_utf8_lossy(&read(&mut stderr)?).into_owned());
        Ok(Ran { success: status.success(), stdout, stderr })
    }

    /// As [`run`](Site::run); the program has to end with success.
    pub(crate) fn output(&self, node: &str, program: &str, arguments: &[&str]) -> Outcome<Ran> {
        let ran = self.run(node, program, arguments)?;
        if ran.success {
            return Ok(ran);
        }
        Err(format!("{}: {} {}", shown(node, program, arguments), ran.stderr, ran.text()).into())
    }

    /// Starts a program that stays until the site ends, and waits until that many sockets of its node listen at
    /// `port`. What it says goes into a file.
    pub(crate) fn daemon(
        &mut self,
        node: &str,
        program: &str,
        arguments: &[&str],
        (port, sockets): (u16, usize),
    ) -> Outcome {
        let log = self.path(format!("{node}-{}.log", self.daemons.len()));
        let file = File::create(&log)?;
        let mut command = Command::new(find_program(program)?);
        command.args(arguments).current_dir(self.directory.path());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut daemon = Daemon(self.node(node).spawn(&mut command)?);
        let end = Instant::now() + SOON;
        let filter = format!("sport = :{port}");
        let listening = |site: &Site| -> Outcome<usize> {
            Ok(site.output(node, "ss", &["-Htln", &filter])?.text().lines().count())
        };
        while listening(self)? < sockets {
            if daemon.0.try_wait()?.is_some() || Instant::now() > end {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{}: {said}", shown(node, program, arguments)).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.daemons.push(daemon);
        Ok(())
    }

    /// The kernel may lose the first frames to an interface that has just come up, and neighbours are unknown.
    fn warm_up(&self) -> Outcome {
        for family in &families() {
            let pairs = [
                (POD_A, family.pod_b),
                (POD_A, family.far),
                (POD_A, family.deep),
                (CLIENT, family.pod_b),
                (CLIENT, family.node),
                (NODE, family.pod_b),
                (NODE, family.far),
            ];
            for (from, to) in pairs {
                let to = to.to_string();
                let end = Instant::now() + SOON;
                while !self.run(from, "ping", &["-n", "-c1", "-W1", &to])?.success {
                    if Instant::now() > end {
                        return Err(format!("{from} does not reach {to} ({:?})", self.dropped()?).into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Pollux' counters.
    pub(crate) fn stats(&self) -> Outcome<Stats> {
        Ok(self.agent.worker().ask(|worker| worker.stats()).map_err(|_| "the forwarder has stopped")?)
    }

    /// What Pollux dropped, and how often.
    pub(crate) fn dropped(&self) -> Outcome<Vec<(&'static str, u64)>> {
        Ok(self.stats()?.dropped.iter().map(|(reason, count)| (reason.name(), count)).collect())
    }

    /// Pollux' counters, whose balance holds (FW-05).
    pub(crate) fn balanced(&self) -> Outcome<Stats> {
        let stats = self.stats()?;
        match stats.balance() {
            (came, went) if came == went => Ok(stats),
            (came, went) => Err(format!("{came} frames came, {went} went: {stats:?}").into()),
        }
    }

    /// FW-05: the balance holds, and nothing was dropped but what was not Pollux' and for the `expected` reasons.
    pub(crate) fn check(&self, expected: &[Reason]) -> Outcome {
        let stats = self.balanced()?;
        let mut unexpected = stats
            .dropped
            .iter()
            .filter(|(reason, _)| *reason != Reason::NotForPollux && !expected.contains(reason))
            .map(|(reason, count)| format!("{} {count}", reason.name()))
            .peekable();
        match unexpected.peek() {
            None => Ok(()),
            Some(_) => Err(format!("dropped: {}", unexpected.collect::<Vec<_>>().join(", ")).into()),
        }
    }
}

/// Waits until the node's interfaces have their link-local addresses, which they get a moment after they come up.
/// Pollux asks for neighbours from the same addresses; the kernel would forward the answers until they are its own.
fn await_link_local(netns: &Netns) -> Outcome {
    let end = Instant::now() + SOON;
    loop {
        let mut command = Command::new(find_program("ip")?);
        let addresses = netns.output(command.args(["-6", "-oneline", "address", "show", "scope", "link"]))?;
        if ["ens3", "cali-a", "cali-b"].iter().all(|device| addresses.contains(device)) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("no link-local addresses: {addresses}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An error when a program says something else than it should.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?} instead of {wanted:?}").into()) }
}

/// A command as a person would write it.
fn shown(node: &str, program: &str, arguments: &[&str]) -> String {
    format!("{node}: {program} {}", arguments.join(" "))
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

/// A machine whose kernel forwards both families. (On the node, Pollux keeps it from that.)
fn router(name: &str) -> Node {
    machine(name).forwarding(Forwarding::Kernel).setting("net/ipv6/conf/all/forwarding", "1")
}

fn plan() -> Plan {
    let families = families();
    // A device in a subnet of each family.
    let subnet = |device: Device, of: fn(&Addresses) -> IpAddr| {
        families.iter().fold(device, |device, family| device.address(address(of(family), family.lengths[0])))
    };
    let defaults = |node: Node, via: fn(&Addresses) -> IpAddr| {
        families.iter().fold(node, |node, family| node.route(format!("default via {}", via(family))))
    };
    let cable = |name: &str, node: &str, device: &str| Device::new(name, Kind::Cable(End::new(node, device)));

    let edge = router(EDGE)
        .device(subnet(cable("node", NODE, "ens3"), |of| of.edge[0]))
        .device(subnet(cable("client", CLIENT, "ens3"), |of| of.edge[1]))
        .device(subnet(cable("far", FAR, "ens3"), |of| of.edge[2]))
        .device(subnet(cable("core", CORE, "edge").mtu(NARROW), |of| of.edge[3]));
    // Towards the pods and the Services; what goes to the core's far side.
    let edge = families.iter().fold(edge, |edge, family| {
        let deep = address_prefix(family.deep, family.lengths[0]);
        let edge = edge.route(format!("{deep} via {}", family.core[0]));
        ["10.244.0.0/24", "10.96.0.0/24", "fd00:10:244::/64", "fd00:10:96::/64"]
            .into_iter()
            .filter(|prefix| prefix.contains(':') == family.node.is_ipv6())
            .fold(edge, |edge, prefix| edge.route(format!("{prefix} via {}", family.node)))
    });
    let core = router(CORE)
        .device(subnet(Device::new("edge", Kind::FarEnd).mtu(NARROW), |of| of.core[0]))
        .device(subnet(cable("deep", DEEP, "ens3"), |of| of.core[1]));
    let core = defaults(core, |of| of.edge[3]);
    let host = |name: &str, own: fn(&Addresses) -> IpAddr, via: fn(&Addresses) -> IpAddr| {
        defaults(machine(name).device(subnet(Device::new("ens3", Kind::FarEnd), own)), via)
    };
    let pod_port = |name: &str, pod: &str| cable(name, pod, "eth0").link_address(CALICO).mtu(1450);
    let node = router(NODE)
        .device(subnet(Device::new("ens3", Kind::FarEnd), |of| of.node))
        .device(pod_port("cali-a", POD_A))
        .device(pod_port("cali-b", POD_B));
    let node = families.iter().fold(node, |node, family| {
        node.route(format!("{} dev cali-a", family.pod_a)).route(format!("{} dev cali-b", family.pod_b))
    });
    let node = defaults(node, |of| of.edge[0]);
    let pod = |name: &str, own: fn(&Addresses) -> IpAddr| {
        let eth0 = families.iter().fold(Device::new("eth0", Kind::FarEnd).mtu(1450), |device, family| {
            device.address(address(own(family), family.lengths[1]))
        });
        machine(name)
            .device(eth0)
            .route("169.254.1.1 dev eth0 scope link")
            .route("default via 169.254.1.1 dev eth0")
            .route(format!("default via {GATEWAY} dev eth0"))
    };
    Plan {
        nodes: vec![
            edge,
            host(CLIENT, |of| of.client, |of| of.edge[1]),
            host(FAR, |of| of.far, |of| of.edge[2]),
            core,
            host(DEEP, |of| of.deep, |of| of.core[1]),
            node,
            pod(POD_A, |of| of.pod_a),
            pod(POD_B, |of| of.pod_b),
        ],
    }
}

/// The subnet of this length that an address lies in.
fn address_prefix(address: IpAddr, length: u8) -> String {
    let network = match address {
        IpAddr::V4(address) => {
            IpAddr::V4((u32::from(address) & (u32::MAX << (32 - u32::from(length)))).into())
        }
        IpAddr::V6(address) => {
            IpAddr::V6((u128::from(address) & (u128::MAX << (128 - u32::from(length)))).into())
        }
    };
    format!("{network}/{length}")
}

fn node_document(options: &Options) -> Value {
    let port = |name: &str, role: &str, more: Value| {
        let mut port = json!({"name": name, "role": role, "backend": "af_packet"});
        let faults = options.faults.iter().find(|(port, _)| *port == name);
        let faults = faults.map(|(_, faults)| json!({"faults": faults}));
        for more in [Some(more), faults].into_iter().flatten() {
            let Value::Object(more) = more else { unreachable!("objects, as written here") };
            port.as_object_mut().expect("an object, as written here").extend(more);
        }
        port
    };
    json!({
        "apiVersion": "pollux.dev/v1alpha1", "kind": "Node",
        "ports": [
            port("ens3", "uplink", json!({})),
            port("cali-a", "pod", json!({"proxyArp": true})),
            port("cali-b", "pod", json!({"proxyArp": true})),
            port("pollux0", "host", json!({"backend": "tap", "mtu": 1500})),
        ],
        "routes": "kernel", "neighbours": [], "flowTable": {"connections": options.connections},
    })
}

/// A dual-stack Service with all ports, and its slices.
fn service(to: To) -> Vec<Value> {
    let families = families();
    let addresses: Vec<IpAddr> = families.iter().map(|family| to.cluster_ip(family)).collect();
    let ports = At::ALL.into_iter().flat_map(|at| ["TCP", "UDP"].map(|protocol| (at, protocol)));
    let name = |at: At, protocol: &str| format!("{at:?}-{protocol}").to_lowercase();
    let service_ports: Vec<Value> = ports
        .clone()
        .map(|(at, protocol)| {
            json!({
                "name": name(at, protocol), "protocol": protocol, "port": at.port(),
                "targetPort": at.target(), "nodePort": at.node_port(to),
            })
        })
        .collect();
    let endpoint_ports: Vec<Value> = ports
        .map(|(at, protocol)| json!({"name": name(at, protocol), "protocol": protocol, "port": at.target()}))
        .collect();
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": to.name(), "namespace": "default"},
        "spec": {
            "type": "NodePort", "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "ports": service_ports,
        },
    })];
    items.extend(families.iter().map(|family| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.name,
            "metadata": {
                "name": format!("{}-{}", to.name(), family.name.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": to.name()},
            },
            "endpoints": [{"addresses": [to.backend(family)], "conditions": {"ready": true}}],
            "ports": endpoint_ports,
        })
    }));
    items
}
