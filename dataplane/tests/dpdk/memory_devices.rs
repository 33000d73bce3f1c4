//! Devices that are memory alone: rings and the null device.

use libtest_mimic::Trial;
use pollux_dataplane::packet::{BURST, Burst, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::dpdk::{DpdkPort, Settings, cable, open};

use crate::{Chunks, dpdk, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(pt_03_frames_pass_a_cable_both_ways_without_a_copy),
        trial!(pt_03_a_super_frame_passes_a_cable_as_a_chain),
        trial!(pt_03_frames_of_another_pool_pass_and_return_to_it),
        trial!(fw_05_a_full_ring_leaves_the_rest_to_the_caller_as_it_was),
        trial!(fw_05_a_driver_takes_its_memory_from_the_pool_and_an_empty_one_stops_it),
        trial!(a_ring_device_is_closed_with_frames_in_flight),
        trial!(a_link_goes_down_and_up),
        trial!(a_device_tells_its_counters),
    ]
}

/// Frames of 60 bytes and more, each unlike the others.
fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number * 31 + at * 7) as u8).collect()
}

fn burst_of(pool: &'static Pool, frames: &[Vec<u8>]) -> Burst {
    frames.iter().map(|frame| Packet::copy_of(pool, PortId(9), frame).unwrap()).collect()
}

fn bytes_of(burst: &Burst) -> Vec<Vec<u8>> {
    burst.iter().map(Packet::to_vec).collect()
}

fn joined(name: &str, slots: u32, pool: &'static Pool, mtu: Option<u16>) -> [DpdkPort; 2] {
    let settings = Settings { mtu, ..Settings::default() };
    cable(dpdk(), name, slots, [PortId(1), PortId(2)], pool, &settings).unwrap()
}

fn pt_03_frames_pass_a_cable_both_ways_without_a_copy() {
    let chunks = Chunks::new();
    let [mut a, mut b] = joined("both", 64, chunks.0, None);
    for count in 1..=BURST {
        let frames: Vec<_> = (0..count).map(|number| frame(number, 14 + number * 48)).collect();
        for id in [PortId(2), PortId(1)] {
            let (from, to) = if id == PortId(2) { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let mut burst = burst_of(chunks.0, &frames);
            let places: Vec<_> = burst.iter().map(|packet| packet.head().as_ptr()).collect();
            from.transmit(&mut burst).unwrap();
            assert!(burst.is_empty());
            assert_eq!(chunks.0.capacity() - chunks.0.available(), count);
            let mut burst = Burst::new();
            to.receive(&mut burst).unwrap();
            assert_eq!(bytes_of(&burst), frames);
            assert!(burst.iter().map(|packet| packet.head().as_ptr()).eq(places));
            assert!(burst.iter().all(|packet| packet.port == id));
        }
    }
}

fn pt_03_a_super_frame_passes_a_cable_as_a_chain() {
    let chunks = Chunks::new();
    let [mut a, mut b] = joined("chain", 64, chunks.0, Some(65_000));
    for len in [1_792, 1_793, 9_014, 65_000] {
        let frames = [frame(1, len), frame(2, 60), frame(3, len)];
        let mut burst = burst_of(chunks.0, &frames);
        a.transmit(&mut burst).unwrap();
        assert!(burst.is_empty());
        b.receive(&mut burst).unwrap();
        assert_eq!(bytes_of(&burst), frames);
        // Back again, as a forwarder would send it.
        b.transmit(&mut burst).unwrap();
        a.receive(&mut burst).unwrap();
        assert_eq!(bytes_of(&burst), frames);
    }
}

fn pt_03_frames_of_another_pool_pass_and_return_to_it() {
    let (ours, other) = (Chunks::new(), Chunks::new());
    let [mut a, mut b] = joined("pools", 64, ours.0, Some(9_000));
    let frames = [frame(1, 60), frame(2, 5_000)];
    // Sent from another pool than the port's: copied.
    let mut burst = burst_of(other.0, &frames);
    a.transmit(&mut burst).unwrap();
    assert_eq!(other.0.available(), other.0.capacity());
    b.receive(&mut burst).unwrap();
    assert_eq!(bytes_of(&burst), frames);
    assert!(burst.iter().all(|packet| std::ptr::eq(packet.pool(), ours.0)));
}

fn fw_05_a_full_ring_leaves_the_rest_to_the_caller_as_it_was() {
    let chunks = Chunks::new();
    let [mut a, mut b] = joined("full", 32, chunks.0, Some(9_000));
    let frames: Vec<_> = (0..BURST).map(|number| frame(number, 60 + number * 100)).collect();
    let mut burst = burst_of(chunks.0, &frames);
    a.transmit(&mut burst).unwrap();
    // A ring of 32 holds 31.
    assert_eq!(bytes_of(&burst), frames[31..]);
    a.transmit(&mut burst).unwrap();
    assert_eq!(burst.len(), 1);
    let mut received = Burst::new();
    b.receive(&mut received).unwrap();
    assert_eq!(bytes_of(&received), frames[..31]);
    a.transmit(&mut burst).unwrap();
    assert!(burst.is_empty());
    received.clear();
    b.receive(&mut received).unwrap();
    assert_eq!(bytes_of(&received), frames[31..]);
}

fn fw_05_a_driver_takes_its_memory_from_the_pool_and_an_empty_one_stops_it() {
    let chunks = Chunks::new();
    let ports = open(dpdk(), "net_null0,size=64,copy=1", PortId(7), chunks.0, &Settings::default()).unwrap();
    let mut port = ports.into_iter().next().unwrap();
    let mut burst = Burst::new();
    port.receive(&mut burst).unwrap();
    assert_eq!(burst.len(), BURST);
    assert!(burst.iter().all(|packet| packet.port == PortId(7) && packet.len() == 64));
    assert_eq!(chunks.0.available(), chunks.0.capacity() - BURST);
    // What is received is sent, and is free at once.
    port.transmit(&mut burst).unwrap();
    assert!(burst.is_empty());
    assert_eq!(chunks.0.available(), chunks.0.capacity());
    let mut held = Vec::new();
    while let Ok(packet) = Packet::new(chunks.0, PortId(0)) {
        held.push(packet);
    }
    port.receive(&mut burst).unwrap();
    assert!(burst.is_empty());
    held.clear();
    port.receive(&mut burst).unwrap();
    assert_eq!(burst.len(), BURST);
}

fn a_ring_device_is_closed_with_frames_in_flight() {
    let chunks = Chunks::new();
    for _ in 0..3 {
        let [mut a, mut b] = joined("flight", 64, chunks.0, Some(9_000));
        let frames: Vec<_> = (0..20).map(|number| frame(number, 4_000)).collect();
        a.transmit(&mut burst_of(chunks.0, &frames)).unwrap();
        b.transmit(&mut burst_of(chunks.0, &frames)).unwrap();
        drop(a);
        // Nobody will receive these.
        b.transmit(&mut burst_of(chunks.0, &frames)).unwrap();
        drop(b);
        assert_eq!(chunks.0.available(), chunks.0.capacity());
    }
    for _ in 0..2 {
        let ports = open(dpdk(), "net_ring_flight", PortId(0), chunks.0, &Settings::default()).unwrap();
        let mut port = ports.into_iter().next().unwrap();
        port.transmit(&mut burst_of(chunks.0, &[frame(1, 60), frame(2, 60)])).unwrap();
        drop(port);
        assert_eq!(chunks.0.available(), chunks.0.capacity());
    }
}

fn a_link_goes_down_and_up() {
    use pollux_dataplane::port::dpdk::LinkUp;
    let chunks = Chunks::new();
    let [mut a, _b] = joined("link", 64, chunks.0, None);
    assert!(a.link().unwrap().up);
    a.device().set_link(LinkUp::No).unwrap();
    assert!(!a.link().unwrap().up);
    a.device().set_link(LinkUp::Yes).unwrap();
    assert!(a.link().unwrap().up);
}

fn a_device_tells_its_counters() {
    let chunks = Chunks::new();
    let [mut a, mut b] = joined("counts", 64, chunks.0, None);
    let frames: Vec<_> = (0..5).map(|number| frame(number, 60)).collect();
    a.transmit(&mut burst_of(chunks.0, &frames)).unwrap();
    let mut burst = Burst::new();
    b.receive(&mut burst).unwrap();
    let counted = |port: &mut DpdkPort, name: &str| {
        let counters = port.device_counters();
        counters.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    };
    assert_eq!(counted(&mut a, "tx_good_packets"), Some(5));
    assert_eq!(counted(&mut b, "rx_good_packets"), Some(5));
    assert_eq!(b.missed(), 0);
    assert_eq!(a.device().driver(), "net_ring");
}
