//! What is meant to be other than in netfilter, and why: the one list, printed into `docs/conntrack.md`.

/// A difference.
pub(super) struct Difference {
    /// The rules that it is about.
    pub(super) rule: &'static str,
    /// What the kernel does.
    pub(super) kernel: &'static str,
    /// What Pollux does.
    pub(super) pollux: &'static str,
    /// Why.
    pub(super) reason: &'static str,
}

/// All of them.
pub(super) const DIFFERENCES: [Difference; 15] = [
    Difference {
        rule: "CT-07",
        kernel: "`nf_conntrack_tcp_be_liberal` is 0: a segment outside of the window is INVALID",
        pollux: "it is 1: data is not held to the window; 0 switches that on",
        reason: "every segment would have to be written down; clusters set it to 1, because a wrong verdict there resets connections",
    },
    Difference {
        rule: "CT-05, CT-10",
        kernel: "every packet renews the timeout",
        pollux: "a connection in use in both directions is renewed at least every 500 ms and every 32nd part of its timeout; it ends later by as much, never earlier",
        reason: "an established packet writes nothing",
    },
    Difference {
        rule: "CT-05",
        kernel: "timeouts up to 68 years",
        pollux: "timeouts up to 20 days",
        reason: "times are 32-bit milliseconds, so that an entry is one cache line",
    },
    Difference {
        rule: "CT-08",
        kernel: "INVALID packets are forwarded unless a rule drops them",
        pollux: "they are dropped and counted; to the node itself they are delivered untranslated",
        reason: "it is what kube-proxy's rules make of them",
    },
    Difference {
        rule: "CT-08",
        kernel: "every packet's transport checksum is verified; `nf_conntrack_checksum` can be switched off",
        pollux: "it is always verified where a packet makes a connection or may change its state, and not for plain packets of one in steady use, nor over fragments; a partial one (offload) is taken as right",
        reason: "a packet that its receiver drops must not move a connection; what moves nothing, the receiver judges",
    },
    Difference {
        rule: "CT-09",
        kernel: "`nf_conntrack_max` is one number for all, and the table grows up to it; early drop looks at the chains near the new connection's",
        pollux: "each family has a table of its own, mapped at the start; early drop goes round the table, 64 connections at a time",
        reason: "memory is known at the start, and what is looked at is bounded",
    },
    Difference {
        rule: "CT-11",
        kernel: "`mark` is the connection's mark, which kube-proxy does not set",
        pollux: "`mark` is kube-proxy's masquerade mark on connections that are masqueraded, else 0",
        reason: "there is no other mark, and it shows why a source was translated",
    },
    Difference {
        rule: "CT-11",
        kernel: "`id` has 32 bits, `use` counts references",
        pollux: "`id` has 64 bits, `use` is always 1",
        reason: "readers take copies, nobody holds a reference",
    },
    Difference {
        rule: "CT-11",
        kernel: "`conntrack -S` has found, search_restart, clash_resolve and chaintoolong",
        pollux: "`pollux conntrack stats` leaves them out, and has expired, removed, swept, entries, capacity and events_lost beside the others",
        reason: "readers count nothing, so that they share nothing",
    },
    Difference {
        rule: "CT-01",
        kernel: "zones, labels, helpers and expectations (FTP, SIP, PPTP), ports of UDP-Lite, keys of GRE",
        pollux: "none of them: UDP-Lite and GRE are tracked by addresses and protocol, as any other protocol",
        reason: "kube-proxy uses none, and helpers read what strangers send",
    },
    Difference {
        rule: "NAT-03, NAT-05",
        kernel: "the search for a source port stops after 128 tries or fewer, the fewer the fuller the range",
        pollux: "it is bounded as well, and failing is a counted drop (`snat_exhausted`)",
        reason: "a wrong mapping is worse than none",
    },
    Difference {
        rule: "NAT-07, FW-01, FW-02",
        kernel: "an error of the node itself about a packet that is masqueraded, or a connection's first one, quotes the translated packet",
        pollux: "it quotes the packet as it came in",
        reason: "the sender does not know the translated one, and path MTU discovery through a node port would fail",
    },
    Difference {
        rule: "NAT-08",
        kernel: "a datagram is put together before it is tracked, and cut again when it leaves",
        pollux: "fragments are passed on as they are, by the decision about the first one",
        reason: "none waits for the last one, and memory is bounded",
    },
    Difference {
        rule: "UP-03",
        kernel: "kube-proxy takes a UDP node port for one on every destination address",
        pollux: "on the addresses that node ports answer on",
        reason: "a flow through the node to somebody else's port of that number is not the Service's",
    },
    Difference {
        rule: "CT-05 (`conntrack.tcpBeLiberal`)",
        kernel: "kube-proxy sets `nf_conntrack_tcp_be_liberal` to 1 when it is true",
        pollux: "so does Pollux; false leaves the default, which is 1 here",
        reason: "false sets nothing in kube-proxy either: `sysctl` of the Node document switches windows on",
    },
];
