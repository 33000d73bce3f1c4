use super::*;
use crate::route::{Interface, NextHop, Route, own_routes};

const ENS3: PortId = PortId(0);
const CALI: PortId = PortId(1);
const BARE: PortId = PortId(2);
const NODE_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0x92, 0x11, 0xca]);
const CALI_LINK: LinkAddr = LinkAddr([0xee; 6]);
const PEER: LinkAddr = LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]);

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A node with an uplink, and two pods' ports as Calico makes them: without a global address.
fn interfaces() -> Interfaces<V6> {
    let mut ens3 = Interface::new("ens3", Some(ENS3));
    ens3.add("2001:db8:1::50/64".parse().unwrap());
    ens3.add("fe80::50/64".parse().unwrap());
    let mut cali = Interface::new("cali1", Some(CALI));
    cali.add("fe80::ecee:eeff:feee:eeee/64".parse().unwrap());
    Interfaces::new(vec![ens3, cali, Interface::new("cali2", Some(BARE))])
}

fn decide_on(port: PortId, responder: Responder, message: Ndp) -> Decision {
    let mut routes = own_routes(&interfaces());
    let default = NextHop::gateway(ENS3, v6("fe80::1"));
    routes.push(Route::new("::/0".parse().unwrap(), RouteKind::Via(default)));
    routes.push(Route::new("fd00::8".parse().unwrap(), RouteKind::Via(NextHop::on_link(CALI))));
    routes.push(Route::new("fd00::/64".parse().unwrap(), RouteKind::Blackhole));
    let link = if port == ENS3 { NODE_LINK } else { CALI_LINK };
    decide(&message, PEER, &Station { port, link, responder }, &interfaces(), &Fib::build(routes))
}

fn asks(source: &str, target: &str) -> Ndp {
    let link = (source != "::").then_some(PEER);
    Ndp { link, ..Ndp::solicitation(v6(source), v6(target), PEER) }
}

/// Router and solicited; the last flag as given.
fn answer(source: &str, target: &str, to: &str, link: LinkAddr, overrides: bool) -> Option<(Ndp, LinkAddr)> {
    let answer = Ndp {
        kind: Kind::Advertisement(Flags { router: true, solicited: true, overrides }),
        source: v6(source),
        destination: v6(to),
        target: v6(target),
        link: Some(link),
    };
    Some((answer, PEER))
}

#[test]
fn nb_01_own_addresses_are_answered_on_their_own_port_only() {
    let own = decide_on(ENS3, Responder::Own, asks("2001:db8:1::9", "2001:db8:1::50"));
    let to_peer = answer("2001:db8:1::50", "2001:db8:1::50", "2001:db8:1::9", NODE_LINK, true);
    assert_eq!(own.answer, to_peer);
    assert_eq!(own.learn, Some(Lesson::Asked(v6("2001:db8:1::9"), PEER, Learned::Request)));
    let elsewhere = decide_on(CALI, Responder::Own, asks("fd00::8", "2001:db8:1::50"));
    assert_eq!(elsewhere, NOTHING);
}

#[test]
fn nb_01_a_pod_s_gateway_is_the_port_s_link_local_address_given_or_not() {
    let gateway = "fe80::ecee:eeff:feee:eeee";
    for (port, responder) in [(CALI, Responder::Own), (BARE, Responder::Own), (BARE, Responder::OwnAndProxy)]
    {
        let decision = decide_on(port, responder, asks("fd00::8", gateway));
        assert_eq!(decision.answer, answer(gateway, gateway, "fd00::8", CALI_LINK, true), "{port:?}");
    }
    // Where the kernel has no IPv6 on a port that it shares, nobody else would answer.
    let decision = decide_on(BARE, Responder::Proxy, asks("fd00::8", gateway));
    assert_eq!(decision.answer, answer(gateway, gateway, "fd00::8", CALI_LINK, false));
    assert_eq!(decide_on(BARE, Responder::Kernel, asks("fd00::8", gateway)), NOTHING);
}

#[test]
fn nb_01_shared_port_leaves_the_answer_to_the_kernel() {
    for responder in [Responder::Kernel, Responder::Proxy] {
        let decision = decide_on(ENS3, responder, asks("2001:db8:1::9", "2001:db8:1::50"));
        assert_eq!(decision.answer, None);
        assert_eq!(decision.learn, Some(Lesson::Asked(v6("2001:db8:1::9"), PEER, Learned::Overheard)));
    }
}

#[test]
fn nb_01_proxy_answers_for_what_leads_elsewhere_without_overriding() {
    let gateway = "fe80::ecee:eeff:feee:eeee";
    for responder in [Responder::Proxy, Responder::OwnAndProxy] {
        let asked = |target| decide_on(CALI, responder, asks("fd00::8", target));
        // An address behind the uplink, and the node's own there.
        for target in ["2001:db8:7::7", "2001:db8:1::50"] {
            let decision = asked(target);
            assert_eq!(decision.answer, answer(gateway, target, "fd00::8", CALI_LINK, false), "{target}");
            assert_eq!(decision.learn, Some(Lesson::Asked(v6("fd00::8"), PEER, Learned::Request)));
        }
        // The port's own side, a blackhole, and somebody's link-local address.
        for target in ["fd00::8", "fd00::9", "fe80::9"] {
            assert_eq!(asked(target), NOTHING, "{target}");
        }
    }
    assert_eq!(decide_on(CALI, Responder::Own, asks("fd00::8", "2001:db8:7::7")), NOTHING);
}

#[test]
fn nb_01_a_check_for_duplicates_is_answered_to_everyone_for_own_addresses_only() {
    let decision = decide_on(ENS3, Responder::OwnAndProxy, asks("::", "2001:db8:1::50"));
    let defence = Ndp {
        kind: Kind::Advertisement(Flags { router: true, solicited: false, overrides: true }),
        source: v6("2001:db8:1::50"),
        destination: v6("ff02::1"),
        target: v6("2001:db8:1::50"),
        link: Some(NODE_LINK),
    };
    assert_eq!(decision.answer, Some((defence, LinkAddr([0x33, 0x33, 0, 0, 0, 1]))));
    assert_eq!(decision.learn, None);
    assert_eq!(decide_on(CALI, Responder::OwnAndProxy, asks("::", "2001:db8:7::7")).answer, None);
    assert_eq!(decide_on(ENS3, Responder::Kernel, asks("::", "2001:db8:1::50")), NOTHING);
}

#[test]
fn nb_01_who_asks_without_a_link_address_is_answered_where_the_frame_came_from_and_not_learnt() {
    let message = Ndp { link: None, ..asks("2001:db8:1::9", "2001:db8:1::50") };
    let decision = decide_on(ENS3, Responder::Own, message);
    assert_eq!(decision.answer.map(|(_, to)| to), Some(PEER));
    assert_eq!(decision.learn, None);
}

#[test]
fn nb_01_an_advertisement_teaches_its_target_and_impossible_ones_teach_nothing() {
    let flags = Flags { router: false, solicited: true, overrides: true };
    let said = Ndp {
        kind: Kind::Advertisement(flags),
        source: v6("fe80::9"),
        destination: v6("fe80::50"),
        target: v6("2001:db8:1::9"),
        link: Some(PEER),
    };
    let advertised = Advertised { link: Some(PEER), solicited: true, overrides: true };
    let decision = decide_on(ENS3, Responder::Kernel, said);
    assert_eq!(decision.learn, Some(Lesson::Advertised(v6("2001:db8:1::9"), advertised)));
    assert_eq!(decision.answer, None);
    let nothing =
        |message| assert_eq!(decide_on(ENS3, Responder::OwnAndProxy, message), NOTHING, "{message:?}");
    nothing(Ndp { target: v6("2001:db8:1::50"), ..said });
    nothing(Ndp { target: v6("::1"), ..said });
    nothing(Ndp { link: Some(LinkAddr::BROADCAST), ..said });
    nothing(Ndp { link: Some(LinkAddr::default()), ..said });
    nothing(asks("2001:db8:1::50", "2001:db8:1::9"));
    nothing(asks("2001:db8:1::9", "::"));
}
