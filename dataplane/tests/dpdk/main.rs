//! DPDK's virtual devices as ports, in network namespaces of this process. No card and no huge page is needed.
//!
//! DPDK is started once for the process; each test opens devices of its own, under names of its own, and ends with every
//! chunk back in its pool.

mod errors;
mod kernel_devices;
mod memory_devices;
#[path = "../ports/sandbox.rs"]
#[allow(dead_code, reason = "shared with the tests of the kernel's ports")]
mod sandbox;
#[path = "../ports/topology.rs"]
#[allow(dead_code, reason = "shared with the tests of the kernel's ports")]
mod topology;

use std::sync::OnceLock;

use libtest_mimic::{Arguments, Trial};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::dpdk::Eal;
use pollux_dataplane::port::dpdk::eal::{Options, Pages};

/// DPDK in ordinary pages.
fn options() -> Options {
    Options { pages: Pages::Ordinary, memory: 384, ..Options::default() }
}

/// DPDK, started for all tests.
fn dpdk() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| Eal::start(&options()).expect("DPDK starts in ordinary pages"))
}

/// A pool, all of whose chunks must be back when it is dropped.
struct Chunks(&'static Pool);

impl Chunks {
    fn new() -> Chunks {
        Chunks(Pool::new(4096).expect("memory for a pool"))
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.0.available(), self.0.capacity(), "chunks leaked");
        }
    }
}

fn main() {
    let arguments = Arguments::from_args();
    // Before any thread is started: only a process of one thread may enter a user namespace.
    let rights = sandbox::enter();
    let mut trials: Vec<Trial> = memory_devices::trials();
    trials.extend(kernel_devices::trials(rights));
    trials.extend(errors::trials());
    if rights != sandbox::Rights::Root {
        println!("not root: DPDK's AF_XDP driver is left out");
    }
    libtest_mimic::run(&arguments, trials).exit();
}
