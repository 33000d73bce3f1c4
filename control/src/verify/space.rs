//! Sets of numbers, and how a space is cut into classes whose members nothing tells apart.

use smallvec::{SmallVec, smallvec};

/// A set of numbers as sorted, disjoint, inclusive ranges that do not touch. Addresses are numbers here
/// ([`Address::bits`](pollux_dataplane::packet::Address::bits)), ports too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ranges(Spans);

/// Most sets are one span or two: a piece has eight sets, and is made for each run.
type Spans = SmallVec<[(u128, u128); 2]>;

impl Ranges {
    /// The numbers from `first` to `last`.
    pub(super) fn span(first: u128, last: u128) -> Ranges {
        Ranges(smallvec![(first, last)])
    }

    /// The union of spans, in any order.
    pub(super) fn union(spans: impl IntoIterator<Item = (u128, u128)>) -> Ranges {
        let mut spans: Vec<_> = spans.into_iter().collect();
        spans.sort_unstable();
        let mut ranges = Spans::new();
        for (first, last) in spans {
            match ranges.last_mut() {
                Some(before) if first <= before.1 || first == before.1.wrapping_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => ranges.push((first, last)),
            }
        }
        Ranges(ranges)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a number is in it.
    pub(super) fn contains(&self, number: u128) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= self.0[after - 1].1
    }

    /// Its spans.
    pub(super) fn spans(&self) -> &[(u128, u128)] {
        &self.0
    }

    /// A member, if there is one: the smallest.
    pub(super) fn first(&self) -> Option<u128> {
        self.0.first().map(|(first, _)| *first)
    }

    /// What is in both.
    #[must_use]
    pub(super) fn intersect(&self, other: &Ranges) -> Ranges {
        let (mut left, mut right) = (self.0.iter().copied().peekable(), other.0.iter().copied().peekable());
        let mut both = Spans::new();
        while let (Some(&(a, b)), Some(&(c, d))) = (left.peek(), right.peek()) {
            let (first, last) = (a.max(c), b.min(d));
            if first <= last {
                both.push((first, last));
            }
            if b < d {
                left.next()
            } else {
                right.next()
            };
        }
        Ranges(both)
    }

    /// What is in this and not in the other.
    #[must_use]
    pub(super) fn minus(&self, other: &Ranges) -> Ranges {
        let mut rest = Spans::new();
        for &(mut first, last) in &self.0 {
            let from = other.0.partition_point(|(_, end)| *end < first);
            let mut covered = false;
            for &(hole, end) in other.0[from..].iter().take_while(|(hole, _)| *hole <= last) {
                if hole > first {
                    rest.push((first, hole - 1));
                }
                if end >= last {
                    covered = true;
                    break;
                }
                first = end + 1;
            }
            if !covered {
                rest.push((first, last));
            }
        }
        Ranges(rest)
    }
}

/// A class of numbers that no constant tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class {
    /// A member.
    pub member: u128,
    /// Whether it is the only one.
    pub single: bool,
}

/// Cuts `universe` at the constants: each of `singles` is a class of its own, and the rest falls into one
/// class for each combination of `sets` that numbers can be in. Linear in `singles`; the sets are few.
pub(super) fn classes(universe: (u128, u128), singles: &[u128], sets: &[Ranges]) -> Vec<Class> {
    let mut singles: Vec<u128> =
        singles.iter().copied().filter(|one| universe.0 <= *one && *one <= universe.1).collect();
    singles.sort_unstable();
    singles.dedup();
    let mut classes: Vec<Class> = singles.iter().map(|&member| Class { member, single: true }).collect();
    let mut cuts: Vec<u128> = vec![universe.0];
    for &(first, last) in sets.iter().flat_map(Ranges::spans) {
        cuts.push(first.clamp(universe.0, universe.1));
        if last < universe.1 {
            cuts.push((last + 1).max(universe.0));
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut seen = std::collections::HashSet::new();
    for (at, &first) in cuts.iter().enumerate() {
        let last = cuts.get(at + 1).map_or(universe.1, |next| next - 1);
        let Some(member) = free_member(first, last, &singles) else { continue };
        let signature: Vec<bool> = sets.iter().map(|set| set.contains(member)).collect();
        if seen.insert(signature) {
            classes.push(Class { member, single: false });
        }
    }
    classes
}

/// A number from `first` to `last` that is not among `taken`, which is sorted: the smallest behind `first`, as
/// hosts are numbered, or `first` itself.
fn free_member(first: u128, last: u128, taken: &[u128]) -> Option<u128> {
    let behind = first.checked_add(1).and_then(|second| free_from(second, last, taken));
    behind.or_else(|| free_from(first, last, taken))
}

fn free_from(first: u128, last: u128, taken: &[u128]) -> Option<u128> {
    let mut member = first;
    for &one in &taken[taken.partition_point(|one| *one < first)..] {
        if one > member {
            break;
        }
        member = one.checked_add(1)?;
    }
    (member <= last).then_some(member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(spans: &[(u8, u8)]) -> Ranges {
        Ranges::union(spans.iter().map(|&(a, b)| (u128::from(a.min(b)), u128::from(a.max(b)))))
    }

    proptest! {
        #[test]
        fn sets_are_sets(
            left in prop::collection::vec(any::<(u8, u8)>(), 0..6),
            right in prop::collection::vec(any::<(u8, u8)>(), 0..6),
        ) {
            let (left, right) = (set(&left), set(&right));
            let (both, rest) = (left.intersect(&right), left.minus(&right));
            for number in 0..=256 {
                let (l, r) = (left.contains(number), right.contains(number));
                prop_assert_eq!(both.contains(number), l && r);
                prop_assert_eq!(rest.contains(number), l && !r);
            }
            // One form for one set: a set minus nothing is itself.
            prop_assert_eq!(left.minus(&Ranges::default()), left.clone());
            prop_assert_eq!(left.intersect(&left), left);
        }

        /// Every number has a class with a member that all constants treat alike.
        #[test]
        fn classes_cover_everything(
            singles in prop::collection::vec(any::<u8>(), 0..20),
            spans in prop::collection::vec(any::<(u8, u8)>(), 0..5),
        ) {
            let singles: Vec<u128> = singles.into_iter().map(u128::from).collect();
            let spans: Vec<(u128, u128)> = spans
                .into_iter()
                .map(|(a, b)| (u128::from(a.min(b)), u128::from(a.max(b))))
                .collect();
            let sets: Vec<Ranges> = spans.iter().map(|&(first, last)| Ranges::span(first, last)).collect();
            let found = classes((0, 255), &singles, &sets);
            let alike = |a: u128, b: u128| {
                spans.iter().all(|(first, last)| {
                    (first <= &a && &a <= last) == (first <= &b && &b <= last)
                })
            };
            for number in 0..=255 {
                let class = found.iter().find(|class| match singles.contains(&number) {
                    true => class.single && class.member == number,
                    false => !class.single && alike(class.member, number),
                });
                prop_assert!(class.is_some(), "{} has no class", number);
            }
        }
    }

    #[test]
    fn the_ends_of_the_space_are_no_trouble() {
        let all = Ranges::span(0, u128::MAX);
        let last = Ranges::span(u128::MAX, u128::MAX);
        assert_eq!(all.minus(&last), Ranges::span(0, u128::MAX - 1));
        assert_eq!(last.minus(&all), Ranges::default());
        assert_eq!(Ranges::union([(0, 5), (6, u128::MAX)]), all);
        assert_eq!(classes((0, u128::MAX), &[], &[Ranges::span(5, u128::MAX)]).len(), 2);
        // One set in two places is one class.
        let split = Ranges::union([(5, 9), (20, 29)]);
        assert_eq!(classes((0, 255), &[7], &[split]).len(), 3);
    }
}
