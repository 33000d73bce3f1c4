//! Neighbour discovery (NB-01): IPv6's counterpart of ARP. What it says is decided by
//! [`discovery`]; this takes the message out of its packet and does as decided.

use super::host::{ORIGINATED, is_addressed_to, pass_on, responder};
use super::observe::Observer;
use super::{Output, Pass};
use crate::packet::ethernet::Ethernet;
use crate::packet::ndp::{self, Ndp};
use crate::packet::parse::Headers;
use crate::packet::{Packet, V6};
use crate::route::Said;
use crate::route::discovery::{self, Lesson, Station};
use crate::stats::Reason;
use crate::tables::Role;

impl<O: Output, T: Observer> Pass<'_, V6, O, T> {
    /// Takes the packets of neighbour discovery out of those to forward: solicitations and advertisements are
    /// learnt from and answered, as [`arp`](super::host) does; the messages of routers are the node's own stack's
    /// (FW-06).
    pub(super) fn take_discovery(&mut self, packet: Packet, headers: &Headers<V6>) -> Option<Packet> {
        if !ndp::is_discovery(headers) {
            return Some(packet);
        }
        self.discovery(packet, headers);
        None
    }

    #[cold]
    fn discovery(&mut self, packet: Packet, headers: &Headers<V6>) {
        let id = packet.port;
        let Some(port) = self.ports.get(id) else {
            return self.drop(packet, Reason::PortDown);
        };
        if port.role == Role::Host {
            return self.drop(packet, Reason::NotForPollux);
        }
        let link = Ethernet::new_checked(packet.head()).filter(|_| is_addressed_to(port, &packet));
        let Some(link) = link else {
            return self.drop(packet, Reason::OtherHost);
        };
        let message = match Ndp::new_checked(&packet, headers) {
            Ok(Some(message)) => message,
            Ok(None) => return pass_on(self.core, self.ports, packet, self.out, self.observer),
            Err(ndp::Invalid) => return self.drop(packet, Reason::NeighbourDiscovery),
        };
        let station = Station { port: id, link: port.link_address, responder: responder(port) };
        let routing = &self.tables.routing;
        let decision = discovery::decide(&message, link.source, &station, &routing.interfaces, &routing.fib);
        if let Some((answer, to)) = decision.answer
            && let Ok(answer) = answer.to_packet(self.core.pool, ORIGINATED, port.link_address, to)
        {
            self.core.stats.originated += 1;
            self.observer.leaves(id, &answer);
            self.out.send(id, answer);
        }
        match decision.learn {
            Some(Lesson::Asked(who, link, how)) => self.heard(id, who, Said::Link(link, how)),
            Some(Lesson::Advertised(target, said)) => self.heard(id, target, Said::Advertised(said)),
            None => {}
        }
        // The frame ends here: learnt from, answered, or the kernel's.
        self.core.leave_to_kernel(packet);
    }
}
