//! `pollux compile`: the tables that objects and configuration give, for people or as JSON.

use std::io::{self, Write};

use clap::ArgAction;
use pollux_dataplane::packet::Family;
use pollux_dataplane::service::{
    BackendSet, FilterRule, Frontend, FrontendAddress, FrontendKind, Path, Services,
};
use pollux_dataplane::tables::FamilyTables;
use serde::Serialize;

use super::{Common, Exit, Failure};
use crate::node::{Links, NodeView};
use crate::translate::{ServicePorts, endpoint_name};

const EXAMPLE: &str = "\
Example:
  pollux compile --objects objects.yaml --config proxy-config.yaml --node slave1 --json";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Print one JSON object.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// The compiled tables, to be shown.
#[derive(Serialize)]
struct Shown {
    node: String,
    frontends: Vec<ShownFrontend>,
    routes: usize,
    health_checks: Vec<u16>,
}

#[derive(Serialize)]
struct ShownFrontend {
    service: String,
    kind: &'static str,
    address: String,
    port: u16,
    protocol: String,
    action: &'static str,
    backends: Vec<String>,
    local_backends: Vec<String>,
    source_ranges: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'static str>,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let inputs = args.common.load()?;
    let view = match inputs.config.node {
        Some(_) => inputs.view(&Links::new())?,
        None => NodeView::default(), // Services alone: no ports, no routes
    };
    let compiled = inputs.compile(&view);
    let mut shown = Shown {
        node: inputs.node.clone(),
        frontends: Vec::new(),
        routes: 0,
        health_checks: compiled.health_checks.iter().map(|check| check.port).collect(),
    };
    if let Some(tables) = &compiled.tables.v4 {
        shown.add(tables, &compiled.ports_v4);
    }
    if let Some(tables) = &compiled.tables.v6 {
        shown.add(tables, &compiled.ports_v6);
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &shown).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        shown.print(&mut out)?;
    }
    Ok(Exit::Done)
}

impl Shown {
    fn add<A: Family>(&mut self, tables: &FamilyTables<A>, ports: &ServicePorts<A>) {
        let services = &tables.services;
        let shown = services.frontends().map(|(_, frontend)| show(frontend, services, ports));
        self.frontends.extend(shown);
        self.routes += tables.routing.fib.routes().len();
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:<28} {:<13} {:<28} {:<12} BACKENDS", "SERVICE", "KIND", "FRONTEND", "ACTION")?;
        for frontend in &self.frontends {
            let address = format!("{}:{}/{}", frontend.address, frontend.port, frontend.protocol);
            let mut backends = frontend.backends.join(",");
            if frontend.action == "local" {
                backends = format!("{} (local: {})", backends, frontend.local_backends.join(","));
            }
            if let Some(filter) = frontend.filter {
                backends = format!("{backends} [{filter}]").trim_start().to_string();
            }
            writeln!(
                out,
                "{:<28} {:<13} {address:<28} {:<12} {backends}",
                frontend.service, frontend.kind, frontend.action
            )?;
        }
        writeln!(out, "{} frontends, {} routes on node {}", self.frontends.len(), self.routes, self.node)
    }
}

fn show<A: Family>(frontend: &Frontend<A>, services: &Services<A>, ports: &ServicePorts<A>) -> ShownFrontend {
    let backends =
        |set: BackendSet| services.backends(set).iter().map(|backend| endpoint_name(*backend)).collect();
    let (action, cluster, local) = match frontend.path {
        Path::FallThrough => ("none", BackendSet::default(), BackendSet::default()),
        Path::Internal(set) => ("internal", set, BackendSet::default()),
        Path::Cluster(set) => ("cluster", set, BackendSet::default()),
        Path::Local { cluster, local } => ("local", cluster, local),
    };
    ShownFrontend {
        service: ports[frontend.service_port as usize].id.to_string(),
        kind: match frontend.kind {
            FrontendKind::ClusterIp => "cluster_ip",
            FrontendKind::ExternalIp => "external_ip",
            FrontendKind::LoadBalancer => "load_balancer",
            FrontendKind::NodePort => "node_port",
        },
        address: match frontend.key.address {
            FrontendAddress::Address(address) => address.to_string(),
            FrontendAddress::NodePort => "*".into(),
        },
        port: frontend.key.port,
        protocol: frontend.key.protocol.to_string(),
        action,
        backends: backends(cluster),
        local_backends: backends(local),
        source_ranges: frontend
            .sources
            .iter()
            .flat_map(|sources| sources.iter())
            .map(ToString::to_string)
            .collect(),
        filter: frontend.filter.map(|rule| match rule {
            FilterRule::Reject => "reject",
            FilterRule::Drop => "drop",
        }),
    }
}
