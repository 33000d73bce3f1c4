//! One change after the other: from the Services that an update is about to the places of the tables that
//! differ (UP-01).
//!
//! A service port has a number for as long as it is there; its rules, its frontends and its backends in the
//! tables are replaced together. Frontends are *claimed* by all service ports that have them and owned by one
//! (FE-08), so whose claim comes or goes may also change another Service's tables.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use pollux_dataplane::packet::{Family, Protocol};
use pollux_dataplane::service::{Builder, FrontendKey};

use super::endpoints::{self, Place, Topology, gather};
use super::rules::Sets;
use super::{
    HealthCheck, Input, ServicePortRules, ServicePorts, SliceIndex, Translation, health_check, node,
    report_conflict, report_overlap,
};
use crate::cluster::{NamespacedName, Node, Service};
use crate::config::ProxyConfig;
use crate::problem::Problem;

/// Translates a cluster that changes, for one family.
#[derive(Debug)]
pub struct Translator<A: Family> {
    /// What all Services depend on; nothing before the first update.
    context: Option<Context>,
    builder: Builder<A>,
    ports: ServicePorts<A>,
    /// What was made for each service port, by number.
    made: Vec<Option<Made<A>>>,
    /// Numbers that are free again.
    free: Vec<u32>,
    /// Counts the updates that changed which frontends there are.
    frontends: u64,
    /// Counts the updates that changed where UDP flows may stay.
    udp: u64,
    /// The numbers of each Service's ports.
    services: HashMap<NamespacedName, Vec<u32>>,
    claims: HashMap<FrontendKey<A>, Claim>,
    health_checks: BTreeMap<NamespacedName, HealthCheck>,
    /// The same, for handing out.
    listed_health_checks: Arc<[HealthCheck]>,
    overlaps: BTreeMap<NamespacedName, Vec<Problem>>,
    /// By the rank of the service port that lost, and the place of the frontend among its own.
    conflicts: BTreeMap<(Rank, usize), Problem>,
}

/// What every Service's translation depends on beside its own objects.
#[derive(Clone, PartialEq, Debug)]
struct Context {
    proxy: ProxyConfig,
    node: Option<Node>,
    node_name: String,
    service_proxy_name: Option<String>,
    local_addresses: Vec<IpAddr>,
}

/// A service port in the tables.
#[derive(Debug)]
struct Made<A: Family> {
    rules: Arc<ServicePortRules<A>>,
    created: Option<Timestamp>,
    /// The frontends that it owns, and its backends; nothing when it owns none.
    owned: Option<(Vec<FrontendKey<A>>, Sets)>,
    /// Places of the frontends that it does not own.
    lost: Vec<usize>,
}

/// The service ports that have a frontend.
#[derive(Debug)]
struct Claim {
    /// The one with the lowest rank.
    owner: u32,
    others: Vec<u32>,
}

/// The order among claimants (FE-08): the oldest Service first, one that has no time of creation last; then
/// by name; the ports of a Service in their order.
type Rank = (bool, Option<Timestamp>, NamespacedName, usize);

/// One Service, translated.
struct Translated<A: Family> {
    ports: Vec<ServicePortRules<A>>,
    health_check: Option<HealthCheck>,
    overlaps: Vec<Problem>,
}

impl<A: Family> Default for Translator<A> {
    fn default() -> Self {
        Translator {
            context: None,
            builder: Builder::default(),
            ports: ServicePorts::default(),
            made: Vec::new(),
            free: Vec::new(),
            frontends: 0,
            udp: 0,
            services: HashMap::new(),
            claims: HashMap::new(),
            health_checks: BTreeMap::new(),
            listed_health_checks: [].into(),
            overlaps: BTreeMap::new(),
            conflicts: BTreeMap::new(),
        }
    }
}

impl<A: Family> Translator<A> {
    /// Takes the changed `services` over from the input, whose slices are in `slices`. Everything is looked at
    /// when the node or the configuration has changed; what was translated before is kept where it is the same.
    pub fn update(
        &mut self,
        input: &Input<'_>,
        slices: &SliceIndex,
        services: &BTreeSet<NamespacedName>,
    ) -> Translation<A> {
        let mut changed = Changed::default();
        let mut all = BTreeSet::new();
        let mut services = services;
        if self.context.as_ref().is_none_or(|context| !context.is_of(input)) {
            self.context = Some(Context::of(input));
            self.builder.set_policy(input.policy::<A>());
            // Those that are gone are among the changed, if not among those that were translated.
            let known = self.services.keys().chain(input.cluster.services.keys());
            all.extend(known.chain(services).cloned());
            services = &all;
            // Where node ports answer may have changed (FE-07).
            changed.udp = true;
        }
        for key in services {
            self.change(input, slices, key, &mut changed);
        }
        // Who has a claim on a frontend that was claimed or given up owns it now, or no longer.
        for key in &changed.frontends {
            if let Some(claim) = self.claims.get(key) {
                changed.ports.extend(claim.all());
            }
        }
        for &number in &changed.ports {
            self.take_out(number);
            self.put_in(number);
        }
        if changed.which_frontends || !changed.frontends.is_empty() {
            self.frontends += 1;
        }
        if changed.udp || changed.frontends.iter().any(|key| key.protocol == Protocol::UDP) {
            self.udp += 1;
        }
        if changed.health_checks {
            self.listed_health_checks = self.health_checks.values().cloned().collect();
        }
        Translation {
            services: self.builder.snapshot(),
            ports: self.ports.clone(),
            frontends: self.frontends,
            udp: self.udp,
            health_checks: Arc::clone(&self.listed_health_checks),
            localhost_node_ports: input.localhost_node_ports::<A>(),
            mark: node::mark(input.proxy),
            reports: self.overlaps.values().flatten().chain(self.conflicts.values()).cloned().collect(),
        }
    }

    /// Makes one Service's rules and compares them with those in force.
    fn change(
        &mut self,
        input: &Input<'_>,
        slices: &SliceIndex,
        key: &NamespacedName,
        changed: &mut Changed<A>,
    ) {
        let service = input.cluster.services.get(key);
        let created = service.and_then(|service| service.created);
        let new = service.and_then(|service| translated::<A>(input, slices, service));
        let Translated { ports, health_check, overlaps } = new.unwrap_or(Translated::NOTHING);
        if self.health_checks.get(key) != health_check.as_ref() {
            changed.health_checks = true;
            replace(&mut self.health_checks, key, health_check);
        }
        replace(&mut self.overlaps, key, Some(overlaps).filter(|overlaps| !overlaps.is_empty()));

        let before = self.services.remove(key).unwrap_or_default();
        let mut gone = before;
        let mut numbers = Vec::with_capacity(ports.len());
        for rules in ports {
            let known = gone.iter().position(|number| self.rules(*number).id == rules.id);
            let number = match known {
                Some(at) => {
                    let number = gone.swap_remove(at);
                    let made = self.made(number);
                    if *made.rules == rules && made.created == created {
                        numbers.push(number);
                        continue;
                    }
                    changed.which_frontends |= made.rules.frontends != rules.frontends;
                    changed.udp |= rules.id.protocol == Protocol::UDP;
                    self.give_up(number, changed);
                    number
                }
                None => {
                    changed.which_frontends = true;
                    changed.udp |= rules.id.protocol == Protocol::UDP;
                    self.free.pop().unwrap_or(self.made.len() as u32)
                }
            };
            self.claim(number, rules, created, changed);
            numbers.push(number);
        }
        for number in gone {
            changed.which_frontends = true;
            changed.udp |= self.rules(number).id.protocol == Protocol::UDP;
            self.give_up(number, changed);
            self.take_out(number);
            self.made[number as usize] = None;
            self.ports.set(number, None);
            self.free.push(number);
            changed.ports.remove(&number);
        }
        if !numbers.is_empty() {
            self.services.insert(key.clone(), numbers);
        }
    }

    /// The service port of this number has these rules now, and claims their frontends.
    fn claim(
        &mut self,
        number: u32,
        rules: ServicePortRules<A>,
        created: Option<Timestamp>,
        changed: &mut Changed<A>,
    ) {
        let rules = Arc::new(rules);
        self.ports.set(number, Some(Arc::clone(&rules)));
        let place = number as usize;
        if self.made.len() <= place {
            self.made.resize_with(place + 1, || None);
        }
        match &mut self.made[place] {
            // What is in the tables is taken out later.
            Some(made) => (made.rules, made.created) = (Arc::clone(&rules), created),
            none => {
                *none = Some(Made { rules: Arc::clone(&rules), created, owned: None, lost: Vec::new() });
            }
        }
        changed.ports.insert(number);
        for (key, _) in &rules.frontends {
            match self.claims.entry(*key) {
                Entry::Vacant(claim) => {
                    claim.insert(Claim { owner: number, others: Vec::new() });
                }
                Entry::Occupied(mut claim) => {
                    let made = &self.made;
                    let claim = claim.get_mut();
                    if claim.all().any(|other| other == number) {
                        continue; // an address that is both external and a load balancer's
                    }
                    claim.others.push(number);
                    claim.settle(|number| made_at(made, number).rank());
                    changed.frontends.insert(*key);
                }
            }
        }
    }

    /// The service port of this number no longer claims its frontends.
    fn give_up(&mut self, number: u32, changed: &mut Changed<A>) {
        let rules = Arc::clone(&self.made(number).rules);
        // The rank goes with the rules: what was reported under it is taken back first.
        self.take_out(number);
        for (key, _) in &rules.frontends {
            let Entry::Occupied(mut claim) = self.claims.entry(*key) else { continue };
            if claim.get().others.is_empty() {
                if claim.get().owner == number {
                    claim.remove();
                }
                continue;
            }
            let made = &self.made;
            let claim = claim.get_mut();
            match claim.others.iter().position(|other| *other == number) {
                Some(at) => {
                    claim.others.swap_remove(at);
                }
                None if claim.owner == number => {
                    claim.owner = claim.others.swap_remove(0);
                    claim.settle(|number| made_at(made, number).rank());
                }
                None => {}
            }
            changed.frontends.insert(*key);
        }
    }

    /// Takes a service port out of the tables.
    fn take_out(&mut self, number: u32) {
        let made = self.made[number as usize].as_mut().expect("a service port of this number");
        let (owned, lost) = (made.owned.take(), std::mem::take(&mut made.lost));
        if let Some((keys, sets)) = owned {
            self.builder.remove(number, keys, sets.iter());
        }
        if !lost.is_empty() {
            let rank = made.owned_rank();
            for place in lost {
                self.conflicts.remove(&(rank.clone(), place));
            }
        }
    }

    /// Puts a service port with the frontends that it owns into the tables.
    fn put_in(&mut self, number: u32) {
        let made = made_at(&self.made, number);
        let rules = Arc::clone(&made.rules);
        let owns = |key: &FrontendKey<A>| self.claims[key].owner == number;
        let lost: Vec<usize> =
            (0..rules.frontends.len()).filter(|place| !owns(&rules.frontends[*place].0)).collect();
        for place in &lost {
            let key = rules.frontends[*place].0;
            let report = report_conflict(key, &rules.id, &self.rules(self.claims[&key].owner).id);
            self.conflicts.insert((made.owned_rank(), *place), report);
        }
        let mut owned = None;
        if lost.len() < rules.frontends.len() {
            let sets = rules.add_backends(&mut self.builder);
            let affinity = rules.affinity();
            let mut keys = Vec::with_capacity(rules.frontends.len());
            for &(key, kind) in &rules.frontends {
                if self.claims[&key].owner == number {
                    self.builder.frontend(rules.frontend(key, kind, sets, number, affinity));
                    keys.push(key);
                }
            }
            owned = Some((keys, sets));
        }
        if let Some(made) = &mut self.made[number as usize] {
            (made.owned, made.lost) = (owned, lost);
        }
    }

    /// Whether nothing is left of what was translated.
    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        self.services.is_empty()
            && self.claims.is_empty()
            && self.conflicts.is_empty()
            && self.overlaps.is_empty()
            && self.made.iter().all(Option::is_none)
            && self.free.len() == self.made.len()
            && self.builder.snapshot().frontends().count() == 0
    }

    fn made(&self, number: u32) -> &Made<A> {
        made_at(&self.made, number)
    }

    fn rules(&self, number: u32) -> &ServicePortRules<A> {
        &self.made(number).rules
    }
}

fn made_at<A: Family>(made: &[Option<Made<A>>], number: u32) -> &Made<A> {
    made[number as usize].as_ref().expect("a service port of this number")
}

/// Sets the value of a key, or removes it.
fn replace<T>(map: &mut BTreeMap<NamespacedName, T>, key: &NamespacedName, value: Option<T>) {
    match value {
        Some(value) => {
            map.insert(key.clone(), value);
        }
        None => {
            map.remove(key);
        }
    }
}

/// What an update has to put in order.
struct Changed<A: Family> {
    /// Numbers of service ports whose place in the tables is made anew.
    ports: BTreeSet<u32>,
    /// Frontends that more than one service port has or had a claim on.
    frontends: BTreeSet<FrontendKey<A>>,
    /// Whether a service port came, went, or has others than before.
    which_frontends: bool,
    /// Whether a UDP service port came, went, or is another than before.
    udp: bool,
    health_checks: bool,
}

impl<A: Family> Default for Changed<A> {
    fn default() -> Self {
        Changed {
            ports: BTreeSet::new(),
            frontends: BTreeSet::new(),
            which_frontends: false,
            udp: false,
            health_checks: false,
        }
    }
}

impl Context {
    fn of(input: &Input<'_>) -> Context {
        Context {
            proxy: input.proxy.clone(),
            node: input.node().cloned(),
            node_name: input.node_name.to_owned(),
            service_proxy_name: input.service_proxy_name.map(str::to_owned),
            local_addresses: input.local_addresses.to_vec(),
        }
    }

    fn is_of(&self, input: &Input<'_>) -> bool {
        self.proxy == *input.proxy
            && self.node.as_ref() == input.node()
            && self.node_name == input.node_name
            && self.service_proxy_name.as_deref() == input.service_proxy_name
            && self.local_addresses == input.local_addresses
    }
}

impl<A: Family> Made<A> {
    fn rank(&self) -> (bool, Option<Timestamp>, &NamespacedName, usize) {
        (self.created.is_none(), self.created, &self.rules.id.service, self.rules.place)
    }

    fn owned_rank(&self) -> Rank {
        let (is_none, created, service, place) = self.rank();
        (is_none, created, service.clone(), place)
    }
}

impl Claim {
    fn all(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.owner).chain(self.others.iter().copied())
    }

    /// Gives the frontend to the claimant with the lowest rank.
    fn settle<R: Ord>(&mut self, rank: impl Fn(u32) -> R) {
        for other in &mut self.others {
            if rank(*other) < rank(self.owner) {
                std::mem::swap(other, &mut self.owner);
            }
        }
    }
}

impl<A: Family> Translated<A> {
    const NOTHING: Translated<A> = Translated { ports: Vec::new(), health_check: None, overlaps: Vec::new() };
}

/// Translates one Service; nothing when it is not this proxy's (OBJ-02) or not of this family (OBJ-07).
fn translated<A: Family>(input: &Input<'_>, slices: &SliceIndex, service: &Service) -> Option<Translated<A>> {
    if !input.serves(service) {
        return None;
    }
    let cluster_ip = service.cluster_ip::<A>()?;
    let slices = slices.of(&service.key, input.cluster);
    let topology =
        Topology { node: input.node_name, zone: input.node().and_then(|node| node.zone.as_deref()) };
    let mut translated = Translated::NOTHING;
    let mut local_ready = BTreeSet::new();
    for (place, port) in service.ports.iter().enumerate() {
        let mut overlaps = Vec::new();
        let endpoints = gather::<A>(&slices, &port.name, port.protocol, topology, &mut overlaps);
        translated.overlaps.extend(overlaps.iter().map(|overlap| report_overlap(service, overlap)));
        let ready_here =
            |endpoint: &&endpoints::Endpoint<'_, A>| endpoint.place == Place::Here && endpoint.state.ready;
        local_ready.extend(endpoints.iter().filter(ready_here).map(|endpoint| endpoint.backend.address));
        translated.ports.push(ServicePortRules::new(input, service, cluster_ip, place, &endpoints, topology));
    }
    translated.health_check = health_check(service, local_ready.len());
    Some(translated)
}
