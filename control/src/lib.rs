//! The control plane: cluster objects in, data plane tables out.

pub mod kernel;
pub mod lab;
