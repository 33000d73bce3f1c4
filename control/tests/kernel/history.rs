//! The mirror under a long random history of changes, against fresh dumps of the kernel's tables.

use std::io::Write;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use pollux_control::kernel::mirror::Mirror;
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::find_program;

use crate::mirror::expect_equals_a_dump;
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(rt_05_a_long_random_history_ends_where_a_dump_ends_ipv4),
        trial!(rt_05_a_long_random_history_ends_where_a_dump_ends_ipv6),
    ]
}

fn rt_05_a_long_random_history_ends_where_a_dump_ends_ipv4() {
    random_history(
        "chaos4",
        &["10.5.0.0/16", "10.5.0.0/24", "10.6.0.0/16"],
        &["10.0.0.2", "10.0.0.3", "10.0.1.2"],
        ["10.0.0.1/24", "10.0.1.1/24"],
    );
}

fn rt_05_a_long_random_history_ends_where_a_dump_ends_ipv6() {
    random_history(
        "chaos6",
        &["fd05::/16", "fd05::/24", "fd06::/16"],
        &["fd00::2", "fd00::3", "fd01::2"],
        ["fd00::1/64", "fd01::1/64"],
    );
}

/// Makes random changes, and compares the mirror with a fresh dump after each twenty of them.
fn random_history(name: &str, prefixes: &[&str], gateways: &[&str], own: [&str; 2]) {
    let netns = Netns::add(name).unwrap();
    netns
        .ip(&format!(
            "link add e0 type bridge
             link add e1 type bridge
             link set e0 up
             link set e1 up
             address add {} dev e0 {nodad}
             address add {} dev e1 {nodad}",
            own[0],
            own[1],
            nodad = if own[0].contains(':') { "nodad" } else { "" },
        ))
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    let mut seed = 0x5eed_u64;
    let mut choose = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let mut history: Vec<String> = Vec::new();
    for _ in 0..60 {
        let mut batch = Vec::new();
        for _ in 0..20 {
            let prefix = prefixes[choose(prefixes.len())];
            let target = match choose(6) {
                0 => "dev e0".to_owned(),
                1 => format!(
                    "nexthop via {} nexthop via {} weight 2",
                    gateways[choose(gateways.len())],
                    gateways[choose(gateways.len())]
                ),
                2 => "dev e1".to_owned(),
                _ => format!("via {}", gateways[choose(gateways.len())]),
            };
            // With one metric for both, an IPv6 dump hides the ones behind the others.
            let (by_gateway, other) = ([100, 200][choose(2)], [300, 400][choose(2)]);
            let metric = if target.contains("via") { by_gateway } else { other };
            batch.push(match choose(60) {
                0 => "link set e1 down".to_owned(),
                1 | 2 => "link set e1 up".to_owned(),
                3 => format!("address del {} dev e1", own[1]),
                4 | 5 => format!("address add {} dev e1", own[1]),
                6..=15 => format!("route del {prefix} metric {metric}"),
                16..=18 => format!("route del {prefix}"),
                19..=25 => format!("route del {prefix} metric {metric} {target}"),
                26..=33 => format!("route replace {prefix} metric {metric} {target}"),
                34..=37 => format!("route prepend {prefix} metric {metric} {target}"),
                38..=48 => format!("route append {prefix} metric {metric} {target}"),
                49..=51 => format!("route replace blackhole {prefix} metric {other}"),
                _ => format!("route add {prefix} metric {metric} {target}"),
            });
        }
        force(&netns, &batch);
        history.extend(batch);
        expect_equals_a_dump(&mirror, &netns, || history.join("\n"));
    }
}

/// Runs the lines, also those after one that fails: a random change is often refused.
fn force(netns: &Netns, lines: &[String]) {
    let mut command = Command::new(find_program("ip").unwrap());
    command.args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut child = netns.spawn(&mut command).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines.join("\n").as_bytes()).unwrap();
    stdin.write_all(b"\n").unwrap();
    drop(stdin);
    child.wait().unwrap();
}
