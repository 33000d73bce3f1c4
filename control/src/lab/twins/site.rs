//! The node that both twins are: its addresses, the pods on it, the ways out. Cabled as Calico does it: a
//! veth and a /32 route for each pod, everything else by the uplink's gateway.
//!
//! ```text
//! outside (no addresses; raw frames)      the kernel's node                Pollux's node
//!   k0, p0 … everybody else          ──── ens3                        ──── ens3
//!   k1, p1 … a pod's end             ──── cali1 …                     ──── cali1 …
//!   h0                                                                ──── host0, its host port
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pollux_dataplane::packet::LinkAddr;

use super::scenario::{Family, Scenario};
use crate::cluster::IpPrefix;
use crate::config::proxy::DetectLocal;
use crate::kernel::Error;
use crate::kernel::netns::Netns;

/// Ports for pods at most: what more there are share the last, as behind a bridge.
const POD_PORTS: usize = 6;

/// Pollux's host port.
pub(in crate::lab) const HOST_PORT: &str = "host0";

/// The node.
#[derive(Clone, Debug)]
pub(in crate::lab) struct Site {
    /// Interface names: the uplink, then the pods' ports.
    pub(in crate::lab) ports: Vec<String>,
    /// The node's addresses of both families, without loopback.
    pub(in crate::lab) locals: Vec<IpAddr>,
    /// Pods, each with the number of its port.
    pub(in crate::lab) pods: BTreeMap<IpAddr, usize>,
    /// Pods of the family that are no endpoints of anything.
    pub(in crate::lab) idle_pods: [IpAddr; 2],
    /// An address of the node's own pod prefix that no pod has.
    pub(in crate::lab) empty_address: Option<IpAddr>,
    gateways: Vec<IpAddr>,
    blackholes: Vec<IpPrefix>,
}

impl Site {
    /// The node of a scenario.
    pub(in crate::lab) fn of(scenario: &Scenario) -> Site {
        let locals = scenario.local_addresses.clone();
        let slices = scenario.cluster.slices.values();
        let endpoints: BTreeMap<IpAddr, bool> = slices
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| {
                let here = endpoint.node_name.as_deref() == Some(scenario.node_name.as_str());
                (endpoint.address, here && !locals.contains(&endpoint.address))
            })
            .collect();
        let mut taken: BTreeSet<IpAddr> = endpoints.keys().chain(&locals).copied().collect();
        for service in scenario.cluster.services.values() {
            taken.extend(&service.cluster_ips);
            taken.extend(&service.external_ips);
            taken.extend(&service.load_balancer_ips);
        }
        taken.extend(scenario.flows.iter().flatten().flat_map(|flow| [flow.from, flow.to]));
        taken.extend(scenario.cluster.nodes.values().flat_map(|node| node.internal_ips.iter().copied()));
        let cidrs = scenario.cluster.nodes.get(&scenario.node_name).map_or(&[][..], |node| &node.pod_cidrs);
        let v4 = scenario.family == Family::IPv4;
        let cidr = cidrs.iter().copied().find(|cidr| cidr.address().is_ipv4() == v4);
        let near = endpoints.iter().find(|(address, here)| **here && address.is_ipv4() == v4);
        let base = cidr.map(IpPrefix::address).or(near.map(|(address, _)| *address)).unwrap_or(match v4 {
            true => IpAddr::V4(Ipv4Addr::new(10, 244, 77, 0)),
            false => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0x77, 0, 0, 0, 0)),
        });
        let mut free =
            (200..250u8).map(|last| with_last(base, last)).filter(|address| !taken.contains(address));
        let mut next = || free.next().expect("fifty addresses are not all taken");
        let idle_pods = [next(), next()];
        let empty_address = cidr.map(|_| next());

        let local_pods = endpoints.into_iter().filter(|(_, here)| *here).map(|(address, _)| address);
        let (names, shared) = port_names(&scenario.proxy.detect_local);
        let mut pods = BTreeMap::new();
        for (at, pod) in idle_pods.into_iter().chain(local_pods).enumerate() {
            pods.entry(pod).or_insert(if shared { 1 } else { 1 + at.min(POD_PORTS - 1) });
        }
        let used = pods.values().max().copied().unwrap_or(0);
        let ports = names.into_iter().take(1 + used).collect();
        let mut gateways = Vec::new();
        for wanted in [true, false] {
            let first = locals.iter().find(|address| address.is_ipv4() == wanted);
            let gateway = first.and_then(|first| {
                (1..255u8).rev().map(|last| with_last(*first, last)).find(|address| !taken.contains(address))
            });
            gateways.extend(gateway);
        }
        Site { ports, locals, pods, idle_pods, empty_address, gateways, blackholes: cidrs.to_vec() }
    }

    /// The port that `address` is behind.
    pub(in crate::lab) fn port_of(&self, address: IpAddr) -> usize {
        self.pods.get(&address).copied().unwrap_or(0)
    }

    /// Whether the node has this address, loopback included.
    pub(in crate::lab) fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.locals.contains(&address)
    }

    /// Link address of the node's end of a port, the same on both twins.
    pub(in crate::lab) fn link(port: usize) -> LinkAddr {
        LinkAddr([0x02, 0, 0, 0, 1, port as u8])
    }

    /// Link address of everybody behind a port.
    pub(in crate::lab) fn far_link(port: usize) -> LinkAddr {
        LinkAddr([0x02, 0, 0, 0, 2, port as u8])
    }

    /// Lays all cables, configures both nodes alike.
    ///
    /// # Errors
    /// What the kernel or `ip` refuses.
    pub(in crate::lab) fn build(
        &self,
        settings: &[(String, String)],
        prefix: &str,
    ) -> Result<Namespaces, Error> {
        let made = Namespaces {
            outside: Netns::add(&format!("{prefix}outside"))?,
            kernel: Netns::add(&format!("{prefix}kernel"))?,
            pollux: Netns::add(&format!("{prefix}pollux"))?,
        };
        set(
            &made.outside,
            &[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")],
        )?;
        let common = [
            // No duplicate address detection: addresses are the node's at once.
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            // A hairpin would make the kernel send redirects.
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ];
        let mut cables = String::new();
        for (netns, side) in [(&made.kernel, "k"), (&made.pollux, "p")] {
            set(netns, &common)?;
            for (path, value) in settings {
                netns.set_sysctl(path, value)?;
            }
            let name = netns.name().expect("made with a name");
            for (number, port) in self.ports.iter().enumerate() {
                let (near, far) = (Site::link(number), Site::far_link(number));
                let _ = writeln!(
                    cables,
                    "link add {side}{number} address {far} type veth peer name {port} address {near} netns {name}\n\
                     link set {side}{number} up"
                );
            }
        }
        let name = made.pollux.name().expect("made with a name");
        let _ = writeln!(
            cables,
            "link add h0 type veth peer name {HOST_PORT} address 02:00:00:00:03:00 netns {name}\nlink set h0 up"
        );
        made.outside.ip(&cables)?;
        let node = self.configuration();
        made.kernel.ip(&node)?;
        made.pollux.ip(&format!("{node}link set {HOST_PORT} up\n"))?;
        Ok(made)
    }

    /// Addresses and routes, as lines of an `ip` batch.
    fn configuration(&self) -> String {
        let mut lines = String::new();
        let uplink = &self.ports[0];
        for port in &self.ports {
            let _ = writeln!(lines, "link set {port} up");
        }
        let mut subnets = [false; 2];
        for address in &self.locals {
            // One subnet for each family: where the gateway is.
            let first = !std::mem::replace(&mut subnets[usize::from(address.is_ipv6())], true);
            let (length, nodad) = match (address, first) {
                (IpAddr::V4(_), true) => (24, ""),
                (IpAddr::V4(_), false) => (32, ""),
                (IpAddr::V6(_), true) => (64, " nodad"),
                (IpAddr::V6(_), false) => (128, " nodad"),
            };
            let _ = writeln!(lines, "address add {address}/{length} dev {uplink}{nodad}");
        }
        let far = |port: usize| Site::far_link(port);
        for gateway in &self.gateways {
            let _ = writeln!(lines, "neigh add {gateway} lladdr {} dev {uplink} nud permanent", far(0));
            let _ = writeln!(lines, "route add default via {gateway} dev {uplink}");
        }
        for cidr in &self.blackholes {
            let _ = writeln!(lines, "route add blackhole {cidr}");
        }
        for (pod, port) in &self.pods {
            let name = &self.ports[*port];
            let _ = writeln!(lines, "route add {pod} dev {name}");
            let _ = writeln!(lines, "neigh add {pod} lladdr {} dev {name} nud permanent", far(*port));
        }
        lines
    }
}

/// The three namespaces of a comparison. They end with it.
#[derive(Debug)]
pub(in crate::lab) struct Namespaces {
    /// Everybody else.
    pub(in crate::lab) outside: Netns,
    /// The node whose kernel forwards.
    pub(in crate::lab) kernel: Netns,
    /// The node in which Pollux forwards.
    pub(in crate::lab) pollux: Netns,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for netns in [&self.outside, &self.kernel, &self.pollux] {
            // They end with the sandbox in any case.
            let _ = netns.clone().delete();
        }
    }
}

pub(in crate::lab) fn set(netns: &Netns, settings: &[(&str, &str)]) -> Result<(), Error> {
    settings.iter().try_for_each(|(path, value)| netns.set_sysctl(path, value))
}

/// Names of the uplink and of pods' ports, and whether all pods are behind one: as the detector wants them.
fn port_names(detect: &DetectLocal) -> (Vec<String>, bool) {
    let numbered =
        |prefix: &str| (1..=POD_PORTS).map(|number| format!("{prefix}{number}")).collect::<Vec<_>>();
    let (pods, shared) = match detect {
        DetectLocal::BridgeInterface(bridge) => (vec![bridge.clone()], true),
        DetectLocal::InterfaceNamePrefix(prefix) => (numbered(prefix), false),
        DetectLocal::ClusterCidr | DetectLocal::NodeCidr => (numbered("cali"), false),
    };
    let uplink = ["ens3", "uplink0", "wan0"].into_iter().find(|name| !detect.takes_for_pods(name));
    let mut names = vec![uplink.unwrap_or("x0").to_owned()];
    names.extend(pods);
    (names, shared)
}

/// `address` with another last byte.
pub(in crate::lab) fn with_last(address: IpAddr, last: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, last))
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[15] = last;
            IpAddr::V6(octets.into())
        }
    }
}
