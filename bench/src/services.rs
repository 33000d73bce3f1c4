//! A node with many Services, whose endpoints change one by one.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use pollux_control::cluster::{
    Cluster, EndpointSlice, NamespacedName, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use pollux_control::compile::{Compiled, Compiler};
use pollux_control::config::Config;
use pollux_control::node::NodeView;
use pollux_control::translate::Changes;
use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Forwarder, Settings};
use pollux_dataplane::packet::Protocol;
use pollux_dataplane::pool::Pool;
use pollux_dataplane::tables::Tables;

/// How many Services there are.
pub const SERVICES: usize = 10_000;
/// Endpoints of each.
pub const BACKENDS: usize = 3;

/// The Services of a node, compiled, and a forwarder that has the tables.
pub struct Node {
    cluster: Cluster,
    config: Config,
    view: NodeView,
    compiler: Compiler,
    compiled: Option<Compiled>,
    forwarder: Forwarder,
}

/// The clusterIP of a Service.
pub fn cluster_ip(service: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + service as u32)
}

fn name(service: usize) -> NamespacedName {
    NamespacedName::new("default", format!("service-{service:05}"))
}

fn endpoint(number: usize) -> SliceEndpoint {
    SliceEndpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + number as u32)),
        ready: true,
        serving: true,
        terminating: false,
        node_name: Some("another".into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}

impl Default for Node {
    fn default() -> Self {
        Node::new()
    }
}

impl Node {
    /// Nothing compiled yet.
    ///
    /// # Panics
    /// Without memory for a flow table.
    pub fn new() -> Node {
        let mut cluster = Cluster::default();
        for number in 0..SERVICES {
            let key = name(number);
            let port = ServicePort { name: "".into(), protocol: Protocol::TCP, port: 80, node_port: None };
            let service = Service {
                key: key.clone(),
                created: None,
                kind: ServiceType::ClusterIP,
                proxy_name: None,
                cluster_ips: vec![IpAddr::V4(cluster_ip(number))],
                ports: vec![port],
                external_ips: Vec::new(),
                load_balancer_ips: Vec::new(),
                source_ranges: Vec::new(),
                internal_policy: TrafficPolicy::Cluster,
                external_policy: TrafficPolicy::Cluster,
                health_check_node_port: None,
                affinity: None,
            };
            let slice = EndpointSlice {
                key: key.clone(),
                service: Some(key.clone()),
                headless: false,
                ports: vec![SlicePort { name: "".into(), protocol: Protocol::TCP, port: 8080 }],
                endpoints: (0..BACKENDS).map(|at| endpoint(number * BACKENDS + at)).collect(),
            };
            cluster.services.insert(key.clone(), service);
            cluster.slices.insert(key, slice);
        }
        let pool = Pool::new(64).expect("memory for a pool");
        let settings = Settings {
            connections: 64,
            clients: 64,
            timeouts: Timeouts::default(),
            sysctls: Sysctls::default(),
            seed: 1,
        };
        Node {
            cluster,
            config: Config::default(),
            view: NodeView::default(),
            compiler: Compiler::default(),
            compiled: None,
            forwarder: Forwarder::new(&settings, pool).expect("memory for a flow table"),
        }
    }

    /// Compiles everything and puts it in force.
    pub fn compile_all(&mut self) {
        self.compile(&Changes::all(&self.cluster));
    }

    /// Lets the last endpoint of a Service go, or the one behind it come; compiles that and puts it in force.
    ///
    /// # Panics
    /// If there is no such Service.
    pub fn change_one_endpoint(&mut self, service: usize) {
        let key = name(service);
        let slice = self.cluster.slices.get_mut(&key).expect("a Service's slice");
        if slice.endpoints.len() > BACKENDS {
            slice.endpoints.pop();
        } else {
            slice.endpoints.push(endpoint(SERVICES * BACKENDS + service));
        }
        let changes = Changes { slices: [key].into(), ..Changes::default() };
        self.compile(&changes);
    }

    fn compile(&mut self, changes: &Changes) {
        let compiled = self.compiler.update(&self.cluster, &self.config, "slave1", &self.view, changes);
        let old = self.forwarder.set_tables(Arc::clone(&compiled.tables));
        self.compiled = Some(compiled);
        drop(old);
    }

    /// The tables in force.
    ///
    /// # Panics
    /// Before anything was compiled.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.compiled.as_ref().expect("compiled").tables
    }

    /// Checks that each Service offers what its slice has now.
    ///
    /// # Panics
    /// If one does not.
    pub fn assert_complete(&self) {
        let services = &self.tables().v4.as_ref().expect("IPv4").services;
        let offered: usize = services
            .frontends()
            .flat_map(|(_, frontend)| frontend.path.sets())
            .map(|set| services.backends(set).len())
            .sum();
        let wanted: usize = self.cluster.slices.values().map(|slice| slice.endpoints.len()).sum();
        assert_eq!((services.frontends().count(), offered), (SERVICES, wanted));
    }
}
