//! Routes that change under connections (RT-05), several ways (RT-01), and connections that lose their output
//! interface (CT-13), through the forwarder.

use super::*;
use crate::forward::observe::RouteSeen;
use crate::route::source::LinkState;
use crate::route::{FibEditor, Multipath, NextHop, RouteKind};
use crate::tables::{MasqueradeRule, Match};

/// The far end of a connection that is forwarded untranslated.
const FAR: &str = "198.51.100.9:80";
const POD: &str = "10.151.51.7:40000";
const SERVER: Backend<V4> = Backend { address: std::net::Ipv4Addr::new(198, 51, 100, 9), port: 80 };
const SLAVE3: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0, 0, 3]);

/// A node whose routes are edited.
struct Edited {
    node: Node,
    editor: FibEditor<V4>,
}

fn edited(cluster: Cluster) -> Edited {
    let editor = FibEditor::new(cluster.routes.clone());
    let mut edited = Edited { node: cluster.start(), editor };
    edited.put_in_force();
    edited
}

impl Edited {
    fn put_in_force(&mut self) {
        let interfaces = Arc::clone(&self.routing().interfaces);
        self.put(interfaces);
    }

    fn put(&mut self, interfaces: Arc<crate::route::Interfaces<V4>>) {
        let routing = Arc::new(Routing { fib: self.editor.snapshot(), interfaces });
        let old = Arc::clone(self.node.forwarder.tables());
        let v4 = old.v4.as_ref().unwrap();
        let family = FamilyTables {
            services: v4.services.clone(),
            routing,
            masquerade: v4.masquerade.clone(),
            loopback_guard: v4.loopback_guard,
            peers: v4.peers.clone(),
        };
        let tables =
            Tables { ports: Arc::clone(&old.ports), v4: Some(family), v6: None, masquerade: old.masquerade };
        self.node.forwarder.set_tables(Arc::new(tables));
    }

    fn routing(&self) -> Arc<Routing<V4>> {
        Arc::clone(&self.node.forwarder.tables().v4.as_ref().unwrap().routing)
    }

    fn change(&mut self, prefix: &str, kind: Option<RouteKind<V4>>) {
        self.editor.replace(prefix.parse().unwrap(), kind.map(|kind| route(prefix, kind)));
        self.put_in_force();
    }

    /// The node's interfaces, changed.
    fn change_interface(&mut self, name: &str, change: impl Fn(&mut crate::route::Interface<V4>)) {
        let mut all: Vec<_> = self.routing().interfaces.iter().cloned().collect();
        change(all.iter_mut().find(|interface| interface.name == name).unwrap());
        self.put(Arc::new(crate::route::Interfaces::new(all)));
    }

    fn routed(&self) -> bool {
        self.node.events.iter().any(|event| matches!(event, Event::Routed { .. }))
    }
}

fn gateway(address: &str) -> RouteKind<V4> {
    RouteKind::Via(NextHop::gateway(ENS3, address.parse().unwrap()))
}

#[test]
fn rt_05_a_changed_prefix_makes_those_under_it_look_again_and_nobody_else() {
    const FLOWS: u32 = 100_000;
    let mut cluster = cluster();
    cluster.connections = FLOWS as usize;
    cluster.routes.push(route("100.64.0.0/10", gateway("172.16.0.1")));
    let mut edited = edited(cluster);
    // One connection to each of 100,000 addresses in 391 networks of 24 bits.
    let destination = |number: u32| format!("{}:80", std::net::Ipv4Addr::from_bits(0x6440_0000 + number));
    let send = |edited: &mut Edited, number: u32| {
        let sent = edited.node.from(CALI_7).ack(POD, &destination(number));
        assert_eq!(sent.len(), 1);
        let to = sent[0].bytes[..6].to_vec();
        (edited.routed(), to == SLAVE2.0)
    };
    for number in 0..FLOWS {
        assert_eq!(send(&mut edited, number), (true, false));
    }
    assert_eq!(edited.node.flows(), FLOWS as usize);
    // 256 addresses get another gateway.
    edited.change("100.64.7.0/24", Some(gateway("172.16.1.88")));
    let (mut again, mut moved) = (0, 0);
    for number in 0..FLOWS {
        let (routed, to_slave2) = send(&mut edited, number);
        assert_eq!(routed, number >> 8 == 7, "{}", destination(number));
        assert_eq!(to_slave2, routed);
        again += u32::from(routed);
        moved += u32::from(to_slave2);
    }
    assert_eq!((again, moved), (256, 256));
    // And look no further.
    assert_eq!(send(&mut edited, 7 << 8), (false, true));
}

#[test]
fn rt_05_routes_that_come_change_and_go_are_followed_at_the_next_packet() {
    let mut edited = edited(cluster());
    let sent = |edited: &mut Edited| edited.node.from(CALI_7).ack(POD, FAR);
    edited.node.from(CALI_7).ack(POD, FAR);
    let by = |link| [out(ENS3, (NODE_LINK, link), Kind::ACK, POD, FAR, 63)];
    assert_eq!(sent(&mut edited), by(GATEWAY));
    edited.change("198.51.0.0/16", Some(gateway("172.16.1.88")));
    assert_eq!(sent(&mut edited), by(SLAVE2));
    edited.change("198.51.100.9/32", Some(RouteKind::Unreachable));
    assert_eq!(icmp_error(&sent(&mut edited)).kind, (3, 1));
    edited.change("198.51.100.9/32", None);
    assert_eq!(sent(&mut edited), by(SLAVE2));
    edited.change("198.51.0.0/16", Some(gateway("172.16.0.1")));
    assert_eq!(sent(&mut edited), by(GATEWAY));
    // A change of Services or of a prefix elsewhere is none of its business.
    edited.change("203.0.113.0/24", Some(gateway("172.16.1.88")));
    sent(&mut edited);
    assert!(!edited.routed());
}

#[test]
fn rt_01_flows_are_shared_among_ways_and_each_keeps_to_its_own() {
    const FLOWS: u16 = 3000;
    let mut cluster = cluster();
    let hop = |address: &str| NextHop::gateway(ENS3, address.parse().unwrap());
    let ways = |hops: Vec<(NextHop<V4>, u16)>| RouteKind::Multipath(Arc::new(Multipath::new(hops).unwrap()));
    let three = ways(vec![(hop("172.16.0.1"), 1), (hop("172.16.1.88"), 1), (hop("172.16.1.203"), 4)]);
    cluster.routes.push(route("198.51.100.0/24", three));
    let mut edited = edited(cluster);
    let now = edited.node.now;
    let address = "172.16.1.203".parse().unwrap();
    edited.node.forwarder.neighbours_v4().learn(ENS3, address, SLAVE3, Learned::Static, now);
    let links = [GATEWAY, SLAVE2, SLAVE3];
    let way = |edited: &mut Edited, port: u16| {
        let sent = edited.node.from(CALI_7).ack(&format!("10.151.51.7:{port}"), FAR);
        links.iter().position(|link| sent[0].bytes[..6] == link.0).unwrap()
    };
    let mut taken = [0u16; 3];
    let chosen: Vec<_> = (0..FLOWS).map(|flow| way(&mut edited, 10_000 + flow)).collect();
    chosen.iter().for_each(|way| taken[*way] += 1);
    // Six standard deviations of 3,000 draws are below 165.
    for (got, expected) in taken.into_iter().zip([500, 500, 2000]) {
        assert!(got.abs_diff(expected) < 165, "{taken:?}");
    }
    // Each goes where it went, also when it looks again.
    let stays =
        |edited: &mut Edited| (0..FLOWS).all(|flow| way(edited, 10_000 + flow) == chosen[usize::from(flow)]);
    assert!(stays(&mut edited));
    edited.change("198.51.100.128/25", Some(gateway("172.16.0.1")));
    assert!(stays(&mut edited));
    // The one of weight 4 goes: the others share its flows.
    edited.change("198.51.100.0/24", Some(ways(vec![(hop("172.16.0.1"), 1), (hop("172.16.1.88"), 1)])));
    let left: Vec<_> = (0..FLOWS).map(|flow| way(&mut edited, 10_000 + flow)).collect();
    let first = left.iter().filter(|way| **way == 0).count();
    assert!(!left.contains(&2) && first.abs_diff(1500) < 165, "{first}");
}

/// A pod's connection that leaves by ens3, masqueraded: the port that it got.
fn masqueraded(edited: &mut Edited) -> String {
    let rule = MasqueradeRule {
        name: "outgoing".into(),
        source: Some(Match::Is("10.151.51.0/24".parse().unwrap())),
        destination: None,
        out: None,
    };
    let tables = edited.node.forwarder.tables().clone();
    let v4 = tables.v4.as_ref().unwrap();
    let family = FamilyTables {
        services: v4.services.clone(),
        routing: Arc::clone(&v4.routing),
        masquerade: vec![rule],
        loopback_guard: v4.loopback_guard,
        peers: v4.peers.clone(),
    };
    let tables = Tables {
        ports: Arc::clone(&tables.ports),
        v4: Some(family),
        v6: None,
        masquerade: tables.masquerade,
    };
    edited.node.forwarder.set_tables(Arc::new(tables));
    edited.node.from(CALI_7).ack(POD, FAR);
    let source = sources(edited).remove(0);
    assert!(source.starts_with("172.16.1.50:"), "{source}");
    source
}

/// The translated sources of all connections to [`FAR`].
fn sources(edited: &Edited) -> Vec<String> {
    let flows = edited.node.forwarder.flows_v4().list(0, 100, edited.node.now.into()).0;
    let to_far = flows.iter().filter(|flow| flow.original.destination == SERVER.address);
    to_far.map(|flow| format!("{}:{}", flow.reply.destination, flow.reply.destination_port)).collect()
}

#[test]
fn ct_13_routing_moves_a_masqueraded_connection_to_another_interface_and_it_gets_a_fresh_source() {
    let mut edited = edited(cluster());
    let before = masqueraded(&mut edited);
    // Another gateway on the same interface changes nothing.
    edited.change("198.51.100.0/24", Some(gateway("172.16.1.88")));
    edited.node.from(CALI_7).ack(POD, FAR);
    assert_eq!(sources(&edited), [before.as_str()]);
    let docker = NextHop::gateway(DOCKER0, "172.17.0.5".parse().unwrap());
    edited.change("198.51.100.0/24", Some(RouteKind::Via(docker)));
    // An answer to the old one is still translated: the kernel looks at the original direction only.
    let answer = edited.node.from(ENS3).ack(FAR, &before);
    assert_eq!(answer, [out(CALI_7, TO_POD_7, Kind::ACK, FAR, POD, 63)]);
    let sent = edited.node.from(CALI_7).ack(POD, FAR);
    let after = sources(&edited);
    assert!(after.len() == 1 && after[0].starts_with("172.17.0.1:"), "{after:?}");
    assert_eq!(sent, [out(DOCKER0, (DOCKER_LINK, CONTAINER), Kind::ACK, &after[0], FAR, 63)]);
}

#[test]
fn ct_13_untranslated_connections_move_and_stay() {
    let mut edited = edited(cluster());
    edited.node.from(CALI_7).ack(POD, FAR);
    let docker = NextHop::gateway(DOCKER0, "172.17.0.5".parse().unwrap());
    edited.change("198.51.100.0/24", Some(RouteKind::Via(docker)));
    let sent = edited.node.from(CALI_7).ack(POD, FAR);
    assert_eq!(sent, [out(DOCKER0, (DOCKER_LINK, CONTAINER), Kind::ACK, POD, FAR, 63)]);
    assert_eq!(edited.node.flows(), 1);
}

#[test]
fn ct_13_an_interface_that_goes_down_takes_its_masqueraded_connections_along() {
    let mut edited = edited(cluster());
    masqueraded(&mut edited);
    edited.node.from(CALI_7).ack(POD, "10.151.51.8:80");
    edited.change_interface("docker0", |docker| docker.link = LinkState::Down);
    edited.node.tick(Duration::ZERO);
    assert_eq!(edited.node.flows(), 2, "another's end");
    edited.change_interface("ens3", |ens3| ens3.link = LinkState::Down);
    assert_eq!(edited.node.flows(), 2);
    edited.node.tick(Duration::ZERO);
    assert_eq!(sources(&edited), [""; 0]);
    assert_eq!(edited.node.flows(), 1, "what does not leave by it stays");
    // It comes up again, and the next packet gets a fresh source.
    edited.change_interface("ens3", |ens3| ens3.link = LinkState::Up);
    edited.node.from(CALI_7).ack(POD, FAR);
    assert_eq!(sources(&edited).len(), 1);
}

#[test]
fn ct_13_an_address_that_goes_takes_the_connections_along_that_use_it() {
    let mut edited = edited(cluster());
    masqueraded(&mut edited);
    let change = |edited: &mut Edited, addresses: &'static [&'static str]| {
        edited.change_interface("ens3", |ens3| {
            let link = ens3.link;
            *ens3 = crate::route::fixture::interface("ens3", Some(ENS3), addresses);
            ens3.link = link;
        });
        edited.node.tick(Duration::ZERO);
    };
    change(&mut edited, &["172.16.1.50/12", "172.16.9.9/12"]);
    assert_eq!(sources(&edited).len(), 1, "one more takes nothing away");
    change(&mut edited, &["172.16.9.9/12"]);
    assert_eq!(sources(&edited), [""; 0]);
    edited.node.from(CALI_7).ack(POD, FAR);
    let after = sources(&edited);
    assert!(after.len() == 1 && after[0].starts_with("172.16.9.9:"), "{after:?}");
}

#[test]
fn ct_13_the_walk_over_the_table_takes_bounded_steps_and_finds_all() {
    const FLOWS: u16 = 5000;
    let mut cluster = cluster();
    cluster.connections = 8192;
    let mut edited = edited(cluster);
    masqueraded(&mut edited);
    for port in 0..FLOWS {
        edited.node.from(CALI_7).ack(&format!("10.151.51.7:{}", 20_000 + port), FAR);
    }
    edited.change_interface("ens3", |ens3| ens3.link = LinkState::Down);
    edited.node.tick(Duration::ZERO);
    let left = edited.node.flows();
    assert!(left > 2000, "one tick looked at everything: {left} left");
    // Up and down again behind the walk's back: what it has passed is looked at again.
    edited.change_interface("ens3", |ens3| ens3.link = LinkState::Up);
    edited.node.from(CALI_7).ack(POD, FAR);
    edited.change_interface("ens3", |ens3| ens3.link = LinkState::Down);
    for _ in 0..8 {
        edited.node.tick(Duration::ZERO);
    }
    assert_eq!(edited.node.flows(), 0);
}

#[test]
fn rt_04_a_port_without_carrier_keeps_its_routes_unless_it_ignores_them() {
    // The way by docker0 is the more specific one; its link is down, as the seed shows it.
    let through = |ignoring: &[PortId]| {
        let mut cluster = cluster();
        let mut specific = route("198.51.100.0/24", RouteKind::Via(NextHop::on_link(DOCKER0)));
        specific.link_down = true;
        cluster.routes.push(specific);
        crate::route::retain_usable(&mut cluster.routes, ignoring);
        let mut node = cluster.start();
        node.from(CALI_7).udp(POD, FAR);
        node.events.iter().rev().find_map(|event| match event {
            Event::Routed { route: RouteSeen::Via { port, .. }, .. } => Some(*port),
            _ => None,
        })
    };
    assert_eq!(through(&[]), Some(DOCKER0));
    assert_eq!(through(&[ENS3]), Some(DOCKER0));
    assert_eq!(through(&[DOCKER0]), Some(ENS3));
}
