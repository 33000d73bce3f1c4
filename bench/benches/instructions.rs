//! Instruction counts of the data plane's inner work, guarded against regression.
//!
//! `cargo bench -p pollux-bench --bench instructions [-- --update]`

use std::process::ExitCode;

use pollux_bench::instructions::{self, Case, Work};
use pollux_dataplane::packet::{BURST, Burst, Packet, PortId};
use pollux_dataplane::pool::Pool;

const CASES: &[Case] = &[Case { name: "pool", prepare: pool }];

fn main() -> ExitCode {
    instructions::main(CASES)
}

/// A burst of empty packets is taken from the pool and dropped, 128 times over.
fn pool() -> Work {
    const BURSTS: usize = 128;
    let pool = Pool::new(4096).expect("8 MiB can be mapped");
    Work {
        operations: (BURSTS * BURST) as u64,
        warm_up: 1,
        run: Box::new(move || {
            let mut taken = 0;
            for _ in 0..BURSTS {
                let mut burst = Burst::new();
                for _ in 0..BURST {
                    let Ok(packet) = Packet::new(pool, PortId(0)) else {
                        break;
                    };
                    burst.push(packet);
                }
                taken += burst.len() as u64;
                drop(burst);
            }
            // Nothing was lost on the way.
            if pool.available() == pool.capacity() { taken } else { 0 }
        }),
    }
}
