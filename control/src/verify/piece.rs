//! A piece of the header space, and how it is found: whoever walks asks questions, and where the packets of the
//! piece do not agree on the answer the piece is cut in two.
//!
//! A walk is a plain function of the answers. It is run for the packets that say yes, then again, from the
//! beginning, for those that say no, until every cut was taken both ways: [`Exploration`] keeps the path of the
//! answers. What remains of the space at the end of each run is a piece on which both walks take one way, and
//! together the pieces are the whole space. So a proof has looked at everything if its loop has ended.

use std::cell::RefCell;

use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};

use super::space::Ranges;
use crate::iptables::{Interface, States};

/// Where a packet enters, and what is known of its connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stage {
    /// The first of its connection: NAT is decided.
    First,
    /// A later one: NAT was decided, and `destination` is what it came to.
    Later,
    /// One that belongs to no connection and can begin none (CT-08).
    Invalid,
}

/// Where packets enter the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Entry {
    /// By a port.
    Port,
    /// From the node's own stack.
    Host,
}

/// What all packets of a piece have in common from the start: the path through the tables that their
/// destination decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target<A: Family> {
    /// Where they enter.
    pub entry: Entry,
    /// Of their connection.
    pub stage: Stage,
    /// The destination: one of a class that no constant of either side tells apart.
    pub destination: A::Addr,
    /// The protocol, likewise.
    pub protocol: Protocol,
    /// The destination port, likewise.
    pub port: u16,
}

/// What is left of the space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Source addresses.
    pub source: Ranges,
    /// Source ports.
    pub source_port: Ranges,
    /// ICMP type and code, as one number of 16 bits.
    pub icmp: Ranges,
    /// TCP flags.
    pub flags: Ranges,
    /// Input interfaces, by their place in [`World::interfaces`].
    pub input: Ranges,
    /// Output interfaces, likewise.
    pub output: Ranges,
    /// States of the connection.
    pub states: States,
    /// Whether the destination was translated, once that was asked.
    pub dnat: Option<bool>,
    /// Whether the source was.
    pub snat: Option<bool>,
    /// The original destination address of a connection that is not new.
    pub original: Ranges,
    /// Its port.
    pub original_port: Ranges,
    /// Bits of the mark that were asked about before any rule set them, and what they are.
    pub mark: Bits,
    /// The same of the connection's mark.
    pub connection_mark: Bits,
    /// How long ago the client was noted in a list of affinity, seconds: `None` is never.
    pub noted: Vec<(String, Ranges)>,
    /// What nobody can know, and how it was taken: by the line that asks.
    pub unknown: Vec<(Unknown, bool)>,
}

/// Bits, of which some are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Bits {
    /// Which are.
    pub known: u32,
    /// Their values.
    pub value: u32,
}

/// Something outside the files on which a rule depends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Unknown {
    /// The line of the rule.
    pub line: u32,
    /// What it depends on.
    pub what: String,
}

/// Never seen: older than every age in seconds.
pub(super) const NEVER: u128 = u64::MAX as u128;

/// What holds for all pieces.
#[derive(Clone, Debug)]
pub(super) struct World<A: Family> {
    /// The addresses of the node, loopback ones among them.
    pub local: Ranges,
    /// Names that stand for all interfaces that no constant tells apart.
    pub interfaces: Vec<String>,
    /// Bits of the mark that the rules set themselves: nobody else does, and they are 0 at first.
    pub own_mark: u32,
    /// The family.
    pub family: std::marker::PhantomData<A>,
}

impl<A: Family> World<A> {
    /// Whether an address is the node's.
    pub(super) fn is_local(&self, address: A::Addr) -> bool {
        self.local.contains(address.bits())
    }

    /// Everything that `target` leaves open.
    pub(super) fn whole(&self, target: &Target<A>) -> Piece {
        let interfaces = Ranges::span(0, self.interfaces.len() as u128 - 1);
        Piece {
            source: Ranges::span(0, last_address::<A>()),
            source_port: Ranges::span(0, 0xffff),
            icmp: Ranges::span(0, 0xffff),
            flags: Ranges::span(0, 0xff),
            input: interfaces.clone(),
            output: interfaces,
            states: match target.stage {
                Stage::First => States::NEW,
                Stage::Later => States::NEW.with(States::ESTABLISHED).with(States::RELATED),
                Stage::Invalid => States::INVALID,
            },
            dnat: (target.stage == Stage::Invalid).then_some(false),
            snat: (target.stage != Stage::Later).then_some(false),
            original: Ranges::span(0, last_address::<A>()),
            original_port: Ranges::span(0, 0xffff),
            mark: Bits { known: self.own_mark, value: 0 },
            connection_mark: match target.stage {
                Stage::First => Bits { known: u32::MAX, value: 0 },
                Stage::Later | Stage::Invalid => Bits::default(),
            },
            noted: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

/// The family's last address, as a number.
pub(super) fn last_address<A: Family>() -> u128 {
    if A::VERSION == 4 { u128::from(u32::MAX) } else { u128::MAX }
}

/// A prefix as a set of numbers.
pub(super) fn span<A: Family>(prefix: &Prefix<A>) -> (u128, u128) {
    (prefix.address().bits(), prefix.last().bits())
}

/// A field that is a set of numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// [`Piece::source`]
    Source,
    /// [`Piece::source_port`]
    SourcePort,
    /// [`Piece::icmp`]
    Icmp,
    /// [`Piece::flags`]
    Flags,
    /// [`Piece::input`]
    Input,
    /// [`Piece::output`]
    Output,
    /// [`Piece::original`]
    Original,
    /// [`Piece::original_port`]
    OriginalPort,
}

impl Piece {
    fn field(&mut self, field: Field) -> &mut Ranges {
        match field {
            Field::Source => &mut self.source,
            Field::SourcePort => &mut self.source_port,
            Field::Icmp => &mut self.icmp,
            Field::Flags => &mut self.flags,
            Field::Input => &mut self.input,
            Field::Output => &mut self.output,
            Field::Original => &mut self.original,
            Field::OriginalPort => &mut self.original_port,
        }
    }
}

/// The answers of one run, and which of them are still to be turned.
#[derive(Debug, Default)]
struct Path {
    /// The answers to the questions that cut, in order: yes first.
    answers: Vec<bool>,
    /// How many were given in this run.
    given: usize,
}

impl Path {
    fn decide(&mut self) -> bool {
        if self.given == self.answers.len() {
            self.answers.push(true);
        }
        self.given += 1;
        self.answers[self.given - 1]
    }
}

/// All pieces of what a target leaves open, one run each.
pub(super) struct Exploration<'a, A: Family> {
    world: &'a World<A>,
    target: Target<A>,
    path: Path,
    done: bool,
}

impl<'a, A: Family> Exploration<'a, A> {
    /// Of everything that `target` leaves open.
    pub(super) fn new(world: &'a World<A>, target: Target<A>) -> Self {
        Exploration { world, target, path: Path::default(), done: false }
    }

    /// Runs `walk` on the next piece; `None` once there is none left.
    pub(super) fn next<T>(&mut self, walk: impl FnOnce(&Ask<'_, A>) -> T) -> Option<(T, Piece)> {
        if self.done {
            return None;
        }
        let path = std::mem::take(&mut self.path);
        let ask = Ask {
            world: self.world,
            target: self.target,
            inner: RefCell::new(Inner { piece: self.world.whole(&self.target), path }),
        };
        let result = walk(&ask);
        let Inner { piece, mut path } = ask.inner.into_inner();
        // The walk is a function of its answers: it asks again what it asked before.
        assert_eq!(path.given, path.answers.len(), "a walk forgot a question");
        while path.answers.last() == Some(&false) {
            path.answers.pop();
        }
        match path.answers.last_mut() {
            Some(last) => *last = false,
            None => self.done = true,
        }
        path.given = 0;
        self.path = path;
        Some((result, piece))
    }
}

struct Inner {
    piece: Piece,
    path: Path,
}

/// Who answers for the packets of a piece.
pub(super) struct Ask<'a, A: Family> {
    /// What holds for all pieces.
    pub world: &'a World<A>,
    /// What holds for all packets of the piece.
    pub target: Target<A>,
    inner: RefCell<Inner>,
}

impl<A: Family> Ask<'_, A> {
    /// Whether a field is in `set`.
    pub(super) fn within(&self, field: Field, set: &Ranges) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        let numbers = piece.field(field);
        cut(numbers, set, path)
    }

    /// Whether the source is in a prefix.
    pub(super) fn source_within(&self, prefix: &Prefix<A>) -> bool {
        let (first, last) = span(prefix);
        self.within(Field::Source, &Ranges::span(first, last))
    }

    /// Whether an interface condition holds for the interface that packets came by or leave by.
    pub(super) fn interface(&self, field: Field, condition: &Interface) -> bool {
        self.interface_where(field, |name| condition.holds(name))
    }

    /// Whether the interface is one that `holds` says yes to. It must be made of names that were constants.
    pub(super) fn interface_where(&self, field: Field, holds: impl Fn(&str) -> bool) -> bool {
        let named = self.world.interfaces.iter().enumerate().filter(|(_, name)| holds(name));
        self.within(field, &Ranges::union(named.map(|(at, _)| (at as u128, at as u128))))
    }

    /// Whether the connection is in one of these states; statuses apart.
    pub(super) fn state(&self, states: States) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        let inside = States(piece.states.0 & states.0);
        let outside = States(piece.states.0 & !states.0);
        let yes = match (inside.0, outside.0) {
            (0, _) => return false,
            (_, 0) => return true,
            _ => path.decide(),
        };
        piece.states = if yes { inside } else { outside };
        yes
    }

    /// Whether the destination of the connection was translated before this packet.
    pub(super) fn was_dnat(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        *piece.dnat.get_or_insert_with(|| path.decide())
    }

    /// Whether its source was.
    pub(super) fn was_snat(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        *piece.snat.get_or_insert_with(|| path.decide())
    }

    /// The bits of `mask` of the mark that a packet comes with, as `line` asks.
    pub(super) fn mark(&self, mask: u32, line: u32) -> u32 {
        self.bits(mask, line, "the mark", |piece| &mut piece.mark)
    }

    /// The bits of `mask` of its connection's mark.
    pub(super) fn connection_mark(&self, mask: u32, line: u32) -> u32 {
        self.bits(mask, line, "the connection's mark", |piece| &mut piece.connection_mark)
    }

    fn bits(&self, mask: u32, line: u32, what: &str, of: fn(&mut Piece) -> &mut Bits) -> u32 {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        let open = mask & !of(piece).known;
        for bit in (0..32).map(|at| 1 << at).filter(|bit| open & bit != 0) {
            let set = path.decide();
            let bits = of(piece);
            bits.known |= bit;
            bits.value |= if set { bit } else { 0 };
            let what = format!("bit {bit:#x} of {what}, which no rule of the file sets");
            piece.unknown.push((Unknown { line, what }, set));
        }
        of(piece).value & mask
    }

    /// Whether the client was noted in `list` no longer than `seconds` ago; without them: ever.
    pub(super) fn fresh(&self, list: &str, seconds: Option<u32>) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        let at = piece.noted.iter().position(|(name, _)| name == list).unwrap_or_else(|| {
            piece.noted.push((list.to_string(), Ranges::span(0, NEVER)));
            piece.noted.len() - 1
        });
        let limit = seconds.map_or(NEVER - 1, u128::from);
        cut(&mut piece.noted[at].1, &Ranges::span(0, limit), path)
    }

    /// Something outside the files, on which `line` depends: taken both ways.
    pub(super) fn unknown(&self, line: u32, what: impl FnOnce() -> String) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { piece, path } = &mut *inner;
        let unknown = Unknown { line, what: what() };
        if let Some((_, taken)) = piece.unknown.iter().find(|(before, _)| *before == unknown) {
            return *taken;
        }
        let taken = path.decide();
        piece.unknown.push((unknown, taken));
        taken
    }
}

/// Cuts `numbers` at `set`, unless they agree.
fn cut(numbers: &mut Ranges, set: &Ranges, path: &mut Path) -> bool {
    let inside = numbers.intersect(set);
    if inside.is_empty() {
        return false;
    }
    if inside == *numbers {
        return true;
    }
    let yes = path.decide();
    *numbers = if yes { inside } else { numbers.minus(set) };
    yes
}
