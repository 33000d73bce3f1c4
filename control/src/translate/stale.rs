//! Which UDP flows have lost their way (UP-03). TCP and SCTP end by themselves (UP-02); a UDP client that keeps
//! sending would keep its entry for ever, and with it the backend that is gone, or the decision of a time when
//! there was none.

use pollux_dataplane::flow::FlowKey;
use pollux_dataplane::packet::{Family, Protocol};
use pollux_dataplane::service::{Backend, Locality, Origin, Request};
use pollux_dataplane::tables::FamilyTables;

use super::ServicePorts;

/// Whether a flow with these tuples is to be deleted: it is UDP, its original destination is a frontend of a
/// service port that has serving endpoints, and it does not go to one of them. Where several service ports
/// answer on the destination, one after the other (FE-06), an endpoint of any of them is right.
///
/// kube-proxy takes a node port for one on any destination address; here it is one where it answers (FE-07).
pub fn is_stale<A: Family>(
    tables: &FamilyTables<A>,
    ports: &ServicePorts<A>,
    original: &FlowKey<A>,
    reply: &FlowKey<A>,
) -> bool {
    if original.protocol != Protocol::UDP {
        return false;
    }
    let is_local = tables.routing.interfaces.is_local(original.destination);
    let request = Request {
        source: original.source,
        destination: original.destination,
        destination_port: original.destination_port,
        protocol: original.protocol,
        // Neither of the two decides which frontends match.
        origin: Origin::Port,
        source_is_local: Locality::Remote,
        destination_is_local: if is_local { Locality::Local } else { Locality::Remote },
    };
    let backend = Backend { address: reply.source, port: reply.source_port };
    let mut has_serving = false;
    for (_, frontend) in tables.services.frontends_for(&request) {
        let Some(rules) = ports.get(frontend.service_port as usize) else { continue };
        if rules.serving.binary_search(&backend).is_ok() {
            return false;
        }
        has_serving |= !rules.serving.is_empty();
    }
    has_serving
}

#[cfg(test)]
#[path = "stale_tests.rs"]
mod tests;
