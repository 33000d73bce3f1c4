//! ICMP errors about known connections: class RELATED (CT-02, NAT-07). What they quote names the entry
//! ([`crate::nat::icmp`]); they are translated and go the way of that entry's packets. No filter is asked (kube-proxy
//! lets RELATED pass as it does ESTABLISHED), and the connection does not notice. An error about nothing that is
//! known is INVALID (CT-08).

use super::established::Way;
use super::host::Wire;
use super::observe::{Event, Observer};
use super::{Output, Pass};
use crate::flow::Hit;
use crate::nat;
use crate::nat::icmp::Quote;
use crate::packet::Packet;
use crate::packet::icmp::is_redirect;
use crate::packet::parse::Headers;
use crate::service::Origin;
use crate::stats::Reason;

impl<A: Wire, O: Output, T: Observer> Pass<'_, A, O, T> {
    /// An ICMP error whose checksum is right.
    #[cold]
    pub(super) fn related(&mut self, packet: Packet, headers: &Headers<A>, origin: Origin) {
        let quote = Quote::read(&packet, headers);
        let Some((quote, hit)) = quote.and_then(|quote| Some((quote, self.quoted_entry(headers, &quote)?)))
        else {
            return self.invalid(packet, headers, origin, Reason::Invalid);
        };
        self.observer.see(Event::Related { direction: hit.direction() });
        if !hit.rewrite().is_identity() {
            // It would tell of a way to addresses that its receiver does not use.
            if is_redirect(headers) {
                return self.drop(packet, Reason::Redirect);
            }
            if !quote.is_translatable() {
                return self.drop(packet, Reason::IcmpQuote);
            }
        }
        self.forward_related(packet, headers, origin, &quote, &hit);
    }

    /// The entry of the direction in which the error goes. The error has to go to whom the quoted packet came from:
    /// with any other destination, everybody who knows of a connection could call his packets related to it.
    fn quoted_entry(&self, headers: &Headers<A>, quote: &Quote<A>) -> Option<Hit<A>> {
        let hit = self.state.flows.lookup(&quote.key.reply())?;
        let live = self.state.flows.is_live(hit.entry, self.now.into());
        (live && headers.destination == quote.key.source).then_some(hit)
    }

    fn forward_related(
        &mut self,
        mut packet: Packet,
        headers: &Headers<A>,
        origin: Origin,
        quote: &Quote<A>,
        hit: &Hit<A>,
    ) {
        let current = self.way(hit).and_then(|way| match way {
            Way::Port(adjacency) if !self.state.neighbours.is_current(adjacency) => self.reroute(hit),
            way => Ok(way),
        });
        let adjacency = match current {
            Ok(Way::Port(adjacency)) => adjacency,
            Ok(Way::Host) => {
                quote.translate(&hit.rewrite(), &mut packet, headers);
                return self.deliver(packet);
            }
            Err(refusal) => return self.refuse(packet, headers, refusal),
        };
        let Some(link) = self.link(adjacency) else {
            // As it came in: when its time has come it walks again.
            return self.hold(packet, headers, origin, headers.source, adjacency);
        };
        if let Err(refusal) = self.fits(&packet, headers, origin, link.mtu) {
            return self.refuse(packet, headers, refusal);
        }
        if origin != Origin::Host {
            nat::decrement_ttl(&mut packet, headers);
        }
        quote.translate(&hit.rewrite(), &mut packet, headers);
        if headers.packet_len() > link.mtu {
            return self.transmit_long(packet, headers, &link);
        }
        self.transmit(packet, &link);
    }
}
