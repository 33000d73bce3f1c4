use std::fs::File;
use std::io::BufWriter;
use std::process::Command;

use super::*;
use crate::packet::testing::{Ends, frame};
use crate::packet::{Packet, PortId};
use crate::pool::Pool;
use crate::port::pcap::{PcapReader, PcapWriter};
use crate::time::Instant;

fn selects(filter: &str, frame: &[u8]) -> bool {
    let filter: Filter = filter.parse().unwrap_or_else(|error| panic!("{filter}: {error}"));
    filter.selects(Direction::In, frame, frame.len())
}

/// ARP, all protocols in both families, fragments, and what is cut off.
fn frames() -> Vec<Vec<u8>> {
    let v4 = |from: &str, from_port, to: &str, to_port| Ends::new(from, from_port, to, to_port);
    let mut frames = vec![
        frame(v4("10.0.0.1", 4000, "10.0.0.2", 80), Protocol::TCP, b"data"),
        frame(v4("10.0.0.2", 80, "10.0.0.1", 4000), Protocol::TCP, &[7; 400]),
        frame(v4("10.0.0.1", 4000, "10.150.18.86", 8080), Protocol::TCP, b""),
        frame(v4("10.0.0.1", 53, "172.16.1.50", 53), Protocol::UDP, b"query"),
        frame(v4("192.168.7.9", 5000, "10.0.0.1", 9999), Protocol::SCTP, b"chunk"),
        frame(v4("10.0.0.1", 7, "10.0.0.2", 1), Protocol::ICMP, b"ping"),
        frame(Ends::new("fd00::1", 4000, "fd00::2", 443), Protocol::TCP, b"data"),
        frame(Ends::new("fd00::2", 53, "fd00:1::9", 5353), Protocol::UDP, b"data"),
        frame(Ends::new("fd00::1", 7, "fd00::2", 1), Protocol::ICMPV6, b"ping"),
    ];
    let arp = |sender: [u8; 4], target: [u8; 4]| {
        let mut arp =
            vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([2, 0, 0, 0, 0, 9]);
        arp.extend(sender);
        arp.extend([0; 6]);
        arp.extend(target);
        arp
    };
    frames.push(arp([10, 0, 0, 1], [10, 0, 0, 2]));
    frames.push(arp([10, 0, 0, 9], [10, 150, 18, 86]));
    // A fragment that is not the first: what lies where the ports would be is payload.
    let mut fragment = frame(v4("10.0.0.1", 4000, "10.0.0.2", 80), Protocol::UDP, b"data");
    fragment[20..22].copy_from_slice(&[0x20, 0x05]);
    frames.push(fragment);
    // LLDP, to a group.
    let mut lldp = vec![0x01, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 9, 0x88, 0xcc];
    lldp.resize(60, 1);
    frames.push(lldp);
    frames
}

/// Expressions that libpcap has as well, with the same meaning for these frames.
const SHARED: [&str; 48] = [
    "ip",
    "ip6",
    "arp",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "not ip",
    "! arp",
    "host 10.0.0.1",
    "src host 10.0.0.1",
    "dst 10.0.0.1",
    "src 10.0.0.2 or dst 10.0.0.2",
    "src or dst host 10.0.0.1",
    "src and dst host 10.0.0.1",
    "ip host 10.0.0.1",
    "arp host 10.0.0.1",
    "net 10.150.0.0/16",
    "dst net 10.0.0.0/8",
    "src net 0.0.0.0/0",
    "host fd00::1",
    "dst net fd00:1::/32",
    "ip6 host fd00::2",
    "port 80",
    "tcp port 80",
    "udp port 53",
    "src port 80",
    "tcp dst port 443",
    "sctp port 9999",
    "portrange 79-81",
    "udp portrange 5000-6000",
    "tcp src portrange 4000-4000",
    "port 80 or 443",
    "host 10.0.0.1 and port 80 or 53",
    "tcp or udp and host 10.0.0.2",
    "tcp or ( udp and host 10.0.0.2 )",
    "not host 10.0.0.1 and tcp",
    "not ( host 10.0.0.1 and tcp )",
    "ip proto 132",
    "ip proto 17",
    "ether proto 0x88cc",
    "ether host 02:00:00:00:00:01",
    "ether src 02:00:00:00:00:09",
    "ether broadcast",
    "ether multicast",
    "less 60",
    "greater 100",
];

/// Frames of the capture `input` that tcpdump lets through.
fn tcpdump(directory: &std::path::Path, filter: &str, number: usize) -> Vec<Vec<u8>> {
    let (input, output) = (directory.join("in.pcap"), directory.join(format!("out-{number}.pcap")));
    let ran = Command::new("tcpdump").arg("-r").arg(&input).arg("-w").arg(&output).arg(filter).output();
    let ran = ran.expect("tcpdump (Debian: apt install tcpdump) judges the same frames");
    assert!(ran.status.success(), "{filter}: {}", String::from_utf8_lossy(&ran.stderr));
    let pool = Pool::new(64).unwrap();
    let mut reader = PcapReader::new(File::open(output).unwrap()).unwrap();
    let mut frames = Vec::new();
    while let Some((_, packet)) = reader.next_frame(pool, PortId(0)).unwrap() {
        frames.push(packet.to_vec());
    }
    frames
}

#[test]
fn the_same_frames_are_meant_as_by_tcpdump() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::new(64).unwrap();
    let frames = frames();
    let file = BufWriter::new(File::create(directory.path().join("in.pcap")).unwrap());
    let mut writer = PcapWriter::new(file).unwrap();
    for frame in &frames {
        let packet = Packet::copy_of(pool, PortId(0), frame).unwrap();
        writer.write(Instant::from_secs(1), &packet).unwrap();
    }
    writer.finish().unwrap();
    let mut wrong = Vec::new();
    for (number, filter) in SHARED.into_iter().enumerate() {
        let ours: Vec<_> = frames.iter().filter(|frame| selects(filter, frame)).cloned().collect();
        let theirs = tcpdump(directory.path(), filter, number);
        // One that means all of them, or none, would compare nothing.
        let tells = (1..frames.len()).contains(&ours.len()) || filter.starts_with("src and dst");
        if ours != theirs || !tells {
            wrong.push(format!("{filter}: {} frames, tcpdump {}", ours.len(), theirs.len()));
        }
    }
    assert_eq!(wrong, [""; 0]);
    // libpcap wants a keyword before the first address.
    assert!(frames.iter().all(|frame| selects("10.0.0.1", frame) == selects("host 10.0.0.1", frame)));
}

#[test]
fn directions_and_the_empty_filter_are_not_the_frame_s() {
    let frame = &frames()[0];
    let judged = |filter: &str, direction| filter.parse::<Filter>().unwrap().selects(direction, frame, 60);
    assert!(judged("inbound", Direction::In) && !judged("inbound", Direction::Out));
    assert!(judged("outbound and tcp", Direction::Out) && !judged("outbound", Direction::In));
    assert!(judged("", Direction::In) && judged("   ", Direction::Out));
}

#[test]
fn behind_extension_headers_the_ports_are_found() {
    let plain = frame(Ends::new("fd00::1", 4000, "fd00::2", 443), Protocol::TCP, b"data");
    let mut extended = plain[..54].to_vec();
    extended[20] = 0; // hop by hop, then destination options, then TCP
    extended.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend(&plain[54..]);
    assert!(selects("tcp port 443 and ip6 proto tcp", &extended));
    let mut fragment = plain[..54].to_vec();
    fragment[20] = 44;
    fragment.extend([6, 0, 0, 8, 0, 0, 0, 1]);
    fragment.extend(&plain[54..]);
    assert!(selects("tcp and not port 443", &fragment));
    fragment[56..58].copy_from_slice(&[0, 1]); // the first one
    assert!(selects("tcp port 443", &fragment));
}

#[test]
fn what_is_cut_off_has_no_ports_and_no_addresses() {
    let whole = frame(Ends::new("10.0.0.1", 4000, "10.0.0.2", 80), Protocol::TCP, b"data");
    for len in 0..whole.len() {
        let cut = &whole[..len];
        assert_eq!(selects("host 10.0.0.2", cut), len >= 34, "{len}");
        assert_eq!(selects("port 80", cut), len >= 38, "{len}");
        assert_eq!(selects("ip", cut), len >= 14, "{len}");
    }
}

#[test]
fn what_is_not_understood_is_named() {
    let refused = |filter: &str| filter.parse::<Filter>().unwrap_err().to_string();
    assert_eq!(refused("port http"), "port http: is not a number from 0 to 65535");
    assert_eq!(refused("port 70000"), "port 70000: is not a number from 0 to 65535");
    assert_eq!(refused("portrange 9-8"), "portrange 9-8: ends before it begins");
    assert_eq!(refused("net 10.0.0.1/8"), "net 10.0.0.1/8: has bits behind its prefix");
    assert_eq!(refused("net 10.0.0.0/33"), "net 10.0.0.0/33: a prefix of its family has at most 32 bits");
    assert_eq!(refused("net 10.0.0.0"), "net 10.0.0.0: is not a prefix such as 10.96.0.0/12");
    assert_eq!(
        refused("vlan"),
        "host vlan: is not an IP address (nor a keyword of pcap-filter that is known here)"
    );
    assert_eq!(refused("ip host fd00::1"), "ip host fd00::1: is an address of the other family");
    assert_eq!(refused("tcp host 10.0.0.1"), "host 10.0.0.1: has no meaning behind tcp");
    assert_eq!(refused("( tcp"), "a parenthesis is not closed");
    assert_eq!(refused("tcp )"), "): expected `and` or `or` before it");
    assert_eq!(refused("tcp udp"), "udp: expected `and` or `or` before it");
    assert_eq!(refused("tcp and"), "and: something is missing behind it");
    assert_eq!(refused("host"), "host: something is missing behind it");
    assert_eq!(refused("ether"), "ether: expected host, src, dst, proto, broadcast or multicast behind it");
    assert_eq!(
        refused("ether host 1.2.3.4"),
        "ether host 1.2.3.4: is not a link address such as 02:00:00:00:00:01"
    );
    assert_eq!(refused("or tcp"), "or: expected a value before it");
    assert_eq!(refused(&"(".repeat(100)), "more than 32 parentheses and negations within each other");
    assert_eq!(refused(&"x".repeat(5000)), "a filter has at most 4096 bytes, this one 5000");
    // As deep as is allowed, and as long.
    assert!(format!("{}tcp{}", "(".repeat(32), ")".repeat(32)).parse::<Filter>().is_ok());
    assert!(format!("tcp{}", " or tcp".repeat(500)).parse::<Filter>().is_ok());
}
