//! A walk on a stage: whatever forwards as slave1 plays it, the comparison is the same.

use std::collections::BTreeMap;

use pollux_dataplane::packet::Offload;
use pollux_dataplane::stats::{Reason, Stats};

use super::{Choice, Outcome, PARTIAL, Step, Walk, Written};
use crate::frame::{assert_checksums, inside};

/// Something that forwards as slave1.
pub trait Stage {
    /// Whether what leaves by a port may have a partial checksum: then it must, where it came in so (PT-04).
    fn carries_partial(&self, port: &str) -> bool;

    /// Makes new connections choose.
    ///
    /// # Errors
    /// What went wrong.
    fn choose(&mut self, choice: Choice) -> Result<(), String>;

    /// Puts a step's frame in, and returns what has left once the step's outcome has come about.
    ///
    /// # Errors
    /// What went wrong; among it that the outcome has not come about in time.
    fn pass(&mut self, step: &Step) -> Result<Vec<Left>, String>;

    /// How things are at the end.
    ///
    /// # Errors
    /// What went wrong.
    fn end(&mut self) -> Result<End, String>;
}

/// A frame that left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// The port.
    pub port: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What was left to the device.
    pub offload: Offload,
}

/// How things are after a walk.
#[derive(Clone, Debug)]
pub struct End {
    /// What has left without being waited for.
    pub left: Vec<Left>,
    /// All counters, of all workers.
    pub stats: Stats,
    /// The marks of the connections in the table, sorted.
    pub connections: Vec<u32>,
}

/// Plays a walk.
///
/// # Errors
/// What was otherwise than the walk says, and where.
pub fn play(walk: &Walk, stage: &mut dyn Stage) -> Result<(), String> {
    stage.choose(walk.choice)?;
    let mut expected = 0;
    let mut dropped: BTreeMap<&str, u64> = BTreeMap::new();
    for (number, step) in walk.steps.iter().enumerate() {
        let at = |problem: String| format!("step {} of {}: {problem}", number + 1, walk.steps.len());
        let left = stage.pass(step).map_err(at)?;
        match &step.outcome {
            Outcome::Leaves(port, frame) => {
                let partial = step.frame.partial.is_some() && stage.carries_partial(port);
                is_alone(&left, port, frame, partial).map_err(at)?;
                expected += 1;
            }
            Outcome::Refused(reason, port, error) => {
                is_alone(&left, port, error, false).map_err(at)?;
                expected += 1;
                *dropped.entry(reason.name()).or_default() += 1;
            }
            Outcome::Dropped(reason) => {
                if !left.is_empty() {
                    return Err(at(format!("should be dropped: {}, but left: {left:#?}", reason.name())));
                }
                *dropped.entry(reason.name()).or_default() += 1;
            }
        }
    }
    let End { left, stats, connections } = stage.end()?;
    if !left.is_empty() {
        return Err(format!("something has left after the walk: {left:#?}"));
    }
    if stats.transmitted != expected {
        return Err(format!("{expected} frames were seen, and these counted: {stats:?}"));
    }
    let counted: BTreeMap<&str, u64> =
        stats.dropped.iter().map(|(reason, count): (Reason, u64)| (reason.name(), count)).collect();
    if counted != dropped {
        return Err(format!("these should be dropped: {dropped:?}, these were: {counted:?}"));
    }
    let (came, went) = stats.balance();
    if came != went {
        return Err(format!("FW-05: {came} came, {went} went: {stats:?}"));
    }
    let mut marks = walk.connections.clone();
    marks.sort_unstable();
    if connections != marks {
        return Err(format!("connections with these marks: {connections:x?}, should be {marks:x?}"));
    }
    Ok(())
}

/// Exactly this frame has left, by this port.
fn is_alone(left: &[Left], port: &str, frame: &Written, partial: bool) -> Result<(), String> {
    let [left] = left else { return Err(format!("not one frame: {left:#?}")) };
    if left.port != port {
        return Err(format!("left by {}, not {port}: {left:?}", left.port));
    }
    let (bytes, offload) = match (&frame.partial, partial) {
        (Some(bytes), true) => (bytes, PARTIAL),
        _ => (&frame.complete, Offload::default()),
    };
    if (&left.bytes, left.offload) != (bytes, offload) {
        return Err(format!(
            "left by {port} as\n  {}, {:?}\nand not as\n  {}, {offload:?}",
            hex(&left.bytes),
            left.offload,
            hex(bytes)
        ));
    }
    if !partial {
        // The second opinion.
        assert_checksums(&inside(&left.bytes));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
