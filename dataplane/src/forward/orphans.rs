//! CT-13: a masqueraded connection ends when its output interface goes down or loses the address that it uses; its
//! next packet begins a new one, with a fresh source. (What routing moves is noticed at the next packet:
//! `established.rs`.)
//!
//! An interface's end is rare, and which connections it concerns is written down nowhere: the table is walked, a
//! slice between bursts. Each worker walks it, and ends what it knows: the way of a connection is told by a number of
//! the worker that found it.

use super::{NextHop, State};
use crate::flow::FlowInfo;
use crate::packet::{Family, PortId};
use crate::route::source::LinkState;
use crate::route::{Interface, Interfaces};
use crate::tables::FamilyTables;
use crate::time::Instant;

/// Connections looked at in a tick while there is something to look for: a million within 3 s of an idle node,
/// much sooner on a busy one.
const SLICE: usize = 2048;

/// More than this is not remembered one by one: then every masqueraded connection is asked whether its
/// source is still the node's.
const REMEMBERED: usize = 256;

/// What was lost since the walk began, and how far that is.
#[derive(Debug)]
pub(super) struct Orphans<A: Family> {
    lost: Vec<Lost<A>>,
    cursor: usize,
    /// Something was lost behind the walk's back: it goes round once more.
    again: bool,
}

impl<A: Family> Default for Orphans<A> {
    fn default() -> Self {
        Orphans { lost: Vec::new(), cursor: 0, again: false }
    }
}

/// What masqueraded connections may have depended on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lost<A: Family> {
    /// The interface behind a port: it is down, or gone.
    Port(PortId),
    /// An address, of the interface behind this port.
    Address(A::Addr, Option<PortId>),
    /// Too much to tell.
    Something,
}

impl<A: Family> Orphans<A> {
    /// Compares two states of the node's interfaces.
    pub(super) fn interfaces_changed(&mut self, old: &Interfaces<A>, new: &Interfaces<A>) {
        if std::ptr::eq(old, new) {
            return;
        }
        let before = self.lost.len();
        for interface in old.iter() {
            let now = new.iter().find(|other| other.name == interface.name);
            let was_up = interface.link != LinkState::Down;
            if let Some(port) = interface.port.filter(|_| was_up && now.is_none_or(is_down)) {
                self.lost.push(Lost::Port(port));
            }
            let has =
                |address| now.is_some_and(|now| now.addresses().iter().any(|other| other.address == address));
            for address in interface.addresses().iter().filter(|own| !has(own.address)) {
                self.lost.push(Lost::Address(address.address, interface.port));
            }
        }
        if self.lost.len() > before {
            self.again = self.cursor > 0;
        }
        if self.lost.len() > REMEMBERED {
            self.lost = vec![Lost::Something];
        }
    }
}

fn is_down<A: Family>(interface: &Interface<A>) -> bool {
    interface.link == LinkState::Down
}

impl<A: Family> State<A> {
    /// Ends some of the connections that lost what they depended on.
    pub(super) fn end_orphans(&mut self, tables: Option<&FamilyTables<A>>, now: Instant) {
        if self.orphans.lost.is_empty() {
            return;
        }
        let (flows, next) = self.flows.list(self.orphans.cursor, SLICE, now.into());
        for flow in flows.iter().filter(|flow| self.is_orphan(flow, tables)) {
            self.flows.remove(flow.entry);
        }
        match next {
            Some(cursor) => self.orphans.cursor = cursor,
            None if self.orphans.again => (self.orphans.cursor, self.orphans.again) = (0, false),
            None => self.orphans = Orphans::default(),
        }
    }

    fn is_orphan(&self, flow: &FlowInfo<A>, tables: Option<&FamilyTables<A>>) -> bool {
        let source = flow.reply.destination;
        if source == flow.original.source {
            return false; // not masqueraded
        }
        let out = match self.destination_of(flow.original_next_hop) {
            NextHop::Neighbour(port, _) => Some(port),
            NextHop::Host | NextHop::Unknown => None,
        };
        let is_gone = |address| tables.is_none_or(|tables| !tables.routing.interfaces.is_local(address));
        self.orphans.lost.iter().any(|lost| match *lost {
            Lost::Port(port) => out == Some(port),
            Lost::Address(address, port) => {
                source == address && ((port.is_some() && out == port) || is_gone(address))
            }
            Lost::Something => is_gone(source),
        })
    }
}
