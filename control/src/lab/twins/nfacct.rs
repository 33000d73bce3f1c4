//! The accounting objects that rules name (`-m nfacct --nfacct-name X`): the kernel takes the rules only when
//! they exist.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::kernel::Error;
use crate::kernel::netns::Netns;

/// linux/netfilter/nfnetlink.h, nfnetlink_acct.h: the subsystem, `NFNL_MSG_ACCT_NEW`, `NFACCT_NAME`.
const ACCOUNTING: u16 = 7;
const NEW: u16 = 0;
const NAME: u16 = 1;

/// linux/netlink.h.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const ERROR: u16 = 2;

/// The names that rules mention, each once.
pub(super) fn names(rules: &str) -> Vec<&str> {
    let mut names: Vec<&str> = rules
        .lines()
        .flat_map(|line| {
            let mut words = line.split_whitespace();
            std::iter::from_fn(move || {
                words.find(|word| *word == "--nfacct-name")?;
                words.next()
            })
        })
        .map(|name| name.trim_matches('"'))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Makes the objects in a namespace; one that is there already stays.
///
/// # Errors
/// When the kernel refuses: it has no such objects, or the name is too long.
pub(super) fn create(netns: &Netns, names: &[&str]) -> Result<(), Error> {
    netns.run(|| {
        for name in names {
            add(name).map_err(|source| Error::System {
                action: format!("cannot make the accounting object {name}, which the rules name"),
                source,
            })?;
        }
        Ok(())
    })?
}

fn add(name: &str) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(name), 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    let word =
        |at: usize| answer.get(at..at + 4).map(|bytes| i32::from_ne_bytes(bytes.try_into().expect("four")));
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    match (kind, word(16)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) if code == -libc::EEXIST => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that says nothing")),
    }
}

fn request(name: &str) -> Vec<u8> {
    let attribute = 4 + name.len() + 1;
    let length = 16 + 4 + attribute.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend((ACCOUNTING << 8 | NEW).to_ne_bytes());
    message.extend((REQUEST | ACKNOWLEDGE | CREATE).to_ne_bytes());
    message.extend([0; 8]); // sequence and port
    message.extend([0; 4]); // family, version, resource
    message.extend((attribute as u16).to_ne_bytes());
    message.extend(NAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.resize(length, 0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_once_each() {
        let rules = include_str!("../../../../tests/corpus/seed-myapp/iptables-save.txt");
        assert_eq!(names(rules), ["ct_state_invalid_dropped_pkts"]);
        let two = "-A X -m nfacct --nfacct-name b -j Y\n-A X -m nfacct --nfacct-name  \"a\" -j Y\n-A X -m nfacct --nfacct-name b\n";
        assert_eq!(names(two), ["a", "b"]);
    }
}
