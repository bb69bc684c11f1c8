//! What the command line asks the running daemon, by the same interface as everybody else.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;

use super::Token;
use crate::config;

/// The longest answer that is read: a full page has about a megabyte.
const LONGEST: usize = 64 << 20;
/// A daemon that lives takes a connection at once.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// It gives up a question before that.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Asks one daemon. Blocking.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    token: Token,
    token_file: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Nobody is there, or not who we mean.
    Unreachable(String),
    /// It said no.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        text: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused { text, .. } => f.write_str(text),
        }
    }
}

impl Client {
    /// Of the daemon that runs by this configuration.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn new(admin: &config::Admin) -> io::Result<Self> {
        let token = Token::read(&admin.token_file)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { address: admin.listen, token, token_file: admin.token_file.clone(), runtime })
    }

    /// What stands there.
    ///
    /// # Errors
    /// There is no answer, or it is no.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// Has something changed.
    ///
    /// # Errors
    /// There is no answer, or it is no.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::Unreachable(error.to_string()))?;
        self.ask(Method::POST, path, body.into())
    }

    fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value, Failure> {
        let unreachable = |why: &dyn fmt::Display| {
            Failure::Unreachable(format!("the daemon cannot be reached at {}: {why}", self.address))
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(AUTHORIZATION, self.token.bearer())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| unreachable(&error))?;
        let (status, bytes) = self.runtime.block_on(async {
            let stream = match tokio::time::timeout(CONNECT_TIME, TcpStream::connect(self.address)).await {
                Ok(stream) => stream.map_err(|error| unreachable(&error))?,
                Err(_) => return Err(unreachable(&"it takes no connection")),
            };
            let answer = async {
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
                // Ends with the connection, which the runtime's end closes at the latest.
                tokio::spawn(connection);
                let response = sender.send_request(request).await.map_err(|error| match speaks_otherwise(&error) {
                    true => unreachable(&"what listens there does not speak HTTP"),
                    false => unreachable(&error),
                })?;
                let status = response.status().as_u16();
                let body = Limited::new(response.into_body(), LONGEST).collect().await;
                Ok((status, body.map_err(|error| unreachable(&error))?.to_bytes()))
            };
            match tokio::time::timeout(ANSWER_TIME, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(unreachable(&format_args!("no answer within {ANSWER_TIME:?}"))),
            }
        })?;
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|_| unreachable(&"what answers there is not this relay"))?;
        if status == 200 {
            return Ok(value);
        }
        if status == 401 {
            let text =
                format!("{} refused the token in {}: is it another relay's?", self.address, self.token_file.display());
            return Err(Failure::Refused { status, text });
        }
        let text = value["error"].as_str().map_or_else(|| format!("HTTP status {status}"), str::to_owned);
        Err(Failure::Refused { status, text })
    }
}

/// Is it the answer of a program that is no HTTP server?
fn speaks_otherwise(error: &hyper::Error) -> bool {
    // A greeting that comes before the question has no predicate: the question is called off, for a reason that is
    // neither an end of the connection nor a failure of the system.
    let is_greeting =
        |cause: &hyper::Error| !cause.is_closed() && !cause.is_incomplete_message() && cause.source().is_none();
    let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
    error.is_parse() || (error.is_canceled() && cause.is_some_and(is_greeting))
}
