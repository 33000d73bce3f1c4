//! Who the parties of the sequences are, in addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pollux_dataplane::packet::Protocol;

use super::script::{Party, Transport};
use crate::cli::Failure;
use crate::cluster::Cluster;
use crate::lab::twins::scenario::{Family, Scenario};
use crate::lab::twins::site::Site;
use crate::lab::twins::wire::Place;

/// A port for protocols that no Service has, or parties without one.
const PORT: u16 = 4242;

/// The parties.
pub(super) struct Roles {
    pods: [IpAddr; 2],
    node: IpAddr,
    beyond: [IpAddr; 4],
    pub(super) router: IpAddr,
    web: Service,
    far: Service,
}

/// A Service with one endpoint.
struct Service {
    cluster_ip: IpAddr,
    endpoint: IpAddr,
    /// Protocol, port, node port, the endpoint's port.
    ports: Vec<(Protocol, u16, u16, u16)>,
}

impl Roles {
    /// The parties of a scenario, which has a Service `web` with an endpoint on the node and a Service `far`
    /// with one on another node.
    ///
    /// # Errors
    /// When it has not.
    pub(super) fn of(scenario: &Scenario, site: &Site) -> Result<Roles, Failure> {
        let v4 = scenario.family == Family::IPv4;
        let own = |address: &&IpAddr| address.is_ipv4() == v4;
        let beyond: [IpAddr; 5] = match v4 {
            true => [
                [198, 51, 100, 77],
                [198, 51, 100, 78],
                [203, 0, 113, 9],
                [198, 51, 100, 9],
                [203, 0, 113, 1],
            ]
            .map(|octets| Ipv4Addr::from(octets).into()),
            false => [0x77, 0x78, 0x99, 0x9, 0x1]
                .map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, last).into()),
        };
        let [client, client2, outside, marks, router] = beyond;
        let service = |name: &str| service(&scenario.cluster, name, v4);
        let node = scenario.local_addresses.iter().find(own);
        Ok(Roles {
            pods: site.idle_pods,
            node: *node.ok_or_else(|| Failure::bad_input("the node has no address of the family"))?,
            beyond: [client, client2, outside, marks],
            router,
            web: service("web")?,
            far: service("far")?,
        })
    }

    /// The endpoint of `web`.
    pub(super) fn web(&self) -> IpAddr {
        self.web.endpoint
    }

    /// Who begins a connection: address, port.
    pub(super) fn who(&self, party: Party, transport: Transport) -> (IpAddr, u16) {
        self.whom(party, transport).0
    }

    /// With whom one begins it, and who is to get it in the end.
    pub(super) fn whom(&self, party: Party, transport: Transport) -> ((IpAddr, u16), (IpAddr, u16)) {
        let alone = |address: IpAddr| ((address, PORT), (address, PORT));
        match party {
            Party::Pod => alone(self.pods[0]),
            Party::Pod2 => alone(self.pods[1]),
            Party::Client => alone(self.beyond[0]),
            Party::Client2 => alone(self.beyond[1]),
            Party::Outside => alone(self.beyond[2]),
            Party::Web => self.web.by_cluster_ip(transport),
            Party::Far => self.far.by_cluster_ip(transport),
            Party::Node => self.web.by_node_port(transport, self.node),
            Party::NodeFar => self.far.by_node_port(transport, self.node),
        }
    }

    /// From whom to whom a packet goes through a node that enters at `place` and is no sequence's.
    pub(super) fn mark(&self, place: Place, site: &Site) -> (IpAddr, IpAddr) {
        let outside = self.beyond[3];
        let behind = site
            .pods
            .iter()
            .find(|(pod, port)| place == Place::Port(**port) && pod.is_ipv4() == outside.is_ipv4());
        match behind {
            Some((pod, _)) => (*pod, outside),
            None => (outside, self.pods[0]),
        }
    }
}

impl Service {
    fn port(&self, transport: Transport) -> Option<(u16, u16, u16)> {
        let protocol = match transport {
            Transport::Tcp => Protocol::TCP,
            Transport::Udp => Protocol::UDP,
            Transport::Sctp => Protocol::SCTP,
            Transport::Icmp | Transport::Other(_) => return None,
        };
        let found = self.ports.iter().find(|(of, ..)| *of == protocol);
        found.map(|(_, port, node_port, target)| (*port, *node_port, *target))
    }

    fn by_cluster_ip(&self, transport: Transport) -> ((IpAddr, u16), (IpAddr, u16)) {
        let (port, _, target) = self.port(transport).unwrap_or((PORT, PORT, PORT));
        ((self.cluster_ip, port), (self.endpoint, target))
    }

    fn by_node_port(&self, transport: Transport, node: IpAddr) -> ((IpAddr, u16), (IpAddr, u16)) {
        let (_, node_port, target) = self.port(transport).unwrap_or((PORT, PORT, PORT));
        ((node, node_port), (self.endpoint, target))
    }
}

fn service(cluster: &Cluster, name: &str, v4: bool) -> Result<Service, Failure> {
    let lacking = || Failure::bad_input(format!("the sequences need a Service {name} of both families"));
    let service = cluster.services.values().find(|service| service.key.name == name).ok_or_else(lacking)?;
    let own = |address: &&IpAddr| address.is_ipv4() == v4;
    let cluster_ip = *service.cluster_ips.iter().find(own).ok_or_else(lacking)?;
    let mut slices = cluster.slices.values().filter(|slice| slice.service.as_ref() == Some(&service.key));
    let slice = slices
        .find(|slice| slice.endpoints.first().is_some_and(|endpoint| endpoint.address.is_ipv4() == v4))
        .ok_or_else(lacking)?;
    let ports = service.ports.iter().map(|port| {
        let target =
            slice.ports.iter().find(|target| target.name == port.name).map_or(0, |target| target.port);
        (port.protocol, port.port, port.node_port.unwrap_or(0), target)
    });
    Ok(Service { cluster_ip, endpoint: slice.endpoints[0].address, ports: ports.collect() })
}
