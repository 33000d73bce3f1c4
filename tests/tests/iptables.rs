//! Laws of the readers of iptables' and ipset's files: no text, however broken, stops them, and what they read
//! they print so that it is read again as the same.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use pollux_control::iptables::{Ruleset, ipset, parse};
use pollux_dataplane::packet::{Family, V4, V6};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Words of rules, and some that are none.
const WORDS: &[&str] = &[
    "!",
    "-A",
    "-j",
    "-g",
    "-m",
    "-p",
    "-s",
    "-d",
    "-i",
    "-o",
    "INPUT",
    "FORWARD",
    "PREROUTING",
    "A",
    "B",
    "ACCEPT",
    "DROP",
    "RETURN",
    "REJECT",
    "MARK",
    "CONNMARK",
    "DNAT",
    "SNAT",
    "MASQUERADE",
    "LOG",
    "tcp",
    "udp",
    "icmp",
    "ipv6-icmp",
    "143",
    "10.0.0.1",
    "10.0.0.0/8,10.1.2.3",
    "fd00::/8",
    "eth+",
    "lo",
    "comment",
    "--comment",
    "\"a \\\" b\"",
    "\"",
    "addrtype",
    "--dst-type",
    "LOCAL,UNICAST",
    "--limit-iface-in",
    "mark",
    "--mark",
    "0x1/0x3",
    "conntrack",
    "--ctstate",
    "NEW,DNAT",
    "statistic",
    "--mode",
    "random",
    "nth",
    "--probability",
    "0.3333333333",
    "--every",
    "3",
    "recent",
    "--set",
    "--rcheck",
    "--seconds",
    "--reap",
    "--name",
    "--mask",
    "255.255.0.0",
    "multiport",
    "--dports",
    "1,2:3",
    "--dport",
    "80",
    "--sport",
    ":7",
    "physdev",
    "--physdev-in",
    "set",
    "--match-set",
    "src,dst",
    "limit",
    "--limit",
    "3/min",
    "--syn",
    "--tcp-flags",
    "SYN,ACK",
    "--icmp-type",
    "8/0",
    "--icmpv6-type",
    "--reject-with",
    "tcp-reset",
    "icmp-port-unreachable",
    "--set-xmark",
    "--or-mark",
    "--save-mark",
    "--nfmask",
    "--to-destination",
    "10.0.0.1:80",
    "[fd00::1]:80",
    "--to-source",
    "--to-ports",
    "1-9",
    "--random-fully",
    "--log-prefix",
    "COMMIT",
    "*nat",
    ":B",
    "-",
    "[0:0]",
    "ä",
];

/// Pieces of rules that are right by themselves.
const PIECES: &[&str] = &[
    "-s 10.0.0.0/8",
    "! -d 10.1.2.3",
    "-d 10.0.0.1,10.1.0.0/16",
    "-i eth+",
    "! -o lo",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --src-type UNICAST --dst-type LOCAL,MULTICAST",
    "-m mark ! --mark 0x4000/0x4000",
    "-m connmark --mark 7",
    "-m conntrack ! --ctstate RELATED,DNAT",
    "-m conntrack --ctorigdst 10.0.0.1",
    "-m conntrack --ctstate NEW --ctorigdstport 80:90",
    "-m statistic --mode random --probability 0.14285714272",
    "-m statistic --mode nth ! --every 5 --packet 2",
    "-m recent --set --name L",
    "-m nfacct --nfacct-name n",
    "-m recent ! --rcheck --seconds 9 --reap --rdest --mask 255.0.0.0",
    "-m physdev ! --physdev-is-in --physdev-in a",
    "-m set ! --match-set S src,dst",
    "-m limit --limit 3/min",
    "-m comment --comment \"it's \\\"so\\\"\"",
    "-m tcp",
    "--dport 80",
    "! --sport 7:",
    "-m multiport --dports 1,2:3,9",
    "-m multiport ! --ports 5",
    "--syn",
    "--tcp-flags SYN,ACK NONE",
    "-m tcp --dport 1 -m tcp --dport 2",
    "-c 1 2",
];

const TARGETS: &[&str] = &[
    "",
    "-j B",
    "-g B",
    "-j ACCEPT",
    "-j DROP",
    "-j RETURN",
    "-j REJECT",
    "-j REJECT --reject-with tcp-reset",
    "-j MARK --or-mark 0x4000",
    "-j MARK --set-mark 1/2",
    "-j CONNMARK --save-mark --nfmask 3",
    "-j CONNMARK --and-mark 5",
    "-j LOG --log-prefix \"a 'b' \" --log-uid",
];

/// If a text is read, what it says is printed and read again as the same.
fn out_and_back<A: Family>(text: &str) -> bool {
    let Ok(rules) = parse::parse::<A>(None, text) else { return false };
    let printed = rules.to_string();
    let again = parse::parse::<A>(None, &printed).unwrap_or_else(|problems| panic!("{printed}\n{problems}"));
    assert!(without_lines(again) == without_lines(rules), "{printed}");
    true
}

fn without_lines<A: Family>(mut rules: Ruleset<A>) -> Ruleset<A> {
    for chain in rules.tables.iter_mut().flat_map(|table| &mut table.chains) {
        chain.line = 0;
        chain.rules.iter_mut().for_each(|rule| rule.line = 0);
    }
    rules
}

fn read(text: &str) {
    out_and_back::<V4>(text);
    out_and_back::<V6>(text);
    let _ = ipset::parse::<V4>(None, text);
    let _ = ipset::parse::<V6>(None, text);
}

/// A change of a file: cut a piece out, write one over another place, or write a word.
#[derive(Clone, Debug)]
enum Change {
    Cut(Index, usize),
    Copy(Index, Index, usize),
    Write(Index, &'static str),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), 1..40usize).prop_map(|(at, length)| Change::Cut(at, length)),
        (any::<Index>(), any::<Index>(), 1..80usize)
            .prop_map(|(from, to, length)| Change::Copy(from, to, length)),
        (any::<Index>(), select(WORDS)).prop_map(|(at, word)| Change::Write(at, word)),
    ]
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        match change {
            Change::Cut(at, length) => {
                let at = at.index(bytes.len());
                let end = (at + length).min(bytes.len());
                bytes.drain(at..end);
            }
            Change::Copy(from, to, length) => {
                let from = from.index(bytes.len());
                let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
                let to = to.index(bytes.len());
                let end = (to + piece.len()).min(bytes.len());
                bytes.splice(to..end, piece);
            }
            Change::Write(at, word) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, word.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn dumps() -> Vec<String> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let dump = |name: &str| fs::read_to_string(corpus.join(name)).unwrap();
    [
        "seed-myapp/iptables-save.txt",
        "lb-source-ranges/ip6tables-save.txt",
        "session-affinity/iptables-save-1.20.txt",
    ]
    .map(dump)
    .to_vec()
}

#[test]
fn any_text_is_read_or_refused() {
    proptest!(|(text in "(\\PC|\n|\t){0,300}")| read(&text));
    proptest!(|(lines in vec("([*:#\\[]|-A A |COMMIT|add A |create A )?\\PC{0,40}", 0..12))| read(&lines.join("\n")));
}

#[test]
fn any_words_make_rules_or_errors() {
    proptest!(ProptestConfig::with_cases(2000), |(rules in vec(vec(select(WORDS), 0..10), 1..4))| {
        for table in ["filter", "nat"] {
            let mut text = format!("*{table}\n:A - [0:0]\n:B - [0:0]\n");
            for rule in &rules {
                text += &format!("-A A {}\n", rule.join(" "));
            }
            text += "COMMIT\n";
            read(&text);
        }
    });
}

#[test]
fn rules_of_right_pieces_are_printed_and_read_again() {
    let read = Cell::new(0);
    proptest!(ProptestConfig::with_cases(3000), |(pieces in vec(select(PIECES), 0..5), target in select(TARGETS))| {
        let pieces = pieces.join(" ");
        let text = format!("*filter\n:A - [0:0]\n:B - [0:0]\n-A A -p tcp {pieces} {target}\nCOMMIT\n");
        read.set(read.get() + u32::from(out_and_back::<V4>(&text)));
    });
    // Some pieces exclude each other.
    assert!(read.get() > 1000, "{}", read.get());
}

#[test]
fn broken_dumps_are_read_or_refused() {
    proptest!(ProptestConfig::with_cases(1000), |(dump in select(dumps()), changes in vec(change(), 1..6))| {
        read(&changed(&dump, &changes));
    });
}
