//! Single changes of the objects and of kube-proxy's configuration: what the tables are compiled from is not what
//! the rules were made for.

use std::time::Duration;

use pollux_control::cluster::{Cluster, Service, SliceEndpoint, TrafficPolicy};
use pollux_control::config::ProxyConfig;
use pollux_control::config::proxy::{DetectLocal, LocalhostNodePorts, MasqueradePolicy, NodePortSelection};
use pollux_dataplane::packet::Protocol;

/// Objects with one thing changed.
pub(super) struct Changed {
    /// What kind of change it is.
    pub(super) operator: &'static str,
    /// Of which object.
    pub(super) what: String,
    /// The objects.
    pub(super) cluster: Cluster,
    /// The configuration.
    pub(super) proxy: ProxyConfig,
}

/// Every single change.
pub(super) fn changes(cluster: &Cluster, proxy: &ProxyConfig) -> Vec<Changed> {
    let mut changes = Vec::new();
    for (operator, proxy) in proxies(proxy) {
        changes.push(Changed { operator, what: String::new(), cluster: cluster.clone(), proxy });
    }
    let mut add = |operator, what: String, cluster| {
        changes.push(Changed { operator, what, cluster, proxy: proxy.clone() });
    };
    for (key, service) in &cluster.services {
        for (operator, changed) in services(service) {
            let mut cluster = cluster.clone();
            match changed {
                Some(changed) => drop(cluster.services.insert(key.clone(), changed)),
                None => drop(cluster.services.remove(key)),
            }
            add(operator, key.to_string(), cluster);
        }
    }
    for (key, slice) in &cluster.slices {
        for at in 0..slice.endpoints.len() {
            for (operator, changed) in endpoints(&slice.endpoints[at]) {
                let mut cluster = cluster.clone();
                let list = &mut cluster.slices.get_mut(key).expect("it was just read").endpoints;
                match changed {
                    Some(changed) => list[at] = changed,
                    None => drop(list.remove(at)),
                }
                add(operator, format!("{key} {}", slice.endpoints[at].address), cluster);
            }
        }
        for at in 0..slice.ports.len() {
            let mut cluster = cluster.clone();
            cluster.slices.get_mut(key).expect("it was just read").ports[at].port += 1;
            add("slice: port", key.to_string(), cluster);
        }
    }
    changes
}

fn proxies(proxy: &ProxyConfig) -> Vec<(&'static str, ProxyConfig)> {
    let mut found = Vec::new();
    let mut with = |operator, change: &dyn Fn(&mut ProxyConfig)| {
        let mut changed = proxy.clone();
        change(&mut changed);
        found.push((operator, changed));
    };
    with("config: masqueradeAll", &|proxy| {
        proxy.masquerade = match proxy.masquerade {
            MasqueradePolicy::All => MasqueradePolicy::NotLocal,
            MasqueradePolicy::NotLocal => MasqueradePolicy::All,
        };
    });
    with("config: masqueradeBit", &|proxy| proxy.masquerade_bit += 1);
    with("config: clusterCIDR", &|proxy| proxy.cluster_cidrs.clear());
    with("config: detector", &|proxy| {
        proxy.detect_local = DetectLocal::BridgeInterface("tunl0".to_string());
    });
    with("config: localhostNodePorts", &|proxy| {
        proxy.localhost_node_ports = match proxy.localhost_node_ports {
            LocalhostNodePorts::Enabled => LocalhostNodePorts::Disabled,
            LocalhostNodePorts::Disabled => LocalhostNodePorts::Enabled,
        };
    });
    with("config: nodePortAddresses", &|proxy| {
        proxy.node_port_addresses = match proxy.node_port_addresses {
            NodePortSelection::Primary => NodePortSelection::Prefixes(Vec::new()),
            NodePortSelection::Prefixes(_) => NodePortSelection::Primary,
        };
    });
    found
}

fn other(policy: TrafficPolicy) -> TrafficPolicy {
    match policy {
        TrafficPolicy::Cluster => TrafficPolicy::Local,
        TrafficPolicy::Local => TrafficPolicy::Cluster,
    }
}

fn services(service: &Service) -> Vec<(&'static str, Option<Service>)> {
    let mut found = vec![("service: removed", None)];
    let mut with = |operator, change: &dyn Fn(&mut Service)| {
        let mut changed = service.clone();
        change(&mut changed);
        if changed != *service {
            found.push((operator, Some(changed)));
        }
    };
    with("service: internal policy", &|service| service.internal_policy = other(service.internal_policy));
    with("service: external policy", &|service| service.external_policy = other(service.external_policy));
    with("service: external IPs", &|service| service.external_ips.clear());
    with("service: load-balancer IPs", &|service| service.load_balancer_ips.clear());
    with("service: all ranges removed", &|service| service.source_ranges.clear());
    with("service: a range removed", &|service| {
        service.source_ranges.pop();
    });
    with("service: affinity", &|service| {
        service.affinity = match service.affinity {
            Some(timeout) => Some(timeout + Duration::from_secs(1)),
            None => Some(Duration::from_secs(60)),
        };
    });
    for at in 0..service.ports.len() {
        with("service: port", &|service| service.ports[at].port += 1);
        with("service: node port", &|service| {
            let port = &mut service.ports[at].node_port;
            *port = Some(port.map_or(30_999, |port| port + 1));
        });
        with("service: no node port", &|service| service.ports[at].node_port = None);
        with("service: protocol", &|service| {
            let protocol = &mut service.ports[at].protocol;
            *protocol = if *protocol == Protocol::UDP { Protocol::TCP } else { Protocol::UDP };
        });
    }
    found
}

fn endpoints(endpoint: &SliceEndpoint) -> Vec<(&'static str, Option<SliceEndpoint>)> {
    let mut found = vec![("endpoint: removed", None)];
    let mut with = |operator, change: &dyn Fn(&mut SliceEndpoint)| {
        let mut changed = endpoint.clone();
        change(&mut changed);
        if changed != *endpoint {
            found.push((operator, Some(changed)));
        }
    };
    with("endpoint: ready", &|endpoint| endpoint.ready = !endpoint.ready);
    with("endpoint: serving", &|endpoint| endpoint.serving = !endpoint.serving);
    with("endpoint: terminating", &|endpoint| endpoint.terminating = !endpoint.terminating);
    with("endpoint: on no node", &|endpoint| endpoint.node_name = None);
    with("endpoint: zone hints", &|endpoint| endpoint.zone_hints.clear());
    found
}
