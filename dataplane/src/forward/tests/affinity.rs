//! Session affinity in the pipeline (AF-01 to AF-05).

use std::net::Ipv4Addr;

use super::*;
use crate::forward::observe::ChosenBy;
use crate::service::Affinity;

const WEB: &str = "10.150.18.90:80";
/// Another port of the same Service.
const ADMIN: &str = "10.150.18.90:81";
/// An external IP of [`WEB`], policy Local.
const EXTERNAL: &str = "10.150.18.91:80";

const OUTSIDE: &str = "172.16.1.88";
const POD: &str = "10.151.51.7";

const TIMEOUT: Duration = Duration::from_secs(10);

/// The seed's node with a Service whose ports have affinity; of these backends those of 10.151.51.0/24 are
/// local.
fn tables(backends: &[&str]) -> Tables {
    let mut tables = cluster().tables();
    let mut builder = Builder::new(cluster().policy);
    let affinity = |service_port| Some(Affinity { timeout: TIMEOUT, service_port });
    let all = builder.backends(backends.iter().map(|text| backend(text)));
    let local = builder
        .backends(backends.iter().filter(|text| text.starts_with("10.151.51.")).map(|text| backend(text)));
    let tcp = |text| key(text, Protocol::TCP);
    let web = frontend(tcp(WEB), Path::Internal(all), None);
    let external = frontend(tcp(EXTERNAL), Path::Local { cluster: all, local }, None);
    builder.frontend(Frontend { affinity: affinity(1), ..web });
    builder.frontend(Frontend { kind: FrontendKind::ExternalIp, affinity: affinity(1), ..external });
    let admin = frontend(tcp(ADMIN), Path::Internal(all), None);
    builder.frontend(Frontend { service_port: 1, affinity: affinity(2), ..admin });
    tables.v4.as_mut().unwrap().services = builder.build();
    tables
}

const BACKENDS: [&str; 3] = ["10.151.49.8:80", "10.151.51.7:80", "10.151.51.8:80"];

fn start() -> Node {
    start_with(cluster())
}

fn start_with(cluster: Cluster) -> Node {
    let mut node = cluster.start();
    node.forwarder.set_tables(Arc::new(tables(&BACKENDS)));
    node
}

impl Node {
    /// Opens a connection of a client, which is offered the backend at `place` if it has the choice; says
    /// which it got, and how.
    fn open(&mut self, place: u32, client: &str, port: u16, service: &str) -> (Ipv4Addr, ChosenBy) {
        self.forwarder.fix_choice(Some(place));
        let input = if client == POD { CALI_7 } else { ENS3 };
        self.from(input).syn(&format!("{client}:{port}"), service);
        let chosen = self.events.iter().find_map(|event| match event {
            Event::Chose { address: std::net::IpAddr::V4(address), chosen_by, .. } => {
                Some((*address, *chosen_by))
            }
            _ => None,
        });
        chosen.unwrap_or_else(|| panic!("nothing was chosen: {:?}", self.events))
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }
}

fn chance(address: &str) -> (Ipv4Addr, ChosenBy) {
    (address.parse().unwrap(), ChosenBy::Chance)
}

#[test]
fn af_02_a_client_goes_back_to_its_backend_whichever_worker_it_comes_to() {
    let mut first = start();
    let mut second = first.sibling();
    assert_eq!(first.open(2, OUTSIDE, 2001, WEB), chance("10.151.51.8"));
    assert_eq!(second.open(0, OUTSIDE, 2002, WEB), (Ipv4Addr::new(10, 151, 51, 8), ChosenBy::Affinity));
    assert_eq!(second.open(1, POD, 2003, WEB), chance("10.151.51.7"));
    assert_eq!(first.open(2, POD, 2004, WEB), (Ipv4Addr::new(10, 151, 51, 7), ChosenBy::Affinity));
    assert_eq!(first.forwarder.clients_v4().len(), 2);
}

fn affinity(address: &str) -> (Ipv4Addr, ChosenBy) {
    (address.parse().unwrap(), ChosenBy::Affinity)
}

#[test]
fn af_01_a_client_stays_with_its_backend_until_the_second_after_its_timeout() {
    let mut node = start();
    assert_eq!(node.open(2, OUTSIDE, 1, WEB), chance("10.151.51.8"));
    node.pass(TIMEOUT);
    assert_eq!(node.open(0, OUTSIDE, 2, WEB), affinity("10.151.51.8"));
    // The second connection began the time anew.
    node.pass(TIMEOUT);
    assert_eq!(node.open(0, OUTSIDE, 3, WEB), affinity("10.151.51.8"));
    node.pass(TIMEOUT + Duration::from_nanos(1));
    assert_eq!(node.open(0, OUTSIDE, 4, WEB), chance("10.151.49.8"));
    assert_eq!(node.open(0, POD, 5, WEB), chance("10.151.49.8"), "another client");
}

#[test]
fn af_01_packets_of_a_connection_do_not_refresh_it() {
    let mut node = start();
    let client = format!("{POD}:1");
    assert_eq!(node.open(2, POD, 1, WEB), chance("10.151.51.8"));
    node.from(CALI_8).syn_ack("10.151.51.8:80", &client);
    node.pass(TIMEOUT);
    assert_eq!(node.from(CALI_7).ack(&client, WEB).len(), 1);
    node.from(CALI_7).syn(&client, WEB); // sent again: the connection is known
    node.pass(Duration::from_secs(1));
    assert_eq!(node.open(0, POD, 2, WEB), chance("10.151.49.8"));
}

#[test]
fn af_01_a_connection_that_gets_no_further_counts_as_in_the_kernels_rules() {
    let mut node = start();
    node.forwarder.fix_choice(Some(2));
    let error = icmp_error(&node.from(CALI_7).ttl(1).syn(&format!("{POD}:1"), WEB));
    assert_eq!(error.kind, (11, 0));
    assert_eq!(node.flows(), 0);
    assert_eq!(node.open(0, POD, 2, WEB), affinity("10.151.51.8"));
}

#[test]
fn af_01_the_client_is_the_source_before_masquerade() {
    let mut node = start();
    // Both are masqueraded with the node's address.
    assert_eq!(node.open(2, OUTSIDE, 1, WEB), chance("10.151.51.8"));
    assert!(node.events.iter().any(|event| matches!(event, Event::Masqueraded { .. })));
    assert_eq!(node.open(1, "172.16.1.89", 1, WEB), chance("10.151.51.7"));
    assert_eq!(node.open(0, OUTSIDE, 2, WEB), affinity("10.151.51.8"));
    assert_eq!(node.open(0, "172.16.1.89", 2, WEB), affinity("10.151.51.7"));
}

#[test]
fn af_02_of_several_fresh_backends_the_first_in_endpoint_order_is_taken() {
    let mut node = start();
    assert_eq!(node.open(2, POD, 1, WEB), chance("10.151.51.8"));
    node.forwarder.set_tables(Arc::new(tables(&BACKENDS[..2])));
    assert_eq!(node.open(1, POD, 2, WEB), chance("10.151.51.7"), "10.151.51.8 is gone, and forgotten");
    node.forwarder.set_tables(Arc::new(tables(&BACKENDS)));
    assert_eq!(node.open(0, POD, 3, WEB), affinity("10.151.51.7"));
    // By policy Local the client gets to another one, and has two entries then.
    assert_eq!(node.open(1, OUTSIDE, 4, EXTERNAL), chance("10.151.51.8"));
    node.forwarder.set_tables(Arc::new(tables(&[BACKENDS[0], BACKENDS[2]])));
    assert_eq!(node.open(0, OUTSIDE, 5, WEB), affinity("10.151.51.8"));
    node.pass(TIMEOUT + Duration::from_secs(1));
    assert_eq!(node.open(0, OUTSIDE, 6, WEB), chance("10.151.49.8"));
    // Not in the local set, so passed over there; back in the cluster's, it stands first.
    assert_eq!(node.open(0, OUTSIDE, 7, EXTERNAL), chance("10.151.51.8"));
    assert_eq!(node.open(1, OUTSIDE, 8, WEB), affinity("10.151.49.8"));
    assert_eq!(node.open(1, OUTSIDE, 9, EXTERNAL), affinity("10.151.51.8"));
}

#[test]
fn af_02_the_hairpin_mark_is_that_of_the_backend_that_affinity_chose() {
    let mut node = start();
    assert_eq!(node.open(1, POD, 1, WEB), chance(POD));
    assert_eq!(node.open(0, POD, 2, WEB), affinity(POD));
    assert!(node.events.contains(&Event::Hairpin), "MQ-03");
}

#[test]
fn af_03_two_ports_of_a_service_are_apart_and_its_policies_share() {
    let mut node = start();
    assert_eq!(node.open(2, OUTSIDE, 1, WEB), chance("10.151.51.8"));
    assert_eq!(node.open(1, OUTSIDE, 2, ADMIN), chance("10.151.51.7"));
    assert_eq!(node.open(0, OUTSIDE, 3, WEB), affinity("10.151.51.8"));
    assert_eq!(node.open(0, OUTSIDE, 4, ADMIN), affinity("10.151.51.7"));
    // The external IP offers the local endpoints, of which 10.151.51.8 is the second.
    assert_eq!(node.open(0, OUTSIDE, 5, EXTERNAL), affinity("10.151.51.8"));
}

#[test]
fn af_04_a_change_of_endpoints_forgets_no_client_of_those_that_stay() {
    let mut node = start();
    assert_eq!(node.open(2, POD, 1, WEB), chance("10.151.51.8"));
    // All of it is compiled anew, and the endpoint stands in another place.
    node.forwarder.set_tables(Arc::new(tables(&["10.151.49.7:80", "10.151.49.8:80", "10.151.51.8:80"])));
    assert_eq!(node.open(0, POD, 2, WEB), affinity("10.151.51.8"));
    // The whole Service goes and comes again: nobody is known.
    node.set(cluster());
    node.forwarder.set_tables(Arc::new(tables(&BACKENDS)));
    assert_eq!(node.open(0, POD, 3, WEB), chance("10.151.49.8"));
}

#[test]
fn af_05_without_room_the_next_connection_chooses_anew_and_that_is_counted() {
    let mut node = start_with(Cluster { clients: 1, ..cluster() });
    assert_eq!(node.open(2, POD, 1, WEB), chance("10.151.51.8"));
    assert_eq!(node.open(2, OUTSIDE, 1, WEB), chance("10.151.51.8"));
    assert_eq!(node.open(0, OUTSIDE, 2, WEB), chance("10.151.49.8"));
    let clients = node.forwarder.clients_v4();
    assert_eq!((clients.len(), clients.capacity(), clients.refused()), (1, 1, 2));
    // Time makes room: by the chores, here.
    node.pass(TIMEOUT);
    node.tick(Duration::from_secs(1));
    assert!(node.forwarder.clients_v4().is_empty());
}

#[test]
fn no_04_a_packet_marked_on_its_way_still_meets_the_firewall_when_forwarded() {
    let mut tables = cluster().tables();
    let mut builder = Builder::new(cluster().policy);
    let set = builder.backends([backend("10.151.51.8:80")]);
    let guarded = key("10.150.18.92:80", Protocol::TCP);
    // The external IP marks and has nothing to offer; then comes the balancer, which does not let the pod in.
    let first = frontend(guarded, Path::Cluster(builder.backends([])), None);
    builder.frontend(Frontend { kind: FrontendKind::ExternalIp, ..first });
    let sources = Some(["203.0.113.0/24".parse().unwrap()].into());
    let second = frontend(guarded, Path::Cluster(set), None);
    builder.frontend(Frontend { kind: FrontendKind::LoadBalancer, sources, ..second });
    tables.v4.as_mut().unwrap().services = builder.build();
    let mut node = seed();
    node.forwarder.set_tables(Arc::new(tables));
    assert_eq!(node.from(CALI_7).syn(&format!("{POD}:1"), "10.150.18.92:80"), []);
    assert!(node.events.iter().any(|event| matches!(event, Event::Marked(..))));
    assert_eq!((node.dropped(Reason::SourceRange), node.flows()), (1, 0));
}
