//! Instruction counts of the data plane, guarded against regression.
//!
//! `cargo bench -p pollux-bench --bench instructions [-- --update]`

use std::process::ExitCode;

use pollux_bench::Work;
use pollux_bench::instructions::{self, Case};
use pollux_bench::pipeline::{Established, Openings};
use pollux_dataplane::packet::{BURST, Burst, Packet, PortId};
use pollux_dataplane::pool::Pool;

const CASES: &[Case] = &[
    Case { name: "pool", prepare: || Box::new(Buffers::new()) },
    Case { name: "established", prepare: || Box::new(Established::new(1000)) },
    Case { name: "new", prepare: || Box::new(Openings::new()) },
];

fn main() -> ExitCode {
    instructions::main(CASES)
}

/// Bursts of empty packets are taken from the pool and dropped.
struct Buffers {
    pool: &'static Pool,
    taken: u64,
}

impl Buffers {
    const BURSTS: usize = 128;

    fn new() -> Buffers {
        Buffers { pool: Pool::new(4096).expect("8 MiB can be mapped"), taken: 0 }
    }
}

impl Work for Buffers {
    fn operations(&self) -> u64 {
        (Buffers::BURSTS * BURST) as u64
    }

    fn run(&mut self) {
        for _ in 0..Buffers::BURSTS {
            let mut burst = Burst::new();
            for _ in 0..BURST {
                let Ok(packet) = Packet::new(self.pool, PortId(0)) else {
                    break;
                };
                burst.push(packet);
            }
            self.taken += burst.len() as u64;
        }
    }

    fn check(&mut self) -> u64 {
        let taken = std::mem::take(&mut self.taken);
        // Nothing was lost on the way.
        if self.pool.available() == self.pool.capacity() { taken } else { 0 }
    }
}
