//! Makes the tables: all at once, or one change after the other, each change with a snapshot behind it.

use super::table::{Policy, Services};
use super::{Backend, BackendSet, Frontend, FrontendKey};
use crate::packet::Family;

/// Collects frontends and backends. What was built or taken as a snapshot does not change any more.
#[derive(Debug)]
pub struct Builder<A: Family> {
    services: Services<A>,
    /// Numbers of blocks: the next one, and those that are free again.
    next: u32,
    free: Vec<u32>,
}

impl<A: Family> Default for Builder<A> {
    fn default() -> Self {
        Builder::new(Policy::default())
    }
}

impl<A: Family> Builder<A> {
    /// Nothing yet, under `policy`.
    pub fn new(policy: Policy<A>) -> Self {
        Builder { services: Services::empty(policy), next: 0, free: Vec::new() }
    }

    /// Changes what holds for all frontends.
    pub fn set_policy(&mut self, policy: Policy<A>) {
        self.services.set_policy(policy);
    }

    /// Adds a set of backends, in endpoint order.
    pub fn backends(&mut self, backends: impl IntoIterator<Item = Backend<A>>) -> BackendSet {
        let backends: std::sync::Arc<[_]> = backends.into_iter().collect();
        if backends.is_empty() {
            return BackendSet::default();
        }
        let len = u32::try_from(backends.len()).expect("fewer than 2^32 backends");
        let block = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.services.set_block(block, Some(backends));
        BackendSet { block, len }
    }

    /// Adds a frontend. Of those that share a key the one added first is tried first.
    pub fn frontend(&mut self, frontend: Frontend<A>) {
        self.services.insert(frontend);
    }

    /// Removes a service port: its frontends, which have these keys, and these sets.
    pub fn remove(
        &mut self,
        service_port: u32,
        keys: impl IntoIterator<Item = FrontendKey<A>>,
        sets: impl IntoIterator<Item = BackendSet>,
    ) {
        for key in keys {
            self.services.remove(service_port, &key);
        }
        self.services.unstick(service_port);
        for set in sets.into_iter().filter(|set| !set.is_empty()) {
            self.services.set_block(set.block, None);
            self.free.push(set.block);
        }
    }

    /// The tables as they are now.
    pub fn snapshot(&self) -> Services<A> {
        self.services.clone()
    }

    /// The finished tables.
    pub fn build(self) -> Services<A> {
        self.services
    }
}
