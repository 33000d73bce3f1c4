//! Pollux on real interfaces: the seed's walks with real sockets, beside the kernel forwarding the same
//! topology under the seed's own rules; transfers; and the command `pollux demo`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::kernel::sandbox::{Privilege, Sandbox};
use pollux_control::lab::Network;
use pollux_control::lab::capture::{Capture, Captured, Direction};
use pollux_control::lab::pollux::Wiring;
use pollux_control::lab::seed::{
    self, MYAPP, MYAPP_PORT, POD_49_8, POD_51_7, POD_51_8, Pod, SLAVE1, SLAVE1_ADDRESS,
};
use pollux_control::lab::traffic::{Echo, Service, TcpClient, TcpServer, ping};

use segment::{Segment, with_flags};
use twins::{Outcome, at, myapp, nothing_was_lost, transfers, twins};

#[path = "lab/segment.rs"]
#[expect(dead_code, reason = "the lab's own test uses all of it")]
mod segment;
#[path = "lab/twins.rs"]
mod twins;

/// Longest wait for what must come.
const SOON: Duration = Duration::from_secs(5);

/// How long nothing must come.
const QUIET: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    // Before anything starts a thread.
    let sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the demo's tests need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let privilege = sandbox.privilege();
    let mut trials = vec![
        trial("w01_host_to_service_local_backend", w01),
        trial("w02_host_to_service_remote_backend", w02),
        trial("w03_echo_to_service_leaves_to_the_gateway", w03),
        trial("w04_pod_to_service_same_node", w04),
        trial("w05_pod_to_service_other_node", w05),
        trial("w06_hairpin_comes_back_as_the_service", w06),
        trial("w12_pod_to_pod_other_node", w12),
        trial("tr_transfers_of_1_gib_arrive_intact", |prefix| transfers(prefix, Wiring::AfPacket, 1 << 30)),
        Trial::test("demo_shows_every_walk", || outcome(demo(&mut pollux(), "af_packet"))),
        Trial::test("demo_is_interrupted_cleanly", || outcome(demo_interrupted())),
        Trial::test("demo_refuses_other_backends", || outcome(demo_other_backend())),
    ];
    if privilege == Privilege::Root {
        trials.extend([
            Trial::test("demo_shows_every_walk_to_an_ordinary_user", || outcome(demo_as_nobody())),
            // bpf() needs root.
            Trial::test("demo_shows_every_walk_over_af_xdp", || outcome(demo(&mut pollux(), "af_xdp"))),
            trial("tx_transfers_of_512_mib_over_af_xdp_arrive_intact", |prefix| {
                transfers(prefix, Wiring::AfXdp, 512 << 20)
            }),
        ]);
    }
    let mut arguments = Arguments::from_args();
    // One after another: the transfers measure, and the machine may have two processors.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn outcome(outcome: Outcome) -> Result<(), Failed> {
    outcome.map_err(|error| Failed::from(error.to_string()))
}

fn trial(name: &str, test: fn(&str) -> Outcome) -> Trial {
    let prefix = format!("{}-", name.split('_').next().unwrap_or(name));
    Trial::test(name, move || outcome(test(&prefix)))
}

/// A connection and where it is looked at.
struct Walk<'a> {
    node: &'a str,
    from: SocketAddr,
    to: SocketAddr,
    backend: Pod,
    interfaces: &'a [&'a str],
    /// FINs that the last interface sees: two for each time that the connection passes it.
    closings: usize,
}

/// What one forwarder made of a walk.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    /// For each interface: the handshake's segments, and the heads of all.
    segments: Vec<(String, Vec<String>, BTreeSet<String>)>,
    /// Whom the server saw.
    peers: Vec<SocketAddr>,
}

fn walk(network: &Network, walk: &Walk<'_>) -> Result<Seen, Box<dyn std::error::Error>> {
    let server = TcpServer::start(
        network.node(walk.backend.name),
        at(walk.backend.address, MYAPP_PORT),
        Service::Echo,
    )?;
    let mut captures = Vec::new();
    for interface in walk.interfaces {
        captures.push((*interface, Capture::start(network.node(SLAVE1), interface)?));
    }
    let mut client = TcpClient::connect(network.node(walk.node), Some(walk.from), walk.to, SOON)?;
    assert_eq!((client.local()?, client.peer()?), (walk.from, walk.to));
    client.echo(b"which backend is this?", SOON)?;
    client.close(SOON)?;

    let mut segments = Vec::new();
    for (interface, mut capture) in captures {
        let all = Segment::of_connection(&mut capture, walk.closings, SOON)?;
        let mut handshake = with_flags(&all, "S");
        handshake.extend(with_flags(&all, "S."));
        let heads = all.iter().map(|segment| head(&segment.to_string())).collect();
        segments.push((interface.to_owned(), handshake, heads));
    }
    Ok(Seen { segments, peers: server.peers() })
}

/// A segment's text without its flags: how many go together differs from run to run.
fn head(text: &str) -> String {
    text.rsplit_once(' ').map_or(text, |(head, _)| head).to_owned()
}

/// Both forwarders do the same, and what they do is what is expected at the last interface.
fn compare(prefix: &str, chosen: Option<Pod>, what: &Walk<'_>, expected: &[&str]) -> Outcome {
    let twins = twins(prefix, Wiring::AfPacket, chosen)?;
    let kernel = walk(&twins.kernel, what)?;
    let pollux = walk(&twins.pollux, what)?;
    assert_eq!(pollux, kernel, "left Pollux, right the kernel");
    let (_, handshake, _) = pollux.segments.last().ok_or("no interface")?;
    assert_eq!(handshake, expected);
    nothing_was_lost(&twins.forwarder)
}

fn w01(prefix: &str) -> Outcome {
    let from = at(SLAVE1_ADDRESS, 56060);
    let what = Walk {
        node: SLAVE1,
        from,
        to: myapp(),
        backend: POD_51_8,
        interfaces: &[POD_51_8.port],
        closings: 2,
    };
    let (pod, node) = ("2e:d6:68:68:23:60", "ee:ee:ee:ee:ee:ee");
    compare(
        prefix,
        Some(POD_51_8),
        &what,
        &[
            &format!("out {node} > {pod} 172.16.1.50:56060 > 10.151.51.8:80 ttl 64 S"),
            &format!("in {pod} > {node} 10.151.51.8:80 > 172.16.1.50:56060 ttl 64 S."),
        ],
    )
}

fn w02(prefix: &str) -> Outcome {
    let from = at(SLAVE1_ADDRESS, 55972);
    let what =
        Walk { node: SLAVE1, from, to: myapp(), backend: POD_49_8, interfaces: &["ens3"], closings: 2 };
    let (slave1, slave2) = ("fa:16:3e:92:11:ca", "fa:16:3e:a9:16:9f");
    compare(
        prefix,
        Some(POD_49_8),
        &what,
        &[
            &format!("out {slave1} > {slave2} 172.16.1.50:55972 > 10.151.49.8:80 ttl 64 S"),
            &format!("in {slave2} > {slave1} 10.151.49.8:80 > 172.16.1.50:55972 ttl 63 S."),
        ],
    )
}

fn w03(prefix: &str) -> Outcome {
    let twins = twins(prefix, Wiring::AfPacket, None)?;
    let request = |network: &Network| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let mut capture = Capture::start(network.node(SLAVE1), "ens3")?;
        let echo = Echo { to: MYAPP, identifier: 4935, sequence: 19, data_len: 56 };
        assert_eq!(ping(network.node(SLAVE1), echo, QUIET)?, None);
        let is_ip = |frame: &Captured| frame.direction == Direction::Out && frame.bytes[12..14] == [8, 0];
        let frames = capture.frames_until(is_ip, SOON)?;
        let mut frame = frames.into_iter().find(is_ip).ok_or("no frame")?.bytes;
        // IP identification, and the checksum that covers it.
        frame[18..20].fill(0);
        frame[24..26].fill(0);
        Ok(frame)
    };
    let (kernel, pollux) = (request(&twins.kernel)?, request(&twins.pollux)?);
    assert_eq!(pollux, kernel);
    assert_eq!(pollux[..12], [seed::GATEWAY_LINK.0, seed::SLAVE1_LINK.0].concat());
    assert_eq!(pollux[26..34], [SLAVE1_ADDRESS.octets(), MYAPP.octets()].concat());
    nothing_was_lost(&twins.forwarder)
}

fn w04(prefix: &str) -> Outcome {
    let from = at(POD_51_7.address, 40000);
    let interfaces = [POD_51_7.port, POD_51_8.port];
    let what = Walk {
        node: POD_51_7.name,
        from,
        to: myapp(),
        backend: POD_51_8,
        interfaces: &interfaces,
        closings: 2,
    };
    let (pod, node) = ("2e:d6:68:68:23:60", "ee:ee:ee:ee:ee:ee");
    compare(
        prefix,
        Some(POD_51_8),
        &what,
        &[
            &format!("out {node} > {pod} 10.151.51.7:40000 > 10.151.51.8:80 ttl 63 S"),
            &format!("in {pod} > {node} 10.151.51.8:80 > 10.151.51.7:40000 ttl 64 S."),
        ],
    )
}

fn w05(prefix: &str) -> Outcome {
    let from = at(POD_51_7.address, 40000);
    let interfaces = [POD_51_7.port, "ens3"];
    let what = Walk {
        node: POD_51_7.name,
        from,
        to: myapp(),
        backend: POD_49_8,
        interfaces: &interfaces,
        closings: 2,
    };
    let (slave1, slave2) = ("fa:16:3e:92:11:ca", "fa:16:3e:a9:16:9f");
    compare(
        prefix,
        Some(POD_49_8),
        &what,
        &[
            &format!("out {slave1} > {slave2} 10.151.51.7:40000 > 10.151.49.8:80 ttl 63 S"),
            &format!("in {slave2} > {slave1} 10.151.49.8:80 > 10.151.51.7:40000 ttl 63 S."),
        ],
    )
}

fn w06(prefix: &str) -> Outcome {
    let from = at(POD_51_8.address, 40000);
    let what = Walk {
        node: POD_51_8.name,
        from,
        to: myapp(),
        backend: POD_51_8,
        interfaces: &[POD_51_8.port],
        closings: 4,
    };
    let (pod, node) = ("2e:d6:68:68:23:60", "ee:ee:ee:ee:ee:ee");
    compare(
        prefix,
        Some(POD_51_8),
        &what,
        &[
            &format!("in {pod} > {node} 10.151.51.8:40000 > 10.150.18.86:80 ttl 64 S"),
            &format!("out {node} > {pod} 172.16.1.50:40000 > 10.151.51.8:80 ttl 63 S"),
            &format!("in {pod} > {node} 10.151.51.8:80 > 172.16.1.50:40000 ttl 64 S."),
            &format!("out {node} > {pod} 10.150.18.86:80 > 10.151.51.8:40000 ttl 63 S."),
        ],
    )
}

fn w12(prefix: &str) -> Outcome {
    let from = at(POD_51_7.address, 40001);
    let to = at(POD_49_8.address, MYAPP_PORT);
    let what = Walk {
        node: POD_51_7.name,
        from,
        to,
        backend: POD_49_8,
        interfaces: &[POD_51_7.port, "ens3"],
        closings: 2,
    };
    let (slave1, slave2) = ("fa:16:3e:92:11:ca", "fa:16:3e:a9:16:9f");
    compare(
        prefix,
        None,
        &what,
        &[
            &format!("out {slave1} > {slave2} 10.151.51.7:40001 > 10.151.49.8:80 ttl 63 S"),
            &format!("in {slave2} > {slave1} 10.151.49.8:80 > 10.151.51.7:40001 ttl 63 S."),
        ],
    )
}

fn pollux() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pollux"))
}

fn demo(pollux: &mut Command, backend: &str) -> Outcome {
    let begun = Instant::now();
    let output = pollux.args(["demo", "--backend", backend]).output()?;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let text = all_walks(&output)?;
    assert!(text.contains("Every walk was seen on the wire as decided"), "{text}");
    Ok(())
}

fn all_walks(output: &Output) -> Result<String, Box<dyn std::error::Error>> {
    let text = String::from_utf8(output.stdout.clone())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    for name in ["W1", "W2", "W3", "W4", "W5", "W6", "W12"] {
        assert!(text.lines().any(|line| line.starts_with(&format!("{name}  "))), "{name} in {text}");
    }
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(110), "{widest:?}");
    // W6's answer.
    assert!(text.contains("10.150.18.86:80 > 10.151.51.8:40000"), "{text}");
    Ok(text)
}

fn demo_as_nobody() -> Outcome {
    // The build directory need not be open to everybody.
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("pollux");
    std::fs::copy(env!("CARGO_BIN_EXE_pollux"), &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    demo(Command::new(copy).uid(65534).gid(65534).current_dir("/"), "af_packet")
}

fn demo_interrupted() -> Outcome {
    let mut child = pollux().arg("demo").stdout(std::process::Stdio::piped()).spawn()?;
    let mut line = [0; 64];
    // It has begun to tell: the namespaces are there.
    std::io::Read::read_exact(&mut child.stdout.as_mut().ok_or("no output")?, &mut line)?;
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    let begun = Instant::now();
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(130));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    Ok(())
}

fn demo_other_backend() -> Outcome {
    let output = pollux().args(["demo", "--backend", "dpdk"]).output()?;
    assert_eq!(output.status.code(), Some(4));
    let errors = String::from_utf8(output.stderr)?;
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("not built in this version"), "{errors}");
    Ok(())
}
