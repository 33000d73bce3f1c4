//! ICMP errors about connections (NAT-07): RFC 792, RFC 4443, RFC 5508.
//!
//! An error quotes the packet that it is about, as that was on the wire where the error was made. Turned round,
//! the quoted tuple is the key of the entry of the *other* direction, the one in which the error travels:
//!
//! ```text
//! client ──→ service        translated        client ──→ backend       the packet
//! client ←── service │ client ──→ service  ⇐  client ←── router │ client ──→ backend     the error about it
//!                                             client ←── backend       the entry it belongs to
//! ```
//!
//! What that entry does to the addresses of its packets is done to the error's, and the other way round to what
//! is quoted, ports included. Who made the error does not count: if the entry changes the source, the error has
//! the new one, also when a router on the way made it (so does Linux). An error neither moves the connection's
//! state nor keeps it alive.

use crate::flow::FlowKey;
use crate::nat::Rewrite;
use crate::packet::checksum::{Delta, Sum};
use crate::packet::parse::{FragmentKind, Headers, IcmpClass, quoted};
use crate::packet::{Family, Packet, Protocol, crc32c, icmp, ip, transport};

/// The bytes of a transport header that every router quotes (RFC 792).
const SURE: usize = 8;

/// The transport header's bytes among which all that translation changes lies.
const CHANGED: usize = transport::TCP_LEN;

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote<A: Family> {
    /// Its tuple, as the error has it.
    pub key: FlowKey<A>,
    /// Where its IP header starts, in bytes from the frame's start.
    l3: usize,
    /// Where its transport header starts.
    l4: usize,
    /// Where the quote ends, or what of it can be changed.
    end: usize,
    /// The length of the whole packet from its transport header on, if the packet says so.
    transport_len: Option<usize>,
}

impl<A: Family> Quote<A> {
    /// The packet that an error quotes. Nothing when it cannot be told which connection it belonged to: it is no IP
    /// of the error's family, ends before its ports (of an ICMP query: before its identifier), or is a fragment but
    /// the first.
    pub fn read(packet: &Packet, error: &Headers<A>) -> Option<Quote<A>> {
        let frame = packet.head();
        let frame = &frame[..frame.len().min(error.end as usize)];
        let l3 = usize::from(error.l4) + icmp::LEN;
        let header = quoted::<A>(frame.get(l3..)?)?;
        if header.fragment == FragmentKind::Later {
            return None;
        }
        let l4 = l3 + header.l4;
        let transport = &frame[l4..];
        let (source_port, destination_port) = if header.protocol.has_ports() {
            let [a, b, c, d] = *transport.first_chunk()?;
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        } else if header.protocol == A::ICMP {
            let [kind, code, _, _, high, low, ..] = *transport.first_chunk::<{ icmp::LEN }>()?;
            let query = icmp::class::<A>(kind) == IcmpClass::Query;
            (if query { u16::from_be_bytes([high, low]) } else { 0 }, u16::from_be_bytes([kind, code]))
        } else {
            (0, 0)
        };
        Some(Quote {
            key: FlowKey {
                source: header.source,
                destination: header.destination,
                source_port,
                destination_port,
                protocol: header.protocol,
            },
            l3,
            l4,
            end: frame.len(),
            transport_len: header
                .len
                .checked_sub(header.l4)
                .filter(|_| header.fragment == FragmentKind::Whole),
        })
    }

    /// Whether enough is quoted to be translated.
    pub fn is_translatable(&self) -> bool {
        !self.key.protocol.has_ports() || self.end - self.l4 >= SURE
    }

    /// Translates the error `packet`, whose headers are `headers`, as the entry with `rewrite` translates its
    /// packets: the one that has the quoted tuple turned round as its key.
    ///
    /// Of the checksums, the error's own is brought along, and the quoted ones where they are quoted. What was wrong
    /// stays as wrong as it was.
    ///
    /// # Panics
    /// If the headers are not those of this packet. The quote is to be [translatable](Self::is_translatable).
    pub fn translate(&self, rewrite: &Rewrite<A>, packet: &mut Packet, headers: &Headers<A>) {
        if rewrite.is_identity() {
            return;
        }
        let partial = transport::is_partial(packet, headers);
        let translated = FlowKey {
            source: rewrite.source,
            destination: rewrite.destination,
            source_port: rewrite.source_port,
            destination_port: rewrite.destination_port,
            protocol: self.key.protocol,
        };
        let sent = translated.reply();
        let frame = packet.head_mut();

        let changed = self.l3..self.end.min(self.l4 + CHANGED);
        let before = Sum::of(&frame[changed.clone()]);
        self.write_quoted(&sent, frame);
        // An even number of bytes lies before the quote, so its sum is a part of the error's.
        let quote = Delta::between(before, Sum::of(&frame[changed]));

        let party = (sent.destination, self.port_of(sent.destination_port));
        let source = if party == (self.key.destination, self.port_of(self.key.destination_port)) {
            headers.source
        } else {
            rewrite.source
        };
        let addresses = Delta::of_address::<A>(headers.source, source)
            + Delta::of_address::<A>(headers.destination, rewrite.destination);
        let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
        ip::write_addresses::<A>(&mut frame[l3..], source, rewrite.destination);
        if A::VERSION == 4 {
            update(frame, l3 + ip::field::V4_CHECKSUM, |field| addresses.apply(field));
        }
        let pseudo_header = if A::VERSION == 6 { addresses } else { Delta::NONE };
        update(frame, l4 + icmp::field::CHECKSUM, |field| {
            if partial { pseudo_header.apply_to_sum(field) } else { pseudo_header.apply_with(quote, field) }
        });
    }

    /// Makes the quoted packet what it was when it was sent.
    fn write_quoted(&self, sent: &FlowKey<A>, frame: &mut [u8]) {
        let change = self.key.rewrite_to(sent);
        ip::write_addresses::<A>(&mut frame[self.l3..], sent.source, sent.destination);
        if A::VERSION == 4 {
            update(frame, self.l3 + ip::field::V4_CHECKSUM, |field| change.ip_delta.apply(field));
        }
        let transport = &mut frame[self.l4..self.end];
        let delta = change.transport_delta;
        match self.key.protocol {
            Protocol::TCP => {
                write_ports(transport, sent);
                update(transport, transport::field::TCP_CHECKSUM, |field| delta.apply(field));
            }
            Protocol::UDP => {
                write_ports(transport, sent);
                update(transport, transport::field::UDP_CHECKSUM, |field| delta.apply_udp(field));
            }
            Protocol::SCTP => self.write_sctp(transport, sent),
            protocol if protocol == A::ICMP => {
                transport[icmp::field::IDENTIFIER..][..2].copy_from_slice(&sent.source_port.to_be_bytes());
                update(transport, icmp::field::CHECKSUM, |field| delta.apply(field));
            }
            _ => {}
        }
    }

    /// The CRC covers the whole packet, of which only the length is known here: that is enough.
    fn write_sctp(&self, transport: &mut [u8], sent: &FlowKey<A>) {
        let ports = |transport: &[u8]| -> [u8; 4] { std::array::from_fn(|i| transport[i]) };
        let old = ports(transport);
        write_ports(transport, sent);
        let new = ports(transport);
        let following = self.transport_len.and_then(|len| len.checked_sub(4));
        let field =
            transport.get_mut(transport::field::SCTP_CHECKSUM..).and_then(|field| field.first_chunk_mut());
        if let (Some(following), Some(field), true) = (following, field, old != new) {
            *field = crc32c::replace(u32::from_le_bytes(*field), old, new, following).to_le_bytes();
        }
    }

    /// The port, where there is one: of ICMP the place holds type and code.
    fn port_of(&self, port: u16) -> u16 {
        if self.key.protocol.has_ports() { port } else { 0 }
    }
}

fn write_ports<A: Family>(transport: &mut [u8], sent: &FlowKey<A>) {
    transport[..2].copy_from_slice(&sent.source_port.to_be_bytes());
    transport[2..4].copy_from_slice(&sent.destination_port.to_be_bytes());
}

/// Changes the 16-bit field at `at`, if it is there.
fn update(bytes: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = change(u16::from_be_bytes(*field)).to_be_bytes();
    }
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
