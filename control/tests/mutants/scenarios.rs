//! Rules to change, with the objects that they were made from: kube-proxy's own for the corpus and the cases,
//! generated ones for what neither has in IPv6.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use pollux_bench::cluster::synthetic;
use pollux_control::cluster::{self, Cluster};
use pollux_control::config::{self, ProxyConfig};
use pollux_control::iptables::Ruleset;
use pollux_control::iptables::generate::generate;
use pollux_control::iptables::parse::parse;
use pollux_control::translate::Input;
use pollux_control::verify::cases::Case;
use pollux_dataplane::packet::{Address, Family, V4, V6};

use super::fuzz::Site;

/// Rules to change.
pub(super) struct Scenario<A: Family> {
    pub(super) name: String,
    pub(super) rules: Ruleset<A>,
    pub(super) cluster: Cluster,
    pub(super) proxy: ProxyConfig,
    pub(super) node_name: String,
    pub(super) local_addresses: Vec<IpAddr>,
}

impl<A: Family> Scenario<A> {
    pub(super) fn site(&self) -> Site<A> {
        let own = self.local_addresses.iter().filter_map(|address| A::Addr::from_ip(*address));
        Site { addresses: own.collect() }
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input {
            cluster: &self.cluster,
            proxy: &self.proxy,
            node_name: &self.node_name,
            service_proxy_name: None,
            local_addresses: &self.local_addresses,
        }
    }
}

pub(super) fn v4() -> Vec<Scenario<V4>> {
    vec![
        corpus("session-affinity"),
        corpus("lb-source-ranges"),
        corpus("lb-local"),
        corpus("lb-local-none"),
        corpus("nodeport-local"),
        corpus("detect-local-prefix"),
        corpus("topology-hints"),
        corpus("no-endpoints"),
        case("random-1000"),
        case("random-1003"),
    ]
}

pub(super) fn v6() -> Vec<Scenario<V6>> {
    vec![corpus("ipv6-only"), made()]
}

fn root(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(folder)
}

fn rules<A: Family>(file: PathBuf) -> Ruleset<A> {
    let text = fs::read_to_string(&file).unwrap();
    parse(Some(file.as_path().into()), &text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn corpus<A: Family>(name: &str) -> Scenario<A> {
    let folder = root("corpus").join(name);
    let (config, _) = config::load(&[folder.join("proxy-config.yaml")]).unwrap();
    // The node's interfaces in the corpus.
    let local_addresses = vec!["172.16.1.50".parse().unwrap(), "fd00:172::50".parse().unwrap()];
    Scenario {
        name: format!("{name} {}", A::NAME),
        rules: rules(folder.join(if A::VERSION == 4 { "iptables-save.txt" } else { "ip6tables-save.txt" })),
        cluster: cluster::load(&[folder.join("objects.yaml")]).unwrap().cluster,
        node_name: config.proxy.hostname_override.clone().unwrap(),
        proxy: config.proxy,
        local_addresses,
    }
}

fn case<A: Family>(name: &str) -> Scenario<A> {
    let folder = root("cases/random").join(name);
    let case = Case::load(&folder.join("case.json")).unwrap();
    Scenario {
        name: name.to_string(),
        rules: rules(folder.join("iptables-save.txt")),
        cluster: case.cluster,
        node_name: case.node_name,
        proxy: case.proxy,
        local_addresses: case.local_addresses,
    }
}

/// One Service of each kind that there is.
fn made<A: Family>() -> Scenario<A> {
    let made = synthetic(32, 2);
    let rules = generate::<A>(&made.input());
    Scenario {
        name: format!("made {}", A::NAME),
        rules,
        node_name: made.input().node_name.to_string(),
        cluster: made.cluster,
        proxy: made.proxy,
        local_addresses: made.local_addresses,
    }
}
