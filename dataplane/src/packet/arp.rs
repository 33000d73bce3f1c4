//! ARP for IPv4 over Ethernet (RFC 826): read from a frame, and made into one.

use std::net::Ipv4Addr;

use super::ethernet::{self, Ethernet};
use super::{LinkAddr, Packet, PoolEmpty, PortId};
use crate::pool::Pool;

/// Length of the message in bytes, without the link header.
pub const LEN: usize = 28;

/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// What an ARP message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// An ARP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's link address.
    pub sender_link: LinkAddr,
    /// The sender's address; 0.0.0.0 in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's link address; of no meaning in a request.
    pub target_link: LinkAddr,
    /// The target's address; the sender's own in an announcement.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads the message in a frame of Ethernet type [`ethernet::ARP`]. Nothing when it is truncated, not
    /// about IPv4 over Ethernet, or neither request nor reply.
    pub fn new_checked(frame: &[u8]) -> Option<Arp> {
        let message: &[u8; LEN] = frame.get(ethernet::LEN..)?.first_chunk()?;
        if message[..6] != KIND {
            return None;
        }
        let operation = match message[6..8] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        let link = |at: usize| LinkAddr(std::array::from_fn(|i| message[at + i]));
        let address = |at: usize| Ipv4Addr::from_octets(std::array::from_fn(|i| message[at + i]));
        Some(Arp {
            operation,
            sender_link: link(8),
            sender: address(14),
            target_link: link(18),
            target: address(24),
        })
    }

    /// The question who has `target`.
    pub fn request(sender_link: LinkAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Arp {
        Arp { operation: Operation::Request, sender_link, sender, target_link: LinkAddr::default(), target }
    }

    /// The answer to this message: its target address is at `link`.
    pub fn reply(&self, link: LinkAddr) -> Arp {
        Arp {
            operation: Operation::Reply,
            sender_link: link,
            sender: self.target,
            target_link: self.sender_link,
            target: self.sender,
        }
    }

    /// The frame that carries the message from `sender_link` to `destination`, as if received on `port`.
    /// It is not padded to 60 bytes: devices do that.
    ///
    /// # Errors
    /// When the pool is empty.
    pub fn to_packet(
        &self,
        pool: &'static Pool,
        port: PortId,
        destination: LinkAddr,
    ) -> Result<Packet, PoolEmpty> {
        let mut frame = [0; ethernet::LEN + LEN];
        let (link, message) = frame.split_at_mut(ethernet::LEN);
        let header = Ethernet {
            destination,
            source: self.sender_link,
            ether_type: ethernet::ARP,
            len: ethernet::LEN as u16,
        };
        link.copy_from_slice(&header.to_bytes());
        message[..6].copy_from_slice(&KIND);
        message[7] = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        message[8..14].copy_from_slice(&self.sender_link.0);
        message[14..18].copy_from_slice(&self.sender.octets());
        message[18..24].copy_from_slice(&self.target_link.0);
        message[24..28].copy_from_slice(&self.target.octets());
        Packet::copy_of(pool, port, &frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 1]);
    const GATEWAY: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 2]);

    fn question() -> Arp {
        Arp::request(HOST, [192, 0, 2, 1].into(), [192, 0, 2, 2].into())
    }

    #[test]
    fn nb_01_a_request_and_its_reply_read_back_and_satisfy_etherparse() {
        let pool = Pool::new(1).unwrap();
        let answer = question().reply(GATEWAY);
        for (arp, to, operation) in [(question(), LinkAddr::BROADCAST, 1), (answer, HOST, 2)] {
            let packet = arp.to_packet(pool, PortId(1), to).unwrap();
            assert_eq!(Arp::new_checked(packet.head()), Some(arp));
            let frame = etherparse::SlicedPacket::from_ethernet(packet.head()).unwrap();
            let Some(etherparse::NetSlice::Arp(seen)) = frame.net else {
                panic!("not ARP: {frame:?}");
            };
            assert_eq!(seen.operation().0, operation);
            assert_eq!(seen.sender_hw_addr(), arp.sender_link.0);
            assert_eq!(seen.sender_protocol_addr(), arp.sender.octets());
            assert_eq!(seen.target_hw_addr(), arp.target_link.0);
            assert_eq!(seen.target_protocol_addr(), arp.target.octets());
            assert_eq!(Ethernet::new_checked(packet.head()).unwrap().destination, to);
        }
        assert_eq!(answer.sender.octets(), [192, 0, 2, 2]);
        assert_eq!(answer.target_link, HOST);
    }

    #[test]
    fn nb_01_what_is_not_arp_of_ipv4_is_not_read() {
        let pool = Pool::new(1).unwrap();
        let packet = question().to_packet(pool, PortId(1), LinkAddr::BROADCAST).unwrap();
        let frame = packet.to_vec();
        assert_eq!(Arp::new_checked(&frame[..41]), None);
        for (at, value) in [(14, 1), (15, 6), (16, 9), (18, 8), (19, 16), (21, 3)] {
            let mut other = frame.clone();
            other[at] = value;
            assert_eq!(Arp::new_checked(&other), None, "byte {at}");
        }
    }
}
