//! Nodes, cables and routes as data, and the namespaces made of them.
//!
//! A plan is written in the words of `ip address` and `ip route`, so that it reads like the output it
//! imitates. Devices of a node are created in the order in which they are listed, because the kernel's choice
//! of a masquerade source follows that order (NAT-04). IPv6 is off where a node's settings do not switch it
//! on: its router and neighbour solicitations would be noise in the captures.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;

use pollux_dataplane::packet::LinkAddr;

use super::{open_in, sys};
use crate::kernel::Error;
use crate::kernel::netns::Netns;
use crate::kernel::sandbox::require_tun;

/// A network: nodes, and in them the ends of cables.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Nodes, in the order of their creation.
    pub nodes: Vec<Node>,
}

/// A machine, a pod or a switch: one network namespace.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, unique in the plan.
    pub name: String,
    /// Devices, in the order of their creation; `lo` exists by itself.
    pub devices: Vec<Device>,
    /// What stands behind `ip route add`, one route each; connected routes exist by themselves.
    pub routes: Vec<String>,
    /// Whether the kernel forwards IPv4 here.
    pub forwarding: Forwarding,
    /// Further settings: path below `/proc/sys`, value.
    pub settings: Vec<(String, String)>,
}

/// Whether the kernel forwards packets in a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forwarding {
    /// It does not: an end host, or a node whose forwarder is Pollux.
    Off,
    /// It does.
    Kernel,
}

/// A network device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Interface name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The interface index that it is to have, where the kernel lets us choose.
    pub index: Option<u32>,
    /// Link address; the kernel's choice if none is given.
    pub link_address: Option<LinkAddr>,
    /// MTU, bytes.
    pub mtu: u32,
    /// What stands behind `ip address add`.
    pub addresses: Vec<String>,
    /// The bridge of the same node that it is a port of.
    pub bridge: Option<String>,
    /// Further settings, below `/proc/sys/net/ipv4/conf/NAME` and `/proc/sys/net/ipv4/neigh/NAME`.
    pub settings: Vec<(&'static str, &'static str)>,
}

/// Kinds of devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One end of a cable (a veth pair) that this end lays. The far end is listed at its own node.
    Cable(End),
    /// The far end of a cable that another device lays.
    FarEnd,
    /// A bridge.
    Bridge,
    /// An IPIP device for all peers, with this local address; where the kernel has none, a TUN or a veth
    /// device, with the same routes and addresses but nothing behind it.
    Ipip {
        /// The underlay address.
        local: String,
    },
}

/// A device of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct End {
    /// The node's name.
    pub node: String,
    /// The interface's name.
    pub device: String,
}

impl End {
    /// This device of this node.
    pub fn new(node: impl Into<String>, device: impl Into<String>) -> End {
        End { node: node.into(), device: device.into() }
    }
}

impl Device {
    /// A device with an MTU of 1500 bytes and nothing else set.
    pub fn new(name: impl Into<String>, kind: Kind) -> Device {
        Device {
            name: name.into(),
            kind,
            index: None,
            link_address: None,
            mtu: 1500,
            addresses: Vec::new(),
            bridge: None,
            settings: Vec::new(),
        }
    }

    /// With this link address.
    pub fn link_address(mut self, address: LinkAddr) -> Device {
        self.link_address = Some(address);
        self
    }

    /// With this interface index, where the kernel lets us choose.
    pub fn index(mut self, index: u32) -> Device {
        self.index = Some(index);
        self
    }

    /// With this MTU, bytes.
    pub fn mtu(mut self, bytes: u32) -> Device {
        self.mtu = bytes;
        self
    }

    /// With one more address, as `ip address add` takes it.
    pub fn address(mut self, address: impl Into<String>) -> Device {
        self.addresses.push(address.into());
        self
    }

    /// As a port of this bridge of the same node.
    pub fn bridge(mut self, bridge: impl Into<String>) -> Device {
        self.bridge = Some(bridge.into());
        self
    }

    /// As Calico sets its host sides: the kernel, if it forwards, answers ARP for every address that it has
    /// a route to, at once.
    pub fn proxy_arp(mut self) -> Device {
        self.settings.extend([("conf/proxy_arp", "1"), ("neigh/proxy_delay", "0")]);
        self
    }
}

impl Node {
    /// A node without devices, in which nobody forwards.
    pub fn new(name: impl Into<String>) -> Node {
        Node {
            name: name.into(),
            devices: Vec::new(),
            routes: Vec::new(),
            forwarding: Forwarding::Off,
            settings: Vec::new(),
        }
    }

    /// With one more device.
    pub fn device(mut self, device: Device) -> Node {
        self.devices.push(device);
        self
    }

    /// With one more route, as `ip route add` takes it.
    pub fn route(mut self, route: impl Into<String>) -> Node {
        self.routes.push(route.into());
        self
    }

    /// With this forwarding.
    pub fn forwarding(mut self, forwarding: Forwarding) -> Node {
        self.forwarding = forwarding;
        self
    }

    /// With one more setting: path below `/proc/sys`, value.
    pub fn setting(mut self, path: impl Into<String>, value: impl Into<String>) -> Node {
        self.settings.push((path.into(), value.into()));
        self
    }
}

impl Plan {
    /// The node of this name.
    pub fn node_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    fn device(&self, end: &End) -> Option<&Device> {
        let node = self.nodes.iter().find(|node| node.name == end.node)?;
        node.devices.iter().find(|device| device.name == end.device)
    }

    /// Every cable has two listed ends, every far end one cable, every name is there once.
    fn check(&self) -> Result<(), Error> {
        let mut ends: HashMap<End, Option<u32>> = HashMap::new();
        for node in &self.nodes {
            for device in &node.devices {
                let cables = (device.kind == Kind::FarEnd).then_some(0);
                if ends.insert(End::new(&node.name, &device.name), cables).is_some() {
                    return Err(Error::Invalid(format!("two devices {} in node {}", device.name, node.name)));
                }
            }
        }
        for node in &self.nodes {
            for device in &node.devices {
                let Kind::Cable(end) = &device.kind else { continue };
                match ends.get_mut(end) {
                    Some(Some(cables)) => *cables += 1,
                    _ => {
                        let (name, far) = (&device.name, &end.device);
                        return Err(Error::Invalid(format!(
                            "{name} of {} leads to {far} of {}, which is not listed as a far end",
                            node.name, end.node
                        )));
                    }
                }
            }
        }
        match ends.iter().find(|(_, cables)| cables.is_some_and(|cables| cables != 1)) {
            Some((end, _)) => {
                Err(Error::Invalid(format!("{} of {} needs exactly one cable", end.device, end.node)))
            }
            None => Ok(()),
        }
    }
}

/// A built network. Its namespaces, and all that is in them, end with it.
#[derive(Debug)]
pub struct Network {
    nodes: HashMap<String, Netns>,
    stand_ins: Vec<StandIn>,
}

impl Network {
    /// Makes the namespaces of a plan, named `prefix` and the node's name, cables and configures them.
    ///
    /// # Errors
    /// When the plan contradicts itself, when the kernel or `ip` refuses something. What was made by then is
    /// removed.
    pub fn build(plan: &Plan, prefix: &str) -> Result<Network, Error> {
        plan.check()?;
        let mut network = Network { nodes: HashMap::new(), stand_ins: Vec::new() };
        for node in &plan.nodes {
            let name = format!("{prefix}{}", node.name);
            let netns = Netns::add(&name)?;
            if network.nodes.insert(node.name.clone(), netns).is_some() {
                return Err(Error::Invalid(format!("two nodes named {}", node.name)));
            }
            network.prepare(node)?;
        }
        for node in &plan.nodes {
            network.create_devices(plan, node)?;
        }
        for node in &plan.nodes {
            network.configure_devices(node)?;
        }
        // Last, when every device is up: routes need their devices so.
        for node in &plan.nodes {
            let lines = node.routes.iter().fold(String::new(), |mut lines, route| {
                let _ = writeln!(lines, "route add {route}");
                lines
            });
            network.node(&node.name).ip(&lines)?;
        }
        Ok(network)
    }

    /// The namespace of a node.
    ///
    /// # Panics
    /// When the plan has no node of this name: a mistake of the program, not of its user.
    pub fn node(&self, name: &str) -> &Netns {
        self.nodes.get(name).unwrap_or_else(|| panic!("the plan has no node {name}"))
    }

    /// Whether other devices had to stand for IPIP devices.
    pub fn has_stand_ins(&self) -> bool {
        !self.stand_ins.is_empty()
    }

    /// Settings that must be there before the first device.
    fn prepare(&self, node: &Node) -> Result<(), Error> {
        let forward = match node.forwarding {
            Forwarding::Off => "0",
            Forwarding::Kernel => "1",
        };
        let netns = self.node(&node.name);
        netns.set_sysctl("net/ipv4/ip_forward", forward)?;
        // A hairpin makes the kernel send redirects, which no walk has.
        for which in ["all", "default"] {
            netns.set_sysctl(&format!("net/ipv4/conf/{which}/send_redirects"), "0")?;
        }
        // Of what the kernel may have been built without. A bridge of the lab is a switch: no netfilter in it.
        for (path, value) in [
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
            ("net/bridge/bridge-nf-call-iptables", "0"),
        ] {
            if netns.sysctl(path).is_ok() {
                netns.set_sysctl(path, value)?;
            }
        }
        node.settings.iter().try_for_each(|(path, value)| netns.set_sysctl(path, value))
    }

    fn create_devices(&mut self, plan: &Plan, node: &Node) -> Result<(), Error> {
        for device in &node.devices {
            let netns = &self.nodes[&node.name];
            match &device.kind {
                Kind::FarEnd => {}
                Kind::Bridge => {
                    netns.ip(&format!("link add {} type bridge", link(device)))?;
                }
                Kind::Cable(end) => {
                    let far = plan.device(end).expect("checked before");
                    let there = self.nodes[&end.node].name().expect("made with a name");
                    netns.ip(&format!(
                        "link add {} type veth peer name {} netns {there}",
                        link(device),
                        link(far)
                    ))?;
                }
                Kind::Ipip { local } => {
                    self.stand_ins.extend(tunnel(netns, device, local)?);
                }
            }
        }
        Ok(())
    }

    fn configure_devices(&self, node: &Node) -> Result<(), Error> {
        let netns = self.node(&node.name);
        let mut lines = String::new();
        for device in &node.devices {
            let name = &device.name;
            for (path, value) in &device.settings {
                let (kind, setting) = path.split_once('/').expect("conf/… or neigh/…");
                netns.set_sysctl(&format!("net/ipv4/{kind}/{name}/{setting}"), value)?;
            }
            for address in &device.addresses {
                let _ = writeln!(lines, "address add {address} dev {name}");
            }
            if let Some(bridge) = &device.bridge {
                let _ = writeln!(lines, "link set {name} master {bridge}");
            }
            let _ = writeln!(lines, "link set {name} up");
        }
        netns.ip(&lines)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (_, netns) in self.nodes.drain() {
            // It ends with the sandbox in any case.
            let _ = netns.delete();
        }
    }
}

/// The part of `ip link add` that says what a device is called and how it looks.
fn link(device: &Device) -> String {
    let mut text = device.name.clone();
    if let Some(index) = device.index {
        let _ = write!(text, " index {index}");
    }
    if let Some(address) = device.link_address {
        let _ = write!(text, " address {address}");
    }
    let _ = write!(text, " mtu {}", device.mtu);
    text
}

/// What stands for an IPIP device that the kernel cannot make.
#[derive(Debug)]
enum StandIn {
    /// A TUN device, which lives as long as its file.
    Tun { _file: File },
    /// A veth device, whose other end nobody reads: where users may not open `/dev/net/tun`.
    Veth,
}

/// The IPIP device, or another in its place: one that has the name, the address and the MTU.
fn tunnel(netns: &Netns, device: &Device, local: &str) -> Result<Option<StandIn>, Error> {
    let name = &device.name;
    // The kernel's module makes a tunl0 in every namespace by itself, for all peers: then it is there.
    let present = netns.run(|| nix::net::if_::if_nametoindex(name.as_str()).is_ok())?;
    let made = present || netns.ip(&format!("tunnel add {name} mode ipip local {local}")).is_ok();
    let stand_in = if made {
        None
    } else if let Err(lacking) = require_tun() {
        let far = format!("{name}-far");
        let lines = format!("link add {} type veth peer name {far}\nlink set {far} up", link(device));
        netns.ip(&lines).map_err(|_| lacking)?;
        Some(StandIn::Veth)
    } else {
        let opened = open_in(netns, || sys::tun_device(name, device.index));
        let failed = |error| Error::system(format!("cannot make the TUN device {name}"), error);
        Some(StandIn::Tun { _file: opened.map_err(failed)? })
    };
    netns.ip(&format!("link set {name} mtu {}", device.mtu))?;
    Ok(stand_in)
}
