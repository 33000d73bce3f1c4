//! The kernel's links, addresses, routes and neighbours, read once and then followed live (RT-05, NB-01).
//!
//! ```text
//! kernel ──notifications──→ follower thread: apply ─→ KernelState + Changes ─→ consumer (control)
//!        ←──dumps─────────        (in the namespace)      behind one lock
//! ```
//!
//! Links, routes and neighbours are followed message by message, so one changed route of a full table costs
//! one route. Addresses and rules are few, their order counts, and they come again as a whole. Three things come without a
//! notification, and are read again when their cause is seen: IPv4 routes that fall with a link or with
//! their preferred source, routes by next hop objects, and everything after the socket has overflown.
//!
//! Invariants: [`Changes`] names at least what changed since it was last taken, and grows no larger than
//! the tables however long the consumer waits. After the last notification the state is what a fresh dump
//! would give. Pollux's own routes are never in it (PT-02).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_REPLACE, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use pollux_dataplane::packet::family::{V4, V6};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::Error;
use super::decode::{self, DecodedRoute, KernelFamily};
use super::netlink::{Dump, Messages, Netlink, Unreadable, receive};
use super::netns::Netns;
use super::routes::{Certainty, Placement, RouteTable};
use super::state::{Changes, KernelState, Link, LinkAddress, NeighbourKey};

/// Multicast groups (`RTNLGRP_*`): links, neighbours, addresses, routes and rules of both families, next
/// hop objects.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, NEXT_HOP_OBJECTS];
const NEXT_HOP_OBJECTS: u32 = 32;
/// Messages about next hop objects, which the library does not read (`RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP`).
const NEXT_HOP_MESSAGES: [u16; 2] = [104, 105];

/// Room for notifications while a dump is read: some 10,000 messages. What does not fit is noticed.
const SOCKET_BUFFER: usize = 8 << 20;

/// Messages applied at a time, so that the lock is never held for long.
const BATCH: usize = 1024;

/// How long to wait after an error before everything is read again.
const RETRY: Duration = Duration::from_secs(1);

/// A live copy of the kernel's tables in one network namespace. Dropping it ends the following.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
    /// Closing it tells the follower to end.
    stop: Option<UnixStream>,
    follower: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    state: KernelState,
    changes: Changes,
    /// Routes were read since the socket was last empty: its next messages may be older than they are.
    routes_just_read: bool,
}

impl Shared {
    /// The lock. A consumer that panicked while it only read has broken nothing.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mirror {
    /// Reads the tables of the namespace once.
    ///
    /// # Errors
    /// If the kernel refuses a dump.
    pub fn dump(netns: &Netns) -> Result<KernelState, Error> {
        netns
            .run(|| {
                let shared = Shared::default();
                let mut netlink = Netlink::open()?;
                Stale::everything().read_again(&mut netlink, &shared)?;
                let state = std::mem::take(&mut shared.lock().state);
                Ok(state)
            })?
            .map_err(|error: io::Error| Error::system("cannot read the kernel's tables", error))
    }

    /// Reads the tables of the namespace, and follows them from then on.
    ///
    /// # Errors
    /// If the kernel refuses a dump or the notifications.
    pub fn start(netns: &Netns) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::system(format!("cannot follow the tables of {netns}"), error);
        let shared = Arc::new(Shared::default());
        let mut follower = netns.run(|| Follower::open(Arc::clone(&shared)))?.map_err(failed)?;
        follower.synchronise().map_err(failed)?;
        // What is there at the start is no change.
        shared.lock().changes = Changes::default();
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let thread = netns.start_thread("pollux-mirror", move || follower.run(&stopped))?;
        Ok(Mirror { shared, stop: Some(stop), follower: Some(thread) })
    }

    /// Looks at the state. The follower waits meanwhile, so take what is needed and return.
    pub fn read<T>(&self, look: impl FnOnce(&KernelState) -> T) -> T {
        look(&self.shared.lock().state)
    }

    /// What changed since the last call of this or of [`changed`](Mirror::changed), without waiting.
    pub fn take_changes(&self) -> Changes {
        std::mem::take(&mut self.shared.lock().changes)
    }

    /// Waits until something has changed and says what, everything since the last call in one. If the
    /// future is dropped nothing is lost.
    pub async fn changed(&self) -> Changes {
        loop {
            let changes = self.take_changes();
            if !changes.is_empty() {
                return changes;
            }
            self.shared.changed.notified().await;
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(follower) = self.follower.take()
            && follower.join().is_err()
        {
            error!("the thread that follows the kernel's tables had panicked");
        }
    }
}

/// Which tables have to be read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Stale {
    links: bool,
    addresses: bool,
    routes_v4: bool,
    routes_v6: bool,
    neighbours: bool,
    rules: bool,
}

impl Stale {
    fn everything() -> Self {
        Stale {
            links: true,
            addresses: true,
            routes_v4: true,
            routes_v6: true,
            neighbours: true,
            rules: true,
        }
    }

    fn all_routes(&mut self) {
        self.routes_v4 = true;
        self.routes_v6 = true;
    }

    /// Reads what is stale.
    fn read_again(self, netlink: &mut Netlink, shared: &Shared) -> io::Result<()> {
        if self.links {
            let links = read_links(netlink)?;
            let mut inner = shared.lock();
            inner.changes.links |= links != inner.state.links;
            inner.state.links = links;
        }
        if self.addresses {
            replace_addresses::<V4>(netlink, shared)?;
            replace_addresses::<V6>(netlink, shared)?;
        }
        if self.routes_v4 {
            replace_routes::<V4>(netlink, shared)?;
        }
        if self.routes_v6 {
            replace_routes::<V6>(netlink, shared)?;
        }
        if self.neighbours {
            replace_neighbours::<V4>(netlink, shared)?;
            replace_neighbours::<V6>(netlink, shared)?;
        }
        if self.rules {
            let mut warnings = rule_warnings::<V4>(netlink)?;
            warnings.extend(rule_warnings::<V6>(netlink)?);
            let mut inner = shared.lock();
            for warning in warnings.difference(&inner.state.warnings) {
                warn!("{warning}");
            }
            inner.state.warnings = warnings;
        }
        Ok(())
    }
}

fn report_unreadable(dump: &Dump, what: &str) {
    if dump.unreadable > 0 {
        warn!(messages = dump.unreadable, "entries of the kernel's {what} cannot be read and are missing");
    }
    if dump.interrupted {
        info!(
            "the kernel's {what} changed all the time while they were read; the notifications complete them"
        );
    }
}

fn read_links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let mut request = LinkMessage::default();
    // Statistics are most of a link's message, and nobody here reads them.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let dump = netlink.dump(&Message::GetLink(request))?;
    report_unreadable(&dump, "links");
    let mut links: Vec<Link> = dump
        .messages
        .iter()
        .filter_map(|message| match message {
            Message::NewLink(link) => decode::link(link),
            _ => None,
        })
        .collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn replace_addresses<A: KernelFamily>(netlink: &mut Netlink, shared: &Shared) -> io::Result<()> {
    let mut request = AddressMessage::default();
    request.header.family = A::ADDRESS_FAMILY;
    let dump = netlink.dump(&Message::GetAddress(request))?;
    report_unreadable(&dump, "addresses");
    let mut addresses: Vec<LinkAddress<A>> = dump
        .messages
        .iter()
        .filter_map(|message| match message {
            Message::NewAddress(address) => decode::address(address),
            _ => None,
        })
        .collect();
    addresses.sort_by_key(|address| address.link);
    let mut inner = shared.lock();
    let state = A::state(&mut inner.state);
    let changed = addresses != state.addresses;
    state.addresses = addresses;
    A::changes(&mut inner.changes).addresses |= changed;
    Ok(())
}

fn replace_routes<A: KernelFamily>(netlink: &mut Netlink, shared: &Shared) -> io::Result<()> {
    let mut request = RouteMessage::default();
    request.header.address_family = A::ADDRESS_FAMILY;
    let dump = netlink.dump(&Message::GetRoute(request))?;
    report_unreadable(&dump, "routes");
    let mut routes = RouteTable::<A>::default();
    for message in &dump.messages {
        if let Message::NewRoute(message) = message {
            match decode::route(message) {
                DecodedRoute::Route(route) => routes.push(route),
                DecodedRoute::Unsupported(why) => warn!("{why}"),
                DecodedRoute::Skip => {}
            }
        }
    }
    let mut inner = shared.lock();
    inner.routes_just_read = true;
    let different = A::state(&mut inner.state).routes.differences(&routes);
    A::state(&mut inner.state).routes = routes;
    A::changes(&mut inner.changes).routes.extend(different);
    Ok(())
}

fn replace_neighbours<A: KernelFamily>(netlink: &mut Netlink, shared: &Shared) -> io::Result<()> {
    let mut request = NeighbourMessage::default();
    request.header.family = A::ADDRESS_FAMILY;
    let dump = netlink.dump(&Message::GetNeighbour(request))?;
    report_unreadable(&dump, "neighbours");
    let neighbours = dump
        .messages
        .iter()
        .filter_map(|message| match message {
            Message::NewNeighbour(neighbour) => decode::neighbour::<A>(neighbour),
            _ => None,
        })
        .filter_map(|(key, neighbour)| Some((key, neighbour?)))
        .collect();
    let mut inner = shared.lock();
    let old = std::mem::replace(&mut A::state(&mut inner.state).neighbours, neighbours);
    let new = &A::state(&mut inner.state).neighbours;
    let different: BTreeSet<NeighbourKey<A>> =
        old.keys().chain(new.keys()).filter(|key| old.get(key) != new.get(key)).copied().collect();
    A::changes(&mut inner.changes).neighbours.extend(different);
    Ok(())
}

fn rule_warnings<A: KernelFamily>(netlink: &mut Netlink) -> io::Result<BTreeSet<String>> {
    let mut request = RuleMessage::default();
    request.header.family = A::ADDRESS_FAMILY;
    let dump = match netlink.dump(&Message::GetRule(request)) {
        Ok(dump) => dump,
        // A kernel without policy routing has no rules.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    report_unreadable(&dump, "policy rules");
    Ok(dump
        .messages
        .iter()
        .filter_map(|message| match message {
            Message::NewRule(rule) => decode::rule_warning::<A>(rule),
            _ => None,
        })
        .collect())
}

/// The thread that applies notifications.
struct Follower {
    shared: Arc<Shared>,
    notifications: Socket,
    datagram: Vec<u8>,
    netlink: Netlink,
}

impl Follower {
    /// Opens the sockets in the calling thread's network namespace. Notifications count from here on, so
    /// a dump that is made later misses nothing.
    fn open(shared: Arc<Shared>) -> io::Result<Self> {
        let mut notifications = Socket::new(NETLINK_ROUTE)?;
        notifications.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            match notifications.add_membership(group) {
                // Kernels before 5.3 have no next hop objects.
                Err(_) if group == NEXT_HOP_OBJECTS => {}
                result => result?,
            }
        }
        // Only real root may go beyond net.core.rmem_max.
        if setsockopt(&notifications, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&notifications, sockopt::RcvBuf, &SOCKET_BUFFER)?;
        }
        Ok(Follower { shared, notifications, datagram: Vec::new(), netlink: Netlink::open()? })
    }

    fn synchronise(&mut self) -> io::Result<()> {
        Stale::everything().read_again(&mut self.netlink, &self.shared)
    }

    fn run(mut self, stop: &UnixStream) {
        while wait(Some(self.notifications.as_fd()), stop, PollTimeout::NONE) {
            if let Err(problem) = self.apply_waiting() {
                error!(error = %problem, "following the kernel's tables failed; reading them again");
                self.start_over(stop);
            }
        }
    }

    /// Applies what has arrived, reads again what has become stale, and tells the consumer.
    fn apply_waiting(&mut self) -> io::Result<()> {
        let mut stale = Stale::default();
        loop {
            let shared = Arc::clone(&self.shared);
            let mut inner = shared.lock();
            let drained = self.apply_batch(&mut inner, &mut stale)?;
            drop(inner);
            if drained {
                break;
            }
            shared.changed.notify_one();
        }
        self.shared.lock().routes_just_read = false;
        stale.read_again(&mut self.netlink, &self.shared)?;
        if !self.shared.lock().changes.is_empty() {
            self.shared.changed.notify_one();
        }
        Ok(())
    }

    /// Applies some messages; true if none is left.
    fn apply_batch(&mut self, inner: &mut Inner, stale: &mut Stale) -> io::Result<bool> {
        let mut applied = 0;
        while applied < BATCH {
            let messages = match receive(&self.notifications, &mut self.datagram, libc::MSG_DONTWAIT) {
                Ok(messages) => messages,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    warn!("notifications of the kernel were lost; reading all tables again");
                    *stale = Stale::everything();
                    continue;
                }
                Err(error) => return Err(error),
            };
            applied += apply_all(messages, inner, stale);
        }
        Ok(false)
    }

    /// Opens new sockets and reads everything, again and again until it works or the mirror is dropped.
    fn start_over(&mut self, stop: &UnixStream) {
        let pause = PollTimeout::try_from(RETRY).unwrap_or(PollTimeout::MAX);
        while wait(None, stop, pause) {
            let opened = Follower::open(Arc::clone(&self.shared)).and_then(|mut follower| {
                follower.synchronise()?;
                Ok(follower)
            });
            match opened {
                Ok(follower) => {
                    *self = follower;
                    self.shared.changed.notify_one();
                    return;
                }
                Err(problem) => error!(error = %problem, "the kernel's tables cannot be read"),
            }
        }
    }
}

/// Applies the messages of one datagram and returns their number.
fn apply_all(messages: Messages<'_>, inner: &mut Inner, stale: &mut Stale) -> usize {
    let mut applied = 0;
    for message in messages {
        applied += 1;
        match message {
            Ok(message) => {
                let placement = if message.header.flags & NLM_F_REPLACE != 0 {
                    Placement::Replace
                } else if message.header.flags & NLM_F_APPEND != 0 {
                    Placement::Last
                } else {
                    Placement::First
                };
                if let NetlinkPayload::InnerMessage(message) = message.payload {
                    apply(&message, placement, inner, stale);
                }
            }
            Err(unreadable) => apply_unreadable(&unreadable, stale),
        }
    }
    applied
}

fn apply(message: &Message, placement: Placement, inner: &mut Inner, stale: &mut Stale) {
    match message {
        Message::NewLink(link) => apply_link(link, Presence::There, inner, stale),
        Message::DelLink(link) => apply_link(link, Presence::Gone, inner, stale),
        Message::NewAddress(_) => stale.addresses = true,
        Message::DelAddress(_) => {
            stale.addresses = true;
            // Routes fall with their preferred source.
            stale.all_routes();
        }
        Message::NewRule(_) | Message::DelRule(_) => stale.rules = true,
        Message::NewRoute(route) => {
            apply_route::<V4>(route, Some(placement), inner, &mut stale.routes_v4);
            apply_route::<V6>(route, Some(placement), inner, &mut stale.routes_v6);
        }
        Message::DelRoute(route) => {
            apply_route::<V4>(route, None, inner, &mut stale.routes_v4);
            apply_route::<V6>(route, None, inner, &mut stale.routes_v6);
        }
        Message::NewNeighbour(neighbour) => {
            apply_neighbour::<V4>(neighbour, Presence::There, inner);
            apply_neighbour::<V6>(neighbour, Presence::There, inner);
        }
        Message::DelNeighbour(neighbour) => {
            apply_neighbour::<V4>(neighbour, Presence::Gone, inner);
            apply_neighbour::<V6>(neighbour, Presence::Gone, inner);
        }
        _ => {}
    }
}

fn apply_link(message: &LinkMessage, presence: Presence, inner: &mut Inner, stale: &mut Stale) {
    // A bridge's messages about its ports, in which a port that leaves is "deleted"; and fragments without
    // a name, from wireless drivers.
    if message.header.interface_family != AddressFamily::Unspec {
        return;
    }
    let Some(link) = decode::link(message) else {
        return;
    };
    let links = &mut inner.state.links;
    let place = links.binary_search_by_key(&link.index, |known| known.index);
    // Routes fall with a link that goes down. Judged by each message, since it may be up again by now.
    let was_up = place.is_ok_and(|place| links[place].up);
    let is_up = matches!(presence, Presence::There) && link.up;
    if was_up && !is_up {
        stale.all_routes();
    }
    match (place, presence) {
        (Ok(place), Presence::There) if links[place] == link => return,
        (Ok(place), Presence::There) => links[place] = link,
        (Err(place), Presence::There) => links.insert(place, link),
        (Ok(place), Presence::Gone) => {
            links.remove(place);
        }
        (Err(_), Presence::Gone) => return,
    }
    inner.changes.links = true;
}

/// Takes in a route, or takes it out if there is no placement.
fn apply_route<A: KernelFamily>(
    message: &RouteMessage,
    placement: Option<Placement>,
    inner: &mut Inner,
    stale: &mut bool,
) {
    let route = match decode::route::<A>(message) {
        DecodedRoute::Route(route) => route,
        DecodedRoute::Unsupported(why) => {
            if placement.is_some() {
                warn!("{why}");
            }
            return;
        }
        DecodedRoute::Skip => return,
    };
    A::changes(&mut inner.changes).routes.insert(route.prefix);
    let routes = &mut A::state(&mut inner.state).routes;
    let certainty = match placement {
        Some(placement) => routes.insert(route, placement),
        None => routes.remove(&route),
    };
    *stale |= match certainty {
        Certainty::Exact => false,
        Certainty::IfCurrent => inner.routes_just_read,
        Certainty::ReadAgain => true,
    };
}

#[derive(Clone, Copy)]
enum Presence {
    There,
    Gone,
}

fn apply_neighbour<A: KernelFamily>(message: &NeighbourMessage, presence: Presence, inner: &mut Inner) {
    let Some((key, neighbour)) = decode::neighbour::<A>(message) else {
        return;
    };
    let neighbours = &mut A::state(&mut inner.state).neighbours;
    let changed = match (presence, neighbour) {
        (Presence::There, Some(neighbour)) => neighbours.insert(key, neighbour) != Some(neighbour),
        _ => neighbours.remove(&key).is_some(),
    };
    if changed {
        A::changes(&mut inner.changes).neighbours.insert(key);
    }
}

fn apply_unreadable(unreadable: &Unreadable, stale: &mut Stale) {
    if NEXT_HOP_MESSAGES.contains(&unreadable.message_type) {
        stale.all_routes();
    } else {
        // A dump shows whether the object itself is readable.
        warn!("{unreadable}; reading all tables again");
        *stale = Stale::everything();
    }
}

/// Waits for notifications, or for the time; false when it is time to end.
fn wait(notifications: Option<BorrowedFd<'_>>, stop: &UnixStream, timeout: PollTimeout) -> bool {
    let mut descriptors = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    descriptors.extend(notifications.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
    loop {
        match poll(&mut descriptors, timeout) {
            Err(Errno::EINTR) => {}
            Err(errno) => {
                error!(error = %errno, "waiting for the kernel's notifications failed");
                return false;
            }
            Ok(_) => return descriptors[0].revents().is_none_or(|events| events.is_empty()),
        }
    }
}
