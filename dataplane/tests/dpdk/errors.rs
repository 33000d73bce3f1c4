//! What an operator gets to read when a device can not be opened.

use libtest_mimic::Trial;
use pollux_dataplane::packet::PortId;
use pollux_dataplane::port::dpdk::eal::{Options, Pages};
use pollux_dataplane::port::dpdk::{Eal, Queues, Settings, open};

use crate::{Chunks, dpdk, options, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(dpdk_is_started_once_and_with_one_set_of_options),
        trial!(a_device_that_does_not_exist_says_so),
        trial!(an_interface_that_does_not_exist_says_so),
        trial!(too_few_queues_say_how_many_there_are),
        trial!(an_mtu_over_the_buffer_says_what_fits),
        trial!(a_name_in_use_says_so),
    ]
}

fn error(device: &str, settings: &Settings) -> String {
    let chunks = Chunks::new();
    open(dpdk(), device, PortId(0), chunks.0, settings).err().expect("it can not be opened").to_string()
}

fn dpdk_is_started_once_and_with_one_set_of_options() {
    dpdk();
    Eal::start(&options()).unwrap();
    let other = Options { pages: Pages::Ordinary, memory: 99, ..Options::default() };
    let error = Eal::start(&other).unwrap_err().to_string();
    assert!(error.starts_with("DPDK runs already, with"), "{error}");
}

fn a_device_that_does_not_exist_says_so() {
    let text = error("net_nothing0", &Settings::default());
    assert!(text.starts_with("DPDK device net_nothing0: "), "{text}");
    assert!(text.contains("DPDK has no driver of that name"), "{text}");
    let text = error("0000:ff:1f.7", &Settings::default());
    assert!(text.contains("no PCI device 0000:ff:1f.7"), "{text}");
}

fn an_interface_that_does_not_exist_says_so() {
    let text = error("net_af_packet_none,iface=none0", &Settings::default());
    assert!(text.ends_with("no such interface: none0"), "{text}");
}

fn too_few_queues_say_how_many_there_are() {
    let settings = Settings { queues: Queues::Exactly(17), ..Settings::default() };
    let text = error("net_ring_few", &settings);
    assert!(text.contains("it has 16 queues, 17 are asked for"), "{text}");
}

fn an_mtu_over_the_buffer_says_what_fits() {
    let settings = Settings { mtu: Some(9_000), ..Settings::default() };
    let text = error("net_null_jumbo", &settings);
    assert!(text.contains("an MTU of 9000 is more than it can do: 1902 at most"), "{text}");
    assert!(text.contains("one buffer of 1920 bytes"), "{text}");
}

fn a_name_in_use_says_so() {
    let chunks = Chunks::new();
    let _port = open(dpdk(), "net_null_twice", PortId(0), chunks.0, &Settings::default()).unwrap();
    let text = error("net_null_twice", &Settings::default());
    assert!(text.contains("a device of that name is open"), "{text}");
}
