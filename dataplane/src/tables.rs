//! The snapshot that `control` compiles and the forwarder reads: ports, Services, routes, rules. It is
//! replaced as a whole, so a packet sees all of the old or all of the new state (UP-01).
//!
//! What changes at different paces is shared between snapshots: a change of Services keeps the routing of
//! the snapshot before, by reference, and no established flow looks at anything again.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::packet::{Family, LinkAddr, PortId, Prefix, V4, V6};
use crate::route::{Fib, Interfaces};
use crate::service::{Origin, Services};

/// Everything the forwarder reads.
#[derive(Debug, Default)]
pub struct Tables {
    /// The ports, each at the place of its number.
    pub ports: Arc<Ports>,
    /// IPv4. Nothing: Pollux does not forward the family, and leaves its frames to the host.
    pub v4: Option<FamilyTables<V4>>,
    /// IPv6, likewise.
    pub v6: Option<FamilyTables<V6>>,
    /// How connections are masqueraded.
    pub masquerade: Masquerade,
}

/// How connections are masqueraded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Masquerade {
    /// The mark of a connection that is (MQ-08): the bit of kube-proxy's `masqueradeBit`.
    pub mark: u32,
    /// Where its source port comes from (NAT-05).
    pub ports: MasqueradePorts,
}

impl Default for Masquerade {
    fn default() -> Self {
        Masquerade { mark: 1 << 14, ports: MasqueradePorts::default() }
    }
}

/// The tables of one family.
#[derive(Debug)]
pub struct FamilyTables<A: Family> {
    /// Frontends and backends.
    pub services: Services<A>,
    /// Routes and the addresses they rest on.
    pub routing: Arc<Routing<A>>,
    /// Masquerade rules beside that of the mark, in order (W5, W14).
    pub masquerade: Vec<MasqueradeRule<A>>,
    /// NO-07.
    pub loopback_guard: LoopbackGuard,
    /// From whom tunnels take packets.
    pub peers: Peers<A>,
}

impl<A: Family> Default for FamilyTables<A> {
    fn default() -> Self {
        FamilyTables {
            services: Services::default(),
            routing: Arc::default(),
            masquerade: Vec::new(),
            loopback_guard: LoopbackGuard::Off,
            peers: Peers::default(),
        }
    }
}

/// The far ends of tunnels (TN-01), each with the port of its tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peers<A: Family>(Box<[(PortId, A::Addr)]>);

impl<A: Family> Default for Peers<A> {
    fn default() -> Self {
        Peers(Box::default())
    }
}

impl<A: Family> Peers<A> {
    /// These and no others; one that is there twice counts once.
    pub fn new(peers: impl IntoIterator<Item = (PortId, A::Addr)>) -> Peers<A> {
        let mut peers: Vec<_> = peers.into_iter().collect();
        peers.sort_unstable();
        peers.dedup();
        Peers(peers.into())
    }

    /// Whether `address` is a far end of the tunnel of `port`.
    pub fn contains(&self, port: PortId, address: A::Addr) -> bool {
        self.0.binary_search(&(port, address)).is_ok()
    }
}

/// Where packets go.
#[derive(Debug)]
pub struct Routing<A: Family> {
    /// Longest prefix match.
    pub fib: Fib<A>,
    /// Interfaces and their addresses, in the order of their creation.
    pub interfaces: Arc<Interfaces<A>>,
}

impl<A: Family> Default for Routing<A> {
    fn default() -> Self {
        Routing { fib: Fib::default(), interfaces: Arc::default() }
    }
}

/// The ports of the forwarder.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    list: Vec<PortInfo>,
    /// By port: what every packet from it asks.
    ingress: Vec<Ingress>,
    host: Option<PortId>,
    /// By port, as far as the last one that is a tunnel; empty without any.
    tunnels: Vec<Option<Tunnel>>,
}

impl Ports {
    /// Numbers the ports in the order given. The first with the role `host` is the host port.
    ///
    /// # Panics
    /// If there are more than [`PortId::MAX`].
    pub fn new(list: Vec<PortInfo>) -> Ports {
        assert!(list.len() <= PortId::MAX, "more than {} ports", PortId::MAX);
        let host = list.iter().position(|port| port.role == Role::Host).map(|at| PortId(at as u16));
        let ingress = list.iter().map(Ingress::of).collect();
        Ports { list, ingress, host, tunnels: Vec::new() }
    }

    /// Makes these ports tunnels: nothing is behind them, what leaves by them is encapsulated and routed again.
    ///
    /// # Panics
    /// If there is no port of such a number.
    #[must_use]
    pub fn with_tunnels(mut self, tunnels: impl IntoIterator<Item = (PortId, Tunnel)>) -> Ports {
        for (port, tunnel) in tunnels {
            assert!(port.index() < self.list.len(), "port {} is not there", port.0);
            self.tunnels.resize(self.tunnels.len().max(port.index() + 1), None);
            self.tunnels[port.index()] = Some(tunnel);
        }
        self
    }

    /// The tunnel that a port is, if it is one.
    #[inline]
    pub fn tunnel(&self, id: PortId) -> Option<&Tunnel> {
        self.tunnels.get(id.index())?.as_ref()
    }

    /// All tunnels with their ports.
    #[inline]
    pub fn tunnels(&self) -> impl Iterator<Item = (PortId, &Tunnel)> {
        let numbered = self.tunnels.iter().enumerate();
        numbered.filter_map(|(at, tunnel)| Some((PortId(at as u16), tunnel.as_ref()?)))
    }

    /// Whether a port is a tunnel.
    #[inline]
    pub fn have_tunnels(&self) -> bool {
        !self.tunnels.is_empty()
    }

    /// A port, if there is one of that number.
    #[inline]
    pub fn get(&self, id: PortId) -> Option<&PortInfo> {
        self.list.get(id.index())
    }

    /// What every packet from a port asks, if there is one of that number.
    #[inline]
    pub(crate) fn ingress(&self, id: PortId) -> Option<Ingress> {
        self.ingress.get(id.index()).copied()
    }

    /// The port that leads to the node's own stack.
    #[inline]
    pub fn host(&self) -> Option<PortId> {
        self.host
    }

    /// The number of the port called `name`.
    pub fn by_name(&self, name: &str) -> Option<PortId> {
        self.list.iter().position(|port| port.name == name).map(|at| PortId(at as u16))
    }

    /// All ports with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &PortInfo)> {
        self.list.iter().enumerate().map(|(at, port)| (PortId(at as u16), port))
    }

    /// How many ports there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no port.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// What the forwarder knows of a port (PT-01).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// What it leads to.
    pub role: Role,
    /// The port's own link address. Of the host port: that of the node's side, to which frames for the
    /// host are addressed.
    pub link_address: LinkAddr,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// What becomes of frames that are not IP for Pollux to forward (FW-06).
    pub foreign: Foreign,
    /// Whether the detector takes the interface for a pod's (MQ-02).
    pub detected: Detected,
    /// Whether the kernel sees the port's frames as well, answers ARP and NDP and takes what is not Pollux's.
    pub sharing: Sharing,
    /// NB-01: whether questions for what is routed elsewhere are answered, of ARP and of neighbour discovery.
    pub proxy_arp: ProxyArp,
    /// FW-03: what is asked of the sources of IPv4 packets.
    pub reverse_path: ReversePath,
    /// The same of IPv6.
    pub reverse_path_v6: ReversePath,
}

/// An IPIP tunnel (TN-01, RFC 2003).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// The node's end: source of what it sends, and the one destination that it takes packets for. Nothing: the
    /// address that the route to the other end gives, and any of the node's.
    pub local: Option<Ipv4Addr>,
    /// TTL of what it sends.
    pub ttl: TunnelTtl,
    /// "Don't fragment" of what it sends.
    pub dont_fragment: TunnelDf,
}

/// Outer TTL of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelTtl {
    /// This one.
    Fixed(u8),
    /// That of the packet inside, when it enters the tunnel.
    Inherit,
}

/// Outer flag "don't fragment" of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelDf {
    /// Always set, so that the path's MTU is found (`pmtudisc`).
    Set,
    /// That of the packet inside (`nopmtudisc`).
    Inherit,
}

/// What the packets of a port are measured by: the part of [`PortInfo`] that the fast path reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ingress {
    /// [`PortInfo::link_address`], as a number ([`LinkAddr::bits`]): that compares in one instruction.
    link_address: u64,
    /// The same for packets that need no look at their source; else an address that no frame has.
    plain_address: u64,
    /// FW-03, by family.
    reverse_path: [ReversePath; 2],
    /// What the packets are to the Service tables.
    pub(crate) origin: Origin,
}

impl Ingress {
    fn of(port: &PortInfo) -> Ingress {
        let origin = match (port.role, port.detected) {
            (Role::Host, _) => Origin::Host,
            (_, Detected::Pod) => Origin::PodPort,
            (_, Detected::Other) => Origin::Port,
        };
        let link_address = port.link_address.bits();
        Ingress {
            link_address,
            plain_address: match port.reverse_path {
                ReversePath::Off => link_address,
                ReversePath::Strict | ReversePath::Loose => u64::MAX,
            },
            reverse_path: match origin {
                Origin::Host => [ReversePath::Off; 2],
                _ => [port.reverse_path, port.reverse_path_v6],
            },
            origin,
        }
    }

    /// What is asked of the sources of this family's packets.
    #[inline]
    pub(crate) fn reverse_path<A: Family>(self) -> ReversePath {
        self.reverse_path[usize::from(A::VERSION == 6)]
    }

    /// As [`takes`](Self::takes), of an IPv4 packet about whose source nothing is asked.
    #[inline(always)]
    pub(crate) fn takes_unasked(self, destination: u64) -> bool {
        destination == self.plain_address
            || (self.origin == Origin::Host && !LinkAddr::from_bits(destination).is_group())
    }

    /// Whether a frame with this link destination ([`LinkAddr::bits`]) is for Pollux. What the host sends has
    /// whatever link address its routes made it write, but no group's: that came from no route of Pollux's,
    /// and would only go back to the host.
    #[inline(always)]
    pub(crate) fn takes(self, destination: u64) -> bool {
        destination == self.link_address
            || (self.origin == Origin::Host && !LinkAddr::from_bits(destination).is_group())
    }
}

/// What a port leads to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The cluster's network.
    Uplink,
    /// A pod.
    Pod,
    /// The node's own stack (PT-02).
    Host,
}

/// FW-06.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Foreign {
    /// To the host port.
    #[default]
    ToHost,
    /// Dropped and counted.
    Drop,
}

/// The detector's view of an input interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Detected {
    /// A pod's interface.
    Pod,
    /// Another.
    #[default]
    Other,
}

/// Who else sees a port's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sharing {
    /// Nobody: Pollux owns the port.
    #[default]
    Owned,
    /// The kernel (PT-05).
    WithKernel,
}

/// NB-01.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProxyArp {
    /// Only questions for the port's own addresses are answered.
    #[default]
    Off,
    /// So are those for what is routed elsewhere.
    On,
}

/// FW-03: the reverse path filter, as the kernel's `rp_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReversePath {
    /// Any source may come in.
    #[default]
    Off,
    /// Answers must leave by the same port.
    Strict,
    /// There must be a way back. On an interface without addresses, as strict.
    Loose,
}

/// NO-07.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LoopbackGuard {
    /// `localhostNodePorts` is not in force.
    #[default]
    Off,
    /// It is: loopback is closed to sources outside it.
    On,
}

/// NAT-05.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MasqueradePorts {
    /// The original port if it is free.
    Keep,
    /// Any free port of the original one's class.
    #[default]
    Random,
}

/// A rule that masquerades what leaves the node, as in
/// `-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE`. What is not given matches everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasqueradeRule<A: Family> {
    /// Its name, for output.
    pub name: String,
    /// Source addresses.
    pub source: Option<Match<Prefix<A>>>,
    /// Destination addresses.
    pub destination: Option<Match<Prefix<A>>>,
    /// The way out: the number of the port called so, or nothing when no port is.
    pub out: Option<Match<Option<PortId>>>,
}

/// A condition and its negation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match<T> {
    /// The field is this.
    Is(T),
    /// The field is anything else.
    Not(T),
}

impl<T> Match<T> {
    fn holds(&self, test: impl Fn(&T) -> bool) -> bool {
        match self {
            Match::Is(value) => test(value),
            Match::Not(value) => !test(value),
        }
    }
}

impl<A: Family> MasqueradeRule<A> {
    /// Whether the rule masquerades a packet that leaves through `out`; nothing: that the host sends to itself.
    pub fn matches(&self, source: A::Addr, destination: A::Addr, out: Option<PortId>) -> bool {
        let within = |rule: &Option<Match<Prefix<A>>>, address| {
            rule.as_ref().is_none_or(|rule| rule.holds(|prefix| prefix.contains(address)))
        };
        within(&self.source, source)
            && within(&self.destination, destination)
            && self.out.as_ref().is_none_or(|rule| rule.holds(|port| port.is_some() && *port == out))
    }
}
