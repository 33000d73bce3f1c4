//! What a comparison found, for people and for programs that read JUnit's XML.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use super::scenario::Family;

/// Words of a side that are shown at most.
const SHOWN: usize = 6;

/// One scenario's result.
#[derive(Clone, Debug)]
pub struct Report {
    /// The scenario's name.
    pub name: String,
    /// The family that was compared.
    pub family: Family,
    /// The program that loaded the rules.
    pub loader: &'static str,
    /// Flows that were compared.
    pub flows: usize,
    /// Packets that were sent, both sides together.
    pub packets: u64,
    /// Services whose choice was tested.
    pub choices: usize,
    /// Flows that agreed only when they were sent again, more often.
    pub retried: usize,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Flows that Pollux is meant to treat differently, by the reason; they are no differences.
    pub deliberate: BTreeMap<Deliberate, usize>,
    /// Pollux's drop counters.
    pub drops: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Where Pollux is meant to do otherwise than the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Deliberate {
    /// With `route_localnet`, the kernel sends what a process has bound to 127.0.0.1 out of a port as it is when
    /// no rule masquerades it, and from ::1 always. No loopback address may be on a wire (RFC 1122, section
    /// 3.2.1.3; RFC 4291, section 2.5.3): Pollux drops it (FW-03).
    LoopbackLeaves,
    /// The kernel forwards packets to `::` by its default route. It is nobody's address (RFC 4291, section
    /// 2.5.2): Pollux drops them (FW-03).
    UnspecifiedV6,
    /// Kernels differ in whether they take packets from ::ffff:a.b.c.d; behind such a source a filter for IPv4
    /// can be passed by (draft-itojun-v6ops-v4mapped-harmful): Pollux drops them (FW-03).
    MappedV6,
    /// The kernel masquerades what ::1 sends to a Service, and then does not deliver the answer, for which it
    /// looks for a route as for any packet. Pollux does (NAT-09).
    LoopbackV6Answered,
    /// The kernel confirms a connection of the host to itself when the packet leaves by `lo`, before it is
    /// refused where it arrives, so an entry stays. Pollux has none (CT-04).
    RefusedLoop,
}

impl Display for Deliberate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Deliberate::LoopbackLeaves => "loopback sources do not leave by a port",
            Deliberate::UnspecifiedV6 => "packets to :: are not forwarded",
            Deliberate::MappedV6 => "IPv4-mapped sources are not forwarded",
            Deliberate::LoopbackV6Answered => "answers to ::1 are delivered",
            Deliberate::RefusedLoop => "what the host sends to itself leaves no entry when it is refused",
        })
    }
}

/// A flow that the two nodes treat differently.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The flow.
    pub flow: String,
    /// Where they differ.
    pub step: &'static str,
    /// What became of its packets in the kernel's node.
    pub kernel: Vec<String>,
    /// And in Pollux's.
    pub pollux: Vec<String>,
}

impl Report {
    /// Whether both nodes did the same.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }

    /// The scenario's name with its family.
    pub fn title(&self) -> String {
        let family = match self.family {
            Family::IPv4 => "ipv4",
            Family::IPv6 => "ipv6",
        };
        format!("{} {family}", self.name)
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |words: &[String]| {
            let mut text = words.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" | ");
            if words.len() > SHOWN {
                let _ = write!(text, " | {} more", words.len() - SHOWN);
            }
            if text.is_empty() { "nothing to see".to_owned() } else { text }
        };
        writeln!(f, "{}: {}", self.flow, self.step)?;
        writeln!(f, "  kernel: {}", list(&self.kernel))?;
        write!(f, "  pollux: {}", list(&self.pollux))
    }
}

/// The reports as JUnit's XML: a test case for each scenario, a failure for one that differs.
pub fn junit(reports: &[Report]) -> String {
    let failures = reports.iter().filter(|report| !report.is_equal()).count();
    let seconds: f64 = reports.iter().map(|report| report.took.as_secs_f64()).sum();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites>\n<testsuite name=\"pollux-lab\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" time=\"{seconds:.3}\">\n",
        reports.len(),
    );
    for report in reports {
        let time = report.took.as_secs_f64();
        let name = escaped(&report.title());
        let _ = write!(text, "<testcase classname=\"pollux-lab\" name=\"{name}\" time=\"{time:.3}\">");
        if !report.is_equal() {
            let count = report.differences.len();
            let all: Vec<String> = report.differences.iter().map(Difference::to_string).collect();
            let all = escaped(&all.join("\n"));
            let _ = write!(text, "<failure message=\"{count} differences\">{all}</failure>");
        }
        text.push_str("</testcase>\n");
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            // XML 1.0 has no way to write the others.
            '\n' | '\t' => safe.push(character),
            character if character.is_control() => safe.push('\u{fffd}'),
            character => safe.push(character),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, differences: Vec<Difference>) -> Report {
        Report {
            name: name.to_owned(),
            family: Family::IPv4,
            loader: "iptables-nft-restore",
            flows: 3,
            packets: 30,
            choices: 1,
            retried: 0,
            differences,
            deliberate: BTreeMap::new(),
            drops: Vec::new(),
            took: Duration::from_millis(1500),
        }
    }

    #[test]
    fn junit_names_scenarios_and_escapes_what_it_says() {
        let difference = Difference {
            flow: "pod: tcp 10.0.0.1 > 10.0.0.2:80".into(),
            step: "first packet",
            kernel: vec!["\"a\" & b".into()],
            pollux: (1..=8).map(|number| number.to_string()).collect(),
        };
        let text = junit(&[report("same", vec![]), report("other", vec![difference])]);
        assert!(text.contains("tests=\"2\" failures=\"1\" errors=\"0\" time=\"3.000\""), "{text}");
        assert!(
            text.contains("<testcase classname=\"pollux-lab\" name=\"same ipv4\" time=\"1.500\"></testcase>")
        );
        assert!(text.contains("10.0.0.1 &gt; 10.0.0.2:80: first packet\n  kernel: &quot;a&quot; &amp; b\n"));
        assert!(text.contains("  pollux: 1 | 2 | 3 | 4 | 5 | 6 | 2 more</failure>"));
    }
}
