use super::node::{
    Backend, CaptureView, DpdkPages, Foreign, LinkState, Linkdown, MasqueradePorts, Match, OnLink,
    PathMtuDiscovery, ProxyArp, ReversePath, Role, RouteKind, Source, TunnelConfig, XdpConfig, XdpSteer,
};
use super::proxy::{DetectLocal, LocalhostNodePorts, MasqueradePolicy, NodePortSelection};
use super::*;
use pollux_dataplane::capture::Filter;
use pollux_dataplane::port::af_xdp::{Mode, Service, ZeroCopy};
use pollux_dataplane::port::fault::Probability;
use std::time::Duration;

fn read_text(yaml: &str) -> Result<(Config, Vec<String>), String> {
    let file: Arc<Path> = Path::new("config.yaml").into();
    read(&file, document::parse_yaml(yaml)?)
        .map(|(config, warnings)| (config, warnings.iter().map(ToString::to_string).collect()))
        .map_err(|problems| problems.to_string())
}

fn proxy(fields: &str) -> Result<(ProxyConfig, Vec<String>), String> {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    read_text(&format!("{head}{fields}")).map(|(config, warnings)| (config.proxy, warnings))
}

fn node(fields: &str) -> Result<NodeConfig, String> {
    let head = "apiVersion: pollux.dev/v1alpha1\nkind: Node\n";
    read_text(&format!("{head}{fields}")).map(|(config, _)| config.node.unwrap())
}

/// As [`ENS3`], with room for more.
const LISTED: &str =
    "ports:\n- {name: ens3, role: uplink, backend: af_packet, addresses: [172.16.1.50/12]}\n";
const ENS3: &str = "ports: [{name: ens3, role: uplink, backend: af_packet, addresses: [172.16.1.50/12]}]\n";

#[test]
fn hz_03_fields_with_a_meaning_are_honoured() {
    let (config, warnings) = proxy(
        "hostnameOverride: slave1\nmode: iptables\nclusterCIDR: '10.151.0.0/16,fd00:151::/48'\n\
         detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n\
         iptables: {masqueradeAll: true, masqueradeBit: 15, localhostNodePorts: false, syncPeriod: 1m, \
         minSyncPeriod: 2s}\nnodePortAddresses: [172.16.1.0/24]\nbindAddress: 172.16.1.50\n\
         healthzBindAddress: 127.0.0.1:10256\nmetricsBindAddress: 0.0.0.0\n\
         conntrack: {maxPerCore: 0, min: 7, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 5m, \
         tcpBeLiberal: true, udpTimeout: 10s}",
    )
    .unwrap();
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.hostname_override.as_deref(), Some("slave1"));
    assert_eq!(config.cluster_cidrs.len(), 2);
    assert_eq!(config.detect_local, DetectLocal::InterfaceNamePrefix("cali".into()));
    assert_eq!(config.masquerade, MasqueradePolicy::All);
    assert_eq!(config.masquerade_bit, 15);
    assert_eq!(config.localhost_node_ports, LocalhostNodePorts::Disabled);
    assert!(matches!(&config.node_port_addresses, NodePortSelection::Prefixes(p) if p.len() == 1));
    assert_eq!(config.bind_address, Some("172.16.1.50".parse().unwrap()));
    assert_eq!(config.metrics_bind_address, Some("0.0.0.0:10249".parse().unwrap()));
    assert_eq!(config.sync_period, Duration::from_secs(60));
    assert_eq!(config.conntrack.min, 7);
    assert_eq!(config.conntrack.tcp_established, None, "0s leaves the default");
    assert_eq!(config.conntrack.tcp_close_wait, Some(Duration::from_secs(300)));
    assert_eq!(config.conntrack.tcp_be_liberal, Some(true));
}

#[test]
fn hz_03_an_empty_document_is_kube_proxys_defaults() {
    let (config, warnings) = proxy("").unwrap();
    assert_eq!(config, ProxyConfig::default());
    assert_eq!(warnings, [""; 0]);
    let unset = "clusterCIDR: ''\nconntrack: {maxPerCore: null}\niptables: {syncPeriod: 0s}\n\
                 detectLocal: {bridgeInterface: ''}\nnodePortAddresses: null\nbindAddress: 0.0.0.0\n\
                 healthzBindAddress: ''\n";
    assert_eq!(proxy(unset).unwrap().0, ProxyConfig::default());
}

#[test]
fn hz_03_fields_and_modes_without_meaning_are_reported() {
    let (config, warnings) = proxy(
        "mode: ipvs\nipvs: {strictARP: true}\nnftables: {masqueradeAll: true}\nfeatureGates: {A: true}",
    )
    .unwrap();
    assert_eq!(
        warnings,
        [
            "config.yaml: KubeProxyConfiguration: featureGates has no meaning here, ignored",
            "config.yaml: KubeProxyConfiguration: ipvs has no meaning here, ignored",
            "config.yaml: KubeProxyConfiguration: mode ipvs has no meaning here (the semantics are those of \
             iptables), ignored",
            "config.yaml: KubeProxyConfiguration: nftables has no meaning in this mode, ignored",
        ]
    );
    assert_eq!(config.masquerade, MasqueradePolicy::NotLocal);
}

#[test]
fn hz_03_mode_nftables_reads_its_own_section() {
    let (config, warnings) =
        proxy("mode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 20}").unwrap();
    assert_eq!(config.masquerade, MasqueradePolicy::All);
    assert_eq!(config.masquerade_bit, 20);
    assert_eq!(warnings.len(), 1);
}

#[test]
fn unknown_fields_are_errors_that_name_them() {
    assert_eq!(
        proxy("clusterCidr: 10.0.0.0/8").unwrap_err(),
        "config.yaml: KubeProxyConfiguration: clusterCidr: unknown field `clusterCidr`"
    );
    assert_eq!(
        node("ports: [{name: a, role: pod, backend: tap, speed: 10}]").unwrap_err(),
        "config.yaml: Node: ports[0].speed: unknown field `speed`"
    );
}

#[test]
fn all_errors_of_kube_proxys_document_are_reported_at_once() {
    let errors = proxy(
        "mode: userspace\nclusterCIDR: 10.0.0.0\ndetectLocalMode: BridgeInterface\n\
         iptables: {masqueradeBit: 32, syncPeriod: 1}\nnodePortAddresses: [primary, 10.0.0.0/8]\n\
         bindAddress: here\nhealthzBindAddress: 'x:1'\nconntrack: {min: -1, udpTimeout: -1s}",
    );
    // syncPeriod as a number is an error of type, and hides the others.
    assert!(errors.unwrap_err().contains("iptables.syncPeriod: invalid type"));
    let errors = proxy(
        "mode: userspace\nclusterCIDR: 10.0.0.0\ndetectLocalMode: BridgeInterface\n\
         iptables: {masqueradeBit: 32, syncPeriod: '1'}\nnodePortAddresses: [primary, 10.0.0.0/8]\n\
         bindAddress: here\nhealthzBindAddress: 'x:1'\nconntrack: {min: -1, udpTimeout: -1s}",
    )
    .unwrap_err();
    let lines: Vec<_> = errors
        .lines()
        .map(|line| line.strip_prefix("config.yaml: KubeProxyConfiguration: ").unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            "mode \"userspace\" is not iptables, nftables or ipvs",
            "iptables.masqueradeBit 32 is not in 0-31",
            "iptables.syncPeriod \"1\" is not a duration (30s, 1h0m0s)",
            "clusterCIDR \"10.0.0.0\" is not an address prefix",
            "detectLocal.bridgeInterface is missing, detectLocalMode needs it",
            "nodePortAddresses: primary stands beside other values; it must be alone",
            "bindAddress \"here\" is not an IP address",
            "healthzBindAddress \"x:1\" is not an address and port (0.0.0.0:10256)",
            "conntrack.min -1 is not a number of connections (0-4294967295)",
            "conntrack.udpTimeout \"-1s\" is not a duration (30s, 1h0m0s)",
        ]
    );
}

#[test]
fn a_second_document_of_a_kind_and_a_foreign_kind_are_errors() {
    let doc = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    assert!(
        read_text(&format!("{doc}---\n{doc}"))
            .unwrap_err()
            .ends_with("is the second document of kind KubeProxyConfiguration; the first is in config.yaml")
    );
    assert!(
        read_text("apiVersion: v1\nkind: Service\n")
            .unwrap_err()
            .contains("kind Service of v1 is not configuration")
    );
    assert!(read_text("mode: iptables\n").unwrap_err().contains("no apiVersion"));
}

#[test]
fn a_node_document_is_read_whole() {
    let config = node(
        "workers: 2\nflowTable: {connections: 1000}\naffinity: {clients: 500}\nserviceProxyName: edge\n\
         sysctl: {nf_conntrack_udp_timeout: 20}\n\
         ports:\n\
         - {name: ens3, role: uplink, backend: af_packet, linkAddress: 'fa:16:3e:92:11:ca', mtu: 1500, \
            addresses: [172.16.1.50/12], index: 3}\n\
         - {name: pod8, role: pod, backend: tap, interface: caliee93b0bdd66, proxyArp: true, \
            rpFilter: off, ignoreRoutesWithLinkdown: true, index: 9}\n\
         interfaces:\n\
         - {name: docker0, addresses: [172.17.0.1/16], index: 5}\n\
         - {name: lo, addresses: [127.0.0.1/8], index: 1}\n\
         routes:\n\
         - {to: default, via: 172.16.0.1, source: 172.16.1.50, metric: 100}\n\
         - {to: 10.151.51.0/24, kind: blackhole}\n\
         - {to: 10.151.51.8, dev: pod8}\n\
         - {to: 172.17.0.0/16, dev: docker0, linkDown: true}\n\
         - {to: 10.1.0.0/16, via: 192.168.0.1, dev: docker0, onlink: true}\n\
         - {to: 10.2.0.0/16, nextHops: [{via: 172.16.0.1, weight: 3}, {via: 172.16.0.2, dev: ens3}]}\n\
         neighbours: kernel\n\
         masquerade:\n  ports: keep\n  rules:\n  - {name: docker, source: 172.17.0.0/16, outPort: '! docker0'}\n",
    )
    .unwrap();
    assert_eq!((config.workers, config.connections, config.clients), (Some(2), Some(1000), Some(500)));
    assert_eq!(config.sysctl["nf_conntrack_udp_timeout"], 20);
    let ens3 = config.port("ens3").unwrap();
    assert_eq!((ens3.role, ens3.backend, ens3.foreign), (Role::Uplink, Backend::AfPacket, Foreign::Host));
    assert_eq!((ens3.interface.as_str(), ens3.mtu), ("ens3", Some(1500)));
    assert_eq!(ens3.addresses[0].to_string(), "172.16.1.50/12");
    let pod = config.port("pod8").unwrap();
    assert_eq!(pod.interface, "caliee93b0bdd66");
    assert_eq!((pod.proxy_arp, pod.foreign), (ProxyArp::On, Foreign::Drop));
    assert_eq!((pod.reverse_path, pod.linkdown), (Some(ReversePath::Off), Some(Linkdown::Ignored)));
    assert_eq!((ens3.reverse_path, ens3.linkdown), (None, None));
    let by_age: Vec<_> = config.interfaces_by_age().iter().map(|(name, _)| *name).collect();
    assert_eq!(by_age, ["lo", "ens3", "docker0", "pod8"]);
    let Source::Listed(routes) = &config.routes else {
        panic!("routes are listed");
    };
    assert_eq!(routes[0].to.to_string(), "0.0.0.0/0");
    assert_eq!(routes[0].next_hops[0].dev, "ens3", "from the subnet of the gateway");
    assert_eq!(routes[0].metric, 100);
    assert_eq!(routes[1].kind, RouteKind::Blackhole);
    assert_eq!((routes[2].to.len(), routes[2].next_hops[0].via), (32, None));
    assert_eq!(routes[3].next_hops[0].link, LinkState::Down);
    assert_eq!(routes[4].next_hops[0].onlink, OnLink::Yes);
    assert_eq!(routes[5].next_hops[0].weight, 3);
    assert_eq!(config.neighbours, Source::Kernel);
    assert_eq!(config.masquerade_ports, MasqueradePorts::Keep);
    let rule = &config.masquerade_rules[0];
    assert!(matches!(&rule.source, Some(Match::Is(source)) if source.to_string() == "172.17.0.0/16"));
    assert_eq!(rule.out_port, Some(Match::IsNot("docker0".into())));
}

#[test]
fn devices_of_dpdk_are_read_and_refused_elsewhere() {
    let config = node(
        "dpdk: {hugepages: false, memory: 96, arguments: [--log-level=debug]}\nports:\n\
         - {name: ens3, role: uplink, backend: dpdk}\n\
         - {name: fast, role: uplink, backend: dpdk, device: '0000:03:00.0,arg=1', queues: 4}\n\
         - {name: tap, role: pod, backend: dpdk, device: 'net_tap0,iface=dtap0'}\n",
    )
    .unwrap();
    assert_eq!((config.dpdk.pages, config.dpdk.memory), (DpdkPages::Ordinary, Some(96)));
    assert_eq!(config.dpdk.arguments, ["--log-level=debug"]);
    assert_eq!(config.buffers_to_receive(), 6 * 2 * 1024);
    let device = |name: &str| config.port(name).unwrap().device.clone().unwrap();
    assert_eq!(device("ens3").device, "net_af_packet_ens3,iface=ens3");
    assert_eq!(device("ens3").shared_interface(), Some("ens3"));
    assert_eq!((device("fast").pci_address(), device("fast").queues), (Some("0000:03:00.0"), Some(4)));
    assert_eq!((device("tap").pci_address(), device("tap").shared_interface()), (None, None));

    let errors = node(
        "dpdk: {memory: 1}\nports:\n\
         - {name: a, role: uplink, backend: af_packet, device: net_tap0, queues: 2}\n\
         - {name: b, role: uplink, backend: dpdk, device: 'net tap', queues: 0}\n\
         - {name: c, role: uplink, backend: dpdk, device: 'net_af_xdp0,iface=d'}\n\
         - {name: 'cali*', role: pod, backend: dpdk}\n",
    )
    .unwrap_err();
    let lines: Vec<_> = errors.lines().map(|line| line.strip_prefix("config.yaml: Node").unwrap()).collect();
    assert_eq!(
        lines,
        [
            ": dpdk.memory 1 is not in 32-1048576",
            " port a: has device, which only backend dpdk has",
            " port a: has queues, which only backend dpdk has",
            " port b: queues 0 is not in 1-1024",
            " port b: device \"net tap\" is not a PCI address (0000:03:00.0) or a virtual device (net_tap0,iface=x)",
            " port c: device net_af_xdp0 is on d, and interface says c: they must be the same",
            " port cali*: is a pattern of interfaces, which its backend does not have",
        ]
    );
}

#[test]
fn all_errors_of_a_node_document_are_reported_at_once() {
    let errors = node(
        "workers: 0\naffinity: {clients: 0}\nsysctl: {nf_conntrack_tcp_timeout: 5, nf_conntrack_udp_timeout: -3}\n\
         ports:\n\
         - {name: ens3, role: uplink, backend: af_packet, linkAddress: 'ff:16:3e:92:11', mtu: 60, \
            addresses: [172.16.1.500/12]}\n\
         - {name: ens3, role: host, backend: tap}\n\
         - {name: an-interface-name, role: host, backend: tap, addresses: [10.0.0.1/24]}\n\
         routes:\n\
         - {to: default, via: 172.16.0.1, dev: ens4}\n\
         - {to: 10.1.0.0/16, via: 'fd00::1', dev: ens3, onlink: true}\n\
         - {to: 10.2.0.0/16, kind: blackhole, dev: ens3}\n\
         - {to: 10.3.0.0/16}\n\
         - {to: 10.4.0.0/16, via: 10.9.0.1}\n\
         - {to: 10.5.0.0/16, via: 10.0.9.1, dev: an-interface-name}\n\
         - {to: 10.6.0.0/16, dev: ens3}\n\
         - {to: 10.6.0.0/16, dev: ens3}\n\
         neighbours: [{address: 10.0.0.2, linkAddress: zz, dev: eth9}]\n\
         masquerade: {rules: [{source: 10.0.0.0/8, destination: '!fd00::/8', outPort: '!docker0'}]}\n",
    )
    .unwrap_err();
    let lines: Vec<_> = errors.lines().map(|line| line.strip_prefix("config.yaml: Node").unwrap()).collect();
    assert_eq!(
        lines,
        [
            ": workers 0 is not in 1-1024",
            ": affinity.clients 0 is not in 1-268435456",
            ": sysctl.nf_conntrack_tcp_timeout is not known",
            ": sysctl.nf_conntrack_udp_timeout -3 is not in 1-1728000",
            " port ens3: linkAddress ff:16:3e:92:11 is not a link address (six bytes in hex, aa:bb:cc:dd:ee:ff)",
            " port ens3: mtu 60 is not in 68-65535",
            " port ens3: addresses \"172.16.1.500/12\" is not an address with a prefix length (172.16.1.50/12)",
            " port ens3: name ens3 is used by two ports or interfaces",
            " port an-interface-name: name \"an-interface-name\" is not an interface name (1 to 15 characters, no \
             space, / or !)",
            " port an-interface-name: role host is taken by port ens3; there can be one host port",
            " route default: dev ens4 is not a port or interface",
            " route 10.1.0.0/16: via fd00::1 is of the other address family",
            " route 10.2.0.0/16: drops its packets, so it has no via, dev or nextHops",
            " route 10.3.0.0/16: has no via and no dev",
            " route 10.4.0.0/16: via 10.9.0.1 lies in no subnet of a port: name its dev",
            " route 10.6.0.0/16: is there twice with metric 0 (several ways are nextHops)",
            " route 10.5.0.0/16: via 10.0.9.1 is not on the link of an-interface-name (or say onlink)",
            " neighbour 10.0.0.2: dev eth9 is not a port or interface",
            " neighbour 10.0.0.2: linkAddress zz is not a link address (six bytes in hex, aa:bb:cc:dd:ee:ff)",
            " masquerade rule 1: source and destination are of different address families",
            " masquerade rule 1: outPort docker0 is not a port or interface",
        ]
    );
}

#[test]
fn an_error_inside_a_list_keeps_its_path() {
    let text = format!("{ENS3}routes: [{{to: default, via: 172.16.0.1, metric: high}}]");
    assert!(node(&text).unwrap_err().contains("routes[0].metric: invalid type: string \"high\""));
    assert!(node("routes: kernal").unwrap_err().contains("a list or the word kernel"));
}

#[test]
fn an_unquoted_negation_is_not_lost() {
    let text = format!("{ENS3}masquerade: {{rules: [{{outPort: !ens3}}]}}");
    assert!(node(&text).unwrap_err().contains("tag"), "YAML takes it for a tag");
}

#[test]
fn index_is_for_all_or_for_none() {
    let text = format!("{ENS3}interfaces: [{{name: lo, index: 1}}]");
    assert!(node(&text).unwrap_err().ends_with("index must be set for every port and interface or for none"));
}

#[test]
fn faults_of_a_port_are_probabilities_a_delay_and_a_seed() {
    let faults = |text: &str| {
        node(&format!("ports: [{{name: ens3, role: uplink, backend: af_packet, faults: {text}}}]\n"))
            .map(|node| node.ports[0].faults)
    };
    let read = faults("{loss: 0.5, duplicate: 1, corrupt: 0, delay: 1.5ms, seed: 7}").unwrap().unwrap();
    let half = Probability::new(0.5).unwrap();
    assert_eq!((read.loss, read.duplicate), (half, Probability::new(1.0).unwrap()));
    assert_eq!((read.reorder, read.corrupt), (Probability::NEVER, Probability::NEVER));
    assert_eq!((read.delay, read.seed), (Duration::from_micros(1500), 7));
    assert_eq!(node(ENS3).unwrap().ports[0].faults, None);

    let refused = |text: &str| faults(text).unwrap_err();
    let port = "config.yaml: Node port ens3";
    assert_eq!(refused("{loss: 1.5}"), format!("{port}: faults.loss 1.5 is not a probability (0 to 1)"));
    assert_eq!(
        refused("{reorder: -0.1}"),
        format!("{port}: faults.reorder -0.1 is not a probability (0 to 1)")
    );
    assert_eq!(
        refused("{delay: 11s}"),
        format!("{port}: faults.delay \"11s\" is not a duration from 0 to 10s")
    );
    assert!(refused("{los: 0.1}").contains("los"));
}

#[test]
fn a_port_s_frames_go_to_a_file_or_the_log() {
    let port = |text: &str| {
        node(&format!("ports: [{{name: ens3, role: uplink, backend: af_packet, {text}}}]\n"))
            .map(|node| node.ports[0].clone())
    };
    let read =
        port("capture: {file: /tmp/x.pcapng, filter: tcp port 80, snapLength: 64}, trace: {view: wire}");
    let read = read.unwrap();
    let capture = read.capture.unwrap();
    assert_eq!(capture.file, PathBuf::from("/tmp/x.pcapng"));
    assert_eq!((capture.watch.snap_len, capture.watch.view), (64, CaptureView::Forwarder));
    assert_eq!(Ok(capture.watch.filter), "tcp port 80".parse::<Filter>());
    assert_eq!(read.trace.unwrap().view, CaptureView::Wire);

    let refused = |text: &str| port(text).unwrap_err();
    let name = "config.yaml: Node port ens3";
    assert_eq!(
        refused("capture: {file: x, filter: port http}"),
        format!("{name}: capture.filter \"port http\": port http: is not a number from 0 to 65535")
    );
    assert_eq!(
        refused("capture: {file: x, snapLength: 13}"),
        format!("{name}: capture.snapLength 13 is not in 14-65593")
    );
    assert_eq!(refused("capture: {file: ''}"), format!("{name}: capture.file is empty"));
    assert!(refused("capture: {filter: tcp}").contains("file"));
    assert!(refused("trace: {view: side}").contains("side"));
}

#[test]
fn tn_01_a_tunnel_is_read_with_what_it_does_not_say() {
    let text =
        format!("{LISTED}- {{name: tunl0, role: uplink, backend: ipip, addresses: [10.151.51.0/32]}}\n");
    let config = node(&text).unwrap();
    let tunnel = config.port("tunl0").unwrap().tunnel.as_ref().unwrap();
    let nothing_said =
        TunnelConfig { local: None, ttl: Some(64), path_mtu_discovery: PathMtuDiscovery::On, peers: None };
    assert_eq!(*tunnel, nothing_said);
    assert_eq!(config.port("ens3").unwrap().tunnel, None);
    let said = "tunnel: {local: 172.16.1.50, ttl: inherit, pathMtuDiscovery: false, peers: [172.16.2.77]}";
    let text = format!("{LISTED}- {{name: tunl0, role: uplink, backend: ipip, {said}}}\n");
    let config = node(&text).unwrap();
    let said = TunnelConfig {
        local: Some("172.16.1.50".parse().unwrap()),
        ttl: None,
        path_mtu_discovery: PathMtuDiscovery::Off,
        peers: Some(vec!["172.16.2.77".parse().unwrap()]),
    };
    assert_eq!(config.port("tunl0").unwrap().tunnel, Some(said));
}

#[test]
fn tn_01_what_is_wrong_with_a_tunnel_is_said_in_a_line_each() {
    let text = format!(
        "{LISTED}- {{name: tunl0, role: pod, backend: ipip, proxyArp: true, foreign: drop, \
            linkAddress: '02:00:00:00:00:01', tunnel: {{local: 'fd00::1', ttl: 300, peers: [far]}}}}\n\
         - {{name: tunl1, role: uplink, backend: ipip, tunnel: {{ttl: long}}}}\n\
         - {{name: ens4, role: uplink, backend: af_packet, tunnel: {{}}}}\n\
         neighbours: [{{address: 172.16.2.77, linkAddress: '02:00:00:00:00:02', dev: tunl1}}]\n"
    );
    let errors = node(&text).unwrap_err();
    let lines: Vec<_> = errors.lines().map(|line| line.strip_prefix("config.yaml: Node ").unwrap()).collect();
    assert_eq!(
        lines,
        [
            "port tunl0: tunnel.local \"fd00::1\" is not an IPv4 address",
            "port tunl0: tunnel.peers \"far\" is not an IPv4 address",
            "port tunl0: tunnel.ttl 300 is not in 1-255",
            "port tunl0: is a tunnel and cannot have linkAddress",
            "port tunl0: is a tunnel and cannot have proxyArp",
            "port tunl0: is a tunnel and cannot have foreign",
            "port tunl0: is a tunnel and cannot have a role but uplink",
            "port tunl1: tunnel.ttl \"long\" is not a number nor the word inherit",
            "port ens4: has a tunnel and is none: its backend is not ipip",
            "neighbour 172.16.2.77: dev tunl1 is a tunnel, which has no link",
        ]
    );
    assert!(
        node(&format!("{LISTED}- {{name: t, role: uplink, backend: ipip, tunnel: {{remote: 1.2.3.4}}}}"))
            .is_err()
    );
}

#[test]
fn workers_are_as_many_as_the_cores_that_are_listed() {
    assert_eq!(node(ENS3).unwrap().worker_count(), 1);
    assert_eq!(node(&format!("workers: 4\n{ENS3}")).unwrap().worker_count(), 4);
    let config = node(&format!("cores: [3, 1]\n{ENS3}")).unwrap();
    assert_eq!((config.worker_count(), config.cores.as_slice()), (2, [3, 1].as_slice()));
    assert_eq!(node(&format!("workers: 2\ncores: [3, 1]\n{ENS3}")).unwrap().worker_count(), 2);
    let error = node(&format!("workers: 3\ncores: [3, 3, 2000]\n{ENS3}")).unwrap_err();
    for line in [
        "cores has 3 twice",
        "cores 2000 is not in 0-1023",
        "workers 3 is not the number of cores, which is 2",
    ] {
        assert!(error.contains(line), "{error}");
    }
    assert!(node(&format!("workers: 257\n{ENS3}")).unwrap_err().contains("workers 257 is not in 1-256"));
}

#[test]
fn ports_by_pattern_have_its_fields_and_leave_named_interfaces_out() {
    let config = node(&format!(
        "{LISTED}- {{name: cali7, role: uplink, backend: af_packet}}\n\
         - {{name: 'cali[0-9]', role: pod, backend: af_packet, proxyArp: true, mtu: 1480}}\n\
         - {{name: 'cali*', role: pod, backend: af_packet}}\n\
         routes: [{{to: 10.9.0.1/32, dev: cali1}}]\n"
    ))
    .unwrap();
    assert_eq!(config.ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["ens3", "cali7"]);
    let port = config.port_by_pattern("cali1").unwrap();
    assert_eq!((port.name.as_str(), port.interface.as_str(), port.mtu), ("cali1", "cali1", Some(1480)));
    assert_eq!((port.role, port.proxy_arp), (Role::Pod, ProxyArp::On));
    assert_eq!(config.port_by_pattern("cali12").unwrap().mtu, None, "the second pattern");
    assert_eq!(config.port_by_pattern("cali7"), None, "a port by its own name");
    assert_eq!(config.port_by_pattern("eth0"), None);
}

#[test]
fn what_a_pattern_cannot_have_is_said_in_a_line_each() {
    let error = node(
        "ports:\n\
         - {name: 'a*', role: host, backend: tap, interface: x, linkAddress: 02:00:00:00:00:01, \
            addresses: [10.0.0.1/8]}\n\
         - {name: 'b[', role: pod, backend: af_packet}\n\
         - {name: 'c *', role: pod, backend: af_packet}\n\
         interfaces: [{name: 'd*', addresses: [10.0.0.2/8]}]\n\
         routes: [{to: 10.9.0.1/32, dev: e1}]\n",
    )
    .unwrap_err();
    let a = "port a*: stands for any number of interfaces and cannot have";
    for line in [
        format!("{a} interface"),
        format!("{a} linkAddress"),
        format!("{a} addresses"),
        format!("{a} the role host"),
        "port a*: is a pattern of interfaces, which its backend does not have".to_owned(),
        "port b[: name \"b[\" is no pattern of interface names: ".to_owned(),
        "port c *: name \"c *\" is no pattern of interface names: has a space or /".to_owned(),
        "interface d*: is a pattern, which only ports can be".to_owned(),
        "route 10.9.0.1/32: dev e1 is not a port or interface".to_owned(),
    ] {
        assert!(error.contains(&line), "{line}: {error}");
    }
}

#[test]
fn xdp_of_a_port_is_read_and_refused_where_it_has_no_meaning() {
    let port = |xdp: &str| node(&format!("ports: [{{name: ens3, role: uplink, backend: af_xdp{xdp}}}]\n"));
    assert_eq!(port("").unwrap().ports[0].xdp, XdpConfig::default());
    let all = "{mode: generic, zeroCopy: off, queues: 2, ring: 512, leave: [tcp/22, udp/4789, sctp/2905]}";
    let service = |protocol, port| Service { protocol, port };
    assert_eq!(
        port(&format!(", xdp: {all}")).unwrap().ports[0].xdp,
        XdpConfig {
            mode: Mode::Generic,
            zero_copy: ZeroCopy::Off,
            queues: Some(2),
            ring: 512,
            steer: XdpSteer::Unicast,
            leave: vec![service(6, 22), service(17, 4789), service(132, 2905)],
        }
    );
    assert_eq!(port(", xdp: {steer: all}").unwrap().ports[0].xdp.steer, XdpSteer::All);
    let ens3 = "config.yaml: Node port ens3";
    for (xdp, expected) in [
        ("{ring: 100}", "xdp.ring 100 is not a power of two"),
        ("{ring: 16}", "xdp.ring 16 is not in 64-32768"),
        ("{queues: 0}", "xdp.queues 0 is not in 1-1024"),
        (
            "{leave: [icmp/1]}",
            "xdp.leave \"icmp/1\" is not a protocol and a port (tcp/22, udp/4789, sctp/2905)",
        ),
        (
            "{leave: [tcp/0]}",
            "xdp.leave \"tcp/0\" is not a protocol and a port (tcp/22, udp/4789, sctp/2905)",
        ),
        ("{mode: generic, zeroCopy: required}", "xdp.zeroCopy is required, which mode generic never has"),
        ("{steer: all, leave: [tcp/22]}", "xdp.leave leaves services to the kernel, and xdp.steer takes all"),
    ] {
        assert_eq!(port(&format!(", xdp: {xdp}")).unwrap_err(), format!("{ens3}: {expected}"));
    }
    assert_eq!(
        node("ports: [{name: ens3, role: uplink, backend: af_packet, xdp: {}}]\n").unwrap_err(),
        format!("{ens3}: has xdp, and its backend is not af_xdp")
    );
}
