//! Laws over random sequences: the table does what a list of connections would do.

use super::*;
use crate::flow::state::{Effect, Status, step};
use crate::packet::family::{V4, V6};
use proptest::prelude::*;

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol(47)];

#[derive(Clone, Debug)]
enum Op {
    /// Client, backend, port of the node.
    Insert(usize, u16, u16, u16),
    /// The same names, and a direction.
    Packet(usize, u16, Direction, u8),
    Remove(usize, u16),
    Expire(usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let flags = || prop::sample::select(vec![SYN, SYN_ACK, ACK, ACK, ACK, FIN_ACK, RST, 0]);
    let direction = prop::sample::select(vec![Direction::Original, Direction::Reply]);
    prop_oneof![
        4 => (0..3usize, 0..8u16, 0..3u16, 0..6u16).prop_map(|(p, c, b, n)| Op::Insert(p, c, b, n)),
        12 => (0..3usize, 0..8u16, direction, flags()).prop_map(|(p, c, d, f)| Op::Packet(p, c, d, f)),
        1 => (0..3usize, 0..8u16).prop_map(|(p, c)| Op::Remove(p, c)),
        1 => (0..64usize).prop_map(Op::Expire),
        4 => prop_oneof![0..600u64, 0..40_000u64, Just(200_000u64)].prop_map(Op::Wait),
    ]
}

/// A connection as a plain list would keep it.
struct Model<A: Family> {
    new: NewConnection<A>,
    entry: EntryRef,
    status: Status,
    begun: u64,
    /// Last use plus timeout: it must live until then, and for at most [`SETTLED`] more.
    end: u64,
}

struct World<A: Family> {
    table: FlowTable<A>,
    model: Vec<Model<A>>,
    now: u64,
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

    /// Forgets the connections whose time may be over and that the table does not have any more.
    fn forget_expired(&mut self) {
        let (table, now) = (&self.table, self.now);
        self.model.retain(|connection| {
            let gone = table.is_reply_free(&connection.new.reply, at(now));
            assert!(!gone || now >= connection.end, "ended before its time");
            let late = now >= connection.end + SETTLED.as_millis() as u64;
            assert!(gone || !late, "lived on after its time");
            !gone
        });
    }

    fn apply(&mut self, op: &Op) {
        self.forget_expired();
        match *op {
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
            Op::Insert(protocol, client, backend, port) => self.insert(protocol, client, backend, port),
            Op::Packet(protocol, client, direction, flags) => {
                self.packet(protocol, client, direction, flags);
            }
        }
        self.check();
    }

    fn insert(&mut self, protocol: usize, client: u16, backend: u16, port: u16) {
        let original = original::<A>(protocol, client);
        let translated = key::<A>(PROTOCOLS[protocol], (4, 5000 + port), (10 + u32::from(backend), 8080));
        let flags = if client.is_multiple_of(2) { SYN } else { ACK };
        let new = NewConnection {
            original,
            reply: translated.reply(),
            mark: u32::from(client),
            state: first_packet(&original, Event::new(original.protocol, flags)).unwrap(),
            ..through_service(PROTOCOLS[protocol], client, None, ACK)
        };
        let got = self.table.insert(&new, self.tick());
        if let Some(same) = self.model.iter().find(|c| c.new.original == original) {
            assert_eq!(got, Err(InsertError::OriginalExists(same.entry)));
        } else if self.model.iter().any(|c| c.new.reply == new.reply) {
            assert_eq!(got, Err(InsertError::ReplyTaken));
        } else {
            let status = Status::new(new.state);
            self.model.push(Model {
                new,
                entry: got.unwrap(),
                status,
                begun: self.now,
                end: self.now + self.millis(status.first_timeout()),
            });
        }
    }

    fn packet(&mut self, protocol: usize, client: u16, direction: Direction, flags: u8) {
        let original = original::<A>(protocol, client);
        let Some(at) = self.model.iter().position(|c| c.new.original == original) else {
            assert_eq!(packet(&self.table, &original, flags, self.tick()), Touch::Gone);
            return;
        };
        let event = Event::new(original.protocol, flags);
        let connection = &self.model[at];
        let key = match direction {
            Direction::Original => original,
            Direction::Reply => connection.new.reply,
        };
        let settled = self.table.lookup(&key).unwrap().is_settled(event, self.tick());
        let got = packet(&self.table, &key, flags, self.tick());
        let age = (self.now - connection.begun) as u32;
        match step(connection.status, direction, event, age) {
            Effect::Forward(next, timeout) => {
                assert!(matches!(got, Touch::Forward(_)));
                assert!(!settled || next == connection.status, "a settled packet changed the state");
                let end = timeout.map(|timeout| self.now + self.millis(timeout));
                let connection = &mut self.model[at];
                connection.status = next;
                connection.end = end.unwrap_or(connection.end);
            }
            Effect::Invalid => assert_eq!(got, Touch::Invalid),
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

fn run<A: Family>(start: u64, ops: &[Op]) {
    let mut world = World::<A> { table: table(64), model: Vec::new(), now: start };
    for op in ops {
        world.apply(op);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_ipv4_table_equals_a_list(
        start in prop_oneof![Just(0u64), (1u64 << 32) - 200_000..1u64 << 32],
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run::<V4>(start, &ops);
    }

    #[test]
    fn the_ipv6_table_equals_a_list(
        start in prop_oneof![Just(0u64), (1u64 << 32) - 200_000..1u64 << 32],
        ops in prop::collection::vec(op(), 1..200),
    ) {
        run::<V6>(start, &ops);
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
