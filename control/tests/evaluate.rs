//! The evaluator and the cases judge each other: each flow, walked under the rules that kube-proxy writes for
//! the case, over all that chance can do, becomes what the case expects.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pollux_control::iptables::evaluate::{
    Connection, Evaluator, Outcome, Packet, Place, Unwatched, Verdict, View, World,
};
use pollux_control::iptables::parse::parse;
use pollux_control::iptables::{Recent, Ruleset, Side};
use pollux_control::verify::cases::{self, Case, CaseFamily, CaseVerdict, Flow, Outcome as Expected};
use pollux_dataplane::packet::{Address, Family, V4, V6};

/// kube-proxy's mark for masquerade.
const MASQUERADE: u32 = 0x4000;

/// The node of a case. Chance follows a script; what is not in it yet is decided "no" and added.
struct Node<A: Family> {
    local: Vec<A::Addr>,
    script: Vec<bool>,
    asked: usize,
}

impl<A: Family> Node<A> {
    /// The next script, in which the last "no" is a "yes"; false when there is none.
    fn turn(&mut self) -> bool {
        self.asked = 0;
        while let Some(last) = self.script.pop() {
            if !last {
                self.script.push(true);
                return true;
            }
        }
        false
    }
}

impl<A: Family> World<A> for Node<A> {
    fn is_local(&self, address: A::Addr) -> bool {
        address.is_loopback() || self.local.contains(&address)
    }

    fn out_interface(&self, _: A::Addr) -> &str {
        "eth0"
    }

    fn masquerade(&self, _: &str, _: A::Addr) -> A::Addr {
        self.local[0]
    }

    fn random(&mut self, _: Place, threshold: u32) -> bool {
        if threshold == 1 << 31 {
            return true;
        }
        if self.asked == self.script.len() {
            self.script.push(false);
        }
        self.asked += 1;
        self.script[self.asked - 1]
    }

    fn nth(&mut self, place: Place, _: u32, _: u32) -> bool {
        unreachable!("kube-proxy writes no nth, {place:?}")
    }

    fn recent(&mut self, _: &Recent, _: A::Addr) -> bool {
        false
    }

    fn in_set(&mut self, name: &str, _: &[Side], _: &View<A>) -> bool {
        unreachable!("kube-proxy's iptables mode has no sets: {name}")
    }

    fn limit(&mut self, place: Place) -> bool {
        unreachable!("kube-proxy writes no limit, {place:?}")
    }
}

/// What becomes of a flow, over all that chance can do.
fn outcome<A: Family>(rules: &Evaluator<'_, A>, node: &mut Node<A>, flow: &Flow) -> Expected {
    let source = A::Addr::from_ip(flow.from).unwrap();
    let destination = A::Addr::from_ip(flow.to).unwrap();
    let packet = Packet {
        source,
        destination,
        protocol: flow.protocol,
        source_port: 40_000,
        destination_port: flow.port,
        tcp_flags: 0x02,
        icmp: (0, 0),
        in_interface: if node.is_local(source) { None } else { Some("eth0") },
        mark: 0,
        connection: Connection::first(destination, flow.port),
    };
    let mut ends: Vec<Outcome<A>> = Vec::new();
    loop {
        ends.push(rules.evaluate(&packet, node, &mut Unwatched));
        if !node.turn() {
            break;
        }
    }
    let mut backends: Vec<SocketAddr> = ends
        .iter()
        .filter(|end| end.dnat)
        .map(|end| SocketAddr::new(end.destination.into(), end.destination_port))
        .collect();
    backends.sort_unstable();
    backends.dedup();
    let verdict = |end: &Outcome<A>| match end.verdict {
        Verdict::Dropped => CaseVerdict::Drop,
        Verdict::Rejected(_) => CaseVerdict::Reject,
        _ if end.dnat => CaseVerdict::Dnat,
        _ => CaseVerdict::None,
    };
    // A backend may be refused by the filter: the flow's verdict is then that of the filter.
    let verdict = ends.iter().map(verdict).reduce(|first, other| match other {
        CaseVerdict::Drop | CaseVerdict::Reject => other,
        _ => first,
    });
    let masquerade = ends.iter().any(|end| end.snat.is_some() || end.mark & MASQUERADE != 0);
    Expected { verdict: verdict.unwrap(), backends, masquerade }
}

fn check<A: Family>(file: &Path, case: &Case) -> usize {
    let dump = file.with_file_name("iptables-save.txt");
    let text = std::fs::read_to_string(&dump).unwrap();
    let rules: Ruleset<A> = parse(Some(dump.into()), &text).unwrap_or_else(|problems| panic!("{problems}"));
    let evaluator = Evaluator::new(&rules);
    let local = case.local_addresses.iter().filter_map(|address| A::Addr::from_ip(*address)).collect();
    let mut node = Node::<A> { local, script: Vec::new(), asked: 0 };
    for flow in &case.flows {
        let got = outcome(&evaluator, &mut node, flow);
        assert_eq!(got, flow.expect, "case {}, flow {}: {flow:?}", case.name, flow.name);
    }
    case.flows.len()
}

#[test]
fn every_flow_of_every_case_becomes_what_is_expected_under_kube_proxys_rules() {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases");
    let flows = cases::find(&[folder]).unwrap().into_iter().map(|file| {
        let case = Case::load(&file).unwrap();
        match case.family {
            CaseFamily::IPv4 => check::<V4>(&file, &case),
            CaseFamily::IPv6 => check::<V6>(&file, &case),
        }
    });
    assert_eq!(flows.sum::<usize>(), 5048);
}
