//! `tap`: the interface that the port makes; a raw socket at it stands for the node's own stack.

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::tap::TapPort;

use crate::backends::Backend;
use crate::bench::Bench;
use crate::nature::{
    Down, EVERYTHING, EmptyPool, FullReceive, FullTransmit, Jumbo, Longest, MARKED, Nature, Needs, Sleep,
    Unfit,
};
use crate::raw::{RawWire, wait_until_up};
use crate::sandbox::{Namespace, ip};

pub(super) const NATURE: Nature = Nature {
    name: "tap",
    far_end: "a raw socket at the interface",
    needs: Needs::Tun,
    out: EVERYTHING,
    into: MARKED,
    shortest: 14,
    longest: Longest::Any,
    unfit: Unfit::StayWithCaller,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::Interface,
    full_transmit: FullTransmit::Never,
    empty_pool: EmptyPool::Missed,
    down: Down::ToldWhenSending,
    sleep: Sleep::Descriptor,
};

pub(super) const BACKEND: Backend = Backend { nature: &NATURE, open };

fn open(pool: &'static Pool, id: PortId) -> Bench {
    let namespace = Namespace::new();
    namespace.enter();
    let port = TapPort::open("tap0", id, pool).expect("a TAP interface");
    ip("link set tap0 up");
    wait_until_up("tap0");
    let wire = RawWire::new("tap0", "tap0");
    Bench::new(&NATURE, pool, Box::new(port), Box::new(wire), Box::new(namespace))
}
