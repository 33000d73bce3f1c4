//! TAP: PT-02, PT-04.

use std::net::UdpSocket;
use std::time::Duration;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use libtest_mimic::Trial;
use pollux_dataplane::packet::{Burst, ChecksumState, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::finish;
use pollux_dataplane::port::tap::TapPort;

use crate::sandbox::{Namespace, Rights, ip};
use crate::topology::{
    AS_IT_IS, Inbox, MAC_A, PATIENCE, eventually, is_udp, pool, send_all, send_frame, transfer, wire,
};
use crate::trial;

/// Whether this user may make TAP interfaces. Root always may: if it cannot, the tests say why.
pub(crate) fn are_allowed(rights: Rights) -> bool {
    let opened = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    rights == Rights::Root || opened().is_ok()
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(pt_02_udp_passes_both_ways),
        trial!(pt_02_the_kernel_answers_a_ping_through_the_tap),
        trial!(pt_04_tcp_passes_as_it_is_between_taps),
        trial!(pt_02_the_interface_vanishes_with_the_port),
        trial!(pt_02_an_interface_that_is_down_refuses_and_works_when_up),
        trial!(fw_05_frames_lost_for_want_of_memory_are_counted),
    ]
}

/// Moves the thread into a new namespace where the host has 10.8.0.1 on a TAP interface, and a neighbour
/// 10.8.0.2 behind it.
fn host(pool: &'static Pool) -> (Namespace, Inbox<TapPort>) {
    let namespace = Namespace::new();
    namespace.enter();
    let port = TapPort::open("tap0", PortId(6), pool).unwrap();
    ip("link set tap0 address 02:00:00:00:00:0b");
    ip("addr add 10.8.0.1/24 dev tap0");
    ip("link set tap0 up");
    ip("neigh add 10.8.0.2 lladdr 02:00:00:00:00:0a dev tap0");
    (namespace, Inbox::new(port))
}

fn pt_02_udp_passes_both_ways() {
    let pool = pool();
    let (_namespace, mut port) = host(pool);
    let socket = UdpSocket::bind("10.8.0.1:4000").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"from the host", "10.8.0.2:5000").unwrap();
    let mut packet = port.next(is_udp);
    assert_eq!(packet.port, PortId(6));
    assert!(matches!(packet.offload.checksum, ChecksumState::Partial { start: 34, offset: 6 }));
    finish::finish_checksum(&mut packet).unwrap();
    let bytes = packet.to_vec();
    let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(v4)), Some(TransportSlice::Udp(udp))) =
        (sliced.net, sliced.transport)
    else {
        panic!("not UDP");
    };
    assert_eq!(udp.payload(), b"from the host");
    assert_eq!(
        udp.to_header().calc_checksum_ipv4(&v4.header().to_header(), udp.payload()).unwrap(),
        udp.checksum()
    );

    let mut reply = Vec::new();
    PacketBuilder::ethernet2(MAC_A, bytes[6..12].try_into().unwrap())
        .ipv4([10, 8, 0, 2], [10, 8, 0, 1], 64)
        .udp(5000, 4000)
        .write(&mut reply, b"to the host")
        .unwrap();
    send_frame(&mut *port, pool, &reply);
    let mut buffer = [0; 100];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"to the host");
    assert_eq!(from.to_string(), "10.8.0.2:5000");

    // With a partial checksum, as a pod's port delivers it: the kernel takes it for checked.
    let mut partial = Packet::copy_of(pool, PortId(0), &reply).unwrap();
    partial.head_mut()[40..42].copy_from_slice(&[0, 0]);
    partial.offload.checksum = ChecksumState::Partial { start: 34, offset: 6 };
    send_all(&mut *port, [partial]);
    assert_eq!(socket.recv_from(&mut buffer).unwrap().0, b"to the host".len());
    assert_eq!(port.missed(), 0);
}

fn pt_02_the_kernel_answers_a_ping_through_the_tap() {
    let pool = pool();
    let (_namespace, mut port) = host(pool);
    let mut request = Vec::new();
    PacketBuilder::ethernet2(MAC_A, [2, 0, 0, 0, 0, 0xb])
        .ipv4([10, 8, 0, 2], [10, 8, 0, 1], 64)
        .icmpv4_echo_request(7, 9)
        .write(&mut request, &[0x61; 1_000])
        .unwrap();
    send_frame(&mut *port, pool, &request);
    let reply = port.next(|packet| packet.head().get(23) == Some(&1)).to_vec();
    assert_eq!(reply.len(), request.len());
    assert_eq!(reply[34], 0, "an echo reply");
    assert_eq!(reply[38..], request[38..]);
    assert_eq!(reply[26..30], [10, 8, 0, 1]);
}

fn pt_04_tcp_passes_as_it_is_between_taps() {
    let pool = pool();
    let side = |address: &str| {
        let namespace = Namespace::new();
        let port = namespace.run(|| {
            let port = TapPort::open("tap0", PortId(0), pool).unwrap();
            ip(&format!("addr add {address} dev tap0"));
            ip("link set tap0 up");
            port
        });
        (namespace, port)
    };
    let (from, mut a) = side("10.8.0.1/24");
    let (to, mut b) = side("10.8.0.2/24");
    let traffic = transfer(&from, &to, "10.8.0.2:80", 16 << 20, |done| wire(&mut a, &mut b, AS_IT_IS, done));
    assert!(traffic.super_frames > 50, "{traffic:?}");
    assert!(traffic.longest > 60_000, "{traffic:?}");
    assert_eq!((a.missed(), b.missed()), (0, 0));
    assert!(a.carries_udp_super_frames(), "Linux 6.2 and later");
    drop((a, b));
    assert_eq!(pool.available(), pool.capacity());
}

fn pt_02_the_interface_vanishes_with_the_port() {
    let pool = pool();
    let (_namespace, port) = host(pool);
    let taken = TapPort::open("tap0", PortId(7), pool).err().unwrap();
    assert!(taken.to_string().starts_with("TAP interface tap0: "), "{taken}");
    assert_eq!(port.name(), "tap0");
    drop(port);
    assert!(eventually(|| !ip("link show").contains("tap0")));
    assert_eq!(pool.available(), pool.capacity());
    let bad = TapPort::open("a-name-that-is-too-long", PortId(7), pool).err().unwrap();
    assert_eq!(bad.to_string(), "not an interface name: \"a-name-that-is-too-long\" (1 to 15 bytes)");
}

fn pt_02_an_interface_that_is_down_refuses_and_works_when_up() {
    let pool = pool();
    let (_namespace, mut port) = host(pool);
    ip("link set tap0 down");
    let frame = crate::topology::udp_frame(b"x");
    let mut burst: Burst = [Packet::copy_of(pool, PortId(0), &frame).unwrap()].into_iter().collect();
    assert!(port.transmit(&mut burst).is_err());
    assert_eq!(burst.len(), 1);
    ip("link set tap0 up");
    port.transmit(&mut burst).unwrap();
    assert!(burst.is_empty());
}

fn fw_05_frames_lost_for_want_of_memory_are_counted() {
    let pool = Pool::new(1).unwrap();
    let (_namespace, mut port) = host(pool);
    let socket = UdpSocket::bind("10.8.0.1:4000").unwrap();
    let mut held: Vec<Packet> = std::iter::from_fn(|| Packet::new(pool, PortId(0)).ok()).collect();
    socket.send_to(&[1; 100], "10.8.0.2:5000").unwrap();
    let mut burst = Burst::new();
    for _ in 0..100 {
        port.receive(&mut burst).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((burst.len(), port.missed()), (0, 1));
    held.clear();
    socket.send_to(&[2; 100], "10.8.0.2:5000").unwrap();
    assert_eq!(port.next(is_udp).len(), 142);
    assert_eq!(port.missed(), 1);
}
