//! Everything together: the cluster's objects, the configuration and the node, compiled into the snapshot
//! that the data plane reads, and the names of what is in it.

use std::sync::Arc;

use pollux_dataplane::packet::{Family, V4, V6};
use pollux_dataplane::tables::{FamilyTables, LoopbackGuard, Masquerade, Peers, Ports, Routing, Tables};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::config::proxy::LocalhostNodePorts;
use crate::node::{FamilyView, NodeView};
use crate::problem::Problem;
use crate::translate::{Changes, HealthCheck, Input, ServicePorts, SliceIndex, Translator};

/// Compiled tables and what `control` keeps beside them. A copy shares its content.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For the data plane.
    pub tables: Arc<Tables>,
    /// The service ports of IPv4: a frontend's `service_port` is a number in it.
    pub ports_v4: ServicePorts<V4>,
    /// Those of IPv6.
    pub ports_v6: ServicePorts<V6>,
    /// Counts the updates that changed which frontends there are: as long as it stays, so do they.
    pub frontends: u64,
    /// Counts the updates that changed where UDP flows may stay (UP-03).
    pub udp: u64,
    /// The health checks that this node answers (UP-05).
    pub health_checks: Arc<[HealthCheck]>,
    /// Conflicts that were decided, and the like: worth saying, no error.
    pub reports: Vec<Problem>,
}

/// Compiles the tables of a node whose cluster changes: each time what changed (UP-01).
#[derive(Debug, Default)]
pub struct Compiler {
    slices: SliceIndex,
    v4: Translator<V4>,
    v6: Translator<V6>,
    health_checks: HealthChecks,
    peers: TunnelPeers,
}

/// From whom tunnels take packets, and the view that says so: a change of Services alone looks at no route.
#[derive(Debug, Default)]
struct TunnelPeers {
    of: Option<(Arc<Ports>, Arc<Routing<V4>>)>,
    peers: Peers<V4>,
}

/// The health checks of both families, and what they were put together from.
#[derive(Debug, Default)]
struct HealthChecks {
    families: [Arc<[HealthCheck]>; 2],
    both: Arc<[HealthCheck]>,
}

impl Compiler {
    /// Takes over `changes` of the objects: those since the last update, or [`Changes::all`] at the first.
    /// The node, its configuration and the view of it are compared with the last ones here.
    pub fn update(
        &mut self,
        cluster: &Cluster,
        config: &Config,
        node_name: &str,
        view: &NodeView,
        changes: &Changes,
    ) -> Compiled {
        let local_addresses = view.local_addresses();
        let input = Input {
            cluster,
            proxy: &config.proxy,
            node_name,
            service_proxy_name: config.node.as_ref().and_then(|node| node.service_proxy_name.as_deref()),
            local_addresses: &local_addresses,
        };
        let services = self.slices.update(cluster, changes);
        let v4 = self.v4.update(&input, &self.slices, &services);
        let v6 = self.v6.update(&input, &self.slices, &services);
        let mut reports = v4.reports;
        reports.extend(v6.reports);
        self.peers.update(view);
        let tables = Tables {
            ports: view.ports.clone(),
            v4: Some(FamilyTables {
                peers: self.peers.peers.clone(),
                ..family_tables(v4.services, &view.v4, v4.localhost_node_ports)
            }),
            // A node without an IPv6 address forwards none: such frames are left to the host.
            v6: view.has_v6().then(|| family_tables(v6.services, &view.v6, v6.localhost_node_ports)),
            masquerade: Masquerade { mark: v4.mark, ports: view.masquerade_ports },
        };
        Compiled {
            tables: Arc::new(tables),
            ports_v4: v4.ports,
            ports_v6: v6.ports,
            frontends: v4.frontends + v6.frontends,
            udp: v4.udp + v6.udp,
            health_checks: self.health_checks.of([v4.health_checks, v6.health_checks]),
            reports,
        }
    }
}

impl TunnelPeers {
    fn update(&mut self, view: &NodeView) {
        let same = self.of.as_ref().is_some_and(|(ports, routing)| {
            Arc::ptr_eq(ports, &view.ports) && Arc::ptr_eq(routing, &view.v4.routing)
        });
        if !same {
            self.peers = view.peers();
            self.of = Some((Arc::clone(&view.ports), Arc::clone(&view.v4.routing)));
        }
    }
}

impl HealthChecks {
    fn of(&mut self, families: [Arc<[HealthCheck]>; 2]) -> Arc<[HealthCheck]> {
        let same = self.families.iter().zip(&families).all(|(old, new)| Arc::ptr_eq(old, new));
        if !same {
            let mut both: Vec<_> = families.iter().flat_map(|family| family.iter()).cloned().collect();
            both.dedup();
            *self = HealthChecks { families, both: both.into() };
        }
        Arc::clone(&self.both)
    }
}

/// Compiles the tables of the node called `node_name`, all at once.
pub fn compile(cluster: &Cluster, config: &Config, node_name: &str, view: &NodeView) -> Compiled {
    Compiler::default().update(cluster, config, node_name, view, &Changes::all(cluster))
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
        peers: Peers::default(),
    }
}
