//! The rules of one service port: its entries in the fixed chains, and its own chains KUBE-SVC (cluster
//! endpoints), KUBE-SVL (local endpoints), KUBE-EXT (external traffic), KUBE-FW (source ranges) and KUBE-SEP
//! (one endpoint each).

use pollux_dataplane::packet::{Family, Prefix, Protocol};
use pollux_dataplane::service::Backend;

use super::fixed::{Tables, loopback_prefix};
use super::write::{Draft, about, all};
use super::{EndpointComments, Setting, not, plain};
use crate::cluster::{Service, ServicePort, ServiceType, TrafficPolicy};
use crate::iptables::{
    AddressTypes, ChainId, Nat, RandomPorts, Recent, RecentAction, RejectWith, Side, Target, Test,
};
use crate::translate::endpoints::{Availability, EndpointSets};
use crate::translate::{Chain, ServicePortId, endpoint_name};

/// Counted when a node port is reached by a loopback address.
const LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

/// Whether a service port is reached by anything but its clusterIP (FE-02 to FE-04).
pub(super) fn is_external<A: Family>(service: &Service, port: &ServicePort) -> bool {
    port.node_port.is_some()
        || service.external_ips::<A>().next().is_some()
        || service.load_balancer_ips::<A>().next().is_some()
}

/// A service port with what decides its rules.
pub(super) struct Port<'a, A: Family> {
    service: &'a Service,
    port: &'a ServicePort,
    cluster_ip: A::Addr,
    endpoints: &'a EndpointSets<A>,
    id: ServicePortId,
    /// `namespace/name:port`
    name: String,
}

/// The chains of a service port that exist.
struct Chains {
    cluster: Option<ChainId>,
    local: Option<ChainId>,
    external: Option<ChainId>,
    firewall: Option<ChainId>,
}

impl<'a, A: Family> Port<'a, A> {
    pub(super) fn new(
        service: &'a Service,
        port: &'a ServicePort,
        cluster_ip: A::Addr,
        endpoints: &'a EndpointSets<A>,
    ) -> Self {
        let id = ServicePortId {
            service: service.key.clone(),
            port_name: port.name.clone(),
            protocol: port.protocol,
        };
        Port { service, port, cluster_ip, endpoints, name: id.to_string(), id }
    }

    /// Writes the rules.
    pub(super) fn write(&self, setting: &Setting<'_, A>, tables: &mut Tables<A>) {
        let chains = self.chains(tables);
        self.write_internal(&chains, setting, tables);
        self.write_external_addresses(&chains, tables);
        self.write_node_port(&chains, setting, tables);
        self.write_health_check(tables);
        self.write_external_chain(&chains, setting, tables);
        self.write_firewall_chain(&chains, setting, tables);
        self.write_endpoints(&chains, setting, tables);
    }

    fn has_endpoints(&self) -> bool {
        self.endpoints.availability == Availability::Some
    }

    /// Whether traffic under `policy` finds an endpoint (WK-02, WK-03).
    fn has_endpoints_under(&self, policy: TrafficPolicy) -> bool {
        self.has_endpoints() && (policy == TrafficPolicy::Cluster || !self.endpoints.local.is_empty())
    }

    fn chains(&self, tables: &mut Tables<A>) -> Chains {
        let mut chain = |kind, exists: bool| exists.then(|| tables.nat.chain(self.id.chain(kind)));
        let external = self.has_endpoints() && is_external::<A>(self.service, self.port);
        let balanced = self.service.load_balancer_ips::<A>().next().is_some();
        Chains {
            cluster: chain(Chain::Cluster, !self.endpoints.cluster.is_empty()),
            local: chain(Chain::Local, !self.endpoints.local.is_empty()),
            external: chain(Chain::External, external),
            firewall: chain(Chain::Firewall, external && balanced && self.source_ranges().is_some()),
        }
    }

    /// NO-04: the ranges of the family; none if there are none, or if one of them is everything.
    fn source_ranges(&self) -> Option<Vec<Prefix<A>>> {
        let ranges: Vec<Prefix<A>> =
            self.service.source_ranges.iter().filter_map(|range| range.of::<A>()).collect();
        Some(ranges).filter(|ranges| !ranges.is_empty() && ranges.iter().all(|range| range.len() > 0))
    }

    /// `-d address -p protocol --dport port`, of the service port.
    fn to(&self, address: A::Addr, comment: String) -> Draft<A> {
        about(comment)
            .test(Test::Destination(Prefix::host(address)))
            .protocol(self.port.protocol)
            .port(self.port.port)
    }

    /// What the filter does where a policy finds no endpoint: the comment and the target (NO-01 to NO-03).
    fn refusal(&self) -> (String, Target<A>) {
        match self.has_endpoints() {
            true => (format!("{} has no local endpoints", self.name), Target::Drop),
            false => (format!("{} has no endpoints", self.name), Target::Reject(RejectWith::PortUnreachable)),
        }
    }

    /// The clusterIP (FE-01, WK-02).
    fn write_internal(&self, chains: &Chains, setting: &Setting<'_, A>, tables: &mut Tables<A>) {
        let policy = self.service.internal_policy;
        let chain = match policy {
            TrafficPolicy::Cluster => chains.cluster,
            TrafficPolicy::Local => chains.local,
        };
        let Some(chain) = chain.filter(|_| self.has_endpoints_under(policy)) else {
            let (comment, target) = self.refusal();
            return tables.filter.rule(
                tables.filter_chains.services,
                self.to(self.cluster_ip, comment),
                target,
            );
        };
        let comment = format!("{} cluster IP", self.name);
        let services = tables.nat_chains.services;
        tables.nat.rule(services, self.to(self.cluster_ip, comment.clone()), Target::Jump(chain));
        // MQ-01, MQ-02: the first rule of the chain, and so in front of its endpoints.
        let not_from_pods = match setting.input.proxy.masquerade {
            crate::config::proxy::MasqueradePolicy::All => Some(None),
            crate::config::proxy::MasqueradePolicy::NotLocal => setting.detector.clone().map(Some),
        };
        let Some(detector) = not_from_pods else {
            return;
        };
        let draft = about(comment);
        let destination = Test::Destination(Prefix::host(self.cluster_ip));
        let draft = match detector {
            None => draft.test(destination),
            Some(source @ Test::Source(_)) => draft.matching(not(source)).test(destination),
            Some(interface) => draft.test(destination).matching(not(interface)),
        };
        let draft = draft.protocol(self.port.protocol).port(self.port.port);
        tables.nat.rule(chain, draft, Target::Jump(tables.nat_chains.mark));
    }

    /// External and load-balancer IPs (FE-02, FE-03, NO-01, NO-03, NO-04).
    fn write_external_addresses(&self, chains: &Chains, tables: &mut Tables<A>) {
        let refused = !self.has_endpoints_under(self.service.external_policy);
        let filter = tables.filter_chains;
        let nat = tables.nat_chains;
        for address in self.service.external_ips::<A>() {
            if let Some(chain) = chains.external {
                let draft = self.to(address, format!("{} external IP", self.name));
                tables.nat.rule(nat.services, draft, Target::Jump(chain));
            }
            if refused {
                let (comment, target) = self.refusal();
                tables.filter.rule(filter.external, self.to(address, comment), target);
            }
        }
        for address in self.service.load_balancer_ips::<A>() {
            if let Some(chain) = chains.firewall.or(chains.external) {
                let draft = self.to(address, format!("{} loadbalancer IP", self.name));
                tables.nat.rule(nat.services, draft, Target::Jump(chain));
            }
            if chains.firewall.is_some() {
                let chain = self.id.chain(Chain::Firewall);
                let comment = format!("{} traffic not accepted by {chain}", self.name);
                tables.filter.rule(filter.proxy_firewall, self.to(address, comment), Target::Drop);
            }
        }
        if refused {
            for address in self.service.load_balancer_ips::<A>() {
                let (comment, target) = self.refusal();
                tables.filter.rule(filter.external, self.to(address, comment), target);
            }
        }
    }

    /// The node port (FE-04, NO-05).
    fn write_node_port(&self, chains: &Chains, setting: &Setting<'_, A>, tables: &mut Tables<A>) {
        let Some(number) = self.port.node_port else {
            return;
        };
        if let Some(chain) = chains.external {
            let node_ports = tables.nat_chains.node_ports;
            if setting.localhost_node_ports() {
                // Does what the next rule does; it is there to be counted.
                let draft = about(self.name.as_str())
                    .test(Test::Destination(loopback_prefix()))
                    .protocol(self.port.protocol)
                    .port(number)
                    .test(Test::Nfacct(LOCALHOST_ACCEPTED.to_string()));
                tables.nat.rule(node_ports, draft, Target::Jump(chain));
            }
            let draft = about(self.name.as_str()).protocol(self.port.protocol).port(number);
            tables.nat.rule(node_ports, draft, Target::Jump(chain));
        }
        if !self.has_endpoints_under(self.service.external_policy) {
            let (comment, target) = self.refusal();
            let draft =
                about(comment).protocol(self.port.protocol).test(local(Side::Destination)).port(number);
            tables.filter.rule(tables.filter_chains.external, draft, target);
        }
    }

    /// UP-05
    fn write_health_check(&self, tables: &mut Tables<A>) {
        let checked = self.service.kind == ServiceType::LoadBalancer
            && self.service.external_policy == TrafficPolicy::Local;
        if let Some(number) = self.service.health_check_node_port.filter(|_| checked) {
            let comment = format!("{} health check node port", self.name);
            let draft = about(comment).protocol(Protocol::TCP).port(number);
            tables.filter.rule(tables.filter_chains.node_ports, draft, Target::Accept);
        }
    }

    /// KUBE-EXT (WK-03, WK-04, MQ-04 to MQ-07).
    fn write_external_chain(&self, chains: &Chains, setting: &Setting<'_, A>, tables: &mut Tables<A>) {
        let Some(external) = chains.external else {
            return;
        };
        let name = &self.name;
        let mark = Target::Jump(tables.nat_chains.mark);
        let policy_chain = match self.service.external_policy {
            TrafficPolicy::Cluster => {
                let draft = about(format!("masquerade traffic for {name} external destinations"));
                tables.nat.rule(external, draft, mark);
                chains.cluster
            }
            TrafficPolicy::Local => {
                let cluster = chains.cluster.expect("whoever is external uses the cluster's endpoints");
                if let Some(detector) = &setting.detector {
                    let draft = about(format!("pod traffic for {name} external destinations"));
                    let draft = draft.matching(plain(detector.clone()));
                    tables.nat.rule(external, draft, Target::Jump(cluster));
                }
                let draft = about(format!("masquerade LOCAL traffic for {name} external destinations"));
                tables.nat.rule(external, draft.test(local(Side::Source)), mark);
                let draft = about(format!("route LOCAL traffic for {name} external destinations"));
                tables.nat.rule(external, draft.test(local(Side::Source)), Target::Jump(cluster));
                chains.local
            }
        };
        if let Some(chain) = policy_chain {
            tables.nat.rule(external, all(), Target::Jump(chain));
        }
    }

    /// KUBE-FW (NO-04).
    fn write_firewall_chain(&self, chains: &Chains, setting: &Setting<'_, A>, tables: &mut Tables<A>) {
        let (Some(firewall), Some(external), Some(mut ranges)) =
            (chains.firewall, chains.external, self.source_ranges())
        else {
            return;
        };
        let node = setting.input.node_ip::<A>();
        if node.is_some_and(|node| ranges.iter().any(|range| range.contains(node))) {
            ranges.extend(self.service.load_balancer_ips::<A>().map(Prefix::host));
        }
        for range in ranges {
            let draft = about(format!("{} loadbalancer IP", self.name)).test(Test::Source(range));
            tables.nat.rule(firewall, draft, Target::Jump(external));
        }
        let comment = format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", self.name);
        tables.nat.rule(firewall, about(comment), Target::None);
    }

    /// KUBE-SVC, KUBE-SVL, KUBE-SEP (WK-05, EP-06, AF-01 to AF-03, MQ-03).
    fn write_endpoints(&self, chains: &Chains, setting: &Setting<'_, A>, tables: &mut Tables<A>) {
        let sets = self.endpoints;
        let own: Vec<(Backend<A>, ChainId, String)> = {
            let mut backends: Vec<Backend<A>> = sets.cluster.clone();
            backends.extend(sets.local.iter().filter(|backend| !sets.cluster.contains(backend)));
            let chain = |backend| {
                let name = self.id.endpoint_chain(backend);
                (backend, tables.nat.chain(name.as_str()), name)
            };
            backends.into_iter().map(chain).collect()
        };
        for (chain, set) in [(chains.cluster, &sets.cluster), (chains.local, &sets.local)] {
            let Some(chain) = chain else {
                continue;
            };
            let chosen: Vec<_> = set
                .iter()
                .map(|backend| own.iter().find(|(of, ..)| of == backend).expect("every endpoint has a chain"))
                .collect();
            self.write_choice(chain, &chosen, setting, tables);
        }
        for (backend, chain, name) in &own {
            let draft = match setting.comments {
                EndpointComments::Written => about(self.name.as_str()),
                EndpointComments::None => all(),
            };
            let hairpin = draft.clone().test(Test::Source(Prefix::host(backend.address)));
            tables.nat.rule(*chain, hairpin, Target::Jump(tables.nat_chains.mark));
            let mut draft = draft.protocol(self.port.protocol);
            if self.service.affinity.is_some() {
                draft = draft.test(Test::Recent(recent::<A>(name, RecentAction::Set, None)));
            }
            let to = Nat {
                addresses: Some((backend.address, backend.address)),
                ports: Some(backend.port..=backend.port),
                random: RandomPorts::Keep,
                persistent: false,
            };
            tables.nat.rule(*chain, draft, Target::Dnat(to));
        }
    }

    /// The choice among endpoints: who has been here lately, then 1/n, 1/(n-1), … and the last.
    fn write_choice(
        &self,
        chain: ChainId,
        endpoints: &[&(Backend<A>, ChainId, String)],
        setting: &Setting<'_, A>,
        tables: &mut Tables<A>,
    ) {
        let draft = |backend| match setting.comments {
            EndpointComments::Written => about(format!("{} -> {}", self.name, endpoint_name(backend))),
            EndpointComments::None => all(),
        };
        if let Some(timeout) = self.service.affinity {
            let seconds = u32::try_from(timeout.as_secs()).expect("at most a day");
            for (backend, endpoint, name) in endpoints {
                let recent = recent::<A>(name, RecentAction::Check, Some(seconds));
                let draft = draft(*backend).test(Test::Recent(recent));
                tables.nat.rule(chain, draft, Target::Jump(*endpoint));
            }
        }
        for (at, (backend, endpoint, _)) in endpoints.iter().enumerate() {
            let mut draft = draft(*backend);
            let left = endpoints.len() - at;
            if left > 1 {
                draft = draft.test(Test::Random { threshold: threshold(left) });
            }
            tables.nat.rule(chain, draft, Target::Jump(*endpoint));
        }
    }
}

fn local<A: Family>(side: Side) -> Test<A> {
    Test::AddressType { side, kinds: AddressTypes::LOCAL, limit: None }
}

fn recent<A: Family>(list: &str, action: RecentAction, seconds: Option<u32>) -> Recent {
    Recent {
        name: list.to_string(),
        action,
        side: Side::Source,
        mask: A::BITS,
        seconds,
        hitcount: None,
        reap: seconds.is_some(),
    }
}

/// One of `left` in 31 bits, by way of the ten decimals that kube-proxy writes.
fn threshold(left: usize) -> u32 {
    let written: f64 = format!("{:.10}", 1.0 / left as f64).parse().expect("digits and a point");
    (written * f64::from(1u32 << 31)).round() as u32
}
