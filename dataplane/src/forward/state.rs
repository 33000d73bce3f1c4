//! What a worker keeps of an address family between packets: connections and clients, which its siblings share, and
//! neighbours, fragments and stamps of its own. What new tables and vanished ports mean for them stands here.

use std::io;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

use super::established::Way;
use super::observe::Nobody;
use super::orphans::Orphans;
use super::{Core, NextHop, Settings};
use crate::flow::{FlowTable, NextHopRef};
use crate::nat::fragments::{Fragments, Limits};
use crate::packet::Family;
use crate::route::{Changed, NeighbourEvent, Neighbours, Stamps};
use crate::service::{Clients, Services};
use crate::stats::Reason;
use crate::tables::{FamilyTables, Ports};

/// What a family keeps between packets.
pub(super) struct State<A: Family> {
    /// Shared with who lists and removes connections without the worker.
    pub(super) flows: Arc<FlowTable<A>>,
    /// Shared too: a client's connections come to any worker.
    pub(super) clients: Arc<Clients<A>>,
    pub(super) neighbours: Neighbours<A>,
    pub(super) fragments: Fragments<A>,
    /// Changes of routing: a flow whose next hop was found under another stamp of its destination looks again.
    pub(super) stamps: Stamps,
    /// Masqueraded connections that an interface's end is to take along.
    pub(super) orphans: Orphans<A>,
    /// Whether neighbours' events are being worked off: what that gives rise to is left to the same loop.
    pub(super) working_off: bool,
}

impl<A: Family> State<A> {
    pub(super) fn new(settings: &Settings, random: &mut StdRng) -> io::Result<State<A>> {
        Ok(State {
            flows: Arc::new(FlowTable::with_sysctls(
                settings.connections,
                random.random(),
                settings.timeouts.clone(),
                settings.sysctls,
            )?),
            clients: Arc::new(Clients::new(settings.clients)),
            neighbours: Neighbours::default(),
            fragments: Fragments::new(Limits::of::<A>()),
            stamps: Stamps::default(),
            orphans: Orphans::default(),
            working_off: false,
        })
    }

    /// The state of another worker on the same connections.
    pub(super) fn sibling(&self, number: u8) -> State<A> {
        State {
            flows: Arc::clone(&self.flows),
            clients: Arc::clone(&self.clients),
            neighbours: Neighbours::default(),
            fragments: Fragments::new(self.fragments.limits()),
            stamps: Stamps::of_worker(number),
            orphans: Orphans::default(),
            working_off: false,
        }
    }

    /// What an entry's next hop stands for.
    pub(super) fn destination_of(&self, next_hop: NextHopRef) -> NextHop<A> {
        if !self.stamps.are_of(next_hop.generation) {
            return NextHop::Unknown;
        }
        match Way::of(next_hop) {
            Way::Host => NextHop::Host,
            Way::Port(id) => match self.neighbours.get(id) {
                Some(neighbour) => NextHop::Neighbour(neighbour.port, neighbour.address),
                None => NextHop::Unknown,
            },
        }
    }

    pub(super) fn routing_changed(
        &mut self,
        ports: bool,
        old: Option<&FamilyTables<A>>,
        new: Option<&FamilyTables<A>>,
    ) {
        match (old, new) {
            (None, None) => {}
            (Some(old), Some(new)) if Arc::ptr_eq(&old.routing, &new.routing) && !ports => {}
            (Some(old), Some(new)) => {
                match new.routing.fib.changed_since(&old.routing.fib) {
                    _ if ports => self.stamps.renew_all(),
                    Changed::Nothing => {}
                    Changed::Prefixes(prefixes) => {
                        prefixes.iter().for_each(|prefix| self.stamps.renew(*prefix));
                    }
                    Changed::Everything => self.stamps.renew_all(),
                }
                self.orphans.interfaces_changed(&old.routing.interfaces, &new.routing.interfaces);
            }
            _ => self.stamps.renew_all(),
        }
    }

    /// AF-02: forgets the clients of endpoints that are gone. Looks at what the snapshots do not share.
    pub(super) fn services_changed(&mut self, old: Option<&FamilyTables<A>>, new: Option<&FamilyTables<A>>) {
        let Some(old) = old else { return };
        match new {
            Some(new) => self.clients.forget(old.services.departed(&new.services)),
            None => self.clients.forget(old.services.departed(&Services::default())),
        }
    }

    /// Forgets the neighbours of ports that are gone, or whose number another port has now.
    pub(super) fn ports_changed(&mut self, old: &Ports, new: &Ports) {
        for (id, before) in old.iter() {
            if new.get(id).is_none_or(|port| port.name != before.name) {
                self.neighbours.remove_port(id);
            }
        }
        for (id, port) in new.iter() {
            self.neighbours.set_port(id, port.link_address, port.mtu);
        }
    }

    /// The family is no longer forwarded: what still waits, for neighbours or first fragments, waits in vain.
    pub(super) fn let_go(&mut self, ports: &Ports, core: &mut Core) {
        self.fragments
            .clear(Reason::Unsupported, &mut |packet, reason| core.drop(packet, reason, &mut Nobody));
        if self.neighbours.held() == 0 {
            return;
        }
        for (id, port) in ports.iter() {
            self.neighbours.remove_port(id);
            self.neighbours.set_port(id, port.link_address, port.mtu);
        }
        while let Some(event) = self.neighbours.next_event() {
            if let NeighbourEvent::Failed(packet, _) | NeighbourEvent::Release(_, packet) = event {
                core.drop(packet, Reason::Unsupported, &mut Nobody);
            }
        }
    }
}
