//! What the tests of Pollux share: frames made without Pollux's code, the seed's cluster and its captures, its
//! walks as data, a worker on ports in memory, and the command.

pub mod binary;
pub mod capture;
pub mod frame;
pub mod node;
pub mod seed;
pub mod walks;
