//! What has been changed on the node, on disk, and how it is put back: the memory of [`host_port`].
//!
//! Invariants: a change is in the file, durably, before it is made. While a [`StateFile`] lives no other
//! process has one of the same name. What is undone twice is undone once: each step first looks whether
//! the thing is still there, and still as Pollux left it.
//!
//! [`host_port`]: super::host_port

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use pollux_dataplane::packet::family::{Family, V4};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::netlink::Netlink;
use super::netns::{Netns, read_sysctl, write_sysctl};
use super::{Error, ROUTE_PROTOCOL, decode};

/// What the interface is called by where the kernel checks sources (see [`HostPort::set_up`](super::host_port::HostPort::set_up)): link-local,
/// and of scope host, so that the kernel never sends with it.
pub(super) const PLACEHOLDER: Ipv4Addr = Ipv4Addr::new(169, 254, ROUTE_PROTOCOL, 1);

/// What [`restore_leftovers`](super::host_port::restore_leftovers) found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leftovers {
    /// No instance of this name had been killed.
    None,
    /// What one had left behind was put back.
    Restored,
    /// What one had left behind is gone with the machine's last start, or with its network namespace.
    Outlived,
}

/// The state file: what has been changed, and its lock.
#[derive(Debug)]
pub(super) struct StateFile {
    pub(super) path: PathBuf,
    pub(super) saved: Saved,
    /// Where the changes are made and undone, whichever thread does it.
    pub(super) netns: Netns,
    _lock: Flock<File>,
}

/// The content of a state file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Which start of the machine: settings do not outlive it.
    boot: String,
    /// Which network namespace.
    pub(super) netns: u64,
    /// Whose routes of Pollux's protocol are to go.
    pub(super) interface: String,
    /// How the interface was before, unless it is made and unmade with the process.
    pub(super) link: Option<SavedLink>,
    /// Index of the interface that was given the [`PLACEHOLDER`].
    pub(super) placeholder: Option<u32>,
    /// Parameters in the order in which they were changed.
    sysctls: Vec<SavedSysctl>,
}

/// What is set of an interface. Another one that has got the name since has another index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SavedLink {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) no_arp: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SavedSysctl {
    pub(super) path: String,
    before: String,
    set: String,
}

impl StateFile {
    pub(super) fn lock(directory: &Path, name: &str) -> Result<Self, Error> {
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(Error::Invalid(format!("{name:?} cannot be the name of a state file")));
        }
        let cannot = |what: &Path| {
            let action = format!("cannot write {}", what.display());
            move |error: io::Error| Error::system(action.as_str(), error)
        };
        fs::create_dir_all(directory).map_err(cannot(directory))?;
        let lock = directory.join(format!("{name}.lock"));
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock).map_err(cannot(&lock))?;
        // The lock file stays when the process ends: to remove it would let two of them lock two files.
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Busy { lock: lock.clone() },
            errno => Error::system(format!("cannot lock {}", lock.display()), errno),
        })?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let netns = Netns::current()?;
        Ok(StateFile {
            path: directory.join(format!("{name}.json")),
            saved: Saved {
                boot: boot.trim().to_owned(),
                netns: netns.id()?,
                interface: String::new(),
                link: None,
                placeholder: None,
                sysctls: Vec::new(),
            },
            netns,
            _lock: held,
        })
    }

    /// Changes the record and makes it durable. Only then may the change itself be made.
    pub(super) fn record(&mut self, change: impl FnOnce(&mut Saved)) -> Result<(), Error> {
        change(&mut self.saved);
        let text = serde_json::to_vec_pretty(&self.saved)
            .map_err(|error| Error::system("cannot encode the state", io::Error::from(error)))?;
        let new = self.path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            // The new name has to be durable as well.
            self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
        };
        write().map_err(|error| Error::system(format!("cannot write {}", self.path.display()), error))
    }

    pub(super) fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), Error> {
        let before = self.netns.sysctl(path)?;
        if before == value {
            return Ok(());
        }
        let known = self.saved.sysctls.iter().position(|saved| saved.path == path);
        self.record(|saved| match known {
            // Changed a second time: the first value is the one to go back to.
            Some(place) => saved.sysctls[place].set = value.to_owned(),
            None => saved.sysctls.push(SavedSysctl { path: path.to_owned(), before, set: value.to_owned() }),
        })?;
        self.netns.set_sysctl(path, value)
    }

    /// Puts back what the file on disk says, and removes it.
    pub(super) fn restore(&mut self) -> Result<Leftovers, Error> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leftovers::None),
            Err(error) => {
                return Err(Error::system(format!("cannot read {}", self.path.display()), error));
            }
        };
        let saved: Saved = serde_json::from_slice(&text).map_err(|error| {
            Error::Invalid(format!(
                "{} is not a state file of Pollux ({error}): restore what it names by hand and remove it",
                self.path.display()
            ))
        })?;
        let found = if (&saved.boot, saved.netns) == (&self.saved.boot, self.saved.netns) {
            self.netns.run(|| undo(&saved))??;
            Leftovers::Restored
        } else {
            info!(file = %self.path.display(), "the state file is of an earlier start or namespace");
            Leftovers::Outlived
        };
        fs::remove_file(&self.path)
            .map_err(|error| Error::system(format!("cannot remove {}", self.path.display()), error))?;
        self.saved.interface.clear();
        self.saved.link = None;
        self.saved.placeholder = None;
        self.saved.sysctls.clear();
        Ok(found)
    }
}

/// Puts back as much as possible; the answer is the first failure.
fn undo(saved: &Saved) -> Result<(), Error> {
    let mut outcome = remove_own_routes(&saved.interface);
    if let Some(link) = saved.placeholder {
        outcome = outcome.and(undo_placeholder(link));
    }
    if let Some(link) = &saved.link {
        outcome = outcome.and(undo_link(link));
    }
    for sysctl in saved.sysctls.iter().rev() {
        outcome = outcome.and(undo_sysctl(sysctl));
    }
    outcome
}

fn undo_placeholder(link: u32) -> Result<(), Error> {
    let result = open_netlink()?.change(&Message::DelAddress(placeholder(link)), 0);
    match result.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw) {
        Some(Errno::ENODEV | Errno::EADDRNOTAVAIL) => Ok(()),
        _ => result.map_err(|error| Error::system(format!("cannot remove the address {PLACEHOLDER}"), error)),
    }
}

pub(super) fn placeholder(link: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = V4::BITS;
    message.header.scope = AddressScope::Host;
    message.header.index = link;
    message.attributes.push(AddressAttribute::Local(PLACEHOLDER.into()));
    message.attributes.push(AddressAttribute::Address(PLACEHOLDER.into()));
    message
}

fn undo_link(saved: &SavedLink) -> Result<(), Error> {
    let failed = |error| Error::system("cannot restore the interface", error);
    let mut netlink = open_netlink()?;
    match netlink.change(&Message::SetLink(link_request(saved)), 0) {
        // It went with its process.
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
        result => result.map_err(failed),
    }
}

/// The request that makes a link what `wanted` says.
pub(super) fn link_request(wanted: &SavedLink) -> LinkMessage {
    let mut request = LinkMessage::default();
    request.header.index = wanted.index;
    request.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    request.header.flags.set(LinkFlags::Up, wanted.up);
    request.header.flags.set(LinkFlags::Noarp, wanted.no_arp);
    request.attributes.push(LinkAttribute::Mtu(wanted.mtu));
    request
}

fn undo_sysctl(saved: &SavedSysctl) -> Result<(), Error> {
    if !Path::new("/proc/sys").join(&saved.path).exists() {
        // It went with its interface.
        return Ok(());
    }
    let now = read_sysctl(&saved.path)?;
    if now != saved.set {
        info!(parameter = %saved.path, value = %now, "left alone: changed by somebody else since");
        return Ok(());
    }
    write_sysctl(&saved.path, &saved.before)
}

/// Removes every route of Pollux's protocol on this interface.
fn remove_own_routes(interface: &str) -> Result<(), Error> {
    let Ok(link) = find_link(interface) else {
        // Its routes went with it.
        return Ok(());
    };
    let failed = |error| Error::system(format!("cannot remove the routes on {interface}"), error);
    let mut netlink = open_netlink()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in netlink.dump(&Message::GetRoute(request)).map_err(failed)?.messages {
            let Message::NewRoute(route) = message else {
                continue;
            };
            let ours = route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                && route.attributes.contains(&RouteAttribute::Oif(link));
            if ours {
                absent_is_fine(netlink.change(&Message::DelRoute(route), 0)).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// Removing what is not there any more has succeeded.
pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        result => result,
    }
}

pub(super) fn read_link(netlink: &mut Netlink, index: u32) -> Result<SavedLink, Error> {
    let failed = |error| Error::system("cannot read the interfaces", error);
    let dump = netlink.dump(&Message::GetLink(LinkMessage::default())).map_err(failed)?;
    let found = dump.messages.iter().find_map(|message| match message {
        Message::NewLink(message) => decode::link(message).filter(|link| link.index == index),
        _ => None,
    });
    let link = found.ok_or_else(|| failed(io::Error::from(Errno::ENODEV)))?;
    Ok(SavedLink { index, mtu: link.mtu, up: link.up, no_arp: link.no_arp })
}

pub(super) fn open_netlink() -> Result<Netlink, Error> {
    Netlink::open().map_err(|error| Error::system("cannot talk to the kernel (rtnetlink)", error))
}

pub(super) fn find_link(interface: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|_| Error::Invalid(format!("there is no interface {interface}")))
}
