//! Lines as conntrack 1.4.7 printed them on Linux 6.18. What real connections look like in both is compared
//! in `control/tests/conntrack.rs`.

use super::*;

/// Reads a line of a listing without family back into what it says.
fn item(line: &str) -> TrackedItem {
    let (head, tuples) = line.split_at(line.find("src=").unwrap());
    let (first, second) = tuples[1..].split_at(tuples[1..].find("src=").unwrap());
    let word = |text: &str, name: &str| -> Option<String> {
        text.split(' ').find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    let number = |text: &str, name: &str| word(text, name).map(|word| word.parse().unwrap());
    let tuple = |text: &str| {
        let is_icmp = word(text, "type").is_some();
        TrackedTuple {
            source: word(text, "src").unwrap().parse().unwrap(),
            destination: word(text, "dst").unwrap().parse().unwrap(),
            source_port: number(text, "sport").map(|port| port as u16),
            destination_port: number(text, "dport").map(|port| port as u16),
            icmp_type: number(text, "type").map(|kind| kind as u8),
            icmp_code: number(text, "code").map(|code| code as u8),
            icmp_id: number(text, "id").filter(|_| is_icmp).map(|id| id as u16),
            packets: number(text, "packets"),
            bytes: number(text, "bytes"),
        }
    };
    let head: Vec<&str> = head.split_whitespace().collect();
    let original = tuple(&format!("s{first}"));
    TrackedItem {
        id: second.rsplit_once(" id=").map_or(0, |(_, id)| id.parse().unwrap()),
        family: if original.source.is_ipv4() { "ipv4" } else { "ipv6" }.to_owned(),
        protocol: head[1].parse().unwrap(),
        remaining_seconds: head[2].parse::<f64>().unwrap() + 0.9,
        timeout: String::new(),
        state: head.get(3).map(|state| (*state).to_owned()),
        original,
        reply: tuple(second),
        seen_reply: !line.contains("[UNREPLIED]"),
        assured: line.contains("[ASSURED]"),
        mark: number(second, "mark").unwrap_or(0) as u32,
    }
}

const LISTED: [&str; 8] = [
    "tcp      6 99 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1000 dport=80 packets=0 bytes=0 src=10.0.0.2 dst=10.0.0.1 sport=80 dport=1000 packets=0 bytes=0 [ASSURED] mark=5 use=1",
    "tcp      6 99 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=1001 dport=80 [UNREPLIED] src=10.0.0.2 dst=10.0.0.9 sport=80 dport=1001 mark=0 use=1",
    "udp      17 99 src=fd00::1 dst=fd00::2 sport=1001 dport=80 packets=0 bytes=0 [UNREPLIED] src=fd00::2 dst=fd00::1 sport=80 dport=1001 packets=0 bytes=0 mark=0 use=1",
    "sctp     132 99 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1001 dport=80 packets=0 bytes=0 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=80 dport=1001 packets=0 bytes=0 mark=0 use=1",
    "icmp     1 29 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=6658 packets=1 bytes=84 src=127.0.0.1 dst=127.0.0.1 type=0 code=0 id=6658 packets=1 bytes=84 mark=0 use=1",
    "icmpv6   58 29 src=::1 dst=::1 type=128 code=0 id=6659 packets=1 bytes=104 src=::1 dst=::1 type=129 code=0 id=6659 packets=1 bytes=104 mark=0 use=1",
    "unknown  4 99 src=10.0.0.1 dst=10.0.0.2 packets=0 bytes=0 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 packets=0 bytes=0 mark=0 use=1",
    "unknown  88 99 src=10.0.0.1 dst=10.0.0.2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 mark=0 use=1",
];

#[test]
fn ct_11_lines_are_those_of_conntrack() {
    for line in LISTED {
        assert_eq!(listed(&item(line), &[]), line);
    }
}

#[test]
fn ct_11_family_and_number_stand_where_conntrack_has_them() {
    let line = "tcp      6 99 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=1001 dport=80 packets=0 bytes=0 [UNREPLIED] src=10.0.0.2 dst=10.0.0.9 sport=80 dport=1001 packets=0 bytes=0 mark=0 use=1 id=3767653030";
    let of = |details: &[Detail]| listed(&item(line), details);
    assert_eq!(of(&[Detail::Id]), line);
    assert_eq!(of(&[Detail::Extended, Detail::Id]), format!("ipv4     2 {line}"));
    let line = "icmpv6   58 99 src=fd00::1 dst=fd00::2 type=128 code=0 id=77 [UNREPLIED] src=fd00::2 dst=fd00::1 type=129 code=0 id=77 mark=0 use=1";
    assert_eq!(listed(&item(line), &[Detail::Extended]), format!("ipv6     10 {line}"));
}

#[test]
fn ct_11_events_are_those_of_conntrack() {
    let listed = "icmp     1 1 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=7304 packets=1 bytes=84 [UNREPLIED] src=127.0.0.1 dst=127.0.0.1 type=0 code=0 id=7304 packets=0 bytes=0";
    assert_eq!(
        event(Kind::New, &item(listed), &[]),
        "    [NEW] icmp     1 1 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=7304 [UNREPLIED] src=127.0.0.1 dst=127.0.0.1 type=0 code=0 id=7304"
    );
    let seen = listed.replace("[UNREPLIED] ", "");
    assert_eq!(
        event(Kind::Update, &item(&seen), &[]),
        " [UPDATE] icmp     1 1 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=7304 src=127.0.0.1 dst=127.0.0.1 type=0 code=0 id=7304"
    );
    let over = TrackedItem { remaining_seconds: 0.0, id: 467_737_271, ..item(&seen) };
    assert_eq!(
        event(Kind::Destroy, &over, &[Detail::Extended, Detail::Id]),
        "[DESTROY] ipv4     2 icmp     1 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=7304 packets=1 bytes=84 src=127.0.0.1 dst=127.0.0.1 type=0 code=0 id=7304 packets=0 bytes=0 id=467737271"
    );
    let deleted = "tcp      6 99 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1007 dport=80 packets=0 bytes=0 src=10.0.0.2 dst=10.0.0.1 sport=80 dport=1007 packets=0 bytes=0 [ASSURED]";
    assert_eq!(event(Kind::Destroy, &item(deleted), &[]), format!("[DESTROY] {deleted}"));
}
