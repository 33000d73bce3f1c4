//! The names that kube-proxy gives its chains, so that Pollux says `KUBE-SVC-XJWXQFJLXSXKRMSG` for the same
//! thing. A name is a prefix and the first 16 characters of the base32 form of a SHA-256.

use std::fmt::{self, Display};

use data_encoding::BASE32;
use pollux_dataplane::packet::{Family, Protocol};
use pollux_dataplane::service::Backend;
use sha2::{Digest, Sha256};

use crate::cluster::NamespacedName;

/// The identity of a service port (OBJ-03). Printed as kube-proxy prints it: `default/myapp:http`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePortId {
    /// The Service.
    pub service: NamespacedName,
    /// The port's name; `""` for a port without one.
    pub port_name: String,
    /// The protocol.
    pub protocol: Protocol,
}

/// The chains of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chain {
    /// KUBE-SVC: chooses among the cluster's endpoints.
    Cluster,
    /// KUBE-SVL: chooses among this node's endpoints.
    Local,
    /// KUBE-EXT: external traffic, by its policy.
    External,
    /// KUBE-FW: a load-balancer IP's source ranges.
    Firewall,
}

impl ServicePortId {
    /// The name of one of the service port's chains.
    pub fn chain(&self, chain: Chain) -> String {
        let prefix = match chain {
            Chain::Cluster => "KUBE-SVC",
            Chain::Local => "KUBE-SVL",
            Chain::External => "KUBE-EXT",
            Chain::Firewall => "KUBE-FW",
        };
        format!("{prefix}-{}", hash(&format!("{self}{}", self.protocol)))
    }

    /// The name of an endpoint's chain, KUBE-SEP.
    pub fn endpoint_chain<A: Family>(&self, backend: Backend<A>) -> String {
        let endpoint = endpoint_name(backend);
        format!("KUBE-SEP-{}", hash(&format!("{self}{}{endpoint}", self.protocol)))
    }
}

impl ServicePortId {
    /// A number that is this service port's at any time and on any node: 64 bits of a hash of its name. Two
    /// that share one by chance (1 in 10^11 with 10,000 of them) would share their clients' affinity.
    pub fn number(&self) -> u64 {
        // No part of a name has a NUL in it.
        let text = format!("{self}\0{}", self.protocol);
        let digest = Sha256::digest(text.as_bytes());
        u64::from_be_bytes(digest[..8].try_into().expect("8 of 32 bytes"))
    }
}

impl Display for ServicePortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        match self.port_name.as_str() {
            "" => Ok(()),
            name => write!(f, ":{name}"),
        }
    }
}

/// `10.0.0.1:80` or `[fd00::1]:80`: an endpoint's name, and by it its place among the others (AF-02).
pub fn endpoint_name<A: Family>(backend: Backend<A>) -> String {
    std::net::SocketAddr::new(backend.address.into(), backend.port).to_string()
}

fn hash(text: &str) -> String {
    // 16 characters of base32 are 10 bytes.
    BASE32.encode(&Sha256::digest(text.as_bytes())[..10])
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_dataplane::packet::{V4, V6};

    fn id(namespace: &str, name: &str, port_name: &str, protocol: Protocol) -> ServicePortId {
        ServicePortId {
            service: NamespacedName::new(namespace, name),
            port_name: port_name.to_string(),
            protocol,
        }
    }

    #[test]
    fn names_are_those_of_real_dumps() {
        let rules = include_str!("../../../tests/corpus/seed-myapp/iptables-save.txt");
        let myapp = id("default", "myapp", "", Protocol::TCP);
        for (backend, chain) in [
            ("10.151.51.7", "KUBE-SEP-K3EELAHYPDVFVIPU"),
            ("10.151.49.8", "KUBE-SEP-OKTYPU7VJGWVVR5V"),
            ("10.151.51.8", "KUBE-SEP-Y6Q4QAGGLGL6PUEO"),
        ] {
            let backend = Backend::<V4> { address: backend.parse().unwrap(), port: 80 };
            assert_eq!(myapp.endpoint_chain(backend), chain);
            assert!(rules.contains(&format!(
                "{chain} -p tcp -m comment --comment \"{myapp}\" -m tcp -j DNAT --to-destination {}",
                endpoint_name(backend)
            )));
        }
        assert_eq!(myapp.chain(Chain::Cluster), "KUBE-SVC-XJWXQFJLXSXKRMSG");
        assert!(rules.contains("--dport 80 -j KUBE-SVC-XJWXQFJLXSXKRMSG"));
        // Others, from dumps of kube-proxy 1.36.
        assert_eq!(
            id("kube-system", "svc1", "p0", Protocol::UDP).chain(Chain::External),
            "KUBE-EXT-LJWHQFIFSNS34GGG"
        );
        assert_eq!(
            id("prod", "svc0", "p1", Protocol::SCTP).chain(Chain::External),
            "KUBE-EXT-OSGK3QZLF7D6THU7"
        );
        assert_eq!(id("default", "lbl", "", Protocol::TCP).chain(Chain::Local), "KUBE-SVL-D2MFFVPL6PYWC25E");
        assert_eq!(
            id("default", "lbs", "", Protocol::TCP).chain(Chain::Firewall),
            "KUBE-FW-FYZB2HTOW53NRIPL"
        );
    }

    #[test]
    fn an_ipv6_endpoint_is_named_in_brackets() {
        let backend = Backend::<V6> { address: "fd00::1".parse().unwrap(), port: 80 };
        assert_eq!(endpoint_name(backend), "[fd00::1]:80");
    }
}
