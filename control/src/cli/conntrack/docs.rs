//! `pollux conntrack docs`: the page `docs/conntrack.md`, its tables printed from the code. A test holds the
//! file to it.

use std::fmt::{self, Write as _};
use std::time::Duration;

use pollux_dataplane::flow::sctp::{self, Chunk};
use pollux_dataplane::flow::tcp::{Transition, transition};
use pollux_dataplane::flow::{Direction, Segment, State, Sysctls, Timeout};
use pollux_dataplane::stats::Reason;

use super::differences::DIFFERENCES;
use crate::config::ProxyConfig;
use crate::config::node::SYSCTLS;

/// The page.
pub(super) fn page() -> String {
    let mut page = String::from(BEGINNING);
    // Writing into memory cannot fail.
    let _ = tables(&mut page);
    page
}

const BEGINNING: &str = "\
# Connection tracking

What Pollux knows of a connection, and when it ends. The tables of this page are printed from the code:
`pollux conntrack docs > docs/conntrack.md`; a test fails when the page is another.

A connection has two tuples: the original one, as its first packet came in, and the reply one, as answers come in.
Either finds it (CT-01). It is NEW until a packet of the reply direction was seen, then ESTABLISHED; an ICMP error
that quotes one of its packets is RELATED; what belongs to none and cannot begin one is INVALID (CT-02). Where its
packets go and how they are translated is decided by the first one and kept (CT-03); the entry is made when that
packet leaves (CT-04).

```text
pollux conntrack list -p tcp --state ESTABLISHED       as conntrack -L
pollux conntrack count                                 as conntrack -C
pollux conntrack delete -p udp --reply-src 10.0.0.1    as conntrack -D
pollux conntrack events -e NEW,DESTROY                 as conntrack -E
pollux conntrack stats                                 as conntrack -S; --source-ports: NAT-06
```

Tables are read where they lie, without a lock and without the worker. What is deleted is deleted by the worker, a
few connections between two bursts.
";

fn tables(page: &mut String) -> fmt::Result {
    tcp_states(page)?;
    sctp_states(page)?;
    page.push_str(OTHERS);
    timeouts(page)?;
    settings(page)?;
    reasons(page)?;
    differences(page)
}

/// The states of a protocol that `wanted` chooses, by name, in the order of their numbers.
fn states(wanted: impl Fn(State) -> bool) -> Vec<(State, &'static str)> {
    State::all().filter(|state| wanted(*state)).map(|state| (state, state.name())).collect()
}

fn header(page: &mut String, first: &str, columns: impl Iterator<Item = &'static str>) -> fmt::Result {
    let columns: Vec<_> = columns.collect();
    writeln!(page, "| {first} | {} |", columns.join(" | "))?;
    writeln!(page, "| --- |{}", " --- |".repeat(columns.len()))
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Original => "original",
        Direction::Reply => "reply",
    }
}

fn tcp_states(page: &mut String) -> fmt::Result {
    const SEGMENTS: [(Segment, &str); 6] = [
        (Segment::Syn, "SYN"),
        (Segment::SynAck, "SYN-ACK"),
        (Segment::Fin, "FIN"),
        (Segment::Ack, "ACK"),
        (Segment::Rst, "RST"),
        (Segment::Nothing, "none of these"),
    ];
    page.push_str(TCP);
    let states = states(|state| matches!(state, State::Tcp(_)));
    for direction in [Direction::Original, Direction::Reply] {
        writeln!(page)?;
        header(page, direction_name(direction), states.iter().map(|(_, name)| *name))?;
        for (segment, name) in SEGMENTS {
            write!(page, "| {name} |")?;
            for (state, _) in &states {
                let State::Tcp(state) = *state else { continue };
                match transition(state, direction, segment) {
                    Transition::To(next) => write!(page, " {} |", State::Tcp(next).name())?,
                    Transition::Ignore => write!(page, " – |")?,
                    Transition::Invalid => write!(page, " INVALID |")?,
                }
            }
            writeln!(page)?;
        }
    }
    page.push_str(TCP_RULES);
    Ok(())
}

const TCP: &str = "
## TCP (CT-06)

The state that follows, by what the segment says (a row) and the state before (a column). RST counts before SYN,
SYN before FIN, FIN before ACK. `–`: forwarded, and nothing changes, not even the timeout. INVALID: dropped.
";

const TCP_RULES: &str = "
What the tables do not say:

- Without an entry a SYN opens a connection, and a segment with ACK alone is picked up as ESTABLISHED
  (`nf_conntrack_tcp_loose`); anything else is INVALID.
- A SYN on TIME_WAIT or CLOSE opens a new connection, with a new decision where it goes, when this side closed first
  or the last packet was a RST from this side.
- A SYN repeated in SYN_SENT does not renew the timeout. A RST on an entry without a reply removes it.
- A RST closes ESTABLISHED only when it is plausible (CT-07): its sequence number is the highest that the other side has
  acknowledged, or it continues the last segment. One below that acknowledgement is INVALID; any other is
  forwarded, and the connection stays.
- ASSURED, so kept when the table is full: ESTABLISHED by a handshake, or used in both directions there.
";

fn sctp_states(page: &mut String) -> fmt::Result {
    page.push_str(SCTP);
    let states = states(|state| matches!(state, State::Sctp(_)));
    for direction in [Direction::Original, Direction::Reply] {
        writeln!(page)?;
        let columns = std::iter::once("(no entry)").chain(states.iter().map(|(_, name)| *name));
        header(page, direction_name(direction), columns)?;
        for (chunk, _, name) in Chunk::ALL {
            write!(page, "| {name} |")?;
            for next in &sctp::TRANSITIONS[direction as usize][chunk as usize][..=states.len()] {
                write!(page, " {} |", next.map_or("INVALID", |next| State::Sctp(next).name()))?;
            }
            writeln!(page)?;
        }
    }
    page.push_str(
        "\nOther chunks, data among them, change nothing. The verification tag of every packet has to be the one that \
         INIT\nand INIT ACK announced; INIT stands alone in its packet (RFC 9260).\n",
    );
    Ok(())
}

const SCTP: &str = "
## SCTP

As for TCP, by chunk.
";

const OTHERS: &str = "
## Others

UDP is a stream, and ASSURED, when both sides have used it for two seconds. ICMP and ICMPv6 queries (echo, timestamp,
information, address mask; node information) are connections by their identifier. Every other protocol is one by
its addresses.
";

fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 { time.as_secs().to_string() } else { time.as_secs_f64().to_string() }
}

fn timeouts(page: &mut String) -> fmt::Result {
    let conntrack = ProxyConfig::default().conntrack;
    page.push_str(
        "\n## Timeouts (CT-05)\n\nIn seconds. `sysctl` of the Node document sets them under these names; \
         `conntrack` of KubeProxyConfiguration sets its\nown, `0s` there leaves the default; the Node document \
         wins.\n\n| sysctl | default | kube-proxy sets | while |\n| --- | --- | --- | --- |\n",
    );
    for timeout in Timeout::ALL {
        let set = match timeout {
            Timeout::TcpEstablished => conntrack.tcp_established,
            Timeout::TcpCloseWait => conntrack.tcp_close_wait,
            Timeout::Udp => conntrack.udp,
            Timeout::UdpStream => conntrack.udp_stream,
            _ => None,
        };
        let set = set.map_or(String::new(), seconds);
        let (default, text) = (seconds(timeout.default_value()), timeout.description());
        writeln!(page, "| `{}` | {default} | {set} | {text} |", timeout.name())?;
    }
    Ok(())
}

/// The default of a setting that is no timeout of the table, and what it means.
fn setting(name: &str) -> (u32, &'static str) {
    let defaults = Sysctls::default();
    match name {
        "nf_conntrack_acct" => {
            (defaults.acct.into(), "packets and bytes of each direction are counted (CT-11)")
        }
        "nf_conntrack_tcp_be_liberal" => {
            (defaults.tcp_be_liberal.into(), "segments outside of the window are not INVALID (CT-07)")
        }
        "nf_conntrack_tcp_ignore_invalid_rst" => (
            defaults.tcp_ignore_invalid_rst.into(),
            "a RST below what is acknowledged is not INVALID (CT-07)",
        ),
        "nf_conntrack_tcp_loose" => {
            (defaults.tcp_loose.into(), "connections whose beginning was not seen are picked up (CT-06)")
        }
        "nf_conntrack_tcp_max_retrans" => {
            let text = "how often a segment is repeated before `nf_conntrack_tcp_timeout_max_retrans` bounds the time";
            (defaults.tcp_max_retrans.into(), text)
        }
        "ipfrag_time" => (30, "seconds that IPv4 fragments wait for the rest of their datagram (NAT-08)"),
        "nf_conntrack_frag6_timeout" => {
            (60, "seconds that IPv6 fragments wait for the rest of their datagram (NAT-08)")
        }
        other => panic!("the setting {other} is not described"),
    }
}

fn settings(page: &mut String) -> fmt::Result {
    page.push_str("\n## Other settings\n\n| sysctl | default | what it does |\n| --- | --- | --- |\n");
    for (name, _) in SYSCTLS.iter().filter(|(name, _)| Timeout::by_name(name).is_none()) {
        let (default, text) = setting(name);
        writeln!(page, "| `{name}` | {default} | {text} |")?;
    }
    Ok(())
}

fn reasons(page: &mut String) -> fmt::Result {
    page.push_str(
        "\n## Drops\n\nThe reasons that have to do with connections and translation (`pollux get drops` shows all \
         that were met).\n\n| reason | meaning |\n| --- | --- |\n",
    );
    let ours = |reason: &&Reason| {
        let text = reason.description();
        text.contains("(CT-") || text.contains("(NAT-")
    };
    for reason in Reason::ALL.iter().filter(ours) {
        writeln!(page, "| `{}` | {} |", reason.name(), reason.description())?;
    }
    Ok(())
}

fn differences(page: &mut String) -> fmt::Result {
    page.push_str(
        "\n## What is meant to be other than in netfilter\n\n\
         | rule | netfilter | Pollux | why |\n| --- | --- | --- | --- |\n",
    );
    for difference in &DIFFERENCES {
        let super::differences::Difference { rule, kernel, pollux, reason } = difference;
        writeln!(page, "| {rule} | {kernel} | {pollux} | {reason} |")?;
    }
    Ok(())
}
