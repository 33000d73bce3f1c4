//! Counters: what came in, what went out, and one reason for everything that did neither.
//!
//! The balance of FW-05 holds whenever the worker is between bursts:
//! `received + originated + split + taken = transmitted + delivered + held + dropped + joined + handed`. Over a team of
//! workers what was handed over and not yet taken is on its way between two of them.

/// Declares the drop reasons: the one list from which code, metrics, CLI and documentation print.
macro_rules! reasons {
    ($($variant:ident $name:literal $doc:literal,)*) => {
        /// Why a packet was dropped. Every drop has exactly one reason and one counter (FW-05).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $doc] $variant,)* }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The reason's word: the same in metrics, trace and documentation.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// One sentence for people.
            pub fn description(self) -> &'static str {
                match self { $(Reason::$variant => $doc,)* }
            }
        }
    };
}

reasons! {
    FrameTruncated "frame_truncated" "the frame ends within its link header or network header (FW-04)",
    IpVersion "ip_version" "the IP version is not that of the Ethernet type (FW-04)",
    IpHeaderLength "ip_header_length" "the IP header length is below 20 bytes or beyond the frame (FW-04)",
    IpTotalLength "ip_total_length" "the IP total length is below the header or beyond the frame (FW-04)",
    IpChecksum "ip_checksum" "the IPv4 header checksum is wrong (FW-04)",
    SourceRoute "source_route" "the IPv4 options ask for source routing (FW-04)",
    Ipv6Extensions "ipv6_extensions" "the chain of IPv6 extension headers is broken or too long (FW-04)",
    TransportTruncated "transport_truncated" "the packet ends within its transport header (FW-04)",
    TcpFlags "tcp_flags" "an impossible combination of TCP flags (CT-08)",
    TransportChecksum "transport_checksum" "the transport checksum is wrong (CT-08)",
    Fragment "fragment" "a later fragment of a datagram whose first one was not forwarded (NAT-08)",
    FragmentTiny "fragment_tiny" "a first fragment that ends within its transport header (NAT-08)",
    FragmentLength "fragment_length" "a fragment that no datagram can have, or of a datagram with such a one (NAT-08)",
    FragmentOverlap "fragment_overlap" "a fragment that overlaps or contradicts another, or of a datagram with such a one (NAT-08)",
    FragmentDuplicate "fragment_duplicate" "a fragment that has come before (NAT-08)",
    FragmentTimeout "fragment_timeout" "a fragment whose datagram's first one did not come in time (NAT-08)",
    FragmentOverflow "fragment_overflow" "too many fragments wait for their first ones, or one datagram has too many (NAT-08)",
    MartianSource "martian_source" "a source address that no packet may have (FW-03)",
    MartianDestination "martian_destination" "a destination address that no packet may have (FW-03)",
    ReversePath "reverse_path" "answers to the source would not leave by the port that it came in by (FW-03)",
    BeyondScope "beyond_scope" "a link-local source, which is not forwarded off its link (FW-03)",
    OtherHost "other_host" "the link address is another host's",
    NotForPollux "not_for_pollux" "not for Pollux to forward, and not to be passed to the host (FW-06)",
    Invalid "invalid" "belongs to no connection and cannot begin one (CT-08)",
    IcmpQuote "icmp_quote" "an ICMP error that quotes too little of a translated packet to be translated back (NAT-07)",
    Redirect "redirect" "an ICMP redirect about a translated connection (NAT-07)",
    TunnelPeer "tunnel_peer" "a tunnel's packet from an address that is no peer of it (TN-01)",
    TunnelEcn "tunnel_ecn" "a tunnel's packet marks congestion, and the one inside cannot carry the mark (RFC 6040)",
    TunnelLoop "tunnel_loop" "the way to a tunnel's peer leads into a tunnel or to the host (TN-01)",
    TtlExceeded "ttl_exceeded" "the TTL or hop limit reached 0 (FW-01)",
    TooBig "too_big" "larger than the MTU of the way out, and not to be fragmented (FW-02)",
    NoRoute "no_route" "no route to the destination (RT-02)",
    RouteBlackhole "route_blackhole" "the route is a blackhole (RT-02)",
    RouteUnreachable "route_unreachable" "the route says unreachable (RT-02)",
    RouteProhibit "route_prohibit" "the route says prohibit (RT-02)",
    NeighbourQueue "neighbour_queue" "too many packets wait for neighbours, or too many neighbours are in use (NB-02)",
    NeighbourFailed "neighbour_failed" "the neighbour did not answer (NB-02)",
    NeighbourDiscovery "neighbour_discovery" "a message of neighbour discovery that is not valid (NB-01)",
    NoEndpoints "no_endpoints" "the Service has no endpoint at all: rejected (NO-01)",
    NoLocalEndpoints "no_local_endpoints" "policy Local, and no endpoint on this node (NO-02, NO-03)",
    SourceRange "source_range" "the source is outside the Service's source ranges (NO-04)",
    LoopbackGuard "loopback_guard" "addressed to loopback from outside of it (NO-07)",
    SnatExhausted "snat_exhausted" "no free source port for masquerading (NAT-05)",
    FlowTableFull "flow_table_full" "no room for a new connection (CT-09)",
    PoolEmpty "pool_empty" "no free buffer",
    TransmitFull "transmit_full" "the port's transmit ring was full",
    PortDown "port_down" "the port is down or gone",
    NoHostPort "no_host_port" "for the host, and there is no host port",
    Unsupported "unsupported" "an IP version that this node's configuration does not forward",
}

/// One worker's counters. Plain numbers: one writer, read between bursts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames that ports received.
    pub received: u64,
    /// Frames that the forwarder made itself: ICMP errors, ARP, NDP.
    pub originated: u64,
    /// Frames gained by cutting one into several.
    pub split: u64,
    /// Frames that ports accepted for sending, to the host port included.
    pub transmitted: u64,
    /// Frames left to the kernel on ports that it shares, and frames that ended here (ARP and NDP, answered).
    pub delivered: u64,
    /// Frames that wait for a neighbour now.
    pub held: u64,
    /// Frames lost by joining several into one.
    pub joined: u64,
    /// Frames handed to other workers, whose ports are to send them.
    pub handed: u64,
    /// Frames taken from other workers.
    pub taken: u64,
    /// Drops by reason, at the reason's number.
    pub dropped: Drops,
}

/// One port's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that the port accepted for sending.
    pub transmitted: u64,
    /// Their bytes.
    pub transmitted_bytes: u64,
    /// Frames that it refused: a full ring, or a port that is down.
    pub refused: u64,
    /// Frames that the backend lost before they were received.
    pub missed: u64,
    /// Failed calls of the backend.
    pub errors: u64,
}

/// Counters by [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([u64; Reason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Drops([0; Reason::COUNT])
    }
}

impl Drops {
    /// Counts one drop.
    #[inline]
    pub fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Drops for `reason`.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// All drops.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that were met, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().copied().zip(self.0.iter().copied()).filter(|(_, count)| *count > 0)
    }
}

impl Stats {
    /// The sum of two sets of counters.
    pub fn plus(&self, other: &Stats) -> Stats {
        let mut dropped = self.dropped.clone();
        for (sum, more) in dropped.0.iter_mut().zip(other.dropped.0) {
            *sum += more;
        }
        Stats {
            received: self.received + other.received,
            originated: self.originated + other.originated,
            split: self.split + other.split,
            transmitted: self.transmitted + other.transmitted,
            delivered: self.delivered + other.delivered,
            held: self.held + other.held,
            joined: self.joined + other.joined,
            handed: self.handed + other.handed,
            taken: self.taken + other.taken,
            dropped,
        }
    }

    /// The two sides of FW-05's balance: frames that came to be, and what became of them.
    pub fn balance(&self) -> (u64, u64) {
        (
            self.received + self.originated + self.split + self.taken,
            self.transmitted + self.delivered + self.held + self.dropped.total() + self.joined + self.handed,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_names_and_keep_their_places() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::COUNT);
        let mut drops = Drops::default();
        for (number, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, number);
            drops.count(reason);
        }
        assert_eq!(drops.total(), Reason::COUNT as u64);
    }
}
