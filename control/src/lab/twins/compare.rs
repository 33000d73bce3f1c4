//! One scenario through both twins, and what differs.
//!
//! A flow is sent several times from different client ports. What becomes of a packet is put into words in
//! which everything free has lost its number: the client's port, a masqueraded one. The *set* of what a
//! flow's packets become must then be the same on both sides, which also says that the same backends are
//! chosen from, since each backend gives words of its own. So must the sets for the answers, for the packets
//! after them, and for the tuples in both connection tables. A flow whose sets differ is sent again, more
//! often: a backend that was missed by chance comes then, a real difference stays.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use pollux_dataplane::pool::Pool;
use pollux_dataplane::worker::Stopped;

use super::choice::{CONNECTIONS, p_value};
use super::exchange::{Sending, Side, Sightings, Twins, is_udp};
use super::flows::{Clients, FlowSpec, Flows};
use super::forwarder::keeps_ports;
use super::packet::{Datagram, Seen};
use super::report::{Deliberate, Difference, Report};
use super::scenario::Scenario;
use super::shot::Shot;
use super::site::Site;
use super::wire::Sighting;
use super::words::{FEW, Step, Wording, Words, deliberate, differ};
use crate::cli::Failure;
use crate::kernel::Error;
use crate::lab::pollux::Wiring;

/// Services whose distribution is tested in a scenario at most, and tests for each: the backends and the
/// masqueraded ports of either side.
const SERVICES: usize = 2;

/// Tests in a scenario at most.
pub(super) const TESTS: usize = SERVICES * 4;

/// Connections that are in progress at a time.
const ROUND: usize = 256;

/// How often a flow is sent again, and how many more times each time.
const AGAIN: [usize; 4] = [1, 3, 8, 24];

/// Why a comparison ended early.
#[derive(Debug)]
pub enum Ended {
    /// By a signal.
    Interrupted,
    /// The machine lacks something.
    Lacking(Failure),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Ended {
        Ended::Lacking(Failure::environment(format!("the lab: {error}")))
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Lacking(Failure::environment(error))
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Lacking(failure)
    }
}

impl From<Stopped> for Ended {
    fn from(Stopped: Stopped) -> Ended {
        Ended::Lacking(Failure::environment("Pollux's worker has stopped"))
    }
}

/// Compares both nodes in one scenario, Pollux on a wiring. `level`: the probability up to which a fair choice may be called
/// unfair, in each test. `prefix` begins the names of the namespaces, which end with the comparison.
///
/// # Errors
/// When it was interrupted, or the machine lacks something. What was made is removed.
pub fn compare(
    scenario: &Scenario,
    wiring: Wiring,
    pool: &'static Pool,
    prefix: &str,
    level: f64,
    interrupted: &dyn Fn() -> bool,
) -> Result<Report, Ended> {
    let begun = Instant::now();
    let site = Site::of(scenario);
    let flows = Flows::of(scenario, &site);
    let twins = Twins::start(scenario, &site, wiring, pool, prefix)?;
    let mut comparison = Comparison {
        twins,
        wording: Wording { site: &site, keeps_ports: keeps_ports(&scenario.rules) },
        next_shot: 0,
        interrupted,
        differences: Vec::new(),
        deliberate: BTreeMap::new(),
    };
    let retried = comparison.flows(&flows.specs)?;
    let mut choices = 0;
    for choosing in flows.choosing.iter().take(SERVICES) {
        comparison.choice(choosing, level)?;
        choices += 1;
    }
    let Comparison { twins, differences, deliberate, .. } = comparison;
    Ok(Report {
        name: scenario.name.clone(),
        family: scenario.family,
        loader: twins.kernel.loader,
        flows: flows.specs.len(),
        packets: twins.packets,
        choices,
        retried,
        differences,
        deliberate,
        drops: twins.forwarder.drops(),
        took: begun.elapsed(),
    })
}

struct Comparison<'a> {
    twins: Twins,
    wording: Wording<'a>,
    next_shot: u32,
    interrupted: &'a dyn Fn() -> bool,
    differences: Vec<Difference>,
    deliberate: BTreeMap<Deliberate, usize>,
}

impl Comparison<'_> {
    /// The next connection of a flow.
    fn shot<'s>(&mut self, flow: usize, spec: &'s FlowSpec) -> Shot<'s> {
        self.next_shot += 1;
        Shot::new(self.next_shot, flow, spec)
    }

    /// Sends all flows, and those whose words differ again. Returns how many were sent again and then agreed.
    fn flows(&mut self, specs: &[FlowSpec]) -> Result<usize, Ended> {
        let mut open: Vec<usize> = (0..specs.len()).collect();
        let mut words: Vec<Words> = Vec::new();
        let mut first_open = 0;
        for more in AGAIN {
            let shots: Vec<Shot<'_>> = open
                .iter()
                .flat_map(|flow| (0..repeats(&specs[*flow]) * more).map(move |_| *flow))
                .map(|flow| (flow, &specs[flow]))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|(flow, spec)| self.shot(flow, spec))
                .collect();
            words = self.observe(&shots, specs.len())?;
            open.retain(|flow| words[*flow].values().any(|sides| differ(&specs[*flow], sides)));
            if more == 1 {
                first_open = open.len();
            }
            if open.is_empty() {
                break;
            }
        }
        for flow in &open {
            // The first step that differs: those after it follow from it.
            let differing = words[*flow].iter().find(|(_, sides)| differ(&specs[*flow], sides));
            let Some((step, [kernel, pollux])) = differing else { continue };
            let difference = Difference {
                flow: specs[*flow].name.clone(),
                step: step.name(),
                kernel: kernel.iter().cloned().collect(),
                pollux: pollux.iter().cloned().collect(),
            };
            match deliberate(&specs[*flow], *step, &words[*flow][step]) {
                Some(cause) => *self.deliberate.entry(cause).or_default() += 1,
                None => self.differences.push(difference),
            }
        }
        Ok(first_open - open.len())
    }

    /// Lets connections happen and puts into words what became of them, by flow.
    fn observe(&mut self, shots: &[Shot<'_>], flows: usize) -> Result<Vec<Words>, Ended> {
        let mut words: Vec<Words> = vec![Words::new(); flows];
        let mut firsts: HashMap<(Side, u32), Sighting> = HashMap::new();
        for round in shots.chunks(ROUND) {
            self.round(round, &mut words, &mut firsts)?;
        }
        let tables = [self.twins.kernel.connections()?, self.twins.forwarder.connections()?];
        for shot in shots {
            for side in Side::BOTH {
                if self.wording.is_left_out(shot, firsts.get(&(side, shot.first.tag.shot))) {
                    continue;
                }
                let entry = tables[side as usize].get(&shot.first.tuple());
                let text = self.wording.entry_words(shot, entry);
                words[shot.flow].entry(Step::Connection).or_default()[side as usize].insert(text);
            }
        }
        for (flow, spec) in shots.iter().map(|shot| (shot.flow, shot.spec)).collect::<BTreeMap<_, _>>() {
            if spec.clients == Clients::One && spec.backends > 1 {
                let reached = |side| {
                    let of_flow = shots.iter().filter(move |shot| shot.flow == flow);
                    let tuples = of_flow.filter_map(|shot| firsts.get(&(side, shot.first.tag.shot)));
                    let backends = tuples
                        .filter(|first| first.seen.error.is_none())
                        .map(|first| (first.seen.tuple.destination, first.seen.tuple.destination_port));
                    backends.collect::<BTreeSet<_>>().len()
                };
                for side in Side::BOTH {
                    let text = match reached(side) {
                        0 => continue,
                        1 => "all connections of the client to one backend",
                        _ => "connections of the client to several backends",
                    };
                    words[flow].entry(Step::Affinity).or_default()[side as usize].insert(text.to_owned());
                }
            }
        }
        Ok(words)
    }

    /// First packets, answers, second packets.
    fn round(
        &mut self,
        shots: &[Shot<'_>],
        words: &mut [Words],
        firsts: &mut HashMap<(Side, u32), Sighting>,
    ) -> Result<(), Ended> {
        if (self.interrupted)() {
            return Err(Ended::Interrupted);
        }
        let udp = shots.iter().filter(|shot| is_udp(shot.first.tuple().protocol));
        let ports: HashSet<u16> = udp
            .flat_map(|shot| {
                let client = self.wording.site.is_local(shot.first.source).then_some(shot.first.source_port);
                client.into_iter().chain([shot.first.destination_port])
            })
            .collect();
        self.twins.absorb(ports.into_iter())?;

        let sendings: Vec<Sending> = shots
            .iter()
            .flat_map(|shot| {
                Side::BOTH.map(|side| Sending { side, place: shot.spec.place, datagram: shot.first })
            })
            .collect();
        let seen = self.twins.exchange(&sendings)?;
        let mut answers = Vec::new();
        let mut seconds = Vec::new();
        for shot in shots {
            for side in Side::BOTH {
                let tag = shot.first.tag;
                let sightings = seen[side as usize].get(&tag).map_or(&[][..], Vec::as_slice);
                if let [first] = sightings {
                    firsts.insert((side, tag.shot), first.clone());
                }
                if self.wording.is_left_out(shot, sightings.first()) {
                    continue;
                }
                self.note(words, shot, side, Step::First, &shot.first, sightings, None);
                let [first] = sightings else { continue };
                let Some((answer, second)) = shot.conversation(first) else { continue };
                answers.push((shot, Sending { side, place: first.place, datagram: answer }));
                seconds.push((shot, Sending { side, place: shot.spec.place, datagram: second }));
            }
        }
        let just = |sendings: &[(&Shot<'_>, Sending)]| {
            sendings.iter().map(|(_, sending)| *sending).collect::<Vec<_>>()
        };
        let seen = self.twins.exchange(&just(&answers))?;
        for (shot, Sending { side, datagram, .. }) in &answers {
            let sightings = seen[*side as usize].get(&datagram.tag).map_or(&[][..], Vec::as_slice);
            self.note(words, shot, *side, Step::Answer, datagram, sightings, None);
        }
        let seen = self.twins.exchange(&just(&seconds))?;
        for (shot, Sending { side, datagram, .. }) in &seconds {
            let sightings = seen[*side as usize].get(&datagram.tag).map_or(&[][..], Vec::as_slice);
            let first = firsts.get(&(*side, shot.first.tag.shot));
            self.note(words, shot, *side, Step::Second, datagram, sightings, first);
        }
        Ok(())
    }

    /// Adds what became of a packet to the words of its flow.
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, used in one place")]
    fn note(
        &self,
        words: &mut [Words],
        shot: &Shot<'_>,
        side: Side,
        step: Step,
        sent: &Datagram,
        sightings: &[Sighting],
        first: Option<&Sighting>,
    ) {
        let mut texts: Vec<String> =
            sightings.iter().map(|sighting| self.wording.packet_words(shot, sent, sighting)).collect();
        if let (Some(first), [now]) = (first, sightings)
            && first.seen.tuple != now.seen.tuple
        {
            texts.push("not as the first packet".to_owned());
        }
        texts.sort();
        let text = if texts.is_empty() { "nothing".to_owned() } else { texts.join(" and ") };
        words[shot.flow].entry(step).or_default()[side as usize].insert(text);
    }

    /// Tests the distribution of a service's backends, and of masqueraded ports, on both sides.
    fn choice(&mut self, choosing: &FlowSpec, level: f64) -> Result<(), Ended> {
        let mut chosen: [BTreeMap<(IpAddr, u16), u64>; 2] = Default::default();
        let mut ports: [Vec<u64>; 2] = [vec![0; PORT_KINDS], vec![0; PORT_KINDS]];
        for _ in 0..CONNECTIONS.div_ceil(ROUND) {
            if (self.interrupted)() {
                return Err(Ended::Interrupted);
            }
            let shots: Vec<Shot<'_>> = (0..ROUND).map(|_| self.shot(0, choosing)).collect();
            let sendings: Vec<Sending> = shots
                .iter()
                .flat_map(|shot| {
                    Side::BOTH.map(|side| Sending { side, place: shot.spec.place, datagram: shot.first })
                })
                .collect();
            let seen: [Sightings; 2] = self.twins.exchange(&sendings)?;
            for shot in &shots {
                for side in Side::BOTH {
                    let sightings = seen[side as usize].get(&shot.first.tag).map_or(&[][..], Vec::as_slice);
                    let [Sighting { seen: Seen { tuple, error: None, .. }, .. }] = sightings else {
                        continue;
                    };
                    let backend = (tuple.destination, tuple.destination_port);
                    *chosen[side as usize].entry(backend).or_default() += 1;
                    if tuple.source != shot.first.source && tuple.source_port >= 1024 {
                        ports[side as usize][usize::from(tuple.source_port - 1024) / PORTS_OF_A_KIND] += 1;
                    }
                }
            }
        }
        let backends: BTreeSet<(IpAddr, u16)> = chosen.iter().flat_map(BTreeMap::keys).copied().collect();
        let counts = chosen.map(|chosen| {
            backends.iter().map(|backend| chosen.get(backend).copied().unwrap_or(0)).collect::<Vec<u64>>()
        });
        let fair = counts.each_ref().map(|counts| p_value(counts, &vec![1.0; counts.len()]));
        // A handful may be lost on a busy machine; more is no accident.
        let total = CONNECTIONS.div_ceil(ROUND) * ROUND;
        let complete = counts.iter().all(|counts| {
            let sum = counts.iter().sum::<u64>() as usize;
            sum == 0 || sum * 100 >= total * 99
        });
        let both = (counts[0].iter().sum::<u64>() == 0) == (counts[1].iter().sum::<u64>() == 0);
        if !complete || !both || fair.iter().any(|p| *p < level) {
            let text = |side: usize| {
                let counts: Vec<String> = backends
                    .iter()
                    .zip(&counts[side])
                    .map(|((address, port), count)| {
                        format!("{}: {count}", std::net::SocketAddr::new(*address, *port))
                    })
                    .collect();
                format!("{} (p = {:.1e} if all alike)", counts.join(", "), fair[side])
            };
            self.differences.push(Difference {
                flow: choosing.name.clone(),
                step: "distribution of backends",
                kernel: vec![text(0)],
                pollux: vec![text(1)],
            });
        }
        if !self.wording.keeps_ports {
            self.masqueraded_ports(choosing, &ports, level);
        }
        Ok(())
    }

    /// Both sides draw a masqueraded port at random. The kernel draws 16 bits and takes the remainder by the
    /// 64,512 ports of the class, so the first 1,024 of them come twice as often; Pollux draws evenly.
    fn masqueraded_ports(&mut self, choosing: &FlowSpec, ports: &[Vec<u64>; 2], level: f64) {
        let even = vec![1.0; PORT_KINDS];
        let mut by_remainder = vec![PORTS_OF_A_KIND as f64; PORT_KINDS];
        by_remainder[0] += 1024.0;
        let fair = [p_value(&ports[0], &by_remainder), p_value(&ports[1], &even)];
        let counted = ports.each_ref().map(|ports| ports.iter().sum::<u64>());
        if fair.iter().any(|p| *p < level) || (counted[0] == 0) != (counted[1] == 0) {
            let text = |side: usize| {
                format!(
                    "{:?} in {PORT_KINDS} equal parts of 1024-65535 (p = {:.1e})",
                    ports[side], fair[side]
                )
            };
            self.differences.push(Difference {
                flow: choosing.name.clone(),
                step: "distribution of masqueraded ports",
                kernel: vec![text(0)],
                pollux: vec![text(1)],
            });
        }
    }
}

/// Parts into which 1024-65535 is cut.
const PORT_KINDS: usize = 16;
const PORTS_OF_A_KIND: usize = 64_512 / PORT_KINDS;

/// How often a flow is sent at first.
fn repeats(spec: &FlowSpec) -> usize {
    match spec.backends {
        1 => 2,
        few if few <= FEW && !spec.sticky => 4 * few,
        _ => 8,
    }
}
