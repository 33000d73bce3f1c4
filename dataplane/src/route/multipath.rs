//! Several next hops of one route (RT-01): a flow's hash chooses, in proportion to the weights.
//!
//! Hash threshold, as in the kernel (RFC 2992): the hash space is cut into adjacent regions, one for each next
//! hop. A flow stays where it is as long as the next hops do; when one goes, about half of the other flows do.

use super::NextHop;
use crate::packet::Family;

/// The hash space: 31 bits, as the kernel's.
const SPACE: u64 = 1 << 31;

/// Next hops with weights; at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Multipath<A: Family> {
    ways: Box<[Way<A>]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way<A: Family> {
    hop: NextHop<A>,
    weight: u16,
    /// The first hash that is no longer this way's.
    end: u32,
}

impl<A: Family> Multipath<A> {
    /// The next hops in their order, each with its weight (1 to 65,535; 0 counts as 1). Nothing without any.
    pub fn new(hops: impl IntoIterator<Item = (NextHop<A>, u16)>) -> Option<Self> {
        let hops: Vec<_> = hops.into_iter().map(|(hop, weight)| (hop, weight.max(1))).collect();
        let total: u64 = hops.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut before = 0;
        let way = |(hop, weight): (NextHop<A>, u16)| {
            before += u64::from(weight);
            Way { hop, weight, end: ((before * SPACE + total / 2) / total) as u32 }
        };
        let ways: Box<[_]> = hops.into_iter().map(way).collect();
        (!ways.is_empty()).then_some(Multipath { ways })
    }

    /// The next hop of the flow with this hash.
    #[inline]
    pub fn choose(&self, flow_hash: u32) -> &NextHop<A> {
        let hash = flow_hash >> 1;
        // The last region ends with the space.
        let way = self.ways.iter().find(|way| hash < way.end).unwrap_or(&self.ways[self.ways.len() - 1]);
        &way.hop
    }

    /// The next hops and their weights, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&NextHop<A>, u16)> {
        self.ways.iter().map(|way| (&way.hop, way.weight))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::packet::{PortId, V4};

    fn hop(port: u16) -> NextHop<V4> {
        NextHop::on_link(PortId(port))
    }

    #[test]
    fn rt_01_weights_share_the_flows() {
        let ways = Multipath::new([(hop(0), 1), (hop(1), 2), (hop(2), 5)]).unwrap();
        let mut random = StdRng::seed_from_u64(1);
        let mut taken = [0u32; 3];
        for _ in 0..80_000 {
            taken[ways.choose(random.random()).port.index()] += 1;
        }
        // Six standard deviations of 80,000 draws are below 850.
        for (got, expected) in taken.into_iter().zip([10_000, 20_000, 50_000]) {
            assert!(got.abs_diff(expected) < 850, "{taken:?}");
        }
    }

    #[test]
    fn rt_01_the_regions_cover_the_space_and_no_way_is_left_out() {
        let ways = Multipath::new((0..256).map(|port| (hop(port), 1 + port % 7))).unwrap();
        assert_eq!(ways.ways.last().unwrap().end, 1 << 31);
        assert!(ways.ways.windows(2).all(|pair| pair[0].end < pair[1].end));
        assert_eq!(ways.choose(0).port, PortId(0));
        assert_eq!(ways.choose(u32::MAX).port, PortId(255));
        assert!(Multipath::<V4>::new([]).is_none());
    }

    #[test]
    fn rt_01_a_hop_that_goes_moves_no_more_flows_than_it_must() {
        let four = Multipath::new((0..4).map(|port| (hop(port), 1))).unwrap();
        let three = Multipath::new((0..3).map(|port| (hop(port), 1))).unwrap();
        let mut random = StdRng::seed_from_u64(2);
        let moved = (0..40_000).filter(|_| {
            let hash: u32 = random.random();
            four.choose(hash).port != three.choose(hash).port
        });
        // A quarter were its own; of the others hash threshold moves a quarter of the whole space (RFC 2992).
        assert!((19_000..21_000).contains(&moved.count()));
    }
}
