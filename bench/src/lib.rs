//! Benchmarks of Pollux; see `benches/`.

pub mod instructions;
