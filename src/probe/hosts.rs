//! The hosts of send connectors: connected to, up to EHLO in TLS, and no further.
//!
//! What a host proves is judged by the demand that a delivery would make of it, in the same words. No MAIL is said and
//! nobody logs in.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout};

use super::Limits;
use crate::config::value::Pattern;
use crate::config::{Config, ConnectorName, Hops, Level, SendConnector, SmartHostAddress};
use crate::deliver::connect::{self, describe};
use crate::deliver::drive::Connection;
use crate::deliver::hosts::{Hosts, Ourselves, Target};
use crate::dns::{Absence, Answer, Resolve as _, Resolver};
use crate::message::Domain;
use crate::route::Hop;
use crate::smtp::client::{Fault, Session, StartTls, Step, Terms};
use crate::tls::{self, Demand, Proof, Seen, Stream, Unmet};

/// A certificate that ends sooner may end before anybody renews it.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// One host to look at.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) connector: Arc<SendConnector>,
    /// As the configuration or DNS names it.
    pub(super) host: String,
    name: Option<Domain>,
    /// Where DNS was asked already; else by name.
    known: Vec<Target>,
    port: u16,
    /// Whose MX it is.
    domain: Option<Domain>,
}

/// What one host showed.
#[derive(Debug, Clone)]
pub struct HostSeen {
    /// The send connector.
    pub connector: ConnectorName,
    /// The host, with the address that was spoken to: `mx1.example.net [192.0.2.1]:25`.
    pub host: String,
    /// What TLS there was.
    pub tls: Option<TlsSeen>,
    /// Would mail flow under the connector's demand? What it proves, or what is missing.
    pub flows: Result<String, String>,
    /// What would mend that, if it does not.
    pub cure: &'static str,
    /// What should be looked at though mail flows.
    pub warnings: Vec<String>,
}

impl HostSeen {
    /// As `check --live --json` and the admin interface have it.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "connector": self.connector.to_string(),
            "host": self.host,
            "flows": self.flows.is_ok(),
            "because": self.flows.as_ref().unwrap_or_else(|why| why),
            "tls": self.tls.as_ref().map(|tls| serde_json::json!({
                "protocol": tls.protocol,
                "names": tls.names,
                "until": tls.until.map(|until| until.to_string()),
                "issuer": tls.issuer,
            })),
        })
    }
}

/// TLS as the host offered it.
#[derive(Debug, Clone)]
pub struct TlsSeen {
    /// Protocol version and cipher suite.
    pub protocol: String,
    /// The names in the certificate.
    pub names: Vec<String>,
    /// Until when it is valid.
    pub until: Option<Timestamp>,
    /// Who issued it.
    pub issuer: String,
}

/// The hosts of the enabled send connectors, or why there are none.
pub(super) async fn tasks(config: &Config, resolver: &Resolver) -> (Vec<Task>, Vec<HostSeen>) {
    let (mut tasks, mut failed) = (Vec::new(), Vec::new());
    for connector in config.send_connectors.iter().filter(|connector| connector.enabled) {
        match &connector.hops {
            Hops::SmartHosts(hosts) => tasks.extend(hosts.iter().map(|host| {
                let port = host.port.unwrap_or(connector.port);
                let (name, known) = match &host.host {
                    SmartHostAddress::Name(name) => (Some(name.clone()), Vec::new()),
                    SmartHostAddress::Ip(ip) => {
                        (None, vec![Target { name: None, address: (*ip, port).into(), preference: host.preference }])
                    }
                };
                Task {
                    connector: connector.clone(),
                    host: format!("{}:{port}", host.host),
                    name,
                    known,
                    port,
                    domain: None,
                }
            })),
            Hops::Mx => {
                for domain in named(connector) {
                    match mx_tasks(config, connector, &domain, resolver).await {
                        Ok(found) => tasks.extend(found),
                        Err(why) => failed.push(HostSeen {
                            connector: connector.name.clone(),
                            host: format!("the MX of {domain}"),
                            tls: None,
                            flows: Err(why),
                            cure: "correct the domain in address_spaces, or its DNS",
                            warnings: Vec::new(),
                        }),
                    }
                }
            }
        }
    }
    (tasks, failed)
}

/// Domains whose MX the connector serves by name; `*` stands for all the world, which is not asked.
fn named(connector: &SendConnector) -> Vec<Domain> {
    let mut domains = Vec::new();
    for space in &connector.serves {
        match &space.pattern {
            Pattern::Exact(domain) | Pattern::Suffix(domain) if !domains.contains(domain) => {
                domains.push(domain.clone())
            }
            Pattern::Exact(_) | Pattern::Suffix(_) | Pattern::Any => {}
        }
    }
    domains
}

async fn mx_tasks(
    config: &Config,
    connector: &Arc<SendConnector>,
    domain: &Domain,
    resolver: &Resolver,
) -> Result<Vec<Task>, String> {
    let listening = config.receive_connectors.iter().flat_map(|connector| connector.listen.iter().copied()).collect();
    let ourselves = Ourselves::new(config.hostname.clone(), listening);
    let hop = Hop::Mx(domain.clone());
    let private = &config.dns.private_targets;
    let found = Hosts::find(resolver, connector, &hop, &ourselves, private, fastrand::Rng::new()).await;
    let mut hosts = found.map_err(|setback| setback.to_string())?;
    let mut tasks: Vec<Task> = Vec::new();
    while let Some(target) = hosts.next(&()).await {
        match tasks.iter_mut().find(|task| task.name == target.name) {
            Some(task) => task.known.push(target),
            None => tasks.push(Task {
                connector: connector.clone(),
                host: target
                    .name
                    .as_ref()
                    .map_or_else(|| target.address.to_string(), |name| format!("{name}:{}", target.address.port())),
                name: target.name.clone(),
                port: target.address.port(),
                known: vec![target],
                domain: Some(domain.clone()),
            }),
        }
    }
    if tasks.is_empty() { Err(hosts.why_nothing().to_string()) } else { Ok(tasks) }
}

/// Looks at one host: its addresses in turn until one answers.
///
/// We call ourselves by the first of the names; a host that does so by the second is this relay.
pub(super) async fn look(
    task: Task,
    (helo, own_name): (String, String),
    resolver: Resolver,
    limits: Limits,
) -> HostSeen {
    let mut seen = HostSeen {
        connector: task.connector.name.clone(),
        host: task.host.clone(),
        tls: None,
        flows: Err(String::new()),
        cure: "",
        warnings: Vec::new(),
    };
    let all = async {
        let targets = match targets(&task, &resolver).await {
            Ok(targets) => targets,
            Err(why) => {
                seen.cure = "correct the name in smart_hosts, or its DNS";
                return seen.flows = Err(why);
            }
        };
        seen.cure = "is it up, is the port right, and does a firewall stand between?";
        for target in targets {
            seen.host = describe(&target);
            match timeout(limits.connect, connect::reach(&target, &task.connector)).await {
                Ok(Ok(tcp)) => return converse(tcp, &target, &task, (&helo, own_name), &mut seen).await,
                Ok(Err(why)) => seen.flows = Err(why),
                Err(_) => seen.flows = Err(format!("no connection within {} s", limits.connect.as_secs_f32())),
            }
        }
    };
    if timeout(limits.host, all).await.is_err() {
        seen.flows = Err(format!("it does not answer: nothing within {} s", limits.host.as_secs_f32()));
    }
    seen
}

async fn targets(task: &Task, resolver: &Resolver) -> Result<Vec<Target>, String> {
    let Some(name) = task.name.as_ref().filter(|_| task.known.is_empty()) else { return Ok(task.known.clone()) };
    match resolver.addresses(name).await {
        Answer::Found(addresses) => Ok(addresses
            .into_iter()
            .take(5)
            .map(|ip| Target { name: Some(name.clone()), address: (ip, task.port).into(), preference: 0 })
            .collect()),
        Answer::Absent(Absence::NoName) => Err(format!("DNS: {name} does not exist")),
        Answer::Absent(Absence::NoRecord) => Err(format!("DNS: {name} has no address")),
        Answer::Unknown(why) => Err(format!("DNS cannot tell about {name}: {why}")),
    }
}

/// Greeting, EHLO, STARTTLS, EHLO, QUIT.
async fn converse(
    tcp: tokio::net::TcpStream,
    target: &Target,
    task: &Task,
    (helo, own_name): (&str, String),
    seen: &mut HostSeen,
) {
    let connector = &task.connector;
    let demand = connect::demand(connector, target.name.as_ref(), task.domain.as_ref());
    let starttls = match demand {
        Demand::Plain => StartTls::Never,
        Demand::Nothing => StartTls::IfOffered,
        Demand::Encryption | Demand::Certificate(_) | Demand::Domain(..) => StartTls::Demanded,
    };
    let session = Session::new(Terms {
        helo: helo.to_owned(),
        starttls,
        extended: starttls == StartTls::Demanded || connector.login.is_some(),
        login: None,
        own_name: Some(own_name),
    });
    let host = describe(target);
    let mut connection =
        Connection::new(Stream::Plain(tcp), session, host.clone(), target.address, Arc::new(Proof::Plain));
    let mut proof = Proof::Plain;
    loop {
        match connection.session.step(connect::now()) {
            Step::Send(bytes, _) => connection.send(&bytes).await,
            Step::Receive { until } => connection.receive(until).await,
            Step::StartTls => {
                let (stream, mut session) = connection.into_parts();
                let shaken = match stream.into_tcp() {
                    Some(tcp) => shake(tcp, target, connector).await,
                    None => Err(Unmet::Handshake("it is in TLS already".to_owned())),
                };
                let (stream, certificate) = match shaken {
                    Ok(shaken) => shaken,
                    Err(unmet) if starttls == StartTls::IfOffered => {
                        seen.warnings.push(format!("{unmet}: mail goes in the clear, since TLS is not demanded"));
                        return seen.flows = Ok("in the clear".to_owned());
                    }
                    Err(unmet) => return unproven(&unmet, seen),
                };
                seen.tls = Some(in_words(&certificate));
                match demand.judge(&certificate, Timestamp::now()) {
                    Ok(proved) => proof = proved,
                    Err(unmet) => return unproven(&unmet, seen),
                }
                soon(&certificate, seen);
                session.secured();
                connection = Connection::new(stream, session, host.clone(), target.address, Arc::new(Proof::Plain));
            }
            Step::Done => break,
        }
    }
    match connection.session.outcome() {
        Err(Fault::TlsNotOffered) => return unproven(&Unmet::NotOffered, seen),
        Err(Fault::TlsRefused(reply)) => return unproven(&Unmet::Refused(reply.to_string()), seen),
        Err(fault) => {
            seen.cure = match fault {
                Fault::OwnName(_) => "let smart_hosts or the MX name another host; or give that host another hostname",
                _ => "ask who runs it: it does not take mail from this host",
            };
            let setback = connect::setback(&host, fault).to_string();
            // The host stands in front of it already.
            let text = setback.strip_prefix(&format!("{host}: ")).or_else(|| setback.strip_prefix(&format!("{host} ")));
            seen.flows = Err(text.unwrap_or(&setback).to_owned());
            return;
        }
        Ok(()) if connector.login.is_some() && connection.session.offered().auth.is_empty() => {
            seen.cure = "remove the username, or use the port for submission (587)";
            seen.flows = Err("it offers no AUTH, and the connector has a username".to_owned());
        }
        Ok(()) => seen.flows = Ok(proof.to_string()),
    }
    if matches!(connector.tls, Level::Opportunistic) && seen.tls.is_none() && seen.flows.is_ok() {
        seen.warnings.push("it does not offer STARTTLS: mail goes in the clear".to_owned());
    }
    connection.quit().await;
}

/// The demand is not met: no mail, and what would help.
fn unproven(unmet: &Unmet, seen: &mut HostSeen) {
    seen.cure = cure(unmet);
    seen.flows = Err(unmet.to_string());
}

fn cure(unmet: &Unmet) -> &'static str {
    match unmet {
        Unmet::Demanded { seen, .. } => cure(seen),
        Unmet::NotOffered | Unmet::Refused(_) => {
            "let it offer STARTTLS; if it always did, something on the way takes it out (some firewalls do)"
        }
        Unmet::Handshake(_) => "look into its log: it may not know TLS 1.2, or want a client certificate",
        Unmet::Chain { why, .. } if why.contains("was valid until") => "let its administrator renew the certificate",
        Unmet::Chain { .. } => "name the root of its issuer in ca_file, if it is to be trusted",
        Unmet::Name { .. } => "if it is the right host, write one of its names into tls_domain",
    }
}

async fn shake(
    tcp: tokio::net::TcpStream,
    target: &Target,
    connector: &SendConnector,
) -> Result<(Stream, Seen), Unmet> {
    let name = target.name.as_ref().map_or_else(|| target.address.ip().to_string(), Domain::to_string);
    // The host's whole time is limited by whoever asked.
    let deadline = Instant::now() + crate::smtp::client::HANDSHAKE_WAIT;
    tls::Connector::new(connector.identity.as_ref()).look(tcp, &name, deadline).await
}

fn in_words(certificate: &Seen) -> TlsSeen {
    TlsSeen {
        protocol: certificate.protocol().to_owned(),
        names: certificate.names(),
        until: certificate.expiry(),
        issuer: certificate.issuer().unwrap_or_else(|| "somebody who cannot be read".to_owned()),
    }
}

fn soon(certificate: &Seen, seen: &mut HostSeen) {
    let Some(until) = certificate.expiry() else { return };
    let left = until.duration_since(Timestamp::now());
    if !left.is_negative() && left < SOON {
        seen.warnings.push(format!(
            "its certificate ends in {} days, at {until}; who runs that host must renew it by then",
            left.as_hours() / 24
        ));
    }
}
