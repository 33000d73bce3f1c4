//! Objects from files: what is read, what is passed over, what is refused.
//!
//! `kubectl get -o yaml` prints a `List`; single objects, several documents and typed lists (`ServiceList`)
//! are read as well. Of the API groups that Pollux reads (v1 and discovery.k8s.io/v1) a known kind without
//! meaning here is counted and passed over, and an unknown one is an error: it is a misspelt one. Objects of
//! other groups are counted and passed over. One object in two places is an error, because nothing says
//! which is meant.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::meta::{Metadata, NamespacedName};
use super::{Cluster, EndpointSlice, Node, Service};
use crate::document::{self, Document};
use crate::problem::{Findings, Problem, Problems};

/// Kinds of v1 that have no meaning here.
const CORE_KINDS: [&str; 16] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Namespace",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
];

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The objects.
    pub cluster: Cluster,
    /// What is worth saying: skipped addresses, and objects passed over in one line.
    pub warnings: Vec<Problem>,
}

/// Reads the objects of files and directories (what a directory means: [`document::read`]).
///
/// # Errors
/// Everything that is wrong, in the order of the files.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, Problems> {
    let mut findings = Findings::default();
    let documents = document::read(paths, &mut findings);
    finish(documents.into_iter(), findings)
}

/// Reads objects that are in memory, such as those of a case file.
///
/// # Errors
/// Everything that is wrong.
pub fn read_objects(file: &Arc<Path>, objects: Vec<Value>) -> Result<Loaded, Problems> {
    let documents = objects.into_iter().map(|value| Document { file: file.clone(), value });
    finish(documents, Findings::default())
}

fn finish(documents: impl Iterator<Item = Document>, findings: Findings) -> Result<Loaded, Problems> {
    let mut reader = Reader {
        cluster: Cluster::default(),
        places: BTreeMap::new(),
        passed_over: BTreeMap::new(),
        findings,
    };
    for document in documents {
        reader.findings.enter_file(Some(document.file));
        reader.read(document.value);
    }
    reader.findings.enter_file(None);
    if let Some(text) = reader.passed_over_line() {
        reader.findings.warn(text);
    }
    Ok(Loaded { warnings: reader.findings.finish()?, cluster: reader.cluster })
}

struct Reader {
    cluster: Cluster,
    /// Where each object was read, by its printed name.
    places: BTreeMap<String, Option<Arc<Path>>>,
    passed_over: BTreeMap<String, usize>,
    findings: Findings,
}

impl Reader {
    fn read(&mut self, mut value: Value) {
        self.findings.enter_object("");
        let (Some(version), Some(kind)) = (text(&value, "apiVersion"), text(&value, "kind")) else {
            let what = match value.is_object() {
                true => "a document has no apiVersion or no kind",
                false => "a document is not an object",
            };
            return self.findings.error(what);
        };
        match (version.as_str(), kind.as_str()) {
            ("v1", "List")
            | ("v1", "ServiceList" | "NodeList")
            | ("discovery.k8s.io/v1", "EndpointSliceList") => {
                let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
                match value["items"].take() {
                    Value::Array(items) => {
                        for mut item in items {
                            // The items of a typed list need not say what they are.
                            if let (Some(kind), Value::Object(fields)) = (item_kind, &mut item) {
                                fields.entry("apiVersion").or_insert_with(|| version.as_str().into());
                                fields.entry("kind").or_insert_with(|| kind.into());
                            }
                            self.read(item);
                        }
                    }
                    Value::Null => {}
                    _ => self.findings.error(format!("{kind} items is not a list")),
                }
            }
            ("v1", "Service") => self.read_service(value),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.read_slice(value),
            ("v1", "Node") => self.read_node(value),
            ("v1", kind) if CORE_KINDS.contains(&kind.strip_suffix("List").unwrap_or(kind)) => {
                let items = value["items"].as_array().map_or(1, Vec::len);
                self.pass_over(kind.strip_suffix("List").unwrap_or(kind), items);
            }
            (version, kind) => match version.split_once('/').map_or("", |(group, _)| group) {
                "" => self.findings.error(format!("kind {kind} of {version} is not known")),
                "discovery.k8s.io" => self.findings.error(format!(
                    "kind {kind} of {version} is not known (read is EndpointSlice of discovery.k8s.io/v1)"
                )),
                "kubeproxy.config.k8s.io" | "pollux.dev" => self.findings.error(format!(
                    "kind {kind} of {version} is configuration, not an object: give it with --config"
                )),
                _ => self.pass_over(kind, 1),
            },
        }
    }

    fn read_service(&mut self, value: Value) {
        if let Some(key) = self.enter("services", &value)
            && let Some(service) = Service::read(key.clone(), value, &mut self.findings)
        {
            self.cluster.services.insert(key, service);
        }
    }

    fn read_slice(&mut self, value: Value) {
        if let Some(key) = self.enter("endpointslices", &value)
            && let Some(slice) = EndpointSlice::read(key.clone(), value, &mut self.findings)
        {
            self.cluster.slices.insert(key, slice);
        }
    }

    fn read_node(&mut self, value: Value) {
        if let Some(key) = self.enter("nodes", &value)
            && let Some(node) = Node::read(key.name.clone(), value, &mut self.findings)
        {
            self.cluster.nodes.insert(key.name, node);
        }
    }

    /// Names the object that is read from now on; none if it has no name or was read before.
    fn enter(&mut self, resource: &str, value: &Value) -> Option<NamespacedName> {
        let key = match metadata(value) {
            Ok(metadata) => metadata.key(),
            Err(error) => {
                self.findings.enter_object(resource);
                self.findings.error(error);
                return None;
            }
        };
        let object = match resource {
            "nodes" => format!("{resource}/{}", key.name),
            _ => format!("{resource}/{key}"),
        };
        self.findings.enter_object(object.clone());
        if key.name.is_empty() {
            self.findings.error("metadata.name is missing");
            return None;
        }
        match self.places.entry(object) {
            Entry::Vacant(place) => {
                place.insert(self.findings.file().cloned());
                Some(key)
            }
            Entry::Occupied(place) => {
                let other = place.get().as_ref().map(|file| file.display().to_string());
                self.findings.error(format!("is there twice; the other is in {}", other.unwrap_or_default()));
                None
            }
        }
    }

    fn pass_over(&mut self, kind: &str, count: usize) {
        *self.passed_over.entry(kind.to_string()).or_default() += count;
    }

    fn passed_over_line(&self) -> Option<String> {
        let kinds: Vec<_> =
            self.passed_over.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        (!kinds.is_empty()).then(|| format!("objects without meaning here, ignored: {}", kinds.join(", ")))
    }
}

fn text(value: &Value, field: &str) -> Option<String> {
    value.get(field)?.as_str().map(str::to_string)
}

/// The name and namespace of an object, without a copy of the rest.
fn metadata(value: &Value) -> Result<Metadata, String> {
    let field = |name: &str| match value.get("metadata").and_then(|metadata| metadata.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("metadata.{name} {other} is not a string")),
    };
    Ok(Metadata { name: field("name")?, namespace: field("namespace")?, ..Metadata::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Loaded, String> {
        let file: Arc<Path> = Path::new("objects.yaml").into();
        read_objects(&file, document::parse_yaml(yaml).unwrap()).map_err(|problems| problems.to_string())
    }

    fn service(spec: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: myapp, namespace: default}}, spec: {{{spec}}}}}"
        )
    }

    fn warnings(yaml: &str) -> Vec<String> {
        let loaded = read(yaml).unwrap();
        loaded.warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_error_names_file_object_field_and_value() {
        let text = service("clusterIP: 10.0.0.1, ports: [{name: http, port: 80, nodePort: 70000}]");
        assert_eq!(
            read(&text).unwrap_err(),
            "objects.yaml: services/default/myapp port http: nodePort 70000 is not a port (1-65535)"
        );
    }

    #[test]
    fn all_errors_of_an_object_are_reported_at_once() {
        let text = service(
            "clusterIP: ten, internalTrafficPolicy: Local, ports: [{name: a, port: 0}, {name: b, port: 1, protocol: tcp}]",
        );
        let errors = read(&text).unwrap_err();
        let lines: Vec<_> = errors.lines().collect();
        assert_eq!(
            lines,
            [
                "objects.yaml: services/default/myapp: spec.clusterIP \"ten\" is not an IP address",
                "objects.yaml: services/default/myapp port a: port 0 is not a port (1-65535)",
                "objects.yaml: services/default/myapp port b: protocol \"tcp\" is not TCP, UDP or SCTP",
            ]
        );
    }

    #[test]
    fn a_value_of_another_type_is_named_by_its_path() {
        let text = service("clusterIP: 10.0.0.1, ports: [{port: http}]");
        assert_eq!(
            read(&text).unwrap_err(),
            "objects.yaml: services/default/myapp: spec.ports[0].port: invalid type: string \"http\", expected i64"
        );
        let text = service("clusterIP: 10.0.0.1, externalTrafficPolicy: local");
        assert!(read(&text).unwrap_err().contains(
            "services/default/myapp: spec.externalTrafficPolicy: unknown variant `local`, expected one of `Cluster`"
        ));
    }

    #[test]
    fn obj_03_two_ports_with_one_name_are_an_error() {
        let text =
            service("clusterIP: 10.0.0.1, ports: [{name: a, port: 1}, {name: a, port: 2, protocol: UDP}]");
        assert!(
            read(&text)
                .unwrap_err()
                .ends_with("services/default/myapp port a: name a is used by two ports of the Service")
        );
        let text = service("clusterIP: 10.0.0.1, ports: [{port: 1}, {port: 2}]");
        assert!(
            read(&text).unwrap_err().ends_with("port 2: has no name, nor has another port of the Service")
        );
    }

    #[test]
    fn obj_07_a_bad_address_is_reported_and_skipped() {
        let text = service("clusterIP: 010.0.0.1, externalIPs: [192.0.2.1, 192.0.2.300]")
            + "\n---\n"
            + "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, addressType: IPv4, \
               endpoints: [{addresses: [10.0.0.1]}, {addresses: ['fd00::1']}, {addresses: []}]}";
        let loaded = read(&text).unwrap();
        let service = &loaded.cluster.services[&NamespacedName::new("default", "myapp")];
        assert_eq!(service.cluster_ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(service.external_ips.len(), 1);
        let slice = &loaded.cluster.slices[&NamespacedName::new("default", "s")];
        assert_eq!(slice.endpoints.len(), 1);
        let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            [
                "objects.yaml: services/default/myapp: spec.externalIPs \"192.0.2.300\" is not an IP address: skipped",
                "objects.yaml: endpointslices/default/s: endpoints[1].addresses[0] \"fd00::1\" is not an IPv4 address: skipped",
                "objects.yaml: endpointslices/default/s: endpoints[2].addresses[0] \"\" is not an IPv4 address: skipped",
            ]
        );
    }

    #[test]
    fn lists_typed_lists_and_documents_are_read_alike() {
        let one = service("clusterIP: None");
        let list = format!("{{apiVersion: v1, kind: List, items: [{one}]}}");
        let typed = "{apiVersion: v1, kind: ServiceList, items: [{metadata: {name: myapp}, spec: {clusterIP: None}}]}";
        let expected = read(&one).unwrap().cluster;
        assert_eq!(expected.services.len(), 1);
        assert_eq!(read(&list).unwrap().cluster, expected);
        assert_eq!(read(typed).unwrap().cluster, expected);
        assert_eq!(read("{apiVersion: v1, kind: List, items: null}").unwrap().cluster, Cluster::default());
    }

    #[test]
    fn known_kinds_without_meaning_are_one_summary_line() {
        let text = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod}, {apiVersion: v1, kind: Pod}, \
                    {apiVersion: v1, kind: Endpoints}, {apiVersion: apps/v1, kind: Deployment}]}";
        assert_eq!(
            warnings(text),
            ["objects without meaning here, ignored: Deployment (1), Endpoints (1), Pod (2)"]
        );
    }

    #[test]
    fn an_unknown_kind_of_a_group_that_is_read_is_an_error() {
        assert_eq!(
            read("{apiVersion: v1, kind: Servce}").unwrap_err(),
            "objects.yaml: kind Servce of v1 is not known"
        );
        assert!(
            read("{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice}")
                .unwrap_err()
                .contains("kind EndpointSlice of discovery.k8s.io/v1beta1 is not known")
        );
        assert!(read("{apiVersion: pollux.dev/v1alpha1, kind: Node}").unwrap_err().contains("--config"));
        assert!(read("{kind: Service}").unwrap_err().contains("no apiVersion"));
    }

    #[test]
    fn one_object_in_two_places_is_an_error() {
        let text = service("clusterIP: None") + "\n---\n" + &service("clusterIP: None");
        assert_eq!(
            read(&text).unwrap_err(),
            "objects.yaml: services/default/myapp: is there twice; the other is in objects.yaml"
        );
    }

    #[test]
    fn obj_02_a_service_without_cluster_ip_is_headless() {
        let text = service("clusterIP: ''")
            + "\n---\n{apiVersion: v1, kind: Service, metadata: {name: ext}, \
            spec: {type: ExternalName, externalName: example.com}}";
        let cluster = read(&text).unwrap().cluster;
        assert!(cluster.services.values().all(|service| service.cluster_ips.is_empty()));
    }
}
