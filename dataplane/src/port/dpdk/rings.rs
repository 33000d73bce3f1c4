//! A cable between two ports of this process: two rings, no wire, no copy.

use std::ffi::CString;
use std::io;
use std::sync::Arc;

use pollux_dpdk_sys as dpdk;

use crate::packet::PortId;
use crate::pool::Pool;
use crate::port::dpdk::DpdkPort;
use crate::port::dpdk::device::{self, Settings};
use crate::port::dpdk::eal::{self, Eal, last_error};

/// The two rings of a cable. Freed with its second end.
pub struct Cable {
    rings: [*mut dpdk::rte_ring; 2],
}

// SAFETY: the rings are used by the devices at their ends alone; here they are made and freed.
unsafe impl Send for Cable {}
// SAFETY: as above.
unsafe impl Sync for Cable {}

/// Two ports (`net_ring`), joined: what one sends, the other receives. `slots` frames wait in each direction, less one;
/// it is a power of two. `name` is at most 20 bytes long and no other cable's.
///
/// # Errors
/// The name is taken or too long; DPDK has no memory.
pub fn cable(
    _: Eal,
    name: &str,
    slots: u32,
    ports: [PortId; 2],
    pool: &'static Pool,
    settings: &Settings,
) -> io::Result<[DpdkPort; 2]> {
    let mut control = eal::control();
    let mut cable = Cable { rings: [std::ptr::null_mut(); 2] };
    for (number, ring) in cable.rings.iter_mut().enumerate() {
        let label = CString::new(format!("{name}{number}"))?;
        let flags = dpdk::RING_F_SP_ENQ | dpdk::RING_F_SC_DEQ;
        // SAFETY: the name has its end; DPDK copies it.
        *ring = unsafe { dpdk::rte_ring_create(label.as_ptr(), slots, dpdk::SOCKET_ID_ANY, flags) };
        if ring.is_null() {
            return Err(control.error(last_error()));
        }
    }
    let cable = Arc::new(cable);
    let mut end = |number: usize| {
        let label = format!("{name}{}", ['a', 'b'][number]);
        let text = CString::new(label.as_str())?;
        let (receive, send) = (cable.rings[number], cable.rings[1 - number]);
        // SAFETY: the rings live as long as the device, which holds the cable; DPDK copies the arrays.
        let made = unsafe { dpdk::rte_eth_from_rings(text.as_ptr(), &receive, 1, &send, 1, 0) };
        if made < 0 {
            return Err(control.error(last_error()));
        }
        device::open_end(&mut control, &format!("net_ring_{label}"), ports[number], pool, settings, &cable)
    };
    let first = end(0)?;
    let second = end(1);
    // Before the first end is closed, should it have to be.
    drop(control);
    Ok([first, second?])
}

impl Drop for Cable {
    fn drop(&mut self) {
        for ring in self.rings.into_iter().filter(|ring| !ring.is_null()) {
            let mut mbuf = std::ptr::null_mut();
            // SAFETY: both ends are closed. What the second one sent after the first was closed lies there still; a
            // ring of this cable carries mbufs only.
            unsafe {
                while dpdk::shim_ring_dequeue(ring, &mut mbuf) == 0 {
                    dpdk::shim_pktmbuf_free(mbuf.cast());
                }
                dpdk::rte_ring_free(ring);
            }
        }
    }
}
