//! The admin interface: what an administrator, a script and a monitor ask over HTTP. See `openapi.json` beside this file.
//!
//! On loopback only, since there is no TLS here. Every request has limits: connections, header, body, time. `guard` says
//! who may ask; [`routes`] is the list of what can be asked, and the OpenAPI document is held against it. Errors are JSON:
//! `{"error": "…"}`.
//!
//! Not here: what an answer says of mail (`relay::queue`), how a terminal shows it (`cli`).
//!
//! Standards: RFC 9110 and 9112 (HTTP), 6750 (bearer tokens), OpenAPI 3.1, Prometheus text format 0.0.4.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::relay::Relay;
use crate::relay::history::SAMPLE;

use throttle::Throttle;

pub mod client;
mod explain;
mod flow;
mod guard;
mod metrics;
mod queue;
mod status;
mod throttle;
mod token;
mod trace;

pub use queue::Wanted;
pub use status::{Age, Certificate, ConnectorStatus, Lane, Latency, Seen, Status};
pub use token::Token;

/// At one time. More wait in the kernel until one is answered.
const CONNECTIONS: usize = 64;
/// Walks over the queue at one time.
const WALKS: usize = 2;
/// The longest body of a request.
const BODY_LIMIT: usize = 64 << 10;
/// The longest head of a request.
const HEAD_LIMIT: usize = 16 << 10;
/// Fields in it.
const FIELDS: usize = 64;
/// So long the head may take.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// So long an answer may take to begin.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// So long a whole connection may take: one request, and an answer that is fetched slowly.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// After `accept` failed, so long nothing is accepted: no spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The document that describes the interface.
pub const OPENAPI: &str = include_str!("openapi.json");

/// What answers are made of.
#[derive(Debug)]
pub struct Admin {
    relay: Relay,
    token: ArcSwap<Token>,
    /// How many SMTP connections are open: `accept` knows.
    connections: Box<dyn Connections>,
    /// Walks over the whole queue: each reads from the disk.
    walks: Semaphore,
    /// Searches in the tracking files: each reads from the disk, on several cores.
    searches: Arc<Semaphore>,
    /// How old what waits was found to be.
    ages: Mutex<Option<status::KnownAges>>,
    throttle: Throttle,
    /// Tests of send connectors: each connects to hosts of others.
    tests: Semaphore,
}

/// Counts the connections of clients.
pub trait Connections: Send + Sync + std::fmt::Debug {
    /// How many are open.
    fn open(&self) -> usize;
}

type Shared = Arc<Admin>;

impl Admin {
    /// Of this relay, for who knows the token.
    pub fn new(relay: Relay, token: Token, connections: Box<dyn Connections>) -> Arc<Self> {
        Arc::new(Self {
            relay,
            token: ArcSwap::from_pointee(token),
            connections,
            walks: Semaphore::new(WALKS),
            ages: Mutex::default(),
            throttle: Throttle::default(),
            searches: Arc::new(Semaphore::new(1)),
            tests: Semaphore::new(1),
        })
    }

    /// From now on this token counts.
    pub fn set_token(&self, token: Token) {
        self.token.store(Arc::new(token));
    }
}

/// One thing that can be asked.
struct Route {
    path: &'static str,
    /// What it takes, for the document.
    #[cfg_attr(not(test), expect(dead_code, reason = "the document is held against it"))]
    methods: &'static [&'static str],
    handler: MethodRouter<Shared>,
}

/// Everything that can be asked.
fn routes() -> Vec<Route> {
    let route = |path, methods, handler| Route { path, methods, handler };
    vec![
        route("/healthz", &["get"], get(healthz)),
        route("/readyz", &["get"], get(readyz)),
        route("/metrics", &["get"], get(metrics::metrics)),
        route("/api/v1/openapi.json", &["get"], get(openapi)),
        route("/api/v1/status", &["get"], get(status::status)),
        route("/api/v1/flow", &["get"], get(flow::flow)),
        route("/api/v1/flow/messages", &["get"], get(flow::messages)),
        route("/api/v1/load", &["get"], get(flow::load)),
        route("/api/v1/trace", &["get"], get(trace::trace)),
        route("/api/v1/explain", &["post"], post(explain::explain)),
        route("/api/v1/connectors/{name}/test", &["post"], post(explain::test)),
        route("/api/v1/queue", &["get"], get(queue::list)),
        route("/api/v1/queue/{id}", &["get"], get(queue::show)),
        route("/api/v1/queue/hold", &["post"], post(queue::hold)),
        route("/api/v1/queue/release", &["post"], post(queue::release)),
        route("/api/v1/queue/retry", &["post"], post(queue::retry)),
        route("/api/v1/queue/bounce", &["post"], post(queue::bounce)),
        route("/api/v1/queue/remove", &["post"], post(queue::remove)),
    ]
}

/// Answered without the token: they say no more than the greeting on port 25 does.
fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

fn router(admin: Shared) -> Router {
    let mut router = Router::new();
    for Route { path, handler, .. } in routes() {
        router = router.route(path, handler);
    }
    router
        .fallback(|| async { Error::new(StatusCode::NOT_FOUND, "there is no such thing; see /api/v1/openapi.json") })
        .method_not_allowed_fallback(|| async {
            Error::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method; see /api/v1/openapi.json")
        })
        // Around the fallbacks too: a stranger does not learn what is not there.
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&admin), guard::watch))
        .with_state(admin)
}

/// Answers until `stopping`; what is under way then is cut off.
pub async fn listen(listener: TcpListener, admin: Arc<Admin>, mut stopping: watch::Receiver<bool>) {
    let router = router(Arc::clone(&admin));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut samples = samples();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break,
            _ = samples.tick() => {
                admin.relay.sample_load(admin.connections.open());
                continue;
            }
            next = next => next,
        };
        match accepted {
            Ok((socket, peer)) => {
                let router = router.clone();
                connections.spawn(async move {
                    if let Err(error) = serve(socket, router).await {
                        debug!(%peer, error, "admin connection ended");
                    }
                    drop(place);
                });
                while connections.try_join_next().is_some() {}
            }
            Err(error) => {
                warn!(%error, "no admin connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// When samples of the load are taken: in the middle of each step, so that a timer that comes a little early or late leaves
/// no step without one.
fn samples() -> tokio::time::Interval {
    let step = SAMPLE.as_millis() as i64;
    let into = jiff::Timestamp::now().as_millisecond().rem_euclid(step);
    let wait = (step / 2 - into).rem_euclid(step).unsigned_abs();
    let mut samples = tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_millis(wait), SAMPLE);
    samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    samples
}

/// One request on one connection: nobody holds a place by keeping it open.
async fn serve(socket: TcpStream, router: Router) -> Result<(), String> {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(FIELDS)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIME, connection).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

/// Why something was not answered.
#[derive(Debug)]
struct Error {
    status: StatusCode,
    text: String,
}

impl Error {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        json(self.status, &serde_json::json!({ "error": self.text }))
    }
}

/// An answer.
fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The body of a request.
async fn body<T: DeserializeOwned>(body: Body) -> Result<T, Error> {
    let bytes = to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|_| Error::new(StatusCode::PAYLOAD_TOO_LARGE, format!("at most {BODY_LIMIT} bytes are read")))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

/// The question makes no sense.
fn wrong(text: impl Into<String>) -> Error {
    Error::new(StatusCode::BAD_REQUEST, text)
}

/// Work that reads from the disk or counts for long.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// The process lives: it answers.
async fn healthz() -> Response {
    json(StatusCode::OK, &serde_json::json!({ "status": "ok" }))
}

/// The doors are open and the spool takes mail.
async fn readyz(State(admin): State<Shared>) -> Response {
    match admin.relay.check_ready() {
        Ok(()) => json(StatusCode::OK, &serde_json::json!({ "status": "ready" })),
        Err(why) => Error::new(StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

/// A listener, before anything is answered.
///
/// # Errors
/// What the system says.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The document says what there is, no more and no less, and which of it needs no token.
    #[test]
    fn s160_the_document_is_the_list_of_routes() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                described.insert(format!("{method} {path}"));
                let is_open = operation["security"] == serde_json::json!([]);
                assert_eq!(is_open, is_public(path), "{method} {path}");
                assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
            }
        }
        let built: BTreeSet<String> = routes()
            .iter()
            .flat_map(|route| route.methods.iter().map(|method| format!("{method} {}", route.path)))
            .collect();
        assert_eq!(described, built);
    }
}
