//! A frame in a few words, for lines of people.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// Protocol, addresses, ports and TCP flags of a frame, as far as its bytes tell.
pub fn describe(frame: &[u8]) -> String {
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(frame) else {
        return format!("{} bytes that are no Ethernet frame", frame.len());
    };
    let (source, destination, protocol): (IpAddr, IpAddr, u8) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number.0)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number.0)
        }
        Some(LaxNetSlice::Arp(_)) => return arp(frame),
        None => {
            let ether_type = frame.get(12..14).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]));
            return format!("ethertype {ether_type:#06x}");
        }
    };
    let ends = |name: &str, from: u16, to: u16, more: &str| {
        let (from, to) = (SocketAddr::new(source, from), SocketAddr::new(destination, to));
        format!("{name} {from} > {to}{more}")
    };
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags =
                [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.psh(), 'P'), (tcp.ack(), '.')];
            let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
            ends("tcp", tcp.source_port(), tcp.destination_port(), &format!(" [{flags}]"))
        }
        Some(TransportSlice::Udp(udp)) => ends("udp", udp.source_port(), udp.destination_port(), ""),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            format!("icmp {source} > {destination} type {kind} code {code}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            format!("icmp6 {source} > {destination} type {kind} code {code}")
        }
        _ => format!("{} {source} > {destination}", pollux_dataplane::packet::Protocol(protocol)),
    }
}

/// Of Ethernet and IPv4, which is all there is.
fn arp(frame: &[u8]) -> String {
    let address =
        |at: usize| frame.get(at..at + 4).map(|four| IpAddr::from([four[0], four[1], four[2], four[3]]));
    match (frame.get(20..22), address(28), address(38)) {
        (Some([0, 1]), Some(sender), Some(target)) => format!("arp who-has {target} tell {sender}"),
        (Some([0, 2]), Some(sender), _) => format!("arp reply {sender}"),
        _ => "arp".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::describe;

    #[test]
    fn a_line_says_protocol_ends_and_flags() {
        let link = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        let tcp = link().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(4000, 80, 1, 2).syn().ack(7);
        tcp.write(&mut frame, &[1; 40]).unwrap();
        assert_eq!(describe(&frame), "tcp 10.0.0.1:4000 > 10.0.0.2:80 [S.]");
        // As much of it as a snap length leaves.
        assert_eq!(describe(&frame[..60]), "tcp 10.0.0.1:4000 > 10.0.0.2:80 [S.]");
        let mut frame = Vec::new();
        let source = std::net::Ipv6Addr::LOCALHOST.octets();
        link().ipv6(source, source, 64).udp(53, 5353).write(&mut frame, &[]).unwrap();
        assert_eq!(describe(&frame), "udp [::1]:53 > [::1]:5353");
        let mut frame = Vec::new();
        link()
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .icmpv4_echo_request(1, 2)
            .write(&mut frame, &[])
            .unwrap();
        assert_eq!(describe(&frame), "icmp 10.0.0.1 > 10.0.0.2 type 8 code 0");
    }

    #[test]
    fn what_is_not_ip_is_named_by_its_type() {
        let mut arp = vec![0xff; 12];
        arp.extend([
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9,
        ]);
        assert_eq!(describe(&arp), "arp who-has 10.0.0.9 tell 10.0.0.1");
        arp[21] = 2;
        assert_eq!(describe(&arp), "arp reply 10.0.0.1");
        let mut lldp = vec![1; 60];
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(describe(&lldp), "ethertype 0x88cc");
        assert_eq!(describe(&[1, 2, 3]), "3 bytes that are no Ethernet frame");
    }
}
