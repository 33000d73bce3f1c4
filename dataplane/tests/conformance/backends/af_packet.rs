//! `af_packet`: an end of a veth pair; at the other end a raw socket.

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options};

use crate::backends::Backend;
use crate::bench::Bench;
use crate::nature::{
    Down, EVERYTHING, EmptyPool, FullReceive, FullTransmit, Jumbo, Longest, MARKED, Nature, Needs, Sleep,
    Unfit,
};
use crate::raw::{RawWire, wait_until_up};
use crate::sandbox::{Namespace, ip};

pub(super) const NATURE: Nature = Nature {
    name: "af_packet",
    far_end: "a raw socket at the veth's peer",
    needs: Needs::Namespace,
    out: EVERYTHING,
    into: MARKED,
    shortest: 14,
    longest: Longest::Bytes(1514),
    unfit: Unfit::StayWithCaller,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::Missed,
    full_transmit: FullTransmit::Refused,
    empty_pool: EmptyPool::Missed,
    down: Down::Told,
    sleep: Sleep::Descriptor,
};

pub(super) const BACKEND: Backend = Backend { nature: &NATURE, open };

/// A new pair of interfaces, `va` and `vb`, in a namespace that the thread enters; the far end of `va`.
pub(super) fn veth() -> (RawWire, Namespace) {
    let namespace = Namespace::new();
    namespace.enter();
    ip("link add va type veth peer name vb");
    ip("link set va up");
    ip("link set vb up");
    wait_until_up("va");
    wait_until_up("vb");
    (RawWire::new("va", "vb"), namespace)
}

/// A port on such a pair.
pub(super) fn parts(pool: &'static Pool, id: PortId) -> (AfPacketPort, RawWire, Namespace) {
    let (wire, namespace) = veth();
    let port = AfPacketPort::open("va", id, pool, Options::default()).expect("a port on va");
    (port, wire, namespace)
}

fn open(pool: &'static Pool, id: PortId) -> Bench {
    let (port, wire, namespace) = parts(pool, id);
    Bench::new(&NATURE, pool, Box::new(port), Box::new(wire), Box::new(namespace))
}
