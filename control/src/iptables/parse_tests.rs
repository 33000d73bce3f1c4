//! Every word that is known, in every spelling, and every error with its line.

use pollux_dataplane::packet::{Protocol, V4, V6};

use super::*;
use crate::iptables::{
    AddressTypes, ConnMark, Interface, InterfaceSide, MarkTest, Match, Nat, Physdev, RandomPorts, Recent,
    RecentAction, RejectWith, Rule, Side, States, Target, Test,
};

/// A file with one rule: nat's for those targets that stand there only, else filter's; `-A` is added.
fn file(rule: &str) -> String {
    let (table, base, chain) = match rule {
        _ if rule.contains("-j DNAT") => ("nat", "PREROUTING", "PREROUTING"),
        _ if rule.contains("-j SNAT") || rule.contains("-j MASQUERADE") => {
            ("nat", "POSTROUTING", "POSTROUTING")
        }
        _ => ("filter", "FORWARD", "X"),
    };
    format!("*{table}\n:{base} ACCEPT [0:0]\n:X - [0:0]\n:Y - [0:0]\n-A {chain} {rule}\nCOMMIT\n")
}

fn rules<A: Family>(rule: &str) -> Vec<Rule<A>> {
    let text = file(rule);
    let parsed = parse::<A>(None, &text).unwrap_or_else(|problems| panic!("{rule}: {problems}"));
    // Whatever is read is printed so that it is read again.
    let mut again = parse::<A>(None, &parsed.to_string()).unwrap_or_else(|e| panic!("{parsed}: {e}"));
    let mut first = parsed.clone();
    for ruleset in [&mut again, &mut first] {
        for chain in ruleset.tables.iter_mut().flat_map(|table| &mut table.chains) {
            chain.line = 0;
            chain.rules.iter_mut().for_each(|rule| rule.line = 0);
        }
    }
    assert_eq!(again, first, "{parsed}");
    parsed.tables.into_iter().flat_map(|table| table.chains).flat_map(|chain| chain.rules).collect()
}

fn rule<A: Family>(text: &str) -> Rule<A> {
    let mut rules = rules::<A>(text);
    assert_eq!(rules.len(), 1, "{text}");
    rules.remove(0)
}

fn tests4(text: &str) -> Vec<Match<V4>> {
    rule::<V4>(text).matches
}

fn yes<A: Family>(test: Test<A>) -> Match<A> {
    Match { negated: false, test }
}

fn no<A: Family>(test: Test<A>) -> Match<A> {
    Match { negated: true, test }
}

fn target(text: &str) -> Target<V4> {
    rule::<V4>(text).target
}

/// The error of a file with one rule, whose line is the fifth.
fn error<A: Family>(rule: &str) -> String {
    let problems = parse::<A>(None, &file(rule)).expect_err(rule).0;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, "line 5", "{problems:?}");
    problems[0].text.clone()
}

/// What is wrong with a file, a line each.
fn errors(text: &str) -> Vec<String> {
    parse::<V4>(None, text).expect_err(text).0.iter().map(ToString::to_string).collect()
}

fn name(text: &str) -> Interface {
    Interface { name: text.trim_end_matches('+').into(), prefix: text.ends_with('+') }
}

#[test]
fn addresses_interfaces_and_protocols() {
    let prefix = |text: &str| text.parse().unwrap();
    assert_eq!(tests4("-s 10.0.0.1"), [yes(Test::Source(prefix("10.0.0.1/32")))]);
    assert_eq!(tests4("! -s 10.1.2.3/16"), [no(Test::Source(prefix("10.1.0.0/16")))]);
    assert_eq!(tests4("-s ! 10.1.2.3/16"), [no(Test::Source(prefix("10.1.0.0/16")))]);
    assert_eq!(tests4("--dst 10.0.0.0/255.128.0.0"), [yes(Test::Destination(prefix("10.0.0.0/9")))]);
    assert_eq!(tests4("-d 0.0.0.0/0"), [yes(Test::Destination(prefix("0.0.0.0/0")))]);
    assert_eq!(
        tests4("-i cali+ ! -o eth0"),
        [yes(Test::InInterface(name("cali+"))), no(Test::OutInterface(name("eth0")))]
    );
    assert_eq!(tests4("-i +"), [yes(Test::InInterface(name("+")))]);
    for (name, number) in [
        ("tcp", 6),
        ("udp", 17),
        ("sctp", 132),
        ("icmp", 1),
        ("icmpv6", 58),
        ("ipv6-icmp", 58),
        ("ipv6-nonxt", 59),
        ("esp", 50),
        ("ah", 51),
        ("udplite", 136),
        ("dccp", 33),
        ("gre", 47),
        ("ethernet", 143),
        ("200", 200),
        ("0x11", 17),
    ] {
        let protocol = Protocol(number);
        assert_eq!(tests4(&format!("! -p {name}")), [no(Test::Protocol(protocol))], "{name}");
    }
    assert_eq!(tests4("-p all"), []);
    assert_eq!(tests4("-p 0"), []);
    let v6 = rule::<V6>("-s fd00::/ffff:ffff:: -d ::1").matches;
    assert_eq!(
        v6,
        [yes(Test::Source("fd00::/32".parse().unwrap())), yes(Test::Destination("::1".parse().unwrap()))]
    );
}

#[test]
fn built_in_conditions_come_first_as_the_kernel_asks_them_first() {
    let tests = tests4("-m recent --name L --set -m tcp -p tcp --dport 80 -d 10.0.0.1");
    let order: Vec<_> = tests.iter().map(|it| &it.test).collect();
    assert!(matches!(
        order[..],
        [Test::Destination(_), Test::Protocol(Protocol::TCP), Test::Recent(_), Test::DestinationPorts(_)]
    ));
}

#[test]
fn lists_of_addresses_are_one_rule_each() {
    let rules =
        rules::<V4>("-s 10.0.0.1,10.0.0.2 -d 10.1.0.0/16,10.2.0.0/16 -m comment --comment both -j DROP");
    let shown: Vec<_> = rules.iter().map(|rule| format!("{:?}", rule.matches)).collect();
    assert_eq!(rules.len(), 4);
    assert!(shown[1].contains("10.0.0.1/32") && shown[1].contains("10.2.0.0/16"));
    assert!(rules.iter().all(|rule| rule.comment.as_deref() == Some("both") && rule.line == 5));
    assert_eq!(error::<V4>("! -s 10.0.0.1,10.0.0.2"), "-s: ! cannot stand with a list (10.0.0.1,10.0.0.2)");
}

#[test]
fn comments_are_unquoted() {
    let comment = |text: &str| rule::<V4>(text).comment.unwrap().into_string();
    assert_eq!(comment("-m comment --comment unquoted"), "unquoted");
    assert_eq!(comment(r#"-m comment --comment "a \"b\" \\ c \'d\'""#), r#"a "b" \ c 'd'"#);
    assert_eq!(comment(r#"-m comment --comment """#), "");
    assert_eq!(comment(r#"-m comment --comment "! -j DROP""#), "! -j DROP");
    assert_eq!(comment(r#"-m comment --comment "!""#), "!");
    assert_eq!(comment("-m comment --comment \"Dienst für alle\""), "Dienst für alle");
    assert!(error::<V4>(r#"-m comment --comment "open"#).contains("has no end"));
}

#[test]
fn addrtype() {
    let kinds = |side, bits, limit| Test::AddressType { side, kinds: AddressTypes(bits), limit };
    assert_eq!(tests4("-m addrtype --dst-type LOCAL"), [yes(kinds(Side::Destination, 1 << 2, None))]);
    assert_eq!(
        tests4("-m addrtype ! --src-type UNICAST,local --dst-type BROADCAST"),
        [no(kinds(Side::Source, 0b110, None)), yes(kinds(Side::Destination, 1 << 3, None))]
    );
    let limited = kinds(Side::Destination, 1 << 2, Some(InterfaceSide::In));
    assert_eq!(tests4("-m addrtype --dst-type LOCAL --limit-iface-in"), [yes(limited)]);
    assert!(error::<V4>("-m addrtype --limit-iface-in --limit-iface-out").contains("exclude each other"));
    assert!(error::<V4>("-m addrtype --dst-type LOCALE").contains("\"LOCALE\""));
    assert!(error::<V6>("-m addrtype --dst-type BROADCAST").contains("IPv6"));
    assert!(error::<V4>("-m addrtype").contains("says nothing"));
}

#[test]
fn marks() {
    let test = |value, mask| MarkTest { value, mask };
    assert_eq!(tests4("-m mark ! --mark 0x4000/0x4000"), [no(Test::Mark(test(0x4000, 0x4000)))]);
    assert_eq!(tests4("-m mark --mark 010"), [yes(Test::Mark(test(8, u32::MAX)))]);
    assert_eq!(tests4("-m connmark --mark 1/3"), [yes(Test::ConnMark(test(1, 3)))]);
    assert!(error::<V4>("-m mark --mark 0x1g").contains("0x1g"));
    let mark = |value, mask| Target::<V4>::Mark { value, mask };
    assert_eq!(target("-j MARK --set-xmark 0x4000/0x0"), mark(0x4000, 0));
    assert_eq!(target("-j MARK --set-mark 0x3/0x5"), mark(3, 7));
    assert_eq!(target("-j MARK --set-mark 3"), mark(3, u32::MAX));
    assert_eq!(target("-j MARK --or-mark 0x4000"), mark(0x4000, 0x4000));
    assert_eq!(target("-j MARK --and-mark 0xff"), mark(0, 0xffff_ff00));
    assert_eq!(target("-j MARK --xor-mark 0x4000"), mark(0x4000, 0));
    assert!(error::<V4>("-j MARK").contains("--set-mark"));
    let conn = |it| Target::<V4>::ConnMark(it);
    let (all, few) = (u32::MAX, 0xf0);
    assert_eq!(target("-j CONNMARK --set-mark 1/2"), conn(ConnMark::Set { value: 1, mask: 3 }));
    assert_eq!(target("-j CONNMARK --set-xmark 1/2"), conn(ConnMark::Set { value: 1, mask: 2 }));
    assert_eq!(target("-j CONNMARK --or-mark 8"), conn(ConnMark::Set { value: 8, mask: 8 }));
    assert_eq!(target("-j CONNMARK --xor-mark 8"), conn(ConnMark::Set { value: 8, mask: 0 }));
    assert_eq!(target("-j CONNMARK --and-mark 8"), conn(ConnMark::Set { value: 0, mask: !8 }));
    assert_eq!(target("-j CONNMARK --save-mark"), conn(ConnMark::Save { ct_mask: all, mark_mask: all }));
    assert_eq!(
        target("-j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 1"),
        conn(ConnMark::Restore { ct_mask: 1, mark_mask: few })
    );
    assert_eq!(
        target("-j CONNMARK --restore-mark --mask 0xf0"),
        conn(ConnMark::Restore { ct_mask: few, mark_mask: few })
    );
    assert!(error::<V4>("-j CONNMARK --set-mark 1 --nfmask 1").contains("--save-mark"));
}

#[test]
fn conntrack_and_state() {
    let states = States::RELATED.with(States::ESTABLISHED).with(States::DNAT);
    assert_eq!(tests4("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"), [no(Test::State(states))]);
    assert_eq!(tests4("-m state --state NEW"), [yes(Test::State(States::NEW))]);
    assert_eq!(
        tests4("-m conntrack --ctorigdst 10.0.0.0/8 --ctorigdstport 80:90"),
        [
            yes(Test::OriginalDestination("10.0.0.0/8".parse().unwrap())),
            yes(Test::OriginalDestinationPort(80..=90)),
        ]
    );
    assert!(error::<V4>("-m state --state SNAT").contains("SNAT"));
    assert!(error::<V4>("-m conntrack --ctproto tcp").contains("--ctproto"));
}

#[test]
fn statistic() {
    let random = |threshold| Test::Random { threshold };
    for text in ["0.33333333349", "0.3333333333", "0.3333333335"] {
        let tests = tests4(&format!("-m statistic --mode random --probability {text}"));
        assert_eq!(tests, [yes(random(715_827_883))], "{text}");
    }
    assert_eq!(tests4("-m statistic --mode random --probability 0.5000000000"), [yes(random(1 << 30))]);
    assert_eq!(tests4("-m statistic --mode random --probability 1"), [yes(random(1 << 31))]);
    assert_eq!(tests4("-m statistic --mode random ! --probability 0"), [no(random(0))]);
    let nth = Test::Nth { every: 3, packet: 1 };
    assert_eq!(tests4("-m statistic --mode nth --every 3 --packet 1"), [yes(nth)]);
    assert!(error::<V4>("-m statistic --mode random --probability 1.1").contains("1.1"));
    assert!(error::<V4>("-m statistic --mode nth --every 3 --packet 3").contains("--packet 3"));
    assert!(error::<V4>("-m statistic --mode random --every 3").contains("--mode random"));
}

#[test]
fn recent() {
    let list = |name: &str, action| Recent {
        name: name.into(),
        action,
        side: Side::Source,
        mask: 32,
        seconds: None,
        hitcount: None,
        reap: false,
    };
    let set = list("DEFAULT", RecentAction::Set);
    assert_eq!(tests4("-m recent --set"), [yes(Test::Recent(set.clone()))]);
    assert_eq!(
        tests4("-m recent ! --set --rdest"),
        [no(Test::Recent(Recent { side: Side::Destination, ..set }))]
    );
    let check = Recent { seconds: Some(10800), reap: true, ..list("A", RecentAction::Check) };
    let text = "-m recent --rcheck --seconds 10800 --reap --name A --mask 255.255.255.255 --rsource";
    assert_eq!(tests4(text), [yes(Test::Recent(check))]);
    let update = Recent { mask: 24, hitcount: Some(3), ..list("B", RecentAction::Update) };
    let text = "-m recent --name B --update --hitcount 3 --mask 255.255.255.0";
    assert_eq!(tests4(text), [yes(Test::Recent(update))]);
    assert_eq!(tests4("-m recent --remove --name C"), [yes(Test::Recent(list("C", RecentAction::Remove)))]);
    assert!(error::<V4>("-m recent --name A").contains("--rcheck"));
    assert!(error::<V4>("-m recent --rcheck --reap").contains("--seconds"));
    assert!(error::<V4>("-m recent --set --seconds 3").contains("--rcheck"));
    assert!(error::<V4>("-m recent --set --update").contains("already"));
    assert!(error::<V4>("-m recent --set --mask 255.0.255.0").contains("holes"));
    assert!(error::<V4>("-m recent --rcheck --rttl").contains("--rttl"));
}

#[test]
fn ports_of_every_module() {
    let source = |list: &[std::ops::RangeInclusive<u16>]| Test::SourcePorts(list.into());
    let destination = |list: &[std::ops::RangeInclusive<u16>]| Test::DestinationPorts(list.into());
    for protocol in ["tcp", "udp", "sctp"] {
        let named = tests4(&format!("-p {protocol} -m {protocol} --sport 1:2 --dport 80"));
        assert_eq!(named[1..], [yes(source(&[1..=2])), yes(destination(&[80..=80]))]);
        let implied = tests4(&format!("-p {protocol} ! --destination-port 80: --source-port ! :9"));
        assert_eq!(implied[1..], [no(destination(&[80..=65535])), no(source(&[0..=9]))]);
        let before = tests4(&format!("-m {protocol} -p {protocol} -d 10.0.0.1 --dport 80"));
        assert_eq!(before[2..], [yes(destination(&[80..=80]))]);
    }
    assert_eq!(
        tests4("-p udplite -m multiport --dports 80,90:95")[1..],
        [yes(destination(&[80..=80, 90..=95]))]
    );
    assert_eq!(tests4("-p dccp -m multiport --dports 80")[1..], [yes(destination(&[80..=80]))]);
    assert_eq!(tests4("-p tcp -m multiport ! --sports 7")[1..], [no(source(&[7..=7]))]);
    assert_eq!(
        tests4("-p tcp -m multiport --ports 7,8")[1..],
        [yes(Test::EitherPorts([7..=7, 8..=8].into()))]
    );
    assert_eq!(tests4("-p tcp -m tcp").len(), 1);
    assert!(error::<V4>("--dport 80").contains("--dport without -p"));
    assert!(error::<V4>("-p icmp --dport 80").contains("--dport without -p"));
    assert_eq!(error::<V4>("-m tcp --dport 80"), "-m tcp needs -p tcp");
    assert_eq!(error::<V4>("-p udp -m tcp --dport 80"), "-m tcp needs -p tcp");
    assert_eq!(error::<V4>("! -p tcp -m tcp --dport 80"), "-m tcp needs -p tcp");
    assert!(error::<V4>("-p icmp -m multiport --dports 80").contains("needs -p tcp, udp"));
    assert!(error::<V4>("-p tcp --dport 70000").contains("70000"));
    assert!(error::<V4>("-p tcp --dport http").contains("http"));
    assert!(error::<V4>("-p tcp --dport 9:8").contains("9:8"));
    let many: Vec<_> = (1..=16).map(|port: u8| port.to_string()).collect();
    assert!(error::<V4>(&format!("-p tcp -m multiport --ports {}", many.join(","))).contains("15 ports"));
    assert!(error::<V4>("-p sctp -m sctp --chunk-types any DATA").contains("--chunk-types"));
    assert!(error::<V4>("-p tcp --tcp-option 3").contains("--tcp-option"));
}

#[test]
fn tcp_flags() {
    let flags = |mask, set| Test::TcpFlags { mask, set };
    assert_eq!(tests4("-p tcp --syn")[1..], [yes(flags(0x17, 2))]);
    assert_eq!(tests4("-p tcp ! --syn")[1..], [no(flags(0x17, 2))]);
    assert_eq!(tests4("-p tcp --tcp-flags FIN,SYN,RST,ACK SYN")[1..], [yes(flags(0x17, 2))]);
    assert_eq!(tests4("-p tcp ! --tcp-flags ALL NONE")[1..], [no(flags(0x3f, 0))]);
    assert_eq!(tests4("-p tcp -m tcp --tcp-flags PSH,URG URG")[1..], [yes(flags(0x28, 0x20))]);
    assert!(error::<V4>("-p tcp --tcp-flags SYN,CWR SYN").contains("CWR"));
    assert!(error::<V4>("-p tcp --tcp-flags SYN").contains("needs a value"));
}

#[test]
fn icmp_types_by_name_and_number() {
    let icmp = |kind, codes| Test::Icmp { kind, codes };
    assert_eq!(tests4("-p icmp --icmp-type echo-request")[1..], [yes(icmp(8, 0..=255))]);
    assert_eq!(tests4("-p icmp -m icmp ! --icmp-type 3/3")[1..], [no(icmp(3, 3..=3))]);
    assert_eq!(tests4("-p icmp -m icmp --icmp-type port-unreachable")[1..], [yes(icmp(3, 3..=3))]);
    assert_eq!(tests4("-p icmp -m icmp --icmp-type 8")[1..], [yes(icmp(8, 0..=255))]);
    assert_eq!(tests4("-p icmp -m icmp --icmp-type any").len(), 1);
    let six = |text: &str| rule::<V6>(text).matches[1..].to_vec();
    let icmp6 = |kind, codes| Test::Icmp { kind, codes };
    assert_eq!(six("-p ipv6-icmp -m icmp6 --icmpv6-type echo-request"), [yes(icmp6(128, 0..=255))]);
    assert_eq!(six("-p icmpv6 --icmpv6-type port-unreachable"), [yes(icmp6(1, 4..=4))]);
    assert_eq!(six("-p icmpv6 -m ipv6-icmp --icmpv6-type 135"), [yes(icmp6(135, 0..=255))]);
    assert!(error::<V4>("-p icmp --icmp-type no-such").contains("no-such"));
    assert!(error::<V4>("-p icmp --icmpv6-type 1").contains("--icmpv6-type"));
    assert!(error::<V6>("-p icmpv6 -m icmp --icmp-type 8").contains("icmp"));
    assert!(error::<V4>("-m icmp --icmp-type 8").contains("needs -p icmp"));
}

#[test]
fn what_depends_on_the_world() {
    let physdev = |text: &str| tests4(text).remove(0);
    assert_eq!(physdev("-m physdev ! --physdev-is-in"), no(Test::Physdev(Physdev::IsIn)));
    assert_eq!(physdev("-m physdev --physdev-is-out"), yes(Test::Physdev(Physdev::IsOut)));
    assert_eq!(physdev("-m physdev --physdev-is-bridged"), yes(Test::Physdev(Physdev::IsBridged)));
    assert_eq!(physdev("-m physdev --physdev-in tap+"), yes(Test::Physdev(Physdev::In(name("tap+")))));
    assert_eq!(physdev("-m physdev ! --physdev-out a"), no(Test::Physdev(Physdev::Out(name("a")))));
    let set = Test::Set { name: "KUBE-IPS".into(), sides: vec![Side::Destination, Side::Source] };
    assert_eq!(tests4("-m set ! --match-set KUBE-IPS dst,src"), [no(set)]);
    assert_eq!(tests4("-m nfacct --nfacct-name  drops"), [yes(Test::Nfacct("drops".into()))]);
    assert_eq!(tests4("-m limit"), [yes(Test::Limit("--limit 3/hour --limit-burst 5".into()))]);
    let limit = Test::Limit("--limit 10/sec --limit-burst 7".into());
    assert_eq!(tests4("-m limit --limit-burst 7 --limit 10/second"), [yes(limit)]);
    assert!(error::<V4>("-m limit --limit 5/year").contains("5/year"));
    assert!(error::<V4>("-m set --match-set A dst,srv").contains("srv"));
    assert!(error::<V4>("-m nfacct ! --nfacct-name a").contains('!'));
}

#[test]
fn targets_that_end_a_walk() {
    assert_eq!(target("-j ACCEPT"), Target::Accept);
    assert_eq!(target("-j DROP"), Target::Drop);
    assert_eq!(target("-j RETURN"), Target::Return);
    assert_eq!(target("-p tcp"), Target::None);
    assert_eq!(target("-j Y"), Target::Jump(ChainId(2)));
    assert_eq!(target("-g Y"), Target::Goto(ChainId(2)));
    assert_eq!(target("-j REJECT"), Target::Reject(RejectWith::PortUnreachable));
    for (name, with) in [
        ("icmp-net-unreachable", RejectWith::NetUnreachable),
        ("icmp-host-unreachable", RejectWith::HostUnreachable),
        ("icmp-proto-unreachable", RejectWith::ProtocolUnreachable),
        ("port-unreach", RejectWith::PortUnreachable),
        ("icmp-net-prohibited", RejectWith::NetProhibited),
        ("icmp-host-prohibited", RejectWith::HostProhibited),
        ("icmp-admin-prohibited", RejectWith::AdminProhibited),
    ] {
        assert_eq!(target(&format!("-j REJECT --reject-with {name}")), Target::Reject(with));
    }
    for (name, with) in [
        ("icmp6-no-route", RejectWith::NoRoute),
        ("icmp6-adm-prohibited", RejectWith::AdminProhibited),
        ("icmp6-addr-unreachable", RejectWith::AddressUnreachable),
        ("icmp6-port-unreachable", RejectWith::PortUnreachable),
        ("icmp6-policy-fail", RejectWith::PolicyFail),
        ("icmp6-reject-route", RejectWith::RejectRoute),
    ] {
        assert_eq!(rule::<V6>(&format!("-j REJECT --reject-with {name}")).target, Target::Reject(with));
    }
    assert_eq!(target("-p tcp -j REJECT --reject-with tcp-reset"), Target::Reject(RejectWith::TcpReset));
    assert!(error::<V4>("-j REJECT --reject-with tcp-reset").contains("needs -p tcp"));
    assert!(error::<V4>("-j REJECT --reject-with icmp6-no-route").contains("other family"));
    assert!(error::<V4>("-j REJECT --reject-with soon").contains("soon"));
    assert!(error::<V4>("-g DROP").contains("no chain"));
    assert!(error::<V4>("-j NFLOG").contains("not supported"));
    assert!(error::<V4>("-j ACCEPT -j DROP").contains("already"));
    let log = Target::Log(r#"--log-prefix "a b: " --log-level 6 --log-uid"#.into());
    assert_eq!(target(r#"-j LOG --log-uid --log-level info --log-prefix "a b: ""#), log);
    assert_eq!(target("-j LOG --log-level warning"), Target::Log(String::new()));
    assert_eq!(target("-j LOG"), Target::Log(String::new()));
}

#[test]
fn translation_targets() {
    let four = |text: &str| text.parse().unwrap();
    let keep = |addresses, ports| Nat { addresses, ports, random: RandomPorts::Keep, persistent: false };
    let dnat = |text: &str| target(&format!("-p tcp -j DNAT --to-destination {text}"));
    let one = Some((four("10.0.0.1"), four("10.0.0.1")));
    assert_eq!(dnat("10.0.0.1"), Target::Dnat(keep(one, None)));
    assert_eq!(dnat("10.0.0.1:80"), Target::Dnat(keep(one, Some(80..=80))));
    assert_eq!(dnat(":80-90"), Target::Dnat(keep(None, Some(80..=90))));
    let range = Some((four("10.0.0.1"), four("10.0.0.9")));
    assert_eq!(dnat("10.0.0.1-10.0.0.9:80"), Target::Dnat(keep(range, Some(80..=80))));
    let random = Nat { random: RandomPorts::Random, persistent: true, ..keep(one, None) };
    assert_eq!(dnat("10.0.0.1 --random --persistent"), Target::Dnat(random));
    let fully = Nat { random: RandomPorts::Fully, ..keep(one, None) };
    assert_eq!(target("-j SNAT --to-source 10.0.0.1 --random-fully"), Target::Snat(fully));
    let six = |text: &str| rule::<V6>(&format!("-p tcp -j DNAT --to-destination {text}")).target;
    let one = |text: &str| Some((text.parse().unwrap(), text.parse().unwrap()));
    assert_eq!(six("fd00::1"), Target::Dnat(Nat { addresses: one("fd00::1"), ports: None, ..Nat::KEEP }));
    let port = Nat { addresses: one("fd00::1"), ports: Some(80..=80), ..Nat::KEEP };
    assert_eq!(six("[fd00::1]:80"), Target::Dnat(port));
    let ports = Some(80..=90);
    let range =
        Nat { addresses: Some(("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())), ports, ..Nat::KEEP };
    assert_eq!(six("[fd00::1-fd00::2]:80-90"), Target::Dnat(range));
    let masquerade = |ports, random| Target::<V4>::Masquerade { ports, random };
    assert_eq!(target("-j MASQUERADE"), masquerade(None, RandomPorts::Keep));
    assert_eq!(target("-j MASQUERADE --random-fully"), masquerade(None, RandomPorts::Fully));
    assert_eq!(
        target("-p udp -j MASQUERADE --to-ports 1000-2000 --random"),
        masquerade(Some(1000..=2000), RandomPorts::Random)
    );
    assert!(error::<V4>("-j DNAT --to-destination 10.0.0.1:80").contains("needs -p"));
    assert!(error::<V4>("-j DNAT").contains("--to-destination"));
    assert!(error::<V4>("-j DNAT --to-destination fd00::1").contains("other family"));
    assert!(error::<V4>("-p tcp -j MASQUERADE --to-ports 9-8").contains("9-8"));
    assert!(error::<V4>("-j DNAT --to-destination 10.0.0.9-10.0.0.1").contains("end lies before"));
}

#[test]
fn what_is_not_known_names_the_word() {
    assert!(error::<V4>("-m u32 --u32 1").contains("-m u32"));
    assert!(error::<V4>("-f").contains("-f"));
    assert!(error::<V4>("-j Z").contains("-j Z"));
    assert!(error::<V4>("-s 10.0.0.300").contains("10.0.0.300"));
    assert!(error::<V4>("-s fd00::1").contains("other family"));
    assert!(error::<V4>("-s 10.0.0.0/33").contains("10.0.0.0/33"));
    assert!(error::<V4>("-s 10.0.0.0/255.0.255.0").contains("holes"));
    assert!(error::<V4>("-p nonsense").contains("nonsense"));
    assert!(error::<V4>("! -p all").contains("never holds"));
    assert!(error::<V4>("-i averyveryverylongname").contains("averyveryverylongname"));
    assert!(error::<V4>("! -j DROP").contains('!'));
    assert!(error::<V4>("-p tcp ! ").contains('!'));
    assert!(error::<V4>("! ! -p tcp").contains("two !"));
    assert!(error::<V4>("! -p ! tcp").contains("two !"));
    assert!(error::<V4>("-s 10.0.0.1 -s 10.0.0.2").contains("twice"));
    assert!(error::<V4>("-j").contains("needs a value"));
}

#[test]
fn counters_are_read_over() {
    let text = "*filter\n:INPUT DROP [12:3400]\n[5:600] -A INPUT -c 5 600 -j ACCEPT\nCOMMIT\n";
    let parsed = parse::<V4>(None, text).unwrap();
    assert_eq!(parsed.to_string(), "*filter\n:INPUT DROP [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n");
    assert_eq!(errors("*filter\n[5] -A INPUT\nCOMMIT"), ["line 2: \"[5]\" is not [packets:bytes]"]);
}

#[test]
fn rules_may_stand_before_their_chains() {
    let text = "*nat\n-A PREROUTING -j A\n-A A -j B\n:A - [0:0]\n:B - [0:0]\nCOMMIT\n";
    let parsed = parse::<V4>(None, text).unwrap();
    let table = parsed.table(TableName::Nat).unwrap();
    assert_eq!(table.chain(table.find("A").unwrap()).line, 4);
    assert_eq!(table.chain(table.base(Hook::Prerouting).unwrap()).policy, Some(Policy::Accept));
}

#[test]
fn mistakes_of_structure_are_said_with_their_lines() {
    assert_eq!(
        errors("*filter\n:INPUT ACCEPT [0:0]\n"),
        ["line 2: the file ends within table filter of line 1: COMMIT is missing, the file is truncated"]
    );
    assert_eq!(errors("-A INPUT -j DROP"), ["line 1: \"-A INPUT -j DROP\" stands before any table"]);
    assert_eq!(errors("COMMIT"), ["line 1: COMMIT outside of a table"]);
    assert_eq!(errors("*filter\n*nat\nCOMMIT")[0], "line 2: table filter of line 1 was not ended by COMMIT");
    assert_eq!(errors("*broute\n:X - [0:0]\n-A X -j Y\nCOMMIT"), ["line 1: table \"broute\" is not known"]);
    assert_eq!(errors("*nat\nCOMMIT\n*nat\nCOMMIT"), ["line 3: table nat stands twice"]);
    assert_eq!(
        errors("*nat\n:A - [0:0]\n:A - [0:0]\nCOMMIT"),
        ["line 3: chain A is declared twice, first at line 2"]
    );
    assert_eq!(
        errors("*nat\n:FORWARD ACCEPT [0:0]\nCOMMIT"),
        ["line 2: table nat has no built-in chain FORWARD"]
    );
    assert_eq!(
        errors("*nat\n:A ACCEPT [0:0]\nCOMMIT"),
        ["line 2: chain A: policy ACCEPT, which a user's chain has not"]
    );
    assert_eq!(
        errors("*nat\n:INPUT - [0:0]\nCOMMIT"),
        ["line 2: chain INPUT: \"-\" is neither ACCEPT nor DROP"]
    );
    assert_eq!(
        errors("*nat\n:LOG - [0:0]\nCOMMIT"),
        ["line 2: a chain cannot be called LOG: that is a target"]
    );
    assert_eq!(errors("*nat\n-A A -j DROP\nCOMMIT"), ["line 2: -A A: table nat does not declare the chain"]);
    assert_eq!(
        errors("*nat\n:A - [0:0]\n-A A -j B\nCOMMIT"),
        ["line 3: -j B: it is neither a chain of table nat nor a known target"]
    );
    assert_eq!(
        errors("*nat\n:A - [0:0]\n-A A -j INPUT\nCOMMIT"),
        ["line 3: -j INPUT: a base chain is not jumped to"]
    );
    assert_eq!(
        errors("*nat\n:A - [0:0]\n-I A -j DROP\nCOMMIT"),
        ["line 3: \"-I\" is not -A: only rules that are appended are read"]
    );
    assert_eq!(
        errors("# Generated by ip6tables-save v1.8.9 (nf_tables)\n"),
        ["line 1: these are ip6tables-save's rules, not those of ipv4"]
    );
    assert_eq!(
        errors("# Table `nat' is incompatible, use 'nft' tool.\n"),
        ["line 1: rules are missing: Table `nat' is incompatible, use 'nft' tool."]
    );
}

#[test]
fn loops_of_jumps_name_the_cycle() {
    let text = "*nat\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n-A A -j B\n-A B -g C\n-A C -j A\n-A C -j C\nCOMMIT";
    assert_eq!(
        errors(text),
        ["line 7: a loop of jumps: A -> B -> C -> A", "line 8: a loop of jumps: C -> C"]
    );
}

#[test]
fn targets_stand_where_the_kernel_lets_them() {
    let chains = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n";
    let reached = |from: &str, rule: &str| format!("{chains}-A {from} -j A\n-A A -g B\n-A B {rule}\nCOMMIT");
    let dnat = "-j DNAT --to-destination 10.0.0.1";
    assert!(parse::<V4>(None, &reached("PREROUTING", dnat)).is_ok());
    assert_eq!(errors(&reached("POSTROUTING", dnat)), ["line 8: DNAT cannot be reached from POSTROUTING"]);
    assert!(parse::<V4>(None, &reached("POSTROUTING", "-j MASQUERADE")).is_ok());
    assert_eq!(
        errors(&reached("PREROUTING", "-j MASQUERADE")),
        ["line 8: MASQUERADE cannot be reached from PREROUTING"]
    );
    assert_eq!(
        errors("*filter\n-A INPUT -j DNAT --to-destination 10.0.0.1\nCOMMIT"),
        ["line 2: DNAT stands in table nat only, not in filter"]
    );
    assert_eq!(
        errors("*mangle\n-A INPUT -j REJECT\nCOMMIT"),
        ["line 2: REJECT stands in table filter only, not in mangle"]
    );
    assert_eq!(
        errors("*filter\n-A INPUT -o eth0\n-A OUTPUT -i eth0\nCOMMIT"),
        ["line 2: -o has no meaning in INPUT", "line 3: -i has no meaning in OUTPUT"]
    );
    assert_eq!(
        errors("*filter\n-A INPUT -m addrtype --dst-type LOCAL --limit-iface-out\nCOMMIT"),
        ["line 2: --limit-iface-out cannot be reached from INPUT"]
    );
}

#[test]
fn many_errors_are_all_said_up_to_a_bound() {
    let text = format!("*filter\n:A - [0:0]\n{}COMMIT\n", "-A A -j ACCEPT now\n".repeat(3));
    assert_eq!(errors(&text).len(), 3);
    let text = format!("*filter\n:A - [0:0]\n{}COMMIT\n", "-A A -j ACCEPT now\n".repeat(500));
    let errors = errors(&text);
    assert_eq!(errors.len(), MOST_ERRORS + 1);
    assert_eq!(errors[MOST_ERRORS], "100 errors: what follows was not read");
}

#[test]
fn chains_may_nest_as_deep_as_they_like() {
    let mut text = "*filter\n".to_string();
    for at in 0..100_000 {
        text += &format!(":C{at} - [0:0]\n");
    }
    for at in 1..100_000 {
        text += &format!("-A C{} -j C{at}\n", at - 1);
    }
    text += "COMMIT\n";
    assert_eq!(parse::<V4>(None, &text).unwrap().rule_count(), 99_999);
}
