//! The kernel's order of hooks and tables, and what each condition and target does there.

use std::collections::HashMap;

use pollux_dataplane::packet::V4;

use super::steps::Steps;
use super::*;
use crate::iptables::parse::parse;

/// A node with 192.0.2.1; what is local to it leaves by nothing, 10.2.0.0/16 by `eth2`, the rest by `eth0`.
#[derive(Default)]
struct Node {
    lists: HashMap<String, Vec<Ip>>,
    lucky: bool,
}

type Ip = std::net::Ipv4Addr;

impl World<V4> for Node {
    fn is_local(&self, address: Ip) -> bool {
        address.is_loopback() || address == ip("192.0.2.1")
    }

    fn out_interface(&self, destination: Ip) -> &str {
        if destination.octets()[..2] == [10, 2] { "eth2" } else { "eth0" }
    }

    fn masquerade(&self, _: &str, _: Ip) -> Ip {
        ip("192.0.2.1")
    }

    fn random(&mut self, _: Place, _: u32) -> bool {
        self.lucky
    }

    fn nth(&mut self, _: Place, _: u32, _: u32) -> bool {
        self.lucky
    }

    fn recent(&mut self, recent: &Recent, address: Ip) -> bool {
        self.lists.get(&recent.name).is_some_and(|list| list.contains(&address))
    }

    fn in_set(&mut self, name: &str, sides: &[Side], view: &View<V4>) -> bool {
        name == "ten" && sides == [Side::Source] && view.source.octets()[0] == 10
    }

    fn limit(&mut self, _: Place) -> bool {
        self.lucky
    }
}

/// Writes down the base chains, the rules whose conditions held by line, and the policies.
#[derive(Default)]
struct Notes(Vec<String>);

impl Watch<V4> for Notes {
    fn enters(&mut self, table: &Table<V4>, hook: Hook) {
        self.0.push(format!("{} {}", table.name.name(), hook.chain()));
    }

    fn asked(&mut self, _: &Table<V4>, place: Place, _: &Rule<V4>, held: bool) {
        if held {
            self.0.push(place.line.to_string());
        }
    }

    fn policy(&mut self, _: &Table<V4>, _: Hook, policy: Policy) {
        self.0.push(format!("{policy:?}"));
    }
}

fn ip(text: &str) -> Ip {
    text.parse().unwrap()
}

/// The first packet of a TCP connection from 10.0.0.1:4000 to port 80 of `destination`, coming in by `eth1`.
fn packet(destination: &str) -> Packet<'static, V4> {
    let destination = ip(destination);
    Packet {
        source: ip("10.0.0.1"),
        destination,
        protocol: Protocol::TCP,
        source_port: 4000,
        destination_port: 80,
        tcp_flags: 2,
        icmp: (0, 0),
        in_interface: Some("eth1"),
        mark: 0,
        connection: Connection::first(destination, 80),
    }
}

fn from_host(packet: Packet<'static, V4>) -> Packet<'static, V4> {
    Packet { source: ip("192.0.2.1"), in_interface: None, ..packet }
}

fn rules(text: &str) -> Ruleset<V4> {
    parse(None, text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn run(text: &str, packet: &Packet<'_, V4>) -> Outcome<V4> {
    evaluate(&rules(text), packet, &mut Node::default(), &mut Unwatched)
}

fn steps(text: &str, packet: &Packet<'_, V4>) -> Vec<String> {
    let mut notes = Notes::default();
    evaluate(&rules(text), packet, &mut Node::default(), &mut notes);
    notes.0
}

/// Whether a packet fulfils conditions in filter FORWARD, or INPUT if it is for the node.
fn holds(conditions: &str, packet: &Packet<'_, V4>) -> bool {
    holds_in("filter", "FORWARD", conditions, packet)
}

fn holds_in(table: &str, chain: &str, conditions: &str, packet: &Packet<'_, V4>) -> bool {
    let text = format!("*{table}\n:X - [0:0]\n-A {chain} -j X\n-A X {conditions} -j DROP\nCOMMIT\n");
    run(&text, packet).verdict == Verdict::Dropped
}

/// Every base chain of every table, empty.
fn empty() -> String {
    let mut text = String::new();
    for table in TableName::ALL {
        text += &format!("*{}\n", table.name());
        for hook in table.hooks() {
            text += &format!(":{} ACCEPT [0:0]\n", hook.chain());
        }
        text += "COMMIT\n";
    }
    text
}

fn chains(steps: Vec<String>) -> Vec<String> {
    steps.into_iter().filter(|step| step.contains(' ')).collect()
}

#[test]
fn a_forwarded_packet_passes_the_tables_in_the_kernels_order() {
    assert_eq!(
        chains(steps(&empty(), &packet("10.2.0.1"))),
        [
            "raw PREROUTING",
            "mangle PREROUTING",
            "nat PREROUTING",
            "mangle FORWARD",
            "filter FORWARD",
            "security FORWARD",
            "mangle POSTROUTING",
            "nat POSTROUTING",
        ]
    );
    assert_eq!(run(&empty(), &packet("10.2.0.1")).verdict, Verdict::Forwarded(Name::new("eth2")));
}

#[test]
fn a_packet_to_the_node_passes_the_tables_in_the_kernels_order() {
    assert_eq!(
        chains(steps(&empty(), &packet("192.0.2.1"))),
        [
            "raw PREROUTING",
            "mangle PREROUTING",
            "nat PREROUTING",
            "mangle INPUT",
            "filter INPUT",
            "security INPUT",
            "nat INPUT",
        ]
    );
    assert_eq!(run(&empty(), &packet("192.0.2.1")).verdict, Verdict::Delivered);
}

#[test]
fn a_packet_of_the_host_passes_the_tables_in_the_kernels_order() {
    let out = ["raw OUTPUT", "mangle OUTPUT", "nat OUTPUT", "filter OUTPUT", "security OUTPUT"];
    let out = [&out[..], &["mangle POSTROUTING", "nat POSTROUTING"]].concat();
    assert_eq!(chains(steps(&empty(), &from_host(packet("10.2.0.1")))), out);
    let again = ["raw PREROUTING", "mangle PREROUTING", "mangle INPUT", "filter INPUT", "security INPUT"];
    let both = [&out[..], &again].concat();
    assert_eq!(chains(steps(&empty(), &from_host(packet("192.0.2.1")))), both);
}

#[test]
fn later_packets_and_invalid_ones_skip_nat() {
    for state in [States::NEW, States::ESTABLISHED, States::INVALID, States::UNTRACKED] {
        let destination = ip("10.2.0.1");
        let later = Packet { connection: Connection::later(state, destination, 80), ..packet("10.2.0.1") };
        assert!(!steps(&empty(), &later).iter().any(|step| step.contains("nat")), "{state:?}");
    }
    let mut invalid = packet("10.2.0.1");
    invalid.connection.state = States::INVALID;
    assert!(!steps(&empty(), &invalid).iter().any(|step| step.contains("nat")));
    // A packet that belongs to another connection may be the first of its own.
    invalid.connection.state = States::RELATED;
    assert!(steps(&empty(), &invalid).iter().any(|step| step.contains("nat")));
}

#[test]
fn accept_ends_its_base_chain_only() {
    let text = "*mangle\n-A FORWARD -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n\
                *filter\n-A FORWARD -d 10.2.0.9 -j DROP\nCOMMIT\n";
    assert_eq!(run(text, &packet("10.2.0.9")).verdict, Verdict::Dropped);
    assert_eq!(run(text, &packet("10.2.0.8")).verdict, Verdict::Forwarded(Name::new("eth2")));
}

#[test]
fn return_and_the_end_of_a_chain_go_on_in_the_caller() {
    let text = "*filter\n:A - [0:0]\n:B - [0:0]\n\
                -A FORWARD -j A\n-A FORWARD -p tcp\n-A A -j B\n-A A -j RETURN\n-A A -j DROP\nCOMMIT\n";
    // Line 4 jumps to A, 6 to B, which is empty; 7 returns; 5 counts.
    assert_eq!(steps(text, &packet("10.2.0.1")), ["filter FORWARD", "4", "6", "7", "5", "Accept"]);
}

#[test]
fn return_in_a_base_chain_gives_the_policy() {
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j RETURN\n-A FORWARD -j ACCEPT\nCOMMIT\n";
    assert_eq!(steps(text, &packet("10.2.0.1")), ["filter FORWARD", "3", "Drop"]);
    assert_eq!(run(text, &packet("10.2.0.1")).verdict, Verdict::Dropped);
}

#[test]
fn the_end_behind_a_goto_is_the_caller_of_the_last_jump() {
    let text = "*filter\n:A - [0:0]\n:B - [0:0]\n\
                -A FORWARD -j A\n-A FORWARD -p tcp\n-A A -g B\n-A A -j DROP\n-A B -p tcp\nCOMMIT\n";
    assert_eq!(steps(text, &packet("10.2.0.1")), ["filter FORWARD", "4", "6", "8", "5", "Accept"]);
    // From a base chain there is no caller: its policy.
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\n-A FORWARD -g A\n-A FORWARD -j DROP\nCOMMIT\n";
    assert_eq!(steps(text, &packet("10.2.0.1")), ["filter FORWARD", "4", "Accept"]);
}

#[test]
fn reject_ends_the_way_and_says_how() {
    let text = "*filter\n-A FORWARD -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n";
    assert_eq!(run(text, &packet("10.2.0.1")).verdict, Verdict::Rejected(RejectWith::TcpReset));
}

#[test]
fn after_dnat_the_new_destination_and_the_status_are_seen() {
    let nat =
        "*nat\n-A PREROUTING -p tcp -j DNAT --to-destination 192.0.2.1:8080\n-A PREROUTING -j DROP\nCOMMIT\n";
    let text = nat.to_string()
        + "*filter\n-A INPUT -m conntrack --ctstate DNAT -m addrtype --dst-type LOCAL -p tcp --dport 8080 \
           -m conntrack --ctorigdst 10.150.0.1 --ctorigdstport 80 -j DROP\nCOMMIT\n";
    let end = run(&text, &packet("10.150.0.1"));
    assert_eq!(end.verdict, Verdict::Dropped);
    assert_eq!((end.destination, end.destination_port, end.dnat), (ip("192.0.2.1"), 8080, true));
    // Translated to where it went already: the kernel sets no status.
    let same = Packet { destination_port: 8080, ..packet("192.0.2.1") };
    let end = run(&text, &same);
    assert_eq!((end.verdict, end.dnat), (Verdict::Delivered, true));
}

#[test]
fn later_packets_are_translated_where_nat_stands() {
    let text = "*mangle\n-A PREROUTING -d 10.150.0.1 -p tcp --dport 80 -j MARK --or-mark 1\nCOMMIT\n\
                *filter\n-A FORWARD -d 10.2.0.1 -p tcp --dport 8080 -m conntrack --ctstate DNAT -j MARK --or-mark 2\n\
                COMMIT\n";
    let mut later = Packet { destination_port: 8080, ..packet("10.2.0.1") };
    later.connection = Connection::later(States::ESTABLISHED, ip("10.150.0.1"), 80);
    let before = Some((ip("10.150.0.1"), 80));
    later.connection.nat = NatState::Decided { dnat: true, snat: false, before, after: None };
    assert_eq!(run(text, &later).mark, 3);
}

#[test]
fn sources_are_translated_in_postrouting() {
    let masquerade = "*nat\n-A POSTROUTING -o eth2 -j MASQUERADE\n-A POSTROUTING -j DROP\nCOMMIT\n";
    let end = run(masquerade, &packet("10.2.0.1"));
    assert_eq!((end.verdict, end.snat), (Verdict::Forwarded(Name::new("eth2")), Some(Snat::Masquerade)));
    assert_eq!(run(masquerade, &packet("10.3.0.1")).verdict, Verdict::Dropped);
    // A packet to the node never gets there.
    assert_eq!(run(masquerade, &packet("192.0.2.1")).snat, None);
    let snat = "*nat\n-A POSTROUTING -j SNAT --to-source 192.0.2.9\nCOMMIT\n";
    let to = Nat { addresses: Some((ip("192.0.2.9"), ip("192.0.2.9"))), ..Nat::KEEP };
    assert_eq!(run(snat, &packet("10.2.0.1")).snat, Some(Snat::To(to)));
    assert_eq!(
        run("*nat\n-A INPUT -j SNAT --to-source 192.0.2.9\nCOMMIT\n", &packet("192.0.2.1")).verdict,
        Verdict::Delivered
    );
}

#[test]
fn what_the_host_sends_to_itself_comes_in_by_lo_with_its_new_source() {
    let text = "*mangle\n-A OUTPUT -j MARK --set-mark 7\nCOMMIT\n\
                *nat\n-A OUTPUT -d 10.150.0.1 -j DNAT --to-destination 127.0.0.1\n\
                -A POSTROUTING -o lo -j SNAT --to-source 192.0.2.9\nCOMMIT\n\
                *filter\n-A OUTPUT -o lo -j DROP\n\
                -A INPUT -i lo -s 192.0.2.9 -d 127.0.0.1 -m mark --mark 7 -m conntrack --ctstate SNAT -j DROP\nCOMMIT\n";
    // The filter of OUTPUT still sees the way to the first destination.
    assert_eq!(steps(text, &from_host(packet("10.150.0.1"))).last().unwrap(), "10");
    assert_eq!(steps(text, &from_host(packet("127.0.0.1"))).last().unwrap(), "9");
}

#[test]
fn interfaces_have_empty_names_where_there_are_none() {
    let forwarded = packet("10.2.0.1");
    assert!(holds("-i eth1 -o eth2", &forwarded));
    assert!(holds("-i eth+ ! -o eth0", &forwarded));
    assert!(holds("-i + -o +", &forwarded));
    assert!(!holds("-i eth", &forwarded));
    assert!(holds_in("mangle", "PREROUTING", "! -o eth2", &forwarded));
    assert!(!holds_in("mangle", "PREROUTING", "-o eth+", &forwarded));
    assert!(holds_in("mangle", "POSTROUTING", "-i eth1", &forwarded));
    let host = from_host(packet("10.2.0.1"));
    assert!(holds_in("mangle", "OUTPUT", "-o eth2 ! -i lo", &host));
    assert!(!holds_in("mangle", "POSTROUTING", "-i lo", &host));
    assert!(!holds_in("mangle", "INPUT", "-o eth+", &packet("192.0.2.1")));
}

#[test]
fn conditions_on_headers() {
    let tcp = packet("10.2.0.1");
    for (conditions, expected) in [
        ("-s 10.0.0.0/8 -d 10.2.0.0/16", true),
        ("! -s 10.0.0.0/8", false),
        ("-p tcp --sport 4000 --dport 80", true),
        ("-p tcp --dport 81:", false),
        ("-p tcp ! --dport 81:", true),
        ("-p udp", false),
        ("! -p udp", true),
        ("-p tcp -m multiport --dports 1:79,80", true),
        ("-p tcp -m multiport --sports 80", false),
        ("-p tcp -m multiport --ports 80", true),
        ("-p tcp -m multiport --ports 4000", true),
        ("-p tcp -m multiport ! --ports 4000", false),
        ("-p tcp --syn", true),
        ("-p tcp ! --syn", false),
        ("-p tcp --tcp-flags SYN,ACK SYN,ACK", false),
        ("-p tcp --tcp-flags ACK NONE", true),
        ("-p icmp", false),
    ] {
        assert_eq!(holds(conditions, &tcp), expected, "{conditions}");
    }
    let echo = Packet { protocol: Protocol::ICMP, icmp: (8, 0), ..packet("10.2.0.1") };
    assert!(holds("-p icmp --icmp-type echo-request", &echo));
    assert!(!holds("-p icmp --icmp-type 8/1", &echo));
    assert!(holds("-p icmp --icmp-type any", &echo));
    assert!(holds("-p icmp ! --icmp-type 3", &echo));
}

#[test]
fn address_types_are_the_worlds() {
    assert!(holds("-m addrtype ! --dst-type LOCAL --src-type UNICAST", &packet("10.2.0.1")));
    assert!(holds("-m addrtype --dst-type MULTICAST", &packet("224.0.0.9")));
    assert!(holds_in("filter", "INPUT", "-m addrtype --dst-type LOCAL", &packet("192.0.2.1")));
    assert!(!holds_in("filter", "INPUT", "-m addrtype --dst-type UNICAST", &packet("192.0.2.1")));
    let types = |asked, types| {
        walk::is_of_type::<pollux_dataplane::packet::V6>(AddressTypes(asked), AddressTypes(types))
    };
    // Of IPv6 a local address is unicast too, and all that an address shows must hold.
    assert!(types(0b100, 0b110) && types(0b010, 0b110) && types(0b110, 0b110));
    assert!(!types(0b110, 0b010) && !types(0b10_0010, 0b110));
}

#[test]
fn states_before_and_behind_conntrack() {
    let first = packet("10.2.0.1");
    assert!(holds("-m conntrack --ctstate NEW,ESTABLISHED", &first));
    assert!(holds("-m conntrack ! --ctstate INVALID", &first));
    // A raw table stands before conntrack: nothing is known yet.
    assert!(holds_in("raw", "PREROUTING", "-m conntrack --ctstate INVALID", &first));
    assert!(holds_in("mangle", "PREROUTING", "-m state --state NEW", &first));
    assert!(holds("-m conntrack --ctorigdst 10.2.0.1", &first));
    let mut invalid = first.clone();
    invalid.connection.state = States::INVALID;
    assert!(holds("-m conntrack --ctstate INVALID", &invalid));
    for conditions in ["--ctorigdst 10.2.0.1", "! --ctorigdst 10.9.0.1", "! --ctorigdstport 9"] {
        assert!(!holds(&format!("-m conntrack {conditions}"), &invalid), "{conditions}");
    }
    assert!(!holds("-m connmark ! --mark 1", &invalid));
}

#[test]
fn marks_are_set_kept_and_restored() {
    let marked = |rule: &str, mark: u32, connection: u32| {
        let mut packet = Packet { mark, ..packet("10.2.0.1") };
        packet.connection.mark = connection;
        let end = run(&format!("*mangle\n-A FORWARD {rule}\nCOMMIT\n"), &packet);
        (end.mark, end.connection_mark)
    };
    assert_eq!(marked("-j MARK --set-xmark 0x4000/0x4000", 0x8001, 5), (0xc001, 5));
    assert_eq!(marked("-j MARK --set-xmark 0x4000/0x0", 0x4001, 5), (1, 5));
    assert_eq!(marked("-j MARK --set-mark 0x2/0x3", 0xff, 5), (0xfe, 5));
    assert_eq!(marked("-j MARK --and-mark 0xf0", 0xff, 5), (0xf0, 5));
    assert_eq!(marked("-j CONNMARK --set-mark 9", 1, 5), (1, 9));
    assert_eq!(marked("-j CONNMARK --save-mark --nfmask 0xf --ctmask 0xff", 0x37, 0x155), (0x37, 0x107));
    assert_eq!(marked("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xf", 0x137, 0x55), (0x105, 0x55));
    assert_eq!(marked("-m mark --mark 0x4/0x4 -j MARK --or-mark 1", 6, 0), (7, 0));
    assert_eq!(marked("-m mark --mark 0x5/0x4 -j MARK --or-mark 1", 5, 0), (5, 0));
    assert_eq!(marked("-m connmark --mark 5 -j MARK --or-mark 1", 0, 5), (1, 5));
    let mut invalid = packet("10.2.0.1");
    invalid.connection.state = States::INVALID;
    assert_eq!(run("*mangle\n-A FORWARD -j CONNMARK --set-mark 9\nCOMMIT\n", &invalid).connection_mark, 0);
}

#[test]
fn what_is_outside_of_the_file_is_asked() {
    let text = "*filter\n-A FORWARD -m set --match-set ten src -m recent --rcheck --name L --mask 255.0.0.0 \
                -m nfacct --nfacct-name a -m statistic --mode random --probability 0.5 -m limit \
                -m physdev ! --physdev-is-in -j DROP\n\
                -A FORWARD -m recent --set --name M --rdest\nCOMMIT\n";
    let rules = rules(text);
    let mut world = Node { lucky: true, ..Node::default() };
    let end = |world: &mut Node| evaluate(&rules, &packet("10.2.0.1"), world, &mut Unwatched);
    assert_eq!(end(&mut world).noted, [Noted { list: "M".into(), address: ip("10.2.0.1") }]);
    world.lists.insert("L".into(), vec![ip("10.0.0.0")]);
    assert_eq!(end(&mut world).verdict, Verdict::Dropped);
    world.lucky = false;
    assert_eq!(end(&mut world).verdict, Verdict::Forwarded(Name::new("eth2")));
}

#[test]
fn ports_of_a_range_are_kept_if_they_lie_in_it() {
    let dnat = |ports: &str| {
        let text = format!("*nat\n-A PREROUTING -p tcp -j DNAT --to-destination :{ports}\nCOMMIT\n");
        let end = run(&text, &packet("10.2.0.1"));
        assert_eq!(end.destination, ip("10.2.0.1"));
        end.destination_port
    };
    assert_eq!((dnat("70-90"), dnat("90-99"), dnat("8080")), (80, 90, 8080));
}

#[test]
fn steps_are_shown_with_their_lines() {
    let text = "*mangle\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*nat\n:A - [0:0]\n-A PREROUTING -d 10.150.0.1 -j A\n\
                -A A -p tcp -j DNAT --to-destination 10.2.0.1:8080\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    let rules = rules(text);
    let mut steps = Steps::default();
    evaluate(&rules, &packet("10.150.0.1"), &mut Node::default(), &mut steps);
    let expected = "nat PREROUTING\n  line 6: -A PREROUTING -d 10.150.0.1/32 -j A\n  \
                    line 7: -A A -p tcp -j DNAT --to-destination 10.2.0.1:8080\nfilter FORWARD\n  policy DROP\n";
    assert_eq!(steps.show(&rules).to_string(), expected);
}
