//! Every type of set, what it holds, and every mistake with its line.

use super::*;
use crate::iptables::evaluate::Name;

const SAVED: &str = r#"create ADDRESSES hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1
add ADDRESSES 10.0.0.1
add ADDRESSES 10.0.0.2 timeout 30 packets 1 bytes 60 comment "a b"
create MASKED hash:ip family inet netmask 24
add MASKED 10.1.1.0
create NETS hash:net family inet hashsize 1024 maxelem 65536 timeout 600
add NETS 10.0.0.0/8
add NETS 10.1.0.0/16 nomatch
add NETS 10.1.1.0/24
add NETS 192.0.2.1
create SERVICES hash:ip,port family inet
add SERVICES 10.0.0.2,tcp:80
add SERVICES 10.0.0.2,udp:53
add SERVICES 10.0.0.2,icmp:echo-request
add SERVICES 10.0.0.2,gre:0
create LOOPBACK hash:ip,port,ip family inet
add LOOPBACK 10.0.0.2,tcp:80,10.0.0.1
create RANGES hash:ip,port,net family inet
add RANGES 10.0.0.2,tcp:80,10.0.0.0/24
create NETPORT hash:net,port family inet
add NETPORT 10.0.0.0/24,sctp:80
create PORTS bitmap:port range 0-65535
add PORTS 80
create BITS bitmap:ip range 10.0.0.0/16
add BITS 10.0.0.1
create SIX hash:ip family inet6
add SIX fd00::1
create ALL list:set size 8
add ALL ADDRESSES
add ALL PORTS
"#;

fn view(protocol: u8, port: u16) -> View<V4> {
    View {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: Protocol(protocol),
        source_port: 4000,
        destination_port: port,
        tcp_flags: 0,
        icmp: (8, 0),
        in_interface: Name::default(),
        out_interface: Name::default(),
        mark: 0,
    }
}

fn sides(text: &str) -> Vec<Side> {
    let side = |side: &str| if side == "src" { Side::Source } else { Side::Destination };
    text.split(',').map(side).collect()
}

fn holds(name: &str, text: &str, view: &View<V4>) -> bool {
    parse::<V4>(None, SAVED).unwrap().contains(name, &sides(text), view).unwrap()
}

#[test]
fn each_type_holds_what_it_names() {
    let tcp = view(6, 80);
    for (name, text, expected) in [
        ("ADDRESSES", "src", true),
        ("ADDRESSES", "dst", true),
        ("BITS", "src", true),
        ("BITS", "dst", false),
        ("SERVICES", "dst,dst", true),
        ("SERVICES", "dst,src", false),
        ("SERVICES", "src,dst", false),
        ("LOOPBACK", "dst,dst,src", true),
        ("LOOPBACK", "dst,dst,dst", false),
        ("RANGES", "dst,dst,src", true),
        ("NETPORT", "dst,dst", false),
        ("PORTS", "dst", true),
        ("PORTS", "src", false),
        ("SIX", "src", false),
        ("ALL", "dst", true),
    ] {
        assert_eq!(holds(name, text, &tcp), expected, "{name} {text}");
    }
    assert!(!holds("SERVICES", "dst,dst", &view(6, 53)) && holds("SERVICES", "dst,dst", &view(17, 53)));
    assert!(holds("SERVICES", "dst,dst", &view(1, 0)) && holds("SERVICES", "dst,dst", &view(47, 9)));
    assert!(!holds("SERVICES", "dst,dst", &view(50, 0)));
    assert!(holds("NETPORT", "dst,dst", &view(132, 80)));
    assert!(holds("PORTS", "dst", &view(17, 80)) && !holds("PORTS", "dst", &view(132, 80)));
}

#[test]
fn the_longest_prefix_decides() {
    let held =
        |address: &str| holds("NETS", "src", &View { source: address.parse().unwrap(), ..view(6, 80) });
    assert!(held("10.0.0.1") && !held("10.1.0.1") && held("10.1.1.1") && held("192.0.2.1"));
    assert!(!held("192.0.2.2"));
    let masked =
        |address: &str| holds("MASKED", "src", &View { source: address.parse().unwrap(), ..view(6, 80) });
    assert!(masked("10.1.1.77") && !masked("10.1.2.77"));
}

#[test]
fn too_few_sides_never_match_and_more_do_not_matter() {
    assert!(!holds("SERVICES", "dst", &view(6, 80)));
    assert!(holds("ADDRESSES", "src,dst", &view(6, 80)));
    let sets = parse::<V4>(None, SAVED).unwrap();
    assert_eq!(sets.contains("MISSING", &sides("src"), &view(6, 80)), None);
}

#[test]
fn constants_of_a_list_are_those_of_its_members() {
    let sets = parse::<V4>(None, SAVED).unwrap();
    let names = |name| sets.parts(name).map(|set| set.name.as_str()).collect::<Vec<_>>();
    assert_eq!(names("ALL"), ["ADDRESSES", "PORTS"]);
    assert_eq!(names("NETS"), ["NETS"]);
    let prefixes: Vec<_> =
        sets.parts("NETS").flat_map(|set| &set.entries).filter_map(|it| it.address).collect();
    assert_eq!(prefixes.len(), 4);
    assert_eq!(prefixes[1].to_string(), "10.1.0.0/16");
    let six = parse::<V6>(None, SAVED).unwrap();
    assert!(six.get("SIX").unwrap().in_family && !six.get("NETS").unwrap().in_family);
    assert_eq!(sets.iter().count(), 11);
}

#[test]
fn mistakes_are_said_with_their_lines() {
    let errors = |text: &str| -> Vec<String> {
        parse::<V4>(None, text).expect_err(text).0.iter().map(ToString::to_string).collect()
    };
    assert_eq!(errors("create A hash:mac"), ["line 1: set A: its type is not supported"]);
    assert_eq!(
        errors("create A hash:ip family inet4"),
        ["line 1: family \"inet4\" is neither inet nor inet6"]
    );
    assert_eq!(errors("create A hash:ip bitmask 255.0.0.0"), ["line 1: set A: \"bitmask\" is not known"]);
    assert_eq!(errors("add A 10.0.0.1"), ["line 1: set A was not created"]);
    assert_eq!(errors("create A hash:ip\ncreate A hash:ip"), ["line 2: set A is created twice"]);
    assert_eq!(errors("flush A"), ["line 1: \"flush\" is neither create nor add"]);
    for (kind, entry, error) in [
        ("hash:ip", "10.0.0.300", "\"10.0.0.300\" is not an ipv4 address"),
        ("hash:ip", "fd00::1", "fd00::1 is not an ipv4 address: it is of the other family"),
        ("hash:ip family inet6", "10.0.0.1", "10.0.0.1 is not an ipv6 address: it is of the other family"),
        ("hash:ip", "10.0.0.0/24", "\"10.0.0.0/24\" is not one address"),
        ("hash:net", "0.0.0.0/0", "\"0.0.0.0/0\": a set holds no prefix of length 0"),
        ("hash:ip,port", "10.0.0.1", "\"10.0.0.1\" has not as many parts as the set has dimensions"),
        ("hash:ip,port", "10.0.0.1,tcp:99999", "\"99999\" is not a port (0-65535)"),
        ("hash:ip", "10.0.0.1 forever", "10.0.0.1: \"forever\" is not known"),
    ] {
        assert_eq!(errors(&format!("create A {kind}\nadd A {entry}")), [format!("line 2: {error}")]);
    }
    assert_eq!(errors("create L list:set size 8\nadd L B"), ["line 2: L: set B is not in the file"]);
}
