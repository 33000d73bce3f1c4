//! Benchmarks of Pollux; see `benches/`.

#[cfg(feature = "control")]
pub mod cluster;
pub mod conntrack;
pub mod idle;
pub mod instructions;
pub mod internet;
pub mod machine;
pub mod node;
pub mod pipeline;
#[cfg(feature = "control")]
pub mod services;

/// Work that is measured: run after run, each followed by a check that nobody measures.
pub trait Work {
    /// How many packets (or whatever the work counts by) one run handles.
    fn operations(&self) -> u64;

    /// The work. Nothing else is measured.
    fn run(&mut self);

    /// How many operations of the last run had the right result: a work that does less is not faster. Makes
    /// everything ready for the next run.
    fn check(&mut self) -> u64;
}
