//! What an agent is told: configuration, objects and the node's name. Read and checked once, where it
//! enters; a change of the files is read in the same way.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cluster::{self, Cluster};
use crate::config::{self, Config, NodeConfig};
use crate::problem::{Problem, Problems};

/// Where the input comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sources {
    /// Configuration files.
    pub config: Vec<PathBuf>,
    /// Object files and directories.
    pub objects: Vec<PathBuf>,
    /// The node's name, when it is given.
    pub node: Option<String>,
}

/// The input, checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Inputs {
    /// The configuration.
    pub config: Config,
    /// The objects.
    pub cluster: Arc<Cluster>,
    /// The node's name.
    pub node: String,
}

impl Sources {
    /// Reads everything, and what is worth saying about it.
    ///
    /// # Errors
    /// Everything that is wrong: of the configuration and of the objects.
    pub fn read(&self) -> Result<(Inputs, Vec<Problem>), Problems> {
        let (config, objects) = (config::load(&self.config), cluster::load(&self.objects));
        let (config, mut warnings, objects) = match (config, objects) {
            (Ok((config, warnings)), Ok(objects)) => (config, warnings, objects),
            (Err(Problems(mut first)), Err(Problems(second))) => {
                first.extend(second);
                return Err(Problems(first));
            }
            (Err(problems), _) | (_, Err(problems)) => return Err(problems),
        };
        warnings.extend(objects.warnings);
        let node = self.node.clone().or_else(|| config.proxy.hostname_override.clone());
        let node = node.unwrap_or_else(host_name);
        Ok((Inputs { config, cluster: Arc::new(objects.cluster), node }, warnings))
    }
}

impl Inputs {
    /// Pollux's own configuration.
    pub fn node_config(&self) -> Option<&NodeConfig> {
        self.config.node.as_ref()
    }
}

/// The system's host name as kube-proxy takes it: trimmed, in lower case.
fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().trim().to_lowercase()
}
