//! Which endpoints a service port may choose from (EP-01 to EP-05): policy, apart from the mechanism that
//! chooses. Endpoints are gathered once from the slices and categorised once, in one function.

use pollux_dataplane::packet::{Address, Family, Protocol};
use pollux_dataplane::service::Backend;

use super::names::endpoint_name;
use crate::cluster::{EndpointSlice, SliceEndpoint};

/// An endpoint of a service port in one family, from the slice that wins (OBJ-05).
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a, A: Family> {
    /// Address and port.
    pub backend: Backend<A>,
    /// Its conditions, node and hints.
    pub state: &'a SliceEndpoint,
    /// Whether its node is this one (OBJ-06).
    pub place: Place,
}

/// Where an endpoint runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On this node.
    Here,
    /// On another, or on none that is named.
    Elsewhere,
}

impl<A: Family> Endpoint<'_, A> {
    /// Whether it is taken when nothing is ready: serving, and terminating.
    fn is_serving_terminating(&self) -> bool {
        self.state.serving && self.state.terminating
    }

    fn is_here(&self) -> bool {
        self.place == Place::Here
    }
}

/// The endpoints that a service port may choose from, in endpoint order (AF-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSets<A: Family> {
    /// The cluster's endpoints (EP-01); empty when the service port does not use them (EP-03).
    pub cluster: Vec<Backend<A>>,
    /// This node's endpoints (EP-02); empty when the service port does not use them (EP-03).
    pub local: Vec<Backend<A>>,
    /// EP-05.
    pub availability: Availability,
}

/// Whether a service port has endpoints (EP-05).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Availability {
    /// It has some, perhaps none on this node.
    Some,
    /// It has none.
    None,
}

/// Which sets a service port uses (EP-03).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uses {
    /// The cluster's endpoints.
    pub cluster: bool,
    /// This node's endpoints.
    pub local: bool,
}

/// This node, as topology sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The node's zone, if it has the label.
    pub zone: Option<&'a str>,
}

/// An address that several slices claim with different words (OBJ-05).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlap<'a, A: Family> {
    /// The endpoint.
    pub backend: Backend<A>,
    /// The slice that was taken.
    pub taken: &'a EndpointSlice,
    /// The slice that was not.
    pub left: &'a EndpointSlice,
}

/// The endpoints of a service port in one family, in endpoint order (OBJ-04, OBJ-05, AF-02).
///
/// `slices` are the Service's, in the order of their names. An address and port that several of them have
/// counts once: a copy that is not terminating replaces one that is; among equals the slice with the highest
/// name is taken, and `overlaps` says so when the copies are not terminating.
pub fn gather<'a, A: Family>(
    slices: &[&'a EndpointSlice],
    port_name: &str,
    protocol: Protocol,
    topology: Topology<'_>,
    overlaps: &mut Vec<Overlap<'a, A>>,
) -> Vec<Endpoint<'a, A>> {
    let mut found: Vec<(Endpoint<'a, A>, &'a EndpointSlice)> = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|port| port.name == port_name && port.protocol == protocol);
        for port in ports {
            for state in &slice.endpoints {
                let Some(address) = A::Addr::from_ip(state.address) else {
                    break; // a slice has one family
                };
                let place = match state.node_name.as_deref() == Some(topology.node) {
                    true => Place::Here,
                    false => Place::Elsewhere,
                };
                let backend = Backend { address, port: port.port };
                found.push((Endpoint { backend, state, place }, slice));
            }
        }
    }
    // Stable: copies of one endpoint stand side by side, in the order of their slices.
    found.sort_by_key(|(endpoint, _)| endpoint.backend);
    let mut kept: Vec<(Endpoint<'a, A>, &'a EndpointSlice)> = Vec::with_capacity(found.len());
    for (copy, slice) in found {
        match kept.last_mut().filter(|(kept, _)| kept.backend == copy.backend) {
            None => kept.push((copy, slice)),
            Some((kept, of)) => {
                let another_slice = of.key != slice.key;
                let replaces = match (kept.state.terminating, copy.state.terminating) {
                    (_, false) => true,
                    (true, true) => another_slice,
                    (false, true) => false,
                };
                if another_slice && !kept.state.terminating && !copy.state.terminating {
                    overlaps.push(Overlap { backend: copy.backend, taken: slice, left: of });
                }
                if replaces {
                    (*kept, *of) = (copy, slice);
                }
            }
        }
    }
    let mut endpoints: Vec<_> = kept.into_iter().map(|(endpoint, _)| endpoint).collect();
    if endpoints.len() > 1 {
        endpoints.sort_by_cached_key(|endpoint| endpoint_name(endpoint.backend));
    }
    endpoints
}

/// Sorts a service port's endpoints into those that its traffic may choose from.
///
/// 1. **Cluster** (EP-01): the ready ones that topology allows. If none is ready at all, those that serve and
///    terminate, topology ignored.
/// 2. **Local** (EP-02): the ready ones of this node; if it has none, those of this node that serve and
///    terminate. Topology says nothing here.
/// 3. **Topology** (EP-04), from the ready ones only: if every one has node hints and one names this node,
///    those that name it; otherwise, if every one has zone hints and one names this node's zone, those that
///    name it; otherwise all. One endpoint without a hint switches that level off.
/// 4. A set that the service port does not use (EP-03) is empty.
/// 5. **Availability** (EP-05): the cluster's endpoints are used and not empty, or this node's are used and
///    anywhere an endpoint is ready, or serves and terminates.
pub fn categorise<A: Family>(
    endpoints: &[Endpoint<'_, A>],
    uses: Uses,
    topology: Topology<'_>,
) -> EndpointSets<A> {
    let mut cluster = Vec::new();
    if uses.cluster {
        let allowed = allowed_by_topology(endpoints, topology);
        cluster = select(endpoints, |endpoint| endpoint.state.ready && allowed.allows(endpoint.state));
        if cluster.is_empty() {
            cluster = select(endpoints, |endpoint| endpoint.is_serving_terminating());
        }
    }
    let mut local = Vec::new();
    let mut anywhere = false;
    if uses.local {
        local = select(endpoints, |endpoint| endpoint.is_here() && endpoint.state.ready);
        if local.is_empty() {
            local = select(endpoints, |endpoint| endpoint.is_here() && endpoint.is_serving_terminating());
        }
        anywhere = endpoints.iter().any(|endpoint| endpoint.state.ready || endpoint.is_serving_terminating());
    }
    let availability = match !cluster.is_empty() || anywhere {
        true => Availability::Some,
        false => Availability::None,
    };
    EndpointSets { cluster, local, availability }
}

fn select<A: Family>(
    endpoints: &[Endpoint<'_, A>],
    condition: impl Fn(&Endpoint<'_, A>) -> bool,
) -> Vec<Backend<A>> {
    endpoints.iter().filter(|endpoint| condition(endpoint)).map(|endpoint| endpoint.backend).collect()
}

/// What topology allows (EP-04).
#[derive(Clone, Copy)]
enum Allowed<'a> {
    All,
    Node(&'a str),
    Zone(&'a str),
}

impl Allowed<'_> {
    fn allows(self, state: &SliceEndpoint) -> bool {
        match self {
            Allowed::All => true,
            Allowed::Node(node) => state.node_hints.iter().any(|hint| hint == node),
            Allowed::Zone(zone) => state.zone_hints.iter().any(|hint| hint == zone),
        }
    }
}

fn allowed_by_topology<'a, A: Family>(endpoints: &[Endpoint<'_, A>], topology: Topology<'a>) -> Allowed<'a> {
    let ready = || endpoints.iter().filter(|endpoint| endpoint.state.ready).map(|endpoint| endpoint.state);
    let levels = [Some(Allowed::Node(topology.node)), topology.zone.map(Allowed::Zone)];
    for level in levels.into_iter().flatten() {
        let hinted = |state: &SliceEndpoint| match level {
            Allowed::Node(_) => !state.node_hints.is_empty(),
            _ => !state.zone_hints.is_empty(),
        };
        if ready().all(hinted) && ready().any(|state| level.allows(state)) {
            return level;
        }
    }
    Allowed::All
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
