//! What changed, and which Services it is about.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::cluster::{Cluster, EndpointSlice, NamespacedName};

/// Objects that came, went, or differ from before. (The Node is looked at in any case.)
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Services.
    pub services: BTreeSet<NamespacedName>,
    /// EndpointSlices.
    pub slices: BTreeSet<NamespacedName>,
}

impl Changes {
    /// Everything: from no objects to these.
    pub fn all(cluster: &Cluster) -> Changes {
        Changes {
            services: cluster.services.keys().cloned().collect(),
            slices: cluster.slices.keys().cloned().collect(),
        }
    }

    /// The differences between two states of a cluster.
    pub fn between(old: &Cluster, new: &Cluster) -> Changes {
        Changes {
            services: differing(&old.services, &new.services),
            slices: differing(&old.slices, &new.slices),
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slices.is_empty()
    }
}

/// The keys whose values differ.
fn differing<T: PartialEq>(
    old: &BTreeMap<NamespacedName, T>,
    new: &BTreeMap<NamespacedName, T>,
) -> BTreeSet<NamespacedName> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let others = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, _)| key);
    gone.chain(others).cloned().collect()
}

/// The slices of each Service (OBJ-02, OBJ-04), kept up to date change by change.
#[derive(Debug, Default)]
pub struct SliceIndex {
    services: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// The Service of each slice that has one.
    owners: HashMap<NamespacedName, NamespacedName>,
}

impl SliceIndex {
    /// Takes note of the changed objects of `cluster` and returns the Services that they are about.
    pub fn update(&mut self, cluster: &Cluster, changes: &Changes) -> BTreeSet<NamespacedName> {
        let mut services = changes.services.clone();
        for key in &changes.slices {
            let slice = cluster.slices.get(key).filter(|slice| !slice.headless);
            let owner = slice.and_then(|slice| slice.service.as_ref());
            if let Some(before) = self.owners.remove(key) {
                if let Some(slices) = self.services.get_mut(&before) {
                    slices.remove(key);
                    if slices.is_empty() {
                        self.services.remove(&before);
                    }
                }
                services.insert(before);
            }
            if let Some(owner) = owner {
                self.services.entry(owner.clone()).or_default().insert(key.clone());
                self.owners.insert(key.clone(), owner.clone());
                services.insert(owner.clone());
            }
        }
        services
    }

    /// A Service's slices, in the order of their names.
    pub fn of<'a>(&self, service: &NamespacedName, cluster: &'a Cluster) -> Vec<&'a EndpointSlice> {
        let keys = self.services.get(service).into_iter().flatten();
        keys.filter_map(|key| cluster.slices.get(key)).collect()
    }
}
