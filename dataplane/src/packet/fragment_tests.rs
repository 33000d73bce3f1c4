use proptest::prelude::*;

use super::*;
use crate::packet::testing::{Ends, Parse, fix_v4_checksum, fragments, frame, packet, pool, reassembled};
use crate::packet::{ChecksumState, V4, V6};

fn ends4() -> Ends {
    Ends::new("198.51.100.7", 40000, "10.96.0.10", 53)
}

fn ends6() -> Ends {
    Ends::new("2001:db8::7", 40000, "fd00::10", 53)
}

/// A UDP frame of IPv4 that may be cut.
fn long(payload: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..payload).map(|i| (i % 251) as u8).collect();
    let mut frame = frame(ends4(), Protocol::UDP, &bytes);
    frame[18..22].copy_from_slice(&[0x12, 0x34, 0, 0]);
    fix_v4_checksum(&mut frame);
    frame
}

fn cut_bytes(bytes: &[u8], mtu: u32) -> Result<Vec<Vec<u8>>, Reason> {
    let mut packet = packet(bytes);
    let headers = V4::headers(&mut packet);
    let mut pieces = Vec::new();
    let said = cut(packet, &headers, mtu, &mut |piece| pieces.push(piece.to_vec()));
    let count = said.map_err(|(_, reason)| reason)?;
    assert_eq!(count as usize, pieces.len());
    Ok(pieces)
}

fn piece4(bytes: &[u8]) -> Piece<V4> {
    let mut packet = packet(bytes);
    let headers = V4::headers(&mut packet);
    Piece::of(&packet, &headers).unwrap()
}

fn piece6(bytes: &[u8]) -> Piece<V6> {
    let mut packet = packet(bytes);
    let headers = V6::headers(&mut packet);
    Piece::of(&packet, &headers).unwrap()
}

#[test]
fn nat_08_a_fragment_says_its_place() {
    let pieces = fragments(&long(2000), 800, 0x1234);
    let places: Vec<_> =
        pieces.iter().map(|bytes| piece4(bytes)).map(|p| (p.start, p.end, p.last, p.is_first())).collect();
    assert_eq!(places, [(0, 800, false, true), (800, 1600, false, false), (1600, 2008, true, false)]);
    let id = piece4(&pieces[1]).datagram;
    assert_eq!((id.identification, id.protocol), (0x1234, Protocol::UDP));
    assert_eq!(
        (id.source.to_string(), id.destination.to_string()),
        ("198.51.100.7".into(), "10.96.0.10".into())
    );

    let pieces = fragments(&frame(ends6(), Protocol::UDP, &[7; 2000]), 1000, 0xdead_beef);
    let places: Vec<_> = pieces.iter().map(|bytes| piece6(bytes)).map(|p| (p.start, p.end, p.last)).collect();
    assert_eq!(places, [(0, 1000, false), (1000, 2000, false), (2000, 2008, true)]);
    let id = piece6(&pieces[2]).datagram;
    assert_eq!((id.identification, id.protocol), (0xdead_beef, Protocol(0)), "what follows is no part of it");
    // Other extension headers before and behind the fragment header do not hide it.
    let mut first = pieces[0].clone();
    first.splice(54..54, [44, 0, 1, 4, 0, 0, 0, 0]);
    first[20] = 60;
    first.splice(70..70, [17, 0, 1, 4, 0, 0, 0, 0]);
    first[62] = 60;
    first[18..20].copy_from_slice(&1024u16.to_be_bytes());
    let piece = piece6(&first);
    assert_eq!((piece.start, piece.end, piece.datagram), (0, 1008, id));
}

#[test]
fn nat_08_what_no_datagram_can_have_is_told() {
    let possible = |start: u32, end: u32, last| {
        let id = piece4(&fragments(&long(800), 400, 1)[0]).datagram;
        Piece::<V4> { datagram: id, start, end, last, needs_length: false, headers: 20 }.is_possible()
    };
    assert!(possible(0, 8, false) && possible(8, 9, true) && possible(65_504, 65_515, true));
    assert!(!possible(8, 8, true), "empty");
    assert!(!possible(0, 12, false), "no multiple of 8, and not the last");
    assert!(!possible(65_504, 65_516, true), "with its header, too long");
    let needs_length = |protocol, number: usize| {
        let mut packet = packet(&fragments(&frame(ends6(), protocol, &[0; 900]), 400, 1)[number]);
        let headers = V6::headers(&mut packet);
        Piece::of(&packet, &headers).unwrap().needs_length
    };
    assert!(needs_length(Protocol::SCTP, 0) && needs_length(Protocol::TCP, 0));
    assert!(!needs_length(Protocol::SCTP, 1) && !needs_length(Protocol::UDP, 0));
}

#[test]
fn fw_02_a_long_packet_is_cut_as_rfc_791_says() {
    let whole = long(3000);
    let pieces = cut_bytes(&whole, 1500).unwrap();
    let header = |piece: &[u8]| {
        let word = |at: usize| u16::from_be_bytes([piece[at], piece[at + 1]]);
        (word(16), word(18), word(20))
    };
    let seen: Vec<_> = pieces.iter().map(|piece| header(piece)).collect();
    assert_eq!(seen, [(1500, 0x1234, 0x2000), (1500, 0x1234, 0x2000 | 185), (68, 0x1234, 370)]);
    assert_eq!(pieces.concat().len(), whole.len() + 2 * 34);
    assert_eq!(reassembled(pieces.iter().map(|p| &p[..])), Some((17, whole[34..].to_vec())));
    assert_eq!(pieces, fragments(&whole, 1480, 0x1234), "another hand makes the same");
    // The link carries 1,499 bytes, of which 1,479 are no multiple of 8; the last fragment may use them all.
    let pieces = cut_bytes(&long(1472 + 1479 - 8), 1499).unwrap();
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [14 + 1492, 14 + 1499]);
}

#[test]
fn fw_02_a_fragment_is_cut_again_and_keeps_its_place() {
    let whole = long(4000);
    let coarse = fragments(&whole, 2000, 7);
    let fine: Vec<_> = coarse.iter().flat_map(|piece| cut_bytes(piece, 576).unwrap()).collect();
    assert!(fine.len() > 6 && fine.iter().all(|piece| piece.len() <= 590));
    assert_eq!(reassembled(fine.iter().map(|p| &p[..])), Some((17, whole[34..].to_vec())));
}

#[test]
fn fw_02_options_without_the_copied_flag_are_in_the_first_fragment_only() {
    let mut whole = long(100);
    // Record route (7, not copied), security (130, copied), end of options.
    let options = [7, 7, 4, 0, 0, 0, 0, 130, 3, 9, 1, 0];
    whole.splice(34..34, options);
    whole[14] = 0x48;
    let total = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    fix_v4_checksum(&mut whole);
    let pieces = cut_bytes(&whole, 80).unwrap();
    assert_eq!(pieces.len(), 3);
    assert_eq!(pieces[0][34..46], options);
    for later in &pieces[1..] {
        assert_eq!(later[34..46], [1, 1, 1, 1, 1, 1, 1, 130, 3, 9, 1, 0]);
    }
    assert_eq!(reassembled(pieces.iter().map(|p| &p[..])), Some((17, whole[46..].to_vec())));
}

#[test]
fn fw_02_a_partial_checksum_is_finished_before_the_packet_is_cut() {
    let whole = long(3000);
    let mut left = packet(&whole);
    let headers = V4::headers(&mut left);
    let pseudo =
        Sum::of_pseudo_header::<V4>(headers.source, headers.destination, Protocol::UDP, 3008).value();
    left.head_mut()[40..42].copy_from_slice(&pseudo.to_be_bytes());
    left.offload.checksum = ChecksumState::Partial { start: 34, offset: 6 };
    let mut pieces = Vec::new();
    cut(left, &headers, 1500, &mut |piece| pieces.push(piece)).unwrap();
    assert!(pieces.iter().all(|piece| piece.offload.needs_nothing()));
    let bytes: Vec<_> = pieces.iter().map(Packet::to_vec).collect();
    assert_eq!(reassembled(bytes.iter().map(|p| &p[..])), Some((17, whole[34..].to_vec())));
}

#[test]
fn fw_02_what_may_not_be_cut_comes_back_and_what_fits_goes_through() {
    assert_eq!(cut_bytes(&long(100), 128).unwrap(), [long(100)]);
    assert_eq!(cut_bytes(&long(100), 27), Err(Reason::TooBig), "no room for 8 bytes");
    assert_eq!(cut_bytes(&long(100), 28).unwrap().len(), 14);
    let mut whole = long(100);
    whole[20] |= 0x40;
    fix_v4_checksum(&mut whole);
    assert_eq!(cut_bytes(&whole, 100), Err(Reason::TooBig));
    let mut v6 = packet(&frame(ends6(), Protocol::UDP, &[0; 1400]));
    let headers = V6::headers(&mut v6);
    assert!(!can_be_cut(&headers, 1280));
    let (_, reason) = cut(v6, &headers, 1280, &mut |_| panic!("routers do not cut IPv6")).unwrap_err();
    assert_eq!(reason, Reason::TooBig);
}

#[test]
fn fw_02_an_empty_pool_is_said_and_nothing_is_lost() {
    let pool = crate::pool::Pool::new(1).unwrap();
    let mut left = Packet::copy_of(pool, crate::packet::PortId(0), &long(60_000)).unwrap();
    let headers = V4::headers(&mut left);
    let spare: Vec<_> = std::iter::from_fn(|| (pool.available() > 3).then(|| pool.allocate())).collect();
    let mut pieces = Vec::new();
    let (rest, reason) = cut(left, &headers, 1500, &mut |piece| pieces.push(piece)).unwrap_err();
    assert_eq!((reason, pieces.len()), (Reason::PoolEmpty, 3));
    drop((rest, pieces, spare));
    assert_eq!(pool.available(), pool.capacity());
}

proptest! {
    #[test]
    fn fw_02_whatever_is_cut_however_often_is_put_together_again(
        payload in 0usize..5000, mtus in proptest::collection::vec(28u32..2000, 1..4),
    ) {
        let whole = long(payload);
        let mut pieces = vec![whole.clone()];
        for mtu in mtus {
            pieces = pieces.iter().flat_map(|piece| cut_bytes(piece, mtu).unwrap()).collect();
            prop_assert!(pieces.iter().all(|piece| piece.len() <= 14 + mtu as usize));
        }
        if pieces.len() == 1 {
            prop_assert_eq!(&pieces[0], &whole);
        } else {
            let together = reassembled(pieces.iter().map(|p| &p[..]));
            prop_assert_eq!(together, Some((17, whole[34..].to_vec())));
        }
        drop(pieces);
        prop_assert_eq!(pool().available(), pool().capacity());
    }
}
