//! Of W14 what no list of frames can say: a port that is chosen.

use std::net::Ipv4Addr;

use pollux_tests::frame::{Fields, Frame};
use pollux_tests::seed::{Cluster, NODE, link, port};

use crate::assert_walk;

const CONTAINER_5: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 5);
const CONTAINER_6: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 6);
const FAR: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

#[test]
fn w14_two_containers_with_one_source_port_get_two() {
    // NAT-05, mode keep: the second connection's reply could not be told from the first's.
    let mut node = Cluster::seed().with_docker().node();
    let query = |from, link| Frame::udp((from, 40000), (FAR, 53)).link(link, link::DOCKER).bytes();
    let first = node.send_one(port::DOCKER, &query(CONTAINER_5, link::CONTAINER_5));
    let second = node.send_one(port::DOCKER, &query(CONTAINER_6, link::CONTAINER_6));
    let (first, second) = (Fields::of(&first.bytes), Fields::of(&second.bytes));
    assert_eq!((first.source, first.source_port), (NODE, 40000));
    assert_eq!(second.source, NODE);
    assert_ne!(second.source_port, 40000);
    // Whose answer it is, the port says.
    let answer = Frame::udp((FAR, 53), (NODE, second.source_port)).link(link::GATEWAY, link::ENS3).ttl(57);
    let expected = answer.clone().to(CONTAINER_6, 40000).link(link::DOCKER, link::CONTAINER_6).ttl(56);
    assert_walk(&mut node, port::ENS3, &answer, port::DOCKER, &expected);
}
