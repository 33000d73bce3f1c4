//! What all objects have: a name, a namespace, labels, a time of creation.

use std::collections::HashMap;
use std::fmt::{self, Display};

use jiff::Timestamp;
use serde::Deserialize;

use crate::problem::Findings;

/// Namespace and name of an object; ordered by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: String,
    /// The name inside the namespace.
    pub name: String,
}

impl NamespacedName {
    /// The object `name` of `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        NamespacedName { namespace: namespace.into(), name: name.into() }
    }
}

impl Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `metadata` as it is written.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
}

impl Metadata {
    /// The value of a label.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Name and namespace; an object without a namespace is in `default`, as kubectl has it.
    pub(super) fn key(&self) -> NamespacedName {
        let namespace = self.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        NamespacedName::new(namespace.unwrap_or("default"), self.name.as_deref().unwrap_or_default())
    }

    /// The time of creation, if the API server has written one.
    pub(super) fn created(&self, findings: &mut Findings) -> Option<Timestamp> {
        let text = self.creation_timestamp.as_deref()?;
        match text.parse() {
            Ok(time) => Some(time),
            Err(_) => {
                findings.error(format!(
                    "metadata.creationTimestamp {text} is not a time (RFC 3339: 2026-01-02T15:04:05Z)"
                ));
                None
            }
        }
    }
}

/// A number that must be a port.
pub(super) fn port(part: &str, field: &str, number: i64, findings: &mut Findings) -> Option<u16> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Some(port),
        _ => {
            findings.error_in(part, format!("{field} {number} is not a port (1-65535)"));
            None
        }
    }
}
