//! Devices with a far end outside of DPDK: interfaces of the kernel's, files, another process' memory.

use std::io::Write;

use libtest_mimic::Trial;
use pollux_dataplane::packet::{Burst, ChecksumState, Gso, GsoKind, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options};
use pollux_dataplane::port::dpdk::{DpdkPort, Queues, Settings, open};
use pollux_dataplane::port::finish;

use crate::sandbox::{Namespace, Rights, ip};
use crate::topology::{
    Inbox, PATIENCE, SILENCE, eventually, is_udp, send_all, send_frame, tcp_frame, udp_frame, veth_pair,
};
use crate::{Chunks, dpdk, trial};

pub(crate) fn trials(rights: Rights) -> Vec<Trial> {
    vec![
        trial!(pt_03_frames_pass_af_packet_both_ways),
        // bpf() needs real root.
        trial!(pt_03_frames_pass_af_xdp_both_ways_copied).with_ignored_flag(rights != Rights::Root),
        trial!(pt_03_frames_pass_a_tap_both_ways),
        trial!(pt_03_frames_pass_memif_both_ways),
        trial!(pt_03_frames_come_from_a_capture_and_go_into_one),
        trial!(pt_04_a_tap_finishes_checksums_and_takes_no_super_frames),
        trial!(fw_05_a_frame_over_the_mtu_stays_with_the_caller),
        trial!(pt_01_two_queues_share_what_comes),
        trial!(pt_01_an_interface_with_a_longer_mtu_is_refused),
    ]
}

fn opened(device: &str, pool: &'static Pool) -> Inbox<DpdkPort> {
    Inbox::new(open(dpdk(), device, PortId(3), pool, &Settings::default()).unwrap().remove(0))
}

/// The interface as the kernel's side of the wire.
fn kernel_side(interface: &str, pool: &'static Pool) -> Inbox<AfPacketPort> {
    Inbox::new(AfPacketPort::open(interface, PortId(8), pool, Options::default()).unwrap())
}

/// Datagrams of many lengths pass between the two, each way, in order and as they were.
fn both_ways<A: Port, B: Port>(a: &mut Inbox<A>, b: &mut Inbox<B>, pool: &'static Pool) {
    let frames: Vec<Vec<u8>> =
        (0..200).map(|number: usize| udp_frame(&vec![number as u8; 20 + number * 7])).collect();
    let packets =
        || frames.iter().map(|frame| Packet::copy_of(pool, PortId(0), frame).unwrap()).collect::<Vec<_>>();
    send_all(&mut **a, packets());
    for frame in &frames {
        assert_eq!(&b.next(is_udp).to_vec(), frame);
    }
    send_all(&mut **b, packets());
    for frame in &frames {
        assert_eq!(&a.next(is_udp).to_vec(), frame);
    }
}

fn pt_03_frames_pass_af_packet_both_ways() {
    let chunks = Chunks::new();
    let _namespace = veth_pair();
    let mut far = kernel_side("vb", chunks.0);
    let mut port = opened("net_af_packet_both,iface=va", chunks.0);
    assert_eq!(port.device().link_address().0, crate::topology::MAC_A);
    both_ways(&mut port, &mut far, chunks.0);
    assert!(port.link().unwrap().up);
}

fn pt_03_frames_pass_af_xdp_both_ways_copied() {
    let chunks = Chunks::new();
    let _namespace = veth_pair();
    let mut far = kernel_side("vb", chunks.0);
    let mut port = opened("net_af_xdp_both,iface=va", chunks.0);
    both_ways(&mut port, &mut far, chunks.0);
    assert_eq!(port.device().driver(), "net_af_xdp");
}

fn tap(name: &str, pool: &'static Pool) -> (Inbox<DpdkPort>, Inbox<AfPacketPort>) {
    let port = opened(&format!("net_tap_{name},iface={name}"), pool);
    ip(&format!("link set {name} up"));
    assert!(eventually(|| ip(&format!("link show {name}")).contains("LOWER_UP")), "{name} does not come up");
    let far = kernel_side(name, pool);
    (port, far)
}

fn pt_03_frames_pass_a_tap_both_ways() {
    let chunks = Chunks::new();
    let namespace = Namespace::new();
    namespace.enter();
    let (mut port, mut far) = tap("dtap0", chunks.0);
    both_ways(&mut port, &mut far, chunks.0);
    drop(port);
    assert!(!ip("link").contains("dtap0"), "the interface goes with the device");
}

fn pt_03_frames_pass_memif_both_ways() {
    let chunks = Chunks::new();
    let socket = format!("socket=/tmp/pollux-memif-{}.sock,socket-abstract=no", std::process::id());
    let mut server = opened(&format!("net_memif_server,role=server,id=0,{socket}"), chunks.0);
    let mut client = opened(&format!("net_memif_client,role=client,id=0,{socket}"), chunks.0);
    let up = |port: &mut Inbox<DpdkPort>| port.link().is_some_and(|link| link.up);
    assert!(eventually(|| up(&mut server) && up(&mut client)), "the two ends find each other");
    // A receiver offers its memory when it looks for frames first.
    assert!(
        server.next_within(SILENCE, |_| true).is_none() && client.next_within(SILENCE, |_| true).is_none()
    );
    both_ways(&mut server, &mut client, chunks.0);
}

fn pt_03_frames_come_from_a_capture_and_go_into_one() {
    let chunks = Chunks::new();
    let directory = std::env::temp_dir();
    let [from, to] =
        ["in", "out"].map(|name| directory.join(format!("pollux-dpdk-{}-{name}.pcap", std::process::id())));
    let frames: Vec<Vec<u8>> =
        (0..40).map(|number: usize| udp_frame(&vec![number as u8; 30 + number * 30])).collect();
    let mut file = Vec::new();
    file.extend([0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat());
    for frame in &frames {
        file.extend([0, 0, frame.len() as u32, frame.len() as u32].map(u32::to_le_bytes).concat());
        file.extend(frame);
    }
    std::fs::File::create(&from).unwrap().write_all(&file).unwrap();
    let device = format!("net_pcap_file,rx_pcap={},tx_pcap={}", from.display(), to.display());
    let mut port = opened(&device, chunks.0);
    for frame in &frames {
        let packet = port.next(is_udp);
        assert_eq!(&packet.to_vec(), frame);
        send_all(&mut *port, [packet]);
    }
    drop(port);
    let written = std::fs::read(&to).unwrap();
    for path in [&from, &to] {
        std::fs::remove_file(path).unwrap();
    }
    let mut at = 24;
    for frame in &frames {
        assert_eq!(&written[at + 16..at + 16 + frame.len()], frame);
        at += 16 + frame.len();
    }
    assert_eq!(written.len(), at);
}

/// A frame whose checksum is left to the device; with `size`, a super-frame.
fn partial(pool: &'static Pool, payload: &[u8], size: Option<u16>) -> (Packet, Vec<u8>) {
    use pollux_dataplane::packet::checksum::Sum;
    let complete = tcp_frame(payload);
    let mut frame = complete.clone();
    let length = (20 + payload.len()) as u32;
    let sum = Sum::of(&frame[26..34]) + Sum::of(&[0, 6]) + Sum::of(&length.to_be_bytes());
    frame[50..52].copy_from_slice(&sum.value().to_be_bytes());
    let mut packet = Packet::copy_of(pool, PortId(0), &frame).unwrap();
    packet.offload.checksum = ChecksumState::Partial { start: 34, offset: 16 };
    packet.offload.gso = size.map(|size| Gso { kind: GsoKind::Tcp4, ecn: false, size, header_len: 54 });
    (packet, complete)
}

fn pt_04_a_tap_finishes_checksums_and_takes_no_super_frames() {
    let chunks = Chunks::new();
    let namespace = Namespace::new();
    namespace.enter();
    let (mut port, mut far) = tap("dtap1", chunks.0);
    assert!(port.capabilities().partial_checksum && !port.capabilities().gso);
    let is_tcp = |packet: &Packet| {
        packet.head().len() > 40 && packet.head()[12..14] == [8, 0] && packet.head()[23] == 6
    };
    let (packet, complete) = partial(chunks.0, b"what is not summed yet", None);
    send_all(&mut *port, [packet]);
    assert_eq!(far.next(is_tcp).to_vec(), complete);
    // Cut in software, as a worker does.
    let payload: Vec<u8> = (0..9_000u32).map(|at| (at % 251) as u8).collect();
    let (packet, _) = partial(chunks.0, &payload, Some(1_000));
    assert!(!port.capabilities().carries(&packet.offload));
    let mut refused: Burst = [packet].into_iter().collect();
    port.transmit(&mut refused).unwrap();
    assert_eq!(refused.len(), 1);
    let mut segments = Vec::new();
    let packet = refused.pop().unwrap();
    assert_eq!(
        finish::segment(packet, &mut |segment| segments.push(segment)).map_err(|(_, reason)| reason),
        Ok(9)
    );
    let expected: Vec<Vec<u8>> = segments.iter().map(Packet::to_vec).collect();
    send_all(&mut *port, segments);
    for segment in expected {
        assert_eq!(far.next(is_tcp).to_vec(), segment);
    }
}

fn fw_05_a_frame_over_the_mtu_stays_with_the_caller() {
    let chunks = Chunks::new();
    let _namespace = veth_pair();
    let mut far = kernel_side("vb", chunks.0);
    let mut port = opened("net_af_packet_over,iface=va", chunks.0);
    let (short, long) = (udp_frame(b"short"), udp_frame(&[7; 3_000]));
    let mut burst: Burst = [&short, &long, &short]
        .map(|frame| Packet::copy_of(chunks.0, PortId(0), frame).unwrap())
        .into_iter()
        .collect();
    port.transmit(&mut burst).unwrap();
    assert_eq!(burst.iter().map(Packet::to_vec).collect::<Vec<_>>(), [long]);
    for _ in 0..2 {
        assert_eq!(far.next(is_udp).to_vec(), short);
    }
}

fn pt_01_two_queues_share_what_comes() {
    let chunks = Chunks::new();
    let _namespace = veth_pair();
    let mut far = kernel_side("vb", chunks.0);
    let settings = Settings { queues: Queues::Exactly(2), ..Settings::default() };
    let mut queues = open(dpdk(), "net_af_packet_two,iface=va", PortId(3), chunks.0, &settings).unwrap();
    assert_eq!(queues.len(), 2);
    for number in 0..64u16 {
        let mut frame = udp_frame(b"one of many flows");
        frame[34..36].copy_from_slice(&(40_000 + number).to_be_bytes());
        send_frame(&mut *far, chunks.0, &frame);
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut came = [0, 0];
    while came[0] + came[1] < 64 && std::time::Instant::now() < deadline {
        for (queue, count) in queues.iter_mut().zip(&mut came) {
            let mut burst = Burst::new();
            queue.receive(&mut burst).unwrap();
            *count += burst.iter().filter(|packet| is_udp(packet)).count();
        }
    }
    assert!(came[0] + came[1] == 64 && came[0] > 0 && came[1] > 0, "{came:?}");
    // The device lives until its last queue goes.
    drop(queues.remove(0));
    queues[0].receive(&mut Burst::new()).unwrap();
}

fn pt_01_an_interface_with_a_longer_mtu_is_refused() {
    let chunks = Chunks::new();
    let _namespace = veth_pair();
    ip("link set va mtu 9000");
    let error =
        open(dpdk(), "net_af_packet_long,iface=va", PortId(0), chunks.0, &Settings::default()).err().unwrap();
    assert!(error.to_string().contains("an MTU of 9000 is more than it can do: 1500 at most"), "{error}");
}
