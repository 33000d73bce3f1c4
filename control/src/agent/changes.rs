//! What is different between two states of the cluster, for the log: Services, and the endpoints of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use tracing::info;

use crate::cluster::{Cluster, EndpointSlice, NamespacedName};
use crate::translate::Changes;

/// Lines that one change may write; what is beyond is counted. Thousands of Services can come at once.
const LINES: usize = 50;

/// The endpoints of a Service: each ready or not, `address:port` or the address alone.
type Endpoints = BTreeSet<Endpoint>;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Endpoint {
    name: String,
    state: EndpointState,
}

/// What of an endpoint decides whether it is chosen (EP-01 to EP-03).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum EndpointState {
    Ready,
    Terminating,
    NotReady,
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.state {
            EndpointState::Ready => Ok(()),
            EndpointState::Terminating => f.write_str(" (terminating)"),
            EndpointState::NotReady => f.write_str(" (not ready)"),
        }
    }
}

/// How an object differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// A Service that was not there.
    ServiceAdded(NamespacedName),
    /// One that is there no more.
    ServiceRemoved(NamespacedName),
    /// One whose fields differ.
    ServiceChanged(NamespacedName),
    /// Endpoints of a Service that came and went.
    Endpoints { service: NamespacedName, added: Vec<String>, removed: Vec<String> },
}

/// The differences in what has changed, in the order of names. Of endpoints the changed slices are looked at
/// only: one that an unchanged slice has as well is named all the same.
pub(super) fn between(old: &Cluster, new: &Cluster, changes: &Changes) -> Vec<Change> {
    let mut found = Vec::new();
    for key in &changes.services {
        match (old.services.get(key), new.services.get(key)) {
            (None, Some(_)) => found.push(Change::ServiceAdded(key.clone())),
            (Some(_), None) => found.push(Change::ServiceRemoved(key.clone())),
            (old, new) if old != new => found.push(Change::ServiceChanged(key.clone())),
            _ => {}
        }
    }
    let (before, after) = (endpoints(old, changes), endpoints(new, changes));
    let none = Endpoints::new();
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
    for key in keys {
        let (before, after) = (before.get(key).unwrap_or(&none), after.get(key).unwrap_or(&none));
        if before != after {
            found.push(Change::Endpoints {
                service: key.clone(),
                added: after.difference(before).map(Endpoint::to_string).collect(),
                removed: before.difference(after).map(Endpoint::to_string).collect(),
            });
        }
    }
    found
}

/// Writes the differences into the log.
pub(super) fn log(changes: &[Change]) {
    for change in changes.iter().take(LINES) {
        match change {
            Change::ServiceAdded(service) => info!(%service, "service added"),
            Change::ServiceRemoved(service) => info!(%service, "service removed"),
            Change::ServiceChanged(service) => info!(%service, "service changed"),
            Change::Endpoints { service, added, removed } => {
                info!(%service, added = added.join(", "), removed = removed.join(", "), "endpoints changed");
            }
        }
    }
    if changes.len() > LINES {
        info!("and {} more changes", changes.len() - LINES);
    }
}

fn endpoints<'a>(cluster: &'a Cluster, changes: &Changes) -> BTreeMap<&'a NamespacedName, Endpoints> {
    let mut all: BTreeMap<_, Endpoints> = BTreeMap::new();
    for slice in changes.slices.iter().filter_map(|key| cluster.slices.get(key)) {
        if let Some(service) = &slice.service {
            all.entry(service).or_default().extend(of_slice(slice));
        }
    }
    all
}

fn of_slice(slice: &EndpointSlice) -> impl Iterator<Item = Endpoint> {
    slice.endpoints.iter().flat_map(|endpoint| {
        let state = match (endpoint.ready, endpoint.serving && endpoint.terminating) {
            (true, _) => EndpointState::Ready,
            (false, true) => EndpointState::Terminating,
            (false, false) => EndpointState::NotReady,
        };
        slice.ports.iter().map(move |port| Endpoint {
            name: std::net::SocketAddr::new(endpoint.address, port.port).to_string(),
            state,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::cluster::read_objects;

    fn cluster(services: &[&str], endpoints: &[(&str, bool)]) -> Cluster {
        let service = |name: &&str| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterIP": "10.150.0.1", "clusterIPs": ["10.150.0.1"], "ports": [{"port": 80}]},
            })
        };
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, ready)| json!({"addresses": [address], "conditions": {"ready": ready}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "one", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"},
            },
            "endpoints": endpoints, "ports": [{"port": 8080}],
        });
        let file: Arc<Path> = Path::new("test").into();
        let objects = services.iter().map(service).chain([slice]).collect();
        read_objects(&file, objects).unwrap().cluster
    }

    #[test]
    fn up_01_what_came_and_went_is_named() {
        let old = cluster(&["web", "old"], &[("10.0.0.1", true), ("10.0.0.2", true)]);
        let new = cluster(&["web", "new"], &[("10.0.0.1", false), ("10.0.0.3", true)]);
        let changes = Changes::between(&old, &new);
        assert_eq!(between(&old, &old, &changes), []);
        assert_eq!(
            between(&old, &new, &changes),
            [
                Change::ServiceAdded(NamespacedName::new("default", "new")),
                Change::ServiceRemoved(NamespacedName::new("default", "old")),
                Change::Endpoints {
                    service: NamespacedName::new("default", "web"),
                    added: vec!["10.0.0.1:8080 (not ready)".into(), "10.0.0.3:8080".into()],
                    removed: vec!["10.0.0.1:8080".into(), "10.0.0.2:8080".into()],
                },
            ]
        );
    }
}
