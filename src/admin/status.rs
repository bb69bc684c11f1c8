//! How the relay does, on one page: connectors, what waits, rates, back pressure and why.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Admin, Error, Shared, json};
use crate::config::{Hops, Level};
use crate::relay::meter::Histogram;
use crate::relay::state::{AGES, Ages};

/// Next hops that are listed: the fullest.
const LANES: usize = 50;

/// Everything there is to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version that runs.
    pub version: String,
    /// The relay's name.
    pub hostname: String,
    /// Seconds since the start.
    pub uptime: u64,
    /// Why it takes no new mail; `None`: it does.
    pub refuses: Option<String>,
    /// What is wrong with files of recipients: an older one serves, or none.
    #[serde(default)]
    pub directory: Vec<String>,
    /// Messages in the spool.
    pub messages: usize,
    /// Copies that an operator holds.
    pub held: usize,
    /// When the oldest message was accepted.
    pub oldest: Option<Timestamp>,
    /// SMTP connections of clients.
    pub connections: usize,
    /// Messages accepted in the last minute.
    pub accepted_a_minute: u64,
    /// Recipients delivered in the last minute.
    pub delivered_a_minute: u64,
    /// Messages accepted since the start.
    pub accepted: u64,
    /// Refused since the start, for now and for good.
    pub refused: [u64; 2],
    /// From the end of the data to stable storage.
    pub commit: Latency,
    /// From acceptance to the next hop's 250.
    pub delivery: Latency,
    /// Bytes in the spool: its log, and the files of large messages.
    pub spool_bytes: u64,
    /// Bytes free on its disk.
    pub spool_free: Option<u64>,
    /// The send connectors, as the configuration has them.
    pub connectors: Vec<ConnectorStatus>,
    /// Our own certificates, those that end first before the others.
    pub certificates: Vec<Certificate>,
    /// The queue by age, the youngest first.
    #[serde(default)]
    pub ages: Vec<Age>,
    /// Next hops with something to wait for, the fullest first.
    pub hops: Vec<Lane>,
}

/// Milliseconds, up to the end of a bucket; `None`: nothing was measured, or it is beyond all buckets.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "percentiles")]
pub struct Latency {
    pub p50: Option<u64>,
    pub p95: Option<u64>,
    pub p99: Option<u64>,
}

/// A send connector.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConnectorStatus {
    /// Its name.
    pub name: String,
    /// `up`, `down`, `disabled`, or `unused`: nothing was tried since the start.
    pub state: String,
    /// What it demands.
    pub tls: String,
    /// Copies that could be tried now.
    pub ready: usize,
    /// Copies that are being tried.
    pub active: usize,
    /// Copies that wait for their next attempt.
    pub deferred: usize,
    /// Recipients since the start: delivered, deferred, failed.
    pub counts: [u64; 3],
    /// The last delivery: host and what TLS proved.
    pub proved: Option<Seen>,
    /// The last thing that went wrong.
    pub fault: Option<Seen>,
    /// When the certificate that was proved last ends.
    #[serde(default)]
    pub certificate_expires: Option<Timestamp>,
}

/// Something that was seen.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: String,
}

/// Copies of an age. Those that are being tried at this moment are not counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Age {
    /// At most so old, and older than those before: `5m` … `2d`, then `beyond`.
    pub up_to: String,
    /// How many.
    pub copies: usize,
}

/// A certificate of our own.
#[derive(Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// Its file.
    pub file: String,
    /// Its end.
    pub expires: Timestamp,
    /// Names that a certificate before it carried since the start, and that it does not.
    #[serde(default)]
    pub lost_names: Vec<String>,
}

/// A next hop.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lane {
    /// The send connector.
    pub connector: String,
    /// The next hop.
    pub hop: String,
    /// Copies that could be tried now.
    pub ready: usize,
    /// Copies that are being tried.
    pub active: usize,
    /// Copies that wait for their next attempt.
    pub deferred: usize,
    /// When the oldest message that waits for it was accepted.
    #[serde(default)]
    pub oldest: Option<Timestamp>,
    /// Seconds until it is tried again, where it is left alone.
    pub resting: Option<u64>,
    /// What the last attempt met.
    pub last: Option<String>,
}

pub(super) async fn status(State(admin): State<Shared>) -> Result<Response, Error> {
    let done = tokio::task::spawn_blocking(move || of(&admin)).await;
    let status = done.map_err(|error| Error::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(json(StatusCode::OK, &status))
}

fn of(admin: &Admin) -> Status {
    let relay = &admin.relay;
    let snapshot = relay.snapshot();
    let config = &snapshot.config;
    let meter = relay.meter();
    let (spool, free) = relay.spool_bytes();
    let (accepted_a_minute, delivered_a_minute) = meter.lately();
    let mut certificates: Vec<Certificate> = Vec::new();
    for identity in config.identities() {
        let file = identity.files().first().map(|file| file.display().to_string()).unwrap_or_default();
        if !certificates.iter().any(|known| known.file == file) {
            certificates.push(Certificate { file, expires: identity.expiry(), lost_names: identity.lost() });
        }
    }
    certificates.sort_by_key(|certificate| certificate.expires);
    let ages = admin.ages();
    let oldest = |connector: &String, hop: &String| ages.oldest.get(&(connector.clone(), hop.clone())).copied();
    let refuses = relay.check_ready().err().or_else(|| relay.pressure().map(str::to_owned));
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: config.hostname.to_string(),
        uptime: meter.uptime().as_secs(),
        refuses,
        directory: snapshot.directory.refused().map(str::to_owned).collect(),
        messages: relay.waiting(),
        held: relay.held(),
        oldest: relay.oldest(),
        connections: admin.connections.open(),
        accepted_a_minute,
        delivered_a_minute,
        accepted: meter.accepted.load(Ordering::Relaxed),
        refused: [&meter.refused_for_now, &meter.refused_for_good].map(|count| count.load(Ordering::Relaxed)),
        commit: latency(&meter.commit),
        delivery: latency(&meter.delivery),
        spool_bytes: spool.log + spool.large,
        spool_free: free,
        connectors: connectors(admin),
        certificates,
        ages: AGES
            .iter()
            .zip(ages.copies)
            .map(|((up_to, _), copies)| Age { up_to: (*up_to).to_owned(), copies })
            .collect(),
        hops: relay
            .lanes(LANES)
            .into_iter()
            .map(|lane| Lane {
                oldest: oldest(&lane.connector, &lane.hop),
                connector: lane.connector,
                hop: lane.hop,
                ready: lane.ready,
                active: lane.active,
                deferred: lane.later,
                resting: lane.resting,
                last: lane.last,
            })
            .collect(),
    }
}

/// The ages, and when to look again.
#[derive(Debug)]
pub(super) struct KnownAges {
    ages: Arc<Ages>,
    until: Instant,
}

impl Admin {
    /// How old what waits is. A look at a long queue is good for a while: however often somebody asks, a hundredth of one
    /// core looks.
    fn ages(&self) -> Arc<Ages> {
        // Others wait for the one who looks, and have its answer.
        let mut known = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        if let Some(known) = known.as_ref().filter(|known| begun < known.until) {
            return Arc::clone(&known.ages);
        }
        let ages = Arc::new(self.relay.ages());
        let until = Instant::now() + begun.elapsed() * 100;
        *known = Some(KnownAges { ages: Arc::clone(&ages), until });
        ages
    }
}

fn latency(histogram: &Histogram) -> Latency {
    Latency { p50: histogram.at_most(500), p95: histogram.at_most(950), p99: histogram.at_most(990) }
}

fn connectors(admin: &Admin) -> Vec<ConnectorStatus> {
    let relay = &admin.relay;
    let snapshot = relay.snapshot();
    let (depths, counted) = (relay.depths(), relay.meter().connectors());
    let status = |connector: &crate::config::SendConnector| {
        let name = &*connector.name.0;
        let depth = depths.get(name).copied().unwrap_or_default();
        let via = counted.iter().find(|(known, _)| **known == *name).map(|(_, via)| via);
        let seen = via.map(|via| via.seen()).unwrap_or_default();
        let is_newer = match (&seen.proved, &seen.fault) {
            (Some((proved, ..)), Some((fault, _))) => proved >= fault,
            (proved, _) => proved.is_some(),
        };
        // Of the domains of the world some are always out of reach; that says nothing of the connector.
        let is_down = match &connector.hops {
            Hops::SmartHosts(_) => depth.resting > 0,
            Hops::Mx => depth.resting > 2 && depth.resting * 2 > depth.hops,
        };
        let state = match () {
            () if !connector.enabled => "disabled",
            () if is_down && !is_newer => "down",
            () if seen.proved.is_none() && seen.fault.is_none() => "unused",
            () => "up",
        };
        let counts = via.map_or([0; 3], |via| {
            [&via.delivered, &via.deferred, &via.failed].map(|count| count.load(Ordering::Relaxed))
        });
        ConnectorStatus {
            name: name.to_owned(),
            state: state.to_owned(),
            tls: tls(&connector.tls).to_owned(),
            ready: depth.ready,
            active: depth.active,
            deferred: depth.later,
            counts,
            certificate_expires: seen.proved.as_ref().and_then(|(_, _, proof)| proof.expires()),
            proved: seen.proved.map(|(at, host, proof)| Seen { at, what: format!("{host}: {proof}") }),
            fault: seen.fault.map(|(at, what)| Seen { at, what }),
        }
    };
    snapshot.config.send_connectors.iter().map(|connector| status(connector)).collect()
}

/// The word of the configuration.
fn tls(level: &Level) -> &'static str {
    match level {
        Level::Off => "off",
        Level::Opportunistic => "opportunistic",
        Level::Encrypt => "encrypt",
        Level::Certificate(_) => "certificate",
        Level::Domain(..) => "domain",
    }
}
