//! The fault injector around a port: a wire with no faults must be no worse than none.

use std::time::Instant as Time;

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::fault::{FaultHandle, FaultPort, Faults};
use pollux_dataplane::port::memory::Rings;
use pollux_dataplane::time::Instant;

use crate::backends::{Backend, af_packet, memory};
use crate::bench::{Bench, Device, Sent, Taking, Wire};
use crate::frame::Frame;
use crate::nature::{
    Arrival, COMPLETE, Down, EmptyPool, FullReceive, FullTransmit, Into, Jumbo, Longest, Nature, Needs,
    Sleep, Unfit,
};

pub(super) const MEMORY: Nature = Nature {
    name: "faults_on_memory",
    far_end: "a handle",
    needs: Needs::Nothing,
    out: COMPLETE,
    into: Into { checksums: Arrival::Finished, super_frames: Arrival::Finished },
    shortest: 0,
    longest: Longest::Any,
    unfit: Unfit::LostBehind,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::Missed,
    full_transmit: FullTransmit::Refused,
    empty_pool: EmptyPool::BringTheirOwn,
    down: Down::ToldLater,
    sleep: Sleep::Polls,
};

pub(super) const AF_PACKET: Nature = Nature {
    name: "faults_on_af_packet",
    far_end: "a raw socket at the veth's peer",
    needs: Needs::Namespace,
    out: COMPLETE,
    into: Into { checksums: Arrival::Finished, super_frames: Arrival::Finished },
    shortest: 14,
    longest: Longest::Bytes(1514),
    unfit: Unfit::LostBehind,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::Missed,
    full_transmit: FullTransmit::Refused,
    empty_pool: EmptyPool::Missed,
    down: Down::ToldLater,
    sleep: Sleep::Descriptor,
};

pub(super) const OVER_MEMORY: Backend = Backend { nature: &MEMORY, open: over_memory };
pub(super) const OVER_AF_PACKET: Backend = Backend { nature: &AF_PACKET, open: over_af_packet };

/// The far end behind the injector, whose losses are the wire's.
struct Behind<W> {
    wire: W,
    faults: FaultHandle,
}

impl<W: Wire> Wire for Behind<W> {
    fn send(&mut self, frame: &Frame) -> Sent {
        self.wire.send(frame)
    }

    fn receive(&mut self) -> Option<Frame> {
        self.wire.receive()
    }

    fn set_taking(&mut self, taking: Taking) {
        self.wire.set_taking(taking);
    }

    fn set_device(&mut self, device: Device) {
        self.wire.set_device(device);
    }

    fn set_mtu(&mut self, bytes: usize) -> bool {
        self.wire.set_mtu(bytes)
    }

    fn memory(&self) -> Option<&'static Pool> {
        self.wire.memory()
    }

    fn lost(&mut self) -> u64 {
        self.wire.lost() + self.faults.incoming().lost + self.faults.outgoing().lost
    }
}

fn around<W: Wire>(port: impl Port + 'static, wire: W) -> (Box<dyn Port>, Box<Behind<W>>) {
    let start = Time::now();
    let clock = Box::new(move || Instant(start.elapsed().as_nanos() as u64));
    let (port, faults) = FaultPort::new(Box::new(port), Faults::default(), clock);
    (Box::new(port), Box::new(Behind { wire, faults }))
}

fn over_memory(pool: &'static Pool, id: PortId) -> Bench {
    let (port, wire) = memory::parts(Rings { receive: 512, transmit: 512 }, id);
    let (port, wire) = around(port, wire);
    Bench::new(&MEMORY, pool, port, wire, Box::new(()))
}

fn over_af_packet(pool: &'static Pool, id: PortId) -> Bench {
    let (port, wire, namespace) = af_packet::parts(pool, id);
    let (port, wire) = around(port, wire);
    Bench::new(&AF_PACKET, pool, port, wire, Box::new(namespace))
}
