//! The pool as DPDK sees it: external memory, and a mempool whose free list is the pool's.
//!
//! Mbuf number i has chunk i, from its first byte; a table leads from the chunk to the mbuf. A mempool handler takes
//! from and gives to the pool, so a driver that refills its ring takes the pool's chunks, and what it frees after sending
//! is at once free for every port. `docs/pool.md` has the proof.
//!
//! **Invariant.** The mbuf of a chunk that DPDK does not have is as DPDK wants a free one: no segment behind it, one
//! segment, one reference, no flag but EXTERNAL. Who takes a frame from DPDK restores that ([`Bridge::take`]).

use std::cell::Cell;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use pollux_dpdk_sys::{self as dpdk, mbuf, rte_mbuf, rte_mempool};

use crate::memory::HUGE_PAGE;
use crate::packet::Chunk;
use crate::pool::{Buffer, CHUNK, Pool};
use crate::port::dpdk::eal::{Control, last_error};

/// The handler's name at DPDK.
const HANDLER: &std::ffi::CStr = c"pollux";

/// The handler of mempools that are not ours, which drivers make for themselves.
const ORDINARY_HANDLER: &std::ffi::CStr = c"ring_mp_mc";

/// A pool that DPDK knows. It lives as long as the process, as pools do.
pub(super) struct Bridge {
    pool: &'static Pool,
    /// Set once the mempool is made.
    mempool: AtomicPtr<rte_mempool>,
    /// The mbuf of each chunk.
    mbufs: Box<[AtomicPtr<rte_mbuf>]>,
    /// How many of them DPDK has made.
    made: AtomicUsize,
}

static BRIDGES: Mutex<Vec<&'static Bridge>> = Mutex::new(Vec::new());

thread_local! {
    /// The bridge whose mempool this thread is making.
    static MAKING: Cell<Option<&'static Bridge>> = const { Cell::new(None) };
}

impl Bridge {
    /// The bridge of `pool`, made when it is asked for first, with the headers of mbufs on the NUMA node `node`.
    ///
    /// # Errors
    /// DPDK has too little memory; devices need physical addresses and the pool lies in ordinary pages.
    pub(super) fn of(pool: &'static Pool, node: c_int, control: &Control) -> io::Result<&'static Bridge> {
        let mut bridges = BRIDGES.lock().expect("no holder of this lock panics");
        if let Some(bridge) = bridges.iter().find(|bridge| std::ptr::eq(bridge.pool, pool)) {
            return Ok(bridge);
        }
        let parts = external_memory(pool)?;
        register(pool, control)?;
        let bridge: &'static Bridge = Box::leak(Box::new(Bridge {
            pool,
            mempool: AtomicPtr::default(),
            mbufs: (0..pool.capacity()).map(|_| AtomicPtr::default()).collect(),
            made: AtomicUsize::new(0),
        }));
        let name = CString::new(format!("pollux-{}", bridges.len())).expect("no zero byte");
        MAKING.set(Some(bridge));
        use_handler(HANDLER);
        // SAFETY: the parts describe the pool's memory, which lives as long as the process; DPDK copies what it keeps.
        let mempool = unsafe {
            dpdk::rte_pktmbuf_pool_create_extbuf(
                name.as_ptr(),
                pool.capacity() as c_uint,
                0,
                0,
                CHUNK as u16,
                node,
                parts.as_ptr(),
                parts.len() as c_uint,
            )
        };
        let error = last_error();
        use_handler(ORDINARY_HANDLER);
        MAKING.set(None);
        if mempool.is_null() {
            let error = control.error(error);
            return Err(io::Error::new(
                error.kind(),
                format!("DPDK takes no pool of {} chunks; more memory may help: {error}", pool.capacity()),
            ));
        }
        bridge.mempool.store(mempool, Ordering::Release);
        bridges.push(bridge);
        Ok(bridge)
    }

    /// What drivers allocate from.
    pub(super) fn mempool(&self) -> *mut rte_mempool {
        self.mempool.load(Ordering::Acquire)
    }

    /// The pool.
    pub(super) fn pool(&self) -> &'static Pool {
        self.pool
    }

    /// The mbuf of a chunk.
    #[inline]
    pub(super) fn mbuf(&self, index: u32) -> *mut rte_mbuf {
        self.mbufs[index as usize].load(Ordering::Relaxed)
    }

    /// The chunk of an mbuf of this bridge, with the part that a frame fills; the mbuf is then as a free one is.
    ///
    /// # Safety
    /// `segment` is a live mbuf of this bridge's mempool, and DPDK has let it go.
    #[inline]
    pub(super) unsafe fn take(&self, segment: *mut rte_mbuf) -> Chunk {
        // SAFETY: promised by the caller: nobody else has the mbuf.
        unsafe {
            let chunk = Chunk {
                index: self.index(segment),
                start: mbuf::data_off(segment),
                len: mbuf::data_len(segment),
            };
            mbuf::set_next(segment, std::ptr::null_mut());
            mbuf::set_nb_segs(segment, 1);
            mbuf::set_ol_flags(segment, dpdk::SHIM_F_EXTERNAL);
            chunk
        }
    }

    /// The chunk of an mbuf of this bridge.
    ///
    /// # Safety
    /// As for [`take`](Bridge::take).
    #[inline]
    unsafe fn index(&self, segment: *const rte_mbuf) -> u32 {
        // SAFETY: promised by the caller.
        let at = unsafe { mbuf::buf_addr(segment) }.addr() - self.pool.region().0.as_ptr().addr();
        (at / CHUNK) as u32
    }

    /// The bridge whose mempool this is, if it is one of ours.
    pub(super) fn of_mempool(mempool: *const rte_mempool) -> Option<&'static Bridge> {
        let bridges = BRIDGES.lock().expect("no holder of this lock panics");
        bridges.iter().find(|bridge| std::ptr::eq(bridge.mempool(), mempool)).copied()
    }
}

/// One piece for each 2 MiB page: a chunk never crosses one, so each may have any address for devices.
fn external_memory(pool: &'static Pool) -> io::Result<Vec<dpdk::rte_pktmbuf_extmem>> {
    let (start, bytes) = pool.region();
    // SAFETY: reads DPDK's state.
    let virtual_addresses = unsafe { dpdk::rte_eal_iova_mode() } == dpdk::rte_iova_mode::RTE_IOVA_VA;
    if !virtual_addresses && !pool.is_huge() {
        return Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "without an IOMMU a card needs frames in huge pages, and the pool of {} MiB found none free: \
                 reserve more (/proc/sys/vm/nr_hugepages)",
                bytes >> 20
            ),
        ));
    }
    let parts = (0..bytes / HUGE_PAGE).map(|number| {
        let part = start.as_ptr().wrapping_add(number * HUGE_PAGE).cast::<c_void>();
        dpdk::rte_pktmbuf_extmem {
            buf_ptr: part,
            buf_iova: if virtual_addresses {
                part.addr() as u64
            } else {
                // SAFETY: looks the address up; it lies in the pool's mapping.
                unsafe { dpdk::rte_mem_virt2iova(part) }
            },
            buf_len: HUGE_PAGE,
            elt_size: CHUNK as u16,
        }
    });
    Ok(parts.collect())
}

/// Tells DPDK of the pool's memory, so that devices may be given access to it.
fn register(pool: &'static Pool, control: &Control) -> io::Result<()> {
    let (start, bytes) = pool.region();
    let page = if pool.is_huge() { HUGE_PAGE } else { 4096 };
    // SAFETY: the range is the pool's mapping, which lives as long as the process.
    let result =
        unsafe { dpdk::rte_extmem_register(start.as_ptr().cast(), bytes, std::ptr::null_mut(), 0, page) };
    match last_error() {
        _ if result >= 0 => Ok(()),
        libc::EEXIST => Ok(()), // an attempt before this one came so far
        error => Err(control.error(error)),
    }
}

/// The handler that the mempools made from now on get.
fn use_handler(name: &std::ffi::CStr) {
    // SAFETY: the name is a string with its end; DPDK copies it.
    unsafe { dpdk::rte_mbuf_set_user_mempool_ops(name.as_ptr()) };
}

/// Makes the handler known to DPDK; once, after it has started.
pub(super) fn register_handler() -> io::Result<()> {
    // SAFETY: the structure is plain numbers and optional functions; all zeros is a valid value.
    let mut handler: dpdk::rte_mempool_ops = unsafe { std::mem::zeroed() };
    for (to, from) in handler.name.iter_mut().zip(HANDLER.to_bytes()) {
        *to = *from as std::ffi::c_char;
    }
    handler.alloc = Some(handler_alloc);
    handler.free = Some(handler_free);
    handler.enqueue = Some(handler_enqueue);
    handler.dequeue = Some(handler_dequeue);
    handler.get_count = Some(handler_count);
    // SAFETY: DPDK copies the structure; its functions live as long as the process.
    let result = unsafe { dpdk::rte_mempool_register_ops(&handler) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// The bridge of a mempool that has our handler.
///
/// # Safety
/// `pool` is a mempool that [`handler_alloc`] has seen.
unsafe fn bridge_of(pool: *const rte_mempool) -> &'static Bridge {
    // SAFETY: `handler_alloc` has put a bridge there, which lives as long as the process.
    unsafe { &*mbuf::pool_data(pool).cast::<Bridge>() }
}

unsafe extern "C" fn handler_alloc(pool: *mut rte_mempool) -> c_int {
    let Some(bridge) = MAKING.get() else {
        return -libc::EINVAL; // a mempool that nobody here has asked for
    };
    // SAFETY: DPDK is making this mempool, and the field is its handler's.
    unsafe { mbuf::set_pool_data(pool, std::ptr::from_ref(bridge).cast_mut().cast()) };
    0
}

unsafe extern "C" fn handler_free(_: *mut rte_mempool) {}

/// While DPDK fills the mempool it enqueues every new object once, in order, before the object has a buffer: object
/// number i will get chunk i. Nothing becomes free by that; the pool knows what is free.
unsafe extern "C" fn handler_enqueue(
    pool: *mut rte_mempool,
    objects: *const *mut c_void,
    count: c_uint,
) -> c_int {
    // SAFETY: DPDK calls the handler with its mempool and `count` mbufs of it that nobody has any more.
    unsafe {
        let bridge = bridge_of(pool);
        let objects = std::slice::from_raw_parts(objects.cast::<*mut rte_mbuf>(), count as usize);
        let mut at = bridge.made.load(Ordering::Relaxed);
        for &object in objects {
            if at < bridge.mbufs.len() {
                bridge.mbufs[at].store(object, Ordering::Release);
                at += 1;
                bridge.made.store(at, Ordering::Release);
            } else {
                drop(Buffer::from_index(bridge.pool, bridge.index(object)));
            }
        }
    }
    0
}

/// All or nothing, as DPDK wants it.
unsafe extern "C" fn handler_dequeue(
    pool: *mut rte_mempool,
    objects: *mut *mut c_void,
    count: c_uint,
) -> c_int {
    // SAFETY: DPDK calls the handler with its mempool and room for `count` pointers.
    unsafe {
        let bridge = bridge_of(pool);
        let objects = std::slice::from_raw_parts_mut(objects.cast::<*mut rte_mbuf>(), count as usize);
        for at in 0..objects.len() {
            let Some(buffer) = bridge.pool.allocate() else {
                for &mut taken in &mut objects[..at] {
                    drop(Buffer::from_index(bridge.pool, bridge.index(taken)));
                }
                return -libc::ENOBUFS;
            };
            objects[at] = bridge.mbuf(buffer.into_index());
        }
    }
    0
}

unsafe extern "C" fn handler_count(pool: *const rte_mempool) -> c_uint {
    // SAFETY: DPDK calls the handler with its mempool.
    unsafe { bridge_of(pool) }.pool.available() as c_uint
}
