//! `xdp` of a port whose backend is `af_xdp`: how its frames are taken from the interface.

use pollux_dataplane::port::af_xdp::{MOST_LEFT, Mode, Service, ZeroCopy};
use serde::Deserialize;

use super::values::range;
use crate::problem::Findings;

/// `xdp`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XdpConfig {
    /// Where the steering program runs.
    pub mode: Mode,
    /// Who moves the frames.
    pub zero_copy: ZeroCopy,
    /// Receive queues that the interface must have, when it is set.
    pub queues: Option<u16>,
    /// Frames that wait in each direction, at each queue.
    pub ring: u32,
    /// What is taken from the kernel.
    pub steer: XdpSteer,
    /// Destination ports whose packets the kernel keeps.
    pub leave: Vec<Service>,
}

impl Default for XdpConfig {
    fn default() -> Self {
        XdpConfig {
            mode: Mode::Native,
            zero_copy: ZeroCopy::Automatic,
            queues: None,
            ring: 4096,
            steer: XdpSteer::Unicast,
            leave: Vec::new(),
        }
    }
}

/// `xdp.steer`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpSteer {
    /// Unicast IP packets to the interface, of the families that are forwarded. The kernel gets the rest.
    #[default]
    Unicast,
    /// Everything: the kernel sees nothing of the interface any more.
    All,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireXdp {
    mode: Option<WireMode>,
    zero_copy: Option<WireZeroCopy>,
    queues: Option<i64>,
    ring: Option<i64>,
    steer: Option<XdpSteer>,
    #[serde(default)]
    leave: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireMode {
    Native,
    Generic,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireZeroCopy {
    Auto,
    Off,
    Required,
}

/// Reads the section; `part` is the port.
pub(super) fn read(part: &str, wire: WireXdp, findings: &mut Findings) -> XdpConfig {
    let default = XdpConfig::default();
    let ring = range(part, "xdp.ring", wire.ring, 64..=32_768, findings);
    if let Some(ring) = ring.filter(|ring| !ring.is_power_of_two()) {
        findings.error_in(part, format!("xdp.ring {ring} is not a power of two"));
    }
    let leave = wire.leave.iter().filter_map(|text| {
        let service = service(text);
        if service.is_none() {
            findings.error_in(
                part,
                format!("xdp.leave {text:?} is not a protocol and a port (tcp/22, udp/4789, sctp/2905)"),
            );
        }
        service
    });
    let config = XdpConfig {
        leave: leave.collect(),
        mode: match wire.mode {
            Some(WireMode::Generic) => Mode::Generic,
            Some(WireMode::Native) | None => Mode::Native,
        },
        zero_copy: match wire.zero_copy {
            Some(WireZeroCopy::Off) => ZeroCopy::Off,
            Some(WireZeroCopy::Required) => ZeroCopy::Required,
            Some(WireZeroCopy::Auto) | None => ZeroCopy::Automatic,
        },
        queues: range(part, "xdp.queues", wire.queues, 1..=1024, findings).map(|queues| queues as u16),
        ring: ring.unwrap_or(default.ring),
        steer: wire.steer.unwrap_or_default(),
    };
    if config.leave.len() > MOST_LEFT {
        let text =
            format!("xdp.leave has {} services, and {MOST_LEFT} at most can be left", config.leave.len());
        findings.error_in(part, text);
    }
    if config.mode == Mode::Generic && config.zero_copy == ZeroCopy::Required {
        findings.error_in(part, "xdp.zeroCopy is required, which mode generic never has");
    }
    if config.steer == XdpSteer::All && !config.leave.is_empty() {
        findings.error_in(part, "xdp.leave leaves services to the kernel, and xdp.steer takes all");
    }
    config
}

fn service(text: &str) -> Option<Service> {
    let (protocol, port) = text.split_once('/')?;
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => return None,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some(Service { protocol, port })
}
