//! A device: probed, asked what it can do, configured, started; and all of that back.

use std::ffi::{CStr, CString};
use std::io;
use std::sync::Arc;

use pollux_dpdk_sys as dpdk;

use crate::packet::{LinkAddr, PortId};
use crate::pool::{CHUNK, Pool};
use crate::port::dpdk::bridge::Bridge;
use crate::port::dpdk::eal::{self, Control, Eal, last_error};
use crate::port::dpdk::rings::Cable;
use crate::port::dpdk::{DpdkPort, ROOM};
use crate::port::{Capabilities, LinkState, sys};

/// An Ethernet header with a VLAN tag: what a frame is longer than its IP packet.
const LINK_HEADER: usize = 18;

/// Descriptors that the device itself may keep filled, for a driver that has memory of its own.
const OWN_MEMORY: u32 = 8192;

/// How a device is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Queues, each for one worker.
    pub queues: Queues,
    /// Descriptors of each receive queue, as many as the device has in the end.
    pub receive_slots: u16,
    /// Descriptors of each send queue.
    pub send_slots: u16,
    /// The largest IP packet, bytes; the device's own (1500 mostly) when it is not said.
    pub mtu: Option<u16>,
}

/// How many queues a device is opened with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queues {
    /// So many, or an error.
    Exactly(u16),
    /// So many, or as many as the device has.
    UpTo(u16),
}

impl Default for Settings {
    /// One queue, 1024 descriptors each way, the device's MTU.
    fn default() -> Self {
        Settings { queues: Queues::UpTo(1), receive_slots: 1024, send_slots: 1024, mtu: None }
    }
}

/// Where a driver puts what it receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receives {
    /// Into chunks of the pool.
    Chunks,
    /// Into memory of its own.
    OwnMemory,
}

/// An open device of DPDK.
pub struct Device {
    facts: Facts,
    /// Of a driver that has memory of its own.
    _own_memory: Option<OwnMemory>,
    /// What it is plugged to, if that is ours to free.
    _cable: Option<Arc<Cable>>,
}

/// What was found out about a device when it was started.
struct Facts {
    ethdev: u16,
    name: String,
    driver: String,
    node: Option<u32>,
    link_address: LinkAddr,
    mtu: u16,
    queues: u16,
    capabilities: Capabilities,
    longest_chain: usize,
    longest_frame: usize,
    receives: Receives,
}

/// A mempool with memory of its own.
struct OwnMemory(*mut dpdk::rte_mempool);

// SAFETY: the mempool is used by DPDK alone, which does its own locking.
unsafe impl Send for OwnMemory {}
// SAFETY: as above.
unsafe impl Sync for OwnMemory {}

/// Opens a device as port number `port`, a [`DpdkPort`] for each queue. `device` is as DPDK writes it: a PCI address
/// (`0000:03:00.0`) or a virtual device (`net_tap0,iface=dtap0`), and its arguments. Sockets of a virtual device are
/// opened in the calling thread's network namespace. Sending and receiving take their memory from `pool`.
///
/// # Errors
/// No such device or driver; bound to a kernel driver; no permission; fewer queues than [`Queues::Exactly`] says; an
/// MTU that its buffers or the device do not hold. The device is then closed again.
pub fn open(
    _: Eal,
    device: &str,
    port: PortId,
    pool: &'static Pool,
    settings: &Settings,
) -> io::Result<Vec<DpdkPort>> {
    let mut control = eal::control();
    open_under(&mut control, device, port, pool, settings)
        .map_err(|error| sys::context(&error, format_args!("DPDK device {device}")))
}

fn open_under(
    control: &mut Control,
    device: &str,
    port: PortId,
    pool: &'static Pool,
    settings: &Settings,
) -> io::Result<Vec<DpdkPort>> {
    let name = device.split(',').next().unwrap_or_default();
    if control.is_open(name) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a device of that name is open"));
    }
    if name.starts_with("net_tap") {
        refuse_sigio();
    }
    if is_pci(name) {
        super::checks::pci_device(std::path::Path::new("/sys"), name)?;
    }
    let mut settings = settings.clone();
    if let Some(interface) = argument(device, "iface").filter(|_| name.starts_with("net_af_")) {
        sys::interface_index(interface)?;
        // What the interface may bring must fit the driver, which asks nobody.
        let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mtu = sys::interface_mtu(&socket, interface)?;
        settings.mtu = settings.mtu.or(u16::try_from(mtu).ok());
    }
    let settings = &settings;
    let arguments = CString::new(completed(device, settings))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the string has its end; DPDK copies it.
    let probed = unsafe { dpdk::rte_dev_probe(arguments.as_ptr()) };
    // A card is known since DPDK has started.
    if probed < 0 && probed != -libc::EEXIST {
        if control.logged().contains("failed to parse device") {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "DPDK has no driver of that name (its drivers are in the package libdpdk-dev or librte-net-*), \
                 and it is no PCI address",
            ));
        }
        return Err(control.error(probed));
    }
    let ethdev = port_number(name)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "it is not a network device"))?;
    let (device, bridge) = start_or_close(control, ethdev, name, pool, settings, None)?;
    let device = Arc::new(device);
    Ok((0..device.queues()).map(|queue| DpdkPort::new(&device, queue, port, bridge)).collect())
}

/// Opens the end of a cable: as [`open`].
pub(super) fn open_end(
    control: &mut Control,
    name: &str,
    port: PortId,
    pool: &'static Pool,
    settings: &Settings,
    cable: &Arc<Cable>,
) -> io::Result<DpdkPort> {
    let ethdev = port_number(name)?;
    let (device, bridge) = start_or_close(control, ethdev, name, pool, settings, Some(Arc::clone(cable)))?;
    Ok(DpdkPort::new(&Arc::new(device), 0, port, bridge))
}

fn port_number(name: &str) -> io::Result<u16> {
    let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut ethdev = 0;
    // SAFETY: reads the name, writes the number.
    match unsafe { dpdk::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut ethdev) } {
        0 => Ok(ethdev),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// `0000:03:00.0`, or without the domain.
fn is_pci(name: &str) -> bool {
    name.contains(':') && name.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.')
}

/// The value of an argument of a device.
fn argument<'a>(device: &'a str, key: &str) -> Option<&'a str> {
    device.split(',').skip(1).find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='))
}

/// The device's arguments with what its driver needs to get along with chunks of 2 KiB and with several queues, where
/// they do not say it.
fn completed(device: &str, settings: &Settings) -> String {
    let mut text = device.to_owned();
    let mut add = |key: &str, value: &str| {
        if argument(device, key).is_none() {
            text += &format!(",{key}={value}");
        }
    };
    let (Queues::Exactly(queues) | Queues::UpTo(queues)) = settings.queues;
    let queues = queues.to_string();
    if device.starts_with("net_af_packet") {
        // A slot of the ring fits what a chunk receives; 32 of them fill whole pages.
        add("framesz", "1920");
        add("blocksz", "61440");
        add("framecnt", "1024");
        add("qpairs", &queues);
    } else if device.starts_with("net_af_xdp") {
        add("queue_count", &queues);
    }
    text
}

/// DPDK's TAP driver has the kernel send SIGIO for every frame, to save itself empty reads; the signal interrupts calls
/// of whatever thread it hits. The driver lets go when it finds a handler: here is one that does nothing.
fn refuse_sigio() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    let _ = unsafe { sigaction(Signal::SIGIO, &action) };
}

fn start_or_close(
    control: &mut Control,
    ethdev: u16,
    name: &str,
    pool: &'static Pool,
    settings: &Settings,
    cable: Option<Arc<Cable>>,
) -> io::Result<(Device, &'static Bridge)> {
    // Outlives the device, also when that does not start.
    let mut own_memory = None;
    let started = start(control, ethdev, name, pool, settings, &mut own_memory);
    match &started {
        Ok(_) => control.opened(name),
        Err(_) => close(ethdev),
    }
    started.map(|(facts, bridge)| (Device { facts, _own_memory: own_memory, _cable: cable }, bridge))
}

/// Configures and starts a device.
fn start(
    control: &Control,
    ethdev: u16,
    name: &str,
    pool: &'static Pool,
    settings: &Settings,
    own_memory: &mut Option<OwnMemory>,
) -> io::Result<(Facts, &'static Bridge)> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let info = information(control, ethdev)?;
    // SAFETY: the driver's name is a string that lives as long as the process.
    let driver = unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned();
    // SAFETY: reads a number.
    let node = unsafe { dpdk::rte_eth_dev_socket_id(ethdev) };
    let most = info.max_rx_queues.min(info.max_tx_queues);
    let queues = match settings.queues {
        Queues::Exactly(queues) if queues > most => {
            return Err(invalid(format!(
                "it has {most} queues, {queues} are asked for; ask for fewer workers or queues"
            )));
        }
        Queues::Exactly(queues) | Queues::UpTo(queues) => queues.clamp(1, most.max(1)),
    };
    let bridge = Bridge::of(pool, node, control)?;
    if is_pci(name) {
        give_access(control, info.device, pool)?;
    }
    let receives = if driver == "net_af_xdp" { Receives::OwnMemory } else { Receives::Chunks };
    if receives == Receives::OwnMemory {
        *own_memory = Some(OwnMemory::new(control, ethdev, node)?);
    }
    let scatter = info.rx_offload_capa & dpdk::SHIM_RX_SCATTER;
    if let Some(mtu) = settings.mtu {
        let most = mtu_that_fits(&info, scatter != 0);
        if usize::from(mtu) > most {
            let why = if scatter == 0 && most == ROOM - LINK_HEADER {
                format!("its driver receives a frame into one buffer of {ROOM} bytes")
            } else {
                "that is the driver's limit".to_owned()
            };
            return Err(invalid(format!("an MTU of {mtu} is more than it can do: {most} at most, {why}")));
        }
    }

    // SAFETY: the structure is plain numbers and null pointers; all zeros is a valid value.
    let mut configuration: dpdk::rte_eth_conf = unsafe { std::mem::zeroed() };
    configuration.rxmode.mtu = u32::from(settings.mtu.unwrap_or(0));
    let checksums = dpdk::SHIM_RX_TCP_CKSUM | dpdk::SHIM_RX_UDP_CKSUM;
    // Scattered only where a frame may need it: drivers receive slower with it.
    let long = settings.mtu.is_some_and(|mtu| usize::from(mtu) > ROOM - LINK_HEADER);
    configuration.rxmode.offloads = (info.rx_offload_capa & checksums) | if long { scatter } else { 0 };
    let sums = dpdk::SHIM_TX_TCP_CKSUM | dpdk::SHIM_TX_UDP_CKSUM;
    let cuts = sums | dpdk::SHIM_TX_IPV4_CKSUM | dpdk::SHIM_TX_TCP_TSO | dpdk::SHIM_TX_MULTI_SEGS;
    let can = |offloads: u64| info.tx_offload_capa & offloads == offloads;
    // The TAP driver cuts in software, by cloning mbufs, which chunks of a pool do not stand: it crashes.
    let cutting = can(cuts) && driver != "net_tap";
    let capabilities = Capabilities { partial_checksum: can(sums), gso: cutting, ..Capabilities::default() };
    configuration.txmode.offloads = (info.tx_offload_capa & dpdk::SHIM_TX_MULTI_SEGS)
        | if capabilities.partial_checksum { sums } else { 0 }
        | if capabilities.gso { cuts } else { 0 };
    let spread = info.flow_type_rss_offloads & dpdk::SHIM_RSS_ADDRESSES_AND_PORTS;
    if queues > 1 && spread != 0 {
        configuration.rxmode.mq_mode = dpdk::rte_eth_rx_mq_mode::RTE_ETH_MQ_RX_RSS;
        configuration.rx_adv_conf.rss_conf.rss_hf = spread;
    }
    // SAFETY: the device exists and is stopped; DPDK copies the configuration.
    control.check(unsafe { dpdk::rte_eth_dev_configure(ethdev, queues, queues, &configuration) })?;
    let (mut receive_slots, mut send_slots) = (settings.receive_slots, settings.send_slots);
    // SAFETY: writes the two numbers.
    control.check(unsafe {
        dpdk::rte_eth_dev_adjust_nb_rx_tx_desc(ethdev, &mut receive_slots, &mut send_slots)
    })?;
    let mempool = own_memory.as_ref().map_or(bridge.mempool(), |own| own.0);
    for queue in 0..queues {
        // SAFETY: the device is configured with so many queues; the mempool lives as long as the device.
        let result = unsafe {
            dpdk::rte_eth_rx_queue_setup(ethdev, queue, receive_slots, node as u32, std::ptr::null(), mempool)
        };
        control.check(result)?;
        // SAFETY: as above.
        let result =
            unsafe { dpdk::rte_eth_tx_queue_setup(ethdev, queue, send_slots, node as u32, std::ptr::null()) };
        control.check(result)?;
    }
    // SAFETY: the device is configured and its queues are set up.
    control.check(unsafe { dpdk::rte_eth_dev_start(ethdev) })?;
    // Frames for link addresses that Pollux has and the device does not know, and groups. Not every device can.
    // SAFETY: the device exists.
    let _ = unsafe { dpdk::rte_eth_promiscuous_enable(ethdev) };

    let mut mtu = 0;
    // SAFETY: writes the number.
    control.check(unsafe { dpdk::rte_eth_dev_get_mtu(ethdev, &mut mtu) })?;
    let chains = info.tx_offload_capa & dpdk::SHIM_TX_MULTI_SEGS != 0;
    let facts = Facts {
        ethdev,
        name: name.to_owned(),
        driver,
        node: u32::try_from(node).ok(),
        link_address: link_address(control, ethdev)?,
        mtu,
        queues,
        capabilities,
        longest_chain: match info.tx_desc_lim.nb_seg_max {
            _ if !chains => 1,
            0 => usize::from(u16::MAX),
            most => usize::from(most),
        },
        longest_frame: usize::from(mtu) + LINK_HEADER,
        receives,
    };
    Ok((facts, bridge))
}

/// The largest MTU that buffers and driver hold.
fn mtu_that_fits(info: &dpdk::rte_eth_dev_info, scatter: bool) -> usize {
    let buffer = if scatter { usize::MAX } else { ROOM - LINK_HEADER };
    let longest = (info.max_rx_pktlen as usize).saturating_sub(LINK_HEADER);
    let mtu = if info.max_mtu == 0 { usize::from(u16::MAX) } else { usize::from(info.max_mtu) };
    buffer.min(longest).min(mtu)
}

fn information(control: &Control, ethdev: u16) -> io::Result<dpdk::rte_eth_dev_info> {
    // SAFETY: the structure is plain numbers and pointers; all zeros is a valid value.
    let mut info: dpdk::rte_eth_dev_info = unsafe { std::mem::zeroed() };
    // SAFETY: writes the structure.
    control.check(unsafe { dpdk::rte_eth_dev_info_get(ethdev, &mut info) })?;
    Ok(info)
}

fn link_address(control: &Control, ethdev: u16) -> io::Result<LinkAddr> {
    let mut address = dpdk::rte_ether_addr { addr_bytes: [0; 6] };
    // SAFETY: writes the structure.
    control.check(unsafe { dpdk::rte_eth_macaddr_get(ethdev, &mut address) })?;
    Ok(LinkAddr(address.addr_bytes))
}

/// Lets a card reach the pool's memory. Without an IOMMU it does already.
fn give_access(control: &Control, device: *mut dpdk::rte_device, pool: &'static Pool) -> io::Result<()> {
    // SAFETY: reads DPDK's state.
    if unsafe { dpdk::rte_eal_iova_mode() } != dpdk::rte_iova_mode::RTE_IOVA_VA {
        return Ok(());
    }
    let (start, bytes) = pool.region();
    // SAFETY: the range is the pool's mapping, which lives as long as the process.
    let result =
        unsafe { dpdk::rte_dev_dma_map(device, start.as_ptr().cast(), start.as_ptr().addr() as u64, bytes) };
    match last_error() {
        _ if result >= 0 => Ok(()),
        libc::ENOTSUP | libc::EEXIST => Ok(()),
        error => Err(sys::context(&control.error(error), "it may not reach the pool's memory")),
    }
}

impl OwnMemory {
    fn new(control: &Control, ethdev: u16, node: i32) -> io::Result<OwnMemory> {
        let name = CString::new(format!("pollux-own-{ethdev}")).expect("no zero byte");
        // SAFETY: the name has its end; DPDK copies it.
        let pool =
            unsafe { dpdk::rte_pktmbuf_pool_create(name.as_ptr(), OWN_MEMORY, 0, 0, CHUNK as u16, node) };
        if pool.is_null() {
            let error = control.error(last_error());
            return Err(sys::context(&error, "its driver needs 20 MiB of memory of its own; give DPDK more"));
        }
        Ok(OwnMemory(pool))
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // SAFETY: the device that had it is closed.
        unsafe { dpdk::rte_mempool_free(self.0) };
    }
}

impl Device {
    pub(super) fn ethdev(&self) -> u16 {
        self.facts.ethdev
    }

    pub(super) fn longest_chain(&self) -> usize {
        self.facts.longest_chain
    }

    pub(super) fn longest_frame(&self) -> usize {
        self.facts.longest_frame
    }

    pub(super) fn receives(&self) -> Receives {
        self.facts.receives
    }

    /// DPDK's name of it.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Its driver in DPDK.
    pub fn driver(&self) -> &str {
        &self.facts.driver
    }

    /// The NUMA node that it is at, when the machine has several.
    pub fn numa_node(&self) -> Option<u32> {
        self.facts.node
    }

    /// Its link address.
    pub fn link_address(&self) -> LinkAddr {
        self.facts.link_address
    }

    /// The largest IP packet that it carries, bytes.
    pub fn mtu(&self) -> u16 {
        self.facts.mtu
    }

    /// How many queues it was opened with.
    pub fn queues(&self) -> u16 {
        self.facts.queues
    }

    /// What it does for a frame that leaves.
    pub fn capabilities(&self) -> Capabilities {
        self.facts.capabilities
    }

    /// State of its link.
    pub fn link(&self) -> Option<LinkState> {
        let mut megabits = 0;
        // SAFETY: writes the number.
        let up = unsafe { dpdk::shim_eth_link(self.facts.ethdev, &mut megabits) };
        let megabits = Some(megabits).filter(|&megabits| megabits != 0 && megabits != u32::MAX);
        (up >= 0).then_some(LinkState { up: up == 1, megabits })
    }

    /// Takes the link up or down, where the driver can.
    ///
    /// # Errors
    /// The driver can not, or the device refuses.
    pub fn set_link(&self, up: LinkUp) -> io::Result<()> {
        let control = eal::control();
        // SAFETY: the device is started.
        let result = unsafe {
            match up {
                LinkUp::Yes => dpdk::rte_eth_dev_set_link_up(self.facts.ethdev),
                LinkUp::No => dpdk::rte_eth_dev_set_link_down(self.facts.ethdev),
            }
        };
        control.check(result).map(|_| ())
    }

    /// Frames that came and were lost before they could be received, as the device counts them.
    pub(super) fn missed(&self) -> u64 {
        // SAFETY: the structure is plain numbers; all zeros is a valid value.
        let mut stats: dpdk::rte_eth_stats = unsafe { std::mem::zeroed() };
        // SAFETY: writes the structure.
        unsafe { dpdk::rte_eth_stats_get(self.facts.ethdev, &mut stats) };
        stats.imissed + stats.ierrors + stats.rx_nombuf
    }

    /// DPDK's extended statistics, by name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        // SAFETY: without room DPDK says how many there are.
        let count = unsafe { dpdk::rte_eth_xstats_get_names(self.facts.ethdev, std::ptr::null_mut(), 0) };
        let count = usize::try_from(count).unwrap_or(0);
        let mut names = vec![dpdk::rte_eth_xstat_name { name: [0; 64] }; count];
        let mut values = vec![dpdk::rte_eth_xstat { id: 0, value: 0 }; count];
        // SAFETY: both have room for as many as they say.
        let (named, valued) = unsafe {
            (
                dpdk::rte_eth_xstats_get_names(self.facts.ethdev, names.as_mut_ptr(), count as u32),
                dpdk::rte_eth_xstats_get(self.facts.ethdev, values.as_mut_ptr(), count as u32),
            )
        };
        let known = usize::try_from(named.min(valued)).unwrap_or(0).min(count);
        let text = |name: &dpdk::rte_eth_xstat_name| {
            // SAFETY: DPDK ends each name with a zero byte.
            unsafe { CStr::from_ptr(name.name.as_ptr()) }.to_string_lossy().into_owned()
        };
        let value = |value: &dpdk::rte_eth_xstat| Some((text(names.get(value.id as usize)?), value.value));
        values[..known].iter().filter_map(value).collect()
    }

    /// Frees what lies in a ring of the device's own, which the driver would forget.
    fn empty_rings(&self) {
        let mut mbufs = [std::ptr::null_mut(); 32];
        for queue in 0..self.facts.queues {
            // As many as the largest ring holds, and then it ends whatever comes.
            for _ in 0..usize::from(u16::MAX) / mbufs.len() {
                // SAFETY: nobody else has a queue of the device any more.
                let count =
                    unsafe { dpdk::shim_eth_rx_burst(self.facts.ethdev, queue, mbufs.as_mut_ptr(), 32) };
                for &mbuf in &mbufs[..usize::from(count)] {
                    // SAFETY: it was handed over a moment ago.
                    unsafe { dpdk::shim_pktmbuf_free(mbuf) };
                }
                if count == 0 {
                    break;
                }
            }
        }
    }
}

/// Whether a link is to be up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "self-explanatory")]
pub enum LinkUp {
    Yes,
    No,
}

/// Stops and forgets a device; its chunks go back to the pool.
fn close(ethdev: u16) {
    // SAFETY: the structure is plain numbers and pointers; all zeros is a valid value.
    let mut info: dpdk::rte_eth_dev_info = unsafe { std::mem::zeroed() };
    // SAFETY: nobody has a queue of the device, and it is forgotten here.
    unsafe {
        let known = dpdk::rte_eth_dev_info_get(ethdev, &mut info) == 0;
        dpdk::rte_eth_dev_stop(ethdev);
        dpdk::rte_eth_dev_close(ethdev);
        if known && !info.device.is_null() {
            dpdk::rte_dev_remove(info.device);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut control = eal::control();
        if self.facts.driver == "net_ring" {
            self.empty_rings();
        }
        close(self.facts.ethdev);
        control.closed(&self.facts.name);
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Device({}, {}, {} queues, MTU {})",
            self.facts.name, self.facts.driver, self.facts.queues, self.facts.mtu
        )
    }
}
