//! The host's side of the host port: set up, followed, restored, also after a crash. A veth pair stands for
//! the TAP: its far end is where Pollux would be.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use pollux_control::kernel::host_port::{
    HostPort, HostPortConfig, Ipv6, Leftovers, RouteUpdate, restore_leftovers,
};
use pollux_control::kernel::mirror::Mirror;
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::find_program;
use pollux_control::kernel::{Error, ROUTE_PROTOCOL};
use pollux_dataplane::packet::family::{Family, Prefix, V4, V6};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(pt_02_set_up_changes_the_interface_and_restore_puts_everything_back),
        trial!(pt_02_dropping_restores_as_well),
        trial!(pt_02_service_routes_follow_the_prefixes),
        trial!(pt_02_a_route_of_somebody_else_is_not_touched),
        trial!(pt_02_ipv6_service_routes_need_ipv6),
        trial!(pt_02_the_host_sends_to_services_and_takes_any_source_back),
        trial!(pt_02_what_a_killed_instance_left_behind_is_put_back),
        trial!(pt_02_the_next_start_puts_back_before_it_sets_up),
        trial!(pt_02_a_setting_that_somebody_else_changed_since_is_left_alone),
        trial!(pt_02_a_state_file_of_an_earlier_boot_or_namespace_undoes_nothing),
        trial!(pt_02_a_state_file_that_cannot_be_read_is_an_error_and_stays),
        trial!(pt_02_two_instances_of_one_name_exclude_each_other),
        trial!(pt_02_a_missing_interface_changes_nothing),
    ]
}

/// A node with the two ends of the host port, and a state directory of its own.
struct Node {
    netns: Netns,
    state: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let netns = Netns::add(name).unwrap();
        netns
            .ip("link add ens3 type bridge
                 link set ens3 up
                 address add 172.16.1.50/12 dev ens3
                 address add fd00::50/64 dev ens3 nodad
                 link add pollux0 address 02:00:00:00:00:01 type veth peer name far
                 link set far address 02:00:00:00:00:01 up")
            .unwrap();
        Node { netns, state: PathBuf::from("/run/netns").join(format!("../state-{name}")) }
    }

    fn config(&self) -> HostPortConfig {
        HostPortConfig {
            interface: "pollux0".to_owned(),
            mtu: 1480,
            source_v4: Some(Ipv4Addr::new(172, 16, 1, 50)),
            source_v6: Some("fd00::50".parse().unwrap()),
            ipv6: Ipv6::On,
            state_directory: self.state.clone(),
            name: "node".to_owned(),
        }
    }

    fn set_up(&self) -> Result<HostPort, Error> {
        self.netns.run(|| HostPort::set_up(self.config())).unwrap()
    }

    fn restore_leftovers(&self) -> Result<Leftovers, Error> {
        self.netns.run(|| restore_leftovers(&self.state, "node")).unwrap()
    }

    fn state_file(&self) -> PathBuf {
        self.state.join("node.json")
    }

    fn sysctl(&self, path: &str) -> String {
        self.netns.sysctl(path).unwrap()
    }

    fn ip(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(find_program("ip").unwrap());
        self.netns.output(command.args(arguments)).unwrap()
    }

    fn own_routes(&self) -> String {
        let protocol = ROUTE_PROTOCOL.to_string();
        let four = self.ip(&["route", "show", "proto", &protocol]);
        let six = self.ip(&["-6", "route", "show", "proto", &protocol]);
        four + &six
    }

    /// Everything that the set-up may change: flags, MTU, parameters, routes.
    fn fingerprint(&self) -> Vec<String> {
        let link = Mirror::dump(&self.netns).unwrap().link("pollux0").cloned();
        let mut all = vec![
            link.map(|link| format!("{} {} {}", link.mtu, link.up, link.no_arp)).unwrap_or_default(),
            self.own_routes(),
            self.ip(&["-brief", "-4", "address", "show", "dev", "pollux0"]),
        ];
        all.extend(
            [
                "net/ipv4/conf/all/rp_filter",
                "net/ipv4/conf/all/accept_local",
                "net/ipv4/conf/pollux0/rp_filter",
                "net/ipv4/conf/pollux0/accept_local",
                "net/ipv6/conf/pollux0/disable_ipv6",
                "net/ipv6/conf/pollux0/addr_gen_mode",
                "net/ipv6/conf/pollux0/accept_ra",
                "net/ipv6/conf/all/disable_ipv6",
            ]
            .map(|path| format!("{path} {}", self.sysctl(path))),
        );
        all
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The sandbox's /run takes it along anyway; a test that looks at /run should not see it.
        let _ = fs::remove_dir_all(&self.state);
    }
}

fn prefixes<A: Family>(texts: &[&str]) -> BTreeSet<Prefix<A>> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn four(texts: &[&str]) -> BTreeSet<Prefix<V4>> {
    prefixes(texts)
}

fn six(texts: &[&str]) -> BTreeSet<Prefix<V6>> {
    prefixes(texts)
}

/// Set in the environment of a copy of this program that shall hold a host port: its state directory.
pub(crate) const HOLDER: &str = "POLLUX_TEST_HOST_PORT_HOLDER";

/// Sets the host port up, says so, and waits to be killed.
pub(crate) fn hold() -> ! {
    let directory = PathBuf::from(std::env::var_os(HOLDER).unwrap());
    let mut port = HostPort::set_up(HostPortConfig {
        interface: "pollux0".to_owned(),
        mtu: 1480,
        source_v4: Some(Ipv4Addr::new(172, 16, 1, 50)),
        source_v6: Some("fd00::50".parse().unwrap()),
        ipv6: Ipv6::On,
        state_directory: directory,
        name: "node".to_owned(),
    })
    .unwrap();
    port.set_service_prefixes(&four(&["10.150.0.0/16"]), &six(&["fd96::/112"])).unwrap();
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn start_holder(node: &Node) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(HOLDER, &node.state).stdout(Stdio::piped());
    let mut child = node.netns.spawn(&mut command).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn pt_02_set_up_changes_the_interface_and_restore_puts_everything_back() {
    let node = Node::new("hp-setup");
    let before = node.fingerprint();
    let mut port = node.set_up().unwrap();
    port.set_service_prefixes(&four(&["10.150.0.0/16"]), &six(&["fd96::/112"])).unwrap();
    let link = Mirror::dump(&node.netns).unwrap().link("pollux0").cloned().unwrap();
    assert_eq!((link.mtu, link.up, link.no_arp), (1480, true, true));
    assert_eq!(link.index, port.link());
    assert_eq!(node.sysctl("net/ipv4/conf/pollux0/accept_local"), "1");
    assert_eq!(node.sysctl("net/ipv4/conf/pollux0/rp_filter"), "0");
    let addresses = node.ip(&["-6", "address", "show", "dev", "pollux0"]);
    assert_eq!(addresses, "", "no address of its own");
    assert!(node.state_file().exists());
    assert_ne!(node.fingerprint(), before);
    port.restore().unwrap();
    assert_eq!(node.fingerprint(), before);
    assert!(!node.state_file().exists());
    assert_eq!(node.restore_leftovers().unwrap(), Leftovers::None);
}

fn pt_02_dropping_restores_as_well() {
    let node = Node::new("hp-drop");
    let before = node.fingerprint();
    let mut port = node.set_up().unwrap();
    port.set_service_prefixes(&four(&["10.150.0.0/16"]), &six(&[])).unwrap();
    // In a thread of another network namespace: what is undone is the node's all the same.
    drop(port);
    assert_eq!(node.fingerprint(), before);
    assert!(!node.state_file().exists());
}

fn pt_02_service_routes_follow_the_prefixes() {
    let node = Node::new("hp-routes");
    let mut port = node.set_up().unwrap();
    let first = port
        .set_service_prefixes(
            &four(&["10.150.18.86/32", "10.150.0.10/32", "10.150.0.0/24"]),
            &six(&["fd96::10/128"]),
        )
        .unwrap();
    assert_eq!(first, RouteUpdate { added: 4, removed: 0 });
    let lookup = node.ip(&["route", "get", "10.150.18.86"]);
    assert!(lookup.contains("dev pollux0 src 172.16.1.50"), "{lookup}");
    let lookup = node.ip(&["-6", "route", "get", "fd96::10"]);
    assert!(lookup.contains("dev pollux0"), "{lookup}");
    assert!(lookup.contains("src fd00::50"), "{lookup}");
    let second = port
        .set_service_prefixes(&four(&["10.150.18.86/32", "10.150.0.11/32"]), &six(&["fd96::10/128"]))
        .unwrap();
    assert_eq!(second, RouteUpdate { added: 1, removed: 2 });
    let routes = node.own_routes();
    let destinations: BTreeSet<_> = routes.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(destinations, BTreeSet::from(["10.150.18.86", "10.150.0.11", "fd96::10"]));
    // Taken away behind our back: as good as removed by us.
    node.netns.ip("route del 10.150.0.11").unwrap();
    let third = port.set_service_prefixes(&four(&[]), &six(&[])).unwrap();
    assert_eq!(third, RouteUpdate { added: 0, removed: 3 });
    assert_eq!(node.own_routes(), "");
}

fn pt_02_a_route_of_somebody_else_is_not_touched() {
    let node = Node::new("hp-foreign");
    node.netns
        .ip("link set pollux0 up
             route add 10.150.0.0/16 dev ens3
             route add 10.151.0.0/16 dev pollux0")
        .unwrap();
    let mut port = node.set_up().unwrap();
    let refused = port.set_service_prefixes(&four(&["10.150.0.0/16"]), &six(&[])).unwrap_err();
    assert!(refused.to_string().contains("10.150.0.0/16"), "{refused}");
    port.restore().unwrap();
    let lookup = node.ip(&["route", "get", "10.150.18.86"]);
    assert!(lookup.contains("dev ens3"), "{lookup}");
    assert!(node.ip(&["route", "get", "10.151.0.1"]).contains("dev pollux0"));
}

fn pt_02_ipv6_service_routes_need_ipv6() {
    let node = Node::new("hp-no6");
    let mut port = node
        .netns
        .run(|| HostPort::set_up(HostPortConfig { ipv6: Ipv6::Off, ..node.config() }))
        .unwrap()
        .unwrap();
    assert_eq!(node.sysctl("net/ipv6/conf/pollux0/disable_ipv6"), "1");
    let refused = port.set_service_prefixes(&four(&["10.150.0.0/16"]), &six(&["fd96::/112"])).unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    assert_eq!(node.own_routes(), "", "nothing was half done");
}

fn pt_02_the_host_sends_to_services_and_takes_any_source_back() {
    let node = Node::new("hp-traffic");
    let far = Netns::add("hp-traffic-far").unwrap();
    // The strictest of machines: everything that comes in by another interface than it would go out by is
    // refused. A second address of the node stands for what the packets are delivered to.
    node.netns.set_sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
    node.netns
        .ip("link set far netns hp-traffic-far
             address add 172.16.1.51/32 dev ens3
             route add default via 172.16.0.1 dev ens3
             link set pollux0 mtu 1480 arp off up")
        .unwrap();
    far.ip("link set far arp off up
            address add 10.150.18.86/32 dev far
            address add 192.0.2.7/32 dev far
            address add 172.16.1.50/32 dev far
            route add 172.16.1.51/32 dev far")
        .unwrap();
    let bind = |netns: &Netns, address: &str| {
        let socket = netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let host = bind(&node.netns, "172.16.1.51:5000");
    let client = bind(&far, "192.0.2.7:5000");
    let own = bind(&far, "172.16.1.50:5000");
    let mut buffer = [0; 16];
    client.send_to(b"client", "172.16.1.51:5000").unwrap();
    own.send_to(b"own", "172.16.1.51:5000").unwrap();
    assert!(
        host.recv_from(&mut buffer).is_err(),
        "without the set-up nothing gets through, or this test shows nothing"
    );
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();

    let before = node.fingerprint();
    let mut port = node.set_up().unwrap();
    port.set_service_prefixes(&four(&["10.150.0.0/16"]), &six(&[])).unwrap();
    client.send_to(b"client", "172.16.1.51:5000").unwrap();
    let (length, source) = host.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], source.to_string()), (&b"client"[..], "192.0.2.7:5000".to_owned()));
    own.send_to(b"own", "172.16.1.51:5000").unwrap();
    let (length, source) = host.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], source.to_string()), (&b"own"[..], "172.16.1.50:5000".to_owned()));
    assert_eq!(
        node.sysctl("net/ipv4/conf/all/rp_filter"),
        "1",
        "the check of the other interfaces stays as strict as it was"
    );

    // What is its own address too, the far end's kernel would not take as a source.
    far.ip("address del 172.16.1.50/32 dev far").unwrap();
    let service = bind(&far, "10.150.18.86:80");
    service.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let sender = bind(&node.netns, "0.0.0.0:5001");
    sender.send_to(b"request", "10.150.18.86:80").unwrap();
    let (length, source) = service.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], source.to_string()), (&b"request"[..], "172.16.1.50:5001".to_owned()));
    port.restore().unwrap();
    assert_eq!(node.fingerprint(), before);
}

fn pt_02_what_a_killed_instance_left_behind_is_put_back() {
    let node = Node::new("hp-kill");
    let before = node.fingerprint();
    let mut holder = start_holder(&node);
    assert!(matches!(node.restore_leftovers(), Err(Error::Busy { .. })));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_ne!(node.fingerprint(), before, "nothing was left behind, so nothing is tested");
    assert_ne!(node.own_routes(), "");
    assert_eq!(node.restore_leftovers().unwrap(), Leftovers::Restored);
    assert_eq!(node.fingerprint(), before);
    assert_eq!(node.restore_leftovers().unwrap(), Leftovers::None);
}

fn pt_02_the_next_start_puts_back_before_it_sets_up() {
    let node = Node::new("hp-again");
    let before = node.fingerprint();
    let mut holder = start_holder(&node);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let port = node.set_up().unwrap();
    assert_eq!(node.own_routes(), "", "the old routes are gone");
    // What is put back is what there was before the first of the two.
    port.restore().unwrap();
    assert_eq!(node.fingerprint(), before);
}

fn pt_02_a_setting_that_somebody_else_changed_since_is_left_alone() {
    let node = Node::new("hp-since");
    let mut port = node.set_up().unwrap();
    port.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    // A second change goes back to the first value.
    port.set_sysctl("net/ipv4/conf/all/send_redirects", "0").unwrap();
    port.set_sysctl("net/ipv4/conf/pollux0/accept_local", "0").unwrap();
    port.set_sysctl("net/ipv4/conf/pollux0/accept_local", "1").unwrap();
    node.netns.set_sysctl("net/ipv4/conf/all/send_redirects", "1").unwrap();
    node.netns.set_sysctl("net/ipv4/conf/pollux0/rp_filter", "1").unwrap();
    port.restore().unwrap();
    assert_eq!(node.sysctl("net/ipv4/ip_forward"), "0");
    assert_eq!(node.sysctl("net/ipv4/conf/pollux0/accept_local"), "0");
    assert_eq!(node.sysctl("net/ipv4/conf/all/send_redirects"), "1");
    assert_eq!(node.sysctl("net/ipv4/conf/pollux0/rp_filter"), "1");
}

fn pt_02_a_state_file_of_an_earlier_boot_or_namespace_undoes_nothing() {
    let node = Node::new("hp-boot");
    let port = node.set_up().unwrap();
    let text = fs::read_to_string(node.state_file()).unwrap();
    port.restore().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let earlier = text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
    assert_ne!(earlier, text);
    node.netns.set_sysctl("net/ipv4/conf/pollux0/accept_local", "1").unwrap();
    fs::write(node.state_file(), earlier).unwrap();
    assert_eq!(node.restore_leftovers().unwrap(), Leftovers::Outlived);
    assert_eq!(node.sysctl("net/ipv4/conf/pollux0/accept_local"), "1");
    assert!(!node.state_file().exists());
    // The same file, found from another namespace.
    fs::write(node.state_file(), &text).unwrap();
    let elsewhere = Netns::add("hp-elsewhere").unwrap();
    let found = elsewhere.run(|| restore_leftovers(&node.state, "node")).unwrap();
    assert_eq!(found.unwrap(), Leftovers::Outlived);
    assert_eq!(node.sysctl("net/ipv4/conf/pollux0/accept_local"), "1");
}

fn pt_02_a_state_file_that_cannot_be_read_is_an_error_and_stays() {
    let node = Node::new("hp-bad");
    let before = node.fingerprint();
    fs::create_dir_all(&node.state).unwrap();
    fs::write(node.state_file(), "{ \"boot\": 7").unwrap();
    let refused = node.set_up().unwrap_err();
    assert!(refused.to_string().contains("node.json is not a state file"), "{refused}");
    assert!(node.state_file().exists());
    assert_eq!(node.fingerprint(), before);
}

fn pt_02_two_instances_of_one_name_exclude_each_other() {
    let node = Node::new("hp-two");
    let port = node.set_up().unwrap();
    let refused = node.set_up().unwrap_err();
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    assert!(refused.to_string().contains("node.lock is locked by a running instance"), "{refused}");
    assert!(node.state_file().exists(), "the first one's state is untouched");
    port.restore().unwrap();
    node.set_up().unwrap().restore().unwrap();
    let name = |name: &str| node.netns.run(|| restore_leftovers(&node.state, name)).unwrap();
    assert!(matches!(name("a/b"), Err(Error::Invalid(_))));
    assert!(matches!(name(""), Err(Error::Invalid(_))));
}

fn pt_02_a_missing_interface_changes_nothing() {
    let node = Node::new("hp-missing");
    let before = node.fingerprint();
    let refused = node
        .netns
        .run(|| HostPort::set_up(HostPortConfig { interface: "pollux7".to_owned(), ..node.config() }))
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.to_string(), "there is no interface pollux7");
    assert_eq!(node.fingerprint(), before);
    assert!(!Path::new(&node.state_file()).exists());
}
