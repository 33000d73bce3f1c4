//! The seed's cluster as a [`Plan`].
//!
//! ```text
//!            gateway      outside
//!            172.16.0.1   172.16.0.9
//!                 │          │
//!          ───────┴── wire ──┴──────────┬─────────────
//!                 │                     │
//!  ens3 172.16.1.50/12      ens3 172.16.1.88/12
//!     slave1                         slave2
//!       ├ docker0 172.17.0.1/16        └ cali4f1e92c8d70 ── pod 10.151.49.8
//!       ├ tunl0 10.151.51.0
//!       ├ califf8f2a54a89 ── pod 10.151.51.1
//!       ├ cali448e242b4a5 ── pod 10.151.51.2
//!       ├ cali566211caf94 ── pod 10.151.51.7
//!       └ caliee93b0bdd66 ── pod 10.151.51.8
//! ```
//!
//! Names, link addresses, MTUs, interface indices, addresses and routes are the seed's. It does not give the
//! link addresses of the other pods and machines, nor the name of slave2's pod port: those are ours. Pods are
//! wired as Calico does it: the host side has no address, the pod's gateway is 169.254.1.1, which whoever
//! forwards on the node answers ARP for.

use std::net::Ipv4Addr;

use pollux_dataplane::packet::LinkAddr;

use super::{Device, End, Forwarding, Kind, Node, Plan};

/// Name of the node that the walks are about.
pub const SLAVE1: &str = "slave1";
/// Name of the other node.
pub const SLAVE2: &str = "slave2";
/// Name of the default gateway.
pub const GATEWAY: &str = "gateway";
/// Name of a client outside the cluster.
pub const OUTSIDE: &str = "outside";
/// Name of the switch between the machines.
pub const WIRE: &str = "wire";

/// slave1's address.
pub const SLAVE1_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 50);
/// slave2's address.
pub const SLAVE2_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 88);
/// The gateway's address.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// The outside client's address.
pub const OUTSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);
/// The cluster address of default/myapp.
pub const MYAPP: Ipv4Addr = Ipv4Addr::new(10, 150, 18, 86);
/// The port of default/myapp, and of its pods.
pub const MYAPP_PORT: u16 = 80;

/// slave1's link address.
pub const SLAVE1_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0x92, 0x11, 0xca]);
/// slave2's link address.
pub const SLAVE2_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0xa9, 0x16, 0x9f]);
/// The gateway's link address.
pub const GATEWAY_LINK: LinkAddr = LinkAddr([0xfa, 0x16, 0x3e, 0xd2, 0x26, 0x34]);
/// The link address of every node's side of a pod's cable.
pub const CALICO_LINK: LinkAddr = LinkAddr([0xee; 6]);

/// A pod and how it is wired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Name of its node in the plan.
    pub name: &'static str,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its link address.
    pub link: LinkAddr,
    /// The interface on its node.
    pub port: &'static str,
    /// The index of that interface.
    pub port_index: u32,
}

/// A pod of slave1 that is no backend of myapp.
pub const POD_51_1: Pod = Pod {
    name: "pod-51-1",
    address: Ipv4Addr::new(10, 151, 51, 1),
    link: LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x01]),
    port: "califf8f2a54a89",
    port_index: 11,
};
/// Another one.
pub const POD_51_2: Pod = Pod {
    name: "pod-51-2",
    address: Ipv4Addr::new(10, 151, 51, 2),
    link: LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x02]),
    port: "cali448e242b4a5",
    port_index: 18,
};
/// myapp-5d749dc84b-tmd49, on slave1.
pub const POD_51_7: Pod = Pod {
    name: "pod-51-7",
    address: Ipv4Addr::new(10, 151, 51, 7),
    link: LinkAddr([0xce, 0x5a, 0x9e, 0x2f, 0x70, 0x07]),
    port: "cali566211caf94",
    port_index: 23,
};
/// myapp-5d749dc84b-lt4ss, on slave1.
pub const POD_51_8: Pod = Pod {
    name: "pod-51-8",
    address: Ipv4Addr::new(10, 151, 51, 8),
    link: LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]),
    port: "caliee93b0bdd66",
    port_index: 24,
};
/// myapp-5d749dc84b-g6mn6, on slave2.
pub const POD_49_8: Pod = Pod {
    name: "pod-49-8",
    address: Ipv4Addr::new(10, 151, 49, 8),
    link: LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x31, 0x08]),
    port: "cali4f1e92c8d70",
    port_index: 9,
};

/// The backends of default/myapp, in the order of the seed's rules.
pub const BACKENDS: [Pod; 3] = [POD_49_8, POD_51_7, POD_51_8];

/// The seed's cluster. `forwarding` says who forwards on slave1; slave2 is always the kernel's.
pub fn plan(forwarding: Forwarding) -> Plan {
    let mut plan = Plan { nodes: vec![wire(), gateway(), outside(), slave1(forwarding), slave2()] };
    plan.nodes.extend([POD_51_1, POD_51_2, POD_51_7, POD_51_8, POD_49_8].map(pod));
    plan
}

/// The switch that the machines are plugged into.
fn wire() -> Node {
    let mut node = Node::new(WIRE).device(Device::new("switch", Kind::Bridge));
    for machine in [SLAVE1, SLAVE2, GATEWAY, OUTSIDE] {
        node = node.device(Device::new(socket_of(machine), Kind::FarEnd).bridge("switch"));
    }
    node
}

/// The other end of the cable of one of slave1's ports: its node and its interface. What passes there in one
/// direction passes the port in the other.
///
/// # Panics
/// When slave1 has no such port with a cable.
pub fn far_end(port: &str) -> (&'static str, String) {
    if port == "ens3" {
        return (WIRE, socket_of(SLAVE1));
    }
    let pods = [POD_51_1, POD_51_2, POD_51_7, POD_51_8];
    let pod = pods.iter().find(|pod| pod.port == port).unwrap_or_else(|| panic!("{port} has no cable"));
    (pod.name, "eth0".to_owned())
}

/// The switch's port for a machine.
fn socket_of(machine: &str) -> String {
    format!("to-{machine}")
}

/// A machine's ens3.
fn ens3(machine: &str, link: LinkAddr, address: Ipv4Addr) -> Device {
    Device::new("ens3", Kind::Cable(End::new(WIRE, socket_of(machine))))
        .index(2)
        .link_address(link)
        .address(format!("{address}/12 brd +"))
}

fn gateway() -> Node {
    Node::new(GATEWAY)
        .forwarding(Forwarding::Kernel)
        .device(ens3(GATEWAY, GATEWAY_LINK, GATEWAY_ADDRESS))
        .route(format!("10.151.51.0/24 via {SLAVE1_ADDRESS}"))
        .route(format!("10.151.49.0/24 via {SLAVE2_ADDRESS}"))
        // What a node lets through untranslated ends here, silently (W3).
        .route("blackhole 10.150.0.0/16")
}

fn outside() -> Node {
    let link = LinkAddr([0xfa, 0x16, 0x3e, 0x00, 0x00, 0x09]);
    Node::new(OUTSIDE)
        .device(ens3(OUTSIDE, link, OUTSIDE_ADDRESS))
        .route(format!("default via {GATEWAY_ADDRESS}"))
}

fn slave1(forwarding: Forwarding) -> Node {
    let docker0 = Device::new("docker0", Kind::Bridge)
        .index(3)
        .link_address(LinkAddr([0x02, 0x42, 0xff, 0x96, 0x6a, 0x06]))
        .address("172.17.0.1/16 brd +");
    let tunl0 = Device::new("tunl0", Kind::Ipip { local: SLAVE1_ADDRESS.to_string() })
        .index(8)
        .mtu(1480)
        .address("10.151.51.0/32");
    let mut node = Node::new(SLAVE1)
        .forwarding(forwarding)
        // As kube-proxy sets it.
        .setting("net/ipv4/conf/all/route_localnet", "1")
        .device(ens3(SLAVE1, SLAVE1_LINK, SLAVE1_ADDRESS))
        .device(docker0)
        .device(tunl0);
    for pod in [POD_51_1, POD_51_2, POD_51_7, POD_51_8] {
        node = node.device(pod_port(pod));
    }
    // As `ip route` prints them in the seed, without those that the kernel adds by itself.
    for route in [
        "default via 172.16.0.1 dev ens3 proto dhcp src 172.16.1.50 metric 100",
        "10.151.32.0/24 via 172.16.2.77 dev tunl0 proto bird onlink",
        "10.151.49.0/24 via 172.16.1.88 dev ens3 proto bird",
        "blackhole 10.151.51.0/24 proto bird",
        "10.151.51.1 dev califf8f2a54a89 scope link",
        "10.151.51.2 dev cali448e242b4a5 scope link",
        "10.151.51.7 dev cali566211caf94 scope link",
        "10.151.51.8 dev caliee93b0bdd66 scope link",
        "10.151.161.0/24 via 172.16.1.221 dev ens3 proto bird",
        "10.151.208.0/24 via 172.16.1.203 dev ens3 proto bird",
        "169.254.169.254 via 172.16.0.1 dev ens3 proto dhcp src 172.16.1.50 metric 100",
    ] {
        node = node.route(route);
    }
    node
}

fn slave2() -> Node {
    Node::new(SLAVE2)
        .forwarding(Forwarding::Kernel)
        .device(ens3(SLAVE2, SLAVE2_LINK, SLAVE2_ADDRESS))
        .device(pod_port(POD_49_8))
        .route(format!("default via {GATEWAY_ADDRESS} dev ens3"))
        .route("blackhole 10.151.49.0/24 proto bird")
        .route(format!("10.151.49.8 dev {} scope link", POD_49_8.port))
        .route(format!("10.151.51.0/24 via {SLAVE1_ADDRESS} dev ens3 proto bird"))
}

/// The node's side of a pod's cable.
fn pod_port(pod: Pod) -> Device {
    Device::new(pod.port, Kind::Cable(End::new(pod.name, "eth0")))
        .index(pod.port_index)
        .link_address(CALICO_LINK)
        .mtu(1480)
        .proxy_arp()
}

fn pod(pod: Pod) -> Node {
    let eth0 = Device::new("eth0", Kind::FarEnd)
        .index(4)
        .link_address(pod.link)
        .mtu(1480)
        .address(format!("{}/32", pod.address));
    Node::new(pod.name)
        .device(eth0)
        .route("169.254.1.1 dev eth0 scope link")
        .route("default via 169.254.1.1 dev eth0")
}
