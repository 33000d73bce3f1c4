//! Which worker has which queue of a port.

use pollux_dataplane::packet::PortId;
use pollux_dataplane::port::Port;
use pollux_dataplane::port::fault::FaultHandle;
use pollux_dataplane::port::memory::MemoryHandle;
use pollux_dataplane::worker::Worker;

/// An opened port, to be given to the workers.
pub(in crate::agent) struct Attached {
    /// The number that the tables know it by.
    pub(in crate::agent) id: PortId,
    /// Its queues: one, or up to one for each worker; none for a tunnel.
    pub(super) queues: Vec<Box<dyn Port>>,
    /// The worker that has the first of them; the next has the next.
    pub(super) first: usize,
    /// The other side of a memory port.
    pub(in crate::agent) memory: Option<MemoryHandle>,
    /// The counters of the bad wire before it: before its last queue, if there are several.
    pub(in crate::agent) faults: Option<FaultHandle>,
}

/// What one worker has of a port.
pub(in crate::agent) enum Share {
    /// This queue.
    Queue(Box<dyn Port>),
    /// The worker that takes its frames for the port.
    Through(usize),
    /// Nothing: frames for it leave by other ports.
    Nothing,
}

impl Attached {
    /// The share of each of so many workers, in order.
    ///
    /// # Panics
    /// If there are more queues than workers.
    pub(in crate::agent) fn shares(self, workers: usize) -> Vec<Share> {
        let queues = self.queues.len();
        assert!(queues <= workers, "{queues} queues for {workers} workers");
        let mut shares: Vec<Share> = (0..workers)
            .map(|worker| match (worker + workers - self.first) % workers {
                _ if queues == 0 => Share::Nothing,
                place => Share::Through((self.first + place % queues) % workers),
            })
            .collect();
        for (place, queue) in self.queues.into_iter().enumerate() {
            shares[(self.first + place) % workers] = Share::Queue(queue);
        }
        shares
    }
}

impl Share {
    /// Tells the worker.
    pub(in crate::agent) fn give(self, worker: &mut Worker, id: PortId) {
        match self {
            Share::Queue(port) => worker.add_port(id, port),
            Share::Through(owner) => worker.add_remote_port(id, owner),
            Share::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use pollux_dataplane::port::Capabilities;
    use pollux_dataplane::port::memory::{MemoryPort, Rings};

    use super::*;

    fn shares(queues: usize, first: usize, workers: usize) -> Vec<String> {
        let queue = |_| -> Box<dyn Port> {
            Box::new(MemoryPort::new(PortId(0), Capabilities::default(), Rings::default()).0)
        };
        let queues = (0..queues).map(queue).collect();
        let port = Attached { id: PortId(0), queues, first, memory: None, faults: None };
        let word = |share| match share {
            Share::Queue(_) => "queue".to_owned(),
            Share::Through(owner) => format!("through {owner}"),
            Share::Nothing => "nothing".to_owned(),
        };
        port.shares(workers).into_iter().map(word).collect()
    }

    #[test]
    fn a_queue_belongs_to_one_worker_and_the_others_know_to_whom() {
        assert_eq!(shares(1, 0, 1), ["queue"]);
        assert_eq!(shares(1, 1, 3), ["through 1", "queue", "through 1"]);
        assert_eq!(shares(3, 0, 3), ["queue", "queue", "queue"]);
        assert_eq!(shares(2, 0, 4), ["queue", "queue", "through 0", "through 1"]);
        assert_eq!(shares(2, 3, 4), ["queue", "through 3", "through 0", "queue"]);
        assert_eq!(shares(0, 0, 2), ["nothing", "nothing"]);
    }
}
