//! What the tests of Pollux share: frames, topologies, comparisons.
