//! The copied corpus and case files load without an error or a warning.

use std::path::{Path, PathBuf};

use pollux_control::cluster::{self, NamespacedName};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/corpus")
        .join(name)
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
