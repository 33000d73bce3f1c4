//! The guard: PT-05.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use pollux_dataplane::packet::{Packet, PortId};
use pollux_dataplane::port::af_packet::{AfPacketPort, Options};
use pollux_dataplane::port::guard::{Families, Guard, Means};

use crate::sandbox::{Namespace, Rights, ip};
use crate::topology::{Inbox, PATIENCE, SILENCE, eventually, ping, pod, pool, send_frame, tagged, udp_frame};
use crate::trial;

/// Set for a child that only holds a guard: the interface.
pub(crate) const CHILD: &str = "POLLUX_TEST_GUARD";

pub(crate) fn trials(rights: Rights) -> Vec<Trial> {
    let root_only = |trial: Trial| trial.with_ignored_flag(rights != Rights::Root);
    vec![
        root_only(trial!(pt_05_a_tcx_link_guards)),
        trial!(pt_05_an_nftables_table_guards),
        root_only(trial!(pt_05_a_tcx_link_passes_what_is_not_unicast_ip)),
        trial!(pt_05_an_nftables_table_passes_what_is_not_unicast_ip),
        root_only(trial!(pt_05_a_tcx_link_passes_vlan_tagged_frames)),
        trial!(pt_05_an_nftables_table_passes_vlan_tagged_frames),
        root_only(trial!(pt_05_a_tcx_link_guards_ipv6)),
        trial!(pt_05_an_nftables_table_guards_ipv6),
        root_only(trial!(pt_05_a_tcx_link_passes_neighbour_discovery_and_link_local_packets)),
        trial!(pt_05_an_nftables_table_passes_neighbour_discovery_and_link_local_packets),
        trial!(pt_05_guards_of_several_interfaces_live_side_by_side),
        trial!(pt_05_the_guard_ends_with_a_killed_process),
        trial!(pt_05_a_guard_of_no_interface_is_refused),
        Trial::test("pt_05_the_best_means_is_taken", move || {
            the_best_means_is_taken(rights);
            Ok(())
        }),
    ]
}

/// Moves the thread into a host's new namespace, with 10.7.0.1 on `vp` and a pod 10.7.0.2 behind it.
fn host_and_pod() -> (Namespace, Namespace) {
    let host = Namespace::new();
    host.enter();
    let pod = pod("vp", "10.7.0.2/24");
    ip("addr add 10.7.0.1/24 dev vp");
    (host, pod)
}

fn answered(pod: &Namespace) -> bool {
    eventually(|| pod.run(|| ping("10.7.0.1", SILENCE)))
}

fn silent(pod: &Namespace) -> bool {
    !pod.run(|| ping("10.7.0.1", SILENCE))
}

fn guards(means: Means) {
    let (_host, pod) = host_and_pod();
    let mut port = Inbox::new(AfPacketPort::open("vp", PortId(0), pool(), Options::default()).unwrap());
    assert!(answered(&pod));
    let is_echo =
        |packet: &Packet| packet.head().get(12..14) == Some(&[8, 0]) && packet.head().get(34) == Some(&8);
    port.next(is_echo);
    let guard = Guard::attach_by(means, &["vp"], Families::V4).unwrap();
    assert_eq!(guard.means(), means);
    assert!(silent(&pod));
    // The kernel does not see it, the port does.
    port.next(is_echo);
    // ARP is the kernel's still.
    pod.run(|| ip("neigh flush all"));
    assert!(silent(&pod));
    let neighbours = pod.run(|| ip("neigh show 10.7.0.1"));
    assert!(neighbours.contains("lladdr"), "{neighbours}");
    port.next(is_echo);
    drop(guard);
    assert!(answered(&pod));
}

fn pt_05_a_tcx_link_guards() {
    guards(Means::TcxLink);
}

fn pt_05_an_nftables_table_guards() {
    guards(Means::NftablesTable);
}

fn passes_what_is_not_unicast_ip(means: Means) {
    let (_host, pod) = host_and_pod();
    let _guard = Guard::attach_by(means, &["vp"], Families::Both).unwrap();
    assert!(silent(&pod));
    let host = UdpSocket::bind("0.0.0.0:6000").unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    host.join_multicast_v4(&"239.1.2.3".parse().unwrap(), &"10.7.0.1".parse().unwrap()).unwrap();
    pod.run(|| {
        ip("route add 239.1.2.3/32 dev eth0");
        let socket = UdpSocket::bind("10.7.0.2:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"unicast", "10.7.0.1:6000").unwrap();
        socket.send_to(b"broadcast", "10.7.0.255:6000").unwrap();
        socket.send_to(b"multicast", "239.1.2.3:6000").unwrap();
    });
    let mut buffer = [0; 20];
    let mut next = || {
        let len = host.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!([next(), next()], ["broadcast", "multicast"]);
}

fn pt_05_a_tcx_link_passes_what_is_not_unicast_ip() {
    passes_what_is_not_unicast_ip(Means::TcxLink);
}

fn pt_05_an_nftables_table_passes_what_is_not_unicast_ip() {
    passes_what_is_not_unicast_ip(Means::NftablesTable);
}

/// What the kernel makes of `vp`'s frames shows at a bridge above it, which takes any frame.
fn passes_vlan_tagged_frames(means: Means) {
    let host = Namespace::new();
    host.enter();
    let pod = pod("vp", "10.7.0.2/24");
    ip("link add br0 type bridge");
    ip("link set vp address 02:00:00:00:00:0b master br0");
    ip("link set br0 up");
    let pool = pool();
    let options = Options::default();
    let mut bridge = Inbox::new(AfPacketPort::open("br0", PortId(0), pool, options).unwrap());
    let mut inside = pod.run(|| AfPacketPort::open("eth0", PortId(1), pool, options).unwrap());
    let plain = udp_frame(b"plain");
    let ours = |packet: &Packet| packet.head().starts_with(&plain[..12]);
    send_frame(&mut inside, pool, &plain);
    assert_eq!(bridge.next(ours).to_vec(), plain);
    let _guard = Guard::attach_by(means, &["vp"], Families::Both).unwrap();
    let tagged = tagged(&udp_frame(b"tagged"));
    send_frame(&mut inside, pool, &plain);
    send_frame(&mut inside, pool, &tagged);
    assert_eq!(bridge.next(ours).to_vec(), tagged);
}

fn pt_05_a_tcx_link_passes_vlan_tagged_frames() {
    passes_vlan_tagged_frames(Means::TcxLink);
}

fn pt_05_an_nftables_table_passes_vlan_tagged_frames() {
    passes_vlan_tagged_frames(Means::NftablesTable);
}

fn guards_ipv6(means: Means) {
    let (_host, pod) = host_and_pod();
    let enable = |interface: &str, address: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        std::fs::write(path, "0").unwrap();
        ip(&format!("addr add {address} dev {interface} nodad"));
    };
    enable("vp", "fd00::1/64");
    pod.run(|| enable("eth0", "fd00::2/64"));
    // With fixed neighbours: their discovery is not what is tested.
    let link = ip("link show vp");
    let address = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    pod.run(|| ip(&format!("neigh add fd00::1 lladdr {address} dev eth0")));
    let host = UdpSocket::bind("[fd00::1]:6000").unwrap();
    let socket = pod.run(|| UdpSocket::bind("[fd00::2]:0").unwrap());
    let mut number = 0u32;
    let mut delivered = |time| {
        number += 1;
        socket.send_to(&number.to_be_bytes(), "[fd00::1]:6000").unwrap();
        host.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 4];
        while host.recv(&mut buffer).is_ok() {
            if u32::from_be_bytes(buffer) == number {
                return true;
            }
        }
        false
    };
    // A new address takes the kernel a moment.
    assert!(eventually(|| delivered(SILENCE)));
    let v4 = Guard::attach_by(means, &["vp"], Families::V4).unwrap();
    assert!(delivered(PATIENCE));
    let v6 = Guard::attach_by(means, &["vp"], Families::V6).unwrap();
    assert!(!delivered(SILENCE));
    drop((v4, v6));
    assert!(eventually(|| delivered(SILENCE)));
    let _both = Guard::attach_by(means, &["vp"], Families::Both).unwrap();
    assert!(!delivered(SILENCE));
    assert!(silent(&pod));
}

fn pt_05_a_tcx_link_guards_ipv6() {
    guards_ipv6(Means::TcxLink);
}

fn pt_05_an_nftables_table_guards_ipv6() {
    guards_ipv6(Means::NftablesTable);
}

/// The answers of neighbour discovery are unicast, and so are its questions about what is known.
fn passes_discovery(means: Means) {
    let (_host, pod) = host_and_pod();
    let enable = |interface: &str, addresses: [&str; 2]| {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        std::fs::write(path, "0").unwrap();
        for address in addresses {
            ip(&format!("addr add {address} dev {interface} nodad"));
        }
    };
    enable("vp", ["fd00::1/64", "fe80::1/64"]);
    pod.run(|| enable("eth0", ["fd00::2/64", "fe80::2/64"]));
    let host = UdpSocket::bind("[::]:6000").unwrap();
    host.set_read_timeout(Some(SILENCE)).unwrap();
    let inside = pod.run(|| UdpSocket::bind("[::]:6000").unwrap());
    inside.set_read_timeout(Some(SILENCE)).unwrap();
    let _guard = Guard::attach_by(means, &["vp"], Families::Both).unwrap();
    let send = |socket: &UdpSocket, to: &str, interface: u32| {
        let address = std::net::SocketAddrV6::new(to.parse().unwrap(), 6000, 0, interface);
        let _ = socket.send_to(b"hello", address);
    };
    let received = |socket: &UdpSocket| socket.recv(&mut [0; 9]).is_ok();
    // The host's kernel is given the pod's answer, and the pod the host's.
    assert!(eventually(|| {
        send(&host, "fd00::2", 0);
        received(&inside)
    }));
    send(&inside, "fd00::1", 0);
    assert!(!received(&host), "guarded");
    let known = |of: &str| ip(&format!("neigh show {of}"));
    assert!(pod.run(|| known("fd00::1")).contains("lladdr"));
    // A question to the host itself, as when the pod confirms what it knows.
    assert!(eventually(|| {
        pod.run(|| ip("neigh change fd00::1 dev eth0 nud probe"));
        std::thread::sleep(SILENCE / 4);
        pod.run(|| known("fd00::1")).contains("REACHABLE")
    }));
    let index = pod.run(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    assert!(eventually(|| {
        send(&inside, "fe80::1", index);
        received(&host)
    }));
}

fn pt_05_a_tcx_link_passes_neighbour_discovery_and_link_local_packets() {
    passes_discovery(Means::TcxLink);
}

fn pt_05_an_nftables_table_passes_neighbour_discovery_and_link_local_packets() {
    passes_discovery(Means::NftablesTable);
}

fn pt_05_guards_of_several_interfaces_live_side_by_side() {
    let (_host, first) = host_and_pod();
    let second = pod("vq", "10.5.0.2/24");
    ip("addr add 10.5.0.1/24 dev vq");
    let reached = || second.run(|| ping("10.5.0.1", SILENCE));
    let both = Guard::attach_by(Means::NftablesTable, &["vp", "vq"], Families::V4).unwrap();
    assert!(silent(&first) && !reached());
    let one = Guard::attach_by(Means::NftablesTable, &["vp"], Families::V4).unwrap();
    drop(both);
    assert!(eventually(reached) && silent(&first));
    drop(one);
    assert!(answered(&first));
}

/// A child's work: guards `interface`, says by what means, and waits to be killed.
pub(crate) fn hold_guard(interface: &str) -> ! {
    let guard = Guard::attach(&[interface], Families::V4).unwrap();
    println!("{}", guard.means());
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn pt_05_the_guard_ends_with_a_killed_process() {
    let (_host, pod) = host_and_pod();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, "vp")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "the child failed");
    let guarded = silent(&pod);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(guarded);
    assert!(answered(&pod), "the guard outlives its process");
}

fn pt_05_a_guard_of_no_interface_is_refused() {
    let (_host, pod) = host_and_pod();
    let error = Guard::attach(&["vp", "nope0"], Families::V4).unwrap_err();
    assert_eq!(error.to_string(), "no such interface: nope0");
    assert!(answered(&pod));
}

fn the_best_means_is_taken(rights: Rights) {
    let (_host, pod) = host_and_pod();
    let guard = Guard::attach(&["vp"], Families::V4).unwrap();
    let expected = match rights {
        Rights::Root => Means::TcxLink,
        Rights::User => Means::NftablesTable,
    };
    assert_eq!(guard.means(), expected);
    assert!(silent(&pod));
    if rights == Rights::User {
        let error = Guard::attach_by(Means::TcxLink, &["vp"], Families::V4).unwrap_err();
        assert!(error.to_string().starts_with("cannot keep the kernel off vp by TCX link: "), "{error}");
    }
}
