//! Tests of the flow table as a whole: single rules here, laws over random sequences in [`laws`], real
//! threads in [`threads`].

mod laws;
mod numbers;
mod people;
mod rules;
mod sctp;
mod tcp;
mod threads;

use super::*;
use crate::packet::family::{Address, Family, Protocol};
use crate::time::Instant;

pub(super) const SEED: [u64; 2] = [0x5eed, 0xfeed];

pub(super) const SYN: u8 = 0x02;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const ACK: u8 = 0x10;
pub(super) const FIN_ACK: u8 = 0x11;
pub(super) const RST: u8 = 0x04;

pub(super) fn at(millis: u64) -> Tick {
    Tick::from(Instant::from_millis(millis))
}

/// Address number `n` of a family.
pub(super) fn address<A: Family>(n: u32) -> A::Addr {
    let prefix = if A::BITS == 32 { 10 << 24 } else { 0xfd00 << 112 };
    A::Addr::from_bits(prefix | u128::from(n))
}

pub(super) fn key<A: Family>(protocol: Protocol, source: (u32, u16), destination: (u32, u16)) -> FlowKey<A> {
    FlowKey {
        source: address::<A>(source.0),
        destination: address::<A>(destination.0),
        source_port: source.1,
        destination_port: destination.1,
        protocol,
    }
}

pub(super) fn table<A: Family>(connections: usize) -> FlowTable<A> {
    FlowTable::new(connections, SEED, Timeouts::default()).unwrap()
}

/// A connection through a Service: client 1 to VIP 2, translated to backend 3, masqueraded as node 4 when
/// `snat` names a port.
pub(super) fn through_service<A: Family>(
    protocol: Protocol,
    client_port: u16,
    snat: Option<u16>,
    flags: u8,
) -> NewConnection<A> {
    let original = key(protocol, (1, client_port), (2, 80));
    let translated = match snat {
        Some(port) => key::<A>(protocol, (4, port), (3, 8080)),
        None => key(protocol, (1, client_port), (3, 8080)),
    };
    NewConnection {
        original,
        reply: translated.reply(),
        mark: 0x4000,
        state: state(&original, flags),
        original_next_hop: NextHopRef { index: 7, generation: 1 },
        reply_next_hop: NextHopRef::default(),
    }
}

/// A segment of a connection whose both sides begin at 0 and carry no data.
pub(super) fn event(protocol: Protocol, flags: u8) -> Event<'static> {
    if protocol == Protocol::TCP {
        Event::Tcp(segment(flags, u32::from(flags & SYN == 0), 1, 0))
    } else {
        Event::Other
    }
}

/// A segment with `len` bytes of data.
pub(super) fn segment(flags: u8, sequence: u32, acknowledgement: u32, len: u32) -> TcpSegment<'static> {
    let counted = u32::from(flags & SYN != 0) + u32::from(flags & 1 != 0);
    TcpSegment {
        kind: Segment::of(flags),
        sequence,
        acknowledgement,
        acknowledges: flags & ACK != 0,
        end: sequence.wrapping_add(len + counted),
        window: 65_000,
        options: &[],
    }
}

/// The state that a first packet makes. For SCTP, that of an INIT.
pub(super) fn state<A: Family>(key: &FlowKey<A>, flags: u8) -> State {
    match key.protocol {
        Protocol::SCTP => State::Sctp(SctpState::Closed),
        protocol => first_packet(key, &event(protocol, flags), &Sysctls::default()).unwrap(),
    }
}

/// One packet, as the forwarder treats it.
pub(super) fn packet<A: Family>(table: &FlowTable<A>, key: &FlowKey<A>, flags: u8, now: Tick) -> Touch {
    send(table, key, &event(key.protocol, flags), now)
}

/// Likewise, saying more.
pub(super) fn send<A: Family>(table: &FlowTable<A>, key: &FlowKey<A>, event: &Event<'_>, now: Tick) -> Touch {
    match table.lookup(key) {
        None => Touch::Gone,
        Some(hit) if table.pass(&hit, event, now) => Touch::Forward(Class::Established),
        Some(hit) => table.touch(&hit, event, now),
    }
}

pub(super) const NEW: Touch = Touch::Forward(Class::New);
pub(super) const ESTABLISHED: Touch = Touch::Forward(Class::Established);
