//! The cluster's state as this project needs it: Services, EndpointSlices, Nodes.
//!
//! Objects are read leniently where the API server is lenient (unknown fields, nulls, empty lists) and
//! checked where it checks, so what is in a [`Cluster`] makes sense: ports are ports, addresses are
//! addresses, no two ports of a Service share a name. Whether an object *matters* on this node (OBJ-02) is
//! decided later, by [`crate::translate`].

mod address;
mod load;
mod meta;
mod node;
mod service;
mod slice;

use std::collections::BTreeMap;

pub use address::{IpPrefix, parse_address};
pub use load::{Loaded, load, read_objects};
pub use meta::NamespacedName;
pub use node::{Deletion, Node};
pub use service::{Service, ServicePort, ServiceType, TrafficPolicy};
pub use slice::{EndpointSlice, SliceEndpoint, SlicePort};

/// All objects that were read (OBJ-01).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cluster {
    /// The Services.
    pub services: BTreeMap<NamespacedName, Service>,
    /// The EndpointSlices.
    pub slices: BTreeMap<NamespacedName, EndpointSlice>,
    /// The Nodes, by name.
    pub nodes: BTreeMap<String, Node>,
}
