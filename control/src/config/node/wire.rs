//! The document as it is written. Unknown fields are errors.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde_json::Value;

use super::dpdk::WireDpdk;
use super::xdp::WireXdp;
use super::{Backend, CaptureView, Foreign, MasqueradePorts, ReversePath, Role, RouteKind};
use crate::document::nullable;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wire {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(super) service_proxy_name: Option<String>,
    pub(super) workers: Option<i64>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) cores: Vec<i64>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) flow_table: WireFlowTable,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) affinity: WireAffinity,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) sysctl: BTreeMap<String, i64>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<WirePort>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) interfaces: Vec<WireInterface>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) dpdk: WireDpdk,
    #[serde(default, deserialize_with = "listed_or_kernel")]
    pub(super) routes: WireSource<WireRoute>,
    #[serde(default, deserialize_with = "listed_or_kernel")]
    pub(super) neighbours: WireSource<WireNeighbour>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) masquerade: WireMasquerade,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireFlowTable {
    pub(super) connections: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireAffinity {
    pub(super) clients: Option<i64>,
}

pub(super) enum WireSource<T> {
    Kernel,
    Listed(Vec<T>),
}

impl<T> Default for WireSource<T> {
    fn default() -> Self {
        WireSource::Listed(Vec::new())
    }
}

/// A list, or the word `kernel`. (An untagged enum would lose the path of an error inside the list.)
fn listed_or_kernel<'de, D, T>(deserializer: D) -> Result<WireSource<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct ListOrKernel<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for ListOrKernel<T> {
        type Value = WireSource<T>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a list or the word kernel")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "kernel" => Ok(WireSource::Kernel),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(WireSource::default())
        }
        fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
            let mut list = Vec::new();
            while let Some(item) = seq.next_element()? {
                list.push(item);
            }
            Ok(WireSource::Listed(list))
        }
    }
    deserializer.deserialize_any(ListOrKernel(PhantomData))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WirePort {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) backend: Backend,
    pub(super) interface: Option<String>,
    pub(super) link_address: Option<String>,
    pub(super) mtu: Option<i64>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<String>,
    #[serde(default)]
    pub(super) proxy_arp: bool,
    pub(super) rp_filter: Option<ReversePath>,
    pub(super) ignore_routes_with_linkdown: Option<bool>,
    pub(super) foreign: Option<Foreign>,
    pub(super) index: Option<u32>,
    pub(super) tunnel: Option<WireTunnel>,
    pub(super) device: Option<String>,
    pub(super) queues: Option<i64>,
    pub(super) xdp: Option<WireXdp>,
    pub(super) faults: Option<WireFaults>,
    pub(super) capture: Option<WireCapture>,
    pub(super) trace: Option<WireTrace>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireTunnel {
    pub(super) local: Option<String>,
    /// A number or the word `inherit`.
    pub(super) ttl: Option<Value>,
    pub(super) path_mtu_discovery: Option<bool>,
    pub(super) peers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireCapture {
    pub(super) file: String,
    pub(super) filter: Option<String>,
    pub(super) snap_length: Option<i64>,
    #[serde(default)]
    pub(super) view: CaptureView,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireTrace {
    pub(super) filter: Option<String>,
    #[serde(default)]
    pub(super) view: CaptureView,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireFaults {
    pub(super) loss: Option<f64>,
    pub(super) duplicate: Option<f64>,
    pub(super) reorder: Option<f64>,
    pub(super) corrupt: Option<f64>,
    pub(super) delay: Option<String>,
    #[serde(default)]
    pub(super) seed: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireInterface {
    pub(super) name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<String>,
    pub(super) index: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireRoute {
    pub(super) to: String,
    pub(super) kind: Option<RouteKind>,
    pub(super) via: Option<String>,
    pub(super) dev: Option<String>,
    #[serde(default)]
    pub(super) onlink: bool,
    #[serde(default)]
    pub(super) link_down: bool,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) next_hops: Vec<WireNextHop>,
    pub(super) source: Option<String>,
    pub(super) metric: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireNextHop {
    pub(super) via: Option<String>,
    pub(super) dev: Option<String>,
    pub(super) weight: Option<i64>,
    #[serde(default)]
    pub(super) onlink: bool,
    #[serde(default)]
    pub(super) link_down: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireNeighbour {
    pub(super) address: String,
    pub(super) link_address: String,
    pub(super) dev: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireMasquerade {
    pub(super) ports: Option<MasqueradePorts>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) rules: Vec<WireRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireRule {
    pub(super) name: Option<String>,
    pub(super) source: Option<String>,
    pub(super) destination: Option<String>,
    pub(super) out_port: Option<String>,
}
