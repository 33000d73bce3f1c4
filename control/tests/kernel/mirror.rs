//! The mirror against the kernel's own tables.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pollux_control::kernel::ROUTE_PROTOCOL;
use pollux_control::kernel::mirror::Mirror;
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::{find_program, require_tun};
use pollux_control::kernel::state::{
    Changes, Foreign, Gateway, KernelNextHop, KernelRouteKind, KernelState, NeighbourKey, NeighbourState,
    Scope, Table,
};
use pollux_dataplane::packet::family::{Family, LinkAddr, V4, V6};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(rt_05_the_seeds_table_is_read_as_the_kernel_holds_it),
        trial!(rt_02_routes_of_every_kind_are_read_ipv4),
        trial!(rt_02_routes_of_every_kind_are_read_ipv6),
        trial!(nat_04_links_and_addresses_are_read_in_the_kernels_order),
        trial!(rt_05_a_route_is_followed_and_only_its_prefix_is_named),
        trial!(rt_05_a_future_that_waits_is_woken_by_a_change),
        trial!(rt_05_routes_that_fall_silently_with_a_link_or_an_address_are_noticed),
        trial!(rt_05_routes_by_next_hop_objects_are_followed),
        trial!(rt_05_other_tables_and_policy_rules_are_named_in_a_warning),
        trial!(rt_05_lost_notifications_are_made_good_by_a_dump),
        trial!(pt_02_routes_of_polluxs_own_protocol_are_skipped),
        trial!(nb_01_neighbours_are_read_and_followed),
    ]
}

/// Waits until the mirror's state satisfies `condition`, or fails with what it was about.
fn until(mirror: &Mirror, what: &str, condition: impl Fn(&KernelState) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !mirror.read(&condition) {
        assert!(Instant::now() < deadline, "{what}: {:#?}", mirror.read(Clone::clone));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until something has changed and nothing changes any more.
fn settled_changes(mirror: &Mirror) -> Changes {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let changes = mirror.take_changes();
        if !changes.is_empty() {
            return changes;
        }
        assert!(Instant::now() < deadline, "nothing changed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kinds<A: Family>(state: &KernelState, prefix: &str) -> Vec<KernelRouteKind<A>>
where
    KernelState: Tables<A>,
{
    state.tables().routes.of(prefix.parse().unwrap()).iter().map(|route| route.kind.clone()).collect()
}

/// The state's tables of one family.
trait Tables<A: Family> {
    fn tables(&self) -> &pollux_control::kernel::state::FamilyState<A>;
}

impl Tables<V4> for KernelState {
    fn tables(&self) -> &pollux_control::kernel::state::FamilyState<V4> {
        &self.v4
    }
}

impl Tables<V6> for KernelState {
    fn tables(&self) -> &pollux_control::kernel::state::FamilyState<V6> {
        &self.v6
    }
}

fn hop<A: Family>(link: u32, gateway: Gateway<A>) -> KernelNextHop<A> {
    KernelNextHop { link, gateway, onlink: false, weight: 1 }
}

fn via<A: Family>(link: u32, gateway: &str) -> KernelNextHop<A>
where
    A::Addr: std::str::FromStr<Err: std::fmt::Debug>,
{
    hop(link, Gateway::Address(gateway.parse().unwrap()))
}

fn index(state: &KernelState, name: &str) -> u32 {
    state.link(name).unwrap_or_else(|| panic!("no link {name}")).index
}

fn rt_05_the_seeds_table_is_read_as_the_kernel_holds_it() {
    let netns = Netns::add("seed").unwrap();
    // tunl0 is a TUN device where the kernel lets one be made, docker0 a link without carrier.
    let tunnel =
        if require_tun().is_ok() { "tuntap add tunl0 mode tun" } else { "link add tunl0 type bridge" };
    netns
        .ip(&format!(
            "link add ens3 address fa:16:3e:92:11:ca type veth peer name ens3p
             link add cali566211caf94 address ee:ee:ee:ee:ee:ee type veth peer name p7
             link add caliee93b0bdd66 address ee:ee:ee:ee:ee:ee type veth peer name p8
             {tunnel}
             link add docker0 type veth peer name unplugged
             link set ens3p up
             link set p7 up
             link set p8 up
             link set ens3 up
             link set cali566211caf94 mtu 1480 up
             link set caliee93b0bdd66 mtu 1480 up
             link set tunl0 mtu 1480 up
             link set docker0 up
             address add 172.16.1.50/12 brd + dev ens3
             address add 10.151.51.0/32 dev tunl0
             address add 172.17.0.1/16 brd + dev docker0
             route add default via 172.16.0.1 dev ens3 src 172.16.1.50 metric 100
             route add 10.151.32.0/24 via 172.16.2.77 dev tunl0 onlink proto bird
             route add 10.151.49.0/24 via 172.16.1.88 dev ens3 proto bird
             route add blackhole 10.151.51.0/24 proto bird
             route add 10.151.51.7 dev cali566211caf94 scope link
             route add 10.151.51.8 dev caliee93b0bdd66 scope link
             route add 169.254.169.254 via 172.16.0.1 dev ens3 proto dhcp"
        ))
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    // The kernel takes its time to find that nothing is plugged in.
    until(&mirror, "docker0 has no carrier", |state| {
        state.link("docker0").is_some_and(|link| link.up && !link.carrier)
    });
    let state = Mirror::dump(&netns).unwrap();
    assert_eq!(mirror.read(Clone::clone), state);
    let [ens3, cali8, tunl0, docker0] =
        ["ens3", "caliee93b0bdd66", "tunl0", "docker0"].map(|name| index(&state, name));

    let link = state.link("caliee93b0bdd66").unwrap();
    assert_eq!(link.link_address, Some(LinkAddr([0xee; 6])));
    assert_eq!((link.mtu, link.up, link.carrier), (1480, true, true));
    assert_eq!(link.kind.as_deref(), Some("veth"));
    if require_tun().is_ok() {
        assert_eq!(state.link("tunl0").unwrap().link_address, None);
    }

    let default = &state.v4.routes.of("0.0.0.0/0".parse().unwrap())[0];
    assert_eq!(default.kind, KernelRouteKind::Unicast(via(ens3, "172.16.0.1")));
    assert_eq!((default.metric, default.preferred_source), (100, Some("172.16.1.50".parse().unwrap())));
    let tunnelled = KernelNextHop { onlink: true, ..via(tunl0, "172.16.2.77") };
    let bird = &state.v4.routes.of("10.151.32.0/24".parse().unwrap())[0];
    assert_eq!(bird.kind, KernelRouteKind::Unicast(tunnelled));
    assert_eq!(bird.protocol, 12);
    assert_eq!(kinds::<V4>(&state, "10.151.51.0/24"), [KernelRouteKind::Blackhole]);
    assert_eq!(
        kinds::<V4>(&state, "10.151.51.8/32"),
        [KernelRouteKind::Unicast(hop(cali8, Gateway::OnLink))]
    );
    // The connected subnet and the node's own addresses are the kernel's to add.
    assert_eq!(kinds::<V4>(&state, "172.16.0.0/12"), [KernelRouteKind::Unicast(hop(ens3, Gateway::OnLink))]);
    let own = &state.v4.routes.of("172.16.1.50/32".parse().unwrap())[0];
    assert_eq!((own.table, &own.kind), (Table::Local, &KernelRouteKind::Local(ens3)));
    assert_eq!(kinds::<V4>(&state, "10.151.51.0/32"), [KernelRouteKind::Local(tunl0)]);
    assert_eq!(kinds::<V4>(&state, "172.31.255.255/32"), [KernelRouteKind::Broadcast(ens3)]);
    assert_eq!(
        kinds::<V4>(&state, "172.17.0.0/16"),
        [KernelRouteKind::Unicast(hop(docker0, Gateway::OnLink))]
    );
    assert!(state.warnings.is_empty(), "{:?}", state.warnings);
}

fn rt_02_routes_of_every_kind_are_read_ipv4() {
    let netns = Netns::add("kinds4").unwrap();
    netns
        .ip("link add e0 type veth peer name e1
             link set e0 up
             link set e1 up
             address add 10.0.0.1/24 dev e0
             address add 10.0.1.1/24 dev e1
             route add 10.1.0.0/16 nexthop via 10.0.0.2 weight 3 nexthop via 10.0.1.2
             route add unreachable 10.2.0.0/16
             route add prohibit 10.3.0.0/16
             route add throw 10.4.0.0/16
             route add 10.5.0.0/16 via inet6 fe80::5 dev e0
             route add 10.6.0.0/16 via 10.0.0.2 mtu 1400
             route add multicast 239.0.0.0/8 dev e0 table main
             route add 10.7.0.0/16 via 10.0.0.2 metric 20
             route add 10.7.0.0/16 dev e1 metric 10
             route add 10.8.0.0/16 dev e1 table default
             route add local 10.9.0.0/16 dev lo
             route add 10.10.0.0/16 via 10.0.0.2 tos 0x10")
        .unwrap();
    let state = Mirror::dump(&netns).unwrap();
    let [lo, e0, e1] = ["lo", "e0", "e1"].map(|name| index(&state, name));
    let KernelRouteKind::Multipath(hops) = &kinds::<V4>(&state, "10.1.0.0/16")[0] else {
        panic!("{:?}", kinds::<V4>(&state, "10.1.0.0/16"));
    };
    let heavy = KernelNextHop { weight: 3, ..via(e0, "10.0.0.2") };
    assert_eq!(hops.as_slice(), [heavy, via(e1, "10.0.1.2")]);
    assert_eq!(kinds::<V4>(&state, "10.2.0.0/16"), [KernelRouteKind::Unreachable]);
    assert_eq!(kinds::<V4>(&state, "10.3.0.0/16"), [KernelRouteKind::Prohibit]);
    assert_eq!(kinds::<V4>(&state, "10.4.0.0/16"), [KernelRouteKind::Throw]);
    let router = Gateway::Other("fe80::5".parse::<IpAddr>().unwrap());
    assert_eq!(kinds::<V4>(&state, "10.5.0.0/16"), [KernelRouteKind::Unicast(hop(e0, router))]);
    assert_eq!(state.v4.routes.of("10.6.0.0/16".parse().unwrap())[0].mtu, Some(1400));
    assert_eq!(kinds::<V4>(&state, "239.0.0.0/8"), [KernelRouteKind::Multicast(e0)]);
    assert_eq!(
        kinds::<V4>(&state, "10.7.0.0/16"),
        [KernelRouteKind::Unicast(hop(e1, Gateway::OnLink)), KernelRouteKind::Unicast(via(e0, "10.0.0.2")),]
    );
    assert_eq!(state.v4.routes.of("10.8.0.0/16".parse().unwrap())[0].table, Table::Default);
    assert_eq!(kinds::<V4>(&state, "10.9.0.0/16"), [KernelRouteKind::Local(lo)]);
    assert_eq!(kinds::<V4>(&state, "10.10.0.0/16"), []);
}

fn rt_02_routes_of_every_kind_are_read_ipv6() {
    let netns = Netns::add("kinds6").unwrap();
    netns
        .ip("link add e1 type veth peer name e0
             link set e0 up
             link set e1 up
             address add fd00::1/64 dev e0 nodad
             address add fd01::1/64 dev e1 nodad
             route add default via fd00::2 dev e0 metric 100
             route add fd10::/16 nexthop via fd00::2 weight 2 nexthop via fd01::2
             route add unreachable fd12::/16
             route add prohibit fd13::/16
             route add blackhole fd14::/16
             route add fd15::/16 dev e1
             route add fd16::/16 via fd00::2
             route append fd16::/16 via fd01::2")
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    // The kernel gives a new IPv6 address its local route a moment later.
    until(&mirror, "both addresses have their routes", |state| {
        kinds::<V6>(state, "fd00::1/128").len() == 1 && kinds::<V6>(state, "fd01::1/128").len() == 1
    });
    let state = mirror.read(Clone::clone);
    let [e0, e1] = ["e0", "e1"].map(|name| index(&state, name));
    assert_eq!(kinds::<V6>(&state, "::/0"), [KernelRouteKind::Unicast(via(e0, "fd00::2"))]);
    let heavy = KernelNextHop { weight: 2, ..via(e0, "fd00::2") };
    assert_eq!(
        kinds::<V6>(&state, "fd10::/16"),
        [KernelRouteKind::Multipath(vec![heavy, via(e1, "fd01::2")])]
    );
    assert_eq!(kinds::<V6>(&state, "fd12::/16"), [KernelRouteKind::Unreachable]);
    assert_eq!(kinds::<V6>(&state, "fd13::/16"), [KernelRouteKind::Prohibit]);
    assert_eq!(kinds::<V6>(&state, "fd14::/16"), [KernelRouteKind::Blackhole]);
    assert_eq!(kinds::<V6>(&state, "fd15::/16"), [KernelRouteKind::Unicast(hop(e1, Gateway::OnLink))]);
    // The kernel merges routes by gateways of the same metric.
    assert_eq!(
        kinds::<V6>(&state, "fd16::/16"),
        [KernelRouteKind::Multipath(vec![via(e0, "fd00::2"), via(e1, "fd01::2")])]
    );
    assert_eq!(kinds::<V6>(&state, "fd00::1/128"), [KernelRouteKind::Local(e0)]);
    let multicast = kinds::<V6>(&state, "ff00::/8");
    assert!(multicast.contains(&KernelRouteKind::Multicast(e0)), "{multicast:?}");
}

fn nat_04_links_and_addresses_are_read_in_the_kernels_order() {
    let netns = Netns::add("addresses").unwrap();
    netns
        .ip("link add b0 type bridge
             link add a0 type veth peer name a1
             link set a1 master b0
             address add 192.0.2.1/24 dev a0
             address add 10.0.0.2/24 dev b0
             address add 10.0.0.1/24 dev b0
             address add 10.1.0.1 peer 10.1.0.9/32 dev b0
             address add 169.254.0.1/16 scope link dev b0
             address add fd00::1/64 dev b0 nodad
             link set b0 up")
        .unwrap();
    let state = Mirror::dump(&netns).unwrap();
    let names: Vec<_> = state.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo", "b0", "a1", "a0"]);
    assert_eq!(state.link_at(1).unwrap().name, "lo");
    assert!(state.link_at(1).unwrap().loopback);
    assert_eq!(state.link("a1").unwrap().master, Some(index(&state, "b0")));
    let b0 = index(&state, "b0");
    let of_b0: Vec<_> = state
        .v4
        .addresses
        .iter()
        .filter(|address| address.link == b0)
        .map(|address| {
            (address.address.to_string(), address.subnet.to_string(), address.scope, address.secondary)
        })
        .collect();
    // Primary addresses of narrower scope first, equal ones in the order they were given, secondary ones last.
    let expected = [
        ("169.254.0.1", "169.254.0.0/16", Scope::LINK, false),
        ("10.0.0.2", "10.0.0.0/24", Scope::UNIVERSE, false),
        ("10.1.0.1", "10.1.0.9/32", Scope::UNIVERSE, false),
        ("10.0.0.1", "10.0.0.0/24", Scope::UNIVERSE, true),
    ]
    .map(|(address, subnet, scope, secondary)| (address.to_owned(), subnet.to_owned(), scope, secondary));
    assert_eq!(of_b0, expected);
    let six = state.v6.addresses.iter().find(|address| address.address.to_string() == "fd00::1").unwrap();
    assert_eq!((six.link, six.deprecated), (b0, false));
}

fn rt_05_a_route_is_followed_and_only_its_prefix_is_named() {
    let netns = Netns::add("follow").unwrap();
    netns
        .ip("link add e0 type bridge
             link set e0 up
             address add 10.0.0.1/24 dev e0
             route add 10.5.0.0/16 via 10.0.0.2")
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    assert!(mirror.take_changes().v4.routes.is_empty());
    netns.ip("route replace 10.5.0.0/16 via 10.0.0.3").unwrap();
    let changes = settled_changes(&mirror);
    let named: Vec<_> = changes.v4.routes.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["10.5.0.0/16"]);
    let e0 = mirror.read(|state| index(state, "e0"));
    assert_eq!(
        mirror.read(|state| kinds::<V4>(state, "10.5.0.0/16")),
        [KernelRouteKind::Unicast(via(e0, "10.0.0.3"))]
    );
    netns.ip("route del 10.5.0.0/16").unwrap();
    until(&mirror, "the route is gone", |state| kinds::<V4>(state, "10.5.0.0/16").is_empty());
    netns.ip("link set e0 mtu 1400\naddress add 10.9.0.1/24 dev e0").unwrap();
    until(&mirror, "link and address are followed", |state| {
        state.link("e0").is_some_and(|link| link.mtu == 1400)
            && state.v4.addresses.iter().any(|address| address.address == Ipv4Addr::new(10, 9, 0, 1))
            && kinds::<V4>(state, "10.9.0.0/24").len() == 1
    });
    let changes = settled_changes(&mirror);
    assert!(changes.links && changes.v4.addresses, "{changes:?}");
    netns.ip("link del e0").unwrap();
    until(&mirror, "everything of a deleted link is gone", |state| {
        state.links.len() == 1
            && kinds::<V4>(state, "10.0.0.0/24").is_empty()
            && kinds::<V4>(state, "10.0.0.1/32").is_empty()
    });
}

fn rt_05_a_future_that_waits_is_woken_by_a_change() {
    let netns = Netns::add("wake").unwrap();
    netns.ip("link add e0 type bridge\nlink set e0 up").unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let quiet = tokio::time::timeout(Duration::from_millis(50), async {
            // The bridge's own start may still be echoing.
            while mirror.changed().await.v4.routes.is_empty() {}
        });
        assert!(quiet.await.is_err(), "woken by nothing");
        let add = std::thread::scope(|scope| {
            scope.spawn(|| netns.ip("route add 10.5.0.0/16 dev e0").unwrap());
            Instant::now()
        });
        let prefix = "10.5.0.0/16".parse().unwrap();
        let woken = tokio::time::timeout(Duration::from_secs(5), async {
            while !mirror.changed().await.v4.routes.contains(&prefix) {}
        });
        assert!(woken.await.is_ok(), "not woken in {:?}", add.elapsed());
    });
}

fn rt_05_routes_that_fall_silently_with_a_link_or_an_address_are_noticed() {
    let netns = Netns::add("silent").unwrap();
    netns
        .ip("link add e0 type bridge
             link add e1 type bridge
             link set e0 up
             link set e1 up
             address add 10.0.0.1/24 dev e0
             address add 10.0.0.9/32 dev e0
             address add 10.0.1.1/24 dev e1
             route add 10.5.0.0/16 via 10.0.0.2 src 10.0.0.9
             route add 10.6.0.0/16 via 10.0.1.2
             route add 10.7.0.0/16 nexthop via 10.0.0.2 nexthop via 10.0.1.2")
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    assert_eq!(mirror.read(|state| kinds::<V4>(state, "10.5.0.0/16").len()), 1);
    netns.ip("address del 10.0.0.9/32 dev e0").unwrap();
    until(&mirror, "the route falls with its preferred source", |state| {
        kinds::<V4>(state, "10.5.0.0/16").is_empty()
    });
    let prefix = "10.5.0.0/16".parse().unwrap();
    assert!(settled_changes(&mirror).v4.routes.contains(&prefix));
    netns.ip("link set e1 down").unwrap();
    until(&mirror, "the route falls with its link", |state| {
        kinds::<V4>(state, "10.6.0.0/16").is_empty() && !state.link("e1").unwrap().up
    });
    // One of two next hops is left; the link says that the other is dead.
    assert_eq!(mirror.read(|state| kinds::<V4>(state, "10.7.0.0/16")[0].next_hops().len()), 2);
}

fn rt_05_routes_by_next_hop_objects_are_followed() {
    let netns = Netns::add("objects").unwrap();
    netns
        .ip("link add e0 type bridge
             link set e0 up
             address add 10.0.0.1/24 dev e0
             nexthop add id 7 via 10.0.0.2 dev e0
             route add 10.5.0.0/16 nhid 7")
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    let e0 = mirror.read(|state| index(state, "e0"));
    let is_via = |gateway: &'static str| {
        move |state: &KernelState| {
            kinds::<V4>(state, "10.5.0.0/16") == [KernelRouteKind::Unicast(via(e0, gateway))]
        }
    };
    assert!(mirror.read(is_via("10.0.0.2")));
    netns.ip("nexthop replace id 7 via 10.0.0.3 dev e0").unwrap();
    until(&mirror, "the object's new gateway", is_via("10.0.0.3"));
    netns.ip("nexthop del id 7").unwrap();
    until(&mirror, "the route falls with its object", |state| kinds::<V4>(state, "10.5.0.0/16").is_empty());
    netns.set_sysctl("net/ipv4/nexthop_compat_mode", "0").unwrap();
    netns.ip("nexthop add id 8 via 10.0.0.2 dev e0\nroute add 10.6.0.0/16 nhid 8").unwrap();
    until(&mirror, "an object that is not spelt out is the kernel's", |state| {
        kinds::<V4>(state, "10.6.0.0/16") == [KernelRouteKind::Foreign(Foreign::NextHopObject)]
    });
}

fn rt_05_other_tables_and_policy_rules_are_named_in_a_warning() {
    let netns = Netns::add("rules").unwrap();
    netns.ip("link add e0 type bridge\nlink set e0 up").unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    assert!(mirror.read(|state| state.warnings.is_empty()));
    netns
        .ip("rule add from 10.9.0.0/16 lookup 77 priority 100
             route add 10.5.0.0/16 dev e0 table 77")
        .unwrap();
    ip6(&netns, &["rule", "add", "fwmark", "1", "prohibit", "priority", "200"]);
    until(&mirror, "both rules are named", |state| state.warnings.len() == 2);
    let warnings: Vec<_> = mirror.read(|state| state.warnings.iter().cloned().collect());
    assert!(
        warnings[0].starts_with("the ipv4 policy rule with priority 100 leads to table 77"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].starts_with("the ipv6 policy rule with priority 200 is not mirrored"),
        "{warnings:?}"
    );
    assert!(mirror.read(|state| kinds::<V4>(state, "10.5.0.0/16").is_empty()));
    netns.ip("rule del priority 100").unwrap();
    ip6(&netns, &["rule", "del", "priority", "200"]);
    until(&mirror, "the warnings end with the rules", |state| state.warnings.is_empty());
}

fn rt_05_lost_notifications_are_made_good_by_a_dump() {
    let netns = Netns::add("overflow").unwrap();
    netns.ip("link add e0 type bridge\nlink set e0 up").unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    const ROUTES: u32 = 30_000;
    let prefix = |i: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + i * 4);
    let batch: Vec<String> = (0..ROUTES).map(|i| format!("route add {}/30 dev e0", prefix(i))).collect();
    // While the state is looked at, nobody reads the socket, and it overflows.
    mirror.read(|_| netns.ip(&batch.join("\n")).unwrap());
    until(&mirror, "all routes are there", |state| state.v4.routes.prefixes() >= ROUTES as usize);
    assert_eq!(
        mirror.take_changes().v4.routes.len(),
        ROUTES as usize,
        "every new prefix is named once, and nothing else"
    );
    expect_equals_a_dump(&mirror, &netns, || format!("adding {ROUTES} routes"));
}

/// Waits until the mirror is what a dump gives, or shows the lines in which they differ.
pub(crate) fn expect_equals_a_dump(mirror: &Mirror, netns: &Netns, history: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let fresh = lines(&Mirror::dump(netns).unwrap());
        let mirrored = mirror.read(lines);
        if mirrored == fresh {
            return;
        }
        if Instant::now() > deadline {
            let only = |these: &[String], those: &[String]| {
                let lines: Vec<_> = these.iter().filter(|line| !those.contains(line)).cloned().collect();
                lines.join("\n")
            };
            panic!(
                "after\n{}\nonly the mirror has\n{}\nonly the kernel has\n{}",
                history(),
                only(&mirrored, &fresh),
                only(&fresh, &mirrored)
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The state, an entry a line; a route's line has its place among those of its prefix.
fn lines(state: &KernelState) -> Vec<String> {
    fn family<A: Family>(state: &KernelState, lines: &mut Vec<String>)
    where
        KernelState: Tables<A>,
    {
        let tables = state.tables();
        lines.extend(tables.addresses.iter().map(|address| format!("{address:?}")));
        for route in tables.routes.iter() {
            let place = tables.routes.of(route.prefix).iter().position(|other| other == route);
            lines.push(format!("{place:?} {route:?}"));
        }
        lines.extend(tables.neighbours.iter().map(|neighbour| format!("{neighbour:?}")));
    }
    let mut lines: Vec<String> = state.links.iter().map(|link| format!("{link:?}")).collect();
    family::<V4>(state, &mut lines);
    family::<V6>(state, &mut lines);
    lines
}

/// Runs one `ip -6` command: what the family of cannot be told from its arguments.
fn ip6(netns: &Netns, arguments: &[&str]) {
    let mut command = Command::new(find_program("ip").unwrap());
    netns.output(command.arg("-6").args(arguments)).unwrap();
}

fn pt_02_routes_of_polluxs_own_protocol_are_skipped() {
    let netns = Netns::add("own").unwrap();
    netns
        .ip(&format!(
            "link add e0 type bridge
             link set e0 up
             route add 10.150.0.0/16 dev e0 proto {ROUTE_PROTOCOL}"
        ))
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    netns
        .ip(&format!(
            "route add 10.150.18.86 dev e0 proto {ROUTE_PROTOCOL}
             route add fd96::/112 dev e0 proto {ROUTE_PROTOCOL}
             route add 10.5.0.0/16 dev e0"
        ))
        .unwrap();
    until(&mirror, "the other route", |state| kinds::<V4>(state, "10.5.0.0/16").len() == 1);
    mirror.read(|state| {
        assert_eq!(kinds::<V4>(state, "10.150.0.0/16"), []);
        assert_eq!(kinds::<V4>(state, "10.150.18.86/32"), []);
        assert_eq!(kinds::<V6>(state, "fd96::/112"), []);
    });
    netns.ip("route del 10.150.0.0/16\nroute del 10.5.0.0/16").unwrap();
    until(&mirror, "the other route is gone", |state| kinds::<V4>(state, "10.5.0.0/16").is_empty());
}

fn nb_01_neighbours_are_read_and_followed() {
    let netns = Netns::add("neighbours").unwrap();
    netns
        .ip("link add e0 type bridge
             link set e0 up
             address add 10.0.0.1/24 dev e0
             neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 nud permanent dev e0
             neigh add 10.0.0.3 lladdr 02:00:00:00:00:03 nud reachable dev e0
             neigh add proxy 10.0.0.77 dev e0")
        .unwrap();
    let mirror = Mirror::start(&netns).unwrap();
    let e0 = mirror.read(|state| index(state, "e0"));
    let key = |last: u8| NeighbourKey::<V4> { link: e0, address: Ipv4Addr::new(10, 0, 0, last) };
    mirror.read(|state| {
        let permanent = state.v4.neighbours[&key(2)];
        assert_eq!(permanent.state, NeighbourState::Permanent);
        assert_eq!(permanent.link_address, Some(LinkAddr([2, 0, 0, 0, 0, 2])));
        assert_eq!(state.v4.neighbours[&key(3)].state, NeighbourState::Reachable);
        assert!(!state.v4.neighbours.contains_key(&key(77)));
    });
    mirror.take_changes();
    netns
        .ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:22 nud permanent dev e0
             neigh del 10.0.0.3 dev e0
             neigh add fd00::2 lladdr 02:00:00:00:00:62 nud stale dev e0")
        .unwrap();
    until(&mirror, "the changes", |state| {
        let moved = state.v4.neighbours.get(&key(2)).and_then(|known| known.link_address);
        moved == Some(LinkAddr([2, 0, 0, 0, 0, 0x22]))
            && !state.v4.neighbours.contains_key(&key(3))
            && state.v6.neighbours.values().any(|known| known.state == NeighbourState::Stale)
    });
    let changes = mirror.take_changes();
    assert!(changes.v4.neighbours.contains(&key(2)), "{changes:?}");
    assert!(changes.v4.neighbours.contains(&key(3)), "{changes:?}");
    assert_eq!(changes.v6.neighbours.len(), 1, "{changes:?}");
}
