//! A flow of a case through the compiled tables: the walk of services.md section 4 with a routing that knows
//! local addresses and nothing else, which is all that a case says about it.
//!
//! The decisions are the tables' own ([`Services::destination`], [`Services::filter`]); what is here is the
//! order of the stages (WK-06, WK-07) and the set of *all* possible outcomes instead of one choice.

use std::net::SocketAddr;

use pollux_dataplane::packet::{Address, Family, V4, V6};
use pollux_dataplane::service::{
    Backend, FilterStage, FilterVerdict, Locality, Mark, Origin, Request, Services, Silent,
};

use serde::Serialize;

use super::cases::{Case, CaseFamily, CaseVerdict, Flow, Outcome};
use crate::translate::{Input, LocalhostNodePorts, Translation, translate};

/// A flow that did not become what was expected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Mismatch {
    /// The case.
    pub case: String,
    /// The flow.
    pub flow: String,
    /// What was expected.
    pub expected: Outcome,
    /// What the tables say.
    pub got: Outcome,
}

/// Sends all flows of a case through the tables that its objects give.
pub fn check(case: &Case) -> Vec<Mismatch> {
    match case.family {
        CaseFamily::IPv4 => check_family::<V4>(case),
        CaseFamily::IPv6 => check_family::<V6>(case),
    }
}

fn check_family<A: Family>(case: &Case) -> Vec<Mismatch> {
    let input = Input {
        cluster: &case.cluster,
        proxy: &case.proxy,
        node_name: &case.node_name,
        service_proxy_name: None,
        local_addresses: &case.local_addresses,
    };
    let translation = translate::<A>(&input);
    let walker = Walker { translation: &translation, local: input.local_addresses::<A>() };
    let outcomes = case.flows.iter().map(|flow| (flow, walker.outcome(flow)));
    outcomes
        .filter(|(flow, got)| flow.expect != *got)
        .map(|(flow, got)| Mismatch {
            case: case.name.clone(),
            flow: flow.name.clone(),
            expected: flow.expect.clone(),
            got,
        })
        .collect()
}

struct Walker<'a, A: Family> {
    translation: &'a Translation<A>,
    local: Vec<A::Addr>,
}

impl<A: Family> Walker<'_, A> {
    fn outcome(&self, flow: &Flow) -> Outcome {
        let (Some(source), Some(destination)) = (A::Addr::from_ip(flow.from), A::Addr::from_ip(flow.to))
        else {
            return Outcome { verdict: CaseVerdict::None, backends: Vec::new(), masquerade: false };
        };
        let source_is_local = self.locality(source);
        let request = Request {
            source,
            destination,
            destination_port: flow.port,
            protocol: flow.protocol,
            origin: match source_is_local {
                Locality::Local => Origin::Host,
                Locality::Remote => Origin::Port,
            },
            source_is_local,
            destination_is_local: self.locality(destination),
        };
        let services: &Services<A> = &self.translation.services;
        let chosen = services.destination(&request, &mut Silent);
        let backends = chosen.choice.map_or(&[][..], |(_, set)| services.backends(set));
        if backends.is_empty() {
            let verdict = self.filter(&request, chosen.mark, Translated::No);
            return Outcome {
                verdict: verdict.unwrap_or(CaseVerdict::None),
                backends: Vec::new(),
                masquerade: false,
            };
        }
        let mark = |backend: &Backend<A>| match backend.address == source {
            true => Mark::Set, // MQ-03
            false => chosen.mark,
        };
        // A backend may be refused by the filter, having a frontend's address itself: the flow's verdict is
        // then that of the filter.
        let refused = backends.iter().find_map(|backend| {
            let translated = Request {
                destination: backend.address,
                destination_port: backend.port,
                destination_is_local: self.locality(backend.address),
                ..request
            };
            self.filter(&translated, mark(backend), Translated::Yes)
        });
        let mut addresses: Vec<SocketAddr> =
            backends.iter().map(|backend| SocketAddr::new(backend.address.into(), backend.port)).collect();
        addresses.sort_unstable();
        Outcome {
            verdict: refused.unwrap_or(CaseVerdict::Dnat),
            backends: addresses,
            masquerade: backends.iter().any(|backend| mark(backend) == Mark::Set),
        }
    }

    /// The filter stages on the packet's way (WK-07).
    fn filter(&self, request: &Request<A>, mark: Mark, translated: Translated) -> Option<CaseVerdict> {
        let to_node = request.destination_is_local == Locality::Local;
        let guarded = self.translation.localhost_node_ports == LocalhostNodePorts::Enabled
            && request.destination.is_loopback()
            && !request.source.is_loopback()
            && translated == Translated::No;
        let stages: &[FilterStage] = match (request.origin, to_node) {
            (Origin::Host, true) => &[FilterStage::Output, FilterStage::Input],
            (Origin::Host, false) => &[FilterStage::Output],
            (Origin::Port | Origin::PodPort, true) => &[FilterStage::Input],
            (Origin::Port | Origin::PodPort, false) => &[FilterStage::Forward],
        };
        if guarded && (to_node || request.origin == Origin::Host) {
            return Some(CaseVerdict::Drop); // NO-07
        }
        stages.iter().find_map(|stage| {
            let services = &self.translation.services;
            let verdict = match (stage, mark) {
                // Accepted before the Services are asked, but for the firewall.
                (FilterStage::Forward, Mark::Set) => services.firewall(request),
                _ => services.filter(*stage, request),
            };
            verdict.map(|verdict| match verdict {
                FilterVerdict::NoEndpoints => CaseVerdict::Reject,
                FilterVerdict::NoLocalEndpoints | FilterVerdict::SourceRange => CaseVerdict::Drop,
            })
        })
    }

    fn locality(&self, address: A::Addr) -> Locality {
        match address.is_loopback() || self.local.binary_search(&address).is_ok() {
            true => Locality::Local,
            false => Locality::Remote,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Translated {
    Yes,
    No,
}
