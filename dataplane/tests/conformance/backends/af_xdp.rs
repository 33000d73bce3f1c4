//! `af_xdp`: an end of a veth pair, its frames steered into the pool's memory by a program in the driver or in the
//! kernel's stack; at the other end a raw socket.

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_xdp::{AfXdpPort, Mode, Options, Steer};

use crate::backends::{Backend, af_packet};
use crate::bench::Bench;
use crate::nature::{
    Arrival, COMPLETE, Down, EmptyPool, FullReceive, FullTransmit, Into, Jumbo, Longest, Nature, Needs,
    Sleep, Unfit,
};

pub(super) const NATURE: Nature = Nature {
    name: "af_xdp",
    far_end: "a raw socket at the veth's peer",
    needs: Needs::Root,
    out: COMPLETE,
    into: Into { checksums: Arrival::Marked, super_frames: Arrival::Cut },
    shortest: 14,
    longest: Longest::Bytes(1514),
    unfit: Unfit::StayWithCaller,
    jumbo: Jumbo::DeviceRefuses,
    full_receive: FullReceive::Both,
    full_transmit: FullTransmit::Never,
    empty_pool: EmptyPool::Missed,
    down: Down::Told,
    sleep: Sleep::Descriptor,
};

pub(super) const GENERIC: Nature = Nature {
    name: "af_xdp_generic",
    into: Into { checksums: Arrival::Marked, super_frames: Arrival::Missed },
    jumbo: Jumbo::Missed,
    full_receive: FullReceive::Missed,
    ..NATURE
};

pub(super) const BACKEND: Backend = Backend { nature: &NATURE, open: native };
pub(super) const IN_THE_STACK: Backend = Backend { nature: &GENERIC, open: generic };

/// Entries of each ring: few, so that they fill.
const RING: u32 = 256;

fn native(pool: &'static Pool, id: PortId) -> Bench {
    open(&NATURE, Mode::Native, pool, id)
}

fn generic(pool: &'static Pool, id: PortId) -> Bench {
    open(&GENERIC, Mode::Generic, pool, id)
}

fn open(nature: &'static Nature, mode: Mode, pool: &'static Pool, id: PortId) -> Bench {
    let (wire, namespace) = af_packet::veth();
    let options = Options { mode, steer: Steer::Everything, ring: RING, ..Options::default() };
    let mut ports = AfXdpPort::open("va", id, pool, &options).expect("a port on va");
    let port = ports.pop().expect("a port for the first worker");
    assert!(ports.is_empty(), "one port for one worker");
    Bench::new(nature, pool, Box::new(port), Box::new(wire), Box::new(namespace))
}
