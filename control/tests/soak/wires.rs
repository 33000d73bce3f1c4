//! Transfers over wires that lose, double, reorder and corrupt: what arrives is what was sent.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use pollux_control::kernel::sandbox::find_program;
use pollux_control::lab::traffic::{Payload, Service, TcpClient, TcpServer, UdpServer};
use serde_json::json;

use super::site::{At, CLIENT, EDGE, NODE, Options, Outcome, POD_A, Site, To, Way, families};

/// Bytes of each TCP transfer.
const BYTES: u64 = 10_000_000;

/// Datagrams of each UDP transfer, and their length in bytes.
const DATAGRAMS: u32 = 200;
const LENGTH: usize = 1200;

/// Longest time of a transfer.
const WITHIN: Duration = Duration::from_secs(60);

const SEEDS: [u64; 2] = [1, 2];

/// By Pollux' own fault injector, before the ports that client and pod are behind.
pub(crate) fn bad_wires() -> Outcome {
    for seed in SEEDS {
        let faults = |more: u64| {
            json!({"loss": 0.01, "duplicate": 0.01, "reorder": 0.02, "corrupt": 0.002, "delay": "1ms",
                "seed": seed * 10 + more})
        };
        let ports = ["ens3", "cali-a"];
        let faults = vec![(ports[0], faults(0)), (ports[1], faults(1))];
        let site = Site::new(&format!("bw{seed}-"), &Options { faults, ..Options::default() })?;
        println!(
            "bad wires before ens3 and cali-a, seed {seed}: loss 1 %, duplicate 1 %, reorder 2 %, \
                  corrupt 0.2 % in each direction, delay 1 ms"
        );
        transfers(&site)?;
        for port in ports {
            let handle = site.agent.faults(port).ok_or("the port has no bad wire")?;
            for (way, it) in [("in", handle.incoming()), ("out", handle.outgoing())] {
                println!("  {port} {way}: {it:?}");
                let counts = [it.lost, it.duplicated, it.reordered, it.corrupted];
                if counts.contains(&0) {
                    return Err(format!("{port} {way}: a fault did not occur: {it:?}").into());
                }
            }
        }
        // What was corrupted beyond recognition was dropped, whatever it then looked like.
        let stats = site.balanced()?;
        let dropped: Vec<String> =
            stats.dropped.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
        println!("  dropped: {}", dropped.join(", "));
    }
    Ok(())
}

/// Whether the kernel has netem: tried at the sandbox's own loopback.
pub(crate) fn has_netem() -> bool {
    let Ok(tc) = find_program("tc") else { return false };
    let mut command = Command::new(tc);
    let tried = command.args(["qdisc", "add", "dev", "lo", "root", "netem", "loss", "0%"]).output();
    let has = tried.is_ok_and(|output| output.status.success());
    if !has {
        println!("netem: this kernel has none");
    }
    has
}

/// By the kernel's, where it has it.
pub(crate) fn netem() -> Outcome {
    let site = Site::new("ne-", &Options::default())?;
    let netem = ["netem", "loss", "1%", "duplicate", "1%", "reorder", "98%", "50%", "delay", "2ms"];
    for (node, device) in [(CLIENT, "ens3"), (EDGE, "node"), (EDGE, "client"), (POD_A, "eth0")] {
        let arguments: Vec<&str> = ["qdisc", "add", "dev", device, "root"].into_iter().chain(netem).collect();
        site.output(node, "tc", &arguments)?;
    }
    println!("netem at client, edge and pod-a: {}", netem[1..].join(" "));
    transfers(&site)?;
    site.balanced()?;
    Ok(())
}

fn transfers(site: &Site) -> Outcome {
    for family in &families() {
        for way in [
            Way::ClusterIp(POD_A, To::Near),
            Way::NodePort(CLIENT, To::Near),
            Way::NodePort(CLIENT, To::Far),
            Way::ClusterIp(NODE, To::Far),
        ] {
            let to = way.at(family, At::Data);
            let failed = |what: &str, error: &dyn std::fmt::Display| {
                format!("{way:?} over {}, {what}: {error}", family.name)
            };
            let (Way::ClusterIp(_, service) | Way::NodePort(_, service)) = way;
            let machine = site.node(service.machine());
            let at = SocketAddr::new(service.backend(family), At::Data.target());
            let tcp = {
                let _server = TcpServer::start(machine, at, Service::Sink)?;
                let connected = TcpClient::connect(site.node(way.from()), None, to, WITHIN);
                let mut client = connected.map_err(|error| failed("connect", &error))?;
                client.transfer(BYTES, 11, WITHIN).map_err(|error| failed("TCP", &error))?
            };
            let (took, again) = {
                let _server = UdpServer::start(machine, at)?;
                datagrams(site, way.from(), to).map_err(|error| failed("UDP", &*error))?
            };
            println!(
                "  {way:?} over {}: TCP {BYTES} bytes in {:.2} s, {} segments again; UDP {DATAGRAMS} datagrams \
                 echoed in {:.2} s, {again} sent again",
                family.name,
                tcp.took.as_secs_f64(),
                tcp.retransmissions,
                took.as_secs_f64(),
            );
        }
    }
    Ok(())
}

/// Sends datagrams one after the other until each has come back. Whatever comes is one that was sent: a late one, a
/// double, but none that differs in a byte. The time it took, and how many were sent again.
fn datagrams(site: &Site, from: &str, to: SocketAddr) -> Outcome<(Duration, u32)> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = site.node(from).run(|| UdpSocket::bind(any))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let start = Instant::now();
    let datagram = |number: u32| {
        let mut bytes = vec![0; LENGTH];
        Payload::new(u64::from(number)).fill(&mut bytes);
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let mut buffer = vec![0; 2 * LENGTH];
    let mut again = 0;
    for number in 0..DATAGRAMS {
        let wanted = datagram(number);
        socket.send(&wanted)?;
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) if buffer[..length] == *wanted => break,
                Ok(length) => {
                    let earlier = buffer.first_chunk().map(|number| u32::from_be_bytes(*number));
                    let sent = earlier.filter(|&earlier| earlier < number).map(datagram);
                    if sent.as_deref() != Some(&buffer[..length]) {
                        return Err("a datagram came that was never sent".into());
                    }
                }
                Err(_) if start.elapsed() > WITHIN => {
                    return Err(format!("{number} did not come back").into());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    again += 1;
                    socket.send(&wanted)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok((start.elapsed(), again))
}
