//! Every malformed class has a frame, a reason and a counter (FW-03, FW-04, CT-08).

use super::*;
use crate::packet::testing::fix_v4_checksum;

const POD: &str = "10.151.51.7:40000";
const FAR: &str = "10.151.49.8:80";

/// A UDP, TCP or echo frame from a pod, changed, its header checksum made right again.
fn changed(kind: Kind, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let frame = Frame { link_source: POD_7, link_destination: CALI_LINK, kind, ..Frame::default() };
    let mut bytes = frame.between(POD, FAR).bytes();
    change(&mut bytes);
    fix_v4_checksum(&mut bytes);
    bytes
}

/// As [`changed`], the header checksum left as it is.
fn damaged(kind: Kind, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let frame = Frame { link_source: POD_7, link_destination: CALI_LINK, kind, ..Frame::default() };
    let mut bytes = frame.between(POD, FAR).bytes();
    change(&mut bytes);
    bytes
}

fn with_options(options: &[u8]) -> Vec<u8> {
    changed(Kind::Udp, |bytes| {
        bytes.splice(34..34, options.iter().copied());
        bytes[14] = 0x45 + (options.len() / 4) as u8;
        let total = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
    })
}

fn address(bytes: &mut [u8], at: usize, text: &str) {
    let address: std::net::Ipv4Addr = text.parse().unwrap();
    bytes[at..at + 4].copy_from_slice(&address.octets());
}

/// An IPv6 frame whose first extension header is broken.
fn ipv6(next: u8, behind: &[u8]) -> Vec<u8> {
    let mut bytes = [&CALI_LINK.0[..], &POD_7.0, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    bytes.extend((behind.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend([&[0xfd; 15][..], &[1], &[0xfd; 15], &[2]].concat());
    bytes.extend(behind);
    bytes
}

fn cases() -> Vec<(Reason, &'static str, Vec<u8>)> {
    use Reason::*;
    let from = |source: &'static str| changed(Kind::SYN, |bytes| address(bytes, 26, source));
    let to = |destination: &'static str| changed(Kind::SYN, |bytes| address(bytes, 30, destination));
    vec![
        (FrameTruncated, "within the link header", damaged(Kind::Udp, |b| b.truncate(13))),
        (FrameTruncated, "within the IPv4 header", damaged(Kind::Udp, |b| b.truncate(33))),
        (FrameTruncated, "within the IPv6 header", ipv6(17, &[])[..53].to_vec()),
        (IpVersion, "6 in an IPv4 frame", changed(Kind::Udp, |b| b[14] = 0x65)),
        (IpVersion, "4 in an IPv6 frame", {
            let mut bytes = ipv6(17, &[0; 8]);
            bytes[14] = 0x40;
            bytes
        }),
        (IpHeaderLength, "of 16 bytes", damaged(Kind::Udp, |b| b[14] = 0x44)),
        (IpHeaderLength, "beyond the frame", damaged(Kind::Udp, |b| b[14] = 0x4f)),
        (IpHeaderLength, "an option beyond the header", with_options(&[1, 7, 4, 0])),
        (IpTotalLength, "below the header", changed(Kind::Udp, |b| b[17] = 19)),
        (IpTotalLength, "beyond the frame", changed(Kind::Udp, |b| b[17] += 1)),
        (IpTotalLength, "beyond an IPv6 frame", ipv6(17, &[0; 8])[..60].to_vec()),
        (IpChecksum, "wrong", damaged(Kind::Udp, |b| b[22] ^= 1)),
        (SourceRoute, "loose", with_options(&[131, 3, 4, 0])),
        (SourceRoute, "strict", with_options(&[137, 3, 4, 0])),
        (
            SourceRoute,
            "IPv6, with segments left",
            ipv6(43, &[17, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (Ipv6Extensions, "beyond the frame", ipv6(60, &[17, 9, 0, 0, 0, 0, 0, 0])),
        (
            Ipv6Extensions,
            "two fragment headers",
            ipv6(44, &[44, 0, 0, 1, 0, 0, 0, 1, 17, 0, 0, 1, 0, 0, 0, 1]),
        ),
        (TransportTruncated, "TCP of 19 bytes", changed(Kind::SYN, |b| b[17] = 39)),
        (TransportTruncated, "TCP's data offset of 16", changed(Kind::SYN, |b| b[46] = 0x40)),
        (TransportTruncated, "TCP's data offset beyond the packet", changed(Kind::SYN, |b| b[46] = 0xf0)),
        (TransportTruncated, "UDP of 7 bytes", changed(Kind::Udp, |b| b[17] = 27)),
        (TransportTruncated, "UDP's length of 7", changed(Kind::Udp, |b| b[39] = 7)),
        (TransportTruncated, "UDP's length beyond the packet", changed(Kind::Udp, |b| b[39] += 1)),
        (TransportTruncated, "ICMP of 7 bytes", changed(Kind::Echo, |b| b[17] = 27)),
        (TransportTruncated, "SCTP of 11 bytes", changed(Kind::Udp, |b| (b[17], b[23]) = (31, 132))),
        (TcpFlags, "none", changed(Kind::SYN, |b| b[47] = 0)),
        (TcpFlags, "SYN and FIN", changed(Kind::SYN, |b| b[47] = 3)),
        (TcpFlags, "all", changed(Kind::SYN, |b| b[47] = 0x3f)),
        (TransportChecksum, "TCP", changed(Kind::SYN, |b| b[50] ^= 1)),
        (TransportChecksum, "UDP", changed(Kind::Udp, |b| b[40] ^= 1)),
        (TransportChecksum, "ICMP", changed(Kind::Echo, |b| b[36] ^= 1)),
        (TransportChecksum, "SCTP", {
            // An INIT with a CRC of 1.
            changed(Kind::Udp, |b| {
                b.truncate(38);
                b.extend([&[0; 4][..], &[1, 0, 0, 0], &[1, 0, 0, 20], &[9; 16]].concat());
                (b[17], b[23]) = (52, 132);
            })
        }),
        (Invalid, "a SYN-ACK of no connection", changed(Kind::SYN_ACK, |_| {})),
        (Invalid, "an echo reply of no connection", changed(Kind::EchoReply, |_| {})),
        (MartianSource, "loopback", from("127.0.0.1")),
        (MartianSource, "multicast", from("224.0.0.5")),
        (MartianSource, "broadcast", from("255.255.255.255")),
        (MartianSource, "nobody", from("0.0.0.0")),
        (MartianSource, "the node's own", from("172.16.1.50")),
        (MartianDestination, "loopback", to("127.0.0.1")),
        (MartianDestination, "nobody", to("0.0.0.0")),
    ]
}

#[test]
fn fw_04_every_malformed_class_has_a_frame_a_reason_and_a_counter() {
    let cases = cases();
    for reason in Reason::ALL {
        let word = reason.description();
        let malformed =
            ["(FW-04)", "(CT-08)", "source address that no packet", "destination address that no"];
        if malformed.iter().any(|group| word.contains(group)) {
            assert!(cases.iter().any(|case| case.0 == *reason), "no frame for {reason:?}");
        }
    }
    for (reason, name, bytes) in cases {
        let mut node = seed();
        assert_eq!(node.receive(CALI_7, &bytes), [], "{reason:?}: {name}");
        let dropped: Vec<_> = node.stats().dropped.iter().collect();
        assert_eq!(dropped, [(reason, 1)], "{reason:?}: {name}");
        assert_eq!(node.flows(), 0, "{reason:?}: {name}");
    }
}
