//! Where the agents are: slave1's interfaces and their far ends, and the backends that open them.
//!
//! ```text
//! far (no addresses; raw frames)     slave1 (no addresses: its kernel has nothing to say)
//!   ens3     ──────────────────────  ens3
//!   pod7     ──────────────────────  cali566211caf94
//!   pod8     ──────────────────────  caliee93b0bdd66
//!   docker   ──────────────────────  docker0
//!                                    pollux0, the TAP that the agent makes: a socket on itself
//! ```

use std::sync::Arc;

use pollux_control::kernel;
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::Privilege;
use pollux_control::lab::{Device, End, Kind, Network, Node, Plan};
use pollux_dataplane::packet::LinkAddr;
use pollux_tests::seed::{link, port};

/// How an agent's ports are opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backend {
    pub(super) name: &'static str,
    /// Lines of the configuration for a port that is an interface; empty: every port is in memory.
    lines: &'static [&'static str],
    /// The largest number of workers.
    pub(super) workers: usize,
    /// Whether its ports carry partial checksums both ways.
    pub(super) partial: Partial,
    /// What it takes of the machine.
    needs: Needs,
}

/// What becomes of partial checksums (PT-04).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Partial {
    /// They leave as they came.
    Carried,
    /// They are found out, leave as they came by the host port's TAP, and are completed elsewhere.
    ByTheHostPort,
    /// They are completed.
    Completed,
}

/// Whose authority a backend needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    /// That over its own namespaces.
    Namespace,
    /// That over the machine: bpf().
    Root,
}

/// All of them.
pub(super) const BACKENDS: [Backend; 3] = [
    Backend { name: "memory", lines: &[], workers: 2, partial: Partial::Completed, needs: Needs::Namespace },
    Backend {
        name: "af_packet",
        lines: &["backend: af_packet"],
        workers: 2,
        partial: Partial::Carried,
        needs: Needs::Namespace,
    },
    Backend {
        name: "af_xdp",
        lines: &["backend: af_xdp", "xdp: {ring: 128}"], // all of them in one pool
        workers: 2,
        partial: Partial::ByTheHostPort,
        needs: Needs::Root,
    },
];

impl Backend {
    pub(super) fn is_memory(&self) -> bool {
        self.lines.is_empty()
    }

    /// The configuration of a port.
    pub(super) fn port(&self, name: &str) -> String {
        match (self.is_memory(), name) {
            (true, _) => "backend: memory".to_owned(),
            (false, port::HOST) => "backend: tap".to_owned(),
            (false, _) => self.lines.join("\n").replace("PORT", name),
        }
    }

    pub(super) fn is_allowed(&self, privilege: Privilege) -> bool {
        match self.needs {
            Needs::Namespace => true,
            Needs::Root => privilege == Privilege::Root,
        }
    }
}

/// slave1 and the far ends of its wires.
#[derive(Clone, Debug)]
pub(super) struct Site(Arc<Network>);

const SLAVE1: &str = "slave1";
const FAR: &str = "far";

/// A wire: the interface on slave1, its link address, its MTU, the far end's name.
const WIRES: [(&str, [u8; 6], u32, &str); 4] = [
    (port::ENS3, link::ENS3, 1500, "ens3"),
    (port::POD_7, link::CALI, 1480, "pod7"),
    (port::POD_8, link::CALI, 1480, "pod8"),
    (port::DOCKER, link::DOCKER, 1500, "docker"),
];

impl Site {
    /// Lays the wires.
    pub(super) fn build() -> Result<Site, kernel::Error> {
        let (mut slave1, mut far) = (Node::new(SLAVE1), Node::new(FAR));
        for (interface, link, mtu, end) in WIRES {
            let cable = Kind::Cable(End::new(FAR, end));
            slave1 = slave1.device(Device::new(interface, cable).link_address(LinkAddr(link)).mtu(mtu));
            far = far.device(Device::new(end, Kind::FarEnd).mtu(mtu));
        }
        Ok(Site(Arc::new(Network::build(&Plan { nodes: vec![slave1, far] }, "w-")?)))
    }

    /// Where agents are started.
    pub(super) fn slave1(&self) -> &Netns {
        self.0.node(SLAVE1)
    }

    /// The far end of a port: where its interface is.
    pub(super) fn far_end(&self, port: &str) -> (&Netns, String) {
        match WIRES.iter().find(|(interface, ..)| *interface == port) {
            Some((.., end)) => (self.0.node(FAR), (*end).to_owned()),
            None => (self.slave1(), port.to_owned()),
        }
    }
}
