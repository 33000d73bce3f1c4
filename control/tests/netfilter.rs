//! The kernel's iptables as the judge of the model: what is printed it takes and keeps as it was meant, what
//! it makes of every spelling is what the parser makes of it, and rules count the packets that they count when
//! the evaluator walks them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::iptables::evaluate::steps::{Step, Steps};
use pollux_control::iptables::evaluate::{Connection, Packet, Place, View, World, evaluate};
use pollux_control::iptables::parse::parse;
use pollux_control::iptables::{ChainId, Policy, Recent, Ruleset, Side, Test};
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::{Sandbox, find_program};
use pollux_dataplane::packet::{Family, Protocol, V4, V6};

fn main() -> ExitCode {
    // Before anything starts a thread.
    let _sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the test needs a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let trials = vec![
        trial("the_kernel_keeps_what_is_printed_of_the_corpus", |netns| {
            keeps_dumps(netns, "tests/corpus", 122)
        }),
        trial("the_kernel_keeps_what_is_printed_of_the_cases", |netns| {
            keeps_dumps(netns, "tests/cases", 130)
        }),
        trial("iptables_reads_every_spelling_alike", |netns| reads_alike::<V4>(netns, SPELLINGS_V4)),
        trial("ip6tables_reads_every_spelling_alike", |netns| reads_alike::<V6>(netns, SPELLINGS_V6)),
        trial("iptables_refuses_what_is_refused", refuses),
        trial("the_evaluator_counts_as_the_kernel_does", counts_alike),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Outcome = Result<(), Box<dyn Error>>;

fn trial(name: &'static str, test: fn(&Netns) -> Outcome) -> Trial {
    Trial::test(name, move || {
        let run = || -> Outcome {
            let netns = Netns::add(name)?;
            test(&netns)?;
            Ok(netns.delete()?)
        };
        run().map_err(|error| Failed::from(error.to_string()))
    })
}

/// Gives rules to iptables-restore of the family.
fn restore<A: Family>(netns: &Netns, rules: &str) -> Outcome {
    let program = if A::VERSION == 4 { "iptables-restore" } else { "ip6tables-restore" };
    let mut command = Command::new(find_program(program)?);
    command.args(["--wait", "5"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = netns.spawn(&mut command)?;
    // A broken pipe means that it has given up; its own message says why.
    let _ = child.stdin.take().expect("it is piped").write_all(rules.as_bytes());
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}\n{rules}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// What the kernel holds.
fn saved<A: Family>(netns: &Netns) -> Result<Ruleset<A>, Box<dyn Error>> {
    let program = if A::VERSION == 4 { "iptables-save" } else { "ip6tables-save" };
    let text = netns.output(&mut Command::new(find_program(program)?))?;
    Ok(parse(None, &text)?)
}

/// The tables and chains that say something, by name, for neither has an order that matters.
fn content<A: Family>(rules: &Ruleset<A>, of: &Ruleset<A>) -> BTreeMap<(&'static str, String), Vec<String>> {
    let mut content = BTreeMap::new();
    for table in rules.tables.iter().filter(|table| of.table(table.name).is_some()) {
        for (at, chain) in table.chains.iter().enumerate() {
            let shown = |rule| table.show(ChainId(at as u32), rule).to_string();
            let mut lines: Vec<_> = chain.rules.iter().map(shown).collect();
            match chain.policy {
                Some(Policy::Accept) if lines.is_empty() => continue,
                policy => lines.insert(0, format!("{policy:?}")),
            }
            content.insert((table.name.name(), chain.name.clone()), lines);
        }
    }
    content
}

/// Loads `text` and compares what the kernel then holds with `rules`.
fn compare<A: Family>(netns: &Netns, text: &str, rules: &Ruleset<A>, name: &str) -> Outcome {
    restore::<A>(netns, text).map_err(|error| format!("{name}: {error}"))?;
    let kept = saved::<A>(netns).map_err(|error| format!("{name}: {error}"))?;
    let (expected, kept) = (content(rules, rules), content(&kept, rules));
    if expected == kept {
        return Ok(());
    }
    let mut differences = Vec::new();
    for (chain, lines) in &expected {
        let other = kept.get(chain).cloned().unwrap_or_default();
        for at in 0..lines.len().max(other.len()) {
            if lines.get(at) != other.get(at) {
                differences.push(format!("{chain:?}: {:?} became {:?}", lines.get(at), other.get(at)));
            }
        }
    }
    differences.truncate(10);
    Err(format!("{name}: {}", differences.join("\n")).into())
}

fn dumps(folder: &str) -> Vec<PathBuf> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if name.contains("tables-save") && name.ends_with(".txt") {
            found.push(path);
        }
    }
    found
}

fn keeps_dumps(netns: &Netns, folder: &str, count: usize) -> Outcome {
    let dumps = dumps(folder);
    assert_eq!(dumps.len(), count);
    for path in dumps {
        let text = fs::read_to_string(&path)?;
        let case = fs::read_to_string(path.with_file_name("case.json")).unwrap_or_default();
        let name = path.display().to_string();
        match text.contains("ip6tables-save") || case.contains("\"ipFamily\": \"IPv6\"") {
            true => keeps::<V6>(netns, &text, &name)?,
            false => keeps::<V4>(netns, &text, &name)?,
        }
    }
    Ok(())
}

fn keeps<A: Family>(netns: &Netns, text: &str, name: &str) -> Outcome {
    let mut rules = parse::<A>(None, text)?;
    // The counters that these name would have to be there.
    for rule in rules.tables.iter_mut().flat_map(|table| &mut table.chains).flat_map(|chain| &mut chain.rules)
    {
        rule.matches.retain(|it| !matches!(it.test, Test::Nfacct(_)));
    }
    compare(netns, &rules.to_string(), &rules, name)
}

/// A table, a chain, and rules in it.
type Spellings = &'static [(&'static str, &'static str, &'static [&'static str])];

const SPELLINGS_V4: Spellings = &[
    (
        "filter",
        "A",
        &[
            "-s 10.1.2.3/16 -d 10.0.0.0/255.128.0.0",
            "! -s 10.1.2.3 -i eth+ ! -o lo",
            "-s 10.0.0.1,10.0.0.2 -d 10.1.0.0/16,10.2.0.0/16 -j DROP",
            "-p all",
            "-p 143",
            "-p 200",
            "! -p udp",
            "-p esp",
            "-p ipv6-nonxt",
            "-m comment --comment unquoted",
            r#"-m comment --comment "a \"b\" \\ c \'d\'" -j RETURN"#,
            "-m tcp -p tcp -d 10.0.0.1 --dport 80",
            "-p tcp ! --sport 7: --dport :9",
            "-p udp -m udp --sport 1:2 ! --dport 80",
            "-p sctp --dport 80",
            "-p tcp --syn",
            "-p tcp ! --syn",
            "-p tcp --tcp-flags ALL NONE",
            "-p tcp --tcp-flags SYN,ACK,PSH SYN",
            "-p tcp -m multiport --dports 80,90:95",
            "-p udplite -m multiport ! --sports 80",
            "-p tcp -m multiport --ports 7,8 -m multiport --sports 7",
            "-p icmp --icmp-type echo-request",
            "-p icmp ! --icmp-type port-unreachable",
            "-p icmp --icmp-type 3/4",
            "-p icmp --icmp-type any",
            "-p icmp --icmp-type TOS-host-redirect",
            "-p icmp --icmp-type timestamp-reply",
            "-p icmp --icmp-type parameter-problem",
            "-m addrtype --dst-type LOCAL",
            "-m addrtype ! --src-type UNICAST,BLACKHOLE --dst-type BROADCAST",
            "-m addrtype --dst-type LOCAL --limit-iface-in",
            "-m mark ! --mark 0x4000/0x4000",
            "-m mark --mark 010",
            "-m connmark --mark 1/3",
            "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT",
            "-m conntrack --ctstate NEW,INVALID,UNTRACKED,SNAT --ctorigdst 10.0.0.0/8 ! --ctorigdstport 80:90",
            "-m state --state NEW,RELATED",
            "-m statistic --mode random --probability 0.33333333349",
            "-m statistic --mode random --probability 0.3333333333",
            "-m statistic --mode random ! --probability 0.14285714272",
            "-m statistic --mode nth --every 3 --packet 1",
            "-m recent --set",
            "-m recent ! --set --rdest --name A",
            "-m recent --rcheck --seconds 10800 --reap --name B --mask 255.255.255.255 --rsource",
            "-m recent --update --hitcount 3 --mask 255.255.255.0 --name C",
            "-m recent --remove --name D",
            "-m physdev ! --physdev-is-in",
            "-m physdev --physdev-in tap+ ! --physdev-out tap0 --physdev-is-bridged",
            "-m limit",
            "-m limit --limit 10/sec --limit-burst 7 -j LOG --log-prefix \"a b: \" --log-level 4 --log-uid",
            "-j LOG --log-level warning --log-tcp-options",
            "-g B",
            "-j REJECT",
            "-j REJECT --reject-with net-unreach",
            "-j REJECT --reject-with icmp-host-unreachable",
            "-j REJECT --reject-with icmp-proto-unreachable",
            "-j REJECT --reject-with icmp-net-prohibited",
            "-j REJECT --reject-with icmp-host-prohibited",
            "-j REJECT --reject-with admin-prohib",
            "-p tcp -j REJECT --reject-with tcp-reset",
        ],
    ),
    (
        "mangle",
        "A",
        &[
            "-j MARK --set-xmark 0x4000/0x0",
            "-j MARK --set-mark 0x3/0x5",
            "-j MARK --set-mark 3",
            "-j MARK --or-mark 0x4000",
            "-j MARK --and-mark 0xff",
            "-j MARK --xor-mark 0x4000",
            "-j CONNMARK --set-mark 1/2",
            "-j CONNMARK --set-xmark 1/2",
            "-j CONNMARK --or-mark 8",
            "-j CONNMARK --and-mark 8",
            "-j CONNMARK --xor-mark 8",
            "-j CONNMARK --save-mark",
            "-j CONNMARK --save-mark --mask 0xf0",
            "-j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 1",
        ],
    ),
    (
        "nat",
        "PREROUTING",
        &[
            "-j DNAT --to-destination 10.0.0.1",
            "-p tcp -j DNAT --to-destination 10.0.0.1:80",
            "-p udp -j DNAT --to-destination :80-90",
            "-p tcp -j DNAT --to-destination 10.0.0.1-10.0.0.9:80 --random --persistent",
        ],
    ),
    (
        "nat",
        "POSTROUTING",
        &[
            "-o eth0 -j SNAT --to-source 10.0.0.1 --random-fully",
            "-p tcp -j SNAT --to-source 10.0.0.1-10.0.0.9:1000-2000",
            "-j MASQUERADE",
            "-j MASQUERADE --random-fully",
            "-p udp -j MASQUERADE --to-ports 1000-2000 --random",
        ],
    ),
];

const SPELLINGS_V6: Spellings = &[
    (
        "filter",
        "A",
        &[
            "-s fd00::/ffff:ffff:: ! -d ::1",
            "-p ipv6-icmp -m icmp6 --icmpv6-type echo-request",
            "-p icmpv6 --icmpv6-type port-unreachable",
            "-p icmpv6 ! --icmpv6-type neighbour-advertisement",
            "-p icmpv6 --icmpv6-type 1/6",
            "-p icmpv6 --icmpv6-type 130",
            "-m addrtype --dst-type LOCAL",
            "-m conntrack --ctorigdst fd00::/8",
            "-m recent --set --name six --mask ffff:ffff:ffff:ffff::",
            "-j REJECT",
            "-j REJECT --reject-with icmp6-no-route",
            "-j REJECT --reject-with icmp6-adm-prohibited",
            "-j REJECT --reject-with addr-unreach",
            "-j REJECT --reject-with icmp6-policy-fail",
            "-j REJECT --reject-with icmp6-reject-route",
            "-p tcp -j REJECT --reject-with tcp-reset",
        ],
    ),
    (
        "nat",
        "PREROUTING",
        &[
            "-j DNAT --to-destination fd00::1",
            "-p tcp -j DNAT --to-destination [fd00::1]:80",
            "-p tcp -j DNAT --to-destination [fd00::1-fd00::9]:80-90",
        ],
    ),
];

fn reads_alike<A: Family>(netns: &Netns, spellings: Spellings) -> Outcome {
    for (table, chain, rules) in spellings {
        for rule in *rules {
            let declared = if *chain == "A" { ":A - [0:0]\n:B - [0:0]\n" } else { "" };
            let text = format!("*{table}\n{declared}-A {chain} {rule}\nCOMMIT\n");
            let parsed = parse::<A>(None, &text).map_err(|problems| format!("{rule}: {problems}"))?;
            compare(netns, &text, &parsed, rule)?;
            // And the same from what is printed.
            compare(netns, &parsed.to_string(), &parsed, rule)?;
        }
    }
    Ok(())
}

/// Mistakes that are refused here because iptables or the kernel refuses them.
const REFUSED: &[(&str, &str)] = &[
    ("filter", "-A A --dport 80"),
    ("filter", "-A A -m tcp --dport 80"),
    ("filter", "-A A -p udp -m tcp --dport 80"),
    ("filter", "-A A ! -p all"),
    ("filter", "-A A -p icmp -m multiport --dports 80"),
    ("filter", "-A A -p tcp --dport 9:8"),
    ("filter", "-A A -j REJECT --reject-with icmp6-no-route"),
    ("filter", "-A A -j REJECT --reject-with tcp-reset"),
    ("filter", "-A A -j NOWHERE"),
    ("filter", "-A A -j INPUT"),
    ("filter", "-A A -g DROP"),
    ("filter", "-A INPUT -j A\n-A A -j B\n-A B -j A"),
    ("filter", "-A A -j DNAT --to-destination 10.0.0.1"),
    ("filter", "-A INPUT -o eth0"),
    ("filter", "-A OUTPUT -i eth0"),
    ("filter", "-A A -s fd00::1"),
    ("filter", "-A A -m recent --name A"),
    ("filter", "-A A -m recent --rcheck --reap"),
    ("filter", "-A A -m statistic --mode nth --every 3 --packet 3"),
    ("filter", "-A A -m addrtype --limit-iface-in --limit-iface-out --dst-type LOCAL"),
    ("filter", "-A INPUT -m addrtype --dst-type LOCAL --limit-iface-out"),
    ("filter", "! -s 10.0.0.1,10.0.0.2"),
    ("mangle", "-A A -j REJECT"),
    ("nat", "-A POSTROUTING -j DNAT --to-destination 10.0.0.1"),
    ("nat", "-A PREROUTING -j MASQUERADE"),
    ("nat", "-A PREROUTING -j A\n-A A -j MASQUERADE"),
    ("nat", "-A PREROUTING -j DNAT --to-destination 10.0.0.1:80"),
];

fn refuses(netns: &Netns) -> Outcome {
    for (table, rules) in REFUSED {
        let text = format!("*{table}\n:A - [0:0]\n:B - [0:0]\n{rules}\nCOMMIT\n");
        if restore::<V4>(netns, &text).is_ok() {
            return Err(format!("iptables takes: {rules}").into());
        }
        if parse::<V4>(None, &text).is_ok() {
            return Err(format!("the parser takes: {rules}").into());
        }
    }
    Ok(())
}

/// Rules on every hook: what conditions see there, and where walks go on.
const COUNTED: &str = "\
*raw
:IN - [0:0]
-A PREROUTING -p udp -j IN
-A IN -p udp -m conntrack --ctstate INVALID
-A IN -p udp -m conntrack --ctstate NEW
-A IN -i lo -p udp
-A OUTPUT -p udp -m conntrack --ctstate INVALID
-A OUTPUT -p udp -m conntrack --ctstate NEW
-A OUTPUT -p udp -m conntrack ! --ctorigdst 203.0.113.9
-A OUTPUT -p udp -m connmark ! --mark 0x1
COMMIT
*mangle
:POST - [0:0]
-A PREROUTING -p udp -m mark --mark 0x7
-A PREROUTING -p udp -m conntrack --ctstate NEW -m connmark ! --mark 0x9
-A INPUT -s 192.0.2.9/32 -p udp -m conntrack --ctstate SNAT
-A FORWARD -p udp -m conntrack ! --ctstate DNAT
-A FORWARD -p udp -j CONNMARK --set-xmark 0x9/0xffffffff
-A OUTPUT -p udp -j MARK --set-xmark 0x7/0xffffffff
-A POSTROUTING -p udp -j POST
-A POST -i eth1 -o eth0 -p udp -m connmark --mark 0x9
-A POST -i lo -p udp
-A POST ! -i eth+ -p udp
-A POST -d 127.0.0.1/32 -o lo -p udp
COMMIT
*nat
-A PREROUTING -d 10.150.0.2/32 -p udp -m udp --dport 9 -j DNAT --to-destination 198.51.100.7:99
-A PREROUTING -p udp
-A INPUT -p udp
-A OUTPUT -d 10.150.0.1/32 -p udp -j DNAT --to-destination 127.0.0.1
-A OUTPUT -p udp
-A POSTROUTING -o lo -p udp -j SNAT --to-source 192.0.2.9
-A POSTROUTING -o eth0 -p udp -m udp --dport 99 -j MASQUERADE
-A POSTROUTING -p udp
COMMIT
*filter
:A - [0:0]
:B - [0:0]
:C - [0:0]
-A INPUT -p udp -m addrtype --dst-type LOCAL
-A INPUT -p udp -j A
-A INPUT -p udp
-A FORWARD -i eth1 -o eth0 -p udp -m udp --sport 4000 --dport 99 -m conntrack --ctstate DNAT --ctorigdst 10.150.0.2 --ctorigdstport 9 -j ACCEPT
-A FORWARD -p udp
-A OUTPUT -o lo -p udp
-A OUTPUT -d 127.0.0.1/32 -o eth0 -p udp -m conntrack --ctstate DNAT
-A OUTPUT -p udp -m addrtype ! --src-type LOCAL
-A A -p udp -g B
-A A -p udp
-A B -p udp -j C
-A B -p udp -j RETURN
-A B -p udp
-A C -p udp -m multiport --dports 7,8:10
-A C -p udp -j RETURN
-A C -p udp
COMMIT
";

/// The node of [`counts_alike`].
struct Router;

impl World<V4> for Router {
    fn is_local(&self, address: Ipv4Addr) -> bool {
        address.is_loopback() || [ROUTER, TO_CLIENT].contains(&address)
    }

    fn out_interface(&self, destination: Ipv4Addr) -> &str {
        if destination == CLIENT { "eth1" } else { "eth0" }
    }

    fn masquerade(&self, _: &str, _: Ipv4Addr) -> Ipv4Addr {
        ROUTER
    }

    fn random(&mut self, _: Place, _: u32) -> bool {
        unreachable!("no rule asks")
    }

    fn nth(&mut self, _: Place, _: u32, _: u32) -> bool {
        unreachable!("no rule asks")
    }

    fn recent(&mut self, _: &Recent, _: Ipv4Addr) -> bool {
        unreachable!("no rule asks")
    }

    fn in_set(&mut self, _: &str, _: &[Side], _: &View<V4>) -> bool {
        unreachable!("no rule asks")
    }

    fn limit(&mut self, _: Place) -> bool {
        unreachable!("no rule asks")
    }
}

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TO_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn counts_alike(router: &Netns) -> Outcome {
    let client = Netns::add("the_evaluator_counts_client")?;
    router.ip("link set lo up
         link add eth0 type veth peer name peer0
         link add eth1 type veth peer name eth0 netns the_evaluator_counts_client
         addr add 192.0.2.1/24 dev eth0
         addr add 10.0.0.254/24 dev eth1
         link set eth0 up
         link set eth1 up
         link set peer0 up
         route add default via 192.0.2.254
         neigh add 192.0.2.254 lladdr 02:00:00:00:00:01 dev eth0")?;
    client.ip("addr add 10.0.0.1/24 dev eth0\nlink set eth0 up\nroute add default via 10.0.0.254")?;
    for (name, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/all/route_localnet", "1")]
    {
        router.set_sysctl(&format!("net/ipv4/{name}"), value)?;
    }
    let address = |text: &str| text.parse::<Ipv4Addr>();
    // By nothing but the destination it is decided which rules a packet meets.
    for to in ["10.150.0.1", "127.0.0.1", "192.0.2.1", "198.51.100.9"] {
        counts(router, router, ROUTER, None, address(to)?)?;
    }
    for to in ["10.150.0.2", "198.51.100.9", "192.0.2.1", "10.0.0.254"] {
        counts(router, &client, CLIENT, Some("eth1"), address(to)?)?;
    }
    Ok(client.delete()?)
}

/// Sends one datagram and compares the rules' counters with those that the evaluator walked.
fn counts(router: &Netns, sender: &Netns, from: Ipv4Addr, by: Option<&str>, to: Ipv4Addr) -> Outcome {
    restore::<V4>(router, COUNTED)?;
    sender.run(|| UdpSocket::bind((from, 4000))?.send_to(b"once", (to, 9)))??;
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let text = router.output(Command::new(find_program("iptables-save")?).arg("-c"))?;
        let rules = parse::<V4>(None, &text)?;
        let packet = Packet {
            source: from,
            destination: to,
            protocol: Protocol::UDP,
            source_port: 4000,
            destination_port: 9,
            tcp_flags: 0,
            icmp: (0, 0),
            in_interface: by,
            mark: 0,
            connection: Connection::first(to, 9),
        };
        let mut steps = Steps::default();
        evaluate(&rules, &packet, &mut Router, &mut steps);
        let mut walked = BTreeMap::new();
        for step in &steps.0 {
            if let Step::Rule(place) = step {
                *walked.entry(place.line).or_insert(0u64) += 1;
            }
        }
        let mut differences = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let Some((counter, _)) = line.strip_prefix('[').and_then(|line| line.split_once(':')) else {
                continue;
            };
            let expected = walked.get(&number).copied().unwrap_or(0);
            if counter.parse::<u64>()? != expected {
                differences.push(format!("{line}, where the evaluator counts {expected}"));
            }
        }
        if differences.is_empty() {
            assert!(!walked.is_empty());
            return Ok(());
        }
        // The packet may still be on its way.
        if Instant::now() > until {
            return Err(format!("from {from} to {to}:\n{}", differences.join("\n")).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
