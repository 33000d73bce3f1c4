//! As much of nftables' netlink protocol as a [`Guard`](crate::port::guard::Guard) needs: one transaction
//! that makes a table which lives as long as the socket.
//!
//! ```text
//! table netdev pollux-ID {            # flags owner: removed when the socket is closed
//!     chain ingress {
//!         type filter hook ingress devices = { ... } priority -500; policy accept;
//!         meta pkttype host ether type ip drop
//!         ether type ip6 ip6 daddr fe80::/10 accept
//!         ether type ip6 ip6 nexthdr icmpv6 icmpv6 type 133-137 accept
//!         meta pkttype host ether type ip6 drop
//!     }
//! }
//! ```

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::port::guard::{DESTINATION, DISCOVERY, ICMPV6, ICMPV6_TYPE, IPV6, LINK_LOCAL, NEXT_HEADER};
use crate::port::sys;

/// Before every chain that others use.
const PRIORITY: i32 = -500;

const CHAIN: &str = "ingress";

const TABLE_FLAG_OWNER: u32 = 2;
const NETDEV_INGRESS: u32 = 0;
const POLICY_ACCEPT: u32 = 1;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const ETHER_TYPE_OFFSET: u32 = 12;
const ETHER_TYPE_LEN: u32 = 2;

/// Attributes, by the object that they belong to (`linux/netfilter/nf_tables.h`).
mod attribute {
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const TABLE_FLAGS: u16 = 2;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_POLICY: u16 = 5;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const HOOK_DEVICES: u16 = 4;
    pub(super) const DEVICE_NAME: u16 = 1;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const LIST_ELEMENT: u16 = 1;
    pub(super) const EXPRESSION_NAME: u16 = 1;
    pub(super) const EXPRESSION_DATA: u16 = 2;
    pub(super) const META_REGISTER: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const PAYLOAD_REGISTER: u16 = 1;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LEN: u16 = 4;
    pub(super) const COMPARE_REGISTER: u16 = 1;
    pub(super) const COMPARE_OPERATION: u16 = 2;
    pub(super) const COMPARE_DATA: u16 = 3;
    pub(super) const BITWISE_SOURCE: u16 = 1;
    pub(super) const BITWISE_DESTINATION: u16 = 2;
    pub(super) const BITWISE_LEN: u16 = 3;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const IMMEDIATE_REGISTER: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
}

/// Drops frames that come in by `interfaces`, are addressed to the interface and have one of `ether_types`,
/// until the socket that is returned is closed.
///
/// # Errors
/// What the kernel says; nothing is dropped then.
pub(super) fn drop_unicast(interfaces: &[&str], ether_types: &[u16]) -> io::Result<OwnedFd> {
    let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?;
    // SAFETY: the structure is plain numbers; all zeros is a valid value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    sys::bind(&socket, &address)?;
    sys::set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &1)?;
    let patience = libc::timeval { tv_sec: 5, tv_usec: 0 };
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
    // The address of a netlink socket is unique in its network namespace, unlike the process's number.
    let id = sys::bound_address(&socket, address)?.nl_pid;
    let (batch, answers) = transaction(&format!("pollux-{id}"), interfaces, ether_types);
    send(&socket, &batch)?;
    (0..answers).try_for_each(|_| read_answer(&socket))?;
    Ok(socket)
}

/// The messages of the transaction, and how many of them are answered.
fn transaction(table: &str, interfaces: &[&str], ether_types: &[u16]) -> (Vec<u8>, usize) {
    use attribute as a;
    let mut batch = Batch::default();
    batch.message(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, |_| {});
    batch.message(kind(libc::NFT_MSG_NEWTABLE), libc::NLM_F_EXCL, |message| {
        message.text(a::TABLE_NAME, table);
        message.number(a::TABLE_FLAGS, TABLE_FLAG_OWNER);
    });
    batch.message(kind(libc::NFT_MSG_NEWCHAIN), libc::NLM_F_EXCL, |message| {
        message.text(a::CHAIN_TABLE, table);
        message.text(a::CHAIN_NAME, CHAIN);
        message.nested(a::CHAIN_HOOK, |hook| {
            hook.number(a::HOOK_NUMBER, NETDEV_INGRESS);
            hook.number(a::HOOK_PRIORITY, PRIORITY.cast_unsigned());
            hook.nested(a::HOOK_DEVICES, |devices| {
                for interface in interfaces {
                    devices.text(a::DEVICE_NAME, interface);
                }
            });
        });
        message.number(a::CHAIN_POLICY, POLICY_ACCEPT);
        message.text(a::CHAIN_TYPE, "filter");
    });
    let mut rules = 0;
    let mut rule = |batch: &mut Batch, expressions: &dyn Fn(&mut Batch)| {
        rules += 1;
        batch.message(kind(libc::NFT_MSG_NEWRULE), libc::NLM_F_APPEND, |message| {
            message.text(a::RULE_TABLE, table);
            message.text(a::RULE_CHAIN, CHAIN);
            message.nested(a::RULE_EXPRESSIONS, expressions);
        });
    };
    for ether_type in ether_types {
        if *ether_type == IPV6 {
            rule(&mut batch, &pass_link_local);
            rule(&mut batch, &pass_discovery);
        }
        rule(&mut batch, &|rule| drop_to_host(rule, *ether_type));
    }
    batch.message(libc::NFNL_MSG_BATCH_END as u16, 0, |_| {});
    (batch.bytes, 2 + rules)
}

/// `ether type ip6 ip6 daddr fe80::/10 accept`.
fn pass_link_local(rule: &mut Batch) {
    let (prefix, mask) = LINK_LOCAL;
    rule.has_ether_type(IPV6);
    rule.load(libc::NFT_PAYLOAD_NETWORK_HEADER, DESTINATION, 2);
    rule.mask(&mask.to_be_bytes());
    rule.compare(libc::NFT_CMP_EQ, &prefix.to_be_bytes());
    rule.verdict(VERDICT_ACCEPT);
}

/// `ether type ip6 ip6 nexthdr icmpv6 icmpv6 type 133-137 accept`.
fn pass_discovery(rule: &mut Batch) {
    rule.has_ether_type(IPV6);
    rule.load(libc::NFT_PAYLOAD_NETWORK_HEADER, NEXT_HEADER, 1);
    rule.compare(libc::NFT_CMP_EQ, &[ICMPV6]);
    rule.load(libc::NFT_PAYLOAD_NETWORK_HEADER, ICMPV6_TYPE, 1);
    rule.compare(libc::NFT_CMP_GTE, &[*DISCOVERY.start()]);
    rule.compare(libc::NFT_CMP_LTE, &[*DISCOVERY.end()]);
    rule.verdict(VERDICT_ACCEPT);
}

/// `meta pkttype host ether type TYPE drop`.
fn drop_to_host(rule: &mut Batch, ether_type: u16) {
    use attribute as a;
    rule.expression("meta", |meta| {
        meta.number(a::META_REGISTER, REGISTER);
        meta.number(a::META_KEY, libc::NFT_META_PKTTYPE as u32);
    });
    rule.compare(libc::NFT_CMP_EQ, &[libc::PACKET_HOST]);
    rule.has_ether_type(ether_type);
    rule.verdict(VERDICT_DROP);
}

fn kind(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16
}

/// Netlink messages one behind the other, in the byte order of the machine; numbers in attributes are in
/// that of the network.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    /// Appends a message of nftables, or the batch's begin or end. Messages of nftables are answered.
    fn message(&mut self, kind: u16, flags: libc::c_int, content: impl FnOnce(&mut Batch)) {
        let start = self.bytes.len();
        let own = kind >> 8 != 0;
        let request = libc::NLM_F_REQUEST | flags;
        let flags = if own { request | libc::NLM_F_CREATE | libc::NLM_F_ACK } else { request };
        self.messages += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags as u16).to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend([0; 4]);
        // The batch's frame names the subsystem, a message the family.
        let (family, subsystem) =
            if own { (libc::NFPROTO_NETDEV as u8, 0) } else { (0, libc::NFNL_SUBSYS_NFTABLES as u16) };
        self.bytes.extend([family, libc::NFNETLINK_V0 as u8]);
        self.bytes.extend(subsystem.to_be_bytes());
        content(self);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, content: impl FnOnce(&mut Batch)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        content(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Batch)) {
        self.attribute(kind | libc::NLA_F_NESTED as u16, content);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |batch| {
            batch.bytes.extend(text.as_bytes());
            batch.bytes.push(0);
        });
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.attribute(kind, |batch| batch.bytes.extend(number.to_be_bytes()));
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Batch)) {
        self.nested(attribute::LIST_ELEMENT, |element| {
            element.text(attribute::EXPRESSION_NAME, name);
            element.nested(attribute::EXPRESSION_DATA, data);
        });
    }

    /// Loads `len` bytes of the frame into the register, `offset` bytes behind the start of the header `base`.
    fn load(&mut self, base: libc::c_int, offset: u32, len: u32) {
        self.expression("payload", |payload| {
            payload.number(attribute::PAYLOAD_REGISTER, REGISTER);
            payload.number(attribute::PAYLOAD_BASE, base as u32);
            payload.number(attribute::PAYLOAD_OFFSET, offset);
            payload.number(attribute::PAYLOAD_LEN, len);
        });
    }

    /// Goes on only if the frame has this Ethernet type. It is read from the frame, where a VLAN tag shows.
    fn has_ether_type(&mut self, ether_type: u16) {
        self.load(libc::NFT_PAYLOAD_LL_HEADER, ETHER_TYPE_OFFSET, ETHER_TYPE_LEN);
        self.compare(libc::NFT_CMP_EQ, &ether_type.to_be_bytes());
    }

    /// Clears the bits of the register that `mask` does not have.
    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |bitwise| {
            bitwise.number(attribute::BITWISE_SOURCE, REGISTER);
            bitwise.number(attribute::BITWISE_DESTINATION, REGISTER);
            bitwise.number(attribute::BITWISE_LEN, mask.len() as u32);
            for (kind, value) in
                [(attribute::BITWISE_MASK, mask), (attribute::BITWISE_XOR, &[0; 16][..mask.len()])]
            {
                bitwise.nested(kind, |data| {
                    data.attribute(attribute::DATA_VALUE, |batch| batch.bytes.extend(value));
                });
            }
        });
    }

    /// Goes on only if the register is to `value` as `operation` says.
    fn compare(&mut self, operation: libc::c_int, value: &[u8]) {
        self.expression("cmp", |compare| {
            compare.number(attribute::COMPARE_REGISTER, REGISTER);
            compare.number(attribute::COMPARE_OPERATION, operation as u32);
            compare.nested(attribute::COMPARE_DATA, |data| {
                data.attribute(attribute::DATA_VALUE, |batch| batch.bytes.extend(value));
            });
        });
    }

    /// What becomes of a frame that has come so far in its rule.
    fn verdict(&mut self, code: u32) {
        use attribute as a;
        self.expression("immediate", |immediate| {
            immediate.number(a::IMMEDIATE_REGISTER, REGISTER_VERDICT);
            immediate.nested(a::IMMEDIATE_DATA, |data| {
                data.nested(a::DATA_VERDICT, |verdict| verdict.number(a::VERDICT_CODE, code));
            });
        });
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads the bytes, which outlive the call.
    sys::check_len(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) })?;
    Ok(())
}

/// Reads the answer to one message.
fn read_answer(socket: &OwnedFd) -> io::Result<()> {
    const HEADER: usize = 16;
    let mut bytes = [0u8; 1024];
    // SAFETY: the kernel writes at most as many bytes as the buffer has, which outlives the call.
    let len =
        sys::check_len(unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) })?;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    if len < HEADER + 4 || kind != libc::NLMSG_ERROR as u16 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("unexpected answer of nftables: message {kind} of {len} bytes"),
        ));
    }
    let code = i32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
