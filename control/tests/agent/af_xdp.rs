//! The same node by AF_XDP: the Service works, nobody else has what Pollux forwards, and nothing stays behind.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::Signal;
use pollux_control::agent::protocol::{Filter, PortItem, Resource};
use pollux_control::lab::seed::{POD_49_8, POD_51_1, POD_51_7, POD_51_8, Pod, SLAVE1};
use serde_json::{Value, json};

use super::site::{Outcome, SOON, Site, node, wait};
use super::{finish, signal};

/// slave1's document with all its interfaces by AF_XDP.
fn document(xdp: &Value) -> Result<String, serde_json::Error> {
    let mut document: Value = serde_json::from_str(&node("kernel", "kernel"))?;
    for port in document["ports"].as_array_mut().into_iter().flatten() {
        if port["backend"] == "af_packet" {
            port["backend"] = json!("af_xdp");
            port["xdp"] = xdp.clone();
        }
    }
    Ok(document.to_string())
}

fn has_program(site: &Site, interface: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let mut command = Command::new("ip");
    command.args(["-details", "link", "show", interface]);
    Ok(site.slave1().output(&mut command)?.contains("prog/xdp"))
}

/// With two workers, and a pod that sends by two queues: each worker has one of them.
pub(super) fn the_service_works_and_the_kernel_does_not_forward(site: &Site) -> Outcome {
    site.unplug(POD_51_1, POD_51_1.port)?;
    site.plug(POD_51_1, POD_51_1.port, "numrxqueues 2 numtxqueues 2")?;
    let mut config: Value = serde_json::from_str(&document(&json!({"ring": 512}))?)?;
    config["workers"] = json!(2);
    site.write_file("node.yaml", &config.to_string())?;
    let running = site.start()?;
    let servers = site.serve(&[POD_49_8, POD_51_7, POD_51_8])?;
    let before = site.forwarded_by_the_kernel()?;
    let mut open = Vec::new();
    for _ in 0..8 {
        for node in [POD_51_1.name, POD_51_7.name, SLAVE1] {
            open.push(site.connect(node)?);
        }
    }
    assert!(servers.connections().iter().all(|(_, count)| *count > 0), "{:?}", servers.connections());
    assert_eq!(site.forwarded_by_the_kernel()?, before, "PT-05: the kernel has forwarded as well");
    assert_eq!(running.guarded_by(), None);
    let mut client = site.client()?;
    let stats = client.stats()?;
    assert_eq!(stats.drops, []);
    assert!(
        stats.ports.iter().all(|port| port.counters.missed + port.counters.refused == 0),
        "{:?}",
        stats.ports
    );
    assert_eq!(stats.workers.len(), 2);
    assert!(stats.workers.iter().all(|worker| worker.received > 0), "{:?}", stats.workers);
    let ports: Vec<PortItem> = client.get(Resource::Ports, Filter::default())?;
    assert!(ports.iter().filter(|port| port.backend == "af_xdp").count() == 5, "{ports:?}");

    // An interface that goes down loses its routes in the kernel, and nothing else.
    let Pod { address, port, .. } = POD_51_1;
    site.slave1().ip(&format!(
        "link set {port} down\nlink set {port} up\nroute add {address} dev {port} scope link"
    ))?;
    wait(|| site.connect(POD_51_1.name).ok(), "the port to be back")?.close(SOON)?;
    drop(open);
    running.stop();
    for interface in ["ens3", POD_51_1.port] {
        assert!(!has_program(site, interface)?, "{interface}");
    }
    Ok(())
}

pub(super) fn a_kill_leaves_nothing_attached(site: &Site) -> Outcome {
    site.write_file("node.yaml", &document(&json!({"mode": "native", "ring": 256}))?)?;
    let servers = site.serve(&[POD_49_8])?;
    site.write_objects(&[POD_49_8])?;
    let mut killed = site.run_pollux()?;
    site.connect(SLAVE1)?.close(SOON)?;
    assert!(has_program(site, "ens3")?);
    signal(&killed, Signal::SIGKILL)?;
    assert_eq!(killed.wait()?.signal(), Some(Signal::SIGKILL as i32));
    wait(|| has_program(site, "ens3").ok().filter(|has| !has), "the program to go with the process")?;
    let second = site.run_pollux()?;
    site.connect(SLAVE1)?.close(SOON)?;

    // Somebody else's, and what cannot be: said, and nothing is changed.
    let refused = |xdp: Value, words: &str| -> Outcome {
        let mut document: Value = serde_json::from_str(&document(&xdp)?)?;
        // The host port is the first one's.
        document["ports"]
            .as_array_mut()
            .into_iter()
            .for_each(|ports| ports.retain(|port| port["role"] != "host"));
        std::fs::write(site.path("other.yaml"), document.to_string())?;
        let mut command = site.pollux(&["run", "--node", SLAVE1, "--objects"]);
        command.arg(site.path("objects")).arg("--config").arg(site.path("other.yaml"));
        command.arg("--admin").arg(site.path("other.sock"));
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        let line = said.lines().find(|line| line.starts_with("pollux: ")).unwrap_or_default();
        assert!(line.contains(words), "{said}");
        Ok(())
    };
    refused(json!({}), "port ens3: AF_XDP on ens3: another Pollux steers its frames (XDP program ")?;
    site.connect(SLAVE1)?.close(SOON)?;
    signal(&second, Signal::SIGTERM)?;
    assert_eq!(finish(second)?.status.code(), Some(0), "{}", site.log());
    assert!(!has_program(site, "ens3")?);
    refused(
        json!({"queues": 3}),
        "port ens3: AF_XDP on ens3: 3 queues are asked for, and it receives by 1: ",
    )?;
    refused(
        json!({"zeroCopy": "required"}),
        "port ens3: AF_XDP on ens3: its driver, veth, has no zero-copy",
    )?;
    assert!(!has_program(site, "ens3")?);
    drop(servers);
    Ok(())
}
