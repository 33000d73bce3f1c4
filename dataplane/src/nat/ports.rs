//! Source ports for translated connections (NAT-03, NAT-05): which ones are tried, in which order. Whether
//! one is free is the flow table's word: inserting the reply tuple is the reservation.

use rand::{Rng, RngExt};

use crate::flow::FlowKey;
use crate::packet::Family;
use crate::tables::MasqueradePorts;

/// How many ports are tried at most: the kernel's sequence of 128, then 64, 32, 16, 8 from a new random place
/// each (`nf_nat_l4proto_unique_tuple`), so that a crowded range costs a bounded time.
const ROUNDS: [u32; 5] = [128, 64, 32, 16, 8];

/// The ports to try for one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortSearch {
    /// Tried first.
    original: Option<u16>,
    /// First port of the class and how many there are; none for protocols without ports.
    class: Option<(u16, u32)>,
}

impl PortSearch {
    /// The search for a connection whose first packet is `key`.
    pub fn of<A: Family>(mode: MasqueradePorts, key: &FlowKey<A>) -> PortSearch {
        let class = if key.protocol.has_ports() {
            Some(match key.source_port {
                0..512 => (1, 511),
                512..1024 => (600, 424),
                _ => (1024, 64512),
            })
        } else if key.protocol == A::ICMP {
            Some((0, 65536)) // the identifier of a query
        } else {
            None
        };
        let keep = mode == MasqueradePorts::Keep || class.is_none();
        PortSearch { original: keep.then_some(key.source_port), class }
    }

    /// The ports in the order in which they are to be tried.
    pub fn candidates<R: Rng>(self, random: &mut R) -> impl Iterator<Item = u16> {
        let mut rounds = [(0u32, 0u32); ROUNDS.len()];
        let (first, size) = self.class.unwrap_or((0, 0));
        // A class smaller than a round is tried once, whole.
        let needed = if size == 0 {
            0
        } else if size <= ROUNDS[0] {
            1
        } else {
            ROUNDS.len()
        };
        for (round, attempts) in rounds.iter_mut().zip(ROUNDS).take(needed) {
            *round = (random.random_range(0..size), attempts.min(size));
        }
        let random_ports = rounds.into_iter().flat_map(move |(offset, attempts)| {
            (0..attempts).map(move |i| (u32::from(first) + (offset + i) % size) as u16)
        });
        self.original.into_iter().chain(random_ports)
    }
}
