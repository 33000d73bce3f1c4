//! What to do with a received ARP message: learn from it, answer it (NB-01). IPv6's counterpart is
//! [`discovery`](super::discovery).
//!
//! A decision without effects; the forwarder parses the message before and builds the answer after. The rules
//! are the kernel's `arp_process` with its default settings: the node answers for any of its addresses on any
//! port it owns, and by proxy for whatever it would route to another interface. On a port that Pollux shares
//! with the kernel, the kernel answers for the node's addresses; there Pollux learns, and answers by proxy only.

use super::{Fib, Interfaces, Learned, RouteKind};
use crate::packet::{Address, Family, LinkAddr, PortId};

/// A message that asks for a link address, or tells one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<A: Family> {
    /// Whether it asks or tells.
    pub kind: MessageKind,
    /// Whether the frame was addressed to the port alone.
    pub addressed: Addressed,
    /// The sender's link address, as the message says it (not the frame).
    pub sender_link: LinkAddr,
    /// The sender's address; unspecified when it has none yet.
    pub sender: A::Addr,
    /// The address asked for; in an answer, the one who asked.
    pub target: A::Addr,
}

/// Kinds of messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MessageKind {
    /// ARP request.
    Request,
    /// ARP reply.
    Reply,
}

/// Whom a frame was addressed to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Addressed {
    /// This port's link address.
    ToPort,
    /// A group, or everyone.
    ToGroup,
}

/// Who answers on a port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Responder {
    /// The kernel, which sees the port's frames too.
    #[default]
    Kernel,
    /// The kernel for the node's addresses, Pollux for all that it routes out of other interfaces: the
    /// kernel's own proxy ARP needs `ip_forward`, which a node where Pollux forwards can do without.
    Proxy,
    /// Pollux, for the node's addresses.
    Own,
    /// Pollux, for the node's addresses and for all that it routes out of other interfaces (proxy ARP:
    /// Calico's 169.254.1.1).
    OwnAndProxy,
}

/// What to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision<A: Family> {
    /// How to learn the sender's link address, for [`Neighbours::learn`](super::Neighbours::learn).
    pub learn: Option<Learned>,
    /// The answer to send.
    pub answer: Option<Answer<A>>,
}

/// An answer: `sender` is at the port's link address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer<A: Family> {
    /// Where the frame goes, and the message's target link address.
    pub link_destination: LinkAddr,
    /// The address that was asked for.
    pub sender: A::Addr,
    /// Who asked.
    pub target: A::Addr,
}

/// Decides on a message that `port` received.
pub fn decide<A: Family>(
    message: &Message<A>,
    port: PortId,
    responder: Responder,
    interfaces: &Interfaces<A>,
    fib: &Fib<A>,
) -> Decision<A> {
    let nothing = Decision { learn: None, answer: None };
    let Message { sender, target, .. } = *message;
    let no_host = |address: A::Addr| address.is_multicast() || address.is_loopback();
    let bad_link = message.sender_link.is_group() || message.sender_link == LinkAddr::default();
    // Somebody with an address of the node is a liar or a conflict; it is not answered either.
    if bad_link || no_host(sender) || no_host(target) || interfaces.is_local(sender) {
        return nothing;
    }
    let asked = message.kind == MessageKind::Request;
    let for_own = || {
        asked && matches!(responder, Responder::Own | Responder::OwnAndProxy) && interfaces.is_local(target)
    };
    let by_proxy = || {
        asked
            && matches!(responder, Responder::Proxy | Responder::OwnAndProxy)
            && leads_elsewhere(fib, target, port)
    };
    let answer = Answer { link_destination: message.sender_link, sender: target, target: sender };
    if sender.is_unspecified() {
        // A check for duplicates: only an address of the node's own is defended.
        return Decision { answer: for_own().then_some(answer), ..nothing };
    }
    if for_own() || by_proxy() {
        return Decision { learn: Some(Learned::Request), answer: Some(answer) };
    }
    Decision {
        learn: Some(match (message.kind, message.addressed) {
            _ if sender == target => Learned::Gratuitous,
            (MessageKind::Reply, Addressed::ToPort) => Learned::Reply,
            _ => Learned::Overheard,
        }),
        answer: None,
    }
}

/// Whether the node would route packets for `target` out of another interface than `port`.
fn leads_elsewhere<A: Family>(fib: &Fib<A>, target: A::Addr, port: PortId) -> bool {
    match fib.lookup(target).map(|route| &route.kind) {
        Some(RouteKind::Host) => true,
        Some(kind) => kind.leaves_elsewhere(port),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::packet::V4;
    use crate::route::fixture::{CALI_8, ENS3, seed_fib, seed_interfaces};

    const POD: LinkAddr = LinkAddr([0x2e, 0xd6, 0x68, 0x68, 0x23, 0x60]);

    fn v4(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn request(sender: &str, target: &str) -> Message<V4> {
        Message {
            kind: MessageKind::Request,
            addressed: Addressed::ToGroup,
            sender_link: POD,
            sender: v4(sender),
            target: v4(target),
        }
    }

    fn on(port: PortId, responder: Responder, message: Message<V4>) -> Decision<V4> {
        decide(&message, port, responder, &seed_interfaces(), &seed_fib())
    }

    fn answer(sender: &str, target: &str) -> Option<Answer<V4>> {
        Some(Answer { link_destination: POD, sender: v4(sender), target: v4(target) })
    }

    #[test]
    fn nb_01_proxy_answers_for_calico_s_gateway() {
        let asked = request("10.151.51.8", "169.254.1.1");
        let decision = on(CALI_8, Responder::OwnAndProxy, asked);
        assert_eq!(decision.answer, answer("169.254.1.1", "10.151.51.8"));
        assert_eq!(decision.learn, Some(Learned::Request));
        assert_eq!(on(CALI_8, Responder::Own, asked).answer, None);
    }

    #[test]
    fn nb_01_proxy_is_silent_about_the_port_s_own_side_and_blackholes() {
        let silent = |target| {
            let decision = on(CALI_8, Responder::OwnAndProxy, request("10.151.51.8", target));
            assert_eq!(decision.answer, None, "{target}");
            decision.learn
        };
        assert_eq!(silent("10.151.51.99"), Some(Learned::Overheard));
        assert_eq!(silent("10.151.51.8"), Some(Learned::Gratuitous));
    }

    #[test]
    fn nb_01_own_addresses_are_answered_on_any_port() {
        let decision = on(ENS3, Responder::Own, request("172.16.0.1", "172.16.1.50"));
        assert_eq!(decision.answer, answer("172.16.1.50", "172.16.0.1"));
        let decision = on(CALI_8, Responder::Own, request("10.151.51.8", "172.16.1.50"));
        assert_eq!(decision.answer, answer("172.16.1.50", "10.151.51.8"));
    }

    #[test]
    fn nb_01_shared_port_learns_and_leaves_the_answer_to_the_kernel() {
        let decision = on(ENS3, Responder::Kernel, request("172.16.0.1", "172.16.1.50"));
        assert_eq!(decision.answer, None);
        assert_eq!(decision.learn, Some(Learned::Overheard));
        let reply = Message {
            kind: MessageKind::Reply,
            addressed: Addressed::ToPort,
            ..request("172.16.1.88", "172.16.1.50")
        };
        assert_eq!(on(ENS3, Responder::Kernel, reply).learn, Some(Learned::Reply));
    }

    #[test]
    fn nb_01_shared_port_with_proxy_answers_for_what_the_kernel_does_not() {
        let asked = request("10.151.51.8", "169.254.1.1");
        let decision = on(CALI_8, Responder::Proxy, asked);
        assert_eq!(decision.answer, answer("169.254.1.1", "10.151.51.8"));
        assert_eq!(decision.learn, Some(Learned::Request));
        for target in ["172.16.1.50", "10.151.51.99", "10.151.51.8"] {
            let decision = on(CALI_8, Responder::Proxy, request("10.151.51.8", target));
            assert_eq!(decision.answer, None, "{target}");
        }
        assert_eq!(on(CALI_8, Responder::Proxy, request("0.0.0.0", "172.16.1.50")).answer, None);
    }

    #[test]
    fn nb_01_announcements_and_replies_to_all_confirm_nothing() {
        let announcement = Message {
            kind: MessageKind::Reply,
            addressed: Addressed::ToPort,
            ..request("172.16.1.88", "172.16.1.88")
        };
        assert_eq!(on(ENS3, Responder::Own, announcement).learn, Some(Learned::Gratuitous));
        let to_all = Message { kind: MessageKind::Reply, ..request("172.16.1.88", "172.16.1.50") };
        assert_eq!(on(ENS3, Responder::Own, to_all).learn, Some(Learned::Overheard));
    }

    #[test]
    fn nb_01_duplicate_check_is_answered_for_own_addresses_only() {
        let decision = on(ENS3, Responder::OwnAndProxy, request("0.0.0.0", "172.16.1.50"));
        assert_eq!(decision.answer, answer("172.16.1.50", "0.0.0.0"));
        assert_eq!(decision.learn, None);
        let decision = on(CALI_8, Responder::OwnAndProxy, request("0.0.0.0", "169.254.1.1"));
        assert_eq!(decision.answer, None);
    }

    #[test]
    fn nb_01_impossible_senders_are_ignored() {
        let ignored = |message| {
            let decision = on(ENS3, Responder::OwnAndProxy, message);
            assert_eq!((decision.learn, decision.answer), (None, None), "{message:?}");
        };
        ignored(request("172.16.1.50", "172.16.1.88"));
        ignored(request("224.0.0.1", "172.16.1.50"));
        ignored(request("127.0.0.1", "172.16.1.50"));
        ignored(request("172.16.1.88", "127.0.0.1"));
        ignored(Message { sender_link: LinkAddr::BROADCAST, ..request("172.16.1.88", "172.16.1.50") });
    }
}
