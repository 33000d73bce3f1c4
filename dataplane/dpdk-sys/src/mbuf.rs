//! Fields of a `struct rte_mbuf` and of a `struct rte_mempool`, by offset.
//!
//! All functions are as safe as a field access through the same pointer: it must point to a live mbuf (mempool) that
//! nobody else writes meanwhile.
#![allow(clippy::missing_safety_doc, reason = "the module says it once for all")]

use std::ffi::c_void;

use crate as dpdk;
use crate::{rte_mbuf, rte_mempool};

macro_rules! fields {
    ($($(#[$doc:meta])* $get:ident $(, $set:ident)?: $kind:ty, $offset:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $get(mbuf: *const rte_mbuf) -> $kind {
            // SAFETY: the field lies at this offset of a live mbuf, with this type and alignment.
            unsafe { mbuf.byte_add(dpdk::$offset as usize).cast::<$kind>().read() }
        }
        $(
            #[doc = concat!("Sets [`", stringify!($get), "`].")]
            #[inline(always)]
            pub unsafe fn $set(mbuf: *mut rte_mbuf, value: $kind) {
                // SAFETY: as for reading, and nobody else has the mbuf.
                unsafe { mbuf.byte_add(dpdk::$offset as usize).cast::<$kind>().write(value) }
            }
        )?
    )*};
}

fields! {
    /// The buffer's first byte, headroom included.
    buf_addr: *mut u8, SHIM_MBUF_BUF_ADDR;
    /// Where the data starts in the buffer, bytes.
    data_off, set_data_off: u16, SHIM_MBUF_DATA_OFF;
    /// Number of segments; valid in the first one.
    nb_segs, set_nb_segs: u16, SHIM_MBUF_NB_SEGS;
    /// Flags of both directions.
    ol_flags, set_ol_flags: u64, SHIM_MBUF_OL_FLAGS;
    /// Bytes of all segments; valid in the first one.
    pkt_len, set_pkt_len: u32, SHIM_MBUF_PKT_LEN;
    /// Bytes of this segment.
    data_len, set_data_len: u16, SHIM_MBUF_DATA_LEN;
    /// The mempool that the mbuf returns to.
    pool: *mut rte_mempool, SHIM_MBUF_POOL;
    /// The segment behind this one.
    next, set_next: *mut rte_mbuf, SHIM_MBUF_NEXT;
    /// Lengths of headers and of TCP segments, for a device that needs them.
    tx_offload, set_tx_offload: u64, SHIM_MBUF_TX_OFFLOAD;
}

/// What a mempool handler keeps at its mempool.
#[inline(always)]
pub unsafe fn pool_data(pool: *const rte_mempool) -> *mut c_void {
    // SAFETY: the field lies at this offset of a live mempool.
    unsafe { pool.byte_add(dpdk::SHIM_MEMPOOL_POOL_DATA as usize).cast::<*mut c_void>().read() }
}

/// Sets what a mempool handler keeps at its mempool.
#[inline(always)]
pub unsafe fn set_pool_data(pool: *mut rte_mempool, data: *mut c_void) {
    // SAFETY: as above, and the handler owns the field.
    unsafe { pool.byte_add(dpdk::SHIM_MEMPOOL_POOL_DATA as usize).cast::<*mut c_void>().write(data) }
}
