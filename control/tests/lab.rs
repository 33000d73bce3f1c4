//! The lab itself, with the kernel as its forwarder: the walks of the seed as real connections under the
//! seed's own rules, seen as frames at the node's interfaces.
//!
//! If these hold, the topology is the seed's and the captures tell the truth; the forwarder is then measured
//! by the same means.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket};
use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::kernel::sandbox::Sandbox;
use pollux_control::lab::capture::{Capture, Captured, Direction, inject};
use pollux_control::lab::seed::{
    self, GATEWAY, GATEWAY_ADDRESS, MYAPP, MYAPP_PORT, POD_49_8, POD_51_7, POD_51_8, SLAVE1, SLAVE1_ADDRESS,
};
use pollux_control::lab::traffic::{
    Echo, Service, TcpClient, TcpServer, Transfer, UdpServer, ping, udp_echo,
};
use pollux_control::lab::twin::{self, Choice};
use pollux_control::lab::{Forwarding, Network};

use segment::{Segment, assert_two_heads, link_text, with_flags};

#[path = "lab/segment.rs"]
mod segment;

/// Longest wait for what must come.
const SOON: Duration = Duration::from_secs(5);

/// How long nothing must come.
const QUIET: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    // Before anything starts a thread.
    let _sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the lab needs a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let trials = vec![
        trial("topology_is_the_seed_s", topology_is_the_seed_s),
        trial("w01_host_to_service_local_backend", w01_host_to_service_local_backend),
        trial("w02_host_to_service_remote_backend", w02_host_to_service_remote_backend),
        trial("w03_echo_to_service_leaves_to_the_gateway", w03_echo_to_service_leaves_to_the_gateway),
        trial("w04_pod_to_service_same_node", w04_pod_to_service_same_node),
        trial("w05_pod_to_service_other_node", w05_pod_to_service_other_node),
        trial("w06_hairpin", w06_hairpin),
        trial("w12_pod_to_pod_other_node", w12_pod_to_pod_other_node),
        trial("w13_blackhole", w13_blackhole),
        trial("random_choice_reaches_every_backend", random_choice_reaches_every_backend),
        trial("transfers_arrive_intact", transfers_arrive_intact),
        trial("udp_and_icmp_echo", udp_and_icmp_echo),
        trial("waits_end_and_errors_are_told", waits_end_and_errors_are_told),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn trial(name: &str, test: fn(&str) -> Outcome) -> Trial {
    // Each has a network of its own, so that they can run side by side.
    let prefix = format!("k-{}-", name.split('_').next().unwrap_or(name));
    Trial::test(name, move || test(&prefix).map_err(|error| Failed::from(error.to_string())))
}

/// The seed's cluster with the kernel as slave1's forwarder.
fn kernel_twin(prefix: &str, choice: Choice) -> Result<Network, Box<dyn std::error::Error>> {
    let network = Network::build(&seed::plan(Forwarding::Kernel), prefix)?;
    twin::load(network.node(SLAVE1), &twin::rules(choice))?;
    Ok(network)
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), port)
}

fn myapp() -> SocketAddr {
    at(MYAPP, MYAPP_PORT)
}

/// myapp's server in a pod.
fn serve(network: &Network, pod: seed::Pod, service: Service) -> std::io::Result<TcpServer> {
    TcpServer::start(network.node(pod.name), at(pod.address, MYAPP_PORT), service)
}

/// One connection to the Service, opened from a port, used and closed.
fn call(network: &Network, node: &str, from: SocketAddr, to: SocketAddr) -> Outcome {
    let mut client = TcpClient::connect(network.node(node), Some(from), to, SOON)?;
    assert_eq!((client.local()?, client.peer()?), (from, to));
    client.echo(b"which backend is this?", SOON)?;
    client.close(SOON)?;
    Ok(())
}

fn topology_is_the_seed_s(prefix: &str) -> Outcome {
    let network = Network::build(&seed::plan(Forwarding::Off), prefix)?;
    let slave1 = network.node(SLAVE1);
    let ip = |arguments: &[&str]| slave1.output(std::process::Command::new("ip").args(arguments));

    let routes = ip(&["route"])?;
    let routes: Vec<&str> = routes.lines().map(str::trim_end).collect();
    assert_eq!(
        routes,
        [
            "default via 172.16.0.1 dev ens3 proto dhcp src 172.16.1.50 metric 100",
            "10.151.32.0/24 via 172.16.2.77 dev tunl0 proto bird onlink",
            "10.151.49.0/24 via 172.16.1.88 dev ens3 proto bird",
            "blackhole 10.151.51.0/24 proto bird",
            "10.151.51.1 dev califf8f2a54a89 scope link",
            "10.151.51.2 dev cali448e242b4a5 scope link",
            "10.151.51.7 dev cali566211caf94 scope link",
            "10.151.51.8 dev caliee93b0bdd66 scope link",
            "10.151.161.0/24 via 172.16.1.221 dev ens3 proto bird",
            "10.151.208.0/24 via 172.16.1.203 dev ens3 proto bird",
            "169.254.169.254 via 172.16.0.1 dev ens3 proto dhcp src 172.16.1.50 metric 100",
            "172.16.0.0/12 dev ens3 proto kernel scope link src 172.16.1.50",
            "172.17.0.0/16 dev docker0 proto kernel scope link src 172.17.0.1 linkdown",
        ]
    );

    let links = ip(&["-oneline", "link"])?;
    let devices: Vec<(&str, &str)> = links
        .lines()
        .filter_map(|line| {
            let name = line.split_whitespace().nth(1)?.trim_end_matches(':').split('@').next()?;
            let mtu = line.split(" mtu ").nth(1)?.split(' ').next()?;
            Some((name, mtu))
        })
        .filter(|(name, _)| *name != "tunl0-far") // of a stand-in for tunl0
        .collect();
    let mut expected = vec![
        ("lo", "65536"),
        ("ens3", "1500"),
        ("docker0", "1500"),
        ("tunl0", "1480"),
        ("califf8f2a54a89", "1480"),
        ("cali448e242b4a5", "1480"),
        ("cali566211caf94", "1480"),
        ("caliee93b0bdd66", "1480"),
    ];
    if !network.has_stand_ins() {
        // The module makes tunl0 with the namespace.
        expected[1..4].rotate_right(1);
    }
    assert_eq!(devices, expected);
    assert!(links.contains("fa:16:3e:92:11:ca"), "{links}");
    assert_eq!(links.matches("ee:ee:ee:ee:ee:ee").count(), 4, "{links}");

    assert_eq!(slave1.sysctl("net/ipv4/ip_forward")?, "0");
    let addresses = ip(&["-oneline", "address"])?;
    assert!(!addresses.contains("inet6"), "{addresses}");
    assert!(!addresses.contains("cali"), "a pod port has an address: {addresses}");
    assert!(addresses.contains("inet 10.151.51.0/32"), "{addresses}");
    Ok(())
}

fn w01_host_to_service_local_backend(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Always(POD_51_8))?;
    let server = serve(&network, POD_51_8, Service::Echo)?;
    let mut capture = Capture::start(network.node(SLAVE1), POD_51_8.port)?;

    call(&network, SLAVE1, at(SLAVE1_ADDRESS, 56060), myapp())?;

    let segments = Segment::of_connection(&mut capture, 2, SOON)?;
    let link = "ee:ee:ee:ee:ee:ee > 2e:d6:68:68:23:60";
    assert_eq!(
        with_flags(&segments, "S"),
        [format!("out {link} 172.16.1.50:56060 > 10.151.51.8:80 ttl 64 S")]
    );
    let link = "2e:d6:68:68:23:60 > ee:ee:ee:ee:ee:ee";
    assert_eq!(
        with_flags(&segments, "S."),
        [format!("in {link} 10.151.51.8:80 > 172.16.1.50:56060 ttl 64 S.")]
    );
    assert_two_heads(&segments);
    assert_eq!(server.peers(), [at(SLAVE1_ADDRESS, 56060)]);
    Ok(())
}

fn w02_host_to_service_remote_backend(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Always(POD_49_8))?;
    let server = serve(&network, POD_49_8, Service::Echo)?;
    let mut capture = Capture::start(network.node(SLAVE1), "ens3")?;

    call(&network, SLAVE1, at(SLAVE1_ADDRESS, 55972), myapp())?;

    let segments = Segment::of_connection(&mut capture, 2, SOON)?;
    let link = "fa:16:3e:92:11:ca > fa:16:3e:a9:16:9f";
    assert_eq!(
        with_flags(&segments, "S"),
        [format!("out {link} 172.16.1.50:55972 > 10.151.49.8:80 ttl 64 S")]
    );
    let link = "fa:16:3e:a9:16:9f > fa:16:3e:92:11:ca";
    assert_eq!(
        with_flags(&segments, "S."),
        [format!("in {link} 10.151.49.8:80 > 172.16.1.50:55972 ttl 63 S.")]
    );
    assert_two_heads(&segments);
    assert_eq!(server.peers(), [at(SLAVE1_ADDRESS, 55972)]);
    Ok(())
}

fn w03_echo_to_service_leaves_to_the_gateway(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Random)?;
    let mut capture = Capture::start(network.node(SLAVE1), "ens3")?;

    let echo = Echo { to: MYAPP, identifier: 4935, sequence: 19, data_len: 56 };
    assert_eq!(ping(network.node(SLAVE1), echo, QUIET)?, None);

    let frames = capture.frames_until(|frame| frame.bytes[12..14] == [8, 0], SOON)?;
    let request = &frames.last().ok_or("no frame")?;
    assert_eq!((request.direction, request.bytes.len()), (Direction::Out, 98));
    let packet = SlicedPacket::from_ethernet(&request.bytes)?;
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        return Err("not IPv4".into());
    };
    let ip = ip.header();
    assert_eq!(link_text(&request.bytes[..12]), "fa:16:3e:d2:26:34:fa:16:3e:92:11:ca");
    assert_eq!((ip.source_addr(), ip.destination_addr()), (SLAVE1_ADDRESS, MYAPP));
    assert_eq!((ip.ttl(), ip.dont_fragment()), (64, true));
    // Type, code, then (behind the checksum) identifier and sequence.
    assert_eq!(request.bytes[34..36], [8, 0]);
    assert_eq!(request.bytes[38..42], [0x13, 0x47, 0, 19]);
    Ok(())
}

fn w04_pod_to_service_same_node(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Always(POD_51_8))?;
    let server = serve(&network, POD_51_8, Service::Echo)?;
    let mut near = Capture::start(network.node(SLAVE1), POD_51_7.port)?;
    let mut far = Capture::start(network.node(SLAVE1), POD_51_8.port)?;
    let mut wire = Capture::start(network.node(SLAVE1), "ens3")?;
    let mut tunnel = Capture::start(network.node(SLAVE1), "tunl0")?;

    call(&network, POD_51_7.name, at(POD_51_7.address, 40000), myapp())?;

    let segments = Segment::of_connection(&mut near, 2, SOON)?;
    let (pod, node) = ("ce:5a:9e:2f:70:07", "ee:ee:ee:ee:ee:ee");
    assert_eq!(
        with_flags(&segments, "S"),
        [format!("in {pod} > {node} 10.151.51.7:40000 > 10.150.18.86:80 ttl 64 S")]
    );
    assert_eq!(
        with_flags(&segments, "S."),
        [format!("out {node} > {pod} 10.150.18.86:80 > 10.151.51.7:40000 ttl 63 S.")]
    );
    assert_two_heads(&segments);

    let segments = Segment::of_connection(&mut far, 2, SOON)?;
    let pod = "2e:d6:68:68:23:60";
    assert_eq!(
        with_flags(&segments, "S"),
        [format!("out {node} > {pod} 10.151.51.7:40000 > 10.151.51.8:80 ttl 63 S")]
    );
    assert_eq!(
        with_flags(&segments, "S."),
        [format!("in {pod} > {node} 10.151.51.8:80 > 10.151.51.7:40000 ttl 64 S.")]
    );
    assert_two_heads(&segments);
    assert_eq!(server.peers(), [at(POD_51_7.address, 40000)]);

    // Neither wire nor tunnel saw any of it.
    assert!(wire.frames_until(|_| false, QUIET)?.iter().all(|frame| Segment::of(frame).is_none()));
    assert_eq!(tunnel.frames_until(|_| false, Duration::ZERO)?, []);
    Ok(())
}

fn w05_pod_to_service_other_node(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Always(POD_49_8))?;
    let server = serve(&network, POD_49_8, Service::Echo)?;
    let mut capture = Capture::start(network.node(SLAVE1), "ens3")?;

    call(&network, POD_51_7.name, at(POD_51_7.address, 40000), myapp())?;

    let segments = Segment::of_connection(&mut capture, 2, SOON)?;
    let (slave1, slave2) = ("fa:16:3e:92:11:ca", "fa:16:3e:a9:16:9f");
    assert_eq!(
        with_flags(&segments, "S"),
        [format!("out {slave1} > {slave2} 10.151.51.7:40000 > 10.151.49.8:80 ttl 63 S")]
    );
    assert_eq!(
        with_flags(&segments, "S."),
        [format!("in {slave2} > {slave1} 10.151.49.8:80 > 10.151.51.7:40000 ttl 63 S.")]
    );
    assert_two_heads(&segments);
    assert_eq!(server.peers(), [at(POD_51_7.address, 40000)]);
    Ok(())
}

fn w06_hairpin(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Always(POD_51_8))?;
    let server = serve(&network, POD_51_8, Service::Echo)?;
    let mut capture = Capture::start(network.node(SLAVE1), POD_51_8.port)?;

    call(&network, POD_51_8.name, at(POD_51_8.address, 40000), myapp())?;

    // Each segment passes the port twice, so each FIN too.
    let segments = Segment::of_connection(&mut capture, 4, SOON)?;
    let (pod, node) = ("2e:d6:68:68:23:60", "ee:ee:ee:ee:ee:ee");
    assert_eq!(
        with_flags(&segments, "S"),
        [
            format!("in {pod} > {node} 10.151.51.8:40000 > 10.150.18.86:80 ttl 64 S"),
            format!("out {node} > {pod} 172.16.1.50:40000 > 10.151.51.8:80 ttl 63 S"),
        ]
    );
    assert_eq!(
        with_flags(&segments, "S."),
        [
            format!("in {pod} > {node} 10.151.51.8:80 > 172.16.1.50:40000 ttl 64 S."),
            format!("out {node} > {pod} 10.150.18.86:80 > 10.151.51.8:40000 ttl 63 S."),
        ]
    );
    assert_eq!(server.peers(), [at(SLAVE1_ADDRESS, 40000)]);
    Ok(())
}

fn w12_pod_to_pod_other_node(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Random)?;
    let server = serve(&network, POD_49_8, Service::Echo)?;
    let mut capture = Capture::start(network.node(SLAVE1), "ens3")?;

    call(&network, POD_51_7.name, at(POD_51_7.address, 40001), at(POD_49_8.address, MYAPP_PORT))?;

    let segments = Segment::of_connection(&mut capture, 2, SOON)?;
    let (slave1, slave2) = ("fa:16:3e:92:11:ca", "fa:16:3e:a9:16:9f");
    assert_eq!(
        with_flags(&segments, "S"),
        [format!("out {slave1} > {slave2} 10.151.51.7:40001 > 10.151.49.8:80 ttl 63 S")]
    );
    assert_two_heads(&segments);
    assert_eq!(server.peers(), [at(POD_51_7.address, 40001)]);
    Ok(())
}

/// A UDP datagram from pod 10.151.51.7, as a frame to its gateway.
fn datagram_to(destination: Ipv4Addr) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let builder = etherparse::PacketBuilder::ethernet2(POD_51_7.link.0, seed::CALICO_LINK.0)
        .ipv4(POD_51_7.address.octets(), destination.octets(), 64)
        .udp(7000, 7001);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"by hand")?;
    Ok(frame)
}

fn w13_blackhole(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Random)?;
    let mut from_pod = Capture::start(network.node(SLAVE1), POD_51_7.port)?;
    let mut to_pod = Capture::start(network.node(SLAVE1), POD_51_8.port)?;
    let mut wire = Capture::start(network.node(SLAVE1), "ens3")?;
    let pod = network.node(POD_51_7.name);
    let is_hand_made = |frame: &Captured| frame.bytes.ends_with(b"by hand");

    let lost = datagram_to(Ipv4Addr::new(10, 151, 51, 99))?;
    inject(pod, "eth0", &lost)?;
    let seen = from_pod.frames_until(is_hand_made, SOON)?;
    assert_eq!(seen.last().map(|frame| (frame.direction, &frame.bytes)), Some((Direction::In, &lost)));
    // One that is not lost comes after it, so the first would have been seen by then.
    inject(pod, "eth0", &datagram_to(POD_51_8.address)?)?;
    let seen: Vec<Captured> = to_pod.frames_until(is_hand_made, SOON)?;
    let passed: Vec<&Captured> = seen.iter().filter(|frame| is_hand_made(frame)).collect();
    assert_eq!(passed.len(), 1);
    assert_eq!(passed[0].bytes[30..34], POD_51_8.address.octets());

    assert!(!wire.frames_until(|_| false, QUIET)?.iter().any(is_hand_made));
    let errors = from_pod.frames_until(|_| false, Duration::ZERO)?;
    let is_icmp = |frame: &&Captured| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 1;
    // The pod that got the second answers it: port unreachable. The blackhole says nothing.
    let from: Vec<&[u8]> = errors.iter().filter(is_icmp).map(|frame| &frame.bytes[26..30]).collect();
    assert_eq!(from, [POD_51_8.address.octets()]);
    Ok(())
}

fn random_choice_reaches_every_backend(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Random)?;
    let servers = seed::BACKENDS.map(|pod| serve(&network, pod, Service::Echo));
    // One backend is missed once in 10^10 runs.
    for _ in 0..60 {
        let client = TcpClient::connect(network.node(SLAVE1), None, myapp(), SOON)?;
        client.close(SOON)?;
    }
    let mut total = 0;
    for server in servers {
        let connections = server?.peers().len();
        assert!(connections > 0, "a backend got no connection");
        total += connections;
    }
    assert_eq!(total, 60);
    Ok(())
}

fn transfers_arrive_intact(prefix: &str) -> Outcome {
    const BYTES: u64 = 64 << 20;
    let network = kernel_twin(prefix, Choice::Always(POD_51_8))?;
    let _server = serve(&network, POD_51_8, Service::Sink)?;
    let send = |node: &str, seed: u64| -> std::io::Result<Transfer> {
        let mut client = TcpClient::connect(network.node(node), None, myapp(), SOON)?;
        client.transfer(BYTES, seed, Duration::from_secs(15))
    };
    let from_pod = send(POD_51_7.name, 1)?;
    let from_host = send(SLAVE1, 2)?;
    assert_eq!((from_pod.bytes, from_host.bytes), (BYTES, BYTES));
    for (who, transfer) in [("pod", from_pod), ("host", from_host)] {
        let rate = transfer.rate() / 1e6;
        println!("64 MiB from {who}: {rate:.0} MB/s, {} retransmissions", transfer.retransmissions);
    }
    Ok(())
}

fn udp_and_icmp_echo(prefix: &str) -> Outcome {
    let network = kernel_twin(prefix, Choice::Random)?;
    let to = at(POD_49_8.address, 5353);
    let server = UdpServer::start(network.node(POD_49_8.name), to)?;
    let pod = network.node(POD_51_7.name);

    let from = at(POD_51_7.address, 40002);
    assert_eq!(udp_echo(pod, Some(from), to, b"hello", SOON)?, Some(to));
    assert_eq!(server.received(), 1);
    let closed = udp_echo(pod, None, at(POD_49_8.address, 5354), b"hello", SOON);
    assert_eq!(closed.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));

    let echo = Echo { to: POD_49_8.address, identifier: 7, sequence: 1, data_len: 1400 };
    let reply = ping(pod, echo, SOON)?.ok_or("no echo")?;
    // Two nodes on the way back.
    assert_eq!((reply.from, reply.ttl), (POD_49_8.address, 62));
    let echo = Echo { to: GATEWAY_ADDRESS, ..echo };
    assert_eq!(ping(pod, echo, SOON)?.map(|reply| reply.ttl), Some(63));
    Ok(())
}

fn waits_end_and_errors_are_told(prefix: &str) -> Outcome {
    let network = Network::build(&seed::plan(Forwarding::Off), prefix)?;
    let slave1 = network.node(SLAVE1);

    let missing = Capture::start(slave1, "ens4").map(|_| ()).map_err(|error| error.kind());
    assert!(missing.is_err(), "{missing:?}");

    // Nobody forwards here, so nobody answers the pod's ARP either.
    let start = std::time::Instant::now();
    let to = at(GATEWAY_ADDRESS, 80);
    let silent = TcpClient::connect(network.node(POD_51_7.name), None, to, QUIET);
    assert_eq!(silent.map(|_| ()).map_err(|error| error.kind()), Err(std::io::ErrorKind::TimedOut));
    let closed = TcpClient::connect(slave1, None, to, SOON).map(|_| ()).map_err(|error| error.kind());
    assert_eq!(closed, Err(std::io::ErrorKind::ConnectionRefused));

    // A server that does not take what it is sent, and one that cuts its connections.
    let server = TcpServer::start(network.node(GATEWAY), to, Service::Sink)?;
    let mut client = TcpClient::connect(slave1, None, to, SOON)?;
    let unanswered = client.echo(b"?", QUIET).map_err(|error| error.kind());
    assert_eq!(unanswered, Err(std::io::ErrorKind::TimedOut));
    drop(server);
    assert!(client.transfer(16 << 20, 3, SOON).is_err());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    Ok(())
}
