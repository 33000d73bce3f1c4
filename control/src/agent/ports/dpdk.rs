//! Ports of DPDK's devices: the EAL from the section `dpdk` of the configuration, then the device.

use std::io;

use pollux_dataplane::port::dpdk::eal::{Options, Pages};
use pollux_dataplane::port::dpdk::{self, DpdkPort, Eal, Queues, Settings};
use tracing::info;

use super::backend::Opening;
use crate::config::NodeConfig;
use crate::config::node::{DPDK_SLOTS, DpdkDevice, DpdkPages, PortConfig};

/// MiB that DPDK's AF_XDP driver needs for each device, beside the pool.
const AF_XDP_MEMORY: u32 = 32;

/// Opens a port's device: a queue for each worker, as far as the device has them. DPDK is started before its first port.
///
/// # Errors
/// Whatever [`Eal::start`] and [`dpdk::open`] say.
pub(super) fn open(config: &PortConfig, opening: &Opening<'_>) -> io::Result<Vec<DpdkPort>> {
    let device = config.device.as_ref().expect("the backend dpdk has one");
    let eal = Eal::start(&options(opening.node, opening.pool.capacity()))?;
    let workers = u16::try_from(opening.workers).unwrap_or(u16::MAX);
    let queues = match device.queues {
        Some(queues) if queues > workers => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "queues {queues} for {workers} workers: one worker serves one queue; set workers to {queues}"
                ),
            ));
        }
        Some(queues) => Queues::Exactly(queues),
        None => Queues::UpTo(workers),
    };
    let settings = Settings { queues, mtu: config.mtu, receive_slots: DPDK_SLOTS, send_slots: DPDK_SLOTS };
    let ports = dpdk::open(eal, &device.device, opening.id, opening.pool, &settings)?;
    if let Some(port) = ports.first() {
        info!(
            port = config.name,
            dpdk = eal.version(),
            driver = port.device().driver(),
            queues = port.device().queues(),
            link_address = %port.device().link_address(),
            mtu = port.device().mtu(),
            numa_node = port.device().numa_node(),
            offloads = ?port.device().capabilities(),
            "device of DPDK opened"
        );
    }
    Ok(ports)
}

/// How DPDK is started for all ports of the node.
fn options(node: &NodeConfig, chunks: usize) -> Options {
    let devices: Vec<&DpdkDevice> = devices(node).collect();
    let copying = devices.iter().filter(|device| device.name().starts_with("net_af_xdp")).count();
    Options {
        pages: match node.dpdk.pages {
            DpdkPages::Huge => Pages::Huge,
            DpdkPages::Ordinary => Pages::Ordinary,
        },
        memory: node
            .dpdk
            .memory
            .unwrap_or_else(|| Options::memory_for(chunks) + AF_XDP_MEMORY * copying as u32),
        pci: devices.iter().filter_map(|device| device.pci_address().map(str::to_owned)).collect(),
        arguments: node.dpdk.arguments.clone(),
    }
}

fn devices(node: &NodeConfig) -> impl Iterator<Item = &DpdkDevice> {
    node.ports.iter().filter_map(|port| port.device.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpdk_is_started_for_all_devices_of_the_node() {
        let text = "apiVersion: pollux.dev/v1alpha1\nkind: Node\ndpdk: {hugepages: false, arguments: [--trace=x]}\nports:\n\
                    - {name: a, role: uplink, backend: dpdk, device: '0000:03:00.0', queues: 2}\n\
                    - {name: b, role: pod, backend: dpdk}\n\
                    - {name: c, role: pod, backend: dpdk, device: 'net_af_xdp0,iface=c'}\n";
        let file: std::sync::Arc<std::path::Path> = std::path::Path::new("node.yaml").into();
        let documents = crate::document::parse_yaml(text).unwrap();
        let node = crate::config::read(&file, documents).unwrap().0.node.unwrap();
        let options = options(&node, 65_536);
        assert_eq!(options.pages, Pages::Ordinary);
        assert_eq!(options.memory, 64 + 20 + 32);
        assert_eq!(options.pci, ["0000:03:00.0"]);
        assert_eq!(options.arguments, ["--trace=x"]);
        assert_eq!(node.ports[1].device.as_ref().unwrap().device, "net_af_packet_b,iface=b");
    }
}
