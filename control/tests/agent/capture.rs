//! `pollux capture`, and a port's `capture` and `trace`: what they show of connections to the Service, and that
//! forwarding does not wait for them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output};

use nix::sys::signal::Signal;
use pollux_control::agent::capture::{CaptureItem, CaptureRequest, FrameItem, View, Way};
use pollux_control::agent::protocol::Request;
use pollux_control::lab::seed::{MYAPP_PORT, POD_51_1, POD_51_7, SLAVE1};
use pollux_control::trace::Verdict;
use serde_json::{Value, json};

use super::site::{Outcome, SOON, Site, node, wait};
use super::{assert_nothing_dropped, finish, signal};

/// A frame of a pcapng file: its interface's name, whether it came in, its bytes, its comment.
type Captured = (String, bool, Vec<u8>, String);

/// Reads a pcapng file of one section, little endian.
fn read(file: &Path) -> Result<Vec<Captured>, Box<dyn std::error::Error>> {
    let bytes = fs::read(file)?;
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let options = |mut rest: &[u8]| {
        let mut options = Vec::new();
        while rest.len() >= 4 && rest[..2] != [0, 0] {
            let number = u16::from_le_bytes([rest[0], rest[1]]);
            let len = usize::from(u16::from_le_bytes([rest[2], rest[3]]));
            options.push((number, rest[4..4 + len].to_vec()));
            rest = &rest[4 + len.next_multiple_of(4)..];
        }
        options
    };
    let text = |options: &[(u16, Vec<u8>)], wanted: u16| {
        let found = options.iter().find(|(number, _)| *number == wanted);
        found.map(|(_, value)| String::from_utf8(value.clone()).unwrap()).unwrap_or_default()
    };
    let (mut interfaces, mut frames) = (Vec::new(), Vec::new());
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (kind, len) = (word(rest, 0), word(rest, 4) as usize);
        assert_eq!(word(rest, len - 4) as usize, len, "a block ends with its length");
        let body = &rest[8..len - 4];
        match kind {
            1 => interfaces.push(text(&options(&body[8..]), 2)),
            6 => {
                let len = word(body, 12) as usize;
                let options = options(&body[20 + len.next_multiple_of(4)..]);
                let flags = options.iter().find(|(number, _)| *number == 2).expect("flags");
                let name: &String = &interfaces[word(body, 0) as usize];
                let comes_in = word(&flags.1, 0) == 1;
                frames.push((name.clone(), comes_in, body[20..20 + len].to_vec(), text(&options, 1)));
            }
            _ => {}
        }
        rest = &rest[len..];
    }
    Ok(frames)
}

/// What tcpdump reads of a file: a line for each frame.
fn tcpdump(file: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let output = Command::new("tcpdump").args(["-n", "-r"]).arg(file).output();
    let output = output.map_err(|error| format!("tcpdump (Debian: apt install tcpdump): {error}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn capture(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.pollux(&["capture", "--admin"]);
    command.arg(site.path("admin.sock")).args(arguments);
    command
}

/// A capture into a file, which has begun.
fn begun(site: &Site, file: &Path, arguments: &[&str]) -> Result<Child, Box<dyn std::error::Error>> {
    let child = capture(site, &["-w", file.to_str().ok_or("a name")?]).args(arguments).spawn()?;
    wait(|| fs::metadata(file).ok().filter(|metadata| metadata.len() > 0), "the capture to begin")?;
    Ok(child)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(super) fn frames_with_their_decisions(site: &Site) -> Outcome {
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_7])?;
    site.write_objects(&[POD_51_7])?;
    wait(|| (running.state().number > 1).then_some(()), "the endpoints to change")?;

    // So that nothing has to wait for a link address.
    drop(site.connect(POD_51_1.name)?);
    let file = site.path("any.pcapng");
    let child = begun(site, &file, &["any", "tcp", "port", "80"])?;
    let wire = site.path("wire.pcapng");
    let on_the_wire = begun(site, &wire, &["--wire", "-s", "64", POD_51_7.port, "tcp"])?;
    drop(site.connect(POD_51_1.name)?);
    // As many frames as both ports have sent: the last acknowledgement may come late.
    std::thread::sleep(std::time::Duration::from_millis(300));
    for child in [&child, &on_the_wire] {
        signal(child, Signal::SIGINT)?;
    }
    let output = finish(child)?;
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains(" frames were captured, 0 lost"), "{}", said(&output));

    let frames = read(&file)?;
    assert_eq!(tcpdump(&file)?.len(), frames.len());
    // The SYN comes in, and then leaves to the backend.
    let (port, comes_in, _, comment) = &frames[0];
    assert_eq!((port.as_str(), comes_in), (POD_51_1.port, &true));
    let summary = format!(
        "forward out of {}: new, DNAT to {}:80 of default/myapp:http",
        POD_51_7.port, POD_51_7.address
    );
    assert_eq!(comment.lines().next(), Some(summary.as_str()));
    assert!(comment.contains("\nnat KUBE-SERVICES: enters KUBE-SVC-"), "{comment}");
    assert!(comment.contains(&format!("DNAT to {}:80", POD_51_7.address)), "{comment}");
    let (port, comes_in, frame, comment) = &frames[1];
    assert_eq!((port.as_str(), comes_in), (POD_51_7.port, &false));
    assert_eq!(frame[30..34], POD_51_7.address.octets());
    assert!(comment.starts_with(&format!("from {}: new, DNAT to", POD_51_1.port)), "{comment}");
    // The answer to it, and what follows, belong to a connection that is known.
    let (port, comes_in, _, comment) = &frames[2];
    assert_eq!((port.as_str(), comes_in), (POD_51_7.port, &true));
    let known = format!("forward out of {}: known connection, reply direction", POD_51_1.port);
    assert_eq!(comment.lines().next(), Some(known.as_str()));
    // Each that came in has left.
    let ins = frames.iter().filter(|frame| frame.1).count();
    assert_eq!((ins * 2, ins >= 6), (frames.len(), true), "{frames:?}");

    let output = finish(on_the_wire)?;
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let on_the_wire = read(&wire)?;
    let of_the_port: Vec<_> = frames.iter().filter(|frame| frame.0 == POD_51_7.port).collect();
    assert_eq!(on_the_wire.len(), of_the_port.len());
    for (seen, told) in on_the_wire.iter().zip(of_the_port) {
        assert_eq!((&seen.0, seen.1, seen.3.as_str()), (&told.0, told.1, ""));
        // But for the checksum, which the port may finish.
        assert_eq!(seen.2[..50.min(seen.2.len())], told.2[..50.min(told.2.len())]);
        assert!(seen.2.len() <= 64);
    }
    assert_nothing_dropped(&mut site.client()?)?;
    running.stop();
    Ok(())
}

pub(super) fn refuses(site: &Site) -> Outcome {
    let running = site.start()?;
    let file = site.path("never.pcapng");
    let refused = |arguments: &[&str], words: &str| -> Outcome {
        let output = capture(site, &["-w", file.to_str().ok_or("a name")?]).args(arguments).output()?;
        assert_eq!((output.status.code(), said(&output)), (Some(2), format!("pollux: {words}\n")));
        assert!(!file.exists());
        Ok(())
    };
    refused(&["ens3", "port", "http"], "filter \"port http\": port http: is not a number from 0 to 65535")?;
    let output = capture(site, &["ens9"]).output()?;
    assert_eq!(output.status.code(), Some(2));
    let none = "pollux: port ens9: there is none of that name (the ports are ens3, ";
    assert!(said(&output).starts_with(none), "{}", said(&output));
    refused(&["--duration", "nan", "ens3"], "--duration NaN: not a number of seconds")?;

    // Lines, and so many; with the reason of a drop.
    let child = capture(site, &["--json", "-c", "1", POD_51_1.port, "dst", "203.0.113.9"]).spawn()?;
    let ping = |seconds: &str| {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-c", "1", "-t", "1", "-W", seconds, "203.0.113.9"]);
        site.network.node(POD_51_1.name).command(&mut ping);
        ping.output()
    };
    let mut child = child;
    wait(
        || {
            ping("1").ok()?;
            child.try_wait().ok()?
        },
        "the frame to be captured",
    )?;
    let output = finish(child)?;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let lines = String::from_utf8(output.stdout)?;
    assert_eq!(lines.lines().count(), 1, "{lines}");
    let frame: FrameItem = serde_json::from_str(&lines)?;
    let decision = frame.decision.as_ref().ok_or("no decision")?;
    assert_eq!((frame.direction, frame.port.as_str()), (Way::In, POD_51_1.port));
    assert_eq!((decision.verdict, decision.reason.as_deref()), (Some(Verdict::Reject), Some("ttl_exceeded")));
    assert!(
        frame.line().contains(&format!("icmp {} > 203.0.113.9 type 8 code 0: reject ttl", POD_51_1.address))
    );
    running.stop();
    Ok(())
}

pub(super) fn waits_for_no_client(site: &Site) -> Outcome {
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_7])?;
    // One that asks, and reads nothing.
    let mut silent = UnixStream::connect(site.path("admin.sock"))?;
    let request = Request::Capture(CaptureRequest {
        port: "any".to_owned(),
        filter: String::new(),
        snap_length_bytes: 65_535,
        count: None,
        view: View::Forwarder,
    });
    writeln!(silent, "{}", serde_json::to_string(&request)?)?;
    let mut lines = BufReader::new(silent.try_clone()?).lines();
    assert!(lines.next().ok_or("no line")??.contains("started"));
    site.write_objects(&[POD_51_7])?;
    wait(|| (running.state().number > 1).then_some(()), "the endpoints to change")?;
    let mut client = site.connect(SLAVE1)?;
    // More than the socket and the ring hold.
    let block = vec![7; 1 << 20];
    for _ in 0..24 {
        client.echo(&block, SOON)?;
    }
    assert_nothing_dropped(&mut site.client()?)?;
    // It is told how much it has missed, when it takes the rest.
    silent.shutdown(std::net::Shutdown::Write)?;
    let mut ended = None;
    for line in lines {
        let line: Value = serde_json::from_str(&line?)?;
        if let Some(item) = line.get("item")
            && let CaptureItem::Ended { captured, lost, .. } = serde_json::from_value(item.clone())?
        {
            ended = Some((captured, lost));
        }
    }
    let (captured, lost) = ended.ok_or("the capture did not end")?;
    assert!(captured > 0 && lost > 0, "{captured} captured, {lost} lost");
    running.stop();
    Ok(())
}

pub(super) fn of_the_configuration(site: &Site) -> Outcome {
    let file = site.path("ens3.pcapng");
    let mut config: Value = serde_json::from_str(&node("kernel", "kernel"))?;
    let pod =
        config["ports"].as_array().ok_or("no ports")?.iter().position(|port| port["name"] == POD_51_7.port);
    let pod = pod.ok_or("no port of the pod")?;
    config["ports"][pod]["capture"] = json!({"file": file, "filter": "tcp", "snapLength": 100});
    config["ports"][pod]["trace"] = json!({"filter": "tcp port 80 and inbound", "view": "wire"});
    site.write_file("node.yaml", &config.to_string())?;
    site.write_objects(&[POD_51_7])?;
    let child = site.run_pollux()?;
    let _servers = site.serve(&[POD_51_7])?;
    drop(site.connect(POD_51_1.name)?);
    signal(&child, Signal::SIGTERM)?;
    let output = finish(child)?;
    assert_eq!(output.status.code(), Some(0), "{}", site.log());

    let frames = read(&file)?;
    assert_eq!(tcpdump(&file)?.len(), frames.len());
    assert!(frames.iter().all(|frame| frame.0 == POD_51_7.port && frame.2.len() <= 100));
    // Its link address had to be asked for.
    assert!(frames[0].3.starts_with("after it had waited"), "{}", frames[0].3);
    let known = format!("from {}: known connection, original direction", POD_51_1.port);
    assert!(frames.iter().any(|frame| frame.3.starts_with(&known)), "{frames:?}");
    let log = site.log();
    let traced: Vec<&str> = log.lines().filter(|line| line.contains("pollux::trace")).collect();
    assert!(!traced.is_empty() && frames.iter().filter(|frame| frame.1).count() == traced.len(), "{log}");
    let first = format!("{} in  74 bytes tcp {}:{MYAPP_PORT} > ", POD_51_7.port, POD_51_7.address);
    assert!(traced[0].contains(&first), "{}", traced[0]);
    Ok(())
}
