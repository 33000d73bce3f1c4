//! The service ports by number, as the tables name them.

use std::ops::Index;
use std::sync::Arc;

use pollux_dataplane::packet::Family;
use pollux_dataplane::slots::Slots;

use super::ServicePortRules;

/// The service ports of one family. A copy shares its content.
#[derive(Clone, Debug)]
pub struct ServicePorts<A: Family> {
    slots: Slots<Option<Arc<ServicePortRules<A>>>>,
}

impl<A: Family> Default for ServicePorts<A> {
    fn default() -> Self {
        ServicePorts { slots: Slots::default() }
    }
}

impl<A: Family> ServicePorts<A> {
    /// The rules of the service port of this number, if there is one.
    pub fn get(&self, number: usize) -> Option<&ServicePortRules<A>> {
        self.slots.get(u32::try_from(number).ok()?)?.as_deref()
    }

    /// All of them, by Service and then in the object's order.
    pub fn iter(&self) -> std::vec::IntoIter<&ServicePortRules<A>> {
        let mut all: Vec<_> = self.slots.iter().filter_map(|(_, rules)| rules.as_deref()).collect();
        all.sort_by_key(|rules| (&rules.id.service, rules.place));
        all.into_iter()
    }

    pub(super) fn set(&mut self, number: u32, rules: Option<Arc<ServicePortRules<A>>>) {
        *self.slots.get_mut(number) = rules;
    }
}

impl<'a, A: Family> IntoIterator for &'a ServicePorts<A> {
    type Item = &'a ServicePortRules<A>;
    type IntoIter = std::vec::IntoIter<&'a ServicePortRules<A>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<A: Family> Index<usize> for ServicePorts<A> {
    type Output = ServicePortRules<A>;

    fn index(&self, number: usize) -> &ServicePortRules<A> {
        self.get(number).unwrap_or_else(|| panic!("no service port has the number {number}"))
    }
}
