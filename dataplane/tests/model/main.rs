//! The protocol between readers and writers of the flow table, run by loom through the orders in which threads may
//! take turns and memory may show their stores (C11's rules, weaker than this machine's). Tables are small,
//! scenarios short. `make model` runs it; it needs the feature `model`, under which the table's own code has loom's
//! atomics.
//!
//! | file | what must hold |
//! | --- | --- |
//! | `copies` | what a reader acts on is one connection's, whole |
//! | `index` | a connection that stays is found, whatever moves beside it |
//! | `states` | both directions of a connection agree; nothing reaches the slot's next connection |
//! | `writers` | two writers: one wins, nothing is lost, neither waits for ever |
//!
//! Times differ between lives of a slot where a number alone tells old from new (deadlines and last uses are
//! swapped against the value read): see `flow/table.rs`.

mod copies;
mod index;
mod states;
mod writers;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc as Shared;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use loom::sync::Arc;
use loom::thread;
use pollux_dataplane::flow::{
    Class, Event, FlowKey, FlowTable, InsertError, NewConnection, NextHopRef, Segment, State, TcpSegment,
    TcpState, Tick, Timeouts, Touch,
};
use pollux_dataplane::packet::{Family, Protocol, V4, V6};
use pollux_dataplane::time::Instant;

const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

const UDP: Event<'static> = Event::Other;

/// How often a running thread is interrupted at most in one execution. Most errors need one or two
/// interruptions; each further one multiplies the executions.
const PREEMPTIONS: usize = 3;

/// Runs `scenario` through all its executions. Fails when there was but one: then nothing happened at once.
fn explore(name: &str, preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let executions = Shared::new(AtomicU64::new(0));
    let count = executions.clone();
    let start = std::time::Instant::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        scenario();
    });
    let executions = executions.load(Relaxed);
    println!("{name}: {executions} executions in {:.1} s", start.elapsed().as_secs_f64());
    assert!(executions > 1, "the scenario's threads never met");
}

fn at(millis: u64) -> Tick {
    Tick::from(Instant::from_millis(millis))
}

fn table<A: Family>(connections: usize) -> Arc<FlowTable<A>> {
    Arc::new(FlowTable::new(connections, [0x5eed, 0xfeed], Timeouts::default()).expect("a small table"))
}

/// Addresses from small numbers.
trait Numbered: Family {
    fn address(number: u32) -> Self::Addr;
}

impl Numbered for V4 {
    fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(number)
    }
}

impl Numbered for V6 {
    fn address(number: u32) -> Ipv6Addr {
        let word = u128::from(number);
        Ipv6Addr::from_bits(word << 96 | word << 64 | word << 32 | word)
    }
}

fn key<A: Numbered>(protocol: Protocol, source: (u32, u16), destination: (u32, u16)) -> FlowKey<A> {
    FlowKey {
        source: A::address(source.0),
        destination: A::address(destination.0),
        source_port: source.1,
        destination_port: destination.1,
        protocol,
    }
}

/// A connection of client `port`, everything else of which follows from `number`.
fn numbered<A: Numbered>(port: u16, number: u32) -> NewConnection<A> {
    let translated = key::<A>(Protocol::UDP, (number, number as u16), (!number >> 8, 8080));
    NewConnection {
        original: key(Protocol::UDP, (1, port), (2, 80)),
        reply: translated.reply(),
        mark: number,
        state: State::Udp,
        original_next_hop: NextHopRef { index: number, generation: !number },
        reply_next_hop: NextHopRef { index: !number, generation: number },
    }
}

/// A TCP connection of client `port` through a Service.
fn tcp(port: u16) -> NewConnection<V4> {
    let original = key(Protocol::TCP, (1, port), (2, 80));
    NewConnection {
        original,
        reply: key::<V4>(Protocol::TCP, (1, port), (3, 8080)).reply(),
        mark: 0,
        state: State::Tcp(TcpState::SynSent),
        original_next_hop: NextHopRef::default(),
        reply_next_hop: NextHopRef::default(),
    }
}

/// What a packet with these TCP flags says; nothing for other protocols.
fn event(protocol: Protocol, flags: u8) -> Event<'static> {
    if protocol != Protocol::TCP {
        return UDP;
    }
    let segment = TcpSegment {
        kind: Segment::of(flags),
        sequence: 1,
        acknowledgement: 1,
        acknowledges: flags & ACK != 0,
        end: 1 + u32::from(flags & 1),
        window: 65_000,
        options: &[],
    };
    Event::Tcp(segment)
}

/// One packet, as the forwarder treats it.
fn packet<A: Numbered>(table: &FlowTable<A>, key: &FlowKey<A>, flags: u8, now: Tick) -> Touch {
    let event = event(key.protocol, flags);
    match table.lookup(key) {
        None => Touch::Gone,
        Some(hit) if table.pass(&hit, &event, now) => Touch::Forward(Class::Established),
        Some(hit) => table.touch(&hit, &event, now),
    }
}
