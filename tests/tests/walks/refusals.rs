//! What has to wait, and then ends.

use std::time::Duration;

use pollux_dataplane::stats::Reason;
use pollux_tests::frame::{DONT_FRAGMENT, Frame};
use pollux_tests::seed::{Cluster, POD_7, SERVICE, link, port};

#[test]
fn nat_08_a_fragment_is_not_let_through_untranslated() {
    // NAT-08: its ports are not known, so what it belongs to is not either, until the first one comes.
    let mut node = Cluster::seed().node();
    let whole = Frame::udp((POD_7, 40000), (SERVICE, 80)).link(link::POD_7, link::CALI);
    let later = Frame { fragment: 0x0010, ..whole };
    assert_ne!(later.fragment & DONT_FRAGMENT, DONT_FRAGMENT);
    assert_eq!(node.send(port::POD_7, &later.bytes()), []);
    assert_eq!(node.stats().held, 1);
    assert_eq!(node.wait(Duration::from_secs(30)), []);
    assert_eq!((node.dropped(Reason::FragmentTimeout), node.stats().held), (1, 0));
}
