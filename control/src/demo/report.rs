//! What the demo says, for people who see it for the first time: at most 100 columns wide.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use pollux_dataplane::stats::PortStats;
use serde::Serialize;

use super::frame::{Frame, Head};
use crate::trace::Step;

const WIDTH: usize = 100;

/// Columns of the place of a step.
const PLACE: usize = 34;

/// Columns of what was decided, and of what was seen.
const SIDE: usize = 39;

/// A piece of the report.
#[derive(Clone, Debug)]
pub enum Report {
    /// The stage is set.
    Begun {
        /// Who runs it.
        user: &'static str,
        /// How the kernel is kept off.
        guard: String,
        /// How long it took.
        built_in: Duration,
    },
    /// A walk was done.
    Walk(WalkReport),
    /// The end.
    Counters(Counters),
}

/// One walk.
#[derive(Clone, Debug, Serialize)]
pub struct WalkReport {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// What is to be seen.
    pub shows: &'static str,
    /// Request and, where there is one, reply.
    pub legs: Vec<Leg>,
    /// What went wrong beside the frames.
    pub problems: Vec<String>,
}

/// One direction of a walk's connection.
#[derive(Clone, Debug, Serialize)]
pub struct Leg {
    /// `request` or `reply`.
    pub name: &'static str,
    /// What the forwarder did to its first packet.
    pub steps: Vec<Step>,
    /// That packet as it came in.
    pub entered: Option<Frame>,
    /// The head that it must leave with.
    pub decided: Head,
    /// The frame that left.
    pub seen: Option<Frame>,
    /// Frames of this direction that came in.
    pub frames_in: usize,
    /// Frames that left with the decided addresses at the decided port.
    pub frames_out: usize,
    /// Those of them with the whole decided head.
    pub frames_alike: usize,
}

/// The forwarder's counters at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Counters {
    /// For each port.
    pub ports: Vec<PortCounters>,
    /// Frames that left through a port.
    pub forwarded: u64,
    /// Frames that were the kernel's alone: ARP and the like.
    pub left_to_the_host: u64,
    /// Frames that the forwarder made itself.
    pub originated: u64,
    /// Dropped frames by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Frames that came to be (FW-05).
    pub received: u64,
    /// Frames whose end is known: the same number.
    pub accounted: u64,
    /// Whether every walk was seen as decided.
    pub as_decided: bool,
    /// How long the demo took, milliseconds.
    pub took_ms: u64,
}

/// A port's counters.
#[derive(Clone, Debug, Serialize)]
pub struct PortCounters {
    /// Its name.
    pub port: String,
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub transmitted: u64,
    /// Frames that it refused.
    pub refused: u64,
    /// Frames lost before they were received.
    pub missed: u64,
}

impl From<(String, PortStats)> for PortCounters {
    fn from((port, stats): (String, PortStats)) -> PortCounters {
        PortCounters {
            port,
            received: stats.received,
            transmitted: stats.transmitted,
            refused: stats.refused,
            missed: stats.missed,
        }
    }
}

impl WalkReport {
    /// Whether everything was seen on the wire as decided.
    pub fn is_as_decided(&self) -> bool {
        self.problems.is_empty() && !self.legs.is_empty() && self.legs.iter().all(Leg::is_as_decided)
    }
}

impl Leg {
    /// Whether every frame of this direction left as decided, and no frame got lost.
    pub fn is_as_decided(&self) -> bool {
        self.frames_in > 0 && (self.frames_out, self.frames_alike) == (self.frames_in, self.frames_in)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Begun { user, guard, built_in } => begun(f, user, guard, *built_in),
            Report::Walk(walk) => write!(f, "{walk}"),
            Report::Counters(counters) => write!(f, "{counters}"),
        }
    }
}

fn begun(f: &mut fmt::Formatter<'_>, user: &str, guard: &str, built_in: Duration) -> fmt::Result {
    f.write_str(
        "
            gateway 172.16.0.1
                 │
     ────────────┴──────────┬──────────────────────
                 │ ens3     │
     slave1 172.16.1.50    slave2 172.16.1.88
     │  Pollux forwards    └─ pod 10.151.49.8
     ├─ pollux0: the host
     ├─ caliee93b0bdd66 ─ pod 10.151.51.8
     └─ cali566211caf94 ─ pod 10.151.51.7

     Service default/myapp 10.150.18.86:80 → the three pods, port 80

",
    )?;
    wrapped(
        f,
        "",
        &format!(
            "Built in {} ms by {user}: each machine and each pod is a network namespace. The kernel of slave1 \
             has ip_forward=1, as on a node; a {guard} keeps it from forwarding what Pollux forwards.",
            built_in.as_millis()
        ),
    )
}

impl Display for WalkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = format!("{}  {}", self.name, self.title);
        writeln!(f, "\n{heading}\n{}", "─".repeat(heading.chars().count()))?;
        wrapped(f, "", self.shows)?;
        for leg in &self.legs {
            write!(f, "{leg}")?;
        }
        for problem in &self.problems {
            writeln!(f, "  WRONG: {problem}")?;
        }
        Ok(())
    }
}

impl Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entered {
            Some(Frame { head, what, protocol }) => {
                let (from, to) = addresses(head, &what.to_string());
                let port = &head.port;
                writeln!(
                    f,
                    "\n  {}: {protocol} {from} > {to} ttl {} {what} enters by {port}",
                    self.name, head.ttl
                )?;
            }
            None => writeln!(f, "\n  {}: it was not seen to enter", self.name)?,
        }
        for step in &self.steps {
            let place = format!("{} {}", step.table, step.chain);
            let indent = format!("    {:<PLACE$}", place.trim());
            wrapped(f, &indent, &step.effect)?;
            if !step.rule.is_empty() {
                wrapped(f, "        ", &step.rule)?;
            }
        }
        self.comparison(f)
    }
}

impl Leg {
    fn comparison(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(seen) = &self.seen else {
            return writeln!(f, "    NOT SEEN ON THE WIRE: {}", shown(&self.decided, ""));
        };
        writeln!(f, "    {:<9} {:<SIDE$} seen on the wire", "", "decided")?;
        let (decided, wire) = (&self.decided, &seen.head);
        let links = |head: &Head| format!("{} > {}", head.link_source, head.link_destination);
        let packet = |head: &Head| {
            let (from, to) = addresses(head, &seen.what);
            format!("{from} > {to}")
        };
        for (field, ours, theirs) in [
            ("out of", decided.port.clone(), wire.port.clone()),
            ("link", links(decided), links(wire)),
            ("packet", packet(decided), packet(wire)),
            ("ttl", decided.ttl.to_string(), wire.ttl.to_string()),
        ] {
            let verdict = if ours == theirs { "ok" } else { "DIFFERS" };
            writeln!(f, "    {field:<9} {ours:<SIDE$} {theirs:<SIDE$} {verdict}")?;
        }
        let Leg { frames_in, frames_out, frames_alike, .. } = self;
        if self.is_as_decided() {
            let plural = if *frames_in == 1 { "frame" } else { "frames" };
            writeln!(f, "    {:<9} {frames_in} {plural} in, {frames_out} out, all as decided", "ok")
        } else {
            let text = format!("{frames_in} frames in, {frames_out} out, {frames_alike} of them as decided");
            writeln!(f, "    {:<9} {text}", "WRONG")
        }
    }
}

/// Source and destination as people write them: an echo has an identifier, and no ports.
fn addresses(head: &Head, what: &str) -> (String, String) {
    if what.starts_with("echo") {
        (format!("{} id {}", head.source.ip(), head.source.port()), head.destination.ip().to_string())
    } else {
        (head.source.to_string(), head.destination.to_string())
    }
}

fn shown(head: &Head, what: &str) -> String {
    let (from, to) = addresses(head, what);
    format!("{} {} > {} {from} > {to} ttl {}", head.port, head.link_source, head.link_destination, head.ttl)
}

impl Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nCounters\n────────")?;
        writeln!(f, "  {:<18} {:>9} {:>9} {:>9} {:>9}", "port", "received", "sent", "refused", "missed")?;
        for PortCounters { port, received, transmitted, refused, missed } in &self.ports {
            writeln!(f, "  {port:<18} {received:>9} {transmitted:>9} {refused:>9} {missed:>9}")?;
        }
        writeln!(
            f,
            "\n  {} frames left through a port, {} were the kernel's alone (ARP and the like)",
            self.forwarded, self.left_to_the_host
        )?;
        if self.dropped.is_empty() {
            writeln!(f, "  dropped: none")?;
        }
        for (reason, count) in &self.dropped {
            writeln!(f, "  dropped {reason}: {count}")?;
        }
        let balance = if self.received == self.accounted { "ok" } else { "WRONG" };
        writeln!(
            f,
            "  balance: {} came to be, {} are accounted for: {balance}",
            self.received, self.accounted
        )?;
        let verdict = if self.as_decided {
            "Every walk was seen on the wire as decided"
        } else {
            "NOT every walk was seen on the wire as decided"
        };
        writeln!(f, "\n{verdict}, in {:.1} s.", self.took_ms as f64 / 1e3)
    }
}

/// Writes `text` behind `indent`, in lines that end before the last column, further ones below the first.
fn wrapped(f: &mut impl fmt::Write, indent: &str, text: &str) -> fmt::Result {
    let left = indent.chars().count();
    let mut column = left;
    f.write_str(indent)?;
    for (number, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if number > 0 && column + 1 + length > WIDTH {
            write!(f, "\n{:left$}", "")?;
            column = left;
        } else if number > 0 {
            f.write_char(' ')?;
            column += 1;
        }
        f.write_str(word)?;
        column += length;
    }
    f.write_char('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_wrapped_below_their_beginning() {
        let mut out = String::new();
        wrapped(&mut out, "  x ", &"word ".repeat(30)).unwrap();
        assert!(out.lines().all(|line| line.chars().count() <= WIDTH), "{out}");
        assert!(out.lines().nth(1).unwrap().starts_with("    word"), "{out}");
    }
}
