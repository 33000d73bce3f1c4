//! A packet's steps in the words of iptables: table, chain, rule, and what it does. The steps are those that
//! the forwarder told its observer; what is added here are kube-proxy's names for them.

use std::net::IpAddr;

use pollux_dataplane::flow::Direction;
use pollux_dataplane::forward::Event;
use pollux_dataplane::forward::observe::{ChosenBy, FilterSkip, MasqueradeCause, RouteSeen};
use pollux_dataplane::packet::icmp::ErrorKind;
use pollux_dataplane::packet::{Address, Family, PortId, Prefix};
use pollux_dataplane::service::{
    Backend, Detector, FilterStage, FilterVerdict, Frontend, FrontendAddress, FrontendId, FrontendKind,
    MarkReason, Origin, Path,
};
use pollux_dataplane::stats::Reason;
use pollux_dataplane::tables::{FamilyTables, MasqueradePorts, MasqueradeRule, Match, Tables};
use serde::{Deserialize, Serialize};

use crate::translate::{Chain, ServicePorts};

/// One step of a packet's way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// `nat`, `filter`; `conntrack`, `route`, `neighbour`, `link` where iptables has no say.
    pub table: String,
    /// The chain, or what stands for it.
    pub chain: String,
    /// The rule, as `iptables-save` prints it; empty for a policy.
    pub rule: String,
    /// What it does to the packet.
    pub effect: String,
}

fn step(table: &str, chain: impl Into<String>, rule: impl Into<String>, effect: impl Into<String>) -> Step {
    Step { table: table.into(), chain: chain.into(), rule: rule.into(), effect: effect.into() }
}

/// What the words are taken from.
pub(super) struct Words<'a, A: Family> {
    pub(super) tables: &'a Tables,
    pub(super) family: &'a FamilyTables<A>,
    pub(super) ports: &'a ServicePorts<A>,
}

impl<A: Family> Words<'_, A> {
    /// The steps that `events` tell of.
    pub(super) fn steps(&self, events: &[Event]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut waiting = None;
        for (place, event) in events.iter().enumerate() {
            if let (Event::Received { .. }, Some(Event::FlowHit { .. })) = (event, events.get(place + 1)) {
                // The nat table sees a connection's first packet only.
                steps.extend(self.step(event).map(|first| step("conntrack", first.chain, "", first.effect)));
                continue;
            }
            // The chain of an endpoint marks a hairpin before it translates.
            if !matches!(event, Event::Hairpin) {
                steps.extend(waiting.take());
            }
            match event {
                Event::Chose { frontend, set, place, chosen_by, .. } => {
                    let backends = self.family.services.backends(*set);
                    let (choice, dnat) = self.chose(*frontend, backends, *place as usize, *chosen_by);
                    steps.extend(choice);
                    waiting = Some(dnat);
                }
                Event::Hairpin => {
                    let chain = waiting.as_ref().map_or(String::new(), |dnat: &Step| dnat.chain.clone());
                    let source =
                        source_of(events).map_or(String::new(), |source| format!("-s {} ", host(source)));
                    steps.push(step("nat", chain, format!("{source}-j KUBE-MARK-MASQ"), self.mark()));
                }
                event => steps.extend(self.step(event)),
            }
        }
        steps.extend(waiting);
        steps
    }

    fn step(&self, event: &Event) -> Option<Step> {
        Some(match event {
            Event::Received { origin, port, .. } => {
                let chain = if *origin == Origin::Host { "OUTPUT" } else { "PREROUTING" };
                let from = match origin {
                    Origin::Host => "from the host".to_string(),
                    Origin::Port | Origin::PodPort => format!("from {}", self.port(*port)),
                };
                let rule = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
                step("nat", chain, rule, from)
            }
            Event::FlowMiss => step("conntrack", "", "", "no connection: NEW"),
            Event::FlowHit { direction } => {
                let direction = direction_word(*direction);
                step(
                    "conntrack",
                    "",
                    "",
                    format!("known connection, {direction} direction: forwarded by its entry"),
                )
            }
            Event::Related { direction } => {
                let direction = direction_word(*direction);
                let says =
                    format!("RELATED to a known connection, {direction} direction: translated by its entry");
                step("conntrack", "", "", says)
            }
            Event::Invalid => {
                step("conntrack", "", "", "INVALID: belongs to no connection and can begin none")
            }
            Event::Untracked => step("conntrack", "", "", "not tracked: routed as it is"),
            Event::Matched(id) => self.matched(*id),
            Event::OutsideRanges(id) => {
                let chain = self.name(*id, Chain::Firewall);
                step("nat", chain, "", "source in none of the ranges: back to the caller")
            }
            Event::Marked(id, reason) => self.marked(*id, *reason),
            Event::ShortCircuit(id) => {
                let chain = self.name(*id, Chain::External);
                let to = self.name(*id, Chain::Cluster);
                step(
                    "nat",
                    chain,
                    format!("-j {to}"),
                    "policy Local, short-circuited to the cluster's endpoints",
                )
            }
            Event::FellThrough(id) => {
                step("nat", self.entered(*id), "", "nothing to choose from: back to the caller")
            }
            Event::NoFrontend => step("nat", "KUBE-SERVICES", "", "no rule translates the packet"),
            Event::Routed { destination, route } => self.routed(*destination, route),
            Event::Filtered { stage, verdict, skipped } => filtered(*stage, *verdict, *skipped, self.mark()),
            Event::Masqueraded { rule, source, source_port } => {
                self.masqueraded(*rule, *source, *source_port)
            }
            Event::AwaitsFirst => {
                step("raw", "", "", "a fragment: it waits for the first one of its datagram")
            }
            Event::Held { port, neighbour } => {
                let effect = "link address not known: the packet waits for the answer";
                step("neighbour", self.port(*port), neighbour.to_string(), effect)
            }
            Event::Encapsulated { port, source, peer } => {
                step("tunnel", self.port(*port), "", format!("IPIP {source} > {peer}: routed again"))
            }
            Event::Decapsulated { port, peer } => {
                let effect = "taken out of the tunnel: received again by it";
                step("tunnel", self.port(*port), peer.to_string(), effect)
            }
            Event::Sent { port, link_source, link_destination } => {
                step("link", self.port(*port), "", format!("sent {link_source} > {link_destination}"))
            }
            Event::Delivered { port } => step("link", self.port(*port), "", "delivered to the host"),
            Event::Dropped(reason) => {
                step("", "", "", format!("dropped: {} ({})", reason.name(), reason.description()))
            }
            Event::Answered(kind) => step("", "", "", format!("the source is told: {}", error_name(*kind))),
            Event::Chose { .. } | Event::Hairpin => return None, // in `steps`
        })
    }

    fn matched(&self, id: FrontendId) -> Step {
        let frontend = self.family.services.frontend(id);
        let to = self.entered(id);
        let comment = match frontend.kind {
            FrontendKind::ClusterIp => " cluster IP",
            FrontendKind::ExternalIp => " external IP",
            FrontendKind::LoadBalancer => " loadbalancer IP",
            FrontendKind::NodePort => "",
        };
        let chain = if frontend.kind == FrontendKind::NodePort { "KUBE-NODEPORTS" } else { "KUBE-SERVICES" };
        let rule = format!(
            "{} -m comment --comment \"{}{comment}\" -m {} --dport {} -j {to}",
            destination(frontend),
            self.id(frontend),
            frontend.key.protocol,
            frontend.key.port
        );
        step("nat", chain, rule, format!("enters {to}"))
    }

    /// The chain that a frontend's rule jumps to.
    fn entered(&self, id: FrontendId) -> String {
        let frontend = self.family.services.frontend(id);
        let chain = match (frontend.kind, frontend.sources.is_some(), self.is_internal_local(frontend)) {
            (FrontendKind::ClusterIp, _, false) => Chain::Cluster,
            (FrontendKind::ClusterIp, _, true) => Chain::Local,
            (FrontendKind::LoadBalancer, true, _) => Chain::Firewall,
            (FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort, _, _) => {
                Chain::External
            }
        };
        self.name(id, chain)
    }

    fn is_internal_local(&self, frontend: &Frontend<A>) -> bool {
        let rules = self.ports.get(frontend.service_port as usize);
        rules.is_some_and(|rules| rules.internal_policy == crate::cluster::TrafficPolicy::Local)
    }

    fn marked(&self, id: FrontendId, reason: MarkReason) -> Step {
        let frontend = self.family.services.frontend(id);
        let (chain, condition) = match reason {
            MarkReason::MasqueradeAll => (self.entered(id), destination(frontend)),
            MarkReason::NotFromPod => {
                let source = match self.family.services.policy().detector {
                    Detector::Source(pods) => format!("! -s {pods} "),
                    Detector::Interface | Detector::None => String::new(),
                };
                (self.entered(id), format!("{source}{}", destination(frontend)))
            }
            MarkReason::ExternalCluster => (self.name(id, Chain::External), String::new()),
            MarkReason::FromNode => (self.name(id, Chain::External), "-m addrtype --src-type LOCAL".into()),
        };
        let rule = format!("{condition} -j KUBE-MARK-MASQ").trim_start().to_string();
        step("nat", chain, rule, self.mark())
    }

    fn mark(&self) -> String {
        format!("mark {:#x}: to be masqueraded", self.tables.masquerade.mark)
    }

    /// The choice in the Service's chain, and the translation in the endpoint's. With affinity, each of them
    /// asks or tells the endpoint's list of clients (AF-01).
    fn chose(
        &self,
        id: FrontendId,
        backends: &[Backend<A>],
        place: usize,
        chosen_by: ChosenBy,
    ) -> (Vec<Step>, Step) {
        let frontend = self.family.services.frontend(id);
        let rules = &self.ports[frontend.service_port as usize];
        let local = match frontend.path {
            Path::Internal(_) => self.is_internal_local(frontend),
            Path::Local { local, .. } => self.family.services.backends(local) == backends,
            Path::Cluster(_) | Path::FallThrough => false,
        };
        let chain = rules.id.chain(if local { Chain::Local } else { Chain::Cluster });
        let backend = backends[place];
        let endpoint = rules.id.endpoint_chain(backend);
        let to = crate::translate::endpoint_name(backend);
        let jump = |condition: &str| {
            format!("-m comment --comment \"{} -> {to}\" {condition}-j {endpoint}", rules.id)
        };
        let (number, all) = (place + 1, backends.len());
        let seconds = frontend.affinity.map(|affinity| affinity.timeout.as_secs());
        let mut steps = Vec::new();
        match (seconds, chosen_by) {
            (Some(seconds), ChosenBy::Affinity) => {
                let recent = recent::<A>(&format!("--rcheck --seconds {seconds} --reap"), &endpoint);
                let effect =
                    format!("backend {number} of {all}: the client was there in the last {seconds} s");
                steps.push(step("nat", chain, jump(&recent), effect));
            }
            (seconds, _) => {
                if let Some(seconds) = seconds {
                    let rule = format!("-m recent --rcheck --seconds {seconds} --reap --rsource");
                    let effect =
                        format!("the client was at none of the {all} backends in the last {seconds} s");
                    steps.push(step("nat", chain.clone(), rule, effect));
                }
                let statistic = match all - place {
                    1 => String::new(),
                    left => format!("-m statistic --mode random --probability {} ", probability(left)),
                };
                let effect = format!("backend {number} of {all}, each with probability 1/{all}");
                steps.push(step("nat", chain, jump(&statistic), effect));
            }
        }
        let protocol = frontend.key.protocol;
        let (set, kept) = match seconds {
            Some(seconds) => {
                (recent::<A>("--set", &endpoint), format!("; the client stays there for {seconds} s"))
            }
            None => (String::new(), String::new()),
        };
        let rule = format!("-p {protocol} {set}-m {protocol} -j DNAT --to-destination {to}");
        (steps, step("nat", endpoint, rule, format!("DNAT to {to}{kept}")))
    }

    fn routed(&self, destination: IpAddr, route: &RouteSeen) -> Step {
        match route {
            RouteSeen::Via { port, gateway, prefix_length } => {
                let prefix = truncated(destination, *prefix_length);
                let port = self.port(*port);
                match gateway {
                    Some(gateway) => {
                        let rule = format!("{prefix} via {gateway} dev {port}");
                        step("route", "main", rule, format!("out of {port}, next hop {gateway}"))
                    }
                    None => {
                        let rule = format!("{prefix} dev {port} scope link");
                        step("route", "main", rule, format!("out of {port}, next hop {destination}"))
                    }
                }
            }
            RouteSeen::Host => step("route", "local", destination.to_string(), "to the host"),
            RouteSeen::Refused(reason) => {
                step("route", "main", destination.to_string(), reason.description())
            }
        }
    }

    fn masqueraded(&self, rule: MasqueradeCause, source: IpAddr, port: u16) -> Step {
        let random = match self.tables.masquerade.ports {
            MasqueradePorts::Random => " --random-fully",
            MasqueradePorts::Keep => "",
        };
        let effect = format!("source becomes {}", std::net::SocketAddr::new(source, port));
        match rule {
            MasqueradeCause::Mark => {
                let comment = "-m comment --comment \"kubernetes service traffic requiring SNAT\"";
                step("nat", "KUBE-POSTROUTING", format!("{comment} -j MASQUERADE{random}"), effect)
            }
            MasqueradeCause::Rule(number) => {
                let rule = self.rule(&self.family.masquerade[number]);
                step("nat", "POSTROUTING", format!("{rule}-j MASQUERADE{random}"), effect)
            }
        }
    }

    fn rule(&self, rule: &MasqueradeRule<A>) -> String {
        fn condition<T>(condition: Option<&Match<T>>, flag: &str, show: impl Fn(&T) -> String) -> String {
            match condition {
                None => String::new(),
                Some(Match::Is(value)) => format!("{flag} {} ", show(value)),
                Some(Match::Not(value)) => format!("! {flag} {} ", show(value)),
            }
        }
        let prefix = |prefix: &Prefix<A>| prefix.to_string();
        let out = |port: &Option<PortId>| port.map_or("(no port)".into(), |port| self.port(port));
        let source = condition(rule.source.as_ref(), "-s", prefix);
        let destination = condition(rule.destination.as_ref(), "-d", prefix);
        let comment = format!("-m comment --comment \"{}\" ", rule.name);
        source + &destination + &condition(rule.out.as_ref(), "-o", out) + &comment
    }

    fn id(&self, frontend: &Frontend<A>) -> String {
        self.ports[frontend.service_port as usize].id.to_string()
    }

    fn name(&self, id: FrontendId, chain: Chain) -> String {
        let frontend = self.family.services.frontend(id);
        self.ports[frontend.service_port as usize].id.chain(chain)
    }

    fn port(&self, id: PortId) -> String {
        self.tables.ports.get(id).map_or_else(|| format!("port {}", id.0), |port| port.name.clone())
    }
}

/// A match on an endpoint's list of clients, as `iptables-save` prints it.
fn recent<A: Family>(question: &str, endpoint: &str) -> String {
    let mask = A::Addr::from_bits(u128::MAX >> (128 - u32::from(A::BITS)));
    format!("-m recent {question} --name {endpoint} --mask {mask} --rsource ")
}

/// The destination part of a frontend's rules.
fn destination<A: Family>(frontend: &Frontend<A>) -> String {
    let protocol = frontend.key.protocol;
    match frontend.key.address {
        FrontendAddress::Address(address) => format!("-d {} -p {protocol}", host(address.into())),
        FrontendAddress::NodePort => format!("-p {protocol}"),
    }
}

/// An address as `iptables-save` prints it.
fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// The prefix of `length` bits that holds `address`.
fn truncated(address: IpAddr, length: u8) -> String {
    match crate::cluster::IpPrefix::new(address, length) {
        Some(prefix) if length > 0 => prefix.to_string(),
        _ => "default".into(),
    }
}

fn source_of(events: &[Event]) -> Option<IpAddr> {
    events.iter().find_map(|event| match event {
        Event::Received { source, .. } => Some(*source),
        _ => None,
    })
}

/// 1/n as the kernel holds it, with 31 bits, and `iptables-save` prints it.
fn probability(n: usize) -> String {
    let threshold = ((1u64 << 31) as f64 / n as f64).round();
    format!("{:.11}", threshold / (1u64 << 31) as f64)
}

fn filtered(
    stage: FilterStage,
    verdict: Option<FilterVerdict>,
    skipped: Option<FilterSkip>,
    mark: String,
) -> Step {
    let chain = match stage {
        FilterStage::Input => "INPUT",
        FilterStage::Forward => "FORWARD",
        FilterStage::Output => "OUTPUT",
    };
    match (verdict, skipped) {
        (None, Some(FilterSkip::Marked)) => {
            let mark = mark.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(':').to_string();
            step("filter", "KUBE-FORWARD", format!("-m mark --mark {mark}/{mark} -j ACCEPT"), "accepted")
        }
        (None, None) => step("filter", chain, "", "accepted"),
        (Some(FilterVerdict::NoEndpoints), _) => {
            let rule = "-j REJECT --reject-with icmp-port-unreachable";
            step("filter", filter_chain(stage), rule, "the Service has no endpoints: rejected")
        }
        (Some(FilterVerdict::NoLocalEndpoints), _) => {
            step("filter", filter_chain(stage), "-j DROP", "the Service has no local endpoints: dropped")
        }
        (Some(FilterVerdict::SourceRange), _) => {
            step("filter", "KUBE-PROXY-FIREWALL", "-j DROP", "the source is in none of the ranges: dropped")
        }
    }
}

fn filter_chain(stage: FilterStage) -> &'static str {
    match stage {
        FilterStage::Input => "KUBE-EXTERNAL-SERVICES",
        FilterStage::Forward | FilterStage::Output => "KUBE-SERVICES",
    }
}

/// The name of an ICMP error, as iptables' `--reject-with` and traceroutes have it.
pub(crate) fn error_name(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::PortUnreachable => "port-unreachable".into(),
        ErrorKind::HostUnreachable => "host-unreachable".into(),
        ErrorKind::NetUnreachable => "net-unreachable".into(),
        ErrorKind::AdminProhibited => "admin-prohibited".into(),
        ErrorKind::BeyondScope => "beyond-scope".into(),
        ErrorKind::PacketTooBig { mtu } => format!("fragmentation-needed, mtu {mtu}"),
        ErrorKind::TimeExceeded => "time-exceeded".into(),
    }
}

/// The drop that a step list ends in, if it does.
pub(crate) fn dropped(events: &[Event]) -> Option<Reason> {
    events.iter().rev().find_map(|event| match event {
        Event::Dropped(reason) => Some(*reason),
        _ => None,
    })
}

fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Original => "original",
        Direction::Reply => "reply",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ep_06_probabilities_are_printed_as_the_kernel_holds_them() {
        assert_eq!(probability(3), "0.33333333349");
        assert_eq!(probability(2), "0.50000000000");
    }
}
