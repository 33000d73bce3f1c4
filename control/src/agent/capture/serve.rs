//! Captures for clients of the admin socket.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pollux_dataplane::capture::{Filter, Options, RECORDS};
use pollux_dataplane::packet::PortId;

use super::super::admin::Client;
use super::super::conntrack::serve::Outcome;
use super::super::shared::{Shared, State};
use super::source::Source;
use super::{CaptureItem, CaptureRequest, Teller};

/// How long it is waited for frames before it is looked again.
const NAP: Duration = Duration::from_millis(2);

/// How often it is looked whether the port is still there.
const LOOK: Duration = Duration::from_millis(500);

/// The name of all ports together.
const ANY: &str = "any";

/// Answers a request: with frames until the client ends it, enough have come, or there can be no more.
pub(in crate::agent) fn answer(
    client: &mut Client<'_>,
    shared: &Shared,
    request: &CaptureRequest,
    stop: &AtomicBool,
) -> io::Result<Outcome> {
    let refused = |why: String| Ok(Outcome::Refused(why));
    let filter: Filter = match request.filter.parse() {
        Ok(filter) => filter,
        Err(error) => return refused(format!("filter {:?}: {error}", request.filter)),
    };
    let port = match port(&shared.state(), &request.port) {
        Ok(port) => port,
        Err(why) => return refused(why),
    };
    let options = Options { filter, snap_len: request.snap_length_bytes as usize, records: RECORDS };
    let Ok(mut source) = Source::attach(shared, port, request.view, options) else {
        return refused("the worker has stopped".to_owned());
    };
    let ports = shared.state().compiled.tables.ports.clone();
    let is_meant = |id: PortId| port.is_none_or(|port| port == id) && ports.tunnel(id).is_none();
    let names = ports.iter().filter(|(id, _)| is_meant(*id)).map(|(_, port)| port.name.clone());
    client.item(&CaptureItem::Started { ports: names.collect() })?;
    client.flush()?;
    let mut teller = Teller::new(shared, request.view);
    let enough = request.count.unwrap_or(u64::MAX);
    let mut told = 0;
    let mut why = None;
    let mut looked = Instant::now();
    while told < enough {
        if let Some(record) = source.capture.take() {
            client.item(&CaptureItem::Frame(teller.item(&record)))?;
            source.capture.give_back(record);
            told += 1;
            continue;
        }
        client.flush()?;
        if client.has_gone() {
            break;
        }
        if stop.load(Ordering::Acquire) {
            why = Some("the forwarder stops".to_owned());
            break;
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            let same = |id: PortId| {
                let state = shared.state();
                state.compiled.tables.ports.get(id).is_some_and(|info| info.name == request.port)
            };
            if !port.is_none_or(same) {
                why = Some(format!("port {} is gone", request.port));
                break;
            }
        }
        std::thread::sleep(NAP);
    }
    source.detach();
    while told < enough
        && let Some(record) = source.capture.take()
    {
        client.item(&CaptureItem::Frame(teller.item(&record)))?;
        told += 1;
    }
    let lost = source.capture.counters().lost;
    client.item(&CaptureItem::Ended { captured: told, lost, why })?;
    Ok(Outcome::Done)
}

/// The port of that name; nothing for all of them.
fn port(state: &State, name: &str) -> Result<Option<PortId>, String> {
    if name == ANY {
        return Ok(None);
    }
    let ports = &state.compiled.tables.ports;
    let Some(id) = ports.by_name(name) else {
        let names: Vec<_> = ports.iter().map(|(_, port)| port.name.as_str()).collect();
        return Err(format!(
            "port {name}: there is none of that name (the ports are {}, or any)",
            names.join(", ")
        ));
    };
    if ports.tunnel(id).is_some() {
        return Err(format!(
            "port {name}: is a tunnel, whose packets leave and come in by other ports: capture those, or any"
        ));
    }
    Ok(Some(id))
}
