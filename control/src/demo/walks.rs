//! The walks that the demo shows, as data.

use std::net::Ipv4Addr;

use crate::lab::seed::{MYAPP, MYAPP_PORT, POD_49_8, POD_51_7, POD_51_8, Pod, SLAVE1, SLAVE1_ADDRESS};

/// One kind of walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// As the specification calls it.
    pub(super) name: &'static str,
    /// What it is.
    pub(super) title: &'static str,
    /// What is to be seen.
    pub(super) shows: &'static str,
    /// Where it begins: a node of the plan.
    pub(super) node: &'static str,
    /// Address there, and port or echo identifier.
    pub(super) from: (Ipv4Addr, u16),
    /// Whom it calls.
    pub(super) to: Ipv4Addr,
    /// What is sent, and what comes of it.
    pub(super) call: Call,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// A TCP connection to port 80 that this pod answers; of a Service's backends it is chosen.
    Tcp(Pod),
    /// An echo request with this sequence number, which nobody answers.
    Ping(u16),
}

/// In the order in which they are shown.
pub(super) const WALKS: [Walk; 7] = [
    Walk {
        name: "W1",
        title: "host → Service, backend on this node",
        shows: "A process on slave1 calls the Service. Its packets are marked, since they come from no pod, \
                and masqueraded; the address is the node's own already, the port is kept.",
        node: SLAVE1,
        from: (SLAVE1_ADDRESS, 56060),
        to: MYAPP,
        call: Call::Tcp(POD_51_8),
    },
    Walk {
        name: "W2",
        title: "host → Service, backend on another node",
        shows: "The same call, but the backend is a pod of slave2: out of ens3 to slave2's link address.",
        node: SLAVE1,
        from: (SLAVE1_ADDRESS, 55972),
        to: MYAPP,
        call: Call::Tcp(POD_49_8),
    },
    Walk {
        name: "W3",
        title: "host pings the Service",
        shows: "A ClusterIP is no machine: no rule is about ICMP, so the packet takes the default route to \
                the gateway with its destination unchanged, and nobody answers.",
        node: SLAVE1,
        from: (SLAVE1_ADDRESS, 4935),
        to: MYAPP,
        call: Call::Ping(19),
    },
    Walk {
        name: "W4",
        title: "pod → Service, backend on the same node",
        shows: "From a pod nothing is marked: the backend sees the client's own address. One hop less to live.",
        node: POD_51_7.name,
        from: (POD_51_7.address, 40000),
        to: MYAPP,
        call: Call::Tcp(POD_51_8),
    },
    Walk {
        name: "W5",
        title: "pod → Service, backend on another node",
        shows: "The client's address is kept beyond the node too, because ClusterCIDR tells pods apart.",
        node: POD_51_7.name,
        from: (POD_51_7.address, 40001),
        to: MYAPP,
        call: Call::Tcp(POD_49_8),
    },
    Walk {
        name: "W6",
        title: "hairpin: a pod calls its own Service and is chosen itself",
        shows: "The packet goes back out of the port it came from. Its source must become the node's, or the \
                pod would answer itself directly; the answer comes back as 10.150.18.86.",
        node: POD_51_8.name,
        from: (POD_51_8.address, 40000),
        to: MYAPP,
        call: Call::Tcp(POD_51_8),
    },
    Walk {
        name: "W12",
        title: "pod → pod on another node, no Service",
        shows: "Tracked and routed, but not translated.",
        node: POD_51_7.name,
        from: (POD_51_7.address, 40002),
        to: POD_49_8.address,
        call: Call::Tcp(POD_49_8),
    },
];

impl Walk {
    /// The destination port, or an echo request's type and code.
    pub(super) fn destination_port(self) -> u16 {
        match self.call {
            Call::Tcp(_) => MYAPP_PORT,
            Call::Ping(_) => 8 << 8,
        }
    }
}
