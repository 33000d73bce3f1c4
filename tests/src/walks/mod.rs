//! The seed's packet walks, W1 to W14, as data: which frames go in, and the exact bytes that must come out.
//! One list for every way to play it ([`play()`]): a worker alone on ports in memory, with a clock of the
//! test's, and a whole agent on every backend.
//!
//! An expected frame is the one that went in with the fields that the walk changes, written anew by code that
//! is not Pollux's; etherparse checks its checksums once more. W1 and W2 replay the seed's captures: what
//! leaves has the checksums that tcpdump printed there.
//!
//! Where the seed contradicts itself, kube-proxy and the kernel decide; each such walk says so.

mod host;
mod node_ports;
mod play;
mod pods;
mod refusals;
mod tunnel;

use pollux_dataplane::packet::{ChecksumState, Offload};
use pollux_dataplane::stats::Reason;

use crate::frame::{Checksum, Frame, flag};
use crate::seed::Cluster;
pub use play::{End, Left, Stage, play};

/// The mark of what is to be masqueraded (MQ-08).
const MARKED: u32 = 0x4000;

const SYN: u8 = flag::SYN;
const SYN_ACK: u8 = flag::SYN | flag::ACK;

/// The port of every Service and its pods.
const WEB: u16 = 80;

/// A walk.
#[derive(Clone, Debug)]
pub struct Walk {
    /// Its name, which begins with its number: `w4_…`.
    pub name: &'static str,
    /// What slave1 forwards by.
    pub cluster: Cluster,
    /// What new connections choose.
    pub choice: Choice,
    /// Its packets, in order.
    pub steps: Vec<Step>,
    /// The marks of the connections that are in the table at the end, one each.
    pub connections: Vec<u32>,
}

/// What new connections choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Nothing is to be chosen.
    None,
    /// Of a Service port, this backend.
    Backend(&'static str, &'static str),
    /// The backend at this place of every set that is long enough.
    Place(u32),
}

/// One frame in, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// The port that it comes in at.
    pub port: &'static str,
    /// The frame.
    pub frame: Written,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// What becomes of a frame.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It leaves by a port, as this.
    Leaves(&'static str, Written),
    /// It is dropped for a reason, and its sender is told by this frame.
    Refused(Reason, &'static str, Written),
    /// It is dropped for a reason, silently.
    Dropped(Reason),
}

/// A frame as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The whole frame.
    pub complete: Vec<u8>,
    /// The same with the partial checksum of a sender that leaves it to the device, where the walk has such a
    /// sender (PT-04). It is TCP's over IPv4 without options: [`PARTIAL`].
    pub partial: Option<Vec<u8>>,
}

/// What goes with `Written::partial`.
pub const PARTIAL: Offload =
    Offload { checksum: ChecksumState::Partial { start: 34, offset: 16 }, gso: None };

impl From<&Frame> for Written {
    fn from(frame: &Frame) -> Written {
        Written { complete: frame.bytes(), partial: None }
    }
}

impl From<Vec<u8>> for Written {
    fn from(complete: Vec<u8>) -> Written {
        Written { complete, partial: None }
    }
}

impl Written {
    /// With the checksum left to the device.
    fn partial(frame: &Frame) -> Written {
        Written { complete: frame.bytes(), partial: Some(frame.with_checksum(Checksum::Partial)) }
    }
}

impl Walk {
    fn new(name: &'static str, cluster: Cluster) -> Walk {
        Walk { name, cluster, choice: Choice::None, steps: Vec::new(), connections: Vec::new() }
    }

    /// New connections of the seed's Service go to this backend.
    fn to(self, backend: &'static str) -> Walk {
        self.choosing(Choice::Backend("default/myapp", backend))
    }

    fn choosing(self, choice: Choice) -> Walk {
        Walk { choice, ..self }
    }

    /// A frame that leaves as `expected`.
    fn step(
        mut self,
        port: &'static str,
        frame: impl Into<Written>,
        out_port: &'static str,
        expected: impl Into<Written>,
    ) -> Walk {
        let outcome = Outcome::Leaves(out_port, expected.into());
        self.steps.push(Step { port, frame: frame.into(), outcome });
        self
    }

    fn dropped(mut self, port: &'static str, frame: impl Into<Written>, reason: Reason) -> Walk {
        self.steps.push(Step { port, frame: frame.into(), outcome: Outcome::Dropped(reason) });
        self
    }

    /// The marks of the connections at the end.
    fn connections<const N: usize>(self, marks: [u32; N]) -> Walk {
        Walk { connections: marks.into(), ..self }
    }

    /// Whether a sender of it leaves checksums to the device.
    pub fn is_partial(&self) -> bool {
        self.steps.iter().any(|step| step.frame.partial.is_some())
    }
}

/// All walks.
pub fn all() -> Vec<Walk> {
    [host::walks(), pods::walks(), node_ports::walks(), tunnel::walks(), refusals::walks()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_walk_of_the_seed_is_in_the_list() {
        let walks = all();
        for number in 1..=14 {
            let prefix = format!("w{number}_");
            assert!(walks.iter().any(|walk| walk.name.starts_with(&prefix)), "W{number}");
        }
        let mut names: Vec<_> = walks.iter().map(|walk| walk.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), walks.len(), "two of one name");
    }

    /// Whether a walk of this name, changed by `tamper`, is refused on a stage that is right.
    fn refused(name: &str, tamper: impl Fn(&mut Walk)) -> bool {
        let mut walk = all().into_iter().find(|walk| walk.name.starts_with(name)).unwrap();
        play(&walk, &mut walk.cluster.node()).unwrap();
        tamper(&mut walk);
        play(&walk, &mut walk.cluster.node()).is_err()
    }

    #[test]
    fn whatever_differs_is_found() {
        let frame = |walk: &mut Walk, change: &dyn Fn(&mut &'static str, &mut Vec<u8>)| {
            let Outcome::Leaves(port, frame) = &mut walk.steps[0].outcome else { panic!("it leaves") };
            change(port, &mut frame.complete);
        };
        for at in [0, 6, 22, 26, 34, 50] {
            assert!(refused("w4_", |walk| frame(walk, &|_, bytes| bytes[at] ^= 1)), "byte {at}");
        }
        assert!(refused("w4_", |walk| frame(walk, &|_, bytes| bytes.push(0))));
        assert!(refused("w4_", |walk| frame(walk, &|port, _| *port = crate::seed::port::ENS3)));
        assert!(refused("w4_", |walk| walk.connections.clear()));
        assert!(refused("w4_", |walk| walk.connections = vec![MARKED]));
        assert!(refused("w13_", |walk| walk.steps[0].outcome = Outcome::Dropped(Reason::RouteUnreachable)));
        assert!(refused("w11_a_pod", |walk| {
            let Outcome::Refused(_, port, error) = walk.steps[0].outcome.clone() else { panic!("refused") };
            walk.steps[0].outcome = Outcome::Leaves(port, error);
        }));
    }

    #[test]
    fn w1_and_w2_have_the_checksums_that_tcpdump_printed() {
        use crate::capture::{LOCAL, REMOTE, Side};
        use crate::frame::Fields;
        let walks = all();
        for (name, connection) in [
            ("w1_the_captured_connection_to_the_pod_on_this_node", LOCAL),
            ("w2_the_captured_connection_to_the_pod_on_the_other_node", REMOTE),
        ] {
            let walk = walks.iter().find(|walk| walk.name == name).unwrap();
            assert_eq!(walk.steps.len(), connection.segments.len());
            for (step, segment) in walk.steps.iter().zip(&connection.segments) {
                let Outcome::Leaves(_, left) = &step.outcome else { panic!("{segment:?} leaves") };
                let on_the_pods_side =
                    if segment.side == Side::Client { &left.complete } else { &step.frame.complete };
                assert_eq!(Fields::of(on_the_pods_side).checksum, segment.checksum, "{segment:?}");
            }
        }
    }
}
