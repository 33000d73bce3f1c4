use etherparse::icmpv6::{Icmpv6PayloadSlice, NdpOptionSlice};
use etherparse::{Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;
use crate::packet::testing::{Parse, packet, pool};

const CALI: LinkAddr = LinkAddr([0xee; 6]);
const POD: LinkAddr = LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]);

/// The question of a node's port who has 2001:db8::8, behind the link header; the checksum is of another making.
const QUESTION: &str = "6000000000203afffe80000000000000eceeeefffeeeeeeeff0200000000000000000001ff000008\
    8700b6bb0000000020010db80000000000000000000000080101eeeeeeeeeeee";
/// The answer, with all flags.
const ANSWER: &str = "6000000000203aff20010db8000000000000000000000008fe80000000000000eceeeefffeeeeeee\
    8800b734e000000020010db800000000000000000000000802012ed668682360";

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn framed(destination: LinkAddr, source: LinkAddr, ip: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x86, 0xdd], ip].concat()
}

fn read(frame: &[u8]) -> Result<Option<Ndp>, Invalid> {
    let mut packet = packet(frame);
    let headers = V6::headers(&mut packet);
    Ndp::new_checked(&packet, &headers)
}

fn question() -> Ndp {
    Ndp::solicitation(v6("fe80::ecee:eeff:feee:eeee"), v6("2001:db8::8"), CALI)
}

fn answer() -> Ndp {
    Ndp {
        kind: Kind::Advertisement(Flags { router: true, solicited: true, overrides: true }),
        source: v6("2001:db8::8"),
        destination: v6("fe80::ecee:eeff:feee:eeee"),
        target: v6("2001:db8::8"),
        link: Some(POD),
    }
}

#[test]
fn nb_01_a_solicitation_and_its_answer_are_written_and_read_byte_by_byte() {
    let group = LinkAddr([0x33, 0x33, 0xff, 0, 0, 8]);
    let sent = question().to_packet(pool(), PortId(1), CALI, group).unwrap().to_vec();
    assert_eq!(sent, framed(group, CALI, &hex(QUESTION)));
    assert_eq!(read(&sent), Ok(Some(question())));
    let sent = answer().to_packet(pool(), PortId(1), POD, CALI).unwrap().to_vec();
    assert_eq!(sent, framed(CALI, POD, &hex(ANSWER)));
    assert_eq!(read(&sent), Ok(Some(answer())));
}

#[test]
fn nb_01_etherparse_reads_what_is_written() {
    let group = group_link(solicited_node(v6("2001:db8::8")));
    let sent = question().to_packet(pool(), PortId(1), CALI, group).unwrap().to_vec();
    let seen = SlicedPacket::from_ethernet(&sent).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(message))) = (&seen.net, &seen.transport)
    else {
        panic!("not ICMPv6: {seen:?}");
    };
    assert_eq!((ip.header().hop_limit(), ip.header().traffic_class()), (255, 0));
    assert!(message.is_checksum_valid(ip.header().source(), ip.header().destination()));
    assert_eq!(message.icmp_type(), Icmpv6Type::NeighborSolicitation);
    let Ok(Icmpv6PayloadSlice::NeighborSolicitation(payload)) = message.payload_slice() else {
        panic!("no solicitation");
    };
    assert_eq!(payload.target_address(), v6("2001:db8::8"));
    let options: Vec<_> = payload.options_iterator().map(Result::unwrap).collect();
    let [NdpOptionSlice::SourceLinkLayerAddress(option)] = &options[..] else { panic!("{options:?}") };
    assert_eq!(option.link_layer_address(), CALI.0);

    let sent = answer().to_packet(pool(), PortId(1), POD, CALI).unwrap().to_vec();
    let seen = SlicedPacket::from_ethernet(&sent).unwrap();
    let Some(TransportSlice::Icmpv6(message)) = &seen.transport else { panic!("not ICMPv6: {seen:?}") };
    let Icmpv6Type::NeighborAdvertisement(header) = message.icmp_type() else { panic!("{message:?}") };
    assert_eq!((header.router, header.solicited, header.r#override), (true, true, true));
}

#[test]
fn nb_01_a_probe_asks_the_neighbour_itself() {
    let probe = Ndp::probe(v6("fe80::1"), v6("2001:db8::8"), CALI);
    assert_eq!((probe.destination, probe.target), (v6("2001:db8::8"), v6("2001:db8::8")));
    assert_eq!(question().destination, v6("ff02::1:ff00:8"));
    assert_eq!(group_link(v6("ff02::1:ff00:8")), LinkAddr([0x33, 0x33, 0xff, 0, 0, 8]));
    assert_eq!(group_link(ALL_NODES), LinkAddr([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(link_local(CALI), v6("fe80::ecee:eeff:feee:eeee"));
    assert_eq!(link_local(LinkAddr([2, 0, 0, 0, 0, 1])), v6("fe80::ff:fe00:1"));
}

/// A message whose checksum is right, between two addresses.
fn message(source: &str, destination: &str, hop_limit: u8, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let (source, destination) = (v6(source), v6(destination));
    bytes[2..4].fill(0);
    let len = bytes.len() as u32;
    let pseudo_header = Sum::of_pseudo_header::<V6>(source, destination, Protocol::ICMPV6, len);
    let checksum = (Sum::of(&bytes) + pseudo_header).complement();
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(POD.0, CALI.0)
        .ipv6(source.octets(), destination.octets(), hop_limit)
        .write(&mut frame, etherparse::IpNumber(58), &bytes)
        .unwrap();
    frame
}

const NODE: &str = "fe80::1";
const PEER: &str = "fe80::2";

/// A solicitation (135) or advertisement (136) of 2001:db8::8 with these options.
fn with_options(icmp_type: u8, options: &[u8]) -> Vec<u8> {
    let fixed = [icmp_type, 0, 0, 0, 0, 0, 0, 0];
    [&fixed[..], &v6("2001:db8::8").octets(), options].concat()
}

#[test]
fn nb_01_what_sections_7_1_1_and_7_1_2_forbid_is_not_read() {
    let good = with_options(135, &[1, 1, 2, 0, 0, 0, 0, 9]);
    assert_eq!(
        read(&message(PEER, NODE, 255, &good)).map(|read| read.unwrap().link),
        Ok(Some(LinkAddr([2, 0, 0, 0, 0, 9])))
    );
    assert_eq!(read(&message(PEER, NODE, 254, &good)), Err(Invalid), "a router was on the way");
    let mut code = good.clone();
    code[1] = 1;
    assert_eq!(read(&message(PEER, NODE, 255, &code)), Err(Invalid));
    let mut wrong_sum = message(PEER, NODE, 255, &good);
    wrong_sum[56] ^= 1;
    assert_eq!(read(&wrong_sum), Err(Invalid));
    assert_eq!(read(&message(PEER, NODE, 255, &good[..20])), Err(Invalid), "shorter than 24 bytes");
    let mut to_group = good.clone();
    to_group[8..24].copy_from_slice(&v6("ff02::1").octets());
    assert_eq!(read(&message(PEER, NODE, 255, &to_group)), Err(Invalid), "the target is a group");
    let zero = with_options(135, &[1, 0, 2, 0, 0, 0, 0, 9]);
    assert_eq!(read(&message(PEER, NODE, 255, &zero)), Err(Invalid), "an option of length 0");
    let long = with_options(135, &[1, 2, 2, 0, 0, 0, 0, 9]);
    assert_eq!(read(&message(PEER, NODE, 255, &long)), Err(Invalid), "an option beyond the end");
    let rest = with_options(135, &[1]);
    assert_eq!(read(&message(PEER, NODE, 255, &rest)), Err(Invalid), "half an option");
}

#[test]
fn nb_01_a_check_for_duplicates_has_no_sender_s_link_address_and_asks_the_group() {
    let plain = with_options(135, &[]);
    let probe = read(&message("::", "ff02::1:ff00:8", 255, &plain)).unwrap().unwrap();
    assert_eq!((probe.source, probe.link), (Ipv6Addr::UNSPECIFIED, None));
    assert_eq!(read(&message("::", NODE, 255, &plain)), Err(Invalid));
    let with_link = with_options(135, &[1, 1, 2, 0, 0, 0, 0, 9]);
    assert_eq!(read(&message("::", "ff02::1:ff00:8", 255, &with_link)), Err(Invalid));
}

#[test]
fn nb_01_an_answer_to_everyone_answers_nobody_s_question() {
    let mut advertisement = with_options(136, &[2, 1, 2, 0, 0, 0, 0, 9]);
    advertisement[4] = OVERRIDE;
    assert!(read(&message(PEER, "ff02::1", 255, &advertisement)).is_ok());
    advertisement[4] = OVERRIDE | SOLICITED;
    assert_eq!(read(&message(PEER, "ff02::1", 255, &advertisement)), Err(Invalid));
    assert!(read(&message(PEER, NODE, 255, &advertisement)).is_ok());
}

#[test]
fn nb_01_options_of_other_types_are_skipped() {
    // A nonce (RFC 3971), then the link address; a target's link address has no place in a solicitation.
    let options = [14, 1, 1, 2, 3, 4, 5, 6, 2, 1, 9, 9, 9, 9, 9, 8, 1, 1, 2, 0, 0, 0, 0, 9];
    let read = read(&message(PEER, NODE, 255, &with_options(135, &options))).unwrap().unwrap();
    assert_eq!(read.link, Some(LinkAddr([2, 0, 0, 0, 0, 9])));
}

#[test]
fn nb_01_a_message_behind_extension_headers_is_not_read_and_others_are_no_solicitation() {
    let mut frame = message(PEER, NODE, 255, &with_options(135, &[]));
    // A fragment header that says "whole" (RFC 6980), in front of the same message.
    frame.splice(54..54, [58, 0, 0, 0, 0, 0, 0, 7]);
    frame[18..20].copy_from_slice(&32u16.to_be_bytes());
    frame[20] = 44;
    assert_eq!(read(&frame), Err(Invalid));
    let advertised = [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(read(&message(PEER, NODE, 255, &advertised)), Ok(None));
    for (icmp_type, expected) in [(132, false), (133, true), (137, true), (138, false), (128, false)] {
        let mut packet = packet(&message(PEER, NODE, 255, &with_options(icmp_type, &[])));
        let headers = V6::headers(&mut packet);
        assert_eq!(is_discovery(&headers), expected, "{icmp_type}");
    }
}
