//! Captures of a running agent: frames as they pass, with what was decided about them. `pollux capture` asks for one
//! over the admin socket (`serve`); a port's `capture` and `trace` in the configuration are one for as long as the
//! agent runs (`standing`).

mod decision;
mod describe;
pub mod pcapng;
pub(super) mod serve;
mod source;
pub(super) mod standing;

use std::sync::Arc;

use data_encoding::BASE64;
use jiff::Timestamp;
use pollux_dataplane::capture::{Direction, Record};
use pollux_dataplane::packet::PortId;
use pollux_dataplane::port::MAX_FRAME;
use serde::{Deserialize, Serialize};

use super::shared::{Shared, State};
pub use crate::config::node::CaptureView as View;
pub use decision::Decision;
pub use describe::describe;

/// What is to be captured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// A port's name, or `any`.
    pub port: String,
    /// Which frames, in the words of pcap-filter; empty: all.
    #[serde(default)]
    pub filter: String,
    /// Bytes of each frame.
    #[serde(default = "whole")]
    pub snap_length_bytes: u32,
    /// The capture ends after so many frames.
    #[serde(default)]
    pub count: Option<u64>,
    /// Where one looks from.
    #[serde(default)]
    pub view: View,
}

/// As a whole, however long a frame is.
pub(crate) fn whole() -> u32 {
    MAX_FRAME as u32
}

/// An item of the answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureItem {
    /// Frames that pass from now on are captured, of these ports.
    Started {
        /// Their names.
        ports: Vec<String>,
    },
    /// One of them.
    Frame(FrameItem),
    /// There are no more.
    Ended {
        /// Frames that were captured.
        captured: u64,
        /// Frames that were not, because they came faster than they were taken.
        lost: u64,
        /// Why, when it is not the client's wish.
        why: Option<String>,
    },
}

/// A frame.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FrameItem {
    /// When it passed.
    pub time: Timestamp,
    /// By which port.
    pub port: String,
    /// Which way.
    pub direction: Way,
    /// Its length, bytes.
    pub length_bytes: usize,
    /// Its beginning, in base64.
    pub data: String,
    /// What was decided, where that was seen.
    pub decision: Option<Decision>,
}

/// Which way a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// It came in.
    In,
    /// It left.
    Out,
}

impl Way {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Way::In => "in",
            Way::Out => "out",
        }
    }
}

impl FrameItem {
    /// The bytes that were captured.
    pub fn bytes(&self) -> Vec<u8> {
        BASE64.decode(self.data.as_bytes()).unwrap_or_default()
    }

    /// The frame in a line: what it is, and what was decided.
    pub fn line(&self) -> String {
        let decision = self.decision.as_ref().map(|decision| format!(": {}", decision.summary));
        format!(
            "{} {:<3} {} bytes {}{}",
            self.port,
            self.direction.name(),
            self.length_bytes,
            describe(&self.bytes()),
            decision.unwrap_or_default()
        )
    }
}

/// Makes items of records.
struct Teller<'a> {
    shared: &'a Shared,
    /// The state that the last record was made in. While it is held, no other tables lie where its tables lie.
    state: Arc<State>,
    view: View,
}

impl Teller<'_> {
    fn new(shared: &Shared, view: View) -> Teller<'_> {
        Teller { shared, state: shared.state(), view }
    }

    fn item(&mut self, record: &Record) -> FrameItem {
        let in_force = |state: &State| Arc::as_ptr(&state.compiled.tables).addr() == record.tables;
        if !in_force(&self.state) {
            self.state = self.shared.state();
        }
        let decision = (self.view == View::Forwarder).then(|| {
            // Numbers in the events are places in those tables, and in no others.
            let compiled = in_force(&self.state).then_some(&self.state.compiled);
            Decision::of(record, compiled, |port| self.name(port))
        });
        FrameItem {
            time: Timestamp::from_nanosecond(record.nanos.into()).unwrap_or_default(),
            port: self.name(record.port),
            direction: match record.direction {
                Direction::In => Way::In,
                Direction::Out => Way::Out,
            },
            length_bytes: record.len,
            data: BASE64.encode(&record.bytes),
            decision,
        }
    }

    fn name(&self, port: PortId) -> String {
        let port = self.state.compiled.tables.ports.get(port).map(|info| info.name.clone());
        port.unwrap_or_else(|| "?".to_owned())
    }
}
