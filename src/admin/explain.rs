//! What would happen to a message under the configuration that runs, and whether a send connector's hosts would take one.
//!
//! The answers are those of `causeway explain --json` and `causeway check --live`. A test of hosts connects and sends
//! nothing; there is one at a time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, Shared, blocking, body, json, wrong};
use crate::config::Config;
use crate::dns::Resolver;
use crate::message::{Address, Notify, Recipient};
use crate::probe::{self, HostSeen, Limits};
use crate::route::Rules;
use crate::route::explain::{self, Comer, Coming, Explanation, Sender};

/// Recipients of one question.
const RECIPIENTS: usize = 100;
/// What they may come to once groups are expanded: more than the largest group.
const ENDS: usize = 12_000;
/// So long a test may take; then there is time to say what was seen.
const TEST: Duration = Duration::from_secs(25);
/// For one host, so that one that hangs does not hide the others.
const HOST: Limits = Limits { connect: Duration::from_secs(8), host: Duration::from_secs(20), at_once: 8 };

/// What is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Question {
    from: String,
    to: Vec<String>,
    origin: Option<String>,
    client: Option<IpAddr>,
    tls_name: Option<String>,
    size: Option<Size>,
}

/// Bytes, or as the configuration writes it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Written(String),
}

pub(super) async fn explain(State(admin): State<Shared>, sent: Body) -> Result<Response, Error> {
    let question: Question = body(sent).await?;
    if !(1..=RECIPIENTS).contains(&question.to.len()) {
        return Err(wrong(format!("to: expected 1 to {RECIPIENTS} recipients")));
    }
    if question.origin.is_some() && question.client.is_some() {
        return Err(wrong("say origin or client, and not both"));
    }
    let _place = admin.walks.acquire().await;
    let snapshot = admin.relay.snapshot();
    let answer = blocking(move || -> Result<Value, String> {
        let config = &*snapshot.config;
        let Sender(from) = explain::sender(&question.from, config)?;
        let to = explain::recipients(&question.to, config)?;
        let size = match question.size {
            None => None,
            Some(Size::Bytes(size)) => Some(size),
            Some(Size::Written(text)) => Some(explain::size(&text).map_err(|why| format!("size: {why}"))?),
        };
        let origin = question.origin.filter(|origin| !origin.is_empty());
        let origin =
            origin.map(|origin| explain::origin(&origin)).transpose().map_err(|why| format!("origin: {why}"))?;
        let tls_name = question.tls_name.as_deref().filter(|name| !name.is_empty());
        let coming = Coming::of(config, Comer { origin, client: question.client, tls_name })?;
        let directory = snapshot.directory.as_ref();
        let (rules, asking) = (Rules { config, directory }, explain::asking(coming.door, size));
        let ends = |to: &Address| {
            let recipient = Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None };
            rules.expand(&asking, &recipient).map_or(1, |found| found.routed.len() + found.failed.len())
        };
        // One by one: all of them together would take the memory that mail needs.
        let mut sum = 0;
        for to in &to {
            sum += ends(to);
            if sum > ENDS {
                let text = format!("these recipients stand for more than {ENDS}; ask about fewer, or causeway explain");
                return Err(text);
            }
        }
        Ok(Explanation::of(config, directory, coming, from.as_ref(), &to, size).json())
    })
    .await?;
    answer.map(|answer| json(StatusCode::OK, &answer)).map_err(wrong)
}

/// What a test found.
#[derive(Debug, Serialize)]
struct Tested {
    name: String,
    /// Mail would flow by one host at least.
    ok: bool,
    findings: Vec<Finding>,
    hosts: Vec<Value>,
}

#[derive(Debug, Serialize)]
struct Finding {
    /// `ok`, `warning` or `error`.
    level: &'static str,
    /// Which host.
    what: String,
    text: String,
}

pub(super) async fn test(State(admin): State<Shared>, Path(name): Path<String>) -> Result<Response, Error> {
    let snapshot = admin.relay.snapshot();
    let found = snapshot.config.send_connectors.iter().find(|connector| *connector.name.0 == *name);
    let Some(connector) = found.cloned() else {
        return Err(Error::new(StatusCode::NOT_FOUND, "there is no such send connector"));
    };
    if !connector.enabled {
        return Err(Error::new(StatusCode::CONFLICT, format!("send connector {name} is disabled: nothing is tested")));
    }
    let Ok(_place) = admin.tests.try_acquire() else {
        return Err(Error::new(StatusCode::CONFLICT, "another connector is being tested; ask again when that is done"));
    };
    // Of the configuration that runs, this connector and nothing else.
    let alone =
        Config { accepted_domains: Vec::new(), send_connectors: vec![connector], ..Config::clone(&snapshot.config) };
    let resolver = Resolver::new(&alone.dns.servers)
        .map_err(|why| Error::new(StatusCode::INTERNAL_SERVER_ERROR, format!("DNS: {why}")))?;
    let alone = Arc::new(alone);
    let looking = probe::look(&alone, &resolver, HOST, |_, _| {});
    let hosts = match tokio::time::timeout(TEST, looking).await {
        Ok(report) => report.hosts,
        Err(_) => {
            let text = format!("the name servers and hosts did not answer all within {} s", TEST.as_secs());
            let findings = vec![Finding { level: "error", what: name.clone(), text }];
            return Ok(json(StatusCode::OK, &Tested { name, ok: false, findings, hosts: Vec::new() }));
        }
    };
    Ok(json(StatusCode::OK, &tested(name, &hosts)))
}

fn tested(name: String, hosts: &[HostSeen]) -> Tested {
    let ok = hosts.iter().any(|host| host.flows.is_ok());
    let mut findings = Vec::new();
    for host in hosts {
        let mut find = |level, text| findings.push(Finding { level, what: host.host.clone(), text });
        match &host.flows {
            Ok(proof) => find("ok", format!("mail flows: {proof}")),
            // One of several that is down is no reason that mail stops.
            Err(why) => find(if ok { "warning" } else { "error" }, format!("{why}; {}", host.cure)),
        }
        for warning in &host.warnings {
            find("warning", warning.clone());
        }
    }
    if hosts.is_empty() {
        let text = "it delivers to the MX of whatever domain it serves, and none is named: there is no host to test";
        findings.push(Finding { level: "warning", what: name.clone(), text: text.to_owned() });
    }
    Tested { name, ok, findings, hosts: hosts.iter().map(HostSeen::json).collect() }
}
