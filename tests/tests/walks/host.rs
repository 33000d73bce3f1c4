//! Of W1 what no list of frames can say: a choice.

use pollux_tests::frame::{Fields, Frame, assert_checksums, flag};
use pollux_tests::seed::{Cluster, NODE, POD_7, POD_8, POD_REMOTE, SERVICE, port};

#[test]
fn w1_each_backend_is_chosen_a_third_of_the_time() {
    let mut node = Cluster::seed().node();
    node.choose_at_random();
    let mut chosen = [0u32; 3];
    const CONNECTIONS: u16 = 3000;
    for number in 0..CONNECTIONS {
        let syn = Frame::tcp((NODE, 20_000 + number), (SERVICE, 80), flag::SYN);
        let left = node.send_one(port::HOST, &syn.bytes());
        assert_checksums(&left.bytes);
        let backend = Fields::of(&left.bytes).destination;
        let place = [POD_REMOTE, POD_7, POD_8].iter().position(|pod| *pod == backend);
        chosen[place.expect("one of the Service's pods")] += 1;
    }
    // Standard deviation of a third of 3000: 26. Five of them.
    assert!(chosen.iter().all(|count| count.abs_diff(1000) < 130), "{chosen:?}");
}
