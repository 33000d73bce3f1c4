//! Every case file: the tables compiled from its objects decide each of its flows as expected, and choose
//! among the endpoints that kube-proxy's rules for it have.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pollux_control::translate::endpoints::Availability;
use pollux_control::translate::{Chain, Input, ServicePortRules, translate};
use pollux_control::verify::cases::{self, Case, CaseFamily};
use pollux_control::verify::check::check;
use pollux_dataplane::packet::{Family, V4, V6};
use pollux_dataplane::service::FrontendKind;

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases");
    cases::find(&[folder]).unwrap()
}

/// The chains that kube-proxy would write for the case, by our translation.
fn chains<A: Family>(case: &Case) -> BTreeSet<String> {
    let translation = translate::<A>(&Input {
        cluster: &case.cluster,
        proxy: &case.proxy,
        node_name: &case.node_name,
        service_proxy_name: None,
        local_addresses: &case.local_addresses,
    });
    let mut chains = BTreeSet::new();
    for port in &translation.ports {
        let sets = &port.endpoints;
        let external = port.frontends.len() > 1 && sets.availability == Availability::Some;
        let firewall = external && port.sources.is_some() && has_balancer(port);
        let used = [
            (Chain::Cluster, !sets.cluster.is_empty()),
            (Chain::Local, !sets.local.is_empty()),
            (Chain::External, external),
            (Chain::Firewall, firewall),
        ];
        chains.extend(used.into_iter().filter(|(_, used)| *used).map(|(chain, _)| port.id.chain(chain)));
        chains.extend(sets.cluster.iter().chain(&sets.local).map(|backend| port.id.endpoint_chain(*backend)));
    }
    chains
}

fn has_balancer<A: Family>(port: &ServicePortRules<A>) -> bool {
    port.frontends.iter().any(|(_, kind)| *kind == FrontendKind::LoadBalancer)
}

/// The chains of single service ports and endpoints that a dump declares.
fn chains_of_dump(rules: &str) -> BTreeSet<String> {
    let kinds = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];
    let declared = rules.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    declared.filter(|chain| kinds.iter().any(|kind| chain.starts_with(kind))).map(str::to_string).collect()
}

#[test]
fn endpoint_sets_and_names_are_those_of_kube_proxys_rules() {
    let mut compared = 0;
    for file in files() {
        let case = Case::load(&file).unwrap();
        let rules = std::fs::read_to_string(file.with_file_name("iptables-save.txt")).unwrap();
        let chains = match case.family {
            CaseFamily::IPv4 => chains::<V4>(&case),
            CaseFamily::IPv6 => chains::<V6>(&case),
        };
        assert_eq!(chains, chains_of_dump(&rules), "{}", case.name);
        compared += chains.len();
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn every_flow_of_every_case_gets_its_verdict() {
    let files = files();
    assert_eq!(files.len(), 130);
    let cases: Vec<_> = files.iter().map(|file| Case::load(file).unwrap()).collect();
    let flows: usize = cases.iter().map(|case| case.flows.len()).sum();
    assert_eq!(flows, 5048);
    let warned: Vec<_> = cases.iter().flat_map(|case| &case.warnings).map(ToString::to_string).collect();
    assert_eq!(warned, [""; 0]);
    let mismatches: Vec<_> = cases.iter().flat_map(check).collect();
    assert!(mismatches.is_empty(), "{} of {flows}: {:#?}", mismatches.len(), mismatches.first());
}
