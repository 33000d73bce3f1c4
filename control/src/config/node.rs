//! `pollux.dev/v1alpha1 Node`: what Pollux itself needs to know about the node it runs on. All fields:
//!
//! ```yaml
//! apiVersion: pollux.dev/v1alpha1
//! kind: Node
//! serviceProxyName: edge            # serve Services that ask for this proxy by label, too (OBJ-02)
//! workers: 2                        # packet threads; as many as there are cores below when it is not said, else 1
//! cores: [2, 3]                     # the processor that each is pinned to; none are when it is not said
//! flowTable:
//!   connections: 262144             # instead of kube-proxy's conntrack.maxPerCore and min
//! affinity:
//!   clients: 262144                 # what session affinity remembers in each family: clients x backends (AF-05)
//! sysctl:                           # timeouts and switches by the last name of their sysctl (CT-05 to CT-07)
//!   nf_conntrack_tcp_timeout_established: 86400
//! ports:                            # what frames come in and go out through (PT-01)
//! - name: ens3
//!   role: uplink                    # uplink, pod, host
//!   backend: af_packet              # af_packet, af_xdp, dpdk, tap, pcap, memory, ipip
//!   interface: ens3                 # the interface behind it; the port's name when it is not said
//!   linkAddress: fa:16:3e:92:11:ca  # the interface's own when it is not said
//!   mtu: 1500                       # bytes; the interface's own when it is not said
//!   addresses: [172.16.1.50/12]     # the node's addresses on it
//!   proxyArp: false                 # answer ARP and NDP for what is routed elsewhere (NB-01)
//!   rpFilter: strict                # off, strict, loose: the reverse path filter (FW-03); with routes: kernel, and IPv4,
//!                                   # as the kernel's when it is not said, else off
//!   ignoreRoutesWithLinkdown: true  # whether routes out of it count without a carrier (RT-04); else as rpFilter
//!   foreign: host                   # host, drop: what is not Pollux's to forward (FW-06)
//!   index: 2                        # order of creation among ports and interfaces (NAT-04)
//!   # A bad wire before the port, for tests: probabilities, in each direction; the seed decides what happens.
//!   faults: {loss: 0.01, duplicate: 0.01, reorder: 0.02, corrupt: 0.001, delay: 5ms, seed: 7}
//!   # Its frames into a pcapng file, and into the log: all, or those of a filter as `pollux capture` has it. `view` is
//!   # `forwarder` (each frame with what was decided) or `wire` (what the device gave and took).
//!   capture: {file: /var/tmp/ens3.pcapng, filter: "tcp port 80", snapLength: 128, view: forwarder}
//!   trace: {filter: "icmp or arp", view: wire}
//! - name: ens4
//!   role: uplink
//!   backend: af_xdp                 # frames straight from the driver, steered by a program at the interface
//!   xdp:                            # all of it may be left out
//!     mode: native                  # native, generic: the program runs in the driver, or in the kernel's stack
//!     zeroCopy: auto                # auto, off, required: the device itself reads and writes the buffers
//!     queues: 2                     # receive queues that the interface must have; those it has when it is not said
//!     ring: 4096                    # frames that wait in each direction, at each queue: a power of two
//!     steer: unicast                # unicast, all: what is taken from the kernel
//!     leave: [tcp/22, udp/4789]     # destination ports whose packets the kernel keeps
//! - name: ens5
//!   role: uplink
//!   backend: dpdk                   # needs a pollux that is built with feature dpdk
//!   device: "0000:05:00.0"          # as DPDK writes it; its AF_PACKET driver on the interface when it is not said
//!   queues: 2                       # exactly so many; as many as device and workers have when it is not said
//! - name: cali*                     # every Ethernet interface of such a name (*, ?, [a-f]), while it is there, is a
//!   role: pod                       # port with these fields; interfaces that other ports name are left out, and of
//!   backend: af_packet              # several patterns the first that matches counts
//!   proxyArp: true
//! - name: tunl0
//!   role: uplink
//!   backend: ipip                   # a tunnel: encapsulated, and routed again (TN-01)
//!   mtu: 1480                       # 20 less than the smallest uplink's when it is not said
//!   addresses: [10.151.51.0/32]
//!   tunnel:
//!     local: 172.16.1.50            # outer source; that of the route to the other end when it is not said
//!     ttl: 64                       # outer TTL, 64 when it is not said; or inherit: the inner one
//!     pathMtuDiscovery: true        # outer "don't fragment" always set; false: as inside
//!     peers: [172.16.2.77]          # from whom packets are taken; the gateways of its routes when it is not said
//! dpdk:                             # how DPDK is started, for all ports of that backend
//!   hugepages: true                 # false: in ordinary pages, for virtual devices
//!   memory: 128                     # MiB of its own; what the pool and the devices need when it is not said
//!   arguments: [--log-level=debug]  # more of its own arguments (EAL)
//! interfaces:                       # interfaces that are no ports but hold addresses (NAT-04)
//! - {name: lo, addresses: [127.0.0.1/8], index: 1}
//! routes:                           # or: routes: kernel
//! - {to: default, via: 172.16.0.1, dev: ens3, source: 172.16.1.50, metric: 100}
//! - {to: 10.151.32.0/24, via: 172.16.2.77, dev: tunl0, onlink: true}
//! - {to: 10.151.51.0/24, kind: blackhole}   # unicast, local, blackhole, unreachable, prohibit, broadcast, multicast
//! - {to: 10.9.0.0/16, nextHops: [{via: 172.16.0.1, dev: ens3, weight: 2}, {via: 172.16.0.2, dev: ens3}]}
//! neighbours:                       # or: neighbours: kernel
//! - {address: 172.16.0.1, linkAddress: fa:16:3e:d2:26:34, dev: ens3}
//! masquerade:
//!   ports: random                   # random, keep (NAT-05)
//!   rules:                          # beside kube-proxy's mark; a leading ! negates (W5, W14)
//!   - {name: docker, source: 172.17.0.0/16, outPort: "!docker0"}
//! ```
//!
//! An unknown field is an error. Connected subnets and the local routes of addresses need not be listed
//! (RT-03). `routes` and `neighbours` that are not there mean none.

mod dpdk;
mod read;
mod values;
mod wire;
mod xdp;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use globset::Glob;
use pollux_dataplane::capture::Filter;
use pollux_dataplane::packet::LinkAddr;
use pollux_dataplane::port::fault::Faults;
use serde::{Deserialize, Serialize};

use crate::cluster::IpPrefix;
pub use dpdk::{DPDK_SLOTS, DpdkConfig, DpdkDevice, DpdkPages};
pub use xdp::{XdpConfig, XdpSteer};

/// Pollux's own configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// The value of the label `service-proxy-name` that does not exclude a Service (OBJ-02).
    pub service_proxy_name: Option<String>,
    /// Number of packet threads, when it is set.
    pub workers: Option<u16>,
    /// The processors that they are pinned to, one for each; none: they are not pinned.
    pub cores: Vec<u16>,
    /// Connections that the flow table holds, when it is set.
    pub connections: Option<u32>,
    /// Backends of clients that session affinity remembers in each family, when it is set (AF-05).
    pub clients: Option<u32>,
    /// Settings by the last name of their sysctl, all of them in [`SYSCTLS`]. They win over the section
    /// `conntrack` of kube-proxy's configuration.
    pub sysctl: BTreeMap<String, u32>,
    /// The ports, each under the number that is its place.
    pub ports: Vec<PortConfig>,
    /// Ports by pattern: their names are patterns, and each interface whose name matches one is a port while it is
    /// there.
    pub patterns: Vec<PortConfig>,
    /// How DPDK is started, for the ports with that backend.
    pub dpdk: DpdkConfig,
    /// Interfaces that are no ports.
    pub interfaces: Vec<InterfaceConfig>,
    /// The routes.
    pub routes: Source<RouteConfig>,
    /// The neighbours.
    pub neighbours: Source<NeighbourConfig>,
    /// How masqueraded packets get their source port.
    pub masquerade_ports: MasqueradePorts,
    /// Masquerade rules beside kube-proxy's mark.
    pub masquerade_rules: Vec<MasqueradeRule>,
}

/// What a sysctl's number means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SysctlKind {
    /// A time in seconds, 1 to [`LONGEST`](pollux_dataplane::flow::LONGEST).
    Seconds,
    /// 0 is off, 1 is on.
    Switch,
    /// A number of times, 0 to 255.
    Count,
}

/// The settings of `sysctl`, by the last name of the kernel's sysctl (CT-05 to CT-07, CT-11, NAT-08).
pub const SYSCTLS: [(&str, SysctlKind); 30] = {
    use SysctlKind::{Count, Seconds, Switch};
    [
        ("ipfrag_time", Seconds),
        ("nf_conntrack_acct", Switch),
        ("nf_conntrack_frag6_timeout", Seconds),
        ("nf_conntrack_generic_timeout", Seconds),
        ("nf_conntrack_icmp_timeout", Seconds),
        ("nf_conntrack_icmpv6_timeout", Seconds),
        ("nf_conntrack_sctp_timeout_closed", Seconds),
        ("nf_conntrack_sctp_timeout_cookie_echoed", Seconds),
        ("nf_conntrack_sctp_timeout_cookie_wait", Seconds),
        ("nf_conntrack_sctp_timeout_established", Seconds),
        ("nf_conntrack_sctp_timeout_heartbeat_sent", Seconds),
        ("nf_conntrack_sctp_timeout_shutdown_ack_sent", Seconds),
        ("nf_conntrack_sctp_timeout_shutdown_recd", Seconds),
        ("nf_conntrack_sctp_timeout_shutdown_sent", Seconds),
        ("nf_conntrack_tcp_be_liberal", Switch),
        ("nf_conntrack_tcp_ignore_invalid_rst", Switch),
        ("nf_conntrack_tcp_loose", Switch),
        ("nf_conntrack_tcp_max_retrans", Count),
        ("nf_conntrack_tcp_timeout_close", Seconds),
        ("nf_conntrack_tcp_timeout_close_wait", Seconds),
        ("nf_conntrack_tcp_timeout_established", Seconds),
        ("nf_conntrack_tcp_timeout_fin_wait", Seconds),
        ("nf_conntrack_tcp_timeout_last_ack", Seconds),
        ("nf_conntrack_tcp_timeout_max_retrans", Seconds),
        ("nf_conntrack_tcp_timeout_syn_recv", Seconds),
        ("nf_conntrack_tcp_timeout_syn_sent", Seconds),
        ("nf_conntrack_tcp_timeout_time_wait", Seconds),
        ("nf_conntrack_tcp_timeout_unacknowledged", Seconds),
        ("nf_conntrack_udp_timeout", Seconds),
        ("nf_conntrack_udp_timeout_stream", Seconds),
    ]
};

/// Where routes or neighbours come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source<T> {
    /// From the kernel, followed live (RT-05).
    Kernel,
    /// From this file.
    Listed(Vec<T>),
}

impl<T> Default for Source<T> {
    fn default() -> Self {
        Source::Listed(Vec::new())
    }
}

/// An address on an interface, with the length of its subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of the subnet's prefix in bits.
    pub length: u8,
}

impl InterfaceAddress {
    /// The subnet.
    pub fn subnet(self) -> IpPrefix {
        IpPrefix::new(self.address, self.length).expect("a length that fits the family")
    }
}

impl Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A port (PT-01).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// Its name, unique among ports and interfaces.
    pub name: String,
    /// What is behind it.
    pub role: Role,
    /// How its frames are read and written.
    pub backend: Backend,
    /// The interface behind it.
    pub interface: String,
    /// Its link address, when it is set.
    pub link_address: Option<LinkAddr>,
    /// The largest IP packet that fits, bytes, when it is set.
    pub mtu: Option<u16>,
    /// The node's addresses on it, in order.
    pub addresses: Vec<InterfaceAddress>,
    /// Whether ARP and neighbour discovery for what is routed elsewhere are answered.
    pub proxy_arp: ProxyArp,
    /// What is asked of the sources of packets that come in, when it is set.
    pub reverse_path: Option<ReversePath>,
    /// Whether routes out of it count while its link has no carrier, when it is set.
    pub linkdown: Option<Linkdown>,
    /// Where frames go that are not Pollux's to forward.
    pub foreign: Foreign,
    /// Order of creation, when it is set.
    pub index: Option<u32>,
    /// What the wire before it does to frames, when a bad one is asked for.
    pub faults: Option<Faults>,
    /// The file that its frames go to, when there is one.
    pub capture: Option<PortCapture>,
    /// Which of its frames are logged, when some are.
    pub trace: Option<PortWatch>,
    /// With the backend `ipip`: how the tunnel is made.
    pub tunnel: Option<TunnelConfig>,
    /// With the backend `af_xdp`: how frames are taken.
    pub xdp: XdpConfig,
    /// With the backend `dpdk`: the device.
    pub device: Option<DpdkDevice>,
}

impl PortConfig {
    /// Whether a name stands for the interfaces that match it.
    pub fn is_pattern(name: &str) -> bool {
        name.contains(['*', '?', '[', ']', '{', '}'])
    }

    /// Whether the name of a port by pattern stands for this interface.
    fn matches(&self, interface: &str) -> bool {
        Glob::new(&self.name).is_ok_and(|pattern| pattern.compile_matcher().is_match(interface))
    }
}

/// `capture` of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortCapture {
    /// The pcapng file; what is in it is lost.
    pub file: PathBuf,
    /// What goes into it.
    pub watch: PortWatch,
}

/// Which frames of a port are looked at, and from where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortWatch {
    /// Which frames.
    pub filter: Filter,
    /// Bytes of each frame.
    pub snap_len: u32,
    /// Where one looks from.
    pub view: CaptureView,
}

/// Where a capture looks from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureView {
    /// From the forwarder: each frame with what was decided about it.
    #[default]
    Forwarder,
    /// From the port: what its device gave and took, cut and completed as the device needs it, and nothing else.
    Wire,
}

/// `tunnel` (TN-01).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelConfig {
    /// Outer source, and the destination of what it takes, when it is set.
    pub local: Option<Ipv4Addr>,
    /// Outer TTL; nothing: that of the packet inside.
    pub ttl: Option<u8>,
    /// Outer flag "don't fragment".
    pub path_mtu_discovery: PathMtuDiscovery,
    /// From whom packets are taken. Nothing: from the gateways of the routes that lead into the tunnel.
    pub peers: Option<Vec<Ipv4Addr>>,
}

/// `tunnel.pathMtuDiscovery`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathMtuDiscovery {
    /// What is sent may not be fragmented on its way.
    On,
    /// It may be, where the packet inside may.
    Off,
}

/// What is behind a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The network.
    Uplink,
    /// A pod.
    Pod,
    /// The node's own stack (PT-02).
    Host,
}

/// How a port's frames are read and written (PT-03).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// A packet socket on an interface.
    AfPacket,
    /// AF_XDP sockets on an interface.
    AfXdp,
    /// A device of DPDK's.
    Dpdk,
    /// A TAP device.
    Tap,
    /// Capture files.
    Pcap,
    /// Memory, for tests.
    Memory,
    /// Nothing of its own: an IPIP tunnel over the others (TN-01).
    Ipip,
}

impl Backend {
    /// Whether a port of it is an interface of the kernel's, which is there before the port is opened and may go.
    pub fn is_on_interface(self) -> bool {
        match self {
            Backend::AfPacket | Backend::AfXdp => true,
            // A device of DPDK's has a name of its own and does not say when its interface goes.
            Backend::Dpdk | Backend::Tap | Backend::Pcap | Backend::Memory | Backend::Ipip => false,
        }
    }
}

/// `proxyArp`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyArp {
    /// Only the node's own addresses are answered for.
    Off,
    /// Addresses that are routed out of another port are answered for as well (Calico's 169.254.1.1).
    On,
}

/// `rpFilter` (FW-03).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the kernel's own words")]
pub enum ReversePath {
    Off,
    Strict,
    Loose,
}

/// `ignoreRoutesWithLinkdown` (RT-04).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Linkdown {
    /// Routes through a link without carrier count all the same.
    Used,
    /// They do not.
    Ignored,
}

/// `foreign` (FW-06).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Foreign {
    /// To the host port.
    Host,
    /// Dropped and counted.
    Drop,
}

/// An interface that is no port but holds addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceConfig {
    /// Its name.
    pub name: String,
    /// Its addresses, in order.
    pub addresses: Vec<InterfaceAddress>,
    /// Order of creation, when it is set.
    pub index: Option<u32>,
}

/// A route (RT-01, RT-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteConfig {
    /// The destinations.
    pub to: IpPrefix,
    /// What happens to them.
    pub kind: RouteKind,
    /// Where they go: one or more for unicast, none for the kinds that drop.
    pub next_hops: Vec<NextHopConfig>,
    /// The preferred source (RT-04).
    pub source: Option<IpAddr>,
    /// The lower, the better among equal prefixes.
    pub metric: u32,
}

/// The type of a route (RT-02).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "iproute2's own words")]
pub enum RouteKind {
    Unicast,
    Local,
    Blackhole,
    Unreachable,
    Prohibit,
    Broadcast,
    Multicast,
}

/// One way of a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextHopConfig {
    /// The gateway; none is on link.
    pub via: Option<IpAddr>,
    /// The port or interface.
    pub dev: String,
    /// Share of the flows among the ways of a route, at least 1.
    pub weight: u16,
    /// Whether the gateway is reachable whatever the subnets say.
    pub onlink: OnLink,
    /// The kernel's mark on a device without carrier; information only (RT-04).
    pub link: LinkState,
}

/// `onlink`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnLink {
    /// The gateway lies in a connected subnet.
    No,
    /// The gateway is on the link, whatever the subnets say.
    Yes,
}

/// `linkDown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "self-explanatory")]
pub enum LinkState {
    Up,
    Down,
}

/// A neighbour's link address (NB-01).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeighbourConfig {
    /// Its address.
    pub address: IpAddr,
    /// Its link address.
    pub link_address: LinkAddr,
    /// The port or interface that it is behind.
    pub dev: String,
}

/// `masquerade.ports` (NAT-05).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasqueradePorts {
    /// One of the original port's class at random, as `--random-fully`.
    #[default]
    Random,
    /// The original port if it is free.
    Keep,
}

/// A masquerade rule of the configuration: all conditions must hold, one that is not set always does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasqueradeRule {
    /// Its name in the output of `trace`.
    pub name: String,
    /// The packet's source, before masquerade.
    pub source: Option<Match<IpPrefix>>,
    /// Its destination, after DNAT.
    pub destination: Option<Match<IpPrefix>>,
    /// The port or interface that it leaves through.
    pub out_port: Option<Match<String>>,
}

/// A condition, plain or negated with a leading `!`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Match<T> {
    /// It is this, or in it.
    Is(T),
    /// It is not this, nor in it.
    IsNot(T),
}

impl NodeConfig {
    /// The port of this name.
    pub fn port(&self, name: &str) -> Option<&PortConfig> {
        self.ports.iter().find(|port| port.name == name)
    }

    /// The port that an interface is by a pattern; nothing when none matches, or when it is a port or an interface
    /// by its own name.
    pub fn port_by_pattern(&self, interface: &str) -> Option<PortConfig> {
        let is_named = self.ports.iter().any(|port| port.name == interface || port.interface == interface)
            || self.interfaces.iter().any(|one| one.name == interface);
        let pattern = self.patterns.iter().filter(|_| !is_named).find(|port| port.matches(interface))?;
        Some(PortConfig { name: interface.to_owned(), interface: interface.to_owned(), ..pattern.clone() })
    }

    /// Buffers that devices hold, to receive into or to send from. The AF_XDP ports that are named: a ring for each
    /// queue, of which there is at least one for each packet thread. DPDK's devices: two for each queue.
    pub fn buffers_to_receive(&self) -> usize {
        let devices = self.ports.iter().filter_map(|port| port.device.as_ref());
        let device_queues = devices.map(|device| device.queues.map_or(self.worker_count(), usize::from));
        let of_devices = device_queues.sum::<usize>() * 2 * usize::from(DPDK_SLOTS);
        let ports = self.ports.iter().filter(|port| port.backend == Backend::AfXdp);
        let queues = |port: &PortConfig| port.xdp.queues.map_or(self.worker_count(), usize::from);
        of_devices + ports.map(|port| queues(port) * port.xdp.ring as usize).sum::<usize>()
    }

    /// How many packet threads there are.
    pub fn worker_count(&self) -> usize {
        self.workers.map_or(self.cores.len().max(1), usize::from)
    }

    /// Names and addresses of all ports and interfaces in the order of their creation, `lo` first (NAT-04):
    /// by `index` where they have one, else ports before interfaces in the order of the file.
    pub fn interfaces_by_age(&self) -> Vec<(&str, &[InterfaceAddress])> {
        let ports = self.ports.iter().map(|port| (port.index, &port.name, &port.addresses));
        let interfaces =
            self.interfaces.iter().map(|interface| (interface.index, &interface.name, &interface.addresses));
        let mut all: Vec<_> = ports.chain(interfaces).collect();
        all.sort_by_key(|(index, name, _)| (*name != "lo", index.unwrap_or(u32::MAX)));
        all.into_iter().map(|(_, name, addresses)| (name.as_str(), addresses.as_slice())).collect()
    }

    /// All addresses of ports and interfaces, in the order of [`NodeConfig::interfaces_by_age`].
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.interfaces_by_age()
            .into_iter()
            .flat_map(|(_, addresses)| addresses)
            .map(|address| address.address)
    }
}
