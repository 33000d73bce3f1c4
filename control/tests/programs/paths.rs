//! What is said about paths: echoes of all sizes, hops, path MTUs.

use std::net::IpAddr;

use libtest_mimic::Trial;
use pollux_control::lab::traffic::{Service, TcpClient, TcpServer};
use pollux_dataplane::forward::ErrorRate;
use pollux_dataplane::stats::Reason;
use pollux_dataplane::worker::Worker;

use super::site::{
    Addresses, At, CLIENT, CORE, EDGE, NARROW, NODE, Outcome, POD_A, POD_B, SOON, Site, To, Way, families,
    same,
};
use super::trial;

/// Bytes of the transfers that have to find the path's MTU.
const BYTES: u64 = 2_000_000;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("nat_08_ping_of_every_size", ping),
        trial("fw_01_traceroute_shows_every_hop", traceroute),
        trial("nat_07_traceroute_to_a_service_ends_at_the_service", traceroute_to_a_service),
        trial("nat_07_transfers_find_the_mtu_behind_a_service", transfers_find_the_mtu),
        trial("nat_07_tracepath_finds_the_mtu", tracepath),
    ]
}

/// Bytes of data of the echo requests: one, either side of what fits a packet of each MTU, and many fragments.
const SIZES: [&str; 9] = ["1", "56", "1400", "1422", "1423", "1472", "1473", "4000", "8000"];

fn ping(site: &mut Site) -> Outcome {
    for family in &families() {
        for (from, to) in [
            (POD_A, family.pod_b),
            (POD_A, family.far),
            (CLIENT, family.pod_b),
            (CLIENT, family.node),
            (NODE, family.pod_b),
        ] {
            let to = to.to_string();
            // Over IPv6 the first packet that is too long for the way is refused, and the sender learns the MTU.
            site.run(from, "ping", &["-n", "-M", "dont", "-c1", "-W1", "-s", "1452", &to])?;
            for size in SIZES {
                let said =
                    site.run(from, "ping", &["-n", "-M", "dont", "-c2", "-i0.01", "-W2", "-s", size, &to])?;
                if !said.success || !said.text().contains("2 received, 0% packet loss") {
                    return Err(
                        format!("{from} to {to}, {size} bytes: {}{}", said.text(), said.stderr).into()
                    );
                }
            }
        }
    }
    site.check(&[Reason::TooBig])
}

/// Lets Pollux and the routers send as many ICMP errors as there is cause for: they would send one a second.
fn without_limit(site: &Site) -> Outcome {
    let unlimited = |worker: &mut Worker| worker.forwarder().set_error_rate(ErrorRate::Unlimited);
    site.agent.worker().ask(unlimited).map_err(|_| "the forwarder has stopped")?;
    for machine in [EDGE, CORE, POD_B, CLIENT, To::Deep.machine()] {
        for path in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
            site.node(machine).set_sysctl(path, "0")?;
        }
    }
    Ok(())
}

/// The hops that a run of traceroute shows, one probe each.
fn hops(site: &Site, from: &str, how: &[&str], to: IpAddr) -> Outcome<Vec<String>> {
    let to = to.to_string();
    let one = ["-n", "-q1", "-N1", "-w3", "-m8"];
    let arguments: Vec<&str> = one.iter().chain(how).copied().chain([to.as_str()]).collect();
    let said = site.output(from, "traceroute", &arguments)?.text();
    let hops = said.lines().skip(1).map(|line| {
        // ` 2  192.0.2.50  0.061 ms`, or ` 2  *`; what follows the time is a remark (`!N`).
        let words: Vec<&str> = line.split_whitespace().collect();
        let remark = words.get(4).map(|remark| format!(" {remark}")).unwrap_or_default();
        format!("{}{remark}", words.get(1).unwrap_or(&"?"))
    });
    Ok(hops.collect())
}

/// UDP, ICMP, TCP.
const PROBES: [&[&str]; 3] = [&[], &["-I"], &["-T", "-p", "9"]];

fn traceroute(site: &mut Site) -> Outcome {
    without_limit(site)?;
    for family in &families() {
        let Addresses { node, client, pod_a, pod_b, deep, edge, core, .. } = *family;
        let ways = [
            // Into the cluster and out of it; the node is Pollux.
            (CLIENT, vec![edge[1], node, pod_b]),
            (POD_A, vec![node, pod_b]),
            (POD_A, vec![node, edge[0], client]),
            (POD_A, vec![node, edge[0], core[0], deep]),
            (NODE, vec![pod_a]),
            (CLIENT, vec![edge[1], node]),
            (POD_A, vec![node]),
        ];
        for (from, wanted) in ways {
            let to = *wanted.last().ok_or("no hop")?;
            let wanted: Vec<String> = wanted.iter().map(IpAddr::to_string).collect();
            for how in PROBES {
                same(&format!("{from} to {to}, {how:?}"), &hops(site, from, how, to)?, &wanted)?;
            }
        }
    }
    site.check(&[Reason::TtlExceeded])
}

fn traceroute_to_a_service(site: &mut Site) -> Outcome {
    without_limit(site)?;
    for family in &families() {
        let port = At::Closed.port().to_string();
        let edge = family.edge[1];
        let (near, deep) = (To::Near.cluster_ip(family), To::Deep.cluster_ip(family));
        for (from, wanted) in [
            // What the node and the routers behind it say of translated packets comes from the Service's address,
            // as it does on Linux.
            (CLIENT, vec![edge, near, near]),
            (POD_A, vec![near, near]),
            (POD_A, vec![deep, deep, deep, deep]),
        ] {
            let to = *wanted.last().ok_or("no hop")?;
            let wanted: Vec<String> = wanted.iter().map(IpAddr::to_string).collect();
            // -U: a fixed port, which is the Service's; nobody listens there, so the backend refuses.
            for how in [&["-T", "-p", &port][..], &["-U", "-p", &port]] {
                same(&format!("{from} to {to}, {how:?}"), &hops(site, from, how, to)?, &wanted)?;
            }
        }
    }
    site.check(&[Reason::TtlExceeded])
}

fn transfers_find_the_mtu(site: &mut Site) -> Outcome {
    let _servers = families()
        .iter()
        .map(|family| {
            let at = std::net::SocketAddr::new(family.deep, At::Data.target());
            TcpServer::start(site.node(To::Deep.machine()), at, Service::Sink)
        })
        .collect::<Result<Vec<_>, _>>()?;
    for family in &families() {
        // Translated, masqueraded as well, and from the node itself.
        for way in [
            Way::ClusterIp(POD_A, To::Deep),
            Way::NodePort(POD_A, To::Deep),
            Way::NodePort(CLIENT, To::Deep),
            Way::ClusterIp(NODE, To::Deep),
        ] {
            let at = way.at(family, At::Data);
            let failed = |error: std::io::Error| format!("{way:?} over {}: {error}", family.name);
            let mut client = TcpClient::connect(site.node(way.from()), None, at, SOON).map_err(failed)?;
            client.transfer(BYTES, 7, SOON).map_err(failed)?;
            // The sender has learnt it by an error: its kernel remembers the MTU of the way to the Service.
            let route = site.output(way.from(), "ip", &["route", "get", &at.ip().to_string()])?.text();
            if !route.contains(&format!("mtu {NARROW}")) {
                return Err(format!("{way:?} over {}: {route}", family.name).into());
            }
        }
    }
    site.check(&[])
}

fn tracepath(site: &mut Site) -> Outcome {
    without_limit(site)?;
    for family in &families() {
        for (from, hops) in [(POD_A, 4), (CLIENT, 3), (NODE, 3)] {
            let said = site.output(from, "tracepath", &["-n", "-m8", &family.deep.to_string()])?.text();
            let result = said.lines().last().unwrap_or_default();
            let wanted = format!("pmtu {NARROW} hops {hops} ");
            if !result.contains(&wanted) {
                return Err(format!("{from} to {}: {said}", family.deep).into());
            }
        }
    }
    site.check(&[Reason::TtlExceeded, Reason::TooBig])
}
