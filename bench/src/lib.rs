//! Benchmarks of Pollux; see `benches/`.
