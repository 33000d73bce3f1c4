//! What the kernel's tracker lets people set beside its timeouts, by the last names of its sysctls
//! (`net.netfilter.nf_conntrack_…`).

/// Settings of the tracker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sysctls {
    /// `nf_conntrack_tcp_be_liberal`: segments outside of the receiver's window are taken too. On by default,
    /// other than in the kernel (CT-07).
    pub tcp_be_liberal: bool,
    /// `nf_conntrack_tcp_loose`: connections whose beginning was not seen are picked up (CT-06).
    pub tcp_loose: bool,
    /// `nf_conntrack_tcp_max_retrans`: how often a segment may be repeated, without an answer, before
    /// [`Timeout::TcpRetrans`](super::Timeout::TcpRetrans) bounds the connection's time.
    pub tcp_max_retrans: u8,
    /// `nf_conntrack_tcp_ignore_invalid_rst`: a RST below what its receiver has acknowledged already is not
    /// INVALID (CT-07).
    pub tcp_ignore_invalid_rst: bool,
    /// `nf_conntrack_acct`: packets and bytes of each direction are counted (CT-11).
    pub acct: bool,
}

impl Default for Sysctls {
    fn default() -> Self {
        Sysctls {
            tcp_be_liberal: true,
            tcp_loose: true,
            tcp_max_retrans: 3,
            tcp_ignore_invalid_rst: false,
            acct: false,
        }
    }
}

impl Sysctls {
    /// Sets one by the last name of its sysctl. A switch is on when `value` is not 0. Says whether there is
    /// such a setting here.
    pub fn set(&mut self, name: &str, value: u32) -> bool {
        let switch = match name {
            "nf_conntrack_tcp_be_liberal" => &mut self.tcp_be_liberal,
            "nf_conntrack_tcp_loose" => &mut self.tcp_loose,
            "nf_conntrack_tcp_ignore_invalid_rst" => &mut self.tcp_ignore_invalid_rst,
            "nf_conntrack_acct" => &mut self.acct,
            "nf_conntrack_tcp_max_retrans" => {
                self.tcp_max_retrans = u8::try_from(value).unwrap_or(u8::MAX);
                return true;
            }
            _ => return false,
        };
        *switch = value != 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_05_settings_are_found_by_their_sysctl() {
        let mut sysctls = Sysctls::default();
        assert!(sysctls.set("nf_conntrack_tcp_be_liberal", 0) && !sysctls.tcp_be_liberal);
        assert!(sysctls.set("nf_conntrack_tcp_loose", 0) && !sysctls.tcp_loose);
        assert!(sysctls.set("nf_conntrack_tcp_ignore_invalid_rst", 1) && sysctls.tcp_ignore_invalid_rst);
        assert!(sysctls.set("nf_conntrack_acct", 1) && sysctls.acct);
        assert!(sysctls.set("nf_conntrack_tcp_max_retrans", 7));
        assert_eq!(sysctls.tcp_max_retrans, 7);
        assert!(!sysctls.set("nf_conntrack_udp_timeout", 7));
    }
}
