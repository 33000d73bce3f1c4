//! The agent on slave1 of the seed's cluster: real sockets of pods and of the node itself through a ClusterIP,
//! over AF_PACKET and TAP, on a node whose kernel forwards as well; what changes while it runs; and that it
//! leaves nothing behind.

use std::fs;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Output};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollux_control::agent::Client;
use pollux_control::agent::protocol::{
    EndpointsItem, Filter, FlowItem, NeighbourItem, PortItem, Resource, RouteItem, ServiceItem,
};
use pollux_control::kernel::sandbox::{Privilege, Sandbox};
use pollux_control::lab::seed::{
    MYAPP, MYAPP_PORT, POD_49_8, POD_51_1, POD_51_2, POD_51_7, POD_51_8, Pod, SLAVE1, SLAVE1_ADDRESS,
};
use pollux_control::lab::traffic::{TcpClient, UdpServer, udp_echo};
use serde_json::{Value, json};
use site::{OTHER, Outcome, SOON, Site, at, node, objects, wait};

#[path = "agent/af_xdp.rs"]
mod af_xdp;
#[path = "agent/capture.rs"]
mod capture;
#[path = "agent/connections.rs"]
mod connections;
#[path = "agent/ports.rs"]
mod ports;
#[path = "agent/routes.rs"]
mod routes;
#[path = "agent/site.rs"]
mod site;

fn main() -> ExitCode {
    // Before anything starts a thread.
    let sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the agent's tests need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let root = sandbox.privilege() == Privilege::Root;
    if !root {
        println!("not root: the agent on AF_XDP is left out");
    }
    let trials = vec![
        trial("pt_03_the_service_by_af_xdp", af_xdp::the_service_works_and_the_kernel_does_not_forward)
            .with_ignored_flag(!root),
        trial("pt_05_a_kill_leaves_no_steering_program", af_xdp::a_kill_leaves_nothing_attached)
            .with_ignored_flag(!root),
        trial("pt_02_pods_and_the_host_reach_the_service", pods_and_the_host_reach_the_service),
        trial("rt_05_kernel_routes_and_neighbours_are_followed", kernel_is_followed),
        trial("rt_05_a_change_reaches_the_worker_within_10_ms", routes::changes_reach_the_worker),
        trial("rt_01_several_ways_are_followed_and_shown", routes::several_ways_are_followed),
        trial("fw_03_the_kernels_rp_filter_counts", routes::the_kernels_reverse_path_filter_is_taken_over),
        trial("up_01_changed_files_are_put_in_force", changed_files_are_put_in_force),
        trial("up_03_udp_flows_leave_backends_that_serve_no_more", udp_flows_leave_backends),
        trial("bad_files_change_nothing", bad_files_change_nothing),
        trial("bad_input_is_refused_before_anything_is_changed", bad_input_is_refused),
        trial("pt_05_run_restores_everything_also_after_a_kill", run_restores_everything),
        trial("get_and_stats_over_the_admin_socket", get_and_stats),
        trial("ct_11_listing_is_that_of_conntrack", connections::listing_is_that_of_conntrack),
        trial("ct_11_conntrack_list_count_delete_events_stats", connections::the_whole_command),
        trial(
            "ct_11_a_full_table_is_listed_while_forwarding",
            connections::a_full_table_is_listed_while_forwarding,
        ),
        trial("capture_shows_frames_with_their_decisions", capture::frames_with_their_decisions),
        trial("capture_refuses_what_it_does_not_know", capture::refuses),
        trial("capture_waits_for_no_client_and_ends_with_it", capture::waits_for_no_client),
        trial("capture_and_trace_of_the_configuration", capture::of_the_configuration),
        trial("one_agent_listens_at_a_socket", one_agent_listens_at_a_socket),
        trial("pt_01_ports_by_pattern_come_and_go", ports::ports_by_pattern_come_and_go),
        trial("pt_01_an_interface_goes_and_comes_back", ports::an_interface_goes_and_comes_back),
        trial("several_workers_share_everything", ports::several_workers_share_everything),
        trial("workers_cores_and_files_are_checked", ports::workers_cores_and_files_are_checked),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &'static str, test: fn(&Site) -> Outcome) -> Trial {
    Trial::test(name, move || {
        let site = Site::new(name).map_err(|error| Failed::from(error.to_string()))?;
        test(&site).map_err(|error| Failed::from(error.to_string()))
    })
}

fn assert_nothing_dropped(client: &mut Client) -> Outcome {
    let stats = client.stats()?;
    assert_eq!(stats.drops, []);
    let worker = &stats.workers[0];
    // FW-05, between bursts.
    assert_eq!(
        worker.received + worker.originated + worker.split,
        worker.transmitted + worker.delivered + worker.held + worker.dropped + worker.joined,
        "{worker:?}"
    );
    for port in &stats.ports {
        assert_eq!((port.counters.refused, port.counters.missed, &port.counters.error), (0, 0, &None));
    }
    Ok(())
}

fn finish(child: Child) -> std::io::Result<Output> {
    child.wait_with_output()
}

fn signal(child: &Child, signal: Signal) -> Outcome {
    Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
}

fn pods_and_the_host_reach_the_service(site: &Site) -> Outcome {
    let running = site.start()?;
    let servers = site.serve(&[POD_49_8, POD_51_7, POD_51_8])?;
    let before = site.forwarded_by_the_kernel()?;

    let mut open = Vec::new();
    for _ in 0..12 {
        for node in [POD_51_1.name, POD_51_7.name, SLAVE1] {
            open.push(site.connect(node)?);
        }
    }

    // All backends are used, and the host speaks with its own address.
    assert!(servers.connections().iter().all(|(_, count)| *count > 0), "{:?}", servers.connections());
    assert_eq!(open.len(), servers.connections().iter().map(|(_, count)| count).sum::<usize>());
    assert_eq!(open[2].local()?.ip(), IpAddr::V4(SLAVE1_ADDRESS));
    assert_eq!(site.forwarded_by_the_kernel()?, before, "PT-05: the kernel has forwarded as well");
    let mut client = site.client()?;
    assert_nothing_dropped(&mut client)?;
    let flows: Vec<FlowItem> = client.get(Resource::Flows, Filter::default())?;
    let to_the_service = flows.iter().filter(|flow| flow.original.destination == IpAddr::V4(MYAPP));
    assert_eq!(to_the_service.count(), 36);
    drop(open);
    running.stop();
    Ok(())
}

fn kernel_is_followed(site: &Site) -> Outcome {
    let running = site.start()?;
    let mut client = site.client()?;
    let mut route = |wanted: &str| -> Result<Vec<RouteItem>, Box<dyn std::error::Error>> {
        let filter = Filter { names: vec![wanted.to_owned()], ..Filter::default() };
        Ok(client.get(Resource::Routes, filter)?)
    };
    let default = route("default")?;
    assert_eq!(default[0].via, Some("172.16.0.1".parse()?));
    assert_eq!((default[0].port.as_deref(), default[0].source), (Some("ens3"), Some(SLAVE1_ADDRESS.into())));
    assert_eq!(route("10.151.51.0/24")?[0].kind, "blackhole");
    assert_eq!(route("10.151.32.0/24")?[0].kind, "host", "tunl0 is no port");
    assert_eq!(route("10.150.18.86")?, [], "Pollux' own routes are not followed");

    site.slave1().ip("route add 192.0.2.0/24 via 172.16.1.88 dev ens3")?;
    wait(|| route("192.0.2.0/24").ok().filter(|found| !found.is_empty()), "the new route")?;
    site.slave1().ip("route del 192.0.2.0/24")?;
    wait(|| route("192.0.2.0/24").ok().filter(Vec::is_empty), "the route to go")?;

    site.slave1().ip("neighbour add 172.16.9.9 lladdr 02:00:00:00:09:09 dev ens3 nud permanent")?;
    let mut neighbour = || {
        let filter = Filter { names: vec!["172.16.9.9".to_owned()], ..Filter::default() };
        let found: Vec<NeighbourItem> = client.get(Resource::Neighbours, filter).ok()?;
        found.into_iter().next()
    };
    let found = wait(&mut neighbour, "the new neighbour")?;
    assert_eq!(found.link_address.as_deref(), Some("02:00:00:00:09:09"));
    assert_eq!((found.port.as_str(), found.state.to_lowercase().as_str()), ("ens3", "permanent"));
    running.stop();
    Ok(())
}

fn changed_files_are_put_in_force(site: &Site) -> Outcome {
    site.write_objects(&[POD_51_7])?;
    let running = site.start()?;
    let servers = site.serve(&[POD_51_7, POD_51_8])?;
    let mut kept = site.connect(POD_51_1.name)?;
    assert_eq!(servers.connections(), [("pod-51-7", 1), ("pod-51-8", 0)]);

    site.write_objects(&[POD_51_8])?;
    let mut client = site.client()?;
    let backends = |client: &mut Client| -> Option<Vec<String>> {
        let filter = Filter { names: vec!["myapp".to_owned()], ..Filter::default() };
        let items: Vec<EndpointsItem> = client.get(Resource::Endpoints, filter).ok()?;
        items.into_iter().next().map(|item| item.cluster)
    };
    wait(
        || {
            // Traffic goes on all the while.
            kept.echo(b"still there?", SOON).ok()?;
            backends(&mut client).filter(|now| *now == ["10.151.51.8:80"])
        },
        "the new backend",
    )?;
    for node in [POD_51_1.name, POD_51_2.name, SLAVE1] {
        site.connect(node)?.close(SOON)?;
    }

    assert_eq!(servers.connections(), [("pod-51-7", 1), ("pod-51-8", 3)]);
    kept.echo(b"UP-02: an established connection keeps its backend", SOON)?;
    assert_nothing_dropped(&mut client)?;
    // A Service that goes takes the host's route along.
    assert!(site.traces()?.contains("10.150.0.77 dev pollux0"), "{}", site.traces()?);
    let mut fewer = objects(&[POD_51_8]);
    fewer["items"].as_array_mut().ok_or("a list")?.remove(1);
    site.write_file("objects/objects.json", &fewer.to_string())?;
    wait(|| site.traces().ok().filter(|now| !now.contains("10.150.0.77")), "the route to go")?;
    assert!(site.traces()?.contains("10.150.18.86 dev pollux0"));
    running.stop();
    Ok(())
}

/// The seed's objects, and a DNS Service with these endpoints: address, and whether it terminates.
fn with_dns(backends: &[Pod], endpoints: &[(Pod, bool)]) -> Value {
    let mut objects = objects(backends);
    objects["items"][1]["spec"]["ports"] = json!([{"name": "dns", "protocol": "UDP", "port": 53}]);
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, terminates)| {
            let conditions = json!({"ready": !terminates, "serving": true, "terminating": terminates});
            json!({"addresses": [pod.address], "conditions": conditions})
        })
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "dns-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "other"},
        },
        "endpoints": endpoints, "ports": [{"name": "dns", "protocol": "UDP", "port": 53}],
    });
    objects["items"].as_array_mut().expect("a list").push(slice);
    objects
}

fn udp_flows_leave_backends(site: &Site) -> Outcome {
    let first = with_dns(&[POD_51_7], &[(POD_51_7, false), (POD_51_8, false)]);
    site.write_file("objects/objects.json", &first.to_string())?;
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_7, POD_51_8])?;
    let mut kept = site.connect(POD_51_1.name)?;
    let serve = |pod: Pod| UdpServer::start(site.network.node(pod.name), at(pod.address, 53));
    let (seven, eight, two) = (serve(POD_51_7)?, serve(POD_51_8)?, serve(POD_51_2)?);
    let received = || [seven.received(), eight.received(), two.received()];
    let ask = |port: u16| -> Outcome {
        let from = Some(at(POD_51_1.address, port));
        let answer = udp_echo(site.network.node(POD_51_1.name), from, at(OTHER, 53), b"who is there?", SOON)?;
        assert_eq!(answer, Some(at(OTHER, 53)), "port {port}");
        Ok(())
    };
    let ports = 4000..4032;
    ports.clone().try_for_each(ask)?;
    let [at_seven, at_eight, _] = received();
    assert!(at_seven > 0 && at_eight > 0 && at_seven + at_eight == 32, "{:?}", received());

    // One backend terminates and serves, one is gone, one is new.
    let second = with_dns(&[POD_51_8], &[(POD_51_8, true), (POD_51_2, false)]);
    site.write_file("objects/objects.json", &second.to_string())?;
    let mut client = site.client()?;
    let mut flows_at = |pod: Pod| -> Result<u64, Box<dyn std::error::Error>> {
        let destination = Some(pod.address.to_string());
        let filter = Filter { protocol: Some("udp".to_owned()), destination, ..Filter::default() };
        Ok(client.get::<FlowItem>(Resource::Flows, filter)?.len() as u64)
    };
    wait(|| flows_at(POD_51_7).ok().filter(|flows| *flows == 0), "the flows to the lost backend to go")?;
    assert_eq!(flows_at(POD_51_8)?, at_eight, "a terminating endpoint that serves keeps its flows");
    kept.echo(b"TCP ends by itself", SOON)?;

    // Who was there stays there, who was sent away comes to the only one that is ready.
    ports.clone().try_for_each(ask)?;
    assert_eq!(received(), [at_seven, 2 * at_eight, at_seven]);

    // Without any endpoint that serves nothing is deleted; the flows live on, answered or not.
    let third = with_dns(&[POD_51_8], &[]);
    let number = running.state().number;
    site.write_file("objects/objects.json", &third.to_string())?;
    wait(|| (running.state().number > number).then_some(()), "the endpoints to go")?;
    ports.clone().try_for_each(ask)?;
    assert_eq!(received(), [at_seven, 3 * at_eight, 2 * at_seven]);
    kept.echo(b"UP-02", SOON)?;
    running.stop();
    Ok(())
}

fn bad_files_change_nothing(site: &Site) -> Outcome {
    site.write_objects(&[POD_51_7])?;
    let running = site.start()?;
    let servers = site.serve(&[POD_51_7, POD_51_8])?;
    let number = running.state().number;

    site.write_file("objects/objects.json", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"#)?;
    std::thread::sleep(Duration::from_millis(300));
    let mut wrong = objects(&[POD_51_8]);
    wrong["items"][0]["spec"]["ports"][0]["port"] = json!(70_000);
    site.write_file("objects/objects.json", &wrong.to_string())?;
    std::thread::sleep(Duration::from_millis(300));
    let mut other_ports: Value = serde_json::from_str(&node("kernel", "kernel"))?;
    other_ports["ports"].as_array_mut().ok_or("a list")?.pop();
    site.write_objects(&[POD_51_8])?;
    site.write_file("node.yaml", &other_ports.to_string())?;
    std::thread::sleep(Duration::from_millis(300));

    assert_eq!(running.state().number, number);
    site.connect(POD_51_1.name)?.close(SOON)?;
    assert_eq!(servers.connections(), [("pod-51-7", 1), ("pod-51-8", 0)]);

    site.write_file("node.yaml", &node("kernel", "kernel"))?;
    wait(|| (running.state().number > number).then_some(()), "the repaired files")?;
    site.connect(POD_51_1.name)?.close(SOON)?;
    assert_eq!(servers.connections(), [("pod-51-7", 1), ("pod-51-8", 1)]);
    assert_nothing_dropped(&mut site.client()?)?;
    running.stop();
    Ok(())
}

fn bad_input_is_refused(site: &Site) -> Outcome {
    let before = site.traces()?;
    let run = |config: &Path| {
        let mut command = site.pollux(&["run", "--node", SLAVE1, "--objects"]);
        command.arg(site.path("objects")).arg("--config").arg(config);
        command.arg("--admin").arg(site.path("admin.sock"));
        command.output()
    };
    let refused = |change: fn(&mut Value), code: i32, words: &str| -> Outcome {
        let mut config: Value = serde_json::from_str(&node("kernel", "kernel"))?;
        change(&mut config);
        fs::write(site.path("other.yaml"), config.to_string())?;
        let output = run(&site.path("other.yaml"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("pollux: ")).collect();
        assert_eq!(lines, [format!("pollux: {words}")], "{said}");
        assert_eq!(site.traces()?, before);
        assert!(!site.path("admin.sock").exists());
        Ok(())
    };
    refused(
        |config| config["ports"][1]["interface"] = json!("cali0"),
        4,
        &format!("port {}: interface cali0 does not exist", POD_51_1.port),
    )?;
    refused(
        |config| config["ports"][0]["interface"] = json!("lo"),
        4,
        "port ens3: interface lo is not an Ethernet interface",
    )?;
    refused(
        |config| config["ports"][5]["interface"] = json!("docker0"),
        4,
        "port pollux0: an interface docker0 exists already: stop what holds it, or set another name",
    )?;
    refused(
        |config| config["ports"][0]["linkAddress"] = json!("02:00:00:00:00:01"),
        2,
        "port ens3: linkAddress 02:00:00:00:00:01 is not ens3's, which is fa:16:3e:92:11:ca",
    )?;
    refused(
        |config| config["ports"][0]["mtu"] = json!(9000),
        2,
        "port ens3: mtu 9000 is more than ens3's, which is 1500",
    )?;
    refused(
        |config| config["ports"][2]["backend"] = json!("pcap"),
        2,
        &format!("port {}: backend pcap has no place on a running node (see `pollux replay`)", POD_51_2.port),
    )?;
    // CT-09: a table size that does not fit memory.
    let mut config: Value = serde_json::from_str(&node("kernel", "kernel"))?;
    config["flowTable"]["connections"] = json!(1 << 30);
    fs::write(site.path("other.yaml"), config.to_string())?;
    let output = run(&site.path("other.yaml"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("pollux: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    let begin = "pollux: tables for 1073741824 connections and 262144 clients of each family take ";
    assert!(lines[0].starts_with(begin) && lines[0].contains("flowTable.connections"), "{said}");
    assert_eq!(site.traces()?, before);
    Ok(())
}

fn run_restores_everything(site: &Site) -> Outcome {
    // Strict checks of sources, as some distributions have them: the agent has to loosen its own interface.
    site.slave1().set_sysctl("net/ipv4/conf/default/rp_filter", "1")?;
    site.slave1().set_sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    let before = site.traces()?;
    let servers = site.serve(&[POD_49_8, POD_51_7, POD_51_8])?;

    let mut killed = site.run_pollux()?;
    site.connect(SLAVE1)?.close(SOON)?;
    assert!(site.traces()?.contains("10.150.18.86 dev pollux0"), "{}", site.traces()?);
    signal(&killed, Signal::SIGKILL)?;
    assert_eq!(killed.wait()?.signal(), Some(Signal::SIGKILL as i32));
    assert!(site.path("admin.sock").exists(), "a stale socket is left for the next start");

    let second = site.run_pollux()?;
    site.connect(SLAVE1)?.close(SOON)?;
    site.connect(POD_51_1.name)?.close(SOON)?;
    signal(&second, Signal::SIGTERM)?;
    let ended = finish(second)?;
    assert_eq!(ended.status.code(), Some(0), "{}", site.log());
    assert_eq!(site.traces()?, before);
    assert!(!site.path("admin.sock").exists());
    assert_eq!(servers.connections().iter().map(|(_, count)| count).sum::<usize>(), 3);
    // Each line of the log is an object.
    let log = site.log();
    let lines: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert!(lines.iter().any(|line| line["message"] == "tables in force" && line["services"] == 2), "{log}");
    // The kernel forwards again where it did before: pod to pod across the node.
    let at_pod = at(POD_49_8.address, MYAPP_PORT);
    TcpClient::connect(site.network.node(POD_51_1.name), None, at_pod, SOON)?.close(SOON)?;

    let third = site.run_pollux()?;
    signal(&third, Signal::SIGINT)?;
    assert_eq!(finish(third)?.status.code(), Some(130), "{}", site.log());
    assert_eq!(site.traces()?, before);
    Ok(())
}

fn get_and_stats(site: &Site) -> Outcome {
    let running = site.start()?;
    let _servers = site.serve(&[POD_49_8, POD_51_7, POD_51_8])?;
    let connection = site.connect(SLAVE1)?;
    let source = connection.local()?.port().to_string();
    let socket = site.path("admin.sock");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket)?.permissions()) & 0o777, 0o600);
    let ask = |arguments: &[&str]| -> Result<Output, Box<dyn std::error::Error>> {
        let mut command = site.pollux(arguments);
        Ok(command.arg("--admin").arg(&socket).output()?)
    };
    let table = |arguments: &[&str]| -> Result<Vec<Vec<String>>, Box<dyn std::error::Error>> {
        let output = ask(arguments)?;
        let text = String::from_utf8(output.stdout)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
    };
    let object = |arguments: &[&str]| -> Result<Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_slice(&ask(arguments)?.stdout)?)
    };

    let services = table(&["get", "svc", "-n", "default"])?;
    assert_eq!(services[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    assert_eq!(services[1], ["myapp", "ClusterIP", "10.150.18.86", "<none>", "80/TCP", "<none>"]);
    let services: Vec<ServiceItem> =
        serde_json::from_value(object(&["get", "services", "myapp", "-o", "json"])?["items"].take())?;
    assert_eq!((services.len(), services[0].ports[0].port), (1, 80));
    let endpoints = table(&["get", "endpoints", "myapp"])?;
    assert_eq!(endpoints[1][4], "10.151.49.8:80,10.151.51.7:80,10.151.51.8:80");

    let flows = object(&["get", "flows", "--json", "--protocol", "tcp", "--source-port", &source])?;
    assert_eq!(flows["items"].as_array().map(Vec::len), Some(1), "{flows}");
    assert_eq!(flows["items"][0]["state"], "ESTABLISHED");
    assert_eq!(flows["items"][0]["original"]["destination"], "10.150.18.86");
    let backend = flows["items"][0]["reply"]["source"].as_str().ok_or("no backend")?.to_owned();
    let by_backend =
        object(&["get", "flows", "--json", "-d", &format!("{backend}/32"), "--source-port", &source])?;
    assert_eq!(by_backend["items"][0]["id"], flows["items"][0]["id"]);
    let none = object(&["get", "flows", "--json", "--protocol", "sctp"])?;
    assert_eq!(none["items"], json!([]));
    let table_of_flows = table(&["get", "flows", "--source-port", &source])?;
    assert_eq!(table_of_flows[1][3], "10.150.18.86:80");

    let ports: Vec<PortItem> = serde_json::from_value(object(&["get", "ports", "--json"])?["items"].take())?;
    let uplink = ports.iter().find(|port| port.name == "ens3").ok_or("no ens3")?;
    assert_eq!((uplink.link_address.as_str(), uplink.mtu_bytes), ("fa:16:3e:92:11:ca", 1500));
    assert_eq!(uplink.addresses, ["172.16.1.50/12"]);
    let host = ports.iter().find(|port| port.name == "pollux0").ok_or("no pollux0")?;
    assert!(host.counters.received >= 3 && host.counters.transmitted >= 2, "{host:?}");

    let config = ask(&["get", "config", "-o", "yaml"])?;
    assert!(String::from_utf8(config.stdout)?.contains("node: slave1"));
    let stats = object(&["stats", "--json"])?;
    assert!(stats["workers"][0]["transmitted"].as_u64() >= Some(5), "{stats}");
    assert_eq!(stats["drops"], json!([]));
    assert!(String::from_utf8(ask(&["stats"])?.stdout)?.contains("pollux-worker-0"));

    let wrong = ask(&["get", "flows", "--source", "10.0.0.300"])?;
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8(wrong.stderr)?;
    assert_eq!(said, "pollux: source 10.0.0.300 is not an address or prefix\n");
    assert_eq!(ask(&["get", "services", "nobody"])?.status.code(), Some(1));
    running.stop();
    let gone = ask(&["stats"])?;
    assert_eq!(gone.status.code(), Some(4), "{}", String::from_utf8_lossy(&gone.stderr));
    Ok(())
}

fn one_agent_listens_at_a_socket(site: &Site) -> Outcome {
    let running = site.start()?;
    let before = site.traces()?;
    let second = site
        .pollux(&["run", "--node", SLAVE1])
        .args(["--objects"])
        .arg(site.path("objects"))
        .arg("--config")
        .arg(write_memory_node(site)?)
        .arg("--admin")
        .arg(site.path("admin.sock"))
        .output()?;
    assert_eq!(second.status.code(), Some(4));
    let said = String::from_utf8(second.stderr)?;
    assert!(said.contains("a running instance listens there"), "{said}");
    assert_eq!(site.traces()?, before);
    site.client()?.stats()?;

    // A request that is none, and one without an end, cost the client its answer and nobody else anything.
    use std::io::{Read, Write};
    let mut rude = std::os::unix::net::UnixStream::connect(site.path("admin.sock"))?;
    rude.write_all(b"{\"get\": {}}\n")?;
    let mut answer = [0; 16];
    rude.read_exact(&mut answer)?;
    assert_eq!(&answer, b"{\"error\":\"not a ");
    let mut endless = std::os::unix::net::UnixStream::connect(site.path("admin.sock"))?;
    let _ = endless.write_all(&vec![b'x'; 100_000]);
    let mut answer = String::new();
    let _ = endless.read_to_string(&mut answer);
    assert!(answer.contains("a request has at most") || answer.is_empty(), "{answer}");
    site.client()?.stats()?;
    running.stop();
    assert!(!site.path("admin.sock").exists());
    Ok(())
}

/// A node document whose ports need nothing of the machine.
fn write_memory_node(site: &Site) -> std::io::Result<PathBuf> {
    let text = json!({
        "apiVersion": "pollux.dev/v1alpha1", "kind": "Node",
        "ports": [{"name": "m0", "role": "uplink", "backend": "memory", "addresses": ["192.0.2.1/24"]}],
    });
    let path = site.path("memory.yaml");
    fs::write(&path, text.to_string())?;
    Ok(path)
}
