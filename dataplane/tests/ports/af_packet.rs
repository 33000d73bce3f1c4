//! AF_PACKET over veth: PT-01, PT-04, PT-05.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Instant;

use libtest_mimic::Trial;
use pollux_dataplane::packet::{Burst, ChecksumState, Gso, GsoKind, Offload, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options, SuperFrames};
use pollux_dataplane::port::finish;

use crate::sandbox::ip;
use crate::topology::{
    AS_IT_IS, Inbox, PATIENCE, SILENCE, Traffic, error_of_receive, is_udp, pod, pool, send_all, send_frame,
    tagged, tcp_frame, transfer, udp_frame, veth_pair, wait_until_up, wire,
};
use crate::trial;

/// The longest that the kernel sends whole: with one byte more it cuts the frame, as no socket of its own
/// makes such.
const SUPER_FRAME: usize = 65_535;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(pt_03_frames_pass_both_ways_byte_for_byte),
        trial!(pt_04_a_super_frame_passes_by_the_queue),
        trial!(pt_04_a_super_frame_passes_by_the_ring),
        trial!(pt_04_what_a_socket_leaves_to_the_device_is_seen),
        trial!(pt_04_a_udp_super_frame_is_seen),
        trial!(pt_04_tcp_passes_as_it_is_by_the_queue),
        trial!(pt_04_tcp_passes_as_it_is_by_the_ring),
        trial!(pt_04_tcp_passes_segmented_in_software),
        trial!(pt_05_vlan_tags_are_put_back),
        trial!(pt_05_own_and_the_kernels_outgoing_frames_are_ignored),
        trial!(pt_05_frames_lost_in_a_full_ring_are_counted_exactly),
        trial!(fw_05_frames_lost_for_want_of_memory_are_counted_exactly),
        trial!(fw_05_a_refused_frame_does_not_hold_up_the_others),
        trial!(pt_01_interfaces_that_cannot_be_opened),
        trial!(pt_01_an_interface_goes_down_and_comes_back),
        trial!(pt_01_an_interface_goes_away_and_is_opened_again),
    ]
}

fn open(name: &str, port: u16, pool: &'static Pool) -> Inbox<AfPacketPort> {
    Inbox::new(AfPacketPort::open(name, PortId(port), pool, Options::default()).unwrap())
}

fn open_with(name: &str, pool: &'static Pool, super_frames: SuperFrames) -> Inbox<AfPacketPort> {
    let options = Options { super_frames, ..Options::default() };
    let port = AfPacketPort::open(name, PortId(0), pool, options).unwrap();
    assert_eq!(port.super_frames(), super_frames);
    Inbox::new(port)
}

fn pt_03_frames_pass_both_ways_byte_for_byte() {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) = (open("va", 1, pool), open("vb", 2, pool));
    let frames: Vec<Vec<u8>> =
        (0..200).map(|number: usize| udp_frame(&vec![number as u8; 18 + number * 7])).collect();
    let packets = |port| frames.iter().map(move |frame| Packet::copy_of(pool, PortId(port), frame).unwrap());
    send_all(&mut *a, packets(1));
    for frame in &frames {
        let packet = b.next(|_| true);
        assert_eq!(&packet.to_vec(), frame);
        assert_eq!(packet.port, PortId(2));
        assert_eq!(packet.offload, Offload::default());
        // Nothing on the way needed a copy: the headroom is as in any received packet.
        assert!(packet.is_contiguous());
    }
    send_all(&mut *b, packets(2));
    for frame in &frames {
        let packet = a.next(|_| true);
        assert_eq!(&packet.to_vec(), frame);
        assert_eq!(packet.port, PortId(1));
    }
    assert_eq!((a.missed(), b.missed()), (0, 0));
    assert_eq!(pool.available(), pool.capacity());
}

fn super_packet(pool: &'static Pool) -> Packet {
    let payload: Vec<u8> = (0..SUPER_FRAME - 54).map(|at| (at % 239) as u8).collect();
    let mut packet = Packet::copy_of(pool, PortId(1), &tcp_frame(&payload)).unwrap();
    packet.offload = Offload {
        checksum: ChecksumState::Partial { start: 34, offset: 16 },
        gso: Some(Gso { kind: GsoKind::Tcp4, ecn: false, size: 1_460, header_len: 54 }),
    };
    packet
}

fn super_frame_passes(super_frames: SuperFrames) {
    let _namespace = veth_pair();
    let pool = pool();
    let mut a = open_with("va", pool, super_frames);
    let mut b = open_with("vb", pool, super_frames);
    let expected = super_packet(pool);
    assert_eq!(expected.len(), SUPER_FRAME);
    // Short ones between, to see that the order is kept.
    let short = || Packet::copy_of(pool, PortId(1), &udp_frame(&[1; 20])).unwrap();
    send_all(&mut *a, [short(), super_packet(pool), short(), super_packet(pool)]);
    for _ in 0..2 {
        assert_eq!(b.next(|_| true).to_vec(), udp_frame(&[1; 20]));
        let packet = b.next(|_| true);
        assert_eq!(packet.offload, expected.offload);
        assert!(packet.to_vec() == expected.to_vec());
    }
    // And back, from a chain that the port itself has filled.
    send_all(&mut *b, [expected]);
    assert_eq!(a.next(|_| true).len(), SUPER_FRAME);
    assert_eq!((a.missed(), b.missed()), (0, 0));
    assert_eq!(pool.available(), pool.capacity());
}

fn pt_04_a_super_frame_passes_by_the_queue() {
    super_frame_passes(SuperFrames::Queue);
}

fn pt_04_a_super_frame_passes_by_the_ring() {
    super_frame_passes(SuperFrames::Ring);
}

fn pt_04_what_a_socket_leaves_to_the_device_is_seen() {
    let _namespace = veth_pair();
    let pod = pod("vp", "10.9.0.1/24");
    let pool = pool();
    let mut port = open("vp", 3, pool);
    pod.run(|| {
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev eth0");
        let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
        socket.send_to(b"partial", "10.9.0.2:5000").unwrap();
    });
    let mut packet = port.next(is_udp);
    assert_eq!(packet.offload.checksum, ChecksumState::Partial { start: 34, offset: 6 });
    let partial = packet.to_vec();
    finish::finish_checksum(&mut packet).unwrap();
    let finished = packet.to_vec();
    assert_ne!(partial, finished);
    let mut expected = udp_frame(b"partial");
    // The sender's address and identification are its own.
    expected[..12].copy_from_slice(&finished[..12]);
    expected[18..20].copy_from_slice(&finished[18..20]);
    expected[24..26].copy_from_slice(&finished[24..26]);
    assert_eq!(finished[36..], expected[36..]);
}

fn pt_04_a_udp_super_frame_is_seen() {
    let _namespace = veth_pair();
    let pod = pod("vp", "10.9.0.1/24");
    let pool = pool();
    let mut port = open("vp", 3, pool);
    pod.run(|| {
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev eth0");
        let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
        socket.send_to(&[7; 10_500], "10.9.0.2:5000").unwrap();
    });
    let packet = port.next(is_udp);
    assert_eq!(packet.len(), 42 + 10_500);
    assert_eq!(packet.offload.gso, Some(Gso { kind: GsoKind::Udp, ecn: false, size: 1_000, header_len: 42 }));
    let mut lengths = Vec::new();
    finish::segment(packet, &mut |segment| lengths.push(segment.len())).unwrap();
    assert_eq!(lengths, [[1_042; 10].as_slice(), &[542]].concat());
}

/// Two pods with a wire between their interfaces, and a transfer from one to the other.
fn tcp_passes(super_frames: SuperFrames, treat: crate::topology::Treat) -> Traffic {
    let _namespace = veth_pair();
    let (from, to) = (pod("vp", "10.9.0.1/24"), pod("vq", "10.9.0.2/24"));
    let pool = pool();
    let mut a = open_with("vp", pool, super_frames);
    let mut b = open_with("vq", pool, super_frames);
    let traffic = transfer(&from, &to, "10.9.0.2:80", 24 << 20, |done| wire(&mut *a, &mut *b, treat, done));
    assert_eq!((a.missed(), b.missed()), (0, 0));
    traffic
}

fn check_unsegmented(traffic: &Traffic) {
    assert!(traffic.super_frames > 100, "{traffic:?}");
    assert!(traffic.partial > 100, "{traffic:?}");
    assert!(traffic.longest > 60_000, "{traffic:?}");
}

fn pt_04_tcp_passes_as_it_is_by_the_queue() {
    check_unsegmented(&tcp_passes(SuperFrames::Queue, AS_IT_IS));
}

fn pt_04_tcp_passes_as_it_is_by_the_ring() {
    check_unsegmented(&tcp_passes(SuperFrames::Ring, AS_IT_IS));
}

fn pt_04_tcp_passes_segmented_in_software() {
    let traffic = tcp_passes(SuperFrames::Queue, &|packet, out| {
        let mut checked = |segment: Packet| {
            assert!(segment.len() <= 1_514);
            assert_eq!(segment.offload, Offload::default());
            out(segment);
        };
        finish::segment(packet, &mut checked).unwrap();
    });
    assert!(traffic.super_frames > 100, "{traffic:?}");
}

fn pt_05_vlan_tags_are_put_back() {
    let _namespace = veth_pair();
    let pool = pool();
    for super_frames in [SuperFrames::Queue, SuperFrames::Ring] {
        let mut a = open_with("va", pool, super_frames);
        let mut b = open_with("vb", pool, super_frames);
        let short = tagged(&udp_frame(&[3; 50]));
        send_frame(&mut *a, pool, &short);
        assert_eq!(b.next(|_| true).to_vec(), short);

        let plain = super_packet(pool);
        let plain_bytes = plain.to_vec();
        let payload = &plain_bytes[54..SUPER_FRAME - 4];
        let mut long = Packet::copy_of(pool, PortId(0), &tagged(&tcp_frame(payload))).unwrap();
        long.offload = Offload {
            checksum: ChecksumState::Partial { start: 38, offset: 16 },
            gso: plain.offload.gso.map(|gso| Gso { header_len: 58, ..gso }),
        };
        let (bytes, offload) = (long.to_vec(), long.offload);
        send_all(&mut *a, [long]);
        let packet = b.next(|_| true);
        assert_eq!(packet.offload, offload);
        assert!(packet.to_vec() == bytes);
    }
}

fn pt_05_own_and_the_kernels_outgoing_frames_are_ignored() {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) = (open("va", 1, pool), open("vb", 2, pool));
    send_frame(&mut *a, pool, &udp_frame(b"ours"));
    b.next(is_udp);
    assert!(a.next_within(SILENCE, is_udp).is_none());
    ip("addr add 10.9.0.1/24 dev va");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev va");
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.send_to(b"the kernel's", "10.9.0.2:5000").unwrap();
    b.next(is_udp);
    assert!(a.next_within(SILENCE, is_udp).is_none());
}

fn pt_05_frames_lost_in_a_full_ring_are_counted_exactly() {
    const FRAMES: usize = 3_000;
    let _namespace = veth_pair();
    let pool = pool();
    let mut a = open("va", 1, pool);
    let options = Options { slots: 512, ..Options::default() };
    let mut b = Inbox::new(AfPacketPort::open("vb", PortId(2), pool, options).unwrap());
    assert_eq!(b.slots(), 512);
    let frame = udp_frame(&[5; 30]);
    send_all(&mut *a, (0..FRAMES).map(|_| Packet::copy_of(pool, PortId(1), &frame).unwrap()));
    let lost = (FRAMES - 512) as u64;
    let deadline = Instant::now() + PATIENCE;
    while b.missed() < lost && Instant::now() < deadline {}
    let mut received = 0;
    let mut burst = Burst::new();
    loop {
        b.receive(&mut burst).unwrap();
        if burst.is_empty() {
            break;
        }
        received += burst.drain(..).count();
    }
    assert_eq!((received, b.missed()), (512, lost));
    // And the ring works on.
    send_frame(&mut *a, pool, &frame);
    assert_eq!(b.next(|_| true).to_vec(), frame);
    assert_eq!(b.missed(), lost);
}

fn fw_05_frames_lost_for_want_of_memory_are_counted_exactly() {
    let _namespace = veth_pair();
    let (pool, small) = (pool(), Pool::new(1).unwrap());
    let mut a = open_with("va", pool, SuperFrames::Queue);
    let mut b = open_with("vb", small, SuperFrames::Queue);
    let mut held: Vec<Packet> = std::iter::from_fn(|| Packet::new(small, PortId(0)).ok()).collect();
    held.truncate(held.len() - 5);
    // A super-frame needs 33 chunks; then five short ones fit, and a sixth does not.
    let short = udp_frame(&[5; 30]);
    let shorts = (0..6).map(|_| Packet::copy_of(pool, PortId(1), &short).unwrap());
    send_all(&mut *a, [super_packet(pool)].into_iter().chain(shorts));
    let mut burst = Burst::new();
    let deadline = Instant::now() + PATIENCE;
    while b.missed() < 2 && Instant::now() < deadline {
        b.receive(&mut burst).unwrap();
    }
    assert_eq!((burst.len(), b.missed()), (5, 2));
    assert!(burst.iter().all(|packet| packet.to_vec() == short));
    burst.clear();
    held.clear();
    send_all(&mut *a, [super_packet(pool)]);
    assert_eq!(b.next(|_| true).len(), SUPER_FRAME);
    assert_eq!(small.available(), small.capacity());
}

fn fw_05_a_refused_frame_does_not_hold_up_the_others() {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) = (open("va", 1, pool), open("vb", 2, pool));
    let (short, long) = (udp_frame(&[1; 30]), udp_frame(&[2; 2_000]));
    let endless = vec![3; 70_000];
    let mut burst: Burst = [&short, &long, &short, &endless, &short]
        .into_iter()
        .map(|frame| Packet::copy_of(pool, PortId(0), frame).unwrap())
        .collect();
    a.transmit(&mut burst).unwrap();
    assert_eq!(burst.len(), 2);
    assert_eq!(burst[0].len(), long.len());
    assert_eq!(burst[1].len(), endless.len());
    for _ in 0..3 {
        assert_eq!(b.next(|_| true).to_vec(), short);
    }
}

fn pt_01_interfaces_that_cannot_be_opened() {
    let _namespace = veth_pair();
    let pool = pool();
    let message =
        |name: &str| AfPacketPort::open(name, PortId(0), pool, Options::default()).err().unwrap().to_string();
    assert_eq!(message("nope0"), "no such interface: nope0");
    assert_eq!(message(""), "no such interface: ");
    assert_eq!(message("a-name-that-is-too-long"), "no such interface: a-name-that-is-too-long");
    assert_eq!(message("lo"), "AF_PACKET on lo: not an Ethernet interface");
}

fn pt_01_an_interface_goes_down_and_comes_back() {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) = (open("va", 1, pool), open("vb", 2, pool));
    ip("link set vb down");
    assert_eq!(error_of_receive(&mut b).raw_os_error(), Some(libc::ENETDOWN));
    let frame = udp_frame(&[1; 30]);
    let mut burst: Burst = [Packet::copy_of(pool, PortId(0), &frame).unwrap()].into_iter().collect();
    assert_eq!(b.transmit(&mut burst).unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(burst.len(), 1);
    ip("link set vb up");
    wait_until_up("va");
    wait_until_up("vb");
    send_all(&mut *b, burst);
    assert_eq!(a.next(is_udp).to_vec(), frame);
    send_frame(&mut *a, pool, &frame);
    assert_eq!(b.next(is_udp).to_vec(), frame);
    // A super-frame is the first to come after another fall: the error that the kernel has noted at the
    // socket must not cost it.
    ip("link set vb down");
    ip("link set vb up");
    wait_until_up("va");
    wait_until_up("vb");
    send_all(&mut *a, [super_packet(pool)]);
    let mut burst = Burst::new();
    let deadline = Instant::now() + PATIENCE;
    while !burst.iter().any(|packet| packet.len() == SUPER_FRAME) {
        assert!(Instant::now() < deadline, "no super-frame came");
        burst.clear();
        b.receive(&mut burst).ok();
    }
    assert_eq!(b.missed(), 0);
}

fn pt_01_an_interface_goes_away_and_is_opened_again() {
    let _namespace = veth_pair();
    let pool = pool();
    let mut a = open("va", 1, pool);
    assert!(a.readiness().unwrap().as_raw_fd() >= 0);
    ip("link del va");
    assert_eq!(error_of_receive(&mut a).to_string(), "interface va is gone");
    let mut burst: Burst =
        [Packet::copy_of(pool, PortId(0), &udp_frame(b"x")).unwrap()].into_iter().collect();
    assert_eq!(a.transmit(&mut burst).unwrap_err().to_string(), "interface va is gone");
    assert_eq!(burst.len(), 1);
    ip("link add va type veth peer name vb");
    ip("link set va up");
    ip("link set vb up");
    wait_until_up("va");
    // The socket belongs to the interface that is gone, not to the name.
    assert!(a.transmit(&mut burst).is_err());
    let (mut a, mut b) = (open("va", 1, pool), open("vb", 2, pool));
    send_all(&mut *a, burst);
    assert_eq!(b.next(is_udp).to_vec(), udp_frame(b"x"));
}
