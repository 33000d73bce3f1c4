//! `memory`: two rings and a handle.

use pollux_dataplane::packet::PortId;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::memory::{Link, MemoryHandle, MemoryPort, Rings};

use crate::backends::Backend;
use crate::bench::{Bench, Device, Lease, Sent, Wire};
use crate::frame::Frame;
use crate::nature::{
    Down, EVERYTHING, EmptyPool, FullReceive, FullTransmit, Jumbo, Longest, MARKED, Nature, Needs, Sleep,
    Unfit,
};

pub(super) const NATURE: Nature = Nature {
    name: "memory",
    far_end: "a handle",
    needs: Needs::Nothing,
    out: EVERYTHING,
    into: MARKED,
    shortest: 0,
    longest: Longest::Any,
    unfit: Unfit::StayWithCaller,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::Missed,
    full_transmit: FullTransmit::Refused,
    empty_pool: EmptyPool::BringTheirOwn,
    down: Down::Told,
    sleep: Sleep::Polls,
};

pub(super) const BACKEND: Backend = Backend { nature: &NATURE, open };

/// The far end has memory of its own: the port's pool may be empty and its frames arrive all the same.
pub(super) struct MemoryWire {
    handle: MemoryHandle,
    lease: Lease,
}

pub(super) fn parts(rings: Rings, id: PortId) -> (MemoryPort, MemoryWire) {
    let (port, handle) = MemoryPort::new(id, NATURE.out, rings);
    (port, MemoryWire { handle, lease: Lease::new() })
}

fn open(pool: &'static Pool, id: PortId) -> Bench {
    let (port, wire) = parts(Rings::default(), id);
    Bench::new(&NATURE, pool, Box::new(port), Box::new(wire), Box::new(()))
}

impl Wire for MemoryWire {
    fn send(&mut self, frame: &Frame) -> Sent {
        self.handle.inject(frame.packet(self.lease.pool()));
        Sent::OnItsWay
    }

    fn receive(&mut self) -> Option<Frame> {
        self.handle.take_sent().map(|packet| Frame::of(&packet))
    }

    fn memory(&self) -> Option<&'static Pool> {
        Some(self.lease.pool())
    }

    fn set_device(&mut self, device: Device) {
        self.handle.set_link(match device {
            Device::Up => Link::Up,
            Device::Down => Link::Down,
        });
    }
}
