//! A flow of a case through the compiled tables, with a routing that knows local addresses and nothing else,
//! which is all that a case says about it.

use std::net::SocketAddr;

use pollux_dataplane::packet::{Address, Family, V4, V6};
use serde::Serialize;

use super::cases::{Case, CaseFamily, CaseVerdict, Flow, Outcome};
use super::outcome::{self, SourceNat};
use super::piece::{Entry, Stage};
use super::tables::{One, Tables};
use crate::translate::translate;

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
    let input = case.input();
    let translation = translate::<A>(&input);
    let tables = Tables::new(&translation, Vec::new());
    let local = input.local_addresses::<A>();
    let outcomes = case.flows.iter().map(|flow| (flow, outcome(&tables, &local, flow)));
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

/// All that may become of a flow. Its verdict is that of the filter if that lets no backend be reached.
fn outcome<A: Family>(tables: &Tables<'_, A>, local: &[A::Addr], flow: &Flow) -> Outcome {
    let mut got = Outcome { verdict: CaseVerdict::None, backends: Vec::new(), masquerade: false };
    let (Some(source), Some(destination)) = (A::Addr::from_ip(flow.from), A::Addr::from_ip(flow.to)) else {
        return got;
    };
    let is_local = |address: A::Addr| address.is_loopback() || local.binary_search(&address).is_ok();
    let sender = One {
        source,
        is_local: is_local(source),
        entry: if is_local(source) { Entry::Host } else { Entry::Port },
        stage: Stage::First,
        by_pod_port: false,
        output: "",
        is_new: true,
        was_translated: false,
        noted: &[],
    };
    let to = (destination, flow.port, flow.protocol);
    let ends = tables.walk(&sender, to, is_local, |preferred, _| preferred.to_string(), false);
    for branch in &ends.branches {
        let passed = match &branch.outcome {
            outcome::Outcome::Passes(passed) => passed,
            refused => {
                if got.verdict == CaseVerdict::None {
                    got.verdict = match refused {
                        outcome::Outcome::Rejects(_) => CaseVerdict::Reject,
                        _ => CaseVerdict::Drop,
                    };
                }
                continue;
            }
        };
        if let Some((address, port)) = passed.destination {
            got.verdict = CaseVerdict::Dnat;
            got.backends.push(SocketAddr::new(address.into(), port));
            got.masquerade |= passed.mark != 0 || passed.source != SourceNat::Kept;
        }
    }
    got.backends.sort_unstable();
    got
}
