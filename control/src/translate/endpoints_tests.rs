//! EP-01 to EP-05 on the one function that categorises.

use pollux_dataplane::packet::V4;

use super::*;

const BOTH: Uses = Uses { cluster: true, local: true };

fn state(words: &str) -> SliceEndpoint {
    let has = |word: &str| words.split(' ').any(|w| w == word);
    let hints = |prefix: &str| {
        words.split(' ').filter_map(|word| word.strip_prefix(prefix)).map(str::to_string).collect()
    };
    SliceEndpoint {
        address: "0.0.0.0".parse().unwrap(),
        ready: has("ready"),
        serving: has("ready") || has("serving"),
        terminating: has("terminating"),
        node_name: Some(if has("here") { "here" } else { "there" }.into()),
        zone_hints: hints("zone="),
        node_hints: hints("node="),
    }
}

/// Endpoints 10.0.0.1, 10.0.0.2, … of these words, categorised for node `here` in `zone`; the last octets
/// of the two sets.
fn sets_in(zone: Option<&str>, uses: Uses, words: &[&str]) -> (Vec<u8>, Vec<u8>, Availability) {
    let states: Vec<_> = words.iter().map(|words| state(words)).collect();
    let endpoints: Vec<_> = (1u8..)
        .zip(&states)
        .map(|(octet, state)| Endpoint::<V4> {
            backend: Backend { address: [10, 0, 0, octet].into(), port: 80 },
            state,
            place: match state.node_name.as_deref() {
                Some("here") => Place::Here,
                _ => Place::Elsewhere,
            },
        })
        .collect();
    let EndpointSets { cluster, local, availability } =
        categorise(&endpoints, uses, Topology { node: "here", zone });
    let octets = |set: Vec<Backend<V4>>| set.iter().map(|b| b.address.octets()[3]).collect();
    (octets(cluster), octets(local), availability)
}

fn sets(words: &[&str]) -> (Vec<u8>, Vec<u8>, Availability) {
    sets_in(Some("z1"), BOTH, words)
}

#[test]
fn ep_01_ready_endpoints_win_and_else_those_that_serve_and_terminate() {
    assert_eq!(sets(&["ready", "serving terminating", "serving", ""]).0, [1]);
    assert_eq!(sets(&["", "serving terminating", "serving", "terminating"]).0, [2]);
}

#[test]
fn ep_02_local_endpoints_fall_back_by_themselves() {
    let (cluster, local, _) = sets(&["ready", "here serving terminating", "here serving"]);
    assert_eq!((cluster, local), (vec![1], vec![2]));
    let (_, local, _) = sets(&["here ready", "here serving terminating"]);
    assert_eq!(local, [1]);
}

#[test]
fn ep_02_topology_says_nothing_about_local_endpoints() {
    let (cluster, local, _) = sets(&["here ready zone=z2", "ready zone=z1"]);
    assert_eq!((cluster, local), (vec![2], vec![1]));
}

#[test]
fn ep_04_zone_hints() {
    assert_eq!(sets(&["ready zone=z1", "ready zone=z2", "ready zone=z2 zone=z1"]).0, [1, 3]);
    assert_eq!(sets(&["ready zone=z1", "ready"]).0, [1, 2], "one without a hint");
    assert_eq!(sets(&["ready zone=z2", "ready zone=z3"]).0, [1, 2], "none names the zone");
    assert_eq!(sets(&["ready zone=z1", "serving"]).0, [1], "only ready ones are asked");
    assert_eq!(sets_in(None, BOTH, &["ready zone=z1", "ready zone=z2"]).0, [1, 2], "no zone");
}

#[test]
fn ep_04_node_hints_come_before_zone_hints() {
    assert_eq!(sets(&["ready node=here zone=z2", "ready node=there zone=z1"]).0, [1]);
    assert_eq!(sets(&["ready node=there zone=z2", "ready node=there zone=z1"]).0, [2]);
    assert_eq!(sets(&["ready node=here zone=z2", "ready zone=z1"]).0, [2]);
}

#[test]
fn ep_01_the_fallback_ignores_topology() {
    assert_eq!(sets(&["serving terminating zone=z1", "serving terminating zone=z2"]).0, [1, 2]);
}

#[test]
fn ep_05_has_endpoints() {
    let local_only = Uses { cluster: false, local: true };
    let availability = |uses, words: &[&str]| sets_in(None, uses, words).2;
    assert_eq!(availability(local_only, &["ready"]), Availability::Some);
    assert_eq!(availability(local_only, &["serving terminating"]), Availability::Some);
    assert_eq!(availability(local_only, &["serving", "terminating"]), Availability::None);
    assert_eq!(availability(Uses { cluster: true, local: false }, &["ready"]), Availability::Some);
    assert_eq!(availability(BOTH, &[]), Availability::None);
}
