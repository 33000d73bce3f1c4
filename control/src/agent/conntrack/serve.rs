//! The agent's side: lists, counts and deletes connections in pieces, and passes events on.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{never, select};
use jiff::Timestamp;
use pollux_dataplane::flow::{Counters, EventKind, FlowEvent, FlowInfo};
use pollux_dataplane::packet::{Family, Protocol, V4, V6};
use pollux_dataplane::stats::{Drops, Reason};

use super::super::admin::Client;
use super::super::shared::Shared;
use super::super::tracking::{self, Removed, Tracked};
use super::select::Selector;
use super::{Action, CountItem, CountersItem, EventItem, FlowFilter, Kind, SourcePortsItem, TrackedItem};

/// Events that may wait for a client.
const EVENTS: usize = 4096;

/// How often it is looked whether a client that is told events is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Pairs of node address and backend whose use of source ports is counted at a time.
const PAIRS: usize = 16 * 1024;

/// How a request ended.
pub(in crate::agent) enum Outcome {
    /// All was said.
    Done,
    /// The client is to be told why not.
    Refused(String),
}

const STOPPED: &str = "a worker has stopped";

/// Answers a request.
pub(in crate::agent) fn answer(
    client: &mut Client<'_>,
    shared: &Shared,
    action: &Action,
    filter: &FlowFilter,
    stop: &AtomicBool,
) -> io::Result<Outcome> {
    let selector = match Selector::new(filter) {
        Ok(selector) => selector,
        Err(problem) => return Ok(Outcome::Refused(problem)),
    };
    match action {
        Action::List => {
            list::<V4>(client, shared, &selector)?;
            list::<V6>(client, shared, &selector)?;
        }
        Action::Count => {
            let count = count::<V4>(shared, &selector) + count::<V6>(shared, &selector);
            client.item(&CountItem { count })?;
        }
        Action::Delete => {
            let deleted =
                delete::<V4>(client, shared, &selector)? && delete::<V6>(client, shared, &selector)?;
            if !deleted {
                return Ok(Outcome::Refused(STOPPED.to_owned()));
            }
        }
        Action::Events { kinds } => events(client, shared, &selector, kinds, stop)?,
        Action::Stats => match counters(shared) {
            Some(counters) => counters.iter().try_for_each(|item| client.item(item))?,
            None => return Ok(Outcome::Refused(STOPPED.to_owned())),
        },
        Action::SourcePorts { top } => {
            let mut ports = SourcePorts::default();
            ports.see::<V4>(shared, &selector);
            ports.see::<V6>(shared, &selector);
            ports.fullest(*top as usize).iter().try_for_each(|item| client.item(item))?;
        }
    }
    Ok(Outcome::Done)
}

fn chosen<'a, A: Family>(
    flows: &'a [FlowInfo<A>],
    selector: &'a Selector<'_>,
) -> impl Iterator<Item = &'a FlowInfo<A>> {
    flows.iter().filter(|flow| selector.selects(flow))
}

/// What a walk through a table came to.
fn walked(walk: ControlFlow<io::Error>) -> io::Result<()> {
    match walk {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

fn list<A: Tracked>(client: &mut Client<'_>, shared: &Shared, selector: &Selector<'_>) -> io::Result<()> {
    if !selector.has_family::<A>() {
        return Ok(());
    }
    walked(tracking::pieces::<A, _>(&shared.flows, &shared.team, |flows| {
        match chosen(&flows, selector).try_for_each(|flow| client.item(&TrackedItem::of(flow))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }))
}

fn count<A: Tracked>(shared: &Shared, selector: &Selector<'_>) -> u64 {
    if !selector.has_family::<A>() {
        return 0;
    }
    if selector.selects_all() {
        return A::table(&shared.flows).len() as u64;
    }
    let mut count = 0;
    let _ = tracking::pieces::<A, ()>(&shared.flows, &shared.team, |flows| {
        count += chosen(&flows, selector).count() as u64;
        ControlFlow::Continue(())
    });
    count
}

/// Says whether the worker was there to do it.
fn delete<A: Tracked>(client: &mut Client<'_>, shared: &Shared, selector: &Selector<'_>) -> io::Result<bool> {
    if !selector.has_family::<A>() {
        return Ok(true);
    }
    let mut is_there = true;
    walked(tracking::pieces::<A, _>(&shared.flows, &shared.team, |flows| {
        let chosen: Vec<_> = chosen(&flows, selector).collect();
        let entries: Vec<_> = chosen.iter().map(|flow| flow.entry).collect();
        let gone = match tracking::remove::<A>(&shared.flows, &shared.team, &entries, None) {
            Ok(Removed::Gone(gone)) => gone,
            Ok(Removed::Overtaken) => Vec::new(),
            Err(_) => {
                is_there = false;
                Vec::new()
            }
        };
        let mut gone = gone.into_iter().peekable();
        for flow in chosen {
            if gone.next_if_eq(&flow.entry).is_some()
                && let Err(error) = client.item(&TrackedItem::of(flow))
            {
                return ControlFlow::Break(error);
            }
        }
        ControlFlow::Continue(())
    }))?;
    Ok(is_there)
}

fn events(
    client: &mut Client<'_>,
    shared: &Shared,
    selector: &Selector<'_>,
    kinds: &[Kind],
    stop: &AtomicBool,
) -> io::Result<()> {
    let (table_v4, table_v6) = (V4::table(&shared.flows), V6::table(&shared.flows));
    let lost_so_far = || table_v4.events_lost() + table_v6.events_lost();
    let v4 = if selector.has_family::<V4>() { table_v4.subscribe(EVENTS) } else { never() };
    let v6 = if selector.has_family::<V6>() { table_v6.subscribe(EVENTS) } else { never() };
    let mut told = lost_so_far();
    let item = |kind: EventKind, flow: TrackedItem| {
        let kind = match kind {
            EventKind::New => Kind::New,
            EventKind::Update => Kind::Update,
            EventKind::Destroy => Kind::Destroy,
        };
        (kinds.is_empty() || kinds.contains(&kind)).then(|| EventItem::Event {
            kind,
            time: Timestamp::now(),
            flow,
        })
    };
    // What happened before is not told: the client knows from when on.
    client.flush()?;
    while !stop.load(Ordering::Acquire) {
        let event = select! {
            recv(v4) -> event => event.ok().and_then(|event| meant(selector, &event, item)),
            recv(v6) -> event => event.ok().and_then(|event| meant(selector, &event, item)),
            default(LOOK) => None,
        };
        if let Some(event) = event {
            client.item(&event)?;
        }
        let lost = lost_so_far();
        if lost != told {
            client.item(&EventItem::Lost(lost - told))?;
            told = lost;
        }
        if v4.is_empty() && v6.is_empty() {
            client.flush()?;
            if client.has_gone() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn meant<A: Family>(
    selector: &Selector<'_>,
    event: &FlowEvent<A>,
    item: impl Fn(EventKind, TrackedItem) -> Option<EventItem>,
) -> Option<EventItem> {
    selector.selects(&event.flow).then(|| item(event.kind, TrackedItem::of(&event.flow))).flatten()
}

/// The counters of each worker. Those of what all share stand with the first. Nothing when a worker has stopped.
fn counters(shared: &Shared) -> Option<Vec<CountersItem>> {
    let dropped = shared.team.ask_all(|worker| worker.stats().dropped).ok()?;
    let mut items: Vec<CountersItem> =
        dropped.iter().zip(0..).map(|(drops, worker)| of_worker(worker, drops)).collect();
    let (v4, v6) = (V4::table(&shared.flows), V6::table(&shared.flows));
    let counters = [v4.counters(), v6.counters()];
    let of = |field: fn(&Counters) -> u64| counters.iter().map(field).sum();
    let first = items.first_mut()?;
    *first = CountersItem {
        insert: of(|counters| counters.inserted),
        early_drop: of(|counters| counters.evicted),
        expired: of(|counters| counters.expired),
        removed: of(|counters| counters.removed),
        swept: shared.swept.load(Ordering::Relaxed),
        entries: (v4.len() + v6.len()) as u64,
        capacity: (v4.capacity() + v6.capacity()) as u64,
        events_lost: v4.events_lost() + v6.events_lost(),
        ..*first
    };
    Some(items)
}

fn of_worker(worker: u32, dropped: &Drops) -> CountersItem {
    let drops = |reasons: &[Reason]| reasons.iter().map(|reason| dropped.get(*reason)).sum();
    CountersItem {
        worker,
        invalid: drops(&[Reason::Invalid, Reason::TcpFlags, Reason::TransportChecksum]),
        insert_failed: drops(&[Reason::SnatExhausted]),
        drop: drops(&[Reason::FlowTableFull]),
        error: drops(&[
            Reason::FrameTruncated,
            Reason::IpVersion,
            Reason::IpHeaderLength,
            Reason::IpTotalLength,
            Reason::IpChecksum,
            Reason::Ipv6Extensions,
            Reason::TransportTruncated,
        ]),
        ..CountersItem::default()
    }
}

/// Counts of the source ports in use between addresses of the node and backends (NAT-06), for the pairs that
/// have many: when there are more pairs than are kept in mind, every count is lowered and those at 0 are
/// forgotten, so that no count is too low by more than the sum of what all were lowered by.
#[derive(Default)]
struct SourcePorts {
    used: HashMap<(Protocol, IpAddr, IpAddr, u16), u64>,
    lowered: u64,
}

impl SourcePorts {
    fn see<A: Tracked>(&mut self, shared: &Shared, selector: &Selector<'_>) {
        if !selector.has_family::<A>() {
            return;
        }
        let state = shared.state();
        let Some(tables) = A::family(&state.compiled.tables) else { return };
        let interfaces = &tables.routing.interfaces;
        let _ = tracking::pieces::<A, ()>(&shared.flows, &shared.team, |flows| {
            for flow in chosen(&flows, selector) {
                // Masqueraded, or from the node itself: the same ports are at stake.
                let from = flow.reply.destination;
                if from != flow.original.source || interfaces.is_local(from) {
                    self.count(flow);
                }
            }
            ControlFlow::Continue(())
        });
    }

    fn count<A: Family>(&mut self, flow: &FlowInfo<A>) {
        let reply = &flow.reply;
        if !reply.protocol.has_ports() {
            return;
        }
        let pair = (reply.protocol, reply.destination.into(), reply.source.into(), reply.source_port);
        if let Some(used) = self.used.get_mut(&pair) {
            *used += 1;
        } else if self.used.len() < PAIRS {
            self.used.insert(pair, 1);
        } else {
            self.lowered += 1;
            self.used.retain(|_, used| {
                *used -= 1;
                *used > 0
            });
        }
    }

    fn fullest(self, top: usize) -> Vec<SourcePortsItem> {
        let mut all: Vec<_> = self.used.into_iter().collect();
        all.sort_by(|(one, few), (other, many)| many.cmp(few).then_with(|| one.cmp(other)));
        all.truncate(top);
        let lowered = self.lowered;
        let items = all.into_iter().map(|(pair, used)| SourcePortsItem {
            protocol: pair.0.0,
            source: pair.1,
            destination: pair.2,
            destination_port: pair.3,
            used,
            uncertain: lowered,
        });
        items.collect()
    }
}
