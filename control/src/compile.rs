//! Everything together: the cluster's objects, the configuration and the node, compiled into the snapshot
//! that the data plane reads, and the names of what is in it.

use std::sync::Arc;

use pollux_dataplane::packet::{Family, V4, V6};
use pollux_dataplane::tables::{FamilyTables, LoopbackGuard, Masquerade, Tables};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::config::proxy::LocalhostNodePorts;
use crate::node::{FamilyView, NodeView};
use crate::problem::Problem;
use crate::translate::{HealthCheck, Input, ServicePortRules, translate};

/// Compiled tables and what `control` keeps beside them.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For the data plane.
    pub tables: Arc<Tables>,
    /// The service ports of IPv4: a frontend's `service_port` is a place in it.
    pub ports_v4: Vec<ServicePortRules<V4>>,
    /// Those of IPv6.
    pub ports_v6: Vec<ServicePortRules<V6>>,
    /// The health checks that this node answers (UP-05).
    pub health_checks: Vec<HealthCheck>,
    /// Conflicts that were decided, and the like: worth saying, no error.
    pub reports: Vec<Problem>,
}

/// Compiles the tables of the node called `node_name`.
pub fn compile(cluster: &Cluster, config: &Config, node_name: &str, view: &NodeView) -> Compiled {
    let local_addresses = view.local_addresses();
    let input = Input {
        cluster,
        proxy: &config.proxy,
        node_name,
        service_proxy_name: config.node.as_ref().and_then(|node| node.service_proxy_name.as_deref()),
        local_addresses: &local_addresses,
    };
    let v4 = translate::<V4>(&input);
    let v6 = translate::<V6>(&input);
    let (mut reports, mut health_checks) = (v4.reports, v4.health_checks);
    reports.extend(v6.reports);
    health_checks.extend(v6.health_checks);
    health_checks.dedup();
    let sticky = v4.ports.iter().filter(|port| port.affinity.is_some()).map(|port| &port.id);
    reports.extend(sticky.map(|port| Problem {
        file: None,
        object: format!("services/{port}"),
        text: "sessionAffinity ClientIP: not applied yet, each connection chooses anew (AF-01)".into(),
    }));
    let tables = Tables {
        ports: view.ports.clone(),
        v4: Some(family_tables(v4.services, &view.v4, v4.localhost_node_ports)),
        // A node without an IPv6 address forwards none: such frames are left to the host.
        v6: view.has_v6().then(|| family_tables(v6.services, &view.v6, v6.localhost_node_ports)),
        masquerade: Masquerade { mark: v4.mark, ports: view.masquerade_ports },
    };
    Compiled { tables: Arc::new(tables), ports_v4: v4.ports, ports_v6: v6.ports, health_checks, reports }
}

impl NodeView {
    /// Whether an interface has an IPv6 address other than loopback.
    pub fn has_v6(&self) -> bool {
        self.v6.routing.interfaces.local_addresses().iter().any(|address| !address.is_loopback())
    }
}

fn family_tables<A: Family>(
    services: pollux_dataplane::service::Services<A>,
    view: &FamilyView<A>,
    localhost: LocalhostNodePorts,
) -> FamilyTables<A> {
    FamilyTables {
        services,
        routing: view.routing.clone(),
        masquerade: view.masquerade.clone(),
        loopback_guard: match localhost {
            LocalhostNodePorts::Enabled => LoopbackGuard::On,
            LocalhostNodePorts::Disabled => LoopbackGuard::Off,
        },
    }
}
