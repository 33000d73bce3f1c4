//! A host port where `/dev/net/tun` may not be opened (an ordinary user's namespaces on some machines): a
//! veth pair instead of a TAP. The host has one end, under the host port's name; a packet socket has the
//! other, whose frames the kernel ignores, since they are addressed to the host's end.

use std::io;
use std::os::fd::BorrowedFd;

use pollux_dataplane::packet::{Burst, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options};
use pollux_dataplane::port::{Capabilities, Port};
use tracing::warn;

use crate::kernel::netns::Netns;

/// The end of the pair that Pollux has.
pub(super) struct PairPort {
    port: AfPacketPort,
    netns: Netns,
    interface: String,
}

/// The name of the far end of the pair whose near end is called `interface`.
pub(super) fn far_end(interface: &str) -> String {
    format!("{interface:.12}-px")
}

impl PairPort {
    /// Makes the pair in the calling thread's network namespace. One that a crash left behind is made anew.
    pub(super) fn open(interface: &str, mtu: u32, id: PortId, pool: &'static Pool) -> io::Result<PairPort> {
        let netns = Netns::current().map_err(io::Error::other)?;
        let far = far_end(interface);
        let _ = netns.ip(&format!("link delete {far}")); // mostly there is none
        netns
            .ip(&format!(
                "link add {interface} mtu {mtu} type veth peer name {far} mtu {mtu}\n\
                 link set {far} arp off addrgenmode none up"
            ))
            .map_err(io::Error::other)?;
        match AfPacketPort::open(&far, id, pool, Options::default()) {
            Ok(port) => Ok(PairPort { port, netns, interface: interface.to_owned() }),
            Err(error) => {
                let _ = netns.ip(&format!("link delete {interface}"));
                Err(error)
            }
        }
    }
}

impl Drop for PairPort {
    fn drop(&mut self) {
        if let Err(error) = self.netns.ip(&format!("link delete {}", self.interface)) {
            warn!("the host port's interface could not be removed: {error}");
        }
    }
}

impl Port for PairPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.port.receive(burst)
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.port.transmit(burst)
    }

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.port.readiness()
    }

    fn missed(&mut self) -> u64 {
        self.port.missed()
    }
}
