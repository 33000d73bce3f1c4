//! Configuration: kube-proxy's own document ([`proxy`]) and Pollux's ([`node`]), in any number of files and
//! YAML documents, at most one of each.

pub mod duration;
pub mod node;
pub mod proxy;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::document::{self, Document};
use crate::problem::{Findings, Problem, Problems};
pub use node::NodeConfig;
pub use proxy::ProxyConfig;

/// What the configuration files say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Config {
    /// kube-proxy's configuration, or its defaults.
    pub proxy: ProxyConfig,
    /// Pollux's own configuration; none if no file has it.
    pub node: Option<NodeConfig>,
}

/// Reads the configuration of files and directories, and what is worth saying about it (HZ-03).
///
/// # Errors
/// Everything that is wrong, in the order of the files.
pub fn load(paths: &[PathBuf]) -> Result<(Config, Vec<Problem>), Problems> {
    let mut findings = Findings::default();
    let documents = document::read(paths, &mut findings);
    finish(documents, findings)
}

/// Reads configuration documents that are in memory.
///
/// # Errors
/// Everything that is wrong.
pub fn read(file: &Arc<Path>, documents: Vec<Value>) -> Result<(Config, Vec<Problem>), Problems> {
    let documents = documents.into_iter().map(|value| Document { file: file.clone(), value });
    finish(documents.collect(), Findings::default())
}

fn finish(documents: Vec<Document>, mut findings: Findings) -> Result<(Config, Vec<Problem>), Problems> {
    let mut config = Config::default();
    let mut proxy_file: Option<Arc<Path>> = None;
    let mut node_file: Option<Arc<Path>> = None;
    for Document { file, value } in documents {
        findings.enter_file(Some(file.clone()));
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        match (text("apiVersion"), text("kind")) {
            ("kubeproxy.config.k8s.io/v1alpha1", kind @ "KubeProxyConfiguration") => {
                if once(kind, &file, &mut proxy_file, &mut findings) {
                    config.proxy = ProxyConfig::read(value, &mut findings);
                }
            }
            ("pollux.dev/v1alpha1", kind @ "Node") => {
                if once(kind, &file, &mut node_file, &mut findings) {
                    config.node = NodeConfig::read(value, &mut findings);
                }
            }
            ("", _) | (_, "") => findings.error("a document has no apiVersion or no kind"),
            (version, kind) => findings.error(format!(
                "kind {kind} of {version} is not configuration (KubeProxyConfiguration of \
                 kubeproxy.config.k8s.io/v1alpha1, Node of pollux.dev/v1alpha1)"
            )),
        }
    }
    findings.finish().map(|warnings| (config, warnings))
}

/// Whether this is the first document of its kind; a second one is an error.
fn once(kind: &str, file: &Arc<Path>, first: &mut Option<Arc<Path>>, findings: &mut Findings) -> bool {
    match first {
        None => {
            *first = Some(file.clone());
            true
        }
        Some(first) => {
            findings
                .error(format!("is the second document of kind {kind}; the first is in {}", first.display()));
            false
        }
    }
}

#[cfg(test)]
mod tests;
