//! `pollux conntrack` on slave1: what it lists is what conntrack(8) lists when the node's kernel forwards the same
//! traffic, line by line; and the rest of the command.

use std::io::Read;
use std::net::UdpSocket;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pollux_control::agent::protocol::FlowItem;
use pollux_control::agent::protocol::{Filter, Resource};
use pollux_control::lab::seed::{MYAPP, MYAPP_PORT, POD_51_1, POD_51_2, POD_51_7, POD_51_8, SLAVE1};
use pollux_control::lab::traffic::{Echo, TcpClient, UdpServer, ping, udp_echo};
use serde_json::Value;

use super::site::{OTHER, Outcome, SOON, Site, at, wait};
use super::{signal, with_dns};

type Text = Result<String, Box<dyn std::error::Error>>;

/// Runs `pollux conntrack`.
fn conntrack(site: &Site, arguments: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    let mut command = site.pollux(&["conntrack"]);
    command.args(arguments).arg("--admin").arg(site.path("admin.sock"));
    Ok(command.output()?)
}

/// What it prints; it must succeed.
fn printed(site: &Site, arguments: &[&str]) -> Text {
    let output = conntrack(site, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn kernel(site: &Site, command: &str) -> Text {
    let mut words = command.split(' ');
    Ok(site.slave1().output(Command::new(words.next().ok_or("no command")?).args(words))?)
}

/// The kinds of connections that pod-51-1 can make; those of TCP and UDP from ports above `port`.
fn traffic(site: &Site, port: u16) -> Result<Vec<TcpClient>, Box<dyn std::error::Error>> {
    let pod = site.network.node(POD_51_1.name);
    let from = |place: u16| Some(at(POD_51_1.address, port + place));
    let mut open = TcpClient::connect(pod, from(1), at(MYAPP, MYAPP_PORT), SOON)?;
    open.echo(b"established", SOON)?;
    let closed = TcpClient::connect(pod, from(2), at(POD_51_8.address, MYAPP_PORT), SOON)?;
    closed.close(SOON)?;
    assert!(udp_echo(pod, from(3), at(OTHER, 53), b"answered", SOON)?.is_some());
    // To nobody: neither a port nor a machine is there, so no answer comes.
    let _ = udp_echo(pod, from(4), at(POD_51_2.address, 9), b"unanswered", Duration::from_millis(50));
    let echo = Echo { to: POD_51_8.address, identifier: port, sequence: 1, data_len: 8 };
    assert!(ping(pod, echo, SOON)?.is_some());
    Ok(vec![open])
}

/// pod-51-1's lines, without what is free: the time that is left, how often an entry is in use, and the number
/// that stands for the ports.
fn lines(listing: &str, port: u16) -> Vec<String> {
    let line = |line: &str| {
        let words = line.split_whitespace().enumerate().map(|(place, word)| {
            // `ipv4 2 tcp 6 431999 ...`
            if place == 4 && word.parse::<u32>().is_ok() {
                return "SECONDS".to_owned();
            }
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match (name, value.parse::<u16>()) {
                ("sport" | "dport" | "id", Ok(number)) if (port..port + 9).contains(&number) => {
                    format!("{name}=+{}", number - port)
                }
                ("use", _) => "use=N".to_owned(),
                // TCP joins acknowledgements and data as it comes.
                ("packets" | "bytes", _) if line.contains(" tcp ") => format!("{name}=N"),
                _ => word.to_owned(),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let source = format!("src={} ", POD_51_1.address);
    let ours = listing
        .lines()
        .filter(|line| line.find("src=").is_some_and(|place| line[place..].starts_with(&source)));
    let mut lines: Vec<_> = ours.map(line).collect();
    lines.sort();
    lines
}

/// CT-11: the same traffic, once through the node's kernel and once through Pollux.
pub(super) fn listing_is_that_of_conntrack(site: &Site) -> Outcome {
    let objects = with_dns(&[POD_51_8], &[(POD_51_7, false)]);
    site.write_file("objects/objects.json", &objects.to_string())?;
    let mut node: Value = serde_json::from_str(&super::node("kernel", "kernel"))?;
    node["sysctl"] = serde_json::json!({"nf_conntrack_acct": 1});
    site.write_file("node.yaml", &node.to_string())?;
    let _servers = site.serve(&[POD_51_8])?;
    let _dns = UdpServer::start(site.network.node(POD_51_7.name), at(POD_51_7.address, 53))?;

    let rules = [
        format!("PREROUTING -d {MYAPP} -p tcp --dport {MYAPP_PORT} -j DNAT --to {}:80", POD_51_8.address),
        format!("PREROUTING -d {OTHER} -p udp --dport 53 -j DNAT --to {}:53", POD_51_7.address),
    ];
    site.slave1().set_sysctl("net/netfilter/nf_conntrack_acct", "1")?;
    for rule in &rules {
        kernel(site, &format!("iptables -t nat -A {rule}"))?;
    }
    let open = traffic(site, 5000)?;
    let theirs = lines(&kernel(site, "conntrack -L -f ipv4 -o extended")?, 5000);
    drop(open);
    for rule in &rules {
        kernel(site, &format!("iptables -t nat -D {rule}"))?;
    }

    let running = site.start()?;
    let open = traffic(site, 6000)?;
    let ours = lines(&printed(site, &["list", "-o", "extended"])?, 6000);
    assert_eq!(theirs.len(), 5, "{theirs:#?}");
    assert_eq!(ours, theirs);
    drop(open);
    running.stop();
    Ok(())
}

pub(super) fn the_whole_command(site: &Site) -> Outcome {
    let objects = with_dns(&[POD_51_8], &[(POD_51_7, false)]);
    site.write_file("objects/objects.json", &objects.to_string())?;
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_8])?;
    let _dns = UdpServer::start(site.network.node(POD_51_7.name), at(POD_51_7.address, 53))?;
    let _open = traffic(site, 6000)?;
    let _masqueraded = site.connect(SLAVE1)?;

    // Filters.
    let source = POD_51_1.address.to_string();
    let of_pod =
        |more: &[&'static str]| -> Text { printed(site, &[&["list", "-s", &source][..], more].concat()) };
    assert_eq!(of_pod(&[])?.lines().count(), 5);
    assert_eq!(of_pod(&["-p", "tcp"])?.lines().count(), 2);
    assert_eq!(of_pod(&["-p", "17", "--dport", "53"])?.lines().count(), 1);
    assert_eq!(of_pod(&["--state", "established"])?.lines().count(), 1);
    assert_eq!(of_pod(&["-u", "ASSURED"])?.lines().count(), 2);
    assert_eq!(of_pod(&["-u", "UNSET"])?.lines().count(), 1);
    assert_eq!(of_pod(&["--dst-nat"])?.lines().count(), 2);
    assert_eq!(of_pod(&["-g", "10.151.51.7"])?.lines().count(), 1);
    assert_eq!(of_pod(&["--src-nat"])?, "");
    let object: Value = serde_json::from_str(&of_pod(&["-p", "udp", "--dport", "53", "-o", "json"])?)?;
    assert_eq!(object["items"][0]["reply"]["source"], "10.151.51.7", "{object}");
    assert_eq!(object["items"][0]["timeout"], "nf_conntrack_udp_timeout");
    let table = of_pod(&["--format", "table", "-p", "icmp"])?;
    assert!(table.starts_with("PROTOCOL") && table.lines().count() == 2, "{table}");
    let numbered = of_pod(&["-p", "icmp", "-o", "extended,id"])?;
    assert!(numbered.starts_with("ipv4     2 icmp     1 ") && numbered.contains(" use=1 id="), "{numbered}");
    assert_eq!(printed(site, &["count", "-s", &source])?, "5\n");
    assert!(printed(site, &["count"])?.trim().parse::<u64>()? >= 6);
    for (arguments, words) in [
        (["list", "-s", "10.0.0.300"], "orig-src 10.0.0.300 is not an address or prefix"),
        (["list", "-p", "tpc"], "protocol tpc is not one of tcp, udp, sctp, icmp, icmpv6 or a number"),
        (["count", "--state", "OPEN"], "state OPEN is not one of TCP or SCTP"),
        (["delete", "-m", "x"], "mark x is not a mark (12, 0xc, 0x4000/0x4000)"),
        (["list", "-f", "ipv5"], "family ipv5 is not ipv4 or ipv6"),
    ] {
        let output = conntrack(site, &arguments)?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr)?, format!("pollux: {words}\n"));
    }
    let both = conntrack(site, &["list", "-s", "10.0.0.1", "-d", "fd00::1"])?;
    assert_eq!(both.status.code(), Some(2));

    // NAT-06: the node's own connection to the Service.
    let ports: Value = serde_json::from_str(&printed(site, &["stats", "--source-ports", "--json"])?)?;
    let pair = &ports["items"][0];
    assert_eq!((&pair["destination"], &pair["used"]), (&"10.151.51.8".into(), &1.into()), "{ports}");
    let stats = printed(site, &["stats"])?;
    assert!(stats.starts_with("cpu=0   \tinvalid=0 insert="), "{stats}");
    let stats: Value = serde_json::from_str(&printed(site, &["stats", "--json"])?)?;
    assert!(stats["workers"][0]["insert"].as_u64() >= Some(6), "{stats}");

    // Delete: what is deleted is listed; nothing left to delete is exit code 1.
    let deleted = printed(site, &["delete", "-p", "udp", "-s", &source])?;
    assert_eq!(deleted.lines().filter(|line| line.starts_with("udp ")).count(), 2, "{deleted}");
    assert_eq!(of_pod(&["-p", "udp"])?, "");
    let again = conntrack(site, &["delete", "-p", "udp", "-s", &source])?;
    assert_eq!((again.status.code(), again.stdout.as_slice()), (Some(1), &b""[..]));
    assert_eq!(String::from_utf8(again.stderr)?, "pollux: 0 flow entries have been deleted.\n");
    assert_eq!(of_pod(&["-p", "tcp"])?.lines().count(), 2, "the others stay");

    events(site)?;
    running.stop();
    let gone = conntrack(site, &["list"])?;
    assert_eq!(gone.status.code(), Some(4), "{gone:?}");
    Ok(())
}

/// Makes UDP flows and deletes them until the child has ended.
fn events(site: &Site) -> Outcome {
    let pod = site.network.node(POD_51_1.name);
    let spawn = |arguments: &[&str]| -> Result<std::process::Child, Box<dyn std::error::Error>> {
        let mut command = site.pollux(&["conntrack", "events"]);
        Ok(command.args(arguments).arg("--admin").arg(site.path("admin.sock")).spawn()?)
    };
    let mut child = spawn(&["-p", "udp", "-e", "NEW,DESTROY", "-o", "extended", "--count", "2"])?;
    let mut port = 7000;
    let status = wait(
        || {
            port += 1;
            let from = Some(at(POD_51_1.address, port));
            udp_echo(pod, from, at(OTHER, 53), b"event", SOON).ok()??;
            conntrack(site, &["delete", "-p", "udp"]).ok()?;
            child.try_wait().ok()?
        },
        "two events",
    )?;
    assert_eq!(status.code(), Some(0));
    let mut text = String::new();
    child.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in lines {
        let is_new = line.starts_with("    [NEW] ipv4     2 udp      17 30 src=10.151.51.1 dst=10.150.0.77 ");
        let is_end = line.starts_with("[DESTROY] ipv4     2 udp      17 ");
        assert!(is_new && line.contains("[UNREPLIED]") || is_end, "{line}");
    }

    let began = Instant::now();
    let mut quiet = spawn(&["-p", "sctp", "--timeout", "0.3", "--json"])?;
    assert_eq!(quiet.wait()?.code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(300));

    let endless = spawn(&[])?;
    std::thread::sleep(Duration::from_millis(300));
    signal(&endless, Signal::SIGINT)?;
    let output = endless.wait_with_output()?;
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(String::from_utf8(output.stderr)?.ends_with("flow events have been shown.\n"));
    Ok(())
}

/// CT-11: a full table is listed again and again while a connection carries data; nothing is lost.
pub(super) fn a_full_table_is_listed_while_forwarding(site: &Site) -> Outcome {
    let objects = with_dns(&[POD_51_8], &[(POD_51_7, false)]);
    site.write_file("objects/objects.json", &objects.to_string())?;
    let running = site.start()?;
    let _servers = site.serve(&[POD_51_8])?;
    let mut open = site.connect(POD_51_1.name)?;
    // slave1's table has room for 4096. What a port's ring does not take is sent again.
    let mut client = site.client()?;
    let fill = || -> std::io::Result<()> {
        for port in 10_000..14_200 {
            UdpSocket::bind(at(POD_51_1.address, port))?.send_to(b"one", at(OTHER, 53))?;
        }
        Ok(())
    };
    wait(
        || {
            site.network.node(POD_51_1.name).run(fill).ok()?.ok()?;
            let flows: Vec<FlowItem> = client.get(Resource::Flows, Filter::default()).ok()?;
            (flows.len() >= 4000).then_some(())
        },
        "a full table",
    )?;

    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| -> Outcome {
        let lister = scope.spawn(|| {
            (0..10).map(|_| printed(site, &["list"]).map(|text| text.lines().count()).unwrap_or(0)).min()
        });
        while !lister.is_finished() {
            let began = Instant::now();
            open.echo(b"while the table is listed", SOON)?;
            longest = longest.max(began.elapsed());
        }
        let fewest = lister.join().map_err(|_| "the listing panicked")?;
        assert!(fewest >= Some(4000), "{fewest:?} connections listed");
        Ok(())
    })?;
    assert!(longest < Duration::from_secs(1), "an echo took {longest:?}");
    running.stop();
    Ok(())
}
