//! Laws over random sequences: the table does what a list of connections would do.

use super::sctp::{chunk, init, packet as sctp};
use super::*;
use crate::flow::segment::{Memory, Seen, is_unacknowledged};
use crate::flow::state::{Effect, Status, begin, first_timeout, step};
use crate::flow::window::Windows;
use crate::packet::family::{V4, V6};
use proptest::prelude::*;

const PROTOCOLS: [Protocol; 4] = [Protocol::TCP, Protocol::UDP, Protocol(47), Protocol::SCTP];

/// What a packet says: the numbers are few, so that they meet.
#[derive(Clone, Debug)]
struct Words {
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    len: u32,
    window: u16,
    /// An SCTP packet.
    chunks: Vec<u8>,
}

impl Words {
    fn event(&self, protocol: Protocol) -> Event<'_> {
        let Words { flags, sequence, acknowledgement, len, window, .. } = *self;
        match protocol {
            Protocol::TCP => {
                Event::Tcp(TcpSegment { window, ..segment(flags, sequence, acknowledgement, len) })
            }
            Protocol::SCTP => Event::Sctp(SctpPacket::read(&self.chunks).unwrap()),
            _ => Event::Other,
        }
    }
}

fn words() -> impl Strategy<Value = Words> {
    let flags = prop::sample::select(vec![SYN, SYN_ACK, ACK, ACK, ACK, ACK, FIN_ACK, RST, RST | ACK, 0]);
    let number = || prop::sample::select(vec![0, 1, 1, 2, 50, 51, u32::MAX]);
    let kind = prop::sample::select(vec![0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 14]);
    let one = (kind, 0..2u8, 0..3u32).prop_map(|(kind, flags, tag)| match kind {
        1 | 2 => init(kind, tag),
        kind => chunk(kind, flags, &[0; 4]),
    });
    let chunks = (0..3u32, prop::collection::vec(one, 1..3)).prop_map(|(tag, chunks)| sctp(tag, &chunks));
    let len = prop::sample::select(vec![0, 0, 1, 49]);
    let window = prop::sample::select(vec![0, 1000, 1000, 1000]);
    (flags, number(), number(), len, window, chunks).prop_map(
        |(flags, sequence, acknowledgement, len, window, chunks)| Words {
            flags,
            sequence,
            acknowledgement,
            len,
            window,
            chunks,
        },
    )
}

#[derive(Clone, Debug)]
enum Op {
    /// Client, backend, port of the node.
    Insert(usize, u16, u16, u16, Words),
    /// The same names, and a direction.
    Packet(usize, u16, Direction, Words),
    Remove(usize, u16),
    Expire(usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let direction = prop::sample::select(vec![Direction::Original, Direction::Reply]);
    let insert = (0..4usize, 0..8u16, 0..3u16, 0..6u16, words());
    prop_oneof![
        4 => insert.prop_map(|(p, c, b, n, words)| Op::Insert(p, c, b, n, words)),
        12 => (0..4usize, 0..8u16, direction, words()).prop_map(|(p, c, d, words)| Op::Packet(p, c, d, words)),
        1 => (0..4usize, 0..8u16).prop_map(|(p, c)| Op::Remove(p, c)),
        1 => (0..64usize).prop_map(Op::Expire),
        4 => prop_oneof![0..600u64, 0..40_000u64, Just(200_000u64), Just(301_000u64)].prop_map(Op::Wait),
    ]
}

/// A connection as a plain list would keep it.
struct Model<A: Family> {
    new: NewConnection<A>,
    entry: EntryRef,
    status: Status,
    memory: Memory,
    windows: Windows,
    begun: u64,
    /// Last use, and the timeout that it started; nothing when that depends on what waits for its
    /// acknowledgement.
    used: u64,
    timeout: Option<Timeout>,
}

struct World<A: Family> {
    table: FlowTable<A>,
    model: Vec<Model<A>>,
    now: u64,
    /// Whether windows are tracked.
    strict: bool,
}

fn original<A: Family>(protocol: usize, client: u16) -> FlowKey<A> {
    key(PROTOCOLS[protocol], (1, 1000 + client), (2, 80))
}

impl<A: Family> World<A> {
    fn tick(&self) -> Tick {
        at(self.now)
    }

    fn millis(&self, timeout: Timeout) -> u64 {
        self.table.timeouts().get(timeout).as_millis() as u64
    }

    /// Last use plus timeout: it must live until then, and for at most [`SETTLED`] more.
    fn end(&self, connection: &Model<A>) -> u64 {
        let waits = || is_unacknowledged(connection.status, &connection.memory);
        let timeout = connection.timeout.unwrap_or_else(|| match waits() {
            true => Timeout::TcpUnack,
            false => Timeout::TcpEstablished,
        });
        connection.used + self.millis(timeout)
    }

    /// Forgets the connections whose time may be over and that the table does not have any more.
    fn forget_expired(&mut self) {
        let now = self.now;
        let mut model = std::mem::take(&mut self.model);
        model.retain(|connection| {
            let gone = self.table.is_reply_free(&connection.new.reply, at(now));
            let end = self.end(connection);
            assert!(!gone || now >= end, "ended before its time");
            assert!(gone || now < end + SETTLED.as_millis() as u64, "lived on after its time");
            !gone
        });
        self.model = model;
    }

    fn apply(&mut self, op: &Op) {
        self.forget_expired();
        match op.clone() {
            Op::Wait(millis) => self.now += millis,
            Op::Expire(budget) => {
                self.table.expire(self.tick(), budget);
            }
            Op::Remove(protocol, client) => {
                let key = original(protocol, client);
                if let Some(at) = self.model.iter().position(|c| c.new.original == key) {
                    assert!(self.table.remove(self.model.swap_remove(at).entry));
                }
            }
            Op::Insert(protocol, client, backend, port, words) => {
                self.insert(protocol, client, backend, port, &words);
            }
            Op::Packet(protocol, client, direction, words) => {
                self.packet(protocol, client, direction, &words);
            }
        }
        self.check();
    }

    fn insert(&mut self, protocol: usize, client: u16, backend: u16, port: u16, words: &Words) {
        let original = original::<A>(protocol, client);
        let translated = key::<A>(PROTOCOLS[protocol], (4, 5000 + port), (10 + u32::from(backend), 8080));
        let first = words.event(original.protocol);
        let Ok(state) = first_packet(&original, &first, self.table.sysctls()) else { return };
        let new = NewConnection {
            original,
            reply: translated.reply(),
            mark: u32::from(client),
            state,
            ..through_service(Protocol::UDP, client, None, 0)
        };
        let got = self.table.insert_first(&new, &first, self.tick());
        if let Some(same) = self.model.iter().find(|c| c.new.original == original) {
            assert_eq!(got, Err(InsertError::OriginalExists(same.entry)));
        } else if self.model.iter().any(|c| c.new.reply == new.reply) {
            assert_eq!(got, Err(InsertError::ReplyTaken));
        } else {
            let mut windows = Windows::default();
            let (status, memory) = begin(state, &first, self.strict.then_some(&mut windows));
            let settings = (self.table.sysctls(), self.table.timeouts());
            let timeout = Some(first_timeout(status, &memory, settings));
            let (begun, used) = (self.now, self.now);
            self.model.push(Model {
                new,
                entry: got.unwrap(),
                status,
                memory,
                windows,
                begun,
                used,
                timeout,
            });
        }
    }

    fn packet(&mut self, protocol: usize, client: u16, direction: Direction, words: &Words) {
        let original = original::<A>(protocol, client);
        let event = words.event(original.protocol);
        let Some(at) = self.model.iter().position(|c| c.new.original == original) else {
            assert_eq!(send(&self.table, &original, &event, self.tick()), Touch::Gone);
            return;
        };
        let connection = &self.model[at];
        let key = match direction {
            Direction::Original => original,
            Direction::Reply => connection.new.reply,
        };
        let settled = self.table.lookup(&key).unwrap().is_settled(&event, self.tick());
        let got = send(&self.table, &key, &event, self.tick());
        let age = (self.now - connection.begun) as u32;
        let mut memory = connection.memory;
        let mut windows = connection.windows;
        let tracked = self.strict.then_some(&mut windows);
        let left = self.end(connection).saturating_sub(self.now);
        let settings = (self.table.sysctls(), self.table.timeouts());
        let effect = step(connection.status, direction, &event, age, &mut memory, tracked, settings);
        if settled {
            let Effect::Forward(next, _) = effect else { panic!("{effect:?} was waved through") };
            let connection = &mut self.model[at];
            assert_eq!(got, ESTABLISHED);
            assert_eq!(
                (next.state(), next.assured()),
                (connection.status.state(), connection.status.assured())
            );
            connection.used = self.now;
            if let Event::Tcp(segment) = event {
                let word = &mut connection.memory.words[direction as usize];
                *word = Seen::of(*word).with(Seen::of(segment.numbers())).word();
            }
            return;
        }
        self.model[at].windows = windows;
        match effect {
            Effect::Forward(next, timeout) => {
                assert!(matches!(got, Touch::Forward(_)));
                let repeated = next.retransmissions() >= self.table.sysctls().tcp_max_retrans;
                let asks = next.state() == State::Tcp(TcpState::Established)
                    && next.is_settled()
                    && !self.strict
                    && !repeated
                    && matches!(timeout, Some(Timeout::TcpEstablished | Timeout::TcpUnack));
                let connection = &mut self.model[at];
                (connection.status, connection.memory) = (next, memory);
                if let Some(timeout) = timeout {
                    connection.used = self.now;
                    connection.timeout = (!asks).then_some(timeout);
                }
            }
            Effect::Invalid => assert_eq!(got, Touch::Invalid),
            Effect::Doubt(next, cap) => {
                assert!(self.strict && got == Touch::Invalid);
                let cap = cap.filter(|cap| left >= 120_000 && left > self.millis(*cap));
                let connection = &mut self.model[at];
                (connection.status, connection.memory) = (next, memory);
                if cap.is_some() {
                    (connection.used, connection.timeout) = (self.now, cap);
                }
            }
            Effect::Last => {
                assert!(matches!(got, Touch::Forward(_)));
                self.model.swap_remove(at);
            }
            Effect::Reopen => {
                assert_eq!(got, Touch::Reopen);
                self.model.swap_remove(at);
            }
        }
    }

    fn check(&mut self) {
        self.forget_expired();
        let (flows, next) = self.table.list(0, usize::MAX, self.tick());
        assert_eq!(next, None);
        let living: Vec<_> = flows.iter().filter(|flow| !flow.remaining.is_zero()).collect();
        assert_eq!(living.len(), self.model.len());
        assert_eq!(flows.len(), self.table.len());
        for connection in &self.model {
            let NewConnection { original, reply, mark, .. } = connection.new;
            let flow = living.iter().find(|flow| flow.original == original).expect("listed");
            assert_eq!((flow.reply, flow.mark, flow.state), (reply, mark, connection.status.state()));
            assert_eq!(flow.assured, connection.status.assured());
            let there = self.table.lookup(&original).expect("found by its original tuple");
            let back = self.table.lookup(&reply).expect("found by its reply tuple");
            assert_eq!(there.entry.peer(), back.entry);
            // What leaves there is what the reply tuple answers: out and back is the identity.
            assert_eq!(there.rewrite(), original.rewrite_to(&reply.reply()));
            assert_eq!(back.rewrite(), reply.rewrite_to(&original.reply()));
        }
        // NAT-03: no two live connections share a reply tuple.
        for (at, one) in living.iter().enumerate() {
            assert!(living[..at].iter().all(|other| other.reply != one.reply));
        }
    }
}

fn run<A: Family>(start: u64, strict: bool, ops: &[Op]) {
    let sysctls = Sysctls { tcp_be_liberal: !strict, ..Sysctls::default() };
    let table = FlowTable::with_sysctls(64, SEED, Timeouts::default(), sysctls).unwrap();
    let mut world = World::<A> { table, model: Vec::new(), now: start, strict };
    for op in ops {
        world.apply(op);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_ipv4_table_equals_a_list(
        start in prop_oneof![Just(0u64), (1u64 << 32) - 200_000..1u64 << 32],
        strict in any::<bool>(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run::<V4>(start, strict, &ops);
    }

    #[test]
    fn the_ipv6_table_equals_a_list(
        start in prop_oneof![Just(0u64), (1u64 << 32) - 200_000..1u64 << 32],
        strict in any::<bool>(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run::<V6>(start, strict, &ops);
    }

    /// However full it gets: memory is bounded, an assured connection stays, and everything that is listed is
    /// found by both tuples.
    #[test]
    fn ct_09_a_flood_hurts_no_assured_connection(ports in prop::collection::vec(any::<u16>(), 1..400)) {
        let table = table::<V4>(48);
        let keep: Vec<_> = (0..8)
            .map(|port| through_service::<V4>(Protocol::TCP, port, None, SYN))
            .collect();
        for new in &keep {
            table.insert(new, at(0)).unwrap();
            packet(&table, &new.reply, SYN_ACK, at(0));
            packet(&table, &new.original, ACK, at(0));
        }
        for port in ports {
            let _ = table.insert(&through_service(Protocol::UDP, port, None, 0), at(1));
            prop_assert!(table.len() <= table.capacity());
        }
        for new in &keep {
            prop_assert_eq!(packet(&table, &new.original, ACK, at(2)), ESTABLISHED);
        }
        let (flows, _) = table.list(0, usize::MAX, at(2));
        prop_assert_eq!(flows.len(), table.len());
        for flow in flows {
            prop_assert_eq!(table.lookup(&flow.original).unwrap().entry, flow.entry);
            prop_assert_eq!(table.lookup(&flow.reply).unwrap().entry, flow.entry.peer());
        }
    }
}
