//! The flow tables from outside of the workers' threads (CT-11): read where they lie, in pieces; what is to be
//! removed is removed by a worker, a few connections at a time, so that it waits for nobody.

use std::ops::ControlFlow;
use std::sync::Arc;

use pollux_dataplane::flow::{EntryRef, FlowInfo, FlowTable, Tick};
use pollux_dataplane::forward::Forwarder;
use pollux_dataplane::packet::{Family, V4, V6};
use pollux_dataplane::tables::{FamilyTables, Tables};
use pollux_dataplane::worker::Stopped;

use super::team::Team;

/// Slots of a table that are looked at in one piece.
const PIECE: usize = 512;

/// Connections that the worker removes in one piece: some tens of microseconds.
const REMOVALS: usize = 64;

/// The flow tables that all workers share.
pub(super) struct FlowTables {
    v4: Arc<FlowTable<V4>>,
    v6: Arc<FlowTable<V6>>,
}

/// Picks a family's table.
pub(super) trait Tracked: Family {
    fn table(tables: &FlowTables) -> &Arc<FlowTable<Self>>;
    /// What the family is forwarded by, if it is.
    fn family(tables: &Tables) -> Option<&FamilyTables<Self>>;
}

impl Tracked for V4 {
    fn table(tables: &FlowTables) -> &Arc<FlowTable<V4>> {
        &tables.v4
    }

    fn family(tables: &Tables) -> Option<&FamilyTables<V4>> {
        tables.v4.as_ref()
    }
}

impl Tracked for V6 {
    fn table(tables: &FlowTables) -> &Arc<FlowTable<V6>> {
        &tables.v6
    }

    fn family(tables: &Tables) -> Option<&FamilyTables<V6>> {
        tables.v6.as_ref()
    }
}

impl FlowTables {
    pub(super) fn of(forwarder: &Forwarder) -> FlowTables {
        FlowTables { v4: Arc::clone(forwarder.flows_v4()), v6: Arc::clone(forwarder.flows_v6()) }
    }
}

/// Calls `see` with the connections of a table, piece by piece, until it breaks off.
pub(super) fn pieces<A: Tracked, B>(
    tables: &FlowTables,
    team: &Team,
    mut see: impl FnMut(Vec<FlowInfo<A>>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let (flows, next) = A::table(tables).list(from, PIECE, Tick::from(team.now()));
        cursor = next;
        see(flows)?;
    }
    ControlFlow::Continue(())
}

/// Whether the worker has removed what it was asked to.
pub(super) enum Removed {
    /// These were there and are gone now.
    Gone(Vec<EntryRef>),
    /// Nothing was removed: other tables are in force than those that the choice was made by.
    Overtaken,
}

/// Has a worker remove connections: only while `by` are the tables in force, if they are given. It is the first
/// worker, which has new tables before the others ([`Team::put_in_force`]).
///
/// # Errors
/// When the worker has stopped.
pub(super) fn remove<A: Tracked>(
    tables: &FlowTables,
    team: &Team,
    flows: &[EntryRef],
    by: Option<&Arc<Tables>>,
) -> Result<Removed, Stopped> {
    let mut gone = Vec::with_capacity(flows.len());
    for some in flows.chunks(REMOVALS) {
        let (table, some, by) = (Arc::clone(A::table(tables)), some.to_vec(), by.cloned());
        let removed = team.first().ask(move |worker| {
            if by.is_some_and(|by| !Arc::ptr_eq(worker.forwarder().tables(), &by)) {
                return None;
            }
            Some(some.into_iter().filter(|flow| table.remove(*flow)).collect::<Vec<_>>())
        })?;
        match removed {
            Some(removed) => gone.extend(removed),
            None => return Ok(Removed::Overtaken),
        }
    }
    Ok(Removed::Gone(gone))
}

/// Whether these tables are in force with all workers: then every connection that is made from now on is made
/// by them, or by newer ones.
///
/// # Errors
/// When a worker has stopped.
pub(super) fn in_force(team: &Team, tables: &Arc<Tables>) -> Result<bool, Stopped> {
    let tables = Arc::clone(tables);
    let all = team.ask_all(move |worker| Arc::ptr_eq(worker.forwarder().tables(), &tables))?;
    Ok(all.into_iter().all(|is| is))
}
