//! The plain packet, read and written through one view of its headers.
//!
//! Nearly every packet of a connection in use is a whole IPv4 packet without options that carries UDP, or TCP
//! with ACK and none of SYN, FIN and RST. Each of its fields has one place in the frame, so one look at a
//! length is enough for all of them. [`Plain::read`] accepts a part of what [`parse`](super::parse()) accepts,
//! and never anything else; what it leaves is for that to judge.

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::ethernet;
use super::ip::{self, V4_LEN};
use super::transport::{self, TCP_LEN, TcpFlags, UDP_LEN};
use super::{ChecksumState, Family, LinkAddr, Offload, Packet, Protocol, V4};

const L3: usize = ethernet::LEN;
const L4: usize = L3 + V4_LEN;

/// Bytes of the view: up to the end of a TCP header without options. A datagram that ends before is not plain.
const LEN: usize = L4 + TCP_LEN;

type Bytes = [u8; LEN];

/// The headers of a plain packet, to be changed.
pub(crate) struct View<'a> {
    bytes: &'a mut Bytes,
    offload: &'a Offload,
}

/// What the forwarder needs to know of a plain packet, as read once. Numbers are in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plain {
    /// The source address in the upper half, the destination in the lower.
    pub(crate) addresses: u64,
    /// The ports, likewise.
    pub(crate) ports: u32,
    /// Length of the IP packet in bytes: what an MTU limits.
    pub(crate) packet_len: u16,
    /// TCP or UDP.
    pub(crate) protocol: Protocol,
    /// Of a TCP segment: the sequence number behind its data, in the upper half, and its acknowledgement number.
    /// Of UDP: 0, as the flow table remembers of it.
    pub(crate) numbers: u64,
}

impl Plain {
    /// Reads and checks a received frame, and cuts off the padding behind the IP packet. Nothing, and nothing
    /// is done, when it is not plain, or not correct.
    #[inline(always)]
    pub(crate) fn read(packet: &mut Packet) -> Option<Plain> {
        let frame = packet.head();
        let in_chunk = frame.len();
        let view: &Bytes = frame.first_chunk()?;
        // The Ethernet type, and version and header length of IPv4; the byte behind is the type of service.
        let kind = u32::from_be_bytes(field(view, L3 - 2)) >> 8;
        let fragment = u16::from_be_bytes(field(view, L3 + ip::field::V4_FRAGMENT));
        if kind != KIND || fragment & (ip::MORE_FRAGMENTS | ip::FRAGMENT_OFFSET) != 0 {
            return None;
        }
        if !Sum::of(&field::<V4_LEN>(view, L3)).is_correct() {
            return None;
        }
        let packet_len = u16::from_be_bytes(field(view, L3 + ip::field::V4_TOTAL_LENGTH));
        let end = L3 + usize::from(packet_len);
        let protocol = Protocol(view[L3 + ip::field::V4_PROTOCOL]);
        let (header_end, numbers) = match protocol {
            Protocol::TCP => {
                let flags = TcpFlags(view[L4 + 13]);
                let header_len = usize::from(view[L4 + 12] >> 4) * 4;
                if flags.0 & OPENS_OR_CLOSES != TcpFlags::ACK.0 || header_len < TCP_LEN {
                    return None;
                }
                let header_end = L4 + header_len;
                let data = (end as u64).wrapping_sub(header_end as u64);
                (header_end, u64::from_be_bytes(field(view, L4 + 4)).wrapping_add(data << 32))
            }
            Protocol::UDP => {
                let len = usize::from(u16::from_be_bytes(field(view, L4 + transport::field::UDP_LENGTH)));
                if len < UDP_LEN || L4 + len > end {
                    return None;
                }
                (LEN, 0)
            }
            _ => return None,
        };
        let len = packet.len();
        if header_end > in_chunk || header_end > end || end > len {
            return None;
        }
        let plain = Plain {
            addresses: u64::from_be_bytes(field(view, L3 + ip::field::V4_ADDRESSES)),
            ports: u32::from_be_bytes(field(view, L4)),
            packet_len,
            protocol,
            numbers,
        };
        if len > end {
            packet.truncate(end);
        }
        Some(plain)
    }
}

impl<'a> View<'a> {
    /// The headers of a packet that [`Plain::read`] has read. Nothing when it has been cut short since.
    #[inline(always)]
    pub(crate) fn of(packet: &'a mut Packet) -> Option<View<'a>> {
        let (head, offload) = packet.head_and_offload();
        Some(View { bytes: head.first_chunk_mut()?, offload })
    }

    /// Whom the frame is for, as [`LinkAddr::bits`].
    #[inline(always)]
    pub(crate) fn link_destination(&self) -> u64 {
        u64::from_be_bytes(field(self.bytes, 0)) >> 16
    }

    /// Writes the link addresses of the next hop's link.
    #[inline(always)]
    pub(crate) fn set_link(&mut self, source: LinkAddr, destination: LinkAddr) {
        set(self.bytes, 0, destination.0);
        set(self.bytes, 6, source.0);
    }

    /// Whether the packet's own transport checksum is a partial one.
    #[inline(always)]
    pub(crate) fn is_partial(&self) -> bool {
        matches!(self.offload.checksum, ChecksumState::Partial { start, .. } if usize::from(start) == L4)
    }

    /// TCP or UDP.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Protocol {
        Protocol(self.bytes[L3 + ip::field::V4_PROTOCOL])
    }

    /// Time to live.
    #[inline(always)]
    pub(crate) fn ttl(&self) -> u8 {
        self.bytes[L3 + ip::field::V4_TTL]
    }

    /// Writes the time to live. The header checksum is the caller's.
    #[inline(always)]
    pub(crate) fn set_ttl(&mut self, ttl: u8) {
        self.bytes[L3 + ip::field::V4_TTL] = ttl;
    }

    /// Writes both addresses. The checksums are the caller's.
    #[inline(always)]
    pub(crate) fn set_addresses(&mut self, source: Ipv4Addr, destination: Ipv4Addr) {
        let addresses = u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits());
        set(self.bytes, L3 + ip::field::V4_ADDRESSES, addresses.to_be_bytes());
    }

    /// Writes both ports. The checksum is the caller's.
    #[inline(always)]
    pub(crate) fn set_ports(&mut self, source: u16, destination: u16) {
        let ports = u32::from(source) << 16 | u32::from(destination);
        set(self.bytes, L4, ports.to_be_bytes());
    }

    /// Changes the header checksum.
    #[inline(always)]
    pub(crate) fn update_ip_checksum(&mut self, change: impl FnOnce(u16) -> u16) {
        update(self.bytes, L3 + ip::field::V4_CHECKSUM, change);
    }

    /// Changes the transport checksum.
    #[inline(always)]
    pub(crate) fn update_tcp_checksum(&mut self, change: impl FnOnce(u16) -> u16) {
        update(self.bytes, L4 + transport::field::TCP_CHECKSUM, change);
    }

    /// Changes the transport checksum.
    #[inline(always)]
    pub(crate) fn update_udp_checksum(&mut self, change: impl FnOnce(u16) -> u16) {
        update(self.bytes, L4 + transport::field::UDP_CHECKSUM, change);
    }
}

/// Ethernet type, version 4 and a header of five words.
const KIND: u32 = (V4::ETHER_TYPE as u32) << 8 | 0x45;

/// Flags of segments that are more than data or its acknowledgement, and ACK.
const OPENS_OR_CLOSES: u8 = TcpFlags::SYN.0 | TcpFlags::FIN.0 | TcpFlags::RST.0 | TcpFlags::ACK.0;

/// The `N` bytes at `at`. Every place is a constant, so no bounds are left to check.
#[inline(always)]
fn field<const N: usize>(view: &Bytes, at: usize) -> [u8; N] {
    *view[at..].first_chunk().expect("the field lies in the view")
}

#[inline(always)]
fn set<const N: usize>(view: &mut Bytes, at: usize, bytes: [u8; N]) {
    *view[at..].first_chunk_mut().expect("the field lies in the view") = bytes;
}

#[inline(always)]
fn update(view: &mut Bytes, at: usize, change: impl FnOnce(u16) -> u16) {
    let new = change(u16::from_be_bytes(field(view, at)));
    set(view, at, new.to_be_bytes());
}
