use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, PacketBuilder};
use proptest::prelude::*;

use super::*;
use crate::packet::testing::{Ends, Parse, Step, frame, packet};
use crate::packet::{Address, V4, V6};

/// The tuple of a frame that [`frame`] makes.
fn key<A: Family>(ends: Ends, protocol: Protocol) -> FlowKey<A> {
    let request = if A::VERSION == 4 { 8 } else { 128 };
    let (source_port, destination_port) = match protocol {
        protocol if protocol.has_ports() => (ends.source_port, ends.destination_port),
        protocol if protocol == A::ICMP => (ends.source_port, request << 8),
        _ => (0, 0),
    };
    FlowKey {
        source: A::Addr::from_ip(ends.source).unwrap(),
        destination: A::Addr::from_ip(ends.destination).unwrap(),
        source_port,
        destination_port,
        protocol,
    }
}

/// A correct ICMP error of any type and code from `source` to `destination` that quotes `quoted`.
fn error(kind: (u8, u8), rest: [u8; 4], source: &str, destination: &str, quoted: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (type_u8, code_u8, bytes5to8) = (kind.0, kind.1, rest);
    if source.contains(':') {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let icmp = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
        link.ipv6(address(source), address(destination), 60).icmpv6(icmp).write_frame(&mut frame, quoted);
    } else {
        let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let icmp = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
        link.ipv4(address(source), address(destination), 60).icmpv4(icmp).write_frame(&mut frame, quoted);
    }
    frame
}

/// Translates an error as the entry does that turns packets which answer `wire` into such that answer `sent`.
fn translated<A: Parse>(error: &[u8], wire: &FlowKey<A>, sent: &FlowKey<A>) -> Vec<u8> {
    let mut packet = packet(error);
    let headers = A::headers(&mut packet);
    let quote = Quote::read(&packet, &headers).expect("a quote");
    assert_eq!(quote.key, *wire);
    assert!(quote.is_translatable());
    quote.translate(&wire.reply().rewrite_to(&sent.reply()), &mut packet, &headers);
    packet.to_vec()
}

/// Where the quote of a frame begins.
fn quote_at<A: Family>() -> usize {
    if A::VERSION == 4 { 14 + 20 + 8 } else { 14 + 40 + 8 }
}

const ROUTER_4: &str = "192.0.2.254";
const ROUTER_6: &str = "2001:db8::fe";

#[test]
fn nat_07_what_a_backend_refuses_the_service_refuses() {
    let asked = |to, port| frame(Ends::new("198.51.100.7", 40000, to, port), Protocol::UDP, b"question");
    let (wire, sent) = (asked("10.0.0.2", 5353), asked("10.96.0.10", 53));
    let keys = (
        key::<V4>(Ends::new("198.51.100.7", 40000, "10.0.0.2", 5353), Protocol::UDP),
        key::<V4>(Ends::new("198.51.100.7", 40000, "10.96.0.10", 53), Protocol::UDP),
    );
    let about = |source, quoted: &[u8]| error((3, 3), [0; 4], source, "198.51.100.7", quoted);
    let seen = translated(&about("10.0.0.2", &wire[14..]), &keys.0, &keys.1);
    assert_eq!(seen, about("10.96.0.10", &sent[14..]));
    // From a router on the way: as Linux has it, the service speaks as well.
    let seen = translated(&about(ROUTER_4, &wire[14..]), &keys.0, &keys.1);
    assert_eq!(seen, about("10.96.0.10", &sent[14..]));
}

#[test]
fn nat_07_an_error_about_a_masqueraded_packet_keeps_its_source_and_its_mtu() {
    let asked = |from, port| frame(Ends::new(from, port, "2001:db8:5::5", 443), Protocol::TCP, b"data");
    let (wire, sent) = (asked("2001:db8::1", 50000), asked("fd00::7", 40000));
    let keys = (
        key::<V6>(Ends::new("2001:db8::1", 50000, "2001:db8:5::5", 443), Protocol::TCP),
        key::<V6>(Ends::new("fd00::7", 40000, "2001:db8:5::5", 443), Protocol::TCP),
    );
    let mtu = 1280u32.to_be_bytes();
    let seen = translated(&error((2, 0), mtu, ROUTER_6, "2001:db8::1", &wire[14..]), &keys.0, &keys.1);
    assert_eq!(seen, error((2, 0), mtu, ROUTER_6, "fd00::7", &sent[14..]));
}

#[test]
fn nat_07_only_the_port_changed_and_the_source_changes_with_it() {
    // Linux asks whether the tuple was changed, not the address.
    let asked = |port| frame(Ends::new("198.51.100.7", 40000, "10.0.0.2", port), Protocol::TCP, b"");
    let keys =
        [8080, 80].map(|port| key::<V4>(Ends::new("198.51.100.7", 40000, "10.0.0.2", port), Protocol::TCP));
    let about = |source, quoted: &[u8]| error((11, 0), [0; 4], source, "198.51.100.7", quoted);
    let seen = translated(&about(ROUTER_4, &asked(8080)[14..]), &keys[0], &keys[1]);
    assert_eq!(seen, about("10.0.0.2", &asked(80)[14..]));
}

#[test]
fn nat_07_options_and_extension_headers_in_the_quote_are_walked() {
    let ends = |to, port| Ends::new("198.51.100.7", 40000, to, port);
    let with_options = |to, port| {
        let mut bytes = frame(ends(to, port), Protocol::UDP, b"question");
        bytes.splice(34..34, [7, 7, 4, 0, 0, 0, 0, 0]); // record route
        bytes[14] = 0x47;
        let len = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
        crate::packet::testing::fix_v4_checksum(&mut bytes);
        bytes
    };
    let keys =
        [("10.0.0.2", 5353), ("10.96.0.10", 53)].map(|(to, port)| key::<V4>(ends(to, port), Protocol::UDP));
    let about = |source, quoted: &[u8]| error((12, 0), [21, 0, 0, 0], source, "198.51.100.7", quoted);
    let seen = translated(&about("10.0.0.2", &with_options("10.0.0.2", 5353)[14..]), &keys[0], &keys[1]);
    assert_eq!(seen, about("10.96.0.10", &with_options("10.96.0.10", 53)[14..]));

    let ends = |to, port| Ends::new("2001:db8::7", 40000, to, port);
    let extended = |to, port| {
        let mut bytes = frame(ends(to, port), Protocol::UDP, b"question");
        let next = std::mem::replace(&mut bytes[20], 0);
        // Hop-by-hop options, destination options, and the header of a first fragment.
        let options = [60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, next, 0, 0, 1, 0, 0, 0, 9];
        bytes.splice(54..54, options);
        let len = (bytes.len() - 54) as u16;
        bytes[18..20].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    let keys =
        [("fd00::2", 5353), ("fd96::10", 53)].map(|(to, port)| key::<V6>(ends(to, port), Protocol::UDP));
    let about = |source, quoted: &[u8]| error((4, 1), [0, 0, 0, 6], source, "2001:db8::7", quoted);
    let seen = translated(&about("fd00::2", &extended("fd00::2", 5353)[14..]), &keys[0], &keys[1]);
    assert_eq!(seen, about("fd96::10", &extended("fd96::10", 53)[14..]));
}

#[test]
fn nat_02_a_quoted_udp_without_checksum_stays_without() {
    let ends = |to, port| Ends::new("198.51.100.7", 40000, to, port);
    let asked = |to, port| {
        let mut bytes = frame(ends(to, port), Protocol::UDP, b"question");
        bytes[40..42].fill(0);
        bytes
    };
    let keys =
        [("10.0.0.2", 5353), ("10.96.0.10", 53)].map(|(to, port)| key::<V4>(ends(to, port), Protocol::UDP));
    let about = |source, quoted: &[u8]| error((3, 3), [0; 4], source, "198.51.100.7", quoted);
    let seen = translated(&about("10.0.0.2", &asked("10.0.0.2", 5353)[14..]), &keys[0], &keys[1]);
    assert_eq!(seen, about("10.96.0.10", &asked("10.96.0.10", 53)[14..]));
}

/// What is read of an error that quotes the first `len` bytes of a packet.
fn read<A: Parse>(source: &str, destination: &str, quoted: &[u8]) -> Option<Quote<A>> {
    let mut packet = packet(&error((3, 3), [0; 4], source, destination, quoted));
    let headers = A::headers(&mut packet);
    Quote::read(&packet, &headers)
}

#[test]
fn nat_07_every_length_of_a_quote_is_read_or_refused() {
    let all = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP, Protocol(47)];
    for protocol in all {
        let whole = frame(Ends::new("198.51.100.7", 40000, "10.0.0.2", 80), protocol, &[7; 40]);
        let least = match protocol {
            Protocol::ICMP => 28,
            Protocol(47) => 20,
            _ => 24,
        };
        for len in 0..=whole.len() - 14 {
            let quote = read::<V4>(ROUTER_4, "198.51.100.7", &whole[14..][..len]);
            assert_eq!(quote.is_some(), len >= least, "{protocol} {len}");
            let translatable = quote.is_some_and(|quote| quote.is_translatable());
            assert_eq!(
                translatable,
                len >= if protocol.has_ports() { 28 } else { least },
                "{protocol} {len}"
            );
        }
    }
    let whole = frame(Ends::new("2001:db8::7", 40000, "fd00::2", 80), Protocol::TCP, b"");
    for len in 0..=whole.len() - 14 {
        let quote = read::<V6>(ROUTER_6, "2001:db8::7", &whole[14..][..len]);
        assert_eq!(quote.is_some(), len >= 44, "{len}");
    }
}

#[test]
fn nat_07_a_quote_that_makes_no_sense_is_none() {
    let whole = frame(Ends::new("198.51.100.7", 40000, "10.0.0.2", 80), Protocol::TCP, b"");
    let with = |at: usize, value: u8| {
        let mut quoted = whole[14..].to_vec();
        quoted[at] = value;
        read::<V4>(ROUTER_4, "198.51.100.7", &quoted)
    };
    assert!(with(0, 0x45).is_some());
    for first in [0x00, 0x35, 0x44, 0x40, 0x65, 0xf5] {
        assert!(with(0, first).is_none(), "{first:#x}: version or header length");
    }
    assert!(with(0, 0x4f).is_none(), "a header beyond the end");
    assert!(with(7, 1).is_none(), "a fragment but the first");
    assert!(with(6, 0x20).is_some(), "a first fragment");
    for len in [0, 19, 255] {
        let mut quoted = whole[14..].to_vec();
        quoted[2..4].copy_from_slice(&[0, len]);
        assert!(read::<V4>(ROUTER_4, "198.51.100.7", &quoted).is_some(), "lengths are not judged");
    }
    let whole = frame(Ends::new("2001:db8::7", 40000, "fd00::2", 80), Protocol::TCP, b"");
    for (next, inserted) in [
        (44, vec![6, 0, 0, 8, 0, 0, 0, 1]),  // a fragment but the first
        (43, vec![6, 0, 0, 1, 0, 0, 0, 0]),  // segments left
        (0, vec![6, 200, 0, 0, 0, 0, 0, 0]), // beyond the end
    ] {
        let mut quoted = whole[14..].to_vec();
        quoted[6] = next;
        quoted.splice(40..40, inserted);
        assert!(read::<V6>(ROUTER_6, "2001:db8::7", &quoted).is_none(), "{next}");
    }
}

proptest! {
    /// Any bytes as a quote: never a panic, neither in reading nor in translating.
    #[test]
    fn nat_07_any_quote_is_read_translated_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..120), first in prop_oneof![Just(0x45u8), any::<u8>()],
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(132), any::<u8>()],
    ) {
        let mut quoted = bytes;
        if quoted.len() > 9 {
            (quoted[0], quoted[9]) = (first, protocol);
        }
        let before = error((3, 1), [0; 4], ROUTER_4, "198.51.100.7", &quoted);
        let mut packet = packet(&before);
        let headers = V4::headers(&mut packet);
        if let Some(quote) = Quote::read(&packet, &headers) {
            let to = FlowKey { source: "10.9.9.9".parse().unwrap(), source_port: 99, ..quote.key };
            quote.translate(&quote.key.reply().rewrite_to(&to.reply()), &mut packet, &headers);
        }
        prop_assert_eq!(packet.len(), before.len());
    }
}

/// Two tuples of one protocol, the packet's data, how much of it is quoted, and whether a router speaks.
type Case = (Ends, Ends, Protocol, Vec<u8>, usize, bool);

fn cases<A: Family>() -> impl Strategy<Value = Case> {
    let address = any::<u128>().prop_map(|bits| {
        // No address that means something else.
        let bits = if A::VERSION == 4 { 0x0a00_0001 | bits & 0xff_ffff } else { 0xfd << 120 | bits >> 8 };
        A::Addr::from_bits(bits).into()
    });
    let ends = || (address.clone(), address.clone(), 1..u16::MAX, 1..u16::MAX);
    let protocol =
        proptest::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP, A::ICMP, Protocol(47)]);
    let data = proptest::collection::vec(any::<u8>(), 12..64);
    (ends(), ends(), protocol, data, 8..100usize, any::<bool>(), 0..4u8).prop_map(
        |(wire, sent, protocol, data, quoted, router, same)| {
            let ends = |(source, destination, source_port, destination_port)| Ends {
                source,
                destination,
                source_port,
                destination_port,
            };
            let (wire, mut sent) = (ends(wire), ends(sent));
            // Source or destination translation alone, as well as both.
            if same == 1 {
                (sent.source, sent.source_port) = (wire.source, wire.source_port);
            }
            if same == 2 {
                (sent.destination, sent.destination_port) = (wire.destination, wire.destination_port);
            }
            if !protocol.has_ports() {
                sent.destination_port = wire.destination_port; // the sequence number, or data
            }
            if protocol == Protocol(47) {
                sent.source_port = wire.source_port;
            }
            // A checksum of which half is quoted can be right for nobody.
            let cut = match protocol {
                Protocol::TCP => 17..18,
                Protocol::SCTP => 9..12,
                _ => 0..0,
            };
            let quoted = if cut.contains(&quoted) { cut.end } else { quoted };
            (wire, sent, protocol, data, quoted, router)
        },
    )
}

fn holds<A: Parse>((wire, sent, protocol, data, quoted, router): Case) -> Result<(), TestCaseError> {
    let (l4, kind) = if A::VERSION == 4 { (20, (11, 0)) } else { (40, (3, 0)) };
    let quote = |ends| {
        let whole = frame(ends, protocol, &data);
        whole[14..whole.len().min(14 + l4 + quoted)].to_vec()
    };
    let keys = (key::<A>(wire, protocol), key::<A>(sent, protocol));
    let ends_differ = if protocol.has_ports() {
        (wire.destination, wire.destination_port) != (sent.destination, sent.destination_port)
    } else {
        wire.destination != sent.destination
    };
    let router_address = if A::VERSION == 4 { ROUTER_4 } else { ROUTER_6 };
    let (from, to) = if router && ends_differ {
        (router_address.to_string(), sent.destination.to_string())
    } else if router {
        (router_address.to_string(), router_address.to_string())
    } else {
        (wire.destination.to_string(), sent.destination.to_string())
    };
    let came = error(kind, [0; 4], &from, &wire.source.to_string(), &quote(wire));
    let expected = error(kind, [0; 4], &to, &sent.source.to_string(), &quote(sent));
    let left = translated::<A>(&came, &keys.0, &keys.1);
    prop_assert_eq!(&left, &expected);
    prop_assert_eq!(&left[..14], &came[..14]);
    prop_assert_eq!(left.len(), quote_at::<A>() + quote(wire).len());
    if !router || !ends_differ {
        prop_assert_eq!(translated::<A>(&left, &keys.1, &keys.0), came);
    }
    Ok(())
}

proptest! {
    /// NAT-07: what leaves is what etherparse makes afresh from the other addresses, every checksum included; and
    /// translated back it is what came.
    #[test]
    fn nat_07_translation_of_errors_is_exact_and_the_way_back_undoes_it(case in cases::<V4>()) {
        holds::<V4>(case)?;
    }

    #[test]
    fn nat_07_translation_of_errors_is_exact_for_ipv6(case in cases::<V6>()) {
        holds::<V6>(case)?;
    }
}

#[test]
fn etherparse_agrees_that_errors_of_these_tests_are_sound() {
    let quoted = frame(Ends::new("198.51.100.7", 1, "10.0.0.2", 2), Protocol::TCP, b"");
    let bytes = error((3, 3), [0; 4], ROUTER_4, "198.51.100.7", &quoted[14..]);
    let (header, rest) = Icmpv4Header::from_slice(&bytes[34..]).unwrap();
    assert_eq!(header.checksum, header.icmp_type.calc_checksum(rest));
    let bytes = error((1, 4), [0; 4], ROUTER_6, "2001:db8::7", &quoted[14..]);
    let (header, rest) = Icmpv6Header::from_slice(&bytes[54..]).unwrap();
    let (from, to) = (
        ROUTER_6.parse::<std::net::Ipv6Addr>().unwrap(),
        "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap(),
    );
    assert_eq!(header.icmp_type.calc_checksum(from.octets(), to.octets(), rest), Ok(header.checksum));
}
