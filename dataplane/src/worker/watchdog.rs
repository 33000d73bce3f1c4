//! Sees workers that are stuck. The control side asks it now and then; it says what has changed.

use std::time::Duration;

use super::Handle;

/// What has changed with a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alarm {
    /// This worker of the team has given no sign of life for so long, which is longer than it may.
    Stuck {
        /// Its number.
        worker: usize,
        /// Its silence until now.
        silence: Duration,
    },
    /// A worker that was stuck goes on.
    Recovered {
        /// Its number.
        worker: usize,
    },
}

/// Watches a team of workers that run.
pub struct Watchdog {
    handles: Vec<Handle>,
    limit: Duration,
    stuck: Vec<bool>,
}

impl Watchdog {
    /// Watches the workers with these handles, in the order of their numbers. A silence of more than `limit` counts as
    /// stuck; a second is long for any command.
    pub fn new(handles: Vec<Handle>, limit: Duration) -> Watchdog {
        let stuck = vec![false; handles.len()];
        Watchdog { handles, limit, stuck }
    }

    /// What has changed since it was last asked: each alarm is told once.
    pub fn look(&mut self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for (worker, (handle, stuck)) in self.handles.iter().zip(&mut self.stuck).enumerate() {
            let silence = handle.silence();
            let is_stuck = silence > self.limit;
            if is_stuck != *stuck {
                alarms.push(if is_stuck {
                    Alarm::Stuck { worker, silence }
                } else {
                    Alarm::Recovered { worker }
                });
            }
            *stuck = is_stuck;
        }
        alarms
    }
}
