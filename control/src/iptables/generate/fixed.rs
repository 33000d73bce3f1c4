//! What stands in the tables whatever the Services are: the chains, the jumps to them, and the rules that
//! depend on the configuration and the node alone.

use pollux_dataplane::packet::{Address, Family, Prefix};

use super::write::{Writer, about, all};
use super::{Setting, loopback, not};
use crate::config::proxy::NodePortSelection;
use crate::iptables::{
    AddressTypes, ChainId, Hook, MarkTest, RandomPorts, Ruleset, Side, States, TableName, Target, Test,
};
use crate::translate::Input;

/// Counted when a packet of no connection is dropped.
const INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";

/// Exists in every table, so that kube-proxy notices when somebody removes its rules.
const CANARY: &str = "KUBE-PROXY-CANARY";

/// The tables with their fixed chains.
pub(super) struct Tables<A: Family> {
    pub(super) filter: Writer<A>,
    pub(super) nat: Writer<A>,
    mangle: Writer<A>,
    pub(super) filter_chains: FilterChains,
    pub(super) nat_chains: NatChains,
}

/// The chains of the filter that service ports write to.
#[derive(Clone, Copy)]
pub(super) struct FilterChains {
    pub(super) external: ChainId,
    pub(super) node_ports: ChainId,
    pub(super) proxy_firewall: ChainId,
    pub(super) services: ChainId,
    forward: ChainId,
}

/// The chains of nat that service ports write to.
#[derive(Clone, Copy)]
pub(super) struct NatChains {
    pub(super) mark: ChainId,
    pub(super) node_ports: ChainId,
    pub(super) services: ChainId,
}

impl<A: Family> Tables<A> {
    /// The tables without a Service.
    pub(super) fn new(setting: &Setting<'_, A>) -> Self {
        use Hook::{Forward, Input, Output, Postrouting, Prerouting};
        let mut filter = Writer::new(TableName::Filter, &[Input, Forward, Output]);
        let filter_chains = filter_chains(&mut filter, setting);
        let mut nat = Writer::new(TableName::Nat, &[Prerouting, Input, Output, Postrouting]);
        let nat_chains = nat_chains(&mut nat, setting);
        let mut mangle = Writer::new(TableName::Mangle, &[Prerouting, Input, Forward, Output, Postrouting]);
        mangle.chain(CANARY);
        Tables { filter, nat, mangle, filter_chains, nat_chains }
    }

    /// The finished rules: last comes the jump to the node ports, behind all Services (FE-06).
    pub(super) fn finish(mut self, setting: &Setting<'_, A>) -> Ruleset<A> {
        let draft = || about("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
        let local = Test::AddressType { side: Side::Destination, kinds: AddressTypes::LOCAL, limit: None };
        let NatChains { services, node_ports, .. } = self.nat_chains;
        let jump = Target::Jump(node_ports);
        let with_loopback = setting.localhost_node_ports();
        match node_port_prefixes::<A>(setting.input).filter(|list| list.iter().all(|cidr| cidr.len() > 0)) {
            None => {
                let draft = match with_loopback {
                    true => draft(),
                    // Never ::1; and not 127.0.0.0/8 either unless it is asked for.
                    false => draft().matching(not(Test::Destination(loopback_prefix::<A>()))),
                };
                self.nat.rule(services, draft.test(local), jump);
            }
            Some(prefixes) => {
                for address in setting.input.local_addresses::<A>() {
                    let answers = prefixes.iter().any(|prefix| prefix.contains(address))
                        && (with_loopback || !address.is_loopback());
                    if answers {
                        let draft = draft().test(Test::Destination(Prefix::host(address)));
                        self.nat.rule(services, draft, jump.clone());
                    }
                }
            }
        }
        Ruleset { tables: vec![self.mangle.finish(), self.filter.finish(), self.nat.finish()] }
    }
}

fn filter_chains<A: Family>(filter: &mut Writer<A>, setting: &Setting<'_, A>) -> FilterChains {
    let firewall = filter.chain("KUBE-FIREWALL");
    filter.chain(CANARY);
    let chains = FilterChains {
        external: filter.chain("KUBE-EXTERNAL-SERVICES"),
        node_ports: filter.chain("KUBE-NODEPORTS"),
        proxy_firewall: filter.chain("KUBE-PROXY-FIREWALL"),
        services: filter.chain("KUBE-SERVICES"),
        forward: filter.chain("KUBE-FORWARD"),
    };
    let new = || all().test(Test::State(States::NEW));
    let balancer_firewall = "kubernetes load balancer firewall";
    let portals = "kubernetes service portals";
    let external_portals = "kubernetes externally-visible service portals";

    let input = filter.base(Hook::Input);
    filter.rule(input, all(), Target::Jump(firewall));
    filter.rule(input, new().comment(balancer_firewall), Target::Jump(chains.proxy_firewall));
    filter.rule(input, about("kubernetes health check service ports"), Target::Jump(chains.node_ports));
    filter.rule(input, new().comment(external_portals), Target::Jump(chains.external));

    let forward = filter.base(Hook::Forward);
    filter.rule(forward, new().comment(balancer_firewall), Target::Jump(chains.proxy_firewall));
    filter.rule(forward, about("kubernetes forwarding rules"), Target::Jump(chains.forward));
    filter.rule(forward, new().comment(portals), Target::Jump(chains.services));
    filter.rule(forward, new().comment(external_portals), Target::Jump(chains.external));

    let output = filter.base(Hook::Output);
    filter.rule(output, all(), Target::Jump(firewall));
    filter.rule(output, new().comment(balancer_firewall), Target::Jump(chains.proxy_firewall));
    filter.rule(output, new().comment(portals), Target::Jump(chains.services));

    if setting.localhost_node_ports() {
        // NO-07
        let known = States::RELATED.with(States::ESTABLISHED).with(States::DNAT);
        let guard = about("block incoming localnet connections")
            .matching(not(Test::Source(loopback_prefix())))
            .test(Test::Destination(loopback_prefix()))
            .matching(not(Test::State(known)));
        filter.rule(firewall, guard, Target::Drop);
    }
    if setting.input.proxy.conntrack.tcp_be_liberal != Some(true) {
        // CT-08
        let invalid =
            all().test(Test::State(States::INVALID)).test(Test::Nfacct(INVALID_DROPPED.to_string()));
        filter.rule(chains.forward, invalid, Target::Drop);
    }
    let mark = mark(setting);
    let marked = about("kubernetes forwarding rules").test(Test::Mark(MarkTest { value: mark, mask: mark }));
    filter.rule(chains.forward, marked, Target::Accept);
    let known = States::RELATED.with(States::ESTABLISHED);
    let known = about("kubernetes forwarding conntrack rule").test(Test::State(known));
    filter.rule(chains.forward, known, Target::Accept);
    chains
}

fn nat_chains<A: Family>(nat: &mut Writer<A>, setting: &Setting<'_, A>) -> NatChains {
    let postrouting = nat.chain("KUBE-POSTROUTING");
    nat.chain(CANARY);
    let chains = NatChains {
        mark: nat.chain("KUBE-MARK-MASQ"),
        node_ports: nat.chain("KUBE-NODEPORTS"),
        services: nat.chain("KUBE-SERVICES"),
    };
    for hook in [Hook::Prerouting, Hook::Output] {
        let base = nat.base(hook);
        nat.rule(base, about("kubernetes service portals"), Target::Jump(chains.services));
    }
    let base = nat.base(Hook::Postrouting);
    nat.rule(base, about("kubernetes postrouting rules"), Target::Jump(postrouting));
    let mark = mark(setting);
    nat.rule(chains.mark, all(), Target::Mark { value: mark, mask: mark });
    // WK-09: what is not marked is left alone; a mark is cleared, the other bits stay.
    let unmarked = all().matching(not(Test::Mark(MarkTest { value: mark, mask: mark })));
    nat.rule(postrouting, unmarked, Target::Return);
    nat.rule(postrouting, all(), Target::Mark { value: mark, mask: 0 });
    let masquerade = Target::Masquerade { ports: None, random: RandomPorts::Fully };
    nat.rule(postrouting, about("kubernetes service traffic requiring SNAT"), masquerade);
    chains
}

/// MQ-08
fn mark<A: Family>(setting: &Setting<'_, A>) -> u32 {
    1 << setting.input.proxy.masquerade_bit
}

/// 127.0.0.0/8, or ::1.
pub(super) fn loopback_prefix<A: Family>() -> Prefix<A> {
    match A::VERSION {
        4 => Prefix::new(loopback::<A>(), 8),
        _ => Prefix::host(loopback::<A>()),
    }
}

/// The prefixes of `nodePortAddresses` in the family; none when there are none, which means every address
/// (FE-07).
pub(super) fn node_port_prefixes<A: Family>(input: &Input<'_>) -> Option<Vec<Prefix<A>>> {
    let prefixes: Vec<Prefix<A>> = match &input.proxy.node_port_addresses {
        NodePortSelection::Prefixes(prefixes) => {
            prefixes.iter().filter_map(|prefix| prefix.of::<A>()).collect()
        }
        NodePortSelection::Primary => input.node_ip::<A>().map(Prefix::host).into_iter().collect(),
    };
    Some(prefixes).filter(|prefixes| !prefixes.is_empty())
}
