//! The kernel judges sequences of packets: each packet of a small script is sent to twin nodes, of which one
//! has kube-proxy's rules in its kernel and the other Pollux, and after every packet what left and the two
//! connection tables are compared: the kernel's own, asked for over netlink, and Pollux's.
//!
//! ```text
//! script.rs   who sends what ─→ nodes.rs ─┬→ frame.rs      the packet, as bytes, into both nodes
//! roles.rs    who they are   ─→           ├→ describe.rs   what left, in words
//!                                         └→ ctnetlink.rs  the kernel's table   ─→ judge.rs: equal, or meant
//! ```
//!
//! Compared are every field of what left and where it left; of a connection both tuples, the state, whether
//! it was replied to, whether it is assured, and which timeout runs since when: timeouts are set so far apart on both
//! nodes that the time left tells. Masqueraded ports are kept (NAT-05), so that little is free: the port chosen when
//! it is taken, the identification of packets that a node makes. Fragments are compared put together, when their
//! datagram is complete, with the places where it was cut.

mod ctnetlink;
mod describe;
mod frame;
mod judge;
mod nodes;
mod roles;
mod script;

use std::path::Path;

use pollux_dataplane::packet::{V4, V6};

use crate::cluster;
use crate::config;
use crate::iptables::generate::generate;
use crate::problem::{Problem, Problems};
use crate::translate::Input;

pub use super::twins::{Family, Scenario};
pub(in crate::lab) use judge::Entry;
pub use judge::{Deliberate, Outcome, What, judge, parse_deliberate};
pub use nodes::Nodes;
pub use script::{Sequence, parse};

/// The cluster in a folder (`objects.yaml`, `proxy-config.yaml`) with the rules that kube-proxy would write for
/// it, but that masqueraded ports are kept, as the seed's rules keep them.
///
/// # Errors
/// What is wrong with its files.
pub fn scenario(folder: &Path, family: Family) -> Result<Scenario, Problems> {
    let cluster = cluster::load(&[folder.join("objects.yaml")])?.cluster;
    let proxy = config::load(&[folder.join("proxy-config.yaml")])?.0.proxy;
    let name = proxy.hostname_override.clone().unwrap_or_default();
    let node = cluster.nodes.get(&name).ok_or_else(|| {
        let text = format!("hostnameOverride {name:?} is no Node of the objects");
        Problems(vec![Problem { file: Some(folder.into()), object: String::new(), text }])
    })?;
    let local_addresses = node.internal_ips.clone();
    let input = Input {
        cluster: &cluster,
        proxy: &proxy,
        node_name: &name,
        service_proxy_name: None,
        local_addresses: &local_addresses,
    };
    let rules = match family {
        Family::IPv4 => generate::<V4>(&input).to_string(),
        Family::IPv6 => generate::<V6>(&input).to_string(),
    };
    Ok(Scenario {
        name: "sequences".to_owned(),
        family,
        node_name: name,
        local_addresses,
        proxy,
        cluster,
        rules: rules.replace(" --random-fully", ""),
        settings: Vec::new(),
        flows: None,
    })
}
