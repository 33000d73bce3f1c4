//! slave1 with its files: what every test of the agent stands on.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pollux_control::agent::{Agent, AgentOptions, Client, HostOptions, Running, Sources};
use pollux_control::kernel::netns::Netns;
use pollux_control::lab::seed::{
    self, MYAPP, MYAPP_PORT, POD_49_8, POD_51_1, POD_51_2, POD_51_7, POD_51_8, Pod, SLAVE1,
};
use pollux_control::lab::traffic::{Service, TcpClient, TcpServer};
use pollux_control::lab::{Forwarding, Network};
use serde_json::{Value, json};

/// What a test ends with.
pub(super) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Longest wait for what must come.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// The address of another Service: it shows in the host's routes, and one test gives it endpoints.
pub(super) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 150, 0, 77);

/// A network of its own, and the files of slave1's agent.
pub(super) struct Site {
    pub(super) network: Network,
    directory: tempfile::TempDir,
}

/// A server of myapp in each pod that may be a backend.
pub(super) struct Servers(Vec<(Pod, TcpServer)>);

impl Site {
    pub(super) fn new(name: &str) -> Result<Site, Box<dyn std::error::Error>> {
        let prefix: String = name.split('_').take(3).filter_map(|word| word.get(..2)).collect();
        let site = Site {
            network: Network::build(&seed::plan(Forwarding::Kernel), &format!("a-{prefix}-"))?,
            directory: tempfile::tempdir()?,
        };
        fs::create_dir(site.path("objects"))?;
        fs::write(
            site.path("proxy.yaml"),
            "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration, \
             clusterCIDR: 10.151.0.0/16}",
        )?;
        fs::write(site.path("node.yaml"), node("kernel", "kernel"))?;
        site.write_objects(&[POD_49_8, POD_51_7, POD_51_8])?;
        Ok(site)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn slave1(&self) -> &Netns {
        self.network.node(SLAVE1)
    }

    /// As an editor saves: another file takes the name.
    pub(super) fn write_objects(&self, backends: &[Pod]) -> std::io::Result<()> {
        self.write_file("objects/objects.json", &objects(backends).to_string())
    }

    pub(super) fn write_file(&self, name: &str, text: &str) -> std::io::Result<()> {
        fs::write(self.path("draft"), text)?;
        fs::rename(self.path("draft"), self.path(name))
    }

    pub(super) fn sources(&self) -> Sources {
        Sources {
            config: vec![self.path("proxy.yaml"), self.path("node.yaml")],
            objects: vec![self.path("objects")],
            node: Some(SLAVE1.to_owned()),
        }
    }

    pub(super) fn options(&self) -> Result<AgentOptions, Box<dyn std::error::Error>> {
        Ok(AgentOptions {
            inputs: self.sources().read()?.0,
            follow: Some(self.sources()),
            admin: Some(self.path("admin.sock")),
            host: HostOptions { state_directory: self.path("state"), ..HostOptions::default() },
        })
    }

    pub(super) fn start(&self) -> Result<Running, Box<dyn std::error::Error>> {
        let options = self.options()?;
        Ok(self.slave1().run(|| Agent::start(options))??)
    }

    pub(super) fn client(&self) -> Result<Client, Box<dyn std::error::Error>> {
        Ok(Client::connect(&self.path("admin.sock"))?)
    }

    pub(super) fn serve(&self, pods: &[Pod]) -> std::io::Result<Servers> {
        let server = |pod: &Pod| {
            let at = at(pod.address, MYAPP_PORT);
            Ok((*pod, TcpServer::start(self.network.node(pod.name), at, Service::Echo)?))
        };
        Ok(Servers(pods.iter().map(server).collect::<std::io::Result<_>>()?))
    }

    /// One connection to the Service, used and left open.
    pub(super) fn connect(&self, node: &str) -> std::io::Result<TcpClient> {
        let mut client = TcpClient::connect(self.network.node(node), None, at(MYAPP, MYAPP_PORT), SOON)?;
        client.echo(b"which backend is this?", SOON)?;
        Ok(client)
    }

    /// Prepares `pollux` with slave1's files, in slave1.
    pub(super) fn pollux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.slave1().command(&mut command);
        command
    }

    pub(super) fn run_pollux(&self) -> Result<Child, Box<dyn std::error::Error>> {
        let [proxy, node, objects, admin] =
            ["proxy.yaml", "node.yaml", "objects", "admin.sock"].map(|name| self.path(name));
        let mut command = self.pollux(&["run", "--node", SLAVE1, "--log-format", "json"]);
        command.arg("--config").arg(proxy).arg("--config").arg(node).arg("--objects").arg(objects);
        command.arg("--admin").arg(admin).stderr(fs::File::create(self.path("log"))?);
        let child = command.spawn()?;
        wait(|| Client::connect(&self.path("admin.sock")).ok(), "pollux run to listen")
            .map_err(|error| format!("{error}: {}", self.log()))?;
        Ok(child)
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What of slave1 an agent changes.
    pub(super) fn traces(&self) -> Result<String, Box<dyn std::error::Error>> {
        let ip = |arguments: &str| self.slave1().output(Command::new("ip").args(arguments.split(' ')));
        Ok(format!(
            "{}{}{}rp_filter {}\naccept_local {}\nip_forward {}\n",
            ip("-oneline link show type tun")?,
            ip("route show table all proto 112")?,
            ip("rule")?,
            self.slave1().sysctl("net/ipv4/conf/all/rp_filter")?,
            self.slave1().sysctl("net/ipv4/conf/all/accept_local")?,
            self.slave1().sysctl("net/ipv4/ip_forward")?,
        ))
    }

    /// Packets that slave1's kernel has forwarded.
    pub(super) fn forwarded_by_the_kernel(&self) -> Result<u64, Box<dyn std::error::Error>> {
        let snmp = self.slave1().run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = snmp.lines().filter(|line| line.starts_with("Ip: "));
        let (names, values) = (lines.next().ok_or("no Ip line")?, lines.next().ok_or("no Ip values")?);
        let place = names.split(' ').position(|name| name == "ForwDatagrams").ok_or("no ForwDatagrams")?;
        Ok(values.split(' ').nth(place).ok_or("a short line")?.parse()?)
    }
}

impl Servers {
    /// How many connections each pod has had.
    pub(super) fn connections(&self) -> Vec<(&'static str, usize)> {
        self.0.iter().map(|(pod, server)| (pod.name, server.peers().len())).collect()
    }
}

pub(super) fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), port)
}

/// slave1's document.
pub(super) fn node(routes: &str, neighbours: &str) -> String {
    let pods = [POD_51_1, POD_51_2, POD_51_7, POD_51_8]
        .map(|pod| json!({"name": pod.port, "role": "pod", "backend": "af_packet", "proxyArp": true}));
    let mut ports = vec![json!({
        "name": "ens3", "role": "uplink", "backend": "af_packet", "addresses": ["172.16.1.50/12"],
    })];
    ports.extend(pods);
    ports.push(json!({"name": "pollux0", "role": "host", "backend": "tap", "mtu": 1480}));
    json!({
        "apiVersion": "pollux.dev/v1alpha1", "kind": "Node",
        "ports": ports, "routes": routes, "neighbours": neighbours, "flowTable": {"connections": 4096},
    })
    .to_string()
}

pub(super) fn objects(backends: &[Pod]) -> Value {
    let service = |name: &str, address: Ipv4Addr| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                "ports": [{"name": "http", "port": MYAPP_PORT}],
            },
        })
    };
    let endpoints: Vec<Value> = backends
        .iter()
        .map(|pod| json!({"addresses": [pod.address], "conditions": {"ready": true}}))
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "myapp-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "myapp"},
        },
        "endpoints": endpoints, "ports": [{"name": "http", "port": MYAPP_PORT}],
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [service("myapp", MYAPP), service("other", OTHER), slice]})
}

/// Waits for something to be there.
pub(super) fn wait<T>(mut look: impl FnMut() -> Option<T>, what: &str) -> Result<T, String> {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(format!("waited in vain for {what}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
