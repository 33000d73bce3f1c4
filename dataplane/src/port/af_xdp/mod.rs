//! AF_XDP: frames of an interface straight into the pool's memory, before the kernel's stack sees them.
//!
//! A small program at the interface (`steer.c`) hands what is Pollux's to the sockets of its queues, one socket for each
//! queue, and leaves the rest to the kernel. What the kernel gets, Pollux sees as well, through an AF_PACKET socket
//! beside: ARP, neighbour discovery and groups concern both. So the port receives the same frames as an
//! [AF_PACKET port](crate::port::af_packet) with a [guard](crate::port::guard), and needs no guard.
//!
//! The chunks of the pool are the sockets' memory (UMEM), whatever the interface: forwarding from one to another copies
//! nothing but what the drivers copy. Frames are sent with complete checksums and one by one; on a veth the sender's
//! partial checksums arrive without a mark and are found out (PT-04).
//!
//! The rings are our own code (`ring.rs`): of the crates for AF_XDP, `xsk-rs` and `xdp` map memory of their own, which
//! could not be the pool's, and `xdpilone` has a licence that asks more of who ships a binary than a notice.

mod attached;
mod device;
mod partial;
mod queue;
mod ring;
mod socket;
mod steer;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::packet::{Burst, PortId};
use crate::pool::Pool;
use crate::port::af_packet::{self, AfPacketPort};
use crate::port::guard::Families;
use crate::port::{Capabilities, LinkState, Port, sys};
use device::Device;
use queue::{Queue, RECEIVE_ROOM};
use socket::{Place, Way};
use steer::{Buffers, Steered};

pub use steer::Steering;

/// Empty polls between two looks at the interface.
const CHECK_INTERVAL: u32 = 1024;

/// Slots of the ring for what the kernel gets as well.
const COMPANION_SLOTS: usize = 256;

/// Bytes before a frame's IP packet: addresses and type, and a VLAN tag.
const LINK_HEADER: usize = 18;

/// Where the steering program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// In the driver, which must have it.
    #[default]
    Native,
    /// In the kernel's stack, for any driver. A veth's peer must not send super-frames then: they are lost and counted.
    Generic,
}

/// Whether the device itself reads and writes the pool's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ZeroCopy {
    /// If its driver can.
    #[default]
    Automatic,
    /// Never: the kernel copies.
    Off,
    /// It must.
    Required,
}

/// What the steering program takes from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Steer {
    /// Nothing.
    Nothing,
    /// Unicast IP packets to the interface's link address, but for what IPv6 keeps on its link, and for
    /// [`Options::leave`].
    Unicast(Families),
    /// Every frame: the kernel sees nothing of the interface any more.
    Everything,
}

/// A transport protocol's destination port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Service {
    /// TCP (6), UDP (17) or SCTP (132).
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// Services that can be left to the kernel.
pub const MOST_LEFT: usize = 64;

/// How to open an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the program runs.
    pub mode: Mode,
    /// Who moves the frames.
    pub zero_copy: ZeroCopy,
    /// How many receive queues the interface must have; any number when it is not said.
    pub queues: Option<u16>,
    /// Ports to make, at most: the queues are dealt out to them. There are no more ports than queues.
    pub ports: u16,
    /// Entries of each ring, a power of two: frames that wait, and chunks of the pool that the kernel has to receive
    /// into.
    pub ring: u32,
    /// What the program takes at first. [`Steering::set`] changes it.
    pub steer: Steer,
    /// Unicast packets to these are the kernel's alone, at most [`MOST_LEFT`].
    pub leave: Vec<Service>,
}

impl Default for Options {
    /// In the driver, one port with all queues, rings of 1024, unicast packets of both families.
    fn default() -> Self {
        Options {
            mode: Mode::Native,
            zero_copy: ZeroCopy::Automatic,
            queues: None,
            ports: 1,
            ring: 1024,
            steer: Steer::Unicast(Families::Both),
            leave: Vec::new(),
        }
    }
}

/// Some queues of an interface as a port, for one worker.
pub struct AfXdpPort {
    /// Each with its number.
    queues: Vec<(u32, Queue)>,
    /// What the kernel gets as well, at the interface's first port.
    companion: Option<AfPacketPort>,
    /// Readable when one of them is.
    ready: Epoll,
    interface: Arc<Interface>,
    port: PortId,
    /// Whose turn it is: the queues, then the companion.
    turn: usize,
    empty_polls: u32,
    mtu: usize,
    gone: bool,
}

/// What the ports of an interface share.
struct Interface {
    device: Device,
    steered: Steered,
    way: Way,
}

impl AfXdpPort {
    /// Opens the Ethernet interface `interface` of the thread's network namespace as port number `port`, as one or more
    /// ports that share its queues; their memory is `pool`'s. The interface may be down. Attaches a program to the
    /// interface, which goes with the last of the ports, or with the process.
    ///
    /// # Errors
    /// `AF_XDP on NAME: ...`, and what to do about it: no such interface, no permission, a program of somebody else, a
    /// driver that lacks what is asked for, too few queues, an MTU over the buffer, too little locked memory, too small
    /// a pool.
    pub fn open(
        interface: &str,
        port: PortId,
        pool: &'static Pool,
        options: &Options,
    ) -> io::Result<Vec<AfXdpPort>> {
        let device = Device::find(interface).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => error,
            _ => sys::context(&error, format_args!("AF_XDP on {interface}")),
        })?;
        Self::set_up(device, port, pool, options)
            .map_err(|error| sys::context(&error, format_args!("AF_XDP on {interface}")))
    }

    fn set_up(
        device: Device,
        port: PortId,
        pool: &'static Pool,
        options: &Options,
    ) -> io::Result<Vec<AfXdpPort>> {
        check(&device, pool, options)?;
        let mtu = device.mtu()?;
        let buffers = if mtu + LINK_HEADER > RECEIVE_ROOM { Buffers::Several } else { Buffers::One };
        let steered = Steered::load(&device, buffers, &options.leave)?;
        // It takes nothing yet.
        steered.attach(&device, options.mode, buffers)?;
        let (way, queues) = open_queues(&device, pool, options, buffers)?;
        for (number, queue) in queues.iter().enumerate() {
            steered.add(number as u32, queue.as_fd().as_raw_fd())?;
        }
        let packet_options = af_packet::Options {
            slots: COMPANION_SLOTS,
            frames: af_packet::Frames::LeftToKernel,
            ..Default::default()
        };
        let mut companion = Some(AfPacketPort::open(&device.name, port, pool, packet_options)?);
        steered.set(options.steer)?;
        let shared = Arc::new(Interface { device, steered, way });
        let ports = usize::from(options.ports.max(1)).min(queues.len());
        let mut dealt: Vec<Vec<(u32, Queue)>> = (0..ports).map(|_| Vec::new()).collect();
        for (number, queue) in queues.into_iter().enumerate() {
            dealt[number % ports].push((number as u32, queue));
        }
        dealt
            .into_iter()
            .map(|queues| {
                let companion = companion.take();
                Ok(AfXdpPort {
                    ready: readiness(&queues, companion.as_ref())?,
                    queues,
                    companion,
                    interface: Arc::clone(&shared),
                    port,
                    turn: 0,
                    empty_polls: 0,
                    mtu,
                    gone: false,
                })
            })
            .collect()
    }

    /// What the program takes, to change at run time.
    pub fn steering(&self) -> Steering {
        self.interface.steered.handle()
    }

    /// Queues of the interface that the port has.
    pub fn queues(&self) -> impl Iterator<Item = u32> {
        self.queues.iter().map(|(number, _)| *number)
    }

    /// Whether the device itself reads and writes the pool's memory.
    pub fn is_zero_copy(&self) -> bool {
        self.interface.way.zero_copy
    }

    /// Whether frames longer than a chunk are received and sent, in several.
    pub fn carries_chains(&self) -> bool {
        self.interface.way.chains
    }

    fn gone(&self) -> io::Result<()> {
        if !self.gone {
            return Ok(());
        }
        let text = format!("interface {} is gone", self.interface.device.name);
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    /// The error of a system call on one of the sockets; a socket without its interface is of no use any more.
    fn noted(&mut self, error: io::Error) -> io::Error {
        self.gone |= error.raw_os_error() == Some(libc::ENXIO);
        self.gone().err().unwrap_or(error)
    }

    /// Looks whether the interface is there and up, and what its MTU and its address are.
    #[cold]
    fn check(&mut self) -> io::Result<()> {
        self.empty_polls = 0;
        let state = self.queues.first().map_or(Ok(()), |(_, queue)| queue.check());
        state.map_err(|error| self.noted(error))?;
        let Interface { device, steered, .. } = &*self.interface;
        self.mtu = device.mtu().unwrap_or(self.mtu);
        if let Ok(address) = device.link_address() {
            steered.set_address(address)?;
        }
        Ok(())
    }
}

impl Port for AfXdpPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.gone()?;
        let before = burst.len();
        let sources = self.queues.len() + usize::from(self.companion.is_some());
        for step in 0..sources {
            match self.queues.get_mut((self.turn + step) % sources) {
                Some((_, queue)) => {
                    queue.receive(burst, self.port);
                    queue.refill();
                    queue.tend();
                }
                None => self.companion.as_mut().map_or(Ok(()), |companion| companion.receive(burst))?,
            }
        }
        self.turn = (self.turn + 1) % sources;
        if burst.len() == before {
            self.empty_polls += 1;
            if self.empty_polls >= CHECK_INTERVAL {
                self.check()?;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        self.gone()?;
        let mtu = self.mtu;
        let Some((_, queue)) = self.queues.first_mut() else { return Ok(()) };
        queue.transmit(burst, mtu).map_err(|error| self.noted(error))
    }

    /// Nothing: checksums are finished and super-frames cut before.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.0.as_fd())
    }

    fn missed(&mut self) -> u64 {
        let queues: u64 = self.queues.iter().map(|(_, queue)| queue.missed()).sum();
        // What no socket was there for is the interface's first port's.
        let others = self.companion.as_mut().map_or(0, |port| port.missed() + self.interface.steered.lost());
        queues + others
    }

    fn link(&mut self) -> Option<LinkState> {
        self.interface.device.link().ok()
    }

    /// The sums over the port's queues.
    fn device_counters(&mut self) -> Vec<(String, u64)> {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for (name, value) in self.queues.iter().flat_map(|(_, queue)| queue.counters()) {
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name.to_owned(), value)),
            }
        }
        if self.companion.is_some() {
            sums.push(("rx_without_socket".to_owned(), self.interface.steered.lost()));
        }
        sums
    }
}

impl Drop for AfXdpPort {
    fn drop(&mut self) {
        // The last port's frames are the kernel's at once, and not only when the program is gone.
        if Arc::strong_count(&self.interface) == 1 {
            let _ = self.interface.steered.set(Steer::Nothing); // it goes in a moment all the same
        }
        for (number, _) in &self.queues {
            self.interface.steered.remove(*number);
        }
    }
}

/// What can be known before anything is opened.
fn check(device: &Device, pool: &'static Pool, options: &Options) -> io::Result<()> {
    let refuse = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    let Device { name, queues, .. } = device;
    if let Some(wanted) = options.queues
        && u32::from(wanted) != *queues
    {
        return refuse(format!(
            "{wanted} queues are asked for, and it receives by {queues}: set their number (ethtool -L {name} combined \
             {wanted}, or rx {wanted} tx {wanted}), or leave it out to use those that there are"
        ));
    }
    if !options.ring.is_power_of_two() || !(64..=32_768).contains(&options.ring) {
        return refuse(format!("rings of {}: 64 to 32768, a power of two", options.ring));
    }
    if options.leave.len() > MOST_LEFT {
        return refuse(format!(
            "{} services are left to the kernel: {MOST_LEFT} at most",
            options.leave.len()
        ));
    }
    let needed = *queues as usize * options.ring as usize;
    if pool.available() < needed {
        return refuse(format!(
            "its {queues} queues take {needed} packet buffers to receive into, and {} of {} are free: fewer queues, or \
             smaller rings",
            pool.available(),
            pool.capacity()
        ));
    }
    Ok(())
}

/// Opens all queues the same way: by the device itself if that is wanted and works.
fn open_queues(
    device: &Device,
    pool: &'static Pool,
    options: &Options,
    buffers: Buffers,
) -> io::Result<(Way, Vec<Queue>)> {
    let chains = buffers == Buffers::Several;
    let open = |zero_copy| {
        let way = Way { zero_copy, chains };
        let place = |queue| Place { interface: device.index, queue };
        let queues: io::Result<Vec<Queue>> =
            (0..device.queues).map(|queue| Queue::open(place(queue), pool, way, options.ring)).collect();
        queues.map(|queues| (way, queues))
    };
    let by_device = options.mode == Mode::Native && options.zero_copy != ZeroCopy::Off;
    let result = match by_device.then(|| open(true)) {
        Some(Err(_)) if options.zero_copy == ZeroCopy::Automatic => open(false),
        Some(result) => result,
        None => open(false),
    };
    result.map_err(|error| explain_bind(error, device, options, chains))
}

fn explain_bind(error: io::Error, device: &Device, options: &Options, chains: bool) -> io::Error {
    let Device { name, driver, .. } = device;
    let text = match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "one of its queues is another AF_XDP socket's already: stop what holds it".to_owned()
        }
        Some(libc::EPERM) => "no permission for AF_XDP sockets: run as root (CAP_NET_RAW)".to_owned(),
        Some(libc::EOPNOTSUPP | libc::EINVAL) if options.zero_copy == ZeroCopy::Required => {
            format!("its driver, {driver}, has no zero-copy: leave zero-copy out")
        }
        Some(libc::EOPNOTSUPP | libc::EINVAL) if chains => format!(
            "its MTU is over the {} bytes that fit a buffer, and kernel or driver ({driver}) take no frames of several: \
             lower it (ip link set dev {name} mtu {})",
            RECEIVE_ROOM - LINK_HEADER,
            RECEIVE_ROOM - LINK_HEADER
        ),
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)".to_owned(),
        Some(_) => format!("socket: {error}"),
        None => return error,
    };
    io::Error::new(error.kind(), text)
}

fn readiness(queues: &[(u32, Queue)], companion: Option<&AfPacketPort>) -> io::Result<Epoll> {
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let event = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
    for (_, queue) in queues {
        ready.add(queue, event())?;
    }
    if let Some(fd) = companion.and_then(Port::readiness) {
        ready.add(fd, event())?;
    }
    Ok(ready)
}
