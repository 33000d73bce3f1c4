//! The words of a line, and the values they stand for.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};

use super::{Interface, Ports};

/// A word of a line: what stands between blanks, or in double quotes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word<'a> {
    /// The word, without quotes and escapes.
    pub(super) text: Cow<'a, str>,
    /// Whether quotes stood around it, so that `"!"` negates nothing.
    pub(super) quoted: bool,
}

/// The words of a rule, read from the left.
#[derive(Debug, Default)]
pub(super) struct Words<'a> {
    list: Vec<Word<'a>>,
    next: usize,
}

impl<'a> Words<'a> {
    /// The words of `line`, by the rules of iptables-restore: `"` opens and closes a quotation, in which `\`
    /// stands before a character that is to be taken as it is.
    pub(super) fn split(&mut self, line: &'a str) -> Result<(), String> {
        self.list.clear();
        self.next = 0;
        let bytes = line.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if is_blank(bytes[at]) {
                at += 1;
                continue;
            }
            let start = at;
            while at < bytes.len() && !is_blank(bytes[at]) && bytes[at] != b'"' {
                at += 1;
            }
            let quoted = bytes.get(at) == Some(&b'"');
            let text = match quoted {
                true => Cow::Owned(quotation(line, start, &mut at)?),
                false => Cow::Borrowed(&line[start..at]),
            };
            self.list.push(Word { text, quoted });
        }
        Ok(())
    }

    /// The next word, if there is one.
    pub(super) fn next(&mut self) -> Option<Word<'a>> {
        let word = self.list.get_mut(self.next)?;
        self.next += 1;
        // Each word is taken once.
        Some(Word { text: std::mem::take(&mut word.text), quoted: word.quoted })
    }

    /// Takes a `!` if the next word is one.
    pub(super) fn take_not(&mut self) -> bool {
        let found = self.list.get(self.next).is_some_and(|word| word.text == "!" && !word.quoted);
        self.next += usize::from(found);
        found
    }

    /// The value of `option`.
    pub(super) fn value(&mut self, option: &str) -> Result<Cow<'a, str>, String> {
        self.next().map(|word| word.text).ok_or_else(|| format!("{option} needs a value"))
    }
}

/// A word with a quotation in it, from `start`; `at` stands at the first quote, and behind the word then.
fn quotation(line: &str, start: usize, at: &mut usize) -> Result<String, String> {
    let mut text = line[start..*at].to_string();
    let mut open = false;
    let mut escaped = false;
    let mut end = line.len();
    for (place, letter) in line[*at..].char_indices() {
        match letter {
            _ if escaped => {
                text.push(letter);
                escaped = false;
            }
            '\\' if open => escaped = true,
            '"' => open = !open,
            ' ' | '\t' if !open => {
                end = *at + place;
                break;
            }
            _ => text.push(letter),
        }
    }
    if open {
        return Err(format!("the quotation {} has no end", &line[*at..]));
    }
    *at = end;
    Ok(text)
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// A number as C reads it: decimal, hexadecimal after `0x`, octal after `0`.
pub(super) fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(&text[1..], 8).ok(),
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("{text:?} is not a number of 32 bits"))
}

/// `value[/mask]`; all bits when no mask is given.
pub(super) fn mark(text: &str) -> Result<(u32, u32), String> {
    match text.split_once('/') {
        Some((value, mask)) => Ok((number(value)?, number(mask)?)),
        None => Ok((number(text)?, u32::MAX)),
    }
}

/// A port number.
pub(super) fn port(text: &str) -> Result<u16, String> {
    number(text)
        .ok()
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("{text:?} is not a port (0-65535)"))
}

/// `port`, or a range with `separator` between its ends, each of which may be left out if `open`.
pub(super) fn port_range(text: &str, separator: char) -> Result<RangeInclusive<u16>, String> {
    let Some((first, last)) = text.split_once(separator) else {
        let port = port(text)?;
        return Ok(port..=port);
    };
    let range = match (separator, first, last) {
        (':', "", "") => return Err(format!("{text:?} is not a range of ports")),
        (':', "", last) => 0..=port(last)?,
        (':', first, "") => port(first)?..=u16::MAX,
        (_, first, last) => port(first)?..=port(last)?,
    };
    if range.is_empty() {
        return Err(format!("{text:?} is not a range of ports: its end lies before its beginning"));
    }
    Ok(range)
}

/// The list of `-m multiport`: at most 15 ports, of which a range takes two.
pub(super) fn port_list(text: &str) -> Result<Ports, String> {
    let ranges: Result<Vec<_>, String> = text.split(',').map(|item| port_range(item, ':')).collect();
    let ranges = ranges?;
    let taken: usize = ranges.iter().map(|range| if range.start() == range.end() { 1 } else { 2 }).sum();
    if taken > 15 {
        return Err(format!("{text:?} has more than the 15 ports that multiport holds"));
    }
    Ok(ranges.into())
}

/// An address of the family.
pub(super) fn address<A: Family>(text: &str) -> Result<A::Addr, String> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => format!("{text} is not an {} address: it is of the other family", A::NAME),
        Err(_) => format!("{text:?} is not an {} address", A::NAME),
    })
}

/// `address[/length]` or `address/mask`.
pub(super) fn prefix<A: Family>(text: &str) -> Result<Prefix<A>, String> {
    let Some((base, length)) = text.split_once('/') else {
        return Ok(Prefix::host(address::<A>(text)?));
    };
    let base = address::<A>(base)?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = match digits {
        true => length.parse().ok().filter(|length| *length <= A::BITS),
        false => return mask::<A>(length).map(|length| Prefix::new(base, length)),
    };
    match length {
        Some(length) => Ok(Prefix::new(base, length)),
        None => Err(format!("{text}: an {} prefix has 0 to {} bits", A::NAME, A::BITS)),
    }
}

/// A mask in an address's form, as a length.
pub(super) fn mask<A: Family>(text: &str) -> Result<u8, String> {
    let address = address::<A>(text).map_err(|_| format!("{text:?} is not an {} mask", A::NAME))?;
    let ones = (address.bits() << (128 - u32::from(A::BITS))).leading_ones() as u8;
    if Prefix::<A>::new(A::Addr::from_bits(u128::MAX), ones).address() != address {
        return Err(format!("the mask {text} has holes, which is not supported"));
    }
    Ok(ones)
}

/// An interface name, or its beginning with `+`.
pub(super) fn interface(text: &str) -> Result<Interface, String> {
    let (name, prefix) = match text.strip_suffix('+') {
        Some(name) => (name, true),
        None => (text, false),
    };
    let odd = |letter: char| letter.is_whitespace() || matches!(letter, '/' | '"');
    if text.is_empty() || text.len() > 15 || text.starts_with('!') || text.contains(odd) {
        return Err(format!("{text:?} is not an interface name (1 to 15 bytes)"));
    }
    Ok(Interface { name: name.to_string(), prefix })
}

/// Protocols by the names that iptables and `/etc/protocols` have for them: iptables-save prints what the
/// latter says. The first name of a number is the one that is printed.
#[rustfmt::skip]
pub(super) const PROTOCOLS: &[(&str, u8)] = &[
    ("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("ipv6-icmp", 58),
    ("icmpv6", 58), ("icmp6", 58), ("igmp", 2), ("ggp", 3), ("ipencap", 4),
    ("st", 5), ("egp", 8), ("igp", 9), ("pup", 12), ("hmp", 20),
    ("xns-idp", 22), ("rdp", 27), ("iso-tp4", 29), ("dccp", 33), ("xtp", 36),
    ("ddp", 37), ("idpr-cmtp", 38), ("ipv6", 41), ("ipv6-route", 43), ("ipv6-frag", 44),
    ("idrp", 45), ("rsvp", 46), ("gre", 47), ("esp", 50), ("ah", 51),
    ("skip", 57), ("ipv6-nonxt", 59), ("ipv6-opts", 60), ("rspf", 73), ("vmtp", 81),
    ("eigrp", 88), ("ospf", 89), ("ax.25", 93), ("ipip", 94), ("etherip", 97),
    ("encap", 98), ("pim", 103), ("ipcomp", 108), ("vrrp", 112), ("l2tp", 115),
    ("isis", 124), ("fc", 133), ("mobility-header", 135), ("udplite", 136), ("mpls-in-ip", 137),
    ("manet", 138), ("hip", 139), ("shim6", 140), ("wesp", 141), ("rohc", 142),
    ("ethernet", 143), ("ipv4", 4), ("ipv6-mh", 135), ("mh", 135), ("all", 0),
    ("ip", 0),
];

/// A protocol by name or number; 0 is all of them.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    let known = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| *value);
    known
        .or_else(|| number(text).ok().and_then(|number| u8::try_from(number).ok()))
        .map(Protocol)
        .ok_or_else(|| format!("-p {text:?} is not a protocol"))
}
