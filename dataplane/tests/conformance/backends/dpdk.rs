//! `dpdk`: a virtual device of DPDK. The description is here always; the device with the feature `dpdk` alone.

use crate::nature::{
    Arrival, COMPLETE, Down, EmptyPool, FullReceive, FullTransmit, Into, Jumbo, Longest, Nature, Needs,
    Sleep, Unfit,
};

/// Largest IP packet of a ring, bytes: it takes what there is.
const MTU: u16 = u16::MAX;

/// Two ports joined by rings: the far end is a port as well.
pub(super) const RING: Nature = Nature {
    name: "dpdk_net_ring",
    far_end: "another port, joined by two rings",
    needs: Needs::Nothing,
    out: COMPLETE,
    into: Into { checksums: Arrival::Bare, super_frames: Arrival::Bare },
    shortest: 0,
    longest: Longest::Bytes(MTU as usize + 14),
    unfit: Unfit::StayWithCaller,
    jumbo: Jumbo::Whole,
    full_receive: FullReceive::SenderWaits,
    full_transmit: FullTransmit::Refused,
    empty_pool: EmptyPool::SendersMemory,
    down: Down::NoDevice,
    sleep: Sleep::Polls,
};

#[cfg(feature = "dpdk")]
pub(super) use devices::ON_RING;

#[cfg(feature = "dpdk")]
mod devices {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use pollux_dataplane::packet::{Burst, PortId};
    use pollux_dataplane::pool::Pool;
    use pollux_dataplane::port::Port;
    use pollux_dataplane::port::dpdk::eal::{Options, Pages};
    use pollux_dataplane::port::dpdk::{DpdkPort, Eal, Settings, cable};

    use super::{MTU, RING};
    use crate::backends::Backend;
    use crate::bench::{Bench, Device, Lease, Sent, Wire};
    use crate::frame::Frame;

    pub(crate) const ON_RING: Backend = Backend { nature: &RING, open: ring };

    /// Frames that wait in a ring, and one more.
    const SLOTS: u32 = 512;

    /// Megabytes for DPDK's own tables.
    const MEMORY: u32 = 384;

    /// DPDK in ordinary pages, started once for all tests.
    fn dpdk() -> Eal {
        static EAL: OnceLock<Eal> = OnceLock::new();
        let options = Options { pages: Pages::Ordinary, memory: MEMORY, ..Options::default() };
        *EAL.get_or_init(|| Eal::start(&options).expect("DPDK starts in ordinary pages"))
    }

    /// A name that no other device has.
    fn name(kind: &str) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("{kind}{}", NUMBER.fetch_add(1, Ordering::Relaxed))
    }

    fn ring(pool: &'static Pool, id: PortId) -> Bench {
        let settings = Settings { mtu: Some(MTU), ..Settings::default() };
        let ends = cable(dpdk(), &name("bench"), SLOTS, [id, PortId(77)], pool, &settings);
        let [port, far] = ends.expect("a cable");
        let wire = RingWire { far, lease: Lease::new() };
        Bench::new(&RING, pool, Box::new(port), Box::new(wire), Box::new(()))
    }

    /// The other end of the cable.
    struct RingWire {
        far: DpdkPort,
        lease: Lease,
    }

    impl Wire for RingWire {
        fn send(&mut self, frame: &Frame) -> Sent {
            let mut packet = frame.packet(self.lease.pool());
            // There are no marks on this wire.
            packet.offload = Default::default();
            let mut burst: Burst = [packet].into_iter().collect();
            self.far.transmit(&mut burst).expect("a ring has no errors");
            if burst.is_empty() { Sent::OnItsWay } else { Sent::Refused }
        }

        fn receive(&mut self) -> Option<Frame> {
            let mut burst: Burst = Burst::new();
            // One at a time: the rest stays in the ring.
            let filler = std::iter::from_fn(|| Some(Frame::default().packet(self.lease.pool())));
            burst.extend(filler.take(burst.capacity() - 1));
            let held = burst.len();
            self.far.receive(&mut burst).expect("a ring has no errors");
            (burst.len() > held).then(|| Frame::of(&burst[held]))
        }

        fn set_device(&mut self, _: Device) {
            unreachable!("there is no device");
        }
    }
}
