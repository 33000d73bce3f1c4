//! Both twins, and packets through them: the same to each, and all that comes out, by tag.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pollux_dataplane::packet::Protocol;
use pollux_dataplane::pool::Pool;

use super::forwarder::Forwarder;
use super::kernel::Kernel;
use super::packet::{Checksum, Content, Datagram, Tag};
use super::scenario::Scenario;
use super::site::{Namespaces, Site};
use super::wire::{Place, Sighting, Wire};
use crate::cli::Failure;
use crate::lab::pollux::Wiring;

/// Packets sent before the ends are emptied: fewer than the smallest buffer on the way holds.
const CHUNK: usize = 48;

/// How long both ends must be silent after everything was sent, when the last packet is known to be through.
const QUIET: Duration = Duration::from_millis(12);

/// And when it is not.
const LONG_QUIET: Duration = Duration::from_millis(250);

/// Longest wait for packets that are sent to mark the end.
const PATIENCE: Duration = Duration::from_secs(4);

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Side {
    Kernel = 0,
    Pollux = 1,
}

impl Side {
    pub(super) const BOTH: [Side; 2] = [Side::Kernel, Side::Pollux];
}

/// A packet on its way into one of the twins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) side: Side,
    pub(super) place: Place,
    pub(super) datagram: Datagram,
}

/// What came out of a side, by tag.
pub(super) type Sightings = HashMap<Tag, Vec<Sighting>>;

/// The twins. What they are made of ends with them, in this order.
pub(super) struct Twins {
    wires: [Wire; 2],
    pub(super) kernel: Kernel,
    pub(super) forwarder: Forwarder,
    site: Site,
    locals: Vec<IpAddr>,
    /// Ports on which the node itself may be reached.
    listened: HashSet<u16>,
    marks: u32,
    /// Whether marks come through at all: rules may forbid them.
    marked: bool,
    pub(super) packets: u64,
    _namespaces: Namespaces,
}

/// Marks count down from here.
const LAST_MARK: u32 = u32::MAX;

impl Twins {
    /// Builds both nodes and starts their forwarders. `prefix` begins the names of their namespaces.
    ///
    /// # Errors
    /// What the machine lacks, or refuses.
    pub(super) fn start(
        scenario: &Scenario,
        site: &Site,
        wiring: Wiring,
        pool: &'static Pool,
        prefix: &str,
    ) -> Result<Twins, Failure> {
        let namespaces = site.build(&scenario.settings, prefix).map_err(Failure::environment)?;
        let Namespaces { outside, kernel, pollux } = &namespaces;
        let wires =
            [Wire::of_kernel(site, scenario.family, outside, kernel)?, Wire::of_pollux(site, outside)?];
        let kernel = Kernel::start(kernel, scenario)?;
        let forwarder =
            Forwarder::start(pollux, scenario, site, &timeouts(), wiring, pool, &format!("{prefix}pollux"))?;
        let slices = scenario.cluster.slices.values();
        let v4 = site.idle_pods[0].is_ipv4();
        Ok(Twins {
            wires,
            kernel,
            forwarder,
            site: site.clone(),
            locals: site.locals.iter().copied().filter(|address| address.is_ipv4() == v4).collect(),
            listened: slices.flat_map(|slice| &slice.ports).map(|port| port.port).collect(),
            marks: LAST_MARK,
            marked: true,
            packets: 0,
            _namespaces: namespaces,
        })
    }

    /// Has the kernel's stack take UDP silently on these ports and where endpoints listen.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub(super) fn absorb(&mut self, ports: impl Iterator<Item = u16>) -> io::Result<()> {
        self.wires[0].absorb(self.listened.iter().copied().chain(ports))
    }

    /// Sends packets and returns everything that came out of each side, once nothing more comes.
    ///
    /// # Errors
    /// When a socket fails.
    pub(super) fn exchange(&mut self, sendings: &[Sending]) -> io::Result<[Sightings; 2]> {
        let mut seen = [Vec::new(), Vec::new()];
        let mut places: HashSet<(Side, Place)> = HashSet::new();
        for chunk in sendings.chunks(CHUNK) {
            for sending in chunk {
                self.send(sending)?;
                places.insert((sending.side, sending.place));
            }
            self.drain(&mut seen)?;
        }
        self.packets += sendings.len() as u64;
        self.wait(places, &mut seen)?;
        Ok(seen.map(|seen| {
            let mut sightings = Sightings::new();
            for sighting in seen {
                sightings.entry(sighting.seen.tag).or_default().push(sighting);
            }
            sightings
        }))
    }

    fn send(&mut self, sending: &Sending) -> io::Result<()> {
        let Sending { side, place, datagram } = sending;
        let packet = datagram.to_bytes();
        self.wires[*side as usize].send(*place, datagram.source, datagram.destination, &packet)
    }

    fn drain(&mut self, seen: &mut [Vec<Sighting>; 2]) -> io::Result<()> {
        for (wire, seen) in self.wires.iter_mut().zip(seen) {
            wire.receive(seen)?;
        }
        Ok(())
    }

    /// Waits until what was sent is through: a packet that is sent last at each place marks the end, because
    /// those before it are done with when it comes out; then until all is quiet.
    fn wait(&mut self, places: HashSet<(Side, Place)>, seen: &mut [Vec<Sighting>; 2]) -> io::Result<()> {
        let mut missing = HashSet::new();
        if self.marked {
            for (side, place) in places {
                let mark = self.mark(place);
                missing.insert((side, mark.tag));
                self.send(&Sending { side, place, datagram: mark })?;
            }
        }
        let begun = Instant::now();
        let mut last = begun;
        let mut checked = [0, 0];
        loop {
            let before: usize = seen.iter().map(Vec::len).sum();
            self.drain(seen)?;
            if seen.iter().map(Vec::len).sum::<usize>() != before {
                last = Instant::now();
            }
            for side in Side::BOTH {
                let (seen, checked) = (&seen[side as usize], &mut checked[side as usize]);
                for sighting in &seen[*checked..] {
                    missing.remove(&(side, sighting.seen.tag));
                }
                *checked = seen.len();
            }
            if !missing.is_empty() && begun.elapsed() > PATIENCE {
                self.marked = false;
                missing.clear();
            }
            let quiet = if self.marked { QUIET } else { LONG_QUIET };
            if missing.is_empty() && last.elapsed() >= quiet {
                return Ok(());
            }
            let left = if missing.is_empty() { quiet.saturating_sub(last.elapsed()) } else { QUIET };
            let mut descriptors: Vec<PollFd<'_>> = self
                .wires
                .iter()
                .flat_map(Wire::descriptors)
                .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
                .collect();
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut descriptors, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A datagram that goes from `place` to somewhere else by its own address.
    fn mark(&mut self, place: Place) -> Datagram {
        let pod = self.site.idle_pods[0];
        let outside: IpAddr = if pod.is_ipv4() { [198, 51, 100, 9].into() } else { OUTSIDE_V6.into() };
        let (source, destination) = match place {
            Place::Port(0) => (outside, pod),
            Place::Port(number) => {
                let behind = self
                    .site
                    .pods
                    .iter()
                    .find(|(pod, port)| **port == number && pod.is_ipv4() == outside.is_ipv4());
                (behind.map_or(outside, |(pod, _)| *pod), outside)
            }
            Place::Host => (self.locals[0], outside),
        };
        self.marks -= 1;
        Datagram {
            source,
            source_port: 9,
            destination,
            destination_port: 9,
            content: Content::Udp,
            checksum: Checksum::Right,
            ttl: 64,
            tag: Tag { shot: self.marks, packet: 0 },
        }
    }
}

/// Timeouts that outlast a comparison, as in the kernel's node.
fn timeouts() -> BTreeMap<String, u32> {
    ["udp_timeout", "icmp_timeout", "icmpv6_timeout", "sctp_timeout_closed", "sctp_timeout_cookie_wait"]
        .into_iter()
        .map(|name| (format!("nf_conntrack_{name}"), 120))
        .collect()
}

const OUTSIDE_V6: [u16; 8] = [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 9];

/// Whether a packet of this protocol may be taken by a socket that is bound to its port.
pub(super) fn is_udp(protocol: Protocol) -> bool {
    protocol == Protocol::UDP
}
