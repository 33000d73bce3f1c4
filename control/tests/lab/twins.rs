//! The seed's cluster twice, and transfers through both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use pollux_control::lab::pollux::{Pollux, Wiring};
use pollux_control::lab::seed::{self, MYAPP, MYAPP_PORT, POD_51_7, POD_51_8, Pod, SLAVE1};
use pollux_control::lab::traffic::{Service, TcpClient, TcpServer, Transfer};
use pollux_control::lab::twin::{self, Choice};
use pollux_control::lab::{Forwarding, Network};

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Longest wait for a connection.
const SOON: Duration = Duration::from_secs(5);

/// Forwarded by the kernel under the seed's rules, and by Pollux.
pub(crate) struct Twins {
    pub(crate) kernel: Network,
    pub(crate) pollux: Network,
    pub(crate) forwarder: Pollux,
}

pub(crate) fn twins(
    prefix: &str,
    wiring: Wiring,
    chosen: Option<Pod>,
) -> Result<Twins, Box<dyn std::error::Error>> {
    let plan = seed::plan(Forwarding::Kernel);
    let kernel = Network::build(&plan, &format!("k-{prefix}"))?;
    twin::load(kernel.node(SLAVE1), &twin::rules(chosen.map_or(Choice::Random, Choice::Always)))?;
    let pollux = Network::build(&plan, &format!("p-{prefix}"))?;
    let forwarder = Pollux::start(pollux.node(SLAVE1), prefix, wiring)?;
    if let Some(pod) = chosen {
        forwarder.choose(pod).map_err(|_| "the worker has stopped")?;
    }
    Ok(Twins { kernel, pollux, forwarder })
}

pub(crate) fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), port)
}

pub(crate) fn myapp() -> SocketAddr {
    at(MYAPP, MYAPP_PORT)
}

pub(crate) fn nothing_was_lost(forwarder: &Pollux) -> Outcome {
    let stats = forwarder.stats().map_err(|_| "the worker has stopped")?;
    let dropped: Vec<_> = stats.dropped.iter().collect();
    assert_eq!(dropped, []);
    let (came, went) = stats.balance();
    assert_eq!(came, went, "FW-05");
    for (port, stats) in forwarder.port_stats().map_err(|_| "the worker has stopped")? {
        assert_eq!((stats.refused, stats.missed, stats.errors), (0, 0, 0), "{port}");
    }
    Ok(())
}

/// Sends this many bytes through the Service to the pod on the same node, from another pod and from the node
/// itself, by the kernel and by Pollux. All must arrive as they were sent, Pollux must lose no more segments
/// than the kernel, and drop nothing. Prints the rates beside each other.
pub(crate) fn transfers(prefix: &str, wiring: Wiring, bytes: u64) -> Outcome {
    let twins = twins(prefix, wiring, Some(POD_51_8))?;
    let mebibytes = bytes >> 20;
    // 20 MiB/s at least, however busy the machine is.
    let within = Duration::from_secs(10 + mebibytes / 20);
    let send = |network: &Network, node: &str, seed: u64| -> std::io::Result<Transfer> {
        let at = at(POD_51_8.address, MYAPP_PORT);
        let _server = TcpServer::start(network.node(POD_51_8.name), at, Service::Sink)?;
        let mut client = TcpClient::connect(network.node(node), None, myapp(), SOON)?;
        client.transfer(bytes, seed, within)
    };
    for (way, node) in [("pod to pod", POD_51_7.name), ("host to pod", SLAVE1)] {
        let kernel = send(&twins.kernel, node, 1)?;
        let pollux = send(&twins.pollux, node, 1)?;
        for (who, transfer) in
            [(format!("Pollux over {wiring:?}"), pollux), ("the kernel".to_owned(), kernel)]
        {
            let Transfer { retransmissions, needless, .. } = transfer;
            println!(
                "{mebibytes} MiB {way} through the Service by {who}: {:.0} MB/s, {retransmissions} \
                 retransmissions, of which {needless} were of what had arrived",
                transfer.rate() / 1e6
            );
        }
        assert_eq!((pollux.bytes, kernel.bytes), (bytes, bytes));
        // On a machine with more to do than processors a sender asks again before an answer had its turn
        // (a tail loss probe), whoever forwards; the far end tells these by D-SACK. The others were losses.
        assert!(pollux.lost() <= kernel.lost(), "{way}: {pollux:?}, {kernel:?}");
    }
    let link =
        twins.pollux.node(SLAVE1).output(Command::new("ip").args(["-s", "-j", "link", "show", "pollux0"]))?;
    // The host port's queue, which the kernel fills and Pollux cannot count.
    let link: serde_json::Value = serde_json::from_str(&link)?;
    assert_eq!(link[0]["stats64"]["tx"]["dropped"], 0, "{link}");
    nothing_was_lost(&twins.forwarder)
}
