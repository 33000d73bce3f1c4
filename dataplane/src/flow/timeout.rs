//! How long a connection lives without packets (CT-05): one table, from which code, configuration and
//! documentation read. A packet of a connection moves its deadline by the timeout of the state it leaves.

use std::fmt;
use std::time::Duration;

/// Declares the timeouts: name of the sysctl, default in seconds, what it bounds.
macro_rules! timeouts {
    ($($variant:ident $name:literal $seconds:literal $doc:literal,)*) => {
        /// A timeout of CT-05.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Timeout { $(#[doc = $doc] $variant,)* }

        impl Timeout {
            /// All timeouts, in the order of their numbers.
            pub const ALL: &'static [Timeout] = &[$(Timeout::$variant,)*];

            /// The last name of the sysctl that sets it in Linux (`net.netfilter.…`).
            pub fn name(self) -> &'static str {
                match self { $(Timeout::$variant => $name,)* }
            }

            /// Linux's default.
            pub const fn default_value(self) -> Duration {
                match self { $(Timeout::$variant => Duration::from_secs($seconds),)* }
            }

            /// One sentence for people.
            pub fn description(self) -> &'static str {
                match self { $(Timeout::$variant => $doc,)* }
            }
        }

        const COUNT: usize = [$(Timeout::$variant,)*].len();
    };
}

timeouts! {
    TcpSynSent "nf_conntrack_tcp_timeout_syn_sent" 120 "a SYN was sent; a repeated one does not renew it",
    TcpSynRecv "nf_conntrack_tcp_timeout_syn_recv" 60 "a SYN-ACK answered",
    TcpEstablished "nf_conntrack_tcp_timeout_established" 432000 "the handshake is done",
    TcpFinWait "nf_conntrack_tcp_timeout_fin_wait" 120 "one side sent a FIN",
    TcpCloseWait "nf_conntrack_tcp_timeout_close_wait" 60 "a FIN was acknowledged, the other side is open",
    TcpLastAck "nf_conntrack_tcp_timeout_last_ack" 30 "both sides sent a FIN",
    TcpTimeWait "nf_conntrack_tcp_timeout_time_wait" 120 "both FINs were acknowledged",
    TcpClose "nf_conntrack_tcp_timeout_close" 10 "a RST ended it",
    TcpRetrans "nf_conntrack_tcp_timeout_max_retrans" 300 "the most that is left after too many retransmissions",
    TcpUnack "nf_conntrack_tcp_timeout_unacknowledged" 300 "picked up without a handshake, and no reply yet",
    Udp "nf_conntrack_udp_timeout" 30 "UDP, until both sides have sent for two seconds",
    UdpStream "nf_conntrack_udp_timeout_stream" 120 "UDP that both sides have used for at least two seconds",
    Icmp "nf_conntrack_icmp_timeout" 30 "ICMP queries",
    Icmpv6 "nf_conntrack_icmpv6_timeout" 30 "ICMPv6 queries",
    SctpClosed "nf_conntrack_sctp_timeout_closed" 10 "SCTP that an ABORT ended, or that shut down",
    SctpCookieWait "nf_conntrack_sctp_timeout_cookie_wait" 3 "SCTP: an INIT was sent",
    SctpCookieEchoed "nf_conntrack_sctp_timeout_cookie_echoed" 3 "SCTP: the cookie was sent back",
    SctpEstablished "nf_conntrack_sctp_timeout_established" 210 "SCTP: the association is up",
    SctpShutdownSent "nf_conntrack_sctp_timeout_shutdown_sent" 3 "SCTP: the initiator asked to end",
    SctpShutdownRecd "nf_conntrack_sctp_timeout_shutdown_recd" 3 "SCTP: the other side asked to end",
    SctpShutdownAckSent "nf_conntrack_sctp_timeout_shutdown_ack_sent" 3 "SCTP: the end was acknowledged",
    SctpHeartbeatSent "nf_conntrack_sctp_timeout_heartbeat_sent" 30 "SCTP: seen by a heartbeat on a second path",
    Generic "nf_conntrack_generic_timeout" 600 "any other protocol",
}

impl Timeout {
    /// The timeout of that sysctl, if there is one.
    pub fn by_name(name: &str) -> Option<Timeout> {
        Timeout::ALL.iter().copied().find(|timeout| timeout.name() == name)
    }
}

/// The longest timeout that can be set: times of the table are 32-bit milliseconds, compared across their
/// wrap, and must never differ by half of their range (24.8 days).
pub const LONGEST: Duration = Duration::from_secs(20 * 86_400);

/// The value of every [`Timeout`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeouts {
    millis: [u32; COUNT],
}

/// A timeout that cannot be set, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimeoutError {
    /// Which one.
    pub timeout: Timeout,
    /// The value that was refused.
    pub value: Duration,
}

impl fmt::Display for TimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TimeoutError { timeout, value } = self;
        write!(f, "{}: {value:?} is not a timeout (1ms to {} s)", timeout.name(), LONGEST.as_secs())
    }
}

impl std::error::Error for TimeoutError {}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            millis: std::array::from_fn(|index| Timeout::ALL[index].default_value().as_millis() as u32),
        }
    }
}

impl Timeouts {
    /// The value of `timeout`.
    pub fn get(&self, timeout: Timeout) -> Duration {
        Duration::from_millis(u64::from(self.millis(timeout)))
    }

    /// Sets `timeout`, to whole milliseconds.
    ///
    /// # Errors
    /// When `value` is below one millisecond or above [`LONGEST`].
    pub fn set(&mut self, timeout: Timeout, value: Duration) -> Result<(), TimeoutError> {
        if value < Duration::from_millis(1) || value > LONGEST {
            return Err(TimeoutError { timeout, value });
        }
        self.millis[timeout as usize] = value.as_millis() as u32;
        Ok(())
    }

    /// The value of `timeout` in milliseconds.
    #[inline]
    pub(super) fn millis(&self, timeout: Timeout) -> u32 {
        self.millis[timeout as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_05_defaults_are_those_of_linux() {
        let timeouts = Timeouts::default();
        let seconds = |timeout| timeouts.get(timeout).as_secs();
        assert_eq!(seconds(Timeout::TcpSynSent), 120);
        assert_eq!(seconds(Timeout::TcpSynRecv), 60);
        assert_eq!(seconds(Timeout::TcpEstablished), 432_000);
        assert_eq!(seconds(Timeout::TcpFinWait), 120);
        assert_eq!(seconds(Timeout::TcpCloseWait), 60);
        assert_eq!(seconds(Timeout::TcpLastAck), 30);
        assert_eq!(seconds(Timeout::TcpTimeWait), 120);
        assert_eq!(seconds(Timeout::TcpClose), 10);
        assert_eq!(seconds(Timeout::TcpRetrans), 300);
        assert_eq!(seconds(Timeout::TcpUnack), 300);
        assert_eq!(seconds(Timeout::Udp), 30);
        assert_eq!(seconds(Timeout::UdpStream), 120);
        assert_eq!(seconds(Timeout::Icmp), 30);
        assert_eq!(seconds(Timeout::Generic), 600);
        assert_eq!(seconds(Timeout::SctpCookieWait), 3);
        assert_eq!(seconds(Timeout::SctpEstablished), 210);
    }

    #[test]
    fn a_timeout_is_found_by_its_sysctl_and_set_within_bounds() {
        let timeout = Timeout::by_name("nf_conntrack_tcp_timeout_established").unwrap();
        assert_eq!(timeout, Timeout::TcpEstablished);
        assert_eq!(Timeout::by_name("tcp_timeout_established"), None);
        let mut timeouts = Timeouts::default();
        timeouts.set(timeout, Duration::from_secs(86_400)).unwrap();
        assert_eq!(timeouts.get(timeout), Duration::from_secs(86_400));
        assert!(timeouts.set(timeout, LONGEST).is_ok());
        let error = timeouts.set(timeout, LONGEST + Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().starts_with("nf_conntrack_tcp_timeout_established: "));
        assert!(timeouts.set(timeout, Duration::ZERO).is_err());
        assert_eq!(timeouts.get(timeout), LONGEST);
    }
}
