//! The forwarding tables of a node that follows the kernel: changed prefix by prefix, so that one route of a full
//! Internet table costs one route (RT-05).

use std::collections::BTreeSet;
use std::sync::Arc;

use pollux_dataplane::packet::{Family, V4, V6};
use pollux_dataplane::route::{Changed, FibEditor, Interfaces};
use pollux_dataplane::tables::Routing;

use super::machine::Names;
use crate::kernel::state::{Changes, FamilyChanges, FamilyState, KernelState, Link, LinkIndex};

/// Both families' tables, to be changed.
#[derive(Debug)]
pub(super) struct Routes {
    v4: FibEditor<V4>,
    v6: FibEditor<V6>,
    /// The links that the tables were made with.
    links: Vec<Link>,
}

/// Both families' tables, to be forwarded by.
pub(super) type Snapshots = (Arc<Routing<V4>>, Arc<Routing<V6>>);

impl Routes {
    /// All of the kernel's routes.
    pub(super) fn new(names: &Names<'_>, kernel: &KernelState) -> (Routes, Snapshots) {
        let (mut v4, mut v6) = (editor(names, &kernel.v4), editor(names, &kernel.v6));
        let snapshots = (
            Arc::new(Routing { fib: v4.snapshot(), interfaces: Arc::new(names.interfaces(&kernel.v4)) }),
            Arc::new(Routing { fib: v6.snapshot(), interfaces: Arc::new(names.interfaces(&kernel.v6)) }),
        );
        (Routes { v4, v6, links: kernel.links.clone() }, snapshots)
    }

    /// Takes over what has changed. What stayed as it was in `old` is shared with it.
    pub(super) fn follow(
        &mut self,
        names: &Names<'_>,
        kernel: &KernelState,
        changes: &Changes,
        old: (&Arc<Routing<V4>>, &Arc<Routing<V6>>),
    ) -> Snapshots {
        let links = if changes.links { self.changed_links(names, kernel) } else { BTreeSet::new() };
        let v4 = follow(&mut self.v4, names, &kernel.v4, &changes.v4, &links, changes.links, old.0);
        let v6 = follow(&mut self.v6, names, &kernel.v6, &changes.v6, &links, changes.links, old.1);
        if changes.links {
            self.links.clone_from(&kernel.links);
        }
        (v4, v6)
    }

    /// The links that routes see with other eyes now: new ones, those that are gone, are up or down, have a
    /// carrier or none, or are another port's.
    fn changed_links(&self, names: &Names<'_>, kernel: &KernelState) -> BTreeSet<LinkIndex> {
        let seen = |link: &Link| (link.index, link.up, link.carrier, names.port_of(link));
        let before: BTreeSet<_> = self.links.iter().map(seen).collect();
        let now: BTreeSet<_> = kernel.links.iter().map(seen).collect();
        before.symmetric_difference(&now).map(|(index, ..)| *index).collect()
    }
}

fn editor<A: Family>(names: &Names<'_>, state: &FamilyState<A>) -> FibEditor<A> {
    FibEditor::new(state.routes.iter().filter_map(|route| names.route(route)).collect())
}

fn follow<A: Family>(
    editor: &mut FibEditor<A>,
    names: &Names<'_>,
    state: &FamilyState<A>,
    changes: &FamilyChanges<A>,
    links: &BTreeSet<LinkIndex>,
    links_changed: bool,
    old: &Arc<Routing<A>>,
) -> Arc<Routing<A>> {
    let mut prefixes = changes.routes.clone();
    if !links.is_empty() {
        let concerned = state
            .routes
            .iter()
            .filter(|route| route.kind.next_hops().iter().any(|hop| links.contains(&hop.link)));
        prefixes.extend(concerned.map(|route| route.prefix));
    }
    for prefix in prefixes {
        let routes = state.routes.of(prefix).iter().filter_map(|route| names.route(route));
        editor.replace(prefix, routes);
    }
    let fib = editor.snapshot();
    let interfaces = if links_changed || changes.addresses {
        share(names.interfaces(state), &old.interfaces)
    } else {
        Arc::clone(&old.interfaces)
    };
    if fib.changed_since(&old.fib) == Changed::Nothing && Arc::ptr_eq(&interfaces, &old.interfaces) {
        return Arc::clone(old);
    }
    Arc::new(Routing { fib, interfaces })
}

fn share<A: Family>(new: Interfaces<A>, old: &Arc<Interfaces<A>>) -> Arc<Interfaces<A>> {
    if new.iter().eq(old.iter()) { Arc::clone(old) } else { Arc::new(new) }
}
