//! Ports that come and go while the agent runs, and several workers.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use pollux_control::agent::Client;
use pollux_control::agent::protocol::{
    Filter, FlowItem, NeighbourItem, PortItem, PortState, Resource, StatsItem,
};
use pollux_control::lab::seed::{MYAPP, POD_49_8, POD_51_1, POD_51_2, POD_51_7, POD_51_8, Pod, SLAVE1};
use serde_json::{Value, json};

use super::site::{Outcome, SOON, Site, node, wait};

/// What is sent while nobody hears it. It comes later.
const LATE: &[u8] = b"is anybody there?";

/// slave1's document with another list of ports, and what `change` makes of it.
fn document(change: impl FnOnce(&mut Value)) -> Result<String, serde_json::Error> {
    let mut document: Value = serde_json::from_str(&node("kernel", "kernel"))?;
    change(&mut document);
    Ok(document.to_string())
}

/// The pods' ports by one pattern instead of by their names.
fn by_pattern(document: &mut Value) {
    let mut ports = document["ports"].as_array().cloned().unwrap_or_default();
    ports.retain(|port| port["role"] != "pod");
    ports.push(json!({"name": "cali*", "role": "pod", "backend": "af_packet", "proxyArp": true}));
    document["ports"] = Value::Array(ports);
}

impl Site {
    /// Takes a pod's cable away, at the node's end.
    pub(super) fn unplug(&self, pod: Pod, port: &str) -> Outcome {
        assert!(port.starts_with("cali"), "{} has a cable of Calico's", pod.name);
        Ok(self.slave1().ip(&format!("link delete {port}"))?)
    }

    /// Gives a pod a new cable, under this name at the node's end, with what belongs to it. `options` are those of
    /// ip-link(8) for both ends.
    pub(super) fn plug(&self, pod: Pod, port: &str, options: &str) -> Outcome {
        let Pod { name, address, link, .. } = pod;
        let there = self.network.node(name);
        let namespace = there.name().ok_or("a namespace without a name")?;
        self.slave1().ip(&format!(
            "link add {port} address ee:ee:ee:ee:ee:ee mtu 1480 {options} type veth peer name eth0 address {link} \
             mtu 1480 {options} netns {namespace}"
        ))?;
        there.ip(&format!(
            "address add {address}/32 dev eth0\nlink set eth0 up\n\
             route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0"
        ))?;
        self.slave1().set_sysctl(&format!("net/ipv4/conf/{port}/proxy_arp"), "1")?;
        Ok(self.slave1().ip(&format!("link set {port} up\nroute add {address} dev {port} scope link"))?)
    }
}

fn ports(client: &mut Client) -> Result<Vec<PortItem>, Box<dyn std::error::Error>> {
    Ok(client.get(Resource::Ports, Filter::default())?)
}

fn port(client: &mut Client, name: &str) -> Option<PortItem> {
    ports(client).ok()?.into_iter().find(|port| port.name == name)
}

fn names(ports: &[PortItem]) -> BTreeSet<&str> {
    ports.iter().map(|port| port.name.as_str()).collect()
}

/// FW-05 of every worker, and of the team: what was handed over was taken.
fn assert_balanced(client: &mut Client) -> Result<StatsItem, Box<dyn std::error::Error>> {
    let sums = |stats: &StatsItem| {
        stats.workers.iter().fold((0, 0), |sum, worker| (sum.0 + worker.handed, sum.1 + worker.taken))
    };
    let quiet = |client: &mut Client| client.stats().ok().filter(|stats| sums(stats).0 == sums(stats).1);
    let stats = wait(|| quiet(client), "the workers' rings to be empty")?;
    for worker in &stats.workers {
        assert_eq!(
            worker.received + worker.originated + worker.split + worker.taken,
            worker.transmitted
                + worker.delivered
                + worker.held
                + worker.dropped
                + worker.joined
                + worker.handed,
            "{worker:?}"
        );
    }
    Ok(stats)
}

pub(super) fn ports_by_pattern_come_and_go(site: &Site) -> Outcome {
    site.write_objects(&[POD_51_7])?;
    site.write_file("node.yaml", &document(by_pattern)?)?;
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_7])?;
    let mut client = site.client()?;
    let there = [POD_51_1, POD_51_2, POD_51_7, POD_51_8].map(|pod| pod.port);
    let expected: BTreeSet<&str> = there.into_iter().chain(["ens3", "pollux0"]).collect();
    let seen = ports(&mut client)?;
    assert_eq!(names(&seen), expected);
    assert!(seen.iter().all(|port| port.state == PortState::Up), "{seen:?}");
    assert_eq!(port(&mut client, POD_51_1.port).ok_or("no port")?.role, "pod");
    site.connect(POD_51_1.name)?.close(SOON)?;
    let mut kept = site.connect(POD_51_2.name)?;
    let number = |name: &str| {
        let state = running.state();
        let ports = state.config.node.as_ref().map(|node| node.ports.clone()).unwrap_or_default();
        ports.iter().position(|port| port.name == name)
    };
    let places = [POD_51_1, POD_51_2].map(|pod| number(pod.port));

    // A pod ends: its port is no port any more, and nobody else notices.
    site.unplug(POD_51_1, POD_51_1.port)?;
    wait(|| port(&mut client, POD_51_1.port).is_none().then_some(()), "the port to go")?;
    kept.echo(b"the others go on", SOON)?;

    // Another one comes, under another name: it gets the number that is free, and the same fields.
    site.plug(POD_51_1, "calinew0", "")?;
    wait(|| port(&mut client, "calinew0").filter(|port| port.state == PortState::Up), "the new port")?;
    site.connect(POD_51_1.name)?.close(SOON)?;
    assert_eq!(number("calinew0"), places[0]);
    assert_eq!(number(POD_51_2.port), places[1]);
    assert_eq!(site.forwarded_by_the_kernel()?, 0, "PT-05: a port that comes is guarded");
    let counters = port(&mut client, "calinew0").ok_or("no port")?.counters;
    assert!(counters.received > 0 && counters.transmitted > 0, "{counters:?}");

    // One more than there ever were, and an interface that no pattern means.
    site.slave1()
        .ip("link add calimore0 type veth peer name far0\nlink set calimore0 up\nlink set far0 up")?;
    wait(|| port(&mut client, "calimore0"), "one more port")?;
    assert_eq!(number("calimore0"), Some(6));
    assert!(port(&mut client, "far0").is_none());
    kept.echo(b"and on", SOON)?;

    // A pod that is a backend ends in the middle of a connection: what is sent to it is counted, not lost.
    site.unplug(POD_51_7, POD_51_7.port)?;
    wait(|| port(&mut client, POD_51_7.port).is_none().then_some(()), "the backend's port to go")?;
    assert!(kept.echo(LATE, Duration::from_millis(300)).is_err());
    let stats = assert_balanced(&mut client)?;
    assert!(stats.drops.iter().map(|drop| drop.count).sum::<u64>() > 0, "{:?}", stats.drops);
    site.plug(POD_51_7, POD_51_7.port, "")?;
    wait(|| port(&mut client, POD_51_7.port), "the backend's port")?;
    kept.echo(LATE, SOON)?; // TCP sends it again
    drop(kept);
    running.stop();
    Ok(())
}

pub(super) fn an_interface_goes_and_comes_back(site: &Site) -> Outcome {
    site.write_objects(&[POD_51_8])?;
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_8])?;
    let mut client = site.client()?;
    let mut kept = site.connect(POD_51_2.name)?;
    let before = port(&mut client, POD_51_8.port).ok_or("no port")?;
    assert_eq!(before.state, PortState::Up);

    // Down is not gone.
    site.slave1().ip(&format!("link set {} down", POD_51_7.port))?;
    let is_down =
        |client: &mut Client| port(client, POD_51_7.port).filter(|port| port.state == PortState::Down);
    wait(|| is_down(&mut client), "the port to be down")?;
    kept.echo(b"the others go on", SOON)?;

    site.unplug(POD_51_8, POD_51_8.port)?;
    let is_absent =
        |client: &mut Client| port(client, POD_51_8.port).filter(|port| port.state == PortState::Absent);
    let absent = wait(|| is_absent(&mut client), "the port to be absent")?;
    assert!(absent.counters.received >= before.counters.received, "{absent:?}");
    let output = site.pollux(&["get", "ports", "--admin"]).arg(site.path("admin.sock")).output()?;
    let table = String::from_utf8(output.stdout)?;
    assert!(
        table.lines().any(|line| line.contains(POD_51_8.port) && line.contains("no such interface")),
        "{table}"
    );
    assert!(kept.echo(LATE, Duration::from_millis(300)).is_err());
    // The other ports go on: from a pod to the node's own address, through the host port.
    site.plug(POD_51_8, POD_51_8.port, "")?;
    let is_up = |client: &mut Client| port(client, POD_51_8.port).filter(|port| port.state == PortState::Up);
    wait(|| is_up(&mut client), "the port to be back")?;
    kept.echo(LATE, SOON)?; // TCP sends it again
    site.connect(POD_51_1.name)?.close(SOON)?;
    let after = port(&mut client, POD_51_8.port).ok_or("no port")?;
    assert!(after.counters.transmitted > absent.counters.transmitted, "{absent:?} {after:?}");
    assert_eq!(after.counters.error, None);
    assert_eq!(site.forwarded_by_the_kernel()?, 0, "PT-05");
    assert_balanced(&mut client)?;
    running.stop();
    Ok(())
}

pub(super) fn several_workers_share_everything(site: &Site) -> Outcome {
    site.write_file("node.yaml", &document(|node| node["workers"] = json!(2))?)?;
    let running = site.start()?;
    assert_eq!(running.workers().len(), 2);
    let servers = site.serve(&[POD_49_8, POD_51_7, POD_51_8])?;
    let mut open = Vec::new();
    for _ in 0..12 {
        for node in [POD_51_1.name, POD_51_2.name, POD_51_7.name, SLAVE1] {
            open.push(site.connect(node)?);
        }
    }
    assert!(servers.connections().iter().all(|(_, count)| *count > 0), "{:?}", servers.connections());
    let mut client = site.client()?;
    let stats = assert_balanced(&mut client)?;
    assert_eq!(stats.drops, []);
    let [one, other] = stats.workers.as_slice() else { return Err(format!("{stats:?}").into()) };
    assert_eq!((one.name.as_str(), other.name.as_str()), ("pollux-worker-0", "pollux-worker-1"));
    // Every port has one queue, and they are shared out.
    assert!(one.received > 0 && other.received > 0 && one.handed > 0 && other.handed > 0, "{stats:?}");
    assert!(one.flows >= 48 && other.flows == 0, "{stats:?}");

    // Both threads are there, under their names.
    let mut threads = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        threads.push(std::fs::read_to_string(entry?.path().join("comm"))?);
    }
    for name in ["pollux-worker-0\n", "pollux-worker-1\n"] {
        assert!(threads.iter().any(|thread| thread == name), "{threads:?}");
    }

    // Whoever is asked knows what the other found.
    let flows: Vec<FlowItem> = client.get(Resource::Flows, Filter::default())?;
    let through: Vec<_> = flows.iter().filter(|flow| flow.original.destination == MYAPP).collect();
    assert_eq!(through.len(), 48);
    assert!(through.iter().all(|flow| flow.out_port.is_some()), "{through:?}");
    let neighbours: Vec<NeighbourItem> = client.get(Resource::Neighbours, Filter::default())?;
    let places: BTreeSet<_> = neighbours.iter().map(|one| (&one.port, one.address)).collect();
    assert_eq!(places.len(), neighbours.len(), "each is listed once: {neighbours:?}");
    let conntrack = site.pollux(&["conntrack", "stats", "--admin"]).arg(site.path("admin.sock")).output()?;
    let lines = String::from_utf8(conntrack.stdout)?;
    assert!(lines.contains("cpu=0") && lines.contains("cpu=1"), "{lines}");

    // UP-01, UP-02: another backend, and what is open stays where it is.
    site.write_objects(&[POD_51_8])?;
    let number = running.state().number;
    wait(|| (running.state().number > number).then_some(()), "the new objects")?;
    let before = servers.connections();
    for node in [POD_51_1.name, POD_51_2.name, SLAVE1] {
        site.connect(node)?.close(SOON)?;
    }
    let after = servers.connections();
    assert_eq!((after[0], after[1], after[2].1), (before[0], before[1], before[2].1 + 3));
    for connection in &mut open {
        connection.echo(b"still there?", SOON)?;
    }
    assert_eq!(assert_balanced(&mut client)?.drops, []);
    drop(open);
    running.stop();
    Ok(())
}

pub(super) fn workers_cores_and_files_are_checked(site: &Site) -> Outcome {
    let before = site.traces()?;
    let run = |change: &dyn Fn(&mut Value),
               files: Option<u64>|
     -> Result<(i32, String), Box<dyn std::error::Error>> {
        std::fs::write(site.path("other.yaml"), document(change)?)?;
        let limit = files.map_or(String::new(), |files| format!("ulimit -n {files} && "));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}exec \"$@\""), "sh", env!("CARGO_BIN_EXE_pollux"), "run"]);
        command.args(["--node", SLAVE1, "--objects"]).arg(site.path("objects"));
        command.arg("--config").arg(site.path("other.yaml")).arg("--admin").arg(site.path("admin.sock"));
        site.slave1().command(&mut command);
        let output = command.output()?;
        let said = String::from_utf8(output.stderr)?;
        let lines = said.lines().filter_map(|line| line.strip_prefix("pollux: "));
        Ok((output.status.code().unwrap_or(-1), lines.collect::<Vec<_>>().join("\n")))
    };
    let (code, said) = run(&|node| node["workers"] = json!(200), None)?;
    assert_eq!(code, 2, "{said}");
    assert!(
        said.starts_with("workers 200 is more than the ")
            && said.ends_with(" processors that this process may use"),
        "{said}"
    );
    let (code, said) = run(&|node| node["cores"] = json!([1023]), None)?;
    assert_eq!(code, 2, "{said}");
    assert!(said.starts_with("cores: 1023 is none of the processors that this process may use ("), "{said}");
    let (code, said) = run(&|_| {}, Some(40))?;
    assert_eq!(
        (code, said.as_str()),
        (
            4,
            "the limit of open files is 40 and 6 ports need 120: raise it (ulimit -Hn, or LimitNOFILE= of the unit)"
        )
    );
    assert_eq!(site.traces()?, before);
    Ok(())
}
