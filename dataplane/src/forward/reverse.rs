//! The reverse path filter (FW-03): whether answers to a packet's source would leave by the port that it came in
//! by. Asked about every packet of a port that has it on, of known connections too, as the kernel does; the
//! express way is closed to those, and ports without it pay nothing.

use super::observe::Observer;
use super::{Output, Pass};
use crate::packet::parse::Headers;
use crate::packet::{Address, Family, PortId};
use crate::route::{Interface, RouteKind};
use crate::tables::ReversePath;

impl<A: Family, O: Output, T: Observer> Pass<'_, A, O, T> {
    /// Whether the packet may have come in by `port`, in the words of the kernel's `fib_validate_source`. Sources
    /// that no packet may have are somebody else's to refuse, and of link-local ones no route tells the link.
    #[cold]
    pub(super) fn comes_the_right_way(&self, headers: &Headers<A>, port: PortId, mode: ReversePath) -> bool {
        let source = headers.source;
        if source.is_unspecified() || source.is_loopback() || source.is_multicast() || source.stays_on_link()
        {
            return true;
        }
        let routing = &self.tables.routing;
        match routing.fib.lookup(source).map(|route| &route.kind) {
            Some(kind) if kind.is_of_local_table() => true,
            Some(kind) if kind.next_hops().any(|hop| hop.port == port) => true,
            // Loose wants a way back and does not ask which; an interface without addresses is always strict.
            Some(RouteKind::Via(_) | RouteKind::Multipath(_) | RouteKind::Host) => {
                let addresses = routing.interfaces.of_port(port).map_or(&[][..], Interface::addresses);
                mode == ReversePath::Loose && !addresses.is_empty()
            }
            _ => false,
        }
    }
}
