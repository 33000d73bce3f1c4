//! Tables: what they do with one packet, told apart from the proof's own idea of it, and single changes of them.

use std::sync::Arc;

use pollux_control::config::proxy::{DetectLocal, LocalhostNodePorts};
use pollux_control::iptables::evaluate::{Name, NatState, Snat, Verdict};
use pollux_control::iptables::{RejectWith, States};
use pollux_control::translate::Translation;
use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};
use pollux_dataplane::service::{
    Affinity, Backend, BackendSet, Builder, Detector, FilterRule, FilterStage, FilterVerdict, Frontend,
    FrontendAddress, FrontendKind, InternalMark, Locality, Loopback, Mark, NodePortAddresses, Origin, Path,
    Policy, Request, Services, Silent,
};

use super::fuzz::{Distribution, Outcome, Passed, Probe, Site};

/// What becomes of a packet: the walk of services.md section 4, packet by packet.
pub(super) fn outcomes<A: Family>(
    tables: &Translation<A>,
    detector: &DetectLocal,
    site: &Site<A>,
    probe: &Probe<A>,
) -> Distribution<A> {
    Walk { tables, detector, site, probe }.outcomes()
}

struct Walk<'a, A: Family> {
    tables: &'a Translation<A>,
    detector: &'a DetectLocal,
    site: &'a Site<A>,
    probe: &'a Probe<A>,
}

impl<A: Family> Walk<'_, A> {
    fn outcomes(&self) -> Distribution<A> {
        let probe = self.probe;
        let to = Backend { address: probe.destination, port: probe.destination_port };
        if let NatState::Decided { dnat, .. } = probe.nat {
            let refused = match probe.state {
                state if state.intersects(States::INVALID) => self.refused_invalid(to),
                state if state.intersects(States::NEW) => self.refused(to, Mark::Clear, dnat),
                _ => None,
            };
            return vec![(refused.unwrap_or_else(|| self.passed(to, Mark::Clear, Vec::new())), 1.0)];
        }
        let services = &self.tables.services;
        let chosen = services.destination(&self.request(to), &mut Silent);
        let Some((frontend, set)) = chosen.choice else {
            let refused = self.refused(to, chosen.mark, false);
            return vec![(refused.unwrap_or_else(|| self.passed(to, chosen.mark, Vec::new())), 1.0)];
        };
        let port = services.frontend(frontend).service_port as usize;
        let id = &self.tables.ports[port].id;
        let affinity = services.frontend(frontend).affinity;
        let sticky = services.sticky(frontend, set, |backend, affinity| {
            let list = id.endpoint_chain(*backend);
            probe
                .seen
                .iter()
                .any(|(name, age)| *name == list && u64::from(*age) <= affinity.timeout.as_secs())
        });
        let backends = services.backends(set);
        let chosen_from = match sticky {
            Some(place) => &backends[place as usize..][..1],
            None => backends,
        };
        let mut found: Distribution<A> = Vec::new();
        for backend in chosen_from {
            let mark = match backend.address == probe.source {
                true => Mark::Set, // MQ-03
                false => chosen.mark,
            };
            let noted = affinity.map(|_| format!("noted {} {}", id.endpoint_chain(*backend), probe.source));
            let outcome = self
                .refused(*backend, mark, *backend != to)
                .unwrap_or_else(|| self.passed(*backend, mark, noted.into_iter().collect()));
            let chance = 1.0 / chosen_from.len() as f64;
            match found.iter_mut().find(|(known, _)| *known == outcome) {
                Some((_, known)) => *known += chance,
                None => found.push((outcome, chance)),
            }
        }
        found
    }

    fn locality(&self, address: A::Addr) -> Locality {
        if self.site.is_local(address) { Locality::Local } else { Locality::Remote }
    }

    fn request(&self, to: Backend<A>) -> Request<A> {
        let origin = match &self.probe.in_interface {
            None => Origin::Host,
            Some(name) if self.detector.takes_for_pods(name) => Origin::PodPort,
            Some(_) => Origin::Port,
        };
        Request {
            source: self.probe.source,
            destination: to.address,
            destination_port: to.port,
            protocol: self.probe.protocol,
            origin,
            source_is_local: self.locality(self.probe.source),
            destination_is_local: self.locality(to.address),
        }
    }

    fn passed(&self, to: Backend<A>, mark: Mark, effects: Vec<String>) -> Outcome<A> {
        let local = self.site.is_local(to.address);
        // WK-09
        let kept = local && self.probe.in_interface.is_some();
        let (mark, source) = match (mark, kept) {
            (Mark::Clear, _) => (0, None),
            (Mark::Set, true) => (self.tables.mark, None),
            (Mark::Set, false) => (0, Some(Snat::Masquerade)),
        };
        Outcome {
            verdict: match local {
                true => Verdict::Delivered,
                false => Verdict::Forwarded(Name::new(self.probe.out_interface(to.address))),
            },
            passed: Some(Passed {
                destination: (to.address, to.port),
                mark: self.probe.mark | mark,
                source,
                effects,
            }),
        }
    }

    /// NO-07
    fn guarded(&self, to: Backend<A>) -> bool {
        self.tables.localhost_node_ports == LocalhostNodePorts::Enabled
            && to.address.is_loopback()
            && !self.probe.source.is_loopback()
    }

    fn refused_invalid(&self, to: Backend<A>) -> Option<Outcome<A>> {
        let forwarded = self.probe.in_interface.is_some() && !self.site.is_local(to.address);
        (forwarded || self.guarded(to)).then_some(gone())
    }

    fn refused(&self, to: Backend<A>, mark: Mark, translated: bool) -> Option<Outcome<A>> {
        let local = self.site.is_local(to.address);
        let stages: &[FilterStage] = match (self.probe.in_interface.is_some(), local) {
            (false, true) => &[FilterStage::Output, FilterStage::Input],
            (false, false) => &[FilterStage::Output],
            (true, true) => &[FilterStage::Input],
            (true, false) => &[FilterStage::Forward],
        };
        if !translated && self.guarded(to) {
            return Some(gone());
        }
        let request = self.request(to);
        let services = &self.tables.services;
        let verdict = stages.iter().find_map(|stage| match (stage, mark) {
            (FilterStage::Forward, Mark::Set) => services.firewall(&request),
            _ => services.filter(*stage, &request),
        });
        verdict.map(|verdict| match verdict {
            FilterVerdict::NoEndpoints => {
                Outcome { verdict: Verdict::Rejected(RejectWith::PortUnreachable), passed: None }
            }
            FilterVerdict::NoLocalEndpoints | FilterVerdict::SourceRange => gone(),
        })
    }
}

fn gone<A: Family>() -> Outcome<A> {
    Outcome { verdict: Verdict::Dropped, passed: None }
}

/// Tables with one thing changed.
pub(super) struct Changed<A: Family> {
    /// What kind of change it is.
    pub(super) operator: &'static str,
    /// Of what.
    pub(super) what: String,
    /// The tables.
    pub(super) tables: Translation<A>,
}

/// A frontend with its backends in place of their numbers.
#[derive(Clone)]
struct Draft<A: Family> {
    frontend: Frontend<A>,
    sets: Vec<Vec<Backend<A>>>,
}

/// Every single change.
pub(super) fn changes<A: Family>(tables: &Translation<A>) -> Vec<Changed<A>> {
    let services = &tables.services;
    let drafts: Vec<Draft<A>> = services.frontends().map(|(_, frontend)| draft(services, frontend)).collect();
    let policy = services.policy();
    let mut changes = Vec::new();
    let mut add = |operator, what: String, services| {
        changes.push(Changed { operator, what, tables: Translation { services, ..tables.clone() } });
    };
    for (operator, policy) in policies(policy) {
        add(operator, format!("{policy:?}"), build(&policy, &drafts));
    }
    for (at, draft) in drafts.iter().enumerate() {
        let what = || format!("{:?} {:?}", draft.frontend.kind, draft.frontend.key);
        let mut without = drafts.clone();
        without.remove(at);
        add("table: frontend removed", what(), build(policy, &without));
        if drafts.get(at + 1).is_some_and(|next| next.frontend.key == draft.frontend.key) {
            let mut swapped = drafts.clone();
            swapped.swap(at, at + 1);
            add("table: frontends swapped", what(), build(policy, &swapped));
        }
        for (operator, changed) in variants(draft) {
            let mut drafts = drafts.clone();
            drafts[at] = changed;
            add(operator, what(), build(policy, &drafts));
        }
    }
    let other = match tables.localhost_node_ports {
        LocalhostNodePorts::Enabled => LocalhostNodePorts::Disabled,
        LocalhostNodePorts::Disabled => LocalhostNodePorts::Enabled,
    };
    changes.push(Changed {
        operator: "table: loopback guard",
        what: format!("{other:?}"),
        tables: Translation { localhost_node_ports: other, ..tables.clone() },
    });
    changes.push(Changed {
        operator: "table: mark",
        what: format!("{:#x}", tables.mark << 1),
        tables: Translation { mark: tables.mark << 1, ..tables.clone() },
    });
    changes
}

fn draft<A: Family>(services: &Services<A>, frontend: &Frontend<A>) -> Draft<A> {
    let set = |set| services.backends(set).to_vec();
    let sets = match frontend.path {
        Path::FallThrough => Vec::new(),
        Path::Internal(one) | Path::Cluster(one) => vec![set(one)],
        Path::Local { cluster, local } => vec![set(cluster), set(local)],
    };
    Draft { frontend: frontend.clone(), sets }
}

fn build<A: Family>(policy: &Policy<A>, drafts: &[Draft<A>]) -> Services<A> {
    let mut builder = Builder::new(policy.clone());
    for Draft { frontend, sets } in drafts {
        let mut sets = sets.iter();
        let mut set = || builder.backends(sets.next().cloned().unwrap_or_default());
        let path = match frontend.path {
            Path::FallThrough => Path::FallThrough,
            Path::Internal(_) => Path::Internal(set()),
            Path::Cluster(_) => Path::Cluster(set()),
            Path::Local { .. } => {
                let cluster = set();
                Path::Local { cluster, local: set() }
            }
        };
        builder.frontend(Frontend { path, ..frontend.clone() });
    }
    builder.build()
}

fn policies<A: Family>(policy: &Policy<A>) -> Vec<(&'static str, Policy<A>)> {
    let mut found = Vec::new();
    let mut detect = |detector| found.push(("table: detector", Policy { detector, ..policy.clone() }));
    match policy.detector {
        Detector::None => detect(Detector::Interface),
        Detector::Source(pods) => {
            detect(Detector::None);
            detect(Detector::Source(Prefix::new(pods.address(), pods.len() - 1)));
            detect(Detector::Source(Prefix::new(pods.address(), pods.len() + 1)));
        }
        Detector::Interface => detect(Detector::None),
    }
    let internal_mark = match policy.internal_mark {
        InternalMark::ByDetector => InternalMark::Always,
        InternalMark::Always => InternalMark::ByDetector,
    };
    found.push(("table: internal mark", Policy { internal_mark, ..policy.clone() }));
    let node_ports = match &policy.node_ports {
        NodePortAddresses::AllLocal(Loopback::Included) => NodePortAddresses::AllLocal(Loopback::Excluded),
        NodePortAddresses::AllLocal(Loopback::Excluded) => NodePortAddresses::AllLocal(Loopback::Included),
        NodePortAddresses::Only(addresses) => {
            NodePortAddresses::Only(addresses.iter().skip(1).copied().collect())
        }
    };
    found.push(("table: node port addresses", Policy { node_ports, ..policy.clone() }));
    found
}

fn variants<A: Family>(draft: &Draft<A>) -> Vec<(&'static str, Draft<A>)> {
    let mut found = Vec::new();
    let mut with = |operator, change: &dyn Fn(&mut Draft<A>)| {
        let mut changed = draft.clone();
        change(&mut changed);
        found.push((operator, changed));
    };
    with("table: port", &|draft| draft.frontend.key.port += 1);
    with("table: protocol", &|draft| {
        let key = &mut draft.frontend.key;
        key.protocol = if key.protocol == Protocol::TCP { Protocol::UDP } else { Protocol::TCP };
    });
    if let FrontendAddress::Address(address) = draft.frontend.key.address {
        with("table: address", &|draft| {
            let next = A::Addr::from_bits(address.bits() + 1);
            draft.frontend.key.address = FrontendAddress::Address(next);
        });
    }
    with("table: kind", &|draft| {
        draft.frontend.kind = match draft.frontend.kind {
            FrontendKind::ClusterIp => FrontendKind::ExternalIp,
            FrontendKind::ExternalIp => FrontendKind::ClusterIp,
            FrontendKind::LoadBalancer => FrontendKind::ExternalIp,
            FrontendKind::NodePort => FrontendKind::ClusterIp,
        };
    });
    with("table: ranges", &|draft| {
        draft.frontend.sources = match &draft.frontend.sources {
            None => Some([].into()),
            Some(_) => None,
        };
    });
    if draft.frontend.sources.as_ref().is_some_and(|ranges| !ranges.is_empty()) {
        with("table: one range removed", &|draft| {
            draft.frontend.sources = draft.frontend.sources.as_ref().map(|ranges| ranges[1..].into());
        });
        with("table: one range shortened", &|draft| {
            let shorten = |ranges: &Arc<[Prefix<A>]>| {
                let mut ranges = ranges.to_vec();
                ranges[0] = Prefix::new(ranges[0].address(), ranges[0].len() - 1);
                ranges.into()
            };
            draft.frontend.sources = draft.frontend.sources.as_ref().map(shorten);
        });
    }
    for rule in [None, Some(FilterRule::Drop), Some(FilterRule::Reject)] {
        if rule != draft.frontend.filter {
            with("table: filter", &|draft| draft.frontend.filter = rule);
        }
    }
    with("table: affinity", &|draft| {
        let affinity = &mut draft.frontend.affinity;
        match affinity {
            Some(some) => some.timeout += std::time::Duration::from_secs(1),
            None => {
                let timeout = std::time::Duration::from_secs(60);
                *affinity = Some(Affinity { timeout, service_port: 1 });
            }
        }
    });
    with("table: path", &|draft| {
        let empty = BackendSet::default();
        draft.frontend.path = match draft.frontend.path {
            Path::FallThrough => Path::Cluster(empty),
            Path::Internal(_) => Path::Cluster(empty),
            Path::Cluster(_) => Path::Internal(empty),
            Path::Local { .. } => Path::Cluster(empty),
        };
    });
    with("table: nothing to choose from", &|draft| draft.frontend.path = Path::FallThrough);
    for at in 0..draft.sets.len() {
        if draft.sets.len() == 2 {
            with("table: sets exchanged", &|draft| draft.sets.swap(0, 1));
        }
        if draft.sets[at].is_empty() {
            continue;
        }
        with("table: backend removed", &|draft| {
            draft.sets[at].remove(0);
        });
        with("table: backend twice", &|draft| {
            let again = draft.sets[at][0];
            draft.sets[at].push(again);
        });
        with("table: backend's port", &|draft| draft.sets[at][0].port += 1);
        with("table: backend's address", &|draft| {
            let backend = &mut draft.sets[at][0];
            backend.address = A::Addr::from_bits(backend.address.bits() + 1);
        });
        if draft.sets[at].len() > 1 {
            with("table: backends' order", &|draft| draft.sets[at].reverse());
        }
    }
    found
}
