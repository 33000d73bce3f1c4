//! The language of the sequences: who sends what, line by line, as packetdrill's readers know it.
//!
//! ```text
//! sequence handshake
//!   # What it is for.
//!   tcp pod > web                    a connection: protocol, who begins, with whom
//!   > S 1000                         the beginner sends a SYN of sequence number 1000
//!   < SA 5000 1001 => SYN_RECV       the answer; what the kernel is known to make of it
//!   wait 1200ms
//!   > A 1001 5001 +10                ten bytes of data
//! ```
//!
//! Before the first packet: `only ipv4` or `only ipv6`; `with SYSCTL NUMBER` for both nodes (connection
//! tracking's, by its last name); more connections, told apart by `as NAME`, whose packets are `NAME> …`;
//! `port same` gives one the client port of the first.
//!
//! | protocol | packet |
//! | --- | --- |
//! | tcp | `FLAGS SEQUENCE [ACKNOWLEDGEMENT]`, `win N`, `ws N`, `sack-ok`, `sack A-B` |
//! | udp | `data`, `unchecked` (no checksum) |
//! | icmp | `echo`, `reply` |
//! | sctp | `CHUNK,CHUNK`, `vtag N`, `itag N`, `T` (the flag of ABORT and SHUTDOWN-COMPLETE) |
//! | a number | `data` |
//!
//! Any: `icmp KIND [mtu N] [by router] [cut N] [poke AT BYTE]`, an error about the last packet that the other
//! side sent, as it arrived; `+N` bytes of data, `ttl N`, `tos N`, `df`, `id N`, `bad-sum`,
//! `frag FROM-TO` (this part of the IP payload only; `FROM-end`; `more` claims that more follows),
//! `fill N` (other data), `ext hop|dest|routing` (IPv6), `option record-route|router-alert|source-route` (IPv4).

use std::collections::BTreeMap;
use std::time::Duration;

/// A sequence of packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// Its name, unique among all.
    pub name: String,
    /// Whether it is for IPv4, for IPv6.
    pub families: [bool; 2],
    /// Settings of connection tracking on both nodes, by the last name of the sysctl.
    pub settings: BTreeMap<String, u32>,
    /// The connections.
    pub(super) connections: Vec<Connection>,
    /// What happens.
    pub(super) steps: Vec<Step>,
}

/// A connection of a sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Connection {
    pub(super) name: String,
    pub(super) transport: Transport,
    pub(super) client: Party,
    pub(super) server: Party,
    /// Whether it has the client port of the first connection, and not one of its own.
    pub(super) port: ClientPort,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClientPort {
    Own,
    Same,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Icmp,
    Sctp,
    Other(u8),
}

/// Who takes part, by role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Party {
    /// A pod of the node that is no endpoint.
    Pod,
    /// Another, behind a port of smaller MTU.
    Pod2,
    /// Somebody beyond the uplink.
    Client,
    /// Somebody else there.
    Client2,
    /// A server beyond the uplink.
    Outside,
    /// The clusterIP of a Service whose endpoint is a pod of the node.
    Web,
    /// The clusterIP of a Service whose endpoint is a pod of another node.
    Far,
    /// The node port of the first.
    Node,
    /// The node port of the second.
    NodeFar,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Wait(Duration),
    Send(Sending),
}

/// A packet, and who sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sending {
    /// The line, for people.
    pub(super) line: String,
    pub(super) connection: usize,
    pub(super) way: Way,
    pub(super) content: Content,
    pub(super) shape: Shape,
    /// What the kernel is known to make of it: words of [`super::judge::facts`].
    pub(super) expected: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// From who began.
    There,
    Back,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Tcp { flags: u8, sequence: u32, acknowledgement: u32, window: u16, options: Vec<u8> },
    Udp { checksum: UdpChecksum },
    Echo(Echo),
    Sctp { chunks: Vec<u8>, vtag: u32, itag: u32, flag: u8 },
    Other,
    Error(IcmpError),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UdpChecksum {
    Computed,
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Echo {
    Request,
    Reply,
}

/// An ICMP error about the last packet of the other way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct IcmpError {
    pub(super) kind: ErrorKind,
    pub(super) mtu: u16,
    pub(super) sender: Sender,
    /// Bytes of the quoted packet.
    pub(super) cut: Option<usize>,
    /// Bytes of it that are changed.
    pub(super) pokes: Vec<(usize, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sender {
    /// The party itself.
    Party,
    /// Somebody on the way to it.
    Router,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ErrorKind {
    Net,
    Host,
    Port,
    NeedFrag,
    Time,
    Parameter,
    Redirect,
}

impl ErrorKind {
    /// Type and code for IPv4, for IPv6.
    pub(super) fn numbers(self) -> [(u8, u8); 2] {
        match self {
            ErrorKind::Net => [(3, 0), (1, 0)],
            ErrorKind::Host => [(3, 1), (1, 3)],
            ErrorKind::Port => [(3, 3), (1, 4)],
            ErrorKind::NeedFrag => [(3, 4), (2, 0)],
            ErrorKind::Time => [(11, 0), (3, 0)],
            ErrorKind::Parameter => [(12, 0), (4, 0)],
            ErrorKind::Redirect => [(5, 1), (137, 0)],
        }
    }
}

/// What a packet is like besides its content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Shape {
    pub(super) data: usize,
    pub(super) fill: u8,
    pub(super) ttl: Option<u8>,
    pub(super) tos: u8,
    pub(super) dont_fragment: bool,
    pub(super) id: Option<u16>,
    pub(super) bad_sum: bool,
    /// The part of the IP payload that is sent, in bytes; to its end when there is no second number.
    pub(super) part: Option<(usize, Option<usize>)>,
    pub(super) more: bool,
    pub(super) extensions: Vec<u8>,
    pub(super) options: Vec<u8>,
}

/// TCP flags, by letter.
const FLAGS: [(char, u8); 8] =
    [('F', 1), ('S', 2), ('R', 4), ('P', 8), ('A', 16), ('U', 32), ('E', 64), ('C', 128)];

pub(super) const ACK: u8 = 16;

/// SCTP's chunks, by name (RFC 9260, section 3.2).
pub(super) const CHUNKS: [(&str, u8); 14] = [
    ("DATA", 0),
    ("INIT", 1),
    ("INIT-ACK", 2),
    ("SACK", 3),
    ("HEARTBEAT", 4),
    ("HEARTBEAT-ACK", 5),
    ("ABORT", 6),
    ("SHUTDOWN", 7),
    ("SHUTDOWN-ACK", 8),
    ("ERROR", 9),
    ("COOKIE-ECHO", 10),
    ("COOKIE-ACK", 11),
    ("ECNE", 12),
    ("SHUTDOWN-COMPLETE", 14),
];

/// Reads sequences.
///
/// # Errors
/// The number of the first line that cannot be read, and why.
pub fn parse(text: &str) -> Result<Vec<Sequence>, String> {
    let mut sequences: Vec<Sequence> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |why: String| format!("line {}: {line:?}: {why}", number + 1);
        if let Some(name) = line.strip_prefix("sequence ") {
            if sequences.iter().any(|sequence| sequence.name == name) {
                return Err(wrong("there is one of that name".to_owned()));
            }
            sequences.push(Sequence {
                name: name.to_owned(),
                families: [true; 2],
                settings: BTreeMap::new(),
                connections: Vec::new(),
                steps: Vec::new(),
            });
            continue;
        }
        let Some(sequence) = sequences.last_mut() else {
            return Err(wrong("no sequence has begun".to_owned()));
        };
        sequence.line(line).map_err(wrong)?;
    }
    Ok(sequences)
}

impl Sequence {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let mut words = Words(line.split_whitespace().collect::<Vec<_>>().into_iter());
        let first = words.next()?;
        if let Some(way) = first.chars().last().filter(|last| "<>".contains(*last)) {
            let name = &first[..first.len() - 1];
            let known = self.connections.iter().position(|connection| connection.name == name);
            let connection = known.ok_or_else(|| format!("no connection {name:?}"))?;
            let way = if way == '>' { Way::There } else { Way::Back };
            let sending = sending(line, connection, self.connections[connection].transport, way, words)?;
            self.steps.push(Step::Send(sending));
            return Ok(());
        }
        match first {
            "wait" => {
                let millis = words.next()?.strip_suffix("ms").ok_or("not in ms")?;
                self.steps.push(Step::Wait(Duration::from_millis(integer(millis)?)));
            }
            "only" => {
                self.families = match words.next()? {
                    "ipv4" => [true, false],
                    "ipv6" => [false, true],
                    other => return Err(format!("{other} is no family")),
                }
            }
            "with" => {
                let name = words.next()?.to_owned();
                self.settings.insert(name, integer(words.next()?)?);
            }
            transport => {
                let transport = match transport {
                    "tcp" => Transport::Tcp,
                    "udp" => Transport::Udp,
                    "icmp" => Transport::Icmp,
                    "sctp" => Transport::Sctp,
                    number => Transport::Other(integer(number)?),
                };
                let client = party(words.next()?)?;
                if words.next()? != ">" {
                    return Err("a connection is PROTOCOL WHO > WHOM".to_owned());
                }
                let server = party(words.next()?)?;
                let mut connection =
                    Connection { name: String::new(), transport, client, server, port: ClientPort::Own };
                while let Ok(word) = words.next() {
                    match (word, words.next()?) {
                        ("as", name) => connection.name = name.to_owned(),
                        ("port", "same") => connection.port = ClientPort::Same,
                        (word, _) => return Err(format!("{word} is not known")),
                    }
                }
                self.connections.push(connection);
            }
        }
        words.end()
    }
}

/// What is left of a line.
struct Words<'a>(std::vec::IntoIter<&'a str>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| "too short".to_owned())
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Result<T, String> {
        integer(self.next()?)
    }

    fn end(mut self) -> Result<(), String> {
        match self.0.next() {
            None => Ok(()),
            Some(word) => Err(format!("{word} is too much")),
        }
    }
}

fn integer<T: TryFrom<u64>>(word: &str) -> Result<T, String> {
    let number: u64 = word.parse().map_err(|_| format!("{word:?} is not a number"))?;
    T::try_from(number).map_err(|_| format!("{number} is too large"))
}

fn party(word: &str) -> Result<Party, String> {
    Ok(match word {
        "pod" => Party::Pod,
        "pod2" => Party::Pod2,
        "client" => Party::Client,
        "client2" => Party::Client2,
        "outside" => Party::Outside,
        "web" => Party::Web,
        "far" => Party::Far,
        "node" => Party::Node,
        "node-far" => Party::NodeFar,
        other => return Err(format!("nobody is called {other:?}")),
    })
}

fn sending(
    line: &str,
    connection: usize,
    transport: Transport,
    way: Way,
    mut words: Words<'_>,
) -> Result<Sending, String> {
    let mut content = match (words.next()?, transport) {
        ("icmp", _) => Content::Error(IcmpError {
            kind: error_kind(words.next()?)?,
            mtu: 0,
            sender: Sender::Party,
            cut: None,
            pokes: Vec::new(),
        }),
        (flags, Transport::Tcp) => {
            let flags = flags_of(flags)?;
            let sequence = words.number()?;
            let acknowledgement = if flags & ACK == 0 { 0 } else { words.number()? };
            Content::Tcp { flags, sequence, acknowledgement, window: 64_240, options: Vec::new() }
        }
        ("data", Transport::Udp) => Content::Udp { checksum: UdpChecksum::Computed },
        ("unchecked", Transport::Udp) => Content::Udp { checksum: UdpChecksum::None },
        ("echo", Transport::Icmp) => Content::Echo(Echo::Request),
        ("reply", Transport::Icmp) => Content::Echo(Echo::Reply),
        ("data", Transport::Other(_)) => Content::Other,
        (chunks, Transport::Sctp) => Content::Sctp { chunks: chunks_of(chunks)?, vtag: 0, itag: 0, flag: 0 },
        (word, _) => return Err(format!("{word} is not known")),
    };
    let mut shape = Shape::default();
    let mut expected = Vec::new();
    while let Ok(word) = words.next() {
        if word == "=>" {
            expected.extend(words.0.by_ref().map(str::to_owned));
            break;
        }
        if detail(&mut content, word, &mut words)? {
            continue;
        }
        match word {
            "ttl" => shape.ttl = Some(words.number()?),
            "tos" => shape.tos = words.number()?,
            "df" => shape.dont_fragment = true,
            "id" => shape.id = Some(words.number()?),
            "bad-sum" => shape.bad_sum = true,
            "fill" => shape.fill = words.number()?,
            "more" => shape.more = true,
            "frag" => {
                let (from, to) = words.next()?.split_once('-').ok_or("frag FROM-TO")?;
                let to = if to == "end" { None } else { Some(integer(to)?) };
                shape.part = Some((integer(from)?, to));
            }
            "ext" => shape.extensions.push(match words.next()? {
                "hop" => 0,
                "dest" => 60,
                "routing" => 43,
                other => return Err(format!("no extension header {other}")),
            }),
            // RFC 791: room for one address; RFC 2113; loose source routing of one address.
            "option" => shape.options.extend(match words.next()? {
                "record-route" => [7, 7, 4, 0, 0, 0, 0, 0],
                "router-alert" => [148, 4, 0, 0, 1, 1, 1, 0],
                "source-route" => [131, 7, 4, 192, 0, 2, 1, 0],
                other => return Err(format!("no option {other}")),
            }),
            number if number.starts_with('+') => shape.data = integer(&number[1..])?,
            other => return Err(format!("{other} is not known")),
        }
    }
    Ok(Sending { line: line.to_owned(), connection, way, content, shape, expected })
}

/// A word that only this content has; whether it is one.
fn detail(content: &mut Content, word: &str, words: &mut Words<'_>) -> Result<bool, String> {
    match (content, word) {
        (Content::Tcp { window, .. }, "win") => *window = words.number()?,
        (Content::Tcp { options, .. }, "ws") => options.extend([3, 3, words.number()?, 1]),
        (Content::Tcp { options, .. }, "sack-ok") => options.extend([4, 2, 1, 1]),
        (Content::Tcp { options, .. }, "sack") => {
            let (from, to) = words.next()?.split_once('-').ok_or("sack FROM-TO")?;
            options.extend([1, 1, 5, 10]);
            options.extend(integer::<u32>(from)?.to_be_bytes());
            options.extend(integer::<u32>(to)?.to_be_bytes());
        }
        (Content::Sctp { vtag, .. }, "vtag") => *vtag = words.number()?,
        (Content::Sctp { itag, .. }, "itag") => *itag = words.number()?,
        (Content::Sctp { flag, .. }, "T") => *flag = 1,
        (Content::Error(error), "mtu") => error.mtu = words.number()?,
        (Content::Error(error), "by") => {
            error.sender = match words.next()? {
                "router" => Sender::Router,
                other => return Err(format!("by {other}?")),
            }
        }
        (Content::Error(error), "cut") => error.cut = Some(words.number()?),
        (Content::Error(error), "poke") => error.pokes.push((words.number()?, words.number()?)),
        _ => return Ok(false),
    }
    Ok(true)
}

fn error_kind(word: &str) -> Result<ErrorKind, String> {
    Ok(match word {
        "net" => ErrorKind::Net,
        "host" => ErrorKind::Host,
        "port" => ErrorKind::Port,
        "need-frag" => ErrorKind::NeedFrag,
        "time" => ErrorKind::Time,
        "parameter" => ErrorKind::Parameter,
        "redirect" => ErrorKind::Redirect,
        other => return Err(format!("no ICMP error {other:?}")),
    })
}

fn flags_of(word: &str) -> Result<u8, String> {
    if word == "-" {
        return Ok(0);
    }
    word.chars().try_fold(0, |flags, letter| {
        let known = FLAGS.iter().find(|(name, _)| *name == letter);
        known.map(|(_, flag)| flags | flag).ok_or_else(|| format!("no flag {letter}"))
    })
}

/// The flags' letters.
pub(super) fn flag_letters(flags: u8) -> String {
    let letters: String =
        FLAGS.iter().filter(|(_, flag)| flags & flag != 0).map(|(letter, _)| *letter).collect();
    if letters.is_empty() { "-".to_owned() } else { letters }
}

fn chunks_of(word: &str) -> Result<Vec<u8>, String> {
    let chunk = |name: &str| {
        let known = CHUNKS.iter().find(|(known, _)| *known == name);
        known.map(|(_, number)| *number).ok_or_else(|| format!("no chunk {name}"))
    };
    word.split(',').map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_read() {
        let text = "# all\nsequence one\n  only ipv6\n  with nf_conntrack_tcp_loose 0\n  tcp pod > web\n\
                    \n  > S 1000 ttl 3  # why\n  wait 20ms\n  < SA 5000 1001 +4 win 7 => SYN_RECV replied\n\
                    sequence two\n  udp client > node as a\n  udp client2 > node as b port same\n  b< icmp time by router cut 28\n";
        let [one, two] = parse(text).unwrap().try_into().unwrap();
        assert_eq!((one.name.as_str(), one.families), ("one", [false, true]));
        assert_eq!(one.settings["nf_conntrack_tcp_loose"], 0);
        assert_eq!(one.steps.len(), 3);
        let Step::Send(answer) = &one.steps[2] else { panic!("a packet") };
        assert_eq!((answer.way, answer.shape.data), (Way::Back, 4));
        assert_eq!(answer.expected, ["SYN_RECV", "replied"]);
        let tcp =
            Content::Tcp { flags: 18, sequence: 5000, acknowledgement: 1001, window: 7, options: vec![] };
        assert_eq!(answer.content, tcp);
        assert_eq!(two.connections[1].port, ClientPort::Same);
        let Step::Send(error) = &two.steps[0] else { panic!("a packet") };
        assert_eq!(error.connection, 1);
        let Content::Error(error) = &error.content else { panic!("an error") };
        assert_eq!((error.kind, error.sender, error.cut), (ErrorKind::Time, Sender::Router, Some(28)));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        let said = |line: &str| parse(&format!("sequence s\ntcp pod > web\n{line}\n")).unwrap_err();
        assert_eq!(said("> X 1"), "line 3: \"> X 1\": no flag X");
        assert_eq!(said("> S"), "line 3: \"> S\": too short");
        assert!(said("b> S 1").contains("no connection \"b\""));
        assert!(said("> S 4294967296").contains("too large"));
        assert!(said("> S 1 vtag 2").contains("vtag is not known"));
        assert!(said("sequence s").contains("there is one of that name"));
        assert!(parse("> S 1").unwrap_err().contains("no sequence"));
    }
}
