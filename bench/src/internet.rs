//! Synthetic Internet tables: as many prefixes of each length as a full table has, at random addresses that lie
//! together as real ones do.

use std::collections::HashSet;

use pollux_dataplane::packet::{Address, Family, PortId, Prefix, V4, V6};
use pollux_dataplane::route::{NextHop, Route, RouteKind};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Shares of the prefix lengths in thousandths, after the tables that route collectors publish (RIPE RIS, 2025).
const LENGTHS_V4: &[(u8, u32)] = &[
    (8, 1),
    (11, 1),
    (12, 1),
    (13, 1),
    (14, 2),
    (15, 2),
    (16, 14),
    (17, 9),
    (18, 15),
    (19, 26),
    (20, 46),
    (21, 54),
    (22, 112),
    (23, 102),
    (24, 614),
];
const LENGTHS_V6: &[(u8, u32)] = &[
    (20, 1),
    (28, 2),
    (29, 22),
    (30, 5),
    (32, 130),
    (33, 10),
    (34, 8),
    (35, 5),
    (36, 45),
    (38, 10),
    (40, 95),
    (42, 30),
    (44, 130),
    (45, 10),
    (46, 30),
    (47, 17),
    (48, 450),
];

/// A family's table: a default route and `prefixes` others, out of a few ports.
pub trait Internet: Family {
    /// Shares of the lengths.
    const LENGTHS: &'static [(u8, u32)];
    /// Prefixes of a full table.
    const FULL: usize;
    /// A random address where there are prefixes.
    fn address(random: &mut StdRng) -> Self::Addr;
}

impl Internet for V4 {
    const LENGTHS: &'static [(u8, u32)] = LENGTHS_V4;
    const FULL: usize = 1_000_000;
    fn address(random: &mut StdRng) -> Self::Addr {
        let first = random.random_range(1..=223u32);
        Self::Addr::from_bits(first << 24 | random.random::<u32>() >> 8)
    }
}

impl Internet for V6 {
    const LENGTHS: &'static [(u8, u32)] = LENGTHS_V6;
    const FULL: usize = 200_000;
    fn address(random: &mut StdRng) -> Self::Addr {
        // What the registries have given out lies in few blocks of /12, and close together in these.
        const BLOCKS: [u128; 7] = [0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2a10, 0x2c00];
        let block = BLOCKS[random.random_range(0..BLOCKS.len())] + random.random_range(0..16u128);
        let site = u128::from(random.random::<u32>() & 0xfff) << 84;
        Self::Addr::from_bits(block << 112 | site | random.random::<u128>() >> 44)
    }
}

/// `prefixes` different routes and the default route.
pub fn table<A: Internet>(prefixes: usize, seed: u64) -> Vec<Route<A>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    let mut routes = vec![route(Prefix::ALL, &mut random)];
    while routes.len() <= prefixes {
        let prefix = Prefix::new(A::address(&mut random), length::<A>(&mut random));
        if seen.insert(prefix) {
            routes.push(route(prefix, &mut random));
        }
    }
    routes
}

/// A route out of one of a few ports.
pub fn route<A: Internet>(prefix: Prefix<A>, random: &mut StdRng) -> Route<A> {
    Route::new(prefix, RouteKind::Via(NextHop::on_link(PortId(random.random_range(0..8)))))
}

/// Random destinations within random routes.
pub fn destinations<A: Internet>(routes: &[Route<A>], number: usize, seed: u64) -> Vec<A::Addr> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..number)
        .map(|_| {
            let prefix = routes[random.random_range(0..routes.len())].prefix;
            let host =
                random.random::<u128>().checked_shr(128 - u32::from(A::BITS - prefix.len())).unwrap_or(0);
            A::Addr::from_bits(prefix.address().bits() | host)
        })
        .collect()
}

fn length<A: Internet>(random: &mut StdRng) -> u8 {
    let total: u32 = A::LENGTHS.iter().map(|(_, share)| share).sum();
    let mut at = random.random_range(0..total);
    for (length, share) in A::LENGTHS {
        match at.checked_sub(*share) {
            Some(rest) => at = rest,
            None => return *length,
        }
    }
    A::BITS
}
