//! The copied corpus and case files load without an error or a warning.

use std::path::{Path, PathBuf};

use pollux_control::cluster::{self, NamespacedName};
use pollux_control::config;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name)
}

#[test]
fn objects_that_an_api_server_served_load() {
    let loaded = cluster::load(&[corpus("seed-myapp/objects.yaml")]).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.cluster.services.len(), 2);
    assert_eq!(loaded.cluster.nodes.len(), 2);
    let slice = &loaded.cluster.slices[&NamespacedName::new("default", "myapp-x7k2p")];
    assert_eq!(slice.service, Some(NamespacedName::new("default", "myapp")));
    assert_eq!(slice.endpoints.len(), 3);
}

#[test]
fn the_examples_are_read_without_a_warning() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let loaded = cluster::load(&[examples.join("objects.yaml")]).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.cluster.services.len(), 1);
    let (config, warnings) =
        config::load(&[examples.join("proxy-config.yaml"), examples.join("node.yaml")]).unwrap();
    assert_eq!(warnings, []);
    let node = config.node.unwrap();
    assert_eq!(node.ports.len(), 5);
    let by_age: Vec<_> = node.interfaces_by_age().iter().map(|(name, _)| *name).collect();
    assert_eq!(by_age[..4], ["lo", "ens3", "docker0", "tunl0"]);
}

#[test]
fn configurations_of_real_kube_proxies_load() {
    for name in ["proxy-config.yaml", "proxy-config-1.20.yaml"] {
        let (config, warnings) = config::load(&[corpus("seed-myapp").join(name)]).unwrap();
        assert_eq!(config.proxy.hostname_override.as_deref(), Some("slave1"));
        assert_eq!(config.proxy.conntrack.tcp_established, None);
        assert!(warnings.iter().all(|warning| warning.text.ends_with("has no meaning here, ignored")));
    }
}
