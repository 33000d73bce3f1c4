//! Transfers: HTTP, TLS, DNS, bulk.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::servers::{CONTENT, NAME, SERVERS, TEXT};
use super::site::{Addresses, At, CLIENT, NODE, Outcome, POD_A, POD_B, SOON, Site, To, Way, families, same};
use super::trial;

/// Connections that wrk makes in all.
const CONNECTIONS: u64 = 10_000;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("curl_gets_and_puts_through_nginx", curl),
        trial("dig_asks_dnsmasq_over_udp_and_tcp", dig),
        trial("iperf3_fills_the_pipe_every_way", iperf),
        trial("openssl_transfers_what_was_sent", tls),
        trial("wrk_makes_ten_thousand_connections", wrk),
    ]
}

/// Does `each` for all ways in both families.
fn everywhere(mut each: impl FnMut(Way, &Addresses) -> Outcome) -> Outcome {
    for family in &families() {
        for way in Way::ALL {
            each(way, family).map_err(|error| format!("{way:?} over {}: {error}", family.name))?;
        }
    }
    Ok(())
}

fn curl(site: &mut Site) -> Outcome {
    for node in SERVERS {
        site.serve_http(node)?;
    }
    let content = Sha256::digest(fs::read(site.path("content"))?);
    let file = site.path("content").display().to_string();
    everywhere(|way, family| {
        let http = way.at(family, At::Http);
        let https = way.at(family, At::Https);
        // -f: an answer of 400 or more is a failure.
        let got = site.output(way.from(), "curl", &["-gsSfk", &format!("http://{http}/content")])?;
        same("content", Sha256::digest(&got.stdout), content)?;
        let put = format!("https://{https}/upload/{}/{}", machine(way), family.name);
        let put = site.output(way.from(), "curl", &["-gsSfk", "-T", &file, &put, "-w", "%{http_code}"])?;
        if !["201", "204"].contains(&put.text().as_str()) {
            return Err(format!("PUT: {}", put.text()).into());
        }
        let uploaded = fs::read(site.path(format!("www/upload/{}/{}", machine(way), family.name)))?;
        same("upload", Sha256::digest(uploaded), content)?;
        // Several requests over one connection.
        let url = format!("http://{http}/small");
        let many =
            site.output(way.from(), "curl", &["-gsSf", "-w", "%{num_connects}\n", &url, &url, &url])?;
        same("connections", many.text(), "small\n1\nsmall\n0\nsmall\n0\n".to_owned())
    })?;
    site.check(&[])
}

/// The machine at the far end of a way.
fn machine(way: Way) -> &'static str {
    match way {
        Way::ClusterIp(_, to) | Way::NodePort(_, to) => to.machine(),
    }
}

fn dig(site: &mut Site) -> Outcome {
    for node in SERVERS {
        site.serve_dns(node)?;
    }
    let text: String = format!("\"{}\" ", "x".repeat(TEXT.1)).repeat(4);
    everywhere(|way, family| {
        let at = way.at(family, At::Dns);
        let (server, port) = (format!("@{}", at.ip()), at.port().to_string());
        for transport in ["+notcp", "+tcp"] {
            for (name, kind, answer) in [(NAME.0, "A", NAME.1), (TEXT.0, "TXT", text.trim_end())] {
                let question = [&server, "-p", &port, "+short", "+tries=1", "+time=5", transport, name, kind];
                let got = site.output(way.from(), "dig", &question)?;
                same("answer", got.text().trim_end(), answer)?;
            }
        }
        Ok(())
    })?;
    site.check(&[])
}

fn iperf(site: &mut Site) -> Outcome {
    for node in SERVERS {
        site.serve_iperf(node)?;
    }
    let ways =
        [Way::ClusterIp(POD_A, To::Near), Way::NodePort(CLIENT, To::Near), Way::ClusterIp(NODE, To::Far)];
    for family in &families() {
        for way in ways {
            for (how, count) in
                [(&["-n", "50M"][..], 1), (&["-n", "50M", "-R"], 1), (&["-n", "50M", "-P", "8"], 8)]
            {
                let report = iperf3(site, way, family, how)?;
                let streams = report["end"]["streams"].as_array().map_or(&[][..], Vec::as_slice);
                let received: Vec<u64> =
                    streams.iter().filter_map(|stream| stream["receiver"]["bytes"].as_u64()).collect();
                // What is on its way when the sender stops is not waited for.
                if received.len() != count || received.iter().any(|&bytes| bytes < 100_000) {
                    return Err(format!("{way:?} {how:?}: bytes received {received:?}").into());
                }
            }
            for how in [&["-u", "-n", "2M", "-b", "20M"][..], &["-u", "-n", "2M", "-b", "20M", "-R"]] {
                let report = iperf3(site, way, family, how)?;
                let sum = &report["end"]["sum"];
                let (Some(lost), Some(packets)) = (sum["lost_packets"].as_u64(), sum["packets"].as_u64())
                else {
                    return Err(format!("{way:?} {how:?}: {report}").into());
                };
                // Sockets of a busy machine may overflow; Pollux' own drops are counted below.
                if packets < 1000 || lost > packets / 100 {
                    return Err(format!("{way:?} {how:?}: {lost} of {packets} datagrams lost").into());
                }
            }
        }
    }
    site.check(&[])
}

/// A run of iperf3's client; its report.
fn iperf3(site: &Site, way: Way, family: &Addresses, how: &[&str]) -> Outcome<Value> {
    let at = way.at(family, At::Iperf);
    let (address, port) = (at.ip().to_string(), at.port().to_string());
    let arguments: Vec<&str> =
        ["-c", &address, "-p", &port, "-J", "--connect-timeout", "5000"].iter().chain(how).copied().collect();
    let end = Instant::now() + SOON;
    loop {
        let ran = site.run(way.from(), "iperf3", &arguments)?;
        let report: Value = serde_json::from_slice(&ran.stdout)?;
        let error = report["error"].as_str().unwrap_or_default();
        if ran.success && error.is_empty() {
            return Ok(report);
        }
        // The server takes a moment to end the run before.
        if !error.contains("server is busy") || Instant::now() > end {
            return Err(format!("{way:?} over {}, {how:?}: {error}", family.name).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn tls(site: &mut Site) -> Outcome {
    for node in SERVERS {
        site.serve_tls(node)?;
    }
    let content = Sha256::digest(fs::read(site.path("content"))?);
    everywhere(|way, family| {
        let at = way.at(family, At::Tls).to_string();
        let arguments = ["s_client", "-quiet", "-connect", &at, "-servername", "pollux.test"];
        let got = site.run_with(way.from(), "openssl", &arguments, b"GET /content HTTP/1.0\r\n\r\n")?;
        if got.stdout.len() != CONTENT {
            return Err(format!("{} bytes: {}", got.stdout.len(), got.stderr).into());
        }
        same("content", Sha256::digest(&got.stdout), content)
    })?;
    site.check(&[])
}

fn wrk(site: &mut Site) -> Outcome {
    site.serve_http(POD_B)?;
    let mut requests = 0;
    let mut accepted = 0;
    for round in 0.. {
        for family in &families() {
            for way in [Way::ClusterIp(POD_A, To::Near), Way::NodePort(CLIENT, To::Near)] {
                let url = format!("http://{}/small", way.at(family, At::Http));
                // Keep-alive first; then a connection for each request, until there were enough.
                let kind = if round == 0 { "Connection: keep-alive" } else { "Connection: close" };
                let arguments = ["-t1", "-c200", "-d1s", "--timeout", "5s", "-H", kind, &url];
                let report = site.output(way.from(), "wrk", &arguments)?.text();
                let failed = |line: &str| line.contains("Socket errors") || line.contains("Non-2xx");
                if report.lines().any(failed) {
                    return Err(format!("{way:?} over {}, {kind}: {report}", family.name).into());
                }
                let done = report.lines().find_map(|line| line.trim().split_once(" requests in "));
                requests += done.and_then(|(count, _)| count.parse::<u64>().ok()).ok_or(report)?;
                accepted = accepted_by_nginx(site)?;
            }
        }
        if accepted >= CONNECTIONS {
            break;
        }
        if round == 10 {
            return Err(format!("{accepted} connections only").into());
        }
    }
    eprintln!("wrk: {requests} requests over {accepted} connections");
    site.check(&[])
}

/// Connections that nginx has accepted, by its own count, where each was handled.
fn accepted_by_nginx(site: &Site) -> Outcome<u64> {
    let url = format!("http://127.0.0.1:{}/status", At::Http.target());
    let status = site.output(POD_B, "curl", &["-sSf", &url])?.text();
    let numbers = status.lines().nth(2).unwrap_or_default();
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [accepted, handled, _] if accepted == handled => Ok(accepted),
        _ => Err(format!("nginx: {status}").into()),
    }
}
